"""What a device teaches by refusing: modelled devices, planned and explored as the link does, without a link."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from conftest import eventually
from fault_server import fault_server
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.examples import examples
from test_client_faults import client, polling
from test_writing import point

from fieldbus.modbus.learned import REFUSED, TAKEN, Explorer, Knowledge, fingerprint
from fieldbus.modbus.planner import MAX_BITS, MAX_REGISTERS, Block, Cost, Limits, plan
from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.model import Kind, Point

FEWEST = Cost(1.0, 1e-9)
"""Requests are dear and addresses nearly free: the cheapest plan is the one of the fewest requests."""


def place(
    address: int, count: int = 1, table: Table = Table.HOLDING, factor: RegisterPoint | None = None
) -> RegisterPoint:
    """Return a point of so many registers, or a bit."""
    own = Point("d", f"{table.value[0]}{address}+{count}", Kind.INT)
    if table.is_bits:
        return RegisterPoint(own, table, address, RegisterType.BOOL)
    return RegisterPoint(own, table, address, RegisterType.STRING, length=count, factor=factor)


@dataclass
class Device:
    """What a device takes: a pure function of the request."""

    illegal: frozenset[int] = frozenset()
    most_registers: int = MAX_REGISTERS
    most_bits: int = MAX_BITS
    seams: frozenset[int] = frozenset()
    """No request may go from below one of these addresses to it."""
    asked: int = 0
    lies: list[int] = field(default_factory=list)
    """Which requests, counted from 0, are refused for no reason."""

    def takes(self, table: Table, address: int, count: int) -> bool:
        assert 1 <= count <= (MAX_BITS if table.is_bits else MAX_REGISTERS)
        assert address >= 0
        assert address + count <= 0x10000
        self.asked += 1
        if self.asked - 1 in self.lies:
            return False
        end = address + count
        return (
            count <= (self.most_bits if table.is_bits else self.most_registers)
            and not any(address <= item < end for item in self.illegal)
            and not any(address < seam < end for seam in self.seams)
        )

    def has(self, item: RegisterPoint) -> bool:
        """Return whether a point can be read at all, without counting."""
        self.asked -= 1
        return self.takes(item.table, item.address, item.count)


@dataclass
class Learnt:
    blocks: list[Block]
    knowledge: Knowledge
    rounds: int
    trials: int
    """Requests of explorations."""
    longest_trials: int
    """Of one exploration."""


def learn(
    device: Device,
    points: Sequence[RegisterPoint],
    *,
    knowledge: Knowledge | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    most_rounds: int = 5000,
) -> Learnt:
    """Plan, read and explore, as the link does, until nothing is refused that can be divided."""
    knowledge = Knowledge() if knowledge is None else knowledge
    explorer = Explorer(knowledge)
    trials = longest = 0
    given_up: set[tuple[object, ...]] = set()
    for round_ in range(most_rounds):
        kept = [
            item
            for item in points
            if not knowledge.is_refused(item) and not (item.factor and knowledge.is_refused(item.factor))
        ]
        blocks = plan(kept, 1, 1.0, knowledge.limits(limits), FEWEST, knowledge.barriers())
        before = knowledge.facts
        for block in blocks:
            if device.takes(block.table, block.address, block.count):
                explorer.took(block.table, block.count)
                continue
            if block.key in given_up:
                continue
            now = knowledge.facts
            search = explorer.explore(block)
            own = 0
            try:
                trial = next(search)
                while True:
                    own += 1
                    assert own < 5000, "no end of trials"
                    trial = search.send(TAKEN if device.takes(*trial[:3]) else REFUSED)
            except StopIteration:
                pass
            trials += own
            longest = max(longest, own)
            if knowledge.facts != now:
                break  # the link plans anew at once
            if not explorer.was_passing:
                given_up.add(block.key)
        if knowledge.facts == before:
            return Learnt(blocks, knowledge, round_ + 1, trials, longest)
    raise AssertionError(f"still learning after {most_rounds} rounds")


def fewest(device: Device, points: Sequence[RegisterPoint]) -> int:
    """Return how few requests can read points that do not overlap.

    To take as many as the device allows from the left is best, since of what it takes it takes every part.
    """
    requests, start = 0, None
    for item in sorted((item for item in points if device.has(item)), key=lambda item: item.address):
        size = MAX_BITS if item.table.is_bits else MAX_REGISTERS
        device.asked -= 1
        if start is None or item.end - start > size or not device.takes(item.table, start, item.end - start):
            requests, start = requests + 1, item.address
    return requests


def check(device: Device, points: Sequence[RegisterPoint], *, slack: float = 1.1) -> Learnt:
    """Learn, and hold against the promise: all that can be read is, by few requests, none of them refused."""
    found = learn(device, points)
    read = {id(item) for block in found.blocks for item in block.points}
    for block in found.blocks:
        device.asked -= 1
        assert device.takes(block.table, block.address, block.count), f"{block.name} is refused"
    for item in points:
        assert (id(item) in read) == device.has(item), item.point.name
        assert found.knowledge.is_refused(item) != device.has(item)
    optimum = fewest(device, points)
    assert len(found.blocks) <= math.floor(slack * optimum), f"{len(found.blocks)} instead of {optimum}"
    return found


# --- one thing at a time ----------------------------------------------------------------------------


def test_a_device_that_takes_everything_is_never_explored() -> None:
    found = check(Device(), [place(n) for n in range(300)])
    assert (found.trials, len(found.blocks), found.knowledge.facts) == (0, 3, Knowledge().facts)


def test_one_illegal_address_costs_one_point_and_the_time_of_a_binary_search() -> None:
    for hole in (0, 1, 57, 123, 124):
        found = check(Device(illegal=frozenset({hole})), [place(n) for n in range(125)])
        assert found.knowledge.refused == {Table.HOLDING: {(hole, hole + 1)}}
        assert found.trials <= 1 + 2 * 7
        assert not found.knowledge.walls


@pytest.mark.parametrize("most", [2, 3, 10, 31, 62, 63, 64, 100, 120, 124])
def test_a_hidden_limit_of_registers_is_found_exactly(most: int) -> None:
    found = check(Device(most_registers=most), [place(n) for n in range(500)])
    assert found.trials <= 60
    assert found.knowledge.facts == (most, MAX_BITS)


def test_a_device_that_reads_one_register_a_request_is_read_all_the_same() -> None:
    """Nothing tells a limit of one from seams everywhere."""
    found = check(Device(most_registers=1), [place(n) for n in range(300)])
    assert found.trials <= 4 * 300


@pytest.mark.parametrize("most", [8, 16, 100, 256, 1000, 1968, 1999])
def test_a_hidden_limit_of_bits_is_found_exactly(most: int) -> None:
    found = check(Device(most_bits=most), [place(n, table=Table.COIL) for n in range(4000)])
    assert (found.knowledge.max_registers, found.knowledge.max_bits) == (MAX_REGISTERS, most)
    assert found.trials <= 60


def test_a_gap_that_does_not_exist_is_gone_around() -> None:
    points = [place(n) for n in (*range(20), *range(40, 60), *range(70, 90))]
    found = check(Device(illegal=frozenset({25, 65})), points)
    assert [(block.address, block.count) for block in found.blocks] == [(0, 20), (40, 20), (70, 20)]
    assert found.knowledge.walls == {Table.HOLDING: {(20, 40), (60, 70)}}


def test_a_gap_that_exists_is_still_read_over() -> None:
    points = [place(n) for n in (*range(20), *range(40, 60), *range(70, 90))]
    found = check(Device(illegal=frozenset({25})), points)
    assert [(block.address, block.count) for block in found.blocks] == [(0, 20), (40, 50)]


def test_a_seam_between_two_neighbours_is_kept() -> None:
    found = check(Device(seams=frozenset({33})), [place(n) for n in range(100)])
    assert [(block.address, block.count) for block in found.blocks] == [(0, 33), (33, 67)]
    assert found.knowledge.walls == {Table.HOLDING: {(33, 33)}}


def test_values_of_several_registers_are_asked_for_whole() -> None:
    """A device that refuses half of a number would teach something wrong."""
    points = [place(4 * n, 4) for n in range(60)]
    starts = {item.address for item in points}
    device = Device(illegal=frozenset({41}))
    own = device.takes
    device.takes = (  # type: ignore[method-assign]
        lambda table, address, count: own(table, address, count) and address in starts and not count % 4
    )
    found = check(device, points)
    assert found.knowledge.refused == {Table.HOLDING: {(40, 44)}}


def test_of_points_that_overlap_only_that_is_refused_which_the_device_has_not() -> None:
    whole, half, beside = place(4, 2), place(4), place(6)
    found = learn(Device(illegal=frozenset({5})), [whole, half, beside])
    assert found.knowledge.refused == {Table.HOLDING: {(4, 6)}}
    assert [(block.address, block.count) for block in found.blocks] == [(4, 1), (6, 1)]


def test_points_that_overlap_and_are_too_long_together_are_not_refused_again_and_again() -> None:
    """Each of them alone is taken: what the link would forgive it would refuse the next moment."""
    found = learn(Device(most_registers=6), [place(0, 2), place(1, 6)])
    assert not found.knowledge.refused
    assert found.knowledge.max_registers == 6
    assert [(block.address, block.count) for block in found.blocks] == [(0, 2), (1, 6)]


def test_a_value_whose_factor_is_refused_is_not_read_either() -> None:
    factor = place(10)
    value, other = place(0, factor=factor), place(5)
    found = learn(Device(illegal=frozenset({10})), [factor, value, other])
    assert [(block.address, block.count) for block in found.blocks] == [(5, 1)]
    assert found.knowledge.refused == {Table.HOLDING: {(10, 11)}}


def test_a_value_that_no_request_reads_together_with_its_factor_costs_only_itself_and_it() -> None:
    """Something between them is refused. That is no reason to ask for ever, nor to lose what is beside."""
    factor = place(10)
    value, between, beside = place(0, factor=factor), place(5), place(20)
    found = learn(Device(illegal=frozenset({5})), [factor, value, between, beside])
    assert found.knowledge.is_refused(between)
    assert (20, 1) in [(block.address, block.count) for block in found.blocks]


# --- everything at once -----------------------------------------------------------------------------


@st.composite
def maps(draw: st.DrawFn) -> list[RegisterPoint]:
    """Return points that do not overlap: neighbours, gaps, several registers."""
    at, points = draw(st.integers(0, 50)), []
    for gap, count, repeat in draw(
        st.lists(
            st.tuples(st.sampled_from([0, 0, 0, 1, 3, 20, 200]), st.sampled_from([1, 1, 2, 4, 10]),
                      st.integers(1, 40)),
            min_size=1, max_size=12,
        )
    ):  # fmt: skip
        at += gap
        for _ in range(repeat):
            points.append(place(at, count))
            at += count
    return points


@st.composite
def holes(draw: st.DrawFn, points: Sequence[RegisterPoint]) -> frozenset[int]:
    """Return addresses that a device has not, in points and between them."""
    last = max(item.end for item in points)
    found = set(draw(st.lists(st.integers(0, last), max_size=6)))
    for start, size in draw(st.lists(st.tuples(st.integers(0, last), st.integers(1, 60)), max_size=3)):
        found |= set(range(start, start + size))
    return frozenset(found)


@given(st.data())
@settings(max_examples=examples(150), deadline=None)
def test_whatever_is_illegal_all_else_is_read_and_nearly_by_the_fewest_requests(data) -> None:
    points = data.draw(maps())
    device = Device(
        illegal=data.draw(holes(points)),
        seams=frozenset(data.draw(st.lists(st.integers(0, points[-1].end), max_size=3))),
    )
    found = check(device, points, slack=1.1)
    bad_points = sum(not device.has(item) for item in points)
    k = bad_points + sum(map(len, found.knowledge.walls.values())) + 1
    assert found.trials <= 2 * k * math.ceil(math.log2(len(points) + 1)) + 4 * k


@given(st.data())
@settings(max_examples=examples(150), deadline=None)
def test_a_hidden_limit_beside_holes_is_found_as_well(data) -> None:
    points = data.draw(maps())
    device = Device(
        illegal=data.draw(holes(points)), most_registers=data.draw(st.integers(10, MAX_REGISTERS))
    )
    found = check(device, points, slack=1.1)
    bad_points = sum(not device.has(item) for item in points)
    k = bad_points + sum(map(len, found.knowledge.walls.values())) + 2
    assert found.trials <= 2 * k * math.ceil(math.log2(len(points) + 1)) + 4 * k + 16


@given(
    st.sets(st.integers(0, 3000), min_size=1, max_size=300),
    st.lists(st.integers(0, 3000), max_size=10),
    st.integers(16, MAX_BITS),
)
@settings(max_examples=examples(150), deadline=None)
def test_bits_are_learned_as_registers_are(addresses, illegal, most) -> None:
    points = [place(address, table=Table.DISCRETE) for address in sorted(addresses)]
    device = Device(illegal=frozenset(illegal), most_bits=most)
    found = check(device, points)
    assert found.knowledge.max_registers == MAX_REGISTERS


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_what_was_learned_is_enough_for_the_next_start(data) -> None:
    points = data.draw(maps())
    device = Device(illegal=data.draw(holes(points)), most_registers=data.draw(st.integers(10, 125)))
    found = learn(device, points)
    mark = fingerprint(points, 1)
    known = Knowledge.from_json(found.knowledge.to_json(mark), mark)
    assert known.facts == found.knowledge.facts
    again = learn(device, points, knowledge=known)
    assert (again.trials, again.rounds) == (0, 1)
    assert [item.key for item in again.blocks] == [item.key for item in found.blocks]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 6)), min_size=1, max_size=40),
    st.lists(st.integers(0, 66), max_size=6),
    st.integers(6, 125),
)
@settings(max_examples=examples(150), deadline=None)
def test_points_that_overlap_are_all_read_or_refused_and_no_block_is_refused(items, illegal, most) -> None:
    points = [place(address, count) for address, count in items]
    device = Device(illegal=frozenset(illegal), most_registers=most)
    found = learn(device, points)
    read = {id(item) for block in found.blocks for item in block.points}
    for block in found.blocks:
        assert device.takes(block.table, block.address, block.count), block.name
    assert all((id(item) in read) == device.has(item) for item in points)


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_values_tied_to_factors_are_learned_too(data) -> None:
    factor = place(data.draw(st.integers(0, 60)))
    addresses = data.draw(st.sets(st.integers(0, 60).filter(lambda n: n != factor.address), max_size=12))
    tied = data.draw(st.sets(st.sampled_from(sorted(addresses)))) if addresses else set()
    points = [factor, *(place(n, factor=factor if n in tied else None) for n in sorted(addresses))]
    device = Device(illegal=frozenset(data.draw(st.lists(st.integers(0, 61), max_size=4))))
    found = learn(device, points)
    ties = [item for item in points if item.factor]
    low = min([factor.address, *(item.address for item in ties)])
    high = max([factor.end, *(item.end for item in ties)])
    is_whole = device.takes(Table.HOLDING, low, high - low)
    for block in found.blocks:
        is_tied = any(item.factor or (item is factor and ties) for item in block.points)
        assert device.takes(block.table, block.address, block.count) or (is_tied and not is_whole)
    for item in points:
        assert found.knowledge.is_refused(item) == (not device.has(item))


# --- refusals that mean nothing ---------------------------------------------------------------------


def test_a_block_that_is_refused_once_and_then_taken_teaches_nothing() -> None:
    device = Device(lies=[0])
    found = learn(device, [place(n) for n in range(100)])
    assert (found.knowledge.facts, found.trials, len(found.blocks)) == (Knowledge().facts, 1, 1)


@given(st.lists(st.integers(0, 40), max_size=10))
def test_after_refusals_without_reason_all_is_read_again_once_they_are_forgiven(lies) -> None:
    points = [place(n) for n in range(125)]
    device = Device(lies=lies)
    found = learn(device, points)
    for item in points:  # what the link does, every five minutes and once a day
        found.knowledge.forgive(item)
    found.knowledge.walls.clear()
    found.knowledge.max_registers = MAX_REGISTERS
    device.lies.clear()
    found = learn(device, points, knowledge=found.knowledge)
    assert [(block.address, block.count) for block in found.blocks] == [(0, 125)]


# --- on disk ----------------------------------------------------------------------------------------


def known() -> Knowledge:
    return Knowledge(
        {Table.HOLDING: {(5, 6), (9, 11)}, Table.COIL: set()},
        {Table.INPUT: {(7, 7), (20, 40)}},
        100,
        1000,
        0.0125,
    )


def test_what_is_known_survives_a_file() -> None:
    found = Knowledge.from_json(known().to_json("abc"), "abc")
    assert found.facts == known().facts
    assert found.turnaround_s == 0.0125


def test_of_another_list_of_points_only_the_turnaround_is_believed() -> None:
    found = Knowledge.from_json(known().to_json("abc"), "other")
    assert found.facts == Knowledge().facts
    assert found.turnaround_s == 0.0125


def saying(**change: object) -> str:
    return json.dumps({**json.loads(known().to_json("abc")), **change})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", "7", '"x"', "{}", "\0", "[" * 100_000, '{"fingerprint": ' + "[" * 100_000,
        saying(refused=None), saying(refused=[]), saying(refused={"holding": 5}), saying(refused={"x": []}),
        saying(refused={"holding": [[1]]}), saying(refused={"holding": [[1, 2, 3]]}),
        saying(refused={"holding": [[None, 1]]}), saying(walls={"holding": [["a", "b"]]}),
        saying(walls={"holding": [[1e999, 2]]}), saying(max_registers=None), saying(max_registers="many"),
        saying(max_registers=math.inf), saying(max_bits=math.nan), saying(max_bits=[]),
        saying(refused={"holding": [["9" * 5000, 2]]}),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_as_good_as_none(text: str) -> None:
    assert Knowledge.from_json(text, "abc").facts == Knowledge().facts


@pytest.mark.parametrize(
    "value", [None, -1, 60_000, 1e400, math.nan, "5", [], {}], ids=str
)  # fmt: skip
def test_a_turnaround_that_makes_no_sense_is_not_believed(value: object) -> None:
    found = Knowledge.from_json(saying(turnaround_ms=value), "abc")
    assert found.turnaround_s is None
    assert found.facts == known().facts


@pytest.mark.parametrize(
    ("said", "taken"), [(0, 1), (-5, 1), (126, 125), (10**30, 125), (7.9, 7), ("60", 60)]
)
def test_limits_beyond_the_protocol_are_made_legal(said: object, taken: int) -> None:
    assert Knowledge.from_json(saying(max_registers=said), "abc").max_registers == taken


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
            ["fingerprint", "refused", "walls", "max_registers", "max_bits", "turnaround_ms", "holding"]), inner),
        max_leaves=12,
    )
)  # fmt: skip
@example({"fingerprint": "abc", "refused": {}, "walls": {"holding": [[5, 3], [-4, 70000]]}, "max_registers": 5,
          "max_bits": 5})  # fmt: skip
@settings(max_examples=examples(200))
def test_whatever_a_file_says_points_can_be_planned_with_it(data) -> None:
    if isinstance(data, dict) and data:
        data = {"fingerprint": "abc", "refused": {}, "walls": {}, "max_registers": 9, "max_bits": 9, **data}
        data["fingerprint"] = "abc"
    found = Knowledge.from_json(json.dumps(data), "abc")
    points = [place(n) for n in range(40)]
    blocks = plan(points, 1, 1.0, found.limits(Limits()), FEWEST, found.barriers())
    assert sorted(id(item) for block in blocks for item in block.points) == sorted(map(id, points))


def test_the_tighter_of_what_is_configured_and_what_is_known_holds() -> None:
    limits = known().limits(Limits(50, 1500, 3))
    assert limits == Limits(50, 1000, 3)
    assert known().limits(Limits()) == Limits(100, 1000)


def changes() -> list[Callable[[list[RegisterPoint]], list[RegisterPoint]]]:
    return [
        lambda points: points[1:],
        lambda points: [*points, place(99)],
        lambda points: [*points[1:], place(1)],
        lambda points: [*points[1:], place(0, 2)],
        lambda points: [*points[1:], place(0, table=Table.COIL)],
    ]


def test_the_fingerprint_is_of_the_list_of_points_and_not_of_its_order() -> None:
    points = [place(n) for n in range(5)]
    mark = fingerprint(points, 1)
    assert fingerprint(reversed(points), 1) == mark
    assert fingerprint([place(n) for n in range(5)], 1) == mark
    assert fingerprint(points, 2) != mark
    assert all(fingerprint(change(points), 1) != mark for change in changes())


def test_a_point_that_is_forgiven_is_refused_no_more_and_its_twin_elsewhere_is() -> None:
    here, there = place(5), place(5, table=Table.INPUT)
    knowledge = Knowledge()
    knowledge.forgive(here)  # nothing was known of it
    knowledge.refuse([here, there])
    before = knowledge.facts
    knowledge.forgive(here)
    assert not knowledge.is_refused(here)
    assert knowledge.is_refused(there)
    assert knowledge.facts != before
    knowledge.forgive(there)
    assert knowledge.facts == Knowledge().facts
    assert not any(knowledge.barriers().values())


# --- over a socket ----------------------------------------------------------------------------------


async def test_a_link_reads_all_but_what_does_not_exist_and_knows_it_at_the_next_start(tmp_path) -> None:
    points = [point(f"p{n}", f"holding {n}", access="read") for n in range(100)]
    async with fault_server() as server:
        server.illegal |= {(1, "holding", 40), (1, "holding", 41), (1, "holding", 77)}
        link = client(server, points, scan_s=0.05)
        link.memory = tmp_path
        alive = [f"p{n}" for n in range(100) if n not in {40, 41, 77}]
        async with polling(link, wait=False) as gateway:
            await eventually(lambda: gateway.is_good(*alive) and "p77" in gateway.samples)
            assert link.counters["points_refused"] == 3
            assert [str(gateway.samples[name].reason) for name in ("p40", "p41", "p77")] == [
                "device exception 02"
            ] * 3
            assert gateway.samples["p39"].value == 39
        server.asked.clear()
        again = client(server, points, scan_s=0.05)
        again.memory = tmp_path
        async with polling(again, wait=False) as gateway:
            await eventually(lambda: gateway.is_good(*alive))
        assert server.asked[0].pdu[3:5] != b"\0\x64", "what is refused was asked for again"
