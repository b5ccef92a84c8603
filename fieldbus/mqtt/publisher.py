"""The connection over which a broker link publishes, and the queue in front of it.

Rules:

* What is to be published waits in a bounded queue; when it is full the oldest goes and is counted. The
  queue outlives the connection.
* A message is done when the broker has acknowledged it (QoS 1 and 2) or when it was written (QoS 0).
  What was under way when the connection broke is sent again, first and in order.
* What the broker does not take (an acknowledgement with an error, a message longer than it accepts) is
  dropped, counted, and said once for each topic until one is taken again.
* A message that waited for longer than `HISTORICAL_S` is sent as historical: whoever gets it must not take it
  for what is so now.
* What is given to `put_sure` is its giver's to keep: it waits in a queue of its own, which its giver keeps
  short, is never pushed out of it, and its giver is told what became of it; after the connection was lost it
  does not wait any more. Of both queues a message goes in turn: a backlog does not hold up what is new.
* How much is under way at once, and when a silent broker is lost: see `connection`.

Design: aiomqtt serves subscriptions and the rare writes; a message costs it about 80 µs, since paho writes
each and reads its acknowledgement byte by byte. Here all messages of one turn of the event loop are one
write, and what arrives is handled in one pass. The connection is a second one, because two programs
cannot read one stream; the link treats both as one: whichever is lost, the link is.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError
from fieldbus.link import Handover
from fieldbus.mqtt import packets
from fieldbus.mqtt.connection import MAX_INCOMING, Connection, Message
from fieldbus.mqtt.opening import open_connection

HISTORICAL_S = 1.0
_LOG = logging.getLogger("fieldbus")


class Publisher:
    """Publishes on one broker; may be connected again and again."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        client_id: str,
        *,
        username: str | None = None,
        password: str | None = None,
        keepalive_s: float = 30.0,
        qos: int = 1,
        is_retained: bool = True,
        max_queue: int = 10_000,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what it works with; nothing is opened.

        Args:
            tls: with which the connection is secured; None if it is not.
            server_name: the name that the broker's certificate must have, if it is not the host's.
            clock: the gateway's.
        """
        self._clock = clock
        self.tls = tls
        self._server_name = server_name
        self.name = name
        self.host = host
        self.port = port
        self.client_id = client_id
        self.qos = qos
        self.is_retained = is_retained
        self.keepalive_s = min(65535, max(1, round(keepalive_s)))
        self.waiting: deque[Message] = deque()
        self.sure: deque[Message] = deque()
        self._max_queue = max_queue
        self._hello = packets.connect(
            client_id,
            self.keepalive_s,
            username=username,
            password=password,
            maximum_packet_size=MAX_INCOMING,
        )
        self.is_draining = False
        """Whether somebody waits for acknowledgements."""
        self._session: Connection | None = None
        self._is_filled = asyncio.Event()
        self._is_done = asyncio.Event()
        self._troubles: set[str] = set()
        self._published = 0
        self._dropped = 0
        self._refused = 0

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start, and how many messages wait or are under way."""
        under_way = len(self._session.under_way) if self._session is not None else 0
        return {
            "published": self._published,
            "tx_dropped": self._dropped,
            "tx_refused": self._refused,
            "queued": len(self.waiting) + len(self.sure) + under_way,
        }

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._session is not None and not self._session.lost.done()

    @property
    def is_wanted(self) -> bool:
        """Whether anything was ever to be published."""
        return self._is_filled.is_set()

    @property
    def historical_s(self) -> float:
        """What was queued before has waited for too long."""
        return self._clock.monotonic_s() - HISTORICAL_S

    def put(self, topic: str, payload: bytes) -> None:
        """Queue a sample, or a gathered message. Never blocks, never raises."""
        if len(self.waiting) >= self._max_queue:
            self.waiting.popleft()
            self._dropped += 1
        self.waiting.append(Message(topic, payload, put_s=self._clock.monotonic_s()))
        if self._session is not None:
            self._session.wake()
        elif not self._is_filled.is_set():
            self._is_filled.set()

    def put_sure(
        self,
        topic: str,
        payload: bytes,
        done: Callable[[Handover], None] | None,
        *,
        is_retained: bool = False,
        properties: bytes = b"",
    ) -> None:
        """Queue a message that nothing pushes out. Never blocks, never raises.

        Args:
            topic: where it goes.
            payload: what it says.
            done: called with what became of it. If None, it is dropped when the connection is lost.
            is_retained: whether the broker keeps it.
            properties: as `packets.publish_properties` makes them.
        """
        self.sure.append(Message(topic, payload, is_retained, done or _nobody, properties))
        if self._session is not None:
            self._session.wake()
        self._is_filled.set()

    def room_for(self, topic: str) -> int:
        """Return how long a payload on a topic may be, in bytes, so that the broker takes it."""
        return self._session.room_for(topic) if self._session is not None else 0

    async def until_wanted(self) -> None:
        """Wait until there is, or was, something to be published."""
        await self._is_filled.wait()

    async def connect(self) -> None:
        """Connect.

        Raises:
            LinkDownError: the broker is not there, or refuses us.
        """
        self._end_session()
        session = Connection(self)
        await open_connection(
            session, self.host, self.port, self._hello, tls=self.tls, server_name=self._server_name
        )
        self._session = session
        session.fill()

    async def run(self) -> None:
        """Publish until the connection is lost.

        Raises:
            LinkDownError: it is.
        """
        if self._session is None:
            raise LinkDownError("not connected")
        await asyncio.shield(self._session.lost)

    async def drain(self) -> None:
        """Wait until nothing waits and nothing is under way, or the connection is lost."""
        self.is_draining = True
        try:
            while self._session is not None and self.is_connected and self.counters["queued"]:
                self._session.look()
                self._is_done.clear()
                await self._is_done.wait()
        finally:
            self.is_draining = False

    def close(self) -> None:
        """Close the connection; what was under way waits again, first and in order, or is given back."""
        self._end_session()
        given_back, self.sure = self.sure, deque()
        for message in given_back:
            if message.done is not None:
                message.done(Handover.GIVEN_BACK)

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        for message in reversed(session.under_way.values()):
            (self.waiting if message.done is None else self.sure).appendleft(message)
        session.under_way = {}
        session.say_goodbye()

    def published(self, message: Message) -> None:
        """Learn that the broker has a message."""
        self._published += 1
        if message.done is not None:
            message.done(Handover.TAKEN)
        topic = message.topic
        if self._troubles and topic in self._troubles:
            self._troubles.discard(topic)
            _LOG.info("%s: %s is taken by the broker again", self.name, topic)

    def refused(self, message: Message, reason: str, fate: Handover) -> None:
        """Learn that the broker does not take a message, and what that means."""
        self._refused += 1
        topic = message.topic
        if topic not in self._troubles:
            self._troubles.add(topic)
            _LOG.warning("%s: the broker does not take %s (%s)", self.name, topic, reason)
        if message.done is not None:
            message.done(fate)

    def done(self) -> None:
        """Learn that messages were done, or that none ever will be."""
        self._is_done.set()


def _nobody(_fate: Handover) -> None:
    """Be told of what nobody keeps."""
