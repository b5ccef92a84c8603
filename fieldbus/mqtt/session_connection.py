"""The connection of a session: messages come in, are acknowledged, and are handed on.

See `session` for the rules.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from fieldbus.errors import LinkDownError
from fieldbus.mqtt import answers, packets
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.connection import Connection, Owner
from fieldbus.mqtt.inbox import Inbox
from fieldbus.mqtt.packets import Subscription

MAX_INCOMING = 16 * 1024 * 1024
"""Longest packet that a broker may send us: the points of a large gateway."""
_SUBSCRIBE_S = 10.0
"""How long a broker may take to answer a SUBSCRIBE."""
_SLICE = 32
_SLICE_BYTES = 128 * 1024
_FIRST_SUBSCRIBE_ID = 60_000
"""Packet identifiers from here on are those of SUBSCRIBE."""


class SessionOwner(Owner, Protocol):
    """Whose messages come in, beside what an owner of a connection has."""

    counters: dict[str, int]
    is_held_back: Callable[[], bool]
    """Whether nothing may be handed on now."""

    def failed(self, topic: str) -> None:
        """Count a message that could not be taken, and log the error that is being handled."""


class SessionConnection(Connection):
    """A connection on which messages come in too."""

    pings_always = True

    def __init__(self, session: SessionOwner, inbox: Inbox) -> None:
        super().__init__(session, MAX_INCOMING, range(1, _FIRST_SUBSCRIBE_ID))
        self.inbox = inbox
        self._session = session
        self._take: Callable[[Publish], None] | None = None
        self._acks: list[bytes] = []
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
        """Hand nothing on any more, and read all the same: acknowledgements come on this connection too."""
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
        if not self._is_scheduled and not self.lost.done() and len(self.inbox):
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

    def _keep(self) -> None:
        if self._is_held:
            self._is_heard = True  # it may have answered
            self._looks = 0
        super()._keep()

    def _came(self, message: Publish) -> None:
        self._session.counters["received"] += 1
        inbox = self.inbox
        if self._take is None and inbox.is_over:
            self._session.counters["rx_dropped"] += 1  # we are closing; it is not acknowledged
            return
        if message.packet_id and not inbox.is_full:
            self._acks.append(packets.puback(message.packet_id))
            message = message._replace(packet_id=0)
        self._acknowledge(inbox.put(message))

    def _acknowledge(self, packet_id: int) -> None:
        if packet_id:
            self._acks.append(packets.puback(packet_id))

    def _work(self) -> None:
        """Hand on some of what waits, and acknowledge it."""
        self._is_scheduled = False
        if self.lost.done():
            return
        inbox, take = self.inbox, self._take
        left, left_bytes = _SLICE, _SLICE_BYTES
        while take is not None and left > 0 and left_bytes > 0:
            message = None if self._session.is_held_back() else inbox.take()
            if message is None:
                break
            left -= 1
            left_bytes -= len(message.payload)
            self._hand_on(message, take)
        if self.lost.done() or self.transport.is_closing():
            return  # somebody has closed the link meanwhile
        if self._acks:
            self.transport.write(b"".join(self._acks))
            self._acks = []
        self._hold(is_full=inbox.is_over and take is not None)
        if left <= 0 or left_bytes <= 0:
            self.go_on()

    def _hand_on(self, message: Publish, take: Callable[[Publish], None]) -> None:
        try:
            take(message)
        except Exception:
            self._session.failed(message.topic)
        self._acknowledge(message.packet_id)

    async def hand_on_the_rest(self) -> bool:
        """Hand on what was acknowledged before the connection was lost; return whether that was possible."""
        take = self._take
        if take is None:
            return False
        while (message := self.inbox.take()) is not None:
            if message.packet_id:  # the broker has forgotten it together with the session
                self._session.counters["rx_dropped"] += 1
            else:
                self._hand_on(message, take)
            if len(self.inbox) % _SLICE == 0:
                await asyncio.sleep(0)
        return True

    def _hold(self, *, is_full: bool) -> None:
        if is_full is not self._is_held and not self.transport.is_closing():
            self._is_held = is_full
            if is_full:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
