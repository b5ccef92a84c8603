"""The codec against the definition of what it decodes, over layouts and frames that nobody would draw."""

import math

import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.canbus.codec import BranchDecoder, FrameEncoder, MessageDecoder
from fieldbus.canbus.layout import Message, Signal

FRAMES = st.binary(max_size=80) | st.binary(max_size=2000) | st.sampled_from([b"", b"\0" * 64, b"\xff" * 64])
SMALL_FRAMES = st.lists(st.integers(0, 7) | st.integers(0, 255), max_size=70).map(bytes)


def same(one, other):
    """Whether two values are the same to the last bit, of one type."""
    return repr(one) == repr(other)


@settings(max_examples=examples(250), deadline=None)
@given(layout=oracle.layouts(), frame=FRAMES)
def test_values_reasons_and_raw_values_are_those_of_the_definition(layout, frame):
    decoder = BranchDecoder(layout, layout.signals)
    values, flaws = decoder.decode(frame)
    raw = decoder.raw(frame)
    for index, signal in enumerate(layout.signals):
        value, reason = oracle.value_of(signal, frame, layout.length)
        flaw = flaws.get(index)
        assert same(values[index], value)
        assert (flaw and flaw.reason) == reason
        assert (value is None) == (flaw is not None and flaw.quality == "bad")
        assert same(raw[index], oracle.raw_of(signal, frame, layout.length))


@settings(max_examples=examples(100), deadline=None)
@given(layout=oracle.layouts(), frame=FRAMES, data=st.data())
def test_some_of_the_signals_have_the_values_that_they_have_among_all(layout, frame, data):
    chosen = data.draw(st.lists(st.sampled_from(layout.signals), unique=True))
    values, flaws = BranchDecoder(layout, chosen).decode(frame)
    for index, signal in enumerate(chosen):
        value, reason = oracle.value_of(signal, frame, layout.length)
        assert same(values[index], value)
        assert (flaws[index].reason if index in flaws else None) == reason


@settings(max_examples=examples(200), deadline=None)
@given(layout=oracle.layouts(), frame=SMALL_FRAMES, data=st.data())
def test_a_frame_carries_the_branches_that_its_selectors_name(layout, frame, data):
    wanted = data.draw(st.none() | st.sets(st.sampled_from(layout.signals)))
    decoder = MessageDecoder(layout, wanted)
    present = [oracle.is_met(layout, branch.condition, frame) for branch in decoder.branches]
    assert list(decoder.select(frame)) == [index for index, is_met in enumerate(present) if is_met]
    assert [branch.is_present(frame) for branch in decoder.branches] == present
    listed = [signal for branch in decoder.branches for signal in branch.signals]
    assert set(listed) == (set(layout.signals) if wanted is None else wanted)
    assert all(
        signal.condition == branch.condition for branch in decoder.branches for signal in branch.signals
    )


def engineering_values(signal):
    """Values that the signal holds exactly, as they come out of it."""
    if signal.is_float:
        return st.floats(width=signal.length, allow_nan=False, allow_infinity=False)
    forward = signal.linear.forward_int()
    return st.integers(*signal.raw_range).map(forward)


@settings(max_examples=examples(300), deadline=None)
@given(layout=oracle.layouts(may_overlap=False, is_plain=True), data=st.data())
def test_decoding_undoes_encoding(layout, data):
    encoder = FrameEncoder(layout)
    names = {name for signal in layout.signals for name, _ in signal.condition}
    values = {
        signal.name: data.draw(engineering_values(signal))
        for signal in layout.signals
        if signal.name not in names
    }
    for name in data.draw(st.permutations(sorted(values))):
        encoder.set(name, values[name])
        assert not encoder.set(name, values[name])
    decoder = MessageDecoder(layout)
    for branch in decoder.branches:
        frame = encoder.frame(branch.condition)
        assert len(frame) == layout.length
        present = [decoder.branches[index] for index in decoder.select(frame)]
        if all(can_say(layout, step) for step in branch.condition):
            assert branch in present
        background = bytearray(frame)
        for carried in present:
            decoded, flaws = carried.decode(frame)
            assert not flaws
            for signal, value in zip(carried.signals, decoded, strict=True):
                assert same(value, values.get(signal.name, value))
                oracle.put(background, signal, (1 << signal.length) - 1 if layout.fill else 0)
        assert background == bytes([layout.fill]) * layout.length


def can_say(layout, step):
    """Whether a selector has bits for one of the values of a branch."""
    name, values = step
    (selector,) = (signal for signal in layout.signals if signal.name == name)
    low, high = selector.raw_range
    if selector.is_float:
        return True
    return any(low <= value <= high or low <= value < 1 << selector.length for value in values)


@settings(max_examples=examples(200), deadline=None)
@given(layout=oracle.layouts(is_plain=True, may_multiplex=False), data=st.data())
def test_of_signals_that_share_bits_the_last_that_was_set_has_them(layout, data):
    layout = Message(
        "M", 1, False, layout.length,
        [signal for signal in layout.signals if signal.bytes_needed <= layout.length], fill=layout.fill,
    )  # fmt: skip
    encoder = FrameEncoder(layout)
    bits = dict.fromkeys(layout.signals, 0)
    for signal in data.draw(st.lists(st.sampled_from(layout.signals or [None]), max_size=12)):
        if signal is not None:
            value = data.draw(engineering_values(signal))
            before = encoder.frame()
            is_changed = encoder.set(signal.name, value)
            assert is_changed or encoder.frame() == before
            del bits[signal]
            bits[signal] = signal.to_raw(value)
    expected = bytearray([layout.fill]) * layout.length
    for signal, found in bits.items():
        oracle.put(expected, signal, found)
    assert encoder.frame() == expected


@settings(deadline=None)
@given(
    frame=st.binary(max_size=1800),
    start=st.integers(0, 1785 * 8 - 1),
    bits=st.integers(1, 64),
    little=st.booleans(),
)
def test_signals_are_found_in_long_transport_messages(frame, start, bits, little):
    signal = Signal("S", start, bits, little)
    layout = Message("M", 1, True, 1785, [signal])
    values, _ = BranchDecoder(layout, [signal]).decode(frame)
    assert values[0] == oracle.bits_of(signal, frame, 1785)


def test_the_oracle_knows_the_bit_numbers_of_the_books():
    assert oracle.bit_numbers(Signal("S", 0, 4)) == [3, 2, 1, 0]
    assert oracle.bit_numbers(Signal("S", 3, 8, is_little_endian=False)) == [3, 2, 1, 0, 15, 14, 13, 12]
    assert math.isnan(oracle.raw_of(Signal("S", 0, 16, is_float=True), b"\xff\xff", 2))
