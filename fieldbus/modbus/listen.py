"""How a server opens what it listens on, by its place. The only file that opens anything to serve.

Rules: `listen` returns when masters can ask, or raises `LinkDownError` with the system's own words for why
not. Nothing is left open when it fails. A port that is lost later (a serial adapter that was unplugged) is
told once, by `on_lost`.

Design: TCP and UDP are asyncio's own; TLS is done by the session (see `server_tls.py`); serial ports are
opened by the same function as for polling.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Collection
from typing import Protocol

from fieldbus.errors import LinkDownError, os_reason
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace, UdpPlace
from fieldbus.modbus.server_framing import AsciiRequests, MbapRequests, RequestFramer, RtuRequests
from fieldbus.modbus.server_sessions import DatagramSession, LineSession, Service, StreamSession
from fieldbus.modbus.server_tls import TlsChannel, server_context
from fieldbus.modbus.transport import open_serial

ServerPlace = TcpPlace | UdpPlace | SerialPlace
BACKLOG = 128
"""Connections that wait to be accepted; asyncio accepts so many in one turn of the loop."""
STREAM_SILENCE_S = 1.0
"""What divides RTU frames on a stream, where the silence of the line does not arrive as it was."""


STREAM_NOISE = 2048
"""Bytes on such a stream that may be no frame before the connection is ended."""
_OTHER_FILES = 256
"""Files and sockets that are not sessions of ours, with room to spare."""


class Listener(Protocol):
    """What is listened on."""

    port: int
    """The port that the system chose, where the place said 0; 0 for a serial port."""

    @property
    def is_listening(self) -> bool:
        """Whether somebody could connect, or ask, now."""
        ...

    def close(self) -> None:
        """Stop listening. Connections that were accepted live on."""


async def listen(
    place: ServerPlace,
    service: Service,
    our_units: Collection[int],
    on_lost: Callable[[str], None],
    *,
    has_echo: bool = False,
) -> Listener:
    """Begin to listen.

    Args:
        place: where; its host may be a name.
        service: whoever answers.
        our_units: unit ids that are ours alone, which matters on a line.
        on_lost: called with the reason when the port itself is lost.
        has_echo: whether a serial line brings back what we send.

    Raises:
        LinkDownError: the port is taken, or not there, or a certificate cannot be used.
    """
    if isinstance(place, SerialPlace):
        if place.framing is Framing.ASCII:
            return _Line(place, service, AsciiRequests(has_echo=has_echo), on_lost)
        line = RtuRequests(our_units, silence_s=place.silence_s, has_echo=has_echo)
        return _Line(place, service, line, on_lost)

    def framer() -> RequestFramer:
        if place.framing is Framing.RTU:
            return RtuRequests(our_units, silence_s=STREAM_SILENCE_S, most_noise=STREAM_NOISE)
        return MbapRequests()

    try:
        if isinstance(place, UdpPlace):
            return await _listen_on_udp(place, service, on_lost)
        return await _listen_on_tcp(place, service, framer)
    except OSError as error:
        reason = os_reason(error).rsplit(": ", 1)[-1]  # asyncio says it at length
        raise LinkDownError(f"cannot listen: {reason}") from error


def make_room(sessions: int) -> None:
    """Let this process have so many connections, as far as the system allows.

    Without a file descriptor to spare nobody can be accepted, and so nobody can be made to give way.
    """
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - there is none on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sessions + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _listen_on_tcp(place: TcpPlace, service: Service, framer: Callable[[], RequestFramer]) -> Listener:
    context = None if place.tls is None else server_context(place.tls)

    def session() -> StreamSession:
        return StreamSession(service, framer(), None if context is None else TlsChannel(context))

    loop = asyncio.get_running_loop()
    return _Tcp(await loop.create_server(session, place.host, place.port, backlog=BACKLOG))


class _Tcp:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]

    @property
    def is_listening(self) -> bool:
        return self._server.is_serving()

    def close(self) -> None:
        self._server.close()


async def _listen_on_udp(place: UdpPlace, service: Service, on_lost: Callable[[str], None]) -> Listener:
    loop = asyncio.get_running_loop()
    # Bound before a transport has it: uvloop would not say why it cannot be bound, and leave it open.
    found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    own = socket.socket(family, socket.SOCK_DGRAM)
    try:
        own.setblocking(False)
        own.bind(address)
        transport, _ = await loop.create_datagram_endpoint(
            lambda: DatagramSession(service, on_lost), sock=own
        )
    except BaseException:
        own.close()
        raise
    return _Udp(transport)


class _Udp:
    def __init__(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport
        self.port: int = transport.get_extra_info("sockname")[1]

    @property
    def is_listening(self) -> bool:
        return not self._transport.is_closing()

    def close(self) -> None:
        self._transport.abort()


class _Line:
    port = 0
    is_listening = True
    """A port that is lost is told by `on_lost`."""

    def __init__(
        self, place: SerialPlace, service: Service, framer: RequestFramer, on_lost: Callable[[str], None]
    ) -> None:
        self._session = LineSession(service, framer, place.silence_s + place.turnaround_s, on_lost)
        transport = open_serial(place, self._session)
        self._session.connection_made(transport)
        if transport.force_poll:
            transport.setup()
        else:
            loop = asyncio.get_running_loop()
            loop.add_reader(transport.sync_serial.fileno(), transport.intern_read_ready)

    def close(self) -> None:
        self._session.end()
