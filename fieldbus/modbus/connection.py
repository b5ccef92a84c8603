"""The connections of one link: when each is opened, when it is closed, and what its end means.

Rules:

* The end of a connection between requests is not a lost link. The connection rests, and the next request
  that is due opens it again, without backoff. Points stay what they are.
* A connection that ends under a read, after it had answered something, is opened again at once, and the read
  is sent once more. A read is sent again once only.
* A write whose bytes may have left is never sent again: it ends with `ConnectionLostError`. A request that
  was not sent yet is sent on the next connection.
* The link is down when a connection cannot be opened, when it ends under its first request, and when it ends
  under a request that was sent again. If that request has brought the link down before, and its unit answered
  others since, it is taken for a request that failed. Serial ports and devices that dial in are down whenever
  they end: no request of ours brings them back.
* Of several connections, one that ends under a request or cannot be opened is tried later; the others go on.
* `per_request` and `on_demand`: a connection is closed when nothing is due. `on_demand`: it is opened for
  reads and writes that somebody asks for, and a connection that cannot be opened costs those only.
* A connection on which nobody answers is kept for `KEPT_SILENT_S`, so that a device which needs time after
  the connection is made gets that time.

Design: `Connections` owns the slots (`Lane`) and the queue of what has to be opened; one task opens. What is
asked on a free connection decides the link.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum
from weakref import WeakSet

from fieldbus.errors import ConnectionLostError, LinkDownError, PeerIsBackError
from fieldbus.modbus.agenda import NEVER
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.lane import Host, Lane
from fieldbus.modbus.pdu import READING
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.quirks import LineQuirks
from fieldbus.modbus.traffic import LineTraffic
from fieldbus.modbus.transport import open_line
from fieldbus.modbus.units import Poll, Steps, UnitState

PROMPT_S = 0.5
"""How long a write may wait for a connection that is opened again after a fault."""
KEPT_SILENT_S = 10.0
"""For so long a new connection is kept although nobody answers on it."""
FIRST_REOPEN_S = 0.5
LONGEST_REOPEN_S = 10.0
_CLOSED = "connection closed by the peer"
_LOG = logging.getLogger("fieldbus")


class Lifetime(StrEnum):
    """How long a connection lives."""

    KEEP = "keep"
    """As long as the device lets it."""
    PER_REQUEST = "per_request"
    """As long as requests are due."""
    ON_DEMAND = "on_demand"
    """As long as somebody's reads and writes take; nothing is polled."""


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """How a link uses its connections."""

    count: int = 1
    """How many requests may be under way at once, each on a connection of its own."""
    connect_timeout_s: float = 3.0
    lifetime: Lifetime = Lifetime.KEEP
    rest_s: float = 0.0
    """How long a new connection rests before the first request."""


class Connections:
    """The connections of one link."""

    def __init__(
        self, host: Host, quirks: LineQuirks, policy: ConnectionPolicy, echo: LineEcho, traffic: LineTraffic
    ) -> None:
        """Take what they work with; nothing is opened."""
        self._echo = echo
        self._traffic = traffic
        self._host = host
        self._quirks = quirks
        self.policy = policy
        self.lanes: list[Lane] = []
        self._events: asyncio.Queue[Lane | BaseException] = asyncio.Queue()
        self._waits_until_s = NEVER
        """Until when a write waits for a connection, while there is none."""
        self._sent_again: WeakSet[Steps] = WeakSet()
        """Steps of which a read was sent again."""
        self._has_told_closing = False

    @property
    def has_line(self) -> bool:
        """Whether there is a connection on which something can be asked."""
        return any(lane.line is not None and not lane.line.is_lost for lane in self.lanes)

    @property
    def takes_writes(self) -> bool:
        """Whether a write that is given now is sent soon or fails."""
        return self._host.clock.monotonic_s() <= self._waits_until_s

    async def connect(self) -> None:
        """Open the connections; one is enough if the device allows no more.

        Raises:
            LinkDownError: none can be opened.
        """
        self._waits_until_s = NEVER
        self.lanes = [Lane(self._host)]
        if self.policy.lifetime is Lifetime.ON_DEMAND:
            self.lanes[0].is_resting = True
            return
        await self._open(self.lanes[0])
        for _ in range(self.policy.count - 1):
            lane = Lane(self._host)
            try:
                await self._open(lane)
            except LinkDownError as error:
                _LOG.warning("%s: only %d connections (%s)", self._host.name, len(self.lanes), error)
                break
            self.lanes.append(lane)

    async def serve(self) -> None:
        """Open what has to be opened until the session ends."""
        for lane in self.lanes:
            if not lane.is_resting and (lane.line is None or lane.line.is_lost):
                self.lose(lane, LinkDownError(_CLOSED))
            self._host.next(lane)
        while True:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            await self._open_again(event)
            self._host.next(event)
            for lane in self.lanes:
                if lane.is_resting:
                    self._host.next(lane)

    def close(self) -> None:
        """Close all connections."""
        for lane in self.lanes:
            lane.close()
        self.lanes = []
        self._events = asyncio.Queue()

    def end(self, error: BaseException) -> None:
        """End the session with an error."""
        self._events.put_nowait(error)

    def wake(self, lane: Lane) -> None:
        """Open a connection that rests if a request is due."""
        is_opening = any(other.is_opening for other in self.lanes)
        if lane.is_resting and not is_opening and self._host.is_due():
            self._reopen(lane, self.policy.connect_timeout_s + self.policy.rest_s)

    def finish(self, lane: Lane, next_due_s: float, rest_s: float) -> None:
        """Close a free connection on which nothing is due, for those that are not kept.

        Args:
            next_due_s: in how many seconds the next request is due.
            rest_s: the longest rest that a device needs between two requests.
        """
        if next_due_s > rest_s and lane.line is not None:
            lane.drop()
            lane.is_resting = True

    def reopen(self, lane: Lane) -> None:
        """Open a connection again that cannot be trusted."""
        self._reopen(lane, PROMPT_S + self.policy.rest_s)

    def is_worth_opening_again(self, lane: Lane) -> bool:
        """Return whether a connection on which nobody answers is better closed than kept."""
        return lane.is_proven or self._host.clock.monotonic_s() >= lane.opened_at_s + KEPT_SILENT_S

    def lose(self, lane: Lane, error: LinkDownError) -> None:
        """Learn that a connection is gone, and decide what that means."""
        if lane.is_opening:
            return  # that is known already
        ask, had_sent = lane.ask, lane.has_sent
        is_ours_to_open = isinstance(self._host.place, TcpPlace) and not isinstance(error, PeerIsBackError)
        state, poll, steps = lane.drop()
        if state is not None and not had_sent:
            self._put_back(state, ask, poll, steps)
            poll = steps = None
        if is_ours_to_open and not had_sent and (lane.is_proven or not self._host.is_due()):
            self._rest(lane)
        elif self.has_line:
            self._go_on_without(lane, poll, steps, error)
        elif is_ours_to_open and lane.is_proven and not (poll is not None and poll.is_sent_again):
            self._send_again(lane, state, ask, poll, steps, error)
        elif is_ours_to_open and state is not None and self._host.blame(lane, state, poll, steps, error):
            self.reopen(lane)
        else:
            if steps is not None:
                self._host.interrupt(lane, steps, ConnectionLostError(str(error)))
            self._host.end(error)

    def _put_back(self, state: UnitState, ask: Ask | None, poll: Poll | None, steps: Steps | None) -> None:
        """Keep a request that was not sent for the next connection."""
        if poll is not None:
            self._host.schedule(poll)
        elif steps is not None and ask is not None:
            self._host.resume(steps, state, ask)

    def _rest(self, lane: Lane) -> None:
        """Leave a connection closed until a request is due."""
        lane.is_resting = lane.was_closed = True
        self._host.poke()

    def _tell_closing(self, lane: Lane) -> None:
        """Log, once, that the device closes connections and takes new ones."""
        was_closed, lane.was_closed = lane.was_closed, False
        if was_closed and not self._has_told_closing and self.policy.lifetime is Lifetime.KEEP:
            self._has_told_closing = True
            _LOG.info(
                "%s: the device closes the connection between requests; the next request opens it again",
                self._host.name,
            )

    def _go_on_without(
        self, lane: Lane, poll: Poll | None, steps: Steps | None, error: LinkDownError
    ) -> None:
        """Leave the work to the other connections, and open this one later."""
        if poll is not None:
            self._host.schedule(poll)
        lane.is_opening = True
        lane.reopen_after_s = min(max(2 * lane.reopen_after_s, FIRST_REOPEN_S), LONGEST_REOPEN_S)
        asyncio.get_running_loop().call_later(lane.reopen_after_s, self._events.put_nowait, lane)
        if steps is not None:
            self._host.interrupt(lane, steps, ConnectionLostError(str(error)))
        self._host.poke()

    def _send_again(
        self,
        lane: Lane,
        state: UnitState | None,
        ask: Ask | None,
        poll: Poll | None,
        steps: Steps | None,
        error: LinkDownError,
    ) -> None:
        """Open a connection at once that ended under a request, and send a read once more."""
        if poll is not None:
            poll.is_sent_again = True
            self._host.schedule(poll)
        elif steps is not None and state is not None and ask is not None:
            is_read = ask.pdu[0] in READING
            if is_read and steps not in self._sent_again:
                self._sent_again.add(steps)
                self._host.resume(steps, state, ask)
            else:
                self._host.interrupt(lane, steps, ConnectionLostError(str(error)))
        self.reopen(lane)

    def _reopen(self, lane: Lane, writes_wait_s: float) -> None:
        if lane.line is not None:
            lane.line.close()
            lane.line = None
        lane.is_opening, lane.is_resting = True, False
        if not self.has_line:
            until_s = self._host.clock.monotonic_s() + writes_wait_s
            self._waits_until_s = min(self._waits_until_s, until_s)
            asyncio.get_running_loop().call_later(writes_wait_s, self._give_up_writes)
        self._events.put_nowait(lane)

    def _give_up_writes(self) -> None:
        """Fail what waits to be written if there is still no connection: it is not to be done later."""
        if not self.has_line and not self.takes_writes:
            self._host.give_up_writes()

    async def _open_again(self, lane: Lane) -> None:
        """Open a connection again; of several, one that cannot be opened is tried later."""
        try:
            await self._open(lane)
        except LinkDownError as error:
            if self.has_line:
                self._go_on_without(lane, None, None, error)
            elif self.policy.lifetime is Lifetime.ON_DEMAND:
                lane.is_resting = True
                self._host.unreachable(error)
            else:
                raise
        else:
            self._tell_closing(lane)
            if self.policy.lifetime is Lifetime.ON_DEMAND:
                self._host.reachable()
        self._waits_until_s = NEVER

    async def _open(self, lane: Lane) -> None:
        if lane.line is not None:
            lane.line.close()
            lane.line = None
        lane.is_opening, lane.is_resting, lane.is_proven = True, False, False
        policy = self.policy
        try:
            line = await open_line(self._host.place, lane, self._quirks, policy.connect_timeout_s, self._echo)
            line.watch_others(self._traffic)
            lane.line = line
            if policy.rest_s:
                await asyncio.sleep(policy.rest_s)
                if line.is_lost:
                    raise LinkDownError(_CLOSED)
            lane.opened_at_s = lane.clock.monotonic_s()
        except BaseException:
            lane.drop()
            raise
        finally:
            lane.is_opening = False
