"""Checks of a point's settings: values of several parts, and what is not in one of the four tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fieldbus.modbus.other_functions import MAX_QUEUE, MAX_SERVER_ID, SIZE_OF_WHOLE
from fieldbus.modbus.planner import most_of
from fieldbus.modbus.register_types import RegisterType, Table
from fieldbus.settings import problem

if TYPE_CHECKING:
    from fieldbus.modbus.part_settings import PartSettings
    from fieldbus.modbus.point_settings import PointSettings


def check_parts(point: PointSettings) -> None:
    """Refuse `parts` that one request cannot read, or that say something twice."""
    if point.parts is None:
        return
    for key in ("address", "reference", "type", "length", "encoding", "bit", "bits", "signed", "format",
                "timezone", "flags", "count", "timestamp", "scale_from",
                "read_from", "group", "then"):  # fmt: skip
        if getattr(point, key) is not None:
            raise problem(
                f"`parts` say what the registers are: `{key}` belongs to a part, or is not for them", key
            )
    if point.order != "ABCD" or point.invalid:
        key = "order" if point.order != "ABCD" else "invalid"
        raise problem("`parts` say what the registers are: `order` and `invalid` belong to a part", key)
    if point.access != "read":
        raise problem(
            "a value of `parts` is only read: one request cannot write registers that do not adjoin", "access"
        )
    if point.on_bad == "nan":
        raise problem("a value of `parts` has no NaN", "on_bad")
    tables = {part.place()[0] for part in point.parts}
    if len(tables) > 1 or (point.table is not None and tables != {Table(point.table)}):
        raise problem("all `parts` are in one table: they are read with one request", "parts")
    _check_apart(point.parts)
    if sum(part.sign for part in point.parts) > 1:
        raise problem("only one of the `parts` is the sign", "parts")
    first, end = point.span
    most = most_of(next(iter(tables)))
    if end - first > most:
        raise problem(
            f"the `parts` lie over {end - first} registers, and one request reads at most {most}", "parts"
        )


def _check_apart(parts: Sequence[PartSettings]) -> None:
    """Refuse parts that have a bit in common: it would count twice."""
    taken: dict[tuple[int, int], int] = {}
    for index, part in enumerate(parts):
        table, address = part.place()
        for bit in part.occupied_bits():
            other = taken.setdefault(bit, index)
            if other != index:
                text = f"{table.place_name(address)} is in parts[{other}] already, and would count twice"
                key = "reference" if part.reference is not None else "address"
                raise problem(f"{text}: give each of the `parts` an address of its own", "parts", index, key)


def check_other_table(point: PointSettings, table: Table) -> None:
    """Refuse what makes no sense of files, queues and server ids."""
    if table.is_whole and point.access != "read":
        raise problem(f"the table `{table}` cannot be written")
    if table.is_numbered:
        return
    if point.on_bad != "exception" or point.initial is not None:
        raise problem(f"the table `{table}` cannot be served, and has no `on_bad` and no `initial`")
    if point.size > most_of(table):
        raise problem(
            f"it has {point.size} registers, and one request reads at most {most_of(table)} of a {table}"
        )
    if table is Table.SERVER_ID and point.span[1] > SIZE_OF_WHOLE[table]:
        raise problem(f"a server id has at most {MAX_SERVER_ID} registers")
    if table is not Table.FIFO:
        return
    if point.size > 1 or point.register_type is RegisterType.STRING or point.parts or point.scale_from:
        raise problem("an entry of a queue is one register, and is not scaled by another point")
    if point.span[1] & 0xFFFF > SIZE_OF_WHOLE[table]:
        raise problem(f"a queue has at most {MAX_QUEUE} entries: `count` is 2 to {MAX_QUEUE}")
