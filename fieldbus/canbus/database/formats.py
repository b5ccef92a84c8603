"""Database files of each format to drafts of messages, by cantools; for the reader's process only.

Rules:

* cantools is imported here only.
* What is refused before anything parses it: XML with a document type (entities that multiply), ranges
  of ids that would become thousands of messages.
* A part that cantools cannot read is found by halving: the rest is read without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar
from xml.etree import ElementTree as ET
from xml.parsers import expat

from fieldbus.canbus.database import dbc_draft, dbc_text
from fieldbus.canbus.database.draft import NO_NUMBER, DraftMessage, DraftSignal, Notes, leave_out, repair

_CHUNK = 2000
"""Signals that cantools is given at once: it holds some hundred times their text in memory."""
_MAX_ID_RANGE = 4096
_KCD = "{http://kayak.2codeornot2code.org/1.0}"
_LINE = re.compile(r"line (\d+)(?:, column (\d+))?", re.IGNORECASE)
_SYM_SECTION = re.compile(r"^[ \t]*(?:\{(\w+)\}|\[([^\]\n]*)\])", re.MULTILINE)
_SYM_IDS = re.compile(
    r"^[ \t]*ID[ \t]*=[ \t]*([0-9A-F]{1,8})h[ \t]*-[ \t]*([0-9A-F]{1,8})h", re.MULTILINE | re.IGNORECASE
)

_Part = TypeVar("_Part")
_Made = TypeVar("_Made")


class UnreadableError(Exception):
    """The file is no database of its format."""

    def __init__(self, text: str, line: int = 0, column: int = 0) -> None:
        super().__init__(text)
        self.line = line
        self.column = column


def _read_dbc(data: bytes, notes: Notes) -> list[DraftMessage]:
    found = dbc_text.parse(dbc_text.decode(data), notes)
    if not found.statements:
        raise UnreadableError("it has no statement of one", 1)
    messages = repair(dbc_draft.drafts(found, notes), notes)
    alike: dict[tuple[object, ...], list[DraftSignal]] = {}
    for message in messages:
        for each in message.signals:
            alike.setdefault(each.layout, []).append(each)
    loader = _loader("dbc")
    faults: dict[tuple[object, ...], str] = {}

    def parse(part: Sequence[list[DraftSignal]]) -> list[int]:
        items = loader(dbc_draft.text_for_cantools([signals[0] for signals in part]))[0].signals
        for signals, item in zip(part, items, strict=True):
            for each in signals:
                _take_layout(each, item)
        return []

    def fail(signals: list[DraftSignal], reason: str) -> None:
        faults[signals[0].layout] = reason

    layouts = [*alike.values()]
    for at in range(0, len(layouts), _CHUNK):
        _halve(layouts[at : at + _CHUNK], parse, fail)
    if faults:
        for message in messages:
            leave_out(message, lambda each: faults.get(each.layout), notes)
    return messages


def _read_kcd(data: bytes, notes: Notes) -> list[DraftMessage]:
    text = _xml(data)
    loader = _loader("kcd")
    root = _parsed(text)
    buses = [*root.iter(f"{_KCD}Bus")]
    parts = [(bus, item) for bus in buses for item in bus.findall(f"{_KCD}Message")]

    def parse(chosen: Sequence[tuple[ET.Element, ET.Element]]) -> list[DraftMessage]:
        for bus in buses:
            bus[:] = [item for item in bus if item.tag != f"{_KCD}Message"]
        for bus, item in chosen:
            bus.append(item)
        return [_draft(item) for item in loader(ET.tostring(root, encoding="unicode"))]

    def fail(part: tuple[ET.Element, ET.Element], reason: str) -> None:
        name = part[1].get("name") or part[1].get("id") or "without a name"
        notes.add(0, name, f"message {name} is left out: {reason}")

    _check_head(parse)
    return repair(_halve(parts, parse, fail), notes)


def _read_sym(data: bytes, notes: Notes) -> list[DraftMessage]:
    text = dbc_text.decode(data)
    loader = _loader("sym")
    head, parts = _sym_parts(text, notes)

    def parse(chosen: Sequence[tuple[str, str, int, str]]) -> list[DraftMessage]:
        lines = [head]
        section = ""
        for own, _, _, body in chosen:
            if own != section:
                section = own
                lines.append(f"{{{section}}}\n")
            lines.append(body)
        return [_draft(item) for item in loader("".join(lines))]

    def fail(part: tuple[str, str, int, str], reason: str) -> None:
        notes.add(part[2], part[1], f"message {part[1]} is left out: {reason}")

    _check_head(parse)
    found = _halve(parts, parse, fail)
    line_of = {name: line for _, name, line, _ in reversed(parts)}
    for message in found:
        message.line = line_of.get(message.name, 0)
    return repair(found, notes)


def _sym_parts(text: str, notes: Notes) -> tuple[str, list[tuple[str, str, int, str]]]:
    """Return what is before the messages, and of each message section, name, line and text."""
    head: list[str] = []
    parts: dict[tuple[str, str], tuple[str, str, int, str]] = {}
    section, line, at = "", 1, 0
    marks = [*_SYM_SECTION.finditer(text)]
    ends = [*[mark.start() for mark in marks[1:]], len(text)]
    head.append(text[: marks[0].start()] if marks else text)
    for mark, end in zip(marks, ends, strict=False):
        line += text.count("\n", at, mark.start())
        at = mark.start()
        if mark[1] is not None:
            section = mark[1].upper()
            if section not in ("SEND", "RECEIVE", "SENDRECEIVE"):
                head.append(text[at:end])
            continue
        body, name = text[at:end], mark[2].strip().strip('"')
        ids = _SYM_IDS.search(body)
        if ids is not None and not 0 <= int(ids[2], 16) - int(ids[1], 16) < _MAX_ID_RANGE:
            notes.add(line, name, f"message {name} is left out: a range of {_MAX_ID_RANGE} ids or more")
            continue
        # The pages of a multiplexed message are sections of one name.
        before = parts.get((section, name))
        parts[section, name] = (
            (section, name, line, body) if before is None else (*before[:3], before[3] + body)
        )
    return "".join(head), sorted(parts.values(), key=lambda part: part[0])


def _read_arxml(data: bytes, notes: Notes) -> list[DraftMessage]:
    text = _xml(data)
    try:
        items = _loader("arxml")(text)
    except (MemoryError, UnreadableError):
        raise
    except Exception as error:
        raise _unreadable(error) from error
    drafts: list[DraftMessage] = []
    for item in items:
        if item.is_container:
            notes.add(0, item.name, f"message {item.name} is left out: it is a container of other messages")
            continue
        try:
            drafts.append(_draft(item))
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            notes.add(0, item.name, f"message {item.name} is left out: {_words(error)}")
    return repair(drafts, notes)


READERS: dict[str, Callable[[bytes, Notes], list[DraftMessage]]] = {
    "dbc": _read_dbc,
    "kcd": _read_kcd,
    "sym": _read_sym,
    "arxml": _read_arxml,
}


def _loader(format_: str) -> Callable[[str], list[Any]]:
    """Return cantools' own reader of a format, without what it prepares for decoding."""
    message_type = import_module("cantools.database.can.message").Message
    module = import_module(f"cantools.database.can.formats.{format_}")

    def refresh(self: Any, strict: bool | None = None) -> None:  # noqa: ARG001
        # The codecs, which we do not use, take time and memory by the product of lengths; the checks
        # refuse a file for one message.
        self._signal_dict = {item.name: item for item in self._signals}

    def load(text: str) -> list[Any]:
        original = message_type.refresh
        message_type.refresh = refresh
        try:
            return list(module.load_string(text, strict=False, sort_signals=None).messages)
        finally:
            message_type.refresh = original

    return load


def _halve(
    parts: Sequence[_Part],
    parse: Callable[[Sequence[_Part]], list[_Made]],
    fail: Callable[[_Part, str], None],
) -> list[_Made]:
    """Return what `parse` makes of the parts that it can read; the others are handed to `fail`."""
    if not parts:
        return []
    try:
        return parse(parts)
    except MemoryError:
        raise
    except Exception as error:  # whatever the parsers of cantools raise
        if len(parts) == 1:
            fail(parts[0], _words(error))
            return []
    middle = len(parts) // 2
    return _halve(parts[:middle], parse, fail) + _halve(parts[middle:], parse, fail)


def _check_head(parse: Callable[[Sequence[Any]], object]) -> None:
    """Refuse a file that is wrong outside of its messages."""
    try:
        parse(())
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(error) from error


def _words(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return re.sub(r'^\w{3,5}: "(.*?)"(?:,.*)?$', r"\1", text)[:300]


def _unreadable(error: Exception) -> UnreadableError:
    text = _words(error)
    match = _LINE.search(text)
    return UnreadableError(text, *((int(match[1]), int(match[2] or 0)) if match else (0, 0)))


def _xml(data: bytes) -> str:
    """Return the text of an XML file without a document type."""

    def refuse(*_: object) -> None:
        raise UnreadableError("a document type or entities are not allowed in it")

    class _Done(Exception):  # noqa: N818
        pass

    def begin(*_: object) -> None:
        raise _Done

    text = _xml_text(data)
    parser = expat.ParserCreate("utf-8")
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = begin
    try:
        parser.Parse(text.encode(), True)
    except _Done:
        return text
    except expat.ExpatError as error:
        raise _unreadable(error) from error
    raise UnreadableError("no element in it", 1)


def _xml_text(data: bytes) -> str:
    head = dbc_text.decode(data[:400])
    declared = re.match(r"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""", head)
    encoding = declared[1].lower() if declared else "utf-8"
    if encoding in ("iso-8859-1", "latin-1", "iso-8859-15", "windows-1252", "us-ascii"):
        text = data.decode(encoding, "replace")
    else:
        text = dbc_text.decode(data)
    return text.encode("utf-8", "replace").decode()


def _parsed(text: str) -> ET.Element:
    try:
        return ET.fromstring(text)  # noqa: S314 - it has no document type, see _xml
    except ET.ParseError as error:
        raise _unreadable(error) from error


def _draft(item: Any) -> DraftMessage:
    cycle_ms = _finite(item.cycle_time) or 0
    return DraftMessage(
        name=str(item.name),
        frame_id=item.frame_id,
        is_extended=bool(item.is_extended_frame),
        length=_whole(item.length),
        signals=[_draft_signal(each) for each in item.signals],
        is_fd=bool(item.is_fd) or (item.length > 8 and item.protocol != "j1939"),
        is_j1939=item.protocol == "j1939",
        cycle_s=cycle_ms / 1000 if cycle_ms > 0 else None,
        senders=[str(sender) for sender in item.senders or ()],
        comment=str(item.comment or ""),
    )


def _draft_signal(item: Any) -> DraftSignal:
    draft = DraftSignal(
        name=str(item.name),
        unit=str(item.unit or ""),
        labels={int(raw): str(name) for raw, name in (item.choices or {}).items() if int(raw) == raw},
        comment=str(item.comment or ""),
        raw_initial=_finite(item.raw_initial) or 0,
        selector=item.multiplexer_signal,
        ids=[(value, value) for value in item.multiplexer_ids or ()],
    )
    _take_layout(draft, item)
    return draft


def _take_layout(draft: DraftSignal, item: Any) -> None:
    draft.start, draft.length = _whole(item.start), _whole(item.length)
    draft.is_little_endian = item.byte_order == "little_endian"
    draft.is_signed, draft.is_float = item.is_signed, item.is_float
    draft.scale, draft.offset = _finite(item.scale), _finite(item.offset)
    draft.minimum, draft.maximum = _finite(item.minimum), _finite(item.maximum)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else NO_NUMBER


def _finite(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
