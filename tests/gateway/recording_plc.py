"""A PLC that writes down what it is told: holding registers and coils behind Modbus TCP.

It knows nothing of fieldbus: frames are cut and built here once more.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import NamedTuple, Self


class Written(NamedTuple):
    """One register or coil that was written."""

    at_s: float
    table: str
    address: int
    value: int


class Request(NamedTuple):
    """One request that wrote something."""

    at_s: float
    table: str
    address: int
    words: tuple[int, ...]


class RecordingPlc:
    """One unit, whatever its id."""

    def __init__(self) -> None:
        self.port = 0
        self.written: list[Written] = []
        self.requests: list[Request] = []
        self.words: dict[tuple[str, int], int] = {}
        self.answers = asyncio.Event()
        """Cleared: requests are taken, and answered when it is set."""
        self.answers.set()
        self.refuses_writes = False
        self.waiting = 0
        """Requests that are taken and not answered."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def values(self, address: int, table: str = "holding") -> list[int]:
        """Return what was written to one place, in order."""
        return [item.value for item in self.written if (item.table, item.address) == (table, address)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while True:
                transaction_id, _, length, unit_id = struct.unpack(">HHHB", await reader.readexactly(7))
                pdu = await reader.readexactly(length - 1)
                answer = self._answer(pdu)
                self.waiting += 1
                await self.answers.wait()
                self.waiting -= 1
                writer.write(struct.pack(">HHHB", transaction_id, 0, len(answer) + 1, unit_id) + answer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    def _answer(self, pdu: bytes) -> bytes:
        function, address, count = struct.unpack_from(">BHH", pdu)
        if function in (1, 2):
            bits = sum(self.words.get(("coil", address + n), 0) << n for n in range(count))
            data = bits.to_bytes((count + 7) // 8, "little")
            return bytes((function, len(data))) + data
        if function in (3, 4):
            words = [self.words.get(("holding", address + n), 0) for n in range(count)]
            return struct.pack(f">BB{count}H", function, 2 * count, *words)
        if self.refuses_writes:
            return bytes((function | 0x80, 4))
        if function == 5:
            self._write("coil", address, [int(count == 0xFF00)])
        elif function == 6:
            self._write("holding", address, [count])
        elif function == 15:
            self._write("coil", address, [pdu[6 + n // 8] >> n % 8 & 1 for n in range(count)])
        elif function == 16:
            self._write("holding", address, struct.unpack_from(f">{count}H", pdu, 6))
        else:
            return bytes((function | 0x80, 1))
        return pdu[:5]

    def _write(self, table: str, first: int, values: list[int] | tuple[int, ...]) -> None:
        self.requests.append(Request(time.monotonic(), table, first, tuple(values)))
        for address, value in enumerate(values, first):
            self.words[table, address] = value
            self.written.append(Written(time.monotonic(), table, address, value))
