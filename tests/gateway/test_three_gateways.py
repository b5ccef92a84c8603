"""Three gateways in a row whose clocks differ, drift and jump, over a broker that goes away now and then.

What has to hold at every moment: no good value is older than its deadline by arrival, no machine gets its safe
value while its source speaks, and of what the first gateway has acquired the last one keeps every sample once.
"""

import asyncio
import json
import random
from contextlib import suppress
from itertools import pairwise

import pytest
from support.memory_broker import MemoryBroker, Published
from support.virtual import World

from fieldbus import __version__
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.model import Kind, Point, Quality
from fieldbus.mqtt.peering import encode_birth
from fieldbus.store import history

SAFE, AFTER_S, MAX_AGE_S = 60_000, 4.0, 6.0
PERIOD_S = 1.0
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
links:
  local: {type: mqtt, host: 127.0.0.1, port: 1884}
  broker: {type: mqtt, host: 127.0.0.1, port: 1883}
devices: {sensor: {link: local, points: {level: {topic: sensor, type: uint16}}}}
"""
MIDDLE = """
version: 1
gateway: {name: middle, data_dir: middle-data}
links: {broker: {type: mqtt, host: 127.0.0.1, port: 1883}}
devices: {field: {link: broker, type: gateway}}
"""
BOSS = """
version: 1
gateway: {name: boss, data_dir: boss-data}
links:
  broker: {type: mqtt, host: 127.0.0.1, port: 1883}
  net: {type: modbus-tcp, host: 127.0.0.1, port: 1502, timeout: 500ms}
  hmi: {type: modbus-server, host: 127.0.0.1, port: 1503}
  history: {type: store}
devices:
  middle: {link: broker, type: gateway}
  field: {link: broker, type: gateway}
  press: {link: net, unit_id: 1, scan: 60s, points: {
    valve: {table: holding, address: 0, access: readwrite, fallback: {after: 4s, value: 60000}}}}
  panel: {link: hmi, unit_id: 1, points: {level: {table: holding, address: 0}, ahead: {table: holding, address: 1, type: float32}}}
routes:
  - {from: middle.field.sensor.level, to: press.valve}
  - {from: middle.field.sensor.level, to: panel.level, max_age: 6s}
  - {from: sys.middle.clock_offset_ms, to: panel.ahead}
  - {from: field.sensor.level, to: history, durable: true, when: sample}
"""


class Chain:
    """The gateways, and what there is to be seen of them."""

    def __init__(self, folder, world, seed):
        self.world, self.dice = world, random.Random(seed)
        self.broker, self.local = MemoryBroker(), MemoryBroker()
        self.walls = {}
        self.spoken = []
        self.acquired = []
        self.writes = []
        self.away_s = -1e9
        """Until when the broker was away, or was only just back."""
        self.wrong = []
        for gateway, peer, address, origin, hops in (
            ("middle", "field", "sensor.level", "", 0),
            ("boss", "field", "sensor.level", "", 0),
            ("boss", "middle", "field.sensor.level", "field/sensor.level", 1),
        ):
            peers = folder / f"{gateway}-data" / "peers"
            peers.mkdir(parents=True, exist_ok=True)
            device, _, name = address.partition(".")
            point = Point(device, name, Kind.INT, lowest=0, highest=65535, origin=origin, hops=hops)
            (peers / f"{peer}.json").write_bytes(encode_birth(peer, __version__, [point], 0))
        self.gateways = {}
        for name, text in (("machine", MACHINE), ("field", FIELD), ("middle", MIDDLE), ("boss", BOSS)):
            file = folder / f"{name}.yaml"
            file.write_text(text)
            clock, self.walls[name] = world.clock(self.dice.uniform(-5, 5), self.dice.uniform(-200, 200))
            self.gateways[name] = Gateway(load(file, clock=clock))
        self.boss = self.gateways["boss"]
        self.served = self.boss.plant.points["panel.level"]
        self._listen("machine", "panel.valve", lambda value: self.writes.append((world.now_s, value)))
        self._listen("field", "sensor.level", self.acquired.append)

    def _listen(self, name, address, take):
        gateway = self.gateways[name]
        emit = gateway._emit

        def heard(batch):
            if batch.group.points[0].address == address and batch.values[0] is not None:
                take(batch.values[0])
            emit(batch)

        gateway._emit = heard

    # --- what happens

    async def speak(self):
        """The sensor: a value a second, with pauses."""
        value = 0
        while True:
            value = value % 50_000 + 1
            self.spoken.append((self.world.now_s, value))
            self.local.publish(Published("sensor", json.dumps({"value": value}).encode()))
            pause_s = PERIOD_S if self.dice.random() > 0.01 else self.dice.uniform(5, 40)
            await asyncio.sleep(pause_s)

    async def disturb(self):
        """Clocks jump and drift; the broker goes away."""
        while True:
            await asyncio.sleep(self.dice.uniform(5, 60))
            wall = self.walls[self.dice.choice(["field", "middle", "boss", "machine"])]
            what = self.dice.random()
            if what < 0.5:
                wall.jump(self.dice.choice([-1, 1]) * self.dice.choice([0.5, 3, 11, 3600, 86400 * 100]))
            elif what < 0.8:
                wall.drift(self.dice.uniform(-500, 500))
            else:
                network = self.world.network
                network.refused.add(1883)
                network.cut(1883)
                self.away_s = 1e18
                await asyncio.sleep(self.dice.uniform(0.1, 60))
                network.refused.discard(1883)
                self.away_s = self.world.now_s + 30
                await asyncio.sleep(40)

    async def watch(self):
        """Look at what must hold, five times a second."""
        while True:
            await asyncio.sleep(0.2)
            now_s = self.world.now_s
            shown = self.boss.delivered.get(self.served)
            silent_s = now_s - self.spoken[-1][0]
            if shown is not None and shown.quality is Quality.GOOD and silent_s > MAX_AGE_S + 0.2:
                self.wrong.append(f"{now_s:.1f}: a value that is {silent_s:.1f} s old is good")

    def safe_values_without_reason(self):
        """Return when the machine got its safe value though its source spoke and could be heard."""
        found = []
        for at_s, value in self.writes:
            spoken = [spoken_s for spoken_s, _ in self.spoken if at_s - AFTER_S <= spoken_s <= at_s - 0.2]
            if value == SAFE and spoken and not any(begin <= at_s <= end for begin, end in self.outages):
                found.append(at_s)
        return found


def run(tmp_path, seed, duration_s):
    world = World()

    async def main():
        chain = Chain(tmp_path, world, seed)
        chain.outages = [(0, 30)]
        await chain.broker.listen(1883)
        await chain.local.listen(1884)
        tasks = [asyncio.create_task(gateway.run()) for gateway in chain.gateways.values()]
        await asyncio.sleep(5)
        others = [asyncio.create_task(work) for work in (chain.speak(), chain.watch(), chain.disturb())]
        before_s = chain.away_s
        end_s = world.now_s + duration_s
        while world.now_s < end_s:
            await asyncio.sleep(0.1)
            if chain.away_s != before_s:
                if chain.away_s == 1e18:
                    chain.outages.append((world.now_s - 0.2, 1e18))
                else:
                    chain.outages[-1] = (chain.outages[-1][0], chain.away_s)
                before_s = chain.away_s
        others[2].cancel()
        world.network.refused.discard(1883)
        await asyncio.sleep(60)
        for other in others:
            other.cancel()
        for other in others:
            with suppress(asyncio.CancelledError):
                await other
        await asyncio.sleep(30)
        ahead_ms = chain.boss.router.sample(chain.boss.plant.points["sys.middle.clock_offset_ms"]).value
        wanted_ms = (chain.walls["middle"]() - chain.walls["boss"]()) / 1e6
        for gateway in chain.gateways.values():
            gateway.stop()
        await asyncio.gather(*tasks)
        await chain.broker.end()
        await chain.local.end()
        return chain, ahead_ms, wanted_ms

    return world.run(main())


def check(tmp_path, seed, duration_s):
    chain, ahead_ms, wanted_ms = run(tmp_path, seed, duration_s)
    assert not chain.wrong, chain.wrong[:5]
    assert len(chain.acquired) > 0.7 * duration_s / PERIOD_S
    assert chain.safe_values_without_reason() == []
    assert SAFE in [value for _, value in chain.writes]  # there were silences
    after = [later for (_, value), (_, later) in pairwise(chain.writes) if value == SAFE]
    assert all(value != SAFE for value in after)  # one safe value a silence
    kept = [
        item.sample.value
        for item in history.read(tmp_path / "boss-data" / "history.db", ["field.sensor.level"])
    ]
    assert sorted(value for value in kept if value is not None) == sorted(chain.acquired)
    assert ahead_ms == pytest.approx(wanted_ms, abs=250)


@pytest.mark.parametrize("seed", range(2))
def test_a_quarter_of_an_hour_of_clocks_that_are_wrong(tmp_path, seed):
    check(tmp_path, seed, 900)


@pytest.mark.long
def test_a_day_of_clocks_that_are_wrong(tmp_path):
    check(tmp_path, 7, 86_400)
