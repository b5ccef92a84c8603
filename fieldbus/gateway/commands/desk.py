"""Where every attempt to write comes by: through the gate, to the link, into the audit log, and answered.

Rules:

* One attempt, one record, whatever came of it; the record is written before the answer goes out.
* A command whose record cannot be written is refused before anything is sent. A safe value is not: a
  machine must come to rest also when a disk is full.
* Commands to one point are done one after the other. What has not been sent when its time is over is not
  sent.
* On a topic nobody is ``local``, whatever the broker lets through.
* What routes write is recorded by point once a minute, with how many and the last value (``routes: each``:
  every single one). Refusals are recorded when they begin and when they end.

Design: the desk decides nothing itself: `gate` does. It knows the order in which things have to happen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import RefusedError
from fieldbus.gateway.commands.access import LOCAL, Access
from fieldbus.gateway.commands.audit import Audit
from fieldbus.gateway.commands.command import LONGEST_EXPIRY_S, Answer, Command, id_of, read_command
from fieldbus.gateway.commands.gate import DAY_S, ExpiredError, Gate, Guard
from fieldbus.link import Instruction, WriteOutcome, WriteResult
from fieldbus.model import Point, Sample, Value
from fieldbus.sample_json import parse_time

ROUTES_PERIOD_S = 60.0
MOST_AT_ONCE = 256
"""Commands under way, at most."""
LONGEST_ADDRESS = 512
"""No point has a longer one."""
_DONE = (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)
_COUNTED = (*_DONE, WriteOutcome.FAILED, WriteOutcome.UNKNOWN, "routed")
"""How a write ended that the device may have got."""
_LOG = logging.getLogger("fieldbus")

Write = Callable[[Point, Value, float], Awaitable[WriteResult]]
"""Has the link write: point, value, and until when (monotonic)."""


@dataclass(slots=True)
class _Routed:
    """What routes wrote to a point since that was recorded last."""

    source: str
    count: int = 0
    refused: int = 0
    value: Value | None = None
    reason: str | None = None
    """Why the last one was refused; None if it was not."""


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
        self._records_each = records_each
        self._routed: dict[Point, _Routed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._commanded_s: dict[str, float] = {}
        """Point to when a command last wrote it."""
        self._not_safe: dict[str, tuple[WriteOutcome, str | None]] = {}
        """Point to how it ended when its safe value was to be written last, and was not."""

    # --- commands

    def instruct(self, instruction: Instruction) -> None:
        """Take what came on a topic."""
        now_ns = self._clock.wall_ns()
        unread = Command(
            "mqtt", instruction.topic, instruction.actor, instruction.point[:LONGEST_ADDRESS], ""
        )
        try:
            if len(instruction.point) > LONGEST_ADDRESS:
                raise RefusedError("no point has such a long name")
            unread = replace(unread, id=id_of(instruction.payload))
            if instruction.actor == LOCAL:
                raise RefusedError(
                    f"'{LOCAL}' is who is on the gateway's machine, and does not come by topic"
                )
            command = read_command(
                instruction.payload,
                actor=instruction.actor,
                point=instruction.point,
                origin=instruction.topic,
            )
            unread = command
            if instruction.is_retained:
                raise RefusedError(
                    "a retained command is not executed: nobody knows how often it was already"
                )
            self.access.check_signature(
                instruction.actor, instruction.topic, instruction.payload, instruction.signature
            )
            if len(self._tasks) >= MOST_AT_ONCE:
                raise RefusedError("too many commands at once")
        except RefusedError as error:
            answer = Answer(unread, WriteOutcome.REFUSED, str(error), now_ns, now_ns, unread.value)
            self._record(answer)
            self._reply(answer, instruction)
            return

        async def follow() -> None:
            self._reply(await self.execute(command), instruction)

        task = asyncio.get_running_loop().create_task(follow(), name=f"command {command.point}")
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
        received_ns = self._clock.wall_ns()
        lock = self._locks.setdefault(command.point, asyncio.Lock())
        try:
            async with lock:
                outcome, reason, value, old = await self._execute(command)
        except asyncio.CancelledError:
            text = "the gateway stopped meanwhile: whether it was written is not known"
            self._record(
                Answer(command, WriteOutcome.UNKNOWN, text, received_ns, self._clock.wall_ns(), command.value)
            )
            raise
        answer = Answer(command, outcome, reason, received_ns, self._clock.wall_ns(), value)
        if (outcome, reason) == known:
            return answer
        if self._record(answer, old) or outcome not in (*_DONE, WriteOutcome.ARMED):
            return answer
        text = "it was done, but the audit log could not be written any more"
        return Answer(command, outcome, text, received_ns, answer.done_ns, value)

    async def _execute(self, command: Command) -> tuple[WriteOutcome, str | None, Value, Sample | None]:
        if self.audit is not None and command.way != "fallback" and not self._can_record(self.audit):
            text = f"the audit log cannot be written ({self.audit.trouble})"
            return WriteOutcome.REFUSED, text, command.value, None
        now_s = self._clock.monotonic_s()
        now_ns = self._clock.wall_ns()
        try:
            point, value = self.gate.decide(command, now_s, now_ns)
        except ExpiredError as error:
            return WriteOutcome.EXPIRED, str(error), command.value, None
        except RefusedError as error:
            return WriteOutcome.REFUSED, str(error), command.value, None
        old = self._sample_of(point)
        if command.mode == "arm":
            return WriteOutcome.ARMED, None, value, old
        left_s = (command.expires_ns - now_ns) / 1e9 if command.expires_ns else LONGEST_EXPIRY_S
        result = await self._write(point, value, now_s + left_s)
        outcome, reason = result.outcome, result.reason
        if outcome in _DONE:
            if command.way == "fallback":
                self.gate.note(point, value, self._clock.monotonic_s(), now_ns=self._clock.wall_ns())
            else:
                self._commanded_s[point.address] = self._clock.monotonic_s()
        return outcome, None if reason is None else str(reason), result.value, old

    def _can_record(self, audit: Audit) -> bool:
        """Return whether what is done now can be recorded; after a failure that is tried."""
        if not audit.is_ready():
            return False
        return audit.trouble is None or audit.record(
            self._clock.wall_ns(), {"way": "audit", "outcome": "resumed"}
        )

    def _record(self, answer: Answer, old: Sample | None = None) -> bool:
        name = str(answer.outcome)
        self.counters["written" if answer.outcome in _DONE else name] = (
            self.counters.get("written" if answer.outcome in _DONE else name, 0) + 1
        )
        if self.audit is None:
            return True
        command = answer.command
        record: dict[str, Any] = {
            "way": command.way,
            "actor": command.actor,
            "from": command.origin,
            "point": command.point,
            "value": answer.value,
            "old": None if old is None else old.value,
            "outcome": name,
            "reason": answer.reason,
        }
        if command.id:
            record["id"] = command.id
        if command.mode != "write":
            record["mode"] = command.mode
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

    def routed(self, point: Point, source: Point, value: Value | None, refusal: str | None) -> None:
        """Learn that a route has written a point of a machine, or was not allowed to."""
        found = self._routed.get(point)
        if found is None:
            found = self._routed[point] = _Routed(source.address)
        if self._records_each:
            self._record_routed(point, found, value, refusal, 1)
            return
        if refusal is None:
            found.count += 1
            found.value = value
            if found.reason is not None:
                self._record_routed(point, found, value, None, found.count)
                found.reason = None
                found.count = 0
        else:
            found.refused += 1
            if found.reason is None:
                self._record_routed(point, found, value, refusal, found.refused)
                found.refused = 0
            found.reason = refusal

    def sum_up(self) -> None:
        """Record what routes wrote since the last time."""
        for point, found in self._routed.items():
            if found.count:
                self._record_routed(point, found, found.value, None, found.count)
            if found.refused:
                self._record_routed(point, found, None, found.reason or "refused", found.refused)
            found.count = found.refused = 0

    def _record_routed(
        self, point: Point, found: _Routed, value: Value | None, refusal: str | None, count: int
    ) -> None:
        self.counters["written" if refusal is None else "refused"] += count
        if self.audit is None:
            return
        outcome = WriteOutcome.WRITTEN if refusal is None else WriteOutcome.REFUSED
        record = {
            "way": "route", "actor": "route", "from": found.source, "point": point.address, "value": value,
            "outcome": str(outcome) if refusal else "routed", "reason": refusal, "count": count,
        }  # fmt: skip
        self.audit.record(self._clock.wall_ns(), record)

    # --- dead-man

    def commanded_s(self, point: Point) -> float | None:
        """Return when a command last wrote a point; None if none did."""
        return self._commanded_s.get(point.address)

    def is_busy(self, point: Point) -> bool:
        """Return whether a command to a point is under way."""
        lock = self._locks.get(point.address)
        return lock is not None and lock.locked()

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
        self.counters = other.counters
        self._commanded_s = other._commanded_s
        self._not_safe = other._not_safe
        self._locks, self._tasks = other._locks, other._tasks
        other.sum_up()

    def restore(self, points: Mapping[str, Point], guards: Mapping[Point, Guard]) -> None:
        """Learn from the audit log which commands were executed lately, and which budgets are used."""
        if self.audit is None:
            return
        now_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        back_s = max([2 * LONGEST_EXPIRY_S, *(guard.min_interval_s for guard in guards.values())])
        if any(guard.daily_budget for guard in guards.values()):
            back_s = max(back_s, DAY_S)
        since_ns = max(0, now_ns - round(back_s * 1e9))
        for record in self.audit.recent(since_ns):
            try:
                time_ns = parse_time(record["time"])
                age_s = (now_ns - time_ns) / 1e9
                if record.get("id") and record["outcome"] not in ("refused", "expired"):
                    self.gate.remember(
                        record["actor"], record["id"], time_ns + round(2 * LONGEST_EXPIRY_S * 1e9)
                    )
                point = points.get(record.get("point", ""))
                counted = _COUNTED if record.get("way") != "fallback" else _DONE
                if point is not None and record["outcome"] in counted:
                    self.gate.note(point, record["value"], now_s - age_s, record.get("count", 1))
            except (KeyError, ValueError, TypeError):
                continue  # a line that is not ours; `audit verify` tells of it

    async def close(self) -> None:
        """End what is under way, and record what routes wrote."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.sum_up()
