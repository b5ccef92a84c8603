"""A simulated Modbus device: its map served on TCP, registers that move, writes that stick."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from fieldbus.link import Delivery, Target
from fieldbus.modbus.link import Unit
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.model import Batch, Point, Quality, Sample
from fieldbus.simulate.motion import resting_value, value_at

STEP_S = 0.2
"""How often the registers move."""


class SimulatedPlc:
    """The units of one link, served from their maps."""

    def __init__(self, name: str, host: str, port: int, units: Sequence[Unit]) -> None:
        self._room = {item.point: item.length * 2 for unit in units for item in unit.points if item.length}
        """Bytes that a string has."""
        self._moving: list[Point] = []
        self._resting: list[Point] = []
        served = []
        for unit in units:
            points = []
            for place in unit.points:
                can_write = place.point.access.can_write
                points.append(replace(place, is_open_to_masters=can_write, initial=None))
                (self._resting if can_write else self._moving).append(place.point)
            # Gaps read as 0 because a gateway reads over them, as it may with most PLCs.
            served.append(ServedUnit(unit.device, unit.unit_id, points, fills_gaps=True))
        self._link = ModbusServerLink(f"simulated {name}", host, port, served, idle_timeout_s=3600.0)

    @property
    def port(self) -> int:
        """Where it listens, once it was opened."""
        return self._link.port

    async def open(self) -> None:
        """Begin to listen and give every register a value.

        Raises:
            LinkDownError: the port is taken.
        """
        await self._link.connect()
        self._put([(point, resting_value(point)) for point in self._resting])
        self._move(0.0)

    async def run(self) -> None:
        """Move the registers until cancelled."""
        began_s = time.monotonic()
        serving = asyncio.create_task(self._link.run(_ignore, lambda _: None))
        try:
            while True:
                await asyncio.sleep(STEP_S)
                self._move(time.monotonic() - began_s)
        finally:
            serving.cancel()
            await self._link.close()

    def _move(self, seconds: float) -> None:
        self._put([(point, value_at(point, seconds)) for point in self._moving])

    def _put(self, values: list[tuple[Point, bool | int | float | str]]) -> None:
        now_ns = time.time_ns()
        deliveries = []
        for point, value in values:
            if isinstance(value, str):
                value = value[: self._room[point]]  # noqa: PLW2901 - what does not fit is not said
            sample = Sample(value, Quality.GOOD, None, now_ns)
            deliveries.append(Delivery(Target("", point), point, sample))
        self._link.send(deliveries)


def _ignore(_batch: Batch) -> None:
    """Writes stick in the registers; nobody else wants to know of them."""
