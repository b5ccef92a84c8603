"""A visit to a broker, for a person who wants to see, or say, something: no gateway, no session that lasts.

Rules: a URL is ``mqtt://[user[:password]@]host[:port][/gateway]`` or ``mqtts://…``; the password may also
stand in the environment variable `PASSWORD_VARIABLE`. What was asked of others is taken back at the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import unquote, urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fieldbus.errors import LinkDownError
from fieldbus.mqtt import peering
from fieldbus.mqtt.opening import refusal_of
from fieldbus.mqtt.reasons import reason_of
from fieldbus.mqtt.tls import TlsFiles, context_of

PASSWORD_VARIABLE = "FIELDBUS_PASSWORD"  # noqa: S105 - the variable's name
CONNECT_TIMEOUT_S = 5.0
# What paho would log is said better by whoever visits.
_LOGGER = logging.getLogger("fieldbus.mqtt.paho")
_LOGGER.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where a broker is, and who comes."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    gateway: str = ""
    is_secured: bool = False

    @property
    def place(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port}"


def parse_url(text: str, environment: Mapping[str, str] = os.environ) -> BrokerUrl:
    """Return what a URL says.

    Raises:
        ValueError: it is none of a broker's; the message is for who typed it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("it is not a URL such as mqtt://broker.example:1883") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise ValueError("it is not a URL such as mqtt://user@broker.example:1883/gateway")
    gateway = parts.path.strip("/")
    if gateway and not peering.is_gateway_name(gateway):
        if "@" in gateway:  # the path begins inside of a password then
            raise ValueError("a / in a user or password of a URL is written %2F")
        raise ValueError(f"'{gateway}' is not the name of a gateway")
    is_secured = parts.scheme == "mqtts"
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else environment.get(PASSWORD_VARIABLE)
    return BrokerUrl(
        parts.hostname,
        port or (8883 if is_secured else 1883),
        username,
        password if username is not None else None,
        gateway,
        is_secured,
    )


class Heard(NamedTuple):
    """A message."""

    topic: str
    payload: bytes
    is_retained: bool
    expires_s: int | None = None
    """For how long the broker will keep it from now on; None if that was not said."""


class Visitor:
    """A connection for as long as a ``with`` lasts."""

    def __init__(self, url: BrokerUrl, tls: TlsFiles | None = None) -> None:
        self.user = "visitor"
        """Under which answers come; the broker's user where there is one."""
        if url.username is not None and peering.is_gateway_name(url.username):
            self.user = url.username
        self.name = f"{self.user}/{os.getpid()}-{secrets.token_hex(3)}"
        """Under which samples come."""
        self._url = url
        self._tls = tls or TlsFiles()
        self._client: aiomqtt.Client
        self._wanted_of: set[str] = set()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            LinkDownError: the broker is not there, or refuses us.
        """
        url = self._url
        self._client = aiomqtt.Client(
            url.host,
            url.port,
            username=url.username,
            password=url.password,
            identifier=f"fieldbus-visitor-{os.getpid()}-{secrets.token_hex(3)}",
            protocol=aiomqtt.ProtocolVersion.V5,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            keepalive=15,
            timeout=CONNECT_TIMEOUT_S,
            logger=_LOGGER,
            tls_context=context_of(self._tls) if url.is_secured else None,
        )
        try:
            await self._client.__aenter__()
        except (aiomqtt.MqttError, OSError) as error:
            reason = refusal_of(error, self._tls if url.is_secured else None)
            raise LinkDownError(f"{self._url.place}: {reason}") from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take back what was asked for, and leave."""
        with suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(2.0):
                for gateway in self._wanted_of:
                    await self._client.publish(peering.topic(gateway, "want", self.name), b"", qos=1)
                await self._client.__aexit__(None, None, None)

    async def hear(self, *topics: str) -> None:
        """Hear topics from now on."""
        try:
            await self._client.subscribe([(topic, 1) for topic in topics])
        except aiomqtt.MqttError as error:
            raise LinkDownError(f"{self._url.place}: {reason_of(error)}") from error

    async def want(self, gateway: str, want: peering.Want) -> None:
        """Have a gateway send what is wanted."""
        self._wanted_of.add(gateway)
        await self.say(peering.topic(gateway, "want", self.name), peering.encode_want(want))

    async def say(
        self,
        topic: str,
        payload: bytes,
        *,
        answer_to: str | None = None,
        signature: str | None = None,
        expiry_s: int | None = None,
    ) -> None:
        """Publish.

        Raises:
            LinkDownError: the connection is lost.
        """
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if answer_to is not None:
            properties.ResponseTopic = answer_to
        if signature is not None:
            properties.UserProperty = ("signature", signature)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        try:
            await self._client.publish(topic, payload, qos=1, properties=properties)
        except (aiomqtt.MqttError, ValueError) as error:
            raise LinkDownError(f"{self._url.place}: {reason_of(error)}") from error

    async def messages(self) -> AsyncIterator[Heard]:
        """Yield what comes.

        Raises:
            LinkDownError: the connection is lost.
        """
        try:
            async for message in self._client.messages:
                payload = message.payload
                data = payload if isinstance(payload, bytes) else str(payload or "").encode()
                expires_s = getattr(message.properties, "MessageExpiryInterval", None)
                yield Heard(str(message.topic), data, bool(message.retain), expires_s)
        except aiomqtt.MqttError as error:
            raise LinkDownError(f"{self._url.place}: {reason_of(error)}") from error


def tls_files(ca: Path | None, certificate: Path | None, key: Path | None) -> TlsFiles:
    """Return the files that somebody named."""
    return TlsFiles(ca, certificate, key)
