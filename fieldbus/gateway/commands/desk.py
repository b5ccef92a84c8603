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
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import RefusedError
from fieldbus.gateway.commands.access import LOCAL, Access
from fieldbus.gateway.commands.audit import INTENT, Audit
from fieldbus.gateway.commands.command import LONGEST_EXPIRY_S, Answer, Command, id_of, read_command
from fieldbus.gateway.commands.disk import Disk
from fieldbus.gateway.commands.gate import Gate, Guard, outcome_of
from fieldbus.gateway.commands.recall import restore
from fieldbus.gateway.commands.routed import RouteLog
from fieldbus.link import Instruction, WriteOutcome, WriteResult
from fieldbus.model import Point, Sample, Value

MOST_AT_ONCE = 256
"""Commands under way, at most."""
LONGEST_ADDRESS = 512
"""No point has a longer one."""
_DONE = (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)
_COUNTED = (*_DONE, WriteOutcome.FAILED, WriteOutcome.UNKNOWN, "routed")
"""How a write ended that the device may have got."""
_UNSENT = (WriteOutcome.REFUSED, WriteOutcome.EXPIRED)
"""How a write ended that never left, although it was let through."""
DISK_GRACE_S = 0.1
"""For so long a command that waits for the disk counts as one that is about to be written."""
_STOPPED = "the gateway stopped before it was sent"
_LOG = logging.getLogger("fieldbus")

Write = Callable[[Point, Value, float], Awaitable[WriteResult]]
"""Has the link write: point, value, and until when (monotonic)."""


@dataclass(slots=True)
class _Attempt:
    """A write under way."""

    command: Command
    received_ns: int
    value: Value
    old: Sample | None = None
    intent: int | None = None
    """The number of its record on the disk."""
    until_s: float = 0.0
    """Waits for the disk until then, at most, if it does (monotonic)."""
    counted_s: float | None = None
    """When the gate counted it."""
    is_sent: bool = False
    """Whether the link has it."""


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
        self.gate = gate
        self.access = access
        self.audit = audit
        self.counters = dict.fromkeys(
            ("written", "refused", "failed", "unknown outcome", "expired", "fallbacks"), 0
        )
        self._write = write
        self._sample_of = sample_of
        self._routes = RouteLog(audit, self.counters, clock, records_each=records_each)
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Point to whose turn it is: commands to it are done one after the other."""
        self._wires: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Point to who has the link write it now."""
        self._under_way: dict[str, _Attempt] = {}
        """Point to the attempt that the link has now, or that waits for the disk."""
        self._falls: dict[str, int] = {}
        """Point to how often its safe value was to be written."""
        self._disk = None if audit is None else Disk(audit.sync)
        self._commanded_s: dict[str, float] = {}
        """Point to when a command last wrote it."""
        self._not_safe: dict[str, tuple[WriteOutcome, str | None]] = {}
        """Point to how it ended when its safe value was to be written last, and was not."""

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
        attempt = _Attempt(command, self._clock.wall_ns(), command.value)
        if command.way == "fallback":
            return await self._follow(attempt, self._fall(attempt), known)
        return await self._follow(attempt, self._in_turn(attempt), known)

    async def _follow(
        self,
        attempt: _Attempt,
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
        answer = self._answer(attempt, outcome, reason)
        if (outcome, reason) == known:
            return answer
        if self._record(answer, attempt) or outcome not in (*_DONE, WriteOutcome.ARMED):
            return answer
        return replace(answer, reason="it was done, but the audit log could not be written any more")

    def _answer(self, attempt: _Attempt, outcome: WriteOutcome, reason: str | None) -> Answer:
        return Answer(
            attempt.command, outcome, reason, attempt.received_ns, self._clock.wall_ns(), attempt.value
        )

    async def _in_turn(self, attempt: _Attempt) -> tuple[WriteOutcome, str | None]:
        """Do what a command wants when those before it to the same point are done."""
        command = attempt.command
        async with self._locks.setdefault(command.point, asyncio.Lock()):
            now_s, now_ns = self._clock.monotonic_s(), self._clock.wall_ns()
            if self.audit is not None and not self._can_record(self.audit):
                refusal = f"the audit log cannot be written ({self.audit.trouble})"
                self.gate.forbid(command, refusal, now_ns)
                return WriteOutcome.REFUSED, refusal
            try:
                point, attempt.value = self.gate.decide(command, now_s, now_ns)
            except RefusedError as error:
                return outcome_of(error), str(error)
            attempt.old = self._sample_of(point)
            if command.mode == "arm":
                return WriteOutcome.ARMED, None
            left_s = LONGEST_EXPIRY_S
            if command.expires_ns is not None:
                left_s = (command.expires_ns - now_ns) / 1e9
            return await self._once(attempt, point, now_s, now_s + left_s)

    async def _once(
        self, attempt: _Attempt, point: Point, now_s: float, until_s: float
    ) -> tuple[WriteOutcome, str | None]:
        """Have something written at most once: its intent is on the disk before."""
        attempt.counted_s, attempt.until_s = now_s, until_s
        try:
            trouble = await self._intend(attempt, point, until_s)
            outcome, reason = trouble or await self._send(attempt, point, until_s)
        except asyncio.CancelledError:
            if not attempt.is_sent:
                self.gate.take_back(point, now_s)
            raise
        if outcome in _UNSENT:
            self.gate.take_back(point, now_s)
        elif outcome in _DONE and attempt.command.way != "route":
            self._commanded_s[point.address] = self._clock.monotonic_s()
        return outcome, reason

    async def _intend(
        self, attempt: _Attempt, point: Point, until_s: float
    ) -> tuple[WriteOutcome, str | None] | None:
        """Have the intent on the disk; return how the attempt ends if that fails."""
        if self.audit is None or self._disk is None:
            return None
        falls = self._falls.get(point.address, 0)
        attempt.intent = self.audit.intend(self._clock.wall_ns(), self._record_of(attempt, attempt.value))
        if attempt.intent is None:
            return WriteOutcome.REFUSED, f"the audit log cannot be written ({self.audit.trouble})"
        self._under_way[point.address] = attempt
        try:
            async with asyncio.timeout(until_s - self._clock.monotonic_s()):
                await self._disk.settled()
        except TimeoutError:
            return WriteOutcome.EXPIRED, "its record was not on the disk in time"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            return WriteOutcome.REFUSED, f"the audit log cannot be written ({reason})"
        finally:
            self._under_way.pop(point.address, None)
        if self._falls.get(point.address, 0) != falls:
            return WriteOutcome.REFUSED, "the point went to its safe value while this waited for the disk"
        return None

    async def _send(
        self, attempt: _Attempt, point: Point, until_s: float
    ) -> tuple[WriteOutcome, str | None]:
        """Have the link write."""
        async with self._wires.setdefault(point.address, asyncio.Lock()):
            refusal = self._refusal_now(attempt.command, point, attempt.value)
            if refusal is None and self._clock.monotonic_s() >= until_s:
                refusal = WriteOutcome.EXPIRED, "its turn came too late"
            if refusal is not None:
                return refusal
            self._under_way[point.address] = attempt
            attempt.is_sent = True
            try:
                result = await self._write(point, attempt.value, until_s)
            finally:
                self._under_way.pop(point.address, None)
        attempt.value = result.value
        return result.outcome, None if result.reason is None else str(result.reason)

    async def _fall(self, attempt: _Attempt) -> tuple[WriteOutcome, str | None]:
        """Write a safe value; it waits for no disk."""
        command = attempt.command
        self._falls[command.point] = self._falls.get(command.point, 0) + 1
        now_s = self._clock.monotonic_s()
        try:
            point, attempt.value = self.gate.decide(command, now_s, self._clock.wall_ns())
        except RefusedError as error:
            return outcome_of(error), str(error)
        attempt.old = self._sample_of(point)
        outcome, reason = await self._send(attempt, point, now_s + LONGEST_EXPIRY_S)
        if outcome in _DONE:
            self.gate.note(point, attempt.value, self._clock.monotonic_s())
        return outcome, reason

    def still_allowed(self, point: Point, value: Value) -> tuple[WriteOutcome, str] | None:
        """Return how a write ends that must not be sent now after all; None if it may be sent.

        Links ask this at the moment of sending.
        """
        attempt = self._under_way.get(point.address)
        if attempt is not None and attempt.is_sent and attempt.value == value:
            return self._refusal_now(attempt.command, point, value)
        return self._refusal_now(Command("route", "", "route", point.address, value), point, value)

    def _refusal_now(self, command: Command, point: Point, value: Value) -> tuple[WriteOutcome, str] | None:
        try:
            self.gate.still_allowed(command, point, value, self._clock.wall_ns())
        except RefusedError as error:
            return outcome_of(error), str(error)
        return None

    def _can_record(self, audit: Audit) -> bool:
        """Return whether what is done now can be recorded; after a failure that is tried."""
        if not audit.is_ready():
            return False
        return audit.trouble is None or audit.record(self._clock.wall_ns(), {"way": "audit", "outcome": "resumed"})

    def _record(self, answer: Answer, attempt: _Attempt | None = None, *, is_proven: bool = True) -> bool:
        name = str(answer.outcome)
        self.counters["written" if answer.outcome in _DONE else name] = (
            self.counters.get("written" if answer.outcome in _DONE else name, 0) + 1
        )
        if self.audit is None:
            return True
        attempt = attempt or _Attempt(answer.command, answer.received_ns, answer.value)
        record = self._record_of(attempt, answer.value)
        record |= {"outcome": name, "reason": answer.reason}
        if attempt.intent is not None:
            record["intent"] = attempt.intent
        if not is_proven:
            record["proven"] = False
        return self.audit.record(answer.done_ns, record)

    @staticmethod
    def _record_of(attempt: _Attempt, value: Value) -> dict[str, Any]:
        command, old = attempt.command, attempt.old
        record: dict[str, Any] = {
            "way": command.way,
            "actor": command.actor,
            "from": command.origin,
            "point": command.point,
            "value": value,
            "old": None if old is None else old.value,
            "outcome": INTENT,
            "reason": None,
        }
        if command.id:
            record["id"] = command.id
        if command.mode != "write":
            record["mode"] = command.mode
        return record

    # --- routes

    def admit(self, point: Point, source: Point, value: Value, now_s: float) -> str | None:
        """Ask the gate for a route; return why not, None if the value may be written."""
        command = Command("route", source.address, "route", point.address, value)
        try:
            self.gate.decide(command, now_s, self._clock.wall_ns())
        except RefusedError as error:
            return str(error)
        return None

    def routed(self, point: Point, source: Point, value: Value | None, refusal: str | None) -> None:
        """Learn that a route has written a point of a machine, or was not allowed to."""
        self._routes.wrote(point, source, value, refusal)

    def sum_up(self) -> None:
        """Record what routes wrote since the last time."""
        self._routes.sum_up()

    # --- dead-man

    def commanded_s(self, point: Point) -> float | None:
        """Return when a command last wrote a point; None if none did."""
        return self._commanded_s.get(point.address)

    def is_busy(self, point: Point) -> bool:
        """Return whether a command to a point is being written, or is about to be."""
        lock = self._wires.get(point.address)
        if lock is not None and lock.locked():
            return True
        attempt = self._under_way.get(point.address)
        counted_s = None if attempt is None else attempt.counted_s
        return counted_s is not None and self._clock.monotonic_s() - counted_s < DISK_GRACE_S

    async def fall_back(self, point: Point, guard: Guard) -> WriteOutcome:
        """Bring a point to its safe value."""
        value = guard.fallback_value
        if value is None or guard.fallback_after_s is None:
            return WriteOutcome.REFUSED
        origin = f"silent for {guard.fallback_after_s:g} s"
        known = self._not_safe.pop(point.address, None)
        answer = await self.execute(Command("fallback", origin, "fallback", point.address, value), known)
        if answer.outcome not in _DONE:
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
        self.counters = self._routes.counters = other.counters
        self._commanded_s = other._commanded_s
        self._not_safe = other._not_safe
        self._locks, self._tasks = other._locks, other._tasks
        self._wires, self._under_way, self._falls = other._wires, other._under_way, other._falls
        self._disk = other._disk
        other.sum_up()

    def restore(self, points: Mapping[str, Point], guards: Mapping[Point, Guard]) -> None:
        """Learn from the audit log what was decided lately, and record what has an unknown outcome.

        Raises:
            OSError: it cannot be read.
        """
        if self.audit is not None:
            count = restore(self.gate, self.audit, points, guards, self._clock)
            self.counters[str(WriteOutcome.UNKNOWN)] += count

    async def close(self) -> None:
        """End what is under way, and record what routes wrote."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._disk is not None:
            await self._disk.close()
        self.sum_up()
