"""The link to an MQTT 5 broker.

Rules:

* What routes send waits in a queue of our own, bounded in messages; when it is full the oldest goes
  and is counted. It also fills while the broker is away, and is sent in order when it is back.
* A message leaves the queue when the broker has acknowledged it (QoS 1); what was under way when the
  connection broke is sent again, first.
* Samples for one topic that gathers travel together: `gather` says which and when.
* Birth and last will, retained, on ``fieldbus/<gateway>/status``: others see whether we are there.
* Points with a topic are subscribed; when the broker is lost they are bad at once (the gateway does
  that), and retained messages bring them back.
* What other gateways say and want, and commands, are below ``fieldbus/``: `peers`.
* There are two connections: one for all of the above but the queue, with aiomqtt; and, from the first
  message that routes send, one that publishes, with ``-data`` behind the client id. If either is lost, both
  are.

Design: `publisher` says why messages do not go through aiomqtt.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError
from fieldbus.link import (
    NEVER,
    Bundle,
    Correspondent,
    Delivery,
    Emit,
    Report,
    WriteOutcome,
    WriteResult,
)
from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, Point, Quality, Sample, Value
from fieldbus.mqtt import packets, peering
from fieldbus.mqtt.connection import words
from fieldbus.mqtt.gather import DEFAULT_WINDOW_S, Gatherer
from fieldbus.mqtt.payload import TopicPoint, read
from fieldbus.mqtt.peers import BEATS, Peers, RemoteGateway
from fieldbus.mqtt.publisher import Publisher
from fieldbus.mqtt.tls import TlsFiles, context_of
from fieldbus.sample_json import gathered_bytes, iso_time, sample_bytes

# What aiomqtt and paho would say is said better by the gateway, once.
_LOGGER = logging.getLogger("fieldbus.mqtt.paho")
_LOGGER.setLevel(logging.CRITICAL)

_GOODBYE_S = 2.0
_OURS = f"{peering.ROOT}/"
_LOST = "connection lost"
_SHUT_DOWN = "shut down"


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
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what the link works with; nothing is opened.

        Args:
            gather_s: how long a gathered message waits for the rest of it.
            is_announced: whether birth and last will tell others of us, and we hear commands.
            tls: with what the connection is secured; None if it is not.
            remotes: other gateways whose points are devices of ours.
            me: under which name others send to us, if it is not the gateway's.
            clock: the gateway's.
        """
        self._clock = clock
        self._options: dict[str, Any] = {
            "version": version,
            "username": username,
            "password": password,
            "keepalive_s": keepalive_s,
            "qos": qos,
            "is_retained": is_retained,
            "max_queue": max_queue,
            "gather_s": gather_s,
            "tls": tls,
            "remotes": remotes,
            "clock": clock,
        }
        self._tls = tls
        self.places = points
        """The points that live on topics."""
        self._is_announced = is_announced
        self.name = name
        self.host = host
        self.port = port
        self._gateway = gateway
        self._version = version
        self._username = username
        self._password = password
        self._client_id = client_id or f"fieldbus-{gateway}-{name}"
        self._keepalive_s = keepalive_s
        self._is_retained = is_retained
        self._max_queue = max_queue
        self._topic_of = {place.point: place.topic for place in points}
        self._readers: dict[str, list[tuple[TopicPoint, Group]]] = {}
        self._last: dict[Group, Sample] = {}
        groups = []
        for place in points:
            if place.point.access.can_read:
                group = Group(f"{place.point.address} from {place.topic}", (place.point,))
                groups.append(group)
                self._readers.setdefault(place.topic, []).append((place, group))
        self._counters = dict.fromkeys(("received", "rx_bad", "peer_faults"), 0)
        self._me = me or gateway
        self._peers = Peers(self._me, username or gateway, remotes, self._counters, clock=clock)
        self.groups: Sequence[Group] = groups + self._peers.groups
        self.remotes = remotes
        """Other gateways whose points are devices of ours."""
        self._publisher = Publisher(
            name, host, port, f"{self._client_id}-data", username=username, password=password,
            keepalive_s=keepalive_s, qos=qos, is_retained=is_retained, max_queue=max_queue,
            server_name=None if tls is None else tls.server_name,
        )  # fmt: skip
        self._gatherer = Gatherer(self._publisher.put, gather_s)
        self._timer: asyncio.TimerHandle | None = None
        self._client: aiomqtt.Client | None = None
        self._farewell = ""
        """Why we would be offline now."""
        self._is_running = False
        self._tasks: set[asyncio.Task[None]] = set()

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
        return f"fieldbus/{self._gateway}/status"

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start, and how many messages wait."""
        return {**self._publisher.counters, **self._counters}

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing: topics have no response time."""
        return {}

    async def connect(self) -> None:
        """Connect, say that we are there, subscribe."""
        self._farewell = _LOST
        # Each connection has a context of its own: files may have been renewed.
        context = None if self._tls is None else context_of(self._tls)
        self._publisher.tls = context
        client = aiomqtt.Client(
            self.host,
            self.port,
            username=self._username,
            password=self._password,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            keepalive=max(1, round(self._keepalive_s)),
            will=self._will(),
            timeout=5.0,
            max_queued_incoming_messages=self._max_queue,
            logger=_LOGGER,
            tls_context=context,
        )
        try:
            await client.__aenter__()
        except (aiomqtt.MqttError, ssl.SSLError) as error:
            raise LinkDownError(refusal_of(error, self._tls)) from error
        self._client = client
        if self._publisher.is_wanted:
            await self._publisher.connect()
        try:
            if self._is_announced:
                await client.publish(self.status_topic, self._status("online"), qos=1, retain=True)
            # Without this nobody could tell a command that is kept from one that is given now.
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            topics = [(topic, options) for topic in self._readers]
            if self._is_announced or self.remotes:
                own = self._peers.subscriptions()
                topics += [
                    (topic, options) for topic in own if self._is_announced or "/command/" not in topic
                ]
            for first in range(0, len(topics), 100):
                await client.subscribe(topics[first : first + 100])
        except aiomqtt.MqttError as error:
            raise LinkDownError(reason_of(error)) from error

    async def run(self, emit: Emit, report: Report) -> None:
        """Receive and send until the broker is lost."""
        client = self._client
        if client is None:
            raise LinkDownError("not connected")
        self._farewell = _SHUT_DOWN
        self._peers.start(self.name, emit, report)
        self._is_running = True
        if self.correspondent is not None:
            self.correspondent.connected(self.name)
        elif self.remotes:
            self._want_all(is_wanted=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._publish())
                async for message in client.messages:
                    self._receive(message, emit)
        except* (aiomqtt.MqttError, LinkDownError) as group:
            self._farewell = _LOST
            error = group.exceptions[0]
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise LinkDownError(reason_of(error)) from error
        raise LinkDownError("connection closed")

    async def _publish(self) -> None:
        """Keep the second connection, from the first message on."""
        if not self._publisher.is_connected:
            await self._publisher.until_wanted()
            await self._publisher.connect()
        await self._publisher.run()

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Queue routed samples, those of one call for one gathering topic as one message."""
        gathered: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
        refused: list[Delivery] = []
        put = self._publisher.put
        for delivery in deliveries:
            target = delivery.target
            if target.topic is None:
                point, value = target.point, delivery.sample.value
                if point is not None and self._peers.has(point):
                    if not self.is_sending:
                        refused.append(delivery)
                    elif value is not None:
                        self._peers.send(self, point, value)
                elif target.point is not None:
                    put(self._topic_of[target.point], sample_bytes(target.point, delivery.sample))
            elif target.is_shared:
                self._gatherer.take_delivery(target.topic, delivery, self._clock.monotonic_s())
                self._arm()
            elif target.gathers:
                key = target.topic, delivery.source.device
                gathered.setdefault(key, []).append((target.label, delivery.sample))
            else:
                put(target.topic, sample_bytes(delivery.source, delivery.sample))
        for (topic, _), samples in gathered.items():
            put(topic, gathered_bytes(max(sample.time_ns for _, sample in samples), samples))
        return refused

    def gather(self, bundle: Bundle) -> None:
        """Put what needs no treatment into the message of its topic."""
        self._gatherer.take_bundle(bundle, self._clock.monotonic_s())
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        """Have `_expire` called when a message has waited long enough."""
        if self._timer is None and self._gatherer.next_due_s != NEVER:
            delay_s = max(0.0, self._gatherer.next_due_s - self._clock.monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._gatherer.expire(self._clock.monotonic_s())
        self._arm()

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Publish values on the topics of their points; of another gateway's points, ask it to write them."""
        results = []
        for point, value in values.items():
            if self._clock.monotonic_s() >= until_s:
                results.append(WriteResult(point, value, WriteOutcome.EXPIRED, "its turn came too late"))
                continue
            if self._peers.has(point):
                results.append(await self._peers.write(self, point, value, until_s=until_s))
                continue
            sample = Sample(value, Quality.GOOD, None, self._clock.wall_ns())
            try:
                if self._client is None:
                    raise aiomqtt.MqttError("not connected")
                payload = sample_bytes(point, sample)
                await self._client.publish(self._topic_of[point], payload, qos=1, retain=self._is_retained)
            except aiomqtt.MqttError as error:
                results.append(WriteResult(point, value, WriteOutcome.FAILED, reason_of(error)))
            else:
                results.append(WriteResult(point, value, WriteOutcome.WRITTEN))
        return results

    async def close(self) -> None:
        """Say goodbye if that is possible, keep what was under way for the next session."""
        if self._is_running and self.correspondent is None and self.remotes:
            self._want_all(is_wanted=False)
        client, self._client = self._client, None
        self._is_running = False
        self._peers.stop()
        for task in list(self._tasks):
            task.cancel()
        self._last.clear()  # the points are bad now; whatever comes next is news
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._gatherer.flush()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                if client is not None:
                    await self._say_goodbye(client)
        except (aiomqtt.MqttError, LinkDownError, TimeoutError):
            pass
        finally:
            self._publisher.close()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                if client is not None:
                    await client.__aexit__(None, None, None)
        except (aiomqtt.MqttError, TimeoutError):
            pass

    async def _say_goodbye(self, client: aiomqtt.Client) -> None:
        if self._publisher.waiting and not self._publisher.is_connected and self._farewell == _SHUT_DOWN:
            await self._publisher.connect()  # the very first messages came just now
        await self._publisher.drain()
        if self._is_announced:
            farewell = self._status("offline", self._farewell)
            await client.publish(self.status_topic, farewell, qos=1, retain=True)

    def _receive(self, message: aiomqtt.Message, emit: Emit) -> None:
        self._counters["received"] += 1
        payload = message.payload
        data = payload if isinstance(payload, bytes) else str(payload or "").encode()
        if str(message.topic).startswith(_OURS):
            self._receive_ours(message, data)
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        for place, group in self._readers.get(str(message.topic), ()):
            sample = read(place, data, now_ns)
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
        return self._is_running and self._client is not None

    @property
    def peers(self) -> Mapping[str, str]:
        """The gateways whose points are devices of ours: gateway to device."""
        return {remote.gateway: remote.device for remote in self.remotes}

    def publish(
        self, topic: str, payload: bytes, done: Callable[[bool], None] | None, *, is_retained: bool = False
    ) -> None:
        """Send a message that its giver keeps until `done` says that the broker has it."""
        if self.is_sending:
            self._publisher.put_sure(topic, payload, done, is_retained=is_retained)
        elif done is not None:
            done(False)

    def look_after(self, peer: str) -> None:
        """Have `peer_is` told of a gateway that is no device of ours."""
        topic = self._peers.look_after(self.name, peer)
        if topic is not None and self._client is not None:
            self._spawn(self._subscribe(self._client, topic))

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

    def tell(
        self, topic: str, payload: bytes, *, answer_to: str | None, id_: str, signature: str | None
    ) -> None:
        """Publish a message that wants an answer, at once or never."""
        client = self._client
        if client is None:
            return
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = 10
        if answer_to is not None:
            properties.ResponseTopic = answer_to
            properties.CorrelationData = id_.encode()
        if signature is not None:
            properties.UserProperty = ("signature", signature)
        self._spawn(self._tell(client, topic, payload, properties))

    async def _tell(self, client: aiomqtt.Client, topic: str, payload: bytes, properties: Properties) -> None:
        try:
            await client.publish(topic, payload, qos=1, properties=properties)
        except (aiomqtt.MqttError, ValueError):
            return  # the connection is being lost; who waits for an answer gets none

    async def _subscribe(self, client: aiomqtt.Client, topic: str) -> None:
        try:
            await client.subscribe(topic, qos=1)
        except (aiomqtt.MqttError, ValueError):
            return  # the connection is being lost; the next one subscribes

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name} publishes")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _want_all(self, *, is_wanted: bool) -> None:
        """Ask other gateways for their values, for as long as a one-shot lasts."""
        for remote in self.remotes:
            want = peering.Want(dict.fromkeys(remote.points, True)) if is_wanted else peering.Want()
            topic = peering.topic(remote.gateway, "want", self._me)
            self._publisher.put_sure(topic, peering.encode_want(want), None)

    def _receive_ours(self, message: aiomqtt.Message, data: bytes) -> None:
        properties = message.properties
        signature, reply = None, None
        if properties is not None:
            for name, value in getattr(properties, "UserProperty", ()):
                if name == "signature":
                    signature = value
            answer_to = getattr(properties, "ResponseTopic", None)
            correlation = getattr(properties, "CorrelationData", None)
            client = self._client
            if answer_to and client is not None and peering.is_answer_topic(answer_to, self._gateway):

                def reply(payload: bytes) -> None:
                    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                    if correlation is not None:
                        found.CorrelationData = correlation
                    if self._client is client:
                        self._spawn(self._tell(client, answer_to, payload, found))

        self._peers.take(
            self.name, str(message.topic), data,
            is_retained=bool(message.retain), signature=signature, reply=reply,
        )  # fmt: skip

    def _will(self) -> aiomqtt.Will | None:
        if not self._is_announced:
            return None
        return aiomqtt.Will(self.status_topic, self._status("offline", _LOST), 1, True)

    def _status(self, status: str, reason: str | None = None) -> bytes:
        found: dict[str, Any] = {"status": status, "reason": reason, "time": iso_time(self._clock.wall_ns())}
        if status == "online":
            found["keepalive"] = self._keepalive_s
        if self._version:
            found["version"] = self._version
        return json.dumps(found).encode()


def refusal_of(error: BaseException, tls: TlsFiles | None) -> str:
    """Return why a broker could not be connected to, for people."""
    reason = reason_of(error)
    if reason != "operation timed out":
        return reason
    # Brokers hang up without a word on who speaks TLS or not as they do not, and on who has no certificate.
    guess = ""
    if tls is None:
        guess = " (does the broker want TLS?)"
    elif tls.certificate is None:
        guess = " (does the broker want a certificate?)"
    return f"no answer to the attempt to connect{guess}"


def reason_of(error: BaseException) -> str:
    """Return why something with a broker failed, for people."""
    cause = error.__cause__ or error.__context__
    for found in (error, cause):
        if isinstance(found, ssl.SSLError):
            return words(found)
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    code = getattr(cause, "rc", None)
    code = getattr(code, "value", code)
    if code == packets.FIRST_ERROR:  # what paho says if the broker said nothing
        return "connection lost"
    if isinstance(code, int) and code > packets.FIRST_ERROR:
        return packets.reason(code)
    text = str(cause) if isinstance(cause, OSError) and str(cause) else str(error)
    for noise in ("[code:", "[Errno"):
        if text.startswith(noise):
            text = text.split("]", 1)[-1].strip()
    return (text[:1].lower() + text[1:]) or type(error).__name__
