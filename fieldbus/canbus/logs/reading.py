"""Log files of a CAN bus: reading them frame by frame.

==============  ======================================  ==========================
format          what it is                              usual suffix
==============  ======================================  ==========================
``candump``     ``candump -L``                          ``.log``
``view``        candump's screen output                 ``.log``, ``.txt``
``asc``         Vector, text; also symbolic             ``.asc``
``blf``         Vector, binary                          ``.blf``
``trc``         PEAK, versions 1.0 to 2.1               ``.trc``
``csv``         python-can's own, and SavvyCAN's        ``.csv``
``crtd``        OVMS                                    ``.crtd``
==============  ======================================  ==========================

Each may be gzipped. `writing` says which can be written.

Rules:

* What a file is its contents say, whatever it is called; where they do not, its suffix does, and an option
  (`form`) goes before both.
* A log is hostile until it is read: lines have a greatest length, what is gzipped a greatest size, nothing
  is held in memory but one block.
* A line of a text format that is no frame, or an object of a binary one, is counted and its place kept; it
  costs itself. So are lines that are events (`others`). A file of which the first thousand lines hold no
  frame is a `LogError`, and so is one that is not of its format.
* Times are absolute where the file says when it began. ASC and BLF files say it in local time without a
  zone: that of this machine is taken, or `zone`. Where a file does not say it, times start at 0, and
  `LogReader.notes` says so. Times may be negative: of frames before a trigger.
* Channels are what the file calls them: an interface (candump), or a number.
"""

from __future__ import annotations

import datetime
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from fieldbus.canbus.logs import blf, candump
from fieldbus.canbus.logs.asc import AscParser
from fieldbus.canbus.logs.candump import CandumpParser, CandumpViewParser
from fieldbus.canbus.logs.detection import GZIP_MAGIC, SUFFIXES, Prefixed, detect
from fieldbus.canbus.logs.lines import (
    EARLIEST_NS,
    START_IS_0,
    LineError,
    Names,
    NotThisFormatError,
    Parser,
    Zone,
)
from fieldbus.canbus.logs.logged import BadLine, LogError, LoggedFrame
from fieldbus.canbus.logs.tables import CrtdParser, CsvParser
from fieldbus.canbus.logs.trc import TrcParser
from fieldbus.errors import os_reason

MAX_LINE = 4096
"""Characters of a line; a frame has 250 at most."""
MAX_UNPACKED_BYTES = 16 * 1024**3
"""Of a gzipped log."""
MAX_BAD_LINES_KEPT = 10
_HOPELESS_LINES = 1000
_BLOCK = 256 * 1024
_PEEKED = 64 * 1024

_PARSERS: Mapping[str, Callable[[Names, Zone], Parser]] = {
    "candump": lambda _names, _zone: CandumpParser(),
    "view": lambda _names, zone: CandumpViewParser(zone),
    "asc": AscParser,
    "trc": lambda _names, zone: TrcParser(zone or datetime.UTC),
    "csv": lambda _names, _zone: CsvParser(),
    "crtd": lambda _names, _zone: CrtdParser(),
}
FORMATS = (*_PARSERS, "blf")
"""Formats that can be read."""


class LogReader:
    """The frames of a log, once through."""

    def __init__(
        self,
        path: Path,
        *,
        form: str | None = None,
        names: Names | None = None,
        zone: Zone = None,
        source: BinaryIO | None = None,
    ) -> None:
        """Look what kind of log it is.

        Args:
            path: of the file.
            form: one of `FORMATS`; None for what its contents or its suffix say.
            names: identifier words by the names of messages, for symbolic logs.
            zone: of times without a zone; None for local time (TRC: UTC).
            source: what is read in the place of the file.

        Raises:
            LogError: it is none that could be read.
        """
        self.path = path
        self.frames = 0
        """How many were read; known when the log has ended."""
        self.bad_lines = 0
        self.first_bad: list[BadLine] = []
        """The first of them, at most `MAX_BAD_LINES_KEPT`."""
        self.others = 0
        """Lines that are no frames and no faults: states of the bus, notes; known when the log has ended."""
        self.notes: list[str] = []
        """What people should know of the times and identifiers in it."""
        self._form = form
        self._names = names or {}
        self._zone = zone
        self._source = source
        self._is_packed = False
        names_of_it = path.name.lower()
        self._suffix = Path(names_of_it.removesuffix(".gz")).suffix
        if form is None and source is None and self._suffix not in SUFFIXES:
            try:
                with path.open("rb") as file:
                    self._form = detect(_head_of(file.read(_PEEKED)))
            except OSError:
                pass
            if self._form is None:
                known = ", ".join(SUFFIXES)
                raise LogError(
                    path,
                    f"'{self._suffix}' is no log format; known are {known}, also with .gz; or `--format`",
                )

    def __iter__(self) -> Iterator[LoggedFrame]:
        """Read the file.

        Raises:
            LogError: it cannot be read, or no further.
        """
        try:
            if self._source is not None:
                yield from self._read(self._source)
                return
            with self.path.open("rb") as file:
                yield from self._read(file)
        except (blf.BlfError, NotThisFormatError) as error:
            raise LogError(self.path, str(error)) from None
        except OSError as error:
            raise LogError(self.path, os_reason(error)) from error
        except (EOFError, zlib.error) as error:
            raise LogError(self.path, f"not a whole gzip file: {error}") from error

    def _read(self, file: BinaryIO) -> Iterator[LoggedFrame]:
        content = Prefixed(file, _PEEKED)
        is_named_packed = self.path.name.lower().endswith(".gz")
        self._is_packed = is_named_packed or content.head.startswith(GZIP_MAGIC)
        if self._is_packed:
            content = Prefixed(cast("BinaryIO", gzip.GzipFile(fileobj=cast("BinaryIO", content))), _PEEKED)
        form = self._form or detect(content.head) or SUFFIXES.get(self._suffix)
        if form is None:
            raise LogError(
                self.path, f"the format is not recognised; say it by `--format`: {', '.join(FORMATS)}"
            )
        if form == "blf":
            yield from self._blf(cast("BinaryIO", content))
        else:
            yield from self._text(content, _PARSERS[form](self._names, self._zone))

    def _bad(self, number: int, reason: str) -> None:
        self.bad_lines += 1
        if len(self.first_bad) < MAX_BAD_LINES_KEPT:
            self.first_bad.append(BadLine(number, reason))
        if self.bad_lines >= _HOPELESS_LINES and self.frames == 0:
            first = self.first_bad[0]
            raise LogError(
                self.path, f"{first.reason}, and {_HOPELESS_LINES} lines hold no frame", first.number
            )

    def _lines(self, file: Prefixed) -> Iterator[list[str]]:
        """Return the lines in blocks; of a line that is far too long only a part."""
        size = 0
        rest = ""
        while block := file.read1(_BLOCK):
            size += len(block)
            if self._is_packed and size > MAX_UNPACKED_BYTES:
                raise LogError(self.path, f"unpacks to more than {MAX_UNPACKED_BYTES // 1024**2} MiB")
            lines = (rest + block.decode("latin-1")).split("\n")
            rest = lines.pop()
            if len(rest) > MAX_LINE:
                rest = rest[: MAX_LINE + 1]
            yield lines
        if rest:
            yield [rest]

    def _text(self, file: Prefixed, parser: Parser) -> Iterator[LoggedFrame]:
        # Lines of candump are by far the most, and a frame each: they take the shortest way.
        parse = candump.parse if isinstance(parser, CandumpParser) else parser.parse
        is_quick = parse is candump.parse
        first = 1
        for lines in self._lines(file):
            for index, line in enumerate(lines):
                try:
                    frame = parse(line)
                    if frame is None:
                        if len(line) > MAX_LINE:
                            raise LineError("too long")
                        if is_quick:
                            parser.parse(line)  # says what is wrong with it
                        continue
                except LineError as error:
                    reason = "too long" if len(line) > MAX_LINE else str(error)
                    self._bad(first + index, reason)
                    continue
                self.frames += 1
                yield frame
            first += len(lines)
        self.others = parser.others
        said = list(parser.notes())
        if self.frames:
            self.notes += said

    def _blf(self, file: BinaryIO) -> Iterator[LoggedFrame]:
        is_told = False
        for frame in blf.read(file, self._zone, lambda reason: self._bad(0, reason), self.notes.append):
            if not is_told:
                is_told = True
                if frame.time_ns < EARLIEST_NS:
                    self.notes.append(START_IS_0)
                elif self._zone is None:
                    self.notes += _local_note(frame.time_ns)
            self.frames += 1
            yield frame


def _local_note(time_ns: int) -> list[str]:
    """Return what is to be said of a start in local time; nothing where that is UTC."""
    at = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000).astimezone()
    if not at.utcoffset():
        return []
    return [f"the start is taken as local time (UTC{at:%z}), as Vector's programs write it; see `--timezone`"]


def _head_of(data: bytes) -> bytes:
    """Return the beginning of a file, unpacked if it is gzipped."""
    if not data.startswith(GZIP_MAGIC):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, _PEEKED)
    except zlib.error:
        return b""


def read_log(path: Path) -> LogReader:
    """Return what reads a log, by its contents or its suffix.

    Raises:
        LogError: it is not known what it is; while reading, that the log cannot be read any further.
    """
    return LogReader(path)
