"""``fieldbus check``: every problem of a configuration at once, then what it amounts to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer
from rich.table import Table

from fieldbus.cli.common import ConfigArgument, JsonOption, Rows, cell, out, print_json, say
from fieldbus.errors import ConfigError, Problem
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.load import LinkLoad, predict
from fieldbus.gateway.plant import Plant


def check(config: ConfigArgument, as_json: JsonOption = False) -> None:
    """Say everything that is wrong with CONFIG, one problem a line; then sum it up."""
    problems: list[Problem]
    plant: Plant | None = None
    try:
        plant = load(config, needs_secrets=False)
        problems = list(plant.warnings)
    except ConfigError as error:
        problems = list(error.problems)
    if as_json:
        print_json(
            {
                "ok": plant is not None,
                "problems": [asdict(problem) for problem in problems],
                "summary": None if plant is None else _summary(plant),
            }
        )
    else:
        for problem in problems:
            say(str(problem))
        if plant is not None:
            _print(plant)
        else:
            count = sum(not problem.is_warning for problem in problems)
            say(f"{count} problem{'s' if count != 1 else ''} found", err=True)
    if plant is None:
        raise typer.Exit(1)


def _summary(plant: Plant) -> dict[str, Any]:
    loads = predict(plant)
    return {
        "gateway": plant.name,
        "links": len(plant.links),
        "devices": len(plant.devices),
        "points": sum(len(item.points) for item in plant.devices.values()),
        "system_points": sum(point.device == "sys" for point in plant.points.values()),
        "routes": len(plant.edges),
        "requests_per_s": round(sum(load.requests_per_s for load in loads), 3),
        "loads": [asdict(load) for load in loads],
    }


def _print(plant: Plant) -> None:
    found = _summary(plant)
    say(
        f"{plant.file}: fine. {found['links']} links, {found['devices']} devices, "
        f"{found['points']} points, {found['routes']} expanded routes, "
        f"{found['requests_per_s']:.4g} poll requests a second"
    )
    loads = predict(plant)
    out().print(load_table(plant, loads))
    for item in loads:
        if item.percent is not None and item.percent > 100:
            say(f"warning: {item.link} would be loaded with {percent_text(item.percent)}: "
                       "it cannot keep its scan periods")  # fmt: skip


def percent_text(percent: float) -> str:
    """Return a load for people: ``0.26 %``, ``7.1 %``, ``130 %``."""
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def load_table(plant: Plant, loads: list[LinkLoad]) -> Table:
    """Return the table of links and their predicted load."""
    table = Rows()
    table.add_column("link")
    table.add_column("goes to")
    table.add_column("requests/s", justify="right")
    table.add_column("load", justify="right")
    table.add_column("predicted for")
    for item in loads:
        table.add_row(
            item.link,
            cell(plant.links[item.link].endpoint),
            f"{item.requests_per_s:.4g}" if item.requests_per_s else "–",
            "–" if item.percent is None else percent_text(item.percent),
            item.basis,
        )
    return table
