"""Types of configuration values that every protocol shares, for pydantic.

Rules: strict. A number is not a text, ``true`` is not 1, an unknown key is an error. Durations carry
their unit. A validator's message is one sentence for the person who wrote the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|min|h|d)\s*")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Settings(BaseModel):
    """Base of every section of the configuration."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


def problem(message: str) -> PydanticCustomError:
    """Return the error that a validator raises: a whole sentence, shown as it is."""
    return PydanticCustomError("fieldbus", "{message}", {"message": message})


def parse_duration(text: object) -> float:
    """Return the seconds that a duration such as ``250ms``, ``2s`` or ``5min`` has.

    Raises:
        PydanticCustomError: it is not one.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise problem(f"{text} has no unit: write {text}ms, {text}s or {text}min")
        raise problem(f"{text!r} is not a duration such as 250ms, 2s or 5min")
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
        if (self.env is None) == (self.file is None):
            raise problem("a secret is {env: NAME} or {file: PATH}")
        return self


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


class DeviceSettings(Settings):
    """What every device has."""

    link: str = Field(description="Name of the link that it is behind.")
    description: str = ""
