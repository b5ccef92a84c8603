"""The configuration of what devices do otherwise than the specification says, see `quirks.py`."""

from __future__ import annotations

from pydantic import Field, model_validator

from fieldbus.modbus.quirks import LineQuirks, UnitQuirks
from fieldbus.settings import Duration, Settings, problem


class LineQuirkSettings(Settings):
    """Habits of what is at the other end of the connection, see README."""

    zero_transaction_id: bool = Field(False, description="Responses have transaction id 0.")
    any_unit_id: bool = Field(False, description="Responses have another unit id than their request.")
    echo: bool | None = Field(
        None, description="Whether the adapter hears what it sends. By default that is learned from reads."
    )
    reconnect_on_timeout: bool = Field(
        False, description="After a timeout the device answers only on a new connection."
    )

    def build(self) -> LineQuirks:
        """Return what the link works with."""
        return LineQuirks(self.zero_transaction_id, self.any_unit_id, self.echo, self.reconnect_on_timeout)


class UnitQuirkSettings(Settings):
    """Habits of one device, see README."""

    pause: Duration | None = Field(None, description="A rest that it needs between two requests.")
    single_writes: bool = Field(False, description="It has no FC 15 and 16.")
    multiple_writes: bool = Field(False, description="It has no FC 5 and 6.")
    mask_write: bool = Field(False, description="It has FC 22.")

    @model_validator(mode="after")
    def _check(self) -> UnitQuirkSettings:
        if self.single_writes and self.multiple_writes:
            raise problem("`single_writes` and `multiple_writes` exclude each other")
        return self

    def build(self) -> UnitQuirks:
        """Return what the link works with."""
        return UnitQuirks(self.pause or 0.0, self.single_writes, self.multiple_writes, self.mask_write)
