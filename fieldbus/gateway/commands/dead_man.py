"""The dead-man's handle: points that go to a safe value when their source is silent.

Rules:

* The source of a point is what its route reads, and whoever commands it. `silence` says what silence is, and
  what ends it. An uncertain sample is good enough, unless the route keeps uncertain samples from the point.
* A safe value is written once, and that is said and recorded; if it could not be written, it is tried again.
  None comes later because of another. If the link or the device of the target is lost meanwhile, the safe
  value is written again: who knows what a machine has kept through a power cut.
* While a fallback lasts, nothing that routes have is written to the point (`holds`).
* The sample that ends it is written whatever it is.
* Points are known by their addresses, so that a reload that makes points anew ends no fallback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.gateway.commands.desk import Desk
from fieldbus.gateway.commands.gate import Guard
from fieldbus.gateway.commands.silence import NEVER_HEARD, Silence
from fieldbus.model import Point, Quality
from fieldbus.routing.policy import OnUncertain
from fieldbus.routing.router import Router

LOOK_S = 0.1
IDLE_S = 1.0
RETRY_S = 1.0
_LOG = logging.getLogger("fieldbus")


class Surroundings(Protocol):
    """What is needed of the gateway; both are others after a reload."""

    router: Router
    desk: Desk
    clock: Clock


@dataclass(slots=True)
class _Watched:
    """A point with a safe value."""

    point: Point
    guard: Guard
    source: Point | None
    silence: Silence


class DeadMen:
    """All points with a safe value."""

    def __init__(self, around: Surroundings) -> None:
        self.fallen: dict[Point, float] = {}
        """Points in their fallback, and when they entered it."""
        self._around = around
        self._watched: dict[str, _Watched] = {}
        """By address."""
        self._of: dict[Point, _Watched] = {}

    def take(self, guards: Mapping[Point, Guard], now_s: float) -> None:
        """Take the guards of all points, at start or after a reload."""
        before, self._watched = self._watched, {}
        for point, guard in guards.items():
            if guard.fallback_after_s is None:
                continue
            edge = self._around.router.edge_to(point)
            source = None if edge is None else edge.source
            known = before.get(point.address)
            if known is None:
                silence = Silence(guard.fallback_after_s, now_s)
            else:
                silence = known.silence
                silence.after_s = guard.fallback_after_s
                if known.source is not source:
                    silence.listen(now_s)
                if known.point is not point or known.guard.fallback_value != guard.fallback_value:
                    silence.lost()  # its link is opened anew, or the safe value is another one
            self._watched[point.address] = _Watched(point, guard, source, silence)
        self._note()

    def begin(self, now_s: float) -> None:
        """Listen from now on."""
        for watched in self._watched.values():
            watched.silence.listen(now_s)

    def holds(self, point: Point) -> bool:
        """Return whether a point is in its fallback, so that no route may write it."""
        watched = self._of.get(point)
        if watched is None:
            return False
        self._hear(watched)
        return watched.silence.entered_s is not None

    def missed(self, point: Point) -> None:
        """Learn that a point may not have any more what it was given."""
        watched = self._of.get(point)
        if watched is not None:
            watched.silence.lost()

    async def watch(self) -> None:
        """Bring points to their safe value until cancelled."""
        under_way: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(LOOK_S if self._watched else IDLE_S)
                self.look(self._around.clock.monotonic_s())
                under_way = {address: task for address, task in under_way.items() if not task.done()}
                for address, watched in self._watched.items():
                    if (
                        watched.silence.is_due
                        and address not in under_way
                        and not self._around.desk.is_busy(watched.point)
                    ):
                        under_way[address] = asyncio.create_task(
                            self._fall_back(watched), name=f"safe value of {address}"
                        )
        finally:
            for task in under_way.values():
                task.cancel()
            await asyncio.gather(*under_way.values(), return_exceptions=True)

    def look(self, now_s: float) -> None:
        """Find out which sources are silent for too long, and which are back."""
        is_news = False
        for watched in self._watched.values():
            self._hear(watched)
            if watched.silence.look(now_s):
                is_news = True
                # Whatever the target has now is not what it was sent: the next sample is to be written.
                self._around.router.missed(watched.point)
        if is_news:
            self._note()

    async def _fall_back(self, watched: _Watched) -> None:
        outcome = await self._around.desk.fall_back(watched.point, watched.guard)
        if outcome.is_done:
            watched.silence.wrote()
            # If the source came back meanwhile, its sample may have been written before the safe value.
            self._around.router.missed(watched.point)
        else:
            await asyncio.sleep(RETRY_S)

    def _hear(self, watched: _Watched) -> None:
        if watched.silence.hear(self._heard_s(watched)):
            self.fallen.pop(watched.point, None)
            _LOG.info("%s: its source is back", watched.point.address)

    def _heard_s(self, watched: _Watched) -> float:
        """Return when a good live sample of the source arrived, or a command wrote the point."""
        point, router = watched.point, self._around.router
        commanded_s = self._around.desk.commanded_s(point)
        heard_s = NEVER_HEARD if commanded_s is None else commanded_s
        edge = router.edge_to(point)
        batch = None if edge is None else router.batch_of(edge.source)
        if edge is not None and batch is not None:
            quality = router.sample(edge.source).quality
            is_passed = edge.policy.on_uncertain is OnUncertain.SEND
            if quality is Quality.GOOD or (quality is Quality.UNCERTAIN and is_passed):
                heard_s = max(heard_s, batch.heard_s)
        return heard_s

    def _note(self) -> None:
        """Keep as they are now those that are looked up with each delivery."""
        self._of = {watched.point: watched for watched in self._watched.values()}
        self.fallen = {
            watched.point: watched.silence.entered_s
            for watched in self._watched.values()
            if watched.silence.entered_s is not None
        }
