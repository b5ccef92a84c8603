"""The audit log on the disk, once a second, whatever the disk does.

Rules:

* Synchronising runs beside everything else. While one synchronisation is under way no other begins, and
  nothing waits for it.
* One that fails, or takes longer than `HANGS_S`, is logged once; so is the end of that.
* At the end of the gateway, or of a command, the disk gets `CLOSE_S`; then the process ends without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fieldbus.clock import Clock
from fieldbus.durable.daemon_threads import DAEMON_THREADS
from fieldbus.errors import os_reason
from fieldbus.gateway.commands.audit import Audit

HANGS_S = 5.0
"""After which time a disk hangs: memory cards take a second now and then."""
CLOSE_S = 2.0
HANGS = "the disk does not respond"
_LOG = logging.getLogger("fieldbus")


class AuditSync:
    """Synchronises one audit log."""

    def __init__(self, audit: Audit, settle: Callable[[], Awaitable[None]], clock: Clock) -> None:
        """Take the log, what returns when it is on the disk, and the gateway's clock."""
        self._audit = audit
        self._settle = settle
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._since_s = 0.0
        self.trouble: str | None = None
        """Why the log is not on the disk; None if it is, or soon will be."""

    def begin(self) -> None:
        """Begin to synchronise, unless that is under way; never blocks."""
        now_s = self._clock.monotonic_s()
        if self._task is None or self._task.done():
            self._since_s = now_s
            self._task = asyncio.get_running_loop().create_task(self._work(), name="audit to disk")
        elif now_s - self._since_s >= HANGS_S:
            self._failed(HANGS)

    async def _work(self) -> None:
        try:
            await self._settle()
        except OSError as error:
            self._audit.trouble = os_reason(error)
            self._failed(self._audit.trouble)
            return
        if self.trouble is not None:
            self.trouble = None
            _LOG.info("audit: %s is synchronised to the disk again", self._audit.file)

    def _failed(self, trouble: str) -> None:
        if self.trouble is None:
            _LOG.error("audit: %s cannot be synchronised to the disk (%s)", self._audit.file, trouble)
        self.trouble = trouble

    async def close(self) -> None:
        """Close the log, which nobody writes any more; give up if the disk does not respond."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await close(self._audit)


async def settle(audit: Audit, timeout_s: float) -> str | None:
    """Synchronise a log; return why it is not on the disk, None if it is."""
    syncing = asyncio.get_running_loop().run_in_executor(DAEMON_THREADS, audit.sync)
    try:
        async with asyncio.timeout(timeout_s):
            await syncing
    except TimeoutError:
        return HANGS
    except OSError as error:
        return os_reason(error)
    return None


async def close(audit: Audit) -> None:
    """Close a log that nobody writes any more; give up if the disk does not respond."""
    closing = asyncio.get_running_loop().run_in_executor(DAEMON_THREADS, audit.close)
    try:
        async with asyncio.timeout(CLOSE_S):
            await closing
    except TimeoutError:
        _LOG.error("audit: the last records of %s may not be on the disk (%s)", audit.file, HANGS)
