"""The dead-man's handle: points that go to a safe value when their source is silent.

Rules:

* The source of a point is what its route reads, and whoever commands it. It is silent when neither was good
  for so long as the point's `fallback` says, counted from when we began to listen to it.
* A safe value is written once, and that is said and recorded; if it could not be written, it is tried again.
  None comes later because of another.
* The next good value of the source ends it, and is written whatever it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.gateway.commands.desk import Desk
from fieldbus.gateway.commands.gate import Guard
from fieldbus.link import WriteOutcome
from fieldbus.model import Point, Quality
from fieldbus.routing.router import Router

LOOK_S = 0.1
IDLE_S = 1.0
RETRY_S = 1.0
_FRESH = (Quality.GOOD, Quality.UNCERTAIN)
_LOG = logging.getLogger("fieldbus")


class Surroundings(Protocol):
    """What is needed of the gateway; both are others after a reload."""

    router: Router
    desk: Desk
    clock: Clock


class DeadMen:
    """All points with a safe value."""

    def __init__(self, around: Surroundings) -> None:
        self.fallen: dict[Point, float] = {}
        """Points at their safe value, and since when their source was silent then."""
        self._around = around
        self._guards: Mapping[Point, Guard] = {}
        self._listened: dict[Point, tuple[Point | None, float]] = {}
        """The source of each point, and since when we listen to it."""
        self._heard: dict[Point, float] = {}
        """When the source of a point was last good."""

    def take(self, guards: Mapping[Point, Guard], now_s: float) -> None:
        """Take the guards of all points, at start or after a reload."""
        self._guards = {point: guard for point, guard in guards.items() if guard.fallback_after_s}
        self.fallen = {point: since_s for point, since_s in self.fallen.items() if point in self._guards}
        self._heard = {point: at_s for point, at_s in self._heard.items() if point in self._guards}
        before, self._listened = self._listened, {}
        for point in self._guards:
            edge = self._around.router.edge_to(point)
            source = None if edge is None else edge.source
            known = before.get(point)
            if known is not None and (known[0] is source or point in self.fallen):
                self._listened[point] = source, known[1]
            else:
                self._listened[point] = source, now_s

    def begin(self, now_s: float) -> None:
        """Listen from now on."""
        self._listened = {point: (source, now_s) for point, (source, _) in self._listened.items()}

    async def watch(self) -> None:
        """Bring points to their safe value until cancelled."""
        under_way: dict[Point, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(LOOK_S if self._guards else IDLE_S)
                silent = self.silent(self._around.clock.monotonic_s())
                for point in [point for point in self.fallen if point not in silent]:
                    del self.fallen[point]
                    _LOG.info("%s: its source is back", point.address)
                under_way = {point: task for point, task in under_way.items() if not task.done()}
                for point, since_s in silent.items():
                    is_done = self.fallen.get(point) == since_s
                    if not is_done and point not in under_way and not self._around.desk.is_busy(point):
                        under_way[point] = asyncio.create_task(
                            self._fall_back(point, since_s), name=f"safe value of {point.address}"
                        )
        finally:
            for task in under_way.values():
                task.cancel()
            await asyncio.gather(*under_way.values(), return_exceptions=True)

    async def _fall_back(self, point: Point, since_s: float) -> None:
        guard = self._guards.get(point)
        if guard is None:
            return
        outcome = await self._around.desk.fall_back(point, guard)
        if outcome in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED):
            self.fallen[point] = since_s
            self._around.router.missed(point)
        else:
            await asyncio.sleep(RETRY_S)

    def silent(self, now_s: float) -> dict[Point, float]:
        """Return the points whose source has been silent for too long, and since when."""
        found = {}
        for point, guard in self._guards.items():
            begun_s, heard_s = self._listened[point][1], self.heard_s(point)
            since_s = begun_s if heard_s is None else max(heard_s, begun_s)
            if is_overdue(guard, since_s, now_s):
                found[point] = since_s
        return found

    def heard_s(self, point: Point) -> float | None:
        """Return when the source of a point was last good, or a command wrote it; None if never."""
        router = self._around.router
        edge = router.edge_to(point)
        if edge is not None:
            batch = router.batch_of(edge.source)
            if batch is not None and router.sample(edge.source).quality in _FRESH:
                self._heard[point] = batch.at_s
        moments = (self._around.desk.commanded_s(point), self._heard.get(point))
        return max((moment for moment in moments if moment is not None), default=None)


def is_overdue(guard: Guard, since_s: float, now_s: float) -> bool:
    """Return whether a source that has been silent since a moment was so for too long."""
    return guard.fallback_after_s is not None and now_s - since_s > guard.fallback_after_s
