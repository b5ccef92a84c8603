"""What users needed and did not get: each with its device, its configuration, and the right value."""

from __future__ import annotations

import struct

from support.desk import problems, read, tcp, values, write, write_config
from support.table_device import TableDevice

HALVES = struct.pack(">d", 230.5)
TRANSDUCER = bytes.fromhex("fdfe1dc0 0200007b") + HALVES[4:] + HALVES[:4] + bytes.fromhex("85dc") + struct.pack(
    ">4H", 12, 3456, 7890, 42
)  # fmt: skip
METER = """  meter:
    link: net
    points:
      power:     {table: input, address: 0, type: int32, bits: 0-23, signed: true, scale_from: power_exp}
      power_exp: {table: input, address: 0, type: int32, bits: 24-31, signed: true}
      power2:    {table: input, address: 2, type: int24, scale_from: power2_exp}
      power2_exp: {table: input, address: 2, type: int8, order: BADC}
      volt:      {table: input, address: 4, type: float64, order: EFGHABCD}
      reactive:  {table: input, address: 8, type: int16, format: sign_magnitude}
      energy:    {table: input, address: 9, type: uint64, format: m10k}
      energy2:   {table: input, address: 9, type: uint32, format: m10k}
      energy3:   {table: input, address: 10, type: uint48, format: m10k}
"""


async def test_number_formats_of_manuals_are_read(tmp_path):
    async with TableDevice() as device:
        device.put(0, TRANSDUCER)
        found = await values(write_config(tmp_path, METER, tcp(device.port)))
    assert found == {
        "meter.power": -123.456,
        "meter.power_exp": -3,
        "meter.power2": 12300,
        "meter.power2_exp": 2,
        "meter.volt": 230.5,
        "meter.reactive": -1500,
        "meter.energy": 12345678900042,
        "meter.energy2": 123456,
        "meter.energy3": 345678900042,
    }


def test_a_bit_range_of_a_signed_type_without_a_word_on_its_sign_is_told(tmp_path):
    path = write_config(tmp_path, METER.replace("0-23, signed: true", "0-23"), tcp(1))
    [told] = problems(path)
    assert told.is_warning
    assert str(told).endswith(
        "devices.meter.points.power: warning: bits 0-23 of an int32 are read without a sign (write `signed: true` if "
        "their highest bit is the sign, `signed: false` if not)"
    )
    assert (told.line, told.path) == (9, "devices.meter.points.power")
    assert problems(write_config(tmp_path, METER.replace("signed: true", "signed: false"), tcp(1))) == []


NAMES = """  meter:
    link: net
    points:
      name: {table: holding, address: 0, type: string, length: 8, access: readwrite, encoding: latin-1}
      pump: {table: holding, address: 8, type: string, length: 8, pad: space, encoding: latin-1, access: readwrite}
      empty: {table: holding, address: 16, type: string, length: 8, encoding: latin-1}
      side: {table: holding, address: 24, type: string, length: 8}
"""


async def test_text_is_read_and_written_in_the_encoding_of_the_device(tmp_path):
    async with TableDevice() as device:
        device.put(0, "Zähler Ost".encode("latin-1").ljust(16, b"\0"))
        device.put(8, "Pumpe µ3".encode("latin-1").ljust(16, b" "))
        device.put(16, b"\xff" * 16)
        device.put(24, "Süd".encode().ljust(16, b"\0"))
        path = write_config(tmp_path, NAMES, tcp(device.port))
        found = await read(path)
        assert [(sample.value, sample.reason) for sample in found.values()] == [
            ("Zähler Ost", None), ("Pumpe µ3", None), (None, "not available"), ("Süd", None)
        ]  # fmt: skip
        assert (await write(path, "meter.name", "Zähler West")).outcome == "written"
        assert device.writes == [
            bytes.fromhex("10 0000 0008 10 5a e4 68 6c 65 72 20 57 65 73 74 00 00 00 00 00")
        ]
        assert (await write(path, "meter.pump", "µ")).outcome == "written"
        assert device.writes[-1].endswith(b"\xb5" + b" " * 15)
        refused = await write(path, "meter.name", "Zähler €")
        assert (refused.outcome, "lacks" in str(refused.reason)) == ("refused", True)
        assert len(device.writes) == 2
