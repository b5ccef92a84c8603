"""How long a message may be silent before its points are bad.

Rules:

* What the configuration says goes before all; then the database: the shortest timeout of the signals,
  else the message's, else three of its cycles, of a branch of a multiplexed message as many times three
  as there are branches to take their turn. Else the deadline is learned.
* A timeout in a database that is no longer than the cycle cannot be meant for us and is passed over.
* Only the configuration sets a deadline below 200 ms: a database was written for a controller, and the
  system that we run on has pauses of its own.
* A deadline is learned only of a sender that keeps a rhythm; one that speaks on change, or in bursts,
  never gets one. Whoever broke the rhythm while it was learned has to keep it for longer.
* A learned deadline only ever grows. If the message comes back after it, the deadline becomes twice that
  silence, so that the same rhythm is not taken for a failure a second time: at most seven times in all.
  A silence longer than any deadline can be is a failure and changes nothing, unless the sender had not
  kept its rhythm since the last one: then it is on change after all, and learned anew.

Design: a frame costs a subtraction and four comparisons, and nothing is stored per frame: of 16 intervals
at a time the longest and the shortest are kept. They tell a rhythm from chance better than a mean does:
a random sender has very short intervals among 16, and a rhythm has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSED_CYCLES = 3
SHORTEST_S = 0.2

WINDOW = 16
"""Intervals that are judged together."""
REGULAR = 4.0
"""A rhythm: the longest interval is at most so many times the shortest; a lost frame alone makes it two."""
SAFETY = 5.0
"""A learned deadline is so many times the longest interval …"""
SHORTEST_LEARNED_S = 0.5
LONGEST_LEARNED_S = 60.0
"""… between these."""
WIDENED = 2.0
"""A deadline that was wrong becomes so many times the silence that showed it."""
MOST_WINDOWS = 4
"""As many in a row have to be regular at most, whatever was before: a rhythm in which frames get lost has
irregular ones again and again, and chance does not look like a rhythm so often."""


def choose(
    config_s: float | None,
    signal_timeouts: Iterable[float | None],
    message_timeout_s: float | None,
    cycle_s: float | None,
    branches: int = 1,
) -> tuple[float | None, str]:
    """Return the deadline of a group of signals, None for learned, and where it comes from.

    Args:
        config_s: what the configuration says.
        signal_timeouts: of the group's signals, from the database; None or 0 for none.
        message_timeout_s: from the database; None or 0 for none.
        cycle_s: from the configuration or the database; None or 0 for none.
        branches: how many values of the selector take turns; 1 for what is in every frame.
    """
    if config_s is not None:
        return config_s, "configuration"
    period_s = (cycle_s or 0.0) * max(branches, 1)
    candidates = [
        (min((timeout for timeout in signal_timeouts if timeout), default=0.0), "database: signal timeout"),
        (message_timeout_s or 0.0, "database: message timeout"),
    ]
    for timeout_s, origin in candidates:
        if timeout_s > period_s:
            return max(timeout_s, SHORTEST_S), origin
    if cycle_s:
        turns = f" × {branches} branches" if branches > 1 else ""
        return max(MISSED_CYCLES * period_s, SHORTEST_S), f"{MISSED_CYCLES} × cycle of {cycle_s:g} s{turns}"
    return None, "learned"


class Learned:
    """The deadline of a group, learned from when its frames come."""

    __slots__ = (
        "_kept",
        "_last_s",
        "_left",
        "_limit_s",
        "_longest_s",
        "_needed",
        "_shortest_s",
        "deadline_s",
    )

    def __init__(self) -> None:
        self.deadline_s: float | None = None
        """None as long as no rhythm is known."""
        self._limit_s = math.inf
        """The deadline, for comparing."""
        self._needed = 1
        """How many windows in a row have to be regular …"""
        self._kept = 0
        """… and how many were."""
        self.interrupt()

    def interrupt(self) -> None:
        """Take the silence up to the next frame for ours: the bus was away, or nobody listened."""
        # An interval since "not a number" is neither longer nor shorter than any.
        self._last_s = math.nan
        self._begin_window(WINDOW + 1)

    def _begin_window(self, intervals: int) -> None:
        self._left = intervals
        self._longest_s = 0.0
        self._shortest_s = math.inf

    def seen(self, now_s: float) -> None:
        """Take note of a frame, at a moment of the monotonic clock."""
        interval_s = now_s - self._last_s
        self._last_s = now_s
        if interval_s > self._longest_s:
            if interval_s > self._limit_s:
                self._came_late(interval_s)
                return
            self._longest_s = interval_s
        if interval_s < self._shortest_s:  # noqa: PLR1730 - for each frame, and twice as fast as `min`
            self._shortest_s = interval_s
        self._left -= 1
        if not self._left:
            self._judge()

    def _judge(self) -> None:
        longest_s = self._longest_s
        is_regular = longest_s <= REGULAR * self._shortest_s
        if is_regular:
            self._kept += 1
            if self._kept >= self._needed and longest_s * WIDENED <= LONGEST_LEARNED_S:
                self._widen(SAFETY * longest_s)
        else:
            self._kept = 0
            if self.deadline_s is None:
                self._needed = min(2 * self._needed, MOST_WINDOWS)
        self._begin_window(WINDOW)

    def _widen(self, deadline_s: float) -> None:
        deadline_s = min(max(deadline_s, SHORTEST_LEARNED_S), LONGEST_LEARNED_S)
        self.deadline_s = self._limit_s = max(self.deadline_s or 0.0, deadline_s)

    def _came_late(self, silence_s: float) -> None:
        if silence_s <= LONGEST_LEARNED_S:
            self._widen(WIDENED * silence_s)
        elif not self._kept:
            self.deadline_s, self._limit_s = None, math.inf
            self._needed = min(2 * self._needed, MOST_WINDOWS)
        self._kept = 0
        self._begin_window(WINDOW)
