"""What the sockets of Linux's CAN have in common: numbers, the layout of frames, words for errors.

Layout (linux/can.h), in the machine's byte order::

    classic frame, 16 bytes     identifier u32 | length u8 | 3 bytes unused | data, 8 bytes
    CAN FD frame, 72 bytes      identifier u32 | length u8 | flags u8 | 2 bytes unused | data, 64 bytes

A CAN FD frame's flags: 0x01 bit rate switch, 0x04 says that it is one. Which of the two a frame is, is
told by its size alone: kernels before 6.1 do not set 0x04.

Design: the numbers are here because Python has them only where it was built with them, and several not
at all.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect_left

from fieldbus.canbus.bus import BITRATE_SWITCH, FD, REMOTE
from fieldbus.errors import LinkDownError, RefusedError

AF_CAN = 29
CAN_RAW = 1
CAN_BCM = 2
MAX_NAME_BYTES = 15
"""Of the name of an interface."""

CLASSIC_BYTES = 16
FD_BYTES = 72
MAX_CLASSIC_DATA = 8
MAX_FD_DATA = 64

_CLASSIC = struct.Struct("=IBxxx8s")
_FD_FRAME = struct.Struct("=IBBxx64s")
_WIRE_BITRATE_SWITCH = 0x01
_WIRE_FD = 0x04
_FD_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)


def pack_frame(can_id: int, data: bytes, flags: int) -> bytes:
    """Return a frame as the kernel takes it.

    Args:
        can_id: identifier with its flag bits.
        data: of a remote frame as many bytes as it asks for. A length that CAN FD has not is filled up
            with zeros to the next that it has, which is what a controller would do.
        flags: `FD`, `BITRATE_SWITCH`.

    Raises:
        RefusedError: there is no such frame.
    """
    length = len(data)
    if flags & FD:
        if length > MAX_FD_DATA:
            raise RefusedError(f"{length} data bytes; a CAN FD frame has at most {MAX_FD_DATA}")
        if can_id & REMOTE:
            raise RefusedError("CAN FD has no remote frames")
        length = _FD_LENGTHS[bisect_left(_FD_LENGTHS, length)]
        is_fast = _WIRE_BITRATE_SWITCH if flags & BITRATE_SWITCH else 0
        return _FD_FRAME.pack(can_id, length, _WIRE_FD | is_fast, data)
    if length > MAX_CLASSIC_DATA:
        raise RefusedError(f"{length} data bytes; a classic CAN frame has at most {MAX_CLASSIC_DATA}")
    return _CLASSIC.pack(can_id, length, data)


def words(error: OSError) -> str:
    """Return what an error of the system says: one line, beginning small."""
    if error.errno == errno.ENXIO:
        # What a socket says whose interface was taken away while somebody else got the news.
        return "no such device"
    text = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def down(error: OSError) -> LinkDownError:
    """Return a system's error as the one that ends a link."""
    return LinkDownError(words(error))
