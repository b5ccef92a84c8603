"""``fieldbus audit``: the record of every attempt to write, shown and verified."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from fieldbus.cli.common import JsonOption, Rows, cell, fail, load_or_exit, out, say, say_json
from fieldbus.errors import os_reason
from fieldbus.gateway.commands.audit import FILE_NAME, export
from fieldbus.gateway.commands.audit import verify as verify_files

app = typer.Typer(no_args_is_help=True, help="The record of every attempt to write.")
WhereArgument = Annotated[
    Path,
    typer.Argument(metavar="CONFIG or FOLDER", help="The configuration, or the folder with the audit files."),
]


def _folder(where: Path) -> Path:
    if where.is_dir():
        return where / "audit" if (where / "audit").is_dir() else where
    return load_or_exit(where, needs_secrets=False, shows_warnings=False).data_dir / "audit"


@app.command()
def verify(
    where: WhereArgument,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            metavar="N:HASH",
            help="A record that must be in it, as `fieldbus network --json` shows it.",
        ),
    ] = None,
) -> None:
    """Check that no record was changed, taken out or put in."""
    folder = _folder(where)
    if not any(folder.glob("audit*.jsonl")):
        raise fail(f"{folder}: there is no {FILE_NAME}; nothing was ever written")
    try:
        found = verify_files(folder)
    except OSError as error:
        raise fail(f"{folder}: {os_reason(error)}") from None
    for fault in found.torn:
        say(f"{fault.file}:{fault.line}: {fault.text}: a crash may have torn it", err=True)
    for fault in found.faults:
        say(f"{fault.file}:{fault.line}: {fault.text}")
    is_missing = expect is not None and not _has(folder, expect)
    if is_missing:
        say(f"{folder}: record {expect} is missing: the end was cut off, or the log was replaced")
    if not found.records and not found.faults:
        say(f"{folder}: there is no record in it")
    if found.faults or is_missing or not found.records:
        raise typer.Exit(1)
    missing = "" if found.first == 1 else f" from record {found.first} on, older files are not here"
    say(f"{folder}: {found.records} records{missing}, the chain is whole; last hash {found.last_hash}")


def _has(folder: Path, expect: str) -> bool:
    number, _, hash_ = expect.partition(":")
    return any(str(record["n"]) == number and record["hash"] == hash_ for record in export(folder))


@app.command()
def show(
    where: WhereArgument,
    last: Annotated[int, typer.Option("--last", metavar="N", min=0, help="So many, the newest.")] = 50,
    only: Annotated[str, typer.Option("--only", help="Only records that contain this text.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show the newest records."""
    records = deque(
        (record for record in export(_folder(where)) if only in json.dumps(record, ensure_ascii=False)), last
    )
    if as_json:
        for record in records:
            say_json(record)
        return
    table = Rows()
    for name in ("n", "time (UTC)", "way", "actor", "point", "value", "before", "outcome", "reason"):
        table.add_column(name)
    for record in records:
        outcome = record.get("outcome", "")
        style = "green" if outcome in ("written", "verified", "routed", "armed") else "red"
        count = record.get("count", 1)
        table.add_row(
            str(record["n"]), str(record.get("time", ""))[:23].replace("T", " "), cell(record.get("way", "")),
            cell(record.get("actor", "")), cell(record.get("point", "")), cell(record.get("value", "")),
            cell("" if record.get("old") is None else record["old"]),
            cell(outcome if count == 1 else f"{outcome} ×{count}", style), cell(record.get("reason") or ""),
        )  # fmt: skip
    out().print(table)
