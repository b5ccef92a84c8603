"""What the end of a connection means, and when connections are opened: decisions without a network."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from test_units import read, state_of, words

from fieldbus.clock import Clock
from fieldbus.errors import LinkDownError, PeerIsBackError
from fieldbus.modbus import connection as connection_module
from fieldbus.modbus.agenda import NEVER
from fieldbus.modbus.connection import PROMPT_S, ConnectionPolicy, Connections, Lifetime
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.lane import Lane
from fieldbus.modbus.places import Framing, Place, SerialPlace, TcpPlace
from fieldbus.modbus.quirks import LineQuirks
from fieldbus.modbus.registers import Table
from fieldbus.modbus.traffic import LineTraffic
from fieldbus.modbus.units import Poll, Steps, UnitState

READ = read(Table.HOLDING, 0, 1)
WRITE = Ask(17, bytes.fromhex("0600000001"))
RESET = LinkDownError("reset by peer")


class Line:
    """An open line."""

    def __init__(self) -> None:
        self.is_lost = self.has_sent = self.is_closed = self.is_watched = False
        self.framer = SimpleNamespace(has_transactions=True)

    def watch_others(self, _: object) -> None:
        self.is_watched = True

    def close(self) -> None:
        self.is_closed = True


class Host:
    """A link that keeps what it is told, each with what belongs to it."""

    name = "net"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.now_s = 1000.0
        self.clock = Clock(lambda: self.now_s)
        self.is_anything_due = True
        self.takes_blame = False
        self.told: list[tuple[Any, ...]] = []

    def is_due(self) -> bool:
        return self.is_anything_due

    def blame(self, *given: object) -> bool:
        self.told.append(("blame", *given[1:4]))
        return self.takes_blame

    def interrupt(self, _: Lane, steps: Steps, error: Exception) -> None:
        self.told.append(("interrupt", steps, str(error)))

    def next(self, lane: Lane) -> None:
        self.told.append(("next", lane))

    def __getattr__(self, name: str) -> object:
        return lambda *given: self.told.append((name, *given))


class Desk:
    """Connections of a link, of which some are open."""

    def __init__(self, count: int = 1, place: Place | None = None, **policy: Any) -> None:
        self.host = Host(place or TcpPlace("127.0.0.1", 1))
        self.connections = Connections(
            self.host, LineQuirks(), ConnectionPolicy(count=count, **policy), LineEcho(), LineTraffic(Framing.RTU)
        )  # fmt: skip
        self.lanes = self.connections.lanes = [Lane(self.host) for _ in range(count)]
        for lane in self.lanes:
            lane.line = Line()  # type: ignore[assignment]
        self.lane = self.lanes[0]
        self.state = state_of(words(0))
        [self.poll] = self.state.polls

    def ask(self, ask: Ask, *, poll: Poll | None = None, steps: Steps | None = None, is_sent: bool) -> None:
        """Have a request under way on the first connection."""
        lane = self.lane
        lane.state, lane.ask, lane.poll, lane.steps = self.state, ask, poll, steps
        assert lane.line is not None
        lane.line.has_sent = is_sent  # type: ignore[misc]

    def reconnect(self) -> None:
        """Have the first connection open again."""
        self.lane.is_opening = self.lane.is_resting = False
        self.lane.line = Line()  # type: ignore[assignment]
        self.lane.is_proven = True


def some_steps(state: UnitState) -> Steps:
    yield state, READ


# --- a connection that ends -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
async def test_a_poll_that_was_not_sent_is_sent_on_the_next_connection(count: int) -> None:
    desk = Desk(count)
    desk.lane.is_proven = True
    desk.ask(READ, poll=desk.poll, is_sent=False)
    desk.connections.lose(desk.lane, RESET)
    assert desk.host.told == [("schedule", desk.poll), ("poke",)]
    assert (desk.lane.is_resting, desk.lane.was_closed, desk.lane.is_opening) == (True, True, False)
    assert not desk.poll.is_sent_again


async def test_steps_whose_write_was_not_sent_go_on_with_the_next_connection() -> None:
    desk = Desk()
    desk.lane.is_proven = True
    steps = some_steps(desk.state)
    desk.ask(WRITE, steps=steps, is_sent=False)
    desk.connections.lose(desk.lane, RESET)
    assert desk.host.told == [("resume", steps, desk.state, WRITE), ("poke",)]


async def test_a_read_under_which_the_connection_ended_is_sent_once_more() -> None:
    desk = Desk()
    desk.lane.is_proven = True
    desk.ask(READ, poll=desk.poll, is_sent=True)
    desk.connections.lose(desk.lane, RESET)
    assert desk.host.told == [("schedule", desk.poll)]
    assert desk.poll.is_sent_again
    assert (desk.lane.is_opening, desk.lane.is_resting, desk.lane.line) == (True, False, None)
    for takes_blame, end in ((True, ()), (False, (("end", RESET),))):
        desk.reconnect()
        desk.host.told.clear()
        desk.host.takes_blame = takes_blame
        desk.ask(READ, poll=desk.poll, is_sent=True)
        desk.connections.lose(desk.lane, RESET)
        assert desk.host.told == [("blame", desk.state, desk.poll, None), *end]
        assert desk.lane.is_opening == takes_blame


async def test_a_read_of_steps_is_sent_once_more_and_then_they_are_told() -> None:
    desk = Desk()
    steps = some_steps(desk.state)
    for expected in (("resume", steps, desk.state, READ), ("interrupt", steps, "reset by peer")):
        desk.reconnect()
        desk.host.told.clear()
        desk.ask(READ, steps=steps, is_sent=True)
        desk.connections.lose(desk.lane, RESET)
        assert desk.host.told == [expected]
        assert desk.lane.is_opening


async def test_a_write_that_may_have_left_is_never_sent_again() -> None:
    desk = Desk()
    desk.lane.is_proven = True
    steps = some_steps(desk.state)
    desk.ask(WRITE, steps=steps, is_sent=True)
    desk.connections.lose(desk.lane, RESET)
    assert desk.host.told == [("interrupt", steps, "reset by peer")]
    assert desk.lane.is_opening


async def test_a_connection_that_ends_under_its_first_request_is_a_lost_link() -> None:
    desk = Desk()
    steps = some_steps(desk.state)
    desk.ask(READ, steps=steps, is_sent=True)
    desk.connections.lose(desk.lane, RESET)
    assert desk.host.told == [
        ("blame", desk.state, None, steps), ("interrupt", steps, "reset by peer"), ("end", RESET),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "error"),
    [(SerialPlace("/dev/ttyS0", 9600, 8, "E", 1), RESET), (None, PeerIsBackError("the peer is back"))],
)
@pytest.mark.parametrize("is_sent", [True, False])
async def test_what_no_request_brings_back_is_a_lost_link(
    place: Place | None, error: LinkDownError, is_sent: bool
) -> None:
    desk = Desk(place=place)
    desk.lane.is_proven = True
    desk.ask(READ, poll=desk.poll, is_sent=is_sent)
    desk.connections.lose(desk.lane, error)
    assert desk.host.told[-1] == ("end", error)
    assert ("blame", desk.state, desk.poll, None) not in desk.host.told
    assert not desk.lane.is_resting


async def test_of_several_connections_one_that_ends_leaves_its_work_to_the_others() -> None:
    desk = Desk(2)
    desk.lane.is_proven = True
    desk.ask(READ, poll=desk.poll, is_sent=True)
    desk.connections.lose(desk.lane, RESET)
    assert desk.host.told == [("schedule", desk.poll), ("poke",)]
    assert not desk.poll.is_sent_again
    desk = Desk(2)
    steps = some_steps(desk.state)
    desk.ask(WRITE, steps=steps, is_sent=True)
    desk.connections.lose(desk.lane, RESET)
    assert desk.host.told == [("interrupt", steps, "reset by peer"), ("poke",)]


async def test_a_connection_that_is_lost_itself_does_not_count_as_another() -> None:
    desk = Desk(2)
    assert desk.connections.has_line
    for lane in desk.lanes:
        assert lane.line is not None
        lane.line.is_lost = True  # type: ignore[misc]
    assert not desk.connections.has_line
    desk.lanes[0].line = None
    assert not desk.connections.has_line


# --- writes while there is no connection ------------------------------------------------------------


async def test_a_write_may_wait_half_a_second_and_the_rest_of_a_connection() -> None:
    desk = Desk(rest_s=0.25)
    desk.connections.reopen(desk.lane)
    desk.host.now_s += PROMPT_S + 0.25
    assert desk.connections.takes_writes
    desk.host.now_s += 0.001
    assert not desk.connections.takes_writes


async def test_a_write_may_wait_for_a_resting_connection_as_long_as_opening_takes() -> None:
    desk = Desk(connect_timeout_s=2.0, rest_s=0.25)
    desk.lane.line, desk.lane.is_resting = None, True
    desk.connections.wake(desk.lane)
    desk.host.now_s += 2.25
    assert desk.connections.takes_writes
    desk.host.now_s += 0.001
    assert not desk.connections.takes_writes


@pytest.mark.parametrize(("has_line", "is_over", "is_given_up"), [
    (False, True, True), (False, False, False), (True, True, False),
])  # fmt: skip
async def test_waiting_writes_fail_when_there_is_no_connection_in_time(
    has_line: bool, is_over: bool, is_given_up: bool
) -> None:
    desk = Desk()
    desk.connections.reopen(desk.lane)
    if has_line:
        desk.lane.line = Line()  # type: ignore[assignment]
    desk.host.now_s += PROMPT_S + (0.1 if is_over else -0.1)
    desk.connections._give_up_writes()
    assert desk.host.told == ([("give_up_writes",)] if is_given_up else [])


# --- opening ----------------------------------------------------------------------------------------


class Opening:
    """What opening a line comes to, one after the other; the last again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: Line | LinkDownError) -> None:
        self.outcomes = list(outcomes)
        self.count = 0
        self.were_opening: list[bool] = []
        monkeypatch.setattr(connection_module, "open_line", self.open)

    async def open(self, _: Place, lane: Lane, *_more: object) -> Line:
        self.count += 1
        self.were_opening.append(lane.is_opening)
        found = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(found, LinkDownError):
            raise found
        return found


async def test_as_many_connections_are_opened_as_the_device_allows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(4)
    first, second = Line(), Line()
    opening = Opening(monkeypatch, first, second, RESET)
    await desk.connections.connect()
    assert [lane.line for lane in desk.connections.lanes] == [first, second]
    assert opening.count == 3, "one that is refused is the last that is tried"
    assert "only 2 connections" in caplog.text
    assert first.is_watched
    for lane in desk.connections.lanes:
        assert (lane.is_opening, lane.is_resting, lane.is_proven) == (False, False, False)
        assert lane.opened_at_s == 1000.0


async def test_all_connections_are_opened_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(3)
    opening = Opening(monkeypatch, Line())
    await desk.connections.connect()
    assert (opening.count, len(desk.connections.lanes)) == (3, 3)
    assert all(opening.were_opening), "nothing else opens it meanwhile, and nothing is asked on it"


async def test_on_demand_a_connection_rests_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(lifetime=Lifetime.ON_DEMAND)
    opening = Opening(monkeypatch, Line())
    await desk.connections.connect()
    assert opening.count == 0
    assert [lane.is_resting for lane in desk.connections.lanes] == [True]


async def test_a_connection_that_cannot_be_opened_is_not_being_opened_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    Opening(monkeypatch, RESET)
    with pytest.raises(LinkDownError):
        await desk.connections.connect()
    [lane] = desk.connections.lanes
    assert (lane.is_opening, lane.line) == (False, None)


async def test_a_connection_that_ends_while_it_rests_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(rest_s=0.001)
    line = Line()
    line.is_lost = True
    Opening(monkeypatch, line)
    with pytest.raises(LinkDownError, match="closed by the peer"):
        await desk.connections.connect()
    assert line.is_closed


async def serve(desk: Desk) -> None:
    """Open what has to be opened, for a moment."""
    serving = asyncio.create_task(desk.connections.serve())
    for _ in range(20):
        await asyncio.sleep(0)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_a_session_begins_with_work_for_every_connection() -> None:
    desk = Desk(2)
    await serve(desk)
    assert desk.host.told == [("next", lane) for lane in desk.lanes]


async def test_a_connection_that_ended_before_the_session_began_is_lost_in_it() -> None:
    desk = Desk(2)
    assert desk.lanes[1].line is not None
    desk.lanes[1].line.is_lost = True  # type: ignore[misc]
    await serve(desk)
    assert [item[1] for item in desk.host.told if item[0] == "lose"] == []
    assert desk.lanes[1].is_opening or desk.lanes[1].is_resting
    assert not desk.lanes[0].is_opening
    assert not desk.lanes[0].is_resting


async def test_a_session_ends_with_its_error() -> None:
    desk = Desk()
    desk.connections.end(RESET)
    with pytest.raises(LinkDownError, match="reset by peer"):
        await desk.connections.serve()


async def test_after_a_connection_was_opened_again_those_that_rest_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(3)
    desk.lanes[1].is_resting = True
    desk.connections.reopen(desk.lane)
    line = Line()
    Opening(monkeypatch, line)
    await serve(desk)
    assert desk.lane.line is line
    assert [item[1] for item in desk.host.told[3:] if item[0] == "next"] == [desk.lane, desk.lanes[1]]


@pytest.mark.parametrize("lifetime", list(Lifetime))
async def test_a_lone_connection_that_cannot_be_opened_again(
    monkeypatch: pytest.MonkeyPatch, lifetime: Lifetime
) -> None:
    desk = Desk(lifetime=lifetime)
    Opening(monkeypatch, RESET)
    desk.connections.reopen(desk.lane)
    desk.host.now_s += 10
    if lifetime is not Lifetime.ON_DEMAND:
        with pytest.raises(LinkDownError):
            await desk.connections._open_again(desk.lane)
        return
    await desk.connections._open_again(desk.lane)
    assert desk.lane.is_resting
    assert desk.host.told == [("unreachable", RESET)]
    assert desk.connections.takes_writes
    assert desk.connections._waits_until_s == NEVER


async def test_one_of_several_that_cannot_be_opened_again_is_tried_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(2)
    Opening(monkeypatch, RESET)
    desk.connections.reopen(desk.lane)
    await desk.connections._open_again(desk.lane)
    assert (desk.lane.is_opening, desk.lane.reopen_after_s) == (True, 0.5)
    assert desk.host.told == [("poke",)]


@pytest.mark.parametrize("lifetime", list(Lifetime))
async def test_a_device_that_closes_connections_is_told_of_once_where_they_are_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lifetime: Lifetime
) -> None:
    caplog.set_level(logging.INFO)
    desk = Desk(lifetime=lifetime)
    Opening(monkeypatch, Line())
    await desk.connections._open_again(desk.lane)
    assert caplog.text == "", "it was not the device that closed it"
    for _ in range(2):
        desk.lane.was_closed = True
        await desk.connections._open_again(desk.lane)
        assert not desk.lane.was_closed
    assert caplog.text.count("closes the connection") == (lifetime is Lifetime.KEEP)
    assert [item[0] for item in desk.host.told] == (
        ["reachable"] * 3 if lifetime is Lifetime.ON_DEMAND else []
    )


async def test_at_the_end_all_connections_are_closed() -> None:
    desk = Desk(2)
    lines = [lane.line for lane in desk.lanes]
    desk.connections.close()
    assert all(line is not None and line.is_closed for line in lines)  # type: ignore[attr-defined]
    assert desk.connections.lanes == []
