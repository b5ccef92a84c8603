"""The writes that wait for a link's connection, and what becomes of each.

Rules:

* Writes are sent in the order in which they were given. Of several that wait for one point the last wins.
* A write whose time is over is not sent; a write that cannot be sent now fails now. None is kept.
* Each write is answered exactly once.
* As long as it is not known whether the line echoes, something is read of the unit before a write whose
  response looks like its request.

Design: the queue yields requests, as an exploration does, and the link drives it: the queue knows nothing of
connections. What the requests of a value are, `writing` knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import suppress

from fieldbus.clock import Clock
from fieldbus.errors import DeviceExceptionError, RequestError, RequestTimeoutError
from fieldbus.link import NEVER, WriteOutcome, WriteResult
from fieldbus.modbus import writing
from fieldbus.modbus.agenda import Rank
from fieldbus.modbus.confirmation import confirmed, is_read
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.exploration import reason_of, resynchronise
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.places import Framing
from fieldbus.modbus.traffic import LineTraffic
from fieldbus.modbus.units import Steps, UnitState
from fieldbus.model import Point, Reason

_DONE = (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)


class WriteQueue:
    """The waiting writes of one link."""

    def __init__(
        self,
        state_of: Callable[[Point], UnitState],
        tell: Callable[[WriteResult], None],
        counters: MutableMapping[str, int],
        clock: Clock,
        echo: LineEcho | None = None,
        traffic: LineTraffic | None = None,
    ) -> None:
        """Take what the queue works with.

        Args:
            state_of: returns the unit of a point.
            tell: takes the end of each write that a route gave.
            counters: the link's, for ``writes`` and ``writes_failed``.
            clock: the gateway's.
            echo: what is known of the line's echo; None where there is none.
            traffic: what is known of others on the line.
        """
        self._state_of = state_of
        self._tell = tell
        self._counters = counters
        self._clock = clock
        self._echo = echo
        self._traffic = LineTraffic(Framing.MBAP) if traffic is None else traffic
        self._waiting: dict[Point, writing.Write] = {}
        self.under_way: Steps | None = None
        """What is being written; only one at a time."""

    def __bool__(self) -> bool:
        """Return whether a write waits."""
        return bool(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Whether a write waits and none is under way."""
        return bool(self._waiting) and self.under_way is None

    def put(self, write: writing.Write) -> None:
        """Take a write; it replaces one to the same point that waits."""
        point = write.point.point
        earlier = self._waiting.pop(point, None)
        if earlier is not None:
            if earlier.until_s < NEVER and earlier.value != write.value:
                # A command's answer must not be that of another value.
                reason = "replaced by a newer value before it was sent"
                _answer(earlier, WriteResult(point, earlier.value, WriteOutcome.FAILED, reason))
            else:
                write.answers.extend(earlier.answers)
            write.is_routed = write.is_routed or earlier.is_routed
        self._waiting[point] = write

    def fail_waiting(self, reason: str) -> None:
        """Fail what waits."""
        for write in self._take():
            self._finish(write, WriteOutcome.FAILED, reason)

    def begin(self) -> Steps:
        """Return the steps that write what waits; they end before others begin."""
        self.under_way = self._steps()
        return self.under_way

    def _take(self) -> list[writing.Write]:
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting

    def _steps(self) -> Steps:
        waiting = self._take()
        try:
            for state, writes in self._by_unit(waiting):
                runs = deque(writing.gather(self._in_time(writes), self._finish))
                while runs:
                    run = runs.popleft()
                    left = self._in_time(run.given)
                    if len(left) < len(run.given):  # those before it took long
                        runs.extendleft(reversed(list(writing.gather(left, self._finish))))
                        continue
                    if state.turns.rank is Rank.DEMOTED:  # by the request before: others wait long enough
                        for write in run.writes:
                            self._finish(write, WriteOutcome.FAILED, Reason.TIMEOUT)
                        continue
                    yield from self._perform(state, run)
        finally:
            self.under_way = None
            for write in waiting:
                self._finish(write, WriteOutcome.FAILED, Reason.NOT_CONNECTED)

    def _in_time(self, writes: Sequence[writing.Write]) -> list[writing.Write]:
        """Return the writes whose time is not over, and answer the others."""
        now_s = self._clock.monotonic_s()
        for write in writes:
            if write.until_s <= now_s:
                self._finish(write, WriteOutcome.EXPIRED, "its turn came too late")
        return [write for write in writes if not write.is_finished]

    def _by_unit(self, writes: Iterable[writing.Write]) -> list[tuple[UnitState, list[writing.Write]]]:
        """Return writes in their order, those to one unit that follow each other together."""
        found: list[tuple[UnitState, list[writing.Write]]] = []
        for write in writes:
            state = self._state_of(write.point.point)
            if found and found[-1][0] is state:
                found[-1][1].append(write)
            else:
                found.append((state, [write]))
        return found

    def _perform(self, state: UnitState, run: writing.Run) -> Steps:
        """Send the requests of a run to its unit."""
        steps = writing.perform(run, state.unit.quirks, self._finish, reason_of)
        resend: Callable[[], bytes] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                request = resend()
            except StopIteration:
                return
            ask = Ask(state.unit.unit_id, request)
            if state.is_out_of_step(ask, self._clock.monotonic_s()):
                yield from resynchronise(state, self._clock)
                if ask.shape in state.suspects or state.turns.rank is Rank.DEMOTED:
                    resend = _thrower(steps, RequestTimeoutError(state.unit.timeout_s))
                    continue
            if ask.is_mirrored and self._echo is not None and self._echo.is_heard is None:
                yield from _read_something(state)
            try:
                answer = yield state, ask
                if is_read(ask) and self._traffic.is_shared(self._clock.monotonic_s()):
                    answer = yield from confirmed(state, ask, self._traffic.shapes)
            except RequestError as error:
                if state.suspects and isinstance(error, DeviceExceptionError):
                    state.suspect(ask, self._clock.monotonic_s())  # it may be the answer to an earlier one
                resend = _thrower(steps, error)
            else:
                resend = _sender(steps, answer)

    def _finish(self, write: writing.Write, outcome: WriteOutcome, reason: str | None) -> None:
        """Answer a write, the first time that this is called for it."""
        if write.is_finished:
            return
        write.is_finished = True
        is_done = outcome in _DONE
        self._counters["writes" if is_done else "writes_failed"] += 1
        value = write.value
        if is_done and not write.point.table.is_bits and write.point.factor is None:
            # What the registers hold now: the nearest step of the scale.
            decoded = write.point.decode(write.point.encode(value))[0]
            value = value if decoded is None else decoded
        result = WriteResult(write.point.point, value, outcome, reason)
        if write.is_routed:
            self._tell(result)
        _answer(write, result)


def _read_something(state: UnitState) -> Steps:
    """Read of a unit what cannot be mistaken for an echo, and so learn whether the line echoes."""
    ask = state.different_ask()
    if ask is not None:
        with suppress(RequestError):
            yield state, ask


def _answer(write: writing.Write, result: WriteResult) -> None:
    for answer in write.answers:
        if not answer.done():
            answer.set_result(result)


def _thrower(steps: writing.Steps, error: RequestError) -> Callable[[], bytes]:
    return lambda: steps.throw(error)


def _sender(steps: writing.Steps, answer: bytes) -> Callable[[], bytes]:
    return lambda: steps.send(answer)
