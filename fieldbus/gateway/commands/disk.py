"""When records are on the disk, for those who must not go on before.

Rules: everybody who waits while the disk is busy is served by the next synchronisation together. It runs in a
thread of its own, and that thread may hang for as long as the disk does: who waits can give up at any time,
and the process can end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fieldbus.durable.daemon_threads import DAEMON_THREADS


class Disk:
    """Synchronises one file for all who wait."""

    def __init__(self, sync: Callable[[], None]) -> None:
        """Take what synchronises; it is called in a thread, never twice at once."""
        self._sync = sync
        self._next: asyncio.Task[None] | None = None
        """The round that has not begun yet, if somebody waits for one."""
        self._rounds: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def settled(self) -> None:
        """Return when all that was recorded before this call is on the disk.

        Raises:
            OSError: it is not.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._round(), name="audit on disk")
            self._rounds.add(self._next)
            self._next.add_done_callback(self._ended)
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """Wait for nothing any more."""
        rounds = list(self._rounds)
        for task in rounds:
            task.cancel()
        await asyncio.gather(*rounds, return_exceptions=True)

    async def _round(self) -> None:
        async with self._turn:
            self._next = None  # what is recorded from now on is for the next round
            await self._in_thread()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        if self._next is task:
            self._next = None
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def _in_thread(self) -> None:
        await asyncio.get_running_loop().run_in_executor(DAEMON_THREADS, self._sync)
