"""Requests and responses of others, out of what is heard on a line. Sans-IO.

Rules:

* An `Exchange` is a whole request to read and the whole response immediately after it: same unit, same
  function, the length that the request asks for, or an exception. Anything between the two, a byte of noise
  too, and there is no exchange.
* A response without its request, a request without its response, and a response that comes after `answer_s`
  give nothing.
* After a request without a response, the response to the next one of the same shape may be a late one. It is
  held back until the next frame: a request confirms it, a second response refutes both.
* An RTU frame of eight bytes can be a request as well as the response with three bytes of bits. It is taken
  for a response only if the same bytes were never heard as a request, by a listener that has heard many.
* A silence of `gap_s` ends what is unfinished.
* Nothing is kept beyond one frame of noise and one request.

Design: time is a parameter. That a frame is whole is known from its length and checksum, never from silence:
adapters hand bytes over late and in pieces.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from fieldbus.modbus import pdu
from fieldbus.modbus.checksum import crc16, lrc
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.places import Framing
from fieldbus.modbus.server_framing import (
    LONGEST_ASCII,
    LONGEST_RTU,
    TOO_FEW,
    answer_length,
    request_length,
)

_SHORTEST = 4
_MANY_REQUESTS = 10
_MOST_KNOWN = 1024
LATE_S = 3.0
"""For so long a request that had no response may still be answered."""


class Exchange(NamedTuple):
    """A request to read, and its response or exception."""

    ask: Ask
    response: bytes
    """The PDU."""


class Sniffer(Protocol):
    """What finds exchanges in the bytes of one line."""

    @property
    def requests(self) -> int:
        """How many requests were heard."""
        ...

    def feed(self, data: bytes, now_s: float) -> list[Exchange]:
        """Take what came; return the exchanges that it completes."""
        ...

    def expire(self, now_s: float) -> list[Exchange]:
        """Look whether a silence ended something; return what that completes."""
        ...


def make_sniffer(framing: Framing, *, gap_s: float, answer_s: float) -> Sniffer:
    """Return what finds exchanges in frames of a kind."""
    pairing = _Pairing(answer_s)
    return AsciiSniffer(pairing) if framing is Framing.ASCII else RtuSniffer(pairing, gap_s)


class _Pairing:
    """Puts frames into exchanges."""

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._ask: Ask | None = None
        """The request immediately before."""
        self._asked_s = 0.0
        self._unanswered: deque[tuple[Ask, float]] = deque(maxlen=32)
        """Requests that had no response, and until when one may come late."""
        self._held: Exchange | None = None
        self._known: set[bytes] = set()
        """Requests that look like responses, and were heard when nothing was asked."""
        self.requests = 0

    def forget(self) -> None:
        """Learn that something came that is no frame."""
        self._give_up()
        self._held = None

    def _give_up(self) -> None:
        """Wait no more for the response to the request before: it may come late."""
        ask, self._ask = self._ask, None
        if ask is not None:
            self._unanswered.append((ask, self._asked_s + LATE_S))

    def response_length(self, buffer: bytes, start: int) -> int | None:
        """Return the length of the RTU frame that answers the request before, if one may begin there."""
        ask = self._ask
        if ask is None or buffer[start] != ask.unit_id:
            return None
        head = ask.head[: len(buffer) - start - 1]
        return ask.size + 3 if buffer.startswith(head, start + 1) else None

    def take(self, body: bytes, now_s: float) -> list[Exchange]:
        """Take a frame with the right checksum; return the exchange that it completes."""
        held, self._held = self._held, None
        request = pdu.parse_request(body[1:])
        is_request = not isinstance(request, int)
        ask = self._ask
        if ask is not None and _answers(ask, body) and not (is_request and self._may_be_request(body)):
            self._ask = None
            if now_s > self._asked_s + self._answer_s:
                return []
            exchange = Exchange(ask, body[1:])
            if not self._is_doubtful(ask, now_s):
                return [exchange]
            self._held = exchange
            return []
        self._give_up()
        if not is_request:
            return []  # a response to nobody: what was held back may be one, too
        self.requests += 1
        if ask is None and _looks_like_response(body) and len(self._known) < _MOST_KNOWN:
            self._known.add(body)
        if body[1] <= pdu.READ_INPUT_REGISTERS and body[0]:
            self._ask, self._asked_s = Ask(body[0], body[1:]), now_s
        return [] if held is None else [held]

    def _is_doubtful(self, ask: Ask, now_s: float) -> bool:
        """Return whether the late response to another request looks like the response to this one."""
        while self._unanswered and self._unanswered[0][1] < now_s:
            self._unanswered.popleft()
        return any(
            other.unit_id == ask.unit_id and other.shape == ask.shape and other.pdu != ask.pdu
            for other, _ in self._unanswered
        )

    def _may_be_request(self, body: bytes) -> bool:
        return body in self._known or self.requests < _MANY_REQUESTS


def _answers(ask: Ask, body: bytes) -> bool:
    """Return whether a unit id and PDU look like the response to a request."""
    response = body[1:]
    is_exception = len(response) == 2 and response[0] == ask.pdu[0] | 0x80
    is_good = len(response) == ask.size and response.startswith(ask.head)
    return body[0] == ask.unit_id and (is_exception or is_good)


def _looks_like_response(body: bytes) -> bool:
    """Return whether a request to read has the length and begin of a response with bits."""
    return body[1] <= pdu.READ_DISCRETE_INPUTS and len(body) == body[2] + 3


class RtuSniffer:
    """Exchanges in binary frames."""

    def __init__(self, pairing: _Pairing, gap_s: float) -> None:
        self._pairing = pairing
        self._gap_s = gap_s
        self._buffer = b""
        self._heard_s = 0.0

    @property
    def requests(self) -> int:
        """How many requests were heard."""
        return self._pairing.requests

    def feed(self, data: bytes, now_s: float) -> list[Exchange]:
        """Take bytes of the line."""
        found = self.expire(now_s)
        self._heard_s = now_s
        for place in range(0, len(data), LONGEST_RTU):
            self._buffer += data[place : place + LONGEST_RTU]
            found += self._search(now_s, is_over=False)
        return found

    def expire(self, now_s: float) -> list[Exchange]:
        """End what is unfinished if nothing more came of it."""
        if not self._buffer or now_s - self._heard_s < self._gap_s:
            return []
        found = self._search(self._heard_s, is_over=True)
        if self._buffer:
            self._pairing.forget()
        self._buffer = b""
        return found

    def _search(self, now_s: float, *, is_over: bool) -> list[Exchange]:
        """Take whole frames out of the buffer, one after the other."""
        found: list[Exchange] = []
        start = 0
        while len(self._buffer) - start >= _SHORTEST:
            length = self._length(start)
            if length == TOO_FEW and not is_over:
                break
            if length <= 0:
                self._pairing.forget()
                start += 1
                continue
            found += self._pairing.take(self._buffer[start : start + length - 2], now_s)
            start += length
        self._buffer = self._buffer[start:]
        return found

    def _length(self, start: int) -> int:
        """Return the length of the whole frame at a place, `TOO_FEW` if it may become one, else 0."""
        buffer, is_awaited = self._buffer, False
        size = len(buffer) - start
        expected = self._pairing.response_length(buffer, start)
        lengths = [request_length(buffer, start), answer_length(buffer, start)]
        for length in lengths if expected is None else [expected, *lengths]:
            if length == TOO_FEW or size < length <= LONGEST_RTU:
                is_awaited = True
            elif _SHORTEST <= length <= size and crc16(buffer[start : start + length]) == 0:
                return length
        return TOO_FEW if is_awaited else 0


class AsciiSniffer:
    """Exchanges in frames of hex digits."""

    def __init__(self, pairing: _Pairing) -> None:
        self._pairing = pairing
        self._buffer = b""

    @property
    def requests(self) -> int:
        """How many requests were heard."""
        return self._pairing.requests

    def feed(self, data: bytes, now_s: float) -> list[Exchange]:
        """Take bytes of the line."""
        found: list[Exchange] = []
        *lines, rest = (self._buffer + data).split(b"\r\n")
        for line in lines:
            begin = line.rfind(b":")
            if begin:
                self._pairing.forget()  # something came before the frame
            body = _body_of(line[begin:]) if begin >= 0 else None
            if body is None:
                self._pairing.forget()
                continue
            found += self._pairing.take(body, now_s)
        if len(rest) > LONGEST_ASCII or (rest and not rest.startswith(b":")):
            self._pairing.forget()
            rest = rest[rest.rfind(b":") :] if b":" in rest[-LONGEST_ASCII:] else b""
        self._buffer = rest[-LONGEST_ASCII:]
        return found

    def expire(self, now_s: float) -> list[Exchange]:
        """Wait on: a colon begins a frame whatever came before it."""
        return []


def _body_of(line: bytes) -> bytes | None:
    """Return the unit id and PDU of a line that is one whole frame; None if it is anything else."""
    digits = line[1:]
    if not digits.isalnum():
        return None
    try:
        body = bytes.fromhex(digits.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        return None
    return body[:-1] if len(body) >= 3 and lrc(body) == 0 else None
