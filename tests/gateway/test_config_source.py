"""YAML and CSV with places."""

import pytest

from fieldbus.gateway.config.csv_table import read_csv
from fieldbus.gateway.config.source import parse_yaml, plain_scalar, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("off", "off"), ("1:30", "1:30"), ("012", 12), ("0o14", 12), ("0x10", 16), ("1e3", 1000.0),
        ("true", True), ("~", None), ("2026-11-22", "2026-11-22"), (".5", 0.5), ("-7", -7), ("1_000", "1_000"),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(text, value):
    got = plain_scalar(text)
    assert got == value
    assert type(got) is type(value)


def test_everything_has_its_line_and_column():
    source = parse_yaml("a: 1\nb:\n  - {x: 2}\n", "f.yaml")
    assert source.data == {"a": 1, "b": [{"x": 2}]}
    assert source.marks["b", 0, "x"] == (3, 6)
    assert source.values["b", 0, "x"] == (3, 9)
    assert str(source.problem(("b", 0, "x"), "wrong", "do better")) == "f.yaml:3:9: b[0].x: wrong (do better)"
    # of something that is not there: where it should be
    assert source.problem(("b", 0, "y"), "missing").line == 3


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [1\nb: 2", (2, 2), "not YAML"),
        ("a: 1\na: 2", (2, 1), "'a' stands in line 1 already"),
        ("a: !!python/object:os.system x", (1, 4), "tag"),
        ("a: !secret x", (1, 4), "tag"),
        ("", (1, 1), "empty"),
        ("a: 1\n---\nb: 2", (1, 1), "more than one document"),
        ("[1]: 2", (1, 1), "a key is a word"),
    ],
)
def test_what_is_wrong_is_said_where_it_is(text, place, words):
    problem = parse_yaml(text, "f").problems[0]
    assert (problem.line, problem.column) == place
    assert words in problem.message


def test_aliases_cannot_blow_a_small_file_up():
    text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    assert "aliases make it too large" in parse_yaml(text, "f").problems[0].message


@pytest.mark.parametrize("text", ["[" * 3000, "{a: " * 3000, "- " * 3000 + "x"])
def test_deep_nesting_is_refused(text):
    assert parse_yaml(text, "f").problems


def test_a_file_that_is_not_text_is_said_with_its_line(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1\nb: \xff\xfe\n")
    problem = read_yaml(path, "f.yaml").problems[0]
    assert (problem.line, problem.message) == (2, "not UTF-8 text")


def test_a_file_that_is_not_there(tmp_path):
    assert "no such file" in read_yaml(tmp_path / "x", "x").problems[0].message


COLUMNS = ("name", "address", "invalid", "enum", "unit")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_cells_mean_what_they_would_mean_in_yaml(tmp_path, separator):
    path = tmp_path / "m.csv"
    rows = [["name", "address", "invalid", "unit"], ["temp", "0x10", "65535", "12"], ["", "", "", ""]]
    path.write_text("\ufeff" + "\r\n".join(separator.join(row) for row in rows), newline="")
    found, problems = read_csv(path, "m.csv", COLUMNS, frozenset({"name", "unit"}))
    assert problems == []
    assert [row.cells for row in found] == [{"name": "temp", "address": 16, "invalid": 65535, "unit": "12"}]
    assert (found[0].line, found[0].columns["address"]) == (2, 6)


def test_csv_cells_may_be_yaml_mappings(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text('name,enum\nmode,"{0: off, 1: on}"\n')
    assert read_csv(path, "m", COLUMNS, frozenset())[0][0].cells["enum"] == {0: "off", 1: "on"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name,adress\nx,1\n", 1, "unknown column 'adress'"),
        ("name,name\n", 1, "two columns are named"),
        ("name,address\nx,1,2\n", 2, "3 cells under 2 names"),
        ("", 1, "no header row"),
        ('name\n"x', 2, "not CSV"),
        ('name,enum\nx,"{0: "\n', 2, "not YAML"),
    ],
)
def test_csv_problems_have_their_line(tmp_path, text, line, words):
    path = tmp_path / "m.csv"
    path.write_text(text)
    problem = read_csv(path, "m", COLUMNS, frozenset())[1][0]
    assert problem.line == line
    assert words in problem.message
