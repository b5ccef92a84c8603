"""ARXML files (AUTOSAR) to drafts of messages, by cantools.

Rules:

* A frame or a signal that cannot be read costs itself. What else is wrong in the file costs nothing that
  is used here, unless nothing can be found without it.
* A message in containers is left out with its container.
* Of elements of one path each is another one: a reference means the first of its kind (``DEST``).

Design: everything in such a file refers to everything else, by path; a part of it alone says nothing. So it
is not halved: the methods with which cantools reads one frame and one signal are replaced by ones that note
what they raise and go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any
from xml.etree import ElementTree as ET

from fieldbus.canbus.database import by_cantools, xml_text
from fieldbus.canbus.database.by_cantools import Patch, words
from fieldbus.canbus.database.draft import DraftMessage, Notes, repair, say_left_out
from fieldbus.canbus.database.xml_text import XmlText

_FORMAT = "cantools.database.can.formats.arxml"
_WITH_LINES = ("CAN-FRAME-TRIGGERING", "I-SIGNAL-TO-I-PDU-MAPPING", "ECUC-CONTAINER-VALUE")
_UNUSED = ("_load_buses", "_load_nodes", "_load_system", "_load_e2e_properties")
"""Methods whose results are not used here."""


def read(data: bytes, notes: Notes, encoding: str | None = None) -> list[DraftMessage]:
    """Return the messages of a file.

    Args:
        data: the file.
        notes: told of what was repaired or left out.
        encoding: of its text; None for what it says or looks like.

    Raises:
        UnreadableError: it is none, or no message can be found in it.
    """
    text, names = _as_cantools_reads(xml_text.read(data, encoding), notes)
    tolerance = _Tolerance(text, notes)
    try:
        items = by_cantools.loader("arxml", tolerance.patches())(text.text)
    except (MemoryError, by_cantools.UnreadableError):
        raise
    except Exception as error:
        raise by_cantools.unreadable(error) from error
    drafts: list[DraftMessage] = []
    for item in items:
        line = tolerance.line(item)
        if item.is_container:
            text_of_it = f"message {item.name} is left out: it is a container of other messages"
            notes.add(line, item.name, text_of_it)
            continue
        try:
            draft = by_cantools.draft_of(item, line)
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            notes.add(line, item.name, f"message {item.name} is left out: {words(error)}")
            continue
        draft.name = names.get(draft.name, draft.name)
        for signal, each in zip(draft.signals, item.signals, strict=True):
            signal.line = tolerance.line(each)
            signal.name = names.get(signal.name, signal.name)
            signal.selector = names.get(signal.selector or "", signal.selector)
        drafts.append(draft)
    return repair(drafts, notes)


def _as_cantools_reads(text: XmlText, notes: Notes) -> tuple[XmlText, dict[str, str]]:
    """Return the text in the words that cantools looks for, with one element for each path.

    The second is the old name of each element that has another name for that.
    """
    if re.match(r"(?s).{0,400}?autosar\.org/[123]\.", text.text):
        words_of_it = text.text.replace("<CAN-PHYSICAL-CHANNEL", "<PHYSICAL-CHANNEL")
        text = text._replace(text=words_of_it.replace("</CAN-PHYSICAL-CHANNEL", "</PHYSICAL-CHANNEL"))
    root = text.parsed()
    paths = _Paths(root, dict(zip(map(id, root.iter()), text.lines, strict=True)), notes)
    if not paths.separate():
        return text, {}
    return text._replace(text=ET.tostring(root, encoding="unicode")), paths.names


class _Paths:
    """Finds elements with one path, and gives each a path of its own."""

    def __init__(self, root: ET.Element, lines: dict[int, int], notes: Notes) -> None:
        self._root = root
        self._lines = lines
        self._notes = notes
        self._known: set[str] = set()
        self._moved: dict[tuple[str, str], str] = {}
        """New path by old path and kind."""
        self.names: dict[str, str] = {}
        """Old names by new ones."""

    def separate(self) -> bool:
        """Rename all but the first; return whether there are any."""
        stack = [(self._root, "")]
        while stack:
            element, path = stack.pop()
            name = next((item for item in element if item.tag.endswith("}SHORT-NAME")), None)
            if name is not None and name.text is not None:
                path = self._claim(element, name, f"{path}/{name.text}")
            stack += [(child, path) for child in reversed(element)]
        if self._moved:
            self._redirect()
        return bool(self._moved)

    def _claim(self, element: ET.Element, name: ET.Element, path: str) -> str:
        if path not in self._known:
            self._known.add(path)
            return path
        old, count = path, 2
        while path in self._known:
            path = f"{old}__again{count}"
            count += 1
        self._known.add(path)
        self.names[path.rpartition("/")[2]] = old.rpartition("/")[2]
        name.text = path.rpartition("/")[2]
        kind = element.tag.rpartition("}")[2]
        self._moved.setdefault((old, kind), path)
        text = f"path {old} is there more than once: a reference means the first one of its kind"
        self._notes.add(self._lines.get(id(element), 0), "", text)
        return path

    def _redirect(self) -> None:
        """Have references follow an element to its new path, if the first of its kind is the moved one."""
        kinds = {path: set[str]() for path, _ in self._moved}
        self._kinds(self._root, "", kinds)
        for element in self._root.iter():
            kind, target = element.get("DEST"), (element.text or "").strip()
            if kind is not None and (target, kind) in self._moved and kind not in kinds[target]:
                element.text = self._moved[target, kind]

    def _kinds(self, root: ET.Element, path: str, kinds: dict[str, set[str]]) -> None:
        """Note which kind the first element of each path is."""
        stack = [(root, path)]
        while stack:
            element, path = stack.pop()
            name = next((item for item in element if item.tag.endswith("}SHORT-NAME")), None)
            if name is not None and name.text is not None:
                path = f"{path}/{name.text}"
                if path in kinds:
                    kinds[path].add(element.tag.rpartition("}")[2])
            stack += [(child, path) for child in element]


class _Tolerance:
    """Has cantools note what it cannot read, and go on."""

    def __init__(self, text: XmlText, notes: Notes) -> None:
        self._text = text
        self._notes = notes
        self._lines: dict[int, int] | None = None
        self._line_of_made: dict[int, tuple[int, object]] = {}
        """Of messages and signals of cantools, by their identity, which lasts as long as they do."""
        self._faults: list[tuple[int, str, str]] = []
        """Line, name and words of the signals of the frame that is being read."""

    def line(self, made: object) -> int:
        """Return the line of a message or signal that cantools made; 0 if it is not known."""
        return self._line_of_made.get(id(made), (0, made))[0]

    def patches(self) -> list[Patch]:
        """Return what replaces methods of cantools."""
        system = import_module(f"{_FORMAT}.system_loader").SystemLoader
        extract = import_module(f"{_FORMAT}.ecu_extract_loader").EcuExtractLoader
        found: list[Patch] = [(system, name, lambda *_: []) for name in _UNUSED]
        for owner, root, name, instead in (
            (system, "_root", "_load_package_messages", self._package),
            (system, "_root", "_load_message", self._message),
            (system, "_root", "_load_signal", self._signal),
            (system, "_root", "_load_senders_and_receivers", self._senders),
            (extract, "root", "load_message", self._message),
            (extract, "root", "load_signal", self._signal_at),
        ):
            found.append((owner, name, self._bound(getattr(owner, name), root, instead)))
        return found

    def _bound(
        self, original: Callable[..., Any], root: str, instead: Callable[..., object]
    ) -> Callable[..., object]:
        def call(reader: Any, *arguments: Any) -> object:
            if self._lines is None:
                self._lines = self._text.lines_of(getattr(reader, root), _WITH_LINES)
            return instead(lambda: original(reader, *arguments), arguments[-1])

        return call

    def _at(self, element: ET.Element) -> int:
        return (self._lines or {}).get(id(element), 0)

    def _package(self, go_on: Callable[[], list[Any]], _: object) -> list[Any]:
        return [message for message in go_on() if message is not None]

    def _message(self, go_on: Callable[[], Any], element: ET.Element) -> Any:
        line, name = self._at(element), _short_name(element)
        self._faults.clear()
        try:
            made = go_on()
        except MemoryError:
            raise
        except Exception as error:
            reason = words(error)
            if self._faults:  # a selector, which its frame is nothing without
                at, signal, reason = self._faults[0]
                line, reason = at or line, f"its signal {signal} cannot be read: {reason}"
            self._notes.add(line, name, f"message {name} is left out: {reason}")
            return None
        if made is None:
            text = f"message {name} is left out: its identifier, length or kind of frame is missing"
            self._notes.add(line, name, text)
            return None
        for at, signal, reason in self._faults:
            say_left_out(self._notes, at or line, str(made.name), signal, reason)
        self._line_of_made[id(made)] = line, made
        return made

    def _signal(self, go_on: Callable[[], Any], element: ET.Element) -> Any:
        line = self._at(element)
        try:
            made = go_on()
        except MemoryError:
            raise
        except Exception as error:
            self._faults.append((line, _short_name(element), words(error)))
            return None
        if made is not None:  # a group of signals is none
            self._line_of_made[id(made)] = line, made
        return made

    def _signal_at(self, go_on: Callable[[], Any], path: str) -> Any:
        name = path.rpartition("/")[2]
        try:
            made = go_on()
        except MemoryError:
            raise
        except Exception as error:
            self._faults.append((0, name, words(error)))
            return None
        if made is None:
            self._faults.append((0, name, "its position, its length or its byte order is missing"))
        return made

    def _senders(self, go_on: Callable[[], None], _: object) -> None:
        try:
            go_on()
        except MemoryError:
            raise
        except Exception as error:
            self._notes.add(0, "", f"not all senders are known: {words(error)}")


def _short_name(element: ET.Element) -> str:
    found = next((item.text for item in element if item.tag.endswith("}SHORT-NAME")), None)
    return (found or "without a name").strip()
