"""Devices on a stream, with habits: each is drawn from a seed, lives in virtual time and knows what it can be read.

Rules:

* Registers hold a number made of their address, and bits the parity of it: a value out of place is wrong.
* What a device does about a request depends on the request and on the time alone, so that what can be read
  of it is known beforehand (`can_read`).
* Whatever goes wrong with a request, the device goes on with the next one.
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass, field
from typing import Any

from fieldbus.modbus.checksum import crc16
from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.model import Kind, Point, Value

MANNERS = (
    "exception 02", "exception 03", "exception 04", "exception 00", "exception 06", "exception 0B",
    "silent", "short", "long", "long exception", "false length", "other function",
)  # fmt: skip
"""How a device can treat a request for an address that it has not got."""
LIMIT_MANNERS = ("exception 02", "exception 03", "silent", "short")
TRANSIENTS = ("exception 06", "exception 05", "silent", "short", "false transaction", "late")


def word(address: int) -> int:
    """Return what a register holds."""
    return address * 7919 % 0x10000


def value_of(point: RegisterPoint) -> Value:
    """Return the right value of a point."""
    if point.table.is_bits:
        return bool(word(point.address) & 1)
    value = 0
    for address in range(point.address, point.end):
        value = value << 16 | word(address)
    return value


@dataclass
class Personality:
    """What a device has, and how it treats what it has not."""

    points: list[RegisterPoint]
    missing: dict[tuple[int, int], str]
    """Function code and address to manner."""
    most: dict[int, int]
    """Function code to how many registers or bits a request may ask for."""
    most_manner: str
    delay_s: float
    spells: list[tuple[float, float]]
    """From when to when it is busy with something else."""
    spell_manner: str
    transients: float
    """The share of requests that go wrong once."""
    transients_end_s: float
    is_only_for_one: bool
    """Whether it serves one connection at a time, and closes others."""
    rng: random.Random
    requests: list[tuple[float, int, int, int, str]] = field(default_factory=list)
    """Time, function code, address, count, and what was done."""
    clients: int = 0
    closes_after_s: float | None = None
    """After so long without a request it closes the connection."""
    is_rtu: bool = False
    """Whether its frames are those of a serial line, without transaction ids."""
    whole_units: frozenset[int] = frozenset()
    """Unit ids behind the same connection that have everything and make no mistakes."""

    def can_read(self, function: int, address: int, count: int) -> bool:
        """Return whether a read is answered, apart from what goes wrong for a while."""
        return count <= self.most[function] and not any(
            (function, place) in self.missing for place in range(address, address + count)
        )

    def has(self, point: RegisterPoint) -> bool:
        """Return whether a point can be read alone."""
        return self.can_read(point.table.read_function, point.address, point.count)

    def manner(self, function: int, address: int, count: int, now_s: float) -> str:
        """Return what is done about a request: ``good``, or what goes wrong."""
        if any(begin <= now_s < end for begin, end in self.spells):
            return self.spell_manner
        if now_s < self.transients_end_s and self.rng.random() < self.transients:
            return self.rng.choice(TRANSIENTS)
        if count > self.most[function]:
            return self.most_manner
        found = (self.missing.get((function, place)) for place in range(address, address + count))
        return next((manner for manner in found if manner is not None), "good")


def draw(seed: int) -> Personality:
    """Return the personality of a seed."""
    rng = random.Random(seed)
    points: list[RegisterPoint] = []
    missing: dict[tuple[int, int], str] = {}
    own = rng.sample(MANNERS, rng.choice((1, 1, 2, 3)))
    for table in rng.sample((Table.HOLDING, Table.INPUT, Table.COIL), rng.choice((1, 1, 2, 3))):
        stretch = _stretches(rng, table)
        points += stretch
        for _ in range(rng.choice((0, 1, 1, 2, 4, 8))):
            at = rng.randrange(stretch[0].address, stretch[-1].end)
            for address in range(at, at + rng.choice((1, 1, 1, 2, 10))):
                missing[table.read_function, address] = rng.choice(own)
    registers = rng.choice((125, 125, 125, 100, 64, 32, 16))
    bits = rng.choice((2000, 2000, 256, 64))
    begin_s = rng.uniform(0, 8)
    return Personality(
        points=points,
        missing=missing,
        most={1: bits, 2: bits, 3: registers, 4: registers},
        most_manner=rng.choice(LIMIT_MANNERS),
        delay_s=rng.choice((0.0, 0.002, 0.01, 0.03)),
        spells=[(begin_s, begin_s + rng.uniform(0.1, 3.0))] if rng.random() < 0.4 else [],
        spell_manner=rng.choice(("exception 06", "exception 05", "silent", "exception 04")),
        transients=rng.choice((0.0, 0.0, 0.02, 0.1)),
        transients_end_s=12.0,
        is_only_for_one=rng.random() < 0.3,
        rng=rng,
        closes_after_s=rng.choice((None, None, None, 0.7, 5.0)),
    )


def _stretches(rng: random.Random, table: Table) -> list[RegisterPoint]:
    """Return points in stretches with gaps between them."""
    found: list[RegisterPoint] = []
    address = rng.randrange(200)
    count = rng.choice((3, 10, 40, 120, 250))
    while len(found) < count:
        type_ = RegisterType.UINT32 if rng.random() < 0.3 else RegisterType.UINT16
        if table.is_bits:
            type_ = RegisterType.BOOL
        kind = Kind.BOOL if table.is_bits else Kind.INT
        point = RegisterPoint(Point("plc", f"{table}{address}", kind), table, address, type_)
        found.append(point)
        address = point.end
        if rng.random() < 0.15:
            address += rng.choice((1, 2, 5, 20, 70, 400))
    return found


class DeviceConnection(asyncio.Protocol):
    """One connection to a device."""

    def __init__(self, device: Personality) -> None:
        self._device = device
        self._buffer = b""
        self._transport: Any = None
        self._is_served = False
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it, unless the device serves another one already."""
        self._transport = transport
        self._wait()
        self._is_served = not (self._device.is_only_for_one and self._device.clients)
        if self._is_served:
            self._device.clients += 1
        else:
            self._transport.close()

    def _wait(self) -> None:
        """Close the connection some time after the last request."""
        if self._closing is not None:
            self._closing.cancel()
        if self._device.closes_after_s is not None:
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(self._device.closes_after_s, self._transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Be free for another one."""
        if self._closing is not None:
            self._closing.cancel()
        if self._is_served:
            self._device.clients -= 1
            self._is_served = False

    def data_received(self, data: bytes) -> None:
        """Take requests."""
        self._wait()
        self._buffer += data
        size = 8 if self._device.is_rtu else 12
        while len(self._buffer) >= size:
            request, self._buffer = self._buffer[:size], self._buffer[size:]
            if self._device.is_rtu:  # as if it had a header
                request = bytes(6) + request[:6]
            asyncio.get_running_loop().call_later(self._device.delay_s, self._answer, request)

    def _answer(self, request: bytes) -> None:
        device = self._device
        transaction, _, _, unit, function, address, count = struct.unpack(">HHHBBHH", request)
        loop = asyncio.get_running_loop()
        manner = "good"
        if unit not in device.whole_units:
            manner = device.manner(function, address, count, loop.time())
            device.requests.append((loop.time(), function, address, count, manner))
        if manner == "silent":
            return
        if manner == "hang up":
            self._transport.abort()
            return
        length = 0
        payload = bytes((function,)) + _data(function, address, count)
        if manner.startswith("exception"):
            payload = bytes((function | 0x80, int(manner[-2:], 16)))
        elif manner == "long exception":
            payload = bytes((function | 0x80, 2, 0))
        elif manner == "false length":
            payload, length = bytes((function | 0x80, 2)), 4
        elif manner == "other function":
            payload = bytes((function ^ 7,)) + payload[1:]
        elif manner in ("short", "long"):
            data = payload[2:-2] if manner == "short" else payload[2:] + b"\x12\x34"
            payload = bytes((function, len(data) & 0xFF)) + data
        elif manner == "false transaction":
            transaction = (transaction + 7000) & 0xFFFF
        frame = struct.pack(">HHHB", transaction, 0, length or len(payload) + 1, unit) + payload
        if device.is_rtu:
            frame = bytes((unit,)) + payload
            frame += crc16(frame).to_bytes(2, "little")
        loop.call_later(0.8 if manner == "late" else 0.0, self._send, frame)

    def _send(self, frame: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame)


def _data(function: int, address: int, count: int) -> bytes:
    """Return byte count and data of a good answer."""
    if function <= 2:
        bits = sum((word(address + index) & 1) << index for index in range(count))
        data = bits.to_bytes((count + 7) // 8, "little")
    else:
        data = b"".join(word(address + index).to_bytes(2, "big") for index in range(count))
    return bytes((len(data) & 0xFF,)) + data
