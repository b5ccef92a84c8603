"""Devices that users had and that cost more than one point: each with its configuration and the right values."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.desk import problems, tcp, write, write_config
from support.table_device import TableDevice
from support.virtual import World

from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import WriteOutcome

PORT = 1502
Respond = Callable[[int, int, int, int], bytes]
"""Takes unit id, function code, address and count; returns unit id and PDU, or a length of its own before them."""


class _Connection(asyncio.Protocol):
    def __init__(self, respond: Respond, asked: list[tuple[int, int, int]]) -> None:
        self._respond = respond
        self._asked = asked
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        transaction, _, _, unit, function, address, count = struct.unpack(">HHHBBHH", data)
        self._asked.append((function, address, count))
        payload, length = self._respond(unit, function, address, count), 0
        if payload[0] == 0:  # no unit of these cases
            length, payload = payload[1], payload[2:]
        self._transport.write(
            struct.pack(">HHHB", transaction, 0, length or len(payload) + 1, unit) + payload
        )


def words(*values: int) -> bytes:
    data = struct.pack(f">{len(values)}H", *values)
    return bytes((len(data),)) + data


def run(
    folder: Path, devices: str, respond: Respond, seconds: float = 5.0
) -> tuple[dict[str, object], list[tuple[int, int, int]]]:
    """Return what a gateway says of each point after some seconds: value, or reason; and all requests."""
    world = World()
    path = write_config(folder, devices, tcp(PORT))
    asked: list[tuple[int, int, int]] = []
    found: dict[str, object] = {}

    async def main() -> None:
        await asyncio.get_running_loop().create_server(lambda: _Connection(respond, asked), "127.0.0.1", PORT)
        gateway = Gateway(load(path, clock=world.clock()[0]))
        task = asyncio.create_task(gateway.run())
        await asyncio.sleep(seconds)
        for address, point in gateway.points.items():
            if point.device != "sys":
                sample = gateway.router.sample(point)
                found[address] = sample.value if sample.reason is None else str(sample.reason)
            elif point.name.endswith(".online"):
                assert gateway.router.sample(point).value is True, f"{address}"
        gateway.stop()
        await task

    world.run(main())
    return found, asked


BATTERY = """  battery:
    link: net
    scan: 500ms
    points:
      soc:     {table: holding, address: 0}
      power:   {table: holding, address: 4}
      option:  {table: holding, address: 5}
      voltage: {table: holding, address: 6}
      state:   {table: holding, address: 9}
"""


@pytest.mark.parametrize("length", [4, 2, 5, 16, 300])
def test_an_exception_with_a_wrong_length_costs_one_point(tmp_path: Path, length: int) -> None:
    """The header says more, or less, than the three bytes that are sent."""

    def respond(unit: int, function: int, address: int, count: int) -> bytes:
        if address <= 5 < address + count or address + count > 10:
            return bytes((0, length & 0xFF, function | 0x80, 2))
        return bytes((function,)) + words(*range(100 + address, 100 + address + count))

    found, asked = run(tmp_path, BATTERY, respond)
    assert found == {
        "battery.soc": 100,
        "battery.power": 104,
        "battery.option": "device exception 02",
        "battery.voltage": 106,
        "battery.state": 109,
    }
    assert len(asked) < 2 * 2 * 10 + 12


PAIR = """  {name}:
    link: net
    unit_id: {unit}
    scan: 500ms
    points:
      a: {{table: holding, address: 2}}
      b: {{table: holding, address: 3}}
      c: {{table: holding, address: 4}}
"""


def test_an_exception_00_and_one_of_three_bytes_cost_one_point_each(tmp_path: Path) -> None:
    def respond(unit: int, function: int, address: int, count: int) -> bytes:
        if address <= 3 < address + count:
            return bytes((function | 0x80, 0)) if unit == 1 else bytes((function | 0x80, 2, 0))
        return bytes((function,)) + words(*[7] * count)

    devices = PAIR.format(name="one", unit=1) + PAIR.format(name="two", unit=2)
    found, _ = run(tmp_path, devices, respond)
    assert found == {
        "one.a": 7, "one.b": "device exception 00", "one.c": 7,
        "two.a": 7, "two.b": "device exception 02", "two.c": 7,
    }  # fmt: skip


WIDE = {38: 123456, 39: 7890}
NARROW = {108: 2277, 109: 51}
METER = """  meter:
    link: net
    scan: 500ms
    points:
      energy_t1: {table: input, address: 38, type: uint32%s}
      voltage:   {table: input, address: 108, scale: 0.1}
      current:   {table: input, address: 109, scale: 0.1}
"""


def wide_meter(unit: int, function: int, address: int, count: int) -> bytes:
    data = b""
    for place in range(address, address + count):
        if place not in WIDE and place not in NARROW:
            return bytes((function | 0x80, 2))
        data += struct.pack(">I", WIDE[place]) if place in WIDE else struct.pack(">H", NARROW[place])
    return bytes((function, len(data))) + data


def test_addresses_of_32_bits_cost_only_themselves(tmp_path: Path) -> None:
    found, _ = run(tmp_path, METER % "", wide_meter)
    assert found == {
        "meter.energy_t1": "bad response",
        "meter.voltage": 227.7,
        "meter.current": 5.1,
    }


def test_addresses_of_32_bits_are_read_with_their_width(tmp_path: Path) -> None:
    second = "}\n      energy_t2: {table: input, address: 39, type: float32, width: 32, invalid: [7890]"
    found, asked = run(tmp_path, METER % (", width: 32" + second), wide_meter)
    assert found == {
        "meter.energy_t1": 123456,
        "meter.energy_t2": "not available",
        "meter.voltage": 227.7,
        "meter.current": 5.1,
    }
    assert set(asked) == {(4, 38, 2), (4, 108, 2)}


@pytest.mark.parametrize(
    ("point", "told"),
    [
        (
            "{table: input, address: 1, type: uint16, width: 32}",
            "holds a type of 32 or 64 bits, not a uint16",
        ),
        ("{table: coil, address: 1, width: 32}", "a coil is one bit and has no `width`"),
        (
            "{table: holding, address: 1, type: uint32, width: 32, access: readwrite}",
            "`width: 32` is read only: no function writes such addresses",
        ),
        (
            "{table: input, address: 1, type: int32, width: 32, scale_from: f}\n      f: {table: input, address: 2}",
            "'f' of `scale_from` has another `width`",
        ),
    ],
)
def test_a_width_that_cannot_be_is_refused_at_load(tmp_path: Path, point: str, told: str) -> None:
    path = write_config(tmp_path, f"  meter:\n    link: net\n    points:\n      a: {point}\n", tcp(PORT))
    [problem] = problems(path)
    assert told in problem.message
    assert problem.line > 1


BOARD = """  board:
    link: net
    scan: 500ms
    first_address: {first}
    points:
      valve5: {{table: coil, address: 5}}
      valve6: {{table: coil, address: 6}}
"""


def relay_board(unit: int, function: int, address: int, count: int) -> bytes:
    """Answer every read from coil 0 on: only coil 5 is on."""
    return bytes((function, 1, 0b100000 & (1 << count) - 1))


def test_reads_begin_at_the_first_address_of_a_device(tmp_path: Path) -> None:
    found, asked = run(tmp_path, BOARD.format(first=0), relay_board)
    assert found == {"board.valve5": True, "board.valve6": False}
    assert set(asked) == {(1, 0, 7)}


async def test_a_write_is_verified_by_a_read_from_the_first_address(tmp_path: Path) -> None:
    coils = [False] * 8

    def answer(_: int, pdu: bytes) -> bytes:
        address, count = struct.unpack(">HH", pdu[1:5])
        if pdu[0] == 5:
            coils[address] = bool(count)
            return pdu
        return bytes((1, 1, sum(state << place for place, state in enumerate(coils[:count]))))

    board = BOARD.format(first=0).replace("5}", "5, access: readwrite, verify: true}")
    async with TableDevice(answer=answer) as device:
        result = await write(write_config(tmp_path, board, tcp(device.port)), "board.valve5", value=True)
    assert (result.outcome, coils[5]) == (WriteOutcome.VERIFIED, True)
    reads = [pdu.hex() for pdu in device.requests if pdu[0] == 1]
    assert reads
    assert all(pdu.startswith("010000") for pdu in reads)


def test_a_point_before_the_first_address_is_refused_at_load(tmp_path: Path) -> None:
    [problem] = problems(write_config(tmp_path, BOARD.format(first=6), tcp(PORT)))
    assert problem.path == "devices.board.points.valve5"
    assert problem.message == "coil 5 is below the device's `first_address` 6"


def test_a_point_too_far_from_the_first_address_is_refused_at_load(tmp_path: Path) -> None:
    board = BOARD.format(first=0).replace("5}", "5000}").replace("6}", "15}")
    [problem] = problems(write_config(tmp_path, board.replace("scan", "max_bits: 16\n    scan"), tcp(PORT)))
    assert problem.path == "devices.board.points.valve5"
    text = "from `first_address` 0 to coil 5000 are 5001 bits, `max_bits` allows 16 a request"
    assert problem.message == text


def test_a_factor_further_away_than_max_registers_is_refused_at_load(tmp_path: Path) -> None:
    devices = """  meter:
    link: net
    max_registers: 20
    points:
      power: {table: holding, address: 0, type: int16, scale_from: exponent}
      exponent: {table: holding, address: 20, type: int16}
"""
    [problem] = problems(write_config(tmp_path, devices, tcp(PORT)))
    assert problem.path == "devices.meter.points.power"
    assert "are 21 registers, `max_registers` allows 20 a request" in problem.message
    near = devices.replace("address: 20", "address: 19")
    assert problems(write_config(tmp_path, near, tcp(PORT))) == []
