"""What comes in: deadlines, what is wanted, what is not believed."""

import asyncio

import pytest
from conftest import eventually
from fake_bus import FakeBus, Running

from fieldbus.canbus import listening
from fieldbus.canbus.bus import EXTENDED, FOREIGN_TIME, OWN, REMOTE, Frame
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.messages import CanMessage
from fieldbus.canbus.protection import Checksum, Counter, Protection
from fieldbus.clock import SYSTEM
from fieldbus.model import Access, Kind, Point


def describe(message, device="ecu", **more):
    points = {
        signal: Point(
            device, f"{message.name}.{signal.name}", Kind.INT, Access.READWRITE, carries_quality=True
        )
        for signal in message.signals
    }
    return CanMessage(device, message, points, **more)


def point_of(message, name):
    return next(point for signal, point in message.points.items() if signal.name == name)


def status(name="Status", frame_id=0x100, **more):
    signals = [Signal("A", 0, 8), Signal("B", 8, 8)]
    return describe(Message(name, frame_id, False, 2, signals), **more)


def paged(**more):
    one, two = (("Page", frozenset({1})),), (("Page", frozenset({2})),)
    signals = [
        Signal("Page", 0, 8),
        Signal("InOne", 8, 8, condition=one),
        Signal("InTwo", 8, 8, condition=two),
    ]
    return describe(Message("Paged", 0x110, False, 2, signals), **more)


async def test_of_twenty_senders_one_falls_silent_and_costs_the_others_nothing(monkeypatch):
    deadline_s = 1.0
    messages = [
        status(f"M{number}", 0x200 + number, device=f"d{number}", deadline_s=deadline_s)
        for number in range(20)
    ]
    silent_at_s = None
    async with Running(monkeypatch, messages) as running:
        loop = asyncio.get_running_loop()
        for turn in range(30):
            for number in range(20):
                if number != 7 or turn < 5:
                    running.bus.come(0x200 + number, bytes([turn, number]))
            if turn == 4:
                silent_at_s = loop.time()
            await asyncio.sleep(0.05)
        lost = [batch for batch in running.batches if batch.flaws]
        assert {batch.group.points[0].device for batch in lost} == {"d7"}
        assert len(lost) == 1
        assert deadline_s <= lost[0].at_s - silent_at_s <= 1.25 * deadline_s
        assert running.online == [True] * 20 + [False]


async def test_each_branch_of_a_multiplexed_message_has_a_deadline_of_its_own(monkeypatch):
    message = paged(branch_deadlines={(("Page", frozenset({1})),): 0.1, (("Page", frozenset({2})),): 10.0})
    async with Running(monkeypatch, [message]) as running:
        running.bus.come(0x110, b"\x01\x11")
        running.bus.come(0x110, b"\x02\x22")
        await eventually(lambda: running.latest("Paged.InOne") == (None, "stale"))
        assert running.latest("Paged.InTwo") == (0x22, None)
        assert running.latest("Paged.Page") == (2, None)


@pytest.mark.alone
async def test_a_gateway_that_was_held_up_looks_into_the_buffer_before_it_calls_anybody_silent(monkeypatch):
    message = status(deadline_s=0.1)
    async with Running(monkeypatch, [message]) as running:
        running.bus.come(0x100, b"\1\1")
        await eventually(lambda: running.batches)
        bus = running.bus
        bus._ready = lambda: None  # the loop has not come round to it
        await asyncio.sleep(0.08)
        bus.come(0x100, b"\2\2")
        await asyncio.sleep(0.06)
        assert all(not batch.flaws for batch in running.batches)
        assert running.latest("Status.A") == (2, None)


async def test_a_deadline_is_learned_from_a_rhythm(monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.deadlines.SHORTEST_LEARNED_S", 0.05)
    async with Running(monkeypatch, [status(learns_deadline=True)]) as running:
        for turn in range(40):
            running.bus.come(0x100, bytes([turn, 0]))
            await asyncio.sleep(0.01)
        assert all(not batch.flaws for batch in running.batches)
        await eventually(lambda: running.latest("Status.A") == (None, "stale"))


async def test_only_what_is_wanted_is_decoded_and_let_through(monkeypatch):
    wanted, other = status(), status("Other", 0x101)
    async with Running(monkeypatch, [wanted, other], wanted=[point_of(wanted, "A")]) as running:
        assert [can_id for can_id, _ in running.bus.filters] == [0x100]
        running.bus.come(0x100, b"\1\2")
        running.bus.come(0x101, b"\3\4")
        await eventually(lambda: running.batches)
        assert running.latest("Status.A") == (1, None)
        assert running.latest("Status.B") is None


async def test_while_somebody_looks_everything_is_let_through_and_afterwards_not(monkeypatch):
    monkeypatch.setattr(listening, "WATCH_S", 0.2)
    wanted, other = status(), status("Other", 0x101)
    async with Running(monkeypatch, [wanted, other], wanted=[point_of(wanted, "A")]) as running:
        running.link.refresh()
        assert running.latest("Other.A") == (None, "waiting for first value")
        assert [can_id for can_id, _ in running.bus.filters] == [0x100, 0x101]
        running.bus.come(0x101, b"\3\4")
        running.bus.come(0x100, b"\1\2")
        await eventually(lambda: running.latest("Status.A") == (1, None))
        running.link.refresh()
        assert running.latest("Other.B") == (4, None)
        assert running.latest("Status.B") == (2, None)
        await eventually(lambda: [can_id for can_id, _ in running.bus.filters] == [0x100])


async def test_a_device_of_which_nothing_is_wanted_is_online_as_long_as_it_speaks(monkeypatch):
    async with Running(monkeypatch, [status(deadline_s=0.1)], wanted=[]) as running:
        running.bus.come(0x100, b"\1\2")
        await eventually(lambda: running.online == [True])
        await eventually(lambda: running.online == [True, False])


async def test_what_a_watcher_sees_goes_bad_with_what_the_routes_see(monkeypatch):
    message, sender = guarded(deadline_s=0.2)
    async with Running(monkeypatch, [message], wanted=[point_of(message, "A")]) as running:
        running.link.refresh()
        running.bus.come(0x120, sender.protect(b"\x05\0\0"))
        await eventually(lambda: running.latest("Safe.A") == (5, None))
        running.link.refresh()
        assert running.latest("Safe.Alive") == (0, None)
        running.bus.come(0x120, b"\x06\x01\x00")
        await eventually(lambda: running.latest("Safe.A") == (None, "bad checksum"))
        running.link.refresh()
        assert running.latest("Safe.Alive") == (None, "bad checksum")
        running.bus.come(0x120, sender.protect(b"\x05\0\0"))
        await eventually(lambda: running.latest("Safe.A") == (5, None))
        running.link.refresh()
        assert running.latest("Safe.Alive") == (1, None)
        await eventually(lambda: running.latest("Safe.A") == (None, "stale"))
        running.link.refresh()
        assert running.latest("Safe.Alive") == (None, "stale")
        running.link._health.heard(0x20000040, bytes(8))
        assert running.latest("Safe.Alive") == (None, "bus down")


def guarded(**more):
    signals = [Signal("A", 0, 8), Signal("Alive", 8, 4), Signal("Crc", 16, 8)]
    message = Message("Safe", 0x120, False, 3, signals)

    def make():
        return Protection(message, Checksum("Crc", "crc8-j1850"), Counter("Alive"))

    return describe(message, guard=make, **more), make()


async def test_a_wrong_checksum_is_no_value_and_no_sign_of_life(monkeypatch):
    message, sender = guarded(deadline_s=0.3)
    async with Running(monkeypatch, [message]) as running:
        running.bus.come(0x120, sender.protect(b"\x05\0\0"))
        await eventually(lambda: running.latest("Safe.A") == (5, None))
        good = sender.protect(b"\x06\0\0")
        running.bus.come(0x120, bytes([good[0] ^ 1, *good[1:]]))
        await eventually(lambda: running.latest("Safe.A") == (None, "bad checksum"))
        running.bus.come(0x120, good)
        await eventually(lambda: running.latest("Safe.A") == (6, None))
        assert running.link.counters["rx_not_believed"] == 1


async def test_a_counter_that_stands_still_takes_the_values_away(monkeypatch):
    message, sender = guarded()
    async with Running(monkeypatch, [message]) as running:
        frame = sender.protect(b"\x05\0\0")
        running.bus.come(0x120, frame)
        running.bus.come(0x120, frame)
        await eventually(lambda: running.latest("Safe.A") == (None, "stuck counter"))
        running.bus.come(0x120, sender.protect(b"\x05\0\0"))
        await eventually(lambda: running.latest("Safe.A") == (5, None))


async def test_a_short_frame_marks_what_is_missing_in_it(monkeypatch):
    async with Running(monkeypatch, [status()]) as running:
        running.bus.come(0x100, b"\x07")
        await eventually(lambda: running.batches)
        assert running.latest("Status.A") == (7, None)
        assert running.latest("Status.B") == (None, "missing in a short frame")


async def test_remote_frames_extended_ids_and_our_own_frames_are_not_taken_for_input(monkeypatch):
    command = status("Command", 0x300, cycle_s=10.0)
    listener = describe(command.message, device="other")
    bus = FakeBus(has_clock=True)
    async with Running(
        monkeypatch, [status(), command, listener], [point_of(command, "A")], bus=bus
    ) as running:
        running.route(point_of(command, "A"), 3)
        assert bus.taken() == [(0x300, b"\x03\x00")]
        bus.come(0x100 | REMOTE, b"\0\0")
        bus.come(0x100 | EXTENDED, b"\1\1")
        bus.come(0x300, b"\x03\x00", OWN)
        bus.come(0x300, b"\x04\x00")
        await eventually(lambda: running.batches)
        await asyncio.sleep(0.05)
        assert [list(batch.values) for batch in running.batches] == [[4, 0]]
        assert running.link.counters["tx_frames"] == 1


async def test_after_a_reconnection_nothing_of_before_counts(monkeypatch):
    running = Running(monkeypatch, [status(deadline_s=0.1)])
    await running.begin()
    running.bus.come(0x100, b"\1\2")
    await eventually(lambda: running.batches)
    await running.end()
    running.batches.clear()
    await running.begin()
    assert running.latest("Status.A") == (None, "waiting for first value")
    await asyncio.sleep(0.15)
    assert running.latest("Status.A") == (None, "waiting for first value")  # never heard is not stale
    running.bus.come(0x100, b"\1\2")
    await eventually(lambda: running.latest("Status.A") == (1, None))
    assert list(running.batches[-1].changed) == [0, 1]
    await running.end()


async def test_a_flood_neither_holds_up_the_clock_nor_makes_anybody_silent(monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.link._LONGEST_LOOK_S", 0.005)
    quiet = status("Quiet", 0x101, deadline_s=0.1)
    async with Running(monkeypatch, [status(deadline_s=0.1), quiet]) as running:
        running.bus.come(0x101, b"\1\1")
        await eventually(lambda: running.latest("Quiet.A") == (1, None))
        # There is always one more full load of frames than was taken.
        flood = [(0x100, bytes([number % 256, 0])) for number in range(512)]
        is_over = False

        def drain(limit):
            return [] if is_over else [Frame(can_id, data, SYSTEM.wall_ns()) for can_id, data in flood]

        running.bus.drain = drain
        loop = asyncio.get_running_loop()
        late = []
        for _ in range(10):
            due_s = loop.time() + 0.02
            await asyncio.sleep(0.02)
            late.append(loop.time() - due_s)
            running.bus._ready()
        assert sorted(late)[5] < 0.1
        assert running.latest("Quiet.A") == (1, None)
        is_over = True
        await eventually(lambda: running.latest("Quiet.A") == (None, "stale"))


async def test_a_clock_that_is_not_ours_makes_no_frame_older(monkeypatch):
    """An adapter, or a machine from which frames come, may be 3 s behind; that is no silence."""
    async with Running(monkeypatch, [status(deadline_s=0.5)]) as running:
        for turn in range(20):
            behind_ns = SYSTEM.wall_ns() - 3 * 10**9
            running.bus.come(0x100, bytes([turn, 0]), flags=FOREIGN_TIME, time_ns=behind_ns)
            await asyncio.sleep(0.05)
        assert all(not batch.flaws for batch in running.batches)
        assert running.batches[-1].time_ns <= SYSTEM.wall_ns() - 3 * 10**9
        assert SYSTEM.monotonic_s() - running.batches[-1].at_s < 0.5


async def test_a_frame_that_waited_in_the_kernel_is_as_old_as_the_kernel_says(monkeypatch):
    async with Running(monkeypatch, [status(deadline_s=5)]) as running:
        running.bus.come(0x100, b"\1\1", time_ns=SYSTEM.wall_ns() - 2 * 10**9)
        await eventually(lambda: running.batches)
        assert 1.9 < SYSTEM.monotonic_s() - running.batches[-1].at_s < 3
