"""Points that live on topics: each message becomes a sample of every point of its topic.

Rules: a point whose subscription the broker refuses is bad, with that as the reason. What cannot be read is
bad, and counted (`rx_bad`). A sample is news if its value, quality or reason differs from the one before;
after a session has ended, the next one always is. `arrivals` says what its time counts for, and whether the
message was held on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import NEVER, Emit
from fieldbus.model import Group, Point
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.arrivals import CLOCK_TOLERANCE_S, Arrivals
from fieldbus.mqtt.payload import TopicPoint, read

REFUSED = "subscription refused"
"""The reason of a point whose topic the broker does not let us have."""


class TopicReader:
    """All points of one link that are read from topics."""

    def __init__(
        self,
        places: Iterable[TopicPoint],
        counters: dict[str, int],
        *,
        tolerance_s: float = CLOCK_TOLERANCE_S,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take the points.

        Args:
            places: points with their topics; those that cannot be read are left out.
            counters: where bad messages are counted.
            tolerance_s: how far the time of a sample may lie in the future.
            clock: the gateway's.
        """
        self._clock = clock
        self._tolerance_s = tolerance_s
        self.groups: list[Group] = []
        self._counters = counters
        self._readers: dict[str, list[tuple[TopicPoint, Group]]] = {}
        self._arrivals = Arrivals()
        self._timer: asyncio.TimerHandle | None = None
        for place in places:
            if place.point.access.can_read:
                group = Group(f"{place.point.address} from {place.topic}", (place.point,))
                self.groups.append(group)
                self._readers.setdefault(place.topic, []).append((place, group))

    @property
    def topics(self) -> Sequence[str]:
        """All topics."""
        return list(self._readers)

    def conflates(self, topic: str, wants_each: Callable[[Point], bool]) -> bool:
        """Return whether only the newest message of a topic matters."""
        readers = self._readers.get(topic)
        return readers is not None and not any(wants_each(place.point) for place, _ in readers)

    def take(self, message: Publish, emit: Emit) -> None:
        """Emit the samples of a message."""
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        for place, group in self._readers.get(message.topic, ()):
            sample = read(place, message.payload, now_ns, self._tolerance_s)
            if sample.is_bad:
                self._counters["rx_bad"] += 1
            batch = self._arrivals.take(group, sample, now_ns, now_s, is_retained=message.is_retained)
            if batch is not None:
                emit(batch)
        if self._timer is None:
            self._arm(emit)

    def _arm(self, emit: Emit) -> None:
        """Have `_expire` called when a historical sample has waited long enough for a newer one."""
        due_s = self._arrivals.next_due_s
        if due_s != NEVER:
            delay_s = max(0.0, due_s - self._clock.monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire, emit)

    def _expire(self, emit: Emit) -> None:
        self._timer = None
        for batch in self._arrivals.expire(self._clock.wall_ns(), self._clock.monotonic_s()):
            emit(batch)
        self._arm(emit)

    def refuse(self, topics: Iterable[str], emit: Emit) -> None:
        """Emit that the points of topics have no value, because the broker refuses the subscription."""
        for topic in topics:
            for _, group in self._readers.get(topic, ()):
                emit(group.without_value(REFUSED, self._clock.wall_ns(), self._clock.monotonic_s()))

    def forget(self) -> None:
        """Forget the session: the points are bad, and whatever comes next is news."""
        self._arrivals.forget()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
