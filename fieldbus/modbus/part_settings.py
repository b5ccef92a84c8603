"""The configuration of the parts of a value that lies in several registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from fieldbus.modbus.formats.composite import Part
from fieldbus.modbus.register_settings import RegisterSettings
from fieldbus.modbus.register_types import RegisterType, Table
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.model import Kind, Point
from fieldbus.settings import Number, problem


class PartSettings(RegisterSettings):
    """A part of a value: the table is that of the whole."""

    factor: Number = Field(1, description="What the part is multiplied by before the parts are added.")
    sign: bool = Field(False, description="The part is no number, but says that the whole is negative (1).")

    @model_validator(mode="after")
    def _check(self) -> PartSettings:
        table, address = self.place()
        kind = self.register_type
        if table.is_bits or table.is_whole:
            raise problem(f"a part lies in registers: the table is input, holding or file, not {table}")
        if kind is RegisterType.STRING:
            raise problem("a part is a number, not text", "type")
        if kind is RegisterType.BOOL and self.bit is None:
            raise problem(f"a bool in a {table} register needs `bit`")
        self.check_registers()
        if self.factor == 0:
            raise problem("factor 0 makes the part nothing", "factor")
        if self.sign and self.factor != 1:
            raise problem("a sign has no `factor`", "factor")
        if self.sign and kind.is_float:
            raise problem("a sign is 0 or 1: a whole number or a bit", "sign")
        if (address + self.size - 1) >> 16 > address >> 16:
            what = "record" if table is Table.FILE else "address"
            raise problem(f"{table.place_name(address)} and what follows goes beyond {what} 65535")
        return self

    def occupied_bits(self) -> Iterator[tuple[int, int]]:
        """Yield the bits that the part takes, as address and number of the bit.

        Nothing, where only some bits of its registers count and their order is one of its own.
        """
        address, (low_bit, bit_count) = self.place()[1], self.bit_range()
        width = 16 * self.size
        if low_bit is None:
            is_narrow = self.value_format is None and not self.register_type.is_bcd
            low_bit, bit_count = 0, min(width, self.register_type.bits) if is_narrow else width
        if bit_count < width and self.order != "ABCD":
            return
        for bit in range(low_bit, low_bit + bit_count):
            yield address + self.size - 1 - bit // 16, bit % 16

    def build(self, whole: Point) -> Part:
        """Return the part of a point."""
        table, address = self.place()
        low_bit, bit_count = self.bit_range()
        place = RegisterPoint(
            point=Point(whole.device, whole.name, Kind.INT, whole.access),
            table=table,
            address=address,
            type=self.register_type,
            low_bit=low_bit,
            bit_count=bit_count,
            is_signed_field=bool(self.signed),
            order=self.plain_order,
            format=self.value_format,
            invalid=self.invalid_values(),
        )
        return Part(place, self.factor, self.sign)


def with_table(part: Any, table: Any) -> Any:
    """Return a part with the table of the whole, if it names none itself."""
    if not isinstance(part, dict) or "table" in part or "reference" in part:
        return part
    return {**part, "table": table}
