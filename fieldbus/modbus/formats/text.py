"""Text in registers, in the encoding that a device has.

Rules:

* Text ends at its first NUL and loses its trailing spaces, however it was padded. A text of nothing
  but NUL or spaces is the empty text, which is a value; one of nothing but FF is no text at all, it is
  how devices fill registers that they do not have.
* Without an encoding, text is read as UTF-8, or as Latin-1 where it is no UTF-8, and written as UTF-8.
* With an encoding, bytes that it does not have are no value, and a character that it does not have is
  refused. Nothing is replaced, cut or written as a question mark.

Design: an encoding is any of Python's in which the printable ASCII characters are themselves and NUL is
NUL, so that ends and padding can be found in the bytes, and UTF-16, in which both take two bytes.
"""

from __future__ import annotations

from enum import StrEnum

from fieldbus.errors import ConversionError
from fieldbus.model import Flaw, Reason, Value, bad

_WIDE = ("utf-16-be", "utf-16-le")
_PRINTABLE = "".join(map(chr, range(32, 127))) + r"\x41\u0041"
"""With what escapes would be, in an encoding that has any."""


class Pad(StrEnum):
    """What a text that is shorter than its registers is filled with."""

    NUL = "nul"
    SPACE = "space"


class Chars(StrEnum):
    """Which bytes of a register hold characters."""

    BOTH = "both"
    HIGH = "high"
    LOW = "low"

    @property
    def per_register(self) -> int:
        """How many bytes of text a register has."""
        return 2 if self is Chars.BOTH else 1

    @property
    def places(self) -> slice:
        """Where they are among the bytes of the registers, each with its high byte first."""
        return _PLACES[self]


_PLACES = {Chars.BOTH: slice(0, None, 1), Chars.HIGH: slice(0, None, 2), Chars.LOW: slice(1, None, 2)}


def encoding_named(name: str) -> str | None:
    """Return the name under which text can be encoded, None if there is no such encoding for registers."""
    wide = name.lower().replace("_", "-")
    if wide in _WIDE:
        return wide
    try:
        data = _PRINTABLE.encode(name)
        is_plain = data == _PRINTABLE.encode("ascii") and data.decode(name) == _PRINTABLE
        is_plain = is_plain and "\0".encode(name) == b"\0"
    except (LookupError, UnicodeError, ValueError):
        return None
    return name if is_plain else None


def character_size(encoding: str | None) -> int:
    """Return how many bytes NUL and space take."""
    return 2 if encoding in _WIDE else 1


def text_of(data: bytes, chars: Chars, encoding: str | None = None) -> tuple[Value | None, Flaw | None]:
    """Return the text in registers, each with its high byte first."""
    data = data[chars.places]
    if data.count(0xFF) == len(data):
        return None, bad(Reason.NOT_AVAILABLE)
    data = data[: _wide_end(data)] if encoding in _WIDE else data.split(b"\0", 1)[0]
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        if encoding is not None:
            return None, bad(Reason.CONVERSION)
        text = data.decode("latin-1")  # every byte is a character there: nothing is lost
    return text.rstrip(" "), None


def _wide_end(data: bytes) -> int:
    return next((place for place in range(0, len(data), 2) if data[place : place + 2] == b"\0\0"), len(data))


def _encoded(text: str, encoding: str) -> bytes:
    try:
        data = text.encode(encoding)
        if data.decode(encoding) == text:
            return data
        # Some encodings write one character as another: the yen sign of Shift JIS as a backslash.
        lacking = next((char for char in text if char.encode(encoding).decode(encoding) != char), text)
    except UnicodeEncodeError as error:
        lacking = text[error.start : error.start + 1]
    raise ConversionError(f"{text!r} has the character {lacking!r}, which {encoding} lacks")


def text_bytes(value: Value, size: int, pad: Pad, chars: Chars, encoding: str | None = None) -> bytes:
    """Return the registers of a text, each with its high byte first.

    Args:
        value: the text.
        size: how many bytes the registers have.
        pad: what fills the characters that are left.
        chars: which bytes hold characters; the others become 0.
        encoding: UTF-8 if None.

    Raises:
        ConversionError: it is no text, too long, has a character that the encoding lacks, or could not be
            read back.
    """
    if not isinstance(value, str):
        raise ConversionError(f"{value!r} is not text")
    data = _encoded(value, encoding or "utf-8")
    room = size // 2 * chars.per_register
    if len(data) > room:
        raise ConversionError(f"text of {len(data)} bytes does not fit the {room} that there are")
    if "\0" in value:
        raise ConversionError("a text ends at NUL and cannot contain one")
    if data and len(data) == room and data.count(0xFF) == room:
        raise ConversionError(f"{value!r} would be nothing but FF, which means that there is no text")
    filler = (" " if pad is Pad.SPACE else "\0").encode(encoding or "utf-8")
    registers = bytearray(size)
    registers[chars.places] = data + filler * ((room - len(data)) // len(filler))
    return bytes(registers)
