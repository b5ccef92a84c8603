"""Bus databases: DBC, KCD, SYM and ARXML files as plain data, hostile until read.

Rules:

* A file is read in a process of its own that is limited in time and memory; what comes back is
  JSON, of bounded size, and is checked again when it becomes a `Message`.
* A message or signal that cannot be used costs itself, not the file: it is repaired or left out, and said.
* A file is refused unread when it is too large to be one.
* Control characters and terminal escapes in names, units and comments become visible ones.
* The same bytes are read once, as long as they are among the last that were read.

Design: parsers of other people hang or take gigabytes on files of a hundred bytes, and a thread cannot
be stopped. A process can; it costs about 0.3 s for each file, at start-up and reload only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fieldbus.canbus.database.reader import EXIT_ANSWER, EXIT_MEMORY, MAX_ANSWER_BYTES, MAX_FILE_BYTES
from fieldbus.canbus.layout import Condition, Message, Signal
from fieldbus.errors import ConversionError, Problem, os_reason
from fieldbus.scaling import Linear, Number
from fieldbus.text import printable, printable_lines

CPU_LIMIT_S = 10
WALL_LIMIT_S = 60
MEMORY_LIMIT_BYTES = 512 * 1024 * 1024
FORMATS = {".dbc": "dbc", ".kcd": "kcd", ".sym": "sym", ".arxml": "arxml"}
_KEPT_FILES = 32
_KEPT_BYTES = 32 * 1024 * 1024
"""Of the files that are remembered, together."""
_SIGXCPU = 24
_START = (
    # The search path is this process's own, so that the reader is found however this package was.
    "import sys; path, sys.argv = sys.argv[1].split('\\n'), sys.argv[1:]; sys.path[:] = path; "
    "from fieldbus.canbus.database.reader import main; main()"
)


@dataclass(frozen=True, slots=True)
class Database:
    """The messages of one bus."""

    messages: Sequence[Message]
    warnings: Sequence[Problem]
    """What was repaired or left out, and why."""


class DatabaseError(Exception):
    """The file cannot be read as a database."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True, slots=True)
class _Content:
    messages: Sequence[Message]
    notes: Sequence[tuple[int, str, str]]
    size: int


class _RefusedError(Exception):
    """The content is no database; its words, and the place."""

    def __init__(self, text: str, line: int = 0, column: int = 0) -> None:
        super().__init__(text)
        self.line = line
        self.column = column


def load(path: Path, shown: str, encoding: str | None = None) -> Database:
    """Read a database.

    Args:
        path: the file; its ending says its format.
        shown: how problems name it.
        encoding: of its text; None for what it says or looks like.

    Raises:
        DatabaseError: it is none, or takes too much time or memory to read.
    """
    format_ = FORMATS.get(path.suffix.lower())
    if format_ is None:
        hint = f"one of {', '.join(FORMATS)}"
        text = f"'{path.suffix}' is no database format"
        raise DatabaseError(Problem(shown, 0, 0, "", text, hint))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise _RefusedError(f"larger than {MAX_FILE_BYTES // 1024 // 1024} MiB")
        content = _CACHE.get(format_, data, encoding)
    except OSError as error:
        text = os_reason(error)
        raise DatabaseError(Problem(shown, 0, 0, "", text)) from error
    except _RefusedError as error:
        raise DatabaseError(Problem(shown, error.line, error.column, "", str(error))) from error
    warnings = [Problem(shown, line, 0, path, text, is_warning=True) for line, path, text in content.notes]
    return Database(content.messages, warnings)


class _Cache:
    """The last contents that were read, by their bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str | None, bytes], _Content] = {}

    def get(self, format_: str, data: bytes, encoding: str | None = None) -> _Content:
        key = (format_, encoding, hashlib.sha256(data).digest())
        with self._lock:
            found = self._kept.pop(key, None)
        if found is None:
            found = content(_read(format_, data, encoding), format_, len(data))
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > 1 and (
                len(self._kept) > _KEPT_FILES or sum(item.size for item in self._kept.values()) > _KEPT_BYTES
            ):
                del self._kept[next(iter(self._kept))]
        return found


_CACHE = _Cache()


def _read(format_: str, data: bytes, encoding: str | None = None) -> Any:
    """Have a process read a file and return its answer."""
    path = "\n".join(str(Path(entry).absolute()) for entry in sys.path if "\n" not in entry)
    limits = [str(limit) for limit in (CPU_LIMIT_S, WALL_LIMIT_S, MEMORY_LIMIT_BYTES)]
    process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-I", "-c", _START, path, format_, encoding or "", *limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    assert process.stdout is not None  # noqa: S101
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        process.kill()

    timer = threading.Timer(WALL_LIMIT_S, end)
    timer.start()
    try:
        # It reads all before it writes anything, so neither waits for the other. If it ends before it
        # has read all, its exit code says why.
        with contextlib.suppress(OSError):
            process.stdin.write(data)
        with contextlib.suppress(OSError):
            process.stdin.close()
        answer = process.stdout.read(MAX_ANSWER_BYTES + 1)
        if len(answer) > MAX_ANSWER_BYTES:
            process.kill()
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        timer.cancel()
        process.stdout.close()
    return _judge(is_late.is_set(), status, answer)


def _judge(is_late: bool, status: int, answer: bytes) -> Any:
    if is_late:
        raise _RefusedError(f"takes more than {WALL_LIMIT_S} s to read")
    if status == -_SIGXCPU:
        raise _RefusedError(f"takes more than {CPU_LIMIT_S} s to read")
    if status == EXIT_MEMORY:
        raise _RefusedError(f"needs more than {MEMORY_LIMIT_BYTES // 1024 // 1024} MiB to be read")
    if status == EXIT_ANSWER or len(answer) > MAX_ANSWER_BYTES:
        raise _RefusedError("describes more than can be held")
    if status != 0:
        raise _RefusedError(f"the process that reads it ended with status {status}")
    return json.loads(answer)


def content(answer: Any, format_: str, size: int) -> _Content:
    """Return what an answer of the reader describes.

    Args:
        answer: of `reader.read`.
        format_: of the file, for people.
        size: of the file in bytes.
    """
    if "error" in answer:
        line, column, text = answer["error"]
        raise _RefusedError(f"not a readable {format_.upper()} file: {printable(text)}", line, column)
    builder = _Builder()
    messages: list[Message] = []
    notes = [(line, printable(path), printable(text)) for line, path, text in answer["notes"]]
    for item in answer["messages"]:
        try:
            messages.append(builder.message(*item))
        except (ValueError, ArithmeticError, ConversionError) as error:
            notes.append((item[10], item[0], f"message {item[0]} is left out: {error}"))
    if not messages:
        notes.append((0, "", "no message was found in it"))
    return _Content(messages, notes, size)


class _Builder:
    """Makes messages of an answer; what is equal in many signals is one object."""

    def __init__(self) -> None:
        self._linear = cache(Linear)
        self._ids = cache(_expanded)

    def message(
        self,
        name: str,
        frame_id: int,
        is_extended: bool,
        length: int,
        is_fd: bool,
        is_j1939: bool,
        cycle_s: float | None,
        timeout_s: float | None,
        senders: list[str],
        comment: str,
        line: int,
        signals: list[list[Any]],
    ) -> Message:
        """Return a message; the arguments are as the reader writes them."""
        return Message(
            name=name,
            frame_id=frame_id,
            is_extended=is_extended,
            length=length,
            signals=[self._signal(*item) for item in signals],
            is_fd=is_fd,
            cycle_s=cycle_s,
            senders=tuple(map(printable, senders)),
            comment=printable_lines(comment),
            timeout_s=timeout_s,
            is_j1939=is_j1939,
            line=line,
        )

    def _signal(
        self,
        name: str,
        start: int,
        length: int,
        is_little_endian: bool,
        is_signed: bool,
        is_float: bool,
        scale: Number,
        offset: Number,
        minimum: Number | None,
        maximum: Number | None,
        unit: str,
        labels: list[tuple[int, str]],
        condition: list[tuple[str, list[tuple[int, int]]]],
        raw_initial: Number,
        comment: str,
        timeout_s: float | None,
    ) -> Signal:
        steps: Condition = tuple(
            (selector, self._ids(tuple((low, high) for low, high in ranges)))
            for selector, ranges in condition
        )
        return Signal(
            name=name,
            start=start,
            length=length,
            is_little_endian=is_little_endian,
            is_signed=is_signed,
            is_float=is_float,
            linear=self._linear(scale, offset),
            minimum=minimum,
            maximum=maximum,
            unit=printable(unit) or None,
            labels={raw: printable(label) for raw, label in labels},
            condition=steps,
            raw_initial=raw_initial,
            comment=printable_lines(comment),
            timeout_s=timeout_s,
        )


def _expanded(ranges: tuple[tuple[int, int], ...]) -> frozenset[int]:
    return frozenset(value for low, high in ranges for value in range(low, high + 1))
