"""Lines of a trace as PEAK's programs write it, versions 1.0 to 2.1.

Layout of a line by version; times are milliseconds since the start, in parentheses what a version lacks::

    1.0  1)   1059.9            0300       7  00 00 00 00 04 00 00
    1.1  1)   1059.9    Rx      0300       7  00 00 00 00 04 00 00
    1.2  1)   1059.900 1 Rx     0300       7  00 00 00 00 04 00 00
    1.3  1)   1059.900 1 Rx     0300  -    7  00 00 00 00 04 00 00
    2.x  1    1059.900 DT 1     0300  Rx - 7  00 00 00 00 04 00 00     as ``;$COLUMNS`` says

An identifier of four digits is a standard one, of eight an extended one. ``RTR`` (in 2.x type ``RR``) is a
remote frame. ``Error`` (``ERROR`` in 1.0, ``ER`` in 2.x) is an error frame: its kind, direction, position and
counters. ``Warng`` (identifier FFFFFFFF in 1.0) and ``ST`` are states of the bus, ``EC`` counters, ``EV``
notes of people: no frames. ``;$STARTTIME`` is days since the end of 1899, without a zone; UTC is taken.

Rules:

* The version decides how a line is read; without one only numbered lines (``1)``) are, as version 1.0. A file
  with neither is no such trace, whatever its name says: nothing in it is a frame.

Sources: PEAK-System, PEAK CAN TRC File Format (2020).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, FD, REMOTE
from fieldbus.canbus.logs.lines import (
    START_IS_0,
    LineError,
    NotThisFormatError,
    Zone,
    data_bytes,
    decimal_ns,
    identifier,
    moment_ns,
    whole,
)
from fieldbus.canbus.logs.logged import ERROR_STATE, FD_LENGTHS, MAX_DATA, LoggedFrame

_NUMBERED = re.compile(r"\s*\d+\)\s", re.ASCII)
_VERSIONS = ("1.0", "1.1", "1.2", "1.3", "2.0", "2.1")
_MS_NS = 1_000_000
_HOPELESS_LINES = 1000
_NOT_PEAK = "no PEAK trace (no ;$FILEVERSION and no numbered lines)"
_BUS_INFO = "FFFFFFFF"
_FD_TYPES = {
    "FD": FD,
    "FB": FD | BITRATE_SWITCH,
    "FE": FD | BITRATE_SWITCH | ERROR_STATE,
    "BI": FD | ERROR_STATE,
}
_PROTOCOL_ERROR, _WITH_COUNTERS = 0x008, 0x200
_KINDS = {1: 0x01, 2: 0x02, 4: 0x04}
"""PEAK's kinds of error: a bit, the form, bit stuffing. 8 is another one."""
_WHILE_SENDING = 0x80


class TrcParser:
    """Reads a trace."""

    def __init__(self, zone: Zone = datetime.UTC) -> None:
        self.others = 0
        self._zone = zone
        self._version = ""
        self._start_ns = 0
        self._columns: dict[str, int] = {}
        self._strange = 0
        self._is_known = False

    def parse(self, line: str) -> LoggedFrame | None:
        """Return the frame of a line; see `lines.Parser`."""
        line = line.strip()
        if not line:
            return None
        if line.startswith(";"):
            if line.startswith(";$"):
                self._header(line)
            return None
        if not self._version:
            if not _NUMBERED.match(line):
                self._strange += 1
                if not self._is_known:
                    if self._strange >= _HOPELESS_LINES:
                        raise NotThisFormatError(_NOT_PEAK)
                    return None
                raise LineError("not a numbered line")
            self._is_known = True
        try:
            return self._version_2(line) if self._version.startswith("2") else self._version_1(line)
        except IndexError:
            raise LineError("too few columns") from None

    def notes(self) -> Iterator[str]:
        """Return what is to be said of the times; see `lines.Parser`."""
        if not self._version and not self._is_known and self._strange:
            raise NotThisFormatError(_NOT_PEAK)
        if not self._start_ns:
            yield START_IS_0

    def _header(self, line: str) -> None:
        key, _, value = line[2:].partition("=")
        key, value = key.strip().upper(), value.strip()
        if key == "FILEVERSION":
            if value not in _VERSIONS:
                raise NotThisFormatError(f"version {value[:20]} of a PEAK trace is not known")
            self._version = value
        elif key == "STARTTIME":
            try:
                days = Decimal(value)
                if not 0 <= days < 1_000_000:
                    raise LineError("a start time that is out of range")
                start = datetime.datetime(1899, 12, 30) + datetime.timedelta(  # noqa: DTZ001 - it has no zone
                    microseconds=round(days * 86_400_000_000)
                )
            except InvalidOperation:
                raise LineError(f"{value[:30]!r} is not a start time") from None
            self._start_ns = moment_ns(start, self._zone)
        elif key == "COLUMNS":
            self._columns = {name.strip(): index for index, name in enumerate(value.split(","))}

    # --- version 1

    def _version_1(self, line: str) -> LoggedFrame | None:
        words = line.split()
        if not words[0].endswith(")"):
            raise LineError("not a numbered line")
        time_ns = self._start_ns + decimal_ns(words[1], _MS_NS)
        at, channel, kind = 2, "1", "Rx"
        if self._version in ("1.2", "1.3"):
            channel = str(whole(words[at]))
            at += 1
        if self._version not in ("", "1.0"):
            kind = words[at]
            at += 1
        number, rest = words[at], words[at + 1 :]
        if self._version == "1.3":
            rest = rest[1:]
        if kind == "Error" or (kind == "Rx" and rest[1:2] == ["ERROR"]):
            at = 2 if rest[1:2] == ["ERROR"] else 1
            return _error_frame(time_ns, channel, whole(number, 16), rest[at:])
        if kind not in ("Rx", "Tx") or number.upper() == _BUS_INFO:
            self.others += 1
            return None
        can_id = identifier(whole(number, 16), is_extended=len(number) > 4)
        length = whole(rest[0])
        if length > 15:
            raise LineError(f"{length} data bytes")
        length = min(length, MAX_DATA)
        if rest[1:2] == ["RTR"]:
            return LoggedFrame(time_ns, channel, can_id | REMOTE, bytes(length), 0, kind == "Rx")
        return LoggedFrame(time_ns, channel, can_id, data_bytes(rest[1:], length), 0, kind == "Rx")

    # --- version 2

    def _version_2(self, line: str) -> LoggedFrame | None:
        columns = self._columns
        if not {"O", "T", "I"} <= columns.keys() or not {"L", "l"} & columns.keys():
            raise NotThisFormatError("a PEAK trace without ;$COLUMNS, or without the columns that are needed")
        words = line.split(maxsplit=len(columns) - 1)
        time_ns = self._start_ns + decimal_ns(words[columns["O"]], _MS_NS)
        kind = words[columns["T"]]
        if kind != "ER" and kind not in ("DT", "RR", *_FD_TYPES):
            self.others += 1
            return None
        channel = str(whole(words[columns["B"]])) if "B" in columns else "1"
        is_received = "d" not in columns or words[columns["d"]] == "Rx"
        data = words[columns["D"]].split() if len(words) > columns.get("D", len(words)) else []
        if kind == "ER":
            return _error_frame(time_ns, channel, whole(data[0], 16), data[1:])
        number = words[columns["I"]]
        can_id = identifier(whole(number, 16), is_extended=len(number) > 4)
        flags = _FD_TYPES.get(kind, 0)
        length = whole(words[columns["l" if "l" in columns else "L"]])
        if not flags and length > 15:
            raise LineError(f"a length code of {length}")
        if "l" not in columns:
            length = _fd_length(length, len(data)) if flags else min(length, MAX_DATA)
        elif length > (64 if flags else MAX_DATA):
            raise LineError(f"{length} data bytes")
        if kind == "RR":
            return LoggedFrame(time_ns, channel, can_id | REMOTE, bytes(length), 0, is_received)
        return LoggedFrame(time_ns, channel, can_id, data_bytes(data, length), flags, is_received)


def _fd_length(number: int, size: int) -> int:
    """Return the length of a CAN FD frame: some programs write it where the length code should be."""
    if number == size and number in FD_LENGTHS:
        return number
    if number <= 15:
        return FD_LENGTHS[number]
    if number not in FD_LENGTHS:
        raise LineError(f"a length code of {number}")
    return number


def _error_frame(time_ns: int, channel: str, kind: int, words: list[str]) -> LoggedFrame:
    """Return what PEAK says of an error as SocketCAN would: direction, position and counters follow."""
    said = [whole(word, 16) & 0xFF for word in words[:4]]
    said += [0] * (4 - len(said))
    is_received, _, rx_errors, tx_errors = said
    where = _KINDS.get(kind, 0) | (0 if is_received else _WHILE_SENDING)
    can_id = ERROR | _PROTOCOL_ERROR | (_WITH_COUNTERS if rx_errors or tx_errors else 0)
    return LoggedFrame(time_ns, channel, can_id, bytes([0, 0, where, 0, 0, 0, tx_errors, rx_errors]))
