"""J1939 addresses: the NAME of a node, and how a node gets an address and keeps it. Sans-IO.

Layout of a NAME, 64 bits, sent low byte first; bits from the least significant::

    0 identity number (21)      21 manufacturer code (11)      32 ECU instance (3)
    35 function instance (5)    40 function (8)                48 reserved (1)
    49 vehicle system (7)       56 vehicle system instance (4) 60 industry group (3)
    63 arbitrary address capable (1)

Rules:

* The lower NAME wins an address. Who claims our address with a higher one hears our claim again; to a
  lower one we give way at once: the address is not ours any more before anything else is sent.
* An address is used only after `CLAIM_S` without a lower NAME claiming it too.
* Who gives way takes the next address of 128..247 that nobody is known to have, if its NAME says that it
  can; else it says "cannot claim" (from 254) after its delay and is silent but for requests for addresses.
* Two nodes with the same NAME at the same address: we stop sending at once and altogether, and
  `conflict` says so. To go on claiming would never end, and data from two nodes under one identifier are
  bit errors that put both off the bus. It lasts until `start` is called again.
* The table has every other node's last claim, and at most one address for each NAME.

The caller hands in only frames that others sent: our own claim, echoed, would be taken for a twin.

Design: it asks for everybody's addresses before its first claim, so that the table is soon full and a free
address is one that nobody answers for. `Commanded Address` is not obeyed: a gateway's address is set in its
configuration.

Source: the Linux kernel's Documentation/networking/j1939.rst (250 ms, NAME), AgIsoStack++ (128..247; the
delay of 0..153 ms), device manuals (what a request is answered with).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from types import MappingProxyType

from fieldbus.canbus.bus import ERROR, EXTENDED, REMOTE
from fieldbus.canbus.j1939.identifiers import (
    ADDRESS_CLAIMED,
    GLOBAL,
    LAST_ADDRESS,
    NULL_ADDRESS,
    destination_of,
    identifier,
    pgn_of,
    request,
    requested,
    source_of,
)
from fieldbus.canbus.j1939.packets import Outgoing

CLAIM_S = 0.25
FIRST_ARBITRARY = 128
LAST_ARBITRARY = 247

_WIDTHS = {
    "identity_number": 21,
    "manufacturer_code": 11,
    "ecu_instance": 3,
    "function_instance": 5,
    "function": 8,
    "reserved": 1,
    "vehicle_system": 7,
    "vehicle_system_instance": 4,
    "industry_group": 3,
    "is_arbitrary_address_capable": 1,
}
"""Bits of each field, least significant field first."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a node is, in 64 bits; no two nodes on a bus may have the same."""

    identity_number: int = 0
    """Serial number."""
    manufacturer_code: int = 0
    ecu_instance: int = 0
    function_instance: int = 0
    function: int = 0
    reserved: int = 0
    vehicle_system: int = 0
    vehicle_system_instance: int = 0
    industry_group: int = 0
    is_arbitrary_address_capable: bool = False
    """Whether it may take any free address of 128..247."""

    def __post_init__(self) -> None:
        for name, width in _WIDTHS.items():
            if not 0 <= getattr(self, name) < 1 << width:
                raise ValueError(f"{name} {getattr(self, name)} does not fit {width} bits")

    def __int__(self) -> int:
        """Return the 64 bits; the lower number has the higher priority."""
        number = shift = 0
        for name, width in _WIDTHS.items():
            number |= int(getattr(self, name)) << shift
            shift += width
        return number

    @classmethod
    def from_int(cls, number: int) -> Name:
        """Take 64 bits apart."""
        if not 0 <= number < 1 << 64:
            raise ValueError(f"a NAME of more than 64 bits: {number}")
        values: dict[str, int] = {}
        for name, width in _WIDTHS.items():
            values[name] = number & (1 << width) - 1
            number >>= width
        is_capable = bool(values.pop("is_arbitrary_address_capable"))
        return cls(**values, is_arbitrary_address_capable=is_capable)

    @classmethod
    def from_bytes(cls, data: bytes) -> Name:
        """Read a NAME as it is on the bus: 8 bytes, low byte first."""
        if len(data) != 8:
            raise ValueError(f"a NAME of {len(data)} bytes")
        return cls.from_int(int.from_bytes(data, "little"))

    def to_bytes(self) -> bytes:
        """Return the 8 bytes that are sent."""
        return int(self).to_bytes(8, "little")

    def __str__(self) -> str:
        """Name the fields that are not 0."""
        parts = [f"{field.name} {value:d}" for field in fields(self) if (value := getattr(self, field.name))]
        return f"{int(self):016x} ({', '.join(parts)})"


class _State(Enum):
    IDLE = "not started"
    CLAIMING = "claimed, waiting for objections"
    CLAIMED = "claimed"
    CANNOT_CLAIM = "cannot claim an address"
    TWIN = "another node has our NAME"


class AddressClaimer:
    """Gets an address for one NAME and defends it."""

    def __init__(self, name: Name, preferred: int, *, cannot_claim_delay_s: float | None = None) -> None:
        """Prepare.

        Args:
            name: who we are.
            preferred: address that is tried first, 0..253.
            cannot_claim_delay_s: how long a "cannot claim" waits, 0..0.153; nodes that lose at the same time
                must not answer at the same time. None to derive it from the NAME.
        """
        if not 0 <= preferred <= LAST_ADDRESS:
            raise ValueError(f"address {preferred}")
        self.name = name
        self.preferred = preferred
        self._number = int(name)
        if cannot_claim_delay_s is None:
            # Fibonacci hashing: NAMEs that differ by one serial number get delays far apart.
            cannot_claim_delay_s = (self._number * 0x9E3779B97F4A7C15 >> 56 & 0xFF) * 0.0006
        self._delay_s = cannot_claim_delay_s
        self._state = _State.IDLE
        self._claimed = preferred
        self._due_s: float | None = None
        self._table: dict[int, Name] = {}
        self._addresses: dict[int, int] = {}
        """The table the other way round: NAME, as a number, to address."""

    @property
    def address(self) -> int | None:
        """Our address; None as long as we have none that may be used."""
        return self._claimed if self._state is _State.CLAIMED else None

    @property
    def table(self) -> Mapping[int, Name]:
        """Who else has which address, as far as heard."""
        return MappingProxyType(self._table)

    @property
    def due_s(self) -> float | None:
        """When to call `tick`; None if nothing is waited for."""
        return self._due_s

    @property
    def conflict(self) -> str | None:
        """Why there is no address and will be none by itself; None if there is one or is going to be."""
        if self._state is _State.TWIN:
            return f"another node has our NAME and our address {self._claimed}"
        if self._state is _State.CANNOT_CLAIM:
            return f"no address: {self._claimed} is another node's, and no other one may be taken"
        return None

    def start(self, now_s: float) -> list[Outgoing]:
        """Claim the preferred address, anew if need be."""
        self._table.clear()
        self._addresses.clear()
        return [request(ADDRESS_CLAIMED), *self._claim(self.preferred, now_s)]

    def heard(self, can_id: int, data: bytes, now_s: float) -> list[Outgoing]:
        """Take a frame that another node sent; others than claims and requests for them are passed over."""
        if can_id & (EXTENDED | REMOTE | ERROR) != EXTENDED:
            return []
        if pgn_of(can_id) == ADDRESS_CLAIMED and len(data) == 8:
            return self._heard_claim(source_of(can_id), int.from_bytes(data, "little"), now_s)
        if requested(can_id, data) == ADDRESS_CLAIMED:
            return self._heard_request(destination_of(can_id), now_s)
        return []

    def tick(self, now_s: float) -> list[Outgoing]:
        """Do what is due."""
        if self._due_s is None or now_s < self._due_s:
            return []
        self._due_s = None
        if self._state is _State.CLAIMING:
            self._state = _State.CLAIMED
        elif self._state is _State.CANNOT_CLAIM:
            return [self._claim_frame(NULL_ADDRESS)]
        return []

    def _claim_frame(self, address: int) -> Outgoing:
        return identifier(ADDRESS_CLAIMED, address), self.name.to_bytes()

    def _claim(self, address: int, now_s: float) -> list[Outgoing]:
        self._state, self._claimed, self._due_s = _State.CLAIMING, address, now_s + CLAIM_S
        return [self._claim_frame(address)]

    def _heard_claim(self, address: int, number: int, now_s: float) -> list[Outgoing]:
        has_ours = self._state in (_State.CLAIMING, _State.CLAIMED) and address == self._claimed
        if number == self._number:
            if has_ours:
                self._state, self._due_s = _State.TWIN, None
            return []
        self._learn(address, number)
        if not has_ours:
            return []
        if self._number < number:
            self._forget(number)  # it hears our claim and has to go
            return [self._claim_frame(address)]
        free = self._free_after(address) if self.name.is_arbitrary_address_capable else None
        if free is not None:
            return self._claim(free, now_s)
        self._state, self._due_s = _State.CANNOT_CLAIM, now_s + self._delay_s
        return []

    def _heard_request(self, destination: int, now_s: float) -> list[Outgoing]:
        if self._state in (_State.CLAIMING, _State.CLAIMED) and destination in (GLOBAL, self._claimed):
            return [self._claim_frame(self._claimed)]
        if self._state is _State.CANNOT_CLAIM and destination == GLOBAL and self._due_s is None:
            self._due_s = now_s + self._delay_s
        return []

    def _learn(self, address: int, number: int) -> None:
        self._forget(number)
        if address <= LAST_ADDRESS:
            holder = self._table.get(address)
            if holder is not None:
                self._forget(int(holder))
            self._table[address] = Name.from_int(number)
            self._addresses[number] = address

    def _forget(self, number: int) -> None:
        address = self._addresses.pop(number, None)
        if address is not None:
            del self._table[address]

    def _free_after(self, address: int) -> int | None:
        count = LAST_ARBITRARY - FIRST_ARBITRARY + 1
        start = address + 1 - FIRST_ARBITRARY if FIRST_ARBITRARY <= address <= LAST_ARBITRARY else 0
        for step in range(count):
            candidate = FIRST_ARBITRARY + (start + step) % count
            if candidate not in self._table:
                return candidate
        return None
