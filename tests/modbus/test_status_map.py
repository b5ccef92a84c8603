"""Where the gateway's own state lies: stable addresses, no point lost, no overlap."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fieldbus.gateway.link_types import LINK_TYPES
from fieldbus.modbus import status_map
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterType, Table
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.status_map import status_routes, status_rows
from fieldbus.model import Group, Kind, Point
from fieldbus.routing.policy import OnBad


def link(name: str, *totals: str) -> Group:
    points = [Point("sys", f"{name}.connected", Kind.BOOL)]
    return Group(name, [*points, *(Point("sys", f"{name}.{total}", Kind.INT, lowest=0) for total in totals)])


def device(name: str) -> Group:
    points = [Point("sys", f"{name}.online", Kind.BOOL), Point("sys", f"{name}.response_time_ms", Kind.FLOAT)]
    return Group(name, points)


def places(rows: list[status_map.StatusRow]) -> dict[str, tuple[str, int, str]]:
    return {row.source.name: (row.served.table, row.served.address, row.served.type) for row in rows}


def test_the_addresses_are_these_for_ever() -> None:
    rows = status_rows(
        "hmi_status", [link("plc", "reconnects", "requests"), link("can0", "rx_frames")], [device("press")]
    )
    assert places(rows) == {
        "plc.connected": (Table.DISCRETE, 0, RegisterType.BOOL),
        "plc.reconnects": (Table.INPUT, 0, RegisterType.UINT64),
        "plc.requests": (Table.INPUT, 4, RegisterType.UINT64),
        "can0.connected": (Table.DISCRETE, 200, RegisterType.BOOL),
        "can0.rx_frames": (Table.INPUT, 236, RegisterType.UINT64),
        "press.online": (Table.DISCRETE, 30000, RegisterType.BOOL),
        "press.response_time_ms": (Table.INPUT, 30000, RegisterType.FLOAT32),
    }
    assert {row.served.point.address for row in rows} == {f"hmi_status.{name}" for name in places(rows)}


def test_the_order_of_the_totals_is_this_for_ever() -> None:
    """Append to it; whoever changes a line of this list breaks panels in the field."""
    assert status_map.LINK_TOTALS[:23] == (
        "reconnects", "requests", "timeouts", "exceptions", "bad_responses", "scans_missed", "writes",
        "writes_failed", "writes_dropped", "rx_frames", "rx_dropped", "tx_frames", "tx_dropped",
        "conversions_failed", "sessions", "sessions_refused", "bad_frames", "published", "received", "rx_bad",
        "answers_dropped", "points_refused", "load_percent",
    )  # fmt: skip
    assert status_map.LINK_FLAGS[:1] == ("connected",)
    assert status_map.DEVICE_FLAGS[:1] == ("online",)
    assert status_map.DEVICE_MEASURES[:1] == ("response_time_ms",)


def test_a_point_that_is_added_moves_no_other() -> None:
    before = status_rows("s", [link("a", "requests"), link("b", "requests")], [device("d")])
    after = status_rows("s", [link("a", "reconnects", "requests", "rx_bad"), link("b", "requests"), link("c")],
                        [device("d"), device("e")])  # fmt: skip
    assert places(before).items() <= places(after).items()


@pytest.mark.parametrize(("links", "devices"), [(150, 3553), (200, 4000)])
def test_no_two_points_share_a_register_and_all_fit(links: int, devices: int) -> None:
    rows = status_rows(
        "s",
        [link(f"l{n}", *status_map.LINK_TOTALS) for n in range(links)],
        [device(f"d{n}") for n in range(devices)],
    )
    assert len(rows) == 150 * (1 + len(status_map.LINK_TOTALS)) + 3553 * 2
    for table in (Table.DISCRETE, Table.INPUT):
        spans = sorted((row.served.address, row.served.end) for row in rows if row.served.table is table)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
        assert spans[-1][1] <= 0x10000


def test_blocks_have_room_for_what_they_hold() -> None:
    assert len(status_map.LINK_TOTALS) * 4 <= status_map.LINK_BLOCK
    assert len(status_map.DEVICE_MEASURES) * 2 <= status_map.DEVICE_BLOCK


def test_what_has_no_place_is_left_out() -> None:
    odd = Group("x", [Point("sys", "x.new_total", Kind.INT), Point("sys", "x.state", Kind.STRING)])
    assert status_rows("s", [odd], []) == []


def test_a_route_tells_masters_also_what_is_not_known() -> None:
    [row, *_] = status_rows("hmi_status", [link("plc")], [])
    [route] = status_routes([row])
    assert (route.source, route.target) == ("sys.plc.connected", "hmi_status.plc.connected")
    assert route.policy.on_bad is OnBad.SEND


def test_every_total_of_a_server_has_a_place() -> None:
    point = PointSettings(table="coil", address=0).build("d", "p", is_served=True)
    server = ModbusServerLink("s", "127.0.0.1", 0, [ServedUnit("d", 1, [point])])
    assert set(server.counters) <= set(status_map.LINK_TOTALS)
    assert "modbus-server" in LINK_TYPES
