"""Bus databases: what cantools read from a DBC, KCD, SYM or ARXML file, as plain data.

Rules:

* Nothing of cantools leaves this file.
* A message that cannot be used costs itself, not the file: it is left out, and said.
* A file is refused unread when it is too large to be one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cantools

from fieldbus.canbus.layout import Condition, Message, Signal
from fieldbus.errors import ConversionError, Problem
from fieldbus.scaling import Linear

MAX_FILE_BYTES = 32 * 1024 * 1024
FORMATS = {".dbc": "dbc", ".kcd": "kcd", ".sym": "sym", ".arxml": "arxml"}
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LINE = re.compile(r"line (\d+)(?:, column (\d+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Database:
    """The messages of one bus."""

    messages: Sequence[Message]
    warnings: Sequence[Problem]
    """What was left out, and why."""


class DatabaseError(Exception):
    """The file cannot be read as a database."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def load(path: Path, shown: str) -> Database:
    """Read a database.

    Args:
        path: the file; its ending says its format.
        shown: how problems name it.

    Raises:
        DatabaseError: it is none.
    """

    def refuse(message: str, line: int = 0, column: int = 0, hint: str | None = None) -> DatabaseError:
        return DatabaseError(Problem(shown, line, column, "", message, hint))

    format_ = FORMATS.get(path.suffix.lower())
    if format_ is None:
        raise refuse(f"'{path.suffix}' is no database format", hint=f"one of {', '.join(FORMATS)}")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise refuse(f"larger than {MAX_FILE_BYTES // 1024 // 1024} MiB")
        database: Any = cantools.database.load_file(
            path, database_format=format_, strict=False, sort_signals=None
        )
    except OSError as error:
        raise refuse((error.strerror or str(error)).lower()) from error
    except DatabaseError:
        raise
    except Exception as error:  # cantools raises whatever its parsers raise
        text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        text = re.sub(r'^DBC: "(.*?)"(?:,.*)?$', r"\1", text)
        match = _LINE.search(text)
        line, column = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
        raise refuse(f"not a readable {format_.upper()} file: {text[:300]}", line, column) from error
    messages: list[Message] = []
    warnings: list[Problem] = []
    seen: dict[str, int] = {}
    for item in database.messages:
        try:
            message = _message(item)
            if message.name in seen:
                raise ValueError("a message of this name was there before")
        except (ValueError, TypeError, ArithmeticError, ConversionError) as error:
            text = f"message {item.name} is left out: {error}"
            warnings.append(Problem(shown, 0, 0, item.name, text, is_warning=True))
            continue
        seen[message.name] = message.frame_id
        messages.append(message)
    return Database(messages, warnings)


def _message(item: Any) -> Message:
    if not _NAME.fullmatch(item.name):
        raise ValueError("its name cannot be part of a point's")
    if not 0 <= item.length <= 64:
        raise ValueError(f"it has {item.length} bytes")
    by_name = {signal.name: signal for signal in item.signals}
    if len(by_name) != len(item.signals):
        raise ValueError("two of its signals have one name")
    signals = [_signal(signal, by_name) for signal in item.signals]
    for signal in signals:
        if signal.bytes_needed > item.length:
            raise ValueError(f"signal {signal.name} ends behind the message's {item.length} bytes")
    cycle_ms = item.cycle_time
    return Message(
        name=item.name,
        frame_id=item.frame_id,
        is_extended=item.is_extended_frame,
        length=item.length,
        signals=signals,
        is_fd=bool(item.is_fd) or item.length > 8,
        cycle_s=cycle_ms / 1000 if cycle_ms else None,
        senders=tuple(item.senders or ()),
        comment=item.comment or "",
    )


def _signal(item: Any, by_name: dict[str, Any]) -> Signal:
    if not _NAME.fullmatch(item.name):
        raise ValueError(f"the name of signal {item.name!r} cannot be part of a point's")
    linear = Linear(item.scale, item.offset)
    labels = {int(raw): str(name) for raw, name in (item.choices or {}).items()}
    return Signal(
        name=item.name,
        start=item.start,
        length=item.length,
        is_little_endian=item.byte_order == "little_endian",
        is_signed=item.is_signed,
        is_float=item.is_float,
        linear=linear,
        minimum=item.minimum,
        maximum=item.maximum,
        unit=item.unit,
        labels=labels,
        condition=_condition(item, by_name),
        raw_initial=item.raw_initial or 0,
        comment=item.comment or "",
    )


def _condition(item: Any, by_name: dict[str, Any]) -> Condition:
    steps: list[tuple[str, frozenset[int]]] = []
    seen = {item.name}
    while item.multiplexer_ids is not None and item.multiplexer_signal is not None:
        selector = by_name.get(item.multiplexer_signal)
        if selector is None or selector.name in seen:
            raise ValueError(f"the multiplexer of {item.name} is not in the message")
        if not Linear(selector.scale, selector.offset).is_identity:
            raise ValueError(f"multiplexer {selector.name} is scaled")
        seen.add(selector.name)
        steps.append((selector.name, frozenset(item.multiplexer_ids)))
        item = selector
    return tuple(reversed(steps))
