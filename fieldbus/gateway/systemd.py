"""What systemd is told of a service of ``Type=notify``: ready, reloading, stopping, and that it is alive.

Rules: one datagram to the socket that ``NOTIFY_SOCKET`` names, as sd_notify(3) describes it; nothing
happens where
there is none. ``WATCHDOG=1`` is sent at half of ``WATCHDOG_USEC`` by whoever knows that all is well.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Systemd:
    """The service manager, if there is one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        watchdog_us = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdecimal() and is_ours else None
        """Within which time it wants to hear that we are alive; None if it does not."""

    def ready(self, status: str) -> None:
        """Tell that all is begun."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Tell that the configuration is being loaded anew; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Tell that we are about to end."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Tell that all is well."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Tell people how things are."""
        self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
                door.setblocking(False)
                door.sendto(text.encode(), self._address)
        except OSError:
            return  # it has no time, or is gone: the next word will do
