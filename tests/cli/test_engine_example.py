"""The J1939 example as a user runs it: on its simulated engine, and stepped through a log of one."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time

import pytest
from conftest import ROOT, free_port

from fieldbus.canbus.bus import EXTENDED
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.address import Name
from fieldbus.canbus.j1939.connection import Sender

START = 1_345_212_884
LIVE = "interface: socketcan\n    channel: can0\n"
STEPPED = "interface: replay\n    channel: engine.log\n    speed: stepped\n"


@pytest.fixture
def plant(tmp_path):
    """The example beside nobody else's port and folder."""
    path = tmp_path / "j1939-engine.yaml"
    path.write_text((ROOT / "configs" / path.name).read_text().replace("1504", str(free_port())))
    shutil.copy(ROOT / "configs" / "j1939-engine.dbc", tmp_path)
    return path


def test_run_with_simulate_has_good_values_for_who_watches(plant, fieldbus):
    process = fieldbus("run", str(plant), "--simulate")
    command = [sys.executable, "-m", "fieldbus", "watch", str(plant), "--once", "--json"]
    values = {
        "engine.EEC1.EngSpeed", "engine.ET1.EngCoolantTemp", "engine.EFLP1.EngOilPress",
        "engine.HOURS.EngTotalHours", "engine.EC1.EngSpeedAtIdle", "engine.DM1.FaultCount",
    }  # fmt: skip
    deadline, bad = time.monotonic() + 40, values
    while bad and time.monotonic() < deadline:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        samples = {item["point"]: item for item in map(json.loads, done.stdout.splitlines())}
        bad = {name for name in values if samples.get(name, {}).get("quality") != "good"}
    assert bad == set(), (done.stdout, done.stderr)
    assert 0 < samples["engine.EEC1.EngSpeed"]["value"] < 8031.875
    out = process.stop()
    assert process.popen.returncode == 0, out
    assert "Traceback" not in out


def frames():
    """Yield what an engine, its diagnosis and a stranger say, with the time of each frame."""

    def broadcast(pgn, source, data, at_s, destination=255, priority=6):
        return at_s, j1939.identifier(pgn, source, destination, priority), data

    def in_packets(pgn, payload, at_s):
        sender = Sender(pgn, payload, 0)
        for can_id, data in sender.start(at_s):
            yield at_s, can_id, data
        while not sender.is_done:
            at_s += 0.05
            for can_id, data in sender.tick(at_s):
                yield at_s, can_id, data

    for turn in range(60):
        at_s = turn * 0.1
        speed = struct.pack("<3xH3x", 8000 + 8 * turn)
        yield broadcast(0xF004, 0, speed, at_s, priority=3)
        yield broadcast(0xF004, 7, speed, at_s + 0.001, priority=3)  # a second engine
        yield broadcast(0xFEEE, 0, bytes([80 + turn % 20]) + b"\xff" * 7, at_s + 0.002)
        yield broadcast(0xFEEF, 0, b"\xff\xff\xff" + bytes([turn]) + b"\xff" * 4, at_s + 0.003)
    yield from in_packets(0xFEE3, struct.pack("<H", 5600) + b"\xff" * 37, 1.0104)
    yield from in_packets(j1939.ACTIVE_FAULTS, bytes.fromhex("04ff640001036e000002"), 2.0105)
    yield broadcast(0xFEE5, 0, struct.pack("<I", 2000) + b"\xff" * 4, 2.55)
    yield 3.01, *j1939.request(0xFEE3, 0x80, 0x33)
    yield broadcast(j1939.ADDRESS_CLAIMED, 0x80, Name().to_bytes(), 4.01)  # ours is taken


def test_a_stepped_replay_is_the_same_byte_for_byte_in_every_process(plant):
    folder = plant.parent
    text = plant.read_text()
    assert LIVE in text
    plant.write_text(text.replace(LIVE, STEPPED))
    said = sorted(frames())
    (folder / "engine.log").write_text(
        "".join(
            f"({START + at_s:.6f}) can0 {can_id & ~EXTENDED:08X}#{data.hex()}\n"
            for at_s, can_id, data in said
        )
    )
    outputs = []
    for seed in ("0", "1", "4711"):
        output = folder / f"{seed}.jsonl"
        subprocess.run(
            [sys.executable, "-m", "fieldbus", "run", str(plant), "--output", str(output)],
            env={**os.environ, "PYTHONHASHSEED": seed}, timeout=50, check=True, capture_output=True,
        )  # fmt: skip
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    lines = [json.loads(line) for line in outputs[0].splitlines()]
    last = {line["to"]: line["value"] for line in lines if line.get("quality") == "good"}
    assert (last["panel.speed"], last["panel.idle_speed"], last["panel.hours"]) == (1059.0, 700.0, 100.0)
    assert (last["panel.faults"], last["panel.first_fault"], last["panel.warning_lamp"]) == (2, 100, 1)
    sent = [line["frame"].split("#")[0] for line in lines if line["to"] == "can0"]
    # Its address and the next one, the hours asked for, and what it does not send refused.
    assert {"18EEFF80", "18EEFF81", "18EA0080", "18E8FF80"} <= set(sent)
    assert len(lines) > 200
