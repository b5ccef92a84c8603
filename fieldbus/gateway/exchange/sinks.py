"""Where the routing table puts what is to be kept, or is for another gateway.

To the routing table a sink is a link as any other: it takes deliveries. What it does with them:

===================  ==================================================================================
`TopicSink`          into the spool, from where it goes to topics of a broker; while a backlog drains, what is
                     new goes out at once as well, and comes again in its order, as historical
`PeerSink`           into the spool, from where it goes to a peer gateway
`LiveSink`           to a peer gateway at once; if the broker does not keep up, only the newest of each point
===================  ==================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.spool import Stream
from fieldbus.durable.spool_file import Row
from fieldbus.gateway.exchange.pump import HISTORICAL_S, Pump
from fieldbus.link import Delivery, Link, PeerLink
from fieldbus.model import Kind, Point, Sample
from fieldbus.mqtt.arrivals import held
from fieldbus.mqtt.peering import origin_of, topic
from fieldbus.mqtt.records import Head, Item, Place, RecordError, Stamp, decode_row, encode_chunk, encode_row
from fieldbus.sample_json import gathered_inside, gathered_message, historical, sample_bytes

_LIVE_UNDER_WAY = 64
"""Live messages that the broker has not acknowledged, at most."""
_LIVE_SAMPLES = 2000
_LOG = logging.getLogger("fieldbus")


class Taker(Protocol):
    """What takes deliveries: a link, or a sink."""

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Take them."""
        ...


class TopicSink:
    """What routes have for a broker's topics, durably."""

    is_acknowledged_by_peer = False

    def __init__(self, link: PeerLink, plain: Link, stream: Stream, *, clock: Clock = SYSTEM) -> None:
        """Take where it goes.

        Args:
            link: the broker.
            plain: the same, as what takes deliveries.
            stream: the one in the spool.
            clock: the gateway's.
        """
        self.link = link
        self._plain = plain
        self._stream = stream
        self.pump = Pump(stream, self, clock)

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Keep samples for the broker."""
        self._stream.append([_topic_item(delivery) for delivery in deliveries])
        if self.pump.is_behind and self.link.is_sending:
            self._plain.send(deliveries)
        return ()

    # --- a carrier

    @property
    def is_ready(self) -> bool:
        """Whether the broker is there."""
        return self.link.is_sending

    def carry(self, row: Row, done: Callable[[bool], None], *, is_historical: bool) -> None:
        """Publish what a row has."""
        try:
            messages = topic_messages(decode_row(row.data), is_historical=is_historical)
        except RecordError as error:
            # It was damaged where it lay. Sent again it would be no better, and hold up all behind it.
            _LOG.warning("stream %s: %d samples dropped (%s)", self._stream.name, row.samples, error)
            self._stream.dropped += row.samples
            messages = []
        if not messages:
            done(True)
            return
        left = len(messages)
        has_failed = False

        def one_done(is_done: bool) -> None:
            nonlocal left, has_failed
            left -= 1
            has_failed = has_failed or not is_done
            if left == 0:
                done(not has_failed)

        for where, payload in messages:
            self.link.publish(where, payload, one_done)


def _topic_item(delivery: Delivery) -> Item:
    target, source, sample = delivery
    gathered = target.label if target.gathers else None
    head: Head = (target.topic, gathered, source.device, source.unit)
    return Item(head, sample, source.label(sample.value))


def topic_messages(items: Sequence[Item], *, is_historical: bool) -> list[tuple[str, bytes]]:
    """Return the messages that samples become on their topics, in order."""
    found: list[tuple[str, bytes]] = []
    gathered: dict[tuple[str, str, int], list[tuple[str, Sample]]] = {}
    for head, sample, label in items:
        where, name, device, unit = head
        if name is not None:
            gathered.setdefault((where, device, sample.time_ns), []).append((name, sample))
            continue
        value = sample.value
        labels = {value: label} if label is not None and isinstance(value, int | float) else {}
        point = Point(device, "", Kind.FLOAT, unit=unit, labels=labels)
        payload = sample_bytes(point, sample)
        found.append((where, historical(payload) if is_historical or sample.is_held else payload))
    for (where, _, time_ns), samples in gathered.items():
        payload = gathered_message(time_ns, *gathered_inside(samples))
        is_held = is_historical or all(sample.is_held for _, sample in samples)
        found.append((where, historical(payload) if is_held else payload))
    return found


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

    def carry(self, row: Row, done: Callable[[bool], None], *, is_historical: bool) -> None:
        """Send a row as a chunk."""
        place = Place(
            self._me, self.stream.boot, self.stream.name, row.first, row.samples, row.gap, self.stream.floor,
            is_historical,
        )  # fmt: skip
        self._link.publish(topic(self._me, "data", self._peer), encode_chunk(place, row.data), done)


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

    def _done(self, _is_done: bool) -> None:
        self._under_way -= 1
        if self._newest and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)
