"""The load of a link that ``fieldbus plan`` predicts, against the load that there is.

First ``fieldbus run`` polls for a while and ends, having written down in its data folder what it learned;
then ``fieldbus plan --json`` predicts each link's load; then ``fieldbus run`` polls again, and the line
itself (`line.py`) measures for which part of the time it is busy: a simulated RS-485 line on a pty, or a
TCP device that takes its time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .measure import Row, Span, Yardstick
from .peers import Peers, plan

REGISTERS = 20
_SCANS_MS = (250, 500, 1000)
"""Of the units of a line."""


class _Case(NamedTuple):
    text: str
    line: tuple[object, ...]
    """What `line.py` is told."""
    link: Mapping[str, object]
    """The link's configuration without its port."""
    scans_ms: tuple[int, ...] = _SCANS_MS


_CASES = (
    _Case(
        "RS-485 at 9600 8N2, units that take 10 ms to answer",
        ("serial", 9600, 11, 10),
        {"type": "modbus-rtu", "baudrate": 9600, "parity": "none", "stopbits": 2},
    ),
    _Case(
        "RS-485 at 19200 8N1, units that take 30 ms to answer",
        ("serial", 19200, 10, 30),
        {"type": "modbus-rtu", "baudrate": 19200, "parity": "none"},
    ),
    _Case(
        "TCP, units that take 12 ms to answer",
        ("tcp", 12),
        {"type": "modbus-tcp", "host": "127.0.0.1"},
        (50, 100, 200),
    ),
)


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for each line."""
    return [_measure(peers, span, case) for case in _CASES]


def _measure(peers: Peers, span: Span, case: _Case) -> Row:
    learn_s, window_s = span.choose(8.0, 4.0), span.choose(20.0, 6.0)
    with peers.running([sys.executable, "-m", "benchmarks.line", *case.line]) as line:
        port = line.stdout.readline().strip()
        config = _config(case, int(port) if port.isdecimal() else port)

        def look() -> list[float]:
            line.stdin.write("\n")
            line.stdin.flush()
            return [float(word) for word in line.stdout.readline().split()]

        with peers.gateway(config):
            _wait_until_busy(look)
            time.sleep(learn_s)
        (load,) = plan(peers.folder, config)["loads"]
        with peers.gateway(config):
            _wait_until_busy(look)
            time.sleep(2.0)  # the first polls of all come at once
            look()
            time.sleep(window_s)
            busy_s, took_s, requests, gap_s = look()
    measured, predicted = busy_s / took_s * 100, load["percent"]
    return Row(
        f"predicted load: {case.text}",
        f"{predicted:.1f} %",
        [Yardstick(f"measured by the line {measured:.1f} %")],
        f"off by {predicted / measured - 1:+.1%}; {requests / took_s:.1f} requests/s, "
        f"at least {gap_s * 1000:.1f} ms between two; {load['basis']}",
    )


def _wait_until_busy(look: Callable[[], list[float]]) -> None:
    deadline_s = time.monotonic() + 30
    look()
    while not look()[2]:
        if time.monotonic() > deadline_s:
            raise RuntimeError("the gateway asked nothing in 30 s")
        time.sleep(0.1)


def _config(case: _Case, port: object) -> dict[str, object]:
    points = {f"r{address}": {"table": "holding", "address": address} for address in range(REGISTERS)}
    return {
        "links": {"line": {**case.link, "port": port}},
        "devices": {
            f"unit{unit_id}": {"link": "line", "unit_id": unit_id, "scan": f"{scan_ms}ms", "points": points}
            for unit_id, scan_ms in enumerate(case.scans_ms, 1)
        },
    }
