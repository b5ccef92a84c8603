"""Frames that the kernel repeats by its own clock (SocketCAN's broadcast manager, BCM).

Layout of a command (linux/can/bcm.h), native words, filled up to a multiple of 8::

    opcode u32 | flags u32 | count u32 | interval 1: seconds long, microseconds long
    | interval 2: the same | identifier u32 | number of frames u32 | the frames

Rules:

* Frames are sent in turn, one a period, the first at once; at most 256, all classic or all CAN FD.
* The rhythm is the kernel's: a process that is stopped for a second, or busy, does not disturb it, nor
  does `Repetition.update`.
* A period is counted from when the kernel has sent the last frame, so it is longer than asked for by what
  that takes: frames do not bunch, and are not in step with any other clock.
* What is repeated is received by the raw sockets of this machine, ours too, flagged as `OWN`.
* It ends `DEAD_MAN_S` after the last `keep_alive`, so that a process that hangs does not repeat an old
  value for ever, and at once when the process ends. `keep_alive` after that begins it anew.
* An identifier is repeated once: another repetition of it takes the first one's place, which is over.
* A frame for which the interface has no room, or which it cannot send, is missing; the kernel does not tell.

Design: interval 1 with a count, and no interval 2, ends by itself. A command with SETTIMER and without
STARTTIMER sets the count and leaves the running timer alone; the kernel takes every command's flags for
those of the repetition, so TX_COUNTEVT is in all of them. Whether the count has run out is not guessed by
our clock but told by the kernel: it says TX_EXPIRED, which waits in the socket until `keep_alive` looks.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Sequence

from fieldbus.canbus.bus import FD
from fieldbus.canbus.kernel.frames import AF_CAN, CAN_BCM, down, pack_frame
from fieldbus.errors import LinkDownError

DEAD_MAN_S = 5.0
MAX_FRAMES = 256

_TX_SETUP = 1
_TX_DELETE = 2
_TX_EXPIRED = 9
_SETTIMER = 0x0001
_STARTTIMER = 0x0002
_TX_COUNTEVT = 0x0004
_TX_ANNOUNCE = 0x0008
_TX_RESET_MULTI_IDX = 0x0200
_CAN_FD_FRAME = 0x0800

_COMMAND = struct.Struct("@IIIllllII")
_PADDING = bytes(-_COMMAND.size % 8)
_SHORTEST_S = 1e-4
_LONGEST_S = 86_400.0
_MAX_EVENT = 4096


class Broadcaster:
    """The broadcast manager's socket for one interface."""

    def __init__(self, channel: str) -> None:
        self._repetitions: dict[tuple[int, bool], Repetition] = {}
        try:
            self._socket = socket.socket(AF_CAN, socket.SOCK_DGRAM, CAN_BCM)
        except OSError as error:
            raise down(error) from error
        try:
            self._socket.setblocking(False)
            self._socket.connect((channel,))
        except OSError as error:
            self._socket.close()
            raise down(error) from error

    def repeat(self, can_id: int, frames: Sequence[bytes], period_s: float, flags: int) -> Repetition | None:
        """Begin a repetition; None if there are more frames than the kernel takes.

        Raises:
            LinkDownError: the interface is gone.
            RefusedError: there is no such frame.
            ValueError: no frames, or no period.
        """
        if not frames:
            raise ValueError("no frames to repeat")
        if not _SHORTEST_S <= period_s <= _LONGEST_S:
            raise ValueError(f"a period of {period_s} s")
        if len(frames) > MAX_FRAMES:
            return None
        repetition = Repetition(self, can_id, frames, period_s, flags)
        before = self._repetitions.get(repetition.key)
        if before is not None:
            before.stop()
        repetition.begin()
        self._repetitions[repetition.key] = repetition
        return repetition

    def command(self, message: bytes) -> None:
        """Give the kernel a command.

        Raises:
            LinkDownError: the interface is gone.
        """
        try:
            self._socket.send(message)
        except OSError as error:
            raise down(error) from error

    def collect(self) -> None:
        """Have each repetition know whether it has run out.

        Raises:
            LinkDownError: the interface is gone.
        """
        while True:
            try:
                event = self._socket.recv(_MAX_EVENT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise down(error) from error
            if len(event) < _COMMAND.size:
                continue
            opcode, flags, *_, can_id, _ = _COMMAND.unpack_from(event)
            repetition = self._repetitions.get((can_id, bool(flags & _CAN_FD_FRAME)))
            if opcode == _TX_EXPIRED and repetition is not None:
                repetition.has_run_out = True

    def forget(self, repetition: Repetition) -> None:
        """Let go of one that is over."""
        if self._repetitions.get(repetition.key) is repetition:
            del self._repetitions[repetition.key]

    def close(self) -> None:
        """End all repetitions; never raises."""
        self._repetitions.clear()
        self._socket.close()


class Repetition:
    """A frame, or a sequence of frames, that is repeated."""

    def __init__(
        self, broadcaster: Broadcaster, can_id: int, frames: Sequence[bytes], period_s: float, flags: int
    ) -> None:
        self.key = can_id, bool(flags & FD)
        self.has_run_out = False
        """Whether the kernel has ended it for want of a sign of life."""
        self._broadcaster = broadcaster
        self._can_id = can_id
        self._flags = flags
        self._period_s = period_s
        self._is_over = False
        self._take(frames)

    def begin(self) -> None:
        """Send the first frame, and the others in their time.

        Raises:
            LinkDownError: the interface is gone.
        """
        self._setup(_SETTIMER | _STARTTIMER)

    def update(self, frames: Sequence[bytes], *, at_once: bool) -> None:
        """Have other data sent from now on, without touching the rhythm.

        A sequence goes on where it was; one with fewer frames than before begins with its first. One with
        more begins anew, its first frame at once and with it the rhythm, as the kernel has no room for more.

        Args:
            frames: data bytes, sent in turn; 1 to 256.
            at_once: whether one more frame goes out now.

        Raises:
            LinkDownError: the interface is gone.
            RefusedError: there is no such frame.
            ValueError: no frames, or too many.
        """
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise ValueError(f"{len(frames)} frames to repeat")
        if self._is_over:
            return
        before = self._count
        self._take(frames)
        if self._count > before:
            self._broadcaster.command(self._head(_TX_DELETE, 0, 0))
            self.begin()
            return
        is_fewer = self._count < before
        flags = (_TX_RESET_MULTI_IDX if is_fewer else 0) | (_TX_ANNOUNCE if at_once else 0)
        self._setup(flags)

    def keep_alive(self) -> None:
        """Say that we are still there.

        Raises:
            LinkDownError: the interface is gone.
        """
        if self._is_over:
            return
        self._broadcaster.collect()
        self._setup(_SETTIMER | (_STARTTIMER if self.has_run_out else 0))

    def stop(self) -> None:
        """End the repetition; never raises, as with the interface the repetition is gone."""
        if self._is_over:
            return
        self._is_over = True
        self._broadcaster.forget(self)
        try:
            self._broadcaster.command(self._head(_TX_DELETE, 0, 0))
        except LinkDownError:
            pass

    def _take(self, frames: Sequence[bytes]) -> None:
        self._frames = b"".join(pack_frame(self._can_id, data, self._flags) for data in frames)
        self._count = len(frames)

    def _setup(self, flags: int) -> None:
        if flags & _STARTTIMER:
            # What the kernel has said until now is of the timer's former life.
            self._broadcaster.collect()
            self.has_run_out = False
        self._broadcaster.command(self._head(_TX_SETUP, flags, self._count) + self._frames)

    def _head(self, opcode: int, flags: int, count: int) -> bytes:
        flags |= _TX_COUNTEVT | (_CAN_FD_FRAME if self._flags & FD else 0)
        # One more, because it is counted down when the timer was started too.
        lives = math.ceil(DEAD_MAN_S / self._period_s) + 1
        head = (opcode, flags, lives, *split(self._period_s), 0, 0, self._can_id, count)
        return _COMMAND.pack(*head) + _PADDING


def split(period_s: float) -> tuple[int, int]:
    """Return a period as whole seconds and the microseconds beside them."""
    return divmod(round(period_s * 1e6), 1_000_000)
