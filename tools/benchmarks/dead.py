"""What dead devices cost the live ones, seen from the PLC: the log of its requests.

* On one shared connection: 100 units, once a second each, of which 20 never answer. What counts is how
  many of the updates that were due the live ones had. The yardstick is the loop in C on libmodbus with
  the same timeout, which does as most programs do: it asks one after the other and waits each time.
* Each on its own connection: 100 live devices and 1000 dead ones, half of which refuse the connection
  while half accept it and stay silent, against the same 100 live ones alone. What counts is how far the
  time between two requests to a live device is from its period.

Time is counted from some seconds after the first request: the devices have died long ago, and the gateway
knows. How long the live ones had to wait until it did is in the note.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from .measure import Row, Series, Span, Yardstick, percentile
from .peers import Peers, cpu_seconds, free_port, master_result, wait_until_polling

UNITS = 100
DEAD_UNITS = 20
REGISTERS = 10
LIVE = 100
DEAD = 1000
PERIOD_S = 1.0
TIMEOUT = "500ms"
"""Of libmodbus too, as it comes."""


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for the shared connection, and one for connections of their own."""
    missing = peers.missing("plc")
    if missing is not None:
        return [Row("dead devices beside live ones", missing, [Yardstick(missing)])]
    return [_shared(peers, span), _separate(peers, span)]


def _shared(peers: Peers, span: Span) -> Row:
    settling_s, window_s = span.choose(30.0, 16.0), span.choose(30.0, 6.0)
    silent = range(1, 1 + DEAD_UNITS)
    log = peers.folder / "requests.txt"
    with peers.plc(silent, log) as plc:
        config = {
            "links": {"net": _link(plc.port)},
            "devices": {f"unit{unit_id}": _device("net", unit_id) for unit_id in range(1, UNITS + 1)},
        }
        with peers.gateway(config, may_complain=True) as pid:
            wait_until_polling(pid, plc.pid)
            time.sleep(settling_s + window_s)
    asked = _requests(log)
    began_s = min(times[0] for times in asked.values())
    live = {unit_id: asked.get(unit_id, []) for unit_id in range(1 + DEAD_UNITS, 1 + UNITS)}
    first_s = max(min(times, default=math.inf) for times in live.values()) - began_s
    since_s = began_s + settling_s
    own, late_s = _kept(live, since_s, since_s + window_s)
    probes = sum(since_s <= came_s < since_s + window_s for unit_id in silent for came_s in asked[unit_id])
    yardstick = Yardstick(f"libmodbus in C: {peers.no_master}")
    if peers.no_master is None:
        round_s = DEAD_UNITS * 0.5 + 1  # it must be seen whole
        with peers.plc(silent) as plc:
            units = range(1, UNITS + 1)
            with peers.master(plc.port, units, 1, REGISTERS, PERIOD_S, round_s) as process:
                done = master_result(process, round_s + 20)
        other = done.requests / ((UNITS - DEAD_UNITS) * done.seconds / PERIOD_S)
        yardstick = Yardstick(f"libmodbus in C {other:.1%}", own / other)
    return Row(
        f"{DEAD_UNITS} silent units of {UNITS} on one connection: updates that the live ones keep",
        f"{own:.1%}",
        [yardstick],
        f"scan {PERIOD_S:.0f} s, timeout {TIMEOUT}; {_percentiles(late_s)} from the second; "
        f"all live ones were first asked after {first_s:.1f} s; "
        f"{probes / window_s:.1f} requests/s to the silent ones",
    )


def _kept(asked: Mapping[int, Series], since_s: float, until_s: float) -> tuple[float, Series]:
    """Return the part of their updates that units had, and how far each interval was from the period.

    An interval of n periods has cost n - 1 updates; one that is only late has cost none.
    """
    had, intervals = 0, []
    for times in asked.values():
        edges = times or [since_s, until_s]
        inside = [(a, b) for a, b in pairwise(edges) if b >= since_s and a < until_s]
        intervals += [b - a for a, b in inside]
        had += len(inside) if times else 0
    due = sum(max(1, round(interval / PERIOD_S)) for interval in intervals)
    return had / due, [abs(interval - PERIOD_S) for interval in intervals]


def _separate(peers: Peers, span: Span) -> Row:
    alone, _ = _interval_errors(peers, span, 0)
    beside, note = _interval_errors(peers, span, DEAD)
    beyond_s = percentile(beside, 99) - percentile(alone, 99)
    return Row(
        f"{LIVE} live devices beside {DEAD} dead ones: how far their polls are from the second",
        _percentiles(beside),
        [Yardstick(f"without the dead ones {_percentiles(alone)}")],
        f"p99 {beyond_s * 1000:.1f} ms beyond; half refuse the connection, half stay silent; {note}",
    )


def _interval_errors(peers: Peers, span: Span, dead: int) -> tuple[Series, str]:
    """Return how far the time between two requests to a live device was from its period, each time."""
    warm_up_s, window_s = span.choose(5.0, 3.0), span.choose(20.0, 5.0)
    log = peers.folder / "requests.txt"
    with ExitStack() as stack:
        plc = stack.enter_context(peers.plc(log=log))
        silent = stack.enter_context(peers.plc(range(256)))
        ports = {f"live{number}": plc.port for number in range(1, LIVE + 1)}
        refusing = free_port()
        for number in range(1, dead + 1):
            ports[f"dead{number}"] = silent.port if number % 2 else refusing
        config = {
            "links": {f"net_{name}": _link(port) for name, port in ports.items()},
            "devices": {name: _device(f"net_{name}", index % LIVE + 1) for index, name in enumerate(ports)},
        }
        with peers.gateway(config, may_complain=True) as pid:
            wait_until_polling(pid, plc.pid)
            time.sleep(warm_up_s)
            since_s, spent_s = time.monotonic(), cpu_seconds(pid)
            time.sleep(window_s)
            until_s = time.monotonic()
            cpu = (cpu_seconds(pid) - spent_s) / (until_s - since_s)
    asked = _requests(log, since_s, until_s)
    if len(asked) < LIVE:
        raise RuntimeError(f"only {len(asked)} of {LIVE} live devices were asked")
    updates = sum(map(len, asked.values())) / (LIVE * window_s / PERIOD_S)
    return _errors(asked), f"{updates:.1%} of the updates, CPU {cpu * 1000:.0f} ms/s"


def _percentiles(errors: Series) -> str:
    return ", ".join(f"p{percent} {percentile(errors, percent) * 1000:.2f} ms" for percent in (50, 99))


def _errors(asked: Mapping[int, Series]) -> Series:
    """Return how far the time between two requests to a unit was from the period, each time."""
    return [abs(later - earlier - PERIOD_S) for times in asked.values() for earlier, later in pairwise(times)]


def _requests(log: Path, since_s: float = 0.0, until_s: float = math.inf) -> Mapping[int, Series]:
    """Return when each unit was asked, by unit id, from the log of a PLC that has ended."""
    asked: dict[int, list[float]] = defaultdict(list)
    for line in log.read_text().splitlines():
        came_s, unit_id, _ = line.split()
        if since_s <= float(came_s) <= until_s:
            asked[int(unit_id)].append(float(came_s))
    return asked


def _link(port: int) -> dict[str, object]:
    return {"type": "modbus-tcp", "host": "127.0.0.1", "port": port, "timeout": TIMEOUT}


def _device(link: str, unit_id: int) -> dict[str, object]:
    points = {f"r{address}": {"table": "holding", "address": address} for address in range(REGISTERS)}
    return {"link": link, "unit_id": unit_id, "scan": f"{PERIOD_S * 1000:.0f}ms", "points": points}
