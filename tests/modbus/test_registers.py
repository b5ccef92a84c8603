"""Registers to values and back: each type whole, each order, each way to have no value."""

import datetime
import math
import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import ConversionError
from fieldbus.modbus.converters import Epoch
from fieldbus.modbus.formats.text import Chars, Pad
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


@given(
    type_=st.sampled_from([RegisterType.BCD16, RegisterType.BCD32]),
    order=st.sampled_from(Order),
    data=st.data(),
)
def test_decoding_undoes_encoding_of_decimal_digits(type_, order, data):
    value = data.draw(st.integers(0, 10 ** (type_.bits // 4) - 1))
    place = point(type_, order=order)
    assert place.decode(place.encode(value)) == (value, None)


@pytest.mark.parametrize(("type_", "width"), [("float16", 16), ("float64", 64)])
@given(order=st.sampled_from(Order), data=st.data())
def test_decoding_undoes_encoding_of_short_and_long_floats(type_, width, order, data):
    value = data.draw(st.floats(width=width, allow_nan=False, allow_infinity=False))
    place = point(type_, Kind.FLOAT, order=order)
    assert place.decode(place.encode(value)) == (value, None)


@given(
    type_=integers,
    order=st.sampled_from(Order),
    scale=st.sampled_from([0.1, 0.001, 0.25, 5, -0.5]),
    data=st.data(),
)
def test_a_scaled_value_becomes_the_raw_value_that_it_came_from(type_, order, scale, data):
    raw = data.draw(st.integers(0, (1 << min(type_.bits, 40) - 1) - 1))
    plain, place = point(type_, order=order), point(type_, Kind.FLOAT, order=order, linear=Linear(scale))
    wire = plain.encode(raw)
    assert place.encode(place.decode(wire)[0]) == wire


@given(type_=integers, order=st.sampled_from(Order), data=st.data())
def test_what_a_point_calls_invalid_is_never_written(type_, order, data):
    bits = type_.bits
    wire = data.draw(st.integers(0, (1 << bits) - 1))
    place = point(type_, order=order, invalid=frozenset({wire}))
    value = wire - (1 << bits) if type_.is_signed and wire >> bits - 1 else wire
    with pytest.raises(ConversionError, match="there is no value"):
        place.encode(value)
    other = value - 1 if value > 0 else value + 1
    assert place.decode(place.encode(other)) == (other, None)


@pytest.mark.parametrize(
    ("type_", "invalid", "value"),
    [
        ("float32", 0xC61C4000, -10000.0),
        ("bcd16", 0x9999, 9999),
        ("int16", 0x8000, -32768),
        ("uint16", 0, 0.2),
    ],
)
def test_what_reads_as_no_value_is_refused_by_each_type(type_, invalid, value):
    place = point(type_, Kind.FLOAT if "float" in type_ else Kind.INT, invalid=frozenset({invalid}))
    with pytest.raises(ConversionError, match="there is no value"):
        place.encode(value)


# --- bits


@given(
    type_=integers,
    order=st.sampled_from(Order),
    ends=st.tuples(st.integers(0, 63), st.integers(0, 63)),
    data=st.data(),
)
def test_a_range_of_bits_is_written_beside_the_others(type_, order, ends, data):
    """Merged under `bit_mask`, as the link does it, the own bits are the value and the others stay."""
    low, high = sorted(end % type_.bits for end in ends)
    count = high - low + 1
    whole, own = point(type_, order=order), point(type_, order=order, low_bit=low, bit_count=count)
    before = data.draw(st.binary(min_size=2 * whole.count, max_size=2 * whole.count))
    value = data.draw(st.integers(0, (1 << count) - 1))
    wire = own.encode(value)
    mask = own.bit_mask
    assert int.from_bytes(wire, "big") & ~mask == 0
    merged = int.from_bytes(before, "big") & ~mask | int.from_bytes(wire, "big")
    after = merged.to_bytes(2 * whole.count, "big")
    assert own.decode(after) == (value, None)
    unsigned = (1 << type_.bits) - 1
    others = unsigned & ~((1 << count) - 1 << low)
    assert whole.decode(after)[0] & others == whole.decode(before)[0] & others


@pytest.mark.parametrize(
    ("type_", "order", "low", "count", "mask"),
    [
        ("uint16", "ABCD", 0, 1, "0001"),
        ("uint16", "BADC", 0, 1, "0100"),
        ("uint32", "ABCD", 16, 4, "000f0000"),
        ("uint32", "CDAB", 16, 4, "0000000f"),
        ("uint32", "DCBA", 16, 4, "00000f00"),
        ("uint64", "CDAB", 63, 1, "0000000000008000"),
        ("int24", "ABCD", 20, 4, "00f00000"),
    ],
)
def test_the_mask_is_where_the_bits_are_on_the_wire(type_, order, low, count, mask):
    place = point(type_, order=Order(order), low_bit=low, bit_count=count)
    assert place.bit_mask == int(mask, 16)
    assert place.encode((1 << count) - 1).hex() == mask


@pytest.mark.parametrize("value", [-1, 16, 3.6e9, math.nan, "1"])
def test_bits_take_no_more_than_they_have(value):
    with pytest.raises(ConversionError):
        point("int16", low_bit=4, bit_count=4).encode(value)


@pytest.mark.parametrize("value", [2, -1, 0.4, "on"])
def test_a_bool_is_0_or_1_and_nothing_near_it(value):
    with pytest.raises(ConversionError):
        point("bool", Kind.BOOL, low_bit=3, bit_count=1).encode(value)


def test_a_sentinel_is_of_the_whole_register_also_for_its_bits():
    place = point("uint16", Kind.BOOL, low_bit=3, bit_count=1, invalid=frozenset({0xFFFF}))
    assert place.decode(b"\xff\xff")[1].reason == "not available"
    assert place.decode(b"\xff\xfe") == (True, None)
    assert place.encode(value=True) == b"\0\x08"


# --- powers of ten out of another register


def scaled(type_="int16", factor_type="int16", factor_invalid=(), **more):
    factor = point(factor_type, invalid=frozenset(factor_invalid))
    return point(type_, Kind.FLOAT, factor=factor, **more)


@given(raw=st.integers(-32768, 32767), exponent=st.integers(-10, 10), order=st.sampled_from(Order))
def test_a_power_of_ten_scales_exactly_in_both_directions(raw, exponent, order):
    place = scaled(order=order)
    wire = point("int16", order=order).encode(raw)
    value, flaw = place.decode(wire, exponent)
    assert flaw is None
    assert isinstance(value, float)
    assert value == float(Fraction(raw) * Fraction(10) ** exponent)
    assert repr(value) == repr(float(f"{raw}e{exponent}"))
    assert place.encode(value, exponent) == wire


def test_a_power_of_ten_comes_on_top_of_scale_and_offset():
    place = scaled(linear=Linear(0.1, 5))
    assert place.decode(b"\0\3", -1) == (5.03, None)
    assert place.encode(5.03, -1) == b"\0\3"


@pytest.mark.parametrize(
    ("raw_factor", "value", "reason"),
    [
        (-1, 0.3, None),
        (10, 3e10, None),
        (-11, None, "conversion"),
        (11, None, "conversion"),
        (-32768, None, "not available"),
    ],
)
def test_what_is_no_power_of_ten_leaves_no_value(raw_factor, value, reason):
    got, flaw = scaled(factor_invalid=[0x8000]).scaled_decoder()(3, raw_factor)
    assert got == value
    assert (flaw and flaw.reason) == reason


def test_a_value_with_a_doubtful_factor_is_doubtful():
    factor = point("int16", minimum=-3, maximum=3)
    value, flaw = point("int16", Kind.FLOAT, factor=factor).scaled_decoder()(3, -4)
    assert (value, flaw.quality) == (0.0003, "uncertain")


def test_a_scaled_value_has_its_own_sentinel_and_range():
    place = scaled(invalid=frozenset({0x8000}), maximum=100)
    decode = place.scaled_decoder()
    assert decode(-32768, -1)[1].reason == "not available"
    assert decode(1001, -1)[1].reason == "out of range"
    assert decode(1000, -1) == (100.0, None)
    with pytest.raises(ConversionError, match="there is no value"):
        place.encode(-3276.8, -1)


def test_without_its_factor_a_scaled_point_is_neither_read_nor_written():
    assert scaled().decode(b"\0\1")[1].reason == "not available"
    with pytest.raises(ConversionError, match="no scale while"):
        scaled().encode(1.0)


@pytest.mark.parametrize("exponent", [-11, 11, -32768, 32767])
def test_no_other_power_of_ten_is_used(exponent):
    assert scaled().decode(b"\0\1", exponent)[1].reason == "conversion"
    with pytest.raises(ConversionError, match="is not a power of ten"):
        scaled().encode(1.0, exponent)


def test_what_a_power_of_ten_has_no_room_for_is_refused():
    with pytest.raises(ConversionError, match="does not fit"):
        scaled().encode(5000, -1)
    assert scaled().encode(5000, 0) == (5000).to_bytes(2, "big")
    assert scaled().encode(0.26, -1) == b"\0\3", "rounded to the nearest step"


# --- text


@pytest.mark.parametrize(
    ("chars", "order", "pad", "wire"),
    [
        ("both", "ABCD", "nul", "41 42 43 00 00 00"),
        ("both", "BADC", "nul", "42 41 00 43 00 00"),
        ("both", "CDAB", "nul", "00 00 43 00 41 42"),
        ("both", "DCBA", "nul", "00 00 00 43 42 41"),
        ("both", "ABCD", "space", "41 42 43 20 20 20"),
        ("high", "ABCD", "nul", "41 00 42 00 43 00"),
        ("low", "ABCD", "nul", "00 41 00 42 00 43"),
        ("high", "BADC", "nul", "00 41 00 42 00 43"),
        ("low", "CDAB", "nul", "00 43 00 42 00 41"),
    ],
)
def test_text_lies_where_order_and_chars_say(chars, order, pad, wire):
    place = point("string", Kind.STRING, length=3, order=Order(order), chars=Chars(chars), pad=Pad(pad))
    assert place.encode("ABC").hex(" ") == wire
    assert place.decode(bytes.fromhex(wire)) == ("ABC", None)


def test_one_character_a_register_has_half_the_room():
    place = point("string", Kind.STRING, length=3, chars=Chars.LOW, pad=Pad.SPACE)
    assert place.encode("A").hex(" ") == "00 41 00 20 00 20"
    with pytest.raises(ConversionError, match="4 bytes does not fit the 3"):
        place.encode("ABCD")


@pytest.mark.parametrize(("wire", "text"), [("00000000", ""), ("20202020", ""), ("41200000", "A")])
def test_a_text_of_nothing_is_the_empty_text(wire, text):
    assert point("string", Kind.STRING, length=2).decode(bytes.fromhex(wire)) == (text, None)


def test_registers_that_a_device_does_not_have_are_no_text():
    assert point("string", Kind.STRING, length=2).decode(b"\xff" * 4)[1].reason == "not available"
    place = point("string", Kind.STRING, length=2, chars=Chars.LOW)
    assert place.decode(b"\0\xff\0\xff")[1].reason == "not available"


def test_a_text_that_would_be_cut_at_its_own_nul_is_refused():
    with pytest.raises(ConversionError):
        point("string", Kind.STRING, length=2).encode("A\0B")


@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10).map(lambda text: text.rstrip(" ")),
    order=st.sampled_from(Order), chars=st.sampled_from(Chars), pad=st.sampled_from(Pad),
)  # fmt: skip
def test_decoding_undoes_encoding_of_text(text, order, chars, pad):
    place = point("string", Kind.STRING, length=40, order=order, chars=chars, pad=pad)
    assert place.decode(place.encode(text)) == (text, None)


# --- times

MOMENT = "2026-11-23T14:02:11Z"
MOMENT_S = 1795442531


@pytest.mark.parametrize(
    ("epoch", "type_", "raw", "text"),
    [
        ("unix", "uint32", MOMENT_S, MOMENT),
        ("unix", "uint32", 0, "1970-01-01T00:00:00Z"),
        ("unix", "int32", -1, "1969-12-31T23:59:59Z"),
        ("unix", "uint32", 2**32 - 1, "2106-02-07T06:28:15Z"),
        ("unix_ms", "uint48", MOMENT_S * 1000 + 7, "2026-11-23T14:02:11.007Z"),
        ("unix_ms", "int64", 0, "1970-01-01T00:00:00.000Z"),
        ("y2000", "uint32", 0, "2000-01-01T00:00:00Z"),
        ("y2000", "uint32", MOMENT_S - 946_684_800, MOMENT),
    ],
)
def test_an_integer_can_be_a_time(epoch, type_, raw, text):
    plain, place = point(type_), point(type_, Kind.STRING, epoch=Epoch(epoch))
    assert place.decode(plain.encode(raw)) == (text, None)
    assert place.encode(text) == plain.encode(raw)


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("2026-11-23T15:02:11+01:00", MOMENT_S),
        ("2026-11-23 14:02:11Z", MOMENT_S),
        ("2026-11-23T14:02:11.4Z", MOMENT_S),
        ("2026-11-23T14:02:11.5Z", MOMENT_S + 1),
        ("20261123T140211Z", MOMENT_S),
    ],
)
def test_a_time_may_be_written_as_iso_8601_has_it(text, raw):
    assert point("uint32", Kind.STRING, epoch=Epoch.UNIX).encode(text) == raw.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("2026-11-23T14:02:11", "has no zone"),
        ("2026-11-23", "has no zone"),
        ("yesterday", "is not a time"),
        ("2026-02-30T00:00:00Z", "is not a time"),
        (MOMENT_S, "is not a time"),
        ("1969-12-31T23:59:59Z", "does not fit uint32"),
        ("2106-02-07T06:28:16Z", "does not fit uint32"),
        ("1970-01-01T00:00:00Z", "there is no value"),
    ],
)
def test_what_is_no_time_or_has_no_room_is_refused(value, words):
    place = point("uint32", Kind.STRING, epoch=Epoch.UNIX, invalid=frozenset({0}))
    with pytest.raises(ConversionError, match=words):
        place.encode(value)


def test_a_time_has_sentinels_and_an_end():
    place = point("uint64", Kind.STRING, epoch=Epoch.UNIX, invalid=frozenset({0}))
    assert place.decode(bytes(8))[1].reason == "not available"
    assert place.decode(b"\x7f" * 8)[1].reason == "conversion"


@given(
    moment=st.datetimes(timezones=st.just(datetime.UTC)),
    epoch=st.sampled_from(Epoch),
    order=st.sampled_from(Order),
)
def test_decoding_undoes_encoding_of_times(moment, epoch, order):
    precision = "milliseconds" if epoch is Epoch.UNIX_MS else "seconds"
    text = moment.replace(tzinfo=None).isoformat(timespec=precision) + "Z"
    place = point("int64", Kind.STRING, epoch=epoch, order=order)
    assert place.decode(place.encode(text)) == (text, None)


@given(wire=st.binary(min_size=8, max_size=8), epoch=st.sampled_from(Epoch))
def test_any_bytes_give_a_time_or_a_reason(wire, epoch):
    value, flaw = point("int64", Kind.STRING, epoch=epoch).decode(wire)
    assert (value is None) == (flaw is not None)
