"""What routes write to points whose memory wears: once, with a trace on the disk, and never beyond the budget."""

import asyncio
import os
import threading

import pytest
from conftest import eventually
from recording_plc import RecordingPlc

from fieldbus.clock import Clock
from fieldbus.gateway.commands.audit import export
from fieldbus.gateway.commands.command import Answer, Command
from fieldbus.gateway.commands.worn import WornPoints
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import Delivery, Target, WriteOutcome
from fieldbus.model import Access, Kind, Point, Quality, Sample

PLANT = """version: 1
gateway: {{name: gw}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 300ms}}
  source: {{type: modbus-tcp, host: 127.0.0.1, port: {source}, timeout: 300ms}}
devices:
  press:
    link: plc
    scan: 50ms
    points:
      daily: {{table: holding, address: 0, access: readwrite, non_volatile: 4}}
      live: {{table: holding, address: 10, access: readwrite}}
  oven:
    link: source
    scan: 20ms
    points:
      wanted: {{table: holding, address: 0}}
routes:
  - {{from: oven.wanted, to: press.daily}}
  - {{from: oven.wanted, to: press.live}}
"""


class Works:
    def __init__(self, folder, plc, source):
        self.file = folder / "plant.yaml"
        self.file.write_text(PLANT.format(plc=plc.port, source=source.port))
        self.plc, self.source = plc, source
        self.folder = folder

    async def __aenter__(self):
        self.gateway = Gateway(load(self.file))
        self.task = asyncio.create_task(self.gateway.run())
        return self

    async def __aexit__(self, *_):
        self.gateway.stop()
        await asyncio.wait_for(self.task, 10)

    async def want(self, value):
        """Let the source have a value, and wait until the other point has it."""
        self.source.words["holding", 0] = value
        await eventually(lambda: self.plc.values(10)[-1:] == [value])

    def records(self):
        found = [item for item in export(self.folder / "data" / "audit") if item["point"] == "press.daily"]
        return [(item["outcome"], item["value"]) for item in found]


@pytest.fixture
async def source():
    async with RecordingPlc() as found:
        yield found


@pytest.fixture
async def plc():
    async with RecordingPlc() as found:
        yield found


async def test_each_write_of_a_route_has_its_intent_and_its_end(tmp_path, plc, source, monkeypatch):
    seen = []
    real = os.fdatasync

    def sync(fd):
        real(fd)
        seen.append(len(plc.values(0)))

    monkeypatch.setattr(os, "fdatasync", sync)
    source.words["holding", 0] = 1
    async with Works(tmp_path, plc, source) as works:
        for value in (1, 2, 3, 4):
            await works.want(value)
            await eventually(lambda value=value: plc.values(0)[-1:] == [value])
        await works.want(5)
        await eventually(lambda: ("refused", 5) in works.records())
        assert plc.values(0) == [1, 2, 3, 4]
    written = [item for value in (1, 2, 3, 4) for item in (("intent", value), ("written", value))]
    assert works.records()[:8] == written
    assert seen[0] == 0  # the first intent was on the disk before anything was written
    source.words["holding", 0] = 6
    async with Works(tmp_path, plc, source) as works:
        await works.want(6)
        await asyncio.sleep(0.1)
    assert plc.values(0) == [1, 2, 3, 4]


async def test_while_the_disk_hangs_other_points_are_written_and_then_the_newest_value(
    tmp_path, plc, source, monkeypatch
):
    hangs = threading.Event()
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (hangs.wait(20), real(fd)))
    source.words["holding", 0] = 1
    async with Works(tmp_path, plc, source) as works:
        for value in (1, 2, 3):
            await works.want(value)
        assert plc.values(0) == []
        hangs.set()
        await eventually(lambda: plc.values(0)[-1:] == [3])
        assert plc.values(0) == [1, 3]


async def test_what_is_not_connected_uses_up_no_budget(tmp_path, plc, source):
    source.words["holding", 0] = 1
    async with Works(tmp_path, plc, source) as works:
        await eventually(lambda: plc.values(0) == [1])
        await plc.__aexit__()
        sampled = works.gateway.plant.points["sys.plc.connected"]
        await eventually(lambda: not works.gateway.router.sample(sampled).value)
        for value in range(2, 20):
            source.words["holding", 0] = value
            await asyncio.sleep(0.03)
        await plc.__aenter__()
        await eventually(lambda: plc.values(0)[-1:] == [19], 15)
    intents = [value for outcome, value in works.records() if outcome == "intent"]
    assert len(intents) <= 3


async def test_an_intent_without_an_end_is_charged_to_the_budget(tmp_path, plc, source, caplog):
    source.words["holding", 0] = 1
    async with Works(tmp_path, plc, source) as works:
        await eventually(lambda: plc.values(0) == [1])
        audit = works.gateway.audit
        for value in (7, 8, 9):
            audit.intend(works.gateway.clock.wall_ns(), {"way": "route", "actor": "route", "point": "press.daily",
                                                         "value": value, "from": "oven.wanted"})  # fmt: skip
    source.words["holding", 0] = 2
    async with Works(tmp_path, plc, source) as works:
        await works.want(2)
        await asyncio.sleep(0.1)
    assert plc.values(0) == [1]
    assert sum("press.daily: unknown outcome of the write" in text for text in caplog.messages) == 3
    assert [item for item in works.records() if item[0] == "unknown outcome"] == [
        ("unknown outcome", 7), ("unknown outcome", 8), ("unknown outcome", 9)
    ]  # fmt: skip


class Around:
    """A gateway that only notes what it is asked for."""

    def __init__(self):
        self.desk = self
        self.clock = Clock(lambda: 100.0, lambda: 0)
        self.begun, self.offered, self.gone = [], [], []

    def write_routed(self, delivery, point, now_s, ended):
        self.begun.append((delivery, point, ended))

    def offer(self, delivery):
        self.offered.append(delivery)

    def missed(self, target):
        self.gone.append(target)


def delivery_of(point, value):
    return Delivery(Target("plc", point), point, Sample(value, Quality.GOOD, None, 0))


def test_after_a_reload_the_write_of_the_earlier_point_is_still_under_way():
    around = Around()
    subject = WornPoints(around, lambda _: True, lambda _: True)
    before, after = (
        Point("press", "daily", Kind.INT, Access.READWRITE, maximum=maximum) for maximum in (100, 9)
    )
    assert not subject.holds(delivery_of(before, 50), before, 100.0)
    subject.begin(delivery_of(before, 50), before, 100.0)
    subject.keep_only({after.address})
    newest = delivery_of(after, 8)
    assert subject.holds(newest, after, 100.1)
    [(delivery, point, ended)] = around.begun
    command = Command("route", "", "route", point.address, 50)
    ended(delivery, point, Answer(command, WriteOutcome.WRITTEN, None, 0, 0, 50))
    assert around.offered == [newest]
    assert not subject.holds(delivery_of(after, 9), after, 100.2)


def test_points_that_a_reload_removes_leave_nothing():
    around = Around()
    subject = WornPoints(around, lambda _: True, lambda _: False)
    point = Point("press", "daily", Kind.INT, Access.READWRITE)
    subject.begin(delivery_of(point, 1), point, 100.0)
    assert subject.holds(delivery_of(point, 2), point, 100.0)
    [(delivery, _, ended)] = around.begun
    command = Command("route", "", "route", point.address, 1)
    subject.keep_only(set())
    ended(delivery, point, Answer(command, WriteOutcome.FAILED, "exception 04", 0, 0, 1))
    assert around.offered == []
    assert subject.holds(delivery_of(point, 3), point, 100.0)  # a failed write waits
    subject.keep_only({"press.other"})
    assert not (subject._failed_s or subject._held or subject._troubles or subject._under_way)
    assert not subject.holds(delivery_of(point, 3), point, 100.0)


GROUPED = """version: 1
gateway: {{name: gw}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 300ms}}
  source: {{type: modbus-tcp, host: 127.0.0.1, port: {source}, timeout: 300ms}}
devices:
  press:
    link: plc
    scan: 50ms
    points:
      low: {{table: holding, address: 0, access: readwrite, group: limits, non_volatile: 4}}
      high: {{table: holding, address: 1, access: readwrite, group: limits, max: 100{guard}}}
  oven:
    link: source
    scan: 20ms
    points:
      low: {{table: holding, address: 0}}
      high: {{table: holding, address: 1}}
routes:
  - {{from: oven.low, to: press.low}}
  - {{from: oven.high, to: press.high}}
"""


@pytest.mark.parametrize("guard", ["", ", non_volatile: 8"])
async def test_members_of_a_group_wait_for_the_disk_together(tmp_path, plc, source, guard):
    file = tmp_path / "plant.yaml"
    file.write_text(GROUPED.format(plc=plc.port, source=source.port, guard=guard))
    source.words |= {("holding", 0): 1, ("holding", 1): 11}
    gateway = Gateway(load(file))
    running = asyncio.create_task(gateway.run())
    for low, high in ((1, 11), (2, 12), (3, 13)):
        source.words |= {("holding", 0): low, ("holding", 1): high}
        await eventually(lambda pair=(low, high): plc.requests and plc.requests[-1].words == pair)
    source.words |= {("holding", 0): 4, ("holding", 1): 101}  # one that is refused stops the other
    await eventually(lambda: gateway._refused)
    await asyncio.sleep(0.1)
    gateway.stop()
    await asyncio.wait_for(running, 10)
    assert [(item.address, item.words) for item in plc.requests] == [(0, (1, 11)), (0, (2, 12)), (0, (3, 13))]
    found = [(item["point"], item["outcome"], item["value"]) for item in export(tmp_path / "data" / "audit")]
    first = [item for item in found if item[2] in (1, 11)]
    assert first[:2] == [("press.low", "intent", 1), ("press.high", "intent", 11)]
    assert sorted(first[2:]) == [("press.high", "written", 11), ("press.low", "written", 1)]
    assert ("press.low", "refused", 4) in found
    assert not [item for item in found if item[2] == 4 and item[1] in ("intent", "written")]
    assert sum(count for _, count in gateway.desk.gate.counted(gateway.clock.monotonic_s())["press.low"]) == 3
