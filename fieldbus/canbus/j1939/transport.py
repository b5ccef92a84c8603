"""Messages of more than 8 bytes, put together by listening alone: broadcasts, and connections of others.

Rules:

* What is returned is byte for byte what the sender sent, or nothing. Lost, doubled and reordered packets
  end a message; they never make another one of it.
* Broadcast (BAM): packets in sequence, each within T1 of the one before. Anything else ends it, also a
  packet that comes twice: what is doubled may as well be of another message.
* Connection (RTS and CTS): packets count only as the receiver's CTS allow them, in sequence; a gap stays
  open until a CTS asks for it again. A packet that comes again must be the same; a CTS that begins anew with
  packet 1 throws all away that came before, for it may belong to an RTS that we missed. The message is whole
  when the receiver says so (EndOfMsgACK) with the size of the RTS and no packet is missing here.
* There is one message at a time from one address to another: a new announcement replaces the old one.
* At most `max_sessions` messages are under way; one more, and the oldest is given up. Everything that is
  given up is counted, by reason.
* Time is that of the frames: `now_s` should be when a frame was received, not when it was looked at.

Limit: the protocol has no checksum and no message number. If the end of a message, the announcement of the
next one of the same PGN and size between the same nodes and its first packets are all lost in one go and
within T1, the rest fits. On a bus a frame is not lost to one listener alone, except in its own queues:
whoever feeds this must call `clear` when frames were dropped (`Bus.dropped`), and then it cannot happen.

Design: frames to our own address belong to a `Responder`, which answers; here they would only time out,
because a bus does not hand us our own CTS.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from fieldbus.canbus.j1939.identifiers import GLOBAL, destination_of, read_pgn, source_of
from fieldbus.canbus.j1939.packets import (
    ABORT,
    BAM,
    CTS,
    END_OF_MESSAGE,
    RTS,
    T1_S,
    T2_S,
    T3_S,
    T4_S,
    Announcement,
    Message,
    Packets,
    is_data,
    is_transport,
)


class Broken(StrEnum):
    """Why a message was given up."""

    TIMEOUT = "timeout"
    SEQUENCE = "packet out of sequence"
    ALTERED = "packet repeated with other contents"
    INCOMPLETE = "acknowledged, but packets are missing here"
    DISAGREEMENT = "acknowledged or allowed differently from what was announced"
    ABORTED = "aborted by one of its nodes"
    REPLACED = "replaced by a new announcement"
    MALFORMED = "announcement that cannot be"
    EVICTED = "too many at a time"
    OVERRUN = "frames were dropped before they got here"


class _Session:
    """A message under way."""

    __slots__ = ("announced", "due_s", "first_s", "packets")

    def __init__(self, announced: Announcement, now_s: float, due_s: float) -> None:
        self.announced = announced
        self.packets = Packets(announced.size)
        self.first_s = now_s
        self.due_s = due_s


class Reassembler:
    """Puts together every message on a bus that is not for us alone."""

    def __init__(self, max_sessions: int = 256) -> None:
        """Listen.

        Args:
            max_sessions: how many messages may be under way at a time.
        """
        self.completed = 0
        self.broken: Counter[Broken] = Counter()
        self._max_sessions = max_sessions
        self._sessions: dict[tuple[int, int], _Session] = {}
        """By source and destination; the destination tells broadcasts from connections."""

    def __len__(self) -> int:
        """Return how many messages are under way."""
        return len(self._sessions)

    @property
    def next_due_s(self) -> float | None:
        """When the next one under way is to be given up; None if there is none."""
        return min((session.due_s for session in self._sessions.values()), default=None)

    def feed(self, can_id: int, data: bytes, now_s: float) -> Message | None:
        """Take a frame, in the order of the bus; return the message that it completes.

        Other frames than TP.CM and TP.DT are passed over.
        """
        if not is_transport(can_id):
            return None
        source, destination = source_of(can_id), destination_of(can_id)
        if is_data(can_id):
            return self._data(source, destination, data, now_s)
        if len(data) < 8:
            return None
        control = data[0]
        if control == BAM and destination == GLOBAL:
            self._open(source, destination, data, now_s, T1_S)
        elif control == RTS and destination != GLOBAL:
            self._open(source, destination, data, now_s, T3_S)
        elif control == CTS:
            self._clear_to_send((destination, source), data, now_s)
        elif control == END_OF_MESSAGE:
            return self._acknowledged((destination, source), data, now_s)
        elif control == ABORT and destination != GLOBAL:
            for key in ((source, destination), (destination, source)):
                session = self._find(key, now_s)
                if session is not None and session.announced.pgn == read_pgn(data[5:8]):
                    self._give_up(key, Broken.ABORTED)
        return None

    def expire(self, now_s: float) -> None:
        """Give up what is overdue. `feed` does so too, for what it is about; this frees the others."""
        for key in [key for key, session in self._sessions.items() if session.due_s <= now_s]:
            self._give_up(key, Broken.TIMEOUT)

    def clear(self, reason: Broken = Broken.OVERRUN) -> None:
        """Give up everything that is under way: frames were lost, nobody knows which."""
        for key in list(self._sessions):
            self._give_up(key, reason)

    def _find(self, key: tuple[int, int], now_s: float) -> _Session | None:
        session = self._sessions.get(key)
        if session is not None and session.due_s <= now_s:
            self._give_up(key, Broken.TIMEOUT)
            return None
        return session

    def _give_up(self, key: tuple[int, int], reason: Broken) -> None:
        del self._sessions[key]
        self.broken[reason] += 1

    def _open(self, source: int, destination: int, data: bytes, now_s: float, patience_s: float) -> None:
        key = source, destination
        if self._find(key, now_s) is not None:
            self._give_up(key, Broken.REPLACED)
        announced = Announcement.parse(data)
        if not announced.is_sound:
            self.broken[Broken.MALFORMED] += 1
            return
        while len(self._sessions) >= self._max_sessions:
            self._give_up(next(iter(self._sessions)), Broken.EVICTED)
        session = self._sessions[key] = _Session(announced, now_s, now_s + patience_s)
        if destination == GLOBAL:
            session.packets.allow(1, announced.packets)

    def _data(self, source: int, destination: int, data: bytes, now_s: float) -> Message | None:
        key = source, destination
        session = self._find(key, now_s)
        if session is None:
            return None
        packets = session.packets
        is_next = len(data) > 0 and data[0] == packets.expected
        is_taken = packets.take(data)
        if packets.is_altered:
            self._give_up(key, Broken.ALTERED)
            return None
        if destination == GLOBAL:
            if not (is_next and is_taken):
                self._give_up(key, Broken.SEQUENCE)
                return None
            session.due_s = now_s + T1_S
            return None if packets.missing else self._complete(key, session, now_s)
        if is_taken:
            # After the last packet that was allowed it is the receiver's turn.
            session.due_s = now_s + (T1_S if packets.expected < packets.end else T3_S)
        return None

    def _clear_to_send(self, key: tuple[int, int], data: bytes, now_s: float) -> None:
        session = self._find(key, now_s)
        if session is None or session.announced.pgn != read_pgn(data[5:8]):
            return
        count, first = data[1], data[2]
        if count == 0:
            session.packets.end = session.packets.expected
            session.due_s = now_s + T4_S
            return
        if first == 1:
            session.packets = Packets(session.announced.size)
        if session.packets.allow(first, count):
            session.due_s = now_s + T2_S
        else:
            self._give_up(key, Broken.DISAGREEMENT)

    def _acknowledged(self, key: tuple[int, int], data: bytes, now_s: float) -> Message | None:
        session = self._find(key, now_s)
        if session is None:
            return None
        ours, theirs = session.announced, Announcement.parse(data)
        if theirs[:3] != ours[:3]:
            self._give_up(key, Broken.DISAGREEMENT)
            return None
        if session.packets.missing:
            self._give_up(key, Broken.INCOMPLETE)
            return None
        return self._complete(key, session, now_s)

    def _complete(self, key: tuple[int, int], session: _Session, now_s: float) -> Message:
        del self._sessions[key]
        self.completed += 1
        source, destination = key
        pgn, payload = session.announced.pgn, session.packets.payload()
        return Message(pgn, source, destination, payload, session.first_s, now_s)
