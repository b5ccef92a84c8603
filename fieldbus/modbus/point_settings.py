"""The configuration of the points of Modbus devices.

What several points share (names, overlaps, scale factors) is looked at in `points.py`.

How types that manuals name are written: SunSpec's ``sunssf`` is an `int16` that others name in
`scale_from`; its ``enum16`` and ``bitfield16`` are a `uint16` with `enum` or `flags`; all of them have
``invalid: sunspec``. An accumulator (``acc32``, ``acc64``) is a `uint32` or `uint64` with ``invalid: [0]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from fieldbus.modbus.converters import Chars, Epoch, Pad
from fieldbus.modbus.register_types import Order, RegisterType, Table, integer_range
from fieldbus.modbus.registers import OnBad, RegisterPoint
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

TypeName = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int24", "uint24", "int32", "uint32", "int48",
    "uint48", "int64", "uint64", "float16", "float32", "float64", "bcd16", "bcd32", "string",
]  # fmt: skip

SUNSPEC = "sunspec"
"""The word for what SunSpec writes where a value is not implemented."""
_REFERENCE_TABLES = {"0": "coil", "1": "discrete", "3": "input", "4": "holding"}
_BITS = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
_RAW = re.compile(r"0[xX][0-9a-fA-F]+|-?[0-9]+")
_FLAG_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LABEL_KEY = re.compile(r"(?:^|(?<=[;,\s]))(-?\d{1,9})\s{0,3}[=:]")
_BETWEEN = " \t,;"
_LARGEST_SCALE = 1e100
"""Beyond it, or below its inverse, arithmetic would leave the floating-point numbers."""

_TIME_TYPES = {RegisterType(sign + bits) for sign in ("int", "uint") for bits in ("32", "48", "64")}

_RAW_VALUES = WithJsonSchema(
    {
        "anyOf": [
            {"type": ["integer", "string"]},
            {"type": "array", "items": {"type": ["integer", "string"]}},
        ]
    }
)
"""What `invalid` may be in a file: one needs no list."""


class PointSettings(GuardSettings):
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
    count: Annotated[int, Field(ge=2, le=2000)] | None = Field(
        None, description="An array: so many in a row, named NAME.0, NAME.1 and so on."
    )
    length: Annotated[int, Field(ge=1, le=125)] | None = Field(None, description="Of a string, in registers.")
    chars: Literal["both", "high", "low"] = Field(
        "both", description="Of a string: two characters a register, or one in its high or low byte."
    )
    pad: Literal["nul", "space"] = Field(
        "nul", description="Of a string: what fills the rest when it is written."
    )
    bit: Annotated[int, Field(ge=0, le=63)] | None = Field(None, description="One bit of the value.")
    bits: str | None = Field(None, description="A range of bits, such as 4-7.")
    flags: Mapping[int, str] | None = Field(
        None, description="Names of single bits, each a point of its own: NAME.FLAG. Bit 0 is the lowest."
    )
    order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"
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
    invalid: Annotated[list[int | str], _RAW_VALUES] = Field(
        default=[],
        description="Raw values that mean: no value. `sunspec` is the one that SunSpec has for the type; an "
        "accumulator has 0.",
    )
    access: AccessName = "read"
    verify: bool = Field(default=False, description="Read back what was written, and compare.")
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
        invalid = data.get("invalid")
        if type(invalid) is int:
            data["invalid"] = [invalid]
        elif isinstance(invalid, str):
            data["invalid"] = [part for part in re.split(r"[\s,;]+", invalid) if part]
        for key in ("flags", "enum"):
            if isinstance(data.get(key), str):
                data[key] = _labels(key, data[key])
        return data

    @model_validator(mode="after")
    def _check(self) -> PointSettings:
        table, address = self.place()
        kind = self.register_type
        if table.is_bits:
            self._check_one_bit(table, kind)
        elif kind is RegisterType.BOOL and self.bit is None:
            raise problem(f"a bool in a {table} register needs `bit`")
        if kind is RegisterType.BOOL and (self.scale != 1 or self.offset != 0):
            raise problem("a bool is true or false and cannot be scaled")
        self._check_text(kind)
        self._check_bits(kind)
        self._check_scale(kind)
        self._check_time(kind)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise problem(f"min {self.min} is above max {self.max}")
        size = 1 if table.is_bits else self.length or max(1, -(-kind.bits // 16))
        end = address + (self.count or 1) * size
        if end > 0x10000:
            raise problem(f"{table} {address} and what follows goes beyond address 65535")
        self.invalid_values()
        return self

    def _check_one_bit(self, table: Table, kind: RegisterType) -> None:
        if kind is not RegisterType.BOOL:
            raise problem(f"a {table} is one bit: its type is bool, not {kind}")
        if self.bit is not None or self.bits is not None or self.flags is not None:
            raise problem(f"a {table} is one bit and has no bits to choose from")
        if self.scale != 1 or self.offset != 0 or self.scale_from is not None:
            raise problem(f"a {table} is true or false and cannot be scaled")
        if self.invalid:
            raise problem(f"a {table} is true or false: no state is left for `invalid`")

    def _check_text(self, kind: RegisterType) -> None:
        is_text = kind is RegisterType.STRING
        if is_text != (self.length is not None):
            raise problem("a string needs `length`, in registers" if is_text
                          else f"`length` is for strings, not for {kind}")  # fmt: skip
        if is_text and (self.scale != 1 or self.offset != 0 or self.scale_from is not None):
            raise problem("a string cannot be scaled")
        if not is_text:
            for key, value, default in (("pad", self.pad, "nul"), ("chars", self.chars, "both")):
                if value != default:
                    raise problem(f"`{key}` is for strings, not for {kind}")

    def _check_bits(self, kind: RegisterType) -> None:
        if (self.bit is not None) + (self.bits is not None) + (self.flags is not None) > 1:
            raise problem("`bit`, `bits` and `flags` exclude each other")
        if self.bit is None and self.bits is None and self.flags is None:
            return
        if kind.is_float or kind.is_bcd or kind is RegisterType.STRING:
            raise problem(f"a {kind} has no bits to choose from")
        width = 16 if kind is RegisterType.BOOL else kind.bits
        low, count = self.bit_range()
        highest = max(self.flags, default=0) if self.flags else (low or 0) + count - 1
        if highest >= width:
            raise problem(f"bit {highest} is outside the {width} bits of a {kind}")
        if self.flags is None:
            return
        if not self.flags:
            raise problem("`flags` has no bits: write {0: NAME} for each that has a name")
        if min(self.flags) < 0:
            raise problem(f"there is no bit {min(self.flags)}: the lowest is 0")
        if self.scale != 1 or self.offset != 0 or self.scale_from is not None:
            raise problem("what has `flags` is no number and cannot be scaled")
        for name in self.flags.values():
            if not _FLAG_NAME.fullmatch(name):
                raise problem(f"'{name[:60]}' is not a name for a flag: letters, digits, _ and -")
        if len(set(self.flags.values())) < len(self.flags):
            raise problem("two of the `flags` have the same name")

    def _check_scale(self, kind: RegisterType) -> None:
        if self.scale == 0:
            raise problem("scale 0 makes everything 0")
        is_plausible = 1 / _LARGEST_SCALE <= abs(self.scale) <= _LARGEST_SCALE >= abs(self.offset)
        if not is_plausible and not kind.is_float:
            raise problem("scale and offset of a whole number must lie between 1e-100 and 1e100")
        if self.scale_from is None:
            return
        if kind.is_float:
            raise problem(f"`scale_from` is for whole numbers, not for {kind}")
        if self.bit is not None or kind is RegisterType.BOOL:
            raise problem("a single bit is true or false and cannot be scaled")

    def _check_time(self, kind: RegisterType) -> None:
        if self.timestamp is None:
            return
        if kind not in _TIME_TYPES:
            raise problem(f"a `timestamp` is an integer of 32, 48 or 64 bits, not {kind}")
        others = {
            "scale": self.scale != 1, "offset": self.offset != 0, "scale_from": self.scale_from is not None,
            "bit": self.bit is not None, "bits": self.bits is not None, "flags": self.flags is not None,
            "min": self.min is not None, "max": self.max is not None, "enum": self.enum is not None,
        }  # fmt: skip
        for key, is_given in others.items():
            if is_given:
                raise problem(f"a `timestamp` is a time, which has no `{key}`")

    def invalid_values(self) -> frozenset[int]:
        """Return the raw values that mean "no value", as the registers hold them, unsigned."""
        type_ = self.register_type
        if self.invalid and type_ is RegisterType.STRING:
            raise problem("`invalid` is for numbers")
        width = 16 if type_ is RegisterType.BOOL else type_.bits
        found = set()
        for item in self.invalid:
            if item == SUNSPEC:
                if not type_.is_float:  # of these it is NaN, which is never a value
                    found.add(1 << width - 1 if type_.is_signed else (1 << width) - 1)
                continue
            if isinstance(item, str) and not _RAW.fullmatch(item.strip()):
                raise problem(f"'{item}' is neither a raw value such as 0xFFFF nor the word sunspec")
            value = (
                int(item, 16 if item.strip().lower().startswith("0x") else 10)
                if isinstance(item, str)
                else item
            )
            if not -(1 << width - 1) <= value < 1 << width:
                raise problem(f"the `invalid` value {item} does not fit {width} bits")
            found.add(value % (1 << width))
        return frozenset(found)

    @property
    def register_type(self) -> RegisterType:
        """The type, with its default."""
        if self.type is not None:
            return RegisterType(self.type)
        table, _ = self.place()
        return RegisterType.BOOL if table.is_bits or self.bit is not None else RegisterType.UINT16

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
        if type_ is RegisterType.STRING or self.timestamp is not None:
            kind = Kind.STRING
        elif type_ is RegisterType.BOOL or (self.bit is not None and linear.is_identity):
            kind = Kind.BOOL
        elif type_.is_float or not linear.is_integer or self.scale_from is not None:
            kind = Kind.FLOAT
        else:
            kind = Kind.INT
        access = Access(self.access)
        masters_write = is_served and access.can_write
        if is_served:
            access = Access.READWRITE if masters_write else Access.WRITE
        has_range = not (table.is_bits or kind is Kind.STRING or self.scale_from is not None)
        lowest, highest = integer_range(type_, bit_count, linear) if has_range else (None, None)
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
        made = RegisterPoint(
            point=point,
            table=table,
            address=address,
            type=type_,
            length=self.length or 0,
            low_bit=low_bit,
            bit_count=bit_count,
            order=Order(self.order),
            linear=linear,
            invalid=self.invalid_values(),
            pad=Pad(self.pad),
            chars=Chars(self.chars),
            epoch=None if self.timestamp is None else Epoch(self.timestamp),
            factor=factor,
            scan_s=self.scan,
            verify=self.verify,
            on_bad=action,
            initial=self.initial,
            is_open_to_masters=masters_write,
            origin=origin,
        )
        return replace(made, address=address + index * made.count) if index else made


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
