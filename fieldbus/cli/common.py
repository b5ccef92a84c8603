"""What several commands do alike: load, complain, show values."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
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

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs, not for people.")]

_STYLES = {"good": "green", "uncertain": "yellow", "bad": "red"}


def out() -> Console:
    """Return the console for results; never narrower than a table needs when nobody looks at it."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


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
        typer.echo(str(problem), err=True)


def fail(message: str) -> typer.Exit:
    """Say why on stderr, and return the exit with 1."""
    typer.echo(f"fieldbus: {message}", err=True)
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
    """Write JSON to stdout."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2))


def value_text(item: dict[str, Any]) -> str:
    """Return a sample's value as people read it."""
    value = item["value"]
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    if "label" in item:
        text += f" ({item['label']})"
    return text


def cell(text: object, style: str = "") -> Text:
    """Return a cell of a table: what devices say is text, never markup nor control codes."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    return Text(shown, style=style)


def samples_table(
    items: Iterable[dict[str, Any]], title: str | None = None, *, has_date: bool = False
) -> Table:
    """Return a table of samples in their JSON form."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("point", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("quality", no_wrap=True)
    table.add_column("time (UTC)", no_wrap=True)
    for item in items:
        style = _STYLES[item["quality"]]
        quality = item["quality"] if item["reason"] is None else f"{item['quality']}: {item['reason']}"
        stamp = (item["time"] or "")[0 if has_date else 11 : 23].replace("T", " ")
        value, unit = cell(value_text(item)), cell(item.get("unit", ""))
        table.add_row(item["point"], value, unit, cell(quality, style), stamp)
    return table
