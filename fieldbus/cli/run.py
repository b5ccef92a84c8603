"""``fieldbus run``: the gateway, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Annotated

import typer

from fieldbus import __version__
from fieldbus.cli.common import ConfigArgument, fail, load_or_exit
from fieldbus.errors import LinkDownError
from fieldbus.gateway import log, loop
from fieldbus.gateway.control import ControlServer, running_pid
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.simulation import Simulation

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
) -> None:
    """Run the gateway until SIGINT or SIGTERM."""
    if log_level not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter("debug, info, warning or error", param_hint="--log-level")
    # Until the gateway has its own handlers there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    plant = load_or_exit(config)
    pid = running_pid(plant.data_dir)
    if pid is not None:
        text = f"a gateway runs with the data folder {plant.data_dir} already (process {pid})"
        raise fail(f"{text}; stop it, or give this one a `data_dir` of its own")
    log.set_up(log_level)
    try:
        loop.run(_run(plant, simulate))
    except LinkDownError as error:
        raise fail(str(error)) from None


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
