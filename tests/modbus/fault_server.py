"""A Modbus server that is right until a test tells it how to be wrong.

It knows nothing of fieldbus: frames are cut and built here once more, so that an error in the code
under test cannot hide behind the same error in its peer. Registers hold their own address, and odd
coils are on, until somebody writes them: whoever is off by one reads a wrong value.

A fault is a function of the connection and of the frame that a good server would send. Faults wait
in `FaultServer.faults`, one for each request that comes; while none waits, answers are good.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

POISON = b"\xde\xad"
"""A register that no good server has."""


class Asked(NamedTuple):
    """A request as it came."""

    at_s: float
    connection: int
    transaction_id: int
    unit_id: int
    pdu: bytes


class Good(NamedTuple):
    """The answer that a good server would give."""

    transaction_id: int
    unit_id: int
    pdu: bytes

    @property
    def frame(self) -> bytes:
        return frame(self.transaction_id, self.unit_id, self.pdu)


Fault = Callable[["Connection", Good], None]


def frame(
    transaction_id: int, unit_id: int, pdu: bytes, *, protocol_id: int = 0, length: int | None = None
) -> bytes:
    """Return a frame, whose header may lie."""
    length = len(pdu) + 1 if length is None else length
    return struct.pack(">HHHB", transaction_id, protocol_id, length, unit_id) + pdu


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: FaultServer) -> None:
        self._server = server
        self._buffer = b""
        self.transport: asyncio.Transport | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.is_open = True
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = len(self._server.connections)
        self._server.connections.append(self)
        self._server.greet(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 8:
            transaction_id, _, length, unit_id = struct.unpack_from(">HHHB", self._buffer)
            if len(self._buffer) < 6 + length:
                return
            pdu, self._buffer = self._buffer[7 : 6 + length], self._buffer[6 + length :]
            self._server.take(self, transaction_id, unit_id, pdu)

    def send(self, data: bytes) -> None:
        if self.is_open:
            self.transport.write(data)

    def send_slowly(self, data: bytes, pause_s: float = 0.001) -> None:
        """Send one byte at a time, each in a segment of its own."""
        self.send(data[:1])
        if len(data) > 1 and self.is_open:
            asyncio.get_running_loop().call_later(pause_s, self.send_slowly, data[1:], pause_s)

    def send_later(self, data: bytes, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.send, data)

    def finish(self) -> None:
        """Hang up politely (FIN)."""
        self.transport.close()

    def reset(self) -> None:
        """Hang up as a crash does (RST)."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class FaultServer:
    """Some units behind one port."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: list[Connection] = []
        self.asked: list[Asked] = []
        self.faults: deque[Fault] = deque()
        self.rules: dict[tuple[int, int], Fault] = {}
        """Faults that stay, by unit id and function code."""
        self.silent: set[int] = set()
        """Unit ids that do not answer."""
        self.words: dict[tuple[int, str, int], int] = {}
        self.illegal: set[tuple[int, str, int]] = set()
        """Addresses that no request may touch (exception 02): unit id, table, address."""
        self.greet: Callable[[Connection], None] = lambda _: None
        """What is done with each new connection."""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Vanish as a PLC does whose power is cut: nobody listens, connections are reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self.connections:
            if connection.is_open:
                connection.reset()
        await asyncio.sleep(0.01)

    def take(self, connection: Connection, transaction_id: int, unit_id: int, pdu: bytes) -> None:
        """Answer a request, well or badly."""
        now_s = asyncio.get_running_loop().time()
        self.asked.append(Asked(now_s, connection.number, transaction_id, unit_id, pdu))
        if unit_id in self.silent:
            return
        good = Good(transaction_id, unit_id, self.answer(unit_id, pdu))
        rule = self.rules.get((unit_id, pdu[0]))
        if rule is not None:
            rule(connection, good)
        elif self.faults:
            self.faults.popleft()(connection, good)
        else:
            connection.send(good.frame)

    def word(self, unit_id: int, table: str, address: int) -> int:
        """Return what a register or bit holds."""
        default = address & 1 if table in ("coil", "discrete") else address
        return self.words.get((unit_id, table, address), default)

    def writes(self, unit_id: int | None = None) -> list[str]:
        """Return the write requests that came, in hex, in order."""
        return [
            asked.pdu.hex()
            for asked in self.asked
            if asked.pdu[0] > 4 and (unit_id is None or asked.unit_id == unit_id)
        ]

    def count(self, unit_id: int, since_s: float = 0.0) -> int:
        """Return how many requests came for a unit."""
        return sum(asked.unit_id == unit_id and asked.at_s >= since_s for asked in self.asked)

    def answer(self, unit_id: int, pdu: bytes) -> bytes:
        """Do what a request says and return what a good server answers."""
        function, address, count = struct.unpack_from(">BHH", pdu)
        if self.illegal:
            table = {1: "coil", 2: "discrete", 4: "input", 5: "coil", 15: "coil"}.get(function, "holding")
            touched = range(address, address + (1 if function in (5, 6, 22) else count))
            if any((unit_id, table, place) in self.illegal for place in touched):
                return bytes((function | 0x80, 2))
        if function in (1, 2):
            table = ("coil", "discrete")[function - 1]
            bits = sum(self.word(unit_id, table, address + n) << n for n in range(count))
            data = bits.to_bytes((count + 7) // 8, "little")
            return bytes((function, len(data))) + data
        if function in (3, 4):
            table = ("holding", "input")[function - 3]
            words = [self.word(unit_id, table, address + n) for n in range(count)]
            return struct.pack(f">BB{count}H", function, 2 * count, *words)
        if function == 5:
            self.words[unit_id, "coil", address] = int(count == 0xFF00)
        elif function == 6:
            self.words[unit_id, "holding", address] = count
        elif function == 15:
            for n in range(count):
                self.words[unit_id, "coil", address + n] = pdu[6 + n // 8] >> n % 8 & 1
        elif function == 16:
            for n, word in enumerate(struct.unpack_from(f">{count}H", pdu, 6)):
                self.words[unit_id, "holding", address + n] = word
        elif function == 22:
            and_mask, or_mask = struct.unpack_from(">HH", pdu, 3)
            old = self.word(unit_id, "holding", address)
            self.words[unit_id, "holding", address] = old & and_mask | or_mask & ~and_mask
            return pdu
        else:
            return bytes((function | 0x80, 1))
        return pdu[:5]


@asynccontextmanager
async def fault_server() -> AsyncIterator[FaultServer]:
    """Run a server for as long as the block lasts."""
    server = FaultServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
