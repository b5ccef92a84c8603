"""Birth and last will: a gateway's status on its topic, retained."""

from __future__ import annotations

import json
import logging
from typing import Any

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import RefusedError
from fieldbus.mqtt.packets import Will
from fieldbus.mqtt.session import Session
from fieldbus.sample_json import iso_time

LOST = "connection lost"
SHUT_DOWN = "shut down"
_LOG = logging.getLogger("fieldbus")


class Presence:
    """What a gateway tells others of its being there."""

    def __init__(
        self, link: str, topic: str, version: str, keepalive_s: float, *, clock: Clock = SYSTEM
    ) -> None:
        """Take what a status has in it.

        Args:
            link: the link's name, for the log.
            topic: where the status goes.
            version: the program's; left out if it is empty.
            keepalive_s: within which time others hear something of us.
            clock: the gateway's.
        """
        self.topic = topic
        self._link = link
        self._version = version
        self._keepalive_s = keepalive_s
        self._clock = clock
        self._trouble = ""

    def will(self) -> Will:
        """Return the last will."""
        return Will(self.topic, self._status("offline", LOST))

    async def say(self, session: Session, status: str, reason: str | None = None) -> None:
        """Publish a status. If the broker does not take it, that is logged once.

        Raises:
            LinkDownError: the connection is lost.
        """
        try:
            await session.publish(self.topic, self._status(status, reason), is_retained=True)
        except RefusedError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                _LOG.warning("%s: the broker does not take %s (%s)", self._link, self.topic, error)

    def _status(self, status: str, reason: str | None = None) -> bytes:
        found: dict[str, Any] = {"status": status, "reason": reason, "time": iso_time(self._clock.wall_ns())}
        if status == "online":
            found["keepalive"] = self._keepalive_s
        if self._version:
            found["version"] = self._version
        return json.dumps(found).encode()
