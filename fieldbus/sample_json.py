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

Design: a message of a hundred values is one ``%`` of a tuple into a text that was made at load, and a good
sample is put together as text; `json` takes two to ten times as long. The generic ways stay for what is odd
or rare, and as what the fast ways are tested against.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fieldbus.model import Batch, Flaw, Kind, Point, Quality, Reason, Sample, Value

_HALVES = "backslashreplace"
"""Half a surrogate, which a text can have and UTF-8 cannot, becomes the escape by which JSON names it."""
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
    if point.labels and (label := point.label(value)) is not None:
        found["label"] = label
    return found


def sample_bytes(point: Point, sample: Sample) -> bytes:
    """Return the sample as a payload."""
    value, quality, reason, time_ns = sample
    if quality is not Quality.GOOD or reason is not None or value is None or not time_ns or point.labels:
        return _any_sample_bytes(point, sample)
    if isinstance(value, float) and not math.isfinite(value):
        return _any_sample_bytes(point, sample)
    word, end = _word(value), _end(point.unit)
    text = f'{{"value":{word},"quality":"good","reason":null,"time":"{iso_time(time_ns)}"{end}'
    return text.encode("utf-8", _HALVES)


@functools.lru_cache(maxsize=256)
def _end(unit: str | None) -> str:
    """Return how the object of a good sample ends."""
    return "}" if unit is None else f',"unit":{_text(unit)}}}'


def _any_sample_bytes(point: Point, sample: Sample) -> bytes:
    return json.dumps(sample_object(point, sample), ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", _HALVES
    )


def historical(payload: bytes) -> bytes:
    """Return a message, of one sample or gathered, as one that waited on its way."""
    if not payload.endswith(b"}") or payload.endswith(b',"historical":true}'):
        return payload
    return payload[:-1] + b',"historical":true}'


class Inside(NamedTuple):
    """What stands between the braces of a gathered message."""

    values: str
    bad: str


NOTHING_INSIDE = Inside("", "")


def gathered_message(time_ns: int, values: str, faults: str) -> bytes:
    """Return a gathered message of what stands between its braces."""
    return f'{{"time":"{iso_time(time_ns)}","values":{{{values}}},"bad":{{{faults}}}}}'.encode(
        "utf-8", _HALVES
    )


class GatheredFormat:
    """Writes points of one group, again and again, as the inside of a gathered message."""

    def __init__(
        self, points: Sequence[Point], indexes: Sequence[int], labels: Sequence[str], *, tells_bad: bool
    ) -> None:
        """Prepare what does not change.

        Args:
            points: all points of the group.
            indexes: which of them are written, ascending.
            labels: the name that each has in the message; no two are the same.
            tells_bad: whether points without value are named, or left out.
        """
        self._tells_bad = tells_bad
        self._head = {index: _text(label) + ":" for index, label in zip(indexes, labels, strict=True)}
        self._kinds = [point.kind for point in points]
        self._is_whole = list(indexes) == list(range(len(points)))
        self._last: tuple[object, object] | None = None
        self._last_inside = NOTHING_INSIDE
        self._missing: tuple[int, ...] | None = None
        self._prepare(())

    def _prepare(self, missing: tuple[int, ...]) -> None:
        """Make the text into which the values of all points go but those that have none now."""
        if missing == self._missing:
            return
        self._missing = missing
        absent = set(missing)
        self._present = [index for index in self._head if index not in absent]
        kinds = [self._kinds[index] for index in self._present]
        self._words = [place for place, kind in enumerate(kinds) if not kind.is_number]
        self._floats = [place for place, kind in enumerate(kinds) if kind is Kind.FLOAT]
        self._template = ",".join(
            self._head[index].replace("%", "%%") + ("%r" if self._kinds[index].is_number else "%s")
            for index in self._present
        )

    def inside(self, batch: Batch) -> Inside:
        """Return all points."""
        values, flaws = batch.values, batch.flaws
        last = self._last
        if last is not None and last[0] is values and last[1] is flaws:
            return self._last_inside
        missing: tuple[int, ...] = ()
        if flaws:
            found = [index for index, flaw in flaws.items() if flaw.quality is Quality.BAD]
            missing = tuple(sorted(index for index in found if index in self._head))
        if missing != self._missing:
            self._prepare(missing)
        picked: Sequence[Any] = values
        if missing or not self._is_whole:
            picked = [values[index] for index in self._present]
        if self._floats and not _are_finite([picked[place] for place in self._floats]):
            inside = self.some(batch, self._head)
        else:
            if self._words:
                picked = list(picked)
                for place in self._words:
                    picked[place] = _word(picked[place])
            inside = Inside(self._template % tuple(picked), self._faults(missing, flaws))
        self._last, self._last_inside = (values, flaws), inside
        return inside

    def some(self, batch: Batch, indexes: Iterable[int]) -> Inside:
        """Return those points of the batch's that are among `indexes`."""
        values, flaws, heads = batch.values, batch.flaws, self._head
        texts: list[str] = []
        faults: list[str] = []
        for index in indexes:
            head = heads.get(index)
            if head is None:
                continue
            value = values[index]
            if value is None:
                flaw = flaws.get(index)
                faults.append(head + _text(str(Reason.NOT_AVAILABLE if flaw is None else flaw.reason)))
            elif isinstance(value, float) and not math.isfinite(value):
                faults.append(head + _text(str(Reason.NOT_AVAILABLE)))
            else:
                texts.append(head + _word(value))
        return Inside(",".join(texts), ",".join(faults) if self._tells_bad else "")

    def _faults(self, missing: Sequence[int], flaws: Mapping[int, Flaw]) -> str:
        if not missing or not self._tells_bad:
            return ""
        return ",".join([self._head[index] + _text(str(flaws[index].reason)) for index in missing])


def _word(value: Value) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    return _text(value) if isinstance(value, str) else repr(value)


def _are_finite(values: Iterable[float]) -> bool:
    """Return whether no value is NaN or infinite; may be wrong only in saying that one is."""
    try:
        return math.isfinite(sum(values))
    except OverflowError:
        return False


_text: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode


def gathered_inside(samples: Iterable[tuple[str, Sample]]) -> Inside:
    """Return samples, each under its label, as the inside of a gathered message."""
    values: list[str] = []
    faults: list[str] = []
    for label, sample in samples:
        value = sample.value
        if value is None:
            faults.append(f"{_text(label)}:{_text(str(sample.reason))}")
        elif isinstance(value, float) and not math.isfinite(value):
            faults.append(f"{_text(label)}:{_text(Reason.NOT_AVAILABLE)}")
        else:
            values.append(f"{_text(label)}:{_word(value)}")
    return Inside(",".join(values), ",".join(faults))


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
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", _HALVES)
