"""Where the other side of a Modbus link is, and how its frames look. Data only.

========================  =====================================================================
`TcpPlace`                a host and port; MBAP or RTU frames, with TLS or without, a backup host
`UdpPlace`                a host and port; one MBAP frame a datagram
`SerialPlace`             a serial port; RTU or ASCII frames
`DialInPlace`             a port on which the device connects to us and names itself
========================  =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Framing(StrEnum):
    """How a PDU is wrapped."""

    MBAP = "mbap"
    """Modbus TCP: a header with transaction id and length."""
    RTU = "rtu"
    """Unit id, PDU, CRC-16."""
    ASCII = "ascii"
    """A colon, hex digits, LRC, CR LF."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a TLS connection needs, as files in PEM format."""

    ca: Path
    """Who signs for the other side."""
    certificate: Path | None = None
    """Our own, with its chain; None for a client that does not show one."""
    key: Path | None = None
    key_password: str | None = field(default=None, repr=False)
    server_name: str | None = None
    """The name that the server's certificate must have; the host if None."""


@dataclass(frozen=True, slots=True)
class TcpPlace:
    """A Modbus server on the network."""

    host: str
    port: int
    framing: Framing = Framing.MBAP
    tls: TlsFiles | None = None
    backup: tuple[str, int] | None = None
    """Tried when the first is away."""

    @property
    def text(self) -> str:
        """For the log."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UdpPlace:
    """A Modbus server that takes datagrams."""

    host: str
    port: int
    framing: Framing = Framing.MBAP

    @property
    def text(self) -> str:
        """For the log."""
        return f"{self.host}:{self.port} (UDP)"


@dataclass(frozen=True, slots=True)
class SerialPlace:
    """A serial line and how it is driven. Times in seconds."""

    port: str
    """``/dev/serial/by-id/…``, ``COM3``, or a link to a pty."""
    baudrate: int = 9600
    bytesize: int = 8
    parity: str = "N"
    """N, E or O."""
    stopbits: float = 1
    framing: Framing = Framing.RTU
    rs485: bool = False
    """Whether the driver switches the direction by RTS (the kernel's RS-485 mode)."""
    rts_level_for_tx: bool = True
    rts_delay_s: float = 0.0
    """Between RTS and the first bit, and between the last bit and RTS."""
    turnaround_s: float = 0.0
    """Waited after a broadcast, and before each request, beyond the silent interval."""

    @property
    def character_s(self) -> float:
        """How long one character takes on the wire."""
        parity_bits = 0 if self.parity == "N" else 1
        return (1 + self.bytesize + parity_bits + self.stopbits) / self.baudrate

    @property
    def silence_s(self) -> float:
        """The silence between frames: 3.5 characters, 1.75 ms above 19200 baud."""
        return 0.00175 if self.baudrate > 19200 else 3.5 * self.character_s

    @property
    def text(self) -> str:
        """For the log."""
        return f"{self.port} at {self.baudrate} {self.bytesize}{self.parity}{self.stopbits:g}"


@dataclass(frozen=True, slots=True)
class DialInPlace:
    """A port of ours to which the device, often behind a cellular modem, connects."""

    host: str
    port: int
    registration: bytes
    """What the device sends first, and names itself by."""
    framing: Framing = Framing.MBAP
    heartbeat: bytes = b""
    """What the device sends now and then between frames; passed over."""

    @property
    def text(self) -> str:
        """For the log."""
        return f"{self.registration.decode('ascii', 'backslashreplace')} at {self.host}:{self.port}"


Place = TcpPlace | UdpPlace | SerialPlace | DialInPlace
