"""What J1939 says of the signals of a message that a database does not: error, not available, unused bits."""

from __future__ import annotations

import dataclasses

from fieldbus.canbus.j1939 import indicators
from fieldbus.canbus.layout import Message


def as_j1939(message: Message) -> Message:
    """Return a message whose signals know the raw values that mean an error or no value.

    Floats have no such values, and selectors say which page a frame is, whatever their bits. Bits that
    belong to no signal are sent as ones.
    """
    selectors = {name for item in message.signals for name, _ in item.condition}
    signals = []
    for signal in message.signals:
        found = None if signal.is_float or signal.name in selectors else indicators(signal.length)
        if found is not None:
            signal = dataclasses.replace(signal, error_from=found[0], absent_from=found[1])  # noqa: PLW2901
        signals.append(signal)
    return dataclasses.replace(message, signals=signals, is_j1939=True, fill=0xFF)
