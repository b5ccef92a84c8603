"""Reads and writes straight to the devices, with no gateway running.

Rules: the same links, codecs and guards as in the gateway, for just the points that were asked for. A
point that we serve ourselves is read and written as a master would, at the port that the running
gateway has.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fieldbus.canbus.link import CanLink
from fieldbus.clock import Clock
from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.gateway.commands import audit_sync
from fieldbus.gateway.commands.access import LOCAL
from fieldbus.gateway.commands.attempts import Attempt
from fieldbus.gateway.commands.audit import Audit
from fieldbus.gateway.commands.command import Command
from fieldbus.gateway.commands.gate import Gate
from fieldbus.gateway.commands.recall import restore
from fieldbus.gateway.commands.sequences import Sequences
from fieldbus.gateway.plant import Plant
from fieldbus.link import Link, Regrouped, SequencedLink, WriteOutcome, WriteResult
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.listening import REFUSAL, ModbusListeningLink
from fieldbus.modbus.places import Place, SerialPlace, TcpPlace
from fieldbus.modbus.server import ModbusServerLink
from fieldbus.modbus.units import Unit
from fieldbus.model import Access, Batch, Group, Kind, Point, Quality, Reason, Sample, Value
from fieldbus.mqtt.link import MqttLink

DEFAULT_TIMEOUT_S = 5.0
_LOG = logging.getLogger("fieldbus")


async def read(plant: Plant, points: Sequence[Point], timeout_s: float) -> dict[Point, Sample]:
    """Return a fresh sample of each point; bad, with the reason, where there was none in time."""
    found: dict[Point, Sample] = {}
    by_link: dict[str, list[Point]] = {}
    for point in points:
        by_link.setdefault(plant.link_of[point.device], []).append(point)
    await asyncio.gather(
        *(_read_from(plant, name, members, timeout_s, found) for name, members in by_link.items())
    )
    return found


async def _read_from(
    plant: Plant, name: str, points: Sequence[Point], timeout_s: float, found: dict[Point, Sample]
) -> None:
    try:
        link = _link_for(plant, name, points)
    except LinkDownError as error:
        reason = f"{Reason.NOT_CONNECTED}: {error}"
        found.update({point: Sample(None, Quality.BAD, reason, plant.clock.wall_ns()) for point in points})
        return
    await _read_link(link, points, timeout_s, found, plant.clock)


async def _read_link(
    link: Link, points: Sequence[Point], timeout_s: float, found: dict[Point, Sample], clock: Clock
) -> None:
    place: dict[Point, tuple[Group, int]] = {}

    def regroup(event: object) -> None:
        if event is None or isinstance(event, Regrouped):
            place.update(
                {point: (group, index) for group in link.groups for index, point in enumerate(group.points)}
            )

    regroup(None)
    by_address = {point.address: point for point in place}
    waiting = {point: by_address[point.address] for point in points if point.address in by_address}
    done = asyncio.Event()

    def emit(batch: Batch) -> None:
        for point, own in list(waiting.items()):
            group, index = place[own]
            if group is batch.group:
                found[point] = batch.sample(index)
                # Silence may be followed by an answer; a refusal or a value is the answer.
                if found[point].reason not in (Reason.TIMEOUT, Reason.STALE, Reason.WAITING):
                    del waiting[point]
        if not waiting:
            done.set()

    reason: str = Reason.WAITING
    try:
        async with asyncio.timeout(timeout_s):
            await link.connect()
        running = asyncio.create_task(link.run(emit, regroup))
        ended = asyncio.create_task(done.wait())
        try:
            await asyncio.wait({running, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            for task in (running, ended):
                task.cancel()
            await asyncio.gather(running, ended, return_exceptions=True)
    except TimeoutError:
        reason = Reason.NOT_CONNECTED
    except LinkDownError as error:
        reason = f"{Reason.NOT_CONNECTED}: {error}"
    finally:
        await link.close()
    for point in points:
        found.setdefault(point, Sample(None, Quality.BAD, reason, clock.wall_ns()))


async def write(plant: Plant, values: Mapping[Point, Value], timeout_s: float) -> list[WriteResult]:
    """Write engineering values and say how each ended, in order.

    What the gate asks is asked here too, by values that are read now; how often a point was written before,
    the audit log says. Each attempt is recorded in it, first as an intent, which is on the disk before
    anything is sent. The caller sees to it that no gateway works with the same data folder meanwhile.
    """
    clock = plant.clock
    results: dict[Point, WriteResult] = {}
    by_link: dict[str, dict[Point, Value]] = {}
    samples = await _read_needed(plant, values, timeout_s)
    unknown = Sample(None, Quality.BAD, Reason.WAITING, 0)
    gate = Gate(plant.points, plant.guards, plant.access.may_write, lambda point: samples.get(point, unknown))
    audit = Audit(plant.data_dir / "audit")
    office = _Office(gate, audit)
    is_recorded = audit.is_ready()
    intents: dict[Point, int] = {}
    if is_recorded:
        restore(gate, audit, plant.points, plant.guards, clock)
    for point, value in values.items():
        refusal = None
        try:
            if not is_recorded:
                raise RefusedError(f"the audit log cannot be written ({audit.trouble})")
            command = Command("local", "one-shot", LOCAL, point.address, value)
            gate.decide(command, clock.monotonic_s(), clock.wall_ns())
            number = audit.intend(clock.wall_ns(), _record_of(point, value, samples.get(point)))
            if number is None:
                raise RefusedError(f"the audit log cannot be written ({audit.trouble})")
            intents[point] = number
        except RefusedError as error:
            refusal = str(error)
        if refusal is not None:
            results[point] = WriteResult(point, value, WriteOutcome.REFUSED, refusal)
        else:
            by_link.setdefault(plant.link_of[point.device], {})[point] = value
    _refuse_groups(results, by_link)
    trouble = await audit_sync.settle(audit, timeout_s) if intents else None
    if trouble is not None:
        trouble = f"the audit log cannot be written ({trouble})"
        results |= {
            point: WriteResult(point, values[point], WriteOutcome.REFUSED, trouble) for point in intents
        }
        by_link = {}
    for name, members in ((name, members) for name, members in by_link.items() if members):
        try:
            link = _link_for(plant, name, list(members), is_write=True)
        except LinkDownError as error:
            reason = f"{Reason.NOT_CONNECTED}: {error}"
            failed = WriteOutcome.FAILED
            results |= {point: WriteResult(point, value, failed, reason) for point, value in members.items()}
            continue
        if isinstance(link, SequencedLink):
            link.follower = Sequences(lambda: office, clock, lambda *_: None, LOCAL)
        for result in await _write_link(link, members, timeout_s):
            results[result.point] = result
    for result in results.values():
        _record(audit, result, samples.get(result.point), intents.get(result.point), clock)
    await audit_sync.close(audit)
    return [results[point] for point in values]


@dataclass(slots=True)
class _Office:
    """What `then` is decided and recorded by."""

    gate: Gate
    audit: Audit | None

    def attempt_at(self, point: Point) -> Attempt | None:
        """Return nothing: each write is somebody's on this machine."""
        return None

    def followed_route(self, point: Point, after: Point, value: Value) -> None:
        """There are no routes."""


def _refuse_groups(results: dict[Point, WriteResult], by_link: Mapping[str, dict[Point, Value]]) -> None:
    """Refuse the members of each group of which one was refused: they are written together or not at all."""
    broken = {(point.device, point.group): point for point in results if point.group}
    for members in by_link.values():
        for point, value in list(members.items()):
            culprit = broken.get((point.device, point.group))
            if point.group and culprit is not None:
                text = f"not written: {culprit.name} of the same group ({point.group}) was refused"
                results[point] = WriteResult(point, value, WriteOutcome.REFUSED, text)
                del members[point]


async def _read_needed(plant: Plant, values: Mapping[Point, Value], timeout_s: float) -> dict[Point, Sample]:
    """Read what guards ask for: points of interlocks, and present values."""
    needed: dict[Point, None] = {}
    for point in values:
        guard = plant.guards.get(point)
        if guard is None:
            continue
        needed |= {condition.point: None for condition in guard.only_if if condition.point is not None}
        if guard.max_change is not None and point.access.can_read:
            needed[point] = None
    readable = [point for point in needed if point.device != "sys"]
    return await read(plant, readable, timeout_s) if readable else {}


def _record_of(point: Point, value: Value, old: Sample | None) -> dict[str, Any]:
    return {
        "way": "local", "actor": LOCAL, "from": "one-shot", "point": point.address, "value": value,
        "old": None if old is None else old.value,
    }  # fmt: skip


def _record(audit: Audit, result: WriteResult, old: Sample | None, intent: int | None, clock: Clock) -> None:
    """Record an attempt; a log that cannot be written is said, for nobody would look for it."""
    record = _record_of(result.point, result.value, old)
    record |= {
        "outcome": str(result.outcome), "reason": None if result.reason is None else str(result.reason),
    }  # fmt: skip
    if intent is not None:
        record["intent"] = intent
    if not audit.record(clock.wall_ns(), record):
        _LOG.error("%s cannot be written (%s): this write is not recorded", audit.file, audit.trouble)


async def _write_link(link: Link, values: Mapping[Point, Value], timeout_s: float) -> list[WriteResult]:
    own = {place.address: place for place in link_points(link)}
    names = {own[point.address]: point for point in values}
    outcome = WriteOutcome.FAILED
    try:
        async with asyncio.timeout(timeout_s):
            await link.connect()
        running = asyncio.create_task(link.run(lambda _: None, lambda _: None))
        try:
            await asyncio.sleep(0)
            outcome = WriteOutcome.UNKNOWN  # what was given to the link may have left
            async with asyncio.timeout(timeout_s):
                results = await link.write({own[point.address]: value for point, value in values.items()})
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    except LinkDownError as error:
        reason = f"{Reason.NOT_CONNECTED}: {error}"
        return [WriteResult(point, value, WriteOutcome.FAILED, reason) for point, value in values.items()]
    except TimeoutError:
        return [WriteResult(point, value, outcome, Reason.TIMEOUT) for point, value in values.items()]
    finally:
        await link.close()
    return [result._replace(point=names[result.point]) for result in results]


def link_points(link: Link) -> list[Point]:
    """Return the points that a link of ours can write."""
    if isinstance(link, ModbusClientLink):
        return [item.point for unit in link.units for item in unit.points]
    if isinstance(link, CanLink):
        return [point for message in link.messages for point in message.points.values()]
    if isinstance(link, MqttLink):
        return [place.point for place in link.places] + [
            point for remote in link.remotes for point in remote.points.values()
        ]
    return [point for group in link.groups for point in group.points]


def parse_value(point: Point, text: str) -> Value:
    """Return the value that somebody typed for a point.

    Raises:
        RefusedError: it is none of the point's.
    """
    if point.kind is Kind.STRING:
        return text
    for value, label in point.labels.items():
        if label == text:
            return value
    word = text.strip().lower()
    if point.kind is Kind.BOOL and word in ("true", "on", "false", "off"):
        return word in ("true", "on")
    try:
        number = int(word, 0) if point.kind is not Kind.FLOAT else float(word)
    except ValueError:
        try:
            number = float(word)
        except ValueError:
            names = f", or one of {', '.join(point.labels.values())}" if point.labels else ""
            raise RefusedError(f"'{text}' is not a {point.kind}{names}") from None
    if point.kind is Kind.INT and number != int(number):
        raise RefusedError(f"'{text}' is not a whole number")
    if point.kind is Kind.INT:
        return int(number)
    if point.kind is Kind.BOOL:
        if number not in (0, 1):
            raise RefusedError(f"'{text}' is neither true nor false")
        return bool(number)
    return number


def _link_for(plant: Plant, name: str, points: Sequence[Point], *, is_write: bool = False) -> Link:
    """Return a link of its own for just these points.

    Raises:
        LinkDownError: it cannot be had from here.
    """
    link = plant.links[name]
    wanted = set(points)
    if isinstance(link, ModbusClientLink):
        units = [_unit_for(unit, wanted, is_write=is_write) for unit in link.units]
        return link.aside([unit for unit in units if unit.points])
    if isinstance(link, ModbusListeningLink):
        raise LinkDownError(f"{REFUSAL}; `fieldbus watch` shows what a running gateway hears")
    if isinstance(link, ModbusServerLink):
        as_master = [
            Unit(
                unit.device,
                unit.unit_id,
                [
                    replace(item, point=replace(item.point, access=Access.READWRITE), scan_s=None)
                    for item in unit.points
                    if item.point in wanted
                ],
                scan_s=3600.0,
                timeout_s=2.0,
            )
            for unit in link.units
        ]
        units = [unit for unit in as_master if unit.points]
        return ModbusClientLink(name, _as_masters_see(link), units)
    if isinstance(link, CanLink):
        return link.aside(points, is_write=is_write)
    if isinstance(link, MqttLink):
        return link.aside(f"fieldbus-{os.getpid()}-{name}")
    return link


def _as_masters_see(link: ModbusServerLink) -> Place:
    """Return where masters find what we serve.

    Raises:
        LinkDownError: only those find it that are on the line, or have a certificate.
    """
    place = link.place
    if isinstance(place, SerialPlace):
        raise LinkDownError(f"it is served on {place.port}, for masters on that line; see `watch`")
    if isinstance(place, TcpPlace) and place.tls is not None:
        raise LinkDownError("it is served to masters with a certificate; see `watch`")
    host = "127.0.0.1" if link.host in ("0.0.0.0", "::", "") else link.host  # noqa: S104
    return replace(place, host=host, port=link.port)


def _unit_for(unit: Unit, wanted: set[Point], *, is_write: bool) -> Unit:
    points = [item for item in unit.points if item.point in wanted]
    if not is_write:
        return replace(unit, points=[replace(item, scan_s=None) for item in points])
    # Its other points may be written with them, or after them. Nothing is polled meanwhile.
    return replace(unit, points=unit.points if points else [], is_polled=False)
