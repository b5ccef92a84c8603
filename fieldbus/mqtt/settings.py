"""The configuration of MQTT links and of points on topics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fieldbus.model import Access, Kind, Point
from fieldbus.mqtt.arrivals import CLOCK_TOLERANCE_S
from fieldbus.mqtt.gather import DEFAULT_WINDOW_S
from fieldbus.mqtt.payload import TopicPoint, parse_path
from fieldbus.routing.table import is_topic
from fieldbus.settings import (
    DeviceSettings,
    Duration,
    FileName,
    GuardSettings,
    Host,
    LinkSettings,
    Number,
    Port,
    Secret,
    TlsClientSettings,
    problem,
)

TypeName = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32",
    "float64", "string",
]  # fmt: skip


class BrokerTlsSettings(TlsClientSettings):
    """How the connection to a broker is secured; all by default: ``tls: {}``."""

    ca: FileName | None = Field(  # type: ignore[assignment] # here it need not be said
        None, description="Who signs the broker's certificate; by default those whom this machine trusts."
    )


class BrokerSettings(LinkSettings):
    """A connection to an MQTT 5 broker."""

    type: Literal["mqtt"]
    host: Host
    port: Port | None = Field(None, description="1883 by default, 8883 with TLS.")
    tls: BrokerTlsSettings | None = None
    username: str | None = None
    password: Secret | None = None
    client_id: str | None = None
    keepalive: Duration = 30.0
    qos: Literal[0, 1, 2] = 1
    retain: bool = True
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="Messages that wait at most; the oldest is dropped, and counted."
    )
    share: list[str] = Field(
        default=["*"], description="Points that other gateways may have, with `*` for any characters."
    )
    gather: Duration = Field(
        DEFAULT_WINDOW_S,
        description="How long a message that gathers waits for the rest of its device's points.",
    )
    clock_tolerance: Duration = Field(
        CLOCK_TOLERANCE_S,
        description="How far the time of a sample may lie in the future. A later one is replaced by the time "
        "of its arrival, and the value is uncertain.",
    )


class TopicPointSettings(GuardSettings):
    """A point that others publish, or that we publish for them."""

    topic: str
    type: TypeName = "float64"
    path: str | None = Field(None, description="Where in a JSON payload the value is: data.list[2].x")
    unit: str | None = None
    min: Number | None = None
    max: Number | None = None
    enum: Mapping[int, str] | None = None
    access: Literal["read", "write"] = "read"
    description: str = ""

    @field_validator("topic")
    @classmethod
    def _check_topic(cls, topic: str) -> str:
        if not is_topic(topic):
            raise problem(f"{topic!r} is not one topic: + and # and control characters are not allowed")
        return topic

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is not None:
            try:
                parse_path(path)
            except ValueError as error:
                raise problem(str(error)) from error
        return path

    def build(self, device: str, name: str) -> TopicPoint:
        """Return the point that this describes."""
        kind = Kind.INT
        lowest: float | None = None
        highest: float | None = None
        if self.type in ("bool", "string"):
            kind = Kind(self.type)
        elif self.type.startswith("float"):
            kind = Kind.FLOAT
        else:
            bits = int(self.type.lstrip("uint"))
            is_signed = self.type.startswith("int")
            lowest = -(1 << bits - 1) if is_signed else 0
            highest = (1 << bits - is_signed) - 1
        point = Point(
            device=device,
            name=name,
            kind=kind,
            access=Access(self.access),
            unit=self.unit,
            minimum=self.min,
            maximum=self.max,
            lowest=lowest,
            highest=highest,
            labels=dict(self.enum or {}),
            description=self.description,
            carries_quality=True,
            is_topic=True,
        )
        return TopicPoint(point, self.topic, parse_path(self.path) if self.path else ())


class TopicDeviceSettings(DeviceSettings):
    """Points that live on a broker's topics."""

    points: Mapping[str, TopicPointSettings]


class GatewayDeviceSettings(DeviceSettings):
    """Another gateway on the same broker, with all its points."""

    type: Literal["gateway"]
    gateway: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = Field(
        None, description="Its name; the device's name by default."
    )
    key: Secret | None = Field(None, description="With which our commands to it are signed.")
