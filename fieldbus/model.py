"""What a value is, on no bus in particular.

Rules:

* A value never travels without its quality, its reason and its source time. A sample that is bad
  has no value at all (`None`): what is not known cannot be mistaken for what is.
* Source time is when the value was read or received (integer nanoseconds, wall clock), never when
  it was converted. It is data: silence and ages are measured by arrival, on our monotonic clock
  (`Batch.at_s`).
* A value that waited on its way (retained by a broker, historical, queued) is `held`: a `HeldSample`, a
  `HeldBatch`. It is a value like any other, but it does not show that its source is there.
* Points that are acquired together (one Modbus block, one CAN message, one topic) form a `Group`.
  What tasks hand each other is a `Batch`: the whole picture of a group at one moment, of which
  `changed` says what is new.

Design: a batch is a picture, not a list of events, so that a block whose bytes did not change costs
the same whether it has one point or a hundred: the new batch shares `values` and `flaws` with the
one before and has an empty `changed`. "The latest sample of every point" is then one reference per
group. Batches are named tuples because they are made for every response: a frozen dataclass takes
about three times as long to make.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

Value = bool | int | float | str


class Quality(StrEnum):
    """How far a value can be trusted."""

    GOOD = "good"
    UNCERTAIN = "uncertain"
    BAD = "bad"


class Reason(StrEnum):
    """Why a sample is not good. A device exception adds its code: ``device exception 02``."""

    NOT_CONNECTED = "not connected"
    TIMEOUT = "timeout"
    DEVICE_EXCEPTION = "device exception"
    BAD_RESPONSE = "bad response"
    OUT_OF_RANGE = "out of range"
    NOT_AVAILABLE = "not available"
    STALE = "stale"
    WAITING = "waiting for first value"
    CONFIGURATION = "configuration"
    CONVERSION = "conversion"
    SHORT_FRAME = "missing in a short frame"
    ERROR_INDICATOR = "error indicator"
    BUS_DOWN = "bus down"
    BAD_CHECKSUM = "bad checksum"
    STUCK_COUNTER = "stuck counter"
    CLOCK = "clock"
    """Its source time lay in the future, and was replaced by the time of its arrival."""


class Kind(StrEnum):
    """What sort of value a point has, once converted."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    STRING = "string"

    @property
    def is_number(self) -> bool:
        """Whether arithmetic makes sense on it."""
        return self in (Kind.INT, Kind.FLOAT)


class Access(StrEnum):
    """What a peer may do with a point."""

    READ = "read"
    WRITE = "write"
    READWRITE = "readwrite"

    @property
    def can_read(self) -> bool:
        """Whether the point yields values."""
        return self is not Access.WRITE

    @property
    def can_write(self) -> bool:
        """Whether the point takes values."""
        return self is not Access.READ


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One named value of a device. Compared by identity: there is one object per point."""

    device: str
    """The device's name."""
    name: str
    """The point's name in its device; may contain dots."""
    kind: Kind
    """What sort of value it has."""
    access: Access = Access.READ
    """What the routing table may do with it: read it (`from`), write it (`to`)."""
    unit: str | None = None
    """Engineering unit, for people."""
    minimum: float | None = None
    """Declared lowest engineering value; below it a value is uncertain, and a write refused."""
    maximum: float | None = None
    """Declared highest engineering value."""
    lowest: float | None = None
    """Lowest engineering value that the point's type can express; None if there is no such bound."""
    highest: float | None = None
    """Highest engineering value that the point's type can express."""
    labels: Mapping[int, str] | Mapping[float, str] = field(default_factory=dict)
    """Names of single values (an enumeration); the value itself stays the number. Of a scaled signal they
    name the decimal that its samples have: ``{25.5: "SNA"}``."""
    description: str = ""
    """For people."""
    carries_quality: bool = False
    """Whether, as a target, it can be told that its value went bad (a served register, a CAN signal)."""
    is_topic: bool = False
    """Whether it lives on a topic: a route that holds bad values back leaves it its last one. Other targets
    that carry quality decide themselves what they show."""
    group: str = ""
    """Points of one device with the same group are written together or not at all; empty if it has none."""
    origin: str = ""
    """Where it first was, ``gateway/address``, if another gateway gave it to us; empty if it is ours."""
    hops: int = 0
    """Through how many gateways it has come."""
    floor: float = field(init=False)
    """No number from here to `ceiling` is refused: what `refusal` says of nearly every sample, for who asks
    at each. Of a number beyond, and of a string, it has to be asked. Made of the other fields."""
    ceiling: float = field(init=False)

    def __post_init__(self) -> None:
        # The ends are finite, so that neither an infinity nor NaN is between them.
        low, high = -sys.float_info.max, sys.float_info.max
        if self.kind is Kind.STRING:
            low, high = high, low
        else:
            low = low if self.minimum is None else max(low, self.minimum)
            high = high if self.maximum is None else min(high, self.maximum)
        object.__setattr__(self, "floor", low)
        object.__setattr__(self, "ceiling", high)

    @property
    def address(self) -> str:
        """The point's full name, ``<device>.<point>``."""
        return f"{self.device}.{self.name}"

    @property
    def range(self) -> tuple[float | None, float | None]:
        """The tighter of the declared range and the range of the type."""
        low = self.minimum if self.minimum is not None else self.lowest
        high = self.maximum if self.maximum is not None else self.highest
        return low, high

    def label(self, value: Value | None) -> str | None:
        """Return the name of a value, None if it has none."""
        labels: Mapping[Any, str] = self.labels
        return labels.get(value)

    def refusal(self, value: Value) -> str | None:
        """Say why the point must not be given a value, or None if it may."""
        if not isinstance(value, str) and self.floor <= value <= self.ceiling:
            return None
        if self.kind is Kind.STRING or isinstance(value, str):
            if (self.kind is Kind.STRING) != isinstance(value, str):
                return f"{value!r} is not a {self.kind}"
            return None
        try:
            if not math.isfinite(value):
                return f"{value} is not a value"
        except OverflowError:
            return "a whole number beyond 1e308 is not a value"
        low, high = self.minimum, self.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            shown = [("" if end is None else f"{end:g}") for end in (low, high)]
            return f"{value:g} is outside {shown[0]} … {shown[1]}"
        return None

    def __repr__(self) -> str:
        return f"<Point {self.address}>"


class Flaw(NamedTuple):
    """Why a sample is not good."""

    quality: Quality
    reason: str


class Sample(NamedTuple):
    """A value with everything that must be known to use it."""

    value: Value | None
    """None exactly when `quality` is bad."""
    quality: Quality
    reason: str | None
    """None exactly when `quality` is good."""
    time_ns: int
    """Source time: nanoseconds since the Unix epoch."""

    @property
    def is_bad(self) -> bool:
        """Whether there is no value."""
        return self.quality is Quality.BAD

    @property
    def is_held(self) -> bool:
        """Whether it waited on its way, so that nobody knows whether its source is still there."""
        return False


class HeldSample(Sample):
    """A sample that waited on its way: retained by a broker, historical, or queued."""

    __slots__ = ()

    @property
    def is_held(self) -> bool:
        """True."""
        return True


def bad(reason: str) -> Flaw:
    """Return the flaw that takes a value away."""
    return Flaw(Quality.BAD, reason)


def uncertain(reason: str) -> Flaw:
    """Return the flaw that leaves a value but warns of it."""
    return Flaw(Quality.UNCERTAIN, reason)


OUT_OF_RANGE = uncertain(Reason.OUT_OF_RANGE)
NO_FLAWS: Mapping[int, Flaw] = {}


class Group:
    """Points that are acquired together and therefore share one source time."""

    __slots__ = ("everything", "name", "points", "position")

    def __init__(self, name: str, points: Iterable[Point]) -> None:
        self.name = name
        """For logs and plans, such as ``press holding 0..11``."""
        self.points = tuple(points)
        self.position: Mapping[Point, int] = {point: index for index, point in enumerate(self.points)}
        self.everything: Sequence[int] = range(len(self.points))
        """Indexes of all points: the `changed` of a batch in which everything is new."""

    def __repr__(self) -> str:
        return f"<Group {self.name}>"

    def without_value(self, reason: str, time_ns: int, at_s: float) -> Batch:
        """Return the batch that says that no point of the group has a value, and why."""
        flaw = bad(reason)
        return Batch(
            self,
            time_ns,
            at_s,
            (None,) * len(self.points),
            dict.fromkeys(self.everything, flaw),
            self.everything,
        )


class Batch(NamedTuple):
    """The picture of a group at one moment. Immutable by convention: nobody changes its lists."""

    group: Group
    time_ns: int
    """Source time, wall clock, ns since the Unix epoch."""
    at_s: float
    """When it arrived, on the monotonic clock, in seconds: what ages are measured with."""
    values: Sequence[Value | None]
    """One per point of the group; None where the flaw is bad."""
    flaws: Mapping[int, Flaw]
    """Only of points that are not good, by index."""
    changed: Sequence[int]
    """Indexes of points whose value or flaw differs from the group's previous batch."""

    def sample(self, index: int) -> Sample:
        """Return the sample of the point at `index`."""
        flaw = self.flaws.get(index)
        if flaw is None:
            return Sample(self.values[index], Quality.GOOD, None, self.time_ns)
        return Sample(self.values[index], flaw.quality, flaw.reason, self.time_ns)

    @property
    def heard_s(self) -> float:
        """When the source was heard, on the monotonic clock; minus infinity if the batch is held."""
        return self.at_s


class HeldBatch(Batch):
    """A batch that waited on its way. `at_s` is earlier than its arrival if its own time says so."""

    __slots__ = ()

    def sample(self, index: int) -> Sample:
        """Return the sample of the point at `index`."""
        return HeldSample(*super().sample(index))

    @property
    def heard_s(self) -> float:
        """Minus infinity."""
        return -math.inf
