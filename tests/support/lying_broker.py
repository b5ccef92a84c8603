"""A broker that lies: what `MemoryBroker` sends is changed by dice on its way to the client.

Rules: seeded; while `lies` is 0 it is an honest broker. With `keeps_values` no lie changes a message or
swallows it, so that a test can tell what a value must be.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from support.memory_broker import Client, MemoryBroker, packet, text, varint


@dataclass
class LyingBroker(MemoryBroker):
    """One broker."""

    dice: random.Random = field(default_factory=lambda: random.Random(1))
    lies: float = 0.0
    """How likely each packet is a lie."""
    keeps_values: bool = True
    told: list[str] = field(default_factory=list)
    """The names of the lies."""

    async def listen(self, port: int, host: str = "127.0.0.1") -> int:
        """Listen, and return the port."""
        self.server = await asyncio.get_running_loop().create_server(lambda: _Liar(self), host, port)
        return int(self.server.sockets[0].getsockname()[1])


class _Liar(Client):
    broker: LyingBroker

    def connection_made(self, transport: Any) -> None:
        self.transport = _Tongue(transport, self.broker)


class _Tongue:
    """A transport that does not always write what it is given."""

    def __init__(self, transport: Any, broker: LyingBroker) -> None:
        self._transport = transport
        self._broker = broker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        broker, dice = self._broker, self._broker.dice
        if dice.random() >= broker.lies:
            self._transport.write(data)
            return
        lie = dice.choice([name for name in dir(self) if name.startswith("lie_")])
        if data[0] & 0xF0 == 0x30 and broker.keeps_values and lie in ("lie_flip", "lie_cut", "lie_swallow"):
            lie = "lie_twice"
        broker.told.append(lie)
        getattr(self, lie)(data)

    def lie_flip(self, data: bytes) -> None:
        """Change some bits."""
        changed = bytearray(data)
        for _ in range(self._broker.dice.randint(1, 3)):
            changed[self._broker.dice.randrange(len(changed))] ^= 1 << self._broker.dice.randrange(8)
        self._transport.write(bytes(changed))

    def lie_cut(self, data: bytes) -> None:
        """Leave the end out."""
        self._transport.write(data[: self._broker.dice.randrange(len(data))])

    def lie_twice(self, data: bytes) -> None:
        """Send it twice."""
        self._transport.write(data + data)

    def lie_swallow(self, data: bytes) -> None:
        """Send nothing."""

    def lie_hang_up(self, data: bytes) -> None:
        """End the connection in the middle."""
        self._transport.write(data[: len(data) // 2])
        self._transport.close()

    def lie_rubbish(self, data: bytes) -> None:
        """Send what is no packet."""
        self._transport.write(data + self._broker.dice.randbytes(self._broker.dice.randint(1, 40)))

    def lie_huge(self, data: bytes) -> None:
        """Begin a packet of a quarter of a gigabyte."""
        self._transport.write(data + b"\x30\xff\xff\xff\x7f" + bytes(1000))

    def lie_zero_limit(self, data: bytes) -> None:
        """Say that no packet is short enough."""
        self._transport.write(packet(0x20, b"\0\0\x05\x27\0\0\0\0"))

    def lie_unasked(self, data: bytes) -> None:
        """Send a message that nobody subscribed to, on a topic that is no text."""
        self._transport.write(data + packet(0x30, b"\0\4a/\xff\x1b\0\0value"))

    def lie_many_properties(self, data: bytes) -> None:
        """Send a message with more properties than anybody reads."""
        properties = (b"\x26" + text("k") + text("v")) * 5000
        self._transport.write(data + packet(0x30, text("x") + varint(len(properties)) + properties))

    def lie_wrong_answer(self, data: bytes) -> None:
        """Acknowledge what was never sent."""
        self._transport.write(data + packet(0x40, b"\xff\xfe") + packet(0x90, b"\xff\xfe\0\1"))
