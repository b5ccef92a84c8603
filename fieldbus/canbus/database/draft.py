"""Messages as a database's file has them, checked and repaired before anybody relies on them.

A draft is what a reader of some format collected: nothing in it is trusted. `repair` turns drafts into
drafts that can become a `layout.Message`, and notes what it changed or left out.

Rules:

* One bad signal costs itself and, if it is a selector, what it selects; one bad message costs itself.
* Nothing is lost silently: each repair and each omission is a note with the line it is about.
* A signal whose value could be wrong is left out; a fault that cannot change a value is repaired.
* Ranges of selector values stay ranges here, and their total is bounded: they become sets later.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fieldbus.canbus.layout import FLOATS, MAX_MESSAGE_BYTES
from fieldbus.scaling import Number

MAX_CLASSIC_BYTES = 8
MAX_FD_BYTES = 64
MAX_STANDARD_ID = 0x7FF
MAX_EXTENDED_ID = 0x1FFFFFFF
MAX_MESSAGES = 100_000
MAX_IDS_PER_SIGNAL = 65_536
"""Selector values for which one signal is present …"""
MAX_IDS = 1 << 20
"""… and for all different ranges of a file together."""
MAX_NESTING = 16
"""Selectors inside selectors."""
NO_NUMBER = 1 << 30
"""Of a start or a length that is no whole number."""
MAX_NOTES = 1000
FEW_NOTES = 20
"""Of those that cost nothing so many are shown: what is left out must not drown in them."""
MAX_NAME = 128
"""Characters of a name, comfortably more than any tool writes."""

Ranges = tuple[tuple[int, int], ...]
"""Inclusive, ascending, apart."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was repaired or left out."""

    line: int
    path: str
    """Which message, and signal: ``Status.Speed``; may be empty."""
    text: str


class Notes:
    """What happened on the way, bounded."""

    def __init__(self) -> None:
        self._items: dict[bool, list[Note]] = {False: [], True: []}
        """Those that cost something, and those that cost nothing."""
        self._counts = {False: 0, True: 0}

    def add(self, line: int, path: str, text: str, *, is_harmless: bool = False) -> None:
        """Note one thing; one that costs nothing (a name) makes room for one that does."""
        self._counts[is_harmless] += 1
        if len(self._items[is_harmless]) < (FEW_NOTES if is_harmless else MAX_NOTES):
            self._items[is_harmless].append(Note(line, path, text))

    def ordered(self) -> list[Note]:
        """Return them by line, and at the end how many more of each kind there were."""
        found = sorted([*self._items[False], *self._items[True]], key=lambda note: note.line)
        for is_harmless, text in (
            (True, "{} more names are repaired, which costs nothing"),
            (False, "{} more warnings are not shown"),
        ):
            more = self._counts[is_harmless] - len(self._items[is_harmless])
            if more:
                found.append(Note(0, "", text.format(more)))
        return found


@dataclass(slots=True, eq=False)
class DraftSignal:
    """A signal as its file has it; fields are those of `layout.Signal` where not described."""

    name: str
    line: int = 0
    start: int = 0
    length: int = 1
    is_little_endian: bool = True
    is_signed: bool = False
    is_float: bool = False
    scale: Number | None = 1
    """None, as for the numbers below: it is there but it is no finite number."""
    offset: Number | None = 0
    minimum: Number | None = None
    maximum: Number | None = None
    unit: str = ""
    labels: dict[int, str] = field(default_factory=dict)
    comment: str = ""
    raw_initial: Number = 0
    timeout_s: float | None = None
    selector: str | None = None
    """The name in the file of the multiplexer that selects it, None for always present."""
    ids: Sequence[tuple[int, int]] = ()
    """Inclusive ranges of the selector's raw values."""
    long_name: str = ""
    """The name it should have rather, if that is unambiguous."""
    condition: list[tuple[DraftSignal, Ranges]] = field(default_factory=list)
    """Outermost first; filled by `repair`."""

    @property
    def layout(self) -> tuple[object, ...]:
        """Where it lies and how it is scaled; ``1`` and ``1.0`` are not the same there."""
        numbers = (self.scale, self.offset, self.minimum, self.maximum)
        flags = (self.is_little_endian, self.is_signed, self.is_float)
        return (self.start, self.length, flags, numbers, tuple(map(type, numbers)))

    @property
    def bits(self) -> int:
        """A mask of the bits it occupies, bit n standing for bit n % 8 of byte n // 8."""
        if self.is_little_endian:
            return ((1 << self.length) - 1) << self.start
        mask, at, left = 0, self.start, self.length
        while left > 0:
            taken = min(left, at % 8 + 1)
            mask |= ((1 << taken) - 1) << (at - taken + 1)
            left -= taken
            at = at // 8 * 8 + 15
        return mask


@dataclass(slots=True, eq=False)
class DraftMessage:
    """A message as its file has it; fields are those of `layout.Message` where not described."""

    name: str
    frame_id: int
    is_extended: bool
    length: int
    line: int = 0
    signals: list[DraftSignal] = field(default_factory=list)
    is_fd: bool = False
    is_j1939: bool = False
    cycle_s: float | None = None
    timeout_s: float | None = None
    senders: list[str] = field(default_factory=list)
    comment: str = ""
    long_name: str = ""
    """The name it should have rather, if that is unambiguous."""


def repair(messages: Iterable[DraftMessage], notes: Notes) -> list[DraftMessage]:
    """Return the messages that can be used, changed in place; `notes` tells what was done to them."""
    kept: list[DraftMessage] = []
    for message in messages:
        fault = _message_fault(message)
        if fault is None and len(kept) == MAX_MESSAGES:
            fault = f"a database has at most {MAX_MESSAGES} messages"
        if fault is not None:
            notes.add(message.line, message.name, f"message {_short(message.name)} is left out: {fault}")
        else:
            kept.append(message)
    _rename_messages(kept, notes)
    budget = _Budget()
    for message in kept:
        _repair_length(message, notes)
        _repair_signals(message, notes, budget)
        _rename_signals(message, notes)
        _say_overlap(message, notes)
    _say_shared_ids(kept, notes)
    return kept


def safe_name(name: str) -> str:
    """Return a name that can be part of a point's: letters, digits, ``_`` and ``-``, no digit first."""
    safe = _UNSAFE.sub("_", name.strip())[:MAX_NAME]
    return f"_{safe}" if not safe or safe[0].isdigit() else safe


def clip(ranges: Iterable[tuple[int, int]], bits: int, is_signed: bool) -> Ranges:
    """Return the part of the ranges that a selector of so many bits can have, ascending and apart.

    A signed one may be named by its value or by that of its bits.
    """
    lowest = -(1 << bits - 1) if is_signed else 0
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        low, high = max(first, lowest), min(last, (1 << bits) - 1)
        if low > high:
            continue
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


class _Budget:
    """How many selector values a file may still name; equal ranges are counted once."""

    def __init__(self) -> None:
        self._left = MAX_IDS
        self._seen: set[Ranges] = set()

    def fault(self, ranges: Ranges) -> str | None:
        count = sum(high - low + 1 for low, high in ranges)
        if count == 0:
            return "its multiplexer can never have the value that selects it"
        if count > MAX_IDS_PER_SIGNAL:
            return f"{count} multiplexer values select it, {MAX_IDS_PER_SIGNAL} at most"
        if ranges not in self._seen:
            if count > self._left:
                return f"the file names more than {MAX_IDS} multiplexer values"
            self._left -= count
            self._seen.add(ranges)
        return None


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"


def _message_fault(message: DraftMessage) -> str | None:
    if message.length == NO_NUMBER:
        return "its length is no whole number"
    limit = MAX_MESSAGE_BYTES if message.is_j1939 else MAX_FD_BYTES
    if not 0 <= message.length <= limit:
        return f"it has {message.length} bytes, {limit} at most"
    limit = MAX_STANDARD_ID
    if message.is_extended or message.frame_id > MAX_EXTENDED_ID:
        limit = MAX_EXTENDED_ID
    if not 0 <= message.frame_id <= limit:
        return f"its id 0x{message.frame_id:X} is not within 0..0x{limit:X}"
    return None


def _signal_fault(signal: DraftSignal, message: DraftMessage) -> str | None:
    if NO_NUMBER in (signal.start, signal.length):
        return "its start or its length is no whole number"
    if not 1 <= signal.length <= 64:
        return f"it has {signal.length} bits, which must be 1..64"
    if not 0 <= signal.start < max(8 * message.length, 1):
        return f"it begins at bit {signal.start} of a message of {message.length} bytes"
    if signal.bits.bit_length() > 8 * message.length:
        return f"it ends behind the message's {message.length} bytes"
    if signal.scale is None or signal.offset is None:
        return "its scale or offset is no finite number"
    if signal.scale == 0:
        return "its scale is 0"
    if signal.is_float and signal.length not in FLOATS:
        return f"it is a float of {signal.length} bits"
    return None


def leave_out(message: DraftMessage, fault_of: Callable[[DraftSignal], str | None], notes: Notes) -> None:
    """Leave out the signals of a message that have a fault, and those that they select."""
    faults = {id(signal): fault for signal in message.signals if (fault := fault_of(signal)) is not None}
    if not faults:
        return
    kept: list[DraftSignal] = []
    for signal in message.signals:
        fault = faults.get(id(signal))
        if fault is None and any(id(selector) in faults for selector, _ in signal.condition):
            fault = "its multiplexer is left out"
        if fault is None:
            kept.append(signal)
        else:
            say_left_out(notes, signal.line or message.line, message.name, signal.name, fault)
    message.signals = kept


def say_left_out(notes: Notes, line: int, message: str, signal: str, fault: str) -> None:
    """Note that a signal is left out, and why."""
    name = _short(signal)
    notes.add(line, f"{message}.{name}", f"message {message}: signal {name} is left out: {fault}")


def say_guessed(notes: Notes, encoding: str) -> None:
    """Note that an encoding was guessed."""
    text = f"its text is no UTF-8 and is read as {encoding.upper()}; `encoding` says otherwise"
    notes.add(0, "", text)


def _repair_length(message: DraftMessage, notes: Notes) -> None:
    """Have a message that is too short for its signals be as long as they need, within its kind of frame."""
    limit = MAX_CLASSIC_BYTES
    if message.is_fd or message.length > limit:
        limit = MAX_MESSAGE_BYTES if message.is_j1939 else MAX_FD_BYTES
    longest, needed = None, message.length
    for signal in message.signals:
        if 0 <= signal.start < 8 * limit and 1 <= signal.length <= 64:
            size = -(-signal.bits.bit_length() // 8)
            if needed < size <= limit:
                longest, needed = signal, size
    if longest is not None:
        text = (
            f"message {message.name} is repaired: signal {_short(longest.name)} ends behind its "
            f"{message.length} bytes: {needed} are taken"
        )
        notes.add(message.line, f"{message.name}.{_short(longest.name)}", text)
        message.length = needed


def _repair_signals(message: DraftMessage, notes: Notes, budget: _Budget) -> None:
    leave_out(message, lambda signal: _signal_fault(signal, message), notes)
    by_name: dict[str, DraftSignal] = {}
    for signal in message.signals:
        by_name.setdefault(signal.name, signal)
        _repair_numbers(message, signal, notes)
    leave_out(message, lambda signal: _resolve(signal, by_name, budget), notes)


def _repair_numbers(message: DraftMessage, signal: DraftSignal, notes: Notes) -> None:
    low, high = signal.minimum, signal.maximum
    if low is not None and high is not None and low > high:
        text = f"message {message.name}: signal {signal.name} is repaired: its range {low}..{high} is dropped"
        notes.add(signal.line or message.line, f"{message.name}.{signal.name}", text)
        signal.minimum = signal.maximum = None


def _resolve(signal: DraftSignal, by_name: dict[str, DraftSignal], budget: _Budget) -> str | None:
    """Fill in under which values of which selectors the signal is present, or say why it cannot be."""
    chain: list[tuple[DraftSignal, Ranges]] = []
    seen = {id(signal)}
    item = signal
    while item.selector is not None:
        selector = by_name.get(item.selector)
        if not item.selector:
            return "it is multiplexed, but its file does not say by which multiplexer"
        if selector is None:
            return f"its multiplexer {_short(item.selector)} is not in the message"
        if id(selector) in seen:
            return "it selects itself"
        if len(chain) == MAX_NESTING:
            return f"more than {MAX_NESTING} multiplexers select each other"
        if selector.is_float:
            return f"its multiplexer {selector.name} is a float"
        ranges = clip(item.ids, selector.length, selector.is_signed)
        fault = budget.fault(ranges)
        if fault is not None:
            return fault
        chain.append((selector, ranges))
        seen.add(id(selector))
        item = selector
    signal.condition = chain[::-1]
    return None


def _rename_messages(messages: list[DraftMessage], notes: Notes) -> None:
    names = _Names(messages)
    for message in messages:
        old, name, fault = message.name, *names.choose(message, f"_{message.frame_id:X}")
        message.name = name
        if fault is not None:
            text = f"message {name} keeps its short name: {fault}"
            notes.add(message.line, name, text, is_harmless=True)
        if name not in (old, message.long_name):
            text = f"message {_short(message.long_name or old)} is repaired: it is called {name}"
            notes.add(message.line, name, text, is_harmless=True)


def _rename_signals(message: DraftMessage, notes: Notes) -> None:
    names = _Names(message.signals)
    for signal in message.signals:
        old, name, fault = signal.name, *names.choose(signal)
        signal.name = name
        path, prefix = f"{message.name}.{name}", f"message {message.name}: signal"
        if fault is not None:
            text = f"{prefix} {name} keeps its short name: {fault}"
            notes.add(signal.line or message.line, path, text, is_harmless=True)
        if name not in (old, signal.long_name):
            text = f"{prefix} {_short(signal.long_name or old)} is repaired: it is called {name}"
            notes.add(signal.line or message.line, path, text, is_harmless=True)


class _Names:
    """Gives each of several things a safe name of its own; one that has a good name keeps it."""

    def __init__(self, items: Sequence[DraftMessage | DraftSignal]) -> None:
        self._short = Counter(safe_name(item.name) for item in items)
        self._long = Counter(safe_name(item.long_name) for item in items if item.long_name)
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def choose(self, item: DraftMessage | DraftSignal, suffix: str = "") -> tuple[str, str | None]:
        """Return the name, and why it is not the long one if it is not."""
        name, fault = safe_name(item.name), None
        if item.long_name:
            long_name = safe_name(item.long_name)
            if self._long[long_name] == 1 and self._short[long_name] == (long_name == name):
                name = long_name
            else:
                fault = f"the long one, {long_name}, is another's too"
                item.long_name = ""
        if name in self._used:
            name = self._free(f"{name}{suffix}")
        self._used.add(name)
        return name, fault

    def _free(self, name: str) -> str:
        # From where the last search ended: a thousand things of one name are not searched a million times.
        count = self._next.get(name, 1)
        found = name
        while found in self._used or found in self._short or found in self._long:
            count += 1
            found = f"{name}_{count}"
        self._next[name] = count
        return found


def _say_overlap(message: DraftMessage, notes: Notes) -> None:
    """Warn of the first signals that share bits in one branch; each is decoded all the same."""
    seen: dict[tuple[tuple[int, Ranges], ...], int] = {}
    for signal in message.signals:
        key = tuple((id(selector), ranges) for selector, ranges in signal.condition)
        bits = signal.bits
        # The branches that this one lies in, and itself.
        if any(bits & seen.get(key[:depth], 0) for depth in range(len(key) + 1)):
            text = f"message {message.name}: signal {signal.name} shares bits with one before it"
            notes.add(signal.line or message.line, f"{message.name}.{signal.name}", text)
            return
        seen[key] = seen.get(key, 0) | bits


def _say_shared_ids(messages: Sequence[DraftMessage], notes: Notes) -> None:
    first: dict[tuple[int, bool], DraftMessage] = {}
    for message in messages:
        other = first.setdefault((message.frame_id, message.is_extended), message)
        if other is not message:
            text = (
                f"messages {other.name} and {message.name} have one id, 0x{message.frame_id:X}: "
                "a frame is decoded as both"
            )
            notes.add(message.line, message.name, text)
