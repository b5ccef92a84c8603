"""The spool: what others have not got yet, on disk, in the order in which it came.

Rules:

* What is appended is on disk before it is sent, always: `Stream.rows_after` gives committed rows only, and
  says which samples between them are not there any more, as their row was damaged.
* The spool is bounded in bytes and in age, which is measured by the file's own time. What is too old is
  dropped; if there is too much, the oldest of the largest stream, so that who asks for a lot pushes nobody
  else's samples out. Each dropped sample is counted, and whoever gets the stream can tell how many are
  missing, exactly, by the numbers.
* While the disk takes nothing, up to `max_waiting` samples wait in memory; then the oldest of them go, and
  are counted too.
* A sample is named for ever by the incarnation in which it was written, its stream and its number there. Each
  process begins a new incarnation: a file that comes out of a backup names nothing as it was named before.

Design: this file is what the event loop sees; what is in the file, and the thread's part, is `spool_file`. A
sample gets its number when it is written, so that a file that can only be opened later is continued.
"""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.committer import DEFAULT_GROUP_COMMIT_S, Committer
from fieldbus.durable.spool_file import (
    About,
    Acknowledge,
    Append,
    Encode,
    Entry,
    Mark,
    Missing,
    Result,
    Row,
    SpoolFile,
)

DEFAULT_MAX_BYTES = 256 * 1024 * 1024
DEFAULT_MAX_AGE_S = 7 * 86400.0
DEFAULT_MAX_WAITING = 50_000
_FRESH_BYTES = 4 * 1024 * 1024
"""Committed rows that are kept in memory so that they need not be read back, at most."""
HANGS_S = 5.0
"""After this time without an answer the disk takes nothing, whether it says so or not."""
_DAMAGED = "damaged on the disk"
_SAY_AGAIN_S = 10.0
_PATIENCE = 4
"""So many times more may wait for a disk that is only slow."""


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
        self.is_dropping = False
        """Whether samples were dropped since the other side last had all."""
        self.gap = 0
        """Samples that were dropped behind all that waits."""
        self._spool = spool
        self._skipped = 0
        """Samples that were skipped since that was said last."""
        self._said_s = -math.inf
        self._fresh: deque[Row] = deque()
        self._fresh_bytes = 0
        self.changed = asyncio.Event()
        """Set when there are new committed rows; whoever waits clears it."""

    def life_at(self, number: int) -> tuple[str, int]:
        """Return the incarnation in which a sample was written, and behind which number that began."""
        boot, base = self._spool.first_boot, 0
        for begins, later in self._spool.lives_of(self.name):
            if begins < number:
                boot, base = later, begins
        return boot, base

    def number_of(self, boot: str, seq: int) -> int | None:
        """Return the number here of one in an incarnation; None if that is none of ours.

        Of one behind its end it is the last: a file out of a backup has less of an incarnation than others
        got of it.
        """
        base: int | None = 0 if boot == self._spool.first_boot else None
        for begins, later in self._spool.lives_of(self.name):
            if base is not None:
                return min(base + seq, begins)
            if later == boot:
                base = begins
        return None if base is None else base + seq

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
            self._spool.put(Append(self.name, self, items, gap))

    def acknowledge(self, seq: int) -> None:
        """Learn that the other side has all samples up to a number."""
        seq = min(seq, self.committed)
        if seq <= self.floor:
            return
        self.floor = seq
        if not self.backlog:
            self.is_dropping = False
        while self._fresh and self._fresh[0].last <= seq:
            self._fresh_bytes -= len(self._fresh.popleft().data)
        self._spool.put(Acknowledge(self.name, seq))

    def skip(self, missing: Missing) -> None:
        """Go on behind samples that cannot be sent; all before them were acknowledged."""
        self.drop(missing.samples, missing.why, missing.last)
        self.acknowledge(missing.last)

    def drop(self, samples: int, why: str, last: int) -> None:
        """Count samples that nobody gets, and say so.

        Args:
            samples: how many.
            why: what is wrong with them.
            last: the number of the last, or of one near it.
        """
        self.dropped += samples
        self._skipped += samples
        now_s = self._spool.clock.monotonic_s()
        if now_s - self._said_s >= _SAY_AGAIN_S:
            self._said_s = now_s
            count = f"{self._skipped} sample{'s' if self._skipped != 1 else ''}"
            text = f"stream {self.name}: {count} dropped, up to number {last} ({why})"
            self._spool.say(text, True)
            self._skipped = 0

    async def rows_after(self, seq: int, max_bytes: int = 512 * 1024) -> Sequence[Row | Missing]:
        """Return the next committed rows behind a number, the oldest first; none if there are none.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        seq = max(seq, self.floor)
        if seq >= self.committed:
            return ()
        fresh = self._fresh
        if fresh and fresh[0].first - fresh[0].gap - 1 <= seq:
            found: list[Row | Missing] = []
            size = 0
            for row in fresh:
                if row.last > seq:
                    found.append(row)
                    size += len(row.data)
                    if size >= max_bytes:
                        break
            return found
        committed = self.committed
        rows = await self._spool.read(self.name, seq, max_bytes)
        return _with_missing(rows, max(seq, self.floor), committed)

    def age_s(self, row: Row) -> float:
        """Return how long ago a row was written."""
        return self._spool.age_s(row)

    def set_about(self, about: Mapping[str, Any]) -> None:
        """Keep the owner's note beside the stream."""
        self._spool.put(About(self.name, json.dumps(about)))

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
        self.is_dropping = True
        self.dropped += count
        self.floor = max(self.floor, floor)
        while self._fresh and self._fresh[0].last <= floor:
            self._fresh_bytes -= len(self._fresh.popleft().data)
        self.changed.set()


def _with_missing(rows: Sequence[Row], seq: int, committed: int) -> list[Row | Missing]:
    """Return rows that were read behind a number, and what should be between them and is not."""
    found: list[Row | Missing] = []
    for row in rows:
        if row.last <= seq:
            continue  # dropped meanwhile
        missing = row.first - row.gap - 1 - seq
        if missing > 0:
            found.append(Missing(seq + 1, missing, _DAMAGED))
        found.append(row)
        seq = row.last
    if not rows and seq < committed:
        found.append(Missing(seq + 1, committed - seq, _DAMAGED))
    return found


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
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what the spool works with; nothing is opened.

        Args:
            path: the file.
            max_bytes: what the rows may have together.
            max_age_s: older rows are dropped.
            group_commit_s: how long a sample waits for others before it is written.
            max_waiting: samples that wait in memory at most while the disk takes nothing.
            say: called with trouble and whether it is bad, or over.
            clock: the gateway's.
        """
        self.streams: dict[str, Stream] = {}
        self.bytes = 0
        """What the rows have together, as of the last commit."""
        self._max_waiting = max_waiting
        self._waiting = 0
        self.say = say
        self.clock = clock
        self._file = SpoolFile(
            max_bytes,
            round(max_age_s * 1e9),
            clock,
            lambda: {name: stream.floor for name, stream in list(self.streams.items())},
        )
        self.committer: Committer[Entry] = Committer(path, self, group_commit_s)

    @property
    def boot(self) -> str:
        """The incarnation of what is written now."""
        return self._file.boot

    @property
    def first_boot(self) -> str:
        """The incarnation of what the file had before any other."""
        return self._file.first_boot

    def lives_of(self, stream: str) -> Sequence[tuple[int, str]]:
        """Return behind which numbers a stream's later incarnations begin, and which they are, in order."""
        return self._file.lives.get(stream, ())

    @property
    def abouts(self) -> dict[str, Mapping[str, Any]]:
        """The notes beside streams."""
        return self._file.abouts

    @property
    def marks(self) -> dict[str, int]:
        """Source to the number of the last sample of it that is in here."""
        return self._file.marks

    # --- in the event loop

    def open(self) -> None:
        """Open the file and start its thread."""
        self.committer.open()
        self.bytes = self._file.size
        if self._file.notice is not None:
            self.say(self._file.notice, True)

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
            found.committed, found.floor = self._file.known.get(name, (0, 0))
            if found.committed > found.floor:
                found.changed.set()
        return found

    def age_s(self, row: Row) -> float:
        """Return how long ago a row was written."""
        return (self._file.time.now_ns() - row.time_ns) / 1e9

    def forget(self, stream: Stream) -> None:
        """Drop a stream."""
        self.streams.pop(stream.name, None)
        self.abouts.pop(stream.name, None)
        self._file.known[stream.name] = stream.committed, stream.committed
        self.put(About(stream.name, None))

    def mark(self, source: str, seq: int, done: Callable[[], None] | None = None) -> None:
        """Remember that all samples of another's stream up to a number are in here, or not for here.

        Args:
            source: whose stream.
            seq: the number.
            done: called when that is on disk, together with all that was appended before.
        """
        self.put(Mark(source, seq, done))

    def put(self, item: Entry) -> None:
        """Have an item written; if too much waits, the oldest samples go."""
        self.committer.put(item)
        if isinstance(item, Append):
            self._waiting += len(item.items)
            if self._waiting > self._max_waiting:
                takes_nothing = self.trouble is not None or self.committer.hangs_s() > HANGS_S
                limit = self._max_waiting if takes_nothing else _PATIENCE * self._max_waiting
                with self.committer.held():
                    self._drop_waiting(limit)

    def _drop_waiting(self, limit: int) -> None:
        kept: list[Entry] = []
        gaps: dict[Stream, int] = {}
        while self._waiting > limit:
            item = self.committer.take_oldest()
            if item is None:
                break
            if not isinstance(item, Append):
                kept.append(item)
                continue
            stream = self._wait_less(item)
            stream.dropped += len(item.items)
            gaps[stream] = gaps.get(stream, 0) + item.gap + len(item.items)
        # The next samples of each stream say how many are missing before them.
        while gaps:
            item = self.committer.take_oldest()
            if item is None:
                break
            if isinstance(item, Append) and item.owner in gaps:
                item = item._replace(gap=item.gap + gaps.pop(item.owner))
            kept.append(item)
        for item in reversed(kept):
            self.committer.put_back_first(item)
        for stream, count in gaps.items():
            stream.gap += count  # nothing is behind them yet: what comes next says it

    def _wait_less(self, item: Append) -> Stream:
        owner = cast("Stream", item.owner)
        self._waiting -= len(item.items)
        owner.waiting -= len(item.items)
        return owner

    async def read(self, name: str, seq: int, max_bytes: int) -> Sequence[Row]:
        """Return committed rows of a stream behind a number."""
        return await self.committer.ask(lambda connection: self._file.read(connection, name, seq, max_bytes))

    def committed(self, items: Sequence[Entry], result: Any) -> None:
        """Learn that items are durable."""
        found: Result = result
        for name, (last, floor) in found.loaded.items():
            stream = self.streams.get(name)
            if stream is not None:
                stream.committed, stream.floor = max(stream.committed, last), max(stream.floor, floor)
        for item in items:
            if isinstance(item, Append):
                self._wait_less(item)
        for owner, rows in found.rows.items():
            cast("Stream", owner).wrote(rows)
        for item in items:
            if isinstance(item, Mark):
                self.marks[item.source] = max(item.seq, self.marks.get(item.source, 0))
                if item.done is not None:
                    item.done()
        self.bytes = found.size
        for name, (count, floor, why) in found.dropped.items():
            lost = self.streams.get(name)
            if lost is not None:
                if not lost.is_dropping:
                    self.say(f"stream {name}: {why}; the oldest samples are dropped", True)
                lost.lost(count, floor)

    def spoilt(self, items: Sequence[Entry]) -> None:
        """Learn that items cannot be written; who gets the stream is told how many are missing."""
        for item in items:
            if isinstance(item, Append):
                stream = self._wait_less(item)
                stream.dropped += len(item.items)
                stream.gap += item.gap + len(item.items)

    def said(self, text: str, *, is_bad: bool) -> None:
        """Pass on what there is to be said of the file."""
        self.say(text, is_bad)

    # --- in the thread

    def is_in(self, connection: sqlite3.Connection, result: Any) -> bool:
        """Return whether what a transaction came to is in the file."""
        return self._file.is_in(connection, result)

    def opened(self, connection: sqlite3.Connection) -> None:
        """Learn what is in the file."""
        self._file.opened(connection)

    def apply(self, connection: sqlite3.Connection, items: Sequence[Entry]) -> Result:
        """Write items."""
        return self._file.apply(connection, items)

    def settled(self, *, is_committed: bool) -> None:
        """Keep what was done, or forget it."""
        self._file.settled(is_committed=is_committed)
