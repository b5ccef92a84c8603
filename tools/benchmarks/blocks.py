"""What a response costs: `BlockReader.read`, from data bytes to a batch, by the size of the block.

Pure CPU time, no connection. The payloads of "nothing changed" are equal bytes in different objects,
as responses are: the comparison is not spared. Those of "all changed" differ in every register.
"""

from __future__ import annotations

import struct
from functools import partial
from statistics import median

from pymodbus.pdu.register_message import ReadHoldingRegistersResponse

from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.planner import Limits, plan
from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.model import Group, Kind, Point

from .measure import Row, Span, Yardstick, in_turns, ratio, seconds_per_call, us_text

SIZES = (1, 10, 125)


def uint16_points(device: str, count: int) -> list[RegisterPoint]:
    """Return the points that the benchmarks poll: holding registers 0 to `count` - 1."""
    return [
        RegisterPoint(Point(device, f"r{address}", Kind.INT), Table.HOLDING, address, RegisterType.UINT16)
        for address in range(count)
    ]


def measure(_peers: object, span: Span) -> list[Row]:
    """Return a row for each size of block."""
    rounds, seconds = span.choose(9, 3), span.choose(0.05, 0.03)
    contestants = {}
    for size in SIZES:
        equal = [(bytes(bytearray(_payload(size, 0))), 0, 0.0) for _ in range(100)]
        different = [(_payload(size, shift), 0, 0.0) for shift in range(100)]
        contestants[f"equal {size}"] = partial(seconds_per_call, _reader(size).read, equal, seconds)
        contestants[f"different {size}"] = partial(seconds_per_call, _reader(size).read, different, seconds)
        framed = [(bytes((2 * size,)) + payload,) for payload, _, _ in different]
        decode = ReadHoldingRegistersResponse().decode
        contestants[f"pymodbus {size}"] = partial(seconds_per_call, decode, framed, seconds)
    took = in_turns(rounds, contestants)
    smallest = took[f"equal {SIZES[0]}"]
    rows = []
    for size in SIZES:
        equal_s, different_s = took[f"equal {size}"], took[f"different {size}"]
        pymodbus_s = took[f"pymodbus {size}"]
        growth = ratio(equal_s, smallest)
        rows.append(
            Row(
                f"a response of {size} point{'s' if size > 1 else ''} that changed nothing",
                us_text(median(equal_s)),
                [
                    Yardstick(f"all changed {us_text(median(different_s))}", ratio(different_s, equal_s)),
                    Yardstick(f"pymodbus decodes {us_text(median(pymodbus_s))}", ratio(pymodbus_s, equal_s)),
                ],
                "" if size == SIZES[0] else f"{growth:.2f} times what 1 point takes",
            )
        )
    return rows


def _reader(size: int) -> BlockReader:
    (block,) = plan(uint16_points("plc", size), 1, 1.0, Limits())
    return BlockReader(block, Group("plc", [place.point for place in block.points]))


def _payload(size: int, shift: int) -> bytes:
    return struct.pack(f">{size}H", *[address * 3 + shift for address in range(size)])
