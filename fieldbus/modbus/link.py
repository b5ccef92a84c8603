"""The client link: polls the units behind one connection and writes to them.

Rules:

* One task owns the connection: never two requests at once.
* Writes go ahead of polls, at the next request boundary, in the order in which they were given. Of
  several that wait for one point the last wins. What cannot be written now (no connection, unit
  demoted) fails now; it is not kept.
* Polls have deadlines, not sleeps: a late poll does not move the next one. A period that was missed
  whole is skipped and counted (`scans_missed`).
* Two failures in a row demote a unit: all its points are bad, and only one request at a time asks
  whether it is back, after 0.5 s, then at most every 10 s. The others on the connection go on.
* An answer that does not belong to its request costs the connection, which is opened anew before the
  next request.

Design: which error ends what is decided in `_failed` and nowhere else.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fieldbus.errors import (
    BadResponseError,
    ConversionError,
    DeviceExceptionError,
    LinkDownError,
    RequestError,
    RequestTimeoutError,
)
from fieldbus.link import Delivery, DeviceHealth, Emit, Report, WriteOutcome, WriteResult
from fieldbus.modbus import pdu
from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.client import ModbusTcpConnection
from fieldbus.modbus.planner import Block, Limits, plan
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.model import Batch, Group, Point, Reason, Value

FAILURES_TO_DEMOTE = 2
FIRST_PROBE_S = 0.5
LONGEST_PROBE_S = 10.0
_UNREACHABLE = (pdu.GATEWAY_PATH_UNAVAILABLE, pdu.GATEWAY_TARGET_FAILED_TO_RESPOND)
SLOTS = 20
"""Parts of a period on which polls are spread, so that a thousand devices do not fire together. Slots are
the same for all links: to wake up for one poll costs more than the poll."""
TIMER_GRAIN_S = 0.001
"""Event loops count time in milliseconds: who waits for less wakes several times in vain."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One device behind the link."""

    device: str
    unit_id: int
    points: Sequence[RegisterPoint]
    scan_s: float
    timeout_s: float
    limits: Limits = field(default_factory=Limits)

    def blocks(self) -> list[Block]:
        """Return the poll plan of the unit."""
        readable = [point for point in self.points if point.point.access.can_read]
        return plan(readable, self.unit_id, self.scan_s, self.limits)


@dataclass(slots=True, eq=False)
class _UnitState:
    unit: Unit
    polls: list[_Poll] = field(default_factory=list)
    is_online: bool | None = None
    """None until the first answer or failure."""
    failures: int = 0
    unreachable: set[_Poll] = field(default_factory=set)
    """Polls to which the gateway before the unit said that it cannot reach it (0A, 0B), since any other
    answer."""
    is_back: bool = False
    """Whether it has just answered again."""
    probe_at_s: float = 0.0
    probe_after_s: float = FIRST_PROBE_S
    response_time_ms: float = 0.0

    @property
    def is_demoted(self) -> bool:
        return self.failures >= FAILURES_TO_DEMOTE


@dataclass(slots=True, eq=False)
class _Poll:
    """One block, its request, and when it is due."""

    block: Block
    state: _UnitState
    group: Group
    request: bytes
    reader: BlockReader
    due_s: float = 0.0
    slot: int | None = None
    """Of a poll that is still to be the first: in which slot of its period the others will be."""
    reason: str | None = None
    """Why the group is bad, if it is."""


@dataclass(slots=True, eq=False)
class _Write:
    point: RegisterPoint
    state: _UnitState
    value: Value
    answers: list[asyncio.Future[WriteResult]] = field(default_factory=list)
    is_finished: bool = False


class ModbusClientLink:
    """Polls and writes the units behind one Modbus TCP connection."""

    is_listener = False

    def __init__(
        self, name: str, host: str, port: int, units: Sequence[Unit], *, connect_timeout_s: float = 3.0
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self._connect_timeout_s = connect_timeout_s
        self.units = units
        self._states = [_UnitState(unit) for unit in units]
        self._place: dict[Point, tuple[RegisterPoint, _UnitState]] = {}
        for state in self._states:
            for point in state.unit.points:
                self._place[point.point] = (point, state)
            for block in state.unit.blocks():
                group = Group(f"{state.unit.device} {block.name}", (item.point for item in block.points))
                request = pdu.read_request(block.table, block.address, block.count)
                state.polls.append(_Poll(block, state, group, request, BlockReader(block, group)))
        self.groups: Sequence[Group] = [poll.group for state in self._states for poll in state.polls]
        self._waiting: dict[Point, _Write] = {}
        self._wake = asyncio.Event()
        self._connection = ModbusTcpConnection(on_lost=self._wake.set)
        self._is_connected = False
        self._report: Report | None = None
        self._dropped: dict[Point, Value] = {}
        self._counters = dict.fromkeys(
            ("requests", "timeouts", "exceptions", "bad_responses", "scans_missed", "writes",
             "writes_failed", "writes_dropped"), 0)  # fmt: skip

    @property
    def endpoint(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start."""
        return self._counters

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Response time of each device."""
        return {
            state.unit.device: {"response_time_ms": round(state.response_time_ms, 3)}
            for state in self._states
            if state.is_online
        }

    @property
    def blocks(self) -> list[Block]:
        """The poll plan."""
        return [poll.block for state in self._states for poll in state.polls]

    async def connect(self) -> None:
        """Open the connection."""
        await self._open()
        self._is_connected = True

    async def close(self) -> None:
        """Close the connection and fail what waits to be written."""
        self._is_connected = False
        self._connection.close()
        for waiting in self._take_writes():
            self._finish(waiting, WriteOutcome.FAILED, Reason.NOT_CONNECTED)
        self._wake.clear()
        for state in self._states:
            # A new session is a new chance; who was online is told again only if that changes.
            state.failures = 0
            state.unreachable.clear()
            state.is_back = False
            state.probe_after_s = FIRST_PROBE_S
            state.is_online = None
            for poll in state.polls:
                poll.reader.forget()
                poll.reason = Reason.NOT_CONNECTED

    async def run(self, emit: Emit, report: Report) -> None:
        """Poll and write until the connection is lost."""
        self._report = report
        now_s = time.monotonic()
        order = itertools.count()
        queue: list[tuple[float, int, _Poll]] = []
        for state in self._states:
            for poll in state.polls:
                poll.due_s = now_s
                poll.slot = random.randrange(SLOTS)
                queue.append((poll.due_s, next(order), poll))
        heapq.heapify(queue)
        while True:
            if self._connection.is_lost:
                raise LinkDownError("connection closed by the peer")
            if self._waiting:
                await self._write_waiting(emit, report)
            if not queue:
                await self._idle(None)
                continue
            due_s, _, poll = queue[0]
            now_s = time.monotonic()
            if due_s > now_s + TIMER_GRAIN_S:
                await self._idle(due_s - now_s)
                continue
            heapq.heappop(queue)
            state = poll.state
            if state.is_demoted and now_s < state.probe_at_s:
                poll.due_s = max(due_s + poll.block.period_s, state.probe_at_s)
            else:
                await self._read(poll, emit, report)
                poll.due_s = self._next_due(poll, due_s)
            heapq.heappush(queue, (poll.due_s, next(order), poll))
            if state.is_back:
                # All its points are bad, also those that are polled once an hour: read them all now.
                state.is_back = False
                queue = [
                    (now_s if item.state is state and item is not poll else due_s, number, item)
                    for due_s, number, item in queue
                ]
                heapq.heapify(queue)

    def send(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Take routed values; they are written before the next poll."""
        refused = []
        for delivery in deliveries:
            point, value = delivery.target.point, delivery.sample.value
            if point is None or value is None:
                continue
            place, state = self._place[point]
            if self._is_connected and not state.is_demoted:
                self._dropped.pop(point, None)
                self._queue(_Write(place, state, value))
                continue
            refused.append(delivery)
            if self._dropped.get(point) != value:  # offered again and again, it is one loss
                self._dropped[point] = value
                self._counters["writes_dropped"] += 1
        return refused

    async def write(self, values: Mapping[Point, Value]) -> list[WriteResult]:
        """Write values and wait for the answers."""
        loop = asyncio.get_running_loop()
        answers = []
        for point, value in values.items():
            answer: asyncio.Future[WriteResult] = loop.create_future()
            answers.append(answer)
            place, state = self._place[point]
            if not self._is_connected or state.is_demoted:
                reason = Reason.TIMEOUT if self._is_connected else Reason.NOT_CONNECTED
                answer.set_result(WriteResult(point, value, WriteOutcome.FAILED, reason))
                continue
            self._queue(_Write(place, state, value, [answer]))
        return list(await asyncio.gather(*answers))

    async def _open(self) -> None:
        await self._connection.open(self.host, self.port, self._connect_timeout_s)

    def _queue(self, write: _Write) -> None:
        point = write.point.point
        earlier = self._waiting.pop(point, None)
        if earlier is not None:
            write.answers.extend(earlier.answers)
        self._waiting[point] = write
        self._wake.set()

    def _take_writes(self) -> list[_Write]:
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting

    async def _idle(self, seconds: float | None) -> None:
        """Wait until something is to be written, at most `seconds`."""
        self._wake.clear()
        if self._waiting or self._connection.is_lost:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _next_due(self, poll: _Poll, due_s: float) -> float:
        period_s, now_s = poll.block.period_s, time.monotonic()
        next_s = due_s + period_s
        if poll.slot is not None:
            # The first value comes at once, people wait for it; from then on each poll has its slot.
            slot_s = period_s / SLOTS
            next_s = (due_s // slot_s + 1 + poll.slot) * slot_s
            poll.slot = None
        if next_s < now_s:
            missed = int((now_s - next_s) // period_s) + 1
            self._counters["scans_missed"] += missed
            next_s += missed * period_s
        return next_s

    async def _read(self, poll: _Poll, emit: Emit, report: Report) -> None:
        state = poll.state
        unit = state.unit
        started_s = time.monotonic()
        self._counters["requests"] += 1
        try:
            reply = await self._connection.request(unit.unit_id, poll.request, unit.timeout_s)
            payload = pdu.check_read_reply(poll.request, reply)
        except RequestError as error:
            await self._failed(state, poll, error, emit, report)
            return
        now_s = time.monotonic()
        state.response_time_ms = (now_s - started_s) * 1000
        self._answered(state, report)
        poll.reason = None
        emit(poll.reader.read(payload, time.time_ns(), now_s))

    def _answered(self, state: _UnitState, report: Report) -> None:
        if state.is_demoted:
            state.probe_after_s = FIRST_PROBE_S
            state.is_back = True
        state.failures = 0
        state.unreachable.clear()
        if not state.is_online:
            state.is_online = True
            report(DeviceHealth(state.unit.device, True))

    async def _failed(
        self, state: _UnitState, poll: _Poll | None, error: RequestError, emit: Emit, report: Report
    ) -> None:
        """Decide what a failed request means for its group, its unit and the connection."""
        reason = _reason(error)
        if isinstance(error, DeviceExceptionError):
            self._counters["exceptions"] += 1
            if error.exception_code in _UNREACHABLE:
                # Another gateway's word for a dead unit, or for one bad point: only when nothing else of
                # the unit can be read it is the unit.
                if (
                    poll is not None
                    and poll in state.unreachable
                    and len(state.unreachable) == len(state.polls)
                ):
                    state.failures = FAILURES_TO_DEMOTE
                elif poll is not None:
                    state.unreachable.add(poll)
            else:
                self._answered(state, report)  # it lives: it said no
        else:
            name = "timeouts" if isinstance(error, RequestTimeoutError) else "bad_responses"
            self._counters[name] += 1
            state.failures += 1
        if poll is not None:
            _spoil(poll, reason, emit)
        if state.is_demoted:
            for other in state.polls:
                _spoil(other, reason, emit)
            state.probe_at_s = time.monotonic() + state.probe_after_s * random.uniform(0.9, 1.0)
            state.probe_after_s = min(state.probe_after_s * 2, LONGEST_PROBE_S)
            if state.is_online is not False:
                state.is_online = False
                report(DeviceHealth(state.unit.device, False, f"{reason} ({error})"))
        # A stream that gave one wrong answer may give another; and when nobody answers any more, the
        # connection itself may be dead without a sign.
        everybody_is_lost = all(other.is_demoted for other in self._states)
        is_silence = isinstance(error, RequestTimeoutError)
        if isinstance(error, BadResponseError) or (everybody_is_lost and is_silence):
            self._connection.close()
            await self._open()

    async def _write_waiting(self, emit: Emit, report: Report) -> None:
        requests = self._write_requests()
        try:
            for members, request in requests:
                state = members[0].state
                if state.is_demoted:  # by the request before: the others wait long enough for it
                    for member in members:
                        self._finish(member, WriteOutcome.FAILED, Reason.TIMEOUT)
                    continue
                self._counters["requests"] += 1
                try:
                    reply = await self._connection.request(state.unit.unit_id, request, state.unit.timeout_s)
                    pdu.check_write_reply(request, reply)
                except RequestError as error:
                    for member in members:
                        self._finish(member, WriteOutcome.FAILED, _reason(error))
                    await self._failed(state, None, error, emit, report)
                else:
                    self._answered(state, report)
                    for member in members:
                        self._finish(member, WriteOutcome.WRITTEN, None)
        finally:
            for members, _ in requests:
                for member in members:
                    self._finish(member, WriteOutcome.FAILED, Reason.NOT_CONNECTED)

    def _write_requests(self) -> list[tuple[list[_Write], bytes]]:
        """Turn what waits into requests, in order; neighbours that follow each other share one."""
        encoded: list[tuple[_Write, bytes]] = []
        for write in self._take_writes():
            refusal = write.point.point.refusal(write.value)
            if refusal is not None:
                self._finish(write, WriteOutcome.REFUSED, refusal)
                continue
            try:
                if write.point.table.is_bits:
                    encoded.append((write, bytes((write.point.encode_bit(write.value),))))
                else:
                    encoded.append((write, write.point.encode(write.value)))
            except ConversionError as error:
                self._finish(write, WriteOutcome.REFUSED, str(error))
        runs: list[tuple[list[_Write], list[bytes]]] = []
        for write, piece in encoded:
            if runs and _is_neighbour(write, *runs[-1]):
                run, data = runs[-1]
                at = 0 if write.point.end == run[0].point.address else len(run)
                run.insert(at, write)
                data.insert(at, piece)
            else:
                runs.append(([write], [piece]))
        return [(run, _write_request(run[0].point, b"".join(data))) for run, data in runs]

    def _finish(self, write: _Write, outcome: WriteOutcome, reason: str | None) -> None:
        """Answer a write, the first time that this is called for it."""
        if write.is_finished:
            return
        write.is_finished = True
        self._counters["writes" if outcome is WriteOutcome.WRITTEN else "writes_failed"] += 1
        value = write.value
        if outcome is WriteOutcome.WRITTEN and not write.point.table.is_bits:
            # What the registers hold now: the nearest step of the scale.
            value = write.point.decode(write.point.encode(value))[0] or value
        result = WriteResult(write.point.point, value, outcome, reason)
        if not write.answers and self._report is not None:
            self._report(result)
        for answer in write.answers:
            if not answer.done():
                answer.set_result(result)


def _is_neighbour(write: _Write, run: Sequence[_Write], data: Sequence[bytes]) -> bool:
    """Return whether a write can join a request, in front of it or behind it."""
    place = write.point
    return (
        run[0].state is write.state
        and run[0].point.table is place.table
        and (run[-1].point.end == place.address or place.end == run[0].point.address)
        and sum(map(len, data)) + 2 * place.count <= 2 * pdu.MAX_WRITE_REGISTERS
    )


def _write_request(first: RegisterPoint, data: bytes) -> bytes:
    if first.table is Table.COIL:
        return pdu.write_coils_request(first.address, [bool(state) for state in data])
    return pdu.write_registers_request(first.address, data)


def _reason(error: RequestError) -> str:
    if isinstance(error, RequestTimeoutError):
        return Reason.TIMEOUT
    if isinstance(error, DeviceExceptionError):
        return f"{Reason.DEVICE_EXCEPTION} {error.exception_code:02X}"
    return Reason.BAD_RESPONSE


def _spoil(poll: _Poll, reason: str, emit: Emit) -> None:
    batch = poll.group.without_value(reason, time.time_ns(), time.monotonic())
    if poll.reason == reason:
        batch = Batch(*batch[:5], ())
    else:
        poll.reader.forget()
        poll.reason = reason
    emit(batch)
