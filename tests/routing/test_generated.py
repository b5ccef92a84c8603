"""Constants, toggles and counters: what comes when, and that a sign of life stops with what it stands for."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.model import Access, Kind, Point, Quality, Sample
from fieldbus.routing.generated import Generated, Generator
from fieldbus.routing.table import Directory, Route, expand

TIED = Point("plc", "speed", Kind.FLOAT)
GOOD = Sample(5.0, Quality.GOOD, None, 1)
UNCERTAIN = Sample(5.0, Quality.UNCERTAIN, "out of range", 1)
BAD = Sample(None, Quality.BAD, "timeout", 1)
TOGGLE = Generated("toggle", 1.0, (0x00FF, 0xFF00), "plc.speed")


def told(batch):
    return None if batch is None else batch.sample(0)[0:3:2]


def at_each(generator, *tied):
    """Ask once a second, and return value and reason of what came."""
    return [told(generator.next(sample, float(second), second)) for second, sample in enumerate(tied, 1)]


def test_a_toggle_has_its_two_values_by_turns():
    assert at_each(Generator(TOGGLE, TIED), GOOD, GOOD, UNCERTAIN) == [
        (255, None),
        (65280, None),
        (255, None),
    ]


def test_a_toggle_stops_while_its_point_is_bad_and_goes_on_alternating():
    found = at_each(Generator(TOGGLE, TIED), GOOD, BAD, BAD, GOOD, BAD, GOOD)
    assert found == [(255, None), (None, "timeout"), None, (65280, None), (None, "timeout"), (255, None)]


def test_before_its_point_has_a_value_a_toggle_has_none():
    waiting = Sample(None, Quality.BAD, "waiting for first value", 0)
    assert at_each(Generator(TOGGLE, TIED), waiting, waiting, BAD, GOOD) == [
        (None, "waiting for first value"), None, (None, "timeout"), (255, None)
    ]  # fmt: skip


def test_a_counter_begins_anew_after_its_highest():
    counter = Generator(Generated("counter", 1.0, range(4)), None)
    assert [value for value, _ in at_each(counter, *[None] * 6)] == [0, 1, 2, 3, 0, 1]
    assert (counter.point.kind, counter.point.range) == (Kind.INT, (0, 3))


def test_a_constant_changes_only_when_it_was_bad():
    constant = Generator(Generated("constant", 1.0, (7,), "plc.speed"), TIED)
    changed = [
        constant.next(sample, float(n), n).changed for n, sample in enumerate((GOOD, GOOD, BAD, GOOD), 1)
    ]
    assert [list(found) for found in changed] == [[0], [], [0], [0]]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((False, True), Kind.BOOL),
        ((0, 1), Kind.INT),
        ((0, 1.5), Kind.FLOAT),
        (("a", "b"), Kind.STRING),
        ((False, 2), Kind.INT),
        (("a", 2), Kind.STRING),
    ],
)
def test_the_kind_of_a_source_is_that_of_its_values(values, kind):
    assert Generator(Generated("toggle", 1.0, values), None).point.kind is kind


def test_a_period_is_kept_and_what_is_due_now_comes_now():
    toggle = Generator(TOGGLE, TIED)
    came = [n for n in range(1000, 2001) if toggle.next(GOOD, n / 100, 0) is not None]
    assert came[:2] == [1000, 1050]  # it was due long before, and soon keeps its rhythm
    assert came[2:] == list(range(1150, 2001, 100))


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.sampled_from([GOOD, BAD, UNCERTAIN])), max_size=60))
def test_whatever_happens_a_toggle_alternates_and_is_never_faster_than_its_period(steps):
    toggle, now_s, sent = Generator(TOGGLE, TIED), 100.0, []
    for step_s, sample in steps:
        now_s += step_s
        batch = toggle.next(sample, now_s, 0)
        if batch is not None:
            assert batch.sample(0).is_bad == sample.is_bad
            if not sample.is_bad:
                sent.append((now_s, batch.values[0]))
    assert [value for _, value in sent] == [(255, 65280)[n % 2] for n in range(len(sent))]
    assert all(after - before >= 0.5 for (before, _), (after, _) in itertools.pairwise(sent))


# --- as the source of a route

LIFE = Point("wallbox", "life", Kind.INT, Access.WRITE, lowest=0, highest=65535)
NAME = Point("wallbox", "name", Kind.STRING, Access.WRITE)
SECRET = Point("wallbox", "pin", Kind.INT, Access.WRITE)


def directory():
    points = {point.address: point for point in (TIED, LIFE, NAME, SECRET)}
    link_of = {"plc": "net", "wallbox": "net"}
    links = frozenset({"net", "broker", "history"})
    return Directory(
        "gw", points, link_of, frozenset({"broker", "history"}), links, {}, frozenset({"history"})
    )


def route(target, generated=TOGGLE):
    return Route(generated.tied or "", target, generated=generated)


def test_equal_sources_are_one_and_those_that_only_compare_equal_are_not():
    place = directory()
    zeros = Generated("toggle", 1.0, (0, 1))
    edges, faults = expand(
        [
            route("wallbox.life"), route("broker:life"), route("broker:zero", zeros),
            route("broker:false", Generated("toggle", 1.0, (False, True))),
        ],
        place,
    )  # fmt: skip
    assert not faults
    assert edges[0].source is edges[1].source
    assert edges[2].source is not edges[3].source
    assert {generator.point for generator in place.generators.values()} == {edge.source for edge in edges}


@pytest.mark.parametrize(
    ("wanted", "key", "words"),
    [
        (route("wallbox.life", Generated("toggle", 1.0, (0, 1), "plc.sped")), "from", "no point 'plc.sped'"),
        (route("wallbox.life", Generated("toggle", 1.0, (0, 1), "wallbox.pin")), "from", "can only be written"),
        (route("broker:life/{point}"), "to", "a toggle has no {point}"),
        (route("wallbox.name"), "from", "`toggle` is int and cannot go into wallbox.name, which is string"),
        (route("wallbox.life", Generated("constant", 1.0, ("abc",))), "from",
         "`constant` is string and cannot go into wallbox.life, which is int"),
        (route("wallbox.life", Generated("counter", 1.0, range(70_000))), "from",
         "`counter` (0 … 69999) may not fit wallbox.life (0 … 65535)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_where_it_stands(wanted, key, words):
    _, [fault] = expand([wanted], directory())
    assert (fault.key, words in fault.message) == (key, True)


def test_the_gateway_can_stand_in_the_topic_of_a_generated_source():
    [edge], faults = expand([route("broker:life/{gateway}")], directory())
    assert (edge.target.topic, faults) == ("life/gw", [])
    [edge], faults = expand([route("history")], directory())
    assert edge.target.topic == "sys.toggle"
