"""What a gate is told of the time before a restart, record by record."""

import pytest

from fieldbus.clock import Clock, machine_boot
from fieldbus.errors import RefusedError
from fieldbus.gateway.commands import clock_mark
from fieldbus.gateway.commands.audit import FILE_NAME, Audit, export, last_files
from fieldbus.gateway.commands.command import LONGEST_EXPIRY_S, Command
from fieldbus.gateway.commands.gate import DAY_S, Gate, Guard
from fieldbus.gateway.commands.recall import recall, restore
from fieldbus.model import Access, Kind, Point, Quality, Sample

S = 10**9
NOW_NS = 1_800_000_000 * S
SPEED = Point("press", "speed", Kind.INT, Access.READWRITE)
LEVEL = Point("press", "level", Kind.INT)
POINTS = {point.address: point for point in (SPEED, LEVEL)}


class Told:
    """A gate that only listens."""

    def __init__(self):
        self.writes = []
        """Point, how old, how many."""
        self.ids = []
        self.forgot = 0

    def note(self, point, value, now_s, count=1):
        self.writes.append((point.name, round(1000.0 - now_s, 3), count))

    def remember(self, actor, id_, until_ns, refusal=None):
        self.ids.append((id_, (until_ns - NOW_NS) / S, refusal))

    def forget_counts(self):
        self.forgot += 1
        self.writes.clear()


@pytest.fixture
def audit(tmp_path):
    log = Audit(tmp_path)
    yield log
    log.close()


def put(audit, age_s, **what):
    record = {"way": "mqtt", "actor": "operator", "point": "press.speed", "value": 1, "outcome": "written"}
    assert audit.record(NOW_NS - round(age_s * S), record | what)


def told(audit, guards=None):
    found = Told()
    found.opened = restore(found, audit, POINTS, guards or {}, Clock(lambda: 1000.0, lambda: NOW_NS))
    return found


def test_an_id_is_known_for_twice_the_longest_expiry(audit):
    put(audit, 10, id="done")
    put(audit, 5, id="no", outcome="refused", reason="too high")
    put(audit, 4, id="late", outcome="expired", reason=None)
    put(audit, 3, id="forged", outcome="refused", proven=False)
    put(audit, 2, id="failed", outcome="failed", reason="timeout")
    put(audit, 1)
    twice = 2 * LONGEST_EXPIRY_S
    assert told(audit).ids == [
        ("done", twice - 10, None), ("no", twice - 5, "too high"), ("late", twice - 4, "expired"),
        ("failed", twice - 2, None),
    ]  # fmt: skip


def test_of_two_times_of_an_id_the_later_counts(audit):
    put(audit, -500, id="ahead")
    put(audit, 1e9, id="of long ago")
    put(audit, 10)
    twice = 2 * LONGEST_EXPIRY_S
    assert told(audit).ids == [("ahead", 500 + twice, None), ("of long ago", twice - 10, None)]


@pytest.mark.parametrize(
    ("outcome", "way", "counts"),
    [
        ("written", "mqtt", True), ("verified", "mqtt", True), ("failed", "mqtt", True),
        ("unknown outcome", "mqtt", True), ("routed", "route", True), ("intent", "mqtt", True),
        ("refused", "mqtt", False), ("expired", "mqtt", False), ("armed", "mqtt", False),
        ("written", "fallback", True), ("verified", "fallback", True), ("failed", "fallback", False),
        ("unknown outcome", "fallback", False),
    ],
)  # fmt: skip
def test_what_the_device_may_have_got_counts_as_written(audit, outcome, way, counts):
    put(audit, 7, outcome=outcome, way=way)
    assert told(audit).writes == ([("speed", 7.0, 1)] if counts else [])


def test_an_odd_record_hides_none_that_follows_it(audit):
    put(audit, 50, point="press.gone")
    put(audit, 49, point=None)
    put(audit, 48, outcome="clock", begins=False)
    put(audit, 47, id="a", actor=None, outcome=["x"])
    with audit.file.open("ab") as file:
        file.write(b'not a record at all\n{"n":9,"time":"2026"}\n\n\xff\xfe\n')
    put(audit, 40)
    put(audit, 30, point="press.level", count=3)
    assert told(audit).writes == [("speed", 40.0, 1), ("level", 30.0, 3)]


def test_a_file_that_is_gone_hides_no_other_one(audit, tmp_path):
    put(audit, 10)
    found, _ = recall([tmp_path / "gone", tmp_path / FILE_NAME], NOW_NS - 60 * S, NOW_NS)
    assert len(found) == 1


def test_an_intent_that_has_an_end_counts_once(audit):
    put(audit, 50, outcome="intent")
    put(audit, 49, outcome="verified", intent=1)
    put(audit, 40, outcome="intent")
    put(audit, 39, outcome="refused", intent=3)
    put(audit, 30)
    found = told(audit)
    assert found.writes == [("speed", 49.0, 1), ("speed", 30.0, 1)]
    assert found.opened == 0


def test_each_open_intent_gets_its_end_and_is_told_once(audit, tmp_path):
    for value in (1, 2):
        put(audit, 1e6, outcome="intent", value=value, id=f"id {value}")
    assert told(audit).opened == 2
    ends = [record for record in export(tmp_path) if record["outcome"] == "unknown outcome"]
    assert [(end["intent"], end["value"], end["id"]) for end in ends] == [(1, 1, "id 1"), (2, 2, "id 2")]
    assert told(audit).opened == 0


@pytest.mark.parametrize("is_writable", [True, False])
def test_an_end_that_cannot_be_recorded_is_logged(audit, caplog, monkeypatch, is_writable):
    put(audit, 5, outcome="intent")
    if not is_writable:
        monkeypatch.setattr(audit, "record", lambda *_: False)
    assert told(audit).opened == 1
    assert any("it is told again at the next start" in text for text in caplog.messages) is not is_writable


@pytest.mark.parametrize(
    ("guards", "reach_s"),
    [
        ({}, 2 * LONGEST_EXPIRY_S),
        ({SPEED: Guard()}, 2 * LONGEST_EXPIRY_S),
        ({SPEED: Guard(min_interval_s=5.0)}, 2 * LONGEST_EXPIRY_S),
        ({SPEED: Guard(min_interval_s=5000.0), LEVEL: Guard(min_interval_s=1.0)}, 5000.0),
        ({SPEED: Guard(min_interval_s=2 * DAY_S), LEVEL: Guard(daily_budget=3)}, 2 * DAY_S),
        ({SPEED: Guard(daily_budget=3), LEVEL: Guard(min_interval_s=1.0)}, DAY_S),
    ],
)
def test_as_much_is_recalled_as_any_guard_needs(audit, guards, reach_s):
    put(audit, reach_s + 1)
    put(audit, reach_s)
    put(audit, 0)
    assert told(audit, guards).writes == [("speed", reach_s, 1), ("speed", 0.0, 1)]


def test_a_record_of_this_very_moment_has_its_time(audit):
    put(audit, 5)
    put(audit, 5)
    put(audit, 0)
    found, _ = recall(last_files(audit.folder), NOW_NS - 60 * S, NOW_NS)
    assert [(NOW_NS - item.latest_ns) / S for item in found] == [5, 5, 0]


def test_what_counted_when_a_clock_was_set_replaces_what_was_before(audit):
    put(audit, 70)
    put(audit, 60, outcome="clock", begins=True, counted={"press.speed": [[3600, 2], [9, 1]]})
    put(audit, 60, outcome="clock", begins=False, counted={"press.gone": [[1, 1]], "press.level": [[8, 1]]})
    put(audit, 50)
    found = told(audit)
    assert found.writes == [("speed", 3660.0, 2), ("speed", 69.0, 1), ("level", 68.0, 1), ("speed", 50.0, 1)]
    assert found.forgot == 1


def test_a_budget_of_hours_ago_is_not_renewed_by_a_restart(audit):
    for hours in (25, 23, 20, 1):
        put(audit, hours * 3600)
    guards = {SPEED: Guard(daily_budget=3)}
    gate = Gate(POINTS, guards, lambda *_: True, lambda _: Sample(1, Quality.GOOD, None, 0))
    restore(gate, audit, POINTS, guards, Clock(lambda: 1000.0, lambda: NOW_NS))
    assert [sum(count for _, count in gate.counted(1000.0)["press.speed"])] == [3]
    assert gate.counted(1000.0) == {"press.speed": [(23 * 3600, 1), (20 * 3600, 1), (3600, 1)]}


class Machine:
    """A machine whose clocks go on while no gateway runs; each boot begins the monotonic clock again."""

    def __init__(self, audit):
        self.audit = audit
        self.up_s, self.wall_ns, self.boots = 5000.0, NOW_NS, 1
        self.tells_boots = True

    def passes(self, seconds, *, wall_s=None):
        self.up_s += seconds
        self.wall_ns += round((seconds if wall_s is None else wall_s) * S)

    def boots_again(self):
        self.boots, self.up_s = self.boots + 1, 10.0

    def starts(self):
        """Start a gateway; return its gate and its clock."""
        boot = (lambda: f"boot {self.boots}") if self.tells_boots else None
        clock = Clock(lambda: self.up_s, lambda: self.wall_ns, boot)
        guards = {SPEED: Guard(daily_budget=3)}
        gate = Gate(POINTS, guards, lambda *_: True, lambda _: Sample(1, Quality.GOOD, None, 0))
        restore(gate, self.audit, POINTS, guards, clock)
        return gate, clock

    def writes(self, gate, clock):
        command = Command("mqtt", "topic", "operator", "press.speed", 1)
        gate.decide(command, clock.monotonic_s(), clock.wall_ns())
        record = {
            "way": "mqtt",
            "actor": "operator",
            "point": "press.speed",
            "value": 1,
            "outcome": "written",
        }
        assert self.audit.record(clock.wall_ns(), record)


@pytest.mark.parametrize("set_s", [30 * 3600.0, -30 * 3600.0, 400 * 86400.0])
def test_a_clock_that_is_set_while_no_gateway_runs_renews_no_budget(audit, set_s):
    machine = Machine(audit)
    gate, clock = machine.starts()
    for _ in range(3):
        machine.writes(gate, clock)
    machine.passes(3600, wall_s=3600 + set_s)
    for _ in range(2):  # the second start knows it from the record of the first
        gate, clock = machine.starts()
        with pytest.raises(RefusedError, match="used up"):
            machine.writes(gate, clock)
        assert gate.counted(machine.up_s) == {"press.speed": [(3600, 3)]}
    machine.passes(22.9 * 3600)
    gate, clock = machine.starts()
    with pytest.raises(RefusedError, match="used up"):
        machine.writes(gate, clock)
    machine.passes(0.2 * 3600)
    gate, clock = machine.starts()
    machine.writes(gate, clock)


def test_time_that_has_passed_while_no_gateway_ran_renews_the_budget(audit):
    machine = Machine(audit)
    gate, clock = machine.starts()
    for _ in range(3):
        machine.writes(gate, clock)
    machine.passes(86401)
    gate, clock = machine.starts()
    machine.writes(gate, clock)
    assert not [item for item in export(audit.folder) if item["outcome"] == "clock"]


@pytest.mark.parametrize("is_booted", [True, False])
def test_after_a_boot_or_without_knowing_it_the_wall_clock_is_believed(audit, is_booted):
    machine = Machine(audit)
    machine.tells_boots = is_booted
    gate, clock = machine.starts()
    for _ in range(3):
        machine.writes(gate, clock)
    if is_booted:
        machine.boots_again()
    machine.passes(60, wall_s=86460)
    gate, clock = machine.starts()
    machine.writes(gate, clock)


def test_an_id_is_known_though_the_clock_was_set_forward(audit):
    machine = Machine(audit)
    machine.starts()
    record = {"way": "mqtt", "actor": "operator", "point": "press.speed", "value": 1, "outcome": "written"}
    assert audit.record(machine.wall_ns, record | {"id": "a"})
    machine.passes(10, wall_s=7200)
    gate, clock = machine.starts()
    command = Command("mqtt", "topic", "operator", "press.speed", 1, id="a")
    with pytest.raises(RefusedError, match="already"):
        gate.decide(command, clock.monotonic_s(), clock.wall_ns())


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"boot": 1}', b'{"boot": "boot 1", "offset_ns": "x"}', b"\xff"]
)
def test_a_mark_that_makes_no_sense_is_no_mark(audit, content):
    machine = Machine(audit)
    _, clock = machine.starts()
    (audit.folder / clock_mark.FILE_NAME).write_bytes(content)
    assert clock_mark.shift_s(audit.folder, clock) == 0
    machine.starts()
    machine.passes(5, wall_s=105)
    assert clock_mark.shift_s(audit.folder, clock) == 100


def test_the_machine_tells_its_boots_apart_where_the_system_does():
    assert Clock().boot() == machine_boot()
    assert Clock(lambda: 1.0).boot() is None
