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
* MBAP: an exception response has two bytes, whatever its header says. So many more bytes as the header says
  may follow it, or not.
* RTU and ASCII: noise before, between and behind frames is passed over; a frame behind noise is not lost.
  Frames of other units and of other functions and sizes are passed over too: they are late, or another
  master's.
* RTU and ASCII: a request that comes back is our own echo (`echo.py`), and never its response. As long as it
  is not known whether the line echoes, a response that looks like its request is held back: what comes after
  it tells.
* Nothing is kept beyond `_MOST` bytes, however much comes.

Design: the answer to a read is known but for its data, so an `Ask` carries the head and the size that its
answer must have, and a good answer is recognised by comparing a prefix.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from fieldbus.modbus import other_functions, pdu
from fieldbus.modbus.checksum import crc16, lrc
from fieldbus.modbus.echo import LineEcho

_BEHIND_ID = struct.Struct(">HHB")
_LATE_REPLIES = 64
"""How many requests ago an answer may belong to, to count as late and not as wrong."""
_MOST = 1024
_WRITES = pdu.WRITING | {other_functions.WRITE_FILE_RECORD}
_MOST_SURPLUS = 16
"""A header that says more of an exception response is wrong, and nothing follows."""


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A request, and what its answer must look like."""

    unit_id: int
    pdu: bytes
    width: int = 16
    """How many bits of data an address of a register table has."""
    head: bytes = field(init=False)
    """What the PDU of a good answer begins with."""
    size: int = field(init=False)
    """How long the PDU of a good answer is, or is at most."""
    has_own_length: bool = field(init=False)
    """Whether a good answer says itself how long it is."""
    behind_id: tuple[bytes, bytes] = field(init=False, repr=False)
    """What follows an MBAP transaction id: of the request, and of a good answer as far as it is known."""

    def __post_init__(self) -> None:
        head, size = pdu.answer_shape(self.pdu, self.width)
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "has_own_length", other_functions.has_own_length(self.pdu[0]))
        request = _behind_id(self.unit_id, len(self.pdu)) + self.pdu
        object.__setattr__(self, "behind_id", (request, _behind_id(self.unit_id, size) + head))

    def is_answer(self, answer: bytes) -> bool:
        """Return whether a PDU is a good answer."""
        if self.has_own_length:
            return other_functions.is_whole(answer) and answer.startswith(self.head)
        return len(answer) == self.size and answer.startswith(self.head)

    @property
    def is_write(self) -> bool:
        """Whether it changes something in the device."""
        return self.pdu[0] in _WRITES

    @property
    def is_mirrored(self) -> bool:
        """Whether a good answer is the same as the request: FC 5, 6, 21 and 22."""
        return self.size == len(self.pdu) and self.pdu.startswith(self.head)

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

    @property
    def has_heard_itself(self) -> bool:
        """Whether nothing came but the echo of the request, or what may be it."""
        ...

    @property
    def holds_back(self) -> bool:
        """Whether something came that is the response, or else the echo of the request."""
        ...

    @property
    def others(self) -> bytes:
        """What came since the last request and is no part of its response."""
        ...

    @property
    def odd(self) -> bytes:
        """The PDU of the last whole frame that is no good answer to the write under way; empty if none."""
        ...

    def wrap(self, ask: Ask) -> bytes:
        """Return the frame of a request, whose answer is waited for from now on."""
        ...

    def feed(self, data: bytes) -> bytes | None:
        """Take what came; return the answer's PDU if it is whole."""
        ...

    def clear(self) -> None:
        """Forget what came so far."""


def _behind_id(unit_id: int, size: int) -> bytes:
    """Return the MBAP header of a PDU of this size, without the transaction id."""
    return _BEHIND_ID.pack(0, size + 1, unit_id)


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
        self._unit_id: int | None = None
        """Of the request under way; None if there is none."""
        self._expected = b""
        """What the frame of its answer begins with, if it is good."""
        self._size = 0
        """How long the frame of its answer is, or is at most."""
        self._surplus = 0
        """How many bytes may come between frames that belong to none."""

    @property
    def is_empty(self) -> bool:
        """Whether no part of a frame is waiting for its rest."""
        return not self._buffer

    @property
    def has_heard_itself(self) -> bool:
        """Never: a stream has no echo."""
        return False

    @property
    def holds_back(self) -> bool:
        """Never."""
        return False

    @property
    def others(self) -> bytes:
        """Nothing: what belongs to no request is a fault."""
        return b""

    @property
    def odd(self) -> bytes:
        """Nothing: on a stream a wrong answer is given to who asked."""
        return b""

    def wrap(self, ask: Ask) -> bytes:
        """Return the request with its header."""
        # Never 0: some devices answer everything with it, and then it would say nothing.
        transaction_id = self._transaction_id = self._transaction_id % 0xFFFF + 1
        self._issued.append(transaction_id)
        self._unit_id = ask.unit_id
        self._size = ask.size + 7
        number = transaction_id.to_bytes(2, "big")
        request, answer = ask.behind_id
        self._expected = number + answer
        return number + request

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes of the stream."""
        if self.fault is not None:
            return None
        if (
            not self._buffer
            and self._unit_id is not None
            and data.startswith(self._expected)
            and len(data) == self._size
        ):
            self._unit_id = None
            self._surplus = 0
            return data[7:]
        return self._cut(data)

    def clear(self) -> None:
        """Forget the rest of a frame."""
        self._buffer = b""

    def _cut(self, data: bytes) -> bytes | None:
        """Take whole frames out of what came; return the answer among them."""
        buffer = self._buffer + data if self._buffer else data
        answer: bytes | None = None
        begin = self._after_surplus(buffer, 0)
        while end := self._end_of_frame(buffer, begin):
            if self._is_awaited(buffer, begin):
                answer = buffer[begin + 7 : end]
                self._unit_id = None
            else:
                self.late_from = buffer[begin + 6]
            begin = self._after_surplus(buffer, end)
        self._buffer = b"" if self.fault is not None else buffer[begin:]
        return answer

    def _end_of_frame(self, buffer: bytes, begin: int) -> int:
        """Return where a frame ends, 0 if it is not whole; a frame that is none of ours is a fault."""
        size = len(buffer) - begin
        if size < 4:
            return 0
        protocol_id = buffer[begin + 2] << 8 | buffer[begin + 3]
        if protocol_id:
            return self._fail(f"protocol id {protocol_id}")
        if size < 6:
            return 0
        length = buffer[begin + 4] << 8 | buffer[begin + 5]
        is_awaited = self._is_awaited(buffer, begin)
        if is_awaited and size >= 9 and self._is_exception(buffer[begin + 6], buffer[begin + 7]):
            self._surplus = max(0, length - 3) if length <= _MOST_SURPLUS else 0
            return begin + 9
        if not 3 <= length <= 254:
            return self._fail(f"length {length}")
        transaction_id = self._transaction_at(buffer, begin)
        if transaction_id not in self._issued:
            return self._fail(f"transaction id {transaction_id} for {self._transaction_id}")
        if (
            is_awaited and 6 + length > self._size
        ):  # no answer to the request is so long: it is not waited for
            return self._fail(f"length {length}")
        if size < 6 + length:
            return 0
        if is_awaited and buffer[begin + 6] != self._unit_id and not self._takes_any_unit:
            return self._fail(f"unit id {buffer[begin + 6]} for {self._unit_id}")
        return begin + 6 + length

    def _fail(self, fault: str) -> int:
        self.fault = fault
        return 0

    def _transaction_at(self, buffer: bytes, begin: int) -> int:
        """Return the transaction id of a frame; where the device has none but 0, that of the last request."""
        transaction_id = buffer[begin] << 8 | buffer[begin + 1]
        return self._transaction_id if self._takes_zero and transaction_id == 0 else transaction_id

    def _is_awaited(self, buffer: bytes, begin: int) -> bool:
        """Return whether a frame has the transaction id of the request under way."""
        return self._unit_id is not None and self._transaction_at(buffer, begin) == self._transaction_id

    def _is_exception(self, unit_id: int, function_code: int) -> bool:
        """Return whether a response is an exception to the request under way."""
        is_ours = unit_id == self._unit_id or self._takes_any_unit
        return is_ours and function_code == self._expected[7] | 0x80

    def _after_surplus(self, buffer: bytes, begin: int) -> int:
        """Return where a frame may begin, after bytes that belong to none."""
        while self._surplus and begin < len(buffer):
            if self._unit_id is not None:  # what is asked is answered: is this it?
                head = buffer[begin : begin + 4]
                if len(head) < 4:
                    return begin
                if head[2:] == b"\0\0" and (head[0] << 8 | head[1]) in self._issued:
                    self._surplus = 0
                    return begin
            begin += 1
            self._surplus -= 1
        return begin


class _LineFramer:
    """What RTU and ASCII have in common: an answer is told by unit, function and size alone."""

    has_transactions = False

    def __init__(self, *, takes_any_unit: bool = False, echo: LineEcho | None = None) -> None:
        """Take what a line is known to do.

        Args:
            takes_any_unit: whether an answer from another unit id is taken.
            echo: what is known of the line's echo; without it, that there is none.
        """
        self.fault: str | None = None
        self.late_from: int | None = None
        self._takes_any_unit = takes_any_unit
        self._echo = LineEcho(said=False) if echo is None else echo
        self._sent = b""
        """The frame of the request under way."""
        self._is_mirrored = False
        """Whether the response looks as its request does."""
        self._is_after_echo = False
        self._holds_back = False
        self.odd = b""
        self._passed = b""
        """What came since the request was sent and is no part of its response."""
        self._buffer = b""
        self._ask: Ask | None = None

    @property
    def is_empty(self) -> bool:
        return not self._buffer

    def clear(self) -> None:
        self._buffer = b""

    @property
    def has_heard_itself(self) -> bool:
        return not self._buffer and (self._is_after_echo or self._holds_back)

    @property
    def holds_back(self) -> bool:
        return self._holds_back

    @property
    def others(self) -> bytes:
        return self._passed + self._buffer

    def wrap(self, ask: Ask) -> bytes:
        frame = self._sent = self._frame(ask)
        self._ask = ask
        self._buffer = self._passed = b""
        self._is_after_echo = self._holds_back = False
        self._is_mirrored = self._find(ask, frame)[0] is not None
        self.odd = b""
        return frame

    def feed(self, data: bytes) -> bytes | None:
        buffer = self._buffer + data
        ask = self._ask
        if ask is None:
            self._buffer = buffer[-_MOST:]
            return None
        echo = self._echo
        if not self._is_after_echo and (echo.is_heard or not self._is_mirrored):
            heard = self._passed + buffer
            place = heard.find(self._sent)
            if place >= 0 and (self._is_mirrored or self._find(ask, heard[:place])[0] is None):
                buffer, self._passed = heard[place + len(self._sent) :], b""
                self._is_after_echo = True
                if not self._is_mirrored:
                    echo.was_heard()
            elif echo.is_promised or self._is_mirrored:
                self._buffer = buffer[-_MOST:]
                return None
        return self._take(ask, buffer)

    def _take(self, ask: Ask, buffer: bytes) -> bytes | None:
        """Return the response out of what came; hold it back as long as it may be the echo."""
        answer, begin, end = self._find(ask, buffer)
        is_like_request = self._is_mirrored and answer is not None and not answer[0] & 0x80
        if is_like_request and self._echo.is_heard is None and not self._holds_back:
            self._holds_back = True
            self._pass(buffer[:begin])
            buffer = buffer[end:]
            answer, begin, end = self._find(ask, buffer)
        self._pass(buffer[:begin])
        if answer is None:
            self._buffer = buffer[begin:]
            return None
        self._buffer = buffer[end:]
        self._ask = None
        if self._holds_back:
            self._echo.was_heard()
        elif not self._is_after_echo:
            self._echo.came_first(self._sent, self._passed)
        return answer

    def _pass(self, data: bytes) -> None:
        self._passed = (self._passed + data)[-_MOST:]

    def _frame(self, ask: Ask) -> bytes:
        raise NotImplementedError

    def _find(self, ask: Ask, buffer: bytes) -> tuple[bytes | None, int, int]:
        """Return the response's PDU, where its frame begins and ends; without it, what is to be kept."""
        raise NotImplementedError


class RtuFramer(_LineFramer):
    """Frames of a serial line with binary transmission."""

    def _frame(self, ask: Ask) -> bytes:
        body = bytes((ask.unit_id,)) + ask.pdu
        return body + crc16(body).to_bytes(2, "little")

    def _find(self, ask: Ask, buffer: bytes) -> tuple[bytes | None, int, int]:
        """Look for the answer at every place where it may begin; keep what may still become it."""
        head, size = ask.head, len(buffer)
        keep = size
        # An answer begins with the unit id; where that may be anything, every place may be one.
        unit = b"" if self._takes_any_unit else bytes((ask.unit_id,))
        place = -1
        while (place := buffer.find(unit, place + 1)) >= 0:
            begin = buffer[place + 1 : place + 1 + len(head)]
            end = place + ask.size + 3
            is_good = head.startswith(begin)
            if is_good:  # so it does where nothing came behind the unit id yet
                if ask.has_own_length and begin:
                    length = other_functions.own_length(buffer[place + 1 : end])
                    end = place + (size if length is None else length) + 3
            elif begin[0] == head[0] | 0x80:
                end = place + 5
                is_good = True
            elif not ask.is_write or begin[0] != head[0]:
                continue
            if end > size:
                keep = min(keep, place)
            elif crc16(buffer[place:end]) == 0:
                answer = buffer[place + 1 : end - 2]
                if is_good:
                    return answer, place, end
                self.odd = answer
        return None, keep, size


class AsciiFramer(_LineFramer):
    """Frames of a serial line in hex digits."""

    def _frame(self, ask: Ask) -> bytes:
        body = bytes((ask.unit_id,)) + ask.pdu
        return b":" + (body + bytes((lrc(body),))).hex().upper().encode() + b"\r\n"

    def _find(self, ask: Ask, buffer: bytes) -> tuple[bytes | None, int, int]:
        start, size = 0, len(buffer)
        while (end := buffer.find(b"\r\n", start)) >= 0:
            begin = buffer.rfind(b":", start, end)  # a colon begins a frame, whatever came before it
            start = end + 2
            answer = self._answer(ask, buffer[begin + 1 : end]) if begin >= 0 else None
            if answer is not None:
                return answer, begin, start
        begin = buffer.rfind(b":", start)
        return None, begin if begin >= 0 and size - begin <= _MOST else size, size

    def _answer(self, ask: Ask, digits: bytes) -> bytes | None:
        if not digits.isalnum():  # `fromhex` takes blanks too
            return None
        try:
            body = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            return None
        if sum(body) & 0xFF or (body[0] != ask.unit_id and not self._takes_any_unit):
            return None
        answer = body[1:-1]
        if ask.is_answer(answer) or (len(answer) == 2 and answer[0] == ask.pdu[0] | 0x80):
            return answer
        if ask.is_write and len(answer) == ask.size and answer[0] == ask.pdu[0]:
            self.odd = answer
        return None
