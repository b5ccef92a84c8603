"""Faults that a node reports by J1939: DM1 (active ones) and DM2 (previous ones).

Layout: byte 0 lamps, byte 1 how they flash, two bits each: protect (0..1), amber warning (2..3), red stop
(4..5), malfunction (6..7). Then four bytes for each fault::

    SPN bits 0..7 · SPN bits 8..15 · SPN bits 16..18 (5..7), FMI (0..4) · CM (7), occurrence count (0..6)

Rules:

* A fault whose conversion method bit (CM) is 1 has one of three older layouts, and nothing in it tells which:
  its SPN is None and `candidates` has what it may be. Only where all three agree it is known.
* SPN 0 with FMI 0, and four bytes FF, are no fault: a node without faults has to send something.
* Bytes that make no whole fault are ignored. If they are not all 00 or all FF, which fill a frame of 8
  bytes, `is_truncated` says that something is missing.

Source: the layout as in the validation tool of the Equipment and Tool Institute (j1939-84: CM "shall be sent
as a 0"); the older ones as in manuals of gateways and displays (HMS, DynaGen).
The last of them gives CM the opposite meaning; the two others agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from fieldbus.errors import ConversionError

UNKNOWN_COUNT = 127
NOT_AVAILABLE = 3
_FAULT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Lamp:
    """One lamp of the dashboard."""

    status: int
    """0 off, 1 on, 2 error, 3 not available."""
    flash: int = NOT_AVAILABLE
    """0 slowly, 1 fast, 2 reserved, 3 not available, does not flash."""

    @property
    def is_on(self) -> bool | None:
        """Whether it is lit; None if that is not known."""
        return bool(self.status) if self.status < 2 else None

    def __str__(self) -> str:
        """Say what it shows: ``on``, ``flashing fast``."""
        if self.status == 1 and self.flash < 2:
            return ("flashing slowly", "flashing fast")[self.flash]
        return ("off", "on", "error", "not available")[self.status]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what is wrong with which parameter."""

    spn: int | None
    """Suspect parameter number, 0..524287; None where it cannot be told."""
    fmi: int
    """Failure mode identifier, 0..31."""
    occurrence_count: int | None
    """0..126; None if not available."""
    conversion_method: int = 0
    """0: the layout of today; 1: an older one."""
    candidates: tuple[int, ...] = ()
    """If `spn` is None: what it may be, by the old versions 1, 2 and 3."""

    @property
    def is_ambiguous(self) -> bool:
        """Whether the parameter cannot be told."""
        return self.spn is None

    def __str__(self) -> str:
        """Write it as service manuals do: ``SPN 100 FMI 1 ×3``."""
        spn = " or ".join(map(str, self.candidates)) + " (old layout)" if self.spn is None else str(self.spn)
        count = f" ×{self.occurrence_count}" if self.occurrence_count else ""
        return f"SPN {spn} FMI {self.fmi}{count}"


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What a DM1 or DM2 says."""

    protect: Lamp
    amber_warning: Lamp
    red_stop: Lamp
    malfunction: Lamp
    faults: tuple[Fault, ...]
    """In the order of the message."""
    is_truncated: bool = False
    """Whether bytes at the end made no whole fault."""

    def __str__(self) -> str:
        """Say it in one line: ``red stop on; SPN 100 FMI 1 ×3, SPN 110 FMI 0``."""
        lamps = {
            "protect": self.protect,
            "amber warning": self.amber_warning,
            "red stop": self.red_stop,
            "malfunction": self.malfunction,
        }
        shown = [f"{name} {lamp}" for name, lamp in lamps.items() if lamp.status in (1, 2)]
        faults = ", ".join(map(str, self.faults)) or "no faults"
        return "; ".join([*shown, faults]) + (" (incomplete)" if self.is_truncated else "")


def decode(payload: bytes) -> Diagnostics:
    """Read the payload of a DM1 or a DM2.

    Args:
        payload: 2 bytes at least; 8 where it is a frame, as many as it has faults where it came in packets.

    Raises:
        ConversionError: not even the lamps are there.
    """
    if len(payload) < 2:
        raise ConversionError(f"{len(payload)} bytes are no diagnostic message")
    protect, amber_warning, red_stop, malfunction = (
        Lamp(payload[0] >> shift & 3, payload[1] >> shift & 3) for shift in (0, 2, 4, 6)
    )
    whole = 2 + (len(payload) - 2) // _FAULT_BYTES * _FAULT_BYTES
    faults = [_fault(payload[start : start + _FAULT_BYTES]) for start in range(2, whole, _FAULT_BYTES)]
    rest = payload[whole:]
    is_filling = not rest.strip(b"\x00") or not rest.strip(b"\xff")
    found = tuple(fault for fault in faults if fault is not None)
    return Diagnostics(protect, amber_warning, red_stop, malfunction, found, is_truncated=not is_filling)


def _fault(data: bytes) -> Fault | None:
    first, second, third, last = data
    spn, fmi = first | second << 8 | third >> 5 << 16, third & 0x1F
    if (spn == 0 and fmi == 0) or data == b"\xff\xff\xff\xff":
        return None
    count = last & 0x7F
    occurrence_count = None if count == UNKNOWN_COUNT else count
    if not last & 0x80:
        return Fault(spn, fmi, occurrence_count)
    low = third >> 5
    candidates = tuple(dict.fromkeys((first << 11 | second << 3 | low, second << 11 | first << 3 | low, spn)))
    if len(candidates) == 1:
        return Fault(spn, fmi, occurrence_count, 1)
    return Fault(None, fmi, occurrence_count, 1, candidates)
