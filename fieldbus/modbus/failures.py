"""What failed requests do to the plan: blocks are asked again or explored, units are lost and found again.

Rules: `unit_health.py` decides; here it is done.

* For a while after a silence on a line of several units, a timeout is at most eight times what the unit, or
  the slowest other, usually takes. A unit that is given up early has no values until it is asked when nobody
  else waits, which decides.
* A lost unit is asked whether it is back, after 0.5 s, then at most every 10 s; from the second time on for a
  single point, since it may be a part of a block that is silent.
* A block of which no part can be read is asked again after a growing time.
"""

from __future__ import annotations

import random
from collections.abc import MutableMapping, Sequence
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.errors import BadResponseError, ConnectionLostError, RequestError, RequestTimeoutError
from fieldbus.link import DeviceHealth
from fieldbus.modbus.agenda import NEVER, Agenda, Rank
from fieldbus.modbus.client import Line
from fieldbus.modbus.exploration import LATER_S, Exploration, reason_of
from fieldbus.modbus.lane import Lane
from fieldbus.modbus.unit_health import (
    FAILURES_TO_DEMOTE,
    Failure,
    Verdict,
    failure_of,
    is_its_own,
    judge,
)
from fieldbus.modbus.units import RETRY_S, Poll, UnitState
from fieldbus.model import Reason

FIRST_PROBE_S = 0.5
LONGEST_PROBE_S = 10.0
LONGEST_GARBLED_PROBE_S = 2.0
"""The same after a response that nobody could read: somebody is there."""
TROUBLE_S = 5.0
"""For so long after a silence on a line nobody is waited for in full while others wait."""
_SHORTEST_PATIENCE_S = 0.05
_COUNTER_OF = {Failure.SILENT: "timeouts", Failure.GARBLED: "bad_responses"}
"""Exceptions are all others."""
_KEEPS_VALUES = {f"{Reason.DEVICE_EXCEPTION} {code:02X}" for code in (2, 3)}
"""What is refused like this keeps its values until it is known why, which is soon."""


class Host(Protocol):
    """What failures need of the link."""

    clock: Clock

    @property
    def agenda(self) -> Agenda[Poll]:
        """When the polls are due."""
        ...

    @property
    def states(self) -> Sequence[UnitState]:
        """The units while the link runs."""
        ...

    @property
    def is_on_demand(self) -> bool:
        """Whether nothing is polled."""
        ...

    def spoil(self, poll: Poll, reason: str) -> None:
        """Say that the points of a block have no value, and why."""

    def tell(self, event: DeviceHealth) -> None:
        """Report that a unit is lost, or found again."""


class Failures:
    """What becomes of one link's units and blocks whose requests fail."""

    def __init__(self, host: Host, exploration: Exploration, counters: MutableMapping[str, int]) -> None:
        self._host = host
        self._exploration = exploration
        self._counters = counters
        self._silent_at_s = -NEVER
        """When a request on the link was last not answered."""

    def forget_session(self) -> None:
        """Believe that everybody answers."""
        self._silent_at_s = -NEVER

    def timeout_s(self, lane: Lane, state: UnitState, line: Line, now_s: float) -> float:
        """Return the timeout of the request of a lane, and note whether it is a short one."""
        timeout_s = state.unit.timeout_s
        lane.is_hurried = False
        if lane.steps is not None and lane.steps is state.exploring:
            return min(timeout_s, state.trial_patience_s or timeout_s)
        poll = lane.poll
        if poll is None and lane.ask is not None and lane.ask.is_write:
            return state.unit.write_timeout_s or timeout_s
        if poll is None or self._host.is_on_demand:
            return timeout_s  # a write is given its time
        if poll.period_s < RETRY_S if poll.is_retry else poll.is_fresh and state.is_explored:
            return state.patience_s  # it is known to fail, or may fail for what is found out just now
        is_doubted = now_s < self._silent_at_s + TROUBLE_S or not state.slowest_s
        if state.turns.rank is Rank.DEMOTED or (is_doubted and len(self._host.states) > 1):
            patience_s = self._patience(state, line)
            lane.is_hurried = patience_s < timeout_s
            return min(timeout_s, patience_s)
        return timeout_s

    def _patience(self, state: UnitState, line: Line) -> float:
        """Return how long to wait for a unit of several on a line on which somebody was silent."""
        timeout_s = state.unit.timeout_s
        rank = state.turns.rank
        is_decisive = (
            rank is Rank.SUSPECT
            or (rank is Rank.DEMOTED and (state.probes % 3 == 2 or not line.framer.has_transactions))
            or (rank is Rank.LIVE and state.was_hurried)
        )
        if is_decisive or len(self._host.states) == 1:
            return timeout_s
        slowest_s = state.slowest_s or max((other.slowest_s for other in self._host.states), default=0.0)
        if slowest_s:
            return max(_SHORTEST_PATIENCE_S, 8 * slowest_s)
        # Nobody has answered yet, and somebody was silent already: others may be luckier.
        was_silent = self._silent_at_s > -NEVER
        return max(2 * _SHORTEST_PATIENCE_S, timeout_s / 5) if was_silent else timeout_s

    def answered(self, state: UnitState) -> None:
        """Learn that a unit lives."""
        state.heard_s = self._host.clock.monotonic_s()
        state.is_proving = False
        if state.turns.rank is not Rank.LIVE:
            state.probe_after_s = FIRST_PROBE_S
            state.probes = 0
            self._host.agenda.revive(state.turns, self._host.clock.monotonic_s())
        state.failures = 0
        state.was_hurried = False
        state.unreachable.clear()
        if not state.is_online:
            state.is_online = True
            self._host.tell(DeviceHealth(state.unit.device, True))

    def failed(
        self, lane: Lane, state: UnitState, poll: Poll | None, error: RequestError, now_s: float,
        *, is_trial: bool = False,
    ) -> None:  # fmt: skip
        """Decide what a failed request means for its block, its unit and the connection."""
        failure = failure_of(error)
        self._counters[_COUNTER_OF.get(failure, "exceptions")] += 1
        if failure.is_answer:
            self.answered(state)  # it lives: it said no
        if is_trial:
            return  # what it means, the exploration finds out
        if poll is not None:
            poll.has_failed(lane.asked_s)
        if failure is Failure.UNREACHABLE and poll is not None:
            if poll in state.unreachable and state.is_unreachable:
                state.failures = FAILURES_TO_DEMOTE
            state.unreachable.add(poll)
        if failure in _COUNTER_OF and not (poll is not None and is_its_own(state, poll, failure)):
            if failure is Failure.SILENT:
                self._silent_at_s = now_s
            if state.turns.rank is Rank.LIVE:
                state.turns.rank = Rank.SUSPECT
            is_early = failure is Failure.SILENT and lane.is_hurried
            if is_early and state.turns.rank is Rank.DEMOTED and poll not in (None, state.turns.probe):
                self._host.agenda.add(poll)  # doubted meanwhile on another connection: the probe decides
                return
            if not (is_early and state.turns.rank is Rank.SUSPECT):
                state.failures += 1
        verdict = judge(state, poll, failure, now_s, is_hurried=lane.is_hurried)
        self._carry_out(verdict, state, poll, error, now_s)

    def _carry_out(
        self, verdict: Verdict, state: UnitState, poll: Poll | None, error: RequestError, now_s: float
    ) -> None:
        """Do what a failed request calls for."""
        reason = reason_of(error)
        if isinstance(error, ConnectionLostError):
            reason = Reason.BAD_RESPONSE  # it is the request's doing: the connection is opened again
        if verdict is Verdict.DOUBT:
            self._doubt(state, poll, now_s)
            return
        if verdict is Verdict.PROVE:
            self._exploration.prove(state)
        elif verdict is Verdict.LOSE:
            if poll is not None:
                self._host.spoil(poll, reason)
            self._lose_unit(state, poll, reason, error, now_s)
            return
        if poll is None:
            return
        if verdict is Verdict.SOON:
            poll.tries += 1
            poll.due_s = now_s + min(LATER_S * 2**poll.tries, poll.period_s)
            self._host.agenda.add(poll)
            return
        if verdict is Verdict.EXPLORE:
            if reason not in _KEEPS_VALUES:
                self._host.spoil(poll, reason)
            poll.tries = 0
            self._exploration.begin(poll, reason)
            return
        self._host.spoil(poll, reason)
        self._ask_again(poll, error, now_s)

    def _ask_again(self, poll: Poll, error: RequestError, now_s: float) -> None:
        """Plan the next read of a block that could not be read."""
        if poll.explorations and not poll.is_retry:
            # No part of it can be read now, and each try may cost the others on the line a timeout.
            is_silence = isinstance(error, RequestTimeoutError)
            most_s = LONGEST_PROBE_S if is_silence else min(8 * poll.period_s, LONGEST_PROBE_S)
            wait_s = min(poll.period_s * 2 ** min(poll.failures, 10), most_s)
            poll.due_s = now_s + max(poll.period_s, wait_s)
            self._host.agenda.add(poll)
            return
        if isinstance(error, BadResponseError) and poll.tries < 1:
            poll.tries += 1  # what was garbled once is asked again at once
            poll.due_s = now_s
            self._host.agenda.add(poll)
            return
        poll.tries = 0
        if poll.is_retry:
            poll.period_s = min(2 * poll.period_s, RETRY_S)
        self._counters["scans_missed"] += self._host.agenda.reschedule(poll, now_s)

    def _doubt(self, state: UnitState, poll: Poll | None, now_s: float) -> None:
        """Put off a unit that was given up early: it is asked when nobody else waits, which decides."""
        state.was_hurried = True
        if not state.polls:
            return
        for other in state.polls:  # it will not be read for a while: no value of it may look as if it were
            self._host.spoil(other, Reason.TIMEOUT)
        state.failures = max(state.failures, FAILURES_TO_DEMOTE - 1)
        state.probes = 2
        state.turns.probe_at_s = now_s
        self._host.agenda.demote(state.turns)
        if poll is not None:
            self._host.agenda.add(poll)

    def _lose_unit(
        self, state: UnitState, poll: Poll | None, reason: str, error: RequestError, now_s: float
    ) -> None:
        """Say that a unit is lost, and only ask from now on whether it is back."""
        if state.is_online is not False:
            state.is_online = False
            self._host.tell(DeviceHealth(state.unit.device, False, f"{reason} ({error})"))
        if not state.polls or self._host.is_on_demand:
            return  # nothing asks by itself whether it is back: the next read or write will tell
        for other in state.polls:
            self._host.spoil(other, reason)
        state.probes += 1
        state.turns.probe_at_s = now_s + state.probe_after_s * random.uniform(0.9, 1.0)
        longest_s = LONGEST_GARBLED_PROBE_S if isinstance(error, BadResponseError) else LONGEST_PROBE_S
        state.probe_after_s = min(state.probe_after_s * 2, longest_s)
        self._host.agenda.demote(state.turns)
        if poll is not None:
            self._host.agenda.add(poll)
