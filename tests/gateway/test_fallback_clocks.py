"""A machine whose source lives by another clock: live values while it speaks, one safe value when it does not."""

import asyncio
import json
import random
from contextlib import asynccontextmanager

import pytest
from support.memory_broker import MemoryBroker, Published
from support.virtual import START_NS, World

from fieldbus import __version__
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.model import Kind, Point
from fieldbus.mqtt.peering import encode_birth
from fieldbus.sample_json import iso_time

SAFE = 9999
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
devices:
  field: {link: broker, type: gateway}
  wish: {link: broker, points: {level: {topic: wish, type: uint16}}}
  press: {link: net, unit_id: 1, scan: 5s, points: {
    speed: {table: holding, address: 0, access: readwrite, min_interval: 1s},
    valve: {table: holding, address: 0, access: readwrite, fallback: {after: 2s, value: 9999}}}}
routes:
  - {from: SOURCE, to: press.valve, every: 500ms}
"""


class Plant:
    """A machine, the gateway that writes it, one that has the source, and a broker between."""

    def __init__(self, folder, world, source):
        self.folder, self.world = folder, world
        self.broker = MemoryBroker()
        self.writes = []
        """Time and value of each write that the machine has got."""
        self.field_clock, self.field_wall = world.clock()
        self.boss_clock, self.boss_wall = world.clock()
        self.boss_text = BOSS.replace("SOURCE", source)
        peers = folder / "boss-data" / "peers"
        peers.mkdir(parents=True)
        level = Point("sensor", "level", Kind.INT, lowest=0, highest=65535)
        (peers / "field.json").write_bytes(encode_birth("field", __version__, [level], 0))
        self.machine = self.gateway("machine", MACHINE, world.clock()[0])
        self.field = self.gateway("field", FIELD, self.field_clock)
        self.boss = self.gateway("boss", self.boss_text, self.boss_clock)
        emit = self.machine._emit

        def heard(batch):
            if batch.group.points[0].address == "panel.valve" and batch.values[0]:
                self.writes.append((world.now_s, batch.values[0]))
            emit(batch)

        self.machine._emit = heard

    def gateway(self, name, text, clock):
        file = self.folder / f"{name}.yaml"
        file.write_text(text)
        return Gateway(load(file, clock=clock))

    @property
    def values(self):
        return [value for _, value in self.writes]

    def say(self, value, topic="sensor", *, ahead_s=None, is_retained=False, **more):
        """Publish a value; with a time in it, if it is said how far its clock is ahead."""
        payload = {"value": value, **more}
        if ahead_s is not None:
            payload["time"] = iso_time(START_NS + round((self.world.now_s + ahead_s) * 1e9))
        self.broker.publish(Published(topic, json.dumps(payload).encode(), 0, is_retained))

    async def speak(self, count, first=1, **more):
        """Say that many values, one each quarter of a second."""
        for value in range(first, first + count):
            self.say(value, **more)
            await asyncio.sleep(0.25)

    def is_fallen(self):
        return bool(self.boss.dead_men.fallen)


def in_virtual_time(tmp_path, source, scenario):
    """Run a scenario, once the source is wanted and the first safe value is written."""
    world = World()

    @asynccontextmanager
    async def running(plant):
        await plant.broker.listen(1883)
        gateways = (plant.machine, plant.field, plant.boss)
        tasks = [asyncio.create_task(gateway.run()) for gateway in gateways]
        try:
            await asyncio.sleep(5)
            yield
        finally:
            for gateway in gateways:
                gateway.stop()
            await asyncio.gather(*tasks)
            await plant.broker.end()

    async def main():
        plant = Plant(tmp_path, world, source)
        async with running(plant):
            assert plant.values == [SAFE]  # nobody has said anything yet
            plant.writes.clear()
            await scenario(plant)

    world.run(main())


def jumps(plant):
    """Set both clocks again and again, by seconds or by years."""
    dice = random.Random(5)

    async def work():
        while True:
            await asyncio.sleep(dice.uniform(0.1, 1.5))
            wall = dice.choice([plant.field_wall, plant.boss_wall])
            wall.jump(dice.choice([-1, 1]) * dice.choice([2.5, 3, 60, 3600, 86400 * 400]))

    return asyncio.create_task(work())


CLOCKS = {
    "as ours": lambda plant: None,
    "3 s behind": lambda plant: plant.field_wall.jump(-3),
    "3 s ahead": lambda plant: plant.field_wall.jump(3),
    "1 h behind": lambda plant: plant.field_wall.jump(-3600),
    "1 h ahead": lambda plant: plant.field_wall.jump(3600),
    "in 1974": lambda plant: plant.field_wall.jump(-START_NS / 1e9 + 4 * 365 * 86400),
    "in 2200": lambda plant: plant.field_wall.jump(174 * 365.25 * 86400),
    "running fast": lambda plant: plant.field_wall.drift(100_000),
    "running slow": lambda plant: plant.field_wall.drift(-100_000),
    "jumping": jumps,
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_no_safe_value_while_another_gateway_speaks(tmp_path, clock):
    async def scenario(plant):
        work = CLOCKS[clock](plant)
        await plant.speak(80)
        live = [value for value in plant.values if value != SAFE]
        assert SAFE not in plant.values[plant.values.index(live[0]) :]
        assert live == sorted(live)
        assert set(live) >= set(range(2, 80))
        assert not plant.is_fallen()
        if work is not None:
            work.cancel()
        begun_s = plant.world.now_s
        await asyncio.sleep(10)
        assert plant.values.count(SAFE) == 1
        assert plant.values[-1] == SAFE
        assert 1.5 < plant.writes[-1][0] - begun_s < 3

    in_virtual_time(tmp_path, "field.sensor.level", scenario)


@pytest.mark.parametrize("ahead_s", [-86400 * 365, -3600, -3, 0, 3, 3600, 86400 * 365 * 170])
def test_no_safe_value_while_a_topic_speaks(tmp_path, ahead_s):
    async def scenario(plant):
        await plant.speak(40, topic="wish", ahead_s=ahead_s)
        assert SAFE not in plant.values
        assert list(dict.fromkeys(plant.values)) == list(range(1, 41))
        await asyncio.sleep(10)
        assert plant.values.count(SAFE) == 1
        assert plant.values[-1] == SAFE

    in_virtual_time(tmp_path, "wish.level", scenario)


def test_what_is_held_ends_no_fallback_and_is_not_written(tmp_path):
    async def scenario(plant):
        await plant.speak(8, topic="wish")
        await asyncio.sleep(5)
        assert plant.is_fallen()
        plant.writes.clear()
        plant.say(50, "wish", historical=True, ahead_s=-1)
        await asyncio.sleep(3)
        plant.say(51, "wish", quality="bad", reason="timeout")
        await asyncio.sleep(3)
        assert plant.is_fallen()
        assert plant.writes == []
        plant.say(52, "wish")
        await asyncio.sleep(0.3)
        assert plant.values == [52]
        assert not plant.is_fallen()

    in_virtual_time(tmp_path, "wish.level", scenario)


def test_the_live_sample_that_ends_a_fallback_is_written_though_it_is_the_last_value(tmp_path):
    async def scenario(plant):
        plant.say(7, "wish")
        await asyncio.sleep(5)
        assert plant.values[0] == 7
        assert plant.values[-1] == SAFE
        plant.say(7, "wish")
        await asyncio.sleep(0.3)
        assert plant.values[-1] == 7

    in_virtual_time(tmp_path, "wish.level", scenario)


@pytest.mark.parametrize("minutes", [0.1, 10])
def test_what_a_broker_kept_ends_no_fallback_after_the_link_is_back(tmp_path, minutes):
    async def scenario(plant):
        plant.say(7, "wish", is_retained=True)
        await asyncio.sleep(1)
        assert plant.values[-1] == 7
        plant.world.network.refused.add(1883)
        plant.world.network.cut(1883)
        await asyncio.sleep(60 * minutes)
        assert plant.is_fallen()
        plant.writes.clear()
        plant.world.network.refused.clear()
        await asyncio.sleep(30)
        assert plant.boss.router.sample(plant.boss.points["wish.level"]).value == 7
        assert plant.writes == []
        assert plant.is_fallen()
        plant.say(8, "wish", is_retained=True)
        await asyncio.sleep(0.3)
        assert plant.values == [8]

    in_virtual_time(tmp_path, "wish.level", scenario)


@pytest.mark.parametrize("seed", range(6))
def test_the_newest_that_a_gateway_has_ends_no_fallback_if_its_source_is_silent(tmp_path, seed):
    """It is said when the connection is back, and says nothing of the sensor behind that gateway."""
    random.seed(seed)  # which of both is back first

    async def scenario(plant):
        await plant.speak(8)
        plant.world.network.refused.add(1883)
        plant.world.network.cut(1883)
        await asyncio.sleep(20)
        assert plant.is_fallen()
        plant.writes.clear()
        plant.say(30, is_retained=True)
        plant.world.network.refused.clear()
        await asyncio.sleep(30)
        assert plant.boss.router.sample(plant.boss.points["field.sensor.level"]).value == 30
        assert plant.writes == []
        assert plant.is_fallen()
        await plant.speak(4, first=31)
        assert list(dict.fromkeys(plant.values)) == [31, 32, 33, 34]

    in_virtual_time(tmp_path, "field.sensor.level", scenario)


def test_a_backlog_that_drains_ends_no_fallback(tmp_path):
    async def scenario(plant):
        await asyncio.sleep(3)
        assert plant.is_fallen()
        for value in range(1, 200):
            plant.say(value, "wish", historical=True, ahead_s=value - 500)
            await asyncio.sleep(0.02)
        assert plant.writes == []
        assert plant.is_fallen()
        # What is new goes out beside the backlog, and what is old takes its place never.
        for value in range(200, 260):
            if value % 10 == 0:
                plant.say(value, "wish")
            plant.say(value - 100, "wish", historical=True, ahead_s=-500)
            await asyncio.sleep(0.1)
        assert list(dict.fromkeys(plant.values)) == [200, 210, 220, 230, 240, 250]

    in_virtual_time(tmp_path, "wish.level", scenario)


@pytest.mark.parametrize(
    "change",
    [
        ("scan: 5s", "scan: 4s"),  # the link of the target is opened anew
        (
            "host: 127.0.0.1, port: 1883}",
            "host: 127.0.0.1, port: 1883, keepalive: 20s}",
        ),  # that of the source
        ("every: 500ms", "every: 400ms"),
        ("after: 2s", "after: 3s"),
    ],
)
def test_a_reload_in_the_middle_of_a_fallback_ends_nothing(tmp_path, change):
    async def scenario(plant):
        plant.say(7, "wish", is_retained=True)
        await asyncio.sleep(5)
        assert plant.is_fallen()
        plant.writes.clear()
        file = plant.folder / "boss.yaml"
        assert change[0] in file.read_text()
        file.write_text(file.read_text().replace(*change))
        await plant.boss.reload(load(file, previous=plant.boss.plant, clock=plant.boss_clock))
        await asyncio.sleep(10)
        assert plant.is_fallen()
        assert set(plant.values) <= {SAFE}
        assert len(plant.values) <= 1
        plant.say(8, "wish")
        await asyncio.sleep(0.5)
        assert plant.values[-1] == 8

    in_virtual_time(tmp_path, "wish.level", scenario)


def test_a_safe_value_that_changes_in_a_reload_is_written(tmp_path):
    async def scenario(plant):
        await asyncio.sleep(3)
        file = plant.folder / "boss.yaml"
        file.write_text(file.read_text().replace("value: 9999", "value: 8888"))
        await plant.boss.reload(load(file, previous=plant.boss.plant, clock=plant.boss_clock))
        await asyncio.sleep(3)
        assert plant.values == [8888]

    in_virtual_time(tmp_path, "wish.level", scenario)


def test_a_safe_value_is_written_again_when_the_machine_was_away(tmp_path):
    async def scenario(plant):
        plant.world.network.refused.add(1502)
        plant.world.network.cut(1502)
        await asyncio.sleep(20)
        assert plant.writes == []
        plant.world.network.refused.clear()
        await asyncio.sleep(20)
        assert plant.values == [SAFE]

    in_virtual_time(tmp_path, "wish.level", scenario)
