"""The log: one line an event, for people at a terminal and for a journal alike.

Rules: text of devices, peers, brokers and databases is shown with its control characters and terminal escapes
as escapes, whoever logs it. One event is one line; a traceback follows on further lines.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

from fieldbus.text import printable, printable_lines


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        base = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        zone = time.strftime("%z", time.localtime(record.created))
        return f"{base}.{int(record.msecs):03d}{zone}"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return printable_lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return printable_lines(super().formatStack(stack_info))


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
