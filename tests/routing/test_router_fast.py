"""The short way of plain edges and of the guard does what the long way does, whatever comes."""

import logging
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import Delivery, Target
from fieldbus.model import Access, Batch, Group, Kind, Point, Quality, Reason, Sample, bad, uncertain
from fieldbus.routing.policy import Edge, OnBad, OnUncertain, Policy, When
from fieldbus.routing.router import Router
from fieldbus.scaling import Linear

SOURCES = [Point("plc", f"p{index}", Kind.FLOAT) for index in range(6)]
GROUPINGS = [
    [Group("all", SOURCES)],
    [Group("low", SOURCES[:3]), Group("high", SOURCES[3:])],
    [Group("even", SOURCES[::2]), Group("odd", SOURCES[1::2])],
    [Group("some", SOURCES[1:4])],
]
"""How the same points are acquired, one after the other."""
TARGETS = [
    Target(
        f"link{index % 3}",
        Point("panel", f"p{index}", Kind.FLOAT, Access.WRITE, carries_quality=index % 2 == 0),
    )
    for index in range(8)
]
TOPICS = [
    Target("broker", None, "plain"),
    Target("broker", None, "gathered", gathers=True, label="a"),
    Target("broker", None, "gathered", gathers=True, label="b"),
]

odd_values = st.sampled_from([math.nan, math.inf, -0.0, 10**400, "a", "", None])
values = st.one_of(st.sampled_from([0, 1, True, False, 1.0, 2.5, 2.6]), odd_values)
plain = st.builds(
    Policy,
    when=st.sampled_from([When.CHANGE] * 3 + [When.SAMPLE]),
    on_bad=st.sampled_from([None, *OnBad]),
    on_uncertain=st.sampled_from(OnUncertain),
)
treated = st.builds(
    Policy,
    when=st.sampled_from(When),
    every_s=st.sampled_from([None, 2.0]),
    min_interval_s=st.sampled_from([0.0, 0.5]),
    linear=st.sampled_from([Linear(), Linear(2, 1)]),
    mapping=st.sampled_from([None, {0: 1, 1: 1, 2.5: 0}]),
    on_bad=st.sampled_from([None, *OnBad]),
    on_uncertain=st.sampled_from(OnUncertain),
    substitute=st.sampled_from([None, 7]),
    max_age_s=st.sampled_from([None, 1.5]),
)
flaws = st.sampled_from([bad(Reason.TIMEOUT), bad(Reason.STALE), uncertain(Reason.OUT_OF_RANGE)])
places = st.integers(0, 5)
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("batch"),
            st.integers(0, 1),
            st.lists(values, min_size=6, max_size=6),
            st.dictionaries(places, flaws, max_size=2),
            st.lists(places, max_size=6),
        ),
        st.tuples(st.just("missed"), st.sampled_from(TARGETS)),
        st.tuples(st.just("offer missed"), st.lists(st.sampled_from(TARGETS), max_size=4)),
        st.tuples(st.just("regroup"), st.integers(0, len(GROUPINGS) - 1)),
        st.tuples(st.just("time"), st.sampled_from([0.1, 0.5, 1.0, 2.0])),
    ),
    max_size=40,
)
routes = st.tuples(
    st.lists(
        st.tuples(st.sampled_from(SOURCES), st.one_of(plain, plain, treated)),
        min_size=len(TARGETS),
        max_size=len(TARGETS),
    ),
    st.lists(
        st.tuples(st.sampled_from(SOURCES), st.sampled_from(TOPICS), st.one_of(plain, treated)), max_size=5
    ),
)


class World:
    """A routing table at work, and what was acquired last."""

    def __init__(self, routes, *, takes_the_long_way):
        to_points, to_topics = routes
        self.edges = [
            Edge(source, target, policy) for (source, policy), target in zip(to_points, TARGETS, strict=True)
        ] + [Edge(*route) for route in to_topics]
        if takes_the_long_way:
            for edge in self.edges:
                edge.is_plain = False
        self.groups = GROUPINGS[0]
        self.router = Router(self.edges, self.groups)
        self.now_s = 0.0

    def take(self, step):
        """Take a step and tell everything that can be seen of it."""
        found = {}
        match step:
            case "batch", number, values, flaws, changed:
                group = self.groups[number % len(self.groups)]
                size = len(group.points)
                flaws = {index: flaw for index, flaw in flaws.items() if index < size}
                changed = [index for index in changed if index < size]
                time_ns = int(self.now_s * 1e9)
                batch = Batch(group, time_ns, self.now_s, tuple(values[:size]), flaws, changed)
                found = self.router.dispatch(batch, self.now_s)
                found = [*found.items(), [bundle.plan.labels for bundle in self.router.gathered(batch)]]
            case "missed", target:
                self.router.missed(target.point)
            case "offer missed", targets:
                points = [target.point for target in targets]
                found = [*self.router.offer_missed(points, self.now_s - 1.0, self.now_s).items()]
            case "regroup", number:
                removed, self.groups = self.groups, GROUPINGS[number]
                if removed is not self.groups:
                    self.router.regroup(removed, self.groups)
            case "time", seconds:
                self.now_s += seconds
                found = [*self.router.expire(self.now_s).items()]
        return repr((found, self.router.next_due_s, [(edge.sent, edge.due_s) for edge in self.edges]))


@settings(max_examples=examples(300), deadline=None)
@given(routes, steps)
def test_deliveries_and_memory_are_the_same_on_both_ways(routes, steps):
    short, long = World(routes, takes_the_long_way=False), World(routes, takes_the_long_way=True)
    for step in steps:
        assert short.take(step) == long.take(step)


def test_only_what_is_not_treated_at_all_takes_the_short_way():
    for name, value in {
        "every_s": 1.0, "deadband": 0.0, "min_interval_s": 0.1, "linear": Linear(2, 0), "mapping": {},
        "substitute": 0, "max_age_s": 1.0,
    }.items():  # fmt: skip
        assert not Policy(**{name: value}).is_plain, name
    assert Policy().is_plain
    assert Policy(when=When.SAMPLE, on_bad=OnBad.SEND).is_plain
    assert Policy(on_uncertain=OnUncertain.HOLD).is_plain  # a good sample is none of its business
    assert not Policy(on_uncertain=OnUncertain.HOLD).is_untreated


# --- the guard

ends = st.one_of(st.none(), st.floats(), st.integers(-3, 3), st.just(2**53 + 1))
points = st.builds(
    Point,
    st.just("panel"),
    st.uuids().map(str),
    st.sampled_from(Kind),
    minimum=ends,
    maximum=ends,
    carries_quality=st.booleans(),
)
anything = st.one_of(values, st.floats(), st.integers(), st.integers(2**1023, 2**1024), st.integers(-3, 3))


def refusal(point, value):
    """The rule in plain words: a finite number that is within the declared range, or a string."""
    if point.kind is Kind.STRING or isinstance(value, str):
        return (point.kind is Kind.STRING) != isinstance(value, str)
    try:
        is_finite = math.isfinite(value)
    except OverflowError:
        is_finite = False
    is_low = point.minimum is not None and value < point.minimum
    return not is_finite or is_low or (point.maximum is not None and value > point.maximum)


@settings(max_examples=examples(500), deadline=None)
@given(points, anything.filter(lambda value: value is not None))
def test_what_is_between_the_ends_is_not_refused_and_nothing_else_is_let_through(point, value):
    assert (point.refusal(value) is not None) == refusal(point, value)
    if not isinstance(value, str) and point.floor <= value <= point.ceiling:
        assert not refusal(point, value)


@pytest.mark.parametrize("value", [sys_max := 1.7976931348623157e308, -sys_max, 0, True])
def test_a_point_without_a_range_takes_every_finite_number(value):
    point = Point("panel", "p", Kind.FLOAT)
    assert point.floor <= value <= point.ceiling
    assert point.refusal(value) is None


class Log(logging.Handler):
    """What was said."""

    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def guarded(point, value, delivered, refused, said):
    """The guard in plain words: return the value that travels on, if any does."""
    delivered[point] = value
    if value is None or not refusal(point, value):
        if value is not None and point in refused:
            refused.discard(point)
            said.append(f"{point.address}: values fit again")
        return [value]
    if point not in refused:
        reason = point.refusal(value)
        said.append(f"{point.address}: value of {SOURCES[0].address} refused, {reason}")
        refused.add(point)
    if not point.carries_quality:
        return []
    delivered[point] = None
    return [None]


EMPTY = Plant("gw", Path(), Path(), {}, {}, {}, {}, {}, {}, [], {}, {})


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(points, min_size=1, max_size=3),
    st.lists(st.lists(st.tuples(st.integers(0, 2), anything), max_size=6), max_size=6),
)
def test_the_guard_lets_through_remembers_and_says_what_it_should(points, rounds):
    gateway = Gateway(EMPTY, keeps=False)
    log, logger = Log(), logging.getLogger("fieldbus")
    delivered, refused, said = {}, set(), []
    before = logger.level
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    try:
        for items in rounds:
            deliveries, expected = [], []
            for number, value in items:
                point = points[number % len(points)]
                quality = Quality.BAD if value is None else Quality.GOOD
                deliveries.append(Delivery(Target("hmi", point), SOURCES[0], Sample(value, quality, None, 5)))
                expected += [(point, sent) for sent in guarded(point, value, delivered, refused, said)]
            deliveries.append(Delivery(TOPICS[0], SOURCES[0], Sample("as it is", Quality.GOOD, None, 5)))
            allowed = gateway._guarded(deliveries)
            assert allowed[-1] is deliveries[-1]
            found = [(item.target.point, item.sample.value) for item in allowed[:-1]]
            assert repr(found) == repr(expected)
            known = {point: sample.value for point, sample in gateway.delivered.items()}
            assert repr(known) == repr(delivered)
    finally:
        logger.removeHandler(log)
        logger.setLevel(before)
    assert log.said == said
