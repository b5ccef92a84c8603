"""What a failed request means. No link, no time."""

from __future__ import annotations

import pytest
from test_units import state_of, words

from fieldbus.errors import (
    BadResponseError,
    ConnectionLostError,
    DeviceExceptionError,
    RequestError,
    RequestTimeoutError,
)
from fieldbus.modbus.agenda import Rank
from fieldbus.modbus.unit_health import (
    GARBLED_TO_DEMOTE,
    LATER_TRIES,
    Failure,
    Verdict,
    failure_of,
    is_its_own,
    judge,
)
from fieldbus.modbus.units import Poll, UnitState


def exception(code: int) -> DeviceExceptionError:
    return DeviceExceptionError(3, code, "")


def unit() -> tuple[UnitState, Poll, Poll]:
    """Return a unit with two blocks that were read."""
    state = state_of(words(*range(10), *range(500, 510)))
    for poll in state.polls:
        poll.is_fresh = False
    state.is_online = True
    state.heard_s = 10.0
    return state, *state.polls  # type: ignore[return-value]


def fail(state: UnitState, poll: Poll, asked_s: float, failure: Failure = Failure.SILENT) -> Verdict:
    """Count a failure as the link does, and judge it."""
    poll.has_failed(asked_s)
    if failure in (Failure.SILENT, Failure.GARBLED) and not is_its_own(state, poll, failure):
        state.turns.rank = Rank.SUSPECT
        state.failures += 1
    poll.reason = "it failed"
    return judge(state, poll, failure, asked_s + 1.0, is_hurried=False)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RequestTimeoutError(1.0), Failure.SILENT),
        (BadResponseError("x"), Failure.GARBLED),
        (ConnectionLostError("x"), Failure.GARBLED),
        *((exception(code), Failure.REFUSED) for code in (0, 1, 2, 3, 4, 7, 8, 0xFF)),
        (exception(5), Failure.BUSY),
        (exception(6), Failure.BUSY),
        (exception(0x0A), Failure.UNREACHABLE),
        (exception(0x0B), Failure.UNREACHABLE),
    ],
)
def test_each_error_is_one_of_five_failures(error: RequestError, failure: Failure) -> None:
    assert failure_of(error) is failure
    assert failure.is_answer == (failure in (Failure.REFUSED, Failure.BUSY))


def test_what_is_refused_is_explored_at_once() -> None:
    state, one, _ = unit()
    assert fail(state, one, 20.0, Failure.REFUSED) is Verdict.EXPLORE


def test_what_was_explored_in_vain_is_explored_again_only_later() -> None:
    state, one, _ = unit()
    one.explore_at_s = 30.0
    assert fail(state, one, 28.9, Failure.REFUSED) is Verdict.NEXT_TIME
    assert fail(state, one, 29.0, Failure.REFUSED) is Verdict.EXPLORE


def test_a_refusal_that_may_belong_to_an_earlier_request_teaches_nothing() -> None:
    state, one, _ = unit()
    state.suspects.add(one.ask.shape)
    assert fail(state, one, 20.0, Failure.REFUSED) is Verdict.NEXT_TIME


def test_a_busy_device_is_asked_soon_and_explored_in_the_end() -> None:
    state, one, _ = unit()
    for tries in range(LATER_TRIES):
        one.tries = tries
        assert fail(state, one, 20.0, Failure.BUSY) is Verdict.SOON
    one.tries = LATER_TRIES
    assert fail(state, one, 20.0, Failure.BUSY) is Verdict.EXPLORE


def test_a_block_that_is_silent_twice_is_explored_if_its_unit_answered_in_between() -> None:
    state, one, _ = unit()
    assert fail(state, one, 20.0) is Verdict.NEXT_TIME
    state.heard_s, state.failures = 20.5, 0
    assert fail(state, one, 21.0) is Verdict.EXPLORE
    assert state.failures == 0


def test_a_unit_that_is_silent_twice_is_asked_for_what_it_answered_and_then_lost() -> None:
    state, one, other = unit()
    assert fail(state, one, 20.0) is Verdict.NEXT_TIME
    assert fail(state, one, 21.0) is Verdict.PROVE
    assert state.proof() is other.ask
    state.is_proving = True
    assert fail(state, other, 22.0) is Verdict.LOSE


def test_a_unit_of_which_nothing_was_answered_is_lost_at_once() -> None:
    state, one, other = unit()
    assert fail(state, one, 20.0) is Verdict.NEXT_TIME
    assert fail(state, other, 21.0) is Verdict.LOSE


def test_a_unit_is_not_lost_before_it_was_asked_for_everything() -> None:
    state, one, other = unit()
    other.is_fresh = True
    assert fail(state, one, 20.0) is Verdict.NEXT_TIME
    assert fail(state, one, 21.0) is Verdict.NEXT_TIME
    assert fail(state, other, 22.0) is Verdict.LOSE


def test_what_nobody_can_read_is_explored_the_second_time_and_then_counts() -> None:
    state, one, other = unit()
    assert fail(state, one, 20.0, Failure.GARBLED) is Verdict.NEXT_TIME
    assert fail(state, one, 21.0, Failure.GARBLED) is Verdict.EXPLORE
    for count in range(GARBLED_TO_DEMOTE):
        verdict = fail(state, one, 22.0 + count, Failure.GARBLED)
        assert verdict is Verdict.NEXT_TIME, "the other block may be understood"
    assert fail(state, other, 30.0, Failure.GARBLED) is Verdict.LOSE


def test_a_point_that_is_known_to_fail_says_nothing_of_its_unit() -> None:
    state, one, _ = unit()
    state.knowledge.refuse([one.block.points[3]], "timeout")
    state.replan(15.0)
    [retry] = [poll for poll in state.polls if poll.is_retry]
    for asked_s in (20.0, 21.0, 22.0):
        assert fail(state, retry, asked_s) is Verdict.NEXT_TIME
    assert (state.failures, state.turns.rank) == (0, Rank.LIVE)


def test_a_unit_that_was_given_up_early_is_doubted_and_not_lost() -> None:
    state, one, _ = unit()
    state.turns.rank = Rank.SUSPECT
    assert judge(state, one, Failure.SILENT, 20.0, is_hurried=True) is Verdict.DOUBT
