"""A broker with an access list that forgets a topic, and with a limit for packets: mosquitto, for real."""

import asyncio
import getpass
import json
import subprocess
from contextlib import contextmanager

import pytest
from conftest import Broker, eventually, program
from fake_plc import FakePlc

from fieldbus.cli.run import load_again
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.exchange import topic_sink
from fieldbus.gateway.runtime import Gateway
from fieldbus.store.history import read as read_history

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]
LIMIT = 5000

SENDER = """version: 1
gateway: {name: tx, data_dir: tx-data}
links:
  plc: {type: modbus-tcp, host: 127.0.0.1, port: PLC, timeout: 500ms}
  broker: {type: mqtt, host: 127.0.0.1, port: BROKER, keepalive: 2s}
devices:
  press:
    link: plc
    scan: 20ms
    points: {POINTS}
routes:
  - {from: press.p0, to: "broker:good/{point}", durable: true}
  - {from: press.p0, to: "broker:bad/{point}", durable: true}
"""
RECEIVER = """version: 1
gateway: {name: rx, data_dir: rx-data}
links:
  broker: {type: mqtt, host: 127.0.0.1, port: BROKER, keepalive: 2s}
  archive: {type: store, file: archive.db}
devices:
  line: {type: gateway, link: broker, gateway: tx}
routes:
  - {from: "line.press.p0", to: archive, when: sample, durable: true}
"""


class GrudgingBroker(Broker):
    def __init__(self, folder):
        self.acl = folder / "acl"
        self.allow("fieldbus/#", "good/#")
        super().__init__(folder)

    def allow(self, *topics):
        self.acl.write_text("".join(f"topic readwrite {topic}\n" for topic in topics))
        if getattr(self, "_process", None) is not None:
            self._process.popen.send_signal(1)

    def start(self):
        text = self._config.read_text()
        if "acl_file" not in text:
            self._config.write_text(
                f"{text}acl_file {self.acl}\nmax_packet_size {LIMIT}\nuser {getpass.getuser()}\n"
            )
        super().start()


@pytest.fixture
async def site(tmp_path):
    broker, plc = GrudgingBroker(tmp_path), FakePlc()
    plc.registers = {0: 0}
    await plc.start()
    gateways, running = {}, []

    async def begin(name, text):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        text = text.replace("POINTS", "p0: {table: holding, address: 0}")
        text = text.replace("BROKER", str(broker.port)).replace("PLC", str(plc.port))
        (folder / "plant.yaml").write_text(text)
        gateway = gateways[name] = Gateway(load(folder / "plant.yaml"), load=load_again)
        running.append(asyncio.create_task(gateway.run()))
        return gateway

    yield broker, plc, begin, tmp_path
    for gateway in gateways.values():
        gateway.stop()
    async with asyncio.timeout(20):
        await asyncio.gather(*running)
    await plc.stop()
    broker.stop()


@contextmanager
def ending(process):
    """Have a process ended, whatever happens."""
    with process:
        try:
            yield
        finally:
            process.terminate()


async def count_up(plc, start, count):
    for value in range(start, start + count):
        plc.registers[0] = value
        await asyncio.sleep(0.025)


async def test_a_topic_that_the_access_list_forgets_keeps_its_samples_until_it_is_allowed(site, monkeypatch):
    monkeypatch.setattr(topic_sink, "RETRY_S", 1.0)
    broker, plc, begin, _ = site
    heard = subprocess.Popen(
        [program("mosquitto_sub", "mosquitto-clients"), "-V", "5", "-p", str(broker.port), "-q", "1",
         "-t", "good/#", "-t", "bad/#", "-F", "%t|%p", "-W", "40", "-C", "82"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with ending(heard):
        tx = await begin("tx", SENDER)
        await eventually(lambda: tx.exchange is not None, 10, "the gateway runs")
        streams = tx.exchange.spool.streams
        await eventually(lambda: "broker topic bad/p0" in streams, 10, "the topic is withheld")
        await count_up(plc, 1, 40)
        await eventually(lambda: streams["broker topics"].backlog == 0, 10, "the others have gone out")
        assert streams["broker topic bad/p0"].backlog > 20
        broker.allow("fieldbus/#", "good/#", "bad/#")
        await eventually(lambda: not any(stream.backlog for stream in streams.values()), 10)
        assert all(stream.dropped == 0 for stream in streams.values())
        await asyncio.sleep(0.3)
        heard.terminate()
        out, _ = await asyncio.to_thread(heard.communicate)
    values = {"good/p0": [], "bad/p0": []}
    for line in out.splitlines():
        topic, _, payload = line.partition("|")
        if (value := json.loads(payload)["value"]) is not None:
            values[topic].append(value)
    assert values["bad/p0"] == values["good/p0"]
    assert values["bad/p0"] == sorted(set(values["bad/p0"]))
    assert values["bad/p0"][-1] == 40


async def test_a_backlog_comes_through_a_broker_that_takes_small_packets_only(site):
    broker, plc, begin, folder = site
    tx = await begin("tx", SENDER)
    rx = await begin("rx", RECEIVER)
    await eventually(lambda: "line.press.p0" in rx.points, 15, "rx knows tx's points")
    await eventually(lambda: "broker data rx" in tx.exchange.spool.streams, 10, "tx knows what rx wants")
    stream = tx.exchange.spool.streams["broker data rx"]
    await eventually(lambda: stream.floor > 0 and stream.backlog == 0, 10, "the first arrives")
    broker.stop()
    await count_up(plc, 1, 220)
    assert stream.backlog > 150
    broker.start()
    await eventually(lambda: stream.backlog == 0, 20, "the backlog has gone out")
    file = folder / "rx" / "rx-data" / "archive.db"
    found = [entry.sample.value for entry in read_history(file, ["line.press.p0"])]
    values = [value for value in found if value is not None]
    assert values == sorted(values)
    assert values[-1] == 220
    assert (stream.dropped, rx.exchange.intake.lost) == (0, 0)


async def test_two_clients_of_one_name_are_suspected(site, caplog):
    """This mosquitto closes the older connection without a word."""
    _, _, begin, _ = site
    await begin("one", SENDER)
    await begin("two", SENDER)
    text = "again and again: does another client come as 'fieldbus-tx-broker"
    await eventually(lambda: text in caplog.text, 30, "it is said")
