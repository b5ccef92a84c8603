"""Values that are implausible are kept from leaving, to every kind of target."""

import asyncio
import json
import struct

import pytest
from conftest import eventually, free_port
from recording_plc import RecordingPlc

from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway

PLANT = """version: 1
gateway: {{name: c24}}
links:
  net:    {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 500ms}}
  broker: {{type: mqtt, host: 127.0.0.1, port: {broker}}}
  hmi:    {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
devices:
  inverter:
    link: net
    scan: 20ms
    points:
      day_energy: {{table: input, address: 0, scale: 0.1, unit: kWh, max: 200}}
      power:      {{table: input, address: 1, unit: W, max: 5000}}
      limit:      {{table: holding, address: 40, access: write}}
  panel:
    link: hmi
    points:
      power: {{table: holding, address: 0}}
  copy:
    link: broker
    points:
      power: {{topic: copy/power, type: uint16, access: write}}
routes:
  - {{from: inverter.power, to: panel.power, on_uncertain: {way}}}
  - {{from: inverter.power, to: inverter.limit, on_uncertain: {way}}}
  - {{from: inverter.power, to: copy.power, on_uncertain: {way}}}
  - {{from: "inverter.*", to: "broker:inv/{{point}}", on_uncertain: {way}}}
  - {{from: "inverter.*", to: "broker:all/{{device}}", when: sample, on_uncertain: {way}}}
"""


class Bench:
    """An inverter that talks nonsense now and then, and all that hear of it."""

    def __init__(self, plc, gateway, port):
        self.plc, self.gateway, self.port = plc, gateway, port
        self.put: list[tuple[str, dict]] = []
        writer = gateway.plant.links["broker"]._writer
        publish = writer._put

        def put(topic, payload):
            self.put.append((topic, json.loads(payload)))
            publish(topic, payload)

        writer._put = writer._gatherer._put = put

    async def says(self, energy, power):
        """Have the inverter say something, until that was read."""
        self.plc.words["holding", 0], self.plc.words["holding", 1] = energy, power
        point = self.gateway.plant.points["inverter.power"]
        await eventually(lambda: self.gateway.router.sample(point).value == power)
        await asyncio.sleep(0.05)

    async def register(self):
        """Read the served register as a client does."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(bytes.fromhex("000700000006010300000001"))
        head = await reader.readexactly(7)
        answer = await reader.readexactly(struct.unpack(">HHHB", head)[2] - 1)
        writer.close()
        return answer[2:] if answer[0] == 3 else answer

    def on(self, topic):
        return [message for where, message in self.put if where == topic]


@pytest.fixture
async def bench(tmp_path, broker, request):
    async with RecordingPlc() as plc:
        hmi = free_port()
        plc.words["holding", 0], plc.words["holding", 1] = 123, 2500
        file = tmp_path / "plant.yaml"
        file.write_text(PLANT.format(plc=plc.port, broker=broker.port, hmi=hmi, way=request.param))
        gateway = Gateway(load(file))
        subject = Bench(plc, gateway, hmi)
        running = asyncio.create_task(gateway.run())
        await eventually(lambda: plc.values(40) and subject.on("inv/power") and subject.on("copy/power"))
        yield subject
        gateway.stop()
        await asyncio.wait_for(running, 10)


@pytest.mark.system
@pytest.mark.parametrize("bench", ["hold"], indirect=True)
async def test_nobody_sees_a_value_that_is_held_back(bench):
    await bench.says(65535, 60000)
    assert await bench.register() == struct.pack(">H", 2500)
    await bench.says(124, 2501)
    assert await bench.register() == struct.pack(">H", 2501)
    assert bench.plc.values(40) == [2500, 2501]
    for topic in ("inv/power", "copy/power"):
        found = [(message["value"], message["quality"]) for message in bench.on(topic)]
        assert [item for item in found if item[1] != "bad"] == [(2500, "good"), (2501, "good")]
    said = [message["values"].get("power") for message in bench.on("all/inverter")]
    assert {2500, 2501} <= set(said) <= {2500, 2501, None}
    assert "out of range" not in json.dumps(bench.put)


@pytest.mark.system
@pytest.mark.parametrize("bench", ["bad"], indirect=True)
async def test_a_value_that_is_made_bad_is_told_as_bad(bench):
    await bench.says(65535, 60000)
    assert await bench.register() == b"\x83\x0b"
    await bench.says(124, 2501)
    assert await bench.register() == struct.pack(">H", 2501)
    assert bench.plc.values(40) == [2500, 2501]
    for topic in ("inv/power", "copy/power"):
        found = [(message["value"], message["reason"]) for message in bench.on(topic)]
        assert found[-3:] == [(2500, None), (None, "out of range"), (2501, None)]
    assert {"power": "out of range", "day_energy": "out of range"} in [
        message["bad"] for message in bench.on("all/inverter")
    ]
    assert 60000 not in [message["values"].get("power") for message in bench.on("all/inverter")]


@pytest.mark.system
@pytest.mark.parametrize("bench", ["send"], indirect=True)
async def test_by_default_an_implausible_value_travels_as_uncertain(bench):
    await bench.says(65535, 60000)
    assert await bench.register() == struct.pack(">H", 60000)
    assert bench.plc.values(40) == [2500, 60000]
    assert [message["quality"] for message in bench.on("inv/power")][-2:] == ["good", "uncertain"]
