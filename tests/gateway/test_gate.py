"""The gate by itself: what it asks, in which order, and what it says."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.examples import examples

from fieldbus.errors import RefusedError
from fieldbus.gateway.commands.access import LOCAL, Access, Actor
from fieldbus.gateway.commands.command import (
    LONGEST_ID,
    MAX_PAYLOAD,
    Answer,
    Command,
    fitting,
    read_command,
)
from fieldbus.gateway.commands.conditions import parse_conditions
from fieldbus.gateway.commands.gate import ARMED_S, DAY_S, ExpiredError, Gate, Guard
from fieldbus.link import WriteOutcome
from fieldbus.model import Access as May
from fieldbus.model import Kind, Point, Quality, Sample
from fieldbus.mqtt.peering import sign

S = 1_000_000_000
NOW_NS = 1_700_000_000 * S

SPEED = Point("press", "speed", Kind.INT, May.READWRITE, minimum=0, maximum=3000)
LEVEL = Point("press", "level", Kind.FLOAT, May.READWRITE)
VALVE = Point("press", "valve", Kind.BOOL, May.READWRITE, labels={0: "closed", 1: "open"})
NAME = Point("press", "recipe.name", Kind.STRING, May.WRITE)
DOOR = Point("press", "door", Kind.INT, labels={0: "open", 1: "closed"})
TEMPERATURE = Point("press", "temperature", Kind.FLOAT)
ONLINE = Point("sys", "press.online", Kind.BOOL)
POINTS = {point.address: point for point in (SPEED, LEVEL, VALVE, NAME, DOOR, TEMPERATURE, ONLINE)}


def good(value, time_ns=NOW_NS - S):
    return Sample(value, Quality.GOOD, None, time_ns)


class Bench:
    """A gate, and the plant that it sees."""

    def __init__(self, guards=None, may_write=lambda _actor, _point: True):
        self.samples = {SPEED: good(100), LEVEL: good(1.0), DOOR: good(1), TEMPERATURE: good(20.0)}
        self.now_s, self.now_ns = 1000.0, NOW_NS
        self.arrived = {}
        """Point to when its sample arrived, if that was not long ago."""
        self.gate = Gate(
            POINTS,
            guards or {},
            may_write,
            lambda point: self.samples[point],
            lambda point: self.arrived.get(point, 0.0),
        )
        self.count = 0

    def command(self, value, point="press.speed", actor="operator", way="mqtt", **more):
        self.count += 1
        given = {
            "id": f"id {self.count}", "given_ns": self.now_ns, "expires_ns": self.now_ns + 10 * S
        } if way == "mqtt" else {}  # fmt: skip
        return Command(way, "a topic", actor, point, value, **(given | more))

    def decide(self, command):
        return self.gate.decide(command, self.now_s, self.now_ns)

    def ask(self, value, *arguments, **more):
        """Return what is written, or why nothing is."""
        try:
            return self.decide(self.command(value, *arguments, **more))[1]
        except RefusedError as error:
            return str(error)

    def wait(self, seconds):
        self.now_s += seconds
        self.now_ns += round(seconds * S)

    def set_clock(self, seconds):
        """Move the wall clock, as NTP or a person does."""
        self.now_ns += round(seconds * S)

    def read(self, point, value):
        """Let a fresh sample arrive."""
        self.samples[point], self.arrived[point] = good(value, self.now_ns), self.now_s + 1e-6


def test_what_fits_goes_to_its_point():
    point, value = Bench().decide(Bench().command(1500))
    assert (point, value) == (SPEED, 1500)


@pytest.mark.parametrize(
    ("point", "value", "why"),
    [
        ("press.speed", -1, "-1 is outside 0 … 3000"),
        ("press.speed", 3001, "3001 is outside 0 … 3000"),
        ("press.speed", 1.5, "1.5 is not a whole number"),
        ("press.speed", True, "true is not a number"),
        ("press.speed", "fast", "'fast' is not a int"),
        ("press.speed", math.nan, "nan is not a value"),
        ("press.speed", math.inf, "inf is not a value"),
        ("press.speed", 10**400, "a whole number beyond 1e308 is not a value"),
        ("press.speed", -(10**400), "a whole number beyond 1e308 is not a value"),
        ("press.level", 10**400, "a whole number beyond 1e308 is not a value"),
        ("press.level", -math.inf, "-inf is not a value"),
        ("press.level", False, "false is not a number"),
        ("press.valve", 2, "2 is neither true nor false"),
        ("press.valve", "ajar", "'ajar' is not a bool, or one of closed, open"),
        ("press.recipe.name", 5, "5 is not text"),
        ("press.recipe.name", True, "true is not text"),
        ("press.door", 1, "not writable (access: read)"),
        ("sys.press.online", True, "not writable (access: read)"),
        ("press.spede", 1, "there is no point 'press.spede' (did you mean 'press.speed'?)"),
        ("", 1, "there is no point ''"),
        ("press.speed\n", 1, "there is no point 'press.speed\n' (did you mean 'press.speed'?)"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(point, value, why):
    assert Bench().ask(value, point) == why


@pytest.mark.parametrize(("value", "written"), [(0, 0), (3000, 3000), (-0.0, 0), (12.0, 12), (2999.0, 2999)])
def test_the_ends_of_the_range_belong_to_it_and_whole_numbers_are_such(value, written):
    found = Bench().ask(value)
    assert (found, type(found)) == (written, int)


@pytest.mark.parametrize(("value", "written"), [("open", True), ("closed", False), (1, True), (0.0, False)])
def test_a_label_is_its_value_as_the_point_has_it(value, written):
    assert Bench().ask(value, "press.valve") is written


def test_who_may_not_write_learns_nothing_of_the_point():
    bench = Bench(may_write=lambda _actor, _point: False)
    for point in ("press.speed", "press.door", "press.none", "sys.press.online"):
        assert bench.ask(1, point) == f"'operator' may not write {point} (nothing under `access` says so)"


def test_routes_and_safe_values_need_no_access_but_must_fit():
    bench = Bench(may_write=lambda _actor, _point: False)
    for way in ("route", "fallback"):
        assert bench.ask(7, way=way) == 7
        assert bench.ask(3001, way=way) == "3001 is outside 0 … 3000"


def test_the_first_no_is_the_answer():
    """Everything is wrong with this command; one after the other is put right."""
    guards = {
        SPEED: Guard(
            step=10, max_change=50, min_interval_s=5, only_if=parse_conditions("press.door == closed", POINTS),
            confirm=True,
        )
    }  # fmt: skip
    allowed = set()
    bench = Bench(guards, may_write=lambda actor, _point: actor in allowed)
    bench.samples[DOOR] = good(0)
    assert bench.ask(2.5, given_ns=NOW_NS - 20 * S, expires_ns=NOW_NS) == "20.0 s old"
    assert "may not write" in bench.ask(2.5)
    allowed.add("operator")
    assert "not a whole number" in bench.ask(2.5)
    assert "outside" in bench.ask(4001)
    assert bench.ask(2001) == "2001 is between the steps of 10"
    assert bench.ask(2000) == "2000 is further than 50 from the present 100"
    assert bench.ask(120) == "interlock: press.door == closed does not hold (it is 0)"
    bench.samples[DOOR] = good(1)
    assert bench.ask(120).startswith("the point wants to be armed first")
    assert bench.ask(120, mode="arm") == 120
    assert bench.ask(120, mode="execute") == 120
    bench.read(SPEED, 120)
    assert bench.ask(120, mode="arm") == 120
    bench.wait(1)
    assert bench.ask(120, mode="execute") == "too soon after the last write; again in 4.0 s"
    bench.wait(4)
    assert bench.ask(120, mode="execute") == 120


# --- time and identity


def test_a_command_is_good_up_to_its_last_moment_and_not_at_it():
    bench = Bench()
    assert bench.ask(1, given_ns=NOW_NS - 5 * S, expires_ns=NOW_NS + 1) == 1
    with pytest.raises(ExpiredError):
        bench.decide(bench.command(1, given_ns=NOW_NS - 5 * S, expires_ns=NOW_NS))


def test_a_local_command_that_waited_too_long_is_not_executed_either():
    bench = Bench()
    with pytest.raises(ExpiredError):
        bench.decide(bench.command(1, way="local", given_ns=NOW_NS - 5 * S, expires_ns=NOW_NS))


def test_a_clock_may_be_ahead_by_two_seconds_and_no_more():
    bench = Bench()
    assert bench.ask(1, given_ns=NOW_NS + 2 * S, expires_ns=NOW_NS + 12 * S) == 1
    said = bench.ask(1, given_ns=NOW_NS + 2 * S + 1, expires_ns=NOW_NS + 12 * S)
    assert said == "the command was given 2.0 s in the future: the clocks differ"


def test_an_id_is_good_once_for_each_actor_and_whatever_the_point():
    bench = Bench()
    assert bench.ask(1, id="a") == 1
    for point, value in (("press.speed", 1), ("press.speed", 2), ("press.level", 1.0)):
        assert bench.ask(value, point, id="a") == "this command was executed already"
    assert bench.ask(1, actor="another", id="a") == 1


def test_an_id_that_was_refused_stays_refused():
    """Else what was refused while the door was open would be done when it is closed, by a late repetition."""
    bench = Bench({SPEED: Guard(only_if=parse_conditions("press.door == closed", POINTS))})
    bench.samples[DOOR] = good(0)
    assert "interlock" in bench.ask(1, id="a")
    bench.samples[DOOR] = good(1)
    said = "this command was refused already: interlock: press.door == closed does not hold (it is 0)"
    assert bench.ask(1, id="a") == said
    assert bench.ask(2, "press.level", id="a") == said
    assert bench.ask(1, id="a", actor="another") == 1
    assert bench.ask(1, id="b") == 1
    assert bench.ask(1, id="b") == "this command was executed already"
    assert bench.ask(1, id="b") == "this command was executed already"


def test_an_id_that_expired_stays_expired_when_the_clock_is_set_back():
    bench = Bench()
    late = bench.command(1)
    bench.wait(10)
    for seconds in (0, -5):
        bench.set_clock(seconds)
        with pytest.raises(RefusedError, match=r"10\.0 s old"):
            bench.decide(late)


def test_an_id_is_remembered_for_as_long_as_its_command_could_be_valid():
    """Also when so many others come that the old ones are forgotten."""
    bench = Bench()
    first = bench.command(1, given_ns=NOW_NS + 2 * S, expires_ns=NOW_NS + 62 * S)
    bench.decide(first)
    bench.wait(61.9)
    for number in range(100_000):
        bench.gate.remember("crowd", str(number), 0)
    assert bench.ask(2) == 2
    assert len(bench.gate._ids) == 2
    with pytest.raises(RefusedError, match="executed already"):
        bench.decide(first)
    bench.wait(0.1)
    with pytest.raises(ExpiredError):
        bench.decide(first)


def test_the_memory_of_ids_is_bounded_and_none_is_forgotten_early():
    bench = Bench()
    for number in range(100_000):
        bench.gate.remember("crowd", str(number), NOW_NS + 9 * S)
    assert bench.ask(1) == "too many commands at once"
    bench.wait(9)
    assert bench.ask(1) == 1


def test_what_was_forgotten_is_not_done_again_when_the_clock_is_set_back():
    bench = Bench()
    first = bench.command(1)
    bench.decide(first)
    bench.set_clock(3600)
    for number in range(100_000):
        bench.gate.remember("crowd", str(number), bench.now_ns)
    assert bench.ask(2) == 2
    bench.set_clock(-3600)
    with pytest.raises(RefusedError, match="cannot be told whether this command was decided already"):
        bench.decide(first)


def test_who_is_refused_without_end_costs_no_other_actor_anything():
    bench = Bench()
    for number in range(25_000):
        bench.gate.forbid(bench.command(1, actor="viewer", id=str(number)), "no", bench.now_ns)
    assert bench.ask(1) == 1
    assert "refused already" in bench.ask(1, actor="viewer", id="24000")
    assert "cannot be told" in bench.ask(1, actor="viewer", id="1")
    bench.wait(0.1)
    assert bench.ask(1, actor="viewer", id="new") == 1


def test_of_an_actor_that_nobody_knows_no_refused_id_is_remembered():
    bench = Bench(may_write=lambda _actor, _point: False)
    bench.gate._is_actor = lambda actor: actor == "operator"
    for actor in ("operator", "mallory"):
        command = bench.command(1, actor=actor, id="a")
        bench.gate.claim(command)
        with pytest.raises(RefusedError):
            bench.decide(command)
    assert set(bench.gate._ids._refused) == {"operator"}
    assert not bench.gate._ids._claimed


@pytest.mark.parametrize("seconds", [-10.0, -9.999, -11.0, -1e9])
def test_a_command_given_before_1970_expires_like_any_other(seconds):
    bench = Bench()
    given_ns = round(seconds * S)
    bench.now_ns = given_ns + 10 * S - 1
    assert bench.ask(1, given_ns=given_ns, expires_ns=given_ns + 10 * S) == 1
    bench.now_ns += 1
    with pytest.raises(ExpiredError):
        bench.decide(bench.command(1, given_ns=given_ns, expires_ns=given_ns + 10 * S))


def test_a_command_that_would_have_expired_at_the_epoch_is_not_good_for_ever():
    command = read(payload(time="1969-12-31T23:59:50Z"))
    assert command.expires_ns == 0
    with pytest.raises(ExpiredError):
        Bench().decide(command)


# --- again, at the moment of sending


def test_what_changes_while_a_write_waits_is_asked_again():
    guards = {SPEED: Guard(only_if=parse_conditions("press.door == closed", POINTS), max_change=50)}
    bench = Bench(guards)
    command = bench.command(120)
    point, value = bench.decide(command)
    again = bench.gate.still_allowed
    again(command, point, value, bench.now_ns)
    bench.samples[DOOR] = good(0)
    with pytest.raises(RefusedError, match="interlock"):
        again(command, point, value, bench.now_ns)
    bench.samples[DOOR] = good(1)
    bench.read(SPEED, 60)
    with pytest.raises(RefusedError, match="further than 50"):
        again(command, point, value, bench.now_ns)
    bench.read(SPEED, 100)
    again(command, point, value, bench.now_ns + 10 * S - 1)
    with pytest.raises(ExpiredError):
        again(command, point, value, bench.now_ns + 10 * S)
    again(bench.command(3000, way="fallback"), point, 3000, bench.now_ns + 99 * S)


def test_what_was_never_sent_uses_up_neither_interval_nor_budget():
    bench = Bench({SPEED: Guard(min_interval_s=60, daily_budget=1)})
    unsent = bench.command(1, id="a")
    assert bench.decide(unsent)[1] == 1
    bench.gate.take_back(unsent, SPEED, bench.now_s, "interlock")
    assert bench.ask(2) == 2
    assert bench.ask(1, id="a") == "this command was refused already: interlock"
    bench.gate.take_back(unsent, SPEED, bench.now_s - 1, "")
    assert bench.ask(3) == "too soon after the last write; again in 60.0 s"


def test_of_several_writes_only_the_last_one_is_taken_back():
    bench = Bench({SPEED: Guard(daily_budget=3)})
    assert bench.ask(1) == 1
    bench.wait(10)
    assert bench.ask(2) == 2
    bench.wait(10)
    unsent = bench.command(3)
    bench.decide(unsent)
    bench.gate.take_back(unsent, SPEED, bench.now_s - 10, "another moment")
    assert bench.gate.counted(bench.now_s) == {"press.speed": [(0, 3)]}
    bench.gate.take_back(unsent, SPEED, bench.now_s, "never sent")
    assert bench.gate.counted(bench.now_s) == {"press.speed": [(10, 2)]}


def test_what_counts_is_told_by_hours_and_as_young_as_it_is():
    bench = Bench(
        {DOOR: Guard(), LEVEL: Guard(), SPEED: Guard(daily_budget=9), TEMPERATURE: Guard(min_interval_s=5)}
    )
    bench.gate.note(LEVEL, 1, bench.now_s)
    for age_s, count in ((7200, 2), (7199, 1), (3600, 1), (3599, 1), (100, 1)):
        bench.gate.note(SPEED, 1, bench.now_s - age_s, count)
    bench.gate.note(TEMPERATURE, 1, bench.now_s - 4000)
    assert bench.gate.counted(bench.now_s) == {
        "press.speed": [(7200, 2), (3600, 2), (100, 2)],
        "press.temperature": [(4000, 1)],
    }
    bench.gate.forget_counts()
    assert bench.gate.counted(bench.now_s) == {}
    bench.gate.note(SPEED, 1, bench.now_s + 5)  # a moment that is still to come is now
    bench.gate.note(TEMPERATURE, 1, bench.now_s + 5)
    assert bench.gate.counted(bench.now_s) == {"press.speed": [(0, 1)], "press.temperature": [(0, 1)]}


def test_more_writes_than_a_budget_has_take_no_memory():
    bench = Bench({SPEED: Guard(daily_budget=2)})
    bench.gate.note(SPEED, 1, bench.now_s, 10**9)
    assert bench.gate.counted(bench.now_s) == {"press.speed": [(0, 2)]}


@pytest.mark.parametrize("seconds", [-1e9, -3600.0, 3600.0, 1e9])
def test_intervals_and_budgets_do_not_go_by_the_wall_clock(seconds):
    bench = Bench({SPEED: Guard(min_interval_s=5, daily_budget=2), LEVEL: Guard(max_change=1)})
    assert bench.ask(1) == 1
    assert bench.ask(2.0, "press.level") == 2.0
    bench.set_clock(seconds)
    assert bench.ask(2) == "too soon after the last write; again in 5.0 s"
    assert bench.ask(3.0, "press.level").startswith("3 is further than 1 from the present")
    bench.wait(5)
    assert bench.ask(2) == 2
    bench.wait(5)
    bench.set_clock(seconds)
    assert bench.ask(3) == "its 2 writes a day are used up (non_volatile)"
    bench.wait(DAY_S - 10)
    assert bench.ask(3) == 3


def test_a_gate_after_a_reload_goes_on_with_what_the_one_before_knew():
    guards = {SPEED: Guard(min_interval_s=60)}
    bench = Bench(guards)
    assert bench.ask(1, id="a") == 1
    before, bench.gate = bench.gate, Gate(POINTS, guards, lambda *_: True, lambda point: bench.samples[point])
    bench.gate.adopt(before)
    assert bench.ask(1, "press.level", id="a") == "this command was executed already"
    assert bench.ask(2) == "too soon after the last write; again in 60.0 s"


# --- guards


@pytest.mark.parametrize(
    ("step", "minimum", "value", "fits"),
    [
        (0.1, None, 0.30000000000000004, True), (0.1, None, 0.35, False), (0.25, 1, 1.75, True),
        (2, 1, 3, True), (2, 1, 4, False), (0.1, None, 1e308, False), (1e-300, None, 1e300, False),
        (5e-324, None, 1.0, False), (3, -10, -7, True), (3, -10, 0, False),
    ],
)  # fmt: skip
def test_steps_are_counted_from_the_lowest_value(step, minimum, value, fits):
    point = Point("press", "x", Kind.FLOAT, May.WRITE, minimum=minimum)
    gate = Gate({"press.x": point}, {point: Guard(step=step)}, lambda *_: True, None)
    command = Command("local", "", "local", "press.x", value)
    if fits:
        assert gate.decide(command, 0.0, 0) == (point, value)
    else:
        with pytest.raises(RefusedError, match="between the steps"):
            gate.decide(command, 0.0, 0)


def test_a_change_is_measured_from_the_present_value_and_from_what_was_written_since():
    bench = Bench({SPEED: Guard(max_change=50)})
    assert bench.ask(151) == "151 is further than 50 from the present 100"
    assert bench.ask(150) == 150
    assert bench.ask(60) == "60 is further than 50 from the present 150"  # the device may have 150 by now
    assert bench.ask(200) == "200 is further than 50 from the present 100"  # or still 100
    bench.read(SPEED, 150)
    assert bench.ask(200) == 200


def test_what_was_let_through_and_never_arrived_does_not_move_the_present_value():
    """Else somebody could walk as far as he likes while the device is away, and jump when it is back."""
    bench = Bench({SPEED: Guard(max_change=50)})
    for value in (150, 200, 250, 300):
        bench.ask(value)
        bench.wait(1)
    assert bench.ask(200) == "200 is further than 50 from the present 100"


@pytest.mark.parametrize(("took_ns", "took_ms"), [(1_234_567, 1.235), (0, 0.0), (-5 * S, 0.0)])
def test_an_answer_says_how_long_it_took_to_a_microsecond(took_ns, took_ms):
    command = Bench().command(150)
    answer = Answer(command, WriteOutcome.REFUSED, None, NOW_NS, NOW_NS + took_ns, 150)
    assert answer.object()["took_ms"] == took_ms


def test_only_configured_actors_and_the_local_one_are_actors():
    access = Access({"operator": Actor(("press.*",))})
    assert [access.is_actor(name) for name in ("operator", LOCAL, "stranger")] == [True, True, False]


def test_a_value_from_before_the_newest_sample_limits_no_change():
    bench = Bench({SPEED: Guard(max_change=50)})
    assert bench.ask(150) == 150
    bench.wait(1)
    bench.read(SPEED, 190)  # the device went on by itself
    assert bench.ask(240) == 240  # 50 from the present 190, 90 from the 150 that was written before


def test_a_value_written_as_the_newest_sample_arrives_limits_the_change():
    """Which of the two came first cannot be told, so both count."""
    bench = Bench({SPEED: Guard(max_change=50)})
    bench.arrived[SPEED] = bench.now_s
    assert bench.ask(150) == 150
    assert bench.ask(60) == "60 is further than 50 from the present 150"


@pytest.mark.parametrize(
    ("count", "hint"), [(1000, " (did you mean 'press.speed'?)"), (1001, "")], ids=["1000", "1001"]
)
def test_a_similar_name_is_looked_for_among_1000_points(count, hint):
    others = [Point("tank", f"level_{number}", Kind.FLOAT) for number in range(count - 1)]
    points = {point.address: point for point in (SPEED, *others)}
    gate = Gate(points, {}, lambda _actor, _point: True, lambda _: good(1))
    command = Command("local", "", "operator", "press.spede", 1)
    with pytest.raises(RefusedError) as caught:
        gate.decide(command, 0.0, NOW_NS)
    assert str(caught.value) == f"there is no point 'press.spede'{hint}"


@pytest.mark.parametrize(
    "sample",
    [
        Sample(None, Quality.BAD, "timeout", NOW_NS),
        Sample(100, Quality.UNCERTAIN, "out of range", NOW_NS),
        good(math.nan),
        good(math.inf),
        good(10**400),
        good("100"),
    ],
)
def test_without_a_good_present_value_nothing_is_changed(sample):
    bench = Bench({SPEED: Guard(max_change=50)})
    bench.samples[SPEED] = sample
    assert bench.ask(100) == "its present value is not known, so `max_change` cannot be kept"
    assert bench.ask(0, way="fallback") == 0


def test_a_safe_value_takes_of_the_budget_when_it_was_written_and_not_before():
    bench = Bench({SPEED: Guard(daily_budget=2)})
    for _ in range(5):  # the device does not take it, and it is tried again
        assert bench.ask(0, way="fallback") == 0
    assert bench.ask(1) == 1
    bench.gate.note(SPEED, 0, bench.now_s)
    assert bench.ask(2) == "its 2 writes a day are used up (non_volatile)"


def test_an_interlock_holds_by_good_values_only():
    guards = {SPEED: Guard(only_if=parse_conditions("press.door == closed and press.temperature<30", POINTS))}
    bench = Bench(guards)
    assert bench.ask(1) == 1
    for point, sample, state in (
        (DOOR, good(0), "press.door == closed does not hold (it is 0)"),
        (DOOR, Sample(None, Quality.BAD, "timeout", 0), "press.door == closed does not hold (bad: timeout)"),
        (
            DOOR, Sample(1, Quality.UNCERTAIN, "stale", 0),
            "press.door == closed does not hold (uncertain: stale)",
        ),
        (TEMPERATURE, good(30.0), "press.temperature<30 does not hold (it is 30)"),
        (TEMPERATURE, good(math.nan), "press.temperature<30 does not hold (it is nan)"),
    ):  # fmt: skip
        before = bench.samples[point]
        bench.samples[point] = sample
        assert bench.ask(1) == f"interlock: {state}"
        assert bench.ask(1, way="route") == f"interlock: {state}"
        bench.samples[point] = before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("press.door", "'press.door' is not a condition such as press.door == closed"),
        ("", "'' is not a condition such as press.door == closed"),
        ("press.door = closed", "'press.door = closed' is not a condition such as press.door == closed"),
        ("press.dor == closed", "there is no point 'press.dor' (did you mean 'press.door'?)"),
        ("press.door == ajar", "press.door: 'ajar' is not a int, or one of open, closed"),
        ("press.temperature < nan", "press.temperature: nan is not a value"),
        ("press.temperature < true", "press.temperature: true is not a number"),
        (
            "press.recipe.name == 'a'",
            "press.recipe.name can only be written, so nobody knows its value",
        ),
        ("press.door == closed and", "press.door: 'closed and' is not a int"),
        ("press.door == closed or press.door == open", "press.door: 'closed or press.door == open' is not"),
    ],
)
def test_an_interlock_that_makes_no_sense_is_refused_with_a_sentence(text, why):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_conditions(text, POINTS)
    assert str(caught.value).startswith(why)


def test_what_is_not_known_yet_holds_nothing():
    [condition] = parse_conditions("press.door == closed", POINTS)
    bench = Bench({SPEED: Guard(only_if=(type(condition)(None, "==", 1, "far.door == closed"),))})
    assert bench.ask(1) == (
        "interlock: far.door == closed does not hold (bad: the gateway that has it was never heard)"
    )


def test_arming_is_by_actor_and_value_and_lasts_ten_seconds():
    bench = Bench({SPEED: Guard(confirm=True)})
    wants = 'the point wants to be armed first ("mode": "arm"), then executed'
    assert bench.ask(5) == wants
    assert bench.ask(5, mode="execute") == wants
    assert bench.ask(5, mode="arm") == 5
    assert bench.ask(5) == wants
    assert bench.ask(5, actor="another", mode="execute") == wants
    assert bench.ask(6, mode="execute") == "it was armed with another value, 5"
    bench.wait(ARMED_S)
    assert bench.ask(5, mode="execute") == 5
    assert bench.ask(5, mode="execute") == wants  # armed once, executed once
    assert bench.ask(5, mode="arm") == 5
    bench.wait(ARMED_S + 0.001)
    assert bench.ask(5, mode="execute") == "it was armed more than 10 s ago"


def test_what_may_not_be_written_cannot_be_armed():
    guards = {SPEED: Guard(confirm=True, only_if=parse_conditions("press.door == closed", POINTS))}
    bench = Bench(guards)
    assert "outside" in bench.ask(3001, mode="arm")
    bench.samples[DOOR] = good(0)
    assert "interlock" in bench.ask(5, mode="arm")
    bench.samples[DOOR] = good(1)
    assert bench.ask(5, mode="arm") == 5
    bench.samples[DOOR] = good(0)
    assert "interlock" in bench.ask(5, mode="execute")


def test_what_needs_no_arming_cannot_be_armed():
    assert Bench().ask(5, mode="arm") == "the point needs no arming (it has no `confirm`)"


def test_an_interval_is_over_at_its_end_and_is_not_used_up_by_what_is_refused():
    bench = Bench({SPEED: Guard(min_interval_s=5)})
    assert "outside" in bench.ask(3001)
    assert bench.ask(1) == 1
    bench.wait(4.9)
    assert bench.ask(2) == "too soon after the last write; again in 0.1 s"
    assert bench.ask(2, way="route") == "too soon after the last write; again in 0.1 s"
    bench.wait(0.1)
    assert bench.ask(2, way="route") == 2
    assert "too soon" in bench.ask(3)


def test_a_budget_is_of_any_twenty_four_hours():
    bench = Bench({SPEED: Guard(daily_budget=3)})
    for hour in range(3):
        assert bench.ask(hour) == hour
        bench.wait(3600)
    used_up = "its 3 writes a day are used up (non_volatile)"
    assert bench.ask(9) == bench.ask(9, way="route") == used_up
    bench.wait(DAY_S - 3 * 3600 - 0.001)
    assert bench.ask(9) == used_up
    bench.wait(0.002)
    assert bench.ask(9) == 9
    assert bench.ask(9) == used_up


def test_a_safe_value_is_written_whatever_else_the_guard_says_and_counts():
    guard = Guard(
        step=7, max_change=1, min_interval_s=60, daily_budget=1, confirm=True,
        only_if=parse_conditions("press.door == open", POINTS),
    )  # fmt: skip
    bench = Bench({SPEED: guard})
    assert bench.ask(3000, way="fallback") == 3000
    assert bench.ask(3000, way="fallback") == 3000


# --- what comes on a topic


def payload(**changes):
    whole = {"value": 1, "id": "a", "time": "2026-11-27T10:00:00Z"} | changes
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def read(data):
    return read_command(data, actor="operator", point="press.speed", origin="a topic")


def test_a_command_has_a_value_an_id_and_a_time():
    command = read(payload(expires="5s", mode="arm"))
    assert (command.way, command.actor, command.value, command.id) == ("mqtt", "operator", 1, "a")
    assert command.given_ns == 1795773600 * S
    assert command.expires_ns - command.given_ns == 5 * S
    assert command.mode == "arm"
    assert read(payload()).expires_ns - read(payload()).given_ns == 10 * S
    assert read(payload(time=1700000000.5, id=7, expires=60)).id == "7"
    assert read(payload(time="2026-11-27T12:00:00+02:00")).given_ns == 1795773600 * S


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"1", b"[]", b"null", b"{", b'{"value": NaN}', b"[" * 4000, b'{"a":' * 800,
        payload(value=...), payload(value=None), payload(value=[1]), payload(value={}),
        payload().replace(b'"value": 1', b'"value": 1e999'), payload().replace(b'"value": 1', b'"value": Infinity'),
        payload(id=...), payload(id=""), payload(id=None), payload(id=True), payload(id=1.5), payload(id=["a"]),
        payload(id="x" * (LONGEST_ID + 1)), payload(id=10**LONGEST_ID),
        payload(time=...), payload(time=None), payload(time="now"), payload(time="2026-11-27T10:00:00"),
        payload(time=True), payload(time=0), payload(time=-5), payload(time=1e11), payload(time=10**300),
        payload(time="0001-01-01T00:00:00+23:59"), payload(time="9999-12-31T23:59:59-23:59"), payload(time=[]),
        payload().replace(b'"2026-11-27T10:00:00Z"', b"1e999"),
        payload(expires=0), payload(expires=-1), payload(expires=60.1), payload(expires="61s"),
        payload(expires=True), payload(expires="soon"), payload(expires="5"), payload(expires=None),
        payload(expires=[]), payload(mode="exec"), payload(mode=None), payload(mode=["write"]),
        payload(actor="admin"), payload(force=True), payload(**{"\ud800": 1}),
        payload(id="x" * MAX_PAYLOAD),
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(data):
    try:
        command = read(data)
    except RefusedError as error:
        assert str(error)
    else:  # two of them are moments, only not of our time: the gate refuses them
        assert data in (payload(time="0001-01-01T00:00:00+23:59"), payload(time="9999-12-31T23:59:59-23:59"))
        with pytest.raises(RefusedError):
            Bench().decide(command)


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["value", "id", "time", "expires", "mode"]) | st.text(max_size=3), inner, max_size=6
    ),
).map(lambda data: json.dumps(data).encode()))  # fmt: skip
def test_of_any_payload_something_is_made_or_it_is_refused(data):
    try:
        command = read(data)
        Bench().decide(command)
    except RefusedError as error:
        assert str(error)


anything = st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.integers(
    -(10**330), 10**330
)  # fmt: skip
guards_of_all = st.builds(
    Guard,
    step=st.none() | st.floats(5e-324, 1e308, exclude_min=False),
    max_change=st.none() | st.floats(5e-324, 1e308),
    min_interval_s=st.none() | st.floats(0, 1e6),
    daily_budget=st.none() | st.integers(1, 5),
    confirm=st.booleans(),
)
points_of_all = st.builds(
    lambda kind, low, high: Point(
        "d", "p", kind, May.READWRITE, minimum=None if low is None else min(low, high or low), maximum=high
    ),
    st.sampled_from(list(Kind)),
    st.none() | st.floats(-1e308, 1e308),
    st.none() | st.floats(-1e308, 1e308),
)


@settings(max_examples=examples(500), deadline=None)
@given(
    points_of_all,
    guards_of_all,
    anything,
    st.none() | anything,
    st.sampled_from(["local", "route", "fallback"]),
)
def test_of_any_value_what_is_let_through_is_the_points_kind_and_in_its_range(
    point, guard, value, present, way
):
    sample = good(present) if present is not None else Sample(None, Quality.BAD, "timeout", 0)
    gate = Gate({"d.p": point}, {point: guard}, lambda *_: True, lambda _: sample)
    try:
        _, written = gate.decide(Command(way, "", "x", "d.p", value), 0.0, NOW_NS)
    except RefusedError as error:
        assert str(error)
        return
    assert type(written) is {Kind.BOOL: bool, Kind.INT: int, Kind.FLOAT: float, Kind.STRING: str}[point.kind]
    assert written == value
    if point.kind.is_number:
        assert math.isfinite(written)
        assert point.minimum is None or written >= point.minimum
        assert point.maximum is None or written <= point.maximum
        if guard.max_change is not None and way != "fallback":
            assert abs(written - present) <= guard.max_change


class Machine(RuleBasedStateMachine):
    """Commands in any order, judged by a model that knows only what the documentation says."""

    LIMITS = Guard(min_interval_s=5.0, daily_budget=4, confirm=True)

    def __init__(self):
        super().__init__()
        self.bench = Bench({SPEED: self.LIMITS}, may_write=lambda actor, _: actor in ("anna", "bert"))
        self.written = []
        self.armed = {}
        self.used = set()

    @rule(
        actor=st.sampled_from(["anna", "bert", "mallory"]),
        value=st.integers(-2, 3),
        mode=st.sampled_from(["write", "arm", "execute", "execute"]),
        id_=st.integers(0, 30).map(str),
        age_s=st.sampled_from([0, 0, 0, 9.9, 10.0, 30, -1.9, -2.1]),
    )
    def command(self, actor, value, mode, id_, age_s):
        bench = self.bench
        given_ns = bench.now_ns - round(age_s * S)
        command = bench.command(
            value, actor=actor, mode=mode, id=id_, given_ns=given_ns, expires_ns=given_ns + 10 * S
        )
        recent = [at_s for at_s in self.written if at_s > bench.now_s - DAY_S]
        armed_value, until_s = self.armed.get(actor, (None, -1))
        is_allowed = (
            -2 <= age_s < 10 and (actor, id_) not in self.used and actor != "mallory" and value >= 0
            and mode != "write"
            and (
                mode == "arm"
                or (
                    armed_value == value and bench.now_s <= until_s and len(recent) < 4
                    and (not self.written or self.written[-1] + 5 <= bench.now_s)
                )
            )
        )  # fmt: skip
        self.used.add((actor, id_))  # also of what is refused
        try:
            bench.decide(command)
        except RefusedError:
            assert not is_allowed
            return
        assert is_allowed
        if mode == "arm":
            self.armed[actor] = value, bench.now_s + ARMED_S
        else:
            del self.armed[actor]
            self.written.append(bench.now_s)

    @rule(seconds=st.sampled_from([0.5, 2.5, 5.0, 11.0, 6 * 3600.0]))
    def time_passes(self, seconds):
        self.bench.wait(seconds)

    @rule(seconds=st.sampled_from([-3600.0, -11.0, 11.0, 3600.0, 1e9]))
    def the_clock_is_set(self, seconds):
        self.bench.set_clock(seconds)

    @precondition(lambda self: self.written)
    @rule()
    def the_configuration_is_loaded_anew(self):
        bench = self.bench
        before = bench.gate
        bench.gate = Gate(POINTS, {SPEED: self.LIMITS}, before._may_write, before._sample_of)
        bench.gate.adopt(before)

    @invariant()
    def no_budget_is_exceeded(self):
        for at_s in self.written:
            assert sum(at_s <= other < at_s + DAY_S for other in self.written) <= 4


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


def test_a_name_that_nobody_has_costs_no_time_where_there_are_many():
    points = {f"device{n % 300}.point_{n}": SPEED for n in range(20_000)}
    gate = Gate(points, {}, lambda *_: True, None)
    begun = time.process_time()
    with pytest.raises(RefusedError, match="there is no point"):
        gate.decide(Command("local", "", "local", "device5.pont_77", 1), 0.0, 0)
    assert time.process_time() - begun < 0.1


def test_a_value_as_text_is_no_number():
    with pytest.raises(RefusedError):
        fitting(SPEED, "42")


# --- actors


def test_nobody_may_anything_but_what_access_says():
    access = Access({"operator": Actor(("press.*", "oven.setpoint")), "nobody": Actor(())})
    assert access.may_write("operator", "press.speed")
    assert access.may_write("operator", "press.")
    assert access.may_write("operator", "oven.setpoint")
    for actor, point in (
        ("operator", "oven.setpoint2"), ("operator", "xpress.speed"), ("operator", "press2.speed"),
        ("operator", "oven_setpoint"), ("operator", "press.speed\nx.y"), ("nobody", "press.speed"),
        ("", "press.speed"), ("OPERATOR", "press.speed"), ("local", "press.speed"),
    ):  # fmt: skip
        assert not access.may_write(actor, point), (actor, point)


def test_without_access_only_who_is_on_this_machine_may_write():
    access = Access({}, is_given=False)
    assert access.may_write("local", "press.speed")
    assert not access.may_write("operator", "press.speed")


@pytest.mark.parametrize(
    "given", [None, "", "0" * 64, "ä" * 64, "\N{PILE OF POO}", "x" * 100_000, "\0" * 64, "\ud800"]
)
def test_of_an_actor_with_a_key_nothing_is_believed_without_its_signature(given):
    access = Access({"operator": Actor(("*",), b"secret key")})
    with pytest.raises(RefusedError) as caught:
        access.check_signature("operator", "a/topic", b"payload", given)
    right = sign(b"secret key", "a/topic", b"payload")
    assert right not in str(caught.value)
    assert "secret" not in str(caught.value) + repr(access._actors)
    access.check_signature("operator", "a/topic", b"payload", right)
    access.check_signature("operator", "a/topic", b"payload", right.upper())
    access.check_signature("another", "a/topic", b"payload", given)
    for topic, data in (("a/topi", b"payload"), ("a/topic", b"payloa"), ("a", b"topic\npayload")):
        with pytest.raises(RefusedError):
            access.check_signature("operator", topic, data, right)
