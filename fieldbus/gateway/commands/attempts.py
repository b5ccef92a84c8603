"""Writes under way: the intent on the disk, then the request, each at most once.

Rules:

* What is written `once` has its intent on the disk before the link gets it. If that cannot be had before its
  time is over, nothing is sent.
* A safe value (`at_once`) waits for no disk. What waits for the disk meanwhile is refused afterwards: it was
  given before the source went silent.
* One write at a time is with the link for one point.
* What was let through and then, for certain, not sent uses up neither interval nor budget.

Design: the order of steps is all that is here. What is allowed the gate decides, also when it is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from fieldbus.clock import Clock
from fieldbus.errors import RefusedError, os_reason
from fieldbus.gateway.commands.audit import INTENT, Audit
from fieldbus.gateway.commands.command import LONGEST_EXPIRY_S, Command
from fieldbus.gateway.commands.disk import Disk
from fieldbus.gateway.commands.gate import Gate, outcome_of
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.model import Point, Sample, Value

DISK_GRACE_S = 0.5
"""For so long a command that waits for the disk counts as one that is about to be written: a safe value does
not overtake it. Memory cards take 300 ms now and then."""
_UNSENT = (WriteOutcome.REFUSED, WriteOutcome.EXPIRED)
"""How a write ended that never left, although it was let through."""

Write = Callable[[Point, Value, float], Awaitable[WriteResult]]
"""Has the link write: point, value, and until when (monotonic)."""


@dataclass(slots=True)
class Attempt:
    """A write under way."""

    command: Command
    received_ns: int
    value: Value
    old: Sample | None = None
    intent: int | None = None
    """The number of its record on the disk."""
    is_sent: bool = False
    """Whether the link has it."""
    waits_since_s: float = 0.0
    """Since when it waits for the disk, if it does."""


class Attempts:
    """All writes of one gateway that are under way."""

    def __init__(self, gate: Gate, audit: Audit | None, write: Write, clock: Clock) -> None:
        """Take what it works with.

        Args:
            gate: decides, also at the moment of sending.
            audit: where intents are recorded; None if nothing is.
            write: has a link write.
            clock: the gateway's.
        """
        self.gate = gate
        self._audit = audit
        self._write = write
        self._clock = clock
        self._wires: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Point to who has the link write it now."""
        self._under_way: dict[str, Attempt] = {}
        """Point to the attempt that the link has now."""
        self._waiting: dict[str, list[Attempt]] = {}
        """Point to the attempts that wait for the disk."""
        self._falls: dict[str, int] = {}
        """Point to how often its safe value was to be written."""
        self._disk = None if audit is None else Disk(audit.sync)

    def adopt(self, other: Attempts) -> None:
        """Go on with what others know, after a reload."""
        self._wires, self._under_way, self._falls = other._wires, other._under_way, other._falls
        self._waiting, self._disk = other._waiting, other._disk

    async def on_disk(self) -> None:
        """Return when all records so far are on the disk.

        Raises:
            OSError: they are not.
        """
        if self._disk is not None:
            await self._disk.settled()

    async def close(self) -> None:
        """Wait for no disk any more."""
        if self._disk is not None:
            await self._disk.close()

    async def once(
        self, attempt: Attempt, point: Point, now_s: float, until_s: float
    ) -> tuple[WriteOutcome, str | None]:
        """Have something written at most once: its intent is on the disk before."""
        try:
            trouble = await self._intend(attempt, point, until_s)
            outcome, reason = trouble or await self._send(attempt, point, until_s)
        except asyncio.CancelledError:
            if not attempt.is_sent:
                self.gate.take_back(attempt.command, point, now_s, "the gateway stopped")
            raise
        if outcome in _UNSENT:
            self.gate.take_back(attempt.command, point, now_s, reason or str(outcome))
        return outcome, reason

    async def _intend(
        self, attempt: Attempt, point: Point, until_s: float
    ) -> tuple[WriteOutcome, str | None] | None:
        """Have the intent on the disk; return how the attempt ends if that fails."""
        if self._audit is None or self._disk is None:
            return None
        falls = self._falls.get(point.address, 0)
        attempt.intent = self._audit.intend(self._clock.wall_ns(), record_of(attempt, attempt.value))
        if attempt.intent is None:
            return WriteOutcome.REFUSED, f"the audit log cannot be written ({self._audit.trouble})"
        attempt.waits_since_s = self._clock.monotonic_s()
        waiting = self._waiting.setdefault(point.address, [])
        waiting.append(attempt)
        try:
            async with asyncio.timeout(until_s - self._clock.monotonic_s()):
                await self._disk.settled()
        except TimeoutError:
            return WriteOutcome.EXPIRED, "its record was not on the disk in time"
        except OSError as error:
            reason = os_reason(error)
            return WriteOutcome.REFUSED, f"the audit log cannot be written ({reason})"
        finally:
            waiting[:] = [other for other in waiting if other is not attempt]
            if not waiting:
                self._waiting.pop(point.address, None)
        if self._falls.get(point.address, 0) != falls:
            return WriteOutcome.REFUSED, "the point went to its safe value while this waited for the disk"
        return None

    async def _send(self, attempt: Attempt, point: Point, until_s: float) -> tuple[WriteOutcome, str | None]:
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
                bundle = attempt.command.bundle
                write = self._write if bundle is None else bundle.write
                result = await write(point, attempt.value, until_s)
            finally:
                self._under_way.pop(point.address, None)
        attempt.value = result.value
        return result.outcome, None if result.reason is None else str(result.reason)

    async def at_once(self, attempt: Attempt, point: Point) -> tuple[WriteOutcome, str | None]:
        """Write a safe value; it waits for no disk, and what waits for one is not sent after it."""
        self._falls[point.address] = self._falls.get(point.address, 0) + 1
        return await self._send(attempt, point, self._clock.monotonic_s() + LONGEST_EXPIRY_S)

    def is_busy(self, point: Point) -> bool:
        """Return whether something is being written to a point, or is about to be."""
        lock = self._wires.get(point.address)
        if lock is not None and lock.locked():
            return True
        begun_s = self._clock.monotonic_s() - DISK_GRACE_S
        return any(attempt.waits_since_s > begun_s for attempt in self._waiting.get(point.address, ()))

    def still_allowed(self, point: Point, value: Value) -> tuple[WriteOutcome, str] | None:
        """Return how a write ends that must not be sent now after all; None if it may be sent.

        Links ask this at the moment of sending.
        """
        attempt = self._under_way.get(point.address)
        if attempt is None or attempt.value != value:
            return self._refusal_now(Command("route", "", "route", point.address, value), point, value)
        return self._refusal_now(attempt.command, point, value)

    def attempt_at(self, point: Point) -> Attempt | None:
        """Return the attempt that the link has for a point now."""
        return self._under_way.get(point.address)

    def is_commanded(self, point: Point, value: Value) -> bool:
        """Return whether the link has a value because of an attempt, and not because of a route."""
        attempt = self._under_way.get(point.address)
        return attempt is not None and attempt.value == value

    def _refusal_now(self, command: Command, point: Point, value: Value) -> tuple[WriteOutcome, str] | None:
        try:
            self.gate.still_allowed(command, point, value, self._clock.wall_ns())
        except RefusedError as error:
            return outcome_of(error), str(error)
        return None


def record_of(attempt: Attempt, value: Value) -> dict[str, Any]:
    """Return the audit record of an attempt, as its intent."""
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
