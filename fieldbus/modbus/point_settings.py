"""The configuration of the points of Modbus devices.

What several points share (names, overlaps, scale factors) is looked at in `points.py`.

How types that manuals name are written: SunSpec's ``sunssf`` is an `int16` that others name in
`scale_from`; its ``enum16`` and ``bitfield16`` are a `uint16` with `enum` or `flags`; all of them have
``invalid: sunspec``. An accumulator (``acc32``, ``acc64``) is a `uint32` or `uint64` with ``invalid: [0]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fieldbus.modbus.converters import Epoch
from fieldbus.modbus.formats.composite import is_exact, weights
from fieldbus.modbus.formats.numbers import engineering_range
from fieldbus.modbus.formats.text import Chars, Pad
from fieldbus.modbus.part_settings import PartSettings, with_table
from fieldbus.modbus.point_checks import check_other_table, check_parts
from fieldbus.modbus.register_settings import RegisterSettings
from fieldbus.modbus.register_types import RegisterType, Table
from fieldbus.modbus.registers import OnBad, RegisterPoint
from fieldbus.modbus.write_settings import WriteSettings
from fieldbus.model import Access, Kind, Point
from fieldbus.scaling import Linear
from fieldbus.settings import (
    AccessName,
    Duration,
    GuardSettings,
    Number,
    Scalar,
    Settings,
    Substitute,
    problem,
)

_FLAG_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LABEL_KEY = re.compile(r"(?:^|(?<=[;,\s]))(-?\d{1,9})\s{0,3}[=:]")
_BETWEEN = " \t,;"
_LARGEST_SCALE = 1e100
"""Beyond it, or below its inverse, arithmetic would leave the floating-point numbers."""

_TIME_TYPES = {RegisterType(sign + bits) for sign in ("int", "uint") for bits in ("32", "48", "64")}


class PointSettings(GuardSettings, WriteSettings, RegisterSettings):
    """A point of a Modbus device: where it lies and how it is read."""

    count: Annotated[int, Field(ge=2, le=2000)] | None = Field(
        None, description="An array: so many in a row, named NAME.0, NAME.1 and so on."
    )
    flags: Mapping[int, str] | None = Field(
        None, description="Names of single bits, each a point of its own: NAME.FLAG. Bit 0 is the lowest."
    )
    parts: Annotated[list[PartSettings], Field(min_length=2, max_length=16)] | None = Field(
        None,
        description="A value of several registers, out of one response: [{address: 78}, {address: 80, "
        "factor: 65536}], or with a sign of its own: {address: 10, sign: true}.",
    )
    scale: Number = 1
    offset: Number = 0
    scale_from: str | None = Field(
        None, description="The point of the device that holds the power of ten of this one, as in SunSpec."
    )
    timestamp: Literal["unix", "unix_ms", "y2000"] | None = Field(
        None,
        description="The value is a time: seconds or milliseconds since 1970, or seconds since 2000, UTC.",
    )
    unit: str | None = None
    min: Number | None = None
    max: Number | None = None
    enum: Mapping[int, str] | None = None
    access: AccessName = "read"
    width: Literal[16, 32] = Field(
        16,
        description="How many bits one address holds: 32 in some flow computers and meters. Read only.",
    )
    scan: Duration | None = None
    on_bad: Literal["exception", "hold", "nan"] | Substitute = Field(
        "exception", description="Of a served point: what masters see when its source is bad."
    )
    initial: Scalar | None = Field(
        None,
        description="Of a served point that masters write, or that others name in `scale_from`: its value "
        "until the first write.",
    )
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        """Take the short forms, which are all that CSV has room for."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for key in ("flags", "enum"):
            if isinstance(data.get(key), str):
                data[key] = _labels(key, data[key])
        if isinstance(data.get("parts"), list) and data.get("table") is not None:
            data["parts"] = [with_table(part, data["table"]) for part in data["parts"]]
        return data

    @model_validator(mode="after")
    def _check(self) -> PointSettings:
        check_parts(self)
        table, address = self.place()
        kind = self.register_type
        if table.is_bits:
            self._check_one_bit(table, kind)
        elif kind is RegisterType.BOOL and self.bit is None:
            raise problem(f"a bool in a {table} register needs `bit`")
        if kind is RegisterType.BOOL and (self.scale != 1 or self.offset != 0):
            raise problem(
                "a bool is true or false and cannot be scaled", "scale" if self.scale != 1 else "offset"
            )
        self._check_flags()
        self._check_width(table, kind)
        self.check_registers()
        self._check_scale(kind)
        self._check_time(kind)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise problem(f"min {self.min} is above max {self.max}")
        check_other_table(self, table)
        first, end = self.span
        if (end - 1) >> 16 > first >> 16:
            what = "record" if table is Table.FILE else "address"
            raise problem(f"{table.place_name(address)} and what follows goes beyond {what} 65535")
        self.check_writing(table, is_bit_field=self.bit_range()[0] is not None, registers=self.size)
        if self.scale_from is not None and (self.read_from is not None or self.group is not None):
            raise problem(
                "a point with `scale_from` has neither `read_from` nor `group`",
                "group" if self.read_from is None else "read_from",
            )
        return self

    def _check_width(self, table: Table, kind: RegisterType) -> None:
        if self.width == 16:
            return
        if table.is_bits:
            raise problem(f"a {table} is one bit and has no `width`", "width")
        if not table.is_numbered:
            raise problem(f"the table `{table}` has registers of 16 bits and no `width`", "width")
        if self.parts is not None or self.is_clock or kind.bits not in (32, 64):
            what = "a value of `parts`" if self.parts is not None else f"a {kind}"
            raise problem(
                f"an address of {self.width} bits holds a type of 32 or 64 bits, not {what}", "width"
            )
        if self.access != "read":
            raise problem(f"`width: {self.width}` is read only: no function writes such addresses", "access")

    @property
    def size(self) -> int:
        """How many addresses it takes: bits or registers."""
        return super().size * 16 // self.width

    def place(self) -> tuple[Table, int]:
        """Return table and 0-based address; of `parts`, the lowest."""
        if self.parts is None:
            return super().place()
        return min(part.place() for part in self.parts)

    @property
    def span(self) -> tuple[int, int]:
        """The first address of the point, or of its array, and the address behind the last."""
        _, address = self.place()
        if self.parts is not None:
            return address, max(part.place()[1] + part.size for part in self.parts)
        return address, address + (self.count or 1) * self.size

    def moved(self, offset_of: Callable[[Table], int]) -> Self:
        """Return the same point at other addresses, which may be none."""
        if self.parts is None:
            moved = super().moved(offset_of)
            reading = self.moved_reading(self.place()[0], offset_of)
            return moved.model_copy(update=reading) if reading else moved
        return self.model_copy(update={"parts": [part.moved(offset_of) for part in self.parts]})

    def in_zone(self, timezone: str) -> PointSettings:
        """Return the same point of a device whose clocks show a time zone."""
        if not self.is_clock or self.timezone is not None:
            return self
        return self.model_copy(update={"timezone": timezone})

    def _check_one_bit(self, table: Table, kind: RegisterType) -> None:
        if self.format is not None:
            raise problem(f"a {table} is one bit and has no `format`", "format")
        if kind is not RegisterType.BOOL:
            raise problem(f"a {table} is one bit: its type is bool, not {kind}", "type")
        if self.bit is not None or self.bits is not None or self.flags is not None:
            raise problem(f"a {table} is one bit and has no bits to choose from")
        if self.scale != 1 or self.offset != 0 or self.scale_from is not None:
            raise problem(f"a {table} is true or false and cannot be scaled")
        if self.invalid:
            raise problem(f"a {table} is true or false: no state is left for `invalid`")

    def _check_flags(self) -> None:
        if (self.bit is not None) + (self.bits is not None) + (self.flags is not None) > 1:
            raise problem("`bit`, `bits` and `flags` exclude each other")
        if self.flags is None:
            return
        if not self.flags:
            raise problem("`flags` has no bits: write {0: NAME} for each that has a name", "flags")
        kind = self.register_type
        if kind.is_float or kind.is_bcd or kind is RegisterType.STRING or self.format is not None:
            raise problem(f"a {kind if self.format is None else self.format} has no bits to choose from")
        self.check_highest_bit(max(self.flags))
        if min(self.flags) < 0:
            raise problem(f"there is no bit {min(self.flags)}: the lowest is 0", "flags")
        if self.scale != 1 or self.offset != 0 or self.scale_from is not None:
            raise problem("what has `flags` is no number and cannot be scaled")
        for name in self.flags.values():
            if not _FLAG_NAME.fullmatch(name):
                raise problem(f"'{name[:60]}' is not a name for a flag: letters, digits, _ and -", "flags")
        if len(set(self.flags.values())) < len(self.flags):
            raise problem("two of the `flags` have the same name", "flags")

    def _check_scale(self, kind: RegisterType) -> None:
        if self.scale == 0:
            raise problem("scale 0 makes everything 0", "scale")
        is_plausible = 1 / _LARGEST_SCALE <= abs(self.scale) <= _LARGEST_SCALE >= abs(self.offset)
        if not is_plausible and not kind.is_float:
            raise problem("scale and offset of a whole number must lie between 1e-100 and 1e100")
        if kind is RegisterType.STRING and (
            self.scale != 1 or self.offset != 0 or self.scale_from is not None
        ):
            raise problem("a string cannot be scaled")
        if self.scale_from is None:
            return
        if kind.is_float:
            raise problem(f"`scale_from` is for whole numbers, not for {kind}", "scale_from")
        if self.bit is not None or kind is RegisterType.BOOL:
            raise problem("a single bit is true or false and cannot be scaled")

    def _check_time(self, kind: RegisterType) -> None:
        if self.timestamp is None and not self.is_clock:
            return
        name = "a `timestamp`" if self.timestamp is not None else f"the `format: {self.format}`"
        if self.is_clock and self.verify:
            raise problem(f"{name} is a clock that goes on: it cannot be read back with `verify`", "verify")
        if self.is_clock and self.timestamp is not None:
            raise problem(
                "`format` and `timestamp` exclude each other: the registers are fields or a number",
                "timestamp",
            )
        if not self.is_clock and kind not in _TIME_TYPES:
            raise problem(f"a `timestamp` is an integer of 32, 48 or 64 bits, not {kind}", "timestamp")
        has_format = self.format is not None and not self.is_clock
        others = {
            "scale": self.scale != 1, "offset": self.offset != 0, "scale_from": self.scale_from is not None,
            "format": has_format, "bit": self.bit is not None, "bits": self.bits is not None,
            "flags": self.flags is not None, "min": self.min is not None, "max": self.max is not None,
            "enum": self.enum is not None,
        }  # fmt: skip
        for key, is_given in others.items():
            if is_given:
                raise problem(f"{name} is a time, which has no `{key}`")

    def _is_integral(self, linear: Linear) -> bool:
        """Return whether each value is a whole number."""
        if self.parts is not None:
            parts = [part.build(Point("", "", Kind.INT)) for part in self.parts]
            _, denominator = weights(parts)
            return is_exact(parts) and linear.times(Fraction(1, denominator)).is_integer
        return not self.register_type.is_float and linear.is_integer and self.scale_from is None

    def build(
        self,
        device: str,
        name: str,
        *,
        is_served: bool,
        index: int = 0,
        origin: str = "",
        factor: RegisterPoint | None = None,
    ) -> RegisterPoint:
        """Return the point that this describes, or one of an array.

        Args:
            device: the device's name.
            name: the point's name.
            is_served: whether we serve it. `access` then says what masters may do: a route can always
                write the point, and can only read what masters write.
            index: which one of an array.
            origin: the name in the configuration, if `name` is another.
            factor: what `scale_from` names.
        """
        table, address = self.place()
        type_ = self.register_type
        low_bit, bit_count = self.bit_range()
        linear = Linear(self.scale, self.offset)
        integral = self._is_integral(linear)
        if type_ is RegisterType.STRING or self.timestamp is not None:
            kind = Kind.STRING
        elif type_ is RegisterType.BOOL or (self.bit is not None and linear.is_identity):
            kind = Kind.BOOL
        elif not integral:
            kind = Kind.FLOAT
        else:
            kind = Kind.INT
        access = Access(self.access)
        masters_write = is_served and access.can_write
        if is_served:
            access = Access.READWRITE if masters_write else Access.WRITE
        has_range = not (table.is_bits or kind is Kind.STRING or self.scale_from or self.parts)
        lowest, highest = (None, None)
        if has_range:
            lowest, highest = engineering_range(
                type_, self.value_format, bit_count, linear, is_signed_field=bool(self.signed)
            )
        point = Point(
            device=device,
            name=name,
            kind=kind,
            access=access,
            unit=self.unit,
            minimum=self.min,
            maximum=self.max,
            lowest=lowest,
            highest=highest,
            labels=dict(self.enum or {}),
            description=self.description,
            carries_quality=is_served,
            group="" if is_served else self.group or "",
        )
        action = (
            OnBad("value", self.on_bad.value) if isinstance(self.on_bad, Substitute) else OnBad(self.on_bad)
        )
        made = RegisterPoint(
            point=point,
            table=table,
            address=address,
            type=type_,
            length=self.size if type_ is RegisterType.STRING else 0,
            low_bit=low_bit,
            bit_count=bit_count,
            is_signed_field=bool(self.signed),
            order=self.plain_order,
            format=self.value_format,
            linear=linear,
            invalid=self.invalid_values(),
            pad=Pad(self.pad),
            chars=Chars(self.chars),
            encoding=self.encoding,
            zone=self.zone,
            epoch=None if self.timestamp is None else Epoch(self.timestamp),
            factor=factor,
            presence=_counter(device, name, table, address) if table.is_whole else None,
            parts=tuple(part.build(point) for part in self.parts or ()),
            scan_s=self.scan,
            rules=self.write_rules(table),
            on_bad=action,
            initial=self.initial,
            is_open_to_masters=masters_write,
            origin=origin,
            width=self.width,
        )
        if not index:
            return made
        offset = index * made.count
        return replace(made, address=address + offset, rules=self.write_rules(table, offset))


def _counter(device: str, name: str, table: Table, address: int) -> RegisterPoint:
    """Return the register that says how much there is of a table that is read as a whole."""
    return RegisterPoint(Point(device, name, Kind.INT), table, address & ~0xFFFF, RegisterType.UINT16)


class MapSettings(Settings):
    """A map: the points of one kind of device."""

    description: str = ""
    vendor: str = ""
    scan: Duration | None = None
    points: Mapping[str, PointSettings]


def _labels(key: str, text: str) -> dict[int, str]:
    """Return what a text such as ``0=off 1=on`` says."""
    keys = list(_LABEL_KEY.finditer(text))
    ends = [item.start() for item in keys[1:]] + [len(text)]
    if not keys or text[: keys[0].start()].strip(_BETWEEN):
        raise problem(f"'{text[:60]}' is not `{key}` such as 0=NAME 3=NAME")
    found: dict[int, str] = {}
    for match, end in zip(keys, ends, strict=True):
        number = int(match[1])
        if number in found:
            raise problem(f"`{key}` names {number} twice")
        found[number] = text[match.end() : end].strip(_BETWEEN)
    return found
