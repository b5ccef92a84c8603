"""What the audit log says of the time before a restart: commands, writes that count, open intents.

Rules:

* The order of records is certain, their times are not: each was stamped by a clock that may have been set.
  So a record whose time lies before that of an earlier one, before there was fieldbus, or after now, happened
  at the latest when the next record was written whose time fits, and now if there is none. A write is taken
  for as young as it can be: a budget is rather used up than renewed.
* A clock that was set while the gateway ran has a record of its own (``"outcome": "clock"``), with what
  counted at that moment by the monotonic clock; it replaces all that was counted before it.
* Nothing waits longer than if it had happened just now, however far a clock was set.
* An intent without an end is open: whether it was done is not known.

Design: one pass over the last two files, from the oldest line on, in which a line is only parsed if it
matters. Reading backwards would be quicker and has to believe the times to know where to stop.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fieldbus.clock import Clock
from fieldbus.gateway.commands import clock_mark
from fieldbus.gateway.commands.audit import INTENT, Audit, last_files, parsed
from fieldbus.gateway.commands.command import LONGEST_EXPIRY_S
from fieldbus.gateway.commands.gate import DAY_S, Gate, Guard
from fieldbus.link import WriteOutcome
from fieldbus.model import Point
from fieldbus.sample_json import iso_time, parse_time

_TIME = re.compile(rb'\{"n":(\d+),"time":"([^"]{20,40})"')
_END_OF = re.compile(rb',"intent":(\d+)[,}]')
_INTENT = f'"outcome":"{INTENT}"'.encode()
_EARLIEST = b"2020"
"""There is no right time before that."""
_MOST_UNDATED = 200_000
"""Records whose time does not fit, one after the other, that are kept until one fits, at most."""

_COUNTED = (
    WriteOutcome.WRITTEN,
    WriteOutcome.VERIFIED,
    WriteOutcome.FAILED,
    WriteOutcome.UNKNOWN,
    "routed",
    INTENT,
)
"""How a write ended that the device may have got."""
_SAFE = tuple(outcome for outcome in WriteOutcome if outcome.is_done)
"""The same of safe values, which are tried until one is written."""
CLOCK_SET_S = 2.0
"""A wall clock that moves by so much against the monotonic one was set."""
_POINTS_AT_ONCE = 500
"""In one record of what counts."""
CLOCK = "clock"
"""The outcome of a record of a clock that was set."""
_OPEN = "the gateway ended before it recorded how this write ended: read the device"
_LOG = logging.getLogger("fieldbus")


class Recalled(NamedTuple):
    """A record, and when it happened at the latest."""

    record: Mapping[str, Any]
    latest_ns: int


def recall(files: Iterable[Path], since_ns: int, now_ns: int) -> tuple[list[Recalled], list[dict[str, Any]]]:
    """Return the records that may have been written since a moment, and all open intents; oldest first.

    Raises:
        OSError: a file cannot be read.
    """
    since, now = iso_time(since_ns).encode(), iso_time(now_ns).encode()
    found: list[Recalled] = []
    undated: list[tuple[bytes, bytes]] = []
    opened: dict[int, bytes] = {}
    highest = _EARLIEST

    def take(lines: Iterable[tuple[bytes, bytes]], latest_ns: int) -> None:
        # What has a time to come is kept: its command can still come again when that time is here.
        is_recent = latest_ns >= since_ns
        found.extend(
            Recalled(record, latest_ns)
            for time, raw in lines
            if (is_recent or time >= since) and (record := parsed(raw)) is not None
        )

    for raw in _lines(files):
        match = _TIME.match(raw)
        if match is None:
            continue
        if _INTENT in raw:
            opened[int(match[1])] = raw
        elif (end := _END_OF.search(raw)) is not None:
            opened.pop(int(end[1]), None)
        time = match[2]
        latest_ns = _moment(time) if highest <= time <= now else None
        if latest_ns is None:
            undated.append((time, raw))
            del undated[:-_MOST_UNDATED]
            continue
        highest = time
        if undated or time >= since:
            take((*undated, (time, raw)), latest_ns)
            undated.clear()
    take(undated, now_ns)
    return found, [record for raw in opened.values() if (record := parsed(raw)) is not None]


def _moment(time: bytes) -> int | None:
    try:
        return parse_time(time.decode())
    except (ValueError, OverflowError):
        return None


def _lines(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            with path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            continue


def restore(
    gate: Gate, audit: Audit, points: Mapping[str, Point], guards: Mapping[Point, Guard], clock: Clock
) -> int:
    """Have a gate know what was decided before a restart; end open intents, and return how many there were.

    Raises:
        OSError: the log cannot be read.
    """
    set_s = clock_mark.shift_s(audit.folder, clock)
    if abs(set_s) < CLOCK_SET_S:
        set_s = 0.0
    # The time that the clock would show if nobody had set it since the records were written.
    now_ns, now_s = clock.wall_ns() - round(set_s * 1e9), clock.monotonic_s()
    back_s = max([2 * LONGEST_EXPIRY_S, *(guard.min_interval_s or 0.0 for guard in guards.values())])
    if any(guard.daily_budget for guard in guards.values()):
        back_s = max(back_s, DAY_S)
    found, opened = recall(last_files(audit.folder), now_ns - round(back_s * 1e9), now_ns)
    ended = {item.record.get("intent") for item in found}
    for item in found:
        if item.record.get("outcome") == INTENT and item.record["n"] in ended:
            continue  # how it ended says more
        with suppress(KeyError, ValueError, TypeError):  # a line that is not ours: `audit verify` tells of it
            _restore_one(gate, item, points, now_s - (now_ns - item.latest_ns) / 1e9, set_s)
    for record in opened:
        _end_open(audit, record, clock.wall_ns())
    if set_s:
        record_set_clock(gate, audit, clock, set_s, "while no gateway ran")
    clock_mark.keep(audit.folder, clock)
    return len(opened)


def record_set_clock(gate: Gate, audit: Audit, clock: Clock, shift_s: float, when: str = "") -> None:
    """Log and record that the wall clock was set, with what counts at this moment."""
    text = f"the clock was set by {shift_s:+.1f} s {when}".rstrip()
    _LOG.warning("%s", text)
    counted = list(gate.counted(clock.monotonic_s()).items())
    for start in range(0, max(1, len(counted)), _POINTS_AT_ONCE):
        record = {
            "way": "audit", "outcome": CLOCK, "reason": text,
            "begins": not start, "counted": dict(counted[start : start + _POINTS_AT_ONCE]),
        }  # fmt: skip
        audit.record(clock.wall_ns(), record)


def _restore_one(gate: Gate, item: Recalled, points: Mapping[str, Point], at_s: float, set_s: float) -> None:
    """Have the gate know one record of something that happened at a moment, monotonic.

    Args:
        gate: what is to know it.
        item: the record.
        points: by address.
        at_s: the moment.
        set_s: by how much the wall clock was set forward since then.
    """
    record, outcome = item.record, item.record["outcome"]
    if outcome == CLOCK:
        if record["begins"]:
            gate.forget_counts()
        for address, counts in record["counted"].items():
            for age_s, count in counts if address in points else ():
                gate.note(points[address], None, at_s - age_s, count)
        return
    if record.get("id") and record.get("proven", True):
        # Its own clock's time says how long it could come again; of two that differ the later one counts.
        latest_ns = max(item.latest_ns, parse_time(record["time"])) + round(max(0.0, set_s) * 1e9)
        until_ns = latest_ns + round(2 * LONGEST_EXPIRY_S * 1e9)
        refusal = (record.get("reason") or str(outcome)) if outcome in ("refused", "expired") else None
        gate.remember(record["actor"], record["id"], until_ns, refusal)
    point = points.get(record.get("point", ""))
    if point is not None and outcome in (_SAFE if record.get("way") == "fallback" else _COUNTED):
        gate.note(point, None, at_s, record.get("count", 1))


def _end_open(audit: Audit, record: Mapping[str, Any], now_ns: int) -> None:
    """Log and record that nobody knows whether something was done."""
    _LOG.warning("%s: unknown outcome of the write of %s by %s: %s",
                 record.get("point"), record.get("value"), record.get("actor"), _OPEN)  # fmt: skip
    kept = {key: record[key] for key in record if key not in ("n", "time", "prev", "hash")}
    kept |= {"outcome": str(WriteOutcome.UNKNOWN), "reason": _OPEN, "intent": record["n"]}
    if not audit.record(now_ns, kept):
        _LOG.error("%s cannot be written (%s): it is told again at the next start",
                   audit.file, audit.trouble)  # fmt: skip
