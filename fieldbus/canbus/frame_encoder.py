"""Signal values into the frames of a message.

Rules:

* What its bits cannot say is refused, never wrapped or clamped, and so are bits that would say that
  there is no value.
* A frame says of its selectors what it carries: the selectors of the branch that is asked for are set,
  and exactly the signals are in it whose condition they meet.
* Bits that belong to no signal in the frame have the message's fill.
* Of signals that share bits the one that was set last has them.

Design: little-endian signals are put together in one integer, big-endian ones in another, because each
is one shift there; the two are joined as bytes. Which signals a frame has, and where, is found once for
each state of the selectors. Signals that share bits in one frame are rare, and take the way round: each
clears its bits before it sets them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from fieldbus.canbus.layout import Condition, Message, Signal, selector_bits
from fieldbus.errors import ConversionError
from fieldbus.model import Value

_MAX_PLANS = 1024
"""States of the selectors that are remembered; a message in use has few."""

_Steps = tuple[tuple[int, frozenset[int]], ...]
"""A condition, with indexes of selectors and their bits."""
_State = tuple[list[int], list[int], int]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the signals of a frame are."""

    background: int
    """The frame without signals, as a big-endian integer."""
    little: Sequence[tuple[int, int]]
    """Indexes and shifts of the little-endian signals …"""
    big: Sequence[tuple[int, int]]
    """… and of the big-endian ones."""
    is_shared: bool
    """Whether signals share bits."""
    names: frozenset[str]
    """The signals that are in the frame."""


class FrameEncoder:
    """Builds the frames of a message from signal values; starts from the start values."""

    __slots__ = (
        "_contested", "_frames", "_index", "_masks", "_message", "_plans", "_raw", "_rivals", "_selectors",
        "_shifts", "_signals", "_steps", "_turn", "_turns",
    )  # fmt: skip

    def __init__(self, message: Message) -> None:
        self._message = message
        # A signal that ends behind the message is in none of its frames.
        self._signals = [signal for signal in message.signals if signal.bytes_needed <= message.length]
        self._index = {signal.name: index for index, signal in enumerate(self._signals)}
        self._shifts = [signal.shift(message.length) for signal in self._signals]
        self._masks = [
            self._place(index, (1 << signal.length) - 1) for index, signal in enumerate(self._signals)
        ]
        self._raw = [_start_bits(signal) for signal in self._signals]
        known: dict[Condition, _Steps | None] = {(): ()}
        for signal in self._signals:
            if signal.condition not in known:
                known[signal.condition] = self._steps_of(signal.condition)
        self._steps = [known[signal.condition] for signal in self._signals]
        self._selectors = sorted({index for steps in known.values() for index, _ in steps or ()})
        self._contested = _shared(self._masks)
        self._rivals: dict[int, Sequence[int]] = {}
        self._turn = 0
        self._turns = [0] * len(self._signals)
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._frames: dict[Condition, bytes] = {}

    def set(self, name: str, value: Value) -> bool:
        """Set a signal's engineering value, or what its label names; return whether its bits changed.

        Raises:
            ConversionError: it does not fit.
            KeyError: the message has no such signal.
        """
        index = self._index.get(name)
        if index is None:
            if any(signal.name == name for signal in self._message.signals):
                raise ConversionError(f"{name} is not in the {self._message.length} bytes of the message")
            raise KeyError(name)
        return self._set_bits(index, self._signals[index].to_raw(value))

    def set_absent(self, name: str) -> bool:
        """Set all bits of a signal, which means "not available"; return whether that changed any.

        Raises:
            KeyError: no frame of the message has such a signal.
        """
        index = self._index[name]
        return self._set_bits(index, (1 << self._signals[index].length) - 1)

    def _set_bits(self, index: int, raw: int) -> bool:
        is_changed = self._raw[index] != raw
        if self._masks[index] & self._contested:
            turns = self._turns
            is_changed = is_changed or any(turns[rival] > turns[index] for rival in self._rivals_of(index))
            self._turn += 1
            turns[index] = self._turn
        if is_changed:
            self._raw[index] = raw
            self._frames.clear()
        return is_changed

    def frame(self, branch: Condition = ()) -> bytes:
        """Return the data bytes, with the selectors set to `branch`.

        A selector that has one of the branch's values keeps it; otherwise it gets the lowest. One that
        has no bits for any of them keeps what it says, and the frame has the signals of that.
        """
        found = self._frames.get(branch)
        if found is None:
            if len(self._frames) >= _MAX_PLANS:
                self._frames.clear()
            found = self._frames[branch] = self._build(branch)
        return found

    def present(self, branch: Condition = ()) -> frozenset[str]:
        """Return the names of the signals that are in the frame of a branch now."""
        raw = self._raw
        if branch:
            raw = raw.copy()
            for index, bits in self._forced(branch):
                raw[index] = bits
        return self._plan(raw).names

    def selection(self, branch: Condition = ()) -> tuple[int, ...]:
        """Return the bits of all selectors in the frame of a branch: one selection is one frame."""
        raw = self._raw
        if branch:
            raw = raw.copy()
            for index, bits in self._forced(branch):
                raw[index] = bits
        return tuple([raw[index] for index in self._selectors])

    def selects(self, name: str, values: Iterable[int]) -> bool:
        """Return whether a selector has one of the raw values now."""
        index = self._index.get(name)
        return index is not None and self._raw[index] in selector_bits(self._signals[index], values)

    def bits(self, name: str) -> int | None:
        """Return the bits of a signal as they are sent now; None if no frame has it."""
        index = self._index.get(name)
        return None if index is None else self._raw[index]

    def state(self) -> _State:
        """Return all that was set, for `restore`."""
        return self._raw.copy(), self._turns.copy(), self._turn

    def restore(self, state: _State) -> None:
        """Undo all that was set since `state`."""
        raw, turns, self._turn = state
        self._raw, self._turns = raw.copy(), turns.copy()
        self._frames.clear()

    def _build(self, branch: Condition) -> bytes:
        raw = self._raw
        forced = dict(self._forced(branch))
        if forced:
            raw = raw.copy()
            for index, bits in forced.items():
                raw[index] = bits
        plan = self._plan(raw)
        if plan.is_shared:
            return self._build_shared(plan, raw, forced)
        little, big = 0, plan.background
        for index, shift in plan.little:
            little |= raw[index] << shift
        for index, shift in plan.big:
            big |= raw[index] << shift
        length = self._message.length
        return (int.from_bytes(little.to_bytes(length, "little"), "big") | big).to_bytes(length, "big")

    def _build_shared(self, plan: _Plan, raw: Sequence[int], forced: dict[int, int]) -> bytes:
        # A frame whose selector were overwritten would be another branch's.
        order = sorted(
            (index for index, _ in chain(plan.little, plan.big)),
            key=lambda index: (index in forced, self._turns[index], index),
        )
        word = plan.background
        for index in order:
            word = word & ~self._masks[index] | self._place(index, raw[index])
        return word.to_bytes(self._message.length, "big")

    def _forced(self, branch: Condition) -> list[tuple[int, int]]:
        """Return the selectors that a branch sets, and their bits."""
        forced = []
        for name, values in branch:
            index = self._index.get(name)
            if index is None:
                continue
            selector, bits = self._signals[index], self._raw[index]
            if bits not in selector_bits(selector, values):
                # In order of the values as they are named: the lowest is negative if one is.
                wanted = (selector_bits(selector, [value]) for value in sorted(values))
                bits = min(next(filter(None, wanted), {bits}))
            forced.append((index, bits))
        return forced

    def _plan(self, raw: Sequence[int]) -> _Plan:
        state = tuple([raw[index] for index in self._selectors])
        plan = self._plans.get(state)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[state] = self._make_plan(raw)
        return plan

    def _make_plan(self, raw: Sequence[int]) -> _Plan:
        present = [
            index
            for index, steps in enumerate(self._steps)
            if steps is not None and all(raw[selector] in values for selector, values in steps)
        ]
        length = self._message.length
        background = int.from_bytes(bytes([self._message.fill]) * length, "big")
        for index in present:
            background &= ~self._masks[index]
        places: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for index in present:
            places[self._signals[index].is_little_endian].append((index, self._shifts[index]))
        is_shared = bool(_shared([self._masks[index] for index in present]))
        names = frozenset(self._signals[index].name for index in present)
        return _Plan(background, places[True], places[False], is_shared, names)

    def _place(self, index: int, bits: int) -> int:
        """Return a signal's bits where they are in the frame, as a big-endian integer."""
        placed = bits << self._shifts[index]
        if self._signals[index].is_little_endian:
            return int.from_bytes(placed.to_bytes(self._message.length, "little"), "big")
        return placed

    def _steps_of(self, condition: Condition) -> _Steps | None:
        """Return a condition by the indexes and bits of its selectors, or None if it cannot be met."""
        steps = []
        for name, values in condition:
            index = self._index.get(name)
            if index is None:
                return None
            steps.append((index, selector_bits(self._signals[index], values)))
        return tuple(steps)

    def _rivals_of(self, index: int) -> Sequence[int]:
        """Return the signals that share bits with one and can be in a frame with it."""
        if not self._rivals:
            self._find_rivals()
        return self._rivals[index]

    def _find_rivals(self) -> None:
        groups: dict[_Steps, list[int]] = {}
        for index, steps in enumerate(self._steps):
            self._rivals[index] = ()
            if steps is not None and self._masks[index] & self._contested:
                groups.setdefault(steps, []).append(index)
        for steps, members in groups.items():
            beside = [
                other for others, group in groups.items() if _can_meet(steps, others) for other in group
            ]
            for index in members:
                mask = self._masks[index]
                self._rivals[index] = [
                    other for other in beside if other != index and self._masks[other] & mask
                ]


def _start_bits(signal: Signal) -> int:
    try:
        return signal.initial_raw()
    except (ConversionError, ValueError, OverflowError):
        return 0


def _shared(masks: Sequence[int]) -> int:
    """Return the bits that several masks have."""
    once = several = 0
    for mask in masks:
        several |= once & mask
        once |= mask
    return several


def _can_meet(one: _Steps, other: _Steps) -> bool:
    """Return whether two conditions can hold of one frame."""
    wanted = dict(one)
    return all(index not in wanted or not values.isdisjoint(wanted[index]) for index, values in other)
