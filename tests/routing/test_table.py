"""Expanding routes, and what is refused at load."""

from dataclasses import replace

import pytest

from fieldbus.model import Access, Kind, Point
from fieldbus.routing.policy import OnBad, Policy
from fieldbus.routing.table import Directory, Route, expand
from fieldbus.scaling import Linear

READ, WRITE, BOTH = Access.READ, Access.WRITE, Access.READWRITE


def directory(*points, topics=()):
    """A plant with a link per device; `broker` has topics."""
    devices = {point.device for point in points}
    return Directory(
        gateway="gw",
        points={point.address: point for point in points},
        link_of={device: f"link_{device}" if device != "remote" else "broker" for device in devices},
        brokers=frozenset({"broker"}),
        links=frozenset({"broker", *(f"link_{device}" for device in devices)}),
        subscriptions={("broker", topic): [point] for topic, point in topics},
    )


def point(address, kind=Kind.FLOAT, access=READ, **more):
    device, name = address.split(".", 1)
    return Point(device, name, kind, access, **more)


PLANT = directory(
    point("plc.temp", minimum=0, maximum=100),
    point("plc.count", Kind.INT, lowest=0, highest=65535),
    point("plc.name", Kind.STRING),
    point("plc.set", access=BOTH),
    point("plc.only_write", access=WRITE),
    point("plc.start", Kind.BOOL, BOTH),
    point("eng.Status.Speed", access=BOTH),
    point("eng.Status.Byte", Kind.INT, BOTH, lowest=0, highest=255),
    point("sys.plc.online", Kind.BOOL),
)


def faults(*routes, plant=PLANT):
    return expand(routes, plant)[1]


def edges(*routes, plant=PLANT):
    found, wrong = expand(routes, plant)
    assert [fault for fault in wrong if not fault.is_warning] == []
    return [(edge.source.address, edge.target.address) for edge in found]


def test_a_pattern_reaches_every_readable_point_of_its_device():
    assert [source for source, _ in edges(Route("plc.*", "broker:t/{point}"))] == [
        "plc.temp", "plc.count", "plc.name", "plc.set", "plc.start",
    ]  # fmt: skip


def test_fields_of_a_target_are_filled_in():
    assert edges(Route("eng.Status.Speed", "broker:{gateway}/{device}/{message}/{signal}")) == [
        ("eng.Status.Speed", "broker:gw/eng/Status/Speed")
    ]


def test_a_topic_without_point_gathers_under_the_points_names():
    found, _ = expand([Route("plc.*", "broker:plant/{device}")], PLANT)
    assert all(edge.target.gathers for edge in found)
    assert found[0].target.label == "temp"


def test_a_topic_that_gathers_several_devices_names_them():
    found, _ = expand([Route("*.*", "broker:plant")], PLANT)
    assert "eng.Status.Speed" in {edge.target.label for edge in found}


def test_a_topic_with_signal_does_not_gather():
    found, _ = expand([Route("eng.Status.*", "broker:{signal}")], PLANT)
    assert not any(edge.target.gathers for edge in found)


def test_system_points_are_only_matched_when_they_are_meant():
    assert not any("sys" in source for source, _ in edges(Route("*", "broker:t/{device}/{point}")))
    assert edges(Route("sys.*.online", "broker:t/{point}")) == [("sys.plc.online", "broker:t/plc.online")]


@pytest.mark.parametrize(
    ("route", "key", "words"),
    [
        (Route("plc.tmp", "plc.set"), "from", "there is no point 'plc.tmp'"),
        (Route("pcl.*", "broker:x"), "from", "no readable point matches"),
        (Route("plc.only_write", "broker:x"), "from", "can only be written"),
        (Route("plc.temp", "plc.count"), "to", "is not writable"),
        (Route("plc.temp", "plc.sett"), "to", "there is no point 'plc.sett'"),
        (Route("plc.temp", "broker/x"), "to", "there is no point"),
        (Route("plc.temp", "nobody:x"), "to", "there is no link 'nobody'"),
        (Route("plc.temp", "link_plc:x"), "to", "it is not a broker"),
        (Route("plc.temp", "broker:"), "to", "is not a topic"),
        (Route("plc.temp", "broker:a/#"), "to", "is not a topic"),
        (Route("plc.temp", "broker:a/\x07b"), "to", "is not a topic"),
        (Route("plc.temp", "broker:a/{point"), "to", "has no counterpart"),
        (Route("plc.temp", "broker:{signal}"), "to", "has no {signal}"),
        (Route("plc.temp", "broker:{pont}"), "to", "unknown field {pont}"),
        (Route("plc.name", "plc.set"), "to", "is string and cannot go into"),
        (Route("plc.name", "broker:x", Policy(linear=Linear(2))), "scale", "is text"),
        (Route("plc.name", "broker:x", Policy(deadband=1.0)), "deadband", "is not a number"),
        (Route("plc.count", "broker:x", deadband_percent=1.0), "deadband", "needs a range"),
        (Route("plc.temp", "plc.set", Policy(on_bad=OnBad.SEND)), "on_bad", "cannot be told"),
        (Route("plc.temp", "plc.set", Policy(substitute="x")), "on_bad", "cannot go into"),
        (Route("plc.set", "plc.set"), "to", "is routed to itself"),
    ],
)
def test_a_route_that_cannot_work_is_refused_where_it_is_wrong(route, key, words):
    found = faults(route)
    assert [fault.key for fault in found] == [key]
    assert words in found[0].message
    assert not found[0].is_warning


def test_the_hint_names_what_was_meant():
    assert faults(Route("plc.tmp", "plc.set"))[0].hint == "did you mean 'plc.temp'?"
    assert "LINK:TOPIC" in faults(Route("plc.temp", "broker/x"))[0].hint


def test_two_routes_that_write_one_point_are_refused():
    found = faults(Route("plc.temp", "plc.set"), Route("plc.count", "plc.set"))
    assert [(fault.route, fault.key) for fault in found if not fault.is_warning] == [(1, "to")]
    assert "written by route 0 already" in found[-1].message


def test_a_circle_is_refused_and_shown():
    found = faults(Route("plc.set", "eng.Status.Speed"), Route("eng.Status.Speed", "plc.set"))
    text = [fault.message for fault in found if not fault.is_warning]
    assert len(text) == 1
    assert "plc.set → eng.Status.Speed → plc.set" in text[0]


def test_a_circle_by_way_of_a_topic_is_refused():
    remote = point("remote.x")
    plant = directory(point("plc.set", access=BOTH), remote, topics=[("t/x", remote)])
    found = expand([Route("plc.set", "broker:t/x"), Route("remote.x", "plc.set")], plant)[1]
    assert "closes a circle" in found[0].message


def test_a_chain_of_a_thousand_routes_is_no_circle():
    points = [point(f"d.p{index}", access=BOTH) for index in range(1001)]
    routes = [Route(f"d.p{index}", f"d.p{index + 1}") for index in range(1000)]
    assert expand(routes, directory(*points))[1] == []


def test_a_range_that_may_not_fit_is_a_warning():
    found = faults(Route("plc.count", "eng.Status.Byte"))
    assert [fault.is_warning for fault in found] == [True]
    assert "0 … 65535" in found[0].message
    assert "0 … 255" in found[0].message


def test_a_range_that_fits_after_scaling_is_no_warning():
    assert faults(Route("plc.temp", "eng.Status.Byte", Policy(linear=Linear(2)))) == []


def test_what_we_send_ourselves_is_no_source():
    a, b = point("eng.Cmd.A", access=BOTH), point("eng.Cmd.B", access=BOTH)
    heard = point("eng.Status.S", access=BOTH)
    frames = {a: "Cmd", b: "Cmd", heard: "Status"}
    plant = replace(directory(a, b, heard, point("plc.x")), frame_of=frames)
    write, everything = Route("plc.x", "eng.Cmd.A"), Route("eng.*", "broker:{point}")
    found, wrong = expand([write, everything], plant)
    assert [edge.source.address for edge in found] == ["plc.x", "eng.Status.S"]
    assert wrong == []
    assert "we send its message" in expand([write, Route("eng.Cmd.B", "broker:x")], plant)[1][0].message


def test_a_map_from_labels_works_on_their_numbers():
    plant = directory(
        point("plc.mode", Kind.INT, labels={0: "stop", 1: "run"}),
        point("eng.State", Kind.INT, BOTH, labels={4: "halted", 5: "moving"}),
    )
    route = Route("plc.mode", "eng.State", Policy(mapping={"stop": "halted", "run": "moving"}))
    found, wrong = expand([route], plant)
    assert wrong == []
    assert found[0].policy.mapping == {0: 4, 1: 5}


def test_a_map_lets_text_into_a_number():
    route = Route("plc.name", "plc.set", Policy(mapping={"low": 1, "high": 2}))
    assert [fault for fault in faults(route) if not fault.is_warning] == []


def test_a_percentage_is_of_the_range():
    found, _ = expand([Route("plc.temp", "broker:x", deadband_percent=5.0)], PLANT)
    assert found[0].policy.deadband == pytest.approx(5.0)
