"""What the failure of a request means for its block, its unit and the line. Pure; `now_s` is a parameter.

Rules:

* One block that fails is no reason to take its unit for dead. A block is at fault when the device refused it,
  when its response could not be understood twice in a row, or when it failed twice in a row and the unit
  answered something else in between.
* A block at fault is explored: which part of it cannot be read? Until it may be explored again its points
  are bad, with the reason of the last failure.
* Silence and unreadable responses count against the unit only where no block is at fault. A unit is lost
  after two silences, or four responses that nobody can read, in a row. Before it is lost by silence, it is
  asked for something that it answered the last time, if there is anything.
* Points that are known to be unreadable are asked for now and then; their failure says nothing new.
* Exceptions 05 and 06 mean later. 0A and 0B are another gateway's word that it cannot reach the unit: only
  when nothing else of the unit can be read it is the unit.
"""

from __future__ import annotations

from enum import Enum, auto

from fieldbus.errors import BadResponseError, DeviceExceptionError, RequestError, RequestTimeoutError
from fieldbus.modbus import pdu
from fieldbus.modbus.agenda import Rank
from fieldbus.modbus.units import Poll, UnitState

FAILURES_TO_DEMOTE = 2
GARBLED_TO_DEMOTE = 4
"""The same for answers that cannot be read: somebody is there."""
LATER_TRIES = 3
_LATER = (pdu.ACKNOWLEDGE, pdu.SERVER_DEVICE_BUSY)
_UNREACHABLE = (pdu.GATEWAY_PATH_UNAVAILABLE, pdu.GATEWAY_TARGET_FAILED_TO_RESPOND)


class Failure(Enum):
    """How a request can fail."""

    SILENT = auto()
    GARBLED = auto()
    """A response came that is none, or the connection ended instead."""
    REFUSED = auto()
    BUSY = auto()
    """Exception 05 or 06: later."""
    UNREACHABLE = auto()
    """Exception 0A or 0B."""

    @property
    def is_answer(self) -> bool:
        """Whether the unit itself said so."""
        return self in (Failure.REFUSED, Failure.BUSY)


class Verdict(Enum):
    """What is done about a failed request."""

    SOON = auto()
    """The block is asked again in a moment and keeps its values until then."""
    EXPLORE = auto()
    """It is found out which part of the block cannot be read."""
    NEXT_TIME = auto()
    """The points of the block are bad; it is asked again when it is due."""
    DOUBT = auto()
    """The unit was given up early: it is asked again when nobody else waits, which decides."""
    PROVE = auto()
    """The unit is asked for a sign of life before it is lost."""
    LOSE = auto()
    """The unit is lost."""


def failure_of(error: RequestError) -> Failure:
    """Return how a request failed."""
    if isinstance(error, RequestTimeoutError):
        return Failure.SILENT
    if isinstance(error, BadResponseError) or not isinstance(error, DeviceExceptionError):
        return Failure.GARBLED
    if error.exception_code in _LATER:
        return Failure.BUSY
    return Failure.UNREACHABLE if error.exception_code in _UNREACHABLE else Failure.REFUSED


def is_at_fault(state: UnitState, poll: Poll, failure: Failure) -> bool:
    """Return whether a failure, which the poll has counted, is the block's own and not the unit's."""
    if failure is Failure.REFUSED:
        return True
    if failure is Failure.BUSY:
        return poll.tries >= LATER_TRIES
    if failure is Failure.GARBLED and poll.failures == 2:
        return True  # somebody is there; whether it is understood otherwise is found out once
    # While one block of the unit is explored, others may fail for the same cause: they are not asked twice.
    is_repeated = poll.failures >= 2 or state.is_explored
    return is_repeated and state.heard_s > poll.failed_before_s


def is_its_own(state: UnitState, poll: Poll, failure: Failure) -> bool:
    """Return whether a failure says nothing about the unit."""
    return (poll.is_retry and state.has_readable) or is_at_fault(state, poll, failure)


def judge(
    state: UnitState, poll: Poll | None, failure: Failure, now_s: float, *, is_hurried: bool
) -> Verdict:
    """Return what a failed request means; `state` and `poll` have counted it.

    Args:
        poll: what was read; None if it was something else.
        is_hurried: whether it was given up before its timeout.
    """
    if poll is not None:
        if poll.is_retry and state.has_readable:
            return Verdict.NEXT_TIME
        if failure is Failure.BUSY and poll.tries < LATER_TRIES:
            return Verdict.SOON
        if is_at_fault(state, poll, failure):
            # A refusal may be the answer to an earlier request.
            is_clear = not failure.is_answer or not state.suspects
            is_divisible = not poll.is_retry and not poll.block.table.is_whole
            can_explore = is_divisible and now_s >= poll.explore_at_s and is_clear
            return Verdict.EXPLORE if can_explore else Verdict.NEXT_TIME
    if failure.is_answer:
        return Verdict.NEXT_TIME
    is_silence = failure is Failure.SILENT
    if is_silence and is_hurried and state.turns.rank is Rank.SUSPECT:
        return Verdict.DOUBT
    if state.failures < (FAILURES_TO_DEMOTE if is_silence or state.unreachable else GARBLED_TO_DEMOTE):
        return Verdict.NEXT_TIME
    if failure is Failure.GARBLED and any(not poll.failures for poll in state.polls if not poll.is_retry):
        return Verdict.NEXT_TIME  # something else of it may be understood
    untried = (poll for poll in state.polls if poll.is_fresh and not (poll.failures or poll.is_retry))
    if state.is_online and any(untried):
        return Verdict.NEXT_TIME  # it has answered, and was not asked for everything yet
    is_first = state.turns.rank is not Rank.DEMOTED and not state.is_proving
    return Verdict.PROVE if is_silence and is_first and state.proof() is not None else Verdict.LOSE
