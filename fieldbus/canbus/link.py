"""The CAN link: listens, decodes, polls nodes that speak only when asked, sends what is routed.

Rules:

* Silent unless a route or a poll sends.
* A message is sent when a routed signal of it changes, and at its cycle time. Signals that no route
  has given a value yet have their start value. While the source of a routed signal is bad the message
  is not sent: its receivers see it missing, as they would see a dead node.
* Each group of signals (a message, or a branch of a multiplexed one) has a deadline; when it passes
  without a frame, the group's points are bad.
* Frames that we sent are not taken for input.
* Error frames and remote frames are not data.

Design: everything happens in the event loop of the gateway, in three places: `_receive` (a frame
came), `send` (a route has something), `_tick` (something is due). Where the interface has a file
descriptor the loop waits on it; elsewhere a thread reads and hands over, through a bounded queue.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import ne

import can

from fieldbus.canbus.codec import BranchDecoder, FrameEncoder
from fieldbus.canbus.layout import Condition, Message, Signal
from fieldbus.errors import ConversionError, LinkDownError
from fieldbus.link import Delivery, DeviceHealth, Emit, Report, WriteOutcome, WriteResult
from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, Point, Reason, Value

# What python-can would say is said better by the gateway, once.
logging.getLogger("can").setLevel(logging.CRITICAL)

MAX_PENDING_FRAMES = 10_000
_FRAMES_PER_WAKE_UP = 500
"""After so many frames others have their turn; the rest stays in the kernel's buffer."""
_ECHO_S = 1.0
_EMPTY_READS = 100
_GONE = {
    errno.EPIPE,
    errno.ECONNRESET,
    errno.EBADF,
    errno.ENETDOWN,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
}
"""What the system says when an interface is not there any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """The frame that makes a node speak."""

    frame_id: int
    is_extended: bool
    data: bytes
    is_remote: bool
    scan_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True, eq=False)
class CanMessage:
    """A message of a device, with its points and how it is watched."""

    device: str
    message: Message
    points: Mapping[Signal, Point]
    deadline_s: float | None = None
    """After so long without a frame its points are bad; None for never."""
    cycle_s: float | None = None
    """How often we repeat it if we send it; None for only on change."""
    request: Request | None = None


@dataclass(slots=True, eq=False)
class _Branch:
    """One group of an incoming message."""

    owner: _Incoming
    group: Group
    decoder: BranchDecoder
    data: bytes | None = None
    values: Sequence[Value | None] = ()
    flaws: Mapping[int, Flaw] = field(default_factory=dict)
    seen_s: float = 0.0
    is_lost: bool = True


@dataclass(slots=True, eq=False)
class _Incoming:
    message: CanMessage
    branches: list[_Branch]
    asked_s: float | None = None
    """When its request was sent, while the answer is awaited."""


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A message that routes write."""

    message: CanMessage
    encoder: FrameEncoder
    branches: list[Condition]
    """What is sent of a multiplexed message: one frame for each branch that is routed to."""
    bad: set[Point] = field(default_factory=set)
    has_value: bool = False
    sent_s: float = 0.0


class CanLink:
    """One CAN bus."""

    is_listener = False

    def __init__(
        self,
        name: str,
        options: Mapping[str, object],
        messages: Sequence[CanMessage],
        targets: Iterable[Point] = (),
    ) -> None:
        self.name = name
        self.options = dict(options)
        """For `can.Bus`: interface, channel and what else the interface takes."""
        self.messages = messages
        targets = set(targets)
        self._incoming: dict[tuple[int, bool], list[_Incoming]] = {}
        self._all_incoming: list[_Incoming] = []
        self._outgoing: dict[Point, _Outgoing] = {}
        self._signal_of: dict[Point, Signal] = {}
        self._devices = {message.device: False for message in messages}
        groups: list[Group] = []
        for message in messages:
            self._signal_of.update({point: signal for signal, point in message.points.items()})
            routed = [signal for signal, point in message.points.items() if point in targets]
            if routed:
                branches = list(dict.fromkeys(signal.condition for signal in routed))
                outgoing = _Outgoing(message, FrameEncoder(message.message), branches)
                self._outgoing.update({message.points[signal]: outgoing for signal in routed})
            else:
                groups.extend(self._listen_to(message))
        self.groups: Sequence[Group] = groups
        self._bus: can.BusABC | None = None
        self._thread: threading.Thread | None = None
        self._pending: deque[can.Message] = deque()
        self._lost: asyncio.Future[None] | None = None
        self._empty_reads = 0
        self._echoes: Counter[tuple[int, bytes]] = Counter()
        self._echo_clear_s = 0.0
        self._queue: list[tuple[float, int, Callable[[float], float | None]]] = []
        self._order = itertools.count()
        self._emit: Emit | None = None
        self._report: Report | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._counters = dict.fromkeys(
            ("rx_frames", "rx_dropped", "tx_frames", "tx_dropped", "requests", "timeouts",
             "conversions_failed"), 0)  # fmt: skip

    def _listen_to(self, message: CanMessage) -> list[Group]:
        incoming = _Incoming(message, [])
        for condition, signals in message.message.branches().items():
            label = "".join(f" {name}={min(values)}" for name, values in condition)
            group = Group(
                f"{message.device} {message.message.name}{label}",
                (message.points[signal] for signal in signals),
            )
            decoder = BranchDecoder(message.message, signals)
            incoming.branches.append(_Branch(incoming, group, decoder))
        key = (message.message.frame_id, message.message.is_extended)
        self._incoming.setdefault(key, []).append(incoming)
        self._all_incoming.append(incoming)
        return [branch.group for branch in incoming.branches]

    @property
    def endpoint(self) -> str:
        """Interface and channel."""
        return f"{self.options.get('interface', 'default')} {self.options.get('channel', '')}".strip()

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start."""
        return self._counters

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing yet: a node that speaks by itself has no response time."""
        return {}

    async def connect(self) -> None:
        """Open the bus."""
        # Some drivers block while they open; none may hold up the others.
        try:
            self._bus = await asyncio.to_thread(lambda: can.Bus(**self.options))  # type: ignore[arg-type]
        except (can.CanError, OSError, ValueError, TypeError, ImportError, AttributeError) as error:
            raise LinkDownError(_reason(error)) from error
        except Exception as error:  # a driver of somebody else's may raise anything
            raise LinkDownError(f"{type(error).__name__}: {error}") from error

    async def run(self, emit: Emit, report: Report) -> None:
        """Listen, poll and repeat until the bus is lost."""
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        self._empty_reads = 0
        self._emit, self._report = emit, report
        self._schedule_all()
        self._start_reader(loop)
        self._tick()
        await self._lost

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put routed values into their messages and send those that changed."""
        if self._bus is None:
            return deliveries
        touched: dict[_Outgoing, None] = {}
        for delivery in deliveries:
            point = delivery.target.point
            outgoing = None if point is None else self._outgoing.get(point)
            if outgoing is None or point is None:
                continue
            value = delivery.sample.value
            if value is None:
                outgoing.bad.add(point)
                continue
            try:
                if (refusal := point.refusal(value)) is not None:
                    raise ConversionError(refusal)
                is_changed = outgoing.encoder.set(self._signal_of[point].name, value)
            except ConversionError:
                # What cannot be said is not replaced by what was said before.
                self._counters["conversions_failed"] += 1
                outgoing.bad.add(point)
                continue
            if is_changed or point in outgoing.bad or not outgoing.has_value:
                touched[outgoing] = None
            outgoing.bad.discard(point)
            outgoing.has_value = True
        for outgoing in touched:
            self._transmit(outgoing)
        return ()

    def _forget_values(self) -> None:
        """Begin with start values again: what routes gave before the bus was lost is old."""
        for outgoing in set(self._outgoing.values()):
            outgoing.has_value = False
            outgoing.bad.clear()
            outgoing.encoder = FrameEncoder(outgoing.message.message)

    async def write(self, values: Mapping[Point, Value]) -> list[WriteResult]:
        """Send messages with values."""
        results = []
        for point, value in values.items():
            outgoing = self._outgoing.get(point)
            if outgoing is None:
                results.append(WriteResult(point, value, WriteOutcome.REFUSED, "not sent by us"))
                continue
            try:
                outgoing.encoder.set(self._signal_of[point].name, value)
            except ConversionError as error:
                results.append(WriteResult(point, value, WriteOutcome.REFUSED, str(error)))
                continue
            outgoing.has_value = True
            outgoing.bad.discard(point)
            if self._transmit(outgoing):
                others = len(outgoing.message.points) > 1 and not all(
                    other in values for other in outgoing.message.points.values()
                )
                note = f"other signals of {outgoing.message.message.name}: start values" if others else None
                results.append(WriteResult(point, value, WriteOutcome.WRITTEN, note))
            else:
                reason = "the bus did not take the frame"
                results.append(WriteResult(point, value, WriteOutcome.FAILED, reason))
        return results

    async def close(self) -> None:
        """Leave the bus."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        bus, self._bus = self._bus, None
        thread, self._thread = self._thread, None
        if bus is not None:
            if thread is None:
                fd = _file_descriptor(bus)
                if fd is not None:
                    _remove_reader(asyncio.get_running_loop(), fd)
            else:
                await asyncio.to_thread(thread.join, 2.0)
            try:
                await asyncio.to_thread(bus.shutdown)
            except Exception:  # noqa: S110 - a driver that fails to close is closed for us
                pass
        self._pending.clear()
        self._forget_values()
        self._emit = self._report = None
        for incoming in self._all_incoming:
            incoming.asked_s = None
            for branch in incoming.branches:
                branch.is_lost, branch.data = True, None
        self._devices = dict.fromkeys(self._devices, False)

    # --- receiving

    def _start_reader(self, loop: asyncio.AbstractEventLoop) -> None:
        bus = self._bus
        if bus is None:
            raise LinkDownError("not open")
        fd = _file_descriptor(bus)
        if fd is not None and _add_reader(loop, fd, self._drain):
            return
        self._thread = threading.Thread(
            target=self._read_in_thread, args=(loop, bus), name=f"{self.name} reader", daemon=True
        )
        self._thread.start()

    def _drain(self) -> None:
        """Take what the interface has; called by the event loop."""
        bus = self._bus
        try:
            for count in range(_FRAMES_PER_WAKE_UP):
                message = None if bus is None else bus.recv(0)
                if message is None:
                    self._empty_reads = self._empty_reads + 1 if count == 0 else 0
                    if self._empty_reads >= _EMPTY_READS:
                        # Readable and nothing to read, again and again: the other end has closed.
                        self._lose(OSError("the interface was closed"))
                    return
                self._receive(message)
        except (can.CanError, OSError, ValueError) as error:
            self._lose(error)

    def _read_in_thread(self, loop: asyncio.AbstractEventLoop, bus: can.BusABC) -> None:
        try:
            while self._bus is bus:
                message = bus.recv(0.25)
                if message is None:
                    continue
                if len(self._pending) >= MAX_PENDING_FRAMES:
                    self._counters["rx_dropped"] += 1
                    continue
                self._pending.append(message)
                if len(self._pending) == 1:
                    loop.call_soon_threadsafe(self._take_pending)
        except RuntimeError:
            return  # the loop is closed: the gateway has stopped
        except Exception as error:  # whatever a driver raises, the bus is lost with it
            if self._bus is bus:
                loop.call_soon_threadsafe(self._lose, error)

    def _take_pending(self) -> None:
        for _ in range(len(self._pending)):
            self._receive(self._pending.popleft())

    def _lose(self, error: Exception) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_exception(LinkDownError(_reason(error)))

    def _receive(self, frame: can.Message) -> None:
        if frame.is_error_frame or frame.is_remote_frame or self._emit is None:
            return
        self._counters["rx_frames"] += 1
        interested = self._incoming.get((frame.arbitration_id, frame.is_extended_id))
        if interested is None:
            return
        data = bytes(frame.data)
        if self._echoes and self._is_echo(frame.arbitration_id, data):
            return
        now_s, now_ns = time.monotonic(), time.time_ns()
        # The interface's own stamp is the better one, if it is on the wall clock at all.
        stamp_ns = int(frame.timestamp * 1e9)
        time_ns = stamp_ns if abs(now_ns - stamp_ns) < 10_000_000_000 else now_ns
        for incoming in interested:
            incoming.asked_s = None
            device = incoming.message.device
            if not self._devices[device]:
                self._devices[device] = True
                if self._report is not None:
                    self._report(DeviceHealth(device, True))
            for branch in incoming.branches:
                if branch.decoder.is_present(data):
                    self._emit(_read(branch, data, time_ns, now_s))

    def _is_echo(self, frame_id: int, data: bytes) -> bool:
        key = (frame_id, data)
        if self._echoes[key] > 0:
            self._echoes[key] -= 1
            return True
        return False

    # --- sending

    def _transmit(self, outgoing: _Outgoing) -> bool:
        if outgoing.bad or not outgoing.has_value:
            return False
        message = outgoing.message.message
        outgoing.sent_s = time.monotonic()
        # Every branch is tried, whether the bus took the one before or not.
        taken = [self._put(_frame(message, outgoing.encoder, branch)) for branch in outgoing.branches]
        return all(taken)

    def _put(self, frame: can.Message) -> bool:
        bus = self._bus
        if bus is None:
            self._counters["tx_dropped"] += 1
            return False
        try:
            bus.send(frame, timeout=0)
        except (can.CanError, OSError, ValueError) as error:
            self._counters["tx_dropped"] += 1
            for cause in (error, error.__cause__, error.__context__):
                if isinstance(cause, OSError) and cause.errno in _GONE:
                    self._lose(cause)
                    break
            return False
        self._counters["tx_frames"] += 1
        if self.options.get("interface") == "udp_multicast":
            # It hands us what we sent, without saying so.
            now_s = time.monotonic()
            if now_s > self._echo_clear_s:
                self._echoes.clear()
                self._echo_clear_s = now_s + _ECHO_S
            self._echoes[frame.arbitration_id, bytes(frame.data)] += 1
        return True

    # --- the clock

    def _schedule_all(self) -> None:
        now_s = time.monotonic()
        self._queue.clear()
        for incoming in self._all_incoming:
            if incoming.message.request is not None:
                self._at(now_s, self._asker(incoming, incoming.message.request))
            elif incoming.message.deadline_s is not None:
                for branch in incoming.branches:
                    deadline_s = incoming.message.deadline_s
                    self._at(now_s + deadline_s, self._watcher(branch, deadline_s))
        for outgoing in dict.fromkeys(self._outgoing.values()):
            if outgoing.message.cycle_s is not None:
                self._at(now_s, self._repeater(outgoing, outgoing.message.cycle_s))

    def _at(self, due_s: float, act: Callable[[float], float | None]) -> None:
        heapq.heappush(self._queue, (due_s, next(self._order), act))

    def _tick(self) -> None:
        """Do what is due; each act says when it wants to be called again."""
        now_s = time.monotonic()
        while self._queue and self._queue[0][0] <= now_s:
            _, _, act = heapq.heappop(self._queue)
            again_s = act(now_s)
            if again_s is not None:
                self._at(again_s, act)
        if self._queue:
            delay_s = max(0.0, self._queue[0][0] - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _repeater(self, outgoing: _Outgoing, cycle_s: float) -> Callable[[float], float]:
        due_s = time.monotonic()

        def repeat(now_s: float) -> float:
            nonlocal due_s
            # A frame that a change caused a moment ago serves as this cycle's.
            if now_s - outgoing.sent_s >= cycle_s * 0.5:
                self._transmit(outgoing)
            due_s = max(due_s + cycle_s, now_s)
            return due_s

        return repeat

    def _watcher(self, branch: _Branch, deadline_s: float) -> Callable[[float], float]:
        def watch(now_s: float) -> float:
            due_s = branch.seen_s + deadline_s
            if now_s < due_s:
                return due_s
            if not branch.is_lost:
                self._spoil(branch, Reason.STALE)
            return now_s + deadline_s / 4

        return watch

    def _asker(self, incoming: _Incoming, request: Request) -> Callable[[float], float]:
        frame = can.Message(
            arbitration_id=request.frame_id,
            is_extended_id=request.is_extended,
            is_remote_frame=request.is_remote,
            data=None if request.is_remote else request.data,
            dlc=incoming.message.message.length if request.is_remote else None,
        )
        next_s = time.monotonic()

        def ask(now_s: float) -> float:
            nonlocal next_s
            asked_s = incoming.asked_s
            if asked_s is not None and now_s >= asked_s + request.timeout_s:
                self._counters["timeouts"] += 1
                incoming.asked_s = None
                for branch in incoming.branches:
                    self._spoil(branch, Reason.TIMEOUT)
            if now_s >= next_s:
                if incoming.asked_s is None and self._put(frame):
                    self._counters["requests"] += 1
                    incoming.asked_s = now_s
                next_s = max(next_s + request.scan_s, now_s)
            if incoming.asked_s is None:
                return next_s
            return min(next_s, incoming.asked_s + request.timeout_s)

        return ask

    def _spoil(self, branch: _Branch, reason: str) -> None:
        was_lost, branch.is_lost, branch.data = branch.is_lost, True, None
        batch = branch.group.without_value(reason, time.time_ns(), time.monotonic())
        if self._emit is not None:
            self._emit(Batch(*batch[:5], ()) if was_lost and branch.values else batch)
        branch.values = batch.values
        device = branch.owner.message.device
        everything_is_lost = all(
            item.is_lost
            for incoming in self._all_incoming
            if incoming.message.device == device
            for item in incoming.branches
        )
        if everything_is_lost and self._devices[device]:
            self._devices[device] = False
            if self._report is not None:
                self._report(DeviceHealth(device, False, reason))


def _frame(message: Message, encoder: FrameEncoder, branch: Condition) -> can.Message:
    return can.Message(
        arbitration_id=message.frame_id,
        is_extended_id=message.is_extended,
        is_fd=message.is_fd,
        bitrate_switch=message.is_fd,
        data=encoder.frame(branch),
    )


def _read(branch: _Branch, data: bytes, time_ns: int, at_s: float) -> Batch:
    """Return what a frame says about a branch; a frame like the last one costs O(1)."""
    branch.seen_s = at_s
    if data == branch.data:
        return Batch(branch.group, time_ns, at_s, branch.values, branch.flaws, ())
    values, flaws = branch.decoder.decode(data)
    if branch.is_lost:
        changed: Sequence[int] = branch.group.everything
    elif not flaws and not branch.flaws:
        changed = list(compress(branch.group.everything, map(ne, values, branch.values)))
    else:
        old_values, old_flaws = branch.values, branch.flaws
        changed = [
            index
            for index, value in enumerate(values)
            if value != old_values[index] or flaws.get(index) != old_flaws.get(index)
        ]
    branch.data, branch.values, branch.flaws, branch.is_lost = data, values, flaws or NO_FLAWS, False
    return Batch(branch.group, time_ns, at_s, values, branch.flaws, changed)


def _file_descriptor(bus: can.BusABC) -> int | None:
    try:
        fd = bus.fileno()
    except (NotImplementedError, OSError, ValueError, AttributeError):
        return None
    return fd if fd >= 0 else None


def _add_reader(loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], None]) -> bool:
    try:
        loop.add_reader(fd, callback)
    except (NotImplementedError, OSError, ValueError):
        return False
    return True


def _remove_reader(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    try:
        loop.remove_reader(fd)
    except (NotImplementedError, OSError, ValueError):
        return


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    text = str(error) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in text:
        text = f"{text}: {cause.strerror}"
    return text.split("\n", 1)[0]
