"""A session with a broker that subscribes, and publishes what has to go out at once.

Rules:

* A message is acknowledged when it was handed on (`start` says to whom), not when it arrived. Until then it
  counts against the Receive Maximum that we announce, so a broker holds back what we cannot take; see
  `inbox` for the topics of which only the newest message matters.
* Messages that need no acknowledgement (QoS 0) have no Receive Maximum. When the inbox is full, nothing is
  read from the socket.
* No more messages are taken while `_MOST_ANSWERS` of ours wait to go out, as each may cause an answer.
  Answers that cannot go out all the same are dropped, the oldest first, and counted (`tx_dropped`).
* A refused subscription is told with the reason, and costs nothing but itself.
* The longest packet is announced (Maximum Packet Size). A broker that sends a longer one, more messages than
  the Receive Maximum, or something that is not MQTT 5, is left; the gateway connects again with backoff.
* A message that causes an internal error is logged, acknowledged and counted (`rx_dropped`); so is what
  nobody subscribed to. The session goes on.

Design: messages are handed on in the turn of the event loop in which they arrive, at most `_SLICE` of them
or `_SLICE_BYTES`; then others have their turn.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import ssl
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.mqtt import answers, packets
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.connection import Connection, Message
from fieldbus.mqtt.inbox import Inbox
from fieldbus.mqtt.opening import open_connection
from fieldbus.mqtt.packets import Subscription, Will
from fieldbus.mqtt.properties import MalformedPacketError

MAX_INCOMING = 16 * 1024 * 1024
"""Longest packet that a broker may send us: the points of a large gateway."""
RECEIVE_MAXIMUM = 500
_SUBSCRIBE_AT_ONCE = 100
"""Topic filters of one SUBSCRIBE: the stored messages of so many come at once, and brokers queue few."""
_SUBSCRIBE_S = 10.0
"""How long a broker may take to answer a SUBSCRIBE."""
_SLICE = 64
_SLICE_BYTES = 128 * 1024
_MOST_ANSWERS = 1000
_MAX_ANSWERS = 10_000
_MOST_TROUBLES = 100
_FIRST_SUBSCRIBE_ID = 60_000
"""Packet identifiers from here on are those of SUBSCRIBE."""
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
        username: str | None = None,
        password: str | None = None,
        keepalive_s: float = 30.0,
        server_name: str | None = None,
    ) -> None:
        """Take the broker's address and our name there; nothing is opened.

        Args:
            conflates: whether only the newest message of a topic matters.
            server_name: the name that the broker's certificate must have, if it is not the host's.
        """
        self.tls: ssl.SSLContext | None = None
        """Set before `connect`; None if the connection is not secured."""
        self.name = name
        self.client_id = client_id
        self.keepalive_s = min(65535, max(1, round(keepalive_s)))
        self.waiting: deque[Message] = deque()
        self.sure: deque[Message] = deque()
        self.counters = dict.fromkeys(("received", "rx_dropped", "tx_dropped"), 0)
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._server_name = server_name
        self._conflates = conflates
        self._conflated = 0
        self._connection: _SessionConnection | None = None
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
        connection = _SessionConnection(self, Inbox(self._conflates))
        await open_connection(
            connection, self._host, self._port, hello, tls=self.tls, server_name=self._server_name
        )
        self._connection = connection

    def start(self, take: Callable[[Publish], None]) -> None:
        """Hand messages on from now on."""
        if self._connection is not None:
            self._connection.start(take)

    def stop(self) -> None:
        """Hand nothing on any more; what comes is not acknowledged."""
        if self._connection is not None:
            self._connection.stop()

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

    def send(self, topic: str, payload: bytes, properties: bytes) -> None:
        """Publish a message at once or never. Never blocks, never raises."""
        if self._connection is None:
            return
        if len(self.waiting) >= _MAX_ANSWERS:
            self.waiting.popleft()
            self.counters["tx_dropped"] += 1
        self.waiting.append(Message(topic, payload, False, None, properties))
        self._connection.wake()

    def close(self) -> None:
        """Close the connection. What waits to be taken was not acknowledged; what waits to go out is lost."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._conflated += connection.inbox.conflated
        self.counters["rx_dropped"] += len(connection.inbox)
        for message in (*connection.under_way.values(), *self.waiting):
            if message.done is not None:
                message.done(False)
        connection.under_way = {}
        self.waiting.clear()
        connection.say_goodbye()

    def _connected(self) -> _SessionConnection:
        if self._connection is None:
            raise LinkDownError("not connected")
        return self._connection

    # --- what the connection says

    def published(self, message: Message) -> None:
        """Learn that the broker has a message."""
        if message.done is not None:
            message.done(True)

    def refused(self, message: Message, reason: str, *, is_final: bool) -> None:
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

    def __call__(self, is_done: bool) -> None:
        if not self.future.done():
            if is_done:
                self.future.set_result(None)
            else:
                self.future.set_exception(LinkDownError("connection lost"))

    def refuse(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(RefusedError(reason))


class _SessionConnection(Connection):
    """A connection on which messages come in too."""

    def __init__(self, session: Session, inbox: Inbox) -> None:
        super().__init__(session, MAX_INCOMING, range(1, _FIRST_SUBSCRIBE_ID))
        self.inbox = inbox
        self._session = session
        self._take: Callable[[Publish], None] | None = None
        self._acks: list[bytes] = []
        self._open = 0
        """Messages that are not acknowledged."""
        self._is_scheduled = False
        self._is_held = False
        """Whether nothing is read because the inbox is full."""
        self._subscribe_ids = itertools.cycle(range(_FIRST_SUBSCRIBE_ID, 65536))
        self._subscribing: dict[int, asyncio.Future[tuple[bytes, str]]] = {}

    def start(self, take: Callable[[Publish], None]) -> None:
        """Hand messages on from now on."""
        self._take = take
        self.go_on()

    def stop(self) -> None:
        """Hand nothing on any more, and read all the same: acknowledgements come here too."""
        self._take = None
        self._hold(is_full=False)

    async def subscribe(self, subscriptions: Sequence[Subscription]) -> tuple[bytes, str]:
        """Subscribe; return a reason code for each topic filter, and the broker's words."""
        packet_id = next(self._subscribe_ids)
        answer: asyncio.Future[tuple[bytes, str]] = self._loop.create_future()
        self._subscribing[packet_id] = answer
        try:
            self.transport.write(packets.subscribe(packet_id, subscriptions))
            async with asyncio.timeout(_SUBSCRIBE_S):
                await asyncio.wait((answer, self.lost), return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    await asyncio.shield(self.lost)
                codes, told = answer.result()
        except TimeoutError:
            raise LinkDownError("the broker does not answer a subscription") from None
        finally:
            del self._subscribing[packet_id]
            answer.cancel()
        if len(codes) != len(subscriptions):
            raise LinkDownError("the broker answers a subscription with another number of topics")
        return codes, told

    def data_received(self, data: bytes) -> None:
        """Handle what arrived."""
        super().data_received(data)
        if not self._is_scheduled:
            self._work()

    def go_on(self) -> None:
        """Hand on what waits, at the next turn of the event loop."""
        if not self._is_scheduled and len(self.inbox):
            self._is_scheduled = True
            self._loop.call_soon(self._work)

    def _handle(self, first: int, rest: bytes) -> None:
        kind = first & 0xF0
        if kind == packets.PUBLISH and self.connected.done():
            self._came(answers.read_publish(first, rest))
        elif first == packets.SUBACK and self.connected.done():
            packet_id, codes, told = answers.read_suback(rest)
            answer = self._subscribing.get(packet_id)
            if answer is not None and not answer.done():
                answer.set_result((codes, told))
        else:
            super()._handle(first, rest)

    def _came(self, message: Publish) -> None:
        self._session.counters["received"] += 1
        if message.packet_id:
            self._open += 1
            if self._open > RECEIVE_MAXIMUM:
                raise MalformedPacketError("more messages at once than its Receive Maximum allows")
        if self._take is None and self.inbox.is_full:
            self._session.counters["rx_dropped"] += 1  # we are closing; it is not acknowledged
            return
        self._acknowledge(self.inbox.put(message))

    def _acknowledge(self, packet_id: int) -> None:
        if packet_id:
            self._open -= 1
            self._acks.append(packets.puback(packet_id))

    def _work(self) -> None:
        """Hand on some of what waits, and acknowledge it."""
        self._is_scheduled = False
        if self.lost.done():
            return
        inbox, take = self.inbox, self._take
        left, left_bytes = _SLICE, _SLICE_BYTES
        while take is not None and left > 0 and left_bytes > 0:
            if len(self._session.waiting) >= _MOST_ANSWERS and not inbox.is_full:
                break  # the next acknowledgement of ours goes on
            message = inbox.take()
            if message is None:
                break
            left -= 1
            left_bytes -= len(message.payload)
            try:
                take(message)
            except Exception:
                self._session.failed(message.topic)
            self._acknowledge(message.packet_id)
        if self.lost.done() or self.transport.is_closing():
            return  # somebody has closed the link meanwhile
        if self._acks:
            self.transport.write(b"".join(self._acks))
            self._acks = []
        self._hold(is_full=inbox.is_full and take is not None)
        if left <= 0 or left_bytes <= 0:
            self.go_on()

    def _hold(self, *, is_full: bool) -> None:
        if is_full is not self._is_held and not self.transport.is_closing():
            self._is_held = is_full
            if is_full:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()


def total(sessions: Sequence[Session]) -> Mapping[str, int]:
    """Return the totals of several sessions."""
    found = {"received": 0, "rx_dropped": 0, "tx_dropped": 0, "rx_conflated": 0}
    for session in sessions:
        for name, count in session.counters.items():
            found[name] += count
        found["rx_conflated"] += session.conflated
    return found
