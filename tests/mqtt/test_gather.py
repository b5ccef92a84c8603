"""What several groups have for one topic, in one message."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from fieldbus.link import Bundle, Delivery, Gathering, GatherPlan, Target
from fieldbus.model import Batch, Group, Kind, Point, Quality, Sample, bad, uncertain
from fieldbus.mqtt.gather import NEVER, Gatherer
from fieldbus.sample_json import GatheredFormat, gathered_bytes, gathered_message


def group(*names, device="press", kind=Kind.INT):
    return Group(" ".join(names), [Point(device, name, kind) for name in names])


def plans(*groups, device="press", every=True, tells_bad=False):
    message = Gathering("broker", "plant/press", device, len(groups))
    return [
        GatherPlan(
            message, item, tuple(item.everything), tuple(p.name for p in item.points), every, tells_bad
        )
        for item in groups
    ]


def batch(of, *values, at=0, changed=None, reason="timeout"):
    flaws = {index: bad(reason) for index, value in enumerate(values) if value is None}
    return Batch(
        of, at * 1_000_000_000, float(at), values, flaws, of.everything if changed is None else changed
    )


class Desk:
    """A gatherer and what it has sent."""

    def __init__(self, window_s=0.1):
        self.sent = []
        self.gatherer = Gatherer(
            lambda topic, payload: self.sent.append((topic, json.loads(payload))), window_s
        )

    def take(self, plan, taken, now_s=0.0):
        self.gatherer.take_bundle(Bundle(plan, taken), now_s)

    @property
    def values(self):
        return [message["values"] for _, message in self.sent]


A, B = group("a1", "a2"), group("b1")


def test_what_one_group_feeds_alone_goes_at_once():
    desk = Desk()
    [plan] = plans(A)
    desk.take(plan, batch(A, 1, 2, at=7))
    assert desk.sent == [
        ("plant/press", {"time": "1970-01-01T00:00:07.000000Z", "values": {"a1": 1, "a2": 2}, "bad": {}})
    ]
    assert desk.gatherer.next_due_s == NEVER


def test_a_device_that_is_read_in_several_requests_sends_one_message_with_the_newest_time():
    desk = Desk()
    plan_a, plan_b = plans(A, B)
    desk.take(plan_b, batch(B, 3, at=9))
    assert desk.sent == []
    desk.take(plan_a, batch(A, 1, 2, at=8))
    assert desk.values == [{"b1": 3, "a1": 1, "a2": 2}]
    assert desk.sent[0][1]["time"] == "1970-01-01T00:00:09.000000Z"
    assert desk.gatherer.next_due_s == NEVER


def test_the_rest_is_waited_for_only_so_long():
    desk = Desk()
    plan_a, _ = plans(A, B)
    desk.take(plan_a, batch(A, 1, 2), 5.0)
    assert desk.gatherer.next_due_s == 5.1
    desk.gatherer.expire(5.05)
    assert desk.sent == []
    desk.gatherer.expire(5.1)
    assert desk.values == [{"a1": 1, "a2": 2}]
    assert desk.gatherer.next_due_s == NEVER


def test_a_group_that_comes_twice_sends_what_waits_first():
    desk = Desk()
    plan_a, plan_b = plans(A, B)
    desk.take(plan_a, batch(A, 1, 2), 0.0)
    desk.take(plan_a, batch(A, 3, 4), 0.05)
    desk.take(plan_b, batch(B, 5), 0.06)
    assert desk.values == [{"a1": 1, "a2": 2}, {"a1": 3, "a2": 4, "b1": 5}]


def test_only_what_changed_is_sent_where_that_is_asked_for():
    desk = Desk()
    [plan] = plans(A, every=False)
    desk.take(plan, batch(A, 1, 2, changed=[1]))
    assert desk.values == [{"a2": 2}]


def test_bad_points_are_left_out_or_named_and_an_empty_message_is_none():
    desk = Desk()
    [holds] = plans(A)
    [tells] = plans(A, tells_bad=True)
    desk.take(holds, batch(A, None, None))
    assert desk.sent == []
    desk.take(holds, batch(A, 1, None))
    desk.take(tells, batch(A, None, 2))
    desk.take(tells, batch(A, None, None, changed=[0, 1]))
    assert [(message["values"], message["bad"]) for _, message in desk.sent] == [
        ({"a1": 1}, {}), ({"a2": 2}, {"a1": "timeout"}), ({}, {"a1": "timeout", "a2": "timeout"}),
    ]  # fmt: skip


def test_the_same_picture_is_formatted_once_and_stamped_anew():
    desk = Desk()
    [plan] = plans(A)
    first = batch(A, 1, 2)
    desk.take(plan, first)
    desk.take(plan, first._replace(time_ns=4_000_000_000, changed=()))
    assert desk.values == [{"a1": 1, "a2": 2}] * 2
    assert desk.sent[1][1]["time"] == "1970-01-01T00:00:04.000000Z"


def treated(name, value, device="press"):
    point = Point(device, name, Kind.INT)
    target = Target("broker", None, "plant/press", gathers=True, label=name, is_shared=True)
    return Delivery(target, point, Sample(value, Quality.GOOD, None, 3_000_000_000))


def test_treated_samples_join_the_message_of_their_device():
    desk = Desk()
    [plan] = plans(A)
    desk.gatherer.take_delivery("plant/press", treated("x", 7), 0.0)
    desk.take(plan, batch(A, 1, 2))
    desk.gatherer.take_delivery("plant/press", treated("x", 8), 1.0)
    desk.gatherer.take_delivery("plant/press", treated("y", 8, device="other"), 1.0)
    desk.gatherer.take_delivery("plant/press", treated("x", 9), 1.01)
    desk.gatherer.flush()
    assert desk.values == [{"a1": 1, "a2": 2, "x": 7}, {"x": 8}, {"y": 8}, {"x": 9}]


def test_after_a_regroup_no_point_is_twice_in_a_message():
    desk = Desk()
    plan_a, _ = plans(A, B)
    desk.take(plan_a, batch(A, 1, 2))
    both = Group("both", [*A.points, *B.points])
    [plan] = plans(both)
    desk.take(plan, batch(both, 4, 5, 6))
    assert desk.values == [{"a1": 1, "a2": 2}, {"a1": 4, "a2": 5, "b1": 6}]
    assert desk.gatherer.next_due_s == NEVER


KINDS = {
    Kind.BOOL: st.booleans(),
    Kind.INT: st.integers(-(1 << 64), 1 << 64),
    Kind.FLOAT: st.floats(allow_nan=True) | st.integers(0, 5),
    Kind.STRING: st.text(max_size=5),
}


@st.composite
def pictures(draw):
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=8))
    names = draw(
        st.lists(st.text(min_size=1, max_size=4), min_size=len(kinds), max_size=len(kinds), unique=True)
    )
    points = [Point("d", f"p{index}", kind) for index, kind in enumerate(kinds)]
    batches = []
    for _ in range(draw(st.integers(1, 3))):
        values, flaws = [], {}
        for index, kind in enumerate(kinds):
            state = draw(st.sampled_from(["good", "good", "good", "uncertain", "bad"]))
            values.append(None if state == "bad" else draw(KINDS[kind]))
            if state != "good":
                flaws[index] = bad('time"out') if state == "bad" else uncertain("guess")
        batches.append((tuple(values), flaws, sorted(draw(st.sets(st.integers(0, len(kinds) - 1))))))
    indexes = sorted(draw(st.sets(st.integers(0, len(kinds) - 1), min_size=1)))
    return points, names, batches, indexes


@given(picture=pictures(), tells_bad=st.booleans(), only_changed=st.booleans())
def test_the_fast_way_says_what_the_plain_way_says(picture, tells_bad, only_changed):
    points, names, batches, indexes = picture
    whole = Group("g", points)
    writer = GatheredFormat(points, indexes, [names[index] for index in indexes], tells_bad=tells_bad)
    for values, flaws, changed in batches:
        taken = Batch(whole, 5, 0.0, values, flaws, changed)
        wanted = [index for index in indexes if not only_changed or index in changed]
        plain = json.loads(gathered_bytes(5, [(names[index], taken.sample(index)) for index in wanted]))
        if not tells_bad:
            plain["bad"] = {}
        for _ in range(2):  # the second time from memory
            inside = writer.some(taken, changed) if only_changed else writer.inside(taken)
            found = json.loads(gathered_message(5, *inside), parse_constant=lambda name: 1 / 0)
            assert found == plain
            assert [(key, type(value)) for key, value in found["values"].items()] == [
                (key, type(value)) for key, value in plain["values"].items()
            ]


def test_floats_whose_sum_is_too_large_are_still_values():
    points = [Point("d", name, Kind.FLOAT) for name in "ab"]
    writer = GatheredFormat(points, [0, 1], ["a", "b"], tells_bad=True)
    taken = Batch(Group("g", points), 0, 0.0, (1.7e308, 1.7e308), {}, ())
    assert writer.inside(taken).values == '"a":1.7e+308,"b":1.7e+308'
    taken = taken._replace(values=(math.inf, -math.inf))
    assert writer.inside(taken) == ("", '"a":"not available","b":"not available"')
