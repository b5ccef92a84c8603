"""What a bus has to do by the clock, in one heap with one timer.

Rules: an act is called with the present moment and returns when it wants to be called again, or None.
Before anything is judged to be late, what has come in meanwhile is looked at: a gateway that was stopped
for a while finds the frames of that while in the kernel's buffer, and no sender was silent.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from fieldbus.clock import SYSTEM, Clock

Act = Callable[[float], float | None]
"""Called with the monotonic time in seconds; returns when again."""


class Schedule:
    """Appointments of one session of a bus."""

    def __init__(
        self,
        look_first: Callable[[], None],
        failed: Callable[[Exception], None],
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        """Begin without appointments.

        Args:
            look_first: takes what has come in; called before acts.
            failed: told of an exception that nobody foresaw; nothing is done any more then.
            clock: the gateway's.
        """
        self._clock = clock
        self._look_first = look_first
        self._failed = failed
        self._heap: list[tuple[float, int, Act]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = float("inf")
        self._is_ticking = False

    def at(self, due_s: float, act: Act) -> None:
        """Have something done at a moment of the monotonic clock."""
        heapq.heappush(self._heap, (due_s, next(self._order), act))
        if due_s < self._armed_s and not self._is_ticking:
            self._arm()

    def clear(self) -> None:
        """Forget all appointments."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_s = float("inf")
        self._heap.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_s = float("inf")
        if self._heap:
            self._armed_s = self._heap[0][0]
            delay_s = max(0.0, self._armed_s - self._clock.monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._is_ticking = True
        try:
            self._look_first()
            now_s = self._clock.monotonic_s()
            due: list[Act] = []
            while self._heap and self._heap[0][0] <= now_s:
                due.append(heapq.heappop(self._heap)[2])
            # What acts make due at once has its turn in the next round: others have theirs in between.
            for act in due:
                again_s = act(now_s)
                if again_s is not None:
                    heapq.heappush(self._heap, (again_s, next(self._order), act))
        except Exception as error:
            self._heap.clear()
            self._failed(error)
        self._is_ticking = False
        self._arm()
