"""What the configuration of points amounts to: arrays, flags, factors, and what makes no sense."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.points import build_points, point_faults
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.model import Access, Kind


def holding(address: int, type_: str | None = "uint16", **more: object) -> dict[str, object]:
    return {"table": "holding", "address": address, "type": type_, **more}


def build(
    points: dict[str, dict[str, object]], *, is_served: bool = False
) -> tuple[dict[str, RegisterPoint], list[str]]:
    """Return points by name, and the sentences about what is wrong."""
    told: list[str] = []
    made = build_points(
        "d",
        {name: PointSettings(**item) for name, item in points.items()},
        is_served=is_served,
        fault=lambda name, message, hint: told.append(f"{name}: {message} ({hint})"),
    )
    told += [f"{fault.name}: {fault.message}" for fault in point_faults(made, is_served=is_served)]
    return {item.point.name: item for item in made}, told


def sound(points: dict[str, dict[str, object]], *, is_served: bool = False) -> dict[str, RegisterPoint]:
    made, told = build(points, is_served=is_served)
    assert told == []
    return made


def faults(points: dict[str, dict[str, object]], *, is_served: bool = False) -> list[str]:
    return build(points, is_served=is_served)[1]


def refusal(**settings: object) -> str:
    with pytest.raises(ValidationError) as caught:
        PointSettings(**settings)
    assert len(caught.value.errors()) == 1
    return caught.value.errors()[0]["msg"]


# --- arrays


@pytest.mark.parametrize(
    ("settings", "addresses"),
    [
        (holding(10, "uint16"), [10, 11, 12]),
        (holding(10, "uint8"), [10, 11, 12]),
        (holding(10, "int24"), [10, 12, 14]),
        (holding(10, "float64", order="DCBA"), [10, 14, 18]),
        (holding(10, "string", length=5), [10, 15, 20]),
        ({"table": "coil", "address": 10}, [10, 11, 12]),
        ({"reference": 10011}, [10, 11, 12]),
    ],
)
def test_the_elements_of_an_array_follow_each_other(settings, addresses):
    made = sound({"a": {**settings, "count": 3}})
    assert {name: item.address for name, item in made.items()} == dict(
        zip(("a.0", "a.1", "a.2"), addresses, strict=True)
    )
    assert {item.origin for item in made.values()} == {"a"}


def test_all_that_is_said_of_an_array_is_said_of_each_element():
    more = {
        "scale": 0.1,
        "unit": "°C",
        "min": -5,
        "invalid": ["sunspec"],
        "access": "readwrite",
        "verify": True,
    }
    made = sound({"a": holding(0, "int16", count=2, **more)})
    for item in made.values():
        own = item.point
        assert (own.unit, own.minimum, own.access, own.kind) == ("°C", -5, Access.READWRITE, Kind.FLOAT)
        assert (item.invalid, item.rules.verify, item.linear.scale) == ({0x8000}, True, 0.1)
    assert len({item.point for item in made.values()}) == 2


def test_an_array_ends_where_the_addresses_end():
    assert len(sound({"a": holding(65535 - 2 * 99 - 1, "float32", count=100)})) == 100
    assert "beyond address 65535" in refusal(**holding(65535 - 2 * 99, "float32", count=100))
    assert "beyond address 65535" in refusal(table="coil", address=65535, count=2)


@pytest.mark.parametrize("count", [0, 1, 2001, "3", 2.5])
def test_an_array_has_2_to_2000_elements(count):
    assert refusal(**holding(0, count=count))


def test_an_array_and_a_point_with_the_name_of_an_element_do_not_go_together():
    told = faults({"a": holding(0, count=3), "a.1": holding(9)})
    assert told == ["a.1: 'a.1' is the name of a point that 'a' makes already (rename one of them)"]


def test_arrays_that_overlap_are_told_once():
    told = faults({"a": holding(0, count=50), "b": holding(20, count=50)}, is_served=True)
    assert told == ["b: holding 20 belongs to a.20 already"]


def test_what_is_wrong_with_an_array_is_told_once():
    told = faults({"a": {"table": "input", "address": 0, "count": 9, "access": "write"}})
    assert told == ["a: the table `input` cannot be written"]


# --- flags


def test_flags_are_points_beside_their_word():
    made = sound({"status": holding(4, flags={3: "alarm", 0: "pump_on"}, access="readwrite", verify=True)})
    assert list(made) == ["status", "status.pump_on", "status.alarm"]
    alarm = made["status.alarm"]
    assert alarm.decode(b"\0\x08") == (True, None)
    assert (alarm.point.kind, alarm.point.access, alarm.word, alarm.rules.verify) == (
        Kind.BOOL, Access.READWRITE, made["status"], True,
    )  # fmt: skip
    assert alarm.encode(value=True) == b"\0\x08"


def test_flags_are_counted_in_the_value_not_on_the_wire():
    made = sound({"s": holding(0, "uint32", order="CDAB", flags={0: "low", 31: "high"})})
    assert made["s.high"].decode(b"\0\0\x80\0") == (True, None)
    assert made["s.low"].decode(b"\0\1\0\0") == (True, None)


def test_each_element_of_an_array_has_its_flags():
    made = sound({"s": holding(0, count=2, flags={1: "on"})})
    assert list(made) == ["s.0", "s.0.on", "s.1", "s.1.on"]
    assert made["s.1.on"].address == 1


def test_the_sentinel_of_a_word_is_that_of_its_flags():
    made = sound({"s": holding(0, flags={1: "on"}, invalid=["sunspec"])})
    assert made["s.on"].decode(b"\xff\xff")[1].reason == "not available"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (holding(0, flags={16: "x"}), "bit 16 is outside the 16 bits"),
        (holding(0, "uint32", flags={32: "x"}), "outside the 32 bits"),
        (holding(0, flags={-1: "x"}), "the lowest is 0"),
        (holding(0, flags={}), "has no bits"),
        (holding(0, flags={0: "a b"}), "is not a name for a flag"),
        (holding(0, flags={0: "a", 1: "a"}), "same name"),
        (holding(0, "float32", flags={0: "a"}), "has no bits to choose from"),
        (holding(0, "bcd16", flags={0: "a"}), "has no bits to choose from"),
        (holding(0, bit=3, flags={0: "a"}), "exclude each other"),
        (holding(0, scale=2, flags={0: "a"}), "cannot be scaled"),
        ({"table": "coil", "address": 0, "flags": {0: "a"}}, "is one bit"),
        (holding(0, flags="0=a 0=b"), "names 0 twice"),
        (holding(0, flags="pump"), "is not `flags` such as"),
        (holding(0, flags="0=a" + " " * 100_000 + "x"), "is not a name for a flag"),
        (holding(0, flags="x 0=a"), "is not `flags` such as"),
    ],
)
def test_flags_that_make_no_sense_are_refused(settings, words):
    assert words in refusal(**settings)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("0=pump_on 3=alarm", {0: "pump_on", 3: "alarm"}),
        ("0=pump_on;3=alarm", {0: "pump_on", 3: "alarm"}),
        ("0: pump_on, 3: alarm", {0: "pump_on", 3: "alarm"}),
        ("15 = x", {15: "x"}),
    ],
)
def test_flags_may_be_written_in_one_cell(text, flags):
    assert PointSettings(**holding(0, flags=text)).flags == flags


def test_labels_in_one_cell_may_have_spaces():
    settings = PointSettings(**holding(0, enum="0=off 1 = on the way; -1=gone"))
    assert settings.enum == {0: "off", 1: "on the way", -1: "gone"}


def test_who_writes_a_served_word_decides_what_its_flags_are():
    written = sound({"c": holding(0, flags={0: "go"}, access="readwrite")}, is_served=True)
    assert {name: item.point.access for name, item in written.items()} == {"c": "readwrite", "c.go": "read"}
    assert all(item.is_open_to_masters for item in written.values())
    read = sound({"s": holding(0, flags={0: "on"})}, is_served=True)
    assert {name: item.point.access for name, item in read.items()} == {"s.on": "write"}


def test_flags_begin_with_what_their_word_begins_with():
    made = sound({"c": holding(0, flags={0: "a", 3: "b"}, access="readwrite", initial=8)}, is_served=True)
    assert {name: item.initial for name, item in made.items()} == {"c": 8, "c.a": False, "c.b": True}
    assert "`initial` is for" in faults({"s": holding(0, flags={0: "a"}, initial=1)}, is_served=True)[0]


# --- scale factors


def test_a_scale_factor_may_stand_before_or_behind_what_it_scales():
    made = sound({"w": holding(0, "int16", scale_from="w_sf"), "w_sf": holding(1, "int16"),
                  "v": holding(2, "uint32", scale_from="w_sf", count=2)})  # fmt: skip
    assert list(made) == ["w", "w_sf", "v.0", "v.1"]
    assert {name for name, item in made.items() if item.factor is made["w_sf"]} == {"w", "v.0", "v.1"}
    assert {name: item.point.kind for name, item in made.items() if item.factor} == dict.fromkeys(
        ("w", "v.0", "v.1"), Kind.FLOAT
    )


def test_a_scale_factor_may_be_one_of_an_array():
    made = sound({"sf": holding(0, "int16", count=2), "w": holding(2, "int16", scale_from="sf.1")})
    assert made["w"].factor is made["sf.1"]


@pytest.mark.parametrize(
    ("factor", "value", "words"),
    [
        (holding(0, "int16"), {"scale_from": "sff"}, "'sff', which is no point of the device (did you mean 'sf'?)"),
        (holding(0, "int16"), {"scale_from": "w"}, "of itself"),
        (holding(0, "int16", scale_from="other"), {}, "has a `scale_from` itself"),
        (holding(0, "int16", scale=0.1), {}, "is a float: a power of ten is a whole number"),
        (holding(0, "float32"), {}, "is a float"),
        (holding(0, "int16", bit=1), {}, "is a bool"),
        (holding(0, "int16", count=2), {}, "is an array (name one of it, such as sf.0)"),
        ({"table": "input", "address": 0, "type": "int16"}, {}, "is in the table `input` and this in `holding`"),
        (holding(0, "int16", scan="5s"), {}, "has another `scan`"),
        (holding(0, "int16"), {"scan": "5s"}, "has another `scan`"),
        (holding(0, "int16", access="write"), {}, "cannot be read"),
        (holding(129, "int16"), {"count": 9}, "holding 4 and 'sf' of `scale_from` are 126 registers"),
        (holding(0, "int16"), {"address": 123, "type": "uint32", "count": 9}, "holding 125 and 'sf' of `scale_from` are 127"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_scale_factor_is_said(factor, value, words):
    points = {
        "other": holding(8, "int16"),
        "sf": factor,
        "w": {**holding(4, "int16", scale_from="sf"), **value},
    }
    made, told = build(points)
    assert [text for text in told if text.startswith("w: ")] == told
    assert len(told) == 1
    assert words in told[0]
    assert "w" in made or "w.0" in made, "routes can still be checked against it"


def test_masters_do_not_write_a_scale_factor():
    points = {"sf": holding(0, "int16", access="readwrite"), "w": holding(1, "int16", scale_from="sf")}
    assert "must not be written by masters" in faults(points, is_served=True)[0]
    points["sf"] = holding(0, "int16", initial=-1)
    assert sound(points, is_served=True)["w"].factor.initial == -1


def test_an_initial_value_is_for_who_can_use_it():
    told = faults({"x": holding(0, initial=5)}, is_served=True)
    assert told == ["x: `initial` is for points that masters write (`access: readwrite`) and for factors"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (holding(0, "float32", scale_from="x"), "is for whole numbers"),
        (holding(0, "string", length=2, scale_from="x"), "a string cannot be scaled"),
        (holding(0, "uint16", bit=3, scale_from="x"), "true or false"),
        ({"table": "coil", "address": 0, "scale_from": "x"}, "true or false"),
        (holding(0, "bool", bit=3, scale=2), "a bool is true or false and cannot be scaled"),
        (holding(0, "int64", scale=1e300), "between 1e-100 and 1e100"),
    ],
)
def test_what_is_no_number_is_not_scaled(settings, words):
    assert words in refusal(**settings)


# --- text, times, sentinels


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (holding(0, "uint16", pad="space"), "`pad` is for strings"),
        (holding(0, "uint16", chars="low"), "`chars` is for strings"),
        (holding(0, "uint16", timestamp="unix"), "an integer of 32, 48 or 64 bits, not uint16"),
        (holding(0, "float64", timestamp="unix"), "an integer of 32, 48 or 64 bits"),
        (holding(0, "uint32", timestamp="unix", scale=2), "has no `scale`"),
        (holding(0, "uint32", timestamp="unix", max=2), "has no `max`"),
        (holding(0, "uint32", timestamp="unix", flags={0: "a"}), "has no `flags`"),
        (holding(0, "uint16", invalid=["0xG"]), "neither a raw value such as 0xFFFF nor the word sunspec"),
        (holding(0, "uint16", invalid=[0x10000]), "does not fit 16 bits"),
        (holding(0, "uint16", invalid="0x10000"), "0x10000 does not fit 16 bits"),
        (holding(0, "string", length=1, invalid=["sunspec"]), "`invalid` is for numbers"),
        ({"table": "coil", "address": 0, "invalid": [1]}, "no state is left for `invalid`"),
    ],
)
def test_what_does_not_belong_to_a_type_is_refused(settings, words):
    assert words in refusal(**settings)


@pytest.mark.parametrize(
    ("type_", "invalid", "raw"),
    [
        ("int16", "sunspec", {0x8000}),
        ("uint16", "sunspec", {0xFFFF}),
        ("int32", ["sunspec"], {0x80000000}),
        ("uint32", ["sunspec", 0], {0xFFFFFFFF, 0}),
        ("int64", "sunspec", {0x8000000000000000}),
        ("uint64", "sunspec", {2**64 - 1}),
        ("float32", "sunspec", set()),
        ("int16", "0x7FFF, -32768", {0x7FFF, 0x8000}),
        ("int16", -1, {0xFFFF}),
        ("bcd16", ["0xFFFF"], {0xFFFF}),
        ("uint64", [0], {0}),
    ],
)
def test_sentinels_are_raw_values_or_the_word_for_the_types_own(type_, invalid, raw):
    assert PointSettings(**holding(0, type_, invalid=invalid)).invalid_values() == raw


def test_a_time_is_text_for_all_who_use_it():
    made = sound({"t": holding(0, "uint32", timestamp="y2000", invalid=[0xFFFFFFFF])})["t"]
    assert made.point.kind is Kind.STRING
    assert made.decode(bytes(4)) == ("2000-01-01T00:00:00Z", None)


@pytest.mark.parametrize("value", ["noon", 5])
def test_what_a_served_time_begins_with_is_a_time(value):
    points = {"t": holding(0, "uint32", timestamp="unix", access="readwrite", initial=value)}
    assert "is not a time" in faults(points, is_served=True)[0]
    points["t"]["initial"] = "2026-11-23T14:02:11Z"
    sound(points, is_served=True)


# --- bits that are written


def test_single_bits_and_ranges_of_polled_devices_can_be_written():
    made = sound({"run": holding(0, None, bit=3, access="readwrite"),
                  "mode": holding(0, bits="8-11", access="write"),
                  "whole": holding(0)})  # fmt: skip
    assert (made["run"].bit_mask, made["mode"].bit_mask) == (0x0008, 0x0F00)


@pytest.mark.parametrize("table", ["discrete", "input"])
def test_what_a_device_only_shows_is_not_written(table):
    more = {} if table == "discrete" else {"bit": 1}
    assert faults({"x": {"table": table, "address": 0, "access": "write", **more}}) == [
        f"x: the table `{table}` cannot be written"
    ]
