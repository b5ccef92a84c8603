"""Whose turn it is: the schedule of the polls of one link. Pure; `now_s` is a parameter.

Rules:

* Polls have deadlines, not sleeps: a late poll does not move the next one, so what is late is read as soon as
  may be; a period that was missed whole is skipped and counted.
* The first poll of all comes at once, people wait for it; from then on each unit has a slot of its period,
  so that a thousand devices do not fire together. Slots are the same for all links: to wake up for one poll
  costs more than the poll.
* Three ranks. Units that answer come first, in order of their deadlines. A unit that failed the last time
  (suspect) and the question whether a demoted one is back (probe) wait until none of them is due, whichever
  waits longer first; but where the line is never idle one of them goes ahead every `STARVED_S`.
* A demoted unit is not polled; it is probed at `probe_at_s`, with one of its polls after the other.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

SLOTS = 4
"""Parts of a period on which polls are spread."""
GRAIN_S = 0.001
"""Event loops count time in milliseconds: who waits for less wakes several times in vain."""
STARVED_S = 2.0
NEVER = float("inf")


class Rank(IntEnum):
    """How far a unit can be trusted to answer."""

    LIVE = 0
    SUSPECT = 1
    DEMOTED = 2


@dataclass(slots=True, eq=False)
class Turns:
    """What the agenda knows of a unit."""

    rank: Rank = Rank.LIVE
    probe_at_s: float = 0.0
    """When a demoted unit is asked again."""
    slot: float = field(default_factory=lambda: random.randrange(SLOTS) / SLOTS)
    """Its part of each period."""
    parked: list[Item] = field(default_factory=list)
    """Its polls, while it is demoted."""
    probe: Item | None = None
    """The one of them that asks whether it is back, while that is under way."""

    @property
    def can_be_probed(self) -> bool:
        """Whether there is something to ask with, and nothing is asked yet."""
        return self.probe is None and bool(self.parked)


class Item(Protocol):
    """A poll, as the agenda sees it."""

    turns: Turns
    period_s: float
    due_s: float
    is_first: bool
    """Whether its next read is the first of all."""
    is_gone: bool
    """Whether it has been taken out of the plan."""


PollT = TypeVar("PollT", bound=Item)


class Agenda(Generic[PollT]):
    """The polls of one link in the order in which they are due."""

    def __init__(self, *, is_on_demand: bool = False) -> None:
        """Begin with no polls.

        Args:
            is_on_demand: whether a poll has its turn once each time that it is added.
        """
        self._is_on_demand = is_on_demand
        self._live: list[tuple[float, int, PollT]] = []
        self._suspect: list[tuple[float, int, PollT]] = []
        self._demoted: list[Turns] = []
        self._order = itertools.count()
        self._doubtful_at_s = -NEVER
        """When a poll that was not of a live unit last had its turn."""
        self.missed = 0
        """Periods that passed without a read because the line was busy."""

    def add(self, poll: PollT) -> None:
        """Take a poll that is due at its `due_s`."""
        if poll.turns.probe is poll:
            poll.turns.probe = None
        if poll.is_gone:
            return
        rank = poll.turns.rank
        if rank is Rank.DEMOTED:
            poll.turns.parked.append(poll)
            return
        heap = self._live if rank is Rank.LIVE else self._suspect
        heapq.heappush(heap, (poll.due_s, next(self._order), poll))

    def pick(self, now_s: float) -> PollT | None:
        """Return the poll whose turn it is, and take it out; None if none is due."""
        live = self._live
        first: tuple[float, int, PollT] | None = None
        while live and live[0][0] <= now_s + GRAIN_S:
            entry = heapq.heappop(live)
            poll = entry[2]
            if not poll.is_gone and poll.turns.rank is Rank.LIVE:
                first = entry
                break
            self.add(poll)
        if self._suspect or self._demoted:
            doubtful = self._pick_doubtful(now_s, is_urgent=first is not None)
            if doubtful is not None:
                self._doubtful_at_s = now_s
                if first is not None:
                    heapq.heappush(live, first)
                return doubtful
        return None if first is None else first[2]

    def next_due_s(self) -> float:
        """Return when `pick` may have something; `NEVER` if nothing is planned."""
        due_s = self._live[0][0] if self._live else NEVER
        if self._suspect:
            due_s = min(due_s, self._suspect[0][0])
        for turns in self._demoted:
            if turns.can_be_probed:
                due_s = min(due_s, turns.probe_at_s)
        return due_s

    def reschedule(self, poll: PollT, now_s: float) -> int:
        """Give a poll that had its turn its next deadline; return how many periods it missed."""
        if self._is_on_demand:
            if poll.turns.probe is poll:
                poll.turns.probe = None
            return 0
        period_s = poll.period_s
        next_s = poll.due_s + period_s
        if poll.is_first:
            poll.is_first = False
            next_s = (poll.due_s // period_s + poll.turns.slot) * period_s
            if next_s <= now_s:
                next_s += ((now_s - next_s) // period_s + 1) * period_s
        missed = max(0, int((now_s - next_s) // period_s))
        next_s += missed * period_s
        self.missed += missed
        poll.due_s = next_s
        self.add(poll)
        return missed

    def demote(self, turns: Turns) -> None:
        """Ask a unit from now on only whether it is back, at its `probe_at_s`."""
        turns.rank = Rank.DEMOTED
        if turns not in self._demoted:
            self._demoted.append(turns)
        for heap in (self._live, self._suspect):
            mine = [poll for _, _, poll in heap if poll.turns is turns]
            if mine:
                turns.parked.extend(poll for poll in mine if not poll.is_gone)
                heap[:] = [entry for entry in heap if entry[2].turns is not turns]
                heapq.heapify(heap)

    def revive(self, turns: Turns, now_s: float) -> None:
        """Poll a unit again: what was not polled meanwhile at once, since all of it is bad."""
        turns.rank = Rank.LIVE
        turns.probe = None
        if turns in self._demoted:
            self._demoted.remove(turns)
        waiting = [poll for _, _, poll in self._suspect if poll.turns is turns]
        if waiting:
            self._suspect = [entry for entry in self._suspect if entry[2].turns is not turns]
            heapq.heapify(self._suspect)
        parked, turns.parked = turns.parked, []
        for poll in waiting:
            self.add(poll)
        for item in parked:
            item.due_s = now_s
            self.add(item)  # type: ignore[arg-type]

    def hasten(self, poll: PollT, now_s: float) -> None:
        """Make a poll due now; one that is under way, or is taken out for now, stays as it is."""
        turns = poll.turns
        if poll in turns.parked:  # it is the next probe
            turns.parked.remove(poll)
            turns.parked.insert(0, poll)
            turns.probe_at_s = now_s
            return
        for heap in (self._live, self._suspect):
            if any(other is poll for _, _, other in heap):
                heap[:] = [entry for entry in heap if entry[2] is not poll]
                heapq.heapify(heap)
                break
        else:
            if not self._is_on_demand:
                return
        poll.due_s = now_s
        self.add(poll)

    def clear(self) -> list[PollT]:
        """Take all polls out and return them."""
        found = [poll for _, _, poll in (*self._live, *self._suspect) if not poll.is_gone]
        self._live.clear()
        self._suspect.clear()
        return found

    def drop(self, polls: Iterable[PollT]) -> None:
        """Take polls out of the plan."""
        for poll in polls:
            poll.is_gone = True
            if poll in poll.turns.parked:
                poll.turns.parked.remove(poll)

    def _pick_doubtful(self, now_s: float, *, is_urgent: bool) -> PollT | None:
        """Return a suspect's poll or a probe that is due, unless a live unit goes first."""
        if is_urgent and now_s < self._doubtful_at_s + STARVED_S:
            return None
        late_s = STARVED_S if is_urgent else -GRAIN_S
        suspect = self._suspect
        while suspect and (suspect[0][2].is_gone or suspect[0][2].turns.rank is not Rank.SUSPECT):
            self.add(heapq.heappop(suspect)[2])
        waiting = [turns for turns in self._demoted if turns.can_be_probed]
        turns = min(waiting, key=lambda item: item.probe_at_s, default=None)
        if turns is not None and (not suspect or turns.probe_at_s < suspect[0][0]):
            if turns.probe_at_s + late_s > now_s:
                return None
            turns.probe = turns.parked.pop(0)
            return turns.probe  # type: ignore[return-value]
        if not suspect or suspect[0][0] + late_s > now_s:
            return None
        return heapq.heappop(suspect)[2]
