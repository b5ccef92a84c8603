"""Registers and engineering values: one codec per point, chosen at load.

The power of ten of a value may stand in a register of its own (`factor`, SunSpec's scale factors). Such
a value is decoded with the factor out of the same payload; where the factor is no value or no exponent
from -10 to 10, there is no value.

Rules:

* Decoding never raises: it gives a value, or a flaw that says why there is none.
* Encoding refuses what cannot be expressed; nothing is wrapped or clamped. A value is rounded to the
  nearest step of its scale, since a register has no others. What would become one of the point's own
  `invalid` raw values is refused too: nobody could read it back.
* Encoding a bit or a range of bits gives registers in which only those bits are set (`bit_mask`): who
  writes them merges them with the others.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from fieldbus.errors import ConversionError
from fieldbus.modbus.converters import (
    NOT_A_NUMBER,
    NOT_AVAILABLE,
    Chars,
    Convert,
    Decoded,
    Epoch,
    Pad,
    float_converter,
    power_of_ten,
    range_checked,
    raw_time,
    text_bytes,
    text_of,
    time_text,
)
from fieldbus.modbus.register_types import Order, RegisterType, Table, arrangement
from fieldbus.model import Kind, Point, Value
from fieldbus.scaling import Linear

__all__ = ["OnBad", "Order", "RegisterPoint", "RegisterType", "Table"]


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
    """Raw values that mean "no value", as the unsigned number that the registers hold. Of a bit field too
    they are the whole number."""
    pad: Pad = Pad.NUL
    """Of a string."""
    chars: Chars = Chars.BOTH
    """Of a string."""
    epoch: Epoch | None = None
    """Of an integer that is a time: what it counts."""
    factor: RegisterPoint | None = None
    """The point that holds the power of ten of the value, in the same table and the same request."""
    word: RegisterPoint | None = None
    """Of a flag: the point of which it is a bit."""
    scan_s: float | None = None
    """Overrides the device's."""
    verify: bool = False
    """Whether a write is read back."""
    on_bad: OnBad = field(default_factory=OnBad)
    initial: Value | None = None
    """Of a served point that masters write, or that is a factor: its value until the first write."""
    is_open_to_masters: bool = False
    """Of a served point: whether masters may write it."""
    origin: str = ""
    """Its name in the configuration where that is not the point's own: an array's, a word's."""

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

    def decoder(self, exponent: int | None = None) -> Convert | None:
        """Return the converter of what `struct_code` unpacks, or None if that is the value.

        Args:
            exponent: the present power of ten of a point that has a `factor`.
        """
        linear = self._linear(exponent)
        if self.struct_code.endswith("s"):
            return self._decoder_of_bytes(linear)
        if self.type.is_float:
            return range_checked(self.point, float_converter(linear))
        is_plain = (
            self.low_bit is None
            and linear.is_identity
            and not self.invalid
            and self.point.minimum is None
            and self.point.maximum is None
            and self.epoch is None
            and self.factor is None
        )
        if is_plain and self.type is not RegisterType.BOOL:
            return None
        return self._integer_converter(1 << self.count * 16, linear)

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

    def _decoder_of_bytes(self, linear: Linear) -> Convert:
        arrange = arrangement(self.order)
        if self.type is RegisterType.STRING:
            chars = self.chars
            return lambda raw: text_of(arrange(raw), chars)  # type: ignore[arg-type]
        if self.type.is_float:
            number = struct.Struct(">" + _FLOAT_CODE[self.type.bits])
            convert = range_checked(self.point, float_converter(linear))
            invalid = self.invalid

            def decode_float(raw: object) -> Decoded:
                data = arrange(raw)  # type: ignore[arg-type]
                if invalid and int.from_bytes(data, "big") in invalid:
                    return NOT_AVAILABLE
                return convert(number.unpack(data)[0])

            return decode_float
        if self.type.is_bcd:
            return self._bcd_decoder(arrange, linear)
        bits = 16 if self.type is RegisterType.BOOL else self.type.bits
        signed = self.type.is_signed
        mask, sign = (1 << bits) - 1, 1 << (bits - 1)
        convert_integer = self._integer_converter(1 << bits, linear)

        def decode_integer(raw: object) -> Decoded:
            number = int.from_bytes(arrange(raw), "big") & mask  # type: ignore[arg-type]
            return convert_integer(number - (mask + 1) if signed and number & sign else number)

        return decode_integer

    def _bcd_decoder(self, arrange: Callable[[bytes], bytes], linear: Linear) -> Convert:
        convert = self._integer_converter(1 << self.type.bits, linear)
        invalid = self.invalid

        def decode(raw: object) -> Decoded:
            data = arrange(raw)  # type: ignore[arg-type]
            if invalid and int.from_bytes(data, "big") in invalid:
                return NOT_AVAILABLE
            digits = data.hex()
            return convert(int(digits)) if digits.isdecimal() else NOT_A_NUMBER

        return decode

    def _integer_converter(self, modulus: int, linear: Linear) -> Convert:
        """Return the converter of an integer that was made whole: sentinel, bits, scale, range."""
        forward = None if linear.is_identity else linear.forward_int()
        if self.factor is not None and linear.is_integer:
            # Whether the factor is 0 or -1, the value is a float.
            numerator, addend, _ = linear.parts
            forward = lambda raw: float(raw * numerator + addend)  # noqa: E731 - as short as its siblings
        invalid = frozenset() if self.type.is_bcd else self.invalid
        low_bit, mask = self.low_bit, (1 << self.bit_count) - 1
        is_bool, epoch = self.point.kind is Kind.BOOL, self.epoch

        def decode(raw: object) -> Decoded:
            number: int = raw  # type: ignore[assignment]
            if invalid and number % modulus in invalid:
                return NOT_AVAILABLE
            if low_bit is not None:
                number = (number >> low_bit) & mask
            if is_bool:
                return bool(number), None
            return (number if forward is None else forward(number)), None

        if epoch is None:
            return decode if is_bool else range_checked(self.point, decode)

        def decode_time(raw: object) -> Decoded:
            number: int = raw  # type: ignore[assignment]
            if invalid and number % modulus in invalid:
                return NOT_AVAILABLE
            text = time_text(number, epoch)
            return NOT_A_NUMBER if text is None else (text, None)

        return decode_time

    def encoder(self, exponent: int | None = None) -> Callable[[Value], bytes]:
        """Return the converter from an engineering value to its registers, as on the wire.

        It raises `ConversionError` for what cannot be expressed.

        Args:
            exponent: the present power of ten of a point that has a `factor`.

        Raises:
            ConversionError: the point has a factor, of which there is no exponent.
        """
        arrange = arrangement(self.order)
        size = self.count * 2
        linear = self._linear(exponent)
        if self.type is RegisterType.STRING:
            pad, chars = self.pad, self.chars
            return lambda value: arrange(text_bytes(value, size, pad, chars))
        if self.type.is_float:
            return self._float_encoder(arrange)
        to_raw = self._raw_of(linear)
        low, high = self._raw_range()
        shift, is_bcd, name = self.low_bit or 0, self.type.is_bcd, self.type.value
        modulus = 1 << (16 if self.type is RegisterType.BOOL else self.type.bits)
        invalid = self.invalid if self.low_bit is None else frozenset()  # the other bits decide as well

        def encode(value: Value) -> bytes:
            raw = to_raw(value)
            if not low <= raw <= high:
                raise ConversionError(f"{value} does not fit {name}")
            if is_bcd:
                raw = int(str(raw), 16)
            if invalid and raw % modulus in invalid:
                raise _means_no_value(value, raw % modulus)
            return arrange((raw << shift).to_bytes(size, "big", signed=raw < 0))

        return encode

    def _raw_of(self, linear: Linear) -> Callable[[Value], int]:
        """Return the converter from an engineering value to the nearest raw integer, of whatever size."""
        inverse, epoch, is_bool = linear.inverse_int, self.epoch, self.point.kind is Kind.BOOL
        if epoch is not None:
            return lambda value: raw_time(value, epoch)

        def to_raw(value: Value) -> int:
            if isinstance(value, str):
                raise ConversionError(f"{value!r} is not a number")
            if is_bool and value not in (0, 1):
                raise ConversionError(f"{value} is neither 0 nor 1")
            return inverse(value)

        return to_raw

    def _float_encoder(self, arrange: Callable[[bytes], bytes]) -> Callable[[Value], bytes]:
        number = struct.Struct(">" + _FLOAT_CODE[self.type.bits])
        inverse = None if self.linear.is_identity else self.linear.inverse_float
        invalid = self.invalid

        def encode(value: Value) -> bytes:
            if isinstance(value, str):
                raise ConversionError(f"{value!r} is not a number")
            try:
                raw = value if inverse is None else inverse(value)
                data = number.pack(raw) if math.isfinite(raw) else b""
            except (OverflowError, struct.error):
                data = b""
            if not data:
                raise ConversionError(f"{value} does not fit {self.type}")
            if invalid and int.from_bytes(data, "big") in invalid:
                raise _means_no_value(value, int.from_bytes(data, "big"))
            return arrange(data)

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

    def decode(self, data: bytes, exponent: int | None = None) -> Decoded:
        """Decode the point's own registers (``2 * count`` bytes). For single values, not for scans.

        Args:
            data: the registers.
            exponent: the present power of ten of a point that has a `factor`; without it there is no value.
        """
        if self.factor is not None and power_of_ten(exponent) is None:
            return NOT_AVAILABLE if exponent is None else NOT_A_NUMBER
        token = struct.unpack(">" + self.struct_code, data)[0]
        convert = self.decoder(exponent)
        return (token, None) if convert is None else convert(token)


def _means_no_value(value: Value, raw: int) -> ConversionError:
    return ConversionError(f"{value} would be the raw value 0x{raw:X}, which means that there is no value")
