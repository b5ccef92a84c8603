"""How the text of a database file is encoded.

Rules:

* What the configuration names counts. Else the mark at the beginning of the file, else UTF-8 if the file is
  valid UTF-8, else GBK if it is clearly Chinese, else Windows-1252, which is what tools for DBC files write.
* GBK is only taken where every byte that is no ASCII is half of a pair of GB 2312, most pairs are of its
  common letters, and several different ones are there. Single accented letters never look like that.
"""

from __future__ import annotations

import codecs
import re

_RUN = re.compile(rb"[\x80-\xff]+")
_FIRST_ROW, _LAST_ROW = 0xA1, 0xF7
_FIRST_COMMON, _LAST_COMMON = 0xB0, 0xD7
_FEWEST_PAIRS = 2
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NO_TEXT = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})


def encoding_named(name: str) -> str | None:
    """Return Python's name of an encoding for text; None if there is none."""
    try:
        found = codecs.lookup(name)
        if found.name in _NO_TEXT:
            return None
        b"AA".decode(found.name, "replace")  # refused for what is no encoding of text
    except (LookupError, UnicodeError, ValueError):
        return None
    return found.name


def decode(data: bytes, encoding: str | None = None) -> tuple[str, str | None]:
    """Return the text of a file, and the encoding if it was guessed against the rule of its format.

    Args:
        data: the file.
        encoding: as the configuration names it.
    """
    if encoding is not None:
        return _lines(data.decode(encoding, "replace")).removeprefix("\ufeff"), None
    for mark, marked in _MARKS:
        if data.startswith(mark):
            return _lines(data[len(mark) :].decode(marked, "replace")), None
    head = data[:64]
    for first, marked in ((1, "utf-16-le"), (0, "utf-16-be")):
        if any(head) and len(head) >= 4 and not any(head[first::2]):
            return _lines(data.decode(marked, "replace")), None
    try:
        return _lines(data.decode("utf-8")), None
    except UnicodeDecodeError:
        pass
    if is_chinese(data):
        return _lines(data.decode("gbk", "replace")), "gbk"
    return _lines(data.decode("cp1252", "replace")), None


def is_chinese(data: bytes) -> bool:
    """Return whether bytes that are no UTF-8 are clearly GBK."""
    pairs: list[bytes] = []
    for run in _RUN.findall(data):
        if len(run) % 2:
            return False
        pairs += [run[at : at + 2] for at in range(0, len(run), 2)]
    if any(not _FIRST_ROW <= first <= _LAST_ROW or second < _FIRST_ROW for first, second in pairs):
        return False
    common = [pair for pair in pairs if _FIRST_COMMON <= pair[0] <= _LAST_COMMON]
    return len(set(common)) >= _FEWEST_PAIRS and 2 * len(common) >= len(pairs)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", " ")
