"""What others publish, as samples.

A payload is, for a point with ``path``, JSON in which the path leads to a value; else a JSON sample
(an object with ``value``, see `sample_json`), or a plain value: a number, ``true``, text.

Rules:

* Nothing that arrives raises: what cannot be understood is a bad sample with the reason.
* A sample whose time lies in the future is `dated`; one that says that it is ``historical`` is held.
* A value that does not fit the point's type is bad, not converted until it fits. A whole number has 64 bits
  at most, and a text is valid Unicode (JSON can name half a surrogate): then every peer, store and device can
  take it.
* A path leads through objects and lists only, never into a text.
* At most 256 KiB are looked at.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from fieldbus.model import Kind, Point, Quality, Reason, Sample, Value
from fieldbus.mqtt.arrivals import CLOCK_TOLERANCE_S, dated, held
from fieldbus.sample_json import parse_time
from fieldbus.text import is_well_formed, well_formed

MAX_PAYLOAD = 256 * 1024
LOWEST_INT = -(1 << 63)
HIGHEST_INT = (1 << 64) - 1
_LONGEST_REASON = 200
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_WORDS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True, eq=False)
class TopicPoint:
    """A point that lives on a topic."""

    point: Point
    topic: str
    path: tuple[str | int, ...] = ()
    """Keys and indexes that lead to the value; empty if the payload is the sample."""


def parse_path(text: str) -> tuple[str | int, ...]:
    """Return the steps of a path such as ``data.sensors[2].value``.

    Raises:
        ValueError: it is none.
    """
    steps: list[str | int] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a path such as data.sensors[2].value")
        steps.append(match[1] if match[1] is not None else int(match[2]))
        position = match.end()
    return tuple(steps)


def read(place: TopicPoint, payload: bytes, now_ns: int, tolerance_s: float = CLOCK_TOLERANCE_S) -> Sample:
    """Return the sample that a payload amounts to.

    Args:
        place: the point, and where in a payload its value is.
        payload: as it came.
        now_ns: taken as source time if the payload has none.
        tolerance_s: how far a time may lie in the future.
    """
    if len(payload) > MAX_PAYLOAD:
        return _bad(Reason.BAD_RESPONSE, now_ns)
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        return _bad(Reason.BAD_RESPONSE, now_ns)
    try:
        data: Any = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        if place.path:
            return _bad(Reason.BAD_RESPONSE, now_ns)
        data = text  # plain text that is not JSON
    is_historical = isinstance(data, dict) and data.get("historical") is True
    if place.path:
        data, trouble = _follow(place.path, data)
        if trouble is not None:
            return _bad(trouble, now_ns)
        sample = _typed(place.point, data, now_ns)
        return held(sample) if is_historical else sample
    if isinstance(data, dict):
        sample = dated(_of_sample(place.point, data, now_ns), now_ns, round(tolerance_s * 1e9))
        return held(sample) if is_historical else sample
    if place.point.kind is Kind.STRING and not isinstance(data, str):
        data = text  # a text may look like a number
    return _typed(place.point, data, now_ns)


def _follow(path: tuple[str | int, ...], data: Any) -> tuple[Any, Reason | None]:
    """Return what a path leads to, or why it leads nowhere."""
    for step in path:
        if data is None:
            return None, Reason.NOT_AVAILABLE
        if not isinstance(data, dict if isinstance(step, str) else list):
            return None, Reason.CONVERSION  # a text, too, has a first letter
        inner: Any = data
        try:
            data = inner[step]
        except (KeyError, IndexError):
            return None, Reason.NOT_AVAILABLE
    return data, None


def _of_sample(point: Point, data: dict[str, Any], now_ns: int) -> Sample:
    if "value" not in data:
        return _bad(Reason.BAD_RESPONSE, now_ns)
    time_ns = now_ns
    if data.get("time") is not None:
        try:
            time_ns = parse_time(data["time"])
        except (ValueError, OverflowError, TypeError):
            return _bad(Reason.BAD_RESPONSE, now_ns)
        if time_ns < 0:
            return _bad(Reason.BAD_RESPONSE, now_ns)
    quality, reason = data.get("quality", "good"), data.get("reason")
    if quality == "bad" or data["value"] is None:
        return _bad(_reason_of(reason, Reason.NOT_AVAILABLE), time_ns)
    sample = _typed(point, data["value"], time_ns)
    if quality == "good" or sample.is_bad:
        return sample
    if quality == "uncertain":
        return Sample(sample.value, Quality.UNCERTAIN, _reason_of(reason, "uncertain"), time_ns)
    return _bad(Reason.BAD_RESPONSE, time_ns)


def _typed(point: Point, data: object, time_ns: int) -> Sample:
    value = _value(point.kind, data)
    if value is None:
        return _bad(Reason.NOT_AVAILABLE if data is None else Reason.CONVERSION, time_ns)
    if not isinstance(value, str):
        if (point.lowest is not None and value < point.lowest) or (
            point.highest is not None and value > point.highest
        ):
            return _bad(Reason.CONVERSION, time_ns)
        if point.refusal(value) is not None:
            return Sample(value, Quality.UNCERTAIN, Reason.OUT_OF_RANGE, time_ns)
    return Sample(value, Quality.GOOD, None, time_ns)


def _value(kind: Kind, data: object) -> Value | None:
    if kind is Kind.STRING:
        return data if isinstance(data, str) and is_well_formed(data) else None
    if kind is Kind.BOOL:
        if isinstance(data, bool):
            return data
        return _WORDS.get(str(data).strip().lower()) if isinstance(data, str | int) else None
    if isinstance(data, bool) or not isinstance(data, int | float):
        return None
    if kind is Kind.INT:
        is_whole = isinstance(data, int) or data.is_integer()
        return int(data) if is_whole and LOWEST_INT <= data <= HIGHEST_INT else None
    try:
        number = float(data)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _reason_of(given: object, default: str) -> str:
    """Return a reason that somebody else gives, as a text of a length that can be shown."""
    return well_formed(given)[:_LONGEST_REASON] if isinstance(given, str) and given else str(default)


def _bad(reason: str, time_ns: int) -> Sample:
    return Sample(None, Quality.BAD, reason, time_ns)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
