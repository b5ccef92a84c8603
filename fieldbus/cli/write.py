"""``fieldbus write``: values straight to the devices, through the same guards as any write."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from fieldbus.cli.common import (
    ConfigArgument,
    JsonOption,
    cell,
    find_points,
    load_or_exit,
    out,
    print_json,
)
from fieldbus.cli.read import TimeoutOption, timeout_of
from fieldbus.errors import RefusedError
from fieldbus.gateway import log, loop
from fieldbus.gateway.oneshot import DEFAULT_TIMEOUT_S, parse_value
from fieldbus.gateway.oneshot import write as write_points
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.model import Point, Value


def write(
    config: ConfigArgument,
    assignments: Annotated[list[str], typer.Argument(metavar="POINT=VALUE…", help="press.setpoint=42.5")],
    as_json: JsonOption = False,
    timeout: TimeoutOption = f"{DEFAULT_TIMEOUT_S:g}s",
) -> None:
    """Write points once, straight to their devices; refused if a guard says no."""
    timeout_s = timeout_of(timeout)
    for text in assignments:
        if "=" not in text or "*" in text.partition("=")[0]:
            raise typer.BadParameter(f"'{text}' is not POINT=VALUE", param_hint="POINT=VALUE")
    names = [text.partition("=")[0].strip() for text in assignments]
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(f"{name} is given two values", param_hint="POINT=VALUE")
    plant = load_or_exit(config, shows_warnings=False)
    log.set_up("error")
    values: dict[Point, Value] = {}
    refused: dict[Point, WriteResult] = {}
    for text in assignments:
        name, _, typed = text.partition("=")
        point = find_points(plant, [name.strip()])[0]
        try:
            values[point] = parse_value(point, typed)
        except RefusedError as error:
            refused[point] = WriteResult(point, typed, WriteOutcome.REFUSED, str(error))
    # One value that is wrong stops them all: half of what was asked for may be worse than nothing.
    if refused:
        results = list(refused.values())
        held = "not tried: another value was refused"
        results += [WriteResult(point, value, WriteOutcome.REFUSED, held) for point, value in values.items()]
    else:
        results = loop.run(write_points(plant, values, timeout_s))
    if as_json:
        print_json([_object(result) for result in results])
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("point", "value", "outcome", "reason"):
            table.add_column(name)
        for result in results:
            style = "green" if _is_done(result) else "red"
            outcome = cell(result.outcome, style)
            table.add_row(result.point.address, cell(result.value), outcome, cell(result.reason or ""))
        out().print(table)
    if not all(_is_done(result) for result in results):
        raise typer.Exit(1)


def _is_done(result: WriteResult) -> bool:
    return result.outcome in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)


def _object(result: WriteResult) -> dict[str, Any]:
    return {
        "point": result.point.address,
        "value": result.value,
        "outcome": str(result.outcome),
        "reason": None if result.reason is None else str(result.reason),
    }
