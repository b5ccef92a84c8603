"""Reads that somebody waits for, through a link that runs.

Rules:

* A read is fresh: its request is sent after it was asked for. It has its turn next, between the polls.
* A read takes the way of a poll, so that a refused block is explored, a late response is never taken, and
  the points of the block have the new values everywhere. What is read is the whole block.
* A response that is missing or wrong is asked for once more; the second failure, an exception or a value ends
  the read. Each point gets exactly one sample.

Design: while somebody waits the link's batches go through `emit` here; at all other times the link does not
know that there are such reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.link import NEVER, Emit
from fieldbus.modbus.units import Poll
from fieldbus.model import Batch, Point, Quality, Reason, Sample

_ASK_AGAIN = (Reason.TIMEOUT, Reason.BAD_RESPONSE)


class Host(Protocol):
    """What the reads need of the link."""

    clock: Clock

    def polls_of(self, points: Collection[Point]) -> Iterable[tuple[Poll, bool]]:
        """Return the polls that read some of the points, and whether each is under way."""
        ...

    def hasten(self, poll: Poll) -> None:
        """Send a poll that is not under way as soon as possible."""


class _Waiting:
    """A point that somebody waits for."""

    __slots__ = ("failures", "future", "is_early")

    def __init__(self, future: asyncio.Future[Sample], *, is_early: bool) -> None:
        self.future = future
        self.is_early = is_early
        """Whether the next response is to a request that was sent before."""
        self.failures = 0


class FreshReads:
    """The reads of one link that somebody waits for."""

    def __init__(self, host: Host, intercept: Callable[[bool], None]) -> None:
        """Take the link.

        Args:
            intercept: called with whether the link's batches have to go through `emit`.
        """
        self._host = host
        self._intercept = intercept
        self._waiting: dict[Point, list[_Waiting]] = {}

    async def read(self, points: Collection[Point], until_s: float) -> dict[Point, Sample]:
        """Return a fresh sample of each point; bad, with the reason, where there is none in time."""
        loop = asyncio.get_running_loop()
        asked: dict[Point, _Waiting] = {}
        wanted = set(points)
        for poll, is_under_way in self._host.polls_of(wanted):
            for point in poll.group.points:
                if point in wanted:
                    asked[point] = _Waiting(loop.create_future(), is_early=is_under_way)
            if not is_under_way:
                self._host.hasten(poll)
        for point, waiting in asked.items():
            self._waiting.setdefault(point, []).append(waiting)
        self._intercept(bool(self._waiting))
        futures = {waiting.future for waiting in asked.values()}
        try:
            if futures:
                left_s = until_s - self._host.clock.monotonic_s()
                await asyncio.wait(futures, timeout=None if left_s == NEVER else max(0.0, left_s))
            samples = {point: self._sample(asked.get(point)) for point in points}
        finally:
            for point, waiting in asked.items():
                self._forget(point, waiting)
            self._intercept(bool(self._waiting))
        return samples

    def emit(self, batch: Batch, emit: Emit) -> None:
        """Pass a batch on, and give its samples to those who wait for them."""
        emit(batch)
        for index, point in enumerate(batch.group.points):
            for waiting in list(self._waiting.get(point, ())):
                if not waiting.future.done() and self._is_last(waiting, batch.sample(index)):
                    waiting.future.set_result(batch.sample(index))
        if any(point in self._waiting for point in batch.group.points):
            asyncio.get_running_loop().call_soon(self._ask_again)

    def end(self, reason: str) -> None:
        """End all reads."""
        for all_waiting in self._waiting.values():
            for waiting in all_waiting:
                if not waiting.future.done():
                    waiting.future.set_result(self._bad(reason))

    def _is_last(self, waiting: _Waiting, sample: Sample) -> bool:
        """Return whether a sample ends a read."""
        if waiting.is_early:
            waiting.is_early = False
            return False
        if sample.reason in _ASK_AGAIN and waiting.failures == 0:
            waiting.failures += 1
            return False
        return True

    def _ask_again(self) -> None:
        """Send once more what somebody still waits for."""
        wanted = {
            point for point, found in self._waiting.items() if any(not item.future.done() for item in found)
        }
        for poll, is_under_way in self._host.polls_of(wanted):
            if not is_under_way:
                self._host.hasten(poll)

    def _sample(self, waiting: _Waiting | None) -> Sample:
        if waiting is None:
            return self._bad(Reason.NOT_AVAILABLE)
        return waiting.future.result() if waiting.future.done() else self._bad(Reason.TIMEOUT)

    def _bad(self, reason: str) -> Sample:
        return Sample(None, Quality.BAD, reason, self._host.clock.wall_ns())

    def _forget(self, point: Point, waiting: _Waiting) -> None:
        found = self._waiting[point]
        found.remove(waiting)
        if not found:
            del self._waiting[point]
        waiting.future.cancel()
