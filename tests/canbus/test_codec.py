"""Frames to signals and back."""

import struct

import cantools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.codec import BranchDecoder, FrameEncoder, MessageDecoder
from fieldbus.canbus.layout import Message, Signal, selector_bits
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


@pytest.mark.parametrize(
    ("signal", "raw", "flaw"),
    [
        (Signal("S", 0, 8, minimum=0, maximum=0), 7, None),
        (Signal("S", 0, 8, minimum=0.0, maximum=0), 7, None),
        (Signal("S", 0, 8, maximum=100, labels={7: "off", 254: "error"}), 254, None),
        (Signal("S", 0, 8, maximum=100, labels={7: "off", 254: "error"}), 253, "out of range"),
        (Signal("S", 0, 8, is_signed=True, minimum=0, labels={-1: "off"}), 255, None),
        (Signal("S", 0, 8, linear=Linear(0.1), minimum=0.3), 3, None),
        (Signal("S", 0, 8, linear=Linear(0.1), minimum=0.3), 2, "out of range"),
        (Signal("S", 0, 8, linear=Linear(-0.1), minimum=-0.3), 3, None),
        (Signal("S", 0, 8, linear=Linear(-0.1), minimum=-0.3), 4, "out of range"),
        (Signal("S", 0, 8, minimum=0.3), 0, "out of range"),
        (Signal("S", 0, 8, minimum=0.3), 1, None),
        (Signal("S", 0, 8, maximum=0.7), 1, "out of range"),
        (Signal("S", 0, 8, maximum=0.7), 0, None),
        (Signal("S", 0, 8, minimum=100, maximum=0), 50, "out of range"),
        (Signal("S", 0, 8, maximum=float("nan")), 50, None),
    ],
)
def test_a_range_bounds_what_has_no_label(signal, raw, flaw):
    value, found = decode(signal, bytes([raw, 0, 0, 0, 0, 0, 0, 0]))
    assert (value is not None, found and found.reason) == (True, flaw)


@pytest.mark.parametrize(
    ("signal", "raw", "expected"),
    [
        (Signal("S", 0, 8, error_from=0xFE, absent_from=0xFF), 0xFD, (0xFD, None)),
        (Signal("S", 0, 8, error_from=0xFE, absent_from=0xFF), 0xFE, (None, ("bad", "error indicator"))),
        (Signal("S", 0, 8, error_from=0xFE, absent_from=0xFF), 0xFF, (None, ("bad", "not available"))),
        (Signal("S", 0, 8, absent_from=0xFF, labels={255: "none"}), 0xFF, (None, ("bad", "not available"))),
        (Signal("S", 0, 2, absent_from=4), 3, (3, None)),
        (Signal("S", 0, 8, error_from=0xFE), 0xFF, (None, ("bad", "error indicator"))),
        (Signal("S", 0, 8, is_signed=True, absent_from=0xFF), 0xFF, (None, ("bad", "not available"))),
        (Signal("S", 0, 8, is_signed=True, absent_from=0xFF), 0xFE, (-2, None)),
        (Signal("S", 6, 2, error_from=2, absent_from=3), 0x80, (None, ("bad", "error indicator"))),
        (Signal("S", 0, 8, maximum=5, error_from=0xFE), 6, (6, ("uncertain", "out of range"))),
        (Signal("S", 0, 8, linear=Linear(1e307)), 18, (None, ("bad", "not available"))),
        (Signal("S", 0, 8, linear=Linear(1e307, 0.5)), 18, (None, ("bad", "not available"))),
    ],
)
def test_bits_that_are_no_value_are_none(signal, raw, expected):
    assert decode(signal, bytes([raw, 0, 0, 0, 0, 0, 0, 0])) == expected


def test_zero_has_no_sign_whatever_the_factor():
    assert repr(decode(Signal("S", 0, 8, linear=Linear(-0.5)), bytes(8))[0]) == "0.0"


def test_a_float_may_have_labels_a_scale_and_a_range():
    signal = Signal(
        "S", 0, 32, is_float=True, linear=Linear(0.5, 1), minimum=0, maximum=2, labels={1: "one", 9: "nine"}
    )
    for raw, expected in [
        (1.0, (1.5, None)),
        (9.0, (5.5, None)),
        (8.0, (5.0, ("uncertain", "out of range"))),
        (float("nan"), (None, ("bad", "not available"))),
        (float("-inf"), (None, ("bad", "not available"))),
    ]:
        assert decode(signal, struct.pack("<f", raw) + bytes(4)) == expected


def test_a_frame_has_raw_values_too():
    signals = [
        Signal("A", 0, 8, is_signed=True, linear=Linear(0.1), absent_from=0xFF),
        Signal("B", 8, 32, is_float=True, linear=Linear(2)),
        Signal("C", 40, 16),
    ]
    decoder = BranchDecoder(message(*signals), signals)
    assert decoder.raw(b"\xff" + struct.pack("<f", 1.5) + b"\1\2\3") == (-1, 1.5, 0x201)
    assert decoder.raw(b"\xff" + struct.pack("<f", 1.5) + b"\1") == (-1, 1.5, None)
    assert decoder.raw(b"") == (None, None, None)


def test_a_signal_that_ends_behind_its_message_is_never_there():
    signal = Signal("S", 4, 8)
    assert decode(signal, b"\xff\xff", length=1) == (None, ("bad", "missing in a short frame"))
    encoder = FrameEncoder(message(signal, length=1))
    with pytest.raises(ConversionError):
        encoder.set("S", 1)
    assert encoder.frame() == b"\0"


def test_a_message_may_have_no_bytes_and_no_signals():
    assert BranchDecoder(message(length=0), []).decode(b"") == ((), {})
    assert MessageDecoder(message(length=0)).select(b"\1") == ()
    assert FrameEncoder(message(length=0)).frame() == b""


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


def carried(layout, data, wanted=None):
    """The names of the signals in each branch that a frame carries."""
    decoder = MessageDecoder(layout, wanted)
    found = [[signal.name for signal in decoder.branches[index].signals] for index in decoder.select(data)]
    assert found == [
        [signal.name for signal in branch.signals] for branch in decoder.branches if branch.is_present(data)
    ]
    return found


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        (1, [["Selector", "Always"], ["InOne"]]),
        (3, [["Selector", "Always"], ["InTwo"]]),
        (9, [["Selector", "Always"]]),
    ],
)
def test_a_frame_carries_the_common_signals_and_the_branch_that_it_names(selector, names):
    assert carried(MULTIPLEXED, bytes([selector, 5, 6, 7, 0, 0, 0, 0])) == names
    assert carried(MULTIPLEXED, bytes([selector, 5, 6, 7, 0, 0, 0, 0, 9, 9])) == names


def test_only_branches_of_which_a_signal_is_wanted_are_selected():
    _, always, in_one, _ = MULTIPLEXED.signals
    assert carried(MULTIPLEXED, b"\x01" + bytes(7), [in_one]) == [["InOne"]]
    assert carried(MULTIPLEXED, b"\x02" + bytes(7), {in_one}) == []
    assert carried(MULTIPLEXED, b"\x02" + bytes(7), [always]) == [["Always"]]
    assert carried(MULTIPLEXED, bytes(8), ()) == []


def test_a_selector_that_is_not_wholly_there_names_no_branch():
    layout = message(
        Signal("Sel", 8, 12), Signal("C", 0, 8), Signal("B", 0, 8, condition=(("Sel", frozenset({0})),))
    )
    assert carried(layout, bytes(3)) == [["Sel", "C"], ["B"]]
    assert carried(layout, bytes(2)) == [["Sel", "C"]]
    assert carried(layout, b"") == [["Sel", "C"]]


@pytest.mark.parametrize(
    ("selector", "value", "data"),
    [
        (Signal("Sel", 0, 8, linear=Linear(0.1, -40)), 3, b"\x03"),
        (Signal("Sel", 0, 8, is_signed=True), -2, b"\xfe"),
        (Signal("Sel", 0, 8, is_signed=True), 254, b"\xfe"),
        (Signal("Sel", 4, 4, is_signed=True), -2, b"\xe0"),
        (Signal("Sel", 3, 8, is_little_endian=False, is_signed=True), -2, b"\x0f\xe0"),
        (Signal("Sel", 0, 16, is_float=True), 2, struct.pack("<e", 2)),
        (Signal("Sel", 0, 32, is_float=True, linear=Linear(0.5)), 0, struct.pack("<f", -0.0)),
    ],
)
def test_selectors_are_compared_by_their_raw_value(selector, value, data):
    layout = message(selector, Signal("B", 32, 8, condition=(("Sel", frozenset({value})),)))
    assert carried(layout, data.ljust(8, b"\0")) == [["Sel"], ["B"]]
    assert carried(layout, b"\x55" * 8) == [["Sel"]]
    # An encoder says the same of itself, the negative zero apart.
    frame = FrameEncoder(layout).frame(layout.signals[1].condition)
    assert carried(layout, frame) == [["Sel"], ["B"]]


def test_a_selector_cannot_say_what_does_not_fit_it():
    assert selector_bits(Signal("S", 0, 4), {-1, 3, 16}) == {3}
    assert selector_bits(Signal("S", 0, 4, is_signed=True), {-8, -9, 15, 16}) == {8, 15}
    assert selector_bits(Signal("S", 0, 16, is_float=True), {2049, 70000, 1}) == {0x3C00}
    layout = message(Signal("Sel", 0, 4), Signal("B", 8, 8, condition=(("Sel", frozenset({16})),)))
    encoder = FrameEncoder(layout)
    encoder.set("B", 5)
    assert encoder.frame(layout.signals[1].condition) == bytes(8)


NESTED = message(
    Signal("Outer", 0, 4),
    Signal("Inner", 4, 4, condition=(("Outer", frozenset({1})),)),
    Signal("Deep", 8, 8, condition=(("Outer", frozenset({1})), ("Inner", frozenset({2})))),
    Signal("Other", 16, 4),
    Signal("Beside", 24, 8, condition=(("Other", frozenset(range(3, 6))),)),
    Signal("Overlapping", 32, 8, condition=(("Other", frozenset({4})),)),
)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("2100000000000000", ["Inner", "Deep"]),
        ("1100000000000000", ["Inner"]),
        ("2000000000000000", []),
        ("2000030000000000", ["Beside"]),
        ("2000040000000000", ["Beside", "Overlapping"]),
        ("2100040000000000", ["Inner", "Deep", "Beside", "Overlapping"]),
        ("2100f50000000000", ["Inner", "Deep", "Beside"]),
        ("21", ["Inner", "Deep"]),
    ],
)
def test_selectors_stand_in_one_another_and_side_by_side(data, names):
    common, *others = carried(NESTED, bytes.fromhex(data))
    assert common == ["Outer", "Other"]
    assert [name for branch in others for name in branch] == names


def test_branches_are_selected_in_the_order_of_the_message():
    one, other = (("One", frozenset({0})),), (("Other", frozenset({0, 1})),)
    nested = (*other, ("Deep", frozenset({0})))
    layout = message(
        Signal("One", 0, 8), Signal("Other", 8, 8), Signal("Deep", 16, 8, condition=other),
        Signal("A", 24, 8, condition=one), Signal("B", 32, 8, condition=nested),
        Signal("C", 40, 8, condition=(("Other", frozenset({0})),)),
    )  # fmt: skip
    assert carried(layout, bytes(8)) == [["One", "Other"], ["Deep"], ["A"], ["B"], ["C"]]


def test_an_encoder_sets_all_selectors_of_a_branch_and_leaves_the_others():
    encoder = FrameEncoder(NESTED)
    encoder.set("Deep", 0x77)
    encoder.set("Other", 4)
    encoder.set("Beside", 0x55)
    encoder.set("Overlapping", 0x66)
    deep = NESTED.signals[2].condition
    assert encoder.frame(deep) == bytes.fromhex("2177045566000000")
    assert encoder.frame() == bytes.fromhex("0000045566000000")
    assert encoder.frame(NESTED.signals[4].condition) == bytes.fromhex("0000045566000000")
    encoder.set("Other", 0)
    assert encoder.frame(NESTED.signals[4].condition) == bytes.fromhex("0000035500000000")


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


def test_bits_of_no_signal_have_the_fill_of_the_message():
    layout = Message(
        "M", 1, True, 4, [Signal("A", 4, 8), Signal("B", 19, 6, is_little_endian=False)], fill=0xFF
    )
    assert FrameEncoder(layout).frame() == bytes.fromhex("0ff0f03f")


def test_bits_of_absent_branches_are_filled():
    layout = Message("M", 1, True, 8, MULTIPLEXED.signals, fill=0xFF)
    encoder = FrameEncoder(layout)
    encoder.set("InTwo", 0)
    assert encoder.frame(layout.signals[2].condition) == bytes.fromhex("010000ffffffffff")
    assert encoder.frame(layout.signals[3].condition) == bytes.fromhex("02000000ffffffff")
    assert encoder.frame() == bytes.fromhex("0000ffffffffffff")


def test_a_label_means_its_raw_value():
    layout = message(
        Signal("A", 0, 8, is_signed=True, linear=Linear(0.5), labels={-3: "off", 4: "on", 300: "far"}),
        Signal("F", 32, 32, is_float=True, labels={2: "two"}),
    )
    encoder = FrameEncoder(layout)
    assert encoder.set("A", "off")
    assert encoder.set("F", "two")
    assert encoder.frame() == b"\xfd\0\0\0" + struct.pack("<f", 2)
    for name in ("far", "unknown", ""):
        with pytest.raises(ConversionError):
            encoder.set("A", name)


def test_signals_that_share_bits_are_never_mixed():
    layout = message(
        Signal("Whole", 0, 16), Signal("Low", 0, 8), Signal("Back", 3, 8, is_little_endian=False)
    )
    encoder = FrameEncoder(layout)
    assert encoder.set("Whole", 0xFFFF)
    assert encoder.set("Low", 0x12)
    assert encoder.frame()[:2] == b"\x12\xff"
    assert encoder.set("Back", 0xA5)
    assert encoder.frame()[:2] == b"\x1a\x5f"
    assert not encoder.set("Back", 0xA5)
    assert encoder.set("Whole", 0xFFFF)
    assert not encoder.set("Whole", 0xFFFF)
    assert encoder.frame()[:2] == b"\xff\xff"


def test_signals_of_different_branches_do_not_touch_each_other():
    encoder = FrameEncoder(MULTIPLEXED)
    assert encoder.set("InOne", 1)
    assert encoder.set("InTwo", 2)
    assert not encoder.set("InOne", 1)
    assert not encoder.set("InTwo", 2)


def test_a_start_value_that_its_signal_cannot_hold_is_zero():
    layout = message(
        Signal("A", 0, 8, raw_initial=float("nan")), Signal("F", 16, 16, is_float=True, raw_initial=1e9)
    )
    assert FrameEncoder(layout).frame() == bytes(8)


def test_a_signal_that_the_message_has_not_is_a_mistake():
    with pytest.raises(KeyError):
        FrameEncoder(message()).set("S", 1)


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
        (Signal("S", 0, 8), float("-inf")),
        (Signal("S", 0, 8), 10**400),
        (Signal("S", 0, 8, linear=Linear(1e-300)), 1e300),
        (Signal("S", 0, 32, is_float=True), float("nan")),
        (Signal("S", 0, 64, is_float=True), float("inf")),
        (Signal("S", 0, 64, is_float=True, linear=Linear(0.5)), 1.7e308),
        (Signal("S", 0, 64, is_float=True), 10**400),
        (Signal("S", 0, 16, is_float=True), 65520.0),
        (Signal("S", 0, 8, error_from=0xFE, absent_from=0xFF), 0xFE),
        (Signal("S", 0, 8, absent_from=0xFF), 0xFF),
        (Signal("S", 0, 8, absent_from=0xFF, labels={255: "none"}), "none"),
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
    condition = ((evil.name, frozenset({5})),)
    layout = message(evil, Signal("')", 8, 8, unit="')", condition=condition, maximum=1, labels={1: "')"}))
    assert carried(layout, b"\x05" + bytes(7)) == [[evil.name], ["')"]]
