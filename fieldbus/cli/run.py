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
from fieldbus.errors import ConfigError, LinkDownError, Problem, os_reason
from fieldbus.gateway import log, loop
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer, running_pid
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.gateway.simulation import Simulation
from fieldbus.gateway.sole_use import InUseError, SoleUse, take
from fieldbus.gateway.stepped import SteppedError, run_stepped, stepped_links
from fieldbus.gateway.systemd import Systemd

WRITE_S = 10.0
"""How long a `fieldbus write` is waited for that works with the devices just now."""
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
    try:
        locks = take(plant.data_dir, plant.file, wait_s=WRITE_S)
    except InUseError as error:
        pid = running_pid(plant.data_dir) or error.holder.pid
        who = "" if pid is None else f" (process {pid})"
        text = f"a gateway runs this configuration, or another one with the data folder {plant.data_dir}"
        raise fail(f"{text}, already{who}; stop it, or give this one a `data_dir` of its own") from None
    try:
        log.set_up(log_level)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the gateway has its own handler
        loop.run(_run(plant, simulate, locks))
    except LinkDownError as error:
        raise fail(str(error)) from None
    finally:
        locks.release()


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
        raise fail(f"{output or 'stdout'}: {os_reason(error)}") from None


async def _run(plant: Plant, simulate: bool, locks: SoleUse) -> None:
    simulation = Simulation(plant) if simulate else None  # it leads the links elsewhere before they are used
    simulated = frozenset(name for name, _ in simulation.places) if simulation is not None else frozenset()
    gateway = Gateway(plant, load=lambda before: load_again(before, simulated))
    loop.on_signal(gateway.stop, ends_process=True)
    points = sum(len(item.points) for item in plant.devices.values())
    _LOG.info("%s: fieldbus %s, %d links, %d devices, %d points, %d routes", plant.name, __version__,
              len(plant.links), len(plant.devices), points, len(plant.edges))  # fmt: skip
    await work(gateway, simulation, reloads=True, locks=locks)
    _LOG.info("%s: stopped", plant.name)


def load_again(plant: Plant, simulated: frozenset[str] = frozenset()) -> Plant:
    """Load the configuration of the plant that is at work anew.

    Args:
        plant: the one that is at work.
        simulated: links that lead to a simulator, which cannot change.

    Raises:
        ConfigError: it has problems, or changes what needs a restart.
    """
    fresh = load(plant.file, previous=plant)
    for name in sorted(simulated):
        if fresh.links.get(name) is not plant.links[name]:
            text = "it is simulated, and cannot be changed meanwhile"
            raise ConfigError([Problem(str(plant.file), 0, 0, f"links.{name}", text, "restart it")])
    return fresh


async def work(
    gateway: Gateway, simulation: Simulation | None, *, reloads: bool = False, locks: SoleUse | None = None
) -> None:
    """Run a gateway, its local door and its simulators until it is stopped.

    Args:
        gateway: what is run.
        simulation: its simulators.
        reloads: whether SIGHUP and `fieldbus reload` load the configuration anew.
        locks: by which others recognise that it runs.
    """
    if simulation is not None:
        await simulation.open()
    service = Systemd()

    async def reload() -> str:
        service.reloading()
        try:
            return await gateway.load_again()
        finally:
            service.ready(f"{gateway.plant.name}: at work")

    async def reload_by_signal() -> None:
        try:
            await reload()
        except ConfigError as error:
            for problem in error.problems:
                _LOG.error("%s", problem)
            _LOG.error("%s: not reloaded, nothing was changed", gateway.plant.name)
        except Exception:
            _LOG.exception("%s: internal error; not reloaded", gateway.plant.name)

    beside = [
        asyncio.create_task(
            ControlServer(gateway, reload if reloads else None, locks).run(), name="local door"
        ),
        asyncio.create_task(_watch_over(gateway, service), name="watchdog"),
        asyncio.create_task(_say_that_it_ends(gateway, service), name="farewell"),
    ]
    if simulation is not None:
        beside.append(asyncio.create_task(simulation.run(), name="simulation"))
    if reloads:
        loop.on_hangup(lambda: beside.append(asyncio.create_task(reload_by_signal(), name="reload")))
    try:
        await gateway.run()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _say_that_it_ends(gateway: Gateway, service: Systemd) -> None:
    await gateway.until_stop()
    service.stopping()


async def _watch_over(gateway: Gateway, service: Systemd) -> None:
    """Tell the service manager that all is well, while it is."""
    service.ready(f"{gateway.plant.name}: at work")
    if service.watchdog_s is None:
        return
    said: str | None = None
    while True:
        await asyncio.sleep(service.watchdog_s / 2)
        stuck = gateway.stuck()
        if stuck is None:
            service.alive()
        else:
            if said is None:
                _LOG.error("watchdog: %s", stuck)
            service.status(stuck)
        said = stuck
