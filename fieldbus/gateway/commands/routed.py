"""The audit records of what routes write.

Rules: a record a minute and point, with how many writes there were and the last value; with ``routes: each``
one for every single write. Refusals are recorded when they begin and when they end.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

from fieldbus.clock import Clock
from fieldbus.gateway.commands.audit import Audit
from fieldbus.link import WriteOutcome
from fieldbus.model import Point, Value

ROUTES_PERIOD_S = 60.0


@dataclass(slots=True)
class _Routed:
    """What routes wrote to a point since that was recorded last."""

    source: str
    count: int = 0
    refused: int = 0
    value: Value | None = None
    reason: str | None = None
    """Why the last one was refused; None if it was not."""


class RouteLog:
    """What the routes of one gateway wrote."""

    def __init__(
        self, audit: Audit | None, counters: MutableMapping[str, int], clock: Clock, *, records_each: bool
    ) -> None:
        """Take where it is recorded and counted."""
        self.counters = counters
        self._audit = audit
        self._clock = clock
        self._records_each = records_each
        self._routed: dict[Point, _Routed] = {}

    def wrote(self, point: Point, source: Point, value: Value | None, refusal: str | None) -> None:
        """Learn that a route has written a point, or was not allowed to."""
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
        if self._audit is None:
            return
        outcome = WriteOutcome.WRITTEN if refusal is None else WriteOutcome.REFUSED
        record = {
            "way": "route", "actor": "route", "from": found.source, "point": point.address, "value": value,
            "outcome": str(outcome) if refusal else "routed", "reason": refusal, "count": count,
        }  # fmt: skip
        self._audit.record(self._clock.wall_ns(), record)
