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
the bytes can swap). Any other order is spelled out, one letter for each byte on the wire: ``GHEFCDAB`` for
64 bits, ``CDABEF`` for 48, ``ACBD`` for 32 or 24.

8- and 24-bit integers own their register(s) whole: the unused high bits are ignored when read, and
filled by zero or sign extension when written. The same words serve strings: which byte of a register
comes first, and whether the text runs from the last register to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Table(StrEnum):
    """The four tables of the Modbus data model, and what is read by functions of its own."""

    COIL = "coil"
    DISCRETE = "discrete"
    INPUT = "input"
    HOLDING = "holding"
    FILE = "file"
    FIFO = "fifo"
    SERVER_ID = "server_id"

    @property
    def is_bits(self) -> bool:
        """Whether an address of the table is one bit (else one register)."""
        return self in (Table.COIL, Table.DISCRETE)

    @property
    def is_numbered(self) -> bool:
        """Whether it is one of the four whose addresses are 16 bits."""
        return _READ_FUNCTION[self] <= 4

    @property
    def is_whole(self) -> bool:
        """Whether it is only read as a whole, how much there is of it first."""
        return self in (Table.FIFO, Table.SERVER_ID)

    def linear(self, address: int, number: int = 0) -> int:
        """Return the address of a record in file `number`, or of a place in the queue of that address."""
        return number << 16 | address

    def place_name(self, address: int) -> str:
        """Return an address for people: ``holding 12``, ``file 4 record 1``."""
        high, low = divmod(address, 0x10000)
        if self is Table.FILE:
            return f"file {high} record {low}"
        if self is Table.FIFO:
            return f"fifo {high}"
        return "server_id" if self is Table.SERVER_ID else f"{self} {address}"

    @property
    def read_function(self) -> int:
        """The function code that reads it."""
        return _READ_FUNCTION[self]


_READ_FUNCTION = {
    Table.COIL: 1,
    Table.DISCRETE: 2,
    Table.HOLDING: 3,
    Table.INPUT: 4,
    Table.SERVER_ID: 17,
    Table.FILE: 20,
    Table.FIFO: 24,
}


class Order(StrEnum):
    """Where the bytes of a value lie."""

    ABCD = "ABCD"
    CDAB = "CDAB"
    BADC = "BADC"
    DCBA = "DCBA"


_WORDS = frozenset(Order)
_LETTERS = "ABCDEFGH"


class Format(StrEnum):
    """How registers are a value, where they are not simply the number that the type names."""

    SIGN_MAGNITUDE = "sign_magnitude"
    M10K = "m10k"
    CALENDAR = "calendar"
    CALENDAR_YY = "calendar_yy"
    CALENDAR_BCD = "calendar_bcd"
    CALENDAR_BYTES = "calendar_bytes"
    IEC870_5_4 = "iec870_5_4"
    TIME_OF_DAY = "time_of_day"

    @property
    def clock_registers(self) -> int:
        """How many registers the clock has; 0 if the format is one of numbers."""
        return _CLOCK_REGISTERS.get(self, 0)


_CLOCK_REGISTERS = {
    Format.CALENDAR: 6,
    Format.CALENDAR_YY: 6,
    Format.CALENDAR_BCD: 3,
    Format.CALENDAR_BYTES: 3,
    Format.IEC870_5_4: 4,
    Format.TIME_OF_DAY: 1,
}


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


Arrange = Callable[[bytes], bytes]


def is_order(text: str, size: int) -> bool:
    """Return whether a text names an order of `size` bytes: one of the four words, or each byte's letter."""
    return text in _WORDS or (len(text) == size and sorted(text) == [*_LETTERS[:size]])


def plain_order(text: str, size: int) -> str:
    """Return the word that arranges `size` bytes as an order does, or the order itself if there is none."""
    data = bytes(range(size))
    own = arrangement(text)(data)
    return next((word for word in Order if _word_arrangement(word)(data) == own), text)


def arrangement(order: str) -> Arrange:
    """Return the function that brings wire bytes into ABCD order.

    Args:
        order: see `is_order`. Each of the four words is its own inverse; of others, see `wire_arrangement`.
    """
    if order in _WORDS:
        return _word_arrangement(Order(order))
    return _picking([order.index(letter) for letter in _LETTERS[: len(order)]])


def wire_arrangement(order: str) -> Arrange:
    """Return the function that brings bytes in ABCD order into the order on the wire."""
    if order in _WORDS:
        return _word_arrangement(Order(order))
    return _picking([_LETTERS.index(letter) for letter in order])


def _picking(places: list[int]) -> Arrange:
    return lambda data: bytes([data[place] for place in places])


def _word_arrangement(order: Order) -> Arrange:
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
