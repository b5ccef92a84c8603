"""The CAN link on python-can's virtual bus."""

import asyncio
import itertools
import time

import can
import pytest
from conftest import eventually

from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.messages import CanMessage, Request
from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, DeviceHealth, Target, WriteOutcome
from fieldbus.model import Access, Kind, Point, Quality, Sample

_CHANNELS = itertools.count()


def describe(message, device="ecu", **more):
    points = {
        signal: Point(
            device, f"{message.name}.{signal.name}", Kind.INT, Access.READWRITE, carries_quality=True
        )
        for signal in message.signals
    }
    return CanMessage(device, message, points, **more)


def status(**more):
    return describe(Message("Status", 0x100, False, 2, [Signal("A", 0, 8), Signal("B", 8, 8)]), **more)


def command(**more):
    signals = [Signal("X", 0, 8), Signal("Y", 8, 8, raw_initial=9)]
    return describe(Message("Command", 0x200, False, 2, signals), **more)


class Bus:
    """A link that runs, and a peer on the same bus."""

    def __init__(self, messages, targets=()):
        options = {"interface": "virtual", "channel": f"test {next(_CHANNELS)}"}
        self.link = CanLink("can0", options, messages, targets)
        self.peer = can.Bus(**options)
        self.batches = []
        self.reports = []
        self._task = None

    async def __aenter__(self):
        await self.link.connect()
        self._task = asyncio.create_task(self.link.run(self.batches.append, self.reports.append))
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.link.close()
        self.peer.shutdown()

    @property
    def online(self):
        return [event.is_online for event in self.reports if isinstance(event, DeviceHealth)]

    def say(self, frame_id, data, **more):
        self.peer.send(can.Message(arbitration_id=frame_id, data=data, is_extended_id=False, **more))

    def route(self, point, value):
        quality, reason = (Quality.BAD, "timeout") if value is None else (Quality.GOOD, None)
        self.link.send([Delivery(Target("can0", point), point, Sample(value, quality, reason, 1))])

    def heard(self):
        found = []
        while (frame := self.peer.recv(0)) is not None:
            found.append((frame.arbitration_id, bytes(frame.data)))
        return found


def point_of(message, name):
    return next(point for signal, point in message.points.items() if signal.name == name)


async def test_a_frame_becomes_a_batch_and_the_same_frame_changes_nothing():
    async with Bus([status()]) as bus:
        bus.say(0x100, b"\x01\x02")
        bus.say(0x100, b"\x01\x02")
        bus.say(0x100, b"\x01\x03")
        await eventually(lambda: len(bus.batches) == 3)
        assert [list(batch.values) for batch in bus.batches] == [[1, 2], [1, 2], [1, 3]]
        assert [list(batch.changed) for batch in bus.batches] == [[0, 1], [], [1]]


async def test_other_ids_extended_ids_remote_and_error_frames_are_not_data():
    async with Bus([status()]) as bus:
        bus.say(0x101, b"\x01\x02")
        bus.peer.send(can.Message(arbitration_id=0x100, data=b"\1\2", is_extended_id=True))
        bus.say(0x100, None, is_remote_frame=True, dlc=2)
        bus.say(0x100, b"\1\2", is_error_frame=True)
        bus.say(0x100, b"\x07\x08")
        await eventually(lambda: bus.batches)
        assert [list(batch.values) for batch in bus.batches] == [[7, 8]]


async def test_an_overdue_message_is_stale_and_comes_back():
    message = status(deadline_s=0.1)
    async with Bus([message]) as bus:
        bus.say(0x100, b"\x01\x02")
        await eventually(lambda: len(bus.batches) == 2)
        assert bus.batches[1].sample(0)[:3] == (None, "bad", "stale")
        assert bus.online == [True, False]
        bus.say(0x100, b"\x01\x02")
        await eventually(lambda: len(bus.batches) == 3)
        assert list(bus.batches[2].changed) == [0, 1]


async def test_one_sender_that_goes_silent_costs_the_others_nothing():
    silent = describe(Message("Silent", 0x300, False, 1, [Signal("S", 0, 8)]), deadline_s=0.15)
    alive = describe(Message("Alive", 0x301, False, 1, [Signal("S", 0, 8)]), deadline_s=0.15)
    async with Bus([silent, alive]) as bus:
        bus.say(0x300, b"\1")
        for value in range(20):
            bus.say(0x301, bytes([value]))
            await asyncio.sleep(0.02)
        stale = {batch.group.points[0].name for batch in bus.batches if batch.flaws}
        assert stale == {"Silent.S"}


async def test_a_routed_value_is_sent_at_once_with_unrouted_signals_beside_it():
    message = command()
    async with Bus([message], [point_of(message, "X")]) as bus:
        assert bus.heard() == []
        bus.route(point_of(message, "X"), 5)
        assert bus.heard() == [(0x200, b"\x05\x09")]


async def test_what_has_no_cycle_is_sent_as_often_as_its_route_says_and_what_has_one_is_not():
    for cycle_s, repeated in ((None, [(0x200, b"\x05\x09")]), (60.0, [])):
        message = command(cycle_s=cycle_s)
        async with Bus([message], [point_of(message, "X")]) as bus:
            bus.route(point_of(message, "X"), 5)
            bus.heard()
            bus.route(point_of(message, "X"), 5)
            assert bus.heard() == repeated


async def test_several_signals_of_one_batch_travel_in_one_frame():
    message = command()
    x, y = point_of(message, "X"), point_of(message, "Y")
    async with Bus([message], [x, y]) as bus:
        good = [Sample(value, Quality.GOOD, None, 1) for value in (1, 2)]
        bus.link.send([Delivery(Target("can0", x), x, good[0]), Delivery(Target("can0", y), y, good[1])])
        assert bus.heard() == [(0x200, b"\x01\x02")]


async def test_a_cyclic_message_is_repeated_and_stops_while_its_source_is_bad():
    message = command(cycle_s=0.02)
    x = point_of(message, "X")
    async with Bus([message], [x]) as bus:
        bus.route(x, 1)
        await asyncio.sleep(0.2)
        assert 6 <= len(bus.heard()) <= 12
        bus.route(x, None)
        bus.heard()
        await asyncio.sleep(0.1)
        assert bus.heard() == []
        bus.route(x, 1)
        assert bus.heard() == [(0x200, b"\x01\x09")]


async def test_a_value_that_does_not_fit_silences_the_message():
    message = command(cycle_s=0.02)
    x = point_of(message, "X")
    async with Bus([message], [x]) as bus:
        bus.route(x, 1)
        bus.route(x, 256)
        bus.heard()
        await asyncio.sleep(0.06)
        assert bus.heard() == []
        assert bus.link.counters["conversions_failed"] == 1


async def test_what_we_sent_is_not_taken_for_input():
    message = command()
    listener = describe(message.message, device="other")
    async with Bus([message, listener], message.points.values()) as bus:
        bus.route(point_of(message, "X"), 5)
        bus.say(0x200, b"\x0a\x0b")
        await eventually(lambda: bus.batches)
        assert [list(batch.values) for batch in bus.batches] == [[10, 11]]


async def test_a_node_that_speaks_only_when_asked_is_asked():
    request = Request(0x700, False, b"\x01", False, scan_s=0.05, timeout_s=0.03)
    async with Bus([status(request=request)]) as bus:
        await eventually(lambda: bus.heard() == [(0x700, b"\x01")])
        bus.say(0x100, b"\x01\x02")
        await eventually(lambda: bus.batches)
        assert list(bus.batches[0].values) == [1, 2]
        await eventually(lambda: any(batch.flaws for batch in bus.batches))
        assert bus.batches[-1].sample(0).reason == "timeout"
        assert bus.link.counters["timeouts"] >= 1


async def test_a_remote_frame_asks_too():
    request = Request(0x100, False, b"", True, scan_s=0.05, timeout_s=0.04)
    async with Bus([status(request=request)]) as bus:
        frames = []
        await eventually(lambda: (frame := bus.peer.recv(0)) is not None and frames.append(frame) is None)
        assert (frames[0].arbitration_id, frames[0].is_remote_frame, frames[0].dlc) == (0x100, True, 2)


async def test_extended_and_fd_frames_with_multiplexing():
    branch = (("Page", frozenset({3})),)
    signals = [Signal("Page", 0, 8), Signal("Far", 496, 16, condition=branch)]
    message = describe(Message("Long", 0x18FF1234, True, 64, signals, is_fd=True))
    async with Bus([message]) as bus:
        # The virtual bus of the tests is a classic one; its receiver does not mind.
        data = b"\x03" + bytes(61) + b"\x34\x12"
        frame = can.Message(arbitration_id=0x18FF1234, is_extended_id=True, is_fd=True, data=data)
        bus.peer._can_protocol = can.CanProtocol.CAN_FD
        bus.peer.send(frame)
        await eventually(lambda: len(bus.batches) == 2)
        assert [list(batch.values) for batch in bus.batches] == [[3], [0x1234]]


async def test_write_answers_for_each_point():
    message, other = command(), status()
    x = point_of(message, "X")
    async with Bus([message, other], [x]) as bus:
        results = await bus.link.write({x: 7, point_of(other, "A"): 1})
        assert [result.outcome for result in results] == [WriteOutcome.WRITTEN, WriteOutcome.REFUSED]
        assert bus.heard() == [(0x200, b"\x07\x09")]


async def test_an_interface_that_is_not_there_is_a_lost_link():
    link = CanLink("can0", {"interface": "socketcan", "channel": "nocan7"}, [])
    with pytest.raises(LinkDownError):
        await link.connect()
    await link.close()


async def test_an_interface_that_nobody_knows_is_a_lost_link():
    with pytest.raises(LinkDownError):
        await CanLink("can0", {"interface": "telepathy", "channel": "x"}, []).connect()


async def test_a_driver_that_fails_while_it_reads_is_a_lost_link(monkeypatch):
    link = CanLink("can0", {"interface": "virtual", "channel": "broken"}, [status()])
    await link.connect()

    def fail(timeout=None):
        raise can.CanOperationError("the adapter was unplugged")

    monkeypatch.setattr(link._bus._bus, "recv", fail)
    with pytest.raises(LinkDownError, match="unplugged"):
        await link.run(lambda _: None, lambda _: None)
    await link.close()
    await link.connect()
    await link.close()


async def test_a_send_that_says_that_the_interface_is_gone_loses_the_link():
    message = command()
    async with Bus([message], [point_of(message, "X")]) as bus:

        def fail(frame, timeout=None):
            raise can.CanOperationError("send failed") from OSError(32, "broken pipe")

        bus.link._bus._bus.send = fail
        bus.route(point_of(message, "X"), 5)
        with pytest.raises(LinkDownError, match="broken pipe"):
            await asyncio.wait_for(bus._task, 2)


async def test_frames_that_nobody_takes_in_time_are_counted(monkeypatch):
    monkeypatch.setattr("fieldbus.canbus.python_can.MAX_PENDING_FRAMES", 10)
    async with Bus([status()]) as bus:
        for value in range(200):
            bus.say(0x100, bytes([value, 0]))
        # The loop is busy elsewhere; only the reader's thread works.
        deadline_s = time.monotonic() + 5
        while len(bus.link._bus._pending) + bus.link.counters["rx_dropped"] < 200:
            assert time.monotonic() < deadline_s
        await eventually(lambda: bus.link.counters["rx_frames"] + bus.link.counters["rx_dropped"] == 200)
        assert bus.link.counters["rx_dropped"] > 0
