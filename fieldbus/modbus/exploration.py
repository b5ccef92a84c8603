"""Exploration: what a client link does about blocks that fail. In the background, between polls.

Rules:

* A block is explored whatever its failure looks like. `unit_health.py` says when it is the block's own.
* Exploration is background work: polls of all units go between its requests, and a request that decides
  nothing is not waited for longer than the unit usually needs.
* A silence is believed to be the address's own only after a sign of life of the unit that came later.
* All blocks of a unit that have failed are explored one after the other; then the plan is made once.
* Whatever was taken stays known, and what failed alone is bad with its own reason and is asked again later.
  Where nothing at all was taken, and the failure may pass, nothing is learned.
* The points of a block that the device refuses keep their last values until it is known why.

Design: what has several requests is a generator (`Steps`) that the link drives. Which reads to try, and what
follows from them, says `learned.py`, which knows nothing of connections; this module asks and waits.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.errors import (
    ConnectionLostError,
    DeviceExceptionError,
    FieldbusError,
    RequestError,
    RequestTimeoutError,
)
from fieldbus.modbus import pdu
from fieldbus.modbus.agenda import Rank
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.learned import TAKEN, Outcome, Trial
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.unit_health import LATER_TRIES, Failure, failure_of
from fieldbus.modbus.units import Poll, Steps, UnitState, is_odd_reason
from fieldbus.model import Reason

LATER_S = 0.1
EXPLORE_AGAIN_S = 2.0
"""After so long a block that still fails for an unknown reason is explored again; then after twice that."""
LONGEST_EXPLORE_AGAIN_S = 300.0
_GARBLED_TRIES = 2
_LOG = logging.getLogger("fieldbus")


class _NoSignOfLifeError(FieldbusError):
    """The unit answers nothing any more: nothing follows from its silence."""


class Host(Protocol):
    """What the exploration needs of the link."""

    clock: Clock

    def drive_aside(self, steps: Steps) -> None:
        """Begin something whose steps let polls go between them."""

    def schedule(self, poll: Poll) -> None:
        """Take a poll that is due at its `due_s`."""

    def spoil(self, poll: Poll, reason: str) -> None:
        """Say that the points of a block have no value, and why."""

    def replanned(self, gone: Sequence[Poll], added: Sequence[Poll]) -> None:
        """Take polls out of the plan and others in, and tell which points live in which groups."""


class Exploration:
    """Explores the blocks of one link's units that have failed."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def begin(self, poll: Poll, reason: str) -> None:
        """Find out why a block failed, after those of the unit that are explored already."""
        state = poll.state
        state.to_explore.append((poll, reason))
        if not state.is_explored:
            state.is_explored = True
            state.exploring = self._until_cut_off(state)
            self._host.drive_aside(state.exploring)

    def prove(self, state: UnitState) -> None:
        """Ask a unit for a sign of life."""
        ask = state.proof()
        if ask is not None:
            state.is_proving = True
            self._host.drive_aside(_ask_once(state, ask))

    def knock(self, state: UnitState, ask: Ask) -> Steps:
        """Ask a lost unit for a single point; if it answers, that is a sign of life."""
        try:
            yield state, ask
        except RequestError:
            return
        state.proof_ask = ask

    def was_read(self, poll: Poll) -> None:
        """Learn from a read that went well."""
        state = poll.state
        poll.is_fresh = False
        state.explorer.took(poll.block.table, poll.block.count * poll.block.width // 16)
        if poll.is_retry:
            _forgive(state, poll)
            _LOG.info("%s: %s is readable again", state.unit.device, poll.block.name)
            self._plan_again(state)

    def forget_limits(self, states: Iterable[UnitState]) -> None:
        """Forget limits and walls: a device may have been exchanged or updated."""
        for state in states:
            if state.forget_limits():
                self._plan_again(state)

    def _until_cut_off(self, state: UnitState) -> Steps:
        """Explore; when that is cut off, as no connection can be opened, the next failure begins again."""
        try:
            yield from self._explore(state)
        except GeneratorExit:
            state.is_explored = False
            state.exploring = None
            state.to_explore.clear()
            raise

    def _explore(self, state: UnitState) -> Steps:
        """Find out why blocks of a unit fail, one after the other, and plan again."""
        limits = state.knowledge.limits(state.unit.limits)
        explored: list[Poll] = []
        has_news = is_lost = False
        # All that failed is looked at before the plan is made again, which takes longer than to ask; but when
        # less may be asked at once than was believed, or nothing now, what is left is asked for again.
        while state.to_explore and not is_lost and state.knowledge.limits(state.unit.limits) == limits:
            poll, reason = state.to_explore.pop(0)
            if poll in explored or poll.is_gone:
                continue
            explored.append(poll)
            before = state.knowledge.copy()
            try:
                yield from self._explore_one(state, poll)
            except _NoSignOfLifeError:
                is_lost = True
            explorer = state.explorer
            if not explorer.has_taken and (is_lost or explorer.is_odd):
                state.knowledge.restore(before)
            if state.knowledge.facts != before.facts:
                has_news = True
                continue
            if explorer.was_passing:
                poll.failures = 0
            else:
                self._host.spoil(poll, reason)
            self._explore_later(poll)
        state.is_explored = False
        state.exploring = None
        self._resume(state, explored)
        if has_news:
            self._plan_again(state)

    def _explore_later(self, poll: Poll) -> None:
        """Look again later why a block fails, if it fails then; each time in vain it takes longer."""
        wait_s = min(EXPLORE_AGAIN_S * 2**poll.explorations, LONGEST_EXPLORE_AGAIN_S)
        if poll.explorations or not poll.state.explorer.was_passing:
            poll.explore_at_s = self._host.clock.monotonic_s() + wait_s
        poll.explorations += 1

    def _resume(self, state: UnitState, explored: Sequence[Poll]) -> None:
        """Poll again what was explored, or waited for it."""
        now_s = self._host.clock.monotonic_s()
        others, state.to_explore = [*explored, *(poll for poll, _ in state.to_explore)], []
        for poll in dict.fromkeys(others):
            poll.due_s = min(poll.due_s, now_s) if poll.explore_at_s <= now_s else now_s + poll.period_s
            self._host.schedule(poll)

    def _explore_one(self, state: UnitState, poll: Poll) -> Steps:
        """Try the reads from which it follows why a block fails."""
        if not poll.is_fresh:
            state.explorer.doubt()  # it was taken before: the device is not what it was
        search = state.explorer.explore(poll.block)
        outcome: Outcome | None = None
        while True:
            try:
                trial = next(search) if outcome is None else search.send(outcome)
            except StopIteration:
                return
            outcome = yield from self._try(state, trial, poll.block.width)

    def _try(
        self, state: UnitState, trial: Trial, width: int
    ) -> Generator[tuple[UnitState, Ask], bytes, Outcome]:
        """Ask, and again where one failure says little; return what became of it."""
        clock = self._host.clock
        ask = Ask(state.unit.unit_id, pdu.read_request(trial.table, trial.address, trial.size), width)
        busy_tries = 1 if state.explorer.is_odd else LATER_TRIES
        failed = dict.fromkeys(Failure, 0)
        while True:
            yield from _in_step(state, ask, clock)
            is_patient = trial.is_decisive and failed[Failure.SILENT] > 0
            state.trial_patience_s = None if is_patient else state.patience_s
            asked_s = clock.monotonic_s()
            try:
                answer = yield state, ask
                pdu.check_read_reply(ask.pdu, answer, width)
            except RequestError as error:
                failure, reason = failure_of(error), reason_of(error)
                if isinstance(error, ConnectionLostError):
                    reason = Reason.BAD_RESPONSE  # what follows from it: the connection is there again
            else:
                state.proof_ask = ask
                return TAKEN
            failed[failure] += 1
            if failure is Failure.BUSY and failed[failure] <= busy_tries:
                state.explore_next_s = clock.monotonic_s() + LATER_S * 2 ** (failed[failure] - 1)
                continue
            if failure is Failure.GARBLED and failed[failure] < _GARBLED_TRIES:
                continue
            if failure in (Failure.SILENT, Failure.UNREACHABLE):
                yield from self._check_life(state, asked_s)
                is_short = (
                    state.trial_patience_s is not None and state.trial_patience_s < state.unit.timeout_s
                )
                if failure is Failure.SILENT and trial.is_decisive and is_short:
                    continue
            is_costly = failure in (Failure.SILENT, Failure.BUSY, Failure.UNREACHABLE)
            return Outcome(False, reason, is_odd=is_odd_reason(reason), is_costly=is_costly)

    def _check_life(self, state: UnitState, since_s: float) -> Steps:
        """Ask for something that the unit answered before, unless it has answered something since."""
        for is_patient in (False, True):
            if state.heard_s > since_s:
                return
            ask = state.proof()
            if ask is None:
                return  # it was heard before the exploration: what it answered then is what fails now
            yield from _in_step(state, ask, self._host.clock)
            if state.heard_s > since_s:
                return
            patience_s = state.trial_patience_s
            state.trial_patience_s = None if is_patient else state.patience_s
            try:
                yield state, ask
            except RequestError:
                continue
            finally:
                state.trial_patience_s = patience_s
            return
        if state.heard_s <= since_s:
            raise _NoSignOfLifeError

    def _plan_again(self, state: UnitState) -> None:
        """Plan with what is known now, and say which points live in which groups from now on."""
        gone, added = state.replan(self._host.clock.monotonic_s())
        for poll in added:
            poll.is_first = False  # it goes on from here: another read in its slot would be one too many
        state.save()
        self._host.replanned(gone, added)
        for poll in added:
            if poll.is_retry:  # until it has said so itself
                self._host.spoil(poll, state.knowledge.reason(_culprit(state, poll)))
        if added:
            names = ", ".join(sorted(item.point.name for item in state.refused_points))
            _LOG.warning("%s: device limits changed: %s", state.unit.device, state.summary(names))


def _culprit(state: UnitState, poll: Poll) -> RegisterPoint:
    """Return the point of a poll, or the factor, that is known to be refused."""
    for point in poll.block.points:
        for item in (point, point.factor):
            if item is not None and state.knowledge.is_refused(item):
                return item
    return poll.block.points[0]


def _forgive(state: UnitState, poll: Poll) -> None:
    """Believe no longer that the points of a poll cannot be read."""
    knowledge = state.knowledge
    points = [item for point in poll.block.points for item in (point, point.factor) if item is not None]
    for point in points:
        if not knowledge.is_refused(point):
            continue
        if not is_odd_reason(knowledge.reason(point)):
            # The device was starting, or is another one now: no refusal of the same kind is believed.
            knowledge.forgive_like(point)
            continue
        knowledge.forgive(point)
        place = (point.table, point.address, point.end)
        state.relapses[place] = state.relapses.get(place, 0) + 1
        if (
            state.relapses[place] > 1
        ):  # it comes and goes: from now on it is read alone, and costs only itself
            walls = knowledge.walls.setdefault(point.table, set())
            walls |= {(point.address, point.address), (point.end, point.end)}


def _ask_once(state: UnitState, ask: Ask) -> Steps:
    try:
        yield state, ask
    except RequestError:
        return


def _in_step(state: UnitState, ask: Ask, clock: Clock) -> Steps:
    """Make sure that the response to a request cannot be a late one to another.

    Raises:
        _NoSignOfLifeError: the unit is lost, or nothing else can be asked of it.
    """
    if state.turns.rank is Rank.DEMOTED:
        raise _NoSignOfLifeError
    if state.is_out_of_step(ask, clock.monotonic_s()):
        state.trial_patience_s = None
        yield from resynchronise(state, clock)
        if ask.shape in state.suspects:
            raise _NoSignOfLifeError


def resynchronise(state: UnitState, clock: Clock) -> Steps:
    """Ask a unit something whose answer cannot be mistaken for one that is late."""
    ask = state.different_ask()
    if ask is None:
        return
    try:
        yield state, ask
    except DeviceExceptionError:
        # An answer, but perhaps to the request before: what was asked now may still be answered.
        state.was_refused(ask, clock.monotonic_s())
    except RequestError:
        return
    else:
        state.proof_ask = ask
        state.in_step()


def reason_of(error: RequestError) -> str:
    """Return the reason that the points of a failed request get."""
    if isinstance(error, RequestTimeoutError):
        return Reason.TIMEOUT
    if isinstance(error, DeviceExceptionError):
        return f"{Reason.DEVICE_EXCEPTION} {error.exception_code:02X}"
    if isinstance(error, ConnectionLostError):
        return Reason.NOT_CONNECTED
    return Reason.BAD_RESPONSE
