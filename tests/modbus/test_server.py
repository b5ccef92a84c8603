"""The server on real sockets: who is answered, what a bad connection costs, and what is bounded."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from conftest import eventually, free_port

from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, Target, WriteOutcome
from fieldbus.modbus import pdu
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.model import Batch, Quality, Reason, Sample, Value

READ_SPEED = bytes.fromhex("0300000002")
SPEED_IS_1_5 = bytes.fromhex("03043fc00000")
READ_125 = bytes.fromhex("040000007d")


def point(name: str, place: str, type_: str | None = None, **settings: object) -> RegisterPoint:
    """Return a served point; `place` is such as ``holding 4``."""
    table, address = place.split()
    made = PointSettings(table=table, address=int(address), type=type_, **settings)
    return made.build("panel", name, is_served=True)


def panel(unit_id: int = 1, device: str = "panel") -> ServedUnit:
    """Return a unit with a float that is routed, three points that masters write, and a long block."""
    return ServedUnit(
        device,
        unit_id,
        [
            point("speed", "holding 0", "float32"),
            point("target", "holding 2", "float32", access="readwrite"),
            point("gear", "holding 4", "uint16", access="readwrite", initial=1),
            point("start", "coil 0", access="readwrite", initial=False),
            point("stop", "coil 1", access="readwrite", initial=False),
            *(point(f"word{n}", f"input {n}", "uint16") for n in range(125)),
        ],
    )


class Served:
    """A server that runs, and what it has told."""

    def __init__(self, link: ModbusServerLink) -> None:
        self.link = link
        self.batches: list[Batch] = []

    def put(self, name: str, value: Value | None, device: int = 0) -> None:
        found = next(item.point for item in self.link.units[device].points if item.point.name == name)
        quality, reason = (Quality.BAD, Reason.TIMEOUT) if value is None else (Quality.GOOD, None)
        self.link.send([Delivery(Target("", found), found, Sample(value, quality, reason, 1))])

    @property
    def written(self) -> list[tuple[str, Value | None, bool]]:
        """What masters wrote: name, value and whether it was new, in order."""
        return [(batch.group.points[0].name, batch.values[0], bool(batch.changed)) for batch in self.batches]


@asynccontextmanager
async def serving(*units: ServedUnit, **options: float) -> AsyncIterator[Served]:
    """Run a server for as long as the block lasts."""
    served = Served(ModbusServerLink("hmi", "127.0.0.1", 0, units or [panel()], **options))
    await served.link.connect()
    running = asyncio.create_task(served.link.run(served.batches.append, lambda _: None))
    await asyncio.sleep(0)  # what is true from the start is told now, and is no write
    served.batches.clear()
    served.put("speed", 1.5)
    for n in range(125):
        if not any(item.point.name == f"word{n}" for item in served.link.units[0].points):
            break
        served.put(f"word{n}", n)
    try:
        yield served
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await served.link.close()
        await asyncio.sleep(0.01)  # the transports of the sessions end in the next turns


class Master:
    """A connection that says what the test wants, right or wrong."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.transaction_id = 0

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def frame(self) -> pdu.Frame:
        """Return the next frame that the server sends."""
        head = await self.reader.readexactly(7)
        transaction_id, protocol_id, length, unit_id = struct.unpack(">HHHB", head)
        assert protocol_id == 0
        return pdu.Frame(transaction_id, unit_id, await self.reader.readexactly(length - 1))

    async def ask(self, request: bytes | str, unit_id: int = 1) -> bytes:
        """Return the answer to a request, whose header must fit."""
        request = bytes.fromhex(request) if isinstance(request, str) else request
        self.transaction_id += 1
        await self.send(pdu.frame(self.transaction_id, unit_id, request))
        async with asyncio.timeout(5):
            answer = await self.frame()
        assert answer[:2] == (self.transaction_id, unit_id)
        return answer.pdu

    async def is_alive(self) -> bool:
        """Whether this connection is still served."""
        try:
            return await self.ask(READ_SPEED) == SPEED_IS_1_5
        except (OSError, EOFError):
            return False

    async def was_hung_up_on(self, timeout_s: float = 5.0) -> bool:
        """Wait for the server to hang up; whether it did, in time and without another word."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.reader.read() == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


Connect = Callable[[Served], Awaitable[Master]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connect masters that hang up when the test ends."""
    masters: list[Master] = []

    async def begin(served: Served) -> Master:
        masters.append(Master(*await asyncio.open_connection("127.0.0.1", served.link.port)))
        return masters[-1]

    yield begin
    for master in masters:
        master.writer.transport.abort()
    await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a master does is no traceback and no warning of ours."""
    caplog.set_level(logging.INFO)
    yield
    assert [record.getMessage() for record in caplog.records] == []


# --- answers ----------------------------------------------------------------------------------------


async def test_a_master_reads_what_was_routed(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        assert await master.ask(READ_SPEED) == SPEED_IS_1_5
        served.put("speed", 72.5)
        assert await master.ask(READ_SPEED) == bytes.fromhex("030442910000")
        served.put("speed", None)
        assert await master.ask(READ_SPEED) == bytes.fromhex("830b")


async def test_sixteen_pipelined_requests_are_answered_in_order(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        requests = [f"0400{n:02x}0001" for n in range(16)]
        stream = [pdu.frame(100 + n, 1, bytes.fromhex(request)) for n, request in enumerate(requests)]
        await master.send(b"".join(stream))
        answers = [await master.frame() for _ in range(16)]
    assert [answer.transaction_id for answer in answers] == list(range(100, 116))
    assert [answer.pdu.hex() for answer in answers] == [f"0402{n:04x}" for n in range(16)]


async def test_pipelined_requests_are_done_in_order_also_when_some_are_refused(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        requests = ["0600040005", "0300040001", "07", "0600040006", "0300040001", "03ffff0001"]
        await master.send(b"".join(pdu.frame(n, 1, bytes.fromhex(r)) for n, r in enumerate(requests)))
        answers = [(await master.frame()).pdu.hex() for _ in requests]
    assert answers == ["0600040005", "03020005", "8701", "0600040006", "03020006", "8302"]
    assert [value for _, value, _ in served.written] == [5, 6]


async def test_a_request_that_comes_one_byte_at_a_time_is_answered(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        master.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in pdu.frame(7, 1, READ_SPEED):
            await master.send(bytes((byte,)))
            await asyncio.sleep(0.001)  # so that they travel alone
        assert await master.frame() == pdu.Frame(7, 1, SPEED_IS_1_5)


async def test_a_request_and_a_half_are_answered_as_one_and_then_the_other(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        data = pdu.frame(1, 1, READ_SPEED) + pdu.frame(2, 1, READ_SPEED)
        await master.send(data[:-5])
        assert (await master.frame()).transaction_id == 1
        await master.send(data[-5:])
        assert (await master.frame()).transaction_id == 2


async def test_a_master_that_half_closes_behind_its_requests_gets_its_answers(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        master.writer.write(pdu.frame(1, 1, READ_SPEED) + pdu.frame(2, 1, READ_SPEED))
        master.writer.write_eof()
        assert [(await master.frame()).transaction_id for _ in range(2)] == [1, 2]
        assert await master.was_hung_up_on()


async def test_what_masters_do_is_counted(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        for request in (READ_SPEED, "07", "0600040002"):
            await master.ask(request)
        counters = dict(served.link.counters)
    assert counters["sessions"] == 1
    assert counters["requests"] == 3
    assert counters["exceptions"] == 1
    assert counters["writes"] == 1


# --- unit ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit_id", "answer"), [(1, SPEED_IS_1_5), (0, SPEED_IS_1_5), (255, SPEED_IS_1_5), (2, b"\x83\x0a"), (254, b"\x83\x0a")]
)  # fmt: skip
async def test_a_unit_that_is_alone_answers_to_its_id_0_and_255(
    connect: Connect, unit_id: int, answer: bytes
) -> None:
    async with serving() as served:
        assert await (await connect(served)).ask(READ_SPEED, unit_id) == answer


async def test_of_two_units_each_answers_to_its_own_id_alone(connect: Connect) -> None:
    async with serving(panel(1, "left"), panel(7, "right")) as served:
        served.put("speed", 72.5, device=1)
        master = await connect(served)
        assert await master.ask(READ_SPEED, 1) == SPEED_IS_1_5
        assert await master.ask(READ_SPEED, 7) == bytes.fromhex("030442910000")
        for unit_id in (0, 2, 255):
            assert await master.ask(READ_SPEED, unit_id) == b"\x83\x0a"


async def test_a_unit_may_be_called_0_or_255_itself(connect: Connect) -> None:
    async with serving(panel(0, "zero"), panel(255, "last")) as served:
        served.put("speed", 72.5, device=1)
        master = await connect(served)
        assert await master.ask(READ_SPEED, 0) == SPEED_IS_1_5
        assert await master.ask(READ_SPEED, 255) == bytes.fromhex("030442910000")
        assert await master.ask(READ_SPEED, 1) == b"\x83\x0a"


async def test_a_write_to_an_unknown_unit_writes_nothing(connect: Connect) -> None:
    async with serving() as served:
        assert await (await connect(served)).ask("0600040005", unit_id=3) == b"\x86\x0a"
        assert served.batches == []


# --- what a connection does wrong costs that connection ---------------------------------------------

NOISE = {
    "protocol id 1": bytes.fromhex("00010001000601 0300000002"),
    "protocol id 0xFFFF": bytes.fromhex("0001ffff000601 0300000002"),
    "length 0": bytes.fromhex("000100000000"),
    "length 1": bytes.fromhex("00010000000101"),
    "length 255": bytes.fromhex("0001000000ff01"),
    "length 65535": bytes.fromhex("00010000ffff01"),
    "a web browser": b"GET / HTTP/1.1\r\nHost: plc\r\n\r\n",
    "ones": b"\xff" * 10_000,
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("what", NOISE)
async def test_noise_costs_its_own_connection_and_no_other(connect: Connect, what: str) -> None:
    async with serving() as served:
        bad, other = await connect(served), await connect(served)
        assert await other.is_alive()
        await bad.send(NOISE[what])
        assert await bad.was_hung_up_on()
        assert await other.is_alive()
        assert await (await connect(served)).is_alive()
        assert served.link.counters["bad_frames"] == 1


async def test_requests_before_noise_are_answered_before_the_connection_ends(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        good = pdu.frame(1, 1, READ_SPEED)
        await master.send(good + NOISE["length 0"] + good)
        assert await master.frame() == pdu.Frame(1, 1, SPEED_IS_1_5)
        assert await master.was_hung_up_on()
        assert served.link.counters["requests"] == 1


async def test_a_request_that_no_master_sends_is_answered_and_costs_nothing(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        assert await master.ask(bytes((0x2B,)) * pdu.MAX_PDU) == b"\xab\x01"
        assert await master.ask(b"\x83") == b"\x83\x01"
        assert await master.ask(b"\x03") == b"\x83\x03"
        assert await master.is_alive()


async def test_half_a_frame_waits_alone(connect: Connect) -> None:
    async with serving() as served:
        half, other = await connect(served), await connect(served)
        await half.send(pdu.frame(1, 1, READ_SPEED)[:-1])
        assert await other.is_alive()
        await half.send(READ_SPEED[-1:])
        assert (await half.frame()).pdu == SPEED_IS_1_5


async def test_a_master_that_resets_its_connection_is_forgotten(connect: Connect) -> None:
    async with serving() as served:
        master, other = await connect(served), await connect(served)
        assert await master.is_alive()
        reset(master)
        assert await other.is_alive()
        await eventually(lambda: served.link.session_count == 1, what="the session is forgotten")


def reset(master: Master) -> None:
    sock = master.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    master.writer.transport.abort()


async def test_text_that_is_no_utf_8_is_taken_and_costs_nothing(connect: Connect) -> None:
    recipe = point("recipe", "holding 10", "string", length=2, access="readwrite")
    async with serving(ServedUnit("panel", 1, [point("speed", "holding 0", "float32"), recipe])) as served:
        master = await connect(served)
        assert (await master.ask("10000a000204e4f6fcdf")).hex() == "10000a0002"
        assert served.written == [("recipe", "äöüß", True)]
        assert await master.is_alive()


# --- bounds -----------------------------------------------------------------------------------------


async def test_one_connection_too_many_costs_the_one_that_was_silent_longest(connect: Connect) -> None:
    async with serving(max_sessions=3) as served:
        first, second, third = [await connect(served) for _ in range(3)]
        for master in (second, third, first):
            assert await master.is_alive()
            await asyncio.sleep(0.005)
        fourth = await connect(served)
        assert await fourth.is_alive()
        assert await second.was_hung_up_on()
        for master in (first, third, fourth):
            assert await master.is_alive()
        fifth = await connect(served)
        assert await fifth.is_alive()
        assert await first.was_hung_up_on()
        assert [await master.is_alive() for master in (third, fourth, fifth)] == [True] * 3


async def test_connections_that_come_in_one_burst_stay_within_the_limit(connect: Connect) -> None:
    async with serving(max_sessions=8) as served:
        masters = await asyncio.gather(*(connect(served) for _ in range(100)))
        await eventually(lambda: served.link.counters["sessions"] == 100)
        alive = sum(await asyncio.gather(*(master.is_alive() for master in masters)))
        assert alive == 8
        assert served.link.session_count == 8


async def test_a_connection_that_asks_nothing_is_closed_when_its_time_is_up(connect: Connect) -> None:
    async with serving(idle_timeout_s=0.4) as served:
        began_s = time.monotonic()
        silent, busy = await connect(served), await connect(served)
        hung_up = asyncio.create_task(silent.was_hung_up_on())
        while not hung_up.done():
            assert await busy.is_alive()
            await asyncio.sleep(0.05)
        assert hung_up.result()
        assert 0.4 <= time.monotonic() - began_s < 2.0
        assert await busy.is_alive()


async def test_a_trickle_of_bytes_is_silence(connect: Connect) -> None:
    async with serving(idle_timeout_s=0.2) as served:
        master = await connect(served)
        hung_up = asyncio.create_task(master.was_hung_up_on())
        for byte in pdu.frame(1, 1, bytes((16,)) * 250):
            if hung_up.done():
                break
            master.writer.write(bytes((byte,)))
            await asyncio.sleep(0.02)
        assert await hung_up


async def test_a_client_that_never_reads_its_answers_is_held_and_then_closed(connect: Connect) -> None:
    # The other one must not seem silent when the machine itself stands still for a moment.
    async with serving(idle_timeout_s=2.0) as served:
        greedy, other = await connect(served), await connect(served)
        greedy.writer.transport.pause_reading()
        flood = asyncio.create_task(pour(greedy, pdu.frame(1, 1, READ_125) * 1000))
        try:
            requests, deadline_s = -3, time.monotonic() + 5
            while served.link.counters["requests"] - requests > 2:  # until only the other is answered
                assert time.monotonic() < deadline_s, "it is still being answered"
                requests = served.link.counters["requests"]
                await asyncio.sleep(0.02)
                assert await other.is_alive()
            await keep_busy_until(other, lambda: served.link.session_count == 1)
        finally:
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)


async def pour(master: Master, data: bytes) -> None:
    while True:
        await master.send(data)


async def keep_busy_until(master: Master, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        assert await master.is_alive()
        await asyncio.sleep(0.02)


async def test_a_client_that_is_slow_to_read_gets_all_of_its_answers_in_order(connect: Connect) -> None:
    count = 40_000
    async with serving() as served:
        slow, other = await connect(served), await connect(served)
        slow.writer.transport.pause_reading()
        slow.writer.write(b"".join(pdu.frame(n, 1, READ_125) for n in range(count)))
        before = -2
        while (now := served.link.counters["requests"]) > before + 1:  # until only the other is answered
            before = now
            assert await other.is_alive()
            await asyncio.sleep(0.05)
        assert 1000 < now < count
        slow.writer.transport.resume_reading()
        async with asyncio.timeout(10):
            for n in range(count):
                assert (await slow.frame()).transaction_id == n
        assert await slow.is_alive()


async def test_a_client_that_reads_nothing_and_ends_in_noise_is_closed_as_well(connect: Connect) -> None:
    async with serving(idle_timeout_s=0.3) as served:
        greedy, other = await connect(served), await connect(served)
        greedy.writer.transport.pause_reading()
        greedy.writer.write(pdu.frame(1, 1, READ_125) * 21_000 + NOISE["length 0"])
        await keep_busy_until(other, lambda: served.link.session_count == 1)


async def test_what_waits_for_a_client_that_never_reads_is_bounded(connect: Connect) -> None:
    async with serving() as served:
        greedy, other = await connect(served), await connect(served)
        greedy.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.writer.transport.pause_reading()
        flood = asyncio.create_task(pour(greedy, pdu.frame(1, 1, READ_125) * 30_000))
        try:
            most = 0
            for _ in range(30):
                assert await other.is_alive()
                for session in served.link.sessions:
                    if session._transport is not None:
                        most = max(most, session._transport.get_write_buffer_size())
                await asyncio.sleep(0.01)
        finally:
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)
        assert 0 < most <= 1 << 20, f"{most} bytes wait for one connection"


async def test_a_flood_of_requests_does_not_hold_up_the_other_masters(connect: Connect) -> None:
    """A quarter of a megabyte of requests may come in one turn of the loop; it is not done in one."""
    async with serving() as served:
        greedy, other = await connect(served), await connect(served)
        sink = asyncio.create_task(drink(greedy))
        greedy.writer.write(pdu.frame(1, 1, READ_125) * 40_000)
        most = before = 0
        deadline_s = time.monotonic() + 20
        try:
            while (requests := served.link.counters["requests"]) < 40_000:
                assert time.monotonic() < deadline_s
                most, before = max(most, requests - before), requests
                await asyncio.sleep(0)
            assert await other.is_alive()
        finally:
            sink.cancel()
            await asyncio.gather(sink, return_exceptions=True)
        assert most <= 1000, f"{most} requests were answered in one turn, while all others waited"


async def drink(master: Master) -> None:
    while await master.reader.read(1 << 20):
        pass


@pytest.mark.alone
async def test_2000_half_open_connections_cost_neither_memory_nor_a_live_master(connect: Connect) -> None:
    async with serving(max_sessions=32) as served:
        live = await connect(served)
        assert await live.is_alive()
        peers: list[socket.socket] = []
        gc.collect()
        tracemalloc.start()
        try:
            for round_ in range(40):
                for _ in range(50):
                    peer = socket.socket()
                    peer.setblocking(False)
                    peer.connect_ex(("127.0.0.1", served.link.port))
                    peers.append(peer)
                await asyncio.sleep(0)
                await eventually(lambda n=round_: served.link.counters["sessions"] > 50 * (n + 1))
                for peer in peers[-50:]:
                    send_quietly(peer, b"\0\1\0\0\0\6\1\3")  # half a request
                assert await live.is_alive(), f"the live master was hung up on after {len(peers)}"
                assert served.link.session_count <= 32
            gc.collect()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            for peer in peers:
                peer.close()
        assert served.link.counters["sessions"] == 2001
        assert grown < 4 << 20
        assert await live.is_alive()


def send_quietly(peer: socket.socket, data: bytes) -> None:
    try:
        peer.send(data)
    except OSError:
        pass  # it was hung up on already


async def test_a_master_that_comes_back_finds_room_among_silent_connections(connect: Connect) -> None:
    async with serving(max_sessions=4) as served:
        for _ in range(10):
            await connect(served)
        master = await connect(served)
        assert await master.is_alive()
        for _ in range(3):
            await connect(served)
            assert await master.is_alive()


# --- writes -----------------------------------------------------------------------------------------


async def test_both_registers_of_a_float_arrive_as_one_sample(connect: Connect) -> None:
    async with serving() as served:
        before_ns = time.time_ns()
        await (await connect(served)).ask("10000200020442910000")
        assert served.written == [("target", 72.5, True)]
        sample = served.batches[0].sample(0)
        assert (sample.quality, sample.reason) == (Quality.GOOD, None)
        assert before_ns <= sample.time_ns <= time.time_ns()


async def test_a_write_is_told_before_it_is_answered(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        await master.ask("0600040005")
        assert served.written == [("gear", 5, True)]


async def test_points_that_are_written_together_are_told_in_order_with_one_source_time(
    connect: Connect,
) -> None:
    async with serving() as served:
        await (await connect(served)).ask("100002000306429100000007")
        assert served.written == [("target", 72.5, True), ("gear", 7, True)]
        assert len({batch.time_ns for batch in served.batches}) == 1
        await (await connect(served)).ask("0f000000020103")
        assert served.written[2:] == [("start", True, True), ("stop", True, True)]


async def test_a_value_that_a_master_repeats_is_told_and_is_not_new(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        for request in ("0600040005", "0600040005", "0600040006"):
            await master.ask(request)
        assert served.written == [("gear", 5, True), ("gear", 5, False), ("gear", 6, True)]


async def test_a_value_that_a_master_repeats_after_a_route_changed_it_is_new(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        await master.ask("0600040005")
        served.put("gear", 1)
        await master.ask("0600040005")
        assert served.written == [("gear", 5, True), ("gear", 5, True)]


async def test_a_value_that_a_master_repeats_after_an_operator_changed_it_is_new(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        await master.ask("0600040005")
        gear = next(item.point for item in served.link.units[0].points if item.point.name == "gear")
        results = await served.link.write({gear: 1})
        assert [result.outcome for result in results] == [WriteOutcome.WRITTEN]
        await master.ask("0600040005")
        assert served.written == [("gear", 5, True), ("gear", 1, True), ("gear", 5, True)]


async def test_a_write_that_is_refused_is_not_told(connect: Connect) -> None:
    async with serving() as served:
        master = await connect(served)
        for request, answer in {
            "0600000001": "8602", "0600020001": "8602", "1000020002047fc00000": "9004", "0500000001": "8503",
        }.items():  # fmt: skip
            assert (await master.ask(request)).hex() == answer
        assert served.batches == []
        assert served.link.counters["writes"] == 0


async def test_an_operator_is_told_why_a_value_cannot_be_written() -> None:
    async with serving() as served:
        gear = next(item.point for item in served.link.units[0].points if item.point.name == "gear")
        for value in (65536, -1, "fast", 10**400):
            [result] = await served.link.write({gear: value})
            assert result.outcome is WriteOutcome.REFUSED
            assert result.reason


@pytest.mark.parametrize("value", ["\ud800", "x" * 100, 10**400, float("nan")])
async def test_no_routed_value_makes_send_raise(value: Value) -> None:
    unit = ServedUnit(
        "panel", 1, [point("text", "holding 0", "string", length=4), point("number", "holding 4", "float32")]
    )
    served = Served(ModbusServerLink("hmi", "127.0.0.1", 0, [unit]))
    served.put("text", value)
    served.put("number", value)
    assert served.link.counters["conversions_failed"] == 2


async def test_what_a_point_is_from_the_start_is_told_when_the_server_runs() -> None:
    link = ModbusServerLink("hmi", "127.0.0.1", 0, [panel()])
    told: list[Batch] = []
    await link.connect()
    running = asyncio.create_task(link.run(told.append, lambda _: None))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await link.close()
    names = {batch.group.points[0].name: batch.values[0] for batch in told}
    assert names == {"gear": 1, "start": False, "stop": False}


# --- opening and closing ----------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_a_link_that_is_down_and_says_why() -> None:
    async with serving() as served:
        other = ModbusServerLink("hmi2", "127.0.0.1", served.link.port, [panel()])
        with pytest.raises(LinkDownError, match=r"cannot listen: .*in use"):
            await other.connect()
        await other.close()


async def test_closing_ends_all_connections_and_the_same_port_can_be_opened_again(connect: Connect) -> None:
    link = ModbusServerLink("hmi", "127.0.0.1", free_port(), [panel()])
    served = Served(link)
    for _ in range(3):
        await link.connect()
        running = asyncio.create_task(link.run(served.batches.append, lambda _: None))
        served.put("speed", 1.5)
        master = await connect(served)
        assert await master.is_alive()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        await link.close()
        assert await master.was_hung_up_on()
        assert link.session_count == 0
        with pytest.raises(ConnectionRefusedError):
            await connect(served)


async def test_a_link_that_never_was_open_may_be_closed() -> None:
    link = ModbusServerLink("hmi", "127.0.0.1", 1, [panel()])
    await link.close()
    assert link.endpoint == "127.0.0.1:1"
