"""The configuration of CAN links and of devices that a database describes."""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import can
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from fieldbus.canbus import replay
from fieldbus.canbus.database.encodings import encoding_named
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.address import Name
from fieldbus.canbus.j1939.node import NodeSettings
from fieldbus.canbus.protection_settings import ProtectedSettings
from fieldbus.canbus.replay import ReplaySettings
from fieldbus.errors import closest
from fieldbus.settings import (
    DeviceSettings,
    Duration,
    FileName,
    LinkSettings,
    Settings,
    parse_duration,
    problem,
)

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_PACKAGES = {
    "canalystii": ("canalystii", "canalystii"), "cantact": ("cantact", "cantact"),
    "gs_usb": ("gs_usb", "gs-usb"), "neovi": ("ics", "neovi"), "nixnet": ("nixnet", "nixnet"),
    "udp_multicast": ("msgpack", "multicast"),
}  # fmt: skip
"""Interface to the module without which it does not work, and the extra of python-can that brings it."""
_SOCKETCAN_KEYS = ("receive_buffer",)
_LONGEST_INTERFACE_NAME = 15
SHORTEST_CYCLE_S, LONGEST_CYCLE_S = 0.001, 3600.0


def _percent(text: object) -> float:
    match = _PERCENT.fullmatch(text) if isinstance(text, str) else None
    if match is None or not 0 < float(match[1]) <= 100:
        raise problem(f"{text!r} is not a share such as 30%")
    return float(match[1]) / 100


Percent = Annotated[
    float,
    BeforeValidator(_percent),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)? ?%$", "examples": ["30%"]}),
]
SHORTEST_LATENCY_S, LONGEST_LATENCY_S = 0.001, 0.1


def _latency(data: object) -> float:
    if data == 0 and not isinstance(data, bool):
        return 0.0
    seconds = parse_duration(data)
    if not SHORTEST_LATENCY_S <= seconds <= LONGEST_LATENCY_S:
        raise problem(f"{data} is neither 0 nor between 1ms and 100ms")
    return seconds


Latency = Annotated[
    float,
    BeforeValidator(_latency),
    WithJsonSchema(
        {"anyOf": [{"const": 0}, {"type": "string", "pattern": r"^(\d+(\.\d*)?|\.\d+) ?(us|ms|s)$"}],
         "examples": ["2ms"]}
    ),
]  # fmt: skip
"""Seconds, written with a unit, or 0."""
Address = Annotated[int, Field(ge=0, le=j1939.LAST_ADDRESS)]


class NameSettings(Settings):
    """The NAME by which we claim an address; what is left out is zero, the identity number our own."""

    identity_number: Annotated[int, Field(ge=0, lt=1 << 21)] | None = None
    manufacturer_code: Annotated[int, Field(ge=0, lt=1 << 11)] = 0
    ecu_instance: Annotated[int, Field(ge=0, lt=1 << 3)] = 0
    function_instance: Annotated[int, Field(ge=0, lt=1 << 5)] = 0
    function: Annotated[int, Field(ge=0, le=255)] = 0
    vehicle_system: Annotated[int, Field(ge=0, lt=1 << 7)] = 0
    vehicle_system_instance: Annotated[int, Field(ge=0, lt=1 << 4)] = 0
    industry_group: Annotated[int, Field(ge=0, lt=1 << 3)] = 0
    is_arbitrary_address_capable: bool = Field(
        True, alias="arbitrary_address_capable", description="Whether any free address will do."
    )


class NodeLinkSettings(Settings):
    """How we appear on a J1939 bus, if we send there at all."""

    address: Address = Field(0x80, description="The source address that we would like to have.")
    name: NameSettings = NameSettings()


class CanLinkSettings(LinkSettings):
    """A CAN bus, over any interface of python-can; further keys are handed to it as they are."""

    model_config = ConfigDict(extra="allow")

    type: Literal["can"]
    interface: str = Field(description="socketcan, replay, or as python-can names it: slcan, pcan, vector …")
    channel: str | int | None = Field(None, description="Of `replay`: the log, any format.")
    bitrate: Annotated[int, Field(ge=1000, le=10_000_000)] | None = None
    fd: bool = False
    max_tx_load: Percent | None = Field(
        None, description="How much of the bus we may take; needs `bitrate`. Without it: no limit."
    )
    latency: Latency | None = Field(
        None,
        description="Of `socketcan`: how long frames that come fast may wait to be taken together; 2ms by "
        "default, 0 for not at all. Their stamps are the kernel's all the same.",
    )
    j1939: NodeLinkSettings = NodeLinkSettings()

    def advice(self) -> Iterable[tuple[str, str, str]]:
        """Say which package an interface lacks: python-can comes without those of its drivers."""
        module, extra = _PACKAGES.get(self.interface, (None, ""))
        if module is not None and importlib.util.find_spec(module) is None:
            text = f"the Python package for '{self.interface}' is not installed here"
            yield "interface", text, f"pip install 'python-can[{extra}]'"

    @model_validator(mode="after")
    def _check(self) -> CanLinkSettings:
        further = self.model_extra or {}
        if self.interface not in (*can.VALID_INTERFACES, "replay"):
            near = closest(self.interface, [*can.VALID_INTERFACES, "replay"])
            raise problem(f"python-can has no interface '{self.interface}'" + (f" ({near})" if near else ""))
        allowed = {"socketcan": _SOCKETCAN_KEYS, "replay": replay.KEYS}.get(self.interface)
        for key in further:
            if allowed is not None and key not in allowed:
                near = closest(key, (*type(self).model_fields, *allowed))
                raise problem(f"{self.interface} has no key '{key}'" + (f" ({near})" if near else ""))
        if self.interface in ("socketcan", "replay") and self.channel in (None, ""):
            what = "the log's file" if self.interface == "replay" else "the interface, such as can0"
            raise problem(f"`channel` is missing: {what}")
        if self.interface == "socketcan":
            self._check_socketcan(further)
        elif self.latency is not None:
            raise problem("`latency` is a matter of socketcan: nothing else waits")
        if self.interface == "replay":
            try:
                ReplaySettings.of(self.options())
            except ValueError as error:
                raise problem(str(error)) from None
        if self.max_tx_load is not None and self.bitrate is None:
            raise problem("`max_tx_load` is a share of the `bitrate`, and that is missing")
        return self

    def _check_socketcan(self, further: Mapping[str, Any]) -> None:
        if len(str(self.channel).encode()) > _LONGEST_INTERFACE_NAME:
            raise problem(
                f"'{self.channel}' is no interface: a name has {_LONGEST_INTERFACE_NAME} letters at most"
            )
        size = further.get("receive_buffer", 1)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= 1 << 30:
            raise problem(f"`receive_buffer: {size}` is no number of bytes")

    @property
    def is_stepped(self) -> bool:
        """Whether the gateway's time is a log's."""
        return self.interface == "replay" and (self.model_extra or {}).get("speed") == "stepped"

    def options(self) -> dict[str, object]:
        """Return the arguments for the interface."""
        found: dict[str, object] = {"interface": self.interface, **(self.model_extra or {})}
        if self.channel is not None:
            found["channel"] = self.channel
        if self.bitrate is not None:
            found["bitrate"] = self.bitrate
        if self.fd:
            found["fd"] = True
        if self.latency is not None:
            found["latency"] = self.latency
        return found

    def node(self, gateway: str, link: str) -> NodeSettings:
        """Return how we appear on the bus; the identity number is made from our names."""
        fields = self.j1939.name.model_dump()
        if fields["identity_number"] is None:
            fields["identity_number"] = zlib.crc32(f"{gateway} {link}".encode()) & (1 << 21) - 1
        return NodeSettings(self.j1939.address, Name(**fields))


def _quoted(data: Any) -> Any:
    if isinstance(data, int | float) and not isinstance(data, bool):
        raise problem(f"{data} is read as a number here: write it in quotes, as '{data}'")
    return data


def _or_word(schema: dict[str, Any]) -> None:
    fields = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"const": "pgn"}, fields]


class RequestSettings(Settings):
    """The frame that makes a node send a message; ``pgn`` for J1939's own request."""

    model_config = ConfigDict(json_schema_extra=_or_word)

    id: Annotated[int, Field(ge=0, le=0x1FFFFFFF)] | None = Field(
        None, description="Default: the message's own, for a remote frame."
    )
    extended: bool | None = Field(None, description="Default: whether the id needs 29 bits.")
    data: Annotated[str, BeforeValidator(_quoted)] = Field(
        "", description="Hexadecimal, spaces allowed: 02 01 0C"
    )
    rtr: bool = Field(False, description="A remote frame, instead of data.")
    pgn: bool = Field(False, description="J1939's request for the message's PGN (59904).")

    @model_validator(mode="before")
    @classmethod
    def _word(cls, data: Any) -> Any:
        if isinstance(data, str):
            if data != "pgn":
                raise problem(f"'{data}' is no request: write `pgn`, or {{id: …, data: …}}, or {{rtr: true}}")
            return {"pgn": True}
        return data

    @field_validator("data")
    @classmethod
    def _check_data(cls, data: str) -> str:
        try:
            size = len(bytes.fromhex(data))
        except ValueError:
            raise problem(f"{data!r} is not hexadecimal, such as 02 01 0C") from None
        if size > 64:
            raise problem(f"{size} bytes do not fit a frame")
        return data

    @model_validator(mode="after")
    def _check(self) -> RequestSettings:
        if self.pgn and (self.rtr or self.id is not None or self.data or self.extended is not None):
            raise problem("a request for a PGN has nothing else")
        if self.rtr and self.data:
            raise problem("a remote frame has no data")
        if not self.rtr and not self.pgn and self.id is None:
            raise problem("`id` is missing: which frame asks for the message?")
        if self.extended is False and self.id is not None and self.id > 0x7FF:
            raise problem(f"0x{self.id:X} does not fit the 11 bits of a standard id")
        return self


def _on_bad(data: Any) -> Any:
    if data in ("stop", "not_available"):
        return data
    if not isinstance(data, dict):
        raise problem(f"{data!r} is neither `stop` nor `not_available` nor safe values {{Signal: value}}")
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise problem(f"{name}: {value!r} is no safe value: a number, a label, or `not_available`")
    return data


OnBad = Annotated[
    Any,
    BeforeValidator(_on_bad),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["stop", "not_available"]},
                {"type": "object", "additionalProperties": {"type": ["number", "string"]}},
            ]
        }
    ),
]
"""`stop`, `not_available`, or a mapping of signals to safe values."""


SourceAddress = Annotated[
    int | Literal["any"],
    BeforeValidator(
        lambda data: (
            data
            if data == "any" or (isinstance(data, int) and not isinstance(data, bool) and 0 <= data <= 253)
            else _refuse(f"{data!r} is neither a source address (0 to 253) nor `any`")
        )
    ),
]


def _destination(data: Any) -> Any:
    is_address = isinstance(data, int) and not isinstance(data, bool) and (0 <= data <= 253 or data == 255)
    if not is_address:
        raise problem(f"{data!r} is neither an address (0 to 253) nor 255, which means all")
    return data


def _refuse(text: str) -> Any:
    raise problem(text)


class MessageSettings(ProtectedSettings):
    """How one message of a database is treated."""

    timeout: Duration | None = Field(None, description="Without a frame for so long its points are bad.")
    cycle: Duration | None = Field(
        None, description="Overrides the database's cycle time; 1ms to 1h if we send it."
    )
    request: RequestSettings | None = Field(None, description="For a node that speaks only when asked.")
    scan: Duration | None = Field(None, description="How often it is asked; 1s by default.")
    on_bad: OnBad = Field(
        "stop",
        description="If we send it: what happens while the source of a signal is bad. `stop`: it is not "
        "sent; `not_available`: the signal says so, with all its bits one; or safe values by signal.",
    )
    source_address: SourceAddress | None = Field(None, description="J1939: overrides the device's.")
    destination: Annotated[int, BeforeValidator(_destination)] | None = Field(
        None, description="J1939: to whom we send it, if its PGN has a destination; 255 for all."
    )

    @model_validator(mode="after")
    def _check_scan(self) -> MessageSettings:
        if self.cycle is not None and not SHORTEST_CYCLE_S <= self.cycle <= LONGEST_CYCLE_S:
            raise problem("`cycle` is between 1ms and 1h")
        if self.scan is not None and self.request is None:
            raise problem("`scan` is how often a `request` is sent, and there is none")
        return self


class CanDeviceSettings(DeviceSettings):
    """A node, or a whole bus, described by a database."""

    database: FileName = Field(description="A DBC, KCD, SYM or ARXML file.")
    encoding: str | None = Field(
        None, description="Encoding of the database's text: gbk, cp1252, … Default: what the file says or is."
    )
    protocol: Literal["plain", "j1939"] | None = Field(
        None, description="Default: what the database says. J1939 ids are matched by PGN."
    )
    source_address: SourceAddress | None = Field(
        None, description="J1939: whose messages these are; default: the database's, `any` where it has 254."
    )
    timeout: Duration | None = Field(
        None, description="For messages of which neither database nor rhythm tells when they are overdue."
    )
    messages: Mapping[str, MessageSettings] = {}

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        if encoding is None:
            return None
        found = encoding_named(encoding)
        if found is None:
            raise problem(f"'{encoding[:60]}' is not an encoding of text: utf-8, cp1252, gbk, shift_jis, …")
        return found
