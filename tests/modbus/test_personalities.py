"""Random devices with random habits, in virtual time: all that can be read is read, and nothing is ever wrong."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from support.personality import DeviceConnection, Personality, draw, value_of
from support.virtual import World

from fieldbus.errors import LinkDownError
from fieldbus.link import DeviceHealth, Regrouped, WriteResult
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.planner import Limits, plan
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.modbus.units import Unit, cost_on
from fieldbus.model import Batch, Point

PORT = 1502
SCAN_S = 1.0
TIMEOUT_S = 0.5
CYCLES = 30
"""Within so many all that can be read is to be good."""
LUCKLESS_S = 200.0
"""How much longer it may take where hardly anything answers, and the unit looks lost, or where the line is
busy with polls alone."""
WATCHED_CYCLES = 30
"""For so many it is to stay good after that."""
SETTLED_CYCLES, MEASURED_CYCLES = 300, 60
"""When requests are counted: what cannot be read is asked for rarely by then."""
SEEDS = 24
MOST_SEEDS = 1000


class Keeper:
    """Keeps a link connected as the gateway does, and holds its values against what the device holds."""

    def __init__(self, link: ModbusClientLink) -> None:
        self.link = link
        self.reasons: dict[Point, str | None] = {}
        """Of each point: why it is bad now; None while it is good."""
        self.wrong: list[str] = []
        self.health: list[DeviceHealth] = []
        self.plans = 0
        self.lost: Counter[str] = Counter()
        self.right = {item.point: value_of(item) for unit in link.units for item in unit.points}

    async def run(self) -> None:
        """Connect again and again."""
        while True:
            try:
                await self.link.connect()
                await self.link.run(self.emit, self.report)
            except LinkDownError as error:
                self.lost[str(error)] += 1
            finally:
                await self.link.close()
            await asyncio.sleep(0.2)

    def report(self, event: object) -> None:
        """Take what the link says beside values."""
        if isinstance(event, DeviceHealth):
            self.health.append(event)
        elif isinstance(event, Regrouped):
            self.plans += 1
        else:
            assert isinstance(event, WriteResult)

    def emit(self, batch: Batch) -> None:
        """Take values."""
        for index, point in enumerate(batch.group.points):
            flaw = batch.flaws.get(index)
            self.reasons[point] = None if flaw is None else str(flaw.reason)
            if flaw is None and batch.values[index] != self.right[point]:
                self.wrong.append(f"{point.address} is {self.right[point]}, not {batch.values[index]}")


def fewest(device: Personality) -> int:
    """Return how many requests a cycle the planner needs that knows the device."""
    barriers: dict[Table, list[tuple[int, int]]] = {}
    for table in Table:
        holes = sorted(place for function, place in device.missing if function == table.read_function)
        barriers[table] = [(place, place + 1) for place in holes]
    limits = Limits(min(125, device.most[3]), min(2000, device.most[1]))
    points = [item for item in device.points if device.has(item)]
    return len(plan(points, 1, SCAN_S, limits, cost_on(TcpPlace("127.0.0.1", PORT)), barriers))


def names(points: list[RegisterPoint]) -> list[str]:
    return [item.point.name for item in points][:8]


async def live(device: Personality, world: World) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: DeviceConnection(device), "127.0.0.1", PORT)
    unit = Unit("plc", 1, device.points, SCAN_S, timeout_s=TIMEOUT_S)
    clock, _ = world.clock()
    keeper = Keeper(ModbusClientLink("net", TcpPlace("127.0.0.1", PORT), [unit], clock=clock))
    task = asyncio.create_task(keeper.run())
    readable = [item for item in device.points if device.has(item)]
    unreadable = [item for item in device.points if not device.has(item)]
    try:
        await asyncio.sleep(CYCLES * SCAN_S)
        is_slow = fewest(device) * (device.delay_s + 0.001) > SCAN_S / 4
        if is_slow or 4 * len(readable) < len(device.points):
            await asyncio.sleep(LUCKLESS_S)
        for cycle in range(WATCHED_CYCLES):
            bad = [item for item in readable if keeper.reasons.get(item.point, "nothing") is not None]
            reasons = Counter(str(keeper.reasons.get(item.point, "nothing")) for item in bad)
            assert not bad, f"bad in cycle {CYCLES + cycle}: {names(bad)}, {reasons}"
            good = [item for item in unreadable if keeper.reasons.get(item.point, "nothing") is None]
            assert not good, f"good, and cannot be read: {names(good)}"
            await asyncio.sleep(SCAN_S)
        assert keeper.plans <= 30, f"{keeper.plans} plans"
        # Before it has ever answered, it may look lost; afterwards something of it always answers.
        online = [event.is_online for event in keeper.health]
        is_steady = not (device.spells or device.transients)
        assert not is_steady or online in ([], [False], [True], [False, True]), online
        await asyncio.sleep((SETTLED_CYCLES - CYCLES - WATCHED_CYCLES) * SCAN_S)
        before = len(device.requests)
        await asyncio.sleep(MEASURED_CYCLES * SCAN_S)
        if readable:
            asked, best = (len(device.requests) - before) / MEASURED_CYCLES, fewest(device)
            rare = 2 * len(unreadable) / MEASURED_CYCLES + 0.3 * bool(unreadable)
            assert asked <= 1.15 * best + rare, f"{asked} requests a cycle, {best} would do"
        assert not keeper.wrong, keeper.wrong[:3]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_that_can_be_read_of_a_thousand_random_devices_is_good() -> None:
    failed = {}
    for seed in range(SEEDS, MOST_SEEDS):
        world = World()
        try:
            world.run(live(draw(seed), world))
        except AssertionError as error:
            failed[seed] = str(error)
    assert not failed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_that_can_be_read_of_a_random_device_is_good(seed: int) -> None:
    world = World()
    world.run(live(draw(seed), world))
