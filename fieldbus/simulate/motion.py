"""How simulated values move: plausibly, inside their range, the same on every run.

Rules: pure; the value is a function of the point's name and of the time. Numbers swing slowly between
their bounds, each with a period and phase of its own; whole numbers without declared bounds count up;
booleans switch every few seconds; enumerations step through their labels. Names among decimals (``SNA``)
make no enumeration.
"""

from __future__ import annotations

import math
import zlib

from fieldbus.model import Kind, Point, Value

_DEFAULT_RANGE = (0.0, 100.0)
_WIDEST = 1e9
"""A declared range beyond this is that of the type, not of the process."""


def value_at(point: Point, seconds: float) -> Value:
    """Return the value of a point at a time since start."""
    seed = zlib.crc32(point.address.encode())
    period_s = 60.0 + seed % 61
    phase = (seed >> 8) % 1000 / 1000
    turn = seconds / period_s + phase
    if point.kind is Kind.STRING:
        return f"SIM {point.name}"
    if point.kind is Kind.BOOL:
        return int(turn * 6) % 3 != 0
    if point.labels and point.kind is Kind.INT:
        labels = sorted(point.labels)
        return labels[int(turn * 4) % len(labels)]
    low, high = bounds(point)
    if point.kind is Kind.INT and point.minimum is None and point.maximum is None:
        span = int(high - low) + 1
        return int(low) + int(seconds * (1 + seed % 5)) % span
    # A swing over the middle 80 % and a ripple on it: something to see, and never at the bounds.
    swing = 0.4 * math.sin(2 * math.pi * turn) + 0.02 * math.sin(2 * math.pi * turn * 13)
    value = low + (high - low) * (0.5 + swing)
    if point.kind is Kind.INT:
        return round(value)
    return round(value, 3 if high - low < 1000 else 1)


def bounds(point: Point) -> tuple[float, float]:
    """Return the range in which a simulated point moves."""
    low, high = point.range
    if low is None or abs(low) > _WIDEST:
        low = None
    if high is None or abs(high) > _WIDEST:
        high = None
    if low is None and high is None:
        return _DEFAULT_RANGE
    if low is None:
        low = min(0.0, (high or 0.0) - 100.0)
    if high is None:
        high = max(100.0, low + 100.0)
    return low, high


def resting_value(point: Point) -> Value:
    """Return the value that a writable point has until somebody writes it."""
    if point.kind is Kind.STRING:
        return ""
    if point.kind is Kind.BOOL:
        return False
    low, high = bounds(point)
    start = min(max(0.0, low), high)
    return int(start) if point.kind is Kind.INT else start
