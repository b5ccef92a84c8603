"""Which raw values of a J1939 signal are no value."""

import pytest

from fieldbus.canbus.codec import BranchDecoder, FrameEncoder
from fieldbus.canbus.j1939.signals import as_j1939
from fieldbus.canbus.layout import Message, Signal


def one(**more):
    return as_j1939(Message("M", 0xF00400, True, 8, [Signal("S", 0, **more)])).signals[0]


@pytest.mark.parametrize(
    ("labels", "thresholds"),
    [
        ({}, (2, 3)),
        ({0: "off", 1: "on", 2: "error", 3: "not available"}, (2, 3)),
        ({0: "off", 1: "on", 2: "Error indicator", 3: "Don't care/take no action"}, (2, 3)),
        ({0: "off", 1: "on", 2: "Reserved", 3: "SNA"}, (2, 3)),
        ({0: "off", 1: "speed", 2: "torque", 3: "limit"}, (None, None)),
        ({0: "off", 1: "on", 2: "blinking", 3: "not available"}, (3, 3)),
    ],
)
def test_a_raw_value_with_a_name_that_is_a_state_is_a_value(labels, thresholds):
    signal = one(length=2, labels=labels)
    assert (signal.error_from, signal.absent_from) == thresholds


def test_floats_selectors_and_single_bits_have_no_such_values():
    page = (("Page", frozenset({255})),)
    signals = [Signal("Page", 0, 8), Signal("F", 8, 32, is_float=True), Signal("B", 40, 1),
               Signal("X", 48, 8, condition=page)]  # fmt: skip
    message = as_j1939(Message("M", 0xF00400, True, 8, signals))
    assert [signal.absent_from for signal in message.signals] == [None, None, None, 0xFF]


def test_what_nobody_has_given_a_value_is_sent_as_not_available():
    signals = [
        Signal("A", 0, 8),
        Signal("B", 8, 16),
        Signal("Start", 24, 8, raw_initial=5),
        Signal("Bit", 32, 1),
    ]
    message = as_j1939(Message("M", 0xF00400, True, 8, signals))
    encoder = FrameEncoder(message)
    encoder.set("A", 7)
    assert encoder.frame() == b"\x07\xff\xff\xff\xfe\xff\xff\xff"
    values, flaws = BranchDecoder(message, message.signals).decode(encoder.frame())
    assert list(values) == [7, None, None, 0]
    assert [flaw.reason for flaw in flaws.values()] == ["not available"] * 2
