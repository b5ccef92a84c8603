"""How messages of a broker come in: in virtual time, from an honest broker and from one that lies."""

import asyncio
import random

import pytest
from support.lying_broker import LyingBroker
from support.memory_broker import MemoryBroker, Published, packet
from support.virtual import World

from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.link import Delivery, Target
from fieldbus.model import Kind, Point, Quality, Sample
from fieldbus.mqtt.inbound import REFUSED
from fieldbus.mqtt.link import MqttLink
from fieldbus.mqtt.packets import Subscription
from fieldbus.mqtt.payload import TopicPoint
from fieldbus.mqtt.session import Session
from fieldbus.mqtt.session_connection import MAX_INCOMING

PORT = 1883
LEVELS = [Point("remote", f"level{number}", Kind.INT) for number in range(20)]


def session(**options):
    options = {"conflates": lambda _: False, **options}
    return Session("broker", "127.0.0.1", PORT, "gw", **options)


def value(topic, number, qos=1, *, is_retained=False):
    return Published(topic, str(number).encode(), qos, is_retained)


async def until(condition, limit_s=60.0):
    loop = asyncio.get_running_loop()
    end_s = loop.time() + limit_s
    while not condition():
        assert loop.time() < end_s, "not in time"
        await asyncio.sleep(0.01)


def test_what_comes_is_handed_on_in_order_and_acknowledged():
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        subject, found = session(), []
        await subject.connect()
        subject.start(lambda message: found.append((message.topic, int(message.payload))))
        assert await subject.subscribe([Subscription("a"), Subscription("b")]) == {}
        for number in range(1000):
            broker.publish(value("ab"[number % 2], number, qos=number % 3 % 2))
        await until(lambda: len(found) == 1000)
        assert found == [("ab"[number % 2], number) for number in range(1000)]
        await asyncio.sleep(1)
        assert not broker.clients["gw"]._under_way
        assert subject.counters == {"received": 1000, "rx_dropped": 0}
        subject.close()
        await broker.end()

    world.run(main())


def test_a_session_that_only_receives_says_that_it_is_there():
    """A broker ends a connection on which it hears nothing for one and a half times the keep-alive time."""
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        subject = session(keepalive_s=3)
        await subject.connect()
        subject.start(lambda _: None)
        await subject.subscribe([Subscription("a")])
        for number in range(200):
            broker.publish(value("a", number, qos=0))
            await asyncio.sleep(0.1)
        assert subject.is_connected
        subject.close()
        await broker.end()

    world.run(main())


def test_answers_that_wait_hold_messages_back_and_nothing_is_lost():
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        is_held, found = True, []
        subject = session(is_held_back=lambda: is_held, keepalive_s=3)
        await subject.connect()
        subject.start(lambda message: found.append(int(message.payload)))
        await subject.subscribe([Subscription("a")])
        for number in range(40_000):
            broker.publish(value("a", number, qos=number % 2))
        await asyncio.sleep(20)  # longer than the keep-alive time: silence of ours is not the broker's
        assert not found
        assert subject.is_connected
        connection = subject._connection
        assert len(connection.inbox) < 23_000
        assert connection._is_held
        is_held = False
        subject.go_on()
        await until(lambda: len(found) == 40_000)
        assert found == list(range(40_000))
        assert subject.counters["rx_dropped"] == 0
        subject.close()
        await broker.end()

    world.run(main())


@pytest.mark.parametrize("is_lost", [True, False])
def test_what_was_acknowledged_is_handed_on_or_said_to_be_dropped(is_lost, caplog):
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        is_held, found = True, []
        subject = session(is_held_back=lambda: is_held)
        await subject.connect()
        subject.start(lambda message: found.append(int(message.payload)))
        await subject.subscribe([Subscription("a")])
        for number in range(100):
            broker.publish(value("a", number))
        await asyncio.sleep(1)
        if is_lost:
            world.network.cut(PORT)
            with pytest.raises(LinkDownError, match="connection reset by peer"):
                await subject.run()
        await subject.finish(is_lost=is_lost)
        subject.close()
        assert found == (list(range(100)) if is_lost else [])
        assert subject.counters["rx_dropped"] == (0 if is_lost else 100)
        await broker.end()

    world.run(main())
    said = [record.message for record in caplog.records]
    assert said == ([] if is_lost else ["broker: 100 messages of the broker are dropped: the gateway stops"])


def test_a_message_that_cannot_be_handled_costs_itself_and_is_logged_once(caplog):
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        subject, found = session(), []

        def take(message):
            if message.payload == b"3":
                raise RuntimeError("boom")
            found.append(message.payload)

        await subject.connect()
        subject.start(take)
        await subject.subscribe([Subscription("a")])
        for number in (1, 3, 2, 3):
            broker.publish(value("a", number))
        await until(lambda: len(found) == 2)
        assert subject.counters["rx_dropped"] == 2
        assert subject.is_connected
        assert not broker.clients["gw"]._under_way
        subject.close()
        await broker.end()

    world.run(main())
    assert [record.message for record in caplog.records] == [
        "broker: internal error: a message on a is dropped"
    ]


def test_the_end_of_a_message_is_known_to_who_waits_for_it():
    world = World()

    async def main():
        broker = MemoryBroker(acknowledges=lambda message: {"a": 0, "b": 0x87, "c": None}[message.topic])
        await broker.listen(PORT)
        subject = session(keepalive_s=3)
        with pytest.raises(LinkDownError, match="not connected"):
            await subject.publish("a", b"x")
        await subject.connect()
        await subject.publish("a", b"x")
        with pytest.raises(RefusedError, match="not authorized"):
            await subject.publish("b", b"x")
        with pytest.raises(LinkDownError, match="does not acknowledge"):
            await subject.publish("c", b"x")
        subject.close()
        await subject.connect()
        waiting = asyncio.create_task(subject.publish("c", b"x"))
        await asyncio.sleep(0.1)
        subject.close()
        with pytest.raises(LinkDownError, match="connection lost"):
            await waiting
        await broker.end()

    world.run(main())


# --- the link


class Kept:
    """A link that is kept connected, as the gateway does it."""

    def __init__(self, link, world):
        self.link = link
        self.newest = {}
        self.reasons = []
        self.world = world
        self.task = asyncio.create_task(self._keep())

    async def _keep(self):
        while True:
            try:
                await self.link.connect()
                await self.link.run(self._emit, lambda _: None)
            except LinkDownError as error:
                self.reasons.append(str(error))
            finally:
                await self.link.close()
            for group in self.link.groups:
                self._emit(group.without_value("not connected", 0, 0.0))
            await asyncio.sleep(0.5)

    def _emit(self, batch):
        self.newest[batch.group.points[0].name] = batch.sample(0)

    async def end(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def link(**options):
    places = [TopicPoint(point, f"plant/{point.name}") for point in LEVELS]
    return MqttLink("broker", "gw", "127.0.0.1", PORT, places, **{"keepalive_s": 3.0, **options})


def test_a_refused_subscription_is_said_once_and_its_point_is_bad(caplog):
    world = World()

    async def main():
        broker = MemoryBroker(subscription_code=lambda topic: 0x87 if topic.endswith(("level3", "#")) else 1)
        await broker.listen(PORT)
        kept = Kept(link(), world)
        await until(lambda: kept.link._is_hearing)
        broker.publish(value("plant/level4", 4))
        await until(lambda: "level4" in kept.newest)
        assert kept.newest["level3"][:3] == (None, "bad", REFUSED)
        world.network.cut(PORT)
        await asyncio.sleep(5)
        assert kept.newest["level3"][:3] == (None, "bad", REFUSED)
        broker.subscription_code = lambda _: 1
        world.network.cut(PORT)
        await asyncio.sleep(5)
        broker.publish(value("plant/level3", 3))
        await until(lambda: kept.newest["level3"].value == 3)
        await kept.end()
        await broker.end()

    world.run(main())
    said = [record.message for record in caplog.records]
    assert said == [
        "broker: the broker refuses the subscription to fieldbus/gw/command/+/#: not authorized",
        "broker: the broker refuses the subscription to fieldbus/gw/want/#: not authorized",
        "broker: the broker refuses the subscription to plant/level3: not authorized",
    ]


def test_a_broker_that_sends_what_is_too_long_or_no_mqtt_is_left_with_pauses():
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        kept = Kept(link(), world)
        await until(lambda: kept.link._is_hearing)
        for rubbish, words in (
            (packet(0x30, b"")[:1] + b"\xff\xff\xff\x7f", "a packet of 268435455 bytes"),
            (b"\x30\xff\xff\xff\xff\x01", "four bytes"),
            (packet(0x34, b"\0\1a\0\1\0x"), "a message with QoS 2"),
            (packet(0x00, b""), "0x00"),
            (packet(0x20, b"\0\0\0"), "a second CONNACK"),
        ):
            before = world.network.connects[PORT]
            next(iter(broker.clients.values())).transport.write(rubbish)
            await until(lambda: not kept.link._is_hearing)
            assert words in kept.reasons[-1] or await_reason(kept, words)
            await until(lambda: kept.link._is_hearing)
            assert world.network.connects[PORT] - before <= 2 * 2
        await kept.end()
        await broker.end()

    def await_reason(kept, words):
        return any(words in reason for reason in kept.reasons)

    world.run(main())


def test_how_long_a_packet_may_be_is_announced_and_a_longer_one_never_comes():
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        kept = Kept(link(), world)
        await until(lambda: kept.link._is_hearing)
        assert {client._maximum for client in broker.clients.values()} == {MAX_INCOMING}
        broker.publish(Published("plant/level1", bytes(MAX_INCOMING), 1))
        broker.publish(Published("plant/level2", bytes(300_000), 1))
        await until(lambda: "level2" in kept.newest)
        assert kept.newest["level2"][:3] == (None, "bad", "bad response")
        assert "level1" not in kept.newest
        assert not kept.reasons
        await kept.end()
        await broker.end()

    world.run(main())


def test_half_a_surrogate_on_any_topic_tears_no_link():
    """A stored message comes again with each connection: one that tears the link tears it for ever."""
    world = World()
    text = Point("remote", "text", Kind.STRING)
    label = Point("\ud800", "label", Kind.STRING, unit="\udfff")

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        for topic in ("plant/text", "plant/level1", "fieldbus/gw/want/peer", "fieldbus/gw/command/a/b/c",
                      "fieldbus/gw/answer/x", "fieldbus/gw/ack/x"):  # fmt: skip
            payload = b'{"value": "\\ud800", "reason": "\\udfff", "boot": "\\ud800", "stream": "x", "seq": 1}'
            broker.publish(Published(topic, payload, 1, is_retained=True))
        places = [TopicPoint(text, "plant/text"), TopicPoint(LEVELS[1], "plant/level1")]
        kept = Kept(MqttLink("broker", "gw", "127.0.0.1", PORT, places, keepalive_s=3.0), world)
        await until(lambda: "text" in kept.newest and "level1" in kept.newest)
        assert kept.newest["text"][:3] == (None, "bad", "conversion")
        sample = Sample("half \ud83d of it", Quality.UNCERTAIN, "\ud800", 1)
        for target in (
            Target("broker", None, "out/one"),
            Target("broker", None, "out/\ud800"),
            Target("broker", None, "out/many", gathers=True, label="\udc00"),
        ):
            kept.link.send([Delivery(target, label, sample)])
        await until(lambda: kept.link.counters["published"] == 2)
        assert kept.link.counters["tx_refused"] == 1
        await asyncio.sleep(10)
        assert not kept.reasons
        await kept.end()
        await broker.end()

    world.run(main())


def test_a_flood_leaves_the_newest_value_of_each_topic_and_no_old_one():
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        kept = Kept(link(), world)
        await until(lambda: kept.link._is_hearing)
        dice = random.Random(4)
        last, sent = {}, []
        transport = broker.clients["fieldbus-gw-broker-topics"].transport
        write, transport.write = transport.write, sent.append
        for number in range(50_000):
            point = dice.choice(LEVELS)
            last[point.name] = number
            broker.publish(value(f"plant/{point.name}", number, qos=dice.randint(0, 1)))
        transport.write = write
        write(b"".join(sent))  # as a socket hands over what came while somebody else had the processor
        await until(lambda: kept.link.counters["received"] == 50_000)
        await asyncio.sleep(1)
        assert {name: sample.value for name, sample in kept.newest.items()} == last
        counters = kept.link.counters
        assert counters["rx_conflated"] > 5_000
        assert counters["rx_dropped"] == 0
        await kept.end()
        await broker.end()

    world.run(main())


@pytest.mark.parametrize("seed", range(12))
def test_a_broker_that_lies_is_left_and_found_again_and_no_value_is_an_old_one(seed):
    world = World()

    async def main():
        dice = random.Random(seed)
        broker = LyingBroker(dice=dice, keeps_values=seed % 3 > 0)
        await broker.listen(PORT)
        kept = Kept(link(), world)
        sent = {point.name: {None} for point in LEVELS}
        for _ in range(10):
            broker.lies = dice.choice((0.02, 0.2))
            before = world.network.connects[PORT]
            for number in range(100):
                name = dice.choice(LEVELS).name
                sent[name].add(number)
                broker.publish(value(f"plant/{name}", number, dice.randint(0, 1), is_retained=True))
                await asyncio.sleep(0.1)
                if broker.keeps_values:
                    assert all(sample.value in sent[key] for key, sample in kept.newest.items())
            assert world.network.connects[PORT] - before <= 2 * 25  # one attempt in half a second, at most
            broker.lies = 0.0
            if not broker.keeps_values:
                world.network.cut(PORT)  # what was changed or swallowed on its way nobody can tell
            await asyncio.sleep(100)
            assert kept.link._is_hearing, kept.reasons[-3:]
            newest = {
                topic[6:]: int(item.payload) for topic, item in broker.retained.items() if topic[6:] in sent
            }
            assert {key: item.value for key, item in kept.newest.items() if key in newest} == newest
        assert len(broker.told) > 20
        assert kept.reasons
        assert not kept.task.done()
        await kept.end()
        await broker.end()

    world.run(main())
