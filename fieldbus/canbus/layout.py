"""What a bus database describes, as plain data: messages and the signals in them.

Layout: a little-endian (Intel) signal begins at its least significant bit, counted from bit 0 of byte
0 upwards. A big-endian (Motorola) signal begins at its most significant bit; bits are numbered inside
each byte from the least significant, and the signal runs towards bit 0 of its byte and on into the
most significant bit of the next byte.

Rules:

* A signal knows its bits and its scaling, nothing of where it is used.
* A selector (multiplexer) is compared by its raw value, however it is scaled.
* What cannot be expressed in its bits is refused, never wrapped or clamped.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fieldbus.errors import ConversionError
from fieldbus.model import Value
from fieldbus.scaling import Linear, Number

MAX_MESSAGE_BYTES = 1785
"""What a transport protocol of J1939 carries; a frame has at most 8, with CAN FD 64."""

Condition = tuple[tuple[str, frozenset[int]], ...]
"""Selectors, outermost first, each with the raw values for which a branch is present."""

FLOATS = {16: struct.Struct(">e"), 32: struct.Struct(">f"), 64: struct.Struct(">d")}


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """One signal of a message."""

    name: str
    start: int
    """As in a DBC file: least significant bit (Intel), most significant bit (Motorola)."""
    length: int
    """In bits, 1..64."""
    is_little_endian: bool = True
    is_signed: bool = False
    is_float: bool = False
    linear: Linear = field(default_factory=Linear)
    minimum: Number | None = None
    maximum: Number | None = None
    unit: str | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    """Raw value to name."""
    condition: Condition = ()
    """When it is in the frame; empty for always."""
    raw_initial: Number = 0
    comment: str = ""
    timeout_s: float | None = None
    """From the database: without a frame for so long it is stale."""
    error_from: int | None = None
    """Raw values (unsigned) from here on say that the sender knows of an error …"""
    absent_from: int | None = None
    """… and from here on that it has no value; both None where every raw value is one."""

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 64 or self.start < 0:
            raise ValueError(f"signal {self.name}: {self.length} bits from bit {self.start}")
        if self.is_float and self.length not in FLOATS:
            raise ValueError(f"signal {self.name}: a float of {self.length} bits")

    @property
    def first_bit(self) -> int:
        """Of a big-endian signal: its most significant bit, counted from the top of byte 0."""
        return self.start // 8 * 8 + 7 - self.start % 8

    @property
    def bytes_needed(self) -> int:
        """How long a frame must be to hold the signal."""
        last = self.start if self.is_little_endian else self.first_bit
        return (last + self.length - 1) // 8 + 1

    @property
    def raw_range(self) -> tuple[int, int]:
        """Lowest and highest raw integer."""
        if self.is_signed:
            return -(1 << self.length - 1), (1 << self.length - 1) - 1
        return 0, (1 << self.length) - 1

    def shift(self, frame_length: int) -> int:
        """Return by how much the frame, read as one integer in the signal's order, is shifted right."""
        if self.is_little_endian:
            return self.start
        return frame_length * 8 - self.first_bit - self.length

    def to_raw(self, value: Value) -> int:
        """Return the bits, as an unsigned integer, that hold an engineering value.

        Raises:
            ConversionError: it does not fit.
        """
        if isinstance(value, str):
            raise ConversionError(f"{value!r} is not a number")
        if self.is_float:
            return self._float_bits(self.linear.inverse_float(value))
        raw = self.linear.inverse_int(value)
        low, high = self.raw_range
        if not low <= raw <= high:
            raise ConversionError(f"{value:g} does not fit the {self.length} bits of {self.name}")
        return raw & (1 << self.length) - 1

    def initial_raw(self) -> int:
        """Return the bits of the start value; it is raw in the database."""
        if self.is_float:
            return self._float_bits(float(self.raw_initial))
        return int(self.raw_initial) & (1 << self.length) - 1

    def _float_bits(self, number: float) -> int:
        try:
            return int.from_bytes(FLOATS[self.length].pack(number), "big")
        except (OverflowError, struct.error) as error:
            raise ConversionError(f"{number:g} does not fit {self.name}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message of a database."""

    name: str
    frame_id: int
    is_extended: bool
    length: int
    """In bytes."""
    signals: Sequence[Signal]
    is_fd: bool = False
    cycle_s: float | None = None
    senders: Sequence[str] = ()
    comment: str = ""
    timeout_s: float | None = None
    """From the database: without a frame for so long it is stale."""
    is_j1939: bool = False
    """Whether the database says that the identifier is a PGN with priority and addresses."""
    fill: int = 0
    """What the bits that belong to no signal are sent as: the byte 0x00 or, by J1939, 0xFF."""
    line: int = 0
    """Where it stands in its file; 0 where that is not known."""

    def branches(self) -> dict[Condition, list[Signal]]:
        """Return the signals by the condition under which they are in a frame."""
        found: dict[Condition, list[Signal]] = {}
        for signal in self.signals:
            found.setdefault(signal.condition, []).append(signal)
        return found
