"""What of a message may be sent: nothing that nobody gave, and of its branches only those that were written."""

import random

import pytest
from conftest import eventually
from fake_bus import FakeBus, Running
from test_listening import describe, point_of

from fieldbus.canbus.codec import MessageDecoder
from fieldbus.canbus.j1939.signals import as_j1939
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.outgoing import MAX_TURN, Budget, Outgoing
from fieldbus.canbus.protection import Counter, Protection
from fieldbus.link import WriteOutcome

ONE, TWO = (("Page", frozenset({1})),), (("Page", frozenset({2})),)
PAGE, COMMON = Signal("Page", 0, 8), Signal("Common", 8, 8, raw_initial=7)
A, B, B2 = (
    Signal("A", 16, 8, condition=ONE),
    Signal("B", 16, 8, condition=TWO),
    Signal("B2", 24, 8, condition=TWO, raw_initial=9),
)
PAGED = Message("Paged", 0x203, False, 4, [PAGE, COMMON, A, B, B2])


def paged(routed, safe=None, cycle_s=None):
    return Outgoing(describe(PAGED, safe=safe or {}, cycle_s=cycle_s), routed)


def frames(outgoing):
    return [data.hex() for data in outgoing.frames(outgoing.changed())]


def test_only_the_branch_that_was_written_is_sent():
    outgoing = paged([A, B])
    outgoing.give(B, 5)
    assert frames(outgoing) == ["02070509"]
    outgoing.touched.clear()
    outgoing.give(A, 6)
    assert frames(outgoing) == ["01070600"]


def test_a_branch_waits_for_each_of_its_routed_signals():
    outgoing = paged([A, B, B2, COMMON])
    outgoing.give(A, 6)
    outgoing.give(B, 5)
    assert frames(outgoing) == []  # both lack what every frame has
    outgoing.give(COMMON, 1)
    assert frames(outgoing) == ["01010600"]
    outgoing.give(B2, 3)
    assert frames(outgoing) == ["01010600", "02010503"]


def test_a_bad_signal_stops_its_own_branch_only():
    outgoing = paged([A, B], cycle_s=1.0)
    outgoing.give(A, 6)
    outgoing.give(B, 5)
    outgoing.take_away(B)
    assert frames(outgoing) == ["01070600"]
    outgoing.give(B, 4)
    assert frames(outgoing) == ["01070600", "02070409"]


def test_a_routed_multiplexer_decides_which_branch_is_sent():
    outgoing = paged([PAGE, A, B])
    outgoing.give(A, 6)
    assert frames(outgoing) == []
    outgoing.give(PAGE, 2)
    assert frames(outgoing) == []  # of that page nothing was heard yet
    outgoing.give(B, 5)
    assert frames(outgoing) == ["02070509"]
    outgoing.give(PAGE, 1)
    assert frames(outgoing) == ["01070600"]
    outgoing.give(PAGE, 3)  # a page that no route writes, but somebody wants it
    assert frames(outgoing) == ["03070000"]


def test_a_multiplexer_that_nobody_sets_keeps_the_message_back():
    outgoing = paged([COMMON])
    outgoing.give(COMMON, 1)
    assert frames(outgoing) == []
    assert outgoing.undecided() == [PAGE]
    outgoing = paged([COMMON], safe={PAGE: 2})
    outgoing.give(COMMON, 1)
    assert (outgoing.undecided(), frames(outgoing)) == ([], ["02010009"])


def test_a_configured_value_counts_and_a_start_value_does_not():
    x, y, z = Signal("X", 0, 8), Signal("Y", 8, 8, raw_initial=9), Signal("Z", 16, 8, raw_initial=3)
    layout = Message("Command", 0x200, False, 3, [x, y, z])
    outgoing = Outgoing(describe(layout), [x, y])
    outgoing.give(x, 1)
    assert frames(outgoing) == []
    outgoing = Outgoing(describe(layout, safe={y: 4, z: 5}), [x, y])
    outgoing.give(x, 1)
    assert frames(outgoing) == ["010405"]
    assert outgoing.unwritten() == []


def test_what_nothing_writes_is_named_with_what_it_carries():
    mode = Signal("Mode", 8, 8, raw_initial=2, labels={2: "run"})
    signals = [Signal("X", 0, 8), mode, Signal("T", 16, 16, is_signed=True, raw_initial=-5, unit="°C")]
    outgoing = Outgoing(describe(Message("Command", 0x200, False, 4, signals)), signals[:1])
    assert [outgoing.words(signal) for signal in outgoing.unwritten()] == ["Mode=2 (run)", "T=-5 °C"]
    plain = Message("M", 0xF00400, True, 8, [Signal("A", 0, 8), Signal("B", 8, 8, raw_initial=5)])
    layout = as_j1939(plain)
    outgoing = Outgoing(describe(layout, is_j1939=True), layout.signals[:1])
    assert [outgoing.words(signal) for signal in outgoing.unwritten()] == ["B=not available"]


async def test_not_heard_yet_is_as_bad_as_stale(monkeypatch):
    x, y = Signal("X", 0, 8), Signal("Y", 8, 8, raw_initial=9)
    message = describe(Message("Command", 0x200, False, 2, [x, y]), cycle_s=0.05)
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], list(message.points.values()), bus=bus) as running:
        running.route(point_of(message, "X"), 5)
        assert bus.taken() == []
        running.route(point_of(message, "Y"), 6)
        assert bus.taken() == [(0x200, b"\x05\x06")]
        running.route(point_of(message, "Y"), None)
        assert bus.cyclics[-1].is_over


async def test_after_the_bus_was_lost_every_signal_needs_a_value_again(monkeypatch):
    message = describe(Message("Command", 0x200, False, 2, [Signal("X", 0, 8), Signal("Y", 8, 8)]))
    running = Running(monkeypatch, [message], list(message.points.values()))
    for expected in ([(0x200, b"\x05\x06")], []):
        await running.begin()
        running.route(point_of(message, "X"), 5)
        if expected:
            running.route(point_of(message, "Y"), 6)
        assert running.bus.taken() == expected
        await running.end()


async def test_a_message_that_waits_for_a_value_is_named_once(monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.sending._SAY_MISSING_S", 0.0)
    message = describe(Message("Command", 0x200, False, 2, [Signal("X", 0, 8), Signal("Y", 8, 8)]))
    async with Running(monkeypatch, [message], list(message.points.values())) as running:
        running.route(point_of(message, "X"), 5)
        await eventually(lambda: running.notices)
        assert running.notices == ["ecu.Command is not sent: no value yet for Y"]


async def test_a_write_beside_a_signal_without_value_is_refused_and_leaves_nothing(monkeypatch):
    message = describe(Message("Command", 0x200, False, 2, [Signal("X", 0, 8), Signal("Y", 8, 8)]))
    x, y = (point_of(message, name) for name in "XY")
    async with Running(monkeypatch, [message], [x, y]) as running:
        (result,) = await running.link.write({x: 7})
        assert result.outcome is WriteOutcome.REFUSED
        assert "Command has no value for Y" in result.reason
        running.route(y, 1)
        assert running.bus.taken() == []  # the refused 7 is not in it
        results = await running.link.write({x: 7, y: 8})
        assert [item.outcome for item in results] == [WriteOutcome.WRITTEN] * 2
        assert running.bus.taken() == [(0x200, b"\x07\x08")]
        (result,) = await running.link.write({x: 9})
        assert result.reason == "in the same frame: Y=8"


async def test_what_is_written_once_stays_in_what_the_bus_repeats(monkeypatch):
    message = describe(Message("Command", 0x200, False, 1, [Signal("X", 0, 8)]), cycle_s=0.1)
    bus = FakeBus(has_clock=True)
    async with Running(monkeypatch, [message], [point_of(message, "X")], bus=bus) as running:
        running.route(point_of(message, "X"), 1)
        (result,) = await running.link.write({point_of(message, "X"): 7})
        assert result.outcome is WriteOutcome.WRITTEN
        assert [item.frames for item in bus.cyclics if not item.is_over] == [[b"\x07"]]


async def test_a_write_into_one_branch_sends_that_branch(monkeypatch):
    message = describe(PAGED)
    a, b, page = (point_of(message, name) for name in ("A", "B", "Page"))
    async with Running(monkeypatch, [message], [a, b, page]) as running:
        running.route(page, 2)
        running.route(b, 5)
        running.bus.taken()
        (result,) = await running.link.write({a: 7})
        assert result.outcome is WriteOutcome.REFUSED  # its page is not the one that a route asks for
        assert "A of Paged would be in no frame" in result.reason
        results = await running.link.write({page: 1, a: 7})
        assert [item.outcome for item in results] == [WriteOutcome.WRITTEN] * 2
        assert running.bus.taken() == [(0x203, b"\x01\x07\x07\x00")]


async def test_a_stale_branch_ends_alone_in_what_the_bus_repeats(monkeypatch):
    message = describe(PAGED, cycle_s=0.2)
    bus = FakeBus(has_clock=True)
    a, b = point_of(message, "A"), point_of(message, "B")
    async with Running(monkeypatch, [message], [a, b], bus=bus) as running:
        running.route(a, 6)
        running.route(b, 5)
        running.route(b, None)
        (repeated,) = [item for item in bus.cyclics if not item.is_over]
        assert (repeated.period_s, repeated.frames) == (0.2, [bytes.fromhex("01070600")])
        running.route(a, None)
        assert all(item.is_over for item in bus.cyclics)


def test_a_cyclic_branch_with_safe_values_for_all_says_them_from_the_start():
    outgoing = paged([A, B], safe={A: 3}, cycle_s=1.0)
    assert frames(outgoing) == ["01070300"]
    assert frames(paged([A, B], safe={A: 3})) == []  # without a cycle it is a command


def test_a_safe_value_that_does_not_change_is_not_sent_again():
    outgoing = paged([A], safe={A: 3})
    outgoing.give(A, 4)
    assert outgoing.take_away(A)
    assert not outgoing.take_away(A)
    assert frames(outgoing) == ["01070300"]


def test_a_frame_beyond_the_burst_waits_for_a_full_budget():
    budget = Budget(1000.0)  # 100 bits at once
    assert budget.wait_s(130, 0.0) == 0
    assert budget.wait_s(130, 0.05) > 0
    assert budget.wait_s(100, 0.2) == 0
    assert budget.wait_s(50, 0.2) == pytest.approx(0.05)
    assert budget.wait_s(50, 0.251) == 0
    assert budget.wait_s(1, 0.251) > 0


def test_a_command_is_sent_with_each_sample_and_a_cyclic_value_with_each_change():
    for cycle_s, is_repeated in ((None, True), (1.0, False)):
        outgoing = paged([A], cycle_s=cycle_s)
        assert outgoing.give(A, 4)
        assert outgoing.give(A, 4) is is_repeated
        outgoing.is_unsent = True
        assert outgoing.give(A, 4)
        outgoing.is_unsent = False
        assert outgoing.give(A, 5)
        outgoing.take_away(A)
        assert outgoing.give(A, 5)


def counted(bits, *conditions):
    signals = [PAGE, *(Signal(f"S{index}", 8, 8, condition=item) for index, item in enumerate(conditions))]
    layout = Message("Counted", 0x204, False, 4, [*signals, Signal("Alive", 16, bits)])
    message = describe(layout, guard=lambda: Protection(layout, None, Counter("Alive")))
    outgoing = Outgoing(message, signals[1:])
    for signal in signals[1:]:
        outgoing.give(signal, 1)
    return outgoing


def test_the_bus_gets_a_whole_turn_of_the_counter_or_none():
    assert len(counted(8, ONE).turn([ONE])) == 256
    assert counted(8, ONE, TWO).turn([ONE, TWO]) is not None
    three = (("Page", frozenset({3})),)
    outgoing = counted(8, ONE, TWO, three)
    assert outgoing.turn(outgoing.ready()) is None  # 768 frames
    assert counted(12, ONE).turn([ONE]) is None
    assert len(counted(4, ONE, TWO, three).turn([ONE, TWO, three])) == 48


def test_a_turn_is_as_long_as_the_bus_can_keep_and_no_longer():
    outgoing = paged([A])
    outgoing.give(A, 1)
    assert len(outgoing.turn([ONE] * MAX_TURN)) == MAX_TURN
    assert outgoing.turn([ONE] * (MAX_TURN + 1)) is None


def test_a_common_signal_sends_no_branch_of_a_command_that_only_its_safe_value_fills():
    outgoing = paged([A, B, COMMON], safe={A: 1, B: 2})
    outgoing.give(COMMON, 1)
    assert frames(outgoing) == []
    outgoing.give(A, 6)
    assert frames(outgoing) == ["01010600"]


def test_one_multiplexer_that_was_written_is_enough_to_begin_a_branch_of_two():
    sub = Signal("Sub", 8, 8, condition=ONE)
    deep = Signal("Deep", 16, 8, condition=(*ONE, ("Sub", frozenset({2}))))
    layout = Message("Nested", 0x205, False, 3, [PAGE, sub, deep])
    outgoing = Outgoing(describe(layout, safe={deep: 5}), [PAGE, deep])
    assert frames(outgoing) == []
    outgoing.give(PAGE, 1)
    assert frames(outgoing) == ["010205"]


def test_a_value_that_is_taken_away_and_has_no_safe_one_changes_nothing_to_be_sent():
    outgoing = paged([A])
    outgoing.give(A, 4)
    assert outgoing.take_away(A) is False


def test_one_write_needs_every_signal_but_those_that_j1939_can_leave_out():
    plain = Message("M", 0xF00400, True, 8, [Signal("A", 0, 8), Signal("B", 8, 8), Signal("Flag", 16, 1)])
    layout = as_j1939(plain)
    a, b, flag = layout.signals
    assert (b.absent_from is None, flag.absent_from is None) == (False, True)
    outgoing = Outgoing(describe(layout, is_j1939=True), [a], needs_all=True)
    assert outgoing.missing == {a, flag}


# --- dice


def random_message(dice):
    """Return a message with selectors, nested ones among them, whose signals do not share bits."""
    signals, selectors, start = [], [], 0
    for number in range(dice.randint(2, 9)):
        condition = ()
        if selectors and dice.random() < 0.7:
            above = dice.choice(selectors)
            values = frozenset(dice.sample(range(4), dice.randint(1, 2)))
            condition = (*above.condition, (above.name, values))
        signal = Signal(f"S{number}", start, 8, condition=condition, raw_initial=dice.randint(0, 3))
        start += 8
        signals.append(signal)
        if dice.random() < 0.4:
            selectors.append(signal)
    return Message("M", 0x123, False, start // 8, signals, is_fd=True)


@pytest.mark.parametrize("seed", range(300))
def test_no_frame_has_a_routed_signal_that_nobody_gave(seed):
    dice = random.Random(seed)
    message = random_message(dice)
    routed = dice.sample(message.signals, dice.randint(1, len(message.signals)))
    safe = {signal: dice.randint(100, 103) for signal in message.signals if dice.random() < 0.2}
    outgoing = Outgoing(describe(message, safe=safe, cycle_s=dice.choice([None, 1.0])), routed)
    decoder = MessageDecoder(message)
    now = {signal.name: safe.get(signal) for signal in routed}
    has_been_given = False
    for _ in range(30):
        signal = dice.choice(routed)
        if dice.random() < 0.7:
            now[signal.name] = value = dice.randint(0, 3)
            outgoing.give(signal, value)
            has_been_given = True
        else:
            outgoing.take_away(signal)
            now[signal.name] = safe.get(signal)
        sent = set()
        if all(not item.condition for item in message.signals):
            is_cyclic_and_safe = outgoing.message.cycle_s and all(item in safe for item in routed)
            is_known = all(value is not None for value in now.values())
            assert bool(outgoing.ready()) is bool(is_known and (has_been_given or is_cyclic_and_safe))
        for branch, data in zip(outgoing.ready(), outgoing.frames(outgoing.ready()), strict=True):
            assert has_been_given or (
                (outgoing.message.cycle_s and all(item in safe for item in routed)) or branch
            )
            said = {}
            for index in decoder.select(data):
                part = decoder.branches[index]
                said |= dict(zip([item.name for item in part.signals], part.decode(data)[0], strict=True))
            for name in said.keys() & now.keys():
                assert said[name] == now[name], (name, said, now)
            for item in message.signals:  # a selector is what a route, the branch or the configuration says
                is_selector = any(
                    item.name == name for other in message.signals for name, _ in other.condition
                )
                if is_selector and item.name in said and item not in routed and item not in safe:
                    assert item.name in dict(branch)
            assert data not in sent
            sent.add(data)
