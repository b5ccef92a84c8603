"""The file of a spool: what is in it, and how it is written. Used by the thread of a committer.

Layout (SQLite)::

    spool(boot, version)                       one row: the incarnation of this file's first life
    lives(stream, base, boot)                  rows of a stream behind `base` are of the incarnation `boot`
    streams(id, name, last_seq, floor, about)  who it is for; `about` is the owner's own note (JSON)
    rows(id, stream, first, count, gap, time_ns, data, crc)
                                               `crc` is null in rows of version 0.1
    marks(source, seq)                         what of other gateways' streams is already in here
    own_time(own_ns, wall_ns)                  see `own_time`: `time_ns` of rows is the file's own time

A row is up to `ROW_ITEMS` samples of one stream, encoded by the stream's own encoder, so that what is read
back goes on the wire as it is. Samples of a stream are numbered from 1 as they are written; `first` is the
number of a row's first, `gap` how many just before it were dropped before they could be written. Nothing up
to `floor` is here any more: it was acknowledged, or dropped.

Rules:

* Each time that a file is opened by another process a new incarnation begins, with the first row that is
  written. So what is written after a file came out of a backup, or in the copy of a memory card, has no name
  that another row had before, though its number had been given already.
* Numbers never begin anew within one incarnation: not when a stream is forgotten and wanted again, and not
  when the file is lost while it is used.
* What a transaction changes in here is undone if it fails.
* A row that is not as it was written (CRC-32 over its numbers and its data) is deleted when it is read, and
  its samples are missing: whoever reads on sees that by the numbers. No content of a row, whatever it is,
  makes a transaction fail.
* Rows age by the file's own time: a wall clock that is set drops nothing. What is too old is dropped in
  pieces, `_DROP_AT_ONCE` rows a second at most.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from fieldbus.clock import Clock
from fieldbus.durable.own_time import OwnTime

ROW_ITEMS = 500
"""Samples of a row, at most."""
_ROW_OVERHEAD = 64
"""Bytes that a row costs beside its data, about."""
_LOOK_S = 1.0
"""How often it is looked for rows that are too old."""
_DROP_AT_ONCE = 256
_LAST = "CAST(first AS INTEGER) + CAST(count AS INTEGER) - 1"
"""The number of a row's last sample; whatever stands there is a number."""
_SIZE = f"coalesce(length(data), 0) + {_ROW_OVERHEAD}"
_TOO_MUCH = "more waits than the spool may hold (`spool.max_size`)"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool(boot TEXT NOT NULL, version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS lives(
  stream INTEGER NOT NULL, base INTEGER NOT NULL, boot TEXT NOT NULL,
  PRIMARY KEY(stream, base)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streams(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL, floor INTEGER NOT NULL,
  about TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows(
  id INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER NOT NULL, first INTEGER NOT NULL,
  count INTEGER NOT NULL, gap INTEGER NOT NULL, time_ns INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER);
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
    """When it was written, by the file's own time."""
    data: bytes

    @property
    def last(self) -> int:
        """The number of the last sample."""
        return self.first + self.samples - 1


class Missing(NamedTuple):
    """Samples of a stream that are not there any more, that cannot be sent, or that nobody takes."""

    first: int
    samples: int
    why: str

    @property
    def last(self) -> int:
        """The number of the last sample."""
        return self.first + self.samples - 1


class Owner(Protocol):
    """Whose samples they are: of two with one name, one was forgotten."""

    encode: Encode


class Append(NamedTuple):
    """Samples for a stream."""

    stream: str
    owner: Owner
    items: Sequence[Any]
    gap: int = 0
    """How many just before them were dropped."""


class Acknowledge(NamedTuple):
    """The other side has all of a stream up to a number."""

    stream: str
    seq: int


class Mark(NamedTuple):
    """All of another's stream up to a number is in here."""

    source: str
    seq: int
    done: Callable[[], None] | None


class About(NamedTuple):
    """The owner's note on a stream, as JSON; None if the stream is forgotten."""

    stream: str
    about: str | None


Entry = Append | Acknowledge | Mark | About


class Dropped(NamedTuple):
    """What was dropped of a stream."""

    samples: int
    floor: int
    """Nothing up to here is kept any more."""
    why: str


class Result(NamedTuple):
    """What a transaction came to."""

    rows: Mapping[Owner, Sequence[Row]]
    """What was written, by whose it is."""
    dropped: Mapping[str, Dropped]
    """What was dropped of streams, by their names."""
    loaded: Mapping[str, tuple[int, int]]
    """Stream to its last number and its floor, if the file was only opened now."""
    size: int
    """What all rows have together."""
    numbers: Mapping[str, int] = MappingProxyType({})
    """Stream to the number of the last sample that was written now."""


class SpoolFile:
    """What the thread knows of the file."""

    def __init__(
        self,
        max_bytes: int,
        max_age_ns: int,
        clock: Clock,
        floors: Callable[[], Mapping[str, int]],
    ) -> None:
        """Take what it works with.

        Args:
            max_bytes: what the rows may have together.
            max_age_ns: older rows are dropped.
            clock: the gateway's.
            floors: returns the floors of all streams, for when the file is lost.
        """
        self.boot = secrets.token_hex(8)
        """The incarnation of what is written now."""
        self.first_boot = self.boot
        """That of what the file had before any other."""
        self.lives: dict[str, tuple[tuple[int, str], ...]] = {}
        """Stream to where its later incarnations begin, and which they are, in order."""
        self.abouts: dict[str, Mapping[str, Any]] = {}
        """The notes beside streams."""
        self.marks: dict[str, int] = {}
        """Source to the number of the last sample of it that is in here."""
        self.known: dict[str, tuple[int, int]] = {}
        """Stream to its last number and its floor, when the file was first opened."""
        self._sizes: dict[int, int] = {}
        """What the rows of each stream have together, by its number."""
        self._max_bytes = max_bytes
        self._max_age_ns = max_age_ns
        self._clock = clock
        self.time = OwnTime(clock)
        self.notice: str | None = None
        """What there is to be said of the file's time since it was opened."""
        self._floors = floors
        self._looked_s: float | None = None
        self._is_known = False
        self._ids: dict[str, int] = {}
        self._last: dict[str, int] = {}
        """Stream to the number of its last sample. Goes on when the file is lost."""
        self._before: (
            tuple[dict[str, int], dict[str, int], dict[int, int], dict[str, tuple[tuple[int, str], ...]]]
            | None
        ) = None
        """The same as it was before the transaction, while there is one."""
        self._loaded: dict[str, tuple[int, int]] = {}

    def opened(self, connection: sqlite3.Connection) -> None:
        """Make the tables, and learn what is in them."""
        connection.executescript(_SCHEMA)
        if "crc" not in [row[1] for row in connection.execute("PRAGMA table_info(rows)")]:
            connection.execute("ALTER TABLE rows ADD COLUMN crc INTEGER")  # a file of version 0.1
        (newest_ns,) = connection.execute("SELECT max(time_ns) FROM rows").fetchone()
        self.notice = self.time.opened(connection, newest_ns)
        # Of a file that turns out to be damaged nothing is taken over, its incarnation least of all.
        ids: dict[str, int] = {}
        known: dict[str, tuple[int, int]] = {}
        abouts: dict[str, Mapping[str, Any]] = {}
        for number, name, last_seq, floor, about in connection.execute("SELECT * FROM streams").fetchall():
            known[name] = _checked(connection, number, name, last_seq, floor)
            ids[name] = number
            abouts[name] = _about(about)
        found = connection.execute("SELECT boot FROM spool").fetchone()
        if found is None:
            connection.execute("INSERT INTO spool VALUES(?, 1)", (self.first_boot,))
        elif not self._is_known:
            self.first_boot = str(found[0])
        if not self._is_known:
            self.lives = _lives(connection, ids, known)
        self._ids = ids
        for name, (last, _) in known.items():
            self.abouts.setdefault(name, abouts[name])
            self._last[name] = max(last, self._last.get(name, 0))
        self._sizes = dict(
            connection.execute(f"SELECT stream, sum({_SIZE}) FROM rows GROUP BY stream").fetchall()
        )
        if not self._is_known:
            marks = dict(connection.execute("SELECT source, seq FROM marks").fetchall())
            self.known, self.marks, self._loaded = known, marks, dict(known)
            self._is_known = True

    def settled(self, *, is_committed: bool) -> None:
        """Keep what was done, or forget it."""
        before, self._before = self._before, None
        if is_committed:
            self._loaded = {}
        elif before is not None:
            self._ids, self._last, self._sizes, self.lives = before

    def apply(self, connection: sqlite3.Connection, items: Sequence[Entry]) -> Result:
        """Write items, then drop what is too much or too old."""
        self._before = dict(self._ids), dict(self._last), dict(self._sizes), dict(self.lives)
        rows: dict[Owner, list[Row]] = {}
        dropped: dict[str, Dropped] = {}
        if not self._ids:
            self._restore(connection, dropped)
        appended: dict[Owner, list[Append]] = {}
        for item in items:
            if isinstance(item, Append):
                appended.setdefault(item.owner, []).append(item)
            elif isinstance(item, About) and item.about is None:
                # What is appended behind it is for who wants the stream again.
                self._write(connection, appended, rows)
                self._empty(connection, item.stream)
            elif isinstance(item, About):
                number = self._id_of(connection, item.stream)
                connection.execute("UPDATE streams SET about = ? WHERE id = ?", (item.about, number))
        self._write(connection, appended, rows)
        for item in items:
            if isinstance(item, Acknowledge):
                self._delete(connection, item.stream, item.seq)
            elif isinstance(item, Mark):
                connection.execute(
                    "INSERT INTO marks VALUES(?, ?) "
                    "ON CONFLICT(source) DO UPDATE SET seq = max(seq, excluded.seq)",
                    (item.source, item.seq),
                )
        self._trim(connection, dropped)
        self.time.keep(connection)
        connection.execute("PRAGMA incremental_vacuum(64)")
        numbers = {item.stream: self._last[item.stream] for item in items if isinstance(item, Append)}
        return Result(rows, dropped, self._loaded, self.size, numbers)

    def is_in(self, connection: sqlite3.Connection, result: Result) -> bool:
        """Return whether what `apply` came to is in the file; False, too, if once more would do no harm."""
        return any(
            connection.execute(
                "SELECT 1 FROM streams WHERE name = ? AND last_seq >= ?", (name, last)
            ).fetchone()
            for name, last in result.numbers.items()
        )

    @property
    def size(self) -> int:
        """What all rows have together."""
        return sum(self._sizes.values())

    def _grow(self, number: int, size: int) -> None:
        self._sizes[number] = self._sizes.get(number, 0) + size

    def _restore(self, connection: sqlite3.Connection, dropped: dict[str, Dropped]) -> None:
        """Make the streams again in a file that was begun anew: what the one before had of them is lost."""
        for source, seq in self.marks.items():
            connection.execute("INSERT OR REPLACE INTO marks VALUES(?, ?)", (source, seq))
        floors = self._floors()
        for name, last in self._last.items():
            if name in floors:
                dropped[name] = Dropped(max(0, last - floors[name]), last, "its file was lost")
                number = self._id_of(connection, name)
                for base, boot in self.lives.get(name, ()):
                    connection.execute("INSERT INTO lives VALUES(?, ?, ?)", (number, base, boot))

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
        appended: dict[Owner, list[Append]],
        rows: dict[Owner, list[Row]],
    ) -> None:
        """Write what was appended, and forget that it was."""
        for owner, found in appended.items():
            self._write_one(connection, owner, found, rows)
        appended.clear()

    def _write_one(
        self,
        connection: sqlite3.Connection,
        owner: Owner,
        appended: Sequence[Append],
        rows: dict[Owner, list[Row]],
    ) -> None:
        stream = appended[0].stream
        now_ns = self.time.now_ns()
        number = self._id_of(connection, stream)
        last = self._last[stream]
        lives = self.lives.get(stream, ())
        if (lives[-1][1] if lives else self.first_boot) != self.boot:
            connection.execute("INSERT OR REPLACE INTO lives VALUES(?, ?, ?)", (number, last, self.boot))
            lives = (*(life for life in lives if life[0] != last), (last, self.boot))
            self.lives = {**self.lives, stream: lives}
        made: list[Row] = []
        gap = 0
        pending: list[Any] = []

        def cut() -> None:
            nonlocal last, gap
            if pending:
                made.append(Row(last + gap + 1, len(pending), gap, now_ns, owner.encode(pending)))
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
            "INSERT INTO rows(stream, first, count, gap, time_ns, data, crc) VALUES(?, ?, ?, ?, ?, ?, ?)",
            [(number, *row, _crc(row)) for row in made],
        )
        connection.execute("UPDATE streams SET last_seq = ? WHERE id = ?", (last, number))
        self._last[stream] = last
        rows.setdefault(owner, []).extend(made)
        self._grow(number, sum(len(row.data) + _ROW_OVERHEAD for row in made))

    def _delete(self, connection: sqlite3.Connection, name: str, seq: int) -> None:
        number = self._ids.get(name)
        if number is None:
            return
        which = "stream = ? AND first + count - 1 <= ? AND first <= ?"
        (size,) = connection.execute(
            f"SELECT coalesce(sum({_SIZE}), 0) FROM rows WHERE {which}",
            (number, seq, seq),
        ).fetchone()
        connection.execute(f"DELETE FROM rows WHERE {which}", (number, seq, seq))
        connection.execute("UPDATE streams SET floor = max(floor, ?) WHERE id = ?", (seq, number))
        self._grow(number, -size)

    def _empty(self, connection: sqlite3.Connection, name: str) -> None:
        # The stream's number and name stay, so that numbers do not begin anew if it is wanted again.
        number = self._ids.get(name, 0)
        connection.execute("DELETE FROM rows WHERE stream = ?", (number,))
        connection.execute("UPDATE streams SET about = '{}', floor = last_seq WHERE id = ?", (number,))
        self._sizes.pop(number, None)

    def _trim(self, connection: sqlite3.Connection, dropped: dict[str, Dropped]) -> None:
        """Drop the rows that are too old, and the oldest of the largest stream while there is too much."""
        now_s = self._clock.monotonic_s()
        if self._looked_s is None or now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self._drop_old(connection, self.time.now_ns() - self._max_age_ns, dropped)
        while self.size > self._max_bytes:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            rows = connection.execute(
                f"SELECT id, {_LAST}, CAST(count AS INTEGER), {_SIZE} FROM rows WHERE stream = ? "
                "ORDER BY first LIMIT ?",
                (largest, _DROP_AT_ONCE),
            ).fetchall()
            if not rows:
                self._sizes.pop(largest)
                continue
            for number, last, count, size in rows:
                if self.size <= self._max_bytes:
                    break
                connection.execute("DELETE FROM rows WHERE id = ?", (number,))
                self._dropped(connection, largest, last, count, size, dropped, _TOO_MUCH)

    def _drop_old(self, connection: sqlite3.Connection, oldest_ns: int, dropped: dict[str, Dropped]) -> None:
        why = f"samples are older than {self._max_age_ns / 1e9:g} s (`spool.max_age`)"
        for number, stream, last, count, size in connection.execute(
            f"SELECT id, stream, {_LAST}, CAST(count AS INTEGER), {_SIZE} FROM "
            "(SELECT * FROM rows ORDER BY id LIMIT ?) WHERE time_ns < ? OR typeof(time_ns) <> 'integer'",
            (_DROP_AT_ONCE, oldest_ns),
        ).fetchall():
            connection.execute("DELETE FROM rows WHERE id = ?", (number,))
            self._dropped(connection, stream, last, count, size, dropped, why)

    def _dropped(
        self,
        connection: sqlite3.Connection,
        stream: int,
        floor: int,
        count: int,
        size: int,
        dropped: dict[str, Dropped],
        why: str,
    ) -> None:
        """Take note that a row was dropped."""
        name = next((name for name, number in self._ids.items() if number == stream), "")
        before, highest, _ = dropped.get(name, (0, 0, why))
        dropped[name] = Dropped(before + count, max(highest, floor), why)
        connection.execute("UPDATE streams SET floor = max(floor, ?) WHERE id = ?", (floor, stream))
        self._grow(stream, -size)

    def read(self, connection: sqlite3.Connection, name: str, seq: int, max_bytes: int) -> list[Row]:
        """Return committed rows of a stream behind a number, the oldest first; delete damaged ones."""
        number = self._ids.get(name)
        if number is None:
            return []
        found: list[Row] = []
        size = 0
        damaged: list[int] = []
        for row_id, row in _rows(
            connection,
            "stream = ? AND first + count - 1 > ? AND first > ? ORDER BY first",
            (number, seq, seq - ROW_ITEMS),
        ):
            if row is None:
                damaged.append(row_id)
                continue
            found.append(row)
            size += len(row.data)
            if size >= max_bytes:
                break
        for row_id in damaged:
            connection.execute("DELETE FROM rows WHERE id = ?", (row_id,))
        return found


def _crc(row: Row) -> int:
    numbers = f"{row.first} {row.samples} {row.gap} {row.time_ns} "
    return zlib.crc32(row.data, zlib.crc32(numbers.encode()))


def _rows(
    connection: sqlite3.Connection, which: str, values: Sequence[object]
) -> Iterator[tuple[int, Row | None]]:
    """Yield rows with their place in the table; None for one that is not as it was written."""
    for row_id, crc, first, count, gap, time_ns, data in connection.execute(
        "SELECT id, crc, CAST(first AS INTEGER), CAST(count AS INTEGER), CAST(gap AS INTEGER), "
        f"CAST(time_ns AS INTEGER), CAST(data AS BLOB) FROM rows WHERE {which}",
        values,
    ):
        if data is None or None in (first, count, gap, time_ns):
            yield row_id, None
            continue
        row = Row(first, count, gap, time_ns, data)
        yield row_id, row if crc is None or crc == _crc(row) else None


def _checked(
    connection: sqlite3.Connection, number: int, name: object, last_seq: object, floor: object
) -> tuple[int, int]:
    """Return the last number and the floor of a stream, corrected by its rows.

    Raises:
        sqlite3.DatabaseError: they make no sense, so that numbers might begin anew.
    """
    if type(last_seq) is int and type(floor) is int and isinstance(name, str):
        for _, newest in _rows(connection, "stream = ? ORDER BY first DESC LIMIT 1", (number,)):
            if newest is not None:
                last_seq = max(last_seq, newest.last)
        for _, oldest in _rows(connection, "stream = ? ORDER BY first LIMIT 1", (number,)):
            if oldest is not None and oldest.last <= floor:
                floor = oldest.first - oldest.gap - 1
        if 0 <= floor <= last_seq:
            return last_seq, floor
    raise sqlite3.DatabaseError(f"malformed: the numbers of stream {name!r}")


def _lives(
    connection: sqlite3.Connection, ids: Mapping[str, int], known: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[tuple[int, str], ...]]:
    """Return where the incarnations of streams begin; of those before what is still there only the last."""
    found: dict[str, tuple[tuple[int, str], ...]] = {}
    for name, number in ids.items():
        rows = connection.execute(
            "SELECT base, boot FROM lives WHERE stream = ? ORDER BY base", (number,)
        ).fetchall()
        floor = known[name][1]
        gone = [base for (base, _), (following, _) in pairwise(rows) if following <= floor]
        for base in gone:
            connection.execute("DELETE FROM lives WHERE stream = ? AND base = ?", (number, base))
        found[name] = tuple((int(base), str(boot)) for base, boot in rows if base not in gone)
    return found


def _about(text: object) -> Mapping[str, Any]:
    """Return the note beside a stream; whoever owns it says it anew if it cannot be read."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}
