"""Batches in, deliveries out."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fieldbus.link import Target
from fieldbus.model import NO_FLAWS, Access, Batch, Group, HeldBatch, Kind, Point, bad, uncertain
from fieldbus.routing.policy import NEVER, Edge, OnBad, Policy, When
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
    assert router().sample(POINTS[0]) == (None, "bad", "waiting for first value", 0)
    assert router().sample(OUT[0]) == (None, "bad", "waiting for first value", 0)


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


# --- what is gathered

PLC = [Point("plc", f"q{index}", Kind.INT) for index in range(6)]
FIRST, SECOND = Group("first", PLC[:4]), Group("second", PLC[4:])


def gathering(points=PLC, topic="plant/plc", **policy):
    return [
        Edge(point, Target("broker", None, topic, gathers=True, label=point.name), Policy(**policy))
        for point in points
    ]


def everything(group, at_s=0.0, values=None):
    return batch(values or list(group.everything), group.everything, at_s, group)


def test_what_needs_no_treatment_travels_uncut():
    subject = Router(gathering(when=When.SAMPLE, on_bad=OnBad.SEND), [FIRST, SECOND])
    taken = everything(FIRST)
    assert subject.dispatch(taken, 0.0) == {}
    [bundle] = subject.gathered(taken)
    assert bundle.batch is taken
    assert (bundle.plan.labels, bundle.plan.indexes) == (("q0", "q1", "q2", "q3"), (0, 1, 2, 3))
    assert (bundle.plan.wants_every_sample, bundle.plan.tells_bad) == (True, True)
    [other] = subject.gathered(everything(SECOND))
    assert other.plan.message is bundle.plan.message
    assert bundle.plan.message.groups == 2


def test_without_a_change_only_what_wants_every_sample_travels():
    edges = [*gathering(), *gathering(topic="plant/all", when=When.SAMPLE)]
    subject = Router(edges, [FIRST, SECOND])
    unchanged = batch([0, 1, 2, 3], (), 1.0, FIRST)
    assert [bundle.plan.message.topic for bundle in subject.gathered(everything(FIRST))] == [
        "plant/plc",
        "plant/all",
    ]
    assert [bundle.plan.message.topic for bundle in subject.gathered(unchanged)] == ["plant/all"]
    assert Router(gathering(), [FIRST, SECOND]).gathered(unchanged) == []
    assert router().gathered(batch([1, 2, 3, 4], range(4))) == ()


def test_what_is_treated_is_delivered_and_knows_that_it_has_company():
    edges = [
        *gathering(PLC[:3]),
        *gathering(PLC[3:4], deadband=5.0),
        *gathering(PLC[:1], "plant/alone", deadband=5.0),
    ]
    subject = Router(edges, [FIRST, SECOND])
    taken = everything(FIRST)
    found = subject.dispatch(taken, 0.0)["broker"]
    assert [(item.target.topic, item.target.label, item.target.is_shared) for item in found] == [
        ("plant/alone", "q0", False), ("plant/plc", "q3", True),
    ]  # fmt: skip
    [bundle] = subject.gathered(taken)
    assert bundle.plan.labels == ("q0", "q1", "q2")


def test_a_point_that_is_sent_twice_under_one_name_is_not_bundled():
    subject = Router([*gathering(), *gathering(PLC[:1])], [FIRST, SECOND])
    assert subject.gathered(everything(FIRST)) == ()
    assert len(subject.dispatch(everything(FIRST), 0.0)["broker"]) == 5
    assert len(subject.gathered(everything(SECOND))) == 1


# --- other groups at run time


def test_after_a_regroup_the_newest_samples_are_still_known_with_the_older_time():
    subject = Router(gathering(), [FIRST, SECOND])
    subject.dispatch(everything(FIRST, 5.0, [10, 11, 12, 13]), 5.0)
    flawed = Batch(SECOND, 3_000_000_000, 3.0, [14, None], {1: bad("timeout")}, (0, 1))
    subject.dispatch(flawed, 5.0)
    whole = Group("whole", [PLC[5], *PLC[:4]])
    rest = Group("rest", PLC[4:5])
    subject.regroup([FIRST, SECOND], [whole, rest])
    assert [subject.sample(point)[:3] for point in PLC] == [
        (10, "good", None), (11, "good", None), (12, "good", None), (13, "good", None), (14, "good", None),
        (None, "bad", "timeout"),
    ]  # fmt: skip
    assert subject.sample(PLC[0]).time_ns == 3_000_000_000
    assert set(subject.latest) == {whole, rest}
    [bundle] = subject.gathered(everything(whole))
    assert bundle.plan.labels == ("q5", "q0", "q1", "q2", "q3")
    assert bundle.plan.message.groups == 2
    assert subject.gathered(everything(FIRST)) == ()


def test_points_that_had_no_sample_yet_wait_for_their_first_in_the_new_group_too():
    subject = Router([], [FIRST, SECOND])
    subject.dispatch(everything(SECOND, 1.0, [7, 8]), 1.0)
    whole = Group("whole", PLC)
    subject.regroup([FIRST, SECOND], [whole])
    assert subject.sample(PLC[0])[:3] == (None, "bad", "waiting for first value")
    assert subject.sample(PLC[4])[:2] == (7, "good")
    fresh = Router([], [FIRST])
    fresh.regroup([FIRST], [whole])
    assert fresh.latest == {}


def test_a_point_that_is_in_no_group_any_more_has_no_value():
    subject = Router([], [FIRST])
    subject.dispatch(everything(FIRST, 1.0), 1.0)
    subject.regroup([FIRST], [Group("rest", PLC[1:4])])
    assert subject.sample(PLC[0])[:3] == (None, "bad", "not available")
    assert subject.sample(PLC[1])[:2] == (1, "good")


def test_after_a_regroup_edges_remember_what_they_sent_and_what_was_missed():
    edges = [Edge(a, Target("hmi", b), Policy()) for a, b in zip(POINTS, OUT, strict=True)]
    subject = Router(edges, [GROUP])
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.missed(OUT[2])
    swapped = Group("swapped", POINTS[::-1])
    subject.regroup([GROUP], [swapped])
    assert delivered(subject.dispatch(batch([4, 3, 2, 1], (), 1.0, swapped), 1.0)) == [("p2", 3)]
    assert delivered(subject.dispatch(batch([4, 3, 2, 1], range(4), 2.0, swapped), 2.0)) == []
    assert delivered(subject.dispatch(batch([4, 9, 2, 1], [1], 3.0, swapped), 3.0)) == [("p2", 9)]
    subject.missed(OUT[2])
    assert delivered(subject.offer_missed(OUT, 0.0, 3.0)) == [("p2", 9)]


def test_a_group_of_one_point_can_be_regrouped():
    one, others = Group("one", POINTS[:1]), Group("others", POINTS[1:])
    edges = [Edge(a, Target("hmi", b), Policy()) for a, b in zip(POINTS, OUT, strict=True)]
    subject = Router(edges, [one, others])
    subject.dispatch(batch([5], [0], group=one), 0.0)
    subject.dispatch(batch([6, 7, 8], range(3), group=others), 0.0)
    subject.regroup([one, others], [GROUP])
    assert [subject.sample(point).value for point in POINTS] == [5, 6, 7, 8]
    assert delivered(subject.dispatch(batch([9, 6, 7, 8], [0], 1.0), 1.0)) == [("p0", 9)]


def test_repeats_go_on_after_a_regroup():
    edges = [Edge(POINTS[0], Target("hmi", OUT[0]), Policy(every_s=2.0))]
    subject = Router(edges, [GROUP])
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.regroup([GROUP], [Group("one", POINTS[:1]), Group("others", POINTS[1:])])
    assert delivered(subject.expire(2.0)) == [("p0", 1)]


# --- one odd item hides nothing that follows it

OTHER = [Point("panel", f"r{index}", Kind.INT, Access.WRITE, carries_quality=True) for index in range(4)]


def route(source, target, link="hmi", **policy):
    return Edge(source, Target(link, target), Policy(**policy))


def test_a_change_that_nobody_wants_hides_no_other_one():
    subject = Router([route(POINTS[3], OUT[3])], [GROUP])
    assert delivered(subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)) == [("p3", 4)]


def test_each_of_several_routes_from_one_point_gets_its_value():
    edges = [
        route(POINTS[0], OUT[0], deadband=5.0),
        route(POINTS[0], OUT[1]),
        route(POINTS[0], OUT[2]),
        route(POINTS[1], OUT[3]),
    ]
    subject = Router(edges, [GROUP])
    edges[1].offer(batch([1, 2, 3, 4], range(4)).sample(0), 0.0, 0.0)  # it has the value already
    found = subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    assert delivered(found) == [("p0", 1), ("p2", 1), ("p3", 2)]
    assert delivered(subject.dispatch(batch([3, 2, 3, 4], [0], 1.0), 1.0)) == [("p1", 3), ("p2", 3)]


def test_what_goes_to_two_links_in_turn_keeps_its_order_on_each():
    edges = [route(POINTS[index], OUT[index], ("hmi", "plant")[index % 2]) for index in range(4)]
    found = Router(edges, [GROUP]).dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    names = {link: [item.target.point.name for item in items] for link, items in found.items()}
    assert names == {"hmi": ["p0", "p2"], "plant": ["p1", "p3"]}


def test_a_flawed_point_early_in_a_batch_hides_no_good_one():
    edges = [route(a, b, on_bad=OnBad.SEND) for a, b in zip(POINTS, OUT, strict=True)]
    subject = Router(edges, [GROUP])
    found = subject.dispatch(Batch(GROUP, 0, 0.0, [None, 2, 3, 4], {0: bad("timeout")}, range(4)), 0.0)
    assert delivered(found) == [("p0", None), ("p1", 2), ("p2", 3), ("p3", 4)]


def test_an_uncertain_value_stays_uncertain_on_its_way():
    subject = router()
    flawed = Batch(GROUP, 0, 0.0, [1, 2, 3, 4], {1: uncertain("out of range")}, range(4))
    found = [item.sample for item in subject.dispatch(flawed, 0.0)["hmi"]]
    assert [sample.quality for sample in found] == ["good", "uncertain", "good", "good"]
    assert (found[1].value, found[1].reason) == (2, "out of range")
    again = subject.dispatch(batch([1, 2, 3, 4], [1], 1.0), 1.0)["hmi"]
    assert [item.sample[:3] for item in again] == [(2, "good", None)]


def test_an_appointment_that_was_moved_hides_no_other_one():
    subject = Router(
        [route(POINTS[0], OUT[0], every_s=5.0, min_interval_s=2.0), route(POINTS[1], OUT[1], every_s=5.0)],
        [GROUP],
    )
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.dispatch(batch([9, 2, 3, 4], [0], 1.0), 1.0)
    assert delivered(subject.expire(2.0)) == [("p0", 9)]
    assert delivered(subject.expire(5.0)) == [("p1", 2)]
    assert delivered(subject.expire(7.0)) == [("p0", 9)]


def test_an_appointment_without_a_sample_hides_no_other_one():
    lone = Point("plc", "lone", Kind.INT)
    edges = [route(lone, OUT[0], every_s=1.0), route(POINTS[1], OUT[1], every_s=1.0)]
    first = Group("lone", [lone])
    subject = Router(edges, [GROUP, first])
    subject.dispatch(batch([7], [0], 0.0, first), 0.0)
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    del subject.latest[first]
    assert delivered(subject.expire(1.0)) == [("p1", 2)]


def test_an_appointment_that_comes_too_early_hides_no_other_one():
    subject = router(every_s=2.0)
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.dispatch(batch([9, 9, 3, 4], [0, 1], 1.0), 1.0)
    assert delivered(subject.expire(2.0)) == [("p2", 3), ("p3", 4)]
    assert delivered(subject.expire(3.0)) == [("p0", 9), ("p1", 9)]


def test_a_target_without_a_route_hides_no_other_one():
    subject = router()
    subject.dispatch(batch([1, 2, 3, 4], range(4), 5.0), 5.0)
    for point in (*OTHER, *OUT):
        subject.missed(point)
    assert delivered(subject.offer_missed([OTHER[0], OUT[1], OTHER[1], OUT[2]], 5.0, 5.0)) == [
        ("p1", 2), ("p2", 3)
    ]  # fmt: skip


def test_a_group_that_nobody_knows_hides_no_other_one():
    subject = Router([], [GROUP])
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    subject.regroup([Group("unknown", []), GROUP, FIRST], [Group("rest", POINTS[1:])])
    assert subject.sample(POINTS[0])[:3] == (None, "bad", "not available")
    assert subject.sample(POINTS[1])[:2] == (2, "good")


def test_a_missed_route_that_wants_every_sample_is_not_offered_twice():
    subject = Router(
        [route(POINTS[0], OUT[0], when=When.SAMPLE), route(POINTS[1], OUT[1]), route(POINTS[2], OUT[2])],
        [GROUP],
    )
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    for point in OUT[:3]:
        subject.missed(point)
    assert delivered(subject.dispatch(batch([1, 9, 3, 4], [1], 1.0), 1.0)) == [
        ("p2", 3), ("p1", 9), ("p0", 1)
    ]  # fmt: skip


def test_a_route_that_hears_nothing_new_takes_no_more_memory():
    subject = router(every_s=60.0)
    subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    for second in range(1, 50):
        subject.dispatch(batch([1, 2, 3, 4], range(4), float(second)), float(second))
    assert len(subject._heap) == 4
    for second in range(50, 60):
        subject.dispatch(batch([second] * 4, range(4), float(second)), float(second))
    assert len(subject._heap) == 4
    assert len(delivered(subject.expire(119.0))) == 4


# --- what is wanted, and what is held


def test_a_group_is_wanted_if_any_route_leaves_it():
    empty = Group("empty", [Point("plc", "x", Kind.INT)])
    edges = [*gathering(PLC[:1]), route(PLC[4], OUT[0], when=When.SAMPLE), route(POINTS[0], OUT[1])]
    subject = Router(edges, [FIRST, SECOND, GROUP, empty])
    assert [subject.wants(group) for group in (FIRST, SECOND, GROUP, empty)] == [True, True, True, False]
    assert not subject.wants(Group("unknown", POINTS))


def test_after_a_regroup_only_what_waited_on_its_way_is_held():
    whole = Group("whole", PLC)
    for kinds, is_held in (
        ((Batch, Batch), False),
        ((Batch, HeldBatch), True),
        ((HeldBatch, HeldBatch), True),
    ):
        subject = Router([], [FIRST, SECOND])
        for kind, group, at_s in zip(kinds, (FIRST, SECOND), (5.0, 3.0), strict=True):
            subject.dispatch(kind(*everything(group, at_s)), 5.0)
        subject.regroup([FIRST, SECOND], [whole])
        found = subject.batch_of(PLC[0])
        assert (found.at_s, found.time_ns) == (3.0, 3_000_000_000)
        assert found.heard_s == (-NEVER if is_held else 3.0)
        assert subject.sample(PLC[5]).is_held is is_held


def test_a_held_sample_is_too_old_for_a_route_with_an_age():
    subject = router(max_age_s=10.0)
    [*_, last] = subject.dispatch(HeldBatch(*batch([1, 2, 3, 4], range(4))), 0.0)["hmi"]
    assert last.sample == (None, "bad", "stale", 0)
    assert last.sample.is_bad
    plain = router()
    [*_, last] = plain.dispatch(HeldBatch(*batch([1, 2, 3, 4], range(4))), 0.0)["hmi"]
    assert (last.sample.value, last.sample.is_held) == (4, True)


def test_a_missed_sample_is_offered_up_to_its_bound():
    subject = router()
    subject.dispatch(batch([1, 2, 3, 4], range(4), 5.0), 5.0)
    subject.missed(OUT[0])
    assert subject.offer_missed(OUT, 5.001, 9.0) == {}
    assert delivered(subject.offer_missed(OUT, 5.0, 9.0)) == [("p0", 1)]


# --- a reload, and further routes


def test_after_a_reload_routes_that_stay_repeat_nothing():
    edges = [route(a, b) for a, b in zip(POINTS, OUT, strict=True)]
    before = Router(edges, [GROUP])
    before.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    before.missed(OUT[1])
    new = route(POINTS[3], OTHER[0])
    after = Router([*edges, new], [GROUP])
    after.adopt(before)
    assert after.sample(POINTS[2])[:2] == (3, "good")
    found = after.dispatch(batch([1, 2, 3, 4], (), 1.0), 1.0)
    assert sorted(delivered(found)) == [("p1", 2), ("r0", 4)]
    assert after.dispatch(batch([1, 2, 3, 4], (), 2.0), 2.0) == {}


def test_after_a_reload_a_group_that_is_gone_has_no_picture():
    before = Router([], [GROUP, FIRST])
    before.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    before.dispatch(everything(FIRST), 0.0)
    after = Router([], [FIRST])
    after.adopt(before)
    assert set(after.latest) == {FIRST}


def test_after_a_reload_repeats_come_when_they_were_due():
    edges = [route(POINTS[0], OUT[0], every_s=5.0), route(POINTS[1], OUT[1])]
    before = Router(edges, [GROUP])
    before.dispatch(batch([1, 2, 3, 4], range(4)), 0.0)
    after = Router(edges, [GROUP])
    after.adopt(before)
    assert after.next_due_s == 5.0
    assert delivered(after.expire(5.0)) == [("p0", 1)]


def test_further_routes_are_exchanged_and_equal_ones_go_on():
    subject = router()
    subject.set_extra([route(POINTS[0], OTHER[0]), route(POINTS[1], OTHER[1])])
    assert len(delivered(subject.dispatch(batch([1, 2, 3, 4], range(4)), 0.0))) == 6
    subject.set_extra([route(POINTS[1], OTHER[1]), route(POINTS[2], OTHER[2])])
    assert [edge.target.point.name for edge in subject.edges_from(POINTS[0])] == ["p0"]
    found = subject.dispatch(batch([1, 2, 3, 4], range(4), 1.0), 1.0)
    assert delivered(found) == [("r2", 3)]
    after = Router([], [GROUP])
    after.adopt(subject)
    assert delivered(after.dispatch(batch([5, 6, 7, 8], range(4), 2.0), 2.0)) == [("r1", 6), ("r2", 7)]
    gone = Router([], [Group("less", POINTS[:2])])
    gone.adopt(subject)
    assert [edge.target.point.name for point in POINTS for edge in gone.edges_from(point)] == ["r1"]
