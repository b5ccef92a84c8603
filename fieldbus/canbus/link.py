"""The CAN link: one bus, its parts put together.

Rules:

* Silent unless a route or a poll sends; only what the configuration routes can be sent.
* Frames that we sent are not taken for input. Error frames and remote frames are not data.
* What comes in is looked at before anything is judged to be late.
* While the bus is off all its points are bad: bus down, and nothing is sent. When it is back, cyclic
  messages say what holds then; a message without cycle is a command, and sent with the next fresh sample.
* The interface filters for what somebody wants; while watchers look it lets all of our messages through.

Design: everything happens in the event loop of the gateway, in three places: `_take` (frames came),
`send` (a route has something), and the schedule (something is due). What comes in is in `listening`,
what goes out in `sending`, who is asked in `polling`, the bus's health in `health`; this file is the
wiring.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from fieldbus.canbus import health, polling
from fieldbus.canbus.bus import (
    ERROR,
    EXTENDED,
    EXTENDED_MASK,
    FOREIGN_TIME,
    OWN,
    REMOTE,
    STANDARD_MASK,
    Bus,
)
from fieldbus.canbus.buses import open_bus
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939 import node as j1939_node
from fieldbus.canbus.j1939.address import FIRST_ARBITRARY, LAST_ARBITRARY
from fieldbus.canbus.j1939.identifiers import filter_for as filter_for_pgn
from fieldbus.canbus.j1939.identifiers import pgn_of, source_of
from fieldbus.canbus.j1939.matching import PgnTable, fragment_text, is_fragment
from fieldbus.canbus.j1939.node import Node, NodeSettings
from fieldbus.canbus.listening import Handler, Incoming, Listener
from fieldbus.canbus.logs.logged import LogError
from fieldbus.canbus.messages import CanMessage, Request
from fieldbus.canbus.outgoing import Address
from fieldbus.canbus.replay import ReplayBus
from fieldbus.canbus.schedule import Schedule
from fieldbus.canbus.sending import Sender
from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError
from fieldbus.link import (
    NEVER,
    Delivery,
    Emit,
    Event,
    GaugesChanged,
    Notice,
    Report,
    StillAllowed,
    WriteResult,
)
from fieldbus.model import Group, Point, Reason, Value

_FRAMES_PER_WAKE_UP = 512
"""After so many frames others have their turn; the rest stays in the kernel's buffer."""
_LONGEST_LOOK_S = 0.02
"""So long what has come in is taken before what is due has its turn."""
_MAX_KNOWN_IDS = 65_536
_LONGEST_DELAY_S = 60.0
"""A frame cannot have waited for longer: its time is that of a log, or the clock was set."""
_SILENT = (health.BUS_OFF, health.STOPPED)
_MOST_SAID = 256
_SAID_S = 10.0
"""A state that comes again so soon is not said again."""
_COUNTERS = (
    "rx_frames", "rx_dropped", "rx_not_believed", "rx_missing", "tx_frames", "tx_dropped", "tx_delayed",
    "requests", "timeouts", "conversions_failed", *health.COUNTERS,
)  # fmt: skip


class CanLink:
    """One CAN bus."""

    is_listener = False
    gauges = health.GAUGES

    def __init__(
        self,
        name: str,
        options: Mapping[str, object],
        messages: Sequence[CanMessage],
        targets: Iterable[Point] = (),
        wanted: Collection[Point] | None = None,
        *,
        node: NodeSettings | None = None,
        bits_per_s: float | None = None,
        needs_all: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what is on the bus.

        Args:
            name: of the link.
            options: for the interface: its name, channel and what else it takes.
            messages: of all devices on the bus.
            targets: points that routes write.
            wanted: points that somebody reads; None for all.
            node: how we appear on a J1939 bus.
            bits_per_s: how much we may send; None for no limit.
            needs_all: whether a message is sent only if all of its signals have a value; for one write.
            clock: the gateway's.
        """
        self.name = name
        self._clock = clock
        self.options = dict(options)
        self.messages = messages
        self.node_settings = node or NodeSettings()
        self._bits_per_s = bits_per_s
        self._counters = dict.fromkeys(_COUNTERS, 0)
        written = set(targets)
        outgoing = [item for item in messages if written.intersection(item.points.values())]
        sent = set(outgoing)
        self._listener = Listener(
            (item for item in messages if item not in sent), wanted, self._counters, clock=clock
        )
        self.groups: Sequence[Group] = self._listener.groups
        self._node: Node | None = None
        address = Address()
        if any(item.is_j1939 for item in messages):
            is_active = any(item.is_j1939 for item in outgoing) or any(
                item.request is not None and item.request.is_pgn for item in messages
            )
            self._counters.update(dict.fromkeys(j1939_node.COUNTERS, 0))
            self._node = Node(self.node_settings, is_active=is_active, counters=self._counters, clock=clock)
            address = self._node
        self._sender = Sender(
            outgoing,
            written,
            self._counters,
            address=address,
            bits_per_s=bits_per_s,
            needs_all=needs_all,
            clock=clock,
        )
        self._health = health.Health(self._counters, _bitrate(options), clock=clock)
        self._schedule = Schedule(self._drain_all, self._fail, clock=clock)
        self._guarded = [item for item in self._listener.incoming if item.guard is not None]
        self._exact: dict[int, list[Incoming]] = {}
        self._by_pgn: PgnTable[Incoming] = PgnTable()
        for incoming in self._listener.incoming:
            self._enter(incoming)
        self._handlers: dict[int, Handler | None] = {}
        """By identifier, as they are met; None for frames that nobody wants."""
        self._own_ids: frozenset[int] = frozenset()
        self._sources: dict[Incoming, int] = {}
        self._ambiguous: set[Incoming] = set()
        self._fragmented: set[Incoming] = set()
        """Messages in packets of which single frames were seen."""
        self.open_bus: Callable[[Mapping[str, object]], Awaitable[Bus]] = functools.partial(
            open_bus, clock=clock
        )
        """Opens the bus; a stepped replay puts its own in the place."""
        self._bus: Bus | None = None
        self._dropped_before = 0
        self._dropped_seen = 0
        self._lost: asyncio.Future[None] | None = None
        self._report: Report | None = None
        self._said: dict[str, float] = {}

    @property
    def sent(self) -> Sequence[tuple[CanMessage, Sequence[Point]]]:
        """The messages that are sent, each with its points that something writes."""
        return [
            (
                item,
                [point for signal, point in item.points.items() if signal in outgoing.routed],
            )
            for outgoing in self._sender.messages
            for item in (outgoing.message,)
        ]

    @property
    def endpoint(self) -> str:
        """Interface and channel."""
        return f"{self.options.get('interface', 'default')} {self.options.get('channel', '')}".strip()

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start."""
        if self._bus is not None:
            self._counters["rx_dropped"] = self._dropped_before + self._bus.dropped
        if self._guarded:
            lost = (item.guard.counters["lost"] for item in self._guarded if item.guard is not None)
            self._counters["rx_missing"] = sum(lost)
        return self._counters

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing: a node that speaks by itself has no response time."""
        return {}

    def gauge_values(self) -> Mapping[str, Value | None]:
        """Return state, error counters and load of the bus; unknown while there is none."""
        return self._health.values

    def aside(self, points: Collection[Point], *, is_write: bool) -> CanLink:
        """Return a link of its own for just these points."""
        messages = [item for item in self.messages if not set(points).isdisjoint(item.points.values())]
        if is_write:  # once; what is not written has the value that the configuration names, or none
            messages = [dataclasses.replace(item, cycle_s=None) for item in messages]
        # On a J1939 bus it is a node of its own, beside the one that the gateway may be just now.
        own = self.node_settings.name
        number = (own.identity_number + 1 + os.getpid()) % (1 << 21)
        node = NodeSettings(
            FIRST_ARBITRARY + os.getpid() % (LAST_ARBITRARY - FIRST_ARBITRARY + 1),
            dataclasses.replace(own, identity_number=number, is_arbitrary_address_capable=True),
        )
        return CanLink(
            self.name,
            self.options,
            messages,
            points if is_write else (),
            points,
            node=node,
            bits_per_s=self._bits_per_s,
            needs_all=is_write,
            clock=self._clock,
        )

    # --- a session

    async def connect(self) -> None:
        """Open the bus."""
        self._bus = await self.open_bus(self.options)

    async def run(self, emit: Emit, report: Report) -> None:
        """Listen, poll and repeat until the bus is lost."""
        bus = self._bus
        if bus is None:
            raise LinkDownError("not open")
        self._lost = asyncio.get_running_loop().create_future()
        self._report = report
        self._handlers.clear()
        self._sources.clear()
        self._dropped_seen = bus.dropped
        self._listener.start(emit, report, self._schedule)
        self._select()
        if isinstance(bus, ReplayBus) and bus.on_end is None:
            bus.on_end = self._log_ended
        bus.start(self._ready, self._lose)
        self._health.start(bus, self._schedule, self._state_changed, self._notice)
        self._sender.start(bus, self._schedule, self._lose, self._notice)
        if self._health.state in _SILENT:
            self._state_changed(None)
        if self._node is not None:
            self._node.start(
                self._schedule,
                self._sender.send_raw,
                self._transported,
                self._address_changed,
                self._pgn_refused,
                self._pgn_begun,
                self._pgn_wanted,
                self._notice,
            )
        now_s = self._clock.monotonic_s()
        polling.start(self._listener.incoming, self._schedule, self._ask, self._give_up, now_s)
        self._schedule.at(now_s + 1.0, self._keep_house)
        report(GaugesChanged())
        await self._lost

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put routed values into their messages and send those that changed."""
        return self._sender.take(deliveries)

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Send messages with values."""
        if self._node is not None:
            await self._node.is_ready()
        return await self._sender.write(values, until_s=until_s)

    @property
    def still_allowed(self) -> StillAllowed | None:
        """What is asked for each value of a write when there is room on the bus."""
        return self._sender.still_allowed

    @still_allowed.setter
    def still_allowed(self, ask: StillAllowed | None) -> None:
        self._sender.still_allowed = ask

    async def close(self) -> None:
        """Leave the bus."""
        self._schedule.clear()
        self._sender.stop()
        if self._node is not None:
            self._node.stop()
        await self._health.stop()
        self._listener.stop()
        self._report = None
        bus, self._bus = self._bus, None
        if bus is not None:
            self._dropped_before += bus.dropped
            await bus.close()

    def refresh(self) -> None:
        """Emit the newest of what only watchers want."""
        if self._report is not None and self._listener.refresh():
            self._select()

    def _lose(self, error: Exception) -> None:
        if self._lost is not None and not self._lost.done():
            is_known = isinstance(error, LinkDownError)
            self._lost.set_exception(error if is_known else LinkDownError(str(error)))

    def _fail(self, error: Exception) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_exception(error)

    def _notice(self, text: str) -> None:
        now_s = self._clock.monotonic_s()
        if self._report is not None and now_s - self._said.get(text, float("-inf")) > _SAID_S:
            self._tell(Notice(text))
        if len(self._said) >= _MOST_SAID:
            self._said.clear()
        self._said[text] = now_s

    def _tell(self, event: Event) -> None:
        if self._report is not None:
            self._report(event)

    def _log_ended(self, fault: LogError | None) -> None:
        self._notice(f"the log has ended{'' if fault is None else f', it cannot be read further: {fault}'}")

    def _keep_house(self, now_s: float) -> float:
        if self._listener.watchers_left(now_s):
            self._select()
        return now_s + 1.0

    # --- receiving

    def _enter(self, incoming: Incoming) -> None:
        message = incoming.message
        if message.is_j1939:
            self._by_pgn.add(pgn_of(message.message.frame_id), message.source_address, incoming)
        else:
            self._exact.setdefault(message.can_id, []).append(incoming)

    def _select(self) -> None:
        """Have the interface let through what is needed."""
        bus = self._bus
        if bus is None:
            return
        filters: dict[tuple[int, int], None] = {}
        for message in self._listener.needed():
            filters[_filter(message)] = None
        self._own_ids = frozenset(
            can_id
            for outgoing in self._sender.messages
            if (can_id := self._sender.can_id(outgoing)) is not None and outgoing.message.cycle_s is not None
        )
        for can_id in self._own_ids:  # what the bus repeats for us is counted as it goes by
            filters[can_id, EXTENDED | REMOTE | (EXTENDED_MASK if can_id & EXTENDED else STANDARD_MASK)] = (
                None
            )
        if self._node is not None:
            filters.update(dict.fromkeys(self._node.filters()))
        self._handlers.clear()
        try:
            bus.select(filters)
        except LinkDownError as error:
            self._lose(error)

    def _drain_all(self) -> None:
        """Take what has come in, as far as that is done soon: others have to have their turn too."""
        end_s = self._clock.monotonic_s() + _LONGEST_LOOK_S
        self._listener.is_behind = False
        while self._take() >= _FRAMES_PER_WAKE_UP:
            if self._clock.monotonic_s() > end_s:
                self._listener.is_behind = True
                return

    def _ready(self) -> None:
        try:
            self._take()
        except Exception as error:  # nobody foresaw it: it ends the session, and is logged there
            self._fail(error)

    def _take(self) -> int:
        """Take what the interface has; return how many frames that were."""
        bus = self._bus
        if bus is None or self._report is None:
            return 0
        try:
            frames = bus.drain(_FRAMES_PER_WAKE_UP)
        except LinkDownError as error:
            self._lose(error)
            return 0
        if not frames:
            return 0
        self._counters["rx_frames"] += len(frames)
        has_gap = bus.dropped != self._dropped_seen
        if has_gap and self._node is not None:
            # Somewhere among these, or just before them, frames are missing.
            self._node.lost_frames()
            self._node.is_unsure = True
        now_s = self._clock.monotonic_s()
        # Ages count from when the kernel had the frame, not from when we came to look.
        ahead_s = now_s - self._clock.wall_ns() * 1e-9
        earliest_s = now_s - _LONGEST_DELAY_S
        handlers, own_ids = self._handlers, self._own_ids
        for can_id, data, time_ns, flags in frames:
            handler = handlers.get(can_id)
            if handler is None:
                if can_id in handlers:
                    continue
                handler = self._find(can_id)
                if handler is None:
                    continue
            if own_ids and flags & OWN and can_id in own_ids and self._sender.is_repeated(can_id, data):
                self._counters["tx_frames"] += 1
                continue
            at_s = time_ns * 1e-9 + ahead_s
            is_known = earliest_s < at_s < now_s and not flags & FOREIGN_TIME
            handler(data, time_ns, at_s if is_known else now_s)
        if has_gap:
            self._dropped_seen = bus.dropped
            if self._node is not None:
                self._node.is_unsure = False
        return len(frames)

    def _find(self, can_id: int) -> Handler | None:
        """Return who takes frames of an identifier that was not met yet."""
        if can_id & ERROR:
            return lambda data, _time_ns, _at_s: self._error_frame(can_id, data)
        if len(self._handlers) >= _MAX_KNOWN_IDS:
            self._handlers.clear()
        handler = self._handlers[can_id] = self._handler(can_id)
        return handler

    def _handler(self, can_id: int) -> Handler | None:
        takers: list[Handler] = [item.handler() for item in self._exact.get(can_id, ())]
        if self._node is not None and can_id & EXTENDED and not can_id & REMOTE:
            node = self._node
            if node.wants(can_id):
                takers.append(lambda data, time_ns, at_s: node.heard(can_id, data, time_ns, at_s))
            pgn, source = pgn_of(can_id), source_of(can_id)
            takers += [self._of_frames(item, source) for item in self._by_pgn.of(pgn, source)]
        if not takers:
            return _echo if can_id in self._own_ids else None
        if len(takers) == 1:
            return takers[0]

        def take(data: bytes, time_ns: int, at_s: float) -> None:
            for taker in takers:
                taker(data, time_ns, at_s)

        return take

    def _of_frames(self, incoming: Incoming, source: int) -> Handler:
        """Return what takes the frames of a message, if it has any: long ones come in packets."""
        message, handler = incoming.message.message, self._of(incoming, source)
        if not is_fragment(message, 0):
            return handler

        def take(data: bytes, time_ns: int, at_s: float) -> None:
            if not is_fragment(message, len(data)):
                handler(data, time_ns, at_s)
            elif incoming not in self._fragmented:
                self._fragmented.add(incoming)
                self._notice(fragment_text(message))

        return take

    def _of(self, incoming: Incoming, source: int) -> Handler:
        """Return what takes a message that is heard of anybody, and notices if that are two."""
        if incoming.message.source_address is not None:
            return incoming.handler()

        def take(data: bytes, time_ns: int, at_s: float) -> None:
            if self._sources.setdefault(incoming, source) != source:
                self._say_ambiguous(incoming, source)
            incoming.take(data, time_ns, at_s)

        return take

    def _say_ambiguous(self, incoming: Incoming, source: int) -> None:
        if incoming in self._ambiguous:
            return
        self._ambiguous.add(incoming)
        message = incoming.message
        self._notice(
            f"{message.device}.{message.message.name} comes from two nodes, 0x{self._sources[incoming]:02X} "
            f"and 0x{source:02X}, and their values replace each other; say which by `source_address`"
        )

    def _transported(self, pgn: int, source: int, data: bytes, time_ns: int, at_s: float) -> None:
        """Take a message that came in packets."""
        for incoming in self._by_pgn.of(pgn, source):
            self._of(incoming, source)(data, time_ns, at_s)

    def _error_frame(self, can_id: int, data: bytes) -> None:
        self._counters["rx_frames"] -= 1
        self._health.heard(can_id, data)

    # --- the bus's health

    def _state_changed(self, before: int | None) -> None:
        state = self._health.state
        if state in _SILENT:
            if before not in _SILENT:
                self._notice("the bus is off: too many errors while sending" if state == health.BUS_OFF
                             else "the controller is stopped")  # fmt: skip
                self._sender.silence()
                self._listener.spoil_all(Reason.BUS_DOWN)
        elif before in _SILENT:
            self._notice(f"the bus is back, {health.STATES.get(state or 0, '')}")
            self._listener.bus_is_back()
            self._sender.is_silent = False
            if self._node is not None:
                self._node.claim_anew()
            self._sender.resume(after_outage=True)
        elif state == health.ERROR_PASSIVE:
            cause = self._health.values["last_bus_error"] or "no cause told"
            self._notice(f"the bus is error passive ({cause})")
        self._tell(GaugesChanged())

    # --- polls

    def _ask(self, incoming: Incoming, request: Request) -> bool:
        if request.is_pgn:
            is_sent = self._node is not None and self._node.request(
                pgn_of(incoming.message.message.frame_id), incoming.message.source_address
            )
        else:
            can_id = request.frame_id | (EXTENDED if request.is_extended else 0)
            data = request.data
            if request.is_remote:
                can_id |= REMOTE
                data = bytes(min(incoming.message.message.length, 8))
            is_sent = self._sender.is_up and self._sender.send_raw(can_id, data)
        if is_sent:
            self._counters["requests"] += 1
        return is_sent

    def _give_up(self, incoming: Incoming, reason: str) -> None:
        self._counters["timeouts"] += 1
        self._listener.give_up(incoming, reason)

    def _pgn_refused(self, pgn: int, source: int) -> None:
        """Take a node's word that it does not send what it was asked for."""
        for incoming in self._by_pgn.of(pgn, source):
            if incoming.message.request is not None and incoming.asked_s is not None:
                incoming.asked_s = None
                self._listener.give_up(incoming, f"{Reason.NOT_AVAILABLE}: refused by the node")

    def _pgn_begun(self, pgn: int, source: int, until_s: float) -> None:
        """Wait for an answer that comes in packets, at their sender's pace."""
        for incoming in self._by_pgn.of(pgn, source):
            if incoming.asked_s is not None:
                incoming.asked_s = max(incoming.asked_s, until_s)

    def _pgn_wanted(self, pgn: int, source: int, destination: int) -> None:
        """Send what a node asks for, if it is ours; tell it otherwise, if it asked us alone."""
        node = self._node
        if node is None or destination not in (node.address, j1939.GLOBAL):
            return
        if not self._sender.send_pgn(pgn) and destination != j1939.GLOBAL:
            node.refuse(pgn, source)

    def _address_changed(self) -> None:
        """Begin to send under the address that we have now, or be still without one."""
        self._sender.still_all()
        self._select()
        self._sender.resume(after_outage=False)


def _filter(message: CanMessage) -> tuple[int, int]:
    if message.is_j1939:
        return filter_for_pgn(pgn_of(message.message.frame_id), message.source_address)
    mask = EXTENDED_MASK if message.message.is_extended else STANDARD_MASK
    return message.can_id, mask | EXTENDED | REMOTE


def _echo(_data: bytes, _time_ns: int, _at_s: float) -> None:
    """Take what somebody else sends under an identifier that is ours: nobody asked for it."""


def _bitrate(options: Mapping[str, object]) -> int | None:
    rate = options.get("bitrate")
    return rate if isinstance(rate, int) else None
