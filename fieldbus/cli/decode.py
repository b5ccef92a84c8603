"""``fieldbus decode``: a CAN log as engineering values, one line a frame."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from fieldbus.canbus.database.encodings import encoding_named
from fieldbus.canbus.database.loading import DatabaseError, load
from fieldbus.canbus.logs.asc import names_of
from fieldbus.canbus.logs.decoding import LogDecoder, most_frequent
from fieldbus.canbus.logs.lines import zone_of
from fieldbus.canbus.logs.logged import LogError
from fieldbus.canbus.logs.reading import FORMATS, LogReader
from fieldbus.cli.common import JsonOption, fail, say
from fieldbus.text import printable, printable_json

_SHOWN_IDS = 5
_MAX_CHANNELS_SHOWN = 20


def decode(
    database: Annotated[
        Path, typer.Argument(metavar="DATABASE", help="What describes the messages: DBC, KCD, SYM, ARXML.")
    ],
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            help="candump (.log), .asc, .blf, .trc, .csv or .crtd, by its contents; also .gz; - for stdin.",
        ),
    ],
    as_json: JsonOption = False,
    form: Annotated[
        str | None, typer.Option("--format", help=f"Format of the log: {', '.join(FORMATS)}.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Encoding of the database's text: gbk, cp1252, …")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            "--timezone",
            help="Zone of the log's start: UTC, Asia/Shanghai; default: local time (.asc, .blf), UTC (.trc).",
        ),
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", help="Only frames of this channel of the log.")
    ] = None,
    j1939: Annotated[
        bool, typer.Option("--j1939", help="Take extended identifiers as J1939, whatever the database says.")
    ] = False,
) -> None:
    """Decode a CAN log with what DATABASE describes: one line a frame, a summary on stderr."""
    if form is not None and form not in FORMATS:
        raise typer.BadParameter(f"'{form}' is not one of {', '.join(FORMATS)}", param_hint="--format")
    try:
        zone = None if timezone is None else zone_of(timezone)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timezone") from None
    known = None if encoding is None else encoding_named(encoding)
    if encoding is not None and known is None:
        raise typer.BadParameter(f"'{encoding}' is not an encoding of text", param_hint="--encoding")
    try:
        found = load(database, str(database), known)
    except DatabaseError as error:
        raise fail(str(error.problem)) from None
    for problem in found.warnings:
        say(problem, err=True)
    decoder = LogDecoder(found.messages, is_json=as_json, is_j1939=j1939)
    for name, other in decoder.doubles:
        say(f"{database}: warning: {name} has the identifier of {other} and is not seen", err=True)
    trouble: LogError | None = None
    try:
        source = cast("BinaryIO", sys.stdin.buffer) if str(log) == "-" else None
        ids = names_of((item.name, item.frame_id, item.is_extended) for item in found.messages)
        reader = LogReader(log, form=form, names=ids, zone=zone, source=source)
    except LogError as error:
        raise fail(str(error)) from None
    others: dict[str, None] = {}
    try:
        _write_lines(reader, decoder, channel, others, as_json=as_json)
    except LogError as error:
        trouble = error
    except BrokenPipeError:
        end_quietly()
        return
    _sum_up(reader, decoder)
    if not decoder.frames and others:
        names = ", ".join(others)
        say(f"{log}: no frame of channel {channel}; there are {names}", err=True)
    if trouble is not None:
        raise fail(str(trouble))
    if reader.bad_lines or not decoder.decoded:
        raise typer.Exit(1)


def end_quietly() -> None:
    """Have nothing more written: whoever read our output has enough."""
    # What is still buffered must not fail once more when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_lines(
    reader: LogReader, decoder: LogDecoder, channel: str | None, others: dict[str, None], *, as_json: bool
) -> None:
    line_of, write = decoder.line, sys.stdout.write
    shown = printable_json if as_json else printable
    try:
        for frame in reader:
            if channel is None or frame.channel == channel:
                write(shown(line_of(frame)) + "\n")
            elif len(others) < _MAX_CHANNELS_SHOWN:
                others[frame.channel] = None
    finally:
        sys.stdout.flush()


def _sum_up(reader: LogReader, decoder: LogDecoder) -> None:
    parts = [f"{decoder.frames} frames", f"{decoder.decoded} decoded"]
    if decoder.unknown:
        ids = len(decoder.unknown)
        most = ", ".join(most_frequent(decoder.unknown, _SHOWN_IDS))
        parts.append(f"{decoder.unknown.total()} unknown, {ids} different: {most}")
    if decoder.undecodable:
        parts.append(f"{decoder.undecodable} remote, error or partial")
    if reader.others:
        parts.append(f"{reader.others} lines that are no frames")
    if reader.bad_lines:
        parts.append(f"{reader.bad_lines} bad lines")
    say(f"{reader.path}: {'; '.join(parts)}", err=True)
    for text, count in decoder.fragments.items():
        say(f"{reader.path}: {text} ({count} frames)", err=True)
    for note in reader.notes:
        say(f"{reader.path}: {note}", err=True)
    for line in reader.first_bad:
        place = f"{reader.path}:{line.number}" if line.number else str(reader.path)
        say(f"{place}: {line.reason}", err=True)
    if reader.bad_lines > len(reader.first_bad):
        say(f"{reader.path}: … and {reader.bad_lines - len(reader.first_bad)} more", err=True)
