"""The configuration of how the points of Modbus devices are written.

What several points share (groups, sequences) is looked at in `write_checks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fieldbus.modbus.register_types import Table
from fieldbus.modbus.write_rules import MASK, WriteRules
from fieldbus.settings import Duration, Scalar, Settings, problem

_LONGEST_VERIFY_S = 60.0
_PLACE = re.compile(r"(?:(coil|discrete|input|holding)\s+)?(\d{1,5})")
_STEP = re.compile(r"\s*([^=\s]+)\s*=\s*([^=\s]+)\s*")
_OF_COILS, _OF_REGISTERS = (5, 15), (6, 16, MASK)


class PlaceSettings(Settings):
    """A table and an address."""

    table: Literal["coil", "discrete", "input", "holding"]
    address: Annotated[int, Field(ge=0, le=65535, description="0-based, as on the wire.")]


class VerifySettings(Settings):
    """When a write is read back."""

    after: Duration = Field(description="How long the device needs until it shows what it was given.")


class WriteSettings(Settings):
    """How a point is written."""

    read_from: Annotated[int, Field(ge=0, le=65535)] | PlaceSettings | None = Field(
        None,
        description="Where the device shows what it was given, if not at the address that is written: an "
        "address in the same table, or table and address.",
    )
    verify: bool | VerifySettings | None = Field(
        None,
        description="Read back what was written, and compare; `{after: 500ms}` if the device needs time. By "
        "default only bits that are written beside others are read back. `false`: never, for pulses.",
    )
    function: Literal[5, 6, 15, 16, 22] | None = Field(
        None, description="The function code of writes, if not the usual one."
    )
    group: str | None = Field(
        None,
        description="Points with the same group are written in one request or not at all. They must adjoin.",
    )
    then: Mapping[str, Scalar] | None = Field(
        None,
        description="Points of the device and the values that are written to them after this point was "
        "written: a commit, an unlock. Nothing is written to them if the device refused the value.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """Take what fits a cell of a CSV file: ``discrete 5``, ``500ms``, ``commit=1``."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        place, verify, then = data.get("read_from"), data.get("verify"), data.get("then")
        if isinstance(place, str) and (found := _PLACE.fullmatch(place.strip())):
            address = int(found[2])
            data["read_from"] = {"table": found[1], "address": address} if found[1] else address
        if isinstance(verify, str) and verify.strip().lower() not in ("true", "false", ""):
            data["verify"] = {"after": verify.strip()}
        if isinstance(then, str):
            data["then"] = _steps(then)
        return data

    def check_writing(self, table: Table, *, is_bit_field: bool, registers: int) -> None:
        """Check what needs the point's place.

        Args:
            table: where it is written.
            is_bit_field: whether it is only some bits of its registers.
            registers: how many there are.
        """
        if self.read_from is not None and not table.is_numbered:
            raise problem(
                f"the table `{table}` itself shows what was written to it: it has no `read_from`", "read_from"
            )
        place = self.place_of_reading(table)
        if place is not None and place[0].is_bits != table.is_bits:
            one, other = ("one bit", "registers") if table.is_bits else ("registers", "single bits")
            raise problem(
                f"`read_from` names the table `{place[0]}` of {other}, but the point is {one}", "read_from"
            )
        after_s = self.verify.after if isinstance(self.verify, VerifySettings) else 0.0
        if after_s > _LONGEST_VERIFY_S:
            raise problem(f"`verify` waits at most {_LONGEST_VERIFY_S:g} s, not {after_s:g} s", "verify")
        if self.function is None:
            return
        if table not in (Table.COIL, Table.HOLDING):
            raise problem(
                f"`function` is for coils and holding registers, not for the table `{table}`", "function"
            )
        allowed = _OF_COILS if table.is_bits else _OF_REGISTERS
        if self.function not in allowed:
            numbers = ", ".join(map(str, allowed))
            raise problem(
                f"function {self.function} does not write a {table}: use one of {numbers}", "function"
            )
        if self.function == MASK and not (is_bit_field and registers == 1):
            raise problem(
                "function 22 writes single bits of one register: give `bit` or `bits`, or use 6 or 16",
                "function",
            )

    def place_of_reading(self, table: Table) -> tuple[Table, int] | None:
        """Return where the device shows what it was given, if that is another place."""
        if isinstance(self.read_from, PlaceSettings):
            return Table(self.read_from.table), self.read_from.address
        return None if self.read_from is None else (table, self.read_from)

    def moved_reading(self, table: Table, offset_of: Callable[[Table], int]) -> dict[str, Any]:
        """Return `read_from` with the offsets of the tables added, as an update of the settings."""
        place = self.place_of_reading(table)
        if place is None:
            return {}
        moved: dict[str, Any] = {"table": place[0].value, "address": place[1] + offset_of(place[0])}
        return {"read_from": PlaceSettings.model_construct(**moved)}

    def write_rules(self, table: Table, offset: int = 0) -> WriteRules:
        """Return the rules of the point, or of one of an array.

        Args:
            table: where it is written.
            offset: how far the one of an array is from the first.
        """
        place = self.place_of_reading(table)
        if place is not None:
            place = place[0], place[1] + offset
        return WriteRules(
            verify=True if isinstance(self.verify, VerifySettings) else self.verify,
            verify_after_s=self.verify.after if isinstance(self.verify, VerifySettings) else 0.0,
            read_from=place,
            function=self.function,
            group=self.group or "",
            then=tuple((self.then or {}).items()),
        )


def _steps(text: str) -> dict[str, int | float | str | bool]:
    """Return what ``commit=1; unlock=0`` says."""
    found: dict[str, int | float | str | bool] = {}
    for part in filter(str.strip, re.split(r"[;,]", text)):
        match = _STEP.fullmatch(part)
        if match is None:
            raise problem(f"'{part.strip()[:60]}' is not `then` such as POINT=VALUE", "then")
        found[match[1]] = _scalar(match[2])
    return found


def _scalar(text: str) -> int | float | str | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
