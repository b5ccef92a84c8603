"""Values that the gateway makes itself, as sources of routes: constants, toggles, counters. Pure.

Rules:

* A toggle has its other value each period, a counter the next number; after the highest comes 0. A constant
  is said again each period, so that a target can see that it is still there.
* One that is tied to a point (``while``) is bad, for the same reason, as long as that point is bad: a sign of
  life stops with what it stands for. Afterwards it goes on where it stopped, so a toggle still alternates.
* What is late is not made up for: after a pause comes one value, not all that were missed.
* Time is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fieldbus.model import NO_FLAWS, Batch, Group, Kind, Point, Sample, Value

DEVICE = "sys"
NAMES = ("constant", "toggle", "counter")
"""What a generated source is called, in the configuration as in its point."""
CONSTANT_PERIOD_S = 1.0
SHORTEST_PERIOD_S = 0.01
DEFAULT_HIGHEST = 65535


@dataclass(frozen=True, slots=True)
class Generated:
    """What a route has as its source instead of a point."""

    name: str
    """``constant``, ``toggle`` or ``counter``."""
    period_s: float
    values: Sequence[Value] | range
    """What comes in turn, again and again."""
    tied: str | None = None
    """The address of the point that it is tied to."""


class Generator:
    """A generated source at work."""

    def __init__(self, generated: Generated, tied: Point | None) -> None:
        """Take what it is, and the point that it is tied to."""
        self.generated = generated
        self.tied = tied
        self.due_s = 0.0
        """When `next` has something to do, on the monotonic clock."""
        values = generated.values
        numbers = [value for value in (values[0], values[-1]) if not isinstance(value, str)]
        self.point = Point(
            DEVICE,
            generated.name,
            _kind_of(values),
            minimum=min(numbers, default=None),
            maximum=max(numbers, default=None),
        )
        self.group = Group(f"{DEVICE} {generated.name}", (self.point,))
        self._turn = 0
        self._reason: str | None = ""
        """For what it was bad last; None if it was good, empty at first."""

    def next(self, tied: Sample | None, now_s: float, now_ns: int) -> Batch | None:
        """Return what the source has now; None if it is not due, or nothing is new.

        Args:
            tied: the newest sample of the point that it is tied to, if it is to one.
            now_s: monotonic clock.
            now_ns: wall clock.
        """
        if now_s < self.due_s:
            return None
        self.due_s = max(self.due_s + self.generated.period_s, now_s + self.generated.period_s / 2)
        if tied is not None and tied.is_bad:
            reason = str(tied.reason)
            is_news, self._reason = reason != self._reason, reason
            return self.group.without_value(reason, now_ns, now_s) if is_news else None
        values = self.generated.values
        changed = () if self._reason is None and len(values) == 1 else (0,)
        self._reason = None
        value = values[self._turn]
        self._turn = (self._turn + 1) % len(values)
        return Batch(self.group, now_ns, now_s, (value,), NO_FLAWS, changed)


def is_generated(point: Point) -> bool:
    """Return whether a point is what a generated source gives its values to."""
    return point.device == DEVICE and point.name in NAMES


def _kind_of(values: Sequence[Value] | range) -> Kind:
    if isinstance(values, range):
        return Kind.INT
    if any(isinstance(value, str) for value in values):
        return Kind.STRING
    if all(isinstance(value, bool) for value in values):
        return Kind.BOOL
    return Kind.INT if all(isinstance(value, int) for value in values) else Kind.FLOAT
