"""``fieldbus record``: what is on the CAN buses of a configuration, as a log file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fieldbus.canbus.bus import ERROR, EXTENDED, EXTENDED_MASK, OWN, STANDARD_MASK, Bus
from fieldbus.canbus.buses import open_bus
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.logs.logged import LogError, LoggedFrame
from fieldbus.canbus.logs.writing import WRITABLE, LogWriter
from fieldbus.cli.common import ConfigArgument, fail, load_or_exit, say
from fieldbus.errors import LinkDownError, closest
from fieldbus.gateway import log, loop
from fieldbus.gateway.plant import Plant
from fieldbus.settings import parse_duration

_FLUSH_S = 1.0
_TRY_AGAIN_S = 1.0
_FRAMES_PER_WAKE_UP = 512
_FILTER = re.compile(r"(?:0x)?([0-9A-Fa-f]{1,8})(?::(?:0x)?([0-9A-Fa-f]{1,8}))?")

Filter = tuple[int, int]
"""Identifier word and mask."""


def record(
    config: ConfigArgument,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help=f"The log: {', '.join(WRITABLE)}.")],
    links: Annotated[
        list[str] | None, typer.Option("--link", metavar="NAME", help="Only this link; may be repeated.")
    ] = None,
    lasts: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="End by itself after so long.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="ID",
            help="Only this identifier, hexadecimal: up to three digits standard, more extended; ID:MASK for "
            "several; may be repeated. Error frames are always recorded.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUTPUT.")] = False,
) -> None:
    """Record the CAN buses of CONFIG until SIGINT; nothing is sent."""
    try:
        seconds = None if lasts is None else parse_duration(lasts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    if output.suffix.lower() not in WRITABLE:
        raise typer.BadParameter(f"a log ends in {', '.join(WRITABLE)}", param_hint="OUTPUT")
    wanted = [_parse_filter(text) for text in filters or ()] or None
    plant = load_or_exit(config, needs_secrets=False, shows_warnings=False)
    if output.exists() and not force:
        raise fail(f"{output} is there already; --force overwrites it")
    log.set_up()
    recording = Recording(_find_links(plant, links or ()), wanted)
    try:
        loop.run(recording.run(output, seconds, overwrites=force))
    except LinkDownError as error:
        raise fail(str(error)) from None
    except LogError as error:
        say(f"fieldbus: {error}", err=True)
        recording.trouble = error
    if recording.trouble is not None:
        say(f"{recording.frames} frames until then; the last may be missing in {output}", err=True)
        raise typer.Exit(1)
    say(f"{recording.frames} frames written to {output}; {recording.lost} lost", err=True)


def _parse_filter(text: str) -> Filter:
    match = _FILTER.fullmatch(text)
    number = int(match[1], 16) if match is not None else 0
    if match is None or number > EXTENDED_MASK:
        raise typer.BadParameter(f"'{text}' is no identifier such as 1A0, 18FEF100 or 100:7F0",
                                 param_hint="--filter")  # fmt: skip
    is_extended = len(match[1]) > 3
    if not is_extended and number > STANDARD_MASK:
        raise typer.BadParameter(f"'{text}' has more than 11 bits; an extended one is written with 8 digits",
                                 param_hint="--filter")  # fmt: skip
    all_bits = EXTENDED_MASK if is_extended else STANDARD_MASK
    mask = all_bits if match[2] is None else int(match[2], 16) & all_bits
    return number | (EXTENDED if is_extended else 0), mask | EXTENDED


def _find_links(plant: Plant, names: Sequence[str]) -> dict[str, CanLink]:
    found = {name: link for name, link in plant.links.items() if isinstance(link, CanLink)}
    for name in names:
        if name not in found:
            hint = closest(name, found)
            raise fail(f"there is no CAN link '{name}'" + (f" ({hint})" if hint else ""))
    if not found:
        raise fail("this configuration has no CAN link")
    return {name: link for name, link in found.items() if not names or name in names}


def _channel(name: str, options: Mapping[str, object]) -> str:
    """Return what a bus is called in the log: the network interface if it is one, else the link."""
    channel = options.get("channel")
    return str(channel) if options.get("interface") == "socketcan" and channel else name


class Recording:
    """Buses that are listened to, and where their frames go."""

    def __init__(self, links: Mapping[str, CanLink], wanted: Sequence[Filter] | None) -> None:
        self._links = links
        self._wanted = wanted
        self._buses: dict[str, Bus] = {}
        self._lost_before = 0
        self._writer: LogWriter | None = None
        self._stop = asyncio.Event()
        self._is_over = False
        """Whether the log is complete: a bus may still have frames while it is closed."""
        self.trouble: Exception | None = None
        """Why the recording is not whole."""

    @property
    def frames(self) -> int:
        """How many frames were written."""
        return 0 if self._writer is None else self._writer.frames

    @property
    def lost(self) -> int:
        """How many frames were received and lost before we had them."""
        return self._lost_before + sum(bus.dropped for bus in self._buses.values())

    async def run(self, output: Path, seconds: float | None, *, overwrites: bool) -> None:
        """Record until a signal, or so many seconds.

        Raises:
            LinkDownError: a bus cannot be opened; nothing was written.
            LogError: the log cannot be written.
        """
        loop.on_signal(self._stop.set)
        try:
            for name, link in self._links.items():
                try:
                    self._buses[name] = await open_bus(link.options)
                except LinkDownError as error:
                    raise LinkDownError(f"{name}: {error}") from error
            writer = self._writer = LogWriter(output, overwrites=overwrites)
            try:
                await self._record(writer, seconds)
            finally:
                writer.close()
        finally:
            for bus in self._buses.values():
                await bus.close()

    async def _record(self, writer: LogWriter, seconds: float | None) -> None:
        names = ", ".join(f"{name} ({link.endpoint})" for name, link in self._links.items())
        say(f"recording {names} to {writer.path}; Ctrl-C ends it", err=True)
        keeping = [
            asyncio.create_task(self._keep(name, link, writer), name=f"record {name}")
            for name, link in self._links.items()
        ]
        flushing = asyncio.create_task(self._flush(writer), name="flush")
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass
        finally:
            for task in (*keeping, flushing):
                task.cancel()
            await asyncio.gather(*keeping, flushing, return_exceptions=True)
        for name, link in self._links.items():
            try:
                while name in self._buses and self._take(name, _channel(name, link.options), writer):
                    pass
            except LinkDownError:
                pass  # what it still had is lost with it
        for bus in self._buses.values():
            bus.status()  # brings what was lost last into `dropped`
        self._is_over = True
        if self.trouble is not None:
            raise self.trouble

    async def _keep(self, name: str, link: CanLink, writer: LogWriter) -> None:
        """Listen to a bus; when it is lost, open it again and again."""
        channel = _channel(name, link.options)
        while True:
            bus = self._buses[name]
            lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

            def ready() -> None:
                try:
                    self._take(name, channel, writer)
                except LinkDownError as error:
                    when_lost(error)

            def when_lost(error: Exception, lost: asyncio.Future[Exception] = lost) -> None:
                if not lost.done():
                    lost.set_result(error)

            try:
                bus.select(self._wanted)
                bus.start(ready, when_lost)
            except LinkDownError as error:
                when_lost(error)
            say(f"{name}: lost ({await lost}); trying again", err=True)
            await bus.close()
            self._lost_before += bus.dropped
            del self._buses[name]
            while name not in self._buses:
                await asyncio.sleep(_TRY_AGAIN_S)
                try:
                    self._buses[name] = await open_bus(link.options)
                except LinkDownError:
                    continue
            say(f"{name}: back", err=True)

    def _take(self, name: str, channel: str, writer: LogWriter) -> int:
        """Write what a bus has; return how many frames that were."""
        if self.trouble is not None or self._is_over:
            return 0
        taken = self._buses[name].drain(_FRAMES_PER_WAKE_UP)
        try:
            for can_id, data, time_ns, flags in taken:
                if self._wanted is None or self._is_wanted(can_id):
                    is_received = not flags & OWN
                    writer.write(LoggedFrame(time_ns, channel, can_id, data, flags & ~OWN, is_received))
        except LogError as error:
            self.trouble = error
            self._stop.set()
        return len(taken)

    def _is_wanted(self, can_id: int) -> bool:
        return bool(can_id & ERROR) or any(
            can_id & mask == wanted & mask for wanted, mask in self._wanted or ()
        )

    async def _flush(self, writer: LogWriter) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                writer.flush()
            except LogError as error:
                self.trouble = error
                self._stop.set()
                return
