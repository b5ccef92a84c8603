"""What devices do otherwise than the specification says, and what we do about it. The one table of it.

=======================  =================================================================================
`zero_transaction_id`    answers carry transaction id 0: they are taken, and since a late answer can then
                         not be told from the next one, a timeout costs the connection
`any_unit_id`            answers carry another unit id than was asked (0, 255, the gateway's own): they are
                         taken. Not for lines with several units
`echo`                   the adapter hears what it sends: our own request comes back first and is passed
                         over. It is learned from reads, see `echo.py`; `true` and `false` say it before
`pause`                  the device needs a rest between two requests, else it is silent or answers the
                         first one twice
`single_writes`          the device has no FC 15 and 16: one register or coil a request. A value of
                         several registers is then written in several requests, and may be seen half done
`multiple_writes`        the device has no FC 5 and 6: FC 15 and 16 for a single one too
`mask_write`             the device has FC 22: single bits are written by it instead of by reading the
                         register, changing it and writing it back
`reconnect_on_timeout`   the device serves nobody any more after it missed a request: a timeout costs the
                         connection
=======================  =================================================================================

Never two requests at once are sent on one connection, so devices that cannot pipeline need no quirk.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LineQuirks:
    """Habits of what is at the other end of a connection."""

    zero_transaction_id: bool = False
    any_unit_id: bool = False
    echo: bool | None = None
    reconnect_on_timeout: bool = False


@dataclass(frozen=True, slots=True)
class UnitQuirks:
    """Habits of one device."""

    pause_s: float = 0.0
    single_writes: bool = False
    multiple_writes: bool = False
    mask_write: bool = False
