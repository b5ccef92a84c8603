"""The gateway's own state as a register map: which of its `sys.*` points lies where. Pure.

Layout, in discrete inputs (what is true or false) and in input registers (numbers) alike:

==================  ========================================================================
200 × n             link n, in the order of the configuration, counted from 0
30000 + 10 × n      device n of those that can be lost, in the same order
==================  ========================================================================

In a link's block: discrete input 0 is ``connected``; a total takes four registers (uint64, most significant
word first) at the place that `LINK_TOTALS` gives its name, the same for every type of link; what is measured,
or may be unknown, takes the first two of such a place (float32). In a device's block: discrete input 0 is
``online``; ``response_time_ms`` is a float32 in the registers 0 and 1.

Rules:

* A place is never given to anything else: what is added later comes behind, and moves nothing. A device that
  is added in the middle of the configuration moves those behind it: add it at the end.
* A total does not wrap and is not clamped. Who can read no more than 32 bits reads the last two of its four
  registers: the total modulo 2³².
* What is not known now (the response time of a device that is away) reads as NaN; what no point has reads as
  0, so that one request can read over all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fieldbus.modbus.registers import OnBad, RegisterPoint, RegisterType, Table
from fieldbus.model import Access, Group, Kind, Point
from fieldbus.routing.policy import OnBad as RouteOnBad
from fieldbus.routing.policy import Policy
from fieldbus.routing.table import Route

LINK_BLOCK = 200
DEVICES_FROM = 30000
DEVICE_BLOCK = 10
MOST_LINKS = DEVICES_FROM // LINK_BLOCK
MOST_DEVICES = (0x10000 - DEVICES_FROM) // DEVICE_BLOCK

LINK_TOTALS = (
    "reconnects", "requests", "timeouts", "exceptions", "bad_responses", "scans_missed", "writes",
    "writes_failed", "writes_dropped", "rx_frames", "rx_dropped", "tx_frames", "tx_dropped",
    "conversions_failed", "sessions", "sessions_refused", "bad_frames", "published", "received", "rx_bad",
    "answers_dropped", "points_refused", "load_percent", "bus_state", "bus_load_percent", "tx_error_count",
    "rx_error_count", "error_frames", "bus_offs", "restarts", "tx_delayed", "rx_not_believed",
    "j1939_messages", "j1939_broken", "rx_missing", "rx_conflated",
)  # fmt: skip
"""Totals of links in the order of their places, four registers each. Append, never insert."""
MAY_BE_UNKNOWN = frozenset({"bus_state", "tx_error_count", "rx_error_count"})
"""Whole numbers that a link may not know; they are float32, as what is measured."""
LINK_FLAGS = ("connected",)
DEVICE_FLAGS = ("online",)
DEVICE_MEASURES = ("response_time_ms",)
"""Measures of devices in the order of their places, two registers each."""


class StatusRow(NamedTuple):
    """One point of the map, and the gateway's own point that it shows."""

    source: Point
    served: RegisterPoint


def status_rows(device: str, links: Sequence[Group], devices: Sequence[Group]) -> list[StatusRow]:
    """Return the map.

    Args:
        device: the name of the served device that the points belong to.
        links: the system points of each link, in the order of the configuration.
        devices: those of each device that can be lost.
    """
    rows: list[StatusRow] = []
    for index, group in enumerate(links[:MOST_LINKS]):
        rows += _block(device, group, index * LINK_BLOCK, LINK_FLAGS, LINK_TOTALS, 4)
    for index, group in enumerate(devices[:MOST_DEVICES]):
        base = DEVICES_FROM + index * DEVICE_BLOCK
        rows += _block(device, group, base, DEVICE_FLAGS, DEVICE_MEASURES, 2)
    return rows


def status_routes(rows: Iterable[StatusRow]) -> list[Route]:
    """Return the routes that keep the map up to date."""
    policy = Policy(on_bad=RouteOnBad.SEND)
    return [Route(row.source.address, row.served.point.address, policy) for row in rows]


def _block(
    device: str, group: Group, base: int, flags: Sequence[str], numbers: Sequence[str], size: int
) -> list[StatusRow]:
    rows = []
    for source in group.points:
        name = source.name.rsplit(".", 1)[-1]
        if source.kind is Kind.BOOL and name in flags:
            address, table, type_ = base + flags.index(name), Table.DISCRETE, RegisterType.BOOL
        elif source.kind.is_number and name in numbers:
            table = Table.INPUT
            is_long = size >= RegisterType.UINT64.bits // 16
            is_measure = source.kind is Kind.FLOAT or name in MAY_BE_UNKNOWN or not is_long
            type_ = RegisterType.FLOAT32 if is_measure else RegisterType.UINT64
            address = base + numbers.index(name) * size
        else:
            continue  # it has no place yet
        point = Point(
            device,
            source.name,
            source.kind,
            Access.WRITE,
            unit=source.unit,
            lowest=source.lowest,
            description=source.description,
            carries_quality=True,
        )
        on_bad = OnBad("nan") if type_ is RegisterType.FLOAT32 else OnBad()
        rows.append(StatusRow(source, RegisterPoint(point, table, address, type_, on_bad=on_bad)))
    return rows
