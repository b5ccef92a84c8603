"""What can happen to an answer on its way, seeded: none of it may become a wrong value.

Rules of the game (a mutation is fair only if a correct client can find it):

* MBAP: the frame has no checksum, since TCP has one. So what is altered is always something that a client can
  look at: header, function, byte count, size, order, number, time. Registers inside an otherwise right frame
  stay as they are. Where header, function or size are made wrong, the registers are inverted as well: whoever takes
  such a frame has a wrong value.
* RTU: CRC-16 with polynomial x^16 + x^15 + x^2 + 1 = (x + 1)(x^15 + x + 1) finds every odd number of wrong bits,
  any two of them up to 32767 bits apart, and every burst of at most 16 bits; so one to three bits anywhere and
  bursts of at most 16 bits are always fair. Bytes that are lost or come from nowhere make another frame, which
  has a right CRC once in 65536 times: nobody can find that, and `rtu_unfair` can tell.
* ASCII: the LRC is a sum; it finds one wrong character. A lost one leaves an odd number of digits.

Nothing in here knows fieldbus: frames are built here once more.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import accumulate
from typing import NamedTuple

BIG = 65536


class Kind(Enum):
    """What a mutation costs."""

    HARMLESS = "the right answer is there, and can be taken"
    WRONG = "the answer, or the next one, is lost, and the client can know at once"
    REFUSAL = "an exception, as if the device had said no"
    GONE = "the connection ends"
    WAITING = "only a timeout tells"

    @property
    def fails(self) -> bool:
        """Whether the request, or the next one, has no answer."""
        return self in (Kind.WRONG, Kind.GONE, Kind.WAITING)


FIN = "FIN"
RST = "RST"
MUTE = "MUTE"
"""From here on nothing comes on this connection. Behind a part of a frame anything else would be its registers."""


class Step(NamedTuple):
    """Bytes on their way, or the end of the connection."""

    wait_s: float
    """Before it."""
    what: bytes | str
    """Bytes, `FIN`, `RST` or `MUTE`."""


class Mutation(NamedTuple):
    """What becomes of an answer."""

    name: str
    kind: Kind
    steps: Sequence[Step]

    @property
    def stream(self) -> bytes:
        """All bytes."""
        return b"".join(step.what for step in self.steps if isinstance(step.what, bytes))


class Answer(NamedTuple):
    """A device's answer as it came, and what had been asked."""

    unit_id: int
    pdu: bytes
    asked: bytes
    """The PDU of the request."""
    frame: bytes
    timeout_s: float
    """The client's."""

    @property
    def transaction_id(self) -> int:
        """Of MBAP."""
        return self.frame[0] << 8 | self.frame[1]


Change = Callable[[Answer, random.Random], tuple[Kind, Sequence[Step]]]


def mbap(transaction_id: int, unit_id: int, pdu: bytes, protocol_id: int = 0, length: int = -1) -> bytes:
    """Return a frame of Modbus TCP, whose header may lie."""
    length = len(pdu) + 1 if length < 0 else length
    return struct.pack(">HHHB", transaction_id & 0xFFFF, protocol_id, length, unit_id) + pdu


def crc16(data: bytes) -> int:
    """Return the CRC of RTU, bit by bit as the specification draws it."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def rtu(unit_id: int, pdu: bytes) -> bytes:
    """Return a frame of a serial line."""
    body = bytes((unit_id,)) + pdu
    return body + struct.pack("<H", crc16(body))


def ascii_frame(unit_id: int, pdu: bytes) -> bytes:
    """Return a frame of a serial line in hex digits."""
    body = bytes((unit_id,)) + pdu
    return b":" + (body + bytes((-sum(body) & 0xFF,))).hex().upper().encode() + b"\r\n"


def tcp_unfair(stream: bytes, answer: Answer) -> bool:
    """Return whether a stream begins with a frame that is right but for the registers in it."""
    good = answer.frame
    return len(stream) >= len(good) and stream[:9] == good[:9] and stream[: len(good)] != good


def rtu_unfair(stream: bytes, answer: Answer) -> bool:
    """Return whether a stream has a frame with a right CRC that could be the answer and is not."""
    head, size = answer.frame[:3], len(answer.frame)
    place = stream.find(head)
    while place >= 0:
        frame = stream[place : place + size]
        if len(frame) == size and frame != answer.frame and crc16(frame) == 0:
            return True
        place = stream.find(head, place + 1)
    return False


@cache
def _noise_pool() -> bytes:
    return random.Random("noise").randbytes(4 * BIG)


def noise(rng: random.Random, size: int) -> bytes:
    """Return bytes that mean nothing."""
    start = rng.randrange(4 * BIG - size)
    return _noise_pool()[start : start + size]


def _amount(rng: random.Random) -> int:
    """Return how much noise: mostly a little, sometimes 64 KiB."""
    return BIG if rng.random() < 0.01 else rng.randrange(8, 300)


def _wrong(data: bytes) -> bytes:
    """Return a read's PDU with all its data bits inverted."""
    return data[:2] + bytes(byte ^ 0xFF for byte in data[2:])


def _once(kind: Kind, data: bytes) -> tuple[Kind, Sequence[Step]]:
    return kind, (Step(0.0, data),)


def _pieces(data: bytes, rng: random.Random, most: int, wait_s: float) -> Sequence[Step]:
    cuts = sorted(rng.sample(range(1, len(data)), rng.randint(1, min(most, len(data) - 1))))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [Step(wait_s if n else 0.0, part) for n, part in enumerate(parts)]


# --- MBAP -------------------------------------------------------------------------------------------


def _tid_wrong(a: Answer, rng: random.Random):
    # Not one of the last 64: an answer to an earlier request is late, not wrong.
    ahead = rng.choice((1, 2, 256, rng.randrange(1, 65536 - 70)))
    tid = 0 if rng.random() < 0.2 else a.transaction_id + ahead
    return _once(Kind.WRONG, mbap(tid, a.unit_id, _wrong(a.pdu)))


def _tid_earlier_first(a: Answer, rng: random.Random):
    # Harmless on a connection that is old enough to have had that transaction.
    tid = a.transaction_id - rng.randrange(1, 60)
    return _once(Kind.WRONG, mbap(tid, a.unit_id, _wrong(a.pdu)) + a.frame)


def _unit_wrong(a: Answer, rng: random.Random):
    unit_id = (a.unit_id + rng.randrange(1, 256)) % 256
    return _once(Kind.WRONG, mbap(a.transaction_id, unit_id, _wrong(a.pdu)))


def _function_wrong(a: Answer, rng: random.Random):
    own = a.pdu[0]
    code = rng.choice([code for code in (0, 1, 2, 3, 4, 5, 6, 15, 16, 23, rng.randrange(128)) if code != own])
    return _once(Kind.WRONG, mbap(a.transaction_id, a.unit_id, bytes((code,)) + _wrong(a.pdu)[1:]))


def _registers_fewer(a: Answer, rng: random.Random):
    left = rng.randrange(0, len(a.pdu) - 2) & ~1
    return _once(
        Kind.WRONG, mbap(a.transaction_id, a.unit_id, bytes((a.pdu[0], left)) + _wrong(a.pdu)[2 : 2 + left])
    )


def _registers_more(a: Answer, rng: random.Random):
    data = _wrong(a.pdu)[2:]
    more = 2 * rng.randrange(1, max(2, (251 - len(data)) // 2))
    data = (data + bytes(more))[:250] if len(data) < 250 else data[:-2]
    return _once(Kind.WRONG, mbap(a.transaction_id, a.unit_id, bytes((a.pdu[0], len(data))) + data))


def _count_odd(a: Answer, rng: random.Random):
    size = len(a.pdu) - 3
    return _once(
        Kind.WRONG, mbap(a.transaction_id, a.unit_id, bytes((a.pdu[0], size)) + _wrong(a.pdu)[2 : 2 + size])
    )


def _count_lies(a: Answer, rng: random.Random):
    said = (a.pdu[1] + rng.randrange(1, 256)) % 256
    return _once(Kind.WRONG, mbap(a.transaction_id, a.unit_id, bytes((a.pdu[0], said)) + _wrong(a.pdu)[2:]))


def _length_absurd(a: Answer, rng: random.Random):
    length = rng.choice((0, 1, 2, 255, 256, 1000, 32768, 65535, rng.randrange(255, 65536)))
    return _once(Kind.WRONG, mbap(a.transaction_id, a.unit_id, _wrong(a.pdu), length=length))


def _length_short(a: Answer, rng: random.Random):
    length = rng.randrange(3, len(a.pdu) + 1) if len(a.pdu) > 3 else 3
    return _once(Kind.WRONG, mbap(a.transaction_id, a.unit_id, _wrong(a.pdu), length=length))


def _length_long(a: Answer, rng: random.Random):
    more = rng.randrange(1, max(2, min(100, 254 - len(a.pdu))))
    length = len(a.pdu) + 1 + more
    return _once(
        Kind.WRONG,
        mbap(a.transaction_id, a.unit_id, _wrong(a.pdu) + noise(rng, more + 8), length=min(length, 254)),
    )


def _protocol(a: Answer, rng: random.Random):
    protocol_id = rng.choice((1, 1, 0x100, 0xFFFF, rng.randrange(1, 65536)))
    return _once(Kind.WRONG, mbap(a.transaction_id, a.unit_id, _wrong(a.pdu), protocol_id))


def _exception(a: Answer, rng: random.Random):
    return _once(
        Kind.REFUSAL, mbap(a.transaction_id, a.unit_id, bytes((a.pdu[0] | 0x80, rng.choice(_CODES))))
    )


def _exception_foreign(a: Answer, rng: random.Random):
    code = rng.choice([code for code in (0, 1, 2, 3, 4, 5, 6, 15, 16) if code != a.pdu[0]])
    return _once(
        Kind.WRONG, mbap(a.transaction_id, a.unit_id, bytes((code | 0x80, rng.choice((1, 2, 3, 4, 6, 10)))))
    )


def _exception_malformed(a: Answer, rng: random.Random):
    tail = rng.choice((b"", b"\x02\x00", b"\x02" + noise(rng, 9)))
    return _once(Kind.WRONG, mbap(a.transaction_id, a.unit_id, bytes((a.pdu[0] | 0x80,)) + tail))


def _duplicate(a: Answer, rng: random.Random):
    return _once(Kind.HARMLESS, a.frame * rng.randrange(2, 5))


def _duplicate_wrong(a: Answer, rng: random.Random):
    return _once(Kind.HARMLESS, a.frame + mbap(a.transaction_id, a.unit_id, _wrong(a.pdu)))


def _noise_before(a: Answer, rng: random.Random):
    return _once(Kind.WRONG, noise(rng, _amount(rng)) + a.frame)


def _noise_behind(a: Answer, rng: random.Random):
    return _once(Kind.WRONG, a.frame + noise(rng, _amount(rng)))


def _noise_instead(a: Answer, rng: random.Random):
    return _once(Kind.WRONG, noise(rng, _amount(rng)))


def _inserted(a: Answer, rng: random.Random):
    place = rng.randrange(0, 9)
    more = noise(rng, rng.randrange(1, 6))
    return _once(Kind.WRONG, a.frame[:place] + more + a.frame[place:] + noise(rng, 300))


def _deleted(a: Answer, rng: random.Random):
    # Farther behind, only a timeout tells that something is missing.
    place = rng.randrange(0, 6)
    return _once(Kind.WRONG, a.frame[:place] + a.frame[place + 1 :] + noise(rng, 300))


def _begun_twice(a: Answer, rng: random.Random):
    return _once(Kind.WRONG, a.frame[: rng.randrange(1, 8)] + a.frame + noise(rng, 300))


def _split(a: Answer, rng: random.Random):
    return Kind.HARMLESS, _pieces(a.frame, rng, 5, 0.0)


def _byte_by_byte(a: Answer, rng: random.Random):
    return Kind.HARMLESS, [Step(0.0, a.frame[n : n + 1]) for n in range(len(a.frame))]


def _end(a: Answer, rng: random.Random):
    place = rng.choice((0, len(a.frame), rng.randrange(len(a.frame))))
    # The client may have taken the answer; the connection is gone all the same.
    return Kind.GONE, (Step(0.0, a.frame[:place]), Step(0.0, rng.choice((FIN, RST))))


def _slowly(a: Answer, rng: random.Random):
    return Kind.HARMLESS, [Step(0.001, a.frame[n : n + 1]) for n in range(len(a.frame))]


def _a_byte_a_second(a: Answer, rng: random.Random):
    return Kind.WAITING, [Step(1.0, a.frame[n : n + 1]) for n in range(len(a.frame))]


def _truncated(a: Answer, rng: random.Random):
    return Kind.WAITING, (Step(0.0, a.frame[: rng.randrange(1, len(a.frame))]), Step(0.0, MUTE))


def _length_promises(a: Answer, rng: random.Random):
    length = min(254, len(a.pdu) + 1 + rng.choice((1, 2, rng.randrange(1, 200))))
    frame = mbap(a.transaction_id, a.unit_id, _wrong(a.pdu), length=length)
    return Kind.WAITING, (Step(0.0, frame), Step(0.0, MUTE))


def _silence(a: Answer, rng: random.Random):
    return Kind.WAITING, ()


def _late(a: Answer, rng: random.Random):
    return Kind.WAITING, (Step(a.timeout_s * rng.uniform(1.0, 2.5), a.frame),)


_CODES: Sequence[int] = range(256)

TCP: Mapping[str, tuple[int, Change]] = {
    "wrong transaction": (4, _tid_wrong),
    "an earlier transaction first": (2, _tid_earlier_first),
    "wrong unit": (4, _unit_wrong),
    "wrong function": (4, _function_wrong),
    "fewer registers": (4, _registers_fewer),
    "more registers": (4, _registers_more),
    "odd byte count": (3, _count_odd),
    "lying byte count": (4, _count_lies),
    "absurd length": (4, _length_absurd),
    "too short a length": (3, _length_short),
    "too long a length": (3, _length_long),
    "wrong protocol": (3, _protocol),
    "exception": (8, _exception),
    "another function's exception": (3, _exception_foreign),
    "malformed exception": (3, _exception_malformed),
    "duplicates": (8, _duplicate),
    "a wrong duplicate behind": (8, _duplicate_wrong),
    "noise before": (3, _noise_before),
    "noise behind": (3, _noise_behind),
    "noise instead": (3, _noise_instead),
    "bytes inserted": (4, _inserted),
    "a byte deleted": (4, _deleted),
    "begun twice": (3, _begun_twice),
    "in pieces": (12, _split),
    "byte by byte": (4, _byte_by_byte),
}
"""What needs no waiting."""
TCP_ENDS: Mapping[str, tuple[int, Change]] = {"the end in mid-answer": (4, _end)}
TCP_WAITING: Mapping[str, tuple[int, Change]] = {
    "slowly": (2, _slowly),
    "a byte a second": (1, _a_byte_a_second),
    "truncated": (2, _truncated),
    "a length that promises more": (1, _length_promises),
    "silence": (1, _silence),
    "late": (4, _late),
    "swapped": (2, _silence),
}
"""What takes time. `swapped` is held back by the proxy until the next answer has gone out."""


# --- RTU --------------------------------------------------------------------------------------------


def _bits(a: Answer, rng: random.Random):
    frame = bytearray(a.frame)
    for bit in rng.sample(range(len(frame) * 8), rng.randint(1, 3)):
        frame[bit >> 3] ^= 1 << (bit & 7)
    return _once(Kind.WRONG, bytes(frame))


def _burst(a: Answer, rng: random.Random):
    size = rng.randint(2, 16)
    start = rng.randrange(len(a.frame) * 8 - size)
    # In the order of the wire, bytes go least significant bit first.
    pattern = (1 | 1 << size - 1 | rng.getrandbits(size)) << start
    number = int.from_bytes(a.frame, "little") ^ pattern
    return _once(Kind.WRONG, number.to_bytes(len(a.frame), "little"))


def _bytes_dropped(a: Answer, rng: random.Random):
    size = rng.randrange(1, len(a.frame))
    start = rng.randrange(len(a.frame) - size + 1)
    return _once(Kind.WRONG, a.frame[:start] + a.frame[start + size :])


def _bytes_inserted(a: Answer, rng: random.Random):
    place = rng.randrange(1, len(a.frame))
    return _once(Kind.WRONG, a.frame[:place] + noise(rng, rng.randrange(1, 9)) + a.frame[place:])


def _rtu_noise_before(a: Answer, rng: random.Random):
    return _once(Kind.HARMLESS, noise(rng, rng.choice((1, 2, 3, _amount(rng)))) + a.frame)


def _rtu_noise_behind(a: Answer, rng: random.Random):
    return _once(Kind.HARMLESS, a.frame + noise(rng, rng.choice((1, 2, 3, _amount(rng)))))


def _foreign_frame(a: Answer, rng: random.Random) -> bytes:
    """Return a right frame that cannot be the answer: another unit's, function's or size's."""
    what = rng.randrange(3)
    if what == 0:
        return rtu((a.unit_id + rng.randrange(1, 247)) % 248, _wrong(a.pdu))
    if what == 1:
        return rtu(a.unit_id, bytes((a.pdu[0] ^ rng.choice((1, 2, 4, 7)),)) + _wrong(a.pdu)[1:])
    data = _wrong(a.pdu)[2:]
    data = data[:-2] if len(data) > 2 else data + data
    return rtu(a.unit_id, bytes((a.pdu[0], len(data))) + data)


def _foreign_instead(a: Answer, rng: random.Random):
    return _once(Kind.WRONG, _foreign_frame(a, rng))


def _foreign_first(a: Answer, rng: random.Random):
    return _once(Kind.HARMLESS, _foreign_frame(a, rng) + a.frame)


def _rtu_exception(a: Answer, rng: random.Random):
    return _once(Kind.REFUSAL, rtu(a.unit_id, bytes((a.pdu[0] | 0x80, rng.choice(_CODES)))))


def _rtu_exception_foreign(a: Answer, rng: random.Random):
    code = rng.choice([code for code in (0, 1, 2, 3, 4, 5, 6) if code != a.pdu[0]])
    return _once(Kind.WRONG, rtu(a.unit_id, bytes((code | 0x80, 2))))


def _rtu_pauses(a: Answer, rng: random.Random):
    return Kind.HARMLESS, _pieces(a.frame, rng, 3, rng.choice((0.0, 0.001, 0.005, 0.015)))


def _rtu_truncated(a: Answer, rng: random.Random):
    return _once(Kind.WRONG, a.frame[: rng.randrange(1, len(a.frame))])


def _rtu_cut(a: Answer, rng: random.Random):
    return Kind.HARMLESS, _pieces(a.frame, rng, 5, 0.0)


RTU: Mapping[str, tuple[int, Change]] = {
    "wrong bits": (12, _bits),
    "a burst of wrong bits": (10, _burst),
    "bytes dropped": (6, _bytes_dropped),
    "bytes inserted": (6, _bytes_inserted),
    "noise before": (8, _rtu_noise_before),
    "noise behind": (6, _rtu_noise_behind),
    "noise instead": (3, _noise_instead),
    "somebody else's frame": (5, _foreign_instead),
    "somebody else's frame first": (8, _foreign_first),
    "exception": (4, _rtu_exception),
    "another function's exception": (3, _rtu_exception_foreign),
    "truncated": (4, _rtu_truncated),
    "duplicates": (6, _duplicate),
    "in pieces": (8, _rtu_cut),
}
"""What needs no waiting but the silence that ends a frame."""
RTU_WAITING: Mapping[str, tuple[int, Change]] = {
    "in pieces with pauses": (4, _rtu_pauses),
    "silence": (1, _silence),
    "late": (3, _late),
}


# --- ASCII ------------------------------------------------------------------------------------------


def _character(a: Answer, rng: random.Random):
    place = rng.randrange(len(a.frame))
    other = rng.choice([c for c in b"0123456789ABCDEFGz:\r\n \x00\xff" if c != a.frame[place]])
    return _once(Kind.WRONG, a.frame[:place] + bytes((other,)) + a.frame[place + 1 :])


def _character_dropped(a: Answer, rng: random.Random):
    place = rng.randrange(len(a.frame))
    return _once(Kind.WRONG, a.frame[:place] + a.frame[place + 1 :])


def _ascii_noise_before(a: Answer, rng: random.Random):
    return _once(Kind.HARMLESS, noise(rng, rng.randrange(1, 300)) + a.frame)


def _ascii_foreign_first(a: Answer, rng: random.Random):
    unit_id = (a.unit_id + rng.randrange(1, 247)) % 248
    return _once(Kind.HARMLESS, ascii_frame(unit_id, _wrong(a.pdu)) + a.frame)


def _ascii_exception(a: Answer, rng: random.Random):
    return _once(Kind.REFUSAL, ascii_frame(a.unit_id, bytes((a.pdu[0] | 0x80, rng.choice(_CODES)))))


ASCII: Mapping[str, tuple[int, Change]] = {
    "a wrong character": (8, _character),
    "a character dropped": (6, _character_dropped),
    "noise before": (6, _ascii_noise_before),
    "noise instead": (3, _noise_instead),
    "somebody else's frame first": (6, _ascii_foreign_first),
    "exception": (4, _ascii_exception),
    "truncated": (4, _rtu_truncated),
    "duplicates": (6, _duplicate),
    "in pieces": (8, _rtu_cut),
}


class Choice:
    """A seeded choice of mutations."""

    def __init__(self, table: Mapping[str, tuple[int, Change]], rng: random.Random) -> None:
        self._names = list(table)
        self._changes = [change for _, change in table.values()]
        self._sums = list(accumulate(weight for weight, _ in table.values()))
        self._places = range(len(self._names))
        self._rng = rng

    def __call__(self, answer: Answer) -> Mutation:
        """Return what becomes of an answer."""
        rng = self._rng
        [place] = rng.choices(self._places, cum_weights=self._sums)
        kind, steps = self._changes[place](answer, rng)
        return Mutation(self._names[place], kind, steps)
