"""How a line is opened, by the place where the other side is. The only file that opens anything to poll.

Rules: `open_line` returns a line that can be asked, or raises `LinkDownError` with the system's own words for
why. Nothing is left open when it fails.

Design: TCP, TLS and UDP are asyncio's own transports. Serial ports are opened by pymodbus' asyncio transport
(pyserial underneath), which knows Windows too. Devices that dial in come from `dial_in.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl

from pymodbus.transport.serialtransport import SerialTransport

from fieldbus.errors import LinkDownError
from fieldbus.modbus.client import Line, Owner, connection_reason, tls_reason
from fieldbus.modbus.dial_in import dial_in_port
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.framing import AsciiFramer, Framer, MbapFramer, RtuFramer
from fieldbus.modbus.places import DialInPlace, Framing, Place, SerialPlace, TcpPlace, TlsFiles, UdpPlace
from fieldbus.modbus.quirks import LineQuirks

# pyserial's own exception is an OSError; that of the system for settings is not.
_PORT_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError)
with contextlib.suppress(ImportError):  # not on Windows
    import termios

    _PORT_ERRORS += (termios.error,)

# What pymodbus would say is said better by the gateway, once.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

_LISTENS_S = 0.25
"""How long a line without transactions is listened to before the first request: whoever had it before may
have asked something that is still answered."""
_DIALS_IN_S = 30.0
"""How long a device is waited for before it is said that it is away."""


async def open_line(
    place: Place, owner: Owner, quirks: LineQuirks, timeout_s: float, echo: LineEcho | None = None
) -> Line:
    """Open the line to a place.

    Raises:
        LinkDownError: it cannot be opened.
    """
    echo = LineEcho(quirks.echo) if echo is None else echo
    echo.begin()
    if isinstance(place, SerialPlace):
        line = await _open_serial(place, owner, quirks, echo)
    elif isinstance(place, DialInPlace):
        line = await _await_caller(place, owner, quirks, echo)
    elif isinstance(place, UdpPlace):
        line = await _open_udp(place, owner, quirks, timeout_s, echo)
    else:
        line = await _open_one_of_two(place, owner, quirks, timeout_s, echo)
    if line.is_lost:
        raise LinkDownError("connection closed by the peer")
    line.settle(_LISTENS_S)
    return line


async def _open_one_of_two(
    place: TcpPlace, owner: Owner, quirks: LineQuirks, timeout_s: float, echo: LineEcho
) -> Line:
    try:
        return await _open_tcp(place, place.host, place.port, owner, quirks, timeout_s, echo)
    except LinkDownError as error:
        if place.backup is None:
            raise
        host, port = place.backup
        try:
            line = await _open_tcp(place, host, port, owner, quirks, timeout_s, echo)
        except LinkDownError as other:
            raise LinkDownError(f"{error}; the backup {host}:{port}: {other}") from other
        line.where = f"the backup {host}:{port}"
        return line


def make_framer(framing: Framing, quirks: LineQuirks, echo: LineEcho | None = None) -> Framer:
    """Return a new framer for a connection."""
    if framing is Framing.MBAP:
        return MbapFramer(takes_zero=quirks.zero_transaction_id, takes_any_unit=quirks.any_unit_id)
    make = RtuFramer if framing is Framing.RTU else AsciiFramer
    return make(takes_any_unit=quirks.any_unit_id, echo=LineEcho(quirks.echo) if echo is None else echo)


async def _open_tcp(
    place: TcpPlace,
    host: str,
    port: int,
    owner: Owner,
    quirks: LineQuirks,
    timeout_s: float,
    echo: LineEcho,
) -> Line:
    context = None if place.tls is None else client_context(place.tls)
    server_name = None
    if place.tls is not None:
        server_name = place.tls.server_name or host
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            transport, line = await loop.create_connection(
                lambda: _stream_line(place.framing, owner, quirks, echo),
                host,
                port,
                ssl=context,
                server_hostname=server_name,
            )
    except TimeoutError:
        what = "the connection request" if context is None else "the connection request or to TLS"
        raise LinkDownError(f"no answer to {what}") from None
    except OSError as error:
        raise LinkDownError(connection_reason(error)) from error
    except (UnicodeError, ValueError) as error:  # of names that no host can have
        raise LinkDownError(f"'{host}' is no name of a host") from error
    _keep_alive(transport)
    return line


def _stream_line(
    framing: Framing, owner: Owner, quirks: LineQuirks, echo: LineEcho, heartbeat: bytes = b""
) -> Line:
    is_serial = framing is not Framing.MBAP
    # RTU frames on a stream have no transaction id either: they are treated as on a line.
    return Line(owner, make_framer(framing, quirks, echo), is_serial=is_serial, heartbeat=heartbeat)


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    """Have the kernel find out within a minute that a silent peer is gone."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # The last one is for data that nobody confirms, of which the others know nothing.
        for name, value in (
            ("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000),
        ):  # fmt: skip
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _open_udp(
    place: UdpPlace, owner: Owner, quirks: LineQuirks, timeout_s: float, echo: LineEcho
) -> Line:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, line = await loop.create_datagram_endpoint(
                lambda: Line(owner, make_framer(place.framing, quirks, echo)),
                remote_addr=(place.host, place.port),
            )
    except TimeoutError:
        raise LinkDownError("the name of the host was not resolved in time") from None
    except OSError as error:
        raise LinkDownError(connection_reason(error)) from error
    except (UnicodeError, ValueError) as error:
        raise LinkDownError(f"'{place.host}' is no name of a host") from error
    return line


async def _open_serial(place: SerialPlace, owner: Owner, quirks: LineQuirks, echo: LineEcho) -> Line:
    loop = asyncio.get_running_loop()
    line = Line(
        owner,
        make_framer(place.framing, quirks, echo),
        silence_s=place.silence_s + place.turnaround_s,
        character_s=place.character_s,
        is_serial=True,
    )
    transport = open_serial(place, line)
    # Connected at once: `setup` would only call it in the next turn of the loop.
    line.connection_made(transport)
    if transport.force_poll:
        transport.setup()
    else:
        loop.add_reader(transport.sync_serial.fileno(), transport.intern_read_ready)
    return line


def open_serial(place: SerialPlace, protocol: asyncio.Protocol) -> SerialTransport:
    """Open a serial port, for us alone.

    Raises:
        LinkDownError: it is not there, it is another program's, or it cannot do what is asked of it.
    """
    loop = asyncio.get_running_loop()
    try:
        transport = SerialTransport(
            loop, protocol, place.port, place.baudrate, place.bytesize, place.parity, place.stopbits, 0
        )
    except _PORT_ERRORS as error:
        raise LinkDownError(_serial_reason(error, place)) from error
    try:
        if place.rs485:
            from serial.rs485 import RS485Settings  # noqa: PLC0415 - only where the kernel has it

            transport.sync_serial.rs485_mode = RS485Settings(
                rts_level_for_tx=place.rts_level_for_tx,
                rts_level_for_rx=not place.rts_level_for_tx,
                delay_before_tx=place.rts_delay_s,
                delay_before_rx=place.rts_delay_s,
            )
        transport.sync_serial.reset_input_buffer()
    except _PORT_ERRORS as error:
        transport.sync_serial.close()
        has_no_mode = "the driver of the port has no RS-485 mode"
        reason = has_no_mode if place.rs485 else _serial_reason(error, place)
        raise LinkDownError(reason) from error
    return transport


def _serial_reason(error: BaseException, place: SerialPlace) -> str:
    if not isinstance(error, OSError):
        mode = f"{place.baudrate} {place.bytesize}{place.parity}{place.stopbits:g}"
        hint = "" if place.parity == "N" else "; a pseudo-terminal has no parity: `parity: none`"
        return f"the port cannot be set to {mode}{hint}"
    number = error.errno
    if number == 2:
        return "there is no such port"
    if number in (11, 16):
        return "another program has the port"
    if number == 13:
        return "no permission to open the port (on Linux: the group dialout)"
    if number == 5:
        return "the port does not answer (unplugged?)"
    text = str(error)
    if "exclusively lock" in text:
        return "another program has the port"
    if number in (6, 21) or "Inappropriate ioctl" in text:
        return "this is no serial port"
    return connection_reason(error)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a TLS client needs: TLS 1.2 or newer, the server's certificate checked.

    Raises:
        LinkDownError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=str(files.ca))
    except (OSError, ssl.SSLError) as error:
        raise LinkDownError(f"TLS: {files.ca.name} cannot be used ({_file_reason(error)})") from error
    if files.certificate is not None:
        try:
            # A function, since OpenSSL asks at the terminal for a password that is None.
            context.load_cert_chain(
                str(files.certificate), files.key and str(files.key), lambda: files.key_password or ""
            )
        except (OSError, ssl.SSLError) as error:
            text = f"TLS: {files.certificate.name} and its key cannot be used ({_file_reason(error)})"
            raise LinkDownError(text) from error
    return context


def _file_reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return tls_reason(error)
    return connection_reason(error)


async def _await_caller(place: DialInPlace, owner: Owner, quirks: LineQuirks, echo: LineEcho) -> Line:
    port = dial_in_port(place)
    await port.listen(place.registration)
    try:
        async with asyncio.timeout(_DIALS_IN_S):
            caller = await port.caller(place.registration)
    except TimeoutError:
        raise LinkDownError("the device has not dialled in") from None
    transport, rest = caller.hand_over()
    line = _stream_line(place.framing, owner, quirks, echo, place.heartbeat)
    transport.set_protocol(line)
    line.connection_made(transport)
    port.serves(place.registration, line)
    _keep_alive(transport)
    if not (place.heartbeat and rest.startswith(place.heartbeat)):
        rest = rest.lstrip(b"\r\n\0")  # the end of the registration's line
    if rest:
        line.data_received(rest)
    return line
