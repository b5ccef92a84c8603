"""What the times and numbers of others count for, in time that is a parameter."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.model import Group, HeldSample, Kind, Point, Quality, Sample
from fieldbus.mqtt.arrivals import SETTLE_S, Arrivals, ClockOffset, Order, dated, held, picture

POINT = Point("remote", "x", Kind.INT)
GROUP = Group("x", (POINT,))
NOW_NS = 1_700_000_000_000_000_000
TOLERANCE_NS = 10 * 10**9


def good(value, time_ns=NOW_NS, kind=Sample):
    return kind(value, Quality.GOOD, None, time_ns)


@given(st.integers(0, 1 << 63), st.sampled_from([Sample, HeldSample]))
def test_a_time_is_never_in_the_future_and_never_touched_in_the_past(time_ns, kind):
    sample = dated(good(1, time_ns, kind), NOW_NS, TOLERANCE_NS)
    assert type(sample) is kind
    if time_ns > NOW_NS + TOLERANCE_NS:
        assert sample == Sample(1, Quality.UNCERTAIN, "clock", NOW_NS)
    else:
        assert sample == good(1, time_ns)


@given(st.integers(0, 2 * NOW_NS))
def test_a_live_sample_is_as_old_as_its_arrival_and_a_held_one_never_younger(time_ns):
    live = picture(GROUP, good(1, time_ns), (0,), NOW_NS, 50.0)
    assert (live.at_s, live.heard_s, live.time_ns) == (50.0, 50.0, time_ns)
    kept = picture(GROUP, held(good(1, time_ns)), (0,), NOW_NS, 50.0)
    assert kept.at_s == pytest.approx(50.0 - max(0, NOW_NS - time_ns) / 1e9)
    assert (kept.heard_s, kept.sample(0).is_held) == (-math.inf, True)


messages = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), max_size=40)


@given(messages)
def test_numbers_of_a_boot_only_grow_and_a_boot_that_was_left_is_not_gone_back_to(heard):
    order, taken = Order(), []
    for boot, number in heard:
        if order.is_news(boot, number):
            taken.append((boot, number))
    boots = [boot for index, (boot, _) in enumerate(taken) if index == 0 or taken[index - 1][0] != boot]
    assert len(boots) == len(set(boots))
    for boot in boots:
        numbers = [number for own, number in taken if own == boot]
        assert numbers == sorted(set(numbers))
    if heard:
        assert taken[0] == heard[0]


def test_a_boot_that_was_left_counts_again_once_the_sender_was_gone():
    order = Order()
    assert order.is_news("a", 5)
    assert order.is_news("b", 1)
    assert not order.is_news("a", 6)
    order.gone()
    assert not order.is_news("b", 1)
    assert order.is_news("a", 6)
    assert not order.is_news("b", 2)


def test_the_least_delayed_message_of_two_periods_says_the_offset():
    offset = ClockOffset()
    assert offset.seconds is None
    for now_s, ahead_s in ((0, -5.2), (10, -5.0), (20, -5.4), (31, -5.3)):
        offset.heard(NOW_NS + round(ahead_s * 1e9), NOW_NS, float(now_s))
        assert offset.seconds == pytest.approx(max(-5.2 if now_s == 0 else -5.0, ahead_s))
    offset.heard(NOW_NS - 6 * 10**9, NOW_NS, 62.0)
    assert offset.seconds == pytest.approx(-5.3)
    offset.heard(NOW_NS - 6 * 10**9, NOW_NS, 93.0)
    assert offset.seconds == pytest.approx(-6.0)


# --- plain topics


def take(arrivals, sample, now_s, *, is_retained=False):
    batch = arrivals.take(GROUP, sample, NOW_NS, now_s, is_retained=is_retained)
    return None if batch is None else (batch.values[0], batch.heard_s > -math.inf, list(batch.changed))


def due(arrivals, now_s):
    return [(batch.values[0], batch.heard_s > -math.inf) for batch in arrivals.expire(NOW_NS, now_s)]


def test_messages_count_as_they_arrive_whatever_their_times():
    arrivals = Arrivals()
    times = (NOW_NS, NOW_NS - 10**13, NOW_NS - 1, NOW_NS + 5)
    found = [take(arrivals, good(value, time_ns), 0.0) for value, time_ns in enumerate(times)]
    assert found == [(value, True, [0]) for value in range(4)]
    assert take(arrivals, good(3, NOW_NS), 1.0) == (3, True, [])


def test_what_the_broker_kept_is_held_until_something_is_said():
    arrivals = Arrivals()
    assert take(arrivals, good(1), 0.0, is_retained=True) == (1, False, [0])
    assert take(arrivals, good(1), 1.0) == (1, True, [])


def test_the_last_of_a_backlog_counts_when_it_is_quiet():
    arrivals = Arrivals()
    assert take(arrivals, good(9, NOW_NS), 0.0) == (9, True, [0])
    for step in range(5):
        assert take(arrivals, good(step, NOW_NS - 10**12 + step, HeldSample), step * 0.1) is None
    assert due(arrivals, 0.4 + SETTLE_S - 0.01) == []
    assert arrivals.next_due_s == pytest.approx(0.4 + SETTLE_S)
    assert due(arrivals, 0.4 + SETTLE_S) == [(4, False)]
    assert arrivals.next_due_s == math.inf


def test_what_is_said_now_is_newer_than_a_backlog():
    arrivals = Arrivals()
    take(arrivals, good(1, NOW_NS - 10**12, HeldSample), 0.0)
    assert take(arrivals, good(9), 0.1) == (9, True, [0])
    assert due(arrivals, 10.0) == []


def test_the_copy_of_what_came_at_once_is_nothing_new():
    arrivals = Arrivals()
    take(arrivals, good(9), 0.0)
    assert take(arrivals, good(8, NOW_NS - 1, HeldSample), 0.1) is None
    assert take(arrivals, good(9, NOW_NS, HeldSample), 0.1) is None
    assert due(arrivals, 10.0) == []
    take(arrivals, good(9, NOW_NS + 1, HeldSample), 10.0)
    assert due(arrivals, 20.0) == [(9, False)]


def test_after_a_session_whatever_comes_is_news():
    arrivals = Arrivals()
    take(arrivals, good(9), 0.0)
    take(arrivals, good(8, NOW_NS - 5, HeldSample), 0.0)
    arrivals.forget()
    assert due(arrivals, 10.0) == []
    assert take(arrivals, good(9), 11.0) == (9, True, [0])


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans(), st.integers(0, 3)), max_size=30))
def test_a_held_sample_never_counts_before_it_was_quiet_for_a_while(steps):
    arrivals, now_s, last_s, value = Arrivals(), 0.0, -math.inf, None
    for step_s, is_held, number in steps:
        now_s += step_s
        if found := due(arrivals, now_s):
            assert now_s - last_s >= SETTLE_S - 1e-9, "a newer one came meanwhile"
            value = found[-1][0]
        sample = good(number, NOW_NS + number, HeldSample if is_held else Sample)
        told = take(arrivals, sample, now_s)
        assert (told is None) == is_held
        if told is not None:
            value = number
        last_s = now_s if is_held else -math.inf
        if value is not None:
            assert arrivals._last[GROUP].value == value


def test_the_first_of_several_backlogs_is_due_first():
    arrivals, other = Arrivals(), Group("y", (Point("remote", "y", Kind.INT),))
    take(arrivals, good(1, NOW_NS - 5, HeldSample), 0.0)
    arrivals.take(other, good(2, NOW_NS - 5, HeldSample), NOW_NS, 0.4, is_retained=False)
    assert arrivals.next_due_s == pytest.approx(SETTLE_S)
    assert due(arrivals, SETTLE_S) == [(1, False)]
    assert arrivals.next_due_s == pytest.approx(0.4 + SETTLE_S)


def test_a_time_that_is_just_tolerated_stays():
    assert dated(good(1, NOW_NS + TOLERANCE_NS), NOW_NS, TOLERANCE_NS).reason is None
    assert dated(good(1, NOW_NS + TOLERANCE_NS + 1), NOW_NS, TOLERANCE_NS).reason == "clock"
