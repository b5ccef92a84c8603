"""What all tests share: every test bounded, nothing leaked, other people's programs found or named."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_FIRST_PORT = 11_000 + 1000 * _WORKER
_PORTS = itertools.cycle(_FIRST_PORT + (os.getpid() * 37 + step) % 1000 for step in range(1000))
"""Runs that know nothing of each other begin at different ones."""
MUST_NOT_SKIP = os.environ.get("FIELDBUS_FORBID_SKIPS") == "1"


def program(name: str, package: str) -> str:
    """Return the path of a program, or skip the test with how to get it (in CI: fail)."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        missing(f"{name} is not installed (Debian package {package})")
    return found


def missing(reason: str) -> NoReturn:
    """Skip the test for what this machine lacks (in CI: fail)."""
    if MUST_NOT_SKIP:
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the nightly run: tests marked `long`, and ten times as many examples."""
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, and more examples")


def pytest_configure(config: pytest.Config) -> None:
    """Choose hypothesis' profile: the same examples each time in CI, new ones each night."""
    hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
    hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=1000)
    hypothesis.settings.load_profile("nightly" if config.getoption("--long") else "ci")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this run is not for: long tests, and those of virtual CAN where there is none.

    Each night tests by hypothesis have more time, for they try more.
    """
    vcan = pytest.mark.skip(reason="no virtual CAN here: run `tools/vcan tools/test -m vcan`")
    long = pytest.mark.skip(reason="takes minutes: run `tools/test --long`")
    for item in items:
        if "vcan" in item.keywords and os.environ.get("FIELDBUS_VCAN") != "1":
            item.add_marker(vcan)
        if "long" in item.keywords and not config.getoption("--long"):
            item.add_marker(long)
        if "hypothesis" in item.keywords and config.getoption("--long"):
            own = item.get_closest_marker("timeout")
            limit_s = own.args[0] if own is not None and own.args else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(10 * limit_s), append=False)  # ten times as many examples


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Escape half surrogates in what a test logged: a report of a parallel run could not be sent with them."""
    outcome: Any = yield
    report = outcome.get_result()
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on.

    Never one that the system gives away by itself, and another one in each process of a parallel run: between
    this call and its use nobody else takes it.
    """
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def wait_for_port(port: int, timeout_s: float = 10.0) -> None:
    """Wait until something listens on a port of this machine."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing listens on port {port}") from None
            time.sleep(0.05)


async def eventually(condition: Callable[[], object], timeout_s: float = 5.0, what: str = "") -> None:
    """Wait until a condition holds; it is looked at a hundred times a second."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        await asyncio.sleep(0.01)


class Process:
    """A program under test or beside it, ended by its pid whatever happens."""

    def __init__(
        self,
        *command: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.command = command
        self.popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **(env or {})}, cwd=cwd, start_new_session=start_new_session,
        )  # fmt: skip

    def stop(self, timeout_s: float = 10.0) -> str:
        """End it politely and return what it printed."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            out, _ = self.popen.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            out, _ = self.popen.communicate()
        return out

    def kill(self) -> None:
        """End it as a power cut would."""
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start programs that end with the test."""
    started: list[Process] = []

    def begin(*command: str, **options: object) -> Process:
        process = Process(*command, **options)  # type: ignore[arg-type]
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.kill()
        elif process.popen.stdout is not None:
            process.popen.stdout.close()


@pytest.fixture
def fieldbus(start: Callable[..., Process]) -> Callable[..., Process]:
    """Start `fieldbus …` as a user would, in a process of its own."""
    return lambda *arguments, **options: start(sys.executable, "-m", "fieldbus", *arguments, **options)


class Broker:
    """mosquitto on a port of its own, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self._program = program("mosquitto", "mosquitto")
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self._process: Process | None = None
        self.start()

    def start(self) -> None:
        """Start it; its memory is empty."""
        self._process = Process(self._program, "-c", str(self._config))
        wait_for_port(self.port)

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.stop()
            self._process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that nobody else uses."""
    found = Broker(tmp_path)
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def log_level_is_as_it_was() -> Iterator[None]:
    """Undo what a command that ran in this process said about the log."""
    loggers = [logging.getLogger(), logging.getLogger("fieldbus")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_task_is_left(request: pytest.FixtureRequest) -> None:
    """Fail a test that leaves a task running: it would be a leak in ten years of operation too."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_watch_tasks")


@pytest.fixture
async def _watch_tasks() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    # The end of a fixture runs in a task of its own.
    left = [task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    assert not left, f"tasks left running: {left}"
