"""CPU seconds per second of a real ``fieldbus run``: 100 devices x 100 ``uint16``, once a second.

Each device has a TCP connection of its own to the simulated PLC; there is no broker. After a warm-up
the CPU clock of the gateway's process (user and system, all threads) is read at both ends of a
window. The yardstick is one loop in C on libmodbus that reads the same from the same PLC in the same
window, over as many connections; it only reads: no comparison, no quality, no time, no routes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import NamedTuple

from .measure import Row, Span, Yardstick
from .peers import (
    CHANGING_UNIT,
    CONSTANT_UNIT,
    Peers,
    cpu_seconds,
    free_port,
    master_result,
    resident_mib,
    wait_until_polling,
)

DEVICES = 100
REGISTERS = 100


class _Case(NamedTuple):
    text: str
    unit_id: int
    is_routed: bool = False


_CASES = (
    _Case("nothing changes", CONSTANT_UNIT),
    _Case("all values change", CHANGING_UNIT),
    _Case("all values change, each routed to a served register", CHANGING_UNIT, is_routed=True),
)


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for each case."""
    return [_measure(peers, span, case) for case in _CASES]


def _measure(peers: Peers, span: Span, case: _Case) -> Row:
    warm_up_s, window_s = span.choose(3.0, 1.5), span.choose(10.0, 3.0)
    with ExitStack() as stack:
        plc = stack.enter_context(peers.plc())
        pid = stack.enter_context(peers.gateway(_config(peers, plc.port, case)))
        wait_until_polling(pid, plc.pid)
        time.sleep(warm_up_s)
        master = None
        if peers.no_master is None:
            yard = peers.master(
                plc.port, range(case.unit_id, case.unit_id + 1), DEVICES, REGISTERS, 1.0, window_s
            )
            master = stack.enter_context(yard)
        began_s, spent_s = time.monotonic(), cpu_seconds(pid)
        time.sleep(window_s)
        own = (cpu_seconds(pid) - spent_s) / (time.monotonic() - began_s)
        memory = resident_mib(pid)
        yardstick = Yardstick(f"libmodbus in C: {peers.no_master}")
        if master is not None:
            done = master_result(master, window_s + 10)
            other = done.cpu_s / done.seconds
            yardstick = Yardstick(f"libmodbus in C {other * 1000:.1f} ms/s", other / own)
    note = f"{own / DEVICES * 1e6:.0f} µs a poll, {memory:.0f} MiB"
    name = f"CPU of {DEVICES} devices x {REGISTERS} uint16 once a second, {case.text}"
    return Row(name, f"{own * 1000:.1f} ms/s\n({own:.1%} of a core)", [yardstick], note)


def _config(peers: Peers, port: int, case: _Case) -> dict[str, object]:
    addresses = "".join(f"r{address},holding,{address}\n" for address in range(REGISTERS))
    (peers.folder / "map.csv").write_text("name,table,address\n" + addresses)
    links: dict[str, object] = {}
    devices: dict[str, object] = {}
    routes = []
    for number in range(1, DEVICES + 1):
        links[f"net{number}"] = {"type": "modbus-tcp", "host": "127.0.0.1", "port": port, "timeout": "5s"}
        device = {"link": f"net{number}", "unit_id": case.unit_id, "scan": "1s", "map": "map.csv"}
        devices[f"plc{number}"] = device
        if case.is_routed:
            devices[f"panel{number}"] = {"link": "hmi", "unit_id": number, "map": "map.csv"}
            routes.append({"from": f"plc{number}.*", "to": f"panel{number}.{{point}}"})
    if case.is_routed:
        links["hmi"] = {"type": "modbus-server", "host": "127.0.0.1", "port": free_port()}
    return {"links": links, "devices": devices, "routes": routes}
