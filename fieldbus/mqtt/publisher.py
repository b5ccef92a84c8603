"""The connection over which a broker link publishes, and the queue in front of it.

Rules:

* What is to be published waits in a bounded queue; when it is full the oldest goes and is counted. The
  queue outlives the connection.
* A message is done when the broker has acknowledged it (QoS 1 and 2) or when it was written (QoS 0).
  What was under way when the connection broke is sent again, first and in order.
* At most as many messages are under way as the broker's Receive Maximum allows, and `WINDOW`.
* While the socket takes no more, nothing is taken from the queue.
* What the broker does not take (an acknowledgement with an error, a message longer than it accepts) is
  dropped, counted, and said once for each topic until one is taken again.
* A broker from which nothing is heard for the keep-alive time, though it was asked, is lost.

Design: brokers acknowledge message by message, and each acknowledgement that is read at once wakes this
process for a few bytes. So nothing is read while a few messages are under way, less than half of the window:
what has arrived is looked at when the next messages are sent, or after `LOOK_S`.
And once the window is full nothing is sent until half of it is free. That needs TCP_QUICKACK, which makes
the kernel confirm at once what arrived: brokers leave Nagle's algorithm on, so they hold the second
acknowledgement back until the first is confirmed, which else takes 40 ms or until we send something.

aiomqtt serves subscriptions and the rare writes; a message costs it about 80 µs, since paho writes
each and reads its acknowledgement byte by byte. Here all messages of one turn of the event loop are one
write, and what arrives is handled in one pass. The connection is a second one, because two programs
cannot read one stream; the link treats both as one: whichever is lost, the link is.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, cast

from fieldbus.errors import LinkDownError
from fieldbus.mqtt import packets

WINDOW = 200
"""Messages under way at most, whatever the broker allows."""
CONNECT_TIMEOUT_S = 5.0
MAX_INCOMING = 65536
"""Longest packet that a broker may send us."""
LOOK_S = 0.25
"""How long acknowledgements may lie unread while nothing is sent."""
_HIGH_WATER = 256 * 1024
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_LOG = logging.getLogger("fieldbus")


class Message(NamedTuple):
    """What waits to be published."""

    topic: str
    payload: bytes


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
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.client_id = client_id
        self.qos = qos
        self.is_retained = is_retained
        self.keepalive_s = min(65535, max(1, round(keepalive_s)))
        self.waiting: deque[Message] = deque()
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
        self._session: _Session | None = None
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
            "queued": len(self.waiting) + under_way,
        }

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._session is not None and not self._session.lost.done()

    @property
    def is_wanted(self) -> bool:
        """Whether anything was ever to be published."""
        return self._is_filled.is_set()

    def put(self, topic: str, payload: bytes) -> None:
        """Queue a message. Never blocks, never raises."""
        if len(self.waiting) >= self._max_queue:
            self.waiting.popleft()
            self._dropped += 1
        self.waiting.append(Message(topic, payload))
        if self._session is not None:
            self._session.wake()
        elif not self._is_filled.is_set():
            self._is_filled.set()

    async def until_wanted(self) -> None:
        """Wait until there is, or was, something to be published."""
        await self._is_filled.wait()

    async def connect(self) -> None:
        """Connect.

        Raises:
            LinkDownError: the broker is not there, or refuses us.
        """
        self.close()
        loop = asyncio.get_running_loop()
        session = _Session(self)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: session, self.host, self.port)
                session.transport.write(self._hello)
                await asyncio.shield(session.connected)
        except TimeoutError:
            session.abort()
            raise LinkDownError("no answer to the attempt to connect") from None
        except OSError as error:
            session.abort()
            raise LinkDownError(_words(error)) from error
        except BaseException:
            session.abort()
            raise
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
        """Close the connection; what was under way waits again, first and in order."""
        session, self._session = self._session, None
        if session is None:
            return
        self.waiting.extendleft(reversed(session.under_way.values()))
        session.under_way = {}
        session.say_goodbye()

    def published(self, topic: str, count: int = 1) -> None:
        """Learn that the broker has a message."""
        self._published += count
        if self._troubles and topic in self._troubles:
            self._troubles.discard(topic)
            _LOG.info("%s: %s is taken by the broker again", self.name, topic)

    def refused(self, topic: str, reason: str) -> None:
        """Learn that the broker does not take a message, and never will."""
        self._refused += 1
        if topic not in self._troubles:
            self._troubles.add(topic)
            _LOG.warning("%s: the broker does not take %s (%s)", self.name, topic, reason)

    def done(self) -> None:
        """Learn that messages were done, or that none ever will be."""
        self._is_done.set()


class _Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, owner: Publisher) -> None:
        loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.connected: asyncio.Future[None] = loop.create_future()
        """Done when the broker accepts us."""
        self.lost: asyncio.Future[None] = loop.create_future()
        """Ends with `LinkDownError`."""
        for future in (self.connected, self.lost):
            future.add_done_callback(_look)
        self.under_way: dict[int, Message] = {}
        """By packet identifier, in the order in which they were sent."""
        self._owner = owner
        self._loop = loop
        self._splitter = packets.Splitter(MAX_INCOMING)
        self._ids = itertools.cycle(range(1, 65536))
        self._window = 0
        self._is_full = False
        """Whether half of the window has to be acknowledged before anything is sent."""
        self._is_reading = True
        self._looker: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._is_paused = False
        self._is_awake = False
        self._is_looking = False
        self._max_bytes = packets.MAX_REMAINING
        self._first = 0
        self._keeper: asyncio.TimerHandle | None = None
        self._tick_s = owner.keepalive_s / 3
        self._is_heard = True
        self._is_asked = False

    # --- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        if _QUICKACK is not None:
            self._socket = transport.get_extra_info("socket")

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._end("connection closed by the broker" if exc is None else _words(exc))

    def pause_writing(self) -> None:
        """Take nothing from the queue for now."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._is_paused = False
        self.fill()

    def data_received(self, data: bytes) -> None:
        """Handle what arrived."""
        self._is_heard = True
        if self._is_full and self._socket is not None and _QUICKACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        try:
            for first, rest in self._splitter.split(data):
                self._handle(first, rest)
        except packets.MalformedPacketError as error:
            self._end(f"the broker sends what is not MQTT 5: {error}")
            return
        if self._owner.waiting:
            self.fill()
        elif not self.under_way:
            self._owner.done()

    # --- what the owner calls

    def wake(self) -> None:
        """Send at the end of this turn of the event loop what waits by then."""
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon(self.fill)

    def fill(self) -> None:
        """Send what waits, as far as there is room."""
        self._is_awake = False
        room = self._window - len(self.under_way)
        if self._is_full:
            if _QUICKACK is not None and room < self._window / 2:
                return
            self._is_full = False
        waiting = self._owner.waiting
        if not waiting or self._is_paused or self.lost.done():
            return
        out: list[bytes] = []
        size = 0
        first, under_way = self._first, self.under_way
        while waiting:
            if room <= 0:
                self._is_full = True
                break
            if size > _HIGH_WATER:
                self.wake()
                break
            message = waiting.popleft()
            packet_id = 0
            if first & 6:
                packet_id = next(self._ids)
                while packet_id in under_way:
                    packet_id = next(self._ids)
            try:
                packet = packets.publish(first, message.topic.encode(), message.payload, packet_id)
            except ValueError:
                packet = b""
            if not packet or len(packet) > self._max_bytes:
                self._owner.refused(message.topic, "its messages are longer than the broker accepts")
                continue
            if packet_id:
                under_way[packet_id] = message
                room -= 1
            else:
                self._owner.published(message.topic)
            out.append(packet)
            size += len(packet)
        if out:
            self.transport.write(b"".join(out))
            self.look()
        if not under_way and not waiting:
            self._owner.done()

    def look(self) -> None:
        """Read what has arrived by now; go on reading only if that is needed soon."""
        if not self._is_reading:
            self._is_reading = True
            self.transport.resume_reading()
        if not self._is_looking:
            self._is_looking = True
            # Twice, since after a timer uvloop calls what is to come soon before it looks at sockets.
            self._loop.call_soon(self._loop.call_soon, self._rest)

    def _rest(self) -> None:
        self._is_looking = False
        if self.lost.done() or not self._is_reading or self._owner.is_draining:
            return
        if 0 < 2 * len(self.under_way) < self._window:
            self._is_reading = False
            self.transport.pause_reading()
            if self._looker is None:
                self._looker = self._loop.call_later(LOOK_S, self._look)

    def say_goodbye(self) -> None:
        """Close the connection, politely if that costs no waiting."""
        self._stop()
        if not self.transport.is_closing():
            if self.transport.get_write_buffer_size():
                self.abort()
            else:
                self.transport.write(packets.DISCONNECT_PACKET)
                self.transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._stop()
        transport: asyncio.Transport | None = getattr(self, "transport", None)
        if transport is not None:
            transport.abort()

    # --- inside

    def _handle(self, first: int, rest: bytes) -> None:
        if first == packets.PUBACK and len(rest) == 2:  # nearly all
            message = self.under_way.pop(rest[0] << 8 | rest[1], None)
            if message is not None:
                self._owner.published(message.topic)
        elif first in (packets.PUBACK, packets.PUBREC, packets.PUBCOMP):
            self._acknowledged(first, rest)
        elif first == packets.CONNACK:
            self._accepted(packets.read_connack(rest))
        elif first == packets.DISCONNECT:
            self._end(packets.read_disconnect(rest))

    def _acknowledged(self, first: int, rest: bytes) -> None:
        packet_id, code, text = packets.read_ack(rest)
        message = self.under_way.get(packet_id)
        if message is None:
            return
        if code >= packets.FIRST_ERROR:
            self._owner.refused(message.topic, packets.reason(code, text))
        elif first == packets.PUBREC:
            self.transport.write(packets.pubrel(packet_id))
            return
        else:
            self._owner.published(message.topic)
        del self.under_way[packet_id]

    def _accepted(self, answer: packets.Connack) -> None:
        if self.connected.done():
            raise packets.MalformedPacketError("a second CONNACK")
        if answer.reason_code >= packets.FIRST_ERROR:
            self._end(f"{answer.reason}, as client '{self._owner.client_id}'")
            return
        self._window = min(answer.receive_maximum, WINDOW)
        self._max_bytes = answer.maximum_packet_size
        self._first = packets.publish_first_byte(
            min(self._owner.qos, answer.maximum_qos),
            is_retained=self._owner.is_retained and answer.can_retain,
        )
        if answer.keepalive_s:
            self._tick_s = answer.keepalive_s / 3
        self._keeper = self._loop.call_later(self._tick_s, self._keep)
        self.connected.set_result(None)

    def _keep(self) -> None:
        """Ask the broker for a sign of life if there was none for a third of the keep-alive time."""
        if self._is_heard:
            self._is_heard = self._is_asked = False
        elif self._is_asked:
            self._end("the broker does not answer")
            return
        else:
            self._is_asked = True
            self.transport.write(packets.PINGREQ_PACKET)
        self._keeper = self._loop.call_later(self._tick_s, self._keep)

    def _look(self) -> None:
        self._looker = None
        self.look()

    def _end(self, reason: str) -> None:
        self._stop()
        self._owner.done()
        for future in (self.connected, self.lost):
            if not future.done():
                future.set_exception(LinkDownError(reason))
        self.transport.abort()

    def _stop(self) -> None:
        for timer in (self._keeper, self._looker):
            if timer is not None:
                timer.cancel()


def _look(future: asyncio.Future[None]) -> None:
    """Take note of an exception, so that nobody is warned of one that nobody waited for."""
    if not future.cancelled():
        future.exception()


def _words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.errno and error.errno > 0:  # else it is the resolver's
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or error).lower() or type(error).__name__
