"""Text in the encodings of devices: byte by byte, there and back, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import ConversionError
from fieldbus.modbus.formats.text import Chars, Pad, encoding_named, text_bytes, text_of
from fieldbus.modbus.point_settings import PointSettings

ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437", "gbk", "gb18030", "big5", "shift_jis", "euc_kr", "koi8-r",
             "utf-8", "utf-16-be", "utf-16-le"]  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "text", "wire"),
    [
        ("latin-1", "Zähler", "5ae4686c6572"),
        ("cp437", "Zähler", "5a84686c6572"),
        ("cp1252", "5 €", "352080"),
        ("gbk", "泵3", "b1c333"),
        ("shift_jis", "ポンプ", "837c83938376"),
        ("koi8-r", "Насос", "eec1d3cfd3"),
        ("utf-8", "Süd", "53c3bc64"),
        ("utf-16-be", "µ3", "00b50033"),
        ("utf-16-le", "µ3", "b5003300"),
    ],
)
def test_a_text_byte_by_byte(encoding, text, wire):
    registers = text_bytes(text, 16, Pad.NUL, Chars.BOTH, encoding)
    assert registers.hex() == wire.ljust(32, "0")
    assert text_of(registers, Chars.BOTH, encoding) == (text, None)


@pytest.mark.parametrize(
    ("encoding", "text", "character"),
    [
        ("ascii", "Zähler", "ä"),
        ("latin-1", "5 €", "€"),
        ("cp437", "Насос", "Н"),
        ("gbk", "naïve", "ï"),
        (None, "a\ud800", "\ud800"),
    ],
)
def test_a_character_that_an_encoding_lacks_is_refused(encoding, text, character):
    with pytest.raises(ConversionError, match="lacks") as caught:
        text_bytes(text, 32, Pad.NUL, Chars.BOTH, encoding)
    assert repr(character) in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "wire"), [("ascii", "e4"), ("gbk", "80ff"), ("utf-8", "e46800"), ("utf-16-be", "d8000041")]
)
def test_bytes_that_an_encoding_lacks_are_no_text(encoding, wire):
    value, flaw = text_of(bytes.fromhex(wire), Chars.BOTH, encoding)
    assert (value, flaw.reason) == (None, "conversion")


def test_without_an_encoding_text_is_read_as_utf_8_or_latin_1():
    assert text_of("Süd".encode().ljust(8, b"\0"), Chars.BOTH)[0] == "Süd"
    assert text_of("Süd".encode("latin-1").ljust(8, b"\0"), Chars.BOTH)[0] == "Süd"
    assert text_bytes("Süd", 4, Pad.NUL, Chars.BOTH) == "Süd".encode()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pad", list(Pad))
@pytest.mark.parametrize("chars", list(Chars))
@given(text=st.text(max_size=10) | st.text(st.characters(max_codepoint=0xFF), max_size=10))
def test_every_text_that_is_taken_comes_back(encoding, pad, chars, text):
    if encoding.startswith("utf-16") and chars is not Chars.BOTH:
        return  # refused at load
    try:
        registers = text_bytes(text, 48, pad, chars, encoding)
    except ConversionError:
        return
    assert len(registers) == 48
    assert text_of(registers, chars, encoding) == (text.rstrip(" "), None)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-be"])
def test_what_would_be_read_as_no_text_is_refused(encoding):
    text = "ÿÿÿÿ" if encoding == "latin-1" else "\uffff\uffff"
    with pytest.raises(ConversionError, match="nothing but FF"):
        text_bytes(text, 4, Pad.NUL, Chars.BOTH, encoding)
    with pytest.raises(ConversionError, match="ends at NUL"):
        text_bytes("a\0", 4, Pad.NUL, Chars.BOTH, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoding_in_which_ascii_is_ascii_is_taken(encoding):
    assert encoding_named(encoding) is not None


@pytest.mark.parametrize("name", ["latin-99", "utf-16", "utf-32", "utf-7", "cp037", "base64", "rot13", "hex", "idna",
                                  "punycode", "unicode_escape", "raw_unicode_escape", "hz", "", "a" * 1000, "\0"])  # fmt: skip
def test_what_is_no_encoding_for_registers_is_refused(name):
    assert encoding_named(name) is None
    with pytest.raises(ValueError, match="is not an encoding for text in registers"):
        PointSettings(table="holding", address=0, type="string", length=4, encoding=name)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"type": "int16", "encoding": "latin-1"}, "`encoding` is for strings"),
        ({"type": "string", "length": 4, "encoding": "utf-16-be", "chars": "low"}, "takes both bytes"),
    ],
)
def test_an_encoding_that_makes_no_sense_is_refused(more, words):
    with pytest.raises(ValueError, match=words):
        PointSettings(table="holding", address=0, **more)
