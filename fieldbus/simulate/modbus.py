"""A simulated Modbus device: its map served on TCP, registers that move, writes that stick."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import Delivery, Target
from fieldbus.modbus import pdu
from fieldbus.modbus.converters import Epoch, time_text
from fieldbus.modbus.formats.calendar import clock_text
from fieldbus.modbus.formats.text import character_size
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.server_access import Right
from fieldbus.modbus.table_image import BlockRules
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch, Point, Quality, Sample, Value
from fieldbus.simulate.modbus_records import Records
from fieldbus.simulate.motion import resting_value, value_at

STEP_S = 0.2
"""How often the registers move."""


class SimulatedPlc:
    """The units of one link, served from their maps."""

    def __init__(
        self, name: str, host: str, port: int, units: Sequence[Unit], *, clock: Clock = SYSTEM
    ) -> None:
        self._clock = clock
        self._place: dict[Point, RegisterPoint] = {}
        self._moving: list[Point] = []
        self._resting: list[Point] = []
        served = []
        records: dict[int, Records] = {}
        self._records_of: dict[Point, Records] = {}
        for unit in units:
            own = records[unit.unit_id] = Records(unit.points)
            self._records_of |= {place.point: own for place in unit.points if place.table is Table.FILE}
            points = as_served([place for place in unit.points if place.table.is_numbered])
            for place in unit.points:
                if place.table is Table.FILE and place.low_bit is None and not place.parts:
                    self._place[place.point] = place
                    (self._resting if place.point.access.can_write else self._moving).append(place.point)
            for place in points:
                self._place[place.point] = place
                if place.word is None:
                    (self._resting if place.is_open_to_masters else self._moving).append(place.point)
            # Gaps read as 0 because a gateway reads over them, as it may with most PLCs.
            rules = BlockRules(fills_gaps=True, fill=None if unit.limits.first_address is None else 0)
            served.append(ServedUnit(unit.device, unit.unit_id, points, rules))
        self._factors = {place.factor.point for place in self._place.values() if place.factor is not None}
        self._link = _SimulatedServer(
            f"simulated {name}", host, port, served, records=records, idle_timeout_s=3600.0, clock=clock
        )

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
        self._put([(point, self._at_rest(point)) for point in self._resting])
        self._move(0.0)

    async def run(self) -> None:
        """Move the registers until cancelled."""
        began_s = self._clock.monotonic_s()
        serving = asyncio.create_task(self._link.run(_ignore, lambda _: None))
        try:
            while True:
                await asyncio.sleep(STEP_S)
                self._move(self._clock.monotonic_s() - began_s)
        finally:
            serving.cancel()
            await self._link.close()

    def _move(self, seconds: float) -> None:
        self._put([(point, self._in_motion(point, seconds)) for point in self._moving])

    def _at_rest(self, point: Point) -> Value:
        if point in self._factors:
            return _factor(self._place[point])
        place = self._place[point]
        return self._clock_of(place) or self._fitting(place, resting_value(point))

    def _in_motion(self, point: Point, seconds: float) -> Value:
        if point in self._factors:
            return _factor(self._place[point])
        place = self._place[point]
        return self._clock_of(place) or self._fitting(place, value_at(point, seconds))

    def _fitting(self, place: RegisterPoint, value: Value) -> Value:
        """Return the value, or as much of it as the registers have room for."""
        if isinstance(value, str):
            room = place.length * place.chars.per_register // character_size(place.encoding)
            return value[:room]
        if place.factor is not None:
            linear = place.linear.times_power_of_ten(_factor(place.factor))
            low, high = linear.range_of(*place.raw_range)
            return min(max(value, low), high)
        return value

    def _clock_of(self, place: RegisterPoint) -> str | None:
        """Return the present time, as a point has it that is a time."""
        if place.format is not None and place.format.clock_registers:
            return clock_text(place.format, self._clock.wall_ns())
        return None if place.epoch is None else self._now(place.epoch)

    def _now(self, epoch: Epoch) -> str:
        seconds = 946_684_800 if epoch is Epoch.Y2000 else 0
        raw = self._clock.wall_ns() // 1_000_000_000 - seconds
        return time_text(raw * 1000 if epoch is Epoch.UNIX_MS else raw, epoch) or ""

    def _put(self, values: list[tuple[Point, Value]]) -> None:
        now_ns = self._clock.wall_ns()
        for point, value in values:
            if (own := self._records_of.get(point)) is not None:
                place = self._place[point]
                exponent = None if place.factor is None else _factor(place.factor)
                own.put(place.address, place.encode(value, exponent))
        self._link.send(
            [
                Delivery(Target("", point), point, Sample(value, Quality.GOOD, None, now_ns))
                for point, value in values
                if point not in self._records_of
            ]
        )


class _SimulatedServer(ModbusServerLink):
    """A server that has files, queues and a server id beside its registers."""

    def __init__(self, *arguments: Any, records: Mapping[int, Records], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._records = records

    def answer(self, request: pdu.Frame, right: Right, *, is_line: bool) -> bytes | None:
        own = self._records.get(request.unit_id)
        response = None if own is None else own.answer(request.pdu)
        return super().answer(request, right, is_line=is_line) if response is None else response


def as_served(points: Sequence[RegisterPoint]) -> list[RegisterPoint]:
    """Return the points of a device as the device itself has them.

    What shares registers with a value of several parts stands for them. Addresses of 32 bits are left out: no
    server of ours has them.

    Who can write a bit can write its register: what shares a register with a writable point is open to
    masters too, and rests, or it would overwrite what was written.
    """
    written = {
        (item.table, address)
        for item in points
        if item.point.access.can_write
        for address in range(item.address, item.end)
    }
    taken = {(item.table, address) for item in points if not item.parts
             for address in range(item.address, item.end)}  # fmt: skip
    points = [item for item in points if item.width == 16 and not (item.parts and _addresses(item) & taken)]
    made: dict[RegisterPoint, RegisterPoint] = {}
    # Factors and words first, since others refer to them.
    for item in sorted(points, key=lambda item: (item.factor is not None) + (item.word is not None)):
        is_open = bool(_addresses(item) & written)
        made[item] = replace(
            item,
            is_open_to_masters=is_open,
            initial=None,
            factor=None if item.factor is None else made[item.factor],
            word=None if item.word is None else made[item.word],
        )
    return [made[item] for item in points]


def _addresses(item: RegisterPoint) -> set[tuple[Table, int]]:
    """Return all that a point takes."""
    return {(item.table, address) for piece in item.pieces for address in range(piece.address, piece.end)}


def _factor(place: RegisterPoint) -> int:
    """Return what a point holds that others name in `scale_from`."""
    return -1 if place.type.is_signed and place.low_bit is None else 0


def _ignore(_batch: Batch) -> None:
    """Writes stick in the registers; nobody else wants to know of them."""
