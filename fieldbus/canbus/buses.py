"""Which bus serves which interface."""

from __future__ import annotations

from fieldbus.canbus.bus import Bus, Options
from fieldbus.canbus.python_can import open_python_can


async def open_bus(options: Options) -> Bus:
    """Open a bus.

    Args:
        options: interface, channel and what else the interface takes.

    Raises:
        LinkDownError: it cannot be opened.
    """
    return await open_python_can(options)
