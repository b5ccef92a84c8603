"""A frame in a log file, and what can be wrong with the file.

Rules:

* Times are whole nanoseconds since the Unix epoch, as exactly as the file has them.
* Identifiers are the words of `bus`, so that a logged frame is compared and routed like one that came in.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fieldbus.canbus.bus import FD

ERROR_STATE = 4
"""Flag of a logged CAN FD frame: its sender was error passive."""
MAX_DATA = 8
MAX_FD_DATA = 64
FD_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)
"""Bytes of a CAN FD frame, by its data length code."""


class LoggedFrame(NamedTuple):
    """A frame as a log has it."""

    time_ns: int
    channel: str
    """As the file names it: an interface, or a number that begins at 1."""
    can_id: int
    data: bytes
    """Of a remote frame as many zeros as it asks for."""
    flags: int = 0
    """Of `bus`, and `ERROR_STATE`."""
    is_received: bool = True
    """False of a frame that the recording machine sent."""

    @property
    def is_fd(self) -> bool:
        """Whether it is a CAN FD frame."""
        return bool(self.flags & FD)


class BadLine(NamedTuple):
    """A line of a log that cannot be used."""

    number: int
    """1-based."""
    reason: str


class LogError(Exception):
    """A log cannot be read or written any further."""

    def __init__(self, path: Path | str, reason: str, line: int = 0) -> None:
        place = f"{path}:{line}" if line else str(path)
        super().__init__(f"{place}: {reason}")
        self.reason = reason
        self.line = line
        """1-based; 0 where the format has no lines or the whole file is meant."""
