"""A device that has not all that its map says, and gives less at once than the protocol allows.

The devices are libmodbus: random addresses that they refuse, a limit that they tell nobody. What is learned is
compared with the fewest requests that there can be, computed here by another method than the planner's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import eventually
from rtu_peer import Request, Slave, cable, mixed, slave
from watching import Watch, points_of, watching

from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Place, SerialPlace, TcpPlace
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.units import Unit

pytestmark = [pytest.mark.alone, pytest.mark.system, pytest.mark.timeout(90)]

SCAN_S = 0.15
CYCLES = 10
"""Within so many all legal points are to be good."""


class Device(NamedTuple):
    """A map, and what is wrong with it."""

    points: Sequence[RegisterPoint]
    illegal: set[int]

    @property
    def legal(self) -> list[RegisterPoint]:
        """The points that the device has."""
        return [point for point in self.points if not self.is_refused(point)]

    def is_refused(self, point: RegisterPoint) -> bool:
        """Whether the device has not all registers of a point."""
        return any(address in self.illegal for address in range(point.address, point.end))

    def commands(self, limit: int = 60, limit_code: int = 2) -> list[str]:
        """Return what the device is to be told."""
        return [
            "answer 1",
            "values mixed",
            f"limit {limit} {limit_code}",
            *(f"refuse {address} 2" for address in sorted(self.illegal)),
        ]


def random_device(seed: int, *, name: str = "plc", count: int = 120, holes: int = 8) -> Device:
    """Return some stretches of points with gaps, of one or two registers each; some addresses are illegal."""
    rng = random.Random(seed)
    points: list[RegisterPoint] = []
    address = rng.randrange(50)
    while len(points) < count:
        type_ = "uint32" if rng.random() < 0.3 else "uint16"
        points += points_of(name, [address], "holding", type_)
        address = points[-1].end
        if rng.random() < 0.15:
            address += rng.choice((1, 2, 5, 20, 70))
    return Device(points, set(rng.sample(range(points[0].address, points[-1].end), holes)))


def fewest_requests(device: Device, limit: int) -> int:
    """Return the fewest reads that have each legal point whole, touch nothing illegal and no more than `limit`.

    By breadth: which numbers of points, in order of address, can be read with 1, 2, 3 … reads?
    """
    points = sorted(device.legal, key=lambda point: point.address)
    done, count = {0}, 0
    while len(points) not in done:
        reached = set(done)
        for begin in done:
            for end in range(begin + 1, len(points) + 1):
                first, last = points[begin].address, points[end - 1].end  # none overlaps
                if last - first > limit or any(first <= hole < last for hole in device.illegal):
                    break
                reached.add(end)
        assert reached != done
        done, count = reached, count + 1
    return count


def link_to(place: Place, device: Device, memory: Path | None = None, name: str = "plc") -> ModbusClientLink:
    unit = Unit(name, 1, device.points, SCAN_S, timeout_s=1.0)
    return ModbusClientLink("net", place, [unit], memory=memory)


def names_of(points: Sequence[RegisterPoint]) -> set[str]:
    return {point.point.address for point in points}


async def requests_a_cycle(devices: Slave, device: Device, folder: Path, cycles: int = 6) -> float:
    """Return how many requests come in a scan period, without those for what the device refuses.

    What it refuses is asked for again now and then, each point alone: whether that falls into these cycles
    depends on how long everything before took.
    """
    await devices.write_log(folder)
    since_s = time.monotonic()
    await asyncio.sleep((cycles + 0.5) * SCAN_S)
    until_s = since_s + cycles * SCAN_S
    asked = Counter(
        (request.address, request.count) for request in devices.requests(since_s) if request.at_s < until_s
    )
    # Each comes once in a cycle, but for the first time, which is at once, and at the edges of the window.
    assert max(asked.values()) <= cycles + 2
    again = [read for read in asked if not device.illegal.isdisjoint(range(read[0], sum(read)))]
    assert {asked[read] for read in again} <= {1}
    alone = {
        (point.address, point.end - point.address) for point in device.points if device.is_refused(point)
    }
    assert set(again) <= alone
    return len(asked) - len(again)


@pytest.mark.parametrize("seed", range(4))
def test_the_fewest_requests_of_a_map_without_holes_are_counted_by_hand(seed: int) -> None:
    start = 100 * seed
    device = Device(points_of("plc", range(start, start + 100 + seed)), set())
    assert fewest_requests(device, 50) == 2 + (seed > 0)
    assert fewest_requests(device, 125) == 1
    assert fewest_requests(Device(device.points, {start + 10}), 125) == 2


ROUNDS = [
    # seed, points, illegal addresses, limit, and with which exception it is told
    (1, 120, 8, 60, 2),
    (2, 120, 8, 60, 3),
    (7, 200, 12, 60, 2),
    (4, 40, 3, 60, 3),
    (5, 800, 30, 60, 2),
    (105, 120, 8, 100, 3),
    (115, 120, 30, 10, 2),
]


@pytest.mark.parametrize(
    ("seed", "count", "holes", "limit", "limit_code"),
    [
        *ROUNDS,
        (126, 120, 1, 60, 2),
        (157, 800, 30, 100, 2),
    ],
)
async def test_all_that_a_device_has_is_good_within_ten_cycles_with_the_fewest_requests(
    seed: int, count: int, holes: int, limit: int, limit_code: int, tmp_path: Path
) -> None:
    device = random_device(seed, count=count, holes=holes)
    refused = names_of(device.points) - names_of(device.legal)
    assert refused
    async with slave(*device.commands(limit, limit_code)) as devices:
        watch = Watch(link_to(TcpPlace("127.0.0.1", devices.port), device))
        async with watching(watch):
            legal = names_of(device.legal)
            await eventually(lambda: watch.is_good(legal), CYCLES * SCAN_S, f"{len(legal)} legal points")
            await eventually(lambda: set(watch.bad) == refused, 1.0, "the others are bad")
            assert set(watch.bad.values()) == {"device exception 02"}
            best = fewest_requests(device, limit)
            found = await requests_a_cycle(devices, device, tmp_path)
            print(f"\n{found} requests a cycle, {best} would do")
            assert best <= found <= 1.1 * best
            # Nothing is lost while it is so.
            assert set(watch.bad) == refused


@pytest.mark.parametrize("seed", [11, 12])
async def test_what_was_learned_is_known_after_a_restart(seed: int, tmp_path: Path) -> None:
    device = random_device(seed)
    refused = names_of(device.points) - names_of(device.legal)
    async with slave(*device.commands()) as devices:
        place = TcpPlace("127.0.0.1", devices.port)
        first = Watch(link_to(place, device, tmp_path))
        async with watching(first):
            await eventually(lambda: first.is_good(names_of(device.legal)), CYCLES * SCAN_S)
            await eventually(lambda: set(first.bad) == refused, 1.0)
            await asyncio.sleep(2 * SCAN_S)
            learned = sorted(group.name for group in first.link.groups)

        again = link_to(place, device, tmp_path)
        assert sorted(group.name for group in again.groups) == learned
        second = Watch(again)
        await devices.write_log(tmp_path)
        async with watching(second):
            await eventually(lambda: second.is_good(names_of(device.legal)), 2 * SCAN_S, "at once")
            await asyncio.sleep(3 * SCAN_S)
            assert set(second.bad) == refused
            assert set(second.bad.values()) == {"device exception 02"}
            assert second.regrouped == []
        wanted = [request for request in devices.requests() if request.verdict != 0]
        assert len(wanted) <= len(refused), "only the refused points are asked for once more"


async def test_another_map_forgets_what_was_learned_of_the_old_one(tmp_path: Path) -> None:
    device = random_device(21)
    async with slave(*device.commands()) as devices:
        place = TcpPlace("127.0.0.1", devices.port)
        fresh_plan = sorted(group.name for group in link_to(place, device).groups)
        first = Watch(link_to(place, device, tmp_path))
        async with watching(first):
            await eventually(lambda: first.is_good(names_of(device.legal)), CYCLES * SCAN_S)
            await asyncio.sleep(2 * SCAN_S)
        assert sorted(group.name for group in link_to(place, device, tmp_path).groups) != fresh_plan

        end = max(point.end for point in device.points)
        changed = Device([*device.points, *points_of("plc", [end])], device.illegal)
        unbiased = sorted(group.name for group in link_to(place, changed).groups)
        link = link_to(place, changed, tmp_path)
        assert sorted(group.name for group in link.groups) == unbiased
        # The device has been exchanged for one that has everything: so does the new map, at once.
        await devices.tell("refuse 0-65535 0", "limit 125 3")
        watch = Watch(link)
        async with watching(watch):
            await watch.all_good(2 * SCAN_S + 1.0)
            assert watch.regrouped == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"fingerprint": 5}', "\x00" * 1000, "[" * 100_000])
async def test_a_memory_that_makes_no_sense_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    device = random_device(31, count=20, holes=1)
    async with slave(*device.commands()) as devices:
        place = TcpPlace("127.0.0.1", devices.port)
        first = Watch(link_to(place, device, tmp_path))
        async with watching(first):
            await eventually(lambda: first.is_good(names_of(device.legal)), CYCLES * SCAN_S)
        [file] = [path for path in tmp_path.rglob("*") if path.is_file()]
        file.write_text(text)
        second = Watch(link_to(place, device, tmp_path))
        async with watching(second):
            await eventually(lambda: second.is_good(names_of(device.legal)), CYCLES * SCAN_S)


async def test_a_device_behind_a_serial_line_is_learned_as_well() -> None:
    device = random_device(41, count=80, holes=4)
    refused = names_of(device.points) - names_of(device.legal)
    async with AsyncExitStack() as stack:
        ours, theirs = await stack.enter_async_context(cable())
        await stack.enter_async_context(slave(*device.commands(), tty_name=theirs))
        watch = Watch(link_to(SerialPlace(ours, baudrate=115200), device))
        async with watching(watch):
            legal = names_of(device.legal)
            await eventually(lambda: watch.is_good(legal), CYCLES * SCAN_S, f"{len(legal)} legal points")
            await eventually(lambda: set(watch.bad) == refused, 1.0)
            assert set(watch.bad.values()) == {"device exception 02"}


async def test_while_one_device_is_learned_its_neighbour_is_read_as_ever() -> None:
    device = random_device(51)
    neighbour = points_of("neighbour", range(5))
    async with slave(*device.commands(), "answer 2", "delay 1 5") as devices:
        units = [
            Unit("neighbour", 2, neighbour, 0.05, timeout_s=1.0),
            Unit("plc", 1, device.points, SCAN_S, timeout_s=1.0),
        ]
        watch = Watch(ModbusClientLink("net", TcpPlace("127.0.0.1", devices.port), units))
        async with watching(watch):
            legal = names_of(device.legal)
            await eventually(lambda: watch.is_good(legal), CYCLES * SCAN_S + 1.0)
        times = watch.good_at_s["neighbour"]
        assert max(b - a for a, b in pairwise(times)) < 0.05 + 0.1


async def test_a_device_that_refuses_everything_while_it_starts_has_everything_afterwards() -> None:
    points = points_of("plc", [*range(40), *range(100, 140)])
    async with slave("answer 1", "values mixed", "refuse 0-65535 2") as devices:
        place = TcpPlace("127.0.0.1", devices.port)
        watch = Watch(link_to(place, Device(points, set())))
        async with watching(watch):
            await eventually(
                lambda: len(watch.bad) == 80 and set(watch.bad.values()) == {"device exception 02"}
            )
            await asyncio.sleep(1.0)
            await devices.tell("refuse 0-65535 0")
            await watch.all_good(5.0)


async def test_a_device_that_has_none_of_a_thousand_scattered_points_costs_no_session() -> None:
    """Each is a block of its own that has to be looked into."""
    points = points_of("plc", range(0, 60_000, 50))
    async with slave("answer 1", "values mixed", "refuse 0-65535 2") as devices:
        watch = Watch(link_to(TcpPlace("127.0.0.1", devices.port), Device(points, set())))
        async with watching(watch):
            await eventually(lambda: len(watch.bad) == len(points), 20.0)
            await eventually(lambda: watch.link.counters["points_refused"] == len(points), 20.0)
            assert set(watch.bad.values()) == {"device exception 02"}
        assert watch.lost == {}


async def test_values_stay_while_a_device_that_was_whole_begins_to_refuse_one_address(tmp_path: Path) -> None:
    points = points_of("plc", range(50))
    async with slave("answer 1", "values mixed") as devices:
        await devices.write_log(tmp_path)
        watch = Watch(link_to(TcpPlace("127.0.0.1", devices.port), Device(points, set())))
        async with watching(watch):
            await watch.all_good()
            [before] = watch.link.groups
            await devices.tell("refuse 17 2")
            await eventually(lambda: set(watch.bad) == {"plc.holding17"}, CYCLES * SCAN_S)
            assert watch.bad["plc.holding17"] == "device exception 02"
            assert before not in watch.link.groups
            for address in range(50):
                if address != 17:
                    assert watch.samples[f"plc.holding{address}"].value == mixed(1, "holding", address)
            assert all(is_in_map(request, 50) for request in devices.requests())


def is_in_map(request: Request, end: int) -> bool:
    """Return whether nothing was asked for beside the map."""
    return request.address + request.count <= end
