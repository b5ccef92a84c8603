"""What others get from a gateway: registers that clients read, topics and payloads, frames and their cycle.

For whoever programs the other side: as a table, as JSON, and the registers as Markdown or CSV too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fieldbus.canbus.link import CanLink
from fieldbus.cli.common import Rows, number_text
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.system import DEVICE
from fieldbus.link import Target
from fieldbus.modbus.register_types import Table as ModbusTable
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.server import ModbusServerLink
from fieldbus.routing.policy import Edge

_FIRST_REFERENCES = {
    ModbusTable.COIL: 1, ModbusTable.DISCRETE: 10001, ModbusTable.INPUT: 30001, ModbusTable.HOLDING: 40001,
}  # fmt: skip
_SAMPLE = '{"value": …, "quality": …, "reason": …, "time": …}'


def registers(plant: Plant) -> list[dict[str, Any]]:
    """Return the registers that clients of the gateway read or write, by link, unit, table and address."""
    found = []
    for name, link in plant.links.items():
        if not isinstance(link, ModbusServerLink):
            continue
        for unit in link.units:
            for item in sorted(unit.points, key=lambda item: (item.table, item.address, item.low_bit or 0)):
                device = DEVICE if unit.is_status else item.point.device
                found.append(
                    {
                        "link": name,
                        "unit_id": unit.unit_id,
                        "table": str(item.table),
                        "address": item.address,
                        "reference": _reference(item),
                        "count": item.count,
                        "type": _type(item),
                        "order": str(item.order) if item.count > 1 else "",
                        "scale": _scale(item),
                        "point": f"{device}.{item.point.name}",
                        "unit": item.point.unit or "",
                        "range": _range(item),
                        "access": "read/write" if item.is_open_to_masters else "read",
                        "description": item.point.description,
                    }
                )
    return found


def _reference(item: RegisterPoint) -> str:
    first = _FIRST_REFERENCES.get(item.table)
    if first is None:
        return ""
    number = first + item.address
    digits = 5 if item.address < 9999 else 6
    lead = (first // 10_000) * 10 ** (digits - 1)
    return f"{lead + number - first + 1:0{digits}d}"


def _type(item: RegisterPoint) -> str:
    text = str(item.type) + (f" of {item.length} registers" if item.length else "")
    if item.low_bit is None:
        return text
    if item.bit_count <= 1:
        return f"{text}, bit {item.low_bit}"
    return f"{text}, bits {item.low_bit} to {item.low_bit + item.bit_count - 1}"


def _scale(item: RegisterPoint) -> str:
    linear = item.linear
    parts = [f"× {linear.scale}"] if linear.scale != 1 else []
    parts += [f"+ {linear.offset}"] if linear.offset else []
    return " ".join(parts)


def _range(item: RegisterPoint) -> str:
    low, high = item.point.minimum, item.point.maximum
    if low is None and high is None:
        return ""
    return f"{_number(low)} … {_number(high)}"


def _number(value: float | None) -> str:
    return "" if value is None else number_text(float(value))


def topics(plant: Plant) -> list[dict[str, Any]]:
    """Return the topics that are published, what goes there and in which form."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for edge in plant.edges:
        target: Target = edge.target
        if target.topic is None or target.point is not None or target.link not in plant.links:
            continue
        key = target.link, target.topic
        row = found.setdefault(
            key,
            {"link": target.link, "topic": target.topic, "payload": "", "when": _when(edge), "points": []},
        )
        row["points"].append(edge.source.address)
        row["payload"] = _payload(target, edge, row["payload"])
    return list(found.values())


def _payload(target: Target, edge: Edge, before: str) -> str:
    if not target.gathers:
        return _SAMPLE if edge.source.unit is None else f'{_SAMPLE[:-1]}, "unit": "{edge.source.unit}"}}'
    labels = before.partition("{")[2].rpartition("}, ")[0].partition('"values": {')[2] if before else ""
    labels = f'{labels}, "{target.label}": …' if labels else f'"{target.label}": …'
    return f'{{"time": …, "values": {{{labels}}}, "bad": {{}}}}'


def _when(edge: Edge) -> str:
    text = str(edge.policy.when)
    if edge.target.is_durable:
        text += ", durable"
    return text


def frames(plant: Plant) -> list[dict[str, Any]]:
    """Return the frames that are sent on CAN buses."""
    return [
        {
            "link": name,
            "message": f"{item.device}.{item.message.name}",
            "id": f"{item.message.frame_id:X}",
            "bytes": item.message.length,
            "cycle_ms": None if item.cycle_s is None else round(item.cycle_s * 1000, 3),
            "signals": sorted(point.name for point in written),
        }
        for name, link in plant.links.items()
        if isinstance(link, CanLink)
        for item, written in link.sent
    ]


def offered(plant: Plant) -> dict[str, list[dict[str, Any]]]:
    """Return all that is offered, by kind; kinds of which there is nothing are left out."""
    found = {"registers": registers(plant), "topics": topics(plant), "frames": frames(plant)}
    return {name: rows for name, rows in found.items() if rows}


def tables(plant: Plant) -> Sequence[Table]:
    """Return a table of each kind."""
    titles = {"registers": "Registers that clients read", "topics": "Topics", "frames": "Frames"}
    found = []
    for name, rows in offered(plant).items():
        table = Rows(title=titles[name])
        kept = [key for key in rows[0] if any(row[key] not in ("", None) for row in rows)]
        for key in kept:
            is_number = isinstance(rows[0][key], int | float)
            table.add_column(key.replace("_", " "), justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(row[key]) for key in kept))
        found.append(table)
    return found


def _cell(value: object) -> str:
    if isinstance(value, list):
        more = f", … {len(value)} in all" if len(value) > 6 else ""
        return ", ".join(value[:6]) + more
    return "–" if value is None else str(value)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table in Markdown."""
    heads = list(rows[0]) if rows else []
    lines = [heads, ["---"] * len(heads), *([_cell(row[key]) for key in heads] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def comma_separated(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")
