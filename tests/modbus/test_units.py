"""The units behind a link: what is polled, what is known, and what may still come late. No link, no time."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from conftest import eventually
from fault_server import fault_server
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from test_client_faults import client, polling
from test_writing import point

from fieldbus.modbus import pdu
from fieldbus.modbus.agenda import Rank
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.learned import fingerprint
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace, UdpPlace
from fieldbus.modbus.planner import Cost, Limits
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.modbus.units import FIRST_ODD_RETRY_S, FIRST_RETRY_S, RETRY_S, Poll, Unit, UnitState, cost_on

NETWORK = Cost()


def words(*addresses: int, table: str = "holding", **more: object) -> list[RegisterPoint]:
    more.setdefault("access", "read")
    return [point(f"{table[0]}{address}", f"{table} {address}", **more) for address in addresses]


def state_of(
    points: list[RegisterPoint], scan_s: float = 1.0, memory=None, cost: Cost = NETWORK, **more
) -> UnitState:
    more.setdefault("timeout_s", 1.0)
    return UnitState(Unit("plc", 17, points, scan_s, **more), cost, memory)


def spans(polls: list[Poll]) -> list[tuple[str, int, int]]:
    return [(poll.block.table.value, poll.block.address, poll.block.count) for poll in polls]


def read(table: Table, address: int, count: int) -> Ask:
    return Ask(17, pdu.read_request(table, address, count))


# --- what asking costs ------------------------------------------------------------------------------


def test_a_read_costs_on_a_serial_line_what_its_characters_and_silences_take() -> None:
    """9600 8E1: eleven bits a character, 1.1458 ms; 3.5 characters of silence behind each frame."""
    cost = cost_on(SerialPlace("/dev/ttyS0", 9600, 8, "E", 1))
    for count in (1, 10, 125):
        characters = 8 + 3.5 + 5 + 2 * count + 3.5
        assert cost.of(Table.HOLDING, count) == pytest.approx(characters * 11 / 9600 + 0.005)
    assert cost.of(Table.HOLDING, 125) == pytest.approx(0.3144, abs=0.0001)
    for bits, data in ((1, 1), (8, 1), (9, 2), (2000, 250)):
        assert cost.of(Table.COIL, bits) == pytest.approx((20 + data) * 11 / 9600 + 0.005)


def test_in_ascii_a_read_costs_two_characters_a_byte() -> None:
    """``:`` UU FF AAAA NNNN LL CR LF is 17 characters, its answer 11 and four a register."""
    cost = cost_on(SerialPlace("/dev/ttyS0", 9600, 8, "E", 1, Framing.ASCII))
    request = len(":110300040002E6\r\n")
    for count in (1, 10, 125):
        answer = len(":1103") + 2 + 4 * count + len("E6\r\n")
        characters = request + answer + 2 * 3.5
        assert cost.of(Table.HOLDING, count) == pytest.approx(characters * 11 / 9600 + 0.005)


def test_above_19200_baud_the_silence_is_fixed_and_a_turnaround_counts() -> None:
    place = SerialPlace("/dev/ttyS0", 115_200, 8, "N", 1, turnaround_s=0.02)
    assert cost_on(place).of(Table.HOLDING, 10) == pytest.approx(
        33 * 10 / 115_200 + 2 * 0.00175 + 0.02 + 0.005
    )
    odd = SerialPlace("/dev/ttyS0", 19_200, 7, "O", 2)
    assert cost_on(odd).of(Table.HOLDING, 10) == pytest.approx((33 + 7) * 11 / 19_200 + 0.005)


def test_on_a_network_gaps_are_read_over_and_on_a_slow_line_they_are_not() -> None:
    for place in (TcpPlace("h", 502), UdpPlace("h", 502)):
        assert spans(state_of(words(0, 60), cost=cost_on(place)).polls) == [("holding", 0, 61)]
    slow = cost_on(SerialPlace("/dev/ttyS0", 9600, 8, "E", 1))
    # A request costs 27.9 ms, a register 2.29 ms: thirteen between are dearer, twelve are not.
    assert spans(state_of(words(0, 14), cost=slow).polls) == [("holding", 0, 1), ("holding", 14, 1)]
    assert spans(state_of(words(0, 13), cost=slow).polls) == [("holding", 0, 14)]


def test_the_turnaround_is_what_a_request_takes_beyond_its_bytes() -> None:
    cost = Cost(0.02, 0.001)
    state = state_of(words(0), cost=cost)
    state.note(0.05, read(Table.HOLDING, 0, 10))
    assert state.knowledge.turnaround_s == pytest.approx(0.03)
    for _ in range(100):
        state.note(0.06, read(Table.HOLDING, 0, 10))
    assert state.knowledge.turnaround_s == pytest.approx(0.04, abs=1e-4)
    state.note(0.001, read(Table.HOLDING, 0, 10))  # faster than the line: a stopwatch's fault
    assert state.knowledge.turnaround_s == pytest.approx(0.036, abs=1e-4)
    state = state_of(words(0), cost=cost)
    state.note(0.05, Ask(17, bytes.fromhex("0600040001")))  # a write's answer has no data
    assert state.knowledge.turnaround_s == pytest.approx(0.05)


# --- the plan ---------------------------------------------------------------------------------------


def test_what_did_not_change_keeps_its_polls_and_groups() -> None:
    state = state_of([*words(*range(10)), *words(*range(300, 310)), *words(4, table="input")])
    before = list(state.polls)
    assert state.replan(5.0) == ([], [])
    assert state.polls == before
    bad = state.unit.points[12]
    state.knowledge.refuse([bad])
    gone, added = state.replan(5.0)
    assert spans(gone) == [("holding", 300, 10)]
    assert sorted(spans(added)) == [("holding", 300, 2), ("holding", 302, 1), ("holding", 303, 7)]
    kept = [poll for poll in state.polls if poll not in added]
    assert [poll.group for poll in kept] == [poll.group for poll in before if poll not in gone]
    assert [poll.block.points for poll in added if poll.is_retry] == [(bad,)]
    assert [poll.period_s for poll in added if poll.is_retry] == [FIRST_RETRY_S]
    assert all(poll.due_s == 5.0 for poll in added)
    state.knowledge.forgive(bad)
    gone, added = state.replan(6.0)
    assert spans(added) == [("holding", 300, 10)]
    assert len(gone) == 3


@given(st.lists(st.sets(st.integers(0, 39), max_size=6), max_size=6))
@settings(max_examples=examples(100))
def test_however_often_it_is_planned_anew_each_point_is_in_one_poll(refusals) -> None:
    state = state_of([*words(*range(0, 40, 2)), *words(*range(20), table="input")])
    points = state.unit.readable
    for refused in refusals:
        before = list(state.polls)
        for item in points:
            state.knowledge.forgive(item)
        state.knowledge.refuse(points[n] for n in refused)
        gone, added = state.replan(1.0)
        assert [poll for poll in before if poll not in gone] == [
            poll for poll in state.polls if poll not in added
        ]
        assert set(gone) <= set(before)
        members = [item for poll in state.polls for item in poll.block.points]
        assert sorted(map(id, members)) == sorted(map(id, points))
        for poll in state.polls:
            assert poll.is_retry == any(points.index(item) in refused for item in poll.block.points)
            assert poll.turns is state.turns


@pytest.mark.parametrize("is_refused_at_first", [False, True])
def test_a_poll_that_becomes_a_retry_or_was_one_says_so_at_any_period(is_refused_at_first: bool) -> None:
    state = state_of(words(5), scan_s=RETRY_S)
    for is_refused in (is_refused_at_first, not is_refused_at_first):
        if is_refused:
            state.knowledge.refuse(state.unit.points)
        else:
            state.knowledge.forgive(state.unit.points[0])
        state.replan(1.0)
        assert [poll.is_retry for poll in state.polls] == [is_refused]


def test_what_is_only_written_is_not_polled_and_the_factors_of_what_is_read_are() -> None:
    factor = point("sf", "holding 30", "int16", access="read")
    hidden = point("hidden", "holding 90", "int16", access="read")
    points = [
        point("power", "holding 20", "int16", factor=factor, access="read"),
        point("setpoint", "holding 80", "int16", factor=hidden, access="write"),
    ]
    assert spans(state_of(points).polls) == [("holding", 20, 11)]


def test_a_refused_value_is_asked_for_again_together_with_its_factor() -> None:
    """Alone it has no scale."""
    factor = point("sf", "holding 30", "int16", access="read")
    value = point("power", "holding 20", "int16", factor=factor, access="read")
    state = state_of([factor, value])
    state.knowledge.refuse([value])
    state.replan(0.0)
    retries = [poll for poll in state.polls if poll.is_retry]
    assert [(poll.block.points, poll.block.address, poll.block.count) for poll in retries] == [
        ((value,), 20, 11)
    ]


async def test_a_value_that_a_device_has_not_does_not_cost_its_factor_nor_the_session() -> None:
    factor = point("sf", "holding 30", "int16", access="read")
    value = point("power", "holding 20", "int16", factor=factor, access="read")
    async with fault_server() as server:
        server.illegal.add((1, "holding", 20))
        async with polling(client(server, [factor, value]), wait=False) as gateway:
            await eventually(lambda: gateway.is_good("sf") or gateway.lost, 1.0)
            await asyncio.sleep(0.1)


def test_a_new_session_asks_for_everything_at_once_and_for_the_refused_again() -> None:
    state = state_of(words(0, 1, 2))
    state.knowledge.refuse([state.unit.points[1]])
    state.replan(0.0)
    state.turns.rank = Rank.DEMOTED
    slot = state.turns.slot
    state.begin(77.0)
    assert {(poll.due_s, poll.turns.rank, poll.turns.slot) for poll in state.polls} == {
        (77.0, Rank.LIVE, slot)
    }
    assert [poll.is_first for poll in state.polls] == [not poll.is_retry for poll in state.polls]


def test_limits_and_walls_are_forgotten_and_refused_points_are_not() -> None:
    state = state_of(words(*range(50)))
    assert not state.forget_limits()
    state.knowledge.max_registers = 10
    state.knowledge.walls[Table.HOLDING] = {(5, 5)}
    state.knowledge.refuse([state.unit.points[7]])
    state.explorer.took(Table.HOLDING, 99)
    state.replan(0.0)
    assert len(state.polls) > 5
    assert state.forget_limits()
    state.replan(0.0)
    assert spans(state.polls) == [("holding", 0, 7), ("holding", 8, 42), ("holding", 7, 1)]


def test_what_was_learned_is_said_in_a_sentence() -> None:
    state = state_of(words(0))
    assert state.summary("") == "none any more"
    state.knowledge.max_registers, state.knowledge.max_bits = 10, 16
    state.knowledge.walls[Table.HOLDING] = {(5, 5), (7, 9)}
    assert state.summary("a, b") == (
        "unreadable: a, b; at most 10 registers a request; at most 16 bits a request; "
        "2 gaps that cannot be read over"
    )
    assert len(state.summary("x" * 5000)) < 400


def test_a_gateway_that_can_reach_none_of_the_polls_cannot_reach_the_unit() -> None:
    state = state_of(words(0, 300))
    assert not state.is_unreachable
    state.unreachable.add(state.polls[0])
    assert not state.is_unreachable
    state.unreachable.add(state.polls[1])
    assert state.is_unreachable
    state.replan(0.0)
    assert not state.is_unreachable


def test_polls_that_cannot_be_read_do_not_make_a_unit_reachable() -> None:
    state = state_of(words(0, 300))
    state.knowledge.refuse([state.unit.points[1]])
    state.replan(0.0)
    [poll] = [poll for poll in state.polls if not poll.is_retry]
    state.unreachable.add(poll)
    assert state.is_unreachable


def test_a_poll_that_is_planned_while_the_link_runs_has_no_history() -> None:
    state = state_of(words(0, 1, 2))
    state.begin(10.0)
    state.knowledge.refuse([state.unit.points[1]])
    state.replan(20.0)
    for poll in state.polls:
        assert (poll.tries, poll.failures, poll.misses, poll.explorations) == (0, 0, 0, 0)
        assert (poll.is_fresh, poll.is_gone, poll.is_sent_again) == (True, False, False)
        assert poll.is_first == (not poll.is_retry), "a retry is not due at once, and has no slot"


def test_each_failure_of_a_poll_counts_and_the_last_two_moments_are_kept() -> None:
    [poll] = state_of(words(0)).polls
    poll.has_failed(5.0)
    poll.has_failed(7.0)
    assert (poll.failures, poll.failed_s, poll.failed_before_s) == (2, 7.0, 5.0)


@pytest.mark.parametrize("odd", ["sf", "power"])
def test_a_retry_that_may_cost_a_timeout_comes_later_than_one_after_an_exception(odd: str) -> None:
    """One of its points is enough: the request is answered for both, or for neither."""
    factor = point("sf", "holding 30", "int16", access="read")
    value = point("power", "holding 20", "int16", factor=factor, access="read")
    state = state_of([factor, value])
    for item in (factor, value):
        state.knowledge.refuse([item], *(["timeout"] if item.point.name == odd else []))
    state.replan(100.0)
    [poll] = [poll for poll in state.polls if len(poll.block.points) == 2]
    assert (poll.period_s, poll.due_s) == (FIRST_ODD_RETRY_S, 100.0 + FIRST_ODD_RETRY_S)


@pytest.mark.parametrize("refused", ["sf", "power"])
def test_a_value_without_its_factor_is_retried_with_it(refused: str) -> None:
    factor = point("sf", "holding 30", "int16", access="read")
    value = point("power", "holding 20", "int16", factor=factor, access="read")
    plain = point("plain", "holding 25", "int16", access="read")
    state = state_of([factor, value, plain])
    state.knowledge.refuse([factor if refused == "sf" else value])
    state.replan(0.0)
    retried = {item.point.name for poll in state.polls if poll.is_retry for item in poll.block.points}
    assert retried == ({"sf", "power"} if refused == "sf" else {"power"})


@pytest.mark.parametrize(
    "change",
    [
        lambda known: known.walls.update({Table.HOLDING: {(5, 5)}, Table.COIL: set()}),
        lambda known: setattr(known, "max_registers", 124),
        lambda known: setattr(known, "max_bits", 1999),
    ],
)
def test_each_limit_that_is_forgotten_counts(change) -> None:
    state = state_of(words(0))
    change(state.knowledge)
    assert state.forget_limits()
    assert not state.forget_limits()


def test_a_long_list_of_names_is_cut_at_200_characters() -> None:
    state = state_of(words(0))
    assert state.summary("x" * 200) == "unreadable: " + "x" * 200
    assert state.summary("x" * 201) == "unreadable: " + "x" * 200 + " …"


# --- in step ----------------------------------------------------------------------------------------


def test_an_answer_that_may_still_come_is_told_by_function_and_size() -> None:
    state = state_of(words(0))
    ask = read(Table.HOLDING, 0, 2)
    assert not state.is_out_of_step(ask, 0.0)
    state.suspects.add(ask.shape)
    state.suspected_s = 100.0
    assert state.is_out_of_step(read(Table.HOLDING, 500, 2), 100.0)
    assert not state.is_out_of_step(read(Table.HOLDING, 0, 3), 100.0)
    assert not state.is_out_of_step(read(Table.INPUT, 0, 2), 100.0)
    assert state.is_out_of_step(ask, 104.0)
    assert not state.is_out_of_step(ask, 104.1)
    assert not state.suspects


def test_a_slow_unit_is_expected_to_be_late_for_longer() -> None:
    state = state_of(words(0), timeout_s=10.0)
    ask = read(Table.HOLDING, 0, 2)
    state.suspects.add(ask.shape)
    assert state.is_out_of_step(ask, 39.9)
    assert not state.is_out_of_step(ask, 40.1)


@pytest.mark.parametrize(
    ("points", "suspects", "expected"),
    [
        (words(*range(10)), [(3, 22)], ("03", 0, 1)),
        (words(*range(10)), [(3, 22), (3, 4)], ("03", 0, 2)),
        (words(7), [(3, 4)], ("03", 7, 2)),
        (words(7, table="input"), [(4, 4)], ("04", 7, 2)),
        ([*words(0, 1, 2), *words(5, table="input")], [(3, 8)], ("03", 0, 1)),
        ([*words(0), *words(5, table="input")], [(3, 4)], ("04", 5, 1)),
        (words(65_535), [(3, 4)], ("03", 65_534, 2)),
        (words(*range(125)), [(3, 4 + 2 * n) for n in range(64)], None),
    ],
)
def test_a_different_ask_is_the_shortest_read_that_none_of_the_late_answers_fits(
    points, suspects, expected
) -> None:
    state = state_of(points)
    state.suspects = set(suspects)
    ask = state.different_ask()
    if expected is None:
        assert ask is None
        assert state.suspects == set(suspects), "nothing else can be asked: what may come is still expected"
        return
    assert ask is not None
    function, address, count = expected
    assert ask.pdu.hex() == f"{function}{address:04x}{count:04x}"
    assert state.suspects == set(suspects)


@given(
    points=st.sets(st.integers(0, 40), min_size=1),
    is_bits=st.booleans(),
    suspects=st.sets(st.integers(0, 140), max_size=20),
)
def test_a_different_ask_is_legal_and_of_another_shape(points, is_bits, suspects) -> None:
    table = "coil" if is_bits else "holding"
    state = state_of(words(*sorted(points), table=table))
    function = 1 if is_bits else 3
    state.suspects = {(function, 2 + n) if is_bits else (function, 2 + 2 * n) for n in suspects}
    before = set(state.suspects)
    ask = state.different_ask()
    if ask is not None:
        assert ask.shape not in before
        assert ask.unit_id == 17
        assert any(poll.block.address == int.from_bytes(ask.pdu[1:3], "big") for poll in state.polls)


@pytest.mark.parametrize(("failures", "expected"), [(1, "0300640001"), (2, "0300000001")])
def test_what_answered_alone_is_asked_differently_until_it_fails_too(failures: int, expected: str) -> None:
    """No block of the unit could be read, but one single register was."""
    state = state_of(words(0))
    state.proof_ask = read(Table.HOLDING, 100, 2)
    state.failures = failures
    state.suspects = {(3, 6)}
    ask = state.different_ask()
    assert ask is not None
    assert ask.pdu.hex() == expected


def test_of_a_block_that_is_silent_another_part_is_asked_each_time() -> None:
    state = state_of(words(*range(50)))
    state.failures = 2
    state.suspects = {(6, 5)}
    begins = []
    for _ in range(6):
        ask = state.different_ask()
        assert ask is not None
        table, address, count = pdu.read_place(ask.pdu)
        assert (table, count) == (Table.HOLDING, 1)
        begins.append(address)
    assert len(set(begins)) == 6
    assert set(begins) <= set(range(50))


def test_a_block_that_must_be_read_from_its_start_is_not_asked_in_parts() -> None:
    state = state_of(words(*range(10)), limits=Limits(first_address=0))
    state.failures = 2
    state.suspects = {(6, 5)}
    asked = [state.different_ask() for _ in range(4)]
    assert {ask.pdu.hex() for ask in asked if ask is not None} == {"0300000001"}


def test_what_was_read_is_asked_before_what_never_was() -> None:
    state = state_of([*words(0), *words(300, 301)])
    never, known = state.polls
    known.is_fresh = False
    state.failures = 2
    state.suspects = {(6, 5)}
    ask = state.different_ask()
    assert ask is not None
    assert ask.pdu.hex() == "03012c0001"
    known.reason = "timeout"
    never.is_fresh = False
    ask = state.different_ask()
    assert ask is not None
    assert ask.pdu.hex() == "0300000001"


def test_no_more_than_one_request_holds_is_asked_to_be_different() -> None:
    state = state_of(words(*range(125)))
    state.suspects = {(3, 2 + 2 * count) for count in range(1, 65)}
    assert state.different_ask() is None, "126 registers are too many"
    state = state_of(words(*range(124)))
    state.suspects = {(3, 2 + 2 * count) for count in range(1, 65)}
    ask = state.different_ask()
    assert ask is not None
    assert ask.pdu.hex() == "030000007d"


def test_of_what_is_written_to_a_unit_is_asked_what_shows_it() -> None:
    state = state_of(
        [point("s", "holding 47", read_from=512, access="write"), *words(9, access="write")], is_polled=False
    )
    state.suspects = {(6, 5)}
    ask = state.different_ask()
    assert ask is not None
    assert ask.pdu.hex() == "0302000001"


def test_of_a_unit_without_polls_is_asked_what_is_written_to_it() -> None:
    state = state_of(words(0, access="write"))
    state.suspects = {(6, 5)}
    ask = state.different_ask()
    assert ask is not None
    assert ask.pdu.hex() == "0300000001"
    assert state.suspects == {(6, 5)}


# --- on disk ----------------------------------------------------------------------------------------


def test_what_was_learned_is_there_at_the_next_start_and_not_for_another_map(tmp_path) -> None:
    points = words(*range(10))
    state = state_of(points, memory=tmp_path)
    state.save()
    assert not list(tmp_path.iterdir()), "nothing was learned yet"
    state.note(0.01, read(Table.HOLDING, 0, 1))
    state.knowledge.refuse([points[3]])
    state.save()
    assert [file.name for file in tmp_path.iterdir()] == ["plc.json"]
    again = state_of(words(*range(10)), memory=tmp_path)
    assert spans(again.polls) == [("holding", 0, 3), ("holding", 4, 6), ("holding", 3, 1)]
    other = state_of(words(*range(11)), memory=tmp_path)
    assert spans(other.polls) == [("holding", 0, 11)]
    assert other.knowledge.turnaround_s == state.knowledge.turnaround_s
    assert other.knowledge.turnaround_s is not None
    other.save()
    assert json.loads((tmp_path / "plc.json").read_text())["fingerprint"] == fingerprint(
        words(*range(11)), 17
    )


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"null", b'{"fingerprint": 1e999}']
)
def test_a_file_that_cannot_be_read_is_as_good_as_none_and_is_replaced(tmp_path, data: bytes) -> None:
    (tmp_path / "plc.json").write_bytes(data)
    state = state_of(words(0, 1), memory=tmp_path)
    assert spans(state.polls) == [("holding", 0, 2)]
    state.note(0.01, read(Table.HOLDING, 0, 1))
    state.save()
    assert json.loads((tmp_path / "plc.json").read_text())["turnaround_ms"] == pytest.approx(10, abs=0.1)


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    state = state_of(words(0), memory=tmp_path / "file" / "inside")
    state.note(0.01, read(Table.HOLDING, 0, 1))
    state.save()
    state = state_of(words(0), memory=tmp_path / "deep" / "down")
    state.note(0.01, read(Table.HOLDING, 0, 1))
    state.save()
    assert (tmp_path / "deep" / "down" / "plc.json").exists()


def test_the_limits_of_the_configuration_hold_beside_what_was_learned() -> None:
    state = state_of(words(*range(30)), limits=Limits(max_registers=20))
    assert [count for _, _, count in spans(state.polls)] in ([20, 10], [10, 20])
    state.knowledge.max_registers = 10
    state.replan(0.0)
    assert [count for _, _, count in spans(state.polls)] == [10, 10, 10]


def test_a_file_is_only_written_again_when_something_was_learned(tmp_path) -> None:
    state = state_of(words(0, 1), memory=tmp_path)
    state.note(0.01, read(Table.HOLDING, 0, 1))
    state.save()
    file = tmp_path / "plc.json"
    file.unlink()
    state.save()
    assert not file.exists(), "nothing new"
    state.knowledge.refuse([state.unit.points[1]])
    state.save()
    assert file.exists()
    again = state_of(words(0, 1), memory=tmp_path)
    file.unlink()
    again.save()
    assert not file.exists(), "it was read a moment ago"


# --- sessions and signs of life ---------------------------------------------------------------------


def test_after_a_session_a_unit_is_as_at_the_start_but_for_what_was_learned() -> None:
    state, untouched = state_of(words(0, 300)), state_of(words(0, 300))
    asked = read(Table.HOLDING, 0, 2)
    state.failures = state.probes = 3
    state.was_hurried = state.is_explored = state.is_proving = state.is_online = True
    state.unreachable.update(state.polls)
    state.probe_after_s, state.rests_until_s = 8.0, 99.0
    state.proof_ask = asked
    state.to_explore.append((state.polls[0], "timeout"))
    state.forget_session()
    names = (
        "failures", "probes", "was_hurried", "is_explored", "is_proving", "is_online", "unreachable",
        "probe_after_s", "rests_until_s", "proof_ask", "to_explore", "exploring", "unanswered", "suspects",
    )  # fmt: skip
    assert {name: getattr(state, name) for name in names} == {
        name: getattr(untouched, name) for name in names
    }
    assert {poll.reason for poll in state.polls} == {"not connected"}
    assert (untouched.failures, untouched.probes, untouched.unanswered) == (0, 0, 0)
    assert not (untouched.was_hurried or untouched.is_explored or untouched.is_proving)


def test_late_responses_are_still_expected_in_the_next_session() -> None:
    state = state_of(words(0))
    ask = read(Table.HOLDING, 0, 1)
    state.suspect(ask, 10.0)
    state.forget_session()
    assert state.is_out_of_step(ask, 10.5)


def test_the_slowest_response_is_remembered_and_fades() -> None:
    state = state_of(words(0), cost=Cost(0.02, 0.001))
    state.note(0.5, read(Table.INPUT, 0, 10))
    assert state.slowest_s == pytest.approx(0.48), "twenty bytes of data take 20 ms"
    state.note(0.01, read(Table.INPUT, 0, 1))
    assert state.slowest_s == pytest.approx(0.48 * 0.99)
    state.note(0.8, Ask(17, bytes.fromhex("0600040001")))
    assert state.slowest_s == pytest.approx(0.8)


def test_a_knock_asks_for_another_point_each_time() -> None:
    """Not for a value that means nothing without its factor."""
    factor = point("sf", "holding 30", "uint32", access="read")
    value = point("power", "holding 20", "int16", factor=factor, access="read")
    state = state_of([factor, value, *words(100, 200, table="input"), *words(300)])
    asked = [ask.pdu.hex() for ask in (state.knock_ask() for _ in range(8)) if ask is not None]
    assert set(asked) == {"03001e0002", "0400640001", "0400c80001", "03012c0001"}
    assert all(before != after for before, after in pairwise(asked))
    assert state_of([]).knock_ask() is None


def test_a_knock_begins_where_the_device_wants_all_reads_to_begin() -> None:
    state = state_of(words(7), limits=Limits(first_address=4))
    ask = state.knock_ask()
    assert ask is not None
    assert ask.pdu.hex() == "0300040004"


def test_without_a_block_that_was_read_the_last_proof_is_the_sign_of_life() -> None:
    state = state_of(words(*range(5)))
    state.proof_ask = read(Table.HOLDING, 3, 1)
    assert state.proof() is state.proof_ask
    state.polls[0].is_fresh = False
    assert state.proof() is state.polls[0].ask


def test_a_block_that_ended_the_last_session_comes_after_the_others() -> None:
    state = state_of(words(0, 300))
    state.polls[0].broke_s = 5.0
    state.polls[1].tries = state.polls[1].failures = state.polls[1].explorations = 2
    state.polls[1].is_sent_again = True
    state.begin(77.0)
    assert state.polls[0].due_s > state.polls[1].due_s == 77.0
    fresh = state.polls[1]
    assert (fresh.tries, fresh.failures, fresh.explorations, fresh.is_sent_again) == (0, 0, 0, False)


def test_a_new_session_forgets_the_failures_of_the_last_one() -> None:
    state = state_of(words(0))
    state.failures = state.probes = 3
    state.was_hurried = state.is_explored = state.is_proving = True
    state.forget_session()
    assert (state.failures, state.probes) == (0, 0)
    assert (state.was_hurried, state.is_explored, state.is_proving) == (False, False, False)


def test_a_sign_of_life_is_the_smallest_block_read_without_failure() -> None:
    state = state_of(words(*range(5), 300, 301, 600))
    large, small, single = state.polls
    assert state.proof() is None, "nothing was read yet"
    for poll in state.polls:
        poll.is_fresh = False
    assert state.proof() is single.ask
    single.failures = 1
    assert state.proof() is small.ask
    small.reason = "timeout"
    assert state.proof() is large.ask
    large.is_retry = True
    assert state.proof() is None
    assert state.has_readable
    small.is_retry = single.is_retry = True
    assert not state.has_readable


def test_patience_is_eight_slow_answers_between_its_bounds() -> None:
    state = state_of(words(0))
    for slowest_s, patience_s in ((0.0, 1.0), (0.001, 0.1), (0.05, 0.4), (0.5, 1.0)):
        state.slowest_s = slowest_s
        assert state.patience_s == pytest.approx(patience_s)


def test_a_refusal_clears_one_open_request_and_not_several() -> None:
    first, second, third = (read(Table.HOLDING, 0, count) for count in (1, 2, 3))
    state = state_of(words(0))
    state.suspect(first, 0.0)
    state.was_refused(third, 0.0)
    assert state.suspects == {third.shape}
    state = state_of(words(0))
    state.suspect(first, 0.0)
    state.suspect(second, 0.0)
    state.was_refused(third, 0.0)
    assert state.suspects == {first.shape, second.shape, third.shape}
    state.in_step()
    state.suspect(first, 0.0)
    state.was_refused(third, 0.0)
    assert state.suspects == {third.shape}


def test_each_of_two_refusals_in_a_row_clears_what_was_open() -> None:
    first, second, third = (read(Table.HOLDING, 0, count) for count in (1, 2, 3))
    state = state_of(words(0))
    state.suspect(first, 0.0)
    state.was_refused(second, 0.0)
    state.was_refused(third, 0.0)
    assert state.suspects == {third.shape}


def test_a_part_of_a_silent_block_ends_one_behind_the_block_at_most() -> None:
    state = state_of(words(0, 1))
    state.failures = 2
    state.suspects = {(3, 4), (3, 6)}
    asked = [ask for ask in (state.different_ask() for _ in range(6)) if ask is not None]
    assert asked
    assert {ask.pdu.hex() for ask in asked} == {"0300000003"}
