"""Gateways in virtual time: the ground that the tests of clocks stand on."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from support.virtual import START_NS, World

from fieldbus.clock import Clock
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import RELOAD_BY_S, RELOAD_SOON_S, Gateway
from fieldbus.model import Quality

SERVER = """
version: 1
gateway: {name: plc, data_dir: plc-data}
links:
  hmi: {type: modbus-server, host: 127.0.0.1, port: 1502}
devices:
  panel: {link: hmi, unit_id: 1, points: {
    speed: {table: holding, address: 0, type: uint16, access: readwrite, initial: 7},
    echo: {table: holding, address: 1, type: uint16, on_bad: {value: 0}}}}
routes:
  - {from: panel.speed, to: panel.echo}
"""
CLIENT = """
version: 1
gateway: {name: gw, data_dir: gw-data}
links:
  net: {type: modbus-tcp, host: 127.0.0.1, port: 1502, timeout: 500ms}
devices:
  plc: {link: net, unit_id: 1, scan: 1s, points: {
    speed: {table: holding, address: 0, type: uint16, access: readwrite},
    echo: {table: holding, address: 1, type: uint16}}}
"""


def gateway(folder: Path, text: str, clock: Clock) -> Gateway:
    name = text.split("name: ")[1].split(",", maxsplit=1)[0]
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return Gateway(load(file, clock=clock))


async def stop(*gateways: tuple[Gateway, asyncio.Task[None]]) -> None:
    for one, _ in gateways:
        one.stop()
    await asyncio.gather(*(task for _, task in gateways))


def test_an_hour_of_two_gateways_takes_seconds(tmp_path: Path) -> None:
    world = World()

    async def main() -> None:
        clock, wall = world.clock()
        other_clock, _ = world.clock(offset_s=-3600)
        server = gateway(tmp_path, SERVER, clock)
        client = gateway(tmp_path, CLIENT, other_clock)
        tasks = [(item, asyncio.create_task(item.run())) for item in (server, client)]
        await asyncio.sleep(5)
        point = client.points["plc.speed"]
        link = client.plant.links["net"]
        [result] = await link.write({point: 1234})
        assert str(result.outcome) == "written"
        await asyncio.sleep(3600)
        sample = client.router.sample(client.points["plc.echo"])
        assert (sample.value, sample.quality) == (1234, Quality.GOOD)
        assert abs(sample.time_ns - (wall() - 3600 * 10**9)) < 2 * 10**9
        assert 3590 <= client.plant.links["net"].counters["requests"] <= 3620
        await stop(*tasks)

    world.run(main())
    assert world.now_s > 3605


def test_a_connection_that_is_cut_is_opened_again(tmp_path: Path) -> None:
    world = World()

    async def main() -> None:
        server = gateway(tmp_path, SERVER, world.clock()[0])
        client = gateway(tmp_path, CLIENT, world.clock()[0])
        tasks = [(item, asyncio.create_task(item.run())) for item in (server, client)]
        await asyncio.sleep(5)
        world.network.refused.add(1502)
        world.network.cut(1502)
        await asyncio.sleep(5)
        point = client.points["plc.speed"]
        assert client.router.sample(point).quality is Quality.BAD
        world.network.refused.clear()
        await asyncio.sleep(15)
        assert client.router.sample(point).quality is Quality.GOOD
        await stop(*tasks)

    world.run(main())


def test_wall_clocks_differ_drift_and_jump() -> None:
    world = World()

    async def main() -> None:
        clock, wall = world.clock(offset_s=-3, drift_ppm=100)
        assert clock.wall_ns() == START_NS - 3 * 10**9
        await asyncio.sleep(10_000)
        assert clock.wall_ns() == START_NS + (10_000 - 3 + 1) * 10**9
        wall.jump(86400)
        wall.drift(0)
        before_s = clock.monotonic_s()
        await asyncio.sleep(1)
        assert clock.wall_ns() == START_NS + (10_000 - 3 + 1 + 86400 + 1) * 10**9
        assert round(clock.monotonic_s() - before_s, 6) == 1

    world.run(main())


def test_a_peer_that_changes_without_end_does_not_put_the_reload_off_for_ever(tmp_path, monkeypatch):
    world = World()
    clock, _ = world.clock()
    subject = gateway(tmp_path, SERVER, clock)
    loaded_s = []

    async def load_again():
        loaded_s.append(clock.monotonic_s() - begun_s)

    monkeypatch.setattr(subject, "load_again", load_again)
    subject._load = load
    begun_s = 0.0

    async def main():
        nonlocal begun_s
        running = asyncio.create_task(subject.run())
        await asyncio.sleep(1)
        begun_s = clock.monotonic_s()
        subject.reload_soon("once")
        await asyncio.sleep(10)
        assert loaded_s == [pytest.approx(RELOAD_SOON_S)]
        loaded_s.clear()
        begun_s = clock.monotonic_s()
        for _ in range(60):
            subject.reload_soon("again")
            await asyncio.sleep(0.35)
        await asyncio.sleep(10)
        assert 4 <= len(loaded_s) <= 6
        assert loaded_s[0] == pytest.approx(RELOAD_BY_S)
        assert max(b - a for a, b in pairwise(loaded_s)) < RELOAD_BY_S + 0.36
        subject.stop()
        await running

    world.run(main())
