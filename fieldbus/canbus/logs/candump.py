"""Lines of a log as candump writes it: with ``-L``, and as on a screen.

Layout::

    (1345212884.318850) vcan0 7A1#1122334455667788      standard identifier: three hexadecimal digits
    (1345212884.318850) vcan0 18FEF100#0102 T           extended: eight digits; T sent, R received
    (1345212884.318850) vcan0 7A1#R8                    remote frame, and how many bytes it asks for
    (1345212884.318850) vcan0 7A1##31122                CAN FD; flags: 1 bit rate switch, 2 error passive
    (1345212884.318850) vcan0 20000080#0000000000000000 error frame; its class is in the identifier

The fraction has six digits, or nine. A raw data length code behind the data (``_9`` to ``_F``) is ignored.

As on a screen, where two digits of the length mean CAN FD::

    (1345212884.318850)  vcan0  7A1   [8]  11 22 33 44 55 66 77 88   '."3DUfw.'
      vcan0  TX B -  18FEF100   [12]  01 02 03 04 05 06 07 08 09 0A 0B 0C
      vcan0  7A1   [8]  remote request
      vcan0  20000004   [8]  00 04 00 00 00 00 00 00   ERRORFRAME

Rules:

* `parse` never raises: a line is a frame, or nothing. Lines that begin with ``#`` are comments.
* What is no identifier (``FFF``, a bit above the 29th), too long for its kind of frame or half a byte makes
  the line a bad one; nothing is cut to fit.

Design: one regular expression and no branch that an ordinary line does not need, because a day of a busy
bus has a hundred million lines.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, EXTENDED, EXTENDED_MASK, FD, REMOTE, STANDARD_MASK
from fieldbus.canbus.logs.lines import (
    EARLIEST_NS,
    START_IS_0,
    LineError,
    Zone,
    data_bytes,
    decimal_ns,
    identifier,
    moment_ns,
)
from fieldbus.canbus.logs.logged import ERROR_STATE, MAX_DATA, LoggedFrame

_LINE = re.compile(
    r"\s*\((\d{1,11})\.(\d{1,9})\)\s+([!-~]{1,64})\s+"  # time, channel
    r"([0-9A-Fa-f]{8}|[0-9A-Fa-f]{3})#"
    r"(?:((?:[0-9A-Fa-f]{2}){0,8})|#([0-9A-Fa-f])((?:[0-9A-Fa-f]{2}){0,64})|R([0-8])?)"
    r"(?:_[9A-Fa-f])?(?:\s+([TR]))?\s*",
    re.ASCII,
)
_match = _LINE.fullmatch


def parse(line: str) -> LoggedFrame | None:
    """Return the frame of a line; None if it is none."""
    match = _match(line)
    if match is None:
        return None
    seconds, fraction, channel, number, data, fd_flags, fd_data, remote_length, direction = match.groups()
    can_id = int(number, 16)
    if len(number) == 8:
        if can_id & ERROR:
            if can_id & (EXTENDED | REMOTE):
                return None
        elif can_id > EXTENDED_MASK:
            return None
        else:
            can_id |= EXTENDED
    elif can_id > STANDARD_MASK:
        return None
    if len(fraction) == 6:
        time_ns = int(seconds + fraction) * 1000
    else:
        time_ns = int(seconds) * 1_000_000_000 + int(fraction.ljust(9, "0"))
    if data is not None:
        return LoggedFrame(time_ns, channel, can_id, bytes.fromhex(data), 0, direction != "T")
    if can_id & ERROR:
        return None
    if fd_flags is not None:
        bits = int(fd_flags, 16)
        flags = FD | (BITRATE_SWITCH if bits & 1 else 0) | (ERROR_STATE if bits & 2 else 0)
        return LoggedFrame(time_ns, channel, can_id, bytes.fromhex(fd_data), flags, direction != "T")
    length = int(remote_length or 0)
    return LoggedFrame(time_ns, channel, can_id | REMOTE, bytes(length), 0, direction != "T")


def format_frame(can_id: int, data: bytes, flags: int = 0) -> str:
    """Return a frame without time and channel: ``7A1#1122``."""
    if can_id & ERROR:
        number = f"{can_id & (EXTENDED_MASK | ERROR):08X}"
    elif can_id & EXTENDED:
        number = f"{can_id & EXTENDED_MASK:08X}"
    else:
        number = f"{can_id & STANDARD_MASK:03X}"
    if can_id & REMOTE:
        return f"{number}#R{len(data) or ''}"
    if flags & FD:
        bits = (1 if flags & BITRATE_SWITCH else 0) | (2 if flags & ERROR_STATE else 0)
        return f"{number}##{bits:X}{data.hex().upper()}"
    return f"{number}#{data[:MAX_DATA].hex().upper()}"


def format_line(frame: LoggedFrame) -> str:
    """Return the line of a frame; times are cut to microseconds: readers of such logs expect six digits."""
    seconds, rest = divmod(frame.time_ns, 1_000_000_000)
    direction = "" if frame.is_received else " T"
    text = format_frame(frame.can_id, frame.data, frame.flags)
    return f"({seconds:010d}.{rest // 1000:06d}) {frame.channel} {text}{direction}\n"


VIEW = re.compile(
    r"\s*(?:\((?:(\d{4}-\d\d-\d\d) )?([\d:.]{1,24})\)\s+)?([!-~]{1,64})\s+(?:(RX|TX)(?:\s+[-B]\s+[-E])?\s+)?"
    r"([0-9A-Fa-f]{8}|[0-9A-Fa-f]{3})\s+\[(\d{1,2})\](?:\s+(.*))?",
    re.ASCII | re.DOTALL,
)
_BYTES = re.compile(r"((?:[0-9A-Fa-f]{2}(?:\s+|\Z))*)", re.ASCII)


class CandumpParser:
    """Reads what ``candump -L`` writes."""

    def __init__(self) -> None:
        self.others = 0

    def parse(self, line: str) -> LoggedFrame | None:
        """Return the frame of a line; see `lines.Parser`."""
        frame = parse(line)
        if frame is None and line and not line.isspace() and not line.lstrip().startswith("#"):
            raise LineError("not a line as `candump -L` writes it")
        return frame

    def notes(self) -> Iterator[str]:
        """Return nothing: times count from the epoch."""
        return iter(())


class CandumpViewParser:
    """Reads what candump writes on a screen, with times (``-t a``, ``-t A``, ``-t z``) or without any."""

    def __init__(self, zone: Zone = None) -> None:
        self.others = 0
        self._zone = zone
        self._has_times = self._has_epoch = False

    def parse(self, line: str) -> LoggedFrame | None:
        """Return the frame of a line; see `lines.Parser`."""
        if not line or line.isspace() or line.lstrip().startswith("#"):
            return None
        match = VIEW.fullmatch(line)
        if match is None:
            raise LineError("not a line as candump writes it")
        day, stamp, channel, direction, number, length_text, rest = match.groups()
        time_ns = 0 if stamp is None else self._time_ns(day, stamp)
        raw, length, rest = int(number, 16), int(length_text), rest or ""
        is_error = len(number) == 8 and bool(raw & ERROR)
        can_id = raw & (EXTENDED_MASK | ERROR) if is_error else identifier(raw, is_extended=len(number) == 8)
        is_received = direction != "TX"
        if rest.startswith("remote request"):
            return LoggedFrame(time_ns, channel, can_id | REMOTE, bytes(min(length, 8)), 0, is_received)
        match = _BYTES.match(rest)
        words = match[1].split() if match else []
        data = data_bytes(words, length)
        # candump writes the length of a CAN FD frame with two digits.
        flags = FD if len(length_text) == 2 and not is_error else 0
        if length > (64 if flags else MAX_DATA):
            raise LineError(f"{length} data bytes")
        return LoggedFrame(time_ns, channel, can_id, data, flags, is_received)

    def notes(self) -> Iterator[str]:
        """Return what is to be said of the times; see `lines.Parser`."""
        if not self._has_times:
            yield "the lines have no times: all are 0"
        elif not self._has_epoch:
            yield START_IS_0

    def _time_ns(self, day: str | None, stamp: str) -> int:
        self._has_times = True
        if day is None:
            time_ns = decimal_ns(stamp, 1_000_000_000)
        else:
            whole_s, _, fraction = stamp.partition(".")
            try:
                at = datetime.datetime.fromisoformat(f"{day} {whole_s}")
            except ValueError:
                raise LineError(f"{day} {stamp} is not a time") from None
            time_ns = moment_ns(at, self._zone) + decimal_ns(f"0.{fraction or 0}", 1_000_000_000)
        self._has_epoch = self._has_epoch or time_ns >= EARLIEST_NS
        return time_ns
