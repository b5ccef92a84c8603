"""Frames to signals and back."""

import struct

import cantools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.codec import BranchDecoder, FrameEncoder
from fieldbus.canbus.layout import Message, Signal
from fieldbus.errors import ConversionError
from fieldbus.scaling import Linear


def message(*signals, length=8):
    return Message("M", 0x100, False, length, signals)


def decode(signal, data, length=8):
    values, flaws = BranchDecoder(message(signal, length=length), [signal]).decode(data)
    return values[0], flaws.get(0)


@pytest.mark.parametrize(
    ("start", "length", "little", "signed", "data", "value"),
    [
        (0, 8, True, False, "ff00000000000000", 255),
        (0, 16, True, False, "3412000000000000", 0x1234),
        (4, 12, True, False, "4123000000000000", 0x234),
        (0, 16, True, True, "feff000000000000", -2),
        (63, 1, True, False, "0000000000000080", 1),
        (0, 64, True, False, "efcdab8967452301", 0x0123456789ABCDEF),
        (7, 16, False, False, "1234000000000000", 0x1234),
        (3, 12, False, False, "0123000000000000", 0x123),
        (7, 16, False, True, "fffe000000000000", -2),
        (0, 2, False, False, "0180000000000000", 0b11),
        (7, 64, False, False, "0123456789abcdef", 0x0123456789ABCDEF),
    ],
)
def test_a_signal_is_where_the_database_says(start, length, little, signed, data, value):
    signal = Signal("S", start, length, little, signed)
    assert decode(signal, bytes.fromhex(data)) == (value, None)
    encoder = FrameEncoder(message(signal))
    encoder.set("S", value)
    assert decode(signal, encoder.frame()) == (value, None)


def test_decimal_factors_give_decimal_values():
    assert decode(Signal("S", 0, 16, linear=Linear(0.1)), b"\3\0" + bytes(6))[0] == 0.3


def test_outside_its_range_a_value_is_uncertain():
    value, flaw = decode(Signal("S", 0, 8, minimum=0, maximum=100), b"\x65" + bytes(7))
    assert (value, flaw.quality, flaw.reason) == (101, "uncertain", "out of range")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_float_that_is_no_number_is_no_value(number):
    signal = Signal("S", 0, 32, is_float=True)
    value, flaw = decode(signal, struct.pack("<f", number) + bytes(4))
    assert (value, flaw.reason) == (None, "not available")


def test_a_short_frame_gives_what_is_wholly_there():
    signals = [Signal("A", 0, 8), Signal("B", 8, 16), Signal("C", 7, 8, is_little_endian=False)]
    values, flaws = BranchDecoder(message(*signals), signals).decode(b"\x11\x22")
    assert values == (0x11, None, 0x11)
    assert flaws == {1: ("bad", "missing in a short frame")}


def test_bytes_beyond_the_message_are_ignored():
    assert decode(Signal("S", 7, 8, is_little_endian=False), b"\x12\x34\x56", length=1) == (0x12, None)


MULTIPLEXED = message(
    Signal("Selector", 0, 8),
    Signal("Always", 8, 8),
    Signal("InOne", 16, 8, condition=(("Selector", frozenset({1})),)),
    Signal("InTwo", 16, 16, condition=(("Selector", frozenset({2, 3})),)),
)


def present(data):
    return [
        [signal.name for signal in signals]
        for signals in MULTIPLEXED.branches().values()
        if BranchDecoder(MULTIPLEXED, signals).is_present(data)
    ]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        (1, [["Selector", "Always"], ["InOne"]]),
        (3, [["Selector", "Always"], ["InTwo"]]),
        (9, [["Selector", "Always"]]),
    ],
)
def test_a_frame_carries_the_common_signals_and_the_branch_that_it_names(selector, names):
    assert present(bytes([selector, 5, 6, 7, 0, 0, 0, 0])) == names


def test_an_encoder_sets_the_selector_of_the_branch():
    encoder = FrameEncoder(MULTIPLEXED)
    encoder.set("InTwo", 0x0201)
    encoder.set("InOne", 0x77)
    assert encoder.frame((("Selector", frozenset({2, 3})),))[:4] == b"\x02\x00\x01\x02"
    assert encoder.frame((("Selector", frozenset({1})),))[:4] == b"\x01\x00\x77\x00"


def test_signals_without_a_value_have_their_start_value():
    subject = message(
        Signal("A", 0, 8, raw_initial=7),
        Signal("B", 8, 8, is_signed=True, raw_initial=-1),
        Signal("F", 32, 32, is_float=True, raw_initial=1.5),
    )
    assert FrameEncoder(subject).frame() == b"\x07\xff\0\0" + struct.pack("<f", 1.5)


@pytest.mark.parametrize(
    ("signal", "value"),
    [
        (Signal("S", 0, 8), 256),
        (Signal("S", 0, 8), -1),
        (Signal("S", 0, 8, is_signed=True), 128),
        (Signal("S", 0, 8, linear=Linear(0.5)), 128),
        (Signal("S", 0, 32, is_float=True), 1e39),
        (Signal("S", 0, 8), "7"),
        (Signal("S", 0, 8), float("nan")),
    ],
)
def test_what_does_not_fit_is_refused(signal, value):
    encoder = FrameEncoder(message(signal))
    with pytest.raises(ConversionError):
        encoder.set("S", value)
    assert encoder.frame() == bytes(8)


@st.composite
def layouts(draw):
    """Signals that do not overlap, of both byte orders, in a frame of up to 64 bytes."""
    length = draw(st.sampled_from([1, 4, 8, 12, 64]))
    little = draw(st.booleans())
    signals, position = [], 0
    while position < length * 8:
        bits = draw(st.integers(1, min(64, length * 8 - position)))
        start = position if little else position // 8 * 8 + 7 - position % 8
        signals.append(Signal(f"S{position}", start, bits, little, draw(st.booleans())))
        position += bits + draw(st.integers(0, 3))
    return message(*signals, length=length)


@given(layout=layouts(), data=st.data())
def test_decoding_undoes_encoding(layout, data):
    encoder = FrameEncoder(layout)
    expected = [data.draw(st.integers(*signal.raw_range)) for signal in layout.signals]
    for signal, value in zip(layout.signals, expected, strict=True):
        encoder.set(signal.name, value)
    values, flaws = BranchDecoder(layout, layout.signals).decode(encoder.frame())
    assert (list(values), flaws) == (expected, {})


@given(layout=layouts(), frame=st.binary(max_size=70))
def test_any_bytes_give_values_or_reasons(layout, frame):
    values, flaws = BranchDecoder(layout, layout.signals).decode(frame)
    for index, value in enumerate(values):
        assert (value is None) == (index in flaws)


@given(layout=layouts(), frame=st.binary(min_size=64, max_size=64))
def test_values_agree_with_cantools(layout, frame):
    theirs = cantools.database.can.Message(
        0x100, "M", layout.length,
        [
            cantools.database.can.Signal(
                signal.name, signal.start, signal.length,
                "little_endian" if signal.is_little_endian else "big_endian", signal.is_signed,
            )
            for signal in layout.signals
        ],
    )  # fmt: skip
    data = frame[: layout.length]
    values, _ = BranchDecoder(layout, layout.signals).decode(data)
    expected = theirs.decode(data)
    assert {signal.name: value for signal, value in zip(layout.signals, values, strict=True)} == expected


def test_names_from_a_database_never_become_code():
    evil = Signal("x'); import os; os.abort(); ('", 0, 8)
    assert decode(evil, b"\x05" + bytes(7))[0] == 5
