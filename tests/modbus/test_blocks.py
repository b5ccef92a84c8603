"""What a payload changed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.planner import Block
from fieldbus.modbus.registers import Order, RegisterPoint, RegisterType, Table
from fieldbus.model import Group, Kind, Point, bad


def point(address, type_="uint16", kind=Kind.INT, table=Table.HOLDING, **more):
    own = Point("d", f"p{address}", kind)
    return RegisterPoint(own, table, address, RegisterType(type_), **more)


def reader(*points, count=None):
    start = min(item.address for item in points)
    end = max(item.end for item in points)
    block = Block(1, points[0].table, start, count or end - start, 1.0, points)
    return BlockReader(block, Group("b", [item.point for item in points]))


def test_the_first_payload_is_all_new():
    subject = reader(point(10), point(12, "float32", Kind.FLOAT), point(15, "int16"))
    batch = subject.read(struct.pack(">Hxxfxxh", 7, 1.5, -3), 5, 0.5)
    assert (list(batch.values), list(batch.changed), batch.flaws) == ([7, 1.5, -3], [0, 1, 2], {})
    assert (batch.time_ns, batch.at_s) == (5, 0.5)


def test_an_equal_payload_shares_everything_and_looks_at_nothing():
    subject = reader(*(point(address) for address in range(125)))
    first = subject.read(bytes(250), 1, 1.0)
    subject._unpack = None  # any use would raise
    second = subject.read(bytes(250), 2, 2.0)
    assert second.values is first.values
    assert second.changed == ()
    assert second.time_ns == 2


def test_only_what_differs_is_converted_and_told():
    subject = reader(*(point(address) for address in range(4)))
    subject.read(struct.pack(">4H", 1, 2, 3, 4), 0, 0.0)
    calls = []
    subject._is_plain = False
    subject._convert = [lambda raw, index=index: (calls.append(index), (raw, None))[1] for index in range(4)]
    batch = subject.read(struct.pack(">4H", 1, 9, 3, 4), 0, 0.0)
    assert (list(batch.values), batch.changed, calls) == ([1, 9, 3, 4], [1], [1])


def test_a_batch_is_never_changed_afterwards():
    subject = reader(point(0), point(1, "uint16", invalid=frozenset({0xFFFF})))
    first = subject.read(struct.pack(">2H", 1, 0xFFFF), 0, 0.0)
    subject.read(struct.pack(">2H", 2, 5), 0, 0.0)
    assert (list(first.values), first.sample(1).reason) == ([1, None], "not available")


def test_flags_in_one_register_change_one_by_one():
    flags = [point(0, "bool", Kind.BOOL, low_bit=bit, bit_count=1) for bit in range(16)]
    subject = reader(*flags)
    subject.read(b"\x00\x00", 0, 0.0)
    batch = subject.read(b"\x80\x02", 0, 0.0)
    assert batch.changed == [1, 15]
    assert [index for index, value in enumerate(batch.values) if value] == [1, 15]


def test_points_that_overlap_are_each_right():
    subject = reader(point(0, "uint32"), point(0), point(1), point(1, order=Order.BADC), point(2, "uint32"))
    batch = subject.read(bytes.fromhex("0102030405060708"), 0, 0.0)
    assert list(batch.values) == [0x01020304, 0x0102, 0x0304, 0x0403, 0x05060708]


def test_after_a_failure_everything_is_new_again():
    subject = reader(point(0))
    subject.read(b"\0\1", 0, 0.0)
    subject.forget()
    assert list(subject.read(b"\0\1", 0, 0.0).changed) == [0]


def test_bits_come_least_significant_first():
    coils = [point(address, "bool", Kind.BOOL, Table.COIL) for address in (3, 4, 12)]
    batch = reader(*coils, count=10).read(bytes([0b0000_0001, 0b0000_0010]), 0, 0.0)
    assert list(batch.values) == [True, False, True]


layouts = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from(["uint16", "int32", "uint64", "float64", "uint48", "bcd16"])),
    min_size=1, max_size=20,
)  # fmt: skip


@given(layout=layouts, payloads=st.lists(st.binary(min_size=130, max_size=130), min_size=2, max_size=5))
def test_a_scan_says_what_the_points_say_one_by_one(layout, payloads):
    """Against an oracle: every point decoded on its own, changes found by comparing."""
    points = [
        point(address, type_, Kind.FLOAT if "float" in type_ else Kind.INT) for address, type_ in layout
    ]
    points.sort(key=lambda item: (item.address, item.end))
    block = Block(1, Table.HOLDING, 0, 65, 1.0, points)
    subject = BlockReader(block, Group("b", [item.point for item in points]))
    before = None
    for payload in payloads:
        expected = [item.decode(payload[2 * item.address : 2 * item.end]) for item in points]
        batch = subject.read(payload, 0, 0.0)
        assert [(batch.values[index], batch.flaws.get(index)) for index in range(len(points))] == expected
        if before is not None:
            assert sorted(batch.changed) == [i for i, new in enumerate(expected) if new != before[i]]
        before = expected


def scaled(address, factor, type_="int16", **more):
    return point(address, type_, Kind.FLOAT, factor=factor, **more)


def test_a_value_changes_with_its_factor():
    factor = point(2, "int16")
    subject = reader(scaled(0, factor), point(1), factor, scaled(3, factor))
    batch = subject.read(struct.pack(">hHhh", 3, 9, -1, 50), 0, 0.0)
    assert (list(batch.values), sorted(batch.changed)) == ([0.3, 9, -1, 5.0], [0, 1, 2, 3])
    batch = subject.read(struct.pack(">hHhh", 3, 9, -2, 50), 0, 0.0)
    assert (list(batch.values), sorted(batch.changed)) == ([0.03, 9, -2, 0.5], [0, 2, 3])
    batch = subject.read(struct.pack(">hHhh", 4, 9, -2, 50), 0, 0.0)
    assert (list(batch.values), batch.changed) == ([0.04, 9, -2, 0.5], [0])


def test_a_factor_and_a_value_that_make_up_for_each_other_change_nothing():
    factor = point(1, "int16")
    subject = reader(scaled(0, factor), factor)
    subject.read(struct.pack(">hh", 3, -1), 0, 0.0)
    assert subject.read(struct.pack(">hh", 30, -2), 0, 0.0).changed == [1]


def test_while_the_factor_is_no_value_nothing_that_it_scales_is_one():
    factor = point(1, "int16", invalid=frozenset({0x8000}))
    subject = reader(scaled(0, factor), factor)
    first = subject.read(struct.pack(">hh", 3, -1), 0, 0.0)
    second = subject.read(struct.pack(">hh", 3, -32768), 0, 0.0)
    assert (second.sample(0).reason, second.sample(1).reason) == ("not available", "not available")
    assert first.values[0] == 0.3
    third = subject.read(struct.pack(">hh", 3, 11), 0, 0.0)
    assert third.sample(0).reason == "conversion"
    fourth = subject.read(struct.pack(">hh", 3, -1), 0, 0.0)
    assert (list(fourth.values), fourth.flaws) == ([0.3, -1], {})


def test_a_factor_is_read_out_of_the_block_even_if_it_is_no_point_of_it():
    factor = point(1, "int16", order=Order.BADC)
    subject = reader(scaled(0, factor), count=2)
    assert list(subject.read(b"\0\3\xff\xff", 0, 0.0).values) == [0.3]
    assert subject.read(b"\0\3\xfe\xff", 0, 0.0).changed == [0]


@pytest.mark.parametrize(
    "factor", [point(5, "int16"), point(0, "int16", table=Table.INPUT)], ids=["address", "table"]
)
def test_a_factor_outside_the_block_is_an_error_at_once(factor):
    with pytest.raises(ValueError, match="outside the block holding"):
        reader(scaled(0, factor), count=5)


@given(payloads=st.lists(st.lists(st.integers(-12, 12), min_size=6, max_size=6), min_size=2, max_size=8))
def test_a_scan_of_scaled_points_says_what_the_points_say_one_by_one(payloads):
    factors = [point(0, "int16", invalid=frozenset({5})), point(4, "int16", order=Order.BADC)]
    points = [factors[0], scaled(1, factors[0]), scaled(2, factors[1]), point(3, "int16"), factors[1],
              scaled(5, factors[1], invalid=frozenset({7}))]  # fmt: skip
    subject = reader(*points)
    before = None
    for numbers in payloads:
        payload = struct.pack(">6h", *numbers)
        batch = subject.read(payload, 0, 0.0)
        expected = []
        for item in points:
            data = payload[2 * item.address : 2 * item.end]
            if item.factor is None:
                expected.append(item.decode(data))
                continue
            exponent, flaw = item.factor.decode(payload[2 * item.factor.address : 2 * item.factor.end])
            if flaw is not None:
                expected.append((None, bad("not available")))
            elif abs(exponent) > 10:
                expected.append((None, bad("conversion")))
            else:
                expected.append(item.decode(data, exponent))
        assert [(batch.values[index], batch.flaws.get(index)) for index in range(6)] == expected
        if before is not None:
            assert sorted(batch.changed) == [i for i, new in enumerate(expected) if new != before[i]]
        before = expected
