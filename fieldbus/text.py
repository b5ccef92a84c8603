r"""Text that came from outside: devices, peers, brokers, databases, files. Pure.

Rules:

* `printable` makes text safe for a terminal, a log or a table: control characters, terminal escapes, line
  breaks, marks that turn the direction of writing, and half surrogates become escapes such as ``\x1b``,
  ``\u202e`` and ``\ud800``. Everything that people write stays as it is, in all scripts. One line stays
  one line. Nothing is lost: the escape says what was there.
* `printable_json` does the same to JSON, whose escapes mean the same to every reader: the data stay what they
  are.
* `well_formed` makes text safe for UTF-8: half surrogates, which JSON can name and UTF-8 cannot hold, become
  U+FFFD. `is_well_formed` only asks.
* They take any text, and none raises.

Design: one mechanism for all ways out to people. The log's formatter and the command line's output call
`printable` on everything, so no caller has to know where a text came from.
"""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiner: Persian, Hindi and others are not written without them."""


def printable(text: str) -> str:
    """Return text as one line that is safe to show."""
    if text.isprintable():
        return text
    return "".join([letter if _is_shown(letter) else _escape(letter) for letter in text])


def printable_lines(text: str) -> str:
    """Return text of several lines, such as a traceback, safe to show; its line feeds and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def printable_json(text: str) -> str:
    """Return JSON, with its line feeds, in which everything that `printable` escapes is a JSON escape."""
    if text.isprintable():
        return text
    return "".join(
        [letter if letter == "\n" or _is_shown(letter) else _json_escape(letter) for letter in text]
    )


def is_well_formed(text: str) -> bool:
    """Return whether UTF-8 can hold a text."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def well_formed(text: str) -> str:
    """Return text without half surrogates."""
    if is_well_formed(text):
        return text
    return "".join(["\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text])


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"


def _escape(letter: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter)
    if short is not None:
        return short
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(letter: str) -> str:
    code = ord(letter)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
