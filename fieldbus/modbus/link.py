"""The client link: polls the units behind one connection, or a few, and writes to them.

Rules:

* Never two requests at once on a connection.
* Writes go ahead of polls, at the next request boundary, in the order in which they were given. Of several
  that wait for one point the last wins. What cannot be written now (no connection, unit demoted) fails now;
  it is not kept.
* What a failed request means says `unit_health.py`; what follows from it for the plan, `failures.py`.
* On lines without transaction ids (RTU, ASCII) a request that was not answered leaves its unit out of step:
  the next request to it is one whose answer looks different, so that a late answer is never taken for the
  next one.
* An answer that does not belong to its request costs an MBAP connection, which is opened anew before the
  next request; a serial line only needs silence.
* Why a block fails is found out between the polls of others, see `exploration.py`.

Design: a machine of callbacks around `Line`, since a step of a task costs more than what it does; whatever
has several steps (a write, a resynchronisation, an exploration) is a generator that the machine drives.
What a lost connection means is decided in `connection.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import (
    BadResponseError,
    ConnectionLostError,
    LinkDownError,
    RequestError,
    RequestTimeoutError,
)
from fieldbus.link import (
    ConnectionHealth,
    Delivery,
    Emit,
    Event,
    Follower,
    Regrouped,
    Report,
    StillAllowed,
    WriteOutcome,
    WriteResult,
)
from fieldbus.modbus import pdu
from fieldbus.modbus.agenda import GRAIN_S, NEVER, Agenda, Rank
from fieldbus.modbus.client import Line
from fieldbus.modbus.confirmation import confirmed
from fieldbus.modbus.connection import ConnectionPolicy, Connections, Lifetime
from fieldbus.modbus.dial_in import dial_in_port
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.exploration import Exploration, reason_of, resynchronise
from fieldbus.modbus.failures import Failures
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.fresh_reads import FreshReads
from fieldbus.modbus.lane import Lane
from fieldbus.modbus.places import DialInPlace, Framing, Place, SerialPlace
from fieldbus.modbus.planner import Block, Cost
from fieldbus.modbus.quirks import LineQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.traffic import LineTraffic, Shape
from fieldbus.modbus.units import Poll, Steps, Unit, UnitState, cost_on
from fieldbus.modbus.write_queue import WriteQueue
from fieldbus.model import Batch, Group, Point, Quality, Reason, Sample, Value

PROBES_TO_HANG_UP = 6
"""How often in vain a device that dialled in must have been asked whether it is back."""
MISSES_TO_SAY = 3
"""How often in a row a block must have been late before that is said."""
RELEARN_S = 86400.0
"""After so long the limits and walls of devices are forgotten and learned anew."""
_LOG = logging.getLogger("fieldbus")


class ModbusClientLink:
    """Polls and writes the units behind one place."""

    is_listener = False

    def __init__(
        self,
        name: str,
        place: Place,
        units: Sequence[Unit],
        *,
        connections: int = 1,
        memory: Path | None = None,
        quirks: LineQuirks = LineQuirks(),  # noqa: B008 - frozen
        connect_timeout_s: float = 3.0,
        lifetime: Lifetime = Lifetime.KEEP,
        rest_after_connect_s: float = 0.0,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what the link works with; nothing is opened.

        Args:
            connections: how many requests may be under way at once, each on a connection of its own.
            memory: the folder in which is kept what devices taught us; None to forget it.
            lifetime: how long a connection stays open.
            rest_after_connect_s: how long a new connection rests before the first request.
            clock: the gateway's.
        """
        self.name = name
        self.clock = clock
        self.place = place
        self.units = units
        self._quirks = quirks
        self._echo = LineEcho(quirks.echo, self._found_echo)
        self._has_said_echo = False
        policy = ConnectionPolicy(connections, connect_timeout_s, lifetime, rest_after_connect_s)
        self.policy = policy
        self.is_on_demand = lifetime is Lifetime.ON_DEMAND
        """Whether nothing is polled."""
        self._traffic = LineTraffic(place.framing, self._found_others, takes_any_unit=quirks.any_unit_id)
        self._has_said_others = False
        self._confirming: set[Poll] = set()
        """Under way in several requests, see `confirmation`."""
        self._connections = Connections(self, quirks, policy, self._echo, self._traffic)
        self._longest_pause_s = max((unit.quirks.pause_s for unit in units), default=0.0)
        self._cost = cost_on(place)
        self._memory: Path | None
        self._states: list[UnitState]
        self._place_of: dict[Point, tuple[RegisterPoint, UnitState]]
        self.groups: Sequence[Group]
        self.memory = memory
        self._agenda: Agenda[Poll] = Agenda()
        self._background: deque[tuple[Steps, UnitState, Ask]] = deque()
        self._is_connected = False
        self._is_running = False
        self._is_poked = False
        self._relearning: asyncio.TimerHandle | None = None
        self._exploration = Exploration(self)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = NEVER
        self._emit: Emit = _nowhere
        self._report: Report | None = None
        self._dropped: dict[Point, Value] = {}
        self._busy_s = 0.0
        self._load: tuple[float, float, int] = (self.clock.monotonic_s(), 0.0, 0)
        self._is_behind = False
        self._counters = dict.fromkeys(
            ("requests", "timeouts", "exceptions", "bad_responses", "scans_missed", "writes",
             "writes_failed", "writes_dropped"), 0)  # fmt: skip
        self._failures = Failures(self, self._exploration, self._counters)
        self._emit_to: Emit = _nowhere
        self._fresh_reads = FreshReads(self, self._intercept)
        echo = None if place.framing is Framing.MBAP else self._echo
        self._writes = WriteQueue(self, echo, self._traffic)

    @property
    def memory(self) -> Path | None:
        """The folder in which is kept what devices teach us; None to forget it all."""
        return self._memory

    @memory.setter
    def memory(self, folder: Path | None) -> None:
        self._memory = folder
        self._cost = cost_on(self.place)
        self._states = [UnitState(unit, self._cost, folder) for unit in self.units]
        self._place_of = {
            point.point: (point, state) for state in self._states for point in state.unit.points
        }
        self.groups = self._groups()

    @property
    def endpoint(self) -> str:
        """Where the other side is: the backup, while that is used."""
        lanes = self._connections.lanes
        line = lanes[0].line if lanes else None
        return self.place.text if line is None or line.where is None else line.where

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals since start, and how busy the line was during the last second or so."""
        now_s = self.clock.monotonic_s()
        since_s, busy_s, percent = self._load
        if now_s - since_s >= 0.9:
            share = (self._busy_s - busy_s) / (now_s - since_s) / max(1, len(self._connections.lanes))
            percent = round(100 * min(1.0, share))
            self._load = (now_s, self._busy_s, percent)
        refused = sum(len(state.refused_points) for state in self._states)
        return {**self._counters, "points_refused": refused, "load_percent": percent}

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Response time of each device."""
        return {
            state.unit.device: {"response_time_ms": round(state.response_time_s * 1000, 3)}
            for state in self._states
            if state.is_online
        }

    @property
    def planned(self) -> list[tuple[Unit, Block]]:
        """The poll plan, without what is known to be refused."""
        if self.is_on_demand:
            return []
        return [
            (state.unit, poll.block) for state in self._states for poll in state.polls if not poll.is_retry
        ]

    @property
    def connections(self) -> int:
        """How many requests may be under way at once."""
        return self.policy.count

    def cost_of(self, unit: Unit, block: Block) -> tuple[float, bool]:
        """Return how long a request takes on the line, in seconds, and whether that was measured."""
        state = next(state for state in self._states if state.unit is unit)
        measured_s = state.knowledge.turnaround_s
        if measured_s is None:
            return self._cost.of(block.table, block.count), False
        return Cost(measured_s, self._cost.byte_s).of(block.table, block.count), True

    def aside(self, units: Sequence[Unit], place: Place | None = None) -> ModbusClientLink:
        """Return a link to the same place for other units or fewer points, which remembers nothing."""
        return ModbusClientLink(
            self.name, place or self.place, units, quirks=self._quirks,
            connect_timeout_s=self.policy.connect_timeout_s,
            rest_after_connect_s=self.policy.rest_s, clock=self.clock,
        )  # fmt: skip

    async def connect(self) -> None:
        """Open the connections; one is enough if the device allows no more."""
        await self._connections.connect()
        self._is_connected = True

    async def close(self) -> None:
        """Close the connections and fail what waits to be written."""
        self._is_connected = self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connections.close()
        for steps, _, _ in self._background:
            steps.close()
        self._background.clear()
        self._failures.forget_session()
        if isinstance(self.place, DialInPlace):
            dial_in_port(self.place).release(self.place.registration)
        self._writes.close()
        for state in self._states:
            state.forget_session()
            state.save()

    async def run(self, emit: Emit, report: Report) -> None:
        """Poll and write until the connection is lost."""
        self._emit = self._emit_to = emit
        self._report = report
        self._agenda = Agenda(is_on_demand=self.is_on_demand)
        now_s = self.clock.monotonic_s()
        for state in self._states:
            state.begin(now_s)
            if not self.is_on_demand:
                for poll in state.polls:
                    self._agenda.add(poll)
        self._relearning = asyncio.get_running_loop().call_later(RELEARN_S, self._forget_limits)
        self._is_running = True
        try:
            await self._connections.serve()
        finally:
            self._is_running = False
            self._fresh_reads.end(Reason.NOT_CONNECTED)
            self._relearning.cancel()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def send(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Take routed values; they are written before the next poll."""
        refused = []
        for delivery in deliveries:
            point, value = delivery.target.point, delivery.sample.value
            if point is None or value is None:
                continue
            if self._writes.holds_back(point, value):
                refused.append(delivery)
                continue
            if self._can_write and self._place_of[point][1].turns.rank is not Rank.DEMOTED:
                self._dropped.pop(point, None)
                self._writes.put(point, value)
                self.poke()
                continue
            refused.append(delivery)
            if self._dropped.get(point) != value:  # offered again and again, it is one loss
                self._dropped[point] = value
                self._counters["writes_dropped"] += 1
        return refused

    def holds_back(self, point: Point, value: Value) -> bool:
        """Return whether a route's value is not taken now, because the device may have it already."""
        return self._writes.holds_back(point, value)

    def refuse_group(self, point: Point) -> None:
        """Refuse what routes gave the other members of a point's group and was not sent yet."""
        self._writes.refuse_group(point)

    @property
    def has_doubts(self) -> bool:
        """Whether any value is held back."""
        return self._writes.has_doubts

    @property
    def still_allowed(self) -> StillAllowed | None:
        """What is asked for each value at the moment of sending."""
        return self._writes.still_allowed

    @still_allowed.setter
    def still_allowed(self, ask: StillAllowed | None) -> None:
        self._writes.still_allowed = ask

    @property
    def follower(self) -> Follower | None:
        """What is asked about values that follow others, and told how they ended."""
        return self._writes.follow_ups.follower

    @follower.setter
    def follower(self, follower: Follower | None) -> None:
        self._writes.follow_ups.follower = follower

    def state_of(self, point: Point) -> tuple[RegisterPoint, UnitState]:
        """Return a point's place and its unit."""
        return self._place_of[point]

    def wrote(self, result: WriteResult, *, is_routed: bool) -> None:
        """Count how a write ended, and tell it if a route gave it."""
        is_done = result.outcome.is_done
        self._counters["writes" if is_done else "writes_failed"] += 1
        if is_routed:
            self.tell(result)

    @property
    def _can_write(self) -> bool:
        """Whether what is given now will be written soon or not at all."""
        return self._is_connected and self._connections.takes_writes

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Write values and wait for the answers."""
        loop = asyncio.get_running_loop()
        answers = []
        for point, value in values.items():
            answer: asyncio.Future[WriteResult] = loop.create_future()
            answers.append(answer)
            state = self._place_of[point][1]
            if not self._can_write or state.turns.rank is Rank.DEMOTED:
                reason = Reason.TIMEOUT if self._can_write else Reason.NOT_CONNECTED
                answer.set_result(WriteResult(point, value, WriteOutcome.FAILED, reason))
                continue
            self._writes.put(point, value, partial(_settle, answer), until_s=until_s)
            self.poke()
        return list(await asyncio.gather(*answers))

    async def read(self, points: Collection[Point], *, until_s: float = NEVER) -> dict[Point, Sample]:
        """Read points now, whatever their scan periods; return a sample of each."""
        if not self._is_running:
            reason = Sample(None, Quality.BAD, Reason.NOT_CONNECTED, self.clock.wall_ns())
            return dict.fromkeys(points, reason)
        return await self._fresh_reads.read(points, until_s)

    def stuck_s(self, now_s: float) -> float:
        """Return for how long nothing was asked though something was due; 0 while there is no connection."""
        lanes = [
            lane
            for lane in self._connections.lanes
            if (lane.line is not None or lane.is_resting) and not lane.is_opening
        ]
        if not (self._is_running and lanes):
            return 0.0
        due_s = self._agenda.next_due_s()
        moved_s = -NEVER
        for lane in lanes:
            ends_s = lane.asked_s
            if lane.state is not None:  # it is answered, or not, within its time
                ends_s += max(lane.state.unit.timeout_s, lane.state.unit.write_timeout_s or 0.0)
                due_s = min(due_s, ends_s)
            moved_s = max(moved_s, ends_s)
        if self._writes or self._background:
            due_s = min(due_s, moved_s)
        return 0.0 if due_s == NEVER else max(0.0, now_s - max(due_s, moved_s))

    # --- connections

    def lose(self, lane: Lane, error: LinkDownError) -> None:
        """Learn that a connection is gone."""
        self._connections.lose(lane, error)

    def end(self, error: BaseException) -> None:
        """End the session with an error."""
        self._connections.end(error)

    def is_due(self) -> bool:
        """Return whether a request is due."""
        if self._writes.is_ready or self._background:
            return True
        return self._agenda.next_due_s() <= self.clock.monotonic_s() + GRAIN_S

    def resume(self, steps: Steps, state: UnitState, ask: Ask) -> None:
        """Take steps whose request was not sent, or is sent again."""
        self._background.appendleft((steps, state, ask))

    def interrupt(self, lane: Lane, steps: Steps, error: RequestError) -> None:
        """Tell steps that their request failed."""
        self._drive(lane, steps, None, error)

    def blame(
        self, lane: Lane, state: UnitState, poll: Poll | None, steps: Steps | None, error: LinkDownError
    ) -> bool:
        """Take the end of a connection for the failure of its request, if it is; return whether."""
        lost, now_s = ConnectionLostError(str(error)), self.clock.monotonic_s()
        if steps is not None and steps is state.exploring:
            self._drive(lane, steps, None, lost)
            return True
        if poll is None:
            return False
        if 0.0 < poll.broke_s < state.heard_s or (poll.is_retry and state.has_readable):
            self._failed(lane, state, poll, lost, now_s)
            return True
        poll.broke_s = now_s
        return False

    def give_up_writes(self) -> None:
        """Fail what waits to be written: it is not to be done later."""
        self._writes.fail_waiting(Reason.NOT_CONNECTED)
        for item in list(self._background):
            if item[0] is self._writes.under_way:
                self._background.remove(item)
                item[0].close()

    def unreachable(self, error: LinkDownError) -> None:
        """Fail what waits for a connection: it cannot be opened."""
        self.tell(ConnectionHealth(False, str(error)))
        self.give_up_writes()
        for steps, _, _ in self._background:
            steps.close()
        self._background.clear()
        for poll in self._agenda.clear():
            self.spoil(poll, Reason.NOT_CONNECTED)

    def reachable(self) -> None:
        """Learn that a connection was opened that is opened on demand."""
        self.tell(ConnectionHealth(True))

    # --- reads that somebody waits for

    def polls_of(self, points: Collection[Point]) -> list[tuple[Poll, bool]]:
        """Return the polls that read some of the points, and whether each is under way."""
        under_way = {*self._confirming, *(lane.poll for lane in self._connections.lanes)}
        return [
            (poll, poll in under_way)
            for state in self._states
            for poll in state.polls
            if any(point in points for point in poll.group.points)
        ]

    def hasten(self, poll: Poll) -> None:
        """Send a poll that is not under way as soon as possible."""
        if not poll.state.is_explored:  # what is explored is asked again at its end
            self._agenda.hasten(poll, self.clock.monotonic_s())
            self.poke()

    def _intercept(self, is_waiting: bool) -> None:
        self._emit = self._emit_and_answer if is_waiting else self._emit_to

    def _emit_and_answer(self, batch: Batch) -> None:
        self._fresh_reads.emit(batch, self._emit_to)

    # --- whose turn it is

    def next(self, lane: Lane) -> None:
        """Give a free connection something to do."""
        if lane.is_resting and self._is_running:
            self._connections.wake(lane)
            self._arm(self.clock.monotonic_s())
        while self._is_running and lane.is_free:
            if self._writes.is_ready:
                self._drive(lane, self._writes.begin())
                continue
            now_s = self.clock.monotonic_s()
            step = None
            if self._background and not lane.was_background:
                step = self._pick_background(now_s)
            if step is not None:
                steps, state, ask = step
                lane.was_background = lane.is_background = True
                self._send(lane, state, ask, steps)
                return
            was_background, lane.was_background = lane.was_background, False
            poll = self._agenda.pick(now_s)
            if poll is None:
                if was_background and self._background:
                    continue
                self._arm(now_s)
                if self.policy.lifetime is not Lifetime.KEEP:
                    due_s = self._agenda.next_due_s() - now_s
                    self._connections.finish(lane, due_s, self._longest_pause_s)
                return
            self._read(lane, poll, now_s)

    def _pick_background(self, now_s: float) -> tuple[Steps, UnitState, Ask] | None:
        """Return the next step of something that lets others go, and take it out."""
        for index, (steps, state, _) in enumerate(self._background):
            if steps is not state.exploring or state.explore_next_s <= now_s:
                found = self._background[index]
                del self._background[index]
                return found
        return None

    def _arm(self, now_s: float) -> None:
        """Have the free connections looked at when something is due."""
        due_s = self._agenda.next_due_s()
        for _, state, _ in self._background:
            due_s = min(due_s, max(now_s, state.explore_next_s))
        if self._timer is not None:
            if self._timer_due_s <= due_s:
                return  # early enough: it will look again
            self._timer.cancel()
            self._timer = None
        if due_s != NEVER:
            self._timer_due_s = due_s
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - now_s), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._timer_due_s = NEVER
        self._look_around()

    def _look_around(self) -> None:
        self._is_poked = False
        try:
            lanes = self._connections.lanes
            for lane in (lanes[0],) if len(lanes) == 1 else sorted(lanes, key=_rests):
                self.next(lane)
        except Exception as error:
            self.end(error)

    def poke(self) -> None:
        """Have what waits looked at in the next turn of the loop: neighbours may still come in this one."""
        if not self._is_poked and self._is_running:
            self._is_poked = True
            asyncio.get_running_loop().call_soon(self._look_around)

    # --- requests

    def _read(self, lane: Lane, poll: Poll, now_s: float) -> None:
        state = poll.state
        line = lane.line
        if self._traffic.shared_until_s > now_s:
            self._drive(lane, self._read_surely(poll))
            return
        if line is not None and not line.framer.has_transactions and state.is_out_of_step(poll.ask, now_s):
            if state.different_ask() is None:
                # Nothing else can be asked: not before nobody expects a late answer any more.
                self.spoil(poll, Reason.TIMEOUT)
                until_s = state.expected_until_s + 0.001
                state.turns.probe_at_s = max(state.turns.probe_at_s, until_s)
                poll.due_s = max(poll.due_s, until_s)
                self._agenda.add(poll)
                return
            poll.due_s = min(poll.due_s, now_s)
            self._agenda.add(poll)
            self._drive(lane, resynchronise(state, self.clock))
            return
        if now_s < state.rests_until_s:
            poll.due_s = state.rests_until_s  # others may have their turn meanwhile
            self._agenda.add(poll)
            return
        if state.turns.rank is Rank.DEMOTED and state.probes >= 2:
            ask = state.knock_ask()
            if ask is not None and ask.pdu != poll.ask.pdu:
                state.turns.probe_at_s = now_s + state.unit.timeout_s
                self._agenda.add(poll)
                self._drive(lane, self._exploration.knock(state, ask))
                return
        lane.poll = poll
        self._send(lane, state, poll.ask, None)

    def _send(self, lane: Lane, state: UnitState, ask: Ask, steps: Steps | None) -> None:
        """Send a request on a free connection."""
        lane.state, lane.ask, lane.steps = state, ask, steps
        lane.number += 1
        self._send_rested(lane, lane.number)

    def _send_rested(self, lane: Lane, number: int) -> None:
        state, ask = lane.state, lane.ask
        if lane.number != number or state is None or ask is None:
            return  # it has ended while the unit was resting
        now_s = self.clock.monotonic_s()
        rest_s = state.rests_until_s - now_s
        if rest_s > 0:
            asyncio.get_running_loop().call_later(rest_s, self._send_rested, lane, number)
        else:
            self._transmit(lane, state, ask, now_s)

    def _transmit(self, lane: Lane, state: UnitState, ask: Ask, now_s: float) -> None:
        line = lane.line
        if line is None:
            return
        steps = lane.steps
        error = None if steps is None else self._writes.sending(ask)
        if steps is not None and error is not None:
            lane.take()
            self._drive(lane, steps, None, error)
            self.poke()
            return
        self._counters["requests"] += 1
        lane.asked_s = now_s if line.is_stream else max(now_s, line.settled_at_s)
        timeout_s = self._failures.timeout_s(lane, state, line, now_s)
        line.ask(ask, timeout_s)

    def take_answer(self, lane: Lane, answer: bytes) -> None:
        """Take the PDU that answers the request under way."""
        ask = lane.ask
        state, poll, steps = lane.take()
        if state is None or ask is None:
            return
        now_s = self.clock.monotonic_s()
        spent_s = now_s - lane.asked_s
        self._busy_s += spent_s
        if state.unit.quirks.pause_s:
            state.rests_until_s = now_s + state.unit.quirks.pause_s
        line = lane.line
        if line is not None and line.framer.late_from is not None:
            self._heard_late(line)
        if poll is not None and self._traffic.shared_until_s > now_s:
            self._agenda.add(poll)  # others were heard meanwhile: whose it is cannot be told
            self.next(lane)
            return
        if poll is not None and state.suspects and answer[0] & 0x80:
            state.suspect(ask, now_s)  # it may be the answer to an earlier one, and this one's may still come
        if poll is not None and (
            (len(answer) == ask.size and answer.startswith(ask.head))
            or (ask.has_own_length and ask.is_answer(answer))
        ):
            state.response_time_s = spent_s
            lane.reopen_after_s = 0.0
            state.note(spent_s, ask)
            if state.failures or not state.is_online or state.unreachable:
                self._failures.answered(state)
            if state.suspects:
                state.in_step()  # its answer looks different from all that may still come
            self._take_values(poll, answer, now_s)
        elif poll is not None:
            self._misread(lane, state, poll, answer, now_s)
        elif steps is not None:
            fault = _fault_of(ask, answer)
            if fault is None:
                if answer:
                    state.note(spent_s, ask)
                self._failures.answered(state)
            else:
                self._failed(lane, state, None, fault, now_s, is_trial=steps is state.exploring)
            self._drive(lane, steps, answer, fault)
        self.next(lane)

    def _take_values(self, poll: Poll, answer: bytes, now_s: float) -> None:
        """Take the response of a poll that went well."""
        poll.state.heard_s = now_s
        poll.reason = None
        poll.tries = poll.failures = poll.explorations = 0
        if poll.is_sent_again:
            poll.is_sent_again, poll.broke_s = False, 0.0
        missed = self._agenda.reschedule(poll, now_s)
        if missed:
            self._missed(poll, missed)
        else:
            poll.misses = 0
        if not poll.is_gone:
            data = answer[2:] if poll.is_plain else pdu.check_read_reply(poll.ask.pdu, answer)
            self._emit(poll.reader.read(data, self.clock.wall_ns(), now_s))
            if poll.is_fresh or poll.is_retry:
                self._exploration.was_read(poll)

    def _misread(self, lane: Lane, state: UnitState, poll: Poll, answer: bytes, now_s: float) -> None:
        """Take a response to a poll that has not its data."""
        try:
            pdu.check_read_reply(poll.ask.pdu, answer, poll.ask.width)
        except RequestError as error:
            line = lane.line
            if isinstance(error, BadResponseError) and line is not None and line.framer.has_transactions:
                self._failures.answered(state)  # whatever this is: it has the number of our request
            self._failed(lane, state, poll, error, now_s)

    def take_failure(self, lane: Lane, error: RequestError) -> None:
        """Learn that the request under way has no answer."""
        ask = lane.ask
        state, poll, steps = lane.take()
        if state is None or ask is None:
            return
        now_s = self.clock.monotonic_s()
        self._busy_s += now_s - lane.asked_s
        if state.unit.quirks.pause_s:
            state.rests_until_s = now_s + state.unit.quirks.pause_s
        line = lane.line
        if line is not None and not line.framer.has_transactions and not line.is_lost:
            state.suspect(ask, now_s)
        is_trial = steps is not None and steps is state.exploring
        self._failed(lane, state, poll, error, now_s, is_trial=is_trial)
        if steps is not None:
            self._drive(lane, steps, None, error)
        self.next(lane)

    def _drive(
        self, lane: Lane, steps: Steps, answer: bytes | None = None, error: RequestError | None = None
    ) -> None:
        """Give something that has several steps what it waits for, and send what it asks next."""
        is_background, lane.is_background = lane.is_background, False
        try:
            if error is not None:
                state, ask = steps.throw(error)
            else:
                state, ask = next(steps) if answer is None else steps.send(answer)
        except StopIteration:
            return
        except RequestError:
            return  # it has been accounted for, and nobody in there wanted to know
        if is_background or lane.line is None:
            self._background.append((steps, state, ask))
        else:
            self._send(lane, state, ask, steps)

    def _found_echo(self) -> None:
        """Say once that the line echoes though the configuration does not say so."""
        if not self._has_said_echo:
            self._has_said_echo = True
            _LOG.warning(
                "%s: the line echoes requests; the echo is passed over (in the configuration: "
                "`quirks: {echo: true}`)", self.name,
            )  # fmt: skip

    def _found_others(self, what: str) -> None:
        """Learn that others ask on the line, too: what may be theirs has no value until it is confirmed."""
        if not self._has_said_others:
            self._has_said_others = True
            _LOG.warning(
                "%s: others ask on the line, too: %s; a value counts from now on if two different requests "
                "agree on it", self.name, what,
            )  # fmt: skip
        for state in self._states:
            for poll in state.polls:
                if Shape(poll.ask.unit_id, poll.ask.pdu[0], poll.ask.size) in self._traffic.shapes:
                    self.spoil(poll, Reason.BAD_RESPONSE)
                    self._agenda.hasten(poll, self.clock.monotonic_s())
        self.poke()

    def _read_surely(self, poll: Poll) -> Steps:
        """Read a block from a line on which others ask, too."""
        self._confirming.add(poll)
        try:
            answer = yield from confirmed(poll.state, poll.ask, self._traffic.shapes)
        except RequestError as error:
            self.spoil(poll, reason_of(error))
            self._counters["scans_missed"] += self._agenda.reschedule(poll, self.clock.monotonic_s())
        else:
            self._take_values(poll, answer, self.clock.monotonic_s())
        finally:
            self._confirming.discard(poll)

    def _heard_late(self, line: Line) -> None:
        """Learn that a unit that was given up answers after all: the next question to it decides."""
        unit_id, line.framer.late_from = line.framer.late_from, None
        for state in self._states:
            if state.unit.unit_id == unit_id and state.turns.rank is Rank.DEMOTED:
                state.probes = 2
                state.turns.probe_at_s = self.clock.monotonic_s()

    # --- what an answer, or none, means

    def _failed(
        self, lane: Lane, state: UnitState, poll: Poll | None, error: RequestError, now_s: float,
        *, is_trial: bool = False,
    ) -> None:  # fmt: skip
        """Decide what a failed request means for its block, its unit and the connection."""
        self._failures.failed(lane, state, poll, error, now_s, is_trial=is_trial)
        self._mend(lane, error)

    def _mend(self, lane: Lane, error: RequestError) -> None:
        """Open a connection anew that cannot be trusted, or that may be dead without a sign."""
        line = lane.line
        if line is None:
            return
        is_silence = isinstance(error, RequestTimeoutError)
        must = isinstance(error, BadResponseError) and (line.is_stream or line.is_lost)
        if is_silence and (self._quirks.reconnect_on_timeout or self._quirks.zero_transaction_id):
            must = True
        everybody_is_lost = all(
            other.turns.rank is Rank.DEMOTED or (not other.polls and not other.is_online)
            for other in self._states
        )
        if everybody_is_lost and is_silence and not isinstance(self.place, SerialPlace):
            # To dial in again takes a modem half a minute: it is only hung up on when it is silent for long.
            probes = max((other.probes for other in self._states), default=0)
            is_dialled = isinstance(self.place, DialInPlace)
            must = must or (
                probes >= PROBES_TO_HANG_UP if is_dialled else self._connections.is_worth_opening_again(lane)
            )
        if must:
            self._connections.reopen(lane)

    def _missed(self, poll: Poll, missed: int) -> None:
        """Count periods that passed without a read, and say so once if it is the rule."""
        self._counters["scans_missed"] += missed
        poll.misses += 1
        if poll.misses == MISSES_TO_SAY and not self._is_behind:
            self._is_behind = True
            _LOG.warning(
                "%s: cannot keep the scan periods; %s %s is read later than every %g s (see `plan`)",
                self.name, poll.state.unit.device, poll.block.name, poll.period_s,
            )  # fmt: skip

    def spoil(self, poll: Poll, reason: str) -> None:
        """Say that the points of a block have no value, and why."""
        if poll.is_gone:
            return
        batch = poll.group.without_value(reason, self.clock.wall_ns(), self.clock.monotonic_s())
        if poll.reason == reason:
            batch = Batch(*batch[:5], ())
        else:
            poll.reader.forget()
            poll.reason = reason
        self._emit(batch)

    def tell(self, event: Event) -> None:
        """Report an event to whoever runs the link."""
        if self._report is not None:
            self._report(event)

    # --- what explorations and failures need of the link

    @property
    def agenda(self) -> Agenda[Poll]:
        """When the polls are due."""
        return self._agenda

    @property
    def states(self) -> Sequence[UnitState]:
        """The units while the link runs."""
        return self._states

    def drive_aside(self, steps: Steps) -> None:
        """Begin something whose steps let polls go between them."""
        try:
            state, ask = next(steps)
        except StopIteration:
            return
        self._background.append((steps, state, ask))

    def schedule(self, poll: Poll) -> None:
        """Take a poll that is due at its `due_s`."""
        self._agenda.add(poll)

    def replanned(self, gone: Sequence[Poll], added: Sequence[Poll]) -> None:
        """Take polls out of the plan and others in; tell which points live in which groups from now on."""
        self._agenda.drop(gone)
        for poll in added:
            self._agenda.add(poll)
        self.groups = self._groups()
        if added or gone:
            self.tell(Regrouped([poll.group for poll in gone], [poll.group for poll in added]))

    def _groups(self) -> list[Group]:
        return [poll.group for state in self._states for poll in state.polls]

    def _forget_limits(self) -> None:
        self._exploration.forget_limits(self._states)
        self._relearning = asyncio.get_running_loop().call_later(RELEARN_S, self._forget_limits)


def _settle(answer: asyncio.Future[WriteResult], result: WriteResult) -> None:
    if not answer.done():
        answer.set_result(result)


def _fault_of(ask: Ask, answer: bytes) -> RequestError | None:
    """Return why an answer is none, or a refusal; None if it is what was asked for."""
    if ask.is_answer(answer):
        return None
    if not answer and not ask.unit_id:
        return None  # what is said to all is not answered
    try:
        if ask.is_write:
            pdu.check_write_reply(ask.pdu, answer)
        pdu.check_function(ask.pdu[0], answer)
    except RequestError as error:
        return error
    return BadResponseError(f"{len(answer)} bytes, {ask.size} were expected")


def _rests(lane: Lane) -> bool:
    return lane.is_resting


def _nowhere(_batch: Batch) -> None:
    """Take a batch that nobody wants."""
