"""The configuration of Modbus links that poll, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fieldbus.clock import SYSTEM, Clock
from fieldbus.modbus.connection import Lifetime
from fieldbus.modbus.device_settings import MappedDeviceSettings
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.listening import ModbusListeningLink
from fieldbus.modbus.places import DialInPlace, Framing, Place, SerialPlace, TcpPlace, TlsFiles, UdpPlace
from fieldbus.modbus.planner import Limits
from fieldbus.modbus.quirk_settings import LineQuirkSettings, UnitQuirkSettings
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.units import Unit
from fieldbus.settings import (
    Duration,
    Host,
    LinkSettings,
    Port,
    Secret,
    Settings,
    TlsClientSettings,
    problem,
)

FileOf = Callable[[Sequence[str], str], Path | None]
"""Returns the file that a setting of the link names, None if it cannot be used, which has then been said."""


SecretOf = Callable[[str, Secret | None], str | None]


class PollingLinkSettings(LinkSettings):
    """What every link has that polls."""

    timeout: Duration = Field(1.0, description="For one answer.")
    connection: Literal["keep", "per_request", "on_demand"] = Field(
        "keep",
        description="How long a connection stays open. `keep`: for ever. `per_request`: it is opened for "
        "what is due, then closed. `on_demand`: for `read`, writes and triggers; nothing is polled.",
    )
    rest_after_connect: Duration | None = Field(
        None, description="How long a device rests after the connection is made, before the first request."
    )
    quirks: LineQuirkSettings = LineQuirkSettings()

    @property
    def is_listening(self) -> bool:
        """Whether nothing is ever sent."""
        return False

    @property
    def is_serial_line(self) -> bool:
        """Whether all units hear each other, and unit 0 means all of them."""
        return False

    def place(self, file: FileOf, secret: SecretOf) -> Place | None:
        """Return where the other side is; None if a file of it cannot be used."""
        raise NotImplementedError


class _HostSettings(PollingLinkSettings):
    host: Host
    connect_timeout: Duration = 3.0
    connections: Annotated[int, Field(ge=1, le=32)] = Field(
        1, description="How many requests may be under way at once, if the device allows it."
    )
    backup: str | None = Field(None, description="HOST or HOST:PORT, tried when the first is away.")

    @field_validator("backup")
    @classmethod
    def _check_backup(cls, backup: str | None) -> str | None:
        if backup is not None:
            _host_and_port(backup, 502)
        return backup

    def _backup(self, port: int) -> tuple[str, int] | None:
        return None if self.backup is None else _host_and_port(self.backup, port)


LISTEN = Field(
    False,
    description="Only listen: values come out of the traffic between another client and its devices, and "
    "nothing is ever sent.",
)


def _check_listening(settings: PollingLinkSettings) -> None:
    """Refuse what has no meaning on a link that only listens."""
    if settings.is_listening and (settings.connection != "keep" or settings.rest_after_connect is not None):
        raise problem("`listen: true` sends nothing: leave `connection` and `rest_after_connect` out")


class TcpLinkSettings(_HostSettings):
    """A connection to a Modbus TCP server, which may have several units behind it."""

    type: Literal["modbus-tcp"]
    port: Port = 502

    def place(self, file: FileOf, secret: SecretOf) -> Place | None:
        """Return where the server is."""
        return TcpPlace(self.host, self.port, backup=self._backup(self.port))


class RtuTcpLinkSettings(_HostSettings):
    """RTU frames over TCP, as transparent serial device servers have it."""

    type: Literal["modbus-rtu-tcp"]
    port: Port = 502
    listen: bool = LISTEN

    @model_validator(mode="after")
    def _check(self) -> RtuTcpLinkSettings:
        _check_listening(self)
        if self.connections > 1:
            raise problem(
                "`connections` means nothing here: behind them is one line, without transaction ids"
            )
        return self

    @property
    def is_listening(self) -> bool:
        """Whether nothing is ever sent."""
        return self.listen

    @property
    def is_serial_line(self) -> bool:
        """There is one behind it."""
        return True

    def place(self, file: FileOf, secret: SecretOf) -> Place | None:
        """Return where the device server is."""
        return TcpPlace(self.host, self.port, Framing.RTU, backup=self._backup(self.port))


class TlsLinkSettings(_HostSettings):
    """Modbus/TCP Security: Modbus TCP inside TLS, with certificates on both sides."""

    type: Literal["modbus-tls"]
    port: Port = 802
    tls: TlsClientSettings

    def place(self, file: FileOf, secret: SecretOf) -> Place | None:
        """Return where the server is."""
        ca = file(("tls", "ca"), self.tls.ca)
        certificate = (
            None if self.tls.certificate is None else file(("tls", "certificate"), self.tls.certificate)
        )
        key = None if self.tls.key is None else file(("tls", "key"), self.tls.key)
        if ca is None:
            return None
        password = secret("tls.key_password", self.tls.key_password)
        files = TlsFiles(ca, certificate, key, password, self.tls.server_name)
        return TcpPlace(self.host, self.port, tls=files, backup=self._backup(self.port))


class UdpLinkSettings(PollingLinkSettings):
    """Modbus TCP frames in UDP datagrams."""

    type: Literal["modbus-udp"]
    host: Host
    port: Port = 502
    connect_timeout: Duration = 3.0

    def place(self, file: FileOf, secret: SecretOf) -> Place | None:
        """Return where the server is."""
        return UdpPlace(self.host, self.port)


class Rs485Settings(Settings):
    """How the kernel's driver switches the direction of an RS-485 adapter by RTS."""

    rts_on_send: bool = True
    delay: Duration | None = Field(None, description="Between RTS and the first bit, and after the last one.")


class SerialLinkSettings(PollingLinkSettings):
    """A serial line: RS-485 or RS-232."""

    type: Literal["modbus-rtu", "modbus-ascii"]
    port: Annotated[str, Field(min_length=1)] = Field(description="/dev/serial/by-id/…, /dev/ttyUSB0, COM3")
    baudrate: Annotated[int, Field(ge=110, le=4_000_000)] = 9600
    bytesize: Literal[7, 8] | None = Field(None, description="8; 7 by default for ASCII.")
    parity: Literal["none", "even", "odd", "N", "E", "O"] = Field(
        "even", description="The specification's default is even; many devices have none."
    )
    stopbits: Literal[1, 2] | None = Field(None, description="1; 2 by default without parity.")
    rs485: bool | Rs485Settings = False
    turnaround: Duration | None = Field(
        None, description="Silence before each request beyond what frames need."
    )

    listen: bool = LISTEN

    @model_validator(mode="after")
    def _check(self) -> SerialLinkSettings:
        _check_listening(self)
        if self.type == "modbus-rtu" and self.bytesize == 7:
            raise problem("RTU frames need 8 bits a character")
        return self

    @property
    def is_listening(self) -> bool:
        """Whether nothing is ever sent."""
        return self.listen

    @property
    def is_serial_line(self) -> bool:
        """It is one."""
        return True

    def conflict(self, other: LinkSettings) -> tuple[str, str] | None:
        """Two links cannot have one serial port."""
        if getattr(other, "port", None) == self.port:
            return "port", f"{self.port} is another link's already: one line, one link, several devices"
        return None

    def place(self, file: FileOf, secret: SecretOf) -> Place | None:
        """Return the line."""
        is_ascii = self.type == "modbus-ascii"
        rs485 = self.rs485 if isinstance(self.rs485, Rs485Settings) else Rs485Settings()
        return SerialPlace(
            port=self.port,
            baudrate=self.baudrate,
            bytesize=self.bytesize or (7 if is_ascii else 8),
            parity=self.parity[0].upper(),
            stopbits=self.stopbits or (2 if self.parity in ("none", "N") else 1),
            framing=Framing.ASCII if is_ascii else Framing.RTU,
            rs485=self.rs485 is not False,
            rts_level_for_tx=rs485.rts_on_send,
            rts_delay_s=rs485.delay or 0.0,
            turnaround_s=self.turnaround or 0.0,
        )


class BytesSettings(Settings):
    """Bytes as hex digits."""

    hex: str

    @field_validator("hex")
    @classmethod
    def _check(cls, text: str) -> str:
        try:
            bytes.fromhex(text)
        except ValueError:
            raise problem(f"{text!r} is not made of hex digits such as 4D 31") from None
        return text


class DialInLinkSettings(PollingLinkSettings):
    """A device, often behind a cellular modem, that connects to us and is then polled."""

    type: Literal["modbus-dial-in"]
    host: str = Field("127.0.0.1", description="The address of ours on which it is awaited.")
    port: Port
    registration: str | BytesSettings = Field(description="What it sends first, and names itself by.")
    framing: Literal["tcp", "rtu"] = "tcp"
    heartbeat: str | BytesSettings | None = Field(None, description="What it sends between frames.")

    @model_validator(mode="after")
    def _check(self) -> DialInLinkSettings:
        if not 1 <= len(_bytes(self.registration)) <= 256:
            raise problem("a registration has 1 to 256 bytes")
        if self.connection != "keep":
            raise problem("`connection: keep` only: the device opens the connection, not the gateway")
        return self

    @property
    def is_serial_line(self) -> bool:
        """Whether there is one behind the modem."""
        return self.framing == "rtu"

    def conflict(self, other: LinkSettings) -> tuple[str, str] | None:
        """Two devices that dial in at one port differ in what they say first."""
        if not isinstance(other, DialInLinkSettings) or (other.host, other.port) != (self.host, self.port):
            return None
        ours, theirs = _bytes(self.registration), _bytes(other.registration)
        if ours.startswith(theirs) or theirs.startswith(ours):
            return "registration", "it begins as another link's on this port: the devices could be mistaken"
        return None

    def place(self, file: FileOf, secret: SecretOf) -> Place | None:
        """Return where we listen for it."""
        return DialInPlace(
            self.host,
            self.port,
            _bytes(self.registration),
            Framing.MBAP if self.framing == "tcp" else Framing.RTU,
            _bytes(self.heartbeat),
        )


class PolledDeviceSettings(MappedDeviceSettings):
    """A device that we poll."""

    unit_id: Annotated[int, Field(ge=0, le=255)] = 1
    scan: Duration = Field(1.0, description="How often each point is read, unless it says otherwise.")
    timeout: Duration | None = Field(None, description="Overrides the link's.")
    write_timeout: Duration | None = Field(
        None,
        description="For the response to a write, if the device needs longer for it; by default `timeout`.",
    )
    max_registers: Annotated[int, Field(ge=1, le=125)] = 125
    max_bits: Annotated[int, Field(ge=1, le=2000)] = 2000
    max_gap: Annotated[int, Field(ge=0, le=124)] | None = Field(
        None, description="Unused registers that may be read over; by default whatever is cheapest."
    )
    first_address: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="The address at which each read begins, for devices that answer nothing else."
    )
    quirks: UnitQuirkSettings = UnitQuirkSettings()

    @property
    def limits(self) -> Limits:
        """What one request may ask of it."""
        return Limits(self.max_registers, self.max_bits, self.max_gap, self.first_address)


def build_client(
    name: str,
    settings: Any,
    devices: Mapping[str, PolledDeviceSettings],
    points: Mapping[str, list[RegisterPoint]],
    *,
    memory: Path | None = None,
    file: FileOf = lambda _, name: Path(name),
    secret: SecretOf = lambda _, __: None,
    clock: Clock = SYSTEM,
) -> ModbusClientLink | ModbusListeningLink:
    """Return the link that polls `devices`, or listens to them.

    Args:
        settings: any `PollingLinkSettings`.
        memory: the folder for what devices teach us.
        file: finds the files that the settings name.
        secret: finds the secrets that they refer to.
        clock: the gateway's.
    """
    units = [
        Unit(
            device=device,
            unit_id=item.unit_id,
            points=points[device],
            scan_s=item.scan,
            timeout_s=item.timeout or settings.timeout,
            limits=item.limits,
            quirks=item.quirks.build(),
            write_timeout_s=item.write_timeout,
        )
        for device, item in devices.items()
    ]
    place = settings.place(file, secret)
    if place is None:  # a file is missing, for which the configuration is refused
        place = TcpPlace("127.0.0.1", 802)
    if settings.is_listening:
        return ModbusListeningLink(
            name,
            place,
            units,
            quirks=settings.quirks.build(),
            connect_timeout_s=getattr(settings, "connect_timeout", 3.0),
            clock=clock,
        )
    return ModbusClientLink(
        name,
        place,
        units,
        connections=getattr(settings, "connections", 1),
        memory=memory,
        quirks=settings.quirks.build(),
        connect_timeout_s=getattr(settings, "connect_timeout", 3.0),
        lifetime=Lifetime(settings.connection),
        rest_after_connect_s=settings.rest_after_connect or 0.0,
        clock=clock,
    )


def _host_and_port(text: str, port: int) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    if not (host if colon else number).strip("[]"):
        raise problem(f"{text!r} is neither HOST nor HOST:PORT")
    if not colon or "]" in number or (text.count(":") > 1 and not text.startswith("[")):
        return text.strip("[]"), port
    if not number.isdecimal() or not 1 <= int(number) <= 65535:
        raise problem(f"{text!r} is neither HOST nor HOST:PORT")
    return host.strip("[]"), int(number)


def _bytes(text: str | BytesSettings | None) -> bytes:
    if text is None:
        return b""
    return bytes.fromhex(text.hex) if isinstance(text, BytesSettings) else text.encode()
