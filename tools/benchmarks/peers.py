"""The other programs of the benchmarks: PLCs, masters in C, brokers, gateways; and what they cost.

Programs in C are compiled once, into the benchmark's temporary folder. Without a compiler the PLC is
the one in `plc.py`; what needs a program that is not there is left out with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path(__file__).parent
_LIBRARIES = {
    "plc": (),
    "master": ("modbus",),
    "publish": ("modbus", "mosquitto"),
    "subscriber": ("mosquitto",),
}
"""The programs in C, and what they are linked with."""
_BROKER_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
sys_interval 1
persistence false
log_type error
"""
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
        self._programs: dict[str, Path | None] = {}

    @property
    def no_master(self) -> str | None:
        """Why there is no yardstick on libmodbus; None if there is one."""
        return self.missing("master")

    @property
    def plc_is_slow(self) -> bool:
        """Whether the PLC is the one in Python."""
        return self.missing("plc") is not None

    def missing(self, name: str) -> str | None:
        """Return why there is no program `name` (of `_LIBRARIES`, or ``mosquitto``); None if there is one."""
        if name == "mosquitto":
            return None if _mosquitto() else "no mosquitto"
        if shutil.which("gcc") is None:
            return "no gcc"
        libraries = " or ".join(f"lib{library}-dev" for library in _LIBRARIES[name])
        return f"no {libraries or 'gcc that works'}" if self._program(name) is None else None

    def _program(self, name: str) -> Path | None:
        if name not in self._programs:
            self._programs[name] = self._compile(name)
        return self._programs[name]

    def _compile(self, name: str) -> Path | None:
        if shutil.which("gcc") is None:
            return None
        program = self.folder / name
        libraries = [f"-l{library}" for library in _LIBRARIES[name]]
        command = ["gcc", "-O2", "-o", str(program), str(_FOLDER / f"{name}.c"), *libraries]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        return program if done.returncode == 0 else None

    @contextmanager
    def running(self, command: Sequence[object]) -> Iterator[subprocess.Popen[str]]:
        """Run a program whose standard input and output are pipes; its input ends with the block."""
        pipe = subprocess.PIPE
        words = [*_ends_with_us(), *map(str, command)]
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.stdin.close()
                _end(process, polite_s=2.0)

    @contextmanager
    def plc(self, silent_units: range = range(0), log: Path | None = None) -> Iterator[Plc]:
        """Run a PLC with the units `CONSTANT_UNIT`, `CHANGING_UNIT` and others like them (see `plc.c`).

        Args:
            silent_units: unit ids that never answer; the PLC in Python has none.
            log: where a line for every request goes; the PLC in Python writes none. It is whole when the
                block has ended.
        """
        program = self._program("plc")
        command: list[object] = [sys.executable, "-m", "benchmarks.plc"]
        if program is not None:
            silent = (silent_units[0], silent_units[-1]) if silent_units else (256, -1)
            command = [program, *silent, *([log] if log else [])]
        with self.running(command) as process:
            yield Plc(int(process.stdout.readline()), process.pid)

    @contextmanager
    def master(
        self,
        port: int,
        unit_ids: range,
        connections: int,
        registers: int,
        period_s: float,
        seconds: float,
    ) -> Iterator[subprocess.Popen[str]]:
        """Run the master in C, which reads every unit of every connection.

        `master_result` waits for what it did.
        """
        units = unit_ids[0], unit_ids.step, len(unit_ids)
        values = port, *units, connections, registers, period_s * 1000, seconds
        with self.running([self._program("master"), *values]) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def broker(self) -> Iterator[int]:
        """Run mosquitto, which says every two seconds how much it has received; gives its port."""
        port = free_port()
        file = self.folder / "mosquitto.conf"
        file.write_text(_BROKER_CONFIG.format(port=port))
        with self.running([_mosquitto(), "-c", file]) as process:
            try:
                _wait_for_port(port)
                yield port
            finally:
                process.terminate()

    @contextmanager
    def publisher(self, name: str, *arguments: object) -> Iterator[int]:
        """Run ``publish.c`` (name ``c``) or ``publish_script.py`` (``script``); gives the process id."""
        command: list[object] = [sys.executable, "-m", "benchmarks.publish_script"]
        if name == "c":
            command = [self._program("publish")]
        with self.running([*command, *arguments]) as process:
            try:
                yield process.pid
                if process.poll() is not None:
                    raise RuntimeError(f"the publisher '{name}' ended by itself")
            finally:
                process.terminate()

    @contextmanager
    def subscriber(self, port: int, file: Path, *topics: str) -> Iterator[None]:
        """Run the subscriber in C; its file is whole when the block has ended."""
        with self.running([self._program("subscriber"), port, file, *topics]) as process:
            process.stdout.readline()
            yield

    @contextmanager
    def gateway(self, config: Mapping[str, object], *, may_complain: bool = False) -> Iterator[int]:
        """Run ``fieldbus run`` with a configuration; gives the process id.

        Args:
            may_complain: whether it is expected to log warnings; if not, they are shown.
        """
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
            finally:
                if process.poll() is not None:
                    raise RuntimeError(f"the gateway ended by itself:\n{log.read_text()}")
                process.terminate()
                _end(process, polite_s=10.0)
        if not may_complain and (lines := log.read_text().splitlines()):
            shown = "\n  ".join(lines[:5])
            print(f"the gateway had something to say, {len(lines)} lines:\n  {shown}", file=sys.stderr)


def plan(folder: Path, config: Mapping[str, object]) -> Any:
    """Return what ``fieldbus plan --json`` says of a configuration."""
    command = [sys.executable, "-m", "fieldbus", "plan", str(write_config(folder, config)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"fieldbus plan failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def _mosquitto() -> str | None:
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def _wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return


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
    """Write a configuration for the gateway and return its file; JSON is YAML too.

    Each configuration has a data folder of its own: what was learned with another one is not for it.
    """
    number = zlib.crc32(json.dumps(config).encode())
    gateway = {"name": "bench", "data_dir": f"data-{number:08x}"}
    file = folder / "bench.yaml"
    file.write_text(json.dumps({"version": 1, "gateway": gateway, **config}))
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


def wait_until_polling(pid: int, plc_pid: int) -> None:
    """Wait until the gateway has read its configuration and asks the PLC."""
    deadline_s = time.monotonic() + 30
    idle_s = cpu_seconds(plc_pid)
    while cpu_seconds(plc_pid) < idle_s + 0.001:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the gateway with process id {pid} asked nothing in 30 s")
        time.sleep(0.05)
