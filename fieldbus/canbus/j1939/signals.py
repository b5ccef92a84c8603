"""What J1939 says of the signals of a message that a database does not: error, not available, unused bits.

Rules:

* The raw values that mean an error or no value follow from the size (`j1939.indicators`), except where the
  database gives such a raw value a name that means something else: 3 of two bits can be a mode.
* Floats have no such values, and selectors say which page a frame is, whatever their bits.
* What nobody has given a value is sent as not available, whatever start value the database has. Bits that
  belong to no signal are sent as ones.
"""

from __future__ import annotations

import dataclasses
import re

from fieldbus.canbus.j1939.identifiers import indicators
from fieldbus.canbus.layout import Message, Signal

_NO_STATE = re.compile(
    r"err|n(ot|o)?[ _-]*avail|unavail|\bn/?a\b|\bsna\b|invalid|don'?t[ _-]*care|no[ _-]*action|reserved"
    r"|undefined",
    re.IGNORECASE,
)
"""Names that say that a raw value is no state of the machine."""


def as_j1939(message: Message) -> Message:
    """Return a message whose signals know the raw values that mean an error or no value."""
    selectors = {name for item in message.signals for name, _ in item.condition}
    signals = [
        signal if signal.is_float or signal.name in selectors else _with_indicators(signal)
        for signal in message.signals
    ]
    return dataclasses.replace(message, signals=signals, is_j1939=True, fill=0xFF)


def _with_indicators(signal: Signal) -> Signal:
    found = indicators(signal.length)
    if found is None:
        return signal
    error_from, absent_from = found
    states = [raw % (1 << signal.length) for raw, name in signal.labels.items() if not _NO_STATE.search(name)]
    if any(raw >= absent_from for raw in states):
        return signal
    if any(raw >= error_from for raw in states):
        error_from = absent_from
    ones = (1 << signal.length) - 1
    return dataclasses.replace(signal, error_from=error_from, absent_from=absent_from, raw_initial=ones)
