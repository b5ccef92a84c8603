"""The contract of a link: what a protocol promises and what the gateway does with it.

A link raises; the gateway decides. The gateway calls ``connect``, then ``run``; when either raises
`LinkDownError` it calls ``close``, marks the link's points bad, waits with backoff and jitter, and
begins again. So that every protocol behaves alike:

* ``connect`` either returns connected or raises `LinkDownError`. It may be called again at any time
  after ``close``.
* ``run`` acquires until the session ends (`LinkDownError`) or it is cancelled; `CancelledError` is
  never swallowed. It alone touches the connection.
* ``send`` takes what the routing table has for this link. It never blocks and never raises: a link
  keeps its own bounded queue (or none) and counts what it drops, because only the protocol knows
  whether the newest value may replace an older one. What it cannot take now (not connected, device
  lost) it hands back.
* ``write`` is an act with an answer, for people and programs that asked for one. What has not been sent by
  its time is not sent any more (`WriteOutcome.EXPIRED`).
* ``close`` is safe at any time, also after a failed ``connect``.

A link that sends gathered messages (a broker) also has ``gather``: what needs no treatment goes there
uncut, as a `Bundle`: the batch and the plan that says which of its points go into which message. ``send``
gets only what a policy has treated sample by sample.

Design: ``run`` takes a callback instead of being an asynchronous iterator, so that a value reaches
its served register in the same turn of the event loop in which its response arrived. Bundles exist
because a hundred points that go into one message are one thing to do, not a hundred: without them each
is looked up, compared, wrapped and unwrapped again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from fieldbus.model import Batch, Group, Kind, Point, Sample, Value

NEVER = math.inf
Emit = Callable[[Batch], None]
"""What a link calls with everything that it acquires."""


class Handover(IntEnum):
    """What became of a message that was given to a broker. False if its giver has to send it again."""

    GIVEN_BACK = 0
    """The broker does not have it: the connection was lost, or it does not take it now."""
    TAKEN = 1
    UNFIT = 2
    """No broker, or not this one, will ever take it: too long, no valid topic."""
    FORBIDDEN = 3
    """The broker's access list does not allow it; it may be another one tomorrow."""


class DeviceHealth(NamedTuple):
    """Whether a device answers. Told when that changes, and only then."""

    device: str
    is_online: bool
    reason: str | None = None
    """Why not."""


class ConnectionHealth(NamedTuple):
    """Whether a link that opens its connection on demand could open it the last time."""

    is_connected: bool
    reason: str | None = None
    """Why not."""


class Target(NamedTuple):
    """Where a route ends: a point of a link, or a topic on it."""

    link: str
    point: Point | None
    topic: str | None = None
    gathers: bool = False
    """Whether all samples of one batch that go to `topic` travel in one message."""
    label: str = ""
    """The name that the sample has inside a gathered message."""
    is_durable: bool = False
    """Whether its samples are on disk before they are sent."""
    is_shared: bool = False
    """Whether more than what one group has treated goes into that message, so that it is worth waiting."""

    @property
    def address(self) -> str:
        """The target's name for people: a point's address or ``link:topic``."""
        return self.point.address if self.point is not None else f"{self.link}:{self.topic}"

    @property
    def carries_quality(self) -> bool:
        """Whether it can be told that a value went bad: topics, stores and other gateways always can."""
        return self.point is None or self.point.carries_quality


class Delivery(NamedTuple):
    """A sample on its way to a target."""

    target: Target
    source: Point
    sample: Sample


@dataclass(frozen=True, slots=True, eq=False)
class Gathering:
    """A message that is filled again and again by the groups of one device."""

    link: str
    topic: str
    device: str
    groups: int
    """How many groups send bundles for it."""


@dataclass(frozen=True, slots=True, eq=False)
class GatherPlan:
    """What of a group goes into a gathered message. Made once; compared by identity."""

    message: Gathering
    group: Group
    indexes: Sequence[int]
    """Of the group's points that go there, ascending."""
    labels: Sequence[str]
    """The name that each has there. No two are the same."""
    wants_every_sample: bool
    """Whether all points are sent each time (`when: sample`) or only those that changed."""
    tells_bad: bool
    """Whether points without value are named with the reason (`on_bad: send`) or left out."""


class Bundle(NamedTuple):
    """A batch on its way into a gathered message."""

    plan: GatherPlan
    batch: Batch


class WriteOutcome(StrEnum):
    """How a write ended."""

    WRITTEN = "written"
    VERIFIED = "verified"
    REFUSED = "refused"
    FAILED = "failed"
    EXPIRED = "expired"
    UNKNOWN = "unknown outcome"
    """The bytes may have left, and no certain answer came: it may be written, or not."""
    ARMED = "armed"
    """Nothing was written: the same actor may do it now."""

    @property
    def is_done(self) -> bool:
        """Whether the device has the value, for certain."""
        return self in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)


class WriteResult(NamedTuple):
    """The answer to a write."""

    point: Point
    value: Value
    outcome: WriteOutcome
    reason: str | None = None


class Regrouped(NamedTuple):
    """The same points are acquired in other groups from now on, as the link's `groups` says already."""

    removed: Sequence[Group]
    """No batch of them comes any more."""
    added: Sequence[Group]


class Notice(NamedTuple):
    """What people should know of a link, and would not see otherwise. Said once, not repeated."""

    text: str
    """One sentence, without the link's name."""


class GaugesChanged(NamedTuple):
    """What a `GaugedLink` measures of itself has changed, and is worth telling at once."""


Event = DeviceHealth | ConnectionHealth | WriteResult | Regrouped | Notice | GaugesChanged
Report = Callable[[Event], None]
"""What a link calls when a device is lost or comes back; with the end of each routed write that has one: a
register that was written, or refused; when it has learnt to acquire its points in other groups; and when
there is something to be said of it."""


class Link(Protocol):
    """One connection to the outside."""

    name: str
    """The link's name in the configuration."""
    is_listener: bool
    """Whether peers connect to it, and not it to a peer."""
    groups: Sequence[Group]
    """What it acquires. May be another list after each `Regrouped`: look when it is needed."""

    @property
    def endpoint(self) -> str:
        """Where it goes, for the log: ``127.0.0.1:502``, ``socketcan vcan0``."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start, by name: ``rx_dropped``, ``tx_dropped``, ``writes_failed``."""
        ...

    async def connect(self) -> None:
        """Open the connection, or raise `LinkDownError`."""

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Device to what is measured of it now, by name: ``response_time_ms``."""
        ...

    async def run(self, emit: Emit, report: Report) -> None:
        """Acquire until the session ends."""

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Take what routes have for this link; return what cannot be taken now."""
        ...

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Write engineering values and say how each ended; nothing is sent after `until_s` (monotonic)."""

    async def close(self) -> None:
        """Close the connection and forget the session."""


@runtime_checkable
class GatheringLink(Protocol):
    """What a link has as well if it sends gathered messages."""

    def gather(self, bundle: Bundle) -> None:
        """Take what goes into a gathered message. Like ``send`` it neither blocks nor raises."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """A value that a link knows of itself: ``sys.<link>.<name>``."""

    kind: Kind
    unit: str | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    highest: float | None = None
    """The highest value that it can have, if there is one."""
    lowest: float | None = 0
    """The lowest, of numbers."""


@runtime_checkable
class GaugedLink(Protocol):
    """What a link has as well if it knows more of itself than totals."""

    gauges: Mapping[str, Gauge]
    """What there is, by name."""

    def gauge_values(self) -> Mapping[str, Value | None]:
        """Return what is known now; None for what is not."""
        ...


@runtime_checkable
class LazyLink(Protocol):
    """What a link has as well if it does not acquire what no route wants, unless somebody looks."""

    def refresh(self) -> None:
        """Emit the newest of what only watchers want."""


@runtime_checkable
class CautiousLink(Protocol):
    """What a link has as well if it repeats nothing that a device may have, and writes groups as a whole."""

    @property
    def has_doubts(self) -> bool:
        """Whether there is any value that may have been written."""
        ...

    def holds_back(self, point: Point, value: Value) -> bool:
        """Return whether a route's value is not written now, since it may have been already."""
        ...

    def refuse_group(self, point: Point) -> None:
        """Refuse what routes gave the other members of a point's group and was not sent yet."""


@runtime_checkable
class PulsedLink(Protocol):
    """What a link has as well if it can tell whether its own work goes on."""

    def stuck_s(self, now_s: float) -> float:
        """Return for how long something that was due has not been done; 0 if nothing is overdue."""
        ...


StillAllowed = Callable[[Point, Value], tuple[WriteOutcome, str] | None]
"""Returns how a write ends that must not be sent any more, and why; None if it may be sent."""


@runtime_checkable
class GuardedLink(Protocol):
    """What a link has as well if a value can wait between `send` or `write` and its request."""

    still_allowed: StillAllowed | None
    """Asked for each value at the moment of sending; None if nobody wants to be asked."""


class Follower(Protocol):
    """What is asked about values that follow another one (`then`), and told how they ended."""

    def admit(
        self, point: Point, value: Value, after: tuple[Point, Value], *, is_routed: bool
    ) -> tuple[WriteOutcome, str] | None:
        """Return how it ends if a value must not follow another one; None if it may."""
        ...

    def withdraw(self, point: Point) -> None:
        """Take back what was admitted last to a point and was not sent."""

    def followed(self, result: WriteResult, after: Point, *, is_routed: bool, was_admitted: bool) -> None:
        """Take how a value ended that followed another one."""


@runtime_checkable
class SequencedLink(Protocol):
    """What a link has as well if it writes more than what it was given."""

    follower: Follower | None
    """Asked before the first request of a value that others follow; None if nobody wants to be asked."""


@runtime_checkable
class ReadableLink(Protocol):
    """What a link has as well if points can be read out of turn while it runs."""

    async def read(self, points: Collection[Point], *, until_s: float = NEVER) -> dict[Point, Sample]:
        """Read points now and return a sample of each: a fresh one, or bad with the reason."""
        ...


class Instruction(NamedTuple):
    """A command as it came on a topic, not looked at yet."""

    topic: str
    actor: str
    """Who gives it, by the topic."""
    point: str
    """The address of the point that is to be written."""
    payload: bytes
    signature: str | None
    is_retained: bool
    """Whether the broker had kept it: then nobody knows how old it is."""
    reply: Callable[[bytes], None] | None
    """Sends the answer; None if nobody waits for one."""


class Correspondent(Protocol):
    """What the gateway does with what comes from other gateways, and from who gives commands."""

    def instructed(self, link: str, instruction: Instruction) -> None:
        """Take a command."""

    def wanted(self, link: str, peer: str, payload: bytes) -> None:
        """Learn which of our points a peer wants."""

    def acknowledged(self, link: str, peer: str, payload: bytes) -> None:
        """Learn what a peer has committed of a durable stream."""

    def arrived(self, link: str, peer: str, payload: bytes) -> None:
        """Take a chunk of a peer's durable stream."""

    def born(self, link: str, peer: str, payload: bytes) -> None:
        """Learn what a peer says of its points."""

    def peer_is(self, link: str, peer: str, *, is_online: bool) -> None:
        """Learn that a peer is there, or is not."""

    def connected(self, link: str) -> None:
        """Learn that the link can send."""

    def wants_each(self, point: Point) -> bool:
        """Return whether every sample of a point is wanted, not only the newest."""
        ...


@runtime_checkable
class PeerLink(Protocol):
    """What a link has as well if other gateways are behind it."""

    correspondent: Correspondent | None
    """Set before the link is run."""

    @property
    def is_sending(self) -> bool:
        """Whether what is published now goes out now."""
        ...

    @property
    def peers(self) -> Mapping[str, str]:
        """The gateways whose points are devices of ours: gateway to device."""
        ...

    def publish(
        self,
        topic: str,
        payload: bytes,
        done: Callable[[Handover], None] | None,
        *,
        is_retained: bool = False,
        expiry_s: int | None = None,
    ) -> None:
        """Send a message that its giver keeps until `done` says what became of it.

        After `expiry_s` the broker forgets it.
        """

    def room_for(self, topic: str) -> int:
        """Return how long a payload on a topic may be, in bytes, so that the broker takes it."""
        ...

    def look_after(self, peer: str) -> None:
        """Have `peer_is` told of a gateway that is no device of ours."""

    @property
    def clock_tolerance_s(self) -> float:
        """How far the time of a sample may lie in the future."""
        ...

    @property
    def beat_s(self) -> float:
        """How often something has to be sent to peers, so that they know that we are there."""
        ...

    def forget_unwanted(self, peer: str, wanted: Collection[str]) -> None:
        """Say that points of a peer have no value that nobody wants any more, by their addresses there."""

    def take_samples(self, peer: str, samples: Sequence[tuple[str, Sample]]) -> None:
        """Emit samples of a peer, by their addresses there, in their order."""
