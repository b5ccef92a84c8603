"""Clocks of devices whose registers are calendar fields, in the time zone of the device.

Layouts, one register in brackets, its high byte first; ``order: CDAB`` reverses the registers, and with
them the fields::

    calendar        [year] [month] [day] [hour] [minute] [second]
    calendar_yy     the same, with the year since 2000
    calendar_bcd    [year since 2000, month] [day, hour] [minute, second], two decimal digits a byte
    calendar_bytes  the same, each byte a number
    iec870_5_4      [year since 2000 in bits 0-6] [month, day in bits 0-4]
                    [SU in bit 15, hour in bits 8-12; IV in bit 7, minute in bits 0-5] [milliseconds]
    time_of_day     [hour, minute]

Rules:

* A clock is ISO 8601 text in UTC, as `timestamp` has it: ``2026-11-30T19:45:07Z``, with milliseconds
  only where there are some. It is written rounded to the nearest second (``iec870_5_4``: millisecond).
  The time of a day is ``19:45``, without a zone.
* Fields that are no date, or no time of day, are no value; nor is a time with IV set (invalid).
* An hour that the zone has twice (the end of summer time) is uncertain, unless SU (summer time) says
  which it is; so is one that the zone does not have (the beginning): the clock has another zone.
* SU is written in summer time; the other bits that are not named here are written as 0 and not looked at.

Design: IEC 60870-5-4 defines the fields of binary time 2a; that they take four registers in this way is
how power meters have them.
"""

from __future__ import annotations

import datetime
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from fieldbus.errors import ConversionError
from fieldbus.modbus.converters import NOT_A_NUMBER, NOT_AVAILABLE, Decoded, moment_of
from fieldbus.modbus.register_types import Format
from fieldbus.model import Value, uncertain

AMBIGUOUS = uncertain("ambiguous local time")
NO_SUCH_TIME = uncertain("no such local time")

_HALF_SECOND = datetime.timedelta(microseconds=500_000)
_HALF_MILLISECOND = datetime.timedelta(microseconds=500)
_TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_SUMMER, _INVALID = 0x8000, 0x0080


class _Fields(NamedTuple):
    """A moment as a device's clock shows it."""

    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int
    millisecond: int = 0
    is_summer: bool = False
    """Whether the clock says that it is summer time; not saying so means nothing."""


class _Layout(NamedTuple):
    """How fields lie in registers."""

    first_year: int
    last_year: int
    read: Callable[[bytes], _Fields | None]
    """None where digits are none."""
    write: Callable[[_Fields], bytes]


def calendar_decoder(format_: Format, zone: datetime.tzinfo) -> Callable[[bytes], Decoded]:
    """Return the converter from registers in ABCD order to the text of a time."""
    if format_ is Format.TIME_OF_DAY:
        return _read_time_of_day
    read = _LAYOUTS[format_].read
    has_validity = format_ is Format.IEC870_5_4

    def decode(data: bytes) -> Decoded:
        if has_validity and data[5] & _INVALID:
            return NOT_AVAILABLE
        fields = read(data)
        if fields is None:
            return NOT_A_NUMBER
        try:
            local = datetime.datetime(*fields[:6], fields.millisecond * 1000)  # noqa: DTZ001 - its zone follows
            return _in_utc(local, zone, is_summer=fields.is_summer)
        except (ValueError, OverflowError):
            return NOT_A_NUMBER

    return decode


def calendar_encoder(format_: Format, zone: datetime.tzinfo) -> Callable[[Value], bytes]:
    """Return the converter from the text of a time to registers in ABCD order.

    It raises `ConversionError` for what is no time, or one that the registers cannot hold.
    """
    if format_ is Format.TIME_OF_DAY:
        return _write_time_of_day
    layout = _LAYOUTS[format_]
    half, step = _HALF_SECOND, 1_000_000
    if format_ is Format.IEC870_5_4:
        half, step = _HALF_MILLISECOND, 1_000

    def encode(value: Value) -> bytes:
        moment = moment_of(value)
        try:
            rounded = moment + half
            local = rounded.replace(microsecond=rounded.microsecond // step * step).astimezone(zone)
        except OverflowError as error:
            raise ConversionError(f"{value!r} is beyond the year 9999") from error
        if not layout.first_year <= local.year <= layout.last_year:
            raise ConversionError(
                f"{value!r} is outside the years {layout.first_year} to {layout.last_year} of {format_}"
            )
        return layout.write(
            _Fields(*local.timetuple()[:6], local.microsecond // 1000, is_summer=bool(local.dst()))
        )

    return encode


def clock_text(format_: Format, time_ns: int) -> str:
    """Return what a clock of a format says at a moment, in UTC."""
    moment = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    if format_ is Format.TIME_OF_DAY:
        return moment.strftime("%H:%M")
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _in_utc(local: datetime.datetime, zone: datetime.tzinfo, *, is_summer: bool) -> Decoded:
    first, second = (local.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    moment = first.astimezone(datetime.UTC)
    flaw = None
    if first.utcoffset() != second.utcoffset():
        is_there = moment.astimezone(zone).replace(tzinfo=None) == local
        flaw = AMBIGUOUS if is_there else NO_SUCH_TIME
        if is_there and is_summer:
            moment = (first if first.dst() else second).astimezone(datetime.UTC)
            flaw = None
    precision = "milliseconds" if moment.microsecond else "seconds"
    return moment.replace(tzinfo=None).isoformat(timespec=precision) + "Z", flaw


def _read_time_of_day(data: bytes) -> Decoded:
    hour, minute = data
    return (f"{hour:02d}:{minute:02d}", None) if hour < 24 and minute < 60 else NOT_A_NUMBER


def _write_time_of_day(value: Value) -> bytes:
    match = _TIME_OF_DAY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConversionError(f"{value!r} is not a time of day such as 19:45")
    return bytes((int(match[1]), int(match[2])))


def _read_registers(data: bytes) -> _Fields:
    return _Fields(*struct.unpack(">6H", data))


def _write_registers(fields: _Fields) -> bytes:
    return struct.pack(">6H", *fields[:6])


def _read_bytes(data: bytes) -> _Fields:
    year, month, day, hour, minute, second = data
    return _Fields(year, month, day, hour, minute, second)


def _since_2000(read: Callable[[bytes], _Fields | None]) -> Callable[[bytes], _Fields | None]:
    def moved(data: bytes) -> _Fields | None:
        fields = read(data)
        return None if fields is None or fields.year > 255 else fields._replace(year=2000 + fields.year)

    return moved


def _from_2000(write: Callable[[_Fields], bytes]) -> Callable[[_Fields], bytes]:
    return lambda fields: write(fields._replace(year=fields.year - 2000))


def _read_digits(data: bytes) -> _Fields | None:
    digits = data.hex()
    return _read_bytes(bytes(int(f"{byte:02x}") for byte in data)) if digits.isdecimal() else None


def _write_digits(fields: _Fields) -> bytes:
    return bytes.fromhex("".join(f"{field:02d}" for field in fields[:6]))


def _read_iec(data: bytes) -> _Fields:
    year, date, time, milliseconds = struct.unpack(">4H", data)
    second, millisecond = divmod(milliseconds, 1000)
    return _Fields(
        year & 0x7F,
        date >> 8 & 0x0F,
        date & 0x1F,
        time >> 8 & 0x1F,
        time & 0x3F,
        second,
        millisecond,
        bool(time & _SUMMER),
    )


def _write_iec(fields: _Fields) -> bytes:
    return struct.pack(
        ">4H",
        fields.year,
        fields.month << 8 | fields.day,
        (_SUMMER if fields.is_summer else 0) | fields.hour << 8 | fields.minute,
        fields.second * 1000 + fields.millisecond,
    )


_LAYOUTS = {
    Format.CALENDAR: _Layout(1, 9999, _read_registers, _write_registers),
    Format.CALENDAR_YY: _Layout(2000, 2099, _since_2000(_read_registers), _from_2000(_write_registers)),
    Format.CALENDAR_BCD: _Layout(2000, 2099, _since_2000(_read_digits), _from_2000(_write_digits)),
    Format.CALENDAR_BYTES: _Layout(
        2000, 2255, _since_2000(_read_bytes), _from_2000(lambda fields: bytes(fields[:6]))
    ),
    Format.IEC870_5_4: _Layout(2000, 2127, _since_2000(_read_iec), _from_2000(_write_iec)),
}
