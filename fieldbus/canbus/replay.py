"""A log in the place of a bus.

A link of ``{type: can, interface: replay, channel: drive.log}`` takes further keys:

==================  =====================================================================================
``speed``           1 as recorded (default), 10 ten times as fast; ``stepped`` on the log's own time
``log_channel``     only frames of this channel of the log
``loop``            begin anew at the end; times go on from there
==================  =====================================================================================

Rules:

* A frame is there when it is due, never before; while it is due, up to 5 ms later, together with others: one
  timer serves a burst. Times of frames are the log's.
* The time between the first frame of the log, of whatever channel, and a frame is kept: two links that
  replay two channels of one log stay in step.
* A log whose clock was set (times go back by more than a second, or on by more than an hour) goes on a
  moment, or an hour, later; the frames' own times jump as they do in the log.
* Nothing is lost: who does not fetch frames holds up the replay. At most `MAX_PENDING` are read ahead.
* A fault in the middle of the log ends it there, as its end does; `on_end` is told which it was.
* What is sent goes to `sent`, or nowhere; it does not come back.

Design: reading is a generator that the timer pulls. It reads a block of the file at a time (about 1 ms), so
that neither a thread nor a queue is needed; with a speed too high for the machine it is simply late.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from fieldbus.canbus.bus import BITRATE_SWITCH, ERROR, FD, OWN, BusStatus, Cyclic, Frame
from fieldbus.canbus.logs.lines import Names, Zone, zone_of
from fieldbus.canbus.logs.logged import LogError, LoggedFrame
from fieldbus.canbus.logs.reading import FORMATS, LogReader
from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError

KEYS = ("speed", "log_channel", "loop", "format", "timezone")
"""Of a link that replays, beside `channel`."""
MAX_PENDING = 2000
"""Frames that wait for the link; also how many are looked at before others have their turn."""
MAX_GAP_NS = 3_600_000_000_000
_GOES_BACK_NS = 1_000_000_000
_BURST_S = 0.005
_LONGEST_SLEEP_S = 3600.0
_MAX_KNOWN_IDS = 65_536
_NEVER_NS = 1 << 100
_FASTEST = 1_000_000

OnEnd = Callable[[LogError | None], None]
"""Called once when there are no more frames; with the fault, if one ended the log."""
Sent = Callable[[int, bytes, int, int], None]
"""Called with what is sent: identifier word, data, flags, and when (wall clock, ns)."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What is replayed, and how."""

    path: Path
    speed: float | None = 1.0
    """None for stepped."""
    log_channel: str | None = None
    loops: bool = False
    form: str | None = None
    """Format of the log; None for what it says itself."""
    zone: Zone = None
    """Of times without a zone; None for local time."""
    names: Names = field(default_factory=dict)
    """Identifier words by the names of messages, for logs with symbolic identifiers."""

    @classmethod
    def of(cls, options: Mapping[str, object]) -> ReplaySettings:
        """Return the settings in the options of a link.

        Raises:
            ValueError: they are wrong; says why in one sentence.
        """
        known = {"interface", "channel", "bitrate", "fd", "names", *KEYS}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"a replay has no `{unknown[0]}`; it has channel, {', '.join(KEYS)}")
        channel, speed, loops = options.get("channel"), options.get("speed", 1), options.get("loop", False)
        if not isinstance(channel, str | Path) or not str(channel):
            raise ValueError("`channel` is the log that is replayed, such as drive.log")
        if speed == "stepped":
            speed = None
        elif isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 < speed <= _FASTEST:
            raise ValueError(f"`speed` is stepped, or a number above 0 such as 1 or 10, not {speed!r}")
        if loops is not True and loops is not False:
            raise ValueError(f"`loop` is true or false, not {loops!r}")
        if loops and speed is None:
            raise ValueError("a stepped replay ends with its log: it cannot `loop`")
        log_channel = options.get("log_channel")
        if log_channel is not None and type(log_channel) not in (str, int):
            raise ValueError(f"`log_channel` is a channel of the log, not {log_channel!r}")
        form, zone, names = options.get("format"), options.get("timezone"), options.get("names")
        if form is not None and form not in FORMATS:
            raise ValueError(f"`format` is one of {', '.join(FORMATS)}, not {form!r}")
        if zone is not None and not isinstance(zone, str):
            raise ValueError(f"`timezone` is a name such as UTC, not {zone!r}")
        return cls(
            Path(channel),
            None if speed is None else float(speed),
            None if log_channel is None else str(log_channel),
            bool(loops),
            None if form is None else str(form),
            None if zone is None else zone_of(zone),
            names if isinstance(names, dict) else {},
        )


class Stage(Protocol):
    """Who says when the frames of stepped buses are due."""

    def started(self, bus: ReplayBus) -> None:
        """Learn that a bus can be given frames."""

    def closed(self, bus: ReplayBus) -> None:
        """Learn that a bus takes no more frames."""


class _Due(NamedTuple):
    elapsed_ns: int
    """Since the first frame of the log."""
    frame: Frame


async def open_replay(
    options: Mapping[str, object],
    *,
    on_end: OnEnd | None = None,
    sent: Sent | None = None,
    clock: Clock = SYSTEM,
) -> ReplayBus:
    """Open a log for a link.

    Args:
        options: of the link; see above.

    Raises:
        LinkDownError: the options or the log are wrong, or the replay is a stepped one, which takes a whole
            run of its own.
    """
    try:
        settings = ReplaySettings.of(options)
        if settings.speed is None:
            raise ValueError("a stepped replay is for `fieldbus run`, which then lives on the log's time")
        return ReplayBus(settings, on_end=on_end, sent=sent, clock=clock)
    except (ValueError, LogError) as error:
        raise LinkDownError(str(error)) from error


class ReplayBus:
    """A log as a `Bus`."""

    def __init__(
        self,
        settings: ReplaySettings,
        *,
        on_end: OnEnd | None = None,
        sent: Sent | None = None,
        stage: Stage | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """Open the log and read its first frame.

        Args:
            stage: needed if the speed is stepped, and only then.

        Raises:
            LogError: there is no such log, or nothing in it can be read.
        """
        if (settings.speed is None) != (stage is not None):
            raise ValueError("a stage is for stepped replays, and they need one")
        self._clock = clock
        self.dropped = 0
        """Nothing: a log waits."""
        self._settings = settings
        self._speed = settings.speed
        self._stage = stage
        self.on_end = on_end
        self._sent = sent
        self._pending: deque[Frame] = deque()
        self._filters: Sequence[tuple[int, int]] | None = None
        self._passes: dict[int, bool] = {}
        self._ready: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._origin_s = 0.0
        self._trouble: LogError | None = None
        self._is_over = False
        self.start_ns: int | None = None
        """Time of the first frame of the log, of whatever channel; None if it has none."""
        self._reader: LogReader | None = None
        self._frames = self._read()
        self._next: _Due | None = None
        self._advance()
        if self.start_ns is None and self._trouble is not None:
            raise self._trouble

    # --- reading

    def _read(self) -> Iterator[_Due]:
        """Return the frames of the channel with the time since the first of all."""
        elapsed_ns = shift_ns = 0
        last_ns: int | None = None
        channel = self._settings.log_channel
        while True:
            began_ns = elapsed_ns
            found = False
            self._reader = LogReader(
                self._settings.path,
                form=self._settings.form,
                names=self._settings.names,
                zone=self._settings.zone,
            )
            for frame in self._reader:
                time_ns = frame.time_ns + shift_ns
                if last_ns is None:
                    self.start_ns = last_ns = time_ns
                step_ns = time_ns - last_ns
                if step_ns >= 0:
                    elapsed_ns += min(step_ns, MAX_GAP_NS)
                    last_ns = time_ns
                elif step_ns < -_GOES_BACK_NS:
                    last_ns = time_ns
                if channel is None or frame.channel == channel:
                    found = True
                    yield _Due(elapsed_ns, _as_frame(frame, time_ns))
            if not self._settings.loops or not found or last_ns is None or self.start_ns is None:
                return
            # The next round begins a millisecond after the last frame of this one.
            elapsed_ns += 1_000_000
            shift_ns += elapsed_ns - began_ns
            last_ns = self.start_ns + shift_ns

    def _advance(self) -> None:
        """Have the next frame of the log in `_next`."""
        try:
            self._next = next(self._frames, None)
        except LogError as error:
            self._trouble = error
            self._next = None

    def _wants(self, can_id: int) -> bool:
        is_wanted = self._passes.get(can_id)
        return self._judge(can_id) if is_wanted is None else is_wanted

    def _judge(self, can_id: int) -> bool:
        filters = self._filters
        # Error frames are not subject to filters, as on a socket.
        is_wanted = filters is None or bool(can_id & ERROR)
        is_wanted = is_wanted or any(can_id & mask == wanted & mask for wanted, mask in filters or ())
        if len(self._passes) >= _MAX_KNOWN_IDS:
            self._passes.clear()
        self._passes[can_id] = is_wanted
        return is_wanted

    @property
    def bad_lines(self) -> int:
        """How many lines of the log are no frames, as far as it was read."""
        return 0 if self._reader is None else self._reader.bad_lines

    # --- stepped

    @property
    def next_ns(self) -> int | None:
        """When the next frame is due, counted from the first of the log; None after the last."""
        return None if self._next is None else self._next.elapsed_ns

    @property
    def next_time_ns(self) -> int | None:
        """The next frame's own time."""
        return None if self._next is None else self._next.frame.time_ns

    def step(self) -> None:
        """Hand the next frame to the link, and look for the one after it."""
        due = self._next
        if due is None:
            return
        self._pending.append(due.frame)
        if self._ready is not None:
            self._ready()
        self._advance()
        self._skip()

    def _skip(self) -> None:
        """Pass over what nobody wants."""
        while self._next is not None and not self._wants(self._next.frame.can_id):
            self._advance()
        if self._next is None:
            self._end()

    # --- the bus

    def start(self, ready: Callable[[], None], lost: Callable[[Exception], None]) -> None:
        """Begin; the first frame is due at once."""
        self._loop = asyncio.get_running_loop()
        self._ready = ready
        self._origin_s = self._clock.monotonic_s()
        if self._stage is not None:
            self._skip()
            self._stage.started(self)
            return
        self._timer = self._loop.call_later(0, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._pull()
        if self._pending and self._ready is not None:
            self._ready()
        self._arm()

    def _pull(self) -> None:
        """Have what is due now in `_pending`."""
        speed = self._speed
        if speed is None or self._next is None or self._loop is None:
            return
        until_ns = (self._clock.monotonic_s() - self._origin_s) * speed * 1e9
        pending = self._pending
        for _ in range(MAX_PENDING):
            due = self._next
            if due is None or due.elapsed_ns > until_ns or len(pending) >= MAX_PENDING:
                return
            if self._wants(due.frame.can_id):
                pending.append(due.frame)
            self._advance()

    def _arm(self) -> None:
        if self._timer is not None or self._loop is None or self._speed is None:
            return
        if self._next is None:
            if not self._pending:
                self._end()
            return
        if len(self._pending) >= MAX_PENDING:
            return  # `drain` goes on
        due_s = self._origin_s + self._next.elapsed_ns / 1e9 / self._speed
        delay_s = min(max(due_s - self._clock.monotonic_s(), _BURST_S), _LONGEST_SLEEP_S)
        self._timer = self._loop.call_later(delay_s, self._wake)

    def drain(self, limit: int) -> Sequence[Frame]:
        """Return frames that are due."""
        pending = self._pending
        self._pull()
        if len(pending) <= limit:
            taken = list(pending)
            pending.clear()
        else:
            taken = [pending.popleft() for _ in range(limit)]
            if self._loop is not None and self._ready is not None:
                self._loop.call_soon(self._again)
        if self._timer is None:
            self._arm()
        return taken

    def _again(self) -> None:
        if self._ready is not None:
            self._ready()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self.on_end is not None:
                self.on_end(self._trouble)

    def send(self, can_id: int, data: bytes, flags: int = 0) -> bool:
        """Give the frame to whoever wants to know what would have been sent."""
        if self._sent is not None:
            self._sent(can_id, data, flags, self._clock.wall_ns())
        return True

    def repeat(self, can_id: int, frames: Sequence[bytes], period_s: float, flags: int = 0) -> Cyclic | None:
        """Return None: the link's own clock is as good, and is the log's where that counts."""
        return None

    def select(self, filters: Iterable[tuple[int, int]] | None) -> None:
        """Let only these through from now on; what is due already is through."""
        self._filters = None if filters is None else list(filters)
        self._passes.clear()

    def status(self) -> BusStatus:
        """Return nothing: a log does not know how its bus was."""
        return BusStatus()

    async def restart(self) -> str | None:
        """Return that there is nothing to restart."""
        return "a log cannot be restarted"

    async def close(self) -> None:
        """Leave the log."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = self._ready = None
        self._pending.clear()
        self._next = None
        self._frames = iter(())
        if self._stage is not None:
            self._stage.closed(self)


def _as_frame(frame: LoggedFrame, time_ns: int) -> Frame:
    flags = frame.flags & (FD | BITRATE_SWITCH)
    return Frame(frame.can_id, frame.data, time_ns, flags if frame.is_received else flags | OWN)
