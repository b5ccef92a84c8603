"""What a frame says, bit by bit, from the definition of bit numbers in DBC files and nothing else.

Bit n of a frame is the bit n % 8 of byte n // 8, counted from the least significant. A little-endian
signal starts at its least significant bit and goes on to the next higher number. A big-endian signal
starts at its most significant bit and goes on to the next lower number in its byte, from bit 0 of a
byte to bit 7 of the next. Slow on purpose: every number here is made of single bits and fractions.
"""

import math
import struct
from fractions import Fraction

from hypothesis import strategies as st

from fieldbus.canbus.layout import Message, Signal
from fieldbus.scaling import Linear

LARGEST = Fraction(1.7976931348623157e308)


def bit_numbers(signal):
    """Return the bit numbers of a signal, most significant first."""
    numbers = [signal.start]
    while len(numbers) < signal.length:
        last = numbers[-1]
        if signal.is_little_endian:
            numbers.append(last + 1)
        else:
            numbers.append(last + 15 if last % 8 == 0 else last - 1)
    return numbers[::-1] if signal.is_little_endian else numbers


def bits_of(signal, data, length):
    """Return the unsigned integer of a signal's bits, or None if one of them is not there."""
    found = 0
    for number in bit_numbers(signal):
        if number // 8 >= min(len(data), length):
            return None
        found = found * 2 + (data[number // 8] // 2 ** (number % 8)) % 2
    return found


def raw_of(signal, data, length):
    """Return the raw value, or None if it is missing."""
    bits = bits_of(signal, data, length)
    if bits is None:
        return None
    if signal.is_float:
        form = {16: ">e", 32: ">f", 64: ">d"}[signal.length]
        return struct.unpack(form, bytes(bits // 256**i % 256 for i in reversed(range(signal.length // 8))))[
            0
        ]
    if signal.is_signed and bits >= 2 ** (signal.length - 1):
        return bits - 2**signal.length
    return bits


def exact(number):
    """Return the decimal that is written in a database."""
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


def value_of(signal, data, length):
    """Return the value and why it is not good."""
    bits, raw = bits_of(signal, data, length), raw_of(signal, data, length)
    if bits is None:
        return None, "missing in a short frame"
    if signal.absent_from is not None and bits >= signal.absent_from:
        return None, "not available"
    if signal.error_from is not None and bits >= signal.error_from:
        return None, "error indicator"
    scale, offset = signal.linear.scale, signal.linear.offset
    if signal.is_float:
        value = raw if (scale, offset) == (1, 0) else raw * float(scale) + float(offset)
        if not math.isfinite(value):
            return None, "not available"
        true = Fraction(value)
    else:
        true = raw * exact(scale) + exact(offset)
        if abs(true) > LARGEST:
            return None, "not available"
        whole = exact(scale).denominator == exact(offset).denominator == 1
        value = int(true) if whole else float(true)
    low, high = (
        None if bound in (math.inf, -math.inf) else bound for bound in (signal.minimum, signal.maximum)
    )
    if low == high == 0 or raw in signal.labels:
        return value, None
    if (low is not None and true < exact(low)) or (high is not None and true > exact(high)):
        return value, "out of range"
    return value, None


def is_met(message, condition, data):
    """Return whether the selectors of a condition have one of its values."""
    by_name = {signal.name: signal for signal in message.signals}
    for name, values in condition:
        selector = by_name[name]
        bits = bits_of(selector, data, message.length)
        if bits is None:
            return False
        if raw_of(selector, data, message.length) not in values and not (
            selector.is_signed and not selector.is_float and bits in values
        ):
            return False
    return True


def put(data, signal, bits):
    """Write the bits of a signal, given as an unsigned integer, into a bytearray."""
    for number in reversed(bit_numbers(signal)):
        byte, bit = divmod(number, 8)
        data[byte] = data[byte] // 2 ** (bit + 1) * 2 ** (bit + 1) + bits % 2 * 2**bit + data[byte] % 2**bit
        bits //= 2


# --- layouts that nobody would draw

INTEGER_SCALES = st.sampled_from([1, 1, 1, 2, 5, -1, -3, 4.0, 1000])
DECIMAL_SCALES = st.sampled_from([0.1, 0.05, 0.4, 0.125, 0.5, -0.5, -0.1, 0.01, 1e-7, 2.5, 1.1])
EXTREME_SCALES = st.sampled_from([1e308, 10**307, 1e-300, 1e-320])
SCALES = INTEGER_SCALES | DECIMAL_SCALES | EXTREME_SCALES
PLAIN_OFFSETS = st.sampled_from([0, 0, 0, -40, -125, 7, 0.5, -0.1, -273.15])
OFFSETS = PLAIN_OFFSETS | st.sampled_from([10**9, -1e300])
BOUNDS = st.none() | st.sampled_from([0, 0, 0.0, 1, -1, 0.3, -12.5, 100, 8031.875, 1e9, 10**30, math.inf])
LENGTHS = st.sampled_from([1, 2, 3, 4, 8, 8, 12, 16, 16, 32, 64]) | st.integers(1, 64)
FRAME_LENGTHS = st.sampled_from([1, 2, 7, 8, 8, 8, 12, 20, 64])


@st.composite
def signals(draw, name, length, *, is_plain=False):
    """A signal anywhere in a frame; it may end behind it."""
    is_float = draw(st.integers(0, 5)) == 0
    bits = draw(st.sampled_from([16, 32, 64])) if is_float else draw(LENGTHS)
    start = draw(st.integers(0, length * 8 - 1))
    if draw(st.booleans()):
        start = start // 8 * 8 + 7 * (not draw(st.booleans()))
    is_little = draw(st.booleans())
    is_signed = draw(st.booleans())
    if is_plain:
        # Floating point tells the neighbours of 32 bits from each other, those of 64 it cannot.
        is_scaled = bits <= 32 and not is_float
        linear = Linear(draw(INTEGER_SCALES | DECIMAL_SCALES), draw(PLAIN_OFFSETS)) if is_scaled else Linear()
        return Signal(name, start, bits, is_little, is_signed, is_float, linear)
    near_the_top = st.integers(0, min(3, 2**bits)).map(lambda below: 2**bits - below)
    indicators = sorted(draw(st.lists(near_the_top | st.integers(0, 2**bits), max_size=2)))
    return Signal(
        name, start, bits, is_little, is_signed, is_float,
        linear=Linear(draw(SCALES), draw(OFFSETS)),
        minimum=draw(BOUNDS),
        maximum=draw(BOUNDS),
        labels=draw(st.dictionaries(st.integers(-3, 255), st.sampled_from(["on", "off"]), max_size=3)),
        error_from=indicators[0] if indicators and draw(st.booleans()) else None,
        absent_from=indicators[-1] if indicators else None,
    )  # fmt: skip


def _fits(signal, length):
    return all(number < length * 8 for number in bit_numbers(signal))


@st.composite
def layouts(draw, *, may_overlap=True, is_plain=False, may_multiplex=True, max_signals=10):
    """A message; its signals overlap and end behind it only if they may."""
    length = draw(FRAME_LENGTHS)
    found, taken = [], set()
    for index in range(draw(st.integers(1, max_signals))):
        signal = draw(signals(f"S{index}", length, is_plain=is_plain))
        numbers = set(bit_numbers(signal))
        if may_overlap or (_fits(signal, length) and not numbers & taken):
            found.append(signal)
            taken |= numbers
    if may_multiplex and draw(st.booleans()):
        found = draw(_multiplexed(found))
    return Message("M", 1, False, length, found, fill=draw(st.sampled_from([0, 0xFF])))


@st.composite
def _multiplexed(draw, found):
    """Conditions, plain, nested, ranged, overlapping, side by side: on the signals before, each time."""
    made, selectors = [], []
    for signal in found:
        condition = ()
        if selectors and draw(st.integers(0, 3)):
            selector = draw(st.sampled_from(selectors))
            low, high = selector.raw_range
            first = draw(st.integers(max(low, -4), min(high, 6)))
            values = draw(
                st.just(frozenset(range(first, first + draw(st.integers(1, 4)))))
                | st.frozensets(st.integers(-2, 300), min_size=1, max_size=4)
            )
            condition = (*selector.condition, (selector.name, values))
        made.append(
            Signal(
                signal.name, signal.start, signal.length, signal.is_little_endian, signal.is_signed,
                signal.is_float, signal.linear, signal.minimum, signal.maximum,
                labels=signal.labels, condition=condition,
                error_from=signal.error_from, absent_from=signal.absent_from,
            )
        )  # fmt: skip
        if len(selectors) < 3:
            selectors.append(made[-1])
    return made
