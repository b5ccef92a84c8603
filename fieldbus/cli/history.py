"""``fieldbus history``: what a store has of points."""

from __future__ import annotations

import csv
import datetime
import fnmatch
import sqlite3
import sys
import time
from contextlib import suppress
from typing import Annotated

import typer

from fieldbus.cli.common import (
    ConfigArgument,
    JsonOption,
    fail,
    load_or_exit,
    out,
    samples_table,
    say,
    say_json,
)
from fieldbus.cli.decode import end_quietly
from fieldbus.errors import closest
from fieldbus.gateway.plant import Plant
from fieldbus.model import Kind, Point
from fieldbus.sample_json import iso_time, parse_time, sample_object
from fieldbus.settings import parse_duration
from fieldbus.store.history import names, read
from fieldbus.store.link import StoreLink
from fieldbus.text import printable

_SHOWN = 200


def history(
    config: ConfigArgument,
    points: Annotated[list[str], typer.Argument(metavar="POINT…", help="Points; `press.*` for many.")],
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="1h (ago), or 2026-11-27T10:00 (UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="The same; now by default.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="All samples as CSV.")] = False,
    as_json: JsonOption = False,
    store: Annotated[str | None, typer.Option("--store", help="Which store, if there are several.")] = None,
) -> None:
    """Show what a store has of points; no gateway needs to run."""
    plant = load_or_exit(config, needs_secrets=False, shows_warnings=False)
    link = _store_of(plant, store)
    since_ns, until_ns = _moment(since, "--since", 0), _moment(until, "--until", 1 << 62)
    try:
        known = names(link.path)
        wanted = _wanted(points, known)
        found = read(link.path, wanted, since_ns, until_ns)
        if as_csv:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(("time", "point", "value", "unit", "quality", "reason"))
            for name, unit, (value, quality, reason, time_ns) in found:
                shown = "" if value is None else str(value).lower() if isinstance(value, bool) else value
                if isinstance(value, str) and sys.stdout.isatty():
                    shown = printable(value)  # a file gets the text as it is
                writer.writerow((iso_time(time_ns), name, shown, unit or "", quality, reason or ""))
            return
        if as_json:
            for name, unit, sample in found:
                say_json({"point": name, **sample_object(_point(unit), sample)})
            return
        items = [{"point": name, **sample_object(_point(unit), sample)} for name, unit, sample in found]
    except sqlite3.Error as error:
        raise fail(f"{link.path}: {error}") from None
    except BrokenPipeError:
        end_quietly()
        return
    if not items:
        say("no samples in that time", err=True)
        raise typer.Exit(1)
    if len(items) > _SHOWN:
        say(f"the newest {_SHOWN} of {len(items)} samples; --csv has all", err=True)
    out().print(samples_table(items[-_SHOWN:], has_date=True))


def _store_of(plant: Plant, name: str | None) -> StoreLink:
    stores = {key: link for key, link in plant.links.items() if isinstance(link, StoreLink)}
    if not stores:
        raise fail(f"{plant.file} has no link of `type: store`")
    if name is None and len(stores) > 1:
        raise fail(f"there are several stores, {', '.join(stores)}: say which by --store")
    found = stores.get(name or next(iter(stores)))
    if found is None:
        raise fail(f"there is no store '{name}' ({closest(str(name), stores) or ', '.join(stores)})")
    return found


def _wanted(points: list[str], known: list[str]) -> list[str]:
    found: dict[str, None] = {}
    for text in points:
        matches = [
            name for name in known if name == text or ("*" in text and fnmatch.fnmatchcase(name, text))
        ]
        if not matches:
            hint = closest(text, known)
            raise fail(f"the store has nothing of '{text}'" + (f" ({hint})" if hint else ""))
        found.update(dict.fromkeys(matches))
    return list(found)


def _moment(text: str | None, option: str, default: int) -> int:
    if text is None:
        return default
    with suppress(Exception):  # else it is a moment
        return time.time_ns() - round(parse_duration(text) * 1e9)
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return parse_time(moment.isoformat())
    except ValueError:
        text = f"'{text}' is neither a duration such as 1h nor a time such as 2026-11-27T10:00"
        raise typer.BadParameter(text, param_hint=option) from None


def _point(unit: str | None) -> Point:
    return Point("store", "", Kind.FLOAT, unit=unit)
