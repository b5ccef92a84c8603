"""The link to a store.

Rules:

* What routes send is on disk within the group commit (100 ms by default); until then it waits in a bounded
  queue, of which the oldest goes first, and is counted (`tx_dropped`), while the disk takes nothing.
* What comes out of another gateway's durable stream (`take`) is not dropped: it is not given when there is no
  room (`has_room`), and its sender keeps it.
* A disk that fails does not end the session: it is said, and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.committer import DEFAULT_GROUP_COMMIT_S, Committer
from fieldbus.errors import LinkDownError
from fieldbus.link import NEVER, Delivery, Emit, Notice, Report, WriteOutcome, WriteResult
from fieldbus.model import Group, Point, Value
from fieldbus.store.history import Entry, Writer

MAX_WAITING = 100_000
_LOG = logging.getLogger("fieldbus")
_TRIM_S = 2.0


class _Work(NamedTuple):
    entries: Sequence[Entry]
    source: str | None = None
    seq: int = 0
    done: Callable[[], None] | None = None


class _Result(NamedTuple):
    expired: int
    last: int | None
    """The number of the last sample that was written; None if none was."""


class StoreLink:
    """One file."""

    is_listener = False
    groups: Sequence[Group] = ()

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        max_bytes: int,
        max_age_s: float,
        group_commit_s: float = DEFAULT_GROUP_COMMIT_S,
        max_waiting: int = MAX_WAITING,
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self.name = name
        self.path = path
        self.marks: dict[str, int] = {}
        """Source to the number of the last sample of it that is in here."""
        self._writer = Writer(max_bytes, max_age_s, clock)
        self._group_commit_s = group_commit_s
        self._max_waiting = max_waiting
        self._waiting = 0
        self._committer: Committer[_Work] | None = None
        self._report: Report | None = None
        self._trimmed_s = -NEVER
        self._counters = dict.fromkeys(("stored", "tx_dropped", "expired"), 0)

    @property
    def endpoint(self) -> str:
        """The file."""
        return str(self.path)

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start, and how many samples wait."""
        return {**self._counters, "queued": self._waiting}

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing."""
        return {}

    async def connect(self) -> None:
        """Open the file."""
        if self._committer is not None:
            return
        committer: Committer[_Work] = Committer(self.path, self, self._group_commit_s)
        committer.open()
        if committer.trouble is not None:
            committer.close()
            raise LinkDownError(committer.trouble)
        self._committer = committer

    async def run(self, emit: Emit, report: Report) -> None:
        """Keep the file until cancelled."""
        self._report = report
        if self._writer.notice is not None:
            report(Notice(self._writer.notice))
            self._writer.notice = None
        await asyncio.Event().wait()

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Have routed samples stored."""
        self._put(_Work([entry_of(delivery) for delivery in deliveries]))
        if self._waiting > self._max_waiting and self._committer is not None:
            with self._committer.held():
                self._drop_oldest(self._committer)
        return ()

    def _drop_oldest(self, committer: Committer[_Work]) -> None:
        """Make room of what routes sent first; what comes out of streams, also before it, stays."""
        kept: list[_Work] = []
        while self._waiting > self._max_waiting:
            oldest = committer.take_oldest()
            if oldest is None:
                break
            if oldest.source is not None:
                kept.append(oldest)
                continue
            self._waiting -= len(oldest.entries)
            self._counters["tx_dropped"] += len(oldest.entries)
        for work in reversed(kept):
            committer.put_back_first(work)

    @property
    def place(self) -> object:
        """The file as it is open now."""
        return self._committer

    def has_room(self, count: int) -> bool:
        """Return whether so many samples can be taken now."""
        return self._committer is not None and self._waiting + count <= self._max_waiting

    def take(self, deliveries: Sequence[Delivery], source: str, seq: int, done: Callable[[], None]) -> None:
        """Store samples that came out of a stream, with the number of its last; call `done` when they are."""
        self._put(_Work([entry_of(delivery) for delivery in deliveries], source, seq, done))

    def mark_of(self, source: str) -> int:
        """Return up to which number of a stream there are samples on disk."""
        return self.marks.get(source, 0)

    def _put(self, work: _Work) -> None:
        if self._committer is None:
            self._counters["tx_dropped"] += len(work.entries)
            return
        self._waiting += len(work.entries)
        self._committer.put(work)

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Refuse: a store has no points."""
        return [
            WriteResult(point, value, WriteOutcome.REFUSED, "a store has no points")
            for point, value in values.items()
        ]

    async def close(self) -> None:
        """Write what waits, and close the file."""
        committer, self._committer = self._committer, None
        self._report = None
        if committer is not None:
            await asyncio.get_running_loop().run_in_executor(None, committer.close)
            await asyncio.sleep(0)  # what was written just now is told in this turn
            if self._waiting:
                _LOG.error("%s: %d samples could not be written and are lost (%s)",
                           self.name, self._waiting, committer.trouble or "no time was left")  # fmt: skip
                self._counters["tx_dropped"] += self._waiting
                self._waiting = 0

    # --- what the committer calls

    def opened(self, connection: sqlite3.Connection) -> None:
        """Learn what is in the file."""
        for source, seq in self._writer.opened(connection).items():
            self.marks[source] = max(seq, self.marks.get(source, 0))

    def apply(self, connection: sqlite3.Connection, items: Sequence[_Work]) -> _Result:
        """Write what waited."""
        last = self._writer.write(connection, [entry for item in items for entry in item.entries])
        for item in items:
            if item.source is not None:
                self._writer.mark(connection, item.source, item.seq)
        now_s = self._clock.monotonic_s()
        if now_s - self._trimmed_s < _TRIM_S:
            return _Result(0, last)
        self._trimmed_s = now_s
        return _Result(self._writer.trim(connection), last)

    def is_in(self, connection: sqlite3.Connection, result: _Result) -> bool:
        """Return whether what a transaction came to is in the file."""
        return result.last is not None and self._writer.last(connection) >= result.last

    def settled(self, *, is_committed: bool) -> None:
        """Forget what a failed transaction made."""
        if not is_committed:
            self._writer.forget()

    def committed(self, items: Sequence[_Work], result: Any) -> None:
        """Learn that samples are stored."""
        self._counters["expired"] += result.expired
        for item in items:
            self._waiting -= len(item.entries)
            self._counters["stored"] += len(item.entries)
            if item.source is not None:
                self.marks[item.source] = max(item.seq, self.marks.get(item.source, 0))
            if item.done is not None:
                item.done()

    def spoilt(self, items: Sequence[_Work]) -> None:
        """Learn that samples cannot be stored. A stream that they came out of goes on behind them."""
        for item in items:
            self._waiting -= len(item.entries)
            self._counters["tx_dropped"] += len(item.entries)
            if item.source is not None and item.entries:
                self._put(item._replace(entries=()))

    def said(self, text: str, *, is_bad: bool) -> None:
        """Pass on what there is to be said of the file."""
        if self._report is not None:
            self._report(Notice(text))


def entry_of(delivery: Delivery) -> Entry:
    """Return what is stored of a delivery."""
    target, source, sample = delivery
    return Entry(target.topic or source.address, source.kind, source.unit, sample)
