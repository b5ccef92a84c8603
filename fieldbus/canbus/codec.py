"""Frames and signals: the code generated from what a database describes.

Rules:

* Decoding never raises, whatever the bytes: a signal has a value or a flaw, or a value and a warning.
* A frame that is shorter than its message gives the signals that are wholly there; the others are
  missing. Bytes beyond a signal's own are never needed, bytes beyond the message's length never read.
* Bits that say "error" or "not available" are no value, nor is a float that is no finite number.
* Outside its declared range a value is uncertain, unless the database has a label for it.
* Of a multiplexed message a frame gives the common signals and those of the branches that its selectors
  name. A selector that names none, or is not wholly there, takes nothing from the common ones.
* Selectors are compared by the bits that they have in the frame, however they are scaled; a signed one
  may be named by its negative value or by that of its bits.
* Integers stay integers, decimal factors give decimal values (see `scaling`).

Design: for each branch one Python function is generated that unpacks all its signals, checks them and
returns them, because a call per signal costs more than the arithmetic. Ranges become comparisons of
raw integers, and none where the bits cannot leave the range. Only in a frame with something amiss is
each signal looked at. Scaling is one division of integers: measured, it is as
fast as a multiplication with a float, and exact. A function is generated when first it is asked
for (about a millisecond), so that a database of thousands of messages is loaded at no cost. Only numbers
from the database go into the generated text, never names, so that a hostile file cannot smuggle in code.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from fieldbus.canbus.extraction import SHORT, extraction, raw_of_bits
from fieldbus.canbus.frame_encoder import FrameEncoder
from fieldbus.canbus.layout import Condition, Message, Signal, selector_bits
from fieldbus.model import NO_FLAWS, OUT_OF_RANGE, Flaw, Reason, Value, bad
from fieldbus.scaling import Number

__all__ = ["BranchDecoder", "Decoded", "FrameEncoder", "MessageDecoder"]

Decoded = tuple[Sequence[Value | None], Mapping[int, Flaw]]
"""Values in the order of the signals, and the flaws by index."""

_NOT_AVAILABLE = bad(Reason.NOT_AVAILABLE)
_ERROR = bad(Reason.ERROR_INDICATOR)
_MISSING = bad(Reason.SHORT_FRAME)
_LARGEST = sys.float_info.max


class BranchDecoder:
    """Decodes some signals of a message that are present under the same condition."""

    def __init__(self, message: Message, signals: Sequence[Signal]) -> None:
        self._message = message
        self.signals: Sequence[Signal] = tuple(signals)
        """What is decoded, in the order of the values."""
        self.condition: Condition = self.signals[0].condition if self.signals else ()
        """When a frame has the signals; empty for always."""

    @cached_property
    def decode(self) -> Callable[[bytes], Decoded]:
        """The function from a frame's data bytes, of any length, to values and flaws."""
        return _generate_decode(self.signals, self._message.length, self._decode_short)

    def is_present(self, data: bytes) -> bool:
        """Return whether a frame carries the branch."""
        return all(read(data) in values for read, values in self._steps)

    def raw(self, data: bytes) -> Sequence[Number | None]:
        """Return the raw values: integers, or what the bits of a float say; None where they are missing."""
        if len(data) >= self._reach:
            return self._raw(data)
        raw = list(self._raw(self._padded(data)))
        for index in self._missing(len(data)):
            raw[index] = None
        return tuple(raw)

    def _decode_short(self, data: bytes) -> Decoded:
        """Decode a frame that does not have all the signals."""
        values, flaws = self.decode(self._padded(data))
        missing = self._missing(len(data))
        kept = list(values)
        for index in missing:
            kept[index] = None
        return tuple(kept), {**flaws, **dict.fromkeys(missing, _MISSING)}

    def _padded(self, data: bytes) -> bytes:
        return bytes(data).ljust(self._message.length, b"\0")

    def _missing(self, size: int) -> Sequence[int]:
        return [index for index, needed in enumerate(self._needed) if size < needed]

    @cached_property
    def _needed(self) -> Sequence[int]:
        """How long a frame must be for each signal; beyond all frames if the message has no room for it."""
        needed = [signal.bytes_needed for signal in self.signals]
        return [size if size <= self._message.length else sys.maxsize for size in needed]

    @cached_property
    def _reach(self) -> int:
        return max(self._needed, default=0)

    @cached_property
    def _raw(self) -> Callable[[bytes], Sequence[Number | None]]:
        return _generate_raw(self.signals, self._message.length)

    @cached_property
    def _steps(self) -> Sequence[tuple[_Read, frozenset[int]]]:
        return _steps(self._message, self.condition)


class MessageDecoder:
    """Decodes the frames of a message: says which branches a frame carries, and has a decoder for each."""

    def __init__(self, message: Message, wanted: Collection[Signal] | None = None) -> None:
        self._message = message
        chosen = None if wanted is None else frozenset(wanted)
        branches = (
            [signal for signal in signals if chosen is None or signal in chosen]
            for signals in message.branches().values()
        )
        self.branches: Sequence[BranchDecoder] = tuple(
            BranchDecoder(message, signals) for signals in branches if signals
        )
        """One for each condition under which a frame has a signal that is wanted."""

    @cached_property
    def select(self) -> Callable[[bytes], Sequence[int]]:
        """The function from a frame to the indexes of the branches that it carries, ascending."""
        return _selection(self._message, [branch.condition for branch in self.branches])


# --- selectors

_Read = Callable[[bytes], int | None]
"""Returns a selector's bits, or None if a frame does not wholly have them."""


@lru_cache(maxsize=1024)
def _reader(start: int, length: int, is_little_endian: bool) -> _Read:
    selector = Signal("", start, length, is_little_endian)
    form = extraction([selector], as_bits=True)
    return _compile("None", form.statements, [f"return {form.bits[0]}"], form.scope)


def _read_nothing(_data: bytes) -> None:
    """Read a selector that the message has no room for."""


def _selector(message: Message, name: str) -> Signal | None:
    """Return a signal by its name, if it is one whose bits can be in a frame."""
    found = next((signal for signal in message.signals if signal.name == name), None)
    return None if found is None or found.bytes_needed > message.length else found


def _steps(message: Message, condition: Condition) -> list[tuple[_Read, frozenset[int]]]:
    steps: list[tuple[_Read, frozenset[int]]] = []
    for name, values in condition:
        selector = _selector(message, name)
        if selector is None:
            return [(_read_nothing, frozenset())]
        read = _reader(selector.start, selector.length, selector.is_little_endian)
        steps.append((read, selector_bits(selector, values)))
    return steps


def _selection(message: Message, conditions: Sequence[Condition]) -> Callable[[bytes], Sequence[int]]:
    """Return the function from a frame to the indexes of the conditions that it meets."""
    common = tuple(index for index, condition in enumerate(conditions) if not condition)
    names = {name for condition in conditions for name, _ in condition}
    if not names:
        return lambda _data: common
    if len(names) == 1 and all(len(condition) < 2 for condition in conditions):
        return _plain_selection(message, conditions, common)
    return _general_selection(message, conditions, common)


def _plain_selection(
    message: Message, conditions: Sequence[Condition], common: Sequence[int]
) -> Callable[[bytes], Sequence[int]]:
    """Return the selection by one selector: the branches of each of its values are known beforehand."""
    ((name, _),) = next(condition for condition in conditions if condition)
    selector = _selector(message, name)
    if selector is None:
        return lambda _data: common
    chosen: dict[int, list[int]] = {}
    for index, condition in enumerate(conditions):
        for _, values in condition:
            for bits in selector_bits(selector, values):
                chosen.setdefault(bits, [*common]).append(index)
    table = {bits: tuple(sorted(indexes)) for bits, indexes in chosen.items()}
    form = extraction([selector], as_bits=True)
    scope = {**form.scope, "look_up": table.get, "common": common}
    lines = [f"return look_up({form.bits[0]}, common)"]
    return _compile("common", form.statements, lines, scope)


def _general_selection(
    message: Message, conditions: Sequence[Condition], common: Sequence[int]
) -> Callable[[bytes], Sequence[int]]:
    """Return the selection by several selectors, one in another or side by side.

    Branches are looked up by their innermost selector, which tells the most; what is outside it is then
    compared. A table of all combinations would be as large as a hostile file wants it to be.
    """
    by_innermost: dict[_Read, dict[int, list[tuple[int, list[tuple[_Read, frozenset[int]]]]]]] = {}
    for index, condition in enumerate(conditions):
        if condition:
            *outer, (read, values) = _steps(message, condition)
            for bits in values:
                by_innermost.setdefault(read, {}).setdefault(bits, []).append((index, outer))
    tables = list(by_innermost.items())

    def select(data: bytes) -> Sequence[int]:
        found = [*common]
        for read, table in tables:
            for index, outer in table.get(read(data), ()):  # type: ignore[arg-type] # None is no key
                if all(read_outer(data) in values for read_outer, values in outer):
                    found.append(index)
        found.sort()
        return found

    return select


# --- generated functions


def _compile(
    if_short: str, reading: Sequence[str], lines: Sequence[str], scope: Mapping[str, object]
) -> Callable[[bytes], Any]:
    """Return the function of `lines`, which returns `if_short` where a frame is too short for `reading`."""
    text = ["def made(data):"]
    if reading:
        text += [" try:", *(f"  {line}" for line in reading), " except short:", f"  return {if_short}"]
    text += [f" {line}" for line in lines]
    names: dict[str, Any] = {**scope, "short": SHORT}
    exec(compile("\n".join(text), "<can message>", "exec"), names)  # noqa: S102 - numbers only
    made: Callable[[bytes], Any] = names["made"]
    return made


class _Step(NamedTuple):
    """What the generated functions do with one signal."""

    before: Sequence[str]
    """Statements that come first."""
    value: str
    """The expression of its engineering value, where `check` holds."""
    check: str
    """The expression that is true where nothing is amiss; empty if that is always so."""
    judgement: Sequence[str]
    """Statements that find its value and its flaw."""


def _generate_decode(
    signals: Sequence[Signal], length: int, if_short: Callable[[bytes], Decoded]
) -> Callable[[bytes], Decoded]:
    there = [index for index, signal in enumerate(signals) if signal.bytes_needed <= length]
    form = extraction([signals[index] for index in there])
    steps = [
        _Step((), "None", "", (f"v{index:d} = None", f"flaws[{index:d}] = missing"))
        for index in range(len(signals))
    ]
    for index, raw, bits in zip(there, form.raw, form.bits, strict=True):
        steps[index] = _step(index, signals[index], raw, bits)
    lines = [line for step in steps for line in step.before]
    checks = [step.check for step in steps if step.check]
    if len(there) == len(signals):
        values = "".join(f"{step.value}, " for step in steps)
        lines += [f"if {' and '.join(checks) or True}:", f" return ({values}), good"]
    if checks or len(there) < len(signals):
        names = "".join(f"v{index:d}, " for index in range(len(signals)))
        lines += ["flaws = {}", *(line for step in steps for line in step.judgement)]
        lines.append(f"return ({names}), flaws or good")
    scope = {
        **form.scope,
        **{f"labels{index:d}": frozenset(signals[index].labels) for index in there},
        "good": NO_FLAWS,
        "out_of_range": OUT_OF_RANGE,
        "not_available": _NOT_AVAILABLE,
        "error": _ERROR,
        "missing": _MISSING,
        "if_short": if_short,
    }
    return _compile("if_short(data)", form.statements, lines, scope)


def _generate_raw(signals: Sequence[Signal], length: int) -> Callable[[bytes], Sequence[Number | None]]:
    """Return the function from at least `length` bytes to the raw values."""
    there = [index for index, signal in enumerate(signals) if signal.bytes_needed <= length]
    form = extraction([signals[index] for index in there])
    values = ["None"] * len(signals)
    for index, raw in zip(there, form.raw, strict=True):
        values[index] = raw
    lines = [*form.statements, f"return ({''.join(f'{value}, ' for value in values)})"]
    return _compile("", (), lines, form.scope)


def _step(index: int, signal: Signal, raw: str, bits: str) -> _Step:
    before: list[str] = []
    checks: list[str] = []
    verdicts: list[tuple[str, str]] = []

    def named(letter: str, text: str) -> str:
        if text.isidentifier():
            return text
        before.append(f"{letter}{index:d} = {text}")
        return f"{letter}{index:d}"

    limit = signal.indicator_from
    is_bits = not signal.is_signed and not signal.is_float
    if limit is not None:
        bits = named("b", bits)
        raw = raw_of_bits(signal, bits)
        if not is_bits:
            checks.append(f"{bits} < {limit:d}")
        for flaw, begin in (("not_available", signal.absent_from), ("error", signal.error_from)):
            if begin is not None:
                verdicts.append((f"{bits} >= {begin:d}", flaw))
    plain = raw
    raw = named("r", raw)
    if signal.is_float:
        value = subject = named("x", _scaled_float(signal, raw))
        # NaN is in no range; infinity is beyond this one.
        reach: _Interval = (-math.inf, math.inf)
        finite: _Interval = (-_LARGEST, _LARGEST)
        expected = _tighter(finite, signal.declared_range)
    else:
        value, subject = _scaled_integer(signal, raw), raw
        reach = signal.raw_range
        # What floating point cannot say is no value, and must not be computed.
        finite = _tighter(reach, _raw_interval(signal, -_LARGEST, _LARGEST))
        expected = _tighter(finite, _raw_interval(signal, *signal.declared_range))
    if is_finite := _within(finite, subject, reach):
        verdicts.append((f"not {is_finite}", "not_available"))
    judgement = _judgement(index, value, verdicts)
    if is_expected := _within(expected, subject, finite):
        indent = " " if verdicts else ""
        judgement += [
            f"{indent}if not {is_expected} and {raw} not in labels{index:d}:",
            f"{indent} flaws[{index:d}] = out_of_range",
        ]
    good = _tighter(expected, (None, limit - 1)) if is_bits and limit is not None else expected
    if is_good := _within(good, subject, reach):
        checks.append(is_good)
    if checks or verdicts:
        return _Step(before, value, " and ".join(checks), judgement)
    # What is used once needs no name.
    return _Step((), _scaled_integer(signal, plain), "", [*before, *judgement])


def _judgement(index: int, value: str, verdicts: Sequence[tuple[str, str]]) -> list[str]:
    """Return the statements that give a signal its value, unless one of the verdicts takes it away."""
    if not verdicts:
        return [f"v{index:d} = {value}"]
    lines: list[str] = []
    for condition, flaw in verdicts:
        lines += [
            f"{'elif' if lines else 'if'} {condition}:",
            f" v{index:d} = None",
            f" flaws[{index:d}] = {flaw}",
        ]
    return [*lines, "else:", f" v{index:d} = {value}"]


# --- numbers as text

_Interval = tuple[Number, Number]


def _within(interval: _Interval, subject: str, reach: _Interval) -> str:
    """Return the expression that is true within `interval`, empty if that is all that can be reached."""
    low, high = interval
    if low <= reach[0]:
        return f"{subject} <= {high!r}" if high < reach[1] else ""
    return f"{low!r} <= {subject} <= {high!r}" if high < reach[1] else f"{low!r} <= {subject}"


def _tighter(interval: _Interval, bounds: tuple[Number | None, Number | None]) -> _Interval:
    low, high = bounds
    return (
        interval[0] if low is None else max(interval[0], low),
        interval[1] if high is None else min(interval[1], high),
    )


def _raw_interval(
    signal: Signal, minimum: Number | None, maximum: Number | None
) -> tuple[int | None, int | None]:
    """Return the lowest and highest raw integers whose exact values lie within the bounds."""
    numerator, addend, denominator = signal.linear.parts
    low, high = (
        None if bound is None else (_exact(bound) * denominator - addend) / numerator
        for bound in (minimum, maximum)
    )
    if numerator < 0:
        low, high = high, low
    return None if low is None else math.ceil(low), None if high is None else math.floor(high)


def _exact(number: Number) -> Fraction:
    # A bound means the decimal that its author wrote, as a scale does (see `scaling`).
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


def _scaled_float(signal: Signal, raw: str) -> str:
    if signal.linear.is_identity:
        return raw
    return f"{raw} * {float(signal.linear.scale)!r} + {float(signal.linear.offset)!r}"


def _scaled_integer(signal: Signal, raw: str) -> str:
    numerator, addend, denominator = signal.linear.parts
    if signal.linear.is_identity:
        return raw
    text = f"({raw})" if " " in raw else raw
    if numerator != 1:
        text += f" * {numerator:d}"
    if addend:
        text += f" {'+' if addend > 0 else '-'} {abs(addend):d}"
    if denominator == 1:
        return text
    return f"({text}) / {denominator:d}" if addend else f"{text} / {denominator:d}"
