"""What the commands that go to a broker share: its URL, and how the connection is secured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fieldbus.mqtt.tls import TlsFiles
from fieldbus.mqtt.visitor import PASSWORD_VARIABLE, BrokerUrl, Visitor, parse_url

CaOption = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="Who signs the broker's certificate (mqtts).")
]
CertificateOption = Annotated[
    Path | None, typer.Option("--certificate", metavar="FILE", help="Ours, if the broker wants one.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Of our certificate.")]
URL_HELP = f"mqtt://USER@HOST:PORT, or mqtts://; the password in {PASSWORD_VARIABLE}."


def is_url(text: str) -> bool:
    """Return whether a broker is meant, and not a file."""
    return "://" in text


def url_or_exit(text: str) -> BrokerUrl:
    """Return the broker that somebody named."""
    try:
        return parse_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="URL") from None


def visit(url: BrokerUrl, ca: Path | None, certificate: Path | None, key: Path | None) -> Visitor:
    """Return the visitor for a broker."""
    if not url.is_secured and (ca or certificate or key):
        raise typer.BadParameter("only mqtts:// is secured", param_hint="--ca, --certificate, --key")
    return Visitor(url, TlsFiles(ca, certificate, key))
