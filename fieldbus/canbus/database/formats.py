"""Database files of each format to drafts of messages; for the reader's process only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fieldbus.canbus.database import arxml, by_cantools, dbc_draft, dbc_text, kcd, sym
from fieldbus.canbus.database.by_cantools import UnreadableError
from fieldbus.canbus.database.draft import DraftMessage, DraftSignal, Notes, leave_out, repair, say_guessed
from fieldbus.canbus.database.encodings import decode

__all__ = ["READERS", "UnreadableError"]

_CHUNK = 2000
"""Signals that cantools is given at once: it holds some hundred times their text in memory."""


def _read_dbc(data: bytes, notes: Notes, encoding: str | None = None) -> list[DraftMessage]:
    text, guessed = decode(data, encoding)
    if guessed is not None:
        say_guessed(notes, guessed)
    found = dbc_text.parse(text, notes)
    if not found.statements:
        raise UnreadableError("it has no statement of one", 1)
    messages = repair(dbc_draft.drafts(found, notes), notes)
    alike: dict[tuple[object, ...], list[DraftSignal]] = {}
    for message in messages:
        for each in message.signals:
            alike.setdefault(each.layout, []).append(each)
    load = by_cantools.loader("dbc")
    faults: dict[tuple[object, ...], str] = {}

    def parse(part: Sequence[list[DraftSignal]]) -> None:
        items = load(dbc_draft.text_for_cantools([signals[0] for signals in part]))[0].signals
        for signals, item in zip(part, items, strict=True):
            for each in signals:
                by_cantools.take_layout(each, item)

    def fail(signals: list[DraftSignal], reason: str) -> None:
        faults[signals[0].layout] = reason

    layouts = [*alike.values()]
    for at in range(0, len(layouts), _CHUNK):
        by_cantools.readable(layouts[at : at + _CHUNK], parse, fail)
    if faults:
        for message in messages:
            leave_out(message, lambda each: faults.get(each.layout), notes)
    return messages


READERS: dict[str, Callable[[bytes, Notes, str | None], list[DraftMessage]]] = {
    "dbc": _read_dbc,
    "kcd": kcd.read,
    "sym": sym.read,
    "arxml": arxml.read,
}
