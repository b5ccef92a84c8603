"""How long a connection lives: devices that close it, that need time, that serve one client at a time."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import eventually, free_port
from fault_server import Connection, FaultServer, Good, fault_server
from test_client_faults import client, point, polling

from fieldbus.errors import ConfigError, LinkDownError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import snapshot
from fieldbus.gateway.runtime import Gateway as WholeGateway
from fieldbus.link import ReadableLink, WriteOutcome
from fieldbus.modbus.connection import Lifetime
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.units import Unit
from fieldbus.model import Quality, Reason

IDLE_S = 0.15


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as running:
        yield running


def closes_when_idle(server: FaultServer, idle_s: float = IDLE_S) -> None:
    """Close each connection on which nothing was asked for a while."""

    loop = asyncio.get_running_loop()

    def look(connection: Connection, since_s: float) -> None:
        heard = [item.at_s for item in server.asked if item.connection == connection.number]
        rest_s = max([since_s, *heard]) + idle_s - loop.time()
        if rest_s > 0:
            loop.call_later(rest_s, look, connection, since_s)
        elif connection.is_open:
            connection.finish()

    server.greet = lambda connection: look(connection, loop.time())


def link_to(
    server: FaultServer | int,
    lifetime: Lifetime = Lifetime.KEEP,
    *points: RegisterPoint,
    scan_s: float = 0.3,
    timeout_s: float = 0.2,
    rest_s: float = 0.0,
    connections: int = 1,
) -> ModbusClientLink:
    port = server if isinstance(server, int) else server.port
    members = points or (point("count", "holding 2", "uint16"),)
    return ModbusClientLink(
        "net", TcpPlace("127.0.0.1", port), [Unit("plc", 1, members, scan_s, timeout_s)], lifetime=lifetime,
        rest_after_connect_s=rest_s, connections=connections, connect_timeout_s=1.0,
    )  # fmt: skip


def is_open(server: FaultServer) -> bool:
    return any(connection.is_open for connection in server.connections)


# --- keep -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 3])
async def test_a_device_that_closes_idle_connections_costs_no_value(
    server: FaultServer, caplog: pytest.LogCaptureFixture, connections: int
) -> None:
    caplog.set_level(logging.INFO)
    closes_when_idle(server)
    async with polling(link_to(server, connections=connections)) as gateway:
        await asyncio.sleep(2.0)
        assert gateway.reasons == gateway.lost == []
        assert len(server.asked) in (7, 8), "as often as configured, and no more"
        assert len(server.connections) >= 6
    assert caplog.text.count("closes the connection between requests") == 1


async def test_a_kept_connection_is_used_again_and_again(server: FaultServer) -> None:
    async with polling(link_to(server, scan_s=0.05)) as gateway:
        await eventually(lambda: gateway.good > 5)
    assert len(server.connections) == 1


async def test_a_closed_connection_that_cannot_be_opened_again_is_a_lost_link(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with polling(link_to(server)) as gateway:
        await server.stop()
        await eventually(lambda: gateway.lost)
        assert "refused" in gateway.lost[0]
        assert gateway.reasons == [Reason.NOT_CONNECTED]
        await server.start()
        await gateway.next_good()
    assert caplog.text == "", "the device is away, it does not close connections"


async def test_a_device_that_swallows_requests_at_first_is_read_by_itself(server: FaultServer) -> None:
    """The connection is kept although nobody answers on it, so that the device gets its time."""
    opened_s = time.monotonic()

    def early(connection: Connection, good: Good) -> None:
        if time.monotonic() - opened_s > 1.5:
            connection.send(good.frame)

    server.rules[1, 3] = early
    async with polling(link_to(server, timeout_s=0.1), wait=False) as gateway:
        await gateway.next_good(6.0)
        assert len(server.connections) == 1


async def test_a_connection_that_worked_and_is_silent_is_opened_again(server: FaultServer) -> None:
    async with polling(link_to(server, scan_s=0.05, timeout_s=0.1)) as gateway:
        dead = server.connections[0]

        def deaf(connection: Connection, good: Good) -> None:
            if connection is not dead:
                connection.send(good.frame)

        server.rules[1, 3] = deaf
        await eventually(lambda: not gateway.is_good())
        await gateway.next_good(4.0)
        assert len(server.connections) == 2


# --- a rest after the connection is made ------------------------------------------------------------


@pytest.mark.parametrize("lifetime", [Lifetime.KEEP, Lifetime.PER_REQUEST])
async def test_a_device_that_hangs_up_on_early_requests_gets_its_rest(
    server: FaultServer, lifetime: Lifetime
) -> None:
    opened: dict[int, float] = {}
    server.greet = lambda connection: opened.setdefault(connection.number, time.monotonic())

    def early(connection: Connection, good: Good) -> None:
        if time.monotonic() - opened[connection.number] < 0.35:
            connection.finish()
        else:
            connection.send(good.frame)

    server.rules[1, 3] = early
    async with polling(link_to(server, lifetime, scan_s=0.2, rest_s=0.4), wait=False) as gateway:
        await eventually(lambda: gateway.good >= 3)
        assert gateway.reasons == gateway.lost == []


async def test_a_connection_that_ends_while_it_rests_is_a_lost_link(server: FaultServer) -> None:
    server.greet = lambda connection: connection.finish()
    link = link_to(server, rest_s=0.1)
    async with polling(link, wait=False) as gateway:
        await eventually(lambda: gateway.lost)
    assert server.asked == []


async def test_a_write_waits_for_the_rest_of_a_connection(server: FaultServer) -> None:
    own = point("w", "holding 9", "uint16", access="write")
    link = link_to(server, Lifetime.PER_REQUEST, own, rest_s=0.7)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        [result] = await link.write({own.point: 5})
        assert result.outcome is WriteOutcome.WRITTEN


# --- per request ------------------------------------------------------------------------------------


async def test_a_connection_per_request_is_closed_between_the_scans(server: FaultServer) -> None:
    points = [point("a", "holding 2", "uint16"), point("b", "holding 900", "uint16")]
    async with polling(link_to(server, Lifetime.PER_REQUEST, *points)) as gateway:
        for _ in range(3):
            await gateway.next_good()
            await asyncio.sleep(0.05)
            assert not is_open(server), "the device is free for others"
        assert gateway.reasons == gateway.lost == []
        per_connection = [item.connection for item in server.asked]
        assert all(per_connection.count(number) == 2 for number in set(per_connection))


async def test_a_device_that_serves_one_client_serves_others_between_the_scans(server: FaultServer) -> None:
    """A second connection is accepted, but served only when the first has gone."""

    def one_at_a_time(connection: Connection, good: Good) -> None:
        held = next((other for other in server.connections if other.is_open), None)
        if connection is held:
            connection.send(good.frame)

    server.rules[1, 3] = one_at_a_time
    async with polling(link_to(server, Lifetime.PER_REQUEST, scan_s=0.5)) as ours:
        async with polling(client(server, scan_s=600), wait=False) as theirs:
            await eventually(lambda: theirs.good == 1, 10.0)
        good = ours.good
        await eventually(lambda: ours.good > good + 2)
        assert ours.reasons == []


async def test_a_write_opens_a_connection_per_request(server: FaultServer) -> None:
    own = point("w", "holding 9", "uint16", access="readwrite")
    link = link_to(server, Lifetime.PER_REQUEST, own, scan_s=600)
    async with polling(link, wait=False) as gateway:
        await eventually(lambda: gateway.good and not is_open(server))
        [result] = await link.write({own.point: 5})
        assert result.outcome is WriteOutcome.WRITTEN
        await eventually(lambda: not is_open(server), 0.5)
        assert gateway.lost == []


async def test_a_connection_per_request_that_cannot_be_opened_is_a_lost_link(server: FaultServer) -> None:
    async with polling(link_to(server, Lifetime.PER_REQUEST)) as gateway:
        await server.stop()
        await eventually(lambda: gateway.lost)
        assert gateway.reasons == [Reason.NOT_CONNECTED]
        await server.start()
        await gateway.next_good()


# --- on demand --------------------------------------------------------------------------------------


async def test_on_demand_nothing_is_opened_before_somebody_asks(server: FaultServer) -> None:
    link = link_to(server, Lifetime.ON_DEMAND, scan_s=0.05)
    assert isinstance(link, ReadableLink)
    assert link.planned == []
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        await asyncio.sleep(0.3)
        assert server.connections == []
        [own] = link.groups[0].points
        for count in (1, 2):
            sample = (await link.read([own]))[own]
            assert (sample.value, sample.quality) == (2, Quality.GOOD)
            assert len(server.asked) == len(server.connections) == count
            assert gateway.samples["count"].value == 2, "everybody has the new value"
            await eventually(lambda: not is_open(server), 0.5)
        await asyncio.sleep(0.2)
        assert len(server.asked) == 2, "nothing is polled"


async def test_on_demand_a_refused_connection_costs_one_read_and_not_the_link() -> None:
    port = free_port()
    own = point("w", "holding 9", "uint16", access="readwrite")
    link = link_to(port, Lifetime.ON_DEMAND, own)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        sample = (await link.read([own.point]))[own.point]
        assert (sample.quality, sample.reason) == (Quality.BAD, Reason.NOT_CONNECTED)
        [result] = await link.write({own.point: 5})
        assert (result.outcome, result.reason) == (WriteOutcome.FAILED, Reason.NOT_CONNECTED)
        server = FaultServer()
        server.port = port
        await server.start()
        try:
            [result] = await link.write({own.point: 6})
            assert result.outcome is WriteOutcome.WRITTEN
            assert (await link.read([own.point]))[own.point].value == 6
            assert server.writes() == ["0600090006"], "what failed is not done later"
        finally:
            await server.stop()
        assert gateway.lost == []


async def test_on_demand_a_silent_device_is_asked_only_when_somebody_asks(server: FaultServer) -> None:
    link = link_to(server, Lifetime.ON_DEMAND, timeout_s=0.05)
    [own] = link.groups[0].points
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        server.silent.add(1)
        for _ in range(3):
            assert (await link.read([own]))[own].reason == Reason.TIMEOUT
        asked = len(server.asked)
        await asyncio.sleep(0.8)
        assert len(server.asked) == asked == 6, "twice each time"
        server.silent.clear()
        assert (await link.read([own]))[own].value == 2


async def test_on_demand_a_refused_block_is_explored_for_the_reader(server: FaultServer) -> None:
    points = [point("a", "holding 2", "uint16"), point("b", "holding 5", "uint16")]
    server.illegal.add((1, "holding", 3))  # between them
    link = link_to(server, Lifetime.ON_DEMAND, *points)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        found = await link.read([item.point for item in points], until_s=time.monotonic() + 5)
        assert [sample.value for sample in found.values()] == [2, 5]


async def test_on_demand_an_exploration_that_was_cut_off_begins_again(server: FaultServer) -> None:
    """The device goes while it is found out why a block fails, and comes back."""
    points = [point("a", "holding 2", "uint16"), point("b", "holding 5", "uint16")]
    server.illegal.add((1, "holding", 3))  # between them
    link = link_to(server, Lifetime.ON_DEMAND, *points)
    own = [item.point for item in points]
    stopping: list[asyncio.Task[None]] = []
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        server.faults.append(lambda connection, good: connection.send(good.frame))
        server.faults.append(lambda *_: stopping.append(asyncio.create_task(server.stop())))
        await link.read(own, until_s=time.monotonic() + 0.5)
        assert len(stopping) == 1
        await server.start()
        found = await link.read(own, until_s=time.monotonic() + 3)
        assert [sample.value for sample in found.values()] == [2, 5]
        assert gateway.lost == []


# --- reads that somebody waits for, on a link that polls --------------------------------------------


async def test_a_confirmed_read_that_was_under_way_is_not_fresh(server: FaultServer) -> None:
    """On a shared line, too, a response to a request that was sent before does not count."""
    held: list[tuple[Connection, Good]] = []
    link = link_to(server, scan_s=600, timeout_s=2.0)
    link._traffic.shared_until_s = math.inf
    server.faults.append(lambda connection, good: connection.send(good.frame))
    server.faults.append(lambda connection, good: held.append((connection, good)))
    async with polling(link, wait=False):
        await eventually(lambda: held)
        [own] = link.groups[0].points
        reading = asyncio.create_task(link.read([own], until_s=time.monotonic() + 3))
        await asyncio.sleep(0.05)
        server.words[1, "holding", 2] = 77
        link._emit_to = lambda _batch: None
        [(connection, good)] = held
        connection.send(good.frame)
        assert (await reading)[own].value == 77


async def test_a_fresh_read_is_asked_after_it_was_wanted(server: FaultServer) -> None:
    """A response that was under way then does not count."""
    held: list[tuple[Connection, Good]] = []
    link = link_to(server, scan_s=600, timeout_s=2.0)
    async with polling(link, wait=False) as gateway:
        server.faults.append(lambda connection, good: held.append((connection, good)))
        await eventually(lambda: held)
        [own] = link.groups[0].points
        reading = asyncio.create_task(link.read([own]))
        await asyncio.sleep(0.05)
        server.words[1, "holding", 2] = 77
        gateway.samples.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(__import__("test_client_faults").TRUTH, "count", 77)
            patch.setattr(gateway, "emit", lambda _batch: None)
            link._emit_to = lambda _batch: None
            held[0][0].send(held[0][1].frame)
            assert (await reading)[own].value == 77
        assert len(server.asked) == 2


async def test_a_fresh_read_ends_in_time_and_with_the_link(server: FaultServer) -> None:
    link = link_to(server, timeout_s=3.0)
    [own] = link.groups[0].points
    assert (await link.read([own]))[own].reason == Reason.NOT_CONNECTED
    async with polling(link):
        server.silent.add(1)
        sample = (await link.read([own], until_s=time.monotonic() + 0.2))[own]
        assert (sample.quality, sample.reason) == (Quality.BAD, Reason.TIMEOUT)
        reading = asyncio.create_task(link.read([own]))
        await asyncio.sleep(0.05)
        link.end(LinkDownError("unplugged"))
        assert (await reading)[own].reason == Reason.NOT_CONNECTED
        server.silent.clear()


# --- siblings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_however_a_device_closes_no_value_is_wrong_and_no_write_done_twice(seed: int) -> None:
    """A device with dice: closes after connecting, when idle, under requests and behind responses."""
    dice = random.Random(seed)
    lifetime = dice.choice(list(Lifetime)[:2])
    own = point("w", "holding 9", "uint16", access="write")
    points = [point("count", "holding 2", "uint16"), point("level", "holding 700", "uint16"), own]
    calm = False

    def mood(connection: Connection, good: Good) -> None:
        chance = 1.0 if calm else dice.random()
        if chance < 0.08:
            connection.reset()
        elif chance < 0.16:
            connection.finish()
        elif chance < 0.2:
            connection.send(good.frame[: dice.randrange(len(good.frame))])
            connection.finish()
        else:
            connection.send(good.frame)
            if chance < 0.4:
                connection.finish()

    def greet(connection: Connection) -> None:
        if not calm and dice.random() < 0.3:
            asyncio.get_running_loop().call_later(dice.random() * 0.1, connection.finish)

    async with fault_server() as server:
        server.words[1, "holding", 700] = 7
        server.greet = greet
        link = link_to(server, lifetime, *points, scan_s=0.04, connections=dice.choice([1, 1, 3]))
        async with polling(link, wait=False) as gateway:
            await eventually(gateway.is_good, 10.0)
            for function in (3, 6):
                server.rules[1, function] = mood
            began_s, asked = time.monotonic(), len(server.asked)
            given = []
            while time.monotonic() < began_s + 1.5:
                given.append(len(given) + 1)
                await link.write({own.point: given[-1]})
                await asyncio.sleep(dice.random() * 0.1)
            reads = sum(item.pdu[0] == 3 for item in server.asked[asked:])
            breaks = len(server.connections)
            assert reads <= 2 * (1.5 / 0.04 + 2) + 2 * breaks, "not polled more often than configured"
            written = [int(item[6:], 16) for item in server.writes()]
            assert len(written) == len(set(written)), "no write was sent twice"
            assert set(written) <= set(given)
            calm = True
            await gateway.next_good(12.0)


# --- in a gateway -----------------------------------------------------------------------------------

PLANT = """
version: 1
gateway: {name: lines}
links:
  net: {type: modbus-tcp, host: 127.0.0.1, port: PORT, timeout: 200ms, KEYS}
devices:
  node: {link: net, scan: 100ms, points: {count: {table: holding, address: 2}}}
"""


def state_of(gateway: WholeGateway) -> dict[str, object]:
    return {item["point"]: item["value"] for item in snapshot(gateway, {})}


@pytest.mark.parametrize("keys", ["connection: keep", "connection: per_request"])
async def test_a_link_whose_device_closes_stays_connected(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: str
) -> None:
    caplog.set_level(logging.INFO)
    closes_when_idle(server, 0.04)
    (tmp_path / "plant.yaml").write_text(PLANT.replace("PORT", str(server.port)).replace("KEYS", keys))
    gateway = WholeGateway(load(tmp_path / "plant.yaml"))
    running = asyncio.create_task(gateway.run())
    try:
        await eventually(lambda: state_of(gateway)["node.count"] == 2)
        for _ in range(50):
            await asyncio.sleep(0.01)
            state = state_of(gateway)
            assert (state["node.count"], state["sys.net.connected"]) == (2, True)
        assert len(server.connections) >= 4
        await server.stop()
        await eventually(lambda: state_of(gateway)["sys.net.connected"] is False)
        assert state_of(gateway)["node.count"] is None
        assert "lost (connection refused)" in caplog.text
    finally:
        gateway.stop()
        await running


async def test_on_demand_connected_is_whether_the_last_connection_could_be_opened(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text = PLANT.replace("PORT", str(server.port)).replace("KEYS", "connection: on_demand")
    (tmp_path / "plant.yaml").write_text(text)
    gateway = WholeGateway(load(tmp_path / "plant.yaml"))
    running = asyncio.create_task(gateway.run())
    link = gateway.plant.links["net"]
    assert isinstance(link, ModbusClientLink)
    [own] = link.groups[0].points
    try:
        await eventually(lambda: state_of(gateway)["sys.net.connected"] is True)
        await server.stop()
        for _ in range(2):
            await link.read([own])
            assert state_of(gateway)["sys.net.connected"] is False
        await server.start()
        await link.read([own])
        state = state_of(gateway)
        assert (state["node.count"], state["sys.net.connected"]) == (2, True)
    finally:
        gateway.stop()
        await running
    assert caplog.text.count("no connection to") == 1
    assert caplog.text.count("back, connected to") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{type: modbus-tcp, host: a, connection: sometimes}", "not one of keep, per_request, on_demand"),
        (
            "{type: modbus-dial-in, port: 1502, registration: a, connection: on_demand}",
            "`connection: keep` only",
        ),
        ("{type: modbus-tcp, host: a, rest_after_connect: 2}", "rest_after_connect"),
    ],
)
def test_a_connection_that_cannot_be_kept_so_is_refused_at_load(tmp_path: Path, line: str, said: str) -> None:
    net = "{type: modbus-tcp, host: 127.0.0.1, port: PORT, timeout: 200ms, KEYS}"
    (tmp_path / "plant.yaml").write_text(PLANT.replace(net, line))
    with pytest.raises(ConfigError, match=f"links.net.*{re.escape(said)}"):
        load(tmp_path / "plant.yaml")
