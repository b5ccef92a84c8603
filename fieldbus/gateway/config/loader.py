"""From a file to a plant, or to all problems at once.

Rules:

* Everything is looked at even when something before it was wrong, as far as it still makes sense: a
  device whose link is misspelt still has its points checked by the next run, a route to a device
  that has problems of its own is not blamed for them.
* Nothing is opened.
"""

from __future__ import annotations

import difflib
import gc
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fieldbus import __version__
from fieldbus.clock import Clock
from fieldbus.errors import ConfigError, Problem, closest
from fieldbus.gateway.commands.gate import Guard
from fieldbus.gateway.config.names import POINT_NAME, name_hint
from fieldbus.gateway.config.protection import access_of, check_exposure, guards_of, is_gateway
from fieldbus.gateway.config.reading import PathT, Reading, mapping
from fieldbus.gateway.config.schema import GatewaySettings, RouteSettings, TopSettings
from fieldbus.gateway.config.source import Source, read_yaml
from fieldbus.gateway.link_types import LINK_TYPES, Assembly, Description, LinkType
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.status_device import status_device, status_units
from fieldbus.gateway.system import DEVICE, Status, device_status, link_status, merge
from fieldbus.link import Link
from fieldbus.model import Point
from fieldbus.mqtt.settings import BrokerSettings
from fieldbus.routing.generated import Generator
from fieldbus.routing.policy import Edge
from fieldbus.routing.table import Directory, Fault, Route, expand
from fieldbus.settings import LinkSettings, shown

_MODBUS_TYPES = (
    "modbus-tcp for Ethernet, modbus-rtu for a serial line, modbus-rtu-tcp for a converter between them; "
    "also modbus-tls, modbus-udp, modbus-ascii, modbus-dial-in, modbus-server"
)


def load(
    file: Path, *, needs_secrets: bool = True, previous: Plant | None = None, clock: Clock | None = None
) -> Plant:
    """Read a configuration.

    Args:
        file: the YAML file.
        needs_secrets: whether a secret that cannot be had is a problem, or only a warning.
        previous: the plant that is at work now. What is not changed of it is the very same in the new one:
            links with their devices and points, statuses, and routes between them.
        clock: the gateway's time; without one, that of `previous`, or a new one that shows the machine's.

    Raises:
        ConfigError: with everything that is wrong.
    """
    is_collecting = gc.isenabled()
    gc.disable()  # nothing of a plant is garbage, and looking for it doubles the time of a large one
    try:
        return _Loader(file, needs_secrets, previous, clock).load()
    finally:
        if is_collecting:
            gc.enable()


class _Loader(Reading):
    def __init__(self, file: Path, needs_secrets: bool, previous: Plant | None, clock: Clock | None) -> None:
        super().__init__(file, needs_secrets)
        self._file = file
        self._previous = previous
        self._clock = clock or (Clock() if previous is None else previous.clock)
        self._fingerprints: dict[str, str] = {}
        self._guards: dict[Point, Guard] = {}
        self._memory: Path | None = None
        self._generators: dict[tuple[str, Point | None], Generator] = {}
        if previous is not None:
            self._generators = {(repr(item.generated), item.tied): item for item in previous.generators}

    def load(self) -> Plant:
        self.source = read_yaml(self._file, str(self._file))
        self.problems += self.source.problems
        data = self.source.data
        if not isinstance(data, dict):
            if not self.problems:
                message = "the file has no mapping at its top"
                hint = "it begins with `version: 1`, `gateway:`, `links:`"
                self.problems.append(self.source.problem((), message, hint))
            raise ConfigError(self.problems)
        data = {key: value for key, value in data.items() if not str(key).startswith("x-")}
        top = self.validate(self.source, (), data, TopSettings)
        gateway = top.gateway if top else self._part(data, "gateway", GatewaySettings)
        if gateway is not None:
            self.data_dir = self.folder / gateway.data_dir
            self._memory = self.data_dir / "learned"
            self.me = gateway.name
            self._compare(gateway)
        links, types = self._links(mapping(data.get("links")))
        self.link_settings = links
        devices, link_of, broken = self._devices(mapping(data.get("devices")), types)
        routes, places = self._routes(data.get("routes"))
        built, statuses, device_statuses, edges = self._connect(
            gateway.name if gateway else "?", links, types, devices, link_of, broken, routes, places,
            mapping(data.get("guards")),
        )  # fmt: skip
        access = access_of(self, data.get("access"), devices)
        check_exposure(self, links, devices, link_of)
        warnings = [problem for problem in self.problems if problem.is_warning]
        if len(warnings) < len(self.problems) or gateway is None:
            raise ConfigError(sorted(self.problems, key=_place))
        points = {point.address: point for item in devices.values() for point in item.points}
        points |= merge([*statuses.values(), *device_statuses.values()])
        edges = self._same_edges(edges)
        return Plant(
            name=gateway.name,
            file=self._file,
            data_dir=self.folder / gateway.data_dir,
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
            generators=self._used_generators(edges),
            clock=self._clock,
        )

    # --- sections

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
            if not self.is_name(name, path, "link") or not self.is_mapping(item, path):
                continue
            type_ = item.get("type")
            if not isinstance(type_, str) or type_ not in LINK_TYPES:
                if type_ is None:
                    self.say(path, "'type' is missing", f"one of {', '.join(LINK_TYPES)}")
                elif not isinstance(type_, str):
                    self.say((*path, "type"), "a type of link is a word", f"one of {', '.join(LINK_TYPES)}")
                elif type_ == "modbus":
                    self.say((*path, "type"), "'modbus' says too little", _MODBUS_TYPES)
                    types[name] = "modbus-tcp"  # its devices are alike: go on with it
                else:
                    near = difflib.get_close_matches(str(type_), LINK_TYPES, n=1)
                    hint = closest(str(type_), LINK_TYPES) or f"one of {', '.join(LINK_TYPES)}"
                    self.say((*path, "type"), f"'{type_}' is not a type of link", hint)
                    if near:
                        types[name] = near[0]  # what was meant: go on with it
                continue
            types[name] = type_
            settings = self.validate(self.source, path, item, LINK_TYPES[type_].settings)
            if settings is not None:
                for other in links.values():
                    found = settings.conflict(other)
                    if found is not None:
                        self.say((*path, found[0]), found[1])
                for key, message, hint in settings.advice():
                    self.warn((*path, key), message, hint)
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
            if not self.is_name(name, path, "device") or not self.is_mapping(item, path):
                continue
            broken.add(name)
            if name == DEVICE:
                self.say(path, "'sys' is the gateway's own device", "choose another name")
                continue
            link = self._link_of(item, path, types)
            if link is None:
                continue
            link_type = LINK_TYPES[types[link]]
            model, describe = link_type.device, link_type.describe
            variant = link_type.variants.get(str(item.get("type")))
            if variant is not None:
                model, describe = variant.settings, variant.describe
            elif "type" in item and link_type.variants:
                names = ", ".join(link_type.variants)
                self.say(
                    (*path, "type"), f"'{item['type']}' is not a type of device", f"{names}, or none at all"
                )
                continue
            if model is None:
                self.say(
                    (*path, "link"), f"{link} is a store, which has no devices", f"`to: {link}` of a route"
                )
                continue
            before = self.error_count()
            settings, dropped = self.validate_sound_part(self.source, path, item, model)
            if self.error_count() > before:
                self.incomplete.add(name)
            if settings is None:
                continue
            broken |= {f"{name}.{point}" for point in dropped}
            for point in mapping(item.get("points")):
                if not POINT_NAME.fullmatch(str(point)):
                    text = f"'{point}' is not a name for a point"
                    self.say((*path, "points", point), text, name_hint(point, has_dots=True))
            found[name] = describe(name, settings, self)
            link_of[name] = link
            if name in self.map_of:
                broken |= {f"{name}.{point}" for point in self.map_of[name].broken}
            if found[name].points or (name not in self.incomplete and name not in self.unheard):
                broken.discard(name)  # whole enough for routes to be checked against it
        return found, link_of, broken

    def _link_of(self, device: Mapping[str, Any], path: PathT, types: Mapping[str, str]) -> str | None:
        """Return the link of a device, or the one that was meant; None if there is none, which was said."""
        link = device.get("link")
        if isinstance(link, str) and link in types:
            return link
        if link is None:
            self.say(path, "'link' is missing", "the name of one of the links")
        elif not isinstance(link, str):
            self.say((*path, "link"), "the name of a link is a word")
        elif link not in mapping(self.source.data.get("links")):  # else its type was wrong, and that was said
            self.say((*path, "link"), f"there is no link {shown(link)}", closest(link, types))
            near = difflib.get_close_matches(link, types, n=1)
            return near[0] if near else None
        return None

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
                self.say(path, text, "two devices on one link differ in `unit_id`")

    def _routes(self, data: Any) -> tuple[list[Route], list[tuple[Source, PathT]]]:
        source = self.source
        prefix: PathT = ("routes",)
        rows: list[Any] = data if isinstance(data, list) else []
        if isinstance(data, str):
            path = self.path(data, ("routes",))
            if path is None:
                return [], []
            source, rows = self.read_routes(path)
            prefix = ()
        routes: list[Route] = []
        places: list[tuple[Source, PathT]] = []
        for index, row in enumerate(rows):
            where = (*prefix, index)
            if not isinstance(row, dict):
                self.problems.append(source.problem(where, "a route is a mapping",
                                                     "{from: …, to: …}"))  # fmt: skip
                continue
            settings = self.validate(source, where, row, RouteSettings)
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
        statuses = {name: link_status(link, self._clock) for name, link in trial.items()}
        device_statuses = {
            name: device_status(
                name,
                has_response_time=LINK_TYPES[types[link_of[name]]].has_response_time,
                has_clock=is_gateway(item),
                clock=self._clock,
            )
            for name, item in devices.items()
            if _has_online(item, LINK_TYPES[types[link_of[name]]])
        }
        for link, unit_id in status_units(links).items():
            status = status_device(link, unit_id, statuses.values(), device_statuses.values())
            where = ("links", link, "status_unit")
            if status.name in devices:
                self.say(where, f"there is a device '{status.name}' already")
                continue
            devices[status.name], link_of[status.name] = status.description, link
            routes += status.routes
            places += [(self.source, where)] * len(status.routes)
        self._check_units(devices, link_of)
        edges, faults, points = self._expand(
            gateway, routes, types, devices, link_of, statuses, device_statuses
        )
        if not self.error_count():
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
        remote = {name for name, item in devices.items() if is_gateway(item)}
        for fault in faults:
            route = routes[fault.route]
            if not self._is_consequence(fault, route, broken):
                source, place = places[fault.route]
                # Another gateway may have other points than when it was last heard: no reason not to start.
                is_remote = bool({route.source.partition(".")[0], route.target.partition(".")[0]} & remote)
                self.problems.append(
                    source.problem(
                        (*place, fault.key),
                        fault.message,
                        fault.hint,
                        is_warning=fault.is_warning or is_remote,
                    )
                )
        self._guards = guards_of(self, guards, devices, points, edges)
        if self.error_count():
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
            generators=self._generators,
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
                self.say(("gateway", key), text, "restart it")

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
            for path in sorted(self.used.get(owner, ())):
                try:
                    parts.append((str(path), hashlib.sha256(path.read_bytes()).hexdigest()))
                except OSError:
                    parts.append((str(path), None))
            parts += [item for place, item in self.secrets.items() if place[:2] == owner]
        if LINK_TYPES[types[link]].depends_on_routes:
            parts.append(
                sorted(edge.source.address for edge in edges if link_of.get(edge.source.device) == link)
            )
            tied = [item.tied for item in self._used_generators(edges) if item.tied is not None]
            parts.append(sorted(point.address for point in tied if link_of.get(point.device) == link))
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

    def _used_generators(self, edges: Sequence[Edge]) -> list[Generator]:
        """Return the generated sources of routes."""
        sources = {edge.source for edge in edges}
        return [item for item in self._generators.values() if item.point in sources]

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
        sources += [item.tied for item in self._used_generators(edges or ()) if item.tied is not None]
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
                data_dir=self.data_dir,
                clock=self._clock,
                sources=sources,
                fault=lambda keys, message, hint, link=name: (  # type: ignore[misc]
                    None if edges is None else self.say(("links", link, *keys), message, hint)
                ),
                warn=lambda device, keys, message, hint: (
                    None if edges is None else self.warn(("devices", device, *keys), message, hint)
                ),
            )
            built[name] = link_type.assemble(parts)
        return built


def _has_online(item: Description, link_type: LinkType) -> bool:
    return link_type.has_online if item.has_online is None else item.has_online


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
