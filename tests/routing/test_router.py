"""Batches in, deliveries out."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fieldbus.link import Target
from fieldbus.model import NO_FLAWS, Access, Batch, Group, Kind, Point
from fieldbus.routing.policy import NEVER, Edge, Policy, When
from fieldbus.routing.router import Router

POINTS = [Point("plc", f"p{index}", Kind.INT) for index in range(4)]
OUT = [Point("panel", f"p{index}", Kind.INT, Access.WRITE, carries_quality=True) for index in range(4)]
GROUP = Group("block", POINTS)


def batch(values, changed, at_s=0.0, group=GROUP):
    return Batch(group, int(at_s * 1e9), at_s, values, NO_FLAWS, changed)


def router(**policy):
    edges = [Edge(a, Target("hmi", b), Policy(**policy)) for a, b in zip(POINTS, OUT, strict=True)]
    return Router(edges, [GROUP])


def delivered(found):
    return [(item.target.point.name, item.sample.value) for item in found.get("hmi", ())]


def test_only_what_changed_travels():
    subject = router()
    assert len(delivered(subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0))) == 4
    assert delivered(subject.dispatch(batch([1, 9, 3, 4], [1], 1.0), 1.0)) == [("p1", 9)]


def test_a_batch_without_changes_touches_no_edge():
    subject = router()
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)

    class Untouchable(list):
        def __getitem__(self, index):
            raise AssertionError("a value was looked at")

    assert subject.dispatch(batch(Untouchable(), (), 1.0), 1.0) == {}


def test_the_newest_source_time_is_known_without_a_change():
    subject = router()
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.dispatch(batch([1, 2, 3, 4], (), 7.0), 7.0)
    assert subject.sample(POINTS[2]) == (3, "good", None, 7_000_000_000)


def test_a_point_that_never_had_a_value_waits_for_its_first():
    assert router().sample(POINTS[0])[:3] == (None, "bad", "waiting for first value")


def test_routes_that_want_every_sample_get_every_sample():
    subject = router(when=When.SAMPLE)
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    assert len(delivered(subject.dispatch(batch([1, 2, 3, 4], (), 1.0), 1.0))) == 4


def test_repeats_come_when_they_are_due_and_not_before():
    subject = router(every_s=2.0)
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    assert subject.next_due_s == 2.0
    assert subject.expire(1.9) == {}
    assert delivered(subject.expire(2.0)) == [("p0", 1), ("p1", 2), ("p2", 3), ("p3", 4)]
    assert subject.next_due_s == 4.0


def test_a_group_whose_batches_stop_grows_stale_by_the_clock():
    subject = router(max_age_s=1.0)
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.dispatch(batch([1, 2, 3, 4], (), 0.8), 0.8)
    assert subject.expire(subject.next_due_s) == {}  # confirmed meanwhile
    found = subject.expire(subject.next_due_s)["hmi"]
    assert {(item.sample.value, item.sample.reason) for item in found} == {(None, "stale")}


def test_what_was_missed_is_offered_with_the_next_sample_and_only_then():
    subject = router()
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.missed(OUT[2])
    assert subject.expire(5.0) == {}
    assert delivered(subject.dispatch(batch([1, 2, 3, 4], (), 1.0), 1.0)) == [("p2", 3)]
    assert subject.dispatch(batch([1, 2, 3, 4], (), 2.0), 2.0) == {}
    subject.missed(OUT[2])
    assert delivered(subject.dispatch(batch([1, 2, 9, 4], [2], 3.0), 3.0)) == [("p2", 9)]


def test_a_link_that_comes_up_late_gets_what_came_just_before_and_nothing_older():
    """At start-up links come up in any order; an initial value must not be lost by it."""
    subject = router()
    subject.dispatch(batch([1, 2, 3, 4], range(4), 5.0), 5.0)
    subject.missed(OUT[1])
    assert subject.offer_missed(OUT, 6.0, 8.0) == {}  # too old
    assert delivered(subject.offer_missed(OUT, 4.0, 8.0)) == [("p1", 2)]
    assert subject.offer_missed(OUT, 4.0, 8.0) == {}


def test_without_clocks_there_is_nothing_to_wait_for():
    subject = router()
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    assert subject.next_due_s == NEVER


@given(
    steps=st.lists(
        st.tuples(st.floats(0.01, 1.5), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40
    ),
    interval_s=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_what_the_target_ends_with_is_what_the_source_ends_with(steps, interval_s):
    """Whatever the timing: no more often than allowed, and the last value is never lost."""
    subject = router(min_interval_s=interval_s)
    values = [0, 0, 0, 0]
    seen: dict[str, list[tuple[float, int]]] = {}
    now_s = 0.0

    def note(found):
        for name, value in delivered(found):
            seen.setdefault(name, []).append((now_s, value))

    note(subject.dispatch(batch(list(values), range(4), now_s), now_s))
    for wait_s, index, value in steps:
        end_s = now_s + wait_s
        while subject.next_due_s <= end_s:
            now_s = subject.next_due_s
            note(subject.expire(now_s))
        now_s = end_s
        changed = [index] if values[index] != value else []
        values[index] = value
        note(subject.dispatch(batch(list(values), changed, now_s), now_s))
    while subject.next_due_s < NEVER:
        now_s = subject.next_due_s
        note(subject.expire(now_s))
    for index, value in enumerate(values):
        history = seen[f"p{index}"]
        assert history[-1][1] == value
        gaps = [later - earlier for (earlier, _), (later, _) in pairwise(history)]
        assert all(gap >= interval_s - 1e-9 for gap in gaps)
