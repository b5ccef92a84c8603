"""Single values out of registers and back: the pieces that the codec of a point is made of.

Rules:

* Decoding never raises: it gives a value, or a flaw that says why there is none.
* Encoding raises `ConversionError` for what cannot be expressed; nothing is cut, wrapped or clamped.
* A time is ISO 8601 text in UTC: ``2026-11-23T14:02:11Z``. It is rounded to the nearest unit of the
  register when written. Raw 0 is the epoch, a value like any other, unless the point says that it is
  `invalid`.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from enum import StrEnum

from fieldbus.errors import ConversionError
from fieldbus.model import OUT_OF_RANGE, Flaw, Point, Reason, Value, bad
from fieldbus.scaling import Linear

Decoded = tuple[Value | None, Flaw | None]
Convert = Callable[[object], Decoded]
"""From what `struct` unpacked (a number, or bytes) to a value and its flaw."""

NOT_AVAILABLE: Decoded = (None, bad(Reason.NOT_AVAILABLE))
NOT_A_NUMBER: Decoded = (None, bad(Reason.CONVERSION))

LARGEST_EXPONENT = 10
"""Of a power of ten that stands in a register: SunSpec's go from -10 to 10."""


class Epoch(StrEnum):
    """What an integer that is a time counts, and from when."""

    UNIX = "unix"
    UNIX_MS = "unix_ms"
    Y2000 = "y2000"


_ONE_US = datetime.timedelta(microseconds=1)
_START = {
    Epoch.UNIX: datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC),
    Epoch.UNIX_MS: datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC),
    Epoch.Y2000: datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
}
_UNIT_US = {Epoch.UNIX: 1_000_000, Epoch.UNIX_MS: 1_000, Epoch.Y2000: 1_000_000}


def power_of_ten(value: object) -> int | None:
    """Return the exponent that a point's value is, None if it is none that a value is scaled by."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_EXPONENT:
        return value
    return None


def float_converter(linear: Linear) -> Convert:
    """Return the converter of a floating-point raw value; NaN and infinity are no values."""
    forward = None if linear.is_identity else linear.forward_float()
    isfinite = math.isfinite

    def decode(raw: object) -> Decoded:
        number: float = raw  # type: ignore[assignment]
        if forward is not None:
            number = forward(number)
        return (number, None) if isfinite(number) else NOT_AVAILABLE

    return decode


def range_checked(point: Point, convert: Convert) -> Convert:
    """Return `convert` with what lies outside the point's declared range marked as uncertain."""
    if point.minimum is None and point.maximum is None:
        return convert
    low = -math.inf if point.minimum is None else point.minimum
    high = math.inf if point.maximum is None else point.maximum

    def decode(raw: object) -> Decoded:
        value, flaw = convert(raw)
        if flaw is None and not low <= value <= high:  # type: ignore[operator]
            return value, OUT_OF_RANGE
        return value, flaw

    return decode


def time_text(raw: int, epoch: Epoch) -> str | None:
    """Return a time as ISO 8601 in UTC; None outside the years 1 to 9999."""
    try:
        moment = _START[epoch] + datetime.timedelta(microseconds=raw * _UNIT_US[epoch])
    except OverflowError:
        return None
    precision = "milliseconds" if epoch is Epoch.UNIX_MS else "seconds"
    return moment.replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def moment_of(value: Value) -> datetime.datetime:
    """Return the moment that a text names.

    Raises:
        ConversionError: it is not ISO 8601, or says nothing of its zone.
    """
    if not isinstance(value, str):
        raise ConversionError(f"{value!r} is not a time such as 2026-11-23T14:02:11Z")
    try:
        moment = datetime.datetime.fromisoformat(value.strip())
    except ValueError as error:
        raise ConversionError(f"{value!r} is not a time such as 2026-11-23T14:02:11Z") from error
    if moment.tzinfo is None:
        raise ConversionError(f"{value!r} has no zone: end it with Z or with an offset such as +01:00")
    return moment


def raw_time(value: Value, epoch: Epoch) -> int:
    """Return the raw value nearest to a time.

    Raises:
        ConversionError: see `moment_of`.
    """
    moment = moment_of(value)
    unit_us = _UNIT_US[epoch]
    count, rest = divmod((moment - _START[epoch]) // _ONE_US, unit_us)
    return count + (2 * rest >= unit_us)
