"""The one gate that every write passes, however it comes.

What is asked, in this order; the first no is the answer:

1. is the command still in time, and was it not executed before (`id`)?
2. is there such a point, and may it be written at all?
3. may this actor write it (`access`)? Routes may, by being configured.
4. does the value fit: kind, `min` and `max`, `step`, and `max_change` from the present value?
5. does the interlock (`only_if`) hold, by good values?
6. was it armed by the same actor with the same value within `ARMED_S` (`confirm`)?
7. is it not too soon after the last one (`min_interval`), and not too often a day (`non_volatile`)?

Rules:

* Pure, time is a parameter. Intervals, budgets and arming are measured on the monotonic clock; only when a
  command was given and when it expires is compared with the wall clock.
* A safe value (`fallback`) need only fit. What was refused uses up neither interval nor budget.
* An `id` is decided once: what was executed is not executed again, what was refused stays refused. No number
  means "never": a command without a time has None.
* What can change while a write waits for its turn (time, range, interlock, present value) is asked again at
  the moment of sending (`still_allowed`).
* A refusal is a sentence for the sender, with what would have been allowed. Whatever a command says, the
  answer is a decision or `RefusedError`.

Design: what a point must always be protected from is the point's (`Guard`), who may do it is the actor's; the
two know nothing of each other.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fieldbus.errors import RefusedError, closest
from fieldbus.gateway.commands.command import LONGEST_EXPIRY_S, MAX_AHEAD_S, Command, fitting
from fieldbus.gateway.commands.conditions import Condition
from fieldbus.gateway.commands.ids import Ids
from fieldbus.link import NEVER, WriteOutcome
from fieldbus.model import Point, Quality, Sample, Value

ARMED_S = 10.0
"""How long a point stays armed."""
DAY_S = 86400.0
MEMORY_S = LONGEST_EXPIRY_S + MAX_AHEAD_S
"""How long a command can be in time at most after it was decided, so long its `id` is remembered."""
_MOST_TO_COMPARE = 1000
"""Points among which a similar name is looked for: more would hold up everything else."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What a point is protected by beyond its range."""

    step: float | None = None
    """Values lie so far apart, from `min` or 0."""
    max_change: float | None = None
    """How far a write may be from the present value."""
    min_interval_s: float | None = None
    """Between two writes, at least."""
    daily_budget: int | None = None
    """Writes within 24 hours, at most."""
    only_if: tuple[Condition, ...] = ()
    confirm: bool = False
    fallback_after_s: float | None = None
    """After how much silence of its source the point goes to its safe value."""
    fallback_value: Value | None = None


NO_GUARD = Guard()
_UNKNOWN = Sample(None, Quality.BAD, "the gateway that has it was never heard", 0)


@dataclass(slots=True)
class _State:
    """What the gate remembers of a point."""

    written_s: float | None = None
    """When it was written last, monotonic."""
    value: Value | None = None
    """What was written then; None if that was before a restart."""
    before: tuple[float | None, Value | None] = (None, None)
    """The two as they were before that."""
    armed: dict[str, tuple[Value, float]] = field(default_factory=dict)
    """Actor to value and until when."""
    writes: deque[float] = field(default_factory=deque)
    """When it was written within the last day, where there is a budget."""


class Gate:
    """Decides, and remembers what it needs for that."""

    def __init__(
        self,
        points: Mapping[str, Point],
        guards: Mapping[Point, Guard],
        may_write: Callable[[str, str], bool],
        sample_of: Callable[[Point], Sample],
        arrived_s: Callable[[Point], float] = lambda _: -NEVER,
        is_actor: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Take what decisions go by.

        Args:
            points: all points by address.
            guards: of the points that have one.
            may_write: tells for an actor and a point's address whether the actor may write it.
            sample_of: the newest sample of a point that can be read.
            arrived_s: when that sample arrived, monotonic.
            is_actor: whether the configuration names an actor; of others no refused `id` is remembered.
        """
        self._points = points
        self._guards = guards
        self._may_write = may_write
        self._sample_of = sample_of
        self._arrived_s = arrived_s
        self._is_actor = is_actor
        self._states: dict[str, _State] = {}
        self._ids = Ids()

    def adopt(self, other: Gate) -> None:
        """Go on with what another gate remembers, after a reload."""
        self._states, self._ids = other._states, other._ids

    def decide(self, command: Command, now_s: float, now_ns: int) -> tuple[Point, Value]:
        """Return which point gets which value, and count it as written.

        Raises:
            RefusedError: nothing is to be written, and why. `Expired` where it came too late.
        """
        try:
            return self._decide(command, now_s, now_ns)
        except RefusedError as error:
            self.forbid(command, str(error), now_ns)
            raise

    def _decide(self, command: Command, now_s: float, now_ns: int) -> tuple[Point, Value]:
        self._check_time(command, now_ns)
        if command.id:
            self._ids.check(command.actor, command.id, command.expires_ns, command)
        point = self._point(command)
        if command.way != "route" and not point.access.can_write:
            raise RefusedError("not writable (access: read)")
        guard = self._guards.get(point, NO_GUARD)
        value = fitting(point, command.value)
        refusal = point.refusal(value)
        if refusal is not None:
            raise RefusedError(refusal)
        if command.way == "fallback":  # to be safe is always allowed, and counts when it was done
            return point, value
        self._check_state(point, guard, value)
        if command.mode == "arm":
            if not guard.confirm:
                raise RefusedError("the point needs no arming (it has no `confirm`)")
            self._remember(command, now_ns)
            self._state(point).armed[command.actor] = value, now_s + ARMED_S
            return point, value
        if guard.confirm:
            self._check_armed(command, point, value, now_s)
        self._check_rate(point, guard, now_s)
        self._remember(command, now_ns)
        if guard.confirm:
            self._state(point).armed.pop(command.actor, None)
        self.note(point, value, now_s)
        return point, value

    def claim(self, command: Command) -> None:
        """Have the id of a command that came be its own, though it is decided later."""
        if command.id:
            self._ids.claim(command.actor, command.id, command)

    def still_allowed(self, command: Command, point: Point, value: Value, now_ns: int) -> None:
        """Ask again what may have changed since the decision, at the moment of sending.

        Raises:
            RefusedError: it must not be sent any more, and why. `Expired` where its time is over.
        """
        if command.way == "fallback":
            return
        if command.expires_ns is not None and now_ns >= command.expires_ns:
            raise ExpiredError(_age(command, now_ns))
        refusal = point.refusal(value)
        if refusal is not None:
            raise RefusedError(refusal)
        self._check_state(point, self._guards.get(point, NO_GUARD), value)

    def note(self, point: Point, value: Value | None, now_s: float, count: int = 1) -> None:
        """Count a write that was let through (also one of before a restart)."""
        guard = self._guards.get(point, NO_GUARD)
        state = self._state(point)
        state.before = state.written_s, state.value
        state.written_s, state.value = now_s, value
        if guard.daily_budget is not None:
            state.writes.extend([now_s] * min(count, guard.daily_budget))

    def has_budget(self, point: Point) -> bool:
        """Return whether the writes of a point are counted by the day."""
        return self._guards.get(point, NO_GUARD).daily_budget is not None

    def take_back(self, command: Command, point: Point, at_s: float, reason: str) -> None:
        """Forget a write that was counted at a moment and, for certain, never sent; it stays refused."""
        self._ids.withdraw(command.actor, command.id, reason)
        state = self._state(point)
        if state.written_s == at_s:
            state.written_s, state.value = state.before
        if state.writes and state.writes[-1] == at_s:
            state.writes.pop()

    def counted(self, now_s: float) -> dict[str, list[tuple[int, int]]]:
        """Return what counts for intervals and budgets: point to ages in seconds, and how many writes each.

        Oldest first; those of one hour together, as young as the youngest of them.
        """
        found: dict[str, list[tuple[int, int]]] = {}
        for point, guard in self._guards.items():
            state = self._states.get(point.address)
            if state is None or state.written_s is None:
                continue
            if guard.daily_budget is None and guard.min_interval_s is None:
                continue
            last_s = int(max(0.0, now_s - state.written_s))
            hours = Counter(int(max(0.0, now_s - at_s) / 3600) for at_s in state.writes or (state.written_s,))
            found[point.address] = [
                (max(hour * 3600, last_s), count) for hour, count in sorted(hours.items(), reverse=True)
            ]
        return found

    def forget_counts(self) -> None:
        """Forget when points were written."""
        self._states.clear()

    def remember(self, actor: str, id_: str, until_ns: int, refusal: str | None = None) -> None:
        """Know a command of before a restart; with why it was refused, if it was."""
        if refusal is None:
            self._ids.executed(actor, id_, until_ns)
        elif self._is_actor(actor):
            self._ids.refused(actor, id_, until_ns, refusal)

    def forbid(self, command: Command, refusal: str, now_ns: int) -> None:
        """Have a command that was refused stay so, whatever changes."""
        if not command.id or not self._ids.release(command.actor, command.id, command):
            return
        if self._is_actor(command.actor):
            until_ns = now_ns + round(MEMORY_S * 1e9)
            if command.expires_ns is not None:
                until_ns = min(until_ns, command.expires_ns)
            self._ids.refused(command.actor, command.id, until_ns, refusal)

    def _point(self, command: Command) -> Point:
        """Return the point, and say nothing of it to those who may not write it."""
        if command.way in ("mqtt", "local") and not self._may_write(command.actor, command.point):
            raise RefusedError(
                f"'{command.actor}' may not write {command.point} (nothing under `access` says so)"
            )
        point = self._points.get(command.point)
        if point is None:
            is_quick = len(self._points) <= _MOST_TO_COMPARE
            hint = closest(command.point, self._points) if is_quick else None
            raise RefusedError(f"there is no point '{command.point}'" + (f" ({hint})" if hint else ""))
        return point

    @staticmethod
    def _check_time(command: Command, now_ns: int) -> None:
        if command.given_ns is not None and command.given_ns > now_ns + MAX_AHEAD_S * 1e9:
            ahead_s = (command.given_ns - now_ns) / 1e9
            raise RefusedError(f"the command was given {ahead_s:.1f} s in the future: the clocks differ")
        if command.expires_ns is not None and now_ns >= command.expires_ns:
            raise ExpiredError(_age(command, now_ns))

    def _check_state(self, point: Point, guard: Guard, value: Value) -> None:
        if guard.step is not None and not isinstance(value, str):
            steps = (value - (point.minimum or 0)) / guard.step
            if not math.isfinite(steps) or abs(steps - round(steps)) > 1e-6:
                raise RefusedError(f"{value:g} is between the steps of {guard.step:g}")
        if guard.max_change is not None and not isinstance(value, str):
            for present in self._present(point):
                if abs(value - present) > guard.max_change:
                    text = f"{value:g} is further than {guard.max_change:g} from the present {present:g}"
                    raise RefusedError(text)
        for condition in guard.only_if:
            sample = _UNKNOWN if condition.point is None else self._sample_of(condition.point)
            if not condition.holds(sample):
                state = _known(sample)
                raise RefusedError(f"interlock: {condition.text} does not hold ({state})")

    def _present(self, point: Point) -> list[float]:
        """Return the value that a point has, and the one that it may have got since that was read."""
        sample = self._sample_of(point) if point.access.can_read else _UNKNOWN
        if sample.quality is not Quality.GOOD or not _is_finite(sample.value):
            raise RefusedError("its present value is not known, so `max_change` cannot be kept")
        found: list[Any] = [sample.value]
        state = self._state(point)
        is_newer = state.written_s is not None and state.written_s >= self._arrived_s(point)
        if is_newer and _is_finite(state.value):
            found.append(state.value)
        return found

    def _check_armed(self, command: Command, point: Point, value: Value, now_s: float) -> None:
        armed = self._state(point).armed.get(command.actor)
        if command.mode != "execute" or armed is None:
            raise RefusedError('the point wants to be armed first ("mode": "arm"), then executed')
        if now_s > armed[1]:
            raise RefusedError(f"it was armed more than {ARMED_S:.0f} s ago")
        if armed[0] != value:
            raise RefusedError(f"it was armed with another value, {armed[0]}")

    def _check_rate(self, point: Point, guard: Guard, now_s: float) -> None:
        state = self._state(point)
        if guard.min_interval_s is not None and state.written_s is not None:
            wait_s = state.written_s + guard.min_interval_s - now_s
            if wait_s > 0:
                raise RefusedError(f"too soon after the last write; again in {wait_s:.1f} s")
        if guard.daily_budget is not None:
            while state.writes and state.writes[0] <= now_s - DAY_S:
                state.writes.popleft()
            if len(state.writes) >= guard.daily_budget:
                raise RefusedError(f"its {guard.daily_budget} writes a day are used up (non_volatile)")

    def _state(self, point: Point) -> _State:
        found = self._states.get(point.address)
        if found is None:
            found = self._states[point.address] = _State()
        return found

    def _remember(self, command: Command, now_ns: int) -> None:
        if command.id:
            until_ns = now_ns + round(MEMORY_S * 1e9) if command.expires_ns is None else command.expires_ns
            self._ids.make_room(now_ns)
            self._ids.executed(command.actor, command.id, until_ns)


class ExpiredError(RefusedError):
    """The command came, or its turn came, when its time was over."""


def outcome_of(error: RefusedError) -> WriteOutcome:
    """Return how a write ended that an error refused."""
    return WriteOutcome.EXPIRED if isinstance(error, ExpiredError) else WriteOutcome.REFUSED


def _age(command: Command, now_ns: int) -> str:
    given_ns = command.expires_ns if command.given_ns is None else command.given_ns
    return f"{(now_ns - (given_ns or now_ns)) / 1e9:.1f} s old"


def _is_finite(value: Value | None) -> bool:
    try:
        return not isinstance(value, str) and value is not None and math.isfinite(value)
    except OverflowError:
        return False


def _known(sample: Sample) -> str:
    if sample.value is None or sample.quality is not Quality.GOOD:
        return f"{sample.quality}: {sample.reason}"
    value = sample.value
    return f"it is {value:g}" if isinstance(value, float) else f"it is {value}"
