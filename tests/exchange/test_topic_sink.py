"""The sink of a broker's topics: what the broker does not allow stays, holds nothing up, and goes out later."""

import asyncio
import json

import pytest
from conftest import eventually

from fieldbus.clock import Clock
from fieldbus.durable.spool import Spool
from fieldbus.gateway.exchange import topic_sink as module
from fieldbus.gateway.exchange.pumps import Pumps
from fieldbus.gateway.exchange.topic_sink import TopicSink
from fieldbus.link import Delivery, Handover, Target
from fieldbus.model import Kind, Point, Quality, Sample

POINT = Point("press", "count", Kind.INT)
NOW_NS = 10**18


class Broker:
    """Takes what it allows, and keeps it."""

    def __init__(self):
        self.is_sending = True
        self.forbidden = set()
        self.unfit = set()
        self.is_lossy = False
        self.delay_s = 0.0
        self.got = {}
        self.refused = 0

    def publish(self, topic, payload, done, *, is_retained=False, expiry_s=None):
        fate = self.fate(topic, json.loads(payload)["value"])
        asyncio.get_running_loop().call_later(self.delay_s, done, fate)

    def fate(self, topic, value):
        if self.is_lossy and value % 3 == 0:
            return Handover.GIVEN_BACK
        if topic in self.unfit:
            return Handover.UNFIT
        if topic in self.forbidden:
            self.refused += 1
            return Handover.FORBIDDEN
        self.got.setdefault(topic, []).append(value)
        return Handover.TAKEN

    def send(self, deliveries):
        return ()


class Bench:
    def __init__(self, folder):
        self.path = folder / "spool.db"
        self.broker = Broker()
        self.said = []
        self.skipped_s = 0.0
        loop = asyncio.get_running_loop()
        self.clock = Clock(wall_ns=lambda: NOW_NS, monotonic_s=lambda: loop.time() + self.skipped_s)
        self.open()

    def open(self):
        self.pumps = Pumps()
        self.spool = Spool(self.path, group_commit_s=0.005, say=lambda *said: self.said.append(said))
        self.spool.open()
        self.sink = TopicSink(
            self.broker, self.broker, "broker topics", self.spool, self.pumps, clock=self.clock
        )
        self.sink.start()

    async def close(self):
        await self.pumps.stop_all()
        self.spool.close()

    async def restart(self):
        await self.close()
        self.open()

    def send(self, values, *topics):
        self.sink.send(
            [
                Delivery(Target("x", None, topic), POINT, Sample(value, Quality.GOOD, None, NOW_NS))
                for value in values
                for topic in topics
            ]
        )

    @property
    def backlogs(self):
        return {name: stream.backlog for name, stream in self.spool.streams.items() if stream.backlog}

    def pass_time(self, seconds):
        self.skipped_s += seconds
        for pump in self.pumps:
            pump.wake()

    async def settled(self):
        await eventually(lambda: not self.backlogs, 5.0, "nothing waits any more")


@pytest.fixture
async def bench(tmp_path):
    subject = Bench(tmp_path)
    yield subject
    await subject.close()


@pytest.mark.parametrize("delay_s", [0.0, 0.01])
async def test_a_topic_that_is_not_allowed_keeps_its_samples_and_holds_no_other_up(bench, delay_s):
    bench.broker.delay_s = delay_s
    bench.broker.forbidden = {"a"}
    for start in range(0, 3000, 100):
        bench.send(range(start, start + 100), "a", "b")
    await eventually(lambda: bench.backlogs == {"broker topic a": 3000}, 5.0, "what is for b has gone out")
    assert bench.broker.got == {"b": list(range(3000))}
    bench.broker.forbidden = set()
    bench.pass_time(module.RETRY_S)
    await bench.settled()
    assert bench.broker.got == {"a": list(range(3000)), "b": list(range(3000))}
    assert all(stream.dropped == 0 for stream in bench.spool.streams.values())


async def test_what_is_new_waits_behind_what_was_not_allowed_also_after_a_restart(bench):
    bench.broker.forbidden = {"a"}
    bench.send(range(10), "a")
    await eventually(lambda: bench.backlogs == {"broker topic a": 10})
    await bench.restart()
    bench.send(range(10, 20), "a", "b")
    await eventually(lambda: bench.backlogs == {"broker topic a": 20})
    bench.broker.forbidden = set()
    bench.sink.begin_again()  # a new connection: the list may be another one
    bench.pass_time(0)
    await bench.settled()
    assert bench.broker.got == {"a": list(range(20)), "b": list(range(10, 20))}


async def test_a_topic_that_is_allowed_again_goes_with_the_others(bench):
    bench.broker.forbidden = {"a"}
    bench.send([1], "a")
    await eventually(lambda: bench.backlogs == {"broker topic a": 1})
    bench.broker.forbidden = set()
    bench.pass_time(module.RETRY_S)
    await bench.settled()
    bench.send([2], "a")
    await bench.settled()
    assert bench.broker.got == {"a": [1, 2]}
    assert list(bench.spool.streams) == ["broker topics"]


async def test_while_it_is_not_allowed_one_message_is_tried_now_and_then(bench):
    bench.broker.forbidden = {"a"}
    bench.send(range(1000), "a")
    await eventually(lambda: bench.backlogs == {"broker topic a": 1000})
    refused = bench.broker.refused
    for count in range(1, 4):
        bench.pass_time(module.RETRY_S / 2)
        await asyncio.sleep(0.02)
        bench.pass_time(module.RETRY_S / 2)
        await eventually(lambda count=count: bench.broker.refused == refused + count)
        await asyncio.sleep(0.02)
        assert bench.broker.refused == refused + count


async def test_of_very_many_topics_that_are_not_allowed_all_wait_and_none_is_lost_or_doubled(
    bench, monkeypatch
):
    monkeypatch.setattr(module, "MAX_WITHHELD", 3)
    topics = ["a", "b", "c", "d"]
    bench.broker.forbidden = set(topics)
    bench.send(range(5), *topics, "good")
    await eventually(lambda: bench.broker.got == {"good": list(range(5))})
    bench.send(range(5, 9), *topics, "good")
    await asyncio.sleep(0.05)
    bench.broker.forbidden = set()
    bench.pass_time(module.RETRY_S)
    await bench.settled()
    assert bench.broker.got == {topic: list(range(9)) for topic in [*topics, "good"]}


async def test_what_was_given_back_is_sent_again_without_what_the_broker_has(bench):
    bench.broker.is_lossy = True
    bench.send(range(100), "a")
    await eventually(lambda: len(bench.broker.got.get("a", ())) == 66)
    bench.broker.is_lossy = False
    await bench.settled()
    assert sorted(bench.broker.got["a"]) == list(range(100))


async def test_what_no_broker_ever_takes_is_counted_and_said(bench):
    bench.broker.unfit = {"a"}
    bench.send(range(7), "a", "b")
    await bench.settled()
    assert bench.broker.got == {"b": list(range(7))}
    assert bench.spool.streams["broker topics"].dropped == 7
    assert bench.said == [
        ("stream broker topics: 7 samples dropped, up to number 14 (the broker never takes them on a)", True)
    ]


async def test_a_topic_that_is_released_while_a_row_is_under_way_is_withheld_again_for_it(bench):
    bench.broker.forbidden = {"a"}
    bench.send([1], "a")
    await eventually(lambda: bench.backlogs == {"broker topic a": 1})
    bench.broker.delay_s = 0.3
    bench.sink._publishing.stream.append(
        [
            module._topic_item(
                Delivery(Target("x", None, topic), POINT, Sample(2, Quality.GOOD, None, NOW_NS))
            )
            for topic in ("a", "b")
        ]
    )
    # The row is under way, and what it has for a was put aside.
    await eventually(lambda: bench.broker.got == {"b": [2]})
    bench.broker.forbidden = set()
    withheld = bench.sink._withheld["a"]
    withheld.stream.acknowledge(withheld.stream.committed)
    bench.send([3], "a")  # nothing waits for it: it is released
    assert "a" not in bench.sink._withheld
    bench.broker.delay_s = 0.0
    await eventually(lambda: bench.backlogs == {"broker topic a": 1}, 5.0, "it waits again")
    assert bench.broker.got == {"b": [2], "a": [3]}
    bench.pass_time(module.RETRY_S)
    await bench.settled()
    assert sorted(bench.broker.got["a"]) == [2, 3]
