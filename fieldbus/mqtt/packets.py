"""MQTT 5 control packets that a client which only publishes sends and gets, as bytes.

Layout of a packet: one byte type and flags, the length of the rest as a variable byte integer (seven
bits a byte, lowest first, the eighth bit says that more follow, at most four bytes), then the rest:
the variable header (packet identifier, reason code, properties) and the payload. Texts and binary data
are preceded by their length in two bytes; numbers are big endian.

Rules:

* `Splitter` cuts what arrives into packets, however it was cut by the network, and keeps at most one
  packet that is not complete. A packet longer than it was told to accept, or with a length of more than
  four bytes, raises before it is kept.
* A packet whose lengths do not fit each other raises `MalformedPacketError`; a property that is known
  and of no interest is skipped, one that nobody knows raises, since its length is unknown too.
* A packet that this module builds is never longer than a variable byte integer can say.

Design: only what a publisher needs, so that the way of a message is one call and one join. Names and
numbers of reason codes and properties are those of MQTT Version 5.0, as paho-mqtt has them in its tables.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

CONNECT = 0x10
CONNACK = 0x20
PUBLISH = 0x30
PUBACK = 0x40
PUBREC = 0x50
PUBREL = 0x62
"""With the flags that it must have."""
PUBCOMP = 0x70
DISCONNECT = 0xE0
AUTH = 0xF0
PINGREQ_PACKET = b"\xc0\0"
PINGRESP = 0xD0
DISCONNECT_PACKET = b"\xe0\0"

MAX_REMAINING = 268_435_455
"""What a variable byte integer can say."""
FIRST_ERROR = 0x80
"""The lowest reason code that means that it did not work."""

_REASONS = {
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x84: "the broker does not speak MQTT 5",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorised",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8E: "another client came with the same client_id; is there a second gateway of this name?",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x92: "packet identifier not found",
    0x93: "receive maximum exceeded",
    0x94: "topic alias invalid",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA0: "maximum connect time",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}

_RECEIVE_MAXIMUM = 0x21
_MAXIMUM_QOS = 0x24
_RETAIN_AVAILABLE = 0x25
_MAXIMUM_PACKET_SIZE = 0x27
_SERVER_KEEP_ALIVE = 0x13
_REASON_STRING = 0x1F
_ONE, _TWO, _FOUR, _VARIABLE, _TEXT, _PAIR = 1, 2, 4, 0, -1, -2
_FORMS = {
    0x01: _ONE, 0x02: _FOUR, 0x03: _TEXT, 0x08: _TEXT, 0x09: _TEXT, 0x0B: _VARIABLE, 0x11: _FOUR, 0x12: _TEXT,
    0x13: _TWO, 0x15: _TEXT, 0x16: _TEXT, 0x17: _ONE, 0x18: _FOUR, 0x19: _ONE, 0x1A: _TEXT, 0x1C: _TEXT,
    0x1F: _TEXT, 0x21: _TWO, 0x22: _TWO, 0x23: _TWO, 0x24: _ONE, 0x25: _ONE, 0x26: _PAIR, 0x27: _FOUR,
    0x28: _ONE, 0x29: _ONE, 0x2A: _ONE,
}  # fmt: skip
"""How long the value of each property is."""


class MalformedPacketError(ValueError):
    """What arrived is not MQTT 5."""


class Will(NamedTuple):
    """What the broker publishes when the connection is lost."""

    topic: str
    payload: bytes
    qos: int = 1
    is_retained: bool = True


class Connack(NamedTuple):
    """The broker's answer to CONNECT, and its limits."""

    reason_code: int
    reason_text: str = ""
    """The broker's own words."""
    receive_maximum: int = 65535
    """How many messages may await their acknowledgement."""
    maximum_qos: int = 2
    can_retain: bool = True
    maximum_packet_size: int = MAX_REMAINING + 5
    keepalive_s: int | None = None
    """The broker's wish, which then counts."""

    @property
    def reason(self) -> str:
        """Why we were refused, in words."""
        return reason(self.reason_code, self.reason_text)


def reason(code: int, text: str = "") -> str:
    """Return a reason code in words, and what the broker says beyond it."""
    words = _REASONS.get(code, f"reason code 0x{code:02X}")
    return f"{words}: {text}" if text else words


def connect(
    client_id: str,
    keepalive_s: int,
    *,
    username: str | None = None,
    password: str | None = None,
    will: Will | None = None,
    receive_maximum: int | None = None,
    maximum_packet_size: int | None = None,
) -> bytes:
    """Return CONNECT, for a session that begins and ends with the connection.

    Raises:
        ValueError: a text is longer than 65535 bytes.
    """
    flags = 0x02
    payload = [_text(client_id)]
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.is_retained << 5
        payload += [b"\0", _text(will.topic), _binary(will.payload)]
    if username is not None:
        flags |= 0x80
        payload.append(_text(username))
    if password is not None:
        flags |= 0x40
        payload.append(_text(password))
    properties = b""
    if receive_maximum is not None:
        properties += struct.pack(">BH", _RECEIVE_MAXIMUM, receive_maximum)
    if maximum_packet_size is not None:
        properties += struct.pack(">BI", _MAXIMUM_PACKET_SIZE, maximum_packet_size)
    head = b"\0\4MQTT" + struct.pack(">BBH", 5, flags, keepalive_s) + _variable(len(properties)) + properties
    rest = head + b"".join(payload)
    return bytes((CONNECT,)) + _variable(len(rest)) + rest


def publish_first_byte(qos: int, *, is_retained: bool) -> int:
    """Return type and flags of PUBLISH."""
    return PUBLISH | qos << 1 | is_retained


def publish(first: int, topic: bytes, payload: bytes, packet_id: int) -> bytes:
    """Return PUBLISH without properties.

    Args:
        first: what `publish_first_byte` says.
        topic: as UTF-8, at most 65535 bytes.
        packet_id: not used at QoS 0.

    Raises:
        ValueError: it would be longer than a packet can be.
    """
    if first & 6:
        head = b"%c%c%b%c%c\0" % (len(topic) >> 8, len(topic) & 255, topic, packet_id >> 8, packet_id & 255)
    else:
        head = b"%c%c%b\0" % (len(topic) >> 8, len(topic) & 255, topic)
    size = len(head) + len(payload)
    if 127 < size < 16384:  # nearly all
        return b"%c%c%c%b%b" % (first, size & 127 | 128, size >> 7, head, payload)
    return b"%c%b%b%b" % (first, _variable(size), head, payload)


def pubrel(packet_id: int) -> bytes:
    """Return PUBREL: go on with the message that PUBREC was the answer to."""
    return struct.pack(">BBH", PUBREL, 2, packet_id)


class Splitter:
    """Cuts a stream into packets."""

    def __init__(self, max_bytes: int) -> None:
        """Begin a stream.

        Args:
            max_bytes: longest packet that is accepted.
        """
        self._max_bytes = max_bytes
        self._rest = b""

    def split(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what arrived and return the packets that are complete: first byte, and all after the length.

        Raises:
            MalformedPacketError: a packet is too long, or its length is none.
        """
        if self._rest:
            data = self._rest + data
        packets: list[tuple[int, bytes]] = []
        position, end = 0, len(data)
        while end - position >= 2:
            length = data[position + 1]
            start = position + 2
            if length > 127:
                found = _read_variable(data, position + 1)
                if found is None:
                    break
                length, start = found
            if start - position + length > self._max_bytes:
                raise MalformedPacketError(f"a packet of {length} bytes")
            if start + length > end:
                break
            packets.append((data[position], data[start : start + length]))
            position = start + length
        self._rest = data[position:]
        return packets


def read_connack(rest: bytes) -> Connack:
    """Return what CONNACK says.

    Raises:
        MalformedPacketError: its lengths do not fit.
    """
    if len(rest) < 2:
        raise MalformedPacketError("CONNACK is too short")
    found = _properties(rest, 2)
    numbers = {key: value for key, value in found.items() if isinstance(value, int)}
    keepalive_s = numbers.get(_SERVER_KEEP_ALIVE)
    return Connack(
        rest[1],
        _reason_text(found),
        max(1, numbers.get(_RECEIVE_MAXIMUM, 65535)),
        numbers.get(_MAXIMUM_QOS, 2),
        numbers.get(_RETAIN_AVAILABLE, 1) != 0,
        numbers.get(_MAXIMUM_PACKET_SIZE, MAX_REMAINING + 5),
        keepalive_s,
    )


def read_ack(rest: bytes) -> tuple[int, int, str]:
    """Return packet identifier, reason code and the broker's words of PUBACK, PUBREC or PUBCOMP.

    Raises:
        MalformedPacketError: its lengths do not fit.
    """
    if len(rest) < 2:
        raise MalformedPacketError("an acknowledgement is too short")
    packet_id = rest[0] << 8 | rest[1]
    if len(rest) == 2:
        return packet_id, 0, ""
    text = _reason_text(_properties(rest, 3)) if len(rest) > 3 else ""
    return packet_id, rest[2], text


def read_disconnect(rest: bytes) -> str:
    """Return why the broker ends the connection, in words.

    Raises:
        MalformedPacketError: its lengths do not fit.
    """
    if not rest or rest[0] < FIRST_ERROR:
        return "closed by the broker"
    return reason(rest[0], _reason_text(_properties(rest, 1)) if len(rest) > 1 else "")


def _reason_text(properties: dict[int, int | str]) -> str:
    """Return the broker's words: one line, and not the longest."""
    text = "".join(
        letter if letter.isprintable() else " " for letter in str(properties.get(_REASON_STRING, ""))
    )
    return text[:200]


def _properties(data: bytes, position: int) -> dict[int, int | str]:
    """Return numbers and texts of the properties that begin at a position and end the packet."""
    found: dict[int, int | str] = {}
    size = _read_variable(data, position)
    if size is None or size[1] + size[0] != len(data):
        raise MalformedPacketError("the properties do not end with the packet")
    position = size[1]
    while position < len(data):
        key = data[position]
        position += 1
        form = _FORMS.get(key)
        if form is None:
            raise MalformedPacketError(f"property 0x{key:02X} is not known")
        if form == _VARIABLE:
            number = _read_variable(data, position)
            if number is None:
                raise MalformedPacketError("a property is cut off")
            found[key], position = number
        elif form > 0:
            found[key] = int.from_bytes(_cut(data, position, form), "big")
            position += form
        else:
            for _ in range(-form):
                size_of_text = int.from_bytes(_cut(data, position, 2), "big")
                found[key] = _cut(data, position + 2, size_of_text).decode("utf-8", "replace")
                position += 2 + size_of_text
    return found


def _cut(data: bytes, position: int, size: int) -> bytes:
    piece = data[position : position + size]
    if len(piece) != size:
        raise MalformedPacketError("a property is cut off")
    return piece


def _read_variable(data: bytes, position: int) -> tuple[int, int] | None:
    """Return a variable byte integer and where it ends; None if more bytes are needed."""
    value = 0
    for shift in range(0, 28, 7):
        if position >= len(data):
            return None
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise MalformedPacketError("a length of more than four bytes")


def _variable(value: int) -> bytes:
    if not 0 <= value <= MAX_REMAINING:
        raise ValueError(f"{value} bytes do not fit into a packet")
    found = bytearray()
    while True:
        value, digit = value >> 7, value & 127
        found.append(digit | 128 if value else digit)
        if not value:
            return bytes(found)


def _text(text: str) -> bytes:
    return _binary(text.encode())


def _binary(data: bytes) -> bytes:
    if len(data) > 65535:
        raise ValueError("longer than 65535 bytes")
    return struct.pack(">H", len(data)) + data
