"""Where every attempt to write comes by: through the gate, to the link, into the audit log, and answered.

Rules:

* One attempt, one record of how it ended, written before the answer goes out.
* At most once: a command, and what a route writes to a `non_volatile` point, has a record of the intent on
  the disk before the request is sent. What has only an intent after a restart has an unknown outcome: that is
  logged and recorded, its `id` is not executed again, and the budget is charged.
* A command whose record cannot be written is refused before anything is sent. A safe value is not, and it
  waits for no disk: a machine must come to rest also when a disk is full or hangs. What waited for the disk
  when a safe value was written is not sent any more.
* Commands to one point are done one after the other. What has not been sent when its time is over is not
  sent; what may have changed since the decision is asked again at the moment of sending (`still_allowed`).
* On a topic nobody is ``local``, whatever the broker lets through.
* What routes write is recorded by point once a minute, with how many and the last value (``routes: each``:
  every single one). Refusals are recorded when they begin and when they end.

Design: the desk decides nothing itself: `gate` does. It knows the order in which things have to happen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import RefusedError
from fieldbus.gateway.commands import clock_mark
from fieldbus.gateway.commands.access import LOCAL, Access
from fieldbus.gateway.commands.attempts import Attempt, Attempts, Write, record_of
from fieldbus.gateway.commands.audit import Audit
from fieldbus.gateway.commands.bundle import Bundle
from fieldbus.gateway.commands.command import LONGEST_EXPIRY_S, Answer, Command, id_of, read_command
from fieldbus.gateway.commands.gate import ExpiredError, Gate, Guard, outcome_of
from fieldbus.gateway.commands.recall import CLOCK_SET_S, record_set_clock, restore
from fieldbus.gateway.commands.routed import RouteLog
from fieldbus.link import Delivery, Instruction, WriteOutcome
from fieldbus.model import Point, Sample, Value

MOST_AT_ONCE = 256
"""Commands under way, at most."""
LONGEST_ADDRESS = 512
"""No point has a longer one."""
_STOPPED = "the gateway stopped before it was sent"
_LOG = logging.getLogger("fieldbus")


class Desk:
    """One gateway's."""

    def __init__(
        self,
        gate: Gate,
        access: Access,
        audit: Audit | None,
        write: Write,
        sample_of: Callable[[Point], Sample | None],
        *,
        records_each: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what it works with.

        Args:
            gate: decides.
            access: knows signatures.
            audit: the log; None if nothing is recorded (a stepped run).
            write: has a link write.
            sample_of: what is known of a point before it is written.
            records_each: whether each single write of a route is recorded.
            clock: the gateway's.
        """
        self._clock = clock
        self._offset_ns = clock.wall_ns() - round(clock.monotonic_s() * 1e9)
        """Of the wall clock from the monotonic one, when that was looked at last."""
        self.gate = gate
        self.access = access
        self.audit = audit
        self.counters = dict.fromkeys(
            ("written", "refused", "failed", "unknown outcome", "expired", "fallbacks"), 0
        )
        self._attempts = Attempts(gate, audit, write, clock)
        self._sample_of = sample_of
        self._routes = RouteLog(audit, self.counters, clock, records_each=records_each)
        self._tasks: set[asyncio.Task[None]] = set()
        self._earlier: list[Desk] = []
        """Desks of before reloads, in which something may wait still."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Point to whose turn it is: commands to it are done one after the other."""
        self._commanded_s: dict[str, float] = {}
        """Point to when a command last wrote it."""
        self._not_safe: dict[str, tuple[WriteOutcome, str | None]] = {}
        """Point to how it ended when its safe value was to be written last, and was not."""

    # --- the clock

    def mind_clock(self) -> None:
        """Record that the wall clock was set, if it was, with what counts at this moment."""
        offset_ns = self._clock.wall_ns() - round(self._clock.monotonic_s() * 1e9)
        shift_s = (offset_ns - self._offset_ns) / 1e9
        self._offset_ns = offset_ns
        if self.audit is None or abs(shift_s) < CLOCK_SET_S:
            return
        record_set_clock(self.gate, self.audit, self._clock, shift_s)
        clock_mark.keep(self.audit.folder, self._clock)

    # --- commands

    def instruct(self, instruction: Instruction) -> None:
        """Take what came on a topic."""
        unread = Command(
            "mqtt", instruction.topic, instruction.actor, instruction.point[:LONGEST_ADDRESS], ""
        )
        is_proven = False
        try:
            if len(instruction.point) > LONGEST_ADDRESS:
                raise RefusedError("no point has such a long name")
            unread = replace(unread, id=id_of(instruction.payload))
            if instruction.actor == LOCAL:
                raise RefusedError(
                    f"'{LOCAL}' is who is on the gateway's machine, and does not come by topic"
                )
            self.access.check_signature(
                instruction.actor, instruction.topic, instruction.payload, instruction.signature
            )
            is_proven = True  # nobody else can make an id of this actor be refused
            command = unread = read_command(
                instruction.payload,
                actor=instruction.actor,
                point=instruction.point,
                origin=instruction.topic,
            )
            if instruction.is_retained:
                raise RefusedError(
                    "a retained command is not executed: nobody knows how often it was already"
                )
            if len(self._tasks) >= MOST_AT_ONCE:
                raise RefusedError("too many commands at once")
            self.gate.claim(command)
        except RefusedError as error:
            now_ns = self._clock.wall_ns()
            if is_proven:
                self.gate.forbid(unread, str(error), now_ns)
            answer = Answer(unread, WriteOutcome.REFUSED, str(error), now_ns, now_ns, unread.value)
            self._record(answer, is_proven=is_proven)
            self._reply(answer, instruction)
            return

        async def follow() -> None:
            self._reply(await self.execute(command), instruction)

        self._start(follow(), f"command {command.point}")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reply(self, answer: Answer, instruction: Instruction) -> None:
        if instruction.reply is not None:
            instruction.reply(answer.payload())

    async def execute(self, command: Command, known: tuple[WriteOutcome, str | None] | None = None) -> Answer:
        """Do what a command wants, or not, and return how it ended.

        Args:
            command: what is wanted.
            known: how it ended before; if it does so again, that is not recorded again.
        """
        attempt = Attempt(command, self._clock.wall_ns(), command.value)
        work = self._fall(attempt) if command.way == "fallback" else self._in_turn(attempt)
        return await self._follow(attempt, work, known)

    async def _follow(
        self,
        attempt: Attempt,
        work: Coroutine[Any, Any, tuple[WriteOutcome, str | None]],
        known: tuple[WriteOutcome, str | None] | None = None,
    ) -> Answer:
        """Record how an attempt ends, and return it."""
        try:
            outcome, reason = await work
        except asyncio.CancelledError:
            text = "the gateway stopped meanwhile: whether it was written is not known"
            ended = (WriteOutcome.UNKNOWN, text) if attempt.is_sent else (WriteOutcome.FAILED, _STOPPED)
            self._record(self._answer(attempt, *ended), attempt)
            raise
        except Exception:
            _LOG.exception("%s: internal error while it was written", attempt.command.point)
            outcome = WriteOutcome.UNKNOWN if attempt.is_sent else WriteOutcome.FAILED
            reason = "internal error"
        answer = self._answer(attempt, outcome, reason)
        if (outcome, reason) == known:
            return answer
        if self._record(answer, attempt) or not (outcome.is_done or outcome is WriteOutcome.ARMED):
            return answer
        return replace(answer, reason="it was done, but the audit log could not be written any more")

    def _answer(self, attempt: Attempt, outcome: WriteOutcome, reason: str | None) -> Answer:
        return Answer(
            attempt.command, outcome, reason, attempt.received_ns, self._clock.wall_ns(), attempt.value
        )

    async def _in_turn(self, attempt: Attempt) -> tuple[WriteOutcome, str | None]:
        """Do what a command wants when those before it to the same point are done."""
        command = attempt.command
        # What is left is measured from now on: a wall clock that is set back meanwhile makes it no longer.
        left_s = LONGEST_EXPIRY_S
        if command.expires_ns is not None:
            left_s = (command.expires_ns - attempt.received_ns) / 1e9
        until_s = self._clock.monotonic_s() + left_s
        async with self._locks.setdefault(command.point, asyncio.Lock()):
            self.mind_clock()
            now_s, now_ns = self._clock.monotonic_s(), self._clock.wall_ns()
            if self.audit is not None and not self._can_record(self.audit):
                refusal = f"the audit log cannot be written ({self.audit.trouble})"
                self.gate.forbid(command, refusal, now_ns)
                return WriteOutcome.REFUSED, refusal
            try:
                if now_s >= until_s:
                    raise ExpiredError("its turn came too late")
                point, attempt.value = self.gate.decide(command, now_s, now_ns)
            except RefusedError as error:
                self.gate.forbid(command, str(error), now_ns)
                return outcome_of(error), str(error)
            attempt.old = self._sample_of(point)
            if command.mode == "arm":
                return WriteOutcome.ARMED, None
            outcome, reason = await self._attempts.once(attempt, point, now_s, until_s)
            if outcome.is_done:
                self._commanded_s[point.address] = self._clock.monotonic_s()
            return outcome, reason

    async def _fall(self, attempt: Attempt) -> tuple[WriteOutcome, str | None]:
        """Write a safe value, whatever else waits."""
        try:
            point, attempt.value = self.gate.decide(
                attempt.command, self._clock.monotonic_s(), self._clock.wall_ns()
            )
        except RefusedError as error:
            return outcome_of(error), str(error)
        attempt.old = self._sample_of(point)
        outcome, reason = await self._attempts.at_once(attempt, point)
        if outcome.is_done:
            self.gate.note(point, attempt.value, self._clock.monotonic_s())
        return outcome, reason

    def still_allowed(self, point: Point, value: Value) -> tuple[WriteOutcome, str] | None:
        """Return how a write ends that must not be sent now after all; None if it may be sent.

        Links ask this at the moment of sending.
        """
        return self._attempts.still_allowed(point, value)

    def is_commanded(self, point: Point, value: Value) -> bool:
        """Return whether the link has a value because of an attempt, and not because of a route."""
        return self._attempts.is_commanded(point, value)

    def attempt_at(self, point: Point) -> Attempt | None:
        """Return the attempt that a link has for a point now."""
        return self._attempts.attempt_at(point)

    def _can_record(self, audit: Audit) -> bool:
        """Return whether what is done now can be recorded; after a failure that is tried."""
        if not audit.is_ready():
            return False
        return audit.trouble is None or audit.record(
            self._clock.wall_ns(), {"way": "audit", "outcome": "resumed"}
        )

    def _record(self, answer: Answer, attempt: Attempt | None = None, *, is_proven: bool = True) -> bool:
        name = str(answer.outcome)
        counter = "written" if answer.outcome.is_done else name
        self.counters[counter] = self.counters.get(counter, 0) + 1
        if self.audit is None:
            return True
        attempt = attempt or Attempt(answer.command, answer.received_ns, answer.value)
        record = record_of(attempt, answer.value)
        record |= {"outcome": name, "reason": answer.reason}
        if attempt.intent is not None:
            record["intent"] = attempt.intent
        if not is_proven:
            record["proven"] = False
        return self.audit.record(answer.done_ns, record)

    # --- routes

    def admit(self, point: Point, source: Point, value: Value, now_s: float) -> str | None:
        """Ask the gate for a route; return why not, None if the value may be written."""
        command = Command("route", source.address, "route", point.address, value)
        try:
            self.gate.decide(command, now_s, self._clock.wall_ns())
        except RefusedError as error:
            return str(error)
        return None

    def write_routed(
        self,
        delivery: Delivery,
        point: Point,
        now_s: float,
        ended: Callable[[Delivery, Point, Answer], None],
        bundle: Bundle | None = None,
    ) -> None:
        """Write what a route has for a point, as an attempt of its own; it was allowed at a moment (`admit`).

        Args:
            delivery: the sample.
            point: its target.
            now_s: when the gate counted it.
            ended: called with how it ended, unless the gateway stops meanwhile.
            bundle: by which it is written together with others.
        """
        value = delivery.sample.value
        if value is None:
            return
        command = Command("route", delivery.source.address, "route", point.address, value, bundle=bundle)
        attempt = Attempt(command, self._clock.wall_ns(), value, self._sample_of(point))

        async def follow() -> None:
            work = self._attempts.once(attempt, point, now_s, now_s + LONGEST_EXPIRY_S)
            try:
                answer = await self._follow(attempt, work)
            finally:
                if bundle is not None and not bundle.has(point.address):
                    bundle.withdraw(point.address)
            ended(delivery, point, answer)

        self._start(follow(), f"route to {point.address}")

    def take_back_routed(self, delivery: Delivery, point: Point, at_s: float, reason: str) -> None:
        """Record that a value which the gate admitted is not written, and take it out of the count."""
        value = delivery.sample.value
        if value is not None:
            command = Command("route", delivery.source.address, "route", point.address, value)
            self.gate.take_back(command, point, at_s, reason)
        self.routed(point, delivery.source, value, reason)

    def routed(self, point: Point, source: Point, value: Value | None, refusal: str | None) -> None:
        """Learn that a route has written a point of a machine, or was not allowed to."""
        self._routes.wrote(point, source, value, refusal)

    def followed_route(self, point: Point, after: Point, value: Value) -> None:
        """Count a value that was written after the value of a route (`then`), for the next summary."""
        self._routes.wrote(point, after, value, None, way="then")

    def sum_up(self) -> None:
        """Record what routes wrote since the last time."""
        self.mind_clock()
        self._routes.sum_up()

    # --- dead-man

    def commanded_s(self, point: Point) -> float | None:
        """Return when a command last wrote a point; None if none did."""
        return self._commanded_s.get(point.address)

    def is_busy(self, point: Point) -> bool:
        """Return whether a command to a point is being written, or is about to be."""
        return self._attempts.is_busy(point)

    async def fall_back(self, point: Point, guard: Guard) -> WriteOutcome:
        """Bring a point to its safe value."""
        value = guard.fallback_value
        if value is None or guard.fallback_after_s is None:
            return WriteOutcome.REFUSED
        origin = f"silent for {guard.fallback_after_s:g} s"
        known = self._not_safe.pop(point.address, None)
        answer = await self.execute(Command("fallback", origin, "fallback", point.address, value), known)
        if not answer.outcome.is_done:
            self._not_safe[point.address] = answer.outcome, answer.reason
        if (answer.outcome, answer.reason) != known:
            self.counters["fallbacks"] += 1
            how = f"{answer.outcome}: {answer.reason}" if answer.reason else str(answer.outcome)
            _LOG.warning("%s: its source is silent, safe value %s %s", point.address, value, how)
        return answer.outcome

    # --- life

    def adopt(self, other: Desk) -> None:
        """Go on with what another desk knows, after a reload."""
        self.gate.adopt(other.gate)
        # What waits in an earlier desk is decided by what holds now.
        self._earlier = [*other._earlier, other] if other._tasks else []
        for desk in self._earlier:
            desk.gate, desk.access = self.gate, self.access
            desk._attempts.gate = self.gate  # noqa: SLF001 - of our own class
        self._offset_ns = other._offset_ns
        self.counters = self._routes.counters = other.counters
        self._commanded_s = other._commanded_s
        self._not_safe = other._not_safe
        self._locks, self._tasks = other._locks, other._tasks
        self._attempts.adopt(other._attempts)
        other.sum_up()

    def restore(self, points: Mapping[str, Point], guards: Mapping[Point, Guard]) -> None:
        """Learn from the audit log what was decided lately, and record what has an unknown outcome.

        Raises:
            OSError: it cannot be read.
        """
        if self.audit is not None:
            count = restore(self.gate, self.audit, points, guards, self._clock)
            self.counters[str(WriteOutcome.UNKNOWN)] += count

    async def on_disk(self) -> None:
        """Return when all records so far are on the disk.

        Raises:
            OSError: they are not.
        """
        await self._attempts.on_disk()

    async def close(self) -> None:
        """End what is under way, and record what routes wrote."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._attempts.close()
        self.sum_up()
