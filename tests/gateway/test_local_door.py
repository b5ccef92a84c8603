"""The local door from outside: `read` and `write` beside a running gateway, whatever happens to its files."""

import asyncio
import dataclasses
import json
import logging
import shutil
import sys

import pytest
from conftest import eventually, free_port
from recording_plc import RecordingPlc

from fieldbus.errors import LinkDownError
from fieldbus.gateway import door_reads
from fieldbus.gateway.commands.audit import export
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer, ask
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.sole_use import take

PLANT = """version: 1
gateway: {{name: gw}}
links:
  net: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 500ms}}
  hmi: {{type: modbus-server, host: 127.0.0.1, port: {hmi}}}
devices:
  node:
    link: net
    scan: 10s
    points:
      value: {{table: holding, address: 0, access: readwrite}}
      other: {{table: holding, address: 50}}
  panel:
    link: hmi
    points:
      shown: {{table: holding, address: 0}}
routes:
  - {{from: node.value, to: panel.shown}}
"""


class OneClientPlc(RecordingPlc):
    """A device that serves one client, and leaves others without an answer."""

    def __init__(self):
        super().__init__()
        self.clients = 0

    async def _serve(self, reader, writer):
        self.clients += 1
        if self.clients > 1:
            await reader.read()
            writer.close()
            return
        await super()._serve(reader, writer)


@pytest.fixture
async def plc():
    async with OneClientPlc() as found:
        found.words["holding", 0] = 42
        yield found


class Runs:
    """A gateway with its door and its locks, as `fieldbus run` has them."""

    def __init__(self, folder, plc):
        self.file = folder / "gateway.yaml"
        self.file.write_text(PLANT.format(plc=plc.port, hmi=free_port()))
        self.plant = load(self.file)
        self.data = self.plant.data_dir
        self.gateway = Gateway(self.plant)
        self.locks = take(self.data, self.file)

    async def __aenter__(self):
        self.door = ControlServer(self.gateway, None, self.locks)
        self.tasks = [asyncio.create_task(self.gateway.run()), asyncio.create_task(self.door.run())]
        await eventually((self.data / "gateway.json").exists)
        await eventually(
            lambda: self.gateway.router.sample(self.plant.points["node.value"]).value is not None
        )
        return self

    async def __aexit__(self, *_):
        await eventually(lambda: not self.door._clients)  # who has only looked is noticed to be gone
        await asyncio.sleep(0.01)
        self.gateway.stop()
        await asyncio.wait_for(self.tasks[0], 10)
        self.tasks[1].cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.locks.release()


@pytest.fixture
async def runs(tmp_path, plc):
    async with Runs(tmp_path, plc) as found:
        yield found


async def run(*arguments):
    """Run a command; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fieldbus", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def read(runs, *points, timeout_s=3.0):
    return await ask(runs.data, {"do": "read", "points": list(points), "timeout_s": timeout_s})


async def test_read_goes_through_the_gateway_where_a_device_serves_one_client(runs, plc):
    plc.words["holding", 0] = 43
    code, said = await run("read", runs.file, "node.value", "--json")
    assert (code, json.loads(said)[0]["value"]) == (0, 43)
    assert plc.clients == 1


async def test_a_read_is_fresh_and_moves_no_scan(runs, plc):
    for value in (1, 2, 3):
        plc.words["holding", 0] = value
        answer = await read(runs, "node.value")
        assert answer["points"][0] == answer["points"][0] | {"point": "node.value", "value": value}
    assert runs.gateway.router.sample(runs.plant.points["node.value"]).value == 3


async def test_a_device_that_is_silent_costs_a_read_its_time_and_no_more(runs, plc):
    plc.answers.clear()
    answer = await read(runs, "node.value", "panel.shown", timeout_s=2.0)
    value, shown = answer["points"]
    assert (value["quality"], value["reason"]) == ("bad", "timeout")
    assert shown["point"] == "panel.shown"
    plc.answers.set()


async def test_several_points_come_in_the_order_in_which_they_were_asked_for(runs, plc):
    plc.words["holding", 50] = 7
    answer = await read(runs, "node.other", "panel.shown", "node.value")
    assert [(item["point"], item["value"]) for item in answer["points"]] == [
        ("node.other", 7), ("panel.shown", 42), ("node.value", 42)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"points": ["node.none"]}, "the running gateway has no point 'node.none'; was it reloaded?"),
        (
            {"points": ["sys.net.connected"]},
            "sys.net.connected is the running gateway's own: use `fieldbus watch`",
        ),
        ({"points": []}, f"`points` is a list of addresses, at most {door_reads.MOST_POINTS}"),
        ({"points": "node.value"}, f"`points` is a list of addresses, at most {door_reads.MOST_POINTS}"),
        ({"points": [5]}, "the running gateway has no point '5'; was it reloaded?"),
        ({"points": ["node.value"], "timeout_s": 0}, "`timeout_s` is a number of seconds, at most 300"),
        ({"points": ["node.value"], "timeout_s": True}, "`timeout_s` is a number of seconds, at most 300"),
    ],
)
async def test_a_read_that_makes_no_sense_is_refused_in_words(runs, request_, text):
    answer = await ask(runs.data, {"do": "read", **request_})
    assert (answer["ok"], answer["text"]) == (False, text)


async def test_a_deleted_data_folder_is_noticed_and_nobody_goes_past_the_gateway(runs, plc, caplog):
    shutil.rmtree(runs.data)
    code, said = await run("write", runs.file, "node.value=5", "--timeout", "5s")
    assert code == 0, said
    assert plc.values(0) == [5]
    assert plc.clients == 1
    assert any(f"the data folder {runs.data} was deleted or replaced" in text for text in caplog.messages)
    assert (runs.data / "audit" / "audit.jsonl").exists()
    answer = await ask(runs.data, {"do": "health"})
    assert answer is not None
    caplog.clear()
    await asyncio.sleep(1.2)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_without_a_door_a_write_is_refused_and_not_done_beside_the_gateway(tmp_path, plc):
    file = tmp_path / "gateway.yaml"
    file.write_text(PLANT.format(plc=plc.port, hmi=free_port()))
    locks = take(tmp_path / "data", file)
    shutil.rmtree(tmp_path / "data")
    try:
        for command in (("write", file, "node.value=5", "--timeout", "1s"), ("read", file, "node.value")):
            code, said = await run(*command)
            assert code == 1
            assert "its local door cannot be reached" in said
    finally:
        locks.release()
    assert plc.clients == 0
    assert not plc.written


@pytest.mark.system
async def test_a_gateway_that_was_killed_tells_of_the_write_that_was_under_way(tmp_path, fieldbus):
    file = tmp_path / "gateway.yaml"
    data = tmp_path / "data"
    async with RecordingPlc() as plc:
        file.write_text(PLANT.format(plc=plc.port, hmi=free_port()))
        process = fieldbus("run", str(file))
        await eventually((data / "gateway.json").exists, 20)
        asked = await ask(data, {"do": "write", "point": "node.value", "value": 4})
        assert asked["outcome"] == "written"
        plc.answers.clear()
        asking = asyncio.create_task(ask(data, {"do": "write", "point": "node.value", "value": 5}))
        await eventually(lambda: plc.values(0) == [4, 5], 10)
        process.kill()
        await asyncio.gather(asking, return_exceptions=True)
        plc.answers.set()
        (data / "gateway.json").unlink()
        again = fieldbus("run", str(file))
        await eventually((data / "gateway.json").exists, 20)
        said = await asyncio.to_thread(again.stop)
        assert "node.value: unknown outcome of the write of 5 by local" in said
        assert plc.values(0) == [4, 5]
    records = [(record["outcome"], record["value"]) for record in export(data / "audit")]
    assert records == [("intent", 4), ("written", 4), ("intent", 5), ("unknown outcome", 5)]


@pytest.mark.parametrize("is_listener", [False, True])
async def test_a_reload_between_asking_and_reading_is_answered_in_words(runs, is_listener):
    point = runs.plant.points["panel.shown" if is_listener else "node.value"]
    link = "hmi" if is_listener else "net"
    asked = asyncio.create_task(door_reads.read(runs.gateway, [point], 3.0))
    await asyncio.sleep(0)  # the links have not been asked yet
    before = runs.gateway.plant
    runs.gateway.plant = dataclasses.replace(before, links={})
    try:
        with pytest.raises(LinkDownError) as found:
            await asked
    finally:
        runs.gateway.plant = before
    text = f"the configuration was reloaded meanwhile, and link {link} was changed or removed; read again"
    assert str(found.value) == text
    answer = await door_reads.answer(
        runs.gateway, {"do": "read", "points": [point.address], "timeout_s": 0.1}
    )
    assert answer["ok"]
