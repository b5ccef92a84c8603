"""The gateway whole, in one process: registers, frames and routes between them."""

import asyncio
import dataclasses
import itertools
import logging
import struct
import time

import can
import pytest
from conftest import eventually, free_port

from fieldbus.errors import LinkDownError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import snapshot
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.simulation import Simulation
from fieldbus.link import Delivery, Regrouped, Target
from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.table_image import BlockRules
from fieldbus.model import NO_FLAWS, Batch, Group, Kind, Point, Quality, Sample

_CHANNELS = itertools.count()

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 EngineStatus: 8 ECU
 SG_ EngineSpeed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
BO_ 512 PanelStatus: 2 GW
 SG_ CoolantTemp : 0|16@1- (0.1,0) [-40|210] "degC" ECU
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_ "GenMsgCycleTime" BO_ 256 100;
"""

PLANT = """version: 1
gateway: {{name: gw}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 200ms}}
  can0: {{type: can, interface: virtual, channel: {channel}}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
devices:
  press:
    link: plc
    scan: 20ms
    points:
      temperature: {{table: holding, address: 0, type: float32, unit: °C}}
      speed: {{table: holding, address: 10, access: readwrite, min: 0, max: 3000}}
      start: {{table: coil, address: 0, access: readwrite}}
  engine: {{link: can0, database: engine.dbc}}
  panel:
    link: hmi
    points:
      engine_speed: {{table: holding, address: 0, type: float32}}
      temperature: {{table: holding, address: 2, type: float32, on_bad: nan}}
      online: {{table: discrete, address: 0}}
      start: {{table: coil, address: 0, access: readwrite}}
routes:
  - {{from: engine.EngineStatus.EngineSpeed, to: panel.engine_speed}}
  - {{from: engine.EngineStatus.EngineSpeed, to: press.speed}}
  - {{from: press.temperature, to: engine.PanelStatus.CoolantTemp}}
  - {{from: press.temperature, to: panel.temperature}}
  - {{from: sys.press.online, to: panel.online}}
  - {{from: panel.start, to: press.start}}
"""


def plc_point(name, address, type_="uint16", table=Table.HOLDING, kind=Kind.INT):
    own = Point("plc", name, kind, carries_quality=True)
    return RegisterPoint(own, table, address, RegisterType(type_), is_open_to_masters=True)


class Bench:
    """A PLC, a CAN node, a master, and the gateway between them."""

    def __init__(self, folder):
        self.ports = {"plc": free_port(), "hmi": free_port()}
        self.channel = f"gateway {next(_CHANNELS)}"
        (folder / "engine.dbc").write_text(DBC)
        (folder / "plant.yaml").write_text(PLANT.format(channel=self.channel, **self.ports))
        self.gateway = Gateway(load(folder / "plant.yaml"))
        self.node = can.Bus(interface="virtual", channel=self.channel)
        self.temperature = plc_point("temperature", 0, "float32", kind=Kind.FLOAT)
        self.speed = plc_point("speed", 10)
        self.start = plc_point("start", 0, "bool", Table.COIL, Kind.BOOL)
        self.written = []
        self.plc = None
        self.tasks = []

    async def start_plc(self, temperature=72.5):
        units = [
            ServedUnit("plc", 1, [self.temperature, self.speed, self.start], BlockRules(fills_gaps=True))
        ]
        self.plc = ModbusServerLink("plc", "127.0.0.1", self.ports["plc"], units)
        await self.plc.connect()
        self.tasks.append(asyncio.create_task(self.plc.run(self.written.append, lambda _: None)))
        for place, value in ((self.temperature, temperature), (self.speed, 0), (self.start, False)):
            self.put(place, value)

    async def stop_plc(self):
        await self.plc.close()

    def put(self, place, value):
        sample = Sample(value, Quality.GOOD, None, time.time_ns())
        self.plc.send([Delivery(Target("", place.point), place.point, sample)])

    def value(self, address):
        return self.gateway.router.sample(self.gateway.plant.points[address])

    async def ask(self, pdu, unit_id=1):
        """Ask the gateway's own registers as a master does, and return the response PDU."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports["hmi"])
        writer.write(struct.pack(">HHHB", 7, 0, len(pdu) + 1, unit_id) + pdu)
        head = await reader.readexactly(7)
        response = await reader.readexactly(struct.unpack(">HHHB", head)[2] - 1)
        writer.close()
        await writer.wait_closed()
        return response

    async def holding(self, address, count=2):
        return await self.ask(struct.pack(">BHH", 3, address, count))


@pytest.fixture
async def bench(tmp_path):
    subject = Bench(tmp_path)
    await subject.start_plc()
    running = asyncio.create_task(subject.gateway.run())
    yield subject
    subject.gateway.stop()
    await asyncio.wait_for(running, 10)
    for task in subject.tasks:
        task.cancel()
    await asyncio.gather(*subject.tasks, return_exceptions=True)
    await subject.plc.close()
    subject.node.shutdown()


async def test_a_can_signal_is_readable_in_a_register(bench):
    await eventually(lambda: bench.value("sys.can0.connected").value)
    assert await bench.holding(0) == b"\x83\x0b"  # nothing was heard yet
    bench.node.send(
        can.Message(arbitration_id=256, data=struct.pack("<HHI", 12000, 0, 0), is_extended_id=False)
    )
    await eventually(lambda: bench.value("engine.EngineStatus.EngineSpeed").value == 1500)
    assert await bench.holding(0) == b"\x03\x04" + struct.pack(">f", 1500.0)


async def test_a_can_signal_is_written_into_the_plc(bench):
    await eventually(lambda: bench.value("sys.can0.connected").value)
    bench.node.send(
        can.Message(arbitration_id=256, data=struct.pack("<HHI", 12000, 0, 0), is_extended_id=False)
    )
    await eventually(lambda: bench.value("press.speed").value == 1500)


async def test_a_value_beyond_what_the_plc_may_get_is_refused_and_said_once(bench, caplog):
    caplog.set_level(logging.INFO)
    await eventually(lambda: bench.value("sys.can0.connected").value)
    for raw in (32000, 32008, 8000):
        bench.node.send(
            can.Message(arbitration_id=256, data=struct.pack("<HHI", raw, 0, 0), is_extended_id=False)
        )
    await eventually(lambda: bench.value("press.speed").value == 1000)
    said = [record.message for record in caplog.records if "press.speed" in record.message]
    assert said == [
        "press.speed: value of engine.EngineStatus.EngineSpeed refused, 4000 is outside 0 … 3000",
        "press.speed: values fit again",
    ]


async def test_a_register_becomes_a_can_frame(bench):
    await eventually(lambda: (frame := bench.node.recv(0)) is not None and frame.arbitration_id == 512)
    bench.put(bench.temperature, -12.3)
    frames = []
    await eventually(lambda: (frame := bench.node.recv(0)) is not None and frames.append(frame) is None)
    assert (frames[0].arbitration_id, bytes(frames[0].data)) == (512, struct.pack("<h", -123))


async def test_a_coil_that_a_master_writes_is_written_to_the_plc(bench):
    await eventually(lambda: bench.value("sys.plc.connected").value)
    assert await bench.ask(bytes.fromhex("050000ff00")) == bytes.fromhex("050000ff00")
    await eventually(lambda: bench.written)
    assert bench.written[0].values == (True,)


async def test_a_plc_that_dies_is_bad_at_once_and_comes_back(bench, caplog):
    caplog.set_level(logging.INFO)
    await eventually(lambda: bench.value("press.temperature").value == 72.5)
    assert await bench.holding(2) == b"\x03\x04" + struct.pack(">f", 72.5)
    assert await bench.ask(b"\x02\0\0\0\1") == b"\x02\x01\x01"
    await bench.stop_plc()
    await eventually(lambda: bench.value("press.temperature").reason == "not connected")
    assert await bench.holding(2) == b"\x03\x04\x7f\xc0\0\0"  # on_bad: nan
    assert await bench.ask(b"\x02\0\0\0\1") == b"\x02\x01\x00"
    await bench.start_plc(temperature=20.0)
    await eventually(lambda: bench.value("press.temperature").value == 20.0)
    assert await bench.holding(2) == b"\x03\x04" + struct.pack(">f", 20.0)
    said = [record.message for record in caplog.records if record.message.startswith("plc:")]
    assert [line.split(" (")[0].split(" after")[0] for line in said if "simulated" not in line] in (
        [f"plc: connected to 127.0.0.1:{bench.ports['plc']}", "plc: lost",
         f"plc: no connection to 127.0.0.1:{bench.ports['plc']}",
         f"plc: back, connected to 127.0.0.1:{bench.ports['plc']}"],
        [f"plc: connected to 127.0.0.1:{bench.ports['plc']}", "plc: lost",
         f"plc: back, connected to 127.0.0.1:{bench.ports['plc']}"],
    )  # fmt: skip
    assert not [record for record in caplog.records if record.exc_info]


async def test_after_an_outage_states_are_written_anew_and_commands_are_not(bench):
    """A speed that is still measured reaches the PLC that was away; a start that was pressed does not."""
    await eventually(lambda: bench.value("press.temperature").value == 72.5)
    status = can.Message(arbitration_id=256, data=struct.pack("<HHI", 8000, 0, 0), is_extended_id=False)
    bench.node.send(status)
    await eventually(lambda: bench.value("press.speed").value == 1000)
    await bench.stop_plc()
    await eventually(lambda: bench.value("press.temperature").reason == "not connected")
    await bench.ask(bytes.fromhex("050000ff00"))  # a master presses start
    bench.written.clear()
    await bench.start_plc()
    await eventually(lambda: bench.value("press.temperature").value == 72.5)
    bench.node.send(status)  # the same speed, measured again
    await eventually(lambda: bench.value("press.speed").value == 1000)
    assert bench.value("press.start").value is False
    assert [batch.values for batch in bench.written] == [(1000,)]


async def test_what_was_not_delivered_is_not_shown_as_good(bench):
    await eventually(lambda: bench.value("press.temperature").value == 72.5)
    point = bench.gateway.plant.points["press.start"]
    await bench.ask(bytes.fromhex("050000ff00"))
    await eventually(lambda: bench.written)
    assert bench.gateway.delivered[point].value is True
    await bench.stop_plc()
    await eventually(lambda: bench.value("press.temperature").reason == "not connected")
    assert bench.gateway.delivered[point].reason == "not connected"


async def test_a_link_with_a_bug_does_not_take_the_gateway_along(bench, caplog):
    await eventually(lambda: bench.value("press.temperature").value == 72.5)
    link = bench.gateway.plant.links["can0"]

    async def broken(emit, report):
        raise ZeroDivisionError

    link.run = broken
    link._lost.set_exception(ZeroDivisionError())
    await eventually(lambda: "internal error" in caplog.text)
    bench.put(bench.temperature, 30.0)
    await eventually(lambda: bench.value("press.temperature").value == 30.0)


async def test_stopping_takes_little_time_even_while_links_wait(bench):
    await bench.stop_plc()
    await eventually(lambda: bench.value("press.temperature").reason == "not connected")
    began_s = time.monotonic()
    bench.gateway.stop()
    await asyncio.sleep(0)
    await eventually(
        lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("link ")], 8.0
    )
    assert time.monotonic() - began_s < 3.0


class Learner:
    """A link that learns, while it runs, to acquire its points in other groups."""

    name = "plc"
    is_listener = False
    endpoint = "nowhere"
    counters: dict[str, int] = {}  # noqa: RUF012
    measures: dict[str, dict[str, float]] = {}  # noqa: RUF012

    def __init__(self, points):
        self.groups = [Group("all", points)]
        self.has_learnt = asyncio.Event()
        self.lost = asyncio.Event()

    async def connect(self):
        if self.has_learnt.is_set():
            raise LinkDownError("gone")

    async def run(self, emit, report):
        emit(self._batch(self.groups[0], 1))
        removed, self.groups = self.groups, [Group(point.name, [point]) for point in self.groups[0].points]
        report(Regrouped(removed, self.groups))
        emit(self._batch(self.groups[0], 2))
        self.has_learnt.set()
        await self.lost.wait()
        raise LinkDownError("gone")

    def _batch(self, group, value):
        values = (value,) * len(group.points)
        return Batch(group, time.time_ns(), time.monotonic(), values, NO_FLAWS, group.everything)

    def send(self, deliveries):
        return deliveries

    async def close(self):
        pass


async def test_a_link_may_regroup_its_points_while_it_runs(tmp_path):
    (tmp_path / "engine.dbc").write_text(DBC)
    text = PLANT.format(channel=f"gateway {next(_CHANNELS)}", plc=free_port(), hmi=free_port())
    (tmp_path / "plant.yaml").write_text(text)
    plant = load(tmp_path / "plant.yaml")
    points = [plant.points[f"press.{name}"] for name in ("temperature", "speed", "start")]
    link = Learner(points)
    plant = dataclasses.replace(plant, links={**plant.links, "plc": link})
    gateway = Gateway(plant)
    told = {}
    assert len([item for item in snapshot(gateway, told) if item["point"].startswith("press.")]) == 3
    running = asyncio.create_task(gateway.run())
    await asyncio.wait_for(link.has_learnt.wait(), 5)
    assert [gateway.router.sample(point).value for point in points] == [2, 1, 1]
    seen = {item["point"]: item for item in snapshot(gateway, told)}
    assert [seen[point.address]["value"] for point in points] == [2, 1, 1]
    link.lost.set()
    await eventually(lambda: gateway.router.sample(points[2]).reason == "not connected")
    assert [gateway.router.sample(point).reason for point in points] == ["not connected"] * 3
    gateway.stop()
    await asyncio.wait_for(running, 10)


async def test_a_simulated_gateway_asks_its_simulator_and_no_real_device(tmp_path):
    """The device's own address is one where nobody is; the simulator is elsewhere."""
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "version: 1\ngateway: {name: gw, data_dir: kept}\n"
        "links:\n  plc: {type: modbus-tcp, host: 192.0.2.1, port: 502, timeout: 500ms}\n"
        "devices:\n  press: {link: plc, scan: 50ms, points: {speed: {table: holding, address: 0}}}\n"
    )
    plant = load(file)
    simulation = Simulation(plant)
    await simulation.open()
    gateway = Gateway(plant)
    tasks = [asyncio.create_task(gateway.run()), asyncio.create_task(simulation.run())]
    point = gateway.points["press.speed"]
    try:
        await eventually(lambda: (sample := gateway.router.sample(point)) and not sample.is_bad)
    finally:
        gateway.stop()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
