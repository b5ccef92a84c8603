"""The device that a Modbus server has when its `status_unit` is set: the gateway's own state, as registers.

Nobody writes a route for it: the points, their addresses (`fieldbus.modbus.status_map`) and the routes from
the `sys.*` points come with the key. To everything else (`plan`, `watch`, the routing table) it is a device
like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fieldbus.gateway.link_types import Description
from fieldbus.gateway.system import Status
from fieldbus.modbus.server_settings import ServedDeviceSettings, ServerLinkSettings
from fieldbus.modbus.status_map import status_routes, status_rows
from fieldbus.routing.table import Route
from fieldbus.settings import LinkSettings


class StatusDevice(NamedTuple):
    """What a link with a `status_unit` gets."""

    name: str
    description: Description
    routes: list[Route]


def status_units(links: Mapping[str, LinkSettings]) -> dict[str, int]:
    """Return the links that have a status map, and its unit id."""
    return {
        name: settings.status_unit
        for name, settings in links.items()
        if isinstance(settings, ServerLinkSettings) and settings.status_unit is not None
    }


def status_device(
    link: str, unit_id: int, links: Iterable[Status], devices: Iterable[Status]
) -> StatusDevice:
    """Return the device and its routes."""
    name = f"{link}_status"
    rows = status_rows(name, [item.group for item in links], [item.group for item in devices])
    parts = [row.served for row in rows]
    # Zeros between the points: a panel reads all of it in a few long requests.
    settings = ServedDeviceSettings(link=link, unit_id=unit_id, gaps="zero")
    return StatusDevice(
        name, Description(settings, [item.point for item in parts], parts), status_routes(rows)
    )
