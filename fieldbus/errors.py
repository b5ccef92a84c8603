"""The one exception tree.

::

    FieldbusError
     ├ ConfigError(problems)      start-up and reload only: all problems, each with file, line, path
     ├ LinkDownError              the session is over: reconnect with backoff; its points are bad at once
     ├ RequestError               this request failed, the session lives
     │   ├ RequestTimeoutError    several in a row demote the device, not the link
     │   ├ DeviceExceptionError   the device said no: never a reconnect
     │   ├ BadResponseError       the stream cannot be trusted: reopen before the next request
     │   │   └ NotSentError       the request did not leave: a write has certainly not been done
     │   └ ConnectionLostError    the connection ended under it: it may have been carried out
     ├ ConversionError            one value cannot be expressed; the scan goes on
     └ RefusedError               a guard said no to a write, and why

A class exists only where somebody decides differently on it. They carry numbers where the decision
needs numbers; the sentence for people is their message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class FieldbusError(Exception):
    """Base of everything that fieldbus raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration, and where."""

    file: str
    """As the user named it, or relative to the config's folder."""
    line: int
    """1-based; 0 when the whole file is meant."""
    column: int
    """1-based; 0 when the whole line is meant."""
    path: str
    """Dotted path inside the file, such as ``devices.press.points.speed.type``; may be empty."""
    message: str
    """What is wrong, one sentence."""
    hint: str | None = None
    """What to do about it."""
    is_warning: bool = False
    """A warning is shown but does not stop anything."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: "
        path = f"{self.path}: " if self.path else ""
        kind = "warning: " if self.is_warning else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{path}{kind}{self.message}{hint}"


def os_reason(error: OSError) -> str:
    """Return why the system refused something, without number and file."""
    return (error.strerror or str(error)).lower()


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the hint ``did you mean …?`` if one of `names` is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None


class ConfigError(FieldbusError):
    """The configuration cannot be used; `problems` says everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class LinkDownError(FieldbusError):
    """A link cannot be opened, or was lost."""


class PeerIsBackError(LinkDownError):
    """A link was lost because its peer has come anew: there is no need to wait before it is opened again."""


class RequestError(FieldbusError):
    """One request failed; the session lives."""


class RequestTimeoutError(RequestError):
    """Nothing came back in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no answer within {timeout_s * 1000:.0f} ms")
        self.timeout_s = timeout_s


class DeviceExceptionError(RequestError):
    """The device answered with an exception."""

    def __init__(self, function_code: int, exception_code: int, name: str) -> None:
        super().__init__(f"device exception {exception_code:02X} ({name})")
        self.function_code = function_code
        self.exception_code = exception_code


class BadResponseError(RequestError):
    """An answer came that does not belong to the request: nothing after it can be trusted."""


class ConnectionLostError(RequestError):
    """The connection ended under the request: nobody knows whether the device has carried it out."""


class NotSentError(BadResponseError):
    """A request was not sent, since what came before it leaves no room for its answer."""


class ConversionError(FieldbusError):
    """A value cannot be expressed in the type it is meant for."""


class RefusedError(FieldbusError):
    """A guard said no to a write."""
