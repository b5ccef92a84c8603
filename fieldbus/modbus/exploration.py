"""Exploration: what a client link does about blocks that a device refuses. In the background, between polls.

Rules:

* Exploration is background work: polls of all units go between its requests.
* All blocks of a unit that were refused meanwhile are explored one after the other; then the plan is made
  once.
* The points of a block keep their last values until it is known why the block was refused.

Design: what has several requests is a generator (`Steps`) that the link drives. Which reads to try, and what
follows from them, says `learned.py`, which knows nothing of connections; this module asks and waits.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.errors import ConnectionLostError, DeviceExceptionError, RequestError, RequestTimeoutError
from fieldbus.modbus import pdu
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.units import Poll, Steps, UnitState
from fieldbus.model import Reason

LATER_TRIES = 3
LATER_S = 0.1
EXPLORE_AGAIN_S = 60.0
"""After so long it is looked again why a block is refused, if that was not to be found out."""
LATER = (pdu.ACKNOWLEDGE, pdu.SERVER_DEVICE_BUSY)
ASK_DIFFERENTLY = (pdu.ILLEGAL_DATA_ADDRESS, pdu.ILLEGAL_DATA_VALUE)
_LOG = logging.getLogger("fieldbus")


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
    """Explores the blocks of one link's units that were refused."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def begin(self, poll: Poll, code: int) -> None:
        """Find out why a block was refused, after those of the unit that are explored already."""
        state = poll.state
        if state.is_explored:
            state.to_explore.append((poll, code))
        else:
            state.is_explored = True
            self._host.drive_aside(self._explore(state, poll, code))

    def was_read(self, poll: Poll) -> None:
        """Learn from a read that went well."""
        state = poll.state
        poll.is_fresh = False
        state.explorer.took(poll.block.table, poll.block.count)
        if poll.is_retry:
            # It was starting, or is another device now: nothing that it refused is believed any more.
            state.knowledge.refused.clear()
            _LOG.info("%s: takes %s now", state.unit.device, poll.block.name)
            self._plan_again(state)

    def forget_limits(self, states: Iterable[UnitState]) -> None:
        """Forget limits and walls: a device may have been exchanged or updated."""
        for state in states:
            if state.forget_limits():
                self._plan_again(state)

    def _explore(self, state: UnitState, poll: Poll, code: int) -> Steps:
        """Find out why blocks of a unit are refused, one after the other, and plan again."""
        limits = state.knowledge.limits(state.unit.limits)
        state.to_explore.append((poll, code))
        explored: list[Poll] = []
        has_news = False
        # All that is refused is looked at before the plan is made again, which takes longer than to ask; but
        # when less may be asked at once than was believed, or nothing now, what is left is asked for again.
        while state.to_explore and state.knowledge.limits(state.unit.limits) == limits:
            poll, code = state.to_explore.pop(0)
            explored.append(poll)
            before = state.knowledge.facts
            reason: str = f"{Reason.DEVICE_EXCEPTION} {code:02X}"
            is_broken_off = False
            try:
                yield from self._explore_one(state, poll)
            except RequestError as error:
                is_broken_off, reason = True, reason_of(error)  # what was found out so far is kept
            if state.knowledge.facts != before:
                has_news = True
            elif not poll.is_gone and (is_broken_off or not state.explorer.was_passing):
                poll.explore_at_s = self._host.clock.monotonic_s() + EXPLORE_AGAIN_S
                self._host.spoil(poll, reason)
            if is_broken_off:
                break
        state.is_explored = False
        now_s = self._host.clock.monotonic_s()
        others, state.to_explore = [*explored, *(other for other, _ in state.to_explore)], []
        for other in others:
            other.due_s = min(other.due_s, now_s) if other.explore_at_s <= now_s else now_s + other.period_s
            self._host.schedule(other)
        if has_news:
            self._plan_again(state)

    def _explore_one(self, state: UnitState, poll: Poll) -> Steps:
        """Try the reads from which it follows why a block is refused."""
        if not poll.is_fresh:
            state.explorer.doubt()  # it was taken before: the device is not what it was
        search = state.explorer.explore(poll.block)
        is_taken: bool | None = None
        while True:
            try:
                table, address, count = next(search) if is_taken is None else search.send(is_taken)
            except StopIteration:
                return
            ask = Ask(state.unit.unit_id, pdu.read_request(table, address, count))
            is_taken = yield from _is_taken(state, ask, self._host.clock)

    def _plan_again(self, state: UnitState) -> None:
        """Plan with what is known now, and say which points live in which groups from now on."""
        gone, added = state.replan(self._host.clock.monotonic_s())
        for poll in added:
            poll.is_first = False  # it goes on from here: another read in its slot would be one too many
        state.save()
        self._host.replanned(gone, added)
        for poll in added:
            if poll.is_retry:  # until it has said so itself, which is soon
                self._host.spoil(poll, f"{Reason.DEVICE_EXCEPTION} {pdu.ILLEGAL_DATA_ADDRESS:02X}")
        if added:
            names = ", ".join(sorted(item.point.name for item in state.refused_points))
            _LOG.warning("%s: learned from its refusals: %s", state.unit.device, state.summary(names))


def _is_taken(state: UnitState, ask: Ask, clock: Clock) -> Generator[tuple[UnitState, Ask], bytes, bool]:
    """Ask, and again a little later if the device is busy; return whether it takes the read."""
    for attempt in range(LATER_TRIES + 1):
        try:
            answer = yield state, ask
            pdu.check_read_reply(ask.pdu, answer)
        except DeviceExceptionError as error:
            if error.exception_code in ASK_DIFFERENTLY:
                return False
            if error.exception_code not in LATER or attempt == LATER_TRIES:
                raise
            state.rests_until_s = clock.monotonic_s() + LATER_S * 2**attempt
        else:
            return True
    return False


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
