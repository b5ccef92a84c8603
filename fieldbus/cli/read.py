"""``fieldbus read``: fresh values, through the running gateway or straight from the devices.

A device may serve one client only, and a serial line has one owner: so a running gateway reads for us, at the
next turn of the link.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fieldbus.cli.common import (
    ConfigArgument,
    JsonOption,
    fail,
    find_points,
    load_or_exit,
    out,
    print_json,
    samples_table,
)
from fieldbus.errors import LinkDownError
from fieldbus.gateway import log, loop
from fieldbus.gateway.door_client import is_running, read_by_gateway
from fieldbus.gateway.oneshot import DEFAULT_TIMEOUT_S
from fieldbus.gateway.oneshot import read as read_points
from fieldbus.sample_json import sample_object
from fieldbus.settings import parse_duration

TimeoutOption = Annotated[
    str, typer.Option("--timeout", help="How long to wait for values.", metavar="DURATION")
]


def timeout_of(text: str) -> float:
    """Return the seconds of a duration that was typed."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from None


def read(
    config: ConfigArgument,
    points: Annotated[list[str], typer.Argument(metavar="POINT…", help="Points; `press.*` for many.")],
    as_json: JsonOption = False,
    timeout: TimeoutOption = f"{DEFAULT_TIMEOUT_S:g}s",
) -> None:
    """Read points once: through the running gateway, or straight from the devices if none runs."""
    timeout_s = timeout_of(timeout)
    plant = load_or_exit(config, needs_secrets=False, shows_warnings=False)
    log.set_up("error")
    try:
        runs = is_running(plant.data_dir, plant.file)
    except LinkDownError as error:
        raise fail(str(error)) from None
    if not runs:
        plant = load_or_exit(config, shows_warnings=False)  # then we need what it needs
    wanted = []
    for point in find_points(plant, points):
        if point.access.can_read or plant.links[plant.link_of[point.device]].is_listener:
            wanted.append(point)
        elif point.address in points:
            raise fail(f"{point.address} can only be written (access: write)")
    if not wanted:
        raise fail(f"none of {', '.join(points)} can be read (access: write)")
    if runs:
        try:
            addresses = [point.address for point in wanted]
            items = loop.run(read_by_gateway(plant.data_dir, addresses, timeout_s))
        except LinkDownError as error:
            raise fail(str(error)) from None
    else:
        samples = loop.run(read_points(plant, wanted, timeout_s))
        items = [sample_object(point, samples[point], names_point=True) for point in wanted]
    if as_json:
        print_json(items)
    else:
        out().print(samples_table(items))
    if any(item["quality"] == "bad" for item in items):
        raise typer.Exit(1)
