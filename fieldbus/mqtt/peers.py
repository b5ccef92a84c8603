"""Other gateways behind a broker: their points as ours, our commands to them, what they want of us.

Rules:

* A gateway's points are bad as soon as the broker says that it is gone (its last will), until it is back
  *and* has sent a value.
* Each point has its own source time, so each is a group of its own.
* What a gateway sends live counts in the order of its numbers (`Order`), or as it arrives if it says none.
  The times of its samples order nothing. A message that is not taken is counted (`peer_out_of_order`), and
  is no sign of life.
* How far a gateway's clock is ahead of ours is measured (``sys.<device>.clock_offset_ms``), and said when it
  is more than is tolerated.
* A command of ours carries its time and an id, is sent once, and is answered within its expiry, or its
  outcome is unknown. One that somebody gave us does not live longer at the other gateway than it would here.
* What is published below ``command/`` is an attempt to write, also if it names no point.
* What is malformed is counted (`peer_faults`), and said once for each peer.

Design: this file turns topics into calls of the gateway (`Correspondent`) and back; what a stream is, what
was committed, and who may write is not known here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import (
    NEVER,
    Correspondent,
    DeviceHealth,
    Emit,
    Instruction,
    Notice,
    Report,
    WriteOutcome,
    WriteResult,
)
from fieldbus.model import Group, Point, Reason, Sample, Value
from fieldbus.mqtt import peering
from fieldbus.mqtt.arrivals import CLOCK_TOLERANCE_S, ClockOffset, Order, dated, held, picture
from fieldbus.mqtt.records import RecordError, decode_live
from fieldbus.sample_json import iso_time
from fieldbus.text import well_formed

EXPIRY_S = 10.0
"""How long a command of ours to another gateway is good."""
_GRACE_S = 3.0
"""How long after that its answer may take."""
_MOST_COMMANDS = 256
PATIENCE = 1.4
"""So many keep-alive times somebody may be silent: with the time between two looks that is less than 1.5."""
BEATS = 3
"""So often within its keep-alive time a gateway sends something to each that wants something of it."""
_LONGEST_KEEPALIVE_S = 65535
_LOOK_S = 1.0
_LOOKS = 0.05
"""Of a keep-alive time, between two looks."""


@dataclass(slots=True, eq=False)
class RemoteGateway:
    """Another gateway whose points are a device of ours."""

    device: str
    gateway: str
    points: Mapping[str, Point]
    """By their addresses there; empty as long as it was never heard."""
    key: bytes | None = field(default=None, repr=False)
    """With which our commands to it are signed."""


class Wire(Protocol):
    """What is needed of the link."""

    name: str

    def tell(
        self, topic: str, payload: bytes, *, answer_to: str | None, id_: str, signature: str | None
    ) -> None:
        """Publish a message that wants an answer, at once or never."""


class Peers:
    """All other gateways of one broker."""

    def __init__(
        self,
        me: str,
        actor: str,
        remotes: Iterable[RemoteGateway],
        counters: dict[str, int],
        *,
        tolerance_s: float = CLOCK_TOLERANCE_S,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take them.

        Args:
            me: our name.
            actor: the name under which we give commands.
            remotes: those whose points are devices of ours.
            counters: where faults are counted.
            tolerance_s: how far a source time may lie in the future.
            clock: the gateway's.
        """
        self._clock = clock
        self._tolerance_s = tolerance_s
        self.me = me
        self.remotes = {remote.gateway: remote for remote in remotes}
        self.correspondent: Correspondent | None = None
        self._actor = actor
        self._counters = counters
        self._groups: dict[str, dict[str, Group]] = {}
        self._last: dict[Group, Sample] = {}
        self._orders: dict[str, Order] = {}
        self._offsets: dict[str, ClockOffset] = {}
        self._astray: set[str] = set()
        """Gateways of whose clocks it was said that they are wrong."""
        self._online: dict[str, bool] = {}
        self._keepalives: dict[str, float] = {}
        """Of the gateways that the broker says to be there: within which time they send something."""
        self._heard_s: dict[str, float] = {}
        self._looker: asyncio.TimerHandle | None = None
        self._looked_after: set[str] = set()
        self._emit: Emit | None = None
        self._report: Report | None = None
        self._faulty: set[str] = set()
        self._remote_of: dict[Point, tuple[RemoteGateway, str]] = {}
        self._answers: dict[str, asyncio.Future[tuple[WriteOutcome, str | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for remote in self.remotes.values():
            groups = self._groups[remote.gateway] = {}
            for address, point in remote.points.items():
                self._remote_of[point] = remote, address
                if point.access.can_read:
                    groups[address] = Group(f"{point.address} of {remote.gateway}", (point,))

    @property
    def groups(self) -> list[Group]:
        """What is acquired."""
        return [group for groups in self._groups.values() for group in groups.values()]

    def has(self, point: Point) -> bool:
        """Return whether a point is another gateway's."""
        return point in self._remote_of

    def subscriptions(self) -> list[str]:
        """Return the topics on which others say something of themselves, or answer."""
        me = self.me
        found = [peering.topic(me, "answer", "+")]
        for gateway in self.remotes:
            found += [
                peering.topic(gateway, "status"),
                peering.topic(gateway, "birth"),
                peering.topic(gateway, "live", me),
                peering.topic(gateway, "data", me),
            ]
        others = self._looked_after.difference(self.remotes)
        return found + [peering.topic(gateway, "status") for gateway in others]

    def requests(self) -> list[str]:
        """Return the topics on which others ask us for something."""
        return [
            peering.topic(self.me, *rest) for rest in (("command", "+", "#"), ("want", "#"), ("ack", "+"))
        ]

    def repeat(self, link: str) -> None:
        """Tell the correspondent again who is there."""
        if self.correspondent is not None:
            for peer, is_online in list(self._online.items()):
                self.correspondent.peer_is(link, peer, is_online=is_online)

    def look_after(self, link: str, peer: str) -> str | None:
        """Return the topic that has to be heard so that `peer_is` is told, None if it is already."""
        if peer in self._looked_after or peer in self.remotes:
            is_online = self._online.get(peer)
            if is_online is not None and self.correspondent is not None:
                self.correspondent.peer_is(link, peer, is_online=is_online)
            return None
        self._looked_after.add(peer)
        return peering.topic(peer, "status")

    # --- a session

    def start(self, link: str, emit: Emit, report: Report) -> None:
        """Begin."""
        self._emit, self._report = emit, report
        if self.remotes:
            self._look(link)

    def stop(self) -> None:
        """Forget the session: who is there is not known any more."""
        self._emit = self._report = None
        if self._looker is not None:
            self._looker.cancel()
            self._looker = None
        self._last.clear()
        self._orders.clear()
        self._offsets.clear()
        self._online.clear()
        self._keepalives.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result((WriteOutcome.UNKNOWN, "the connection was lost before the answer came"))
        self._answers.clear()
        for task in list(self._tasks):
            task.cancel()

    @property
    def offsets_ms(self) -> Mapping[str, float]:
        """How far the clocks of other gateways are ahead of ours, by their device here."""
        return {
            self.remotes[peer].device: round(offset.seconds * 1000, 1)
            for peer, offset in self._offsets.items()
            if offset.seconds is not None
        }

    def is_online(self, peer: str) -> bool:
        """Return whether the broker says that a gateway is there."""
        return self._online.get(peer, False)

    def take(
        self,
        link: str,
        topic: str,
        payload: bytes,
        *,
        is_retained: bool,
        signature: str | None,
        reply: Callable[[bytes], None] | None,
    ) -> None:
        """Take a message below ``fieldbus/``."""
        parts = topic.split("/")
        if len(parts) < 3:
            return
        about, kind, rest = parts[1], parts[2], parts[3:]
        if kind == "status":
            self._heard_status(link, about, payload)
        elif kind == "live" and about in self.remotes:
            self._heard_live(link, about, payload, is_retained=is_retained)
        elif about == self.me and kind == "answer":
            self._answered(payload)
        elif self.correspondent is None:
            return
        elif about == self.me and kind == "command":
            actor, device, names = "".join(rest[:1]), "".join(rest[1:2]), rest[2:]
            point = f"{device}.{'/'.join(names)}" if names else device
            instruction = Instruction(topic, actor, point, payload, signature, is_retained, reply)
            self.correspondent.instructed(link, instruction)
        elif about == self.me and peering.is_peer_name(peer := "/".join(rest)):
            if kind == "want":
                self.correspondent.wanted(link, peer, payload)
            elif kind == "ack":
                self.correspondent.acknowledged(link, peer, payload)
        elif about in self.remotes:
            if kind == "birth":
                self.correspondent.born(link, about, payload)
            elif kind == "data":
                self.correspondent.arrived(link, about, payload)

    def _heard_status(self, link: str, peer: str, payload: bytes) -> None:
        try:
            data = json.loads(payload) if payload else {"status": "offline"}
            is_online = data["status"] == "online"
            keepalive_s = data.get("keepalive")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.fault(peer, "its status is none")
            return
        self._keepalives.pop(peer, None)
        if is_online and isinstance(keepalive_s, int | float) and 0 < keepalive_s <= _LONGEST_KEEPALIVE_S:
            self._keepalives[peer] = float(keepalive_s)
            self._heard_s[peer] = self._clock.monotonic_s()
        reason = None if is_online else "the gateway is not connected to the broker"
        self._set_online(link, peer, is_online=is_online, reason=reason)

    def _set_online(self, link: str, peer: str, *, is_online: bool, reason: str | None) -> None:
        if self._online.get(peer) is is_online:
            return
        self._online[peer] = is_online
        if not is_online:
            self._orders.setdefault(peer, Order()).gone()
            self._offsets.pop(peer, None)
        remote = self.remotes.get(peer)
        if remote is not None and self._report is not None:
            self._report(DeviceHealth(remote.device, is_online, reason))
        self.spoil(peer, Reason.WAITING if is_online else Reason.NOT_CONNECTED)
        if self.correspondent is not None:
            self.correspondent.peer_is(link, peer, is_online=is_online)

    def _look(self, link: str) -> None:
        """Have those bad of which nothing came for too long."""
        shortest_s = min(self._keepalives.values(), default=_LOOK_S / _LOOKS)
        delay_s = min(_LOOK_S, max(0.05, shortest_s * _LOOKS))
        self._looker = asyncio.get_running_loop().call_later(delay_s, self._look, link)
        now_s = self._clock.monotonic_s()
        for peer, keepalive_s in list(self._keepalives.items()):
            silent_s = now_s - self._heard_s.get(peer, now_s)
            if peer in self.remotes and self._online.get(peer) and silent_s > PATIENCE * keepalive_s:
                reason = f"the gateway has been silent for {silent_s:.1f} s"
                self._set_online(link, peer, is_online=False, reason=reason)
        for peer, offset in self._offsets.items():
            self._judge(peer, offset)

    def _judge(self, peer: str, offset: ClockOffset) -> None:
        """Say it once if a clock is wrong, or right again."""
        ahead_s = offset.seconds
        if ahead_s is None or (abs(ahead_s) > self._tolerance_s) == (peer in self._astray):
            return
        if peer in self._astray:
            self._astray.discard(peer)
            text = f"gateway {peer}: its clock agrees with ours again"
        else:
            self._astray.add(peer)
            side = "ahead of" if ahead_s > 0 else "behind"
            text = f"gateway {peer}: its clock is {abs(ahead_s):.0f} s {side} ours; set one of them"
        if self._report is not None:
            self._report(Notice(text))

    def _heard_live(self, link: str, peer: str, payload: bytes, *, is_retained: bool) -> None:
        try:
            stamp, items = decode_live(payload)
        except RecordError as error:
            self.fault(peer, f"what it sends live cannot be read: {error}")
            return
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        if stamp is not None:
            if not self._orders.setdefault(peer, Order()).is_news(stamp.boot, stamp.number):
                self._counters["peer_out_of_order"] += 1
                return
            if not is_retained:
                self._offsets.setdefault(peer, ClockOffset()).heard(stamp.time_ns, now_ns, now_s)
        samples = [(item.head[0], held(item.sample) if is_retained else item.sample) for item in items]
        self._heard_s[peer] = now_s
        if peer in self._keepalives:  # else it was under way when its sender went
            self._set_online(link, peer, is_online=True, reason=None)
        if self._online.get(peer) is not False:
            self.emit_samples(peer, samples)

    def emit_samples(self, peer: str, samples: Iterable[tuple[str, Sample]]) -> None:
        """Emit samples, by their addresses there."""
        if self._emit is None:
            return
        groups, last_of = self._groups.get(peer, {}), self._last
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        for address, arrived in samples:
            group = groups.get(address)
            if group is None:
                continue
            sample = dated(arrived, now_ns, round(self._tolerance_s * 1e9))
            last = last_of.get(group)
            last_of[group] = sample
            changed: Sequence[int] = () if last is not None and last[:3] == sample[:3] else (0,)
            self._emit(picture(group, sample, changed, now_ns, now_s))

    def spoil(self, peer: str, reason: str) -> None:
        """Say that no point of a gateway has a value."""
        if self._emit is None:
            return
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        for group in self._groups.get(peer, {}).values():
            self._last.pop(group, None)
            self._emit(group.without_value(reason, now_ns, now_s))

    def forget_unwanted(self, peer: str, wanted: Collection[str]) -> None:
        """Say that points have no value of which nothing more comes, since nobody wants them."""
        if self._emit is None:
            return
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        for address, group in self._groups.get(peer, {}).items():
            if address not in wanted and self._last.pop(group, None) is not None:
                self._emit(group.without_value(Reason.WAITING, now_ns, now_s))

    def fault(self, peer: str, text: str) -> None:
        """Count what makes no sense, and say it once."""
        self._counters["peer_faults"] += 1
        if peer not in self._faulty and self._report is not None:
            self._faulty.add(peer)
            self._report(Notice(f"gateway {peer}: {text}"))

    # --- commands of ours

    def send(self, wire: Wire, point: Point, value: Value) -> None:
        """Give a command because a route has a value; how it ended is reported."""
        if len(self._tasks) >= _MOST_COMMANDS:
            self._tell(WriteResult(point, value, WriteOutcome.FAILED, "too many commands under way"))
            return

        async def follow() -> None:
            self._tell(await self.write(wire, point, value))

        task = asyncio.get_running_loop().create_task(follow(), name=f"command to {point.address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, result: WriteResult) -> None:
        if self._report is not None:
            self._report(result)

    async def write(self, wire: Wire, point: Point, value: Value, *, until_s: float = NEVER) -> WriteResult:
        """Give a command that nobody executes after `until_s` (monotonic), and wait for its answer."""
        remote, address = self._remote_of[point]
        if not self.is_online(remote.gateway):
            return WriteResult(point, value, WriteOutcome.FAILED, Reason.NOT_CONNECTED)
        device, _, name = address.partition(".")
        topic = peering.topic(remote.gateway, "command", self._actor, device, name)
        id_ = secrets.token_hex(8)
        expires_s = round(max(0.001, min(EXPIRY_S, until_s - self._clock.monotonic_s())), 3)
        payload = json.dumps(
            {"value": value, "id": id_, "time": iso_time(self._clock.wall_ns()), "expires": expires_s}
        ).encode()
        signature = None if remote.key is None else peering.sign(remote.key, topic, payload)
        answer: asyncio.Future[tuple[WriteOutcome, str | None]] = asyncio.get_running_loop().create_future()
        self._answers[id_] = answer
        try:
            answer_to = peering.topic(self.me, "answer", remote.gateway)
            wire.tell(topic, payload, answer_to=answer_to, id_=id_, signature=signature)
            async with asyncio.timeout(expires_s + _GRACE_S):
                outcome, reason = await answer
        except TimeoutError:
            outcome, reason = WriteOutcome.UNKNOWN, "no answer: whether it was written is not known"
        finally:
            self._answers.pop(id_, None)
        return WriteResult(point, value, outcome, reason)

    def _answered(self, payload: bytes) -> None:
        try:
            data = json.loads(payload)
            answer = self._answers.get(data["id"])
            outcome, reason = WriteOutcome(data["outcome"]), data["reason"]
        except (ValueError, KeyError, TypeError, RecursionError):
            self._counters["peer_faults"] += 1
            return
        if answer is not None and not answer.done():
            answer.set_result((outcome, well_formed(reason)[:200] if isinstance(reason, str) else None))
