"""Checksums and alive counters of messages: tested on frames that come in, made on frames that we send.

Rules:

* A frame with a wrong checksum is not a value: all points of its message are bad, `bad checksum`. It is
  no sign of life either and puts off no deadline, because nothing tells who sent it. It leaves the counter
  as it was.
* A counter that stands still shows that the sender's program does, however well its controller repeats the
  last frame: from the frame on that is the `stuck_after`th with the same counter, all points are bad,
  `stuck counter`, until it moves. By default that is the first repetition. This is no sign of life either.
* A counter that jumps has lost frames on the way: they are counted, and the frame is a value, because the
  deadline sees a sender that is missing. Only end-to-end protection with a `max_delta` refuses it.
* A counter at or beyond its modulo is none: `wrong counter`.
* A frame too short for what is to be tested is `missing in a short frame`; bytes behind the message's
  length are nobody's.
* The first frame after `reset` has nothing to be compared with and is believed for its checksum.
* What we send counts on over resets: receivers that remember the last counter must not see it again.

Design: what is in a frame (`_Signals` by the database's signals, `e2e.EndToEnd` by a standard's header) is
a function of its bytes; what a counter means over time is here, once for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from operator import xor
from typing import Protocol

from fieldbus.canbus.e2e import CRC_MODELS, Check, DataIdMode, EndToEnd, Field, crc_of, make_crc
from fieldbus.canbus.layout import Message, Signal
from fieldbus.model import Reason

LONGEST_SEQUENCE = 256
"""What the kernel's broadcast manager takes at once."""
WRONG_COUNTER = "wrong counter"

CRC_NAMES = {
    "crc8-j1850": "Crc8SaeJ1850",
    "crc8-autosar": "Crc8Autosar",
    "crc16-ccitt": "Crc16Ibm3740",
    "crc32-autosar": "Crc32Autosar",
    "crc32": "Crc32IsoHdlc",
}
"""Short names; the one of 16 bits starts with 0xFFFF."""
SUM_NAMES = ("xor", "sum", "sum-inverted")
CAR_MAKERS = {"toyota": 8, "honda": 4, "hyundai-canfd": 16}
"""Algorithms with rules of their own, and their bits."""

_HYUNDAI_XOR_OUT = {8: 0x5F29, 16: 0x041D, 24: 0x819D, 32: 0x9F5B}
"""By the bytes of the message."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """Where a message has its checksum, and over what."""

    signal: str
    algorithm: str = ""
    """A key of `CRC_NAMES`, `CAR_MAKERS` or `e2e.CRC_MODELS`, or one of `SUM_NAMES`."""
    initial: int | None = None
    """What it starts with; default: the algorithm's."""
    xor_out: int | None = None
    """What the result is combined with; default: the algorithm's."""
    over: tuple[int, int] | None = None
    """First and last byte; default: all. The checksum's own bits never count."""
    prefix: bytes = b""
    """Goes in before the data …"""
    suffix: bytes = b""
    """… and behind."""
    includes_id: bool = False
    """Whether the identifier goes in between data and suffix, low byte first, 2 bytes or, of 29 bits, 4."""
    polynomial: int | None = None
    """Of a CRC that has no name, without its highest bit; as wide as the signal."""
    is_reflected: bool = False
    """Of such a CRC: whether bytes go in with their lowest bit first, and the result comes out so."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Where a message counts its frames."""

    signal: str
    step: int = 1
    modulo: int | None = None
    """How many values it has; default: all that its bits can hold."""
    max_lost: int | None = None
    """More frames missing than this are counted as a jump; default: none is."""
    stuck_after: int = 2
    """How many frames with the same value are a stuck counter, at least 2."""


@dataclass(frozen=True, slots=True)
class E2E:
    """How a message is protected by AUTOSAR; see `e2e.EndToEnd`."""

    profile: str
    data_id: int = 0
    data_id_list: bytes = b""
    mode: DataIdMode = DataIdMode.BOTH
    offset: int = 0
    length: int | None = None
    """Protected bytes; default: the message's."""
    max_delta: int | None = None
    """A counter that moved further is refused; default: lost frames are only counted."""
    stuck_after: int = 2
    """How many frames with the same value are a stuck counter, at least 2."""


class Status(StrEnum):
    """What a frame is, seen from the one before."""

    OK = "ok"
    REPEATED = "repeated"
    WRONG_SEQUENCE = "wrong sequence"
    IMPOSSIBLE = "impossible counter"
    ERROR = "error"
    SHORT = "short"


class _Seal(Protocol):
    """What is in a frame."""

    length: int
    counters: int
    """How many values the counter has; 0 where there is none."""
    step: int

    @property
    def fields(self) -> Sequence[Field]: ...

    def is_intact(self, data: bytes) -> bool: ...

    def counter(self, data: bytes) -> int: ...

    def seal(self, data: bytes, counter: int) -> bytes: ...


class Protection:
    """Tests the frames of one message, or makes them; keeps the counter."""

    def __init__(
        self,
        message: Message,
        checksum: Checksum | None = None,
        counter: Counter | None = None,
        e2e: E2E | None = None,
    ) -> None:
        """Prepare for a message.

        Raises:
            ValueError: the message cannot be protected so, and why.
        """
        self._seal: _Seal
        if e2e is not None:
            self._seal = _end_to_end(message, e2e)
            self._stuck_after = e2e.stuck_after
            self._max_lost = None if e2e.max_delta is None else e2e.max_delta - 1
        else:
            self._seal = _Signals(message, checksum, counter)
            self._stuck_after = 2 if counter is None else counter.stuck_after
            self._max_lost = None if counter is None else counter.max_lost
        self._refuses_jumps = e2e is not None
        self._name = message.name
        self._modulo, self._step = self._seal.counters, self._seal.step
        turn = self._modulo // math.gcd(self._step, self._modulo) if self._modulo else 1
        self._turn = turn
        self.period = turn if turn <= LONGEST_SEQUENCE else None
        """How many frames a turn of the counter has, 1 without counter; None if `sequence` refuses it."""
        self.owned = _overlapping(message, self._seal.fields)
        """Signals that hold what protects the message; nobody else may write them."""
        self._received: int | None = None
        self._expected: int | None = None
        self._equal = 1
        self._next = 0
        self._counts = dict.fromkeys(("bad_checksums", "short_frames", "repeated", "lost", "jumps"), 0)

    @property
    def counters(self) -> Mapping[str, int]:
        """What was found in frames since start."""
        return self._counts

    def check(self, data: bytes) -> str | None:
        """Return why a frame that came in is not to be believed, as a reason; None if it is."""
        status = self.judge(data)
        if status is Status.OK:
            return None
        if status is Status.REPEATED:
            return Reason.STUCK_COUNTER if self._equal >= self._stuck_after else None
        if status is Status.WRONG_SEQUENCE:
            return WRONG_COUNTER if self._refuses_jumps else None
        return _REASONS[status]

    def judge(self, data: bytes) -> Status:
        """Return what a frame that came in is, and remember its counter."""
        seal = self._seal
        if len(data) < seal.length:
            self._counts["short_frames"] += 1
            return Status.SHORT
        if not seal.is_intact(data):
            self._counts["bad_checksums"] += 1
            return Status.ERROR
        if not self._modulo:
            return Status.OK
        counter = seal.counter(data)
        if counter == self._expected:
            self._remember(counter)
            return Status.OK
        return self._compare(counter)

    def _remember(self, counter: int) -> None:
        self._received, self._equal = counter, 1
        self._expected = (counter + self._step) % self._modulo

    def _compare(self, counter: int) -> Status:
        last = self._received
        if counter >= self._modulo:
            self._counts["jumps"] += 1
            return Status.IMPOSSIBLE
        if counter == last:
            self._counts["repeated"] += 1
            self._equal += 1
            return Status.REPEATED
        self._remember(counter)
        if last is None:
            return Status.OK
        lost = self._lost_between(last, counter)
        if lost is not None:
            self._counts["lost"] += lost
        if lost is None or (self._max_lost is not None and lost > self._max_lost):
            self._counts["jumps"] += 1
            return Status.WRONG_SEQUENCE
        return Status.OK

    def _lost_between(self, last: int, counter: int) -> int | None:
        """Return how many frames are missing; None if counting from the one never gives the other."""
        divisor = self._modulo // self._turn
        steps, rest = divmod((counter - last) % self._modulo, divisor)
        if rest:
            return None
        return steps * pow(self._step // divisor, -1, self._turn) % self._turn - 1

    def reset(self) -> None:
        """Forget the frames that came in."""
        self._received = self._expected = None
        self._equal = 1

    def advance(self, frames: int) -> None:
        """Count frames that were sent for us: what is protected next goes on behind them."""
        if self._modulo:
            self._next = (self._next + frames * self._step) % self._modulo

    def protect(self, data: bytes) -> bytes:
        """Return a frame to send, with the next counter and the checksum.

        Raises:
            ValueError: it is shorter than the message.
        """
        sealed = self._seal.seal(data, self._next)
        if self._modulo:
            self._next = (self._next + self._step) % self._modulo
        return sealed

    def sequence(self, data: bytes) -> list[bytes]:
        """Return the frames of a whole turn of the counter, to be sent round and round.

        They begin with the counter that is next, and it stays the next: so the frames of a later call have
        the same counters at the same places, and replace these ones without a jump.

        Raises:
            ValueError: the counter is too long, or the frame shorter than the message.
        """
        if self.period is None:
            raise ValueError(f"counter too long for {self._name}: {self._turn} frames")
        step = self._step
        return [
            self._seal.seal(data, (self._next + index * step) % self._modulo if self._modulo else 0)
            for index in range(self.period)
        ]


_REASONS = {
    Status.ERROR: Reason.BAD_CHECKSUM,
    Status.SHORT: Reason.SHORT_FRAME,
    Status.IMPOSSIBLE: WRONG_COUNTER,
}


def _end_to_end(message: Message, e2e: E2E) -> EndToEnd:
    length = message.length if e2e.length is None else e2e.length
    if length > message.length:
        raise ValueError(f"{message.name} has {message.length} bytes, not {length}")
    try:
        return EndToEnd(
            e2e.profile,
            length,
            data_id=e2e.data_id,
            data_id_list=e2e.data_id_list,
            mode=e2e.mode,
            offset=e2e.offset,
        )
    except ValueError as error:
        raise ValueError(f"{message.name}: {error}") from None


class _Signals:
    """Checksum and counter in signals of the database."""

    def __init__(self, message: Message, checksum: Checksum | None, counter: Counter | None) -> None:
        self.length = 0
        self.counters, self.step = 0, 1
        self._counter_field: Field | None = None
        self._checksum_field: Field | None = None
        if counter is not None:
            field = _field_of(message, counter.signal)
            values = field.mask + 1
            self.counters, self.step = counter.modulo or values, counter.step
            if not 2 <= self.counters <= values:
                raise ValueError(f"{message.name}.{counter.signal} cannot count modulo {self.counters}")
            if self.step % self.counters == 0:
                raise ValueError(f"{message.name}.{counter.signal} does not move by {self.step}")
            self._counter_field = field
            self.length = field.last + 1
        if checksum is not None:
            field = _field_of(message, checksum.signal)
            first, last = checksum.over or (0, message.length - 1)
            if not 0 <= first <= last < message.length:
                raise ValueError(f"{message.name} has no bytes {first}-{last}")
            self._compute = _algorithm(message, checksum, field)
            self._checksum_field = field
            if self._counter_field is not None and _overlap(field, self._counter_field):
                raise ValueError(f"{message.name}: checksum and counter have bits in common")
            self._first, self._stop = first, last + 1
            self._own_mask = 0 if field.last > field.first else field.mask << field.shift
            self.length = max(self.length, last + 1, field.last + 1)
            self._before, self._behind = checksum.prefix, checksum.suffix
            if checksum.includes_id:
                self._behind = _id_bytes(message, checksum) + self._behind

    @property
    def fields(self) -> Sequence[Field]:
        return [field for field in (self._checksum_field, self._counter_field) if field is not None]

    def counter(self, data: bytes) -> int:
        return 0 if self._counter_field is None else self._counter_field.get(data)

    def is_intact(self, data: bytes) -> bool:
        field = self._checksum_field
        return field is None or field.get(data) == self._checksum_of(data, field)

    def seal(self, data: bytes, counter: int) -> bytes:
        if len(data) < self.length:
            raise ValueError(f"{len(data)} bytes, {self.length} are protected")
        frame = bytearray(data)
        if self._counter_field is not None:
            self._counter_field.put(frame, counter)
        if self._checksum_field is not None:
            self._checksum_field.put(frame, self._checksum_of(bytes(frame), self._checksum_field))
        return bytes(frame)

    def _checksum_of(self, data: bytes, own: Field) -> int:
        first, stop = self._first, self._stop
        middle = b""
        if self._own_mask not in (0, 0xFF) and first <= own.first < stop:
            # The other half of the byte is data.
            middle = bytes((data[own.first] & ~self._own_mask,))
        return self._compute(
            self._before
            + data[first : min(own.first, stop)]
            + middle
            + data[max(own.last + 1, first) : stop]
            + self._behind
        )


def _algorithm(message: Message, checksum: Checksum, field: Field) -> Check:
    """Return the function of the bytes that go in; refuse a signal that cannot hold the result."""
    name = checksum.algorithm
    bits = field.mask.bit_length()
    model = CRC_NAMES.get(name, name)
    if name in CAR_MAKERS:
        is_plain = checksum.initial is checksum.xor_out is None and not checksum.includes_id
        if not is_plain or checksum.over or checksum.prefix or checksum.suffix:
            raise ValueError(f"{message.name}: {name} takes nothing but `signal`")
        widths = {CAR_MAKERS[name]}
    elif name in SUM_NAMES:
        widths = {8} if name == "xor" else {8, 16, 32}
    elif checksum.polynomial is not None:
        name, widths = "a polynomial", {4, 8, 16, 24, 32}
    elif model in CRC_MODELS:
        widths = {int(CRC_MODELS[model].width())}
    else:
        raise ValueError(f"{message.name}: there is no checksum {name!r}")
    place = f"{message.name}.{checksum.signal}"
    if bits not in widths:
        needed = " or ".join(map(str, sorted(widths)))
        raise ValueError(f"{place} has {bits} bits, a checksum by {name} has {needed}")
    if bits == 4:
        is_aligned = field.first == field.last and field.shift in (0, 4)
    else:
        is_aligned = field.shift == 0 and bits == 8 * (field.last + 1 - field.first)
    if not is_aligned:
        raise ValueError(f"{place} does not begin at a byte, or with 4 bits at half of one")
    initial, xor_out = checksum.initial, checksum.xor_out
    if max(initial or 0, xor_out or 0) > field.mask:
        raise ValueError(f"{place}: `initial` and `xor_out` have at most {bits} bits")
    if name in CAR_MAKERS:
        return _car_maker(message, checksum)
    if name in SUM_NAMES:
        return _sum(name, field.mask, initial or 0, xor_out or 0)
    if checksum.polynomial is not None:
        if not 0 < checksum.polynomial <= field.mask:
            raise ValueError(
                f"{place}: polynomial 0x{checksum.polynomial:X} does not fit {bits} bits; "
                "its highest bit is not written"
            )
        is_reflected = checksum.is_reflected
        return crc_of(bits, checksum.polynomial, initial or 0, xor_out or 0, is_reflected=is_reflected)
    return make_crc(model, initial, xor_out)


def _sum(name: str, mask: int, initial: int, xor_out: int) -> Check:
    if name == "xor":
        return lambda data: reduce(xor, data, initial) ^ xor_out
    if name == "sum":
        return lambda data: (sum(data) + initial) & mask ^ xor_out
    return lambda data: -(sum(data) + initial) & mask ^ xor_out


def _car_maker(message: Message, checksum: Checksum) -> Check:
    """Return an algorithm as opendbc has it."""
    identifier = _id_bytes(message, checksum)
    if checksum.algorithm == "toyota":
        return _sum("sum", 0xFF, message.length + sum(identifier), 0)
    if checksum.algorithm == "honda":
        start = (11 if message.is_extended else 8) - _nibbles(identifier)
        return lambda data: (start - _nibbles(data)) & 0xF
    if message.length not in _HYUNDAI_XOR_OUT:
        raise ValueError(f"{message.name}: hyundai-canfd is known for 8, 16, 24 and 32 bytes")
    crc = make_crc("Crc16Xmodem", xor_out=_HYUNDAI_XOR_OUT[message.length])
    return lambda data: crc(data + identifier[:2])


def _nibbles(data: bytes) -> int:
    return sum((byte >> 4) + (byte & 0xF) for byte in data)


def _id_bytes(message: Message, checksum: Checksum) -> bytes:
    if message.is_j1939:
        raise ValueError(f"{message.name}: {checksum.algorithm} needs an identifier that is always the same")
    return message.frame_id.to_bytes(4 if message.is_extended else 2, "little")


def _field_of(message: Message, name: str) -> Field:
    found = next((signal for signal in message.signals if signal.name == name), None)
    if found is None:
        raise ValueError(f"{message.name} has no signal {name}")
    if found.condition or found.is_float:
        raise ValueError(f"{message.name}.{name} is not in every frame, or not an integer")
    field = _place(found)
    if field.last >= message.length:
        raise ValueError(f"{message.name}.{name} is beyond the message's {message.length} bytes")
    return field


def _place(signal: Signal) -> Field:
    mask = (1 << signal.length) - 1
    if signal.is_little_endian:
        return Field(signal.start // 8, signal.bytes_needed - 1, "little", signal.start % 8, mask)
    first, last = signal.first_bit // 8, signal.bytes_needed - 1
    return Field(first, last, "big", (last + 1) * 8 - signal.first_bit - signal.length, mask)


def _overlap(one: Field, other: Field) -> bool:
    bits = one.bits()
    return any(bits.get(index, 0) & mask for index, mask in other.bits().items())


def _overlapping(message: Message, fields: Sequence[Field]) -> frozenset[str]:
    places = {signal.name: _place(signal) for signal in message.signals}
    return frozenset(name for name, place in places.items() if any(_overlap(place, ours) for ours in fields))
