"""Buses of python-can: what drivers do, contained."""

import asyncio
import os
import threading
import time

import can
import pytest
from conftest import eventually

from fieldbus.canbus import python_can
from fieldbus.canbus.bus import FOREIGN_TIME
from fieldbus.canbus.python_can import PythonCanBus
from fieldbus.errors import LinkDownError


class Driver(can.BusABC):
    """A driver that does as it is told."""

    def __init__(self, *, has_descriptor=False):
        super().__init__(channel="driver")
        self.frames = []
        self.sent = []
        self.gate = threading.Event()
        self.gate.set()
        self.error = None
        self.told = can.BusState.ACTIVE
        self._pipe = os.pipe() if has_descriptor else None
        if self._pipe:
            os.write(self._pipe[1], b"\0")

    @property
    def state(self):
        return self.told

    def recv(self, timeout=None):
        if self.error is not None:
            raise self.error
        if self.frames:
            return self.frames.pop(0)
        if timeout:
            time.sleep(min(timeout, 0.01))
        return None

    def send(self, msg, timeout=None):
        self.gate.wait(10)
        self.sent.append(msg.arbitration_id)

    def fileno(self):
        if self._pipe is None:
            raise NotImplementedError
        return self._pipe[0]

    def shutdown(self):
        super().shutdown()
        if self._pipe:
            for end in self._pipe:
                os.close(end)
            self._pipe = None


def nothing(*_):
    pass


async def test_a_driver_that_blocks_while_it_sends_holds_nobody_up():
    driver = Driver()
    driver.gate.clear()
    bus = PythonCanBus(driver, may_block=True)
    bus.start(nothing, nothing)
    began_s = time.monotonic()
    taken = [bus.send(number, b"") for number in range(200)]
    assert time.monotonic() - began_s < 1.0
    assert taken.count(True) <= python_can.MAX_UNSENT_FRAMES + 1
    assert not taken[-1]
    driver.gate.set()
    await eventually(lambda: len(driver.sent) == taken.count(True))
    assert driver.sent == sorted(driver.sent)
    await bus.close()


async def test_nothing_to_read_now_and_then_is_not_the_end():
    bus = PythonCanBus(Driver(has_descriptor=True))
    bus.start(nothing, nothing)
    for _ in range(python_can._EMPTY_READS + 10):
        assert bus.drain(10) == []
        time.sleep(0.0005)
    await bus.close()


async def test_nothing_to_read_again_and_again_at_once_is_a_closed_connection(monkeypatch):
    monkeypatch.setattr(python_can, "_EMPTY_S", 60.0)
    bus = PythonCanBus(Driver(has_descriptor=True))
    bus.start(nothing, nothing)
    with pytest.raises(LinkDownError, match="closed"):
        for _ in range(python_can._EMPTY_READS + 10):
            bus.drain(10)
    await bus.close()


@pytest.mark.parametrize(
    "error", [RuntimeError("gone"), can.CanOperationError("gone"), ZeroDivisionError("gone")]
)
async def test_whatever_a_reader_dies_of_is_a_lost_bus(error):
    driver = Driver()
    bus = PythonCanBus(driver)
    found = []
    bus.start(nothing, found.append)
    driver.error = error
    await eventually(lambda: found)
    assert str(found[0]) == "gone"
    await bus.close()


async def test_a_driver_that_has_ever_said_that_something_is_wrong_knows_when_nothing_is():
    driver = Driver()
    bus = PythonCanBus(driver)
    assert bus.status().state is None
    driver.told = can.BusState.ERROR
    assert bus.status().state == 3
    driver.told = can.BusState.ACTIVE
    assert bus.status().state == 0
    await bus.close()


async def test_a_bus_that_is_opened_too_late_is_closed_again(monkeypatch):
    made = []
    gate = threading.Event()

    def slow(**_options):
        gate.wait(10)
        made.append(Driver())
        return made[0]

    monkeypatch.setattr(can, "Bus", slow)
    closed = []
    monkeypatch.setattr(Driver, "shutdown", lambda self: closed.append(self))  # noqa: PLW0108
    opening = asyncio.create_task(python_can.open_python_can({"interface": "slow"}))
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await eventually(lambda: closed == made and made)
    can.BusABC.shutdown(made[0])


async def test_the_time_of_a_frame_is_kept_and_said_not_to_be_ours():
    bus = PythonCanBus(Driver())
    stamp_s = time.time() - 3
    [frame] = bus._frames([can.Message(arbitration_id=5, data=b"\1", timestamp=stamp_s)], time.time_ns())
    assert abs(frame.time_ns - stamp_s * 1e9) < 1e6
    assert frame.flags & FOREIGN_TIME
    await bus.close()
