"""The link to an MQTT 5 broker.

Rules:

* What routes send waits in a queue of our own, bounded in messages; when it is full the oldest message is
  dropped and counted. It also fills while the broker is away, and is sent in order when it is back.
* A message leaves the queue when the broker has acknowledged it (QoS 1); what was under way when the
  connection broke is sent again, first.
* Samples for one topic that gathers travel together: `gather` says which and when.
* Birth and last will, retained, on ``fieldbus/<gateway>/status``: others see whether we are there.
* Points with a topic are subscribed; when the broker is lost they are bad at once (the gateway does
  that), and retained messages bring them back. `inbound` has them; of a topic whose routes want changes only,
  the newest message counts if more come than can be taken.
* What other gateways say and want, and commands, are below ``fieldbus/``: `peers`.
* There are up to three connections: one for peers, commands and everything that has to go out at once; one,
  with ``-topics`` behind the client id, for the topics of points, so that a flood of commands does not hold
  values up or push them out of the broker's queue; and, from the first message that routes send, one that
  publishes, with ``-data``. If one is lost, all are.

Design: `session` says how messages come in, `publisher` how messages of routes go out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.link import (
    NEVER,
    Bundle,
    Correspondent,
    Delivery,
    Emit,
    Handover,
    Report,
    WriteOutcome,
    WriteResult,
)
from fieldbus.model import Group, Point, Quality, Sample, Value
from fieldbus.mqtt import peering
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.arrivals import CLOCK_TOLERANCE_S
from fieldbus.mqtt.gather import DEFAULT_WINDOW_S
from fieldbus.mqtt.inbound import TopicReader
from fieldbus.mqtt.opening import guess
from fieldbus.mqtt.outbound import TopicWriter
from fieldbus.mqtt.packets import Subscription, publish_properties
from fieldbus.mqtt.payload import TopicPoint
from fieldbus.mqtt.peer_port import PeerPort
from fieldbus.mqtt.peers import BEATS, Peers, RemoteGateway
from fieldbus.mqtt.presence import LOST, SHUT_DOWN, Presence
from fieldbus.mqtt.publisher import Publisher
from fieldbus.mqtt.session import Session, total
from fieldbus.mqtt.takeovers import Takeovers
from fieldbus.mqtt.tls import TlsFiles, context_of
from fieldbus.sample_json import sample_bytes

_GOODBYE_S = 2.0
_OURS = f"{peering.ROOT}/"


class MqttLink:
    """One broker."""

    is_listener = False

    def __init__(
        self,
        name: str,
        gateway: str,
        host: str,
        port: int,
        points: Sequence[TopicPoint],
        *,
        version: str = "",
        username: str | None = None,
        password: str | None = None,
        client_id: str | None = None,
        keepalive_s: float = 30.0,
        qos: int = 1,
        is_retained: bool = True,
        max_queue: int = 10_000,
        gather_s: float = DEFAULT_WINDOW_S,
        is_announced: bool = True,
        tls: TlsFiles | None = None,
        remotes: Sequence[RemoteGateway] = (),
        me: str | None = None,
        clock_tolerance_s: float = CLOCK_TOLERANCE_S,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what the link works with; nothing is opened.

        Args:
            gather_s: how long a gathered message waits for the rest of it.
            is_announced: whether birth and last will tell others of us, and we hear commands.
            tls: with what the connection is secured; None if it is not.
            remotes: other gateways whose points are devices of ours.
            me: under which name others send to us, if it is not the gateway's.
            clock_tolerance_s: how far the time of a sample may lie in the future.
            clock: the gateway's.
        """
        self._clock = clock
        self.clock_tolerance_s = clock_tolerance_s
        self._options: dict[str, Any] = {
            "version": version, "username": username, "password": password, "keepalive_s": keepalive_s,
            "qos": qos, "is_retained": is_retained, "max_queue": max_queue, "gather_s": gather_s, "tls": tls,
            "remotes": remotes, "clock": clock,
        }  # fmt: skip
        self._tls = tls
        self.places = points
        """The points that live on topics."""
        self._is_announced = is_announced
        self.name = name
        self.host = host
        self.port = port
        self._gateway = gateway
        self._username = username
        self._password = password
        self._client_id = client_id or f"fieldbus-{gateway}-{name}"
        self._keepalive_s = keepalive_s
        self._is_retained = is_retained
        self._topic_of = {place.point: place.topic for place in points}
        self._counters = dict.fromkeys(("rx_bad", "peer_faults", "peer_out_of_order"), 0)
        self._me = me or gateway
        self._peers = Peers(
            self._me, username or gateway, remotes, self._counters,
            tolerance_s=clock_tolerance_s, clock=clock,
        )  # fmt: skip
        self._reader = TopicReader(points, self._counters, tolerance_s=clock_tolerance_s, clock=clock)
        self.groups: Sequence[Group] = self._reader.groups + self._peers.groups
        self.remotes = remotes
        """Other gateways whose points are devices of ours."""
        self._publisher = Publisher(
            name, host, port, f"{self._client_id}-data", username=username, password=password,
            keepalive_s=keepalive_s, qos=qos, is_retained=is_retained, max_queue=max_queue,
            server_name=None if tls is None else tls.server_name, clock=clock,
        )  # fmt: skip

        def session(client_id: str) -> Session:
            return Session(
                name, host, port, client_id, conflates=self._conflates, username=username, password=password,
                keepalive_s=keepalive_s, server_name=None if tls is None else tls.server_name,
            )  # fmt: skip

        self._control = session(self._client_id)
        self._takeovers = Takeovers(self._client_id)
        self._port = PeerPort(name, gateway, self._control, self._publisher, self._peers)
        self._control.is_held_back = lambda: self._port.is_held_back
        self._topics = self._control
        """The session of the topics of points; the same if there are no peers and commands."""
        if self._reader.topics and (is_announced or remotes):
            self._topics = session(f"{self._client_id}-topics")
        self._sessions = list(dict.fromkeys((self._control, self._topics)))
        self._writer = TopicWriter(self._publisher.put, points, gather_s, clock=clock)
        self._presence = Presence(name, peering.topic(gateway, "status"), version, keepalive_s, clock=clock)
        self._farewell = ""
        """Why we would be offline now."""
        self._is_open = False
        self._is_running = self._is_hearing = False

    def aside(self, client_id: str) -> MqttLink:
        """Return a link to the same broker that may be used while this one is, unannounced.

        A broker ends the session of a client when another comes with its id.
        """
        return MqttLink(
            self.name, self._gateway, self.host, self.port, self.places,
            client_id=client_id, is_announced=False, me=f"{self._username or self._gateway}/{client_id}",
            **self._options,
        )  # fmt: skip

    @property
    def endpoint(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def status_topic(self) -> str:
        """Where birth and last will are."""
        return self._presence.topic

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start, and how many messages wait."""
        return {**self._publisher.counters, **self._counters, **total(self._sessions)}

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Of other gateways, how far their clocks are ahead of ours."""
        return {device: {"clock_offset_ms": ahead_ms} for device, ahead_ms in self._peers.offsets_ms.items()}

    async def connect(self) -> None:
        """Connect, and say that we are there."""
        self._farewell = LOST
        # Each session has a context of its own: files may have been renewed.
        context = None if self._tls is None else context_of(self._tls)
        self._publisher.tls = context
        try:
            for session in self._sessions:
                session.tls = context
                is_first = session is self._control and self._is_announced
                await session.connect(self._presence.will() if is_first else None)
        except LinkDownError as error:
            raise LinkDownError(guess(str(error), self._tls)) from error
        self._is_open = True
        if self._publisher.is_wanted:
            await self._publisher.connect()
        if self._is_announced:
            await self._presence.say(self._control, "online")

    async def run(self, emit: Emit, report: Report) -> None:
        """Subscribe, receive and send until the broker is lost."""
        if not self._is_open:
            raise LinkDownError("not connected")
        self._farewell = SHUT_DOWN
        self._peers.start(self.name, emit, report)
        try:
            await self._hear_others(emit)
            self._is_running = True
            if self.correspondent is not None:
                self.correspondent.connected(self.name)
                self._peers.repeat(self.name)
            elif self.remotes:
                self._want_all(is_wanted=True)
            await self._hear_all(emit)
            self._is_hearing = True
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._publish())
                for session in self._sessions:
                    tasks.create_task(session.run())
        except* LinkDownError as group:
            self._farewell = LOST
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            text = self._takeovers.reason(str(error), self._clock.monotonic_s())
            raise LinkDownError(text) from error
        raise LinkDownError("connection closed")

    async def _hear_others(self, emit: Emit) -> None:
        """Subscribe to what other gateways say; what comes is handed on from the first message."""
        ours = self._is_announced or bool(self.remotes)

        def take(message: Publish) -> None:
            if ours and message.topic.startswith(_OURS):
                self._port.take(message)
            else:
                self._reader.take(message, emit)

        self._control.start(take)
        if ours:
            await self._control.subscribe(self._port.subscriptions())

    async def _hear_all(self, emit: Emit) -> None:
        """Subscribe to what we have something to send for: what others ask of us, and topics of points."""
        if self._is_announced or self.remotes:
            await self._control.subscribe(self._port.requests(hears_commands=self._is_announced))
        if self._topics is not self._control:
            self._topics.start(lambda message: self._reader.take(message, emit))
        self._reader.refuse(
            await self._topics.subscribe([Subscription(topic) for topic in self._reader.topics]), emit
        )

    def _conflates(self, topic: str) -> bool:
        """Return whether only the newest message of a topic matters."""
        correspondent = self.correspondent
        if correspondent is None:
            return self._reader.conflates(topic, lambda _: False)
        return self._reader.conflates(topic, correspondent.wants_each)

    async def _publish(self) -> None:
        """Keep the second connection, from the first message on."""
        if not self._publisher.is_connected:
            await self._publisher.until_wanted()
            await self._publisher.connect()
        await self._publisher.run()

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Queue routed samples; give commands for points of other gateways."""
        if not self.remotes:
            self._writer.send(deliveries)
            return ()
        refused, rest = [], []
        for delivery in deliveries:
            point, value = delivery.target.point, delivery.sample.value
            if point is None or delivery.target.topic is not None or not self._peers.has(point):
                rest.append(delivery)
            elif not self.is_sending:
                refused.append(delivery)
            elif value is not None:
                self._peers.send(self._port, point, value)
        self._writer.send(rest)
        return refused

    def gather(self, bundle: Bundle) -> None:
        """Put what needs no treatment into the message of its topic."""
        self._writer.gather(bundle)

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Publish values on the topics of their points; of another gateway's points, ask it to write them."""
        results = []
        for point, value in values.items():
            if self._clock.monotonic_s() >= until_s:
                results.append(WriteResult(point, value, WriteOutcome.EXPIRED, "its turn came too late"))
                continue
            if self._peers.has(point):
                results.append(await self._peers.write(self._port, point, value, until_s=until_s))
                continue
            sample = Sample(value, Quality.GOOD, None, self._clock.wall_ns())
            try:
                payload = sample_bytes(point, sample)
                await self._control.publish(self._topic_of[point], payload, is_retained=self._is_retained)
            except (LinkDownError, RefusedError) as error:
                results.append(WriteResult(point, value, WriteOutcome.FAILED, str(error)))
            else:
                results.append(WriteResult(point, value, WriteOutcome.WRITTEN))
        return results

    async def close(self) -> None:
        """Say goodbye if that is possible, keep what was under way for the next session."""
        if self._is_running and self.correspondent is None and self.remotes:
            self._want_all(is_wanted=False)
        was_open, self._is_open = self._is_open, False
        self._is_running = self._is_hearing = False
        self._peers.stop()
        self._port.stop()
        for session in self._sessions:
            await session.finish(is_lost=self._farewell == LOST)
        self._reader.forget()
        self._writer.flush()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                if was_open:
                    await self._say_goodbye()
        except (LinkDownError, TimeoutError):
            pass
        finally:
            self._publisher.close()
            for session in self._sessions:
                session.close()

    async def _say_goodbye(self) -> None:
        if self._publisher.waiting and not self._publisher.is_connected and self._farewell == SHUT_DOWN:
            await self._publisher.connect()  # the very first messages came just now
        await self._publisher.drain()
        if self._is_announced and self._control.is_connected:
            await self._presence.say(self._control, "offline", self._farewell)

    # --- other gateways, and commands

    @property
    def correspondent(self) -> Correspondent | None:
        """Who is told of what other gateways say; None in a one-shot."""
        return self._peers.correspondent

    @correspondent.setter
    def correspondent(self, correspondent: Correspondent | None) -> None:
        self._peers.correspondent = correspondent

    @property
    def is_sending(self) -> bool:
        """Whether what is published now goes out now."""
        return self._is_running

    @property
    def peers(self) -> Mapping[str, str]:
        """The gateways whose points are devices of ours: gateway to device."""
        return {remote.gateway: remote.device for remote in self.remotes}

    def publish(
        self,
        topic: str,
        payload: bytes,
        done: Callable[[Handover], None] | None,
        *,
        is_retained: bool = False,
        expiry_s: int | None = None,
    ) -> None:
        """Send a message that its giver keeps until `done` says what became of it."""
        if self.is_sending:
            properties = b"" if expiry_s is None else publish_properties(expiry_s=expiry_s)
            self._publisher.put_sure(topic, payload, done, is_retained=is_retained, properties=properties)
        elif done is not None:
            done(Handover.GIVEN_BACK)

    def room_for(self, topic: str) -> int:
        """Return how long a payload on a topic may be, in bytes, so that the broker takes it."""
        return self._publisher.room_for(topic)

    def look_after(self, peer: str) -> None:
        """Have `peer_is` told of a gateway that is no device of ours."""
        self._port.look_after(peer)

    @property
    def beat_s(self) -> float:
        """How often something has to be sent to peers, so that they know that we are there."""
        return self._keepalive_s / BEATS

    def forget_unwanted(self, peer: str, wanted: Collection[str]) -> None:
        """Say that points of a peer have no value that nobody wants any more, by their addresses there."""
        self._peers.forget_unwanted(peer, wanted)

    def take_samples(self, peer: str, samples: Sequence[tuple[str, Sample]]) -> None:
        """Emit samples of a peer, by their addresses there."""
        self._peers.emit_samples(peer, samples)

    def _want_all(self, *, is_wanted: bool) -> None:
        """Ask other gateways for their values, for as long as a one-shot lasts."""
        for remote in self.remotes:
            want = peering.Want(dict.fromkeys(remote.points, True)) if is_wanted else peering.Want()
            topic = peering.topic(remote.gateway, "want", self._me)
            self._publisher.put_sure(topic, peering.encode_want(want), None)
