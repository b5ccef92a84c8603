"""Messages that a broker has sent and nobody has taken yet. Pure.

Rules:

* Messages are taken in the order in which they came.
* Nothing is left out while few messages wait. From `CALM` messages on, of a topic of which only the newest
  value matters, a newer message takes the place of the last one that waits (`conflates` says which topics
  these are; it is asked only when it matters). The message that was replaced is counted and acknowledged. A
  stored message never replaces a live one.
* Of all other topics every message waits. While the inbox `is_full`, what comes is not acknowledged before it
  is taken, so that the broker holds back the rest. When it `is_over` as well, the connection reads no more.

Design: no bound drops anything here. What bounds the memory is the Receive Maximum for messages that are
acknowledged, and the socket for those that are not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fieldbus.mqtt.answers import Publish

CALM = 200
"""Messages that wait before any is replaced by a newer one."""
MAX_MESSAGES = 20_000
MAX_BYTES = 8 * 1024 * 1024
OVERFLOW = 1000
"""So many more than fill it, or twice the bytes, are too many."""


class Inbox:
    """The waiting messages of one session."""

    def __init__(
        self,
        conflates: Callable[[str], bool],
        calm: int = CALM,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Begin empty.

        Args:
            conflates: whether only the newest message of a topic matters.
            calm: so many may wait before any is replaced.
            max_messages: so many fill it.
            max_bytes: payloads of so many bytes fill it, however few.
        """
        self.conflated = 0
        """Messages that newer ones of their topic replaced."""
        self._conflates = conflates
        self._calm = calm
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: OrderedDict[int, Publish] = OrderedDict()
        self._newest: dict[str, int] = {}
        """Topic to the number of the message that came last, of those that wait."""
        self._number = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether a message that comes is not acknowledged before it is taken."""
        return len(self._waiting) >= self._max_messages or self._bytes >= self._max_bytes

    @property
    def is_over(self) -> bool:
        """Whether no more should be read for now."""
        return len(self._waiting) >= self._max_messages + OVERFLOW or self._bytes >= 2 * self._max_bytes

    @property
    def acknowledged(self) -> int:
        """How many of the waiting messages the broker does not keep any more."""
        return sum(not message.packet_id for message in self._waiting.values())

    def put(self, message: Publish) -> int:
        """Take a message from the network; return the packet identifier of the one that it replaces, or 0."""
        topic = message.topic
        number = self._newest.get(topic)
        if number is not None and len(self._waiting) >= self._calm and self._conflates(topic):
            waiting = self._waiting[number]
            self.conflated += 1
            if message.is_retained and not waiting.is_retained:
                return message.packet_id
            self._waiting[number] = message
            self._bytes += len(message.payload) - len(waiting.payload)
            return waiting.packet_id
        self._number += 1
        self._waiting[self._number] = message
        self._newest[topic] = self._number
        self._bytes += len(message.payload)
        return 0

    def take(self) -> Publish | None:
        """Return the message that has waited longest; None if none waits."""
        if not self._waiting:
            return None
        number, message = self._waiting.popitem(last=False)
        if self._newest[message.topic] == number:
            del self._newest[message.topic]
        self._bytes -= len(message.payload)
        return message
