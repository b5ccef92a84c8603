"""The client against a server that is wrong in every way: never a wrong value that is good."""

from __future__ import annotations

import asyncio
import gc
import logging
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from conftest import eventually, free_port
from fault_server import POISON, Connection, Fault, FaultServer, Good, fault_server, frame

from fieldbus.clock import SYSTEM
from fieldbus.errors import BadResponseError, LinkDownError, RequestTimeoutError
from fieldbus.link import Delivery, DeviceHealth, Target, WriteOutcome, WriteResult
from fieldbus.modbus import failures as failures_module
from fieldbus.modbus.client import Line
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.quirks import LineQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.transport import open_line
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch, Flaw, Point, Quality, Reason, Sample, Value

# What the server's registers hold, in engineering values: holding registers and inputs their own
# address, odd coils are on.
TRUTH: dict[str, Value] = {
    "count": 2,
    "wide": 3 << 16 | 4,
    "real": struct.unpack(">f", struct.pack(">HH", 5, 6))[0],
    "lamp": False,
    "door": True,
    "level": 7,
}


def point(
    name: str, place: str, type_: str | None = None, device: str = "plc", **settings: object
) -> RegisterPoint:
    """Return a polled point; `place` is such as ``holding 4``."""
    table, address = place.split()
    made = PointSettings(table=table, address=int(address), type=type_, **settings)
    return made.build(device, name, is_served=False)


def holding() -> list[RegisterPoint]:
    """Return the points of one block."""
    return [
        point("count", "holding 2", "uint16"),
        point("wide", "holding 3", "uint32"),
        point("real", "holding 5", "float32"),
    ]


class Gateway:
    """Keeps a link connected as the gateway does, hardly waiting, and looks at all that it says."""

    def __init__(self, link: ModbusClientLink) -> None:
        self.link = link
        self.samples: dict[str, Sample] = {}
        self.reasons: list[str] = []
        """Why points were bad, in order, a run of the same once."""
        self.good = 0
        """How many batches had good values."""
        self.news_of_bad = 0
        """How many batches said that something is bad that was not said before."""
        self.lost: list[str] = []
        self.health: list[DeviceHealth] = []
        self.results: list[WriteResult] = []
        self.is_up = asyncio.Event()
        self._pictures: dict[object, list[tuple[Value | None, Flaw | None]]] = {}

    async def keep(self) -> None:
        while True:
            try:
                await self.link.connect()
                self.is_up.set()
                await self.link.run(self.emit, self.report)
            except LinkDownError as error:
                self.lost.append(str(error))
            finally:
                self.is_up.clear()
                await self.link.close()
            for group in self.link.groups:
                self.emit(group.without_value(Reason.NOT_CONNECTED, time.time_ns(), time.monotonic()))
            await asyncio.sleep(0.02)

    def report(self, event: DeviceHealth | WriteResult) -> None:
        (self.health if isinstance(event, DeviceHealth) else self.results).append(event)  # type: ignore[arg-type]

    def emit(self, batch: Batch) -> None:
        picture = [(value, batch.flaws.get(index)) for index, value in enumerate(batch.values)]
        before = self._pictures.get(batch.group)
        told = set(batch.changed)
        for index, item in enumerate(picture):
            assert before is None or item == before[index] or index in told, "a change was not told"
        self._pictures[batch.group] = picture
        assert len(batch.flaws) in (0, len(picture)), "a block is read whole or not at all"
        self.good += not batch.flaws
        self.news_of_bad += bool(batch.flaws and batch.changed)
        for index, member in enumerate(batch.group.points):
            sample = batch.sample(index)
            self.samples[member.name] = sample
            if sample.quality is Quality.GOOD:
                truth = TRUTH.get(member.name.split(".")[0], sample.value)
                assert sample.value == truth, f"{member.name} is {truth}, not {sample.value}"
            else:
                assert sample.quality is Quality.BAD
                assert sample.value is None
                if not self.reasons or self.reasons[-1] != sample.reason:
                    self.reasons.append(str(sample.reason))

    def is_good(self, *names: str) -> bool:
        """Whether points (all, if none is named) have good values."""
        wanted = names or [member.name for group in self.link.groups for member in group.points]
        return all(name in self.samples and self.samples[name].quality is Quality.GOOD for name in wanted)

    async def next_good(self, timeout_s: float = 3.0) -> None:
        """Wait for one more batch of good values."""
        good = self.good
        await eventually(lambda: self.good > good and self.is_good(), timeout_s, "good values again")


@asynccontextmanager
async def polling(link: ModbusClientLink, *, wait: bool = True) -> AsyncIterator[Gateway]:
    """Keep a link for as long as the block lasts; what it said in between was checked."""
    gateway = Gateway(link)
    running = asyncio.create_task(gateway.keep())
    try:
        if wait:
            await eventually(lambda: gateway.is_up.is_set() or running.done())
            await eventually(lambda: gateway.is_good() or running.done(), what="first values")
        yield gateway
        assert not running.done(), "the link ended"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0)
        if running.done() and not running.cancelled() and running.exception() is not None:
            raise running.exception()  # type: ignore[misc]


def client(
    server: FaultServer | int,
    points: Sequence[RegisterPoint] | None = None,
    *,
    timeout_s: float = 0.15,
    scan_s: float = 0.03,
    unit_id: int = 1,
) -> ModbusClientLink:
    """Return a link with one unit."""
    port = server if isinstance(server, int) else server.port
    unit = Unit("plc", unit_id, holding() if points is None else points, scan_s, timeout_s)
    return ModbusClientLink("plc_net", TcpPlace("127.0.0.1", port), [unit])


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as running:
        yield running


@pytest.fixture(autouse=True, scope="module")
def _garbage_is_cheap() -> Iterator[None]:
    """Leave what was there before out of each test's look for exceptions that nobody fetched."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a cable can cause is no traceback; nor is an exception that nobody fetched."""
    caplog.set_level(logging.INFO)
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


# --- one wrong answer -------------------------------------------------------------------------------


def pdu_is(change: Callable[[bytes], bytes]) -> Fault:
    """Answer with another PDU."""
    return lambda connection, good: connection.send(
        frame(good.transaction_id, good.unit_id, change(good.pdu))
    )


def header_is(poisoned: bool = True, **change: int | Callable[[int], int]) -> Fault:
    """Answer with another header, and with a value that is wrong, so that it is seen if it is taken."""

    def fault(connection: Connection, good: Good) -> None:
        fields: dict[str, int] = {"transaction_id": good.transaction_id, "unit_id": good.unit_id}
        for name, value in change.items():
            fields[name] = value(fields[name]) if callable(value) else value
        connection.send(frame(pdu=poison(good.pdu) if poisoned else good.pdu, **fields))  # type: ignore[arg-type]

    return fault


def poison(pdu: bytes) -> bytes:
    return pdu[:2] + (POISON * 127)[: len(pdu) - 2]


def poisoned_behind(head: bytes) -> bytes:
    return head + POISON * (len(head) % 2 + 5)


def sends(data: bytes) -> Fault:
    return lambda connection, _: connection.send(data)


def silence(_connection: Connection, _good: Good) -> None:
    pass


def half_then(end: Callable[[Connection], None]) -> Fault:
    def fault(connection: Connection, good: Good) -> None:
        connection.send(good.frame[: len(good.frame) // 2])
        end(connection)

    return fault


BAD = Reason.BAD_RESPONSE
WRONG_ANSWERS: dict[str, tuple[Fault, str]] = {
    "another read function": (pdu_is(lambda pdu: b"\x04" + poison(pdu)[1:]), BAD),
    "a coil function": (pdu_is(lambda pdu: b"\x01" + poison(pdu)[1:]), BAD),
    "function 0": (pdu_is(lambda pdu: b"\x00" + poison(pdu)[1:]), BAD),
    "a write's function": (pdu_is(lambda _: bytes.fromhex("1000020005")), BAD),
    "its request": (pdu_is(lambda _: bytes.fromhex("0300020005")), BAD),
    "one register fewer": (pdu_is(lambda pdu: bytes((3, 8)) + pdu[2:10]), BAD),
    "one register more": (pdu_is(lambda pdu: bytes((3, 12)) + pdu[2:] + POISON), BAD),
    "no registers": (pdu_is(lambda _: bytes((3, 0))), BAD),
    "125 registers": (pdu_is(lambda _: bytes((3, 250)) + POISON * 125), BAD),
    "an odd byte count": (pdu_is(lambda pdu: bytes((3, 9)) + pdu[2:11]), BAD),
    "an odd byte count with all bytes": (pdu_is(lambda pdu: bytes((3, 11)) + pdu[2:] + b"\0"), BAD),
    "a byte count that says more": (pdu_is(lambda pdu: bytes((3, 12)) + pdu[2:]), BAD),
    "a byte count that says less": (pdu_is(lambda pdu: bytes((3, 8)) + pdu[2:]), BAD),
    "its function alone": (pdu_is(lambda _: b"\x03"), BAD),
    "transaction id 0": (header_is(transaction_id=0), BAD),
    "the next transaction id": (header_is(transaction_id=lambda tid: tid + 1), BAD),
    "a far transaction id": (header_is(transaction_id=lambda tid: tid + 1000), BAD),
    "a transaction id that was never used": (header_is(transaction_id=0xFFFF), BAD),
    "the previous transaction id and no more": (header_is(transaction_id=lambda tid: tid - 1), Reason.TIMEOUT),
    "another unit id": (header_is(unit_id=2), BAD),
    "unit id 0": (header_is(unit_id=0), BAD),
    "unit id 255": (header_is(unit_id=255), BAD),
    "protocol id 1": (header_is(protocol_id=1), BAD),
    "protocol id 0x0100": (header_is(protocol_id=0x100), BAD),
    "length 0": (header_is(length=0), BAD),
    "length 1": (header_is(length=1), BAD),
    "length 2": (header_is(length=2), BAD),
    "a length one too short": (header_is(length=12), BAD),
    "length 255": (header_is(length=255), BAD),
    "length 65535": (header_is(length=65535), BAD),
    "a length one too long": (header_is(length=14, poisoned=False), BAD),
    "the exception of another function": (pdu_is(lambda _: b"\x84\x02"), BAD),
    "an exception of function 0": (pdu_is(lambda _: b"\x80\x02"), BAD),
    "an exception without code": (pdu_is(lambda _: b"\x83"), BAD),
    "an exception with bytes behind": (pdu_is(lambda _: b"\x83\x04\x00"), "device exception 04"),
    "a web page": (sends(b"HTTP/1.1 400 Bad Request\r\n\r\n"), BAD),
    "a serial frame": (sends(bytes.fromhex("01030a") + POISON * 5 + b"\x12\x34"), BAD),
    "64 KiB of ones": (sends(b"\xff" * 65536), BAD),
    "64 KiB of zeros": (sends(bytes(65536)), BAD),
    "64 KiB of poison": (sends(POISON * 32768), BAD),
    "256 KiB of ones": (sends(b"\xff" * 262144), BAD),
    "half a frame": (half_then(lambda _: None), BAD),
    "nothing": (silence, Reason.TIMEOUT),
    **{
        f"exception {code:02X}": (
            pdu_is(lambda _, code=code: bytes((0x83, code))), f"device exception {code:02X}"
        )
        for code in (0, 1, 4, 7, 8, 9, 10, 11, 12, 127, 255)
    },
}  # fmt: skip
ENDS: dict[str, Fault] = {
    "a reset": lambda connection, _: connection.reset(),
    "a goodbye": lambda connection, _: connection.finish(),
    "half a frame and a reset": half_then(lambda connection: connection.reset()),
    "half a frame and a goodbye": half_then(lambda connection: connection.finish()),
}


@pytest.mark.parametrize("what", ENDS)
async def test_a_read_under_which_the_connection_ends_is_sent_once_more(
    server: FaultServer, what: str
) -> None:
    async with polling(client(server)) as gateway:
        asked = len(server.asked)
        server.faults.append(ENDS[what])
        await eventually(lambda: len(server.connections) == 2)
        await gateway.next_good()
        assert gateway.reasons == gateway.lost == []
        assert server.asked[asked + 1].at_s - server.asked[asked].at_s < 0.05
        server.faults.extend([ENDS[what], ENDS[what]])
        await eventually(lambda: gateway.reasons, what="the second end is a lost link")
        await gateway.next_good()
        assert gateway.reasons == [Reason.NOT_CONNECTED]
        assert len(gateway.lost) == 1


@pytest.mark.parametrize("what", ENDS)
async def test_a_connection_that_ends_under_its_first_request_is_a_lost_link(
    server: FaultServer, what: str
) -> None:
    server.faults.append(ENDS[what])
    async with polling(client(server), wait=False) as gateway:
        await gateway.next_good()
        assert gateway.reasons == [Reason.NOT_CONNECTED]
        assert len(gateway.lost) == 1


@pytest.mark.parametrize("what", WRONG_ANSWERS)
async def test_an_answer_is_no_value_and_the_next_one_is_if_it_is(server: FaultServer, what: str) -> None:
    fault, reason = WRONG_ANSWERS[what]
    async with polling(client(server)) as gateway:
        server.faults.append(fault)
        await eventually(lambda: gateway.reasons, what="the points go bad")
        await gateway.next_good()
        assert gateway.reasons == [reason]


@pytest.mark.parametrize("what", WRONG_ANSWERS)
async def test_the_first_answer_of_all_may_be_wrong_as_well(server: FaultServer, what: str) -> None:
    fault, reason = WRONG_ANSWERS[what]
    if "previous" in what:
        reason = BAD  # there was none: it is number 0
    server.faults.append(fault)
    async with polling(client(server), wait=False) as gateway:
        await gateway.next_good()
        assert gateway.reasons == [reason]


AT_ONCE = [what for what, (_, reason) in WRONG_ANSWERS.items() if reason != Reason.TIMEOUT]
AT_ONCE = [what for what in AT_ONCE if what not in ("half a frame", "a length one too long")]
AT_ONCE = [what for what in AT_ONCE if what not in [f"exception {code:02X}" for code in range(3, 256)]]


@pytest.mark.parametrize("what", AT_ONCE)
async def test_nobody_waits_for_the_timeout_after(server: FaultServer, what: str) -> None:
    async with polling(client(server, timeout_s=30)) as gateway:
        began_s = time.monotonic()
        server.faults.append(WRONG_ANSWERS[what][0])
        await eventually(lambda: gateway.reasons, 1.0, "the points go bad at once")
        await gateway.next_good(1.0)
        assert time.monotonic() - began_s < 1.5


@pytest.mark.parametrize("code", [0x02, 0x03, 0x05, 0x06])
async def test_a_refusal_that_is_not_repeated_costs_no_value(server: FaultServer, code: int) -> None:
    """A busy device is asked later, a refused block is looked into: meanwhile nothing is said to be bad."""
    async with polling(client(server)) as gateway:
        server.faults.append(pdu_is(lambda _: bytes((0x83, code))))
        await eventually(lambda: gateway.link.counters["exceptions"])
        await gateway.next_good()
        assert gateway.reasons == []
        assert len(server.connections) == 1


@pytest.mark.parametrize("code", [0x05, 0x06])
async def test_a_device_that_stays_busy_has_no_value_and_never_a_zero(server: FaultServer, code: int) -> None:
    async with polling(client(server)) as gateway:
        server.rules[1, 3] = pdu_is(lambda _: bytes((0x83, code)))
        await eventually(lambda: gateway.reasons == [f"device exception {code:02X}"])
        server.rules.clear()
        await gateway.next_good()


@pytest.mark.parametrize("code", [0x01, 0x04, 0x0A, 0x0B])
async def test_an_exception_never_costs_the_connection_however_often_it_comes(
    server: FaultServer, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures_module, "LONGEST_PROBE_S", 0.1)
    async with polling(client(server)) as gateway:
        server.faults.extend([pdu_is(lambda _: bytes((0x83, code)))] * 4)
        await eventually(lambda: not server.faults, 5.0)
        await gateway.next_good()
        assert len(server.connections) == 1
        assert gateway.lost == []
        assert gateway.reasons == [f"device exception {code:02X}"]
        assert gateway.link.counters["exceptions"] == 4
        assert gateway.link.counters["bad_responses"] == 0


async def test_a_device_that_says_no_is_online(server: FaultServer) -> None:
    server.rules[1, 3] = pdu_is(lambda _: b"\x83\x04")
    async with polling(client(server), wait=False) as gateway:
        await eventually(lambda: server.count(1) > 5)
        assert [event.is_online for event in gateway.health] == [True]


async def test_what_stays_bad_for_the_same_reason_is_new_once(server: FaultServer) -> None:
    async with polling(client(server)) as gateway:
        server.rules[1, 3] = pdu_is(lambda _: b"\x83\x04")
        asked = server.count(1)
        await eventually(lambda: server.count(1) > asked + 5)
        assert gateway.news_of_bad == 1
        server.rules[1, 3] = pdu_is(lambda _: b"\x83\x01")
        asked = server.count(1)
        await eventually(lambda: server.count(1) > asked + 5)
        assert gateway.news_of_bad == 2
        server.rules.clear()
        await gateway.next_good()


async def test_an_answer_that_is_wrong_costs_the_connection_and_nothing_else(server: FaultServer) -> None:
    async with polling(client(server)) as gateway:
        server.faults.append(header_is(transaction_id=0))
        await eventually(lambda: len(server.connections) == 2)
        await gateway.next_good()
        assert not server.connections[0].is_open
        assert gateway.lost == []
        assert [event.is_online for event in gateway.health] == [True]


async def test_wrong_answers_without_end_are_never_a_value(server: FaultServer) -> None:
    async with polling(client(server)) as gateway:
        good = gateway.good
        server.rules[1, 3] = header_is(transaction_id=0)
        await eventually(lambda: len(gateway.health) == 2, 3.0, "the device is lost")
        assert gateway.health[1].is_online is False
        assert gateway.good <= good + 1
        assert gateway.reasons[:1] == [BAD]
        server.rules.clear()
        await gateway.next_good()
        assert [event.is_online for event in gateway.health] == [True, False, True]


# --- right answers in strange clothes ---------------------------------------------------------------


def one_byte_at_a_time(connection: Connection, good: Good) -> None:
    connection.send_slowly(good.frame)


def twice(connection: Connection, good: Good) -> None:
    connection.send(good.frame * 2)


def once_and_again_later(connection: Connection, good: Good) -> None:
    connection.send(good.frame)
    connection.send_later(frame(good.transaction_id, good.unit_id, poison(good.pdu)), 0.01)


def behind_the_one_before(connection: Connection, good: Good) -> None:
    connection.send(frame(good.transaction_id - 1, good.unit_id, poison(good.pdu)) + good.frame)


def behind_the_one_before_for_another_unit(connection: Connection, good: Good) -> None:
    connection.send(frame(good.transaction_id - 1, 9, poison(good.pdu)) + good.frame)


@pytest.mark.parametrize(
    "strange",
    [
        one_byte_at_a_time, twice, once_and_again_later, behind_the_one_before,
        behind_the_one_before_for_another_unit,
    ],
)  # fmt: skip
async def test_a_right_answer_is_taken_and_costs_nothing(server: FaultServer, strange: Fault) -> None:
    async with polling(client(server, timeout_s=1)) as gateway:
        server.faults.extend([strange] * 5)
        await eventually(lambda: not server.faults)
        for _ in range(3):
            await gateway.next_good()
        assert gateway.reasons == []
        assert len(server.connections) == 1


async def test_an_answer_that_comes_after_its_timeout_is_passed_over(server: FaultServer) -> None:
    def late(connection: Connection, good: Good) -> None:
        connection.send_later(frame(good.transaction_id, good.unit_id, poison(good.pdu)), 0.13)

    async with polling(client(server, timeout_s=0.1, scan_s=0.05)) as gateway:
        server.faults.append(late)
        await eventually(lambda: gateway.reasons)
        for _ in range(4):
            await gateway.next_good()
        assert gateway.reasons == [Reason.TIMEOUT]
        assert len(server.connections) == 1, "a late answer is no reason to hang up"


async def test_an_answer_that_comes_instead_of_the_next_is_passed_over(server: FaultServer) -> None:
    """The classic: a slow device, and from then on each answer taken for the request behind it."""
    kept: list[bytes] = []

    def keep(_connection: Connection, good: Good) -> None:
        kept.append(frame(good.transaction_id, good.unit_id, poison(good.pdu)))

    def late_then_right(connection: Connection, good: Good) -> None:
        connection.send(kept.pop())
        connection.send_later(good.frame, 0.02)

    async with polling(client(server, timeout_s=0.1)) as gateway:
        server.faults.extend([keep, late_then_right])
        await eventually(lambda: not server.faults)
        await gateway.next_good()
        assert gateway.reasons == [Reason.TIMEOUT]
        assert len(server.connections) == 1


def answer_and_go(connection: Connection, good: Good) -> None:
    connection.send(good.frame)
    connection.finish()


async def test_a_server_that_says_goodbye_behind_its_answer_was_heard(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with polling(client(server)) as gateway:
        good = gateway.good
        server.faults.append(answer_and_go)
        await eventually(lambda: len(server.connections) == 2)
        assert gateway.good > good
        await gateway.next_good()
        assert gateway.reasons == gateway.lost == []
    assert "closes the connection between requests" in caplog.text
    caplog.clear()


async def test_a_server_that_says_goodbye_behind_each_answer_is_written_to(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    points = [point("far", "holding 200", "uint16", access="write")]
    link = client(server, points)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        server.faults.extend([answer_and_go] * 3)
        for value in (5, 6, 7):
            [result] = await link.write({points[0].point: value})
            assert result.outcome is WriteOutcome.WRITTEN
            await asyncio.sleep(0.02)
        assert len(server.connections) == len(server.writes()) == 3
        assert gateway.lost == []
    assert caplog.text.count("closes the connection between requests") == 1
    caplog.clear()


# --- bytes that are read as a frame although they are none ------------------------------------------


class Asker:
    """Asks on a line and waits for the answer."""

    clock = SYSTEM

    def __init__(self) -> None:
        self.line: Line | None = None
        self._waiting: asyncio.Future[bytes] | None = None

    async def request(self, unit_id: int, pdu: bytes, timeout_s: float) -> bytes:
        assert self.line is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self.line.ask(Ask(unit_id, pdu), timeout_s)
        return await self._waiting

    def answered(self, answer: bytes) -> None:
        self._waiting.set_result(answer)

    def failed(self, error: Exception) -> None:
        self._waiting.set_exception(error)

    lost = failed


@asynccontextmanager
async def connected(server: FaultServer) -> AsyncIterator[Asker]:
    asker = Asker()
    asker.line = await open_line(TcpPlace("127.0.0.1", server.port), asker, LineQuirks(), 1.0)
    try:
        yield asker
    finally:
        asker.line.close()
        await asyncio.sleep(0.01)


READ_30 = bytes.fromhex("030000001e")
READ_1 = bytes.fromhex("0300090001")
NINE = bytes.fromhex("03020009")


def trap(next_transaction_id: int) -> bytes:
    """Return register contents that read as the answer to the next request, if one begins there."""
    return frame(next_transaction_id, 1, bytes((3, 2)) + POISON)


async def answer_to_the_next(connection: Asker) -> bytes | None:
    """Ask for one register and return what is taken for its answer; None if it is known to be none."""
    try:
        return await connection.request(1, READ_1, 0.3)
    except (BadResponseError, RequestTimeoutError, LinkDownError):
        return None


async def test_the_rest_of_a_late_answer_is_not_read_as_a_frame(server: FaultServer) -> None:
    def first_part(connection: Connection, good: Good) -> None:
        data = trap(good.transaction_id + 1)
        whole = frame(good.transaction_id, 1, (bytes((3, 60)) + b"\0" * 20 + data + bytes(60))[:62])
        cut = whole.index(data)
        connection.send_later(whole[:cut], 0.1)
        server.faults.append(lambda peer, then: peer.send(whole[cut:] + then.frame))

    async with connected(server) as connection:
        server.faults.append(first_part)
        with pytest.raises(RequestTimeoutError):
            await connection.request(1, READ_30, 0.05)
        await asyncio.sleep(0.1)  # the first part comes while nobody asks
        assert await answer_to_the_next(connection) in (NINE, None)


async def test_the_rest_of_a_second_answer_is_not_read_as_a_frame(server: FaultServer) -> None:
    def one_and_a_part(connection: Connection, good: Good) -> None:
        data = trap(good.transaction_id + 1)
        whole = frame(good.transaction_id, 1, (bytes((3, 60)) + b"\0" * 20 + data + bytes(60))[:62])
        cut = whole.index(data)
        connection.send(good.frame + whole[:cut])
        server.faults.append(lambda peer, then: peer.send(whole[cut:] + then.frame))

    async with connected(server) as connection:
        server.faults.append(one_and_a_part)
        await connection.request(1, READ_30, 0.3)
        assert await answer_to_the_next(connection) in (NINE, None)


async def test_behind_noise_that_comes_while_nobody_asks_nothing_is_believed(server: FaultServer) -> None:
    async with connected(server) as connection:
        assert await connection.request(1, READ_1, 0.3) == NINE
        server.connections[0].send(b"\0\1\0\1\0\xff\1\3")  # a protocol id that cannot be
        await asyncio.sleep(0.05)
        server.faults.append(lambda peer, then: peer.send(trap(then.transaction_id) + then.frame))
        assert await answer_to_the_next(connection) in (NINE, None)


@pytest.mark.parametrize("size", [1000, 65536, 65537, 262144])
async def test_noise_is_noticed_however_much_comes_in_one_piece(server: FaultServer, size: int) -> None:
    """The event loop reads up to 256 KiB at a time, when the network happens to deliver them so."""
    async with connected(server) as connection:
        server.faults.append(silence)
        asking = asyncio.create_task(connection.request(1, READ_1, 5.0))
        await eventually(lambda: server.asked)
        connection.line.data_received(b"\xff" * size)
        with pytest.raises(BadResponseError):
            async with asyncio.timeout(1):
                await asking


async def test_an_answer_that_is_taken_is_the_first_that_came(server: FaultServer) -> None:
    async with connected(server) as connection:
        server.faults.append(lambda peer, good: peer.send(good.frame + trap(good.transaction_id)))
        assert await connection.request(1, READ_1, 0.3) == NINE
        assert await connection.request(1, READ_1, 0.3) == NINE


# --- the connection ---------------------------------------------------------------------------------


async def test_points_keep_their_values_while_nothing_is_asked_on_a_closed_connection(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with polling(client(server, scan_s=600)) as gateway:
        server.connections[0].finish()
        await asyncio.sleep(0.3)
        assert gateway.is_good()
        assert gateway.lost == []
        assert len(server.connections) == 1, "nothing is due"
    caplog.clear()


async def test_a_link_that_only_writes_connects_again_for_its_next_write(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    points = [point("speed", "holding 0", "uint16", access="write")]
    link = client(server, points)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        await eventually(lambda: server.connections)
        server.connections[0].reset()
        await asyncio.sleep(0.1)
        assert len(server.connections) == 1
        [result] = await link.write({points[0].point: 5})
        assert result.outcome is WriteOutcome.WRITTEN
        assert len(server.connections) == 2
        assert gateway.lost == []
    caplog.clear()


async def test_a_server_that_hangs_up_before_the_first_request_leaves_no_trace(server: FaultServer) -> None:
    server.greet = lambda connection: connection.finish()
    points = [point("speed", "holding 0", "uint16", access="write")]
    link = client(server, points)
    await link.connect()
    await asyncio.sleep(0.05)
    await link.close()  # the log is looked at behind each test


async def test_nobody_listening_is_a_link_that_is_down_and_says_so() -> None:
    link = client(free_port())
    with pytest.raises(LinkDownError, match="connection refused"):
        await link.connect()
    await link.close()
    await link.close()


async def test_a_server_that_goes_and_comes_back_is_found_again(server: FaultServer) -> None:
    async with polling(client(server)) as gateway:
        await server.stop()
        await eventually(lambda: "connection refused" in gateway.lost)
        assert gateway.reasons == [Reason.NOT_CONNECTED]
        await server.start()
        await gateway.next_good()
        assert gateway.reasons == [Reason.NOT_CONNECTED]


async def test_cancelling_a_link_that_waits_for_an_answer_ends_it_at_once(server: FaultServer) -> None:
    server.silent.add(1)
    link = client(server, timeout_s=30)
    await link.connect()
    running = asyncio.create_task(link.run(lambda _: None, lambda _: None))
    await eventually(lambda: server.asked)
    running.cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    await link.close()
    await asyncio.sleep(0.01)


# --- one dead unit among others ---------------------------------------------------------------------


def three_units(server: FaultServer, scan_s: float = 0.05, timeout_s: float = 0.05) -> ModbusClientLink:
    units = [
        Unit(f"plc{n}", n, [point(f"level.{n}", "holding 7", device=f"plc{n}")], scan_s, timeout_s)
        for n in (1, 2, 3)
    ]
    return ModbusClientLink("plc_net", TcpPlace("127.0.0.1", server.port), units)


@pytest.mark.alone
async def test_a_dead_unit_costs_the_others_less_than_a_tenth_of_their_scans(server: FaultServer) -> None:
    async def scans_per_second(seconds: float) -> list[float]:
        began_s = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        passed_s = asyncio.get_running_loop().time() - began_s
        return [server.count(unit_id, began_s) / passed_s for unit_id in (1, 2, 3)]

    async with polling(three_units(server)) as gateway:
        alive = await scans_per_second(1.0)
        assert min(alive) > 10
        server.silent.add(2)
        dead = await scans_per_second(3.0)
        assert dead[0] >= 0.9 * alive[0]
        assert dead[2] >= 0.9 * alive[2]
        assert dead[1] * 3.0 <= 6
        assert gateway.is_good("level.1", "level.3")
        assert not gateway.is_good("level.2")
        assert len(server.connections) == 1
        assert gateway.reasons == [Reason.TIMEOUT]
        [lost] = [event for event in gateway.health if not event.is_online]
        assert lost.device == "plc2"
        assert lost.reason is not None
        assert Reason.TIMEOUT in lost.reason


@pytest.mark.parametrize("fault", [silence, pdu_is(lambda _: b"\x83\x0b")], ids=["timeout", "0B"])
async def test_failures_that_are_not_in_a_row_do_not_lose_a_unit(server: FaultServer, fault: Fault) -> None:
    def well(connection: Connection, good: Good) -> None:
        connection.send(good.frame)

    async with polling(client(server, timeout_s=0.05)) as gateway:
        server.faults.extend([fault, well] * 5)
        await eventually(lambda: not server.faults)
        await gateway.next_good()
        assert [event.is_online for event in gateway.health] == [True]


async def test_a_dead_unit_that_is_alive_again_is_back_soon(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures_module, "LONGEST_PROBE_S", 0.2)
    async with polling(three_units(server)) as gateway:
        server.silent.add(2)
        await eventually(lambda: len(gateway.health) == 4)
        await asyncio.sleep(1.0)
        assert not gateway.is_good("level.2")
        server.silent.clear()
        await eventually(lambda: gateway.is_good("level.2"), 0.8)
        assert [(event.device, event.is_online) for event in gateway.health[3:]] == [
            ("plc2", False),
            ("plc2", True),
        ]


async def test_a_unit_is_asked_again_within_ten_seconds_however_long_it_was_dead(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with all times a twentieth: the waits grow and then grow no more."""
    monkeypatch.setattr(failures_module, "LONGEST_PROBE_S", 0.5)
    async with polling(three_units(server, 0.02, 0.02)):
        server.silent.add(2)
        await asyncio.sleep(2.5)
        asked = [item.at_s for item in server.asked if item.unit_id == 2]
        waits = [after - before for before, after in pairwise(asked[-3:])]
        assert all(0.4 <= wait_s <= 0.8 for wait_s in waits), waits


async def test_all_points_of_a_unit_that_is_back_are_read_not_only_those_that_are_due(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures_module, "LONGEST_PROBE_S", 0.2)
    points = [*holding(), point("lamp", "coil 2", scan="60s")]
    async with polling(client(server, points, timeout_s=0.05)) as gateway:
        server.silent.add(1)
        await eventually(lambda: not gateway.is_good("lamp"))
        server.silent.clear()
        await eventually(lambda: gateway.is_good("count", "wide", "real"))
        await eventually(lambda: gateway.is_good("lamp"), 1.0, "a point that is polled once a minute is back")


async def test_all_points_of_a_unit_are_bad_once_it_is_lost(server: FaultServer) -> None:
    points = [*holding(), point("lamp", "coil 2", scan="60s"), point("level", "input 7", scan="60s")]
    async with polling(client(server, points, timeout_s=0.05)) as gateway:
        server.silent.add(1)
        await eventually(lambda: not any(map(gateway.is_good, ("count", "lamp", "level"))), 1.0)


async def test_points_that_a_gateway_cannot_reach_do_not_cost_those_that_it_can(server: FaultServer) -> None:
    """Our own server answers 0B where the source of a point is bad; the unit is not dead for that."""
    points = [*holding(), point("lamp", "coil 2"), point("level", "input 7")]
    for function in (1, 3):
        server.rules[1, function] = pdu_is(lambda _, function=function: bytes((function | 0x80, 0x0B)))
    async with polling(client(server, points), wait=False) as gateway:
        await eventually(lambda: gateway.is_good("level"))
        for _ in range(50):
            assert gateway.is_good("level"), "it was read, and is gone"
            await asyncio.sleep(0.01)
        assert gateway.samples["lamp"].reason == "device exception 0B"
        assert gateway.samples["count"].reason == "device exception 0B"


async def test_a_point_that_a_gateway_cannot_reach_does_not_cost_one_that_is_read_rarely(
    server: FaultServer,
) -> None:
    """However often the one is asked before the other has its turn again."""
    server.rules[1, 1] = pdu_is(lambda _: b"\x81\x0b")
    points = [point("lamp", "coil 2"), point("level", "input 7", scan="60s")]
    async with polling(client(server, points), wait=False) as gateway:
        await eventually(lambda: gateway.is_good("level"))
        asked = server.count(1)
        await eventually(lambda: server.count(1) > asked + 5 or not gateway.is_good("level"))
        assert gateway.is_good("level")
        assert gateway.samples["lamp"].reason == "device exception 0B"
        assert all(event.is_online for event in gateway.health)


async def test_a_unit_behind_a_gateway_that_says_0b_is_lost_and_the_others_are_not(
    server: FaultServer,
) -> None:
    async with polling(three_units(server)) as gateway:
        server.rules[2, 3] = pdu_is(lambda _: b"\x83\x0b")
        await eventually(lambda: any(not event.is_online for event in gateway.health))
        asked, well = server.count(2), server.count(1)
        await asyncio.sleep(0.3)  # it is probed after 0.45 s at the earliest
        assert gateway.samples["level.2"].reason == "device exception 0B"
        assert gateway.is_good("level.1", "level.3")
        assert len(server.connections) == 1
        [lost] = [event for event in gateway.health if not event.is_online]
        assert lost.device == "plc2"
        assert server.count(2) == asked, "it is asked as if it were well"
        assert server.count(1) > well + 2


# --- writes -----------------------------------------------------------------------------------------


def writable() -> list[RegisterPoint]:
    """Return three registers, a float, a text and three coils, all in a row, and one that is alone."""
    free = {"access": "readwrite"}
    return [
        point("a", "holding 100", "uint16", **free),
        point("b", "holding 101", "uint16", **free),
        point("c", "holding 102", "int16", scale=0.1, **free),
        point("real", "holding 103", "float32", access="write"),
        point("text", "holding 105", "string", length=2, access="write"),
        point("far", "holding 200", "uint16", access="write"),
        point("x", "coil 10", access="write"),
        point("y", "coil 11", access="write"),
        point("z", "coil 12", access="write"),
    ]


class Panel:
    """A link with points to write, by name."""

    def __init__(self, server: FaultServer | int, *, scan_s: float = 600, timeout_s: float = 0.15) -> None:
        points = writable()
        self.link = client(server, points, scan_s=scan_s, timeout_s=timeout_s)
        self.points: dict[str, Point] = {item.point.name: item.point for item in points}

    async def write(self, **values: Value) -> list[tuple[str, Value, WriteOutcome, str | None]]:
        async with asyncio.timeout(5):
            results = await self.link.write({self.points[name]: value for name, value in values.items()})
        return [(result.point.name, result.value, result.outcome, result.reason) for result in results]

    def send(self, **values: Value) -> None:
        deliveries = []
        for name, value in values.items():
            sample = Sample(value, Quality.GOOD, None, time.time_ns())
            deliveries.append(Delivery(Target("plc_net", self.points[name]), self.points[name], sample))
        self.link.send(deliveries)


DONE = WriteOutcome.WRITTEN


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": 7}, ["0600640007"]),
        ({"c": -1.5}, ["060066fff1"]),
        ({"real": 72.5}, ["10006700020442910000"]),
        ({"text": "OK"}, ["1000690002044f4b0000"]),
        ({"x": True}, ["05000aff00"]),
        ({"x": False}, ["05000a0000"]),
        ({"a": 1, "b": 2}, ["10006400020400010002"]),
        ({"b": 2, "a": 1}, ["10006400020400010002"]),
        ({"a": 1, "b": 2, "c": 0.3, "real": 1.5, "text": "abcd"},
         ["10006400070e0001000200033fc0000061626364"]),
        ({"x": True, "y": False, "z": True}, ["0f000a00030105"]),
        ({"a": 1, "c": 0.2}, ["0600640001", "0600660002"]),
        ({"x": True, "z": True}, ["05000aff00", "05000cff00"]),
    ],
)  # fmt: skip
async def test_neighbours_share_one_request_and_others_have_their_own(
    server: FaultServer, values: dict[str, Value], expected: list[str]
) -> None:
    panel = Panel(server)
    async with polling(panel.link):
        results = await panel.write(**values)
        assert results == [(name, value, DONE, None) for name, value in values.items()]
        assert sorted(server.writes()) == sorted(expected)


async def test_writes_go_out_in_the_order_in_which_they_were_given(server: FaultServer) -> None:
    """First the setpoint, then the coil that starts the machine."""
    panel = Panel(server)
    async with polling(panel.link):
        await panel.write(far=5, a=7, x=True)
        assert server.writes() == ["0600c80005", "0600640007", "05000aff00"]
        panel.send(x=False, far=6)
        await eventually(lambda: len(server.writes()) == 5)
        assert server.writes()[3:] == ["05000a0000", "0600c80006"]


async def test_more_neighbours_than_fit_are_written_in_several_requests_and_none_is_torn(
    server: FaultServer,
) -> None:
    points = [point(f"f{n}", f"holding {2 * n}", "float32", access="write") for n in range(100)]
    link = client(server, points, scan_s=600)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        results = await link.write({item.point: float(n) for n, item in enumerate(points)})
        assert {result.outcome for result in results} == {DONE}
        assert [request[2:12] for request in server.writes()] == ["0000007af4", "007a004e9c"]
        words = [server.word(1, "holding", n) for n in range(200)]
        assert struct.unpack(">100f", struct.pack(">200H", *words)) == tuple(range(100))


async def test_a_write_goes_ahead_of_the_polls_that_wait(server: FaultServer) -> None:
    points = [point(f"p{n}", f"input {n * 100}", "uint16") for n in range(8)]
    points.append(point("far", "holding 200", "uint16", access="write"))
    link = client(server, points, scan_s=0.02, timeout_s=2)
    held: deque[tuple[Connection, Good]] = deque()
    async with polling(link) as gateway:
        server.faults.append(lambda connection, good: held.append((connection, good)))
        await eventually(lambda: held)
        await asyncio.sleep(0.1)  # by now all polls are due
        writing = asyncio.create_task(link.write({points[-1].point: 5}))
        await asyncio.sleep(0)
        before = len(server.asked)
        connection, good = held.popleft()
        connection.send(good.frame)
        [result] = await writing
        assert result.outcome is DONE
        assert server.asked[before].pdu.hex() == "0600c80005"
        await gateway.next_good()


async def test_a_write_does_not_wait_for_the_next_poll(server: FaultServer) -> None:
    panel = Panel(server, scan_s=600)
    async with polling(panel.link):
        began_s = time.monotonic()
        await panel.write(far=1)
        assert time.monotonic() - began_s < 0.5


async def test_writes_without_end_leave_room_for_polls(server: FaultServer) -> None:
    panel = Panel(server, scan_s=0.02)
    async with polling(panel.link) as gateway:
        good = gateway.good
        deadline_s = time.monotonic() + 0.5
        while time.monotonic() < deadline_s:
            await panel.write(far=1)
        assert gateway.good - good >= 10


async def test_of_several_writes_to_one_point_the_last_wins_and_each_is_answered(server: FaultServer) -> None:
    panel = Panel(server, scan_s=0.05, timeout_s=2)
    held: list[tuple[Connection, Good]] = []
    async with polling(panel.link):
        server.faults.append(lambda connection, good: held.append((connection, good)))
        await eventually(lambda: held)
        writing = [asyncio.create_task(panel.write(far=value)) for value in (1, 2, 3)]
        await asyncio.sleep(0)
        held[0][0].send(held[0][1].frame)
        results = [result for [result] in await asyncio.gather(*writing)]
        assert [result[0] for result in results] == ["far"] * 3
        assert [result[2] for result in results] == [DONE] * 3
        assert results[-1][1] == 3
        assert server.writes() == ["0600c80003"]


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ({"a": 65536}, WriteOutcome.REFUSED),
        ({"a": -1}, WriteOutcome.REFUSED),
        ({"a": float("nan")}, WriteOutcome.REFUSED),
        ({"a": "1"}, WriteOutcome.REFUSED),
        ({"a": 10**400}, WriteOutcome.REFUSED),
        ({"real": 1e39}, WriteOutcome.REFUSED),
        ({"real": 10**400}, WriteOutcome.REFUSED),
        ({"text": "abcde"}, WriteOutcome.REFUSED),
        ({"text": "\ud800"}, WriteOutcome.REFUSED),
        ({"text": 5}, WriteOutcome.REFUSED),
        ({"x": 2}, WriteOutcome.REFUSED),
        ({"x": "on"}, WriteOutcome.REFUSED),
    ],
    ids=lambda item: f"{item!r:.24}",
)
async def test_a_value_that_cannot_be_expressed_is_refused_and_not_sent(
    server: FaultServer, values: dict[str, Value], outcome: WriteOutcome
) -> None:
    panel = Panel(server)
    async with polling(panel.link) as gateway:
        [[name, _, found, reason], beside] = await panel.write(**values, far=5)
        assert (name, found) == (next(iter(values)), outcome)
        assert reason
        assert beside[2] is DONE
        assert server.writes() == ["0600c80005"]
        panel.send(**values)
        await eventually(lambda: gateway.results)
        assert gateway.results[0].outcome is outcome
        assert gateway.lost == []


@pytest.mark.parametrize("value", [9, 1001, -1, 65535, float("nan"), float("inf")])
async def test_a_value_outside_the_declared_range_is_refused_and_not_sent(
    server: FaultServer, value: float
) -> None:
    """Whoever it comes from: a person, a program or a route."""
    limited = point("limited", "holding 300", "float32", min=10, max=1000, access="write")
    link = client(server, [limited])
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        [result] = await link.write({limited.point: value})
        assert result.outcome is WriteOutcome.REFUSED
        assert result.reason
        link.send(
            [Delivery(Target("net", limited.point), limited.point, Sample(value, Quality.GOOD, None, 1))]
        )
        await eventually(lambda: gateway.results)
        assert gateway.results[0].outcome is WriteOutcome.REFUSED
        [result] = await link.write({limited.point: 1000})
        assert result.outcome is DONE
        assert server.writes() == ["10012c000204447a0000"]


async def test_no_routed_value_is_ever_sent_as_nan_or_infinity(server: FaultServer) -> None:
    points = [
        point("small", "holding 300", "float64", scale=1e-100, access="write"),
        point("real", "holding 310", "float32", access="write"),
    ]
    link = client(server, points)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        for value in (1e290, float("nan"), float("-inf")):
            results = await link.write({item.point: value for item in points[: 1 if value == 1e290 else 2]})
            assert {result.outcome for result in results} == {WriteOutcome.REFUSED}
        assert server.writes() == []


LOST = "connection lost before the response came"
WRITE_FAULTS: dict[str, tuple[Fault, str]] = {
    "another address": (
        pdu_is(lambda pdu: pdu[:1] + b"\0\x01" + pdu[3:]), f"{BAD}: address 1 in the response, 200 was written"
    ),
    "another value": (
        pdu_is(lambda pdu: pdu[:3] + POISON), f"{BAD}: value {int.from_bytes(POISON, 'big')} in the response, 5 was written"
    ),
    "another function": (
        pdu_is(lambda pdu: b"\x10" + pdu[1:]), f"{BAD}: function 16 in the response, 6 was sent"
    ),
    "a read": (pdu_is(lambda _: b"\x03\x02\x00\x05"), f"{BAD}: function 3 in the response, 6 was sent"),
    "a byte too many": (pdu_is(lambda pdu: pdu + b"\0"), f"{BAD}: length 7"),
    "a byte too few": (pdu_is(lambda pdu: pdu[:4]), f"{BAD}: 4 bytes in the response, 5 were expected"),
    "transaction id 0": (header_is(poisoned=False, transaction_id=0), f"{BAD}: transaction id 0 for "),
    "another unit": (header_is(poisoned=False, unit_id=7), f"{BAD}: unit id 7 for 1"),
    "the exception of another function": (
        pdu_is(lambda _: b"\x90\x02"), f"{BAD}: function 144 in the response, 6 was sent"
    ),
    "exception 02": (pdu_is(lambda _: b"\x86\x02"), "device exception 02"),
    "exception 04": (pdu_is(lambda _: b"\x86\x04"), "device exception 04"),
    "exception 0B": (pdu_is(lambda _: b"\x86\x0b"), "device exception 0B"),
    "nothing": (silence, Reason.TIMEOUT),
    "a reset": (lambda connection, _: connection.reset(), f"{LOST}: connection reset by peer"),
    "a goodbye in the middle": (
        half_then(lambda connection: connection.finish()), f"{LOST}: connection closed by the peer"
    ),
}  # fmt: skip
CERTAIN = ("exception 02", "exception 04")


@pytest.mark.parametrize("what", WRITE_FAULTS)
async def test_a_write_is_not_written_and_not_repeated_if_its_answer_is(
    server: FaultServer, what: str
) -> None:
    fault, reason = WRITE_FAULTS[what]
    panel = Panel(server, scan_s=0.05)
    async with polling(panel.link) as gateway:
        server.rules[1, 6] = fault
        [(_, _, outcome, said)] = await panel.write(far=5)
        assert outcome is (WriteOutcome.FAILED if what in CERTAIN else WriteOutcome.UNKNOWN)
        assert str(said).startswith(reason)
        server.rules.clear()
        await gateway.next_good()
        await gateway.next_good()
        assert len(server.writes()) == 1
        assert await panel.write(far=6) == [("far", 6, DONE, None)]


async def test_a_routed_write_that_ends_is_told(server: FaultServer) -> None:
    panel = Panel(server, scan_s=0.05)
    async with polling(panel.link) as gateway:
        panel.send(far=5)
        await eventually(lambda: gateway.results)
        server.rules[1, 6] = pdu_is(lambda _: b"\x86\x02")
        panel.send(far=6)
        await eventually(lambda: len(gateway.results) == 2)
    assert [tuple(result) for result in gateway.results] == [
        (panel.points["far"], 5, DONE, None),
        (panel.points["far"], 6, WriteOutcome.FAILED, "device exception 02"),
    ]


async def test_a_write_with_no_connection_fails_at_once_and_is_not_done_later() -> None:
    port = free_port()
    panel = Panel(port, scan_s=0.05)
    async with polling(panel.link, wait=False) as gateway:
        await eventually(lambda: len(gateway.lost) >= 2)
        began_s = time.monotonic()
        assert await panel.write(far=5) == [("far", 5, WriteOutcome.FAILED, Reason.NOT_CONNECTED)]
        assert time.monotonic() - began_s < 0.1
        panel.send(a=7)
        server = FaultServer()
        server.port = port
        await server.start()
        try:
            await gateway.next_good()
            await gateway.next_good()
            assert server.writes() == []
            assert panel.link.counters["writes_dropped"] == 1
        finally:
            await server.stop()


async def test_a_link_that_nobody_keeps_answers_writes_at_once_as_well(server: FaultServer) -> None:
    panel = Panel(server)
    failed = [("far", 5, WriteOutcome.FAILED, Reason.NOT_CONNECTED)]
    async with asyncio.timeout(1):
        assert await panel.write(far=5) == failed  # it never was connected
        await panel.link.connect()
        await panel.link.close()
        assert await panel.write(far=5) == failed
        await panel.link.connect()
        writing = asyncio.create_task(panel.write(far=5))
        await asyncio.sleep(0)
        await panel.link.close()
        assert await writing == failed
    assert server.writes() == []


async def test_a_write_that_waits_when_the_connection_is_lost_fails_and_is_not_done_later(
    server: FaultServer,
) -> None:
    panel = Panel(server, scan_s=0.05, timeout_s=5)
    held: list[Connection] = []
    async with polling(panel.link) as gateway:
        server.faults.append(lambda connection, _: held.append(connection))
        await eventually(lambda: held)
        writing = asyncio.create_task(panel.write(far=5, x=True))
        panel.send(a=7)
        await asyncio.sleep(0)
        await server.stop()
        assert [result[2:] for result in await writing] == [(WriteOutcome.FAILED, Reason.NOT_CONNECTED)] * 2
        await server.start()
        await gateway.next_good()
        await gateway.next_good()
        assert server.writes() == []


async def test_a_write_that_waits_is_sent_on_the_connection_that_is_opened_at_once(
    server: FaultServer,
) -> None:
    panel = Panel(server, scan_s=0.05, timeout_s=5)
    held: list[Connection] = []
    async with polling(panel.link) as gateway:
        server.faults.append(lambda connection, _: held.append(connection))
        await eventually(lambda: held)
        writing = asyncio.create_task(panel.write(far=5))
        await asyncio.sleep(0)
        held[0].reset()
        assert [result[2:] for result in await writing] == [(WriteOutcome.WRITTEN, None)]
        assert len(server.writes()) == 1
        assert gateway.lost == []


@pytest.mark.parametrize("what", ENDS)
async def test_a_write_under_which_the_connection_ends_is_never_sent_again(
    server: FaultServer, what: str
) -> None:
    panel = Panel(server, scan_s=0.05, timeout_s=5)
    async with polling(panel.link) as gateway:
        server.rules[1, 6] = ENDS[what]
        [result] = await panel.write(a=7)
        assert result[2] not in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)
        del server.rules[1, 6]
        await gateway.next_good()
        await gateway.next_good()
        assert server.writes() == ["0600640007"]


async def lose(server: FaultServer, gateway: Gateway, unit_id: int) -> None:
    """Make a unit silent and wait until the link has given it up."""
    server.silent.add(unit_id)
    await eventually(lambda: any(not event.is_online for event in gateway.health))


def two_units(server: FaultServer, timeout_s: float) -> tuple[ModbusClientLink, list[Point]]:
    """Return a link with a unit that is polled and one with ten points apart that are written."""
    apart = [point(f"w{n}", f"holding {10 * n}", device="drive", access="write") for n in range(10)]
    alive = point("drive_speed", "holding 7", device="drive")
    units = [
        Unit("plc", 1, [point("level", "holding 7")], 0.02, timeout_s),
        Unit("drive", 2, [*apart, alive], 0.02, timeout_s),
    ]
    return ModbusClientLink("net", TcpPlace("127.0.0.1", server.port), units), [item.point for item in apart]


async def test_a_write_to_a_unit_that_is_lost_fails_at_once_and_is_not_done_later(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures_module, "LONGEST_PROBE_S", 0.3)
    link, points = two_units(server, timeout_s=0.2)
    async with polling(link) as gateway:
        await lose(server, gateway, 2)
        began_s = time.monotonic()
        [result] = await link.write({points[0]: 5})
        assert result.outcome is WriteOutcome.FAILED
        assert time.monotonic() - began_s < 0.1
        link.send([Delivery(Target("net", points[1]), points[1], Sample(5, Quality.GOOD, None, 1))])
        assert link.counters["writes_dropped"] == 1
        server.silent.clear()
        await eventually(lambda: gateway.is_good("drive_speed"))
        await gateway.next_good()
        assert server.writes() == []


async def test_many_writes_to_a_unit_that_has_just_died_do_not_hold_up_the_others(
    server: FaultServer,
) -> None:
    """Each would cost a timeout, and the other units their scans."""
    link, points = two_units(server, timeout_s=0.2)
    async with polling(link) as gateway:
        server.silent.add(2)
        began_s = asyncio.get_running_loop().time()
        results = await link.write(dict.fromkeys(points, 5))
        assert {result.outcome for result in results} == {WriteOutcome.FAILED, WriteOutcome.UNKNOWN}
        await eventually(lambda: server.count(1, began_s + 0.1) > 0)
        asked = [began_s, *(item.at_s for item in server.asked if item.unit_id == 1 and item.at_s > began_s)]
        gaps = [after - before for before, after in pairwise(asked)]
        assert max(gaps) < 4.5 * 0.2, "the other unit was not polled for longer than two timeouts"
        assert gateway.is_good("level")
