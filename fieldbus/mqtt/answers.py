"""MQTT 5 control packets that a broker sends, as values.

Rules:

* Everything that a broker sends is checked whole before any of it is used. What is not MQTT 5, and what
  the standard calls a protocol error (a limit of 0, a QoS that does not exist), raises
  `MalformedPacketError`, and nothing else is ever raised.
* The broker's own words are one line without control characters, at most 200 characters.
* The properties of a message are read only where they are short: a message whose properties take more than
  16 KiB is handed on without them.
"""

from __future__ import annotations

from typing import NamedTuple

from fieldbus.mqtt.packets import FIRST_ERROR, reason
from fieldbus.mqtt.properties import (
    CORRELATION_DATA,
    MAX_REMAINING,
    MAXIMUM_PACKET_SIZE,
    MAXIMUM_QOS,
    REASON_STRING,
    RECEIVE_MAXIMUM,
    RESPONSE_TOPIC,
    RETAIN_AVAILABLE,
    SERVER_KEEP_ALIVE,
    USER_PROPERTY,
    MalformedPacketError,
    Property,
    cut,
    properties_at,
    properties_to_end,
    read_variable,
    safe_text,
)
from fieldbus.text import printable

_MAX_PROPERTIES = 16 * 1024
_LONGEST_WORDS = 200


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
    """The keep-alive time that the broker wants instead of ours."""

    @property
    def reason(self) -> str:
        """Why we were refused, in words."""
        return reason(self.reason_code, self.reason_text)


class Publish(NamedTuple):
    """A message."""

    topic: str
    payload: bytes
    packet_id: int = 0
    """0 if it is not acknowledged (QoS 0)."""
    is_retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    signature: str | None = None


def read_connack(rest: bytes) -> Connack:
    """Return the content of CONNACK.

    Raises:
        MalformedPacketError: it is not MQTT 5, or names a limit that cannot be one.
    """
    if len(rest) < 2:
        raise MalformedPacketError("CONNACK is too short")
    if rest[0]:
        # Each of our sessions begins anew, so the broker cannot have one.
        raise MalformedPacketError("CONNACK speaks of a session that was never kept")
    found = properties_to_end(rest, 2)
    if 0 < rest[1] < FIRST_ERROR:
        raise MalformedPacketError(f"CONNACK with reason code 0x{rest[1]:02X}")
    for key, name, values in (
        (RECEIVE_MAXIMUM, "Receive Maximum", range(1, 1 << 16)),
        (MAXIMUM_QOS, "Maximum QoS", range(2)),
        (RETAIN_AVAILABLE, "Retain Available", range(2)),
        (MAXIMUM_PACKET_SIZE, "Maximum Packet Size", range(1, 1 << 32)),
    ):
        if key in found and found[key] not in values:
            raise MalformedPacketError(f"CONNACK with {name} {found[key]!r}")
    numbers = {key: value for key, value in found.items() if isinstance(value, int)}
    return Connack(
        rest[1],
        _reason_text(found),
        numbers.get(RECEIVE_MAXIMUM, 65535),
        numbers.get(MAXIMUM_QOS, 2),
        numbers.get(RETAIN_AVAILABLE, 1) != 0,
        numbers.get(MAXIMUM_PACKET_SIZE, MAX_REMAINING + 5),
        numbers.get(SERVER_KEEP_ALIVE),
    )


def read_publish(first: int, rest: bytes) -> Publish:
    """Return the message of a PUBLISH.

    Args:
        first: the packet's first byte.
        rest: the packet after its length.

    Raises:
        MalformedPacketError: it is not MQTT 5, or has a QoS that we did not subscribe with.
    """
    qos = first >> 1 & 3
    if qos > 1:
        raise MalformedPacketError(f"a message with QoS {qos}")
    size = int.from_bytes(cut(rest, 0, 2), "big")
    topic = safe_text(cut(rest, 2, size))
    position = 2 + size
    if not topic:
        raise MalformedPacketError("a message without topic")
    packet_id = 0
    if qos:
        packet_id = int.from_bytes(cut(rest, position, 2), "big")
        position += 2
        if not packet_id:
            raise MalformedPacketError("a message with packet identifier 0")
    is_retained = bool(first & 1)
    if rest[position : position + 1] == b"\0":  # nearly all
        return Publish(topic, rest[position + 1 :], packet_id, is_retained)
    found: dict[int, Property] = {}
    length = read_variable(rest, position)
    if length is None or length[0] + length[1] > len(rest):
        raise MalformedPacketError("the properties are longer than the packet")
    if length[0] <= _MAX_PROPERTIES:
        found, end = properties_at(rest, position)
    else:
        end = length[0] + length[1]
    response_topic, correlation = found.get(RESPONSE_TOPIC), found.get(CORRELATION_DATA)
    pairs = found.get(USER_PROPERTY)
    signatures = [value for key, value in pairs if key == "signature"] if isinstance(pairs, list) else []
    return Publish(
        topic,
        rest[end:],
        packet_id,
        is_retained,
        response_topic if isinstance(response_topic, str) else None,
        correlation if isinstance(correlation, bytes) else None,
        signatures[-1] if signatures else None,
    )


def read_suback(rest: bytes) -> tuple[int, bytes, str]:
    """Return packet identifier, one reason code a topic filter, and the broker's words.

    Raises:
        MalformedPacketError: it is not MQTT 5.
    """
    if len(rest) < 3:
        raise MalformedPacketError("SUBACK is too short")
    found, end = properties_at(rest, 2)
    return rest[0] << 8 | rest[1], rest[end:], _reason_text(found)


def read_ack(rest: bytes) -> tuple[int, int, str]:
    """Return packet identifier, reason code and the broker's words of PUBACK, PUBREC or PUBCOMP.

    Raises:
        MalformedPacketError: it is not MQTT 5.
    """
    if len(rest) < 2:
        raise MalformedPacketError("an acknowledgement is too short")
    packet_id = rest[0] << 8 | rest[1]
    if len(rest) == 2:
        return packet_id, 0, ""
    words = _reason_text(properties_to_end(rest, 3)) if len(rest) > 3 else ""
    return packet_id, rest[2], words


def read_disconnect(rest: bytes) -> str:
    """Return why the broker ends the connection, in words.

    Raises:
        MalformedPacketError: it is not MQTT 5.
    """
    if not rest or rest[0] < FIRST_ERROR:
        return "closed by the broker"
    return reason(rest[0], _reason_text(properties_to_end(rest, 1)) if len(rest) > 1 else "")


def _reason_text(properties: dict[int, Property]) -> str:
    return printable(" ".join(str(properties.get(REASON_STRING, "")).split()))[:_LONGEST_WORDS]
