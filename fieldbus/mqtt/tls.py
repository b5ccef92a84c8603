"""TLS to a broker: its certificate is checked, and ours shown if it wants one.

Rules: TLS 1.2 or newer; the name in the certificate must be the host's, or `server_name`. The files are read
anew for each connection, so that a certificate that was renewed is used without a restart. A key's password
and what is in a key never appear in an error.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldbus.errors import LinkDownError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificates are, in PEM format."""

    ca: Path | None = None
    """Who signs the broker's certificate; None for those whom this machine trusts."""
    certificate: Path | None = None
    """Ours, with its chain."""
    key: Path | None = None
    """Ours, if it is not in the certificate's file."""
    key_password: str | None = field(default=None, repr=False)
    server_name: str | None = None
    """The name that the broker's certificate has, if it is not the host's."""


class _Socket(ssl.SSLSocket):
    """Is closed when the handshake fails: paho leaves it to the garbage collector, each time."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002 - as its base has it
        """Shake hands."""
        try:
            super().do_handshake(block)
        except (OSError, ValueError):
            self.close()
            raise


class _NamedContext(ssl.SSLContext):
    """Checks for another name than that of the host: paho has no way to say so."""

    name: str | None = None

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Wrap a socket."""
        if self.name is not None:
            options["server_hostname"] = self.name
        return super().wrap_socket(*arguments, **options)


def context_of(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of one connection.

    Raises:
        LinkDownError: a file cannot be used.
    """
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.name = files.server_name
    context.sslsocket_class = _Socket
    try:
        if files.ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(files.ca)
    except (OSError, ssl.SSLError):
        raise LinkDownError(f"tls: {files.ca} has no certificates in PEM format") from None
    if files.certificate is not None:
        try:
            context.load_cert_chain(files.certificate, files.key, files.key_password or "")
        except (OSError, ssl.SSLError, ValueError):
            text = "certificate and key do not belong together, or the key's password is wrong"
            raise LinkDownError(f"tls: {files.certificate}: {text}") from None
    return context
