"""What is wrong with how points of a device are written, found when the configuration is loaded.

Rules:

* A bit that is written into a register which cannot be read needs a place to read the others from, or FC 22.
* The members of a group can be written with one request: one table, no gap, one function.
* What follows a value (`then`) is a point that can take it, and no ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fieldbus.errors import ConversionError, closest
from fieldbus.modbus import pdu
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.modbus.write_rules import MASK, PLAIN, WriteRules
from fieldbus.modbus.writing import Groups, groups_of, is_written_singly, takes_mask


class WriteFault(NamedTuple):
    """What is wrong, and where."""

    name: str
    """Of the point, as it stands in the configuration."""
    path: tuple[str, ...]
    """The key of the point, and perhaps what lies in it."""
    message: str
    hint: str | None = None
    is_warning: bool = False


def write_faults(points: Sequence[RegisterPoint], quirks: UnitQuirks, *, is_served: bool) -> list[WriteFault]:
    """Return what is wrong with how points of one device are written."""
    if is_served:
        found = [fault for point in points for fault in _of_served(point)]
    else:
        by_name = {point.point.name: point for point in points}
        groups = groups_of(points)
        found = [
            *(fault for point in points for fault in _own_faults(point, quirks)),
            *(fault for point in points for fault in _sequence_faults(point, by_name)),
            *(fault for name in groups for fault in _group_faults(name, groups, quirks)),
        ]
    return list(dict.fromkeys(found))  # an array says once what is wrong with all of it


def _declared(point: RegisterPoint) -> str:
    return point.origin or point.point.name


def _given(rules: WriteRules) -> Iterator[str]:
    """Yield the names of the settings that are not the default, but `verify`."""
    for key in ("read_from", "function", "group", "then"):
        if getattr(rules, key) != getattr(PLAIN, key):
            yield key


def _of_served(point: RegisterPoint) -> Iterator[WriteFault]:
    for key in _given(point.rules):
        yield WriteFault(_declared(point), (key,), f"`{key}` is for devices that we poll", f"remove `{key}`")


def _own_faults(point: RegisterPoint, quirks: UnitQuirks) -> Iterator[WriteFault]:
    name, access = _declared(point), point.point.access
    if not access.can_write:
        for key in _given(point.rules):
            if key != "read_from":
                text = f"`{key}` is for points that are written"
                yield WriteFault(name, (key,), text, "give `access: readwrite` or `write`")
    place = point.rules.read_from
    if place is not None and not 0 <= place[1] <= 0x10000 - point.count:
        text = f"`read_from` {place[1]}, with the `base` of the device, is no address"
        yield WriteFault(name, ("read_from",), text, "0 to 65535")
    is_part = (
        point.table is Table.HOLDING
        and point.low_bit is not None
        and point.bit_mask != (1 << 16 * point.count) - 1
    )
    is_blind = access.can_write and not access.can_read and place is None
    if is_part and is_blind and not takes_mask(point, quirks):
        text = f"a bit of {point.table} {point.address} is written, but the other bits there cannot be read"
        hint = (
            "give `read_from: ADDRESS` of the register that shows them; or the device's quirk "
            "`mask_write: true` if it has FC 22; or `access: readwrite` if the register itself can be read"
        )
        yield WriteFault(name, (), text, hint)


# --- groups


def _group_faults(group: str, groups: Groups, quirks: UnitQuirks) -> Iterator[WriteFault]:
    members = groups[group]
    first = members[0]
    name, reach = _declared(first), first
    for point in members[1:]:
        own = _declared(point)
        if point.table is not first.table:
            text = f"`group` {group}: this point is in the table `{point.table}`, {name} in `{first.table}`"
            yield WriteFault(own, ("group",), text, "one request writes one table")
            return
        if point.rules.function != first.rules.function:
            text = f"`group` {group}: this point has another `function` than {name}"
            yield WriteFault(
                own, ("function" if point.rules.function else "group",), text, "one request has one function"
            )
            return
        if point.address > reach.end:
            text = (
                f"`group` {group}: {point.table} {reach.end} lies between {_declared(reach)} and this point, "
                "but a group is written with one request"
            )
            hint = "the members of a group adjoin: add a point for what lies between"
            yield WriteFault(own, ("group",), text, hint)
            return
        reach = point if point.end > reach.end else reach
    size = reach.end - first.address
    most = pdu.MAX_WRITE_BITS if first.table.is_bits else pdu.MAX_WRITE_REGISTERS
    what = "coils" if first.table.is_bits else "registers"
    if size > most:
        yield WriteFault(
            name, ("group",), f"`group` {group} has {size} {what}: one request writes at most {most}"
        )
    elif len(members) == 1:
        text = f"`group` {group} has one member only, which is written as it would be without it"
        hint = "give the points that are to be written with it the same `group`, or remove it"
        yield WriteFault(name, ("group",), text, hint, is_warning=True)
    elif first.rules.function == MASK:
        text = f"`group` {group}: function 22 writes one point only"
        yield WriteFault(name, ("function",), text, "use `function: 16` or none")
    elif size > 1 and is_written_singly(first, quirks):
        why = "`single_writes`" if first.rules.function is None else f"`function: {first.rules.function}`"
        text = f"`group` {group} has {size} {what}, but with {why} each needs a request of its own"
        yield WriteFault(name, ("group",), text, "a group needs FC 15 or 16")


# --- sequences


def _sequence_faults(point: RegisterPoint, by_name: Mapping[str, RegisterPoint]) -> Iterator[WriteFault]:
    own = _declared(point)
    for name, value in point.rules.then:
        target = by_name.get(name)
        if target is None:
            text = f"`then` names '{name}', which is no point of the device"
            yield WriteFault(own, ("then", name), text, closest(name, by_name))
            continue
        if not target.point.access.can_write:
            text = f"`then` names '{name}', which is not written"
            yield WriteFault(own, ("then", name), text, "give it `access: write` or `readwrite`")
        elif target.rules.group:
            text = f"`then` names '{name}', which is in a `group`"
            yield WriteFault(own, ("then", name), text, "name a point that is written by itself")
        elif point in _after(target, by_name):
            text = f"`then` leads from '{name}' back to this point"
            yield WriteFault(own, ("then", name), text, "break the ring")
        refusal = _refusal(target, value)
        if refusal is not None:
            text = f"`then` writes {value} to '{name}': {refusal}"
            yield WriteFault(own, ("then", name), text, "give a value of that point")


def _after(point: RegisterPoint, by_name: Mapping[str, RegisterPoint]) -> set[RegisterPoint]:
    """Return a point and all that is written after it."""
    found: set[RegisterPoint] = set()
    waiting = [point]
    while waiting:
        point = waiting.pop()
        if point not in found:
            found.add(point)
            waiting += [by_name[name] for name, _ in point.rules.then if name in by_name]
    return found


def _refusal(point: RegisterPoint, value: bool | float | str) -> str | None:
    refusal = point.point.refusal(value)
    if refusal is not None or point.factor is not None:
        return refusal
    try:
        if point.table.is_bits:
            point.encode_bit(value)
        else:
            point.encode(value)
    except ConversionError as error:
        return str(error)
    return None
