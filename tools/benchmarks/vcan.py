"""What a frame costs from Linux's virtual CAN to the target of a route, in CPU, against python-can.

Ours is a whole gateway: the socket, deadlines, decoding, what changed, a route for each of the frame's eight
signals, or for one of them, or one that puts all eight into one message (`broker:plant/{device}`); at their
end a link that keeps the last value of each point (`_Recorder`) or of each name in the message. The
yardstick is what one would write by hand: a `can.Notifier` in the event loop, cantools' lookup by identifier,
and a dictionary with the last value of each signal that is wanted. Each receiver is a process of its own, one
at a time, on uvloop and on asyncio's own loop. Both have to have received every frame and seen the same
number of changes.

Frames come at a steady rate, sent by the kernel itself (its broadcast manager), so that the sender takes
no CPU from anybody; or all at once, put into the socket's buffer while the receiver is stopped.

``python -m benchmarks.vcan FOLDER ROUNDS FRAMES ROUTES@RATE…`` measures, inside `tools/vcan`, and prints a
JSON object; routes are those of `_ROUTES`, rate 0 is all at once. In an emulated machine everything takes 10
to 20 times as long: only the ratios count there.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypedDict

import can
import cantools
import uvloop

from fieldbus.gateway import log
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import Bundle, Delivery, Emit, Report, WriteResult
from fieldbus.model import Group, Point, Value

from .canbus import FRAME_ID, MESSAGE, database_text, random_payloads
from .measure import Row, Span, Yardstick, in_turns, ratio
from .peers import Peers, write_config

INTERFACE = "vcan0"
_CASES = {
    "vm": ("8@200", "1@500", "1@1000", "1@0", "message@500", "message@0", "8@500", "8@0"),
    "kernel": ("8@1000", "1@4000", "1@0", "message@4000", "message@0", "8@4000", "8@0"),
}
"""What is measured, by where: what is routed, and frames a second."""
_LATENCIES = {"vm": "20ms", "kernel": "2ms"}
"""How long frames may wait to be taken together: as many times as long where everything takes longer."""
_ROUTES = {
    "1": "its route, 1 signal of 8",
    "8": "its 8 routes",
    "message": "one message with its 8 signals",
}
_TOOL = Path(__file__).parents[1] / "vcan"
_NOT_HERE = 77
"""Exit code of the tool where there is no virtual CAN."""
_DATABASE = "vcan.dbc"
_NAMES = ("Speed", "Torque", "Coolant", "OilPressure", "Throttle", "Gear", "Running", "Fuel")
_PAYLOADS = 256
"""As many different frames as the kernel repeats in turn."""
_WARM_UP = 100
_PATIENCE_S = 3.0
"""Frames that do not come for so long were lost."""
_START_S = 0.2
_START_LOOKS = 100
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 4 * 1024 * 1024
_LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class _State(NamedTuple):
    """How far a receiver is."""

    frames: int
    changes: int
    cpu_s: float


class _Result(NamedTuple):
    """What one receiver took for the frames of one round."""

    cost_s: float
    """CPU for a frame."""
    changes: int
    """None of a round in which frames were lost is comparable: then -1."""
    lost: int
    per_s: float
    """The rate at which they came."""


class _Case(NamedTuple):
    """What the receivers do; both have read their files before."""

    signals: int
    """Of the frame that are wanted."""
    rate: float
    """In frames a second; 0 for all at once."""
    plant: Plant
    database: Any

    @classmethod
    def read(cls, folder: Path, text: str) -> _Case:
        """Return the case that the command line names: ``8@500``."""
        routes, rate = text.split("@")
        plant = load(folder / f"vcan-{routes}.yaml")
        signals = 1 if routes == "1" else len(_NAMES)
        return cls(signals, int(rate), plant, cantools.database.load_file(folder / _DATABASE))


class _Figures(TypedDict):
    """What is told of one case: by receiver, ``own uvloop`` and so on, one number a round."""

    cost_s: Mapping[str, Sequence[float]]
    changes: Mapping[str, Sequence[int]]
    lost: int
    per_s: float


_Counts = Callable[[], tuple[int, int]]
"""Returns how many frames were received, and how many changes seen."""
_Work = Callable[[_Counts], Awaitable[None]]
"""What a receiver awaits while it receives."""


# --- outside


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for each case."""
    found = subprocess.run([str(_TOOL), "--check"], capture_output=True, text=True, check=False)
    place = found.stdout.strip()
    if found.returncode:
        reason = f"skipped: {place or 'no virtual CAN here'}"
        return [Row("CPU of a frame from vcan to its routes", reason, [Yardstick("–")])]
    cases = _CASES[place]
    if span.is_quick:
        cases = cases[-2:]
    rounds, frames = int(span.choose(3, 1)), int(span.choose(1000, 500))
    _prepare(peers.folder, _LATENCIES[place])
    command = [sys.executable, "-m", "benchmarks.vcan", peers.folder, rounds, frames, *cases]
    done = subprocess.run(
        [str(_TOOL), *map(str, command)], capture_output=True, text=True, check=False, cwd=_TOOL.parent
    )
    if done.returncode == _NOT_HERE:
        return [Row("CPU of a frame from vcan to its routes", "skipped", [Yardstick(done.stderr.strip())])]
    if done.returncode:
        raise RuntimeError(f"the measurement on vcan failed:\n{done.stdout}{done.stderr}")
    told: dict[str, _Figures] = json.loads(done.stdout)
    return [_row(case, figures, place) for case, figures in told.items()]


def _row(case: str, figures: _Figures, place: str) -> Row:
    routes, rate = case.split("@")
    costs = figures["cost_s"]
    own = "\n".join(f"{name} {median(costs[f'own {name}']) * 1e6:.1f} µs" for name in _LOOPS)
    yardsticks = [
        Yardstick(
            f"can.Notifier + cantools, {name} {median(costs[f'other {name}']) * 1e6:.1f} µs",
            ratio(costs[f"other {name}"], costs[f"own {name}"]),
        )
        for name in _LOOPS
    ]
    notes = [f"in the {'emulated machine' if place == 'vm' else 'kernel'}, latency {_LATENCIES[place]}"]
    if rate != "0":
        notes.append(f"{figures['per_s']:.0f} frames/s came")
    if figures["lost"]:
        notes.append(f"{figures['lost']} frames lost")
    elif len({count for series in figures["changes"].values() for count in series}) > 1:
        notes.append("they do not agree on what changed")
    else:
        notes.append("every frame received, the same changes seen")
    what = f"{rate} frames/s" if rate != "0" else "all at once"
    return Row(f"CPU of a frame from vcan to {_ROUTES[routes]}, {what}", own, yardsticks, "; ".join(notes))


def _prepare(folder: Path, latency: str) -> None:
    """Write what both receivers read: the database, the gateway's configuration."""
    (folder / _DATABASE).write_text(database_text(MESSAGE.format(frame_id=FRAME_ID, name="Status")))
    points = {
        name: {"table": "holding", "address": 2 * index, "type": "float32"}
        for index, name in enumerate(_NAMES)
    }
    links = {
        "can0": {"type": "can", "interface": "socketcan", "channel": INTERFACE, "latency": latency},
        "hmi": {"type": "modbus-server", "host": "127.0.0.1", "port": 1502},
        "broker": {"type": "mqtt", "host": "127.0.0.1"},
    }
    devices = {
        "engine": {"link": "can0", "database": _DATABASE},
        "panel": {"link": "hmi", "unit_id": 1, "points": points},
    }
    each = [{"from": f"engine.Status.{name}", "to": f"panel.{name}"} for name in _NAMES]
    together = [{"from": "engine.*", "to": "broker:plant/{device}"}]
    for name, routes in (("1", each[:1]), ("8", each), ("message", together)):
        file = write_config(folder, {"links": links, "devices": devices, "routes": routes})
        file.rename(folder / f"vcan-{name}.yaml")


# --- inside: the receivers


class _Recorder:
    """A link that keeps the last value of each point that it is given, or of each name in a message."""

    is_listener = False
    endpoint = "a dictionary"
    groups: Sequence[Group] = ()
    counters: Mapping[str, int] = {}
    measures: Mapping[str, Mapping[str, float]] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self.last: dict[Point | str | None, Value] = {}
        self.changes = 0

    async def connect(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def run(self, emit: Emit, report: Report) -> None:
        """Wait for the end."""
        await asyncio.Event().wait()

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Keep what is delivered."""
        for target, _, sample in deliveries:
            # A value that comes back after a silence is no change.
            if sample.value is not None and sample.value != self.last.get(target.point):
                self.last[target.point] = sample.value
                self.changes += 1
        return ()

    def gather(self, bundle: Bundle) -> None:
        """Keep what a message would carry."""
        plan, batch = bundle
        values, last = batch.values, self.last
        for index, label in zip(plan.indexes, plan.labels, strict=True):
            value = values[index]
            if value is not None and value != last.get(label):
                last[label] = value
                self.changes += 1

    async def write(self, values: Mapping[Point, Value]) -> list[WriteResult]:
        """Write nothing."""
        return []

    async def close(self) -> None:
        """Do nothing."""


async def _be_gateway(case: _Case, work: _Work) -> None:
    recorders = [_Recorder(name) for name in ("hmi", "broker")]
    plant = replace(case.plant, links={**case.plant.links, **{item.name: item for item in recorders}})
    gateway = Gateway(plant)
    running = asyncio.create_task(gateway.run())
    for _ in range(_START_LOOKS):
        await asyncio.sleep(_START_S)
        if plant.link_status["can0"].is_true("connected"):
            break
    else:
        raise RuntimeError(f"the gateway is not connected to {INTERFACE}")
    link = plant.links["can0"]
    await work(lambda: (link.counters["rx_frames"], sum(item.changes for item in recorders)))
    gateway.stop()
    await running


async def _be_script(case: _Case, work: _Work) -> None:
    database = case.database
    last: dict[str, Any] = {}
    wanted = _NAMES[: case.signals]
    frames = changes = 0

    def listen(message: can.Message) -> None:
        nonlocal frames, changes
        frames += 1
        values = database.decode_message(message.arbitration_id, message.data)
        for name in wanted:
            value = values[name]
            if last.get(name) != value:
                last[name] = value
                changes += 1

    with can.Bus(interface="socketcan", channel=INTERFACE) as bus:
        # The default holds 278 frames, which no burst would get through.
        bus.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        notifier = can.Notifier(bus, [listen], loop=asyncio.get_running_loop())
        await work(lambda: (frames, changes))
        notifier.stop()


_RECEIVERS: dict[str, Callable[..., Awaitable[None]]] = {"own": _be_gateway, "other": _be_script}


def _receive(kind: str, loop: str, case: _Case, questions: Connection) -> None:
    """Be a receiver: tell its state each time that it is asked, until it is told to end."""

    async def work(counts: _Counts) -> None:
        is_over = asyncio.Event()

        def answer() -> None:
            if questions.recv():
                questions.send(_State(*counts(), time.process_time()))
            else:
                is_over.set()

        running = asyncio.get_running_loop()
        running.add_reader(questions.fileno(), answer)
        questions.send(None)
        await is_over.wait()
        running.remove_reader(questions.fileno())

    async def main() -> None:
        await _RECEIVERS[kind](case, work)

    log.set_up("warning")
    with asyncio.Runner(loop_factory=_LOOPS[loop]) as runner:
        runner.run(main())


# --- inside: the sender


class _Sender:
    """Sends the same 256 frames again and again."""

    def __init__(self, folder: Path) -> None:
        (message,) = cantools.database.load_file(folder / _DATABASE).messages
        self._frames = [
            can.Message(arbitration_id=FRAME_ID, is_extended_id=False, data=payload)
            for payload in random_payloads(message, _PAYLOADS)
        ]
        self._bus = can.Bus(interface="socketcan", channel=INTERFACE)
        self._bus.set_filters([{"can_id": 0, "can_mask": 0x7FF}])  # nothing that it would have to take

    def at_rate(self, count: int, per_s: float) -> None:
        """Have the kernel send, and return at once."""
        period_s = 1 / per_s
        self._bus.send_periodic(self._frames, period_s, (count + 0.5) * period_s)

    def at_once(self, count: int) -> None:
        """Send as fast as it goes."""
        for index in range(count):
            self._bus.send(self._frames[index % _PAYLOADS])


@contextmanager
def _receiver(*arguments: Any) -> Any:
    processes = multiprocessing.get_context("fork")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=_receive, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield process.pid, ours
        ours.send(False)
        process.join(10)
    finally:
        if process.is_alive():
            process.kill()


def _wait_for(questions: Connection, frames: int) -> tuple[_State, float]:
    """Return the state when so many frames have come, or when no more come; and when that was."""
    last, moved_s = -1, time.monotonic()
    while True:
        questions.send(True)
        state = _State(*questions.recv())
        now_s = time.monotonic()
        if state.frames >= frames or now_s - moved_s > _PATIENCE_S:
            return state, now_s
        if state.frames != last:
            last, moved_s = state.frames, now_s
        time.sleep(0.05)


def _measure_once(sender: _Sender, count: int, case: _Case, kind: str, loop: str) -> _Result:
    rate = case.rate
    with _receiver(kind, loop, case) as (pid, questions):
        sender.at_rate(_WARM_UP, 500)
        time.sleep(_WARM_UP / 500)
        before, began_s = _wait_for(questions, _WARM_UP)
        if rate:
            sender.at_rate(count, rate)
            time.sleep(count / rate)
        else:
            os.kill(pid, signal.SIGSTOP)
            sender.at_once(count)
            os.kill(pid, signal.SIGCONT)
        after, ended_s = _wait_for(questions, before.frames + count)
    frames = after.frames - before.frames
    lost = _WARM_UP + count - after.frames
    changes = -1 if lost else after.changes - before.changes
    return _Result((after.cpu_s - before.cpu_s) / frames, changes, lost, frames / (ended_s - began_s))


def main() -> None:
    """Measure what the command line says."""
    folder, rounds, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sender = _Sender(folder)
    told: dict[str, _Figures] = {}
    for text in sys.argv[4:]:
        case = _Case.read(folder, text)
        reached = in_turns(
            rounds,
            {
                f"{kind} {loop}": partial(_measure_once, sender, count, case, kind, loop)
                for loop in _LOOPS
                for kind in _RECEIVERS
            },
        )
        everything = [result for results in reached.values() for result in results]
        told[text] = _Figures(
            cost_s={name: [result.cost_s for result in results] for name, results in reached.items()},
            changes={name: [result.changes for result in results] for name, results in reached.items()},
            lost=sum(result.lost for result in everything),
            per_s=median(result.per_s for result in everything),
        )
    print(json.dumps(told))


if __name__ == "__main__":
    main()
