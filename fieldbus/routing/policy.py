"""What happens to a sample between its source and its target.

Order of the steps, each optional:

1. ``max_age``: a sample that is older is bad (stale). Its age counts from its arrival, on our monotonic
   clock; one that is held (`HeldSample`) is always too old.
2. ``on_uncertain``: an uncertain sample is sent as it is, held back, or bad from here on, for its reason.
3. ``map``, then ``scale`` and ``offset``: the value changes, its source time and quality do not.
4. ``on_bad``: a bad sample is held back, sent as it is, or replaced by a value (then uncertain, with
   the reason for which it was bad). By default it is sent where the target carries quality, and held back
   where it does not.
5. ``when`` and ``deadband``: whether the result differs enough from what was sent last. A change of
   quality or reason always does.
6. ``min_interval``: not sooner after the last; the newest waits and is sent when the time has come.

``every`` repeats the newest sample when nothing was sent for that long.

A served register and a CAN signal are always told that their source went bad, whatever ``on_bad`` says:
holding a value back is a matter of what the peer sees, and that such a target decides itself.

Design: an edge holds the state of one source-target pair and nothing else. It has no timer: it says
by `due_s` when it wants to be asked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fieldbus.link import Target
from fieldbus.model import Point, Quality, Reason, Sample, Value
from fieldbus.scaling import Linear, Number

NEVER = math.inf


class When(StrEnum):
    """What makes a sample worth sending."""

    CHANGE = "change"
    SAMPLE = "sample"


class OnBad(StrEnum):
    """What to do with a bad sample; the third way is a substitute value."""

    HOLD = "hold"
    SEND = "send"


class OnUncertain(StrEnum):
    """What to do with an uncertain sample."""

    SEND = "send"
    HOLD = "hold"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Policy:
    """How the samples of one route are treated. Times in seconds."""

    when: When = When.CHANGE
    every_s: float | None = None
    deadband: float | None = None
    """In units of the value that is sent; a percentage has been turned into units."""
    min_interval_s: float = 0.0
    linear: Linear = field(default_factory=Linear)
    mapping: Mapping[Value, Value] | None = None
    """Old value to new one. A value that is not in it has no translation and becomes bad."""
    on_bad: OnBad | None = None
    """None: `SEND` where the target carries quality, `HOLD` where it does not. An edge never has None."""
    substitute: Value | None = None
    """Sent instead of a bad sample, if not None."""
    on_uncertain: OnUncertain = OnUncertain.SEND
    max_age_s: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether good samples go on as they are, without a clock: `when` is all that is left for them."""
        return (
            self.every_s is None
            and self.deadband is None
            and self.min_interval_s == 0
            and self.linear.is_identity
            and self.mapping is None
            and self.substitute is None
            and self.max_age_s is None
        )

    @property
    def is_untreated(self) -> bool:
        """Whether all samples go on as they are, but that bad ones may be left out."""
        return self.is_plain and self.on_uncertain is OnUncertain.SEND


class Edge:
    """One expanded route: a source point, a target, a policy, and what was sent last."""

    __slots__ = (
        "_is_stale_told",
        "_is_unchanged",
        "_pending",
        "_scale_float",
        "_scale_int",
        "_sent_at_s",
        "_tells_quality",
        "configured",
        "due_s",
        "is_plain",
        "policy",
        "sent",
        "source",
        "target",
    )

    def __init__(self, source: Point, target: Target, policy: Policy) -> None:
        if policy.on_bad is None:
            policy = replace(policy, on_bad=OnBad.SEND if target.carries_quality else OnBad.HOLD)
        self.source = source
        self.target = target
        self.policy = policy
        self.due_s: float = NEVER
        """When `expire` wants to be called next, monotonic; NEVER if not."""
        self.is_plain = policy.is_plain
        """Whether who has a good sample may do what `offer` would: see `sent`."""
        self.sent: Sample | None = None
        """What was sent last; None if no value counts as sent. On an edge that is plain and waits for a
        change, a good sample differs if there is none, if it was not good, or if its value is another; who
        sends it keeps it here. Nothing else is to be remembered of it."""
        self._sent_at_s = -NEVER
        self._pending: Sample | None = None
        self._is_stale_told = False
        point = target.point
        self._tells_quality = point is not None and point.carries_quality and not point.is_topic
        self.configured = self.key
        """The `key` that it had as it was configured: its target may be led elsewhere."""
        linear = policy.linear
        self._is_unchanged = linear.is_identity and policy.mapping is None
        self._scale_int = None if linear.is_identity else linear.forward_int()
        self._scale_float = linear.forward_float()

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same edge as another: source, target and how samples are treated."""
        target, policy = self.target, self.policy
        mapping = None if policy.mapping is None else tuple(policy.mapping.items())
        treatment = tuple(getattr(policy, name) for name in policy.__slots__ if name != "mapping")
        place = (target.link, target.point, target.topic, target.gathers, target.label, target.is_durable)
        return (self.source, *place, *treatment, mapping)

    def offer(self, sample: Sample, at_s: float, now_s: float) -> Sample | None:
        """Take a new sample of the source and return what is to be sent now, if anything.

        Args:
            sample: as it was acquired.
            at_s: when its source was heard (`Batch.heard_s`).
            now_s: monotonic clock.
        """
        policy = self.policy
        if policy.max_age_s is not None:
            if now_s - at_s > policy.max_age_s:
                if not sample.is_bad:
                    sample = Sample(None, Quality.BAD, Reason.STALE, sample.time_ns)
            else:
                self._is_stale_told = False
        outgoing = self._transform(sample)
        if outgoing is None:
            self._pending = None
            self._schedule(at_s, now_s)
            return None
        last = self.sent
        if policy.when is When.CHANGE and last is not None and not self._differs(outgoing, last):
            self._pending = None
            self._schedule(at_s, now_s)
            return None
        # The same sum as in `_schedule`. Where `now_s` comes from the wall clock of a source (samples of a
        # stream of another gateway) it may be earlier than before: that is no interval to be waited for.
        if self._sent_at_s <= now_s < self._sent_at_s + policy.min_interval_s:
            self._pending = outgoing
            self._schedule(at_s, now_s)
            return None
        return self._send(outgoing, at_s, now_s)

    def expire(self, current: Sample, at_s: float, now_s: float) -> Sample | None:
        """Do what was due by the clock and return what is to be sent now, if anything.

        Args:
            current: the newest sample of the source.
            at_s: when the source was heard (`Batch.heard_s`).
            now_s: monotonic clock.
        """
        policy = self.policy
        if policy.max_age_s is not None and now_s - at_s > policy.max_age_s:
            if not current.is_bad:
                current = Sample(None, Quality.BAD, Reason.STALE, current.time_ns)
            if not self._is_stale_told:
                self._is_stale_told = True
                outgoing = self._transform(current)
                self._pending = None
                if outgoing is not None and (self.sent is None or self._differs(outgoing, self.sent)):
                    return self._send(outgoing, at_s, now_s)
        elif self._is_stale_told:
            # The source is back with the value that it had: no change will tell us so.
            return self.offer(current, at_s, now_s)
        if self._pending is not None and now_s >= self._sent_at_s + policy.min_interval_s:
            return self._send(self._pending, at_s, now_s)
        if policy.every_s is not None and now_s >= self._sent_at_s + policy.every_s:
            outgoing = self._transform(current)
            if outgoing is not None:
                return self._send(outgoing, at_s, now_s)
            self._sent_at_s = now_s  # held back: ask again one period later
        self._schedule(at_s, now_s)
        return None

    def missed(self) -> None:
        """Learn that what was sent did not get to the target: no value counts as sent."""
        self.sent = None

    def _send(self, sample: Sample, at_s: float, now_s: float) -> Sample:
        self.sent = sample
        self._sent_at_s = now_s
        self._pending = None
        self._schedule(at_s, now_s)
        return sample

    def _schedule(self, at_s: float, now_s: float) -> None:
        policy = self.policy
        due_s = NEVER
        if self._pending is not None:
            due_s = self._sent_at_s + policy.min_interval_s
        if policy.every_s is not None:
            base = self._sent_at_s if self._sent_at_s > -NEVER else now_s
            due_s = min(due_s, base + policy.every_s)
        if policy.max_age_s is not None:
            # A hair later, so that the age is truly over it when the clock has its own rounding.
            look_s = now_s + min(policy.max_age_s, 1.0) if self._is_stale_told else at_s + policy.max_age_s
            due_s = min(due_s, max(look_s, now_s) + 0.001)
        self.due_s = due_s

    def _transform(self, sample: Sample) -> Sample | None:
        policy = self.policy
        kind = type(sample)  # what is held stays held
        value, quality, reason, time_ns = sample
        if quality is Quality.UNCERTAIN and policy.on_uncertain is not OnUncertain.SEND:
            if policy.on_uncertain is OnUncertain.HOLD:
                return None
            value = None
        if value is not None:
            if self._is_unchanged:
                return sample
            if policy.mapping is not None:
                if value in policy.mapping:
                    value = policy.mapping[value]
                else:
                    value, quality, reason = None, Quality.BAD, Reason.CONVERSION
            if self._scale_int is not None and value is not None:
                value = self._scaled(value, self._scale_int)
                if value is None:
                    quality, reason = Quality.BAD, Reason.CONVERSION
        if value is None:
            if policy.substitute is not None:
                return kind(policy.substitute, Quality.UNCERTAIN, reason, time_ns)
            if policy.on_bad is OnBad.HOLD and not self._tells_quality:
                return None
            return kind(None, Quality.BAD, reason, time_ns)
        return kind(value, quality, reason, time_ns)

    def _scaled(self, value: Value, scale_int: Callable[[int], Number]) -> Value | None:
        if isinstance(value, str):
            return None
        if isinstance(value, int):  # a bool too: 0 or 1
            return scale_int(int(value))
        scaled = self._scale_float(value)
        return scaled if math.isfinite(scaled) else None

    def _differs(self, new: Sample, last: Sample) -> bool:
        if new.quality is not last.quality or new.reason != last.reason:
            return True
        deadband = self.policy.deadband
        if deadband is None or isinstance(new.value, str | None) or isinstance(last.value, str | None):
            return new.value != last.value
        return abs(new.value - last.value) >= deadband and new.value != last.value
