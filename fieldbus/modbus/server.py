"""The server link: our own registers on a TCP port, for other masters.

Rules:

* What a connection does wrong costs that connection and no other: half a frame, a wrong protocol id,
  an absurd length, silence, not reading the answers.
* All requests that arrive together are answered, in order, in one write.
* At most `max_sessions` connections; when one more comes, the one that was silent longest makes room,
  and one that never asked anything before any that did.
* No master waits behind another's flood: after `FRAMES_PER_TURN` requests the others have their turn.
  A connection that is silent for `idle_timeout_s` is closed.
* A unit id that we do not have is answered with exception 0A. If we have only one, it also answers to
  0 and 255, which masters use when there is nothing to choose.

Design: a protocol object per connection and no task: ten thousand silent connections cost their
buffers and nothing else. The registers are in `image.py`, the frames in `pdu.py`; this file only owns
sockets and clocks.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fieldbus.errors import ConversionError, LinkDownError
from fieldbus.link import Delivery, Emit, Report, WriteOutcome, WriteResult
from fieldbus.modbus import pdu
from fieldbus.modbus.image import UnitImage, Written
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.model import NO_FLAWS, Batch, Group, Point, Quality, Sample, Value

FRAMES_PER_TURN = 100


@dataclass(frozen=True, slots=True)
class ServedUnit:
    """One unit id and its register map."""

    device: str
    unit_id: int
    points: Sequence[RegisterPoint]
    fills_gaps: bool = False


class ModbusServerLink:
    """Serves routed samples to masters, and gives what masters write to the routing table."""

    is_listener = True

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        units: Sequence[ServedUnit],
        *,
        max_sessions: int = 64,
        idle_timeout_s: float = 60.0,
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.units = units
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._images = {unit.unit_id: UnitImage(unit.points, fills_gaps=unit.fills_gaps) for unit in units}
        self._image_of: dict[Point, UnitImage] = {}
        self._group_of: dict[Point, Group] = {}
        self._last: dict[Point, Value] = {}
        for unit in units:
            for served in unit.points:
                self._image_of[served.point] = self._images[unit.unit_id]
                if served.is_open_to_masters:
                    name_of_group = f"{unit.device} {served.point.name}"
                    self._group_of[served.point] = Group(name_of_group, (served.point,))
        self.groups: Sequence[Group] = list(self._group_of.values())
        self._server: asyncio.Server | None = None
        self._sessions: dict[_Session, None] = {}
        self._emit: Emit | None = None
        self._counters = dict.fromkeys(
            ("sessions", "sessions_refused", "requests", "exceptions", "bad_frames", "writes",
             "conversions_failed"), 0
        )  # fmt: skip

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"{self.host}:{self.port}"

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start."""
        return self._counters

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing: masters are not our devices."""
        return {}

    async def connect(self) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Session(self), self.host, self.port, backlog=128)
        except OSError as error:
            reason = (error.strerror or str(error)).rsplit(": ", 1)[-1].lower()  # asyncio says it at length
            raise LinkDownError(f"cannot listen: {reason}") from error
        if self.port == 0:
            self.port = self._server.sockets[0].getsockname()[1]

    async def run(self, emit: Emit, report: Report) -> None:
        """Serve until cancelled; look after silent connections."""
        self._emit = emit
        now_s = time.monotonic()
        for unit in self.units:
            for served in unit.points:
                group = self._group_of.get(served.point)
                if group is not None and served.initial is not None:
                    emit(Batch(group, time.time_ns(), now_s, (served.initial,), NO_FLAWS, (0,)))
        while True:
            await asyncio.sleep(min(1.0, self._idle_timeout_s / 4))
            limit_s = time.monotonic() - self._idle_timeout_s
            for session in [item for item in self._sessions if item.active_s < limit_s]:
                session.end()

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put routed samples into the registers, at once, whether a master is there or not."""
        for delivery in deliveries:
            point = delivery.target.point
            if point is None:
                continue
            self._last.pop(point, None)  # what a master wrote before is no longer what it reads
            try:
                self._image_of[point].update(point, delivery.sample)
            except ConversionError:
                self._counters["conversions_failed"] += 1
        return ()

    async def write(self, values: Mapping[Point, Value]) -> list[WriteResult]:
        """Put values into the registers."""
        results = []
        for point, value in values.items():
            self._last.pop(point, None)
            sample = Sample(value, Quality.GOOD, None, time.time_ns())
            try:
                self._image_of[point].update(point, sample)
            except ConversionError as error:
                results.append(WriteResult(point, value, WriteOutcome.REFUSED, str(error)))
            else:
                results.append(WriteResult(point, value, WriteOutcome.WRITTEN))
        return results

    async def close(self) -> None:
        """Stop listening and end all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for session in list(self._sessions):
            session.end()
        self._last.clear()  # the points are bad now; whatever is written next is news
        self._emit = None

    def enter(self, session: _Session) -> None:
        """Take a new connection, at the expense of the most silent one if there are too many."""
        self._counters["sessions"] += 1
        if len(self._sessions) >= self._max_sessions:
            self._counters["sessions_refused"] += 1
            # Who never asked anything goes first: half-open connections must not push masters out.
            loser = min(self._sessions, key=lambda item: (item.has_asked, item.active_s))
            del self._sessions[loser]
            loser.end()
        self._sessions[session] = None

    def leave(self, session: _Session, *, was_bad: bool) -> None:
        """Forget a connection that ended."""
        self._sessions.pop(session, None)
        if was_bad:
            self._counters["bad_frames"] += 1

    def answer(self, frame: pdu.Frame) -> bytes:
        """Return the frame that answers a request."""
        self._counters["requests"] += 1
        image = self._images.get(frame.unit_id)
        if image is None and frame.unit_id in (0, 255) and len(self._images) == 1:
            image = next(iter(self._images.values()))
        if image is None:
            response = pdu.exception_response(frame.pdu[0], pdu.GATEWAY_PATH_UNAVAILABLE)
        else:
            response, written = image.answer(frame.pdu)
            if written:
                self._tell(written)
        if response[0] & 0x80:
            self._counters["exceptions"] += 1
        return pdu.frame(frame.transaction_id, frame.unit_id, response)

    def _tell(self, written: Sequence[Written]) -> None:
        self._counters["writes"] += 1
        if self._emit is None:
            return
        time_ns, now_s = time.time_ns(), time.monotonic()
        for served, value in written:
            point = served.point
            is_new = self._last.get(point) != value or point not in self._last
            self._last[point] = value
            changed = (0,) if is_new else ()
            self._emit(Batch(self._group_of[point], time_ns, now_s, (value,), NO_FLAWS, changed))


class _Session(asyncio.Protocol):
    """One master's connection."""

    def __init__(self, link: ModbusServerLink) -> None:
        self._link = link
        self._reader = pdu.MbapReader()
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        """Whether answers wait for it to read them."""
        self._is_scheduled = False
        self._frames: deque[pdu.Frame] = deque()
        self.has_asked = False
        """Whether it ever sent a whole request."""
        self.active_s = time.monotonic()
        """When it last sent a whole request, on the monotonic clock: a trickle of bytes is silence."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._link.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._link.leave(self, was_bad=self._reader.fault is not None)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        frames = self._reader.feed(data)
        if frames:
            self.active_s = time.monotonic()
            self.has_asked = True
            is_working = bool(self._frames)
            self._frames.extend(frames)
            if not is_working:
                self._work()
        elif self._reader.fault is not None and not self._frames:
            transport.close()

    def _work(self) -> None:
        """Answer what was asked, some of it now and the rest when others have had their turn."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        count = min(FRAMES_PER_TURN, len(self._frames))
        answers = [self._link.answer(self._frames.popleft()) for _ in range(count)]
        transport.write(b"".join(answers))
        if self._frames:
            transport.pause_reading()
            if not self._is_full and not self._is_scheduled:
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self._work_on)
            return
        if self._reader.fault is not None:
            transport.close()
        elif not self._is_full:
            transport.resume_reading()

    def _work_on(self) -> None:
        self._is_scheduled = False
        if not self._is_full:
            self._work()

    def pause_writing(self) -> None:
        # It asks without reading the answers: no more questions until it has read.
        self._is_full = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._transport is not None and not self._transport.is_closing():
            if not self._frames:
                self._transport.resume_reading()
            elif not self._is_scheduled:
                self._work()

    def end(self) -> None:
        """Drop the connection now."""
        if self._transport is not None:
            self._transport.abort()
