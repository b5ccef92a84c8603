"""The health of a bus: states, restarts, load."""

import asyncio

import pytest
from conftest import eventually
from fake_bus import FakeBus, Running
from test_listening import status

from fieldbus.canbus import health
from fieldbus.canbus.bus import BusStatus
from fieldbus.link import GaugesChanged

BUS_OFF, RESTARTED, CONTROLLER = 0x20000040, 0x20000100, 0x20000004


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(health, "PERIOD_S", 0.05)
    monkeypatch.setattr(health, "FIRST_RESTART_S", 0.05)


async def test_a_bus_off_takes_the_values_away_at_once_and_the_restart_brings_them_back(monkeypatch):
    async with Running(monkeypatch, [status()]) as running:
        running.bus.come(0x100, b"\1\2")
        await eventually(lambda: running.latest("Status.A") == (1, None))
        running.bus.come(BUS_OFF, bytes(8))
        await eventually(lambda: running.latest("Status.A") == (None, "bus down"))
        assert running.link.gauge_values()["bus_state"] == 3
        assert running.link.counters["bus_offs"] == 1
        assert running.online == [True, False]
        await eventually(lambda: running.bus.restarts >= 1)
        running.bus.come(RESTARTED, bytes(8))
        running.bus.come(0x100, b"\1\2")
        await eventually(lambda: running.latest("Status.A") == (1, None))
        assert running.link.gauge_values()["bus_state"] == 0
        assert [text.split(":")[0] for text in running.notices] == [
            "the bus is off",
            "the bus is back, error active",
        ]


async def test_restarts_become_rarer_and_why_they_fail_is_said_once(monkeypatch):
    bus = FakeBus()
    bus.refusal = "not permitted"
    async with Running(monkeypatch, [status()], bus=bus) as running:
        bus.come(BUS_OFF, bytes(8))
        await asyncio.sleep(0.8)
        assert 3 <= bus.restarts <= 5  # after 0.05, 0.15, 0.35, 0.75 s
        assert sum("not permitted" in text for text in running.notices) == 1


async def test_what_error_frames_say_is_kept(monkeypatch):
    async with Running(monkeypatch, [status()]) as running:
        running.bus.come(CONTROLLER | 0x200, bytes([0, 0x20, 0, 0, 0, 0, 140, 3]))
        await eventually(lambda: running.link.gauge_values()["bus_state"] == 2)
        values = running.link.gauge_values()
        assert (values["tx_error_count"], values["rx_error_count"]) == (140, 3)
        assert "error passive" in values["last_bus_error"]
        assert any(isinstance(event, GaugesChanged) for event in running.reports)
        assert running.link.counters["error_frames"] == 1
        assert running.link.counters["rx_frames"] == 0


async def test_the_load_counts_all_frames_whatever_is_filtered(monkeypatch):
    bus = FakeBus()
    bus.now = BusStatus(state=0, frames=0, data_bytes=0, bitrate=100_000)
    async with Running(monkeypatch, [status()], bus=bus) as running:
        await asyncio.sleep(0.12)
        assert running.link.gauge_values()["bus_load_percent"] == 0
        bus.now = BusStatus(state=0, frames=10, data_bytes=80, bitrate=100_000)
        loads = []

        def seen():
            loads.append(running.link.gauge_values()["bus_load_percent"])
            return loads[-1] > 0

        await eventually(seen)
        # 10 frames of 8 bytes with 29 bits: up to 160 bits each, in 50 ms of 5000 bits.
        assert 20 < loads[-1] < 40


async def test_without_a_bit_rate_there_is_no_load(monkeypatch):
    bus = FakeBus()
    bus.now = BusStatus(state=0, frames=0, data_bytes=0)
    async with Running(monkeypatch, [status()], bus=bus) as running:
        await asyncio.sleep(0.12)
        assert running.link.gauge_values()["bus_load_percent"] is None


async def test_what_is_not_connected_has_no_state(monkeypatch):
    running = Running(monkeypatch, [status()])
    await running.begin()
    assert running.link.gauge_values()["bus_state"] == 0
    await running.end()
    assert set(running.link.gauge_values().values()) == {None}


async def test_a_bus_that_fails_again_at_once_is_restarted_less_and_less_often(monkeypatch):
    bus = FakeBus()

    async def restart():
        bus.restarts += 1
        bus.come(RESTARTED, bytes(8))
        asyncio.get_running_loop().call_later(0.005, bus.come, BUS_OFF, bytes(8))

    bus.restart = restart
    async with Running(monkeypatch, [status()], bus=bus) as running:
        bus.come(BUS_OFF, bytes(8))
        await asyncio.sleep(1.0)
        assert 3 <= bus.restarts <= 6  # after 0.05, 0.15, 0.35, 0.75 s
        assert abs(running.link.counters["restarts"] - bus.restarts) <= 1


async def test_while_the_bus_is_off_nothing_else_is_said_of_the_values(monkeypatch):
    async with Running(monkeypatch, [status(deadline_s=0.1)]) as running:
        running.bus.come(0x100, b"\1\2")
        await eventually(lambda: running.latest("Status.A") == (1, None))
        running.bus.come(BUS_OFF, bytes(8))
        await asyncio.sleep(0.3)
        assert running.latest("Status.A") == (None, "bus down")
        running.bus.come(RESTARTED, bytes(8))
        await eventually(lambda: running.latest("Status.A") == (None, "waiting for first value"))
