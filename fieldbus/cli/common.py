"""What several commands do alike: load, complain, show values."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fieldbus.errors import ConfigError, Problem, closest
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.plant import Plant
from fieldbus.model import Point
from fieldbus.text import printable, printable_json, printable_lines

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs, not for people.")]

_WIDEST = 10_000
_EXACT = 1e16
_SINGLE = struct.Struct("<f")
_STYLES = {"good": "green", "uncertain": "yellow", "bad": "red"}


def out() -> Console:
    """Return the console for results; in a pipe nothing is cut, nor folded."""
    return Console(width=None if sys.stdout.isatty() else _WIDEST, highlight=False)


def say(text: object, *, err: bool = False) -> None:
    """Write text to stdout or stderr, line by line; what came from outside does nothing to the terminal."""
    typer.echo(printable_lines(str(text)), err=err)


def say_json(data: Any, *, indent: int | None = None) -> None:
    """Write JSON to stdout."""
    typer.echo(printable_json(json.dumps(data, ensure_ascii=False, indent=indent)))


class Rows(Table):
    """A table without frames. What stands in its cells is text, never markup nor control codes."""

    def __init__(self, *, title: str | None = None) -> None:
        shown = None if title is None else cell(title)
        super().__init__(title=shown, title_justify="left", box=None, pad_edge=False, header_style="bold")

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(cell(item) if isinstance(item, str) else item for item in cells), **options)


def load_or_exit(config: Path, *, needs_secrets: bool = True, shows_warnings: bool = True) -> Plant:
    """Load a configuration, or say what is wrong with it and exit with 1."""
    try:
        plant = load(config, needs_secrets=needs_secrets)
    except ConfigError as error:
        say_problems(error.problems)
        raise typer.Exit(1) from None
    if shows_warnings:
        say_problems(plant.warnings)
    return plant


def say_problems(problems: Iterable[Problem]) -> None:
    """Write problems to stderr, one a line."""
    for problem in problems:
        say(problem, err=True)


def fail(message: str) -> typer.Exit:
    """Say why on stderr, and return the exit with 1."""
    say(f"fieldbus: {message}", err=True)
    return typer.Exit(1)


def find_points(plant: Plant, names: Sequence[str]) -> list[Point]:
    """Return the points that a person named (patterns with ``*`` allowed), or exit with 1."""
    import fnmatch  # noqa: PLC0415 - only patterns need it

    found: dict[str, Point] = {}
    for name in names:
        matches = [name] if name in plant.points else []
        if "*" in name:
            pattern = name.replace("[", "[[]").replace("?", "[?]")
            matches = [address for address in plant.points if fnmatch.fnmatchcase(address, pattern)]
        if not matches:
            hint = closest(name, plant.points)
            raise fail(f"there is no point '{name}'" + (f" ({hint})" if hint else ""))
        for address in matches:
            if plant.points[address].device == "sys":
                if "*" in name:
                    continue
                raise fail(f"{address} is the running gateway's own: use `fieldbus watch`")
            found[address] = plant.points[address]
    return list(found.values())


def print_json(data: Any) -> None:
    """Write JSON to stdout, one item a line."""
    say_json(data, indent=2)


def number_text(value: float) -> str:
    """Return a floating-point number with every digit that it has, and no others.

    One that came as a float32 has the digits of that (230.72, not 230.72000122070312), one that was scaled 15
    significant digits (230.7, not 230.70000000000002). Between 1e-6 and 1e16 there is no exponent.
    """
    if value.is_integer() and abs(value) < _EXACT:
        return f"{value:.0f}"
    text = f"{value:.15g}"
    try:
        is_single = _SINGLE.unpack(_SINGLE.pack(value))[0] == value
    except OverflowError:
        is_single = False
    if is_single:
        shorter = (f"{value:.{digits}g}" for digits in range(6, 10))
        text = next((item for item in shorter if _SINGLE.unpack(_SINGLE.pack(float(item)))[0] == value), text)
    if "e" in text and 1e-6 <= abs(value) < _EXACT:
        text = format(Decimal(text), "f")
    return text


def value_text(item: dict[str, Any]) -> str:
    """Return a sample's value as people read it."""
    value = item["value"]
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = number_text(value) if isinstance(value, float) else str(value)
    if "label" in item:
        text += f" ({item['label']})"
    return text


def cell(text: object, style: str = "") -> Text:
    """Return a cell of a table: what devices say is text, never markup nor control codes."""
    if isinstance(text, bool):
        text = "true" if text else "false"  # as the configuration and JSON have it
    return Text(printable(str(text)), style=style)


def samples_table(
    items: Iterable[dict[str, Any]], title: str | None = None, *, has_date: bool = False
) -> Table:
    """Return a table of samples in their JSON form."""
    table = Rows(title=title)
    table.add_column("point", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("quality", overflow="fold")
    table.add_column("time (UTC)", no_wrap=True)
    for item in items:
        style = _STYLES[item["quality"]]
        quality = item["quality"] if item["reason"] is None else f"{item['quality']}: {item['reason']}"
        stamp = (item["time"] or "")[0 if has_date else 11 : 23].replace("T", " ")
        value, unit = cell(value_text(item)), cell(item.get("unit", ""))
        table.add_row(item["point"], value, unit, cell(quality, style), stamp)
    return table


def sample_line(item: dict[str, Any]) -> str:
    """Return a sample in its JSON form as a line for people and for `grep`."""
    unit = f" {item['unit']}" if item.get("unit") else ""
    quality = "" if item["quality"] == "good" else f" ({item['quality']}: {item['reason']})"
    stamp = (item["time"] or "")[:23].replace("T", " ")
    return f"{stamp or '–'}  {item['point']} = {value_text(item)}{unit}{quality}"
