"""Types of configuration values that every protocol shares, for pydantic.

Rules: strict. A number is not a text, ``true`` is not 1, an unknown key is an error. Durations carry
their unit. A validator's message is one sentence for the person who wrote the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

_DURATION = re.compile(r"\s*(\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})\s*(us|ms|s|min|h|d)\s*")
_LONGEST_SHOWN = 60
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Of a file, in bytes, as most file systems have it."""
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Settings(BaseModel):
    """Base of every section of the configuration."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


def problem(message: str, *path: str | int) -> PydanticCustomError:
    """Return the error that a validator raises.

    Args:
        message: a whole sentence, shown as it is.
        path: what it is about, seen from what is validated: the key, and perhaps what lies in it. Without it
            the problem is one of the whole.
    """
    return PydanticCustomError("fieldbus", "{message}", {"message": message, "path": path})


def shown(text: object) -> str:
    """Return what somebody wrote, for a message: not more of it than helps."""
    found = str(text)
    found = found if len(found) <= _LONGEST_SHOWN else f"{found[:_LONGEST_SHOWN]}…"
    return f"'{found}'" if isinstance(text, str) else found


def file_trouble(name: str) -> str | None:
    """Return why no file can have a name, or a path; None if one can."""
    if "\0" in name:
        return "a file cannot have the character NUL in its name"
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        return "half a character is in its name"
    if max(map(len, parts)) > _LONGEST_NAME or len(name.encode()) > _LONGEST_PATH:
        return f"no file can have such a long name (at most {_LONGEST_NAME} bytes)"
    return None


def _check_file(name: str) -> str:
    trouble = file_trouble(name)
    if trouble is not None:
        raise problem(f"{shown(name)}: {trouble}")
    return name


FileName = Annotated[str, AfterValidator(_check_file)]
"""The name or the path of a file or a folder that there can be."""


def _check_host(host: str) -> str:
    """Return a host without what is no part of its name: brackets belong to an IPv6 address in a URL."""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not host.isprintable() or " " in host:
        raise problem(f"{shown(host)}: a host has a name or an address, without blanks")
    if "/" in host:
        raise problem(f"{shown(host)} is a URL: write the name or the address alone")
    if host.count(":") == 1:
        raise problem(f"{shown(host)} has a port in it: write `host` and `port` apart")
    return host


Host = Annotated[str, AfterValidator(_check_host)]
"""A name or an address; IPv6 with or without brackets."""


def parse_duration(text: object) -> float:
    """Return the seconds that a duration such as ``250ms``, ``2s`` or ``5min`` has.

    Raises:
        PydanticCustomError: it is not one.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        if isinstance(text, int | float) and not isinstance(text, bool):
            number = shown(text)
            raise problem(f"{number} has no unit: write {number}ms, {number}s or {number}min")
        raise problem(f"{shown(text)} is not a duration such as 250ms, 2s or 5min")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= 366 * 86400:
        raise problem(f"{text} is not between 1us and 366d")
    return seconds


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"type": "string", "pattern": r"^(\d+(\.\d*)?|\.\d+) ?(us|ms|s|min|h|d)$", "examples": ["500ms"]}
    ),
]
"""Seconds, written with a unit."""

_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{0,15})?)\s*(kB|MB|GB|KiB|MiB|GiB)\s*")
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_size(text: object) -> int:
    """Return the bytes of a size such as ``256MiB``.

    Raises:
        PydanticCustomError: it is none.
    """
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise problem(f"{shown(text)} is not a size such as 256MiB or 2GiB")
    size = round(float(match[1]) * _BYTES[match[2]])
    if size < 1 << 20:
        raise problem(f"{text} is less than 1MiB")
    return size


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\d+(\.\d*)? ?([KMG]iB|kB|MB|GB)$", "examples": ["256MiB"]}
    ),
]
"""Bytes, written with a unit."""

Port = Annotated[int, Field(ge=1, le=65535)]
Number = int | Annotated[float, Field(allow_inf_nan=False)]
Scalar = bool | int | float | str


class Secret(Settings):
    """A secret by reference: ``{env: NAME}`` or ``{file: PATH}``; never the secret itself."""

    env: str | None = Field(None, description="Name of an environment variable.")
    file: Path | None = Field(None, strict=False, description="A file whose first line is the secret.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_literal(cls, data: Any) -> Any:
        if isinstance(data, str):
            raise problem("a secret does not stand in the config: write {env: NAME} or {file: PATH}")
        return data

    @model_validator(mode="after")
    def _has_one_source(self) -> Secret:
        if self.file is not None:
            _check_file(str(self.file))
        if (self.env is None) == (self.file is None):
            raise problem("a secret is {env: NAME} or {file: PATH}")
        return self


class TlsClientSettings(Settings):
    """Files in PEM format; relative paths start at the config's folder."""

    ca: FileName = Field(description="Who signs the server's certificate.")
    certificate: FileName | None = Field(None, description="Ours, with its chain.")
    key: FileName | None = None
    key_password: Secret | None = None
    server_name: str | None = Field(
        None, description="The name in the server's certificate, if not the host."
    )

    @model_validator(mode="after")
    def _check(self) -> TlsClientSettings:
        if self.key is not None and self.certificate is None:
            raise problem("a `key` without a `certificate` proves nothing")
        return self


class FallbackSettings(Settings):
    """The safe value of a point, and when it goes there."""

    after: Duration = Field(description="So much silence of its source.")
    value: Scalar


class GuardSettings(Settings):
    """What a point that can be written is protected by, beside its range."""

    step: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="Values that are written lie so far apart, counted from `min` or 0."
    )
    max_change: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="How far a write may be from the present value."
    )
    min_interval: Duration | None = Field(None, description="Between two writes, at least.")
    non_volatile: bool | Annotated[int, Field(ge=1, le=100_000)] = Field(
        False,
        description="Each write wears the device's memory: so many within 24 hours, at most; `true` is 24.",
    )
    only_if: str | None = Field(
        None, description="Interlock: press.door == closed and press.speed < 10, by good values."
    )
    confirm: bool = Field(False, description="Whether a write has to be armed first, and then executed.")
    fallback: FallbackSettings | None = Field(
        None, description="Dead-man: the value that it gets when its source is silent."
    )

    @property
    def has_guard(self) -> bool:
        """Whether anything is said."""
        return any(getattr(self, name) != item.default for name, item in GuardSettings.model_fields.items())


class Substitute(Settings):
    """``{value: 0}``: what to say instead of a bad value."""

    value: Scalar


AccessName = Literal["read", "write", "readwrite"]


class LinkSettings(Settings):
    """What every link has."""

    description: str = ""

    def conflict(self, other: LinkSettings) -> tuple[str, str] | None:
        """Return the key and the reason for which there cannot be both links, None if there can."""
        return None

    def advice(self) -> Iterable[tuple[str, str, str]]:
        """Yield what is worth knowing on this machine: a key, a sentence, and what to do."""
        return ()


class DeviceSettings(Settings):
    """What every device has."""

    link: str = Field(description="Name of the link that it is behind.")
    description: str = ""
