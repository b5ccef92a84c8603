"""What routes write to points whose memory wears: once, with a trace on the disk, and never beyond the budget."""

import asyncio
import os
import threading

import pytest
from conftest import eventually
from recording_plc import RecordingPlc

from fieldbus.gateway.commands.audit import export
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway

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
