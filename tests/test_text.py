"""Text from outside does nothing to a terminal, and fits into UTF-8."""

import io
import json
import logging
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fieldbus.gateway import log
from fieldbus.text import is_well_formed, printable, printable_json, printable_lines, well_formed

anything = st.text(st.characters() | st.characters(categories=["Cs", "Cc", "Cf"]), max_size=30)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("press.temperature 72.5 °C", "press.temperature 72.5 °C"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("a\nERROR b\r\n", r"a\nERROR b\r\n"),
        ("\x9b31m\x7f\x00", r"\x9b31m\x7f\x00"),
        ("\u202egnp.exe\u2066\u2028", r"\u202egnp.exe\u2066\u2028"),
        ("half \ud83d of it", r"half \ud83d of it"),
        ("温度 Ölstand Давление تیپ\u200cها 🌡\ufe0f 5\u00a0bar", "温度 Ölstand Давление تیپ\u200cها 🌡\ufe0f 5\u00a0bar"),
        ("\U000e0001", r"\U000e0001"),
    ],
)  # fmt: skip
def test_what_people_write_stays_and_what_a_terminal_obeys_is_an_escape(text, shown):
    assert printable(text) == shown


def harmless(text):
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)


@given(anything)
@example("\x1b")
def test_no_text_whatever_reaches_a_terminal_raw(text):
    shown = printable(text)
    assert harmless(shown)
    shown.encode()
    assert printable(shown) == shown
    lines = printable_lines(text)
    assert harmless(lines.replace("\n", "").replace("\t", ""))
    assert lines.count("\n") == text.count("\n")


@given(st.recursive(anything | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(anything, inner), max_leaves=5), st.sampled_from((None, 2)))  # fmt: skip
def test_json_is_harmless_to_a_terminal_and_means_what_it_meant(data, indent):
    shown = printable_json(json.dumps(data, ensure_ascii=False, indent=indent))
    assert harmless(shown.replace("\n", ""))
    assert json.loads(shown) == data


@given(anything)
def test_half_surrogates_are_replaced_and_nothing_else(text):
    found = well_formed(text)
    found.encode()
    assert len(found) == len(text)
    assert is_well_formed(text) is (found == text)


def test_the_first_and_the_last_half_surrogate_are_replaced():
    assert well_formed("\ud7ff\ud800\udfff\ue000") == "\ud7ff\ufffd\ufffd\ue000"


@pytest.fixture
def logged():
    root, ours = logging.getLogger(), logging.getLogger("fieldbus")
    before, levels = root.handlers[:], (root.level, ours.level)
    stream = io.StringIO()
    log.set_up(stream=stream)
    yield stream.getvalue
    root.handlers[:] = before
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_log_line_is_one_line_whatever_a_peer_says(logged):
    logging.getLogger("fieldbus").warning(
        "%s: gateway %s: %s", "broker", "a\nb", "\x1b[2J\u202e\ud800 2026-01-01 ERROR"
    )
    shown = logged()
    assert shown.endswith(r"WARNING broker: gateway a\nb: \x1b[2J\u202e\ud800 2026-01-01 ERROR" + "\n")
    assert shown.count("\n") == 1


def test_a_traceback_keeps_its_lines_and_nothing_else(logged):
    try:
        raise ValueError("\x1b[2J\ud800")
    except ValueError:
        logging.getLogger("fieldbus").exception("internal error")
    shown = logged()
    assert harmless(shown.replace("\n", ""))
    assert shown.count("\n") > 2
    assert r"ValueError: \x1b[2J\ud800" in shown
