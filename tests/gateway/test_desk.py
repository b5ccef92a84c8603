"""Commands from the door to the device: gate, link, audit log, answer, and what happens when one of them fails."""

import asyncio
import json
import logging
import os
import shutil
import threading
import time

import pytest
from conftest import eventually
from recording_plc import RecordingPlc

from fieldbus.cli.run import load_again
from fieldbus.clock import Clock
from fieldbus.gateway import oneshot
from fieldbus.gateway.commands.access import Access, Actor
from fieldbus.gateway.commands.attempts import DISK_GRACE_S
from fieldbus.gateway.commands.audit import Audit, export, verify
from fieldbus.gateway.commands.bundle import Bundle
from fieldbus.gateway.commands.command import Command
from fieldbus.gateway.commands.conditions import Condition
from fieldbus.gateway.commands.desk import LONGEST_ADDRESS, MOST_AT_ONCE, Desk
from fieldbus.gateway.commands.gate import Gate, Guard
from fieldbus.gateway.commands.silence import is_overdue
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer, ask
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import Delivery, Instruction, Target, WriteOutcome, WriteResult
from fieldbus.model import Access as May
from fieldbus.model import Kind, Point, Quality, Sample
from fieldbus.mqtt.peering import sign

SPEED = Point("press", "speed", Kind.INT, May.READWRITE, minimum=0, maximum=3000)
LEVEL = Point("press", "level", Kind.INT, May.READWRITE)
POINTS = {point.address: point for point in (SPEED, LEVEL)}
KEY = b"a key that nobody sees"


class Office:
    """A desk whose link is a list."""

    def __init__(self, folder, guards=None, *, each=True):
        self.folder = folder
        self.guards = guards or {}
        self.sent = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.outcome = WriteOutcome.VERIFIED
        self.each = each
        self.open()

    def open(self):
        access = Access({"operator": Actor(("press.*",)), "signer": Actor(("press.*",), KEY)})
        self.sample = Sample(7, Quality.GOOD, None, 0)
        gate = Gate(POINTS, self.guards, access.may_write, lambda _: self.sample)
        self.audit = Audit(self.folder)
        self.desk = Desk(gate, access, self.audit, self._write, lambda _: self.sample, records_each=self.each)
        self.replies = []

    async def _write(self, point, value, until_s):
        self.sent.append((point.address, value))
        await self.answers.wait()
        return WriteResult(point, value, self.outcome)

    def instruction(
        self, value=1, *, actor="operator", point="press.speed", signature=None, is_retained=False, **more
    ):
        data = {"value": value, "id": f"{time.monotonic_ns()}", "time": time.time()} | more
        topic = f"fieldbus/gw/command/{actor}/{point.replace('.', '/', 1)}"
        payload = json.dumps(data).encode()
        if signature is True:
            signature = sign(KEY, topic, payload)
        reply = lambda data: self.replies.append(data)  # noqa: E731, PLW0108 - the list of that moment
        return Instruction(topic, actor, point, payload, signature, is_retained, reply)

    async def give(self, *arguments, **more):
        """Give a command on a topic and return the answer."""
        before = len(self.replies)
        self.desk.instruct(self.instruction(*arguments, **more))
        await eventually(lambda: len(self.replies) > before)
        return json.loads(self.replies[-1])

    def records(self):
        """Return how attempts ended."""
        return [record for record in export(self.folder) if record["outcome"] != "intent"]

    def intents(self):
        return [record for record in export(self.folder) if record["outcome"] == "intent"]


@pytest.fixture
async def office(tmp_path):
    found = Office(tmp_path)
    yield found
    found.answers.set()
    await found.desk.close()
    found.audit.close()
    assert not verify(tmp_path).faults


# --- one command


async def test_a_command_is_done_recorded_and_answered(office):
    answer = await office.give(1500, id="a")
    assert answer == answer | {
        "point": "press.speed", "value": 1500, "outcome": "verified", "reason": None, "id": "a"
    }  # fmt: skip
    assert set(answer) == {"point", "value", "outcome", "reason", "id", "time", "took_ms"}
    assert office.sent == [("press.speed", 1500)]
    [record] = office.records()
    assert record == record | {
        "way": "mqtt", "actor": "operator", "from": "fieldbus/gw/command/operator/press/speed",
        "point": "press.speed", "value": 1500, "old": 7, "outcome": "verified", "reason": None, "id": "a",
    }  # fmt: skip


async def test_the_record_is_there_before_the_answer(office):
    seen = []
    instruction = office.instruction()._replace(reply=lambda _: seen.append(len(office.records())))
    office.desk.instruct(instruction)
    await eventually(lambda: seen)
    assert seen == [1]


async def test_the_intent_is_on_the_disk_before_the_request_is_sent(office, monkeypatch):
    """Synced, not only written: a power cut after the request must leave a trace of it."""
    happened = []
    real_sync, real_write = os.fdatasync, office.desk._attempts._write

    def sync(fd):
        real_sync(fd)
        happened.append(("synced", [record["n"] for record in office.intents()]))

    async def write(point, value, until_s):
        happened.append(("sent", value))
        return await real_write(point, value, until_s)

    monkeypatch.setattr(os, "fdatasync", sync)
    office.desk._attempts._write = write
    assert (await office.give(5, id="a"))["outcome"] == "verified"
    assert happened == [("synced", [1]), ("sent", 5)]
    [intent] = office.intents()
    assert intent == intent | {"value": 5, "point": "press.speed", "actor": "operator", "id": "a", "old": 7}
    [record] = office.records()
    assert (record["outcome"], record["intent"]) == ("verified", 1)


async def test_what_is_refused_at_once_needs_no_intent(office):
    assert (await office.give(3001))["outcome"] == "refused"
    assert not office.intents()


async def test_many_that_wait_for_the_disk_are_served_together(office, monkeypatch):
    syncs = []
    real = os.fdatasync

    def sync(fd):
        time.sleep(0.05)
        syncs.append(len(office.intents()))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    office.desk.gate._points = {
        f"press.p{n}": Point("press", f"p{n}", Kind.INT, May.WRITE) for n in range(50)
    }
    for number in range(50):
        office.desk.instruct(office.instruction(number, point=f"press.p{number}"))
    await eventually(lambda: len(office.replies) == 50)
    assert len(office.sent) == 50
    assert len(syncs) <= 3


async def test_a_disk_that_hangs_costs_commands_and_not_the_loop_nor_a_safe_value(tmp_path, monkeypatch):
    guards = {SPEED: Guard(fallback_after_s=1.0, fallback_value=0)}
    office = Office(tmp_path, guards)
    hangs = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: hangs.wait(10))
    office.desk.instruct(office.instruction(5, id="a", expires=1))
    office.desk.instruct(office.instruction(6, point="press.level", id="b", expires=1))
    await asyncio.sleep(0.02)
    assert not office.sent
    assert office.desk.is_busy(SPEED)  # a command that is about to be written is waited for
    await asyncio.sleep(DISK_GRACE_S)
    assert not office.desk.is_busy(SPEED)  # but not for long
    begun_s = time.monotonic()
    assert await office.desk.fall_back(SPEED, guards[SPEED]) is WriteOutcome.VERIFIED
    assert time.monotonic() - begun_s < 0.05
    await eventually(lambda: len(office.replies) == 2)
    hangs.set()
    ended = {record["point"]: record["reason"] for record in office.records() if record["way"] == "mqtt"}
    assert ended == dict.fromkeys(("press.speed", "press.level"), "its record was not on the disk in time")
    assert office.sent == [("press.speed", 0)]
    await office.desk.close()
    office.audit.close()


async def test_what_waited_for_the_disk_is_not_written_over_a_safe_value(tmp_path, monkeypatch):
    guards = {SPEED: Guard(fallback_after_s=1.0, fallback_value=0, daily_budget=1)}
    office = Office(tmp_path, guards)
    hangs = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: hangs.wait(10))
    giving = asyncio.create_task(office.give(5))
    await eventually(office.intents)
    await office.desk.fall_back(SPEED, guards[SPEED])
    hangs.set()
    answer = await giving
    assert (answer["outcome"], answer["reason"]) == (
        "refused", "the point went to its safe value while this waited for the disk"
    )  # fmt: skip
    assert office.sent == [("press.speed", 0)]
    await office.desk.close()
    office.audit.close()


async def test_a_disk_that_fails_costs_the_command(office, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    answer = await office.give(5)
    assert (answer["outcome"], answer["reason"]) == (
        "refused", "the audit log cannot be written (input/output error)"
    )  # fmt: skip
    assert not office.sent
    monkeypatch.undo()
    assert (await office.give(6))["outcome"] == "verified"


async def test_what_changes_while_a_command_waits_for_the_disk_is_seen(tmp_path, monkeypatch):
    door = Point("press", "door", Kind.INT)
    condition = Condition(door, "==", 7, "press.door == 7")
    office = Office(tmp_path, {SPEED: Guard(only_if=(condition,), daily_budget=1)})
    hangs = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: hangs.wait(10))
    giving = asyncio.create_task(office.give(5))
    await eventually(office.intents)
    office.sample = Sample(0, Quality.GOOD, None, 0)
    hangs.set()
    assert (await giving)["reason"] == "interlock: press.door == 7 does not hold (it is 0)"
    assert not office.sent
    office.sample = Sample(7, Quality.GOOD, None, 0)
    assert (await office.give(6))["outcome"] == "verified"  # what was not sent used up no budget
    await office.desk.close()
    office.audit.close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"actor": "mallory"}, "'mallory' may not write press.speed (nothing under `access` says so)"),
        ({"actor": ""}, "'' may not write press.speed (nothing under `access` says so)"),
        ({"actor": "route"}, "'route' may not write press.speed (nothing under `access` says so)"),
        ({"actor": "fallback"}, "'fallback' may not write press.speed (nothing under `access` says so)"),
        ({"actor": "local"}, "'local' is who is on the gateway's machine, and does not come by topic"),
        ({"actor": "signer"}, "commands of 'signer' are signed, and this one is not"),
        ({"actor": "signer", "signature": "0" * 64}, "the signature is not that of 'signer'"),
        ({"actor": "signer", "signature": "ä"}, "the signature is not that of 'signer'"),
        ({"is_retained": True}, "a retained command is not executed: nobody knows how often it was already"),
        ({"value": 3001}, "3001 is outside 0 … 3000"),
        ({"value": [1]}, "the command has no `value` that is a number, text, true or false"),
        ({"id": "\ud800", "value": -1}, "-1 is outside 0 … 3000"),
        ({"id": None}, "the command has no `id`, by which it is told from its repetition"),
        ({"time": None}, "the command has no `time` at which it was given: ISO 8601, or Unix seconds"),
        ({"\ud83d": 1}, "unknown key '\ud83d' in the command"),
        ({"point": "press.nothing"}, "there is no point 'press.nothing'"),
        ({"point": "press"}, "'operator' may not write press (nothing under `access` says so)"),
        ({"point": "press.speed/x"}, "there is no point 'press.speed/x' (did you mean 'press.speed'?)"),
        ({"point": "press." + "x" * 60_000}, "no point has such a long name"),
    ],
)
async def test_what_is_refused_is_recorded_and_answered_too(office, changes, why):
    answer = await office.give(**changes)
    assert (answer["outcome"], answer["reason"]) == ("refused", why)
    [record] = office.records()
    assert (record["outcome"], record["reason"], record["way"]) == ("refused", why, "mqtt")
    assert record["actor"] == changes.get("actor", "operator")
    assert not office.sent
    assert (await office.give(id="next"))["outcome"] == "verified"


@pytest.mark.parametrize(
    ("payload", "id_", "why"),
    [
        (b'{"value": 1, "id": "a", "time": 1, "value": 2}', "a", "the key 'value' stands in the command twice"),
        (b'{"value": 1, "id": "a", "time": 1, "x": {"y": 1, "y": 2}}', "a",
         "the key 'y' stands in the command twice"),
        (b'{"id": "b", "time": 1, "more": 2}', "b", None),
        (b'{"id": 7, "value": 1}', "7", None),
        (b'{"id": true, "value": 1}', None, None),
        (b'["id"]', None, None),
        (b'"id"', None, None),
        (b"nothing", None, 'a command is JSON: {"value": …, "id": "…", "time": …}'),
    ],
)  # fmt: skip
async def test_a_command_that_cannot_be_read_is_answered_with_its_id(office, payload, id_, why):
    office.desk.instruct(office.instruction()._replace(payload=payload))
    await eventually(lambda: office.replies)
    answer = json.loads(office.replies[-1])
    assert (answer["outcome"], answer.get("id")) == ("refused", id_)
    assert why is None or answer["reason"] == why
    assert not office.sent


async def test_nobody_is_local_by_topic_even_where_access_is_not_said_at_all(tmp_path, office):
    office.desk.access = Access({}, is_given=False)
    office.desk.gate._may_write = office.desk.access.may_write
    assert (await office.give(actor="local"))["outcome"] == "refused"
    assert (await office.desk.execute(Command("local", "", "local", "press.speed", 1))).outcome == "verified"


async def test_a_signed_command_is_done_once_and_not_for_another_point_or_with_another_value(office):
    good = office.instruction(actor="signer", signature=True)
    for forged in (
        good._replace(topic=good.topic.replace("speed", "level"), point="press.level"),
        good._replace(payload=good.payload.replace(b": 1,", b": 2,")),
    ):
        office.desk.instruct(forged)
    office.desk.instruct(good)
    office.desk.instruct(good)
    await eventually(lambda: len(office.replies) == 4)
    assert [json.loads(reply)["outcome"] for reply in office.replies] == [
        "refused", "refused", "verified", "refused"
    ]  # fmt: skip
    assert office.sent == [("press.speed", 1)]
    assert KEY.decode() not in json.dumps(office.records())


async def test_two_with_one_id_at_the_same_time_are_done_once(office):
    office.answers.clear()
    for point in ("press.speed", "press.level", "press.speed"):
        office.desk.instruct(office.instruction(point=point, id="a"))
    await eventually(lambda: office.sent)
    office.answers.set()
    await eventually(lambda: len(office.replies) == 3)
    assert len(office.sent) == 1
    assert sorted(record["outcome"] for record in office.records()) == ["refused", "refused", "verified"]


async def test_of_two_with_one_id_the_first_one_has_it(office):
    """Though the other one is for a point that is free, and its turn comes earlier."""
    office.answers.clear()
    office.desk.instruct(office.instruction(1))
    await eventually(lambda: office.sent)
    office.desk.instruct(office.instruction(2, id="a"))
    office.desk.instruct(office.instruction(3, point="press.level", id="a"))
    await eventually(lambda: office.replies)
    assert json.loads(office.replies[0])["reason"] == "this command was executed already"
    office.answers.set()
    await eventually(lambda: len(office.replies) == 3)
    assert office.sent == [("press.speed", 1), ("press.speed", 2)]


async def test_commands_to_one_point_are_done_in_their_order_those_to_others_meanwhile(office):
    office.answers.clear()
    for value in range(5):
        office.desk.instruct(office.instruction(value))
    office.desk.instruct(office.instruction(9, point="press.level"))
    await eventually(lambda: len(office.sent) == 2)
    assert office.sent == [("press.speed", 0), ("press.level", 9)]
    office.answers.set()
    await eventually(lambda: len(office.replies) == 6)
    assert [value for point, value in office.sent if point == "press.speed"] == [0, 1, 2, 3, 4]


async def test_what_waited_behind_another_for_too_long_is_not_done(office):
    office.answers.clear()
    office.desk.instruct(office.instruction(1))
    await eventually(lambda: office.sent)
    office.desk.instruct(office.instruction(2, expires=0.05))
    office.desk.instruct(office.instruction(3))
    await asyncio.sleep(0.06)
    office.answers.set()
    await eventually(lambda: len(office.replies) == 3)
    assert [value for _, value in office.sent] == [1, 3]
    assert [record["outcome"] for record in office.records()] == ["verified", "expired", "verified"]


async def test_the_time_that_is_left_is_told_to_the_link(office):
    untils = []

    async def write(point, value, until_s):
        untils.append(until_s - time.monotonic())
        return WriteResult(point, value, WriteOutcome.EXPIRED, "its turn came too late")

    office.desk._attempts._write = write
    answer = await office.give(1, expires="5s", time=time.time() - 2)
    assert untils[0] == pytest.approx(3, abs=0.1)
    assert (answer["outcome"], answer["reason"]) == ("expired", "its turn came too late")


async def test_too_many_at_once_are_refused_and_recorded(office):
    office.answers.clear()
    for _ in range(MOST_AT_ONCE + 3):
        office.desk.instruct(office.instruction())
    assert len(office.replies) == 3
    assert {json.loads(reply)["reason"] for reply in office.replies} == {"too many commands at once"}
    office.answers.set()
    await eventually(lambda: len(office.replies) == MOST_AT_ONCE + 3)
    assert len(office.records()) == MOST_AT_ONCE + 3


async def test_what_was_under_way_when_the_gateway_stopped_is_recorded_as_not_known(office):
    office.answers.clear()
    office.desk.instruct(office.instruction(1, id="a"))
    office.desk.instruct(office.instruction(2, id="b"))
    await eventually(lambda: office.sent)
    await office.desk.close()
    assert office.sent == [("press.speed", 1)]
    assert {(record["id"], record["outcome"], record["reason"]) for record in office.records()} == {
        ("a", "unknown outcome", "the gateway stopped meanwhile: whether it was written is not known"),
        ("b", "failed", "the gateway stopped before it was sent"),
    }


async def test_arming_and_executing_are_two_commands_and_two_records(tmp_path):
    office = Office(tmp_path, {SPEED: Guard(confirm=True)})
    outcomes = [
        (await office.give(5, mode=mode, id=id_))["outcome"]
        for mode, id_ in (("write", "a"), ("arm", "b"), ("execute", "b"), ("execute", "c"), ("execute", "d"))
    ]
    assert outcomes == ["refused", "armed", "refused", "verified", "refused"]
    assert [record.get("mode", "write") for record in office.records()] == [
        "write", "arm", "execute", "execute", "execute"
    ]  # fmt: skip
    assert office.sent == [("press.speed", 5)]
    office.audit.close()


# --- a restart


async def test_an_id_is_good_once_also_across_a_restart(tmp_path):
    office = Office(tmp_path)
    done = office.instruction(1, id="done")
    refused = office.instruction(4000, id="refused")
    office.desk.instruct(done)
    office.desk.instruct(refused)
    await eventually(lambda: len(office.replies) == 2)
    office.outcome = WriteOutcome.FAILED
    failed = office.instruction(2, id="failed")
    office.desk.instruct(failed)
    await eventually(lambda: len(office.replies) == 3)
    office.audit.close()
    office.outcome = WriteOutcome.VERIFIED
    office.open()
    office.desk.restore(POINTS, office.guards)
    for again in (done, failed):
        office.desk.instruct(again)
    await eventually(lambda: len(office.replies) == 2)
    assert {json.loads(reply)["reason"] for reply in office.replies} == {"this command was executed already"}
    said = (await office.give(3, id="refused"))["reason"]
    assert said == "this command was refused already: 4000 is outside 0 … 3000"
    assert [value for _, value in office.sent] == [1, 2]
    office.audit.close()


async def test_a_forged_command_does_not_use_up_the_id_of_its_actor(tmp_path):
    office = Office(tmp_path)
    good = office.instruction(actor="signer", signature=True, id="a")
    forged = good._replace(signature="0" * 64)
    office.desk.instruct(forged)
    office.audit.close()
    office.open()
    office.desk.restore(POINTS, {})
    office.desk.instruct(forged)
    office.desk.instruct(good)
    await eventually(lambda: len(office.replies) == 2)
    assert json.loads(office.replies[-1])["outcome"] == "verified"
    office.audit.close()


@pytest.mark.parametrize("way", ["mqtt", "local"])
async def test_a_kill_between_request_and_record_leaves_an_unknown_outcome(tmp_path, way, caplog):
    office = Office(tmp_path, {SPEED: Guard(daily_budget=1)})
    office.answers.clear()
    given = office.instruction(5, id="a")
    if way == "mqtt":
        office.desk.instruct(given)
    else:
        asking = asyncio.create_task(office.desk.execute(Command("local", "", "operator", "press.speed", 5)))
    await eventually(lambda: office.sent)
    shutil.copytree(tmp_path, tmp_path.with_name(f"killed-{way}"))  # what is on the disk at this moment
    office.answers.set()
    await office.desk.close()
    if way == "local":
        await asyncio.gather(asking, return_exceptions=True)
    office.audit.close()

    office.folder = tmp_path.with_name(f"killed-{way}")
    office.open()
    office.desk.restore(POINTS, office.guards)
    [record] = office.records()
    assert record == record | {
        "way": way, "point": "press.speed", "value": 5, "outcome": "unknown outcome", "intent": 1,
        "reason": "the gateway ended before it recorded how this write ended: read the device",
    }  # fmt: skip
    assert any("press.speed: unknown outcome of the write of 5 by" in text for text in caplog.messages)
    assert office.desk.counters["unknown outcome"] == 1
    if way == "mqtt":
        office.desk.instruct(given)
        await eventually(lambda: office.replies)
        assert json.loads(office.replies[-1])["reason"] == "this command was executed already"
    assert (await office.give(6))["reason"] == "its 1 writes a day are used up (non_volatile)"
    assert not verify(office.folder).faults
    caplog.clear()
    office.audit.close()
    office.open()
    office.desk.restore(POINTS, office.guards)
    assert sum(record["outcome"] == "unknown outcome" for record in office.records()) == 1
    assert not caplog.messages
    assert (await office.give(7))["reason"] == "its 1 writes a day are used up (non_volatile)"
    await office.desk.close()
    office.audit.close()


async def test_budgets_and_intervals_go_on_across_a_restart(tmp_path):
    office = Office(tmp_path, {SPEED: Guard(daily_budget=3), LEVEL: Guard(min_interval_s=3600)})
    assert (await office.give(1))["outcome"] == "verified"
    office.desk.routed(SPEED, LEVEL, 5, None)
    assert (await office.give(1, point="press.level"))["outcome"] == "verified"
    office.audit.close()
    office.open()
    office.desk.restore(POINTS, office.guards)
    assert (await office.give(2))["outcome"] == "verified"
    assert (await office.give(3))["reason"] == "its 3 writes a day are used up (non_volatile)"
    assert (await office.give(2, point="press.level"))["reason"].startswith("too soon after the last write")
    office.audit.close()


async def test_an_interval_of_an_hour_is_kept_though_the_last_write_was_long_before_the_restart(
    tmp_path, monkeypatch
):
    office = Office(tmp_path, {LEVEL: Guard(min_interval_s=3600)})
    long_ago = time.time_ns() - 1800 * 10**9
    office.audit.record(long_ago, {"point": "press.level", "value": 1, "outcome": "verified"})
    office.desk.restore(POINTS, office.guards)
    assert "again in 18" in (await office.give(2, point="press.level"))["reason"]
    office.audit.close()


async def test_a_log_that_somebody_has_scribbled_in_does_not_stop_a_gateway(tmp_path):
    office = Office(tmp_path)
    await office.give(1, id="a")
    head = '{"n":9,"prev":"","hash":"","time":"2999-01-01T00:00:00Z"'
    rows = [
        f'{head},"outcome":5,"id":["x"],"actor":{{}}}}', f'{head},"point":[1],"outcome":"written"}}',
        f'{head},"point":"press.speed","outcome":"written","value":1,"count":"many"}}',
        '{"n":9,"prev":"","hash":"","time":5}', '{"n":9,"prev":"","hash":"","time":"today","outcome":"x"}', "\x00",
    ]  # fmt: skip
    with office.audit.file.open("a") as file:
        file.write("\n".join(rows) + "\n")
    office.desk.restore(POINTS, {SPEED: Guard(daily_budget=3)})
    office.audit.close()


# --- the log cannot be written


async def test_without_a_log_nothing_is_done_and_everything_is_when_it_is_back(tmp_path):
    folder = tmp_path / "audit"
    folder.write_text("in the way")
    office = Office(folder)
    answer = await office.give(1)
    assert (answer["outcome"], answer["reason"]) == (
        "refused",
        "the audit log cannot be written (file exists)",
    )
    assert not office.sent
    folder.unlink()
    assert (await office.give(2))["outcome"] == "verified"
    assert [(record["way"], record["outcome"]) for record in office.records()] == [
        ("audit", "resumed"), ("mqtt", "verified")
    ]  # fmt: skip
    office.audit.close()


async def test_on_a_full_disk_a_command_is_refused_before_anything_is_sent(office, monkeypatch):
    assert (await office.give(1))["outcome"] == "verified"
    real = os.fstatvfs

    def full(fd):
        found = list(real(fd))
        found[4] = 0
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", full)
    answer = await office.give(2)
    assert answer["reason"] == "the audit log cannot be written (no space left on device)"
    monkeypatch.undo()
    assert (await office.give(3))["outcome"] == "verified"
    assert [value for _, value in office.sent] == [1, 3]


async def test_what_was_done_and_could_not_be_recorded_says_so_and_nothing_more_is_done(office, monkeypatch):
    real = os.write

    def fail(fd, data):
        if b'"outcome":"verified"' in data or b"resumed" in data:
            raise OSError(5, "Input/output error")
        return real(fd, data)

    monkeypatch.setattr(os, "write", fail)
    answer = await office.give(2)
    assert (answer["outcome"], answer["reason"]) == (
        "verified", "it was done, but the audit log could not be written any more"
    )  # fmt: skip
    assert (await office.give(3))["reason"] == "the audit log cannot be written (input/output error)"
    assert office.sent == [("press.speed", 2)]
    assert office.audit.lost == 2


async def test_a_safe_value_is_written_though_nothing_can_be_recorded(tmp_path):
    folder = tmp_path / "audit"
    folder.write_text("in the way")
    office = Office(folder, {SPEED: Guard(fallback_after_s=1.0, fallback_value=0)})
    assert await office.desk.fall_back(SPEED, office.guards[SPEED]) is WriteOutcome.VERIFIED
    assert office.sent == [("press.speed", 0)]


async def test_a_safe_value_that_cannot_be_written_is_said_and_recorded_when_that_changes(tmp_path, caplog):
    office = Office(tmp_path, {SPEED: Guard(fallback_after_s=1.0, fallback_value=0)})
    office.outcome = WriteOutcome.FAILED
    for _ in range(5):
        await office.desk.fall_back(SPEED, office.guards[SPEED])
    office.outcome = WriteOutcome.VERIFIED
    for _ in range(2):
        await office.desk.fall_back(SPEED, office.guards[SPEED])
    assert [record["outcome"] for record in office.records()] == ["failed", "verified", "verified"]
    assert [record.message for record in caplog.records] == [
        "press.speed: its source is silent, safe value 0 failed",
        "press.speed: its source is silent, safe value 0 verified",
        "press.speed: its source is silent, safe value 0 verified",
    ]
    assert len(office.sent) == 7
    office.audit.close()


async def test_only_safe_values_that_the_device_has_are_of_its_budget_also_after_a_restart(tmp_path):
    guards = {SPEED: Guard(fallback_after_s=1.0, fallback_value=0, daily_budget=3)}
    office = Office(tmp_path, guards)
    office.outcome = WriteOutcome.FAILED
    for _ in range(5):
        await office.desk.fall_back(SPEED, guards[SPEED])
    office.outcome = WriteOutcome.VERIFIED
    await office.desk.fall_back(SPEED, guards[SPEED])
    assert (await office.give(1))["outcome"] == "verified"
    await office.desk.close()
    office.audit.close()
    office.open()
    office.desk.restore(POINTS, guards)
    assert [(await office.give(value))["outcome"] for value in (2, 3)] == ["verified", "refused"]
    await office.desk.close()
    office.audit.close()


# --- counters, marks and the clock


async def test_each_end_is_counted_once_under_its_name(office):
    assert (await office.give(1))["outcome"] == "verified"
    office.outcome = WriteOutcome.WRITTEN
    assert (await office.give(2))["outcome"] == "written"
    office.outcome = WriteOutcome.FAILED
    for value in (3, 4, 5):
        assert (await office.give(value))["outcome"] == "failed"
    assert (await office.give(4000))["outcome"] == "refused"
    assert office.desk.counters == {
        "written": 2, "refused": 1, "failed": 3, "unknown outcome": 0, "expired": 0, "fallbacks": 0
    }  # fmt: skip


async def test_only_the_record_of_a_forged_command_says_that_nothing_is_proven(office):
    await office.give(1)
    await office.give(4000)
    await office.give(1, actor="signer")
    assert [record.get("proven") for record in office.records()] == [None, None, False]


@pytest.mark.parametrize(("seconds", "is_set"), [(1.9, False), (-1.9, False), (2.0, True), (-2.0, True)])
async def test_a_clock_that_was_set_is_recorded_with_what_counts(tmp_path, seconds, is_set):
    now = [1000.0, 1_800_000_000 * 10**9]
    points = [Point("press", f"p{number}", Kind.INT, May.WRITE) for number in range(501)]
    guards = {point: Guard(min_interval_s=5.0) for point in points}
    office = Office(tmp_path)
    gate = Gate(POINTS, guards, lambda *_: True, lambda _: office.sample)
    clock = Clock(lambda: now[0], lambda: now[1])
    desk = Desk(gate, office.desk.access, office.audit, office._write, lambda _: None, clock=clock)
    for count in (0, 1, 501):
        before = len(office.records())
        for point in points[:count]:
            gate.note(point, 1, now[0] - 7)
        now[1] += round(seconds * 1e9)
        desk.mind_clock()
        desk.mind_clock()
        found = office.records()[before:]
        sizes = [(record["begins"], len(record["counted"])) for record in found]
        whole = [(True, count)] if count < 501 else [(True, 500), (False, 1)]
        assert sizes == (whole if is_set else [])
        assert all(ages == [[7, 1]] for record in found for ages in record["counted"].values())
        now[1] -= round(seconds * 1e9)
        desk.mind_clock()
    await desk.close()
    office.audit.close()


async def test_what_routes_write_is_summed_up_unless_each_is_wanted(tmp_path):
    office = Office(tmp_path)
    desk = Desk(office.desk.gate, office.desk.access, office.audit, office._write, lambda _: None)
    for value in (1, 2, 3):
        desk.routed(SPEED, LEVEL, value, None)
    await desk.close()
    assert sum(record["count"] for record in office.records()) == 3
    assert len(office.records()) < 3
    office.audit.close()


async def test_a_signed_command_that_was_refused_at_the_door_stays_refused(office):
    given = {"actor": "signer", "signature": True, "id": "a"}
    assert (await office.give(1, is_retained=True, **given))["outcome"] == "refused"
    assert (await office.give(1, **given))["reason"].startswith(
        "this command was refused already: a retained"
    )
    assert [record.get("proven") for record in office.records()] == [None, None]


async def test_what_a_route_has_is_written_once_if_it_is_a_value(office):
    ended = []
    for sample in (Sample(None, Quality.BAD, "timeout", 0), Sample(5, Quality.GOOD, None, 0)):
        delivery = Delivery(Target("plc", SPEED), LEVEL, sample)
        office.desk.write_routed(delivery, SPEED, time.monotonic(), lambda *found: ended.append(found))
    await eventually(lambda: ended)
    [(delivery, point, answer)] = ended
    assert (delivery.sample.value, point, answer.outcome) == (5, SPEED, WriteOutcome.VERIFIED)
    assert office.sent == [("press.speed", 5)]


async def test_a_route_that_cannot_be_recorded_withdraws_at_once_from_what_is_written_with_it(
    office, monkeypatch
):
    """A member that never comes so far must not leave the others waiting."""
    written = []

    async def write_all(values, until_s):
        written.append(values)
        return [WriteResult(point, value, WriteOutcome.WRITTEN) for point, value in values.items()]

    bundle = Bundle(2, write_all, Clock())
    office.audit.intend = lambda *_: None  # the disk is full when the turn of the first one comes
    ended = []

    def give(point):
        delivery = Delivery(Target("plc", point), LEVEL, Sample(5, Quality.GOOD, None, 0))
        office.desk.write_routed(
            delivery,
            point,
            time.monotonic(),
            lambda _d, to, answer: ended.append((to, answer.outcome)),
            bundle,
        )

    give(SPEED)
    await eventually(lambda: ended)
    del office.audit.intend
    give(LEVEL)
    await eventually(lambda: len(ended) == 2, 2.0, "the other one is answered at once")
    assert written == []
    assert [point for point, _ in ended] == [SPEED, LEVEL]
    assert {outcome for _, outcome in ended} == {WriteOutcome.REFUSED}


async def test_a_command_whose_turn_comes_when_it_has_just_expired_is_not_done(tmp_path):
    now = [1000.0]
    clock = Clock(monotonic_s=lambda: now[0], wall_ns=lambda: round((10**6 + now[0]) * 1e9))
    office = Office(tmp_path)
    desk = Desk(
        office.desk.gate, office.desk.access, office.audit, office._write, lambda _: None, clock=clock
    )
    office.answers.clear()
    first = asyncio.create_task(desk.execute(Command("local", "", "operator", "press.speed", 1)))
    await eventually(lambda: office.sent)
    expires_ns = clock.wall_ns() + 5 * 10**9
    late = asyncio.create_task(
        desk.execute(Command("local", "", "operator", "press.speed", 2, expires_ns=expires_ns))
    )
    await asyncio.sleep(0.01)
    now[0] += 5.0
    office.answers.set()
    await first
    answer = await late
    assert (answer.outcome, office.sent) == (WriteOutcome.EXPIRED, [("press.speed", 1)])
    await desk.close()
    office.audit.close()


async def test_the_longest_name_that_a_point_can_have_is_looked_up_and_a_longer_one_is_not(office):
    name = "press." + "x" * (LONGEST_ADDRESS - 6)
    assert "no point has such a long name" not in (await office.give(1, point=name))["reason"]
    assert "no point has such a long name" in (await office.give(1, point=name + "x"))["reason"]


async def test_what_is_armed_is_counted(tmp_path):
    office = Office(tmp_path, {SPEED: Guard(confirm=True)})
    answer = await office.desk.execute(Command("local", "", "operator", "press.speed", 5, "b", mode="arm"))
    assert answer.outcome is WriteOutcome.ARMED, answer.reason
    assert office.desk.counters["armed"] == 1
    await office.desk.close()
    office.audit.close()


async def test_without_an_audit_log_a_write_is_done_and_answered(tmp_path):
    office = Office(tmp_path)
    desk = Desk(office.desk.gate, office.desk.access, None, office._write, lambda _: None)
    answer = await desk.execute(Command("local", "", "operator", "press.speed", 5))
    assert (answer.outcome, answer.reason) == (WriteOutcome.VERIFIED, None)
    assert desk.counters["written"] == 1
    desk.restore(POINTS, {})
    await desk.close()
    assert not office.records()
    office.audit.close()


async def test_a_point_without_a_safe_value_is_brought_to_none(office):
    for guard in (Guard(fallback_after_s=1.0), Guard(fallback_value=0)):
        assert await office.desk.fall_back(SPEED, guard) is WriteOutcome.REFUSED
    assert not office.sent
    assert await office.desk.fall_back(SPEED, Guard(fallback_after_s=1.0, fallback_value=0)) == "verified"
    assert office.desk.counters["fallbacks"] == 1


async def test_only_a_command_that_was_written_speaks_for_its_source(office):
    office.outcome = WriteOutcome.FAILED
    await office.give(1)
    assert office.desk.commanded_s(SPEED) is None
    await office.desk.fall_back(SPEED, Guard(fallback_after_s=1.0, fallback_value=0))
    office.outcome = WriteOutcome.VERIFIED
    await office.desk.fall_back(SPEED, Guard(fallback_after_s=1.0, fallback_value=0))
    assert office.desk.commanded_s(SPEED) is None
    await office.give(1)
    assert time.monotonic() - office.desk.commanded_s(SPEED) < 5.0
    assert office.desk.commanded_s(LEVEL) is None


# --- what routes write


async def test_what_routes_write_is_summed_up_and_refusals_are_told_when_they_begin_and_end(tmp_path):
    office = Office(tmp_path, each=False)
    for value in (1, 2, 3):
        office.desk.routed(SPEED, LEVEL, value, None)
    for value in (4001, 4002):
        office.desk.routed(SPEED, LEVEL, value, "outside")
    office.desk.routed(SPEED, LEVEL, 5, None)
    office.desk.routed(SPEED, LEVEL, 6, None)
    office.desk.sum_up()
    office.desk.sum_up()
    shown = [(record["outcome"], record["value"], record["count"]) for record in office.records()]
    assert sum(count for outcome, _, count in shown if outcome == "routed") == 5
    assert sum(count for outcome, _, count in shown if outcome == "refused") == 2
    assert shown[0] == ("refused", 4001, 1)
    assert shown[-1][1] in (6, None)
    office.audit.close()


def test_who_is_overdue_is_a_matter_of_time_alone():
    assert [is_overdue(2.0, 10.0, now_s) for now_s in (10.0, 12.0, 12.1, 100.0)] == [
        False,
        False,
        True,
        True,
    ]


# --- a whole gateway, a PLC that writes down what it is told, and the local door

PLANT = """version: 1
gateway: {{name: gw, audit: {{routes: each}}}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 500ms}}
  source: {{type: modbus-tcp, host: 127.0.0.1, port: {source}, timeout: 500ms}}
devices:
  press:
    link: plc
    scan: 20ms
    points:
      speed: {{table: holding, address: 0, access: readwrite, min: 0, max: 3000}}
      heater: {{table: holding, address: 10, access: readwrite, fallback: {{after: 300ms, value: 0}}}}
      pump: {{table: holding, address: 20, access: readwrite, fallback: {{after: 300ms, value: 7}}}}
      armed: {{table: holding, address: 30, access: readwrite, confirm: true}}
  oven:
    link: source
    scan: 20ms
    points:
      wanted: {{table: holding, address: 0}}
      other: {{table: holding, address: 50, access: readwrite, fallback: {{after: 300ms, value: 1}}}}
      another: {{table: holding, address: 52, access: readwrite, fallback: {{after: 300ms, value: 1}}}}
routes:
  - {{from: oven.wanted, to: press.heater}}
"""


class Works:
    """A gateway with its local door."""

    def __init__(self, folder, plc, source, text=PLANT):
        self.folder = folder
        self.file = folder / "plant.yaml"
        self.file.write_text(text.format(plc=plc.port, source=source.port))
        self.gateway = Gateway(load(self.file), load=load_again)
        self.data = self.gateway.plant.data_dir
        self.tasks = []

    async def __aenter__(self):
        door = ControlServer(self.gateway, self.gateway.load_again)
        self.tasks = [asyncio.create_task(self.gateway.run()), asyncio.create_task(door.run())]
        await eventually((self.data / "gateway.json").exists)
        for link in ("plc", "source"):
            await eventually(lambda link=link: self.value(f"sys.{link}.connected").value)
        return self

    async def __aexit__(self, *_):
        self.gateway.stop()
        await asyncio.wait_for(self.tasks[0], 10)
        self.tasks[1].cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert not verify(self.data / "audit").faults

    def value(self, address):
        return self.gateway.router.sample(self.gateway.plant.points[address])

    async def write(self, point, value, **more):
        return await ask(self.data, {"do": "write", "point": point, "value": value, **more}, 10)

    def records(self, point):
        """Return how attempts to write a point ended."""
        return [
            record
            for record in export(self.data / "audit")
            if record.get("point") == point and record["outcome"] != "intent"
        ]


@pytest.fixture
async def plc():
    async with RecordingPlc() as found:
        yield found


@pytest.fixture
async def source():
    async with RecordingPlc() as found:
        yield found


@pytest.fixture
async def works(tmp_path, plc, source):
    async with Works(tmp_path, plc, source) as found:
        yield found


async def test_who_is_on_the_machine_writes_through_the_gate(works, plc):
    await eventually(lambda: works.value("press.speed").quality == "good")
    answer = await works.write("press.speed", 1500)
    assert (answer["outcome"], answer["value"]) == ("written", 1500)
    assert plc.values(0) == [1500]
    for value, outcome in (
        (3001, "refused"),
        (1.5, "refused"),
        (None, "refused"),
        ([1], "refused"),
        ("NaN", "refused"),
    ):
        assert (await works.write("press.speed", value))["outcome"] == outcome
    assert (await works.write("press.speed", float("nan")))["outcome"] == "refused"
    assert (await works.write("nothing.at.all", 1))["reason"] == "there is no point 'nothing.at.all'"
    assert plc.values(0) == [1500]
    records = works.records("press.speed")
    assert [record["outcome"] for record in records] == ["written"] + 6 * ["refused"]
    assert records[0]["old"] == 0
    assert all(record["actor"] == "local" for record in records)


@pytest.mark.parametrize(
    "more", [{"mode": "arming"}, {"mode": None}, {"mode": ["write"]}, {"expires_s": 0}, {"expires_s": 61},
             {"expires_s": True}, {"expires_s": "5s"}, {"expires_s": float("nan")}]
)  # fmt: skip
async def test_what_is_asked_at_the_door_and_makes_no_sense_is_not_done(works, plc, more):
    assert (await works.write("press.speed", 5, **more))["ok"] is False
    assert not plc.values(0)


async def test_what_the_link_cannot_send_in_time_is_never_sent(works, plc):
    """A poll is under way that is not answered; the command's time is over before its turn comes."""
    plc.answers.clear()
    await eventually(lambda: plc.waiting)
    asking = [
        asyncio.create_task(works.write("press.speed", 1500, expires_s=0.2)),
        asyncio.create_task(works.write("press.armed", 1, mode="arm")),
    ]
    await asyncio.sleep(0.3)
    plc.answers.set()
    answer, armed = await asyncio.gather(*asking)
    assert (answer["outcome"], answer["reason"]) == ("expired", "its turn came too late")
    assert armed["outcome"] == "armed"
    assert (await works.write("press.speed", 1600))["outcome"] == "written"
    assert plc.values(0) == [1600]
    assert [record["outcome"] for record in works.records("press.speed")] == ["expired", "written"]


async def test_what_a_device_does_not_take_has_failed_and_is_recorded_so(works, plc):
    plc.refuses_writes = True
    answer = await works.write("press.speed", 5)
    assert (answer["outcome"], answer["reason"]) == ("failed", "device exception 04")
    assert [record["outcome"] for record in works.records("press.speed")] == ["failed"]


async def test_arming_and_executing_goes_by_the_door_too(works, plc):
    outcomes = [
        (await works.write("press.armed", value, mode=mode))["outcome"]
        for value, mode in ((5, "write"), (5, "arm"), (6, "execute"), (5, "execute"), (5, "execute"))
    ]
    assert outcomes == ["refused", "armed", "refused", "written", "refused"]
    assert plc.values(30) == [5]


async def test_a_silent_source_brings_its_point_to_the_safe_value_once_and_a_good_one_ends_that(
    works, plc, source, caplog
):
    caplog.set_level(logging.INFO)
    source.words["holding", 0] = 55
    await eventually(lambda: plc.values(10)[-1:] == [55])
    silent_s = time.monotonic()
    source.answers.clear()
    await eventually(lambda: plc.values(10)[-1:] == [0])
    took_s = plc.written[-1].at_s - silent_s if plc.written[-1].address == 10 else None
    assert took_s is None or 0.25 < took_s < 1.5
    await asyncio.sleep(0.8)
    assert plc.values(10)[-2:] == [55, 0]
    source.answers.set()
    await eventually(lambda: plc.values(10)[-1:] == [55], 12)
    [fallback] = [record for record in works.records("press.heater") if record["way"] == "fallback"]
    assert (fallback["value"], fallback["outcome"], fallback["old"]) == (0, "written", 55)
    await eventually(lambda: "press.heater: its source is back" in caplog.messages)
    assert sum("press.heater: its source is silent" in text for text in caplog.messages) == 1


async def test_a_single_bad_answer_is_not_silence(works, plc, source, monkeypatch):
    source.words["holding", 0] = 55
    await eventually(lambda: plc.values(10)[-1:] == [55])
    await asyncio.sleep(0.4)  # longer than the silence that is allowed
    point = works.gateway.plant.points["oven.wanted"]
    group = works.gateway.router.batch_of(point).group
    works.gateway._emit(group.without_value("timeout", time.time_ns(), time.monotonic()))
    heard_s = works.gateway.dead_men._watched["press.heater"].silence.since_s
    assert time.monotonic() - heard_s < 0.3
    await asyncio.sleep(0.15)
    assert 0 not in plc.values(10)[plc.values(10).index(55) :]


async def test_a_commanded_point_goes_to_its_safe_value_when_commands_end(works, plc):
    await eventually(lambda: plc.values(20) == [7])
    for value in (1, 2, 3, 4):
        assert (await works.write("press.pump", value))["outcome"] == "written"
        await asyncio.sleep(0.15)
    assert plc.values(20) == [7, 1, 2, 3, 4]
    await eventually(lambda: plc.values(20) == [7, 1, 2, 3, 4, 7])
    await asyncio.sleep(0.5)
    assert plc.values(20) == [7, 1, 2, 3, 4, 7]


async def test_a_device_that_is_gone_does_not_keep_another_point_from_its_safe_value(works, plc, source):
    await eventually(
        lambda: works.gateway.dead_men.fallen.keys() >= {works.gateway.plant.points["press.pump"]}
    )
    await source.__aexit__()
    await eventually(lambda: not works.value("sys.source.connected").value)
    await asyncio.sleep(0.5)  # two points of the other device cannot be written, again and again
    for _ in range(3):
        assert (await works.write("press.pump", 1))["outcome"] == "written"
        written_s = time.monotonic()
        await eventually(lambda: plc.values(20)[-1] == 7, 3)
        assert plc.written[-1].at_s - written_s < 0.8


async def test_what_waits_while_the_configuration_loses_its_point_is_answered_and_recorded(works, plc):
    desk = works.gateway.desk
    point = works.gateway.plant.points["press.speed"]
    lock = asyncio.Lock()
    desk._locks["press.speed"] = lock
    await lock.acquire()
    waiting = asyncio.create_task(works.write("press.speed", 5))
    await eventually(lambda: lock._waiters)
    works.file.write_text(works.file.read_text().replace("      speed:", "      velocity:"))
    await works.gateway.load_again()
    assert "press.speed" not in works.gateway.plant.points
    lock.release()
    answer = await waiting
    assert (answer["outcome"], answer["reason"]) == ("failed", "the configuration changed meanwhile")
    assert not plc.values(0)
    assert works.records("press.speed")[-1]["outcome"] == "failed"
    assert point.address == "press.speed"


async def test_after_a_restart_the_log_goes_on_and_the_door_is_another(tmp_path, plc, source):
    for _ in range(2):
        async with Works(tmp_path, plc, source) as works:
            assert (await works.write("press.speed", 5))["outcome"] == "written"
    assert len(works.records("press.speed")) == 2


async def test_a_log_that_cannot_be_written_is_said_at_the_start_and_commands_are_refused(
    tmp_path, plc, source, caplog
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "audit").write_text("in the way")
    works = Works(tmp_path, plc, source)
    works.gateway.dead_men._watched = {}
    async with works:
        assert any("commands are refused until it can" in text for text in caplog.messages)
        assert (await works.write("press.speed", 5))["outcome"] == "refused"
        source.words["holding", 0] = 5
        await eventually(lambda: plc.values(10)[-1:] == [5])  # routes go on
        (tmp_path / "data" / "audit").unlink()
        assert (await works.write("press.speed", 5))["outcome"] == "written"


async def test_without_a_gateway_the_same_log_is_written_and_without_a_log_nothing(tmp_path, plc, source):
    file = tmp_path / "plant.yaml"
    file.write_text(PLANT.format(plc=plc.port, source=source.port))
    plant = load(file)
    point = plant.points["press.speed"]
    [result] = await oneshot.write(plant, {point: 5}, 2.0)
    assert result.outcome == "written"
    [refused] = await oneshot.write(plant, {point: 3001}, 2.0)
    assert refused.outcome == "refused"
    records = list(export(plant.data_dir / "audit"))
    assert [record["outcome"] for record in records] == ["intent", "written", "refused"]
    assert records[1]["intent"] == records[0]["n"] == 1
    (plant.data_dir / "audit").rename(plant.data_dir / "old")
    (plant.data_dir / "audit").write_text("in the way")
    [refused] = await oneshot.write(plant, {point: 6}, 2.0)
    assert refused.reason == "the audit log cannot be written (file exists)"
    assert plc.values(0) == [5]


async def test_what_waits_over_a_reload_is_decided_by_what_holds_then(office):
    office.answers.clear()
    office.desk.instruct(office.instruction(1))
    await eventually(lambda: office.sent)
    office.desk.instruct(office.instruction(2))
    await asyncio.sleep(0.05)
    for actors in ({"operator": Actor(("press.*",))}, {}):  # the second reload takes the right away
        access = Access(actors)
        gate = Gate(POINTS, {}, access.may_write, lambda _: office.sample)
        desk = Desk(gate, access, office.audit, office._write, lambda _: office.sample)
        desk.adopt(office.desk)
        office.desk = desk
    office.answers.set()
    await eventually(lambda: len(office.replies) == 2)
    assert [json.loads(reply)["outcome"] for reply in office.replies] == ["verified", "refused"]
    assert office.sent == [("press.speed", 1)]


async def test_an_error_that_nobody_foresaw_ends_a_write_with_a_record(office, caplog):
    async def write(point, value, until_s):
        raise ZeroDivisionError

    office.desk._attempts._write = write
    answer = await office.give(5)
    assert (answer["outcome"], answer["reason"]) == ("unknown outcome", "internal error")
    assert [record["outcome"] for record in office.records()] == ["unknown outcome"]
    assert "internal error while it was written" in caplog.text
