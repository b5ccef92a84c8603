"""A stepped run: the gateway on the time of the logs that it replays, as fast as the machine allows.

Rules:

* Time is virtual: the event loop, instead of waiting, jumps to what is due next; the gateway's
  clock goes along and shows the log's time. The same logs give the same output, byte for byte.
* Nothing is opened but the logs. Every link that is not a replayed bus is a `RecordingLink`, and what goes
  out over a replayed bus is recorded too.
* Several logs run by their own times from the earliest first frame on; frames of the same time come in the
  order of the links in the configuration.
* Work that would go to a thread is done at once: a thread takes as long as it likes.
* The run ends so many seconds after the last frame of the last log, so that what goes stale then is seen.

Design: virtual time is a whole number of nanoseconds. Frames do not go through a timer of each bus, because
timers of the same moment have no order, but through the one that `Stage` sets for the next of them all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import selectors
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TextIO, TypeVar, TypeVarTuple, Unpack, cast, runtime_checkable

from fieldbus.canbus.bus import Bus
from fieldbus.canbus.logs.logged import LogError
from fieldbus.canbus.replay import ReplayBus, ReplaySettings
from fieldbus.errors import FieldbusError, LinkDownError
from fieldbus.gateway import loop as gateway_loop
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.recorder import Recorder, RecordingLink
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import Link

DEFAULT_AFTER_S = 5.0
_BEGINNING_S = 1000.0
"""What the monotonic clock shows at first: as a machine's, it is not 0."""
_START_S = 1.0
"""So long, in virtual time, links may take until they listen."""
_CLOCK_WAS_SET_NS = 1_000_000_000
_LOG = logging.getLogger("fieldbus")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SteppedError(FieldbusError):
    """A configuration cannot be run stepped, or the run came to nothing."""


@runtime_checkable
class ReplayableLink(Protocol):
    """A link whose bus may be another."""

    options: Mapping[str, object]
    open_bus: Callable[[Mapping[str, object]], Awaitable[Bus]]


class _JumpingSelector(selectors.DefaultSelector):
    """Looks for events, and lets virtual time pass where there are none."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            if timeout is None:
                return super().select(None)
            if timeout > 0:
                self._jump(timeout)
        return found


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait."""

    def __init__(self, start_ns: int) -> None:
        """Begin.

        Args:
            start_ns: what the wall clock shows then.
        """
        self.elapsed_ns = 0
        """Virtual time since the beginning."""
        self._wall_at_0_ns = start_ns
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Return virtual time, in seconds."""
        return _BEGINNING_S + self.elapsed_ns / 1e9

    def wall_ns(self) -> int:
        """Return what the wall clock shows."""
        return self._wall_at_0_ns + self.elapsed_ns

    def set_wall(self, time_ns: int) -> None:
        """Set the wall clock, as somebody did while the log was written."""
        self._wall_at_0_ns = time_ns - self.elapsed_ns

    def _jump(self, seconds: float) -> None:
        self.elapsed_ns += max(1, math.ceil(seconds * 1e9))

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call a function here and now."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class Stage:
    """The buses of a stepped run, and whose turn it is."""

    def __init__(self, plant: Plant, recorder: Recorder, after_s: float = DEFAULT_AFTER_S) -> None:
        """Open the logs.

        Args:
            after_s: how long the run goes on, in virtual time, when all logs have ended.

        Raises:
            SteppedError: the configuration is not for that, or a log cannot be read.
        """
        self._recorder = recorder
        self._after_s = after_s
        self.gateway: Gateway | None = None
        self.trouble: str | None = None
        """Why the run ended before its logs."""
        self._buses: dict[str, ReplayBus] = {}
        self._live: list[ReplayBus] = []
        """Those that have started, in the order of the links."""
        self._offset_ns: dict[ReplayBus, int] = {}
        self._is_moving = False
        self._timer: asyncio.TimerHandle | None = None
        links: dict[str, Link] = {}
        names = stepped_links(plant)
        for name, link in plant.links.items():
            links[name] = self._replayed(plant, link) if name in names else RecordingLink(link, recorder)
        self._opened: set[str] = set()
        if all(bus.next_ns is None for bus in self._buses.values()):
            raise SteppedError(f"{', '.join(self._buses)}: no frame in any log, nothing to replay")
        starts = [bus.start_ns for bus in self._buses.values() if bus.start_ns is not None]
        self.start_ns = min(starts, default=0)
        for bus in self._buses.values():
            self._offset_ns[bus] = 0 if bus.start_ns is None else bus.start_ns - self.start_ns
        self.plant = dataclasses.replace(plant, links=links)

    def _replayed(self, plant: Plant, link: Link) -> Link:
        name = link.name
        if not isinstance(link, ReplayableLink):
            raise SteppedError(f"{name}: such a link cannot replay a log")
        try:
            settings = ReplaySettings.of(link.options)
            path = plant.file.parent / settings.path
            settings = dataclasses.replace(settings, path=path)
            self._buses[name] = ReplayBus(
                settings,
                on_end=lambda fault: self._ended(name, fault),
                sent=lambda can_id, data, flags, _: self._recorder.frame(name, can_id, data, flags),
                stage=self,
                clock=plant.clock,
            )
            if self._buses[name].next_ns is None and settings.log_channel is not None:
                text = f"there is no frame of channel {settings.log_channel} in {settings.path}"
                raise SteppedError(f"{name}: {text}")
        except (ValueError, LogError) as error:
            raise SteppedError(f"{name}: {error}") from error

        async def open_bus(_options: Mapping[str, object]) -> Bus:
            if name in self._opened:
                raise LinkDownError("a log is replayed once")
            self._opened.add(name)
            return self._buses[name]

        link.open_bus = open_bus
        return cast("Link", link)

    def started(self, bus: ReplayBus) -> None:
        """Take a bus on; when all are there, time begins."""
        running = {*self._live, bus}
        self._live = [item for item in self._buses.values() if item in running]
        if len(self._live) == len(self._buses):
            asyncio.get_running_loop().call_soon(self._move)

    def closed(self, bus: ReplayBus) -> None:
        """Go on without a bus."""
        self._live = [item for item in self._live if item is not bus]

    def check_started(self) -> None:
        """End the run if a link does not listen: it would wait for ever."""
        silent = [name for name, bus in self._buses.items() if bus not in self._live]
        if silent and not self._is_moving:
            self.stop(f"{', '.join(silent)}: the link did not begin to listen")

    def _move(self) -> None:
        """Hand out all frames that are due, and come again for the next."""
        self._is_moving = True
        loop = cast("SteppedLoop", asyncio.get_running_loop())
        while (found := self._find_next()) is not None:
            due_ns, bus = found
            if due_ns > loop.elapsed_ns:
                loop.call_at(_BEGINNING_S + due_ns / 1e9, self._move)
                return
            time_ns = bus.next_time_ns
            if time_ns is not None and abs(time_ns - loop.wall_ns()) > _CLOCK_WAS_SET_NS:
                loop.set_wall(time_ns)
            bus.step()
        loop.call_later(self._after_s, self.stop)

    def _find_next(self) -> tuple[int, ReplayBus] | None:
        best: tuple[int, ReplayBus] | None = None
        for bus in self._live:
            next_ns = bus.next_ns
            if next_ns is not None:
                due_ns = next_ns + self._offset_ns[bus]
                if best is None or due_ns < best[0]:
                    best = due_ns, bus
        return best

    def _ended(self, name: str, fault: LogError | None) -> None:
        bad_lines = self._buses[name].bad_lines
        note = f", {bad_lines} of its lines are no frames" if bad_lines else ""
        if fault is None:
            _LOG.info("%s: the log has ended%s", name, note)
        else:
            _LOG.warning("%s: the log cannot be read any further: %s", name, fault)
            self.trouble = f"{name}: {fault}"

    def stop(self, trouble: str | None = None) -> None:
        """End the run."""
        self.trouble = self.trouble or trouble
        if self.gateway is not None:
            self.gateway.stop()


def stepped_links(plant: Plant) -> list[str]:
    """Return the links that replay a log step by step; none if this is no stepped run.

    Raises:
        SteppedError: some do and others replay a log in real time.
    """
    stepped: list[str] = []
    others: list[str] = []
    for name, link in plant.links.items():
        options = getattr(link, "options", None)
        if isinstance(options, Mapping) and options.get("interface") == "replay":
            (stepped if options.get("speed") == "stepped" else others).append(name)
    if stepped and others:
        raise SteppedError(
            f"{stepped[0]} is replayed stepped and {others[0]} is not: time is one, so all are or none is"
        )
    return stepped


def run_stepped(plant: Plant, output: TextIO, after_s: float = DEFAULT_AFTER_S) -> int:
    """Run a plant on the time of its logs, and write what it sends.

    Args:
        output: gets a JSON line for each thing that is sent; see `recorder`.
        after_s: how long the run goes on, in virtual time, when all logs have ended.

    Returns:
        How many lines were written.

    Raises:
        SteppedError: the plant is not for that, or a log could not be read to its end.
        OSError: the output could not be written.
    """
    recorder = Recorder(output, plant.clock)
    stage = Stage(plant, recorder, after_s)
    recorder.on_trouble = stage.stop
    loop = SteppedLoop(stage.start_ns)
    plant.clock.monotonic_s, plant.clock.wall_ns = loop.time, loop.wall_ns
    with gateway_loop.signals_restored(), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_run(stage))
    if recorder.trouble is not None:
        raise recorder.trouble
    output.flush()
    if stage.trouble is not None:
        raise SteppedError(stage.trouble)
    return recorder.lines


async def _run(stage: Stage) -> None:
    gateway = stage.gateway = Gateway(stage.plant, keeps=False)
    gateway_loop.on_signal(gateway.stop)
    asyncio.get_running_loop().call_later(_START_S, stage.check_started)
    await gateway.run()
