"""What is heard on a line without transaction ids that is not the response to our own request. Sans-IO.

A response on such a line (RTU, ASCII, RTU over TCP) has no number. Where others ask too (a second client, a
converter that repeats everything to all its clients), their responses can look like ours.

Rules:

* Evidence of others is a whole frame with the right checksum that is none of ours: a request, a response
  while nothing was asked, a second response to one request. Noise and halves of frames are no evidence.
* Ours are: the echo of a request that was sent, and one late response to each request that was given up.
* A connection that was just made may still bring one response that its last owner asked for.
* With the first evidence the line is shared, and stays so until nothing of others was heard for `QUIET_S`.
  What is read from a shared line has to be confirmed, see `confirmation.py`.
* What cannot be told: before the first evidence, a response of the right unit, function and length is taken.

Design: the usual exchange, in which nothing comes but the response, does not touch this module. Time is a
parameter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from fieldbus.modbus import pdu
from fieldbus.modbus.checksum import crc16, lrc
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.places import Framing
from fieldbus.modbus.server_framing import LONGEST_ASCII, LONGEST_RTU, answer_length, request_length

QUIET_S = 600.0
"""After so long without anything of others a line is ours alone again."""
LATE_S = 15.0
"""For so long a request that was given up may still be answered."""
_GAP_S = 1.0
"""After so long the rest of a frame does not come."""
_MOST = 2 * LONGEST_ASCII
_SHORTEST = 4
_LAST_UNIT = 247
_FUNCTIONS = frozenset({1, 2, 3, 4} | pdu.WRITING)


class Shape(NamedTuple):
    """What tells a response from others: unit id, function code, size of the PDU."""

    unit_id: int
    function_code: int
    size: int


class LineTraffic:
    """What is known of the others on one line."""

    def __init__(
        self,
        framing: Framing,
        found: Callable[[str], None] = lambda _: None,
        *,
        takes_any_unit: bool = False,
    ) -> None:
        """Take what the line is.

        Args:
            found: called with what was heard when a line turns out to be shared.
            takes_any_unit: whether a response of ours may have another unit id.
        """
        self._takes_any_unit = takes_any_unit
        self._take_frames = _ascii_frames if framing is Framing.ASCII else _rtu_frames
        self._found = found
        self._rest = b""
        self._heard_at_s = 0.0
        self._sent: deque[bytes] = deque(maxlen=8)
        """Unit id and PDU of the last requests."""
        self._given_up: deque[tuple[Ask, float]] = deque(maxlen=64)
        self._is_owed = False
        """Whether one response may belong to who had the connection before."""
        self.shared_until_s = 0.0
        self.shapes: set[Shape] = set()
        """How responses to others looked."""

    def is_shared(self, now_s: float) -> bool:
        """Return whether others ask on the line, too."""
        return now_s < self.shared_until_s

    def begin(self) -> None:
        """Take up a new connection."""
        self._rest = b""
        self._is_owed = True

    def sent(self, ask: Ask) -> None:
        """Learn that a request was sent."""
        self._sent.append(bytes((ask.unit_id,)) + ask.pdu)
        self._is_owed = False

    def gave_up(self, ask: Ask, now_s: float) -> None:
        """Learn that a request was given up: its response may still come."""
        if ask.unit_id:
            self._given_up.append((ask, now_s + LATE_S))

    def heard(self, data: bytes, now_s: float) -> None:
        """Take bytes that are no part of the response to a request under way."""
        if now_s - self._heard_at_s > _GAP_S:
            self._rest = b""
        self._heard_at_s = now_s
        frames, self._rest = self._take_frames((self._rest + data)[-_MOST:])
        for frame in frames:
            self._judge(frame, now_s)

    def _judge(self, frame: bytes, now_s: float) -> None:
        """Decide whose a frame is."""
        if frame in self._sent or self._is_late(frame, now_s):
            return
        is_request, is_response = _is_request(frame), _is_response(frame)
        if not (is_request or is_response):
            return
        if is_response and self._is_owed:
            self._is_owed = False
            return
        if is_response and len(self.shapes) < 256:
            self.shapes.add(Shape(frame[0], frame[1], len(frame) - 1))
        was_shared = self.is_shared(now_s)
        self.shared_until_s = now_s + QUIET_S
        if not was_shared:
            kind = "a request of another client" if is_request else "a response to nobody's request"
            self._found(f"{kind} (unit {frame[0]}, function {frame[1]})")

    def _is_late(self, frame: bytes, now_s: float) -> bool:
        """Return whether a frame is the late response to a request of ours; each has one."""
        while self._given_up and self._given_up[0][1] < now_s:
            self._given_up.popleft()
        response = frame[1:]
        for item in self._given_up:
            ask = item[0]
            is_good = ask.is_answer(response)
            is_exception = len(response) == 2 and response[0] == ask.pdu[0] | 0x80
            is_of_unit = frame[0] == ask.unit_id or self._takes_any_unit
            if is_of_unit and (is_good or is_exception):
                self._given_up.remove(item)
                return True
        return False


def _is_request(frame: bytes) -> bool:
    """Return whether a unit id and PDU are a request with legal contents: noise hardly ever is."""
    return frame[0] <= _LAST_UNIT and not isinstance(pdu.parse_request(frame[1:]), int)


def _is_response(frame: bytes) -> bool:
    """Return whether a unit id and PDU are a response with legal contents."""
    code = frame[1]
    if not 1 <= frame[0] <= _LAST_UNIT:
        return False
    if code & 0x80:
        return len(frame) == 3 and code & 0x7F in _FUNCTIONS and frame[2] in pdu.EXCEPTION_NAMES
    if 1 <= code <= pdu.READ_INPUT_REGISTERS:
        is_whole = len(frame) > 3 and len(frame) == frame[2] + 3
        return is_whole and (code <= pdu.READ_DISCRETE_INPUTS or frame[2] % 2 == 0)
    return code in _FUNCTIONS and len(frame) + 2 == answer_length(frame + b"\0\0", 0)


def _rtu_frames(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole frames in some bytes, without checksums, and what may become one."""
    frames: list[bytes] = []
    start, keep = 0, None
    while len(buffer) - start >= _SHORTEST:
        lengths = (request_length(buffer, start), answer_length(buffer, start))
        for length in lengths:
            if _SHORTEST <= length <= len(buffer) - start and crc16(buffer[start : start + length]) == 0:
                frames.append(buffer[start : start + length - 2])
                start, keep = start + length, None
                break
        else:
            if keep is None and any(len(buffer) - start < length <= LONGEST_RTU for length in lengths):
                keep = start
            start += 1
    rest = buffer[start if keep is None else keep :]
    return frames, rest[-LONGEST_RTU:]


def _ascii_frames(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole frames in some bytes, without checksums, and what may become one."""
    *lines, rest = buffer.split(b"\r\n")
    frames = []
    for line in lines:
        digits = line[line.rfind(b":") + 1 :]
        try:
            body = bytes.fromhex(digits.decode("ascii")) if b":" in line and digits.isalnum() else b""
        except (UnicodeDecodeError, ValueError):
            continue
        if len(body) >= 3 and lrc(body) == 0:
            frames.append(body[:-1])
    return frames, rest[-LONGEST_ASCII:]
