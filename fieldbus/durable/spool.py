"""The spool: what others have not got yet, on disk, in the order in which it came.

Layout of the file (SQLite)::

    spool(boot, version)                       one row: the incarnation of this file
    streams(id, name, last_seq, floor, about)  who it is for; `about` is the owner's own note (JSON)
    rows(id, stream, first, count, gap, time_ns, data)
    marks(source, seq)                         what of other gateways' streams is already in here

A row is up to `ROW_ITEMS` samples of one stream, encoded by the stream's own encoder, so that what is read
back goes on the wire as it is. Samples of a stream are numbered from 1; `first` is the number of a row's
first,
`gap` how many just before it were dropped before they could be written. Nothing up to `floor` is here any
more: it was acknowledged, or dropped.

Rules:

* What is appended is on disk before it is sent, always: `Stream.rows_after` gives committed rows only.
* The spool is bounded in bytes and in age; the oldest rows go first, whosever they are. Each dropped sample
  is counted, and whoever gets the stream can tell how many are missing, exactly, by the numbers.
* While the disk takes nothing, up to `max_waiting` samples wait in memory; then the oldest of them go, and
  are counted too.
* Numbers never begin anew within one `boot`, so (boot, stream, number) names a sample for ever.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fieldbus.durable.committer import DEFAULT_GROUP_COMMIT_S, Committer

ROW_ITEMS = 500
"""Samples of a row, at most."""
DEFAULT_MAX_BYTES = 256 * 1024 * 1024
DEFAULT_MAX_AGE_S = 7 * 86400.0
DEFAULT_MAX_WAITING = 50_000
_ROW_OVERHEAD = 64
"""Bytes that a row costs beside its data, about."""
_FRESH_BYTES = 4 * 1024 * 1024
"""Committed rows that are kept in memory so that they need not be read back, at most."""
HANGS_S = 5.0
"""After this time without an answer the disk takes nothing, whether it says so or not."""
_LOOK_S = 1.0
"""How often it is looked for rows that are too old."""
_DROP_AT_ONCE = 256

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool(boot TEXT NOT NULL, version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS streams(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL, floor INTEGER NOT NULL,
  about TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows(
  id INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER NOT NULL, first INTEGER NOT NULL,
  count INTEGER NOT NULL, gap INTEGER NOT NULL, time_ns INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS rows_of ON rows(stream, first);
CREATE TABLE IF NOT EXISTS marks(source TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
"""

Encode = Callable[[Sequence[Any]], bytes]


class Row(NamedTuple):
    """Committed samples of a stream, that follow each other."""

    first: int
    samples: int
    """How many there are."""
    gap: int
    """How many samples just before the first were never written."""
    time_ns: int
    """When it was written, wall clock."""
    data: bytes

    @property
    def last(self) -> int:
        """The number of the last sample."""
        return self.first + self.samples - 1


class _Append(NamedTuple):
    stream: Stream
    items: Sequence[Any]
    gap: int = 0


class _Acknowledge(NamedTuple):
    stream: Stream
    seq: int


class _Mark(NamedTuple):
    source: str
    seq: int
    done: Callable[[], None] | None


class _About(NamedTuple):
    stream: Stream
    about: str | None
    """None: the stream is forgotten."""


_Item = _Append | _Acknowledge | _Mark | _About


class _Result(NamedTuple):
    """What a transaction came to."""

    rows: Sequence[tuple[Stream, Row]]
    dropped: Mapping[str, tuple[int, int]]
    """Stream to how many samples were dropped, and its floor then."""
    loaded: Mapping[str, tuple[int, int]]
    """Stream to its last number and its floor, if the file was only opened now."""


class Stream:
    """What one receiver has not got yet. Used in the event loop only."""

    def __init__(self, spool: Spool, name: str, encode: Encode) -> None:
        self.name = name
        self.encode = encode
        self.waiting = 0
        """Samples that are not on disk yet."""
        self.committed = 0
        """The number of the newest sample that is on disk."""
        self.floor = 0
        """Nothing up to here is kept any more."""
        self.dropped = 0
        """Samples that were dropped since the gateway started."""
        self.gap = 0
        """Samples that were dropped behind all that waits."""
        self._spool = spool
        self._fresh: deque[Row] = deque()
        self._fresh_bytes = 0
        self.changed = asyncio.Event()
        """Set when there are new committed rows; whoever waits clears it."""

    @property
    def boot(self) -> str:
        """The incarnation in which the numbers count."""
        return self._spool.boot

    @property
    def backlog(self) -> int:
        """Samples that the other side has not got yet, at most.

        Those that were dropped before they were written count until what is behind them was acknowledged.
        """
        return self.waiting + max(0, self.committed - self.floor)

    def append(self, items: Sequence[Any]) -> None:
        """Keep samples, in order. Never blocks, never raises."""
        if items:
            self.waiting += len(items)
            gap, self.gap = self.gap, 0
            self._spool.put(_Append(self, items, gap))

    def acknowledge(self, seq: int) -> None:
        """Learn that the other side has all samples up to a number."""
        seq = min(seq, self.committed)
        if seq <= self.floor:
            return
        self.floor = seq
        while self._fresh and self._fresh[0].last <= seq:
            self._fresh_bytes -= len(self._fresh.popleft().data)
        self._spool.put(_Acknowledge(self, seq))

    async def rows_after(self, seq: int, max_bytes: int = 512 * 1024) -> Sequence[Row]:
        """Return the next committed rows behind a number, the oldest first; none if there are none.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        seq = max(seq, self.floor)
        if seq >= self.committed:
            return ()
        fresh = self._fresh
        if fresh and fresh[0].first - fresh[0].gap - 1 <= seq:
            found: list[Row] = []
            size = 0
            for row in fresh:
                if row.last > seq:
                    found.append(row)
                    size += len(row.data)
                    if size >= max_bytes:
                        break
            return found
        return await self._spool.read(self.name, seq, max_bytes)

    def set_about(self, about: Mapping[str, Any]) -> None:
        """Keep the owner's note beside the stream."""
        self._spool.put(_About(self, json.dumps(about)))

    def forget(self) -> None:
        """Drop the stream and all that is in it: nobody wants it any more."""
        self._spool.forget(self)

    def wrote(self, rows: Iterable[Row]) -> None:
        """Learn that rows are on disk."""
        for row in rows:
            before = row.first - row.gap - 1
            if self.floor >= self.committed < before:
                self.floor = before  # what is between was thrown away with the stream that had this name
            self.committed = max(self.committed, row.last)
            self._fresh.append(row)
            self._fresh_bytes += len(row.data)
        while self._fresh_bytes > _FRESH_BYTES:
            self._fresh_bytes -= len(self._fresh.popleft().data)
        self.changed.set()

    def lost(self, count: int, floor: int) -> None:
        """Learn that samples were dropped from the disk."""
        self.dropped += count
        self.floor = max(self.floor, floor)
        while self._fresh and self._fresh[0].last <= floor:
            self._fresh_bytes -= len(self._fresh.popleft().data)
        self.changed.set()


class Spool:
    """All streams of a gateway, in one file."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_age_s: float = DEFAULT_MAX_AGE_S,
        group_commit_s: float = DEFAULT_GROUP_COMMIT_S,
        max_waiting: int = DEFAULT_MAX_WAITING,
        say: Callable[[str, bool], None] = lambda _text, _is_bad: None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take what the spool works with; nothing is opened.

        Args:
            path: the file.
            max_bytes: what the rows may have together.
            max_age_s: older rows are dropped.
            group_commit_s: how long a sample waits for others before it is written.
            max_waiting: samples that wait in memory at most while the disk takes nothing.
            say: called with trouble and whether it is bad, or over.
            wall_ns: the wall clock.
        """
        self.boot = secrets.token_hex(8)
        """The incarnation: the file's, or that of the one that is begun."""
        self.streams: dict[str, Stream] = {}
        self.abouts: dict[str, Mapping[str, Any]] = {}
        """The notes that stood beside streams when the file was opened."""
        self.marks: dict[str, int] = {}
        """Source to the number of the last sample of it that is in here."""
        self.bytes = 0
        """What the rows have together, as of the last commit."""
        self._max_bytes = max_bytes
        self._max_age_ns = round(max_age_s * 1e9)
        self._max_waiting = max_waiting
        self._waiting = 0
        self._say = say
        self._wall_ns = wall_ns
        self._known: dict[str, tuple[int, int]] = {}
        self._looked_s = 0.0
        self._is_known = False
        # The thread's: what the file says, and before a commit what it will say.
        self._ids: dict[str, int] = {}
        self._last: dict[str, int] = {}
        """Stream to the number of its last sample. Goes on when the file is lost."""
        self._size = 0
        self._before: tuple[dict[str, int], dict[str, int], int] | None = None
        """The same as it was before the transaction, while there is one."""
        self._loaded: dict[str, tuple[int, int]] = {}
        self.committer: Committer[_Item] = Committer(path, self, group_commit_s)

    # --- in the event loop

    def open(self) -> None:
        """Open the file and start its thread."""
        self.committer.open()

    def close(self) -> None:
        """Write what waits, if the disk takes it, and end the thread."""
        self.committer.close()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now; None if it can."""
        return self.committer.trouble

    def stream(self, name: str, encode: Encode) -> Stream:
        """Return the stream of a name, made if it is new, continued if it was in the file."""
        found = self.streams.get(name)
        if found is None:
            found = self.streams[name] = Stream(self, name, encode)
            found.committed, found.floor = self._known.get(name, (0, 0))
            if found.committed > found.floor:
                found.changed.set()
        return found

    def forget(self, stream: Stream) -> None:
        """Drop a stream."""
        self.streams.pop(stream.name, None)
        self.abouts.pop(stream.name, None)
        self._known[stream.name] = stream.committed, stream.committed
        self.put(_About(stream, None))

    def mark(self, source: str, seq: int, done: Callable[[], None] | None = None) -> None:
        """Remember that all samples of another's stream up to a number are in here, or not for here.

        Args:
            source: whose stream.
            seq: the number.
            done: called when that is on disk, together with all that was appended before.
        """
        self.put(_Mark(source, seq, done))

    def put(self, item: _Item) -> None:
        """Have an item written; if too much waits, the oldest samples go."""
        self.committer.put(item)
        if isinstance(item, _Append):
            self._waiting += len(item.items)
            if self._waiting > self._max_waiting and (
                self.trouble is not None or self.committer.hangs_s() > HANGS_S
            ):
                with self.committer.held():
                    self._drop_waiting()

    def _drop_waiting(self) -> None:
        kept: list[_Item] = []
        gaps: dict[Stream, int] = {}
        while self._waiting > self._max_waiting:
            item = self.committer.take_oldest()
            if item is None:
                break
            if not isinstance(item, _Append):
                kept.append(item)
                continue
            self._waiting -= len(item.items)
            item.stream.waiting -= len(item.items)
            item.stream.dropped += len(item.items)
            gaps[item.stream] = gaps.get(item.stream, 0) + item.gap + len(item.items)
        # The next samples of each stream say how many are missing before them.
        while gaps:
            item = self.committer.take_oldest()
            if item is None:
                break
            if isinstance(item, _Append) and item.stream in gaps:
                item = item._replace(gap=item.gap + gaps.pop(item.stream))
            kept.append(item)
        for item in reversed(kept):
            self.committer.put_back_first(item)
        for stream, count in gaps.items():
            stream.gap += count  # nothing is behind them yet: what comes next says it

    async def read(self, name: str, seq: int, max_bytes: int) -> Sequence[Row]:
        """Return committed rows of a stream behind a number."""
        return await self.committer.ask(lambda connection: self._read(connection, name, seq, max_bytes))

    def committed(self, items: Sequence[_Item], result: Any) -> None:
        """Learn that items are durable."""
        found: _Result = result
        for name, (last, floor) in found.loaded.items():
            stream = self.streams.get(name)
            if stream is not None:
                stream.committed, stream.floor = max(stream.committed, last), max(stream.floor, floor)
        fresh: dict[Stream, list[Row]] = {}
        for stream, row in found.rows:
            fresh.setdefault(stream, []).append(row)
        for item in items:
            if isinstance(item, _Append):
                self._waiting -= len(item.items)
                item.stream.waiting -= len(item.items)
        for stream, rows in fresh.items():
            stream.wrote(rows)
        for item in items:
            if isinstance(item, _Mark):
                self.marks[item.source] = max(item.seq, self.marks.get(item.source, 0))
                if item.done is not None:
                    item.done()
        self.bytes = self._size
        for name, (count, floor) in found.dropped.items():
            lost = self.streams.get(name)
            if lost is not None:
                lost.lost(count, floor)

    def said(self, text: str, *, is_bad: bool) -> None:
        """Pass on what there is to be said of the file."""
        self._say(text, is_bad)

    # --- in the thread

    def opened(self, connection: sqlite3.Connection) -> None:
        """Make the tables, and learn what is in them."""
        connection.executescript(_SCHEMA)
        found = connection.execute("SELECT boot FROM spool").fetchone()
        if found is None:
            connection.execute("INSERT INTO spool VALUES(?, 1)", (self.boot,))
        elif not self._is_known:
            self.boot = found[0]
        self._ids = {}
        known: dict[str, tuple[int, int]] = {}
        for number, name, last_seq, floor, about in connection.execute("SELECT * FROM streams").fetchall():
            (lowest,) = connection.execute(
                "SELECT min(first - gap) FROM rows WHERE stream = ?", (number,)
            ).fetchone()
            self._ids[name] = number
            known[name] = last_seq, max(floor, lowest - 1) if lowest is not None else last_seq
            self._last[name] = max(last_seq, self._last.get(name, 0))
            self.abouts.setdefault(name, json.loads(about))
        (self._size,) = connection.execute(
            f"SELECT coalesce(sum(length(data) + {_ROW_OVERHEAD}), 0) FROM rows"
        ).fetchone()
        self.bytes = self._size
        if not self._is_known:
            marks = dict(connection.execute("SELECT source, seq FROM marks").fetchall())
            self._known, self.marks, self._loaded = known, marks, dict(known)
            self._is_known = True

    def settled(self, *, is_committed: bool) -> None:
        """Keep what was done, or forget it."""
        before, self._before = self._before, None
        if is_committed:
            self._loaded = {}
        elif before is not None:
            self._ids, self._last, self._size = before

    def apply(self, connection: sqlite3.Connection, items: Sequence[_Item]) -> _Result:
        """Write items, then drop what is too much or too old."""
        self._before = dict(self._ids), dict(self._last), self._size
        rows: list[tuple[Stream, Row]] = []
        size = self._size
        dropped: dict[str, tuple[int, int]] = {}
        if not self._ids:
            self._restore(connection, dropped)
        appended: dict[Stream, list[_Append]] = {}
        for item in items:
            if isinstance(item, _Append):
                appended.setdefault(item.stream, []).append(item)
            elif isinstance(item, _About) and item.about is None:
                # What is appended behind it is for who wants the stream again.
                size += self._write(connection, appended, rows) - self._empty(connection, item.stream.name)
        size += self._write(connection, appended, rows)
        for item in items:
            if isinstance(item, _Acknowledge):
                size -= self._delete(connection, item.stream.name, item.seq)
            elif isinstance(item, _Mark):
                connection.execute(
                    "INSERT INTO marks VALUES(?, ?) "
                    "ON CONFLICT(source) DO UPDATE SET seq = max(seq, excluded.seq)",
                    (item.source, item.seq),
                )
            elif isinstance(item, _About) and item.about is not None:
                number = self._id_of(connection, item.stream.name)
                connection.execute("UPDATE streams SET about = ? WHERE id = ?", (item.about, number))
        size -= self._trim(connection, size, dropped)
        connection.execute("PRAGMA incremental_vacuum(64)")
        self._size = size
        return _Result(rows, dropped, self._loaded)

    def _restore(self, connection: sqlite3.Connection, dropped: dict[str, tuple[int, int]]) -> None:
        """Make the streams again in a file that was begun anew: what the one before had of them is lost."""
        for source, seq in self.marks.items():
            connection.execute("INSERT OR REPLACE INTO marks VALUES(?, ?)", (source, seq))
        for name, last in self._last.items():
            stream = self.streams.get(name)
            if stream is not None:
                dropped[name] = max(0, last - stream.floor), last
                self._id_of(connection, name)

    def _id_of(self, connection: sqlite3.Connection, name: str) -> int:
        found = self._ids.get(name)
        if found is None:
            about = json.dumps(self.abouts.get(name, {}))
            last = self._last.setdefault(name, 0)
            found = connection.execute(
                "INSERT INTO streams(name, last_seq, floor, about) VALUES(?, ?, ?, ?)",
                (name, last, last, about),
            ).lastrowid
            assert found is not None  # noqa: S101 - an INSERT has one
            self._ids[name] = found
        return found

    def _write(
        self,
        connection: sqlite3.Connection,
        appended: dict[Stream, list[_Append]],
        rows: list[tuple[Stream, Row]],
    ) -> int:
        """Write what was appended, and forget that it was; return its bytes."""
        size = sum(self._write_one(connection, stream, found, rows) for stream, found in appended.items())
        appended.clear()
        return size

    def _write_one(
        self,
        connection: sqlite3.Connection,
        stream: Stream,
        appended: Sequence[_Append],
        rows: list[tuple[Stream, Row]],
    ) -> int:
        now_ns = self._wall_ns()
        number = self._id_of(connection, stream.name)
        last = self._last[stream.name]
        made: list[Row] = []
        gap = 0
        pending: list[Any] = []

        def cut() -> None:
            nonlocal last, gap
            if pending:
                made.append(Row(last + gap + 1, len(pending), gap, now_ns, stream.encode(pending)))
                last, gap = last + gap + len(pending), 0
                pending.clear()

        for item in appended:
            if item.gap:
                cut()
                gap += item.gap
            for start in range(0, len(item.items), ROW_ITEMS):
                part = item.items[start : start + ROW_ITEMS]
                if len(pending) + len(part) > ROW_ITEMS:
                    cut()
                pending.extend(part)
        cut()
        connection.executemany(
            "INSERT INTO rows(stream, first, count, gap, time_ns, data) VALUES(?, ?, ?, ?, ?, ?)",
            [(number, *row) for row in made],
        )
        connection.execute("UPDATE streams SET last_seq = ? WHERE id = ?", (last, number))
        self._last[stream.name] = last
        rows.extend((stream, row) for row in made)
        return sum(len(row.data) + _ROW_OVERHEAD for row in made)

    def _delete(self, connection: sqlite3.Connection, name: str, seq: int) -> int:
        number = self._ids.get(name)
        if number is None:
            return 0
        which = "stream = ? AND first + count - 1 <= ? AND first <= ?"
        (size,) = connection.execute(
            f"SELECT coalesce(sum(length(data) + {_ROW_OVERHEAD}), 0) FROM rows WHERE {which}",
            (number, seq, seq),
        ).fetchone()
        connection.execute(f"DELETE FROM rows WHERE {which}", (number, seq, seq))
        connection.execute("UPDATE streams SET floor = max(floor, ?) WHERE id = ?", (seq, number))
        return int(size)

    def _empty(self, connection: sqlite3.Connection, name: str) -> int:
        # The stream's number and name stay, so that numbers do not begin anew if it is wanted again.
        number = self._ids.get(name, 0)
        (size,) = connection.execute(
            f"SELECT coalesce(sum(length(data) + {_ROW_OVERHEAD}), 0) FROM rows WHERE stream = ?", (number,)
        ).fetchone()
        connection.execute("DELETE FROM rows WHERE stream = ?", (number,))
        connection.execute("UPDATE streams SET about = '{}', floor = last_seq WHERE id = ?", (number,))
        return int(size)

    def _trim(self, connection: sqlite3.Connection, size: int, dropped: dict[str, tuple[int, int]]) -> int:
        """Drop the oldest rows while they are too many or too old; return their bytes."""
        names = {number: name for name, number in self._ids.items()}
        now_s = time.monotonic()
        oldest_ns = -1
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            oldest_ns = self._wall_ns() - self._max_age_ns
        freed = 0
        while True:
            rows = connection.execute(
                f"SELECT id, stream, first, count, time_ns, length(data) + {_ROW_OVERHEAD} FROM rows "
                "ORDER BY id LIMIT ?", (_DROP_AT_ONCE,)
            ).fetchall()  # fmt: skip
            last_id = 0
            for number, stream, first, count, time_ns, bytes_ in rows:
                if size - freed <= self._max_bytes and time_ns >= oldest_ns:
                    break
                last_id = number
                freed += bytes_
                name = names.get(stream, "")
                floor = first + count - 1
                dropped[name] = dropped.get(name, (0, 0))[0] + count, floor
                connection.execute("UPDATE streams SET floor = max(floor, ?) WHERE id = ?", (floor, stream))
            if last_id:
                connection.execute("DELETE FROM rows WHERE id <= ?", (last_id,))
            if len(rows) < _DROP_AT_ONCE or last_id != rows[-1][0]:
                return freed

    def _read(self, connection: sqlite3.Connection, name: str, seq: int, max_bytes: int) -> list[Row]:
        number = self._ids.get(name)
        if number is None:
            return []
        found: list[Row] = []
        size = 0
        for row in connection.execute(
            "SELECT first, count, gap, time_ns, data FROM rows WHERE stream = ? AND first + count - 1 > ? "
            "AND first > ? ORDER BY first",
            (number, seq, seq - ROW_ITEMS),
        ):
            found.append(Row(*row))
            size += len(row[4])
            if size >= max_bytes:
                break
        return found
