"""A gateway process that is told to reload: by SIGHUP, by `fieldbus reload`, under a service manager."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import free_port, program, wait_for_port
from fake_plc import FakePlc

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CONFIG = """version: 1
gateway: {{name: press-line}}
links:
  net_a: {{type: modbus-tcp, host: 127.0.0.1, port: {press}, timeout: 300ms}}
  net_b: {{type: modbus-tcp, host: 127.0.0.1, port: {oven}, timeout: 300ms}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
  broker: {{type: mqtt, host: 127.0.0.1, port: {broker}}}
devices:
  press:
    link: net_a
    scan: 50ms
    points:
      temperature: {{table: holding, address: 0}}
  oven:
    link: net_b
    scan: 50ms
    points:
      temperature: {{table: holding, address: 0}}
      mirror: {{table: holding, address: 30, access: write}}
  panel:
    link: hmi
    points:
      oven: {{table: holding, address: 1}}
routes:
  - {{from: press.temperature, to: oven.mirror}}
  - {{from: oven.temperature, to: panel.oven}}
  - {{from: "*.temperature", to: "broker:site/{{device}}"}}
"""


class Plcs:
    """Two PLCs in a thread of their own: the test's own thread waits for processes."""

    def __init__(self):
        self.press, self.oven = FakePlc(), FakePlc()
        self.press.registers, self.oven.registers = {0: 72, 1: 73}, {0: 180}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self):
        self._thread.start()
        for plc in (self.press, self.oven):
            asyncio.run_coroutine_threadsafe(plc.start(), self._loop).result(5)
        return self

    def __exit__(self, *_):
        for plc in (self.press, self.oven):
            asyncio.run_coroutine_threadsafe(plc.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


def until(condition, what, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "fieldbus", *map(str, arguments)],
        capture_output=True, text=True, timeout=40, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture
def site(tmp_path):
    """A broker that writes down who connects, and the configuration of the gateway."""
    log = tmp_path / "broker.log"
    port = free_port()
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_type all\nlog_dest stderr\n"
    )
    with log.open("w") as out:
        broker = subprocess.Popen(
            [program("mosquitto", "mosquitto"), "-c", str(tmp_path / "mosquitto.conf")], stderr=out
        )
    try:
        wait_for_port(port)
        with Plcs() as plcs:
            ports = {"press": plcs.press.port, "oven": plcs.oven.port, "hmi": free_port(), "broker": port}
            file = tmp_path / "plant.yaml"
            file.write_text(CONFIG.format(**ports))
            yield file, plcs, log, ports["hmi"]
    finally:
        broker.terminate()
        broker.wait(10)


def holding(door, address):
    """Ask for one register on an open connection."""
    door.sendall(bytes.fromhex(f"00010000000601 03 {address:04x} 0001".replace(" ", "")))
    answer = door.recv(64)
    return int.from_bytes(answer[9:11], "big") if answer[7] == 3 else None


@pytest.mark.parametrize("way", ["SIGHUP", "fieldbus reload"])
def test_peers_that_are_not_concerned_see_the_same_connection(site, fieldbus, way):
    file, plcs, log, hmi = site
    process = fieldbus("run", str(file))
    until(lambda: (30, 72) in plcs.oven.written, "the first value")
    until(lambda: log.read_text().count("New client connected") >= 2, "both connections to the broker")
    clients = log.read_text().count("New client connected")
    with socket.create_connection(("127.0.0.1", hmi), timeout=5) as panel:
        until(lambda: holding(panel, 1) == 180, "the panel's register")
        began_s = time.monotonic()
        file.write_text(
            file.read_text().replace("temperature: {table: holding, address: 0}",
                                     "temperature: {table: holding, address: 1}", 1)
        )  # fmt: skip
        if way == "SIGHUP":
            process.popen.send_signal(signal.SIGHUP)
        else:
            done = command("reload", file)
            assert (done.returncode, done.stdout) == (0, "3 links go on as they are, net_a opened anew\n")
        until(lambda: (30, 73) in plcs.oven.written, "the value of the point that was edited")
        assert plcs.oven.longest_gap_s(began_s) < 1.0
        assert holding(panel, 1) == 180
    assert len(plcs.oven.masters) == 1
    assert len(plcs.press.masters) == 2
    heard = log.read_text()
    assert heard.count("New client connected") == clients
    assert "disconnected" not in heard
    out = process.stop()
    assert process.popen.returncode == 0
    assert "press-line: reloaded, 3 links go on as they are, net_a opened anew" in out
    assert "Traceback" not in out


def test_mistakes_change_nothing_and_are_said_by_whoever_was_asked(site, fieldbus):
    file, plcs, _, _ = site
    good = file.read_text()
    process = fieldbus("run", str(file))
    until(lambda: (30, 72) in plcs.oven.written, "the first value")
    file.write_text(good.replace("oven.mirror", "oven.miror"))
    process.popen.send_signal(signal.SIGHUP)
    done = command("reload", file)
    assert done.returncode == 1
    assert "there is no point 'oven.miror' (did you mean 'oven.mirror'?)" in done.stderr
    file.write_text(good.replace("name: press-line", "name: press-line-2"))
    done = command("reload", file)
    assert done.returncode == 1
    assert done.stdout == (
        f"{file}:2:17: gateway.name: `name` of the gateway cannot be changed while it runs (restart it)\n"
        "nothing was changed\n"
    )
    file.write_text(good.replace("name: press-line", "name: press-line, data_dir: elsewhere"))
    done = command("reload", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no gateway is running with the data folder" in done.stderr
    assert "(a change of `data_dir` needs a restart)" in done.stderr
    file.write_text(good)
    assert command("reload", file).returncode == 0
    assert (len(plcs.press.masters), len(plcs.oven.masters)) == (1, 1)
    out = process.stop()
    assert "there is no point 'oven.miror'" in out
    assert "press-line: not reloaded, nothing was changed" in out


def test_many_hangups_at_once_are_as_good_as_one(site, fieldbus):
    file, plcs, _, _ = site
    process = fieldbus("run", str(file))
    until(lambda: (30, 72) in plcs.oven.written, "the first value")
    for number in range(20):
        if number == 10:
            file.write_text(file.read_text().replace("address: 30", "address: 31"))
        process.popen.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    until(lambda: (31, 72) in plcs.oven.written, "the mirror's new place")
    time.sleep(0.5)
    assert plcs.oven.connected == 1
    assert len(plcs.oven.masters) == 2
    assert len(plcs.press.masters) == 1
    process.stop()
    assert process.popen.returncode == 0


def test_a_service_manager_hears_of_the_whole_life(site, fieldbus, tmp_path):
    file, plcs, _, _ = site
    door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    door.bind(str(tmp_path / "notify"))
    door.settimeout(20)
    with contextlib.closing(door):
        process = fieldbus(
            "run", str(file), env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        )

        def hear(*, beside_life=True):
            while True:
                text = door.recv(4096).decode()
                if not (beside_life and text == "WATCHDOG=1"):
                    return text

        assert hear() == "READY=1\nSTATUS=press-line: at work"
        assert hear(beside_life=False) == "WATCHDOG=1"
        process.popen.send_signal(signal.SIGHUP)
        said = dict(line.split("=") for line in hear().splitlines())
        assert said.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert (
            abs(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 - int(said["MONOTONIC_USEC"]))
            < 10_000_000
        )
        assert hear() == "READY=1\nSTATUS=press-line: at work"
        file.write_text("nonsense: [")
        process.popen.send_signal(signal.SIGHUP)
        assert hear().startswith("RELOADING=1")
        assert hear() == "READY=1\nSTATUS=press-line: at work"
        assert hear(beside_life=False) == "WATCHDOG=1"
        os.kill(process.popen.pid, signal.SIGTERM)
        assert hear() == "STOPPING=1"
        process.popen.communicate(timeout=10)
        assert process.popen.returncode == 0
    assert plcs.press.connected == 0
