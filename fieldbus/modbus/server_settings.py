"""The configuration of Modbus links that serve, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.settings import DeviceSettings, Duration, LinkSettings, Port


class ServerLinkSettings(LinkSettings):
    """A TCP port on which we are the Modbus server."""

    type: Literal["modbus-server"]
    host: str = "127.0.0.1"
    port: Port = 502
    max_sessions: Annotated[int, Field(ge=1, le=10000)] = 64
    idle_timeout: Duration = 60.0


class ServedDeviceSettings(DeviceSettings):
    """A register map that we serve."""

    unit_id: Annotated[int, Field(ge=0, le=255)] = 1
    map: str | None = Field(None, description="A file with its points, YAML or CSV.")
    points: Mapping[str, PointSettings] = {}
    gaps: Literal["exception", "zero"] = Field(
        "exception", description="What a master sees at addresses between points."
    )


def build_server(
    name: str,
    settings: ServerLinkSettings,
    devices: Mapping[str, ServedDeviceSettings],
    points: Mapping[str, list[RegisterPoint]],
) -> ModbusServerLink:
    """Return the link that serves `devices`."""
    units = [
        ServedUnit(device, item.unit_id, points[device], item.gaps == "zero")
        for device, item in devices.items()
    ]
    return ModbusServerLink(
        name,
        settings.host,
        settings.port,
        units,
        max_sessions=settings.max_sessions,
        idle_timeout_s=settings.idle_timeout,
    )
