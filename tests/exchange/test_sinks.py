"""The sinks: what they keep, what goes out at once, and what becomes of a row on the way to a broker."""

import asyncio
import json

import pytest
from conftest import eventually

from fieldbus.clock import Clock
from fieldbus.durable.spool import Row, Spool
from fieldbus.gateway.exchange import sinks, topic_sink
from fieldbus.gateway.exchange.pumps import Pumps
from fieldbus.gateway.exchange.sinks import LiveSink, PeerSink
from fieldbus.gateway.exchange.topic_sink import TopicSink
from fieldbus.link import Delivery, Target
from fieldbus.model import HeldSample, Kind, Point, Quality, Sample
from fieldbus.mqtt.records import decode_chunk, decode_live, decode_row, encode_row

POINT = Point("press", "count", Kind.INT, unit="pcs", labels={3: "three"})
FAR = Point("line", "press.count", Kind.INT, origin="tx/press.count", hops=2)
NOW_NS = 10**18


class FakeLink:
    """A broker that says done when the test wants."""

    def __init__(self):
        self.is_sending = True
        self.published = []
        self.live = []
        self.dones = []
        self.room = 10**6

    def room_for(self, topic):
        return self.room

    def publish(self, topic, payload, done, *, is_retained=False, expiry_s=None):
        self.published.append((topic, payload))
        self.dones.append(done)

    def send(self, deliveries):
        self.live += deliveries
        return ()


def delivery(value, time_ns=NOW_NS, *, point=POINT, topic="t", gathers=False, label="count", reason=None):
    quality = Quality.GOOD if reason is None else Quality.BAD
    return Delivery(Target("x", None, topic, gathers, label), point, Sample(value, quality, reason, time_ns))


@pytest.fixture
async def spool(tmp_path):
    subject = Spool(tmp_path / "spool.db", group_commit_s=0.005)
    subject.open()
    yield subject
    subject.close()


def sink_of(spool):
    link = FakeLink()
    return link, TopicSink(link, link, "broker topics", spool, Pumps())


def row_of(sink, deliveries):
    data = encode_row([topic_sink._topic_item(item) for item in deliveries])
    return Row(1, len(deliveries), 0, NOW_NS, data)


async def test_a_row_becomes_the_messages_that_its_routes_would_have_sent(spool):
    link, sink = sink_of(spool)
    done = []
    row = row_of(sink, [delivery(3), delivery(None, NOW_NS + 1, topic="u", reason="timeout")])
    sink.carry(row, done.append, is_historical=False)
    sink.carry(row, done.append, is_historical=True)
    found = [(topic, json.loads(payload)) for topic, payload in link.published]
    assert [topic for topic, _ in found] == ["t", "u", "t", "u"]
    assert found[0][1] == {
        "value": 3, "label": "three", "unit": "pcs", "quality": "good", "reason": None,
        "time": "2001-09-09T01:46:40Z",
    } | {key: found[0][1][key] for key in ("label", "time")}  # fmt: skip
    assert (found[1][1]["value"], found[1][1]["reason"]) == (None, "timeout")
    assert [data.get("historical") for _, data in found] == [None, None, True, True]


async def test_a_row_is_done_when_its_last_message_is_and_not_done_if_one_was_not(spool):
    link, sink = sink_of(spool)
    done = []
    sink.carry(row_of(sink, [delivery(1), delivery(2)]), done.append, is_historical=False)
    link.dones[1](True)
    assert done == []
    link.dones[0](True)
    assert done == [True]
    another = row_of(sink, [delivery(1), delivery(2)])._replace(first=3)
    sink.carry(another, done.append, is_historical=False)
    link.dones[2](False)
    link.dones[3](True)
    assert done == [True, False]


async def test_what_gathers_is_one_message_for_each_moment(spool):
    link, sink = sink_of(spool)
    some = [delivery(n, NOW_NS + n // 2, gathers=True, label=f"p{n % 2}") for n in range(4)]
    sink.carry(row_of(sink, some), lambda _: None, is_historical=True)
    found = [json.loads(payload) for _, payload in link.published]
    assert [data["values"] for data in found] == [{"p0": 0, "p1": 1}, {"p0": 2, "p1": 3}]
    assert all(data["historical"] for data in found)


async def test_a_row_that_cannot_be_read_costs_that_row_and_not_the_stream(spool):
    link, sink = sink_of(spool)
    done = []
    sink.carry(Row(1, 1, 0, NOW_NS, b"\xff rubbish"), done.append, is_historical=False)
    assert done == [True]
    assert link.published == []


async def test_while_a_backlog_drains_what_is_new_goes_out_at_once_and_stays_in_the_spool(spool):
    link, sink = sink_of(spool)
    sink.pump.is_behind = True
    sink.send([delivery(1)])
    assert [item.sample.value for item in link.live] == [1]
    sink.pump.is_behind = False
    sink.send([delivery(2)])
    link.is_sending = False
    sink.pump.is_behind = True
    sink.send([delivery(3)])
    assert [item.sample.value for item in link.live] == [1]
    stream = spool.streams["broker topics"]
    await eventually(lambda: stream.committed == 3)
    [row] = await stream.rows_after(0)
    assert [item.sample.value for item in decode_row(row.data)] == [1, 2, 3]


async def test_a_chunk_has_its_place_its_origin_and_its_hops(spool):
    link = FakeLink()
    stream = spool.stream("broker data rx", encode_row)
    sink = PeerSink(link, "me", "rx", stream, lambda: True)
    sink.send([delivery(1), delivery(2, point=FAR)])
    await eventually(lambda: stream.committed == 2)
    [row] = await stream.rows_after(0)
    sink.carry(row, lambda _: None, is_historical=True)
    [(topic, payload)] = link.published
    assert topic == "fieldbus/me/data/rx"
    place, items = decode_chunk(payload)
    assert place == ("me", spool.boot, "broker data rx", 1, 2, 0, 0, True, 0)
    assert [item.head for item in items] == [
        ("press.count", "me/press.count", 0),
        ("line.press.count", "tx/press.count", 2),
    ]


@pytest.mark.parametrize(("is_sending", "is_online"), [(True, True), (True, False), (False, True)])
async def test_a_peer_gets_chunks_only_while_it_is_there(spool, is_sending, is_online):
    link = FakeLink()
    link.is_sending = is_sending
    sink = PeerSink(link, "me", "rx", spool.stream("s", encode_row), lambda: is_online)
    assert sink.is_ready == (is_sending and is_online)


async def test_live_samples_of_one_turn_travel_together(spool):
    link = FakeLink()
    sink = LiveSink(link, "me", "rx")
    sink.send([delivery(1)])
    sink.send([delivery(2)])
    await asyncio.sleep(0)
    [(topic, payload)] = link.published
    assert topic == "fieldbus/me/live/rx"
    assert [item.sample.value for item in decode_row(payload)] == [1, 2]


async def test_live_messages_have_numbers_in_their_order_and_when_they_were_sent():
    link = FakeLink()
    clock = Clock(wall_ns=lambda: NOW_NS)
    sink, other = LiveSink(link, "me", "rx", clock=clock), LiveSink(link, "me", "rx", clock=clock)
    for taker in (sink, sink, other):
        taker.send([delivery(1)])
        await asyncio.sleep(0)
    sink.beat(1e9, 1.0)
    stamps = [decode_live(payload)[0] for _, payload in link.published]
    assert [stamp.number for stamp in stamps] == [1, 2, 1, 3]
    assert stamps[0].boot == stamps[1].boot != stamps[2].boot
    assert {stamp.time_ns for stamp in stamps} == {NOW_NS}


async def test_what_had_to_wait_for_the_broker_is_no_sign_of_life():
    now_s = [0.0]
    link = FakeLink()
    sink = LiveSink(link, "me", "rx", clock=Clock(lambda: now_s[0]))
    for n in range(sinks._LIVE_UNDER_WAY):
        sink.send([delivery(n)])
        await asyncio.sleep(0)
    sink.send([delivery(1000)])
    now_s[0] = 0.9
    sink.send([delivery(-1, point=FAR)])
    now_s[0] = 1.5
    link.dones[0](True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    found = [(item.sample.value, item.sample.is_held) for item in decode_row(link.published[-1][1])]
    assert found == [(1000, True), (-1, False)]


async def test_a_sample_that_came_to_us_held_is_historical_on_a_topic(spool):
    link, sink = sink_of(spool)
    held = delivery(3)._replace(sample=HeldSample(3, Quality.GOOD, None, NOW_NS))
    gathered = [delivery(n, gathers=True, label=str(n), topic="all") for n in (1, 2)]
    both = [item._replace(sample=HeldSample(*item.sample)) for item in gathered]
    sink.carry(row_of(sink, [held, delivery(4)]), lambda _: None, is_historical=False)
    sink.carry(row_of(sink, [both[0], gathered[1]]), lambda _: None, is_historical=False)
    sink.carry(row_of(sink, both), lambda _: None, is_historical=False)
    found = [json.loads(payload).get("historical") for _, payload in link.published]
    assert found == [True, None, None, True]


async def test_if_the_broker_does_not_keep_up_the_newest_of_each_point_goes_and_the_rest_is_counted():
    link = FakeLink()
    sink = LiveSink(link, "me", "rx")
    for n in range(sinks._LIVE_UNDER_WAY):
        sink.send([delivery(n)])
        await asyncio.sleep(0)
    for n in range(1000, 1010):
        sink.send([delivery(n), delivery(-n, point=FAR)])
        await asyncio.sleep(0)
    assert len(link.published) == sinks._LIVE_UNDER_WAY
    assert sink.conflated == 18
    link.dones[0](True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [item.sample.value for item in decode_row(link.published[-1][1])] == [1009, -1009]


async def test_what_is_live_while_nobody_is_there_is_not_kept():
    link = FakeLink()
    link.is_sending = False
    sink = LiveSink(link, "me", "rx")
    sink.send([delivery(1)])
    await asyncio.sleep(0)
    link.is_sending = True
    sink.send([delivery(2)])
    await asyncio.sleep(0)
    [(_, payload)] = link.published
    assert [item.sample.value for item in decode_row(payload)] == [2]
