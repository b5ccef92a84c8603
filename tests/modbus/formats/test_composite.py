"""Values of several registers: their parts, their sign, their block, and how they are served."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import ConversionError
from fieldbus.modbus.blocks import BlockReader
from fieldbus.modbus.formats.composite import splitter
from fieldbus.modbus.image import UnitImage
from fieldbus.modbus.planner import Limits, plan
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.points import build_points, point_faults
from fieldbus.modbus.table_image import BlockRules
from fieldbus.model import Group, Kind, Quality, Sample


def whole(*parts, table="holding", **more):
    return PointSettings(table=table, parts=list(parts), **more).build("d", "p", is_served=False)


def registers(**values):
    """Return bytes from the lowest to the highest address, as `a78=5` says them; 0xEEEE between."""
    places = {int(name[1:]): value for name, value in values.items()}
    first, last = min(places), max(places)
    return b"".join(
        (places.get(place, 0xEEEE) & 0xFFFF).to_bytes(2, "big") for place in range(first, last + 1)
    )


IMPORT = ({"address": 78}, {"address": 80, "factor": 65536})
HEAT = ({"address": 0x920}, {"address": 0x921, "factor": 1000})
POWER = ({"address": 11}, {"address": 10, "bit": 0, "sign": True})


@pytest.mark.parametrize(
    ("place", "data", "value"),
    [
        (whole(*IMPORT, scale=0.1), registers(a78=0x49F0, a80=2), 15000.0),
        (whole(*HEAT), registers(a2336=623, a2337=2), 2623),
        (whole(*POWER), registers(a10=1, a11=1500), -1500),
        (whole(*POWER), registers(a10=0xFFFE, a11=1500), 1500),
        (whole({"address": 0, "factor": 0.1}, {"address": 1, "factor": 10}), registers(a0=7, a1=3), 30.7),
        (whole({"address": 0, "factor": 0.1}, {"address": 1, "factor": 0.01}), registers(a0=1, a1=2), 0.12),
        (whole({"address": 0, "type": "int16"}, {"address": 1, "type": "int16", "factor": 1000}), registers(a0=-5, a1=-2), -2005),
        (whole({"address": 0, "bits": "0-11"}, {"address": 0, "bits": "12-15", "factor": 10000}), registers(a0=0x3004), 30004),
        (whole({"address": 0, "bits": "0-14"}, {"address": 0, "bit": 15, "sign": True}), registers(a0=0x8005), -5),
        (whole({"address": 0}, {"address": 1, "factor": -1}), registers(a0=3, a1=10), -7),
        (whole({"address": 0, "type": "bcd16"}, {"address": 1, "type": "bcd16", "factor": 10000}), registers(a0=0x5678, a1=0x1234), 12345678),
        (whole({"address": 0, "format": "m10k", "type": "uint32"}, {"address": 3, "factor": 10**8}), registers(a0=1, a1=2, a3=5), 500010002),
        (whole(*HEAT, scale=2, offset=1), registers(a2336=1, a2337=1), 2003),
    ],
)  # fmt: skip
def test_the_parts_make_the_whole(place, data, value):
    found, flaw = place.decode(data)
    assert (found, flaw) == (value, None)
    assert type(found) is type(value)
    assert place.point.kind is (Kind.INT if isinstance(value, int) else Kind.FLOAT)
    assert place.count * 2 == len(data)


def test_parts_of_floats_are_added_in_floating_point():
    place = whole(
        {"address": 0, "type": "float32"}, {"address": 2, "type": "float32", "factor": 1000}, scale=2
    )
    assert place.decode(struct.pack(">ff", 1.5, 2.0)) == (4003.0, None)
    assert place.decode(struct.pack(">ff", float("nan"), 2.0))[1].reason == "not available"


@pytest.mark.parametrize(
    ("place", "data", "reason"),
    [
        (whole({"address": 0, "invalid": [0xFFFF]}, {"address": 1}), registers(a0=0xFFFF, a1=1), "not available"),
        (whole({"address": 0}, {"address": 1, "invalid": [0xFFFF]}), registers(a0=1, a1=0xFFFF), "not available"),
        (whole({"address": 0, "type": "bcd16"}, {"address": 1}), registers(a0=0xA, a1=1), "conversion"),
        (whole({"address": 0}, {"address": 1, "sign": True}), registers(a0=1, a1=2), "conversion"),
        (whole({"address": 0}, {"address": 1, "sign": True}), registers(a0=1, a1=0xFFFF), "conversion"),
    ],
)  # fmt: skip
def test_the_whole_is_bad_when_a_part_is_bad(place, data, reason):
    value, flaw = place.decode(data)
    assert (value, flaw.quality, flaw.reason) == (None, "bad", reason)


def test_a_whole_has_a_range_of_its_own():
    assert whole(*HEAT, max=2000).decode(registers(a2336=623, a2337=2)) == (
        2623,
        ("uncertain", "out of range"),
    )


# --- read


def polled(**points):
    told = []
    made = build_points("d", {name: PointSettings(**{"table": "holding", **item}) for name, item in points.items()},
                        is_served=False, fault=lambda *text: told.append(text))  # fmt: skip
    assert told == [] and point_faults(made, is_served=False) == []
    return made


def test_parts_are_always_out_of_one_request():
    made = polled(
        low={"address": 0},
        both={"parts": [{"address": 90}, {"address": 5, "factor": 10}]},
        high={"address": 95},
    )
    blocks = plan(made, 1, 1.0, Limits(max_gap=0))
    assert [(block.address, block.count) for block in blocks] == [(0, 1), (5, 86), (95, 1)]
    own = next(block for block in blocks if made[1] in block.points)
    reader = BlockReader(own, Group("g", [item.point for item in own.points]))
    assert list(reader.read(b"\0\3" + bytes(168) + b"\0\4", 0, 0.0).values) == [34]


def test_a_block_with_parts_tells_what_changed():
    made = polled(both={"parts": [{"address": 0}, {"address": 2, "factor": 1000}]}, first={"address": 0}, mid={"address": 1},
                  scaled={"address": 3, "scale_from": "mid"})  # fmt: skip
    [block] = plan(made, 1, 1.0, Limits())
    names = [item.point.name for item in block.points]
    reader = BlockReader(block, Group("g", [item.point for item in block.points]))

    def read(*values):
        batch = reader.read(struct.pack(">4H", *values), 0, 0.0)
        return dict(zip(names, batch.values, strict=True)), {names[index] for index in batch.changed}

    assert read(1, 0, 2, 7) == ({"first": 1, "mid": 0, "both": 2001, "scaled": 7.0}, set(names))
    assert read(1, 0, 3, 7) == ({"first": 1, "mid": 0, "both": 3001, "scaled": 7.0}, {"both"})
    assert read(1, 1, 3, 7)[1] == {"mid", "scaled"}
    assert read(1001, 1, 2, 7) == ({"first": 1001, "mid": 1, "both": 3001, "scaled": 70.0}, {"first"})
    assert read(1001, 1, 2, 7)[1] == set()


@given(st.lists(st.integers(0, 0xFFFF), min_size=6, max_size=6), st.integers(0, 0xFFFF))
def test_a_block_and_a_single_read_agree(values, other):
    made = polled(a={"parts": [{"address": 0}, {"address": 2, "factor": 0.1}, {"address": 5, "bit": 3, "sign": True}]},
                  b={"parts": [{"address": 1, "type": "int16"}, {"address": 4, "factor": 7}]})  # fmt: skip
    [block] = plan(made, 1, 1.0, Limits())
    reader = BlockReader(block, Group("g", [item.point for item in block.points]))
    for registers_now in (values, [*values[:3], other, *values[4:]], [other, *values[1:]]):
        data = struct.pack(">6H", *registers_now)
        found = dict(
            zip((item.point.name for item in block.points), reader.read(data, 0, 0.0).values, strict=True)
        )
        for item in made:
            own = data[2 * item.address : 2 * item.end]
            assert found[item.point.name] == item.decode(own)[0]


# --- served


@pytest.mark.parametrize(
    ("place", "value", "split"),
    [
        (whole(*HEAT), 2623, ["026f", "0002"]),
        (whole(*HEAT), 999, ["03e7", "0000"]),
        (whole(*HEAT), 65535999, ["03e7", "ffff"]),
        (whole(*HEAT), 65536000 + 64535, ["ffff", "ffff"]),
        (whole(*IMPORT, scale=0.1), 15000.0, ["49f0", "0002"]),
        (whole(*POWER), -1500, ["05dc", "0001"]),
        (whole(*POWER), 0, ["0000", "0000"]),
        (whole({"address": 0, "factor": 0.1}, {"address": 1, "factor": 10}), 30.7, ["0007", "0003"]),
        (whole({"address": 0}, {"address": 1, "type": "int16", "factor": 1000}), -1, ["03e7", "ffff"]),
        (whole({"address": 0, "factor": 10}, {"address": 1, "factor": 1000}), 1014, ["0001", "0001"]),
    ],
)
def test_a_value_is_taken_apart_from_the_largest_factor(place, value, split):
    assert [data.hex() for data in splitter(place)(value)] == split


SPLIT = [
    whole(*HEAT), whole(*IMPORT), whole(*POWER),
    whole({"address": 0, "factor": 0.001}, {"address": 1}, {"address": 2, "factor": 10000}),
    whole({"address": 0}, {"address": 1, "type": "int16", "factor": 65536}),
    whole({"address": 0, "type": "int32", "format": "sign_magnitude"}, {"address": 9, "factor": 2**31}),
]  # fmt: skip


@pytest.mark.parametrize("place", SPLIT)
@given(raw=st.integers(-(2**48), 2**48))
def test_every_value_that_is_taken_apart_comes_back(place, raw):
    value = raw if place.point.kind is Kind.INT else raw / 1000
    try:
        pieces = splitter(place)(value)
    except ConversionError:
        return
    data = bytearray(place.count * 2)
    for piece, own in zip(place.pieces, pieces, strict=True):
        first = 2 * (piece.address - place.address)
        data[first : first + len(own)] = own
    assert place.decode(bytes(data)) == (value, None)


@pytest.mark.parametrize("value", [-1, 65535 * 1001 + 1, 10**12])
def test_a_value_beyond_its_parts_is_refused(value):
    with pytest.raises(ConversionError):
        splitter(whole(*HEAT))(value)


def test_a_served_whole_fills_its_parts_and_nothing_between():
    settings = {
        "heat": PointSettings(table="holding", parts=[{"address": 0}, {"address": 2, "factor": 1000}]),
        "flow": PointSettings(table="holding", address=1),
        "power": PointSettings(
            table="holding", parts=[{"address": 3, "bits": "0-14"}, {"address": 3, "bit": 15, "sign": True}]
        ),
    }
    made = build_points("d", settings, is_served=True, fault=lambda *text: pytest.fail(str(text)))
    assert point_faults(made, is_served=True) == []
    image = UnitImage(made, BlockRules(bad_points_read=True))
    for item, value in zip(made, (2623, 7, -5), strict=True):
        image.update(item.point, Sample(value, Quality.GOOD, None, 0))
    assert image.answer(bytes.fromhex("03 0000 0004"))[0].hex() == "0308026f000700028005"
    image.update(made[0].point, Sample(None, Quality.BAD, "timeout", 0))
    assert image.answer(bytes.fromhex("03 0000 0004"))[0].hex() == "0308ffff0007ffff8005"
    assert image.answer(bytes.fromhex("03 0000 0001"))[0].hex() == "830b"
    assert image.answer(bytes.fromhex("06 0000 0001"))[0].hex() == "8602"


def test_served_points_may_lie_between_parts_and_not_on_them():
    def faults(**points):
        made = build_points("d", {name: PointSettings(table="holding", **item) for name, item in points.items()},
                            is_served=True, fault=lambda *text: pytest.fail(str(text)))  # fmt: skip
        return [(fault.name, fault.message) for fault in point_faults(made, is_served=True)]

    parts = [{"address": 0}, {"address": 2, "factor": 10}]
    assert faults(a={"parts": parts}, b={"address": 1}) == []
    assert faults(a={"parts": parts}, b={"address": 2}) == [("b", "holding 2 belongs to a already")]
    [(name, text)] = faults(a={"parts": [{"address": 0, "type": "float32"}, {"address": 2}]})
    assert (name, "whole numbers" in text) == ("a", True)


# --- what makes no sense


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"parts": [{"address": 0}]}, "at least 2 items"),
        ({"address": 0}, "`address` belongs to a part"),
        ({"type": "int16"}, "`type` belongs to a part"),
        ({"scale_from": "x"}, "`scale_from` belongs to a part, or is not"),
        ({"count": 2}, "`count` belongs"),
        ({"order": "CDAB"}, "`order` and `invalid` belong to a part"),
        ({"access": "readwrite"}, "is only read"),
        ({"on_bad": "nan"}, "has no NaN"),
        ({"parts": [{"address": 0}, {"address": 125}]}, "lie over 126 registers"),
        ({"parts": [{"address": 0}, {"address": 1, "table": "input"}]}, "all `parts` are in one table"),
        ({"parts": [{"address": 0}, {"reference": 30002}]}, "all `parts` are in one table"),
        ({"parts": [{"address": 0, "sign": True}, {"address": 1, "sign": True}]}, "only one of the `parts`"),
        ({"parts": [{"address": 0}, {"address": 1, "sign": True, "factor": 2}]}, "a sign has no `factor`"),
        ({"parts": [{"address": 0}, {"address": 1, "factor": 0}]}, "factor 0"),
        ({"parts": [{"address": 0}, {"address": 1, "type": "string", "length": 2}]}, "not text"),
        ({"parts": [{"address": 0}, {"address": 65535, "type": "uint32"}]}, "beyond address 65535"),
        ({"parts": [{"address": 0}, {"address": 1, "scale": 2}]}, "Extra inputs"),
        ({"table": "coil"}, "the table is input, holding or file"),
    ],
)
def test_parts_that_make_no_sense_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        PointSettings(**{"table": "holding", "parts": [{"address": 0}, {"address": 1}], **more})


def test_parts_may_name_references_instead_of_a_table():
    place = PointSettings(parts=[{"reference": 40079}, {"reference": 40081, "factor": 65536}]).build(
        "d", "p", is_served=False
    )
    assert (place.table, place.address, place.end) == ("holding", 78, 81)
