"""``tools/bench``: run the measurements and print one table of them.

Rules: everything happens on the loopback, is bounded in time, and ends with this process. What is
compared is measured in the same run, in turns, and the medians are shown: on a machine that others use
too, numbers of different minutes say nothing about each other.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import blocks, canbus, dead, delay, durable, floats, gateway, load, poller, publish, replay, vcan
from .measure import Row, Span
from .peers import Peers

BENCHMARKS: dict[str, tuple[str, Callable[[Peers, Span], Iterable[Row]]]] = {
    "poller": ("requests and tags a second on one Modbus connection", poller.measure),
    "blocks": ("what a response costs when nothing, and when everything changed", blocks.measure),
    "gateway": ("CPU of `fieldbus run` with 100 devices x 100 registers a second", gateway.measure),
    "float32": ("CPU of `fieldbus run` with 100 000 float32 a second", floats.measure),
    "dead": ("what devices that do not answer cost those that do", dead.measure),
    "load": ("the load of a link that `plan` predicts, and the load that there is", load.measure),
    "can": ("frames a second through the CAN decoder and the CAN link", canbus.measure),
    "replay": ("CPU of four buses at 8000 frames/s each, from logs", replay.measure),
    "vcan": ("CPU of a frame from virtual CAN to its routes, against `can.Notifier`", vcan.measure),
    "delay": ("from a changed register to the served register and to the CAN frame", delay.measure),
    "durable": ("the spool, a durable route and publishing, beside the bare thing", durable.measure),
    "publish": (
        "devices polled and published to a broker: CPU, age, and the most there can be",
        publish.measure,
    ),
}
NARROWEST = 130
"""Columns that the table takes when nobody says how wide the page is."""


def main() -> None:
    """Measure what the command line asks for."""
    described = "\n".join(f"  {name:8} {what}" for name, (what, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure fieldbus against its yardsticks.",
        epilog=f"names:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these (default: all)")
    parser.add_argument("--quick", action="store_true", help="shorter and rougher: four minutes")
    options = parser.parse_args()
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark '{name}': one of {', '.join(BENCHMARKS)}")
    # What was started is ended by `with` blocks: a polite signal has to go through them.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

    began_s = time.monotonic()
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fieldbus-bench-") as folder:
        peers = Peers(Path(folder))
        for name in options.names or BENCHMARKS:
            what, measure = BENCHMARKS[name]
            print(f"{name}: {what} …", file=sys.stderr, flush=True)
            try:
                rows += measure(peers, Span(is_quick=options.quick))
            except KeyboardInterrupt:
                failed.append(f"{name}: interrupted; what comes after it was not measured")
                break
            except Exception as error:  # one that fails must not cost what the others measured
                traceback.print_exc()
                failed.append(f"{name}: {type(error).__name__}: {error}")
    _show(rows, time.monotonic() - began_s)
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    if failed:
        sys.exit(1)


def _show(rows: Iterable[Row], took_s: float) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, NARROWEST)
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    table = Table(
        title="fieldbus and its yardsticks",
        caption=f"{system}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; took {took_s:.0f} s. "
        "A ratio above 1 is in favour of fieldbus.",
        show_lines=True,
    )
    table.add_column("measurement", ratio=5)
    table.add_column("fieldbus", justify="right", ratio=4)
    table.add_column("yardstick", ratio=5)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("note", ratio=7)
    for row in rows:
        yardsticks = "\n".join(item.text for item in row.yardsticks)
        ratios = "\n".join("–" if item.ratio is None else f"{item.ratio:.3g}" for item in row.yardsticks)
        table.add_row(row.name, row.fieldbus, yardsticks, ratios, row.note)
    console.print(table)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
