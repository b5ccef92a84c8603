"""MQTT 5 control packets that a client sends, as bytes, and the stream of packets that it gets.

Layout of a packet: one byte type and flags, the length of the rest as a variable byte integer, then the rest:
the variable header (packet identifier, reason code, properties) and the payload. See `properties` for their
parts and `answers` for the packets that a broker sends.

Rules:

* `Splitter` cuts the stream that arrives into packets, however the network cut it, and keeps at most one
  packet that is not complete. A packet longer than it was told to accept, or with a length of more than
  four bytes, raises before it is kept. Its work is in proportion to the bytes that arrive, however few
  arrive at once.
* A packet that this module builds is never longer than a variable byte integer can hold.

Design: publishing is one call and one join a message. Names and numbers of reason codes and properties are
those of MQTT Version 5.0, as paho-mqtt has them in its tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from fieldbus.mqtt.properties import (
    CORRELATION_DATA,
    MAXIMUM_PACKET_SIZE,
    MESSAGE_EXPIRY,
    RECEIVE_MAXIMUM,
    RESPONSE_TOPIC,
    USER_PROPERTY,
    MalformedPacketError,
    binary,
    read_variable,
    text,
    variable,
)

CONNECT = 0x10
CONNACK = 0x20
PUBLISH = 0x30
PUBACK = 0x40
PUBREC = 0x50
PUBREL = 0x62
"""With the flags that it must have."""
PUBCOMP = 0x70
SUBSCRIBE = 0x82
"""With the flags that it must have."""
SUBACK = 0x90
DISCONNECT = 0xE0
AUTH = 0xF0
PINGREQ_PACKET = b"\xc0\0"
PINGRESP = 0xD0
DISCONNECT_PACKET = b"\xe0\0"

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
    0x87: "not authorized",
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


class Will(NamedTuple):
    """What the broker publishes when the connection is lost."""

    topic: str
    payload: bytes
    qos: int = 1
    is_retained: bool = True


def reason(code: int, told: str = "") -> str:
    """Return a reason code in words, with the broker's own words behind it."""
    words = _REASONS.get(code, f"reason code 0x{code:02X}")
    return f"{words}: {told}" if told else words


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
    payload = [text(client_id)]
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.is_retained << 5
        payload += [b"\0", text(will.topic), binary(will.payload)]
    if username is not None:
        flags |= 0x80
        payload.append(text(username))
    if password is not None:
        flags |= 0x40
        payload.append(text(password))
    properties = b""
    if receive_maximum is not None:
        properties += struct.pack(">BH", RECEIVE_MAXIMUM, receive_maximum)
    if maximum_packet_size is not None:
        properties += struct.pack(">BI", MAXIMUM_PACKET_SIZE, maximum_packet_size)
    head = b"\0\4MQTT" + struct.pack(">BBH", 5, flags, keepalive_s) + variable(len(properties)) + properties
    rest = head + b"".join(payload)
    return bytes((CONNECT,)) + variable(len(rest)) + rest


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
    return b"%c%b%b%b" % (first, variable(size), head, payload)


def publish_properties(
    *,
    expiry_s: int | None = None,
    response_topic: str | None = None,
    correlation: bytes | None = None,
    signature: str | None = None,
) -> bytes:
    """Return the properties of a PUBLISH, without their length."""
    found = b""
    if expiry_s is not None:
        found += struct.pack(">BI", MESSAGE_EXPIRY, expiry_s)
    if response_topic is not None:
        found += bytes((RESPONSE_TOPIC,)) + text(response_topic)
    if correlation is not None:
        found += bytes((CORRELATION_DATA,)) + binary(correlation)
    if signature is not None:
        found += bytes((USER_PROPERTY,)) + text("signature") + text(signature)
    return found


def publish_with(first: int, topic: bytes, payload: bytes, packet_id: int, properties: bytes) -> bytes:
    """Return PUBLISH with properties; otherwise as `publish`."""
    head = binary(topic)
    if first & 6:
        head += struct.pack(">H", packet_id)
    rest = head + variable(len(properties)) + properties + payload
    return bytes((first,)) + variable(len(rest)) + rest


class Subscription(NamedTuple):
    """One topic filter to subscribe to."""

    topic: str
    keeps_retain_flag: bool = False
    """Whether the broker passes the retain flag on as the publisher set it (Retain As Published). Otherwise
    only stored messages have it."""


def subscribe(packet_id: int, subscriptions: Iterable[Subscription]) -> bytes:
    """Return SUBSCRIBE, with QoS 1 for each topic filter.

    Raises:
        ValueError: a topic filter is longer than 65535 bytes.
    """
    filters = b"".join(
        text(item.topic) + bytes((0x01 | (0x08 if item.keeps_retain_flag else 0),)) for item in subscriptions
    )
    rest = struct.pack(">HB", packet_id, 0) + filters
    return bytes((SUBSCRIBE,)) + variable(len(rest)) + rest


def puback(packet_id: int) -> bytes:
    """Return PUBACK: the message was taken."""
    return b"\x40\2%c%c" % (packet_id >> 8, packet_id & 255)


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
        self._rest = bytearray()
        self._needed = 2
        """The bytes that `_rest` must have before it is worth a look."""
        self.packets = 0
        """How many were complete."""

    @property
    def missing(self) -> int:
        """How many bytes the packet that has begun lacks, as far as that is known; 0 between two packets."""
        return self._needed - len(self._rest) if self._rest else 0

    def split(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take bytes that arrived and return the complete packets: first byte, and the rest after the length.

        Raises:
            MalformedPacketError: a packet is too long, or its length has more than four bytes.
        """
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._needed:
                return []
            data = bytes(rest)
            rest.clear()
        packets: list[tuple[int, bytes]] = []
        position, end = 0, len(data)
        self._needed = 2
        while end - position >= 2:
            length = data[position + 1]
            start = position + 2
            if length > 127:
                found = read_variable(data, position + 1)
                if found is None:
                    self._needed = end - position + 1
                    break
                length, start = found
            if start - position + length > self._max_bytes:
                raise MalformedPacketError(f"a packet of {length} bytes")
            if start + length > end:
                self._needed = start - position + length
                break
            packets.append((data[position], data[start : start + length]))
            position = start + length
        if position < end:
            rest += data[position:]
        self.packets += len(packets)
        return packets
