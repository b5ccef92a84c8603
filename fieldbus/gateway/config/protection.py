"""Who may write, and what points are protected by: from the configuration to `Access` and `Guard`.

Rules: what makes no sense is a problem at its place. A guard that asks for a point of another gateway that
was never heard is never fulfilled, until it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fieldbus.errors import RefusedError, closest
from fieldbus.gateway.commands.access import Access, Actor, is_match
from fieldbus.gateway.commands.command import fitting
from fieldbus.gateway.commands.conditions import Condition, parse_conditions
from fieldbus.gateway.commands.gate import Guard
from fieldbus.gateway.config.reading import PathT, Reading
from fieldbus.gateway.config.schema import ActorSettings
from fieldbus.gateway.link_types import Description
from fieldbus.modbus.server_settings import ServerLinkSettings
from fieldbus.model import Kind, Point
from fieldbus.mqtt.settings import GatewayDeviceSettings
from fieldbus.routing.policy import Edge
from fieldbus.settings import GuardSettings, LinkSettings

DEFAULT_BUDGET = 24
"""Writes a day of a point that is only said to be `non_volatile`: 88 000 in ten years."""


def access_of(reading: Reading, data: Any, devices: Mapping[str, Description]) -> Access:
    """Return who may write what."""
    if data is None:
        return Access({}, is_given=False)
    writable = [point.address for item in devices.values() for point in item.points if point.access.can_write]
    actors: dict[str, Actor] = {}
    if not isinstance(data, dict):
        reading.say(("access",), "a mapping is expected here", "{operator: [press.setpoint]}")
        return Access({})
    for name, item in data.items():
        path = ("access", name)
        if not reading.is_name(name, path, "actor"):
            continue
        settings = reading.validate(
            reading.source, path, {"points": item} if isinstance(item, list) else item, ActorSettings
        )
        if settings is None:
            continue
        for index, pattern in enumerate(settings.points):
            where = (*path, index) if isinstance(item, list) else (*path, "points", index)
            if not any(is_match(pattern, address) for address in writable) and not reading.unheard:
                text = f"'{pattern}' is no point that can be written"
                hint = closest(pattern, writable) or "`access: readwrite` of a point makes it one"
                reading.problems.append(reading.source.problem(where, text, hint, is_warning=True))
        key = reading.key_at((*path, "key"), settings.key)
        actors[name] = Actor(tuple(settings.points), None if key is None else key.encode())
    return Access(actors)


def guards_of(
    reading: Reading,
    given: Mapping[Any, Any],
    devices: Mapping[str, Description],
    points: Mapping[str, Point],
    edges: Sequence[Edge],
) -> dict[Point, Guard]:
    """Return what points are protected by."""
    made: dict[Point, Guard] = {}
    remote = {name for name, item in devices.items() if is_gateway(item)}
    found: dict[Point, tuple[GuardSettings, PathT]] = {}
    for device, item in devices.items():
        for point, (name, settings) in item.guards.items():
            found[point] = settings, ("devices", device, "points", name)
    for address, item in given.items():
        path: PathT = ("guards", address)
        guard = reading.validate(reading.source, path, item, GuardSettings)
        target = points.get(str(address))
        if target is None:
            if str(address).partition(".")[0] not in remote:
                reading.say(path, f"there is no point '{address}'", closest(str(address), points))
        elif guard is not None:
            if target in found:
                reading.say(path, "the point has guards where it is described already")
            found[target] = guard, path
    routed = {edge.target.point for edge in edges}
    for point, (settings, path) in found.items():
        for key, text in _guard_faults(point, settings, is_routed=point in routed):
            reading.fault_at(point.device, (*path, key) if key else path, text)
        made[point] = _guard(reading, point, settings, path, points, remote)
    return made


def _guard(
    reading: Reading,
    point: Point,
    settings: GuardSettings,
    path: PathT,
    points: Mapping[str, Point],
    remote: set[str],
) -> Guard:
    conditions: tuple[Condition, ...] = ()
    if settings.only_if is not None:
        try:
            conditions = parse_conditions(settings.only_if, points)
        except ValueError as error:
            if any(settings.only_if.strip().startswith(f"{name}.") for name in remote):
                conditions = (Condition(None, "==", 0, settings.only_if),)  # never true, until it is known
            else:
                reading.fault_at(point.device, (*path, "only_if"), str(error))
    budget = settings.non_volatile
    return Guard(
        step=settings.step,
        max_change=settings.max_change,
        min_interval_s=settings.min_interval,
        daily_budget=DEFAULT_BUDGET if budget is True else budget or None,
        only_if=conditions,
        confirm=settings.confirm,
        fallback_after_s=None if settings.fallback is None else settings.fallback.after,
        fallback_value=None if settings.fallback is None else settings.fallback.value,
    )


def check_exposure(
    reading: Reading,
    links: Mapping[str, LinkSettings],
    devices: Mapping[str, Description],
    link_of: Mapping[str, str],
) -> None:
    """Refuse what anybody could write who reaches it, unless the configuration says that he may."""
    for name, item in devices.items():
        settings = links.get(link_of[name])
        if not isinstance(settings, ServerLinkSettings) or not settings.is_open_to_anybody:
            continue
        open_points = [part.point.name for part in item.parts if part.is_open_to_masters]
        if open_points:
            text = (
                f"anybody who reaches {settings.host} could write {name}.{open_points[0]}: masters "
                "need not prove who they are"
            )
            hint = "host: 127.0.0.1, `transport: tls`, or `allow_unauthenticated_writes: true`"
            reading.say(("links", link_of[name], "host"), text, hint)


def is_gateway(item: Description) -> bool:
    """Return whether a device is another gateway."""
    return isinstance(item.settings, GatewayDeviceSettings)


def _guard_faults(point: Point, settings: GuardSettings, *, is_routed: bool) -> list[tuple[str, str]]:
    """Return what makes no sense in the guards of a point: key and sentence."""
    found = []
    first = next((name for name in GuardSettings.model_fields if getattr(settings, name)), "")
    if not point.access.can_write:
        found.append((first, f"{point.address} is not written: nothing to guard (access: read)"))
    found += [
        (key, f"{point.address} is {point.kind}, of which there is no `{key}`")
        for key in ("step", "max_change")
        if getattr(settings, key) is not None and not point.kind.is_number
    ]
    if settings.max_change is not None and point.kind.is_number and not point.access.can_read:
        text = f"nobody can read {point.address}, so nobody knows its present value"
        found.append(("max_change", text))
    if settings.confirm and is_routed:
        found.append(("confirm", f"a route writes {point.address}, and a route cannot confirm anything"))
    if settings.fallback is not None:
        try:
            refusal = point.refusal(fitting(point, settings.fallback.value))
        except RefusedError as error:
            refusal = str(error)
        if refusal is None and not _has_room(point, settings.fallback.value):
            refusal = f"{settings.fallback.value} is beyond what its type can express"
        if refusal is not None:
            found.append(("fallback", f"its safe value does not fit: {refusal}"))
        elif point.kind is Kind.STRING:
            found.append(("fallback", "text has no safe value"))
    return found


def _has_room(point: Point, value: object) -> bool:
    """Return whether the type of a point can express a number; of what is no number nothing is said."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low, high = point.lowest, point.highest
    return (low is None or value >= low) and (high is None or value <= high)
