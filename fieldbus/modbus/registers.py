"""Points with their places in a register map, and their codecs, chosen at load (`point_codec.py`).

The power of ten of a value may stand in a register of its own (`factor`, SunSpec's scale factors). Such
a value is decoded with the factor out of the same payload; where the factor is no value or no exponent
from -10 to 10, there is no value.

Rules:

* Encoding a bit or a range of bits gives registers in which only those bits are set (`bit_mask`): who
  writes them merges them with the others.
"""

from __future__ import annotations

import datetime
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fieldbus.errors import ConversionError
from fieldbus.modbus import point_codec
from fieldbus.modbus.converters import (
    NOT_A_NUMBER,
    NOT_AVAILABLE,
    Convert,
    Decoded,
    Epoch,
    power_of_ten,
)
from fieldbus.modbus.formats.composite import Part, joined_decoder
from fieldbus.modbus.formats.numbers import raw_range
from fieldbus.modbus.formats.text import Chars, Pad
from fieldbus.modbus.register_types import Format, Order, RegisterType, Table, wire_arrangement
from fieldbus.modbus.write_rules import PLAIN, WriteRules
from fieldbus.model import Point, Value
from fieldbus.scaling import Linear

__all__ = ["OnBad", "Order", "RegisterPoint", "RegisterType", "Table"]


@dataclass(frozen=True, slots=True)
class OnBad:
    """What a master sees when the source of a served point is bad."""

    action: str = "exception"
    """``exception`` (0B), ``hold`` (the last value), ``nan``, or ``value``."""
    value: Value | None = None
    """The engineering value, for ``value``."""


@dataclass(frozen=True, slots=True, eq=False)
class RegisterPoint:
    """A point with its place in a register map."""

    point: Point
    table: Table
    address: int
    """0-based, as on the wire."""
    type: RegisterType
    length: int = 0
    """Of a string, in registers."""
    low_bit: int | None = None
    """First bit of a bit or bit range inside the value, 0 is the least significant."""
    bit_count: int = 0
    is_signed_field: bool = False
    """Of a bit range: whether its highest bit is the sign."""
    order: str = Order.ABCD
    """One of the words of `Order`, or the letter of each byte on the wire."""
    format: Format | None = None
    """How the registers are the value, if not simply as the type says."""
    linear: Linear = field(default_factory=Linear)
    invalid: frozenset[int] = frozenset()
    """Raw values that mean "no value", as the unsigned number that the registers hold. Of a bit field too
    they are the whole number."""
    pad: Pad = Pad.NUL
    """Of a string."""
    chars: Chars = Chars.BOTH
    """Of a string."""
    zone: datetime.tzinfo = datetime.UTC
    """Of a clock in calendar fields, whose type is a string."""
    encoding: str | None = None
    """Of a string; None for UTF-8 (or, when it is read, Latin-1)."""
    epoch: Epoch | None = None
    """Of an integer that is a time: what it counts."""
    factor: RegisterPoint | None = None
    """The point that holds the power of ten of the value, in the same table and the same request."""
    presence: RegisterPoint | None = None
    """Of a queue or a server id, which are read as a whole: the register that says how many there are."""
    parts: tuple[Part, ...] = ()
    """Of a value of several registers: those. `address` is then the lowest of theirs, and `end` behind the
    highest: the point is read as one."""
    word: RegisterPoint | None = None
    """Of a flag: the point of which it is a bit."""
    scan_s: float | None = None
    """Overrides the device's."""
    rules: WriteRules = PLAIN
    """How it is written."""
    on_bad: OnBad = field(default_factory=OnBad)
    initial: Value | None = None
    """Of a served point that masters write, or that is a factor: its value until the first write."""
    is_open_to_masters: bool = False
    """Of a served point: whether masters may write it."""
    origin: str = ""
    """Its name in the configuration where that is not the point's own: an array's, a word's."""
    width: int = 16
    """How many bits one address holds, where that is a register."""

    count: int = field(init=False)
    """How many addresses it takes: bits or registers."""
    end: int = field(init=False)
    """The first address behind it."""
    shown: RegisterPoint | None = field(init=False)
    """The same point where the device shows its value, if that is another place."""

    def __post_init__(self) -> None:
        count = max(1, math.ceil(self.type.bits / self.width))
        if self.table.is_bits:
            count = 1
        elif self.parts:
            count = max(part.place.end for part in self.parts) - self.address
        elif self.type is RegisterType.STRING:
            count = self.length
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "end", self.address + count)
        shown = None
        if self.rules.read_from is not None:
            table, address = self.rules.read_from
            shown = replace(self, table=table, address=address, rules=PLAIN)
        object.__setattr__(self, "shown", shown)

    @property
    def size(self) -> int:
        """How many bytes its registers are."""
        return self.count * self.width // 8

    @property
    def pieces(self) -> Sequence[RegisterPoint]:
        """What it takes of the map: itself, or its parts."""
        return [part.place for part in self.parts] or [self]

    @property
    def struct_code(self) -> str:
        """The big-endian `struct` code that unpacks it from its registers."""
        return point_codec.struct_code(self)

    @property
    def raw_range(self) -> tuple[int, int]:
        """The lowest and the highest raw number of its registers, or of its bits of them."""
        return raw_range(self.type, self.format, self.bit_count, is_signed_field=self.is_signed_field)

    def decoder(self, exponent: int | None = None) -> Convert | None:
        """Return the converter of what `struct_code` unpacks, or None if that is the value.

        Args:
            exponent: the present power of ten of a point that has a `factor`.
        """
        return point_codec.decoder(self, self._linear(exponent))

    def present_decoder(self) -> Callable[[object, object], Decoded]:
        """Return the converter of what `struct_code` unpacks of this point and of its `presence`.

        A number is there as a whole or not at all; a text may end where its registers do.
        """
        convert = self.decoder()
        last = self.address if self.type is RegisterType.STRING else self.end - 1
        needed = last & 0xFFFF

        def decode(raw: object, raw_count: object) -> Decoded:
            if raw_count < needed:  # type: ignore[operator] # it is a plain register
                return NOT_AVAILABLE
            return (raw, None) if convert is None else convert(raw)  # type: ignore[return-value]

        return decode

    def scaled_decoder(self) -> Callable[[object, object], Decoded]:
        """Return the converter of what `struct_code` unpacks of this point and of its factor."""
        if self.factor is None:
            raise ValueError(f"{self.point.address} has no factor")
        read_factor = self.factor.decoder()
        by_exponent: dict[int, Convert | None] = {}

        def decode(raw: object, raw_factor: object) -> Decoded:
            value, flaw = (raw_factor, None) if read_factor is None else read_factor(raw_factor)
            if value is None:
                return NOT_AVAILABLE
            exponent = power_of_ten(value)
            if exponent is None:
                return NOT_A_NUMBER
            if exponent not in by_exponent:
                by_exponent[exponent] = self.decoder(exponent)
            scaled, own_flaw = by_exponent[exponent](raw)  # type: ignore[misc] # a scaled value is not plain
            return scaled, own_flaw or flaw

        return decode

    def _linear(self, exponent: int | None) -> Linear:
        if self.factor is None:
            return self.linear
        if exponent is None:
            name = self.factor.point.address
            raise ConversionError(f"{self.point.address} has no scale while {name} has no value")
        if power_of_ten(exponent) is None:
            raise ConversionError(f"{exponent} is not a power of ten from -10 to 10")
        return self.linear.times_power_of_ten(exponent)

    def encoder(self, exponent: int | None = None) -> Callable[[Value], bytes]:
        """Return the converter from an engineering value to its registers, as on the wire.

        It raises `ConversionError` for what cannot be expressed.

        Args:
            exponent: the present power of ten of a point that has a `factor`.

        Raises:
            ConversionError: the point has a factor, of which there is no exponent.
        """
        return point_codec.encoder(self, self._linear(exponent))

    def encode(self, value: Value, exponent: int | None = None) -> bytes:
        """Encode one value; for many of the same point there is `encoder`.

        Args:
            value: the engineering value.
            exponent: the present power of ten of a point that has a `factor`.

        Raises:
            ConversionError: the value cannot be expressed.
        """
        return self.encoder(exponent)(value)

    def nan(self) -> bytes:
        """Return the registers of a float that is not a number."""
        return point_codec.nan(self)

    @property
    def bit_mask(self) -> int:
        """Which bits of its registers, as on the wire, are the point's own."""
        size = self.size
        if self.low_bit is None:
            return (1 << size * 8) - 1
        mask = ((1 << self.bit_count) - 1 << self.low_bit).to_bytes(size, "big")
        return int.from_bytes(wire_arrangement(self.order)(mask), "big")

    def encode_bit(self, value: Value) -> bool:
        """Return the state of a coil that holds an engineering value.

        Raises:
            ConversionError: the value is neither 0 nor 1.
        """
        if isinstance(value, str) or value not in (0, 1):
            raise ConversionError(f"{value!r} is neither 0 nor 1")
        return bool(value)

    def decode(self, data: bytes, exponent: int | None = None) -> Decoded:
        """Decode the point's own registers (``2 * count`` bytes). For single values, not for scans.

        Args:
            data: the registers.
            exponent: the present power of ten of a point that has a `factor`; without it there is no value.
        """
        if self.parts:
            return joined_decoder(self)([_token(part.place, data, self.address) for part in self.parts])
        if self.factor is not None and power_of_ten(exponent) is None:
            return NOT_AVAILABLE if exponent is None else NOT_A_NUMBER
        token = _token(self, data, self.address)
        convert = self.decoder(exponent)
        return (token, None) if convert is None else convert(token)


def _token(place: RegisterPoint, data: bytes, first: int) -> Any:
    """Return what `struct` unpacks of a place, out of registers that begin at `first`."""
    return struct.unpack_from(">" + place.struct_code, data, 2 * (place.address - first))[0]
