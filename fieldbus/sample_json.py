"""A sample as JSON, the one form that brokers, programs and other gateways see.

Layout::

    {"point": "press.temperature", "value": 72.5, "quality": "good", "reason": null,
     "time": "2026-11-22T14:02:11.123456Z", "unit": "°C", "label": "on"}

``point`` comes first where the place does not say it; ``unit`` and ``label`` (the name that an
enumeration gives the value) only where there is one. A gathered message holds all samples of one
batch::

    {"time": "…", "values": {"temperature": 72.5}, "bad": {"count": "timeout"}}

Rules: NaN and infinity never appear; such a value is null and bad. A point of a gathered message is
either in ``values`` or in ``bad``.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Iterable
from typing import Any

from fieldbus.model import Point, Quality, Reason, Sample, Value

_cached_second: tuple[int, str] = (-1, "")


def iso_time(time_ns: int) -> str:
    """Return a time as ISO 8601 in UTC with microseconds."""
    global _cached_second  # noqa: PLW0603 - nearly all calls fall into the same second
    second, rest = divmod(time_ns, 1_000_000_000)
    cached, text = _cached_second
    if cached != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _cached_second = (second, text)
    return f"{text}.{rest // 1000:06d}Z"


def parse_time(text: str) -> int:
    """Return the nanoseconds since the epoch of an ISO 8601 time.

    Raises:
        ValueError: it is none, or has no time zone.
    """
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    delta = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (delta.days * 86400 + delta.seconds) * 1_000_000_000 + delta.microseconds * 1000


def sample_object(point: Point, sample: Sample, *, names_point: bool = False) -> dict[str, Any]:
    """Return the sample as what `json` can write."""
    value, quality, reason, time_ns = sample
    if isinstance(value, float) and not math.isfinite(value):
        value, quality, reason = None, Quality.BAD, Reason.NOT_AVAILABLE
    found: dict[str, Any] = {"point": point.address} if names_point else {}
    found["value"] = value
    found["quality"] = str(quality)
    found["reason"] = None if reason is None else str(reason)
    found["time"] = iso_time(time_ns) if time_ns else None
    if point.unit is not None:
        found["unit"] = point.unit
    if point.labels and isinstance(value, int) and value in point.labels:
        found["label"] = point.labels[value]
    return found


def sample_bytes(point: Point, sample: Sample) -> bytes:
    """Return the sample as a payload."""
    return json.dumps(sample_object(point, sample), ensure_ascii=False, separators=(",", ":")).encode()


def gathered_bytes(time_ns: int, samples: Iterable[tuple[str, Sample]]) -> bytes:
    """Return samples of one batch as one payload, each under its label."""
    values: dict[str, Value | None] = {}
    faults: dict[str, str] = {}
    for label, sample in samples:
        value = sample.value
        if value is None:
            faults[label] = str(sample.reason)
        elif isinstance(value, float) and not math.isfinite(value):
            faults[label] = str(Reason.NOT_AVAILABLE)
        else:
            values[label] = value
    found: dict[str, Any] = {"time": iso_time(time_ns), "values": values, "bad": faults}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
