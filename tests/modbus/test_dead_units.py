"""Dead units on a line with live ones, and devices that say no: who pays for it, how much, and for how long."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import pytest
from conftest import eventually
from rtu_peer import Slave, cable, slave
from watching import Watch, points_of, watching

from fieldbus.modbus.agenda import Agenda, Rank, Turns
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Place, SerialPlace, TcpPlace
from fieldbus.modbus.units import Unit

SCALE = float(os.environ.get("FIELDBUS_FAULTS", "1"))
pytestmark = [pytest.mark.alone, pytest.mark.timeout(60 + 60 * SCALE)]
KINDS = ("tcp", "rtu")
GRACE_S = 0.05
"""What a machine that is busy with something else may add."""

# --- whose turn it is -------------------------------------------------------------------------------


@dataclass(eq=False)
class Poll:
    """A poll, as the agenda sees it."""

    name: str
    turns: Turns
    due_s: float
    period_s: float = 1.0
    is_first: bool = False
    is_gone: bool = False
    is_retry: bool = False


def test_no_poll_is_ever_lost_when_a_unit_is_believed_again_on_a_line_that_is_never_idle() -> None:
    turns = Turns(slot=0.0)
    one, other = Poll("one", turns, 0.0), Poll("other", turns, 0.5)
    agenda: Agenda[Poll] = Agenda()
    agenda.add(one)
    agenda.add(other)
    assert agenda.pick(0.0) is one
    turns.rank = Rank.SUSPECT  # it failed
    agenda.reschedule(one, 0.1)
    assert agenda.pick(0.5) is other
    agenda.revive(turns, 0.6)  # that was answered
    agenda.reschedule(other, 0.6)
    picked = []
    for step in range(20):
        now_s = 2.6 + step * 0.5
        poll = agenda.pick(now_s)
        if poll is not None:
            picked.append(poll.name)
            agenda.reschedule(poll, now_s + 0.05)
    assert picked.count("one") >= 8
    assert picked.count("other") >= 8


def test_a_unit_that_is_believed_again_is_read_as_often_as_before_on_a_line_that_is_never_idle() -> None:
    turns, others = Turns(slot=0.0), Turns(slot=0.0)
    polls = [Poll(f"block {n}", turns, 0.0) for n in range(3)]
    rest = [Poll(f"other {n}", others, 0.0) for n in range(6)]
    agenda: Agenda[Poll] = Agenda()
    for poll in (*polls, *rest):
        agenda.add(poll)
    now_s = 0.0
    reads: dict[str, list[float]] = {poll.name: [] for poll in polls}
    while now_s < 30.0:
        poll = agenda.pick(now_s)
        now_s += 0.15  # nine blocks want to be read in a second: it takes longer
        if poll is None:
            continue
        if poll is polls[0] and 10.0 < now_s < 11.0:  # one answer is garbled
            turns.rank = Rank.SUSPECT
        elif poll.turns is turns:
            reads[poll.name].append(now_s)
            if turns.rank is not Rank.LIVE:
                agenda.revive(turns, now_s)
        agenda.reschedule(poll, now_s)
    longest = {name: max(b - a for a, b in pairwise(times)) for name, times in reads.items()}
    assert max(longest[f"block {n}"] for n in (1, 2)) <= 2 * 9 * 0.15, longest


# --- dead units beside live ones --------------------------------------------------------------------


@asynccontextmanager
async def devices_on(kind: str, *commands: str) -> AsyncIterator[tuple[Place, Slave]]:
    """Run devices behind a TCP port or on a serial line."""
    if kind == "tcp":
        async with slave("values mixed", *commands) as running:
            yield TcpPlace("127.0.0.1", running.port), running
    else:
        async with cable() as (ours, theirs), slave("values mixed", *commands, tty_name=theirs) as running:
            yield SerialPlace(ours, baudrate=115200), running


async def on_both(play: Callable[[str], Coroutine[object, object, None]]) -> None:
    """Play a scene on TCP and on a serial line, at the same time."""
    async with asyncio.TaskGroup() as scenes:
        for kind in KINDS:
            scenes.create_task(play(kind))


def unit(number: int, scan_s: float, timeout_s: float, addresses: Sequence[int] = range(10)) -> Unit:
    device = f"unit{number}"
    return Unit(device, number, points_of(device, addresses), scan_s, timeout_s)


def longest_gap(times: Sequence[float], since_s: float, until_s: float) -> float:
    """Return the longest time without a good batch."""
    within = [since_s, *(at_s for at_s in times if since_s < at_s < until_s), until_s]
    return max(b - a for a, b in pairwise(within))


SCAN_S, TIMEOUT_S = 0.1, 0.3


@asynccontextmanager
async def four_units(kind: str, *commands: str) -> AsyncIterator[tuple[Watch, Slave]]:
    """Run four units on a line; each poll of unit 1 is the last of its period."""
    async with devices_on(kind, *commands) as (place, devices):
        link = ModbusClientLink("net", place, [unit(n, SCAN_S, TIMEOUT_S) for n in (2, 3, 4, 1)])
        for state, slot in zip(link._states, (0.0, 0.25, 0.5, 0.75), strict=True):
            state.turns.slot = slot
        watch = Watch(link)
        async with watching(watch):
            yield watch, devices
            assert watch.lost == {}


def delay(watch: Watch, device: str, since_s: float) -> float:
    """Return by how much updates of a device were later than a period at the worst."""
    return longest_gap(watch.good_at_s[device], since_s, time.monotonic()) - SCAN_S


@pytest.mark.system
@pytest.mark.parametrize("kind", KINDS)
async def test_three_units_of_four_that_die_at_once_hold_the_live_one_up_by_two_scans_and_a_timeout(
    kind: str,
) -> None:
    async with four_units(kind, "answer 1-4") as (watch, devices):
        await watch.all_good()
        await asyncio.sleep(0.5)
        good = len(watch.good_at_s["unit1"])
        await eventually(lambda: len(watch.good_at_s["unit1"]) > good)
        since_s = watch.good_at_s["unit1"][-1]
        await devices.tell("silent 2-4")
        await eventually(lambda: len(watch.bad) == 30, 5.0, "the dead ones are bad")
        bad_after_s = time.monotonic() - since_s
        await asyncio.sleep(1.0)
        late_s = delay(watch, "unit1", since_s)
        print(f"\n{kind}: {late_s * 1000:.0f} ms late, the dead ones are bad after {bad_after_s:.1f} s")
        assert late_s <= 2 * SCAN_S + TIMEOUT_S + GRACE_S


async def stay_dead(kind: str, dead_s: float) -> None:
    async with four_units(kind, "answer 1-4") as (watch, devices):
        await watch.all_good()
        await devices.tell("silent 2-4")
        await eventually(lambda: len(watch.bad) == 30, 5.0, "the dead ones are bad")
        assert set(watch.bad.values()) == {"timeout"}
        since_s = time.monotonic()
        await asyncio.sleep(dead_s)
        back_s = time.monotonic()
        await devices.tell("answer 2-4")
        await watch.all_good(10.0)
        back_after_s = time.monotonic() - back_s
        await asyncio.sleep(0.5)
        late_s = delay(watch, "unit1", since_s)
        print(f"\n{kind}: {late_s * 1000:.0f} ms late, the dead ones are back after {back_after_s:.1f} s")
        assert late_s <= 2 * SCAN_S + TIMEOUT_S + GRACE_S
        for number in (1, 2, 3, 4):
            told = [event.is_online for _, event in watch.health if event.device == f"unit{number}"]
            assert told == ([True] if number == 1 else [True, False, True])


@pytest.mark.system
async def test_units_that_stay_dead_cost_a_timeout_at_most_and_are_back_within_ten_seconds() -> None:
    await on_both(lambda kind: stay_dead(kind, 13.0 * SCALE))


@pytest.mark.system
async def test_units_that_were_dead_from_the_start_hold_the_live_one_up_no_more() -> None:
    async def begin(kind: str) -> None:
        began_s = time.monotonic()
        async with four_units(kind, "answer 1") as (watch, devices):
            await asyncio.sleep(4.0)
            first_s = longest_gap(watch.good_at_s["unit1"], began_s, time.monotonic())
            late_s = delay(watch, "unit1", began_s + 2.0)
            print(f"\n{kind}: first {first_s * 1000:.0f} ms, then {late_s * 1000:.0f} ms late")
            # Nobody knows yet who is dead: each may be waited for once; and a serial line settles first.
            assert first_s <= 3 * TIMEOUT_S + 5 * SCAN_S + GRACE_S
            assert late_s <= 2 * SCAN_S + TIMEOUT_S + GRACE_S
            await devices.tell("answer 1-4")
            await watch.all_good(10.0)

    await on_both(begin)


async def become_slow(kind: str) -> None:
    scan_s, timeout_s = 0.4, 0.4
    async with devices_on(kind, "answer 1-3") as (place, devices):
        watch = Watch(ModbusClientLink("net", place, [unit(n, scan_s, timeout_s) for n in (1, 2, 3)]))
        async with watching(watch):
            await watch.all_good()
            await asyncio.sleep(2 * scan_s)
            await devices.tell("delay 2 150", "silent 3")
            await asyncio.sleep(3.0)
            since_s = time.monotonic()
            await asyncio.sleep(4.0)
            until_s = time.monotonic()
            times = watch.good_at_s["unit2"]
            kept = sum(since_s < at_s <= until_s for at_s in times) / ((until_s - since_s) / scan_s)
            gap_s = longest_gap(times, since_s, until_s)
            print(f"\n{kind}: the slow one keeps {kept:.0%}, longest gap {gap_s * 1000:.0f} ms")
            assert [event.is_online for _, event in watch.health if event.device == "unit2"] == [True]
            assert kept >= 0.9
            assert set(watch.bad) == {f"unit3.holding{n}" for n in range(10)}
            bad = [at_s - since_s for at_s in watch.bad_at_s.get("unit2", ()) if at_s > since_s]
            assert not bad, f"values were bad although the unit was in time, after {bad}"


@pytest.mark.system
async def test_a_unit_that_becomes_slow_beside_a_dead_one_but_is_in_time_keeps_its_values() -> None:
    await on_both(become_slow)


class Crowd:
    """A hundred units on one connection, of which twenty die at once."""

    scan_s, timeout_s = 0.5, 0.25
    dead = range(41, 61)

    def __init__(self, watch: Watch, devices: Slave) -> None:
        self.watch = watch
        self._devices = devices
        self._live = [f"unit{n}" for n in range(1, 101) if n not in self.dead]

    async def die(self) -> None:
        await self._devices.tell(f"silent {self.dead[0]}-{self.dead[-1]}")

    async def come_back(self) -> None:
        await self._devices.tell("answer 1-100")
        await self.watch.all_good(10.0 + self.scan_s)

    async def kept(self, seconds: float) -> tuple[float, float, float]:
        """Return what share of their updates the live ones have from now on, the least of them, and the gap."""
        since_s = time.monotonic()
        await asyncio.sleep(seconds)
        until_s = time.monotonic()
        due = (until_s - since_s) / self.scan_s
        times = self.watch.good_at_s
        shares = [sum(since_s < at_s <= until_s for at_s in times[device]) / due for device in self._live]
        gap_s = max(longest_gap(times[device], since_s, until_s) for device in self._live)
        share = sum(shares) / len(shares)
        print(f"\n{share:.1%}, least {min(shares):.1%}, longest gap {gap_s * 1000:.0f} ms")
        return share, min(shares), gap_s


@asynccontextmanager
async def crowd(connections: int) -> AsyncIterator[Crowd]:
    async with slave("values mixed", "answer 1-100") as devices:
        place = TcpPlace("127.0.0.1", devices.port)
        units = [unit(n, Crowd.scan_s, Crowd.timeout_s) for n in range(1, 101)]
        watch = Watch(ModbusClientLink("net", place, units, connections=connections))
        async with watching(watch):
            await watch.all_good()
            await asyncio.sleep(2 * Crowd.scan_s)
            yield Crowd(watch, devices)


@pytest.mark.system
async def test_twenty_dead_units_of_a_hundred_cost_the_live_ones_hardly_an_update() -> None:
    async with asyncio.TaskGroup() as scenes:
        for connections in (1, 3):
            scenes.create_task(lose_twenty(connections))


async def lose_twenty(connections: int) -> None:
    async with crowd(connections) as units:
        await units.die()
        offline: set[str] = set()

        def all_told() -> bool:
            offline.update(event.device for _, event in units.watch.health if not event.is_online)
            return offline == {f"unit{n}" for n in units.dead}

        died_s = time.monotonic()
        await eventually(all_told, 15.0, "the dead ones are known")
        print(f"\nknown to be dead after {time.monotonic() - died_s:.1f} s")
        share, least, gap_s = await units.kept(8.0 * SCALE)
        assert share >= 0.95
        assert least >= 0.85
        assert gap_s - units.scan_s <= 2 * units.scan_s + units.timeout_s + GRACE_S
        await units.come_back()


@pytest.mark.system
async def test_twenty_units_that_die_at_once_cost_the_live_ones_no_more_than_a_few_updates() -> None:
    async with crowd(connections=1) as units:
        await units.die()
        share, least, gap_s = await units.kept(6.0)
        assert share >= 0.92  # each of the twenty has to be waited for once
        assert least >= 0.8
        assert gap_s - units.scan_s <= 2 * units.scan_s + units.timeout_s + GRACE_S


@pytest.mark.system
async def test_the_values_of_units_that_die_at_once_do_not_stay_good() -> None:
    async with crowd(connections=1) as units:
        await units.die()
        names = {f"unit{n}.holding{address}" for n in units.dead for address in range(10)}
        await asyncio.sleep(2 * units.scan_s + 2 * units.timeout_s + GRACE_S)
        still_good = names - set(units.watch.bad)
        assert not still_good, f"{len(still_good)} of {len(names)} values are good and old"


# --- devices that say no ----------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("code", [5, 6])
async def test_a_device_that_is_busy_is_asked_later_and_its_value_is_never_a_zero(code: int) -> None:
    await on_both(lambda kind: be_busy(kind, code))


async def be_busy(kind: str, code: int) -> None:
    async with devices_on(kind, "answer 1-2") as (place, devices):
        units = [unit(1, 0.05, 0.5), unit(2, 0.05, 0.5)]
        watch = Watch(ModbusClientLink("net", place, units))
        async with watching(watch):
            await watch.all_good()
            counted = watch.link.counters["exceptions"]
            await devices.tell(f"busy 1 2 {code}")
            await eventually(lambda: watch.link.counters["exceptions"] == counted + 2)
            good = len(watch.good_at_s["unit1"])
            await eventually(lambda: len(watch.good_at_s["unit1"]) > good + 1, 2.0)
            assert watch.reasons == {}, "a device that is busy for a moment has its values still"
            await devices.tell(f"busy 1 8 {code}")
            await eventually(lambda: watch.bad, 3.0, "busy for long is bad")
            assert set(watch.bad.values()) == {f"device exception {code:02X}"}
            assert {name.split(".")[0] for name in watch.bad} == {"unit1"}
            await watch.all_good(5.0)
            assert all(event.is_online for _, event in watch.health)


@pytest.mark.system
async def test_a_block_that_the_device_cannot_read_is_bad_and_no_other() -> None:
    await on_both(fail_one_block)


async def fail_one_block(kind: str) -> None:
    async with devices_on(kind, "answer 1") as (place, devices):
        points = [*range(10), *range(5000, 5010)]
        watch = Watch(ModbusClientLink("net", place, [unit(1, 0.05, 0.5, points)]))
        async with watching(watch):
            await watch.all_good()
            planned = [group.name for group in watch.link.groups]
            await devices.tell("refuse 5000-5009 4")
            await eventually(lambda: len(watch.bad) == 10)
            since_s = time.monotonic()
            await asyncio.sleep(1.0)
            assert watch.bad == {f"unit1.holding{n}": "device exception 04" for n in range(5000, 5010)}
            assert longest_gap(watch.good_at_s["unit1"], since_s, time.monotonic()) < 0.05 + 0.05 + GRACE_S
            await devices.tell("refuse 5000-5009 0")
            await watch.all_good(1.0)
            assert [group.name for group in watch.link.groups] == planned
            assert watch.regrouped == []
            assert all(event.is_online for _, event in watch.health)


@pytest.mark.system
@pytest.mark.parametrize("code", [0x0A, 0x0B])
async def test_a_gateway_that_cannot_reach_a_unit_loses_us_that_unit_and_not_the_link(code: int) -> None:
    await on_both(lambda kind: lose_a_unit(kind, code))


async def lose_a_unit(kind: str, code: int) -> None:
    async with devices_on(kind, "answer 1-2") as (place, devices):
        watch = Watch(ModbusClientLink("net", place, [unit(1, 0.05, 0.5), unit(2, 0.05, 0.5, [1, 5000])]))
        async with watching(watch):
            await watch.all_good()
            await devices.tell(f"except 2 {code}")
            await eventually(lambda: any(not event.is_online for _, event in watch.health))
            assert [event.device for _, event in watch.health if not event.is_online] == ["unit2"]
            assert set(watch.bad) == {"unit2.holding1", "unit2.holding5000"}
            assert set(watch.bad.values()) == {f"device exception {code:02X}"}
            since_s = time.monotonic()
            await devices.count()
            await asyncio.sleep(1.5)
            assert longest_gap(watch.good_at_s["unit1"], since_s, time.monotonic()) < 0.05 + 0.05 + GRACE_S
            assert await devices.count() < 1.5 / 0.05 + 12, "a demoted unit is hardly asked"
            await devices.tell("answer 2")
            await watch.all_good(10.0)
            assert watch.lost == {}
