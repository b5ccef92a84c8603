"""What a payload changed."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.planner import Block
from fieldbus.modbus.registers import Order, RegisterPoint, RegisterType, Table
from fieldbus.model import Group, Kind, Point


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
