"""Frames as a client sees them: what to send for a request, and its answer out of what came. Sans-IO.

Layouts::

    MBAP    transaction id (2), protocol id 0 (2), length (2), unit id, PDU
    RTU     unit id, PDU, CRC-16 (low byte first)
    ASCII   ``:``, then in hex digits unit id, PDU, LRC, then CR LF

Rules:

* What `feed` returns is the PDU of a whole frame from the right unit that answers the request under way:
  right transaction (MBAP), right checksum (RTU, ASCII), right function and size or an exception for that
  function (RTU, ASCII, which have nothing else to tell an answer by).
* MBAP: a stream that once showed a wrong protocol id, an absurd length, a wrong unit or an unknown
  transaction cannot be trusted any more: `fault` says what was wrong, and the connection is to be opened
  anew. An answer to one of the last requests is late, not wrong, and passed over.
* RTU and ASCII: noise before, between and behind frames is passed over; a frame behind noise is not lost.
  Frames of other units and of other functions and sizes are passed over too: they are late, or another
  master's.
* Nothing is kept beyond `_MOST` bytes, however much comes.

Design: the answer to a read is known but for its data, so an `Ask` carries the head and the size that its
answer must have, and a good answer is recognised by comparing a prefix.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from fieldbus.modbus import pdu
from fieldbus.modbus.checksum import crc16, lrc

_LATE_REPLIES = 64
"""How many requests ago an answer may belong to, to count as late and not as wrong."""
_MOST = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A request, and what its answer must look like."""

    unit_id: int
    pdu: bytes
    head: bytes = field(init=False)
    """What the PDU of a good answer begins with."""
    size: int = field(init=False)
    """How long the PDU of a good answer is."""

    def __post_init__(self) -> None:
        head, size = pdu.answer_shape(self.pdu)
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "size", size)

    @property
    def shape(self) -> tuple[int, int]:
        """What tells its answer from others where there is no transaction id: function and size."""
        return self.pdu[0], self.size


class Framer(Protocol):
    """One way of framing. Made anew for each connection."""

    fault: str | None
    """Why nothing more that comes on this connection can be believed."""
    has_transactions: bool
    """Whether a late answer can be told from the one that is waited for."""
    late_from: int | None
    """The unit of the last late answer that was passed over, until it is set to None."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing came that belongs to no answer yet."""
        ...

    def wrap(self, ask: Ask) -> bytes:
        """Return the frame of a request, whose answer is waited for from now on."""
        ...

    def feed(self, data: bytes) -> bytes | None:
        """Take what came; return the answer's PDU if it is whole."""
        ...

    def clear(self) -> None:
        """Forget what came so far."""


class MbapFramer:
    """Frames of Modbus TCP."""

    def __init__(self, *, takes_zero: bool = False, takes_any_unit: bool = False) -> None:
        """Take what a device is known to do wrong.

        Args:
            takes_zero: whether an answer with transaction id 0 is taken.
            takes_any_unit: whether an answer from another unit id is taken.
        """
        self.fault: str | None = None
        self.has_transactions = not takes_zero
        self.late_from: int | None = None
        self._takes_zero = takes_zero
        self._takes_any_unit = takes_any_unit
        self._buffer = b""
        self._issued: deque[int] = deque(maxlen=_LATE_REPLIES)
        self._transaction_id = 0
        self._unit_id = -1
        """Of the request under way; -1 if there is none."""
        self._expected = b""

    @property
    def is_empty(self) -> bool:
        """Whether no part of a frame is waiting for its rest."""
        return not self._buffer

    def wrap(self, ask: Ask) -> bytes:
        """Return the request with its header."""
        # Never 0: some devices answer everything with it, and then it would say nothing.
        transaction_id = self._transaction_id = self._transaction_id % 0xFFFF + 1
        self._issued.append(transaction_id)
        self._unit_id = ask.unit_id
        head = transaction_id.to_bytes(2, "big")
        unit = bytes((ask.unit_id,))
        self._expected = head + b"\0\0" + (ask.size + 1).to_bytes(2, "big") + unit + ask.head
        return head + b"\0\0" + (len(ask.pdu) + 1).to_bytes(2, "big") + unit + ask.pdu

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes of the stream."""
        expected = self._expected
        if (
            not self._buffer
            and self._unit_id >= 0
            and data.startswith(expected)
            and len(data) == 6 + (expected[4] << 8 | expected[5])
        ):
            self._unit_id = -1
            return data[7:]
        return self._cut(data)

    def clear(self) -> None:
        """Forget the rest of a frame."""
        self._buffer = b""

    def _cut(self, data: bytes) -> bytes | None:
        buffer = self._buffer + data if self._buffer else data
        used, size = 0, len(buffer)
        answer: bytes | None = None
        while size - used >= 4 and self.fault is None:
            protocol_id = buffer[used + 2] << 8 | buffer[used + 3]
            if protocol_id:
                self.fault = f"protocol id {protocol_id}"
                break
            if size - used < 6:
                break
            length = buffer[used + 4] << 8 | buffer[used + 5]
            if not 3 <= length <= 254:
                self.fault = f"length {length}"
                break
            transaction_id = buffer[used] << 8 | buffer[used + 1]
            if transaction_id == 0 and self._takes_zero:
                transaction_id = self._transaction_id
            is_awaited = transaction_id == self._transaction_id and self._unit_id >= 0
            if transaction_id not in self._issued:
                self.fault = f"transaction id {transaction_id} for {self._transaction_id}"
                break
            if is_awaited and length > max(3, self._expected[4] << 8 | self._expected[5]):
                self.fault = f"length {length}"  # no answer to the request is so long: it is not waited for
                break
            end = used + 6 + length
            if end > size:
                break
            if not is_awaited:
                self.late_from = buffer[used + 6]
            elif buffer[used + 6] == self._unit_id or self._takes_any_unit:
                answer = buffer[used + 7 : end]
                self._unit_id = -1
            else:
                self.fault = f"unit id {buffer[used + 6]} for {self._unit_id}"
            used = end
        self._buffer = b"" if self.fault is not None else buffer[used:]
        return answer


class _LineFramer:
    """What RTU and ASCII have in common: an answer is told by unit, function and size alone."""

    has_transactions = False

    def __init__(self, *, takes_any_unit: bool = False, has_echo: bool = False) -> None:
        """Take what a line is known to do.

        Args:
            takes_any_unit: whether an answer from another unit id is taken.
            has_echo: whether what we send comes back to us first.
        """
        self.fault: str | None = None
        self.late_from: int | None = None
        self._takes_any_unit = takes_any_unit
        self._has_echo = has_echo
        self._echo = b""
        self._buffer = b""
        self._ask: Ask | None = None

    @property
    def is_empty(self) -> bool:
        return not self._buffer

    def clear(self) -> None:
        self._buffer = b""

    def wrap(self, ask: Ask) -> bytes:
        frame = self._frame(ask)
        self._ask = ask
        self._buffer = b""
        self._echo = frame if self._has_echo else b""
        return frame

    def feed(self, data: bytes) -> bytes | None:
        self._buffer += data
        ask = self._ask
        if ask is None:
            self._buffer = self._buffer[-_MOST:]
            return None
        if self._echo:
            place = self._buffer.find(self._echo)
            if place < 0:
                self._buffer = self._buffer[-_MOST:]
                return None
            self._buffer = self._buffer[place + len(self._echo) :]
            self._echo = b""
        answer = self._search(ask)
        if answer is not None:
            self._ask = None
        return answer

    def _frame(self, ask: Ask) -> bytes:
        raise NotImplementedError

    def _search(self, ask: Ask) -> bytes | None:
        raise NotImplementedError


class RtuFramer(_LineFramer):
    """Frames of a serial line with binary transmission."""

    def _frame(self, ask: Ask) -> bytes:
        body = bytes((ask.unit_id,)) + ask.pdu
        return body + crc16(body).to_bytes(2, "little")

    def _search(self, ask: Ask) -> bytes | None:
        """Look for the answer at every place where it may begin; keep what may still become it."""
        buffer, head = self._buffer, ask.head
        function_code = head[0]
        size = len(buffer)
        keep: int | None = None
        # An answer begins with the unit id; where that may be anything, every place may be one.
        unit = bytes((ask.unit_id,))
        start = 0
        while True:
            place = start if self._takes_any_unit else buffer.find(unit, start)
            if not 0 <= place < size:
                break
            start = place + 1
            code = buffer[place + 1] if place + 1 < size else None
            if code is None:
                end = size + 1
            elif code == function_code:
                known = min(len(head), size - place - 1)
                if buffer[place + 1 : place + 1 + known] != head[:known]:
                    continue
                end = place + ask.size + 3
            elif code == function_code | 0x80:
                end = place + 5
            else:
                continue
            if end > size:
                keep = place if keep is None else keep
                continue
            frame = buffer[place:end]
            if crc16(frame) == 0:
                self._buffer = buffer[end:]
                return frame[1:-2]
        self._buffer = b"" if keep is None else buffer[keep:]
        return None


class AsciiFramer(_LineFramer):
    """Frames of a serial line in hex digits."""

    def _frame(self, ask: Ask) -> bytes:
        body = bytes((ask.unit_id,)) + ask.pdu
        return b":" + (body + bytes((lrc(body),))).hex().upper().encode() + b"\r\n"

    def _search(self, ask: Ask) -> bytes | None:
        buffer, start = self._buffer, 0
        while True:
            begin = buffer.find(b":", start)
            if begin < 0:
                self._buffer = b""
                return None
            end = buffer.find(b"\r\n", begin)
            if end < 0:
                begin = buffer.rfind(b":")  # a colon begins a frame, whatever came before it
                self._buffer = buffer[begin:] if len(buffer) - begin <= _MOST else b""
                return None
            begin = buffer.rfind(b":", begin, end)
            start = end + 2
            answer = self._answer(ask, buffer[begin + 1 : end])
            if answer is not None:
                self._buffer = buffer[start:]
                return answer

    def _answer(self, ask: Ask, digits: bytes) -> bytes | None:
        if len(digits) % 2 or not digits.isalnum():
            return None
        try:
            body = bytes.fromhex(digits.decode("ascii"))
        except (UnicodeDecodeError, ValueError):
            return None
        if len(body) < 3 or sum(body) & 0xFF:
            return None
        if body[0] != ask.unit_id and not self._takes_any_unit:
            return None
        answer = body[1:-1]
        is_good = answer.startswith(ask.head) and len(answer) == ask.size
        is_exception = len(answer) == 2 and answer[0] == ask.pdu[0] | 0x80
        return answer if is_good or is_exception else None
