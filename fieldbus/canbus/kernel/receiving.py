"""Take many frames from a raw CAN socket with few calls of the system.

Layout of what the kernel tells about a frame (the control messages, in this order, 64-bit machines)::

    length u64 | level s32 = SOL_SOCKET | type s32 = 35, time stamp | seconds s64 | nanoseconds s64
    length u64 | level s32 = SOL_SOCKET | type s32 = 40, overflow   | counter u32 | 4 bytes unused

The second is there once the socket has lost a frame.

Rules:

* `Many` is exact or is not made: where the C library has no `recvmmsg`, or words are not of 64 bits,
  `Single` takes one frame a call.
* Where frames come one by one, `Many` takes each with a plain call, which is quicker for one, and only asks
  whether more wait. From where some did until fewer than two came at once it takes all with one call.
* Both give the same frames, and what the counter of lost frames was when a frame came in.
* An error that waits in the socket (`OSError`) is raised before frames that wait: the kernel tells it
  first, and once. Who gets it gives the socket up, and with it what it holds.

Design: in one record of fixed size are a frame and its control messages, one after the other, so that
one precompiled `struct` reads all records of a call. That the sender was on this machine is told in the
flags of the message's header, which has its own array.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from fieldbus.canbus.bus import ERROR, FD, REMOTE, Frame
from fieldbus.canbus.kernel.frames import FD_BYTES, MAX_CLASSIC_DATA, MAX_FD_DATA
from fieldbus.clock import SYSTEM, Clock

SO_TIMESTAMPNS = 35
SO_RXQ_OVFL = 40

_FRAMES_PER_CALL = 64
_SOL_SOCKET = 1
_MSG_DONTROUTE = 0x4
"""In what came in: it was sent by this machine."""
_MSG_DONTWAIT = 0x40
_SECOND_NS = 1_000_000_000

_RECORD = struct.Struct("=IBBxx8s56x8xQqq24x")
_SECOND = struct.Struct("=QI")
_SECOND_AT = _RECORD.size - 16
_DATA_AT = 8
_HEADER = struct.Struct("=40xQI4xI4x")
_POINTERS = struct.Struct("=QQQQQQQQ")
_IOVEC = struct.Struct("=QQ")
_STAMP_BYTES = 32
_KINDS = struct.Struct("=ii")
_ONE = struct.Struct("=Q")
(_STAMP,) = _ONE.unpack(_KINDS.pack(_SOL_SOCKET, SO_TIMESTAMPNS))
(_OVERFLOW,) = _ONE.unpack(_KINDS.pack(_SOL_SOCKET, SO_RXQ_OVFL))

_CONTROL_BYTES = 128
_FRAME = struct.Struct("=IBB")
_COUNTER = struct.Struct("=I")
_STAMPS = {16: struct.Struct("=qq"), 8: struct.Struct("=ii")}
_new = tuple.__new__


class Receiver(Protocol):
    """A way to take frames."""

    overflow: int | None
    """The kernel's counter of lost frames when the last frame came in; None before any was lost."""

    def receive(self, limit: int) -> list[Frame]:
        """Return up to `limit` frames (1 or more), oldest first; fewer than that if there are no more.

        Raises:
            OSError: what the system says, but that there is nothing.
        """


def receiver_of(raw: socket.socket, clock: Clock = SYSTEM) -> Receiver:
    """Return the quickest way that this machine has."""
    call = find_recvmmsg()
    return Single(raw, clock) if call is None else Many(raw, call, clock)


def find_recvmmsg() -> Callable[..., int] | None:
    """Return the C library's `recvmmsg`; None where `Many` cannot use it."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or ctypes.sizeof(ctypes.c_long) != 8:
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).recvmmsg
    except (OSError, AttributeError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
    call.restype = ctypes.c_int
    found: Callable[..., int] = call
    return found


class Single:
    """A frame a call, with what Python itself has."""

    def __init__(self, raw: socket.socket, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self.overflow: int | None = None
        self._recvmsg = raw.recvmsg

    def receive(self, limit: int) -> list[Frame]:
        """Return up to `limit` frames."""
        frames: list[Frame] = []
        try:
            while len(frames) < limit:
                frames.append(self._one())
        except (BlockingIOError, InterruptedError):
            pass
        return frames

    def _one(self) -> Frame:
        wire, controls, message_flags, _ = self._recvmsg(FD_BYTES, _CONTROL_BYTES)
        can_id, length, fd_flags = _FRAME.unpack_from(wire)
        time_ns = None
        for level, kind, value in controls:
            if level != _SOL_SOCKET:
                continue
            stamp = _STAMPS.get(len(value))
            if kind == SO_TIMESTAMPNS and stamp is not None:
                seconds, nanoseconds = stamp.unpack(value)
                time_ns = seconds * _SECOND_NS + nanoseconds
            elif kind == SO_RXQ_OVFL and len(value) >= _COUNTER.size:
                (self.overflow,) = _COUNTER.unpack_from(value)
        flags = (message_flags & _MSG_DONTROUTE) << 1
        if len(wire) == FD_BYTES:
            flags |= FD | (fd_flags & 1) << 1
        is_remote = can_id & REMOTE and not can_id & ERROR
        data = bytes(length) if is_remote else wire[8 : 8 + length]
        return _new(Frame, (can_id, data, self._clock.wall_ns() if time_ns is None else time_ns, flags))


class Many(Single):
    """Up to 64 frames a call."""

    def __init__(self, raw: socket.socket, call: Callable[..., int], clock: Clock = SYSTEM) -> None:
        super().__init__(raw, clock)
        self._is_busy = False
        """Whether frames came faster than they were taken when it was last looked."""
        poll = select.poll()
        poll.register(raw, select.POLLIN)
        self._wait = poll.poll
        self._fd = raw.fileno()
        self._call = call
        count, size = _FRAMES_PER_CALL, _RECORD.size
        self._records = ctypes.create_string_buffer(count * size)
        self._vectors = ctypes.create_string_buffer(count * _IOVEC.size)
        self._headers = ctypes.create_string_buffer(count * _POINTERS.size)
        records, vectors = ctypes.addressof(self._records), ctypes.addressof(self._vectors)
        control_bytes = size - FD_BYTES
        for index in range(count):
            frame = records + index * size
            _IOVEC.pack_into(self._vectors, index * _IOVEC.size, frame, FD_BYTES)
            vector = vectors + index * _IOVEC.size
            header = (0, 0, vector, 1, frame + FD_BYTES, control_bytes, 0, 0)
            _POINTERS.pack_into(self._headers, index * _POINTERS.size, *header)
        # The kernel writes into each header how much it has used, so they are made anew each time.
        self._fresh = self._headers.raw
        self._headers_at = ctypes.addressof(self._headers)
        self._record_view = memoryview(self._records)
        self._header_view = memoryview(self._headers)

    def receive(self, limit: int) -> list[Frame]:
        """Return up to `limit` frames."""
        frames: list[Frame] = []
        if not self._is_busy:
            try:
                frames.append(self._one())
            except (BlockingIOError, InterruptedError):
                return frames
            # Who sees that a sender is silent has to know that nothing of it waits.
            if limit < 2 or not self._wait(0):
                return frames
        self._take(limit, frames)
        self._is_busy = len(frames) > 1
        return frames

    def _take(self, limit: int, frames: list[Frame]) -> None:
        """Add frames until they are `limit`, or there are no more."""
        while len(frames) < limit:
            wanted = min(_FRAMES_PER_CALL, limit - len(frames))
            ctypes.memmove(self._headers_at, self._fresh, wanted * _POINTERS.size)
            got = self._call(self._fd, self._headers_at, wanted, _MSG_DONTWAIT, None)
            if got < 0:
                code = ctypes.get_errno()
                error = OSError(code, "recvmmsg")
                # OSError makes itself the class that belongs to the number.
                if isinstance(error, BlockingIOError | InterruptedError):
                    break
                raise error
            self._read(got, frames)
            if got < wanted:
                break

    def _read(self, count: int, frames: list[Frame]) -> None:
        headers = _HEADER.iter_unpack(self._header_view[: count * _POINTERS.size])
        records = _RECORD.iter_unpack(self._record_view[: count * _RECORD.size])
        counter = None
        at = 0
        for (control_bytes, message_flags, size), (
            can_id, length, fd_flags, data, kind, seconds, nanoseconds,
        ) in zip(headers, records, strict=True):  # fmt: skip
            flags = (message_flags & _MSG_DONTROUTE) << 1
            if size == FD_BYTES:
                flags |= FD | (fd_flags & 1) << 1
                begin = at + _DATA_AT
                data = self._record_view[begin : begin + min(length, MAX_FD_DATA)].tobytes()  # noqa: PLW2901
            elif length < MAX_CLASSIC_DATA:
                data = data[:length]  # noqa: PLW2901
            if can_id & REMOTE and not can_id & ERROR:
                data = bytes(length)  # noqa: PLW2901 - whatever the sender's memory held
            time_ns = seconds * _SECOND_NS + nanoseconds if kind == _STAMP else self._clock.wall_ns()
            if control_bytes > _STAMP_BYTES:
                second_kind, lost = _SECOND.unpack_from(self._record_view, at + _SECOND_AT)
                if second_kind == _OVERFLOW:
                    counter = lost
            frames.append(_new(Frame, (can_id, data, time_ns, flags)))
            at += _RECORD.size
        if counter is not None:
            self.overflow = counter
