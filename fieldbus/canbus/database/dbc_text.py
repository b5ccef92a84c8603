r"""The text of a DBC file, taken apart into statements that keep their lines.

Layout: a statement begins with its keyword. ``BO_`` (a message) with the ``SG_`` (its signals) behind
it, ``VERSION``, ``NS_``, ``BS_`` and ``BU_`` end where the next one begins, all others at a ``;``
outside of strings. Strings are in double quotes, with ``\"`` for a quote inside, and may span lines.

Rules:

* A statement that cannot be read costs itself: reading goes on at the next line that begins with a
  keyword. It is noted with its line. An unterminated string therefore ends with its statement.
* Numbers and names are not judged here, except that a number has a bounded number of digits.
* The work is proportional to the length of the text, whatever the text is.

Design: a tokenizer and a grammar cannot say anything about the rest of a file once a statement has
broken the grammar; one regular expression for each kind of statement can, and it is faster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fieldbus.canbus.database.draft import Notes
from fieldbus.scaling import Number

_KEYWORDS = (
    "BA_DEF_DEF_REL_ BA_DEF_DEF_ BA_DEF_REL_ BA_DEF_SGTYPE_ BA_DEF_ BA_REL_ BA_SGTYPE_ BA_ BO_TX_BU_ BO_ "
    "BS_ BU_ CAT_DEF_ CAT_ CM_ ENVVAR_DATA_ EV_DATA_ EV_ NS_ SGTYPE_VAL_ SGTYPE_ SG_MUL_VAL_ SG_ "
    "SIGTYPE_VALTYPE_ SIG_GROUP_ SIG_TYPE_REF_ SIG_VALTYPE_ VAL_TABLE_ VAL_ VERSION FILTER"
)
_ANY = "(?:" + "|".join(_KEYWORDS.split()) + ")(?![A-Za-z0-9_])"
_STRING = r'"((?:[^"\\]|\\.)*+)"'
_PLAIN_STRING = r'"([^"\n]*+)"'

_SPACE = re.compile(r"(?:\s+|//[^\n]*)*+")
_KEYWORD = re.compile(_ANY)
_NEXT = re.compile(rf"^[ \t]*(?={_ANY})", re.MULTILINE)
_REST = re.compile(rf'[^";\n]*+(?:(?:"(?:[^"\\]|\\.)*+"|\n(?![ \t]*{_ANY}))[^";\n]*+)*+', re.DOTALL)
"""Up to a ``;``, the end of the text or a line that begins with a keyword, strings stepped over."""
_NODES = re.compile(rf'BU_\s*:?(?:\s+(?!{_ANY})[^\s";]+)*+')
_OPEN_ENDED = {
    "VERSION": re.compile(r"VERSION\s*" + _STRING, re.DOTALL),
    # Its lines are keywords, each alone on its line.
    "NS_": re.compile(r"NS_[ \t]*:?[^\n]*(?:\n[ \t]*\w*[ \t]*(?=\n|\Z))*+"),
    "BS_": re.compile(r"BS_\s*:?[ \t]*[0-9,:; \t]*"),
    "BU_": _NODES,
}
_MESSAGE = re.compile(
    rf'BO_[ \t]++(\S++)[ \t]++([^:"\n]++):[ \t]*+([^\s"]++)(?:[ \t]++(?!{_ANY})([^\s";]++))?'
)
_SIGNAL = re.compile(
    r'SG_\s++([^:"\n]++):\s*+([^\s|"]++)\s*+\|\s*+([^\s@"]++)\s*+@\s*+([0-3])\s*+([+-])'
    r'\s*+\(\s*+([^\s,"]++)\s*+,\s*+([^\s)"]++)\s*+\)\s*+\[\s*+([^\s|"]++)\s*+\|\s*+([^\s\]"]++)\s*+\]'
    r'\s*+"((?:[^"\\\n]|\\[^\n])*+)"'
    # Who receives it is of no interest, nor is what else stands on the line.
    rf'(?:[ \t]*+(?:,\s*+)?(?!{_ANY})[^\s,;"]++)*+(?:[ \t]*+;)?'
)
_MAY_BE_HEAD = re.compile(r"\s*+(?!//)[^#*\s]")
"""A line that is no note of a person."""
_MULTIPLEXED = re.compile(r"[Mm]|m(\d{1,20})M?")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4})?")
# Spaces are never given back: what follows them does not begin with one, and so no run of them takes long.
_OBJECT = r"(?:BO_\s++(?P<message>\d++)|SG_\s++(?P<of>\d++)\s++(?P<signal>\S+)|(?:BU_|EV_)\s++[^\s\"]+)"
_STATEMENTS = {
    "CM_": rf"CM_\s++(?:{_OBJECT}\s*+)?STRING",
    "BA_": rf"BA_\s++STRING\s++(?:{_OBJECT}\s++)?(?:STRING|(?P<value>[^\s\"]+))",
    "BA_REL_": r"BA_REL_\s++STRING\s++BU_SG_REL_\s++[^\s\"]+\s++SG_\s++(?P<of>\d++)\s++(?P<signal>\S+)"
    r"\s++(?:STRING|(?P<value>[^\s\"]+))",
    "BA_DEF_": r"BA_DEF_\s++(?P<on>(?:BO_|SG_|BU_|EV_)\s*+)?STRING\s*+(?P<value>\w+)?\s*+(?P<rest>.*)",
    "BA_DEF_DEF_": r"BA_DEF_DEF_\s++STRING\s*+(?:STRING|(?P<value>[^\s\"]+))",
    "VAL_": r"VAL_\s++(?P<of>\d++)\s++(?P<signal>[^\s\"]+)(?P<rest>.*)",
    "VAL_TABLE_": r"VAL_TABLE_\s++(?P<value>[^\s\"]+)(?P<rest>.*)",
    "SIG_VALTYPE_": r"SIG_VALTYPE_\s++(?P<of>\d++)\s++(?P<signal>[^\s:]+)\s*+:?\s*+(?P<value>\d)",
    "SG_MUL_VAL_": r"SG_MUL_VAL_\s++(?P<of>\d++)\s++(?P<signal>\S+)\s++(?P<value>\S+)\s++(?P<rest>[-\d,\s]+)",
    "BO_TX_BU_": r"BO_TX_BU_\s++(?P<message>\d++)\s*+:?\s*+(?P<rest>[^\"]*)",
}


def _compile(string: str) -> dict[str, re.Pattern[str]]:
    return {
        keyword: re.compile(pattern.replace("STRING", string) + r"\s*+", re.DOTALL)
        for keyword, pattern in _STATEMENTS.items()
    }


_AS_WRITTEN = _compile(_STRING)
_ONE_LINE = _compile(r'"([^\n]*)"')
"""For texts with bare quotes or a backslash at their end: each is then taken to be on one line."""
_PAIR = re.compile(rf"\s*([-+]?\d{{1,20}})(?:\.0*)?\s*{_STRING}", re.DOTALL)
_PLAIN_PAIR = re.compile(rf"\s*([-+]?\d{{1,20}})(?:\.0*)?\s*{_PLAIN_STRING}")
_RANGE = re.compile(r"(\d{1,20})\s*-\s*(\d{1,20})")
_ESCAPE = re.compile(r'\\(")')


@dataclass(slots=True)
class SignalText:
    """An ``SG_`` statement; all but the marker's parts as it is written."""

    line: int
    name: str
    is_selector: bool
    selected_by: int | None
    """The value behind its ``m``."""
    start: str
    length: str
    is_little_endian: bool
    is_signed: bool
    is_float: bool
    """By its byte order: SavvyCAN wrote ``@2`` and ``@3`` for floats."""
    scale: str
    offset: str
    minimum: str
    maximum: str
    unit: str


@dataclass(slots=True)
class MessageText:
    """A ``BO_`` statement with its signals."""

    line: int
    frame_id: str
    name: str
    length: str
    sender: str
    signals: list[SignalText] = field(default_factory=list)


@dataclass(slots=True)
class Attached:
    """A statement about a message or a signal, or for an attribute about the whole file."""

    keyword: str
    line: int
    frame_id: int | None
    signal: str
    """Empty if it is about the message."""
    name: str = ""
    """Of the attribute, of the selector; for ``VAL_`` of a value table, if it names one."""
    text: str = ""
    """The comment or the value, as it is written."""
    pairs: Sequence[tuple[int, str]] = ()
    ranges: Sequence[tuple[int, int]] = ()


@dataclass(slots=True)
class DbcText:
    """What the statements of a file say."""

    messages: list[MessageText] = field(default_factory=list)
    attached: list[Attached] = field(default_factory=list)
    defaults: dict[str, str] = field(default_factory=dict)
    """Of the attributes."""
    choices: dict[str, list[str]] = field(default_factory=dict)
    """Of the attributes that are enumerations."""
    tables: dict[str, Sequence[tuple[int, str]]] = field(default_factory=dict)
    statements: int = 0
    """How many there were of any kind."""


def number(text: str) -> Number | None:
    """Return the number that a text is: an integer if it is written as one; None if it is no finite one."""
    if len(text) > 64 or not _NUMBER.fullmatch(text):
        return None
    try:
        return int(text)
    except ValueError:
        found = float(text)
        return found if math.isfinite(found) else None


class _Reader:
    """Goes through a text once."""

    def __init__(self, text: str, notes: Notes) -> None:
        self._text = text
        self._notes = notes
        self._at = 0
        self._line = 1
        self._line_at = 0
        self._message: MessageText | None = None
        self.found = DbcText()

    def run(self) -> DbcText:
        text = self._text
        while True:
            self._at = self._end(_SPACE)
            if self._at >= len(text):
                return self.found
            keyword = _KEYWORD.match(text, self._at)
            self._line += text.count("\n", self._line_at, self._at)
            self._line_at = self._at
            if keyword is None:
                self._skip("this is no statement of a DBC file")
                continue
            self._statement(keyword[0])

    def _end(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        return self._at if match is None else match.end()

    def _skip(self, why: str) -> None:
        """Go on at the next line that begins with a keyword."""
        end = self._text.find("\n", self._at)
        end = len(self._text) if end < 0 else end
        snippet = " ".join(self._text[self._at : min(end, self._at + 60)].split())
        self._notes.add(self._line, "", f"`{snippet}` is left out: {why}")
        following = _NEXT.search(self._text, end)
        at = len(self._text) if following is None else following.end()
        left_out = self._text[self._at : at].split("\n")
        if self._text[self._text.rfind("\n", 0, self._at) + 1 : self._at].strip():
            del left_out[0]  # the end of a line that was read: no message begins there
        if any(_MAY_BE_HEAD.match(line) and "|" not in line for line in left_out):
            # It may have been the head of a message: the signals behind it are not the last one's.
            self._message = None
        self._at = at

    def _statement(self, keyword: str) -> None:
        if keyword == "SG_":
            self._signal()
            return
        self._message = None
        if keyword == "BO_":
            self._begin_message()
        elif keyword in _OPEN_ENDED:
            match = _OPEN_ENDED[keyword].match(self._text, self._at)
            if match is None:
                self._skip(f"this {keyword} cannot be read")
            else:
                self.found.statements += 1
                self._at = match.end()
        else:
            self._terminated(keyword)

    def _begin_message(self) -> None:
        match = _MESSAGE.match(self._text, self._at)
        if match is None:
            self._skip("this message cannot be read")
            return
        frame_id, name, length, sender = match.groups()
        self._message = MessageText(self._line, frame_id, " ".join(name.split()), length, sender or "")
        self.found.messages.append(self._message)
        self.found.statements += 1
        self._at = match.end()

    def _signal(self) -> None:
        match = _SIGNAL.match(self._text, self._at)
        if match is None:
            of = f" of message {self._message.name}" if self._message is not None else ""
            self._skip(f"this signal{of} cannot be read")
            return
        name, start, length, order, sign, scale, offset, low, high, unit = match.groups()
        if self._message is None:
            self._skip("it is not known which message this signal belongs to")
            return
        words = name.split()
        marker = _MULTIPLEXED.fullmatch(words[-1]) if len(words) > 1 else None
        if marker is not None:
            words.pop()
            if marker[0] == "m":
                path = f"{self._message.name}.{words[0]}"
                text = f"message {self._message.name}: signal {words[0]} is repaired: its m is taken as M"
                self._notes.add(self._line, path, text)
        self._message.signals.append(
            SignalText(
                line=self._line,
                name=" ".join(words),
                is_selector=marker is not None and (marker[1] is None or marker[0].endswith("M")),
                selected_by=None if marker is None or marker[1] is None else int(marker[1]),
                start=start,
                length=length,
                is_little_endian=order != "0",
                is_signed=sign == "-",
                is_float=order in "23",
                scale=scale,
                offset=offset,
                minimum=low,
                maximum=high,
                unit=_ESCAPE.sub(r"\1", unit),
            )
        )
        self.found.statements += 1
        self._at = match.end()

    def _terminated(self, keyword: str) -> None:
        """Read a statement that ends with a ``;``."""
        end = self._end(_REST)
        has_end = self._text.startswith(";", end)
        body = self._text[self._at : end]
        if keyword not in _STATEMENTS:
            if self._text.startswith('"', end):
                self._skip("a string in it has no end")
                return
            self._at = end + has_end
            self.found.statements += 1
            return
        # Without a `;`, a string that swallows whole statements is one without an end.
        is_whole = has_end or not (self._text.startswith('"', end) or _NEXT.search(body, 1))
        is_read = is_whole and self._take(keyword, body, _AS_WRITTEN, _PAIR)
        if not is_read:
            end = self._text.find("\n", self._at)
            end = len(self._text) if end < 0 else end
            last = self._text.rfind(";", self._at, end)
            has_end = last >= 0
            end = last if has_end else end
            is_read = self._take(keyword, self._text[self._at : end], _ONE_LINE, _PLAIN_PAIR)
        if not is_read:
            self._skip(f"this {keyword} cannot be read")
            return
        if not has_end:
            self._notes.add(self._line, "", f"this {keyword} is repaired: its `;` is missing")
        self.found.statements += 1
        self._at = end + has_end

    def _take(
        self, keyword: str, body: str, patterns: dict[str, re.Pattern[str]], pair: re.Pattern[str]
    ) -> bool:
        """Read one statement; return whether that was possible."""
        is_of_variable = keyword == "VAL_" and not re.match(r"VAL_\s+\d+\s", body)
        if is_of_variable or (keyword == "BA_REL_" and "BU_SG_REL_" not in body):
            return True
        match = patterns[keyword].fullmatch(body)
        if match is None:
            return False
        parts = match.groupdict()
        strings = [_ESCAPE.sub(r"\1", text) for text in _strings(match)]
        value = parts.get("value") or ""
        rest = parts.get("rest") or ""
        if keyword == "BA_DEF_DEF_":
            self.found.defaults[strings[0]] = strings[1] if len(strings) > 1 else value
            return True
        if keyword == "BA_DEF_":
            if value == "ENUM":
                self.found.choices[strings[0]] = re.findall(_PLAIN_STRING, rest)
            return True
        pairs = _pairs(rest, pair) if keyword in ("VAL_", "VAL_TABLE_") else []
        if keyword == "VAL_TABLE_":
            if pairs is not None:
                self.found.tables[value] = pairs
            return pairs is not None
        frame_id = parts.get("message") or parts.get("of")
        item = Attached(
            keyword,
            self._line,
            int(frame_id) if frame_id is not None and len(frame_id) <= 20 else None,
            parts.get("signal") or "",
        )
        if keyword == "CM_":
            item.text = strings[0]
        elif keyword in ("BA_", "BA_REL_"):
            item.name, item.text = strings[0], strings[1] if len(strings) > 1 else value
        elif keyword == "VAL_":
            if pairs is None:
                item.name, pairs = rest.strip(), []
                if not re.fullmatch(r"\w+", item.name):
                    return False
            item.pairs = pairs
        elif keyword == "SG_MUL_VAL_":
            item.name = value
            item.ranges = [(int(low), int(high)) for low, high in _RANGE.findall(rest)]
        else:
            item.text = rest if keyword == "BO_TX_BU_" else value
        is_about_file = keyword == "BA_" and re.match(r'BA_\s+"[^"]*"\s+(?:BU_|EV_)', body) is None
        if item.frame_id is not None or is_about_file:
            self.found.attached.append(item)
        return True


def _strings(match: re.Match[str]) -> list[str]:
    named = set(match.re.groupindex.values())
    return [text for index, text in enumerate(match.groups(), 1) if index not in named and text is not None]


def _pairs(text: str, pattern: re.Pattern[str]) -> list[tuple[int, str]] | None:
    """Return the numbers and their names, None if anything else is between them."""
    found: list[tuple[int, str]] = []
    at = 0
    while match := pattern.match(text, at):
        found.append((int(match[1]), _ESCAPE.sub(r"\1", match[2])))
        at = match.end()
    return None if text[at:].strip() else found


def parse(text: str, notes: Notes) -> DbcText:
    """Return what the statements of a text say; `notes` tells of those that say nothing."""
    return _Reader(text, notes).run()
