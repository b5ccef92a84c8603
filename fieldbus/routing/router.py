"""The router: batches in, deliveries out, the newest picture of every point kept.

Rules:

* A batch in which nothing changed costs O(1), unless a route wants every sample of its group.
* All deliveries that one batch causes to one link are handed over together, in the order of the
  points in their group.
* Time is a parameter; `next_due_s` says when `expire` should be called.
* What could not be delivered (`missed`) is not kept and repeated later. The *next* sample that the
  source acquires is offered again, changed or not: a temperature that is still measured reaches a PLC
  that was away, a start command that a master wrote meanwhile does not.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fieldbus.link import Delivery
from fieldbus.model import Batch, Group, Point, Reason, Sample, bad
from fieldbus.routing.policy import NEVER, Edge, When

Deliveries = Mapping[str, list[Delivery]]
"""Link name to what it has to send."""

_NOTHING: Deliveries = {}


@dataclass(slots=True)
class _Exits:
    """The edges that leave one group."""

    by_index: dict[int, list[Edge]] = field(default_factory=dict)
    always: list[tuple[int, Edge]] = field(default_factory=list)
    """Edges that want every sample, whether it changed or not."""
    missed: dict[Edge, int] = field(default_factory=dict)
    """Edges whose target did not get the last sample, with the index of their source."""


class Router:
    """The routing table at work."""

    def __init__(self, edges: Iterable[Edge], groups: Iterable[Group]) -> None:
        self.latest: dict[Group, Batch] = {}
        """The newest picture of each group."""
        self._place: dict[Point, tuple[Group, int]] = {}
        self._exits: dict[Group, _Exits] = {}
        self._heap: list[tuple[float, int, Edge]] = []
        self._scheduled: dict[Edge, float] = {}
        self._order = itertools.count()
        for group in groups:
            self._exits[group] = _Exits()
            for index, point in enumerate(group.points):
                self._place[point] = (group, index)
        self._edge_to: dict[Point, Edge] = {}
        for edge in edges:
            if edge.target.point is not None:
                self._edge_to[edge.target.point] = edge
            group, index = self._place[edge.source]
            if edge.policy.when is When.SAMPLE:
                self._exits[group].always.append((index, edge))
            else:
                self._exits[group].by_index.setdefault(index, []).append(edge)

    @property
    def next_due_s(self) -> float:
        """When `expire` has something to do, on the monotonic clock; infinity if never."""
        return self._heap[0][0] if self._heap else NEVER

    def sample(self, point: Point) -> Sample:
        """Return the newest sample of a point."""
        group, index = self._place[point]
        batch = self.latest.get(group)
        if batch is None:
            flaw = bad(Reason.WAITING)
            return Sample(None, flaw.quality, flaw.reason, 0)
        return batch.sample(index)

    def dispatch(self, batch: Batch, now_s: float) -> Deliveries:
        """Take what a link acquired and return what is to be sent because of it."""
        group = batch.group
        self.latest[group] = batch
        exits = self._exits.get(group)
        if exits is None or not (exits.always or exits.missed or (batch.changed and exits.by_index)):
            return _NOTHING
        out: dict[str, list[Delivery]] = {}
        at_s = batch.at_s
        if exits.missed:
            missed, exits.missed = exits.missed, {}
            unchanged = set(missed.values()).difference(batch.changed)
            for edge, index in missed.items():
                if index in unchanged and edge.policy.when is When.CHANGE:
                    self._offer(edge, batch.sample(index), at_s, now_s, out)
        if exits.by_index:
            by_index = exits.by_index
            for index in batch.changed:
                for edge in by_index.get(index, ()):
                    self._offer(edge, batch.sample(index), at_s, now_s, out)
        for index, edge in exits.always:
            self._offer(edge, batch.sample(index), at_s, now_s, out)
        return out

    def missed(self, target: Point) -> None:
        """Learn that the last delivery to a point did not get there."""
        edge = self._edge_to.get(target)
        if edge is not None:
            edge.missed()
            group, index = self._place[edge.source]
            self._exits[group].missed[edge] = index

    def offer_missed(self, targets: Iterable[Point], youngest_s: float, now_s: float) -> Deliveries:
        """Offer the newest samples to targets that missed them, if acquired since `youngest_s`.

        For the start of a gateway, when links come up one after the other.
        """
        out: dict[str, list[Delivery]] = {}
        for target in targets:
            edge = self._edge_to.get(target)
            if edge is None:
                continue
            group, index = self._place[edge.source]
            batch = self.latest.get(group)
            if (
                batch is not None
                and batch.at_s >= youngest_s
                and self._exits[group].missed.pop(edge, None) is not None
            ):
                self._offer(edge, batch.sample(index), batch.at_s, now_s, out)
        return out

    def expire(self, now_s: float) -> Deliveries:
        """Do what is due by the clock and return what is to be sent because of it."""
        out: dict[str, list[Delivery]] = {}
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            due_s, _, edge = heapq.heappop(heap)
            if self._scheduled.get(edge) != due_s:
                continue  # superseded by a later appointment
            del self._scheduled[edge]
            if edge.due_s > now_s:
                self._schedule(edge)
                continue
            group, index = self._place[edge.source]
            batch = self.latest.get(group)
            if batch is None:
                continue
            sample = edge.expire(batch.sample(index), batch.at_s, now_s)
            self._schedule(edge)
            if sample is not None:
                delivery = Delivery(edge.target, edge.source, sample)
                out.setdefault(edge.target.link, []).append(delivery)
        return out

    def _offer(
        self, edge: Edge, sample: Sample, at_s: float, now_s: float, out: dict[str, list[Delivery]]
    ) -> None:
        outgoing = edge.offer(sample, at_s, now_s)
        if edge.due_s != NEVER:
            self._schedule(edge)
        if outgoing is not None:
            delivery = Delivery(edge.target, edge.source, outgoing)
            out.setdefault(edge.target.link, []).append(delivery)

    def _schedule(self, edge: Edge) -> None:
        """Keep one live appointment per edge: the earliest that it wants.

        An appointment that turns out too early is moved when it comes, which is cheaper than
        touching the heap at every sample.
        """
        due_s = edge.due_s
        if due_s == NEVER:
            return
        known = self._scheduled.get(edge)
        if known is not None and known <= due_s:
            return
        self._scheduled[edge] = due_s
        heapq.heappush(self._heap, (due_s, next(self._order), edge))
