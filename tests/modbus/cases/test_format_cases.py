"""What users needed and did not get: each with its device, its configuration, and the right value."""

from __future__ import annotations

import asyncio
import json
import struct

import pytest
from conftest import free_port
from support.desk import problems, read, tcp, values, write, write_config
from support.table_device import TableDevice
from typer.testing import CliRunner

from fieldbus.cli.main import app
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.simulation import Simulation

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


# --- one map at another base


MAP = """points:
  frequency: {table: holding, address: 40085, scale: 0.1, unit: Hz}
  power:     {table: holding, address: 40087, type: int16, unit: W}
"""


@pytest.mark.parametrize("base", ["1", "{holding: 1}"])
async def test_one_map_serves_a_device_whose_addresses_moved(tmp_path, base):
    (tmp_path / "map.yaml").write_text(MAP)
    devices = f"""  old: {{link: net, unit_id: 1, map: map.yaml}}
  new: {{link: net, unit_id: 2, map: map.yaml, base: {base}}}
"""
    async with TableDevice({40085: 500, 40086: 0, 40087: 2300}) as device:
        device.registers[2] = {40085: 9999, 40086: 501, 40087: 0, 40088: 2400}
        path = write_config(tmp_path, devices, tcp(device.port))
        assert await values(path) == {
            "old.frequency": 50.0, "old.power": 2300, "new.frequency": 50.1, "new.power": 2400
        }  # fmt: skip


def test_a_base_that_moves_a_point_out_is_told_where_the_point_stands(tmp_path):
    (tmp_path / "map.yaml").write_text(MAP)
    devices = """  low: {link: net, unit_id: 1, map: map.yaml, base: -40086}
  high: {link: net, unit_id: 2, map: map.yaml, base: {input: 1, holding: 30000}}
"""
    found = [str(item).split("map.yaml:")[1] for item in problems(write_config(tmp_path, devices, tcp(1)))]
    hint = "(change the `base` of the device, or the map)"
    assert found == [
        f"2:14: points.frequency: holding 40085 and `base` -40086 are no address: 0 to 65535 {hint}",
        f"2:14: points.frequency: holding 40085 and `base` 30000 are no address: 0 to 65535 {hint}",
        f"3:14: points.power: holding 40087 and `base` 30000 are no address: 0 to 65535 {hint}",
    ]


# --- a client that reads blocks


async def test_a_served_block_reads_the_filler_between_its_points(tmp_path):
    port = free_port()
    devices = """  panel:
    link: hmi
    fill: 0
    points:
      a: {table: holding, address: 0, access: readwrite, initial: 11}
      b: {table: holding, address: 4, access: readwrite, initial: 22}
      c: {table: holding, address: 9, access: readwrite, initial: 33}
"""
    path = write_config(tmp_path, devices, f"  hmi: {{type: modbus-server, host: 127.0.0.1, port: {port}}}")
    served = load(path).links["hmi"]
    await served.connect()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(bytes.fromhex("0001 0000 0006 01 03 0000 000a"))
    response = await reader.readexactly(9 + 20)
    assert struct.unpack(">10H", response[9:]) == (11, 0, 0, 0, 22, 0, 0, 0, 0, 33)
    writer.write(bytes.fromhex("0002 0000 0006 01 06 0001 0005"))
    assert (await reader.readexactly(9))[7:] == b"\x86\x02"
    writer.close()
    await served.close()


# --- tables from Excel


COLUMNS = "name;table;address;type;scale;min;max;unit;enum;description"
ROWS = [
    COLUMNS,
    "Vorlauftemperatur;holding;79;int16;0,01;-20;120,5;°C;;Vorlauf, Heizkreis 1;;;",
    "Zaehler_Netz;holding;78;;0,1;;;kWh;;;;;",
    "state;holding;10;;;;;;0=aus 1=an;",
    ";;;;;;;;;",
]


@pytest.mark.parametrize(
    ("separator", "encoding", "told"),
    [(";", "utf-8-sig", []), (";", "cp1252", ["not UTF-8 text, read as Windows-1252"]), ("\t", "utf-16", [])],
)
def test_a_point_list_from_excel_is_taken(tmp_path, separator, encoding, told):
    text = "\r\n".join(row.replace(";", separator) for row in ROWS)
    (tmp_path / "excel.csv").write_bytes(text.encode(encoding))
    path = write_config(tmp_path, "  a: {link: net, map: excel.csv}", tcp(1))
    assert [item.message.split(":")[0] for item in problems(path)] == told
    point = load(path, needs_secrets=False).points["a.Vorlauftemperatur"]
    assert (point.minimum, point.maximum, point.unit, point.highest) == (-20, 120.5, "°C", 327.67)


def test_a_name_that_is_refused_comes_with_what_names_may_have(tmp_path):
    (tmp_path / "excel.csv").write_text("\n".join(ROWS).replace("Zaehler_", "Zähler "), encoding="utf-8")
    [told] = problems(write_config(tmp_path, "  a: {link: net, map: excel.csv}", tcp(1)))
    assert str(told).endswith(
        "excel.csv:3:1: name: 'Zähler Netz' is not a name for a point (letters A-Z and a-z, digits, _ and -, "
        "parts joined by dots: for example 'Zaehler_Netz')"
    )


# --- clocks that are calendar fields


CLOCKS = """  meter:
    link: net
    points:
      registers: {table: holding, address: 0, format: calendar, access: readwrite}
      bcd:       {table: holding, address: 10, format: calendar_bcd}
      bytes:     {table: holding, address: 20, format: calendar_bytes}
      iec:       {table: holding, address: 30, format: iec870_5_4}
      daily:     {table: holding, address: 40, format: time_of_day}
"""
CLOCK_REGISTERS = {
    **dict(enumerate((2026, 11, 30, 19, 45, 7))),
    **dict(enumerate((0x2611, 0x3019, 0x4507), 10)),
    **dict(enumerate((26 << 8 | 11, 30 << 8 | 19, 45 << 8 | 7), 20)),
    **dict(enumerate((26, 11 << 8 | 30, 19 << 8 | 45, 7000), 30)),
    40: 19 << 8 | 45,
}


async def test_every_kind_of_clock_says_the_same_time(tmp_path):
    async with TableDevice(CLOCK_REGISTERS) as device:
        device.registers[1] = dict.fromkeys(range(41), 0) | CLOCK_REGISTERS
        path = write_config(tmp_path, CLOCKS, tcp(device.port))
        assert [*(await values(path)).values()] == 4 * ["2026-11-30T19:45:07Z"] + ["19:45"]
        text = CLOCKS.replace("    link: net\n", "    link: net\n    timezone: Europe/Berlin\n")
        path = write_config(tmp_path, text, tcp(device.port))
        assert [*(await values(path)).values()] == 4 * ["2026-11-30T18:45:07Z"] + ["19:45"]


async def test_a_clock_is_set_in_one_request(tmp_path):
    async with TableDevice() as device:
        path = write_config(tmp_path, CLOCKS, tcp(device.port))
        assert (await write(path, "meter.registers", "2027-01-02T03:04:05Z")).outcome == "written"
        assert device.writes == [bytes.fromhex("10 0000 0006 0c 07eb 0001 0002 0003 0004 0005")]
        assert (await write(path, "meter.registers", "soon")).outcome == "refused"
        assert len(device.writes) == 1


# --- a value of several registers


PARTS = """  plant:
    link: net
    points:
      import: {table: holding, scale: 0.1, unit: kWh, parts: [{address: 78}, {address: 80, factor: 65536}]}
      heat:   {table: holding, unit: kWh, parts: [{address: 0x920}, {address: 0x921, factor: 1000}]}
      power:  {table: holding, unit: W, parts: [{address: 11}, {address: 10, sign: true}]}
"""
PART_REGISTERS = {78: 0x49F0, 79: 5000, 80: 0x0002, 0x920: 623, 0x921: 2, 10: 1, 11: 1500}


async def test_a_value_is_made_of_registers_that_do_not_adjoin(tmp_path):
    async with TableDevice(dict.fromkeys([*range(81), 0x920, 0x921], 0) | PART_REGISTERS) as device:
        path = write_config(tmp_path, PARTS, tcp(device.port))
        assert await values(path) == {"plant.import": 15000.0, "plant.heat": 2623, "plant.power": -1500}
        assert device.requests == [bytes.fromhex("03 000a 0047"), bytes.fromhex("03 0920 0002")]
        device.registers[1][10] = 7  # a sign that is none
        found = await read(path, "plant.power", "plant.import")
        assert [(sample.value, sample.reason) for sample in found.values()] == [
            (None, "conversion"),
            (15000.0, None),
        ]
        del device.registers[1][0x921]
        [sample] = (await read(path, "plant.heat")).values()
        assert (sample.value, sample.reason) == (None, "device exception 02")


def test_a_part_that_makes_no_sense_is_told_where_it_stands(tmp_path):
    wrong = PARTS.replace("{address: 0x921, factor: 1000}", "{address: 0x921, factor: 1000, typ: int16}")
    [told] = problems(write_config(tmp_path, wrong, tcp(1)))
    assert (told.line, told.path) == (10, "devices.plant.points.heat.parts[1].typ")
    assert "did you mean 'type'" in str(told)


# --- functions beside the four tables


RECORDS = """  meter:
    link: net
    points:
      profile: {table: file, file: 4, record: 1, count: 8}
"""
OTHERS = """  meter:
    link: net
    points:
      limit: {table: file, file: 7, record: 3, type: float32, access: readwrite, verify: true}
      queue: {table: fifo, address: 1246, count: 3}
      name:  {table: server_id, type: string, length: 3}
      speed: {table: holding, address: 0}
"""


def records_only(_unit_id, request):
    if request[0] != 20:
        return bytes((request[0] | 0x80, 1))
    if request == bytes.fromhex("14 07 06 0004 0001 0008"):
        return bytes((20, 18, 17, 6)) + struct.pack(">8H", *range(100, 108))
    return b"\x94\x02"


async def test_a_load_profile_is_read_from_file_records(tmp_path):
    async with TableDevice(answer=records_only) as device:
        path = write_config(tmp_path, RECORDS, tcp(device.port))
        assert await values(path) == {f"meter.profile.{index}": 100 + index for index in range(8)}
        assert device.requests == [bytes.fromhex("14 07 06 0004 0001 0008")]


async def test_file_queue_and_server_id_are_points_like_others(tmp_path):
    def answer(_unit_id, request):
        if request[0] == 21 and request.startswith(bytes.fromhex("15 0b 06 0007 0003 0002")):
            device.put(0x70000 + 3, request[9:])
            return request
        if request == bytes.fromhex("14 07 06 0007 0003 0002"):
            return bytes((20, 6, 5, 6)) + device.get((0x70003, 0x70004))
        return {24: bytes.fromhex("18 0006 0002 0005 0006"), 17: bytes.fromhex("11 05 4d 31 37 00 ff")}.get(
            request[0]
        )

    async with TableDevice({0: 9}, answer) as device:
        device.put(0x70003, struct.pack(">f", 1.5))
        path = write_config(tmp_path, OTHERS, tcp(device.port))
        found = {name: sample.value for name, sample in (await read(path)).items()}
        assert found == {
            "meter.limit": 1.5, "meter.queue.queued": 2, "meter.queue.0": 5, "meter.queue.1": 6, "meter.queue.2": None,
            "meter.name": "M17", "meter.speed": 9,
        }  # fmt: skip
        assert (await write(path, "meter.limit", 2.5)).outcome == "verified"
        assert device.writes == [bytes.fromhex("15 0b 06 0007 0003 0002 4020 0000")]


def test_the_plan_names_file_and_queue(tmp_path):
    path = write_config(tmp_path, OTHERS, tcp(1))
    shown = CliRunner().invoke(app, ["plan", str(path), "--json"])
    rows = [
        {key: row.get(key) for key in ("table", "file", "address", "count")}
        for row in json.loads(shown.stdout)["requests"]
    ]
    assert sorted(rows, key=str) == [
        {"table": "fifo", "file": None, "address": 1246, "count": 32},
        {"table": "file", "file": 7, "address": 3, "count": 2},
        {"table": "holding", "file": None, "address": 0, "count": 1},
        {"table": "server_id", "file": None, "address": 0, "count": 126},
    ]
    assert "file 7" in CliRunner().invoke(app, ["plan", str(path)]).stdout


async def test_a_refused_queue_costs_only_itself(tmp_path):
    async with TableDevice({0: 9}) as device:
        path = write_config(tmp_path, OTHERS, tcp(device.port))
        found = {name: (sample.value, sample.reason) for name, sample in (await read(path)).items()}
    assert found.pop("meter.speed") == (9, None)
    assert {reason for _, reason in found.values()} == {"device exception 01"}


# --- on a desk without devices


@pytest.mark.parametrize("devices", [METER, NAMES, CLOCKS, PARTS, RECORDS, OTHERS])
async def test_a_configuration_with_formats_can_be_simulated(tmp_path, devices):
    path = write_config(tmp_path, devices, tcp(free_port()))
    simulation = Simulation(load(path), is_alone=True)
    await simulation.open()
    running = asyncio.create_task(simulation.run())
    found = await read(path)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert {name for name, sample in found.items() if sample.quality != "good"} == set()


@pytest.mark.parametrize(
    "point", ["{table: file, file: 4, record: 1}", "{table: fifo, address: 5}", "{table: server_id}"]
)
def test_a_link_that_listens_has_the_four_tables_only(tmp_path, point):
    link = "  net: {type: modbus-rtu-tcp, host: 127.0.0.1, port: 1, listen: true}"
    [told] = problems(write_config(tmp_path, f"  a: {{link: net, unit_id: 1, points: {{x: {point}}}}}", link))
    assert told.path == "links.net.listen"
    assert "which a link that listens cannot read" in told.message
