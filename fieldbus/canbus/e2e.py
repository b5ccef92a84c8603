"""AUTOSAR end-to-end protection of CAN messages, and the CRCs that checksums are made of.

Profiles 1, 2, 4, 5, 6, 7 and 11: a header in the frame holds a CRC and a counter, some hold the length
and an identifier of the data; where the identifier is not in the frame, the CRC is made over it as well.

Header, by byte from `offset` (always 0 in profile 2):

    1, 11   CRC-8 | counter 0..14 in the low nibble; variant C: identifier's bits 8..11 in the high one
    2       CRC-8 | counter 0..15 in the low nibble
    4       length (2) | counter (2) | identifier (4) | CRC-32; most significant byte first
    5       CRC-16, least significant byte first | counter (1)
    6       CRC-16 | length (2) | counter (1); most significant byte first
    7       CRC-64 | length (4) | counter (4) | identifier (4); most significant byte first

The CRC is made over the protected bytes but its own. In profiles 1 and 11 bytes of the identifier come
first; behind the data come in profile 2 the byte of the list that the counter names, in profile 5 the
identifier's low and high byte, in profile 6 its high and low byte.

Rules:

* Whether a frame is intact is a function of its bytes alone; what its counter means is for who knows the
  frame before (`protection`).
* Any bytes may come in; a frame that is too short is not intact.

Design: a profile is a row of a table; one class does them all. A CRC goes through a table of 256 entries,
or the standard library where that has it, because `crccheck`, from which the parameters come, works bit by
bit: more than ten times slower for a frame.
"""

from __future__ import annotations

import zlib
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Literal

from crccheck import crc as models

Check = Callable[[bytes], int]
"""Returns the checksum of bytes."""
Order = Literal["little", "big"]

CRC_MODELS = {name: model for name, model in vars(models).items() if model in models.ALLCRCCLASSES}
"""Parameters by crccheck's names of them, such as `Crc8Maxim`."""


def make_crc(name: str, initial: int | None = None, xor_out: int | None = None) -> Check:
    """Return the function for a CRC of at least 8 or of exactly 4 bits.

    Args:
        name: a key of `CRC_MODELS`.
        initial: content of the register at the start, most significant bit first; default: the model's.
        xor_out: what the result is combined with; default: the model's.
    """
    model = CRC_MODELS[name]
    width, is_reflected = model.width(), model.reflect_input()
    start = model.initvalue() if initial is None else initial
    end = model.xor_output() if xor_out is None else xor_out
    if is_reflected is not model.reflect_output() or (width < 8 and width != 4):
        raise ValueError(f"{name} is not made for bytes")
    return crc_of(width, model.poly(), start, end, is_reflected=is_reflected)


def crc_of(width: int, polynomial: int, start: int, end: int, *, is_reflected: bool) -> Check:
    """Return the function for a CRC of a polynomial.

    Args:
        width: in bits, at least 8 or exactly 4.
        polynomial: most significant bit first, without the highest one, which is always set.
        start: content of the register at the start, most significant bit first.
        end: what the result is combined with.
        is_reflected: whether bytes go in with their lowest bit first, and the result comes out so.
    """
    form = (width, polynomial, is_reflected)
    if form == (16, 0x1021, False):
        return lambda data: crc_hqx(data, start) ^ end
    if form == (32, 0x04C11DB7, True):
        # It begins and ends with all bits turned over.
        begin, turn = _reflect(start, 32) ^ 0xFFFFFFFF, end ^ 0xFFFFFFFF
        return lambda data: zlib.crc32(data, begin) ^ turn
    table = _table(*form)
    if is_reflected:
        return _reflected(table, _reflect(start, width), end)
    if width <= 8:
        return _narrow(table, start << 8 - width, end, 8 - width)
    return _wide(table, start, end, width)


def _narrow(table: Sequence[int], start: int, end: int, spare: int) -> Check:
    def check(data: bytes) -> int:
        crc = start
        for byte in data:
            crc = table[crc ^ byte]
        return crc >> spare ^ end

    return check


def _wide(table: Sequence[int], start: int, end: int, width: int) -> Check:
    top, mask = width - 8, (1 << width - 8) - 1

    def check(data: bytes) -> int:
        crc = start
        for byte in data:
            crc = (crc & mask) << 8 ^ table[crc >> top ^ byte]
        return crc ^ end

    return check


def _reflected(table: Sequence[int], start: int, end: int) -> Check:
    def check(data: bytes) -> int:
        crc = start
        for byte in data:
            crc = crc >> 8 ^ table[crc & 0xFF ^ byte]
        return crc ^ end

    return check


def _reflect(value: int, width: int) -> int:
    return int(f"{value:0{width}b}"[::-1], 2)


@cache
def _table(width: int, poly: int, is_reflected: bool) -> tuple[int, ...]:
    """Return what a byte at the register's outgoing end does to it."""
    # A register of fewer bits than a byte stands at the upper end of one.
    size = max(width, 8)
    if is_reflected:
        poly, out = _reflect(poly, width), 1
    else:
        poly, out = poly << size - width, 1 << size - 1
    entries = []
    for byte in range(256):
        crc = byte if is_reflected else byte << size - 8
        for _ in range(8):
            shifted = crc >> 1 if is_reflected else (crc << 1) & ((1 << size) - 1)
            crc = shifted ^ poly if crc & out else shifted
        entries.append(crc)
    return tuple(entries)


@dataclass(frozen=True, slots=True)
class Field:
    """Some bits of a frame that are a number."""

    first: int
    """Its first byte …"""
    last: int
    """… and its last."""
    order: Order
    shift: int
    """How many bits of those bytes, read as one number, are below it."""
    mask: int

    def get(self, data: bytes) -> int:
        """Return the number."""
        return int.from_bytes(data[self.first : self.last + 1], self.order) >> self.shift & self.mask

    def put(self, frame: bytearray, value: int) -> None:
        """Write the number."""
        around = slice(self.first, self.last + 1)
        bits = int.from_bytes(frame[around], self.order) & ~(self.mask << self.shift)
        bits |= (value & self.mask) << self.shift
        frame[around] = bits.to_bytes(self.last + 1 - self.first, self.order)

    def bits(self) -> dict[int, int]:
        """Return which bits of which bytes it has."""
        size = self.last + 1 - self.first
        mask = (self.mask << self.shift).to_bytes(size, self.order)
        return {self.first + index: byte for index, byte in enumerate(mask) if byte}


def _bytes_at(first: int, size: int, order: Order = "big") -> Field:
    return Field(first, first + size - 1, order, 0, (1 << 8 * size) - 1)


class DataIdMode(StrEnum):
    """Which parts of the identifier go into the CRC of profiles 1 and 11."""

    BOTH = "both"
    """Low and high byte; variant A."""
    ALTERNATING = "alternating"
    """The low byte with even counters, the high byte with odd ones; variant B, profile 1 only."""
    LOW = "low"
    """The low byte; profile 1 only."""
    NIBBLE = "nibble"
    """The low byte and a zero; bits 8..11 are in the header; variant C."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a profile looks like."""

    crc: Check
    header_bytes: int
    crc_field: Field
    counter_field: Field
    counters: int
    """How many values the counter takes."""
    id_bits: int
    length_field: Field | None = None
    id_field: Field | None = None


_J1850 = make_crc("Crc8SaeJ1850", initial=0, xor_out=0)
_CCITT = make_crc("Crc16Ibm3740")
_NIBBLE_COUNTER = Field(1, 1, "big", 0, 0x0F)
_ID_NIBBLE = Field(1, 1, "big", 4, 0x0F)

_SHAPES = {
    "1": _Shape(_J1850, 2, _bytes_at(0, 1), _NIBBLE_COUNTER, 15, 16),
    "2": _Shape(make_crc("Crc8Autosar"), 2, _bytes_at(0, 1), _NIBBLE_COUNTER, 16, 0),
    "4": _Shape(
        make_crc("Crc32Autosar"), 12, _bytes_at(8, 4), _bytes_at(2, 2), 1 << 16, 32,
        length_field=_bytes_at(0, 2), id_field=_bytes_at(4, 4),
    ),
    "5": _Shape(_CCITT, 3, _bytes_at(0, 2, "little"), _bytes_at(2, 1), 1 << 8, 16),
    "6": _Shape(
        _CCITT, 5, _bytes_at(0, 2), _bytes_at(4, 1), 1 << 8, 16, length_field=_bytes_at(2, 2)
    ),
    "7": _Shape(
        make_crc("Crc64Xz"), 20, _bytes_at(0, 8), _bytes_at(12, 4), 1 << 32, 32,
        length_field=_bytes_at(8, 4), id_field=_bytes_at(16, 4),
    ),
    "11": _Shape(_J1850, 2, _bytes_at(0, 1), _NIBBLE_COUNTER, 15, 16),
}  # fmt: skip
PROFILES: Sequence[str] = tuple(_SHAPES)
MODES = {"1": frozenset(DataIdMode), "11": frozenset({DataIdMode.BOTH, DataIdMode.NIBBLE})}
"""Which ways to use the identifier a profile has; one, where it is not here."""


class EndToEnd:
    """Makes and tests the header of one message."""

    step = 1

    def __init__(
        self,
        profile: str,
        length: int,
        *,
        data_id: int = 0,
        data_id_list: bytes = b"",
        mode: DataIdMode = DataIdMode.BOTH,
        offset: int = 0,
    ) -> None:
        """Take the layout of a message.

        Args:
            profile: one of `PROFILES`.
            length: of the protected data, in bytes, from byte 0 on, the header included.
            data_id: the identifier; profile 2 has a list instead.
            data_id_list: of profile 2, one byte for each value of the counter.
            mode: of profiles 1 and 11.
            offset: where the header begins, in bytes.

        Raises:
            ValueError: that is no layout, and why.
        """
        shape = _SHAPES[profile]
        bits = 12 if mode == DataIdMode.NIBBLE else shape.id_bits
        if mode != DataIdMode.BOTH and mode not in MODES.get(profile, ()):
            raise ValueError(f"profile {profile} does not know {mode} identifiers")
        if profile == "2" and (len(data_id_list) != shape.counters or offset):
            raise ValueError("profile 2 has 16 identifiers, and its header at byte 0")
        if not 0 <= data_id < 1 << bits:
            raise ValueError(f"the identifier 0x{data_id:X} does not fit {bits} bits")
        if offset < 0 or offset + shape.header_bytes > length:
            raise ValueError(f"the header of {shape.header_bytes} bytes does not fit {length} bytes")
        self.length = length
        """How long a frame must be."""
        self.counters = shape.counters
        self._crc = shape.crc
        self._crc_field = _moved(shape.crc_field, offset)
        self._counter_field = _moved(shape.counter_field, offset)
        self._fixed: list[tuple[Field, int]] = []
        if shape.length_field is not None:
            self._fixed.append((_moved(shape.length_field, offset), length))
        if shape.id_field is not None:
            self._fixed.append((_moved(shape.id_field, offset), data_id))
        if mode == DataIdMode.NIBBLE:
            self._fixed.append((_moved(_ID_NIBBLE, offset), data_id >> 8))
        low, high = data_id & 0xFF, data_id >> 8 & 0xFF
        self._before: Sequence[bytes] = (b"",)
        """What the CRC begins with, by the counter, again and again."""
        self._behind: Sequence[bytes] = (b"",)
        """What it ends with."""
        if profile in MODES:
            self._before = {
                DataIdMode.BOTH: (bytes((low, high)),),
                DataIdMode.ALTERNATING: (bytes((low,)), bytes((high,))),
                DataIdMode.LOW: (bytes((low,)),),
                DataIdMode.NIBBLE: (bytes((low, 0)),),
            }[mode]
        elif profile == "2":
            self._behind = [bytes((item,)) for item in data_id_list]
        elif profile == "5":
            self._behind = (bytes((low, high)),)
        elif profile == "6":
            self._behind = (bytes((high, low)),)

    @property
    def fields(self) -> Sequence[Field]:
        """All that is ours in a frame."""
        return self._crc_field, self._counter_field, *(field for field, _ in self._fixed)

    def counter(self, data: bytes) -> int:
        """Return the counter of a frame that is long enough."""
        return self._counter_field.get(data)

    def is_intact(self, data: bytes) -> bool:
        """Return whether CRC and header are right."""
        if len(data) < self.length:
            return False
        counter = self._counter_field.get(data)
        if counter >= self.counters:
            return False
        for field, value in self._fixed:
            if field.get(data) != value:
                return False
        return self._crc_field.get(data) == self._crc_of(data, counter)

    def seal(self, data: bytes, counter: int) -> bytes:
        """Return a frame with its header filled in; bytes behind the protected ones stay as they are.

        Raises:
            ValueError: the frame is too short.
        """
        if len(data) < self.length:
            raise ValueError(f"{len(data)} bytes, {self.length} are protected")
        frame = bytearray(data)
        self._counter_field.put(frame, counter)
        for field, value in self._fixed:
            field.put(frame, value)
        self._crc_field.put(frame, self._crc_of(bytes(frame), counter))
        return bytes(frame)

    def _crc_of(self, data: bytes, counter: int) -> int:
        before, behind, own = self._before, self._behind, self._crc_field
        return self._crc(
            before[counter % len(before)]
            + data[: own.first]
            + data[own.last + 1 : self.length]
            + behind[counter % len(behind)]
        )


def _moved(field: Field, by: int) -> Field:
    return Field(field.first + by, field.last + by, field.order, field.shift, field.mask)
