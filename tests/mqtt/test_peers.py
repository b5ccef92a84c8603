"""Other gateways as a link sees them: what their points have, and when they have nothing."""

import json
import math

import pytest

from fieldbus.clock import Clock
from fieldbus.link import Notice
from fieldbus.model import Access, HeldSample, Kind, Point, Quality, Sample
from fieldbus.mqtt.peering import MAX_HOPS, decode_birth, encode_birth, taken_over
from fieldbus.mqtt.peers import Peers, RemoteGateway
from fieldbus.mqtt.records import Item, Stamp, encode_row

COUNT = Point("line", "press.count", Kind.INT, origin="tx/press.count", hops=1)
SPEED = Point("line", "press.speed", Kind.INT, origin="tx/press.speed", hops=1)
NOW_NS = 1_700_000_000_000_000_000


class Bench:
    """The peers of one link, and what they say."""

    def __init__(self):
        points = {"press.count": COUNT, "press.speed": SPEED}
        self.peers = Peers(
            "me", "me", [RemoteGateway("line", "tx", points)], {"peer_faults": 0, "peer_out_of_order": 0}
        )
        self.now_s, self.wall_ns = 100.0, NOW_NS
        self.peers._clock = Clock(lambda: self.now_s, lambda: self.wall_ns)
        self.emitted = []
        self.batches = []
        self.reports = []

    def emit(self, batch):
        self.batches.append(batch)
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

    def live(self, name, value, *, time_ns=NOW_NS, stamp=None, kind=Sample):
        head = (f"press.{name}", f"tx/press.{name}", 0)
        row = encode_row([Item(head, kind(value, Quality.GOOD, None, time_ns))], stamp)
        self.hear("live/me", row)

    def counts(self, *messages, boot="a"):
        """Hear live messages, each a number and a value; return the values that were emitted."""
        for number, value in messages:
            self.live("count", value, stamp=Stamp(boot, number, self.wall_ns))
        return [value for _, value, _ in self.said()]


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


# --- clocks and order

HOUR_NS = 3600 * 10**9


@pytest.fixture
def online(bench):
    bench.status("online", keepalive=30)
    bench.said()
    return bench


@pytest.mark.parametrize("shift_s", [-86400 * 400, -3600, -3, 0, 3])
async def test_a_live_sample_is_as_old_as_its_arrival_says(online, shift_s):
    online.live("count", 5, time_ns=NOW_NS + shift_s * 10**9)
    batch = online.batches[-1]
    assert (batch.at_s, batch.heard_s) == (100.0, 100.0)
    assert batch.sample(0) == Sample(5, Quality.GOOD, None, NOW_NS + shift_s * 10**9)


async def test_a_clock_that_is_set_back_freezes_nothing(online):
    values = []
    for step, ahead_ns in enumerate((0, -HOUR_NS, -HOUR_NS, 0, -24 * HOUR_NS, 9 * 10**9, 0)):
        online.live("count", step, time_ns=NOW_NS + ahead_ns + step)
        values.append(online.batches[-1].sample(0)[:3])
    assert values == [(step, Quality.GOOD, None) for step in range(7)]


async def test_one_sample_dated_2200_freezes_nothing(online):
    online.live("count", 1, time_ns=7_258_118_400 * 10**9)
    assert online.batches[-1].sample(0) == Sample(1, Quality.UNCERTAIN, "clock", NOW_NS)
    online.live("count", 2)
    assert online.batches[-1].sample(0) == Sample(2, Quality.GOOD, None, NOW_NS)


async def test_messages_count_by_their_numbers(online):
    assert online.counts((1, 10), (2, 20), (1, 10), (4, 40), (3, 30), (4, 40), (5, 50)) == [10, 20, 40, 50]
    assert online.peers._counters["peer_out_of_order"] == 3


async def test_a_sender_that_begins_anew_is_followed_and_its_past_is_not(online):
    assert online.counts((7, 10), (8, 20)) == [10, 20]
    assert online.counts((1, 30), (2, 40), boot="b") == [30, 40]
    assert online.counts((9, 50)) == []
    assert online.counts((3, 60), boot="b") == [60]


async def test_a_sender_without_numbers_counts_as_it_arrives(online):
    for value in (3, 1, 2):
        online.live("count", value, time_ns=NOW_NS - value)
    assert [value for _, value, _ in online.said()] == [3, 1, 2]


async def test_after_a_gateway_was_gone_another_of_its_name_is_followed(online):
    assert online.counts((7, 10)) == [10]
    assert online.counts((1, 20), boot="b") == [20]
    online.status("offline")
    online.status("online", keepalive=30)
    online.said()
    assert online.counts((1, 20), boot="b") == []
    assert online.counts((8, 30)) == [30]


async def test_what_comes_again_is_no_sign_of_life(online):
    assert online.counts((1, 10)) == [10]
    for _ in range(50):
        online.now_s += 1
        online.counts((1, 10))
        online.peers._look("broker")
    assert online.batches[-1].sample(0).reason == "not connected"


async def test_what_a_peer_says_is_held_or_the_broker_kept_shows_no_life(online):
    online.live("count", 5, kind=HeldSample, time_ns=NOW_NS - 2 * 10**9)
    batch = online.batches[-1]
    assert (batch.at_s, batch.heard_s, batch.sample(0).is_held) == (98.0, -math.inf, True)
    row = encode_row([Item(("press.count", "tx/press.count", 0), Sample(6, Quality.GOOD, None, NOW_NS))])
    online.peers.take("broker", "fieldbus/tx/live/me", row, is_retained=True, signature=None, reply=None)
    assert online.batches[-1].sample(0) == Sample(6, Quality.GOOD, None, NOW_NS)
    assert online.batches[-1].heard_s == -math.inf


async def test_the_offset_of_a_clock_is_that_of_the_least_delayed_message(online):
    assert online.peers.offsets_ms == {}
    for number, delay_ms in enumerate((80, 5, 300), 1):
        sent_ns = online.wall_ns - HOUR_NS
        online.now_s += delay_ms / 1000
        online.wall_ns += delay_ms * 10**6
        online.live("count", number, stamp=Stamp("a", number, sent_ns))
    assert online.peers.offsets_ms == {"line": -3_600_005.0}
    for number in range(4, 70):
        online.now_s += 1.0
        online.wall_ns += 10**9
        online.live("count", number, stamp=Stamp("a", number, online.wall_ns + 2 * 10**9))
    assert online.peers.offsets_ms == {"line": 2000.0}
    online.status("offline")
    assert online.peers.offsets_ms == {}


async def test_a_clock_that_is_wrong_is_said_once_and_when_it_is_right_again(online):
    def said():
        found = [report.text for report in online.reports if isinstance(report, Notice)]
        online.reports.clear()
        return found

    number = 0
    for ahead_s, text in (
        (9, []), (-11, []), (-11, ["gateway tx: its clock is 11 s behind ours; set one of them"]),
        (3600, []),
        (0, []), (0, ["gateway tx: its clock agrees with ours again"]),
    ):  # fmt: skip
        for _ in range(35):
            number += 1
            online.now_s += 1.0
            online.wall_ns += 10**9
            online.live("count", number, stamp=Stamp("a", number, online.wall_ns + ahead_s * 10**9))
            online.peers._look("broker")
        assert said() == text
