"""Commands to points of one group, or of one CAN message: their values are written together or not at all.

Rules:

* Each command takes its own way: through the gate, with its own intent and its own record.
* The link gets the values when all commands have come so far. If one is refused, or does not come so far in
  time, none is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fieldbus.clock import Clock
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.model import Point, Value

WriteAll = Callable[[Mapping[Point, Value], float], Awaitable[list[WriteResult]]]
"""Has the link write: values, and until when (monotonic)."""


class Bundle:
    """The values of some commands on their way to one link."""

    def __init__(self, count: int, write_all: WriteAll, clock: Clock) -> None:
        """Take how many commands there are, and what has the link write."""
        self._count = count
        self._write_all = write_all
        self._clock = clock
        self._values: dict[Point, Value] = {}
        self._until_s: list[float] = []
        self._ended: asyncio.Future[dict[Point, WriteResult]] = asyncio.get_running_loop().create_future()
        self._missing: str | None = None

    def has(self, point: str) -> bool:
        """Return whether the command to a point has come so far that it could be written."""
        return any(known.address == point for known in self._values)

    def withdraw(self, point: str) -> None:
        """Learn that the command to a point will not be written."""
        self._missing = self._missing or point
        if not self._ended.done():
            self._ended.set_result({})

    async def write(self, point: Point, value: Value, until_s: float) -> WriteResult:
        """Write a value together with those of the other commands."""
        self._values[point] = value
        self._until_s.append(until_s)
        if len(self._values) == self._count and not self._ended.done():
            results: dict[Point, WriteResult] = {}
            try:
                found = await self._write_all(dict(self._values), min(self._until_s))
                results = {result.point: result for result in found}
            finally:
                if not self._ended.done():
                    self._ended.set_result(results)
            return results[point]
        try:
            async with asyncio.timeout(max(0.0, until_s - self._clock.monotonic_s())):
                ended = await asyncio.shield(self._ended)
        except TimeoutError:
            if len(self._values) == self._count:  # the link has them
                return WriteResult(point, value, WriteOutcome.UNKNOWN, "no answer in time")
            self.withdraw("a point")
            ended = {}
        if point in ended:
            return ended[point]
        text = f"not written: {self._missing}, which is written with it, was not"
        return WriteResult(point, value, WriteOutcome.REFUSED, text)
