"""Exact linear scaling between raw integers and engineering values.

Rules:

* Integers stay integers where factor and offset are integers.
* Decimal factors give decimal values: raw 3 with scale 0.1 is 0.3, not 0.30000000000000004.
* The inverse rounds to the nearest raw step (half to even) and never clamps: whether the raw value
  fits its field is the caller's question.

Design: a factor such as 0.1 has no exact binary form, but 1/10 has an exact integer quotient. Scale
and offset are therefore held as ``(raw * numerator + addend) / denominator`` in integers, and the
one division at the end is correctly rounded by Python (int / int). Floating-point raw values have no
such exactness to keep and are scaled in plain floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from fieldbus.errors import ConversionError

Number = int | float


def _exact(number: Number) -> Fraction:
    # repr() of a float is the decimal that its author wrote; Fraction(float) would be the binary one.
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


@dataclass(frozen=True, slots=True)
class Linear:
    """``value = raw * scale + offset``."""

    scale: Number = 1
    offset: Number = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.offset)) or self.scale == 0:
            raise ConversionError(f"scale {self.scale} and offset {self.offset} have no inverse")

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.scale == 1 and self.offset == 0

    @property
    def is_integer(self) -> bool:
        """Whether an integer raw value gives an integer."""
        return _exact(self.scale).denominator == 1 and _exact(self.offset).denominator == 1

    def integers(self) -> tuple[int, int, int]:
        """Return (numerator, addend, denominator): ``(raw * numerator + addend) / denominator``."""
        scale, offset = _exact(self.scale), _exact(self.offset)
        denominator = math.lcm(scale.denominator, offset.denominator)
        return int(scale * denominator), int(offset * denominator), denominator

    def forward_int(self) -> Callable[[int], Number]:
        """Return the converter from an integer raw value to its engineering value."""
        numerator, addend, denominator = self.integers()
        if denominator == 1:
            if numerator == 1 and addend == 0:
                return lambda raw: raw
            return lambda raw: raw * numerator + addend
        return lambda raw: (raw * numerator + addend) / denominator

    def forward_float(self) -> Callable[[float], float]:
        """Return the converter from a floating-point raw value to its engineering value."""
        scale, offset = self.scale, self.offset
        return lambda raw: raw * scale + offset

    def inverse_int(self, value: Number) -> int:
        """Convert an engineering value to the nearest integer raw value.

        Raises:
            ConversionError: `value` is not finite.
        """
        if isinstance(value, float) and not math.isfinite(value):
            raise ConversionError(f"{value} has no integer")
        return round((_exact(value) - _exact(self.offset)) / _exact(self.scale))

    def inverse_float(self, value: Number) -> float:
        """Convert an engineering value to a floating-point raw value."""
        return float((value - self.offset) / self.scale)

    def range_of(self, lowest: Number, highest: Number) -> tuple[Number, Number]:
        """Return the engineering range of the raw range ``lowest..highest``, in ascending order."""
        forward = self.forward_int() if isinstance(lowest, int) else self.forward_float()
        ends = (forward(lowest), forward(highest))  # type: ignore[arg-type]
        return min(ends), max(ends)
