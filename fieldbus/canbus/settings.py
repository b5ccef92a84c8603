"""The configuration of CAN links and of devices that a database describes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from fieldbus.canbus import deadlines, fault_points, j1939
from fieldbus.canbus.bits import frame_bits
from fieldbus.canbus.j1939_address import Name
from fieldbus.canbus.j1939_node import NodeSettings
from fieldbus.canbus.j1939_signals import as_j1939
from fieldbus.canbus.layout import Condition, Message, Signal
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.messages import GLOBAL_ADDRESS, CanMessage, Guard, Request
from fieldbus.canbus.protection_settings import ProtectedSettings
from fieldbus.errors import ConversionError, closest
from fieldbus.model import Access, Kind, Point, Value
from fieldbus.settings import DeviceSettings, Duration, LinkSettings, Scalar, Settings, problem

Fault = Callable[[Sequence[str | int], str, str | None], None]
"""Reports a problem at a path inside the device: message and hint."""

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_SOCKETCAN_KEYS = ("receive_buffer",)
_LEAST_BITS_PER_S = 150.0
"""A frame a second."""
_REPLAY_KEYS = ("speed", "log_channel", "loop")


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
    j1939: NodeLinkSettings = NodeLinkSettings()

    @model_validator(mode="after")
    def _check(self) -> CanLinkSettings:
        further = self.model_extra or {}
        allowed = {"socketcan": _SOCKETCAN_KEYS, "replay": _REPLAY_KEYS}.get(self.interface)
        for key in further:
            if allowed is not None and key not in allowed:
                known = (*type(self).model_fields, *allowed)
                near = closest(key, known)
                raise problem(f"{self.interface} has no key '{key}'" + (f" ({near})" if near else ""))
        if self.interface in ("socketcan", "replay") and self.channel is None:
            what = "the log's file" if self.interface == "replay" else "the interface, such as can0"
            raise problem(f"`channel` is missing: {what}")
        if self.interface == "replay":
            speed = further.get("speed", 1)
            is_number = isinstance(speed, int | float) and not isinstance(speed, bool)
            if not (is_number and 0 < speed <= 10_000) and speed != "stepped":
                raise problem(f"`speed: {speed}` is neither a factor up to 10000 nor `stepped`")
            if not isinstance(further.get("loop", False), bool):
                raise problem("`loop` is true or false")
        if self.max_tx_load is not None and self.bitrate is None:
            raise problem("`max_tx_load` is a share of the `bitrate`, and that is missing")
        return self

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
        return found

    def node(self, gateway: str, link: str) -> NodeSettings:
        """Return how we appear on the bus; the identity number is made from our names."""
        fields = self.j1939.name.model_dump()
        if fields["identity_number"] is None:
            fields["identity_number"] = zlib.crc32(f"{gateway} {link}".encode()) & (1 << 21) - 1
        return NodeSettings(self.j1939.address, Name(**fields))


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
    data: str = Field("", description="Hexadecimal, spaces allowed: 02 01 0C")
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
    if data in ("stop", "not_available") or isinstance(data, dict):
        return data
    raise problem(f"{data!r} is neither `stop` nor `not_available` nor safe values {{Signal: value}}")


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


def _refuse(text: str) -> Any:
    raise problem(text)


class MessageSettings(ProtectedSettings):
    """How one message of a database is treated."""

    timeout: Duration | None = Field(None, description="Without a frame for so long its points are bad.")
    cycle: Duration | None = Field(None, description="Overrides the database's cycle time.")
    request: RequestSettings | None = Field(None, description="For a node that speaks only when asked.")
    scan: Duration | None = Field(None, description="How often it is asked; 1s by default.")
    on_bad: Annotated[
        Literal["stop", "not_available"] | Mapping[str, Scalar | Literal["not_available"]],
        BeforeValidator(_on_bad),
    ] = Field(
        "stop",
        description="If we send it: what happens while the source of a signal is bad. `stop`: it is not "
        "sent; `not_available`: the signal says so, with all its bits one; or safe values by signal.",
    )
    source_address: SourceAddress | None = Field(None, description="J1939: overrides the device's.")
    destination: Annotated[int, Field(ge=0, le=255)] | None = Field(
        None, description="J1939: to whom we send it, if its PGN has a destination; 255 for all."
    )

    @model_validator(mode="after")
    def _check_scan(self) -> MessageSettings:
        if self.scan is not None and self.request is None:
            raise problem("`scan` is how often a `request` is sent, and there is none")
        return self


class CanDeviceSettings(DeviceSettings):
    """A node, or a whole bus, described by a database."""

    database: str = Field(description="A DBC, KCD, SYM or ARXML file.")
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


def build_messages(
    device: str, settings: CanDeviceSettings, messages: Sequence[Message], fault: Fault
) -> list[CanMessage]:
    """Return the device's messages with their points."""
    none = MessageSettings()
    names = {message.name for message in messages}
    built: list[CanMessage] = []
    for message in messages:
        own = settings.messages.get(message.name) or none
        where = ("messages", message.name)
        built.append(_build(device, settings, own, message, _inside(where, fault)))
    extra: set[str] = set()
    if any(item.is_j1939 for item in built):
        for name, pgn in (("DM1", j1939.ACTIVE_FAULTS), ("DM2", j1939.PREVIOUS_FAULTS)):
            own = settings.messages.get(name) or none
            is_known = name in names or any(
                item.is_j1939 and j1939.pgn_of(item.message.frame_id) == pgn for item in built
            )
            if is_known or (name == "DM2" and own is none):
                continue  # DM2 is only sent on request, so it is there when somebody asks
            extra.add(name)
            built.append(
                _faults_of(device, settings, own, name, pgn, built, _inside(("messages", name), fault))
            )
    for name in settings.messages:
        if messages and name not in names and name not in extra:
            fault(("messages", name), f"the database has no message '{name}'", closest(name, names))
    return built


def _faults_of(
    device: str,
    settings: CanDeviceSettings,
    own: MessageSettings,
    name: str,
    pgn: int,
    others: Sequence[CanMessage],
    fault: Fault,
) -> CanMessage:
    """Return DM1 or DM2 of the device, which databases seldom have."""
    sources = {item.source_address for item in others if item.is_j1939}
    source = next(iter(sources)) if len(sources) == 1 else None
    said = own.source_address if own.source_address is not None else settings.source_address
    if said is not None:
        source = None if said == "any" else said
    message = fault_points.message_of(name, pgn, source)
    return CanMessage(
        device,
        message,
        fault_points.points_of(device, message),
        deadline_s=own.timeout or settings.timeout,
        learns_deadline=own.timeout is None and settings.timeout is None,
        request=_request(settings, own, message, is_j1939=True, fault=fault),
        decoder=fault_points.FaultDecoder,
        is_j1939=True,
        source_address=source,
    )


def _inside(where: Sequence[str | int], fault: Fault) -> Fault:
    return lambda path, message, hint: fault((*where, *path), message, hint)


def _build(
    device: str, settings: CanDeviceSettings, own: MessageSettings, message: Message, fault: Fault
) -> CanMessage:
    is_j1939 = message.is_j1939 if settings.protocol is None else settings.protocol == "j1939"
    is_j1939 = is_j1939 and message.is_extended
    if is_j1939:
        message = as_j1939(message)
    cycle_s = own.cycle or message.cycle_s
    source = _source(settings, own, message) if is_j1939 else None
    guard, owned = _guard(own, message, fault)
    points = {
        signal: _point(device, message, signal, is_ours=signal.name in owned) for signal in message.signals
    }
    limits = _deadlines(settings, own, message, cycle_s)
    return CanMessage(
        device,
        message,
        points,
        deadline_s=settings.timeout if not limits else None,
        branch_deadlines=limits,
        learns_deadline=settings.timeout is None,
        cycle_s=cycle_s,
        request=_request(settings, own, message, is_j1939=is_j1939, fault=fault),
        guard=guard,
        safe=_safe(own, message, fault),
        is_j1939=is_j1939,
        source_address=source,
        destination=_destination(own, message) if is_j1939 else GLOBAL_ADDRESS,
    )


def _source(settings: CanDeviceSettings, own: MessageSettings, message: Message) -> int | None:
    said = own.source_address if own.source_address is not None else settings.source_address
    if said is None:
        said = j1939.source_of(message.frame_id)
    return None if said == "any" or said > j1939.LAST_ADDRESS else said


def _destination(own: MessageSettings, message: Message) -> int:
    if own.destination is not None:
        return own.destination
    return j1939.destination_of(message.frame_id)


def _deadlines(
    settings: CanDeviceSettings, own: MessageSettings, message: Message, cycle_s: float | None
) -> dict[Condition, float]:
    found = {}
    branches = message.branches()
    for condition, signals in branches.items():
        pages = len([other for other in branches if other]) if condition else 1
        limit, _ = deadlines.choose(
            own.timeout, [signal.timeout_s for signal in signals], message.timeout_s, cycle_s, pages
        )
        if limit is not None:
            found[condition] = limit
        elif settings.timeout is not None:
            found[condition] = settings.timeout
    return found


def _request(
    settings: CanDeviceSettings,
    own: MessageSettings,
    message: Message,
    *,
    is_j1939: bool,
    fault: Fault,
) -> Request | None:
    asked = own.request
    if asked is None:
        return None
    if asked.pgn and not is_j1939:
        fault(("request",), "only J1939 messages have a PGN to ask for", "protocol: j1939")
        return None
    frame_id = message.frame_id if asked.id is None else asked.id
    is_extended = asked.extended
    if is_extended is None:
        is_extended = message.is_extended if asked.id is None else frame_id > 0x7FF
    return Request(
        frame_id=frame_id,
        is_extended=is_extended,
        data=bytes.fromhex(asked.data),
        is_remote=asked.rtr,
        scan_s=own.scan or 1.0,
        timeout_s=own.timeout or settings.timeout or (1.25 if asked.pgn else 0.5),
        is_pgn=asked.pgn,
    )


def _guard(
    own: MessageSettings, message: Message, fault: Fault
) -> tuple[Callable[[], Guard] | None, frozenset[str]]:
    """Return what makes the guard of a message, and the signals that are the guard's alone."""
    if not own.is_protected:
        return None, frozenset()
    try:
        make = own.guard(message)
    except ValueError as error:
        fault((), str(error), None)
        return None, frozenset()
    return make, make().owned


def _safe(own: MessageSettings, message: Message, fault: Fault) -> dict[Signal, Value | None]:
    if own.on_bad == "stop":
        return {}
    if own.on_bad == "not_available":
        return {signal: None for signal in message.signals if signal.absent_from is not None}
    by_name = {signal.name: signal for signal in message.signals}
    found: dict[Signal, Value | None] = {}
    for name, value in own.on_bad.items():
        signal = by_name.get(name)
        if signal is None:
            fault(("on_bad", name), f"the message has no signal '{name}'", closest(name, by_name))
            continue
        if value == "not_available":
            if signal.absent_from is None:
                fault(("on_bad", name), "it has no raw value that means `not available`", "a safe value")
            found[signal] = None
            continue
        try:
            signal.to_raw(value)
        except ConversionError as error:
            fault(("on_bad", name), str(error), None)
            continue
        found[signal] = value
    return found


def _point(device: str, message: Message, signal: Signal, *, is_ours: bool) -> Point:
    is_integer = not signal.is_float and signal.linear.is_integer
    lowest, highest = None, None
    if not signal.is_float:
        low, high = signal.raw_range
        if signal.error_from is not None and not signal.is_signed:
            high = min(high, signal.error_from - 1)
        lowest, highest = signal.linear.range_of(low, high)
    forward = signal.linear.forward_int()
    labels = {forward(raw): name for raw, name in signal.labels.items()}
    return Point(
        device=device,
        name=f"{message.name}.{signal.name}",
        kind=Kind.INT if is_integer else Kind.FLOAT,
        access=Access.READ if is_ours else Access.READWRITE,
        unit=signal.unit or None,
        minimum=signal.minimum,
        maximum=signal.maximum,
        lowest=lowest,
        highest=highest,
        labels={value: name for value, name in labels.items() if isinstance(value, int)},
        description=signal.comment,
        carries_quality=True,
    )


def build_link(
    name: str,
    settings: CanLinkSettings,
    messages: Sequence[CanMessage],
    targets: Sequence[Point],
    *,
    gateway: str,
    wanted: Sequence[Point],
    fault: Callable[[Sequence[str], str, str | None], None],
    file: Callable[[Sequence[str], str], Path | None],
) -> CanLink:
    """Return the link for a bus."""
    options = settings.options()
    if settings.interface == "replay":
        options["channel"] = file(("channel",), str(settings.channel))
    budget = None
    if settings.max_tx_load is not None and settings.bitrate is not None:
        cyclic = _check_budget(settings, messages, set(targets), fault)
        # What is sent on change has what the cycles leave, and never nothing at all.
        budget = max((settings.max_tx_load - cyclic) * settings.bitrate, _LEAST_BITS_PER_S)
    return CanLink(
        name,
        options,
        messages,
        targets,
        set(wanted),
        node=settings.node(gateway, name),
        bits_per_s=budget,
    )


def _check_budget(
    settings: CanLinkSettings,
    messages: Sequence[CanMessage],
    targets: set[Point],
    fault: Callable[[Sequence[str], str, str | None], None],
) -> float:
    """Refuse cyclic messages that need more of the bus than we may take; return their share."""
    shares: dict[str, float] = {}
    bitrate = settings.bitrate or 1
    for item in messages:
        routed = [signal for signal, point in item.points.items() if point in targets]
        if not routed or item.cycle_s is None:
            continue
        frames = len({signal.condition for signal in routed})
        message = item.message
        bits = frame_bits(message.length, is_extended=message.is_extended, is_fd=message.is_fd)
        shares[f"{item.device}.{message.name}"] = frames * bits / item.cycle_s / bitrate
    total = sum(shares.values())
    if settings.max_tx_load is not None and total > settings.max_tx_load:
        largest = sorted(shares, key=lambda name: -shares[name])[:3]
        named = ", ".join(f"{name} {shares[name]:.1%}" for name in largest)
        fault(
            ("max_tx_load",),
            f"what is sent in cycles takes {total:.1%} of the bus, {settings.max_tx_load:.0%} are allowed",
            f"longer cycles, or fewer messages: {named}",
        )
    return total
