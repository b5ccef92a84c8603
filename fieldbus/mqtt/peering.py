"""What gateways say of themselves and to each other, on topics. Pure.

Topics, all below ``fieldbus/<gateway>/`` of the gateway whose points they are about:

=======================================  =========  ===================================================
``status``                               retained   ``online``, ``offline`` with reason; also the last will
``birth``                                retained   each point with kind, unit, range and access
``health``                               retained   links, devices, since when, backlog, drops, audit
``want/<peer>``                          retained   which points a peer wants, how (said by the peer)
``live/<peer>``                                     samples as they come, for a peer
``data/<peer>``                                     chunks of a durable stream, for a peer
``ack/<peer>``                                      what the peer has committed of it (said by the peer)
``command/<actor>/<device>/<point>``                write a point (said by the actor)
``answer/<gateway>``                                the answers of a gateway to our commands (said by it)
=======================================  =========  ===================================================

So a broker's access list needs a few lines for all peers and actors, see ``configs/mosquitto``. A visitor (a
person who watches) is ``<user>/<word>`` where a peer is ``<peer>``: several may come as one user. It wants
live samples only, and says so again and again: what it does not say for `VISIT_S` it does not want any more.

Layout of a want: ``{"live": {"sample": [address, …], "change": […]}, "durable": {…}}``.

Rules:

* Answers go to ``fieldbus/<who asked>/answer/<we>`` and nowhere else: whoever may give us a command, or only
  try to, must not have us publish on topics that are ours.
* Each point carries where it first was (``origin``, ``gateway/address``) and how many gateways it has come
  through (``hops``). A point whose origin is here, or that has come through `MAX_HOPS`, is not taken.
* What others say is checked whole before any of it is taken; what is wrong raises `PeeringError`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fieldbus.model import Access, Kind, Point
from fieldbus.sample_json import iso_time
from fieldbus.text import well_formed

MAX_HOPS = 8
VISIT_S = 30.0
HEALTH_EXPIRY_S = 7 * 86400
"""So long a broker keeps what a gateway says of its health. The broker itself counts the time down (MQTT 5.0,
3.3.2.3.3), so that the receiver knows how old the message is, whatever the clocks show."""
RENEW_S = 10.0
"""How often a visitor says what it wants."""
MAX_POINTS = 100_000
ROOT = "fieldbus"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POINT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LONGEST_ADDRESS = 512


class PeeringError(ValueError):
    """What another gateway says of itself, or wants, makes no sense."""


def topic(gateway: str, *rest: str) -> str:
    """Return a topic of a gateway."""
    return "/".join((ROOT, gateway, *rest))


def is_answer_topic(text: str, gateway: str) -> bool:
    """Return whether a gateway may answer on a topic that somebody else has named."""
    parts = text.split("/")
    is_one = len(parts) == 4 and (parts[0], parts[2], parts[3]) == (ROOT, "answer", gateway)
    return is_one and is_gateway_name(parts[1])


def is_gateway_name(name: str) -> bool:
    """Return whether a gateway can have a name."""
    return _NAME.fullmatch(name) is not None


def sign(key: bytes, topic: str, payload: bytes) -> str:
    """Return the signature of a command: HMAC-SHA256 over topic, line feed and payload, as 64 digits."""
    return hmac.new(key, topic.encode() + b"\n" + payload, hashlib.sha256).hexdigest()


def is_visitor(peer: str) -> bool:
    """Return whether a peer is a person who watches, and no gateway."""
    return "/" in peer


def is_peer_name(name: str) -> bool:
    """Return whether a gateway or a visitor can have a name."""
    first, slash, second = name.partition("/")
    return is_gateway_name(first) and (not slash or is_gateway_name(second))


@dataclass(frozen=True, slots=True)
class Birth:
    """What a gateway says that it has."""

    gateway: str
    version: str
    points: Sequence[Point]
    """As they are at that gateway: device and name of its own; `origin` and `hops` as there."""


def encode_birth(gateway: str, version: str, points: Iterable[Point], time_ns: int) -> bytes:
    """Return what a gateway says of itself and its points."""
    shown = {}
    for point in points:
        item: dict[str, Any] = {
            "kind": str(point.kind),
            "access": str(point.access),
            "origin": origin_of(gateway, point),
            "hops": point.hops,
        }
        known = {
            "unit": point.unit, "min": point.minimum, "max": point.maximum, "lowest": point.lowest,
            "highest": point.highest, "description": point.description or None,
            "group": point.group or None,
        }  # fmt: skip
        item |= {key: value for key, value in known.items() if value is not None}
        if point.labels:
            item["labels"] = {str(number): label for number, label in point.labels.items()}
        shown[point.address] = item
    found = {"gateway": gateway, "version": version, "time": iso_time(time_ns), "points": shown}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # half surrogates, as JSON writes them


def decode_birth(payload: bytes, gateway: str) -> Birth:
    """Return what a gateway says of itself.

    Raises:
        PeeringError: it makes no sense.
    """
    data = _mapping(payload)
    if data.get("gateway") != gateway:
        raise PeeringError(f"it is about {_shown(data.get('gateway'))}")
    points = data.get("points")
    if not isinstance(points, dict) or len(points) > MAX_POINTS:
        raise PeeringError(f"`points` is a mapping of at most {MAX_POINTS}")
    version = data.get("version")
    version = well_formed(version) if isinstance(version, str) else ""
    return Birth(gateway, version[:40], [_point(*item) for item in points.items()])


def _point(address: str, item: Any) -> Point:
    if not isinstance(item, dict):
        raise PeeringError("a point is a mapping")
    device, _, name = address.partition(".")
    if len(address) > _LONGEST_ADDRESS or not _NAME.fullmatch(device) or not _POINT.fullmatch(name):
        raise PeeringError(f"{address[:80]!r} is not a point")
    origin, hops = item.get("origin"), item.get("hops")
    if not isinstance(origin, str) or "/" not in origin or len(origin) > _LONGEST_ADDRESS:
        raise PeeringError(f"{address} has no origin")
    if type(hops) is not int or not 0 <= hops <= MAX_HOPS:
        raise PeeringError(f"{address} has no number of hops")
    try:
        labels = {_label_key(number): _text(label) or "" for number, label in item.get("labels", {}).items()}
        return Point(
            device=device,
            name=name,
            kind=Kind(item["kind"]),
            access=Access(item["access"]),
            unit=_text(item.get("unit")),
            minimum=_number(item.get("min")),
            maximum=_number(item.get("max")),
            lowest=_number(item.get("lowest")),
            highest=_number(item.get("highest")),
            labels=labels,
            description=_text(item.get("description")) or "",
            origin=well_formed(origin),
            hops=hops,
            group=_text(item.get("group")) or "",
        )
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        raise PeeringError(f"{address} is not described as a point is") from None


def _label_key(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not math.isfinite(number):
            raise
        return number


def _text(value: object) -> str | None:
    """Return a text that is to be shown; a number is one too."""
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise TypeError(type(value).__name__)
    return well_formed(str(value)[:200])


def _shown(value: object) -> str:
    return repr(well_formed(value)[:64]) if isinstance(value, str) else f"no name but {type(value).__name__}"


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return value


def origin_of(gateway: str, point: Point) -> str:
    """Return where a point that a gateway has first was."""
    return point.origin or f"{gateway}/{point.address}"


def taken_over(birth: Birth, device: str, me: str) -> dict[str, Point]:
    """Return the points of another gateway as points of one of our devices, by their address there.

    Left out is what first was here, and what has come through too many gateways.
    """
    found = {}
    for point in birth.points:
        if point.origin.partition("/")[0] == me or point.hops + 1 > MAX_HOPS:
            continue
        # What is written together there is the business of that gateway.
        found[point.address] = replace(
            point, device=device, name=point.address, hops=point.hops + 1, group=""
        )
    return found


@dataclass(frozen=True, slots=True)
class Want:
    """Which points a peer wants: addresses, each with whether every sample is wanted or only changes."""

    live: Mapping[str, bool] = field(default_factory=dict)
    durable: Mapping[str, bool] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.live or self.durable)


def encode_want(want: Want) -> bytes:
    """Return a want as a payload; of nothing, an empty one."""
    if not want:
        return b""
    return json.dumps(want_object(want), separators=(",", ":")).encode()


def want_object(want: Want) -> dict[str, Any]:
    """Return a want as what `json` can write."""
    return {
        name: {
            "sample": sorted(address for address, is_each in points.items() if is_each),
            "change": sorted(address for address, is_each in points.items() if not is_each),
        }
        for name, points in (("live", want.live), ("durable", want.durable))
    }


def decode_want(payload: bytes) -> Want:
    """Return a want.

    Raises:
        PeeringError: it makes no sense.
    """
    return want_of(_mapping(payload)) if payload else Want()


def want_of(data: Mapping[str, Any]) -> Want:
    """Return the want that a mapping is."""
    parts: list[dict[str, bool]] = []
    for name in ("live", "durable"):
        part = data.get(name, {})
        if not isinstance(part, dict):
            raise PeeringError(f"`{name}` is a mapping")
        points: dict[str, bool] = {}
        for how in ("change", "sample"):
            addresses = part.get(how, [])
            if not isinstance(addresses, list) or len(addresses) > MAX_POINTS:
                raise PeeringError(f"`{how}` is a list of at most {MAX_POINTS} points")
            if not all(
                isinstance(address, str) and len(address) <= _LONGEST_ADDRESS and address.isprintable()
                for address in addresses
            ):
                raise PeeringError(f"`{how}` is a list of points")
            points.update(dict.fromkeys(addresses, how == "sample"))
        parts.append(points)
    return Want(*parts)


def _mapping(payload: bytes) -> dict[str, Any]:
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError):
        raise PeeringError("it is not JSON") from None
    if not isinstance(data, dict):
        raise PeeringError("it is not a mapping")
    return data
