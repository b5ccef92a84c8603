"""The file of a store: what is in it, how it is written, and how it is read.

Layout (SQLite)::

    points(id, name, kind, unit)                               name: as the route says, usually the address;
                                                               one that changes its unit or kind is another
    samples(id, point, time_ns, value, quality, reason)        in the order in which they came; good ones have
                                                               neither quality nor reason
    marks(source, seq)                                         what of other gateways' streams is in here
    arrivals(first, own_ns)                                    when the samples from `first` on came
    own_time(own_ns, wall_ns)                                  the file's own time, see `durable.own_time`

Rules:

* Samples of another gateway's stream, and the number of the last of them, are written in one transaction:
  so a sample that is sent twice is in here once.
* The oldest samples (by when they came) go first when they are too old or the file becomes too large. When
  they came is measured by the file's own time: neither a clock that is set nor what sources say of their time
  drops anything. A turn drops `_MOST_ROUNDS` times `_DROP_AT_ONCE` samples at most.
* Reading needs no gateway, and disturbs none: a reader has a connection of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.own_time import OwnTime
from fieldbus.model import Kind, Quality, Sample, Value

SCHEMA = """
CREATE TABLE IF NOT EXISTS points(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, unit TEXT NOT NULL,
  UNIQUE(name, kind, unit));
CREATE TABLE IF NOT EXISTS samples(
  id INTEGER PRIMARY KEY AUTOINCREMENT, point INTEGER NOT NULL, time_ns INTEGER NOT NULL, value,
  quality TEXT, reason TEXT);
CREATE INDEX IF NOT EXISTS samples_of ON samples(point, time_ns);
CREATE TABLE IF NOT EXISTS marks(source TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS arrivals(first INTEGER PRIMARY KEY, own_ns INTEGER NOT NULL);
"""
_ARRIVALS = 1000
_COARSEST_S = 600.0
"""So finely is known when samples came: in parts of how old they may become, and in seconds at most."""
_DROP_AT_ONCE = 5_000
_MOST_ROUNDS = 20
"""So often rows are dropped in one transaction, at most: the next one goes on."""


class Kept(NamedTuple):
    """A sample that was stored."""

    name: str
    unit: str | None
    sample: Sample


class Entry(NamedTuple):
    """A sample to be stored."""

    name: str
    kind: Kind
    unit: str | None
    sample: Sample


class Writer:
    """Writes into the file, within somebody's transaction."""

    def __init__(self, max_bytes: int, max_age_s: float, clock: Clock = SYSTEM) -> None:
        self.time = OwnTime(clock)
        self.notice: str | None = None
        """What there is to be said of the file's time since it was opened."""
        self._max_bytes = max_bytes
        self._max_age_ns = round(max_age_s * 1e9)
        self._period_ns = round(min(max_age_s / _ARRIVALS, _COARSEST_S) * 1e9)
        self._ids: dict[tuple[str, Kind, str | None], int] = {}
        self._arrived_ns: int | None = None
        """The newest time of `arrivals`."""

    def opened(self, connection: sqlite3.Connection) -> dict[str, int]:
        """Make the tables, and return the marks."""
        connection.executescript(SCHEMA)
        self._ids.clear()
        (self._arrived_ns,) = connection.execute("SELECT max(own_ns) FROM arrivals").fetchone()
        self.notice = self.time.opened(connection, None)
        if self._arrived_ns is None:  # what is there already is taken for new: nobody knows when it came
            self._arrived_ns = self.time.now_ns()
            connection.execute("INSERT INTO arrivals VALUES(0, ?)", (self._arrived_ns,))
        return dict(connection.execute("SELECT source, seq FROM marks").fetchall())

    def forget(self) -> None:
        """Learn that the transaction failed: what it made is not there."""
        self._ids.clear()
        self._arrived_ns = None

    def write(self, connection: sqlite3.Connection, entries: Sequence[Entry]) -> int | None:
        """Append samples; return the number of the last, or None if there are none."""
        rows = []
        ids = self._ids
        for name, kind, unit, (value, quality, reason, time_ns) in entries:
            number = ids.get((name, kind, unit))
            if number is None:
                number = self._point(connection, name, kind, unit)
            is_good = quality is Quality.GOOD
            rows.append(
                (
                    number,
                    time_ns,
                    _stored(value),
                    None if is_good else str(quality),
                    None if is_good else _stored(reason),
                )
            )
        if rows:
            self._note_arrival(connection)
        connection.executemany(
            "INSERT INTO samples(point, time_ns, value, quality, reason) VALUES(?, ?, ?, ?, ?)", rows
        )
        return self.last(connection) if rows else None

    @staticmethod
    def last(connection: sqlite3.Connection) -> int:
        """Return the number of the last sample that was ever written."""
        found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'samples'").fetchone()
        return int(found[0]) if found is not None else 0

    def _note_arrival(self, connection: sqlite3.Connection) -> None:
        """Remember when the samples came that are written next."""
        now_ns = self.time.now_ns()
        if self._arrived_ns is None or now_ns - self._arrived_ns >= self._period_ns:
            (last,) = connection.execute("SELECT max(id) FROM samples").fetchone()
            connection.execute("INSERT OR IGNORE INTO arrivals VALUES(?, ?)", ((last or 0) + 1, now_ns))
            self._arrived_ns = now_ns

    def mark(self, connection: sqlite3.Connection, source: str, seq: int) -> None:
        """Remember that a stream is in here up to a number."""
        connection.execute(
            "INSERT INTO marks VALUES(?, ?) ON CONFLICT(source) DO UPDATE SET seq = max(seq, excluded.seq)",
            (source, seq),
        )

    def trim(self, connection: sqlite3.Connection) -> int:
        """Drop what is too old or too much; return how many samples that were."""
        self.time.keep(connection)
        # What came before the next entry of `arrivals` came within a period of this one.
        oldest_ns = self.time.now_ns() - self._max_age_ns - self._period_ns
        (young,) = connection.execute(
            "SELECT coalesce(min(first), 1 << 62) FROM arrivals WHERE own_ns > ?", (oldest_ns,)
        ).fetchone()
        dropped = 0
        for _ in range(_MOST_ROUNDS):
            (first,) = connection.execute("SELECT min(id) FROM samples").fetchone()
            if first is None:
                break
            last = first + _DROP_AT_ONCE - 1
            if first < young:  # what came before it is older than it may be
                last = min(last, young - 1)
            elif self._used_bytes(connection) <= self._max_bytes:
                break
            dropped += connection.execute("DELETE FROM samples WHERE id <= ?", (last,)).rowcount
        if dropped:  # the newest of those before what is left says when that came, or later
            connection.execute(
                "DELETE FROM arrivals WHERE first < (SELECT max(first) FROM arrivals WHERE first <= "
                "(SELECT coalesce(min(id), 1 << 62) FROM samples))"
            )
        return dropped

    def _point(self, connection: sqlite3.Connection, name: str, kind: Kind, unit: str | None) -> int:
        """Return the number of a point: with another unit, or of another kind, it is another one."""
        row = (name, str(kind), unit or "")
        connection.execute("INSERT OR IGNORE INTO points(name, kind, unit) VALUES(?, ?, ?)", row)
        (number,) = connection.execute(
            "SELECT id FROM points WHERE name = ? AND kind = ? AND unit = ?", row
        ).fetchone()
        self._ids[name, kind, unit] = number
        return int(number)

    @staticmethod
    def _used_bytes(connection: sqlite3.Connection) -> int:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)


def _stored(value: Value | None) -> Value | None:
    """Return a value as SQLite can hold it.

    Whole numbers beyond 64 bits become floating-point numbers, half a character a question mark.
    """
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return float(value)
    return value


def names(path: Path) -> list[str]:
    """Return the points of a store's file.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    with closing(_reader(path)) as connection:
        return [name for (name,) in connection.execute("SELECT DISTINCT name FROM points ORDER BY name")]


def read(path: Path, wanted: Sequence[str], since_ns: int = 0, until_ns: int = 1 << 62) -> Iterator[Kept]:
    """Yield the samples of points from a moment on, by their time.

    Raises:
        sqlite3.Error: the file cannot be read.
    """
    with closing(_reader(path)) as connection:
        marks = ", ".join("?" * len(wanted))
        found = connection.execute(f"SELECT id, name, kind, unit FROM points WHERE name IN ({marks})", wanted)  # noqa: S608 - only question marks
        points = {number: (name, Kind(kind), unit or None) for number, name, kind, unit in found}
        if not points:
            return
        marks = ", ".join("?" * len(points))
        for number, time_ns, value, quality, reason in connection.execute(
            "SELECT point, time_ns, value, quality, reason FROM samples "  # noqa: S608 - only question marks
            f"WHERE point IN ({marks}) AND time_ns >= ? AND time_ns < ? ORDER BY time_ns, id",
            (*points, since_ns, until_ns),
        ):
            name, kind, unit = points[number]
            shown = bool(value) if kind is Kind.BOOL and value in (0, 1) else value
            found_quality = Quality.GOOD if quality is None else Quality(quality)
            yield Kept(name, unit, Sample(shown, found_quality, reason, time_ns))


def _reader(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise sqlite3.OperationalError(f"there is no file {path}")
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)
