"""Binary logs (BLF): reading what is not to be trusted, writing what survives a power cut.

Layout, little-endian throughout; from python-can's ``can/io/blf.py``, there is no public specification::

    file header   144 bytes: "LOGG", header size u32, application and version 8 x u8, file size u64,
                  uncompressed size u64, objects u32, objects read u32, start and stop SYSTEMTIME (local
                  time, as Vector's programs write it; milliseconds)
    object        "LOBJ", header size u16, header version u16, object size u32, type u32; up to 3 bytes of
                  padding behind it
    container     type 10: compression u16 (0 none, 2 zlib), 6 bytes, uncompressed size u32, 4 bytes, data.
                  Its contents are a stream of objects, which may go on in the next container.
    in it         header version 1: flags u32, 4 bytes, time i64; version 2: the same and 8 bytes more.
                  flags 1: time in 10 us; else in ns; since the start of the file, negative before a trigger

Objects that are frames: 1 and 86 CAN, 73 error frame, 100 and 101 CAN FD. All others are passed over.

Rules:

* No size that the file tells is believed further than `MAX_CONTAINER`; what is compressed is unpacked up
  to there and no further.
* An object has a length, so one that cannot be read costs itself, and a container that cannot be unpacked
  costs the objects in it. After it objects are looked for, and believed where the next one follows them. Only
  a fault in the frame of the file itself ends it, with a `BlfError` and its place.
* An identifier of more than 11 bits without the flag of 29 is taken for one of 29, and said.
* A container is written in one piece, so that a file that was not closed can be read up to the last one.

Design: python-can's reader gives times as floats (0.2 us off), unpacks without a limit and takes a file that
ends in mid-container for whole; its writer keeps back up to 128 KiB, without a start time in the header.
"""

from __future__ import annotations

import datetime
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, EXTENDED, EXTENDED_MASK, FD, REMOTE, STANDARD_MASK
from fieldbus.canbus.logs.lines import LineError, Zone, moment_ns
from fieldbus.canbus.logs.logged import ERROR_STATE, FD_LENGTHS, MAX_DATA, MAX_FD_DATA, LoggedFrame

MAX_CONTAINER = 16 * 1024 * 1024
"""Bytes of a container, packed and unpacked; usual are 128 KiB."""
_MAX_FRAME_OBJECT = 4096
_CONTAINER_BYTES = 128 * 1024

_FILE_HEADER = struct.Struct("<4sLBBBBBBBBQQLL8H8H")
_FILE_HEADER_SIZE = 144
_OBJECT = struct.Struct("<4sHHLL")
_STAMP_V1 = struct.Struct("<LHHq")
_STAMP_V2 = struct.Struct("<LBxHq8x")
_CONTAINER = struct.Struct("<H6xL4x")
_CAN = struct.Struct("<HBBL8s")
_CAN_ERROR = struct.Struct("<HHLBBBxLLH2x8s")
_CAN_FD = struct.Struct("<HBBLLBBB5x64s")
_CAN_FD_64 = struct.Struct("<BBBBLLLLLLLHBBL")

_TYPE_CAN, _TYPE_CONTAINER, _TYPE_ERROR, _TYPE_CAN_2, _TYPE_FD, _TYPE_FD_64 = 1, 10, 73, 86, 100, 101
_SENT, _REMOTE = 0x01, 0x80
_REPAIRED = 1 << 40
"""Of an identifier word on its way: who wrote it forgot the flag for 29 bits."""
_FD_64_REMOTE, _FD_64_FD, _FD_64_SWITCH, _FD_64_STATE = 0x0010, 0x1000, 0x2000, 0x4000


Bad = Callable[[str], None]
"""Told of what cannot be read, with its place, while the rest can."""


class BlfError(Exception):
    """The file cannot be read any further."""


class _ObjectError(Exception):
    """An object cannot be read."""


def read(file: BinaryIO, zone: Zone, bad: Bad, note: Bad) -> Iterator[LoggedFrame]:
    """Return the frames of a file; channels are numbers as the file has them, from 1.

    Args:
        file: at its beginning.
        zone: of the start time in its header.
        bad: told of objects and containers that cannot be read.
        note: told what else people should know.

    Raises:
        BlfError: what comes now cannot be read.
    """
    start = file.read(_FILE_HEADER.size)
    if len(start) < _FILE_HEADER.size or start[:4] != b"LOGG":
        raise BlfError("no BLF file")
    header = _FILE_HEADER.unpack(start)
    start_ns = _from_systemtime(header[14:22], zone)
    if not _FILE_HEADER.size <= header[1] <= MAX_CONTAINER:
        raise BlfError(f"a file header of {header[1]} bytes")
    place = header[1]
    file.read(place - _FILE_HEADER.size)
    objects = _Objects(start_ns, bad, note)
    while head := file.read(_OBJECT.size):
        if len(head) < _OBJECT.size:
            raise BlfError(f"cut off at byte {place}")
        signature, _, _, size, kind = _OBJECT.unpack(head)
        if signature != b"LOBJ":
            raise BlfError(f"no object at byte {place}")
        if not _OBJECT.size <= size <= MAX_CONTAINER:
            raise BlfError(f"an object of {size} bytes at byte {place}")
        body = file.read(size - _OBJECT.size)
        if len(body) < size - _OBJECT.size:
            raise BlfError(f"cut off in the object at byte {place}")
        file.read(size % 4)
        if kind == _TYPE_CONTAINER:
            try:
                data = _unpack(body)
            except (struct.error, zlib.error, _ObjectError) as error:
                bad(f"container at byte {place}: {error}")
                objects.interrupt()
            else:
                yield from objects.feed(data, place)
        place += size + size % 4


def _unpack(body: bytes) -> bytes:
    method, _ = _CONTAINER.unpack_from(body)
    packed = body[_CONTAINER.size :]
    if method == 0:
        return packed
    if method != 2:
        raise _ObjectError(f"compression method {method} is not known")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(packed, MAX_CONTAINER)
    if unpacker.unconsumed_tail:
        raise _ObjectError(f"unpacks to more than {MAX_CONTAINER // 1024 // 1024} MiB")
    if not unpacker.eof:
        raise _ObjectError("its packed data end too early")
    return data


class _Objects:
    """The stream of objects in the containers."""

    def __init__(self, start_ns: int, bad: Bad, note: Bad) -> None:
        self._start_ns = start_ns
        self._bad = bad
        self._note = note
        self._rest = b""
        self._skip = 0
        """How many bytes of an object of no interest are still to come."""
        self._is_lost = False
        """Whether it is not known where the next object begins."""
        self._is_noted = False

    def interrupt(self) -> None:
        """Forget the object that goes on in a container that cannot be read."""
        self._rest, self._skip, self._is_lost = b"", 0, True

    def feed(self, data: bytes, container: int) -> Iterator[LoggedFrame]:
        """Return the frames that end in the contents of a container, which begins at a byte of the file."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        data, self._rest = self._rest + data, b""
        place, end = 0, len(data)
        while True:
            found = self._next(data, place)
            if found < 0:
                if not self._is_lost and end - place >= 8:
                    self._bad(f"container at byte {container}: no object at byte {place} of it")
                    self._is_lost = True
                    continue
                self._rest = data[-_MAX_FRAME_OBJECT:] if self._is_lost else data[place:]
                return
            place = found
            if end - place < _OBJECT.size:
                self._rest = data[place:]
                return
            _, header_size, version, size, kind = _OBJECT.unpack_from(data, place)
            is_frame = kind in _READERS
            if not _OBJECT.size <= size <= (_MAX_FRAME_OBJECT if is_frame else MAX_CONTAINER):
                self._bad(f"container at byte {container}: an object of {size} bytes")
                self._is_lost = True
                place += 4
                continue
            if place + size > end:
                if is_frame:
                    self._rest = data[place:]
                else:
                    self._skip = place + size - end
                return
            if is_frame:
                try:
                    frame = self._frame(data, place, header_size, version, size, kind)
                except (struct.error, _ObjectError) as error:
                    self._bad(f"container at byte {container}: the object at byte {place} of it: {error}")
                else:
                    yield frame
            place += size

    def _next(self, data: bytes, place: int) -> int:
        """Return where the next object begins; below 0 if that is not to be seen."""
        if not self._is_lost:
            return data.find(b"LOBJ", place, place + 8)
        while (found := data.find(b"LOBJ", place)) >= 0:
            # Four letters may be data: an object is believed if another one follows it.
            if len(data) - found >= _OBJECT.size:
                _, header_size, version, size, _ = _OBJECT.unpack_from(data, found)
                is_sound = _OBJECT.size <= header_size <= size <= MAX_CONTAINER and version in (1, 2)
                if is_sound and data.find(b"LOBJ", found + size, found + size + 8) >= 0:
                    self._is_lost = False
                    return found
            place = found + 4
        return -1

    def _frame(
        self, data: bytes, place: int, header_size: int, version: int, size: int, kind: int
    ) -> LoggedFrame:
        if version not in (1, 2):
            raise _ObjectError(f"header version {version} is not known")
        stamp = _STAMP_V1 if version == 1 else _STAMP_V2
        flags, _, _, time = stamp.unpack_from(data, place + _OBJECT.size)
        time_ns = self._start_ns + time * (10_000 if flags == 1 else 1)
        body = data[place + max(header_size, _OBJECT.size + stamp.size) : place + size]
        frame = _READERS[kind](time_ns, body)
        if frame.can_id & _REPAIRED:
            frame = frame._replace(can_id=frame.can_id & ~_REPAIRED)
            if not self._is_noted:
                self._is_noted = True
                self._note(
                    "identifiers of more than 11 bits without the flag for 29: taken for extended ones"
                )
        return frame


def _word(number: int, *, is_remote: bool) -> int:
    can_id = number & EXTENDED_MASK
    if number & EXTENDED:
        can_id |= EXTENDED
    elif can_id > STANDARD_MASK:
        can_id |= EXTENDED | _REPAIRED
    return can_id | REMOTE if is_remote else can_id


def _read_can(time_ns: int, body: bytes) -> LoggedFrame:
    channel, flags, length, number, data = _CAN.unpack_from(body)
    length = min(length, MAX_DATA)  # classic frames may have a length code above 8, and 8 bytes
    is_remote = bool(flags & _REMOTE)
    data = bytes(length) if is_remote else data[:length]
    return LoggedFrame(time_ns, str(channel), _word(number, is_remote=is_remote), data, 0, not flags & _SENT)


def _read_error(time_ns: int, body: bytes) -> LoggedFrame:
    channel, _, _, _, _, length, _, number, _, data = _CAN_ERROR.unpack_from(body)
    return LoggedFrame(time_ns, str(channel), number & EXTENDED_MASK | ERROR, data[: min(length, MAX_DATA)])


def _read_fd(time_ns: int, body: bytes) -> LoggedFrame:
    channel, flags, code, number, _, _, fd_flags, valid, data = _CAN_FD.unpack_from(
        body.ljust(_CAN_FD.size, b"\0")
    )
    is_remote = bool(flags & _REMOTE)
    data = bytes(FD_LENGTHS[code & 15]) if is_remote else data[: min(valid, MAX_FD_DATA)]
    found = 0
    if fd_flags & 1:
        found = FD | (BITRATE_SWITCH if fd_flags & 2 else 0) | (ERROR_STATE if fd_flags & 4 else 0)
    can_id = _word(number, is_remote=is_remote)
    return LoggedFrame(time_ns, str(channel), can_id, data, found, not flags & _SENT)


def _read_fd_64(time_ns: int, body: bytes) -> LoggedFrame:
    members = _CAN_FD_64.unpack_from(body)
    channel, code, valid, number, fd_flags, direction = (members[index] for index in (0, 1, 2, 4, 6, 12))
    if valid > MAX_FD_DATA:
        raise _ObjectError(f"a frame with {valid} data bytes")
    is_remote = bool(fd_flags & _FD_64_REMOTE)
    # Fewer bytes than are valid may be stored; the rest are zeros.
    data = body[_CAN_FD_64.size : _CAN_FD_64.size + valid].ljust(valid, b"\0")
    if is_remote:
        data = bytes(FD_LENGTHS[code & 15])
    found = 0
    if fd_flags & _FD_64_FD:
        found = FD | (BITRATE_SWITCH if fd_flags & _FD_64_SWITCH else 0)
        found |= ERROR_STATE if fd_flags & _FD_64_STATE else 0
    return LoggedFrame(time_ns, str(channel), _word(number, is_remote=is_remote), data, found, not direction)


_READERS: dict[int, Callable[[int, bytes], LoggedFrame]] = {
    _TYPE_CAN: _read_can,
    _TYPE_CAN_2: _read_can,
    _TYPE_ERROR: _read_error,
    _TYPE_FD: _read_fd,
    _TYPE_FD_64: _read_fd_64,
}


def _from_systemtime(parts: tuple[int, ...], zone: Zone) -> int:
    year, month, _, day, hour, minute, second, millisecond = parts
    try:
        at = datetime.datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - the format names no zone
        return 0 if millisecond > 999 else moment_ns(at, zone) + millisecond * 1_000_000
    except (ValueError, LineError):
        return 0  # a log without a start time has zeros there


def _to_systemtime(time_ns: int) -> tuple[int, ...]:
    if time_ns <= 0:
        return (0,) * 8
    at = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000)  # noqa: DTZ006 - the format's is local time
    return (at.year, at.month, at.isoweekday() % 7, at.day, at.hour, at.minute, at.second,
            time_ns // 1_000_000 % 1000)  # fmt: skip


class BlfWriter:
    """Writes frames to a file that can be sought in."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start_ns: int | None = None
        self._stop_ns = 0
        self._pieces: list[bytes] = []
        self._pending = 0
        self._unpacked = _FILE_HEADER_SIZE
        self._count = 0
        self._write_header()

    def write(self, frame: LoggedFrame, channel: int) -> None:
        """Take a frame; a time before the first frame's becomes that."""
        if self._start_ns is None:
            self._start_ns = frame.time_ns // 1_000_000 * 1_000_000  # the header has milliseconds
        self._stop_ns = frame.time_ns
        flags = 0 if frame.is_received else _SENT
        number = frame.can_id & (EXTENDED_MASK | EXTENDED)
        if frame.can_id & REMOTE:
            flags |= _REMOTE
        if frame.can_id & ERROR:
            kind = _TYPE_ERROR
            body = _CAN_ERROR.pack(
                channel, 0, 0, 0, 0, len(frame.data), 0, number & EXTENDED_MASK, 0, frame.data
            )
        elif frame.flags & FD:
            kind = _TYPE_FD
            fd_flags = (
                1 | (2 if frame.flags & BITRATE_SWITCH else 0) | (4 if frame.flags & ERROR_STATE else 0)
            )
            code = next(index for index, size in enumerate(FD_LENGTHS) if size >= len(frame.data))
            body = _CAN_FD.pack(channel, flags, code, number, 0, 0, fd_flags, len(frame.data), frame.data)
        else:
            kind = _TYPE_CAN
            data = b"" if frame.can_id & REMOTE else frame.data
            body = _CAN.pack(channel, flags, len(frame.data), number, data)
        header_size = _OBJECT.size + _STAMP_V1.size
        size = header_size + len(body)
        self._pieces += (
            _OBJECT.pack(b"LOBJ", header_size, 1, size, kind),
            _STAMP_V1.pack(2, 0, 0, max(0, frame.time_ns - self._start_ns)),
            body.ljust(len(body) + size % 4, b"\0"),
        )
        self._pending += size + size % 4
        self._count += 1
        if self._pending >= _CONTAINER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand all frames to the operating system."""
        if not self._pieces:
            return
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._pending = 0
        packed = zlib.compress(data, 1)
        size = _OBJECT.size + _CONTAINER.size + len(packed)
        if self._unpacked == _FILE_HEADER_SIZE:
            self._write_header()
        self._file.write(
            _OBJECT.pack(b"LOBJ", _OBJECT.size, 1, size, _TYPE_CONTAINER)
            + _CONTAINER.pack(2, len(data))
            + packed
            + bytes(size % 4)
        )
        self._file.flush()
        self._unpacked += _OBJECT.size + _CONTAINER.size + len(data)

    def close(self) -> None:
        """Write what is left and the totals; the file stays open."""
        self.flush()
        self._write_header()
        self._file.flush()

    def _write_header(self) -> None:
        place = max(self._file.seek(0, 2), _FILE_HEADER_SIZE)
        self._file.seek(0)
        start_ns = self._start_ns or 0
        header = _FILE_HEADER.pack(
            b"LOGG", _FILE_HEADER_SIZE, 5, 0, 0, 0, 2, 6, 8, 1, place, self._unpacked, self._count, 0,
            *_to_systemtime(start_ns), *_to_systemtime(self._stop_ns if start_ns else 0),
        )  # fmt: skip
        self._file.write(header.ljust(_FILE_HEADER_SIZE, b"\0"))
        self._file.seek(0, 2)
