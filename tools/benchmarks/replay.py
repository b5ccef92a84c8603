"""CPU of four CAN buses at 8000 frames a second each, replayed from logs in real time.

Each log is made beforehand, as candump writes it: 20 messages of eight signals in turn, every 125 µs one;
nine frames of ten have new values in all signals, the tenth is like the one before of its message. A gateway
as `fieldbus run` has it replays all four, with routes to served registers that nobody reads. Its process's
CPU time (user and system) is read at both ends of a window, in which it has to have taken every frame. With
ten signals of ten messages routed, half of the frames are passed over unread, as a filter of the kernel
would.

How much of that is reading the logs is measured in the same way with nothing but the four buses, whose
frames are thrown away. The yardstick reads one such log with python-can and decodes each frame with
cantools, as fast as it goes: what that takes for 32 000 frames is what it would take in a second.

``python -m benchmarks.replay gateway|reading FOLDER SECONDS`` is the process that is measured; it prints
the share of a core and the frames a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import can
import cantools

from fieldbus.canbus.replay import ReplayBus, open_replay
from fieldbus.gateway import log, loop
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway

from .canbus import MESSAGE, database_text, random_payloads
from .measure import Row, Series, Span, Yardstick, in_turns, ratio
from .peers import Peers, free_port, write_config

BUSES = 4
FRAMES_PER_S = 8000
MESSAGES = 20
_FIRST_ID = 0x100
_UNCHANGED = 10
"""One frame of so many is like the one before."""
_SIGNALS = ("Speed", "Torque", "Coolant", "OilPressure", "Throttle", "Gear", "Running", "Fuel")
_WARM_UP_S = 2.0
_LOG_S = 4.0
"""Of a log, which is then begun anew."""
_PAYLOADS = 509
_BEGAN_S = 1_700_000_000
_MOST_FRAMES = 512


class _Case(NamedTuple):
    """Which signals of a bus are routed."""

    text: str
    messages: int
    signals: int
    """Of each of these messages."""

    @property
    def frames_per_s(self) -> float:
        """How many frames of all buses have a signal that is wanted."""
        return BUSES * FRAMES_PER_S * self.messages / MESSAGES


_CASES = {
    "few": _Case("10 signals of 10 messages routed", 10, 1),
    "each": _Case("a signal of every message routed", MESSAGES, 1),
    "all": _Case("all 160 signals routed", MESSAGES, len(_SIGNALS)),
}


class _Taken(NamedTuple):
    """What one process did."""

    share: float
    """Of a core."""
    frames_per_s: float
    """That were wanted, and taken."""


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for each case, and one for the reading alone."""
    rounds, seconds = span.choose(3, 1), span.choose(10.0, 3.0)
    _write_logs(peers.folder, _LOG_S)
    for name, case in _CASES.items():
        write_config(peers.folder, _config(case)).rename(peers.folder / f"{name}.yaml")
    contestants: dict[str, Callable[[], _Taken]] = {
        name: partial(_run, peers, "gateway", peers.folder / f"{name}.yaml", seconds) for name in _CASES
    }
    contestants["reading"] = partial(_run, peers, "reading", peers.folder, seconds)
    contestants["script"] = partial(_read_as_script, peers.folder)
    took = in_turns(rounds, contestants)
    script = [taken.share for taken in took["script"]]
    what = f"CPU of {BUSES} replayed buses at {FRAMES_PER_S} frames/s"
    rows = [
        _row(f"{what}, {case.text}", took[name], case.frames_per_s, script) for name, case in _CASES.items()
    ]
    rows.append(_row(f"{what}, reading the logs alone", took["reading"], BUSES * FRAMES_PER_S, script))
    return rows


def _row(name: str, took: Sequence[_Taken], wanted_per_s: float, script: Series) -> Row:
    shares = [taken.share for taken in took]
    per_s = median(taken.frames_per_s for taken in took)
    note = f"{median(taken.share / taken.frames_per_s for taken in took) * 1e6:.1f} µs a frame"
    if per_s < 0.99 * wanted_per_s:
        note += f"; does not keep up: {per_s:.0f} frames/s"
    text = f"python-can reads, cantools decodes: {median(script):.1%} of a core"
    return Row(name, f"{median(shares):.1%} of a core", [Yardstick(text, ratio(script, shares))], note)


def _run(peers: Peers, what: str, place: Path, seconds: float) -> _Taken:
    with peers.running([sys.executable, "-m", "benchmarks.replay", what, place, seconds]) as process:
        told, _ = process.communicate(timeout=_WARM_UP_S + seconds + 60)
    if process.returncode:
        raise RuntimeError(f"the replay '{what}' of {place} failed")
    share, frames_per_s = map(float, told.split())
    return _Taken(share, frames_per_s)


def _read_as_script(folder: Path) -> _Taken:
    database = cantools.database.load_file(folder / "bus.dbc")
    frames, began_s = 0, time.process_time()
    for message in can.LogReader(folder / "bus1.log"):
        database.decode_message(message.arbitration_id, message.data)
        frames += 1
        if frames == FRAMES_PER_S * BUSES:
            break
    return _Taken((time.process_time() - began_s) * BUSES * FRAMES_PER_S / frames, 0.0)


def _config(case: _Case) -> dict[str, object]:
    links: dict[str, object] = {"hmi": {"type": "modbus-server", "host": "127.0.0.1", "port": free_port()}}
    devices: dict[str, object] = {}
    routes = []
    names = [
        f"M{message:02}.{signal}" for message in range(case.messages) for signal in _SIGNALS[-case.signals :]
    ]
    points = {
        name.replace(".", "_"): {"table": "holding", "address": 2 * index, "type": "float32"}
        for index, name in enumerate(names)
    }
    for bus in range(1, BUSES + 1):
        links[f"bus{bus}"] = {"type": "can", "interface": "replay", "channel": f"bus{bus}.log", "loop": True}
        devices[f"node{bus}"] = {"link": f"bus{bus}", "database": "bus.dbc"}
        devices[f"panel{bus}"] = {"link": "hmi", "unit_id": bus, "points": points}
        routes += [
            {"from": f"node{bus}.{name}", "to": f"panel{bus}.{name.replace('.', '_')}"} for name in names
        ]
    return {"links": links, "devices": devices, "routes": routes}


def _write_logs(folder: Path, seconds: float) -> None:
    text = "".join(
        MESSAGE.format(frame_id=_FIRST_ID + number, name=f"M{number:02}") for number in range(MESSAGES)
    )
    file = folder / "bus.dbc"
    file.write_text(database_text(text))
    message: Any = cantools.database.load_file(file).messages[0]
    period_us = 1_000_000 // FRAMES_PER_S
    for bus in range(1, BUSES + 1):
        payloads = [payload.hex().upper() for payload in random_payloads(message, _PAYLOADS, bus)]
        lines = []
        for index in range(int(seconds * FRAMES_PER_S)):
            turn, number = divmod(index, MESSAGES)
            # The tenth frame of each message, of each at another turn, is the ninth once more.
            fresh = turn - ((turn + number) % _UNCHANGED == 0)
            elapsed_s, elapsed_us = divmod(index * period_us, 1_000_000)
            payload = payloads[(fresh * MESSAGES + number) % _PAYLOADS]
            lines.append(
                f"({_BEGAN_S + elapsed_s}.{elapsed_us:06}) can{bus} {_FIRST_ID + number:03X}#{payload}\n"
            )
        (folder / f"bus{bus}.log").write_text("".join(lines))


# --- the process that is measured


async def _gateway(config: Path, window: Callable[[Callable[[], int]], Awaitable[None]]) -> None:
    plant = load(config)
    buses = [link for name, link in plant.links.items() if name.startswith("bus")]
    gateway = Gateway(plant)
    running = asyncio.create_task(gateway.run())
    await window(lambda: sum(link.counters["rx_frames"] for link in buses))
    gateway.stop()
    await running


async def _reading(folder: Path, window: Callable[[Callable[[], int]], Awaitable[None]]) -> None:
    taken = 0

    def listen(bus: ReplayBus) -> None:
        nonlocal taken
        taken += len(bus.drain(_MOST_FRAMES))

    buses = [
        await open_replay({"interface": "replay", "channel": folder / f"bus{number}.log", "loop": True})
        for number in range(1, BUSES + 1)
    ]
    for bus in buses:
        bus.start(partial(listen, bus), _raise)
    await window(lambda: taken)
    for bus in buses:
        await bus.close()


def _raise(error: Exception) -> None:
    raise error


def main() -> None:
    """Do what the command line says, and print what it took."""
    what, place, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

    async def window(count: Callable[[], int]) -> None:
        await asyncio.sleep(_WARM_UP_S)
        frames, began_s, spent_s = count(), time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began_s
        print((time.process_time() - spent_s) / took_s, (count() - frames) / took_s)

    log.set_up("warning")
    loop.run({"gateway": _gateway, "reading": _reading}[what](place, window))


if __name__ == "__main__":
    main()
