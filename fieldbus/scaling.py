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
from dataclasses import dataclass, field
from fractions import Fraction

from fieldbus.errors import ConversionError

Number = int | float
_EXACT_BELOW = 2.0**40
_CLEARLY_NEAREST = 0.499


def exact(number: Number) -> Fraction:
    """Return the decimal that a number was written as."""
    # repr() of a float is the decimal that its author wrote; Fraction(float) would be the binary one.
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


def _parts(scale: Fraction, offset: Fraction) -> tuple[int, int, int]:
    denominator = math.lcm(scale.denominator, offset.denominator)
    return int(scale * denominator), int(offset * denominator), denominator


@dataclass(frozen=True, slots=True)
class Linear:
    """``value = raw * scale + offset``."""

    scale: Number = 1
    offset: Number = 0
    parts: tuple[int, int, int] = field(init=False, repr=False, compare=False)
    """(numerator, addend, denominator): ``value = (raw * numerator + addend) / denominator``."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.offset)) or self.scale == 0:
            raise ConversionError(f"scale {self.scale} and offset {self.offset} have no inverse")
        object.__setattr__(self, "parts", _parts(exact(self.scale), exact(self.offset)))

    def times_power_of_ten(self, exponent: int) -> Linear:
        """Return ``value = raw * scale * 10 ** exponent + offset``, as exact as this one."""
        return self.times(Fraction(10) ** exponent)

    def times(self, factor: Fraction) -> Linear:
        """Return ``value = raw * scale * factor + offset``, as exact as this one."""
        scale = exact(self.scale) * factor
        made = Linear(int(scale) if scale.denominator == 1 else float(scale), self.offset)
        # The nearest float may be the repr of another decimal; the parts are of the true one.
        object.__setattr__(made, "parts", _parts(scale, exact(self.offset)))
        return made

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.parts == (1, 0, 1)

    @property
    def is_integer(self) -> bool:
        """Whether an integer raw value gives an integer."""
        return self.parts[2] == 1

    def forward_int(self) -> Callable[[int], Number]:
        """Return the converter from an integer raw value to its engineering value."""
        numerator, addend, denominator = self.parts
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
        numerator, addend, denominator = self.parts
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ConversionError(f"{value} has no integer")
            near = (value * denominator - addend) / numerator
            # Floating point settles it, unless the value is huge or lies between two steps.
            if abs(near) < _EXACT_BELOW and abs(near - (raw := round(near))) < _CLEARLY_NEAREST:
                return raw
        elif numerator == denominator == 1:
            return int(value) - addend
        return round((exact(value) * denominator - addend) / numerator)

    def inverse_float(self, value: Number) -> float:
        """Convert an engineering value to a floating-point raw value."""
        return float((value - self.offset) / self.scale)

    def range_of(self, lowest: Number, highest: Number) -> tuple[Number, Number]:
        """Return the engineering range of the raw range ``lowest..highest``, in ascending order."""
        forward = self.forward_int() if isinstance(lowest, int) else self.forward_float()
        ends = (forward(lowest), forward(highest))  # type: ignore[arg-type]
        return min(ends), max(ends)
