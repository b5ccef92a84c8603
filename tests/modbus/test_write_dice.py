"""Devices with dice, in virtual time: what may have been done is not repeated, and 'written' is the device's word."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import suppress

import pytest
from support.dice_device import Dice
from support.virtual import World

from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, Event, Target, WriteOutcome, WriteResult
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Framing, TcpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.units import Unit
from fieldbus.model import Quality, Reason, Sample

PORT = 1502
SECONDS = 120.0
PERIOD_S = 0.1
NOT_DONE = ("refused", "busy")
"""Habits after which the device has certainly not what it was given."""


class Source:
    """Offers a value again and again until it is written, as a route does, and another one now and then."""

    def __init__(self, link: ModbusClientLink, own: RegisterPoint, seed: int) -> None:
        self.link, self.own = link, own
        self.random = random.Random(seed)
        self.value = 0
        self.is_missed = True
        self.results: list[tuple[float, WriteResult]] = []

    def report(self, event: Event) -> None:
        if isinstance(event, WriteResult):
            self.results.append((asyncio.get_running_loop().time(), event))
            is_done = event.outcome in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)
            is_no = event.outcome is WriteOutcome.FAILED and event.reason == "device exception 03"
            if event.value == self.value and not is_done and not is_no:
                self.is_missed = True

    async def connect(self) -> None:
        while True:
            with suppress(LinkDownError):
                await self.link.connect()
                await self.link.run(lambda _: None, self.report)
            await self.link.close()
            await asyncio.sleep(0.3)

    async def offer(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end_s, next_s = loop.time() + seconds, 0.0
        while loop.time() < end_s:
            if loop.time() >= next_s:
                next_s = loop.time() + self.random.uniform(3.0, 20.0)
                self.value += 1
                self.is_missed = True
            if self.is_missed:
                sample = Sample(self.value, Quality.GOOD, None, 1)
                delivery = Delivery(Target("net", self.own.point), self.own.point, sample)
                self.is_missed = bool(self.link.send([delivery]))
            await asyncio.sleep(PERIOD_S)


def played(dice: Dice, access: str) -> Source:
    """Let a source write to a device for some minutes; return what was reported."""
    world = World()
    settings = PointSettings(table="holding", address=5, access=access)
    own = settings.build("plc", "setpoint", is_served=False)
    other = PointSettings(table="holding", address=5).build("plc", "shown", is_served=False)
    points = [own, other] if access == "write" and dice.is_readable else [own]
    unit = Unit("plc", 1, points, 1.0, 0.4)
    framing = Framing.RTU if dice.is_rtu else Framing.MBAP
    found: list[Source] = []

    async def main() -> None:
        clock, _ = world.clock()
        link = ModbusClientLink("net", TcpPlace("127.0.0.1", PORT, framing), [unit], clock=clock)
        source = Source(link, own, dice.seed)
        found.append(source)
        server = await asyncio.get_running_loop().create_server(dice.make, "127.0.0.1", PORT)
        keeping = asyncio.create_task(source.connect())
        await source.offer(SECONDS)
        dice.is_calm = True
        await source.offer(150.0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await link.close()
        server.close()

    world.run(main())
    return found[0]


def repeated(dice: Dice) -> list[str]:
    """Return writes that were repeated though nothing showed that the device has them not."""
    found = []
    events = dice.events
    last: int | None = None
    for index, event in enumerate(events):
        if event.kind != "write":
            continue
        if last is not None and events[last].value == event.value and events[last].habit not in NOT_DONE:
            between = events[last + 1 : index]
            has_shown = any(e.kind == "read" and e.is_said and e.value != event.value for e in between)
            pause_s = event.at_s - events[last].at_s
            if not has_shown and (dice.is_readable or pause_s < 1.0):
                found.append(f"{event.value} at {event.at_s:.1f} s after {events[last]}")
        last = index
    return found


def unfounded(dice: Dice, source: Source) -> list[str]:
    """Return results that say more than the device did."""
    found = []
    for at_s, result in source.results:
        before = [event for event in dice.events if event.at_s <= at_s]
        is_confirmed = any(e.kind == "write" and e.value == result.value and e.is_said for e in before)
        has_shown = any(e.kind == "read" and e.value == result.value and e.is_said for e in before)
        if (result.outcome is WriteOutcome.WRITTEN and not is_confirmed) or (
            result.outcome is WriteOutcome.VERIFIED and not has_shown
        ):
            found.append(f"{result} at {at_s:.2f} s")
    return found


@pytest.mark.parametrize("line", ["mbap", "rtu", "rtu with echo"])
@pytest.mark.parametrize("access", ["readwrite", "write", "unreadable"])
@pytest.mark.parametrize("seed", range(3))
def test_no_write_is_repeated_or_called_written_without_the_devices_word(
    line: str, access: str, seed: int
) -> None:
    dice = Dice(
        seed, is_rtu=line != "mbap", has_echo=line == "rtu with echo", is_readable=access != "unreadable"
    )
    source = played(dice, "write" if access == "unreadable" else access)
    writes = [event for event in dice.events if event.kind == "write"]
    assert len({event.value for event in writes}) > 5, "hardly anything was tried"
    assert unfounded(dice, source) == []
    if access == "readwrite":
        assert repeated(dice) == []
    else:  # nothing can be read of the point itself: the pauses grow
        assert len(writes) < 20 * len({event.value for event in writes})
    assert dice.word == source.value, "in the end the device has what its source says"
    _, last = source.results[-1]
    assert (last.value, last.outcome in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)) == (dice.word, True)


def test_what_cannot_be_read_is_repeated_after_growing_pauses() -> None:
    dice = Dice(1, is_readable=False)
    dice.random.choice = lambda habits: "done and silent" if "lost" in habits else "good"  # type: ignore[method-assign]
    source = played(dice, "write")
    writes = [event for event in dice.events if event.kind == "write" and event.habit != "good"]
    by_value: dict[int, list[float]] = {}
    for event in writes:
        by_value.setdefault(event.value, []).append(event.at_s)
    assert max(len(times) for times in by_value.values()) <= 5
    pauses = [b - a for times in by_value.values() for a, b in itertools.pairwise(times)]
    assert min(pauses) >= 1.0
    unknown = [result for _, result in source.results if result.outcome is WriteOutcome.UNKNOWN]
    assert {result.reason for result in unknown} == {Reason.TIMEOUT}
