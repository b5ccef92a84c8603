"""Connections, timers and rests of the client link: what a review found, so that it does not come back."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest
from conftest import eventually
from fault_server import Connection, FaultServer, Good, fault_server, frame
from test_client_faults import point, polling, silence

from fieldbus.clock import Clock
from fieldbus.errors import LinkDownError
from fieldbus.link import WriteOutcome
from fieldbus.modbus.connection import ConnectionPolicy, Connections
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.lane import Lane
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Framing, TcpPlace
from fieldbus.modbus.quirks import LineQuirks, UnitQuirks
from fieldbus.modbus.traffic import LineTraffic
from fieldbus.modbus.units import Unit
from fieldbus.model import Reason


@pytest.fixture
async def server():
    async with fault_server() as found:
        yield found


def far_apart(count: int, **settings: object) -> list:
    """Return points that are read in one request each."""
    return [point(f"r{n * 200}", f"holding {n * 200}", "uint16", **settings) for n in range(count)]


def link_to(server: FaultServer, *units: Unit, connections: int = 1) -> ModbusClientLink:
    return ModbusClientLink("net", TcpPlace("127.0.0.1", server.port), units, connections=connections)


async def test_a_long_timeout_of_one_unit_does_not_delay_that_of_another(server: FaultServer) -> None:
    patient = Unit("patient", 1, far_apart(1), 0.05, timeout_s=30.0)
    prompt = Unit("prompt", 2, [point("p", "holding 5", "uint16", device="prompt")], 0.05, timeout_s=0.2)
    async with polling(link_to(server, patient, prompt)) as gateway:
        server.silent.add(2)
        await eventually(lambda: not gateway.is_good("p"), 1.5, "its own timeout counts")
        server.silent.clear()
        await gateway.next_good(3.0)


async def test_a_connection_of_several_that_ends_at_once_is_opened_once_and_no_poll_is_lost(
    server: FaultServer,
) -> None:
    def greet(connection: Connection) -> None:
        if connection.number == 1:
            connection.finish()

    server.greet = greet
    unit = Unit("plc", 1, far_apart(20), 0.1, timeout_s=1.0)
    async with polling(link_to(server, unit, connections=3)) as gateway:
        await asyncio.sleep(2.0)
        now_s = time.monotonic()
        assert len(server.connections) == 4
        for address in range(0, 4000, 200):
            asked = [item for item in server.asked if item.pdu[1:3] == address.to_bytes(2, "big")]
            assert asked[-1].at_s > now_s - 0.5, f"{address} is not read any more"
        assert gateway.lost == []


async def test_a_connection_of_several_that_ends_under_a_write_leaves_the_others_answered(
    server: FaultServer,
) -> None:
    points = [
        *far_apart(2),
        *(point(f"w{n}", f"holding {n}", "uint16", access="write") for n in (5000, 6000)),
    ]
    unit = Unit("plc", 1, points, 0.05, timeout_s=1.0)
    link = link_to(server, unit, connections=2)
    async with polling(link):

        def hang_up(connection: Connection, _: Good) -> None:
            del server.rules[1, 6]
            connection.finish()

        server.rules[1, 6] = hang_up
        first = asyncio.create_task(link.write({points[2].point: 1, points[3].point: 2}))
        async with asyncio.timeout(3.0):
            results = await first
        assert results[0].outcome is WriteOutcome.UNKNOWN
        async with asyncio.timeout(3.0):
            [result] = await link.write({points[2].point: 3})
        assert result.outcome is WriteOutcome.WRITTEN


async def test_a_unit_that_rests_does_not_keep_the_others_waiting(server: FaultServer) -> None:
    tired = Unit("tired", 1, far_apart(1), 0.05, timeout_s=1.0, quirks=UnitQuirks(pause_s=0.4))
    brisk = Unit("brisk", 2, [point("b", "holding 5", "uint16", device="brisk")], 0.02, timeout_s=1.0)
    async with polling(link_to(server, tired, brisk)):
        since_s = asyncio.get_running_loop().time()
        await asyncio.sleep(1.0)
        assert server.count(2, since_s) > 25
        times = [item.at_s for item in server.asked if item.unit_id == 1 and item.at_s > since_s]
        assert min(after - before for before, after in pairwise(times)) >= 0.39


async def test_a_write_is_given_its_time_beside_a_dead_unit(server: FaultServer) -> None:
    own = point("w", "holding 5000", "uint16", access="write")
    live = Unit("live", 1, [*far_apart(1), own], 0.05, timeout_s=1.0)
    dead = Unit("dead", 2, [point("d", "holding 5", "uint16", device="dead")], 0.05, timeout_s=0.2)

    def slowly(connection: Connection, good: Good) -> None:
        connection.send_later(good.frame, 0.3)

    link = link_to(server, live, dead)
    async with polling(link) as gateway:
        server.silent.add(2)
        await eventually(lambda: not gateway.is_good("d"))
        server.rules[1, 6] = slowly
        [result] = await link.write({own.point: 7})
        assert result.outcome is WriteOutcome.WRITTEN


async def test_a_write_while_the_connection_is_opened_anew_fails_and_is_not_done_later(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = point("w", "holding 5000", "uint16", access="write")
    link = link_to(server, Unit("plc", 1, [*far_apart(1), own], 0.05, timeout_s=1.0))
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_good)
        opened = link._connections._open

        async def slow_open(lane: Lane) -> None:
            await asyncio.sleep(1.2)
            await opened(lane)

        monkeypatch.setattr(link._connections, "_open", slow_open)
        server.faults.append(lambda connection, good: connection.send(frame(0, 1, good.pdu)))
        await eventually(lambda: not gateway.is_good())
        began_s = time.monotonic()
        [result] = await link.write({own.point: 7})
        assert time.monotonic() - began_s < 1.0
        assert (result.outcome, result.reason) == (WriteOutcome.FAILED, Reason.NOT_CONNECTED)
        await gateway.next_good()
        assert server.writes() == []


async def test_nothing_stays_behind_a_link_that_is_closed(server: FaultServer) -> None:
    link = link_to(server, Unit("plc", 1, far_apart(2), 0.05, timeout_s=0.2))
    server.faults.append(silence)
    async with polling(link, wait=False) as gateway:
        await eventually(lambda: gateway.good > 2)
    asked = len(server.asked)
    await asyncio.sleep(0.3)
    assert len(server.asked) == asked


# --- decisions alone, without a device --------------------------------------------------------------


class FakeLine:
    """A line that is open."""

    is_lost = has_sent = is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeHost:
    """A link that has nothing but a clock; what it is told is kept."""

    place = TcpPlace("127.0.0.1", 1)
    name = "net"

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.clock = Clock(lambda: self.now_s)
        self.is_anything_due = True
        self.told: list[str] = []

    def is_due(self) -> bool:
        return self.is_anything_due

    def __getattr__(self, name: str) -> object:
        return lambda *_: self.told.append(name)


def decisions() -> tuple[FakeHost, Connections, Lane, Lane]:
    """Return connections of which two are open."""
    host = FakeHost()
    connections = Connections(
        host, LineQuirks(), ConnectionPolicy(count=2), LineEcho(), LineTraffic(Framing.RTU)
    )
    connections.lanes = [Lane(host), Lane(host)]
    for lane in connections.lanes:
        lane.line = FakeLine()
    return host, connections, *connections.lanes


def test_a_connection_is_closed_only_if_nothing_is_due_after_the_rest() -> None:
    _, connections, lane, _ = decisions()
    for next_due_s, rest_s in ((0.0, 0.0), (0.1, 0.1), (0.1, 0.2)):
        connections.finish(lane, next_due_s, rest_s)
        assert lane.line is not None
        assert not lane.is_resting
    line = lane.line
    connections.finish(lane, 0.2, 0.1)
    assert (lane.line, lane.is_resting, line.is_closed) == (None, True, True)
    connections.finish(lane, 0.2, 0.1)


async def test_of_several_connections_one_that_ends_is_tried_with_growing_pauses() -> None:
    host, connections, lane, other = decisions()
    pauses = []
    for _ in range(7):
        lane.line = FakeLine()
        lane.is_opening = False
        connections.lose(lane, LinkDownError("reset by peer"))
        assert lane.is_opening
        pauses.append(lane.reopen_after_s)
        connections.lose(lane, LinkDownError("reset by peer"))  # which is known already
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert "end" not in host.told
    assert other.line is not None


async def test_a_connection_that_worked_and_ends_between_requests_rests() -> None:
    for is_proven, is_due, rests in ((True, True, True), (False, False, True), (False, True, False)):
        host, connections, lane, other = decisions()
        connections.lanes.remove(other)
        lane.is_proven, host.is_anything_due = is_proven, is_due
        connections.lose(lane, LinkDownError("closed"))
        assert (lane.is_resting, lane.was_closed) == (rests, rests)
        assert ("end" in host.told) is not rests


def test_a_connection_on_which_nobody_answers_is_kept_for_a_while() -> None:
    host, connections, lane, _ = decisions()
    lane.opened_at_s = host.now_s
    assert not connections.is_worth_opening_again(lane)
    host.now_s += 9.9
    assert not connections.is_worth_opening_again(lane)
    lane.is_proven = True
    assert connections.is_worth_opening_again(lane)
    lane.is_proven = False
    host.now_s += 0.1
    assert connections.is_worth_opening_again(lane)


async def test_writes_wait_for_a_connection_only_for_a_moment() -> None:
    host, connections, lane, other = decisions()
    assert connections.takes_writes
    connections.reopen(lane)
    host.now_s += 60
    assert connections.takes_writes, "there is another connection"
    connections.lanes.remove(other)
    connections.reopen(lane)
    host.now_s += 0.49
    connections.reopen(lane)  # which does not make the wait longer
    assert connections.takes_writes
    host.now_s += 0.02
    assert not connections.takes_writes


async def test_one_connection_is_opened_at_a_time_and_only_if_something_is_due() -> None:
    host, connections, lane, other = decisions()
    lane.is_resting = True
    host.is_anything_due = False
    connections.wake(lane)
    assert not lane.is_opening
    host.is_anything_due, other.is_opening = True, True
    connections.wake(lane)
    assert not lane.is_opening
    other.is_opening = False
    connections.wake(lane)
    assert (lane.is_opening, lane.is_resting) == (True, False)
