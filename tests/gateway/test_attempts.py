"""Writes under way by themselves: a link that is a list, a disk that is an event, a clock that is a number."""

import asyncio

import pytest

from fieldbus.clock import Clock
from fieldbus.gateway.commands.attempts import DISK_GRACE_S, Attempt, Attempts, record_of
from fieldbus.gateway.commands.command import Command
from fieldbus.gateway.commands.gate import Gate, Guard
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.model import Access, Kind, Point, Quality, Sample

SPEED = Point("press", "speed", Kind.INT, Access.READWRITE, minimum=0, maximum=3000)
NOW_NS = 1_700_000_000 * 10**9


class Audit:
    """A log that is a list, on a disk that takes it at once."""

    trouble = None

    def __init__(self):
        self.records = []

    def intend(self, time_ns, what):
        self.records.append(what)
        return len(self.records)

    def sync(self):
        pass


class Bench:
    def __init__(self):
        self.now_s, self.now_ns = 1000.0, NOW_NS
        self.sent = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.on_disk = asyncio.Event()
        self.on_disk.set()
        self.audit = Audit()
        self.gate = Gate(
            {SPEED.address: SPEED},
            {SPEED: Guard(daily_budget=1)},
            lambda *_: True,
            lambda _: Sample(7, Quality.GOOD, None, 0),
        )
        self.subject = Attempts(
            self.gate, self.audit, self.write, Clock(lambda: self.now_s, lambda: self.now_ns)
        )
        self.subject._disk.settled = self.on_disk.wait

    async def write(self, point, value, until_s):
        self.sent.append((value, until_s))
        await self.may_go.wait()
        return WriteResult(point, value, WriteOutcome.VERIFIED)

    def command(self, value, id_=""):
        return Command("mqtt", "topic", "operator", SPEED.address, value, id=id_)

    def begin(self, value, *, until_s=1010.0, id_=""):
        """Let the gate count a command, and begin it."""
        command = self.command(value, id_)
        self.gate.decide(command, self.now_s, self.now_ns)
        attempt = Attempt(command, self.now_ns, value)
        return asyncio.create_task(self.subject.once(attempt, SPEED, self.now_s, until_s))

    def is_budget_left(self):
        return not self.gate._states[SPEED.address].writes


@pytest.fixture
async def bench():
    return Bench()


async def rest():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("now_s", "is_sent"), [(1009.999, True), (1010.0, False), (1011.0, False)])
async def test_what_gets_its_turn_too_late_is_not_sent(bench, now_s, is_sent):
    bench.may_go.clear()
    first = asyncio.create_task(bench.subject.at_once(Attempt(bench.command(1), 0, 1), SPEED))
    await rest()
    task = asyncio.create_task(bench.subject._send(Attempt(bench.command(2), 0, 2), SPEED, 1010.0))
    await rest()
    bench.now_s = now_s
    bench.may_go.set()
    await first
    late = (WriteOutcome.EXPIRED, "its turn came too late")
    assert await task == ((WriteOutcome.VERIFIED, None) if is_sent else late)
    assert [value for value, _ in bench.sent] == ([1, 2] if is_sent else [1])


async def test_why_something_is_refused_is_told_also_when_it_is_late(bench):
    attempt = Attempt(bench.command(4000), 0, 4000)
    ended = await bench.subject._send(attempt, SPEED, 999.0)
    assert ended == (WriteOutcome.REFUSED, "4000 is outside 0 … 3000")
    assert not attempt.is_sent


async def test_what_stopped_before_it_was_sent_costs_no_budget(bench):
    bench.on_disk.clear()
    task = bench.begin(5, id_="a")
    await rest()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert bench.is_budget_left()
    assert not bench.sent


async def test_what_stopped_after_it_was_sent_costs_budget(bench):
    bench.may_go.clear()
    task = bench.begin(5, id_="a")
    await rest()
    assert bench.sent == [(5, 1010.0)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not bench.is_budget_left()


async def test_what_was_sent_and_failed_costs_budget_too(bench):
    async def write(point, value, until_s):
        return WriteResult(point, value, WriteOutcome.FAILED, "timeout")

    bench.subject._write = write
    assert await bench.begin(5) == (WriteOutcome.FAILED, "timeout")
    assert not bench.is_budget_left()


async def test_a_command_that_waits_for_the_disk_makes_its_point_busy(bench):
    assert not bench.subject.is_busy(SPEED)
    bench.on_disk.clear()
    task = bench.begin(5)
    await rest()
    for waited_s, is_busy in ((0.0, True), (DISK_GRACE_S - 0.01, True), (DISK_GRACE_S, False)):
        bench.now_s = 1000.0 + waited_s
        assert bench.subject.is_busy(SPEED) is is_busy
    bench.now_s = 1000.0
    bench.may_go.clear()
    bench.on_disk.set()
    await rest()
    bench.now_s = 1005.0
    assert bench.subject.is_busy(SPEED)  # the link has it now
    bench.may_go.set()
    assert (await task)[0] is WriteOutcome.VERIFIED
    assert not bench.subject.is_busy(SPEED)


async def test_what_the_disk_does_not_take_in_time_is_not_sent(bench):
    bench.on_disk.clear()
    task = bench.begin(5, until_s=1000.02)
    ended = await asyncio.wait_for(task, 5.0)
    assert ended == (WriteOutcome.EXPIRED, "its record was not on the disk in time")
    assert bench.is_budget_left()
    assert not bench.subject.is_busy(SPEED)


async def test_each_safe_value_refuses_what_waited_for_the_disk(bench):
    for count in (1, 2):
        bench.subject._falls[SPEED.address] = count - 1
        bench.on_disk.clear()
        task = bench.begin(5)
        await rest()
        await bench.subject.at_once(Attempt(bench.command(0), 0, 0), SPEED)
        bench.on_disk.set()
        assert (await task)[0] is WriteOutcome.REFUSED
        assert bench.is_budget_left()
    assert (await bench.begin(6))[0] is WriteOutcome.VERIFIED


async def test_a_link_is_told_whose_value_it_has(bench):
    assert not bench.subject.is_commanded(SPEED, 5)
    bench.may_go.clear()
    task = bench.begin(5)
    await rest()
    assert bench.subject.is_commanded(SPEED, 5)
    assert not bench.subject.is_commanded(SPEED, 6)
    assert bench.subject.still_allowed(SPEED, 5) is None
    assert bench.subject.still_allowed(SPEED, 4000) == (WriteOutcome.REFUSED, "4000 is outside 0 … 3000")
    bench.may_go.set()
    await task
    assert not bench.subject.is_commanded(SPEED, 5)


async def test_while_a_safe_value_is_written_other_values_must_fit(bench):
    assert bench.subject.still_allowed(SPEED, 5) is None
    bench.may_go.clear()
    safe = Command("fallback", "", "fallback", SPEED.address, 0)
    task = asyncio.create_task(bench.subject.at_once(Attempt(safe, 0, 0), SPEED))
    await rest()
    assert bench.subject.still_allowed(SPEED, 0) is None
    assert bench.subject.still_allowed(SPEED, 4000) == (WriteOutcome.REFUSED, "4000 is outside 0 … 3000")
    bench.may_go.set()
    await task


def test_a_record_names_its_mode_only_if_it_is_another_one():
    shown = []
    for mode, id_ in (("write", ""), ("arm", "a"), ("execute", "b")):
        command = Command("mqtt", "topic", "operator", SPEED.address, 5, id=id_, mode=mode)
        record = record_of(Attempt(command, 0, 5, Sample(7, Quality.GOOD, None, 0)), 6)
        shown.append((record.get("mode"), record.get("id"), record["value"], record["old"]))
    assert shown == [(None, None, 6, 7), ("arm", "a", 6, 7), ("execute", "b", 6, 7)]


async def test_the_end_of_one_waiting_attempt_leaves_the_other_waiting(bench):
    bench.gate._guards = {SPEED: Guard()}
    bench.on_disk.clear()
    first = bench.begin(5)
    await rest()
    bench.now_s = 1000.2
    second = bench.begin(6)
    await rest()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert bench.subject.is_busy(SPEED)  # the first one waits still
    bench.now_s = 1000.0 + DISK_GRACE_S
    assert not bench.subject.is_busy(SPEED)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not bench.subject._waiting
