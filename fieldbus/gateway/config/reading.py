"""What a configuration is read from: files, secrets, databases, maps, and all problems found on the way.

Rules:

* Relative paths start at the config's folder and may not leave it.
* Which files and secrets each link and device is made of is kept, so that a change of them is noticed.
* Nothing raises: what is wrong is a problem, and what is left of it goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fieldbus.canbus.database.loading import DatabaseError
from fieldbus.canbus.database.loading import load as load_database
from fieldbus.canbus.layout import Message
from fieldbus.errors import Problem, closest, os_reason
from fieldbus.gateway.config.csv_table import Row, read_csv
from fieldbus.gateway.config.explain import problems_of
from fieldbus.gateway.config.names import NAME, POINT_NAME, name_hint
from fieldbus.gateway.config.schema import ROUTE_COLUMNS
from fieldbus.gateway.config.source import Mark, Source, parse_yaml, read_yaml
from fieldbus.gateway.exchange.exchange import PEERS_FOLDER
from fieldbus.modbus.point_settings import MapSettings, PointSettings
from fieldbus.model import Point
from fieldbus.mqtt.peering import PeeringError, decode_birth, taken_over
from fieldbus.settings import LinkSettings, Secret, file_trouble, shown

_MAP_COLUMNS = ("name", *PointSettings.model_fields)
_MAP_TEXT = frozenset({"name", "unit", "description", "bits", "reference", "scale_from", "only_if"})
_MAP_LISTS = frozenset({"invalid", "flags", "enum"})
_ROUTE_TEXT = frozenset({"from", "to", "description"})
_ROUTE_LISTS = frozenset({"map"})

PathT = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


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


class Reading:
    """One configuration, as it is being read."""

    def __init__(self, file: Path, needs_secrets: bool) -> None:
        self.source = Source(str(file))
        self.problems: list[Problem] = []
        self.folder = file.parent
        self.data_dir = Path()
        self.me = ""
        """The gateway's name."""
        self.used: dict[PathT, set[Path]] = {}
        """Files that links and devices are made of, by their place in the configuration."""
        self.secrets: dict[PathT, str] = {}
        """What tells one secret from another, by place; not the secret."""
        self.link_settings: Mapping[str, LinkSettings] = {}
        self.map_of: dict[str, _MapFile] = {}
        self.incomplete: set[str] = set()
        """Devices of which something could not be read: what they lack is not their fault."""
        self.unheard: set[str] = set()
        """Other gateways that were never heard: their points are not known yet."""
        self._needs_secrets = needs_secrets
        self._maps: dict[Path, _MapFile] = {}
        self._databases: dict[tuple[Path, str | None], Sequence[Message]] = {}

    # --- sections

    def validate(
        self,
        source: Source,
        path: PathT,
        data: Any,
        model: type[ModelT],
    ) -> ModelT | None:
        """Return the settings that data are; None, and the problems reported, if they are none."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            self.problems += problems_of(source, path, data, model, error)
            return None

    def validate_sound_part(
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
            self.problems += problems_of(source, path, data, model, error)
            locations = [item["loc"] for item in error.errors(include_url=False)]
        dropped = {str(where[1]) for where in locations if where[0] == "points" and len(where) > 1}
        keys = {where[0] for where in locations} - {"points"}
        rest = {key: value for key, value in data.items() if key not in keys}
        points = mapping(rest.get("points"))
        if "points" in rest:
            rest["points"] = {name: item for name, item in points.items() if str(name) not in dropped}
        try:
            return model.model_validate(rest), dropped
        except ValidationError:
            return None, dropped

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
            self.incomplete.add(device)
            return settings.points, None
        if path not in self._maps:
            self._maps[path] = self._read_map(path)
        found = self._maps[path]
        self.map_of[device] = found
        if not found.points:
            self.incomplete.add(device)
        return {**found.points, **settings.points}, found.scan

    def database(self, device: str, name: str, encoding: str | None = None) -> Sequence[Message]:
        """Return the messages of a database, none if it cannot be read."""
        path = self.path(name, ("devices", device, "database"))
        if path is None:
            self.incomplete.add(device)
            return ()
        key = (path, encoding)
        if key not in self._databases:
            try:
                found = load_database(path, self._shown(path), encoding)
            except DatabaseError as error:
                self.problems.append(error.problem)
                self._databases[key] = ()
                self.incomplete.add(device)
            else:
                self.problems += found.warnings
                self._databases[key] = found.messages
        return self._databases[key]

    def fault(
        self,
        device: str,
        path: Sequence[str | int],
        message: str,
        hint: str | None = None,
        *,
        is_warning: bool = False,
    ) -> None:
        """Report a problem at a path inside a device, or in its map if it stands there."""
        if not path and device in self.incomplete:
            return
        own = ("devices", device, *path)
        found = self.map_of.get(device)
        is_of_map = found is not None and tuple(path[:2]) in found.source.marks
        if found is not None and is_of_map and own[:4] not in self.source.marks:
            problem = found.source.problem(path, message, hint, is_warning=is_warning)
            if problem not in self.problems:  # a map that several devices share complains once
                self.problems.append(problem)
            return
        self.problems.append(self.source.problem(own, message, hint, is_warning=is_warning))

    def is_serial_line(self, link: str) -> bool:
        """Return whether all units of a link hear each other."""
        return bool(getattr(self.link_settings.get(link), "is_serial_line", False))

    def secret(self, link: str, key: str, secret: Secret | None) -> str | None:
        """Return what a secret refers to."""
        return self.secret_at(("links", link, *key.split(".")), secret)

    def device_secret(self, device: str, key: str, secret: Secret | None) -> str | None:
        """Return what a secret of a device refers to."""
        return self.key_at(("devices", device, key), secret)

    def key_at(self, path: PathT, secret: Secret | None) -> str | None:
        """Return the key that a secret refers to, with which commands are signed; it is never empty."""
        found = self.secret_at(path, secret)
        if found is not None and not found.strip():
            hint = "a long random text in the variable or file that it names"
            self.say(path, "the key is empty: anybody could sign with it", hint)
        return found

    def points_of_gateway(self, device: str, gateway: str) -> Mapping[str, Point]:
        """Return the points of another gateway, as far as it was ever heard."""
        where = ("devices", device)
        if gateway == self.me:
            self.say(where, f"'{gateway}' is this gateway itself", "the name of another one")
            return {}
        file = self.data_dir / PEERS_FOLDER / f"{gateway}.json"
        self.used.setdefault(where, set()).add(file)
        try:
            birth = decode_birth(file.read_bytes(), gateway)
        except FileNotFoundError:
            text = f"gateway '{gateway}' was never heard: its points are not known until it is"
            self.problems.append(self.source.problem(where, text, is_warning=True))
        except (OSError, PeeringError) as error:
            text = f"what is kept of gateway '{gateway}' cannot be read ({error})"
            self.problems.append(self.source.problem(where, text, is_warning=True))
        else:
            return taken_over(birth, device, self.me)
        self.unheard.add(device)
        return {}

    def secret_at(self, path: PathT, secret: Secret | None) -> str | None:
        """Return what the secret at a path of the configuration refers to."""
        if secret is None:
            return None
        found = self._find_secret(path, secret)
        self.secrets[path] = hashlib.sha256((found or "").encode()).hexdigest()
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
        trouble = file_trouble(name)
        if trouble is not None:
            self.say(where, f"{shown(name)}: {trouble}")
            return None
        relative = Path(name)
        try:
            if relative.is_absolute():
                found = relative
            else:
                found = (self.folder / relative).resolve()
                if not found.is_relative_to(self.folder.resolve()):
                    hint = "relative paths start at the config's folder and stay in it"
                    self.say(where, f"{shown(name)} leaves the config's folder", hint)
                    return None
            if must_exist and not found.is_file():
                siblings = [item.name for item in found.parent.glob("*")] if found.parent.is_dir() else []
                self.say(where, f"there is no file {shown(name)}", closest(found.name, siblings))
                return None
        except (OSError, RuntimeError) as error:  # the latter: links that lead in a circle
            reason = os_reason(error) if isinstance(error, OSError) else "links lead in a circle"
            self.say(where, f"{shown(name)} cannot be looked at: {reason}")
            return None
        self.used.setdefault(where[:2], set()).add(found)
        return found

    # --- files

    def _read_map(self, path: Path) -> _MapFile:
        shown = self._shown(path)
        if path.suffix.lower() != ".csv":
            source = read_yaml(path, shown)
            self.problems += source.problems
            if not isinstance(source.data, dict):
                if not source.problems:
                    self.problems.append(source.problem((), "a map is a mapping with `points:`"))
                return _MapFile(source, {}, None)
            data = {key: value for key, value in source.data.items() if not str(key).startswith("x-")}
            settings, dropped = self.validate_sound_part(source, (), data, MapSettings)
            for name in mapping(data.get("points")):
                if not POINT_NAME.fullmatch(str(name)):
                    text = f"'{name}' is not a name for a point"
                    hint = name_hint(name, has_dots=True)
                    self.problems.append(source.problem(("points", name), text, hint, at_key=True))
            if settings is None:
                return _MapFile(source, {}, None, dropped)
            return _MapFile(source, settings.points, settings.scan, dropped)
        rows, problems = read_csv(path, shown, _MAP_COLUMNS, _MAP_TEXT, _MAP_LISTS)
        self.problems += problems
        source = Source(shown)
        points: dict[str, PointSettings] = {}
        broken: set[str] = set()
        for row in rows:
            name = row.cells.pop("name", None)
            if name is None or not POINT_NAME.fullmatch(str(name)):
                text = "the row has no name" if name is None else f"'{name}' is not a name for a point"
                hint = "" if name is None else name_hint(name, has_dots=True)
                self.problems.append(
                    Problem(shown, row.line, row.columns.get("name", 1), "name", text, hint or None)
                )
                continue
            place = ("points", str(name))
            if place in source.marks:
                text = f"'{name}' stands in line {source.marks[place].line} already"
                self.problems.append(Problem(shown, row.line, 1, "name", text))
                continue
            _mark_row(source, place, row)
            point = self.validate(source, place, row.cells, PointSettings)
            if point is not None:
                points[str(name)] = point
            else:
                broken.add(str(name))
        return _MapFile(source, points, None, broken)

    def read_routes(self, path: Path) -> tuple[Source, list[Any]]:
        """Return the rows of a CSV file with routes, and where they stand."""
        shown = self._shown(path)
        rows, problems = read_csv(path, shown, ROUTE_COLUMNS, _ROUTE_TEXT, _ROUTE_LISTS)
        self.problems += problems
        source = Source(shown)
        for index, row in enumerate(rows):
            _mark_row(source, (index,), row)
            text = row.cells.get("from", "")
            if text.startswith("{"):  # no point, but a value that the gateway makes itself
                found = parse_yaml(text, shown)
                self.problems += [source.problem((index, "from"), item.message) for item in found.problems]
                row.cells["from"] = found.data
        return source, [row.cells for row in rows]

    # --- problems

    def _shown(self, path: Path) -> str:
        try:
            return str(self.folder / path.relative_to(self.folder.resolve()))
        except ValueError:
            return str(path)

    def say(self, path: PathT, message: str, hint: str | None = None) -> None:
        """Report a problem at a path of the configuration."""
        self.problems.append(self.source.problem(path, message, hint))

    def warn(self, path: PathT, message: str, hint: str | None = None) -> None:
        """Report what is worth knowing at a path of the configuration."""
        self.problems.append(self.source.problem(path, message, hint, is_warning=True))

    def _missing_secret(self, path: PathT, message: str) -> None:
        problem = self.source.problem(path, message, is_warning=not self._needs_secrets)
        if problem not in self.problems:
            self.problems.append(problem)

    def fault_at(self, device: str, path: PathT, message: str) -> None:
        """Report a problem at a path of the configuration, or in the map where it really stands."""
        if path[0] == "devices":
            self.fault(device, path[2:], message)
        else:
            self.say(path, message)

    def error_count(self) -> int:
        """Return how many problems are none that one can live with."""
        return sum(not problem.is_warning for problem in self.problems)

    def is_name(self, name: object, path: PathT, what: str) -> bool:
        """Return whether something is a name; report it if not."""
        if isinstance(name, str) and NAME.fullmatch(name):
            return True
        self.say(path, f"'{name}' is not a name for a {what}", name_hint(name))
        return False

    def is_mapping(self, item: object, path: PathT) -> bool:
        """Return whether something is a mapping; report it if not."""
        if isinstance(item, dict):
            return True
        self.say(path, "a mapping is expected here")
        return False


def mapping(data: object) -> Mapping[Any, Any]:
    """Return a mapping as it is, and of anything else an empty one."""
    return data if isinstance(data, dict) else {}


def _mark_row(source: Source, place: PathT, row: Row) -> None:
    source.marks[place] = source.values[place] = Mark(row.line, 1)
    for key, column in row.columns.items():
        source.marks[*place, key] = source.values[*place, key] = Mark(row.line, column)
