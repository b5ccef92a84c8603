"""What goes out by the clock, by the budget, by a single write, and under an address, step by step."""

import pytest
from fake_bus import FakeBus
from test_listening import describe
from test_transmit_queue import RETRY_S, Queue, counted, one_byte, x_of

from fieldbus.canbus import sending
from fieldbus.canbus.bits import frame_bits
from fieldbus.canbus.j1939.signals import as_j1939
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.outgoing import Address, Budget
from fieldbus.canbus.protection import Counter, Protection
from fieldbus.canbus.sending import QUEUE_AGE_S
from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.link import WriteOutcome

# --- the clock


def test_a_cyclic_message_is_sent_each_cycle_and_a_change_at_once():
    queue = Queue(message := one_byte(1, cycle_s=0.1))
    queue.route((x_of(message), 1))
    assert queue.bus.taken() == [(0x101, b"\x01")]
    queue.steps.go(0.95)
    assert len(queue.bus.taken()) == 9
    queue.steps.go(0.02)  # 30 ms before the cycle: it serves as that cycle's
    queue.route((x_of(message), 2))
    assert queue.bus.taken() == [(0x101, b"\x02")]
    queue.steps.go(0.05)
    assert queue.bus.taken() == []
    queue.steps.go(0.1)
    assert queue.bus.taken() == [(0x101, b"\x02")]
    queue.steps.go(0.02)  # long before the next cycle: that one is sent too
    queue.route((x_of(message), 3))
    queue.steps.go(0.09)
    assert len(queue.bus.taken()) == 2


def test_a_cycle_is_not_made_up_for_after_a_stall():
    queue = Queue(message := one_byte(1, cycle_s=0.1))
    queue.route((x_of(message), 1))
    queue.bus.taken()
    queue.steps.now_s += 5.0
    queue.steps.go(0.15)
    assert len(queue.bus.taken()) == 2


def test_what_the_bus_repeats_is_kept_alive_each_second_beside_what_it_does_not():
    first, second, third = one_byte(1, cycle_s=0.1), one_byte(2), one_byte(3, cycle_s=0.1)
    bus = FakeBus(has_clock=True)
    queue = Queue(first, second, third, bus=bus)
    queue.route((x_of(first), 1), (x_of(second), 1), (x_of(third), 1))
    bus.taken()

    def gone():
        raise LinkDownError("network is down")

    bus.cyclics[0].keep_alive = gone
    queue.steps.go(3.5)
    assert bus.cyclics[1].alive == 3
    assert len(queue.lost) == 3
    assert bus.taken() == []  # the bus does it


def test_a_counter_leaves_out_those_that_the_bus_may_have_sent():
    bus = FakeBus(has_clock=True)
    queue = Queue(message := counted(cycle_s=0.1), targets=None, bus=bus)
    x = x_of(message)
    for point in message.points.values():
        queue.sender.outgoing[point].missing.clear()
    queue.route((x, 1))
    assert bus.cyclics[0].frames[0] == b"\x01\x00"
    queue.steps.go(1.05)  # eleven frames were sent: 0 … 10
    queue.route((x, None))
    queue.route((x, 1))
    first = bus.cyclics[-1].frames[0][1]
    assert first in (12, 13, 14), "none twice, and few are left out"


def test_a_message_longer_than_the_bus_repeats_is_sent_by_us():
    layout = Message("Long", 0x101, False, 9, [Signal("X", 0, 8)])
    bus = FakeBus(has_clock=True)
    queue = Queue(message := describe(layout, cycle_s=0.1), bus=bus)
    queue.route((x_of(message), 1))
    assert bus.cyclics == []
    for size, is_fd, is_repeated in ((8, False, True), (9, True, True), (64, True, True)):
        bus = FakeBus(has_clock=True)
        layout = Message("M", 0x101, False, size, [Signal("X", 0, 8)], is_fd=is_fd)
        queue = Queue(message := describe(layout, cycle_s=0.1), bus=bus)
        queue.route((x_of(message), 1))
        assert bool(bus.cyclics) is is_repeated


def test_a_frame_is_known_as_one_that_the_bus_repeats_for_us():
    bus = FakeBus(has_clock=True)
    first, second = one_byte(1, cycle_s=0.1), one_byte(2, cycle_s=0.1)
    queue = Queue(first, second, bus=bus)
    queue.route((x_of(second), 5))
    assert queue.sender.is_repeated(0x102, b"\x05")
    assert not queue.sender.is_repeated(0x102, b"\x06")
    assert not queue.sender.is_repeated(0x101, b"\x05")
    queue.sender.still_all()
    assert not queue.sender.is_repeated(0x102, b"\x05")


def test_a_bus_that_refuses_to_repeat_is_said_and_one_that_is_gone_is_lost():
    for error, notices, lost in (
        (RefusedError("no room for it"), ["0x101 cannot be sent: no room for it"], 0),
        (ValueError("too many frames"), ["0x101 cannot be sent: too many frames"], 0),
        (LinkDownError("network is down"), [], 1),
    ):
        bus = FakeBus(has_clock=True)

        def refuse(*_args, error=error):
            raise error

        bus.repeat = refuse
        queue = Queue(message := one_byte(1, cycle_s=0.1), bus=bus)
        queue.route((x_of(message), 1))
        assert (queue.notices, len(queue.lost)) == (notices, lost)
        assert bus.taken() == [], "neither is tried frame by frame"


@pytest.mark.parametrize(("count", "more"), [(8, ""), (10, " and 2 more")])
def test_only_messages_that_have_some_value_are_said_to_wait(count, more):
    signals = [Signal("X", 0, 8), *(Signal(f"S{number}", 8 * number, 8) for number in range(1, count + 1))]
    half, none = (
        describe(Message(name, can_id, False, 11, signals, is_fd=True))
        for name, can_id in (("Half", 0x101), ("None", 0x102))
    )
    whole = one_byte(3)
    queue = Queue(none, whole, half)
    queue.route((x_of(half), 1), (x_of(whole), 1))
    queue.steps.go(9.9)
    assert queue.notices == []
    queue.steps.go(60)
    assert queue.notices == [f"ecu.Half is not sent: no value yet for S1, S2, S3, S4, S5, S6, S7, S8{more}"]


# --- the budget


def test_a_change_beyond_the_budget_waits_once_and_then_the_newest_goes():
    bits = frame_bits(1, is_extended=False)
    queue = Queue(message := one_byte(1), bits_per_s=bits * 10)  # one at once, ten a second
    for value in (1, 2, 3):
        queue.route((x_of(message), value))
    assert queue.bus.taken() == [(0x101, b"\x01")]
    assert queue.counters["tx_delayed"] == 1
    queue.steps.go(0.101)
    assert queue.bus.taken() == [(0x101, b"\x03")]
    queue.steps.go(0.101)
    assert queue.bus.taken() == []


def test_what_waited_for_the_budget_of_a_silent_bus_is_owed():
    bits = frame_bits(1, is_extended=False)
    queue = Queue(message := one_byte(1), bits_per_s=bits * 10)
    queue.route((x_of(message), 1))
    queue.route((x_of(message), 2))
    queue.bus.taken()
    queue.sender.silence()
    queue.steps.go(1)
    assert queue.bus.taken() == []
    queue.sender.is_silent = False
    queue.sender.resume(after_outage=False)
    assert queue.bus.taken() == [(0x101, b"\x02")]


# --- writes


async def test_a_write_at_the_moment_of_its_end_is_too_late():
    queue = Queue(message := one_byte(1))
    (result,) = await queue.sender.write({x_of(message): 1}, until_s=queue.steps.now_s)
    assert result.outcome is WriteOutcome.EXPIRED
    (result,) = await queue.sender.write({x_of(message): 1}, until_s=queue.steps.now_s + 0.001)
    assert result.outcome is WriteOutcome.WRITTEN
    (result,) = await queue.sender.write({x_of(message): 1})
    assert result.outcome is WriteOutcome.WRITTEN


async def test_a_write_that_finds_no_room_fails_and_leaves_nothing(monkeypatch):
    signals = [Signal("X", 0, 8), Signal("Y", 8, 8)]
    queue = Queue(message := describe(Message("M", 0x101, False, 2, signals)))
    x, y = message.points.values()
    queue.route((x, 1), (y, 1))
    queue.bus.taken()
    queue.bus.room = 0
    began_s = queue.steps.now_s

    async def sleep(seconds):
        queue.steps.go(seconds)

    monkeypatch.setattr(sending.asyncio, "sleep", sleep)
    (result,) = await queue.sender.write({x: 5})
    assert (result.outcome, result.reason) == (WriteOutcome.FAILED, "the bus did not take the frame")
    assert QUEUE_AGE_S <= queue.steps.now_s - began_s <= QUEUE_AGE_S + 2 * RETRY_S
    queue.bus.room = None
    queue.route((y, 2))
    assert queue.bus.taken() == [(0x101, b"\x01\x02")]


async def test_a_write_on_a_bus_that_is_gone_is_not_written():
    queue = Queue(message := one_byte(1))
    queue.sender.start(queue.bus, queue.steps, lambda _: queue.sender.stop(), queue.notices.append)
    queue.bus.is_gone = True
    (result,) = await queue.sender.write({x_of(message): 1})
    assert result.outcome is WriteOutcome.FAILED
    assert queue.counters["tx_frames"] == 0


@pytest.mark.parametrize(("others", "more"), [(8, ""), (9, " and 1 more")])
async def test_a_write_says_what_else_is_in_its_frame(others, more):
    signals = [Signal("X", 0, 8), *(Signal(f"S{number}", 8 + 8 * number, 8) for number in range(others))]
    message = describe(Message("M", 0x101, False, others + 1, signals, is_fd=True))
    queue = Queue(message, targets=[x_of(message)])
    (result,) = await queue.sender.write({x_of(message): 5})
    named = ", ".join(f"S{number}=0" for number in range(8))
    assert result.reason == f"in the same frame: {named}{more}"


async def test_a_single_write_needs_all_values_but_those_that_can_be_absent():
    plain = Message("M", 0xF00400, True, 2, [Signal("X", 0, 8), Signal("Y", 8, 8, raw_initial=5)])
    bit = Message("M", 0xF00400, True, 2, [Signal("X", 0, 8), Signal("Y", 8, 1)])
    for message, outcome in (
        (describe(plain), WriteOutcome.REFUSED),
        (describe(as_j1939(plain), is_j1939=True), WriteOutcome.WRITTEN),
        (describe(as_j1939(bit), is_j1939=True), WriteOutcome.REFUSED),
    ):
        queue = Queue(message, targets=[x_of(message)], needs_all=True)
        (result,) = await queue.sender.write({x_of(message): 1})
        assert result.outcome is outcome
        assert len(queue.bus.taken()) == (outcome is WriteOutcome.WRITTEN)


def test_who_asks_for_a_pgn_gets_the_message_that_may_be_sent():
    layouts = [
        as_j1939(Message(name, frame_id, True, 8, [Signal("X", 0, 8)]))
        for name, frame_id in (("A", 0x18FF0180), ("B", 0x18FF0280))
    ]
    other = one_byte(1)
    first, second = (describe(layout, is_j1939=True) for layout in layouts)
    queue = Queue(other, first, second)
    assert not queue.sender.send_pgn(0xFF02)  # it has no value yet
    queue.route((x_of(first), 1), (x_of(second), 2))
    queue.bus.taken()
    assert queue.sender.send_pgn(0xFF02)
    assert [data[0] for _, data in queue.bus.taken()] == [2]
    assert not queue.sender.send_pgn(0xFF03)
    queue.sender.silence()
    assert not queue.sender.send_pgn(0xFF02)


# --- addresses


class Nowhere(Address):
    """J1939 while we have no address."""

    has_one = False
    takes_long = True

    def __init__(self):
        self.long = []

    def can_id(self, message):
        return message.can_id if self.has_one else None

    def send_long(self, message, data):
        if self.takes_long:
            self.long.append(data)
        return self.takes_long


def test_without_an_address_a_change_is_owed_and_not_sent():
    address = Nowhere()
    queue = Queue(message := one_byte(1), address=address)
    queue.route((x_of(message), 1))
    queue.steps.go(1)
    assert queue.bus.taken() == []
    assert queue.counters["tx_dropped"] == 0
    address.has_one = True
    queue.sender.resume(after_outage=False)
    assert queue.bus.taken() == [(0x101, b"\x01")]


def test_a_long_message_that_cannot_be_begun_is_counted_and_owed():
    layout = as_j1939(Message("Long", 0x18FF0180, True, 9, [Signal("X", 0, 8)]))
    address = Nowhere()
    address.has_one, address.takes_long = True, False
    queue = Queue(message := describe(layout, is_j1939=True), address=address)
    queue.route((x_of(message), 1))
    assert queue.counters["tx_dropped"] == 1
    address.takes_long = True
    queue.sender.resume(after_outage=False)
    assert [data[0] for data in address.long] == [1]
    assert queue.bus.taken() == [], "it is no single frame"


@pytest.mark.parametrize(("is_j1939", "size", "is_fd"), [(True, 8, False), (False, 9, True)])
def test_a_message_that_fits_a_frame_goes_as_one(is_j1939, size, is_fd):
    layout = Message("M", 0x18FF0180, True, size, [Signal("X", 0, 8)], is_fd=is_fd)
    address = Nowhere()
    address.has_one = True
    queue = Queue(message := describe(layout, is_j1939=is_j1939), address=address)
    queue.route((x_of(message), 1))
    assert [len(data) for _, data in queue.bus.taken()] == [size]
    assert address.long == []
    queue.bus.room = 0
    queue.route((x_of(message), 2))
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert [len(data) for _, data in queue.bus.taken()] == [size], "it may wait"


async def test_a_write_of_which_one_branch_has_left_is_not_taken_back(monkeypatch):
    one, two = (("Page", frozenset({1})),), (("Page", frozenset({2})),)
    signals = [Signal("Page", 0, 8), Signal("A", 8, 8, condition=one), Signal("B", 8, 8, condition=two)]
    message = describe(Message("Paged", 0x101, False, 2, signals))
    _, a, b = message.points.values()
    queue = Queue(message, targets=[a, b])
    queue.bus.room = 1
    asked = []
    queue.sender.still_allowed = lambda point, _: asked.append(point.name)

    async def sleep(seconds):
        queue.steps.go(seconds)

    monkeypatch.setattr(sending.asyncio, "sleep", sleep)
    results = await queue.sender.write({a: 5, b: 6})
    assert {result.outcome for result in results} == {WriteOutcome.FAILED}
    assert queue.bus.taken() == [(0x101, b"\x01\x05")]
    assert len(asked) == 2, "once it is on its way it is not asked again"
    assert queue.sender.outgoing[a].encoder.frame(one) == b"\x01\x05"


def test_a_change_of_what_the_bus_repeats_is_sent_once():
    queue = Queue(message := one_byte(1, cycle_s=0.1), bus=FakeBus(has_clock=True))
    queue.route((x_of(message), 1))
    assert queue.bus.taken() == [(0x101, b"\x01")]
    queue.route((x_of(message), 2))
    assert queue.bus.taken() == [(0x101, b"\x02")]


def test_another_rhythm_begins_with_a_count_that_was_not_sent():
    one, two = (("Page", frozenset({1})),), (("Page", frozenset({2})),)
    signals = [Signal("Page", 0, 8), Signal("A", 8, 8, condition=one), Signal("B", 8, 8, condition=two),
               Signal("Alive", 16, 4)]  # fmt: skip
    layout = Message("Paged", 0x203, False, 3, signals)
    message = describe(layout, cycle_s=0.2, guard=lambda: Protection(layout, None, Counter("Alive")))
    _, a, b, _ = message.points.values()
    queue = Queue(message, targets=[a, b], bus=FakeBus(has_clock=True))
    queue.route((a, 1))
    queue.route((b, 2))
    first, second = queue.bus.cyclics
    assert first.frames[0][2] == 0
    assert 1 <= second.frames[0][2] <= 4


def test_what_is_left_of_a_budget_makes_the_wait_shorter():
    budget = Budget(1000.0)  # 100 bits at once
    assert budget.wait_s(60, 0.0) == 0
    assert budget.wait_s(60, 0.0) == pytest.approx(0.02)
    assert budget.wait_s(60, 0.021) == 0
