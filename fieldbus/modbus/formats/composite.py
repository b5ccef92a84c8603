"""Values of several registers that do not adjoin: parts with factors, and a sign of its own.

The value is the sum of all parts, each times its factor, negative where the sign part is 1; then `scale` and
`offset` apply to the whole.

Rules:

* All parts come out of one response; where one of them is no value, or the sign is neither 0 nor 1, there is
  no value.
* Whole numbers stay exact: factors such as 0.1 are fractions until the last step.
* A value is taken apart (to serve it) from the largest factor to the smallest: 2623 kWh is 2 MWh and
  623 kWh. What the parts cannot hold is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from fieldbus.errors import ConversionError
from fieldbus.modbus.converters import (
    NOT_A_NUMBER,
    Convert,
    Decoded,
    float_converter,
    range_checked,
)
from fieldbus.model import Value
from fieldbus.scaling import Linear, exact

if TYPE_CHECKING:
    from fieldbus.modbus.registers import RegisterPoint

Number = int | float


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One of the registers (or bits of them) of a value."""

    place: RegisterPoint
    """Where and how it lies; a point of its own in all but name."""
    factor: Number = 1
    is_sign: bool = False
    """Whether it says that the whole is negative."""


def weights(parts: Sequence[Part]) -> tuple[list[int], int]:
    """Return the factors as whole numbers, 0 for a sign, and by what they are too large."""
    factors = [Fraction(0) if part.is_sign else exact(part.factor) for part in parts]
    denominator = math.lcm(*(factor.denominator for factor in factors))
    return [int(factor * denominator) for factor in factors], denominator


def is_exact(parts: Sequence[Part]) -> bool:
    """Return whether no part is a floating-point number."""
    return not any(part.place.type.is_float for part in parts)


def whole_scale(point: RegisterPoint) -> Linear:
    """Return what makes an engineering value of the sum of the weighted parts."""
    _, denominator = weights(point.parts)
    return point.linear.times(Fraction(1, denominator))


def joined_decoder(point: RegisterPoint) -> Callable[[Sequence[object]], Decoded]:
    """Return the converter from what `struct` unpacked of each part, in their order, to the value."""
    factors, _ = weights(point.parts)
    signs = [part.is_sign for part in point.parts]
    read = [part.place.decoder() for part in point.parts]
    linear = whole_scale(point)
    if is_exact(point.parts):
        forward = linear.forward_int()
        finish: Convert = lambda total: (forward(total), None)  # type: ignore[arg-type] # noqa: E731
    else:
        finish = float_converter(linear)
    finish = range_checked(point.point, finish)

    def decode(tokens: Sequence[object]) -> Decoded:
        total: Number = 0
        sign = 1
        for token, convert, factor, is_sign in zip(tokens, read, factors, signs, strict=True):
            value, flaw = (token, None) if convert is None else convert(token)
            if flaw is not None:
                return None, flaw
            number: Number = value  # type: ignore[assignment] # parts are numbers or bits
            if not is_sign:
                total += number * factor
            elif number in (0, 1):
                sign = -1 if number else 1
            else:
                return NOT_A_NUMBER
        return finish(sign * total)

    return decode


def splitter(point: RegisterPoint) -> Callable[[Value], list[bytes]]:
    """Return the converter from a value to the registers of each part, in their order.

    It raises `ConversionError` for what the parts cannot hold.
    """
    factors, _ = weights(point.parts)
    linear = whole_scale(point)
    has_sign = any(part.is_sign for part in point.parts)
    encode = [part.place.encoder() for part in point.parts]
    ranges = [part.place.raw_range for part in point.parts]
    descending = sorted(
        (index for index, part in enumerate(point.parts) if not part.is_sign),
        key=lambda index: -abs(factors[index]),
    )

    def split(value: Value) -> list[bytes]:
        if isinstance(value, str):
            raise ConversionError(f"{value!r} is not a number")
        rest = linear.inverse_int(value)
        is_negative = has_sign and rest < 0
        rest = abs(rest) if has_sign else rest
        raw: list[int] = [int(is_negative)] * len(factors)  # of the sign; the others follow
        for index in descending:
            factor, (low, high) = factors[index], ranges[index]
            is_last = index == descending[-1]
            found = round(Fraction(rest, factor)) if is_last else rest // factor
            raw[index] = found if is_last else min(max(found, low), high)
            rest -= raw[index] * factor
        if abs(rest) * 2 > abs(factors[descending[-1]]):
            raise ConversionError(f"{value} does not fit its parts")
        return [convert(number) for convert, number in zip(encode, raw, strict=True)]

    return split
