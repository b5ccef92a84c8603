"""A Modbus TCP device in this process: registers by unit and table, and one function for all other requests."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from typing import Self

from conftest import free_port

Answer = Callable[[int, bytes], bytes | None]
"""Takes unit id and PDU; None where the registers answer."""


class TableDevice:
    """Answers FC 3, 4, 6 and 16 from `registers` (the same for both tables); addresses that it lacks are 02."""

    def __init__(self, registers: Mapping[int, int] | None = None, answer: Answer | None = None) -> None:
        self.port = free_port()
        self.registers: dict[int, dict[int, int]] = {1: dict(registers or {})}
        """By unit id."""
        self.requests: list[bytes] = []
        """The PDU of each request, in order."""
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def writes(self) -> list[bytes]:
        """The requests that change something."""
        return [pdu for pdu in self.requests if pdu[0] in (5, 6, 15, 16, 21, 22)]

    def put(self, address: int, data: bytes, unit_id: int = 1) -> None:
        """Put bytes, as on the wire, into the registers from an address on."""
        for index, register in enumerate(struct.unpack(f">{len(data) // 2}H", data)):
            self.registers.setdefault(unit_id, {})[address + index] = register

    def get(self, addresses: Iterable[int], unit_id: int = 1) -> bytes:
        """Return registers as on the wire."""
        return b"".join(self.registers[unit_id][address].to_bytes(2, "big") for address in addresses)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            while True:
                transaction, _, length, unit_id = struct.unpack(">HHHB", await reader.readexactly(7))
                request = await reader.readexactly(length - 1)
                self.requests.append(request)
                response = (self._answer and self._answer(unit_id, request)) or self._own(unit_id, request)
                writer.write(struct.pack(">HHHB", transaction, 0, len(response) + 1, unit_id) + response)

    def _own(self, unit_id: int, pdu: bytes) -> bytes:
        registers = self.registers.get(unit_id, {})
        if pdu[0] in (3, 4):
            address, count = struct.unpack(">HH", pdu[1:])
            if any(place not in registers for place in range(address, address + count)):
                return bytes((pdu[0] | 0x80, 2))
            data = self.get(range(address, address + count), unit_id)
            return bytes((pdu[0], len(data))) + data
        if pdu[0] == 6:
            self.put(int.from_bytes(pdu[1:3], "big"), pdu[3:5], unit_id)
            return pdu
        if pdu[0] == 16:
            self.put(int.from_bytes(pdu[1:3], "big"), pdu[6:], unit_id)
            return pdu[:5]
        return bytes((pdu[0] | 0x80, 1))
