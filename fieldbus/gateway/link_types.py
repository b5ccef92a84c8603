"""The table of link types: what each protocol plugs into the gateway.

A new protocol is a folder, an entry here, and a parameter of the contract test that every link passes.

Design: a link is made in two steps. `describe` turns a device's settings into points, so that routes
can be checked against all points of the plant; `assemble` then makes the link, knowing which of its
points routes write. No link is opened by either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fieldbus.canbus.building import build_link, build_messages
from fieldbus.canbus.layout import Message
from fieldbus.canbus.messages import CanMessage
from fieldbus.canbus.settings import CanDeviceSettings, CanLinkSettings
from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import Link
from fieldbus.modbus.device_settings import BaseSettings
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.points import build_points, point_faults
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.reach import reach_fault
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server_settings import ServedDeviceSettings, ServerLinkSettings, build_server
from fieldbus.modbus.settings import (
    DialInLinkSettings,
    PolledDeviceSettings,
    RtuTcpLinkSettings,
    SerialLinkSettings,
    TcpLinkSettings,
    TlsLinkSettings,
    UdpLinkSettings,
    build_client,
)
from fieldbus.modbus.write_checks import write_faults
from fieldbus.model import Point
from fieldbus.mqtt.link import MqttLink
from fieldbus.mqtt.payload import TopicPoint
from fieldbus.mqtt.peers import RemoteGateway
from fieldbus.mqtt.settings import BrokerSettings, GatewayDeviceSettings, TopicDeviceSettings
from fieldbus.mqtt.tls import TlsFiles
from fieldbus.settings import DeviceSettings, GuardSettings, LinkSettings, Secret
from fieldbus.store.link import StoreLink
from fieldbus.store.settings import StoreSettings


class Surroundings(Protocol):
    """What a protocol may ask of the loader while it describes a device."""

    def points_of(self, device: str, settings: Any) -> tuple[Mapping[str, PointSettings], float | None]:
        """Return a device's own points and those of its map, and the map's scan period."""

    def database(self, device: str, name: str, encoding: str | None = None) -> Sequence[Message]:
        """Return the messages of a database."""

    def fault(
        self,
        device: str,
        path: Sequence[str | int],
        message: str,
        hint: str | None = None,
        *,
        is_warning: bool = False,
    ) -> None:
        """Report a problem at a path inside the device; ``points.NAME`` may stand in a map."""

    def is_serial_line(self, link: str) -> bool:
        """Return whether all units of a link hear each other."""

    def secret(self, link: str, key: str, secret: Secret | None) -> str | None:
        """Return what a secret refers to."""

    def device_secret(self, device: str, key: str, secret: Secret | None) -> str | None:
        """Return what a secret of a device refers to."""

    def points_of_gateway(self, device: str, gateway: str) -> Mapping[str, Point]:
        """Return the points of another gateway, as far as it was ever heard."""


@dataclass(frozen=True, slots=True)
class Description:
    """A device as the rest of the gateway sees it."""

    settings: DeviceSettings
    points: Sequence[Point]
    parts: Sequence[Any] = ()
    """The protocol's own view of the points."""
    subscriptions: Sequence[tuple[str, Point]] = field(default=())
    """Topics that points read."""
    frames: Mapping[Point, object] = field(default_factory=dict)
    """Points to what they travel in, where we either send or hear all of it."""
    guards: Mapping[Point, tuple[str, GuardSettings]] = field(default_factory=dict)
    """What protects points, and under which name that stands in the configuration."""
    has_online: bool | None = None
    """Whether it can be lost while its link lives, if that is not as the link's type says."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a link is made of."""

    name: str
    settings: Any
    devices: Mapping[str, Description]
    targets: Sequence[Point]
    """Points of this link that routes write."""
    gateway: str
    version: str
    secret: Callable[[str, Secret | None], str | None]
    file: Callable[[Sequence[str], str], Path | None] = lambda _, name: Path(name)
    """Finds the file that a setting of the link (a path of keys) names."""
    sources: Sequence[Point] = ()
    """Points that routes read."""
    fault: Callable[[Sequence[str], str, str | None], None] = lambda _path, _message, _hint: None
    """Reports a problem at a path of keys inside the link."""
    warn: Callable[[str, Sequence[str], str, str | None], None] = lambda _device, _path, _message, _hint: None
    """Reports what is worth knowing at a path of keys inside a device."""
    memory: Path | None = None
    """The folder for what devices teach us."""
    data_dir: Path = Path()
    """The folder for what must survive a restart."""
    clock: Clock = SYSTEM
    """The gateway's."""


@dataclass(frozen=True, slots=True)
class DeviceType:
    """A kind of device that a link has beside its usual one."""

    settings: type[DeviceSettings]
    describe: Callable[[str, Any, Surroundings], Description]


@dataclass(frozen=True, slots=True)
class LinkType:
    """What the gateway knows of a protocol."""

    settings: type[LinkSettings]
    device: type[DeviceSettings] | None
    """None if it has none."""
    describe: Callable[[str, Any, Surroundings], Description]
    assemble: Callable[[Assembly], Link]
    has_topics: bool = False
    is_store: bool = False
    """Whether it keeps what is sent to it."""
    variants: Mapping[str, DeviceType] = field(default_factory=dict)
    """Devices of other kinds, by their `type`."""
    depends_on_routes: bool = False
    """Whether a link is made otherwise when other points of it are routed."""
    has_online: bool = False
    """Whether its devices can be lost while the link lives."""
    has_response_time: bool = False


_FIRST_REFERENCES = {"holding": 40001, "input": 30001, "discrete": 10001}
"""What manuals call address 0 of a table."""


def _describe_polled(device: str, settings: PolledDeviceSettings, around: Surroundings) -> Description:
    points, map_scan = around.points_of(device, settings)
    if "scan" not in settings.model_fields_set and map_scan is not None:
        settings = settings.model_copy(update={"scan": map_scan})
    points = settings.own_points(points, _point_fault(device, around))
    built = build_points(device, points, is_served=False, fault=_point_fault(device, around))
    for item in built:
        reason = reach_fault(item, settings.limits)
        if reason is not None:
            around.fault(device, ("points", item.origin or item.point.name), *reason)
    if settings.base in (0, BaseSettings()):
        _warn_of_references(device, points, around)
    if "unit_id" not in settings.model_fields_set and around.is_serial_line(settings.link):
        text = "no `unit_id`: 1 is taken, and on a serial line each device has its own"
        around.fault(device, (), text, "write `unit_id: 1` if it is that", is_warning=True)
    if settings.unit_id == 0 and around.is_serial_line(settings.link):
        for item in built:
            if item.point.access.can_read:
                text = "unit 0 of a serial line is all units at once and answers nothing: write only"
                around.fault(device, ("points", item.point.name), text, "access: write")
    return _described(device, settings, built, points, around, is_served=False)


def _describe_served(device: str, settings: ServedDeviceSettings, around: Surroundings) -> Description:
    points, _ = around.points_of(device, settings)
    points = settings.own_points(points, _point_fault(device, around))
    built = build_points(device, points, is_served=True, fault=_point_fault(device, around))
    if settings.unit_id == 0 and around.is_serial_line(settings.link):
        text = "unit 0 of a serial line is all units at once"
        around.fault(device, ("unit_id",), text, "1 to 247")
    return _described(device, settings, built, points, around, is_served=True)


def _warn_of_references(device: str, points: Mapping[str, PointSettings], around: Surroundings) -> None:
    """Warn once of an address that looks like the number of a register in a manual.

    Not of SunSpec devices, whose addresses on the wire are often beyond 40000, nor where there is a `base`.
    """
    if any("sunspec" in item.invalid for item in points.values()):
        return
    for name, item in points.items():
        first = _FIRST_REFERENCES.get(item.table or "")
        if first is not None and item.address is not None and first <= item.address < first + 9999:
            text = f"address {item.address} is sent as it is; what manuals call {item.address} is address "
            text += f"{item.address - first}"
            hint = f"write `reference: {item.address}` if it is out of a manual"
            around.fault(device, ("points", name, "address"), text, hint, is_warning=True)
            return


def _point_fault(device: str, around: Surroundings) -> Callable[[str, str, str | None], None]:
    return lambda name, message, hint: around.fault(device, ("points", name), message, hint)


def _described(
    device: str,
    settings: DeviceSettings,
    built: list[RegisterPoint],
    points: Mapping[str, PointSettings],
    around: Surroundings,
    *,
    is_served: bool,
) -> Description:
    if not built:
        around.fault(device, (), "the device has no points", "give it `points` or a `map`")
    for fault in point_faults(built, is_served=is_served):
        around.fault(device, ("points", fault.name, *fault.path), fault.message)
    quirks = settings.quirks.build() if isinstance(settings, PolledDeviceSettings) else UnitQuirks()
    for place in built:
        for target, _ in place.rules.then:
            if target in points and points[target].confirm:
                text = f"`then` names '{target}', which has to be armed first (`confirm`)"
                where = ("points", place.origin or place.point.name, "then", target)
                around.fault(device, where, text, "name a point without `confirm`")
    for wrong in write_faults(built, quirks, is_served=is_served):
        path = ("points", wrong.name, *wrong.path)
        around.fault(device, path, wrong.message, wrong.hint, is_warning=wrong.is_warning)
    for name, item in points.items():
        if item.has_doubtful_sign:
            text = f"bits {item.bits} of an {item.register_type} are read without a sign"
            hint = "write `signed: true` if their highest bit is the sign, `signed: false` if not"
            around.fault(device, ("points", name), text, hint, is_warning=True)
    guards = {
        item.point: (name, point)
        for item in built
        if (name := item.origin or item.point.name) in points and (point := points[name]).has_guard
    }
    return Description(settings, [item.point for item in built], built, guards=guards)


def _describe_can(device: str, settings: CanDeviceSettings, around: Surroundings) -> Description:
    messages = around.database(device, settings.database, settings.encoding)
    built = build_messages(
        device, settings, messages, lambda path, message, hint: around.fault(device, path, message, hint)
    )
    points = [point for message in built for point in message.points.values()]
    frames = {point: message for message in built for point in message.points.values()}
    return Description(settings, points, built, frames=frames)


def _describe_topics(device: str, settings: TopicDeviceSettings, around: Surroundings) -> Description:
    if not settings.points:
        around.fault(device, (), "the device has no points")
    built = [item.build(device, name) for name, item in settings.points.items()]
    readable = [(item.topic, item.point) for item in built if item.point.access.can_read]
    guards = {
        item.point: (name, point)
        for item, (name, point) in zip(built, settings.points.items(), strict=True)
        if point.has_guard
    }
    return Description(settings, [item.point for item in built], built, readable, guards=guards)


def _describe_gateway(device: str, settings: GatewayDeviceSettings, around: Surroundings) -> Description:
    gateway = settings.gateway or device
    points = around.points_of_gateway(device, gateway)
    key = around.device_secret(device, "key", settings.key)
    remote = RemoteGateway(device, gateway, points, None if key is None else key.encode())
    return Description(settings, list(points.values()), [remote], has_online=True)


def _describe_nothing(device: str, settings: DeviceSettings, around: Surroundings) -> Description:
    around.fault(device, ("link",), "a store has no devices", "routes write to it: `to: STORE`")
    return Description(settings, [])


def _assemble_client(parts: Assembly) -> Link:
    devices, points = _modbus_parts(parts)
    if parts.settings.is_listening:
        _check_listening(parts, points)
    return build_client(
        parts.name,
        parts.settings,
        devices,
        points,
        memory=parts.memory,
        file=parts.file,
        secret=parts.secret,
        clock=parts.clock,
    )


def _check_listening(parts: Assembly, points: Mapping[str, Sequence[RegisterPoint]]) -> None:
    """Report whatever would send something on a link that only listens."""
    own = {item.point for members in points.values() for item in members}
    routed = sorted({point.address for point in parts.targets if point in own})
    written = sorted(item.address for item in own if item.access.can_write)
    if routed:
        text = f"a route writes to {routed[0]}, but nothing is ever sent on a link that listens"
        parts.fault(("listen",), text, "remove the route, or `listen`")
    elif written:
        text = f"{written[0]} can be written, but nothing is ever sent on a link that listens"
        parts.fault(("listen",), text, "access: read")
    others = [item for members in points.values() for item in members if not item.table.is_numbered]
    if others:
        first = min(others, key=lambda item: item.point.address)
        text = f"{first.point.address} is in the table `{first.table}`, which a link that listens cannot read"
        parts.fault(("listen",), text, "a link that listens reads coil, discrete, input and holding")


def _assemble_server(parts: Assembly) -> Link:
    devices, points = _modbus_parts(parts)
    return build_server(
        parts.name,
        parts.settings,
        devices,
        points,
        gateway=parts.gateway,
        version=parts.version,
        file=parts.file,
        secret=parts.secret,
        clock=parts.clock,
    )


def _modbus_parts(parts: Assembly) -> tuple[dict[str, Any], dict[str, list[RegisterPoint]]]:
    devices = {name: item.settings for name, item in parts.devices.items()}
    return devices, {name: list(item.parts) for name, item in parts.devices.items()}


def _assemble_can(parts: Assembly) -> Link:
    messages: list[CanMessage] = [message for item in parts.devices.values() for message in item.parts]
    return build_link(
        parts.name,
        parts.settings,
        messages,
        parts.targets,
        gateway=parts.gateway,
        wanted=parts.sources,
        fault=parts.fault,
        warn=parts.warn,
        file=parts.file,
        clock=parts.clock,
    )


def _assemble_broker(parts: Assembly) -> Link:
    settings: BrokerSettings = parts.settings
    found = [part for item in parts.devices.values() for part in item.parts]
    tls = settings.tls
    files = None
    if tls is not None:

        def place(key: str, name: str | None) -> Path | None:
            return None if name is None else parts.file(("tls", key), name)

        files = TlsFiles(
            place("ca", tls.ca),
            place("certificate", tls.certificate),
            place("key", tls.key),
            parts.secret("tls.key_password", tls.key_password),
            tls.server_name,
        )
    return MqttLink(
        parts.name,
        parts.gateway,
        settings.host,
        settings.port or (1883 if tls is None else 8883),
        [part for part in found if isinstance(part, TopicPoint)],
        tls=files,
        remotes=[part for part in found if isinstance(part, RemoteGateway)],
        version=parts.version,
        username=settings.username,
        password=parts.secret("password", settings.password),
        client_id=settings.client_id,
        keepalive_s=settings.keepalive,
        qos=settings.qos,
        is_retained=settings.retain,
        max_queue=settings.queue,
        gather_s=settings.gather,
        clock_tolerance_s=settings.clock_tolerance,
        clock=parts.clock,
    )


def _assemble_store(parts: Assembly) -> Link:
    settings: StoreSettings = parts.settings
    return StoreLink(
        parts.name,
        parts.data_dir / (settings.file or f"{parts.name}.db"),
        max_bytes=settings.max_size,
        max_age_s=settings.max_age,
        group_commit_s=settings.group_commit,
        clock=parts.clock,
    )


def _polling(settings: type[LinkSettings]) -> LinkType:
    return LinkType(
        settings,
        PolledDeviceSettings,
        _describe_polled,
        _assemble_client,
        has_online=True,
        has_response_time=True,
    )


LINK_TYPES: Mapping[str, LinkType] = {
    "modbus-tcp": _polling(TcpLinkSettings),
    "modbus-tls": _polling(TlsLinkSettings),
    "modbus-udp": _polling(UdpLinkSettings),
    "modbus-rtu": _polling(SerialLinkSettings),
    "modbus-ascii": _polling(SerialLinkSettings),
    "modbus-rtu-tcp": _polling(RtuTcpLinkSettings),
    "modbus-dial-in": _polling(DialInLinkSettings),
    "modbus-server": LinkType(ServerLinkSettings, ServedDeviceSettings, _describe_served, _assemble_server),
    "can": LinkType(
        CanLinkSettings,
        CanDeviceSettings,
        _describe_can,
        _assemble_can,
        has_online=True,
        depends_on_routes=True,
    ),
    "mqtt": LinkType(
        BrokerSettings,
        TopicDeviceSettings,
        _describe_topics,
        _assemble_broker,
        has_topics=True,
        variants={"gateway": DeviceType(GatewayDeviceSettings, _describe_gateway)},
    ),
    "store": LinkType(
        StoreSettings, None, _describe_nothing, _assemble_store, has_topics=True, is_store=True
    ),
}
"""By the `type` of a link."""
