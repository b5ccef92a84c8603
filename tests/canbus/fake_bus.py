"""A bus for tests: what comes in is put there, what goes out is kept, everything can go wrong on demand."""

import asyncio

from fieldbus.canbus import link as link_module
from fieldbus.canbus.bus import BusStatus, Frame
from fieldbus.canbus.link import CanLink
from fieldbus.clock import SYSTEM
from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, DeviceHealth, Notice, Target
from fieldbus.model import Quality, Sample


class FakeCyclic:
    """What the bus repeats: only noted."""

    def __init__(self, bus, can_id, frames, period_s):
        self.can_id, self.frames, self.period_s = can_id, list(frames), period_s
        self.updates, self.alive, self.is_over = 0, 0, False
        bus.sent.append((can_id, self.frames[0]))
        self._bus = bus

    def update(self, frames, *, at_once):
        if self.is_over:
            return
        self.frames = list(frames)
        self.updates += 1
        if at_once:
            self._bus.sent.append((self.can_id, self.frames[0]))

    def keep_alive(self):
        self.alive += 1

    def stop(self):
        self.is_over = True


class FakeBus:
    """See `fieldbus.canbus.bus.Bus`."""

    def __init__(self, *, has_clock=False):
        self.dropped = 0
        self.sent = []
        self.cyclics = []
        self.filters = "never set"
        self.now = BusStatus(frames=0, data_bytes=0)
        self.room = None
        """How many frames more it takes; None for all."""
        self.restarts = 0
        self.refusal = None
        self.is_gone = False
        self._has_clock = has_clock
        self._incoming = []
        self._ready = self._lost = None

    # --- for the test

    def come(self, can_id, data, flags=0, time_ns=None):
        self._incoming.append(Frame(can_id, bytes(data), time_ns or SYSTEM.wall_ns(), flags))
        if self._ready is not None:
            asyncio.get_running_loop().call_soon(self._ready)

    def lose(self, text="network is down"):
        self._lost(LinkDownError(text))

    def taken(self):
        found, self.sent = self.sent, []
        return found

    # --- the contract

    def start(self, ready, lost):
        self._ready, self._lost = ready, lost
        if self._incoming:
            asyncio.get_running_loop().call_soon(ready)

    def drain(self, limit):
        found, self._incoming = self._incoming[:limit], self._incoming[limit:]
        return found

    def send(self, can_id, data, flags=0):
        if self.is_gone:
            raise LinkDownError("network is down")
        if self.room is not None:
            if self.room <= 0:
                return False
            self.room -= 1
        self.sent.append((can_id, bytes(data)))
        return True

    def repeat(self, can_id, frames, period_s, flags=0):
        if not self._has_clock:
            return None
        for cyclic in self.cyclics:
            if cyclic.can_id == can_id:
                cyclic.is_over = True  # an identifier is repeated once
        self.cyclics.append(FakeCyclic(self, can_id, frames, period_s))
        return self.cyclics[-1]

    def select(self, filters):
        self.filters = None if filters is None else list(filters)

    def status(self):
        return self.now

    async def restart(self):
        self.restarts += 1
        return self.refusal

    async def close(self):
        self._ready = None


class Running:
    """A link that runs on a fake bus."""

    def __init__(self, monkeypatch, messages, targets=(), wanted=None, *, bus=None, **more):
        self.bus = bus or FakeBus()

        async def open_bus(_options, *, clock):
            return self.bus

        monkeypatch.setattr(link_module, "open_bus", open_bus)
        self.link = CanLink("can0", {"interface": "fake", "channel": "0"}, messages, targets, wanted, **more)
        self.batches, self.reports = [], []
        self.task = None

    async def __aenter__(self):
        await self.begin()
        return self

    async def begin(self):
        await self.link.connect()
        self.task = asyncio.create_task(self.link.run(self.batches.append, self.reports.append))
        await asyncio.sleep(0)

    async def __aexit__(self, *_):
        await self.end()

    async def end(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.link.close()

    @property
    def online(self):
        return [event.is_online for event in self.reports if isinstance(event, DeviceHealth)]

    @property
    def notices(self):
        return [event.text for event in self.reports if isinstance(event, Notice)]

    def route(self, point, value, reason="timeout"):
        sample = (
            Sample(value, Quality.GOOD, None, 1)
            if value is not None
            else Sample(None, Quality.BAD, reason, 1)
        )
        return self.link.send([Delivery(Target("can0", point), point, sample)])

    def latest(self, name):
        """Return value and reason of a point, as last told."""
        for batch in reversed(self.batches):
            for index, point in enumerate(batch.group.points):
                if point.name == name:
                    return batch.sample(index).value, batch.sample(index).reason
        return None
