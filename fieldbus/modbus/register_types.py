"""The tables of the Modbus data model, the types of what lies in registers, and in which order.

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
filled by zero or sign extension when written. The same words serve strings: which byte of a register
comes first, and whether the text runs from the last register to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

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
