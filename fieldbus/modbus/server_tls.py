"""TLS on the server's side of a connection, sans-IO: bytes of the wire in, bytes of Modbus out, and back.

Rules:

* TLS 1.2 or newer, no renegotiation, and the client shows a certificate that our `ca` signed and that is
  valid now; else the connection ends after the alert that says why.
* However the wire cuts and joins records, the bytes inside come out in order.

Design: OpenSSL works on two buffers in memory and not on the socket, so that a connection counts as one from
the moment it is accepted: those that never finish their handshake are bounded like all others, cost no task,
and an address that is not allowed is hung up on before OpenSSL has seen a byte of it.
"""

from __future__ import annotations

import ssl

from fieldbus.errors import LinkDownError, os_reason
from fieldbus.modbus.places import TlsFiles

_MOST_AT_ONCE = 1 << 16


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a server with mutual authentication needs.

    Raises:
        LinkDownError: a file cannot be used.
    """
    if files.certificate is None:
        raise LinkDownError("TLS: a server needs a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a session that is resumed would outlive the certificate's revocation
    path = files.ca
    try:
        context.load_verify_locations(cafile=str(path))
        path = files.certificate
        # Never ask at the terminal for a password: an empty one is wrong and raises.
        context.load_cert_chain(
            str(path), None if files.key is None else str(files.key), files.key_password or ""
        )
    except (OSError, ssl.SSLError) as error:
        raise LinkDownError(f"TLS: {path.name} cannot be used ({_reason(error)})") from error
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return os_reason(error)


class TlsChannel:
    """One connection's encryption."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.is_open = False
        """Whether the handshake is done."""
        self.fault: str | None = None
        """Why nothing more can come, once that is so."""

    @property
    def certificate(self) -> bytes:
        """The client's certificate (DER), once the channel is open."""
        return self._tls.getpeercert(binary_form=True) or b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the wire; return what was inside them."""
        if self.fault is not None:
            return b""
        self._in.write(data)
        plain = b""
        try:
            if not self.is_open:
                self._tls.do_handshake()
                self.is_open = True
            while piece := self._tls.read(_MOST_AT_ONCE):
                plain += piece
            self.fault = "closed"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.fault = _reason(error)
        return plain

    def wrap(self, data: bytes) -> None:
        """Encrypt bytes for the wire; they are in `outgoing` then."""
        if self.fault is not None:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self.fault = _reason(error)

    def outgoing(self) -> bytes:
        """Return what has to go on the wire now."""
        return self._out.read()
