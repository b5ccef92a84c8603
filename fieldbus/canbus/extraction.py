"""How raw values are taken out of the bytes of a frame: signals in, Python expressions out.

Rules:

* Only the bytes that a wanted signal touches are read, wherever they are in the frame: a signal at the
  end of 1785 bytes costs what it costs at their beginning.
* A frame that is too short for any of the signals raises one of `SHORT`, and nothing else does.
* The text consists of integers and of names made here. Names from a database never come near it.

Layout: the bytes are read as *pieces*, integers of 1, 2, 4 or 8 bytes, by one precompiled `struct`.
Bytes that one signal joins become one piece; a signal that fills a piece of its own is read by `struct`
as what it is, signed or a float; every other one is shifted and masked out of its pieces.

Design: a call of `struct` costs about as much as five operations on integers, and each of those more
than the arithmetic in it. Where a frame has signals of both byte orders there are therefore three
ways: one `struct` of either order, whose pieces for signals of the other order are single bytes, or
one of each. The cheapest by count is taken.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fieldbus.canbus.layout import FLOATS, Signal

SHORT = (struct.error, IndexError)
"""What reading a frame that is too short raises."""

_SIZES = (8, 4, 2, 1)
_CODES = {8: "B", 16: "H", 32: "I", 64: "Q"}
_FLOAT_CODES = {16: "e", 32: "f", 64: "d"}
_CALL_COST, _FLOAT_COST = 4, 8


class Extraction(NamedTuple):
    """The Python text that takes signals out of ``data``."""

    statements: Sequence[str]
    """They read the pieces."""
    raw: Sequence[str]
    """For each signal the expression of its raw value: an integer, or what the bits of a float say."""
    bits: Sequence[str]
    """For each signal the expression of its bits as an unsigned integer; empty where `raw` reads them."""
    scope: dict[str, object]
    """What the text refers to by name."""
    cost: float
    """In operations on integers, about 20 ns each."""


class _Piece(NamedTuple):
    name: str
    offset: int
    size: int
    is_little_endian: bool

    def bit_of(self, byte: int) -> int:
        """Return the bit of the piece that is the lowest of a byte of the frame."""
        return 8 * (byte - self.offset if self.is_little_endian else self.offset + self.size - 1 - byte)


def extraction(signals: Sequence[Signal], *, as_bits: bool = False) -> Extraction:
    """Return how `signals` are taken out of a frame.

    Args:
        signals: all of them within the frame.
        as_bits: signed signals and floats are wanted as unsigned integers too, as are all with indicators.
    """
    spans = [_span(signal) for signal in signals]
    orders = {signal.is_little_endian for signal, span in zip(signals, spans, strict=True) if len(span) > 1}
    if len(orders) < 2:
        return _one_order(signals, spans, all(orders), "p", as_bits)
    ways = [
        _one_order(signals, spans, True, "p", as_bits),
        _one_order(signals, spans, False, "p", as_bits),
        _both_orders(signals, spans, as_bits),
    ]
    return min(ways, key=lambda way: way.cost)


def _span(signal: Signal) -> range:
    first = (signal.start if signal.is_little_endian else signal.first_bit) // 8
    return range(first, signal.bytes_needed)


def _segments(signal: Signal) -> Iterator[tuple[int, int, int]]:
    """Yield what each byte holds of a signal, least significant first: byte, its lowest bit, bits."""
    left = signal.length
    # Counted towards the more significant: upwards from the start, or back from the other end.
    at = signal.start if signal.is_little_endian else signal.first_bit + signal.length - 1
    while left:
        byte, bit = divmod(at, 8)
        low = bit if signal.is_little_endian else 7 - bit
        width = min(8 - low, left)
        yield byte, low, width
        at += width if signal.is_little_endian else -width
        left -= width


def _both_orders(signals: Sequence[Signal], spans: Sequence[range], as_bits: bool) -> Extraction:
    raw, bits = [""] * len(signals), [""] * len(signals)
    statements: list[str] = []
    scope: dict[str, object] = {}
    cost = 0.0
    for is_little, name in ((True, "p"), (False, "q")):
        chosen = [
            index
            for index, signal in enumerate(signals)
            if (signal.is_little_endian or len(spans[index]) == 1) is is_little
        ]
        part = _one_order(
            [signals[index] for index in chosen], [spans[index] for index in chosen], is_little, name, as_bits
        )
        for index, raw_text, bits_text in zip(chosen, part.raw, part.bits, strict=True):
            raw[index], bits[index] = raw_text, bits_text
        statements += part.statements
        scope |= part.scope
        cost += part.cost
    return Extraction(statements, raw, bits, scope, cost)


def _one_order(
    signals: Sequence[Signal], spans: Sequence[range], is_little: bool, name: str, as_bits: bool
) -> Extraction:
    pieces = _pieces(signals, spans, is_little, name)
    piece_of = {byte: piece for piece in pieces for byte in range(piece.offset, piece.offset + piece.size)}
    users = Counter(
        piece for span in spans for piece in dict.fromkeys(piece_of[byte] for byte in span)
    )  # fmt: skip
    codes = {piece: _CODES[8 * piece.size] for piece in pieces}
    raw, bits = [], []
    cost = 0.0
    for signal, span in zip(signals, spans, strict=True):
        text = _bits(signal, piece_of)
        cost += text.count(" ") / 2
        piece = piece_of[span[0]]
        needs_bits = as_bits or signal.indicator_from is not None
        is_plain = not signal.is_float and not signal.is_signed
        if text == piece.name and users[piece] == 1 and not needs_bits and not is_plain:
            codes[piece] = _FLOAT_CODES[signal.length] if signal.is_float else codes[piece].lower()
            raw.append(piece.name)
            bits.append("")
            continue
        bits.append(text)
        raw.append(raw_of_bits(signal, text))
        cost += _FLOAT_COST if signal.is_float else 2 * signal.is_signed
    scope: dict[str, object] = {f"unpack{length}": form.unpack for length, form in FLOATS.items()}
    statements: list[str] = []
    if len(pieces) <= 2 and all(codes[piece] == "B" for piece in pieces):
        statements = [f"{piece.name} = data[{piece.offset:d}]" for piece in pieces]
        cost += 2 * len(pieces)
    elif pieces:
        form, end = "<" if is_little else ">", 0
        for piece in pieces:
            form += f"{piece.offset - end:d}x{codes[piece]}"
            end = piece.offset + piece.size
        scope[f"read_{name}"] = struct.Struct(form).unpack_from
        statements = [f"{', '.join(piece.name for piece in pieces)}, = read_{name}(data)"]
        cost += _CALL_COST + len(pieces) / 2
    return Extraction(statements, raw, bits, scope, cost)


def raw_of_bits(signal: Signal, bits: str) -> str:
    """Return the expression of the raw value, given that of the bits."""
    if signal.is_float:
        return f"unpack{signal.length:d}(({bits}).to_bytes({signal.length // 8:d}, 'big'))[0]"
    if signal.is_signed:
        sign = 1 << signal.length - 1
        return f"((({bits}) ^ {sign:d}) - {sign:d})"
    return bits


def _pieces(signals: Sequence[Signal], spans: Sequence[range], is_little: bool, name: str) -> list[_Piece]:
    """Return the pieces in which the bytes of the signals are read, in their order."""
    single: set[int] = set()
    joined: set[int] = set()
    for signal, span in zip(signals, spans, strict=True):
        if len(span) > 1:
            if signal.is_little_endian is is_little:
                joined.update(span[1:])
            else:
                single.update(span)
    runs: list[list[int]] = []
    for byte in sorted({byte for span in spans for byte in span}):
        if byte in joined and not single & {byte - 1, byte}:
            runs[-1].append(byte)
        else:
            runs.append([byte])
    pieces: list[_Piece] = []
    for run in runs:
        offset, left = run[0], len(run)
        while left:
            size = next(size for size in _SIZES if size <= left)
            pieces.append(_Piece(f"{name}{len(pieces):d}", offset, size, is_little))
            offset, left = offset + size, left - size
    return pieces


def _bits(signal: Signal, piece_of: dict[int, _Piece]) -> str:
    """Return the expression of a signal's bits."""
    chunks: list[tuple[_Piece, int, int]] = []
    for byte, low, width in _segments(signal):
        piece = piece_of[byte]
        bit = piece.bit_of(byte) + low
        if chunks and chunks[-1][0] is piece and sum(chunks[-1][1:]) == bit:
            _, began, so_far = chunks.pop()
            chunks.append((piece, began, so_far + width))
        else:
            chunks.append((piece, bit, width))
    terms = []
    position = 0
    for piece, bit, width in chunks:
        terms.append(_term(piece, bit, width, position))
        position += width
    return " | ".join(terms)


def _term(piece: _Piece, bit: int, width: int, position: int) -> str:
    """Return the expression of `width` bits of a piece from `bit` on, moved to `position`."""
    mask = (1 << width) - 1
    is_to_the_top = bit + width == 8 * piece.size
    if position == 0:
        text = f"{piece.name} >> {bit:d}" if bit else piece.name
        return text if is_to_the_top else f"{text} & {mask:d}"
    text = piece.name if is_to_the_top and bit == 0 else f"({piece.name} & {mask << bit:d})"
    if position > bit:
        return f"{text} << {position - bit:d}"
    return f"{text} >> {bit - position:d}" if bit > position else text
