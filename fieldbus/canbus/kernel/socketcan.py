"""A bus of Linux's own CAN (SocketCAN), without a library in between.

Rules:

* Received + `dropped` = what came in and was selected, exactly: the kernel counts what did not fit in
  the socket's buffer. A frame that comes in brings the counter along; of the last frames of a burst
  nothing would be known until the next one comes, so `status` asks for the same counter. It has 32 bits,
  and a value that is older than the last one known counts nothing.
* Frames have the kernel's stamp, taken when they came in, on the wall clock.
* Error frames always come in, whatever is selected.
* CAN FD frames come in if the interface can have them, or if asked for.
* Where frames come fast they are not taken one by one, but all that came within `latency_s` together: none
  waits longer than that for who has the time to take it. A frame after a silence is taken at once, and
  whoever drains before that has all that came.
* ``send`` never blocks: a queue without room is False. What no frame of this interface can be is a
  `RefusedError` and harms nothing.
* An interface that goes down, or away, ends the bus: the kernel tells it once, either to the one that
  reads or to the one that sends, so it is remembered and every later call raises it too; what was in
  the buffer is lost. One that comes back under the same name is another one: open again.

Design: the interface goes by its number, which a new one of the same name does not get. A wake-up of the
event loop costs several times what a frame does. So the loop stops to wait on the socket while frames come
faster than it pays to, looks by the clock, and waits again once a look has found next to nothing: what
drivers of network cards do. Stamps are the kernel's, so that nothing that goes by time notices.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterable, Sequence

from fieldbus.canbus.bus import FD, BusStatus, Cyclic, Frame
from fieldbus.canbus.kernel import netlink
from fieldbus.canbus.kernel.broadcast import Broadcaster
from fieldbus.canbus.kernel.filters import merge
from fieldbus.canbus.kernel.frames import (
    AF_CAN,
    CAN_RAW,
    CLASSIC_BYTES,
    FD_BYTES,
    MAX_NAME_BYTES,
    down,
    pack_frame,
)
from fieldbus.canbus.kernel.receiving import SO_RXQ_OVFL, SO_TIMESTAMPNS, receiver_of
from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError, RefusedError

RECEIVE_BUFFER = 4 * 1024 * 1024
"""Holds some 11 000 frames: more than a second of full frames at 1 Mbit/s."""

LATENCY_S = 0.002
"""A fifth of the shortest cycle that is usual on a bus, and no more than a system that is no real-time one
takes for itself now and then; in it 1 Mbit/s brings some 17 frames."""
_WAKE_UPS = 8
"""So many, one by one, tell how fast frames come."""
_FRAMES_PER_LOOK = 4
"""From so many on a look by the clock pays: after a longer sleep it takes as much as three wake-ups …"""
_FEWEST_PER_LOOK = 2
"""… and with fewer than so many it does not any more."""

_SOL_SOCKET = 1
_SO_ERROR = 4
_SO_RCVBUF = 8
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
_MEMINFO_DROPS = 8

_SOL_CAN_RAW = 101
_CAN_RAW_FILTER = 1
_CAN_RAW_ERR_FILTER = 2
_CAN_RAW_FD_FRAMES = 5
_ALL_ERRORS = struct.pack("=I", 0x1FFF_FFFF)
_FILTER = struct.Struct("=II")
_EVERYTHING = [(0, 0)]

_NO_ROOM = {errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM, errno.EINTR}
_NOT_FOR_THIS_INTERFACE = {errno.EINVAL, errno.EMSGSIZE}


async def open_socketcan(
    channel: str,
    *,
    fd: bool = False,
    receive_buffer: int = RECEIVE_BUFFER,
    latency_s: float = LATENCY_S,
    clock: Clock = SYSTEM,
) -> SocketCanBus:
    """Open a bus.

    Args:
        channel: name of the interface, such as ``can0``.
        fd: whether CAN FD frames are wanted even if the interface does not say that it has them.
        receive_buffer: bytes for frames that wait for us; what the machine allows, if that is less.
        latency_s: how long a frame may wait so that it is taken together with others; 0 for not at all.
        clock: the gateway's.

    Raises:
        LinkDownError: there is no such interface, it is down, or this machine has no SocketCAN.
    """
    # Somebody who sets up an interface right now holds a lock that we may have to wait for.
    opening = asyncio.get_running_loop().run_in_executor(
        None, _open, channel, fd, receive_buffer, latency_s, clock
    )
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_discard)
        raise


def _open(channel: str, fd: bool, receive_buffer: int, latency_s: float, clock: Clock) -> SocketCanBus:
    if not hasattr(socket, "AF_CAN"):
        raise LinkDownError("this system has no SocketCAN")
    # An empty name would mean all interfaces.
    if not channel or "\0" in channel or len(channel.encode()) > MAX_NAME_BYTES:
        raise LinkDownError(f"'{channel}' cannot be the name of an interface")
    try:
        raw = socket.socket(AF_CAN, socket.SOCK_RAW, CAN_RAW)
    except OSError as error:
        raise LinkDownError(f"this machine's kernel has no CAN: {down(error)}") from error
    try:
        index = socket.if_nametoindex(channel)
        link = netlink.link_of(index)
        raw.setblocking(False)
        _enlarge(raw, receive_buffer)
        for option in (SO_TIMESTAMPNS, SO_RXQ_OVFL):
            raw.setsockopt(_SOL_SOCKET, option, 1)
        raw.setsockopt(_SOL_CAN_RAW, _CAN_RAW_ERR_FILTER, _ALL_ERRORS)
        if fd or (link is not None and link.mtu == FD_BYTES):
            raw.setsockopt(_SOL_CAN_RAW, _CAN_RAW_FD_FRAMES, 1)
        raw.bind((channel,))
        # Binding to an interface that is down succeeds and leaves this error.
        code = raw.getsockopt(_SOL_SOCKET, _SO_ERROR)
        if code:
            raise down(OSError(code, ""))
    except OSError as error:
        raw.close()
        raise LinkDownError("no such device" if error.errno is None else str(down(error))) from error
    except LinkDownError:
        raw.close()
        raise
    takes_fd = link is None or link.mtu != CLASSIC_BYTES
    return SocketCanBus(raw, channel, index, takes_fd=takes_fd, latency_s=latency_s, clock=clock)


def _discard(opened: asyncio.Future[SocketCanBus]) -> None:
    """Close what nobody waits for any more."""
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close_now()


def _enlarge(raw: socket.socket, receive_buffer: int) -> None:
    for option in (_SO_RCVBUFFORCE, _SO_RCVBUF):
        try:
            raw.setsockopt(_SOL_SOCKET, option, receive_buffer)
        except OSError:
            continue  # beyond the machine's limit only with CAP_NET_ADMIN
        return


class SocketCanBus:
    """An open bus."""

    def __init__(
        self,
        raw: socket.socket,
        channel: str,
        index: int,
        *,
        takes_fd: bool = True,
        latency_s: float = LATENCY_S,
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self.dropped = 0
        self._latency_s = latency_s
        self._ready: Callable[[], None] = _nobody
        self._timer: asyncio.TimerHandle | None = None
        """Set while frames are looked for by the clock …"""
        self._found = 0
        """… with how many were taken since the last look."""
        self._is_full = False
        """Whether the last drain left perhaps some."""
        self._wake_ups = 0
        self._wake_ups_since_s = 0.0
        self._raw = raw
        self._channel = channel
        self._index = index
        self._takes_fd = takes_fd
        self._receiver = receiver_of(raw, clock)
        self._overflow = 0
        self._broadcaster: Broadcaster | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost: Callable[[Exception], None] | None = None
        self._end: LinkDownError | None = None

    def start(self, ready: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        """Begin to receive; `ready` is called again as long as frames wait.

        `lost` is called once the bus is gone, whichever call has found out and raised it.
        """
        self._check()
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._ready = ready
        self._loop.add_reader(self._raw.fileno(), self._wake if self._latency_s else ready)

    def _wake(self) -> None:
        """Have taken what has come; look by the clock from now on if that pays."""
        self._ready()
        loop = self._loop
        if self._is_full or loop is None:
            return
        self._wake_ups += 1
        if self._wake_ups < _WAKE_UPS:
            return
        now_s = self._clock.monotonic_s()
        lasted_s, self._wake_ups_since_s, self._wake_ups = now_s - self._wake_ups_since_s, now_s, 0
        if lasted_s * _FRAMES_PER_LOOK <= _WAKE_UPS * self._latency_s and self._end is None:
            loop.remove_reader(self._raw.fileno())
            self._found = 0
            self._timer = loop.call_later(self._latency_s, self._look)

    def _look(self) -> None:
        """Have taken what has come by now; wait for frames again if nothing has."""
        self._timer = None
        self._ready()
        loop = self._loop
        if loop is None or self._end is not None:
            return
        found, self._found = self._found, 0
        if found >= _FEWEST_PER_LOOK or self._is_full:
            delay_s = 0.0 if self._is_full else self._latency_s
            self._timer = loop.call_later(delay_s, self._look)
        else:
            loop.add_reader(self._raw.fileno(), self._wake)

    def drain(self, limit: int) -> Sequence[Frame]:
        """Return up to `limit` frames that are there, oldest first."""
        self._check()
        try:
            frames = self._receiver.receive(limit)
        except OSError as error:
            raise self._ended(error) from error
        self._found += len(frames)
        self._is_full = len(frames) >= limit
        overflow = self._receiver.overflow
        if overflow is not None and overflow != self._overflow:
            self._count(overflow)
        return frames

    def send(self, can_id: int, data: bytes, flags: int = 0) -> bool:
        """Hand a frame to the kernel; False if the queue of the interface is full."""
        self._check()
        frame = pack_frame(can_id, data, flags)
        try:
            self._raw.send(frame)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False
            if error.errno in _NOT_FOR_THIS_INTERFACE:
                what = "CAN FD" if len(frame) == FD_BYTES else "such"
                raise RefusedError(f"{self._channel} takes no {what} frames") from error
            raise self._ended(error) from error
        return True

    def repeat(self, can_id: int, frames: Sequence[bytes], period_s: float, flags: int = 0) -> Cyclic | None:
        """Have frames repeated by the kernel, the first at once; None if they are too many for it."""
        self._check()
        if flags & FD and not self._takes_fd:
            # The kernel would accept it and send nothing.
            raise RefusedError(f"{self._channel} takes no CAN FD frames")
        try:
            if self._broadcaster is None:
                self._broadcaster = Broadcaster(self._channel)
            return self._broadcaster.repeat(can_id, frames, period_s, flags)
        except LinkDownError as error:
            self._tell(error)
            raise

    def select(self, filters: Iterable[tuple[int, int]] | None) -> None:
        """Receive only frames for which ``can_id & mask == id & mask`` for one (id, mask); None for all.

        More than 512 are joined to fewer that let some others through. No filter at all lets nothing
        through but error frames.
        """
        self._check()
        wanted = _EVERYTHING if filters is None else merge(filters)
        packed = b"".join(_FILTER.pack(*item) for item in wanted)
        try:
            self._raw.setsockopt(_SOL_CAN_RAW, _CAN_RAW_FILTER, packed)
        except OSError as error:
            raise self._ended(error) from error

    def status(self) -> BusStatus:
        """Return the bus's health as of now, and bring `dropped` up to now."""
        if self._end is None:
            try:
                info = self._raw.getsockopt(_SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
                self._count(_MEMINFO.unpack(info)[_MEMINFO_DROPS])
            except (OSError, struct.error):  # before Linux 4.12
                pass
        link = netlink.link_of(self._index)
        if link is None:
            return BusStatus()
        # A virtual interface counts each frame as sent and as received.
        is_loop = link.kind == "vcan"
        return BusStatus(
            state=link.state,
            tx_errors=link.tx_errors,
            rx_errors=link.rx_errors,
            bitrate=link.bitrate,
            frames=_total(link.tx_packets, 0 if is_loop else link.rx_packets),
            data_bytes=_total(link.tx_bytes, 0 if is_loop else link.rx_bytes),
        )

    async def restart(self) -> str | None:
        """Bring a controller that is off back; return why that cannot be done, or None."""
        # The driver may have to talk to its hardware, over SPI or USB.
        return await asyncio.to_thread(netlink.restart, self._index)

    async def close(self) -> None:
        """Leave the bus; ends what `repeat` began."""
        self.close_now()

    def close_now(self) -> None:
        """Leave the bus, for who cannot wait."""
        self._end = self._end or LinkDownError("closed")
        self._lost = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is not None:
            try:
                self._loop.remove_reader(self._raw.fileno())
            except (OSError, ValueError, RuntimeError):  # closed already, or the loop is
                pass
            self._loop = None
        if self._broadcaster is not None:
            self._broadcaster.close()
        self._raw.close()

    def _check(self) -> None:
        if self._end is not None:
            raise LinkDownError(str(self._end))

    def _ended(self, error: OSError) -> LinkDownError:
        end = down(error)
        self._tell(end)
        return end

    def _tell(self, end: LinkDownError) -> None:
        if self._end is None:
            self._end = end
            if self._loop is not None:
                self._loop.call_soon(self._announce, end)

    def _announce(self, end: LinkDownError) -> None:
        if self._lost is not None:
            self._lost(end)

    def _count(self, overflow: int) -> None:
        """Take a reading of the kernel's counter, of whatever age."""
        lost = (overflow - self._overflow) & 0xFFFF_FFFF
        if lost < 0x8000_0000:
            self.dropped += lost
            self._overflow = overflow


def _nobody() -> None:
    """Be told before anybody listens."""


def _total(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
