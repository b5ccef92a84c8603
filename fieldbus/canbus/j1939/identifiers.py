"""J1939 identifiers, requests, acknowledgements, and the raw values that mean "none".

Layout of the 29-bit identifier, most significant bit first::

    priority (3), extended data page (1), data page (1), PDU format (8), PDU specific (8), source address (8)

    PDU1 (format < 240): PDU specific is the destination address; the PGN ends in 00
    PDU2 (format >= 240): PDU specific belongs to the PGN; everybody is meant
    PGN: extended data page, data page, PDU format, PDU specific or 00: 18 bits

Layout of a request: the wanted PGN in three bytes, low byte first. Of an acknowledgement: control byte,
group function, two bytes FF, the address that is answered, the PGN in three bytes.

Rules:

* The functions on plain integers look at bits 0..28 only: the flags of an identifier word (`bus`) may be
  set or not. What is returned to be sent or filtered has `EXTENDED` set.
* PGNs are compared without a destination. A PDU1 PGN whose low byte is not 00 is refused where we build
  and cut off where we read.

Sources: the Linux kernel's Documentation/networking/j1939.rst and net/can/j1939 for identifiers and PGNs;
for the acknowledgement, device manuals that print its layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fieldbus.canbus.bus import EXTENDED, EXTENDED_MASK, REMOTE

REQUEST = 0xEA00
ACKNOWLEDGEMENT = 0xE800
ADDRESS_CLAIMED = 0xEE00
TRANSPORT_DATA = 0xEB00
"""TP.DT: numbered packets of seven bytes."""
TRANSPORT_MANAGEMENT = 0xEC00
"""TP.CM: announces, permits, acknowledges and aborts them."""
ACTIVE_FAULTS = 0xFECA
"""DM1."""
PREVIOUS_FAULTS = 0xFECB
"""DM2."""

GLOBAL = 255
"""Destination: everybody."""
NULL_ADDRESS = 254
"""Source of a node that has no address."""
LAST_ADDRESS = 253
LAST_PGN = 0x3FFFF
FIRST_PDU2 = 240
"""The lowest PDU format without a destination."""
DEFAULT_PRIORITY = 6


@dataclass(frozen=True, slots=True)
class Identifier:
    """The parts of a 29-bit identifier."""

    priority: int
    """0 (wins) to 7."""
    pgn: int
    source_address: int
    """0..253, 254 of a node without an address."""
    destination_address: int | None = None
    """PDU1: 0..253, or 255 for everybody; None with PDU2."""

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= 7:
            raise ValueError(f"priority {self.priority}")
        if not 0 <= self.pgn <= LAST_PGN:
            raise ValueError(f"PGN {self.pgn}")
        if not 0 <= self.source_address <= GLOBAL:
            raise ValueError(f"source address {self.source_address}")
        if has_destination(self.pgn):
            if self.pgn & 0xFF:
                raise ValueError(f"PGN {self.pgn}: its low byte is where the destination address stands")
            if self.destination_address is None or not 0 <= self.destination_address <= GLOBAL:
                raise ValueError(f"PGN {self.pgn}: destination address {self.destination_address}")
        elif self.destination_address is not None:
            raise ValueError(f"PGN {self.pgn} has no destination address")

    @classmethod
    def parse(cls, can_id: int) -> Identifier:
        """Take an identifier apart; every 29-bit number is one."""
        pgn = pgn_of(can_id)
        destination = can_id >> 8 & 0xFF if has_destination(pgn) else None
        return cls(can_id >> 26 & 7, pgn, can_id & 0xFF, destination)

    @property
    def can_id(self) -> int:
        """The identifier word, with `EXTENDED`."""
        return identifier(self.pgn, self.source_address, self.destination_address or 0, self.priority)


def has_destination(pgn: int) -> bool:
    """Tell whether frames with this PGN carry a destination address (PDU1)."""
    return pgn & 0xFF00 < FIRST_PDU2 << 8


def identifier(pgn: int, source: int, destination: int = GLOBAL, priority: int = DEFAULT_PRIORITY) -> int:
    """Return the identifier word; the destination counts with PDU1 only. Nothing is checked here."""
    can_id = EXTENDED | priority << 26 | pgn << 8 | source
    return can_id | destination << 8 if has_destination(pgn) else can_id


def pgn_of(can_id: int) -> int:
    """Return the PGN, without a destination address."""
    pgn = can_id >> 8 & LAST_PGN
    return pgn & 0x3FF00 if pgn & 0xFF00 < 0xF000 else pgn


def source_of(can_id: int) -> int:
    """Return the source address."""
    return can_id & 0xFF


def destination_of(can_id: int) -> int:
    """Return the destination address; 255, everybody, with PDU2."""
    return can_id >> 8 & 0xFF if can_id & 0xFF_0000 < 0xF0_0000 else GLOBAL


def filter_for(pgn: int, source_address: int | None = None) -> tuple[int, int]:
    """Return the filter (id, mask) that lets the frames of a PGN through, whatever their priority.

    Args:
        pgn: with PDU1, frames to every destination pass.
        source_address: None for all.

    Frames with 11 bits and remote frames do not pass. `ERROR` stays out of the mask: there SocketCAN reads
    it as a wish for error frames and for nothing else; without it none pass, for they are never extended.
    """
    mask = EXTENDED | REMOTE | (0x3FF_0000 if has_destination(pgn) else 0x3FF_FF00)
    wanted = EXTENDED | pgn << 8
    if source_address is not None:
        mask |= 0xFF
        wanted |= source_address
    return wanted & mask, mask


def indicators(length: int) -> tuple[int, int] | None:
    """Return from which raw value on a parameter of so many bits is in error, and from which not available.

    ::

        2 bits               2            3
        4 bits               0xE          0xF
        8 bits               0xFE         0xFF
        12, 16, 20, 24, ...  top byte 0xFE, top byte 0xFF, whatever follows
        1 bit                none: both values are values
        other lengths        only all ones: not available; no value for an error

    Returns:
        (error_from, absent_from) for the bits as an unsigned number; the two are equal where there is no
        error value; None where every value is one.

    Source: open implementations that follow J1939-71, and where they differ, the most careful reading. For
    12, 20 and 28 bits two of them (one the validation tool of a manufacturers' institute) take the top byte
    as for 16. For 10 bits they differ and for 3, 5, 6 and 7 many parameters use the value below all ones as
    a state, so there only all ones count. Not for text, not for bit masks, and not where a database gives
    the value a name of its own: the caller knows that.
    """
    if length <= 1:
        return None
    ones = (1 << length) - 1
    if length in (2, 4):
        return ones - 1, ones
    if length == 8 or (length > 8 and length % 4 == 0):
        return 0xFE << length - 8, 0xFF << length - 8
    return ones, ones


def request(pgn: int, destination: int = GLOBAL, source: int = NULL_ADDRESS) -> tuple[int, bytes]:
    """Return the frame that asks for a PGN.

    Args:
        pgn: what is wanted.
        destination: of whom; 255 of everybody who has it.
        source: who asks; 254 is allowed only to ask for addresses.

    Raises:
        ValueError: no such PGN or address.
    """
    if not 0 <= pgn <= LAST_PGN or (has_destination(pgn) and pgn & 0xFF):
        raise ValueError(f"PGN {pgn}")
    if source == NULL_ADDRESS and pgn != ADDRESS_CLAIMED:
        raise ValueError(f"a node without an address asks for addresses only, not for PGN {pgn}")
    return Identifier(DEFAULT_PRIORITY, REQUEST, source, destination).can_id, pgn.to_bytes(3, "little")


def requested(can_id: int, data: bytes) -> int | None:
    """Return the PGN that a frame asks for; None if it is no request."""
    if pgn_of(can_id) != REQUEST or len(data) < 3:
        return None
    return read_pgn(data)


def is_request(can_id: int, data: bytes, pgn: int, own_address: int) -> bool:
    """Tell whether a frame asks for a PGN, of us or of everybody."""
    return requested(can_id, data) == pgn and destination_of(can_id) in (own_address, GLOBAL)


def read_pgn(field: bytes) -> int:
    """Return the PGN in the first three bytes, low byte first, without a destination address.

    It may be more than `LAST_PGN`: a sender can put anything there.
    """
    pgn = field[0] | field[1] << 8 | field[2] << 16
    return pgn & 0xFFFF00 if has_destination(pgn) else pgn


class Control(IntEnum):
    """What an acknowledgement says."""

    ACKNOWLEDGED = 0
    REFUSED = 1
    """NACK: does not know the PGN, or does not do it."""
    ACCESS_DENIED = 2
    """Knows it and may not."""
    CANNOT_RESPOND = 3
    """Knows it and is busy: ask again later."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """An answer to a request or a command that has no other answer."""

    control: Control
    pgn: int
    """What it is about."""
    source_address: int
    """Who answers."""
    addressee: int | None
    """Whom it answers; None of a sender that leaves the field out, as early ones do."""
    group_function: int | None
    """For PGNs that have several functions; None for those that have not."""

    @classmethod
    def parse(cls, can_id: int, data: bytes) -> Acknowledgement | None:
        """Read a frame; None if it is none, is too short or has an unknown control byte."""
        if pgn_of(can_id) != ACKNOWLEDGEMENT or len(data) < 8 or data[0] > Control.CANNOT_RESPOND:
            return None
        # The answer is broadcast in newer devices and addressed in older ones, which fill byte 4 with FF.
        addressee: int | None = data[4]
        if addressee == GLOBAL:
            destination = destination_of(can_id)
            addressee = None if destination == GLOBAL else destination
        function = None if data[1] == 0xFF else data[1]
        return cls(Control(data[0]), read_pgn(data[5:8]), source_of(can_id), addressee, function)


def text(can_id: int) -> str:
    """Return an identifier as people read it: ``PGN 61444 from 0``, ``PGN 59904 from 249 to 0``."""
    parts = Identifier.parse(can_id & EXTENDED_MASK)
    to = "" if parts.destination_address is None else f" to {parts.destination_address}"
    return f"PGN {parts.pgn} from {parts.source_address}{to}"
