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
from fieldbus.canbus.kernel.socketcan import SocketCanBus, open_socketcan
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
