"""Samples that routes have for topics, as messages: one by one, or gathered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import NEVER, Bundle, Delivery
from fieldbus.model import Sample
from fieldbus.mqtt.gather import Gatherer
from fieldbus.mqtt.payload import TopicPoint
from fieldbus.sample_json import gathered_bytes, sample_bytes


class TopicWriter:
    """Turns deliveries and bundles into messages, and sends gathered ones when they are due."""

    def __init__(
        self,
        put: Callable[[str, bytes], None],
        places: Iterable[TopicPoint],
        gather_s: float,
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take where messages go.

        Args:
            put: called with topic and payload of each.
            places: points with their topics.
            gather_s: how long a gathered message waits for the rest of it.
            clock: the gateway's.
        """
        self._put = put
        self._clock = clock
        self._topic_of = {place.point: place.topic for place in places}
        self._gatherer = Gatherer(put, gather_s)
        self._timer: asyncio.TimerHandle | None = None

    def send(self, deliveries: Sequence[Delivery]) -> None:
        """Put samples into messages, those of one call for one gathering topic into one."""
        gathered: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
        put = self._put
        for delivery in deliveries:
            target = delivery.target
            if target.topic is None:
                if target.point is not None:
                    put(self._topic_of[target.point], sample_bytes(target.point, delivery.sample))
            elif target.is_shared:
                self._gatherer.take_delivery(target.topic, delivery, self._clock.monotonic_s())
                self._arm()
            elif target.gathers:
                key = target.topic, delivery.source.device
                gathered.setdefault(key, []).append((target.label, delivery.sample))
            else:
                put(target.topic, sample_bytes(delivery.source, delivery.sample))
        for (topic, _), samples in gathered.items():
            put(topic, gathered_bytes(max(sample.time_ns for _, sample in samples), samples))

    def gather(self, bundle: Bundle) -> None:
        """Put what needs no treatment into the message of its topic."""
        self._gatherer.take_bundle(bundle, self._clock.monotonic_s())
        if self._timer is None:
            self._arm()

    def flush(self) -> None:
        """Send all messages that wait for the rest of them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._gatherer.flush()

    def _arm(self) -> None:
        """Have `_expire` called when a message has waited long enough."""
        if self._timer is None and self._gatherer.next_due_s != NEVER:
            delay_s = max(0.0, self._gatherer.next_due_s - self._clock.monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._gatherer.expire(self._clock.monotonic_s())
        self._arm()
