"""The load of a link that ``fieldbus plan`` predicts, against the load that there is.

First ``fieldbus run`` polls for a while and ends, having written down in its data folder what it learned;
then ``fieldbus plan --json`` predicts each link's load; then ``fieldbus run`` polls again, and the line
itself (`line.py`) measures for which part of the time it is busy: a simulated RS-485 line on a pty, or a
TCP device that takes its time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from .measure import Row, Span, Yardstick
from .peers import Peers, plan

REGISTERS = 20


class _Case(NamedTuple):
    text: str
    line: tuple[object, ...]
    """What `line.py` is told."""
    link: Mapping[str, object]
    """The link's configuration without its port."""
    scans_ms: tuple[int, ...] = (250, 500, 1000)
    """Of its units."""


_CASES = {
    "slow": _Case(
        "RS-485 at 9600 8N2, units that take 10 ms to answer",
        ("serial", 9600, 11, 10),
        {"type": "modbus-rtu", "baudrate": 9600, "parity": "none", "stopbits": 2},
    ),
    "fast": _Case(
        "RS-485 at 19200 8N1, units that take 30 ms to answer",
        ("serial", 19200, 10, 30),
        {"type": "modbus-rtu", "baudrate": 19200, "parity": "none"},
    ),
    "net": _Case(
        "TCP, units that take 12 ms to answer",
        ("tcp", 12),
        {"type": "modbus-tcp", "host": "127.0.0.1"},
        (50, 100, 200),
    ),
}
"""By the name of the link; one gateway has them all."""


class _Books(NamedTuple):
    """What a line says of the time since it was last asked."""

    busy_s: float
    window_s: float
    requests: float
    shortest_gap_s: float


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for each line."""
    learn_s, window_s = span.choose(10.0, 4.0), span.choose(25.0, 7.0)
    with ExitStack() as stack:
        lines = {
            name: stack.enter_context(peers.running([sys.executable, "-m", "benchmarks.line", *case.line]))
            for name, case in _CASES.items()
        }
        config = _config({name: line.stdout.readline().strip() for name, line in lines.items()})

        def look() -> dict[str, _Books]:
            return {name: _ask(line) for name, line in lines.items()}

        with peers.gateway(config):
            _wait_until_busy(look)
            time.sleep(learn_s)
        predicted = {load["link"]: load for load in plan(peers.folder, config)["loads"]}
        with peers.gateway(config):
            _wait_until_busy(look)
            time.sleep(2.0)  # the first polls of all come at once
            look()
            time.sleep(window_s)
            measured = look()
    return [_row(case, predicted[name], measured[name]) for name, case in _CASES.items()]


def _row(case: _Case, predicted: Mapping[str, Any], books: _Books) -> Row:
    percent = books.busy_s / books.window_s * 100
    return Row(
        f"predicted load: {case.text}",
        f"{predicted['percent']:.1f} %",
        [Yardstick(f"measured by the line {percent:.1f} %")],
        f"off by {predicted['percent'] / percent - 1:+.1%}; "
        f"{books.requests / books.window_s:.1f} requests/s, "
        f"at least {books.shortest_gap_s * 1000:.1f} ms between two; {predicted['basis']}",
    )


def _ask(line: subprocess.Popen[str]) -> _Books:
    line.stdin.write("\n")
    line.stdin.flush()
    return _Books(*map(float, line.stdout.readline().split()))


def _wait_until_busy(look: Callable[[], Mapping[str, _Books]]) -> None:
    """Wait until every line has been asked something."""
    deadline_s = time.monotonic() + 30
    look()
    busy: set[str] = set()
    while len(busy) < len(_CASES):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the gateway asked nothing in 30 s on {', '.join(_CASES.keys() - busy)}")
        time.sleep(0.1)
        busy.update(name for name, books in look().items() if books.requests)


def _config(ports: Mapping[str, str]) -> dict[str, object]:
    points = {f"r{address}": {"table": "holding", "address": address} for address in range(REGISTERS)}
    return {
        "links": {
            name: {**_CASES[name].link, "port": int(port) if port.isdecimal() else port}
            for name, port in ports.items()
        },
        "devices": {
            f"{name}_{unit_id}": {"link": name, "unit_id": unit_id, "scan": f"{scan_ms}ms", "points": points}
            for name, case in _CASES.items()
            for unit_id, scan_ms in enumerate(case.scans_ms, 1)
        },
    }
