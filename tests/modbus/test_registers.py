"""Registers to values and back: each type whole, each order, each way to have no value."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import ConversionError
from fieldbus.modbus.registers import Order, RegisterPoint, RegisterType, Table
from fieldbus.model import Kind, Point
from fieldbus.scaling import Linear


def point(type_, kind=Kind.INT, minimum=None, maximum=None, **more):
    own = Point("d", "p", kind, minimum=minimum, maximum=maximum)
    return RegisterPoint(own, Table.HOLDING, 0, RegisterType(type_), **more)


# What 0x0102030405060708 (or its head) looks like on the wire in each order.
VECTORS = [
    ("uint16", "ABCD", "0102", 0x0102),
    ("uint16", "CDAB", "0102", 0x0102),
    ("uint16", "BADC", "0201", 0x0102),
    ("uint16", "DCBA", "0201", 0x0102),
    ("int16", "ABCD", "fffe", -2),
    ("int16", "BADC", "feff", -2),
    ("uint8", "ABCD", "ab12", 0x12),
    ("uint8", "BADC", "ab12", 0xAB),
    ("int8", "ABCD", "00ff", -1),
    ("uint24", "ABCD", "00010203", 0x010203),
    ("int24", "ABCD", "ffffffff", -1),
    ("int24", "CDAB", "fffeffff", -2),
    ("uint24", "DCBA", "03020100", 0x010203),
    ("uint32", "ABCD", "01020304", 0x01020304),
    ("uint32", "CDAB", "03040102", 0x01020304),
    ("uint32", "BADC", "02010403", 0x01020304),
    ("uint32", "DCBA", "04030201", 0x01020304),
    ("int32", "CDAB", "fffeffff", -2),
    ("uint48", "ABCD", "010203040506", 0x010203040506),
    ("uint48", "CDAB", "050603040102", 0x010203040506),
    ("uint48", "BADC", "020104030605", 0x010203040506),
    ("uint48", "DCBA", "060504030201", 0x010203040506),
    ("int48", "ABCD", "fffffffffffe", -2),
    ("uint64", "ABCD", "0102030405060708", 0x0102030405060708),
    ("uint64", "CDAB", "0708050603040102", 0x0102030405060708),
    ("uint64", "BADC", "0201040306050807", 0x0102030405060708),
    ("uint64", "DCBA", "0807060504030201", 0x0102030405060708),
    ("int64", "ABCD", "fffffffffffffffe", -2),
    ("float16", "ABCD", "3e00", 1.5),
    ("float16", "BADC", "003e", 1.5),
    ("float32", "ABCD", "42910000", 72.5),
    ("float32", "CDAB", "00004291", 72.5),
    ("float32", "BADC", "91420000", 72.5),
    ("float32", "DCBA", "00009142", 72.5),
    ("float64", "ABCD", "4052200000000000", 72.5),
    ("float64", "DCBA", "0000000000205240", 72.5),
    ("bcd16", "ABCD", "1234", 1234),
    ("bcd16", "BADC", "3412", 1234),
    ("bcd32", "ABCD", "12345678", 12345678),
    ("bcd32", "CDAB", "56781234", 12345678),
]


@pytest.mark.parametrize(("type_", "order", "wire", "value"), VECTORS)
def test_the_bytes_on_the_wire_are_the_value(type_, order, wire, value):
    place = point(type_, Kind.FLOAT if "float" in type_ else Kind.INT, order=Order(order))
    assert place.decode(bytes.fromhex(wire)) == (value, None)


@pytest.mark.parametrize(
    ("type_", "order", "wire", "value"),
    # A register that a value only shares is written whole: the other half becomes the extension.
    [row for row in VECTORS if row[0] not in ("uint8", "int8")],
)
def test_the_value_becomes_the_bytes_on_the_wire(type_, order, wire, value):
    assert point(type_, order=Order(order)).encode(value) == bytes.fromhex(wire)


def test_float64_with_swapped_words():
    wire = bytes.fromhex("0000000020004052")
    assert point("float64", Kind.FLOAT, order=Order.CDAB).decode(wire) == (72.5, None)


def test_types_that_own_their_registers_are_extended_when_written():
    assert point("int8").encode(-1) == b"\xff\xff"
    assert point("uint8").encode(255) == b"\x00\xff"
    assert point("int24").encode(-2) == b"\xff\xff\xff\xfe"


@pytest.mark.parametrize("wire", ["7fc00000", "7f800000", "ff800000", "7fa00001"])
def test_nan_and_infinity_are_no_values(wire):
    value, flaw = point("float32", Kind.FLOAT).decode(bytes.fromhex(wire))
    assert value is None
    assert (flaw.quality, flaw.reason) == ("bad", "not available")


@pytest.mark.parametrize(
    ("type_", "invalid", "wire"),
    [
        ("uint16", 0xFFFF, "ffff"),
        ("int16", 0x8000, "8000"),
        ("int32", 0x7FFFFFFF, "7fffffff"),
        ("int32", 0x80000000, "80000000"),
        ("int24", 0x800000, "00800000"),
        ("uint64", 2**64 - 1, "ffffffffffffffff"),
        ("float32", 0x7FC00000, "7fc00000"),
        ("float32", 0xFFFFFFFF, "ffffffff"),
        ("bcd16", 0xFFFF, "ffff"),
    ],
)
def test_a_sentinel_is_no_value(type_, invalid, wire):
    place = point(type_, invalid=frozenset({invalid}))
    assert place.decode(bytes.fromhex(wire))[1].reason == "not available"


def test_a_sentinel_is_looked_at_before_the_scale():
    place = point("int16", Kind.FLOAT, linear=Linear(0.1), invalid=frozenset({0x8000}))
    assert place.decode(b"\x80\x00")[0] is None
    assert place.decode(b"\x80\x01") == (-3276.7, None)


def test_digits_that_are_none_are_no_value():
    assert point("bcd16").decode(b"\x12\x3a")[1].reason == "conversion"


def test_outside_its_declared_range_a_value_is_uncertain():
    place = point("int16", Kind.FLOAT, minimum=0, maximum=100, linear=Linear(0.1))
    assert place.decode(struct.pack(">h", 1000)) == (100.0, None)
    value, flaw = place.decode(struct.pack(">h", 1001))
    assert value == 100.1
    assert (flaw.quality, flaw.reason) == ("uncertain", "out of range")


@pytest.mark.parametrize(("low", "count", "value"), [(0, 1, 1), (4, 4, 0xB), (12, 4, 0xD), (0, 16, 0xD0B1)])
def test_bits_are_counted_from_the_least_significant(low, count, value):
    place = point("uint16", low_bit=low, bit_count=count)
    assert place.decode(b"\xd0\xb1")[0] == value


def test_a_single_bit_is_a_bool():
    place = point("bool", Kind.BOOL, low_bit=15, bit_count=1)
    assert place.decode(b"\x80\x00") == (True, None)
    assert place.decode(b"\x7f\xff") == (False, None)
    swapped = point("bool", Kind.BOOL, low_bit=15, bit_count=1, order=Order.BADC)
    assert swapped.decode(b"\x00\x80") == (True, None)


@pytest.mark.parametrize(
    ("wire", "order", "text"),
    [
        (b"AB12\0\0\0\0", "ABCD", "AB12"),
        (b"AB12    ", "ABCD", "AB12"),
        (b"BA21\0\0\0\0", "BADC", "AB12"),
        ("Grün".encode() + b"\0\0\0", "ABCD", "Grün"),
        ("Grün".encode("latin-1") + b"\0\0\0\0", "ABCD", "Grün"),
        (b"A\0garbage", "ABCD", "A"),
    ],
)
def test_text_ends_at_nul_and_loses_its_padding(wire, order, text):
    place = point("string", Kind.STRING, length=4, order=Order(order))
    assert place.decode(wire[:8].ljust(8, b"\0")) == (text, None)


def test_text_is_padded_when_written_and_refused_when_too_long():
    place = point("string", Kind.STRING, length=2, order=Order.BADC)
    assert place.encode("ABC") == b"BA\0C"
    with pytest.raises(ConversionError):
        place.encode("ABCDE")
    with pytest.raises(ConversionError):
        place.encode(5)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("uint16", -1), ("uint16", 65536), ("int16", 32768), ("int16", -32769), ("uint8", 256),
        ("int24", 2**23), ("uint48", 2**48), ("uint64", 2**64), ("float16", 1e6), ("float32", 1e39),
        ("bcd16", 10000), ("bcd16", -1), ("uint16", math.nan), ("uint16", math.inf), ("uint16", "7"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused_never_wrapped(type_, value):
    with pytest.raises(ConversionError):
        point(type_).encode(value)


integers = st.sampled_from([item for item in RegisterType if item.value.lstrip("u").startswith("int")])


@given(type_=integers, order=st.sampled_from(Order), data=st.data())
def test_decoding_undoes_encoding_of_integers(type_, order, data):
    bits = type_.bits
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if type_.is_signed else (0, (1 << bits) - 1)
    value = data.draw(st.integers(low, high))
    place = point(type_, order=order)
    wire = place.encode(value)
    assert len(wire) == 2 * place.count
    assert place.decode(wire) == (value, None)


@given(order=st.sampled_from(Order), value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_decoding_undoes_encoding_of_floats(order, value):
    place = point("float32", Kind.FLOAT, order=order)
    assert place.decode(place.encode(value)) == (value, None)


@given(
    type_=st.sampled_from([item for item in RegisterType if item.bits > 1]),
    wire=st.binary(min_size=8, max_size=8),
)
def test_any_bytes_give_a_value_or_a_reason(type_, wire):
    place = point(type_, Kind.FLOAT if type_.is_float else Kind.INT)
    value, flaw = place.decode(wire[: 2 * place.count])
    assert (value is None) == (flaw is not None)
    if isinstance(value, float):
        assert math.isfinite(value)
