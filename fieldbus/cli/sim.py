"""``fieldbus sim``: only the simulators of a configuration, for a gateway in another process."""

from __future__ import annotations

import asyncio

from fieldbus.cli.common import ConfigArgument, fail, load_or_exit, say
from fieldbus.errors import LinkDownError
from fieldbus.gateway import log, loop
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.simulation import Simulation


def sim(config: ConfigArgument) -> None:
    """Simulate the devices of CONFIG until SIGINT or SIGTERM; the gateway runs elsewhere."""
    plant = load_or_exit(config, needs_secrets=False, shows_warnings=False)
    log.set_up()
    try:
        simulation = Simulation(plant, is_alone=True)
        if not simulation.places:
            raise fail("nothing in this configuration can be simulated")
        loop.run(_simulate(plant, simulation))
    except LinkDownError as error:
        raise fail(str(error)) from None


async def _simulate(plant: Plant, simulation: Simulation) -> None:
    stop = asyncio.Event()
    loop.on_signal(stop.set, ends_process=True)
    await simulation.open()
    say(f"simulating the devices of {plant.name}; Ctrl-C ends it", err=True)
    running = asyncio.create_task(simulation.run())
    await stop.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
