"""Stepped runs: a whole configuration on the time of its logs, the same every time."""

import asyncio
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fieldbus.canbus.bus import EXTENDED
from fieldbus.canbus.codec import BranchDecoder
from fieldbus.cli.main import app
from fieldbus.clock import SYSTEM
from fieldbus.errors import LinkDownError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.stepped import SteppedError, SteppedLoop, run_stepped, stepped_links
from fieldbus.link import DeviceHealth
from fieldbus.model import Batch, Group, Reason

START = 1_345_212_884

DBC = """VERSION ""
NS_ :
BS_:
BU_: ECU GW
BO_ 256 EngineStatus: 8 ECU
 SG_ EngineSpeed : 0|16@1+ (0.125,0) [0|8000] "rpm" GW
 SG_ Level : 16|8@1+ (1,0) [0|255] "%" GW
BO_ 512 PanelStatus: 2 GW
 SG_ CoolantTemp : 0|16@1- (0.1,0) [-40|210] "degC" ECU
BA_DEF_ BO_ "GenMsgCycleTime" INT 0 65535;
BA_ "GenMsgCycleTime" BO_ 256 100;
"""

PLANT = """version: 1
gateway: {{name: gw}}
links:
  can0: {{type: can, interface: replay, channel: a.log, speed: stepped}}
  can1: {{type: can, interface: replay, channel: b.log, speed: {speed}}}
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: 9}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: 9}}
  broker: {{type: mqtt, host: 127.0.0.1, port: 9}}
devices:
  engine: {{link: can0, database: engine.dbc}}
  other: {{link: can1, database: engine.dbc}}
  press:
    link: plc
    points:
      temperature: {{table: holding, address: 0, type: float32}}
      speed: {{table: holding, address: 10, access: readwrite}}
  panel:
    link: hmi
    points:
      engine_speed: {{table: holding, address: 0, type: float32}}
      other_speed: {{table: holding, address: 2, type: float32}}
      repeated: {{table: holding, address: 4, type: float32}}
      online: {{table: discrete, address: 0}}
routes:
  - {{from: engine.EngineStatus.EngineSpeed, to: panel.engine_speed, on_bad: send}}
  - {{from: other.EngineStatus.EngineSpeed, to: panel.other_speed}}
  - {{from: engine.EngineStatus.Level, to: panel.repeated, every: 500ms}}
  - {{from: engine.EngineStatus.Level, to: press.speed}}
  - {{from: sys.engine.online, to: panel.online}}
  - {{from: "engine.EngineStatus.*", to: "broker:plant/{{device}}", when: sample}}
  - {{from: engine.EngineStatus.EngineSpeed, to: "broker:plant/{{device}}/{{point}}"}}
"""


class SimpleCanLink:
    """A CAN link with as little as there can be: one group a message, a deadline of a second, an echo."""

    is_listener = False

    def __init__(self, name, options, messages, clock):
        self._clock = clock
        self.name, self.options, self.endpoint = name, dict(options), "replay"
        self.counters, self.measures = {"rx_frames": 0}, {}
        self.open_bus = None
        self._by_id = {}
        for item in messages:
            message = item.message
            group = Group(
                f"{item.device} {message.name}", (item.points[signal] for signal in message.signals)
            )
            self._by_id[message.frame_id] = (group, BranchDecoder(message, message.signals), item.device)
        self.groups = [group for group, _, _ in self._by_id.values()]
        self._deadlines = {}

    async def connect(self):
        self._bus = await self.open_bus(self.options)

    async def run(self, emit, report):
        self._emit, self._report = emit, report
        self._bus.select([(frame_id, 0x7FF) for frame_id in self._by_id])
        self._bus.start(self._ready, lambda error: None)
        await asyncio.Event().wait()

    def _ready(self):
        for frame in self._bus.drain(512):
            now_s = self._clock.monotonic_s()
            self.counters["rx_frames"] += 1
            group, decoder, device = self._by_id[frame.can_id]
            values, flaws = decoder.decode(frame.data)
            if group in self._deadlines:
                self._deadlines[group].cancel()
            else:
                self._report(DeviceHealth(device, True))
            loop = asyncio.get_running_loop()
            self._deadlines[group] = loop.call_later(1.0, self._stale, group, device)
            self._emit(Batch(group, frame.time_ns, now_s, values, flaws, group.everything))
            if frame.data[:1] == b"\xee":
                self._bus.send(0x123 | EXTENDED, b"\x11\x22", 0)

    def _stale(self, group, device):
        del self._deadlines[group]
        self._report(DeviceHealth(device, False, Reason.STALE))
        self._emit(group.without_value(Reason.STALE, self._clock.wall_ns(), self._clock.monotonic_s()))

    def send(self, deliveries):
        return ()

    async def close(self):
        await self._bus.close()


def make_plant(folder, a, b=(), speed="stepped"):
    """Load the plant, its CAN links replaced by simple ones."""
    for name, frames in (("a.log", a), ("b.log", b)):
        lines = [f"({START + at:.6f}) vcan0 {rest}\n" for at, rest in frames]
        (folder / name).write_text("".join(lines))
    (folder / "engine.dbc").write_text(DBC)
    (folder / "plant.yaml").write_text(PLANT.format(speed=speed))
    plant = load(folder / "plant.yaml")
    links = {
        name: SimpleCanLink(name, plant.link_settings[name].options(), link.messages, plant.clock)
        if name.startswith("can")
        else link
        for name, link in plant.links.items()
    }
    return dataclasses.replace(plant, links=links)


def run(plant, after_s=5.0):
    output = io.StringIO()
    count = run_stepped(plant, output, after_s)
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert count == len(lines)
    return lines


def at(seconds):
    whole, micro = divmod(round(seconds * 1e6), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(START + whole)) + f".{micro:06d}Z"


def speed(rpm):
    return round(rpm * 8).to_bytes(2, "little").hex()


def test_what_routes_send_is_written_at_the_time_of_the_frame_and_what_goes_stale_too(tmp_path):
    plant = make_plant(
        tmp_path, [(0, f"100#{speed(800)}050000000000"), (0.25, f"100#{speed(900)}050000000000")]
    )
    lines = [line for line in run(plant) if line["to"] == "panel.engine_speed"]
    assert lines == [
        {"time": at(0), "to": "panel.engine_speed", "from": "engine.EngineStatus.EngineSpeed", "value": 800.0,
         "quality": "good", "reason": None},
        {"time": at(0.25), "to": "panel.engine_speed", "from": "engine.EngineStatus.EngineSpeed", "value": 900.0,
         "quality": "good", "reason": None},
        {"time": at(1.25), "to": "panel.engine_speed", "from": "engine.EngineStatus.EngineSpeed", "value": None,
         "quality": "bad", "reason": "stale"},
    ]  # fmt: skip


def test_a_symbolic_log_from_before_its_trigger_is_replayed(tmp_path):
    (tmp_path / "engine.dbc").write_text(DBC)
    (tmp_path / "drive.txt").write_text(
        "date Fri Aug 17 02:14:44.000 pm 2012\nbase hex  timestamps absolute\n"
        "  -1.500000 1  EngineStatus    Rx   d 8 00 19 05 00 00 00 00 00\n"
        "   0.500000 1  EngineStatus    Rx   d 8 20 1C 05 00 00 00 00 00\n"
    )
    (tmp_path / "plant.yaml").write_text(
        """version: 1
gateway: {name: gw}
links:
  can0: {type: can, interface: replay, channel: drive.txt, speed: stepped, format: asc, timezone: UTC}
  hmi: {type: modbus-server, host: 127.0.0.1, port: 9}
devices:
  engine: {link: can0, database: engine.dbc}
  panel: {link: hmi, points: {speed: {table: holding, address: 0, type: float32}}}
routes:
  - {from: engine.EngineStatus.EngineSpeed, to: panel.speed}
"""
    )
    lines = run(load(tmp_path / "plant.yaml"), 0.1)
    assert [(line["time"], line["value"]) for line in lines if line["value"] is not None] == [
        ("2012-08-17T14:14:42.500000Z", 800.0),
        ("2012-08-17T14:14:44.500000Z", 900.0),
    ]


def test_policies_of_time_run_on_the_log_s_time(tmp_path):
    plant = make_plant(tmp_path, [(step, f"100#{speed(800)}050000000000") for step in (0, 0.9, 1.8)])
    lines = [line for line in run(plant) if line["to"] == "panel.repeated"]
    good = [line for line in lines if line["value"] is not None]
    assert [line["time"] for line in good] == [at(step) for step in (0, 0.5, 1.0, 1.5, 2.0, 2.5)]
    assert all(line["value"] == 5 for line in good)
    stale = [line for line in lines if line["value"] is None]
    assert [line["time"] for line in stale] == [at(2.8 + step / 2) for step in range(9)]
    assert {line["reason"] for line in stale} == {"stale"}


def test_every_kind_of_target_has_its_line_in_order(tmp_path):
    plant = make_plant(tmp_path, [(0.5, f"100#EE{speed(800)[2:]}050000000000")])
    lines = [line for line in run(plant, 0.5) if line["time"] == at(0.5)]
    value = 0x19EE / 8
    assert [line["to"] for line in lines if line["to"] != "panel.online"] == [
        "panel.engine_speed",
        "panel.repeated",
        "broker:plant/engine/EngineStatus.EngineSpeed",
        "press.speed",
        "broker:plant/engine",
        "can0",
    ]
    [bundle] = [line for line in lines if line["to"] == "broker:plant/engine"]
    assert bundle == {
        "time": at(0.5), "to": "broker:plant/engine", "from": "engine",
        "values": {"EngineStatus.EngineSpeed": value, "EngineStatus.Level": 5}, "bad": {},
    }  # fmt: skip
    [frame] = [line for line in lines if line["to"] == "can0"]
    assert frame == {"time": at(0.5), "to": "can0", "frame": "00000123#1122"}
    [online] = [line for line in lines if line["to"] == "panel.online" and line["value"]]
    assert online["time"] == at(0.5)


def test_several_logs_are_merged_by_time_and_then_by_the_order_of_the_links(tmp_path):
    first = [(0.1, f"100#{speed(100)}000000000000"), (0.3, f"100#{speed(101)}000000000000")]
    second = [(0, f"100#{speed(200)}000000000000"), (0.1, f"100#{speed(201)}000000000000"), (0.2, f"100#{speed(202)}000000000000"),
              (0.3, f"100#{speed(203)}000000000000")]  # fmt: skip
    lines = run(make_plant(tmp_path, first, second))
    seen = [(line["time"], line["value"]) for line in lines
            if line["to"] in ("panel.engine_speed", "panel.other_speed") and line["value"] is not None]  # fmt: skip
    assert seen == [
        (at(0), 200),
        (at(0.1), 100),
        (at(0.1), 201),
        (at(0.2), 202),
        (at(0.3), 101),
        (at(0.3), 203),
    ]


def test_a_long_log_takes_little_time(tmp_path):
    frames = [(index * 0.9, f"100#{speed(index % 1000)}000000000000") for index in range(4000)]
    began_s = time.monotonic()
    lines = run(make_plant(tmp_path, frames))
    assert time.monotonic() - began_s < 20
    assert sum(line["to"] == "panel.engine_speed" for line in lines) == 4001


def test_the_time_of_a_log_is_nobody_elses(tmp_path):
    before = SYSTEM.monotonic_s, SYSTEM.wall_ns
    run(make_plant(tmp_path, [(0, "100#0000000000000000")]))
    assert (SYSTEM.monotonic_s, SYSTEM.wall_ns) == before
    with pytest.raises(SteppedError):
        run(make_plant(tmp_path, [(0, "rubbish")] * 2000))
    assert (SYSTEM.monotonic_s, SYSTEM.wall_ns) == before


def test_two_runs_in_two_processes_are_equal_byte_for_byte(tmp_path):
    frames = [(index / 97, f"100#{speed(index % 7000)}{index % 5:02x}0000000000") for index in range(500)]
    make_plant(tmp_path, frames, frames[::2])
    script = tmp_path / "again.py"
    script.write_text(
        "import sys, pathlib, io\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "import test_stepped as t\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "a, b = (folder / 'a.log').read_text(), (folder / 'b.log').read_text()\n"
        "plant = t.make_plant(folder, [])\n"
        "(folder / 'a.log').write_text(a), (folder / 'b.log').write_text(b)\n"
        "t.run_stepped(plant, sys.stdout)\n"
    )
    outputs = []
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, timeout=50, check=True,
                              env={**os.environ, "PYTHONHASHSEED": seed})  # fmt: skip
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].count(b"\n") > 1500


def test_a_log_whose_clock_was_set_shows_the_new_time_and_goes_on(tmp_path):
    frames = [(0, f"100#{speed(1)}000000000000"), (10_000_000, f"100#{speed(2)}000000000000"),
              (10_000_000.5, f"100#{speed(3)}000000000000")]  # fmt: skip
    lines = [line for line in run(make_plant(tmp_path, frames)) if line["to"] == "panel.engine_speed"]
    assert [(line["time"], line["value"]) for line in lines if line["value"]] == [
        (at(0), 1.0), (at(10_000_000), 2.0), (at(10_000_000.5), 3.0),
    ]  # fmt: skip


def test_logs_without_a_frame_are_nothing_to_replay(tmp_path):
    with pytest.raises(SteppedError, match="can0, can1: no frame in any log, nothing to replay"):
        run(make_plant(tmp_path, []))


def test_all_replays_are_stepped_or_none(tmp_path):
    plant = make_plant(tmp_path, [], speed=1)
    with pytest.raises(SteppedError, match="can0 is replayed stepped and can1 is not"):
        stepped_links(plant)
    plant = make_plant(tmp_path, [])
    assert stepped_links(plant) == ["can0", "can1"]


def test_what_is_wrong_with_a_log_is_said_before_anything_runs(tmp_path):
    plant = make_plant(tmp_path, [])
    (tmp_path / "a.log").unlink()
    with pytest.raises(SteppedError, match=r"can0: .*a\.log: no such file"):
        run(plant)


def test_a_link_that_does_not_listen_ends_the_run(tmp_path):
    plant = make_plant(tmp_path, [(0, "100#00")])

    async def connect():
        raise LinkDownError("broken")

    plant.links["can1"].connect = connect
    with pytest.raises(SteppedError, match="can1: the link did not begin to listen"):
        run(plant)


def test_an_output_that_is_full_ends_the_run(tmp_path):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    plant = make_plant(tmp_path, [(index, f"100#{speed(index)}000000000000") for index in range(100)])
    with pytest.raises(OSError, match="No space left"):
        run_stepped(plant, Full())


COMMAND = """version: 1
gateway: {name: gw}
links:
  can0: {type: can, interface: replay, channel: a.log, speed: stepped, log_channel: vcan0}
  hmi: {type: modbus-server, host: 127.0.0.1, port: 9}
devices:
  engine: {link: can0, database: engine.dbc}
  panel:
    link: hmi
    points:
      speed: {table: holding, address: 0, type: float32}
routes:
  - {from: engine.EngineStatus.EngineSpeed, to: panel.speed, on_bad: send}
  - {from: engine.EngineStatus.Level, to: engine.PanelStatus.CoolantTemp}
"""


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        # The command sets up the log and signals of a process of its own.
        monkeypatch.setattr("fieldbus.gateway.log.set_up", lambda level="info": None)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        (tmp_path / "engine.dbc").write_text(DBC)
        (tmp_path / "a.log").write_text(
            "".join(
                f"({START + at:.6f}) vcan0 100#{speed(800 + at)}070000000000\n" for at in (0, 0.125, 0.25)
            )
            + f"({START + 0.3:.6f}) vcan1 100#0000000000000000\n"
        )
        (tmp_path / "plant.yaml").write_text(COMMAND)

        def command(*options, code=0):
            done = CliRunner().invoke(app, ["run", str(tmp_path / "plant.yaml"), *map(str, options)])
            assert done.exit_code == code, f"{done.output}\n{done.exception}"
            return done

        return command

    def test_the_gateway_s_own_link_replays(self, run):
        assert [json.loads(line) for line in run().stdout.splitlines()] == [
            {"time": at(0), "to": "panel.speed", "from": "engine.EngineStatus.EngineSpeed", "value": 800.0,
             "quality": "good", "reason": None},
            {"time": at(0), "to": "can0", "frame": "200#4600"},
            {"time": at(0.125), "to": "panel.speed", "from": "engine.EngineStatus.EngineSpeed", "value": 800.125,
             "quality": "good", "reason": None},
            {"time": at(0.25), "to": "panel.speed", "from": "engine.EngineStatus.EngineSpeed", "value": 800.25,
             "quality": "good", "reason": None},
            {"time": at(0.55), "to": "panel.speed", "from": "engine.EngineStatus.EngineSpeed", "value": None,
             "quality": "bad", "reason": "stale"},
        ]  # fmt: skip

    def test_the_output_can_go_to_a_file(self, run, tmp_path):
        assert run("--output", tmp_path / "out.jsonl").stdout == ""
        assert (tmp_path / "out.jsonl").read_text() == run().stdout
        assert "no such file" in run("--output", tmp_path / "nowhere" / "x", code=1).stderr

    def test_what_makes_no_sense_is_said(self, run, tmp_path):
        run("--simulate", code=2)
        config = tmp_path / "plant.yaml"
        config.write_text(COMMAND.replace("speed: stepped", "speed: 1"))
        run("--output", tmp_path / "out.jsonl", code=2)
        second = "  can0: {type: can, interface: replay, channel: a.log, speed: 1}\n"
        config.write_text(COMMAND.replace("links:\n", "links:\n" + second.replace("can0", "can1")))
        assert "can0 is replayed stepped and can1 is not" in run(code=1).stderr

    def test_a_log_that_is_not_there_is_exit_1(self, run, tmp_path):
        (tmp_path / "a.log").unlink()
        assert "there is no file" in run(code=1).stderr


class TestLoop:
    def test_sleeping_takes_no_time_and_threads_are_done_at_once(self):
        async def main():
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            order = []
            await asyncio.gather(*(self._note(order, delay) for delay in (3, 1, 2)))
            assert order == [1, 2, 3]
            assert loop.time() - began_s == pytest.approx(3, abs=1e-6)
            assert await asyncio.to_thread(lambda: 7) == 7
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(lambda: 1 // 0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3600):
                    await asyncio.Event().wait()
            return loop.wall_ns()

        loop = SteppedLoop(5 * 10**9)
        began_s = time.monotonic()
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            wall_ns = runner.run(main())
        assert time.monotonic() - began_s < 2
        assert wall_ns == pytest.approx(3608 * 10**9, abs=1000)

    @staticmethod
    async def _note(order, delay):
        await asyncio.sleep(delay)
        order.append(delay)
