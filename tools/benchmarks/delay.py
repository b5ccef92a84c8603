"""How long a changed register takes to the served register and to the CAN frame.

Three parties. This process is the PLC (fieldbus' own server link, whose register it sets) and at the
same time the master, which has one request to the gateway's register on its way at every moment. The
gateway runs in a process of its own (`listener.py`) together with a listener on the `virtual` bus,
because that bus lives inside one process. The monotonic clock is the same for all.

A change is made at a random moment of the scan, so the scan alone makes a change wait between nothing
and a whole scan: half of it in the middle. That floor is the yardstick; what exceeds it is ours.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from typing import Any

from fieldbus.gateway import loop
from fieldbus.link import Delivery, Target
from fieldbus.modbus import pdu
from fieldbus.modbus.registers import Table
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.model import Quality, Sample

from .blocks import uint16_points
from .listener import CHANNEL
from .measure import Row, Series, Span, Yardstick, percentile
from .peers import Peers, free_port, write_config

SCAN_S = 0.010
_DATABASE = """VERSION ""
NS_ :
BS_:
BU_: Gateway
BO_ 512 Command: 8 Gateway
 SG_ Value : 0|16@1+ (1,0) [0|65535] "" Vector__XXX
"""


class _Master(asyncio.Protocol):
    """Reads a register without pause, and says what it read, and when."""

    def __init__(self, on_value: Callable[[int, float], None]) -> None:
        self._on_value = on_value
        self._request = pdu.frame(1, 1, pdu.read_request(Table.HOLDING, 0, 1))
        self._reader = pdu.MbapReader()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        for frame in self._reader.feed(data):
            if len(frame.pdu) == 4:  # until the gateway has a value it answers with an exception
                self._on_value(int.from_bytes(frame.pdu[2:], "big"), now_s)
            self._transport.write(self._request)


class _Experiment:
    """Changes the PLC's register again and again, each time after the last change has arrived."""

    def __init__(self, changes: int) -> None:
        (place,) = uint16_points("plc", 1)
        self._point = place.point
        self.plc = ModbusServerLink("plc", "127.0.0.1", 0, [ServedUnit("plc", 1, [place])])
        self._changes = changes
        self._next_change_s: float | None = None
        self.value = 0
        self.changed_s: dict[int, float] = {}
        self.seen_s: dict[int, float] = {}
        self.is_over = asyncio.Event()

    def put(self) -> None:
        """Give the PLC's register its present value."""
        sample = Sample(self.value, Quality.GOOD, None, time.time_ns())
        self.plc.send([Delivery(Target("", self._point), self._point, sample)])

    def on_value(self, value: int, now_s: float) -> None:
        """Take what the master has just read from the gateway; make the next change when it is time."""
        if value != self.value:
            return
        if self._next_change_s is None:
            self.seen_s[value] = now_s
            # A random moment of the scan, and time enough for the CAN frame.
            self._next_change_s = now_s + random.uniform(2, 3) * SCAN_S
        elif now_s >= self._next_change_s:
            if self.value == self._changes:
                self.is_over.set()
                return
            self._next_change_s = None
            self.value += 1
            self.changed_s[self.value] = time.monotonic()
            self.put()


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for the served register, and one for the CAN frame."""
    changes = int(span.choose(1000, 150))
    experiment, frames_s = loop.run(_run(peers, changes))
    rows = []
    for name, arrived_s in (("served register", experiment.seen_s), ("CAN frame", frames_s)):
        delays = [
            arrived_s[value] - began_s
            for value, began_s in experiment.changed_s.items()
            if value in arrived_s
        ]
        lost = changes - len(delays)
        rows.append(_row(name, delays, f", {lost} never arrived" if lost else ""))
    return rows


def _row(name: str, delays: Series, trouble: str) -> Row:
    yardsticks, shown, beyond = [], [], []
    for percent in (50, 99):
        own_s, floor_s = percentile(delays, percent), SCAN_S * percent / 100
        shown.append(f"p{percent} {own_s * 1000:.2f} ms")
        yardsticks.append(Yardstick(f"scan alone p{percent} {floor_s * 1000:.2f} ms", floor_s / own_s))
        beyond.append(f"p{percent} {(own_s - floor_s) * 1000:.2f} ms")
    note = (
        f"scan {SCAN_S * 1000:.0f} ms, {len(delays)} changes{trouble}; beyond the scan: {', '.join(beyond)}"
    )
    return Row(f"changed register to {name}", "\n".join(shown), yardsticks, note)


async def _run(peers: Peers, changes: int) -> tuple[_Experiment, dict[int, float]]:
    """Make the changes; return the experiment, and when the CAN frame with each value came."""
    experiment = _Experiment(changes)
    await experiment.plc.connect()
    experiment.put()
    served_port = free_port()
    (peers.folder / "command.dbc").write_text(_DATABASE)
    file = write_config(peers.folder, _config(experiment.plc.port, served_port))
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.listener", str(file), stdin=PIPE, stdout=PIPE
    )
    try:
        async with asyncio.timeout(30 + changes * 20 * SCAN_S):
            master = await _connect(served_port, lambda: _Master(experiment.on_value))
            await experiment.is_over.wait()
            master.close()
            told, _ = await gateway.communicate(b"")  # that ends it
    finally:
        if gateway.returncode is None:
            gateway.kill()
            await gateway.wait()
        await experiment.plc.close()
    return experiment, {int(value): seen_s for value, seen_s in json.loads(told).items()}


async def _connect(port: int, protocol: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
    while True:
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(protocol, "127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            return transport


def _config(plc_port: int, served_port: int) -> dict[str, object]:
    value = {"value": {"table": "holding", "address": 0}}
    host = "127.0.0.1"
    return {
        "links": {
            "plc_net": {"type": "modbus-tcp", "host": host, "port": plc_port},
            "hmi": {"type": "modbus-server", "host": host, "port": served_port},
            "can0": {"type": "can", "interface": "virtual", "channel": CHANNEL},
        },
        "devices": {
            "plc": {"link": "plc_net", "scan": f"{SCAN_S * 1000:.0f}ms", "points": value},
            "panel": {"link": "hmi", "points": value},
            "node": {"link": "can0", "database": "command.dbc"},
        },
        "routes": [
            {"from": "plc.value", "to": "panel.value"},
            {"from": "plc.value", "to": "node.Command.Value"},
        ],
    }
