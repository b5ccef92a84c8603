"""The router: batches in, deliveries out, the newest picture of every point kept.

Rules:

* A batch in which nothing changed costs O(1), unless a route wants every sample of its group.
* All deliveries that one batch causes to one link are handed over together, in the order of the
  points in their group.
* What goes into a gathered message untreated (no deadband, interval, scale …) is no delivery but one
  `Bundle` for each message: see `gathered`. What is treated stays a delivery.
* A good sample that goes untreated to a point takes no more than it must, in `dispatch` itself. The rules of
  `Edge.offer` hold there as well; they are only shorter.
* Time is a parameter; `next_due_s` says when `expire` should be called.
* What could not be delivered (`missed`) is not kept and repeated later. The *next* sample that the
  source acquires is offered again, changed or not: a temperature that is still measured reaches a PLC
  that was away, a start command that a master wrote meanwhile does not.
* After `regroup` edges remember what they have sent, and the newest sample of a point is still known;
  only its time may be older than it was: a group has one time, and nothing is made younger than it is.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fieldbus.link import Bundle, Delivery, Gathering, GatherPlan
from fieldbus.model import Batch, Flaw, Group, HeldBatch, Point, Quality, Reason, Sample, Value, bad
from fieldbus.routing.policy import NEVER, Edge, OnBad, When

Deliveries = Mapping[str, list[Delivery]]
"""Link name to what it has to send."""

_NOTHING: Deliveries = {}
_WAITING = bad(Reason.WAITING)
_GOOD = Quality.GOOD
"""Looked up once: an enumeration takes its time."""
_new = tuple.__new__
"""Makes a named tuple in half the time of its own constructor."""


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
        self.plans: dict[Group, tuple[GatherPlan, ...]] = {}
        """Of the groups that have any."""
        self._heap: list[tuple[float, int, Edge]] = []
        self._scheduled: dict[Edge, float] = {}
        self._order = itertools.count()
        self._edge_to: dict[Point, Edge] = {}
        self._edges_from: dict[Point, list[Edge]] = {}
        self._devices: dict[str, list[Group]] = {}
        """The groups of each device; a group is of one."""
        self._extra: list[Edge] = []
        for edge in edges:
            if edge.target.point is not None:
                self._edge_to[edge.target.point] = edge
            self._edges_from.setdefault(edge.source, []).append(edge)
        self._enter(groups)

    @property
    def next_due_s(self) -> float:
        """When `expire` has something to do, on the monotonic clock; infinity if never."""
        return self._heap[0][0] if self._heap else NEVER

    def adopt(self, other: Router) -> None:
        """Go on with what another table knows of the groups and edges that are in both, after a reload.

        An edge that is new has missed what its source had before.
        """
        for group, batch in other.latest.items():
            if group in self._exits:
                self.latest[group] = batch
        self._extra = [edge for edge in other._extra if edge.source in self._place]
        for edge in self._extra:
            self._edges_from.setdefault(edge.source, []).append(edge)
        for device in {edge.source.device for edge in self._extra}:
            self._plan_device(self._devices.get(device, []))
        known = {edge for edges in other._edges_from.values() for edge in edges}
        for edges in self._edges_from.values():
            for edge in edges:
                group, index = self._place[edge.source]
                exits = other._exits.get(group)
                if exits is not None and (edge in exits.missed or edge not in known):
                    self._exits[group].missed[edge] = index
                self._schedule(edge)

    def set_extra(self, edges: Iterable[Edge]) -> None:
        """Have further edges, in the place of those of the last call; equal ones go on as they are."""
        edges = list(edges)
        before = {edge.key: edge for edge in self._extra}
        edges = [before.get(edge.key, edge) for edge in edges]
        devices = {edge.source.device for edge in (*self._extra, *edges)}
        for edge in self._extra:
            self._edges_from[edge.source].remove(edge)
        self._extra = edges
        for edge in edges:
            self._edges_from.setdefault(edge.source, []).append(edge)
        for device in devices:
            self._plan_device(self._devices.get(device, []))

    def edges_from(self, point: Point) -> Sequence[Edge]:
        """Return the edges that leave a point."""
        return self._edges_from.get(point, ())

    def edge_to(self, point: Point) -> Edge | None:
        """Return the edge that writes a point, if there is one."""
        return self._edge_to.get(point)

    def batch_of(self, point: Point) -> Batch | None:
        """Return the newest picture of the group of a point; None before there is one."""
        place = self._place.get(point)
        return None if place is None else self.latest.get(place[0])

    def sample(self, point: Point) -> Sample:
        """Return the newest sample of a point."""
        if point not in self._place:  # it can only be written
            return Sample(None, _WAITING.quality, _WAITING.reason, 0)
        group, index = self._place[point]
        batch = self.latest.get(group)
        if batch is None:
            return Sample(None, _WAITING.quality, _WAITING.reason, 0)
        return batch.sample(index)

    def wants(self, group: Group) -> bool:
        """Return whether any route leaves a group."""
        exits = self._exits.get(group)
        return group in self.plans or (exits is not None and bool(exits.always or exits.by_index))

    def gathered(self, batch: Batch) -> Sequence[Bundle]:
        """Return what of a batch goes into gathered messages untreated.

        Asked beside `dispatch`, for each batch. What waits for a change and sees none is left out.
        """
        plans = self.plans.get(batch.group)
        if plans is None:
            return ()
        if batch.changed:
            return [Bundle(plan, batch) for plan in plans]
        return [Bundle(plan, batch) for plan in plans if plan.wants_every_sample]

    def regroup(self, removed: Iterable[Group], added: Iterable[Group]) -> None:
        """Learn that points are acquired in other groups from now on.

        A point of a removed group that is in no added one has no value any more.
        """
        removed, added = tuple(removed), tuple(added)
        moved = {point for group in added for point in group.points}
        pictures = [self._compose(group) for group in added]
        missed: list[Edge] = []
        for group in removed:
            exits = self._exits.pop(group, None)
            latest = self.latest.pop(group, None)
            if exits is None:
                continue
            missed.extend(exits.missed)
            self.plans.pop(group, None)
            if group.points:
                self._devices[group.points[0].device].remove(group)
            if latest is not None and not moved.issuperset(group.points):
                reason = Reason.NOT_AVAILABLE
                self.latest[group] = group.without_value(reason, latest.time_ns, latest.at_s)
        self._enter(added, {group.points[0].device for group in removed if group.points})
        for group, picture in zip(added, pictures, strict=True):
            if picture is not None:
                self.latest.setdefault(group, picture)
        for edge in missed:
            group, index = self._place[edge.source]
            if group in self._exits:
                self._exits[group].missed[edge] = index

    def dispatch(self, batch: Batch, now_s: float) -> Deliveries:
        """Take what a link acquired and return what is to be sent because of it."""
        group, time_ns, at_s, values, flaws, changed = batch
        self.latest[group] = batch
        exits = self._exits.get(group)
        if exits is None:
            return _NOTHING
        is_live = type(batch) is Batch
        heard_s = at_s if is_live else batch.heard_s
        by_index = exits.by_index
        if not (changed and by_index) and not exits.missed and not exits.always:
            return _NOTHING
        out: dict[str, list[Delivery]] = {}
        if exits.missed:
            self._offer_again(batch, exits, now_s, out)
        link: str | None = None
        items: list[Delivery] = []
        for index in changed:
            edges = by_index.get(index)
            if edges is None:
                continue
            value = values[index]
            is_good = value is not None and index not in flaws
            sample: Sample | None = None
            for edge in edges:
                if not (is_good and edge.is_plain and is_live):
                    self._offer(edge, batch.sample(index), heard_s, now_s, out)
                    continue
                last = edge.sent
                if last is not None:
                    last_value, quality, _, _ = last
                    if last_value == value and quality is _GOOD:
                        continue
                if sample is None:
                    sample = _new(Sample, (value, _GOOD, None, time_ns))
                edge.sent = sample
                target = edge.target
                if target.link != link:
                    link = target.link
                    items = out.setdefault(link, [])
                items.append(_new(Delivery, (target, edge.source, sample)))
        if exits.always:
            for index, edge in exits.always:
                self._offer(edge, batch.sample(index), heard_s, now_s, out)
        return out

    def missed(self, target: Point) -> None:
        """Learn that the last delivery to a point did not get there."""
        edge = self._edge_to.get(target)
        if edge is not None:
            edge.missed()
            group, index = self._place[edge.source]
            if group in self._exits:
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
                and group in self._exits
                and self._exits[group].missed.pop(edge, None) is not None
            ):
                self._offer(edge, batch.sample(index), batch.heard_s, now_s, out)
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
            sample = edge.expire(batch.sample(index), batch.heard_s, now_s)
            self._schedule(edge)
            if sample is not None:
                delivery = Delivery(edge.target, edge.source, sample)
                out.setdefault(edge.target.link, []).append(delivery)
        return out

    def _offer_again(self, batch: Batch, exits: _Exits, now_s: float, out: dict[str, list[Delivery]]) -> None:
        """Offer what did not change to those who wait for a change and missed the last one."""
        missed, exits.missed = exits.missed, {}
        unchanged = set(missed.values()).difference(batch.changed)
        for edge, index in missed.items():
            if index in unchanged and edge.policy.when is When.CHANGE:
                self._offer(edge, batch.sample(index), batch.heard_s, now_s, out)

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

    def _enter(self, groups: Iterable[Group], devices: Iterable[str] = ()) -> None:
        """Take groups in, and plan anew what their devices, and those named, gather."""
        concerned = set(devices)
        for group in groups:
            for index, point in enumerate(group.points):
                self._place[point] = (group, index)
            self._exits[group] = _Exits()
            if group.points:
                self._devices.setdefault(group.points[0].device, []).append(group)
                concerned.add(group.points[0].device)
        for device in concerned:
            self._plan_device(self._devices.get(device, []))

    def _plan_device(self, groups: Sequence[Group]) -> None:
        """Divide the edges that leave the groups of one device into exits and plans."""
        found: dict[tuple[str, str], dict[Group, list[tuple[int, Edge]]]] = {}
        for group in groups:
            exits = self._exits[group] = _Exits(missed=self._exits[group].missed)
            self.plans.pop(group, None)
            for index, point in enumerate(group.points):
                for edge in self._edges_from.get(point, ()):
                    target = edge.target
                    if target.gathers and target.topic is not None and not target.is_durable:
                        by_group = found.setdefault((target.link, target.topic), {})
                        by_group.setdefault(group, []).append((index, edge))
                    else:
                        _leave(exits, index, edge)
        for (link, topic), by_group in found.items():
            device = next(iter(by_group)).points[0].device
            plain = {group: _untreated(members) for group, members in by_group.items()}
            message = Gathering(link, topic, device, sum(map(bool, plain.values())))
            is_shared = len(by_group) > 1 or message.groups > 0
            for group, members in by_group.items():
                bundled = plain[group]
                if bundled:
                    plan = _plan(message, group, bundled)
                    self.plans[group] = (*self.plans.get(group, ()), plan)
                for index, edge in members:
                    if edge not in bundled:
                        edge.target = edge.target._replace(is_shared=is_shared)
                        _leave(self._exits[group], index, edge)

    def _compose(self, group: Group) -> Batch | None:
        """Return the picture of a new group, of the samples that its points had in their old ones."""
        values: list[Value | None] = []
        flaws: dict[int, Flaw] = {}
        sources: dict[Group, Batch] = {}
        for index, point in enumerate(group.points):
            before, place = self._place.get(point, (group, 0))
            batch = self.latest.get(before)
            if batch is None:
                values.append(None)
                flaws[index] = _WAITING
                continue
            sources[before] = batch
            values.append(batch.values[place])
            if place in batch.flaws:
                flaws[index] = batch.flaws[place]
        if not sources:
            return None
        time_ns = min(batch.time_ns for batch in sources.values())
        at_s = min(batch.at_s for batch in sources.values())
        is_live = all(batch.heard_s == batch.at_s for batch in sources.values())
        kind = Batch if is_live else HeldBatch
        return kind(group, time_ns, at_s, tuple(values), flaws, ())


def _leave(exits: _Exits, index: int, edge: Edge) -> None:
    if edge.policy.when is When.SAMPLE:
        exits.always.append((index, edge))
    else:
        exits.by_index.setdefault(index, []).append(edge)


def _untreated(members: Sequence[tuple[int, Edge]]) -> dict[Edge, int]:
    """Return the edges of one group and one message that can travel in a bundle.

    All of a bundle are sent at the same times and treated the same when they are bad; where routes
    differ in that, or send a point twice under one name, the table's way, edge by edge, stays.
    """
    found = {edge: index for index, edge in members if edge.policy.is_untreated}
    kinds = {(edge.policy.when, edge.policy.on_bad) for edge in found}
    labels = {edge.target.label for _, edge in members}
    return found if len(kinds) == 1 and len(labels) == len(members) else {}


def _plan(message: Gathering, group: Group, bundled: Mapping[Edge, int]) -> GatherPlan:
    policy = next(iter(bundled)).policy
    return GatherPlan(
        message,
        group,
        tuple(bundled.values()),
        tuple(edge.target.label for edge in bundled),
        wants_every_sample=policy.when is When.SAMPLE,
        tells_bad=policy.on_bad is OnBad.SEND,
    )
