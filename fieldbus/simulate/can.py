"""Simulated CAN nodes: each message of a database sent at its cycle time, requests answered.

The frames that the gateway itself sends are theirs to show, not to send: `on_frame` is told of them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import can

from fieldbus.canbus.codec import FrameEncoder
from fieldbus.canbus.layout import Condition
from fieldbus.canbus.link import CanMessage
from fieldbus.errors import ConversionError, LinkDownError
from fieldbus.simulate.motion import value_at

DEFAULT_CYCLE_S = 1.0
FrameSeen = Callable[[int, bytes], None]


class SimulatedNodes:
    """All nodes of one bus but the gateway."""

    def __init__(
        self,
        options: Mapping[str, object],
        messages: Sequence[CanMessage],
        sent_by_gateway: Collection[CanMessage],
        on_frame: FrameSeen | None = None,
    ) -> None:
        self._options = dict(options)
        self._own = [message for message in messages if message not in sent_by_gateway]
        self._asked = {
            (message.request.frame_id, message.request.is_extended): message
            for message in self._own
            if message.request is not None
        }
        self._seen = {message.message.frame_id for message in sent_by_gateway}
        self._encoders = {message: FrameEncoder(message.message) for message in self._own}
        self._on_frame = on_frame
        self._bus: can.BusABC | None = None
        self._began_s = 0.0

    async def open(self) -> None:
        """Join the bus.

        Raises:
            LinkDownError: there is none.
        """
        try:
            self._bus = await asyncio.to_thread(lambda: can.Bus(**self._options))  # type: ignore[arg-type]
        except (can.CanError, OSError, ValueError, ImportError) as error:
            raise LinkDownError(str(error)) from error

    async def run(self) -> None:
        """Send and answer until cancelled."""
        bus = self._bus
        if bus is None:
            raise LinkDownError("not open")
        loop = asyncio.get_running_loop()
        self._began_s = time.monotonic()
        is_running = True

        def listen() -> None:
            while is_running:
                try:
                    frame = bus.recv(0.1)
                    if frame is not None and is_running:
                        loop.call_soon_threadsafe(self._heard, frame)
                except (can.CanError, OSError, RuntimeError):
                    return

        listening = loop.run_in_executor(None, listen)
        try:
            await self._repeat()
        finally:
            is_running = False
            await asyncio.wait([listening], timeout=2.0)
            self._bus = None
            bus.shutdown()

    async def _repeat(self) -> None:
        order = itertools.count()
        queue = []
        for message in self._own:
            if message.request is None:
                cycle_s = message.message.cycle_s or message.cycle_s or DEFAULT_CYCLE_S
                branches = itertools.cycle(list(message.message.branches()) or [()])
                queue.append((self._began_s, next(order), cycle_s, message, branches))
        heapq.heapify(queue)
        while queue:
            due_s, number, cycle_s, message, branches = queue[0]
            now_s = time.monotonic()
            if due_s > now_s:
                await asyncio.sleep(due_s - now_s)
                continue
            self._send(message, next(branches))
            heapq.heapreplace(queue, (max(due_s + cycle_s, now_s), number, cycle_s, message, branches))
        await asyncio.Event().wait()  # all nodes speak only when asked

    def _heard(self, frame: can.Message) -> None:
        message = self._asked.get((frame.arbitration_id, frame.is_extended_id))
        if message is not None and message.request is not None:
            request = message.request
            if request.is_remote == frame.is_remote_frame and (
                request.is_remote or bytes(frame.data) == request.data
            ):
                self._send(message, next(iter(message.message.branches()), ()))
        elif self._on_frame is not None and frame.arbitration_id in self._seen:
            self._on_frame(frame.arbitration_id, bytes(frame.data))

    def _send(self, message: CanMessage, branch: Condition) -> None:
        encoder = self._encoders[message]
        seconds = time.monotonic() - self._began_s
        selectors = {name for signal in message.message.signals for name, _ in signal.condition}
        for signal, point in message.points.items():
            if signal.name in selectors:
                continue
            try:
                encoder.set(signal.name, value_at(point, seconds))
            except ConversionError:
                continue  # the declared range is wider than the bits: the start value stays
        if self._bus is None:
            return
        try:
            self._bus.send(
                can.Message(
                    arbitration_id=message.message.frame_id,
                    is_extended_id=message.message.is_extended,
                    is_fd=message.message.is_fd,
                    bitrate_switch=message.message.is_fd,
                    data=encoder.frame(branch),
                )
            )
        except (can.CanError, OSError, ValueError):
            return  # a bus that is away now will be told at the next cycle
