"""The configuration of what polled and served Modbus devices have alike: where their points come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import Field, field_validator

from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.register_settings import checked_timezone
from fieldbus.modbus.register_types import Table
from fieldbus.settings import DeviceSettings, FileName, Settings

Offset = Annotated[int, Field(ge=-65535, le=65535)]
Fault = Callable[[str, str, str | None], None]
"""Takes the name of a point, a sentence, and a hint."""


class BaseSettings(Settings):
    """An offset for each table."""

    coil: Offset = 0
    discrete: Offset = 0
    input: Offset = 0
    holding: Offset = 0


class MappedDeviceSettings(DeviceSettings):
    """A device whose points stand in its configuration or in a map."""

    map: FileName | None = Field(None, description="A file with its points, YAML or CSV.")
    points: Mapping[str, PointSettings] = {}
    base: Offset | BaseSettings = Field(
        0,
        description="Added to the address of each point; a number for all tables, or one for each: "
        "{holding: 100, input: 0}.",
    )

    timezone: str | None = Field(
        None,
        description="The zone that the clocks of the device show: Europe/Berlin, or +01:00 for clocks "
        "without summer time; by default UTC.",
    )

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str | None) -> str | None:
        return checked_timezone(timezone)

    def offset_of(self, table: Table) -> int:
        """Return what is added to the addresses of a table; files and queues stay where they are."""
        if not table.is_numbered:
            return 0
        return self.base if isinstance(self.base, int) else int(getattr(self.base, table.value))

    def own_points(self, points: Mapping[str, PointSettings], fault: Fault) -> Mapping[str, PointSettings]:
        """Return points as this device has them: in its time zone, and moved by its `base`.

        Args:
            points: its own, and those of its map.
            fault: is told of those that the `base` moves out of the table.
        """
        if self.timezone is not None:
            points = {name: item.in_zone(self.timezone) for name, item in points.items()}
        if not any(map(self.offset_of, Table)):
            return points
        found: dict[str, PointSettings] = {}
        for name, item in points.items():
            table, address = item.place()
            moved = item.moved(self.offset_of)
            first, end = moved.span
            if first < 0 or end > 0x10000:
                text = f"{table} {address} and `base` {self.offset_of(table)} are no address: 0 to 65535"
                fault(name, text, "change the `base` of the device, or the map")
                moved = item  # so that routes can still be checked against it
            found[name] = moved
        return found
