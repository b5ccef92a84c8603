"""Where the routing table puts what is to be kept, or is for another gateway.

To the routing table a sink is a link as any other: it takes deliveries. What it does with them:

===================  ==================================================================================
`TopicSink`          into the spool, from where it goes to topics of a broker (`topic_sink`)
`PeerSink`           into the spool, from where it goes to a peer gateway
`LiveSink`           to a peer gateway at once; if the broker does not keep up, only the newest of each point
===================  ==================================================================================
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.spool import Stream
from fieldbus.durable.spool_file import Missing, Row
from fieldbus.gateway.exchange.pump import HISTORICAL_S, Pump
from fieldbus.link import Delivery, Handover, PeerLink
from fieldbus.mqtt.arrivals import held
from fieldbus.mqtt.peering import origin_of, topic
from fieldbus.mqtt.records import Item, Place, RecordError, Stamp, decode_row, encode_chunk, encode_row

_LIVE_UNDER_WAY = 64
"""Live messages that the broker has not acknowledged, at most."""
_LIVE_SAMPLES = 2000
CHUNK_BYTES = 1 << 20
"""A chunk is never longer, whatever the broker accepts."""
_HEAD_GROWS = 32
"""By so much the head of a chunk may grow: its numbers have more digits in its parts, or when it is sent."""


class Taker(Protocol):
    """What takes deliveries: a link, or a sink."""

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Take them."""
        ...


class PeerSink:
    """What a peer gateway wants durably."""

    is_acknowledged_by_peer = True

    def __init__(
        self,
        link: PeerLink,
        me: str,
        peer: str,
        stream: Stream,
        is_online: Callable[[], bool],
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        self.stream = stream
        self._link = link
        self._me = me
        self._peer = peer
        self._is_online = is_online
        self.pump = Pump(stream, self, clock)

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Keep samples for the peer."""
        self.stream.append([peer_item(self._me, delivery) for delivery in deliveries])
        return ()

    @property
    def is_ready(self) -> bool:
        """Whether broker and peer are there."""
        return self._link.is_sending and self._is_online()

    def pieces(self, row: Row) -> Sequence[Row | Missing]:
        """Return a row in parts that the broker takes; a sample that alone is too long is missing."""
        head = encode_chunk(self._place(row, is_historical=False), b"")
        room = min(self._link.room_for(self._topic), CHUNK_BYTES) - len(head) - _HEAD_GROWS
        if len(row.data) <= room or room <= 0:
            return (row,)
        try:
            items = decode_row(row.data)
        except RecordError as error:
            return (Missing(row.first, row.samples, str(error)),)
        return list(_split(row, items, room))

    def carry(self, row: Row, done: Callable[[Handover], None], *, is_historical: bool) -> None:
        """Send a row as a chunk."""
        place = self._place(row, is_historical=is_historical)
        self._link.publish(self._topic, encode_chunk(place, row.data), done)

    @property
    def _topic(self) -> str:
        return topic(self._me, "data", self._peer)

    def _place(self, row: Row, *, is_historical: bool) -> Place:
        boot, base = self.stream.life_at(row.first)
        first = row.first - base
        gap = min(row.gap, first - 1)
        return Place(
            self._me, boot, self.stream.name, first, row.samples, gap, max(0, self.stream.floor - base),
            is_historical, row.gap - gap,
        )  # fmt: skip


def _split(row: Row, items: Sequence[Item], room: int) -> Iterator[Row | Missing]:
    """Yield a row in halves of halves, until each has room."""
    data = encode_row(items)
    if len(data) <= room:
        yield row._replace(samples=len(items), data=data)
        return
    if len(items) == 1:
        yield Missing(row.first, 1, f"longer than the broker accepts, {room} bytes")
        return
    half = len(items) // 2
    yield from _split(row, items[:half], room)
    yield from _split(row._replace(first=row.first + half, gap=0), items[half:], room)


def peer_item(me: str, delivery: Delivery) -> Item:
    """Return a sample for a peer, with where it first was."""
    source = delivery.source
    return Item((source.address, origin_of(me, source), source.hops), delivery.sample)


class LiveSink:
    """What a peer gateway wants as it comes."""

    def __init__(self, link: PeerLink, me: str, peer: str, *, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self.conflated = 0
        """Samples that were replaced by newer ones because the broker did not keep up."""
        self.link = link
        self._me = me
        self._peer = peer
        self._items: list[Item] = []
        self._newest: dict[str, tuple[Item, float]] = {}
        """What waits while too much is under way, and since when."""
        self._under_way = 0
        self._sent_s = -math.inf
        self._boot = secrets.token_hex(8)
        self._number = 0
        self._is_scheduled = False

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Send samples at the end of this turn of the event loop."""
        items = [peer_item(self._me, delivery) for delivery in deliveries]
        if self._under_way >= _LIVE_UNDER_WAY or self._newest:
            now_s = self._clock.monotonic_s()
            for item in items:
                self.conflated += item.head[0] in self._newest
                self._newest[item.head[0]] = item, now_s
        else:
            self._items += items
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)
        return ()

    def beat(self, now_s: float, period_s: float) -> None:
        """Send something if nothing was sent for so long: the peer must know that we are there."""
        if now_s - self._sent_s >= period_s and self.link.is_sending and not self._is_scheduled:
            self._publish([], now_s)

    def _publish(self, items: Sequence[Item], now_s: float) -> None:
        self._under_way += 1
        self._sent_s = now_s
        self._number += 1
        stamp = Stamp(self._boot, self._number, self._clock.wall_ns())
        self.link.publish(topic(self._me, "live", self._peer), encode_row(items, stamp), self._done)

    def _flush(self) -> None:
        self._is_scheduled = False
        if not self.link.is_sending:
            self._items.clear()  # whoever comes back asks for everything
            self._newest.clear()
            return
        items, self._items = self._items, []
        if self._under_way < _LIVE_UNDER_WAY and self._newest:
            oldest_s = self._clock.monotonic_s() - HISTORICAL_S
            for item, since_s in self._newest.values():
                items.append(item if since_s >= oldest_s else item._replace(sample=held(item.sample)))
            self._newest.clear()
        for first in range(0, len(items), _LIVE_SAMPLES):
            self._publish(items[first : first + _LIVE_SAMPLES], self._clock.monotonic_s())

    def _done(self, _fate: Handover) -> None:
        self._under_way -= 1
        if self._newest and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)
