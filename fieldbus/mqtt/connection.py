"""One MQTT 5 connection on which messages go out and acknowledgements come in.

Rules:

* At most as many messages are under way as the broker's Receive Maximum allows, and `WINDOW`.
* While the socket takes no more, nothing is taken from the queue.
* A message that the broker does not take is told to the owner, and the connection goes on.
* A broker is left from which nothing is heard for the keep-alive time, though it was asked; which sends what
  is not MQTT 5; which does not end a packet within that time and `_SLOWEST` bytes a second (a wrong length
  would swallow everything behind it); or which does not acknowledge a message for the keep-alive time: on one
  connection nothing may be sent twice, so the place of that message would never be free.

Design: brokers acknowledge message by message, and each acknowledgement that is read at once wakes this
process for a few bytes. So nothing is read while a few messages are under way, less than half of the window:
what has arrived is looked at when the next messages are sent, or after `LOOK_S`.
And once the window is full nothing is sent until half of it is free. That needs TCP_QUICKACK, which makes
the kernel confirm at once what arrived: brokers leave Nagle's algorithm on, so they hold the second
acknowledgement back until the first is confirmed, which else takes 40 ms or until we send something.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

from fieldbus.errors import LinkDownError
from fieldbus.link import Handover
from fieldbus.mqtt import answers, packets
from fieldbus.mqtt.properties import MAX_REMAINING, MalformedPacketError
from fieldbus.mqtt.reasons import words
from fieldbus.mqtt.takeovers import CLOSED
from fieldbus.sample_json import historical

WINDOW = 200
"""Messages under way at most, whatever the broker allows."""
MAX_INCOMING = 65536
"""Longest packet that a broker may send us."""
LOOK_S = 0.25
"""How long acknowledgements may lie unread while nothing is sent."""
_LOOKS = 3
"""After so many thirds of the keep-alive time a message without acknowledgement is lost."""
_SLOWEST = 10_000
_REFUSALS = {0x87: Handover.FORBIDDEN, 0x90: Handover.UNFIT, 0x99: Handover.UNFIT}
"""Not authorized, topic name invalid, payload format invalid. All others mean: not now."""
_OVERHEAD = 20
"""What a PUBLISH has beside topic and payload, at most: header, length, packet identifier, properties."""
_HIGH_WATER = 256 * 1024
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


class Message(NamedTuple):
    """What waits to be published."""

    topic: str
    payload: bytes
    is_retained: bool | None = None
    """None for what the owner usually does."""
    done: Callable[[Handover], None] | None = None
    """Called with what became of it, once."""
    properties: bytes = b""
    """As `packets.publish_properties` makes them."""
    put_s: float = math.inf
    """When samples were queued (monotonic). A message of samples that has waited for too long says so."""


class Owner(Protocol):
    """Whose messages a connection sends, and who learns how each ended."""

    client_id: str
    keepalive_s: int
    qos: int
    is_retained: bool
    waiting: deque[Message]
    sure: deque[Message]
    """What waits beside: of both one goes after the other, so that neither holds the other up."""
    is_draining: bool
    """Whether somebody waits for acknowledgements."""

    @property
    def historical_s(self) -> float:
        """What was queued before has waited for too long."""
        ...

    def published(self, message: Message) -> None:
        """Learn that the broker has a message."""

    def refused(self, message: Message, reason: str, fate: Handover) -> None:
        """Learn that the broker does not take a message, and what that means."""

    def done(self) -> None:
        """Learn that nothing is under way, or that nothing will be acknowledged any more."""


class Connection(asyncio.Protocol):
    """One connection. Begins with the CONNECT that its owner writes."""

    pings_always = False
    """Whether a PINGREQ goes out also while something is heard. Needed where we may send nothing else."""

    def __init__(self, owner: Owner, max_incoming: int = MAX_INCOMING, ids: range = range(1, 65536)) -> None:
        """Wait to be opened.

        Args:
            owner: whose messages go out here.
            max_incoming: longest packet that the broker may send.
            ids: packet identifiers of these messages.
        """
        loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.connected: asyncio.Future[None] = loop.create_future()
        """Done when the broker accepts us."""
        self.lost: asyncio.Future[None] = loop.create_future()
        """Ends with `LinkDownError`."""
        for future in (self.connected, self.lost):
            future.add_done_callback(look)
        self.was_answered = False
        """Whether the broker has sent anything."""
        self.under_way: dict[int, Message] = {}
        """By packet identifier, in the order in which they were sent."""
        self._owner = owner
        self._loop = loop
        self._splitter = packets.Splitter(max_incoming)
        self._ids = itertools.cycle(ids)
        self._window = 0
        self._is_full = False
        """Whether half of the window has to be acknowledged before anything is sent."""
        self._is_sures_turn = False
        self._is_reading = True
        self._looker: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._is_paused = False
        self._is_awake = False
        self._is_looking = False
        self._max_bytes = MAX_REMAINING
        self._first = 0
        self._can_retain = True
        self._keeper: asyncio.TimerHandle | None = None
        self._tick_s = owner.keepalive_s / 3
        self._is_heard = True
        self._is_asked = False
        self._oldest: Message | None = None
        """What was under way for longest when that was last looked at."""
        self._looks = 0
        """How often in a row it was that."""
        self._packets = 0
        """How many packets had come when that was last looked at."""
        self._stuck_s = 0.0
        """For how long the same packet has been incomplete."""

    # --- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        if _QUICKACK is not None:
            self._socket = transport.get_extra_info("socket")

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._end(CLOSED if exc is None else words(exc))

    def pause_writing(self) -> None:
        """Take nothing from the queue for now."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._is_paused = False
        self.fill()

    def data_received(self, data: bytes) -> None:
        """Handle what arrived."""
        self._is_heard = self.was_answered = True
        if self._is_full and self._socket is not None and _QUICKACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        try:
            for first, rest in self._splitter.split(data):
                self._handle(first, rest)
                if self.lost.done():
                    return
        except MalformedPacketError as error:
            self._end(f"the broker sends what is not MQTT 5: {error}")
            return
        if self._owner.waiting or self._owner.sure:
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
        waiting, sure = self._owner.waiting, self._owner.sure
        if not (waiting or sure) or self._is_paused or self.lost.done():
            return
        out: list[bytes] = []
        size = 0
        first, under_way = self._first, self.under_way
        historical_s = self._owner.historical_s
        while waiting or sure:
            if room <= 0:
                self._is_full = True
                break
            if size > _HIGH_WATER:
                self.wake()
                break
            self._is_sures_turn = bool(sure) and not (waiting and self._is_sures_turn)
            message = (sure if self._is_sures_turn else waiting).popleft()
            if message.put_s < historical_s:
                message = message._replace(payload=historical(message.payload))
            packet_id = 0
            if first & 6:
                packet_id = next(self._ids)
                while packet_id in under_way:
                    packet_id = next(self._ids)
            flags = first
            if message.is_retained is not None:
                flags = first | 1 if message.is_retained and self._can_retain else first & ~1
            packet, trouble = self._packet(flags, message, packet_id)
            if trouble is not None:
                self._owner.refused(message, trouble, Handover.UNFIT)
                continue
            if packet_id:
                under_way[packet_id] = message
                room -= 1
            else:
                self._owner.published(message)
            out.append(packet)
            size += len(packet)
        if out:
            self.transport.write(b"".join(out))
            self.look()
        if not under_way and not waiting and not sure:
            self._owner.done()

    def _packet(self, flags: int, message: Message, packet_id: int) -> tuple[bytes, str | None]:
        """Return PUBLISH, or why there can be none."""
        try:
            topic = message.topic.encode()
            if message.properties:
                packet = packets.publish_with(flags, topic, message.payload, packet_id, message.properties)
            else:
                packet = packets.publish(flags, topic, message.payload, packet_id)
        except UnicodeEncodeError:
            return b"", "the topic is not valid Unicode text"
        except ValueError:
            packet = b""
        if not packet or len(packet) > self._max_bytes:
            return b"", "its messages are longer than the broker accepts"
        return packet, None

    def room_for(self, topic: str) -> int:
        """Return how long a payload on a topic may be, in bytes, so that the broker takes it."""
        return self._max_bytes - _OVERHEAD - len(topic.encode(errors="replace"))

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
        if not self.connected.done() and first not in (packets.CONNACK, packets.DISCONNECT):
            raise MalformedPacketError(f"a packet 0x{first:02X} before CONNACK")
        if first == packets.PUBACK and len(rest) == 2:  # nearly all
            message = self.under_way.pop(rest[0] << 8 | rest[1], None)
            if message is not None:
                self._owner.published(message)
        elif first in (packets.PUBACK, packets.PUBREC, packets.PUBCOMP):
            self._acknowledged(first, rest)
        elif first == packets.CONNACK:
            self._accepted(answers.read_connack(rest))
        elif first == packets.DISCONNECT:
            self._end(answers.read_disconnect(rest))
        elif first != packets.PINGRESP:
            raise MalformedPacketError(f"a packet 0x{first:02X} that nothing was sent for")

    def _acknowledged(self, first: int, rest: bytes) -> None:
        packet_id, code, text = answers.read_ack(rest)
        message = self.under_way.get(packet_id)
        if message is None:
            return
        if code >= packets.FIRST_ERROR:
            fate = _REFUSALS.get(code, Handover.GIVEN_BACK)
            self._owner.refused(message, packets.reason(code, text), fate)
        elif first == packets.PUBREC:
            self.transport.write(packets.pubrel(packet_id))
            return
        else:
            self._owner.published(message)
        del self.under_way[packet_id]

    def _accepted(self, answer: answers.Connack) -> None:
        if self.connected.done():
            raise MalformedPacketError("a second CONNACK")
        if answer.reason_code >= packets.FIRST_ERROR:
            self._end(f"{answer.reason}, as client '{self._owner.client_id}'")
            return
        self._window = min(answer.receive_maximum, WINDOW)
        self._max_bytes = answer.maximum_packet_size
        self._can_retain = answer.can_retain
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
        oldest = next(iter(self.under_way.values()), None)
        self._looks = self._looks + 1 if oldest is not None and oldest is self._oldest else 0
        self._oldest = oldest
        if self._looks >= _LOOKS:
            self._end("the broker does not acknowledge what it gets")
            return
        is_stuck = self._splitter.missing and self._splitter.packets == self._packets
        self._packets = self._splitter.packets
        self._stuck_s = self._stuck_s + self._tick_s if is_stuck else 0.0
        if self._stuck_s > 3 * self._tick_s + self._splitter.missing / _SLOWEST:
            self._end("the broker does not end a packet")
            return
        if not self._is_heard and self._is_asked:
            self._end("the broker does not answer")
            return
        self._is_asked = self.pings_always or not self._is_heard
        self._is_heard = False
        if self._is_asked:
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


def look(future: asyncio.Future[None]) -> None:
    """Take note of an exception, so that nobody is warned of one that nobody waited for."""
    if not future.cancelled():
        future.exception()
