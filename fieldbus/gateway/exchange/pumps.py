"""The streams that are being sent, each by a task of its own. One that fails is logged and begins again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from fieldbus.gateway.exchange.pump import Pump

BEGIN_AGAIN_S = 1.0
_LOG = logging.getLogger("fieldbus")


class Pumps:
    """Starts and stops pumps; of two for one stream the first goes on."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Pump, asyncio.Task[None]]] = {}

    def __iter__(self) -> Iterator[Pump]:
        return iter([pump for pump, _ in self._running.values()])

    def start(self, pump: Pump) -> None:
        """Have a pump send from now on."""
        name = pump.stream.name
        if name not in self._running:
            task = asyncio.get_running_loop().create_task(_keep(pump), name=f"stream {name}")
            self._running[name] = pump, task

    def stop(self, pump: Pump) -> None:
        """Have a pump send nothing more."""
        found = self._running.get(pump.stream.name)
        if found is not None and found[0] is pump:
            del self._running[pump.stream.name]
            found[1].cancel()

    async def stop_all(self) -> None:
        """Have nothing sent any more."""
        tasks = [task for _, task in self._running.values()]
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ended(self) -> str | None:
        """Return the name of a stream that nobody sends though somebody should; None if there is none."""
        return next((name for name, (_, task) in self._running.items() if task.done()), None)


async def _keep(pump: Pump) -> None:
    """Have a pump run, whatever befalls it."""
    while True:
        try:
            await pump.run()
        except Exception:
            _LOG.exception(
                "stream %s: internal error; it is sent again from what is missing", pump.stream.name
            )
        await asyncio.sleep(BEGIN_AGAIN_S)
