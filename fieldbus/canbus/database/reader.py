"""Reads a database in a process of its own: bytes on standard input, JSON on standard output.

``python -m fieldbus.canbus.database.reader FORMAT ENCODING CPU_S WALL_S MEMORY_BYTES`` is started by
`fieldbus.canbus.database.loading`, which turns its answer into messages. The answer is an object:
``messages`` and ``notes`` of what was repaired or left out, or ``error`` if the file is no database.

Rules:

* It ends after one file: what a file does to a parser in time or memory, it does to a process that is
  limited in both.
* The limits are set before the first byte is read; on systems without them the parent's wall clock
  is the only one. The process ends with its parent.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import signal
import sys
import time
from typing import Any

from fieldbus.canbus.database.draft import DraftMessage, DraftSignal, Notes
from fieldbus.canbus.database.formats import READERS, UnreadableError

MAX_FILE_BYTES = 32 * 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
EXIT_MEMORY = 71
EXIT_ANSWER = 72

_PR_SET_PDEATHSIG = 1


def read(format_: str, data: bytes, encoding: str | None = None) -> dict[str, Any]:
    """Return what a file describes, as plain JSON values.

    Args:
        format_: ``dbc``, ``kcd``, ``sym`` or ``arxml``.
        data: the file.
        encoding: of its text; None for what it says or looks like.
    """
    notes = Notes()
    try:
        messages = READERS[format_](data, notes, encoding)
    except UnreadableError as error:
        return {"error": [error.line, error.column, str(error)]}
    return {
        "messages": [_plain(message) for message in messages],
        "notes": [[note.line, note.path, note.text] for note in notes.ordered()],
    }


def _plain(message: DraftMessage) -> list[Any]:
    return [
        message.name,
        message.frame_id,
        message.is_extended,
        message.length,
        message.is_fd,
        message.is_j1939,
        message.cycle_s,
        message.timeout_s,
        message.senders,
        message.comment,
        message.line,
        [_plain_signal(item) for item in message.signals],
    ]


def _plain_signal(item: DraftSignal) -> list[Any]:
    return [
        item.name,
        item.start,
        item.length,
        item.is_little_endian,
        item.is_signed,
        item.is_float,
        item.scale,
        item.offset,
        item.minimum,
        item.maximum,
        item.unit,
        [*item.labels.items()],
        [[selector.name, ranges] for selector, ranges in item.condition],
        item.raw_initial,
        item.comment,
        item.timeout_s,
    ]


def limit(cpu_s: int, wall_s: int, memory_bytes: int) -> None:
    """Limit this process, as far as the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - not on every system

        used_s = math.ceil(time.process_time())
        for kind, soft, hard in (
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_CPU, used_s + cpu_s, used_s + cpu_s + 1),
            (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        ):
            highest = resource.getrlimit(kind)[1]
            if highest == resource.RLIM_INFINITY or hard <= highest:
                resource.setrlimit(kind, (soft, hard))
        # Where a dead parent is not told of, this ends it.
        signal.alarm(wall_s + 1)


def main() -> None:
    """Read one file, within the limits in the arguments."""
    format_, encoding, *limits = sys.argv[1:]
    import cantools  # noqa: F401, PLC0415 - takes long on a slow machine, and is not the file's fault

    limit(*map(int, limits))
    gc.disable()  # one file, one answer
    try:
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        answer = json.dumps(read(format_, data, encoding or None)).encode()
    except MemoryError:
        os._exit(EXIT_MEMORY)
    if len(answer) > MAX_ANSWER_BYTES:
        os._exit(EXIT_ANSWER)
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)  # taking a hundred thousand objects down costs time, and nobody is served


if __name__ == "__main__":
    main()
