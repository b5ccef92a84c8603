"""The link that only listens: values out of the traffic between another client and its devices.

Rules:

* Nothing is ever sent. Writes are refused, routed values are handed back.
* A point has a value when a response that holds all its registers was heard immediately after its request. A
  point with `scale_from` and its power of ten come out of one response.
* A point is bad (stale) when that did not happen for `STALE_SCANS` scan periods; a device is offline when all
  its points are.
* An exception response makes the points bad that its request asked for.

Design: `sniffer.py` knows what belongs together; the line is the same as that of a link that polls, on which
nobody asks.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError, RequestError
from fieldbus.link import (
    NEVER,
    Delivery,
    DeviceHealth,
    Emit,
    Report,
    WriteOutcome,
    WriteResult,
)
from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.client import Line
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.pdu import EXCEPTION_NAMES
from fieldbus.modbus.places import Place, SerialPlace
from fieldbus.modbus.planner import Block, Limits, plan_together
from fieldbus.modbus.quirks import LineQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.sniffer import Exchange, make_sniffer
from fieldbus.modbus.transport import open_line
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch, Group, Point, Quality, Reason, Sample, Value

STALE_SCANS = 3
REFUSAL = "the link only listens (`listen: true`): nothing is ever sent on it"
_SHORTEST_GAP_S = 0.05
_STREAM_GAP_S = 0.5
_TICK_S = 0.05


class _Heard:
    """Points that come out of one response, or not at all."""

    def __init__(self, unit: Unit, block: Block) -> None:
        self.unit = unit
        self.block = block
        self.group = Group(f"{unit.device} {block.name}", (item.point for item in block.points))
        self.reader = BlockReader(block, self.group)
        self.deadline_s = STALE_SCANS * block.period_s
        self.heard_s = 0.0
        self.reason: str | None = Reason.NOT_CONNECTED

    def data_of(self, ask: Ask, response: bytes) -> bytes | None:
        """Return the payload of the block out of a response; None if that does not hold all of it."""
        code, address, count = _fields(ask)
        block = self.block
        if ask.unit_id != block.unit_id or code != block.table.read_function:
            return None
        skipped = block.address - address
        if skipped < 0 or block.address + block.count > address + count:
            return None
        data = response[2:]
        if not block.table.is_bits:
            return data[2 * skipped : 2 * (skipped + block.count)]
        bits = int.from_bytes(data, "little") >> skipped & (1 << block.count) - 1
        return bits.to_bytes((block.count + 7) // 8, "little")

    def is_asked(self, ask: Ask) -> bool:
        """Return whether a request asks for some of the points."""
        code, address, count = _fields(ask)
        block = self.block
        is_same = ask.unit_id == block.unit_id and code == block.table.read_function
        return is_same and address < block.address + block.count and block.address < address + count


class ModbusListeningLink:
    """Hears the units of one line being asked by another client."""

    is_listener = False

    def __init__(
        self,
        name: str,
        place: Place,
        units: Sequence[Unit],
        *,
        quirks: LineQuirks = LineQuirks(),  # noqa: B008 - frozen
        connect_timeout_s: float = 3.0,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what the link works with; nothing is opened."""
        self.name = name
        self.place = place
        self.units = units
        self.clock = clock
        self._quirks = quirks
        self._connect_timeout_s = connect_timeout_s
        self._heard = [_Heard(unit, block) for unit in units for block in _blocks(unit)]
        self.groups: Sequence[Group] = [item.group for item in self._heard]
        gap_s = _STREAM_GAP_S
        if isinstance(place, SerialPlace):
            gap_s = max(2 * place.silence_s, _SHORTEST_GAP_S)
        answer_s = max((unit.timeout_s for unit in units), default=1.0)
        self._gap_s, self._answer_s = gap_s, answer_s
        self._sniffer = make_sniffer(place.framing, gap_s=gap_s, answer_s=answer_s)
        self._line: Line | None = None
        self._ended: asyncio.Future[None] | None = None
        self._emit: Emit | None = None
        self._report: Report | None = None
        self._online: dict[str, bool] = {}
        self._counters = dict.fromkeys(("responses", "exceptions", "writes_dropped"), 0)

    @property
    def endpoint(self) -> str:
        """What it listens to."""
        return f"{self.place.text}, listening"

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start: responses whose requests were heard, exceptions among them."""
        return self._counters

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing: how fast devices answer is the other client's."""
        return {}

    async def connect(self) -> None:
        """Open the line."""
        self._ended = asyncio.get_running_loop().create_future()
        self._sniffer = make_sniffer(self.place.framing, gap_s=self._gap_s, answer_s=self._answer_s)
        self._line = await open_line(self.place, self, self._quirks, self._connect_timeout_s)
        self._line.watch_others(self)

    async def run(self, emit: Emit, report: Report) -> None:
        """Listen until the line is lost."""
        if self._ended is None:
            raise LinkDownError("not connected")
        self._emit, self._report = emit, report
        now_s = self.clock.monotonic_s()
        for item in self._heard:
            item.heard_s, item.reason = now_s, None
            item.reader.forget()
        while True:
            await asyncio.wait({self._ended}, timeout=_TICK_S)
            if self._ended.done():
                self._ended.result()
            now_s = self.clock.monotonic_s()
            for exchange in self._sniffer.expire(now_s):
                self._take(exchange, now_s)
            self._look_for_stale(now_s)

    async def close(self) -> None:
        """Close the line."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._emit = self._report = None
        if self._ended is not None and self._ended.done() and not self._ended.cancelled():
            self._ended.exception()  # it was told, or nobody was there to be told
        self._online.clear()

    def send(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Hand back what routes have: nothing is sent."""
        self._counters["writes_dropped"] += len(deliveries)
        return list(deliveries)

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Refuse all writes."""
        return [WriteResult(point, value, WriteOutcome.REFUSED, REFUSAL) for point, value in values.items()]

    async def read(self, points: Collection[Point], *, until_s: float = NEVER) -> dict[Point, Sample]:
        """Refuse to read out of turn."""
        sample = Sample(None, Quality.BAD, f"{Reason.NOT_AVAILABLE}: {REFUSAL}", self.clock.wall_ns())
        return dict.fromkeys(points, sample)

    # --- what the line calls

    def answered(self, answer: bytes) -> None:
        """Do nothing: nothing is asked."""

    def failed(self, error: RequestError) -> None:
        """Do nothing: nothing is asked."""

    def lost(self, error: LinkDownError) -> None:
        """End the session."""
        self._end(error)

    def begin(self) -> None:
        """Take up a new connection."""

    def sent(self, ask: Ask) -> None:
        """Do nothing: nothing is sent."""

    def gave_up(self, ask: Ask, now_s: float) -> None:
        """Do nothing: nothing is asked."""

    def is_shared(self, now_s: float) -> bool:
        """Return that others ask: only they do."""
        return True

    def heard(self, data: bytes, now_s: float) -> None:
        """Take bytes of the line."""
        try:
            for exchange in self._sniffer.feed(data, now_s):
                self._take(exchange, now_s)
        except Exception as error:
            self._end(error)

    # --- values

    def _end(self, error: Exception) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)

    def _take(self, exchange: Exchange, now_s: float) -> None:
        """Take the values out of a response."""
        if self._emit is None:
            return
        ask, response = exchange
        if response[0] & 0x80:
            self._counters["exceptions"] += 1
            reason = f"{Reason.DEVICE_EXCEPTION} {response[1]:02X}"
            if response[1] in EXCEPTION_NAMES:
                for item in self._heard:
                    if item.is_asked(ask):
                        self._spoil(item, reason)
            return
        self._counters["responses"] += 1
        for item in self._heard:
            data = item.data_of(ask, response)
            if data is not None:
                item.heard_s, item.reason = now_s, None
                self._emit(item.reader.read(data, self.clock.wall_ns(), now_s))
                self._tell(item.unit.device, is_online=True)

    def _look_for_stale(self, now_s: float) -> None:
        """Say what was not heard for too long."""
        for item in self._heard:
            if item.reason is None and now_s - item.heard_s > item.deadline_s:
                self._spoil(item, Reason.STALE)
        for unit in self.units:
            own = [item for item in self._heard if item.unit is unit]
            if own and all(item.reason == Reason.STALE for item in own):
                self._tell(unit.device, is_online=False)

    def _spoil(self, item: _Heard, reason: str) -> None:
        if self._emit is None:
            return
        batch = item.group.without_value(reason, self.clock.wall_ns(), self.clock.monotonic_s())
        if item.reason == reason:
            batch = Batch(*batch[:5], ())
        item.reason = reason
        item.reader.forget()
        self._emit(batch)

    def _tell(self, device: str, *, is_online: bool) -> None:
        if self._online.get(device) is is_online or self._report is None:
            return
        self._online[device] = is_online
        reason = None if is_online else f"{Reason.STALE} (nobody asks for its points, or it does not answer)"
        self._report(DeviceHealth(device, is_online, reason))


def _fields(ask: Ask) -> tuple[int, int, int]:
    """Return function code, address and count of a read."""
    code, address, count = struct.unpack(">BHH", ask.pdu)
    return code, address, count


def _blocks(unit: Unit) -> Iterable[Block]:
    """Return the least that has to come out of one response, for all points of a unit."""
    together: dict[RegisterPoint, list[RegisterPoint]] = {}
    for point in unit.readable:
        together.setdefault(point.factor or point, []).append(point)
    for members in together.values():
        period_s = min(point.scan_s or unit.scan_s for point in members)
        yield from plan_together(members, unit.unit_id, period_s, Limits())
