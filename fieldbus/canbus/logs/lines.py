"""What the readers of text logs have in common.

Rules:

* A parser takes one line and returns its frame, or None for a line that is none: a comment, a header, an
  event. It raises `LineError` for a line that should be a frame and is not.
* Parsing has no input or output, and no time but that in the lines.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterable, Mapping
from typing import Protocol

from fieldbus.canbus.bus import EXTENDED, EXTENDED_MASK, STANDARD_MASK
from fieldbus.canbus.logs.logged import LoggedFrame

START_IS_0 = "the file does not say when it began: times start at 0"
EARLIEST_NS = 631_152_000_000_000_000
"""1990: what is earlier was not counted from the epoch."""

Names = Mapping[str, int]
"""Identifier words by the names of messages, for logs with symbolic identifiers."""
Zone = datetime.tzinfo | None
"""Of times without a zone; None for the local time of this machine."""


class LineError(Exception):
    """A line should be a frame and is not; the words say why."""


class NotThisFormatError(Exception):
    """The file is no log of the format that its name or an option says."""


class Parser(Protocol):
    """Reads the lines of one file."""

    others: int
    """Lines that are neither frames nor comments nor parts of the header."""

    def parse(self, line: str) -> LoggedFrame | None:
        """Return the frame of the next line, or None.

        Raises:
            LineError: it cannot be read.
            NotThisFormatError: nor can the rest.
        """
        ...

    def notes(self) -> Iterable[str]:
        """Return what people should know of the times; after the last line.

        Raises:
            NotThisFormatError: nothing in the file was of this format.
        """
        ...


def decimal_ns(text: str, unit_ns: int) -> int:
    """Return a decimal number of units as nanoseconds, without rounding on the way; it may be negative.

    Raises:
        LineError: it is none.
    """
    unsigned = text.removeprefix("-")
    whole, _, fraction = unsigned.partition(".")
    digits = whole + fraction
    if not digits.isascii() or not digits.isdigit() or len(whole) > 17 or len(fraction) > 18:
        raise LineError(f"{text[:30]!r} is not a time")
    scale: int = 10 ** len(fraction)
    elapsed_ns = int(digits) * unit_ns // scale
    return -elapsed_ns if text.startswith("-") else elapsed_ns


def identifier(number: int, *, is_extended: bool) -> int:
    """Return the identifier word.

    Raises:
        LineError: there is no such identifier.
    """
    if not 0 <= number <= (EXTENDED_MASK if is_extended else STANDARD_MASK):
        raise LineError(f"{number:X} is not an identifier of {29 if is_extended else 11} bits")
    return number | EXTENDED if is_extended else number


def data_bytes(words: list[str], length: int, base: int = 16) -> bytes:
    """Return the first bytes of a list.

    Raises:
        LineError: there are fewer, or one of them is no byte.
    """
    if len(words) < length:
        raise LineError(f"{len(words)} data bytes where {length} are announced")
    try:
        return bytes([_byte(word, base) for word in words[:length]])
    except ValueError:
        raise LineError("not all of the data are bytes") from None


def _byte(word: str, base: int) -> int:
    if not word.isalnum() or not word.isascii():
        raise ValueError
    return int(word, base)


def whole(text: str, base: int = 10) -> int:
    """Return a number without sign.

    Raises:
        LineError: it is none.
    """
    try:
        if not text.isalnum() or not text.isascii() or len(text) > 12:
            raise ValueError
        return int(text, base)
    except ValueError:
        raise LineError(f"{text[:30]!r} is not a number") from None


def zone_of(name: str) -> datetime.tzinfo:
    """Return a zone by its name: ``UTC``, ``Asia/Shanghai``.

    Raises:
        ValueError: this machine does not know it.
    """
    if name.upper() == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"'{name}' is not a time zone such as UTC or Asia/Shanghai") from None


def moment_ns(at: datetime.datetime, zone: Zone) -> int:
    """Return a time without a zone as nanoseconds since the epoch, to the microsecond.

    Raises:
        LineError: it is too far away.
    """
    try:
        seconds = at.replace(microsecond=0, tzinfo=zone).timestamp()
    except (OverflowError, ValueError, OSError):
        raise LineError("a date that is out of range") from None
    return int(seconds) * 1_000_000_000 + at.microsecond * 1000
