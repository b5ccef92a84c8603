"""Points that live on topics: each message becomes a sample of every point of its topic.

Rules: a point whose subscription the broker refuses is bad, with that as the reason. What cannot be read is
bad, and counted (`rx_bad`). A sample is news if its value, quality or reason differs from the one before;
after a session has ended, the next one always is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import Emit
from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, Point, Sample
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.payload import TopicPoint, read

REFUSED = "subscription refused"
"""The reason of a point whose topic the broker does not let us have."""


class TopicReader:
    """All points of one link that are read from topics."""

    def __init__(
        self, places: Iterable[TopicPoint], counters: dict[str, int], *, clock: Clock = SYSTEM
    ) -> None:
        """Take the points.

        Args:
            places: points with their topics; those that cannot be read are left out.
            counters: where bad messages are counted.
            clock: the gateway's.
        """
        self._clock = clock
        self.groups: list[Group] = []
        self._counters = counters
        self._readers: dict[str, list[tuple[TopicPoint, Group]]] = {}
        self._last: dict[Group, Sample] = {}
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
            sample = read(place, message.payload, now_ns)
            if sample.is_bad:
                self._counters["rx_bad"] += 1
            # A value that was long under way is as old as it says.
            age_s = max(0, now_ns - sample.time_ns) / 1e9
            flaws: Mapping[int, Flaw] = NO_FLAWS
            if sample.reason is not None:
                flaws = {0: Flaw(sample.quality, sample.reason)}
            last = self._last.get(group)
            self._last[group] = sample
            changed = () if last is not None and last[:3] == sample[:3] else (0,)
            emit(Batch(group, sample.time_ns, now_s - age_s, (sample.value,), flaws, changed))

    def refuse(self, topics: Iterable[str], emit: Emit) -> None:
        """Emit that the points of topics have no value, because the broker refuses the subscription."""
        for topic in topics:
            for _, group in self._readers.get(topic, ()):
                emit(group.without_value(REFUSED, self._clock.wall_ns(), self._clock.monotonic_s()))

    def forget(self) -> None:
        """Forget the session: the points are bad, and whatever comes next is news."""
        self._last.clear()
