"""Lines on which others ask, too: no response to somebody else is ever a good value of ours."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from conftest import eventually
from mutations import ascii_frame, rtu
from rtu_peer import Pty, ptys
from watching import points_of

from fieldbus.link import Emit, WriteOutcome
from fieldbus.modbus import pdu
from fieldbus.modbus.confirmation import confirmed
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.registers import Table
from fieldbus.modbus.traffic import QUIET_S, LineTraffic, Shape
from fieldbus.modbus.units import Unit, UnitState, cost_on
from fieldbus.model import Batch, Quality, Reason, Sample

UNIT = 7


def request(address: int, count: int, unit_id: int = UNIT, table: Table = Table.HOLDING) -> Ask:
    return Ask(unit_id, pdu.read_request(table, address, count))


def response(*words: int) -> bytes:
    return struct.pack(f">BB{len(words)}H", 3, 2 * len(words), *words)


def framed(framing: Framing, unit_id: int, body: bytes) -> bytes:
    return ascii_frame(unit_id, body) if framing is Framing.ASCII else rtu(unit_id, body)


# --- whose a frame is -------------------------------------------------------------------------------


class Ear:
    """A line's traffic, and what was found in it."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.found: list[str] = []
        self.traffic = LineTraffic(framing, self.found.append)
        self.now_s = 100.0

    def hear(self, body: bytes, unit_id: int = UNIT, *, step: int = 1000) -> None:
        data = framed(self.framing, unit_id, body)
        for at in range(0, len(data), step):
            self.traffic.heard(data[at : at + step], self.now_s)


@pytest.fixture(params=[Framing.RTU, Framing.ASCII], ids=str)
def ear(request: pytest.FixtureRequest) -> Ear:
    return Ear(request.param)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    "body",
    [
        "0300000002",
        "030400010002",
        "830200"[:4],
        "0600010002",
        "10000100020400010002",
        "0100000008",
        "010155",
        "1000010002",
    ],
)
def test_a_whole_frame_while_nothing_is_asked_is_evidence(ear: Ear, body: str, step: int) -> None:
    ear.hear(bytes.fromhex(body), step=step)
    assert ear.traffic.is_shared(ear.now_s)
    assert len(ear.found) == 1
    ear.hear(bytes.fromhex(body))
    assert len(ear.found) == 1, "it is told once"


def test_noise_and_halves_of_frames_are_no_evidence(ear: Ear) -> None:
    dice = random.Random(6)
    frame = framed(ear.framing, UNIT, response(1, 2))
    for _ in range(300):
        ear.traffic.heard(dice.randbytes(dice.randrange(40)), ear.now_s)
        ear.traffic.heard(frame[: dice.randrange(len(frame) - 1)], ear.now_s)
        ear.now_s += 2
    assert ear.found == []


def test_noise_before_a_frame_does_not_hide_it(ear: Ear) -> None:
    ear.traffic.heard(b"\x07\x03\xff\x00:07", ear.now_s)
    ear.hear(response(1, 2))
    assert ear.found


def test_of_frames_that_come_together_each_is_heard(ear: Ear) -> None:
    bodies = [response(1), response(1, 2), b"\x83\x02", response(1, 2, 3)]
    ear.traffic.heard(b"".join(framed(ear.framing, UNIT, body) for body in bodies), ear.now_s)
    assert ear.traffic.shapes == {Shape(UNIT, body[0], len(body)) for body in bodies}


def test_each_request_that_was_given_up_has_one_late_response(ear: Ear) -> None:
    ear.traffic.gave_up(request(0, 2), ear.now_s)
    ear.traffic.gave_up(request(9, 3), ear.now_s)
    ear.hear(response(1, 2, 3))
    ear.hear(response(1, 2))
    assert ear.found == []
    ear.hear(response(1, 2))
    assert ear.found


@pytest.mark.parametrize("body", ["030400010002", "8302"])
def test_a_late_response_comes_in_time_or_is_none(ear: Ear, body: str) -> None:
    ear.traffic.gave_up(request(0, 2), ear.now_s)
    ear.now_s += 14
    ear.hear(bytes.fromhex(body), unit_id=8)
    assert ear.found, "of another unit it is none"
    ear.traffic.shared_until_s = 0.0
    ear.hear(bytes.fromhex(body))
    assert len(ear.found) == 1
    ear.traffic.gave_up(request(0, 2), ear.now_s)
    ear.now_s += 16
    ear.hear(bytes.fromhex(body))
    assert len(ear.found) == 2


def test_our_own_echo_is_no_evidence_however_often_it_comes(ear: Ear) -> None:
    for count in range(1, 9):
        ear.traffic.sent(request(0, count))
    for count in range(1, 9):
        ear.hear(request(0, count).pdu)
        ear.hear(request(0, count).pdu)
    assert ear.found == []
    ear.hear(request(0, 9).pdu)
    assert ear.found == ["a request of another client (unit 7, function 3)"]


def test_a_new_connection_may_bring_one_response_for_its_last_owner(ear: Ear) -> None:
    ear.traffic.begin()
    ear.hear(response(1, 2))
    assert ear.found == []
    ear.hear(response(1, 2))
    assert ear.found
    ear.traffic.shared_until_s = 0.0
    ear.traffic.begin()
    ear.traffic.sent(request(0, 1))
    ear.hear(response(1, 2))
    assert len(ear.found) == 2, "none after we have asked"


@pytest.mark.parametrize(
    "body", ["83ff", "c102", "8300", "030300010203", "0300", "4100010002", "00020001", "03", "01", "11"]
)
def test_frames_that_no_modbus_device_sends_are_no_evidence(ear: Ear, body: str) -> None:
    ear.hear(bytes.fromhex(body))
    assert ear.found == []


def test_a_late_exception_is_one_to_its_function(ear: Ear) -> None:
    ear.traffic.gave_up(request(0, 2, table=Table.INPUT), ear.now_s)
    ear.hear(b"\x84\x02")
    assert ear.found == []
    ear.traffic.gave_up(request(0, 2, table=Table.INPUT), ear.now_s)
    ear.hear(b"\x83\x02")
    assert ear.found


def test_an_echo_is_one_of_the_last_eight_requests(ear: Ear) -> None:
    for count in range(1, 10):
        ear.traffic.sent(request(0, count))
    ear.hear(request(0, 2).pdu)
    assert ear.found == []
    ear.hear(request(0, 1).pdu)
    assert ear.found


def test_a_line_is_ours_alone_again_when_nothing_was_heard_for_long(ear: Ear) -> None:
    ear.hear(response(1, 2))
    ear.now_s += QUIET_S - 1
    assert ear.traffic.is_shared(ear.now_s)
    ear.hear(response(1, 2))
    ear.now_s += QUIET_S - 1
    assert ear.traffic.is_shared(ear.now_s)
    ear.now_s += 1
    assert not ear.traffic.is_shared(ear.now_s)
    ear.hear(response(1, 2))
    assert ear.traffic.is_shared(ear.now_s)
    assert ear.traffic.shapes == {Shape(UNIT, 3, 6)}


def test_what_is_heard_is_bounded(ear: Ear) -> None:
    for _ in range(100):
        ear.traffic.heard(bytes(range(256)) * 64, ear.now_s)
        ear.traffic.heard(b":07" * 5000, ear.now_s)
    assert len(ear.traffic._rest) <= 1026
    for size in range(1, 200):
        for unit_id in range(1, 4):
            ear.hear(bytes((3, size)) + bytes(size), unit_id)
    assert len(ear.traffic.shapes) <= 256


# --- two requests that agree ------------------------------------------------------------------------


def state() -> UnitState:
    unit = Unit("meter", UNIT, points_of("meter", range(2)), 1.0, 1.0)
    return UnitState(unit, cost_on(TcpPlace("a", 1)), None)


def drive(
    ask: Ask, answer: Callable[[Ask], bytes], shapes: set[Shape] | None = None
) -> tuple[bytes | str, int]:
    """Return the confirmed response, or why there is none, and how often was asked."""
    steps = confirmed(state(), ask, shapes or set())
    asked, reply = 0, None
    try:
        while True:
            _, part = next(steps) if reply is None else steps.send(reply)
            asked += 1
            reply = answer(part)
            while reply[0] & 0x80:
                error = pdu.DeviceExceptionError(3, reply[1], "no")
                _, part = steps.throw(error)
                asked += 1
                reply = answer(part)
    except StopIteration as end:
        return end.value, asked
    except Exception as error:
        return type(error).__name__, asked


def memory(ask: Ask) -> bytes:
    """Answer as a device whose registers hold their address, and whose odd bits are on."""
    code, address, count = struct.unpack(">BHH", ask.pdu)
    if code > 2:
        return struct.pack(f">BB{count}H", code, 2 * count, *range(address, address + count))
    bits = sum((address + n) % 2 << n for n in range(count))
    return bytes((code, (count + 7) // 8)) + bits.to_bytes((count + 7) // 8, "little")


@pytest.mark.parametrize("table", [item for item in Table if item.is_numbered])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 16, 17, 64, 125])
@pytest.mark.parametrize("address", [0, 40, 0x10000 - 125])
def test_a_device_that_answers_is_confirmed_in_two_or_three_requests(
    table: Table, count: int, address: int
) -> None:
    ask = request(address, count, table=table)
    answer, asked = drive(ask, memory)
    assert answer == memory(ask)
    assert asked in (2, 3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_response_of_others_among_ours_is_never_confirmed(count: int) -> None:
    ask = request(0, count)
    for seed in range(200):
        dice = random.Random(seed)

        def mixed(part: Ask, dice: random.Random = dice) -> bytes:
            if dice.random() < 0.4:
                size = (part.size - 2) // 2
                return response(*(dice.randrange(1000, 65536) for _ in range(size)))
            return memory(part)

        answer, _ = drive(ask, mixed)
        assert answer in (memory(ask), "BadResponseError")


def test_a_block_is_read_in_two_halves_first() -> None:
    for count, half in ((8, 4), (7, 3), (120, 60)):
        steps = confirmed(state(), request(100, count), ())
        _, part = next(steps)
        assert pdu.read_place(part.pdu) == (Table.HOLDING, 100, half)
        _, part = steps.send(memory(part))
        assert pdu.read_place(part.pdu) == (Table.HOLDING, 100 + half, count - half)


def test_a_neighbour_that_the_device_does_not_have_is_left_alone() -> None:
    def picky(part: Ask) -> bytes:
        _, address, count = struct.unpack(">BHH", part.pdu)
        return memory(part) if address >= 9 and address + count <= 11 else bytes((0x83, 2))

    assert drive(request(10, 1), picky)[0] == response(10)
    assert drive(request(9, 2), picky)[0] == response(9, 10)
    lonely: Callable[[Ask], bytes] = lambda part: memory(part) if part.size == 4 else bytes((0x83, 2))  # noqa: E731
    assert drive(request(10, 1), lonely)[0] == "DeviceExceptionError"


def test_addresses_of_32_bits_are_confirmed() -> None:
    def device(part: Ask) -> bytes:
        _, address, count = struct.unpack(">BHH", part.pdu)
        data = b"".join(struct.pack(">HH", address + n, 7) for n in range(count))
        return bytes((3, len(data))) + data

    for count in (1, 2, 5, 60):
        ask = Ask(UNIT, pdu.read_request(Table.HOLDING, 10, count), 32)
        assert drive(ask, device) == (device(ask), 2 if count == 1 else 3)


def test_a_device_that_is_only_read_from_one_address_is_confirmed() -> None:
    def from_ten(part: Ask) -> bytes:
        return memory(part) if part.pdu[1:3] == b"\x00\x0a" else bytes((0x83, 2))

    def wrong_elsewhere(part: Ask) -> bytes:
        return (
            memory(part) if part.pdu[1:3] == b"\x00\x0a" else bytes((3, part.size - 2)) + bytes(part.size - 2)
        )

    for count in (1, 2, 3):
        assert drive(request(10, count), from_ten)[0] == memory(request(10, count))
    assert drive(request(10, 2), wrong_elsewhere)[0] == memory(request(10, 2))


@pytest.mark.parametrize("bit", range(20))
def test_responses_that_differ_in_one_bit_do_not_agree(bit: int) -> None:
    ask = request(0, 20, table=Table.COIL)

    def flipped(part: Ask) -> bytes:
        answer = bytearray(memory(part))
        if part.size == ask.size and part.pdu == ask.pdu:
            answer[2 + bit // 8] ^= 1 << bit % 8
        return bytes(answer)

    assert drive(ask, flipped)[0] == "BadResponseError"


def test_what_never_agrees_is_given_up_after_four_rounds() -> None:
    def never(part: Ask) -> bytes:
        return response(*([part.size] * ((part.size - 2) // 2)))

    assert drive(request(0, 4), never) == ("BadResponseError", 3 * (2 + 3) + 1 + 3)


def test_lengths_that_others_use_are_avoided() -> None:
    asked: list[int] = []

    def note(part: Ask) -> bytes:
        asked.append(part.size)
        return memory(part)

    drive(request(0, 4), note, {Shape(UNIT, 3, 6)})
    assert asked == [4, 8, 10], "one and three registers, not twice two"
    asked.clear()
    drive(request(0, 4), note)
    assert asked == [6, 6, 10]
    asked.clear()
    drive(request(0, 1), note, {Shape(UNIT, 3, 6)})
    assert asked == [8, 4]


# --- on a line --------------------------------------------------------------------------------------


class Shared:
    """A converter, or a bus, with our device on it and another client whose traffic arrives here, too."""

    def __init__(self, framing: Framing, send: Callable[[bytes], None], seed: int) -> None:
        self.framing = framing
        self.send = send
        self.dice = random.Random(seed)
        self.asked: list[bytes] = []
        self.writes: list[bytes] = []
        self.words = {address: address + 10 for address in range(64)}
        self.before_s = 0.0
        self.has_others = False
        self.is_silent = False
        self._buffer = b""

    def frame(self, body: bytes, unit_id: int = UNIT) -> bytes:
        return framed(self.framing, unit_id, body)

    def take(self, data: bytes) -> None:
        """Answer the request in some bytes: a client sends one at a time."""
        self._buffer += data
        raw = self._buffer
        if self.framing is Framing.ASCII:
            if not raw.endswith(b"\r\n"):
                return
            raw = bytes.fromhex(raw[raw.rindex(b":") + 1 : -2].decode())[:-1]
        else:
            if len(raw) < 8 or (raw[1] == 16 and len(raw) < raw[6] + 9):
                return
            raw = raw[:-2]
        self._buffer = b""
        self.asked.append(raw[1:])
        rest_s = self.dice.random() * 0.012 if self.has_others else 0.0  # somewhere between the others
        asyncio.get_running_loop().call_later(rest_s, self._say, raw[1:])

    def _say(self, request: bytes) -> None:
        code, address, count = struct.unpack_from(">BHH", request)
        if self.is_silent:
            return
        if code == 3:
            self.send(self.frame(response(*(self.words[address + n] for n in range(count)))))
        elif code in (6, 16):
            self.writes.append(request)
            self.words[address] = count if code == 6 else int.from_bytes(request[6:8], "big")
            self.send(self.frame(request[:5]))

    def other(self) -> bytes:
        """Return something of the other client's: never a value that we have."""
        dice = self.dice
        size = dice.choice([1, 2, 2, 2, 3, 4])
        unit_id = dice.choice([UNIT, UNIT, UNIT, 8])
        words = self.frame(response(*(dice.randrange(5000, 65536) for _ in range(size))), unit_id)
        asking = self.frame(struct.pack(">BHH", 3, dice.randrange(100, 200), size), unit_id)
        return dice.choice(
            [
                words, words, words, asking, asking + words,
                words[: dice.randrange(1, len(words))], dice.randbytes(dice.randrange(1, 9)),
                self.frame(bytes((0x83, dice.choice([2, 3, 6])))),
            ]
        )  # fmt: skip

    async def talk(self, seconds: float) -> None:
        """Say things of others at random moments."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        while loop.time() < until_s:
            self.send(self.other())
            await asyncio.sleep(self.dice.random() * 0.03)


@asynccontextmanager
async def shared(
    framing: Framing, seed: int, link_of: str
) -> AsyncIterator[tuple[Shared, SerialPlace | TcpPlace]]:
    if link_of == "serial":
        async with ptys(1) as [end]:
            bus = Shared(framing, end.write, seed)
            asyncio.get_running_loop().add_reader(end.master, _carry, end, bus)
            yield bus, SerialPlace(end.name, 38400, framing=framing)
        return
    bus = Shared(framing, lambda _: None, seed)

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            bus.send = transport.write  # type: ignore[attr-defined]

        def data_received(self, data: bytes) -> None:
            bus.take(data)

    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", 0)
    try:
        yield bus, TcpPlace("127.0.0.1", server.sockets[0].getsockname()[1], framing)
    finally:
        server.close()


def _carry(end: Pty, bus: Shared) -> None:
    import os

    bus.take(os.read(end.master, 4096))


class Watcher:
    def __init__(self, link: ModbusClientLink) -> None:
        self.link = link
        self.good: list[tuple[object, ...]] = []
        self.samples: dict[str, Sample] = {}
        self.reasons: list[str | None] = []

    def emit(self, batch: Batch) -> None:
        for index, member in enumerate(batch.group.points):
            self.samples[member.name] = batch.sample(index)
            self.reasons.append(batch.sample(index).reason)
        if not batch.flaws:
            self.good.append(tuple(batch.values))

    @property
    def is_good(self) -> bool:
        return bool(self.samples) and all(item.quality is Quality.GOOD for item in self.samples.values())


@asynccontextmanager
async def watched(link: ModbusClientLink) -> AsyncIterator[Watcher]:
    watcher = Watcher(link)
    emit: Emit = watcher.emit
    await link.connect()
    running = asyncio.create_task(link.run(emit, lambda _: None))
    try:
        yield watcher
        assert not running.done(), running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()


def meter(place: SerialPlace | TcpPlace, *, first: int = 0, count: int = 2) -> ModbusClientLink:
    points = points_of("meter", range(first, first + count))
    write = PointSettings(table="holding", address=40, access="write").build("meter", "w", is_served=False)
    flag = PointSettings(table="holding", address=41, bit=3, access="readwrite", scan="1h")
    unit = Unit("meter", UNIT, [*points, write, flag.build("meter", "flag", is_served=False)], 0.02, 0.1)
    return ModbusClientLink("bus", place, [unit])


LINES = [(Framing.RTU, "tcp"), (Framing.ASCII, "tcp"), (Framing.RTU, "serial"), (Framing.ASCII, "serial")]


@pytest.mark.parametrize(("framing", "kind"), LINES)
async def test_a_line_without_others_is_read_in_one_request(framing: Framing, kind: str) -> None:
    async with shared(framing, 0, kind) as (bus, place), watched(meter(place)) as watcher:
        await eventually(lambda: len(watcher.good) > 20)
        assert {item[:2] for item in watcher.good if len(item) > 1} == {(10, 11)}
        assert len(set(bus.asked)) == 2


async def test_a_converter_that_tells_all_gives_no_value_of_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Responses of our shape arrive again and again, the requests that they answer do not."""
    async with shared(Framing.RTU, 1, "tcp") as (bus, place), watched(meter(place)) as watcher:
        await eventually(lambda: len(watcher.good) > 3)
        bus.has_others = True
        foreign = bus.frame(response(5555, 7777))
        bus.send(foreign + foreign)
        await eventually(lambda: "others ask on the line" in caplog.text)
        watcher.good.clear()
        for _ in range(60):
            bus.send(foreign)
            await asyncio.sleep(0.025)
        assert (10, 11) in watcher.good
        assert (5555, 7777) not in watcher.good
    assert caplog.text.count("others ask on the line") == 1


async def test_what_was_taken_for_ours_is_taken_back_with_the_evidence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with shared(Framing.RTU, 1, "tcp") as (bus, place), watched(meter(place)) as watcher:
        await eventually(lambda: len(watcher.good) > 3)
        real = bus.send

        def first_theirs(data: bytes) -> None:
            bus.send = real
            real(bus.frame(response(5555, 7777)))
            asyncio.get_running_loop().call_later(0.005, real, data)

        bus.send = first_theirs
        await eventually(lambda: "others ask on the line" in caplog.text)
        assert Reason.BAD_RESPONSE in watcher.reasons
        await eventually(lambda: watcher.is_good)
        assert watcher.good[-1] == (10, 11)


@pytest.mark.parametrize(("framing", "kind"), LINES)
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_others_say_no_value_of_theirs_is_good(
    framing: Framing, kind: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A second client with dice: requests, responses, halves, noise, anywhere around our exchanges."""
    count = random.Random(seed).choice([1, 2, 4])
    async with shared(framing, seed, kind) as (bus, place), watched(meter(place, count=count)) as watcher:
        await eventually(lambda: len(watcher.good) > 3)
        bus.has_others = True
        bus.send(bus.frame(response(*[6000] * count)) * 2)  # the first evidence
        await eventually(lambda: "others ask on the line" in caplog.text)
        watcher.good.clear()
        await bus.talk(1.0)
        allowed = {tuple(range(10, 10 + count)), (False,)}
        assert set(watcher.good) <= allowed
        bus.has_others = False
        watcher.good.clear()
        await eventually(lambda: tuple(range(10, 10 + count)) in watcher.good, 25.0, "our values are back")
        assert set(watcher.good) <= allowed


async def test_a_bit_is_never_written_beside_bits_of_others(caplog: pytest.LogCaptureFixture) -> None:
    async with shared(Framing.RTU, 3, "tcp") as (bus, place):
        link = meter(place)
        async with watched(link) as watcher:
            await eventually(lambda: len(watcher.good) > 3)
            bus.has_others = True
            bus.words[41] = 0x0101
            bus.send(bus.frame(response(6000)) * 2)
            await eventually(lambda: "others ask on the line" in caplog.text)
            flag = next(item.point for item in link.units[0].points if item.point.name == "flag")
            talking = asyncio.create_task(bus.talk(1.0))
            for value in (True, False, True, False):
                await link.write({flag: value})
            await talking
            bus.has_others = False
            written = {item[-2:] for item in bus.writes}
            assert written <= {b"\x01\x09", b"\x01\x01"}, "the bits beside it are the device's"


async def test_a_device_that_is_dead_has_no_value_although_others_are_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with shared(Framing.RTU, 4, "tcp") as (bus, place), watched(meter(place)) as watcher:
        await eventually(lambda: len(watcher.good) > 3)
        bus.is_silent = bus.has_others = True
        await bus.talk(0.3)
        assert "others ask on the line" in caplog.text
        watcher.good.clear()
        await bus.talk(1.0)
        assert watcher.good == []
        assert not watcher.is_good


async def test_late_responses_of_a_slow_device_are_no_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with shared(Framing.RTU, 5, "tcp") as (bus, place), watched(meter(place)) as watcher:
        await eventually(lambda: len(watcher.good) > 3)
        real = bus.send
        for _ in range(4):
            bus.send = lambda data: asyncio.get_running_loop().call_later(0.13, real, data)
            await asyncio.sleep(0.15)
            bus.send = real
            await asyncio.sleep(0.4)
        await eventually(lambda: watcher.is_good)
    assert "others ask" not in caplog.text


async def test_a_write_is_done_on_a_shared_line(caplog: pytest.LogCaptureFixture) -> None:
    async with shared(Framing.RTU, 6, "tcp") as (bus, place):
        link = meter(place)
        async with watched(link) as watcher:
            await eventually(lambda: len(watcher.good) > 3)
            bus.send(bus.frame(response(6000)) * 2)
            await eventually(lambda: "others ask on the line" in caplog.text)
            own = next(item.point for item in link.units[0].points if item.point.name == "w")
            [result] = await link.write({own: 5})
            assert result.outcome is WriteOutcome.WRITTEN
            assert len(bus.writes) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 121])
@pytest.mark.parametrize("record", [0, 7, 0x10000 - 121])
def test_records_of_a_file_are_confirmed_as_registers_are(count: int, record: int) -> None:
    def records(part: Ask) -> bytes:
        _, address, size = pdu.read_place(part.pdu)
        return part.head + b"".join((address + index & 0xFFFF).to_bytes(2, "big") for index in range(size))

    ask = request(Table.FILE.linear(record, 4), count, table=Table.FILE)
    answer, asked = drive(ask, records)
    assert answer == records(ask)
    assert asked in (2, 3)


@pytest.mark.parametrize("table", [Table.FIFO, Table.SERVER_ID])
def test_what_is_only_read_as_a_whole_is_never_confirmed(table: Table) -> None:
    answer, asked = drive(request(0, 1, table=table), lambda _: b"\x11\x02\x2a\xff")
    assert (answer, asked) == ("BadResponseError", 0)
