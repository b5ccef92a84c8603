"""Devices made of libmodbus (`tests/system/rtu_slave.c`), their truth, and a cable to reach serial ones.

The devices know nothing of fieldbus, and what their registers hold is computed here once more.
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import termios
import tty
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import MUST_NOT_SKIP, program

SOURCE = Path(__file__).parent.parent / "system" / "rtu_slave.c"
FUNCTIONS = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}


def mixed(unit_id: int, table: str, address: int) -> int:
    """Return what a register holds after ``values mixed``; of a coil or discrete input whether it is on."""
    x = (address + (unit_id << 16) + (FUNCTIONS[table] << 24)) * 0x9E3779B1 & 0xFFFFFFFF
    x ^= x >> 15
    word = (x * 0x85EBCA77 & 0xFFFFFFFF) >> 16
    return word & 1 if FUNCTIONS[table] < 3 else word


@cache
def slave_program() -> Path:
    """Return the devices' program, compiled once; or skip the test with what is missing."""
    compiler = program("gcc", "gcc")
    include = b"#include <modbus/modbus.h>\n"
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"], input=include, capture_output=True, check=False, timeout=60
    )
    if probe.returncode:
        reason = "modbus/modbus.h is not installed (Debian package libmodbus-dev)"
        if MUST_NOT_SKIP:
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tempfile.mkdtemp(prefix="rtu_slave-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Path(folder) / "rtu_slave"
    flags = ["-Wall", "-Wextra", "-Werror", "-O2", "-pthread"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(made), "-lmodbus"], check=True, timeout=60)
    return made


class Request(NamedTuple):
    """A line of the devices' log."""

    at_s: float
    unit_id: int
    function: int
    address: int
    count: int
    verdict: int
    """0 answered, -1 silence, else the code of the exception."""


class Slave:
    """Running devices; what they do can be changed by the commands of `rtu_slave.c`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.port = 0
        self.log: Path | None = None

    async def tell(self, *commands: str) -> list[str]:
        """Give commands and return what is answered."""
        return [await self._tell(command) for command in commands]

    async def count(self) -> int:
        """Return how many requests came since this was called last."""
        return int(await self._tell("count"))

    async def write_log(self, folder: Path) -> None:
        """Write a line for each request from now on."""
        self.log = folder / "requests.txt"
        await self.tell(f"log {self.log}")

    def requests(self, since_s: float = 0.0) -> list[Request]:
        """Return the log from a moment on."""
        assert self.log is not None
        rows = [line.split() for line in self.log.read_text().splitlines()]
        found = [Request(float(row[0]), *map(int, row[1:])) for row in rows if len(row) == 6]
        return [request for request in found if request.at_s >= since_s]

    async def _tell(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        said = await self._line()
        assert said != "?", command
        return said

    async def _line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(10):
            return (await self._process.stdout.readline()).decode().strip()

    async def listening(self) -> None:
        """Wait until it serves."""
        word, _, port = (await self._line()).partition(" ")
        assert word == "listening"
        self.port = int(port)

    async def stop(self) -> None:
        """End it as a power cut would."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


@asynccontextmanager
async def slave(*commands: str, tty_name: str | None = None, port: int = 0) -> AsyncIterator[Slave]:
    """Run devices on a TCP port, or on a serial line, for as long as the block lasts."""
    kind = ("rtu", tty_name) if tty_name is not None else ("tcp", str(port))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        str(slave_program()), *kind, *commands, stdin=pipe, stdout=pipe
    )
    running = Slave(process)
    try:
        await running.listening()
        yield running
    finally:
        await running.stop()


class Pty:
    """One end of a serial line: `name` is for a program, `master` is the wire."""

    def __init__(self) -> None:
        # The slave's end stays open here, so that the wire does not break while no program has it open.
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.name = os.ttyname(self._slave)
        os.set_blocking(self.master, False)
        self._waiting = bytearray()
        self._is_open = True

    def write(self, data: bytes) -> None:
        """Put bytes on the wire, now or as soon as there is room."""
        if not self._is_open:
            return
        if not self._waiting:
            data = data[self._put(data) :]
            if data:
                asyncio.get_running_loop().add_writer(self.master, self._flush)
        self._waiting += data

    @property
    def unread(self) -> int:
        """How many bytes the program has not taken yet."""
        raw = fcntl.ioctl(self._slave, termios.FIONREAD, b"\0\0\0\0")
        return struct.unpack("i", raw)[0]

    def close(self) -> None:
        """Unplug it."""
        if self._is_open:
            self._is_open = False
            loop = asyncio.get_running_loop()
            loop.remove_writer(self.master)
            loop.remove_reader(self.master)
            os.close(self.master)
            os.close(self._slave)

    def _put(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self.master, data)
        except BlockingIOError:
            return 0

    def _flush(self) -> None:
        del self._waiting[: self._put(self._waiting)]
        if not self._waiting:
            asyncio.get_running_loop().remove_writer(self.master)


@asynccontextmanager
async def ptys(count: int) -> AsyncIterator[Sequence[Pty]]:
    """Make ends of serial lines for as long as the block lasts."""
    made = [Pty() for _ in range(count)]
    try:
        yield made
    finally:
        for end in made:
            end.close()


@asynccontextmanager
async def cable() -> AsyncIterator[tuple[str, str]]:
    """Connect two serial ports as a null-modem cable does; gives their names."""
    async with ptys(2) as (left, right):
        loop = asyncio.get_running_loop()

        def carry(source: Pty, target: Pty) -> None:
            try:
                target.write(os.read(source.master, 4096))
            except BlockingIOError:
                pass

        loop.add_reader(left.master, carry, left, right)
        loop.add_reader(right.master, carry, right, left)
        yield left.name, right.name
