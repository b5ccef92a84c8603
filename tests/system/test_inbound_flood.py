"""A real broker sends more than can be taken at once: nothing is lost, and no old value stays good."""

import asyncio
import json
import subprocess
import time

import pytest
from conftest import Broker, eventually, program

from fieldbus.gateway.commands.audit import export
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.mqtt.publisher import Publisher
from fieldbus.mqtt.session_connection import MAX_INCOMING

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

COMMANDS = 20_000
TOPICS = 12_000
CONFIG = """version: 1
gateway: {name: gw, data_dir: kept}
links:
  broker: {type: mqtt, host: 127.0.0.1, port: PORT}
devices:
  remote:
    link: broker
    points:
      setpoint: {topic: plant/setpoint, access: write}
      level: {topic: plant/level}
access:
  operator: [remote.setpoint]
"""


@pytest.fixture
def deep_broker(tmp_path):
    """A broker that queues as much for a client as there is."""
    found = Broker(tmp_path)
    found.stop()
    found._config.write_text(f"{found._config.read_text()}max_queued_messages 0\n")
    found.start()
    yield found
    found.stop()


class Running:
    def __init__(self, folder, broker, text):
        (folder / "gateway.yaml").write_text(text.replace("PORT", str(broker.port)))
        self.gateway = Gateway(load(folder / "gateway.yaml"))
        self.link = self.gateway.plant.links["broker"]

    async def __aenter__(self):
        self._task = asyncio.create_task(self.gateway.run())
        await eventually(lambda: self.link._is_hearing, 20)
        return self

    async def __aexit__(self, *_):
        self.gateway.stop()
        await self._task

    def value(self, point):
        sample = self.gateway.router.sample(self.gateway.points[point])
        return None if sample is None or sample.is_bad else sample.value


def publish_lines(broker, lines, *options):
    """Start a client of others that publishes each line as a message, as fast as it can."""
    return subprocess.Popen(
        [program("mosquitto_pub", "mosquitto-clients"), "-p", str(broker.port), "-V", "5", "-q", "1", "-l", *options],
        stdin=lines,
    )  # fmt: skip


async def test_of_twenty_thousand_commands_at_once_each_has_its_record_and_answer(tmp_path, deep_broker):
    broker = deep_broker
    lines = tmp_path / "commands"
    now_s = time.time()
    lines.write_text(
        "".join(f'{{"value": {n}, "id": "c{n}", "time": {now_s}, "expires": 60}}\n' for n in range(COMMANDS))
    )
    answers = tmp_path / "answers"
    async with Running(tmp_path, broker, CONFIG) as running:
        with answers.open("w") as out, lines.open() as commands:
            listening = subprocess.Popen(
                [program("mosquitto_sub", "mosquitto-clients"), "-p", str(broker.port), "-V", "5", "-q", "1",
                 "-t", "fieldbus/operator/answer/gw", "-C", str(COMMANDS), "-W", "60"],
                stdout=out,
            )  # fmt: skip
            await asyncio.sleep(0.5)
            sending = publish_lines(
                broker, commands, "-t", "fieldbus/gw/command/operator/remote/setpoint",
                "-D", "publish", "response-topic", "fieldbus/operator/answer/gw",
            )  # fmt: skip
            await asyncio.to_thread(sending.wait)
            await eventually(lambda: running.link.counters["received"] >= COMMANDS, 60)
            # A value that comes meanwhile is not held up by the commands.
            subprocess.run(
                [program("mosquitto_pub", "x"), "-p", str(broker.port), "-t", "plant/level", "-m", "7"],
                check=True,
            )
            await eventually(lambda: running.value("remote.level") == 7, 2)
            await asyncio.to_thread(listening.wait)
        counters = running.link.counters
        assert (counters["rx_dropped"], counters["tx_dropped"], counters["rx_conflated"]) == (0, 0, 0)
    ids = {f"c{n}" for n in range(COMMANDS)}
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {item["id"] for item in found} == ids
    kept = export(tmp_path / "kept" / "audit")
    records = [item for item in kept if item.get("actor") == "operator" and item["outcome"] != "intent"]
    assert {record["id"] for record in records} == ids
    assert len(records) == COMMANDS
    outcomes = {record["id"]: record["outcome"] for record in records}
    assert {item["id"]: item["outcome"] for item in found} == outcomes
    assert set(outcomes.values()) <= {"written", "refused", "expired"}


async def test_of_twelve_thousand_retained_topics_each_value_arrives(tmp_path, broker):
    points = "".join(f"      p{n}: {{topic: plant/p{n}}}\n" for n in range(TOPICS))
    text = CONFIG.replace("      level: {topic: plant/level}\n", points)
    publisher = Publisher("x", "127.0.0.1", broker.port, "x")
    await publisher.connect()
    for number in range(TOPICS):
        publisher.put_sure(f"plant/p{number}", b"%d" % number, None, is_retained=True)
    await eventually(lambda: publisher.counters["queued"] == 0, 20)
    publisher.close()
    async with Running(tmp_path, broker, text) as running:
        await eventually(lambda: running.link.counters["received"] >= TOPICS, 30)
        last = f"remote.p{TOPICS - 1}"
        await eventually(lambda: running.value(last) is not None)
        found = [running.value(f"remote.p{number}") for number in range(TOPICS)]
        assert found == list(range(TOPICS))
        assert running.link.counters["rx_dropped"] == 0


async def test_a_flood_of_values_ends_with_the_newest_of_each_topic(tmp_path, deep_broker):
    broker = deep_broker
    values = tmp_path / "values"
    values.write_text("".join(f"{n}\n" for n in range(30_000)))
    async with Running(tmp_path, broker, CONFIG) as running:
        with values.open() as lines:
            sending = publish_lines(broker, lines, "-t", "plant/level")
            await asyncio.to_thread(sending.wait)
        await eventually(lambda: running.link.counters["received"] >= 30_000, 30)
        await eventually(lambda: running.value("remote.level") == 29_999, 2)


async def test_a_message_of_a_hundred_megabytes_costs_a_gateway_nothing(tmp_path, broker):
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(100_000_000)
    async with Running(tmp_path, broker, CONFIG) as running:
        command = [
            program("mosquitto_pub", "x"),
            "-p",
            str(broker.port),
            "-V",
            "5",
            "-q",
            "1",
            "-t",
            "plant/level",
        ]
        done = await asyncio.to_thread(subprocess.run, [*command, "-f", str(huge)], check=False)
        assert done.returncode == 0
        await asyncio.to_thread(subprocess.run, [*command, "-m", "5"], check=True)
        await eventually(lambda: running.value("remote.level") == 5)
        assert running.link.counters["received"] == 1
        assert all(session._connection._splitter.missing < MAX_INCOMING for session in running.link._sessions)
