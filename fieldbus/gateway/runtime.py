"""The running gateway: sessions, the routing table, the clock, changes of the configuration, shutdown.

Rules:

* One task group; a link per task, and one task for what is told once a second.
* A sample goes from the link that acquired it to the links that send it in one turn of the event
  loop: no queue of the gateway's own lies between them. Of one batch, what a policy has treated goes
  first, then the bundles: a link that gathers can put both into one message.
* What a point must not be given (out of its range, wrong kind, against its guard) is stopped here, for every
  route and every protocol alike: a target that carries quality is told that the value is bad, another gets
  nothing, and it is said once. Commands pass the same gate by way of the `desk`.
* `reload` takes a plant that was loaded whole: links that are the same in both go on untouched, with their
  connections and all that they know; the others are closed, and opened anew. A target that goes on shows
  nothing of a source that it has no more, and a route that is new gets the next sample of its source.
* On `stop` every link is closed, within eight seconds; what a broker still has to get is sent first.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fieldbus import __version__
from fieldbus.clock import Clock
from fieldbus.durable.daemon_threads import DAEMON_THREADS
from fieldbus.durable.spool import Spool
from fieldbus.errors import ConfigError, LinkDownError, os_reason
from fieldbus.gateway.commands.audit import Audit
from fieldbus.gateway.commands.audit_sync import AuditSync
from fieldbus.gateway.commands.bundle import Bundle
from fieldbus.gateway.commands.command import Answer, Command
from fieldbus.gateway.commands.dead_man import DeadMen
from fieldbus.gateway.commands.desk import Desk
from fieldbus.gateway.commands.gate import Gate
from fieldbus.gateway.commands.routed import ROUTES_PERIOD_S
from fieldbus.gateway.commands.sequences import Sequences
from fieldbus.gateway.commands.worn import WornPoints
from fieldbus.gateway.exchange.exchange import Exchange
from fieldbus.gateway.exchange.sinks import Taker
from fieldbus.gateway.health import Health
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.session import Session
from fieldbus.gateway.system import Status
from fieldbus.link import (
    CautiousLink,
    Delivery,
    GatheringLink,
    GaugedLink,
    GuardedLink,
    LazyLink,
    Link,
    PeerLink,
    PulsedLink,
    Regrouped,
    SequencedLink,
    WriteOutcome,
    WriteResult,
)
from fieldbus.model import Batch, Point, Quality, Reason, Sample, Value
from fieldbus.routing.policy import NEVER, Edge
from fieldbus.routing.router import Deliveries, Router

SHUTDOWN_S = 8.0
STATUS_PERIOD_S = 1.0
START_UP_S = 10.0
"""How old a sample may be that a link gets when it is connected for the first time."""
RELOAD_SOON_S = 0.5
"""How long a change that came by itself waits for others."""
RELOAD_BY_S = 5.0
"""What changes again and again is loaded after so long all the same."""
STUCK_S = 20.0
"""After which time without progress something hangs."""
_LOG = logging.getLogger("fieldbus")


class Gateway:
    """A plant at work."""

    def __init__(
        self, plant: Plant, *, keeps: bool = True, load: Callable[[Plant], Plant] | None = None
    ) -> None:
        """Take a plant; nothing is opened.

        Args:
            plant: what is to work.
            keeps: whether anything is written into `data_dir`; a stepped run does not.
            load: loads the configuration anew, for changes that come by themselves.
        """
        self.plant = plant
        self.clock: Clock = plant.clock
        """Whose time everything in it goes by; the same after a reload."""
        self.desk: Desk
        self.delivered: dict[Point, Sample] = {}
        """The last sample that a route gave to each point that it writes."""
        self.on_reloaded: Callable[[str], None] = lambda _text: None
        """Called when a reload is over, with how it ended."""
        self._load = load
        self._keeps = keeps
        self._stop = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = NEVER
        self._refused: dict[Point, str] = {}
        self._sessions: dict[str, tuple[Link, asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._reloading = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._reload_timer: asyncio.TimerHandle | None = None
        self._reload_asked_s = 0.0
        """When the change came that waited longest."""
        self._reload_tasks: set[asyncio.Task[None]] = set()
        self.dead_men = DeadMen(self)
        self._sequences = Sequences(lambda: self.desk, self.clock, self._not_sent)
        self._worn_points = WornPoints(self, self._is_connected, self._is_online)
        self._health = Health(plant.name, __version__, self.clock.wall_ns())
        self.audit: Audit | None = None
        self._audit_sync: AuditSync | None = None
        if keeps:
            self.audit = Audit(plant.data_dir / "audit")
            self._audit_sync = AuditSync(self.audit, self._audit_settled, self.clock)
        self._spool: Spool | None = None
        self.exchange: Exchange | None = None
        """There while the gateway runs, if there are brokers."""
        self.router = Router((), ())
        self._take_plant(plant)

    # --- what it is made of

    def _open_exchange(self, plant: Plant) -> None:
        """Open the spool, if there is a broker and it is not open yet."""
        has_broker = any(isinstance(link, PeerLink) for link in plant.links.values())
        if not (self._keeps and has_broker and self._spool is None):
            return
        options: dict[str, Any] = {}
        if plant.settings is not None:
            settings = plant.settings.spool
            options = {
                "max_bytes": settings.max_size,
                "max_age_s": settings.max_age,
                "group_commit_s": settings.group_commit,
            }
        self._spool = Spool(plant.data_dir / "spool.db", say=_say_of_spool, clock=self.clock, **options)
        self._spool.open()
        self.exchange = Exchange(plant.name, __version__, plant.data_dir, self._spool, self, clock=self.clock)

    def _take_plant(self, plant: Plant) -> None:
        """Have the routing table and the gate of a plant."""
        self.plant = plant
        self._links: dict[str, Link] = dict(plant.links)
        self._cautious = {name: link for name, link in self._links.items() if isinstance(link, CautiousLink)}
        self._takers: dict[str, Taker]
        self._gatherers = {
            name: link for name, link in self._links.items() if isinstance(link, GatheringLink)
        }
        before = self.router
        groups = [*plant.groups, *(generator.group for generator in plant.generators)]
        if self.exchange is not None:
            kept = self.exchange.set_plant(
                plant.links, plant.edges, self._needed(plant), plant.shares,
                [point for point, guard in plant.guards.items() if guard.fallback_after_s is not None],
            )  # fmt: skip
            self.router = Router(kept, groups)
            self.router.adopt(before)
            self.exchange.rewire()
            self._takers = self.exchange.takers
            self._takers.update(self._links)
        else:
            self.router = Router(plant.edges, groups)
            self.router.adopt(before)
            self._takers = dict(self._links)
        gate = Gate(
            plant.points,
            plant.guards,
            plant.access.may_write,
            self.router.sample,
            self._arrived_s,
            plant.access.is_actor,
        )
        settings = plant.settings.audit if plant.settings is not None else None
        if self.audit is not None and settings is not None:
            self.audit.max_total = settings.max_size
        desk = Desk(
            gate,
            plant.access,
            self.audit,
            self._write,
            self.present,
            records_each=settings is not None and settings.routes == "each",
            clock=self.clock,
        )
        if hasattr(self, "desk"):
            desk.adopt(self.desk)
        self.desk = desk
        if self.exchange is not None:
            self.exchange.desk = desk
        for link in self._links.values():
            if isinstance(link, GuardedLink):
                link.still_allowed = self._still_allowed
            if isinstance(link, SequencedLink):
                link.follower = self._sequences
        self._guards = {
            point: guard for point, guard in plant.guards.items() if self.router.edge_to(point) is not None
        }
        """Of points that routes write."""
        self.dead_men.take(plant.guards, self.clock.monotonic_s())
        self._machines = frozenset(
            edge.target.point
            for edge in plant.edges
            if edge.target.point is not None and not self._links[edge.target.link].is_listener
        )
        """What of the points that routes write is a machine's: attempts are recorded."""
        self._careful = self._machines.union(self._guards)
        """What is not simply given what fits."""
        worn = {
            point
            for point, guard in self._guards.items()
            if guard.daily_budget is not None and point in self._machines and self.audit is not None
        }
        groups_of_worn = {(point.device, point.group) for point in worn if point.group}
        self._worn = frozenset(
            worn.union(point for point in self._machines if (point.device, point.group) in groups_of_worn)
        )
        """What is written with an intent: points with a budget, and what is written together with them."""
        self._worn_points.keep_only({point.address for point in self._worn})

    @staticmethod
    def _needed(plant: Plant) -> list[Point]:
        """Return the points whose present value is needed though no route reads it."""
        found = [generator.tied for generator in plant.generators if generator.tied is not None]
        for point, guard in plant.guards.items():
            found += [condition.point for condition in guard.only_if if condition.point is not None]
            if guard.max_change is not None:
                found.append(point)
        return found

    def _arrived_s(self, point: Point) -> float:
        """Return when the newest sample of a point arrived."""
        batch = self.router.batch_of(point)
        return -NEVER if batch is None else batch.at_s

    @property
    def points(self) -> Mapping[str, Point]:
        """All points by address."""
        return self.plant.points

    def present(self, point: Point) -> Sample | None:
        """Return what is known of a point: what was acquired, or what it was given last."""
        if point.access.can_read and self.router.batch_of(point) is not None:
            return self.router.sample(point)
        return self.delivered.get(point)

    async def _audit_settled(self) -> None:
        await self.desk.on_disk()  # of the desk that is there now: a reload makes another

    # --- life

    def stop(self) -> None:
        """Ask the gateway to end; safe to call at any time."""
        self._stop.set()

    async def until_stop(self) -> None:
        """Wait until the gateway is asked to end."""
        await self._stop.wait()

    async def run(self) -> None:
        """Work until `stop`."""
        self.dead_men.begin(self.clock.monotonic_s())
        if self.audit is not None:
            try:
                self.desk.restore(self.plant.points, self.plant.guards)
            except OSError as error:
                _LOG.error("%s cannot be read (%s)",
                           self.audit.file, os_reason(error))  # fmt: skip
            if not self.audit.is_ready():
                _LOG.error("%s cannot be written (%s); commands are refused until it can",
                           self.audit.file, self.audit.trouble)  # fmt: skip
        self._open_exchange(self.plant)
        if self.exchange is not None:
            self._take_plant(self.plant)
        for status in (*self.plant.link_status.values(), *self.plant.device_status.values()):
            self._tell(status)
        # What was made so far stays for ten years: nobody needs to look through it for garbage again, which
        # takes half a second where there are a thousand links, and stops everything meanwhile.
        gc.collect()
        gc.freeze()
        settled = asyncio.get_running_loop().call_later(START_UP_S, gc.freeze)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for name in self._links:
                    self._begin(name)
                if self.exchange is not None:
                    self.exchange.start()
                beside = [
                    group.create_task(self._tell_totals(), name="status"),
                    group.create_task(self._keep_house(), name="housekeeping"),
                    group.create_task(self.dead_men.watch(), name="dead-man"),
                    group.create_task(self._generate(), name="generated values"),
                ]
                await self._stop.wait()
                self._group = None
                tasks = [task for _, task in self._sessions.values()]
                await self._end({*tasks, *beside, *self._reload_tasks})
        finally:
            self._group = None
            settled.cancel()
            gc.unfreeze()
            for timer in (self._timer, self._reload_timer):
                if timer is not None:
                    timer.cancel()
            self._timer = None
            await self._put_away()

    async def _end(self, tasks: set[asyncio.Task[None]]) -> None:
        late = set(tasks)
        for _ in range(int(SHUTDOWN_S)):
            for task in late:
                task.cancel()  # again each second: a library may have swallowed the one before
            if not late:
                break
            _, late = await asyncio.wait(late, timeout=1.0)
        for task in late:
            _LOG.error("%s did not end in %.0f s", task.get_name(), SHUTDOWN_S)

    async def _put_away(self) -> None:
        """Close what is kept."""
        if self.exchange is not None:
            await self.exchange.stop()
        await self.desk.close()
        loop = asyncio.get_running_loop()
        if self._spool is not None:
            await loop.run_in_executor(None, self._spool.close)
            await asyncio.sleep(0)  # what was written just now is told in this turn
            lost = sum(stream.waiting for stream in self._spool.streams.values())
            if lost:
                _LOG.error("spool: %d samples could not be written and are lost (%s)",
                           lost, self._spool.trouble or "no time was left")  # fmt: skip
        if self._audit_sync is not None:
            await self._audit_sync.close()

    def _begin(self, name: str) -> None:
        """Have a link connected from now on."""
        plant, link = self.plant, self._links[name]
        devices = {
            device: status for device, status in plant.device_status.items() if plant.link_of[device] == name
        }
        session = Session(
            link,
            plant.link_status[name],
            devices,
            self._emit,
            self._tell,
            lambda: self._targets(name),
            self._missed,
            self._catch_up,
            self._regroup,
            clock=self.clock,
        )
        assert self._group is not None  # noqa: S101 - who calls is in it
        task = self._group.create_task(session.keep(), name=f"link {name}")
        self._sessions[name] = link, task

    def _targets(self, link: str) -> list[Point]:
        """Return the points of a link that routes write."""
        return [
            edge.target.point
            for edge in self.plant.edges
            if edge.target.point is not None and edge.target.link == link
        ]

    # --- changes of the configuration

    async def reload(self, plant: Plant) -> str:
        """Work with another plant from now on; return what changed, for people."""
        async with self._reloading:
            if not self._is_working():
                return "the gateway is about to end"
            self._open_exchange(plant)
            before, edges = dict(self._links), list(self.plant.edges)
            gone = [name for name, link in before.items() if plant.links.get(name) is not link]
            ending = [self._sessions.pop(name)[1] for name in gone if name in self._sessions]
            await self._end(set(ending))
            if not self._is_working():
                return "the gateway is about to end"
            self._take_plant(plant)
            fresh = [name for name, link in self._links.items() if before.get(name) is not link]
            for name in fresh:
                self._begin(name)
                for group in self._links[name].groups:
                    self.router.latest.pop(group, None)
            self._follow_up(edges, before)
            for status in (*plant.link_status.values(), *plant.device_status.values()):
                self._emit(status.batch() or status.repeated())
            if self.exchange is not None:
                self.exchange.start()
                self.exchange.say_births()
                self.exchange.ask_again()
                self.exchange.look_round()
            self._arm()
            kept = len(self._links) - len(fresh)
            text = f"{kept} links go on as they are"
            if fresh:
                text += f", {', '.join(sorted(fresh))} opened anew"
            removed = sorted(set(before) - set(self._links))
            if removed:
                text += f", {', '.join(removed)} no more"
            return text

    def _follow_up(self, before: Sequence[Edge], links_before: Mapping[str, Link]) -> None:
        """Have targets that go on know nothing that is not so any more, and nothing twice."""
        points = set(self.plant.points.values())
        self._refused = {point: text for point, text in self._refused.items() if point in points}
        gone: dict[str, list[Delivery]] = {}
        now_ns = self.clock.wall_ns()
        for edge in before:
            target = edge.target.point
            link = edge.target.link
            if target is None or target not in points or self._links.get(link) is not links_before[link]:
                continue
            fresh = self.router.edge_to(target)
            if fresh is edge or (fresh is not None and fresh.source is edge.source):
                continue  # the value that it has is its source's still
            if target.carries_quality:
                waiting = Sample(None, Quality.BAD, Reason.WAITING, now_ns)
                gone.setdefault(link, []).append(Delivery(edge.target, edge.source, waiting))
            elif fresh is not None and fresh.source.address == edge.source.address:
                fresh.sent = edge.sent
        self._deliver(gone)
        self.delivered = {point: sample for point, sample in self.delivered.items() if point in points}

    def _is_working(self) -> bool:
        return self._group is not None

    def reload_soon(self, why: str) -> None:
        """Load the configuration anew in a moment, because something outside it changed."""
        _LOG.info("%s", why)
        if self._load is None or self._group is None:
            return
        running, now_s = asyncio.get_running_loop(), self.clock.monotonic_s()
        if self._reload_timer is not None:
            self._reload_timer.cancel()
        else:
            self._reload_asked_s = now_s
        wait_s = min(RELOAD_SOON_S, max(0.0, self._reload_asked_s + RELOAD_BY_S - now_s))
        self._reload_timer = running.call_later(wait_s, self._reload_now)

    def _reload_now(self) -> None:
        self._reload_timer = None
        if self._group is None:
            return
        task = asyncio.get_running_loop().create_task(self._reload_itself(), name="reload")
        self._reload_tasks.add(task)
        task.add_done_callback(self._reload_tasks.discard)

    async def _reload_itself(self) -> None:
        try:
            await self.load_again()
        except ConfigError as error:
            for problem in error.problems:
                if not problem.is_warning:
                    _LOG.error("%s", problem)

    async def load_again(self) -> str:
        """Load the configuration anew and work with it, if it is sound.

        Raises:
            ConfigError: it is not, and nothing changed.
        """
        load = self._load
        if load is None:
            return "there is nothing to load"
        async with self._loading:  # what is loaded is compared with what works then
            plant = await asyncio.get_running_loop().run_in_executor(DAEMON_THREADS, load, self.plant)
            known = {str(problem) for problem in self.plant.warnings}
            text = await self.reload(plant)
        for problem in plant.warnings:
            if str(problem) not in known:
                _LOG.warning("%s", problem)
        _LOG.info("%s: reloaded, %s", plant.name, text)
        self.on_reloaded(text)
        return text

    def births_changed(self) -> None:
        """Have it said anew how we are: somebody is there who may not know."""
        self._health.say_again()

    # --- samples

    def _emit(self, batch: Batch) -> None:
        """Route a batch; what every link calls with everything that it acquires."""
        router = self.router
        deliveries = router.dispatch(batch, self.clock.monotonic_s())
        if deliveries:
            self._deliver(deliveries)
        if router.plans and batch.group in router.plans:
            for bundle in router.gathered(batch):
                self._gatherers[bundle.plan.message.link].gather(bundle)
        if router.next_due_s < self._timer_due_s:
            self._arm()

    def _deliver(self, deliveries: Deliveries) -> None:
        for name, items in deliveries.items():
            cautious = self._cautious.get(name)
            if cautious is not None and cautious.has_doubts:
                items = self._not_held_back(cautious, items)  # noqa: PLW2901
            allowed = self._guarded(items)
            if allowed:
                for delivery in self._takers[name].send(allowed):
                    if delivery.target.point is not None:
                        self._missed(delivery.target.point)

    def _not_held_back(self, link: CautiousLink, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Return what may be written now; what may have been written already is offered again later."""
        kept = []
        for delivery in deliveries:
            point, value = delivery.target.point, delivery.sample.value
            if point is None or value is None or not link.holds_back(point, value):
                kept.append(delivery)
            else:
                self.router.missed(point)
        return kept

    def _regroup(self, event: Regrouped) -> None:
        """Learn that a link acquires its points in other groups from now on."""
        self.router.regroup(event.removed, event.added)

    def _missed(self, target: Point) -> None:
        """Learn that a target has not, or no longer, the value that a route gave it."""
        self.router.missed(target)
        self.dead_men.missed(target)
        if target in self.delivered:
            self.delivered[target] = Sample(None, Quality.BAD, Reason.NOT_CONNECTED, self.clock.wall_ns())

    def missed(self, target: Point) -> None:
        """Learn that a target has not the value that a route gave it; it may be of an earlier plant."""
        point = self.plant.points.get(target.address)
        if point is not None:
            self._missed(point)

    def bundle(self, count: int) -> Bundle:
        """Return a bundle for a number of commands that a link writes together."""
        return Bundle(count, self._write_all, self.clock)

    def offer(self, delivery: Delivery) -> None:
        """Decide on a sample that had to wait."""
        point = delivery.target.point
        if self._is_working() and point is not None and self.plant.points.get(point.address) is point:
            self._deliver({delivery.target.link: [delivery]})

    def _is_connected(self, point: Point) -> bool:
        return self.plant.link_status[self.plant.link_of[point.device]].is_true("connected")

    def _is_online(self, point: Point) -> bool:
        status = self.plant.device_status.get(point.device)
        return status is None or status.is_true("online")

    def _catch_up(self, targets: Sequence[Point]) -> None:
        """Give a link that is up for the first time what came just before it was."""
        now_s = self.clock.monotonic_s()
        self._deliver(self.router.offer_missed(targets, now_s - START_UP_S, now_s))

    def _guarded(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return what targets may be given, and keep it in `delivered`."""
        delivered, refused, careful = self.delivered, self._refused, self._careful
        fallen = self.dead_men.fallen
        for target, _, sample in deliveries:
            point = target.point
            if point is None:
                continue
            delivered[point] = sample
            value = sample.value
            if value is None:
                if fallen and point in fallen:
                    return self._sifted(deliveries)
            elif (
                isinstance(value, str)
                or not point.floor <= value <= point.ceiling
                or (refused and point in refused)
                or (careful and point in careful)
            ):
                return self._sifted(deliveries)
        return deliveries

    def _sifted(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the same of deliveries of which one must perhaps not be given, or is to be recorded."""
        allowed: list[Delivery] = []
        for delivery in deliveries:
            point, value = delivery.target.point, delivery.sample.value
            if point is not None and self.dead_men.holds(point):
                self.router.missed(point)
                self.delivered.pop(point, None)
                continue
            if point is not None:
                self.delivered[point] = delivery.sample
            if point is None or value is None:
                allowed.append(delivery)
            else:
                allowed.extend(self._examined(delivery, point, value))
        return allowed

    def _refusal_of_group(self, point: Point) -> str | None:
        """Return why a member of a group is not written: another one has a value that was refused."""
        for other, refusal in self._refused.items():
            if other is not point and (other.device, other.group) == (point.device, point.group):
                return f"not written: {other.name} of the same group ({point.group}) was refused: {refusal}"
        return None

    def _examined(self, delivery: Delivery, point: Point, value: Value) -> Sequence[Delivery]:
        """Return what a point gets that must perhaps not be given a value, or was refused one before."""
        refusal = point.refusal(value)
        is_forever = refusal is not None
        if refusal is None and point.group and (others := self._refusal_of_group(point)) is not None:
            self.desk.routed(point, delivery.source, value, others)
            self.router.missed(point)
            self.delivered.pop(point, None)
            return ()
        is_worn = point in self._worn
        now_s = self.clock.monotonic_s()
        if refusal is None and is_worn and self._worn_points.holds(delivery, point, now_s):
            return ()
        if refusal is None and point in self._guards:
            refusal = self.desk.admit(point, delivery.source, value, now_s)
        if point in self._machines and not (is_worn and refusal is None):
            self.desk.routed(point, delivery.source, value, refusal)
        if refusal is None:
            if self._refused.pop(point, None) is not None:
                _LOG.info("%s: values fit again", point.address)
            if is_worn:
                self._worn_points.begin(delivery, point, now_s)
                return ()
            return (delivery,)
        if point not in self._refused:
            _LOG.warning("%s: value of %s refused, %s", point.address, delivery.source.address, refusal)
        self._refused[point] = refusal
        if point.group and (cautious := self._cautious.get(delivery.target.link)) is not None:
            cautious.refuse_group(point)
            self._worn_points.refuse_group(point, f"not written: {point.name} of the same group was refused")
        if not is_forever:
            # What the guard did not let through now it may when the source has its next sample.
            self.router.missed(point)
            self.delivered.pop(point, None)
            return ()
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
            delay_s = max(0.0, due_s - self.clock.monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._timer_due_s = NEVER
        try:
            self._deliver(self.router.expire(self.clock.monotonic_s()))
        finally:
            self._arm()

    # --- commands

    def _still_allowed(self, point: Point, value: Value) -> tuple[WriteOutcome, str] | None:
        """Return how a write ends that must not be sent any more; links ask it at the moment of sending."""
        refusal = self.desk.still_allowed(point, value)
        if refusal is not None:
            self._not_sent(point, value, refusal[1])
        return refusal

    def _not_sent(self, point: Point, value: Value, refusal: str) -> None:
        """Learn why a value must not be sent after all; of a route it is recorded, and offered again."""
        if self.desk.is_commanded(point, value):
            return
        edge = self.router.edge_to(point)
        if edge is not None and point in self._machines:
            self.desk.routed(point, edge.source, value, refusal)
        self.router.missed(point)
        self.delivered.pop(point, None)

    async def _write(self, point: Point, value: Value, until_s: float) -> WriteResult:
        """Have a point's link write it."""
        if self.plant.points.get(point.address) is not point:
            return WriteResult(point, value, WriteOutcome.FAILED, "the configuration changed meanwhile")
        link = self._links[self.plant.link_of[point.device]]
        try:
            [result] = await link.write({point: value}, until_s=until_s)
        except LinkDownError as error:
            return WriteResult(point, value, WriteOutcome.FAILED, str(error))
        except Exception:
            _LOG.exception("%s: internal error while it was written", point.address)
            return WriteResult(point, value, WriteOutcome.UNKNOWN, "internal error")
        return result

    async def execute_together(self, commands: Sequence[Command]) -> list[Answer]:
        """Do what commands to points of one group, or one message, want: all of it or nothing."""
        bundle = self.bundle(len(commands))

        async def execute(command: Command) -> Answer:
            answer = await self.desk.execute(replace(command, bundle=bundle))
            if not bundle.has(command.point):
                bundle.withdraw(command.point)
            return answer

        return list(await asyncio.gather(*map(execute, commands)))

    async def _write_all(self, values: Mapping[Point, Value], until_s: float) -> list[WriteResult]:
        """Have the link of some points write them, together."""
        first = next(iter(values))
        link = self._links[self.plant.link_of[first.device]]
        try:
            return await link.write(values, until_s=until_s)
        except LinkDownError as error:
            outcome, reason = WriteOutcome.FAILED, str(error)
        except Exception:
            _LOG.exception("%s: internal error while it was written", first.address)
            outcome, reason = WriteOutcome.UNKNOWN, "internal error"
        return [WriteResult(point, value, outcome, reason) for point, value in values.items()]

    # --- what is told

    def _tell(self, status: Status) -> None:
        batch = status.batch()
        if batch is not None:
            self._emit(batch)

    async def _keep_house(self) -> None:
        """Once a second: health, the audit log on the disk, what watchers no longer want."""
        summed_s = self.clock.monotonic_s()
        while True:
            await asyncio.sleep(STATUS_PERIOD_S)
            self.desk.mind_clock()
            now_s = self.clock.monotonic_s()
            if now_s - summed_s >= ROUTES_PERIOD_S:
                summed_s = now_s
                self.desk.sum_up()
            if self._audit_sync is not None:
                self._audit_sync.begin()
            if self.exchange is not None:
                self.exchange.look_round()
                news = self._health.news(self.health(), now_s)
                if news is not None:
                    self.exchange.say_health(news)

    def health(self) -> dict[str, Any]:
        """Return how all is, as `health` describes it."""
        plant = self.plant
        more: dict[str, Any] = {
            "commands": dict(self.desk.counters),
            "fallbacks": [p.address for p in self.dead_men.fallen],
        }
        if self.audit is not None:
            more["audit"] = {
                "records": self.audit.count, "hash": self.audit.last_hash, "lost": self.audit.lost,
                "trouble": self.audit.trouble or (self._audit_sync and self._audit_sync.trouble),
            }  # fmt: skip
        if self.exchange is not None and self._spool is not None:
            more["streams"] = self.exchange.backlog()
            more["spool"] = {"bytes": self._spool.bytes, "trouble": self._spool.trouble}
            more["peers"] = self.exchange.intake.counters()
        places = {name: link.endpoint for name, link in self._links.items()}
        return self._health.look(plant.link_status, places, plant.device_status, more, self.clock.wall_ns())

    def stuck(self) -> str | None:
        """Return what makes no progress, None if all does: for a watchdog."""
        now_s = self.clock.monotonic_s()
        for name, (link, task) in self._sessions.items():
            if task.done():
                return f"link {name} has ended"
            stuck_s = link.stuck_s(now_s) if isinstance(link, PulsedLink) else 0.0
            if stuck_s > STUCK_S:
                how_long = f"for {stuck_s:.0f} s" if stuck_s < NEVER else "at all any more"
                return f"link {name} has done nothing {how_long}"
        return None if self.exchange is None else self.exchange.stuck()

    async def _generate(self) -> None:
        """Emit the values that the gateway makes itself."""
        while True:
            now_s = self.clock.monotonic_s()
            due_s = now_s + STATUS_PERIOD_S
            for generator in self.plant.generators:
                tied = None if generator.tied is None else self.router.sample(generator.tied)
                batch = generator.next(tied, now_s, self.clock.wall_ns())
                if batch is not None:
                    self._emit(batch)
                due_s = min(due_s, generator.due_s)
            await asyncio.sleep(max(0.0, due_s - self.clock.monotonic_s()))

    async def _tell_totals(self) -> None:
        """Tell routes once a second what was counted and measured; who looks by `refresh` is told then."""
        while True:
            await asyncio.sleep(STATUS_PERIOD_S)
            plant = self.plant
            self._tell_counters(
                name for name in self._links if self.router.wants(plant.link_status[name].group)
            )
            devices = [
                name for name, status in plant.device_status.items() if self.router.wants(status.group)
            ]
            self._tell_measures(sorted({plant.link_of[name] for name in devices}))

    def refresh(self) -> None:
        """Have the newest of all links and devices in the router, also what no route wants."""
        for link in self._links.values():
            if isinstance(link, LazyLink):
                link.refresh()
        if self.exchange is not None:
            self.exchange.watched()
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


def _say_of_spool(text: str, is_bad: bool) -> None:
    if is_bad:
        _LOG.warning("spool: %s", text)
    else:
        _LOG.info("spool: %s", text)
