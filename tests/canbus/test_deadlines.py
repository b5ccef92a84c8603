"""How long a message may be silent."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.deadlines import LONGEST_LEARNED_S, SHORTEST_LEARNED_S, SHORTEST_S, Learned, choose


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.05, [1.0], 2.0, 0.1, 1), (0.05, "configuration")),
        ((None, [None, 5.0, 3.0], 2.0, 0.1, 1), (3.0, "database: signal timeout")),
        ((None, [None, 0.0], 2.0, 0.1, 1), (2.0, "database: message timeout")),
        ((None, [], None, 0.1, 1), (0.30000000000000004, "3 × cycle of 0.1 s")),
        ((None, [], 0.0, 0.1, 4), (1.2000000000000002, "3 × cycle of 0.1 s × 4 branches")),
        ((None, [], None, 0.01, 1), (SHORTEST_S, "3 × cycle of 0.01 s")),
        ((None, [0.03], None, 0.01, 1), (SHORTEST_S, "database: signal timeout")),
        ((None, [], None, None, 1), (None, "learned")),
        ((None, [], None, 0.0, 7), (None, "learned")),
    ],
)
def test_the_deadline_comes_from_the_first_that_knows_one(arguments, expected):
    assert choose(*arguments) == expected


def test_a_timeout_that_is_no_longer_than_the_cycle_is_passed_over():
    assert choose(None, [1.0], 1.0, 1.0) == (3.0, "3 × cycle of 1 s")
    assert choose(None, [1.0], 5.0, 1.0) == (5.0, "database: message timeout")
    # A branch has its turn only every third frame.
    assert choose(None, [2.0], None, 1.0, 3) == (9.0, "3 × cycle of 1 s × 3 branches")


def run(learned, intervals, start=0.0):
    """Let frames come; return the moment of the last and how often a deadline passed before one."""
    now, alarms = start, 0
    for interval in intervals:
        if learned.deadline_s is not None and interval > learned.deadline_s:
            alarms += 1
        now += interval
        learned.seen(now)
    return now, alarms


@pytest.mark.parametrize(("cycle", "deadline"), [(0.01, 0.5), (0.1, 0.5), (1.0, 5.0), (20.0, 60.0)])
def test_a_regular_sender_gets_five_times_its_interval_after_sixteen(cycle, deadline):
    learned = Learned()
    run(learned, [cycle] * 16)
    assert learned.deadline_s is None
    learned.seen(17 * cycle)
    assert learned.deadline_s == pytest.approx(deadline)


def test_a_sender_slower_than_half_the_longest_deadline_gets_none():
    learned = Learned()
    run(learned, [31.0] * 200)
    assert learned.deadline_s is None


@pytest.mark.parametrize("seed", range(20))
def test_jitter_and_a_lost_frame_now_and_then_are_no_alarm(seed):
    source = random.Random(seed)
    learned = Learned()
    intervals = [0.1 * source.uniform(0.7, 1.3) * (2 if source.random() < 0.02 else 1) for _ in range(20_000)]
    _, alarms = run(learned, intervals)
    assert alarms == 0
    assert 0.5 <= learned.deadline_s <= 2.0


@pytest.mark.parametrize("seed", range(20))
def test_who_speaks_on_change_gets_no_deadline(seed):
    source = random.Random(seed)
    learned = Learned()
    now = 0.0
    for _ in range(20_000):
        now, _ = run(learned, [source.expovariate(1.0)], now)
        assert learned.deadline_s is None


@pytest.mark.parametrize("seed", range(20))
def test_who_speaks_in_bursts_gets_no_deadline(seed):
    source = random.Random(seed)
    learned = Learned()
    now = 0.0
    for _ in range(2000):
        now, _ = run(learned, [0.01] * source.randrange(1, 12) + [source.uniform(1, 100)], now)
    assert learned.deadline_s is None


def test_a_rhythm_after_a_rough_start_is_learned_later():
    learned = Learned()
    now, _ = run(learned, [0.1] + [0.001, 0.2] * 8)
    assert learned.deadline_s is None
    now, _ = run(learned, [0.1] * 16, now)
    assert learned.deadline_s is None
    run(learned, [0.1] * 16, now)
    assert learned.deadline_s == pytest.approx(0.5)


def test_a_sender_that_slows_down_is_one_alarm_and_no_more():
    learned = Learned()
    now, _ = run(learned, [0.01] * 100)
    alarms = 0
    for _ in range(50):  # runs, stands by, runs …
        now, more = run(learned, [0.01] * 200 + [1.0] * 20, now)
        alarms += more
    assert alarms == 1
    assert 1.0 < learned.deadline_s < 5.1


@given(st.lists(st.floats(0.001, 59.0), max_size=300))
def test_a_deadline_is_wrong_seven_times_at_most_and_only_grows(intervals):
    learned = Learned()
    now, _ = run(learned, [0.05] * 17)
    alarms, last = 0, learned.deadline_s
    for interval in intervals:
        now, more = run(learned, [interval], now)
        alarms += more
        assert learned.deadline_s >= last
        last = learned.deadline_s
    assert alarms <= 7
    assert SHORTEST_LEARNED_S <= last <= LONGEST_LEARNED_S


def test_a_node_that_was_off_all_night_keeps_its_deadline():
    learned = Learned()
    now = 0.0
    for _ in range(5):
        now, _ = run(learned, [0.1] * 1000, now)
        now, alarms = run(learned, [12 * 3600.0], now)
        assert alarms == (1 if now > 12 * 3600 else 0)
        assert learned.deadline_s == pytest.approx(0.5)


def test_who_pauses_for_long_again_and_again_was_on_change_after_all():
    learned = Learned()
    now, _ = run(learned, [0.1] * 100)
    now, _ = run(learned, [100.0, 0.1, 0.1, 100.0], now)
    assert learned.deadline_s is None
    # It has to keep its rhythm for longer than before.
    now, _ = run(learned, [0.1] * 16, now)
    assert learned.deadline_s is None
    run(learned, [0.1] * 16, now)
    assert learned.deadline_s is not None


def test_a_silence_of_ours_does_not_count():
    learned = Learned()
    now, _ = run(learned, [0.1] * 10)
    learned.interrupt()
    now, _ = run(learned, [3600.0] + [0.1] * 15, now)
    assert learned.deadline_s is None
    now, _ = run(learned, [0.1], now)
    assert learned.deadline_s == pytest.approx(0.5)
    learned.interrupt()
    run(learned, [30.0], now)
    assert learned.deadline_s == pytest.approx(0.5)


@given(st.lists(st.floats(0, 1e6) | st.just(0.0), max_size=100))
def test_no_sequence_of_intervals_raises(intervals):
    learned = Learned()
    run(learned, intervals)
    assert learned.deadline_s is None or SHORTEST_LEARNED_S <= learned.deadline_s <= LONGEST_LEARNED_S
