"""Points with a safe value: whose silence counts, when the safe value is written, and what it waits for."""

import asyncio

import pytest
from support.virtual import World

from fieldbus.gateway.commands.dead_man import RETRY_S, DeadMen
from fieldbus.gateway.commands.gate import Guard
from fieldbus.link import Target, WriteOutcome
from fieldbus.model import Access, Batch, Group, HeldBatch, Kind, Point, bad, uncertain
from fieldbus.routing.policy import Edge, OnUncertain, Policy
from fieldbus.routing.router import Router

SOURCES = [Point("sensor", name, Kind.INT) for name in ("a", "b")]
GROUP = Group("sensor", SOURCES)
PLAIN = Point("press", "plain", Kind.INT, Access.WRITE)
VALVE = Point("press", "valve", Kind.INT, Access.WRITE)
MOTOR = Point("press", "motor", Kind.INT, Access.WRITE)
GUARD = Guard(fallback_after_s=2.0, fallback_value=0)
GUARDS = {PLAIN: Guard(), VALVE: GUARD, MOTOR: GUARD}


class Desk:
    """What writes safe values, here into a list."""

    def __init__(self, clock):
        self.clock = clock
        self.commanded = {}
        self.busy = set()
        self.outcomes = {}
        self.takes_s = {}
        self.written = []

    def commanded_s(self, point):
        return self.commanded.get(point)

    def is_busy(self, point):
        return point in self.busy

    async def fall_back(self, point, guard):
        self.written.append((round(self.clock.monotonic_s() - self.began_s, 1), point.name))
        await asyncio.sleep(self.takes_s.get(point, 0.0))
        return self.outcomes.get(point, WriteOutcome.VERIFIED)


class Bench:
    """The dead man of a gateway that has a router and nothing else."""

    def __init__(self, clock=None, **policy):
        self.clock = clock
        self.edges = [Edge(SOURCES[0], Target("net", VALVE), Policy(**policy))]
        self.router = Router(self.edges, [GROUP])
        self.desk = Desk(clock)
        self.subject = DeadMen(self)
        self.subject.take(GUARDS, 0.0)

    def hear(self, at_s, kind=Batch, flaws=None):
        self.router.dispatch(kind(GROUP, 0, at_s, [1, 2], flaws or {}, (0, 1)), at_s)

    def fallen(self, now_s):
        """Return which points are in their fallback at a moment."""
        self.subject.look(now_s)
        return {point.name: at_s for point, at_s in self.subject.fallen.items()}


# --- whose silence counts


def test_a_point_without_a_safe_value_hides_no_other_one():
    bench = Bench()
    assert bench.fallen(2.0) == {}
    assert bench.fallen(2.1) == {"valve": 2.1, "motor": 2.1}
    assert [bench.subject.holds(point) for point in (PLAIN, VALVE, MOTOR)] == [False, True, True]


@pytest.mark.parametrize(("commanded_s", "heard_s"), [(5.0, 3.0), (3.0, 5.0), (5.0, None), (None, 5.0)])
def test_of_a_command_and_a_sample_the_later_counts(commanded_s, heard_s):
    bench = Bench()
    if heard_s is not None:
        bench.hear(heard_s)
    if commanded_s is not None:
        bench.desk.commanded[VALVE] = commanded_s
    assert "valve" not in bench.fallen(7.0)
    assert "valve" in bench.fallen(7.1)


@pytest.mark.parametrize("is_command", [False, True])
def test_a_sample_or_a_command_ends_a_fallback(is_command):
    bench = Bench()
    bench.subject.look(3.0)
    for at_s, ends in ((2.9, False), (3.0, False), (3.1, True)):
        if is_command:
            bench.desk.commanded[VALVE] = at_s
        else:
            bench.hear(at_s)
        assert bench.subject.holds(VALVE) is not ends
        assert (VALVE not in bench.subject.fallen) is ends
    assert bench.subject.holds(MOTOR)


@pytest.mark.parametrize(
    ("flaw", "policy", "is_heard"),
    [
        (None, {}, True),
        (bad("timeout"), {}, False),
        (uncertain("out of range"), {}, True),
        (uncertain("out of range"), {"on_uncertain": OnUncertain.HOLD}, False),
        (uncertain("out of range"), {"on_uncertain": OnUncertain.BAD}, False),
        (None, {"on_uncertain": OnUncertain.HOLD}, True),
    ],
)
def test_only_what_the_route_lets_pass_is_heard(flaw, policy, is_heard):
    bench = Bench(**policy)
    bench.hear(3.0, flaws={} if flaw is None else {0: flaw})
    assert ("valve" not in bench.fallen(4.0)) is is_heard


def test_what_is_held_is_not_heard():
    bench = Bench()
    bench.hear(3.0, HeldBatch)
    assert "valve" in bench.fallen(4.0)


def test_the_sample_that_ends_a_fallback_is_written_though_unchanged():
    bench = Bench()
    bench.hear(1.0)
    assert "valve" in bench.fallen(4.0)
    found = bench.router.dispatch(Batch(GROUP, 0, 5.0, [1, 2], {}, ()), 5.0)
    assert [item.target.point for item in found["net"]] == [VALVE]


# --- a reload


def test_a_reload_lets_a_fallback_go_on_and_counts_no_silence_anew():
    bench = Bench()
    assert "valve" in bench.fallen(3.0)
    bench.subject.take({VALVE: GUARD, MOTOR: Guard(fallback_after_s=9.0, fallback_value=0)}, 4.0)
    assert bench.fallen(4.0) == {"valve": 3.0, "motor": 3.0}
    bench.subject.take({VALVE: GUARD}, 4.0)
    assert bench.fallen(4.0) == {"valve": 3.0}
    assert not bench.subject.holds(MOTOR)


def test_a_reload_changes_how_long_a_source_may_be_silent():
    bench = Bench()
    bench.subject.take({VALVE: Guard(fallback_after_s=5.0, fallback_value=0), MOTOR: GUARD}, 1.0)
    assert bench.fallen(5.0) == {"motor": 5.0}
    assert set(bench.fallen(5.1)) == {"valve", "motor"}


def test_a_new_source_has_all_its_time_and_a_new_point_too():
    bench = Bench()
    bench.router = Router([Edge(SOURCES[1], Target("net", VALVE), Policy())], [GROUP])
    bench.subject.take({VALVE: GUARD, MOTOR: GUARD, PLAIN: GUARD}, 1.5)
    assert bench.fallen(2.1) == {"motor": 2.1}
    assert bench.fallen(3.5) == {"motor": 2.1}
    assert set(bench.fallen(3.6)) == {"valve", "motor", "plain"}


def test_a_start_that_takes_long_is_no_silence():
    bench = Bench()
    bench.subject.begin(10.0)
    assert bench.fallen(12.0) == {}
    assert set(bench.fallen(12.1)) == {"valve", "motor"}


# --- the safe value


def watched(scenario, **policy):
    """Run a scenario while points are brought to their safe value; return when each was, rounded."""
    world = World()

    async def main():
        bench = Bench(world.clock()[0], **policy)
        bench.desk.began_s = bench.clock.monotonic_s()
        bench.subject.begin(bench.desk.began_s)
        task = asyncio.create_task(bench.subject.watch())
        try:
            await scenario(bench)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return bench.desk.written

    return world.run(main())


def test_a_safe_value_is_written_once():
    async def scenario(_):
        await asyncio.sleep(20.0)

    found = watched(scenario)
    assert [name for _, name in found] == ["valve", "motor"]
    assert all(2.0 <= at_s <= 2.2 for at_s, _ in found)  # rounded


@pytest.mark.parametrize("outcome", [WriteOutcome.FAILED, WriteOutcome.UNKNOWN, WriteOutcome.REFUSED])
def test_a_safe_value_that_was_not_written_is_tried_again(outcome):
    async def scenario(bench):
        bench.desk.outcomes[VALVE] = outcome
        await asyncio.sleep(2.15 + 3 * (RETRY_S + 0.1) + 0.1)
        bench.desk.outcomes.clear()
        await asyncio.sleep(10.0)

    names = [name for _, name in watched(scenario)]
    assert names.count("motor") == 1
    assert 4 <= names.count("valve") <= 5


def test_one_slow_device_delays_no_other_ones_safe_value():
    async def scenario(bench):
        bench.desk.takes_s[VALVE] = 30.0
        bench.desk.busy.add(VALVE)
        await asyncio.sleep(4.0)
        assert [name for _, name in bench.desk.written] == ["motor"]
        bench.desk.busy.clear()
        await asyncio.sleep(4.0)
        bench.subject.missed(MOTOR)
        await asyncio.sleep(10.0)

    found = watched(scenario)
    assert [name for _, name in found] == ["motor", "valve", "motor"]
    assert found[1][0] == pytest.approx(4.0, abs=0.2)
    assert found[2][0] == pytest.approx(8.0, abs=0.2)


def test_a_target_that_was_away_gets_its_safe_value_again():
    async def scenario(bench):
        bench.subject.missed(VALVE)  # it is not in its fallback: there is nothing to write
        bench.subject.missed(PLAIN)
        await asyncio.sleep(5.0)
        bench.subject.missed(VALVE)
        await asyncio.sleep(5.0)

    assert [name for _, name in watched(scenario)] == ["valve", "motor", "valve"]


def test_after_a_safe_value_the_next_sample_is_written_though_unchanged():
    async def scenario(bench):
        now_s = bench.clock.monotonic_s
        bench.hear(now_s())
        bench.desk.takes_s[VALVE] = 1.0
        await asyncio.sleep(2.5)
        bench.hear(now_s())  # the source is back while the safe value is being written
        await asyncio.sleep(2.0)
        found = bench.router.dispatch(Batch(GROUP, 0, now_s(), [1, 2], {}, ()), now_s())
        assert [item.target.point for item in found["net"]] == [VALVE]

    watched(scenario)


def test_a_changed_safe_value_is_written_after_a_reload():
    async def scenario(bench):
        await asyncio.sleep(5.0)
        now_s = bench.clock.monotonic_s()
        bench.subject.take({VALVE: Guard(fallback_after_s=2.0, fallback_value=7), MOTOR: GUARD}, now_s)
        await asyncio.sleep(5.0)
        other = Point("press", "motor", Kind.INT, Access.WRITE)  # its link is opened anew
        bench.subject.take({VALVE: Guard(fallback_after_s=2.0, fallback_value=7), other: GUARD}, now_s)
        await asyncio.sleep(5.0)

    assert [name for _, name in watched(scenario)] == ["valve", "motor", "valve", "motor"]


def test_while_nobody_has_a_safe_value_a_new_one_is_noticed():
    async def scenario(bench):
        bench.subject.take({}, 0.0)
        await asyncio.sleep(10.0)
        assert bench.desk.written == []
        bench.subject.take({VALVE: GUARD}, bench.clock.monotonic_s())
        await asyncio.sleep(5.0)

    [(at_s, _)] = watched(scenario)
    assert 12.0 <= at_s <= 13.2


def test_what_is_being_written_ends_with_the_watch():
    tasks = []

    async def scenario(bench):
        bench.desk.takes_s[VALVE] = 1e6
        await asyncio.sleep(5.0)
        tasks.extend(task for task in asyncio.all_tasks() if task.get_name() == "safe value of press.valve")

    watched(scenario)
    assert [task.cancelled() for task in tasks] == [True]


def test_the_watch_ends_when_all_that_is_being_written_has_ended():
    ended = []

    async def scenario(bench):
        async def fall_back(point, guard):
            try:
                await asyncio.sleep(1e6)
            finally:
                if point is MOTOR:
                    await asyncio.sleep(1.0)
                ended.append(point.name)

        bench.desk.fall_back = fall_back
        await asyncio.sleep(5.0)

    watched(scenario)
    assert ended == ["valve", "motor"]
