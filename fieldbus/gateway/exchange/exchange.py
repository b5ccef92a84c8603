"""The gateway among others: what it says of itself, what others want of it, what it wants of them.

Rules:

* Whatever a peer says is checked whole; what makes no sense is said once, and nothing of it is taken.
* What a peer wants durably is kept in the spool beside the stream, so that nothing is missed while the
  broker is away, also after a restart.
* A peer that describes other points than before is remembered (``data_dir/peers/``), and the configuration is
  loaded anew with them: until a peer was heard once, its points are not known.
* What we want of a peer is what routes, interlocks and peers of ours need, and for a while what a watcher
  looks at.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.files import make_folder, read_own, replace_own
from fieldbus.durable.spool import Spool, Stream
from fieldbus.errors import os_reason
from fieldbus.gateway.commands.desk import Desk
from fieldbus.gateway.exchange.demand import Demand, Key
from fieldbus.gateway.exchange.intake import Intake, Keeper
from fieldbus.gateway.exchange.pumps import Pumps
from fieldbus.gateway.exchange.sinks import PeerSink, Taker
from fieldbus.gateway.exchange.topic_sink import TopicSink
from fieldbus.link import Delivery, Instruction, Link, PeerLink
from fieldbus.model import Point
from fieldbus.mqtt import peering
from fieldbus.mqtt.arrivals import dated
from fieldbus.mqtt.peering import PeeringError, Want, topic
from fieldbus.mqtt.records import (
    Acknowledgement,
    Place,
    RecordError,
    chunk_items,
    decode_acknowledgement,
    decode_place,
    encode_acknowledgement,
)
from fieldbus.routing.policy import Edge, When
from fieldbus.routing.router import Router
from fieldbus.store.link import StoreLink

PEERS_FOLDER = "peers"
WATCH_S = 15.0
"""So long after a watcher looked, what only watchers want is asked for."""
MAX_PEERS = 256
_BOOTS_KEPT = 8
_LOG = logging.getLogger("fieldbus")


class Surroundings(Protocol):
    """What is needed of the gateway."""

    router: Router

    @property
    def points(self) -> Mapping[str, Point]:
        """All points by address."""
        ...

    def reload_soon(self, why: str) -> None:
        """Load the configuration anew."""

    def births_changed(self) -> None:
        """Learn that what we say of ourselves is not what was said last."""


class _SpoolKeeper:
    """Keeps samples of another's stream in one of ours."""

    def __init__(self, spool: Spool, sink: PeerSink | TopicSink, name: str) -> None:
        self._spool = spool
        self._sink = sink
        self._name = name

    @property
    def place(self) -> object:
        """The spool."""
        return self._spool

    def mark_of(self, source: str) -> int:
        """Return up to which number of a stream there are samples on disk."""
        return self._spool.marks.get(f"{source}>{self._name}", 0)

    def has_room(self, count: int) -> bool:
        """Return whether so many samples can be taken now."""
        return self._spool.trouble is None

    def take(self, deliveries: Sequence[Delivery], source: str, seq: int, done: Callable[[], None]) -> None:
        """Keep samples, and the number of the last, in one transaction."""
        with self._spool.committer.held():
            self._sink.send(deliveries)
            self._spool.mark(f"{source}>{self._name}", seq, done)


class Exchange:
    """All there is to other gateways and to brokers that is more than a message."""

    def __init__(
        self,
        me: str,
        version: str,
        data_dir: Path,
        spool: Spool,
        around: Surroundings,
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        self._clock = clock
        self.me = me
        self.spool = spool
        self.intake = Intake(me)
        self.takers: dict[str, Taker] = {}
        """Sinks, by the name that targets have for them."""
        self.desk: Desk | None = None
        self._version = version
        self._folder = data_dir / PEERS_FOLDER
        self._around = around
        self._links: dict[str, PeerLink] = {}
        self._plain: dict[str, Link] = {}
        self._stores: dict[str, StoreLink] = {}
        self._shares: dict[str, re.Pattern[str]] = {}
        self._fed: list[tuple[Edge, str, str]] = []
        self._extra_points: frozenset[Point] = frozenset()
        self._fallbacks: frozenset[Point] = frozenset()
        self._topics: dict[str, TopicSink] = {}
        self._pumps = Pumps()
        self._online: dict[Key, bool] = {}
        self._demand = Demand(
            me, spool, self.takers, self._pumps, lambda key: self._online.get(key, False), around, clock=clock
        )
        self._said: dict[tuple[str, str], bytes] = {}
        self._live: dict[tuple[str, str], frozenset[str]] = {}
        """What was asked of peers to be sent live: link and peer to addresses there."""
        self._births: dict[str, bytes] = {}
        self._boots: dict[str, list[str]] = {}
        """The incarnations of each gateway's spool that came last."""
        self._faulty: set[tuple[str, str]] = set()
        self._watched_s = -WATCH_S
        self._said_watched = False
        """Whether what we said that we want is what watchers want too."""

    # --- what the gateway calls

    def set_plant(
        self,
        links: Mapping[str, Link],
        edges: Sequence[Edge],
        needed: Iterable[Point],
        shares: Mapping[str, Sequence[str]],
        fallbacks: Collection[Point] = (),
    ) -> list[Edge]:
        """Take a plant, at start or after a reload.

        Args:
            links: all links by name.
            edges: all routes.
            needed: points whose present value is needed beside what routes read.
            shares: link to the patterns of points that other gateways may have.
            fallbacks: points that have a safe value, for when their source is silent.

        Returns:
            The edges that the routing table is to have; the others are fed by other gateways' streams.
        """
        self._plain = dict(links)
        self._links = {name: link for name, link in links.items() if isinstance(link, PeerLink)}
        self._stores = {name: link for name, link in links.items() if isinstance(link, StoreLink)}
        self._shares = {
            name: re.compile(
                "|".join(".*".join(map(re.escape, item.split("*"))) for item in patterns) or "(?!)"
            )
            for name, patterns in shares.items()
        }
        for link in self._links.values():
            link.correspondent = self
        for name in [name for name in self._topics if name not in self._links]:
            self._topics.pop(name).stop()
        kept = []
        self._fed = []
        peer_of = self._peer_of_device()
        for edge in edges:
            target = edge.target
            if not target.is_durable:
                kept.append(edge)
                continue
            name = target.link.partition(" ")[0]
            if name in self._links:
                self._topic_sink(name)
                edge.target = target._replace(link=_topics_name(name))
            peer = peer_of.get(edge.source.device)
            if peer is not None:
                self._fed.append((edge, peer, edge.target.link))
            else:
                kept.append(edge)
        for name in self._links:
            if _topics_name(name) in self.spool.abouts:
                self._topic_sink(name)  # what is left of routes that are no more goes out all the same
        self._extra_points = frozenset(needed)
        self._fallbacks = frozenset(fallbacks)
        self._demand.links, self._demand.shares = self._links, self._shares
        self._demand.restore()
        for name in [name for name in self.takers if " " not in name]:
            del self.takers[name]  # a link of the plant before
        return kept

    def rewire(self) -> None:
        """Have the routing table, which is another one now, feed the sinks."""
        self._wants_changed()

    def start(self) -> None:
        """Begin to send."""
        for sink in self._topics.values():
            sink.start()
        for wanted in self._demand.wanted.values():
            if wanted.durable is not None:
                self._pumps.start(wanted.durable.pump)

    async def stop(self) -> None:
        """Stop sending."""
        await self._pumps.stop_all()

    def watched(self) -> None:
        """Learn that somebody looks at all points."""
        now_s = self._clock.monotonic_s()
        was_watched = self._is_watched
        self._watched_s = now_s
        if not was_watched:
            self._say_wants()

    def ask_again(self) -> None:
        """Say anew what we want of peers: they send the newest of it, which a new route has missed."""
        self._said.clear()

    def look_round(self) -> None:
        """Once a second: tell peers that we are there; want no more what nobody watches any more."""
        for pump in self._pumps:
            pump.wake()
        now_s = self._clock.monotonic_s()
        if self._demand.visitors_gone(now_s):
            self._wants_changed()
        self._demand.beat(now_s)
        if self._is_watched is not self._said_watched:
            self._say_wants()
        if self._births and not self._folder.is_dir():  # deleted, perhaps with the whole data folder
            for peer, content in self._births.items():
                self._keep_birth(peer, content)

    def stuck(self) -> str | None:
        """Return what makes no progress though it could, None if all does."""
        stream = self._pumps.ended()
        if stream is not None:
            return f"stream {stream} has ended"
        return None if self.spool.committer.is_open else "the spool is not written any more"

    @property
    def _is_watched(self) -> bool:
        return self._clock.monotonic_s() - self._watched_s < WATCH_S

    def streams(self) -> dict[str, Stream]:
        """Return the streams by a name for people."""
        return {name.replace(" ", "/"): stream for name, stream in self.spool.streams.items()}

    def conflated(self) -> int:
        """Return how many live samples were replaced by newer ones."""
        return sum(wanted.live.conflated for wanted in self._demand.wanted.values())

    # --- the correspondent of links

    def connected(self, link: str) -> None:
        """Say who we are and what we want."""
        self._said = {key: value for key, value in self._said.items() if key[0] != link}
        # Who is there the broker says now, and to whoever is not nothing can be sent.
        self._online = {key: value for key, value in self._online.items() if key[0] != link}
        self._say_birth(link)
        for name, peer in self._demand.wanted:
            if name == link and not peering.is_visitor(peer):
                self._links[link].look_after(peer)
        self._say_wants()
        self._around.births_changed()
        if link in self._topics:
            self._topics[link].begin_again()
        for pump in self._pumps:
            pump.wake()

    def wants_each(self, point: Point) -> bool:
        """Return whether a route wants every sample of a point, or keeps what it gets."""
        edges = self._around.router.edges_from(point)
        return any(edge.policy.when is When.SAMPLE or edge.target.is_durable for edge in edges)

    def peer_is(self, link: str, peer: str, *, is_online: bool) -> None:
        """Learn that a peer is there, or is not."""
        was_online = self._online.get((link, peer), False)
        self._online[link, peer] = is_online
        wanted = self._demand.wanted.get((link, peer))
        if wanted is None or wanted.durable is None:
            return
        if is_online and not was_online:
            wanted.durable.pump.begin_again()
        else:
            wanted.durable.pump.wake()

    def instructed(self, link: str, instruction: Instruction) -> None:
        """Take a command."""
        if self.desk is not None:
            self.desk.instruct(instruction)

    def wanted(self, link: str, peer: str, payload: bytes) -> None:
        """Learn which of our points a peer wants."""
        try:
            want = peering.decode_want(payload)
        except PeeringError as error:
            self._fault(link, peer, f"what it wants: {error}")
            return
        key = (link, peer)
        if peering.is_visitor(peer):
            want = Want(want.live)
            self._demand.visited_s[key] = self._clock.monotonic_s()
            before = self._demand.wanted.get(key)
            if before is not None and before.want == want:
                return
        if key not in self._demand.wanted and len(self._demand.wanted) >= MAX_PEERS:
            self._fault(link, peer, f"{MAX_PEERS} gateways want something already; it gets nothing")
            return
        if not want:
            self._demand.forget(key)
        else:
            self._demand.take(key, want)
            if not peering.is_visitor(peer):
                self._links[link].look_after(peer)
            self._demand.send_all(key)
            durable = self._demand.wanted[key].durable
            if durable is not None:
                durable.pump.begin_again()  # what was sent before it was there to hear it is lost
        self._wants_changed()

    def acknowledged(self, link: str, peer: str, payload: bytes) -> None:
        """Learn what a peer has committed."""
        try:
            said = decode_acknowledgement(payload)
        except RecordError as error:
            self._fault(link, peer, str(error))
            return
        wanted = self._demand.wanted.get((link, peer))
        if wanted is None or wanted.durable is None:
            return
        pump = wanted.durable.pump
        number = pump.stream.number_of(said.boot, said.seq)
        if said.stream != pump.stream.name or number is None:
            return
        pump.acknowledged(number)
        if said.refused is not None:
            first, last = (pump.stream.number_of(said.boot, seq) for seq in said.refused)
            if first is not None and last is not None:
                pump.refused(first, last)

    def arrived(self, link: str, peer: str, payload: bytes) -> None:
        """Take a chunk of a peer's stream."""
        try:
            place, row = decode_place(payload)
        except RecordError as error:
            self._fault(link, peer, f"a chunk of its stream: {error}")
            return
        if place.gateway != peer:
            self._fault(link, peer, "a chunk that says it is of another gateway")
            return
        try:
            items = chunk_items(place, row)
        except RecordError as error:
            self._fault(link, peer, f"a chunk of its stream: {error}")
            self.intake.met(peer, place)
            self._acknowledge(link, peer, place, refused=(place.first, place.last))
            return
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        tolerance_ns = round(self._links[link].clock_tolerance_s * 1e9)
        items = [item._replace(sample=dated(item.sample, now_ns, tolerance_ns)) for item in items]

        def committed() -> None:
            self._acknowledge(link, peer, place)

        if self.intake.take(peer, place, items, lambda time_ns: now_s - (now_ns - time_ns) / 1e9, committed):
            committed()
            return
        self._look_for_doubles(link, place)
        if not place.is_historical:
            # What is wanted live too comes live: two ways have no order between them.
            live = self._live.get((link, peer), frozenset())
            samples = [(item.head[0], item.sample) for item in items if item.head[0] not in live]
            self._links[link].take_samples(peer, samples)

    def _look_for_doubles(self, link: str, place: Place) -> None:
        """Say it if two gateways go by one name: their spools then come by turns."""
        boots = self._boots.setdefault(place.gateway, [])
        if boots and boots[-1] != place.boot and place.boot in boots:
            self._fault(link, place.gateway, "two gateways have this name: what both send is mixed up")
        if not boots or boots[-1] != place.boot:
            boots.append(place.boot)
            del boots[:-_BOOTS_KEPT]

    def _acknowledge(
        self, link: str, peer: str, place: Place, refused: tuple[int, int] | None = None
    ) -> None:
        """Say what we have of a stream, and what of it we cannot read."""
        seq = self.intake.committed(place.source, peer)
        port = self._links.get(link)
        if seq is not None and port is not None:
            said = Acknowledgement(place.boot, place.stream, seq, refused)
            port.publish(topic(peer, "ack", self.me), encode_acknowledgement(said), None)

    def born(self, link: str, peer: str, payload: bytes) -> None:
        """Learn what points a peer has; if they are others than were known, load them."""
        if not payload:
            return
        try:
            birth = peering.decode_birth(payload, peer)
        except PeeringError as error:
            self._fault(link, peer, f"what it says of its points: {error}")
            return
        # Without what changes each time, so that a peer that only came anew changes nothing.
        content = peering.encode_birth(peer, birth.version, birth.points, 0)
        if self._births.get(peer) == content:
            return
        self._births[peer] = content
        if self._keep_birth(peer, content):
            self._around.reload_soon(f"gateway {peer} says which points it has ({len(birth.points)})")

    def _keep_birth(self, peer: str, content: bytes) -> bool:
        """Keep what a peer says of its points; return whether that is news and is kept."""
        file = self._folder / f"{peer}.json"
        try:
            if file.is_file() and read_own(file) == content:
                return False
            make_folder(self._folder)
            replace_own(file, content)
        except OSError as error:
            text = os_reason(error)
            _LOG.warning("%s: its points cannot be kept (%s)", file, text)
            return False
        return True

    def _fault(self, link: str, peer: str, text: str) -> None:
        if (peer, text) not in self._faulty and len(self._faulty) < 1000:
            self._faulty.add((peer, text))
            _LOG.warning("%s: gateway %s: %s", link, peer, text)

    def _wants_changed(self) -> None:
        """Have the routing table feed the sinks, and the intake what comes from peers."""
        peer_of = self._peer_of_device()
        extra: list[Edge] = []
        fed = list(self._fed)
        for edge, is_durable in self._demand.edges():
            source = peer_of.get(edge.source.device)
            if source is not None and is_durable:
                fed.append((edge, source, edge.target.link))
            else:
                extra.append(edge)
        self._around.router.set_extra(extra)
        keepers: dict[str, Keeper] = {}
        for _, _, name in fed:
            if name in self._stores:
                keepers[name] = self._stores[name]
            else:
                sink = self.takers[name]
                if isinstance(sink, PeerSink | TopicSink):
                    keepers[name] = _SpoolKeeper(self.spool, sink, name)
        self.intake.set(fed, keepers)
        self._say_wants()

    # --- what we want and say

    def _peer_of_device(self) -> dict[str, str]:
        return {device: peer for link in self._links.values() for peer, device in link.peers.items()}

    def _say_wants(self) -> None:
        self._said_watched = self._is_watched
        for name, link in self._links.items():
            if not link.is_sending:
                continue
            for peer, device in link.peers.items():
                want = self._want_of(peer, device)
                payload = peering.encode_want(want)
                if self._said.get((name, peer)) == payload:
                    continue
                self._said[name, peer] = payload
                self._live[name, peer] = frozenset(want.live)
                link.publish(topic(peer, "want", self.me), payload, None, is_retained=True)
                link.forget_unwanted(peer, {*want.live, *want.durable})

    def _want_of(self, peer: str, device: str) -> Want:
        live: dict[str, bool] = {}
        router = self._around.router
        for point in self._around.points.values():
            if point.device != device or not point.access.can_read:
                continue
            edges = router.edges_from(point)
            if edges:
                live[point.name] = any(map(self._needs_each, edges))
            elif point in self._extra_points or self._is_watched:
                live[point.name] = False
        return Want(live, self.intake.wants(peer))

    def _needs_each(self, edge: Edge) -> bool:
        """Return whether a route needs every sample: to send it, or to know that the source is there."""
        policy = edge.policy
        is_timed = policy.max_age_s is not None or edge.target.point in self._fallbacks
        return policy.when is When.SAMPLE or is_timed

    def _say_birth(self, link: str) -> None:
        share = self._shares.get(link)
        points = [
            point
            for address, point in self._around.points.items()
            if share is None or share.fullmatch(address)
        ]
        birth = peering.encode_birth(self.me, self._version, points, self._clock.wall_ns())
        self._links[link].publish(topic(self.me, "birth"), birth, None, is_retained=True)

    def say_births(self) -> None:
        """Say anew what points we have."""
        for name, link in self._links.items():
            if link.is_sending:
                self._say_birth(name)

    def say_health(self, health: bytes) -> None:
        """Say how we are."""
        for link in self._links.values():
            if link.is_sending:
                link.publish(
                    topic(self.me, "health"),
                    health,
                    None,
                    is_retained=True,
                    expiry_s=peering.HEALTH_EXPIRY_S,
                )

    # --- pumps

    def _topic_sink(self, name: str) -> TopicSink:
        sink = self._topics.get(name)
        if sink is None or sink.link is not self._links[name]:  # the link was made anew
            if sink is not None:
                sink.stop()
            sink = self._topics[name] = TopicSink(
                self._links[name], self._plain[name], _topics_name(name), self.spool, self._pumps,
                clock=self._clock,
            )  # fmt: skip
            self.takers[_topics_name(name)] = sink
            sink.start()
        return sink

    def backlog(self) -> dict[str, Any]:
        """Return what waits in the spool, by stream."""
        return {
            name: {"backlog": stream.backlog, "dropped": stream.dropped}
            for name, stream in sorted(self.streams().items())
        }


def _topics_name(link: str) -> str:
    return f"{link} topics"
