"""What a master sees of our registers: answers byte by byte, the order of checks, writes whole or not."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import ConversionError
from fieldbus.modbus import pdu
from fieldbus.modbus.image import UnitImage
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.points import build_points, point_faults
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.table_image import BlockRules
from fieldbus.model import Quality, Reason, Sample, Value, uncertain


def point(name: str, place: str, type_: str | None = None, **settings: object) -> RegisterPoint:
    """Return a served point; `place` is such as ``holding 4``."""
    table, address = place.split()
    made = PointSettings(table=table, address=int(address), type=type_, **settings)
    return made.build("panel", name, is_served=True)


def good(value: Value) -> Sample:
    return Sample(value, Quality.GOOD, None, 1)


BAD = Sample(None, Quality.BAD, Reason.TIMEOUT, 2)
OPEN = {"access": "readwrite"}


class Panel:
    """A register map, by names."""

    def __init__(self, points: Iterable[RegisterPoint], *, fills_gaps: bool = False) -> None:
        self.points = {item.point.name: item for item in points}
        self.image = UnitImage(self.points.values(), BlockRules(fills_gaps=fills_gaps))

    def put(self, name: str, value: Value | Sample) -> None:
        sample = value if isinstance(value, Sample) else good(value)
        self.image.update(self.points[name].point, sample)

    def ask(self, request: str) -> str:
        """Return the answer to a request, both in hex."""
        return self.image.answer(bytes.fromhex(request))[0].hex()

    def write(self, request: str) -> dict[str, Value]:
        """Return what a request wrote, by name."""
        return {item.point.name: value for item, value in self.image.answer(bytes.fromhex(request))[1]}

    def picture(self) -> list[str]:
        """Return what a master reads at each address, one by one."""
        return self.picture_of(self.points.values())

    def picture_of(self, points: Iterable[RegisterPoint]) -> list[str]:
        """Return what a master reads at each address of some points."""
        return [
            self.ask(f"{item.table.read_function:02x}{address:04x}0001")
            for item in points
            for address in range(item.address, item.end)
        ]


def plain_panel(*, fills_gaps: bool = False) -> Panel:
    """Return the map that the tables below are about; `limit`, `pressure` and the like have no value yet."""
    panel = Panel(
        [
            point("speed", "holding 0", "float32"),
            point("count", "holding 2", "uint16"),
            point("setpoint", "holding 3", "uint16", initial=100, min=0, max=1000, **OPEN),
            point("target", "holding 4", "float32", initial=1.5, **OPEN),
            point("run", "holding 6", bit=0, initial=True, **OPEN),
            point("reset", "holding 6", bit=1, initial=False, **OPEN),
            point("mode", "holding 6", bits="4-7", initial=5, **OPEN),
            point("alarm", "holding 7", bit=0),
            point("trip", "holding 7", bit=15),
            point("pressure", "holding 8", "float32"),
            # 10 is a gap
            point("name", "holding 11", "string", length=2, initial="ab", **OPEN),
            point("recipe", "holding 13", "bcd16", initial=42, **OPEN),
            point("level", "holding 14", "int16", scale=0.1, initial=-1.5, **OPEN),
            point("limit", "holding 15", "uint16", invalid=[0xFFFF], **OPEN),
            point("total", "holding 16", "uint64", initial=1, **OPEN),
            point("swapped", "holding 20", "float32", order="CDAB", initial=1.5, **OPEN),
            point("local", "holding 22", bit=0, initial=True, **OPEN),
            point("remote", "holding 22", bit=1),
            point("lamp", "coil 0"),
            point("start", "coil 1", initial=False, **OPEN),
            point("stop", "coil 2", initial=True, **OPEN),
            *(point(f"valve{n}", f"coil {n}", initial=n % 2 == 0, **OPEN) for n in range(3, 11)),
            # 11 is a gap
            point("horn", "coil 12"),
            point("door", "discrete 100"),
            point("belt", "discrete 101"),
            point("light", "discrete 102"),
            point("voltage", "input 1000", "uint16"),
            point("current", "input 1001", "int32"),
            point("power", "input 1003", "uint16"),
        ],
        fills_gaps=fills_gaps,
    )
    for name, value in {
        "speed": 72.5, "count": 7, "alarm": True, "trip": True, "remote": False, "lamp": True,
        "door": True, "belt": False, "voltage": 0x1234, "current": -2,
    }.items():  # fmt: skip
        panel.put(name, value)
    return panel


ANSWERS = {
    # reads
    "a float is two registers": ("0300000002", "030442910000"),
    "a block has all its points": ("0300000004", "0308429100000007 0064"),
    "half a float may be read": ("0300010002", "030400000007"),
    "an initial value is there from the start": ("0300030001", "03020064"),
    "bits share their register": ("0300060001", "03020051"),
    "bits 0 and 15 are the ends of the register": ("0300070001", "03028001"),
    "text fills its registers with zeros": ("03000b0002", "030461620000"),
    "bcd is one digit a nibble": ("03000d0001", "03020042"),
    "a scaled value is its raw value": ("03000e0001", "0302fff1"),
    "64 bits are four registers": ("0300100004", "03080000000000000001"),
    "swapped words are low word first": ("0300140002", "030400003fc0"),
    "an input register is read by function 4": ("0403e80001", "04021234"),
    "an int32 is two's complement": ("0403e90002", "0404fffffffe"),
    "an input block has all its points": ("0403e80003", "04061234fffffffe"),
    "one coil is the lowest bit": ("0100000001", "010101"),
    "an off coil is 0": ("0100010001", "010100"),
    "eight coils are one byte, the first lowest": ("0100000008", "010155"),
    "nine coils are two bytes": ("0100000009", "01025501"),
    "coils may be read from any address": ("0100020003", "010105"),
    "a discrete input is read by function 2": ("0200640001", "020101"),
    "two discrete inputs share a byte": ("0200640002", "020101"),
    # reads that touch a source that is bad
    "a point that never had a value is 0B": ("0300080002", "830b"),
    "half of a bad point is 0B": ("0300090001", "830b"),
    "a block that ends in a bad point is 0B": ("0300070002", "830b"),
    "a block that begins in a bad point is not there because of the gap": ("0300090002", "8302"),
    "a block with a bad point between good ones is 0B": ("03000e0003", "830b"),
    "a bad coil is 0B": ("01000c0001", "810b"),
    "a bad discrete input is 0B": ("0200650002", "820b"),
    "a bad input register is 0B": ("0403eb0001", "840b"),
    "the good neighbour of a bad point is not": ("0300070001", "03028001"),
    # addresses
    "a gap is 02": ("03000a0001", "8302"),
    "a block over a gap is 02, bad points or not": ("0300080004", "8302"),
    "a block of good points over a gap is 02": ("0100090004", "8102"),
    "a register behind the last is 02": ("0300170001", "8302"),
    "a block that ends one behind the last is 02": ("0300160002", "8302"),
    "a coil behind the last is 02": ("01000d0001", "8102"),
    "an address before the first is 02": ("0403e70001", "8402"),
    "a block that begins before the first is 02": ("0403e70002", "8402"),
    "a block that would wrap around is 02": ("03ffff0002", "8302"),
    "the last address of all is 02": ("03ffff0001", "8302"),
    "a holding register is no input register": ("0400000001", "8402"),
    "an input register is no holding register": ("0303e80001", "8302"),
    "a coil is no discrete input": ("0200000001", "8202"),
    "a discrete input is no coil": ("0100640001", "8102"),
    # writes
    "a coil is switched on": ("050001ff00", "050001ff00"),
    "a coil is switched off": ("0500020000", "0500020000"),
    "a register is set": ("06000301f4", "06000301f4"),
    "a register is set by function 16": ("10000300010201f4", "1000030001"),
    "a float is set whole": ("1000040002044048f5c3", "1000040002"),
    "neighbours are set together": ("100003000306000140000000", "1000030003"),
    "bits are set together": ("0600060033", "0600060033"),
    "a point without value can be given one": ("06000f0005", "06000f0005"),
    "text is set": ("10000b000204 4f4b0000", "10000b0002"),
    "coils are set together": ("0f000100090255 01", "0f00010009"),
    "one coil is set by function 15": ("0f000100010101", "0f00010001"),
    "the highest declared value is taken": ("06000303e8", "06000303e8"),
    "a mask is written": ("160003fff00005", "160003fff00005"),
    "a read and write answers with the read": ("17000300010003000102000a", "1702000a"),
    "a read and write may touch different places": ("17000000020003000102000a", "170442910000"),
    # writes that may not be
    "a point that is not open is 02": ("0600020001", "8602"),
    "a coil that is not open is 02": ("050000ff00", "8502"),
    "a block with one point that is not open is 02": ("10000200020400010001", "9002"),
    "coils with one that is not open are 02": ("0f0000000201 03", "8f02"),
    "half a float is 02": ("0600040001", "8602"),
    "the other half of a float is 02": ("0600050001", "8602"),
    "a block that ends inside a float is 02": ("10000300020400010001", "9002"),
    "a block that begins inside a float is 02": ("10000500020400000001", "9002"),
    "half a text is 02": ("06000b4142", "8602"),
    "three of four registers are 02": ("10001000030600000000 0001", "9002"),
    "a bit beside one that is not open is 02": ("0600160000", "8602"),
    "a gap is 02 for a write": ("06000a0001", "8602"),
    "coils over a gap are 02": ("0f000a00020103", "8f02"),
    "a write behind the last register is 02": ("0600170001", "8602"),
    "a write that would wrap around is 02": ("10ffff00020400010001", "9002"),
    "a table that does not exist on this address is 02": ("060064 0001", "8602"),
    "a mask on a point that is not open is 02": ("160002ffff0000", "9602"),
    "a mask on half a float is 02": ("160004ffff0000", "9602"),
    "a mask on a gap is 02": ("16000affff0000", "9602"),
    "a read and write that reads a gap is 02": ("17000a00010003000102000a", "9702"),
    "a read and write that writes a gap is 02": ("1700030001000a000102000a", "9702"),
    "a read and write that writes half a float is 02": ("17000300010004000102000a", "9702"),
    "a read and write of a closed point is 02": ("17000300010002000102000a", "9702"),
    "a read and write of a closed point is 02 before a source that is bad": ("17000800020002000102000a", "9702"),
    "a read and write of a source that is bad is 0B": ("17000800020003000102000a", "970b"),
    # values that a point cannot take
    "a NaN is 04": ("1000040002047fc00000", "9004"),
    "an infinity is 04": ("1000040002047f800000", "9004"),
    "a value above the declared range is 04": ("06000303e9", "8604"),
    "a bcd with a letter is 04": ("06000d000a", "8604"),
    "a raw value that means none is 04": ("06000fffff", "8604"),
    "a mask that leaves the declared range is 04": ("16000300008000", "9604"),
    "a read and write of a value that cannot be is 04": ("170000000100030001 0203e9", "9704"),
    # the order of checks: function, quantity and value, address, execution
    "an unknown function is 01 before all else": ("07", "8701"),
    "an unknown function with a wrong length is 01": ("63ffffffffffff", "e301"),
    "the diagnostics of serial lines are 01": ("0800000000", "8801"),
    "file records are 01": ("140707000400010002", "9401"),
    "device identification is 01": ("2b0e0100", "ab01"),
    "function 0 is 01": ("00", "8001"),
    "a quantity of 0 is 03 before the address": ("03ffff0000", "8303"),
    "a quantity too high is 03 before the address": ("03ffff007e", "8303"),
    "too many coils are 03 before the address": ("01ffff07d1", "8103"),
    "a coil of another value is 03 before the address": ("05ffff1234", "8503"),
    "a coil value of 1 is 03": ("0500010001", "8503"),
    "a byte count that lies is 03 before the address": ("10ffff000103000000", "9003"),
    "a byte count that lies is 03 before the value": ("1000040002037fc00000", "9003"),
    "a request cut short is 03": ("0300", "8303"),
    "a function alone is 03": ("03", "8303"),
    "bytes behind a request are 03": ("030000000200", "8303"),
    "a mask cut short is 03 before the address": ("16ffffffff00", "9603"),
    "a read and write of 126 is 03 before the address": ("17ffff007effff0001020000", "9703"),
    "a closed point behind a wrong value is 02": ("100004000408 7fc00000 0051 8001", "9002"),
    "a closed point before a wrong value is 02": ("100002000204 0001 03e9", "9002"),
    "an address is 02 before a source that is bad": ("0300090002", "8302"),
}  # fmt: skip


@pytest.mark.parametrize("what", ANSWERS)
def test_in_the_plain_panel(what: str) -> None:
    request, expected = ANSWERS[what]
    assert plain_panel().ask(request) == expected.replace(" ", "")


WRITES = {
    "050001ff00": {"start": True},
    "0500020000": {"stop": False},
    "0600030000": {"setpoint": 0},
    "06000303e8": {"setpoint": 1000},
    "1000040002044048f5c3": {"target": struct.unpack(">f", bytes.fromhex("4048f5c3"))[0]},
    "100003000306000140000000": {"setpoint": 1, "target": 2.0},
    "0600060000": {"run": False, "reset": False, "mode": 0},
    "06000600f3": {"run": True, "reset": True, "mode": 15},
    "10000b0002044f4b0000": {"name": "OK"},
    "10000b000204c3a46c20": {"name": "äl"},
    "06000d1234": {"recipe": 1234},
    "06000e8000": {"level": -3276.8},
    "06000f0005": {"limit": 5},
    "100010000408ffffffffffffffff": {"total": 2**64 - 1},
    "10001400020400003fc0": {"swapped": 1.5},
    "0f000100030105": {"start": True, "stop": False, "valve3": True},
    "0f0001000a02ff03": {"start": True, "stop": True, **{f"valve{n}": True for n in range(3, 11)}},
    "0f0003000101fe": {"valve3": False},
    "160003fff00005": {"setpoint": 0x65},
    "16000600000002": {"run": False, "reset": True, "mode": 0},
    "170000000200030001020009": {"setpoint": 9},
}


@pytest.mark.parametrize("request_hex", WRITES)
def test_what_a_master_writes_is_told_by_point_in_engineering_values(request_hex: str) -> None:
    assert plain_panel().write(request_hex) == WRITES[request_hex]


def test_a_request_that_only_reads_tells_of_no_write() -> None:
    panel = plain_panel()
    for request in ("0300000004", "0100000008", "0403e80001", "0200640001"):
        assert panel.write(request) == {}


def test_what_was_written_is_what_is_read() -> None:
    panel = plain_panel()
    panel.ask("100003000306000140000000")
    panel.ask("0f000100030105")
    assert panel.ask("0300030003") == "0306000140000000"
    assert panel.ask("0100010003") == "010105"


REFUSED = {what: request for what, (request, answer) in ANSWERS.items() if int(answer[:2], 16) & 0x80}


@pytest.mark.parametrize("what", REFUSED)
def test_an_exception_changes_nothing_and_tells_nothing_if(what: str) -> None:
    panel = plain_panel()
    before = panel.picture()
    assert panel.write(REFUSED[what]) == {}
    assert panel.picture() == before


# --- writes are one act -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_hex", "answer"),
    [
        ("100003000306 0001 7fc00000", "9004"),  # the second of two is NaN
        ("100003000306 03e9 40000000", "9004"),  # the first of two is out of range
        ("10000d000204 0001", "9003"),  # the second is missing
        ("10000d000306 000f 0001 0001", "9004"),  # the first is no bcd
        ("10000d000306 0001 0001 ffff", "9004"),  # the last of three means "no value"
        ("0f0009000301 07", "8f02"),  # the last is a gap
    ],
)
def test_of_several_points_in_one_request_all_are_written_or_none(request_hex: str, answer: str) -> None:
    panel = plain_panel()
    before = panel.picture()
    assert panel.ask(request_hex) == answer
    assert panel.picture() == before


FC22 = [
    (0x0012, 0x00F2, 0x0025, 0x0017),  # the example of the specification
    (0x1234, 0xFFFF, 0x0000, 0x1234), (0x1234, 0x0000, 0x0000, 0x0000), (0x1234, 0x0000, 0xABCD, 0xABCD),
    (0x1234, 0xFFFF, 0xABCD, 0x1234), (0xFFFF, 0xFF00, 0x00AA, 0xFFAA), (0x0000, 0x00FF, 0xFFFF, 0xFF00),
]  # fmt: skip


@pytest.mark.parametrize(("old", "and_mask", "or_mask", "new"), FC22)
def test_a_mask_write_keeps_the_and_mask_and_sets_the_or_mask_elsewhere(
    old: int, and_mask: int, or_mask: int, new: int
) -> None:
    panel = Panel([point("word", "holding 0", "uint16", initial=old, **OPEN)])
    request = f"160000{and_mask:04x}{or_mask:04x}"
    assert panel.write(request) == {"word": new}
    assert panel.ask("0300000001") == f"0302{new:04x}"


words = st.integers(0, 0xFFFF)


@given(words, words, words)
def test_a_mask_write_is_the_formula_of_the_specification(old: int, and_mask: int, or_mask: int) -> None:
    panel = Panel([point("word", "holding 0", "uint16", initial=old, **OPEN)])
    assert panel.ask(f"160000{and_mask:04x}{or_mask:04x}") == f"160000{and_mask:04x}{or_mask:04x}"
    assert panel.ask("0300000001") == f"0302{(old & and_mask) | (or_mask & (0xFFFF ^ and_mask)):04x}"


def test_a_mask_on_a_register_whose_value_is_not_known_is_0b() -> None:
    """It keeps bits that nobody knows: what came out would be a wrong value that looks good."""
    panel = plain_panel()
    assert panel.ask("16000ffff00005") == "960b"
    assert panel.ask("03000f0001") == "830b"


def test_a_mask_on_a_register_whose_source_went_bad_is_0b() -> None:
    panel = plain_panel()
    panel.put("setpoint", BAD)
    assert panel.ask("160003fff00005") == "960b"


def test_a_read_and_write_reads_what_it_has_just_written() -> None:
    panel = plain_panel()
    assert panel.ask("17000300030004000204 41200000") == "1706006441200000"


def test_a_read_and_write_may_give_a_value_to_a_point_that_had_none() -> None:
    panel = plain_panel()
    assert panel.ask("17000f0001000f0001020005") == "17020005"


def test_a_read_and_write_whose_read_is_bad_writes_nothing() -> None:
    """The master gets an exception: it must be able to take that for "not done" and try again."""
    panel = plain_panel()
    before = panel.picture()
    assert panel.write("170008000200030001020009") == {}
    assert panel.ask("170008000200030001020009") == "970b"
    assert panel.picture() == before


# --- bits that share a register ---------------------------------------------------------------------


def test_a_bit_that_changes_leaves_the_others_alone() -> None:
    panel = plain_panel()
    panel.put("run", False)
    assert panel.ask("0300060001") == "03020050"
    panel.put("mode", 10)
    assert panel.ask("0300060001") == "030200a0"
    panel.put("reset", True)
    assert panel.ask("0300060001") == "030200a2"
    panel.put("mode", 0)
    assert panel.ask("0300060001") == "03020002"


def test_one_bad_bit_makes_its_register_0b_until_it_is_good_again() -> None:
    panel = plain_panel()
    panel.put("trip", BAD)
    assert panel.ask("0300070001") == "830b"
    panel.put("trip", False)
    assert panel.ask("0300070001") == "03020001"


def test_of_two_bad_bits_one_that_comes_back_is_not_enough() -> None:
    panel = plain_panel()
    panel.put("trip", BAD)
    panel.put("alarm", BAD)
    panel.put("alarm", True)
    assert panel.ask("0300070001") == "830b"
    panel.put("trip", True)
    assert panel.ask("0300070001") == "03028001"


def test_bits_in_two_registers_lie_where_the_order_says() -> None:
    panel = Panel(
        [
            point("low", "holding 0", "uint32", bits="0-3", order="CDAB"),
            point("high", "holding 0", "uint32", bit=31, order="CDAB"),
        ]
    )
    panel.put("low", 5)
    panel.put("high", True)
    assert panel.ask("0300000002") == "030400058000"


def test_a_value_that_does_not_fit_its_bits_is_not_shown_and_leaves_the_others_alone() -> None:
    panel = plain_panel()
    with pytest.raises(ConversionError):
        panel.put("mode", 16)
    assert panel.ask("0300060001") == "830b"
    panel.put("mode", 1)
    assert panel.ask("0300060001") == "03020011"


def test_a_bit_without_value_leaves_the_other_bits_of_its_register_alone() -> None:
    """`nan` of one bit must not rewrite its neighbours, which are good."""
    panel = Panel(
        [
            point("ready", "holding 0", "uint16", bit=0),
            point("state", "holding 0", "uint16", bits="4-7", on_bad="nan", invalid=[0xFFFF]),
        ]
    )
    panel.put("ready", False)
    panel.put("state", 3)
    panel.put("state", BAD)
    answer = panel.ask("0300000001")
    assert answer == "830b" or not int(answer[4:], 16) & 1, "ready is False and reads as True"


# --- a source that is bad ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({}, "830b", "830b"),
        ({"on_bad": "exception"}, "830b", "830b"),
        ({"on_bad": "hold"}, "830b", "030442910000"),
        ({"on_bad": "nan"}, "03047fc00000", "03047fc00000"),
        ({"on_bad": "nan", "invalid": [0xFF800000]}, "0304ff800000", "0304ff800000"),
        ({"on_bad": "nan", "order": "DCBA"}, "03040000c07f", "03040000c07f"),
        ({"on_bad": {"value": -1}}, "0304bf800000", "0304bf800000"),
        ({"on_bad": {"value": 0}}, "030400000000", "030400000000"),
    ],
)
def test_a_float_whose_source_is_bad_reads_as_its_on_bad_says(
    settings: dict[str, object], before: str, after: str
) -> None:
    panel = Panel([point("x", "holding 0", "float32", **settings)])
    panel.put("x", BAD)
    assert panel.ask("0300000002") == before
    panel.put("x", 1.0)
    panel.put("x", 72.5)
    assert panel.ask("0300000002") == ("0304" + ("00009142" if "order" in settings else "42910000"))
    panel.put("x", BAD)
    assert panel.ask("0300000002") == after
    panel.put("x", 1.0)
    assert panel.ask("0300000002") == ("0304" + ("0000803f" if "order" in settings else "3f800000"))


def test_an_integer_whose_source_is_bad_can_read_as_its_invalid_value() -> None:
    panel = Panel([point("x", "input 0", "int16", on_bad="nan", invalid=[-32768])])
    panel.put("x", 5)
    panel.put("x", BAD)
    assert panel.ask("0400000001") == "04028000"


def test_a_coil_whose_source_is_bad_reads_as_its_on_bad_says() -> None:
    panel = Panel(
        [
            point("a", "coil 0"),
            point("b", "coil 1", on_bad="hold"),
            point("c", "coil 2", on_bad={"value": True}),
        ]
    )
    for name in "abc":
        panel.put(name, name == "b")
        panel.put(name, BAD)
    assert panel.ask("0100000001") == "810b"
    assert panel.ask("0100010001") == "010101"
    assert panel.ask("0100020001") == "010101"
    assert panel.ask("0100000003") == "810b"


def test_before_its_first_sample_a_point_is_not_there_whatever_its_on_bad() -> None:
    """Its source did not say that it is bad; it has said nothing at all."""
    panel = Panel([point("x", "holding 0", "float32", on_bad="hold")])
    assert panel.ask("0300000002") == "830b"


def test_a_value_that_is_uncertain_is_shown() -> None:
    panel = plain_panel()
    panel.put("speed", Sample(1.0, *uncertain("slow"), 5))
    assert panel.ask("0300000002") == "03043f800000"


def test_a_point_that_a_master_wrote_goes_bad_with_its_source_and_comes_back() -> None:
    panel = plain_panel()
    panel.ask("06000301f4")
    panel.put("setpoint", BAD)
    assert panel.ask("0300030001") == "830b"
    panel.ask("06000301f5")
    assert panel.ask("0300030001") == "030201f5"


IMPOSSIBLE = [
    ("holding 0", "uint16", {}, 65536),
    ("holding 0", "uint16", {}, -1),
    ("holding 0", "uint16", {}, math.inf),
    ("holding 0", "uint16", {}, math.nan),
    ("holding 0", "uint16", {}, "7"),
    ("holding 0", "uint16", {"max": 10}, 11),
    ("holding 0", "int16", {"scale": 0.1}, 3276.8),
    ("holding 0", "float32", {}, math.nan),
    ("holding 0", "float32", {}, -math.inf),
    ("holding 0", "float32", {}, 1e39),
    ("holding 0", "float32", {}, 10**400),
    ("holding 0", "uint64", {}, 10**400),
    ("holding 0", "float16", {}, 65536.0),
    ("holding 0", "float64", {"scale": 1e-300}, 1e10),
    ("holding 0", "bcd16", {}, 10000),
    ("holding 0", "bcd16", {}, -1),
    ("holding 0", "string", {"length": 2}, "abcde"),
    ("holding 0", "string", {"length": 2}, "äää"),
    ("holding 0", "string", {"length": 2}, "\ud800"),
    ("holding 0", "string", {"length": 2}, 5),
    ("coil 0", None, {}, 2),
    ("coil 0", None, {}, "on"),
    ("coil 0", None, {}, math.nan),
    ("coil 0", None, {}, 10**400),
]


@pytest.mark.parametrize(
    ("place", "type_", "settings", "value"),
    IMPOSSIBLE,
    ids=[f"{row[1] or 'coil'}-{row[3]!r:.10}" for row in IMPOSSIBLE],
)
def test_a_value_that_cannot_be_expressed_is_a_conversion_error_and_takes_the_old_one_away(
    place: str, type_: str | None, settings: dict[str, object], value: Value
) -> None:
    panel = Panel([point("x", place, type_, **settings)])
    panel.put("x", {"string": "ab"}.get(type_ or "", 1))
    with pytest.raises(ConversionError):
        panel.put("x", value)
    function = "01" if place.startswith("coil") else "03"
    assert panel.ask(f"{function}00000001") == f"8{function[1]}0b"


# --- gaps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_hex", "answer"),
    [
        ("03000a0001", "03020000"),
        ("03000a0003", "0306000061620000"),
        ("01000b0001", "010100"),
        ("01000a0002", "010101"),
        ("0300080004", "830b"),  # a bad point is bad with gaps or without
        ("03000a0002", "030400006162"),
        ("0300160002", "8302"),  # there is no gap behind the last point
        ("0403e70001", "8402"),  # nor before the first
        ("06000a0000", "8602"),  # a gap is read and not written
        ("10000a0003060000 41420000", "9002"),
        ("0f000a00020101", "8f02"),
        ("16000affff0000", "9602"),
        ("17000a00010003000102000a", "17020000"),
    ],
)
def test_with_filled_gaps(request_hex: str, answer: str) -> None:
    assert plain_panel(fills_gaps=True).ask(request_hex) == answer


def test_the_last_address_of_all_can_be_served() -> None:
    panel = Panel([point("x", "holding 65534", "float32", initial=1.5, **OPEN)])
    assert panel.ask("03fffe0002") == "03043fc00000"
    assert panel.ask("03ffff0001") == "03020000"
    assert panel.ask("03ffff0002") == "8302"
    assert panel.write("10fffe00020440000000") == {"x": 2.0}


def test_the_longest_reads_are_answered_whole() -> None:
    panel = Panel(
        [
            *(point(f"r{n}", f"holding {n}", "uint16") for n in range(125)),
            *(point(f"c{n}", f"coil {n}") for n in range(2000)),
        ]
    )
    for n in range(125):
        panel.put(f"r{n}", n)
    for n in range(2000):
        panel.put(f"c{n}", n % 3 == 0)
    assert panel.ask("030000007d") == "03fa" + "".join(f"{n:04x}" for n in range(125))
    coils = sum(1 << n for n in range(0, 2000, 3)).to_bytes(250, "little")
    assert panel.ask("01000007d0") == "01fa" + coils.hex()


def test_a_unit_without_points_answers_02() -> None:
    panel = Panel([])
    for request in ("0100000001", "0300000001", "0600000001", "16000000000000", "170000000100000001020000"):
        assert panel.ask(request)[2:] == "02"
    assert panel.ask("0300000000") == "8303"


# --- what a master wrote is kept as it wrote it -----------------------------------------------------

KEPT = [
    ("float32", {}, "80000000"),  # -0
    ("float32", {}, "00000001"),  # the smallest there is
    ("float32", {}, "7f7fffff"),  # the largest
    ("float32", {"scale": 0.1}, "42910001"),
    ("float64", {"order": "BADC"}, "0123456789abcdef"),
    ("uint64", {"scale": 0.1}, "0020000000000001"),  # more digits than a float has
    ("uint64", {"scale": 0.1}, "ffffffffffffffff"),
    ("int64", {"scale": 0.001, "offset": 5}, "7fffffffffffffff"),
    ("string", {"length": 2}, "61622020"),  # trailing blanks
    ("string", {"length": 2}, "61006364"),  # something behind the end
    ("string", {"length": 2}, "e4f6fc00"),  # not UTF-8, too long once it is
    ("string", {"length": 2}, "fffefdfc"),
    ("string", {"length": 2}, "c3a4c3b6"),
]


@pytest.mark.parametrize(("type_", "settings", "data"), KEPT)
def test_a_master_reads_back_the_very_bytes_that_it_wrote(
    type_: str, settings: dict[str, object], data: str
) -> None:
    """Many masters verify a write by reading it; and text in Latin-1 must not bring us down."""
    panel = Panel([point("x", "holding 0", type_, **settings, **OPEN)])
    count = len(data) // 4
    assert panel.ask(f"10000000{count:02x}{2 * count:02x}{data}") == f"10000000{count:02x}"
    assert panel.ask(f"03000000{count:02x}") == f"03{2 * count:02x}{data}"


# --- flags ------------------------------------------------------------------------------------------


def built(points: dict[str, dict[str, object]]) -> list[RegisterPoint]:
    """Return the served points of a configuration, which has no faults."""
    faults: list[tuple[str, str, str | None]] = []
    settings = {name: PointSettings(**item) for name, item in points.items()}
    made = build_points("panel", settings, is_served=True, fault=lambda *fault: faults.append(fault))
    assert [*faults, *point_faults(made, is_served=True)] == []
    return made


def holding(address: int, type_: str = "uint16", **more: object) -> dict[str, object]:
    return {"table": "holding", "address": address, "type": type_, **more}


COMMAND = {"command": holding(0, flags={0: "start", 9: "reset"}, initial=0, **OPEN)}


def test_a_master_that_writes_a_word_writes_its_flags() -> None:
    panel = Panel(built(COMMAND))
    told = {"command": 0x0201, "command.start": True, "command.reset": True}
    assert panel.write("0600000201") == told
    assert panel.ask("0300000001") == "03020201"
    assert panel.write("160000fffe0000") == {"command": 0x200, "command.start": False, "command.reset": True}


def test_flags_lie_where_the_order_of_their_word_says() -> None:
    panel = Panel(built({"w": holding(0, "uint32", order="CDAB", flags={0: "low", 31: "high"}, **OPEN)}))
    assert panel.write("1000000002040001 8000") == {"w": 0x80000001, "w.low": True, "w.high": True}


def test_a_flag_of_a_word_that_masters_write_is_not_written_alone() -> None:
    panel = Panel(built(COMMAND))
    with pytest.raises(ConversionError, match="is written with"):
        panel.put("command.start", value=True)
    assert panel.ask("0300000001") == "03020000"


def test_a_word_that_masters_read_is_written_flag_by_flag() -> None:
    panel = Panel(built({"status": holding(0, flags={0: "running", 3: "alarm"}, on_bad={"value": 8})}))
    assert set(panel.points) == {"status.running", "status.alarm"}
    assert panel.ask("0300000001") == "830b"
    panel.put("status.running", value=True)
    panel.put("status.alarm", value=False)
    assert panel.ask("0300000001") == "03020001"
    panel.put("status.alarm", BAD)
    assert panel.ask("0300000001") == "03020009"


# --- powers of ten in other registers ---------------------------------------------------------------

METER = {
    "volts": holding(0, "uint16", scale_from="sf"),
    "amps": holding(1, "int16", scale_from="sf", on_bad="hold"),
    "sf": holding(2, "int16"),
    "limit": holding(3, "uint16", scale_from="sf", initial=25.0, **OPEN),
}


def test_a_value_is_shown_with_the_present_factor_in_whatever_order_they_come() -> None:
    panel = Panel(built(METER))
    panel.put("volts", 230.4)
    assert panel.ask("0300000001") == "830b"
    panel.put("sf", -1)
    assert panel.ask("0300000001") == "03020900"
    assert panel.ask("0300030001") == "030200fa"
    panel.put("sf", -2)
    assert panel.ask("0300000001") == "03025a00"
    assert panel.ask("0300030001") == "030209c4"


def test_what_does_not_fit_with_the_new_factor_is_bad_until_it_does() -> None:
    panel = Panel(built(METER))
    panel.put("sf", -1)
    panel.put("volts", 700.5)
    panel.put("sf", -2)
    assert panel.ask("0300000001") == "830b"
    panel.put("sf", -1)
    assert panel.ask("0300000001") == "03021b5d"


@pytest.mark.parametrize("factor", [BAD, 11, -32768])
def test_without_a_factor_nothing_that_it_scales_is_shown(factor: Value | Sample) -> None:
    panel = Panel(built(METER))
    panel.put("sf", -1)
    panel.put("volts", 230.4)
    panel.put("sf", factor)
    assert panel.ask("0300000001") == "830b"
    assert panel.ask("0600030001") == "8604"
    panel.put("sf", -1)
    assert panel.ask("0300000001") == "03020900"


def test_what_is_held_stays_while_the_factor_is_bad() -> None:
    panel = Panel(built(METER))
    panel.put("sf", -1)
    panel.put("amps", 1.5)
    panel.put("sf", BAD)
    assert panel.ask("0300010001") == "0302000f"


def test_a_master_writes_with_the_present_factor() -> None:
    panel = Panel(built(METER))
    panel.put("sf", -1)
    assert panel.write("0600030003") == {"limit": 0.3}
    panel.put("sf", -2)
    assert panel.ask("0300030001") == "0302001e", "0.3 still"


def test_a_factor_that_never_changes_needs_no_source() -> None:
    fixed = {**METER, "sf": holding(2, "int16", initial=-1)}
    panel = Panel(built(fixed))
    assert panel.ask("0300020002") == "0304ffff00fa"
    panel.put("volts", 1)
    assert panel.ask("0300000001") == "0302000a"


def test_a_substitute_is_scaled_too() -> None:
    panel = Panel(built({**METER, "volts": holding(0, "uint16", scale_from="sf", on_bad={"value": 5.5})}))
    panel.put("sf", -1)
    panel.put("volts", BAD)
    assert panel.ask("0300000001") == "03020037"
    panel.put("sf", -2)
    assert panel.ask("0300000001") == "03020226"


def test_a_factor_in_the_same_request_is_the_one_that_counts() -> None:
    """Only a simulated device has factors that masters write."""
    points = built(METER)
    factor = replace(next(item for item in points if item.point.name == "sf"), is_open_to_masters=True)
    volts = replace(points[0], factor=factor, is_open_to_masters=True)
    panel = Panel([volts, replace(points[1], factor=factor, is_open_to_masters=True), factor])
    panel.put("sf", -1)
    panel.put("volts", 1.5)
    assert panel.write("100000000306 0003 0004 fffe") == {"volts": 0.03, "amps": 0.04, "sf": -2}
    assert panel.write("060002ffff") == {"sf": -1}
    assert panel.ask("0300000003") == "030600000000ffff", "the nearest step to 0.03 and 0.04"


# --- whatever comes ---------------------------------------------------------------------------------

addresses = st.one_of(st.integers(0, 24), st.integers(98, 104), st.integers(998, 1006), words)
counts = st.one_of(st.integers(0, 12), words)
payloads = st.binary(max_size=20)
requests = st.one_of(
    st.binary(min_size=1, max_size=pdu.MAX_PDU),
    st.builds(lambda f, a, n: struct.pack(">BHH", f, a, n), st.integers(1, 6), addresses, counts),
    st.builds(
        lambda a, data: struct.pack(">BHHB", 16, a, len(data) // 2, len(data)) + data, addresses, payloads
    ),
    st.builds(
        lambda a, n, data: struct.pack(">BHHB", 15, a, n, len(data)) + data,
        addresses, st.integers(0, 16), st.binary(min_size=1, max_size=2),
    ),
    st.builds(lambda a, x, y: struct.pack(">BHHH", 22, a, x, y), addresses, words, words),
    st.builds(
        lambda r, n, w, data: struct.pack(">BHHHHB", 23, r, n, w, len(data) // 2, len(data)) + data,
        addresses, st.integers(0, 12), addresses, payloads,
    ),
)  # fmt: skip


@given(st.lists(requests, min_size=1, max_size=4))
def test_any_requests_are_answered_and_an_exception_means_that_nothing_happened(sent: list[bytes]) -> None:
    panel = plain_panel()
    closed = [item for item in panel.points.values() if not item.is_open_to_masters]
    closed_before = panel.picture_of(closed)
    for request in sent:
        before = panel.picture()
        response, written = panel.image.answer(request)
        assert len(response) <= pdu.MAX_PDU
        if response[0] & 0x80:
            assert response[0] == request[0] | 0x80
            assert len(response) == 2
            assert response[1] in (0x01, 0x02, 0x03, 0x04, 0x0B)
            assert written == []
            assert panel.picture() == before
        else:
            assert response[0] == request[0]
            assert (written != []) == (request[0] in (5, 6, 15, 16, 22, 23))
        assert all(item.is_open_to_masters for item, _ in written)
        if not written:
            assert panel.picture() == before
    assert panel.picture_of(closed) == closed_before
