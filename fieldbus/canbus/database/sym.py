"""SYM files (PCAN) to drafts of messages, by cantools.

Layout: sections in braces. ``{ENUMS}`` and ``{SIGNALS}`` define what messages refer to by name, one
``Enum=`` (which may span lines) or ``Sig=`` each. The others hold the messages: a name in brackets, then
one thing a line, among them ``Sig=`` (a reference) and ``Var=`` (a definition of its own). The pages of a
multiplexed message are sections of one name, each with a ``Mux=``.

Rules:

* A definition that cannot be read costs itself and the signals that refer to it.
* A range of ids that would become thousands of messages is left out unread.
* Version 5.0 is read as 6.0, which it is but for some words. A hexadecimal number may begin with a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fieldbus.canbus.database import by_cantools
from fieldbus.canbus.database.draft import DraftMessage, Notes, repair, say_guessed, say_left_out
from fieldbus.canbus.database.encodings import decode

_MAX_ID_RANGE = 4096
_SECTION = re.compile(r"^[ \t]*(?:\{(\w+)\}|\[([^\]\n]*)\])", re.MULTILINE)
_IDS = re.compile(
    r"^[ \t]*ID[ \t]*=[ \t]*([0-9A-F]{1,8})h[ \t]*-[ \t]*([0-9A-F]{1,8})h", re.MULTILINE | re.IGNORECASE
)
_ENUM = re.compile(r"^[ \t]*Enum[ \t]*=[ \t]*([^\s(]*)", re.MULTILINE)
_SIGNAL = re.compile(r"^[ \t]*(?:Sig|Var)[ \t]*=[ \t]*(\"[^\"\n]*\"|[^\s,]*)[^\n]*\n?", re.MULTILINE)
_MUX = re.compile(r"^[ \t]*Mux[ \t]*=[ \t]*(\"[^\"\n]*\"|[^\s,]*)", re.MULTILINE)
_PLACE = re.compile(r" at line \d+, column \d+")


_VERSION = re.compile(r"^([ \t]*FormatVersion[ \t]*=[ \t]*)5\.0", re.MULTILINE)
_OLD_ENUM = re.compile(r"^([ \t]*)enum[ \t]+(?=\S)", re.MULTILINE)
_OLD_LENGTH = re.compile(r"^([ \t]*)DLC(?=[ \t]*=)", re.MULTILINE)
_HEX_LINE = re.compile(r"^[ \t]*(?:ID|Color|Mux)[ \t]*=.*$", re.MULTILINE)
_HEX = re.compile(r"(?<![\w\"/.])([A-Fa-f][0-9A-Fa-f]*|[0-9][0-9A-Fa-f]*)h(?!\w)")


def _as_version_6(text: str) -> str:
    """Return the text in the words that cantools knows, line by line the same."""
    if _VERSION.search(text):
        text = _VERSION.sub(r"\g<1>6.0", text)
        text = _OLD_ENUM.sub(r"\g<1>Enum=", text)
        text = _OLD_LENGTH.sub(r"\g<1>Len", text)
    return _HEX_LINE.sub(lambda line: _with_digits_first(line[0]), text)


def _with_digits_first(line: str) -> str:
    # A name may look like a number: only what stands behind it is one.
    head = re.match(r"[ \t]*Mux[ \t]*=[ \t]*(?:\"[^\"]*\"|\S+)", line)
    at = 0 if head is None else head.end()
    before, comment, after = line[at:].partition("//")
    return line[:at] + _HEX.sub(_digit_first, before) + comment + after


def _digit_first(match: re.Match[str]) -> str:
    digits = match[1].upper()
    return f"{digits}h" if digits[0].isdigit() else f"0{digits}h"


class _Piece(NamedTuple):
    """Some text of the file, with the name of what it defines or refers to; empty for what stays."""

    line: int
    name: str
    text: str


class _Message(NamedTuple):
    section: str
    name: str
    line: int
    pieces: list[_Piece]


def read(data: bytes, notes: Notes, encoding: str | None = None) -> list[DraftMessage]:
    """Return the messages of a file.

    Args:
        data: the file.
        notes: told of what was repaired or left out.
        encoding: of its text; None for what it says or looks like.

    Raises:
        UnreadableError: it is none, or wrong outside of its messages and definitions.
    """
    text, guessed = decode(data, encoding)
    if guessed is not None:
        say_guessed(notes, guessed)
    return _Reader(_as_version_6(text), notes).read()


class _Reader:
    def __init__(self, text: str, notes: Notes) -> None:
        self._notes = notes
        self._load = by_cantools.loader("sym")
        self._head: list[_Piece] = []
        """All that is in no message, in the order of the file."""
        self._enums: list[_Piece] = []
        self._signals: list[_Piece] = []
        self._messages: list[_Message] = []
        self._take_apart(text)
        self._left_out: set[int] = set()
        """Definitions that cannot be read, by their identity."""

    def read(self) -> list[DraftMessage]:
        try:
            found = self._parse(self._messages)
        except MemoryError:
            raise
        except Exception:
            self._check_definitions()
            found = by_cantools.halve(self._messages, self._parse, self._fail)
        return repair(found, self._notes)

    # --- the text

    def _take_apart(self, text: str) -> None:
        messages: dict[tuple[str, str], _Message] = {}
        marks = [*_SECTION.finditer(text)]
        ends = [*[mark.start() for mark in marks[1:]], len(text)]
        first = marks[0].start() if marks else len(text)
        self._head.append(_Piece(1, "", text[:first]))
        section, line, at = "", 1, 0
        for mark, end in zip(marks, ends, strict=False):
            line += text.count("\n", at, mark.start())
            at = mark.start()
            body = text[at:end]
            if mark[1] is not None:
                section = mark[1].upper()
                if section not in ("SEND", "RECEIVE", "SENDRECEIVE"):
                    self._define(section, line, body)
                continue
            name = mark[2].strip().strip('"')
            ids = _IDS.search(body)
            if ids is not None and not 0 <= int(ids[2], 16) - int(ids[1], 16) < _MAX_ID_RANGE:
                text_of_it = f"message {name} is left out: a range of {_MAX_ID_RANGE} ids or more"
                self._notes.add(line, name, text_of_it)
                continue
            message = messages.setdefault((section, name), _Message(section, name, line, []))
            message.pieces.extend(_pieces(_SIGNAL, line, body))
        self._messages = sorted(messages.values(), key=lambda message: message.section)

    def _define(self, section: str, line: int, body: str) -> None:
        if section == "ENUMS":
            starts = [match.start() for match in _ENUM.finditer(body)]
            self._head.append(_Piece(line, "", body[: starts[0]] if starts else body))
            for start, end in zip(starts, [*starts[1:], len(body)], strict=False):
                match = _ENUM.match(body, start)
                assert match is not None  # noqa: S101 - it was found there
                piece = _Piece(line + body.count("\n", 0, start), match[1], body[start:end])
                self._enums.append(piece)
                self._head.append(piece)
            return
        pieces = [*_pieces(_SIGNAL, line, body)] if section == "SIGNALS" else [_Piece(line, "", body)]
        self._signals += [piece for piece in pieces if piece.name]
        self._head += pieces

    # --- what can be read

    def _check_definitions(self) -> None:
        """Find the definitions that cannot be read."""
        self._left_out = _identities([*self._enums, *self._signals])
        by_cantools.check_head(lambda: self._parse(()))
        self._check("enumeration", self._enums)
        self._check("signal", self._signals)

    def _check(self, kind: str, definitions: Sequence[_Piece]) -> None:
        own = _identities(definitions)
        others = self._left_out - own

        def parse(chosen: Sequence[_Piece]) -> None:
            self._left_out = others | (own - _identities(chosen))
            self._parse(())

        def fail(piece: _Piece, reason: str) -> None:
            text = f"{kind} {piece.name} is left out: {_without_place(reason)}"
            self._notes.add(piece.line, piece.name, text)

        good = by_cantools.readable(definitions, parse, fail)
        self._left_out = others | (own - _identities(good))

    def _parse(self, chosen: Sequence[_Message]) -> list[DraftMessage]:
        lines = [piece.text for piece in self._head if id(piece) not in self._left_out]
        section = ""
        for message in chosen:
            if message.section != section:
                section = message.section
                lines.append(f"{{{section}}}\n")
            lines += [piece.text for piece in message.pieces]
        found = [by_cantools.draft_of(item) for item in self._load("".join(lines))]
        by_name = {message.name: message for message in reversed(chosen)}
        for draft in found:
            if draft.name in by_name:
                draft.line = by_name[draft.name].line
                line_of = _lines(by_name[draft.name])
                for signal in draft.signals:
                    signal.line = line_of.get(signal.name, 0)
        return found

    def _fail(self, message: _Message, reason: str) -> list[DraftMessage]:
        """Return the message without the signals that cannot be read; nothing if that does not help."""
        signals = [piece for piece in message.pieces if piece.name]

        def parse(chosen: Sequence[_Piece]) -> list[DraftMessage]:
            kept = _identities(chosen)
            pieces = [piece for piece in message.pieces if not piece.name or id(piece) in kept]
            return self._parse([message._replace(pieces=pieces)])

        def fail(piece: _Piece, why: str) -> None:
            say_left_out(self._notes, piece.line, message.name, piece.name, _without_place(why))

        try:
            parse(())
        except MemoryError:
            raise
        except Exception:
            text = f"message {message.name} is left out: {_without_place(reason)}"
            self._notes.add(message.line, message.name, text)
            return []
        return parse(by_cantools.readable(signals, parse, fail))


def _pieces(pattern: re.Pattern[str], line: int, body: str) -> Iterator[_Piece]:
    """Yield a text in pieces, those that match with their names."""
    at = 0
    for match in pattern.finditer(body):
        if match.start() > at:
            yield _Piece(line, "", body[at : match.start()])
            line += body.count("\n", at, match.start())
        yield _Piece(line, match[1].strip('"') or "without a name", match[0])
        line += match[0].count("\n")
        at = match.end()
    if at < len(body):
        yield _Piece(line, "", body[at:])


def _lines(message: _Message) -> dict[str, int]:
    """Return the first line that names each signal."""
    found: dict[str, int] = {}
    for piece in message.pieces:
        if piece.name:
            found.setdefault(piece.name, piece.line)
        else:
            for match in _MUX.finditer(piece.text):
                found.setdefault(match[1].strip('"'), piece.line + piece.text.count("\n", 0, match.start()))
    return found


def _identities(pieces: Sequence[_Piece]) -> set[int]:
    return {id(piece) for piece in pieces}


def _without_place(reason: str) -> str:
    # It counts in the part that was read, not in the file.
    return _PLACE.sub("", reason)
