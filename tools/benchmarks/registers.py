"""What the benchmarks poll: ``uint16`` points in a row of holding registers."""

from __future__ import annotations

from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.model import Kind, Point


def uint16_points(device: str, count: int) -> list[RegisterPoint]:
    """Return points of holding registers 0 to `count` - 1."""
    return [
        RegisterPoint(Point(device, f"r{address}", Kind.INT), Table.HOLDING, address, RegisterType.UINT16)
        for address in range(count)
    ]
