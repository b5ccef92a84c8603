"""Sends a stream out of the spool, in order, until the other side has it.

Rules:

* Rows go in the order of their numbers; at most `WINDOW` rows or `WINDOW_BYTES` are under way.
* A row is deleted when it is acknowledged: by the broker if it goes to topics, by the peer gateway, when it
  has committed it, if it goes to one.
* What was given back (the connection is lost, the broker refuses it), what a peer has not acknowledged for
  `RESEND_S`, and what it cannot have got because it comes anew (`begin_again`), is sent again from the first
  that is missing, in order; but not before the broker has taken or given back all that was sent before, so
  that no more than a window waits anywhere.
* What is not there any more, cannot be sent, or is refused by the peer, is skipped and counted; but only when
  all before it was acknowledged, so that the other side can tell by the numbers what it misses.
* Rows of an incarnation go when all of the one before were acknowledged: between two the other side cannot
  tell the order by the numbers.
* What waited for longer than `HISTORICAL_S` is sent as historical.
* A backlog does not push other messages aside: it goes out in pieces, between which others have their turn.

Design: one task a stream. It knows positions, not samples; what a row becomes on the wire, `Carrier` knows.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.spool import Stream
from fieldbus.durable.spool_file import Missing, Row
from fieldbus.link import Handover

WINDOW = 32
WINDOW_BYTES = 1 << 20
RESEND_S = 5.0
PAUSE_S = 0.5
"""How long it waits when something was given back."""
HISTORICAL_S = 1.0
_IDLE_S = 30.0


class Carrier(Protocol):
    """How rows of a stream get to the other side."""

    @property
    def is_ready(self) -> bool:
        """Whether what is sent now can arrive."""
        ...

    @property
    def is_acknowledged_by_peer(self) -> bool:
        """Whether the peer says what it has; else it is enough that the broker has it."""
        ...

    def pieces(self, row: Row) -> Sequence[Row | Missing]:
        """Return a row in parts that can be sent, and what of it cannot be."""
        ...

    def carry(self, row: Row, done: Callable[[Handover], None], *, is_historical: bool) -> None:
        """Send a part of a row; `done` is called with what became of it."""


class _Sent(NamedTuple):
    first: int
    last: int
    size: int


class Pump:
    """One stream's."""

    def __init__(self, stream: Stream, carrier: Carrier, clock: Clock = SYSTEM) -> None:
        self.stream = stream
        self.is_behind = False
        """Whether what was sent last had waited, or nothing can be sent."""
        self._carrier = carrier
        self._clock = clock
        self._sent: deque[_Sent] = deque()
        self._size = 0
        self._session = 0
        self._has_failed = False
        self._is_to_begin = False
        self._life: tuple[str, int] | None = None
        """The incarnation of what is under way."""
        self._skipped = 0, 0
        """The last number that was skipped, and how many samples in a row were."""
        self._refused: set[tuple[int, int]] = set()
        """The first and the last number of what the peer cannot take."""
        self._given = 0
        """Rows that the carrier has neither brought to the broker nor given back."""
        self._progressed_s = 0.0
        """When the first of those under way was sent, or the one before it acknowledged."""
        self._news = stream.changed
        """One event for all that there is to look at."""

    def wake(self) -> None:
        """Have a look: the carrier may be ready now, or not any more."""
        self._news.set()

    def begin_again(self) -> None:
        """Learn that the other side comes anew: what it has not acknowledged it may never have got."""
        self._is_to_begin = True
        self._news.set()

    def acknowledged(self, seq: int) -> None:
        """Learn that the peer has all up to a number."""
        self.stream.acknowledge(seq)
        self._forget_sent()
        self._news.set()

    def refused(self, first: int, last: int) -> None:
        """Learn that the peer cannot take what was sent with these numbers."""
        if any(sent.first == first and sent.last == last for sent in self._sent):
            self._refused.add((first, last))
            self.begin_again()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            if not self._carrier.is_ready:
                self.is_behind = True
                await self._wait(_IDLE_S)
                continue
            try:
                await self._send_all()
            except sqlite3.Error:
                await asyncio.sleep(1.0)  # the spool says what is wrong, and opens the file anew
            if self._has_failed:
                await asyncio.sleep(PAUSE_S)

    async def _send_all(self) -> None:
        """Send from the first row that is missing until something goes wrong."""
        self._session += 1
        self._has_failed = self._is_to_begin = False
        self._sent.clear()
        self._size = 0
        while self._given and self._carrier.is_ready:
            await self._wait(_IDLE_S)
        position = self.stream.floor
        while self._can_go_on():
            self._news.clear()
            if self._is_full():
                if not await self._wait_for_progress():
                    return
                continue
            rows = await self.stream.rows_after(position)
            if not rows:
                self.is_behind = False
                if not self._sent:
                    await self._wait(_IDLE_S)
                elif not await self._wait_for_progress():
                    return
                continue
            if self._sent and self._is_overdue():
                return
            for part in self._parts(rows):
                if not self._can_go_on():
                    return
                is_missing = isinstance(part, Missing)
                if self._sent and (is_missing or self.stream.life_at(part.first) != self._life):
                    if not await self._wait_for_progress():
                        return
                    break
                if isinstance(part, Missing):
                    self._skip(part)
                elif part.last > position:
                    self._send(part)
                position = max(position, part.last)
                if self._is_full():
                    break
            await asyncio.sleep(0)

    def _parts(self, rows: Sequence[Row | Missing]) -> Iterator[Row | Missing]:
        """Yield what is to be sent, and what is to be skipped."""
        for row in rows:
            for part in (row,) if isinstance(row, Missing) else self._carrier.pieces(row):
                if (part.first, part.last) in self._refused:
                    yield Missing(part.first, part.samples, "the peer cannot take them")
                else:
                    yield part

    def _skip(self, missing: Missing) -> None:
        """Go on behind what cannot be sent."""
        self._refused = {pair for pair in self._refused if pair[1] > missing.last}
        first = max(missing.first, self.stream.floor + 1)
        if first <= missing.last:
            count = missing.last - first + 1
            before, samples = self._skipped
            self._skipped = missing.last, count + (samples if before == first - 1 else 0)
            self.stream.skip(missing._replace(first=first, samples=count))

    def _is_full(self) -> bool:
        return len(self._sent) >= WINDOW or self._size >= WINDOW_BYTES

    def _is_overdue(self) -> bool:
        return not self._given and self._clock.monotonic_s() - self._progressed_s >= RESEND_S

    def _can_go_on(self) -> bool:
        return self._carrier.is_ready and not self._has_failed and not self._is_to_begin

    def _send(self, row: Row) -> None:
        session = self._session
        self._life = self.stream.life_at(row.first)
        last, skipped = self._skipped
        if row.first - row.gap - 1 == last:  # the other side may be new, and not know of it
            row = row._replace(gap=row.gap + skipped)
        self.is_behind = is_historical = self.stream.age_s(row) > HISTORICAL_S
        if not self._sent:
            self._progressed_s = self._clock.monotonic_s()
        self._sent.append(_Sent(row.first, row.last, len(row.data)))
        self._size += len(row.data)
        self._given += 1
        is_over = False

        def done(fate: Handover) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._given -= 1
            self._news.set()
            if session != self._session:
                return
            if not fate:
                self._has_failed = True
            elif not self._carrier.is_acknowledged_by_peer:
                self._has(row.last)

        self._carrier.carry(row, done, is_historical=is_historical)

    def _has(self, last: int) -> None:
        """Learn that the broker has a row; what was sent before it may still be under way."""
        for index, sent in enumerate(self._sent):
            if sent.last == last:
                self._sent[index] = sent._replace(size=-sent.size - 1)
                break
        acknowledged = 0
        while self._sent and self._sent[0].size < 0:
            sent = self._sent.popleft()
            self._size -= -sent.size - 1
            acknowledged = sent.last
        if acknowledged:
            self._progressed_s = self._clock.monotonic_s()
            self.stream.acknowledge(acknowledged)

    def _forget_sent(self) -> None:
        while self._sent and self._sent[0].last <= self.stream.floor:
            self._size -= self._sent.popleft().size
            self._progressed_s = self._clock.monotonic_s()

    async def _wait_for_progress(self) -> bool:
        """Wait for news; return False if what was sent has to be sent again."""
        if self._is_overdue():
            return False
        left_s = self._progressed_s + RESEND_S - self._clock.monotonic_s()
        await self._wait(max(left_s, 0.0) if not self._given else _IDLE_S)
        return True

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
