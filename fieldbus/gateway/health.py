"""How a gateway is, for others: on ``fieldbus/<gateway>/health``, retained, and in ``fieldbus network``.

Layout: JSON, ``{"gateway", "version", "time", "started", "links": {name: {"connected", "since", "goes_to"}},
"devices": {name: {"online", "since"}}, "streams": {name: {"backlog", "dropped"}}, "spool": {"bytes",
"trouble"}, "commands": {…}, "fallbacks": […], "peers": {…}, "audit": {"records", "hash", "lost",
"trouble"}}``.

Rules: said when something changed, at most once a second, and every `REPEAT_S`. Of links the place is told
that the log tells too; never a user, never a secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fieldbus.gateway.system import Status
from fieldbus.sample_json import iso_time

REPEAT_S = 30.0


class Health:
    """Puts together how a gateway is, and knows since when."""

    def __init__(self, gateway: str, version: str, now_ns: int) -> None:
        self._gateway = gateway
        self._version = version
        self._started = iso_time(now_ns)
        self._since: dict[tuple[str, str], tuple[bool, str]] = {}
        self._said: dict[str, Any] = {}
        self._said_s = -REPEAT_S

    def look(
        self,
        links: Mapping[str, Status],
        places: Mapping[str, str],
        devices: Mapping[str, Status],
        more: Mapping[str, Any],
        now_ns: int,
    ) -> dict[str, Any]:
        """Return how all is now.

        Args:
            links: their statuses, by name.
            places: where they go, by name.
            devices: their statuses, by name.
            more: the other sections.
            now_ns: wall clock.
        """
        now = iso_time(now_ns)
        known = {("link", name) for name in links} | {("device", name) for name in devices}
        self._since = {key: value for key, value in self._since.items() if key in known}
        return {
            "gateway": self._gateway,
            "version": self._version,
            "time": now,
            "started": self._started,
            "links": {
                name: {
                    "connected": (is_up := status.is_true("connected")),
                    "since": self._changed(("link", name), is_up, now),
                    "goes_to": places.get(name, ""),
                }
                for name, status in links.items()
            },
            "devices": {
                name: {
                    "online": (is_up := status.is_true("online")),
                    "since": self._changed(("device", name), is_up, now),
                }
                for name, status in devices.items()
            },
            **more,
        }

    def news(self, found: Mapping[str, Any], now_s: float) -> bytes | None:
        """Return what is to be said now, if anything."""
        content = {key: value for key, value in found.items() if key != "time"}
        if content == self._said and now_s - self._said_s < REPEAT_S:
            return None
        self._said, self._said_s = content, now_s
        return payload(found)

    def say_again(self) -> None:
        """Have it said at the next look, changed or not."""
        self._said_s = -REPEAT_S
        self._said = {}

    def _changed(self, key: tuple[str, str], is_up: bool, now: str) -> str:
        before = self._since.get(key)
        if before is None or before[0] is not is_up:
            self._since[key] = before = (is_up, now)
        return before[1]


def payload(found: Mapping[str, Any]) -> bytes:
    """Return it as a payload."""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # half surrogates, as JSON writes them
