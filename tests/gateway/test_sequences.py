"""What `then` writes after a value: through the guard of its point, and into the audit log."""

import asyncio

import pytest
from conftest import eventually
from recording_plc import RecordingPlc
from support.desk import problems

from fieldbus.gateway import oneshot
from fieldbus.gateway.commands.access import LOCAL
from fieldbus.gateway.commands.audit import export, verify
from fieldbus.gateway.commands.command import Command
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
    scan: 1s
    points:
      limit: {{table: holding, address: 0, access: readwrite, then: {{commit: 1}}}}
      speed: {{table: holding, address: 5, access: readwrite, then: {{commit: 1}}}}
      commit: {{table: coil, address: 9, access: readwrite{guard}}}
  oven:
    link: source
    scan: 20ms
    points:
      wanted: {{table: holding, address: 0}}
"""
ROUTE = "routes:\n  - {from: oven.wanted, to: press.limit}\n"


@pytest.fixture
async def source():
    async with RecordingPlc() as found:
        yield found


@pytest.fixture
async def plc():
    async with RecordingPlc() as found:
        yield found


class Works:
    """A gateway at a PLC whose values need a commit."""

    def __init__(self, folder, plc, source, guard="", routes=""):
        self.folder, self.plc = folder, plc
        (folder / "plant.yaml").write_text(
            PLANT.format(plc=plc.port, source=source.port, guard=guard) + routes
        )

    async def __aenter__(self):
        self.gateway = Gateway(load(self.folder / "plant.yaml"))
        self.task = asyncio.create_task(self.gateway.run())
        await eventually(
            lambda: self.gateway.router.sample(self.gateway.points["press.limit"]).value is not None
        )
        return self

    async def __aexit__(self, *_):
        self.gateway.stop()
        await asyncio.wait_for(self.task, 10)

    async def command(self, point, value):
        command = Command("local", "here", LOCAL, point, value)
        answer = await self.gateway.desk.execute(command)
        return str(answer.outcome), answer.reason

    def records(self, *names):
        assert not verify(self.folder / "data" / "audit").faults
        return [tuple(item.get(name) for name in names) for item in export(self.folder / "data" / "audit")]


async def test_what_follows_a_command_has_an_intent_and_an_end(tmp_path, plc, source):
    async with Works(tmp_path, plc, source) as works:
        assert await works.command("press.limit", 70) == ("written", None)
        found = works.records("n", "way", "actor", "from", "point", "value", "outcome", "intent", "after")
    assert found == [
        (1, "local", LOCAL, "here", "press.limit", 70, "intent", None, None),
        (2, "then", LOCAL, "press.limit", "press.commit", 1, "intent", None, 1),
        (3, "then", LOCAL, "press.limit", "press.commit", 1, "written", 2, 1),
        (4, "local", LOCAL, "here", "press.limit", 70, "written", 1, None),
    ]


async def test_a_budget_of_what_follows_refuses_the_value_before_it_is_sent(tmp_path, plc, source):
    async with Works(tmp_path, plc, source, ", non_volatile: 2") as works:
        assert (await works.command("press.limit", 70))[0] == "written"
        assert (await works.command("press.speed", 71))[0] == "written"
        reason = "not written, because commit = 1 after it was not allowed: its 2 writes a day are used up (non_volatile)"
        assert await works.command("press.limit", 72) == ("refused", reason)
    async with Works(tmp_path, plc, source, ", non_volatile: 2") as works:  # a restart renews nothing
        assert (await works.command("press.limit", 73))[1] == reason
    assert (plc.values(0), plc.values(5), plc.values(9, "coil")) == ([70], [71], [1, 1])


async def test_an_interlock_of_what_follows_refuses_the_value(tmp_path, plc, source):
    async with Works(tmp_path, plc, source, ", only_if: press.speed == 5") as works:
        outcome, reason = await works.command("press.limit", 70)
        assert outcome == "refused"
        assert (
            "commit = 1 after it was not allowed: interlock: press.speed == 5 does not hold (it is 0)"
            in reason
        )
    assert plc.written == []


async def test_a_value_that_the_device_refuses_costs_its_commit_no_budget(tmp_path, plc, source):
    async with Works(tmp_path, plc, source, ", non_volatile: 1") as works:
        plc.refuses_writes = True
        assert (await works.command("press.limit", 70))[0] == "failed"
        plc.refuses_writes = False
        assert (await works.command("press.limit", 70))[0] == "written"
        found = works.records("way", "outcome", "reason")
    assert ("then", "refused", "not sent: press.limit was not written") in found
    assert plc.values(9, "coil") == [1]


async def test_what_follows_the_values_of_routes_is_summed_up(tmp_path, plc, source):
    source.words["holding", 0] = 1
    async with Works(tmp_path, plc, source, routes=ROUTE) as works:
        for value in (1, 2, 3):
            source.words["holding", 0] = value
            await eventually(lambda count=value: plc.values(9, "coil") == [1] * count)
    found = works.records("way", "actor", "from", "point", "value", "outcome", "count")
    assert ("then", "route", "press.limit", "press.commit", 1, "routed", 3) in found
    assert ("route", "route", "oven.wanted", "press.limit", 3, "routed", 3) in found


async def test_a_route_is_not_written_without_its_commit(tmp_path, plc, source, caplog):
    source.words["holding", 0] = 1
    async with Works(tmp_path, plc, source, ", non_volatile: 1", ROUTE) as works:
        await eventually(lambda: plc.values(0) == [1])
        source.words["holding", 0] = 2
        await eventually(
            lambda: ("route", "press.limit", "refused") in works.records("way", "point", "outcome")
        )
    assert plc.values(0) == [1]
    found = works.records("way", "point", "value", "outcome", "reason")
    assert ("then", "press.commit", 1, "written", None) in found  # with a budget each has its own
    assert (
        "route", "press.limit", 2, "refused", "its 1 writes a day are used up (non_volatile)"
    ) in found  # fmt: skip


async def test_a_write_without_a_gateway_records_and_counts_what_follows(tmp_path, plc, source):
    works = Works(tmp_path, plc, source, ", non_volatile: 1")
    plant = load(tmp_path / "plant.yaml")
    limit = plant.points["press.limit"]
    [first] = await oneshot.write(plant, {limit: 70}, 3.0)
    again = load(tmp_path / "plant.yaml")
    [second] = await oneshot.write(again, {again.points["press.limit"]: 71}, 3.0)
    assert str(first.outcome) == "written"
    assert (str(second.outcome), "used up (non_volatile)" in str(second.reason)) == ("refused", True)
    assert (plc.values(0), plc.values(9, "coil")) == ([70], [1])
    found = works.records("way", "actor", "from", "point", "outcome")
    assert ("then", LOCAL, "press.limit", "press.commit", "intent") in found
    assert ("then", LOCAL, "press.limit", "press.commit", "written") in found


async def test_what_has_to_be_armed_can_follow_nothing(tmp_path, plc, source):
    Works(tmp_path, plc, source, ", confirm: true")
    found = [item for item in problems(tmp_path / "plant.yaml") if "armed first" in item.message]
    assert [item.path for item in found] == [
        "devices.press.points.limit.then.commit",
        "devices.press.points.speed.then.commit",
    ]
