"""A million spoilt answers of libmodbus: no wrong value is ever good, and the next good one is not far.

The bulk goes straight into the framers, the rest through sockets and serial lines with a proxy in between.
``FIELDBUS_FAULTS=10`` multiplies how many there are of each.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack

import mutations
import pytest
from conftest import eventually
from fault_proxy import Storm, rtu_proxy, storm_on_rtu, tcp_proxy
from mutations import Answer, Change, Choice, Kind
from rtu_peer import mixed, slave
from watching import Watch, points_of, watching

from fieldbus.errors import BadResponseError, DeviceExceptionError
from fieldbus.modbus import pdu
from fieldbus.modbus.framing import AsciiFramer, Ask, Framer, MbapFramer, RtuFramer
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Place, SerialPlace, TcpPlace
from fieldbus.modbus.registers import Table
from fieldbus.modbus.units import Unit

SCALE = float(os.environ.get("FIELDBUS_FAULTS", "1"))
pytestmark = [pytest.mark.system, pytest.mark.timeout(60 + 120 * SCALE)]

Table_ = Mapping[str, tuple[int, Change]]


def line(name: str) -> SerialPlace:
    """Return a serial place as fast as the devices drive it."""
    return SerialPlace(name, baudrate=115200)


def resident_kib() -> int:
    """Return the memory that this process has in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


class Memory:
    """Looks whether memory stays flat, once what is made once has been made."""

    def __init__(self, most_kib: int) -> None:
        self._most_kib = most_kib
        gc.collect()
        self._objects = len(gc.get_objects())
        self._kib = resident_kib()

    def is_flat(self, most_objects: int = 5000) -> None:
        gc.collect()
        grown_kib, grown = resident_kib() - self._kib, len(gc.get_objects()) - self._objects
        assert grown_kib < self._most_kib, f"{grown_kib} KiB more"
        assert grown < most_objects, f"{grown} objects more"


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a cable can do is neither an error of ours nor an exception that nobody fetched."""
    caplog.set_level(logging.INFO)
    yield
    gc.collect()
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]
    assert found == []


# --- the game itself --------------------------------------------------------------------------------

SAMPLES = [
    (Table.HOLDING, 1), (Table.HOLDING, 2), (Table.INPUT, 3), (Table.HOLDING, 4), (Table.INPUT, 10),
    (Table.HOLDING, 20), (Table.INPUT, 1), (Table.COIL, 1), (Table.COIL, 9), (Table.DISCRETE, 40),
    (Table.HOLDING, 2), (Table.HOLDING, 6), (Table.INPUT, 2), (Table.HOLDING, 60), (Table.INPUT, 125),
]  # fmt: skip


async def recorded(count: int) -> list[tuple[Ask, bytes]]:
    """Return requests and what libmodbus answered them: unit id and PDU are its own, to the byte."""
    rng = random.Random(7)
    found = []
    async with slave("answer 1-247", "values mixed", "limit 125 3") as devices:
        reader, writer = await asyncio.open_connection("127.0.0.1", devices.port)
        for n in range(count):
            table, size = SAMPLES[n % len(SAMPLES)]
            ask = Ask(
                rng.randrange(1, 248), pdu.read_request(table, rng.randrange(0x10000 - size + 1), size)
            )
            writer.write(mutations.mbap(n, ask.unit_id, ask.pdu))
            header = await reader.readexactly(7)
            transaction_id, _, length, unit_id = struct.unpack(">HHHB", header)
            assert (transaction_id, unit_id) == (n, ask.unit_id)
            found.append((ask, await reader.readexactly(length - 1)))
        writer.close()
        await writer.wait_closed()
    return found


@pytest.fixture(scope="module")
def answers() -> list[tuple[Ask, bytes]]:
    return asyncio.run(recorded(300))


def test_what_libmodbus_answered_is_what_the_hash_says(answers: list[tuple[Ask, bytes]]) -> None:
    for ask, answer in answers:
        function, address, count = struct.unpack(">BHH", ask.pdu)
        table = {1: "coil", 2: "discrete", 3: "holding", 4: "input"}[function]
        held = [mixed(ask.unit_id, table, address + n) for n in range(count)]
        if function < 3:
            data = sum(bit << n for n, bit in enumerate(held)).to_bytes((count + 7) // 8, "little")
        else:
            data = struct.pack(f">{count}H", *held)
        assert answer == bytes((function, len(data))) + data


def test_the_checksum_finds_what_the_rules_of_the_game_say() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        frame = mutations.rtu(rng.randrange(1, 248), bytes((3, 4)) + rng.randbytes(4))
        answer = Answer(frame[0], frame[1:-2], b"\x03\0\0\0\x02", frame, 0.1)
        for name in ("wrong bits", "a burst of wrong bits"):
            _, [step] = mutations.RTU[name][1](answer, rng)
            assert len(step.what) == len(frame)
            assert mutations.crc16(step.what) != 0


# --- into the framers -------------------------------------------------------------------------------


def wrap_mbap(ask: Ask, answer: bytes, request: bytes) -> bytes:
    return mutations.mbap(request[0] << 8 | request[1], ask.unit_id, answer)


def storm_into(
    framer_type: type[Framer], table: Table_, answers: list[tuple[Ask, bytes]], count: int, seed: str
) -> Counter[str]:
    """Spoil answers and feed them; what is taken must be right. Returns what became of them."""
    rng = random.Random(seed)
    choice = Choice(table, rng)
    is_mbap = framer_type is MbapFramer
    wrap = {RtuFramer: mutations.rtu, AsciiFramer: mutations.ascii_frame}.get(framer_type)
    frames = [b"" if wrap is None else wrap(ask.unit_id, answer) for ask, answer in answers]
    framer = framer_type()
    found: Counter[str] = Counter()
    places = len(answers)
    for _ in range(count):
        place = rng.randrange(places)
        ask, good = answers[place]
        request = framer.wrap(ask)
        frame = wrap_mbap(ask, good, request) if is_mbap else frames[place]
        mutation = choice(Answer(ask.unit_id, good, ask.pdu, frame, 0.1))
        taken = None
        for step in mutation.steps:
            taken = framer.feed(step.what)
            if taken is not None:
                break
        outcome = "nothing"
        if taken is not None:
            try:
                data = pdu.check_read_reply(ask.pdu, taken)
                outcome = "good" if data == good[2:] else "WRONG"
            except DeviceExceptionError:
                outcome = "exception"
            except BadResponseError:
                outcome = "bad"
        if outcome == "WRONG":
            stream = mutation.stream
            answer = Answer(ask.unit_id, good, ask.pdu, frame, 0.1)
            is_unfair = mutations.tcp_unfair if is_mbap else mutations.rtu_unfair
            assert is_unfair(stream, answer), f"{mutation.name}: {stream[:300].hex(' ')} was taken"
            outcome = "unfair"
        if mutation.kind is Kind.HARMLESS:
            assert outcome == "good", f"{mutation.name}: the right answer was not found, but {outcome}"
        elif mutation.kind is Kind.REFUSAL:
            assert outcome == "exception", f"{mutation.name}: {outcome}"
        if is_mbap and (framer.fault is not None or not framer.is_empty or outcome == "bad"):
            framer = framer_type()  # as the link does: a new connection
        found[outcome] += 1
    # Whatever came, the next good answer is taken.
    ask, good = answers[0]
    if is_mbap:
        framer = framer_type()
    request = framer.wrap(ask)
    assert framer.feed(wrap_mbap(ask, good, request) if is_mbap else frames[0]) == good
    return found


FRAMERS: dict[str, tuple[type[Framer], Table_, int]] = {
    "MBAP": (MbapFramer, mutations.TCP, 550_000),
    "RTU": (RtuFramer, mutations.RTU, 320_000),
    "ASCII": (AsciiFramer, mutations.ASCII, 130_000),
}


@pytest.mark.parametrize("framing", FRAMERS)
def test_a_million_spoilt_answers_and_no_wrong_value(answers: list[tuple[Ask, bytes]], framing: str) -> None:
    framer_type, table, count = FRAMERS[framing]
    count = int(count * SCALE)
    storm_into(framer_type, table, answers, 5000, "warm up")
    memory = Memory(most_kib=8192)
    found = storm_into(framer_type, table, answers, count, f"{framing} 1")
    memory.is_flat()
    assert found.total() == count
    assert found["good"] > count / 5
    assert found["unfair"] <= 3 + count / 10_000, "so many cannot be luck"


# --- through sockets and serial lines ---------------------------------------------------------------


def unit_of(number: int, *, scan_s: float, timeout_s: float) -> Unit:
    """Return a unit with a block in each table, no two of the same shape."""
    device = f"unit{number}"
    points = [
        *points_of(device, range(100, 112)),
        *points_of(device, range(2000, 2020, 2), "input", "uint32"),
        *points_of(device, range(7, 40), "coil"),
        *points_of(device, [500, 511], "discrete"),
    ]
    return Unit(device, number, points, scan_s, timeout_s)


def one_link(place: Place, *units: Unit) -> ModbusClientLink:
    return ModbusClientLink("net", place, units, connect_timeout_s=1.0)


def without(table: Table_, *names: str) -> Table_:
    return {name: entry for name, entry in table.items() if name not in names}


async def storms_end(storms: list[Storm], timeout_s: float) -> None:
    await eventually(lambda: all(storm.is_over for storm in storms), timeout_s, "enough spoilt answers")


def tell(what: str, storms: list[Storm], since_s: float) -> None:
    """Print what the storm was, for `pytest -s`."""
    total, seconds = sum(storm.total for storm in storms), time.monotonic() - since_s
    print(f"\n{what}: {total} spoilt answers in {seconds:.1f} s ({total / seconds:.0f}/s)")


async def test_spoilt_answers_on_tcp_connections() -> None:
    count, links = int(20_000 * SCALE), 8
    table = {**mutations.TCP, **mutations.TCP_ENDS}
    storms = [Storm(table, ("tcp", n), count // links) for n in range(links)]
    async with AsyncExitStack() as stack:
        devices = await stack.enter_async_context(slave("answer 1-8", "values mixed"))
        watches = []
        for n, storm in enumerate(storms):
            proxy = await stack.enter_async_context(tcp_proxy(devices.port, storm, 1.0))
            unit = unit_of(n + 1, scan_s=0.001, timeout_s=1.0)
            watches.append(Watch(one_link(TcpPlace("127.0.0.1", proxy.port), unit)))
        async with watching(*watches):
            began_s = time.monotonic()
            await eventually(lambda: all(storm.total > 300 for storm in storms), 30.0)
            memory = Memory(most_kib=16_384)
            await storms_end(storms, 60.0 * max(1.0, SCALE))
            tell("TCP", storms, began_s)
            for watch in watches:
                await watch.all_good(15.0)
            memory.is_flat(20_000)
    assert sum(watch.good_batches for watch in watches) > count / 2


async def test_spoilt_answers_on_serial_lines() -> None:
    count, lines = int(3000 * SCALE), 10
    storms = [storm_on_rtu(mutations.RTU, ("rtu", n), count // lines) for n in range(lines)]
    async with AsyncExitStack() as stack:
        watches = []
        for n, storm in enumerate(storms):
            proxy = await stack.enter_async_context(rtu_proxy(storm, 0.5))
            await stack.enter_async_context(
                slave(f"answer {n + 1}", "values mixed", tty_name=proxy.device_name)
            )
            unit = unit_of(n + 1, scan_s=0.005, timeout_s=0.5)
            watches.append(Watch(one_link(line(proxy.client_name), unit)))
        async with watching(*watches):
            began_s = time.monotonic()
            await eventually(lambda: all(storm.total > 20 for storm in storms), 30.0)
            memory = Memory(most_kib=16_384)
            await storms_end(storms, 60.0 * max(1.0, SCALE))
            tell("RTU", storms, began_s)
            for watch in watches:
                await watch.all_good(15.0)
            memory.is_flat(20_000)
    assert sum(watch.good_batches for watch in watches) > count / 2
