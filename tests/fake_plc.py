"""A PLC that knows who is connected to it, when it was asked and what was written to it."""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from contextlib import suppress

from conftest import free_port

READ_HOLDING, WRITE_COIL, WRITE_REGISTER, WRITE_REGISTERS = 3, 5, 6, 16


class FakePlc:
    """Answers reads of holding registers and writes, unit id 1, as long as it is there."""

    def __init__(self) -> None:
        self.port = free_port()
        self.registers: dict[int, int] = {}
        self.masters: list[int] = []
        """Source port of each connection that was ever made, in order."""
        self.asked_s: list[float] = []
        self.written: list[tuple[int, int]] = []
        """Address and value, in order; coils too."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connected(self) -> int:
        """How many masters are connected now."""
        return len(self._writers)

    def longest_gap_s(self, since_s: float) -> float:
        moments = [since_s, *(at_s for at_s in self.asked_s if at_s >= since_s), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.masters.append(writer.get_extra_info("peername")[1])
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(7)
                transaction, _, length, unit_id = struct.unpack(">HHHB", head)
                request = await reader.readexactly(length - 1)
                self.asked_s.append(time.monotonic())
                answer = self._answer(request)
                writer.write(struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit_id) + answer)
        self._writers.discard(writer)
        self._tasks.discard(task)
        writer.close()

    def _answer(self, request: bytes) -> bytes:
        function, address = struct.unpack_from(">BH", request)
        if function == READ_HOLDING:
            [count] = struct.unpack_from(">H", request, 3)
            values = [self.registers.get(address + index, 0) for index in range(count)]
            return struct.pack(f">BB{count}H", function, 2 * count, *values)
        if function in (WRITE_COIL, WRITE_REGISTER):
            [value] = struct.unpack_from(">H", request, 3)
            self.registers[address] = value
            self.written.append((address, value))
            return request
        if function == WRITE_REGISTERS:
            [count] = struct.unpack_from(">H", request, 3)
            for index, value in enumerate(struct.unpack_from(f">{count}H", request, 6)):
                self.registers[address + index] = value
                self.written.append((address + index, value))
            return request[:5]
        return bytes((function | 0x80, 1))
