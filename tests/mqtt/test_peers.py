"""Other gateways as a link sees them: what their points have, and when they have nothing."""

import json

import pytest

from fieldbus.model import Access, Kind, Point, Quality, Sample
from fieldbus.mqtt.peering import MAX_HOPS, decode_birth, encode_birth, taken_over
from fieldbus.mqtt.peers import Peers, RemoteGateway
from fieldbus.mqtt.records import Item, encode_row

COUNT = Point("line", "press.count", Kind.INT, origin="tx/press.count", hops=1)
SPEED = Point("line", "press.speed", Kind.INT, origin="tx/press.speed", hops=1)
NOW_NS = 1_700_000_000_000_000_000


class Bench:
    """The peers of one link, and what they say."""

    def __init__(self):
        points = {"press.count": COUNT, "press.speed": SPEED}
        self.peers = Peers("me", "me", [RemoteGateway("line", "tx", points)], {"peer_faults": 0})
        self.emitted = []
        self.reports = []

    def emit(self, batch):
        sample = batch.sample(0)
        self.emitted.append((batch.group.points[0].name, sample.value, sample.reason))

    def said(self):
        """Return what was said since this was asked last."""
        found, self.emitted = self.emitted, []
        return found

    def hear(self, kind, payload):
        self.peers.take(
            "broker", f"fieldbus/tx/{kind}", payload, is_retained=False, signature=None, reply=None
        )

    def status(self, status, **more):
        self.hear("status", json.dumps({"status": status, **more}).encode())

    def live(self, name, value):
        head = (f"press.{name}", f"tx/press.{name}", 0)
        row = encode_row([Item(head, Sample(value, Quality.GOOD, None, NOW_NS))])
        self.hear("live/me", row)


@pytest.fixture
async def bench():
    subject = Bench()
    subject.peers.start("broker", subject.emit, subject.reports.append)
    yield subject
    subject.peers.stop()


def nothing(reason):
    return [("press.count", None, reason), ("press.speed", None, reason)]


async def test_why_a_point_of_another_gateway_has_no_value_is_what_is_so_now(bench):
    bench.status("offline")
    assert bench.said() == nothing("not connected")
    bench.status("online")
    assert bench.said() == nothing("waiting for first value")
    bench.live("count", 5)
    bench.status("online")
    assert bench.said() == [("press.count", 5, None)]
    bench.status("offline")
    assert bench.said() == nothing("not connected")
    assert [(report.device, report.is_online) for report in bench.reports] == [
        ("line", False), ("line", True), ("line", False)
    ]  # fmt: skip


async def test_a_point_that_nobody_wants_any_more_does_not_keep_its_last_value(bench):
    bench.status("online")
    bench.live("count", 5)
    bench.live("speed", 6)
    bench.said()
    bench.peers.forget_unwanted("tx", {"press.speed"})
    assert bench.said() == [("press.count", None, "waiting for first value")]
    bench.peers.forget_unwanted("tx", {"press.speed"})
    assert bench.said() == []
    bench.live("count", 7)
    assert bench.said() == [("press.count", 7, None)]


def test_a_point_of_another_gateway_is_what_it_is_there_and_no_point_goes_on_without_end():
    there = [
        Point(
            "press", "speed", Kind.INT, Access.READWRITE, "rpm", 0, 3000, 0, 65535, {0: "off"}, "of the press"
        ),
        Point("line", "far.count", Kind.INT, origin="third/far.count", hops=MAX_HOPS - 1),
        Point("line", "farther.count", Kind.INT, origin="ninth/farther.count", hops=MAX_HOPS),
        Point("line", "mine.count", Kind.INT, origin="me/mine.count", hops=1),
    ]
    birth = decode_birth(encode_birth("tx", "1", there, NOW_NS), "tx")
    found = taken_over(birth, "line", "me")
    assert list(found) == ["press.speed", "line.far.count"]
    speed, far = found.values()
    assert speed.address == "line.press.speed"
    assert (speed.kind, speed.access, speed.unit, speed.labels) == (
        Kind.INT,
        Access.READWRITE,
        "rpm",
        {0: "off"},
    )
    assert (speed.minimum, speed.maximum, speed.description) == (0, 3000, "of the press")
    assert (speed.origin, speed.hops) == ("tx/press.speed", 1)
    assert (far.origin, far.hops) == ("third/far.count", MAX_HOPS)
