"""Interlocks: what must be true for a write, as ``press.door == closed and press.speed < 10``.

Rules: pure. Only a good value fulfils a condition. Each condition compares a point with a fixed value.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fieldbus.errors import RefusedError, closest
from fieldbus.gateway.commands.command import fitting
from fieldbus.model import Point, Quality, Sample, Value

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*([A-Za-z0-9_.\-]+)\s*(==|!=|<=|>=|<|>)\s*(.+?)\s*")
_WORDS = {"true": True, "on": True, "false": False, "off": False}


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be true for a write: a point's good value, compared with another value."""

    point: Point | None
    """None if it is not known yet: another gateway's that was never heard."""
    comparison: str
    value: Value
    text: str
    """As it was written."""

    def holds(self, sample: Sample) -> bool:
        """Return whether a sample fulfils it; a value that is not good fulfils nothing."""
        value = sample.value
        if value is None or sample.quality is not Quality.GOOD:
            return False
        if isinstance(value, str) != isinstance(self.value, str):
            return False
        return _COMPARISONS[self.comparison](value, self.value)


def parse_conditions(text: str, points: Mapping[str, Point]) -> tuple[Condition, ...]:
    """Return what ``press.door == closed and press.speed < 10`` asks for.

    Raises:
        ValueError: it is none, or names what there is not; the message is for who wrote it.
    """
    found = []
    for part in re.split(r"\s+and\s+", text):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise ValueError(f"'{part}' is not a condition such as press.door == closed")
        address, comparison, wanted = match.groups()
        point = points.get(address)
        if point is None:
            hint = closest(address, points)
            raise ValueError(f"there is no point '{address}'" + (f" ({hint})" if hint else ""))
        if not point.access.can_read:
            raise ValueError(f"{address} can only be written, so nobody knows its value")
        value = _condition_value(point, wanted.strip("'\""))
        if isinstance(value, str) and comparison not in ("==", "!="):
            raise ValueError(f"{address} is text, which is only equal or not")
        found.append(Condition(point, comparison, value, part.strip()))
    return tuple(found)


def _condition_value(point: Point, text: str) -> Value:
    given: Value = text
    if text not in point.labels.values():
        given = _WORDS.get(text.lower(), text)
        if given is text:
            try:
                given = float(text)
            except ValueError:
                given = text
    try:
        return fitting(point, given)
    except RefusedError as error:
        raise ValueError(f"{point.address}: {error}") from None
