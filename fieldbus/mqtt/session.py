"""A session with a broker that subscribes, and publishes a few messages whose end somebody waits for.

Rules:

* A message is acknowledged when it is in the inbox, from which nothing is dropped in silence; or, when the
  inbox is full, when it was handed on (`start` says to whom). Until then it counts against the Receive
  Maximum that we announce, so the broker holds back what we cannot take. See `inbox` for the topics of which
  only the newest message matters.
* Messages that need no acknowledgement (QoS 0) have no Receive Maximum, and some brokers do not keep to it.
  When the inbox overflows, nothing is read from the socket.
* `is_held_back` says when nothing may be handed on, because too many answers wait to go out.
* When the connection is lost, what the inbox has is handed on all the same (`finish`); at a shutdown it is
  counted (`rx_dropped`) and logged.
* A refused subscription is told with the reason, and costs nothing but itself.
* The longest packet is announced (Maximum Packet Size). A broker that sends a longer one, or something that
  is not MQTT 5, is left; the gateway connects again with backoff.
* A message that causes an internal error is logged, acknowledged and counted (`rx_dropped`). The session goes
  on.
* A PINGREQ goes out every third of the keep-alive time: who only receives has to say that it is there.

Design: brokers drop without a word what they cannot queue for a client, often from the thousandth message on.
So a burst waits here, and not there. Messages are handed on in the turn of the event loop in which they
arrive, but few of them; then others have their turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.link import Handover
from fieldbus.mqtt import packets
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.connection import Message, look
from fieldbus.mqtt.inbox import Inbox
from fieldbus.mqtt.opening import open_connection
from fieldbus.mqtt.packets import Subscription, Will
from fieldbus.mqtt.session_connection import MAX_INCOMING, SessionConnection

RECEIVE_MAXIMUM = 5000
_SUBSCRIBE_AT_ONCE = 100
"""Topic filters of one SUBSCRIBE: the stored messages of so many come at once, and brokers queue few."""
_MOST_TROUBLES = 100
_LOG = logging.getLogger("fieldbus")


class Session:
    """One session; may be connected again and again."""

    qos = 1
    is_retained = False
    is_draining = True
    """Always: acknowledgements are read at once."""
    historical_s = -math.inf
    """Nothing that goes out here is a sample that waits."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        client_id: str,
        *,
        conflates: Callable[[str], bool],
        is_held_back: Callable[[], bool] = lambda: False,
        username: str | None = None,
        password: str | None = None,
        keepalive_s: float = 30.0,
        server_name: str | None = None,
    ) -> None:
        """Take the broker's address and our name there; nothing is opened.

        Args:
            conflates: whether only the newest message of a topic matters.
            is_held_back: whether nothing may be handed on now; `go_on` is called when it may again.
            server_name: the name that the broker's certificate must have, if it is not the host's.
        """
        self.tls: ssl.SSLContext | None = None
        """Set before `connect`; None if the connection is not secured."""
        self.name = name
        self.client_id = client_id
        self.keepalive_s = min(65535, max(1, round(keepalive_s)))
        self.waiting: deque[Message] = deque()
        self.sure: deque[Message] = deque()
        self.counters = dict.fromkeys(("received", "rx_dropped"), 0)
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._server_name = server_name
        self._conflates = conflates
        self.is_held_back = is_held_back
        self._conflated = 0
        self._connection: SessionConnection | None = None
        self._refusals: dict[str, str] = {}
        """Topic filter to the reason for which it was last refused."""
        self._troubles: set[str] = set()

    @property
    def conflated(self) -> int:
        """How many messages newer ones of their topic replaced before they were taken."""
        connection = self._connection
        return self._conflated + (0 if connection is None else connection.inbox.conflated)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._connection is not None and not self._connection.lost.done()

    async def connect(self, will: Will | None = None) -> None:
        """Connect.

        Raises:
            LinkDownError: the broker is not there, or refuses us.
        """
        self.close()
        hello = packets.connect(
            self.client_id,
            self.keepalive_s,
            username=self._username,
            password=self._password,
            will=will,
            receive_maximum=RECEIVE_MAXIMUM,
            maximum_packet_size=MAX_INCOMING,
        )
        connection = SessionConnection(self, Inbox(self._conflates))
        await open_connection(
            connection, self._host, self._port, hello, tls=self.tls, server_name=self._server_name
        )
        self._connection = connection

    def start(self, take: Callable[[Publish], None]) -> None:
        """Hand messages on from now on."""
        if self._connection is not None:
            self._connection.start(take)

    def go_on(self) -> None:
        """Hand on what was held back."""
        if self._connection is not None:
            self._connection.go_on()

    async def finish(self, *, is_lost: bool) -> None:
        """Hand on what is in the inbox if the connection is lost, and nothing after that."""
        connection = self._connection
        if connection is None:
            return
        left = 0 if is_lost and await connection.hand_on_the_rest() else connection.inbox.acknowledged
        connection.stop()
        if left:
            self.counters["rx_dropped"] += left
            _LOG.warning("%s: %d messages of the broker are dropped: the gateway stops", self.name, left)

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> Collection[str]:
        """Subscribe; return the topic filters that the broker refused. Each is logged when that is news.

        Raises:
            LinkDownError: the connection is lost, or the broker does not answer.
        """
        refused: dict[str, str] = {}
        for first in range(0, len(subscriptions), _SUBSCRIBE_AT_ONCE):
            some = subscriptions[first : first + _SUBSCRIBE_AT_ONCE]
            codes, told = await self._connected().subscribe(some)
            for item, code in zip(some, codes, strict=True):
                if code >= packets.FIRST_ERROR:
                    refused[item.topic] = packets.reason(code, told)
                else:
                    self._refusals.pop(item.topic, None)
        for topic, reason in refused.items():
            if self._refusals.get(topic) != reason:
                self._refusals[topic] = reason
                _LOG.warning("%s: the broker refuses the subscription to %s: %s", self.name, topic, reason)
        return refused

    async def run(self) -> None:
        """Wait until the connection is lost.

        Raises:
            LinkDownError: it is.
        """
        await asyncio.shield(self._connected().lost)

    async def publish(self, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
        """Publish a message, and wait until the broker has it.

        Raises:
            LinkDownError: the connection is lost.
            RefusedError: the broker does not take it.
        """
        connection = self._connected()
        waiter = _Waiter()
        self.waiting.append(Message(topic, payload, is_retained, waiter))
        connection.wake()
        await asyncio.wait((waiter.future, connection.lost), return_when=asyncio.FIRST_COMPLETED)
        if not waiter.future.done():
            await asyncio.shield(connection.lost)
        waiter.future.result()

    def close(self) -> None:
        """Close the connection; see `finish` for what has come and was not handed on."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._conflated += connection.inbox.conflated
        for message in (*connection.under_way.values(), *self.waiting):
            if message.done is not None:
                message.done(Handover.GIVEN_BACK)
        connection.under_way = {}
        self.waiting.clear()
        connection.say_goodbye()

    def _connected(self) -> SessionConnection:
        if self._connection is None:
            raise LinkDownError("not connected")
        return self._connection

    # --- what the connection says

    def published(self, message: Message) -> None:
        """Learn that the broker has a message."""
        if message.done is not None:
            message.done(Handover.TAKEN)

    def refused(self, message: Message, reason: str, fate: Handover) -> None:
        """Learn that the broker does not take a message."""
        if isinstance(message.done, _Waiter):
            message.done.refuse(reason)

    def done(self) -> None:
        """Learn that nothing is under way. Whoever waits for a message is told of it by itself."""

    def failed(self, topic: str) -> None:
        """Count a message that could not be taken; log the error that is being handled, once a topic."""
        self.counters["rx_dropped"] += 1
        if topic not in self._troubles and len(self._troubles) < _MOST_TROUBLES:
            self._troubles.add(topic)
            _LOG.exception("%s: internal error: a message on %s is dropped", self.name, topic)


class _Waiter:
    """Waits for the end of one message."""

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(look)

    def __call__(self, fate: Handover) -> None:
        if not self.future.done():
            if fate:
                self.future.set_result(None)
            else:
                self.future.set_exception(LinkDownError("connection lost"))

    def refuse(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(RefusedError(reason))


def total(sessions: Sequence[Session]) -> Mapping[str, int]:
    """Return the totals of several sessions."""
    found = {"received": 0, "rx_dropped": 0, "rx_conflated": 0}
    for session in sessions:
        for name, count in session.counters.items():
            found[name] += count
        found["rx_conflated"] += session.conflated
    return found
