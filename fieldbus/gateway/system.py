"""The gateway's own points, ``sys.*``.

They are routed like any other, so that a PLC can read in a register that a CAN node went silent.

=============================================  ======================================================
``sys.<link>.connected``                       whether the link is connected
``sys.<link>.reconnects``                      how often it was connected anew
``sys.<link>.<counter>``                       the link's totals: ``rx_dropped``, ``timeouts`` …
``sys.<link>.<gauge>``                         what it knows of itself: a CAN bus's ``bus_state`` …
``sys.<device>.online``                        whether a polled device or CAN node answers
``sys.<device>.response_time_ms``              of a polled device, its last answer
``sys.<device>.clock_offset_ms``               of another gateway, how far its clock is ahead of ours
=============================================  ======================================================

Rules: what is known at once is told at once (``connected``, ``online``, a changed ``bus_state``); totals
once a second, if they changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import Gauge, GaugedLink, Link
from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, Kind, Point, Reason, Value, bad

DEVICE = "sys"


class Status:
    """One group of system points and their present values."""

    def __init__(self, owner: str, gauges: Mapping[str, Gauge], *, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self.owner = owner
        points = [
            Point(
                DEVICE,
                f"{owner}.{name}",
                gauge.kind,
                unit=gauge.unit,
                lowest=gauge.lowest if gauge.kind.is_number else None,
                highest=gauge.highest,
                labels=gauge.labels,
            )
            for name, gauge in gauges.items()
        ]
        self.group = Group(f"{DEVICE} {owner}", points)
        self._index = {name: index for index, name in enumerate(gauges)}
        self._values: list[Value | None] = [None] * len(points)
        self._told: list[Value | None] | None = None

    def set(self, **values: Value | None) -> None:
        """Change values; None for one that is not known."""
        for name, value in values.items():
            index = self._index.get(name)
            if index is not None:
                self._values[index] = value

    def is_true(self, name: str) -> bool:
        """Return whether a value is true."""
        return self._values[self._index[name]] is True

    def batch(self) -> Batch | None:
        """Return what changed since the last call, or None."""
        told = self._told
        if told == self._values:
            return None
        changed = [index for index, value in enumerate(self._values) if told is None or told[index] != value]
        self._told = list(self._values)
        missing = bad(Reason.NOT_AVAILABLE)
        flaws: Mapping[int, Flaw] = {
            index: missing for index, value in enumerate(self._values) if value is None
        } or NO_FLAWS
        return Batch(self.group, self._clock.wall_ns(), self._clock.monotonic_s(), self._told, flaws, changed)

    def repeated(self) -> Batch:
        """Return what was told last, for who missed it."""
        told = self._values if self._told is None else self._told
        missing = bad(Reason.NOT_AVAILABLE)
        flaws = {index: missing for index, value in enumerate(told) if value is None} or NO_FLAWS
        return Batch(self.group, self._clock.wall_ns(), self._clock.monotonic_s(), told, flaws, ())


_CONNECTED = {"connected": Gauge(Kind.BOOL), "reconnects": Gauge(Kind.INT)}
_ONLINE = {"online": Gauge(Kind.BOOL)}
_RESPONSE_TIME = {"response_time_ms": Gauge(Kind.FLOAT, unit="ms")}
_CLOCK_OFFSET = {"clock_offset_ms": Gauge(Kind.FLOAT, unit="ms", lowest=None)}


def link_status(link: Link, clock: Clock = SYSTEM) -> Status:
    """Return the status of a link, not connected yet."""
    gauges = _CONNECTED | dict.fromkeys(link.counters, Gauge(Kind.INT))
    if isinstance(link, GaugedLink):
        gauges |= link.gauges
    status = Status(link.name, gauges, clock=clock)
    status.set(connected=False, reconnects=0, **link.counters)
    return status


def device_status(
    device: str, *, has_response_time: bool = False, has_clock: bool = False, clock: Clock = SYSTEM
) -> Status:
    """Return the status of a device, not online yet.

    Args:
        device: its name.
        has_response_time: whether it is known how long it takes to respond.
        has_clock: whether it says what time it has.
        clock: the gateway's.
    """
    gauges = _ONLINE | (_RESPONSE_TIME if has_response_time else {}) | (_CLOCK_OFFSET if has_clock else {})
    status = Status(device, gauges, clock=clock)
    status.set(online=False)
    return status


def merge(statuses: Iterable[Status]) -> dict[str, Point]:
    """Return all points by address."""
    return {point.address: point for status in statuses for point in status.group.points}
