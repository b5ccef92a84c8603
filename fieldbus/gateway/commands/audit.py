"""The record of every attempt to write, in a file that shows if it was changed.

Layout: JSON lines, UTF-8. Each has a number ``n`` that goes up by one, what happened, ``prev``, the
``hash`` of the line before (64 zeros before the first), and last ``hash``: SHA-256 over ``prev`` and the
line's text without ``hash``, that is up to and without ``,"hash":"…"}``. A file of more than `MAX_BYTES` is
closed and named ``audit-<first n>.jsonl``; the chain goes on in the next. When all have more than is allowed,
the oldest go.

Rules:

* A record is written, and is the kernel's, before the answer to the command goes out; it is on the disk
  about a second later. A killed process loses none, a power cut the last moment's.
* What must not happen twice has two records: first an *intent* (``"outcome": "intent"``), on the disk before
  the request is sent, then how it ended, with the number of the first one in ``intent``. An intent without an
  end is a write of which nobody knows whether it was done.
* A line counts as a record only if it can be one: its number is one that a record can have, its hashes are 64
  hexadecimal digits. What stands between records and is neither one nor the torn beginning of the next one is
  garbage, and a fault of the chain.
* What is there is never changed. A last line that a power cut has torn is closed by a line feed and left:
  it is told as such, and the chain goes on behind it from the last whole line.
* Several processes may write (a gateway, and `fieldbus write` beside it): each locks the file for one record,
  and goes on from what the others have written.
* A record that cannot be written is counted. Commands are then refused; routes and safe values go on, for a
  machine must not stop because a disk is full.

Design: a chain shows what was changed or taken out of the middle, and what is missing at the beginning,
unless those were whole files, whose names say where they begin. That the end was cut off it cannot show by
itself: so number and hash of the last record are published with the gateway's health, for others to keep.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fieldbus.durable.files import make_folder, open_own
from fieldbus.errors import os_reason
from fieldbus.sample_json import iso_time
from fieldbus.text import printable

if sys.platform != "win32":
    import fcntl

FILE_NAME = "audit.jsonl"
MAX_BYTES = 64 * 1024 * 1024
MAX_TOTAL = 2 * 1024 * 1024 * 1024
START = "0" * 64
INTENT = "intent"
"""The outcome of a record of what is about to be done."""
_HASH_FIELD = ',"hash":"'
_TAIL_BYTES = 256 * 1024
_LONGEST_TEXT = 500
_ROOM_BYTES = 64 * 1024
"""So much must be free on the disk before something is done that has to be recorded."""
_LOCK_S = 0.05
"""How long another process may write a record."""
_HASH = re.compile(r"[0-9a-f]{64}")
_TORN = re.compile(rb'\{"n":(\d{1,19})')
_MOST_RECORDS = 1 << 62
_CLOSED_NAME = re.compile(r"audit-(\d{12,})(?:_\d+)?\.jsonl")


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
    first: int = 1
    """Number of the first record; more than 1 if older files were put elsewhere."""


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
        self.max_total = max_total
        """Obeyed when a file is full."""
        self._fd: int | None = None
        self._size = 0
        self._unsynced: list[int] = []
        """Descriptors of files that were closed before they were on the disk."""
        self._mutex = threading.Lock()
        self._turn = threading.Lock()
        self._is_dirty = False
        self._is_new = False
        """Whether the file's name may not be on the disk yet."""

    def is_ready(self) -> bool:
        """Return whether a record could be written now, as far as that can be known before."""
        try:
            fd = self._begin()
            self._end()
            disk = os.fstatvfs(fd)
            if disk.f_bavail * disk.f_frsize < _ROOM_BYTES:
                raise OSError(None, "no space left on device")
        except OSError as error:
            self.trouble = os_reason(error)
            return False
        return True

    def record(self, time_ns: int, what: Mapping[str, Any]) -> bool:
        """Append a record; return whether it is written."""
        try:
            self._begin()
            if self._size > self._max_bytes:
                self._turn_over()
                self._begin()
            text, hash_ = _line(self.count + 1, self.last_hash, time_ns, what)
            self._append(text)
        except OSError as error:
            self.lost += 1
            self.trouble = os_reason(error)
            return False
        finally:
            self._end()
        self.trouble = None
        self.count, self.last_hash = self.count + 1, hash_
        return True

    def intend(self, time_ns: int, what: Mapping[str, Any]) -> int | None:
        """Append a record of what is about to be done; return its number, None if it cannot be written."""
        return self.count if self.record(time_ns, {**what, "outcome": INTENT}) else None

    def sync(self) -> None:
        """Have what was recorded on the disk. May take as long as the disk likes; for a thread of its own.

        Raises:
            OSError: it is not there.
        """
        with self._turn:  # what another thread is about to have on the disk is not there yet
            with self._mutex:  # the file may be turned over meanwhile
                closed, self._unsynced = self._unsynced, []
                is_new, self._is_new = self._is_new, False
                if self._is_dirty and self._fd is not None:
                    closed.append(os.dup(self._fd))
                self._is_dirty = False
            try:
                while closed:
                    os.fdatasync(closed[-1])
                    os.close(closed.pop())
                if is_new:
                    _sync_folder(self.folder)
            except OSError:
                with self._mutex:
                    self._unsynced += closed
                    self._is_new = self._is_new or is_new
                raise

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # there is nobody left to tell
            self.sync()
        for fd in (*self._unsynced, *(() if self._fd is None else (self._fd,))):
            os.close(fd)
        self._unsynced, self._fd = [], None

    def _put_aside(self) -> None:
        """Close the file, which is on the disk with the next `sync`."""
        with self._mutex:
            if self._fd is not None:
                self._unsynced.append(self._fd)
                self._fd = None

    def _begin(self) -> int:
        """Open and lock the file, and go on from what is there by now."""
        while True:
            fd = self._fd
            if fd is None:
                make_folder(self.folder)
                fd = self._fd = open_own(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                self._size, self._is_new = -1, True
            _lock(fd)
            here = os.fstat(fd)
            if _is_at(self.file, here):
                break
            self._put_aside()  # it was put elsewhere, or removed
        if here.st_size != self._size:
            self._catch_up(fd)
        return fd

    def _end(self) -> None:
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _catch_up(self, fd: int) -> None:
        """Learn where the chain ends. What this process wrote itself it knows better than the file."""
        last = _last_record(self.file)
        if last is None:
            last = next(
                (found for path in reversed(_closed(self.folder)) if (found := _last_record(path))), None
            )
        if last is not None and last["n"] > self.count:
            self.count, self.last_hash = last["n"], last["hash"]
        if not _ends_whole(self.file):
            os.write(fd, b"\n")
        self._size = os.fstat(fd).st_size

    def _append(self, data: bytes) -> None:
        assert self._fd is not None  # noqa: S101 - who calls has opened it
        written = os.write(self._fd, data)
        self._is_dirty = True
        if written < len(data):
            os.ftruncate(self._fd, self._size)
            raise OSError(None, "no space left on device")
        self._size += written

    def _turn_over(self) -> None:
        first = next((record["n"] for _, record in _records(self.file) if record is not None), self.count)
        name, number = f"audit-{first:012d}", 1
        while (self.folder / f"{name}.jsonl").exists():
            number += 1
            name = f"audit-{first:012d}_{number}"
        self.file.rename(self.folder / f"{name}.jsonl")
        self._put_aside()
        closed = _closed(self.folder)
        sizes = [path.stat().st_size for path in closed]
        while closed and sum(sizes) > self.max_total - self._max_bytes:
            closed.pop(0).unlink()
            sizes.pop(0)


def _lock(fd: int) -> None:
    """Lock a file that others lock for a moment only; who holds it for longer must not hold us up."""
    give_up_s = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_s:
                raise OSError(None, "locked by another process") from None
            time.sleep(0.001)
        else:
            return


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_at(path: Path, here: os.stat_result) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _line(number: int, previous: str, time_ns: int, what: Mapping[str, Any]) -> tuple[bytes, str]:
    shown = {key: value[:_LONGEST_TEXT] if isinstance(value, str) else value for key, value in what.items()}
    record = {"n": number, "time": iso_time(time_ns), **shown, "prev": previous}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))[:-1]
    # Halves of surrogates, which JSON can have and UTF-8 cannot, as JSON writes them.
    body = text.encode("utf-8", "backslashreplace")
    hash_ = _hash(previous, body)
    return body + _tail(hash_), hash_


def _tail(hash_: str) -> bytes:
    return f'{_HASH_FIELD}{hash_}"}}\n'.encode()


def _hash(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode("utf-8", "backslashreplace") + body).hexdigest()


def verify(folder: Path) -> Verdict:
    """Look at all files of a folder, oldest first.

    Raises:
        OSError: one cannot be read.
    """
    records, expected, previous = 0, 0, START
    begin = 1
    faults: list[Fault] = []
    torn: list[Fault] = []
    for path in [*_closed(folder), folder / FILE_NAME]:
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                record = parsed(raw)
                if record is None:
                    if _may_be_torn(raw, expected):
                        torn.append(Fault(path, line, "a record that was not written whole"))
                    else:
                        faults.append(Fault(path, line, f"no record: {_shown(raw)}"))
                    continue
                number, given = record["n"], record["hash"]
                if not expected:
                    name = _CLOSED_NAME.fullmatch(path.name)
                    begin = expected = 1 if name is None else int(name[1])
                    previous = START if begin == 1 else record["prev"]
                if number != expected:
                    faults.append(Fault(path, line, f"record {number} where {expected} should be"))
                if record["prev"] != previous:
                    faults.append(Fault(path, line, f"record {number} does not follow the one before it"))
                body = raw.removesuffix(_tail(given))
                if len(body) == len(raw) or _hash(record["prev"], body) != given:
                    faults.append(Fault(path, line, f"record {number} was changed"))
                records += 1
                expected, previous = number + 1, given
    # A torn line is harmless where a crash leaves one: the numbers go on behind it without a gap.
    return Verdict(records, previous, faults, torn, begin)


def _closed(folder: Path) -> list[Path]:
    return sorted(folder.glob("audit-*.jsonl"))


def last_files(folder: Path) -> list[Path]:
    """Return the last file that is full, if there is one, and the one that is written."""
    return [*_closed(folder)[-1:], folder / FILE_NAME]


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                yield line, parsed(raw)
    except FileNotFoundError:
        return


def parsed(raw: bytes) -> dict[str, Any] | None:
    """Return the record that a line is; None if it is none, or torn."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("time"), str):
        return None
    number, hashes = record.get("n"), (record.get("prev"), record.get("hash"))
    if type(number) is not int or not 0 < number < _MOST_RECORDS:
        return None
    is_one = all(isinstance(found, str) and _HASH.fullmatch(found) for found in hashes)
    return record if is_one else None


def _may_be_torn(raw: bytes, expected: int) -> bool:
    """Return whether a line can be what a crash leaves of the record that was to come.

    Args:
        raw: the line.
        expected: the number of that record; 0 if it is not known.
    """
    begun = raw.rstrip(b"\n").rstrip(b"\0")
    if b'{"n":'.startswith(begun[:5]) and len(begun) <= len(b'{"n":'):
        return True  # also one of which nothing but room was written
    found = _TORN.match(begun)
    if found is None or begun.endswith(b"}"):
        return False
    number = int(found[1])
    is_cut_in_it = len(begun) == found.end() and str(expected).encode().startswith(found[1])
    return not expected or number == expected or is_cut_in_it


def _shown(raw: bytes) -> str:
    """Return how a line that is no record begins, for people."""
    text = printable(raw[:40].rstrip(b"\r\n").decode(errors="replace"))
    return f"{text!r} …" if len(raw) > 40 else repr(text)


def _last_record(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return None
    for raw in reversed(lines):
        record = parsed(raw)
        if record is not None:
            return record
    return None


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def export(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield all records, oldest first."""
    for path in [*_closed(folder), folder / FILE_NAME]:
        for _, record in _records(path):
            if record is not None:
                yield record
