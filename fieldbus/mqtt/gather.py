"""Gathered messages: what the groups of one device have for one topic, in one message a scan.

Rules:

* If one group alone feeds a topic, its bundle is a message at once.
* Else the message waits until each of the groups has sent its bundle, at most for the window (the
  setting ``gather`` of the broker, 100 ms). What comes twice before does not replace what waits: the
  message goes first, so every sample that is to be sent is sent. A group in which nothing changed sends
  nothing to a topic that wants changes only: the others then wait for the window.
* Samples that a policy has treated (deadband, scale …) join the message that waits, or wait themselves if
  others feed it.
* A message is one device's: if several devices go to one topic, each has messages of its own.
* ``time`` is the newest source time of all that is inside. A message with nothing inside is not sent.
* Time is a parameter; `next_due_s` says when `expire` should be called. Nothing is kept longer than
  the window, and no more than one message for each topic and device.

Design: a bundle is formatted when it comes, not when the message goes: while nothing changes the text of
the last time serves again, and what waits is text that only has to be put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from fieldbus.link import Bundle, Delivery, Gathering, GatherPlan
from fieldbus.model import HeldBatch, Sample
from fieldbus.sample_json import GatheredFormat, Inside, gathered_inside, gathered_message, historical

NEVER = math.inf
DEFAULT_WINDOW_S = 0.1


@dataclass(slots=True, eq=False)
class _Message:
    """What one device has for one topic."""

    topic: str
    gathering: Gathering | None = None
    """The one of the bundles that came last; another one after the device's groups changed."""
    formats: dict[GatherPlan, GatheredFormat] = field(default_factory=dict)
    plans: set[GatherPlan] = field(default_factory=set)
    """Of the bundles inside."""
    insides: list[Inside] = field(default_factory=list)
    """Their texts."""
    samples: dict[str, Sample] = field(default_factory=dict)
    """Treated samples inside, by label."""
    time_ns: int = 0
    due_s: float = NEVER
    """When it must go; NEVER while there is nothing inside."""


class Gatherer:
    """Fills messages and sends them when they are full, or have waited long enough."""

    def __init__(self, put: Callable[[str, bytes], None], window_s: float = DEFAULT_WINDOW_S) -> None:
        """Take where messages go.

        Args:
            put: called with topic and payload of each.
            window_s: how long a message waits for the rest of it.
        """
        self._put = put
        self._window_s = window_s
        self._messages: dict[tuple[str, str], _Message] = {}
        self._waiting: dict[_Message, None] = {}
        """In the order in which they began, and therefore are due."""

    @property
    def next_due_s(self) -> float:
        """When `expire` has something to do, on the monotonic clock; infinity if never."""
        return next(iter(self._waiting)).due_s if self._waiting else NEVER

    def take_bundle(self, bundle: Bundle, now_s: float) -> None:
        """Take all, or all that changed, of a batch."""
        plan, batch = bundle
        gathering = plan.message
        message = self._messages.get((gathering.topic, gathering.device))
        if message is None or message.gathering is not gathering:
            message = self._message(gathering.topic, gathering.device, gathering)
        writer = message.formats.get(plan)
        if writer is None:
            writer = message.formats[plan] = GatheredFormat(
                plan.group.points, plan.indexes, plan.labels, tells_bad=plan.tells_bad
            )
        changed = batch.changed
        if plan.wants_every_sample or len(changed) == len(batch.values):
            inside = writer.inside(batch)
        else:
            inside = writer.some(batch, changed)
        if gathering.groups == 1 and not message.samples:
            if inside.values or inside.bad:
                payload = gathered_message(batch.time_ns, *inside)
                self._put(gathering.topic, historical(payload) if type(batch) is HeldBatch else payload)
            return
        if plan in message.plans:
            self._send(message)
        message.plans.add(plan)
        if inside.values or inside.bad:
            message.insides.append(inside)
            message.time_ns = max(message.time_ns, batch.time_ns)
        if len(message.plans) >= gathering.groups:
            self._send(message)
        else:
            self._hold(message, now_s)

    def take_delivery(self, topic: str, delivery: Delivery, now_s: float) -> None:
        """Take a sample that a policy has treated; `flush` or the window sends it."""
        message = self._message(topic, delivery.source.device)
        label = delivery.target.label
        if label in message.samples:
            self._send(message)
        message.samples[label] = delivery.sample
        message.time_ns = max(message.time_ns, delivery.sample.time_ns)
        self._hold(message, now_s)

    def expire(self, now_s: float) -> None:
        """Send what has waited long enough."""
        while self._waiting:
            message = next(iter(self._waiting))
            if message.due_s > now_s:
                return
            self._send(message)

    def flush(self) -> None:
        """Send all that waits."""
        self.expire(NEVER)

    def _message(self, topic: str, device: str, gathering: Gathering | None = None) -> _Message:
        message = self._messages.get((topic, device))
        if message is None:
            message = self._messages[topic, device] = _Message(topic)
        if gathering is not None and message.gathering is not gathering:
            if message.gathering is not None:
                self._send(message)  # its groups are no more
            message.gathering = gathering
            message.formats = {}
        return message

    def _hold(self, message: _Message, now_s: float) -> None:
        if message.due_s == NEVER:
            message.due_s = now_s + self._window_s
            self._waiting[message] = None

    def _send(self, message: _Message) -> None:
        insides = message.insides
        if message.samples:
            insides.append(gathered_inside(message.samples.items()))
        if insides:
            values = ",".join([inside.values for inside in insides if inside.values])
            faults = ",".join([inside.bad for inside in insides if inside.bad])
            self._put(message.topic, gathered_message(message.time_ns, values, faults))
            message.insides = []
            message.samples = {}
        message.plans.clear()
        message.time_ns = 0
        message.due_s = NEVER
        self._waiting.pop(message, None)
