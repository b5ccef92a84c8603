"""How one point of a device is written, beyond its place and its type. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from fieldbus.modbus.register_types import Table
from fieldbus.model import Value

SINGLE = (5, 6)
"""Functions that write one coil or register a request."""
MASK = 22


@dataclass(frozen=True, slots=True)
class WriteRules:
    """What the configuration says about the writes of a point."""

    verify: bool | None = None
    """Whether a write is read back. None: only where bits were written into what the register held, and then
    another value is no failure."""
    verify_after_s: float = 0.0
    """How long the device needs until it can be read back."""
    read_from: tuple[Table, int] | None = None
    """Where the device shows what it was given, if not where it is written."""
    function: int | None = None
    """The function code, if not the usual one."""
    group: str = ""
    """The points of one group are written in one request or not at all."""
    then: tuple[tuple[str, Value], ...] = ()
    """Names of points of the device, and what is written to them after this one was accepted."""


PLAIN = WriteRules()
