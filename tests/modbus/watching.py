"""Keeps links connected as the gateway does and holds all that they emit against what the devices hold."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from conftest import eventually
from rtu_peer import mixed

from fieldbus.errors import LinkDownError
from fieldbus.link import DeviceHealth, Regrouped, WriteResult
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.model import Batch, Group, Kind, Point, Quality, Reason, Sample, Value

Truth = Callable[[int, str, int], int]
"""Unit id, table and address to what is there."""


def own_address(unit_id: int, table: str, address: int) -> int:
    """Return what devices hold that hold their own address."""
    return address & 1 if table in ("coil", "discrete") else address


def points_of(
    device: str, addresses: Iterable[int], table: str = "holding", type_: str = "uint16"
) -> list[RegisterPoint]:
    """Return points of one table, named by it and their address."""
    where = Table(table)
    kind = Kind.BOOL if where.is_bits else Kind.INT
    found = RegisterType.BOOL if where.is_bits else RegisterType(type_)
    return [
        RegisterPoint(Point(device, f"{table}{address}", kind), where, address, found)
        for address in addresses
    ]


class Watch:
    """A link kept connected, and all that it said, checked."""

    def __init__(self, link: ModbusClientLink, truth: Truth = mixed, *, pause_s: float = 0.0) -> None:
        self.link = link
        self._pause_s = pause_s
        """Before connecting again."""
        self.samples: dict[str, Sample] = {}
        """By device.point."""
        self.good_batches = 0
        self.good_at_s: dict[str, list[float]] = {}
        """When each device had good batches."""
        self.bad_at_s: dict[str, list[float]] = {}
        """When each device had batches that were not good."""
        self.reasons: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.health: list[tuple[float, DeviceHealth]] = []
        self.regrouped: list[Regrouped] = []
        self.on_good: Callable[[Batch], None] = lambda _: None
        self.wrong: list[str] = []
        """Good values that were not what the device holds. There must be none, ever."""
        self._truth: dict[Point, Value] = {}
        self._checked: dict[Group, tuple[Value | None, ...]] = {}
        """Of groups that were good: what is right. It does not change."""
        for unit in link.units:
            for item in unit.points:
                self._truth[item.point] = _truth(item, unit.unit_id, truth)
        self._allowed: set[Group] = set()

    async def keep(self) -> None:
        while True:
            try:
                await self.link.connect()
                self._allowed = set(self.link.groups)
                await self.link.run(self.emit, self.report)
            except LinkDownError as error:
                self.lost[str(error)] += 1
            finally:
                await self.link.close()
            for group in self.link.groups:
                self.emit(group.without_value(Reason.NOT_CONNECTED, time.time_ns(), time.monotonic()))
            await asyncio.sleep(self._pause_s)

    def report(self, event: DeviceHealth | WriteResult | Regrouped) -> None:
        if isinstance(event, DeviceHealth):
            self.health.append((time.monotonic(), event))
        elif isinstance(event, Regrouped):
            assert set(event.removed) <= self._allowed, "groups were removed that were not there"
            self.regrouped.append(event)
            self._allowed = (self._allowed - set(event.removed)) | set(event.added)
            assert self._allowed == set(self.link.groups), "`groups` says something else"

    def emit(self, batch: Batch) -> None:
        group = batch.group
        if group not in self._allowed:
            self.wrong.append(f"a batch of {group}, which is none of the link's groups")
        if not batch.flaws:
            self.good_batches += 1
            right = self._checked.get(group)
            if right is None:
                right = self._checked[group] = tuple(self._truth[point] for point in group.points)
            if tuple(batch.values) != right:
                self._complain(batch, right)
            self.good_at_s.setdefault(group.points[0].device, []).append(time.monotonic())
            self.on_good(batch)
            if not batch.changed:
                return
        else:
            self.bad_at_s.setdefault(group.points[0].device, []).append(time.monotonic())
        for index, point in enumerate(group.points):
            sample = batch.sample(index)
            self.samples[point.address] = sample
            if sample.quality is not Quality.GOOD:
                if sample.value is not None:
                    self.wrong.append(f"{point.address} is bad and has the value {sample.value}")
                self.reasons[str(sample.reason)] += 1

    def _complain(self, batch: Batch, right: tuple[Value | None, ...]) -> None:
        for point, value, expected in zip(batch.group.points, batch.values, right, strict=True):
            if value != expected:
                self.wrong.append(f"{point.address} is {expected}, not {value}")

    def is_good(self, names: Iterable[str] | None = None) -> bool:
        """Whether points (all, if none is named) have good values."""
        wanted = [point.address for point in self._truth] if names is None else names
        return all(name in self.samples and self.samples[name].reason is None for name in wanted)

    @property
    def bad(self) -> Mapping[str, str | None]:
        """The points that have no good value, and why."""
        found = {point.address: self.samples.get(point.address) for point in self._truth}
        return {
            name: "nothing was said" if sample is None else sample.reason
            for name, sample in found.items()
            if sample is None or sample.reason is not None
        }

    async def all_good(self, timeout_s: float = 5.0) -> None:
        """Wait until all points have good values."""
        await eventually(self.is_good, timeout_s, "good values")


def _truth(item: RegisterPoint, unit_id: int, truth: Truth) -> Value:
    words = [truth(unit_id, str(item.table), address) for address in range(item.address, item.end)]
    if item.table.is_bits:
        return bool(words[0])
    value = 0
    for word in words:
        value = value << 16 | word
    return value


_listeners: list[list[str]] = []
"""Of all that watch now: where exceptions go that nobody fetched."""


def _complain(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    for listener in _listeners:
        listener.append(str(context))


@asynccontextmanager
async def watching(*watches: Watch) -> AsyncIterator[None]:
    """Keep links for as long as the block lasts; nothing that they said may have been wrong."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    _listeners.append(complaints)
    loop.set_exception_handler(_complain)
    running = [asyncio.create_task(watch.keep()) for watch in watches]
    try:
        yield
        assert not any(task.done() for task in running), "a link ended"
    finally:
        for task in running:
            task.cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
        await asyncio.sleep(0.01)
        _listeners[:] = [other for other in _listeners if other is not complaints]
        if not _listeners:
            loop.set_exception_handler(None)
        for result in results:
            if isinstance(result, Exception):
                raise result
    wrong = [item for watch in watches for item in watch.wrong]
    assert not wrong, wrong[:5]
    assert not complaints, complaints[:5]
