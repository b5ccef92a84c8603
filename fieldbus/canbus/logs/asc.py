"""Lines of a text log as Vector's programs write it (ASC).

Layout: a header, then an event a line, with seconds since the start::

    date Fri Aug 17 02:14:44.318 pm 2012
    base hex  timestamps absolute
    Begin Triggerblock Fri Aug 17 02:14:44.318 pm 2012
       0.000850 1  7A1             Rx   d 8 11 22 33 44 55 66 77 88  Length = 243910 …
       0.000900 1  18FEF100x       Tx   d 2 01 02          extended
       0.001000 1  Status          Rx   d 1 05             symbolic: the name of a message
       0.001100 1  7A1             Rx   r 8                remote frame
       0.001200 1  ErrorFrame
       0.001300 CANFD 1 Rx 7A1 1 0 9 12 11 22 …            switch, error state, length code, length, data

Rules:

* With ``timestamps relative`` each line has the time since the one before, also those that are no frames.
  Times may be negative: of frames before a trigger.
* A length code above 8 of a classic frame means eight bytes.
* Only ``Rx`` and ``Tx`` are frames; ``TxRq`` only asks for one. All other events are counted.
* The date has no zone: the local time of this machine is taken, or the zone that is given.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, EXTENDED, FD, REMOTE
from fieldbus.canbus.logs.lines import (
    START_IS_0,
    LineError,
    Names,
    Zone,
    data_bytes,
    decimal_ns,
    identifier,
    moment_ns,
    whole,
)
from fieldbus.canbus.logs.logged import ERROR_STATE, FD_LENGTHS, MAX_DATA, MAX_FD_DATA, LoggedFrame

_SECOND_NS = 1_000_000_000
_EVENT = re.compile(r"\s*(-?\d{1,12}\.\d{1,18})\s+(\S+)\s*(.*)", re.ASCII | re.DOTALL)
_CLASSIC = re.compile(r"(\S+)\s+(Rx|Tx)\s+([dr])(?![^\s])\s*(.*)", re.ASCII | re.DOTALL)
_FD = re.compile(r"(\d{1,5})\s+(Rx|Tx)\s+(\S+)(.*)", re.ASCII | re.DOTALL)
_NUMBERS = {16: re.compile(r"[0-9A-Fa-f]+[xX]?", re.ASCII), 10: re.compile(r"\d+[xX]?", re.ASCII)}
_NAME = re.compile(r"[A-Za-z_]\w*(?:::\w+)*\Z", re.ASCII)
_DATE = re.compile(r"(?:date|begin\s+triggerblock)\s+\S+\s+(.+)", re.IGNORECASE)
_BASE = re.compile(r"base\s+(hex|dec)(?:\s+timestamps\s+(absolute|relative))?", re.IGNORECASE)
_MONTHS = {
    "jan": 1, "feb": 2, "mar": 3, "mär": 3, "apr": 4, "may": 5, "mai": 5, "jun": 6, "jul": 7, "aug": 8,
    "sep": 9, "oct": 10, "okt": 10, "nov": 11, "dec": 12, "dez": 12,
}  # fmt: skip
_DAY = re.compile(
    r"(\w{3,})\s+(\d{1,2})\s+(\d{1,2}):(\d{2}):(\d{2})(?:\.(\d{1,6}))?(?:\s+(am|pm))?\s+(\d{4})",
    re.IGNORECASE,
)
_HAS_FD_FORMAT = 0x1000
"""Of the flags behind the data of a CANFD event: without it the frame is a classic one."""
_IS_REMOTE = 0x10


class AscParser:
    """Reads a log."""

    def __init__(self, names: Names | None = None, zone: Zone = None) -> None:
        self.others = 0
        self._names = names or {}
        self._zone = zone
        self._base = 16
        self._is_relative = False
        self._start_ns = 0
        self._sum_ns = 0

    def parse(self, line: str) -> LoggedFrame | None:
        """Return the frame of a line; see `lines.Parser`."""
        match = _EVENT.match(line)
        if match is None:
            self._header(line.strip())
            return None
        stamp, channel, rest = match.groups()
        elapsed_ns = decimal_ns(stamp, _SECOND_NS)
        if self._is_relative:
            elapsed_ns = self._sum_ns = self._sum_ns + elapsed_ns
        time_ns = self._start_ns + elapsed_ns
        if channel == "CANFD":
            return self._fd(time_ns, rest)
        if channel.isdigit():
            return self._classic(time_ns, channel, rest)
        if channel.lower() != "start":  # of measurement
            self.others += 1
        return None

    def notes(self) -> Iterator[str]:
        """Return what is to be said of the times; see `lines.Parser`."""
        if not self._start_ns:
            yield START_IS_0

    def _header(self, line: str) -> None:
        if match := _BASE.match(line):
            self._base = 10 if match[1].lower() == "dec" else 16
            self._is_relative = (match[2] or "").lower() == "relative"
        elif match := _DATE.match(line):
            self._start_ns = self._date_ns(match[1])

    def _date_ns(self, text: str) -> int:
        match = _DAY.fullmatch(text.strip())
        if match is None or match[1][:3].lower() not in _MONTHS:
            raise LineError(f"{text[:40]!r} is not a date")
        hour = int(match[3])
        if match[7] is not None and hour <= 12:  # some write 13:00 pm
            hour = hour % 12 + (12 if match[7].lower() == "pm" else 0)
        try:
            at = datetime.datetime(  # noqa: DTZ001 - the file names no zone
                int(match[8]), _MONTHS[match[1][:3].lower()], int(match[2]),
                hour, int(match[4]), int(match[5]), int((match[6] or "").ljust(6, "0")),
            )  # fmt: skip
        except ValueError as error:
            raise LineError(f"{text[:40]!r} is not a date: {error}") from None
        return moment_ns(at, self._zone)

    def _id(self, text: str) -> int:
        """Return the identifier word of a number, or of the name of a message."""
        if _NUMBERS[self._base].fullmatch(text):
            # A name of hexadecimal digits is a number: nobody can tell them apart.
            is_extended = text[-1] in "xX"
            return identifier(whole(text.rstrip("xX"), self._base), is_extended=is_extended)
        if text in self._names:
            return self._names[text]
        if _NAME.match(text):
            raise LineError(f"{text[:40]!r} is the name of a message that the database does not have")
        raise LineError(f"{text[:40]!r} is not an identifier")

    def _classic(self, time_ns: int, channel: str, rest: str) -> LoggedFrame | None:
        if rest[:10].lower() == "errorframe":
            return LoggedFrame(time_ns, channel, ERROR, b"")
        match = _CLASSIC.match(rest)
        if match is None:
            self.others += 1
            return None
        number, direction, kind, more = match.groups()
        can_id, words = self._id(number), more.split()
        is_received = direction == "Rx"
        if kind == "r":
            length = whole(words[0], self._base) if words and words[0].isdigit() else 0
            data = bytes(min(length, MAX_DATA))
            return LoggedFrame(time_ns, channel, can_id | REMOTE, data, 0, is_received)
        if not words:
            raise LineError("its length is missing")
        length = whole(words[0], self._base)
        if length > 15:
            raise LineError(f"a length code of {length}")
        data = data_bytes(words[1:], min(length, MAX_DATA), self._base)
        return LoggedFrame(time_ns, channel, can_id, data, 0, is_received)

    def _fd(self, time_ns: int, rest: str) -> LoggedFrame | None:
        match = _FD.match(rest)
        if match is None:
            self.others += 1
            return None
        channel, direction, number, more = match.groups()
        if number[:10].lower() == "errorframe":
            return LoggedFrame(time_ns, channel, ERROR, b"")
        words = more.split()
        if words and not words[0].isdigit():
            words = words[1:]  # the name of the message, beside its number
        if len(words) < 4:
            raise LineError("too few columns")
        is_fast, is_passive, code = words[0] == "1", words[1] == "1", whole(words[2], 16)
        length = whole(words[3])
        if length > MAX_FD_DATA or code > 15:
            raise LineError(f"{length} data bytes, length code {code}")
        can_id = self._id(number)
        data = data_bytes(words[4:], length, self._base)
        tail = words[4 + length :]
        known = whole(tail[2], 16) if len(tail) > 2 and tail[2].isalnum() else _HAS_FD_FORMAT
        is_received = direction == "Rx"
        if known & _HAS_FD_FORMAT:
            flags = FD | (BITRATE_SWITCH if is_fast else 0) | (ERROR_STATE if is_passive else 0)
            return LoggedFrame(time_ns, channel, can_id, data, flags, is_received)
        if known & _IS_REMOTE:
            return LoggedFrame(
                time_ns, channel, can_id | REMOTE, bytes(FD_LENGTHS[min(code, 8)]), 0, is_received
            )
        if length > MAX_DATA:
            raise LineError(f"{length} data bytes")
        return LoggedFrame(time_ns, channel, can_id, data, 0, is_received)


def names_of(messages: Iterable[tuple[str, int, bool]]) -> Names:
    """Return identifier words by name: of name, number and whether it is extended."""
    found: dict[str, int] = {}
    for name, number, is_extended in messages:
        found.setdefault(name, number | (EXTENDED if is_extended else 0))
    return found
