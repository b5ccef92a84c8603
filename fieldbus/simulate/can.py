"""Simulated CAN nodes: each message of a database sent at its cycle time, requests answered.

Rules:

* Checksums and counters are those that the configuration names; J1939 messages of more than 8 bytes are
  broadcast in packets, and of the faults of a J1939 node one comes and goes.
* The frames that the gateway itself sends are theirs to show, not to send: `on_frame` is told of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from fieldbus.canbus.bus import EXTENDED, REMOTE, Bus
from fieldbus.canbus.buses import open_bus
from fieldbus.canbus.codec import FrameEncoder
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.connection import Sender as PacketSender
from fieldbus.canbus.layout import Condition
from fieldbus.canbus.messages import CanMessage, Guard
from fieldbus.canbus.schedule import Schedule
from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import ConversionError, LinkDownError, RefusedError
from fieldbus.simulate.motion import value_at

DEFAULT_CYCLE_S = 1.0
_FRAMES_PER_WAKE_UP = 256
_DEFAULT_SOURCE = 0
_NO_FAULT = bytes.fromhex("00ff00000000ffff")
_FAULT = bytes.fromhex("04ff64000103ffff")
"""The amber warning lamp, and SPN 100 (engine oil pressure) FMI 1, three times."""
_FAULT_EVERY_S, _FAULT_FOR_S = 30.0, 10.0
FrameSeen = Callable[[int, bytes], None]


class _Node:
    """What sends one message."""

    def __init__(self, message: CanMessage) -> None:
        self.message = message
        self.encoder = FrameEncoder(message.message)
        self.branches: Iterator[Condition] = itertools.cycle(list(message.message.branches()) or [()])
        self.guard: Guard | None = message.guard() if message.guard is not None else None
        self.selectors = {name for item in message.message.signals for name, _ in item.condition}

    @property
    def can_id(self) -> int:
        """Its identifier; of J1939 with an address of its own where the database has none."""
        can_id = self.message.can_id
        if not self.message.is_j1939:
            return can_id
        source = self.message.source_address
        if source is None:
            known = j1939.source_of(can_id)
            source = known if known <= j1939.LAST_ADDRESS else _DEFAULT_SOURCE
        return can_id & ~0xFF | source

    def data(self, seconds: float) -> bytes:
        """Return the data bytes at a time since start."""
        if self.message.decoder is not None:
            return _FAULT if seconds % _FAULT_EVERY_S < _FAULT_FOR_S else _NO_FAULT
        for signal, point in self.message.points.items():
            if signal.name in self.selectors:
                continue
            try:
                self.encoder.set(signal.name, value_at(point, seconds))
            except ConversionError:
                continue  # the declared range is wider than the bits: the start value stays
        data = self.encoder.frame(next(self.branches))
        return data if self.guard is None else self.guard.protect(data)


class SimulatedNodes:
    """All nodes of one bus but the gateway."""

    def __init__(
        self,
        options: Mapping[str, object],
        messages: Sequence[CanMessage],
        sent_by_gateway: Collection[CanMessage],
        on_frame: FrameSeen | None = None,
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self._options = dict(options)
        self._nodes = [_Node(message) for message in messages if message not in sent_by_gateway]
        self._asked = {
            (request.frame_id | (EXTENDED if request.is_extended else 0)): node
            for node in self._nodes
            if (request := node.message.request) is not None and not request.is_pgn
        }
        self._seen = {message.can_id: message for message in sent_by_gateway}
        self._seen_pgns = {j1939.pgn_of(message.can_id) for message in sent_by_gateway if message.is_j1939}
        self._on_frame = on_frame
        self._bus: Bus | None = None
        self._schedule = Schedule(self._listen, self._fail, clock=clock)
        self._senders: dict[int, PacketSender] = {}
        self._next: dict[int, dict[_Node, bytes]] = {}
        self._began_s = 0.0
        self._lost: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Join the bus.

        Raises:
            LinkDownError: there is none.
        """
        self._bus = await open_bus(self._options, clock=self._clock)

    async def run(self) -> None:
        """Send and answer until cancelled."""
        bus = self._bus
        if bus is None:
            raise LinkDownError("not open")
        self._began_s = self._clock.monotonic_s()
        lost = self._lost = asyncio.get_running_loop().create_future()
        bus.start(self._listen, lambda _error: None)
        try:
            for node in self._nodes:
                if node.message.request is None:
                    self._schedule.at(self._began_s, self._repeater(node))
            await lost
        finally:
            self._schedule.clear()
            self._bus = None
            await bus.close()

    def _fail(self, error: Exception) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_exception(error)

    def _repeater(self, node: _Node) -> Callable[[float], float]:
        cycle_s = node.message.cycle_s or node.message.message.cycle_s or DEFAULT_CYCLE_S
        due_s = self._began_s

        def repeat(now_s: float) -> float:
            nonlocal due_s
            self._send(node)
            due_s = max(due_s + cycle_s, now_s)
            return due_s

        return repeat

    def _listen(self) -> None:
        bus = self._bus
        if bus is None:
            return
        try:
            for can_id, data, _, _ in bus.drain(_FRAMES_PER_WAKE_UP):
                self._heard(can_id, data)
        except LinkDownError:
            return  # a bus that is away now will be told at the next cycle

    def _heard(self, can_id: int, data: bytes) -> None:
        wanted = j1939.requested(can_id, data) if can_id & EXTENDED else None
        if wanted is not None:
            for node in self._nodes:
                if node.message.is_j1939 and j1939.pgn_of(node.can_id) == wanted:
                    self._send(node)
        asked = self._asked.get(can_id & ~REMOTE)
        request = None if asked is None else asked.message.request
        if asked is not None and request is not None:
            is_remote = bool(can_id & REMOTE)
            if request.is_remote == is_remote and (is_remote or data == request.data):
                self._send(asked)
        elif self._on_frame is not None and (
            can_id in self._seen or (can_id & EXTENDED and j1939.pgn_of(can_id) in self._seen_pgns)
        ):
            self._on_frame(can_id & ~EXTENDED, data)

    def _send(self, node: _Node) -> None:
        data = node.data(self._clock.monotonic_s() - self._began_s)
        if node.message.is_j1939 and len(data) > 8:
            self._send_long(node, data)
        else:
            self._put(node.can_id, data, node.message.flags)

    def _send_long(self, node: _Node, data: bytes) -> None:
        source, pgn = j1939.source_of(node.can_id), j1939.pgn_of(node.can_id)
        if source in self._senders:
            self._next.setdefault(source, {})[node] = data  # one message in packets at a time from one node
            return
        sender = self._senders[source] = PacketSender(pgn, data, source)
        now_s = self._clock.monotonic_s()
        for can_id, part in sender.start(now_s):
            self._put(can_id, part, 0)

        def go_on(now_s: float) -> float | None:
            for can_id, part in sender.tick(now_s):
                self._put(can_id, part, 0)
            if sender.due_s is None:
                del self._senders[source]
                waiting = self._next.get(source)
                if waiting:
                    following = next(iter(waiting))
                    self._send_long(following, waiting.pop(following))
            return sender.due_s

        self._schedule.at(sender.due_s or now_s, go_on)

    def _put(self, can_id: int, data: bytes, flags: int) -> None:
        if self._bus is None:
            return
        try:
            self._bus.send(can_id, data, flags)
        except (LinkDownError, RefusedError):
            return  # a bus that is away now will be told at the next cycle
