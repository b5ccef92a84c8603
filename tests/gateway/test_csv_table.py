"""Cells of spreadsheets: encodings, decimal commas, and what is doubtful about them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.gateway.config.csv_table import read_csv
from fieldbus.gateway.config.names import NAME, POINT_NAME, name_hint

COLUMNS = ("name", "scale", "invalid", "deadband")


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    return read_csv(path, "t.csv", COLUMNS, frozenset({"name"}), frozenset({"invalid"}))


@pytest.mark.parametrize(
    ("separator", "cell", "value"),
    [
        (";", "0,01", 0.01),
        (";", "-20,5", -20.5),
        (";", ",5", 0.5),
        (";", "-,5", -0.5),
        (";", "1,000", 1.0),
        (";", "0.01", 0.01),
        (";", "1000", 1000),
        (";", "1,5%", "1.5%"),
        (";", "2,5s", "2.5s"),
        ("\t", "0,01", 0.01),
        ("\t", "12,5", 12.5),
        (",", "0.01", 0.01),
    ],
)
def test_a_decimal_comma_is_taken_where_it_is_clear(tmp_path, separator, cell, value):
    rows, problems = table(tmp_path, f"name{separator}scale\np{separator}{cell}\n")
    assert (rows[0].cells["scale"], problems) == (value, [])


@pytest.mark.parametrize(
    ("separator", "cell", "hint"),
    [
        (",", '"0,01"', "write 0.01"),
        (",", '"1,000"', "write 1.000 or 1000"),
        ("\t", "1,000", "write 1.000 or 1000"),
        (";", "1.000,5", "write the digits with one decimal point"),
        (";", "1'000,5", "write the digits with one decimal point"),
        (";", "1,000.5", "write the digits with one decimal point"),
    ],
)
def test_a_comma_that_may_be_something_else_is_told(tmp_path, separator, cell, hint):
    _, [problem] = table(tmp_path, f"name{separator}scale\np{separator}{cell}\n")
    assert (problem.line, problem.path, problem.hint, problem.is_warning) == (2, "scale", hint, False)
    assert cell.strip('"') in problem.message


def test_lists_and_texts_keep_their_commas(tmp_path):
    rows, problems = table(tmp_path, "name;invalid\n1,5;0,1\n")
    assert (rows[0].cells, problems) == ({"name": "1,5", "invalid": "0,1"}, [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_excel_saves_as_unicode_is_taken(tmp_path, encoding):
    rows, problems = table(tmp_path, "name;scale\nZähler µ;1\n", encoding)
    assert (rows[0].cells["name"], problems) == ("Zähler µ", [])


def test_windows_1252_is_taken_with_a_warning(tmp_path):
    rows, [problem] = table(tmp_path, "name;scale\nok;1\nZähler 5 €;1\n", "cp1252")
    assert rows[1].cells["name"] == "Zähler 5 €"
    assert (problem.line, problem.is_warning, problem.hint) == (3, True, "save it as CSV UTF-8")


@pytest.mark.parametrize("data", [b"name;scale\n\x81\x8d;1\n", b"\xff\xfea", b"\xff\xfe\x00\xd8"])
def test_what_is_no_known_text_is_named(tmp_path, data):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    rows, [problem] = read_csv(path, "t.csv", COLUMNS, frozenset())
    assert (rows, problem.is_warning, problem.hint) == ([], False, "save it as CSV UTF-8")


@given(st.binary(max_size=200))
def test_no_bytes_whatever_make_a_table_raise(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(b"name;scale\n" + data)
    read_csv(path, "t.csv", COLUMNS, frozenset({"name"}), frozenset({"invalid"}))


@pytest.mark.parametrize(
    ("name", "example"),
    [("Zähler Netz", "Zaehler_Netz"), ("Größe (m³)", "Groesse_m3"), ("Température", "Temperature"),
     ("P [kW]", "P_kW"), ("a.b c", "a.b_c")],
)  # fmt: skip
def test_a_refused_name_comes_with_one_that_is_taken(name, example):
    assert name_hint(name, has_dots=True).endswith(f"for example '{example}'")


@given(st.text(max_size=80), st.booleans())
def test_what_is_offered_instead_of_a_name_is_one(name, has_dots):
    _, found, example = name_hint(name, has_dots=has_dots).partition(": for example ")
    assert not found or (POINT_NAME if has_dots else NAME).fullmatch(example.strip("'"))
