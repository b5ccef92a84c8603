"""The configuration of what lies in registers: where, in which type, order and format.

It is what a point has, and each part of a point that has several (`parts`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from fieldbus.modbus.formats.text import character_size, encoding_named
from fieldbus.modbus.formats.time_zones import zone_named
from fieldbus.modbus.register_types import Format, RegisterType, Table, is_order, plain_order
from fieldbus.settings import Settings, problem

TypeName = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int24", "uint24", "int32", "uint32", "int48",
    "uint48", "int64", "uint64", "float16", "float32", "float64", "bcd16", "bcd32", "string",
]  # fmt: skip

FormatName = Literal[
    "sign_magnitude", "m10k", "calendar", "calendar_yy", "calendar_bcd", "calendar_bytes", "iec870_5_4",
    "time_of_day",
]  # fmt: skip

SUNSPEC = "sunspec"
"""The word for what SunSpec writes where a value is not implemented."""
_REFERENCE_TABLES = {"0": "coil", "1": "discrete", "3": "input", "4": "holding"}
_BITS = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
_RAW = re.compile(r"0[xX][0-9a-fA-F]+|-?[0-9]+")

_RAW_VALUES = WithJsonSchema(
    {
        "anyOf": [
            {"type": ["integer", "string"]},
            {"type": "array", "items": {"type": ["integer", "string"]}},
        ]
    }
)
"""What `invalid` may be in a file: one needs no list."""


class RegisterSettings(Settings):
    """Where a value lies, and how its registers are read."""

    table: Literal["coil", "discrete", "input", "holding", "file", "fifo", "server_id"] | None = Field(
        None,
        description="Beside the four tables: file records (FC 20 and 21), a FIFO queue (FC 24), the "
        "server id (FC 17).",
    )
    address: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="0-based, as on the wire."
    )
    file: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None,
        description="Of the table `file`: which one. Its registers have a `record`, no address.",
    )
    record: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="Of the table `file`: the number of the first record, 0-based, as on the wire."
    )
    reference: int | str | None = Field(
        None, description="1-based with the table's digit, as in manuals: 40101 or 400101."
    )
    type: TypeName | None = Field(
        None, description="`bool` for coils and discrete inputs, else `uint16` by default."
    )
    length: Annotated[int, Field(ge=1, le=125)] | None = Field(None, description="Of a string, in registers.")
    chars: Literal["both", "high", "low"] = Field(
        "both", description="Of a string: two characters a register, or one in its high or low byte."
    )
    pad: Literal["nul", "space"] = Field(
        "nul", description="Of a string: what fills the rest when it is written."
    )
    encoding: str | None = Field(
        None,
        description="Of a string: latin-1, cp437, gbk, … By default it is written as UTF-8, and read as "
        "UTF-8 or else as Latin-1.",
    )
    bit: Annotated[int, Field(ge=0, le=63)] | None = Field(None, description="One bit of the value.")
    bits: str | None = Field(None, description="A range of bits, such as 4-7.")
    signed: bool | None = Field(
        None,
        description="Of a range of bits: whether its highest bit is the sign. By default it is not, whatever "
        "the type.",
    )
    order: str = Field(
        "ABCD",
        description="ABCD, CDAB, BADC, DCBA, or the letter of each byte in the order on the wire: GHEFCDAB.",
        json_schema_extra={"pattern": "^[A-H]{2,8}$"},
    )
    format: FormatName | None = Field(
        None,
        description="How the registers are the value: a number that is not in two's complement, or the "
        "fields of a clock.",
    )
    timezone: str | None = Field(
        None,
        description="Of a clock: the zone that it shows, such as Europe/Berlin, or +01:00 for one without "
        "summer time. By default that of the device, else UTC.",
    )
    invalid: Annotated[list[int | str], _RAW_VALUES] = Field(
        default=[],
        description="Raw values that mean: no value. `sunspec` is the one that SunSpec has for the type; an "
        "accumulator has 0.",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_invalid(cls, data: Any) -> Any:
        """Take the short forms of `invalid`, which are all that CSV has room for."""
        if not isinstance(data, dict):
            return data
        invalid = data.get("invalid")
        if type(invalid) is int:
            return {**data, "invalid": [invalid]}
        if isinstance(invalid, str):
            return {**data, "invalid": [part for part in re.split(r"[\s,;]+", invalid) if part]}
        return data

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        if encoding is None:
            return None
        found = encoding_named(encoding)
        if found is None:
            raise problem(
                f"'{encoding[:60]}' is not an encoding for text in registers: latin-1, cp1252, cp437, gbk, "
                "shift_jis, utf-16-be …"
            )
        return found

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str | None) -> str | None:
        return checked_timezone(timezone)

    @property
    def is_clock(self) -> bool:
        """Whether the registers are the fields of a clock."""
        return self.value_format is not None and self.value_format.clock_registers > 0

    @property
    def zone(self) -> datetime.tzinfo:
        """The time zone of a clock."""
        return zone_named(self.timezone or "UTC") or datetime.UTC

    @property
    def register_type(self) -> RegisterType:
        """The type, with its default; a clock is text."""
        if self.is_clock:
            return RegisterType.STRING
        if self.type is not None:
            return RegisterType(self.type)
        table, _ = self.place()
        return RegisterType.BOOL if table.is_bits or self.bit is not None else RegisterType.UINT16

    @property
    def value_format(self) -> Format | None:
        """The format, None for plain numbers and text."""
        return None if self.format is None else Format(self.format)

    @property
    def plain_order(self) -> str:
        """The order, as the word that it amounts to if there is one."""
        return plain_order(self.order, self.byte_count)

    @property
    def byte_count(self) -> int:
        """How many bytes it takes, however wide its addresses are."""
        clock = 0 if self.value_format is None else self.value_format.clock_registers
        return 2 * (clock or self.length or max(1, -(-self.register_type.bits // 16)))

    @property
    def size(self) -> int:
        """How many addresses it takes: bits or registers."""
        table, _ = self.place()
        return 1 if table.is_bits else self.byte_count // 2

    def place(self) -> tuple[Table, int]:
        """Return table and 0-based address."""
        if self.reference is not None:
            if self.table is not None or self.address is not None:
                raise problem("`reference` stands instead of `table` and `address`", "reference")
            if self.file is not None or self.record is not None:
                raise problem(
                    "`reference` names one of the four tables; `file` and `record` need `table: file`"
                )
            return _place_of_reference(self.reference)
        if self.table == "file":
            return self._record_place()
        if self.file is not None or self.record is not None:
            raise problem("`file` and `record` are for `table: file`")
        if self.table == "server_id":
            return Table.SERVER_ID, Table.SERVER_ID.linear(1 + (self.address or 0))
        if self.table == "fifo" and self.address is not None:
            return Table.FIFO, Table.FIFO.linear(1, self.address)
        if self.table is None or self.address is None:
            missing = "table" if self.table is None else "address"
            raise problem(f"`{missing}` is missing (or give `reference` instead of table and address)")
        return Table(self.table), self.address

    def _record_place(self) -> tuple[Table, int]:
        if self.address is not None:
            raise problem("a register of a file has `file` and `record`, and no `address`")
        if self.file is None or self.record is None:
            missing = "file" if self.file is None else "record"
            raise problem(f"`{missing}` is missing: `table: file` needs `file` and `record`")
        return Table.FILE, Table.FILE.linear(self.record, self.file)

    def moved(self, offset_of: Callable[[Table], int]) -> Self:
        """Return the same at another address, which may be none."""
        table, address = self.place()
        offset = offset_of(table)
        if not offset:
            return self
        place = {"table": table.value, "address": address + offset, "reference": None}
        return self.model_copy(update=place)

    def bit_range(self) -> tuple[int | None, int]:
        """Return the first bit and how many; (None, 0) for the whole value."""
        if self.bit is not None:
            return self.bit, 1
        if self.bits is None:
            return None, 0
        match = _BITS.fullmatch(self.bits)
        if match is None:
            raise problem(f"{self.bits!r} is not a range of bits such as 4-7", "bits")
        low, high = sorted((int(match[1]), int(match[2])))
        return low, high - low + 1

    def invalid_values(self) -> frozenset[int]:
        """Return the raw values that mean "no value", as the registers hold them, unsigned."""
        type_ = self.register_type
        if self.invalid and type_ is RegisterType.STRING:
            raise problem("`invalid` is for numbers", "invalid")
        width = 16 if type_ is RegisterType.BOOL else type_.bits
        found = set()
        for item in self.invalid:
            if item == SUNSPEC:
                if not type_.is_float:  # of these it is NaN, which is never a value
                    found.add(1 << width - 1 if type_.is_signed else (1 << width) - 1)
                continue
            if isinstance(item, str) and not _RAW.fullmatch(item.strip()):
                raise problem(
                    f"'{item}' is neither a raw value such as 0xFFFF nor the word sunspec", "invalid"
                )
            value = (
                int(item, 16 if item.strip().lower().startswith("0x") else 10)
                if isinstance(item, str)
                else item
            )
            if not -(1 << width - 1) <= value < 1 << width:
                raise problem(f"the `invalid` value {item} does not fit {width} bits", "invalid")
            found.add(value % (1 << width))
        return frozenset(found)

    def check_registers(self) -> None:
        """Raise for what cannot be read so: order, text, bits and format against the type."""
        kind = self.register_type
        if self.is_clock:
            self._check_clock()
        elif self.timezone is not None:
            raise problem("`timezone` is for clocks, which have a `format` such as calendar", "timezone")
        else:
            self._check_text(kind)
        self._check_order(kind)
        self._check_format(kind)
        self._check_field(kind)
        self.invalid_values()

    def _check_text(self, kind: RegisterType) -> None:
        is_text = kind is RegisterType.STRING
        if is_text != (self.length is not None):
            raise problem("a string needs `length`, in registers" if is_text
                          else f"`length` is for strings, not for {kind}")  # fmt: skip
        if is_text:
            if character_size(self.encoding) > 1 and self.chars != "both":
                raise problem(f"a character of {self.encoding} takes both bytes of a register: `chars: both`")
            return
        for key, value, default in (
            ("pad", self.pad, "nul"), ("chars", self.chars, "both"), ("encoding", self.encoding, None),
        ):  # fmt: skip
            if value != default:
                raise problem(f"`{key}` is for strings, not for {kind}", key)

    def _check_clock(self) -> None:
        if self.invalid:
            raise problem("`invalid` is for numbers: fields that are no date are no value anyway", "invalid")
        for key in ("type", "length", "encoding", "bit", "bits", "signed"):
            if getattr(self, key) is not None:
                raise problem(
                    f"the `format: {self.format}` says all about the registers: it has no `{key}`", key
                )
        for key, default in (("pad", "nul"), ("chars", "both")):
            if getattr(self, key) != default:
                raise problem(f"`{key}` is for strings, not for a clock", key)

    def _check_order(self, kind: RegisterType) -> None:
        size = self.byte_count
        if kind is RegisterType.STRING and not is_order(self.order, 0):
            raise problem(f"'{self.order[:20]}' is not an order of text: ABCD, CDAB, BADC or DCBA", "order")
        if not is_order(self.order, size):
            raise problem(
                f"'{self.order[:20]}' is not one of ABCD, CDAB, BADC, DCBA, nor the letters "
                f"{'ABCDEFGH'[:size]} of a {kind} in the order on the wire",
                "order",
            )

    def _check_format(self, kind: RegisterType) -> None:
        if self.format is None or self.is_clock:
            return
        if self.bit is not None or self.bits is not None:
            raise problem(f"a number in `format: {self.format}` has no bits to choose from", "format")
        if self.value_format is Format.SIGN_MAGNITUDE and not kind.is_signed:
            raise problem(
                f"`format: sign_magnitude` has a sign: its type is int16 or int32, not {kind}", "format"
            )
        if self.value_format is Format.M10K and kind.value.lstrip("uint") not in ("32", "48", "64"):
            raise problem(
                "`format: m10k` has 2 to 4 registers: "
                f"its type is (u)int32, (u)int48 or (u)int64, not {kind}",
                "format",
            )

    def _check_field(self, kind: RegisterType) -> None:
        if self.bit is not None and self.bits is not None:
            raise problem("`bit`, `bits` and `flags` exclude each other")
        if self.signed is not None and self.bits is None:
            raise problem("`signed` is for a range of `bits`; of whole numbers the type says it", "signed")
        if self.bit is None and self.bits is None:
            return
        if kind.is_float or kind.is_bcd or kind is RegisterType.STRING:
            raise problem(f"a {kind} has no bits to choose from")
        low, count = self.bit_range()
        self.check_highest_bit((low or 0) + count - 1)

    def check_highest_bit(self, highest: int) -> None:
        """Raise if a bit is outside the type."""
        kind = self.register_type
        width = 16 if kind is RegisterType.BOOL else kind.bits
        if highest >= width:
            raise problem(f"bit {highest} is outside the {width} bits of a {kind}")

    @property
    def has_doubtful_sign(self) -> bool:
        """Whether a range of bits of a signed type does not say whether it has a sign itself."""
        return self.bits is not None and self.signed is None and self.register_type.is_signed


def checked_timezone(name: str | None) -> str | None:
    """Return the name of a time zone.

    Raises:
        PydanticCustomError: there is none of that name.
    """
    if name is not None and zone_named(name) is None:
        raise problem(
            f"'{name[:60]}' is not a time zone that this machine knows: Europe/Berlin, UTC, or +01:00 for a "
            "clock without summer time"
        )
    return name


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
