"""From the settings of a device's points to its points: arrays, flags, scale factors, overlaps.

Rules:

* `count` makes one point of each element, ``NAME.0`` to ``NAME.N-1``; all else is said of each.
* A queue (`table: fifo`) is an array of its entries, with ``NAME.queued`` beside it: how many there are.
* `flags` make a point of each named bit beside that of the whole word, with the word's access. They
  and their word may share registers, since they are one thing.
* On a device that we serve, who writes decides. A word that masters write is a point as well as its
  flags, which routes can only read. A word that masters read is written by routes, either as a whole
  or flag by flag: where it has `flags` it is flag by flag, and the word itself is no point.
* What `scale_from` names is a whole number in the same table, read in the same scan, unscaled by
  another. Masters cannot write it: what they wrote before would mean something else.
* Everything wrong is told, under the name that stands in the configuration; the points are built all
  the same as far as they make sense, so that routes can be checked against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fieldbus.errors import ConversionError, closest
from fieldbus.modbus.converters import power_of_ten
from fieldbus.modbus.formats.composite import is_exact
from fieldbus.modbus.image import nan_bytes
from fieldbus.modbus.other_functions import MAX_QUEUE
from fieldbus.modbus.planner import most_of
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.register_types import RegisterType, Table
from fieldbus.modbus.registers import OnBad, RegisterPoint
from fieldbus.model import Access, Kind, Point
from fieldbus.scaling import Linear

Fault = Callable[[str, str, str | None], None]
"""Takes a name that stands in the configuration, a sentence, and a hint."""


class PointFault(NamedTuple):
    """What is wrong with a point, and where."""

    name: str
    """As it stands in the configuration."""
    path: tuple[str, ...]
    """The key of the point that is meant; empty for the point itself."""
    message: str


def build_points(
    device: str, points: Mapping[str, PointSettings], *, is_served: bool, fault: Fault
) -> list[RegisterPoint]:
    """Return the points that a device has, in the order of the configuration.

    Args:
        device: the device's name.
        points: settings by name.
        is_served: whether we serve the device (else we poll it).
        fault: is told what is wrong.
    """
    made: dict[str, list[RegisterPoint]] = {}
    by_name: dict[str, RegisterPoint] = {}
    for name, settings in points.items():
        if settings.scale_from is None:
            made[name] = list(_family(device, name, settings, is_served=is_served))
            by_name |= {item.point.name: item for item in made[name]}
    for name, settings in points.items():
        if settings.scale_from is not None:
            factor = _factor(name, settings, points, by_name, is_served=is_served, fault=fault)
            made[name] = list(_family(device, name, settings, is_served=is_served, factor=factor))
            if factor is not None and not is_served and not _is_in_reach(name, made[name], factor, fault):
                made[name] = list(_family(device, name, settings, is_served=is_served))
    first: dict[str, str] = {}
    built = []
    for name in points:
        for item in made[name]:
            maker = first.setdefault(item.point.name, name)
            if maker == name:
                built.append(item)
                continue
            text = f"'{item.point.name}' is the name of a point that '{maker}' makes already"
            fault(name, text, "rename one of them")
            break
    return built


def _family(
    device: str,
    name: str,
    settings: PointSettings,
    *,
    is_served: bool,
    factor: RegisterPoint | None = None,
) -> Iterator[RegisterPoint]:
    """Yield what one entry of the configuration makes."""
    if settings.table == "fifo":
        yield _queued(device, f"{name}.queued", settings, origin=name)
    count = settings.count or (MAX_QUEUE if settings.table == "fifo" else None)
    for index in range(count or 1):
        own = name if count is None else f"{name}.{index}"
        origin = name if own != name else ""
        word = settings.build(device, own, is_served=is_served, index=index, origin=origin, factor=factor)
        is_set_by_flags = bool(settings.flags) and is_served and not word.is_open_to_masters
        if not is_set_by_flags:
            yield word
        for bit, flag in sorted((settings.flags or {}).items()):
            yield _flag(word, bit, f"{own}.{flag}", name, is_served=is_served)


def _queued(device: str, name: str, settings: PointSettings, origin: str) -> RegisterPoint:
    """Return the point that says how many entries a queue has."""
    table, address = settings.place()
    point = Point(device, name, Kind.INT, lowest=0, highest=MAX_QUEUE, description=settings.description)
    return RegisterPoint(
        point, table, address & ~0xFFFF, RegisterType.UINT16, scan_s=settings.scan, origin=origin
    )


def _flag(word: RegisterPoint, bit: int, name: str, origin: str, *, is_served: bool) -> RegisterPoint:
    """Return the point of one bit of a word."""
    access = word.point.access
    if is_served:
        access = Access.READ if word.is_open_to_masters else Access.WRITE
    point = Point(
        device=word.point.device,
        name=name,
        kind=Kind.BOOL,
        access=access,
        lowest=0,
        highest=1,
        description=word.point.description,
        carries_quality=is_served,
        group=word.point.group,
    )
    on_bad, initial = word.on_bad, word.initial
    if isinstance(on_bad.value, int):
        on_bad = OnBad(on_bad.action, bool(on_bad.value >> bit & 1))
    return replace(
        word,
        point=point,
        low_bit=bit,
        bit_count=1,
        linear=Linear(),
        word=None if access is Access.WRITE and is_served else word,
        on_bad=on_bad,
        initial=bool(initial >> bit & 1) if isinstance(initial, int) else initial,
        origin=origin,
    )


def _factor(
    name: str,
    settings: PointSettings,
    points: Mapping[str, PointSettings],
    by_name: Mapping[str, RegisterPoint],
    *,
    is_served: bool,
    fault: Fault,
) -> RegisterPoint | None:
    """Return the point that `scale_from` names, or None after having said why it is none."""
    wanted = str(settings.scale_from)
    found = by_name.get(wanted)
    if found is None:
        scaled = [other for other, item in points.items() if item.scale_from is not None]
        if wanted == name:
            fault(name, "a point cannot hold the power of ten of itself", None)
        elif wanted in scaled:
            text = f"'{wanted}' of `scale_from` has a `scale_from` itself"
            fault(name, text, "a power of ten is a plain whole number")
        elif wanted in points and points[wanted].count is not None:
            fault(name, f"'{wanted}' of `scale_from` is an array", f"name one of it, such as {wanted}.0")
        else:
            fault(name, f"`scale_from` names '{wanted}', which is no point of the device",
                  closest(wanted, by_name))  # fmt: skip
        return None
    table, _ = settings.place()
    if found.point.kind is not Kind.INT:
        text = f"'{wanted}' of `scale_from` is a {found.point.kind}: a power of ten is a whole number"
        fault(name, text, "its type is int16 as a rule, without `scale`")
    elif found.table is not table:
        text = f"'{wanted}' of `scale_from` is in the table `{found.table}` and this in `{table}`"
        fault(name, text, "both must be read with one request")
    elif found.width != settings.width:
        text = f"'{wanted}' of `scale_from` has another `width`"
        fault(name, text, "both must be read with one request")
    elif found.scan_s != settings.scan:
        text = f"'{wanted}' of `scale_from` has another `scan`"
        fault(name, text, "both must be read with one request: give both the same `scan`")
    elif not is_served and not found.point.access.can_read:
        text = f"'{wanted}' of `scale_from` cannot be read"
        fault(name, text, "give it `access: read` or `readwrite`")
    elif found.is_open_to_masters:
        text = f"'{wanted}' of `scale_from` must not be written by masters"
        fault(name, text, "give it `access: read` and, if it never changes, `initial`")
    else:
        return found
    return None


def _is_in_reach(name: str, made: Sequence[RegisterPoint], factor: RegisterPoint, fault: Fault) -> bool:
    """Return whether one request can read points and their factor, else say so."""
    for item in made:
        span = max(item.end, factor.end) - min(item.address, factor.address)
        if span > most_of(item.table):
            text = (
                f"{item.table} {item.address} and '{factor.point.name}' of `scale_from` are {span} registers"
            )
            fault(name, text, f"one request reads at most {most_of(item.table)}: scale it by `scale` instead")
            return False
    return True


def point_faults(points: Sequence[RegisterPoint], *, is_served: bool) -> list[PointFault]:
    """Return what is wrong with points beside each other, in the order of the points."""
    found = [*_own_faults(points, is_served=is_served), *_overlaps(points, is_served=is_served)]
    return list(dict.fromkeys(found))  # an array says once what is wrong with all of it


def _own_faults(points: Sequence[RegisterPoint], *, is_served: bool) -> Iterator[PointFault]:
    factors = {point.factor for point in points}
    for point in points:
        name = _declared(point)
        writable = point.is_open_to_masters if is_served else point.point.access.can_write
        if writable and point.table in (Table.DISCRETE, Table.INPUT):
            who = " by masters" if is_served else ""
            yield PointFault(name, (), f"the table `{point.table}` cannot be written{who}")
        if not is_served:
            continue
        if not point.table.is_numbered:
            text = f"the table `{point.table}` cannot be served: coil, discrete, input or holding"
            yield PointFault(name, ("table",), text)
            continue
        if point.width != 16:
            yield PointFault(name, ("width",), "`width` is for devices that are polled")
            continue
        try:
            if point.parts and not is_exact(point.parts):
                text = "a served value of `parts` is made of whole numbers: none of them is a float"
                yield PointFault(name, ("parts",), text)
                continue
            if point.on_bad.action == "nan":
                nan_bytes(point)
            _check_substitutes(point)
        except ConversionError as error:
            yield PointFault(name, (), str(error))
        if point.initial is not None and not writable and point not in factors:
            text = "`initial` is for points that masters write (`access: readwrite`) and for factors"
            yield PointFault(name, ("initial",), text)


def _check_substitutes(point: RegisterPoint) -> None:
    """Encode what the configuration itself puts into the registers."""
    exponent = 0
    if point.factor is not None:
        exponent = power_of_ten(point.factor.initial) or 0
    for value in (point.on_bad.value, point.initial):
        if value is None:
            continue
        if point.table.is_bits:
            point.encode_bit(value)
        else:
            point.encode(value, exponent)


def _declared(point: RegisterPoint) -> str:
    return point.origin or point.point.name


def _overlaps(points: Sequence[RegisterPoint], *, is_served: bool) -> Iterator[PointFault]:
    """Find points that would overwrite each other."""
    told: set[tuple[str, str]] = set()
    # Flags are part of their word; a value of several parts has only those.
    ordered = sorted(
        (piece for point in points if point.word is None for piece in point.pieces),
        key=lambda point: (point.table, point.address, point.end),
    )
    reach: RegisterPoint | None = None
    for point in ordered:
        if reach is not None and reach.table is point.table and point.address < reach.end:
            is_bit_field = (
                point.low_bit is not None
                and reach.low_bit is not None
                and (point.address, point.count) == (reach.address, reach.count)
            )
            # Of a device, one place may be read in two ways; but who writes it writes all of it.
            is_one_place = (point.address, point.count) == (reach.address, reach.count)
            writes = point.point.access.can_write or reach.point.access.can_write
            matters = is_served or (writes and not is_one_place)
            shares_bits = is_bit_field and point.bit_mask & reach.bit_mask
            pair = (_declared(point), _declared(reach))
            if matters and pair[0] != pair[1] and (not is_bit_field or shares_bits) and pair not in told:
                told.add(pair)
                text = f"{point.table.place_name(point.address)} belongs to {reach.point.name} already"
                yield PointFault(pair[0], (), text)
        if reach is None or reach.table is not point.table or point.end > reach.end:
            reach = point
