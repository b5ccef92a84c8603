"""The record of every attempt to write, in a file that shows if it was changed.

Layout: JSON lines, UTF-8. Each has a number ``n`` that goes up by one, what happened, ``prev``, the
``hash`` of
the line before (64 zeros before the first), and ``hash``: SHA-256 over ``prev`` and the line's text without
``hash``, that is up to and without ``,"hash":"…"}``. A file of more than `MAX_BYTES` is closed and named
``audit-<first n>.jsonl``; the chain goes on in the next. When all have more than is allowed, the oldest go.

Rules:

* A record is written, and is the kernel's, before the answer to the command goes out; it is on the disk
  within
  `SYNC_S`. A killed process loses none, a power cut the last moment's.
* What is there is never changed. A last line that a power cut has torn is closed by a line feed and left:
  it is told as such, and the chain goes on behind it from the last whole line.
* A record that cannot be written is counted. Commands are then refused; routes go on, for a machine must not
  stop because a disk is full.

Design: a chain shows what was changed or taken out of the middle. That the end was cut off it cannot show by
itself: so number and hash of the last record are published with the gateway's health, for others to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fieldbus.sample_json import iso_time

FILE_NAME = "audit.jsonl"
MAX_BYTES = 64 * 1024 * 1024
MAX_TOTAL = 2 * 1024 * 1024 * 1024
SYNC_S = 0.5
START = "0" * 64
_HASH_FIELD = ',"hash":"'
_TAIL_BYTES = 256 * 1024
_LONGEST_TEXT = 500


class Fault(NamedTuple):
    """Where the chain is broken."""

    file: Path
    line: int
    """1-based."""
    text: str


class Verdict(NamedTuple):
    """What a look at all files came to."""

    records: int
    last_hash: str
    faults: list[Fault]
    torn: list[Fault]
    """Lines that were not written whole; nothing behind them is missing."""


class Audit:
    """The log, open for appending."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES, max_total: int = MAX_TOTAL) -> None:
        """Take where the files are; nothing is opened.

        Args:
            folder: of all files.
            max_bytes: how long a file may become.
            max_total: what all files may have together; the oldest is removed first.
        """
        self.folder = folder
        self.file = folder / FILE_NAME
        self.count = 0
        """The number of the last record."""
        self.last_hash = START
        self.lost = 0
        """Records that could not be written."""
        self.trouble: str | None = None
        self._max_bytes = max_bytes
        self._max_total = max_total
        self._fd: int | None = None
        self._size = 0
        self._is_dirty = False

    def open(self) -> None:
        """Go on where the file ends.

        Raises:
            OSError: it cannot be opened, or read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = _last_record(self.file)
        if last is None:
            last = next(
                (found for path in reversed(_closed(self.folder)) if (found := _last_record(path))), None
            )
        if last is not None:
            self.count, self.last_hash = last["n"], last["hash"]
        self._fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size
        if self._size and not _ends_whole(self.file):
            self._append(b"\n")

    def record(self, time_ns: int, what: Mapping[str, Any]) -> bool:
        """Append a record; return whether it is written."""
        try:
            if self._fd is None:
                self.open()
            if self._size > self._max_bytes:
                self._turn_over()
            text, hash_ = _line(self.count + 1, self.last_hash, time_ns, what)
            self._append(text)
        except OSError as error:
            self.lost += 1
            self.trouble = (error.strerror or str(error)).lower()
            return False
        self.trouble = None
        self.count, self.last_hash = self.count + 1, hash_
        return True

    def sync(self) -> None:
        """Have what was written on the disk. May take as long as the disk likes."""
        if self._fd is None or not self._is_dirty:
            return
        self._is_dirty = False
        fd = os.dup(self._fd)  # the file may be turned over meanwhile
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            try:
                os.fdatasync(fd)
            except OSError:
                pass  # there is nobody left to tell
            os.close(fd)

    def recent(self, since_ns: int) -> list[dict[str, Any]]:
        """Return the records since a moment, oldest first, of the last two files."""
        since = iso_time(since_ns)
        found: list[dict[str, Any]] = []
        for path in (self.file, *reversed(_closed(self.folder)[-1:])):
            is_whole = True
            for raw in _lines_backwards(path):
                record = _parsed(raw)
                if record is None:
                    continue
                if record.get("time", "") < since:
                    is_whole = False
                    break
                found.append(record)
            if not is_whole:
                break
        return found[::-1]

    def _append(self, data: bytes) -> None:
        assert self._fd is not None  # noqa: S101 - who calls has opened it
        written = os.write(self._fd, data)
        self._size += written
        self._is_dirty = True
        if written < len(data):
            os.ftruncate(self._fd, self._size - written)
            self._size -= written
            raise OSError(None, "no space left on device")

    def _turn_over(self) -> None:
        assert self._fd is not None  # noqa: S101 - who calls has opened it
        first = next((record["n"] for _, record in _records(self.file) if record is not None), self.count)
        self.close()
        self.file.rename(self.folder / f"audit-{first:012d}.jsonl")
        closed = _closed(self.folder)
        sizes = [path.stat().st_size for path in closed]
        while closed and sum(sizes) > self._max_total - self._max_bytes:
            closed.pop(0).unlink()
            sizes.pop(0)
        self._fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = 0


def _line(number: int, previous: str, time_ns: int, what: Mapping[str, Any]) -> tuple[bytes, str]:
    shown = {key: value[:_LONGEST_TEXT] if isinstance(value, str) else value for key, value in what.items()}
    record = {"n": number, "time": iso_time(time_ns), **shown, "prev": previous}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))[:-1]
    hash_ = _hash(previous, text)
    return f'{text}{_HASH_FIELD}{hash_}"}}\n'.encode(), hash_


def _hash(previous: str, text: str) -> str:
    return hashlib.sha256((previous + text).encode()).hexdigest()


def verify(folder: Path) -> Verdict:
    """Look at all files of a folder, oldest first.

    Raises:
        OSError: one cannot be read.
    """
    records, expected, previous = 0, None, START
    faults: list[Fault] = []
    torn: list[Fault] = []
    paths = [*_closed(folder), folder / FILE_NAME]
    for path in paths:
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8")
                    record = json.loads(text)
                    number, given = record["n"], record["hash"]
                except (ValueError, KeyError, TypeError):
                    torn.append(Fault(path, line, "no whole record"))
                    continue
                body = text.rstrip("\n").rpartition(_HASH_FIELD)[0]
                if expected is None:
                    previous = record.get("prev", START)
                    if number == 1 and previous != START:
                        faults.append(Fault(path, line, "the first record does not begin a chain"))
                elif number != expected:
                    faults.append(Fault(path, line, f"record {number} where {expected} should be"))
                if record.get("prev") != previous:
                    faults.append(Fault(path, line, f"record {number} does not follow the one before it"))
                elif _hash(previous, body) != given:
                    faults.append(Fault(path, line, f"record {number} was changed"))
                records += 1
                expected, previous = number + 1, given
    # A torn line is harmless where a crash leaves one: the numbers go on behind it without a gap.
    return Verdict(records, previous, faults, torn)


def _closed(folder: Path) -> list[Path]:
    return sorted(folder.glob("audit-*.jsonl"))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                yield line, _parsed(raw)
    except FileNotFoundError:
        return


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    is_whole = isinstance(record, dict) and isinstance(record.get("n"), int) and "hash" in record
    return record if is_whole else None


def _last_record(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for raw in reversed(lines):
        record = _parsed(raw)
        if record is not None:
            return record
    return None


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, the last one first."""
    try:
        with path.open("rb") as file:
            position, rest = file.seek(0, os.SEEK_END), b""
            while position:
                start = max(0, position - _TAIL_BYTES)
                file.seek(start)
                lines = (file.read(position - start) + rest).split(b"\n")
                position, rest = start, lines[0]
                yield from reversed(lines[1:])
            yield rest
    except FileNotFoundError:
        return


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def export(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield all records, oldest first."""
    for path in [*_closed(folder), folder / FILE_NAME]:
        for _, record in _records(path):
            if record is not None:
                yield record
