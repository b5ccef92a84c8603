"""Three gateways whose clocks drift and jump: a day of it with --long, an hour in CI.

The sensor speaks each second, but for pauses. `field` hears it on a topic; `boss` and `third` have it from
`field`, live and durably. `boss` writes it to a machine with a safe value, `third` serves it with `max_age`; both
keep each sample in a store.
"""

import asyncio
import json
import random
import sqlite3

import pytest
from support.memory_broker import MemoryBroker, Published
from support.virtual import World

from fieldbus import __version__
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.model import Kind, Point, Quality
from fieldbus.mqtt.peering import encode_birth

SAFE = 60_001
AFTER_S = 5.0
"""After so long without the sensor the machine gets its safe value."""
MAX_AGE_S = 5.0
SLACK_S = 1.6
"""Fallbacks are looked for twice a second, ages once; the sensor's sample takes its way."""
MACHINE = """
version: 1
gateway: {name: machine, data_dir: machine-data}
links: {hmi: {type: modbus-server, host: 127.0.0.1, port: 1502}}
devices:
  panel: {link: hmi, unit_id: 1, points: {valve: {table: holding, address: 0, access: readwrite, initial: 0}}}
"""
FIELD = """
version: 1
gateway: {name: field, data_dir: field-data}
links: {broker: {type: mqtt, host: 127.0.0.1, port: 1883}}
devices: {sensor: {link: broker, points: {level: {topic: sensor, type: uint16}}}}
"""
BOSS = """
version: 1
gateway: {name: boss, data_dir: boss-data}
links:
  broker: {type: mqtt, host: 127.0.0.1, port: 1883}
  net: {type: modbus-tcp, host: 127.0.0.1, port: 1502, timeout: 500ms}
  archive: {type: store, max_age: 2d, max_size: 1GiB}
devices:
  field: {link: broker, type: gateway}
  press: {link: net, unit_id: 1, scan: 5s, points: {
    valve: {table: holding, address: 0, access: readwrite, fallback: {after: 5s, value: 60001}}}}
routes:
  - {from: field.sensor.level, to: press.valve, when: sample}
  - {from: field.sensor.level, to: archive, when: sample, durable: true}
"""
THIRD = """
version: 1
gateway: {name: third, data_dir: third-data}
links:
  broker: {type: mqtt, host: 127.0.0.1, port: 1883}
  hmi: {type: modbus-server, host: 127.0.0.1, port: 1503}
  archive: {type: store, max_age: 2d, max_size: 1GiB}
devices:
  field: {link: broker, type: gateway}
  panel: {link: hmi, unit_id: 1, points: {level: {table: holding, address: 0}}}
routes:
  - {from: field.sensor.level, to: panel.level, max_age: 5s}
  - {from: field.sensor.level, to: archive, when: sample, durable: true}
"""


class Day:
    """What happens, and what must be so meanwhile."""

    def __init__(self, folder, seed, seconds):
        self.folder, self.dice, self.seconds = folder, random.Random(seed), seconds
        self.world = World()
        self.broker = MemoryBroker()
        self.said = []
        """Value and time of each sample of the sensor."""
        self.writes = []
        """Time and value of each write that the machine has got."""
        self.walls = []
        self.faults = []
        level = Point("sensor", "level", Kind.INT, lowest=0, highest=65535)
        for name in ("boss", "third"):
            (folder / f"{name}-data" / "peers").mkdir(parents=True)
            birth = encode_birth("field", __version__, [level], 0)
            (folder / f"{name}-data" / "peers" / "field.json").write_bytes(birth)
        machine, self.field, self.boss, self.third = self.gateways = [
            self.gateway(text) for text in (MACHINE, FIELD, BOSS, THIRD)
        ]
        emit = machine._emit

        def heard(batch):
            if batch.group.points[0].address == "panel.valve" and batch.values[0]:
                self.wrote(batch.values[0])
            emit(batch)

        machine._emit = heard

    def gateway(self, text):
        name = text.split("name: ")[1].split(",", maxsplit=1)[0]
        clock, wall = self.world.clock(self.dice.uniform(-5, 5), self.dice.uniform(-300, 300))
        self.walls.append(wall)
        file = self.folder / f"{name}.yaml"
        file.write_text(text)
        return Gateway(load(file, clock=clock))

    @property
    def silent_s(self):
        return self.world.now_s - (self.said[-1][1] if self.said else 0)

    def wrote(self, value):
        self.writes.append((self.world.now_s, value))
        if value == SAFE and self.silent_s < AFTER_S - SLACK_S:
            self.faults.append(
                f"{self.world.now_s}: the safe value, {self.silent_s} s after the sensor spoke"
            )

    async def speak(self):
        value = 0
        while True:
            await asyncio.sleep(1.0)
            if self.dice.random() < 1 / 300:
                await asyncio.sleep(self.dice.choice([3, 10, 60, 200]))
            value = value % 60_000 + 1
            self.said.append((value, self.world.now_s))
            payload = json.dumps({"value": value}).encode()
            self.broker.publish(Published("sensor", payload, 0))

    async def set_clocks(self):
        while True:
            await asyncio.sleep(self.dice.expovariate(1 / 120))
            wall = self.dice.choice(self.walls)
            if self.dice.random() < 0.3:
                wall.drift(self.dice.uniform(-500, 500))
            else:
                size_s = self.dice.choice([0.5, 3, 15, 60, 3600, 86400, 100 * 86400])
                wall.jump(self.dice.choice([-1, 1]) * size_s)

    async def look(self):
        """Twice a second: what is good is fresh, and who lost the sensor has its safe value."""
        served = self.third.points["panel.level"]
        while True:
            await asyncio.sleep(0.5)
            given = self.third.delivered.get(served)
            if given is not None and given.quality is Quality.GOOD and self.silent_s > MAX_AGE_S + SLACK_S:
                self.faults.append(f"{self.world.now_s}: {given} served after {self.silent_s} s")
            is_late = self.silent_s > AFTER_S + SLACK_S
            if is_late and self.writes and self.writes[-1][1] != SAFE:
                self.faults.append(f"{self.world.now_s}: no safe value after {self.silent_s} s")

    async def run(self):
        await self.broker.listen(1883)
        tasks = [asyncio.create_task(gateway.run()) for gateway in self.gateways]
        await asyncio.sleep(10)
        beside = [asyncio.create_task(work()) for work in (self.speak, self.look, self.set_clocks)]
        await asyncio.sleep(self.seconds)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await asyncio.sleep(20)
        for gateway in self.gateways:
            gateway.stop()
        await asyncio.gather(*tasks)
        await self.broker.end()


def stored(file):
    connection = sqlite3.connect(file)
    try:
        return [value for (value,) in connection.execute("SELECT value FROM samples ORDER BY rowid")]
    finally:
        connection.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("seed", "hours"),
    [(1, 1), pytest.param(2, 24, marks=pytest.mark.long), pytest.param(3, 24, marks=pytest.mark.long)],
)
def test_clocks_that_drift_and_jump_do_no_harm(tmp_path, seed, hours):
    day = Day(tmp_path, seed, hours * 3600)
    day.world.run(day.run())
    assert day.faults == []
    live = [value for _, value in day.writes if value != SAFE]
    said = [value for value, _ in day.said]
    assert len(said) > hours * 2000
    assert set(live) <= set(said)
    assert len(live) > 0.99 * len(said)
    assert any(value == SAFE for _, value in day.writes)
    for name in ("boss", "third"):
        assert stored(tmp_path / f"{name}-data" / "archive.db") == said, name
