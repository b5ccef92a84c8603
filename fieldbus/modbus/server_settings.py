"""The configuration of Modbus links that serve, and what is made of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fieldbus.clock import SYSTEM, Clock
from fieldbus.modbus.device_settings import MappedDeviceSettings
from fieldbus.modbus.identification import LONGEST_TEXT, Identification
from fieldbus.modbus.listen import ServerPlace
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace, TlsFiles, UdpPlace
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.server_access import DEFAULT, Guard, Right, networks_of
from fieldbus.modbus.settings import FileOf, Rs485Settings, SecretOf
from fieldbus.modbus.table_image import BlockRules
from fieldbus.settings import Duration, FileName, LinkSettings, Port, Secret, Settings, problem

_SERIAL = ("rtu", "ascii")
_ONLY_SERIAL = ("baudrate", "bytesize", "parity", "stopbits", "rs485", "turnaround", "echo")
_ONLY_NETWORK = ("host", "allow", "allow_unauthenticated_writes")
_ONLY_STREAM = ("max_sessions", "idle_timeout")
_ONLY_TLS = ("tls", "roles")
_HIGHEST_ON_A_LINE = 247

Text = Annotated[str, Field(max_length=LONGEST_TEXT, pattern=r"^[ -~]*$")]


class TlsServerSettings(Settings):
    """Files in PEM format; relative paths start at the config's folder."""

    ca: FileName = Field(description="Who signs the clients' certificates.")
    certificate: FileName = Field(description="Ours, with its chain.")
    key: FileName | None = Field(None, description="Ours, if it is not in the certificate's file.")
    key_password: Secret | None = None


class IdentificationSettings(Settings):
    """What FC 43/14 says who we are. ASCII."""

    vendor_name: Text = "fieldbus"
    product_code: Text = "gateway"
    revision: Text | None = Field(None, description="Our version by default.")
    vendor_url: Text = ""
    product_name: Text = "fieldbus gateway"
    model_name: Text = ""
    user_application_name: Text | None = Field(None, description="The gateway's name by default.")


class ServerLinkSettings(LinkSettings):
    """A port on which we are the Modbus server: of the network, or a serial one."""

    type: Literal["modbus-server"]
    transport: Literal["tcp", "tls", "udp", "rtu", "ascii", "rtu-tcp"] = "tcp"
    host: str = "127.0.0.1"
    port: Port | str | None = Field(
        None, description="502 by default, 802 with TLS; of a serial transport, the port's path."
    )
    max_sessions: Annotated[int, Field(ge=1, le=10000)] = 64
    idle_timeout: Duration = 60.0
    allow: list[str] = Field(
        default=[], description="Networks and addresses that are listened to; all by default."
    )
    allow_unauthenticated_writes: bool = Field(
        False,
        description="That whoever reaches the port, from other machines too, may write what masters can.",
    )
    tls: TlsServerSettings | None = Field(None, description="For `transport: tls`.")
    roles: Mapping[str, Literal["none", "read", "readwrite"]] | None = Field(
        None,
        description=f"What the role in a client's certificate may do; `{DEFAULT}` for all other clients.",
    )
    baudrate: Annotated[int, Field(ge=110, le=4_000_000)] = 9600
    bytesize: Literal[7, 8] | None = Field(None, description="8; 7 by default for ASCII.")
    parity: Literal["none", "even", "odd"] = "even"
    stopbits: Literal[1, 2] | None = Field(None, description="1; 2 by default without parity.")
    rs485: bool | Rs485Settings = False
    turnaround: Duration | None = Field(None, description="Silence before each answer beyond 3.5 characters.")
    echo: bool = Field(False, description="The adapter hears what it sends.")
    identification: IdentificationSettings = IdentificationSettings()
    status_unit: Annotated[int, Field(ge=1, le=255)] | None = Field(
        None, description="Unit id at which the gateway's own state can be read."
    )

    @property
    def is_serial_line(self) -> bool:
        """Whether units hear each other, so that unit id 0 is all of them."""
        return self.transport in (*_SERIAL, "rtu-tcp")

    @property
    def is_open_to_anybody(self) -> bool:
        """Whether other machines can connect, and need not prove who they are."""
        if self.transport in (*_SERIAL, "tls") or self.allow_unauthenticated_writes:
            return False
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    def conflict(self, other: LinkSettings) -> tuple[str, str] | None:
        """Two links cannot have one port."""
        theirs = getattr(other, "port", None)
        if isinstance(self.port, str):
            return ("port", f"{self.port} is another link's already") if theirs == self.port else None
        listens = isinstance(other, ServerLinkSettings) and (other.transport == "udp") == (
            self.transport == "udp"
        )
        listens = listens or (getattr(other, "type", "") == "modbus-dial-in" and self.transport != "udp")
        if (
            listens
            and self.port is not None
            and (theirs, getattr(other, "host", "")) == (self.port, self.host)
        ):
            return "port", f"another link listens on {self.host}:{self.port} already"
        return None

    @field_validator("allow")
    @classmethod
    def _check_allow(cls, allow: list[str]) -> list[str]:
        for text in allow:
            try:
                networks_of([text])
            except ValueError as error:
                raise problem(f"{error}") from None
        return allow

    @model_validator(mode="after")
    def _check(self) -> ServerLinkSettings:
        given, transport = self.model_fields_set, self.transport
        wrong = set() if transport in _SERIAL else {*_ONLY_SERIAL}
        if transport in _SERIAL:
            wrong |= {*_ONLY_NETWORK, *_ONLY_STREAM}
        if transport == "udp":
            wrong |= {*_ONLY_STREAM}
        if transport != "tls":
            wrong |= {*_ONLY_TLS}
        for name in sorted(given & wrong):
            raise problem(f"`{name}` means nothing with `transport: {transport}`")
        if transport in _SERIAL and not isinstance(self.port, str):
            raise problem(f"`transport: {transport}` needs the path of a serial port as `port`")
        if transport not in _SERIAL and isinstance(self.port, str):
            raise problem(f"{self.port!r} is not a port of the network: a number")
        if transport == "tls" and self.tls is None:
            raise problem("`transport: tls` needs `tls` with ca, certificate and key")
        if transport == "rtu" and self.bytesize == 7:
            raise problem("RTU frames need 8 bits a character")
        if self.is_serial_line and (self.status_unit or 0) > _HIGHEST_ON_A_LINE:
            raise problem(f"on a line unit ids end at {_HIGHEST_ON_A_LINE}")
        return self

    def place(self, file: FileOf, secret: SecretOf) -> ServerPlace:
        """Return where and how to listen."""
        if isinstance(self.port, str):
            is_ascii = self.transport == "ascii"
            rs485 = self.rs485 if isinstance(self.rs485, Rs485Settings) else Rs485Settings()
            return SerialPlace(
                port=self.port,
                baudrate=self.baudrate,
                bytesize=self.bytesize or (7 if is_ascii else 8),
                parity=self.parity[0].upper(),
                stopbits=self.stopbits or (2 if self.parity == "none" else 1),
                framing=Framing.ASCII if is_ascii else Framing.RTU,
                rs485=self.rs485 is not False,
                rts_level_for_tx=rs485.rts_on_send,
                rts_delay_s=rs485.delay or 0.0,
                turnaround_s=self.turnaround or 0.0,
            )
        port = self.port or (802 if self.transport == "tls" else 502)
        if self.transport == "udp":
            return UdpPlace(self.host, port)
        framing = Framing.RTU if self.transport == "rtu-tcp" else Framing.MBAP
        tls = None if self.tls is None else self._files(self.tls, file, secret)
        return TcpPlace(self.host, port, framing, tls)

    def _files(self, tls: TlsServerSettings, file: FileOf, secret: SecretOf) -> TlsFiles:
        # A file that is not there has been said, and the configuration is refused for it.
        ca = file(("tls", "ca"), tls.ca) or Path(tls.ca)
        certificate = file(("tls", "certificate"), tls.certificate)
        key = None if tls.key is None else file(("tls", "key"), tls.key)
        return TlsFiles(ca, certificate, key, secret("tls.key_password", tls.key_password))

    def guard(self) -> Guard:
        """Return who may ask, and what."""
        roles = None if self.roles is None else {name: Right(right) for name, right in self.roles.items()}
        return Guard(networks_of(self.allow), roles)


class ServedDeviceSettings(MappedDeviceSettings):
    """A register map that we serve."""

    unit_id: Annotated[int, Field(ge=0, le=255)] = 1
    gaps: Literal["exception", "zero"] = Field(
        "exception", description="What clients read at addresses between points."
    )
    fill: Annotated[int, Field(ge=0, le=0xFFFF)] | None = Field(
        None,
        description="What clients read at all addresses without a point, in the tables in which it has "
        "points; of coils and discrete inputs, 0 is off and all else on. Writes there are refused.",
    )
    bad_block: Literal["exception", "point"] = Field(
        "exception",
        description="Whether one bad point makes the whole read exception 0B, or only reads as its NaN, its "
        "first `invalid` value, else the filler or FFFF. What touches bad points only is 0B in any case.",
    )

    @model_validator(mode="after")
    def _check(self) -> ServedDeviceSettings:
        if self.fill is not None and self.gaps == "zero":
            raise problem("`gaps: zero` and `fill` exclude each other: `fill: 0` covers the gaps too")
        return self

    def blocks(self) -> BlockRules:
        """Return what clients read where there is no value."""
        return BlockRules(self.gaps == "zero", self.fill, self.bad_block == "point")


def build_server(
    name: str,
    settings: ServerLinkSettings,
    devices: Mapping[str, ServedDeviceSettings],
    points: Mapping[str, list[RegisterPoint]],
    *,
    gateway: str = "",
    version: str = "",
    file: FileOf = lambda _, name: Path(name),
    secret: SecretOf = lambda _, __: None,
    clock: Clock = SYSTEM,
) -> ModbusServerLink:
    """Return the link that serves `devices`.

    Args:
        name: the link's.
        settings: the link's.
        devices: by name.
        points: of each device.
        gateway: its name, for FC 43/14.
        version: ours, for FC 43/14.
        file: finds the files that the settings name.
        secret: finds the secrets that they refer to.
        clock: the gateway's.
    """
    units = [
        ServedUnit(device, item.unit_id, points[device], item.blocks(), item.unit_id == settings.status_unit)
        for device, item in devices.items()
    ]
    place = settings.place(file, secret)
    host, port = ("", 0) if isinstance(place, SerialPlace) else (place.host, place.port)
    texts: dict[str, Any] = settings.identification.model_dump()
    texts["revision"] = texts["revision"] if texts["revision"] is not None else version
    texts["user_application_name"] = (
        texts["user_application_name"] if texts["user_application_name"] is not None else gateway
    )
    return ModbusServerLink(
        name,
        host,
        port,
        units,
        place=place,
        guard=settings.guard(),
        identification=Identification(**texts),
        max_sessions=settings.max_sessions,
        idle_timeout_s=settings.idle_timeout,
        has_echo=settings.echo,
        clock=clock,
    )
