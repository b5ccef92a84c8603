"""How the benchmarks measure, and what they hand over: rows of the table.

A ratio is the median of the ratios of the rounds, not the ratio of the medians: what disturbs the
machine for a while then disturbs both sides of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from statistics import median
from typing import TypeVar

K = TypeVar("K")
R = TypeVar("R")
Series = Sequence[float]
"""What one contestant reached, by round."""


@dataclass(frozen=True, slots=True)
class Span:
    """How long to measure."""

    is_quick: bool = False

    def choose(self, thorough: float, quick: float) -> float:
        """Return the seconds or the rounds for this run."""
        return quick if self.is_quick else thorough


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What fieldbus is held against in one row."""

    text: str
    """Its name and what it reached, or why there is nothing."""
    ratio: float | None = None
    """Above 1 in favour of fieldbus; None if there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    fieldbus: str
    yardsticks: Sequence[Yardstick]
    note: str = ""


def in_turns(rounds: float, contestants: Mapping[K, Callable[[], R]]) -> dict[K, list[R]]:
    """Let each contestant measure itself once a round and return what each reached, by its name."""
    reached: dict[K, list[R]] = {name: [] for name in contestants}
    for _ in range(int(rounds)):
        for name, contestant in contestants.items():
            reached[name].append(contestant())
    return reached


def ratio(upper: Series, lower: Series) -> float:
    """Return how many times `lower` goes into `upper`: the median of the rounds."""
    return median(above / below for above, below in zip(upper, lower, strict=True))


def seconds_per_call(
    call: Callable[..., object], arguments: Sequence[tuple[object, ...]], seconds: float
) -> float:
    """Return what a call costs, called with each of `arguments` again and again for about `seconds`.

    It is CPU time: what other programs take of the machine is not counted. The loop itself is C.
    """
    calls, spent_s = 0, 0.0
    while spent_s < seconds:
        began_s = time.process_time()
        deque(starmap(call, arguments), maxlen=0)
        spent_s += time.process_time() - began_s
        calls += len(arguments)
    return spent_s / calls


def percentile(values: Series, percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def rate_text(per_s: float) -> str:
    """Return a rate for people: ``28.4 k/s``, ``3.55 M/s``."""
    if per_s >= 1e6:
        return f"{per_s / 1e6:.2f} M/s"
    return f"{per_s / 1e3:.1f} k/s"


def us_text(seconds: float) -> str:
    """Return a short time for people: ``0.31 µs``."""
    return f"{seconds * 1e6:.2f} µs"
