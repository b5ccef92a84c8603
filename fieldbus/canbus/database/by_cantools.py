"""What the readers of formats have cantools do: parse, part by part where it cannot parse the whole.

Rules:

* cantools is imported here and in `arxml` only, by name, and only in the reader's process.
* A part that cantools cannot read is found by halving: the rest is read without it.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, TypeVar

from fieldbus.canbus.database.draft import NO_NUMBER, DraftMessage, DraftSignal

_LINE = re.compile(r"line (\d+)(?:, column (\d+))?", re.IGNORECASE)

_Part = TypeVar("_Part")
_Made = TypeVar("_Made")
Patch = tuple[Any, str, Callable[..., object]]
"""A class, the name of a method, and what stands in for it."""


class UnreadableError(Exception):
    """The file is no database of its format."""

    def __init__(self, text: str, line: int = 0, column: int = 0) -> None:
        super().__init__(text)
        self.line = line
        self.column = column


def loader(format_: str, patches: Sequence[Patch] = ()) -> Callable[[str], list[Any]]:
    """Return cantools' own reader of a format, without what it prepares for decoding."""
    message_type = import_module("cantools.database.can.message").Message
    module = import_module(f"cantools.database.can.formats.{format_}")

    def refresh(self: Any, strict: bool | None = None) -> None:  # noqa: ARG001
        # The codecs, which we do not use, take time and memory by the product of lengths; the checks
        # refuse a file for one message.
        self._signal_dict = {item.name: item for item in self._signals}

    def load(text: str) -> list[Any]:
        with _patched([(message_type, "refresh", refresh), *patches]):
            return list(module.load_string(text, strict=False, sort_signals=None).messages)

    return load


@contextlib.contextmanager
def _patched(patches: Sequence[Patch]) -> Iterator[None]:
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    try:
        for owner, name, instead in patches:
            setattr(owner, name, instead)
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def halve(
    parts: Sequence[_Part],
    parse: Callable[[Sequence[_Part]], Sequence[_Made]],
    fail: Callable[[_Part, str], Sequence[_Made]],
) -> list[_Made]:
    """Return what `parse` makes of the parts that it can read, and `fail` of each of the others."""
    if not parts:
        return []
    try:
        return list(parse(parts))
    except MemoryError:
        raise
    except Exception as error:  # whatever the parsers of cantools raise
        if len(parts) == 1:
            return list(fail(parts[0], words(error)))
    middle = len(parts) // 2
    return halve(parts[:middle], parse, fail) + halve(parts[middle:], parse, fail)


def readable(
    parts: Sequence[_Part], parse: Callable[[Sequence[_Part]], object], fail: Callable[[_Part, str], None]
) -> list[_Part]:
    """Return the parts that `parse` can read; the others are handed to `fail`."""

    def keep(chosen: Sequence[_Part]) -> Sequence[_Part]:
        parse(chosen)
        return chosen

    def drop(part: _Part, reason: str) -> Sequence[_Part]:
        fail(part, reason)
        return ()

    return halve(parts, keep, drop)


def check_head(parse: Callable[[], object]) -> None:
    """Refuse a file that is wrong outside of its messages."""
    try:
        parse()
    except MemoryError:
        raise
    except Exception as error:
        raise unreadable(error) from error


def words(error: Exception) -> str:
    """Return what an exception of cantools says, in one short line."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    if isinstance(error, KeyError):
        return f"there is no {text}"[:300]
    return re.sub(r'^\w{3,5}: "(.*?)"(?:,.*)?$', r"\1", text)[:300]


def unreadable(error: Exception) -> UnreadableError:
    """Return the refusal of a file for what an exception says."""
    text = words(error)
    match = _LINE.search(text)
    return UnreadableError(text, *((int(match[1]), int(match[2] or 0)) if match else (0, 0)))


def draft_of(item: Any, line: int = 0) -> DraftMessage:
    """Return a message of cantools as a draft."""
    cycle_ms = _finite(item.cycle_time) or 0
    return DraftMessage(
        name=str(item.name),
        frame_id=item.frame_id,
        is_extended=bool(item.is_extended_frame),
        length=_whole(item.length),
        line=line,
        signals=[_draft_signal(each) for each in item.signals],
        is_fd=bool(item.is_fd) or (item.length > 8 and item.protocol != "j1939"),
        is_j1939=item.protocol == "j1939",
        cycle_s=cycle_ms / 1000 if cycle_ms > 0 else None,
        senders=[str(sender) for sender in item.senders or ()],
        comment=str(item.comment or ""),
    )


def _draft_signal(item: Any) -> DraftSignal:
    draft = DraftSignal(
        name=str(item.name),
        unit=str(item.unit or ""),
        labels={int(raw): str(name) for raw, name in (item.choices or {}).items() if int(raw) == raw},
        comment=str(item.comment or ""),
        raw_initial=_finite(item.raw_initial) or 0,
        selector=item.multiplexer_signal,
        ids=[(value, value) for value in item.multiplexer_ids or ()],
    )
    take_layout(draft, item)
    return draft


def take_layout(draft: DraftSignal, item: Any) -> None:
    """Take from a signal of cantools where it lies and how it is scaled."""
    draft.start, draft.length = _whole(item.start), _whole(item.length)
    draft.is_little_endian = item.byte_order == "little_endian"
    draft.is_signed, draft.is_float = item.is_signed, item.is_float
    draft.scale, draft.offset = _finite(item.scale), _finite(item.offset)
    draft.minimum, draft.maximum = _finite(item.minimum), _finite(item.maximum)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else NO_NUMBER


def _finite(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
