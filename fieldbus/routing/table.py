"""The routing table: routes with patterns become edges, once, at load; and what is refused then.

Rules:

* A pattern in ``from`` matches whole point addresses with ``*`` for any characters. A pattern never
  matches the gateway's own ``sys.*`` points unless it begins with ``sys.``.
* A pattern never reaches a point that cannot be read, nor its own target.
* Refused: an unknown point, a target that is not writable, two routes that write one point, a route
  in a circle (also by way of a topic that a point of ours subscribes to), a source whose kind cannot
  become the target's. Warned of: a range that may not fit.

Design: `Fault` carries the index of the route and the key that is wrong, so that whoever read the
table from a file can say the line. Checking and expanding are one pass, because both need the same
resolved names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fieldbus.errors import closest
from fieldbus.link import Target
from fieldbus.model import Kind, Point, Value
from fieldbus.routing.generated import Generated, Generator, is_generated
from fieldbus.routing.policy import Edge, OnBad, Policy

_FIELD = re.compile(r"\{([^{}]*)\}")
_LONGEST_TOPIC = 65535
FIELDS = ("device", "point", "message", "signal", "gateway")
"""What may stand in braces in a route's ``to``."""


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the routing table, as it was configured."""

    source: str
    """A point address, or a pattern with ``*``; of a generated source, what it is tied to, if anything."""
    target: str
    """A point address, a pattern with fields in braces, or ``LINK:TOPIC``."""
    policy: Policy = field(default_factory=Policy)
    deadband_percent: float | None = None
    """Of the source's range; needs `minimum` and `maximum` of the point."""
    is_durable: bool = False
    """Whether samples are kept on disk until the other side has them."""
    generated: Generated | None = None
    """What is the source instead of a point."""


class Fault(NamedTuple):
    """Something wrong with a route."""

    route: int
    """Index of the route."""
    key: str
    """Which key of it: ``from``, ``to`` …"""
    message: str
    hint: str | None = None
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Directory:
    """What routes can name."""

    gateway: str
    points: Mapping[str, Point]
    """All points by address."""
    link_of: Mapping[str, str]
    """Device name to the name of its link."""
    brokers: frozenset[str]
    """Names of links that have topics."""
    links: frozenset[str]
    subscriptions: Mapping[tuple[str, str], Sequence[Point]]
    """(link, topic) to the points that read it."""
    stores: frozenset[str] = frozenset()
    """Names of links that keep samples; they have topics too, and the point's address as the default one."""
    generators: dict[tuple[str, Point | None], Generator] = field(default_factory=dict)
    """Generated sources that there are already, by what they are; `expand` adds those that it needs."""
    frame_of: Mapping[Point, object] = field(default_factory=dict)
    """What a point travels in, where we either send or hear all of it (a CAN message)."""


def expand(routes: Sequence[Route], directory: Directory) -> tuple[list[Edge], list[Fault]]:
    """Turn routes into edges and say everything that is wrong with them.

    Returns:
        The edges of the routes that are sound, in order, and the faults of the others.
    """
    edges: list[Edge] = []
    owners: list[int] = []
    faults: list[Fault] = []
    for index, route in enumerate(routes):
        for edge in _expand_one(index, route, directory, faults):
            edges.append(edge)
            owners.append(index)
    edges, owners = _without_own_frames(routes, edges, owners, directory, faults)
    faults.extend(_double_writers(edges, owners))
    faults.extend(_circles(edges, owners, directory))
    return edges, sorted(faults, key=lambda fault: fault.route)


def _expand_one(index: int, route: Route, directory: Directory, faults: list[Fault]) -> list[Edge]:
    sources = _sources(index, route, directory, faults)
    if not sources:
        return []
    found: list[Edge] = []
    devices = {source.device for source in sources}
    for source in sources:
        target = _target(index, route, source, len(devices) > 1, directory, faults)
        if target is None:
            return found  # every other source of this route would say the same
        if target.point is source:
            if "*" in route.source:
                continue
            faults.append(Fault(index, "to", f"{source.address} is routed to itself"))
            return found
        policy = _policy(index, route, source, target, faults)
        if policy is not None:
            found.append(Edge(source, target, policy))
    return found


def _sources(index: int, route: Route, directory: Directory, faults: list[Fault]) -> list[Point]:
    if route.generated is not None:
        return _generated(index, route.generated, directory, faults)
    if "*" not in route.source:
        point = directory.points.get(route.source)
        if point is None:
            faults.append(
                Fault(
                    index,
                    "from",
                    f"there is no point '{route.source}'",
                    closest(route.source, directory.points),
                )
            )
            return []
        if not point.access.can_read:
            faults.append(Fault(index, "from", f"{point.address} can only be written (access: write)"))
            return []
        return [point]
    pattern = re.compile(".*".join(re.escape(part) for part in route.source.split("*")))
    wants_system = route.source.startswith("sys.")
    found = [
        point
        for address, point in directory.points.items()
        if point.access.can_read and (wants_system or point.device != "sys") and pattern.fullmatch(address)
    ]
    if not found:
        device = route.source.split(".", 1)[0]
        hint = closest(device, directory.link_of) if "*" not in device else None
        faults.append(Fault(index, "from", f"no readable point matches '{route.source}'", hint))
    return found


def _generated(index: int, generated: Generated, directory: Directory, faults: list[Fault]) -> list[Point]:
    tied: Point | None = None
    if generated.tied is not None:
        tied = directory.points.get(generated.tied)
        if tied is None:
            hint = closest(generated.tied, directory.points)
            faults.append(Fault(index, "from", f"there is no point '{generated.tied}'", hint))
            return []
        if not tied.access.can_read:
            text = f"{tied.address} can only be written (access: write), so nobody knows whether it is bad"
            faults.append(Fault(index, "from", text))
            return []
    key = repr(generated), tied  # 0 and False are equal, and yet not the same
    if key not in directory.generators:
        directory.generators[key] = Generator(generated, tied)
    return [directory.generators[key].point]


def _target(
    index: int,
    route: Route,
    source: Point,
    has_many_devices: bool,
    directory: Directory,
    faults: list[Fault],
) -> Target | None:
    fields = {"device": source.device, "point": source.name, "gateway": directory.gateway}
    message, dot, signal = source.name.partition(".")
    if dot:
        fields |= {"message": message, "signal": signal}
    used = _FIELD.findall(route.target)
    if "{" in _FIELD.sub("", route.target) or "}" in _FIELD.sub("", route.target):
        faults.append(Fault(index, "to", f"a brace in '{route.target}' has no counterpart"))
        return None
    for name in used:
        if route.generated is not None and name != "gateway":
            reason = f"a {source.name} has no {{{name}}}"
            faults.append(Fault(index, "to", reason, "write the name out"))
            return None
        if name not in fields:
            if name in FIELDS:
                reason = f"{source.address} has no {{{name}}}: only <Message>.<Signal> points do"
                faults.append(Fault(index, "to", reason))
            else:
                known = closest(name, FIELDS) or f"one of {', '.join(FIELDS)}"
                faults.append(Fault(index, "to", f"unknown field {{{name}}}", known))
            return None
    address = _FIELD.sub(lambda match: fields[match[1]], route.target)
    if address in directory.stores:
        address = f"{address}:{source.address}"
    link, colon, topic = address.partition(":")
    if colon:
        return _topic(index, route, link, topic, used, source, has_many_devices, directory, faults)
    point = directory.points.get(address)
    if point is None:
        hint = closest(address, directory.points)
        if address.split("/", 1)[0] in directory.brokers or address in directory.links:
            hint = f"a topic is written LINK:TOPIC, such as '{address.split('/', 1)[0]}:plant/{{point}}'"
        elif "/" in address and directory.brokers:
            hint = f"a topic is written LINK:TOPIC, such as '{min(directory.brokers)}:{address}'"
        faults.append(Fault(index, "to", f"there is no point '{address}'", hint))
        return None
    if not point.access.can_write:
        faults.append(
            Fault(
                index,
                "to",
                f"{point.address} is not writable",
                "the point needs `access: write` or `readwrite`",
            )
        )
        return None
    if route.is_durable:
        text = f"{point.address} is a machine's: a value for it is never kept and sent later"
        faults.append(Fault(index, "durable", text, "`durable` is for topics and stores"))
        return None
    return Target(directory.link_of[point.device], point)


def is_topic(text: str) -> bool:
    """Return whether one can publish to it: brokers hang up on wildcards and control characters."""
    return (
        bool(text)
        and len(text.encode("utf-8", "replace")) <= _LONGEST_TOPIC
        and not any(letter in "+#" or unicodedata.category(letter) in ("Cc", "Cs") for letter in text)
    )


def _topic(
    index: int,
    route: Route,
    link: str,
    topic: str,
    used: Sequence[str],
    source: Point,
    has_many_devices: bool,
    directory: Directory,
    faults: list[Fault],
) -> Target | None:
    if link not in directory.brokers:
        message = (
            f"{link} has no topics: it is not a broker"
            if link in directory.links
            else f"there is no link '{link}'"
        )
        faults.append(Fault(index, "to", message, closest(link, directory.brokers)))
        return None
    if not is_topic(topic):
        faults.append(
            Fault(index, "to", f"'{topic}' is not a topic that can be published to",
                  "a topic has no control characters, and neither + nor #")
        )  # fmt: skip
        return None
    if link in directory.stores:
        return Target(link, None, topic, is_durable=route.is_durable)
    gathers = "point" not in used and "signal" not in used
    label = source.address if has_many_devices and "device" not in used else source.name
    return Target(link, None, topic, gathers, label, is_durable=route.is_durable)


def _policy(index: int, route: Route, source: Point, target: Target, faults: list[Fault]) -> Policy | None:
    policy = route.policy
    if route.deadband_percent is not None:
        if source.minimum is None or source.maximum is None:
            faults.append(
                Fault(
                    index,
                    "deadband",
                    f"a deadband in percent needs a range, and {source.address} has none",
                    "give the point `min` and `max`, or the deadband in units",
                )
            )
            return None
        span = (source.maximum - source.minimum) * abs(policy.linear.scale)
        policy = replace(policy, deadband=span * route.deadband_percent / 100)
    kind = source.kind
    if policy.mapping is not None:
        mapping = _by_number(policy.mapping, source, target.point)
        policy = replace(policy, mapping=mapping)
        kind = _kind_of(list(mapping.values()))
    if not policy.linear.is_identity:
        if kind is Kind.STRING:
            faults.append(Fault(index, "scale", f"{_name_of(source)} is text and cannot be scaled"))
            return None
        kind = Kind.INT if kind is not Kind.FLOAT and policy.linear.is_integer else Kind.FLOAT
    if policy.deadband is not None and kind not in (Kind.INT, Kind.FLOAT):
        faults.append(Fault(index, "deadband", f"{_name_of(source)} is not a number"))
        return None
    if target.point is not None and not _fits(index, source, kind, policy, target.point, faults):
        return None
    return policy


def _by_number(mapping: Mapping[Value, Value], source: Point, target: Point | None) -> Mapping[Value, Value]:
    """Replace the labels of an enumeration in a `map` by the values that they name."""
    from_label = {label: value for value, label in source.labels.items()}
    to_label = {label: value for value, label in target.labels.items()} if target is not None else {}

    def number(value: Value, labels: Mapping[str, float]) -> Value:
        return labels.get(value, value) if isinstance(value, str) else value

    return {number(old, from_label): number(new, to_label) for old, new in mapping.items()}


def _kind_of(values: Sequence[Value]) -> Kind:
    if all(isinstance(value, bool) for value in values):
        return Kind.BOOL
    if all(isinstance(value, int) for value in values):
        return Kind.INT
    return Kind.STRING if any(isinstance(value, str) for value in values) else Kind.FLOAT


def _fits(index: int, source: Point, kind: Kind, policy: Policy, target: Point, faults: list[Fault]) -> bool:
    if (kind is Kind.STRING) != (target.kind is Kind.STRING):
        text = f"{_name_of(source)} is {kind} and cannot go into {target.address}, which is {target.kind}"
        if is_generated(source):
            what = "text" if target.kind is Kind.STRING else f"a number: {_range_of(target)}"
            faults.append(Fault(index, "from", text, f"give {what}"))
        else:
            faults.append(Fault(index, "to", text, "a `map` can translate values one by one"))
        return False
    if policy.on_bad is OnBad.SEND and not target.carries_quality:
        faults.append(
            Fault(
                index,
                "on_bad",
                f"{target.address} cannot be told that a value is bad",
                "use `hold`, or `{value: …}` for a substitute",
            )
        )
        return False
    if policy.substitute is not None and isinstance(policy.substitute, str) != (target.kind is Kind.STRING):
        faults.append(
            Fault(
                index,
                "on_bad",
                f"{policy.substitute!r} cannot go into {target.address}, which is {target.kind}",
            )
        )
        return False
    if kind is not Kind.STRING:
        _warn_of_range(index, source, policy, target, faults)
    return True


def _warn_of_range(index: int, source: Point, policy: Policy, target: Point, faults: list[Fault]) -> None:
    low, high = (0.0, 1.0) if source.kind is Kind.BOOL else source.range
    if policy.mapping is not None:
        numbers = [value for value in policy.mapping.values() if not isinstance(value, str)]
        low, high = min(numbers), max(numbers)
    wanted_low, wanted_high = _limits(target)
    linear = policy.linear
    if low is not None and high is not None:
        low, high = linear.range_of(float(low), float(high))
    too_low = wanted_low is not None and (low is None or low < wanted_low)
    too_high = wanted_high is not None and (high is None or high > wanted_high)
    if too_low or too_high:
        text = f"{_name_of(source)} ({_range(low, high)}) may not fit {target.address} ({_range_of(target)})"
        hint = "what does not fit is refused when it comes; `min` and `max` of the source say what comes"
        if is_generated(source):
            hint = f"what does not fit is refused: give {_range_of(target)}"
        faults.append(Fault(index, "from" if is_generated(source) else "to", text, hint, is_warning=True))


def _name_of(source: Point) -> str:
    """Return how the configuration calls a source: a generated one by its key."""
    return f"`{source.name}`" if is_generated(source) else source.address


def _limits(target: Point) -> tuple[float | None, float | None]:
    return (0, 1) if target.kind is Kind.BOOL else target.range


def _range_of(target: Point) -> str:
    return _range(*_limits(target))


def _range(low: float | None, high: float | None) -> str:
    def end(number: float | None) -> str:
        return "?" if number is None else f"{number:.6g}"

    return "any value" if low is None and high is None else f"{end(low)} … {end(high)}"


def _without_own_frames(
    routes: Sequence[Route],
    edges: Sequence[Edge],
    owners: Sequence[int],
    directory: Directory,
    faults: list[Fault],
) -> tuple[list[Edge], list[int]]:
    """Leave out sources that nobody sends us because we send them; refuse those that were named."""
    frame_of = directory.frame_of
    targets = [edge.target.point for edge in edges if edge.target.point is not None]
    sent = {frame_of[target] for target in targets if target in frame_of}
    kept: list[Edge] = []
    kept_owners: list[int] = []
    for edge, owner in zip(edges, owners, strict=True):
        if frame_of.get(edge.source) not in sent or edge.source not in frame_of:
            kept.append(edge)
            kept_owners.append(owner)
        elif "*" not in routes[owner].source:
            text = f"{edge.source.address} cannot be read: we send its message, another route writes it"
            faults.append(Fault(owner, "from", text))
    return kept, kept_owners


def _double_writers(edges: Sequence[Edge], owners: Sequence[int]) -> list[Fault]:
    first: dict[Point, int] = {}
    faults = []
    for edge, owner in zip(edges, owners, strict=True):
        point = edge.target.point
        if point is None:
            continue
        if point in first:
            text = f"{point.address} is written by route {first[point]} already"
            faults.append(Fault(owner, "to", text, "one point, one writer"))
        else:
            first[point] = owner
    return faults


def _circles(edges: Sequence[Edge], owners: Sequence[int], directory: Directory) -> list[Fault]:
    """Find routes by which a value comes back to where it was."""
    following: dict[Point, list[tuple[Point, int]]] = defaultdict(list)
    for edge, owner in zip(edges, owners, strict=True):
        target = edge.target
        if target.point is not None:
            following[edge.source].append((target.point, owner))
        else:
            for reader in directory.subscriptions.get((target.link, target.topic or ""), ()):
                following[edge.source].append((reader, owner))
    faults: list[Fault] = []
    done: set[Point] = set()
    for start in list(following):
        # Depth first, with an explicit stack: a table of ten thousand routes in a row is legal.
        path: list[Point] = []
        on_path: set[Point] = set()
        stack: list[tuple[Point, int, bool]] = [(start, -1, False)]
        while stack:
            point, owner, is_leaving = stack.pop()
            if is_leaving:
                path.pop()
                on_path.discard(point)
                done.add(point)
                continue
            if point in on_path:
                circle = [*path[path.index(point) :], point]
                text = " → ".join(member.address for member in circle)
                faults.append(Fault(owner, "to", f"this route closes a circle: {text}"))
                continue
            if point in done:
                continue
            path.append(point)
            on_path.add(point)
            stack.append((point, owner, True))
            stack.extend((after, by, False) for after, by in following.get(point, ()))
    return faults
