"""The MQTT link against mosquitto and its own clients."""

import asyncio
import getpass
import json
import signal
import subprocess

import aiomqtt
import pytest
from conftest import eventually, program
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from fieldbus.errors import LinkDownError
from fieldbus.link import Bundle, Delivery, Gathering, GatherPlan, Target, WriteOutcome
from fieldbus.model import Access, Batch, Group, Kind, Point, Quality, Sample
from fieldbus.mqtt.link import MqttLink
from fieldbus.mqtt.payload import TopicPoint, parse_path
from fieldbus.mqtt.publisher import Publisher
from fieldbus.mqtt.reasons import reason_of

pytestmark = pytest.mark.system

SOURCE = Point("press", "temperature", Kind.FLOAT, unit="°C")
COUNT = Point("press", "count", Kind.INT)
SETPOINT = Point("remote", "setpoint", Kind.FLOAT)
NESTED = Point("remote", "nested", Kind.FLOAT)
COMMAND = Point("remote", "command", Kind.FLOAT, Access.WRITE)
MOSQUITTOS_WINDOW = 20
"""What mosquitto says as Receive Maximum, unless it is told otherwise (max_inflight_messages)."""
POINTS = [
    TopicPoint(SETPOINT, "plant/setpoint"),
    TopicPoint(NESTED, "plant/json", parse_path("a.b")),
    TopicPoint(COMMAND, "plant/command"),
]


def good(value, time_ns=1_700_000_000_000_000_000):
    return Sample(value, Quality.GOOD, None, time_ns)


class Session:
    """A link that is kept connected as the gateway does it."""

    def __init__(self, broker, **options):
        self.link = MqttLink("broker", "gw", "127.0.0.1", broker.port, POINTS, **options)
        self.batches = []
        self.ups = 0
        self.up = asyncio.Event()
        self._task = None

    async def __aenter__(self):
        self._task = asyncio.create_task(self._keep())
        await asyncio.wait_for(self.up.wait(), 5)
        await eventually(lambda: self.link._is_hearing, what="subscriptions")
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self):
        while True:
            try:
                await self.link.connect()
                self.ups += 1
                self.up.set()
                await self.link.run(self.batches.append, lambda _: None)
            except LinkDownError:
                self.up.clear()
            finally:
                await self.link.close()
            await asyncio.sleep(0.05)

    def values(self, point):
        return [batch.sample(0) for batch in self.batches if batch.group.points[0] is point]

    def route(self, topic, sample, source=SOURCE, gathers=False):
        self.link.send([Delivery(Target("broker", None, topic, gathers, source.name), source, sample)])


def publish(broker, topic, text, *more):
    tool = program("mosquitto_pub", "mosquitto-clients")
    subprocess.run(
        [tool, "-p", str(broker.port), "-V", "5", "-t", topic, "-m", text, *more], check=True, timeout=10
    )


async def read(broker, topic, count=1, timeout_s=5):
    """Return what mosquitto_sub prints: lines of topic and payload."""
    tool = program("mosquitto_sub", "mosquitto-clients")
    process = await asyncio.create_subprocess_exec(
        tool, "-p", str(broker.port), "-V", "5", "-v", "-t", topic, "-C", str(count), "-W", str(timeout_s),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return [line.split(" ", 1) for line in out.decode().splitlines()]


async def test_samples_are_retained_on_their_topics(broker):
    async with Session(broker) as session:
        session.route("plant/press/temperature", good(72.5))
        await eventually(lambda: session.link.counters["published"] == 1)
        [[topic, payload]] = await read(broker, "plant/#")
    assert topic == "plant/press/temperature"
    assert json.loads(payload) == {
        "value": 72.5, "quality": "good", "reason": None, "time": "2023-11-14T22:13:20.000000Z", "unit": "°C",
    }  # fmt: skip


async def test_samples_of_one_batch_travel_in_one_message(broker):
    async with Session(broker) as session:
        bad = Sample(None, Quality.BAD, "timeout", good(0).time_ns)
        target = Target("broker", None, "plant/press", True)
        session.link.send(
            [
                Delivery(target._replace(label="temperature"), SOURCE, good(72.5)),
                Delivery(target._replace(label="count"), COUNT, bad),
            ]
        )
        await eventually(lambda: session.link.counters["published"] == 1)
        [[_, payload]] = await read(broker, "plant/press")
    assert json.loads(payload) == {
        "time": "2023-11-14T22:13:20.000000Z", "values": {"temperature": 72.5}, "bad": {"count": "timeout"},
    }  # fmt: skip


async def test_what_others_publish_arrives_as_samples(broker):
    publish(broker, "plant/setpoint", "41.5", "-r")
    async with Session(broker) as session:
        await eventually(lambda: session.values(SETPOINT))
        publish(broker, "plant/setpoint", '{"value": 42, "quality": "uncertain", "reason": "guess"}')
        publish(broker, "plant/json", '{"a": {"b": 7}}')
        publish(broker, "plant/setpoint", "rubbish")
        await eventually(lambda: len(session.values(SETPOINT)) == 3)
        assert [sample[:3] for sample in session.values(SETPOINT)] == [
            (41.5, "good", None), (42.0, "uncertain", "guess"), (None, "bad", "conversion"),
        ]  # fmt: skip
        assert [sample.value for sample in session.values(NESTED)] == [7.0]


async def test_after_an_outage_the_same_value_is_news_again(broker):
    """The gateway has said meanwhile that the point is bad: who was told must hear that it is not."""
    async with Session(broker) as session:
        publish(broker, "plant/setpoint", "41.5")
        await eventually(lambda: len(session.values(SETPOINT)) == 1)
        broker.stop()
        await eventually(lambda: not session.up.is_set())
        broker.start()
        await eventually(lambda: session.link._is_hearing, 10)
        publish(broker, "plant/setpoint", "41.5")
        await eventually(lambda: len(session.values(SETPOINT)) == 2)
        assert list(session.batches[-1].changed) == [0]


async def test_birth_will_and_farewell_are_on_the_status_topic(broker):
    async with Session(broker):
        [[_, birth]] = await read(broker, "fieldbus/gw/status")
        assert json.loads(birth)["status"] == "online"
    [[_, farewell]] = await read(broker, "fieldbus/gw/status")
    assert (json.loads(farewell)["status"], json.loads(farewell)["reason"]) == ("offline", "shut down")


async def test_the_will_speaks_for_a_gateway_that_was_cut_off(broker):
    async with Session(broker) as session:
        listening = asyncio.create_task(read(broker, "fieldbus/gw/status", count=2))
        await asyncio.sleep(0.2)
        session.link._control._connection.transport.abort()  # as a cable that is pulled
        messages = await listening
    assert [json.loads(text)["status"] for _, text in messages] == ["online", "offline"]
    assert json.loads(messages[1][1])["reason"] == "connection lost"


async def test_a_broker_that_goes_and_comes_back_gets_what_waited_in_order(broker):
    async with Session(broker) as session:
        broker.stop()
        await eventually(lambda: not session.up.is_set())
        for value in range(50):
            session.route(f"plant/{value}", good(value))
        assert session.link.counters["queued"] == 50
        broker.start()
        await eventually(lambda: session.link.counters["published"] == 50, 10)
        got = await read(broker, "plant/#", count=50)
    assert sorted(int(topic.split("/")[1]) for topic, _ in got) == list(range(50))
    assert session.ups >= 2


@pytest.mark.parametrize("attempt", range(3))
async def test_what_was_under_way_when_the_broker_died_is_sent_again(broker, attempt):
    async with Session(broker) as session:
        session.route("plant/first", good(0))
        await eventually(lambda: session.link.counters["published"] == 1)
        broker._process.popen.send_signal(signal.SIGSTOP)
        for value in range(100):
            session.route(f"plant/{value}", good(value))
        await eventually(lambda: len(session.link._publisher._session.under_way) == MOSQUITTOS_WINDOW)
        broker._process.kill()
        await eventually(lambda: not session.up.is_set())
        broker.start()
        await eventually(lambda: session.link.counters["queued"] == 0, 10)
        assert len({topic for topic, _ in await read(broker, "plant/#", count=100)}) == 100
        assert session.link.counters["tx_dropped"] == 0


async def test_the_queue_is_bounded_and_every_drop_is_counted(broker):
    async with Session(broker, max_queue=10) as session:
        broker.stop()
        await eventually(lambda: not session.up.is_set())
        for value in range(25):
            session.route("plant/x", good(value))
        assert session.link.counters["queued"] == 10
        assert session.link.counters["tx_dropped"] == 15
        broker.start()
        await eventually(lambda: session.link.counters["published"] == 10, 10)
        [[_, payload]] = await read(broker, "plant/x")
    assert json.loads(payload)["value"] == 24  # the newest were kept


async def test_what_waits_is_sent_before_the_farewell(broker):
    async with Session(broker) as session:
        for value in range(300):
            session.route(f"plant/{value}", good(value))
    assert session.link.counters["published"] == 300
    assert len(await read(broker, "plant/#", count=300)) == 300


async def test_a_write_is_answered_when_the_broker_has_it(broker):
    async with Session(broker) as session:
        [result] = await session.link.write({COMMAND: 5.0})
        assert result.outcome is WriteOutcome.WRITTEN
        [[_, payload]] = await read(broker, "plant/command")
    assert json.loads(payload)["value"] == 5.0


async def test_a_broker_that_refuses_us_is_a_lost_link_in_words(broker):
    broker.stop()
    broker._config.write_text(f"listener {broker.port} 127.0.0.1\nallow_anonymous false\n")
    broker.start()
    link = MqttLink("broker", "gw", "127.0.0.1", broker.port, [], username="u", password="canary-secret")
    with pytest.raises(LinkDownError) as caught:
        await link.connect()
    await link.close()
    assert "not authori" in str(caught.value).lower()
    assert "canary" not in str(caught.value)


async def test_why_a_connection_ended_is_said_in_words(broker):
    link = MqttLink("broker", "gw", "127.0.0.1", broker.port, POINTS)
    await link.connect()
    task = asyncio.create_task(link.run(lambda _: None, lambda _: None))
    async with Session(broker):  # takes its place, of which not every broker says a word
        with pytest.raises(
            LinkDownError, match=r"another client came with the same client_id|closed by the broker"
        ):
            await asyncio.wait_for(task, 5)
        await link.close()
    error = aiomqtt.MqttError("Disconnected during message iteration")
    error.__cause__ = aiomqtt.MqttCodeError(ReasonCode(PacketTypes.DISCONNECT, identifier=0x8E))
    told = "another client came with the same client_id; is there a second gateway of this name?"
    assert reason_of(error) == told


class Listener:
    """Whoever a link tells of peers and commands."""

    def __init__(self):
        self.instructions = []

    def wants_each(self, _point):
        return False

    def instructed(self, _link, instruction):
        self.instructions.append(instruction)

    def __getattr__(self, name):
        return lambda *_, **__: None


async def test_a_command_that_is_kept_is_told_from_one_that_is_given_now(broker):
    """Brokers clear the flag for whoever is subscribed already, unless they are asked not to."""
    topic = "fieldbus/gw/command/operator/press/speed"
    publish(broker, topic, "before", "-r", "-q", "1")
    listener = Listener()
    async with Session(broker) as session:
        session.link.correspondent = listener
        publish(broker, topic, "kept", "-r", "-q", "1")
        publish(broker, topic, "now", "-q", "1")
        await eventually(lambda: any(given.payload == b"now" for given in listener.instructions))
    told = {given.payload: given.is_retained for given in listener.instructions}
    assert told.items() >= {b"kept": True, b"now": False}.items()


# --- what is gathered, and the connection that publishes

GROUPS = [Group("one", [SOURCE, COUNT]), Group("two", [Point("press", "speed", Kind.INT)])]
MESSAGE = Gathering("broker", "plant/press", "press", 2)
PLANS = [
    GatherPlan(
        MESSAGE, group, tuple(group.everything), tuple(point.name for point in group.points), True, True
    )
    for group in GROUPS
]


def bundle(number, *values, time_ns=1_700_000_000_000_000_000):
    group = GROUPS[number]
    return Bundle(PLANS[number], Batch(group, time_ns, 0.0, values, {}, group.everything))


async def test_a_scan_of_several_groups_is_one_message(broker):
    async with Session(broker) as session:
        session.link.gather(bundle(0, 72.5, 3))
        session.link.gather(bundle(1, 5))
        await eventually(lambda: session.link.counters["published"] == 1)
        [[_, payload]] = await read(broker, "plant/press")
    assert json.loads(payload)["values"] == {"temperature": 72.5, "count": 3, "speed": 5}


async def test_a_message_does_not_wait_longer_than_the_window(broker):
    async with Session(broker, gather_s=0.05) as session:
        session.link.gather(bundle(0, 72.5, 3))
        assert session.link.counters["queued"] == 0
        await eventually(lambda: session.link.counters["published"] == 1)
        [[_, payload]] = await read(broker, "plant/press")
    assert json.loads(payload)["values"] == {"temperature": 72.5, "count": 3}


async def test_what_waits_for_the_rest_is_sent_before_the_farewell(broker):
    async with Session(broker, gather_s=60.0) as session:
        session.link.gather(bundle(0, 72.5, 3))
    assert session.link.counters["published"] == 1
    assert len(await read(broker, "plant/press")) == 1


async def test_a_link_that_publishes_nothing_has_one_connection(broker):
    async with Session(broker) as session:
        await asyncio.sleep(0.1)
        assert not session.link._publisher.is_connected
        session.route("plant/x", good(1))
        await eventually(lambda: session.link._publisher.is_connected)


async def test_a_link_that_loses_the_publishing_connection_is_lost_whole(broker):
    async with Session(broker) as session:
        session.route("plant/x", good(1))
        await eventually(lambda: session.link.counters["published"] == 1)
        other = Publisher("x", "127.0.0.1", broker.port, "fieldbus-gw-broker-data")
        await other.connect()  # a broker ends the session of a client when another comes with its id
        await eventually(lambda: session.ups == 2)
        other.close()
        session.route("plant/x", good(2))
        await eventually(lambda: session.link.counters["published"] == 2)
        [[_, payload]] = await read(broker, "plant/x")
    assert json.loads(payload)["value"] == 2


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_message_arrives_once_and_in_order_with_any_qos(broker, qos):
    async with Session(broker, qos=qos, is_retained=False) as session:
        session.route("plant/first", good(0))
        await eventually(lambda: session.link._publisher.is_connected)
        listening = asyncio.create_task(read(broker, "plant/many", count=500))
        await asyncio.sleep(0.3)
        for value in range(500):
            session.route("plant/many", good(value))
        got = await listening
        await eventually(lambda: session.link.counters["queued"] == 0)
    assert [json.loads(payload)["value"] for _, payload in got] == list(range(500))
    assert session.link.counters["published"] == 501


async def test_what_the_broker_does_not_take_is_dropped_counted_and_said_once(broker, tmp_path, caplog):
    broker.stop()
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite plant/#\ntopic deny plant/secret\ntopic readwrite fieldbus/#\n")
    settings = broker._config.read_text()
    broker._config.write_text(f"{settings}user {getpass.getuser()}\nacl_file {rules}\nmax_packet_size 2000\n")
    broker.start()
    long = Point("press", "n" * 3000, Kind.INT)
    async with Session(broker) as session:
        for value in range(3):
            session.route("plant/secret", good(value))
            session.route("plant/long", good(value), source=long, gathers=True)
            session.route("plant/open", good(value))
        await eventually(lambda: session.link.counters["queued"] == 0)
        assert session.ups == 1
    assert session.link.counters["published"] == 3
    assert session.link.counters["tx_refused"] == 6
    assert [record.message for record in caplog.records] == [
        "broker: the broker does not take plant/long (its messages are longer than the broker accepts)",
        "broker: the broker does not take plant/secret (not authorized)",
    ]
