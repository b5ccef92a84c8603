"""An MQTT 5 broker for tests, which runs in the test's own event loop: in virtual time, or on a real socket.

Rules:

* What MQTT 5.0 asks of a broker and fieldbus uses: QoS 0 and 1, retained messages, last will, keep-alive,
  Receive Maximum and Maximum Packet Size of the client, no-local, Retain As Published. Sessions end with their
  connection.
* Its methods are what a test may turn: `on_publish` sees each PUBLISH and may swallow it, `acknowledges` and
  `subscription_code` decide what is answered, `maximum` and `connack_properties` what is said of itself.

Design: written from the OASIS standard (MQTT 5.0, chapters 2 to 4), with no code of `fieldbus.mqtt` in it, so
that a mistake there is not made here too.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_FIXED = {0x01: 1, 0x02: 4, 0x11: 4, 0x13: 2, 0x17: 1, 0x18: 4, 0x19: 1, 0x21: 2, 0x22: 2, 0x23: 2,
          0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}  # fmt: skip
"""Property to the length of its value; all others but 0x0B have one or two texts."""


def varint(number: int) -> bytes:
    """Return a variable byte integer (1.5.5)."""
    found = bytearray()
    while True:
        number, low = divmod(number, 128)
        found.append(low | (0x80 if number else 0))
        if not number:
            return bytes(found)


def packet(first: int, body: bytes) -> bytes:
    """Return a whole packet."""
    return bytes((first,)) + varint(len(body)) + body


def text(value: str) -> bytes:
    """Return a UTF-8 encoded string (1.5.4)."""
    data = value.encode()
    return struct.pack(">H", len(data)) + data


class Reader:
    """Takes a packet's body apart."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        assert len(found) == count, "packet too short"
        self.at += count
        return found

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self.number(1)
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7

    def binary(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        return self.binary().decode()

    def properties(self) -> tuple[bytes, dict[int, Any]]:
        """Return properties as they stand and by number; the last of each counts."""
        data = self.take(self.varint())
        inner, found = Reader(data), dict[int, Any]()
        while inner.at < len(data):
            number = inner.varint()
            if number == 0x0B:
                found[number] = inner.varint()
            elif number in _FIXED:
                found[number] = inner.number(_FIXED[number])
            elif number == 0x26:
                found[number] = (inner.text(), inner.text())
            else:
                found[number] = inner.binary()
        return data, found

    def rest(self) -> bytes:
        return self.data[self.at :]


@dataclass
class Published:
    """A message as the broker has it."""

    topic: str
    payload: bytes
    qos: int = 0
    is_retained: bool = False
    properties: bytes = b""
    client_id: str = ""
    since_s: float = 0.0
    expiry_s: float | None = None


@dataclass
class _Subscription:
    filter: str
    qos: int
    no_local: bool
    keeps_retain: bool

    def matches(self, topic: str) -> bool:
        wanted, given = self.filter.split("/"), topic.split("/")
        for index, part in enumerate(wanted):
            if part == "#":
                return True
            if index >= len(given) or (part not in ("+", given[index])):
                return False
        return len(wanted) == len(given)


@dataclass
class MemoryBroker:
    """One broker."""

    retained: dict[str, Published] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)
    seen: list[Published] = field(default_factory=list)
    """Every message that was published, if `keeps` is set."""
    keeps: bool = False
    maximum: int | None = None
    """Maximum Packet Size that it announces."""
    connack_properties: bytes = b""
    connack_code: int = 0
    on_publish: Callable[[Published], bool] = lambda _message: True
    """Returns whether a message is passed on."""
    acknowledges: Callable[[Published], int | None] = lambda _message: 0
    """Returns the reason code of a PUBACK; None for no answer."""
    subscription_code: Callable[[str], int] = lambda _filter: 1
    server: Any = None
    named: int = 0
    """How many clients were given an identifier."""

    async def listen(self, port: int, host: str = "127.0.0.1") -> int:
        """Listen, and return the port."""
        self.server = await asyncio.get_running_loop().create_server(lambda: Client(self), host, port)
        return int(self.server.sockets[0].getsockname()[1])

    async def end(self) -> None:
        """Stop, and end all connections."""
        self.server.close()
        for client in list(self.clients.values()):
            client.transport.abort()
        for _ in range(3):
            await asyncio.sleep(0.001)

    def forget(self) -> None:
        """Lose what is retained, as a broker without a disk does."""
        self.retained.clear()

    def publish(self, message: Published) -> None:
        """Pass a message on."""
        now_s = asyncio.get_running_loop().time()
        message.since_s = now_s
        if self.keeps:
            self.seen.append(message)
        if not self.on_publish(message):
            return
        if message.is_retained:
            if message.payload:
                self.retained[message.topic] = message
            else:
                self.retained.pop(message.topic, None)
        for client in list(self.clients.values()):
            client.offer(message)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.transport: Any = None
        self.client_id = ""
        self._buffer = b""
        self._subscriptions: dict[str, _Subscription] = {}
        self._will: Published | None = None
        self._window = 65535
        self._maximum: int | None = None
        self._under_way: set[int] = set()
        self._queue: deque[tuple[Published, int, bool]] = deque()
        self._next_id = 0
        self._keepalive_s = 0.0
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._silence is not None:
            self._silence.cancel()
        if self.broker.clients.get(self.client_id) is self:
            del self.broker.clients[self.client_id]
        if self._will is not None:
            will, self._will = self._will, None
            self.broker.publish(will)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            length, shift, at = 0, 0, 1
            while at < len(self._buffer):
                byte = self._buffer[at]
                length |= (byte & 127) << shift
                shift, at = shift + 7, at + 1
                if byte < 128:
                    break
            else:
                return
            if len(self._buffer) < at + length:
                return
            first, body = self._buffer[0], self._buffer[at : at + length]
            self._buffer = self._buffer[at + length :]
            self._heard()
            self._take(first, Reader(body))

    def _heard(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        if self._keepalive_s:
            loop = asyncio.get_running_loop()
            self._silence = loop.call_later(1.5 * self._keepalive_s, self.transport.abort)

    def _take(self, first: int, body: Reader) -> None:
        kind = first >> 4
        if kind == 1:
            self._connect(body)
        elif kind == 3:
            self._publish(first, body)
        elif kind == 4:
            self._under_way.discard(body.number(2))
            self._send_more()
        elif kind == 8:
            self._subscribe(body)
        elif kind == 10:
            packet_id = body.take(2)
            body.properties()
            gone = []
            while body.rest():
                gone.append(body.text())
            codes = bytes(0 if self._subscriptions.pop(item, None) else 0x11 for item in gone)
            self.transport.write(packet(0xB0, packet_id + b"\0" + codes))
        elif kind == 12:
            self.transport.write(packet(0xD0, b""))
        elif kind == 14:
            code = body.number(1) if body.rest() else 0
            if code != 4:  # disconnect with will message
                self._will = None
            self.transport.close()

    def _connect(self, body: Reader) -> None:
        assert body.text() == "MQTT"
        assert body.number(1) == 5
        flags, self._keepalive_s = body.number(1), float(body.number(2))
        _, properties = body.properties()
        self._window = properties.get(0x21, 65535)
        self._maximum = properties.get(0x27)
        self.client_id = body.text()
        if flags & 4:
            given, _ = body.properties()
            topic, payload = body.text(), body.binary()
            self._will = Published(topic, payload, flags >> 3 & 3, bool(flags & 0x20), given, self.client_id)
        own = self.broker.connack_properties
        if not self.client_id:
            self.broker.named += 1
            self.client_id = f"auto-{self.broker.named}"
            own += b"\x12" + text(self.client_id)
        if self.broker.maximum is not None:
            own += b"\x27" + struct.pack(">I", self.broker.maximum)
        self.transport.write(packet(0x20, bytes((0, self.broker.connack_code)) + varint(len(own)) + own))
        if self.broker.connack_code:
            self._will = None
            self.transport.close()
            return
        before = self.broker.clients.get(self.client_id)
        self.broker.clients[self.client_id] = self
        if before is not None:
            before.transport.write(packet(0xE0, b"\x8e\0"))
            before.transport.close()

    def _publish(self, first: int, body: Reader) -> None:
        topic = body.text()
        qos = first >> 1 & 3
        packet_id = body.take(2) if qos else b""
        properties, known = body.properties()
        message = Published(
            topic, body.rest(), qos, bool(first & 1), properties, self.client_id, expiry_s=known.get(2)
        )
        code = self.broker.acknowledges(message)
        if qos and code is not None:
            self.transport.write(packet(0x40, packet_id + (bytes((code, 0)) if code else b"")))
        if code is not None and code < 0x80:
            self.broker.publish(message)

    def _subscribe(self, body: Reader) -> None:
        packet_id = body.take(2)
        body.properties()
        codes, fresh = [], []
        while body.rest():
            wanted, options = body.text(), body.number(1)
            code = self.broker.subscription_code(wanted)
            codes.append(code)
            if code < 0x80:
                item = _Subscription(wanted, options & 3, bool(options & 4), bool(options & 8))
                is_known = wanted in self._subscriptions
                self._subscriptions[wanted] = item
                handling = options >> 4 & 3
                if handling == 0 or (handling == 1 and not is_known):
                    fresh.append(item)
        self.transport.write(packet(0x90, packet_id + b"\0" + bytes(codes)))
        now_s = asyncio.get_running_loop().time()
        for item in fresh:
            for message in list(self.broker.retained.values()):
                is_over = message.expiry_s is not None and now_s - message.since_s > message.expiry_s
                if item.matches(message.topic) and not is_over:
                    self._queue.append((message, min(message.qos, item.qos), True))
        self._send_more()

    def offer(self, message: Published) -> None:
        """Send a message if a subscription wants it."""
        found = [item for item in self._subscriptions.values() if item.matches(message.topic)]
        found = [item for item in found if not (item.no_local and message.client_id == self.client_id)]
        if found:
            is_retained = message.is_retained and any(item.keeps_retain for item in found)
            self._queue.append((message, min(message.qos, max(item.qos for item in found)), is_retained))
            self._send_more()

    def _send_more(self) -> None:
        while self._queue and len(self._under_way) < self._window:
            message, qos, is_retained = self._queue.popleft()
            self._send(message, qos, is_retained=is_retained)

    def _send(self, message: Published, qos: int, *, is_retained: bool) -> None:
        head = text(message.topic)
        if qos:
            self._next_id = self._next_id % 65535 + 1
            while self._next_id in self._under_way:
                self._next_id = self._next_id % 65535 + 1
            head += struct.pack(">H", self._next_id)
        body = head + varint(len(message.properties)) + message.properties + message.payload
        whole = packet(0x30 | qos << 1 | is_retained, body)
        if self._maximum is not None and len(whole) > self._maximum:
            return  # 3.1.2.11.4: the server discards it
        if qos:
            self._under_way.add(self._next_id)
        self.transport.write(whole)
