"""The CAN link under attack: frames of any size, any identifier, faults of the bus at any moment, in any order."""

import asyncio

import pytest
from conftest import eventually
from fake_bus import FakeBus, Running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples
from test_j1939_link import NODE, on_bus
from test_j1939_link import command as j1939_command
from test_j1939_link import status as j1939_status
from test_listening import describe, guarded, paged, point_of, status
from test_sending import all_points, command, routed

from fieldbus.canbus import link as link_module
from fieldbus.canbus.bus import ERROR, EXTENDED, OWN, REMOTE, BusStatus
from fieldbus.canbus.e2e import DataIdMode
from fieldbus.canbus.j1939 import fault_points
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.address import Name
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.messages import CanMessage, Request
from fieldbus.canbus.protection import E2E, Protection
from fieldbus.errors import LinkDownError
from fieldbus.model import Quality

OFF, BACK = 0x20000040, 0x20000100
ATTACK = settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


@pytest.fixture(autouse=True)
def no_error_is_swallowed():
    """Fail if anything was raised where only the event loop heard it."""
    heard = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            asyncio.BaseEventLoop, "default_exception_handler", lambda _loop, context: heard.append(context)
        )
        yield
    assert heard == []


def listened():
    """Return one message of each sort, and their identifiers."""
    floats = Message(
        "Floats", 0x130, False, 8, [Signal("F", 0, 32, is_float=True), Signal("G", 39, 16, False)]
    )
    sealed = Message("Sealed", 0x131, False, 8, [Signal("S", 16, 16)])
    fd = Message("Fd", 0x132, False, 64, [Signal("Last", 504, 8), Signal("First", 0, 64)], is_fd=True)
    dm1 = fault_points.message_of("DM1", j1939.ACTIVE_FAULTS, None)
    messages = [
        status(),
        paged(),
        guarded()[0],
        describe(floats),
        describe(
            sealed,
            guard=lambda: Protection(sealed, e2e=E2E("1", data_id=5, mode=DataIdMode.BOTH)),
        ),
        describe(fd),
        j1939_status(),
        j1939_status(name="Long", pgn=0xFEE3, length=39),
        CanMessage(
            "ecu",
            dm1,
            fault_points.points_of("ecu", dm1),
            decoder=fault_points.FaultDecoder,
            is_j1939=True,
        ),
        j1939_status(
            name="Asked",
            pgn=0xFEE4,
            request=Request(0, True, b"", False, scan_s=0.05, timeout_s=0.02, is_pgn=True),
        ),
        status("Polled", 0x140, request=Request(0x141, False, b"", False, scan_s=0.05, timeout_s=0.02)),
    ]
    ids = [
        0x100, 0x110, 0x120, 0x130, 0x131, 0x132, 0x140, 0x200,
        on_bus(j1939.ACTIVE_FAULTS, 3), on_bus(0xF004, 3), on_bus(0xFEE3, 3), on_bus(0xFEE4, 3),
        *(on_bus(pgn, 3, to, 6) for pgn in (
            j1939.TRANSPORT_DATA, j1939.TRANSPORT_MANAGEMENT, j1939.ACKNOWLEDGEMENT, j1939.REQUEST,
            j1939.ADDRESS_CLAIMED, 0) for to in (0x90, 0x91, 0xFF)),
    ]  # fmt: skip
    return messages, ids


MESSAGES_IDS = listened()[1]
payloads = st.one_of(
    st.binary(max_size=64),
    st.binary(min_size=8, max_size=8),
    st.just(bytes(1785)),
    st.binary(min_size=1785, max_size=1785),
    st.sampled_from(
        [b"\x10", b"\x20", b"\x10\xff\xff\xff\xff\xca\xfe\x00", b"\x20\xff\xff\xff\xff\xca\xfe\x00"]
    ),
)
identifiers = st.one_of(
    st.sampled_from(MESSAGES_IDS),
    st.sampled_from(MESSAGES_IDS).map(lambda can_id: can_id | REMOTE),
    st.integers(0, 0x7FF),
    st.integers(0, 0x1FFFFFFF).map(lambda number: number | EXTENDED),
    # Error frames, but none that puts the bus off: that has tests of its own.
    st.integers(0, 0x1FF).map(lambda number: (number & ~0x40) | ERROR),
)
frames = st.lists(st.tuples(identifiers, payloads, st.sampled_from([0, OWN, 1, 3])), max_size=30)


async def settled(running):
    for _ in range(4):
        await asyncio.sleep(0)
    assert not running.task.done()


@ATTACK
@given(frames)
def test_no_frame_of_any_size_raises_or_ends_the_link(monkeypatch, sent):
    async def attack():
        messages, _ = listened()
        sending = command()
        async with Running(
            monkeypatch,
            [*messages, sending, j1939_command()],
            [*routed(sending)],
            node=NODE,
        ) as running:
            running.link.refresh()
            for can_id, data, flags in sent:
                running.bus.come(can_id, data, flags)
            await settled(running)
            running.link.refresh()
            for batch in running.batches:
                assert len(batch.values) == len(batch.group.points)
                for index in range(len(batch.values)):
                    sample = batch.sample(index)
                    assert (sample.value is None) == (sample.quality is Quality.BAD)
            # It still listens.
            running.bus.come(0x100, b"\x2a\x2b")
            await settled(running)
            assert running.latest("Status.A") == (0x2A, None)

    asyncio.run(attack())


@pytest.mark.parametrize("can_id", [*MESSAGES_IDS, OFF & ~0x40, 0x20000004, 0x200001FF])
async def test_every_length_of_a_frame_is_taken(monkeypatch, can_id):
    messages, _ = listened()
    async with Running(monkeypatch, messages, node=NODE) as running:
        running.link.refresh()
        for length in (*range(65), 1785):
            for byte in (0x00, 0x10, 0x20, 0xFF):
                running.bus.come(can_id, bytes([byte]) * length)
        await settled(running)
        running.link.refresh()
        running.bus.come(0x100, b"\x01\x02")
        await settled(running)
        assert running.latest("Status.B") == (2, None)


async def test_strange_identifiers_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(link_module, "_MAX_KNOWN_IDS", 1000)
    messages, _ = listened()
    async with Running(monkeypatch, messages, node=NODE) as running:
        for start in range(0, 10_000, 500):
            for number in range(start, start + 500):
                running.bus.come(EXTENDED | (number * 53_687) & 0x1FFFFFFF, b"\1\2\3\4\5\6\7\x08")
            await settled(running)
            assert len(running.link._handlers) <= 1000
        running.bus.come(0x100, b"\x01\x02")
        await settled(running)
        assert running.latest("Status.A") == (1, None)
        assert len(running.link._sources) <= len(messages)
        assert running.link.counters["rx_frames"] == 10_001


async def test_ten_thousand_strangers_leave_no_more_than_their_identifiers(monkeypatch):
    messages, _ = listened()
    async with Running(monkeypatch, messages) as running:
        for number in range(10_000):
            running.bus.come(EXTENDED | number * 53_687 & 0x1FFFFFFF, bytes(8))
            if not number % 500:
                await settled(running)
        await asyncio.sleep(0.01)
        assert len(running.link._handlers) <= 10_001
        assert len(running.link._node._reassembler) == 0
        wanted = [handler for handler in running.link._handlers.values() if handler is not None]
        assert len(wanted) < 100


@pytest.mark.parametrize("size", [0, 1, 8, 1786, 0x7FFF, 0xFFFF])
@pytest.mark.parametrize("control", [0x10, 0x20])
async def test_a_message_in_packets_of_an_absurd_size_costs_nothing(monkeypatch, control, size):
    message = j1939_command()
    messages = [j1939_status(name="Long", pgn=0xFEE3, length=39), message]
    async with Running(monkeypatch, messages, message.points.values(), node=NODE) as running:
        await asyncio.sleep(0.3)
        running.bus.taken()
        for packets in (0, 1, size // 7 & 0xFF, 255):
            head = bytes([control, size & 0xFF, size >> 8, packets, 0xFF]) + (0xFEE3).to_bytes(3, "little")
            to = 0x90 if control == 0x10 else 0xFF
            running.bus.come(on_bus(j1939.TRANSPORT_MANAGEMENT, 3, to, 7), head)
            for number in (0, 1, 2, 255):
                running.bus.come(on_bus(j1939.TRANSPORT_DATA, 3, to, 7), bytes([number]) + bytes(7))
        await settled(running)
        assert len(running.link._node._reassembler) == 0
        assert running.link._node._responder.due_s is None
        answers = [data[0] for _, data in running.bus.taken()]
        assert set(answers) <= {0xFF}  # refused, if it was meant for us
        assert len(answers) == (4 if control == 0x10 else 0)
        assert running.batches == []


# --- a bus that fails


class Brittle(FakeBus):
    """Loses its interface at one kind of call."""

    def __init__(self, call, **more):
        super().__init__(**more)
        self._call = call
        self.is_armed = True

    def _break(self, call):
        if call == self._call and self.is_armed:
            raise LinkDownError(f"network is down at {call}")

    def start(self, ready, lost):
        self._break("start")
        super().start(ready, lost)

    def drain(self, limit):
        self._break("drain")
        return super().drain(limit)

    def send(self, can_id, data, flags=0):
        self._break("send")
        return super().send(can_id, data, flags)

    def select(self, filters):
        self._break("select")
        super().select(filters)

    def repeat(self, can_id, frames, period_s, flags=0):
        self._break("repeat")
        cyclic = super().repeat(can_id, frames, period_s, flags)
        for name in ("update", "keep_alive", "stop"):
            self._arm(cyclic, name)
        return cyclic

    def _arm(self, cyclic, name):
        act = getattr(cyclic, name)

        def call(*arguments, **more):
            self._break(name)
            return act(*arguments, **more)

        setattr(cyclic, name, call)


@pytest.mark.parametrize("call", ["start", "drain", "send", "select", "repeat", "update", "keep_alive"])
async def test_a_bus_that_is_gone_at_any_call_is_a_lost_link_and_comes_back(monkeypatch, call):
    monkeypatch.setattr("fieldbus.canbus.sending._KEEP_ALIVE_S", 0.02)
    cyclic, event = command(cycle_s=0.05), describe(command().message, device="other")
    event = describe(Message("Event", 0x210, False, 2, event.message.signals))
    bus = Brittle(call, has_clock=True)
    running = Running(monkeypatch, [status(), cyclic, event], [*routed(cyclic), *routed(event)], bus=bus)

    async def use():
        for value in (1, 2, 3):
            running.route(point_of(cyclic, "X"), value)
            running.route(point_of(event, "X"), value)
            bus.come(0x100, bytes([value, 0]))
            await asyncio.sleep(0.02)

    await running.begin()
    await use()
    with pytest.raises(LinkDownError, match=f"network is down at {call}"):
        await asyncio.wait_for(running.task, 2)
    await running.link.close()
    bus.is_armed = False
    bus.taken()
    await running.begin()
    await use()
    assert running.latest("Status.A") == (3, None)
    assert {can_id for can_id, _ in bus.taken()} == {0x200, 0x210}
    await running.end()


async def test_an_end_that_fails_is_an_end_too(monkeypatch):
    message = command(cycle_s=0.05)
    bus = Brittle("stop", has_clock=True)
    async with Running(monkeypatch, [message], routed(message), bus=bus) as running:
        running.route(point_of(message, "X"), 1)
        running.route(point_of(message, "X"), None)
        running.route(point_of(message, "X"), 2)
        assert len(bus.cyclics) == 2
        assert not running.task.done()


async def test_a_bus_without_room_refuses_and_never_grows(monkeypatch):
    message = j1939_command()
    asked = [
        j1939_status(
            name=f"Asked{n}",
            pgn=0xFE00 + n,
            request=Request(0, True, b"", False, scan_s=0.005, timeout_s=0.002, is_pgn=True),
        )
        for n in range(20)
    ]
    async with Running(monkeypatch, [message, *asked], message.points.values(), node=NODE) as running:
        await asyncio.sleep(0.3)
        running.bus.room = 0
        for number in range(3000):
            # Each is answered with an Abort of its own.
            head = b"\x10\xff\xff\xff\xff" + (0xF000 + number).to_bytes(3, "little")
            running.bus.come(on_bus(j1939.TRANSPORT_MANAGEMENT, 3, 0x90, 7), head)
            running.route(point_of(message, "Demand"), number)
            if not number % 300:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        assert len(running.link._sender._queue) <= 512
        assert running.link.counters["tx_dropped"] > 0
        await eventually(lambda: not running.link._sender._queue or len(running.link._sender._queue) < 60)
        running.bus.room = None
        running.bus.taken()
        running.route(point_of(message, "Demand"), 7)
        await eventually(
            lambda: (on_bus(0, 0x90, 0), b"\xff\x07\x00" + b"\xff" * 5) in running.bus.sent, what="the newest"
        )


async def test_a_hundred_sessions_leave_nothing_behind(monkeypatch):
    cyclic = command(cycle_s=0.05)
    sending = j1939_command(cycle_s=0.05)
    messages, _ = listened()
    bus = FakeBus(has_clock=True)
    targets = [*routed(cyclic), *all_points(sending)]
    running = Running(monkeypatch, [*messages, cyclic, sending], targets, bus=bus, node=NODE)
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    for turn in range(100):
        running.batches.clear()
        await running.begin()
        # Nothing of the session before: neither values …
        assert all(batch.flaws for batch in running.batches)
        assert running.link.gauge_values()["bus_state"] == 0
        # … nor frames.
        assert all(
            j1939.pgn_of(can_id) in (j1939.REQUEST, j1939.ADDRESS_CLAIMED)
            for can_id, _ in bus.taken()
            if can_id & EXTENDED
        )
        assert [item for item in bus.cyclics if not item.is_over] == []
        bus.come(0x100, bytes([turn, 1]))
        running.route(point_of(cyclic, "X"), turn)
        assert (0x200, bytes([turn, 9])) in bus.taken()
        if turn % 3 == 0:
            running.link._health.heard(OFF, bytes(8))
        if turn % 5 == 0:
            running.link.refresh()
        await settled(running)
        if turn % 2:
            bus.lose()
            with pytest.raises(LinkDownError):
                await running.task
        await running.end()
        assert asyncio.all_tasks() == before
        assert all(item.is_over for item in bus.cyclics)
        assert running.link._schedule._heap == []
        assert running.link._schedule._timer is None
        assert running.link._sender._queue == {}
        assert set(running.link.gauge_values().values()) == {None}
        bus.cyclics.clear()
        bus.taken()
    timers = [item for item in getattr(loop, "_scheduled", ()) if not item.cancelled()]
    assert len(timers) < 5


# --- error frames


async def test_a_storm_of_error_frames_is_counted_and_holds_nothing_up(monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.health.FIRST_RESTART_S", 0.01)
    message = command(cycle_s=0.01)
    async with Running(monkeypatch, [status(), message], routed(message)) as running:
        running.route(point_of(message, "X"), 1)
        for number in range(5000):
            running.bus.come(ERROR | 0x8C, bytes([number & 0xFF, 0, number & 0x7F, 0, 0, 0, 130, 0]))
            if not number % 500:
                running.bus.come(0x100, bytes([number // 500, 0]))
        await asyncio.sleep(0.05)
        assert running.link.counters["error_frames"] == 5000
        assert running.link.counters["rx_frames"] == 10
        assert running.latest("Status.A") == (9, None)
        assert len(running.notices) <= 3
        running.bus.taken()
        for _ in range(500):
            running.bus.come(OFF, bytes(8))
            running.bus.come(BACK, bytes(8))
        await asyncio.sleep(0.05)
        assert running.link.counters["bus_offs"] == 500
        assert running.link.gauge_values()["bus_state"] == 0
        assert len(running.notices) <= 6  # said, and not five hundred times
        assert len(running.link._schedule._heap) < 520
        assert not running.task.done()
        await eventually(lambda: len(running.link._schedule._heap) < 10)
        assert running.bus.restarts <= 1


# --- what is on the wire is never a value whose source is bad, but its safe value

SAFE = 77
ops = st.lists(
    st.one_of(
        st.tuples(st.just("good"), st.sampled_from("XYZ"), st.integers(0, 60)),
        st.tuples(st.just("bad"), st.sampled_from("XYZ")),
        st.tuples(st.just("beyond"), st.sampled_from("XYZ")),
        st.tuples(st.sampled_from(["off", "back", "full", "room", "wait", "lose"])),
    ),
    max_size=40,
)


@settings(ATTACK, max_examples=examples(120))
@given(ops, st.booleans(), st.booleans(), st.booleans())
def test_what_is_sent_is_good_or_safe_and_nothing_is_sent_while_the_bus_is_off(
    monkeypatch, steps, has_clock, has_cycle, has_budget
):
    async def attack():
        signals = [Signal(name, 8 * index, 8) for index, name in enumerate("XYZ")]
        layout = Message("Command", 0x200, False, 3, signals)
        # X has a safe value, Y has none, Z says that it is not available.
        message = describe(
            layout, safe={signals[0]: SAFE, signals[2]: None}, cycle_s=0.002 if has_cycle else None
        )
        bus = FakeBus(has_clock=has_clock)
        running = Running(
            monkeypatch,
            [message],
            all_points(message),
            bus=bus,
            bits_per_s=200_000 if has_budget else None,
        )
        points = {name: point_of(message, name) for name in "XYZ"}
        now = dict.fromkeys("XYZ")  # value, "bad", or None for none yet
        is_off = False
        await running.begin()

        def check():
            sent = bus.taken()
            if is_off:
                assert sent == []
                assert all(item.is_over for item in bus.cyclics)
            for _, data in sent:
                allowed(data)
            for item in bus.cyclics:
                if not item.is_over:
                    allowed(item.frames[0])

        def allowed(data):
            assert any(value is not None for value in now.values())
            for byte, name, instead in zip(data, "XYZ", (SAFE, None, 0xFF), strict=True):
                # What was not heard yet is like what is bad.
                wanted = instead if now[name] in ("bad", None) else now[name]
                assert byte == wanted, (name, now, data.hex())

        try:
            for step in steps:
                bus.taken()
                if step[0] == "good":
                    now[step[1]] = step[2]
                    running.route(points[step[1]], step[2])
                elif step[0] == "bad":
                    now[step[1]] = "bad"
                    running.route(points[step[1]], None)
                elif step[0] == "beyond":
                    now[step[1]] = "bad"  # what cannot be said is not replaced by what was said before
                    running.route(points[step[1]], 1000)
                elif step[0] == "off" and not is_off:
                    is_off = True
                    running.link._health.heard(OFF, bytes(8))
                elif step[0] == "back" and is_off:
                    is_off = False
                    running.link._health.heard(BACK, bytes(8))
                elif step[0] in ("full", "room"):
                    bus.room = 0 if step[0] == "full" else None
                elif step[0] == "wait":
                    bus.taken()
                    await asyncio.sleep(0.004)
                elif step[0] == "lose":
                    bus.lose()
                    await asyncio.gather(running.task, return_exceptions=True)
                    await running.link.close()
                    bus.taken()
                    bus.cyclics.clear()
                    now = dict.fromkeys("XYZ")
                    is_off = False
                    await running.begin()
                    assert bus.taken() == []
                check()
        finally:
            await running.end()
        assert all(item.is_over for item in bus.cyclics)

    asyncio.run(attack())


async def test_cyclic_messages_of_a_node_that_loses_its_address_end_with_it(monkeypatch):
    first, second = j1939_command(cycle_s=0.01), j1939_status(name="Own", pgn=0xFF10, cycle_s=0.01)
    bus = FakeBus(has_clock=True)
    targets = [*first.points.values(), *second.points.values()]
    async with Running(monkeypatch, [first, second], targets, bus=bus, node=NODE) as running:
        running.route(point_of(first, "Demand"), 1)
        running.route(point_of(second, "Speed"), 2)
        await eventually(lambda: len(bus.cyclics) == 2)
        addresses = []
        for turn in range(10):
            address = running.link._node.address
            addresses.append(address)
            bus.taken()
            bus.come(on_bus(j1939.ADDRESS_CLAIMED, address, 255, 6), Name(identity_number=turn).to_bytes())
            await settled(running)
            assert all(item.is_over for item in bus.cyclics)
            sent = bus.taken()
            assert {j1939.pgn_of(can_id) for can_id, _ in sent} == {j1939.ADDRESS_CLAIMED}
            running.route(point_of(first, "Demand"), 10 + turn)  # meanwhile a value changes
            assert bus.taken() == []
            await eventually(lambda: any(not item.is_over for item in bus.cyclics))
            living = [item for item in bus.cyclics if not item.is_over]
            assert len(living) == 2
            assert {item.can_id & 0xFF for item in living} == {running.link._node.address}
            demand = next(item for item in living if j1939.pgn_of(item.can_id) == 0)
            assert demand.frames == [b"\xff" + (10 + turn).to_bytes(2, "little") + b"\xff" * 5]
            if turn == 3:
                break
        assert len(set(addresses)) == len(addresses)


async def test_who_finds_its_twin_on_the_bus_is_still(monkeypatch):
    message = j1939_command(cycle_s=0.01)
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], message.points.values(), bus=bus, node=NODE) as running:
        running.route(point_of(message, "Demand"), 1)
        await eventually(lambda: bus.cyclics)
        bus.taken()
        for _ in range(50):
            bus.come(on_bus(j1939.ADDRESS_CLAIMED, 0x90, 255, 6), NODE.name.to_bytes())
        await asyncio.sleep(0.05)
        assert bus.cyclics[0].is_over
        assert bus.taken() == []
        assert sum("NAME" in text for text in running.notices) == 1


async def test_a_refusal_of_what_was_not_asked_changes_nothing(monkeypatch):
    request = Request(0, True, b"", False, scan_s=10.0, timeout_s=0.2, is_pgn=True)
    asked, told = j1939_status(7, request=request), j1939_status(7, name="Told", pgn=0xFEE5)
    async with Running(monkeypatch, [asked, told], node=NODE) as running:
        await eventually(lambda: j1939.request(0xF004, 7, 0x90) in running.bus.sent)
        running.bus.come(on_bus(0xF004, 7), b"\x05\x00" + b"\xff" * 6)
        running.bus.come(on_bus(0xFEE5, 7), b"\x06\x00" + b"\xff" * 6)
        await eventually(lambda: running.latest("Told.Speed") == (6, None))
        running.batches.clear()
        for pgn in (0xF004, 0xFEE5, 0xFEE6, 0xFFFFFF):
            for control in (0, 1, 2, 3, 4, 255):
                for addressee in (0x90, 0x91, 0xFF):
                    data = bytes([control, 0xFF, 0xFF, 0xFF, addressee]) + pgn.to_bytes(3, "little")
                    for source in (7, 8):
                        for to in (0x90, 0x91, 0xFF):
                            running.bus.come(on_bus(j1939.ACKNOWLEDGEMENT, source, to, 6), data)
        await asyncio.sleep(0.3)
        assert running.batches == []


async def test_a_refusal_by_another_node_or_for_another_node_is_not_ours(monkeypatch):
    request = Request(0, True, b"", False, scan_s=10.0, timeout_s=5.0, is_pgn=True)
    async with Running(monkeypatch, [j1939_status(7, request=request)], node=NODE) as running:
        await eventually(lambda: j1939.request(0xF004, 7, 0x90) in running.bus.sent)
        refusal = bytes([1, 0xFF, 0xFF, 0xFF, 0x90]) + (0xF004).to_bytes(3, "little")
        running.bus.come(on_bus(j1939.ACKNOWLEDGEMENT, 8, 255, 6), refusal)
        running.bus.come(on_bus(j1939.ACKNOWLEDGEMENT, 7, 255, 6), refusal[:4] + b"\x91" + refusal[5:])
        await settled(running)
        assert running.batches == []
        running.bus.come(on_bus(j1939.ACKNOWLEDGEMENT, 7, 255, 6), refusal)
        await settled(running)
        assert running.latest("EEC1.Speed") == (None, "not available: refused by the node")


async def test_a_bus_that_is_off_when_the_link_opens_gives_nothing_until_it_is_back(monkeypatch):
    message = command(cycle_s=0.01)
    bus = FakeBus(has_clock=True)
    bus.now = BusStatus(state=3)
    async with Running(monkeypatch, [status(), message], routed(message), bus=bus) as running:
        assert running.latest("Status.A") == (None, "bus down")
        assert len(running.route(point_of(message, "X"), 1)) == 1
        await asyncio.sleep(0.05)
        assert bus.sent == []
        bus.now = BusStatus(state=0)
        running.link._health._look(asyncio.get_running_loop().time())
        assert bus.sent == [(0x200, b"\x01\x09")]


@pytest.mark.parametrize("end", ["bad", "off"])
async def test_a_frame_that_waits_for_room_does_not_outlive_its_source_or_the_bus(monkeypatch, end):
    message = command()
    async with Running(monkeypatch, [message], routed(message)) as running:
        running.bus.room = 0
        running.route(point_of(message, "X"), 5)
        if end == "bad":
            running.route(point_of(message, "X"), None)
        else:
            running.link._health.heard(OFF, bytes(8))
            running.link._health.heard(BACK, bytes(8))
        running.bus.room = None
        await asyncio.sleep(0.05)
        assert running.bus.sent == []
