"""From a file to a plant, or to all problems at once.

Rules:

* Everything is looked at even when something before it was wrong, as far as it still makes sense: a
  device whose link is misspelt still has its points checked by the next run, a route to a device
  that has problems of its own is not blamed for them.
* Relative paths start at the config's folder and may not leave it.
* Nothing is opened.
"""

from __future__ import annotations

import difflib
import gc
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fieldbus import __version__
from fieldbus.canbus.database.loading import DatabaseError
from fieldbus.canbus.database.loading import load as load_database
from fieldbus.canbus.layout import Message
from fieldbus.errors import ConfigError, Problem, RefusedError, closest
from fieldbus.gateway.commands.access import Access, Actor, is_match
from fieldbus.gateway.commands.command import fitting
from fieldbus.gateway.commands.gate import Condition, Guard, parse_conditions
from fieldbus.gateway.config.explain import problems_of
from fieldbus.gateway.config.schema import (
    ROUTE_COLUMNS,
    ActorSettings,
    GatewaySettings,
    RouteSettings,
    TopSettings,
)
from fieldbus.gateway.config.source import Mark, Row, Source, read_csv, read_yaml
from fieldbus.gateway.exchange.exchange import PEERS_FOLDER
from fieldbus.gateway.link_types import LINK_TYPES, Assembly, Description, LinkType
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.status_device import status_device, status_units
from fieldbus.gateway.system import DEVICE, Status, device_status, link_status, merge
from fieldbus.link import Link
from fieldbus.modbus.point_settings import MapSettings, PointSettings
from fieldbus.modbus.server_settings import ServerLinkSettings
from fieldbus.model import Kind, Point
from fieldbus.mqtt.peering import PeeringError, decode_birth, taken_over
from fieldbus.mqtt.settings import BrokerSettings, GatewayDeviceSettings
from fieldbus.routing.policy import Edge
from fieldbus.routing.table import Directory, Fault, Route, expand
from fieldbus.settings import GuardSettings, LinkSettings, Secret

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_POINT_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MAP_COLUMNS = ("name", *PointSettings.model_fields)
_MAP_TEXT = frozenset({"name", "unit", "description", "bits", "reference", "scale_from", "only_if"})
DEFAULT_BUDGET = 24
"""Writes a day of a point that is only said to be `non_volatile`: 88 000 in ten years."""
_ROUTE_TEXT = frozenset({"from", "to", "description"})

PathT = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


def load(file: Path, *, needs_secrets: bool = True, previous: Plant | None = None) -> Plant:
    """Read a configuration.

    Args:
        file: the YAML file.
        needs_secrets: whether a secret that cannot be had is a problem, or only a warning.
        previous: the plant that is at work now. What is not changed of it is the very same in the new one:
        links
            with their devices and points, statuses, and routes between them.

    Raises:
        ConfigError: with everything that is wrong.
    """
    is_collecting = gc.isenabled()
    gc.disable()  # nothing of a plant is garbage, and looking for it doubles the time of a large one
    try:
        return _Loader(file, needs_secrets, previous).load()
    finally:
        if is_collecting:
            gc.enable()


class _MapFile:
    """A map that was read, whether it was sound or not."""

    def __init__(
        self,
        source: Source,
        points: Mapping[str, PointSettings],
        scan: float | None = None,
        broken: Iterable[str] = (),
    ) -> None:
        self.source = source
        self.points = points
        self.scan = scan
        self.broken = frozenset(broken)
        """Names of points that were left out because they have problems."""


class _Loader:
    def __init__(self, file: Path, needs_secrets: bool, previous: Plant | None) -> None:
        self._file = file
        self._previous = previous
        self._used: dict[PathT, set[Path]] = {}
        """Files that links and devices are made of, by their place in the configuration."""
        self._secrets: dict[PathT, str] = {}
        self._fingerprints: dict[str, str] = {}
        self._data_dir = Path()
        self._me = ""
        self._guards: dict[Point, Guard] = {}
        self._folder = file.parent
        self._needs_secrets = needs_secrets
        self._problems: list[Problem] = []
        self._source = Source(str(file))
        self._maps: dict[Path, _MapFile] = {}
        self._databases: dict[Path, Sequence[Message]] = {}
        self._map_of: dict[str, _MapFile] = {}
        self._link_settings: Mapping[str, LinkSettings] = {}
        self._memory: Path | None = None
        self._incomplete: set[str] = set()
        """Devices of which something could not be read: what they lack is not their fault."""
        self._unheard: set[str] = set()
        """Other gateways that were never heard: their points are not known yet."""

    def load(self) -> Plant:
        self._source = read_yaml(self._file, str(self._file))
        self._problems += self._source.problems
        data = self._source.data
        if not isinstance(data, dict):
            if not self._problems:
                message = "the file has no mapping at its top"
                hint = "it begins with `version: 1`, `gateway:`, `links:`"
                self._problems.append(self._source.problem((), message, hint))
            raise ConfigError(self._problems)
        data = {key: value for key, value in data.items() if not str(key).startswith("x-")}
        top = self._validate(self._source, (), data, TopSettings)
        gateway = top.gateway if top else self._part(data, "gateway", GatewaySettings)
        if gateway is not None:
            self._data_dir = self._folder / gateway.data_dir
            self._memory = self._data_dir / "learned"
            self._me = gateway.name
            self._compare(gateway)
        links, types = self._links(_mapping(data.get("links")))
        self._link_settings = links
        devices, link_of, broken = self._devices(_mapping(data.get("devices")), types)
        routes, places = self._routes(data.get("routes"))
        built, statuses, device_statuses, edges = self._connect(
            gateway.name if gateway else "?", links, types, devices, link_of, broken, routes, places,
            _mapping(data.get("guards")),
        )  # fmt: skip
        access = self._access(data.get("access"), devices)
        self._check_exposure(links, devices, link_of)
        warnings = [problem for problem in self._problems if problem.is_warning]
        if len(warnings) < len(self._problems) or gateway is None:
            raise ConfigError(sorted(self._problems, key=_place))
        points = {point.address: point for item in devices.values() for point in item.points}
        points |= merge([*statuses.values(), *device_statuses.values()])
        edges = self._same_edges(edges)
        return Plant(
            name=gateway.name,
            file=self._file,
            data_dir=self._folder / gateway.data_dir,
            links=built,
            link_types={name: LINK_TYPES[types[name]] for name in built},
            link_settings=links,
            devices=devices,
            link_of=link_of,
            points=points,
            edges=edges,
            link_status=statuses,
            device_status=device_statuses,
            warnings=warnings,
            access=access,
            guards=self._guards,
            shares={name: item.share for name, item in links.items() if isinstance(item, BrokerSettings)},
            fingerprints=self._fingerprints,
            settings=gateway,
        )

    # --- sections

    def _validate(
        self,
        source: Source,
        path: PathT,
        data: Any,
        model: type[ModelT],
    ) -> ModelT | None:
        try:
            return model.model_validate(data)
        except ValidationError as error:
            self._problems += problems_of(source, path, data, model, error)
            return None

    def _validate_sound_part(
        self, source: Source, path: PathT, data: Mapping[str, Any], model: type[ModelT]
    ) -> tuple[ModelT | None, set[str]]:
        """Validate; of data with problems, return what is left without them.

        So that routes and other points can still be checked against the rest.

        Returns:
            The settings, None if not even a part makes sense, and the names of points left out.
        """
        try:
            return model.model_validate(data), set()
        except ValidationError as error:
            self._problems += problems_of(source, path, data, model, error)
            locations = [item["loc"] for item in error.errors(include_url=False)]
        dropped = {str(where[1]) for where in locations if where[0] == "points" and len(where) > 1}
        keys = {where[0] for where in locations} - {"points"}
        rest = {key: value for key, value in data.items() if key not in keys}
        points = _mapping(rest.get("points"))
        if "points" in rest:
            rest["points"] = {name: item for name, item in points.items() if str(name) not in dropped}
        try:
            return model.model_validate(rest), dropped
        except ValidationError:
            return None, dropped

    def _part(self, data: Mapping[str, Any], key: str, model: type[Any]) -> Any:
        """Validate one part of a whole that has problems already, without repeating them."""
        try:
            return model.model_validate(data.get(key))
        except ValidationError:
            return None

    def _links(self, data: Mapping[Any, Any]) -> tuple[dict[str, LinkSettings], dict[str, str]]:
        links: dict[str, LinkSettings] = {}
        types: dict[str, str] = {}
        for name, item in data.items():
            path = ("links", name)
            if not self._is_name(name, path, "link") or not self._is_mapping(item, path):
                continue
            type_ = item.get("type")
            if type_ not in LINK_TYPES:
                if type_ is None:
                    self._say(path, "'type' is missing", f"one of {', '.join(LINK_TYPES)}")
                else:
                    near = difflib.get_close_matches(str(type_), LINK_TYPES, n=1)
                    hint = closest(str(type_), LINK_TYPES) or f"one of {', '.join(LINK_TYPES)}"
                    self._say((*path, "type"), f"'{type_}' is not a type of link", hint)
                    if near:
                        types[name] = near[0]  # what was meant: go on with it
                continue
            types[name] = type_
            settings = self._validate(self._source, path, item, LINK_TYPES[type_].settings)
            if settings is not None:
                for other in links.values():
                    found = settings.conflict(other)
                    if found is not None:
                        self._say((*path, found[0]), found[1])
                links[name] = settings
        return links, types

    def _devices(
        self, data: Mapping[Any, Any], types: Mapping[str, str]
    ) -> tuple[dict[str, Description], dict[str, str], set[str]]:
        found: dict[str, Description] = {}
        link_of: dict[str, str] = {}
        broken: set[str] = set()
        for name, item in data.items():
            path = ("devices", name)
            if not self._is_name(name, path, "device") or not self._is_mapping(item, path):
                continue
            broken.add(name)
            if name == DEVICE:
                self._say(path, "'sys' is the gateway's own device", "choose another name")
                continue
            link = item.get("link")
            if link not in types:
                if link is None:
                    self._say(path, "'link' is missing", "the name of one of the links")
                    continue
                if link in _mapping(self._source.data.get("links")):
                    continue  # its type cannot be guessed, which has been said
                self._say((*path, "link"), f"there is no link '{link}'", closest(str(link), types))
                near = difflib.get_close_matches(str(link), types, n=1)
                if not near:
                    continue
                link = near[0]
            link_type = LINK_TYPES[types[link]]
            model, describe = link_type.device, link_type.describe
            variant = link_type.variants.get(str(item.get("type")))
            if variant is not None:
                model, describe = variant.settings, variant.describe
            elif "type" in item and link_type.variants:
                names = ", ".join(link_type.variants)
                self._say(
                    (*path, "type"), f"'{item['type']}' is not a type of device", f"{names}, or none at all"
                )
                continue
            if model is None:
                self._say(
                    (*path, "link"), f"{link} is a store, which has no devices", f"`to: {link}` of a route"
                )
                continue
            before = self._error_count()
            settings, dropped = self._validate_sound_part(self._source, path, item, model)
            if self._error_count() > before:
                self._incomplete.add(name)
            if settings is None:
                continue
            broken |= {f"{name}.{point}" for point in dropped}
            for point in _mapping(item.get("points")):
                if not _POINT_NAME.fullmatch(str(point)):
                    self._say((*path, "points", point), f"'{point}' is not a name for a point",
                              "letters, digits, _, - and dots between them")  # fmt: skip
            found[name] = describe(name, settings, self)
            link_of[name] = link
            if name in self._map_of:
                broken |= {f"{name}.{point}" for point in self._map_of[name].broken}
            if found[name].points or (name not in self._incomplete and name not in self._unheard):
                broken.discard(name)  # whole enough for routes to be checked against it
        return found, link_of, broken

    def _check_units(self, devices: Mapping[str, Description], link_of: Mapping[str, str]) -> None:
        seen: dict[tuple[str, int], str] = {}
        for name, item in devices.items():
            unit_id = getattr(item.settings, "unit_id", None)
            if unit_id is None:
                continue
            first = seen.setdefault((link_of[name], unit_id), name)
            if first != name:
                text = f"unit id {unit_id} on {link_of[name]} is {first} already"
                path = ("devices", name, "unit_id")
                self._say(path, text, "two devices on one link differ in `unit_id`")

    def _routes(self, data: Any) -> tuple[list[Route], list[tuple[Source, PathT]]]:
        source = self._source
        prefix: PathT = ("routes",)
        rows: list[Any] = data if isinstance(data, list) else []
        if isinstance(data, str):
            path = self.path(data, ("routes",))
            if path is None:
                return [], []
            source, rows = self._read_routes(path)
            prefix = ()
        routes: list[Route] = []
        places: list[tuple[Source, PathT]] = []
        for index, row in enumerate(rows):
            where = (*prefix, index)
            if not isinstance(row, dict):
                self._problems.append(source.problem(where, "a route is a mapping",
                                                     "{from: …, to: …}"))  # fmt: skip
                continue
            settings = self._validate(source, where, row, RouteSettings)
            if settings is not None:
                routes.append(settings.route())
                places.append((source, where))
        return routes, places

    def _connect(
        self,
        gateway: str,
        links: Mapping[str, LinkSettings],
        types: Mapping[str, str],
        devices: dict[str, Description],
        link_of: dict[str, str],
        broken: set[str],
        routes: list[Route],
        places: list[tuple[Source, PathT]],
        guards: Mapping[Any, Any],
    ) -> tuple[dict[str, Link], dict[str, Status], dict[str, Status], list[Edge]]:
        """Expand the routes, then make the links, which must know what is written to them."""
        # System points exist for routes before their links do; the links come with the same names.
        trial = self._assemble(gateway, links, types, devices, link_of, None)
        statuses = {name: link_status(link) for name, link in trial.items()}
        device_statuses = {
            name: device_status(name, has_response_time=LINK_TYPES[types[link_of[name]]].has_response_time)
            for name, item in devices.items()
            if _has_online(item, LINK_TYPES[types[link_of[name]]])
        }
        for link, unit_id in status_units(links).items():
            status = status_device(link, unit_id, statuses.values(), device_statuses.values())
            where = ("links", link, "status_unit")
            if status.name in devices:
                self._say(where, f"there is a device '{status.name}' already")
                continue
            devices[status.name], link_of[status.name] = status.description, link
            routes += status.routes
            places += [(self._source, where)] * len(status.routes)
        self._check_units(devices, link_of)
        edges, faults, points = self._expand(
            gateway, routes, types, devices, link_of, statuses, device_statuses
        )
        if not self._error_count():
            self._fingerprints = {
                name: self._fingerprint(name, settings, types, devices, link_of, edges)
                for name, settings in links.items()
            }
        kept = self._kept(links, types)
        if kept and self._previous is not None:
            # The same points, so that the same routes between them are the same too.
            for name, link in link_of.items():
                if link in kept:
                    devices[name] = self._previous.devices[name]
                    if name in device_statuses:
                        device_statuses[name] = self._previous.device_status[name]
            statuses |= {name: self._previous.link_status[name] for name in kept}
            edges, faults, points = self._expand(
                gateway, routes, types, devices, link_of, statuses, device_statuses
            )
        remote = {name for name, item in devices.items() if _is_gateway(item)}
        for fault in faults:
            route = routes[fault.route]
            if not self._is_consequence(fault, route, broken):
                source, place = places[fault.route]
                # Another gateway may have other points than when it was last heard: no reason not to start.
                is_remote = bool({route.source.partition(".")[0], route.target.partition(".")[0]} & remote)
                self._problems.append(
                    source.problem(
                        (*place, fault.key),
                        fault.message,
                        fault.hint,
                        is_warning=fault.is_warning or is_remote,
                    )
                )
        self._all_guards(guards, devices, points, edges)
        if self._error_count():
            return {}, statuses, device_statuses, edges
        fresh = {name: item for name, item in links.items() if name not in kept}
        made = self._assemble(gateway, fresh, types, devices, link_of, edges)
        built = {name: kept[name] if name in kept else made[name] for name in links}
        return built, statuses, device_statuses, edges

    def _expand(
        self,
        gateway: str,
        routes: Sequence[Route],
        types: Mapping[str, str],
        devices: Mapping[str, Description],
        link_of: Mapping[str, str],
        statuses: Mapping[str, Status],
        device_statuses: Mapping[str, Status],
    ) -> tuple[list[Edge], list[Fault], dict[str, Point]]:
        points = {point.address: point for item in devices.values() for point in item.points}
        points |= merge([*statuses.values(), *device_statuses.values()])
        directory = Directory(
            gateway=gateway,
            points=points,
            link_of=link_of,
            brokers=frozenset(name for name, type_ in types.items() if LINK_TYPES[type_].has_topics),
            links=frozenset(types),
            subscriptions=_subscriptions(devices, link_of),
            stores=frozenset(name for name, type_ in types.items() if LINK_TYPES[type_].is_store),
            frame_of={point: frame for item in devices.values() for point, frame in item.frames.items()},
        )
        edges, faults = expand(routes, directory)
        return edges, faults, points

    # --- what stays over a reload

    def _compare(self, gateway: GatewaySettings) -> None:
        """Refuse what cannot be changed while the gateway works."""
        before = None if self._previous is None else self._previous.settings
        for key in () if before is None else ("name", "data_dir", "spool"):
            if getattr(before, key) != getattr(gateway, key):
                text = f"`{key}` of the gateway cannot be changed while it runs"
                self._say(("gateway", key), text, "restart it")

    def _kept(self, links: Mapping[str, LinkSettings], types: Mapping[str, str]) -> dict[str, Link]:
        """Return the links of the plant that is at work now that go on as they are."""
        before = self._previous
        if before is None:
            return {}
        return {
            name: before.links[name]
            for name in links
            if name in before.links
            and before.fingerprints.get(name) == self._fingerprints.get(name) is not None
        }

    def _fingerprint(
        self,
        link: str,
        settings: LinkSettings,
        types: Mapping[str, str],
        devices: Mapping[str, Description],
        link_of: Mapping[str, str],
        edges: Sequence[Edge],
    ) -> str:
        """Return what is different when a link has to be made anew."""
        parts: list[object] = [types[link], repr(settings), __version__]
        owners: list[PathT] = [("links", link)]
        for name, item in devices.items():
            if link_of[name] == link:
                parts.append((name, repr(item.settings)))
                owners.append(("devices", name))
        for owner in owners:
            for path in sorted(self._used.get(owner, ())):
                try:
                    parts.append((str(path), hashlib.sha256(path.read_bytes()).hexdigest()))
                except OSError:
                    parts.append((str(path), None))
            parts += [item for place, item in self._secrets.items() if place[:2] == owner]
        if LINK_TYPES[types[link]].depends_on_routes:
            parts.append(
                sorted(edge.source.address for edge in edges if link_of.get(edge.source.device) == link)
            )
            targets = [edge.target.point for edge in edges if edge.target.point is not None]
            parts.append(sorted(point.address for point in targets if link_of.get(point.device) == link))
        if getattr(settings, "status_unit", None) is not None:
            parts.append((sorted(types), sorted(devices)))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _same_edges(self, edges: list[Edge]) -> list[Edge]:
        """Return the routes, as they are at work now where they are the same."""
        if self._previous is None:
            return edges
        before = {edge.configured: edge for edge in self._previous.edges}
        return [before.get(edge.configured, edge) for edge in edges]

    # --- who may write, and what points are protected by

    def _access(self, data: Any, devices: Mapping[str, Description]) -> Access:
        if data is None:
            return Access({}, is_given=False)
        writable = [
            point.address for item in devices.values() for point in item.points if point.access.can_write
        ]
        actors: dict[str, Actor] = {}
        if not isinstance(data, dict):
            self._say(("access",), "a mapping is expected here", "{operator: [press.setpoint]}")
            return Access({})
        for name, item in data.items():
            path = ("access", name)
            if not self._is_name(name, path, "actor"):
                continue
            settings = self._validate(
                self._source, path, {"points": item} if isinstance(item, list) else item, ActorSettings
            )
            if settings is None:
                continue
            for index, pattern in enumerate(settings.points):
                where = (*path, index) if isinstance(item, list) else (*path, "points", index)
                if not any(is_match(pattern, address) for address in writable) and not self._unheard:
                    text = f"'{pattern}' is no point that can be written"
                    hint = closest(pattern, writable) or "`access: readwrite` of a point makes it one"
                    self._problems.append(self._source.problem(where, text, hint, is_warning=True))
            key = self._secret((*path, "key"), settings.key)
            actors[name] = Actor(tuple(settings.points), None if key is None else key.encode())
        return Access(actors)

    def _all_guards(
        self,
        given: Mapping[Any, Any],
        devices: Mapping[str, Description],
        points: Mapping[str, Point],
        edges: Sequence[Edge],
    ) -> None:
        remote = {name for name, item in devices.items() if _is_gateway(item)}
        found: dict[Point, tuple[GuardSettings, PathT]] = {}
        for device, item in devices.items():
            for point, (name, settings) in item.guards.items():
                found[point] = settings, ("devices", device, "points", name)
        for address, item in given.items():
            path: PathT = ("guards", address)
            guard = self._validate(self._source, path, item, GuardSettings)
            target = points.get(str(address))
            if target is None:
                if str(address).partition(".")[0] not in remote:
                    self._say(path, f"there is no point '{address}'", closest(str(address), points))
            elif guard is not None:
                if target in found:
                    self._say(path, "the point has guards where it is described already")
                found[target] = guard, path
        routed = {edge.target.point for edge in edges}
        for point, (settings, path) in found.items():
            for key, text in _guard_faults(point, settings, is_routed=point in routed):
                self._fault_at(point.device, (*path, key) if key else path, text)
            self._guards[point] = self._guard(point, settings, path, points, remote)

    def _guard(
        self,
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
                    conditions = (
                        Condition(None, "==", 0, settings.only_if),
                    )  # never true, until it is known
                else:
                    self._fault_at(point.device, (*path, "only_if"), str(error))
        budget = settings.non_volatile
        return Guard(
            step=settings.step,
            max_change=settings.max_change,
            min_interval_s=settings.min_interval or 0.0,
            daily_budget=DEFAULT_BUDGET if budget is True else budget or None,
            only_if=conditions,
            confirm=settings.confirm,
            fallback_after_s=None if settings.fallback is None else settings.fallback.after,
            fallback_value=None if settings.fallback is None else settings.fallback.value,
        )

    def _fault_at(self, device: str, path: PathT, message: str) -> None:
        """Report a problem at a path of the configuration, or in the map where it really stands."""
        if path[0] == "devices":
            self.fault(device, path[2:], message)
        else:
            self._say(path, message)

    def _check_exposure(
        self,
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
                self._say(("links", link_of[name], "host"), text, hint)

    def _is_consequence(self, fault: Fault, route: Route, broken: set[str]) -> bool:
        """Whether a fault of a route only says again that a device has problems."""
        text = route.source if fault.key == "from" else route.target
        parts = text.split(".")
        if any(".".join(parts[:length]) in broken for length in range(1, len(parts) + 1)):
            return True  # the device, the point, or the array or word of which it is a part
        # A pattern may have lost all that it would have matched.
        return fault.key == "from" and "*" in text and bool(broken)

    def _assemble(
        self,
        gateway: str,
        links: Mapping[str, LinkSettings],
        types: Mapping[str, str],
        devices: Mapping[str, Description],
        link_of: Mapping[str, str],
        edges: Sequence[Edge] | None,
    ) -> dict[str, Link]:
        """Make the links; without edges only on trial, and nothing is said of them."""
        built: dict[str, Link] = {}
        targets = [edge.target.point for edge in edges or () if edge.target.point is not None]
        sources = [edge.source for edge in edges or ()]
        for name, settings in links.items():  # a link with problems has none
            link_type: LinkType = LINK_TYPES[types[name]]
            parts = Assembly(
                name=name,
                settings=settings,
                devices={device: item for device, item in devices.items() if link_of[device] == name},
                targets=targets,
                gateway=gateway,
                version=__version__,
                secret=lambda key, secret, link=name: self.secret(link, key, secret),  # type: ignore[misc]
                file=lambda keys, file, link=name: self.path(file, ("links", link, *keys)),  # type: ignore[misc]
                memory=self._memory,
                data_dir=self._data_dir,
                sources=sources,
                fault=lambda keys, message, hint, link=name: (  # type: ignore[misc]
                    None if edges is None else self._say(("links", link, *keys), message, hint)
                ),
            )
            built[name] = link_type.assemble(parts)
        return built

    # --- what protocols ask for (Surroundings)

    def points_of(
        self,
        device: str,
        settings: Any,
    ) -> tuple[Mapping[str, PointSettings], float | None]:
        """Return a device's own points and those of its map."""
        if settings.map is None:
            return settings.points, None
        path = self.path(settings.map, ("devices", device, "map"))
        if path is None:
            self._incomplete.add(device)
            return settings.points, None
        if path not in self._maps:
            self._maps[path] = self._read_map(path)
        found = self._maps[path]
        self._map_of[device] = found
        if not found.points:
            self._incomplete.add(device)
        return {**found.points, **settings.points}, found.scan

    def database(self, device: str, name: str) -> Sequence[Message]:
        """Return the messages of a database, none if it cannot be read."""
        path = self.path(name, ("devices", device, "database"))
        if path is None:
            self._incomplete.add(device)
            return ()
        if path not in self._databases:
            try:
                found = load_database(path, self._shown(path))
            except DatabaseError as error:
                self._problems.append(error.problem)
                self._databases[path] = ()
                self._incomplete.add(device)
            else:
                self._problems += found.warnings
                self._databases[path] = found.messages
        return self._databases[path]

    def fault(self, device: str, path: Sequence[str | int], message: str, hint: str | None = None) -> None:
        """Report a problem at a path inside a device, or in its map if it stands there."""
        if not path and device in self._incomplete:
            return
        own = ("devices", device, *path)
        found = self._map_of.get(device)
        if found is not None and tuple(path) in found.source.marks and own not in self._source.marks:
            problem = found.source.problem(path, message, hint)
            if problem not in self._problems:  # a map that several devices share complains once
                self._problems.append(problem)
            return
        self._say(own, message, hint)

    def is_serial_line(self, link: str) -> bool:
        """Return whether all units of a link hear each other."""
        return bool(getattr(self._link_settings.get(link), "is_serial_line", False))

    def secret(self, link: str, key: str, secret: Secret | None) -> str | None:
        """Return what a secret refers to."""
        return self._secret(("links", link, *key.split(".")), secret)

    def device_secret(self, device: str, key: str, secret: Secret | None) -> str | None:
        """Return what a secret of a device refers to."""
        return self._secret(("devices", device, key), secret)

    def points_of_gateway(self, device: str, gateway: str) -> Mapping[str, Point]:
        """Return the points of another gateway, as far as it was ever heard."""
        where = ("devices", device)
        if gateway == self._me:
            self._say(where, f"'{gateway}' is this gateway itself", "the name of another one")
            return {}
        file = self._data_dir / PEERS_FOLDER / f"{gateway}.json"
        self._used.setdefault(where, set()).add(file)
        try:
            birth = decode_birth(file.read_bytes(), gateway)
        except FileNotFoundError:
            text = f"gateway '{gateway}' was never heard: its points are not known until it is"
            self._problems.append(self._source.problem(where, text, is_warning=True))
        except (OSError, PeeringError) as error:
            text = f"what is kept of gateway '{gateway}' cannot be read ({error})"
            self._problems.append(self._source.problem(where, text, is_warning=True))
        else:
            return taken_over(birth, device, self._me)
        self._unheard.add(device)
        return {}

    def _secret(self, path: PathT, secret: Secret | None) -> str | None:
        if secret is None:
            return None
        found = self._find_secret(path, secret)
        self._secrets[path] = hashlib.sha256((found or "").encode()).hexdigest()
        return found

    def _find_secret(self, path: PathT, secret: Secret) -> str | None:
        if secret.env is not None:
            value = os.environ.get(secret.env)
            if value is None:
                self._missing_secret(path, f"the environment variable {secret.env} is not set")
            return value
        place = self.path(str(secret.file), (*path, "file"), must_exist=False)
        if place is None:
            return None
        try:
            lines = place.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            self._missing_secret(path, f"the secret's file {secret.file} cannot be read")
            return None
        return lines[0].strip() if lines else ""

    def path(self, name: str, where: PathT, *, must_exist: bool = True) -> Path | None:
        """Return the file that a relative path names, if it may be used."""
        relative = Path(name)
        if relative.is_absolute():
            found = relative
        else:
            found = (self._folder / relative).resolve()
            if not found.is_relative_to(self._folder.resolve()):
                hint = "relative paths start at the config's folder and stay in it"
                self._say(where, f"'{name}' leaves the config's folder", hint)
                return None
        if must_exist and not found.is_file():
            siblings = [item.name for item in found.parent.glob("*")] if found.parent.is_dir() else []
            self._say(where, f"there is no file '{name}'", closest(found.name, siblings))
            return None
        self._used.setdefault(where[:2], set()).add(found)
        return found

    # --- files

    def _read_map(self, path: Path) -> _MapFile:
        shown = self._shown(path)
        if path.suffix.lower() != ".csv":
            source = read_yaml(path, shown)
            self._problems += source.problems
            if not isinstance(source.data, dict):
                if not source.problems:
                    self._problems.append(source.problem((), "a map is a mapping with `points:`"))
                return _MapFile(source, {}, None)
            data = {key: value for key, value in source.data.items() if not str(key).startswith("x-")}
            settings, dropped = self._validate_sound_part(source, (), data, MapSettings)
            for name in _mapping(data.get("points")):
                if not _POINT_NAME.fullmatch(str(name)):
                    text = f"'{name}' is not a name for a point"
                    self._problems.append(source.problem(("points", name), text, at_key=True))
            if settings is None:
                return _MapFile(source, {}, None, dropped)
            return _MapFile(source, settings.points, settings.scan, dropped)
        rows, problems = read_csv(path, shown, _MAP_COLUMNS, _MAP_TEXT)
        self._problems += problems
        source = Source(shown)
        points: dict[str, PointSettings] = {}
        broken: set[str] = set()
        for row in rows:
            name = row.cells.pop("name", None)
            if name is None or not _POINT_NAME.fullmatch(str(name)):
                text = "the row has no name" if name is None else f"'{name}' is not a name for a point"
                self._problems.append(Problem(shown, row.line, 1, "name", text))
                continue
            place = ("points", str(name))
            if place in source.marks:
                text = f"'{name}' stands in line {source.marks[place].line} already"
                self._problems.append(Problem(shown, row.line, 1, "name", text))
                continue
            _mark_row(source, place, row)
            point = self._validate(source, place, row.cells, PointSettings)
            if point is not None:
                points[str(name)] = point
            else:
                broken.add(str(name))
        return _MapFile(source, points, None, broken)

    def _read_routes(self, path: Path) -> tuple[Source, list[Any]]:
        shown = self._shown(path)
        rows, problems = read_csv(path, shown, ROUTE_COLUMNS, _ROUTE_TEXT)
        self._problems += problems
        source = Source(shown)
        for index, row in enumerate(rows):
            _mark_row(source, (index,), row)
        return source, [row.cells for row in rows]

    # --- problems

    def _shown(self, path: Path) -> str:
        try:
            return str(self._folder / path.relative_to(self._folder.resolve()))
        except ValueError:
            return str(path)

    def _say(self, path: PathT, message: str, hint: str | None = None) -> None:
        self._problems.append(self._source.problem(path, message, hint))

    def _missing_secret(self, path: PathT, message: str) -> None:
        problem = self._source.problem(path, message, is_warning=not self._needs_secrets)
        if problem not in self._problems:
            self._problems.append(problem)

    def _error_count(self) -> int:
        return sum(not problem.is_warning for problem in self._problems)

    def _is_name(self, name: object, path: PathT, what: str) -> bool:
        if isinstance(name, str) and _NAME.fullmatch(name):
            return True
        self._say(path, f"'{name}' is not a name for a {what}", "letters, digits, _ and -")
        return False

    def _is_mapping(self, item: object, path: PathT) -> bool:
        if isinstance(item, dict):
            return True
        self._say(path, "a mapping is expected here")
        return False


def _is_gateway(item: Description) -> bool:
    return isinstance(item.settings, GatewayDeviceSettings)


def _has_online(item: Description, link_type: LinkType) -> bool:
    return link_type.has_online if item.has_online is None else item.has_online


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
        if refusal is not None:
            found.append(("fallback", f"its safe value does not fit: {refusal}"))
        elif point.kind is Kind.STRING:
            found.append(("fallback", "text has no safe value"))
    return found


def _mapping(data: object) -> Mapping[Any, Any]:
    return data if isinstance(data, dict) else {}


def _mark_row(source: Source, place: PathT, row: Row) -> None:
    source.marks[place] = source.values[place] = Mark(row.line, 1)
    for key, column in row.columns.items():
        source.marks[*place, key] = source.values[*place, key] = Mark(row.line, column)


def _subscriptions(
    devices: Mapping[str, Description], link_of: Mapping[str, str]
) -> dict[tuple[str, str], list[Point]]:
    found: dict[tuple[str, str], list[Point]] = {}
    for name, item in devices.items():
        for topic, point in item.subscriptions:
            found.setdefault((link_of[name], topic), []).append(point)
    return found


def _place(problem: Problem) -> tuple[str, int, int]:
    return problem.file, problem.line, problem.column
