"""The configuration of the points of Modbus devices, and what is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fieldbus.errors import ConversionError
from fieldbus.modbus.image import nan_bytes
from fieldbus.modbus.register_types import Order, RegisterType, Table, integer_range
from fieldbus.modbus.registers import OnBad, RegisterPoint
from fieldbus.model import Access, Kind, Point
from fieldbus.scaling import Linear
from fieldbus.settings import AccessName, Duration, Number, Scalar, Settings, Substitute, problem

TypeName = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int24", "uint24", "int32", "uint32", "int48",
    "uint48", "int64", "uint64", "float16", "float32", "float64", "bcd16", "bcd32", "string",
]  # fmt: skip

_REFERENCE_TABLES = {"0": "coil", "1": "discrete", "3": "input", "4": "holding"}
_BITS = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")


class PointSettings(Settings):
    """A point of a Modbus device: where it lies and how it is read."""

    table: Literal["coil", "discrete", "input", "holding"] | None = None
    address: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="0-based, as on the wire."
    )
    reference: int | str | None = Field(
        None, description="1-based with the table's digit, as in manuals: 40101 or 400101."
    )
    type: TypeName | None = Field(
        None, description="`bool` for coils and discrete inputs, else `uint16` by default."
    )
    length: Annotated[int, Field(ge=1, le=125)] | None = Field(None, description="Of a string, in registers.")
    bit: Annotated[int, Field(ge=0, le=63)] | None = Field(None, description="One bit of the value.")
    bits: str | None = Field(None, description="A range of bits, such as 4-7.")
    order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"
    scale: Number = 1
    offset: Number = 0
    unit: str | None = None
    min: Number | None = None
    max: Number | None = None
    enum: Mapping[int, str] | None = None
    invalid: list[int] = Field(default=[], description="Raw values that mean: no value.")
    access: AccessName = "read"
    scan: Duration | None = None
    on_bad: Literal["exception", "hold", "nan"] | Substitute = Field(
        "exception", description="Of a served point: what masters see when its source is bad."
    )
    initial: Scalar | None = Field(
        None, description="Of a served point that masters write: its value until the first write."
    )
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _later(cls, data: Any) -> Any:
        for key in ("count", "scale_from"):
            if isinstance(data, dict) and key in data:
                raise problem(f"`{key}` is not supported in this version")
        if isinstance(data, dict) and type(data.get("invalid")) is int:
            return {**data, "invalid": [data["invalid"]]}  # one value needs no list, least of all in CSV
        return data

    @model_validator(mode="after")
    def _check(self) -> PointSettings:
        table, address = self.place()
        kind = self.register_type
        if table.is_bits:
            if kind is not RegisterType.BOOL:
                raise problem(f"a {table} is one bit: its type is bool, not {kind}")
            if self.bit is not None or self.bits is not None:
                raise problem(f"a {table} is one bit and has no bits to choose from")
            if self.scale != 1 or self.offset != 0:
                raise problem(f"a {table} is true or false and cannot be scaled")
        elif kind is RegisterType.BOOL and self.bit is None:
            raise problem(f"a bool in a {table} register needs `bit`")
        if (kind is RegisterType.STRING) != (self.length is not None):
            raise problem("a string needs `length`, in registers" if kind is RegisterType.STRING
                          else f"`length` is for strings, not for {kind}")  # fmt: skip
        if kind is RegisterType.STRING and (self.scale != 1 or self.offset != 0):
            raise problem("a string cannot be scaled")
        if self.bit is not None and self.bits is not None:
            raise problem("`bit` and `bits` exclude each other")
        if self.bit is not None or self.bits is not None:
            if kind.is_float or kind.is_bcd or kind is RegisterType.STRING:
                raise problem(f"a {kind} has no bits to choose from")
            low, count = self.bit_range()
            low = low or 0
            width = 16 if kind is RegisterType.BOOL else kind.bits
            if low + count > width:
                raise problem(f"bit {low + count - 1} is outside the {width} bits of a {kind}")
        if self.scale == 0:
            raise problem("scale 0 makes everything 0")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise problem(f"min {self.min} is above max {self.max}")
        end = address + (1 if table.is_bits else self._register_count())
        if end > 0x10000:
            raise problem(f"{table} {address} and what follows goes beyond address 65535")
        if self.invalid and kind is RegisterType.STRING:
            raise problem("`invalid` is for numbers")
        width = 16 if kind is RegisterType.BOOL else kind.bits
        for value in self.invalid:
            if not -(1 << width - 1) <= value < 1 << width:
                raise problem(f"the `invalid` value {value} does not fit {width} bits")
        return self

    @property
    def register_type(self) -> RegisterType:
        """The type, with its default."""
        if self.type is not None:
            return RegisterType(self.type)
        table, _ = self.place()
        return RegisterType.BOOL if table.is_bits or self.bit is not None else RegisterType.UINT16

    def _register_count(self) -> int:
        return self.length or max(1, -(-self.register_type.bits // 16))

    def place(self) -> tuple[Table, int]:
        """Return table and 0-based address."""
        if self.reference is not None:
            if self.table is not None or self.address is not None:
                raise problem("`reference` stands instead of `table` and `address`")
            return _place_of_reference(self.reference)
        if self.table is None or self.address is None:
            missing = "table" if self.table is None else "address"
            raise problem(f"`{missing}` is missing (or give `reference` instead of table and address)")
        return Table(self.table), self.address

    def bit_range(self) -> tuple[int | None, int]:
        """Return the first bit and how many; (None, 0) for the whole value."""
        if self.bit is not None:
            return self.bit, 1
        if self.bits is None:
            return None, 0
        match = _BITS.fullmatch(self.bits)
        if match is None:
            raise problem(f"{self.bits!r} is not a range of bits such as 4-7")
        low, high = sorted((int(match[1]), int(match[2])))
        return low, high - low + 1

    def build(self, device: str, name: str, *, is_served: bool) -> RegisterPoint:
        """Return the point that this describes.

        Args:
            is_served: whether we serve it. `access` then says what masters may do: a route can always
                write the point, and can only read what masters write.
        """
        table, address = self.place()
        type_ = self.register_type
        low_bit, bit_count = self.bit_range()
        linear = Linear(self.scale, self.offset)
        if type_ is RegisterType.STRING:
            kind = Kind.STRING
        elif type_ is RegisterType.BOOL or (self.bit is not None and linear.is_identity):
            kind = Kind.BOOL
        elif type_.is_float or not linear.is_integer:
            kind = Kind.FLOAT
        else:
            kind = Kind.INT
        access = Access(self.access)
        masters_write = is_served and access.can_write
        if is_served:
            access = Access.READWRITE if masters_write else Access.WRITE
        width = 16 if type_ is RegisterType.BOOL else type_.bits
        lowest, highest = (None, None) if table.is_bits else integer_range(type_, bit_count, linear)
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
        )
        action = (
            OnBad("value", self.on_bad.value) if isinstance(self.on_bad, Substitute) else OnBad(self.on_bad)
        )
        return RegisterPoint(
            point=point,
            table=table,
            address=address,
            type=type_,
            length=self.length or 0,
            low_bit=low_bit,
            bit_count=bit_count,
            order=Order(self.order),
            linear=linear,
            invalid=frozenset(value % (1 << width) for value in self.invalid),
            scan_s=self.scan,
            on_bad=action,
            initial=self.initial,
            is_open_to_masters=masters_write,
        )


def _place_of_reference(reference: int | str) -> tuple[Table, int]:
    digits = str(reference).strip()
    if isinstance(reference, int) and 1 <= reference <= 9999:
        digits = f"{reference:05d}"  # a coil's leading zero is lost in a YAML number
    if not digits.isdecimal() or len(digits) not in (5, 6) or digits[0] not in _REFERENCE_TABLES:
        raise problem(
            f"{reference} is not a reference: 5 or 6 digits, the first 0 (coil), 1 (discrete), "
            "3 (input) or 4 (holding)"
        )
    number = int(digits[1:])
    if not 1 <= number <= 65536:
        raise problem(f"{reference} has no address: references count from 1 to 65536")
    return Table(_REFERENCE_TABLES[digits[0]]), number - 1


class MapSettings(Settings):
    """A map: the points of one kind of device."""

    description: str = ""
    vendor: str = ""
    scan: Duration | None = None
    points: Mapping[str, PointSettings]


def point_faults(points: list[RegisterPoint], *, is_served: bool) -> list[tuple[str, str]]:
    """Return what is wrong with points beside each other, as (point name, sentence)."""
    faults: list[tuple[str, str]] = []
    for point in points:
        name = point.point.name
        writable = point.is_open_to_masters if is_served else point.point.access.can_write
        if not is_served:
            if writable and point.low_bit is not None:
                faults.append((name, "single bits of a register cannot be written in this version"))
            if writable and point.table in (Table.DISCRETE, Table.INPUT):
                faults.append((name, f"a {point.table} cannot be written"))
            continue
        if writable and point.table in (Table.DISCRETE, Table.INPUT):
            faults.append((name, f"masters cannot write a {point.table}"))
        try:
            if point.on_bad.action == "nan":
                nan_bytes(point)
            for value in (point.on_bad.value, point.initial):
                if value is None:
                    continue
                if point.table.is_bits:
                    point.encode_bit(value)
                else:
                    point.encode(value)
        except ConversionError as error:
            faults.append((name, str(error)))
        if point.initial is not None and not writable:
            faults.append((name, "`initial` is for points that masters write (`access: readwrite`)"))
    faults.extend(_overlaps(points, is_served=is_served))
    return faults


def _overlaps(points: list[RegisterPoint], *, is_served: bool) -> list[tuple[str, str]]:
    """Find points that would overwrite each other."""
    faults = []
    ordered = sorted(points, key=lambda point: (point.table, point.address, point.end))
    reach: RegisterPoint | None = None
    for point in ordered:
        if reach is not None and reach.table is point.table and point.address < reach.end:
            is_bit_field = (
                point.low_bit is not None
                and reach.low_bit is not None
                and (point.address, point.count) == (reach.address, reach.count)
            )
            # Of a device, one place may be read in two ways; but who writes it writes all of it.
            is_one_place = (point.address, point.count) == (reach.address, reach.count)
            writes = point.point.access.can_write or reach.point.access.can_write
            matters = is_served or (writes and not is_one_place)
            shares_bits = is_bit_field and point.bit_mask & reach.bit_mask
            if matters and (not is_bit_field or shares_bits):
                text = f"{point.table} {point.address} belongs to {reach.point.name} already"
                faults.append((point.point.name, text))
        if reach is None or reach.table is not point.table or point.end > reach.end:
            reach = point
    return faults
