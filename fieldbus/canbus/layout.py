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

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    @property
    def indicator_from(self) -> int | None:
        """Bits (unsigned) from here on are no value; None where all are."""
        known = [bits for bits in (self.error_from, self.absent_from) if bits is not None]
        return min(known, default=None)

    @property
    def declared_range(self) -> tuple[Number | None, Number | None]:
        """Lowest and highest engineering value; None where there is no such bound.

        A range of 0 to 0 is how a DBC file says that there is none, and what is not finite bounds nothing.
        """
        low, high = (
            None if isinstance(bound, float) and not math.isfinite(bound) else bound
            for bound in (self.minimum, self.maximum)
        )
        return (None, None) if low == high == 0 else (low, high)

    def shift(self, frame_length: int) -> int:
        """Return by how much the frame, read as one integer in the signal's order, is shifted right."""
        if self.is_little_endian:
            return self.start
        return frame_length * 8 - self.first_bit - self.length

    def to_raw(self, value: Value) -> int:
        """Return the bits, as an unsigned integer, that hold an engineering value, or that a label names.

        Raises:
            ConversionError: it does not fit, or the bits would say that there is no value.
        """
        try:
            bits = self._label_bits(value) if isinstance(value, str) else self._number_bits(value)
        except OverflowError as error:
            raise ConversionError(f"a number beyond 1e308 does not fit {self.name}") from error
        if self.indicator_from is not None and bits >= self.indicator_from:
            raise ConversionError(f"{value} in {self.name} would say that there is no value")
        return bits

    def _number_bits(self, value: Number) -> int:
        if self.is_float:
            return self._float_bits(self.linear.inverse_float(value))
        return self._integer_bits(self.linear.inverse_int(value), value)

    def _label_bits(self, label: str) -> int:
        for raw, name in self.labels.items():
            if name == label:
                return self._float_bits(float(raw)) if self.is_float else self._integer_bits(raw, label)
        raise ConversionError(f"{label!r} is not a number, nor a label of {self.name}")

    def _integer_bits(self, raw: int, value: Value) -> int:
        low, high = self.raw_range
        if not low <= raw <= high:
            shown = value if isinstance(value, str) else f"{value:g}"
            raise ConversionError(f"{shown} does not fit the {self.length} bits of {self.name}")
        return raw & (1 << self.length) - 1

    def nearest(self, value: Value) -> Value:
        """Return the engineering value that the bits say when they are given one, which must fit."""
        if self.is_float or isinstance(value, str):
            return value
        raw = self.to_raw(value)
        if self.is_signed and raw >> self.length - 1:
            raw -= 1 << self.length
        return self.linear.forward_int()(raw)

    def raw_of(self, bits: int) -> Number:
        """Return the raw value of bits: an integer with its sign, or a float."""
        if self.is_float:
            found: float = FLOATS[self.length].unpack(bits.to_bytes(self.length // 8, "big"))[0]
            return found
        return bits - (1 << self.length) if self.is_signed and bits >> self.length - 1 else bits

    def words(self, bits: int) -> str:
        """Return what bits mean, for people: ``2 (running)``, ``61.5 °C``, ``not available``."""
        if self.absent_from is not None and bits >= self.absent_from:
            return "not available"
        raw = self.raw_of(bits)
        try:
            value = self.linear.forward_float()(raw) if self.is_float else self.linear.forward_int()(int(raw))
        except OverflowError:
            return f"raw {raw}"
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
        label = self.labels.get(int(raw)) if not self.is_float else None
        if label is not None:
            return f"{text} ({label})"
        return f"{text} {self.unit}" if self.unit else text

    def initial_raw(self) -> int:
        """Return the bits of the start value; it is raw in the database."""
        if self.is_float:
            return self._float_bits(float(self.raw_initial))
        return int(self.raw_initial) & (1 << self.length) - 1

    def _float_bits(self, number: float) -> int:
        if not math.isfinite(number):
            raise ConversionError(f"{number} is not a value of {self.name}")
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


def selector_bits(selector: Signal, values: Iterable[int]) -> frozenset[int]:
    """Return the bits, as unsigned integers, with which a selector says one of the raw `values`.

    A negative value and that of its bits are the same to a signed selector. What it cannot say is left
    out.
    """
    if selector.is_float:
        return frozenset(bits for value in values for bits in _float_patterns(selector.length, value))
    lowest, beyond = selector.raw_range[0], 1 << selector.length
    return frozenset(value % beyond for value in values if lowest <= value < beyond)


def _float_patterns(length: int, value: int) -> Iterator[int]:
    """Yield the bits of a float that is equal to `value`, of which zero has two."""
    form = FLOATS[length]
    try:
        packed = form.pack(value)
    except (OverflowError, struct.error):
        return
    if form.unpack(packed)[0] == value:
        yield int.from_bytes(packed, "big")
        if value == 0:
            yield 1 << length - 1
