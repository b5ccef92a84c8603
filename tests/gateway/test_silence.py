"""Silence, fallbacks and their end, in time that is a parameter."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.gateway.commands.silence import NEVER_HEARD, Silence, is_overdue


def test_a_fallback_is_entered_once_and_its_value_is_due_until_it_was_written():
    silence = Silence(2.0, 10.0)
    assert not silence.look(12.0)
    assert not silence.is_due
    assert silence.look(12.1)
    assert not silence.look(12.2)
    assert silence.is_due
    silence.wrote()
    assert not silence.is_due
    silence.lost()
    assert silence.is_due


def test_only_what_arrives_after_it_was_entered_ends_a_fallback():
    silence = Silence(2.0, 0.0)
    assert silence.look(3.0)
    silence.wrote()
    for at_s in (NEVER_HEARD, 0.5, 2.9, 3.0):
        assert not silence.hear(at_s)
        assert silence.entered_s == 3.0
    assert silence.hear(3.1)
    assert silence.entered_s is None
    assert not silence.is_due
    assert not silence.hear(3.1)


def test_a_fallback_that_was_left_is_entered_again_only_after_the_whole_time():
    silence = Silence(2.0, 0.0)
    silence.look(3.0)
    silence.hear(3.1)
    assert [silence.look(now_s) for now_s in (4.0, 5.1, 5.2)] == [False, False, True]
    assert silence.is_due


def test_beginning_to_listen_ends_no_fallback():
    silence = Silence(2.0, 0.0)
    silence.listen(5.0)
    assert not silence.look(6.0)
    assert silence.look(8.0)
    silence.listen(9.0)
    assert silence.entered_s == 8.0
    assert silence.since_s == 5.0


def test_a_safe_value_that_is_written_too_late_is_not_kept_as_written():
    silence = Silence(2.0, 0.0)
    silence.look(3.0)
    silence.hear(3.5)
    silence.wrote()  # the write was under way when the source came back
    assert not silence.is_safe
    silence.look(6.0)
    assert silence.is_due


def test_who_is_overdue_is_a_matter_of_time_alone():
    assert [is_overdue(2.0, 10.0, now_s) for now_s in (10.0, 12.0, 12.1, 100.0)] == [False, False, True, True]


events = st.lists(
    st.tuples(
        st.floats(0.0, 3.0),
        st.sampled_from(["live", "held", "late", "look", "wrote", "lost", "listen"]),
    ),
    max_size=60,
)


@given(events, st.floats(0.1, 4.0))
def test_a_fallback_is_entered_after_silence_and_left_by_a_live_sample_alone(events, after_s):
    silence, now_s = Silence(after_s, 0.0), 0.0
    heard_s, entered_s, is_safe = 0.0, None, False
    for step_s, event in events:
        now_s += step_s
        if event == "live":
            silence.hear(now_s)
            if entered_s is not None and now_s > entered_s:
                entered_s, is_safe = None, False
            heard_s = max(heard_s, now_s)
        elif event == "held":
            silence.hear(-math.inf)
        elif event == "late":  # it arrived a while ago and is looked at only now
            silence.hear(now_s - 2.0)
            if entered_s is not None and now_s - 2.0 > entered_s:
                entered_s, is_safe = None, False
            heard_s = max(heard_s, now_s - 2.0)
        elif event == "look":
            silence.look(now_s)
            if entered_s is None and now_s - heard_s > after_s:
                entered_s, is_safe = now_s, False
        elif event == "wrote":
            silence.wrote()
            is_safe = entered_s is not None
        elif event == "lost":
            silence.lost()
            is_safe = False
        else:
            silence.listen(now_s)
            heard_s = heard_s if entered_s is not None else now_s
        assert silence.entered_s == entered_s
        assert silence.is_due == (entered_s is not None and not is_safe)
        assert silence.since_s == pytest.approx(heard_s)
