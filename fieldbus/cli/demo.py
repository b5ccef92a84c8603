"""``fieldbus demo``: the packaged example on simulated devices, and what to look at."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fieldbus.canbus.link import CanLink
from fieldbus.cli.common import fail, load_or_exit, out, samples_table, say
from fieldbus.cli.run import work
from fieldbus.errors import LinkDownError
from fieldbus.gateway import log, loop
from fieldbus.gateway.config.schema import json_schema
from fieldbus.gateway.control import snapshot
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.simulation import Simulation
from fieldbus.settings import parse_duration

_WHAT = """\
[bold]fieldbus demo[/]: a pump's PLC (Modbus) and its inverter (CAN), both simulated, and the gateway between.
Its configuration: {config}

Look at it from another terminal:
  the CAN motor speed in a Modbus register    [bold]mbpoll -m tcp -p 1503 -t 4:float -B -r 1 -1 127.0.0.1[/]
  the same, without mbpoll                    [bold]fieldbus read {config} panel.motor_speed[/]
  tell the PLC to start, through our coil     [bold]fieldbus write {config} panel.start=on[/]
  everything that the gateway knows           [bold]fieldbus watch {config} --system[/]
  what is published, if a broker runs here    [bold]mosquitto_sub -v -t 'plant/#'[/]
"""
_REFRESH_S = 0.5
_PLAIN_PERIOD_S = 3.0


def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Copy the configuration there, to make it your own."),
    ] = None,
    lasts: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="End by itself after so long.")
    ] = None,
) -> None:
    """Run the packaged demo on simulated devices and show what happens."""
    try:
        seconds = None if lasts is None else parse_duration(lasts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    with ExitStack() as stack:
        folder = keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fieldbus-demo-")))
        elif (folder / "demo.yaml").exists():
            say(f"{folder / 'demo.yaml'} is there already and is used as it is", err=True)
        if not (folder / "demo.yaml").exists():
            with as_file(files("fieldbus.simulate") / "demo") as packaged:
                shutil.copytree(packaged, folder, dirs_exist_ok=True)
            schema = json.dumps(json_schema(), indent=1)
            (folder / "fieldbus.schema.json").write_text(schema, encoding="utf-8")
        config = folder / "demo.yaml"
        plant = load_or_exit(config, shows_warnings=False)
        console = out()
        log.set_up(stream=sys.stdout)
        console.print(_WHAT.format(config=config), soft_wrap=True)
        try:
            loop.run(_demo(plant, console, seconds))
        except LinkDownError as error:
            raise fail(str(error)) from None
        if keep is not None:
            say(f"The configuration stays in {keep}: edit it, then `fieldbus run {config}`.")


async def _demo(plant: Plant, console: Console, seconds: float | None) -> None:
    frames: dict[tuple[str, int], tuple[int, bytes]] = {}

    def saw(link: str, frame_id: int, data: bytes) -> None:
        count, _ = frames.get((link, frame_id), (0, b""))
        frames[link, frame_id] = (count + 1, data)

    simulation = Simulation(plant, on_frame=saw)
    gateway = Gateway(plant)
    loop.on_signal(gateway.stop, ends_process=True)
    if seconds is not None:
        asyncio.get_running_loop().call_later(seconds, gateway.stop)
    showing = asyncio.create_task(_show(gateway, frames, console))
    try:
        await work(gateway, simulation)
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _show(gateway: Gateway, frames: dict[tuple[str, int], tuple[int, bytes]], console: Console) -> None:
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_PLAIN_PERIOD_S)
            console.print(_picture(gateway, frames))
    await asyncio.sleep(1.0)  # the first lines of the log come before
    with Live(console=console, auto_refresh=False, transient=False, redirect_stdout=True) as live:
        while True:
            live.update(_picture(gateway, frames), refresh=True)
            await asyncio.sleep(_REFRESH_S)


def _picture(gateway: Gateway, frames: dict[tuple[str, int], tuple[int, bytes]]) -> Group:
    values: list[dict[str, Any]] = [
        item for item in snapshot(gateway, {}) if not item["point"].startswith("sys.")
    ]
    lines = [Text()]
    names = {
        (name, message.message.frame_id): message.message.name
        for name, link in gateway.plant.links.items()
        if isinstance(link, CanLink)
        for message in link.messages
    }
    for (link, frame_id), (count, data) in frames.items():
        lines.append(
            Text.assemble(
                ("CAN frame sent by the gateway: ", "bold"),
                f"{link}  {frame_id:03X}  [{len(data)}]  {data.hex(' ').upper()}",
                f"   {names.get((link, frame_id), '')}, {count} so far",
            )
        )
    broker = [status for name, status in gateway.plant.link_status.items() if name == "broker"]
    if broker and not broker[0].is_true("connected"):
        lines.append(Text("No broker on this machine: what is published waits in the queue.", style="dim"))
    return Group(samples_table(values), *lines, Text())
