"""The sections of the configuration that belong to no protocol, and the JSON Schema of it all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from fieldbus.gateway.link_types import LINK_TYPES
from fieldbus.modbus.point_settings import MapSettings
from fieldbus.routing.generated import CONSTANT_PERIOD_S, DEFAULT_HIGHEST, SHORTEST_PERIOD_S, Generated
from fieldbus.routing.policy import OnBad, OnUncertain, Policy, When
from fieldbus.routing.table import Route
from fieldbus.scaling import Linear
from fieldbus.settings import (
    Duration,
    FileName,
    GuardSettings,
    Number,
    Scalar,
    Secret,
    Settings,
    Size,
    Substitute,
    problem,
)

_PERCENT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*")
SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"


class SpoolSettings(Settings):
    """What durable routes keep until the other side has it."""

    max_size: Size = Field(
        256 << 20, description="Of all streams together; the oldest samples are dropped first."
    )
    max_age: Duration = Field(7 * 86400.0, description="Older samples are dropped.")
    group_commit: Duration = Field(
        0.1, description="How long a sample waits for others before it is written."
    )


class AuditSettings(Settings):
    """The record of every attempt to write."""

    routes: Literal["summary", "each"] = Field(
        "summary", description="What routes write: a record a minute and point, or one for each write."
    )
    max_size: Size = Field(2 << 30, description="Of all its files; the oldest records are removed first.")


class ActorSettings(Settings):
    """Who may write, and how it is known that it is they."""

    points: list[str] = Field(description="Points, with `*` for any characters.")
    key: Secret | None = Field(None, description="With which its commands have to be signed.")


class GatewaySettings(Settings):
    """Who we are."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = Field(
        description="Used in topics, metrics and logs."
    )
    data_dir: FileName = Field("data", description="Where the gateway keeps what must survive a restart.")
    spool: SpoolSettings = SpoolSettings()
    audit: AuditSettings = AuditSettings()
    description: str = ""


class GeneratedSettings(Settings):
    """A value that the gateway makes itself: exactly one of `constant`, `toggle` and `counter`."""

    constant: Scalar | None = Field(None, description="Always this value.")
    toggle: Duration | None = Field(
        None, description="The period after which the value changes to the other of `values`."
    )
    values: Annotated[list[Scalar], Field(min_length=2, max_length=2)] | None = Field(
        None, description="The two values of a toggle; false and true by default."
    )
    counter: Duration | None = Field(
        None, description="The period after which the number increases by one, from 0."
    )
    max: Annotated[int, Field(ge=1, le=(1 << 53) - 1)] | None = Field(
        None, description="The highest number of a counter, after which comes 0; 65535 by default."
    )
    while_: str | None = Field(
        None, alias="while", description="A point. As long as it is bad, the value is bad too."
    )

    @model_validator(mode="after")
    def _check(self) -> GeneratedSettings:
        given = [name for name in ("constant", "toggle", "counter") if getattr(self, name) is not None]
        if len(given) != 1:
            raise problem("a source that is no point has one of `constant`, `toggle` and `counter`")
        if self.values is not None and self.toggle is None:
            raise problem("`values` are those of a `toggle`")
        if self.max is not None and self.counter is None:
            raise problem("`max` is that of a `counter`")
        if (self.toggle or self.counter or 1.0) < SHORTEST_PERIOD_S:
            raise problem(
                f"a value that changes by itself does so after {SHORTEST_PERIOD_S * 1000:g}ms or more"
            )
        for value in (self.constant, *(self.values or ())):
            if isinstance(value, float) and not math.isfinite(value):
                raise problem(f"{value} is not a value")
        if self.values is not None:
            first, second = self.values
            if isinstance(first, str) != isinstance(second, str):
                raise problem("the two values of a `toggle` are both numbers or both text")
            if first == second:
                raise problem(f"a `toggle` between {first!r} and {second!r} does not alternate")
        return self

    def generated(self) -> Generated:
        """Return the source that this describes."""
        if self.toggle is not None:
            return Generated("toggle", self.toggle, tuple(self.values or (False, True)), self.while_)
        if self.counter is not None:
            highest = DEFAULT_HIGHEST if self.max is None else self.max
            return Generated("counter", self.counter, range(highest + 1), self.while_)
        assert self.constant is not None  # noqa: S101 - one of them is given
        return Generated("constant", CONSTANT_PERIOD_S, (self.constant,), self.while_)


class RouteSettings(Settings):
    """A row of the routing table."""

    from_: str | GeneratedSettings = Field(
        alias="from",
        description="A point, a pattern with `*`, or a value that the gateway makes itself.",
    )
    to: str = Field(description="A writable point, a pattern with {device} and {point}, or LINK:TOPIC.")
    when: Literal["change", "sample"] = "change"
    every: Duration | None = Field(None, description="Repeat at least so often.")
    deadband: Number | str | None = Field(None, description="0.5 in units, or 1% of the source's range.")
    min_interval: Duration | None = None
    scale: Number = 1
    offset: Number = 0
    map: Mapping[Scalar, Scalar] | None = Field(None, description="{old: new}")
    on_bad: Literal["hold", "send"] | Substitute | None = Field(
        None,
        description="Of a bad sample: `hold` sends nothing, `send` sends it, `{value: 0}` replaces it. "
        "By default `send` where the target carries quality, `hold` elsewhere.",
    )
    on_uncertain: Literal["send", "hold", "bad"] = Field(
        "send",
        description="Of an uncertain sample, such as one out of its range: `hold` sends nothing, `bad` "
        "treats it as a bad one.",
    )
    max_age: Duration | None = Field(None, description="An older sample is bad.")
    durable: bool = Field(
        False, description="Whether samples are kept on disk until the other side has them."
    )
    description: str = ""

    @field_validator("deadband")
    @classmethod
    def _check_deadband(cls, deadband: Number | str | None) -> Number | str | None:
        if isinstance(deadband, str) and not _PERCENT.fullmatch(deadband):
            raise problem(f"{deadband!r} is neither a number nor a percentage such as 1%")
        if isinstance(deadband, int | float) and deadband < 0:
            raise problem("a deadband is not negative")
        return deadband

    @field_validator("scale")
    @classmethod
    def _check_scale(cls, scale: Number) -> Number:
        if scale == 0:
            raise problem("scale 0 makes everything 0")
        return scale

    @field_validator("map")
    @classmethod
    def _check_map(cls, table: Mapping[Scalar, Scalar] | None) -> Mapping[Scalar, Scalar] | None:
        if table is not None and not table:
            raise problem("an empty `map` translates nothing")
        return table

    def route(self) -> Route:
        """Return the route that this describes."""
        percent = None
        deadband = self.deadband
        if isinstance(deadband, str):
            percent, deadband = float(deadband.replace("%", "")), None
        substitute, on_bad = None, None
        if isinstance(self.on_bad, Substitute):
            substitute, on_bad = self.on_bad.value, OnBad.HOLD
        elif self.on_bad is not None:
            on_bad = OnBad(self.on_bad)
        policy = Policy(
            when=When(self.when),
            every_s=self.every,
            deadband=deadband,
            min_interval_s=self.min_interval or 0.0,
            linear=Linear(self.scale, self.offset),
            mapping=self.map,
            on_bad=on_bad,
            on_uncertain=OnUncertain(self.on_uncertain),
            substitute=substitute,
            max_age_s=self.max_age,
        )
        if isinstance(self.from_, str):
            return Route(self.from_, self.to, policy, percent, self.durable)
        generated = self.from_.generated()
        return Route(generated.tied or "", self.to, policy, percent, self.durable, generated)


ROUTE_COLUMNS = tuple(item.alias or name for name, item in RouteSettings.model_fields.items())


class TopSettings(Settings):
    """The whole file; links and devices are looked at by their own types."""

    version: Literal[1]
    gateway: GatewaySettings
    links: Mapping[str, Any]
    devices: Mapping[str, Any] = {}
    access: Mapping[str, Any] | None = Field(None, description="Who may write which points.")
    guards: Mapping[str, Any] = Field(default={}, description="What points are protected by, by address.")
    routes: list[Any] | str | None = Field(None, description="The routing table, or a CSV file with it.")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration and, under ``$defs``, of a map."""
    links = tuple(kind.settings for kind in LINK_TYPES.values())
    devices = tuple(
        dict.fromkeys(
            device
            for kind in LINK_TYPES.values()
            for device in (kind.device, *(variant.settings for variant in kind.variants.values()))
            if device is not None
        )
    )
    parts: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for name, types in (
        ("link", links), ("device", devices), ("route", (RouteSettings,)),
        ("gateway", (GatewaySettings,)), ("map", (MapSettings,)), ("guard", (GuardSettings,)),
        ("actor", (ActorSettings,)),
    ):  # fmt: skip
        members = []
        for item in types:
            schema = TypeAdapter(item).json_schema(ref_template="#/$defs/{model}", by_alias=True)
            definitions.update(schema.pop("$defs", {}))
            members.append(schema)
        parts[name] = members[0] if len(members) == 1 else {"anyOf": members}
    definitions.update(parts)
    name_pattern = {"pattern": "^[A-Za-z0-9_-]+$"}
    return {
        "$schema": SCHEMA_URL,
        "title": "fieldbus configuration",
        "type": "object",
        "additionalProperties": False,
        "required": ["version", "gateway", "links"],
        "properties": {
            "version": {"const": 1},
            "gateway": {"$ref": "#/$defs/gateway"},
            "links": {
                "type": "object",
                "propertyNames": name_pattern,
                "additionalProperties": {"$ref": "#/$defs/link"},
            },
            "devices": {
                "type": "object",
                "propertyNames": name_pattern,
                "additionalProperties": {"$ref": "#/$defs/device"},
            },
            "access": {
                "type": "object",
                "description": "Who may write which points: nothing by default.",
                "propertyNames": name_pattern,
                "additionalProperties": {
                    "anyOf": [{"type": "array", "items": {"type": "string"}}, {"$ref": "#/$defs/actor"}]
                },
            },
            "guards": {
                "type": "object",
                "description": "What points are protected by, by address.",
                "additionalProperties": {"$ref": "#/$defs/guard"},
            },
            "routes": {
                "anyOf": [
                    {"type": "array", "items": {"$ref": "#/$defs/route"}},
                    {"type": "string", "description": "A CSV file with the routing table."},
                ]
            },
        },
        "$defs": definitions,
    }
