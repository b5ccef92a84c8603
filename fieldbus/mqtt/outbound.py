"""Samples that routes have for topics, as messages: one by one, or gathered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import NEVER, Bundle, Delivery
from fieldbus.model import HeldSample, Point, Sample
from fieldbus.mqtt.gather import Gatherer
from fieldbus.mqtt.payload import TopicPoint
from fieldbus.sample_json import gathered_bytes, historical, sample_bytes


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
                    put(self._topic_of[target.point], _message(target.point, delivery.sample))
            elif target.is_shared:
                self._gatherer.take_delivery(target.topic, delivery, self._clock.monotonic_s())
                self._arm()
            elif target.gathers:
                key = target.topic, delivery.source.device
                gathered.setdefault(key, []).append((target.label, delivery.sample))
            else:
                put(target.topic, _message(delivery.source, delivery.sample))
        for (topic, _), samples in gathered.items():
            payload = gathered_bytes(max(sample.time_ns for _, sample in samples), samples)
            is_held = all(sample.is_held for _, sample in samples)
            put(topic, historical(payload) if is_held else payload)

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


def _message(point: Point, sample: Sample) -> bytes:
    """Return a sample as a message; one that was held on its way to us says so."""
    payload = sample_bytes(point, sample)
    return historical(payload) if type(sample) is HeldSample else payload
