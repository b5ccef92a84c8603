"""Registers and engineering values: one codec per point, chosen at load.

Layout: a register is 16 bits, most significant byte first on the wire. A type that needs more than
one register takes consecutive addresses. `order` names how the bytes A (most significant) B C D of
the value lie on the wire:

====  ==============================  =====================================
ABCD  big endian                      the default
CDAB  words swapped                   the low word comes first
BADC  bytes swapped inside each word
DCBA  little endian                   both
====  ==============================  =====================================

The same words serve 48 and 64 bits (all words in reverse, bytes in reverse) and 16 bits (where only
the bytes can swap).

8- and 24-bit integers own their register(s) whole: the unused high bits are ignored when read, and
filled by zero or sign extension when written.

Rules:

* Decoding never raises: it gives a value, or a flaw that says why there is none.
* Encoding refuses what cannot be expressed; nothing is wrapped or clamped. A value is rounded to the
  nearest step of its scale, since a register has no others.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from fieldbus.errors import ConversionError
from fieldbus.model import OUT_OF_RANGE, Flaw, Kind, Point, Reason, Value, bad
from fieldbus.scaling import Linear


class Table(StrEnum):
    """The four tables of the Modbus data model."""

    COIL = "coil"
    DISCRETE = "discrete"
    INPUT = "input"
    HOLDING = "holding"

    @property
    def is_bits(self) -> bool:
        """Whether an address of the table is one bit (else one register)."""
        return self in (Table.COIL, Table.DISCRETE)

    @property
    def read_function(self) -> int:
        """The function code that reads it."""
        return _READ_FUNCTION[self]


_READ_FUNCTION = {Table.COIL: 1, Table.DISCRETE: 2, Table.HOLDING: 3, Table.INPUT: 4}


class Order(StrEnum):
    """Where the bytes of a value lie."""

    ABCD = "ABCD"
    CDAB = "CDAB"
    BADC = "BADC"
    DCBA = "DCBA"


class RegisterType(StrEnum):
    """How the bits of a point are to be read."""

    BOOL = "bool"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT24 = "int24"
    UINT24 = "uint24"
    INT32 = "int32"
    UINT32 = "uint32"
    INT48 = "int48"
    UINT48 = "uint48"
    INT64 = "int64"
    UINT64 = "uint64"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BCD16 = "bcd16"
    BCD32 = "bcd32"
    STRING = "string"

    @property
    def bits(self) -> int:
        """Width of the value in bits; 0 for strings, whose length is the point's."""
        if self is RegisterType.STRING:
            return 0
        return 1 if self is RegisterType.BOOL else int(self.value.lstrip("abcdefilnotu"))

    @property
    def is_float(self) -> bool:
        """Whether it is an IEEE 754 number."""
        return self.value.startswith("float")

    @property
    def is_signed(self) -> bool:
        """Whether it is a two's complement integer."""
        return self.value.startswith("int")

    @property
    def is_bcd(self) -> bool:
        """Whether each nibble is a decimal digit."""
        return self.value.startswith("bcd")


_FLOAT_CODE = {16: "e", 32: "f", 64: "d"}
_WHOLE_CODE = {
    RegisterType.BOOL: "H",
    RegisterType.UINT16: "H",
    RegisterType.INT16: "h",
    RegisterType.UINT32: "I",
    RegisterType.INT32: "i",
    RegisterType.UINT64: "Q",
    RegisterType.INT64: "q",
    RegisterType.FLOAT16: "e",
    RegisterType.FLOAT32: "f",
    RegisterType.FLOAT64: "d",
}

Decoded = tuple[Value | None, Flaw | None]
Convert = Callable[[object], Decoded]
"""From what `struct` unpacked (a number, or bytes) to a value and its flaw."""

_NOT_AVAILABLE: Decoded = (None, bad(Reason.NOT_AVAILABLE))
_NOT_A_NUMBER: Decoded = (None, bad(Reason.CONVERSION))


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
    order: Order = Order.ABCD
    linear: Linear = field(default_factory=Linear)
    invalid: frozenset[int] = frozenset()
    """Raw values that mean "no value", as the unsigned number that the registers hold."""
    scan_s: float | None = None
    """Overrides the device's."""
    on_bad: OnBad = field(default_factory=OnBad)
    initial: Value | None = None
    """Of a served point that masters write: its value until the first write."""
    is_open_to_masters: bool = False
    """Of a served point: whether masters may write it."""

    count: int = field(init=False)
    """How many addresses it takes: bits or registers."""
    end: int = field(init=False)
    """The first address behind it."""

    def __post_init__(self) -> None:
        count = max(1, math.ceil(self.type.bits / 16))
        if self.table.is_bits:
            count = 1
        elif self.type is RegisterType.STRING:
            count = self.length
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "end", self.address + count)

    @property
    def struct_code(self) -> str:
        """The big-endian `struct` code that unpacks it from its registers."""
        code = _WHOLE_CODE.get(self.type)
        if code is None or self.order is not Order.ABCD or (self.invalid and self.type.is_float):
            return f"{self.count * 2}s"
        return code

    def decoder(self) -> Convert | None:
        """Return the converter of what `struct_code` unpacks, or None if that is the value."""
        if self.struct_code.endswith("s"):
            return self._decoder_of_bytes()
        if self.type.is_float:
            return _range_checked(self.point, _float_converter(self.linear))
        is_plain = (
            self.low_bit is None
            and self.linear.is_identity
            and not self.invalid
            and self.point.minimum is None
            and self.point.maximum is None
        )
        if is_plain and self.type is not RegisterType.BOOL:
            return None
        return self._integer_converter(1 << self.count * 16)

    def _decoder_of_bytes(self) -> Convert:
        arrange = arrangement(self.order)
        if self.type is RegisterType.STRING:
            return lambda raw: (_text(arrange(raw)), None)  # type: ignore[arg-type]
        if self.type.is_float:
            number = struct.Struct(">" + _FLOAT_CODE[self.type.bits])
            convert = _range_checked(self.point, _float_converter(self.linear))
            invalid = self.invalid

            def decode_float(raw: object) -> Decoded:
                data = arrange(raw)  # type: ignore[arg-type]
                if invalid and int.from_bytes(data, "big") in invalid:
                    return _NOT_AVAILABLE
                return convert(number.unpack(data)[0])

            return decode_float
        if self.type.is_bcd:
            return self._bcd_decoder(arrange)
        bits = 16 if self.type is RegisterType.BOOL else self.type.bits
        signed = self.type.is_signed
        mask, sign = (1 << bits) - 1, 1 << (bits - 1)
        convert_integer = self._integer_converter(1 << bits)

        def decode_integer(raw: object) -> Decoded:
            number = int.from_bytes(arrange(raw), "big") & mask  # type: ignore[arg-type]
            return convert_integer(number - (mask + 1) if signed and number & sign else number)

        return decode_integer

    def _bcd_decoder(self, arrange: Callable[[bytes], bytes]) -> Convert:
        convert = self._integer_converter(1 << self.type.bits)
        invalid = self.invalid

        def decode(raw: object) -> Decoded:
            data = arrange(raw)  # type: ignore[arg-type]
            if invalid and int.from_bytes(data, "big") in invalid:
                return _NOT_AVAILABLE
            digits = data.hex()
            return convert(int(digits)) if digits.isdecimal() else _NOT_A_NUMBER

        return decode

    def _integer_converter(self, modulus: int) -> Convert:
        """Return the converter of an integer that was made whole: sentinel, bits, scale, range."""
        forward = None if self.linear.is_identity else self.linear.forward_int()
        invalid = frozenset() if self.type.is_bcd else self.invalid
        low_bit, mask = self.low_bit, (1 << self.bit_count) - 1
        is_bool = self.point.kind is Kind.BOOL

        def decode(raw: object) -> Decoded:
            number: int = raw  # type: ignore[assignment]
            if invalid and number % modulus in invalid:
                return _NOT_AVAILABLE
            if low_bit is not None:
                number = (number >> low_bit) & mask
            if is_bool:
                return bool(number), None
            return (number if forward is None else forward(number)), None

        return decode if is_bool else _range_checked(self.point, decode)

    def encoder(self) -> Callable[[Value], bytes]:
        """Return the converter from an engineering value to its registers, as on the wire.

        It raises `ConversionError` for what cannot be expressed.
        """
        arrange = arrangement(self.order)
        size = self.count * 2
        if self.type is RegisterType.STRING:
            return lambda value: arrange(_text_bytes(self.point, value, size))
        if self.type.is_float:
            return self._float_encoder(arrange)
        inverse, is_bool = self.linear.inverse_int, self.point.kind is Kind.BOOL
        low, high = self._raw_range()
        shift, is_bcd, name = self.low_bit or 0, self.type.is_bcd, self.type.value

        def encode(value: Value) -> bytes:
            if isinstance(value, str):
                raise ConversionError(f"{value!r} is not a number")
            raw = inverse(value)
            if is_bool and raw not in (0, 1):
                raise ConversionError(f"{value} is neither 0 nor 1")
            if not low <= raw <= high:
                raise ConversionError(f"{value} does not fit {name}")
            if is_bcd:
                return arrange(bytes.fromhex(f"{raw:0{size * 2}d}"))
            return arrange((raw << shift).to_bytes(size, "big", signed=raw < 0))

        return encode

    def _float_encoder(self, arrange: Callable[[bytes], bytes]) -> Callable[[Value], bytes]:
        number = struct.Struct(">" + _FLOAT_CODE[self.type.bits])
        inverse = None if self.linear.is_identity else self.linear.inverse_float

        def encode(value: Value) -> bytes:
            if isinstance(value, str):
                raise ConversionError(f"{value!r} is not a number")
            try:
                raw = value if inverse is None else inverse(value)
                if math.isfinite(raw):
                    return arrange(number.pack(raw))
            except (OverflowError, struct.error):
                pass
            raise ConversionError(f"{value} does not fit {self.type}")

        return encode

    def _raw_range(self) -> tuple[int, int]:
        if self.low_bit is not None:
            return 0, (1 << self.bit_count) - 1
        if self.type.is_bcd:
            return 0, 10 ** (self.count * 4) - 1
        bits = self.type.bits
        if self.type.is_signed:
            return -(1 << bits - 1), (1 << bits - 1) - 1
        return 0, (1 << bits) - 1

    def encode(self, value: Value) -> bytes:
        """Encode one value; for many of the same point there is `encoder`.

        Raises:
            ConversionError: the value cannot be expressed.
        """
        return self.encoder()(value)

    def nan(self) -> bytes:
        """Return the registers of a float that is not a number."""
        number = struct.pack(">" + _FLOAT_CODE[self.type.bits], math.nan)
        return arrangement(self.order)(number)

    @property
    def bit_mask(self) -> int:
        """Which bits of its registers, as on the wire, are the point's own."""
        size = self.count * 2
        if self.low_bit is None:
            return (1 << size * 8) - 1
        mask = ((1 << self.bit_count) - 1 << self.low_bit).to_bytes(size, "big")
        return int.from_bytes(arrangement(self.order)(mask), "big")

    def encode_bit(self, value: Value) -> bool:
        """Return the state of a coil that holds an engineering value.

        Raises:
            ConversionError: the value is neither 0 nor 1.
        """
        if isinstance(value, str) or value not in (0, 1):
            raise ConversionError(f"{value!r} is neither 0 nor 1")
        return bool(value)

    def decode(self, data: bytes) -> Decoded:
        """Decode the point's own registers (``2 * count`` bytes). For single values, not for scans."""
        token = struct.unpack(">" + self.struct_code, data)[0]
        convert = self.decoder()
        return (token, None) if convert is None else convert(token)


def integer_range(type_: RegisterType, bit_count: int, linear: Linear) -> tuple[float | None, float | None]:
    """Return the engineering range that a type can express; None where it has no useful bound."""
    if type_ is RegisterType.FLOAT16:
        return linear.range_of(-65504.0, 65504.0)
    if type_.is_float or type_ is RegisterType.STRING:
        return None, None
    if bit_count:
        return linear.range_of(0, (1 << bit_count) - 1)
    if type_.is_bcd:
        return linear.range_of(0, 10 ** (type_.bits // 4) - 1)
    if type_.is_signed:
        return linear.range_of(-(1 << type_.bits - 1), (1 << type_.bits - 1) - 1)
    return linear.range_of(0, (1 << type_.bits) - 1)


def _float_converter(linear: Linear) -> Convert:
    forward = None if linear.is_identity else linear.forward_float()
    isfinite = math.isfinite

    def decode(raw: object) -> Decoded:
        number: float = raw  # type: ignore[assignment]
        if forward is not None:
            number = forward(number)
        return (number, None) if isfinite(number) else _NOT_AVAILABLE

    return decode


def _range_checked(point: Point, convert: Convert) -> Convert:
    if point.minimum is None and point.maximum is None:
        return convert
    low = -math.inf if point.minimum is None else point.minimum
    high = math.inf if point.maximum is None else point.maximum

    def decode(raw: object) -> Decoded:
        value, flaw = convert(raw)
        if flaw is None and not low <= value <= high:  # type: ignore[operator]
            return value, OUT_OF_RANGE
        return value, flaw

    return decode


def arrangement(order: Order) -> Callable[[bytes], bytes]:
    """Return what brings wire bytes into ABCD order. Each arrangement is its own inverse."""
    if order is Order.ABCD:
        return bytes
    if order is Order.DCBA:
        return lambda data: data[::-1]

    def swap_bytes(data: bytes) -> bytes:
        swapped = bytearray(data)
        swapped[0::2], swapped[1::2] = data[1::2], data[0::2]
        return bytes(swapped)

    if order is Order.BADC:
        return swap_bytes
    return lambda data: swap_bytes(data[::-1])


def _text(data: bytes) -> str:
    data = data.split(b"\0", 1)[0]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # every byte is a character there: nothing is lost
    return text.rstrip()


def _text_bytes(point: Point, value: Value, size: int) -> bytes:
    if not isinstance(value, str):
        raise ConversionError(f"{value!r} is not text")
    try:
        data = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConversionError(f"{value!r} cannot be written as UTF-8") from error
    if len(data) > size:
        raise ConversionError(f"text of {len(data)} bytes does not fit {point.address}, which has {size}")
    return data.ljust(size, b"\0")
