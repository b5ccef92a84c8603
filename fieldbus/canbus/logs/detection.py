"""What a log is, by its contents.

Rules:

* The first line that only one format has decides. Nothing is guessed from less: then the suffix of the file
  says what it is.
"""

from __future__ import annotations

import re
from typing import BinaryIO

from fieldbus.canbus.logs import candump

GZIP_MAGIC = b"\x1f\x8b"
SUFFIXES = {
    ".log": "candump",
    ".asc": "asc",
    ".blf": "blf",
    ".trc": "trc",
    ".csv": "csv",
    ".crtd": "crtd",
}
"""Formats by the suffix that files of them usually have."""

_MARKS = [
    ("trc", re.compile(r";\$FILEVERSION=|\s*\d+\)\s+\d+(?:\.\d+)?\s+\S", re.ASCII)),
    (
        "asc",
        re.compile(
            r"date\s+\S+\s+\S+\s+\d+\s+\d+:|base\s+(?:hex|dec)\b|begin\s+triggerblock\b",
            re.IGNORECASE | re.ASCII,
        ),
    ),
    ("candump", re.compile(r"\s*\(\d+\.\d+\)\s+\S+\s+[0-9A-Fa-f]{3,8}#", re.ASCII)),
    ("csv", re.compile(r"\s*(?:time stamp,id,extended|timestamp,arbitration_id)", re.IGNORECASE | re.ASCII)),
    ("crtd", re.compile(r"\s*\d+\.\d+\s+\d*(?:C[A-Z]{2}|[RT](?:11|29))(?:\s|$)", re.ASCII)),
    ("view", candump.VIEW),
]
_MAX_LINE = 500
_MAX_LINES = 2000


def detect(head: bytes) -> str | None:
    """Return the format that the beginning of a file has; None if it is not recognised."""
    if head.startswith(b"LOGG"):
        return "blf"
    for line in head.decode("latin-1").split("\n", _MAX_LINES)[:_MAX_LINES]:
        if len(line) > _MAX_LINE:
            continue
        for form, mark in _MARKS:
            if mark.match(line):
                return form
    return None


class Prefixed:
    """A file whose beginning was looked at, and is read once more."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Look at the first bytes, at most `size`; of a pipe, those that are there."""
        self._file = file
        self._read1 = getattr(file, "read1", file.read)
        self._rest: bytes = self._read1(size)
        self.head = self._rest

    def read1(self, size: int) -> bytes:
        """Return some bytes, without waiting for all; none at the end."""
        if self._rest:
            found, self._rest = self._rest[:size], self._rest[size:]
            return found
        found = self._read1(size)
        return found

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes; fewer at the end only."""
        if size < 0:
            found, self._rest = self._rest, b""
            return found + self._file.read()
        pieces = []
        while size > 0 and (piece := self.read1(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
