"""A message that routes write: what it says now, which of its frames may be sent, and its share of the bus.

Rules:

* A frame is sent only while each signal in it that needs a value has one: from a route or a write in this
  session, or from the configuration. A signal that never had a value counts like one whose source is bad. The
  start values of the database are not values that somebody gave.
* Of a multiplexed message only branches that were written are sent. A selector that a route writes decides
  which branch that is; any other selector is set for each branch that is sent.
* Signals that nothing writes carry the value that the configuration names, else "not available" (J1939), else
  the start value of the database.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fieldbus.canbus.bus import Cyclic
from fieldbus.canbus.codec import FrameEncoder
from fieldbus.canbus.layout import Condition, Message, Signal
from fieldbus.canbus.messages import CanMessage, Guard
from fieldbus.errors import ConversionError
from fieldbus.model import Value

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

    def __init__(self, message: CanMessage, routed: Sequence[Signal], *, needs_all: bool = False) -> None:
        """Take a message.

        Args:
            message: what is sent.
            routed: the signals that routes write, or that one write gives a value.
            needs_all: whether every signal needs a value, not only those of routes; for a single write.
        """
        self.message = message
        self.guard: Guard | None = None if message.guard is None else message.guard()
        """Its counter goes on over sessions: receivers that remember the last one must not see it again. All
        branches share it, as they share the identifier."""
        self._selectors = selectors_of(message.message)
        self.routed = frozenset(routed)
        self._needed = _needed(message, self.routed, self._selectors, needs_all=needs_all)
        conditions = dict.fromkeys(signal.condition for signal in routed)
        self._written: Sequence[Condition] = [item for item in conditions if item or len(conditions) == 1]
        """The branches that routes write; the common signals are in those."""
        self._is_simple = not self._selectors
        self._ready: Sequence[Condition] | None = None
        """The answer of `ready`, until something changes that it depends on; of a multiplexed message."""
        self.encoder = FrameEncoder(message.message)
        self.missing: set[Signal] = set()
        """Signals that need a value and have none: not written yet, or their source is bad."""
        self.given: set[Signal] = set()
        """Signals that were given a value in this session."""
        self.safe: set[Signal] = set()
        """Signals that have their safe value now, because their source is bad or was not heard."""
        self.touched: set[Signal] = set()
        """Of a multiplexed message: signals that changed since it was sent."""
        self.sent_s = 0.0
        self.cyclic: Cyclic | None = None
        self.repeated: list[bytes] = []
        """What the bus repeats for us …"""
        self.repeated_branches = 1
        """… of how many branches …"""
        self.repeated_since_s = 0.0
        """… and since when."""
        self.is_waiting = False
        """Whether it waits for the budget."""
        self.is_unsent = False
        """Whether a change has not got to the bus: it was off or had no room, or we had no address."""
        self.reset()

    def reset(self) -> None:
        """Forget every value but those of the configuration."""
        self.encoder = FrameEncoder(self.message.message)
        self.given.clear()
        self.touched.clear()
        self._ready = None
        self.is_waiting = self.is_unsent = False
        self.cyclic = None
        self.repeated = []
        for signal in self.message.safe:
            self._make_safe(signal)
        self.safe = {signal for signal in self.routed if signal in self.message.safe}
        self.missing = {signal for signal in self._needed if signal not in self.message.safe}

    # --- values

    def give(self, signal: Signal, value: Value) -> bool:
        """Give a signal a value; return whether the message is to be sent because of it.

        Raises:
            ConversionError: it does not fit.
        """
        is_changed = self.encoder.set(signal.name, value)
        is_new = signal not in self.given or signal in self.missing or signal in self.safe
        if is_new:
            self.missing.discard(signal)
            self.safe.discard(signal)
            self.given.add(signal)
        if not self._is_simple:
            self.touched.add(signal)
            if is_new or signal.name in self._selectors:
                self._ready = None
        # What is not repeated goes out as often as the route says, changed or not.
        return is_changed or is_new or self.message.cycle_s is None or self.is_unsent

    def take_away(self, signal: Signal) -> bool:
        """Give a signal its safe value; without one it is missing. Return whether its bits changed."""
        self._ready = None
        if signal not in self.message.safe:
            self.missing.add(signal)
            return False
        self.safe.add(signal)
        is_changed = self._make_safe(signal)
        if is_changed:
            self.touched.add(signal)
        return is_changed

    def _make_safe(self, signal: Signal) -> bool:
        """Put in the value that the configuration names; return whether that changed anything."""
        value = self.message.safe[signal]
        try:
            if value is None:
                return self.encoder.set_absent(signal.name)
            return self.encoder.set(signal.name, value)
        except (ConversionError, KeyError):  # it lies behind the end of the message: no frame has it
            return False

    def state(self) -> Any:
        """Return what `give` changes, for `restore`."""
        return self.encoder.state(), set(self.missing), set(self.given), set(self.safe), set(self.touched)

    def restore(self, state: Any) -> None:
        """Undo what was given since `state`."""
        encoder, self.missing, self.given, self.safe, self.touched = state
        self._ready = None
        self.encoder.restore(encoder)

    # --- frames

    @property
    def is_repeated_in_part(self) -> bool:
        """Whether it is repeated and may go on in some branches while others are missing a value."""
        return not self._is_simple and self.message.cycle_s is not None

    @property
    def has_value(self) -> bool:
        """Whether anybody gave it a value, or it is repeated and the configuration names all of them."""
        return bool(self.given) or (
            self.message.cycle_s is not None and all(signal in self.message.safe for signal in self.routed)
        )

    def ready(self) -> Sequence[Condition]:
        """Return the branches of which a frame may be sent now."""
        if self._is_simple:
            return () if self.missing or not self.has_value else ((),)
        if self._ready is None:
            found: dict[tuple[int, ...], Condition] = {}
            for branch, origins in self._candidates().items():
                if self._is_begun(branch, origins) and not self.missing_in(branch):
                    # Branches that overlap may be one frame.
                    found.setdefault(self.encoder.selection(branch), branch)
            self._ready = list(found.values())
        return self._ready

    def changed(self) -> Sequence[Condition]:
        """Return the branches of `ready` that have a signal that changed since the message was sent.

        Those of a message that is repeated are all sent: that is their cycle.
        """
        ready = self.ready()
        if self._is_simple or self.message.cycle_s is not None:
            return ready
        return [branch for branch in ready if self._has(branch, self.touched)]

    def branches_with(self, signals: Iterable[Signal]) -> list[Condition]:
        """Return the branches, ready or not, that have one of the signals."""
        wanted = set(signals)
        if self._is_simple:
            return [()]
        return [branch for branch in self._candidates() if self._has(branch, wanted)]

    def missing_in(self, branch: Condition) -> list[Signal]:
        """Return the signals in a branch's frame that need a value and have none."""
        if not self.missing:
            return []
        forced = {name for name, _ in branch}
        present = self.encoder.present(branch)
        return [
            signal
            for signal in self._needed
            if signal in self.missing
            and signal.name in present
            and (signal in self.routed or signal.name not in forced)
        ]

    def _has(self, branch: Condition, signals: Collection[Signal]) -> bool:
        present = self.encoder.present(branch)
        return any(signal.name in present for signal in signals)

    def _candidates(self) -> Mapping[Condition, Sequence[Condition]]:
        """Return the branches that the selectors allow now, each with those of `_written` that it serves."""
        found: dict[Condition, list[Condition]] = {}
        decided = {signal.name for signal in self.given | self.safe} & self._selectors.keys()
        for branch in self._written:
            kept: list[tuple[str, frozenset[int]]] = []
            for name, values in branch:
                if name in decided and not self.encoder.selects(name, values):
                    break
                kept.append((name, values))
            found.setdefault(tuple(kept), []).append(branch)
        longer = {branch[:size] for branch in found for size in range(len(branch))}
        return {branch: origins for branch, origins in found.items() if branch not in longer}

    def _is_begun(self, branch: Condition, origins: Sequence[Condition]) -> bool:
        """Return whether a branch was written."""
        if not branch or any(self._selectors.get(name) in self.given for name, _ in branch):
            return self.has_value
        if any(signal.condition in origins for signal in self.given):
            return True
        present = self.encoder.present(branch)
        return self.message.cycle_s is not None and all(
            signal in self.message.safe for signal in self.routed if signal.name in present
        )

    def frames(self, branches: Sequence[Condition]) -> list[bytes]:
        """Return the data of the next frames of branches."""
        guard = self.guard
        made = [self.encoder.frame(branch) for branch in branches]
        return made if guard is None else [guard.protect(data) for data in made]

    def turn(self, branches: Sequence[Condition]) -> list[bytes] | None:
        """Return all frames that are sent in turn: each branch, with each count of the counter.

        None if they are too many to be kept ready.
        """
        guard = self.guard
        made = [self.encoder.frame(branch) for branch in branches]
        if guard is None:
            return made if len(made) <= MAX_TURN else None
        if guard.period is None or math.lcm(guard.period, len(made)) > MAX_TURN:
            return None
        protected = [guard.sequence(data) for data in made]
        return [
            protected[index % len(made)][index % guard.period]
            for index in range(math.lcm(guard.period, len(made)))
        ]

    # --- words

    def undecided(self) -> list[Signal]:
        """Return the selectors that no route, no branch and no configured value sets: nothing can be sent."""
        found: dict[Signal, None] = {}
        for branch in self._written:
            for signal in self.missing_in(branch):
                if signal not in self.routed:
                    found[signal] = None
        return list(found)

    def unwritten(self) -> list[Signal]:
        """Return the signals in the frames that nothing writes and the configuration does not name."""
        owned = frozenset() if self.guard is None else self.guard.owned
        forced = {name for branch in self._written for name, _ in branch}
        present = {name for branch in self._written for name in self.encoder.present(branch)}
        return [
            signal
            for signal in self.message.message.signals
            if signal.name in present
            and signal not in self.routed
            and signal not in self.message.safe
            and signal.name not in owned
            and signal.name not in forced
        ]

    def words(self, signal: Signal) -> str:
        """Return what a signal says now: ``Mode=2 (running)``, ``Level=not available``."""
        bits = self.encoder.bits(signal.name)
        return f"{signal.name}={'–' if bits is None else signal.words(bits)}"

    def beside(self, written: Collection[Signal], branches: Sequence[Condition]) -> list[Signal]:
        """Return the other signals in the frames of branches, without counter, checksum and selectors."""
        owned = frozenset() if self.guard is None else self.guard.owned
        forced = {name for branch in branches for name, _ in branch}
        present = {name for branch in branches for name in self.encoder.present(branch)}
        return [
            signal
            for signal in self.message.message.signals
            if signal.name in present
            and signal not in written
            and signal.name not in owned
            and signal.name not in forced
        ]


def selectors_of(message: Message) -> Mapping[str, Signal]:
    """Return the selectors of a message by name."""
    names = {name for signal in message.signals for name, _ in signal.condition}
    return {signal.name: signal for signal in message.signals if signal.name in names}


def _needed(
    message: CanMessage, routed: Collection[Signal], selectors: Mapping[str, Signal], *, needs_all: bool
) -> Sequence[Signal]:
    """Return the signals without whose value nothing is sent."""
    owned = frozenset() if message.guard is None else message.guard().owned
    return [
        signal
        for signal in message.message.signals
        if signal.name not in owned
        and (
            signal in routed
            or signal.name in selectors
            or (needs_all and not (message.is_j1939 and signal.absent_from is not None))
        )
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
