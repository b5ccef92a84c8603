r"""The parts that MQTT 5 packets are made of: lengths, texts, binary data and properties.

Layout: a length is a variable byte integer (seven bits a byte, lowest first, the eighth bit says that more
follow, at most four bytes). Texts and binary data have their length in front of them in two bytes; numbers
are big endian. Properties are their length, then one byte that names the property and its value, again and
again.

Rules:

* A length that does not fit raises `MalformedPacketError`. So does a property that nobody knows, since its
  length is unknown too, and one that stands there twice; only user properties may.
* Text from the network is never trusted: bytes that are not UTF-8 become escapes such as ``\xff``.
"""

from __future__ import annotations

import struct

MAX_REMAINING = 268_435_455
"""The highest number that a variable byte integer can hold."""

PAYLOAD_FORMAT = 0x01
MESSAGE_EXPIRY = 0x02
RESPONSE_TOPIC = 0x08
CORRELATION_DATA = 0x09
SUBSCRIPTION_IDENTIFIER = 0x0B
SERVER_KEEP_ALIVE = 0x13
REASON_STRING = 0x1F
RECEIVE_MAXIMUM = 0x21
MAXIMUM_QOS = 0x24
RETAIN_AVAILABLE = 0x25
USER_PROPERTY = 0x26
MAXIMUM_PACKET_SIZE = 0x27

_ONE, _TWO, _FOUR, _VARIABLE, _TEXT, _PAIR, _BINARY = 1, 2, 4, 0, -1, -2, -3
_FORMS = {
    0x01: _ONE, 0x02: _FOUR, 0x03: _TEXT, 0x08: _TEXT, 0x09: _BINARY, 0x0B: _VARIABLE, 0x11: _FOUR,
    0x12: _TEXT, 0x13: _TWO, 0x15: _TEXT, 0x16: _BINARY, 0x17: _ONE, 0x18: _FOUR, 0x19: _ONE, 0x1A: _TEXT,
    0x1C: _TEXT, 0x1F: _TEXT, 0x21: _TWO, 0x22: _TWO, 0x23: _TWO, 0x24: _ONE, 0x25: _ONE, 0x26: _PAIR,
    0x27: _FOUR, 0x28: _ONE, 0x29: _ONE, 0x2A: _ONE,
}  # fmt: skip
"""How long the value of each property is."""
_MAY_REPEAT = (SUBSCRIPTION_IDENTIFIER, USER_PROPERTY)
_MAX_PAIRS = 32
"""User properties of one packet that are kept; the others are skipped."""

Property = int | str | bytes | list[tuple[str, str]]


class MalformedPacketError(ValueError):
    """The broker sent something that is not MQTT 5."""


def properties_at(data: bytes, position: int) -> tuple[dict[int, Property], int]:
    """Return the properties that begin at a position, and where they end.

    Raises:
        MalformedPacketError: a length does not fit, or a property is unknown or stands there twice.
    """
    size = read_variable(data, position)
    if size is None or size[1] + size[0] > len(data):
        raise MalformedPacketError("the properties are longer than the packet")
    length, position = size
    end = position + length
    found: dict[int, Property] = {}
    while position < end:
        key = data[position]
        position += 1
        form = _FORMS.get(key)
        if form is None:
            raise MalformedPacketError(f"property 0x{key:02X} is not known")
        if key in found and key not in _MAY_REPEAT:
            raise MalformedPacketError(f"property 0x{key:02X} stands there twice")
        if form == _VARIABLE:
            number = read_variable(data, position)
            if number is None:
                raise MalformedPacketError("a property is cut off")
            found[key], position = number
        elif form > 0:
            found[key] = int.from_bytes(cut(data, position, form), "big")
            position += form
        else:
            first, position = read_binary(data, position)
            if form == _PAIR:
                second, position = read_binary(data, position)
                pairs = found.setdefault(key, [])
                if isinstance(pairs, list) and len(pairs) < _MAX_PAIRS:
                    pairs.append((safe_text(first), safe_text(second)))
            else:
                found[key] = first if form == _BINARY else safe_text(first)
    if position != end:
        raise MalformedPacketError("a property is cut off")
    return found, end


def properties_to_end(data: bytes, position: int) -> dict[int, Property]:
    """Return the properties that begin at a position and end with the packet.

    Raises:
        MalformedPacketError: they do not end there.
    """
    found, end = properties_at(data, position)
    if end != len(data):
        raise MalformedPacketError("the properties do not end with the packet")
    return found


def cut(data: bytes, position: int, size: int) -> bytes:
    """Return a piece.

    Raises:
        MalformedPacketError: the data end before it does.
    """
    piece = data[position : position + size]
    if len(piece) != size:
        raise MalformedPacketError("a property is cut off")
    return piece


def read_binary(data: bytes, position: int) -> tuple[bytes, int]:
    """Return bytes with their length in front of them, and where they end."""
    size = int.from_bytes(cut(data, position, 2), "big")
    return cut(data, position + 2, size), position + 2 + size


def safe_text(data: bytes) -> str:
    """Return text from the network; what is not UTF-8 becomes an escape."""
    return data.decode("utf-8", "backslashreplace")


def read_variable(data: bytes | bytearray, position: int) -> tuple[int, int] | None:
    """Return a variable byte integer and where it ends; None if more bytes are needed.

    Raises:
        MalformedPacketError: it has more than four bytes.
    """
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


def variable(value: int) -> bytes:
    """Return a number as a variable byte integer.

    Raises:
        ValueError: it is too large for one.
    """
    if not 0 <= value <= MAX_REMAINING:
        raise ValueError(f"{value} bytes do not fit into a packet")
    found = bytearray()
    while True:
        value, digit = value >> 7, value & 127
        found.append(digit | 128 if value else digit)
        if not value:
            return bytes(found)


def text(value: str) -> bytes:
    """Return a text with its length in front of it."""
    return binary(value.encode())


def binary(data: bytes) -> bytes:
    """Return bytes with their length in front of them.

    Raises:
        ValueError: there are more than 65535.
    """
    if len(data) > 65535:
        raise ValueError("longer than 65535 bytes")
    return struct.pack(">H", len(data)) + data
