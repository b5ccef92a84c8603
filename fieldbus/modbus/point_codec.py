"""The codec of one point: what `struct` unpacks of its registers to its value, and back.

Rules:

* Chosen once, at load: each function here returns a closure for one point, and does all that can be
  decided about the point before that closure runs.
* Decoding never raises: it gives a value, or a flaw that says why there is none.
* Encoding refuses what cannot be expressed; nothing is wrapped or clamped. A value is rounded to the
  nearest step of its scale, since a register has no others. What would become one of the point's own
  `invalid` raw values is refused too: nobody could read it back.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from fieldbus.errors import ConversionError
from fieldbus.modbus.converters import (
    NOT_A_NUMBER,
    NOT_AVAILABLE,
    Convert,
    Decoded,
    float_converter,
    range_checked,
    raw_time,
    time_text,
)
from fieldbus.modbus.formats.calendar import calendar_decoder, calendar_encoder
from fieldbus.modbus.formats.numbers import whole_number
from fieldbus.modbus.formats.text import text_bytes, text_of
from fieldbus.modbus.register_types import Order, RegisterType, arrangement, wire_arrangement
from fieldbus.model import Kind, Value
from fieldbus.scaling import Linear

if TYPE_CHECKING:
    from fieldbus.modbus.registers import RegisterPoint

Encode = Callable[[Value], bytes]

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


def struct_code(point: RegisterPoint) -> str:
    """Return the big-endian `struct` code that unpacks a point from its registers."""
    code = _WHOLE_CODE.get(point.type)
    if code is None or point.order != Order.ABCD or point.format or (point.invalid and point.type.is_float):
        return f"{point.size}s"
    return code


def decoder(point: RegisterPoint, linear: Linear) -> Convert | None:
    """Return the converter of what `struct_code` unpacks, or None if that is the value.

    Args:
        point: what to decode.
        linear: its scale, with its present power of ten.
    """
    if struct_code(point).endswith("s"):
        return _decoder_of_bytes(point, linear)
    if point.type.is_float:
        return range_checked(point.point, float_converter(linear))
    is_plain = (
        point.low_bit is None
        and linear.is_identity
        and not point.invalid
        and point.point.minimum is None
        and point.point.maximum is None
        and point.epoch is None
        and point.factor is None
    )
    if is_plain and point.type is not RegisterType.BOOL:
        return None
    return _integer_converter(point, linear, 1 << point.size * 8, point.invalid)


def _decoder_of_bytes(point: RegisterPoint, linear: Linear) -> Convert:
    arrange = arrangement(point.order)
    if point.format is not None and point.format.clock_registers:
        decode_fields = calendar_decoder(point.format, point.zone)
        return lambda raw: decode_fields(arrange(raw))  # type: ignore[arg-type]
    if point.type is RegisterType.STRING:
        chars, encoding = point.chars, point.encoding
        return lambda raw: text_of(arrange(raw), chars, encoding)  # type: ignore[arg-type]
    if point.type.is_float:
        number = struct.Struct(">" + _FLOAT_CODE[point.type.bits])
        convert = range_checked(point.point, float_converter(linear))
        invalid = point.invalid

        def decode_float(raw: object) -> Decoded:
            data = arrange(raw)  # type: ignore[arg-type]
            if invalid and int.from_bytes(data, "big") in invalid:
                return NOT_AVAILABLE
            return convert(number.unpack(data)[0])

        return decode_float
    if point.type.is_bcd:
        return _bcd_decoder(point, linear)
    if point.format is not None:
        return _formatted_decoder(point, linear)
    bits = 16 if point.type is RegisterType.BOOL else point.type.bits
    signed = point.type.is_signed
    mask, sign = (1 << bits) - 1, 1 << (bits - 1)
    convert_integer = _integer_converter(point, linear, 1 << bits, point.invalid)

    def decode_integer(raw: object) -> Decoded:
        number = int.from_bytes(arrange(raw), "big") & mask  # type: ignore[arg-type]
        return convert_integer(number - (mask + 1) if signed and number & sign else number)

    return decode_integer


def _bcd_decoder(point: RegisterPoint, linear: Linear) -> Convert:
    arrange = arrangement(point.order)
    convert = _integer_converter(point, linear, 0, frozenset())
    invalid = point.invalid

    def decode(raw: object) -> Decoded:
        data = arrange(raw)  # type: ignore[arg-type]
        if invalid and int.from_bytes(data, "big") in invalid:
            return NOT_AVAILABLE
        digits = data.hex()
        return convert(int(digits)) if digits.isdecimal() else NOT_A_NUMBER

    return decode


def _formatted_decoder(point: RegisterPoint, linear: Linear) -> Convert:
    """Return the converter of a number in a format that a point names."""
    arrange = arrangement(point.order)
    convert = _integer_converter(point, linear, 0, frozenset())
    read = whole_number(point.type, point.format).read
    invalid, mask = point.invalid, (1 << point.type.bits) - 1

    def decode(raw: object) -> Decoded:
        data = arrange(raw)  # type: ignore[arg-type]
        if invalid and int.from_bytes(data, "big") & mask in invalid:
            return NOT_AVAILABLE
        number = read(data)
        return NOT_A_NUMBER if number is None else convert(number)

    return decode


def _integer_converter(
    point: RegisterPoint, linear: Linear, modulus: int, invalid: frozenset[int]
) -> Convert:
    """Return the converter of an integer that was made whole: sentinel, bits, scale, range."""
    forward = None if linear.is_identity else linear.forward_int()
    if point.factor is not None and linear.is_integer:
        # Whether the factor is 0 or -1, the value is a float.
        numerator, addend, _ = linear.parts
        forward = lambda raw: float(raw * numerator + addend)  # noqa: E731 - as short as its siblings
    low_bit, mask = point.low_bit, (1 << point.bit_count) - 1
    is_bool, epoch = point.point.kind is Kind.BOOL, point.epoch

    def decode(raw: object) -> Decoded:
        number: int = raw  # type: ignore[assignment]
        if invalid and number % modulus in invalid:
            return NOT_AVAILABLE
        if low_bit is not None:
            number = (number >> low_bit) & mask
        if is_bool:
            return bool(number), None
        return (number if forward is None else forward(number)), None

    def decode_signed_field(raw: object) -> Decoded:
        number: int = raw  # type: ignore[assignment]
        if invalid and number % modulus in invalid:
            return NOT_AVAILABLE
        number = (number >> (low_bit or 0)) & mask
        number -= (number << 1) & (mask + 1)
        return (number if forward is None else forward(number)), None

    if point.is_signed_field:
        return range_checked(point.point, decode_signed_field)
    if epoch is None:
        return decode if is_bool else range_checked(point.point, decode)

    def decode_time(raw: object) -> Decoded:
        number: int = raw  # type: ignore[assignment]
        if invalid and number % modulus in invalid:
            return NOT_AVAILABLE
        text = time_text(number, epoch)
        return NOT_A_NUMBER if text is None else (text, None)

    return decode_time


def encoder(point: RegisterPoint, linear: Linear) -> Encode:
    """Return the converter from an engineering value to a point's registers, as on the wire.

    It raises `ConversionError` for what cannot be expressed.
    """
    arrange = wire_arrangement(point.order)
    size = point.size
    if point.format is not None and point.format.clock_registers:
        encode_fields = calendar_encoder(point.format, point.zone)
        return lambda value: arrange(encode_fields(value))
    if point.type is RegisterType.STRING:
        pad, chars, encoding = point.pad, point.chars, point.encoding
        return lambda value: arrange(text_bytes(value, size, pad, chars, encoding))
    if point.type.is_float:
        return _float_encoder(point, arrange)
    to_raw = _raw_of(point, linear)
    low, high = point.raw_range
    name = point.type.value if point.format is None else f"{point.type} in {point.format}"
    modulus = 1 << (16 if point.type is RegisterType.BOOL else point.type.bits)
    if point.low_bit is None:
        invalid, write = point.invalid, _writer(point)
    else:
        invalid = frozenset()  # the other bits decide as well
        shift, mask = point.low_bit, (1 << point.bit_count) - 1
        write = lambda raw: ((raw & mask) << shift).to_bytes(size, "big")  # noqa: E731 - one of two

    def encode(value: Value) -> bytes:
        raw = to_raw(value)
        if not low <= raw <= high:
            raise ConversionError(f"{value} does not fit {name}")
        data = write(raw)
        if invalid and (held := int.from_bytes(data, "big") % modulus) in invalid:
            raise _means_no_value(value, held)
        return arrange(data)

    code = struct_code(point)
    is_whole = code[-1] != "s" and point.low_bit is None and not invalid and point.epoch is None
    if not is_whole or not linear.is_identity or point.point.kind is Kind.BOOL:
        return encode
    if (low, high) != (0, modulus - 1) and (low, high) != (-modulus // 2, modulus // 2 - 1):
        return encode
    pack = struct.Struct(f">{code}").pack

    def encode_whole(value: Value) -> bytes:
        if type(value) is int:
            try:
                return pack(value)
            except struct.error:
                pass  # `encode` says what is wrong
        return encode(value)

    return encode_whole


def _writer(point: RegisterPoint) -> Callable[[int], bytes]:
    """Return the converter from a raw number in the point's range to its registers in ABCD order."""
    if point.type.is_bcd or point.format is not None:
        return whole_number(point.type, point.format).write
    size = point.size
    return lambda raw: raw.to_bytes(size, "big", signed=raw < 0)


def _raw_of(point: RegisterPoint, linear: Linear) -> Callable[[Value], int]:
    """Return the converter from an engineering value to the nearest raw integer, of whatever size."""
    inverse, epoch, is_bool = linear.inverse_int, point.epoch, point.point.kind is Kind.BOOL
    if epoch is not None:
        return lambda value: raw_time(value, epoch)

    def to_raw(value: Value) -> int:
        if isinstance(value, str):
            raise ConversionError(f"{value!r} is not a number")
        if is_bool and value not in (0, 1):
            raise ConversionError(f"{value} is neither 0 nor 1")
        return inverse(value)

    return to_raw


def _float_encoder(point: RegisterPoint, arrange: Callable[[bytes], bytes]) -> Encode:
    number = struct.Struct(">" + _FLOAT_CODE[point.type.bits])
    inverse = None if point.linear.is_identity else point.linear.inverse_float
    invalid, name = point.invalid, point.type

    def encode(value: Value) -> bytes:
        if isinstance(value, str):
            raise ConversionError(f"{value!r} is not a number")
        try:
            raw = value if inverse is None else inverse(value)
            data = number.pack(raw) if math.isfinite(raw) else b""
        except (OverflowError, struct.error):
            data = b""
        if not data:
            raise ConversionError(f"{value} does not fit {name}")
        if invalid and int.from_bytes(data, "big") in invalid:
            raise _means_no_value(value, int.from_bytes(data, "big"))
        return arrange(data)

    return encode


def nan(point: RegisterPoint) -> bytes:
    """Return the registers of a float that is not a number."""
    number = struct.pack(">" + _FLOAT_CODE[point.type.bits], math.nan)
    return wire_arrangement(point.order)(number)


def _means_no_value(value: Value, raw: int) -> ConversionError:
    return ConversionError(f"{value} would be the raw value 0x{raw:X}, which means that there is no value")
