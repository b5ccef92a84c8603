"""``fieldbus plan``: the requests that a configuration will poll with, and each link's load."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from fieldbus.canbus.j1939.identifiers import pgn_of
from fieldbus.canbus.link import CanLink
from fieldbus.cli.check import load_table
from fieldbus.cli.common import ConfigArgument, JsonOption, Rows, fail, load_or_exit, out, print_json, say
from fieldbus.cli.offered import comma_separated, markdown, offered, registers, tables
from fieldbus.gateway.load import predict
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.system import DEVICE
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.planner import Block
from fieldbus.modbus.register_types import Table as ModbusTable
from fieldbus.modbus.server import ModbusServerLink


def plan(
    config: ConfigArgument,
    as_json: JsonOption = False,
    registers_as: Annotated[
        str | None,
        typer.Option(
            "--registers", metavar="FORMAT", help="Only the registers that clients read, as markdown or csv."
        ),
    ] = None,
) -> None:
    """Show what CONFIG polls and offers: every request, the load of each link, registers, topics, frames."""
    if registers_as not in (None, "markdown", "csv"):
        raise typer.BadParameter("markdown or csv", param_hint="--registers")
    plant = load_or_exit(config, needs_secrets=False)
    if registers_as is not None:
        rows = registers(plant)
        if not rows:
            raise fail(f"{config} serves no registers (a link of type modbus-server has them)")
        say(markdown(rows) if registers_as == "markdown" else comma_separated(rows))
        return
    requests = _requests(plant)
    loads = predict(plant)
    if as_json:
        document: dict[str, Any] = {"requests": requests, "loads": [asdict(load) for load in loads]}
        document |= offered(plant)
        if status := _status_map(plant):
            document["status_map"] = status
        print_json(document)
        return
    table = Rows()
    for name, justify in (
        ("link", "left"), ("device", "left"), ("unit id", "right"), ("table", "left"),
        ("address", "right"), ("count", "right"), ("period", "right"), ("points", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for item in requests:
        names = item["points"]
        shown = ", ".join(names[:6]) + (f", … {len(names)} in all" if len(names) > 6 else "")
        table.add_row(
            item["link"], item["device"], _text(item["unit_id"]), _table_text(item), _text(item["address"]),
            _text(item["count"]), f"{item['period_s'] * 1000:.6g} ms", shown,
        )  # fmt: skip
    console = out()
    console.print(table)
    console.print()
    console.print(load_table(plant, loads))
    for offer in tables(plant):
        console.print()
        console.print(offer)
    if status := _status_map(plant):
        console.print()
        console.print(_status_table(status))


def _place(block: Block) -> dict[str, Any]:
    """Return where a request begins; of a file, which one too, and of a queue its own address."""
    high, low = divmod(block.address, 0x10000)
    if block.table is ModbusTable.FILE:
        return {"file": high, "address": low}
    return {"address": high if block.table is ModbusTable.FIFO else low}


def _status_map(plant: Plant) -> list[dict[str, Any]]:
    """Return where masters find the gateway's own state."""
    return [
        {
            "link": name,
            "unit_id": unit.unit_id,
            "table": str(item.table),
            "address": item.address,
            "count": item.count,
            "type": str(item.type),
            "point": f"{DEVICE}.{item.point.name}",
        }
        for name, link in plant.links.items()
        if isinstance(link, ModbusServerLink)
        for unit in link.units
        if unit.is_status
        for item in unit.points
    ]


def _status_table(rows: list[dict[str, Any]]) -> Table:
    table = Rows(title="Status map")
    for name in rows[0]:
        is_number = name in ("unit_id", "address", "count")
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


def _table_text(row: dict[str, Any]) -> str:
    return f"{row['table']} {row['file']}" if "file" in row else str(row["table"])


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def _requests(plant: Plant) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, link in plant.links.items():
        if isinstance(link, ModbusClientLink):
            found.extend(
                {
                    "link": name,
                    "device": unit.device,
                    "unit_id": unit.unit_id,
                    "table": str(block.table),
                    **_place(block),
                    "count": block.count,
                    "period_s": block.period_s,
                    "points": [item.point.name for item in block.points],
                }
                for unit, block in link.planned
            )
        elif isinstance(link, CanLink):
            for message in link.messages:
                if message.request is None:
                    continue
                request = message.request
                kind = "rtr" if request.is_remote else "request"
                asked = f"{kind} 0x{request.frame_id:X}"
                if request.is_pgn:
                    asked = f"pgn {pgn_of(request.frame_id)}"
                found.append(
                    {
                        "link": name,
                        "device": message.device,
                        "unit_id": None,
                        "table": asked,
                        "address": None,
                        "count": None,
                        "period_s": request.scan_s,
                        "points": [point.name for point in message.points.values()],
                    }
                )
    return found
