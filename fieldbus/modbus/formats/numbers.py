"""Whole numbers in registers: two's complement, decimal digits, sign and magnitude, modulo 10000.

Layouts, in ABCD order::

    two's complement  the type's own; 8 and 24 bits leave the high byte of their registers unused
    BCD               each nibble a decimal digit
    sign_magnitude    the highest bit of the type is the sign, the others are the magnitude
    m10k              each register counts 0 to 9999 units of the register after it; of a signed type
                      -9999 to 9999 (two's complement), so that the registers of a negative number are all
                      negative or 0

Rules:

* Reading gives None for bytes that no number is written as: a nibble above 9, a register above 9999.
* "Minus zero" (sign and magnitude) is 0, and is never written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from fieldbus.modbus.register_types import Format, RegisterType
from fieldbus.scaling import Linear

_M10K = 10_000


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """How the bytes of registers, in ABCD order, are a whole number."""

    lowest: int
    highest: int
    read: Callable[[bytes], int | None]
    write: Callable[[int], bytes]
    """Of a number from `lowest` to `highest`."""


def whole_number(type_: RegisterType, format_: Format | None) -> WholeNumber:
    """Return how a number is written that is not in plain two's complement.

    Raises:
        ValueError: it is.
    """
    size = (type_.bits + 15) // 16 * 2
    if type_.is_bcd:
        return WholeNumber(0, 10 ** (size * 2) - 1, _read_bcd, lambda raw: _write_bcd(raw, size))
    if format_ is Format.SIGN_MAGNITUDE:
        return _sign_magnitude(type_.bits, size)
    if format_ is Format.M10K:
        return _m10k(size // 2, is_signed=type_.is_signed)
    raise ValueError(f"{type_} is in two's complement")


def raw_range(
    type_: RegisterType, format_: Format | None, bit_count: int, *, is_signed_field: bool
) -> tuple[int, int]:
    """Return the lowest and the highest raw number that a point's registers, or its bits of them, hold."""
    if bit_count:
        top = 1 << bit_count
        return (-top // 2, top // 2 - 1) if is_signed_field else (0, top - 1)
    if type_.is_bcd or format_ is not None:
        form = whole_number(type_, format_)
        return form.lowest, form.highest
    if type_.is_signed:
        return -(1 << type_.bits - 1), (1 << type_.bits - 1) - 1
    return 0, (1 << type_.bits) - 1


def engineering_range(
    type_: RegisterType, format_: Format | None, bit_count: int, linear: Linear, *, is_signed_field: bool
) -> tuple[float | None, float | None]:
    """Return the engineering range that a point can express; None where there is no useful bound."""
    if type_ is RegisterType.FLOAT16:
        return linear.range_of(-65504.0, 65504.0)
    if type_.is_float or type_ is RegisterType.STRING:
        return None, None
    return linear.range_of(*raw_range(type_, format_, bit_count, is_signed_field=is_signed_field))


def _read_bcd(data: bytes) -> int | None:
    digits = data.hex()
    return int(digits) if digits.isdecimal() else None


def _write_bcd(raw: int, size: int) -> bytes:
    return int(str(raw), 16).to_bytes(size, "big")


def _sign_magnitude(bits: int, size: int) -> WholeNumber:
    sign = 1 << (bits - 1)

    def read(data: bytes) -> int:
        number = int.from_bytes(data, "big")
        magnitude = number & (sign - 1)
        return -magnitude if number & sign else magnitude

    def write(raw: int) -> bytes:
        return (-raw | sign if raw < 0 else raw).to_bytes(size, "big")

    return WholeNumber(1 - sign, sign - 1, read, write)


def _m10k(count: int, *, is_signed: bool) -> WholeNumber:
    registers = struct.Struct(f">{count}{'h' if is_signed else 'H'}")
    highest = _M10K**count - 1

    def read(data: bytes) -> int | None:
        number = 0
        for register in registers.unpack(data):
            if not -_M10K < register < _M10K:
                return None
            number = number * _M10K + register
        return number

    def write(raw: int) -> bytes:
        sign, rest = (-1, -raw) if raw < 0 else (1, raw)
        found = []
        for _ in range(count):
            rest, register = divmod(rest, _M10K)
            found.append(sign * register)
        return registers.pack(*reversed(found))

    return WholeNumber(-highest if is_signed else 0, highest, read, write)
