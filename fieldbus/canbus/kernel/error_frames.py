"""Read what a CAN controller says about its troubles: error frames.

Layout (linux/can/error.h): the identifier, with its bit 29 set, is a set of classes; eight data bytes say
more about some of them::

    0x001 transmit timeout      0x002 arbitration lost, bit in data[0]    0x004 controller, data[1]
    0x008 protocol, data[2] what and data[3] where                        0x010 transceiver, data[4]
    0x020 no acknowledgement    0x040 bus-off    0x080 bus error          0x100 controller restarted
    0x200 error counters, data[6] transmit and data[7] receive

Rules:

* Whatever the bytes are, something is said: what has no name is given as a number.
* Counters are taken only where class 0x200 says that they are some: before Linux 6.0 drivers wrote them, or
  something else, without saying which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fieldbus.canbus.bus import EXTENDED_MASK

ACTIVE, WARNING, PASSIVE, BUS_OFF = 0, 1, 2, 3
"""States of a controller, as in `fieldbus.canbus.bus.BusStatus`."""

_DATA_BYTES = 8
_LOST_ARBITRATION = 0x002
_CONTROLLER = 0x004
_PROTOCOL = 0x008
_TRANSCEIVER = 0x010
_BUS_OFF = 0x040
_RESTARTED = 0x100
_COUNTERS = 0x200

_CLASSES = {
    0x001: "transmit timeout",
    0x020: "no acknowledgement",
    _BUS_OFF: "bus-off",
    0x080: "bus error",
    _RESTARTED: "controller restarted",
}
_DETAILED = _LOST_ARBITRATION | _CONTROLLER | _PROTOCOL | _TRANSCEIVER | _COUNTERS

_CONTROLLER_BITS = {
    0x01: "controller receive overflow",
    0x02: "controller transmit overflow",
    0x04: "receive errors at the warning level",
    0x08: "transmit errors at the warning level",
    0x10: "error passive by receive errors",
    0x20: "error passive by transmit errors",
    0x40: "error active again",
}
_ANY_PASSIVE = 0x30
_ANY_WARNING = 0x0C
_ACTIVE_AGAIN = 0x40

_IS_SENDING = 0x80
_PROTOCOL_BITS = {
    0x01: "single bit error",
    0x02: "frame format error",
    0x04: "bit stuffing error",
    0x08: "dominant bit could not be sent",
    0x10: "recessive bit could not be sent",
    0x20: "bus overload",
    0x40: "active error announcement",
}
_PLACES = {
    0x02: "in identifier bits 28 to 21",
    0x03: "in the start of frame",
    0x04: "in the substitute remote bit",
    0x05: "in the identifier extension bit",
    0x06: "in identifier bits 20 to 18",
    0x07: "in identifier bits 17 to 13",
    0x08: "in the checksum",
    0x09: "in reserved bit 0",
    0x0A: "in the data section",
    0x0B: "in the data length code",
    0x0C: "in the remote bit",
    0x0D: "in reserved bit 1",
    0x0E: "in identifier bits 4 to 0",
    0x0F: "in identifier bits 12 to 5",
    0x12: "in the intermission",
    0x18: "in the checksum delimiter",
    0x19: "in the acknowledge slot",
    0x1A: "in the end of frame",
    0x1B: "in the acknowledge delimiter",
}
_CAN_HIGH = {
    0x4: "CAN high has no wire",
    0x5: "CAN high shorted to the battery",
    0x6: "CAN high shorted to the supply",
    0x7: "CAN high shorted to ground",
}
_CAN_LOW = {
    0x4: "CAN low has no wire",
    0x5: "CAN low shorted to the battery",
    0x6: "CAN low shorted to the supply",
    0x7: "CAN low shorted to ground",
    0x8: "CAN low shorted to CAN high",
}


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """What an error frame says."""

    state: int | None
    """The state that the controller has come to, from `ACTIVE` to `BUS_OFF`; None if it does not say."""
    is_restart: bool
    """Whether the controller has been restarted after it was off."""
    causes: tuple[str, ...]
    """Short texts; none if the frame only has counters."""
    tx_errors: int | None = None
    """Transmit error counter; None if it does not say."""
    rx_errors: int | None = None


def decode_error_frame(can_id: int, data: bytes) -> ErrorFrame:
    """Return what an error frame says.

    Args:
        can_id: its identifier; flag bits do not matter.
        data: eight bytes; what is missing is taken for 0.
    """
    classes = can_id & EXTENDED_MASK
    data = data[:_DATA_BYTES].ljust(_DATA_BYTES, b"\0")
    has_counters = bool(classes & _COUNTERS)
    return ErrorFrame(
        state=_state(classes, data),
        is_restart=bool(classes & _RESTARTED),
        causes=tuple(_causes(classes, data)) if classes else ("unspecified error",),
        tx_errors=data[6] if has_counters else None,
        rx_errors=data[7] if has_counters else None,
    )


def _state(classes: int, data: bytes) -> int | None:
    if classes & _BUS_OFF:
        return BUS_OFF
    controller = data[1] if classes & _CONTROLLER else 0
    if controller & _ANY_PASSIVE:
        return PASSIVE
    if controller & _ANY_WARNING:
        return WARNING
    if controller & _ACTIVE_AGAIN or classes & _RESTARTED:
        return ACTIVE
    return None


def _causes(classes: int, data: bytes) -> Iterator[str]:
    for bit, text in _CLASSES.items():
        if classes & bit:
            yield text
    if classes & _LOST_ARBITRATION:
        yield f"arbitration lost at bit {data[0]}" if data[0] else "arbitration lost"
    if classes & _CONTROLLER:
        yield from _named(data[1], _CONTROLLER_BITS, "controller status") or ["controller problem"]
    if classes & _PROTOCOL:
        what = " and ".join(_named(data[2] & ~_IS_SENDING, _PROTOCOL_BITS, "")) or "protocol violation"
        where = f", {_PLACES.get(data[3], f'at place 0x{data[3]:02X}')}" if data[3] else ""
        yield what + where + (", while sending" if data[2] & _IS_SENDING else "")
    if classes & _TRANSCEIVER:
        yield from _transceiver(data[4])
    if unknown := classes & ~_DETAILED & ~sum(_CLASSES):
        yield f"error class 0x{unknown:X}"


def _named(bits: int, names: dict[int, str], others: str) -> list[str]:
    found = [text for bit, text in names.items() if bits & bit]
    if unknown := bits & ~sum(names):
        found.append(f"{others} 0x{unknown:02X}")
    return found


def _transceiver(status: int) -> list[str]:
    high, low = status & 0xF, status >> 4
    if (high and high not in _CAN_HIGH) or (low and low not in _CAN_LOW):
        return [f"transceiver status 0x{status:02X}"]
    found = [names[nibble] for nibble, names in ((high, _CAN_HIGH), (low, _CAN_LOW)) if nibble]
    return found or ["transceiver problem"]
