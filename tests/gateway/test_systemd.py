"""What a service manager is told: ready, reloading, stopping, and alive only while every link makes progress."""

from __future__ import annotations

import asyncio
import configparser
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import ROOT, eventually, free_port, missing
from fake_plc import FakePlc

from fieldbus.cli.run import load_again, work
from fieldbus.errors import ConfigError
from fieldbus.gateway import runtime
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.exchange import pumps
from fieldbus.gateway.exchange.pump import Pump
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.systemd import Systemd
from fieldbus.modbus.client import Line
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.server import ModbusServerLink

CONFIG = """\
version: 1
gateway: {name: press-line}
links:
  plc: {type: modbus-tcp, host: 127.0.0.1, port: PORT, timeout: 200ms}
devices:
  press: {link: plc, scan: 50ms, points: {temperature: {table: holding, address: 0, access: readwrite}}}
"""
UNITS = sorted((ROOT / "configs" / "systemd").glob("**/*.service"))


SERVER = "  scada: {type: modbus-server, host: 127.0.0.1, port: SERVED}\n"
BROKER = "  broker: {type: mqtt, host: 127.0.0.1, port: 1}\n"
ROUTES = 'routes: [{from: press.temperature, to: "broker:site/{point}", durable: true}]\n'


class Manager:
    """Takes what is said on ``NOTIFY_SOCKET``."""

    def __init__(self, address: str) -> None:
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.door.bind(address)
        self.door.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        """Return the messages that came since the last call."""
        found = []
        while True:
            try:
                text = self.door.recv(4096).decode()
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in text.splitlines()))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    found = Manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield found
    found.door.close()


@asynccontextmanager
async def at_work(folder: Path, links: str = "", routes: str = "") -> AsyncIterator[tuple[Gateway, FakePlc]]:
    plc = FakePlc()
    await plc.start()
    text = CONFIG.replace("links:\n", f"links:\n{links}") + routes
    (folder / "plant.yaml").write_text(
        text.replace("PORT", str(plc.port)).replace("SERVED", str(free_port()))
    )
    gateway = Gateway(load(folder / "plant.yaml"), load=load_again)
    running = asyncio.create_task(work(gateway, None))
    try:
        await eventually(lambda: len(plc.asked_s) > 2)
        yield gateway, plc
    finally:
        gateway.stop()
        async with asyncio.timeout(10):
            await running
        await plc.stop()


async def test_ready_is_said_once_then_alive_and_at_the_end_stopping_before_links_are_closed(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[bool] = []
    say = Systemd.stopping
    async with at_work(tmp_path) as (_, plc):
        monkeypatch.setattr(Systemd, "stopping", lambda self: (states.append(plc.connected > 0), say(self)))
        heard = []
        async with asyncio.timeout(5):
            while heard.count({"WATCHDOG": "1"}) < 3:
                heard += manager.heard()
                await asyncio.sleep(0.01)
    assert heard[0] == {"READY": "1", "STATUS": "press-line: at work"}
    assert all(item == {"WATCHDOG": "1"} for item in heard[1:])
    assert manager.heard()[-1] == {"STOPPING": "1"}
    assert states == [True]


def test_a_reload_carries_the_time_of_the_clock_that_systemd_compares(manager: Manager) -> None:
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Systemd().reloading()
    [said] = manager.heard()
    assert said["RELOADING"] == "1"
    assert before_us <= int(said["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_an_abstract_socket_is_one_too() -> None:
    name = f"fieldbus-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    Systemd({"NOTIFY_SOCKET": f"@{name}"}).ready("fine")
    assert manager.heard() == [{"READY": "1", "STATUS": "fine"}]
    manager.door.close()


def test_without_a_manager_nothing_is_said_and_a_manager_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    Systemd({}).ready("fine")
    Systemd({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("fine")
    assert Systemd({}).watchdog_s is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # another process is meant
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_if_it_says_so(environment: dict[str, str], expected: float | None) -> None:
    assert Systemd(environment).watchdog_s == expected


def lose_the_wake_up(link: ModbusClientLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that never comes."""
    monkeypatch.setattr(link, "_wake", lambda: None)
    monkeypatch.setattr(link, "_look_around", lambda: None)


def lose_the_answer(link: ModbusClientLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is neither sent nor timed."""
    monkeypatch.setattr(Line, "ask", lambda *_: None)


@pytest.mark.parametrize("hang", [lose_the_wake_up, lose_the_answer])
async def test_a_link_that_hangs_stops_the_watchdog(
    manager: Manager,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hang: Callable[[ModbusClientLink, pytest.MonkeyPatch], None],
) -> None:
    monkeypatch.setattr(runtime, "STUCK_S", 0.5)
    async with at_work(tmp_path) as (gateway, plc):
        await asyncio.sleep(0.7)
        assert gateway.stuck() is None
        link = gateway.plant.links["plc"]
        assert isinstance(link, ModbusClientLink)
        assert {"WATCHDOG": "1"} in manager.heard()
        hang(link, monkeypatch)
        await eventually(lambda: gateway.stuck() is not None)
        await asyncio.sleep(0.25)
        assert manager.heard()[-1]["STATUS"].startswith("link plc has done nothing for ")
        await asyncio.sleep(0.5)
        assert {"WATCHDOG": "1"} not in manager.heard()
        assert caplog.text.count("watchdog: link plc has done nothing") == 1
        assert plc.connected == 1
        monkeypatch.undo()


async def test_a_link_whose_task_has_ended_stops_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with at_work(tmp_path) as (gateway, _):
        gateway._sessions["plc"][1].cancel()
        await eventually(lambda: gateway.stuck() == "link plc has ended")


async def test_a_server_that_does_not_listen_any_more_stops_the_watchdog(tmp_path: Path) -> None:
    async with at_work(tmp_path, SERVER) as (gateway, _):
        link = gateway.plant.links["scada"]
        assert isinstance(link, ModbusServerLink)
        await eventually(lambda: link.port)
        assert gateway.stuck() is None
        assert link._listener is not None
        link._listener.close()
        assert gateway.stuck() == "link scada has done nothing at all any more"


async def test_a_stream_or_a_spool_that_has_ended_stops_the_watchdog(tmp_path: Path) -> None:
    async with at_work(tmp_path, BROKER, ROUTES) as (gateway, _):
        await eventually(lambda: gateway.exchange is not None)
        exchange = gateway.exchange
        assert exchange is not None
        assert gateway.stuck() is None
        pump = next(iter(exchange._pumps))
        exchange._pumps._running[pump.stream.name][1].cancel()
        await eventually(lambda: gateway.stuck() == "stream broker topics has ended")
        exchange._pumps._running.clear()
        assert gateway.stuck() is None
        exchange.spool.close()
        assert gateway.stuck() == "the spool is not written any more"


async def test_a_stream_that_fails_is_logged_and_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pumps, "BEGIN_AGAIN_S", 0.05)
    runs: list[Pump] = []

    async def fail_once(pump: Pump) -> None:
        runs.append(pump)
        if len(runs) == 1:
            raise KeyError("a mistake of ours")
        await asyncio.Event().wait()

    monkeypatch.setattr(Pump, "run", fail_once)
    async with at_work(tmp_path, BROKER, ROUTES) as (gateway, _):
        await eventually(lambda: len(runs) == 2)
        assert gateway.stuck() is None
    assert "stream broker topics: internal error; it is sent again from what is missing" in caplog.text


@pytest.mark.parametrize("state", ["silent", "away"])
async def test_a_device_that_is_silent_or_away_is_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(runtime, "STUCK_S", 0.3)
    async with at_work(tmp_path) as (gateway, plc):
        if state == "silent":
            monkeypatch.setattr(plc, "_answer", lambda _request: b"")
        else:
            await plc.stop()
        ends_s = time.monotonic() + 2.5
        while time.monotonic() < ends_s:
            assert gateway.stuck() is None
            await asyncio.sleep(0.02)


async def test_ready_follows_a_reload_however_it_ends(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    hangups: list[Callable[[], None]] = []
    monkeypatch.setattr("fieldbus.gateway.loop.on_hangup", hangups.append)
    plc = FakePlc()
    await plc.start()
    file = tmp_path / "plant.yaml"
    file.write_text(CONFIG.replace("PORT", str(plc.port)))
    gateway = Gateway(load(file), load=load_again)
    running = asyncio.create_task(work(gateway, None, reloads=True))
    await eventually(lambda: len(plc.asked_s) > 2)
    assert manager.heard() == [{"READY": "1", "STATUS": "press-line: at work"}]
    for text in (file.read_text(), "version: 2"):
        file.write_text(text)
        hangups[0]()
        heard: list[dict[str, str]] = []
        async with asyncio.timeout(5):
            while len(heard) < 2:
                heard += manager.heard()
                await asyncio.sleep(0.01)
        assert [next(iter(item)) for item in heard] == ["RELOADING", "READY"]
    with pytest.raises(ConfigError):
        await gateway.load_again()
    assert plc.connected == 1
    gateway.stop()
    async with asyncio.timeout(10):
        await running
    await plc.stop()


# --- unit files


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_unit_file_says_what_the_gateway_does(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"].endswith("fieldbus run /etc/fieldbus/%i.yaml")
    assert service["ExecReload"].endswith("fieldbus reload /etc/fieldbus/%i.yaml")
    assert float(service["WatchdogSec"]) > runtime.STUCK_S
    assert float(service["TimeoutStopSec"]) > runtime.SHUTDOWN_S


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: str(path.relative_to(ROOT)))
def test_systemd_finds_nothing_wrong_with_a_unit_file(unit: Path, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze") or missing(
        "systemd-analyze is not installed (Debian package systemd)"
    )
    shutil.copy(unit, tmp_path)  # what it finds beside a unit it takes as well
    done = subprocess.run(
        [tool, "verify", "--man=no", str(tmp_path / unit.name)], capture_output=True, text=True, check=False, timeout=30
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_hardened_service_is_exposed_to_little(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze") or missing(
        "systemd-analyze is not installed (Debian package systemd)"
    )
    [unit] = [path for path in UNITS if path.parent.name == "hardened"]
    shutil.copy(unit, tmp_path)
    done = subprocess.run(
        [tool, "security", "--offline=true", "--threshold=20", "--no-pager", str(tmp_path / unit.name)],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]
