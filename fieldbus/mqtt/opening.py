"""Opens a connection to a broker, and says in words why that, or something later, failed."""

from __future__ import annotations

import asyncio
import ssl

from fieldbus.errors import LinkDownError
from fieldbus.mqtt.connection import Connection
from fieldbus.mqtt.reasons import reason_of, words
from fieldbus.mqtt.tls import TlsFiles

CONNECT_TIMEOUT_S = 5.0
NO_ANSWER = "no answer to the attempt to connect"


async def open_connection(
    connection: Connection,
    host: str,
    port: int,
    hello: bytes,
    *,
    tls: ssl.SSLContext | None,
    server_name: str | None,
) -> None:
    """Connect, send CONNECT, and wait until the broker accepts us.

    Raises:
        LinkDownError: the broker is not there, or refuses us.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await loop.create_connection(
                lambda: connection,
                host,
                port,
                ssl=tls,
                server_hostname=None if tls is None else server_name or host,
            )
            connection.transport.write(hello)
            await asyncio.shield(connection.connected)
    except TimeoutError:
        connection.abort()
        raise LinkDownError(NO_ANSWER) from None
    except OSError as error:
        connection.abort()
        raise LinkDownError(words(error)) from error
    except LinkDownError as error:
        connection.abort()
        # A broker that does not like how we come (TLS, certificate) hangs up without a word.
        raise LinkDownError(str(error) if connection.was_answered else NO_ANSWER) from error
    except BaseException:
        connection.abort()
        raise


def guess(reason: str, tls: TlsFiles | None) -> str:
    """Return why a broker could not be connected to, with what may be the cause if it says nothing."""
    if reason != NO_ANSWER:
        return reason
    if tls is None:
        return f"{reason} (does the broker want TLS?)"
    return reason if tls.certificate is not None else f"{reason} (does the broker want a certificate?)"


def refusal_of(error: BaseException, tls: TlsFiles | None) -> str:
    """Return why aiomqtt could not connect to a broker, for people."""
    reason = reason_of(error)
    return guess(NO_ANSWER if reason == "operation timed out" else reason, tls)
