"""J1939 messages of more than 8 bytes: what their frames look like, and how packets make a message.

Layout of TP.CM, 8 bytes, PGN of the message in bytes 5..7 (low byte first)::

    RTS    10  size (2, low byte first), packets, packets per CTS (FF: any number), PGN
    CTS    11  packets allowed now (0: hold), number of the first, FF FF, PGN
    EndOfMsgACK  13  size (2), packets, FF, PGN
    BAM    20  size (2), packets, FF, PGN
    Abort  FF  reason, FF FF FF, PGN

TP.DT: sequence number (1 to 255), seven bytes of the message; the last packet is filled with FF.

Rules:

* A message has 9..1785 bytes and exactly as many packets as it needs.
* A packet is taken only where it continues the sequence. One that is heard again must be the same, byte
  by byte: two messages are never mixed.
* Reserved bytes are not looked at.

Source: the Linux kernel's net/can/j1939/transport.c; from there too the times, which it shares with
AgIsoStack++ (T1 750 ms, T2 and T3 1250 ms, T4 1050 ms).
"""

from __future__ import annotations

from typing import NamedTuple

from fieldbus.canbus.bus import ERROR, EXTENDED, REMOTE
from fieldbus.canbus.j1939.identifiers import (
    GLOBAL,
    LAST_ADDRESS,
    LAST_PGN,
    TRANSPORT_DATA,
    TRANSPORT_MANAGEMENT,
    identifier,
    pgn_of,
    read_pgn,
)

RTS = 0x10
CTS = 0x11
END_OF_MESSAGE = 0x13
BAM = 0x20
ABORT = 0xFF

MIN_BYTES = 9
MAX_BYTES = 1785
PACKET_BYTES = 7

T1_S = 0.75
"""Receiver: from one packet to the next."""
T2_S = 1.25
"""Receiver: from its CTS to the first packet."""
T3_S = 1.25
"""Sender: from its RTS or its last packet to the CTS or the EndOfMsgACK."""
T4_S = 1.05
"""Sender: from a CTS that holds it to the next CTS."""
BROADCAST_SPACING_S = 0.05
"""Sender: between the frames of a broadcast."""
PRIORITY = 7

BUSY = 1
NO_RESOURCES = 2
TIMED_OUT = 3
TOO_MANY_RETRANSMISSIONS = 5
BAD_SEQUENCE = 7
DIFFERENT_REPETITION = 8
TOO_LONG = 9
OTHER = 250
ABORT_REASONS = {
    BUSY: "already has a connection",
    NO_RESOURCES: "has no resources for it",
    TIMED_OUT: "timeout",
    4: "CTS during a transfer",
    TOO_MANY_RETRANSMISSIONS: "too many retransmissions",
    6: "unexpected packet",
    BAD_SEQUENCE: "wrong sequence number",
    DIFFERENT_REPETITION: "repeated sequence number",
    TOO_LONG: "more than 1785 bytes",
    OTHER: "other reason",
}

Outgoing = tuple[int, bytes]
"""A frame to send: identifier word and data."""


class Message(NamedTuple):
    """A whole message."""

    pgn: int
    source_address: int
    destination_address: int
    """255 of a broadcast."""
    payload: bytes
    first_s: float
    """When its announcement came, on the caller's clock …"""
    last_s: float
    """… and when it was whole."""


class Announcement(NamedTuple):
    """What an RTS or a BAM says."""

    pgn: int
    size: int
    packets: int
    per_cts: int
    """How many packets the sender sends for one CTS, at most."""

    @classmethod
    def parse(cls, data: bytes) -> Announcement:
        """Read 8 bytes of TP.CM."""
        # Packets per CTS are reserved in a BAM and in early RTS; 0 would forbid every packet.
        return cls(read_pgn(data[5:8]), data[1] | data[2] << 8, data[3], data[4] or 0xFF)

    @property
    def is_sound(self) -> bool:
        """Whether there can be such a message."""
        return (
            MIN_BYTES <= self.size <= MAX_BYTES
            and self.packets == packets_for(self.size)
            and self.pgn <= LAST_PGN
        )


def packets_for(size: int) -> int:
    """Return how many packets a message of so many bytes has."""
    return -(-size // PACKET_BYTES)


def is_transport(can_id: int) -> bool:
    """Tell whether a frame is TP.CM or TP.DT from a node that has an address."""
    return (
        can_id & (EXTENDED | REMOTE | ERROR) == EXTENDED
        and can_id >> 8 & 0x3FF00 in (TRANSPORT_MANAGEMENT, TRANSPORT_DATA)
        and can_id & 0xFF <= LAST_ADDRESS
    )


def is_data(can_id: int) -> bool:
    """Tell TP.DT from TP.CM."""
    return pgn_of(can_id) == TRANSPORT_DATA


def packet(source: int, destination: int, number: int, payload: bytes, priority: int = PRIORITY) -> Outgoing:
    """Return the frame of a message's packet `number`, counted from 1."""
    part = payload[(number - 1) * PACKET_BYTES : number * PACKET_BYTES]
    data = bytes((number,)) + part + b"\xff" * (PACKET_BYTES - len(part))
    return identifier(TRANSPORT_DATA, source, destination, priority), data


def _management(source: int, destination: int, head: bytes, pgn: int, priority: int = PRIORITY) -> Outgoing:
    can_id = identifier(TRANSPORT_MANAGEMENT, source, destination, priority)
    return can_id, head + b"\xff" * (5 - len(head)) + pgn.to_bytes(3, "little")


def announce(source: int, destination: int, pgn: int, size: int, per_cts: int, priority: int) -> Outgoing:
    """Return a BAM for everybody, an RTS for one."""
    is_broadcast = destination == GLOBAL
    head = bytes((BAM if is_broadcast else RTS, size & 0xFF, size >> 8, packets_for(size)))
    return _management(source, destination, head if is_broadcast else head + bytes((per_cts,)), pgn, priority)


def clear_to_send(source: int, destination: int, count: int, first: int, pgn: int) -> Outgoing:
    """Return a CTS of a receiver `source`."""
    return _management(source, destination, bytes((CTS, count, first)), pgn)


def end_of_message(source: int, destination: int, size: int, pgn: int) -> Outgoing:
    """Return the EndOfMsgACK of a receiver `source`."""
    head = bytes((END_OF_MESSAGE, size & 0xFF, size >> 8, packets_for(size)))
    return _management(source, destination, head, pgn)


def abort(source: int, destination: int, reason: int, pgn: int) -> Outgoing:
    """Return an Abort of either side."""
    return _management(source, destination, bytes((ABORT, reason)), pgn)


class Packets:
    """The packets of one message, as far as they came."""

    __slots__ = ("_parts", "_size", "end", "expected", "is_altered", "missing")

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[bytes | None] = [None] * packets_for(size)
        self.missing = len(self._parts)
        """How many are not there yet."""
        self.expected = 1
        """The number that comes next …"""
        self.end = 1
        """… and the one from which on none is allowed now."""
        self.is_altered = False
        """Whether one came again with other contents: nothing that is here can be believed."""

    def allow(self, first: int, count: int) -> bool:
        """Expect `count` packets from number `first` on; False if there is no such packet."""
        if not 1 <= first <= len(self._parts):
            return False
        self.expected, self.end = first, min(first + count, len(self._parts) + 1)
        return True

    def take(self, data: bytes) -> bool:
        """Take the data of a TP.DT; False if it is out of sequence, not allowed now or too short.

        A gap is left open: what is skipped has to be allowed again.
        """
        number = data[0] if data else 0
        if not 1 <= number <= len(self._parts):
            return False
        start = (number - 1) * PACKET_BYTES
        needed = min(PACKET_BYTES, self._size - start)
        if len(data) <= needed:
            return False
        part, held = bytes(data[1 : 1 + needed]), self._parts[number - 1]
        if held is not None and held != part:
            self.is_altered = True
            return False
        if not self.expected <= number < self.end:
            return False
        if held is None:
            self._parts[number - 1] = part
            self.missing -= 1
        self.expected = number + 1
        return True

    def gap(self) -> tuple[int, int]:
        """Return the first run of packets that are not there: its number and its length."""
        parts = self._parts
        first = next((index for index, part in enumerate(parts) if part is None), len(parts))
        length = 0
        while first + length < len(parts) and parts[first + length] is None:
            length += 1
        return first + 1, length

    def payload(self) -> bytes:
        """Return the message; only when none is missing."""
        return b"".join(part for part in self._parts if part is not None)
