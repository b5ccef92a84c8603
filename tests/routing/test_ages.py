"""Whatever arrives, and whatever it says of its time: no good value is older than its deadline by arrival."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.link import Target
from fieldbus.model import NO_FLAWS, Access, Batch, Group, HeldBatch, Kind, Point, Quality, bad, uncertain
from fieldbus.routing.policy import Edge, OnBad, OnUncertain, Policy, When
from fieldbus.routing.router import Router

SOURCE = Point("plc", "speed", Kind.FLOAT)
GROUP = Group("plc", (SOURCE,))
TARGETS = [
    Target("hmi", Point("panel", "speed", Kind.FLOAT, Access.WRITE, carries_quality=True)),
    Target("broker", None, "speed"),
    Target("net", Point("other", "speed", Kind.FLOAT, Access.READWRITE)),
]
policies = st.builds(
    Policy,
    when=st.sampled_from(When),
    every_s=st.sampled_from([None, 0.7]),
    min_interval_s=st.sampled_from([0.0, 0.4]),
    deadband=st.sampled_from([None, 2.0]),
    on_bad=st.sampled_from([None, OnBad.SEND]),
    on_uncertain=st.sampled_from(OnUncertain),
    substitute=st.sampled_from([None, -1.0]),
    max_age_s=st.just(2.0),
)
samples = st.tuples(
    st.floats(0.0, 3.0),
    st.sampled_from(["live", "live", "live", "held", "bad", "uncertain", "unchanged"]),
    st.integers(0, 3),
    st.integers(-(10**12), 10**12),
)
TICK_S = 0.01


@settings(deadline=None, max_examples=examples(200))
@given(policies, st.sampled_from(TARGETS), st.lists(samples, max_size=25))
def test_no_good_value_is_older_than_its_deadline(policy, target, steps):
    edge = Edge(SOURCE, target, policy)
    router = Router([edge], [GROUP])
    now_s, heard_s, shown, value = 100.0, -math.inf, None, 0.0

    def note(deliveries):
        nonlocal shown
        for items in deliveries.values():
            shown = items[-1].sample

    for pause_s, kind, number, shift_ms in steps:
        end_s = now_s + pause_s
        while router.next_due_s <= end_s:
            now_s = max(now_s, router.next_due_s)
            note(router.expire(now_s))
            check(edge, shown, heard_s, now_s, policy)
        now_s = end_s
        check(edge, shown, heard_s, now_s, policy)
        if kind != "unchanged":
            value = float(number)
        batch_of = HeldBatch if kind == "held" else Batch
        flaws = {"bad": {0: bad("timeout")}, "uncertain": {0: uncertain("out of range")}}.get(kind, NO_FLAWS)
        values = (None,) if kind == "bad" else (value,)
        changed = () if kind == "unchanged" else (0,)
        time_ns = round((now_s + shift_ms / 1000) * 1e9) + 10**15
        if kind != "held":
            heard_s = now_s
        note(router.dispatch(batch_of(GROUP, time_ns, now_s, values, flaws, changed), now_s))
        check(edge, shown, heard_s, now_s, policy)


def check(edge, shown, heard_s, now_s, policy):
    """A target that can be told is never left with a good value that is too old."""
    if shown is None or shown.quality is not Quality.GOOD or not edge.target.carries_quality:
        return
    slack_s = policy.max_age_s + policy.min_interval_s + TICK_S
    assert now_s - heard_s <= slack_s, (shown, now_s - heard_s)
    assert shown.is_held is False
