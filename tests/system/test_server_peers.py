"""Our server, asked by masters that we did not write: libmodbus in C, mbpoll, modbus-serial in JavaScript.

A serial line is two ptys with this test between them, which carries the bytes from one to the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import MUST_NOT_SKIP, Process, program

from fieldbus.link import Delivery, Target
from fieldbus.modbus.identification import Identification
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace, UdpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.model import Batch, Quality, Sample, Value

pytestmark = pytest.mark.system

MODBUS_SERIAL = "modbus-serial@8.0.25"


def point(name: str, place: str, type_: str | None = None, **settings: object) -> RegisterPoint:
    table, address = place.split()
    made = PointSettings(table=table, address=int(address), type=type_, **settings)
    return made.build("panel", name, is_served=True)


def panel() -> list[RegisterPoint]:
    free = {"access": "readwrite"}
    return [
        *(point(f"lamp{n}", f"coil {n}") for n in range(10)),
        *(point(f"valve{n}", f"coil {n}", initial=False, **free) for n in range(20, 24)),
        *(point(f"door{n}", f"discrete {n}") for n in range(10)),
        *(point(f"word{n}", f"input {n}", "uint16") for n in range(125)),
        point("position", "input 200", "int32"),
        point("temperature", "holding 0", "float32"),
        point("turned", "holding 2", "float32", order="CDAB"),
        point("dead", "holding 5", "uint16"),
        point("setpoint", "holding 10", "float32", initial=0, **free),
        point("gear", "holding 14", "int16", initial=1, **free),
        point("speed", "holding 15", "uint16", initial=2, max=3000, **free),
        point("steps", "holding 16", "int32", initial=0, **free),
    ]


VALUES: dict[str, Value] = {
    **{f"lamp{n}": n % 3 == 0 for n in range(10)},
    **{f"door{n}": n % 2 == 1 for n in range(10)},
    **{f"word{n}": 60000 + n for n in range(125)},
    "position": -123456789, "temperature": 72.5, "turned": 1.5,
}  # fmt: skip


class Cable:
    """Two serial ports of this machine, joined."""

    def __init__(self) -> None:
        self._fds = [*os.openpty(), *os.openpty()]
        for slave in self._fds[1::2]:
            tty.setraw(slave)
        self.ports = [os.ttyname(slave) for slave in self._fds[1::2]]

    def join(self) -> None:
        one, _, two, _ = self._fds
        for fd in (one, two):
            os.set_blocking(fd, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(one, self._carry, one, two)
        loop.add_reader(two, self._carry, two, one)

    def _carry(self, source: int, target: int) -> None:
        try:
            os.write(target, os.read(source, 4096))
        except OSError:
            pass

    def cut(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in self._fds[::2]:
            loop.remove_reader(fd)
        for fd in self._fds:
            os.close(fd)


class Panel:
    """Our server, run in this loop."""

    def __init__(self, transport: str) -> None:
        points = panel()
        self.cable = Cable() if transport in ("rtu", "ascii") else None
        place: TcpPlace | UdpPlace | SerialPlace = TcpPlace("127.0.0.1", 0)
        if self.cable is not None:
            framing = Framing.RTU if transport == "rtu" else Framing.ASCII
            place = SerialPlace(self.cable.ports[0], 9600, framing=framing)
        elif transport == "udp":
            place = UdpPlace("127.0.0.1", 0)
        elif transport == "rtu-tcp":
            place = TcpPlace("127.0.0.1", 0, Framing.RTU)
        who = Identification("Acme", "S1", "1.0")
        self.link = ModbusServerLink("hmi", "127.0.0.1", 0, [ServedUnit("panel", 1, points)],
                                     place=place, identification=who)  # fmt: skip
        self.written: list[tuple[str, Value | None]] = []
        for item in points:
            if item.point.name in VALUES:
                sample = Sample(VALUES[item.point.name], Quality.GOOD, None, time.time_ns())
                self.link.send([Delivery(Target("hmi", item.point), item.point, sample)])

    @property
    def place(self) -> str:
        """Where a master finds it."""
        return self.cable.ports[1] if self.cable is not None else str(self.link.port)

    def emit(self, batch: Batch) -> None:
        self.written += [(item.name, batch.values[n]) for n, item in enumerate(batch.group.points)]


@asynccontextmanager
async def serving(transport: str) -> AsyncIterator[Panel]:
    served = Panel(transport)
    await served.link.connect()
    if served.cable is not None:
        served.cable.join()
    running = asyncio.create_task(served.link.run(served.emit, lambda _: None))
    await asyncio.sleep(0)
    served.written.clear()
    try:
        yield served
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await served.link.close()
        if served.cable is not None:
            served.cable.cut()
        await asyncio.sleep(0.02)


async def run(*command: str, timeout_s: float = 20.0) -> tuple[int, str]:
    """Run a program; return how it exited and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        out, _ = await process.communicate()
        raise AssertionError(f"{command[0]} hangs after: {out.decode()}") from None
    assert process.returncode is not None
    return process.returncode, out.decode()


# --- libmodbus --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def master_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the master of master.c, compiled; or skip with what is missing."""
    compiler = program("gcc", "gcc")
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"],
        input=b"#include <modbus/modbus.h>\n",
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        missing("modbus/modbus.h is not installed (Debian package libmodbus-dev)")
    made = tmp_path_factory.mktemp("master") / "master"
    source = Path(__file__).with_name("master.c")
    subprocess.run([compiler, "-Wall", "-Werror", str(source), "-o", str(made), "-lmodbus"], check=True)
    return str(made)


def missing(reason: str) -> None:
    if MUST_NOT_SKIP:
        pytest.fail(reason)
    pytest.skip(reason)


EVERYTHING = """\
read_bits: 1 0 0 1 0 0 1 0 0 1
read_input_bits: 0 1 0 1 0 1 0 1 0 1
read_registers: 4291 0000 0000 3fc0
float_abcd: 72.5
float_cdab: 1.5
read_input_registers: ea60 ea61 ea62
read_125: 60124
write_bit: 1
read_back: 1 0 0 0
write_bits: 4
read_back: 0 1 1 1
write_register: 1
write_registers: 2
read_back: fffb 0007
write_float: 2
read_back: 4291 0000
mask_write_register: 1
read_back: 0007
write_and_read_registers: fffb 0007 0001 0002
no_address: error Illegal data address
no_value: error Target device failed to respond
read_only: error Illegal data address
half_a_float: error Illegal data address
out_of_range: error Slave device or server failure
no_function: error Illegal function
coil_0x1234: 85 03
quantity_0: 83 03
"""
ON_TCP = "pipelined: " + " ".join(f"{60000 + n:04x}" for n in range(16)) + "\ndone\n"
ON_A_LINE = """\
another_unit: error Connection timed out
broadcast: error Connection timed out
read_back: 04d2
done
"""
WRITTEN: list[tuple[str, Value]] = [
    ("valve20", True), ("valve20", False), ("valve21", True), ("valve22", True), ("valve23", True),
    ("speed", 2500), ("gear", -5), ("speed", 7), ("setpoint", 72.5), ("speed", 7), ("steps", 65538),
]  # fmt: skip


async def test_libmodbus_on_tcp_does_every_function_it_has(master_program: str) -> None:
    async with serving("tcp") as served:
        code, out = await run(master_program, "tcp", served.place, "1")
        assert out == EVERYTHING + ON_TCP
        assert code == 0
        assert served.written == WRITTEN


async def test_libmodbus_on_a_serial_line_does_every_function_it_has(master_program: str) -> None:
    async with serving("rtu") as served:
        code, out = await run(master_program, "rtu", served.place, "1")
        assert out == EVERYTHING + ON_A_LINE
        assert code == 0
        assert served.written == [*WRITTEN, ("speed", 1234)]
        assert served.link.counters["bad_frames"] == 0


async def test_four_libmodbus_masters_at_once_do_not_disturb_each_other(master_program: str) -> None:
    async with serving("tcp") as served:
        found = await asyncio.gather(*(run(master_program, "tcp", served.place, "1") for _ in range(4)))
        for code, out in found:
            assert code == 0
            assert out.startswith("".join(EVERYTHING.splitlines(keepends=True)[:7]))
            assert out.endswith(ON_TCP)


# --- mbpoll -----------------------------------------------------------------------------------------


async def mbpoll(served: Panel, options: str, *values: str) -> tuple[int, str]:
    found = program("mbpoll", "mbpoll")
    way = ["-m", "rtu", "-b", "9600", "-P", "none", served.place] if served.cable is not None else [
        "-p", served.place, "127.0.0.1"]  # fmt: skip
    return await run(found, "-1", *options.split(), *way, *values)


READINGS = [
    ("-t 0 -r 1 -c 10", ["1", "0", "0", "1", "0", "0", "1", "0", "0", "1"]),
    ("-t 1 -r 1 -c 4", ["0", "1", "0", "1"]),
    ("-t 3:hex -r 1 -c 125", [f"0x{60000 + n:04X}" for n in range(125)]),
    ("-t 3:int -B -r 201 -c 1", ["-123456789"]),
    ("-t 4:float -B -r 1 -c 1", ["72.5"]),
    ("-t 4:float -r 3 -c 1", ["1.5"]),
]
REFUSALS = [
    ("-t 4 -r 6 -c 1", (), "Target device failed to respond"),
    ("-t 4 -r 60000 -c 1", (), "Illegal data address"),
    ("-t 4 -r 16", ("3001",), "Slave device or server failure"),
    ("-t 4 -r 1", ("1",), "Illegal data address"),
]


@pytest.mark.parametrize("transport", ["tcp", "rtu"])
async def test_mbpoll_reads_writes_and_is_refused(transport: str) -> None:
    async with serving(transport) as served:
        for options, values in READINGS:
            _, out = await mbpoll(served, options)
            assert re.findall(r"^\[\d+\]: +\t(\S+)", out, re.MULTILINE) == values, out
        for options, values, complaint in REFUSALS:
            _, out = await mbpoll(served, options, *values)
            assert complaint in out
        assert served.written == []
        assert (await mbpoll(served, "-t 4:float -B -r 11", "72.5"))[0] == 0
        assert (await mbpoll(served, "-t 0 -r 21", "1", "0", "1", "1"))[0] == 0
        expected = [
            ("setpoint", 72.5),
            ("valve20", True),
            ("valve21", False),
            ("valve22", True),
            ("valve23", True),
        ]
        assert served.written == expected


async def test_mbpoll_hears_nothing_from_a_unit_that_is_not_ours_on_a_line() -> None:
    async with serving("rtu") as served:
        _, out = await mbpoll(served, "-a 2 -o 0.2 -t 4 -r 1 -c 1")
        assert "Connection timed out" in out


LINE = """\
version: 1
gateway: {{name: line, data_dir: data}}
links:
  hmi: {{type: modbus-server, transport: rtu, port: {port}, baudrate: 9600, parity: none}}
devices:
  panel: {{link: hmi, points: {{answer: {{table: holding, address: 0, access: readwrite, initial: 42}}}}}}
"""


async def test_an_adapter_that_is_unplugged_and_plugged_in_again_is_served_again(
    fieldbus: Callable[..., Process], tmp_path: Path
) -> None:
    found = program("mbpoll", "mbpoll")
    port = tmp_path / "ttyUSB0"
    config = tmp_path / "line.yaml"
    config.write_text(LINE.format(port=port))
    cable = Cable()
    port.symlink_to(cable.ports[0])
    cable.join()
    process = fieldbus("run", str(config))

    async def answers() -> bool:
        line = ("-m", "rtu", "-b", "9600", "-P", "none", "-o", "0.3")
        _, out = await run(found, "-1", *line, "-t", "4", "-r", "1", "-c", "1", cable.ports[1])
        return "\t42" in out

    async def comes_up() -> bool:
        for _ in range(20):
            if await answers():
                return True
        return False

    try:
        assert await comes_up()
        cable.cut()
        port.unlink()
        cable = Cable()
        assert not await answers()
        port.symlink_to(cable.ports[0])
        cable.join()
        assert await comes_up()
    finally:
        out = process.stop()
        cable.cut()
    assert "hmi: lost (the serial port is gone); trying again" in out
    assert "hmi: back, listening on" in out
    assert process.popen.returncode == 0


# --- modbus-serial ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node_folder() -> Iterator[Path]:
    """Return a folder with modbus-serial in it: $FIELDBUS_MODBUS_SERIAL, or installed here; else skip."""
    program("node", "nodejs")
    ready = os.environ.get("FIELDBUS_MODBUS_SERIAL")
    if ready:
        yield Path(ready)
        return
    npm = program("npm", "npm")
    folder = Path(tempfile.gettempdir()) / f"fieldbus-{MODBUS_SERIAL}"
    if not (folder / "node_modules" / "modbus-serial" / "package.json").is_file():
        made = Path(tempfile.mkdtemp())
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(made), MODBUS_SERIAL]
        done = subprocess.run(command, capture_output=True, check=False, timeout=50, stdin=subprocess.DEVNULL)
        if done.returncode:
            shutil.rmtree(made)
            missing(f"{MODBUS_SERIAL} cannot be installed: {done.stderr.decode().strip()[-200:]}")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    yield folder


NODE = {
    "coils": [True, False, False, True, False, False, True, False, False, True],
    "discretes": [False, True] * 5,
    "inputs": [60000, 60001, 60002],
    "float": 72.5,
    "long": -123456789,
    "all": 60124,
    "no address": {"exception": 2, "name": "Error"},
    "no value": {"exception": 11, "name": "Error"},
    "out of range": {"exception": 4, "name": "Error"},
    "read only": {"exception": 2, "name": "Error"},
    "done": None,
}


@pytest.mark.parametrize("transport", ["tcp", "udp", "rtu-tcp", "rtu", "ascii"])
async def test_modbus_serial_reads_writes_and_is_refused(node_folder: Path, transport: str) -> None:
    script = Path(__file__).with_name("master.js")
    async with serving(transport) as served:
        code, out = await run(
            program("node", "nodejs"), str(script), str(node_folder), transport, served.place
        )
        assert code == 0, out
        rows = [json.loads(line) for line in out.splitlines()]
        found = dict(rows)
        assert {name: found.get(name, "missing") for name in NODE} == NODE
        assert [value for name, value in rows if name == "read back"][-1:] == [72.5]
        if transport not in ("ascii", "rtu-tcp"):
            assert found["who"] == {"0": "Acme", "1": "S1", "2": "1.0"}
        assert served.written == [
            ("valve20", True), ("valve20", False), ("valve21", True), ("valve22", True), ("valve23", True),
            ("speed", 2500), ("setpoint", 72.5),
        ]  # fmt: skip
