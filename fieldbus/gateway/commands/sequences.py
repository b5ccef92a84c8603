"""What a device is given after another value (`then`): through the guard, and into the audit log.

Rules:

* It passes the gate as a command does: range, step, interlock, interval and budget of its own point. It needs
  no permission of its own: who may write a point may write what the configuration has follow it.
* What follows a command, and what goes to a point with a budget, has an intent in the log before its value is
  sent, and a record of how it ended. What follows the values of routes is summed up as those are.
* Each names in ``from`` the point that it follows, and in ``after`` the record of the command's intent.

Design: the link knows what follows and when; it asks and tells (`Follower`). Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fieldbus.clock import Clock
from fieldbus.errors import RefusedError
from fieldbus.gateway.commands.attempts import Attempt
from fieldbus.gateway.commands.audit import INTENT, Audit
from fieldbus.gateway.commands.command import Command
from fieldbus.gateway.commands.gate import Gate, outcome_of
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.model import Point, Value

WAY = "then"


class Office(Protocol):
    """The part of the desk that is used here. A reload replaces the desk."""

    gate: Gate
    audit: Audit | None

    def attempt_at(self, point: Point) -> Attempt | None:
        """Return the attempt that a link has for a point now."""

    def followed_route(self, point: Point, after: Point, value: Value) -> None:
        """Sum up what followed the value of a route."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    command: Command
    at_s: float
    """When the gate counted it."""
    intent: int | None
    after: int | None
    """The number of the audit record of the intent of the command that it follows."""


class Sequences:
    """What follows other values, in one gateway."""

    def __init__(
        self,
        office: Callable[[], Office],
        clock: Clock,
        refused: Callable[[Point, Value, str], None],
        actor: str = "route",
    ) -> None:
        """Take what it works with.

        Args:
            office: returns the desk of now.
            clock: the gateway's.
            refused: is told of a value that is not written because of what would follow it, and why.
            actor: who writes what no attempt is known of.
        """
        self._office = office
        self._clock = clock
        self._refused = refused
        self._actor = actor
        self._admitted: dict[str, list[_Admitted]] = {}

    def admit(
        self, point: Point, value: Value, after: tuple[Point, Value], *, is_routed: bool
    ) -> tuple[WriteOutcome, str] | None:
        """Return how it ends if a value must not follow another one; None if it may, and it is counted."""
        office = self._office()
        attempt = office.attempt_at(after[0])
        actor = self._actor if attempt is None else attempt.command.actor
        command = Command(WAY, after[0].address, actor, point.address, value)
        now_s, now_ns = self._clock.monotonic_s(), self._clock.wall_ns()
        try:
            office.gate.decide(command, now_s, now_ns)
        except RefusedError as error:
            self._refused(*after, str(error))
            return outcome_of(error), str(error)
        intent = None
        above = None if attempt is None else attempt.intent
        if office.audit is not None and (not is_routed or office.gate.has_budget(point)):
            intent = office.audit.intend(now_ns, _record_of(command, INTENT, None, above))
            if intent is None:
                office.gate.take_back(command, point, now_s, "not recorded")
                reason = f"the audit log cannot be written ({office.audit.trouble})"
                self._refused(*after, reason)
                return WriteOutcome.REFUSED, reason
        self._admitted.setdefault(point.address, []).append(_Admitted(command, now_s, intent, above))
        return None

    def withdraw(self, point: Point) -> None:
        """Take back the value that was admitted last for a point. It was certainly not sent."""
        item = self._take(point)
        if item is not None:
            office = self._office()
            reason = f"not sent: {item.command.origin} was not written"
            office.gate.take_back(item.command, point, item.at_s, reason)
            if item.intent is not None:
                self._record(item.command, WriteOutcome.REFUSED, reason, item)

    def followed(self, result: WriteResult, after: Point, *, is_routed: bool, was_admitted: bool) -> None:
        """Take how a value ended that followed another one."""
        office, point = self._office(), result.point
        item = self._take(point) if was_admitted else None
        if item is None:  # it is repeated after each value that had to be written by itself
            attempt = office.attempt_at(after)
            actor = self._actor if attempt is None else attempt.command.actor
            command = Command(WAY, after.address, actor, point.address, result.value)
            above = None if attempt is None else attempt.intent
            item = _Admitted(command, self._clock.monotonic_s(), None, above)
            if result.outcome is not WriteOutcome.REFUSED:
                office.gate.note(point, result.value, item.at_s)
        elif result.outcome is WriteOutcome.REFUSED:
            office.gate.take_back(item.command, point, item.at_s, str(result.reason))
        if is_routed and item.intent is None and result.outcome.is_done:
            office.followed_route(point, after, result.value)
        else:
            self._record(item.command, result.outcome, result.reason, item)

    def _take(self, point: Point) -> _Admitted | None:
        items = self._admitted.get(point.address)
        if not items:
            return None
        item = items.pop()
        if not items:
            del self._admitted[point.address]
        return item

    def _record(self, command: Command, outcome: WriteOutcome, reason: str | None, item: _Admitted) -> None:
        audit = self._office().audit
        if audit is not None:
            record = _record_of(command, str(outcome), None if reason is None else str(reason), item.after)
            if item.intent is not None:
                record["intent"] = item.intent
            audit.record(self._clock.wall_ns(), record)


def _record_of(command: Command, outcome: str, reason: str | None, after: int | None) -> dict[str, Any]:
    record = {
        "way": WAY, "actor": command.actor, "from": command.origin, "point": command.point,
        "value": command.value, "outcome": outcome, "reason": reason,
    }  # fmt: skip
    if after is not None:
        record["after"] = after
    return record
