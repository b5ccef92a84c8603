"""A SocketCAN bus where there is no CAN: what it makes of what the kernel says."""

import asyncio
import errno
import socket
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldbus.canbus.bus import FD
from fieldbus.canbus.kernel import socketcan
from fieldbus.canbus.kernel.frames import pack_frame
from fieldbus.canbus.kernel.socketcan import SocketCanBus, open_socketcan
from fieldbus.clock import Clock
from fieldbus.errors import LinkDownError, RefusedError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SocketCAN is Linux's")


class Raw(socket.socket):
    """A socket that sends nothing but fails as it is told to."""

    def __init__(self):
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.setblocking(False)
        self.fault = None
        self.sent = []

    def send(self, frame):
        if self.fault is not None:
            raise OSError(self.fault, "")
        self.sent.append(frame)


@pytest.fixture
def raw():
    with Raw() as made:
        yield made


@pytest.fixture
def bus(raw):
    return SocketCanBus(raw, "can0", 1)


readings = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 10**6)), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(readings)
def test_losses_are_exact_across_the_counters_end_whatever_old_reading_comes_late(raw, steps):
    bus = SocketCanBus(raw, "can0", 1)
    total = 0
    for lost, age in steps:
        total += lost
        bus._count(total & 0xFFFF_FFFF)
        bus._count(max(0, total - age) & 0xFFFF_FFFF)
        assert bus.dropped == total


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EAGAIN])
def test_a_queue_without_room_is_no_error(raw, bus, code):
    raw.fault = code
    assert bus.send(1, b"") is False
    raw.fault = None
    assert bus.send(1, b"") is True
    assert len(raw.sent) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EMSGSIZE])
def test_what_the_interface_cannot_send_is_refused_and_the_next_is_sent(raw, bus, code):
    raw.fault = code
    with pytest.raises(RefusedError, match="can0 takes no CAN FD frames"):
        bus.send(1, bytes(12), FD)
    raw.fault = None
    assert bus.send(1, b"") is True


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENETDOWN, "network is down"), (errno.ENODEV, "no such device"), (errno.ENXIO, "no such device")],
)
async def test_what_the_kernel_says_once_is_said_ever_after(raw, bus, code, said):
    told = []
    bus.start(lambda: None, told.append)
    raw.fault = code
    with pytest.raises(LinkDownError, match=said):
        bus.send(1, b"")
    raw.fault = None
    for act in (
        lambda: bus.send(1, b""),
        lambda: bus.drain(1),
        lambda: bus.select([]),
        lambda: bus.repeat(1, [b""], 1),
    ):
        with pytest.raises(LinkDownError, match=said):
            act()
    await asyncio.sleep(0)
    assert [str(error) for error in told] == [said]
    await bus.close()
    await bus.close()


async def test_a_closed_bus_says_so(bus):
    bus.start(lambda: None, lambda _: None)
    await bus.close()
    with pytest.raises(LinkDownError, match="closed"):
        bus.drain(1)
    bus.status()


async def test_a_system_without_socketcan_is_a_link_that_is_down(monkeypatch):
    monkeypatch.delattr(socket, "AF_CAN", raising=False)
    with pytest.raises(LinkDownError, match="no SocketCAN"):
        await open_socketcan("can0", fd=False)


async def test_what_is_opened_for_nobody_is_closed(monkeypatch, raw):
    may_open, opened = threading.Event(), []

    def slowly(*_):
        may_open.wait(10)
        opened.append(SocketCanBus(raw, "can0", 1))
        return opened[0]

    monkeypatch.setattr(socketcan, "_open", slowly)
    task = asyncio.create_task(open_socketcan("can0", fd=False))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_open.set()
    deadline = time.monotonic() + 5
    while raw.fileno() >= 0:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# --- frames that come fast

LATENCY_S = 0.002


class HandLoop:
    """An event loop and a clock that the test turns by hand."""

    def __init__(self):
        self.now_s = 1000.0
        self.readers = {}
        self.timers = []

    def add_reader(self, fd, callback):
        self.readers[fd] = callback

    def remove_reader(self, fd):
        return self.readers.pop(fd, None) is not None

    def call_later(self, delay_s, callback):
        timer = HandTimer(self, self.now_s + delay_s, callback)
        self.timers.append(timer)
        return timer

    def call_soon(self, callback, *arguments):
        return self.call_later(0, lambda: callback(*arguments))

    @property
    def waits_on_socket(self):
        return bool(self.readers)

    def pass_time(self, seconds):
        """Let time pass, and what is due happen."""
        end_s = self.now_s + seconds
        while self.timers and min(timer.due_s for timer in self.timers) <= end_s:
            timer = min(self.timers, key=lambda timer: timer.due_s)
            self.timers.remove(timer)
            self.now_s = max(self.now_s, timer.due_s)
            timer.callback()
        self.now_s = end_s


class HandTimer:
    """A timer of it."""

    def __init__(self, loop, due_s, callback):
        self.loop, self.due_s, self.callback = loop, due_s, callback

    def cancel(self):
        if self in self.loop.timers:
            self.loop.timers.remove(self)


class Traffic:
    """A bus on a datagram socket, and who takes its frames: `taken` has what each call brought."""

    def __init__(self, monkeypatch, latency_s, limit=1000):
        self.loop = HandLoop()
        monkeypatch.setattr(socketcan.asyncio, "get_running_loop", lambda: self.loop)
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.raw.bind(("127.0.0.1", 0))
        self.raw.setblocking(False)
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.connect(self.raw.getsockname())
        self.bus = SocketCanBus(
            self.raw, "can0", 1, latency_s=latency_s, clock=Clock(lambda: self.loop.now_s)
        )
        self.limit = limit
        self.taken = []
        self.told = []
        self.sent = 0
        self.bus.start(self.ready, self.told.append)

    def ready(self):
        try:
            self.taken.append([frame.can_id for frame in self.bus.drain(self.limit)])
        except LinkDownError as error:
            self.told.append(error)

    def come(self, count=1):
        """Have frames come, numbered; the loop sees them if it waits."""
        for _ in range(count):
            self.peer.send(pack_frame(self.sent % 0x800, b"", 0))
            self.sent += 1
        if self.loop.waits_on_socket:
            self.loop.readers[self.raw.fileno()]()

    def run(self, count, gap_s):
        """Have frames come one by one; return in how many turns they were taken."""
        before = len(self.taken)
        for _ in range(count):
            self.come()
            self.loop.pass_time(gap_s)
        return len(self.taken) - before

    @property
    def received(self):
        return [number for numbers in self.taken for number in numbers]


@pytest.fixture
def traffic(monkeypatch):
    made = []

    def make(latency_s=LATENCY_S, **options):
        made.append(Traffic(monkeypatch, latency_s, **options))
        return made[-1]

    yield make
    for item in made:
        item.bus.close_now()
        item.peer.close()


def test_frames_that_come_fast_are_taken_together_and_in_order(traffic):
    found = traffic()
    found.run(20, 0.0002)
    turns = found.run(1000, 0.0002)
    assert 95 <= turns <= 105  # ten of them in two milliseconds
    found.loop.pass_time(LATENCY_S)
    assert found.received == list(range(1020))


def test_frames_that_come_slowly_are_each_taken_at_once(traffic):
    found = traffic()
    for number in range(100):
        found.come()
        assert found.received == list(range(number + 1))
        found.loop.pass_time(0.001)
    assert found.loop.waits_on_socket


def test_no_frame_waits_for_longer_than_the_latency(traffic):
    found = traffic()
    found.run(20, 0.0002)
    assert not found.loop.waits_on_socket
    found.loop.pass_time(LATENCY_S / 2)
    before = len(found.received)
    found.come(3)
    found.loop.pass_time(LATENCY_S)
    assert len(found.received) >= before + 3


def test_the_first_frame_after_a_silence_is_taken_at_once(traffic):
    found = traffic()
    for _ in range(5):
        found.run(100, 0.0002)
        found.loop.pass_time(3 * LATENCY_S)
        assert found.loop.waits_on_socket
        assert found.received == list(range(found.sent))
        turns = len(found.taken)
        found.loop.pass_time(10.0)
        assert len(found.taken) == turns  # nobody looks where nothing comes
        found.come()
        assert found.received == list(range(found.sent))


def test_without_latency_nothing_waits(traffic):
    found = traffic(latency_s=0.0)
    assert found.run(100, 0.00001) == 100
    assert found.loop.timers == []


def test_who_drains_while_frames_wait_has_them_all(traffic):
    """As is done before a sender is called silent."""
    found = traffic()
    found.run(20, 0.0002)
    found.loop.pass_time(LATENCY_S / 4)
    found.come(5)
    found.ready()
    assert found.received == list(range(found.sent))


def test_what_one_turn_leaves_is_taken_without_waiting(traffic):
    found = traffic(limit=10)
    found.run(40, 0.0002)
    assert not found.loop.waits_on_socket
    found.come(95)
    found.loop.pass_time(LATENCY_S)
    assert found.received == list(range(found.sent))


def test_a_bus_that_ends_while_nobody_waits_on_its_socket_says_so(traffic):
    found = traffic()
    found.run(20, 0.0002)
    assert not found.loop.waits_on_socket
    target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    target.bind(("127.0.0.1", 0))
    found.raw.connect(target.getsockname())
    target.close()
    found.raw.send(b"nobody is there")
    found.loop.pass_time(2 * LATENCY_S)
    assert {str(error) for error in found.told} == {"connection refused"}
    assert found.loop.timers == []


def test_a_bus_that_is_closed_while_frames_wait_looks_no_more(traffic):
    found = traffic()
    found.run(20, 0.0002)
    assert not found.loop.waits_on_socket
    found.bus.close_now()
    assert found.loop.timers == []


@pytest.mark.parametrize("is_first", [True, False])
def test_who_closes_the_bus_as_frames_come_is_not_called_again(traffic, is_first):
    found = traffic()
    found.run(0 if is_first else 20, 0.0002)
    found.bus._ready = found.bus.close_now
    found.come()
    found.loop.pass_time(1.0)
    assert found.loop.timers == []
    assert not found.loop.waits_on_socket


def _loops():
    found = [asyncio.new_event_loop]
    try:
        import uvloop
    except ImportError:
        return found
    return [*found, uvloop.new_event_loop]


@pytest.mark.parametrize("loop_factory", _loops())
def test_in_a_real_loop_all_are_taken_too(loop_factory):
    async def run():
        raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw.bind(("127.0.0.1", 0))
        raw.setblocking(False)
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.connect(raw.getsockname())
        bus = SocketCanBus(raw, "can0", 1, latency_s=LATENCY_S)
        received = []
        bus.start(lambda: received.extend(frame.can_id for frame in bus.drain(1000)), received.append)
        for part in range(4):
            for number in range(100):
                peer.send(pack_frame(100 * part + number, b"", 0))
                await asyncio.sleep(0)
            deadline = time.monotonic() + 5
            while len(received) < 100 * (part + 1):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
        assert received == list(range(400))
        await bus.close()
        peer.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
