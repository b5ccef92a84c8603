"""`status_unit`: the gateway's own state, read by a master at a unit id, with no routes to write."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import eventually, free_port

from fieldbus.errors import ConfigError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.modbus import pdu, status_map
from fieldbus.model import Kind

CONFIG = """\
version: 1
gateway: {{name: press-line}}
links:
  plc_net: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 100ms}}
  can0: {{type: can, interface: virtual, channel: status}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}, status_unit: 247{more}}}
devices:
  press: {{link: plc_net, scan: 50ms, points: {{temperature: {{table: holding, address: 0}}}}}}
  panel: {{link: hmi, points: {{temperature: {{table: holding, address: 0}}}}}}
routes:
  - {{from: press.temperature, to: panel.temperature}}
"""
PLC = """\
version: 1
gateway: {{name: plc}}
links:
  own: {{type: modbus-server, host: 127.0.0.1, port: {plc}}}
devices:
  press: {{link: own, points: {{temperature: {{table: holding, address: 0, access: readwrite, initial: 7}}}}}}
"""


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Plant]:
    ports = {"plc": free_port(), "hmi": free_port()}

    def make(text: str = CONFIG, more: str = "") -> Plant:
        file = tmp_path / "config.yaml"
        file.write_text(text.format(**ports, more=more))
        return load(file)

    return make


async def ask(port: int, unit_id: int, request_hex: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(pdu.frame(1, unit_id, bytes.fromhex(request_hex)))
        async with asyncio.timeout(5):
            head = await reader.readexactly(7)
            return await reader.readexactly(struct.unpack(">H", head[4:6])[0] - 1)
    finally:
        writer.close()


class Running:
    def __init__(self, *plants: Plant) -> None:
        self.gateways = [Gateway(plant) for plant in plants]

    async def __aenter__(self) -> None:
        self.tasks = [asyncio.create_task(gateway.run()) for gateway in self.gateways]
        await eventually(self._is_listening)

    def _is_listening(self) -> bool:
        return all(
            gateway.plant.link_status[name].is_true("connected")
            for gateway in self.gateways
            for name, link in gateway.plant.links.items()
            if link.is_listener
        )

    async def __aexit__(self, *_: object) -> None:
        for gateway in self.gateways:
            gateway.stop()
        await asyncio.gather(*self.tasks)
        await asyncio.sleep(0.02)


async def test_a_master_reads_which_links_and_devices_are_there(configure: Callable[..., Plant]) -> None:
    plant = configure()
    port = plant.links["hmi"].port
    async with Running(plant):
        await eventually_reads(port, "0200000001", "020100")  # plc_net: not connected
        assert (await ask(port, 247, "0200c80001")).hex() == "020101"  # can0: connected
        assert (await ask(port, 247, "0201900001")).hex() == "020101"  # hmi: connected
        assert (await ask(port, 247, "0275300001")).hex() == "020100"  # press: offline
        nan = await ask(port, 247, "0475300002")
        assert nan[:2] == b"\x04\x04"
        assert struct.unpack(">f", nan[2:])[0] != struct.unpack(">f", nan[2:])[0]
        async with Running(configure(PLC)):
            await eventually_reads(port, "0200000001", "020101")
            await eventually_reads(port, "0275300001", "020101")

            async def response_time_ms() -> float:
                return float(struct.unpack(">f", (await ask(port, 247, "0475300002"))[2:])[0])

            for _ in range(100):
                if await response_time_ms() > 0:
                    break
                await asyncio.sleep(0.05)
            assert 0 < await response_time_ms() < 1000
        await eventually_reads(port, "0200000001", "020100")


async def eventually_reads(port: int, request_hex: str, response_hex: str) -> None:
    for _ in range(200):
        found = await ask(port, 247, request_hex)
        if found.hex() == response_hex:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{request_hex} is answered by {found.hex()}, not by {response_hex}")


async def test_totals_are_64_bits_and_a_block_is_read_in_one_request(configure: Callable[..., Plant]) -> None:
    plant = configure()
    port = plant.links["hmi"].port
    place = 400 + 4 * status_map.LINK_TOTALS.index("requests")
    async with Running(plant):
        for _ in range(3):
            await ask(port, 247, "0200000001")
        for _ in range(100):
            data = await ask(port, 247, struct.pack(">BHH", 4, place, 4).hex())
            if (count := struct.unpack(">Q", data[2:])[0]) >= 3:
                break
            await asyncio.sleep(0.05)
        assert 3 <= count < 1000
        low = await ask(port, 247, struct.pack(">BHH", 4, place + 2, 2).hex())
        assert count <= struct.unpack(">I", low[2:])[0] < 1000
        block = await ask(port, 247, struct.pack(">BHH", 4, 400, 125).hex())
        assert len(block) == 252


async def test_nobody_writes_the_status_map_and_the_panel_is_still_alone(
    configure: Callable[..., Plant],
) -> None:
    plant = configure()
    port = plant.links["hmi"].port
    async with Running(plant, configure(PLC)):
        assert (await ask(port, 247, "0600000001")).hex() == "8602"
        assert (await ask(port, 247, "050000ff00")).hex() == "8502"
        await eventually(lambda: plant.links["plc_net"].counters["requests"] > 2)
        for unit_id in (0, 1, 255):
            assert (await ask(port, unit_id, "0300000001")).hex() == "03020007"
        assert (await ask(port, 2, "0300000001")).hex() == "830a"


def test_the_map_is_a_device_like_any_other(configure: Callable[..., Plant]) -> None:
    plant = configure()
    assert plant.link_of["hmi_status"] == "hmi"
    assert "hmi_status.plc_net.connected" in plant.points
    sources = {edge.source.address: edge.target.address for edge in plant.edges}
    assert sources["sys.press.online"] == "hmi_status.press.online"
    assert not plant.warnings


def test_every_total_of_every_link_has_a_place_in_the_map(configure: Callable[..., Plant]) -> None:
    plant = configure()
    for status in plant.link_status.values():
        points = status.group.points
        names = {point.name.rsplit(".", 1)[-1] for point in points if point.kind is not Kind.STRING}
        missing = names - set(status_map.LINK_TOTALS) - set(status_map.LINK_FLAGS)
        assert not missing, f"append {missing} to LINK_TOTALS"


def test_a_unit_id_that_is_a_devices_already_is_refused(configure: Callable[..., Plant]) -> None:
    text = CONFIG.replace("panel: {{link: hmi,", "panel: {{link: hmi, unit_id: 247,")
    with pytest.raises(ConfigError, match="unit id 247 on hmi is panel already"):
        configure(text)


def test_a_device_with_the_maps_name_is_refused(configure: Callable[..., Plant]) -> None:
    text = CONFIG.replace("  panel:", "  hmi_status:").replace("to: panel.", "to: hmi_status.")
    with pytest.raises(ConfigError, match="there is a device 'hmi_status' already"):
        configure(text)
