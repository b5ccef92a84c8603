"""Dead units on a line with live ones, and devices that say no: who pays for it, how much, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from fieldbus.modbus.agenda import Agenda, Rank, Turns

# --- whose turn it is -------------------------------------------------------------------------------


@dataclass(eq=False)
class Poll:
    """A poll, as the agenda sees it."""

    name: str
    turns: Turns
    due_s: float
    period_s: float = 1.0
    is_first: bool = False
    is_gone: bool = False
    is_retry: bool = False


def test_no_poll_is_ever_lost_when_a_unit_is_believed_again_on_a_line_that_is_never_idle() -> None:
    turns = Turns(slot=0.0)
    one, other = Poll("one", turns, 0.0), Poll("other", turns, 0.5)
    agenda: Agenda[Poll] = Agenda()
    agenda.add(one)
    agenda.add(other)
    assert agenda.pick(0.0) is one
    turns.rank = Rank.SUSPECT  # it failed
    agenda.reschedule(one, 0.1)
    assert agenda.pick(0.5) is other
    agenda.revive(turns, 0.6)  # that was answered
    agenda.reschedule(other, 0.6)
    picked = []
    for step in range(20):
        now_s = 2.6 + step * 0.5
        poll = agenda.pick(now_s)
        if poll is not None:
            picked.append(poll.name)
            agenda.reschedule(poll, now_s + 0.05)
    assert picked.count("one") >= 8
    assert picked.count("other") >= 8
