"""Which points of a polled device no request can read, told when a configuration is loaded. Pure."""

from __future__ import annotations

from fieldbus.modbus.planner import Limits
from fieldbus.modbus.registers import RegisterPoint


def reach_fault(point: RegisterPoint, limits: Limits) -> tuple[str, str | None] | None:
    """Return why no request reads a point, and a hint; None if one does."""
    key, most, unit = "max_registers", limits.max_registers * 16 // point.width, "registers"
    if point.table.is_bits:
        key, most, unit = "max_bits", limits.max_bits, "bits"
    allowed = f"`{key}` allows {most} a request"
    if point.count > most:
        return f"it has {point.count} {unit}, {allowed}", None
    start, end, factor = point.address, point.end, point.factor
    if factor is not None:
        start, end = min(start, factor.address), max(end, factor.end)
        if end - start > most:
            name = factor.point.name
            text = f"{point.table} {point.address} and '{name}' of `scale_from` are {end - start} {unit}"
            return f"{text}, {allowed}", "scale it by `scale` instead, or raise the limit if the device can"
    first = limits.first_address
    if first is None or not (point.table.is_numbered and point.point.access.can_read):
        return None
    if start < first:
        return f"{point.table} {start} is below the device's `first_address` {first}", None
    if end - first > most:
        text = f"from `first_address` {first} to {point.table} {end - 1} are {end - first} {unit}"
        return f"{text}, {allowed}", None
    return None
