"""What goes out: safe values, room, the budget, the bus's own clock."""

import asyncio

import pytest
from conftest import eventually
from fake_bus import FakeBus, Running
from test_listening import describe, point_of

from fieldbus.canbus import sending
from fieldbus.canbus.bits import frame_bits
from fieldbus.canbus.bus import BusStatus
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.outgoing import Budget
from fieldbus.canbus.protection import Checksum, Counter, Protection
from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.link import WriteOutcome


def command(safe=None, **more):
    signals = [Signal("X", 0, 8), Signal("Y", 8, 8, raw_initial=9)]
    message = Message("Command", 0x200, False, 2, signals)
    chosen = {signal: safe[signal.name] for signal in signals if safe and signal.name in safe}
    return describe(message, safe=chosen, **more)


def routed(message):
    """Return what routes write: X, and not Y."""
    return [point_of(message, "X")]


def all_points(message):
    return list(message.points.values())


async def test_a_signal_whose_source_is_bad_has_its_safe_value(monkeypatch):
    message = command({"X": 0})
    async with Running(monkeypatch, [message], routed(message)) as running:
        x = point_of(message, "X")
        running.route(x, 50)
        running.route(x, None)
        running.route(x, 51)
        assert running.bus.taken() == [(0x200, b"\x32\x09"), (0x200, b"\x00\x09"), (0x200, b"\x33\x09")]


async def test_a_signal_can_say_that_it_is_not_available(monkeypatch):
    message = command({"X": None})
    async with Running(monkeypatch, [message], routed(message)) as running:
        running.route(point_of(message, "X"), 50)
        running.route(point_of(message, "X"), None)
        assert running.bus.taken() == [(0x200, b"\x32\x09"), (0x200, b"\xff\x09")]


async def test_a_cyclic_message_with_safe_values_for_all_says_them_until_there_are_others(monkeypatch):
    message = command({"X": 1, "Y": 2}, cycle_s=0.02)
    async with Running(monkeypatch, [message], all_points(message)) as running:
        await eventually(lambda: len(running.bus.sent) >= 2)
        assert set(running.bus.taken()) == {(0x200, b"\x01\x02")}
        running.route(point_of(message, "X"), 50)
        await eventually(lambda: running.bus.sent)
        assert running.bus.taken()[0] == (0x200, b"\x32\x02")


@pytest.mark.parametrize(("safe", "cycle_s"), [({"X": 1}, 0.01), ({"X": 1, "Y": 2}, None)])
async def test_other_messages_are_not_sent_before_there_was_a_value(monkeypatch, safe, cycle_s):
    message = command(safe, cycle_s=cycle_s)
    async with Running(monkeypatch, [message], all_points(message)) as running:
        running.route(point_of(message, "X"), None)
        await asyncio.sleep(0.05)
        assert running.bus.taken() == []


async def test_what_the_bus_repeats_is_updated_and_ended(monkeypatch):
    monkeypatch.setattr(sending, "_KEEP_ALIVE_S", 0.05)
    message = command(cycle_s=0.1)
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], routed(message), bus=bus) as running:
        x = point_of(message, "X")
        running.route(x, 1)
        (cyclic,) = bus.cyclics
        assert (cyclic.frames, cyclic.period_s) == ([b"\x01\x09"], 0.1)
        running.route(x, 1)
        assert cyclic.updates == 0
        running.route(x, 2)
        assert (cyclic.updates, cyclic.frames) == (1, [b"\x02\x09"])
        await eventually(lambda: cyclic.alive >= 2)
        running.route(x, None)
        assert cyclic.is_over
        running.route(x, 3)
        assert bus.cyclics[-1] is not cyclic
        assert bus.cyclics[-1].frames == [b"\x03\x09"]
    assert bus.cyclics[-1].is_over


async def test_a_whole_turn_of_the_counter_is_handed_to_the_bus(monkeypatch):
    signals = [Signal("X", 0, 8), Signal("Alive", 8, 4), Signal("Crc", 16, 8)]
    description = Message("Safe", 0x201, False, 3, signals)

    def make():
        return Protection(description, Checksum("Crc", "crc8-j1850"), Counter("Alive"))

    message = describe(description, cycle_s=0.1, guard=make)
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], [point_of(message, "X")], bus=bus) as running:
        running.route(point_of(message, "X"), 7)
        frames = bus.cyclics[0].frames
        assert [frame[1] for frame in frames] == list(range(16))
        checker = make()
        assert [checker.check(frame) for frame in [*frames, *frames]] == [None] * 32
        running.route(point_of(message, "X"), 8)
        assert [frame[:2] for frame in bus.cyclics[0].frames] == [bytes([8, count]) for count in range(16)]


async def test_without_a_clock_of_the_bus_counters_still_count(monkeypatch):
    signals = [Signal("X", 0, 8), Signal("Alive", 8, 4)]
    description = Message("Counted", 0x202, False, 2, signals)
    message = describe(
        description, cycle_s=0.02, guard=lambda: Protection(description, None, Counter("Alive"))
    )
    async with Running(monkeypatch, [message], [point_of(message, "X")]) as running:
        running.route(point_of(message, "X"), 7)
        await asyncio.sleep(0.25)
        counts = [data[1] for _, data in running.bus.taken()]
        assert len(counts) > 5
        assert counts == [number % 16 for number in range(len(counts))]


async def test_what_takes_too_many_frames_to_repeat_is_sent_by_our_own_clock(monkeypatch):
    signals = [Signal("X", 0, 8), Signal("Alive", 8, 12)]
    description = Message("Counted", 0x202, False, 3, signals)
    message = describe(
        description, cycle_s=0.02, guard=lambda: Protection(description, None, Counter("Alive"))
    )
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], [point_of(message, "X")], bus=bus) as running:
        running.route(point_of(message, "X"), 7)
        await eventually(lambda: len(bus.sent) >= 3)
        assert bus.cyclics == []
        assert [data[:2] for _, data in bus.sent[:3]] == [b"\x07\x00", b"\x07\x01", b"\x07\x02"]


async def test_however_many_frames_wait_one_is_tried_at_a_time(monkeypatch):
    monkeypatch.setattr(sending, "QUEUE_AGE_S", 60.0)
    layouts = [Message(f"M{n}", 0x300 + n, False, 1, [Signal("S", 0, 8)]) for n in range(8)]
    messages = [describe(layout) for layout in layouts]
    points = [point_of(message, "S") for message in messages]
    async with Running(monkeypatch, messages, points) as running:
        running.bus.room = 0
        for point in points:
            running.route(point, 1)
        tried, send = [], running.bus.send

        def count(*arguments):
            tried.append(arguments)
            return send(*arguments)

        running.bus.send = count
        began_s = running.link._clock.monotonic_s()
        await eventually(lambda: len(tried) >= 10)
        took_s = running.link._clock.monotonic_s() - began_s
        assert len(tried) <= took_s / sending._RETRY_S + 3
        running.bus.room = None
        await eventually(lambda: len(running.bus.sent) == 8)
        assert [can_id for can_id, _ in running.bus.taken()] == [0x300 + n for n in range(8)]


async def test_a_frame_without_room_waits_and_the_newest_takes_its_place(monkeypatch):
    message = command()
    async with Running(monkeypatch, [message], routed(message)) as running:
        running.bus.room = 0
        x = point_of(message, "X")
        for value in (1, 2, 3):
            running.route(x, value)
        assert running.bus.taken() == []
        running.bus.room = None
        await eventually(lambda: running.bus.sent)
        assert running.bus.taken() == [(0x200, b"\x03\x09")]
        assert running.link.counters["tx_dropped"] == 0


async def test_a_frame_that_waits_too_long_is_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(sending, "QUEUE_AGE_S", 0.05)
    message = command()
    async with Running(monkeypatch, [message], routed(message)) as running:
        running.bus.room = 0
        running.route(point_of(message, "X"), 1)
        await eventually(lambda: running.link.counters["tx_dropped"] == 1)
        running.bus.room = None
        await asyncio.sleep(0.05)
        assert running.bus.taken() == []


async def test_the_budget_is_kept_and_what_is_sent_at_last_is_the_newest(monkeypatch):
    message = command()
    bits = frame_bits(2, is_extended=False)
    async with Running(monkeypatch, [message], routed(message), bits_per_s=bits * 50) as running:
        x = point_of(message, "X")
        for value in range(100):
            running.route(x, value)
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        sent = running.bus.taken()
        assert 15 <= len(sent) <= 50  # 0.6 s at 50 frames a second, and a burst of five
        assert sent[-1] == (0x200, b"\x63\x09")
        assert running.link.counters["tx_delayed"] > 0


async def test_while_the_bus_is_off_nothing_is_sent_and_afterwards_what_holds_then(monkeypatch):
    message = command(cycle_s=0.05)
    event = command()
    event = describe(Message("Event", 0x210, False, 2, event.message.signals))
    bus = FakeBus(has_clock=True)
    targets = [*routed(message), *routed(event)]
    async with Running(monkeypatch, [message, event], targets, bus=bus) as running:
        running.route(point_of(message, "X"), 1)
        running.route(point_of(event, "X"), 1)
        bus.taken()
        running.link._health.heard(0x20000040, bytes(8))
        assert bus.cyclics[0].is_over
        assert len(running.route(point_of(message, "X"), 2)) == 1  # handed back: it was not sent
        assert len(running.route(point_of(event, "X"), 2)) == 1
        await asyncio.sleep(0.1)
        assert bus.taken() == []
        running.link._health.heard(0x20000100, bytes(8))
        assert bus.taken() == [(0x200, b"\x02\x09")]
        running.route(point_of(event, "X"), 2)  # the next fresh sample, though it is like the one before
        assert bus.taken() == [(0x210, b"\x02\x09")]


async def test_a_source_that_goes_bad_while_the_bus_is_off_is_not_sent_afterwards(monkeypatch):
    message = command(cycle_s=0.05)
    async with Running(monkeypatch, [message], routed(message)) as running:
        running.route(point_of(message, "X"), 1)
        running.link._health.heard(0x20000040, bytes(8))
        running.route(point_of(message, "X"), None)
        running.bus.taken()
        running.link._health.heard(0x20000100, bytes(8))
        await asyncio.sleep(0.15)
        assert running.bus.taken() == []


async def test_a_bus_that_is_gone_while_we_send_is_a_lost_link(monkeypatch):
    message = command()
    running = Running(monkeypatch, [message], routed(message))
    await running.begin()
    running.bus.is_gone = True
    running.route(point_of(message, "X"), 1)
    with pytest.raises(LinkDownError, match="network is down"):
        await asyncio.wait_for(running.task, 2)
    await running.link.close()


@pytest.mark.parametrize("has_clock", [True, False])
async def test_a_frame_that_this_bus_can_never_send_is_said_and_costs_nothing_else(monkeypatch, has_clock):
    message = command(cycle_s=0.02)
    bus = FakeBus(has_clock=has_clock)

    def refuse(*_args):
        raise RefusedError("the interface has no CAN FD")

    bus.send = bus.repeat = refuse
    async with Running(monkeypatch, [message], routed(message), bus=bus) as running:
        running.route(point_of(message, "X"), 1)
        await asyncio.sleep(0.1)
        assert not running.task.done()
        assert running.notices == ["0x200 cannot be sent: the interface has no CAN FD"]
        assert running.link.counters["tx_dropped"] > 0


async def test_nothing_but_routed_messages_is_ever_sent(monkeypatch):
    messages = [
        command(cycle_s=0.01),
        *(
            describe(Message(f"M{n}", 0x300 + n, False, 1, [Signal("S", 0, 8)]), cycle_s=0.01)
            for n in range(5)
        ),
    ]
    async with Running(monkeypatch, messages, [point_of(messages[0], "X")]) as running:
        for message in messages:
            for point in message.points.values():
                running.route(point, 1)
        await asyncio.sleep(0.1)
        assert {can_id for can_id, _ in running.bus.taken()} == {0x200}


async def test_a_state_that_the_controller_tells_counts_too(monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.health.PERIOD_S", 0.03)
    message = command(cycle_s=0.02)
    async with Running(monkeypatch, [message], routed(message)) as running:
        running.route(point_of(message, "X"), 1)
        running.bus.now = BusStatus(state=3)
        await eventually(lambda: running.link.gauge_values()["bus_state"] == 3)
        running.bus.taken()
        await asyncio.sleep(0.1)
        assert running.bus.taken() == []


async def test_a_write_that_the_bus_refuses_is_not_written(monkeypatch):
    message = command()
    async with Running(monkeypatch, [message], routed(message)) as running:

        def refuse(*_args):
            raise RefusedError("the interface has no CAN FD")

        running.bus.send = refuse
        (result,) = await running.link.write({point_of(message, "X"): 1})
        assert (result.outcome, result.reason) == (WriteOutcome.FAILED, "the interface has no CAN FD")


async def test_a_write_is_asked_again_when_there_is_room_and_what_is_refused_is_never_sent(monkeypatch):
    message = command({"Y": 9})
    async with Running(monkeypatch, [message], all_points(message)) as running:
        x, y = all_points(message)
        running.route(y, 7)
        running.route(x, 1)
        running.bus.taken()
        running.bus.room = 0
        refusals = []
        running.link.still_allowed = lambda point, value: refusals[0] if refusals else None
        writing = asyncio.create_task(running.link.write({x: 5}))
        await asyncio.sleep(0.02)
        refusals.append((WriteOutcome.REFUSED, "interlock"))
        (result,) = await writing
        assert (result.outcome, result.reason) == (WriteOutcome.REFUSED, "interlock")
        running.bus.room = None
        running.route(y, 8)  # the same message: it does not carry the value that was refused
        assert running.bus.taken() == [(0x200, b"\x01\x08")]


async def test_a_value_that_is_refused_at_once_is_in_no_later_frame(monkeypatch):
    message = command({"Y": 9})
    async with Running(monkeypatch, [message], all_points(message)) as running:
        x, y = all_points(message)
        running.route(x, 1)
        running.bus.taken()
        running.link.still_allowed = lambda point, value: (WriteOutcome.REFUSED, "interlock")
        (result,) = await running.link.write({x: 5})
        assert (result.outcome, result.reason) == (WriteOutcome.REFUSED, "interlock")
        running.route(y, 8)
        assert running.bus.taken() == [(0x200, b"\x01\x08")]


@pytest.mark.parametrize("left_s", [-1.0, 0.03])
async def test_a_write_whose_time_is_over_before_there_is_room_is_not_sent(monkeypatch, left_s):
    message = command()
    async with Running(monkeypatch, [message], routed(message)) as running:
        running.bus.room = 0
        until_s = running.link._clock.monotonic_s() + left_s
        (result,) = await running.link.write({point_of(message, "X"): 5}, until_s=until_s)
        assert (result.outcome, result.reason) == (WriteOutcome.EXPIRED, "its turn came too late")
        running.bus.room = None
        await asyncio.sleep(0.05)
        assert running.bus.taken() == []


async def test_of_a_message_of_which_one_value_is_refused_nothing_is_sent(monkeypatch):
    message = command()
    async with Running(monkeypatch, [message], all_points(message)) as running:
        x, y = point_of(message, "X"), point_of(message, "Y")
        results = await running.link.write({x: 5, y: 500})
        assert [result.outcome for result in results] == [WriteOutcome.REFUSED] * 2
        assert running.bus.taken() == []
        await running.link.write({x: 5, y: 6})
        assert running.bus.taken() == [(0x200, b"\x05\x06")]


async def test_a_counter_goes_on_when_the_bus_repeats_anew(monkeypatch):
    signals = [Signal("X", 0, 8), Signal("Alive", 8, 4)]
    description = Message("Counted", 0x202, False, 2, signals)
    message = describe(
        description, cycle_s=0.1, guard=lambda: Protection(description, None, Counter("Alive"))
    )
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], [point_of(message, "X")], bus=bus) as running:
        for _ in range(3):
            running.route(point_of(message, "X"), 7)
            running.route(point_of(message, "X"), None)
        first = [cyclic.frames[0][1] for cyclic in bus.cyclics]
        assert len(set(first)) == 3


async def test_branches_that_take_turns_under_one_identifier(monkeypatch):
    one, two = (("Page", frozenset({1})),), (("Page", frozenset({2})),)
    signals = [Signal("Page", 0, 8), Signal("A", 8, 8, condition=one), Signal("B", 8, 8, condition=two),
               Signal("Alive", 16, 4)]  # fmt: skip
    description = Message("Paged", 0x203, False, 3, signals)
    message = describe(
        description, cycle_s=0.2, guard=lambda: Protection(description, None, Counter("Alive"))
    )
    bus = FakeBus(has_clock=True)
    targets = [point_of(message, "A"), point_of(message, "B")]
    async with Running(monkeypatch, [message], targets, bus=bus) as running:
        running.route(targets[0], 0x11)
        running.route(targets[1], 0x22)
        first, cyclic = bus.cyclics
        # Page 2 is not sent before it was written; then both take their turn within the cycle.
        assert (first.period_s, {frame[:2].hex() for frame in first.frames}) == (0.2, {"0111"})
        assert (cyclic.period_s, first.is_over) == (0.1, True)
        assert [frame[:2].hex() for frame in cyclic.frames[:4]] == ["0111", "0222", "0111", "0222"]
        counts = [frame[2] for frame in cyclic.frames]
        assert counts == [(counts[0] + index) % 16 for index in range(16)]


def test_what_is_left_to_wait_of_a_budget_is_never_too_short_for_a_clock():
    budget = Budget(150.0)
    now_s = 1000.0
    for _ in range(1000):
        wait_s = budget.wait_s(111, now_s)
        assert wait_s == 0 or wait_s >= 0.001
        now_s += wait_s


async def test_a_frame_that_is_no_message_is_a_classic_one_unless_it_says_otherwise(monkeypatch):
    message = command()
    async with Running(monkeypatch, [message], routed(message)) as running:
        sent = []
        running.bus.send = lambda *frame: sent.append(frame) or True
        assert running.link._sender.send_raw(0x123, b"\x01")
        assert running.link._sender.send_raw(0x124, b"\x02", 5)
        assert sent == [(0x123, b"\x01", 0), (0x124, b"\x02", 5)]
