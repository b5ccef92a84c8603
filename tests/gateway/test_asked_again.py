"""What was allowed when a write was given is asked again when its request goes on the wire."""

import asyncio

import pytest
from conftest import eventually
from recording_plc import RecordingPlc

from fieldbus.gateway.commands.audit import export
from fieldbus.gateway.commands.command import Command
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway

PLANT = """version: 1
gateway: {{name: gw, audit: {{routes: each}}}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 2s}}
  source: {{type: modbus-tcp, host: 127.0.0.1, port: {source}, timeout: 2s}}
devices:
  press:
    link: plc
    scan: 20ms
    points:
      speed: {{table: holding, address: 0, access: readwrite, only_if: oven.door == 1}}
      level: {{table: holding, address: 1, access: readwrite}}
      flag: {{table: holding, address: 5, bit: 3, access: readwrite, only_if: oven.door == 1}}
      routed: {{table: holding, address: 20, access: readwrite, only_if: oven.door == 1}}
  oven:
    link: source
    scan: 20ms
    points:
      door: {{table: holding, address: 0}}
      wanted: {{table: holding, address: 1}}
routes:
  - {{from: oven.wanted, to: press.routed}}
"""


class Works:
    def __init__(self, folder, plc, source):
        self.folder, self.plc, self.source = folder, plc, source
        file = folder / "plant.yaml"
        file.write_text(PLANT.format(plc=plc.port, source=source.port))
        self.gateway = Gateway(load(file))

    async def __aenter__(self):
        self.task = asyncio.create_task(self.gateway.run())
        self.source.words["holding", 0] = 1
        await self.see("oven.door", 1)
        await self.see("press.speed", 0)
        return self

    async def __aexit__(self, *_):
        self.plc.answers.set()
        self.gateway.stop()
        await asyncio.wait_for(self.task, 10)

    async def see(self, address, value):
        point = self.gateway.plant.points[address]
        await eventually(lambda: self.gateway.router.sample(point).value == value)

    async def stall(self):
        """Let a poll be under way that is not answered."""
        self.plc.answers.clear()
        await eventually(lambda: self.plc.waiting)

    async def open_the_door(self):
        self.source.words["holding", 0] = 0
        await self.see("oven.door", 0)

    def give(self, point, value):
        now_ns = self.gateway.clock.wall_ns()
        command = Command("local", "", "local", point, value, given_ns=now_ns, expires_ns=now_ns + 10**10)
        return asyncio.create_task(self.gateway.desk.execute(command))

    def records(self, point):
        found = export(self.folder / "data" / "audit")
        return [(item["outcome"], item["value"]) for item in found if item["point"] == point]


@pytest.fixture
async def works(tmp_path):
    async with RecordingPlc() as plc, RecordingPlc() as source, Works(tmp_path, plc, source) as found:
        yield found


async def test_an_interlock_that_opens_while_a_write_waits_stops_it(works):
    await works.stall()
    asking = works.give("press.speed", 5)
    await eventually(lambda: works.gateway.plant.links["plc"]._writes)
    await works.open_the_door()
    works.plc.answers.set()
    answer = await asking
    said = "interlock: oven.door == 1 does not hold (it is 0)"
    assert (answer.outcome, answer.reason) == ("refused", said)
    assert works.plc.values(0) == []
    assert works.records("press.speed") == [("intent", 5), ("refused", 5)]


async def test_a_neighbour_that_is_still_allowed_is_written(works):
    await works.stall()
    asking = [works.give("press.speed", 5), works.give("press.level", 6)]
    await asyncio.sleep(0.1)
    await works.open_the_door()
    works.plc.answers.set()
    assert [(await answer).outcome for answer in asking] == ["refused", "written"]
    assert (works.plc.values(0), works.plc.values(1)) == ([], [6])


async def test_it_is_asked_after_what_has_to_be_read_before(works):
    """A bit is written beside what is really there: the interlock opens during that read."""
    reads = 0
    answer = works.plc._answer

    def stalls(pdu):
        nonlocal reads
        if pdu[:5] == bytes((3, 0, 5, 0, 1)):
            reads += 1
            works.plc.answers.clear()
        return answer(pdu)

    works.plc._answer = stalls
    asking = works.give("press.flag", True)
    await eventually(lambda: reads and works.plc.waiting)
    await works.open_the_door()
    works.plc.answers.set()
    assert (await asking).outcome == "refused"
    assert works.plc.values(5) == []


async def test_what_a_route_wrote_is_stopped_too_and_recorded_so(works):
    works.source.words["holding", 1] = 7
    await eventually(lambda: works.plc.values(20)[-1:] == [7])
    await works.stall()
    works.source.words["holding", 1] = 8
    await works.see("oven.wanted", 8)
    await works.open_the_door()
    works.plc.answers.set()
    await eventually(lambda: ("refused", 8) in works.records("press.routed"))
    await asyncio.sleep(0.1)
    assert works.plc.values(20)[-1] == 7
    works.source.words["holding", 0] = 1
    works.source.words["holding", 1] = 9
    await eventually(lambda: works.plc.values(20)[-1] == 9)
