"""The link to an MQTT 5 broker.

Rules:

* What routes send waits in a queue of our own, bounded in messages; when it is full the oldest goes
  and is counted. It also fills while the broker is away, and is sent in order when it is back.
* A message leaves the queue when the broker has acknowledged it (QoS 1); what was under way when the
  connection broke is sent again, first.
* Birth and last will, retained, on ``fieldbus/<gateway>/status``: others see whether we are there.
* Points with a topic are subscribed; when the broker is lost they are bad at once (the gateway does
  that), and retained messages bring them back.

Design: under aiomqtt, paho's own queues are unbounded and lost with the connection, so only as many
messages as there are sender tasks are ever handed to it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import aiomqtt

from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, Emit, Report, WriteOutcome, WriteResult
from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, Point, Quality, Sample, Value
from fieldbus.mqtt.payload import TopicPoint, read
from fieldbus.sample_json import gathered_bytes, iso_time, sample_bytes

# What aiomqtt and paho would say is said better by the gateway, once.
_LOGGER = logging.getLogger("fieldbus.mqtt.paho")
_LOGGER.setLevel(logging.CRITICAL)

SENDERS = 20
"""Messages that may await their acknowledgement at once."""
_GOODBYE_S = 2.0


class _Message(NamedTuple):
    number: int
    topic: str
    payload: bytes


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
        is_announced: bool = True,
    ) -> None:
        """Take what the link works with; nothing is opened.

        Args:
            is_announced: whether birth and last will tell others of us.
        """
        self._options: dict[str, Any] = {
            "version": version,
            "username": username,
            "password": password,
            "keepalive_s": keepalive_s,
            "qos": qos,
            "is_retained": is_retained,
            "max_queue": max_queue,
        }
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
        self._qos = qos
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
        self.groups: Sequence[Group] = groups
        self._queue: deque[_Message] = deque()
        self._under_way: dict[int, _Message] = {}
        self._numbers = itertools.count()
        self._is_filled = asyncio.Event()
        self._client: aiomqtt.Client | None = None
        self._counters = dict.fromkeys(("published", "tx_dropped", "received", "rx_bad"), 0)

    def aside(self, client_id: str) -> MqttLink:
        """Return a link to the same broker that may be used while this one is, unannounced.

        A broker ends the session of a client when another comes with its id.
        """
        return MqttLink(
            self.name, self._gateway, self.host, self.port, self.places,
            client_id=client_id, is_announced=False, **self._options,
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
        return {**self._counters, "queued": len(self._queue) + len(self._under_way)}

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Nothing: topics have no response time."""
        return {}

    async def connect(self) -> None:
        """Connect, say that we are there, subscribe."""
        client = aiomqtt.Client(
            self.host,
            self.port,
            username=self._username,
            password=self._password,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            keepalive=max(1, round(self._keepalive_s)),
            will=self._will(),
            timeout=5.0,
            max_queued_incoming_messages=self._max_queue,
            logger=_LOGGER,
        )
        try:
            await client.__aenter__()
        except aiomqtt.MqttError as error:
            raise LinkDownError(_reason(error)) from error
        self._client = client
        try:
            if self._is_announced:
                await client.publish(self.status_topic, self._status("online"), qos=1, retain=True)
            topics = [(topic, 1) for topic in self._readers]
            for first in range(0, len(topics), 100):
                await client.subscribe(topics[first : first + 100])
        except aiomqtt.MqttError as error:
            raise LinkDownError(_reason(error)) from error

    async def run(self, emit: Emit, report: Report) -> None:
        """Receive and send until the broker is lost."""
        client = self._client
        if client is None:
            raise LinkDownError("not connected")
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(SENDERS):
                    tasks.create_task(self._send_queued(client))
                async for message in client.messages:
                    self._receive(message, emit)
        except* aiomqtt.MqttError as group:
            error = group.exceptions[0]
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise LinkDownError(_reason(error)) from error
        raise LinkDownError("connection closed")

    def send(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Queue routed samples, those of one batch for one gathering topic as one message."""
        gathered: dict[str, list[tuple[str, Sample]]] = {}
        for delivery in deliveries:
            target = delivery.target
            if target.topic is None:
                if target.point is not None:
                    self._put(self._topic_of[target.point], sample_bytes(target.point, delivery.sample))
            elif target.gathers:
                gathered.setdefault(target.topic, []).append((target.label, delivery.sample))
            else:
                self._put(target.topic, sample_bytes(delivery.source, delivery.sample))
        for topic, samples in gathered.items():
            self._put(topic, gathered_bytes(max(sample.time_ns for _, sample in samples), samples))
        return ()

    async def write(self, values: Mapping[Point, Value]) -> list[WriteResult]:
        """Publish values on the topics of their points."""
        results = []
        for point, value in values.items():
            sample = Sample(value, Quality.GOOD, None, time.time_ns())
            try:
                if self._client is None:
                    raise aiomqtt.MqttError("not connected")
                payload = sample_bytes(point, sample)
                await self._client.publish(self._topic_of[point], payload, qos=1, retain=self._is_retained)
            except aiomqtt.MqttError as error:
                results.append(WriteResult(point, value, WriteOutcome.FAILED, _reason(error)))
            else:
                results.append(WriteResult(point, value, WriteOutcome.WRITTEN))
        return results

    async def close(self) -> None:
        """Say goodbye if that is possible, keep what was under way for the next session."""
        client, self._client = self._client, None
        self._last.clear()  # the points are bad now; whatever comes next is news
        self._queue.extendleft(reversed(self._under_way.values()))
        self._under_way.clear()
        if client is None:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._drain_into(client)
                if self._is_announced:
                    farewell = self._status("offline", "shut down")
                    await client.publish(self.status_topic, farewell, qos=1, retain=True)
        except (aiomqtt.MqttError, TimeoutError):
            pass
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await client.__aexit__(None, None, None)
        except (aiomqtt.MqttError, TimeoutError):
            pass

    async def _drain_into(self, client: aiomqtt.Client) -> None:
        while self._queue:
            message = self._queue[0]
            await client.publish(message.topic, message.payload, qos=self._qos, retain=self._is_retained)
            self._queue.popleft()
            self._counters["published"] += 1

    def _put(self, topic: str, payload: bytes) -> None:
        if len(self._queue) >= self._max_queue:
            self._queue.popleft()
            self._counters["tx_dropped"] += 1
        self._queue.append(_Message(next(self._numbers), topic, payload))
        self._is_filled.set()

    async def _send_queued(self, client: aiomqtt.Client) -> None:
        while True:
            while not self._queue:
                self._is_filled.clear()
                await self._is_filled.wait()
            message = self._queue.popleft()
            self._under_way[message.number] = message
            await client.publish(message.topic, message.payload, qos=self._qos, retain=self._is_retained)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # On Python 3.11 a wait that ends as it is cancelled swallows the cancellation, and when a
                # connection breaks both happen at once. The message stays under way: it is sent again.
                raise asyncio.CancelledError
            self._under_way.pop(message.number, None)
            self._counters["published"] += 1

    def _receive(self, message: aiomqtt.Message, emit: Emit) -> None:
        self._counters["received"] += 1
        payload = message.payload
        data = payload if isinstance(payload, bytes) else str(payload or "").encode()
        now_ns, now_s = time.time_ns(), time.monotonic()
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

    def _will(self) -> aiomqtt.Will | None:
        if not self._is_announced:
            return None
        return aiomqtt.Will(self.status_topic, self._status("offline", "connection lost"), 1, True)

    def _status(self, status: str, reason: str | None = None) -> bytes:
        found = {"status": status, "reason": reason, "time": iso_time(time.time_ns())}
        if self._version:
            found["version"] = self._version
        return json.dumps(found).encode()


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    text = str(cause) if isinstance(cause, OSError) and str(cause) else str(error)
    for noise in ("[code:", "[Errno"):
        if text.startswith(noise):
            text = text.split("]", 1)[-1].strip()
    return (text[:1].lower() + text[1:]) or type(error).__name__
