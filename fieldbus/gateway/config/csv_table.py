"""Tables in CSV files, as spreadsheets save them: rows of cells, with the line and column of each.

Rules:

* A cell means what it would mean in YAML: ``0x10``, ``[0xFFFF]``, ``{0: off}``. Cells of columns that hold
  text stay text. Comma, semicolon and tab separate.
* UTF-8, and UTF-16 with a byte order mark (Excel's "Unicode text"). All else is read as Windows-1252, with a
  warning, since nobody can tell it from other encodings of one byte a character.
* A decimal comma (``0,01``) is taken where it can be nothing else: with semicolons or tabs between cells.
  A comma with three digits behind it between tabs, and any with commas between cells, may be one of
  thousands, and is refused.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fieldbus.errors import Problem, closest
from fieldbus.gateway.config.source import parse_yaml, plain_scalar, read_bytes

_COMMA = re.compile(r"([-+]?[0-9]*),([0-9]+)(%|[a-z]*)")
_GROUPED = re.compile(
    r"[-+]?[0-9]{1,3}(?:([.'\u00a0\u202f])[0-9]{3}(?:\1[0-9]{3})*,[0-9]+|(?:,[0-9]{3})+\.[0-9]+)"
)


class Row(NamedTuple):
    """One row of a CSV file."""

    line: int
    cells: dict[str, Any]
    columns: dict[str, int]
    """Key to the column, in characters, where its cell begins."""


def _decoded(data: bytes, shown: str) -> tuple[str, Problem | None]:
    """Return the text of a table, and what is doubtful about it; without text, what is wrong."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16"), None
        except UnicodeDecodeError:
            return "", Problem(
                shown, 0, 0, "", "not UTF-16 text, as its first bytes say", "save it as CSV UTF-8"
            )
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return "", Problem(shown, line, 0, "", "neither UTF-8 nor Windows-1252 text", "save it as CSV UTF-8")
    word = text.splitlines()[line - 1].strip()[:40]
    return text, Problem(
        shown, line, 0, "", f"not UTF-8 text, read as Windows-1252: '{word}'", "save it as CSV UTF-8", True
    )


def read_csv(
    path: Path,
    shown: str,
    columns: Sequence[str],
    text_columns: frozenset[str],
    list_columns: frozenset[str] = frozenset(),
) -> tuple[list[Row], list[Problem]]:
    """Read a CSV file whose header row has names out of `columns`.

    Args:
        path: the file.
        shown: its name, as it is shown.
        columns: the names that there are.
        text_columns: those whose cells stay text.
        list_columns: those in whose cells a comma stands between items.

    Returns:
        The rows without their empty cells, and what is wrong with the file.
    """
    data = read_bytes(path, shown)
    if isinstance(data, Problem):
        return [], [data]
    text, doubt = _decoded(data, shown)
    if not text and doubt is not None:
        return [], [doubt]
    problems = [] if doubt is None else [doubt]
    rows: list[Row] = []
    header: list[str] | None = None
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    delimiter = max(",;\t", key=first.count)
    lines = text.splitlines(keepends=True)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    meaning = _CellReader(shown, delimiter, text_columns, list_columns, problems)
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                problems.extend(_header_problems(header, shown, start, columns))
                continue
            raw = lines[start - 1] if start <= len(lines) else ""
            if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                message = f"{len(cells)} cells under {len(header)} names"
                hint = f"a cell that contains {delimiter!r} stands in double quotes"
                problems.append(Problem(shown, start, 1, "", message, hint))
                continue
            rows.append(meaning.row(start, header, cells, raw))
    except csv.Error as error:
        problems.append(Problem(shown, reader.line_num, 0, "", f"not CSV: {error}"))
    if header is None and all(problem.is_warning for problem in problems):
        problems.append(Problem(shown, 1, 1, "", "the file has no header row"))
    return rows, problems


def _header_problems(header: Sequence[str], shown: str, line: int, columns: Sequence[str]) -> list[Problem]:
    problems = []
    for index, name in enumerate(header):
        if name not in columns:
            hint = closest(name, columns) or f"one of {', '.join(columns)}"
            problems.append(Problem(shown, line, 1, name, f"unknown column '{name}'", hint))
        elif name in header[:index]:
            problems.append(Problem(shown, line, 1, name, f"two columns are named '{name}'"))
    return problems


class _CellReader:
    """Makes rows of cells, and says what is wrong with them."""

    def __init__(
        self,
        shown: str,
        delimiter: str,
        text_columns: frozenset[str],
        list_columns: frozenset[str],
        problems: list[Problem],
    ) -> None:
        self._shown = shown
        self._delimiter = delimiter
        self._text_columns = text_columns
        self._list_columns = list_columns
        self._problems = problems

    def row(self, line: int, header: Sequence[str], cells: Sequence[str], raw: str) -> Row:
        """Return a row, without its empty cells."""
        found: dict[str, Any] = {}
        places: dict[str, int] = {}
        position = 0
        for name, cell in zip(header, cells, strict=False):
            text = cell.strip()
            if text:
                at = raw.find(text, position)
                places[name] = at + 1 if at >= 0 else 1
                found[name] = self._value(text, name, line, places[name])
            position += len(cell)
            position = max(position, raw.find(self._delimiter, position) + 1)
        return Row(line, found, places)

    def _value(self, text: str, column: str, line: int, place: int) -> Any:
        if column in self._text_columns:
            return text
        if text[0] in "[{":
            inner = parse_yaml(text, self._shown)
            self._problems.extend(
                Problem(self._shown, line, place, column, item.message) for item in inner.problems
            )
            return inner.data
        if column not in self._list_columns:
            text, doubt = self._with_point(text)
            if doubt is not None:
                self._problems.append(Problem(self._shown, line, place, column, *doubt))
        return plain_scalar(text)

    def _with_point(self, text: str) -> tuple[str, tuple[str, str] | None]:
        """Return a number with a point for its decimal comma; of a doubtful one 1, and what is doubtful."""
        if _GROUPED.fullmatch(text):
            return "1", (f"'{text}' has separators of thousands", "write the digits with one decimal point")
        match = _COMMA.fullmatch(text)
        if match is None:
            return text, None
        whole, fraction, unit = match.groups()
        number = f"{whole if whole.lstrip('+-') else whole + '0'}.{fraction}{unit}"
        is_clear = self._delimiter == ";" or (self._delimiter == "\t" and len(fraction) != 3)
        if is_clear:
            return number, None
        thousands = f" or {whole}{fraction}{unit}" if len(fraction) == 3 else ""
        return "1", (f"'{text}' has a comma, which may be a decimal comma", f"write {number}{thousands}")
