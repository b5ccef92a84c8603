"""Who may do what on a server: networks, roles and rights. Pure but for reading certificates.

Rules:

* A peer outside the networks in `allow` is not listened to at all. No networks: everybody is.
* A peer that showed a certificate has the role that stands in it (Modbus/TCP Security), and the right that
  the configuration gives to the role. A role that it does not name, or none, has the right of `DEFAULT`.
* A right is for the whole server; what each point allows is a second fence behind it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509

from fieldbus.modbus import pdu

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ROLE_OID = x509.ObjectIdentifier("1.3.6.1.4.1.50316.802.1")
"""The extension of a certificate that holds the role, as an ASN.1 UTF8String."""
DEFAULT = "default"
"""In `roles`: what those have whose role is not named, or who have none."""
_UTF8_STRING = 0x0C


class Right(StrEnum):
    """What a peer may do."""

    NONE = "none"
    READ = "read"
    READWRITE = "readwrite"

    def covers(self, function_code: int) -> bool:
        """Return whether a request is within the right."""
        return self is Right.READWRITE or (self is Right.READ and function_code not in pdu.WRITING)


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules of one server."""

    networks: Sequence[Network] = ()
    """Whose peers are listened to; empty for everybody's."""
    roles: Mapping[str, Right] | None = None
    """None: whoever has a certificate may do everything."""

    def admits(self, address: object) -> bool:
        """Return whether a peer at an address is listened to."""
        if not self.networks:
            return True
        try:
            found = ipaddress.ip_address(str(address).partition("%")[0])  # fe80::1%eth0
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self.networks)

    def right_of(self, role: str) -> Right:
        """Return what a role may do."""
        if self.roles is None:
            return Right.READWRITE
        return self.roles.get(role if role != DEFAULT else "", self.roles.get(DEFAULT, Right.NONE))


def networks_of(texts: Iterable[str]) -> list[Network]:
    """Return the networks that texts such as ``10.0.0.0/8`` or ``127.0.0.1`` name.

    Raises:
        ValueError: one is none.
    """
    return [ipaddress.ip_network(text) for text in texts]


def role_in(certificate: bytes) -> str:
    """Return the role in a certificate (DER), an empty text if there is none that can be read."""
    try:
        extension = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_oid(ROLE_OID)
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return ""
    value = extension.value
    return _utf8_string(value.value) if isinstance(value, x509.UnrecognizedExtension) else ""


def _utf8_string(der: bytes) -> str:
    """Return the text in a DER UTF8String, an empty one if it is anything else."""
    if len(der) < 2 or der[0] != _UTF8_STRING:
        return ""
    size, start = der[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[2:start], "big")
    if start + size != len(der):
        return ""
    try:
        return der[start:].decode()
    except UnicodeDecodeError:
        return ""
