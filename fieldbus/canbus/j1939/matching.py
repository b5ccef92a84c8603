"""Which messages a PGN means, and whether one frame can be all of a message.

The gateway and `decode` both use this, and the same `Reassembler`: what one makes of a bus the other makes of
its log.

Rules:

* A message is matched by PGN and source address; one without a source address by the PGN alone.
* A message of more than 8 bytes is never decoded from one classic frame. It travels in packets (TP.CM and
  TP.DT). A frame of 8 bytes under its own PGN is part of an NMEA 2000 fast packet, or another message.
* DM1 and DM2 are lists of any length; one that is short is one frame, however long the database says it is.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from fieldbus.canbus.j1939.identifiers import ACTIVE_FAULTS, PREVIOUS_FAULTS, pgn_of
from fieldbus.canbus.layout import Message

_FRAME_BYTES = 8
_LISTS = frozenset({ACTIVE_FAULTS, PREVIOUS_FAULTS})

Item = TypeVar("Item")


class PgnTable(Generic[Item]):
    """What receives the messages of a bus, by PGN and source address."""

    def __init__(self) -> None:
        self._by_source: dict[tuple[int, int | None], list[Item]] = {}
        self._by_pgn: dict[int, list[Item]] = {}

    def __bool__(self) -> bool:
        """Return whether anything is in it."""
        return bool(self._by_pgn)

    def add(self, pgn: int, source: int | None, item: Item) -> None:
        """Add a receiver; without a source address it receives from all nodes."""
        self._by_source.setdefault((pgn, source), []).append(item)
        self._by_pgn.setdefault(pgn, []).append(item)

    def of(self, pgn: int, source: int) -> list[Item]:
        """Return the receivers of a message from a node: those of its address first."""
        return [*self._by_source.get((pgn, source), ()), *self._by_source.get((pgn, None), ())]

    def nearest(self, pgn: int, source: int) -> Item | None:
        """Return the receiver of a message from a node, else the first of its PGN, else None."""
        found = self.of(pgn, source) or self._by_pgn.get(pgn)
        return found[0] if found else None


def is_fragment(message: Message, size: int) -> bool:
    """Return whether a frame with so many data bytes is too short to be the J1939 message."""
    return (
        message.is_j1939 and message.length > _FRAME_BYTES >= size and pgn_of(message.frame_id) not in _LISTS
    )


def fragment_text(message: Message) -> str:
    """Return the sentence for people about frames that are fragments."""
    return (
        f"PGN {pgn_of(message.frame_id)} ({message.name}) has {message.length} bytes, and frames of 8 came: "
        "they are not decoded; NMEA 2000 fast packets are not supported"
    )
