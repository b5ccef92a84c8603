"""Modbus with programs that we did not write: mbpoll as the master of our server, libmodbus as our PLC."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import MUST_NOT_SKIP, eventually, free_port, program

from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, Target, WriteOutcome
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch, Quality, Reason, Sample, Value

pytestmark = pytest.mark.system


def point(
    name: str, place: str, type_: str | None = None, *, is_served: bool, **settings: object
) -> RegisterPoint:
    """Return a point; `place` is such as ``holding 4``."""
    table, address = place.split()
    made = PointSettings(table=table, address=int(address), type=type_, **settings)
    return made.build("plc", name, is_served=is_served)


# --- mbpoll is the master ---------------------------------------------------------------------------


def panel() -> list[RegisterPoint]:
    """Return what we serve. mbpoll's reference is the address + 1."""
    free = {"access": "readwrite", "is_served": True}
    return [
        *(point(f"lamp{n}", f"coil {n}", is_served=True) for n in range(10)),
        *(point(f"valve{n}", f"coil {n}", initial=False, **free) for n in range(20, 24)),
        *(point(f"door{n}", f"discrete {n}", is_served=True) for n in range(3)),
        *(point(f"word{n}", f"input {n}", "uint16", is_served=True) for n in range(125)),
        point("position", "input 200", "int32", is_served=True),
        point("flow", "input 202", "float32", is_served=True),
        point("temperature", "holding 0", "float32", is_served=True),
        point("turned", "holding 2", "float32", order="CDAB", is_served=True),
        point("count", "holding 4", "uint16", is_served=True),
        point("dead", "holding 5", "uint16", is_served=True),
        point("setpoint", "holding 10", "float32", initial=0, **free),
        point("turned_setpoint", "holding 12", "float32", order="CDAB", initial=0, **free),
        point("gear", "holding 14", "int16", initial=1, **free),
        point("speed", "holding 15", "uint16", initial=2, max=3000, **free),
        point("steps", "holding 16", "int32", initial=0, **free),
    ]


VALUES: dict[str, Value] = {
    **{f"lamp{n}": n % 3 == 0 for n in range(10)},
    **{f"door{n}": n != 1 for n in range(3)},
    **{f"word{n}": 60000 + n for n in range(125)},
    "position": -123456789, "flow": -0.15625, "temperature": 72.5, "turned": 1.5, "count": 65535,
}  # fmt: skip


class Panel:
    """Our server, run in this loop, with mbpoll beside it."""

    def __init__(self) -> None:
        self._mbpoll = program("mbpoll", "mbpoll")
        served = panel()
        self.points = {item.point.name: item.point for item in served}
        self.link = ModbusServerLink("hmi", "127.0.0.1", 0, [ServedUnit("plc", 1, served)])
        self.written: list[tuple[str, Value | None]] = []

    def emit(self, batch: Batch) -> None:
        self.written += [(point.name, batch.values[n]) for n, point in enumerate(batch.group.points)]

    async def mbpoll(self, options: str, *values: str) -> tuple[int, str]:
        """Run mbpoll once; return how it exited and what it printed."""
        process = await asyncio.create_subprocess_exec(
            self._mbpoll, "-1", "-p", str(self.link.port), *options.split(), "127.0.0.1", *values,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(10):
            out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()

    async def read(self, options: str) -> list[str]:
        """Return the values that mbpoll prints, without their references."""
        _, out = await self.mbpoll(options)
        return re.findall(r"^\[\d+\]: +\t(\S+)", out, re.MULTILINE)


@pytest.fixture
async def served() -> AsyncIterator[Panel]:
    panel = Panel()
    await panel.link.connect()
    running = asyncio.create_task(panel.link.run(panel.emit, lambda _: None))
    await asyncio.sleep(0)
    panel.written.clear()
    for name, value in VALUES.items():
        sample = Sample(value, Quality.GOOD, None, time.time_ns())
        panel.link.send([Delivery(Target("hmi", panel.points[name]), panel.points[name], sample)])
    yield panel
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await panel.link.close()


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("-t 0 -r 1 -c 10", ["1", "0", "0", "1", "0", "0", "1", "0", "0", "1"]),
        ("-t 0 -r 4 -c 1", ["1"]),
        ("-t 1 -r 1 -c 3", ["1", "0", "1"]),
        ("-t 3 -r 2 -c 2", ["60001", "60002"]),
        ("-t 3:hex -r 1 -c 1", ["0xEA60"]),
        ("-t 3:int -B -r 201 -c 1", ["-123456789"]),
        ("-t 3:float -B -r 203 -c 1", ["-0.15625"]),
        ("-t 4 -r 5 -c 1", ["65535"]),
        ("-t 4:float -B -r 1 -c 1", ["72.5"]),
        ("-t 4:float -r 3 -c 1", ["1.5"]),
        ("-a 255 -t 4:float -B -r 1 -c 1", ["72.5"]),
        ("-a 0 -t 4:float -B -r 1 -c 1", ["72.5"]),
    ],
)
async def test_mbpoll_reads_what_was_routed(served: Panel, options: str, values: list[str]) -> None:
    found = await served.read(options)
    assert [re.sub(r"^(\d+)\(-\d+\)$", r"\1", value) for value in found] == values


async def test_mbpoll_reads_a_block_of_125(served: Panel) -> None:
    found = await served.read("-t 3:hex -r 1 -c 125")
    assert found == [f"0x{60000 + n:04X}" for n in range(125)]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("-t 4 -r 6 -c 1", "Target device failed to respond"),
        ("-t 4 -r 5 -c 2", "Target device failed to respond"),
        ("-t 4 -r 7 -c 1", "Illegal data address"),
        ("-t 4 -r 60000 -c 1", "Illegal data address"),
        ("-t 0 -r 11 -c 1", "Illegal data address"),
        ("-a 2 -t 4 -r 1 -c 1", "Gateway path unavailable"),
    ],
)
async def test_mbpoll_is_told_why_there_is_no_value(served: Panel, options: str, complaint: str) -> None:
    _, out = await served.mbpoll(options)
    assert complaint in out
    assert not re.search(r"^\[\d+\]:", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "values", "written"),
    [
        ("-t 0 -r 21", ["1"], [("valve20", True)]),
        ("-t 0 -r 21", ["1", "0", "1", "1"],
         [("valve20", True), ("valve21", False), ("valve22", True), ("valve23", True)]),
        ("-t 4 -r 16", ["2500"], [("speed", 2500)]),
        ("-t 4 -r 15", ["65531", "7"], [("gear", -5), ("speed", 7)]),
        ("-t 4:float -B -r 11", ["72.5"], [("setpoint", 72.5)]),
        ("-t 4:float -r 13", ["1.5"], [("turned_setpoint", 1.5)]),
        ("-t 4:int -B -r 17", ["--", "-123456789"], [("steps", -123456789)]),
    ],
)  # fmt: skip
async def test_what_mbpoll_writes_arrives_in_whole_samples(
    served: Panel, options: str, values: list[str], written: list[tuple[str, Value]]
) -> None:
    code, out = await served.mbpoll(options, *values)
    assert code == 0, out
    assert served.written == written


async def test_mbpoll_reads_back_what_it_wrote(served: Panel) -> None:
    await served.mbpoll("-t 4:float -B -r 11", "3.25")
    await served.mbpoll("-t 0 -r 22", "1")
    assert await served.read("-t 4:float -B -r 11 -c 1") == ["3.25"]
    assert await served.read("-t 0 -r 21 -c 4") == ["0", "1", "0", "0"]


@pytest.mark.parametrize(
    ("options", "value", "complaint"),
    [
        ("-t 4 -r 5", "1", "Illegal data address"),
        ("-t 0 -r 1", "1", "Illegal data address"),
        ("-t 4 -r 11", "1", "Illegal data address"),
        ("-t 4 -r 16", "3001", "Slave device or server failure"),
    ],
)
async def test_what_mbpoll_must_not_write_is_refused(
    served: Panel, options: str, value: str, complaint: str
) -> None:
    code, out = await served.mbpoll(options, value)
    assert code != 0
    assert complaint in out
    assert served.written == []


# --- libmodbus is the PLC ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plc_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the PLC of plc.c, compiled; or skip with what is missing."""
    compiler = program("gcc", "gcc")
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"],
        input=b"#include <modbus/modbus.h>\n",
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        reason = "modbus/modbus.h is not installed (Debian package libmodbus-dev)"
        if MUST_NOT_SKIP:
            pytest.fail(reason)
        pytest.skip(reason)
    made = tmp_path_factory.mktemp("plc") / "plc"
    source = Path(__file__).with_name("plc.c")
    subprocess.run([compiler, "-Wall", "-Werror", str(source), "-o", str(made), "-lmodbus"], check=True)
    return made


class Plc:
    """A PLC with libmodbus inside, which can be killed and started again."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._process: asyncio.subprocess.Process | None = None
        self.port = free_port()

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(self._program), str(self.port), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert await self._line() == "listening"

    async def kill(self) -> None:
        """End it as a power cut would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.communicate()

    async def next_write(self) -> str:
        """Return the next request that wrote, in hex."""
        return await self._line()

    async def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(5):
            return (await self._process.stdout.readline()).decode().strip()


@pytest.fixture
async def plc(plc_program: Path) -> AsyncIterator[Plc]:
    running = Plc(plc_program)
    await running.start()
    yield running
    await running.kill()


class Poller:
    """A link kept connected, and the newest sample of each of its points."""

    def __init__(self, link: ModbusClientLink) -> None:
        self.link = link
        self.samples: dict[str, Sample] = {}
        self.lost: list[str] = []
        self.is_up = asyncio.Event()

    async def keep(self) -> None:
        while True:
            try:
                await self.link.connect()
                self.is_up.set()
                await self.link.run(self.emit, lambda _: None)
            except LinkDownError as error:
                self.lost.append(str(error))
            finally:
                await self.link.close()
            for group in self.link.groups:
                self.emit(group.without_value(Reason.NOT_CONNECTED, time.time_ns(), time.monotonic()))
            await asyncio.sleep(0.05)

    def emit(self, batch: Batch) -> None:
        for index, point in enumerate(batch.group.points):
            self.samples[point.name] = batch.sample(index)

    @property
    def values(self) -> dict[str, Value | None]:
        return {name: sample.value for name, sample in self.samples.items()}

    @property
    def reasons(self) -> set[str | None]:
        return {sample.reason for sample in self.samples.values()}


@asynccontextmanager
async def polled(plc: Plc, points: list[RegisterPoint]) -> AsyncIterator[Poller]:
    unit = Unit("plc", 1, points, scan_s=0.05, timeout_s=1.0)
    poller = Poller(ModbusClientLink("plc_net", TcpPlace("127.0.0.1", plc.port), [unit]))
    running = asyncio.create_task(poller.keep())
    try:
        async with asyncio.timeout(5):
            await poller.is_up.wait()
        readable = [item.point.name for item in points if item.point.access.can_read]
        await eventually(lambda: set(readable) <= set(poller.samples))
        yield poller
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


READINGS: dict[str, tuple[str, str | None, dict[str, object], Value]] = {
    "c0": ("coil 0", None, {}, False),
    "c1": ("coil 1", None, {}, True),
    "c15": ("coil 15", None, {}, True),
    "d0": ("discrete 0", None, {}, True),
    "d1": ("discrete 1", None, {}, False),
    "d9": ("discrete 9", None, {}, True),
    "i0": ("input 0", "uint16", {}, 1000),
    "i99": ("input 99", "uint16", {}, 1099),
    "position": ("input 10", "int32", {}, -123456789),
    "total": ("input 20", "int64", {}, 1234567890123456789),
    "h0": ("holding 0", "uint16", {}, 2000),
    "h39": ("holding 39", "uint16", {"scale": 0.1}, 203.9),
    "big": ("holding 10", "float32", {}, 72.5),
    "words_swapped": ("holding 12", "float32", {"order": "CDAB"}, 72.5),
    "bytes_swapped": ("holding 14", "float32", {"order": "BADC"}, 72.5),
    "little": ("holding 16", "float32", {"order": "DCBA"}, 72.5),
    "bit": ("holding 1", None, {"bit": 0}, True),
}


async def test_all_four_tables_of_a_libmodbus_plc_are_read(plc: Plc) -> None:
    points = [
        point(name, place, type_, is_served=False, **settings)
        for name, (place, type_, settings, _) in READINGS.items()
    ]
    async with polled(plc, points) as poller:
        assert poller.values == {name: row[3] for name, row in READINGS.items()}
        assert poller.reasons == {None}


async def test_an_address_that_a_libmodbus_plc_does_not_have_is_its_exception(plc: Plc) -> None:
    points = [
        point("there", "holding 0", is_served=False),
        point("beyond", "holding 100", is_served=False),
    ]
    async with polled(plc, points) as poller:
        assert poller.samples["beyond"].reason == "device exception 02"
        assert poller.values == {"there": 2000, "beyond": None}


WRITES: list[tuple[str, dict[str, Value]]] = [
    ("050028ff00", {"x": True}),
    ("0500290000", {"y": False}),
    ("0600281234", {"a": 0x1234}),
    ("060029fffb", {"b": -0.5}),
    ("0f002800020103", {"x": True, "y": True}),
    ("10002a00020442910000", {"real": 72.5}),
    ("1000280004080007000342910000", {"a": 7, "b": 0.3, "real": 72.5}),
    ("10002c00020400004291", {"turned": 72.5}),
]


@pytest.mark.parametrize(("request_hex", "values"), WRITES)
async def test_a_write_arrives_in_a_libmodbus_plc_and_is_read_back(
    plc: Plc, request_hex: str, values: dict[str, Value]
) -> None:
    free = {"access": "readwrite", "is_served": False}
    points = [
        point("x", "coil 40", **free),
        point("y", "coil 41", **free),
        point("a", "holding 40", "uint16", **free),
        point("b", "holding 41", "int16", scale=0.1, **free),
        point("real", "holding 42", "float32", **free),
        point("turned", "holding 44", "float32", order="CDAB", **free),
    ]
    names = {item.point.name: item.point for item in points}
    async with polled(plc, points) as poller:
        results = await poller.link.write({names[name]: value for name, value in values.items()})
        assert [result.outcome for result in results] == [WriteOutcome.WRITTEN] * len(values)
        assert await plc.next_write() == request_hex
        await eventually(lambda: {name: poller.values[name] for name in values} == values)


async def test_a_write_that_a_libmodbus_plc_refuses_has_failed_and_why(plc: Plc) -> None:
    beyond = point("beyond", "holding 100", access="write", is_served=False)
    async with polled(plc, [beyond]) as poller:
        [result] = await poller.link.write({beyond.point: 5})
        assert (result.outcome, result.reason) == (WriteOutcome.FAILED, "device exception 02")


async def test_a_plc_that_is_killed_is_not_connected_and_comes_back_on_the_same_port(plc: Plc) -> None:
    points = [point("h0", "holding 0", is_served=False), point("c1", "coil 1", is_served=False)]
    async with polled(plc, points) as poller:
        assert poller.values == {"h0": 2000, "c1": True}
        await plc.kill()
        await eventually(lambda: poller.reasons == {Reason.NOT_CONNECTED}, 2.0)
        assert poller.values == {"h0": None, "c1": None}
        await eventually(lambda: "connection refused" in poller.lost)
        assert poller.reasons == {Reason.NOT_CONNECTED}
        await plc.start()
        await eventually(lambda: poller.values == {"h0": 2000, "c1": True})
        assert poller.reasons == {None}
