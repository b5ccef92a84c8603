"""The writes that wait for a link's connection, and what becomes of each.

Rules:

* Writes are sent in the order in which they were given; neighbours that follow each other go together, and so
  do the members of a group. Of several that wait for one point the last wins, at its own place in the order.
* A write whose time is over, or that is not allowed any more, is not sent: that is asked when its first
  request goes on the wire. A write that cannot be sent now fails now. None is kept.
* Each write is answered exactly once.
* A value that may have been written (`unknown outcome`) is in doubt. A route's next sample with the same
  value is held back for a pause that grows, and then the device is asked whether it has the value. Only if it
  has not, or if that cannot be read at all, the value is sent again. Another value goes out at once.
* As long as it is not known whether the line echoes, something is read of the unit before a write whose
  response looks like its request.

Design: the queue yields requests, as an exploration does, and the link drives it: the queue knows nothing of
connections. What the requests of a value are, `write_steps` knows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.errors import ConnectionLostError, DeviceExceptionError, NotSentError, RequestError
from fieldbus.link import NEVER, StillAllowed, WriteOutcome, WriteResult
from fieldbus.modbus import writing
from fieldbus.modbus.agenda import Rank
from fieldbus.modbus.confirmation import confirmed, is_read
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.exploration import reason_of, resynchronise
from fieldbus.modbus.follow_ups import FollowUps
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.places import Framing
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.traffic import LineTraffic
from fieldbus.modbus.units import Steps, UnitState
from fieldbus.modbus.write_steps import perform, read_back
from fieldbus.modbus.write_trouble import NotAllowedError, OutOfStepError
from fieldbus.model import Point, Reason, Value

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""How long a value in doubt is held back, at first and at last."""
_REPLACED = "replaced by a newer value before it was"


class Host(Protocol):
    """What the queue needs of the link."""

    clock: Clock

    def state_of(self, point: Point) -> tuple[RegisterPoint, UnitState]:
        """Return a point's place and its unit."""

    def drive_aside(self, steps: Steps) -> None:
        """Begin something whose steps let polls go between them."""

    def poke(self) -> None:
        """Look at what waits in the next turn of the loop."""

    def wrote(self, result: WriteResult, *, is_routed: bool) -> None:
        """Take the end of a write, and whether a route gave it."""


@dataclass(slots=True)
class _Doubt:
    """A value that a device may have been given."""

    value: Value
    until_s: float
    """Not again before this moment (monotonic)."""
    pause_s: float


class WriteQueue:
    """The waiting writes of one link."""

    def __init__(self, host: Host, echo: LineEcho | None = None, traffic: LineTraffic | None = None) -> None:
        """Take what the queue works with.

        Args:
            host: the link.
            echo: what is known of the line's echo; None where there is none.
            traffic: what is known of others on the line.
        """
        self._host = host
        self._clock = host.clock
        self._echo = echo
        self._traffic = LineTraffic(Framing.MBAP) if traffic is None else traffic
        self._waiting: dict[Point, writing.Write] = {}
        self._doubts: dict[Point, _Doubt] = {}
        self._unverified: dict[Point, tuple[writing.Write, asyncio.TimerHandle]] = {}
        """Accepted, and read back later."""
        self.under_way: Steps | None = None
        """What is being written; only one at a time."""
        self._unsent: set[Ask] = set()
        """Requests that the link was given and has not sent yet."""
        self._guarded: tuple[Ask, writing.Run] | None = None
        """The first request that writes something of a run, before it is sent."""
        self.still_allowed: StillAllowed | None = None
        self.follow_ups = FollowUps()

    def __bool__(self) -> bool:
        """Return whether a write waits."""
        return bool(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Whether a write waits and none is under way."""
        return bool(self._waiting) and self.under_way is None

    def holds_back(self, point: Point, value: Value) -> bool:
        """Return whether a route's value is not sent now, because it may have been already."""
        doubt = self._doubts.get(point)
        if doubt is None or doubt.value != value:
            return False
        return self._clock.monotonic_s() < doubt.until_s

    @property
    def has_doubts(self) -> bool:
        """Whether any value is in doubt."""
        return bool(self._doubts)

    def put(
        self,
        point: Point,
        value: Value,
        answer: writing.Answer | None = None,
        *,
        until_s: float = NEVER,
    ) -> None:
        """Take a value; it replaces one to the same point that waits.

        Args:
            point: where to.
            value: what.
            answer: takes how it ended; None if a route gives the value.
            until_s: after this moment (monotonic) it is not sent any more.
        """
        place, state = self._host.state_of(point)
        write = _write_of(place, value, {item.point.name: item for item in state.unit.points})
        write.until_s, write.is_routed = until_s, answer is None
        if answer is not None:
            write.answers.append(answer)
        doubt = self._doubts.get(point)
        write.is_doubted = write.is_routed and doubt is not None and doubt.value == value
        earlier = self._waiting.pop(point, None)
        if earlier is not None:
            if earlier.until_s < NEVER and earlier.value != write.value:
                # A command's answer must not be that of another value.
                result = WriteResult(point, earlier.value, WriteOutcome.FAILED, f"{_REPLACED} sent")
                _answer(earlier, result)
            else:
                write.answers.extend(earlier.answers)
            write.is_routed = write.is_routed or earlier.is_routed
        self._waiting[point] = write
        self._end_reading_back(point)

    def sending(self, ask: Ask) -> NotAllowedError | None:
        """Learn that a request is about to leave; return why it must not."""
        if self._guarded is not None and self._guarded[0] is ask:
            error = self._not_allowed(self._guarded[1])
            if error is not None:
                return error
            for write in self._guarded[1].writes:
                write.has_left = True
            self._guarded = None
        self._unsent.discard(ask)
        return None

    def _refusal_of(self, write: writing.Write) -> tuple[WriteOutcome, str] | None:
        """Return how a write ends that must not be sent any more."""
        if write.until_s <= self._clock.monotonic_s():
            return WriteOutcome.EXPIRED, "its turn came too late"
        return None if self.still_allowed is None else self.still_allowed(write.point.point, write.value)

    def _not_allowed(self, run: writing.Run) -> NotAllowedError | None:
        """End the writes of a run that must not be sent any more; return what ends the others with them."""
        error = None
        for write in run.given:
            refusal = self._refusal_of(write) or self.follow_ups.refusal_of(write)
            if refusal is not None:
                self._finish(write, *refusal)
                error = NotAllowedError(WriteOutcome.REFUSED, f"not sent, because {write.name} was not")
        return error

    def fail_waiting(self, reason: str) -> None:
        """Fail what waits."""
        for write in self._take():
            self._finish(write, WriteOutcome.FAILED, reason)

    def refuse_group(self, point: Point) -> None:
        """Refuse what routes gave the other members of a point's group and was not sent yet."""
        for other, write in list(self._waiting.items()):
            if write.is_routed and (other.device, other.group) == (point.device, point.group):
                del self._waiting[other]
                text = writing.with_group(point.group, point.name, "was refused")
                self._finish(write, WriteOutcome.REFUSED, text)

    def close(self) -> None:
        """Answer everything: the connection is gone."""
        self.fail_waiting(Reason.NOT_CONNECTED)
        for write, timer in self._unverified.values():
            timer.cancel()
            text = f"written, but reading back failed: {Reason.NOT_CONNECTED}"
            self._finish(write, WriteOutcome.FAILED, text)
        self._unverified.clear()

    def begin(self) -> Steps:
        """Return the steps that write what waits; they end before others begin."""
        self.under_way = self._steps()
        return self.under_way

    def _take(self) -> list[writing.Write]:
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting

    # --- the steps

    def _steps(self) -> Steps:
        waiting = self._take()
        try:
            for state, writes in self._by_unit(waiting):
                groups = writing.groups_of(state.unit.points)
                runs = deque(writing.gather(self._may_go(writes), self._finish, groups))
                while runs:
                    run = runs.popleft()
                    left = self._may_go(run.given)
                    if len(left) < len(run.given):  # those before it took long
                        runs.extendleft(reversed(writing.gather(left, self._finish, groups)))
                        continue
                    if state.turns.rank is Rank.DEMOTED:  # by the request before: others wait long enough
                        for write in run.writes:
                            self._finish(write, WriteOutcome.FAILED, Reason.TIMEOUT)
                        continue
                    try:
                        yield from self._converse(state, self._performance(state, run), run)
                    finally:
                        self.follow_ups.end()
        finally:
            self.under_way = None
            for write in waiting:
                if all(write is not unread for unread, _ in self._unverified.values()):
                    outcome = WriteOutcome.UNKNOWN if write.has_left else WriteOutcome.FAILED
                    self._finish(write, outcome, Reason.NOT_CONNECTED)

    def _performance(self, state: UnitState, run: writing.Run) -> writing.Steps:
        return perform(
            run,
            state.unit.quirks,
            self._finish,
            reason_of,
            defer=lambda write: self._defer(state, write),
            followed=self.follow_ups.ended,
            first_address=state.unit.limits.first_address,
        )

    def _may_go(self, writes: Sequence[writing.Write]) -> list[writing.Write]:
        """Return the writes that may be sent still, and answer the others, with the rest of their group."""
        refusals = {write: refusal for write in writes if (refusal := self._refusal_of(write)) is not None}
        groups = {write.point.rules.group: write for write in refusals if write.point.rules.group}
        for write in writes:
            first = groups.get(write.point.rules.group)
            if write in refusals:
                self._finish(write, *refusals[write])
            elif first is not None:
                outcome = refusals[first][0]
                why = "came too late" if outcome is WriteOutcome.EXPIRED else "was refused"
                text = writing.with_group(write.point.rules.group or "", first.name, why)
                self._finish(write, outcome, text)
        return [write for write in writes if not write.is_finished]

    def _by_unit(self, writes: Iterable[writing.Write]) -> list[tuple[UnitState, list[writing.Write]]]:
        """Return writes in their order, those to one unit that follow each other together."""
        found: list[tuple[UnitState, list[writing.Write]]] = []
        for write in writes:
            state = self._host.state_of(write.point.point)[1]
            if found and found[-1][0] is state:
                found[-1][1].append(write)
            else:
                found.append((state, [write]))
        return found

    def _converse(self, state: UnitState, steps: writing.Steps, run: writing.Run | None = None) -> Steps:
        """Send the requests of a run to its unit."""
        is_guarded = run is not None
        resend: Callable[[], bytes] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                request = resend()
            except StopIteration:
                return
            ask = Ask(state.unit.unit_id, request)
            if not (yield from self._is_told_apart(state, ask)):
                resend = _thrower(steps, OutOfStepError(state.unit.timeout_s))
                continue
            self._unsent.add(ask)
            if is_guarded and run is not None and not is_read(ask):
                self._guarded, is_guarded = (ask, run), False
            try:
                answer = yield state, ask
                if is_read(ask) and self._traffic.is_shared(self._clock.monotonic_s()):
                    answer = yield from confirmed(state, ask, self._traffic.shapes)
            except RequestError as error:
                was_kept = self._was_kept(ask)
                if was_kept and not isinstance(error, DeviceExceptionError | NotAllowedError):
                    error = NotSentError(str(error))
                if state.suspects and isinstance(error, DeviceExceptionError):
                    # It may be the answer to an earlier one.
                    state.suspect(ask, self._clock.monotonic_s())
                resend = _thrower(steps, error)
            except GeneratorExit:
                if not self._was_kept(ask):
                    with suppress(StopIteration):
                        steps.throw(ConnectionLostError(""))
                raise
            else:
                self._was_kept(ask)
                resend = _sender(steps, answer)

    def _was_kept(self, ask: Ask) -> bool:
        """Return whether a request has ended without having been sent."""
        is_unsent = ask in self._unsent
        self._unsent.discard(ask)
        return is_unsent

    def _is_told_apart(self, state: UnitState, ask: Ask) -> Generator[tuple[UnitState, Ask], bytes, bool]:
        """See to it that no late response and no echo can be taken for the response to a request."""
        if state.is_out_of_step(ask, self._clock.monotonic_s()):
            yield from resynchronise(state, self._clock)
            if ask.shape in state.suspects or state.turns.rank is Rank.DEMOTED:
                return False
        if ask.is_mirrored and ask.unit_id and self._echo is not None and self._echo.is_heard is None:
            yield from _read_something(state)
            return not state.is_out_of_step(ask, self._clock.monotonic_s())
        return True

    # --- read back later

    def _defer(self, state: UnitState, write: writing.Write) -> None:
        """Read a write back when the device has had its time."""
        self._end_reading_back(write.point.point)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(write.point.rules.verify_after_s, self._read_back, state, write)
        self._unverified[write.point.point] = write, timer

    def _end_reading_back(self, point: Point) -> None:
        """Answer a write that is still to be read back: the point has a newer value."""
        if point in self._unverified:
            unread, timer = self._unverified.pop(point)
            timer.cancel()
            self._finish(unread, WriteOutcome.WRITTEN, f"{_REPLACED} read back")

    def _read_back(self, state: UnitState, write: writing.Write) -> None:
        self._host.drive_aside(self._reading_back(state, write))
        self._host.poke()

    def _reading_back(self, state: UnitState, write: writing.Write) -> Steps:
        quirks, first = state.unit.quirks, state.unit.limits.first_address
        steps = read_back(write, quirks, self._finish, reason_of, first_address=first)
        try:
            yield from self._converse(state, steps)
        finally:
            found = self._unverified.get(write.point.point)
            if found is not None and found[0] is write:
                del self._unverified[write.point.point]
            text = f"written, but reading back failed: {Reason.NOT_CONNECTED}"
            self._finish(write, WriteOutcome.FAILED, text)

    # --- the end

    def _finish(self, write: writing.Write, outcome: WriteOutcome, reason: str | None) -> None:
        """Answer a write, the first time that this is called for it."""
        if write.is_finished:
            return
        write.is_finished = True
        value = write.value
        self._note_doubt(write, outcome)
        if outcome.is_done and not write.point.table.is_bits and write.point.factor is None:
            # What the registers hold now: the nearest step of the scale.
            decoded = write.point.decode(write.point.encode(value))[0]
            value = value if decoded is None else decoded
        result = WriteResult(write.point.point, value, outcome, reason)
        self._host.wrote(result, is_routed=write.is_routed)
        _answer(write, result)

    def _note_doubt(self, write: writing.Write, outcome: WriteOutcome) -> None:
        point = write.point.point
        if outcome.is_done:
            self._doubts.pop(point, None)
        elif outcome is WriteOutcome.UNKNOWN:
            doubt = self._doubts.get(point)
            is_again = doubt is not None and doubt.value == write.value
            pause_s = min(2 * doubt.pause_s, LONGEST_PAUSE_S) if is_again and doubt else FIRST_PAUSE_S
            self._doubts[point] = _Doubt(write.value, self._clock.monotonic_s() + pause_s, pause_s)


def _write_of(place: RegisterPoint, value: Value, points: dict[str, RegisterPoint]) -> writing.Write:
    """Return a value on its way, with what is written after it."""
    steps = [_write_of(points[name], step, points) for name, step in place.rules.then if name in points]
    return writing.Write(place, value, then=steps)


def _read_something(state: UnitState) -> Steps:
    """Read of a unit what cannot be mistaken for an echo, and so learn whether the line echoes."""
    ask = state.different_ask()
    if ask is not None:
        with suppress(RequestError):
            yield state, ask


def _answer(write: writing.Write, result: WriteResult) -> None:
    for answer in write.answers:
        answer(result)


def _thrower(steps: writing.Steps, error: RequestError) -> Callable[[], bytes]:
    return lambda: steps.throw(error)


def _sender(steps: writing.Steps, answer: bytes) -> Callable[[], bytes]:
    return lambda: steps.send(answer)
