"""What a command is, and what is answered.

A command comes by one of these ways:

=============  ==========================================================================================
``route``      a row of the routing table; what it may do, the configuration says by having it
``local``      somebody on this machine who can read the gateway's token (`fieldbus write`)
``mqtt``       a topic: ``fieldbus/<gateway>/command/<actor>/<device>/<point>``
``fallback``   the gateway itself, because the source of a point went silent
=============  ==========================================================================================

A peer gateway is an actor as any other on ``mqtt``: it has the name with which it comes to the broker.

Layout of the payload on a topic: JSON, ``{"value": 42.5, "id": "…", "time": "2026-11-27T10:00:00Z"}`` and
perhaps ``"expires": "5s"`` and ``"mode": "arm"`` or ``"execute"``. ``time`` is when the command was given, as
ISO 8601 or in Unix seconds. The answer: ``{"point", "value", "outcome", "reason", "id", "time", "took_ms"}``.

Rules:

* A command without time is refused: brokers and networks hold messages back for as long as they like, and
  nobody could tell that it is an old one.
* A command without `id` is refused on a topic: it could not be told from its own repetition.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from fieldbus.errors import RefusedError
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.model import Kind, Point, Value
from fieldbus.sample_json import iso_time, parse_time
from fieldbus.settings import parse_duration
from fieldbus.text import is_well_formed

DEFAULT_EXPIRY_S = 10.0
LONGEST_EXPIRY_S = 60.0
"""How long a command may wait at most: so long its `id` is remembered."""
MAX_AHEAD_S = 2.0
"""How far the clock of who gives a command may be ahead of ours."""
MAX_PAYLOAD = 4096
LONGEST_ID = 128
LOWEST_INT = -(1 << 63)
HIGHEST_INT = (1 << 64) - 1
_KEYS = {"value", "id", "time", "expires", "mode"}
MODES = ("write", "arm", "execute")


class Writer(Protocol):
    """Has a link write, if it is not the usual way."""

    async def write(self, point: Point, value: Value, until_s: float) -> WriteResult:
        """Write a value until a moment (monotonic)."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """Somebody's wish that a point be written."""

    way: str
    """How it came: ``route``, ``local``, ``mqtt``, ``fallback``."""
    origin: str
    """From where: a topic, an address, a source point."""
    actor: str
    """Who wants it."""
    point: str
    """The point's address."""
    value: Value
    """As it was given: a label of the point is not its number yet."""
    id: str = ""
    """Names the command: what has the same actor and id is the same command."""
    given_ns: int | None = None
    """When it was given, wall clock, which may lie before 1970; None if it is executed at once."""
    expires_ns: int | None = None
    """From this moment on it must not be executed, wall clock; None if it is executed at once or never."""
    mode: str = "write"
    """``arm`` and ``execute`` of points that want to be confirmed."""
    bundle: Writer | None = field(default=None, compare=False, repr=False)
    """Of commands whose values are written together or not at all: what gathers them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended."""

    command: Command
    outcome: WriteOutcome
    reason: str | None
    received_ns: int
    done_ns: int
    value: Value
    """What was, or was to be, written."""

    def object(self) -> dict[str, Any]:
        """Return the answer as what `json` can write."""
        return {
            "point": self.command.point,
            "value": self.value,
            "outcome": str(self.outcome),
            "reason": self.reason,
            "id": self.command.id or None,
            "time": iso_time(self.received_ns),
            "took_ms": round(max(0, self.done_ns - self.received_ns) / 1e6, 3),
        }

    def payload(self) -> bytes:
        """Return the answer as a payload."""
        text = json.dumps(self.object(), ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")  # halves of surrogates, as JSON writes them


def read_command(payload: bytes, *, actor: str, point: str, origin: str) -> Command:
    """Return the command that a payload on a topic is.

    Raises:
        RefusedError: it is none, and why.
    """
    if len(payload) > MAX_PAYLOAD:
        raise RefusedError(f"a command has {MAX_PAYLOAD} bytes at most")
    try:
        data = json.loads(payload.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_doubles)
    except _DoubleKeyError as error:
        raise RefusedError(f"the key '{str(error)[:40]}' stands in the command twice") from None
    except (ValueError, RecursionError):
        raise RefusedError('a command is JSON: {"value": …, "id": "…", "time": …}') from None
    if not isinstance(data, dict):
        raise RefusedError('a command is a mapping: {"value": …, "id": "…", "time": …}')
    for key in data:
        if key not in _KEYS:
            raise RefusedError(f"unknown key '{str(key)[:40]}' in the command")
    value = data.get("value")
    if not isinstance(value, bool | int | float | str):
        raise RefusedError("the command has no `value` that is a number, text, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{value} is not a value")
    if isinstance(value, str) and not is_well_formed(value):
        raise RefusedError("the value is not valid Unicode text")
    if isinstance(value, int) and not LOWEST_INT <= value <= HIGHEST_INT:
        raise RefusedError("a whole number of more than 64 bits is not a value")
    name = data.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool) or not 0 < len(str(name)) <= LONGEST_ID:
        raise RefusedError("the command has no `id`, by which it is told from its repetition")
    given_ns = _moment(data.get("time"))
    expires = data.get("expires", DEFAULT_EXPIRY_S)
    if isinstance(expires, str):
        try:
            expires = parse_duration(expires)
        except Exception as error:
            raise RefusedError(f"`expires`: {error}") from None
    if (
        isinstance(expires, bool)
        or not isinstance(expires, int | float)
        or not 0 < expires <= LONGEST_EXPIRY_S
    ):
        raise RefusedError(f"`expires` is a duration of at most {LONGEST_EXPIRY_S:.0f} s")
    mode = data.get("mode", "write")
    if mode not in MODES:
        raise RefusedError("`mode` is write, arm or execute")
    return Command(
        "mqtt", origin, actor, point, value, str(name), given_ns, given_ns + round(expires * 1e9), mode
    )


def id_of(payload: bytes) -> str:
    """Return the id of a command, also of one that cannot be read otherwise; empty if it has none."""
    try:
        found = json.loads(payload[:MAX_PAYLOAD])["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    is_one = isinstance(found, str | int) and not isinstance(found, bool) and len(str(found)) <= LONGEST_ID
    return str(found) if is_one else ""


class _DoubleKeyError(Exception):
    """A key stands there twice."""


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DoubleKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def _moment(given: object) -> int:
    if isinstance(given, str):
        try:
            return parse_time(given)
        except (ValueError, OverflowError):
            raise RefusedError("`time` is ISO 8601 with a time zone, or Unix seconds") from None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e11:
        raise RefusedError("the command has no `time` at which it was given: ISO 8601, or Unix seconds")
    return round(given * 1e9)


def fitting(point: Point, value: Value) -> Value:
    """Return a value as the point has it: labels as their number, whole numbers as such.

    Raises:
        RefusedError: it is none of the point's.
    """
    if point.kind is Kind.STRING:
        if not isinstance(value, str):
            raise RefusedError(f"{_shown(value)} is not text")
        return value
    if isinstance(value, str):
        for number, label in point.labels.items():
            if label == value:
                return fitting(point, number)
        names = f", or one of {', '.join(point.labels.values())}" if point.labels else ""
        raise RefusedError(f"'{value[:60]}' is not a {point.kind}{names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{value} is not a value")
    if point.kind is Kind.BOOL:
        if value not in (0, 1):
            raise RefusedError(f"{_shown(value)} is neither true nor false")
        return bool(value)
    if isinstance(value, bool):
        raise RefusedError(f"{_shown(value)} is not a number")
    if point.kind is Kind.INT:
        if value != int(value):
            raise RefusedError(f"{value:g} is not a whole number")
        return int(value)
    try:
        return float(value)
    except OverflowError:
        raise RefusedError("a whole number beyond 1e308 is not a value") from None


def _shown(value: Value) -> str:
    return "true" if value is True else "false" if value is False else str(value)[:60]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
