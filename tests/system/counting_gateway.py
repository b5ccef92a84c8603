"""A gateway whose PLC counts, and keeps a ledger: what came in, what of it is on disk.

``python counting_gateway.py CONFIG LEDGER RATE``: the points of the device `press` get one number after the
other, RATE samples a second in all, once all streams that routes or peers want are there. SIGUSR1 has it
also take as many samples as the file BURST beside the ledger says, as fast as they can be kept; while the
disk takes nothing, as fast as they come.

The ledger has a line for each step, written before it:

``reserve N``                              numbers below N may have been given to the gateway from now on
``begin N``                                a life begins with number N
``kept N given M dropped D backlog B``     those below N are on disk, those below M were given to the gateway
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from types import MappingProxyType

from fieldbus.clock import SYSTEM
from fieldbus.gateway import log, loop
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.model import NO_FLAWS, Batch

TICK_S = 0.01
_AHEAD = 5_000
_MOST_WAITING = 20_000


class Ledger:
    """A file that survives its writer."""

    def __init__(self, path):
        self.reserved = 0
        if path.exists():
            for line in path.read_text().splitlines():
                if line.startswith("reserve "):
                    self.reserved = int(line.split()[1])
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, text):
        os.write(self._file, f"{text}\n".encode())


class CountingLink:
    """In the place of a PLC."""

    name = "plc"
    is_listener = False
    endpoint = "a counter"
    counters = MappingProxyType({})
    measures = MappingProxyType({})

    def __init__(self, groups, ledger, rate, burst):
        self.groups = groups
        self.gateway = None
        self._group = groups[0]
        self._points = len(self._group.points)
        self._ledger = ledger
        self._rate = rate
        self._burst = burst
        self._left = 0
        self._next = self._first = ledger.reserved

    def want_burst(self):
        self._left += int(self._burst.read_text()) // self._points

    @property
    def _streams(self):
        return list(self.gateway.exchange.spool.streams.values())

    async def connect(self):
        while not self._streams:
            await asyncio.sleep(0.01)

    async def run(self, emit, report):
        self._ledger.say(f"begin {self._next}")
        told_s = self._begun_s = time.monotonic()
        paced = 0
        while True:
            now_s = time.monotonic()
            due = int((now_s - self._begun_s) * self._rate / self._points)
            while paced < due:
                paced += 1
                self._give(emit)
            if self._left:
                until_s = time.monotonic() + TICK_S
                while self._left and time.monotonic() < until_s and self._has_room:
                    self._left -= 1
                    self._give(emit)
            if now_s - told_s >= 0.1:
                told_s = now_s
                self._tell()
            await asyncio.sleep(0.001 if self._left else TICK_S)

    @property
    def _has_room(self):
        return self._waiting < _MOST_WAITING or self.gateway.exchange.spool.trouble is not None

    @property
    def _waiting(self):
        return max(stream.waiting for stream in self._streams)

    def _give(self, emit):
        if self._next >= self._ledger.reserved:
            self._ledger.reserved = self._next + _AHEAD
            self._ledger.say(f"reserve {self._ledger.reserved}")
        number = self._next
        self._next += 1
        values = (number,) * self._points
        emit(
            Batch(
                self._group, SYSTEM.wall_ns(), SYSTEM.monotonic_s(), values, NO_FLAWS, self._group.everything
            )
        )

    def _tell(self):
        kept = self._next - -(-self._waiting // self._points)
        dropped = sum(stream.dropped for stream in self._streams)
        backlog = sum(stream.backlog for stream in self._streams)
        self._ledger.say(f"kept {kept} given {self._next} dropped {dropped} backlog {backlog}")

    def send(self, deliveries):
        return ()

    async def write(self, values, *, until_s=0.0):
        raise NotImplementedError

    async def close(self):
        self._tell()


async def main(config, ledger, rate):
    plant = load(Path(config))
    file = Path(ledger)
    link = CountingLink(plant.links["plc"].groups, Ledger(file), rate, file.with_name("BURST"))
    assert len(link.groups) == 1
    plant.links["plc"] = link
    link.gateway = Gateway(plant, load=lambda before: load(before.file, previous=before))
    loop.on_signal(link.gateway.stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, link.want_burst)
    await link.gateway.run()


if __name__ == "__main__":
    log.set_up("info")
    loop.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
