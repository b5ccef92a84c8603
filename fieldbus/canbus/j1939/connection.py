"""Messages of more than 8 bytes that concern us: answering who sends to our address, and sending. Sans-IO.

Rules:

* What is returned to be sent goes out in that order, at once; nothing else of ours is needed in between.
* Responder: a message is whole when every packet came in the sequence that we allowed. A gap is asked for
  again, `_RETRIES` times for the same packet; then the connection is aborted, with the reason. A packet
  that comes again with other contents aborts it at once.
* One connection from each address at a time: a new RTS replaces the one before, whose sender has evidently
  given it up.
* Sender: the receiver says what is sent (CTS), and may ask for packets again; the newest CTS counts. It may
  hold us, but not for ever. Whatever ends without its EndOfMsgACK has a `failure`.
* Everything ends: each side waits no longer than the times in `packets`.

Design: a receiver may allow 255 packets at once, more than a driver's queue takes. So the sender hands out
`BURST` frames at a time, `BURST_SPACING_S` apart, which is about what a bus of 250 kbit/s carries.
"""

from __future__ import annotations

from typing import NamedTuple

from fieldbus.canbus.j1939.identifiers import (
    GLOBAL,
    LAST_ADDRESS,
    LAST_PGN,
    destination_of,
    has_destination,
    read_pgn,
    source_of,
)
from fieldbus.canbus.j1939.packets import (
    ABORT,
    ABORT_REASONS,
    BAD_SEQUENCE,
    BROADCAST_SPACING_S,
    CTS,
    DIFFERENT_REPETITION,
    END_OF_MESSAGE,
    MAX_BYTES,
    MIN_BYTES,
    NO_RESOURCES,
    OTHER,
    PRIORITY,
    RTS,
    T1_S,
    T2_S,
    T3_S,
    T4_S,
    TIMED_OUT,
    TOO_LONG,
    TOO_MANY_RETRANSMISSIONS,
    Announcement,
    Message,
    Outgoing,
    Packets,
    abort,
    announce,
    clear_to_send,
    end_of_message,
    is_data,
    is_transport,
    packet,
    packets_for,
)

WINDOW = 16
"""How many packets we allow at once."""
BURST = 8
BURST_SPACING_S = 0.005
_RETRIES = 2
_MAX_REPEATS = 8
"""Sender: CTS in a row that ask for nothing new."""
_LONGEST_HOLD_S = 30.0


class Outcome(NamedTuple):
    """What follows from a frame."""

    frames: list[Outgoing]
    """To be sent."""
    message: Message | None = None
    """Whole now."""


class _Incoming:
    """A connection to us."""

    __slots__ = ("allowed", "announced", "due_s", "first_s", "packets", "retries", "wanted")

    def __init__(self, announced: Announcement, now_s: float) -> None:
        self.announced = announced
        self.packets = Packets(announced.size)
        self.first_s = now_s
        self.due_s = now_s
        self.wanted = 0
        """The first packet of the last CTS …"""
        self.retries = 0
        """… and how often it was asked for again."""
        self.allowed = 1
        """The first packet that no CTS has named yet."""


class Responder:
    """Receives messages that are sent to one address of ours. Another address is another responder."""

    def __init__(self, own_address: int, max_sessions: int = 32) -> None:
        """Answer from now on.

        Args:
            own_address: 0..253.
            max_sessions: more connections than that at a time are refused.
        """
        if not 0 <= own_address <= LAST_ADDRESS:
            raise ValueError(f"address {own_address}")
        self.own_address = own_address
        self.completed = 0
        self.failed = 0
        self._max_sessions = max_sessions
        self._sessions: dict[int, _Incoming] = {}
        """By source address."""

    @property
    def due_s(self) -> float | None:
        """When to call `tick`; None as long as nobody is sending."""
        return min((session.due_s for session in self._sessions.values()), default=None)

    def heard(self, can_id: int, data: bytes, now_s: float) -> Outcome:
        """Take a frame; other frames than TP.CM and TP.DT to our address are passed over."""
        if not is_transport(can_id) or destination_of(can_id) != self.own_address:
            return Outcome([])
        source = source_of(can_id)
        if is_data(can_id):
            return self._data(source, data, now_s)
        if len(data) < 8 or source == self.own_address:
            return Outcome([])
        if data[0] == RTS:
            return Outcome(self._open(source, data, now_s))
        session = self._sessions.get(source)
        if data[0] == ABORT and session is not None and session.announced.pgn == read_pgn(data[5:8]):
            self._end(source)
        return Outcome([])

    def tick(self, now_s: float) -> list[Outgoing]:
        """Return what is to be sent because nothing came: a CTS again, or an abort."""
        frames: list[Outgoing] = []
        for source, session in list(self._sessions.items()):
            if session.due_s <= now_s:
                frames += self._ask(source, session, now_s, TIMED_OUT)
        return frames

    def clear(self) -> list[Outgoing]:
        """Abort everything: we leave, or frames were dropped and nobody knows which."""
        frames: list[Outgoing] = []
        for source, session in list(self._sessions.items()):
            frames += self._abort(source, session.announced.pgn, OTHER)
        return frames

    def _open(self, source: int, data: bytes, now_s: float) -> list[Outgoing]:
        if source in self._sessions:
            self._end(source)
        announced = Announcement.parse(data)
        if not announced.is_sound:
            self.failed += 1
            reason = TOO_LONG if announced.size > MAX_BYTES else OTHER
            return [abort(self.own_address, source, reason, announced.pgn)]
        if len(self._sessions) >= self._max_sessions:
            self.failed += 1
            return [abort(self.own_address, source, NO_RESOURCES, announced.pgn)]
        session = self._sessions[source] = _Incoming(announced, now_s)
        return self._ask(source, session, now_s, OTHER)

    def _data(self, source: int, data: bytes, now_s: float) -> Outcome:
        session = self._sessions.get(source)
        if session is None:
            return Outcome([])
        packets = session.packets
        is_taken = packets.take(data)
        if packets.is_altered:
            return Outcome(self._abort(source, session.announced.pgn, DIFFERENT_REPETITION))
        if not is_taken:
            return Outcome([])
        session.due_s = now_s + T1_S
        if packets.expected < packets.end:
            return Outcome([])
        if packets.missing:
            return Outcome(self._ask(source, session, now_s, BAD_SEQUENCE))
        del self._sessions[source]
        self.completed += 1
        pgn, size = session.announced.pgn, session.announced.size
        message = Message(pgn, source, self.own_address, packets.payload(), session.first_s, now_s)
        return Outcome([end_of_message(self.own_address, source, size, pgn)], message)

    def _ask(self, source: int, session: _Incoming, now_s: float, reason: int) -> list[Outgoing]:
        """Allow the first packets that are missing, or abort if that was done often enough."""
        first, length = session.packets.gap()
        if first >= session.allowed:
            session.retries = 0
        else:
            session.retries = session.retries + 1 if first == session.wanted else 1
            if session.retries > _RETRIES:
                why = TOO_MANY_RETRANSMISSIONS if reason == BAD_SEQUENCE else reason
                return self._abort(source, session.announced.pgn, why)
        count = min(length, WINDOW, session.announced.per_cts)
        session.wanted, session.allowed = first, max(session.allowed, first + count)
        session.packets.allow(first, count)
        session.due_s = now_s + T2_S
        return [clear_to_send(self.own_address, source, count, first, session.announced.pgn)]

    def _abort(self, source: int, pgn: int, reason: int) -> list[Outgoing]:
        self._end(source)
        return [abort(self.own_address, source, reason, pgn)]

    def _end(self, source: int) -> None:
        del self._sessions[source]
        self.failed += 1


class Sender:
    """Sends one message: to everybody as a broadcast, to one address by connection."""

    def __init__(
        self,
        pgn: int,
        payload: bytes,
        source: int,
        destination: int = GLOBAL,
        *,
        spacing_s: float = BROADCAST_SPACING_S,
        priority: int = PRIORITY,
    ) -> None:
        """Prepare.

        Args:
            pgn: of the message; may be of either format.
            payload: 9..1785 bytes.
            source: our address.
            destination: 255 for a broadcast.
            spacing_s: between the frames of a broadcast.
            priority: of every frame.

        Raises:
            ValueError: there can be no such message.
        """
        if not MIN_BYTES <= len(payload) <= MAX_BYTES:
            raise ValueError(f"{len(payload)} bytes: a message in packets has {MIN_BYTES}..{MAX_BYTES}")
        if not 0 <= pgn <= LAST_PGN or (has_destination(pgn) and pgn & 0xFF):
            raise ValueError(f"PGN {pgn}")
        if not 0 <= source <= LAST_ADDRESS:
            raise ValueError(f"source address {source}")
        if not (0 <= destination <= LAST_ADDRESS or destination == GLOBAL) or destination == source:
            raise ValueError(f"destination address {destination}")
        if not 0 <= priority <= 7:
            raise ValueError(f"priority {priority}")
        self.pgn, self.source, self.destination = pgn, source, destination
        self.is_done = False
        self.failure: str | None = None
        """Why it was not sent; None as long as it may still be, or was."""
        self.due_s: float | None = None
        """When to call `tick`; None before the start and after the end."""
        self._payload = bytes(payload)
        self._packets = packets_for(len(payload))
        self._spacing_s = spacing_s
        self._priority = priority
        self._next = 1
        """The packet to send next …"""
        self._end = 1
        """… and the one before which to stop, until the next CTS."""
        self._furthest = 1
        """The first packet that was never sent."""
        self._asked = 0
        """The highest number of packets that the receiver said it has, plus 1."""
        self._repeats = 0
        self._granted = 0, 0
        """What the last CTS said: how many packets, and which is the first."""
        self._held_from_s: float | None = None

    def start(self, now_s: float) -> list[Outgoing]:
        """Announce the message."""
        if self.is_done or self.due_s is not None:
            return []
        if self.destination == GLOBAL:
            self._end = self._packets + 1
            self.due_s = now_s + self._spacing_s
        else:
            self.due_s = now_s + T3_S
        per_cts = min(self._packets, 0xFF)
        size = len(self._payload)
        return [announce(self.source, self.destination, self.pgn, size, per_cts, self._priority)]

    def heard(self, can_id: int, data: bytes, now_s: float) -> list[Outgoing]:
        """Take a frame; what is not the receiver's answer to this message is passed over."""
        if (
            self.is_done
            or self.due_s is None
            or self.destination == GLOBAL
            or not is_transport(can_id)
            or is_data(can_id)
            or source_of(can_id) != self.destination
            or destination_of(can_id) != self.source
            or len(data) < 8
            or read_pgn(data[5:8]) != self.pgn
        ):
            return []
        if data[0] == CTS:
            return self._clear_to_send(data[1], data[2], now_s)
        if data[0] == END_OF_MESSAGE:
            size = data[1] | data[2] << 8
            if self._furthest <= self._packets or size != len(self._payload):
                return self._fail(f"acknowledged as {size} bytes before it was sent whole", OTHER)
            self._finish(None)
        elif data[0] == ABORT:
            self._finish(f"aborted by {self.destination}: {_why(data[1])}")
        return []

    def tick(self, now_s: float) -> list[Outgoing]:
        """Return what is to be sent now that `due_s` has come."""
        if self.due_s is None or now_s < self.due_s:
            return []
        if self._next < self._end:
            return self._burst(now_s)
        return self._fail(f"no answer from {self.destination}", TIMED_OUT)

    def cancel(self) -> list[Outgoing]:
        """End it; a receiver is told."""
        if self.is_done or self.due_s is None:
            self._finish(self.failure or ("cancelled" if not self.is_done else None))
            return []
        return self._fail("cancelled", OTHER)

    def _clear_to_send(self, count: int, first: int, now_s: float) -> list[Outgoing]:
        if count == 0:
            self._end = self._next
            if self._held_from_s is None:
                self._held_from_s = now_s
            elif now_s - self._held_from_s > _LONGEST_HOLD_S:
                return self._fail(f"held by {self.destination} for too long", TIMED_OUT)
            self.due_s = now_s + T4_S
            return []
        if not 1 <= first <= self._furthest or first > self._packets:
            return self._fail(f"{self.destination} asks for packet {first} of {self._packets}", BAD_SEQUENCE)
        self._held_from_s = None
        if (count, first) == self._granted and self._next < self._end:
            return []  # the bus may deliver a frame twice: nobody asks again before he got what he asked for
        self._granted = count, first
        if first > self._asked:
            self._asked, self._repeats = first, 0
        else:
            self._repeats += 1
            if self._repeats > _MAX_REPEATS:
                return self._fail(f"{self.destination} asks again and again", TOO_MANY_RETRANSMISSIONS)
        self._next, self._end = first, min(first + count, self._packets + 1)
        return self._burst(now_s)

    def _burst(self, now_s: float) -> list[Outgoing]:
        is_broadcast = self.destination == GLOBAL
        stop = min(self._next + (1 if is_broadcast else BURST), self._end)
        frames = [
            packet(self.source, self.destination, number, self._payload, self._priority)
            for number in range(self._next, stop)
        ]
        self._next = stop
        self._furthest = max(self._furthest, stop)
        if stop < self._end:
            self.due_s = now_s + (self._spacing_s if is_broadcast else BURST_SPACING_S)
        elif is_broadcast:
            self._finish(None)
        else:
            self.due_s = now_s + T3_S
        return frames

    def _fail(self, failure: str, reason: int) -> list[Outgoing]:
        self._finish(failure)
        return [] if self.destination == GLOBAL else [abort(self.source, self.destination, reason, self.pgn)]

    def _finish(self, failure: str | None) -> None:
        self.is_done, self.failure, self.due_s = True, failure, None


def _why(reason: int) -> str:
    return f"{ABORT_REASONS.get(reason, 'unknown reason')} ({reason})"
