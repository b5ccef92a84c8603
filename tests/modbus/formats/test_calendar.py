"""Clocks in calendar fields: byte by byte, there and back over all their years, zones, and what is no time."""

from __future__ import annotations

import datetime
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.errors import ConversionError
from fieldbus.modbus.formats.calendar import calendar_decoder, calendar_encoder
from fieldbus.modbus.formats.time_zones import zone_named
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.register_types import Format
from fieldbus.model import Kind

BERLIN = zone_named("Europe/Berlin")
CLOCKS = [item for item in Format if item.clock_registers and item is not Format.TIME_OF_DAY]
YEARS = {
    Format.CALENDAR: (1, 9999),
    Format.CALENDAR_YY: (2000, 2099),
    Format.CALENDAR_BCD: (2000, 2099),
    Format.CALENDAR_BYTES: (2000, 2255),
    Format.IEC870_5_4: (2000, 2127),
}
WIRE = [
    ("calendar", "07ea 000b 001e 0013 002d 0007"),
    ("calendar_yy", "001a 000b 001e 0013 002d 0007"),
    ("calendar_bcd", "2611 3019 4507"),
    ("calendar_bytes", "1a0b 1e13 2d07"),
    ("iec870_5_4", "001a 0b1e 132d 1b58"),
]


def clock(format_, **more):
    return PointSettings(table="holding", address=0, format=format_, **more).build("d", "p", is_served=False)


@pytest.mark.parametrize(("format_", "wire"), WIRE)
def test_a_clock_byte_by_byte(format_, wire):
    place, data = clock(format_), bytes.fromhex(wire)
    assert (place.count * 2, place.point.kind) == (len(data), Kind.STRING)
    assert place.decode(data) == ("2026-11-30T19:45:07Z", None)
    assert place.encode("2026-11-30T19:45:07Z") == data


@pytest.mark.parametrize(("format_", "wire"), WIRE)
def test_a_clock_shows_the_time_of_its_zone(format_, wire):
    place, data = clock(format_, timezone="Europe/Berlin"), bytes.fromhex(wire)
    assert place.decode(data) == ("2026-11-30T18:45:07Z", None)
    assert place.encode("2026-11-30T18:45:07Z") == data
    assert clock(format_, timezone="-03:30").decode(data) == ("2026-11-30T23:15:07Z", None)


def test_the_fields_may_come_in_reverse():
    place = clock("calendar", order="CDAB")
    wire = bytes.fromhex("0007 002d 0013 001e 000b 07ea")
    assert place.decode(wire) == ("2026-11-30T19:45:07Z", None)
    assert place.encode("2026-11-30T19:45:07Z") == wire
    assert (
        clock("calendar_bcd", order="BADC").decode(bytes.fromhex("1126 1930 0745"))[0]
        == "2026-11-30T19:45:07Z"
    )


def test_milliseconds_show_only_where_there_are_some():
    place = clock("iec870_5_4")
    assert place.decode(bytes.fromhex("001a 0b1e 132d 1b59")) == ("2026-11-30T19:45:07.001Z", None)
    assert place.encode("2026-11-30T19:45:07.0006Z").hex() == "001a0b1e132d1b59"


@pytest.mark.parametrize(
    ("value", "wire"),
    [("2026-11-30T19:45:06.5Z", "2611 3019 4507"), ("2026-12-31T23:59:59.7Z", "2701 0100 0000"),
     ("2026-11-30T20:45:07+01:00", "2611 3019 4507")],
)  # fmt: skip
def test_a_clock_is_set_to_the_nearest_second(value, wire):
    assert clock("calendar_bcd").encode(value) == bytes.fromhex(wire)


@pytest.mark.parametrize(
    ("format_", "wire"),
    [
        ("calendar", "0000 0000 0000 0000 0000 0000"),
        ("calendar", "ffff ffff ffff ffff ffff ffff"),
        ("calendar", "07ea 000d 0001 0000 0000 0000"),
        ("calendar", "07e9 0002 001d 0000 0000 0000"),
        ("calendar", "07ea 0001 0001 0018 0000 0000"),
        ("calendar", "07ea 0001 0001 0000 003c 0000"),
        ("calendar", "07ea 0001 0001 0000 0000 003c"),
        ("calendar_yy", "07ea 000b 001e 0013 002d 0007"),
        ("calendar_bcd", "261a 3019 4507"),
        ("calendar_bcd", "2613 3019 4507"),
        ("calendar_bytes", "1a0d 1e13 2d07"),
        ("iec870_5_4", "001a 0b00 132d 1b58"),
        ("iec870_5_4", "001a 0b1e 132d ea60"),
        ("time_of_day", "1800"),
        ("time_of_day", "003c"),
    ],
)
def test_fields_that_are_no_time_are_no_value(format_, wire):
    value, flaw = clock(format_).decode(bytes.fromhex(wire))
    assert (value, flaw.quality, flaw.reason) == (None, "bad", "conversion")


def test_a_time_that_its_device_calls_invalid_is_no_value():
    assert clock("iec870_5_4").decode(bytes.fromhex("001a 0b1e 13ad 1b58"))[1].reason == "not available"


def test_reserved_bits_and_the_day_of_the_week_are_not_looked_at():
    assert clock("iec870_5_4").decode(bytes.fromhex("ff9a fb3e 736d 1b58")) == ("2026-11-30T19:45:07Z", None)


# --- summer time


def test_the_hour_that_a_zone_has_twice_is_uncertain():
    place = clock("calendar", timezone="Europe/Berlin")
    value, flaw = place.decode(bytes.fromhex("07ea 000a 0019 0002 001e 0000"))
    assert (value, flaw) == ("2026-10-25T00:30:00Z", ("uncertain", "ambiguous local time"))
    before, after = (
        bytes.fromhex("07ea 000a 0019 0001 003b 003b"),
        bytes.fromhex("07ea 000a 0019 0003 0000 0000"),
    )
    assert (place.decode(before), place.decode(after)) == (
        ("2026-10-24T23:59:59Z", None),
        ("2026-10-25T02:00:00Z", None),
    )


def test_summer_time_that_is_said_tells_the_hours_apart():
    place = clock("iec870_5_4", timezone="Europe/Berlin")
    summer, winter = place.encode("2026-10-25T00:30:00Z"), place.encode("2026-10-25T01:30:00Z")
    assert (summer.hex(), winter.hex()) == ("001a0a19821e0000", "001a0a19021e0000")
    assert place.decode(summer) == ("2026-10-25T00:30:00Z", None)
    assert place.decode(winter) == ("2026-10-25T00:30:00Z", ("uncertain", "ambiguous local time"))


def test_an_hour_that_a_zone_does_not_have_is_uncertain():
    place = clock("calendar", timezone="Europe/Berlin")
    value, flaw = place.decode(bytes.fromhex("07ea 0003 001d 0002 001e 0000"))
    assert (value, flaw) == ("2026-03-29T01:30:00Z", ("uncertain", "no such local time"))
    assert (
        clock("calendar", timezone="+01:00").decode(bytes.fromhex("07ea 0003 001d 0002 001e 0000"))[1] is None
    )


@pytest.mark.parametrize("format_", CLOCKS)
@given(data=st.data())
def test_every_second_of_every_year_comes_back(format_, data):
    zone = data.draw(st.sampled_from([datetime.UTC, zone_named("+05:45"), zone_named("-12:00"), BERLIN,
                                      zone_named("America/St_Johns"), zone_named("Australia/Lord_Howe")]))  # fmt: skip
    first, last = YEARS[format_]
    local = data.draw(
        st.datetimes(datetime.datetime(first, 1, 1), datetime.datetime(last, 12, 31, 23, 59, 59)).map(
            lambda moment: moment.replace(microsecond=0)
        )
    )
    try:
        text = local.replace(tzinfo=zone).astimezone(datetime.UTC).replace(tzinfo=None).isoformat() + "Z"
        wire = calendar_encoder(format_, zone)(text)
    except (OverflowError, ConversionError):
        assert local.year in (first, last)  # beyond the calendar in UTC
        return
    assert len(wire) == format_.clock_registers * 2
    value, flaw = calendar_decoder(format_, zone)(wire)
    assert value == text or (flaw is not None and flaw.reason == "ambiguous local time")
    assert calendar_encoder(format_, zone)(value)[:8] == wire[:8] or flaw is not None


@pytest.mark.parametrize("format_", [*CLOCKS, Format.TIME_OF_DAY])
def test_no_bytes_whatever_make_a_clock_raise(format_):
    dice = random.Random(format_)
    for zone in (datetime.UTC, BERLIN, zone_named("+14:00"), zone_named("-14:00")):
        decode, encode = calendar_decoder(format_, zone), calendar_encoder(format_, zone)
        for _ in range(3000):
            value, flaw = decode(dice.randbytes(format_.clock_registers * 2))
            assert (value is None) == (flaw is not None and flaw.quality == "bad")
            if flaw is None:
                assert decode(encode(value)) == (value, None)


@pytest.mark.parametrize("format_", CLOCKS)
def test_a_year_that_a_clock_does_not_have_is_refused(format_):
    encode = calendar_encoder(format_, datetime.UTC)
    first, last = YEARS[format_]
    for year in {first - 1, last + 1} - {0, 10000}:
        with pytest.raises(ConversionError, match="outside the years"):
            encode(f"{year:04d}-06-01T00:00:00Z")
    for value in ("yesterday", "2026-11-30", "2026-11-30T19:45:07", 5, True):
        with pytest.raises(ConversionError):
            encode(value)
    with pytest.raises(ConversionError, match="9999"):
        encode("9999-12-31T23:59:59.999999Z")


def test_every_minute_of_a_day_comes_back():
    place = clock("time_of_day")
    for minutes in range(1440):
        text = f"{minutes // 60:02d}:{minutes % 60:02d}"
        assert place.encode(text) == bytes(divmod(minutes, 60))
        assert place.decode(place.encode(text)) == (text, None)


@pytest.mark.parametrize(
    "value", ["24:00", "7:30", "19:60", "19:45:07", " 19:45", 1945, "2026-11-30T19:45:07Z"]
)
def test_what_is_no_time_of_day_is_refused(value):
    with pytest.raises(ConversionError, match="is not a time of day"):
        clock("time_of_day").encode(value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"type": "uint16"}, "it has no `type`"),
        ({"length": 6}, "it has no `length`"),
        ({"bit": 3}, "it has no `bit`"),
        ({"invalid": [0]}, "are no value anyway"),
        ({"scale": 2}, "cannot be scaled"),
        ({"min": 2}, "has no `min`"),
        ({"flags": {0: "a"}}, "has no bits"),
        ({"timestamp": "unix"}, "exclude each other"),
        ({"verify": True}, "a clock that goes on"),
        ({"timezone": "Europe/Bärlin"}, "is not a time zone that this machine knows"),
        ({"timezone": "../../etc/passwd"}, "is not a time zone"),
        ({"timezone": "+15:00"}, "is not a time zone"),
        ({"order": "FEDCBA"}, "is not an order"),
    ],
)
def test_a_clock_that_makes_no_sense_is_refused(more, words):
    with pytest.raises(ValueError, match=words):
        PointSettings(table="holding", address=0, format="calendar", **more)


def test_only_clocks_have_a_time_zone():
    with pytest.raises(ValueError, match="`timezone` is for clocks"):
        PointSettings(table="holding", address=0, timezone="UTC")
    with pytest.raises(ValueError, match="has no `format`"):
        PointSettings(table="coil", address=0, format="calendar")
