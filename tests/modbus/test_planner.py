"""Points to requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.modbus.planner import MAX_BITS, MAX_REGISTERS, Limits, plan
from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.model import Kind, Point


def point(address, type_="uint16", table=Table.HOLDING, scan_s=None, length=0):
    own = Point("d", f"p{address}", Kind.INT)
    return RegisterPoint(own, table, address, RegisterType(type_), length=length, scan_s=scan_s)


def spans(points, **limits):
    return [(block.address, block.count) for block in plan(points, 1, 1.0, Limits(**limits))]


def test_neighbours_share_a_request():
    assert spans([point(0), point(1), point(2, "float32")]) == [(0, 4)]


def test_gaps_are_read_over_up_to_the_limit():
    assert spans([point(0), point(17)], max_gap=16) == [(0, 18)]
    assert spans([point(0), point(18)], max_gap=16) == [(0, 1), (18, 1)]
    assert spans([point(0), point(2)], max_gap=0) == [(0, 1), (2, 1)]


def test_a_request_has_at_most_125_registers_and_tears_no_point():
    points = [point(address, "float32") for address in range(0, 250, 2)]
    assert spans(points) == [(0, 124), (124, 124), (248, 2)]


def test_a_device_can_have_smaller_limits():
    assert spans([point(address) for address in range(25)], max_registers=10) == [(0, 10), (10, 10), (20, 5)]


def test_bits_are_read_2000_at_a_time():
    coils = [point(address, "bool", Table.COIL) for address in range(2001)]
    assert spans(coils) == [(0, 2000), (2000, 1)]


def test_tables_and_periods_do_not_mix():
    points = [point(0), point(1, scan_s=5.0), point(2), point(0, table=Table.INPUT)]
    blocks = plan(points, 7, 1.0, Limits())
    assert [(block.table, block.period_s, block.address, block.count, block.unit_id) for block in blocks] == [
        ("holding", 1.0, 0, 3, 7),
        ("input", 1.0, 0, 1, 7),
        ("holding", 5.0, 1, 1, 7),
    ]


def test_points_that_share_registers_share_the_request():
    assert spans([point(4), point(4), point(4, "uint32")]) == [(4, 2)]


@pytest.mark.parametrize("limits", [{"max_registers": 126}, {"max_registers": 0}, {"max_bits": 2001}])
def test_limits_beyond_the_protocol_cannot_be_made(limits):
    with pytest.raises(ValueError, match="a request has"):
        Limits(**limits)


types = st.sampled_from(["uint16", "float32", "uint48", "float64", "string"])


@given(
    places=st.lists(st.tuples(st.integers(0, 400), types, st.booleans()), min_size=1, max_size=60),
    max_registers=st.integers(20, 125),
    max_gap=st.integers(0, 30),
)
def test_every_point_is_whole_in_exactly_one_legal_request(places, max_registers, max_gap):
    points = [
        point(address, "bool" if is_bit else type_, Table.COIL if is_bit else Table.HOLDING,
              length=20 if type_ == "string" else 0)
        for address, type_, is_bit in places
    ]  # fmt: skip
    blocks = plan(points, 1, 1.0, Limits(max_registers=max_registers, max_gap=max_gap))
    found = [member for block in blocks for member in block.points]
    assert sorted(map(id, found)) == sorted(map(id, points))
    for block in blocks:
        assert 1 <= block.count <= (MAX_BITS if block.table.is_bits else min(MAX_REGISTERS, max_registers))
        assert all(
            block.address <= item.address and item.end <= block.address + block.count for item in block.points
        )
        assert {item.table for item in block.points} == {block.table}
        covered = {address for item in block.points for address in range(item.address, item.end)}
        unused = sorted(set(range(block.address, block.address + block.count)) - covered)
        limit = max_gap * 16 if block.table.is_bits else max_gap
        run = 0
        for before, address in zip([None, *unused], unused, strict=False):
            run = run + 1 if before == address - 1 else 1
            assert run <= limit
