"""The configuration of Modbus links that poll, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fieldbus.modbus.link import ModbusClientLink, Unit
from fieldbus.modbus.planner import Limits
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.settings import DeviceSettings, Duration, LinkSettings, Port


class ClientLinkSettings(LinkSettings):
    """A connection to a Modbus TCP server, which may have several units behind it."""

    type: Literal["modbus-tcp"]
    host: str
    port: Port = 502
    timeout: Duration = Field(1.0, description="For one answer.")
    connect_timeout: Duration = 3.0


class PolledDeviceSettings(DeviceSettings):
    """A device that we poll."""

    unit_id: Annotated[int, Field(ge=0, le=255)] = 1
    scan: Duration = Field(1.0, description="How often each point is read, unless it says otherwise.")
    timeout: Duration | None = Field(None, description="Overrides the link's.")
    map: str | None = Field(None, description="A file with its points, YAML or CSV.")
    points: Mapping[str, PointSettings] = {}
    max_registers: Annotated[int, Field(ge=1, le=125)] = 125
    max_bits: Annotated[int, Field(ge=1, le=2000)] = 2000
    max_gap: Annotated[int, Field(ge=0, le=124)] = Field(
        16, description="Unused registers that are read over rather than asked around."
    )


def build_client(
    name: str,
    settings: ClientLinkSettings,
    devices: Mapping[str, PolledDeviceSettings],
    points: Mapping[str, list[RegisterPoint]],
) -> ModbusClientLink:
    """Return the link that polls `devices`."""
    units = [
        Unit(
            device=device,
            unit_id=item.unit_id,
            points=points[device],
            scan_s=item.scan,
            timeout_s=item.timeout or settings.timeout,
            limits=Limits(item.max_registers, item.max_bits, item.max_gap),
        )
        for device, item in devices.items()
    ]
    return ModbusClientLink(
        name, settings.host, settings.port, units, connect_timeout_s=settings.connect_timeout
    )
