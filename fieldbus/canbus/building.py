"""From a database and the configuration to what a link works with: messages with their points, and the link.

Rules:

* What the configuration says goes before what the database says.
* What cannot be is a fault at its path, and everything else is built all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fieldbus.canbus import deadlines
from fieldbus.canbus.bits import frame_bits
from fieldbus.canbus.j1939 import fault_points
from fieldbus.canbus.j1939 import identifiers as j1939
from fieldbus.canbus.j1939.signals import as_j1939
from fieldbus.canbus.layout import Condition, Message, Signal
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.logs.asc import names_of
from fieldbus.canbus.messages import GLOBAL_ADDRESS, CanMessage, Guard, Request
from fieldbus.canbus.outgoing import Outgoing
from fieldbus.canbus.settings import CanDeviceSettings, CanLinkSettings, MessageSettings
from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import ConversionError, closest
from fieldbus.model import Access, Kind, Point, Value

Fault = Callable[[Sequence[str | int], str, str | None], None]
"""Reports a problem at a path inside the device: message and hint."""

MISSED_POLLS = 3
_LEAST_BITS_PER_S = 150.0
"""A frame a second."""


def build_messages(
    device: str, settings: CanDeviceSettings, messages: Sequence[Message], fault: Fault
) -> list[CanMessage]:
    """Return the device's messages with their points."""
    none = MessageSettings()
    names = {message.name for message in messages}
    built: list[CanMessage] = []
    for message in messages:
        own = settings.messages.get(message.name) or none
        where = ("messages", message.name)
        built.append(_build(device, settings, own, message, _inside(where, fault)))
    extra: set[str] = set()
    if any(item.is_j1939 for item in built):
        for name, pgn in (("DM1", j1939.ACTIVE_FAULTS), ("DM2", j1939.PREVIOUS_FAULTS)):
            own = settings.messages.get(name) or none
            is_known = name in names or any(
                item.is_j1939 and j1939.pgn_of(item.message.frame_id) == pgn for item in built
            )
            if is_known or (name == "DM2" and own is none):
                continue  # DM2 is only sent on request, so it is there when somebody asks
            extra.add(name)
            built.append(
                _faults_of(device, settings, own, name, pgn, built, _inside(("messages", name), fault))
            )
    can_have = {*names, *extra, *(["DM1", "DM2"] if any(item.is_j1939 for item in built) else [])}
    for name in settings.messages:
        if messages and name not in names and name not in extra:
            fault(("messages", name), f"the database has no message '{name}'", closest(name, can_have))
    if built and settings.source_address is not None and not any(item.is_j1939 for item in built):
        fault(("source_address",), "no message of the database is J1939's", "protocol: j1939")
    return built


def _faults_of(
    device: str,
    settings: CanDeviceSettings,
    own: MessageSettings,
    name: str,
    pgn: int,
    others: Sequence[CanMessage],
    fault: Fault,
) -> CanMessage:
    """Return DM1 or DM2 of the device, which databases seldom have."""
    sources = {item.source_address for item in others if item.is_j1939} - {None}
    source = next(iter(sources)) if len(sources) == 1 else None
    said = own.source_address if own.source_address is not None else settings.source_address
    if said is not None:
        source = None if said == "any" else said
    for key in ("cycle", "counter", "checksum", "e2e", "destination"):
        if getattr(own, key) is not None:
            fault((key,), f"{name} is only listened to", None)
    if own.on_bad != "stop":
        fault(("on_bad",), f"{name} is only listened to", None)
    message = fault_points.message_of(name, pgn, source)
    asked = _request(settings, own, message, is_j1939=True, fault=fault)
    deadline_s = own.timeout or settings.timeout
    if asked is not None:
        deadline_s = MISSED_POLLS * asked.scan_s + asked.timeout_s
    return CanMessage(
        device,
        message,
        fault_points.points_of(device, message),
        deadline_s=deadline_s,
        learns_deadline=deadline_s is None,
        request=asked,
        decoder=fault_points.FaultDecoder,
        is_j1939=True,
        source_address=source,
    )


def _inside(where: Sequence[str | int], fault: Fault) -> Fault:
    return lambda path, message, hint: fault((*where, *path), message, hint)


def _build(
    device: str, settings: CanDeviceSettings, own: MessageSettings, message: Message, fault: Fault
) -> CanMessage:
    is_j1939 = message.is_j1939 if settings.protocol is None else settings.protocol == "j1939"
    is_j1939 = is_j1939 and message.is_extended
    if is_j1939:
        message = as_j1939(message)
    cycle_s = own.cycle or message.cycle_s
    source = _source(settings, own, message) if is_j1939 else None
    _check_j1939_keys(own, message, fault, is_j1939=is_j1939)
    guard, owned = _guard(own, message, fault)
    points = {
        signal: _point(device, message, signal, is_ours=signal.name in owned) for signal in message.signals
    }
    limits = _deadlines(settings, own, message, cycle_s)
    asked = _request(settings, own, message, is_j1939=is_j1939, fault=fault)
    if asked is not None:
        # `timeout` is how long an answer may take; what no answer brings for some polls is stale.
        limits = dict.fromkeys(message.branches(), MISSED_POLLS * asked.scan_s + asked.timeout_s)
    return CanMessage(
        device,
        message,
        points,
        deadline_s=settings.timeout if not limits else None,
        branch_deadlines=limits,
        learns_deadline=settings.timeout is None,
        cycle_s=cycle_s,
        request=asked,
        guard=guard,
        safe=_safe(own, message, points, owned, fault),
        says_absent=own.on_bad == "not_available",
        is_j1939=is_j1939,
        source_address=source,
        destination=_destination(own, message) if is_j1939 else GLOBAL_ADDRESS,
    )


def _source(settings: CanDeviceSettings, own: MessageSettings, message: Message) -> int | None:
    said = own.source_address if own.source_address is not None else settings.source_address
    if said is None:
        said = j1939.source_of(message.frame_id)
    return None if said == "any" or said > j1939.LAST_ADDRESS else said


def _destination(own: MessageSettings, message: Message) -> int:
    if own.destination is not None:
        return own.destination
    return j1939.destination_of(message.frame_id)


def _deadlines(
    settings: CanDeviceSettings, own: MessageSettings, message: Message, cycle_s: float | None
) -> dict[Condition, float]:
    found = {}
    branches = message.branches()
    for condition, signals in branches.items():
        pages = len([other for other in branches if other]) if condition else 1
        limit, _ = deadlines.choose(
            own.timeout, [signal.timeout_s for signal in signals], message.timeout_s, cycle_s, pages
        )
        if limit is not None:
            found[condition] = limit
        elif settings.timeout is not None:
            found[condition] = settings.timeout
    return found


def _request(
    settings: CanDeviceSettings,
    own: MessageSettings,
    message: Message,
    *,
    is_j1939: bool,
    fault: Fault,
) -> Request | None:
    asked = own.request
    if asked is None:
        return None
    if asked.pgn and not is_j1939:
        fault(("request",), "only J1939 messages have a PGN to ask for", "protocol: j1939")
        return None
    if len(bytes.fromhex(asked.data)) > 8 and not message.is_fd:
        fault(("request", "data"), "more than 8 bytes do not fit a classic frame", None)
    frame_id = message.frame_id if asked.id is None else asked.id
    is_extended = asked.extended
    if is_extended is None:
        is_extended = message.is_extended if asked.id is None else frame_id > 0x7FF
    return Request(
        frame_id=frame_id,
        is_extended=is_extended,
        data=bytes.fromhex(asked.data),
        is_remote=asked.rtr,
        scan_s=own.scan or 1.0,
        timeout_s=own.timeout or settings.timeout or (1.25 if asked.pgn else 0.5),
        is_pgn=asked.pgn,
    )


def _guard(
    own: MessageSettings, message: Message, fault: Fault
) -> tuple[Callable[[], Guard] | None, frozenset[str]]:
    """Return what makes the guard of a message, and the signals that are the guard's alone."""
    if not own.is_protected:
        return None, frozenset()
    names = [signal.name for signal in message.signals]
    for key, part in (("checksum", own.checksum), ("counter", own.counter)):
        if part is not None and part.signal not in names:
            fault((key, "signal"), f"the message has no signal '{part.signal}'", closest(part.signal, names))
            return None, frozenset()
    try:
        make = own.guard(message)
    except ValueError as error:
        fault((), str(error), None)
        return None, frozenset()
    return make, make().owned


def _check_j1939_keys(own: MessageSettings, message: Message, fault: Fault, *, is_j1939: bool) -> None:
    for key in ("source_address", "destination"):
        if getattr(own, key) is not None and not is_j1939:
            fault((key,), "the message is not J1939's", "protocol: j1939")
    if own.destination is not None and is_j1939 and not j1939.has_destination(j1939.pgn_of(message.frame_id)):
        fault(("destination",), "its PGN has no destination: it goes to all", None)


def _safe(
    own: MessageSettings,
    message: Message,
    points: Mapping[Signal, Point],
    owned: frozenset[str],
    fault: Fault,
) -> dict[Signal, Value | None]:
    if own.on_bad == "stop":
        return {}
    if own.on_bad == "not_available":
        return {signal: None for signal in message.signals if signal.absent_from is not None}
    by_name = {signal.name: signal for signal in message.signals}
    found: dict[Signal, Value | None] = {}
    for name, value in own.on_bad.items():
        signal = by_name.get(name)
        if signal is None:
            fault(("on_bad", name), f"the message has no signal '{name}'", closest(name, by_name))
        elif name in owned:
            fault(("on_bad", name), "it is the message's counter or checksum, which we make", None)
        elif value == "not_available":
            if signal.absent_from is None:
                fault(("on_bad", name), "it has no raw value that means `not available`", "a safe value")
            found[signal] = None
        else:
            try:
                signal.to_raw(value)
                refusal = None if isinstance(value, str) else points[signal].refusal(value)
                if refusal is not None:
                    raise ConversionError(refusal)
            except ConversionError as error:
                fault(("on_bad", name), str(error), None)
                continue
            found[signal] = value
    return found


def _point(device: str, message: Message, signal: Signal, *, is_ours: bool) -> Point:
    is_integer = not signal.is_float and signal.linear.is_integer
    lowest, highest = None, None
    if not signal.is_float:
        low, high = signal.raw_range
        if signal.error_from is not None and not signal.is_signed:
            high = min(high, signal.error_from - 1)
        with contextlib.suppress(OverflowError):  # an end that floating point cannot say bounds nothing
            lowest, highest = signal.linear.range_of(low, high)
    return Point(
        device=device,
        name=f"{message.name}.{signal.name}",
        kind=Kind.INT if is_integer else Kind.FLOAT,
        access=Access.READ if is_ours else Access.READWRITE,
        unit=signal.unit or None,
        minimum=signal.minimum,
        maximum=signal.maximum,
        lowest=lowest,
        highest=highest,
        labels=_labels(signal),
        description=signal.comment,
        carries_quality=True,
    )


def _labels(signal: Signal) -> dict[float, str]:
    """Return the names by the values that the decoder makes of their raw values."""
    whole, real = signal.linear.forward_int(), signal.linear.forward_float()
    found: dict[float, str] = {}
    for raw, name in signal.labels.items():
        with contextlib.suppress(OverflowError):  # beyond floating point: no sample ever has it
            found[real(float(raw)) if signal.is_float else whole(raw)] = name
    return found


def build_link(
    name: str,
    settings: CanLinkSettings,
    messages: Sequence[CanMessage],
    targets: Sequence[Point],
    *,
    gateway: str,
    wanted: Sequence[Point],
    fault: Callable[[Sequence[str], str, str | None], None],
    warn: Callable[[str, Sequence[str], str, str | None], None],
    file: Callable[[Sequence[str], str], Path | None],
    clock: Clock = SYSTEM,
) -> CanLink:
    """Return the link for a bus.

    Args:
        name: of the link.
        settings: of the link.
        messages: of all its devices.
        targets: points that routes write.
        gateway: its name.
        wanted: points that routes read.
        fault: reports a problem at a path inside the link: message and hint.
        warn: reports what is only worth knowing at a path inside a device.
        file: finds a file that the link names.
    """
    options = settings.options()
    if settings.interface == "replay":
        options["channel"] = file(("channel",), str(settings.channel))
        described = [item.message for item in messages]
        options["names"] = names_of((item.name, item.frame_id, item.is_extended) for item in described)
    written = set(targets)
    senders: dict[tuple[int, int], str] = {}
    for item in messages:
        if not written.isdisjoint(item.points.values()):
            identifier = (item.can_id, -1)
            if item.is_j1939:
                identifier = (j1939.pgn_of(item.can_id), item.destination)
            name_of_it = f"{item.device}.{item.message.name}"
            first = senders.setdefault(identifier, name_of_it)
            if first != name_of_it:
                text = f"{first} and {name_of_it} go out under one identifier: nobody can tell them apart"
                fault((), text, "one of the two in the routes")
        routed = [signal for signal, point in item.points.items() if point in written]
        _check_sent(item, routed, fault, warn)
    budget = None
    if settings.max_tx_load is not None and settings.bitrate is not None:
        cyclic = _check_budget(settings, messages, set(targets), fault)
        # What is sent on change has what the cycles leave, and never nothing at all.
        budget = max((settings.max_tx_load - cyclic) * settings.bitrate, _LEAST_BITS_PER_S)
    return CanLink(
        name,
        options,
        messages,
        targets,
        set(wanted),
        node=settings.node(gateway, name),
        bits_per_s=budget,
        clock=clock,
    )


def _check_sent(
    item: CanMessage,
    routed: Sequence[Signal],
    fault: Callable[[Sequence[str], str, str | None], None],
    warn: Callable[[str, Sequence[str], str, str | None], None],
) -> None:
    """Refuse what cannot be done with a message that routes write; list what it carries beside them."""
    if not routed:
        return
    name = f"{item.device}.{item.message.name}"
    if item.request is not None:
        fault((), f"{name} has a `request`, as if others sent it, and a route writes it", "one of the two")
    for signal in routed:
        if item.says_absent and signal not in item.safe:
            text = f"{name}.{signal.name} has no raw value that means `not available`"
            fault((), text, f"on_bad of {item.message.name} with a safe value for it: {{{signal.name}: 0}}")
    outgoing = Outgoing(item, routed)
    for signal in outgoing.undecided():
        text = f"{name} cannot be sent: nothing sets its multiplexer {signal.name}"
        hint = f"a route to {signal.name} or to a signal of a branch, or on_bad: {{{signal.name}: …}}"
        fault((), text, hint)
    if beside := outgoing.unwritten():
        words = ", ".join(map(outgoing.words, beside))
        text = f"{item.message.name} is sent with signals that no route writes: {words}"
        warn(item.device, (), text, f"other values for them: `on_bad` of {item.message.name}, or routes")


def _check_budget(
    settings: CanLinkSettings,
    messages: Sequence[CanMessage],
    targets: set[Point],
    fault: Callable[[Sequence[str], str, str | None], None],
) -> float:
    """Refuse cyclic messages that need more of the bus than we may take; return their share."""
    shares: dict[str, float] = {}
    bitrate = settings.bitrate or 1
    for item in messages:
        if item.request is not None:
            bits = frame_bits(8, is_extended=item.request.is_extended or item.request.is_pgn)
            shares[f"request of {item.device}.{item.message.name}"] = bits / item.request.scan_s / bitrate
        routed = [signal for signal, point in item.points.items() if point in targets]
        if not routed or item.cycle_s is None:
            continue
        frames = len({signal.condition for signal in routed})
        message = item.message
        bits = frame_bits(message.length, is_extended=message.is_extended, is_fd=message.is_fd)
        shares[f"{item.device}.{message.name}"] = frames * bits / item.cycle_s / bitrate
    total = sum(shares.values())
    if settings.max_tx_load is not None and total > settings.max_tx_load:
        largest = sorted(shares, key=lambda name: -shares[name])[:3]
        named = ", ".join(f"{name} {shares[name]:.1%}" for name in largest)
        fault(
            ("max_tx_load",),
            f"what is sent in cycles takes {total:.1%} of the bus, {settings.max_tx_load:.0%} are allowed",
            f"longer cycles, or fewer messages: {named}",
        )
    return total
