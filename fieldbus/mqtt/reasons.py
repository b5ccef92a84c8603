"""Why something with a broker failed, in words."""

from __future__ import annotations

import os
import ssl

from fieldbus.mqtt import packets
from fieldbus.text import printable


def words(error: Exception) -> str:
    """Return why a connection failed, for people."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not accepted: {printable(error.verify_message)}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno and error.errno > 0:  # else it is the resolver's
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or error).lower() or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return why something that aiomqtt does with a broker failed, for people."""
    cause = error.__cause__ or error.__context__
    for found in (error, cause):
        if isinstance(found, ssl.SSLError):
            return words(found)
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    code = getattr(cause, "rc", None)
    code = getattr(code, "value", code)
    if code == packets.FIRST_ERROR:  # what paho says if the broker said nothing
        return "connection lost"
    if isinstance(code, int) and code > packets.FIRST_ERROR:
        return packets.reason(code)
    text = str(cause) if isinstance(cause, OSError) and str(cause) else str(error)
    for noise in ("[code:", "[Errno"):
        if text.startswith(noise):
            text = text.split("]", 1)[-1].strip()
    return (text[:1].lower() + text[1:]) or type(error).__name__
