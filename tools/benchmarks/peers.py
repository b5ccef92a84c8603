"""The other programs of the benchmarks: PLCs, masters in C, gateways; and what they cost.

Programs in C are compiled once, into the benchmark's temporary folder. Without a compiler the PLC is
the one in `plc.py`, and what needs libmodbus is left out with the reason.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent
CONSTANT_UNIT = 1
"""Unit id of the PLC whose registers hold their own address."""
CHANGING_UNIT = 2
"""Unit id of the PLC whose registers all have another value at every read."""


class MasterResult(NamedTuple):
    """What `master.c` did."""

    requests: int
    seconds: float
    cpu_s: float


class Plc(NamedTuple):
    """A running simulated PLC."""

    port: int
    pid: int


class Peers:
    """Starts other programs; each ends with its `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _plc_program(self) -> list[str]:
        program = self._compile("plc")
        return [sys.executable, "-m", "benchmarks.plc"] if program is None else [str(program)]

    @cached_property
    def _master_program(self) -> Path | None:
        return self._compile("master", "-lmodbus")

    @property
    def no_master(self) -> str | None:
        """Why there is no yardstick on libmodbus; None if there is one."""
        if shutil.which("gcc") is None:
            return "no gcc"
        return "no libmodbus-dev" if self._master_program is None else None

    @property
    def plc_is_slow(self) -> bool:
        """Whether the PLC is the one in Python."""
        return len(self._plc_program) > 1

    def _compile(self, name: str, *libraries: str) -> Path | None:
        if shutil.which("gcc") is None:
            return None
        program = self.folder / name
        command = ["gcc", "-O2", "-o", str(program), str(_FOLDER / f"{name}.c"), *libraries]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        return program if done.returncode == 0 else None

    @contextmanager
    def plc(self) -> Iterator[Plc]:
        """Run a PLC with the units `CONSTANT_UNIT` and `CHANGING_UNIT`."""
        pipe = subprocess.PIPE
        with subprocess.Popen(self._plc_program, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield Plc(int(process.stdout.readline()), process.pid)
            finally:
                process.stdin.close()  # that ends it
                _end(process, polite_s=2.0)

    @contextmanager
    def master(
        self, port: int, unit_id: int, connections: int, registers: int, period_s: float, seconds: float
    ) -> Iterator[subprocess.Popen[str]]:
        """Run the master in C; `master_result` waits for what it did."""
        values = port, unit_id, connections, registers, period_s * 1000, seconds
        command = [str(self._master_program), *map(str, values)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                _end(process, polite_s=0.0)

    @contextmanager
    def gateway(self, config: Mapping[str, object]) -> Iterator[int]:
        """Run ``fieldbus run`` with a configuration; gives the process id."""
        file = write_config(self.folder, config)
        log = self.folder / "gateway.log"
        command = [
            *_ends_with_us(),
            sys.executable,
            "-m",
            "fieldbus",
            "run",
            str(file),
            "--log-level",
            "warning",
        ]
        with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
            try:
                yield process.pid
                if process.poll() is not None:
                    raise RuntimeError(f"the gateway ended by itself:\n{log.read_text()}")
            finally:
                process.terminate()
                _end(process, polite_s=10.0)
        if text := log.read_text():
            raise RuntimeError(f"the gateway had something to say:\n{text[:2000]}")


def _ends_with_us() -> list[str]:
    """Return what goes before a command that must not survive this process, however that ends."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes], polite_s: float) -> None:
    try:
        process.wait(polite_s)
    except subprocess.TimeoutExpired:
        process.kill()


def master_result(process: subprocess.Popen[str], timeout_s: float) -> MasterResult:
    """Wait for a master in C and return what it did."""
    text, _ = process.communicate(timeout=timeout_s)
    if process.returncode:
        raise RuntimeError("the master in C failed")
    requests, seconds, cpu_s = text.split()
    return MasterResult(int(requests), float(seconds), float(cpu_s))


def write_config(folder: Path, config: Mapping[str, object]) -> Path:
    """Write a configuration for the gateway and return its file; JSON is YAML too."""
    file = folder / "bench.yaml"
    file.write_text(json.dumps({"version": 1, "gateway": {"name": "bench"}, **config}))
    return file


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, user and system, of all its threads.

    Linux gives every process a clock for it, whose number is made of the process id
    (clock_getcpuclockid(3)); ``/proc/PID/stat`` has the same number in steps of 10 ms.
    """
    return time.clock_gettime(~pid << 3 | 2)


def resident_mib(pid: int) -> float:
    """Return the memory that a process has in use."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
