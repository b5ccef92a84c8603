"""The points of DM1 and DM2: lamps, the first fault, how many there are, all of them as text.

A database seldom has these messages, and could not say what is in them: a list of any length.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fieldbus.canbus.bus import EXTENDED_MASK
from fieldbus.canbus.j1939.diagnostics import Diagnostics, Lamp, decode
from fieldbus.canbus.j1939.identifiers import NULL_ADDRESS, identifier
from fieldbus.canbus.layout import MAX_MESSAGE_BYTES, Condition, Message, Signal
from fieldbus.errors import ConversionError
from fieldbus.model import Flaw, Kind, Point, Reason, Value, bad

_LAMP = {0: "off", 1: "on"}
_POINTS: Mapping[str, tuple[int | None, Mapping[int, str], str]] = {
    "ProtectLamp": (1, _LAMP, "something that is not electronic needs attention"),
    "AmberWarningLamp": (1, _LAMP, "a fault that does not stop the vehicle at once"),
    "RedStopLamp": (1, _LAMP, "a fault that is reason enough to stop"),
    "MalfunctionLamp": (1, _LAMP, "emissions"),
    "FaultCount": (MAX_MESSAGE_BYTES // 4, {}, "how many faults are reported"),
    "Spn": ((1 << 19) - 1, {}, "of the first fault: suspect parameter number; 0 for no fault"),
    "Fmi": (31, {}, "of the first fault: failure mode identifier"),
    "OccurrenceCount": (126, {}, "of the first fault"),
    "Faults": (None, {}, "all of them: SPN 100 FMI 1 ×3, SPN 110 FMI 0"),
}
"""Highest value (None for text), labels, description."""
_NOT_AVAILABLE = bad(Reason.NOT_AVAILABLE)
_ERROR = bad(Reason.ERROR_INDICATOR)
_MALFORMED = bad(Reason.BAD_RESPONSE)


def message_of(name: str, pgn: int, source: int | None) -> Message:
    """Return DM1 or DM2 as a message, its points as signals of which only the names count."""
    frame_id = identifier(pgn, NULL_ADDRESS if source is None else source) & EXTENDED_MASK
    signals = [Signal(point, 0, 1, comment=text) for point, (_, _, text) in _POINTS.items()]
    return Message(name, frame_id, True, 8, signals, is_j1939=True)


def points_of(device: str, message: Message) -> dict[Signal, Point]:
    """Return the points of such a message."""
    found = {}
    for signal in message.signals:
        highest, labels, text = _POINTS[signal.name]
        found[signal] = Point(
            device,
            f"{message.name}.{signal.name}",
            Kind.STRING if highest is None else Kind.INT,
            labels=labels,
            description=text,
            lowest=None if highest is None else 0,
            highest=highest,
        )
    return found


class FaultDecoder:
    """Decodes some points of a DM1 or DM2; see `listening.Decoder`."""

    condition: Condition = ()

    def __init__(self, wanted: Collection[Signal]) -> None:
        self.signals: Sequence[Signal] = tuple(wanted)
        self.branches: Sequence[FaultDecoder] = (self,) if self.signals else ()

    def select(self, data: bytes) -> Sequence[int]:
        """Return the one branch, if anything is wanted."""
        return range(len(self.branches))

    def decode(self, data: bytes) -> tuple[Sequence[Value | None], Mapping[int, Flaw]]:
        """Return the values of a payload."""
        try:
            found = decode(data)
        except ConversionError:
            names = range(len(self.signals))
            return (None,) * len(self.signals), dict.fromkeys(names, _MALFORMED)
        values: list[Value | None] = []
        flaws: dict[int, Flaw] = {}
        for index, signal in enumerate(self.signals):
            value, flaw = _value(found, signal.name)
            values.append(value)
            if flaw is not None:
                flaws[index] = flaw
        return tuple(values), flaws


def _value(found: Diagnostics, name: str) -> tuple[Value | None, Flaw | None]:
    lamps: Mapping[str, Lamp] = {
        "ProtectLamp": found.protect,
        "AmberWarningLamp": found.amber_warning,
        "RedStopLamp": found.red_stop,
        "MalfunctionLamp": found.malfunction,
    }
    lamp = lamps.get(name)
    if lamp is not None:
        if lamp.status < 2:
            return lamp.status, None
        return None, _ERROR if lamp.status == 2 else _NOT_AVAILABLE
    if found.is_truncated and name in ("FaultCount", "Faults"):
        return None, _MALFORMED
    if name == "FaultCount":
        return len(found.faults), None
    if name == "Faults":
        return ", ".join(map(str, found.faults)), None
    if not found.faults:
        return 0, None
    first = found.faults[0]
    value = {"Spn": first.spn, "Fmi": first.fmi, "OccurrenceCount": first.occurrence_count}[name]
    return value, None if value is not None else _NOT_AVAILABLE
