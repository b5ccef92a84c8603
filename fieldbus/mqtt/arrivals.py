"""What the times and numbers of others count for. Pure.

Rules:

* Silence and age are measured by arrival, on our monotonic clock (`picture`). A sample that was held on its
  way is as old as its own time says, if that makes it older.
* A time further in the future than a bound is replaced by the time of arrival, and the value is uncertain for
  that reason (`dated`). A time in the past is never touched.
* What gateways send live has its place by (boot, number); what comes a second time, or after what was sent
  later, is not taken (`Order`). On plain topics messages count as they arrive.
* A historical message on a plain topic is a copy that comes in its order, often after what is newer. It
  becomes the value of its point when nothing else has come for `SETTLE_S` (`Arrivals`): the last one of a
  backlog is the newest.
* Time is a parameter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, HeldBatch, HeldSample, Quality, Reason, Sample

CLOCK_TOLERANCE_S = 10.0
"""How far a source time may lie in the future, unless the configuration says otherwise."""
SETTLE_S = 1.0
OFFSET_PERIOD_S = 30.0
"""An offset is the best of what was measured in this period and the one before."""
_BOOTS_KEPT = 8
NEVER = math.inf


def dated(sample: Sample, now_ns: int, tolerance_ns: int) -> Sample:
    """Return a sample with a time that is not in the future.

    Args:
        sample: as it came.
        now_ns: wall clock.
        tolerance_ns: how far ahead of it a time may be.
    """
    value, quality, reason, time_ns = sample
    if time_ns <= now_ns + tolerance_ns:
        return sample
    if quality is Quality.GOOD:
        quality, reason = Quality.UNCERTAIN, Reason.CLOCK
    return type(sample)(value, quality, reason, now_ns)


def held(sample: Sample) -> Sample:
    """Return a sample as one that waited on its way."""
    return sample if sample.is_held else HeldSample(*sample)


def picture(group: Group, sample: Sample, changed: Sequence[int], now_ns: int, now_s: float) -> Batch:
    """Return what a sample that arrives now makes of the group of its point."""
    flaws = NO_FLAWS if sample.reason is None else {0: Flaw(sample.quality, sample.reason)}
    if not sample.is_held:
        return Batch(group, sample.time_ns, now_s, (sample.value,), flaws, changed)
    age_s = max(0, now_ns - sample.time_ns) / 1e9
    return HeldBatch(group, sample.time_ns, now_s - age_s, (sample.value,), flaws, changed)


class Order:
    """The place of one sender's messages, by its boot and their numbers."""

    __slots__ = ("_boot", "_number", "_past")

    def __init__(self) -> None:
        self._boot: str | None = None
        self._number = 0
        self._past: deque[str] = deque(maxlen=_BOOTS_KEPT)

    def is_news(self, boot: str, number: int) -> bool:
        """Return whether a message is newer than all before it, and remember it if so."""
        if boot == self._boot:
            if number <= self._number:
                return False
        elif boot in self._past:
            return False
        elif self._boot is not None:
            self._past.append(self._boot)
        self._boot, self._number = boot, number
        return True

    def gone(self) -> None:
        """Learn that the sender is not there: whoever comes then may be one that was there before."""
        self._past.clear()


class ClockOffset:
    """How far the clock of another gateway is ahead of ours.

    A message can only come late, never early: the least delayed message of a while says most.
    """

    __slots__ = ("_before_s", "_best_s", "_since_s")

    def __init__(self) -> None:
        self._since_s = -math.inf
        self._best_s = -math.inf
        self._before_s = -math.inf

    def heard(self, sent_ns: int, now_ns: int, now_s: float) -> None:
        """Learn when a message was sent, by the other clock, that arrives now."""
        if now_s - self._since_s >= OFFSET_PERIOD_S:
            self._since_s, self._before_s, self._best_s = now_s, self._best_s, -math.inf
        self._best_s = max(self._best_s, (sent_ns - now_ns) / 1e9)

    @property
    def seconds(self) -> float | None:
        """How far it is ahead; negative if it is behind, None if nothing is known."""
        best_s = max(self._best_s, self._before_s)
        return best_s if best_s > -math.inf else None


class Arrivals:
    """The newest sample of each point on plain topics, of one session."""

    def __init__(self) -> None:
        self._last: dict[Group, Sample] = {}
        self._late: dict[Group, tuple[Sample, float]] = {}
        """Historical samples, and when each becomes the value of its point."""

    @property
    def next_due_s(self) -> float:
        """When `expire` has something to do, on the monotonic clock; infinity if never."""
        return min((due_s for _, due_s in self._late.values()), default=NEVER)

    def take(
        self, group: Group, sample: Sample, now_ns: int, now_s: float, *, is_retained: bool
    ) -> Batch | None:
        """Take a sample, and return what it makes of its group now, if anything.

        Args:
            group: of its point alone.
            sample: historical if it is held.
            now_ns: wall clock.
            now_s: monotonic clock.
            is_retained: whether the broker had kept the message.
        """
        if is_retained:
            sample = held(sample)
        elif sample.is_held:
            if self._last.get(group) == sample:
                self._late.pop(group, None)  # the copy of what came at once: it is newer than those before
            else:
                self._late[group] = sample, now_s + SETTLE_S
            return None
        self._late.pop(group, None)
        return self._picture(group, sample, now_ns, now_s)

    def expire(self, now_ns: int, now_s: float) -> Iterator[Batch]:
        """Yield what historical samples make of their groups, when nothing else has come meanwhile."""
        for group, (sample, due_s) in list(self._late.items()):
            if due_s <= now_s:
                del self._late[group]
                yield self._picture(group, sample, now_ns, now_s)

    def forget(self) -> None:
        """Forget the session: whatever comes next is news."""
        self._last.clear()
        self._late.clear()

    def _picture(self, group: Group, sample: Sample, now_ns: int, now_s: float) -> Batch:
        last = self._last.get(group)
        self._last[group] = sample
        changed = () if last is not None and last[:3] == sample[:3] else (0,)
        return picture(group, sample, changed, now_ns, now_s)
