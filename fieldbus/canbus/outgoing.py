"""A message that routes write: what it says now, under which identifier, and its share of the bus."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fieldbus.canbus.bus import Cyclic
from fieldbus.canbus.codec import FrameEncoder
from fieldbus.canbus.layout import Condition, Signal
from fieldbus.canbus.messages import CanMessage, Guard
from fieldbus.model import Point

MAX_TURN = 256
"""Frames that the kernel repeats in turn, at most."""
_BURST_S = 0.1
"""So much of a second's budget may be used at once."""
_SHORTEST_WAIT_S = 0.001
"""What is left to wait may be a rounding rest, too short for any clock."""


class Budget:
    """How much of the bus we may use."""

    def __init__(self, bits_per_s: float) -> None:
        self._bits_per_s = bits_per_s
        self._most = bits_per_s * _BURST_S
        self._left = self._most
        self._at_s: float | None = None

    def wait_s(self, bits: int, now_s: float) -> float:
        """Take the bits of a frame and return 0, or take none and return how long to wait."""
        if self._at_s is not None:
            self._left = min(self._most, self._left + (now_s - self._at_s) * self._bits_per_s)
        self._at_s = now_s
        if self._left >= min(bits, self._most):
            self._left -= bits
            return 0.0
        return max((min(bits, self._most) - self._left) / self._bits_per_s, _SHORTEST_WAIT_S)


class Outgoing:
    """A message that routes write."""

    def __init__(self, message: CanMessage, routed: Sequence[Signal]) -> None:
        self.message = message
        found = dict.fromkeys(signal.condition for signal in routed)
        self.branches: list[Condition] = [item for item in found if item or len(found) == 1]
        """What is sent of a multiplexed message: one frame for each branch that is routed to. Signals that
        are in every frame are in those."""
        self.encoder = FrameEncoder(message.message)
        self.guard: Guard | None = None if message.guard is None else message.guard()
        """Its counter goes on over sessions: receivers that remember the last one must not see it again. All
        branches share it, as they share the identifier."""
        self.bad: set[Point] = set()
        self.safe: set[Point] = set()
        """Points that have their safe value now, because their source is bad."""
        self.has_value = False
        self.sent_s = 0.0
        self.cyclic: Cyclic | None = None
        self.repeated: list[bytes] = []
        """What the bus repeats for us …"""
        self.repeated_since_s = 0.0
        """… and since when."""
        self.is_waiting = False
        """Whether it waits for the budget."""
        self.is_unsent = False
        """Whether a change has not got to the bus: it was off or had no room, or we had no address."""

    def reset(self) -> None:
        """Begin with start values again."""
        self.encoder = FrameEncoder(self.message.message)
        self.bad.clear()
        self.safe.clear()
        self.has_value = False
        self.is_waiting = self.is_unsent = False
        self.cyclic = None
        self.repeated = []

    @property
    def may_be_sent(self) -> bool:
        """Whether what it says is known."""
        return self.has_value and not self.bad

    def frames(self) -> list[bytes]:
        """Return the data of its next frames, one for each branch."""
        guard = self.guard
        made = [self.encoder.frame(branch) for branch in self.branches]
        return made if guard is None else [guard.protect(data) for data in made]

    def turn(self) -> list[bytes] | None:
        """Return all frames that are sent in turn: each branch, with each count of the counter.

        None if they are too many to be kept ready.
        """
        guard = self.guard
        made = [self.encoder.frame(branch) for branch in self.branches]
        if guard is None:
            return made if len(made) <= MAX_TURN else None
        if guard.period is None or math.lcm(guard.period, len(made)) > MAX_TURN:
            return None
        protected = [guard.sequence(data) for data in made]
        return [
            protected[index % len(made)][index % guard.period]
            for index in range(math.lcm(guard.period, len(made)))
        ]


class Address:
    """Under which identifier a message goes out; J1939 puts its own address in."""

    def can_id(self, message: CanMessage) -> int | None:
        """Return the identifier; None while it may not be sent."""
        return message.can_id

    def send_long(self, message: CanMessage, data: bytes) -> bool:
        """Send what does not fit a frame; False if that cannot be begun now."""
        return False

    def drop_long(self, message: CanMessage) -> None:
        """Send nothing any more of what `send_long` began or keeps."""

    async def is_sent(self, message: CanMessage) -> str | None:
        """Wait until what `send_long` began is through; return why it failed, or None."""
        return None
