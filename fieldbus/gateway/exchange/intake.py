"""Takes chunks of other gateways' durable streams, once each, into stores and spools of ours.

Rules:

* Each place where samples are kept (a `Keeper`) remembers, in the same transaction as the samples, up to
  which number of a stream it has them. What comes again is dropped by that mark.
* A chunk behind a hole that its sender could still fill is not taken: the sender is told what we have, and
  begins there. A hole that it cannot fill (it dropped the samples) is counted (`lost`), and said.
* A chunk is acknowledged when all keepers have committed it.
* A datum that was here before, by its origin, is not taken, nor one that came through too many gateways.
* The samples are treated by their routes (`deadband`, `scale`, …) as if they came now, in their own time.

Design: these routes are not in the routing table, which knows the newest sample only; here every one counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fieldbus.link import Delivery
from fieldbus.mqtt.peering import MAX_HOPS
from fieldbus.mqtt.records import Item, Place
from fieldbus.routing.policy import Edge

_LOG = logging.getLogger("fieldbus")


class Keeper(Protocol):
    """A store or a spool."""

    @property
    def place(self) -> object:
        """What is the same as long as what was taken is kept or being written; None if it takes nothing."""
        ...

    def mark_of(self, source: str) -> int:
        """Return up to which number of a stream it has samples on disk."""

    def has_room(self, count: int) -> bool:
        """Return whether so many samples can be taken now."""
        ...

    def take(self, deliveries: Sequence[Delivery], source: str, seq: int, done: Callable[[], None]) -> None:
        """Keep samples, and the number of the last that was looked at; call `done` when they are on disk."""


@dataclass(slots=True)
class _Way:
    """What of a peer's points goes to one keeper."""

    keeper: Keeper
    edges: dict[str, list[Edge]] = field(default_factory=dict)
    """By address at the peer."""
    taken: dict[str, int] = field(default_factory=dict)
    """Source to the number of the last sample that the keeper was given."""
    floors: dict[str, int] = field(default_factory=dict)
    """Source to what its sender had no more when it was first met: that was never for us."""


class Intake:
    """All streams that come in."""

    def __init__(self, me: str) -> None:
        self.taken = 0
        """Samples that were taken."""
        self.doubled = 0
        """Samples that came again, and were dropped."""
        self.lost = 0
        """Samples that their sender dropped before we got them."""
        self.looped = 0
        """Samples that had been here, or came through too many gateways."""
        self._me = me
        self._ways: dict[str, dict[str, _Way]] = {}

    def set(self, edges: Iterable[tuple[Edge, str, str]], keepers: Mapping[str, Keeper]) -> None:
        """Take the routes that are fed from here.

        Args:
            edges: with the peer out of which they come and the name of their keeper. A point of a peer's
            has its
                address there as name.
            keepers: by name.
        """
        before = self._ways
        self._ways = {}
        for edge, peer, name in edges:
            ways = self._ways.setdefault(peer, {})
            way = ways.get(name)
            if way is None:
                way = ways[name] = _Way(keepers[name])
                old = before.get(peer, {}).get(name)
                place = way.keeper.place
                if old is not None and place is not None and old.keeper.place is place:
                    way.taken = old.taken
                    way.floors = old.floors
            way.edges.setdefault(edge.source.name, []).append(edge)

    def wants(self, peer: str) -> dict[str, bool]:
        """Return the addresses at a peer that are wanted durably, and whether every sample is."""
        found: dict[str, bool] = {}
        for way in self._ways.get(peer, {}).values():
            for address, edges in way.edges.items():
                is_each = any(edge.policy.when == "sample" for edge in edges)
                found[address] = found.get(address, False) or is_each
        return found

    def committed(self, source: str, peer: str) -> int | None:
        """Return up to which number all keepers have a stream on disk; None if nobody keeps it."""
        marks = [way.keeper.mark_of(source) for way in self._ways.get(peer, {}).values()]
        return min(marks, default=None)

    def met(self, peer: str, place: Place) -> None:
        """Learn that there is a stream: what its sender has no more now is not lost for us."""
        for way in self._ways.get(peer, {}).values():
            way.floors.setdefault(place.source, min(place.floor, place.first - 1 - place.gap))

    def take(
        self,
        peer: str,
        place: Place,
        items: Sequence[Item],
        to_s: Callable[[int], float],
        done: Callable[[], None],
    ) -> bool:
        """Take a chunk.

        Args:
            peer: whose it is.
            place: where it has its place.
            items: its samples.
            to_s: turns a source time into the monotonic clock's.
            done: called each time that a keeper has committed something of it.

        Returns:
            Whether the sender should be told now what we have: nothing of the chunk was new, or it has no
            place.
        """
        ways = self._ways.get(peer)
        if not ways:
            return False
        self.met(peer, place)
        source = place.source
        is_news = False
        lost = doubled = 0
        for way in ways.values():
            has = max(way.taken.get(source, 0), way.keeper.mark_of(source))
            if place.first - 1 - place.gap > max(has, place.floor):
                continue  # the sender has what is missing between
            if place.last <= has:
                doubled = max(doubled, place.samples)
                continue
            skipped = max(0, has + 1 - place.first)
            if not way.keeper.has_room(len(items)):
                continue  # it is sent again
            way.keeper.take(self._treated(way, items[skipped:], to_s), source, place.last, done)
            before = place.first - 1 - has if has else place.first - 1 - way.floors[source] + place.missing
            lost = max(lost, before)
            doubled = max(doubled, skipped)
            way.taken[source] = place.last
            is_news = True
        if is_news:
            self.taken += place.samples - doubled
        self.doubled += doubled
        if lost > 0:
            self.lost += lost
            _LOG.warning(
                "gateway %s: %d samples of its stream were dropped there, before we got them", peer, lost
            )
        return not is_news

    def _treated(self, way: _Way, items: Sequence[Item], to_s: Callable[[int], float]) -> list[Delivery]:
        deliveries = []
        for head, sample, _ in items:
            edges = way.edges.get(head[0])
            if edges is None:
                continue
            if head[1].partition("/")[0] == self._me or head[2] >= MAX_HOPS:
                self.looped += 1
                continue
            at_s = to_s(sample.time_ns)
            for edge in edges:
                outgoing = edge.offer(sample, at_s, at_s)
                if outgoing is not None:
                    deliveries.append(Delivery(edge.target, edge.source, outgoing))
        return deliveries

    def counters(self) -> dict[str, int]:
        """Return the totals."""
        return {
            "peer_samples": self.taken, "peer_doubled": self.doubled, "peer_lost": self.lost,
            "peer_looped": self.looped,
        }  # fmt: skip
