"""``fieldbus watch``: the values of a running gateway, live in the terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldbus.cli.broker import CaOption, CertificateOption, KeyOption, is_url, url_or_exit, visit
from fieldbus.cli.common import fail, load_or_exit, out, sample_line, samples_table, say, say_json
from fieldbus.cli.screen import Screen
from fieldbus.errors import LinkDownError
from fieldbus.gateway import loop
from fieldbus.gateway.control import stream
from fieldbus.gateway.watching import afar
from fieldbus.model import Reason

_HEAD = 2
"""Lines of the table that are its title and its header."""
_FIRST_LOOK_S = 1.5
"""How long `--once` waits for what is not there yet."""


def watch(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG or URL", help="The configuration; or mqtt://USER@HOST/GATEWAY.")
    ],
    only: Annotated[str, typer.Option("--only", help="Only points that contain this text.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line for each sample as it comes.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the present values and end.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Also the gateway's own points, sys.*.")] = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Show the values of a running gateway as they change: of CONFIG on this machine, or any on a broker."""
    if is_url(config):
        place = url_or_exit(config)
        if not place.gateway:
            raise typer.BadParameter("the URL has no gateway: mqtt://USER@HOST/GATEWAY", param_hint="URL")
        lines = afar(visit(place, ca, certificate, key), place.gateway)
    else:
        file = Path(config)
        plant = load_or_exit(file, needs_secrets=False, shows_warnings=False)
        lines = stream(plant.data_dir, str(file.resolve()))
    try:
        loop.run(_watch(lines, only, as_json, once, system))
    except LinkDownError as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        return


async def _watch(
    lines: AsyncIterator[dict[str, Any]], only: str, as_json: bool, once: bool, system: bool
) -> None:
    values: dict[str, dict[str, Any]] = {}
    until_s = time.monotonic() + _FIRST_LOOK_S
    shows_live = sys.stdout.isatty() and not once and not as_json
    console = out()
    stop = asyncio.Event()
    loop.on_signal(stop.set)
    with Screen(console, _HEAD, stop.set) if shows_live else nullcontext() as screen:
        ending = asyncio.create_task(stop.wait())
        try:
            while True:
                following: asyncio.Task[dict[str, Any]] = asyncio.ensure_future(anext(lines))
                await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                    return
                line = following.result()
                fresh = [
                    item
                    for item in line["points"]
                    if only in item["point"] and (system or not item["point"].startswith("sys."))
                ]
                values.update({item["point"]: item for item in fresh})
                if once:
                    # What nobody but us wants is acquired because we look: that takes a moment.
                    if _is_waiting(values.values()) and time.monotonic() < until_s:
                        continue
                    for item in values.values() if as_json else ():
                        say_json(item)
                    if as_json:
                        return
                    break
                if as_json:
                    for item in fresh:
                        say_json(item)
                elif screen is not None:
                    screen.show(samples_table(values.values(), line["gateway"]))
                else:
                    for item in fresh:
                        say(sample_line(item))
        finally:
            ending.cancel()
            await lines.aclose()  # type: ignore[attr-defined]
    console.print(samples_table(values.values(), line["gateway"]))


def _is_waiting(items: Iterable[Mapping[str, Any]]) -> bool:
    return any(item["reason"] == Reason.WAITING for item in items)
