"""Whose turn it is, in virtual time: deadlines that do not drift, ranks, and polls that are never lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.examples import examples

from fieldbus.modbus.agenda import GRAIN_S, NEVER, SLOTS, STARVED_S, Agenda, Rank, Turns


@dataclass(eq=False)
class Poll:
    """A poll of a unit that is answered at once, unless a test says otherwise."""

    name: str
    turns: Turns
    period_s: float = 1.0
    due_s: float = 0.0
    is_first: bool = True
    is_gone: bool = False
    read_s: list[float] = field(default_factory=list)


def agenda_of(*polls: Poll) -> Agenda[Poll]:
    made: Agenda[Poll] = Agenda()
    for poll in polls:
        made.add(poll)
    return made


def run(agenda: Agenda[Poll], until_s: float, *, takes_s: float = 0.0, now_s: float = 0.0) -> float:
    """Read what is due, one after the other, each for so long; return the time."""
    while True:
        poll = agenda.pick(now_s)
        if poll is None:
            due_s = agenda.next_due_s()
            assert due_s > now_s, "it would be asked again and again in vain"
            if due_s > until_s:
                return now_s
            now_s = due_s
            continue
        poll.read_s.append(now_s)
        now_s += takes_s
        agenda.reschedule(poll, now_s)
        if now_s > until_s:
            return now_s


# --- deadlines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("period_s", "slot"), [(1.0, 0.0), (10.0, 0.35), (0.7, 0.95), (3600.0, 0.5)])
def test_nothing_drifts_in_a_million_seconds(period_s: float, slot: float) -> None:
    poll = Poll("a", Turns(slot=slot), period_s)
    agenda = agenda_of(poll)
    run(agenda, 1e6, takes_s=min(0.004, period_s / 3))
    assert agenda.missed == 0
    second_s = poll.read_s[1]
    assert 0 < second_s <= period_s
    assert len(poll.read_s) == pytest.approx(2 + (1e6 - second_s) // period_s, abs=1)
    for n in (1, 10, 1000, len(poll.read_s) - 1):
        if n < len(poll.read_s):
            assert poll.read_s[n] == pytest.approx(second_s + (n - 1) * period_s, abs=2 * GRAIN_S)


def test_the_first_poll_comes_at_once_and_the_others_in_their_slots() -> None:
    polls = [Poll(f"p{n}", Turns(slot=n / SLOTS), 2.0, due_s=100.3) for n in range(SLOTS)]
    agenda = agenda_of(*polls)
    run(agenda, 110.0, now_s=100.3)
    for n, poll in enumerate(polls):
        assert poll.read_s[0] == 100.3
        assert all((at_s - n / SLOTS * 2.0) % 2.0 == pytest.approx(0, abs=1e-6) or
                   (at_s - n / SLOTS * 2.0) % 2.0 == pytest.approx(2.0, abs=1e-6)
                   for at_s in poll.read_s[1:])  # fmt: skip
        assert 100.3 < poll.read_s[1] <= 102.3


def test_units_are_spread_over_their_period() -> None:
    slots = Counter(Turns().slot for _ in range(2000))
    assert len(slots) == SLOTS
    assert all(0 <= slot < 1 for slot in slots)
    assert max(slots.values()) < 3 * 2000 / SLOTS


@given(
    period_s=st.sampled_from([0.01, 0.1, 1.0, 2.5, 60.0, 86400.0]),
    slot=st.integers(0, SLOTS - 1).map(lambda n: n / SLOTS),
    start_s=st.floats(0, 1e7),
)
def test_the_second_read_is_never_later_than_a_period_after_the_first(period_s, slot, start_s) -> None:
    poll = Poll("a", Turns(slot=slot), period_s, start_s)
    agenda = agenda_of(poll)
    assert agenda.pick(start_s) is poll
    assert agenda.reschedule(poll, start_s) == 0
    assert start_s <= poll.due_s <= start_s + period_s * (1 + 1e-9) + 1e-8


@pytest.mark.parametrize(
    ("late_s", "missed", "next_s"),
    [(0.0, 0, 11.0), (0.5, 0, 11.0), (1.0, 0, 11.0), (1.25, 0, 11.0), (2.0, 1, 12.0), (7.75, 6, 17.0),
     (1000.5, 999, 1010.0)],
)  # fmt: skip
def test_what_was_missed_is_counted_and_the_deadlines_stay_where_they_were(
    late_s: float, missed: int, next_s: float
) -> None:
    poll = Poll("a", Turns(), due_s=10.0, is_first=False)
    agenda = agenda_of(poll)
    assert agenda.pick(10.0 + late_s) is poll
    assert agenda.reschedule(poll, 10.0 + late_s) == missed
    assert agenda.missed == missed
    assert poll.due_s == next_s


@given(
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
    st.sampled_from([0.1, 0.5, 1.0, 3.0]),
)
def test_reads_and_missed_periods_together_are_all_the_periods_that_passed(durations, period_s) -> None:
    poll = Poll("a", Turns(), period_s, is_first=False)
    agenda = agenda_of(poll)
    now_s, reads = 0.0, 0
    for takes_s in durations:
        now_s = max(now_s, agenda.next_due_s())
        assert agenda.pick(now_s) is poll
        reads += 1
        now_s += takes_s
        agenda.reschedule(poll, now_s)
    # The deadline that comes next is the one behind all that were kept or missed, less than a period ago.
    assert poll.due_s / period_s == pytest.approx(reads + agenda.missed, abs=1e-6)
    assert poll.due_s > now_s - period_s * (1 + 1e-9)
    assert poll.due_s <= now_s + period_s * (1 + 1e-9)


def test_whoever_waits_for_less_than_a_grain_is_not_sent_away() -> None:
    poll = Poll("a", Turns(), due_s=10.0)
    agenda = agenda_of(poll)
    assert agenda.pick(10.0 - 2 * GRAIN_S) is None
    assert agenda.pick(10.0 - GRAIN_S / 2) is poll


@pytest.mark.parametrize("rank", list(Rank))
def test_whoever_waits_for_a_grain_is_not_sent_away_whatever_its_rank(rank: Rank) -> None:
    poll = Poll("a", Turns(rank=Rank.SUSPECT if rank is Rank.SUSPECT else Rank.LIVE), due_s=GRAIN_S)
    agenda = agenda_of(poll)
    if rank is Rank.DEMOTED:
        poll.turns.probe_at_s = GRAIN_S
        agenda.demote(poll.turns)
    assert agenda.pick(-GRAIN_S / 2) is None
    assert agenda.pick(0.0) is poll


def test_a_first_read_in_its_own_slot_is_not_done_twice() -> None:
    poll = Poll("a", Turns(slot=0.0), 2.0, due_s=8.0)
    agenda = agenda_of(poll)
    assert agenda.pick(8.0) is poll
    agenda.reschedule(poll, 8.0)
    assert poll.due_s == 10.0


def test_nothing_is_due_where_nothing_is_planned() -> None:
    agenda = agenda_of()
    assert (agenda.next_due_s(), agenda.pick(1e9)) == (NEVER, None)


# --- a busy line ------------------------------------------------------------------------------------


def test_equal_polls_take_turns() -> None:
    polls = [Poll(f"p{n}", Turns(slot=0.0)) for n in range(10)]
    agenda = agenda_of(*polls)
    run(agenda, 50.0, takes_s=0.01)
    counts = {len(poll.read_s) for poll in polls}
    assert max(counts) - min(counts) <= 1
    assert agenda.missed == 0


@pytest.mark.parametrize("count", [11, 15, 25, 200])
def test_where_there_is_too_much_to_do_all_are_late_alike(count: int) -> None:
    """A line for ten reads a second."""
    polls = [Poll(f"p{n}", Turns(slot=n % SLOTS / SLOTS)) for n in range(count)]
    agenda = agenda_of(*polls)
    run(agenda, 2000.0, takes_s=0.1)
    counts = [len(poll.read_s) for poll in polls]
    assert sum(counts) == pytest.approx(20_000, rel=0.02), "the line is never idle while something waits"
    assert max(counts) <= 2.2 * min(counts)
    assert agenda.missed == pytest.approx(2000 * count - sum(counts), rel=0.05)


def test_a_slow_period_is_kept_beside_fast_ones_that_are_too_many() -> None:
    fast = [Poll(f"f{n}", Turns(), 0.1) for n in range(20)]
    slow = Poll("slow", Turns(), 10.0)
    agenda = agenda_of(slow, *fast)
    run(agenda, 1000.0, takes_s=0.01)
    assert len(slow.read_s) >= 99
    gaps = [after - before for before, after in pairwise(slow.read_s[1:])]
    assert max(gaps) <= 11.0


# --- ranks ------------------------------------------------------------------------------------------


def ranked() -> tuple[Agenda[Poll], Poll, Poll, Poll]:
    live = Poll("live", Turns(), due_s=5.0)
    suspect = Poll("suspect", Turns(rank=Rank.SUSPECT), due_s=1.0)
    demoted = Poll("demoted", Turns(probe_at_s=0.0), due_s=1.0)
    agenda = agenda_of(live, suspect, demoted)
    agenda.demote(demoted.turns)
    return agenda, live, suspect, demoted


def test_who_answers_goes_first_then_who_waits_the_longest() -> None:
    agenda, live, suspect, demoted = ranked()
    agenda._doubtful_at_s = 4.5  # a moment ago
    assert [agenda.pick(5.0) for _ in range(4)] == [live, demoted, suspect, None]


def test_doubtful_units_have_their_turn_where_nobody_else_is_due() -> None:
    agenda, live, suspect, demoted = ranked()
    assert [agenda.pick(2.0) for _ in range(3)] == [demoted, suspect, None]
    assert agenda.next_due_s() == live.due_s


def test_on_a_line_that_is_never_idle_a_doubtful_unit_goes_ahead_every_two_seconds() -> None:
    busy = [Poll(f"b{n}", Turns(), 0.1) for n in range(30)]
    suspect = Poll("suspect", Turns(rank=Rank.SUSPECT), 0.1)
    lost = Poll("lost", Turns(), 0.1)
    agenda = agenda_of(*busy, suspect, lost)
    agenda.demote(lost.turns)
    now_s = 0.0
    while now_s < 100.0:
        poll = agenda.pick(now_s)
        assert poll is not None
        poll.read_s.append(now_s)
        now_s += 0.01
        if poll is lost:
            lost.turns.probe_at_s = now_s + 0.5
        agenda.reschedule(poll, now_s)
    turns = sorted(suspect.read_s + lost.read_s)
    assert len(turns) == pytest.approx(100 / STARVED_S, abs=3)
    assert min(after - before for before, after in pairwise(turns)) >= STARVED_S
    assert suspect.read_s
    assert lost.read_s, "a suspect starves a probe"
    assert len(lost.read_s) >= 0.3 * len(turns)


@pytest.mark.parametrize("rank", [Rank.SUSPECT, Rank.DEMOTED])
def test_a_doubtful_unit_that_waited_two_seconds_goes_ahead(rank: Rank) -> None:
    busy, doubtful = Poll("busy", Turns(), due_s=0.0), Poll("doubtful", Turns(rank=Rank.SUSPECT), due_s=1.0)
    agenda = agenda_of(busy, doubtful)
    if rank is Rank.DEMOTED:
        doubtful.turns.probe_at_s = 1.0
        agenda.demote(doubtful.turns)
    early_s = 1.0 + STARVED_S - 0.25
    assert agenda.pick(early_s) is busy
    agenda.add(busy)
    assert agenda.pick(1.0 + STARVED_S) is doubtful


def test_two_doubtful_units_go_ahead_two_seconds_apart() -> None:
    busy = Poll("busy", Turns())
    first, second = (Poll(name, Turns(rank=Rank.SUSPECT), due_s=-9.0) for name in ("first", "second"))
    agenda = agenda_of(busy, first, second)
    assert agenda.pick(0.0) is first
    assert agenda.pick(STARVED_S - 0.25) is busy
    agenda.add(busy)
    assert agenda.pick(STARVED_S) is second


def test_a_unit_that_becomes_suspect_while_it_waits_waits_behind_the_others() -> None:
    first, second = Poll("first", Turns(), due_s=1.0), Poll("second", Turns(), due_s=2.0)
    agenda = agenda_of(first, second)
    first.turns.rank = Rank.SUSPECT
    agenda._doubtful_at_s = 2.0
    assert agenda.pick(2.0) is second
    assert agenda.pick(2.0) is first
    agenda.add(first)
    agenda.revive(first.turns, 2.0)
    assert agenda.pick(2.0) is first


# --- lost and found ---------------------------------------------------------------------------------


def test_a_unit_that_is_lost_is_asked_with_one_of_its_polls_after_the_other() -> None:
    turns = Turns()
    polls = [Poll(f"p{n}", turns) for n in range(3)]
    agenda = agenda_of(*polls)
    agenda.demote(turns)
    asked = []
    for n in range(6):
        turns.probe_at_s = 10.0 * (n + 1)
        assert agenda.pick(10.0 * n + 5) is None
        assert agenda.next_due_s() == 10.0 * (n + 1)
        poll = agenda.pick(10.0 * (n + 1))
        asked.append(poll)
        assert poll is not None
        agenda.add(poll)
    assert asked == [*polls, *polls]


def test_only_one_request_at_a_time_asks_whether_a_unit_is_back() -> None:
    """On several connections the next one would ask as well."""
    turns = Turns(probe_at_s=1.0)
    polls = [Poll(f"p{n}", turns) for n in range(3)]
    agenda = agenda_of(*polls)
    agenda.demote(turns)
    first = agenda.pick(1.0)
    assert first is not None
    assert agenda.pick(1.0) is None
    assert agenda.next_due_s() == NEVER, "it would be looked at again and again while the probe is under way"
    agenda.add(first)
    assert agenda.pick(1.0) is polls[1]


def test_a_lost_unit_without_polls_does_not_stand_before_the_others() -> None:
    """It was only written to: there is nothing to ask it with."""
    mute, lost = Turns(probe_at_s=1.0), Turns(probe_at_s=2.0)
    poll = Poll("p", lost)
    agenda = agenda_of(poll)
    agenda.demote(mute)
    agenda.demote(lost)
    assert agenda.next_due_s() == 2.0
    assert agenda.pick(3.0) is poll


def test_what_is_due_next_is_the_first_of_all_ranks() -> None:
    for live_s, suspect_s, probe_s in ((5.0, 1.0, 9.0), (1.0, 5.0, 9.0), (5.0, 9.0, 1.0)):
        live, suspect = (
            Poll("live", Turns(), due_s=live_s),
            Poll("s", Turns(rank=Rank.SUSPECT), due_s=suspect_s),
        )
        lost = Poll("lost", Turns(probe_at_s=probe_s))
        agenda = agenda_of(live, suspect, lost)
        agenda.demote(lost.turns)
        assert agenda.next_due_s() == 1.0


def test_of_several_lost_units_the_one_that_waits_the_longest_is_asked_first() -> None:
    polls = [Poll(f"p{at_s}", Turns(probe_at_s=at_s)) for at_s in (9.0, 1.0, 5.0)]
    agenda = agenda_of(*polls)
    for poll in polls:
        agenda.demote(poll.turns)
    assert [agenda.pick(5.0) for _ in range(3)] == [polls[1], polls[2], None]
    assert agenda.pick(9.0) is polls[0]


def test_a_suspect_poll_that_is_gone_does_not_stand_before_the_others() -> None:
    turns = Turns(rank=Rank.SUSPECT)
    gone, kept = Poll("gone", turns, due_s=1.0), Poll("kept", turns, due_s=2.0)
    agenda = agenda_of(gone, kept)
    agenda.drop([gone])
    assert agenda.pick(3.0) is kept
    assert agenda.pick(3.0) is None


def test_a_unit_that_is_back_is_polled_whole_at_once() -> None:
    turns = Turns()
    polls = [Poll(f"p{n}", turns, due_s=50.0 + n) for n in range(3)]
    agenda = agenda_of(*polls)
    agenda.demote(turns)
    probe = agenda.pick(60.0)
    agenda.revive(turns, 60.0)
    agenda.revive(turns, 60.0)
    assert [agenda.pick(60.0), agenda.pick(60.0)] == polls[1:]
    assert agenda.pick(60.0) is None
    assert probe is polls[0]
    assert turns.rank is Rank.LIVE


def test_a_suspect_that_answers_is_in_line_with_the_others_again() -> None:
    """Not behind them for two seconds more."""
    busy, well = Poll("busy", Turns(), due_s=5.0), Poll("well", Turns(rank=Rank.SUSPECT), due_s=4.0)
    agenda = agenda_of(busy, well)
    agenda._doubtful_at_s = 4.5
    agenda.revive(well.turns, 5.0)
    assert [agenda.pick(5.0), agenda.pick(5.0)] == [well, busy]
    assert well.due_s == 4.0


def test_what_is_dropped_is_never_asked_for_again() -> None:
    live, lost, under_way = Poll("live", Turns()), Poll("lost", Turns()), Poll("under way", Turns())
    agenda = agenda_of(live, lost, under_way)
    agenda.demote(lost.turns)
    assert agenda.pick(0.0) is live
    live.due_s = 0.5
    agenda.add(live)
    assert agenda.pick(0.0) is under_way
    agenda.drop([live, lost, under_way])
    agenda.reschedule(under_way, 1.0)
    agenda.revive(lost.turns, 2.0)
    assert agenda.pick(1e9) is None
    assert agenda.next_due_s() == NEVER


# --- on demand, and before its time -----------------------------------------------------------------


def test_on_demand_a_poll_has_its_turn_once_each_time_it_is_added() -> None:
    agenda: Agenda[Poll] = Agenda(is_on_demand=True)
    poll = Poll("a", Turns())
    agenda.add(poll)
    assert agenda.pick(0.0) is poll
    assert agenda.reschedule(poll, 5.0) == 0
    assert (agenda.pick(9.0), agenda.next_due_s(), agenda.missed) == (None, NEVER, 0)
    agenda.hasten(poll, 9.0)
    assert (agenda.pick(9.0), poll.due_s) == (poll, 9.0)


def test_on_demand_a_lost_unit_is_asked_again_after_its_probe_had_its_turn() -> None:
    agenda: Agenda[Poll] = Agenda(is_on_demand=True)
    turns = Turns(probe_at_s=1.0)
    first, second = (Poll(name, turns) for name in ("first", "second"))
    agenda.add(first)
    agenda.add(second)
    agenda.demote(turns)
    assert agenda.pick(1.0) is first
    agenda.reschedule(second, 1.0)
    assert agenda.pick(1.0) is None, "another poll of the unit does not end its probe"
    agenda.reschedule(first, 1.0)
    assert agenda.pick(1.0) is second


@pytest.mark.parametrize("rank", [Rank.LIVE, Rank.SUSPECT])
def test_a_poll_is_read_before_its_time_and_once(rank: Rank) -> None:
    poll, other = Poll("a", Turns(rank=rank), due_s=50.0), Poll("b", Turns(rank=rank), due_s=60.0)
    agenda = agenda_of(poll, other)
    agenda.hasten(poll, 9.0)
    assert (agenda.pick(9.0), agenda.pick(55.0), agenda.pick(60.0)) == (poll, None, other)


def test_a_poll_that_is_under_way_is_not_planned_a_second_time() -> None:
    poll, other = Poll("a", Turns()), Poll("b", Turns(), due_s=7.0)
    agenda = agenda_of(poll, other)
    assert agenda.pick(0.0) is poll
    agenda.hasten(poll, 0.0)
    assert agenda.next_due_s() == 7.0
    assert (agenda.pick(7.0), agenda.pick(7.0)) == (other, None)


def test_a_poll_of_a_lost_unit_that_is_wanted_now_is_its_next_probe() -> None:
    turns = Turns(probe_at_s=30.0)
    polls = [Poll(f"p{n}", turns) for n in range(3)]
    agenda = agenda_of(*polls)
    agenda.demote(turns)
    agenda.hasten(polls[2], 9.0)
    assert agenda.next_due_s() == 9.0
    probe = agenda.pick(9.0)
    assert probe is polls[2]
    agenda.add(probe)
    assert agenda.pick(9.0) is polls[0]


def test_at_the_end_all_polls_are_taken_out_but_those_that_are_gone() -> None:
    live, gone, suspect = Poll("live", Turns()), Poll("gone", Turns()), Poll("s", Turns(rank=Rank.SUSPECT))
    agenda = agenda_of(live, gone, suspect)
    agenda.drop([gone])
    assert agenda.clear() == [live, suspect]
    assert agenda.next_due_s() == NEVER


class Life(RuleBasedStateMachine):
    """Whatever happens to units, each of their polls is in exactly one place."""

    def __init__(self) -> None:
        super().__init__()
        self.agenda: Agenda[Poll] = Agenda()
        self.now_s = 0.0
        self.units: list[Turns] = []
        self.polls: list[Poll] = []
        self.under_way: list[Poll] = []
        self.probes: set[Poll] = set()

    @rule(count=st.integers(0, 4), period_s=st.sampled_from([0.1, 1.0, 7.0]))
    def a_unit_is_planned(self, count: int, period_s: float) -> None:
        turns = Turns(slot=0.25)
        self.units.append(turns)
        for n in range(count):
            poll = Poll(f"{len(self.units)}.{n}", turns, period_s, self.now_s)
            self.polls.append(poll)
            self.agenda.add(poll)

    @rule(seconds=st.floats(0.0, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def a_turn_begins(self) -> None:
        poll = self.agenda.pick(self.now_s)
        if poll is None:
            assert self.agenda.next_due_s() > self.now_s, "the link would spin"
            return
        assert poll not in self.under_way
        assert not poll.is_gone
        if poll.turns.rank is Rank.DEMOTED:
            assert poll.turns.probe_at_s <= self.now_s + GRAIN_S
            others = [other for other in self.probes if other.turns is poll.turns]
            assert not others, "only one request at a time asks whether a unit is back"
            self.probes.add(poll)
        else:
            assert poll.due_s <= self.now_s + GRAIN_S
        self.under_way.append(poll)

    def _take(self, data: st.DataObject) -> Poll:
        poll = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(poll)
        self.probes.discard(poll)
        return poll

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def it_is_answered(self, data: st.DataObject) -> None:
        poll = self._take(data)
        if poll.turns.rank is not Rank.LIVE:
            self._revive(poll.turns)
        self.agenda.reschedule(poll, self.now_s)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def it_fails(self, data: st.DataObject) -> None:
        poll = self._take(data)
        if poll.turns.rank is Rank.LIVE:
            poll.turns.rank = Rank.SUSPECT
            self.agenda.reschedule(poll, self.now_s)
            return
        poll.turns.probe_at_s = self.now_s + 0.5
        self.agenda.demote(poll.turns)
        self.agenda.add(poll)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def it_is_asked_again_at_once(self, data: st.DataObject) -> None:
        poll = self._take(data)
        poll.due_s = min(poll.due_s, self.now_s)
        self.agenda.add(poll)

    @precondition(lambda self: self.units)
    @rule(data=st.data())
    def a_write_fails(self, data: st.DataObject) -> None:
        turns = data.draw(st.sampled_from(self.units))
        turns.probe_at_s = self.now_s + 0.5
        self.agenda.demote(turns)

    @precondition(lambda self: self.units)
    @rule(data=st.data())
    def a_write_is_answered(self, data: st.DataObject) -> None:
        self._revive(data.draw(st.sampled_from(self.units)))

    def _revive(self, turns: Turns) -> None:
        self.agenda.revive(turns, self.now_s)
        self.probes -= {poll for poll in self.probes if poll.turns is turns}

    @precondition(lambda self: self.polls)
    @rule(data=st.data())
    def the_plan_changes(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(self.polls), unique=True, max_size=3))
        self.agenda.drop(gone)
        self.polls = [poll for poll in self.polls if poll not in gone]

    @invariant()
    def each_poll_is_in_one_place(self) -> None:
        agenda = self.agenda
        places = Counter(id(poll) for heap in (agenda._live, agenda._suspect) for _, _, poll in heap)
        places += Counter(id(poll) for turns in self.units for poll in turns.parked)
        places += Counter(map(id, self.under_way))
        for poll in self.polls:
            assert places[id(poll)] == 1, f"{poll.name} is in {places[id(poll)]} places"
        for turns in self.units:
            assert (turns in agenda._demoted) == (turns.rank is Rank.DEMOTED)
            assert turns.rank is Rank.DEMOTED or not turns.parked

    def teardown(self) -> None:
        """In the end all units are well, and every poll has its turn."""
        for poll in self.under_way:
            self.agenda.reschedule(poll, self.now_s)
        for turns in self.units:
            self.agenda.revive(turns, self.now_s)
        seen = set()
        while (poll := self.agenda.pick(self.now_s + 100.0)) is not None:
            assert poll not in seen
            seen.add(poll)
        assert seen == set(self.polls)


TestNoPollIsLostOrDoubled = Life.TestCase
TestNoPollIsLostOrDoubled.settings = settings(
    max_examples=examples(80), stateful_step_count=50, deadline=None
)


def test_a_lost_unit_is_not_asked_with_a_poll_that_is_gone() -> None:
    turns = Turns(probe_at_s=1.0)
    first, second = polls = [Poll(f"p{n}", turns) for n in range(2)]
    agenda = agenda_of(*polls)
    agenda.demote(turns)
    agenda.drop([first])
    assert agenda.pick(1.0) is second
    agenda.drop([second])
    agenda.add(second)
    assert (agenda.pick(1.0), agenda.next_due_s()) == (None, NEVER)
