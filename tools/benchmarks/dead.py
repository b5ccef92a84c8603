"""What dead devices cost the live ones, seen from the PLC: the log of its requests.

* On one shared connection: 100 units, once a second each, of which 20 never answer. What counts is how
  many of the updates that were due the live ones had. The yardstick is the loop in C on libmodbus with
  the same timeout, which does as most programs do: it asks one after the other and waits each time.
* Each on its own connection: 100 live devices and 1000 dead ones, half of which refuse the connection
  while half accept it and stay silent, against the same 100 live ones alone. What counts is how far the
  time between two requests to a live device is from its period.

Time is counted from some seconds after the first request: the devices have died long ago, and the
gateway knows. What it takes to find out is in the note.
"""

from __future__ import annotations

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
    settling_s, window_s = span.choose(25.0, 12.0), span.choose(25.0, 8.0)
    silent = range(1, 1 + DEAD_UNITS)
    log = peers.folder / "requests.txt"
    with peers.plc(silent, log) as plc:
        config = {
            "links": {"net": _link(plc.port)},
            "devices": {f"unit{unit_id}": _device("net", unit_id) for unit_id in range(1, UNITS + 1)},
        }
        with peers.gateway(config, may_complain=True) as pid:
            wait_until_polling(pid, plc.pid)
            began_s = time.monotonic()
            time.sleep(settling_s + window_s)

    def kept(since_s: float, seconds: float) -> float:
        asked = _requests(log, since_s, since_s + seconds)
        updates = sum(len(times) for unit_id, times in asked.items() if unit_id not in silent)
        return updates / ((UNITS - DEAD_UNITS) * seconds / PERIOD_S)

    own = kept(began_s + settling_s, window_s)
    asked = _requests(log, began_s + settling_s, began_s + settling_s + window_s)
    probes = sum(len(times) for unit_id, times in asked.items() if unit_id in silent)
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
        f"scan {PERIOD_S:.0f} s, timeout {TIMEOUT}; {probes / window_s:.1f} requests/s to the silent ones; "
        f"in the first {settling_s:.0f} s {kept(began_s, settling_s):.1%}",
    )


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
    warm_up_s, window_s = span.choose(5.0, 4.0), span.choose(20.0, 6.0)
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
    errors = [
        abs(later - earlier - PERIOD_S) for times in asked.values() for earlier, later in pairwise(times)
    ]
    if len(asked) < LIVE:
        raise RuntimeError(f"only {len(asked)} of {LIVE} live devices were asked")
    updates = sum(map(len, asked.values())) / (LIVE * window_s / PERIOD_S)
    return errors, f"{updates:.1%} of the updates, CPU {cpu * 1000:.0f} ms/s"


def _percentiles(errors: Series) -> str:
    return ", ".join(f"p{percent} {percentile(errors, percent) * 1000:.2f} ms" for percent in (50, 99))


def _requests(log: Path, since_s: float, until_s: float) -> Mapping[int, Series]:
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
