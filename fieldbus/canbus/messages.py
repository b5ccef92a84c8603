"""A message as a link sees it: what the database says, its points, and how it is watched, asked and sent.

Rules: all plain data, made at load from the database and the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fieldbus.canbus.bus import BITRATE_SWITCH, EXTENDED, FD
from fieldbus.canbus.layout import Condition, Message, Signal
from fieldbus.model import Point, Value

GLOBAL_ADDRESS = 255
"""Of J1939: everybody."""


@dataclass(frozen=True, slots=True)
class Request:
    """The frame that makes a node speak."""

    frame_id: int
    is_extended: bool
    data: bytes
    is_remote: bool
    scan_s: float
    timeout_s: float
    is_pgn: bool = False
    """Whether it is J1939's request for the message's PGN; then identifier and data follow from that."""


class Guard(Protocol):
    """A message's checksum and alive counter (`protection.Protection`)."""

    period: int | None
    """After how many frames its sequence begins anew; None if it is too long to be kept ready."""
    owned: frozenset[str]
    """The signals that it fills in."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What was found in frames since start: ``lost`` among it."""
        ...

    def check(self, data: bytes) -> str | None:
        """Return why a frame is not to be believed."""

    def reset(self) -> None:
        """Forget the counter."""

    def advance(self, frames: int) -> None:
        """Count frames that others have sent for us."""

    def protect(self, data: bytes) -> bytes:
        """Put in the next counter and the checksum."""

    def sequence(self, data: bytes) -> list[bytes]:
        """Return the frames of a whole turn of the counter."""


@dataclass(frozen=True, slots=True, eq=False)
class CanMessage:
    """A message of a device."""

    device: str
    message: Message
    points: Mapping[Signal, Point]
    deadline_s: float | None = None
    """After so long without a frame its points are bad; None for never."""
    branch_deadlines: Mapping[Condition, float] = field(default_factory=dict)
    """For branches that have one of their own."""
    learns_deadline: bool = False
    """Whether a branch without deadline gets one when its rhythm is known."""
    cycle_s: float | None = None
    """How often we repeat it if we send it; None for only on change."""
    request: Request | None = None
    guard: Callable[[], Guard] | None = None
    """Makes what checks its frames, or protects those that we send."""
    safe: Mapping[Signal, Value | None] = field(default_factory=dict)
    """What we send of a signal whose source is bad, None for "not available". Signals that are not here
    silence the message."""
    says_absent: bool = False
    """Whether it is to say "not available" of every signal whose source is bad."""
    decoder: Callable[[Collection[Signal]], Any] | None = None
    """Makes what decodes some signals of it, where they are not just bits (see `listening.Decoder`)."""
    is_j1939: bool = False
    """Whether it is recognised by its PGN, whatever the priority."""
    source_address: int | None = None
    """J1939: of whom it is heard; None for of anybody."""
    destination: int = GLOBAL_ADDRESS
    """J1939: to whom we send it, if its PGN has a destination."""

    @property
    def can_id(self) -> int:
        """The identifier as a bus has it."""
        return self.message.frame_id | (EXTENDED if self.message.is_extended else 0)

    @property
    def flags(self) -> int:
        """The flags of a frame that carries it."""
        return FD | BITRATE_SWITCH if self.message.is_fd else 0

    def deadline_of(self, condition: Condition) -> float | None:
        """Return the deadline of a branch."""
        return self.branch_deadlines.get(condition, self.deadline_s)
