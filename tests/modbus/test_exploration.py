"""One address that is silent, refused or garbled, on a line with others: who pays for it, and for how long."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest
from support.personality import MANNERS, DeviceConnection, Personality
from support.virtual import World
from test_personalities import PORT, Keeper
from watching import points_of

from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Framing, TcpPlace
from fieldbus.modbus.planner import Limits
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch


def device(missing: dict[int, str], addresses: range | list[int], *, is_rtu: bool = False) -> Personality:
    """Return a device that has not some of its holding registers."""
    return Personality(
        points=points_of("plc", addresses),
        missing={(3, address): manner for address, manner in missing.items()},
        most={1: 2000, 2: 2000, 3: 125, 4: 125},
        most_manner="exception 02",
        delay_s=0.005,
        spells=[],
        spell_manner="silent",
        transients=0.0,
        transients_end_s=0.0,
        is_only_for_one=False,
        rng=random.Random(1),
        is_rtu=is_rtu,
        whole_units=frozenset({2}),
    )


class Line:
    """A link to a device, and a second unit behind it that has everything."""

    def __init__(self, world: World, own: Personality, *, has_neighbour: bool = False, max_gap=None) -> None:
        units = [Unit("plc", 1, own.points, 1.0, timeout_s=0.5, limits=Limits(max_gap=max_gap))]
        if has_neighbour:
            units.append(Unit("neighbour", 2, points_of("neighbour", range(5)), 0.1, timeout_s=0.5))
        place = TcpPlace("127.0.0.1", PORT, Framing.RTU if own.is_rtu else Framing.MBAP)
        self.own = own
        self.keeper = Keeper(ModbusClientLink("net", place, units, clock=world.clock()[0]))
        own_right = {item.point: item for unit in units for item in unit.points}
        self.keeper.right = {point: _right(item.address) for point, item in own_right.items()}
        self.good_at_s: list[float] = []
        self._world = world
        emit = self.keeper.emit

        def note(batch: Batch) -> None:
            emit(batch)
            if batch.group.points[0].device == "neighbour" and not batch.flaws:
                self.good_at_s.append(world.now_s)

        self.keeper.emit = note  # type: ignore[method-assign]

    def run(self, seconds: float) -> None:
        """Let some time pass."""

        async def main() -> None:
            loop = asyncio.get_running_loop()
            await loop.create_server(lambda: DeviceConnection(self.own), "127.0.0.1", PORT)
            task = asyncio.create_task(self.keeper.run())
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._world.run(main())
        assert not self.keeper.wrong

    @property
    def bad(self) -> dict[str, str]:
        """The points of the device without a value, and why."""
        reasons = self.keeper.reasons
        return {item.point.name: str(reasons[item.point]) for item in self.own.points if reasons[item.point]}


def _right(address: int) -> int:
    return address * 7919 % 0x10000


REASONS = {
    "silent": "timeout", "short": "bad response", "long": "bad response", "other function": "bad response",
    "long exception": "device exception 02", "false length": "device exception 02",
}  # fmt: skip


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: f"it is {manner}")
def test_one_register_costs_one_point_whatever_its_failure_looks_like(manner: str) -> None:
    line = Line(World(), device({17: manner}, range(40)))
    line.run(20.0)
    assert line.bad == {"holding17": REASONS.get(manner, f"device {manner}")}
    assert [event.is_online for event in line.keeper.health] in ([True], [False, True])


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: f"it is {manner}")
def test_a_gap_that_cannot_be_read_over_costs_no_point(manner: str) -> None:
    line = Line(World(), device({17: manner}, [*range(10), *range(30, 40)]))
    line.run(20.0)
    assert line.bad == {}
    asked = {request[2:4] for request in line.own.requests if request[0] > line.own.requests[-1][0] - 3}
    assert asked == {(0, 10), (30, 10)}


@pytest.mark.parametrize("manner", ["silent", "exception 02", "exception 04", "exception 06", "exception 0B"])
def test_on_a_line_without_transactions_one_register_costs_one_point(manner: str) -> None:
    line = Line(World(), device({17: manner}, range(40), is_rtu=True))
    line.run(30.0)
    assert line.bad == {"holding17": REASONS.get(manner, f"device {manner}")}


def test_the_first_register_of_a_lone_block_may_be_silent_on_a_serial_line() -> None:
    line = Line(World(), device({0: "silent"}, range(10), is_rtu=True))
    line.run(60.0)
    assert line.bad == {"holding0": "timeout"}


@pytest.mark.parametrize("is_rtu", [False, True])
def test_a_neighbour_is_read_while_silent_addresses_are_searched(is_rtu: bool) -> None:
    """A silence costs it one timeout now and then; it is never bad, and nine of ten scans come."""
    own = device(dict.fromkeys((3, 17, 50, 90), "silent"), range(100), is_rtu=is_rtu)
    line = Line(World(), own, has_neighbour=True)
    line.run(60.0)
    assert set(line.bad) == {"holding3", "holding17", "holding50", "holding90"}
    assert all(event.device == "plc" for event in line.keeper.health if not event.is_online)
    gaps = [after - before for before, after in pairwise(line.good_at_s)]
    assert max(gaps) <= 0.1 + 2 * 0.5 + 0.1
    assert len(line.good_at_s) >= 0.9 * 600


def test_what_is_silent_is_asked_for_rarely_and_read_again_when_it_answers() -> None:
    own = device({17: "silent"}, range(40))
    world = World()
    line = Line(world, own)

    def heal() -> None:
        own.missing.clear()

    world.loop.call_later(700.0, heal)
    line.run(1100.0)
    assert line.bad == {}
    lone = [request[0] for request in own.requests if request[2:4] == (17, 1) and request[4] == "silent"]
    assert len(lone) <= 16
    assert own.requests[-1][2:4] == (0, 40)


def test_a_register_that_comes_and_goes_is_read_alone_in_the_end() -> None:
    """Each time it fails in the block it takes the others with it."""
    own = device({}, range(40))
    world = World()
    line = Line(world, own)
    for begin in range(10, 200, 20):
        world.loop.call_later(begin, own.missing.update, {(3, 17): "short"})
        world.loop.call_later(begin + 10, own.missing.clear)
    line.run(300.0)
    assert line.bad == {}
    asked = {request[2:4] for request in own.requests if request[0] > own.requests[-1][0] - 3}
    assert asked == {(0, 17), (17, 1), (18, 22)}


def test_an_address_at_which_a_device_hangs_up_costs_one_point_in_the_end() -> None:
    """The first time it is a lost link, since nobody knows better."""
    addresses = [*range(40), *range(1000, 1010)]
    line = Line(World(), device({17: "hang up"}, addresses))
    line.run(60.0)
    assert line.bad == {"holding17": "bad response"}
    assert line.keeper.lost.total() <= 2
    assert len(line.own.requests) < 60 * 3 + 80


def test_blocks_that_fail_together_are_explored_in_one_pass() -> None:
    addresses = [*range(40), *range(1000, 1040), *range(2000, 2040)]
    line = Line(World(), device({7: "exception 04", 1007: "short", 2007: "exception 02"}, addresses))
    line.run(10.0)
    assert set(line.bad) == {"holding7", "holding1007", "holding2007"}
    assert line.keeper.plans <= 3
