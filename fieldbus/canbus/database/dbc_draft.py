"""What the statements of a DBC file say about each message, and the text that cantools is given of it.

Rules:

* An id above 0x7FF without the bit that marks it as extended is extended all the same.
* A statement about something that is not in the file is dropped; each kind is said once.
* Multiplexing, long names, attributes, comments and value names are resolved here: cantools expands
  ranges of multiplexer values without limit, takes a signal whose multiplexer is unclear as always
  present, loses what a multiplexer with a long name selects and one of two signals with one long
  name. It is given what it reads well: where each signal lies and how it is scaled.
* An attribute's default counts for messages (cycle time, timeout, frame format); of a signal's
  timeouts only those written for it, as a default would make the nodes that do not receive it wait.

Design: cantools takes 80 µs for a signal, most of a large file's time, and the signals of such a file
are alike: it is asked once for each different layout. Their names are ours, ``S0``, ``S1`` …, so that it
sees no keyword as a name and no name twice, and its answer is matched by order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fieldbus.canbus.database.dbc_text import Attached, DbcText, MessageText, SignalText, number
from fieldbus.canbus.database.draft import (
    MAX_EXTENDED_ID,
    MAX_STANDARD_ID,
    NO_NUMBER,
    DraftMessage,
    DraftSignal,
    Notes,
)
from fieldbus.scaling import Number

_EXTENDED = 1 << 31
_PSEUDO_MESSAGE = "VECTOR__INDEPENDENT_SIG_MSG"
"""Holds the signals that are in no message."""
_NOBODY = "Vector__XXX"
_FRAME_FORMATS = {
    0: "StandardCAN",
    1: "ExtendedCAN",
    3: "J1939PG",
    14: "StandardCAN_FD",
    15: "ExtendedCAN_FD",
}


def drafts(found: DbcText, notes: Notes) -> list[DraftMessage]:
    """Return the messages with all that the file says of them."""
    return _Builder(found, notes).build()


def text_for_cantools(signals: Sequence[DraftSignal]) -> str:
    """Return a DBC text of one message with the layouts and scalings of repaired signals, in their order."""
    lines = ['VERSION ""', "BS_:", "BU_:", f"BO_ 0 M: 8 {_NOBODY}"]
    floats: list[str] = []
    for index, signal in enumerate(signals):
        order, sign = "01"[signal.is_little_endian], "+-"[signal.is_signed]
        low = 0 if signal.minimum is None else signal.minimum
        high = 0 if signal.maximum is None else signal.maximum
        lines.append(
            f" SG_ S{index} : {signal.start}|{signal.length}@{order}{sign} "
            f'({signal.scale!r},{signal.offset!r}) [{low!r}|{high!r}] "" {_NOBODY}'
        )
        if signal.is_float:
            floats.append(f"SIG_VALTYPE_ 0 S{index} : {2 if signal.length == 64 else 1};")
    return "\n".join([*lines, *floats, ""])


class _Builder:
    """Puts the statements about a message together."""

    def __init__(self, found: DbcText, notes: Notes) -> None:
        self._found = found
        self._notes = notes
        self._messages: dict[int, list[DraftMessage]] = {}
        """By the number that other statements name them with."""
        self._signals: dict[int, dict[str, list[tuple[DraftMessage, DraftSignal]]]] = {}
        self._ignored: set[int] = set()
        self._selectors: dict[int, list[DraftSignal]] = {}
        self._markers: dict[int, int] = {}
        """The value behind the ``m`` of a signal; both by the identity of a draft."""
        self._formats: dict[int, str] = {}
        self._orphans: dict[str, list[int]] = {}

    def build(self) -> list[DraftMessage]:
        built: list[DraftMessage] = []
        for item in self._found.messages:
            message = self._message(item)
            if message is not None:
                built.append(message)
        self._defaults(built)
        for attached in self._found.attached:
            self._attach(attached)
        for message in built:
            self._select(message)
        self._frame_formats(built)
        for keyword, lines in self._orphans.items():
            many = f"{len(lines)} statements {keyword} are" if len(lines) > 1 else f"one {keyword} is"
            text = f"{many} about a message or signal that is not in the file: dropped"
            self._notes.add(lines[0], "", text)
        return built

    def _message(self, item: MessageText) -> DraftMessage | None:
        written, length = number(item.frame_id), number(item.length)
        if item.name == _PSEUDO_MESSAGE:
            if isinstance(written, int):
                self._ignored.add(written)
            if item.signals:
                count = len(item.signals)
                many = f"{count} signals that are" if count > 1 else "one signal that is"
                text = f"{many} in no message ({_PSEUDO_MESSAGE}): left out"
                self._notes.add(item.line, "", text)
            return None
        if not isinstance(written, int) or not 0 <= written < 1 << 32:
            text = f"message {item.name} is left out: {item.frame_id[:20]} is no id of a message"
            self._notes.add(item.line, item.name, text)
            if isinstance(written, int):
                self._ignored.add(written)
            return None
        frame_id, is_extended = written & ~_EXTENDED, bool(written & _EXTENDED)
        if not is_extended and MAX_STANDARD_ID < frame_id <= MAX_EXTENDED_ID:
            is_extended = True
            text = f"message {item.name} is repaired: its id 0x{frame_id:X} is taken as an extended one"
            self._notes.add(item.line, item.name, text)
        message = DraftMessage(
            item.name, frame_id, is_extended, length if isinstance(length, int) else NO_NUMBER, item.line
        )
        message.senders = [item.sender] if item.sender not in ("", _NOBODY) else []
        selectors: list[DraftSignal] = []
        for each in item.signals:
            signal = self._signal(item.name, each)
            message.signals.append(signal)
            if each.is_selector:
                selectors.append(signal)
            if each.selected_by is not None:
                self._markers[id(signal)] = each.selected_by
        self._selectors[id(message)] = selectors
        self._messages.setdefault(written, []).append(message)
        return message

    def _signal(self, message: str, item: SignalText) -> DraftSignal:
        start, length = number(item.start), number(item.length)
        minimum, maximum = number(item.minimum), number(item.maximum)
        if minimum is None or maximum is None:
            text = (
                f"message {message}: signal {item.name} is repaired: its range "
                f"{item.minimum[:40]}..{item.maximum[:40]} is dropped"
            )
            self._notes.add(item.line, f"{message}.{item.name}", text)
            minimum = maximum = None
        elif minimum == 0 == maximum:
            minimum = maximum = None
        return DraftSignal(
            name=item.name,
            line=item.line,
            start=start if isinstance(start, int) else NO_NUMBER,
            length=length if isinstance(length, int) else NO_NUMBER,
            is_little_endian=item.is_little_endian,
            is_signed=item.is_signed,
            is_float=item.is_float,
            scale=number(item.scale),
            offset=number(item.offset),
            minimum=minimum,
            maximum=maximum,
            unit=item.unit,
        )

    def _defaults(self, messages: Iterable[DraftMessage]) -> None:
        defaults = self._found.defaults
        cycle_s = _seconds(defaults.get("GenMsgCycleTime", ""))
        timeout_s = _seconds(defaults.get("GenMsgTimeoutTime", ""))
        initial = number(defaults.get("GenSigStartValue", "")) or 0
        for message in messages:
            message.cycle_s = cycle_s
            message.timeout_s = timeout_s
            for signal in message.signals:
                signal.raw_initial = initial

    def _attach(self, item: Attached) -> None:
        if item.frame_id is None or item.frame_id in self._ignored:
            return
        messages = self._messages.get(item.frame_id, ())
        if not item.signal:
            for message in messages:
                self._attach_to_message(item, message)
            if not messages:
                self._orphans.setdefault(item.keyword, []).append(item.line)
            return
        if item.frame_id not in self._signals:
            by_name: dict[str, list[tuple[DraftMessage, DraftSignal]]] = {}
            for message in messages:
                for signal in message.signals:
                    by_name.setdefault(signal.name, []).append((message, signal))
            self._signals[item.frame_id] = by_name
        meant = self._signals[item.frame_id].get(item.signal, ())
        for message, signal in meant:
            self._attach_to_signal(item, message, signal)
        if not meant:
            self._orphans.setdefault(item.keyword, []).append(item.line)

    def _attach_to_message(self, item: Attached, message: DraftMessage) -> None:
        if item.keyword == "CM_":
            message.comment = item.text
        elif item.keyword == "BO_TX_BU_":
            nodes = item.text.replace(",", " ").split()
            message.senders += [node for node in nodes if node not in (*message.senders, _NOBODY)]
        elif item.name == "GenMsgCycleTime":
            message.cycle_s = _seconds(item.text)
        elif item.name == "GenMsgTimeoutTime":
            message.timeout_s = _seconds(item.text)
        elif item.name == "SystemMessageLongSymbol":
            message.long_name = item.text
        elif item.name == "VFrameFormat":
            self._formats[id(message)] = self._format(item.text)

    def _attach_to_signal(self, item: Attached, message: DraftMessage, signal: DraftSignal) -> None:
        if item.keyword == "CM_":
            signal.comment = item.text
        elif item.keyword == "VAL_":
            pairs = self._found.tables.get(item.name, ()) if item.name else item.pairs
            signal.labels = dict(pairs)
        elif item.keyword == "SIG_VALTYPE_":
            signal.is_float = item.text in ("1", "2")
        elif item.keyword == "SG_MUL_VAL_":
            if signal.selector not in (None, item.name):
                text = f"message {message.name}: a second multiplexer of signal {signal.name} is left out"
                self._notes.add(item.line, f"{message.name}.{signal.name}", text)
                return
            signal.selector = item.name
            signal.ids = [*signal.ids, *item.ranges]
        elif item.name == "GenSigStartValue":
            signal.raw_initial = number(item.text) or 0
        elif item.name.startswith("GenSigTimeoutTime"):
            timeout_s = _seconds(item.text)
            if timeout_s is not None and (signal.timeout_s is None or timeout_s < signal.timeout_s):
                signal.timeout_s = timeout_s
        elif item.name == "SystemSignalLongSymbol":
            signal.long_name = item.text

    def _select(self, message: DraftMessage) -> None:
        """Find the multiplexer of each signal that has a marker."""
        selectors = self._selectors[id(message)]
        roots = [signal for signal in selectors if id(signal) not in self._markers]
        nested = {id(signal) for signal in selectors if id(signal) in self._markers}
        for signal in message.signals:
            marker = self._markers.get(id(signal))
            if marker is None:
                continue
            # A selector that is selected itself hangs below the root; of others nothing tells which
            # of several selectors is meant.
            is_clear = len(roots) == 1 and (not nested or id(signal) in nested)
            only = roots[0].name if is_clear else ""
            if signal.selector is None:
                signal.selector = only
            if signal.selector == only:
                signal.ids = [*signal.ids, (marker, marker)]

    def _format(self, text: str) -> str:
        value = number(text)
        if not isinstance(value, int):
            return text
        choices = self._found.choices.get("VFrameFormat", [])
        return choices[value] if 0 <= value < len(choices) else _FRAME_FORMATS.get(value, "")

    def _frame_formats(self, messages: Iterable[DraftMessage]) -> None:
        default = self._format(self._found.defaults.get("VFrameFormat", ""))
        is_j1939 = self._is_j1939()
        for message in messages:
            own = self._formats.get(id(message))
            kind = default if own is None else own
            message.is_j1939 = message.is_extended and (kind == "J1939PG" or (own is None and is_j1939))
            message.is_fd = kind.endswith("CAN_FD") or (not message.is_j1939 and message.length > 8)

    def _is_j1939(self) -> bool:
        protocols = {name: self._found.defaults.get(name, "") for name in ("ProtocolType", "BusType")}
        for item in self._about_file():
            if item.name in protocols:
                protocols[item.name] = item.text
        return any(text.strip().upper() == "J1939" for text in protocols.values())

    def _about_file(self) -> Iterator[Attached]:
        return (item for item in self._found.attached if item.keyword == "BA_" and item.frame_id is None)


def _seconds(text: str) -> float | None:
    """Return a time in milliseconds in seconds, None for no time."""
    value: Number | None = number(text)
    return value / 1000 if value is not None and value > 0 else None
