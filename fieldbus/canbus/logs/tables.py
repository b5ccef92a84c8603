"""Lines of logs that are tables, or nearly: python-can's CSV, SavvyCAN's CSV (GVRET), OVMS's CRTD.

Layout::

    timestamp,arbitration_id,extended,remote,error,dlc,data            python-can: seconds, data in base64
    1345212884.318850,0x7a1,0,0,0,8,ESIzRFVmd4g=

    Time Stamp,ID,Extended,Dir,Bus,LEN,D1,D2,D3,D4,D5,D6,D7,D8         SavvyCAN: microseconds; older files
    1000000,000007A1,false,Rx,0,2,11,22,                               have no ``Dir``

    1600000000.000000 CXX OVMS CRTD                                             CRTD: seconds, a comment
    1600000001.000000 1R11 7A1 11 22                                            bus 1, received, 11 bits

Rules:

* The first line of a CSV file says what its columns are; a file without that line is none of these.
* Times of SavvyCAN may be negative, or count from when the adapter was switched on.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from fieldbus.canbus.bus import ERROR, EXTENDED_MASK, FD, REMOTE
from fieldbus.canbus.logs.lines import (
    EARLIEST_NS,
    START_IS_0,
    LineError,
    NotThisFormatError,
    data_bytes,
    decimal_ns,
    identifier,
    whole,
)
from fieldbus.canbus.logs.logged import MAX_DATA, MAX_FD_DATA, LoggedFrame

_SECOND_NS = 1_000_000_000
_PYTHON_CAN_COLUMNS = 7
_CRTD = re.compile(r"\s*(\d{1,12}\.\d{1,9})\s+(\d{0,3})([A-Z]\w{2})(?:\s+(.*))?", re.ASCII | re.DOTALL)
_CRTD_FRAMES = {"R11": (False, True), "R29": (True, True), "T11": (False, False), "T29": (True, False)}
"""Whether it is extended, and whether it was received."""


class CsvParser:
    """Reads a CSV file of python-can or of SavvyCAN."""

    def __init__(self) -> None:
        self.others = 0
        self._columns: dict[str, int] | None = None
        self._is_gvret = False
        self._earliest_ns: int | None = None

    def parse(self, line: str) -> LoggedFrame | None:
        """Return the frame of a line; see `lines.Parser`."""
        words = [word.strip() for word in line.split(",")]
        if self._columns is None:
            if line.strip():
                self._begin(words)
            return None
        if words == [""] or words[0].startswith("#"):
            return None
        try:
            frame = self._gvret(words, self._columns) if self._is_gvret else _python_can(words)
        except IndexError:
            raise LineError("too few columns") from None
        if self._earliest_ns is None or frame.time_ns < self._earliest_ns:
            self._earliest_ns = frame.time_ns
        return frame

    def notes(self) -> Iterator[str]:
        """Return what is to be said of the times; see `lines.Parser`."""
        if self._is_gvret and self._earliest_ns is not None and self._earliest_ns < EARLIEST_NS:
            yield START_IS_0

    def _begin(self, words: list[str]) -> None:
        columns = {word.lower(): index for index, word in enumerate(words) if word}
        self._is_gvret = {"time stamp", "id", "extended", "len"} <= columns.keys()
        if not self._is_gvret and not {"timestamp", "arbitration_id"} <= columns.keys():
            raise NotThisFormatError("no CSV of python-can or SavvyCAN: the first line does not name columns")
        self._columns = columns

    def _gvret(self, words: list[str], columns: dict[str, int]) -> LoggedFrame:
        time_ns = decimal_ns(words[columns["time stamp"]], 1000)
        is_extended = words[columns["extended"]].lower() in ("true", "1")
        can_id = identifier(whole(words[columns["id"]], 16), is_extended=is_extended)
        channel = str(whole(words[columns["bus"]])) if "bus" in columns else "0"
        is_received = "dir" not in columns or words[columns["dir"]].lower() != "tx"
        length = whole(words[columns["len"]])
        if length > MAX_FD_DATA:
            raise LineError(f"{length} data bytes")
        first = columns.get("d1", columns["len"] + 1)
        data = data_bytes([word for word in words[first:] if word], length)
        return LoggedFrame(time_ns, channel, can_id, data, FD if length > MAX_DATA else 0, is_received)


def _python_can(words: list[str]) -> LoggedFrame:
    if len(words) < _PYTHON_CAN_COLUMNS:
        raise LineError("too few columns")
    stamp, number, extended, remote, error, length_text, text = words[:_PYTHON_CAN_COLUMNS]
    time_ns = decimal_ns(stamp, _SECOND_NS)
    length = whole(length_text)
    if length > MAX_FD_DATA:
        raise LineError(f"{length} data bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise LineError("its data are not base64") from None
    raw = whole(number.removeprefix("0x"), 16)
    if error == "1":
        return LoggedFrame(time_ns, "1", raw & EXTENDED_MASK | ERROR, data[:MAX_DATA])
    can_id = identifier(raw, is_extended=extended == "1")
    if remote == "1":
        return LoggedFrame(time_ns, "1", can_id | REMOTE, bytes(min(length, MAX_DATA)))
    if len(data) != length:
        raise LineError(f"{len(data)} data bytes where {length} are announced")
    return LoggedFrame(time_ns, "1", can_id, data, FD if length > MAX_DATA else 0)


class CrtdParser:
    """Reads a CRTD file."""

    def __init__(self) -> None:
        self.others = 0
        self._earliest_ns: int | None = None

    def parse(self, line: str) -> LoggedFrame | None:
        """Return the frame of a line; see `lines.Parser`."""
        if not line.strip():
            return None
        match = _CRTD.fullmatch(line)
        if match is None:
            raise LineError("not a line of a CRTD log")
        stamp, bus, kind, rest = match.groups()
        if kind not in _CRTD_FRAMES:
            if not kind.startswith("C"):  # comments, events, settings
                self.others += 1
            return None
        is_extended, is_received = _CRTD_FRAMES[kind]
        words = (rest or "").split()
        if not words:
            raise LineError("its identifier is missing")
        if len(words) > 1 + MAX_FD_DATA:
            raise LineError(f"{len(words) - 1} data bytes")
        time_ns = decimal_ns(stamp, _SECOND_NS)
        if self._earliest_ns is None or time_ns < self._earliest_ns:
            self._earliest_ns = time_ns
        can_id = identifier(whole(words[0], 16), is_extended=is_extended)
        data = data_bytes(words[1:], len(words) - 1)
        flags = FD if len(data) > MAX_DATA else 0
        return LoggedFrame(time_ns, bus or "1", can_id, data, flags, is_received)

    def notes(self) -> Iterator[str]:
        """Return what is to be said of the times; see `lines.Parser`."""
        if self._earliest_ns is not None and self._earliest_ns < EARLIEST_NS:
            yield START_IS_0
