"""The log: one line an event, for people at a terminal and for a journal alike."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        base = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{base}.{int(record.msecs):03d}"


def set_up(level: str = "info", stream: TextIO | None = None) -> None:
    """Send the log to a stream (stderr by default).

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("fieldbus").setLevel(level.upper())
