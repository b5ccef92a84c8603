"""A whole gateway with a CAN bus: from frames to registers and back, watched, read once, simulated."""

import asyncio
import itertools
import os
import shutil
import struct
import time
from pathlib import Path

import can
import pytest
from conftest import eventually, free_port

from fieldbus.canbus import listening
from fieldbus.canbus.bus import BusStatus
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.python_can import PythonCanBus
from fieldbus.cli import write as write_command
from fieldbus.errors import ConfigError
from fieldbus.gateway import oneshot
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.simulation import Simulation
from fieldbus.link import WriteOutcome
from fieldbus.model import Quality
from fieldbus.sample_json import sample_object

ROOT = Path(__file__).parents[2]
_CHANNELS = itertools.count()

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 Status: 8 ECU
 SG_ Speed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
 SG_ Torque : 16|16@1- (0.1,0) [-3000|3000] "Nm" GW
BO_ 257 Quiet: 2 ECU
 SG_ Level : 0|8@1+ (1,0) [0|200] "%" GW
BO_ 258 Hours: 4 ECU
 SG_ Total : 0|32@1+ (1,0) [0|4000000] "h" GW
BO_ 512 Command: 4 GW
 SG_ Speed : 0|16@1+ (0.125,0) [0|8000] "rpm" ECU
 SG_ Limit : 16|8@1+ (1,0) [0|100] "%" ECU
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_DEF_DEF_ "GenMsgCycleTime" 0;
VAL_ 256 Torque 32767 "SNA" ;
"""
CONFIG = """version: 1
gateway: {{name: gw}}
links:
  can0: {{type: can, interface: virtual, channel: {channel}, bitrate: 500000}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}, status_unit: 247}}
devices:
  ecu:
    link: can0
    database: bus.dbc
    messages:
      Status: {{timeout: 400ms}}
      Hours: {{request: {{id: 0x700, data: 01 02}}, scan: 100ms}}
      Command: {{on_bad: {{Speed: 0}}}}
  panel:
    link: hmi
    points:
      speed:     {{table: holding, address: 0, type: float32}}
      bus_state: {{table: holding, address: 2}}
      bus_load:  {{table: holding, address: 3, type: float32}}
      online:    {{table: discrete, address: 0}}
      demand:    {{table: holding, address: 10, type: float32, access: readwrite, min: 0, max: 20000}}
routes:
  - {{from: ecu.Status.Speed, to: panel.speed}}
  - {{from: ecu.Status.Speed, to: ecu.Command.Speed, scale: 0.5}}
  - {{from: panel.demand, to: ecu.Command.Limit, scale: 0.01}}
  - {{from: sys.can0.bus_state, to: panel.bus_state}}
  - {{from: sys.can0.bus_load_percent, to: panel.bus_load}}
  - {{from: sys.ecu.online, to: panel.online}}
"""


class Bench:
    """A gateway that runs, a node on its bus, a master at its registers."""

    def __init__(self, folder, dbc=DBC, config=CONFIG, **names):
        self.folder = folder
        self.port = free_port()
        self.channel = f"can gateway {next(_CHANNELS)}"
        (folder / "bus.dbc").write_text(dbc)
        (folder / "plant.yaml").write_text(config.format(channel=self.channel, hmi=self.port, **names))
        self.plant = load(folder / "plant.yaml")
        self.gateway = Gateway(self.plant)
        self.node = can.Bus(interface="virtual", channel=self.channel)
        self._task = None

    async def __aenter__(self):
        self._task = asyncio.create_task(self.gateway.run())
        await eventually(
            lambda: all(self.plant.link_status[name].is_true("connected") for name in ("can0", "hmi"))
        )
        return self

    async def __aexit__(self, *_):
        self.gateway.stop()
        await asyncio.wait_for(self._task, 10)
        self.node.shutdown()

    @property
    def link(self):
        return self.plant.links["can0"]

    def value(self, address):
        return self.gateway.router.sample(self.plant.points[address])

    def watched(self, address):
        self.gateway.refresh()
        return self.value(address)

    def say(self, frame_id, data, *, is_extended=False, **more):
        self.node.send(can.Message(arbitration_id=frame_id, data=data, is_extended_id=is_extended, **more))

    def heard(self, *, is_polls=False):
        """Return what the gateway sent: its polls of Hours, or everything else."""
        found = []
        while (frame := self.node.recv(0)) is not None:
            if (frame.arbitration_id == 0x700) == is_polls:
                found.append((frame.arbitration_id, bytes(frame.data)))
        return found

    async def ask(self, text, unit_id=1):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        pdu = bytes.fromhex(text)
        writer.write(struct.pack(">HHHB", 7, 0, len(pdu) + 1, unit_id) + pdu)
        head = await reader.readexactly(7)
        response = await reader.readexactly(struct.unpack(">HHHB", head)[2] - 1)
        writer.close()
        await writer.wait_closed()
        return response.hex()

    async def reads(self, text, wanted, unit_id=1):
        for _ in range(300):
            found = await self.ask(text, unit_id)
            if found == wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{text} is answered by {found}, not by {wanted}")


def float_answer(value):
    return "0304" + struct.pack(">f", value).hex()


SPEED, BUS_STATE, BUS_LOAD, ONLINE = "0300000002", "0300020001", "0300030002", "0200000001"


async def test_a_frame_becomes_a_register_and_a_frame_again(tmp_path):
    async with Bench(tmp_path) as bench:
        assert await bench.ask(SPEED) == "830b"
        bench.heard()
        bench.say(256, struct.pack("<HhI", 8000, -50, 0))
        await bench.reads(SPEED, float_answer(1000.0))
        assert bench.heard() == []  # nobody has given Limit a value yet
        await bench.reads(ONLINE, "020101")
        # A master's write is a frame in the same moment, the other signal beside it.
        answer = await bench.ask("10000a000204" + struct.pack(">f", 4200.0).hex())
        assert answer == "10000a0002"
        await eventually(lambda: (512, struct.pack("<HB", 4000, 42) + b"\0") in bench.heard())
        # A node that falls silent: an exception for the master, the safe value on the bus.
        await bench.reads(SPEED, "830b")
        await eventually(lambda: (512, struct.pack("<HB", 0, 42) + b"\0") in bench.heard())
        bench.say(256, struct.pack("<HhI", 16, 0, 0))
        await bench.reads(SPEED, float_answer(2.0))
        assert (512, struct.pack("<HB", 8, 42) + b"\0") in bench.heard()


async def test_what_a_master_writes_beyond_the_signal_stops_the_message_until_it_fits_again(tmp_path):
    async with Bench(tmp_path) as bench:
        await bench.ask("10000a000204" + struct.pack(">f", 5000.0).hex())
        await eventually(lambda: (512, b"\0\0\x32\0") in bench.heard())
        await bench.ask("10000a000204" + struct.pack(">f", 10_100.0).hex())
        await eventually(lambda: bench.gateway.delivered[bench.plant.points["ecu.Command.Limit"]].is_bad)
        bench.say(256, struct.pack("<HhI", 8000, 0, 0))
        await bench.reads(SPEED, float_answer(1000.0))
        assert bench.heard() == []
        await bench.ask("10000a000204" + struct.pack(">f", 200.0).hex())
        await eventually(lambda: (512, struct.pack("<HB", 4000, 2) + b"\0") in bench.heard())


async def test_a_name_among_decimals_is_a_label_like_any_other(tmp_path):
    async with Bench(tmp_path) as bench:
        torque = bench.plant.points["ecu.Status.Torque"]
        bench.gateway.refresh()
        bench.say(256, struct.pack("<HhI", 8, 32767, 0))
        await eventually(lambda: bench.watched(torque.address).value is not None)
        found = sample_object(torque, bench.value(torque.address))
        assert (found["value"], found["quality"], found["label"]) == (3276.7, "good", "SNA")
        bench.say(256, struct.pack("<HhI", 8, 32766, 0))
        await eventually(lambda: bench.watched(torque.address).value == 3276.6)
        assert "label" not in sample_object(torque, bench.value(torque.address))
        assert oneshot.parse_value(torque, "SNA") == 3276.7


async def test_a_polled_node_is_asked_and_its_answer_seen_by_who_looks(tmp_path):
    async with Bench(tmp_path) as bench:
        bench.gateway.refresh()
        await eventually(lambda: (0x700, b"\1\2") in bench.heard(is_polls=True))
        bench.say(258, struct.pack("<I", 1234))
        await eventually(lambda: bench.watched("ecu.Hours.Total").value == 1234)


async def test_the_state_of_the_bus_is_in_registers(tmp_path, monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.health.PERIOD_S", 0.05)
    monkeypatch.setattr("fieldbus.gateway.runtime.STATUS_PERIOD_S", 0.05)
    known = {"state": None, "frames": None, "data_bytes": None}
    monkeypatch.setattr(PythonCanBus, "status", lambda _self: BusStatus(**known))
    async with Bench(tmp_path) as bench:
        assert await bench.ask(BUS_STATE) == "830b"  # python-can does not know it: no 0 for "active"
        assert await bench.ask(BUS_LOAD) == "830b"
        known.update(state=0, frames=0, data_bytes=0)
        await bench.reads(BUS_STATE, "03020000")
        await bench.reads(BUS_LOAD, float_answer(0.0))
        bench.say(256, struct.pack("<HhI", 8000, 0, 0))
        await bench.reads(SPEED, float_answer(1000.0))
        # Bus-off, and everything on the bus is bad with it.
        known.update(state=3)
        await bench.reads(BUS_STATE, "03020003")
        await bench.reads(SPEED, "830b")
        assert bench.value("ecu.Status.Speed").reason == "bus down"
        bench.heard()
        bench.say(256, struct.pack("<HhI", 800, 0, 0))
        await asyncio.sleep(0.1)
        assert bench.heard() == []
        known.update(state=0, frames=25, data_bytes=200)
        await bench.reads(BUS_STATE, "03020000")


async def test_the_load_of_the_bus_is_what_its_frames_take_of_the_bitrate(tmp_path, monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.health.PERIOD_S", 0.05)
    monkeypatch.setattr("fieldbus.gateway.runtime.STATUS_PERIOD_S", 0.05)
    began_s = time.monotonic()

    def status(_self):
        # A thousand frames a second, of up to 160 bits (extended, 8 bytes, as many stuff bits as can be).
        frames = int((time.monotonic() - began_s) * 1000)
        return BusStatus(state=0, frames=frames, data_bytes=8 * frames)

    monkeypatch.setattr(PythonCanBus, "status", status)
    async with Bench(tmp_path) as bench:
        seen = set()

        def is_seen():
            seen.add(bench.value("sys.can0.bus_load_percent").value)
            return len(seen - {None, 0.0}) >= 5

        await eventually(is_seen)
        loads = sorted(seen - {None, 0.0})
        assert loads[len(loads) // 2] == pytest.approx(100 * 1000 * 160 / 500_000, rel=0.1)
        reply = bytes.fromhex(await bench.ask(BUS_LOAD))
        assert struct.unpack(">f", reply[2:])[0] == pytest.approx(32, rel=0.5)


async def test_an_error_frame_that_tells_of_bus_off_is_in_a_register_before_anybody_asks(
    tmp_path, monkeypatch
):
    # Nobody looks at the interface in this time, and to it the bus is well: only the frame can tell.
    monkeypatch.setattr("fieldbus.canbus.health.PERIOD_S", 60.0)
    monkeypatch.setattr("fieldbus.gateway.runtime.STATUS_PERIOD_S", 60.0)
    monkeypatch.setattr(PythonCanBus, "status", lambda _self: BusStatus(state=0, frames=0, data_bytes=0))
    async with Bench(tmp_path) as bench:
        await bench.reads(BUS_STATE, "03020000")
        bench.say(256, struct.pack("<HhI", 8000, 0, 0))
        await bench.reads(SPEED, float_answer(1000.0))
        began_s = time.monotonic()
        bench.say(0x40, bytes(8), is_error_frame=True)
        await bench.reads(BUS_STATE, "03020003")
        assert bench.value("ecu.Status.Speed").reason == "bus down"
        # Sooner than the shortest cycle in which anything here is looked at.
        assert time.monotonic() - began_s < 0.4


async def test_the_status_map_has_the_bus_without_a_route(tmp_path, monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.health.PERIOD_S", 0.05)
    monkeypatch.setattr("fieldbus.gateway.runtime.STATUS_PERIOD_S", 0.05)
    monkeypatch.setattr(PythonCanBus, "status", lambda _self: BusStatus(state=2, tx_errors=130, rx_errors=3))
    async with Bench(tmp_path) as bench:
        parts = {item.point.name: item for item in bench.plant.devices["hmi_status"].parts}
        assert {"can0.connected", "can0.bus_state", "can0.bus_load_percent", "can0.tx_error_count"} <= set(
            parts
        )
        for name, wanted in (("bus_state", 2), ("tx_error_count", 130), ("rx_error_count", 3)):
            place = parts[f"can0.{name}"]
            request = struct.pack(">BHH", 4, place.address, place.count).hex()
            await bench.reads(request, "04" + float_answer(wanted)[2:], 247)


async def test_who_looks_sees_what_no_route_wants_and_only_as_long_as_he_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(listening, "WATCH_S", 0.5)
    async with Bench(tmp_path) as bench:

        def passing():
            return {item["can_id"] for item in bench.link._bus._bus.filters}

        assert passing() == {256}
        bench.say(257, b"\x2a\0")
        bench.say(256, struct.pack("<HhI", 8000, -50, 0))
        await eventually(lambda: bench.value("ecu.Status.Speed").value == 1000)
        assert bench.watched("ecu.Quiet.Level").reason == "waiting for first value"
        assert passing() == {256, 257, 258}
        bench.say(257, b"\x2a\0")
        bench.say(256, struct.pack("<HhI", 8000, -50, 0))
        await eventually(lambda: bench.watched("ecu.Quiet.Level").value == 42)
        assert bench.watched("ecu.Status.Torque").value == -5.0
        bench.say(256, struct.pack("<HhI", 8000, 70, 0))
        await eventually(lambda: bench.watched("ecu.Status.Torque").value == 7.0)
        # The unrouted half goes with the routed one.
        await eventually(lambda: bench.watched("ecu.Status.Speed").reason == "stale")
        assert bench.watched("ecu.Status.Torque").reason == "stale"
        await eventually(lambda: passing() == {256})
        bench.say(257, b"\x2b\0")
        assert bench.watched("ecu.Quiet.Level").reason == "waiting for first value"


# --- what check says of messages that are sent


def loaded(folder, messages, dbc, *targets):
    (folder / "bus.dbc").write_text(dbc)
    routes = "".join(f"  - {{from: panel.demand, to: ecu.{target}}}\n" for target in targets)
    (folder / "plant.yaml").write_text(
        f"""version: 1
gateway: {{name: gw}}
links:
  can0: {{type: can, interface: virtual, channel: x}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: 1503}}
devices:
  ecu: {{link: can0, database: bus.dbc, messages: {messages}}}
  panel: {{link: hmi, points: {{demand: {{table: holding, address: 10, access: readwrite, max: 100}}}}}}
routes:
{routes}"""
    )
    return load(folder / "plant.yaml")


def test_signals_that_nothing_routes_to_are_listed_with_their_values(tmp_path):
    dbc = DBC + 'BA_DEF_ SG_ "GenSigStartValue" INT 0 255;\nBA_ "GenSigStartValue" SG_ 512 Limit 80;\n'
    (warning,) = loaded(tmp_path, "{}", dbc, "Command.Speed").warnings
    assert warning.path == "devices.ecu"
    assert warning.message == "Command is sent with signals that no route writes: Limit=80 %"
    assert loaded(tmp_path, "{Command: {on_bad: {Limit: 50}}}", dbc, "Command.Speed").warnings == []


def test_a_multiplexer_that_nothing_sets_is_a_problem(tmp_path):
    dbc = DBC.replace("BO_ 512", 'BO_ 513 Paged: 3 GW\n SG_ Page M : 0|8@1+ (1,0) [0|0] "" ECU\n'
                      ' SG_ A m1 : 8|8@1+ (1,0) [0|0] "" ECU\n SG_ C : 16|8@1+ (1,0) [0|0] "" ECU\n'
                      "BO_ 512")  # fmt: skip
    with pytest.raises(ConfigError, match=r"ecu\.Paged cannot be sent: nothing sets its multiplexer Page"):
        loaded(tmp_path, "{}", dbc, "Paged.C")
    assert loaded(tmp_path, "{}", dbc, "Paged.A").warnings[0].message.endswith("C=0")
    assert loaded(tmp_path, "{Paged: {on_bad: {Page: 1, A: 0}}}", dbc, "Paged.C").warnings == []


# --- one-shot


async def test_points_are_read_once_beside_the_running_gateway(tmp_path):
    async with Bench(tmp_path) as bench:
        plant = load(tmp_path / "plant.yaml")
        names = ("ecu.Status.Torque", "ecu.Quiet.Level", "ecu.Hours.Total")
        points = [plant.points[name] for name in names]

        async def answer():
            while True:
                await eventually(lambda: (0x700, b"\1\2") in bench.heard(is_polls=True))
                bench.say(258, struct.pack("<I", 99))
                bench.say(256, struct.pack("<HhI", 0, -50, 0))

        answering = asyncio.create_task(answer())
        found = await oneshot.read(plant, points, 1.0)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        assert [found[point].value for point in points] == [-5.0, None, 99]
        assert found[points[1]].reason == "waiting for first value"


async def test_a_signal_is_written_once(tmp_path):
    async with Bench(tmp_path) as bench:
        plant = load(tmp_path / "plant.yaml")
        bench.heard()
        limit, speed = plant.points["ecu.Command.Limit"], plant.points["ecu.Status.Speed"]
        torque = plant.points["ecu.Status.Torque"]
        (result,) = await oneshot.write(plant, {limit: 60}, 1.0)
        assert result.outcome is WriteOutcome.WRITTEN
        assert result.reason == "in the same frame: Speed=0 rpm"  # which the configuration names
        assert bench.heard() == [(512, b"\0\0\x3c\0")]
        (result,) = await oneshot.write(plant, {limit: 101}, 1.0)
        assert (result.outcome, "outside 0 … 100" in result.reason) == (WriteOutcome.REFUSED, True)
        assert bench.heard() == []
        # Others' messages can be sent too, but no signal of them has a value that nobody gave.
        (result,) = await oneshot.write(plant, {speed: 101}, 1.0)
        assert result.outcome is WriteOutcome.REFUSED
        assert "Status has no value for Torque" in result.reason
        assert bench.heard() == []
        results = await oneshot.write(plant, {speed: 101, torque: -5}, 1.0)
        assert [result.outcome for result in results] == [WriteOutcome.WRITTEN] * 2
        assert bench.heard() == [(256, struct.pack("<HhI", 808, -50, 0))]


J1939 = """version: 1
gateway: {{name: gw}}
links:
  can0: {{type: can, interface: virtual, channel: {channel}, j1939: {{address: 0x90}}}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
devices:
  engine:
    link: can0
    database: bus.dbc
    source_address: 0
    messages:
      HOURS: {{request: pgn, scan: 10s}}
      TSC1: {{destination: 0, on_bad: not_available}}
  panel: {{link: hmi, points: {{speed: {{table: holding, address: 0, type: float32}}}}}}
routes:
  - {{from: engine.EEC1.EngSpeed, to: panel.speed}}
"""


def on_bus(pgn, source, destination=255, priority=6):
    return j1939.identifier(pgn, source, destination, priority) & 0x1FFFFFFF


class Engine:
    """A J1939 node beside a configuration that nobody runs."""

    def __init__(self, folder):
        channel = f"can gateway {next(_CHANNELS)}"
        shutil.copy(ROOT / "configs" / "j1939-engine.dbc", folder / "bus.dbc")
        (folder / "plant.yaml").write_text(J1939.format(channel=channel, hmi=free_port()))
        self.plant = load(folder / "plant.yaml")
        self.node = can.Bus(interface="virtual", channel=channel)
        self.heard = []

    async def answer(self, wanted, *replies):
        def is_there():
            while (frame := self.node.recv(0)) is not None:
                self.heard.append((frame.arbitration_id, bytes(frame.data)))
            return wanted in self.heard

        await eventually(is_there)
        for frame_id, data in replies:
            self.node.send(can.Message(arbitration_id=frame_id, data=data, is_extended_id=True))


@pytest.fixture
def engine(tmp_path):
    subject = Engine(tmp_path)
    yield subject
    subject.node.shutdown()


OURS = 128 + os.getpid() % 120
"""The address that a one-shot claims: not the gateway's, which may be running."""
REQUEST_HOURS = on_bus(j1939.REQUEST, OURS, 0), (0xFEE5).to_bytes(3, "little")


async def test_a_pgn_is_asked_for_once_under_an_address_that_was_claimed(engine):
    hours = engine.plant.points["engine.HOURS.EngTotalHours"]
    reply = on_bus(0xFEE5, 0), struct.pack("<I", 2000) + b"\xff" * 4
    answering = asyncio.create_task(engine.answer(REQUEST_HOURS, reply))
    found = await oneshot.read(engine.plant, [hours], 3.0)
    await answering
    assert found[hours].value == 100.0
    pgns = [j1939.pgn_of(frame_id) for frame_id, _ in engine.heard]
    assert pgns == [j1939.REQUEST, j1939.ADDRESS_CLAIMED, j1939.REQUEST]


async def test_a_node_that_refuses_a_pgn_is_believed(engine):
    hours = engine.plant.points["engine.HOURS.EngTotalHours"]
    refusal = bytes([1, 0xFF, 0xFF, 0xFF, OURS]) + (0xFEE5).to_bytes(3, "little")
    answering = asyncio.create_task(engine.answer(REQUEST_HOURS, (on_bus(j1939.ACKNOWLEDGEMENT, 0), refusal)))
    found = await oneshot.read(engine.plant, [hours], 3.0)
    await answering
    assert found[hours].reason == "not available: refused by the node"


async def test_who_only_reads_what_is_sent_anyway_is_silent(engine):
    speed = engine.plant.points["engine.EEC1.EngSpeed"]

    async def say():
        await asyncio.sleep(0.1)
        data = b"\xff\xff\xff\x40\x1f\xff\xff\xff"
        engine.node.send(
            can.Message(arbitration_id=on_bus(0xF004, 0, priority=3), data=data, is_extended_id=True)
        )

    saying = asyncio.create_task(say())
    found = await oneshot.read(engine.plant, [speed], 2.0)
    await saying
    assert found[speed].value == 1000.0
    assert engine.node.recv(0) is None


async def test_a_j1939_signal_is_written_once_under_an_address_that_was_claimed(engine):
    demand = engine.plant.points["engine.TSC1.EngRequestedSpeed"]
    mode = engine.plant.points["engine.TSC1.EngOverrideControlMode"]
    (result,) = await oneshot.write(engine.plant, {demand: 1000}, 3.0)
    assert result.outcome is WriteOutcome.REFUSED
    assert "TSC1 has no value for EngOverrideControlMode" in result.reason
    results = await oneshot.write(engine.plant, {demand: 1000, mode: 1}, 3.0)
    assert [result.outcome for result in results] == [WriteOutcome.WRITTEN] * 2
    await engine.answer((on_bus(0, OURS, 0, 3), b"\xfd\x40\x1f\xff\xff\xff\xff\xff"))
    pgns = [j1939.pgn_of(frame_id) for frame_id, _ in engine.heard]
    assert pgns == [*[j1939.REQUEST, j1939.ADDRESS_CLAIMED] * 2, 0]


# --- simulators


async def all_good(plant, timeout_s):
    """Run a plant against its simulators until all its CAN points are good; return those that never were."""
    simulation = Simulation(plant)
    await simulation.open()
    gateway = Gateway(plant)
    tasks = [asyncio.create_task(gateway.run()), asyncio.create_task(simulation.run())]
    points = {
        point
        for link in plant.links.values()
        if type(link).__name__ == "CanLink"
        for group in link.groups
        for point in group.points
    }
    assert points
    missing = {}
    try:
        for _ in range(int(timeout_s / 0.05)):
            gateway.refresh()
            missing = {}
            for point in points:
                sample = gateway.router.sample(point)
                if sample.quality is not Quality.GOOD:
                    missing[point.address] = sample.reason
            if not missing:
                break
            await asyncio.sleep(0.05)
    finally:
        gateway.stop()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return missing


def examples():
    folder = ROOT / "configs"
    found = [file for file in sorted(folder.glob("*.yaml")) if "type: can" in file.read_text()]
    return [*found, ROOT / "fieldbus" / "simulate" / "demo" / "demo.yaml"]


@pytest.mark.parametrize("file", examples(), ids=lambda file: file.stem)
async def test_every_can_point_of_every_example_is_good_soon_when_simulated(tmp_path, file, monkeypatch):
    # Beside itself, so that nothing of the machine's ports and folders is touched.
    shutil.copytree(file.parent, tmp_path / "plant")
    text = (tmp_path / "plant" / file.name).read_text()
    for port in ("1502", "1503", "1504"):
        text = text.replace(f"port: {port}", f"port: {free_port()}")
    (tmp_path / "plant" / file.name).write_text(text)
    assert await all_good(load(tmp_path / "plant" / file.name, needs_secrets=False), 12.0) == {}


HARD_DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 Sealed: 8 ECU
 SG_ Value : 0|16@1+ (0.1,0) [0|6000] "V" GW
 SG_ Alive : 48|4@1+ (1,0) [0|15] "" GW
 SG_ Crc : 56|8@1+ (1,0) [0|255] "" GW
BO_ 257 Header: 8 ECU
 SG_ Value : 32|16@1- (1,0) [-30000|30000] "" GW
BO_ 258 Paged: 8 ECU
 SG_ Page M : 0|4@1+ (1,0) [0|15] "" GW
 SG_ Common : 8|8@1+ (1,0) [0|200] "" GW
 SG_ One m1 : 16|16@1+ (1,0) [0|60000] "" GW
 SG_ Two m2 : 16|32@1- (0.5,0) [-1000|1000] "" GW
 SG_ Nine m9 : 23|16@0+ (1,0) [0|60000] "" GW
BO_ 259 Wide: 8 ECU
 SG_ All : 7|64@0- (1,0) [0|0] "" GW
BO_ 260 Real: 8 ECU
 SG_ F : 0|32@1- (1,0) [-10|10] "" GW
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_DEF_DEF_ "GenMsgCycleTime" 0;
BA_ "GenMsgCycleTime" BO_ 256 20;
BA_ "GenMsgCycleTime" BO_ 257 50;
BA_ "GenMsgCycleTime" BO_ 258 50;
SIG_VALTYPE_ 260 F : 1;
"""
HARD = """version: 1
gateway: {{name: gw}}
links:
  can0: {{type: can, interface: socketcan, channel: can0}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
devices:
  ecu:
    link: can0
    database: bus.dbc
    messages:
      Sealed: {{checksum: {{signal: Crc, algorithm: crc8-j1850}}, counter: {{signal: Alive, modulo: 15}}}}
      Header: {{e2e: {{profile: "5", data_id: 0x1234}}}}
      Wide: {{request: {{rtr: true}}, scan: 200ms}}
  panel: {{link: hmi, points: {{value: {{table: holding, address: 0, type: float32}}, wide: {{table: holding, address: 4, type: int64}}}}}}
routes:
  - {{from: ecu.Sealed.Value, to: panel.value}}
  - {{from: ecu.Wide.All, to: panel.wide}}
"""


async def test_checksums_counters_branches_and_requests_are_simulated(tmp_path):
    (tmp_path / "bus.dbc").write_text(HARD_DBC)
    (tmp_path / "plant.yaml").write_text(HARD.format(hmi=free_port()))
    assert await all_good(load(tmp_path / "plant.yaml"), 8.0) == {}


async def test_long_messages_and_faults_of_a_j1939_node_are_simulated(tmp_path):
    shutil.copy(ROOT / "configs" / "j1939-engine.dbc", tmp_path / "bus.dbc")
    text = J1939.replace("HOURS:", "DM2: {{request: pgn}}\n      HOURS:")
    text = text.replace("points: {{", "points: {{faults: {{table: holding, address: 4, count: 2}}, ")
    text += "  - {{from: engine.DM1.FaultCount, to: panel.faults.0}}\n"
    text += "  - {{from: engine.DM2.FaultCount, to: panel.faults.1}}\n"
    (tmp_path / "plant.yaml").write_text(
        text.format(channel=f"can gateway {next(_CHANNELS)}", hmi=free_port())
    )
    missing = await all_good(load(tmp_path / "plant.yaml"), 12.0)
    assert missing == {}


async def _write_together(bench, values):
    """Give values to the running gateway as `fieldbus write` does."""
    door = ControlServer(bench.gateway, None)
    serving = asyncio.create_task(door.run())
    try:
        await eventually((bench.plant.data_dir / "gateway.json").exists)
        return await write_command._write_by_gateway(
            bench.plant, {bench.plant.points[name]: value for name, value in values.items()}, "write", 5.0
        )
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def _frames_of(node, can_id):
    found = []
    while (message := node.recv(0.2)) is not None:
        if message.arbitration_id == can_id:
            found.append(bytes(message.data).hex())
    return found


WRITTEN = CONFIG.replace("      Command: {{on_bad: {{Speed: 0}}}}\n", "")


async def test_values_of_one_message_are_written_in_one_frame(tmp_path):
    async with Bench(tmp_path, config=WRITTEN) as bench:
        found = await _write_together(bench, {"ecu.Command.Speed": 100, "ecu.Command.Limit": 50})
        assert [(item["point"], item["outcome"]) for item in found] == [
            ("ecu.Command.Speed", "written"), ("ecu.Command.Limit", "written"),
        ]  # fmt: skip
        assert _frames_of(bench.node, 512) == ["20033200"]
        refused = await _write_together(bench, {"ecu.Command.Speed": 200, "ecu.Command.Limit": 101})
        assert [(item["outcome"], item["reason"]) for item in refused] == [
            ("refused", "not written: ecu.Command.Limit, which is written with it, was not"),
            ("refused", "101 is outside 0 … 100"),
        ]
        assert _frames_of(bench.node, 512) == []
