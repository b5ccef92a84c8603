"""Frames a second through the CAN decoder and the CAN link, against bare cantools.

The decoder is given the data bytes of one message at a time: eight signals, all of them and one of them;
a CAN FD message of forty; a J1939 message whose signals have bit patterns that are no values. The link runs
as the gateway runs it, in the event loop, on a driver that costs next to nothing: `FrameSource` has the
frames ready and only stamps them. cantools is its ``message.decode`` as it comes, which has no way to decode
one signal only, and, beside the link, its lookup by identifier.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cantools

from fieldbus.canbus.building import build_messages
from fieldbus.canbus.bus import BusStatus, Cyclic, Frame, Options
from fieldbus.canbus.codec import BranchDecoder
from fieldbus.canbus.database.loading import load
from fieldbus.canbus.j1939.signals import as_j1939
from fieldbus.canbus.layout import Message
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.settings import CanDeviceSettings
from fieldbus.gateway import loop
from fieldbus.link import Event
from fieldbus.model import Batch

from .measure import Row, Series, Span, Yardstick, in_turns, rate_text, ratio, seconds_per_call
from .peers import Peers

MESSAGE = """BO_ {frame_id} {name}: 8 Engine
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
FRAME_ID = 256
_EEC = """BO_ 2566844926 EEC1: 8 Engine
 SG_ TorqueMode : 0|4@1+ (1,0) [0|13] "" Gateway
 SG_ DemandedTorque : 8|8@1+ (1,-125) [-125|125] "%" Gateway
 SG_ ActualTorque : 16|8@1+ (1,-125) [-125|125] "%" Gateway
 SG_ Speed : 24|16@1+ (0.125,0) [0|8031.875] "rpm" Gateway
 SG_ Source : 40|8@1+ (1,0) [0|250] "" Gateway
 SG_ Starter : 48|4@1+ (1,0) [0|13] "" Gateway
 SG_ Demand : 56|8@1+ (1,-125) [-125|125] "%" Gateway
"""
_EEC_ATTRIBUTES = """BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","reserved","J1939PG";
BA_DEF_ "ProtocolType" STRING ;
BA_DEF_DEF_ "VFrameFormat" "J1939PG";
BA_DEF_DEF_ "ProtocolType" "J1939";
BA_ "ProtocolType" "J1939";
"""
_FD_SIGNALS = 40
_FRAMES = 256
_WAVE = 64
"""Frames that the driver has each time that the link looks."""


class FrameSource:
    """A bus that always has frames, `_WAVE` of them each time that it is looked at."""

    def __init__(self, can_id: int, payloads: Sequence[bytes]) -> None:
        self.dropped = 0
        waves = [payloads[start : start + _WAVE] for start in range(0, len(payloads), _WAVE)]
        self._can_id = can_id
        self._waves = cycle(waves)
        self._ready, self._writer = os.pipe()
        os.write(self._writer, b"\0")

    def start(self, ready: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        """Begin to receive, at a file descriptor that can always be read."""
        asyncio.get_running_loop().add_reader(self._ready, ready)

    def drain(self, limit: int) -> Sequence[Frame]:
        """Return a wave of frames that came in just now."""
        can_id, now_ns = self._can_id, time.time_ns()
        return [Frame(can_id, payload, now_ns) for payload in next(self._waves)]

    def send(self, can_id: int, data: bytes, flags: int = 0) -> bool:
        """Take a frame, to no effect."""
        return True

    def repeat(self, can_id: int, frames: Sequence[bytes], period_s: float, flags: int = 0) -> Cyclic | None:
        """Return None: there is no clock."""
        return None

    def select(self, filters: Iterable[tuple[int, int]] | None) -> None:
        """Let everything through."""

    def status(self) -> BusStatus:
        """Return that nothing is known."""
        return BusStatus()

    async def restart(self) -> str | None:
        """Return that there is nothing to restart."""
        return "not a bus"

    async def close(self) -> None:
        """Let go of the file descriptors."""
        asyncio.get_running_loop().remove_reader(self._ready)
        os.close(self._ready)
        os.close(self._writer)


class _Subject(NamedTuple):
    """A message, as both read it, and data bytes for it."""

    own: Message
    other: Any
    payloads: Sequence[bytes]


def database_text(messages: str, attributes: str = "") -> str:
    """Return a DBC with these messages."""
    return f'VERSION ""\nNS_ :\nBS_:\nBU_: Engine Gateway\n{messages}{attributes}'


def random_payloads(message: Any, count: int = _FRAMES, seed: int = 1) -> list[bytes]:
    """Return data bytes of a cantools message whose values lie in their ranges, drawn anew for each."""
    chance = random.Random(seed)
    return [
        message.encode(
            {item.name: chance.uniform(item.minimum, item.maximum) for item in message.signals}, scaling=True
        )
        for _ in range(count)
    ]


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return rows for the decoder and for the link."""
    rounds, seconds = span.choose(7, 3), span.choose(0.2, 0.1)
    engine = _subject(peers.folder, "engine", MESSAGE.format(frame_id=FRAME_ID, name="EngineStatus"))
    wide = _subject(peers.folder, "wide", _fd_message())
    eec = _subject(peers.folder, "eec", _EEC, _EEC_ATTRIBUTES)
    eec = eec._replace(own=as_j1939(eec.own))
    # All bits one: not available; here the speed.
    lacking = eec._replace(payloads=[data[:3] + b"\xff\xff" + data[5:] for data in eec.payloads])
    decoders: dict[str, tuple[_Subject, int, str]] = {
        "decode 8 CAN signals": (engine, 8, "ours also checks every range"),
        "decode 1 of 8 CAN signals": (engine, 1, 'cantools has no "only these"'),
        f"decode a CAN FD message of 64 bytes, {_FD_SIGNALS} signals": (wide, _FD_SIGNALS, ""),
        "decode 7 J1939 signals": (eec, 7, 'ours looks for "error" and "not available"'),
        "decode 7 J1939 signals, one of them not available": (
            lacking, 7, 'cantools gives "not available" as 8191.875 rpm',
        ),
    }  # fmt: skip
    links: dict[str, tuple[Sequence[bytes], str]] = {
        "CAN link, frame to batch, data change": (
            engine.payloads, "ours with deadline, time stamp, changes",
        ),
        "CAN link, frame to batch, same data": (
            engine.payloads[:1] * _FRAMES, "a frame like the last one is not decoded",
        ),
    }  # fmt: skip
    contestants: dict[tuple[str, str], Callable[[], float]] = {}
    for name, (subject, wanted, _) in decoders.items():
        data = [(payload,) for payload in subject.payloads]
        decode = BranchDecoder(subject.own, subject.own.signals[:wanted]).decode
        contestants[name, "own"] = partial(seconds_per_call, decode, data, seconds)
        contestants[name, "cantools"] = partial(seconds_per_call, subject.other.decode, data, seconds)
    for name, (payloads, _) in links.items():
        contestants[name, "own"] = partial(_run_link, engine.own, payloads, seconds)
    by_id = [(FRAME_ID, payload) for payload in engine.payloads]
    database = cantools.database.load_file(peers.folder / "engine.dbc")
    contestants["", "by id"] = partial(seconds_per_call, database.decode_message, by_id, seconds)
    took = in_turns(rounds, contestants)
    return [
        *(
            _row(name, took[name, "own"], took[name, "cantools"], "cantools decodes", note)
            for name, (_, _, note) in decoders.items()
        ),
        *(
            _row(name, took[name, "own"], took["", "by id"], "cantools by id", note)
            for name, (_, note) in links.items()
        ),
    ]


def _row(name: str, own: Series, yardstick: Series, text: str, note: str) -> Row:
    reached = Yardstick(f"{text} {_rate(yardstick)}", ratio(yardstick, own))
    return Row(name, f"{_rate(own)} frames", [reached], note)


def _rate(took: Series) -> str:
    return rate_text(1 / median(took))


def _subject(folder: Path, name: str, messages: str, attributes: str = "") -> _Subject:
    file = folder / f"{name}.dbc"
    file.write_text(database_text(messages, attributes))
    (own,) = load(file, file.name).messages
    (other,) = cantools.database.load_file(file).messages
    return _Subject(own, other, random_payloads(other))


def _fd_message() -> str:
    """Return a message of 64 bytes: four signals in each six, both byte orders, scaled, with ranges."""
    lines = ["BO_ 512 Wide: 64 Engine"]
    for number in range(_FD_SIGNALS):
        first = number // 4 * 48
        signal = (
            f'{first}|16@1+ (0.125,0) [0|8031.875] "rpm"',
            f'{first + 16}|12@1+ (0.05,-50) [-50|150] "degC"',
            f'{first + 28}|12@1- (0.1,0) [-200|200] "A"',
            f'{first + 47}|8@0+ (1,0) [0|250] "%"',
        )[number % 4]
        lines.append(f" SG_ S{number} : {signal} Gateway")
    return "\n".join(lines) + "\n"


def _run_link(message: Message, payloads: Sequence[bytes], seconds: float) -> float:
    """Return the CPU seconds that the link takes for a frame."""
    device = CanDeviceSettings(link="can0", database="engine.dbc")
    link = CanLink("can0", {}, build_messages("engine", device, [message], _refuse))

    async def open_source(_options: Options) -> FrameSource:
        return FrameSource(message.frame_id, payloads)

    link.open_bus = open_source
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


def _ignore(_event: Event) -> None:
    """The node speaks: nothing to do."""


def _refuse(path: Sequence[str | int], message: str, hint: str | None) -> None:
    raise RuntimeError(f"{path}: {message} ({hint})")
