"""What other gateways, and people who watch, want of us.

Rules:

* What a peer wants durably stands in the spool beside its stream, so that nothing is missed while the broker
  is away, also after a restart.
* What a visitor wants it has to say again and again (`peering.VISIT_S`).
* Nobody gets what `share` of the broker does not name, nor what is its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from fieldbus.clock import SYSTEM, Clock
from fieldbus.durable.spool import Spool
from fieldbus.gateway.exchange.pump import HISTORICAL_S
from fieldbus.gateway.exchange.pumps import Pumps
from fieldbus.gateway.exchange.sinks import LiveSink, PeerSink, Taker
from fieldbus.link import Delivery, PeerLink, Target
from fieldbus.model import HeldSample, Point
from fieldbus.mqtt import peering
from fieldbus.mqtt.peering import PeeringError, Want
from fieldbus.mqtt.records import encode_row
from fieldbus.routing.policy import Edge, OnBad, Policy, When
from fieldbus.routing.router import Router

_LOG = logging.getLogger("fieldbus")

Key = tuple[str, str]
"""A broker's link and a peer on it."""


class Surroundings(Protocol):
    """What is needed of the gateway."""

    router: Router

    @property
    def points(self) -> Mapping[str, Point]:
        """All points by address."""
        ...


@dataclass(slots=True)
class Wanted:
    """What one peer wants of us."""

    want: Want
    live: LiveSink
    durable: PeerSink | None = None


class Demand:
    """All that is wanted, and the sinks that it goes into."""

    def __init__(
        self,
        me: str,
        spool: Spool,
        takers: dict[str, Taker],
        pumps: Pumps,
        is_online: Callable[[Key], bool],
        around: Surroundings,
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what it works with.

        Args:
            me: our name.
            spool: where durable streams are.
            takers: where sinks stand by the name that targets have for them.
            pumps: send streams.
            is_online: tells whether a peer is there.
            around: the gateway.
            clock: its time.
        """
        self._clock = clock
        self.links: Mapping[str, PeerLink] = {}
        self.shares: Mapping[str, re.Pattern[str]] = {}
        """Link to the addresses of points that others may have."""
        self.wanted: dict[Key, Wanted] = {}
        self.visited_s: dict[Key, float] = {}
        """When a visitor last said what it wants."""
        self.takers = takers
        self.me = me
        self.spool = spool
        self.is_online = is_online
        self._pumps = pumps
        self._around = around

    def restore(self) -> None:
        """Take up what peers wanted before, and make their edges for the points that there are now."""
        for about in list(self.spool.abouts.values()):
            link, peer = about.get("link"), about.get("peer")
            if isinstance(link, str) and isinstance(peer, str) and (link, peer) not in self.wanted:
                if link not in self.links:
                    _LOG.warning("the spool keeps samples for gateway %s on %s, which is no broker any more",
                                 peer, link)  # fmt: skip
                    continue
                try:
                    want = peering.want_of(about.get("want", {}))
                except PeeringError:
                    continue
                self.take((link, peer), Want({}, want.durable))
        for key, wanted in list(self.wanted.items()):
            if key[0] not in self.links:
                self.forget(key)
                continue
            self.take(key, wanted.want)

    def take(self, key: Key, want: Want) -> None:
        """Give a peer what it wants from now on."""
        link, peer = key
        port = self.links[link]
        wanted = self.wanted.get(key)
        if wanted is None or wanted.live.link is not port:  # the link was made anew
            before = wanted
            wanted = self.wanted[key] = Wanted(want, LiveSink(port, self.me, peer, clock=self._clock))
            if before is not None and before.durable is not None:
                self._pumps.stop(before.durable.pump)
        wanted.want = want
        self.takers[live_name(link, peer)] = wanted.live
        if want.durable and wanted.durable is None:
            stream = self.spool.stream(data_name(link, peer), encode_row)
            wanted.durable = PeerSink(
                port, self.me, peer, stream, lambda: self.is_online(key), clock=self._clock
            )
            self.takers[data_name(link, peer)] = wanted.durable
            self._pumps.start(wanted.durable.pump)
        if wanted.durable is not None and not want.durable:
            self._pumps.stop(wanted.durable.pump)
            wanted.durable.stream.forget()
            self.takers.pop(data_name(link, peer), None)
            wanted.durable = None
        if wanted.durable is not None:
            about = {"link": link, "peer": peer, "want": peering.want_object(Want({}, want.durable))}
            if self.spool.abouts.get(wanted.durable.stream.name) != about:
                self.spool.abouts[wanted.durable.stream.name] = about
                wanted.durable.stream.set_about(about)

    def forget(self, key: Key) -> None:
        """Give a peer nothing any more."""
        link, peer = key
        wanted = self.wanted.pop(key, None)
        self.visited_s.pop(key, None)
        self.takers.pop(live_name(link, peer), None)
        if wanted is None or wanted.durable is None:
            return
        self._pumps.stop(wanted.durable.pump)
        self.takers.pop(data_name(link, peer), None)
        if link in self.links:
            wanted.durable.stream.forget()

    def edges(self) -> Iterator[tuple[Edge, bool]]:
        """Yield the edges that feed the sinks, and whether each is for a durable stream."""
        for (link, peer), wanted in self.wanted.items():
            for name, points, is_durable in (
                (live_name(link, peer), wanted.want.live, False),
                (data_name(link, peer), wanted.want.durable, True),
            ):
                for point, is_each in self.shared(link, peer, points):
                    when = When.SAMPLE if is_each else When.CHANGE
                    target = Target(name, None, point.address)
                    yield Edge(point, target, Policy(when=when, on_bad=OnBad.SEND)), is_durable

    def visitors_gone(self, now_s: float) -> bool:
        """Forget visitors that do not say any more what they want; return whether there were any."""
        gone = [key for key, seen_s in self.visited_s.items() if now_s - seen_s > peering.VISIT_S]
        for key in gone:
            self.forget(key)
        return bool(gone)

    def beat(self, now_s: float) -> None:
        """Tell all peers that we are there, if nothing else told them lately."""
        for (link, _), wanted in self.wanted.items():
            wanted.live.beat(now_s, self.links[link].beat_s)

    def shared(self, link: str, peer: str, wanted: Mapping[str, bool]) -> list[tuple[Point, bool]]:
        """Return the points that a peer may have of those that it wants."""
        share = self.shares.get(link)
        found = []
        for address, is_each in wanted.items():
            point = self._around.points.get(address)
            if (
                point is None
                or not point.access.can_read
                or (share is not None and not share.fullmatch(address))
            ):
                continue
            if point.origin.partition("/")[0] == peer:
                continue  # it is the peer's own
            found.append((point, is_each))
        return found

    def send_all(self, key: Key) -> None:
        """Send a peer the newest of all that it wants live."""
        link, peer = key
        wanted = self.wanted[key]
        router, now_s = self._around.router, self._clock.monotonic_s()
        items = []
        for point, _ in self.shared(link, peer, wanted.want.live):
            target = Target(live_name(link, peer), None, point.address)
            sample, batch = router.sample(point), router.batch_of(point)
            if batch is not None and now_s - batch.heard_s > HISTORICAL_S:
                sample = HeldSample(*sample)  # it is the newest, and no sign that its source is there
            if sample.time_ns:
                items.append(Delivery(target, point, sample))
        wanted.live.send(items)


def live_name(link: str, peer: str) -> str:
    """Return the name of the sink of what a peer wants live."""
    return f"{link} live {peer}"


def data_name(link: str, peer: str) -> str:
    """Return the name of the sink, and the stream, of what a peer wants durably."""
    return f"{link} data {peer}"
