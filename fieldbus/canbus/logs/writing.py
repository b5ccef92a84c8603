"""Writing log files; `logs` says which there are.

Layout of an ASC file: when it began (local time, English names, milliseconds), then a line a frame with
seconds since that moment, channels as numbers from 1::

    date Fri Aug 17 02:14:44.318 pm 2012
    base hex  timestamps absolute
    internal events logged
    Begin Triggerblock Fri Aug 17 02:14:44.318 pm 2012
       0.000000 Start of measurement
       0.000850 1  7A1             Rx   d 8 11 22 33 44 55 66 77 88

Rules:

* A file that exists is not overwritten unless that is wanted.
* `flush` hands everything to the operating system: a recorder that calls it each second and is killed
  leaves a file that can be read up to there.
* Where a format has numbers, a channel named ``can2`` is 3 and one named ``2`` is 2; another gets the lowest
  number that is free.

Design: python-can's ASC writer puts a start of 44.005 s down as ``44.5`` and drops what is below its
milliseconds from all times, so it is not used.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, EXTENDED, EXTENDED_MASK, FD, REMOTE
from fieldbus.canbus.logs.blf import BlfWriter
from fieldbus.canbus.logs.candump import format_line
from fieldbus.canbus.logs.logged import ERROR_STATE, FD_LENGTHS, LogError, LoggedFrame
from fieldbus.errors import os_reason

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LAST_CHANNEL = 65_535


class _Format(Protocol):
    def write(self, frame: LoggedFrame, channel: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class LogWriter:
    """A log that is being written."""

    def __init__(self, path: Path, *, overwrites: bool = False) -> None:
        """Open the file; its suffix says the format.

        Raises:
            LogError: the suffix is not known, the file is there already, or it cannot be made.
        """
        self.path = path
        self.frames = 0
        make = _FORMATS.get(path.suffix.lower())
        if make is None:
            raise LogError(path, f"'{path.suffix}' cannot be written; known are {', '.join(_FORMATS)}")
        try:
            self._file = path.open("w+b" if overwrites else "x+b")
            self._format = make(self._file)
        except FileExistsError:
            raise LogError(path, "is there already") from None
        except OSError as error:
            raise LogError(path, os_reason(error)) from error
        self._channels: dict[str, int] = {}

    def write(self, frame: LoggedFrame) -> None:
        """Write a frame.

        Raises:
            LogError: the file cannot be written.
        """
        if self._file.closed:
            raise LogError(self.path, "is closed")
        channel = self._channels.get(frame.channel)
        if channel is None:
            channel = self._channels[frame.channel] = self._number(frame.channel)
        try:
            self._format.write(frame, channel)
        except OSError as error:
            raise LogError(self.path, os_reason(error)) from error
        self.frames += 1

    def flush(self) -> None:
        """Hand all that was written to the operating system.

        Raises:
            LogError: it does not take it.
        """
        try:
            self._format.flush()
        except OSError as error:
            raise LogError(self.path, os_reason(error)) from error

    def close(self) -> None:
        """End the file.

        Raises:
            LogError: the rest could not be written.
        """
        if self._file.closed:
            return
        try:
            try:
                self._format.close()
            finally:
                self._file.close()
        except OSError as error:
            raise LogError(self.path, os_reason(error)) from error

    def _number(self, channel: str) -> int:
        taken = set(self._channels.values())
        match = re.search(r"[0-9]{1,4}\Z", channel)
        if match is not None:
            number = int(match[0]) + (0 if match[0] == channel else 1)
            if number not in taken:
                return number
        return next((number for number in range(1, _LAST_CHANNEL) if number not in taken), _LAST_CHANNEL)


class _Candump:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, frame: LoggedFrame, channel: int) -> None:
        self._file.write(format_line(frame).encode("ascii", "replace"))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()


class _Asc:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start_ns: int | None = None

    def write(self, frame: LoggedFrame, channel: int) -> None:
        if self._start_ns is None:
            self._begin(frame.time_ns)
        elapsed_ns = max(0, frame.time_ns - (self._start_ns or 0))
        seconds, rest = divmod(elapsed_ns // 1000, 1_000_000)
        self._put(f"{seconds:4d}.{rest:06d} {_asc_event(frame, channel)}")

    def _begin(self, time_ns: int) -> None:
        self._start_ns = time_ns // 1_000_000 * 1_000_000
        date = _asc_date(self._start_ns)
        self._put(f"date {date}")
        self._put("base hex  timestamps absolute")
        self._put("internal events logged")
        self._put(f"Begin Triggerblock {date}")
        self._put("   0.000000 Start of measurement")

    def _put(self, line: str) -> None:
        self._file.write(line.encode("ascii") + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if self._start_ns is None:
            self._begin(0)
        self._put("End TriggerBlock")
        self._file.flush()


def _asc_date(time_ns: int) -> str:
    at = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000)  # noqa: DTZ006 - the format's is local time
    half = "am" if at.hour < 12 else "pm"
    return (
        f"{_DAYS[at.weekday()]} {_MONTHS[at.month - 1]} {at.day:02d} {(at.hour - 1) % 12 + 1:02d}:"
        f"{at.minute:02d}:{at.second:02d}.{time_ns // 1_000_000 % 1000:03d} {half} {at.year}"
    )


def _asc_event(frame: LoggedFrame, channel: int) -> str:
    can_id, data = frame.can_id, frame.data
    if can_id & ERROR:
        return f"{channel}  ErrorFrame"
    number = f"{can_id & EXTENDED_MASK:X}{'x' if can_id & EXTENDED else ''}"
    direction = "Rx" if frame.is_received else "Tx"
    if frame.flags & FD:
        is_fast, is_passive = bool(frame.flags & BITRATE_SWITCH), bool(frame.flags & ERROR_STATE)
        code = next(index for index, size in enumerate(FD_LENGTHS) if size >= len(data))
        unknown = "0".rjust(8)
        flags = 1 << 12 | is_fast << 13 | is_passive << 14
        return (
            f"CANFD {channel:>3} {direction:<4} {number:>8}  {'':>32} {is_fast:d} {is_passive:d} {code:x} "
            f"{len(data):>2} {data.hex(' ').upper()} {unknown} {0:>4} {flags:>8X} " + " ".join([unknown] * 5)
        )
    if can_id & REMOTE:
        return f"{channel}  {number:<15} {direction:<4} r {len(data):x}"
    return f"{channel}  {number:<15} {direction:<4} d {len(data):x} {data.hex(' ').upper()}".rstrip()


_FORMATS: Mapping[str, Callable[[BinaryIO], _Format]] = {".log": _Candump, ".asc": _Asc, ".blf": BlfWriter}
WRITABLE = tuple(_FORMATS)
"""Suffixes of logs that can be written."""
