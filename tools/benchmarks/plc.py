"""The PLC of `plc.c` in Python, for machines without a C compiler: same integers, same manners.

It has no units with floats, none that are silent, and no log. It is several times slower, which the
table then says: with it a benchmark of the poller measures both.
"""

from __future__ import annotations

import asyncio
import struct
import sys

from fieldbus.gateway import loop
from fieldbus.modbus import pdu

_WORDS = 0x10000
_REGISTERS = struct.pack(f">{2 * _WORDS}H", *[address % _WORDS for address in range(2 * _WORDS)])
"""Registers that hold their own address, twice over: shifted by n, each holds its address + n."""


class _Session(asyncio.Protocol):
    _reads = 0

    def __init__(self) -> None:
        self._reader = pdu.MbapReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        frames = self._reader.feed(data)
        self._transport.write(b"".join([self._answer(frame) for frame in frames]))
        if self._reader.fault is not None:
            self._transport.close()

    def _answer(self, frame: pdu.Frame) -> bytes:
        code = frame.pdu[0]
        if code not in (3, 4) or len(frame.pdu) != 5:
            return pdu.frame(frame.transaction_id, frame.unit_id, pdu.exception_response(code, 1))
        address, count = struct.unpack(">HH", frame.pdu[1:])
        if not 1 <= count <= 125 or address + count > _WORDS:
            return pdu.frame(frame.transaction_id, frame.unit_id, pdu.exception_response(code, 3))
        if frame.unit_id % 2 == 0:
            _Session._reads = (_Session._reads + 1) % _WORDS
            address += _Session._reads
        data = _REGISTERS[2 * address : 2 * (address + count)]
        return pdu.frame(frame.transaction_id, frame.unit_id, bytes((code, len(data))) + data)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Session, "127.0.0.1", 0, backlog=512)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    loop.run(_serve())
