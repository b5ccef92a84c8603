"""The transmit queue, step by step in a time of its own: order, age, room, and what one odd item must not hide."""

import heapq
import itertools

import pytest
from fake_bus import FakeBus
from test_listening import describe, point_of

from fieldbus.canbus.bus import EXTENDED
from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.protection import Counter, Protection
from fieldbus.canbus.sending import MAX_QUEUE, QUEUE_AGE_S, Sender
from fieldbus.clock import Clock
from fieldbus.errors import RefusedError
from fieldbus.link import Delivery, Target, WriteOutcome
from fieldbus.model import Access, Kind, Point, Quality, Sample

FIRST_PACKET = 0x1CEBFF80 | EXTENDED
"""TP.DT of address 80."""
RETRY_S = 0.002


class Steps:
    """A schedule whose time goes on only when a test says so."""

    def __init__(self):
        self.now_s = 1000.0
        self._heap = []
        self._order = itertools.count()

    def at(self, due_s, act):
        heapq.heappush(self._heap, (due_s, next(self._order), act))

    def go(self, seconds):
        end_s = self.now_s + seconds
        while self._heap and self._heap[0][0] <= end_s:
            due_s, _, act = heapq.heappop(self._heap)
            self.now_s = max(self.now_s, due_s)
            again_s = act(self.now_s)
            if again_s is not None:
                self.at(again_s, act)
        self.now_s = end_s


class Queue:
    """A sender on a fake bus."""

    def __init__(self, *messages, targets=None, bus=None, **more):
        self.steps, self.bus = Steps(), bus or FakeBus()
        self.counters = dict.fromkeys(("tx_frames", "tx_dropped", "tx_delayed", "conversions_failed"), 0)
        self.lost, self.notices = [], []
        if targets is None:
            targets = {point for message in messages for point in message.points.values()}
        clock = Clock(lambda: self.steps.now_s)
        self.sender = Sender(messages, set(targets), self.counters, clock=clock, **more)
        self.start()

    def start(self):
        self.sender.start(self.bus, self.steps, self.lost.append, self.notices.append)

    def route(self, *pairs):
        return self.sender.take(
            [
                Delivery(Target("can0", point), point, Sample(value, quality_of(value), None, 1))
                for point, value in pairs
            ]
        )


def quality_of(value):
    return Quality.BAD if value is None else Quality.GOOD


def one_byte(number, **more):
    """Return a message of one signal."""
    return describe(Message(f"M{number}", 0x100 + number, False, 1, [Signal("X", 0, 8)]), **more)


def x_of(message):
    return point_of(message, "X")


def counted(can_id=0x300, **more):
    layout = Message("Counted", can_id, False, 2, [Signal("X", 0, 8), Signal("Alive", 8, 4)])
    return describe(layout, guard=lambda: Protection(layout, None, Counter("Alive")), **more)


# --- odd items in a batch


def test_a_delivery_that_is_none_of_ours_hides_nothing_behind_it():
    queue, other = Queue(message := one_byte(1)), one_byte(2)
    assert queue.route((x_of(other), 1), (None, 2), (x_of(message), 3)) == ()
    assert queue.bus.taken() == [(0x101, b"\x03")]


def test_a_value_that_does_not_fit_hides_nothing_behind_it():
    first, second = one_byte(1), one_byte(2)
    queue = Queue(first, second)
    queue.route((x_of(first), 7))
    queue.bus.taken()
    queue.route((x_of(first), 300), (x_of(second), 3))
    assert queue.bus.taken() == [(0x102, b"\x03")]
    assert queue.counters["conversions_failed"] == 1
    queue.route((x_of(first), 7))  # the same as before it could not be said
    assert queue.bus.taken() == [(0x101, b"\x07")]


def test_a_value_beyond_the_limits_of_its_point_is_never_sent():
    signal = Signal("X", 0, 8)
    point = Point("ecu", "M.X", Kind.INT, Access.READWRITE, maximum=100)
    message = describe(Message("M", 0x101, False, 1, [signal]), safe={signal: 1})
    message.points[signal] = point
    queue = Queue(message)
    queue.route((point, 100))
    queue.route((point, 101))
    assert queue.bus.taken() == [(0x101, b"\x64"), (0x101, b"\x01")]
    assert queue.counters["conversions_failed"] == 1


async def test_a_write_of_a_foreign_point_hides_no_other_write():
    first, second, other = one_byte(1), one_byte(2), one_byte(3)
    queue = Queue(first, second)
    points = [x_of(other), x_of(first), x_of(second)]
    results = await queue.sender.write({points[0]: 1, points[1]: 256, points[2]: 3})
    assert [result.point for result in results] == points
    assert [result.outcome for result in results] == [
        WriteOutcome.REFUSED, WriteOutcome.REFUSED, WriteOutcome.WRITTEN,
    ]  # fmt: skip
    assert results[0].reason == "not sent by us"
    assert queue.bus.taken() == [(0x102, b"\x03")]


async def test_each_value_of_a_refused_message_has_its_own_reason():
    message = describe(Message("M", 0x101, False, 2, [Signal("X", 0, 8), Signal("Y", 8, 8)]))
    queue = Queue(message)
    x, y = message.points.values()
    fine, refused = await queue.sender.write({x: 1, y: 256})
    assert fine.reason == "not sent, because M.Y was refused"
    assert "256" in refused.reason


def test_nothing_is_taken_without_a_bus():
    queue = Queue(message := one_byte(1))
    queue.sender.stop()
    assert not queue.sender.is_up
    assert len(queue.route((x_of(message), 1))) == 1
    queue.start()
    assert queue.sender.is_up
    queue.steps.go(1)
    assert queue.bus.taken() == []


# --- what waits for room


def test_frames_that_wait_go_out_in_their_order():
    messages = [one_byte(number) for number in range(4)]
    queue = Queue(*messages)
    queue.bus.room = 0
    for message in messages:
        queue.route((x_of(message), 1))
    queue.route((x_of(messages[0]), 2))
    queue.bus.room = 2
    queue.route((x_of(messages[1]), 3))  # it does not overtake the one before it
    assert queue.bus.taken() == []
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x100, b"\x02"), (0x101, b"\x03")]
    queue.bus.room = 9
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x102, b"\x01"), (0x103, b"\x01")]
    assert queue.counters == {"tx_frames": 4, "tx_dropped": 0, "tx_delayed": 0, "conversions_failed": 0}
    queue.bus.room = 0
    queue.route((x_of(messages[0]), 5))  # the next that finds no room is tried again too
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x100, b"\x05")]


def test_a_frame_that_is_too_old_hides_none_behind_it():
    old, young = one_byte(1), one_byte(2)
    queue = Queue(old, young)
    queue.bus.room = 0
    queue.route((x_of(old), 1))
    queue.steps.go(QUEUE_AGE_S / 2)
    queue.route((x_of(young), 2))
    queue.route((x_of(old), 3))  # a newer content does not make the wait longer
    queue.steps.go(QUEUE_AGE_S / 2)
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x102, b"\x02")]
    assert queue.counters["tx_dropped"] == 1
    queue.sender.resume(after_outage=False)  # the change of the dropped frame is still owed
    assert queue.bus.taken() == [(0x101, b"\x03")]


def test_a_frame_waits_for_its_whole_time():
    queue = Queue(message := one_byte(1))
    queue.bus.room = 0
    queue.route((x_of(message), 1))
    queue.steps.go(QUEUE_AGE_S - 2 * RETRY_S)
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x101, b"\x01")]


def test_the_queue_is_bounded_and_the_newest_that_do_not_fit_are_dropped():
    messages = [one_byte(number) for number in range(MAX_QUEUE + 2)]
    queue = Queue(*messages)
    queue.bus.room = 0
    for message in messages:
        queue.route((x_of(message), 1))
    assert queue.counters["tx_dropped"] == 2
    queue.route((x_of(messages[0]), 2))  # which waits already: there is a place for it
    assert queue.counters["tx_dropped"] == 2
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    sent = queue.bus.taken()
    assert len(sent) == MAX_QUEUE
    assert sent[0] == (0x100, b"\x02")
    queue.sender.resume(after_outage=False)
    assert queue.bus.taken() == [(0x100 + MAX_QUEUE, b"\x01"), (0x101 + MAX_QUEUE, b"\x01")]


def test_a_source_that_goes_bad_takes_only_its_own_frame_out():
    bad, good = one_byte(1), one_byte(2)
    queue = Queue(bad, good)
    queue.bus.room = 0
    queue.route((x_of(bad), 1), (x_of(good), 2))
    queue.route((x_of(bad), None))
    assert queue.counters["tx_dropped"] == 1
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x102, b"\x02")]


def test_a_change_that_a_lost_address_took_from_the_queue_is_owed():
    queue = Queue(message := one_byte(1))
    queue.bus.room = 0
    queue.route((x_of(message), 1))
    queue.sender.still_all()
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == []
    queue.sender.resume(after_outage=False)
    assert queue.bus.taken() == [(0x101, b"\x01")]


def test_what_waited_for_a_lost_bus_is_not_sent_on_the_next():
    queue = Queue(message := one_byte(1))
    queue.bus.room = 0
    queue.route((x_of(message), 1))
    queue.sender.stop()
    queue.steps.go(RETRY_S)
    queue.bus.room = None
    queue.start()
    queue.steps.go(1)
    assert queue.bus.taken() == []
    queue.bus.room = 0
    queue.route((x_of(message), 2))  # and its queue works as before
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x101, b"\x02")]


def test_a_bus_that_is_lost_under_the_queue_is_told_once():
    queue = Queue(message := one_byte(1))
    queue.bus.room = 0
    queue.route((x_of(message), 1))
    queue.bus.is_gone = True
    queue.steps.go(RETRY_S)
    assert [str(error) for error in queue.lost] == ["network is down"]


def test_a_frame_that_can_never_go_is_counted_and_hides_none_behind_it():
    first, second = one_byte(1), one_byte(2)
    queue = Queue(first, second)
    queue.bus.room = 0
    queue.route((x_of(first), 1), (x_of(second), 2))
    queue.bus.room = None
    send = queue.bus.send

    def choosy(can_id, data, flags=0):
        if can_id == 0x101:
            raise RefusedError("no such identifier here")
        return send(can_id, data, flags)

    queue.bus.send = choosy
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(0x102, b"\x02")]
    assert queue.notices == ["0x101 cannot be sent: no such identifier here"]
    assert (queue.counters["tx_frames"], queue.counters["tx_dropped"]) == (1, 1)


# --- frames that are no routed messages


def test_packets_keep_their_order_and_each_counts():
    queue = Queue(one_byte(1))
    queue.bus.room = 1
    for data in (b"\x01", b"\x02", b"\x02", b"\x03"):
        assert queue.sender.send_raw(FIRST_PACKET, data)
    queue.bus.room = None
    assert queue.sender.send_raw(FIRST_PACKET, b"\x04")  # there is room, but others wait before it
    assert queue.sender.send_raw(0x7FF, b"\x05")  # which is no packet
    queue.steps.go(RETRY_S)
    assert [data for _, data in queue.bus.taken()] == [b"\x01", b"\x05", b"\x02", b"\x02", b"\x03", b"\x04"]


def test_a_packet_does_not_wait_for_frames_that_are_none():
    queue = Queue(message := one_byte(1))
    queue.bus.room = 0
    queue.route((x_of(message), 1))
    queue.sender.send_raw(0x7FF, b"\x05")
    queue.bus.room = None
    queue.sender.send_raw(FIRST_PACKET, b"\x01")
    assert queue.bus.taken() == [(FIRST_PACKET, b"\x01")]


@pytest.mark.parametrize("can_id", [0x7FF, 0x18EAFF80 | EXTENDED])
def test_the_same_request_waits_only_once(can_id):
    queue = Queue(one_byte(1))
    queue.bus.room = 0
    for data in (b"\x05", b"\x05", b"\x06"):
        assert queue.sender.send_raw(can_id, data)
    queue.bus.room = None
    queue.steps.go(RETRY_S)
    assert queue.bus.taken() == [(can_id, b"\x05"), (can_id, b"\x06")]


def test_nothing_is_sent_on_a_silent_bus_nor_kept_for_later():
    queue = Queue(message := one_byte(1, cycle_s=0.1))
    queue.route((x_of(message), 1))
    queue.bus.taken()
    queue.sender.silence()
    assert not queue.sender.send_raw(0x7FF, b"\x05")
    assert len(queue.route((x_of(message), 2))) == 1
    queue.steps.go(1)
    assert queue.bus.taken() == []
    queue.sender.is_silent = False
    queue.sender.resume(after_outage=True)
    assert queue.bus.taken() == [(0x101, b"\x02")]
    queue.start()
    assert queue.sender.is_up


def test_after_an_outage_a_command_is_not_given_again_but_a_safe_value_is():
    command, kept = one_byte(1), one_byte(2)
    (signal,) = kept.message.signals
    kept = describe(kept.message, safe={signal: 9})
    queue = Queue(command, kept)
    queue.route((x_of(command), 1), (x_of(kept), 1))
    queue.bus.taken()
    queue.sender.silence()
    queue.route((x_of(command), 2), (x_of(kept), None))
    queue.sender.is_silent = False
    queue.sender.resume(after_outage=True)
    assert queue.bus.taken() == [(0x102, b"\x09")]
    queue.sender.resume(after_outage=False)  # as with a new address: there was no outage
    assert queue.bus.taken() == [(0x101, b"\x02")]
    queue.sender.resume(after_outage=False)
    assert queue.bus.taken() == []


async def test_a_write_on_a_silent_bus_is_not_written():
    queue = Queue(message := one_byte(1))
    queue.sender.silence()
    (result,) = await queue.sender.write({x_of(message): 1})
    assert result.outcome is WriteOutcome.FAILED
    assert queue.bus.taken() == []
