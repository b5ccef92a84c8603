"""KCD files (Kayak's XML) to drafts of messages, by cantools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from fieldbus.canbus.database import by_cantools, xml_text
from fieldbus.canbus.database.draft import (
    MAX_EXTENDED_ID,
    MAX_STANDARD_ID,
    DraftMessage,
    Notes,
    repair,
    say_left_out,
)

_KCD = "{http://kayak.2codeornot2code.org/1.0}"
_MESSAGE, _SIGNAL = f"{_KCD}Message", f"{_KCD}Signal"
_MULTIPLEX, _GROUP = f"{_KCD}Multiplex", f"{_KCD}MuxGroup"
_WITH_LINES = ("Message", "Signal", "Multiplex")

_Child = tuple[ET.Element, ET.Element]
"""An element and the one that it is in."""


def read(data: bytes, notes: Notes, encoding: str | None = None) -> list[DraftMessage]:
    """Return the messages of a file.

    Args:
        data: the file.
        notes: told of what was repaired or left out.
        encoding: of its text; None for what it says or looks like.

    Raises:
        UnreadableError: it is none, or wrong outside of its messages.
    """
    return _Reader(data, notes, encoding).read()


class _Reader:
    def __init__(self, data: bytes, notes: Notes, encoding: str | None) -> None:
        text = xml_text.read(data, encoding)
        self._notes = notes
        self._load = by_cantools.loader("kcd")
        self._root = text.parsed()
        self._line_of = text.lines_of(self._root, _WITH_LINES)
        self._buses = self._root.findall(f"{_KCD}Bus")
        self._messages = [(item, bus) for bus in self._buses for item in bus.findall(_MESSAGE)]
        for item, _ in self._messages:
            self._extend(item)

    def _extend(self, message: ET.Element) -> None:
        """Take an id that needs 29 bits for an extended one, as in a DBC file."""
        try:
            frame_id = int(message.get("id", ""), 0)
        except ValueError:
            return
        if MAX_STANDARD_ID < frame_id <= MAX_EXTENDED_ID and message.get("format", "standard") == "standard":
            message.set("format", "extended")
            name = _name(message)
            text = f"message {name} is repaired: its id 0x{frame_id:X} is taken as an extended one"
            self._notes.add(self._line_of[id(message)], name, text)

    def read(self) -> list[DraftMessage]:
        by_cantools.check_head(lambda: self._parse(()))
        return repair(by_cantools.halve(self._messages, self._parse, self._fail), self._notes)

    def _parse(self, chosen: Sequence[_Child]) -> list[DraftMessage]:
        for bus in self._buses:
            bus[:] = [item for item in bus if item.tag != _MESSAGE]
        _put(chosen)
        items = self._load(ET.tostring(self._root, encoding="unicode"))
        found: list[DraftMessage] = []
        for (message, _), item in zip(chosen, items, strict=True):
            draft = by_cantools.draft_of(item, self._line_of[id(message)])
            for signal, element in zip(draft.signals, _signals(message), strict=True):
                signal.line = self._line_of[id(element)]
            found.append(draft)
        return found

    def _fail(self, part: _Child, reason: str) -> list[DraftMessage]:
        """Return the message without the signals that cannot be read; none if that does not help."""
        message, _ = part
        name = _name(message)
        inner = [(item, group) for group in message.iter(_GROUP) for item in group.findall(_SIGNAL)]
        outer = [(item, message) for item in message if item.tag in (_SIGNAL, _MULTIPLEX)]
        _take([*inner, *outer])
        try:
            self._parse([part])
        except MemoryError:
            raise
        except Exception:
            self._notes.add(self._line_of[id(message)], name, f"message {name} is left out: {reason}")
            return []

        def without(child: _Child, why: str) -> None:
            line = self._line_of[id(child[0])]
            say_left_out(self._notes, line, name, _name(child[0]), why)
            if child[0].tag == _MULTIPLEX:
                for group in child[0].iter(_GROUP):
                    for item, _ in (each for each in inner if each[1] is group):
                        self._lost(name, item)

        # First the selectors, each without what it selects.
        for children in (outer, inner):
            there = {id(item) for item in message.iter()}

            def parse(chosen: Sequence[_Child], children: Sequence[_Child] = children) -> None:
                _take(children)
                _put(chosen)
                self._parse([part])

            present = [child for child in children if id(child[1]) in there]
            good = by_cantools.readable(present, parse, without)
            _take(children)
            _put(good)
        return self._parse([part])

    def _lost(self, message: str, item: ET.Element) -> None:
        line = self._line_of[id(item)]
        say_left_out(self._notes, line, message, _name(item), "its multiplexer is left out")


def _put(children: Sequence[_Child]) -> None:
    for item, parent in children:
        parent.append(item)


def _take(children: Sequence[_Child]) -> None:
    gone = {id(item) for item, _ in children}
    for parent in {id(parent): parent for _, parent in children}.values():
        parent[:] = [item for item in parent if id(item) not in gone]


def _signals(message: ET.Element) -> Iterator[ET.Element]:
    """Yield what cantools makes a signal of, in its order."""
    for selector in message.findall(_MULTIPLEX):
        yield selector
        for group in selector.findall(_GROUP):
            yield from group.findall(_SIGNAL)
    yield from message.findall(_SIGNAL)


def _name(item: ET.Element) -> str:
    return item.get("name") or item.get("id") or "without a name"
