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
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from itertools import pairwise

import mutations
import pytest
from conftest import eventually, program
from fault_proxy import Choose, RtuProxy, Storm, rtu_over_tcp_proxy, rtu_proxy, storm_on_rtu, tcp_proxy
from mutations import FIN, RST, Answer, Change, Choice, Kind, Mutation
from rtu_peer import cable, mixed, slave
from watching import Watch, points_of, watching

from fieldbus.errors import BadResponseError, DeviceExceptionError
from fieldbus.modbus import pdu
from fieldbus.modbus.framing import AsciiFramer, Ask, Framer, MbapFramer, RtuFramer
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Framing, Place, SerialPlace, TcpPlace
from fieldbus.modbus.registers import Table
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch

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
            ask = Ask(rng.randrange(1, 248), pdu.read_request(table, rng.randrange(0x10000 - size + 1), size))
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
    "MBAP": (MbapFramer, mutations.TCP, 620_000),
    "RTU": (RtuFramer, mutations.RTU, 260_000),
    "ASCII": (AsciiFramer, mutations.ASCII, 100_000),
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


def one_link(place: Place, *units: Unit, connections: int = 1) -> ModbusClientLink:
    return ModbusClientLink("net", place, units, connections=connections, connect_timeout_s=1.0)


async def serial_line(
    stack: AsyncExitStack, choose: Choose, timeout_s: float, *, is_over_tcp: bool
) -> tuple[RtuProxy, Place]:
    """Return a proxy on a serial line, and where to reach it: at a port or through a serial device server."""
    if is_over_tcp:
        proxy, tcp_port = await stack.enter_async_context(rtu_over_tcp_proxy(choose, timeout_s))
        return proxy, TcpPlace("127.0.0.1", tcp_port, Framing.RTU)
    proxy, port = await stack.enter_async_context(rtu_proxy(choose, timeout_s))
    return proxy, line(port)


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
            place = TcpPlace("127.0.0.1", proxy.port)
            watches.append(Watch(one_link(place, unit, connections=3 if n % 4 == 0 else 1)))
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
    count, lines = int(2500 * SCALE), 10
    storms = [storm_on_rtu(mutations.RTU, ("rtu", n), count // lines) for n in range(lines)]
    async with AsyncExitStack() as stack:
        watches = []
        for n, storm in enumerate(storms):
            proxy, place = await serial_line(stack, storm, 0.2, is_over_tcp=n % 5 == 4)
            await stack.enter_async_context(
                slave(f"answer {n + 1}", "values mixed", tty_name=proxy.device_name)
            )
            watches.append(Watch(one_link(place, unit_of(n + 1, scan_s=0.005, timeout_s=0.2))))
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


# --- what one spoilt answer costs -------------------------------------------------------------------

COSTS_AT_MOST_S = 0.1
"""From the spoilt answer, or any good one, to the next good one."""


class Once:
    """Spoils an answer when told to, and measures how long good values are away then."""

    def __init__(self, table: Table_, name: str) -> None:
        self._choice = Choice({name: table[name]}, random.Random(name))
        self._is_unfair = mutations.rtu_unfair if table is mutations.RTU else mutations.tcp_unfair
        self._is_armed = False
        self._marks: list[float] = []

    def __call__(self, answer: Answer) -> Mutation | None:
        if not self._is_armed:
            return None
        self._is_armed = False
        mutation = self._choice(answer)
        while self._is_unfair(mutation.stream, answer):
            mutation = self._choice(answer)
        self._marks = [time.monotonic()]
        return mutation

    def good(self, _batch: Batch) -> None:
        if self._marks:
            self._marks.append(time.monotonic())

    async def costs(self, count: int) -> list[float]:
        """Spoil some answers; return the longest time without a good value after each, sorted."""
        found = []
        for _ in range(count):
            self._marks = []
            self._is_armed = True
            # The third good one has seen whatever was behind the first.
            await eventually(lambda: len(self._marks) > 3, 10.0, "good values again")
            found.append(max(b - a for a, b in zip(self._marks[:4], self._marks[1:4], strict=False)))
        return sorted(found)


def one_block(device: str, unit_id: int = 1) -> Unit:
    return Unit(device, unit_id, points_of(device, range(10, 22)), scan_s=0.01, timeout_s=1.0)


def judge(costs: Mapping[str, list[float]]) -> None:
    """The worst of ten may be the machine's fault; the next one is not."""
    worst = max(costs, key=lambda name: costs[name][-2])
    print(f"\nworst: {worst} {costs[worst][-2] * 1000:.1f} ms")
    late = {name: [round(s * 1000) for s in found] for name, found in costs.items()}
    assert {name: found for name, found in late.items() if found[-2] > COSTS_AT_MOST_S * 1000} == {}


async def measured(
    names: Iterable[str], measure: Callable[[str], Coroutine[object, object, list[float]]]
) -> None:
    """Measure some at a time; none may be late."""
    waiting = list(names)
    costs: dict[str, list[float]] = {}
    while waiting:
        some, waiting = waiting[:5], waiting[5:]
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(measure(name)) for name in some}
        costs.update((name, task.result()) for name, task in tasks.items())
    judge(costs)


async def tcp_costs(name: str, server_port: int, table: Table_) -> list[float]:
    once = Once(table, name)
    async with tcp_proxy(server_port, once, 1.0) as proxy:
        watch = Watch(one_link(TcpPlace("127.0.0.1", proxy.port), one_block("plc")))
        watch.on_good = once.good
        async with watching(watch):
            await watch.all_good()
            return await once.costs(6)


@pytest.mark.alone
async def test_a_spoilt_answer_on_tcp_costs_at_most_a_tenth_of_a_second() -> None:
    table = {**mutations.TCP, **mutations.TCP_ENDS}
    async with slave("answer 1", "values mixed") as devices:
        await measured(table, lambda name: tcp_costs(name, devices.port, table))


async def test_a_length_that_promises_more_than_the_answer_can_have_is_no_reason_to_wait() -> None:
    async with slave("answer 1", "values mixed") as devices:
        [name] = [name for name in mutations.TCP_WAITING if "promises" in name]
        judge({name: await tcp_costs(name, devices.port, mutations.TCP_WAITING)})


OF_OTHERS = ("somebody else's frame", "another function's exception")
"""Whole frames that answer nothing of ours: from the first on the line counts as shared."""


async def line_costs(name: str) -> list[float]:
    once = Once(mutations.RTU, name)
    async with (
        rtu_proxy(once, 1.0) as (proxy, port),
        slave("answer 1", "values mixed", tty_name=proxy.device_name),
    ):
        watch = Watch(one_link(line(port), one_block("plc")))
        watch.on_good = once.good
        async with watching(watch):
            await watch.all_good()
            return await once.costs(6)


@pytest.mark.alone
async def test_a_spoilt_answer_on_a_serial_line_costs_at_most_a_tenth_of_a_second() -> None:
    table = {name: make for name, make in mutations.RTU.items() if name not in OF_OTHERS}
    await measured(table, line_costs)


@pytest.mark.alone
@pytest.mark.parametrize("name", OF_OTHERS)
async def test_a_frame_of_others_costs_no_more_than_the_timeout(name: str) -> None:
    """On a shared line our own response may still come behind it, so that it is waited for."""
    costs = await line_costs(name)
    assert costs[-2] <= 1.1


# --- what takes time --------------------------------------------------------------------------------


async def test_answers_that_come_late_slowly_or_in_another_order_on_tcp() -> None:
    links, timeout_s, crowd = 12, 0.1, 3
    table = {**mutations.TCP_WAITING, "duplicates": mutations.TCP["duplicates"]}
    storms = [Storm(table, ("slow", n), 10**9, may_fail_twice=n % 3 == 0) for n in range(links)]
    async with AsyncExitStack() as stack:
        devices = await stack.enter_async_context(slave("answer 1-36", "values mixed"))
        watches = []
        for n, storm in enumerate(storms):
            proxy = await stack.enter_async_context(tcp_proxy(devices.port, storm, timeout_s))
            units = [
                unit_of(n * crowd + k + 1, scan_s=0.005, timeout_s=timeout_s) for k in range(1 + n % crowd)
            ]
            watches.append(Watch(one_link(TcpPlace("127.0.0.1", proxy.port), *units)))
        async with watching(*watches):
            began_s = time.monotonic()
            await asyncio.sleep(4.0 * SCALE)
            tell("slow TCP", storms, began_s)
            for storm in storms:
                storm.stop()
            for watch in watches:
                await watch.all_good(15.0)
    assert sum(storm.total for storm in storms) > 200 * SCALE


def similar_blocks(number: int, timeout_s: float) -> Unit:
    device = f"unit{number}"
    points = points_of(device, [*range(10), *range(1000, 1010), *range(5000, 5010)])
    return Unit(device, number, points, scan_s=0.01, timeout_s=timeout_s)


@pytest.mark.alone
async def test_late_answers_on_a_serial_line_are_never_taken_for_the_next_one() -> None:
    """Three blocks of one shape: only the time tells whose answer it is."""
    lines, timeout_s = 10, 0.08
    table = {**mutations.RTU_WAITING, "wrong bits": mutations.RTU["wrong bits"]}
    storms = [storm_on_rtu(table, ("late", n), 10**9, may_fail_twice=n % 3 == 0) for n in range(lines)]
    async with AsyncExitStack() as stack:
        watches = []
        for n, storm in enumerate(storms):
            proxy, place = await serial_line(stack, storm, timeout_s, is_over_tcp=n % 5 == 4)
            await stack.enter_async_context(slave("answer 1-3", "values mixed", tty_name=proxy.device_name))
            units = [similar_blocks(k + 1, timeout_s) for k in range(1 + n % 3)]
            watches.append(Watch(one_link(place, *units)))
            assert len(watches[-1].link.groups) == 3 * len(units)
        async with watching(*watches):
            began_s = time.monotonic()
            await asyncio.sleep(6.0 * SCALE)
            tell("slow RTU", storms, began_s)
            for storm in storms:
                storm.stop()
            for watch in watches:
                await watch.all_good(15.0)
    assert sum(storm.counts["late"] for storm in storms) > 80 * SCALE


async def test_one_of_several_connections_that_ends_is_opened_anew_and_costs_nothing() -> None:
    def nothing(_: Answer) -> None:
        return None

    async with (
        slave("answer 1", "values mixed") as devices,
        tcp_proxy(devices.port, nothing, 1.0) as proxy,
    ):
        unit = unit_of(1, scan_s=0.01, timeout_s=1.0)
        watch = Watch(one_link(TcpPlace("127.0.0.1", proxy.port), unit, connections=3))
        async with watching(watch):
            await watch.all_good()
            assert len(proxy.clients) == 3
            for how in (FIN, RST, FIN, RST):
                began_s = time.monotonic()
                for client in list(proxy.clients)[: 1 if how == FIN else 2]:
                    client.end(how)
                await eventually(lambda: len(proxy.clients) == 3, 3.0, "three connections again")
                await watch.all_good(2.0)
                times = [began_s, *(at_s for at_s in watch.good_at_s["unit1"] if at_s > began_s)]
                assert max(later - earlier for earlier, later in pairwise(times)) <= COSTS_AT_MOST_S
        assert watch.lost == {}


@pytest.mark.parametrize("is_over_tcp", [False, True], ids=["a serial port", "a serial device server"])
async def test_an_answer_that_the_session_before_asked_for_is_none_of_this_one(is_over_tcp: bool) -> None:
    """Devices take 40 ms to answer; sessions end at any moment, and the next one begins at once."""

    def nothing(_: Answer) -> None:
        return None

    rng = random.Random(5)
    async with AsyncExitStack() as stack:
        proxy, place = await serial_line(stack, nothing, 0.5, is_over_tcp=is_over_tcp)
        await stack.enter_async_context(
            slave("answer 1", "values mixed", "delay 1 40", tty_name=proxy.device_name)
        )
        watch = Watch(one_link(place, similar_blocks(1, 0.5)))
        for _ in range(int(25 * SCALE)):
            async with watching(watch):
                await eventually(lambda: watch.good_batches > 0, 2.0)
                await asyncio.sleep(rng.uniform(0.1, 0.2))


# --- the device says no, once -----------------------------------------------------------------------


async def test_an_exception_of_any_code_that_is_not_repeated_leaves_nothing_behind() -> None:
    async with asyncio.TaskGroup() as scenes:
        for kind in ("tcp", "rtu"):
            scenes.create_task(refused_once(kind))


async def refused_once(kind: str) -> None:
    """Answer with each exception once."""
    codes = list(range(256))

    def refuse(answer: Answer) -> Mutation | None:
        if answer.asked[1:3] != b"\0\x0a" or not codes or not is_ready:
            return None
        is_ready.pop()
        pdu_ = bytes((answer.pdu[0] | 0x80, codes.pop()))
        frame = mutations.rtu(answer.unit_id, pdu_)
        if kind == "tcp":
            frame = mutations.mbap(answer.transaction_id, answer.unit_id, pdu_)
        return Mutation("exception", Kind.REFUSAL, (mutations.Step(0.0, frame),))

    is_ready: list[bool] = []
    async with AsyncExitStack() as stack:
        place: Place
        if kind == "tcp":
            devices = await stack.enter_async_context(slave("answer 1", "values mixed"))
            proxy = await stack.enter_async_context(tcp_proxy(devices.port, refuse, 1.0))
            place = TcpPlace("127.0.0.1", proxy.port)
        else:
            serial, port = await stack.enter_async_context(rtu_proxy(refuse, 1.0))
            await stack.enter_async_context(slave("answer 1", "values mixed", tty_name=serial.device_name))
            place = line(port)
        points = points_of("plc", [*range(10, 20), *range(5000, 5010)])
        link = one_link(place, Unit("plc", 1, points, scan_s=0.01, timeout_s=1.0))
        planned = [group.name for group in link.groups]
        watch = Watch(link)
        async with watching(watch):
            await watch.all_good()
            while codes:
                code, before = codes[-1], watch.link.counters["exceptions"]
                is_ready.append(True)
                await eventually(lambda before=before: watch.link.counters["exceptions"] > before, 2.0)
                batches = watch.good_batches
                await eventually(
                    lambda batches=batches: watch.good_batches > batches + 2 and watch.is_good(),
                    2.0,
                    f"good values again after exception {code:02X}",
                )
            assert [group.name for group in link.groups] == planned
            assert watch.regrouped == []
            assert {event.is_online for _, event in watch.health} == {True}
        said = {reason for reason in watch.reasons if reason.startswith("device exception")}
        # 02 and 03 are asked again before anything is said, 05 and 06 mean later.
        expected = {f"device exception {code:02X}" for code in range(256) if code not in (2, 3, 5, 6)}
        assert said == expected
        assert set(watch.reasons) == expected


# --- the instruments themselves ---------------------------------------------------------------------


async def mbpoll(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        program("mbpoll", "mbpoll"), "-1", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(10):
        out, _ = await process.communicate()
    return out.decode()


async def test_mbpoll_reads_the_devices_through_the_proxies_when_nothing_is_spoilt() -> None:
    def nothing(_: Answer) -> None:
        return None

    expected = [str(mixed(3, "holding", 40 + n)) for n in range(3)]
    async with (
        slave("answer 3", "values mixed") as devices,
        tcp_proxy(devices.port, nothing, 1.0) as proxy,
        rtu_proxy(nothing, 1.0) as (serial, port),
        slave("answer 3", "values mixed", tty_name=serial.device_name),
    ):
        for place in (
            ["-p", str(proxy.port), "127.0.0.1"],
            ["-m", "rtu", "-b", "115200", "-P", "none", port],
        ):
            out = await mbpoll("-a", "3", "-t", "4", "-r", "41", "-c", "3", *place)
            found = [line.split("\t")[1].split()[0] for line in out.splitlines() if line.startswith("[")]
            assert found == expected, out


async def test_mbpoll_sees_what_the_devices_are_told_to_do() -> None:
    async with cable() as (ours, theirs), slave("answer 1-2", tty_name=theirs) as devices:
        read = ["-m", "rtu", "-b", "115200", "-P", "none", "-o", "0.3", "-t", "4"]
        await devices.tell("limit 4 3", "refuse 7 2", "busy 2 1 6")
        assert "Slave device or server is busy" in await mbpoll(*read, "-a", "2", "-r", "1", "-c", "1", ours)
        assert "[1]: \t0" in await mbpoll(*read, "-a", "2", "-r", "1", "-c", "4", ours)
        assert "Illegal data value" in await mbpoll(*read, "-a", "1", "-r", "1", "-c", "5", ours)
        assert "Illegal data address" in await mbpoll(*read, "-a", "1", "-r", "8", "-c", "1", ours)
        await devices.tell("silent 2")
        assert "timed out" in await mbpoll(*read, "-a", "2", "-r", "1", "-c", "1", ours)
        assert await devices.count() >= 5
