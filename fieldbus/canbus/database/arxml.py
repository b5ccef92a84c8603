"""ARXML files (AUTOSAR) to drafts of messages, by cantools.

Rules:

* A frame or a signal that cannot be read costs itself. What else is wrong in the file costs nothing that
  is used here, unless nothing can be found without it.
* A message in containers is left out with its container.

Design: everything in such a file refers to everything else, by path; a part of it alone says nothing. So it
is not halved: the methods with which cantools reads one frame and one signal are replaced by ones that note
what they raise and go on.
"""

from __future__ import annotations

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


def read(data: bytes, notes: Notes) -> list[DraftMessage]:
    """Return the messages of a file.

    Raises:
        UnreadableError: it is none, or no message can be found in it.
    """
    text = xml_text.read(data)
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
        for signal, each in zip(draft.signals, item.signals, strict=True):
            signal.line = tolerance.line(each)
        drafts.append(draft)
    return repair(drafts, notes)


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
