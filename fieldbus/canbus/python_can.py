"""A bus over any interface of python-can but SocketCAN, with its faults contained.

Rules:

* Where the interface has a file descriptor the event loop waits on it; elsewhere a thread reads and
  hands over through a bounded queue. What does not fit is counted (`dropped`).
* Whatever a driver raises is a `LinkDownError`, in one line.
* An interface that is readable and has nothing, again and again and at once, is closed at its other end
  (`socketcand`).
* Frames are sent from a thread where the driver may block.
* `udp_multicast` hands us what we sent; that is recognised and left out.
* A driver's stamp is taken if it is on the wall clock at all, else the moment of reading.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import can

from fieldbus.canbus.bus import (
    BITRATE_SWITCH,
    ERROR,
    EXTENDED,
    EXTENDED_MASK,
    FD,
    FOREIGN_TIME,
    REMOTE,
    BusStatus,
    Cyclic,
    Frame,
    Options,
)
from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError

# What python-can would say is said better by the gateway, once.
logging.getLogger("can").setLevel(logging.CRITICAL)

MAX_PENDING_FRAMES = 10_000
_ECHO_S = 1.0
_EMPTY_READS = 1000
_EMPTY_S = 0.25
"""Readable and nothing to read, so often within so long: nobody but a closed connection does that."""
MAX_UNSENT_FRAMES = 64
_LONGEST_STAMP_ERROR_NS = 10_000_000_000
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


async def open_python_can(options: Options, clock: Clock = SYSTEM) -> PythonCanBus:
    """Open a bus.

    Args:
        options: for `can.Bus`.

    Raises:
        LinkDownError: it cannot be opened.
    """
    try:
        # Some drivers block while they open; none may hold up the others.
        bus = await _open(options)
    except (can.CanError, OSError, ValueError, TypeError, ImportError, AttributeError) as error:
        raise LinkDownError(reason_of(error)) from error
    except Exception as error:  # a driver of somebody else's may raise anything
        raise LinkDownError(f"{type(error).__name__}: {reason_of(error)}") from error
    _let_error_frames_through(bus)
    interface = options.get("interface")
    return PythonCanBus(
        bus,
        has_echo=interface == "udp_multicast",
        may_block=interface not in _NEVER_BLOCK,
        clock=clock,
    )


async def _open(options: Options) -> can.BusABC:
    opening = asyncio.get_running_loop().run_in_executor(None, lambda: can.Bus(**options))  # type: ignore[arg-type]
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_discard)
        raise


def _discard(opening: asyncio.Future[can.BusABC]) -> None:
    """Close a bus that was opened too late."""
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=opening.result().shutdown, daemon=True).start()


def _let_error_frames_through(bus: can.BusABC) -> None:
    """Have python-can's own filter, for drivers that have none, say nothing of error frames.

    Their identifier is a set of causes; it would take them for frames that nobody wants.
    """
    matches = bus._matches_filters  # noqa: SLF001 - nothing else tells the kinds of frames apart
    bus._matches_filters = lambda msg: msg.is_error_frame or matches(msg)  # type: ignore[method-assign]  # noqa: SLF001


_NEVER_BLOCK = ("virtual", "udp_multicast")
"""Interfaces that take or lose a frame at once."""


class PythonCanBus:
    """An open bus of python-can."""

    def __init__(
        self,
        bus: can.BusABC,
        *,
        has_echo: bool = False,
        may_block: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self.dropped = 0
        self._may_block = may_block
        self._unsent: queue.Queue[can.Message | None] = queue.Queue(MAX_UNSENT_FRAMES)
        self._sending: threading.Thread | None = None
        self._lost: Callable[[Exception], None] = _nobody_lost
        self._tells_state = False
        """Whether the driver has ever said that something is wrong: then it knows when nothing is."""
        self._bus: can.BusABC | None = bus
        self._has_echo = has_echo
        self._echoes: Counter[tuple[int, bytes]] = Counter()
        self._echo_clear_s = 0.0
        self._empty_reads = 0
        self._empty_since_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd: int | None = None
        self._thread: threading.Thread | None = None
        self._ready: Callable[[], None] = _nobody
        self._pending: deque[can.Message] = deque()

    def start(self, ready: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        """Begin to receive."""
        bus = self._bus
        if bus is None:
            raise LinkDownError("not open")
        loop = self._loop = asyncio.get_running_loop()
        self._ready, self._lost = ready, lost
        if self._may_block:
            self._sending = threading.Thread(
                target=self._send_all, args=(loop, bus), name="CAN sender", daemon=True
            )
            self._sending.start()
        fd = _file_descriptor(bus)
        if fd is not None and _add_reader(loop, fd, ready):
            self._fd = fd
            return
        self._thread = threading.Thread(
            target=self._read, args=(loop, bus, ready, lost), name="CAN reader", daemon=True
        )
        self._thread.start()

    def _read(
        self,
        loop: asyncio.AbstractEventLoop,
        bus: can.BusABC,
        ready: Callable[[], None],
        lost: Callable[[Exception], None],
    ) -> None:
        try:
            while self._bus is bus:
                message = bus.recv(0.25)
                if message is None:
                    continue
                if len(self._pending) >= MAX_PENDING_FRAMES:
                    self.dropped += 1
                    continue
                self._pending.append(message)
                if len(self._pending) == 1:
                    loop.call_soon_threadsafe(ready)
        except Exception as error:  # whatever a driver raises, the bus is lost with it
            if self._bus is bus and not loop.is_closed():
                loop.call_soon_threadsafe(lost, LinkDownError(reason_of(error)))

    def drain(self, limit: int) -> Sequence[Frame]:
        """Return frames that are there."""
        now_ns = self._clock.wall_ns()
        if self._thread is not None:
            pending = self._pending
            taken = [pending.popleft() for _ in range(min(limit, len(pending)))]
            if pending and self._loop is not None:
                self._loop.call_soon(self._ready)  # the thread only says it when the queue was empty
            return self._frames(taken, now_ns)
        return self._frames(self._poll(limit), now_ns)

    def _poll(self, limit: int) -> list[can.Message]:
        bus = self._bus
        if bus is None:
            return []
        taken: list[can.Message] = []
        try:
            while len(taken) < limit:
                message = bus.recv(0)
                if message is None:
                    break
                taken.append(message)
        except Exception as error:
            raise LinkDownError(reason_of(error)) from error
        if taken:
            self._empty_reads = 0
            return taken
        if not self._empty_reads:
            self._empty_since_s = self._clock.monotonic_s()
        self._empty_reads += 1
        if self._empty_reads >= _EMPTY_READS:
            # Acknowledgements of an adapter, and frames that a driver left out, are nothing to read too.
            if self._clock.monotonic_s() - self._empty_since_s < _EMPTY_S:
                raise LinkDownError("the interface was closed")
            self._empty_reads = 0
        return taken

    def _frames(self, messages: Sequence[can.Message], now_ns: int) -> list[Frame]:
        found = []
        for message in messages:
            can_id = message.arbitration_id & EXTENDED_MASK
            data = bytes(message.data)
            if message.is_extended_id:
                can_id |= EXTENDED
            if message.is_remote_frame:
                can_id |= REMOTE
                data = bytes(message.dlc)
            if message.is_error_frame:
                can_id = can_id & ~EXTENDED | ERROR
            elif self._echoes and self._is_echo(can_id, data):
                continue
            stamp_ns = int(message.timestamp * 1e9)
            is_sound = abs(now_ns - stamp_ns) < _LONGEST_STAMP_ERROR_NS
            flags = (FD if message.is_fd else 0) | (BITRATE_SWITCH if message.bitrate_switch else 0)
            flags |= FOREIGN_TIME
            found.append(Frame(can_id, data, stamp_ns if is_sound else now_ns, flags))
        return found

    def _is_echo(self, can_id: int, data: bytes) -> bool:
        key = (can_id, data)
        if self._echoes[key] > 0:
            self._echoes[key] -= 1
            return True
        return False

    def send(self, can_id: int, data: bytes, flags: int = 0) -> bool:
        """Hand a frame to the driver."""
        bus = self._bus
        if bus is None:
            return False
        is_remote = bool(can_id & REMOTE)
        message = can.Message(
            arbitration_id=can_id & EXTENDED_MASK,
            is_extended_id=bool(can_id & EXTENDED),
            is_remote_frame=is_remote,
            is_fd=bool(flags & FD),
            bitrate_switch=bool(flags & BITRATE_SWITCH),
            data=None if is_remote else data,
            dlc=len(data),
        )
        if self._sending is not None:
            try:
                self._unsent.put_nowait(message)
            except queue.Full:
                return False
            return True
        try:
            bus.send(message, timeout=0)
        except Exception as error:
            for cause in (error, error.__cause__, error.__context__):
                if isinstance(cause, OSError) and cause.errno in _GONE:
                    raise LinkDownError(reason_of(cause)) from error
            return False
        if self._has_echo:
            now_s = self._clock.monotonic_s()
            if now_s > self._echo_clear_s:
                self._echoes.clear()
                self._echo_clear_s = now_s + _ECHO_S
            self._echoes[can_id, bytes(data)] += 1
        return True

    def _send_all(self, loop: asyncio.AbstractEventLoop, bus: can.BusABC) -> None:
        """Send what waits, from a thread of its own: a driver may block for as long as it likes."""
        while (message := self._unsent.get()) is not None and self._bus is bus:
            try:
                bus.send(message, timeout=1.0)
            except Exception as error:  # any driver raises what it likes; what is not "gone" costs the frame
                for cause in (error, error.__cause__, error.__context__):
                    if isinstance(cause, OSError) and cause.errno in _GONE and not loop.is_closed():
                        loop.call_soon_threadsafe(self._lost, LinkDownError(reason_of(cause)))
                        return

    def repeat(self, can_id: int, frames: Sequence[bytes], period_s: float, flags: int = 0) -> Cyclic | None:
        """Return None: such an interface has no clock of its own that could be relied on."""
        return None

    def select(self, filters: Iterable[tuple[int, int]] | None) -> None:
        """Have the driver filter, if it can."""
        bus = self._bus
        if bus is None:
            return
        wanted: list[can.typechecking.CanFilter] | None = None
        if filters is not None:
            wanted = [
                {"can_id": can_id & EXTENDED_MASK, "can_mask": mask & EXTENDED_MASK,
                 "extended": bool(can_id & EXTENDED)}
                for can_id, mask in filters
            ]  # fmt: skip
        try:
            bus.set_filters(wanted)
        except Exception:  # noqa: S110 - a driver that cannot filter lets all through
            pass

    def status(self) -> BusStatus:
        """Return what python-can knows of the bus's state."""
        bus = self._bus
        try:
            state = None if bus is None else bus.state
        except Exception:  # a driver's question to its hardware may fail
            state = None
        if state in (can.BusState.PASSIVE, can.BusState.ERROR):
            self._tells_state = True
        # ACTIVE is also what drivers say that do not know.
        active = 0 if self._tells_state else None
        known = {can.BusState.ACTIVE: active, can.BusState.PASSIVE: 2, can.BusState.ERROR: 3}
        return BusStatus(state=None if state is None else known.get(state))

    async def restart(self) -> str | None:
        """Return that it cannot be done: most drivers do it by themselves."""
        return "this interface cannot be restarted from here"

    async def close(self) -> None:
        """Leave the bus."""
        bus, self._bus = self._bus, None
        if bus is None:
            return
        if self._fd is not None and self._loop is not None:
            _remove_reader(self._loop, self._fd)
            self._fd = None
        if self._sending is not None:
            while not self._unsent.empty():
                self._unsent.get_nowait()
            self._unsent.put_nowait(None)
            await asyncio.to_thread(self._sending.join, 1.0)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2.0)
        try:
            await asyncio.to_thread(bus.shutdown)
        except Exception:  # noqa: S110 - a driver that fails to close is closed for us
            pass
        self._pending.clear()


def _nobody_lost(_error: Exception) -> None:
    """Be told before anybody listens."""


def _nobody() -> None:
    """Be told before anybody listens."""


def reason_of(error: BaseException) -> str:
    """Return what an error says, in one line, beginning small."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    text = str(error) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in text:
        text = f"{text}: {cause.strerror}"
    return text.split("\n", 1)[0]


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
