"""Points to requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.modbus.planner import MAX_BITS, MAX_REGISTERS, Cost, Limits, plan
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
    found = spans(points)
    assert len(found) == 3
    assert all(count <= 125 and count % 2 == 0 and address % 2 == 0 for address, count in found)
    assert sum(count for _, count in found) == 250


def test_a_device_can_have_smaller_limits():
    found = spans([point(address) for address in range(25)], max_registers=10)
    assert len(found) == 3
    assert all(count <= 10 for _, count in found)


def test_bits_are_read_2000_at_a_time():
    coils = [point(address, "bool", Table.COIL) for address in range(2001)]
    assert sorted(count for _, count in spans(coils)) == [1, 2000]


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


def cost_of(cover, request_s, address_s):
    return sum(request_s + address_s * (end - start) for start, end in cover)


def covers(points, size, walls):
    """All ways to read points, in order of address, by legal requests."""
    if not points:
        yield []
        return
    for taken in range(1, len(points) + 1):
        start, end = points[0].address, max(item.end for item in points[:taken])
        if end - start > size or any(start < last and first < end for first, last in walls):
            continue
        for rest in covers(points[taken:], size, walls):
            yield [(start, end), *rest]


@given(
    addresses=st.sets(st.integers(0, 60), min_size=1, max_size=9),
    size=st.integers(2, 40),
    request_ms=st.integers(1, 30),
    walls=st.lists(st.integers(0, 60), max_size=3),
)
def test_no_other_cover_is_cheaper(addresses, size, request_ms, walls):
    points = [point(address * 2, "uint16") for address in sorted(addresses)]
    barriers = sorted((wall * 2 + 1, wall * 2 + 1 + wall % 2) for wall in walls)
    cost = Cost(request_ms / 1000, 0.0005)
    blocks = plan(points, 1, 1.0, Limits(max_registers=size), cost, {Table.HOLDING: barriers})
    mine = [(block.address, block.address + block.count) for block in blocks]
    best = min(cost_of(cover, cost.request_s, 0.001) for cover in covers(points, size, barriers))
    assert cost_of(mine, cost.request_s, 0.001) == pytest.approx(best)
    assert not any(start < last and first < end for start, end in mine for first, last in barriers)


def test_a_value_is_never_parted_from_its_factor():
    factor = point(100, "int16")
    values = [RegisterPoint(Point("d", f"v{n}", Kind.FLOAT), Table.HOLDING, n, RegisterType.INT16, factor=factor)
              for n in (0, 40, 90)]  # fmt: skip
    blocks = plan([*values, factor, point(130)], 1, 1.0, Limits(max_registers=110), Cost(0.0001, 0.1))
    assert [(block.address, block.count) for block in blocks] == [(0, 101), (130, 1)]


def test_a_factor_that_many_share_is_read_with_each_of_them() -> None:
    factor = point(100, "int16")
    values = [RegisterPoint(Point("d", f"v{n}", Kind.FLOAT), Table.HOLDING, n, RegisterType.INT16, factor=factor)
              for n in (0, 200)]  # fmt: skip
    blocks = plan([*values, factor], 1, 1.0, Limits())
    assert sorted((block.address, block.count) for block in blocks) == [(0, 101), (100, 101)]
    assert sum(len(block.points) for block in blocks) == 3


def test_where_bytes_are_dear_gaps_are_asked_around():
    points = [point(0), point(10)]
    serial = Cost(request_s=0.03, byte_s=0.001)
    assert [(block.address, block.count) for block in plan(points, 1, 1.0, Limits(), serial)] == [(0, 11)]
    slow = Cost(request_s=0.01, byte_s=0.001)
    assert len(plan(points, 1, 1.0, Limits(), slow)) == 2


def test_a_seam_parts_what_is_beside_each_other():
    points = [point(address) for address in range(10)]
    blocks = plan(points, 1, 1.0, Limits(), barriers={Table.HOLDING: [(4, 4)]})
    assert [(block.address, block.count) for block in blocks] == [(0, 4), (4, 6)]
