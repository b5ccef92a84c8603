"""The server link: our own registers, for other masters, on the network or on a serial line.

Rules:

* What a connection does wrong costs that connection and no other: half a frame, a wrong protocol id,
  an absurd length, silence, not reading the answers.
* All requests that arrive together are answered, in order, in one write.
* At most `max_sessions` connections; when one more comes, the one that was silent longest makes room,
  and one that never asked anything before any that did. A connection that is silent for
  `idle_timeout_s` is closed.
* No master waits behind another's flood.
* On the network a unit id that we do not have is answered with exception 0A. If we have only one (the
  gateway's own status map does not count), it also answers to 0 and 255, which masters use when there is
  nothing to choose.
* On a line (serial, or RTU frames on TCP) other stations may have the other unit ids: silence. Unit id 0 is
  for all of ours: written, and never answered.
* Who may ask at all, and what, is `server_access.py`: a request beyond it is exception 01.

Design: this file owns registers, counters and the list of sessions. Frames are in `server_framing.py`, what
happens on a connection in `server_sessions.py`, how places are opened in `listen.py`, registers in
`image.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import ConversionError, LinkDownError
from fieldbus.link import NEVER, Delivery, Emit, Report, WriteOutcome, WriteResult
from fieldbus.modbus import pdu
from fieldbus.modbus.identification import Identification, diagnose, identify
from fieldbus.modbus.image import UnitImage, Written
from fieldbus.modbus.listen import Listener, ServerPlace, listen, make_room
from fieldbus.modbus.places import SerialPlace, TcpPlace
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server_access import Guard, Right, role_in
from fieldbus.modbus.server_framing import BROADCAST
from fieldbus.modbus.server_sessions import StreamSession
from fieldbus.modbus.table_image import BlockRules
from fieldbus.model import NO_FLAWS, Batch, Group, Point, Quality, Sample, Value

_ALL = Right.READWRITE
_ABOUT_US = frozenset((pdu.DIAGNOSTICS, pdu.ENCAPSULATED_INTERFACE))


@dataclass(frozen=True, slots=True)
class ServedUnit:
    """One unit id and its register map."""

    device: str
    unit_id: int
    points: Sequence[RegisterPoint]
    blocks: BlockRules = field(default_factory=BlockRules)
    """What clients read where there is no value."""
    is_status: bool = False
    """Whether it is the gateway's own status map."""


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
        place: ServerPlace | None = None,
        guard: Guard | None = None,
        identification: Identification | None = None,
        max_sessions: int = 64,
        idle_timeout_s: float = 60.0,
        has_echo: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        """Make the link; nothing is opened yet.

        Args:
            name: the link's.
            host: where to listen, on the network.
            port: 0 for one that the system chooses.
            units: what is served.
            place: how, if not MBAP on TCP; on the network `host` and `port` stand instead of the place's.
            guard: who may ask, and what.
            identification: what FC 43/14 says.
            max_sessions: connections at one time.
            idle_timeout_s: after how much silence a connection is closed.
            has_echo: whether a serial line brings back what we send.
            clock: the gateway's.
        """
        self.name = name
        self.clock = clock
        self.host = host
        self.port = port
        self.units = units
        self.place: ServerPlace = place or TcpPlace(host, port)
        self._guard = guard or Guard()
        self._identification = identification or Identification()
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._has_echo = has_echo
        self._images = {unit.unit_id: UnitImage(unit.points, unit.blocks) for unit in units}
        alone = [self._images[unit.unit_id] for unit in units if not unit.is_status]
        self._alone = alone[0] if len(alone) == 1 else None
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
        self._listener: Listener | None = None
        self._look_s = min(1.0, idle_timeout_s / 4)
        self._looked_s = math.inf
        """When silent connections were last looked after."""
        self._lost: asyncio.Future[str] | None = None
        self._silent: OrderedDict[StreamSession, None] = OrderedDict()
        """Sessions that never asked anything, the oldest first."""
        self._heard: OrderedDict[StreamSession, None] = OrderedDict()
        """The other ones, the most silent first."""
        self._emit: Emit | None = None
        self._counters = dict.fromkeys(
            ("sessions", "sessions_refused", "requests", "exceptions", "bad_frames", "answers_dropped",
             "writes", "conversions_failed"), 0
        )  # fmt: skip

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        if isinstance(self.place, SerialPlace):
            return self.place.text
        return replace(self.place, host=self.host, port=self.port).text

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start."""
        return self._counters

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing: masters are not our devices."""
        return {}

    @property
    def session_count(self) -> int:
        """How many connections there are now."""
        return len(self._silent) + len(self._heard)

    @property
    def sessions(self) -> Sequence[StreamSession]:
        """The connections that there are now, the most dispensable first."""
        return [*self._silent, *self._heard]

    # --- the contract of a link

    async def connect(self) -> None:
        """Begin to listen."""
        self._lost = asyncio.get_running_loop().create_future()
        place = self.place
        if not isinstance(place, SerialPlace):
            place = replace(place, host=self.host, port=self.port)
            make_room(self._max_sessions)
        self._listener = await listen(place, self, tuple(self._images), self._lose, has_echo=self._has_echo)
        self.port = self.port or self._listener.port

    async def run(self, emit: Emit, report: Report) -> None:
        """Serve until cancelled or the port is lost; look after silent connections."""
        self._emit = emit
        now_s = self.clock.monotonic_s()
        for unit in self.units:
            for served in unit.points:
                group = self._group_of.get(served.point)
                if group is not None and served.initial is not None:
                    emit(Batch(group, self.clock.wall_ns(), now_s, (served.initial,), NO_FLAWS, (0,)))
        lost = self._lost
        if lost is None:
            raise LinkDownError("not listening")
        while True:
            self._looked_s = self.clock.monotonic_s()
            await asyncio.wait((lost,), timeout=self._look_s)
            if lost.done():
                raise LinkDownError(lost.result())
            limit_s = self.clock.monotonic_s() - self._idle_timeout_s
            for sessions in (self._silent, self._heard):
                for session in list(sessions):
                    if session.active_s >= limit_s:
                        break  # they are in the order of their silence
                    session.end()

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put routed samples into the registers, at once, whether a master is there or not."""
        last, image_of = self._last, self._image_of
        for target, _, sample in deliveries:
            point = target.point
            if point is None:
                continue
            if last:
                last.pop(point, None)  # what a master wrote before is no longer what it reads
            try:
                image_of[point].update(point, sample)
            except ConversionError:
                self._counters["conversions_failed"] += 1
        return ()

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Put values into the registers; those that masters write go on to routes as if one had."""
        results = []
        for point, value in values.items():
            self._last.pop(point, None)
            sample = Sample(value, Quality.GOOD, None, self.clock.wall_ns())
            try:
                self._image_of[point].update(point, sample)
            except ConversionError as error:
                results.append(WriteResult(point, value, WriteOutcome.REFUSED, str(error)))
            else:
                results.append(WriteResult(point, value, WriteOutcome.WRITTEN))
                group = self._group_of.get(point)
                if group is not None and self._emit is not None:  # as if a master had written it
                    self._last[point] = value
                    now_s = self.clock.monotonic_s()
                    self._emit(Batch(group, sample.time_ns, now_s, (value,), NO_FLAWS, (0,)))
        return results

    def stuck_s(self, now_s: float) -> float:
        """Return for how long silent connections were not looked after, or for ever if nobody listens."""
        if self._listener is None or self._lost is None or self._lost.done():
            return 0.0  # the session ends, or has not begun
        if not self._listener.is_listening:
            return NEVER
        return max(0.0, now_s - self._looked_s - self._look_s)

    async def close(self) -> None:
        """Stop listening and end all connections."""
        listener, self._listener = self._listener, None
        self._lost = None
        if listener is not None:
            listener.close()
        for session in self.sessions:
            session.end()
        self._last.clear()  # the points are bad now; whatever is written next is news
        self._emit = None

    # --- what sessions tell and ask (Service)

    def admits(self, address: object) -> bool:
        """Return whether a peer at an address is listened to; count it if not."""
        is_allowed = self._guard.admits(address)
        self._counters["sessions_refused"] += not is_allowed
        return is_allowed

    def enter(self, session: StreamSession) -> None:
        """Take a new connection, at the expense of the most silent one if there are too many."""
        self._counters["sessions"] += 1
        if self.session_count >= self._max_sessions:
            self._counters["sessions_refused"] += 1
            # Who never asked anything goes first: half-open connections must not push masters out.
            loser, _ = (self._silent or self._heard).popitem(last=False)
            loser.end()
        self._silent[session] = None

    def touch(self, session: StreamSession) -> None:
        """Learn that a connection sent a whole request."""
        if session in self._heard:
            self._heard.move_to_end(session)
        elif session in self._silent:
            del self._silent[session]
            self._heard[session] = None

    def leave(self, session: StreamSession) -> None:
        """Forget a connection that ended."""
        self._silent.pop(session, None)
        self._heard.pop(session, None)

    def right_with(self, certificate: bytes) -> Right:
        """Return what whoever showed a certificate may do."""
        return self._guard.right_of(role_in(certificate))

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a total."""
        self._counters[name] += amount

    def answer(self, request: pdu.Frame, right: Right, *, is_line: bool) -> bytes | None:
        """Return the response PDU to a request, None if it gets none."""
        image = self._images.get(request.unit_id)
        if is_line:
            if request.unit_id == BROADCAST:
                self._broadcast(request)
                return None
            if image is None:
                return None
        elif image is None and request.unit_id in (0, 255):
            image = self._alone
        counters = self._counters
        counters["requests"] += 1
        function_code = request.pdu[0]
        if right is not _ALL and not right.covers(function_code):
            response = pdu.exception_response(function_code, pdu.ILLEGAL_FUNCTION)
        elif image is None:
            response = pdu.exception_response(function_code, pdu.GATEWAY_PATH_UNAVAILABLE)
        elif function_code in _ABOUT_US:
            is_question = function_code == pdu.ENCAPSULATED_INTERFACE
            response = identify(request.pdu, self._identification) if is_question else diagnose(request.pdu)
        else:
            response, written = image.answer(request.pdu)
            if written:
                self._tell(written)
        if response[0] & 0x80:
            counters["exceptions"] += 1
        return response

    def _broadcast(self, request: pdu.Frame) -> None:
        if request.pdu[0] not in pdu.WRITING:
            return
        self._counters["requests"] += 1
        for image in self._images.values():
            _, written = image.answer(request.pdu)
            if written:
                self._tell(written)

    def _tell(self, written: Sequence[Written]) -> None:
        self._counters["writes"] += 1
        if self._emit is None:
            return
        time_ns, now_s = self.clock.wall_ns(), self.clock.monotonic_s()
        for served, value in written:
            point = served.point
            is_new = self._last.get(point) != value or point not in self._last
            self._last[point] = value
            changed = (0,) if is_new else ()
            self._emit(Batch(self._group_of[point], time_ns, now_s, (value,), NO_FLAWS, changed))

    def _lose(self, reason: str) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)
