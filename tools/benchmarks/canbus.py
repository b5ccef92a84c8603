"""Frames a second through the CAN decoder and the CAN link, against bare cantools.

The decoder is given the data bytes of one message with eight signals, all of it and one signal of it.
The link runs as the gateway runs it, in the event loop, on a driver that costs next to nothing: frames
of `ReplayBus` are made beforehand. cantools is its ``message.decode`` as it comes, which has no way to
decode one signal only, and, beside the link, its lookup by identifier.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import can
import cantools

from fieldbus.canbus.codec import BranchDecoder
from fieldbus.canbus.database import load
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.settings import CanDeviceSettings, build_messages
from fieldbus.gateway import loop
from fieldbus.link import DeviceHealth, WriteResult
from fieldbus.model import Batch

from .measure import Row, Series, Span, Yardstick, in_turns, rate_text, ratio, seconds_per_call
from .peers import Peers

DATABASE = """VERSION ""
NS_ :
BS_:
BU_: Engine Gateway
BO_ 256 EngineStatus: 8 Engine
 SG_ Speed : 0|16@1+ (0.125,0) [0|8031.875] "rpm" Gateway
 SG_ Torque : 16|8@1+ (1,-125) [-125|125] "%" Gateway
 SG_ Coolant : 24|8@1- (1,0) [-40|120] "degC" Gateway
 SG_ OilPressure : 39|12@0+ (0.05,0) [0|100] "bar" Gateway
 SG_ Throttle : 43|8@0+ (0.4,0) [0|102] "%" Gateway
 SG_ Gear : 48|3@1+ (1,0) [0|7] "" Gateway
 SG_ Running : 51|1@1+ (1,0) [0|1] "" Gateway
 SG_ Fuel : 56|8@1+ (0.4,0) [0|102] "%" Gateway
"""
"""One message as they are: eight signals, both byte orders, scaled, with ranges."""
_FRAMES = 256
_WAVE = 64
"""Frames that the driver has each time that the link looks."""


class ReplayBus(can.BusABC):
    """A driver that always has frames, made beforehand, and now and then says that it has none."""

    def __init__(self, frames: Sequence[can.Message]) -> None:
        super().__init__(channel="replay")
        waves = [frames[start : start + _WAVE] for start in range(0, len(frames), _WAVE)]
        self._frames = cycle([frame for wave in waves for frame in (*wave, None)])
        self._ready, self._writer = os.pipe()
        os.write(self._writer, b"\0")

    def recv(self, timeout: float | None = None) -> can.Message | None:
        """Return the next frame, or None at the end of a wave."""
        del timeout
        return next(self._frames)

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Take a frame, to no effect."""

    def fileno(self) -> int:
        """Return a file descriptor that can always be read."""
        return self._ready

    def shutdown(self) -> None:
        """Let go of the file descriptors."""
        super().shutdown()
        os.close(self._ready)
        os.close(self._writer)


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return rows for the decoder and for the link."""
    rounds, seconds = span.choose(7, 3), span.choose(0.2, 0.1)
    file = peers.folder / "engine.dbc"
    file.write_text(DATABASE)
    database = cantools.database.load_file(file)
    (message,) = load(file, file.name).messages
    payloads = _payloads(database)
    data = [(payload,) for payload in payloads]
    frames = [can.Message(arbitration_id=256, is_extended_id=False, data=payload) for payload in payloads]
    cost = seconds_per_call
    took = in_turns(
        rounds,
        {
            "all": partial(cost, BranchDecoder(message, message.signals).decode, data, seconds),
            "one": partial(cost, BranchDecoder(message, message.signals[:1]).decode, data, seconds),
            "link changing": partial(_run_link, file, frames, seconds),
            "link constant": partial(_run_link, file, frames[:1] * _FRAMES, seconds),
            "cantools": partial(cost, database.messages[0].decode, data, seconds),
            "cantools by id": partial(
                cost, database.decode_message, [(256, payload) for payload in payloads], seconds
            ),
        },
    )

    def row(name: str, own: str, yardstick: str, text: str, note: str = "") -> Row:
        reached = Yardstick(f"{text} {_rate(took[yardstick])}", ratio(took[yardstick], took[own]))
        return Row(name, f"{_rate(took[own])} frames", [reached], note)

    text = "cantools decodes"
    by_id = "cantools by id"
    return [
        row("decode 8 CAN signals", "all", "cantools", text, "ours also checks every range"),
        row("decode 1 of 8 CAN signals", "one", "cantools", text, 'cantools has no "only these"'),
        row("CAN link, frame to batch, data change", "link changing", "cantools by id", by_id,
            "ours with deadline, time stamp, changes"),
        row("CAN link, frame to batch, same data", "link constant", "cantools by id", by_id,
            "a frame like the last one is not decoded"),
    ]  # fmt: skip


def _rate(took: Series) -> str:
    return rate_text(1 / median(took))


def _payloads(database: Any) -> list[bytes]:
    """Return data bytes whose values lie in their ranges, each with other values than the one before."""
    chance = random.Random(1)
    (message,) = database.messages
    return [
        message.encode(
            {item.name: chance.uniform(item.minimum, item.maximum) for item in message.signals}, scaling=True
        )
        for _ in range(_FRAMES)
    ]


def _run_link(file: Path, frames: Sequence[can.Message], seconds: float) -> float:
    """Return the CPU seconds that the link takes for a frame."""
    device = CanDeviceSettings(link="can0", database=file.name)
    link = CanLink("can0", {}, build_messages("engine", device, load(file, file.name).messages))
    with mock.patch.object(can, "Bus", return_value=ReplayBus(frames)):
        return loop.run(_count_frames(link, seconds))


async def _count_frames(link: CanLink, seconds: float) -> float:
    batches = 0

    def emit(_batch: Batch) -> None:
        nonlocal batches
        batches += 1

    await link.connect()
    listening = asyncio.create_task(link.run(emit, _ignore))
    await asyncio.sleep(seconds / 10)
    batches, spent_s = 0, time.process_time()
    await asyncio.sleep(seconds)
    cost_s = (time.process_time() - spent_s) / batches
    listening.cancel()
    await asyncio.wait([listening])
    await link.close()
    return cost_s


def _ignore(_event: DeviceHealth | WriteResult) -> None:
    """The node speaks: nothing to do."""
