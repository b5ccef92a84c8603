"""A gateway and, in the same process, somebody who listens to its `virtual` CAN bus.

``python -m benchmarks.listener CONFIG`` runs until its standard input ends; then it prints, as one
JSON object, when the first frame with each value came: value (the first 16 bits of the data) to
seconds on the monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path

import can

from fieldbus.gateway import log, loop
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway

CHANNEL = "bench"
"""Of the virtual bus."""


def main() -> None:
    """Run the gateway of the configuration that the command line names."""
    log.set_up("warning")
    seen_s: dict[int, float] = {}
    with can.Bus(interface="virtual", channel=CHANNEL) as bus:
        threading.Thread(target=_listen, args=(bus, seen_s), daemon=True).start()
        loop.run(_work(Path(sys.argv[1])))
        print(json.dumps(seen_s))


def _listen(bus: can.BusABC, seen_s: dict[int, float]) -> None:
    while True:
        try:
            frame = bus.recv(None)
        except can.CanError:
            return  # the bus was shut down
        if frame is not None:
            seen_s.setdefault(int.from_bytes(frame.data[:2], "little"), time.monotonic())


async def _work(config: Path) -> None:
    gateway = Gateway(load(config))
    working = asyncio.create_task(gateway.run())
    await asyncio.to_thread(sys.stdin.read)
    gateway.stop()
    await working


if __name__ == "__main__":
    main()
