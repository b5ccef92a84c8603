"""``fieldbus run``: the gateway, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fieldbus import __version__
from fieldbus.cli.common import ConfigArgument, fail, load_or_exit
from fieldbus.cli.decode import end_quietly
from fieldbus.errors import LinkDownError
from fieldbus.gateway import log, loop
from fieldbus.gateway.control import ControlServer, running_pid
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.simulation import Simulation
from fieldbus.gateway.stepped import SteppedError, run_stepped, stepped_links

_LOG = logging.getLogger("fieldbus")
LogLevelOption = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error.", metavar="LEVEL")
]


def run(
    config: ConfigArgument,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Also simulate every device that can be simulated.")
    ] = False,
    log_level: LogLevelOption = "info",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Of a stepped replay: where to write what would be sent."
        ),
    ] = None,
) -> None:
    """Run the gateway until SIGINT or SIGTERM; a stepped replay of CAN logs until they end."""
    if log_level not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter("debug, info, warning or error", param_hint="--log-level")
    # Until the gateway has its own handlers there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    plant = load_or_exit(config)
    try:
        is_stepped = bool(stepped_links(plant))
    except SteppedError as error:
        raise fail(str(error)) from None
    if is_stepped:
        if simulate:
            raise typer.BadParameter("nothing is open in a stepped replay", param_hint="--simulate")
        log.set_up(log_level)
        _run_stepped(plant, output)
        return
    if output is not None:
        raise typer.BadParameter("only a stepped replay has an output", param_hint="--output")
    pid = running_pid(plant.data_dir)
    if pid is not None:
        text = f"a gateway runs with the data folder {plant.data_dir} already (process {pid})"
        raise fail(f"{text}; stop it, or give this one a `data_dir` of its own")
    log.set_up(log_level)
    try:
        loop.run(_run(plant, simulate))
    except LinkDownError as error:
        raise fail(str(error)) from None


def _run_stepped(plant: Plant, output: Path | None) -> None:
    """Write what the plant sends while it lives on its logs' time."""
    try:
        if output is None:
            run_stepped(plant, sys.stdout)
        else:
            with output.open("w", encoding="utf-8", newline="\n") as file:
                lines = run_stepped(plant, file)
            _LOG.info("%s: %d lines written to %s", plant.name, lines, output)
    except SteppedError as error:
        raise fail(str(error)) from None
    except BrokenPipeError:
        end_quietly()
    except OSError as error:
        raise fail(f"{output or 'stdout'}: {(error.strerror or str(error)).lower()}") from None


async def _run(plant: Plant, simulate: bool) -> None:
    simulation = Simulation(plant) if simulate else None  # it leads the links elsewhere before they are used
    gateway = Gateway(plant)
    loop.on_signal(gateway.stop)
    points = sum(len(item.points) for item in plant.devices.values())
    _LOG.info("%s: fieldbus %s, %d links, %d devices, %d points, %d routes", plant.name, __version__,
              len(plant.links), len(plant.devices), points, len(plant.edges))  # fmt: skip
    await work(gateway, simulation)
    _LOG.info("%s: stopped", plant.name)


async def work(gateway: Gateway, simulation: Simulation | None) -> None:
    """Run a gateway, its local door and its simulators until it is stopped."""
    if simulation is not None:
        await simulation.open()
    beside = [asyncio.create_task(ControlServer(gateway).run(), name="local door")]
    if simulation is not None:
        beside.append(asyncio.create_task(simulation.run(), name="simulation"))
    try:
        await gateway.run()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
