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

    way: str
    point: Point
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
        self._routed: dict[tuple[str, Point, str], _Routed] = {}

    def wrote(
        self, point: Point, source: Point, value: Value | None, refusal: str | None, way: str = "route"
    ) -> None:
        """Learn that a point was written, or was not allowed to be.

        Args:
            point: which.
            source: of the route; of what follows another value (``then``), the point of that value.
            value: what.
            refusal: why it was not.
            way: ``route`` or ``then``.
        """
        key = way, point, source.address
        found = self._routed.get(key)
        if found is None:
            found = self._routed[key] = _Routed(way, point, source.address)
        if self._records_each:
            self._record_routed(found, value, refusal, 1)
            return
        if refusal is None:
            found.count += 1
            found.value = value
            if found.reason is not None:
                self._record_routed(found, value, None, found.count)
                found.reason = None
                found.count = 0
        else:
            found.refused += 1
            if found.reason is None:
                self._record_routed(found, value, refusal, found.refused)
                found.refused = 0
            found.reason = refusal

    def sum_up(self) -> None:
        """Record what routes wrote since the last time."""
        for found in self._routed.values():
            if found.count:
                self._record_routed(found, found.value, None, found.count)
            if found.refused:
                self._record_routed(found, None, found.reason or "refused", found.refused)
            found.count = found.refused = 0

    def _record_routed(self, found: _Routed, value: Value | None, refusal: str | None, count: int) -> None:
        self.counters["written" if refusal is None else "refused"] += count
        if self._audit is None:
            return
        outcome = WriteOutcome.WRITTEN if refusal is None else WriteOutcome.REFUSED
        record = {
            "way": found.way, "actor": "route", "from": found.source, "point": found.point.address,
            "value": value,
            "outcome": str(outcome) if refusal else "routed", "reason": refusal, "count": count,
        }  # fmt: skip
        self._audit.record(self._clock.wall_ns(), record)
