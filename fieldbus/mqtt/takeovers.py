"""A broker that ends connections again and again, perhaps because two clients have one name.

MQTT 5 brokers may say so when they end the older connection (DISCONNECT 0x8E); some, among them mosquitto
2.0.11, only close it. The other client then comes anew, ours is closed, and so on without end.
"""

from __future__ import annotations

CLOSED = "connection closed by the broker"
"""What is known of a connection that the broker ended without a word."""
WITHIN_S = 60.0
OFTEN = 3


class Takeovers:
    """The connections of one client that ended without a word."""

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._ended_s: list[float] = []

    def reason(self, text: str, now_s: float) -> str:
        """Return why a connection ended, with what is to be suspected if that happens too often."""
        if text != CLOSED:
            return text
        self._ended_s = [*(ended_s for ended_s in self._ended_s if now_s - ended_s < WITHIN_S), now_s]
        if len(self._ended_s) < OFTEN:
            return text
        return f"{text} again and again: does another client come as '{self._client_id}'?"
