"""Frames and signals: the code generated from what a database describes.

Rules:

* Decoding never raises, whatever the bytes: a signal has a value or a flaw.
* A frame that is shorter than its message gives the signals that are wholly there; the others are not
  available. Bytes beyond the message's length are ignored.
* Of a multiplexed message a frame gives the common signals and those of the branch that its selector
  names. An unknown selector takes nothing from the common ones.
* Integers stay integers, decimal factors give decimal values (see `scaling`).
* Encoding refuses what does not fit its bits.

Design: for each branch one Python function is generated that unpacks all its signals in one
expression, because a call per signal costs more than the arithmetic. Only integers from the database
go into the generated text, never names, so that a hostile file cannot smuggle in code.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence

from fieldbus.canbus.layout import FLOATS, Condition, Message, Signal
from fieldbus.model import OUT_OF_RANGE, Flaw, Reason, Value, bad

Decoded = tuple[Sequence[Value | None], Mapping[int, Flaw]]
"""Values in the order of the signals, and the flaws by index."""

_NOT_AVAILABLE = bad(Reason.NOT_AVAILABLE)


class BranchDecoder:
    """Decodes some signals of a message that are present under the same condition."""

    __slots__ = ("_checks", "_is_in_range", "_length", "_needed", "_selectors", "_shortest", "_unpack")

    def __init__(self, message: Message, signals: Sequence[Signal]) -> None:
        self._length = message.length
        self._needed = [signal.bytes_needed for signal in signals]
        self._shortest = max(self._needed, default=0)
        self._checks: list[tuple[int, float, float]] = []
        by_name = {signal.name: signal for signal in message.signals}
        condition = signals[0].condition if signals else ()
        self._selectors = [
            (_generate([by_name[name]], message.length), values, by_name[name].bytes_needed)
            for name, values in condition
        ]
        self._unpack = _generate(signals, message.length)
        self._is_in_range: Callable[[Sequence[Value | None]], bool]
        for index, signal in enumerate(signals):
            low = -math.inf if signal.minimum is None else signal.minimum
            high = math.inf if signal.maximum is None else signal.maximum
            reach = (-math.inf, math.inf) if signal.is_float else signal.linear.range_of(*signal.raw_range)
            if signal.is_float or low > reach[0] or high < reach[1]:
                self._checks.append((index, low, high))
        self._is_in_range = _generate_check(self._checks)

    def is_present(self, data: bytes) -> bool:
        """Return whether a frame carries the branch."""
        for unpack, values, needed in self._selectors:
            if len(data) < needed:
                return False
            padded = data[: self._length].ljust(self._length, b"\0")
            if unpack(padded)[0] not in values:
                return False
        return True

    def _find_flaws(self, values: Sequence[Value | None], flaws: dict[int, Flaw]) -> Sequence[Value | None]:
        kept = list(values)
        for index, low, high in self._checks:
            value = values[index]
            if not low <= value <= high:  # type: ignore[operator]
                flaws[index] = OUT_OF_RANGE
            if isinstance(value, float) and not math.isfinite(value):
                kept[index] = None
                flaws[index] = _NOT_AVAILABLE
        return kept

    def decode(self, data: bytes) -> Decoded:
        """Return the values of a frame's data bytes."""
        size = len(data)
        if size != self._length:
            data = data[: self._length].ljust(self._length, b"\0")
        values: Sequence[Value | None] = self._unpack(data)
        flaws: dict[int, Flaw] = {}
        if not self._is_in_range(values):
            values = self._find_flaws(values, flaws)
        if size < self._shortest:
            kept = list(values)
            for index, needed in enumerate(self._needed):
                if size < needed:
                    kept[index] = None
                    flaws[index] = _NOT_AVAILABLE
            values = kept
        return values, flaws


def _generate_check(checks: Sequence[tuple[int, float, float]]) -> Callable[[Sequence[Value | None]], bool]:
    """Return whether all values are in their ranges; infinity and NaN never are."""
    largest = sys.float_info.max
    terms = [
        f"{max(low, -largest)!r} <= values[{index:d}] <= {min(high, largest)!r}"
        for index, low, high in checks
    ]
    return eval(f"lambda values: {' and '.join(terms) or 'True'}")  # type: ignore[no-any-return] # noqa: S307 - numbers only


def _generate(signals: Sequence[Signal], length: int) -> Callable[[bytes], Sequence[Value | None]]:
    """Return a function from exactly `length` data bytes to the values of `signals`."""
    lines = ["def unpack(data):"]
    if any(signal.is_little_endian for signal in signals):
        lines.append(" le = from_bytes(data, 'little')")
    if any(not signal.is_little_endian for signal in signals):
        lines.append(" be = from_bytes(data, 'big')")
    items = []
    for signal in signals:
        word = "le" if signal.is_little_endian else "be"
        shift, mask = signal.shift(length), (1 << signal.length) - 1
        raw = f"({word} >> {shift:d} & {mask:d})" if shift >= 0 else "0"
        if signal.is_float:
            raw = f"unpack{signal.length:d}({raw}.to_bytes({signal.length // 8:d}, 'big'))[0]"
            if not signal.linear.is_identity:
                raw = f"({raw} * {float(signal.linear.scale)!r} + {float(signal.linear.offset)!r})"
        else:
            if signal.is_signed:
                sign = 1 << signal.length - 1
                raw = f"(({raw} ^ {sign:d}) - {sign:d})"
            numerator, addend, denominator = signal.linear.parts
            if numerator != 1:
                raw = f"{raw} * {numerator:d}"
            if addend:
                raw = f"{raw} + {addend:d}" if addend > 0 else f"{raw} - {-addend:d}"
            if denominator != 1:
                raw = f"({raw}) / {denominator:d}"
        items.append(raw)
    lines.append(f" return ({', '.join(items)},)")
    scope = {
        "from_bytes": int.from_bytes,
        **{f"unpack{bits}": form.unpack for bits, form in FLOATS.items()},
    }
    exec(compile("\n".join(lines), "<can message>", "exec"), scope)  # noqa: S102 - integers only
    return scope["unpack"]  # type: ignore[return-value]


class FrameEncoder:
    """Builds the frames of a message from signal values; starts from the start values."""

    __slots__ = ("_by_name", "_message", "_raw")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._by_name = {signal.name: signal for signal in message.signals}
        self._raw = {signal.name: signal.initial_raw() for signal in message.signals}

    def set(self, name: str, value: Value) -> bool:
        """Set a signal's engineering value; return whether its bits changed.

        Raises:
            ConversionError: it does not fit.
        """
        raw = self._by_name[name].to_raw(value)
        if self._raw[name] == raw:
            return False
        self._raw[name] = raw
        return True

    def frame(self, branch: Condition = ()) -> bytes:
        """Return the data bytes, with the selectors set to `branch`."""
        raw = dict(self._raw)
        for name, values in branch:
            if raw[name] not in values:
                raw[name] = min(values)
        length = self._message.length
        little = big = 0
        for signal in self._message.signals:
            if all(raw[name] in values for name, values in signal.condition):
                placed = raw[signal.name] << signal.shift(length)
                if signal.is_little_endian:
                    little |= placed
                else:
                    big |= placed
        return (int.from_bytes(little.to_bytes(length, "little"), "big") | big).to_bytes(length, "big")
