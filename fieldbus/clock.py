"""The time of a gateway.

Rules:

* Each gateway has a `Clock` of its own, and every part of it is given that one: several gateways in one
  process may have wall clocks that differ, drift and jump.
* Periods and ages are measured by ``monotonic_s``; ``wall_ns`` is for time stamps only.
* Nothing outside this file and the programs' own edges (a command's terminal, a thread that waits for a disk)
  calls the `time` module.

Design: an object with two functions, and not a module with two: the functions are looked up on the object at
each call, so that a stepped replay can put a log's time in their place after the configuration was loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_boot() -> str | None:
    """Return what tells this boot of the machine from others; None if the system does not say it."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except (OSError, ValueError):
        return None


class Clock:
    """Two functions that tell the time; the machine's by default."""

    __slots__ = ("boot", "monotonic_s", "wall_ns")

    def __init__(
        self,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        boot: Callable[[], str | None] | None = None,
    ) -> None:
        self.monotonic_s = monotonic_s
        """For periods and ages, in seconds; the event loop's own timers go by the same."""
        self.wall_ns = wall_ns
        """For time stamps: nanoseconds since the Unix epoch."""
        if boot is None:
            boot = machine_boot if monotonic_s is time.monotonic else lambda: None
        self.boot = boot
        """Tells boots apart: the monotonic clock of one goes on from process to process. None: not known."""


SYSTEM = Clock()
"""The machine's own time, for whatever belongs to no gateway. Nobody changes it."""
