"""Our place on a J1939 bus: an address if we send, messages in packets both ways, requests.

Rules:

* Who only listens claims no address and sends nothing.
* Nothing of J1939 is sent but the claim until the address may be used, and nothing any more when it is
  lost.
* Messages in packets are put together whoever they are for. Those for us are answered.
* When frames were lost nobody knows which: what was under way is given up.
* To one destination one message in packets is on its way at a time. The others wait, of each the newest.

Design: the parts are machines without input or output (`address`, `transport`,
`connection`); this file gives them frames and time, and sends what they say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fieldbus.canbus.j1939.address import AddressClaimer, Name
from fieldbus.canbus.j1939.connection import Responder
from fieldbus.canbus.j1939.connection import Sender as PacketSender
from fieldbus.canbus.j1939.identifiers import (
    ACKNOWLEDGEMENT,
    ADDRESS_CLAIMED,
    GLOBAL,
    REQUEST,
    TRANSPORT_DATA,
    TRANSPORT_MANAGEMENT,
    Acknowledgement,
    Control,
    destination_of,
    filter_for,
    identifier,
    pgn_of,
    read_pgn,
    request,
    requested,
    source_of,
)
from fieldbus.canbus.j1939.packets import BAM, RTS, T1_S, Message, Outgoing, is_data
from fieldbus.canbus.j1939.transport import Reassembler
from fieldbus.canbus.messages import CanMessage
from fieldbus.canbus.outgoing import Address
from fieldbus.canbus.schedule import Schedule
from fieldbus.clock import SYSTEM, Clock

_NODE_PGNS = frozenset({TRANSPORT_MANAGEMENT, TRANSPORT_DATA, ACKNOWLEDGEMENT, REQUEST, ADDRESS_CLAIMED})
_READY_S = 3.0
REASSEMBLED = "j1939_messages"
BROKEN = "j1939_broken"
COUNTERS = (REASSEMBLED, BROKEN)

Send = Callable[[int, bytes], bool]
Transported = Callable[[int, int, bytes, int, float], None]
"""Takes PGN, source address, payload, source time (ns) and the same moment on the monotonic clock (s)."""
Refused = Callable[[int, int], None]
"""Takes PGN and address of who refused to send it."""
Begun = Callable[[int, int, float], None]
"""Takes PGN, source address, and until when it may take, on the monotonic clock (s)."""
Requested = Callable[[int, int, int], None]
"""Takes PGN, address of who asks, and whom: us, or 255 for everybody."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How we appear on the bus."""

    address: int = 0x80
    """That we would like to have."""
    name: Name = field(default_factory=lambda: Name(is_arbitrary_address_capable=True))


class Node(Address):
    """One node on one bus."""

    def __init__(
        self, settings: NodeSettings, *, is_active: bool, counters: dict[str, int], clock: Clock = SYSTEM
    ) -> None:
        """Take who we are.

        Args:
            settings: address and NAME.
            is_active: whether we ever send; a listener has no address.
            counters: where what happens is counted.
            clock: the gateway's.
        """
        self._clock = clock
        self.is_active = is_active
        self._counters = counters
        self._claimer = AddressClaimer(settings.name, settings.address)
        self._reassembler = Reassembler()
        self._responder: Responder | None = None
        self._failed_before = 0
        """Messages that responders before this one gave up."""
        self._senders: dict[int, PacketSender] = {}
        """By destination: packets do not say of which message they are."""
        self._next: dict[int, dict[int, tuple[CanMessage, bytes]]] = {}
        """What is to be sent when the one before it is through, by destination and PGN."""
        self._failures: dict[tuple[int, int], str | None] = {}
        """How the last one ended, by destination and PGN."""
        self._through: dict[int, asyncio.Event] = {}
        """Set when nothing is on its way to a destination any more."""
        self._address: int | None = None
        self._schedule: Schedule | None = None
        self._due_s = float("inf")
        self._send: Send = _nowhere
        self._transported: Transported = _nobody
        self._changed: Callable[[], None] = _nobody
        self._notice: Callable[[str], None] = _nobody
        self._begun: Begun = _nobody
        self._requested: Requested = _nobody
        self.is_unsure = False
        """Whether frames were lost among those that are taken now: no message is put together of them."""
        self._refused: Refused = _nobody
        self._said: str | None = None
        self._claimed = asyncio.Event()

    @property
    def address(self) -> int | None:
        """Our address; None while we have none."""
        return self._address

    # --- a session

    def start(
        self,
        schedule: Schedule,
        send: Send,
        transported: Transported,
        changed: Callable[[], None],
        refused: Refused,
        begun: Begun,
        wanted: Requested,
        notice: Callable[[str], None],
    ) -> None:
        """Come to the bus; claim an address if we send.

        Args:
            schedule: of the session.
            send: sends a frame, may be kept for a moment.
            transported: takes messages that came in packets.
            changed: told when we have got an address, another one, or none any more.
            refused: told that a node does not send what it was asked for.
            begun: told that a message in packets is on its way.
            wanted: told that a node asks for a message.
            notice: told what people should know.
        """
        self._schedule, self._send, self._transported = schedule, send, transported
        self._changed, self._refused, self._notice = changed, refused, notice
        self._begun, self._requested = begun, wanted
        self._due_s = float("inf")
        if self.is_active:
            self._say(self._claimer.start(self._clock.monotonic_s()))
            self._settle()

    def stop(self) -> None:
        """Leave the bus."""
        self._schedule = None
        self._send, self._transported = _nowhere, _nobody
        self._changed, self._refused, self._notice = _nobody, _nobody, _nobody
        self._begun, self._requested = _nobody, _nobody
        self._address = None
        self._answer_under(None)
        self._claimed.clear()
        self._reassembler.clear()
        self._give_up_sending()
        self._count_broken()

    def claim_anew(self) -> None:
        """Come to the bus again, after it was off: what was heard before may not hold any more."""
        if self.is_active and self._schedule is not None:
            self._reassembler.clear()
            self._say(self._claimer.start(self._clock.monotonic_s()))
            self._settle()

    async def is_ready(self) -> bool:
        """Wait until there is an address, or will be none; return whether there is."""
        if self.is_active and self._address is None:
            try:
                async with asyncio.timeout(_READY_S):
                    await self._claimed.wait()
            except TimeoutError:
                return False
        return self._address is not None

    def filters(self) -> Iterable[tuple[int, int]]:
        """Return what must be received for all this."""
        wanted = _NODE_PGNS if self.is_active else (TRANSPORT_MANAGEMENT, TRANSPORT_DATA)
        return [filter_for(pgn) for pgn in sorted(wanted)]

    # --- frames

    def wants(self, can_id: int) -> bool:
        """Return whether a frame is for the node itself."""
        return pgn_of(can_id) in _NODE_PGNS

    def heard(self, can_id: int, data: bytes, time_ns: int, at_s: float) -> None:
        """Take a frame of those."""
        pgn = pgn_of(can_id)
        now_s = self._clock.monotonic_s()
        if pgn in (ADDRESS_CLAIMED, REQUEST):
            if self.is_active:
                self._say(self._claimer.heard(can_id, data, now_s))
            wanted = requested(can_id, data)
            if wanted is not None and wanted != ADDRESS_CLAIMED:
                self._requested(wanted, source_of(can_id), destination_of(can_id))
        elif pgn == ACKNOWLEDGEMENT:
            self._acknowledged(can_id, data)
        else:
            self._packet(can_id, data, time_ns, at_s)
        self._settle()

    def lost_frames(self) -> None:
        """Learn that frames were lost."""
        self._reassembler.clear()
        if self._responder is not None:
            self._say(self._responder.clear())
        self._count_broken()

    def _packet(self, can_id: int, data: bytes, time_ns: int, at_s: float) -> None:
        if self.is_unsure:
            return
        if not is_data(can_id) and len(data) >= 8 and data[0] in (RTS, BAM):
            # Its packets come at the sender's pace: whoever waits for it has to wait for so long.
            self._begun(read_pgn(data[5:8]), source_of(can_id), at_s + data[3] * T1_S)
        message: Message | None
        if self._responder is not None and destination_of(can_id) == self._responder.own_address:
            outcome = self._responder.heard(can_id, data, at_s)
            self._say(outcome.frames)
            message = outcome.message
            for sender in list(self._senders.values()):
                self._say(sender.heard(can_id, data, at_s))
        else:
            message = self._reassembler.feed(can_id, data, at_s)
        if message is not None:
            self._arrived(message, time_ns, at_s)

    def _arrived(self, message: Message, time_ns: int, at_s: float) -> None:
        self._counters[REASSEMBLED] += 1
        self._transported(message.pgn, message.source_address, message.payload, time_ns, at_s)

    def _acknowledged(self, can_id: int, data: bytes) -> None:
        answer = Acknowledgement.parse(can_id, data)
        if (
            answer is None
            or answer.control is Control.ACKNOWLEDGED
            or answer.control is Control.CANNOT_RESPOND
        ):
            return
        if answer.addressee in (self._address, None):
            self._refused(answer.pgn, source_of(can_id))

    # --- sending

    def can_id(self, message: CanMessage) -> int | None:
        """Return the identifier under our address."""
        if not message.is_j1939:
            return message.can_id
        if self._address is None:
            return None
        frame_id = message.message.frame_id
        return identifier(pgn_of(frame_id), self._address, message.destination, frame_id >> 26 & 7)

    def send_long(self, message: CanMessage, data: bytes) -> bool:
        """Send a message in packets; it waits while the one before it is on its way."""
        if self._address is None:
            return False
        pgn, destination = pgn_of(message.message.frame_id), message.destination
        if destination in self._senders:
            self._next.setdefault(destination, {})[pgn] = (message, data)
            return True
        try:
            sender = PacketSender(pgn, data, self._address, destination)
        except ValueError as error:  # we have got the address to which it is to go
            self._notice(f"PGN {pgn} cannot be sent in packets: {error}")
            return True
        self._senders[destination] = sender
        self._failures.pop((destination, pgn), None)
        self._say(sender.start(self._clock.monotonic_s()))
        self._settle()
        return True

    def drop_long(self, message: CanMessage) -> None:
        """Send nothing any more of what `send_long` began or keeps."""
        if not message.is_j1939:
            return
        pgn, destination = pgn_of(message.message.frame_id), message.destination
        self._next.get(destination, {}).pop(pgn, None)
        sender = self._senders.get(destination)
        if sender is not None and sender.pgn == pgn:
            self._say(sender.cancel())
            self._settle()

    async def is_sent(self, message: CanMessage) -> str | None:
        """Wait until what `send_long` began is through; return why it failed, or None."""
        pgn, destination = pgn_of(message.message.frame_id), message.destination
        if destination in self._senders:
            through = self._through.setdefault(destination, asyncio.Event())
            await through.wait()
        return self._failures.get((destination, pgn))

    def request(self, pgn: int, address: int | None) -> bool:
        """Ask a node, or everybody, for a PGN; False while we have no address."""
        if self._address is None:
            return False
        can_id, data = request(pgn, GLOBAL if address is None else address, self._address)
        return self._send(can_id, data)

    def refuse(self, pgn: int, address: int) -> None:
        """Tell a node that we do not send what it asked us for."""
        if self._address is not None:
            data = bytes([Control.REFUSED, 0xFF, 0xFF, 0xFF, address]) + pgn.to_bytes(3, "little")
            self._send(identifier(ACKNOWLEDGEMENT, self._address, GLOBAL), data)

    def _say(self, frames: Iterable[Outgoing]) -> None:
        for can_id, data in frames:
            self._send(can_id, data)

    # --- the clock

    def _settle(self) -> None:
        """See what changed, and be called again when something is due."""
        if self.is_active:
            self._see_address()
        self._count_broken()
        for destination, sender in list(self._senders.items()):
            if sender.is_done:
                del self._senders[destination]
                self._failures[destination, sender.pgn] = sender.failure
                if sender.failure is not None:
                    self._notice(
                        f"PGN {sender.pgn} in packets to {destination} was not taken: {sender.failure}"
                    )
                waiting = self._next.get(destination)
                if waiting:
                    self.send_long(*waiting.pop(next(iter(waiting))))
                elif destination in self._through:
                    self._through.pop(destination).set()
        due = [
            self._claimer.due_s if self.is_active else None,
            self._reassembler.next_due_s,
            None if self._responder is None else self._responder.due_s,
            *(sender.due_s for sender in self._senders.values()),
        ]
        due_s = min((moment for moment in due if moment is not None), default=float("inf"))
        if due_s < self._due_s and self._schedule is not None:
            self._due_s = due_s
            self._schedule.at(due_s, self._tick)

    def _tick(self, now_s: float) -> None:
        self._due_s = float("inf")
        if self.is_active:
            self._say(self._claimer.tick(now_s))
        self._reassembler.expire(now_s)
        if self._responder is not None:
            self._say(self._responder.tick(now_s))
        for sender in list(self._senders.values()):
            self._say(sender.tick(now_s))
        self._settle()

    def _answer_under(self, address: int | None) -> None:
        if self._responder is not None:
            self._responder.clear()  # its aborts are not sent: the address is not ours any more
            self._failed_before += self._responder.failed
        self._responder = None if address is None else Responder(address)

    def _count_broken(self) -> None:
        answered = 0 if self._responder is None else self._responder.failed
        self._counters[BROKEN] = self._reassembler.broken.total() + self._failed_before + answered

    def _give_up_sending(self) -> None:
        for destination, sender in self._senders.items():
            self._failures[destination, sender.pgn] = "our address was lost"
        self._senders.clear()
        self._next.clear()
        for through in self._through.values():
            through.set()
        self._through.clear()

    def _see_address(self) -> None:
        address = self._claimer.address
        conflict = self._claimer.conflict
        if conflict is not None and conflict != self._said:
            self._notice(f"J1939: {conflict}; nothing is sent")
        self._said = conflict
        if address == self._address:
            return
        self._address = address
        self._give_up_sending()
        self._answer_under(address)
        if address is None:
            self._claimed.clear()
        else:
            self._claimed.set()
        self._changed()


def _nowhere(_can_id: int, _data: bytes) -> bool:
    """Send between two sessions."""
    return False


def _nobody(*_what: object) -> None:
    """Be told before anybody listens."""
