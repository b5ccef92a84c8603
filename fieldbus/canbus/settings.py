"""The configuration of CAN links and of devices that a database describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.link import CanLink, CanMessage, Request
from fieldbus.model import Access, Kind, Point
from fieldbus.settings import DeviceSettings, Duration, LinkSettings, Settings, problem

MISSED_CYCLES = 3
"""A message is overdue after so many of its cycle times …"""
SHORTEST_DEADLINE_S = 0.2
"""… but not sooner than this: an operating system has its own pauses."""


class CanLinkSettings(LinkSettings):
    """A CAN bus, over any interface of python-can; further keys are handed to it as they are."""

    model_config = ConfigDict(extra="allow")

    type: Literal["can"]
    interface: str = Field(description="As python-can names it: socketcan, slcan, pcan, vector …")
    channel: str | int | None = None
    bitrate: Annotated[int, Field(ge=1000, le=10_000_000)] | None = None
    fd: bool = False

    def options(self) -> dict[str, object]:
        """Return the arguments for python-can."""
        found: dict[str, object] = {"interface": self.interface, **(self.model_extra or {})}
        if self.channel is not None:
            found["channel"] = self.channel
        if self.bitrate is not None:
            found["bitrate"] = self.bitrate
        if self.fd:
            found["fd"] = True
        return found


class RequestSettings(Settings):
    """The frame that makes a node send a message."""

    id: Annotated[int, Field(ge=0, le=0x1FFFFFFF)] | None = Field(
        None, description="Default: the message's own, for a remote frame."
    )
    extended: bool | None = Field(None, description="Default: whether the id needs 29 bits.")
    data: str = Field("", description="Hexadecimal, spaces allowed: 02 01 0C")
    rtr: bool = Field(False, description="A remote frame, instead of data.")

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
        if self.rtr and self.data:
            raise problem("a remote frame has no data")
        if not self.rtr and self.id is None:
            raise problem("`id` is missing: which frame asks for the message?")
        if self.extended is False and self.id is not None and self.id > 0x7FF:
            raise problem(f"0x{self.id:X} does not fit the 11 bits of a standard id")
        return self


class MessageSettings(Settings):
    """How one message of a database is treated."""

    timeout: Duration | None = Field(None, description="Without a frame for so long its points are bad.")
    cycle: Duration | None = Field(None, description="Overrides the database's cycle time.")
    request: RequestSettings | None = Field(None, description="For a node that speaks only when asked.")
    scan: Duration | None = Field(None, description="How often it is asked; 1s by default.")

    @model_validator(mode="after")
    def _check(self) -> MessageSettings:
        if self.scan is not None and self.request is None:
            raise problem("`scan` is how often a `request` is sent, and there is none")
        return self


class CanDeviceSettings(DeviceSettings):
    """A node, or a whole bus, described by a database."""

    database: str = Field(description="A DBC, KCD, SYM or ARXML file.")
    timeout: Duration | None = Field(
        None, description="For messages of which the database tells no cycle time."
    )
    messages: Mapping[str, MessageSettings] = {}


def build_messages(device: str, settings: CanDeviceSettings, messages: Sequence[Message]) -> list[CanMessage]:
    """Return the device's messages with their points."""
    return [
        _build(device, settings, settings.messages.get(message.name) or MessageSettings(), message)
        for message in messages
    ]


def _build(device: str, settings: CanDeviceSettings, own: MessageSettings, message: Message) -> CanMessage:
    cycle_s = own.cycle or message.cycle_s
    deadline_s = own.timeout or settings.timeout
    if own.timeout is None and cycle_s is not None:
        deadline_s = max(MISSED_CYCLES * cycle_s, SHORTEST_DEADLINE_S)
    request = None
    if own.request is not None:
        frame_id = message.frame_id if own.request.id is None else own.request.id
        is_extended = own.request.extended
        if is_extended is None:
            is_extended = message.is_extended if own.request.id is None else frame_id > 0x7FF
        request = Request(
            frame_id=frame_id,
            is_extended=is_extended,
            data=bytes.fromhex(own.request.data),
            is_remote=own.request.rtr,
            scan_s=own.scan or 1.0,
            timeout_s=own.timeout or settings.timeout or 0.5,
        )
    points = {signal: _point(device, message, signal) for signal in message.signals}
    return CanMessage(device, message, points, deadline_s, cycle_s, request)


def _point(device: str, message: Message, signal: Signal) -> Point:
    is_integer = not signal.is_float and signal.linear.is_integer
    lowest, highest = None, None
    if not signal.is_float:
        lowest, highest = signal.linear.range_of(*signal.raw_range)
    forward = signal.linear.forward_int()
    labels = {forward(raw): name for raw, name in signal.labels.items()}
    return Point(
        device=device,
        name=f"{message.name}.{signal.name}",
        kind=Kind.INT if is_integer else Kind.FLOAT,
        access=Access.READWRITE,
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
    name: str, settings: CanLinkSettings, messages: Sequence[CanMessage], targets: Sequence[Point]
) -> CanLink:
    """Return the link for a bus."""
    return CanLink(name, settings.options(), messages, targets)
