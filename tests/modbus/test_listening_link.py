"""Links that only listen: values out of the traffic of others, and nothing is ever sent."""

from __future__ import annotations

import asyncio
import os
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import eventually
from mutations import ascii_frame, rtu
from rtu_peer import Pty, ptys

from fieldbus.errors import ConfigError, LinkDownError
from fieldbus.gateway import oneshot
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import snapshot
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.simulation import Simulation
from fieldbus.link import Delivery, DeviceHealth, Event, Target, WriteOutcome
from fieldbus.modbus.listening import STALE_SCANS, ModbusListeningLink
from fieldbus.modbus.places import Framing, SerialPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch, Quality, Reason, Sample

UNIT = 7


class Bus:
    """The wire, on which another client asks."""

    def __init__(self, end: Pty, framing: Framing) -> None:
        self._end = end
        self._framing = framing
        self.sent = b""
        """What the gateway put on the wire."""
        asyncio.get_running_loop().add_reader(end.master, self._hear)

    def _hear(self) -> None:
        self.sent += os.read(self._end.master, 4096)

    def say(self, body: bytes, unit_id: int = UNIT) -> None:
        wrap = ascii_frame if self._framing is Framing.ASCII else rtu
        self._end.write(wrap(unit_id, body))

    def exchange(self, address: int, *words: int, unit_id: int = UNIT, code: int = 3) -> None:
        self.say(struct.pack(">BHH", code, address, len(words)), unit_id)
        self.say(struct.pack(f">BB{len(words)}H", code, 2 * len(words), *words), unit_id)


def point(name: str, address: int, **settings: object) -> RegisterPoint:
    made = PointSettings(**{"table": "holding", "address": address, **settings})  # type: ignore[arg-type]
    return made.build("meter", name, is_served=False)


class Listener:
    def __init__(self, link: ModbusListeningLink) -> None:
        self.link = link
        self.samples: dict[str, Sample] = {}
        self.health: list[bool] = []
        self.ended: str | None = None

    def emit(self, batch: Batch) -> None:
        for index, member in enumerate(batch.group.points):
            self.samples[member.name] = batch.sample(index)

    def report(self, event: Event) -> None:
        assert isinstance(event, DeviceHealth)
        self.health.append(event.is_online)

    async def run(self) -> None:
        try:
            await self.link.run(self.emit, self.report)
        except LinkDownError as error:
            self.ended = str(error)

    def values(self) -> dict[str, object]:
        return {name: sample.value for name, sample in self.samples.items()}


@asynccontextmanager
async def listening(
    *points: RegisterPoint, framing: Framing = Framing.RTU, scan_s: float = 0.2
) -> AsyncIterator[tuple[Bus, Listener]]:
    async with ptys(1) as [end]:
        bus = Bus(end, framing)
        unit = Unit("meter", UNIT, points, scan_s, 0.3)
        link = ModbusListeningLink("bus", SerialPlace(end.name, framing=framing), [unit])
        listener = Listener(link)
        await link.connect()
        running = asyncio.create_task(listener.run())
        await asyncio.sleep(0)
        try:
            yield bus, listener
            assert bus.sent == b"", "nothing is ever sent"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await link.close()


@pytest.mark.parametrize("framing", [Framing.RTU, Framing.ASCII])
async def test_values_come_from_what_another_client_reads(framing: Framing) -> None:
    points = [point("power", 0), point("voltage", 1)]
    async with listening(*points, framing=framing) as (bus, listener):
        for n in range(5):
            bus.exchange(0, 1000 + n, 230)
            await eventually(lambda n=n: listener.values() == {"power": 1000 + n, "voltage": 230})
        assert listener.health == [True]
        assert listener.link.counters["responses"] == 5


async def test_a_point_is_read_from_whatever_request_holds_all_of_it() -> None:
    points = [point("a", 10, type="uint32"), point("b", 12), point("coil", 21, table="coil")]
    async with listening(*points) as (bus, listener):
        bus.exchange(11, 2, 3)  # half of `a`
        await eventually(lambda: listener.values() == {"b": 3})
        bus.exchange(0, *range(20))
        await eventually(lambda: listener.values() == {"a": 10 << 16 | 11, "b": 12})
        bus.exchange(12, 99)
        await eventually(lambda: listener.values()["b"] == 99)
        bus.exchange(12, 55, unit_id=8)
        bus.exchange(12, 55, code=4)
        bus.say(struct.pack(">BHH", 1, 16, 8))
        bus.say(bytes((1, 1, 1 << 5)))
        await eventually(lambda: listener.values().get("coil") is True)
        assert listener.values()["b"] == 99, "another unit and another table are no source"


async def test_a_scaled_value_and_its_factor_come_from_one_response() -> None:
    settings = {"sf": PointSettings(table="holding", address=30, type="int16")}
    factor = settings["sf"].build("meter", "sf", is_served=False)
    scaled = RegisterPoint(**{**_fields(point("w", 28, type="int16")), "factor": factor})
    async with listening(scaled, factor) as (bus, listener):
        bus.exchange(28, 123)
        bus.exchange(30, 1)
        await asyncio.sleep(0.1)
        assert listener.values() == {}
        bus.exchange(28, 123, 0, 2)
        await eventually(lambda: listener.values() == {"w": 12300, "sf": 2})


def _fields(item: RegisterPoint) -> dict[str, object]:
    import dataclasses

    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}


async def test_points_are_stale_when_the_other_client_is_silent() -> None:
    async with listening(point("power", 0), scan_s=0.1) as (bus, listener):
        bus.exchange(0, 5)
        await eventually(lambda: listener.values() == {"power": 5})
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await eventually(lambda: listener.samples["power"].quality is Quality.BAD, 2.0)
        assert listener.samples["power"].reason == Reason.STALE
        assert STALE_SCANS * 0.1 - 0.05 <= loop.time() - began_s < 1.0
        assert listener.health == [True, False]
        bus.exchange(0, 6)
        await eventually(lambda: listener.values() == {"power": 6})
        assert listener.health == [True, False, True]


async def test_points_that_nobody_ever_asks_for_are_stale() -> None:
    async with listening(point("power", 0), point("lonely", 50), scan_s=0.1) as (bus, listener):
        for _ in range(10):
            bus.exchange(0, 5)
            await asyncio.sleep(0.05)
        assert listener.samples["lonely"].reason == Reason.STALE
        assert listener.samples["power"].value == 5
        assert listener.health == [True]


async def test_an_exception_makes_what_was_asked_for_bad() -> None:
    async with listening(point("a", 0), point("b", 9)) as (bus, listener):
        bus.exchange(0, *range(10))
        await eventually(lambda: listener.values() == {"a": 0, "b": 9})
        bus.say(struct.pack(">BHH", 3, 8, 4))
        bus.say(b"\x83\x04")
        await eventually(lambda: listener.samples["b"].reason == "device exception 04")
        assert listener.samples["a"].value == 0


async def test_nothing_is_written_or_read_out_of_turn() -> None:
    own = point("power", 0)
    async with listening(own) as (bus, listener):
        [result] = await listener.link.write({own.point: 5})
        assert result.outcome is WriteOutcome.REFUSED
        assert "only listens" in str(result.reason)
        sample = (await listener.link.read([own.point]))[own.point]
        assert sample.quality is Quality.BAD
        assert "only listens" in str(sample.reason)
        delivery = Delivery(Target("bus", own.point), own.point, Sample(5, Quality.GOOD, None, 0))
        assert listener.link.send([delivery]) == [delivery]
        bus.exchange(0, 5)
        await eventually(lambda: listener.values() == {"power": 5})


async def test_a_line_that_is_unplugged_is_a_lost_link() -> None:
    async with ptys(1) as [end]:
        link = ModbusListeningLink(
            "bus", SerialPlace(end.name), [Unit("meter", UNIT, [point("a", 0)], 1.0, 1.0)]
        )
        listener = Listener(link)
        await link.connect()
        running = asyncio.create_task(listener.run())
        await asyncio.sleep(0.05)
        end.close()
        await eventually(lambda: listener.ended, 2.0)
        await running
        await link.close()
        await link.close()
        with pytest.raises(LinkDownError):
            await link.connect()
        await link.close()


# --- in a configuration -----------------------------------------------------------------------------

PLANT = """
version: 1
gateway: {name: c32}
links:
  bus: {type: modbus-rtu, port: PORT, baudrate: 9600, parity: none, stopbits: 1, timeout: 300ms, listen: true}
  net: {type: modbus-tcp, host: 127.0.0.1, port: 1}
devices:
  meter:
    link: bus
    unit_id: 7
    scan: 200ms
    points:
      power:   {table: holding, address: 0ACCESS}
      voltage: {table: holding, address: 1}
  plc: {link: net, points: {x: {table: holding, address: 0}}}
ROUTES
"""


def plant(folder: Path, port: str = "/dev/null", routes: str = "", access: str = "", keys: str = "") -> Path:
    text = PLANT.replace("PORT", port).replace("ROUTES", routes).replace("ACCESS", access)
    (folder / "plant.yaml").write_text(text.replace("listen: true", "listen: true" + keys))
    return folder / "plant.yaml"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"access": ", access: readwrite", "routes": "routes: [{from: plc.x, to: meter.power}]"},
         "a route writes to meter.power"),
        ({"access": ", access: readwrite"}, "meter.power can be written"),
        ({"keys": ", connection: on_demand"}, "leave `connection`"),
        ({"keys": ", rest_after_connect: 1s"}, "leave `connection`"),
    ],
)  # fmt: skip
def test_whatever_would_send_something_is_refused_at_load(
    tmp_path: Path, change: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"plant.yaml:5:\d+: links.bus.*{re.escape(said)}"):
        load(plant(tmp_path, **change))


async def test_a_gateway_shows_what_it_hears_and_sends_nothing(tmp_path: Path) -> None:
    async with ptys(1) as [end]:
        bus = Bus(end, Framing.RTU)
        gateway = Gateway(load(plant(tmp_path, end.name)))
        running = asyncio.create_task(gateway.run())
        state: dict[str, object] = {}

        def values() -> dict[str, object]:
            state.update({item["point"]: item["value"] for item in snapshot(gateway, {})})
            return state

        try:
            await eventually(lambda: values()["sys.bus.connected"])
            for n in range(5):
                bus.exchange(0, 1000 + n, 230)
                await eventually(lambda n=n: values()["meter.power"] == 1000 + n)
                assert values()["meter.voltage"] == 230
            assert values()["sys.meter.online"] is True
            await eventually(lambda: values()["meter.power"] is None, 3.0)
            assert values()["sys.meter.online"] is False
        finally:
            gateway.stop()
            await running
        assert bus.sent == b""


async def test_a_one_shot_read_or_write_of_it_is_refused_in_words(tmp_path: Path) -> None:
    loaded = load(plant(tmp_path))
    power = loaded.points["meter.power"]
    sample = (await oneshot.read(loaded, [power], 0.5))[power]
    assert "only listens" in str(sample.reason)
    assert "fieldbus watch" in str(sample.reason)
    [result] = await oneshot.write(loaded, {power: 5}, 0.5)
    assert result.outcome in (WriteOutcome.REFUSED, WriteOutcome.FAILED)


def test_a_link_that_listens_is_not_simulated(tmp_path: Path) -> None:
    assert "bus" not in [name for name, _ in Simulation(load(plant(tmp_path))).places]
