"""CPU seconds per second of ``fieldbus run`` with 100 000 ``float32`` once a second.

10 connections x 10 units x 1000 floats, as in a plant with large power meters; no routes. The yardstick
is the loop in C on libmodbus that reads the same in the same window and looks at nothing.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from .measure import Row, Span, Yardstick
from .peers import Peers, cpu_seconds, master_result, resident_mib, wait_until_polling

CONNECTIONS = 10
UNITS = 10
FLOATS = 1000
_CASES = {
    "nothing changes": range(131, 131 + 2 * UNITS, 2),
    "all values change": range(130, 130 + 2 * UNITS, 2),
}
"""What the units of the PLC do, and their unit ids (see `plc.c`)."""


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for floats that stay as they are, and one for floats that all change."""
    missing = peers.missing("plc")
    if missing is not None:
        return [Row("CPU of many float32", missing, [Yardstick(missing)])]
    return [_measure(peers, span, text, unit_ids) for text, unit_ids in _CASES.items()]


def _measure(peers: Peers, span: Span, text: str, unit_ids: range) -> Row:
    warm_up_s, window_s = span.choose(4.0, 3.0), span.choose(10.0, 3.0)
    with ExitStack() as stack:
        plc = stack.enter_context(peers.plc())
        pid = stack.enter_context(peers.gateway(_config(peers, plc.port, unit_ids)))
        wait_until_polling(pid, plc.pid)
        time.sleep(warm_up_s)
        master = None
        if peers.no_master is None:
            yard = peers.master(plc.port, unit_ids, CONNECTIONS, 2 * FLOATS, 1.0, window_s)
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
    total = CONNECTIONS * UNITS * FLOATS
    return Row(
        f"CPU of {CONNECTIONS} connections x {UNITS} units x {FLOATS} float32 once a second, {text}",
        f"{own * 1000:.1f} ms/s\n({own:.1%} of a core)",
        [yardstick],
        f"{own / total * 1e6:.2f} µs a value, {memory:.0f} MiB",
    )


def _config(peers: Peers, port: int, unit_ids: range) -> dict[str, object]:
    points = "".join(f"f{index},holding,{2 * index},float32\n" for index in range(FLOATS))
    (peers.folder / "floats.csv").write_text("name,table,address,type\n" + points)
    nets = [f"net{number}" for number in range(1, CONNECTIONS + 1)]
    return {
        "links": {
            net: {"type": "modbus-tcp", "host": "127.0.0.1", "port": port, "timeout": "5s"} for net in nets
        },
        "devices": {
            f"{net}_unit{unit_id}": {"link": net, "unit_id": unit_id, "scan": "1s", "map": "floats.csv"}
            for net in nets
            for unit_id in unit_ids
        },
    }
