"""Which bus serves which interface."""

from __future__ import annotations

from fieldbus.canbus.bus import Bus, Options
from fieldbus.canbus.kernel.socketcan import LATENCY_S, RECEIVE_BUFFER, open_socketcan
from fieldbus.canbus.python_can import open_python_can
from fieldbus.canbus.replay import open_replay
from fieldbus.clock import SYSTEM, Clock


async def open_bus(options: Options, *, clock: Clock = SYSTEM) -> Bus:
    """Open a bus.

    Args:
        options: interface, channel and what else the interface takes.
        clock: the gateway's.

    Raises:
        LinkDownError: it cannot be opened.
    """
    if options.get("interface") == "replay":
        return await open_replay(options, clock=clock)
    if options.get("interface") == "socketcan":
        return await open_socketcan(
            str(options.get("channel", "")),
            fd=bool(options.get("fd")),
            receive_buffer=_number(options.get("receive_buffer"), RECEIVE_BUFFER),
            latency_s=_seconds(options.get("latency"), LATENCY_S),
            clock=clock,
        )
    return await open_python_can(options, clock)


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
