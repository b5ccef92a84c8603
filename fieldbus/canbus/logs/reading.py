"""Log files of a CAN bus: reading them frame by frame, and writing them.

====================  ============================  ==========================  ============================
suffix                format                        read                        written
====================  ============================  ==========================  ============================
``.log``              ``candump -L``                yes                         yes, to the microsecond
``.asc``              Vector, text                  yes, with python-can        yes, to the microsecond
``.blf``              Vector, binary                yes                         yes, to the nanosecond
``.trc``              PEAK, versions 1.0 to 2.1     yes, with python-can        no
``.csv``              python-can's own              yes, with python-can        no
====================  ============================  ==========================  ============================

Each may be read gzipped: ``drive.log.gz``.

Rules:

* A log is hostile until it is read: lines have a greatest length, what is gzipped a greatest size, nothing
  is held in memory but one block.
* A line of a text format that is no frame is counted and its number kept; it costs itself. A binary log has
  no next line: a fault ends it, with a `LogError`, after the frames before it. So does a text of which
  the first thousand lines hold no frame.
* Times are absolute where the file says when it began (an ASC file says it in local time, without a
  zone: that of this machine is taken). Where it does not they start at 0, and `LogReader.notes` says so.
* Channels are what the file calls them: an interface (candump), or a number from 1 (ASC, BLF, TRC).

Design: python-can's text readers give up at the first bad line and have times as floats. So they read from
`_Source`, which knows which line they were given last: its time is taken from there, exactly, and after a
bad one they are set to work again on the next.
"""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import can
from can.io import ASCReader, CSVReader, TRCReader

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, EXTENDED, EXTENDED_MASK, FD, REMOTE, STANDARD_MASK
from fieldbus.canbus.logs import blf, candump
from fieldbus.canbus.logs.logged import ERROR_STATE, MAX_DATA, MAX_FD_DATA, BadLine, LogError, LoggedFrame

MAX_LINE = 4096
"""Characters of a line; a frame has 250 at most."""
MAX_UNPACKED_BYTES = 16 * 1024**3
"""Of a gzipped log."""
MAX_BAD_LINES_KEPT = 10
_HOPELESS_LINES = 1000
_BLOCK = 256 * 1024
_START_IS_0 = "the file does not say when it began: times start at 0"


class LogReader:
    """The frames of a log, once through."""

    def __init__(self, path: Path) -> None:
        """Look what kind of log it is.

        Raises:
            LogError: it is none that could be read.
        """
        self.path = path
        self.frames = 0
        """How many were read; known when the log has ended."""
        self.bad_lines = 0
        self.first_bad: list[BadLine] = []
        """The first of them, at most `MAX_BAD_LINES_KEPT`."""
        self.notes: list[str] = []
        """What people should know of the times in it."""
        names = path.name.lower()
        self._is_packed = names.endswith(".gz")
        suffix = Path(names.removesuffix(".gz")).suffix
        readers: dict[str, Callable[[BinaryIO], Iterator[LoggedFrame]]] = {
            ".log": self._candump,
            ".asc": self._asc,
            ".blf": self._blf,
            ".trc": self._trc,
            ".csv": self._csv,
        }
        if suffix not in readers:
            raise LogError(
                path, f"'{suffix}' is no log format; known are {', '.join(readers)}, also with .gz"
            )
        self._read = readers[suffix]

    def __iter__(self) -> Iterator[LoggedFrame]:
        """Read the file.

        Raises:
            LogError: it cannot be read, or no further.
        """
        try:
            with self.path.open("rb") as file:
                unpacked = gzip.GzipFile(fileobj=file) if self._is_packed else file
                yield from self._read(cast("BinaryIO", unpacked))
        except blf.BlfError as error:
            raise LogError(self.path, str(error)) from None
        except OSError as error:
            raise LogError(self.path, (error.strerror or str(error)).lower()) from error
        except (EOFError, zlib.error) as error:
            raise LogError(self.path, f"not a whole gzip file: {error}") from error

    def _bad(self, number: int, reason: str) -> None:
        self.bad_lines += 1
        if len(self.first_bad) < MAX_BAD_LINES_KEPT:
            self.first_bad.append(BadLine(number, reason))
        if self.bad_lines >= _HOPELESS_LINES and self.frames == 0:
            first = self.first_bad[0]
            raise LogError(
                self.path, f"{first.reason}, and {_HOPELESS_LINES} lines hold no frame", first.number
            )

    def _lines(self, file: BinaryIO) -> Iterator[list[str]]:
        """Return the lines in blocks; of a line that is far too long only a part."""
        size = 0
        rest = ""
        while block := file.read(_BLOCK):
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

    def _candump(self, file: BinaryIO) -> Iterator[LoggedFrame]:
        parse = candump.parse
        first = 1
        for lines in self._lines(file):
            for index, line in enumerate(lines):
                frame = parse(line)
                if frame is not None:
                    self.frames += 1
                    yield frame
                elif line and not line.isspace():
                    reason = "not a line as `candump -L` writes it"
                    self._bad(first + index, "too long" if len(line) > MAX_LINE else reason)
            first += len(lines)

    def _blf(self, file: BinaryIO) -> Iterator[LoggedFrame]:
        is_told = False
        for frame in blf.read(file):
            if not is_told:
                is_told = True
                if frame.time_ns < _EARLIEST_NS:
                    self.notes.append(_START_IS_0)
            self.frames += 1
            yield frame

    def _asc(self, file: BinaryIO) -> Iterator[LoggedFrame]:
        source = _Source(self._lines(file), self._bad)
        reader = ASCReader(cast("Any", source), relative_timestamp=False)
        elapsed_ns = 0

        def time_ns() -> int:
            nonlocal elapsed_ns
            if reader.timestamps_format == "relative":
                # Each line has the time since the one before, also those that are no frames.
                elapsed_ns = source.sum_ns
            else:
                elapsed_ns = _ns(source.line.split(None, 1)[0], 1_000_000_000)
            return round(reader.start_time * 1000) * 1_000_000 + elapsed_ns

        source.ends_header = True
        source.adds_up = lambda: reader.timestamps_format == "relative"
        yield from self._texts(source, reader, time_ns, first_channel=1, takes_line=True)
        if reader.start_time == 0 and self.frames:
            self.notes.append(_START_IS_0)

    def _trc(self, file: BinaryIO) -> Iterator[LoggedFrame]:
        source = _Source(self._lines(file), self._bad)
        reader = TRCReader(cast("Any", source))
        start_ns: int | None = None

        def time_ns() -> int:
            nonlocal start_ns
            if start_ns is None:
                start = reader.start_time
                start_ns = 0 if start is None else round(start.timestamp() * 1_000_000) * 1000
            column = reader.columns.get("O", 1)
            return start_ns + _ns(source.line.split()[column].rstrip(")"), 1_000_000)

        yield from self._texts(source, reader, time_ns, first_channel=0, takes_line=False)
        if not start_ns and self.frames:
            self.notes.append(_START_IS_0)

    def _csv(self, file: BinaryIO) -> Iterator[LoggedFrame]:
        source = _Source(self._lines(file), self._bad)

        def time_ns() -> int:
            return _ns(source.line.split(",", 1)[0], 1_000_000_000)

        yield from self._texts(
            source, CSVReader(cast("Any", source)), time_ns, first_channel=1, takes_line=True
        )

    def _texts(
        self,
        source: _Source,
        reader: Any,
        time_ns: Callable[[], int],
        *,
        first_channel: int,
        takes_line: bool,
    ) -> Iterator[LoggedFrame]:
        """Have a reader of python-can read.

        Args:
            first_channel: what to add to its numbers of channels to have the file's.
            takes_line: whether it takes a line for itself each time that it is set to work.
        """
        messages = iter(reader)
        while True:
            before = source.number
            try:
                message = next(messages)
                frame = _frame(message, time_ns(), first_channel)
            except StopIteration:
                return
            except LogError:
                raise
            except Exception as error:  # its readers raise whatever a line makes them
                if source.number == before:
                    raise LogError(self.path, str(error), source.number) from error
                self._bad(source.number, f"not a frame: {' '.join(str(error).split())[:100]}")
                if takes_line and not isinstance(error, _DoubtError):
                    source.push_back("")
                if not isinstance(error, _DoubtError):
                    messages = iter(reader)
                continue
            self.frames += 1
            yield frame


def read_log(path: Path) -> LogReader:
    """Return what reads a log, by its suffix.

    Raises:
        LogError: the suffix is not known; while reading, that the log cannot be read any further.
    """
    return LogReader(path)


_ASC_BODY = re.compile(r"\s*(?:\d|begin\s+triggerblock)", re.ASCII | re.IGNORECASE)
_EARLIEST_NS = 631_152_000_000_000_000
"""1990: what is earlier was not counted from the epoch."""


class _DoubtError(ValueError):
    """A line that python-can takes for a frame, and we do not."""


class _Source:
    """A text file for python-can's readers, which remembers the line that they were given last."""

    def __init__(self, blocks: Iterator[list[str]], bad: Callable[[int, str], None]) -> None:
        self._lines = itertools.chain.from_iterable(blocks)
        self._bad = bad
        self._pushed: list[str] = []
        self.line = ""
        self.number = 0
        self.ends_header = False
        """Whether what reads takes one more line for the header, and it must not be the first frame."""
        self.adds_up: Callable[[], bool] = lambda: False
        self.sum_ns = 0
        """The times at the beginnings of all lines together, while `adds_up`."""

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> str:
        if self._pushed:
            return self._pushed.pop()
        while True:
            line = next(self._lines)
            self.number += 1
            if len(line) <= MAX_LINE:
                break
            self._bad(self.number, "too long")
        self.line = line
        if self.adds_up():
            try:
                self.sum_ns += _ns(line.split(None, 1)[0], 1_000_000_000)
            except (ValueError, IndexError):
                pass  # a comment
        if self.ends_header and _ASC_BODY.match(line):
            self.ends_header = False
            self.push_back(line)
            return ""
        return line

    def push_back(self, line: str) -> None:
        """Have a line read once more before the next."""
        self._pushed.append(line)

    def close(self) -> None:
        """Do nothing: who opened the file closes it."""


def _ns(text: str, unit_ns: int) -> int:
    """Return a decimal number of units as nanoseconds, without rounding on the way.

    Raises:
        _DoubtError: it is none.
    """
    whole, _, fraction = text.partition(".")
    digits = whole + fraction
    if not digits.isascii() or not digits.isdigit() or len(whole) > 12 or len(fraction) > 18:
        raise _DoubtError(f"{text[:30]!r} is no time")
    scale: int = 10 ** len(fraction)
    return int(digits) * unit_ns // scale


def _frame(message: can.Message, time_ns: int, first_channel: int) -> LoggedFrame:
    can_id, data = message.arbitration_id, bytes(message.data)
    channel = str(message.channel + first_channel) if isinstance(message.channel, int) else "1"
    flags = 0
    if message.is_error_frame:
        return LoggedFrame(time_ns, channel, can_id & EXTENDED_MASK | ERROR, data[:MAX_DATA])
    if not 0 <= can_id <= (EXTENDED_MASK if message.is_extended_id else STANDARD_MASK):
        raise _DoubtError(f"no identifier: {can_id:X}")
    if message.is_extended_id:
        can_id |= EXTENDED
    if message.is_fd:
        flags = FD | (BITRATE_SWITCH if message.bitrate_switch else 0)
        flags |= ERROR_STATE if message.error_state_indicator else 0
    most = MAX_FD_DATA if message.is_fd else MAX_DATA
    if not 0 <= message.dlc <= most:
        raise _DoubtError(f"{message.dlc} data bytes")
    if message.is_remote_frame and not message.is_fd:  # python-can takes one of FD without data for remote
        return LoggedFrame(time_ns, channel, can_id | REMOTE, bytes(message.dlc), 0, message.is_rx)
    if len(data) != message.dlc:
        raise _DoubtError(f"{len(data)} data bytes where {message.dlc} are announced")
    return LoggedFrame(time_ns, channel, can_id, data, flags, message.is_rx)
