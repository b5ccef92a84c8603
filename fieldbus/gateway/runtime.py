"""The running gateway: sessions, the routing table, the clock, shutdown.

Rules:

* One task group; a link per task, and one task for what is told once a second.
* A sample goes from the link that acquired it to the links that send it in one turn of the event
  loop: no queue of the gateway's own lies between them. Of one batch, what a policy has treated goes
  first, then the bundles: a link that gathers can put both into one message.
* What a point must not be given (out of its range, wrong kind) is stopped here, for every route and
  every protocol alike: a target that carries quality is told that the value is bad, another gets
  nothing, and it is said once.
* On `stop` every link is closed, within eight seconds; what a broker still has to get is sent first.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Sequence

from fieldbus import clock
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.session import Session
from fieldbus.gateway.system import Status
from fieldbus.link import Delivery, GatheringLink, GaugedLink, LazyLink, Regrouped
from fieldbus.model import Batch, Point, Quality, Reason, Sample, Value
from fieldbus.routing.policy import NEVER
from fieldbus.routing.router import Deliveries, Router

SHUTDOWN_S = 8.0
STATUS_PERIOD_S = 1.0
START_UP_S = 10.0
"""How old a sample may be that a link gets when it is connected for the first time."""

_LOG = logging.getLogger("fieldbus")


class Gateway:
    """A plant at work."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.router = Router(plant.edges, plant.groups)
        self._links = dict(plant.links)
        self._gatherers = {
            name: link for name, link in self._links.items() if isinstance(link, GatheringLink)
        }
        self._stop = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = NEVER
        self._refused: dict[Point, str] = {}
        self.delivered: dict[Point, Sample] = {}
        """The last sample that a route gave to each point that it writes."""

    def stop(self) -> None:
        """Ask the gateway to end; safe to call at any time."""
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop`."""
        plant = self.plant
        sessions = []
        targets: dict[str, list[Point]] = {name: [] for name in self._links}
        for edge in plant.edges:
            if edge.target.point is not None:
                targets[edge.target.link].append(edge.target.point)
        for name, link in self._links.items():
            devices = {
                device: status
                for device, status in plant.device_status.items()
                if plant.link_of[device] == name
            }
            status = plant.link_status[name]
            sessions.append(
                Session(
                    link,
                    status,
                    devices,
                    self._emit,
                    self._tell,
                    targets[name],
                    self._missed,
                    self._catch_up,
                    self._regroup,
                )
            )
        for status in (*plant.link_status.values(), *plant.device_status.values()):
            self._tell(status)
        # What was made so far stays for ten years: nobody needs to look through it for garbage again, which
        # takes half a second where there are a thousand links, and stops everything meanwhile.
        gc.collect()
        gc.freeze()
        settled = asyncio.get_running_loop().call_later(START_UP_S, gc.freeze)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(session.keep(), name=f"link {name}")
                for session, name in zip(sessions, self._links, strict=True)
            ]
            tasks.append(group.create_task(self._tell_totals(), name="status"))
            await self._stop.wait()
            late = set(tasks)
            for _ in range(int(SHUTDOWN_S)):
                for task in late:
                    task.cancel()  # again each second: a library may have swallowed the one before
                _, late = await asyncio.wait(late, timeout=1.0)
                if not late:
                    break
            for task in late:
                _LOG.error("%s did not end in %.0f s", task.get_name(), SHUTDOWN_S)
        settled.cancel()
        gc.unfreeze()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _emit(self, batch: Batch) -> None:
        """Route a batch; what every link calls with everything that it acquires."""
        router = self.router
        deliveries = router.dispatch(batch, clock.monotonic_s())
        if deliveries:
            self._deliver(deliveries)
        if router.plans and batch.group in router.plans:
            for bundle in router.gathered(batch):
                self._gatherers[bundle.plan.message.link].gather(bundle)
        if router.next_due_s < self._timer_due_s:
            self._arm()

    def _deliver(self, deliveries: Deliveries) -> None:
        for name, items in deliveries.items():
            allowed = self._guarded(items)
            if allowed:
                for delivery in self._links[name].send(allowed):
                    if delivery.target.point is not None:
                        self._missed(delivery.target.point)

    def _regroup(self, event: Regrouped) -> None:
        """Learn that a link acquires its points in other groups from now on."""
        self.router.regroup(event.removed, event.added)

    def _missed(self, target: Point) -> None:
        """Learn that a target has not, or no longer, the value that a route gave it."""
        self.router.missed(target)
        if target in self.delivered:
            self.delivered[target] = Sample(None, Quality.BAD, Reason.NOT_CONNECTED, clock.wall_ns())

    def _catch_up(self, targets: Sequence[Point]) -> None:
        """Give a link that is up for the first time what came just before it was."""
        now_s = clock.monotonic_s()
        self._deliver(self.router.offer_missed(targets, now_s - START_UP_S, now_s))

    def _guarded(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return what targets may be given, and keep it in `delivered`."""
        delivered, refused = self.delivered, self._refused
        for target, _, sample in deliveries:
            point = target.point
            if point is None:
                continue
            delivered[point] = sample
            value = sample.value
            if value is not None and (
                isinstance(value, str)
                or not point.floor <= value <= point.ceiling
                or (refused and point in refused)
            ):
                return self._sifted(deliveries)
        return deliveries

    def _sifted(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the same of deliveries of which one must perhaps not be given."""
        allowed: list[Delivery] = []
        for delivery in deliveries:
            point, value = delivery.target.point, delivery.sample.value
            if point is not None:
                self.delivered[point] = delivery.sample
            if point is None or value is None:
                allowed.append(delivery)
            else:
                allowed.extend(self._examined(delivery, point, value))
        return allowed

    def _examined(self, delivery: Delivery, point: Point, value: Value) -> Sequence[Delivery]:
        """Return what a point gets that must perhaps not be given a value, or was refused one before."""
        refusal = point.refusal(value)
        if refusal is None:
            if self._refused.pop(point, None) is not None:
                _LOG.info("%s: values fit again", point.address)
            return (delivery,)
        if point not in self._refused:
            _LOG.warning("%s: value of %s refused, %s", point.address, delivery.source.address, refusal)
        self._refused[point] = refusal
        if not point.carries_quality:
            return ()
        sample = Sample(None, Quality.BAD, Reason.OUT_OF_RANGE, delivery.sample.time_ns)
        self.delivered[point] = sample
        return (delivery._replace(sample=sample),)

    def _arm(self) -> None:
        """Have `_expire` called when the routing table next has something to do by the clock."""
        if self._timer is not None:
            self._timer.cancel()
        due_s = self.router.next_due_s
        self._timer_due_s = due_s
        self._timer = None
        if due_s != NEVER:
            delay_s = max(0.0, due_s - clock.monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._timer_due_s = NEVER
        try:
            self._deliver(self.router.expire(clock.monotonic_s()))
        finally:
            self._arm()

    def _tell(self, status: Status) -> None:
        batch = status.batch()
        if batch is not None:
            self._emit(batch)

    async def _tell_totals(self) -> None:
        """Tell routes once a second what was counted and measured; who looks by `refresh` is told then."""
        plant = self.plant
        links = [name for name in self._links if self.router.wants(plant.link_status[name].group)]
        devices = {name for name, status in plant.device_status.items() if self.router.wants(status.group)}
        measured = sorted({plant.link_of[name] for name in devices})
        while links or devices:
            await asyncio.sleep(STATUS_PERIOD_S)
            self._tell_counters(links)
            self._tell_measures(measured)
        await asyncio.Event().wait()

    def refresh(self) -> None:
        """Have the newest of all links and devices in the router, also what no route wants."""
        for link in self._links.values():
            if isinstance(link, LazyLink):
                link.refresh()
        self._tell_counters(self._links)
        self._tell_measures(self._links)

    def _tell_counters(self, links: Iterable[str]) -> None:
        for name in links:
            status = self.plant.link_status[name]
            link = self._links[name]
            status.set(**link.counters)
            if isinstance(link, GaugedLink):
                status.set(**link.gauge_values())
            self._tell(status)

    def _tell_measures(self, links: Iterable[str]) -> None:
        for name in links:
            for device, measures in self._links[name].measures.items():
                status = self.plant.device_status.get(device)
                if status is not None:
                    status.set(**measures)
                    self._tell(status)
