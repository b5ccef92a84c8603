"""Frames as a server sees them: the requests in what came, and the frames of their answers. Sans-IO.

Layouts::

    MBAP    transaction id (2), protocol id 0 (2), length (2), unit id, PDU
    RTU     unit id, PDU, CRC-16 (low byte first)
    ASCII   ``:``, then in hex digits (upper or lower) unit id, PDU, LRC, then CR LF

Rules of a line (RTU, ASCII):

* A request is given out as soon as its last byte came with the right checksum; nobody waits for the
  silence behind it. Its length is known from function code and byte count. Of a function that we do not
  know, and of a request of the wrong length, a frame is all that came since the last silence, if its
  checksum is right: so these get their exception too. After `LONGEST_RTU` bytes it is no frame any more, and
  the frames in these bytes are looked for.
* Several stations share a line. A frame is given out whatever its unit id; who it is for decides whoever
  takes it. What another station answers is told from a request by its length and its checksum, and passed
  over whole, so that its data are never taken for requests.
* With unit ids of ours only masters speak: there an answer is never looked for. (A request to write several
  registers can look like the answer to one, followed by something else, in one case of 65536: always the
  same one, which could then never be written.)
* Noise before a frame does not cost the frame. If it looks like the beginning of a longer one, the frame
  behind it is found when the silence shows that the longer one does not come.
* A silence of `gap_s` ends whatever is unfinished. By the book that is 3.5 characters; adapters on USB hand
  over what they have each 16 ms, so it is at least `SHORTEST_GAP_S`.
* A wrong checksum is silence. Nothing is kept beyond `_MOST` bytes, however much comes.

Design: time is a parameter, so that the tests need none. `feed` looks at the clock as well as `expire`: a
timer that comes late cannot join what a silence divided.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Protocol

from fieldbus.modbus import pdu
from fieldbus.modbus.checksum import crc16, lrc
from fieldbus.modbus.pdu import Frame, MbapReader

SHORTEST_GAP_S = 0.020
LONGEST_RTU = 256
LONGEST_ASCII = 513
BROADCAST = 0
_MOST = 2 * LONGEST_RTU
_MBAP = struct.Struct(">HHHB")
_SHORTEST = 4
UNKNOWN = 0
"""A length that the function code does not tell."""
TOO_FEW = -1
"""More bytes are needed to know the length."""
_NEVER = 1 << 16
"""There is no such function: nothing that comes makes a frame of it."""


class RequestFramer(Protocol):
    """One way of framing. Made anew for each connection."""

    discarded: int
    """How many times something was dropped that was no frame."""

    @property
    def fault(self) -> str | None:
        """Why nothing more that comes can be believed, once that is so: the connection is to be ended."""
        ...

    @property
    def is_line(self) -> bool:
        """Whether other stations may be on it.

        There, units that are not ours are answered with silence instead of an exception, and unit id 0 is
        for all of them.
        """
        ...

    @property
    def gap_s(self) -> float | None:
        """After how much silence `expire` wants to be called, while `is_waiting`; None for never."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether part of a frame came."""
        ...

    def feed(self, data: bytes, now_s: float) -> list[Frame]:
        """Take what came; return the frames that it completes."""
        ...

    def expire(self, now_s: float) -> list[Frame]:
        """Look whether a silence ended something; return what it completed."""
        ...

    def wrap(self, request: Frame, response: bytes) -> bytes:
        """Return the frame of an answer."""
        ...


class MbapRequests(MbapReader):
    """Requests of Modbus TCP."""

    __slots__ = ("discarded",)
    is_line = False
    gap_s = None

    def __init__(self) -> None:
        super().__init__()
        self.discarded = 0

    @property
    def is_waiting(self) -> bool:
        """Whether part of a frame came."""
        return not self.is_between_frames

    def expire(self, now_s: float) -> list[Frame]:
        """Wait on: on a stream only the idle timeout ends half a frame."""
        return []

    def wrap(self, request: Frame, response: bytes) -> bytes:
        """Return the answer with the header of its request."""
        return _MBAP.pack(request[0], 0, len(response) + 1, request[1]) + response


def datagram_request(data: bytes) -> Frame | None:
    """Return the one MBAP frame that a datagram is, None if it is anything else."""
    if not pdu.MBAP_SIZE < len(data) <= pdu.MBAP_SIZE + pdu.MAX_PDU:
        return None
    frames = MbapReader().feed(data)
    return frames[0] if len(frames) == 1 and len(frames[0].pdu) == len(data) - pdu.MBAP_SIZE else None


class RtuRequests:
    """Requests on a serial line with binary transmission, or on a stream that stands for one."""

    is_line = True

    def __init__(
        self,
        our_units: Collection[int],
        *,
        silence_s: float,
        has_echo: bool = False,
        most_noise: int | None = None,
    ) -> None:
        """Take what is known of the line.

        Args:
            our_units: unit ids that nobody else on the line has.
            silence_s: 3.5 characters, or what divides frames instead.
            has_echo: whether what we send comes back to us, as with some two-wire adapters.
            most_noise: how many bytes may be no frame before it is a fault. A line has noise; on a stream
                it comes as fast as somebody likes, and looking at it takes time.
        """
        self.fault: str | None = None
        self._most_noise = most_noise
        self._noise = 0
        self._ours = frozenset(our_units) | {BROADCAST}
        self.gap_s = max(silence_s, SHORTEST_GAP_S)
        self._has_echo = has_echo
        self._echo = b""
        self._buffer = b""
        """What came since the last silence or the last whole frame."""
        self._refuted = 0
        """How many places at its beginning are not the first byte of a frame."""
        self._last_s = 0.0
        self.discarded = 0

    @property
    def is_waiting(self) -> bool:
        """Whether bytes came that are no frame yet."""
        return bool(self._buffer)

    def feed(self, data: bytes, now_s: float) -> list[Frame]:
        """Take bytes of the line."""
        if self.fault is not None:
            return []
        frames = self.expire(now_s)
        self._last_s = now_s
        if self._echo:
            data = self._without_echo(data)
        for place in range(0, len(data), LONGEST_RTU):  # taking a frame out costs what is behind it
            self._buffer += data[place : place + LONGEST_RTU]
            frames += self._search(is_over=False)
            if self._most_noise is not None and self._noise > self._most_noise:
                self.fault = f"{self._noise} bytes that are no frame"
                self._buffer = b""
                break
            if len(self._buffer) > _MOST:
                # No frame is longer than LONGEST_RTU, so no place before the last bytes may still begin one.
                self.discarded += 1
                self._refuted -= len(self._buffer) - LONGEST_RTU
                self._buffer = self._buffer[-LONGEST_RTU:]
        return frames

    def expire(self, now_s: float) -> list[Frame]:
        """End what is unfinished if the line was silent for long enough."""
        if not self._buffer or now_s - self._last_s < self.gap_s:
            return []
        frames = self._search(is_over=True)
        if self._buffer:
            self.discarded += 1
        self._buffer = self._echo = b""
        self._refuted = 0
        return frames

    def wrap(self, request: Frame, response: bytes) -> bytes:
        """Return the answer with unit id and CRC."""
        body = bytes((request.unit_id,)) + response
        frame = body + crc16(body).to_bytes(2, "little")
        if self._has_echo:
            self._echo += frame
        return frame

    def _without_echo(self, data: bytes) -> bytes:
        size = min(len(data), len(self._echo))
        if data[:size] != self._echo[:size]:
            self._echo = b""  # it was drowned by something; the checksum will tell
            return data
        self._echo = self._echo[size:]
        return data[size:]

    def _search(self, *, is_over: bool) -> list[Frame]:
        """Take whole frames out of the buffer.

        Args:
            is_over: whether nothing more comes, so that what is unfinished is no frame.
        """
        frames: list[Frame] = []
        while len(self._buffer) - self._refuted >= _SHORTEST:
            start = self._refuted
            end = self._end_of_frame(start, is_over=is_over)
            if end is None:
                self._refuted += 1
                self._noise += 1
                continue
            if end == 0:
                break
            frames += self._take(start, end)
        if self._refuted and self._is_whole():
            frames += self._take(0, len(self._buffer))
        return frames

    def _take(self, start: int, end: int) -> list[Frame]:
        """Take a frame with the right checksum; return the request that it is, if it is one."""
        frame = self._buffer[start:end]
        self.discarded += start > 0
        self._buffer = self._buffer[end:]
        self._refuted = self._noise = 0
        if frame[0] not in self._ours and len(frame) != request_length(frame, 0):
            return []
        return [Frame(0, frame[0], frame[1:-2])]

    def _end_of_frame(self, start: int, *, is_over: bool) -> int | None:
        """Return where the frame at `start` ends, 0 if that is not known yet, None if there is none."""
        buffer = self._buffer
        size = len(buffer) - start
        is_unknown = is_awaited = False
        lengths = [request_length(buffer, start)]
        if buffer[start] not in self._ours:
            lengths.append(answer_length(buffer, start))
        for length in lengths:
            if length == UNKNOWN:
                is_unknown = start == 0 and size < LONGEST_RTU
            elif length == TOO_FEW or size < length <= LONGEST_RTU:
                is_awaited = True
            elif length <= size and crc16(buffer[start : start + length]) == 0:
                return start + length
        if is_awaited and not is_over:
            return 0
        if start == 0 and self._is_whole():
            return size
        return 0 if is_unknown and not is_over else None

    def _is_whole(self) -> bool:
        """Whether all that came since the last silence is one frame, of whatever function."""
        return _SHORTEST <= len(self._buffer) <= LONGEST_RTU and crc16(self._buffer) == 0


def request_length(buffer: bytes, start: int) -> int:
    """Return the length of the RTU request that begins at `start`, with unit id and CRC."""
    function_code = buffer[start + 1]
    if function_code in _FIXED_REQUESTS:
        return _FIXED_REQUESTS[function_code]
    if function_code in _COUNTED_REQUESTS:
        place, rest = _COUNTED_REQUESTS[function_code]
        return buffer[start + place] + rest if start + place < len(buffer) else TOO_FEW
    if function_code == 0 or function_code & 0x80:
        return _NEVER
    if function_code == pdu.ENCAPSULATED_INTERFACE and buffer[start + 2] == pdu.READ_DEVICE_IDENTIFICATION:
        return 7
    return UNKNOWN


def answer_length(buffer: bytes, start: int) -> int:
    """Return the length of the RTU answer that begins at `start`."""
    function_code = buffer[start + 1]
    if function_code & 0x80:
        return 5
    if function_code in _FIXED_ANSWERS:
        return _FIXED_ANSWERS[function_code]
    if function_code in _COUNTED_ANSWERS:
        return buffer[start + 2] + 5
    return UNKNOWN


# Lengths with unit id and CRC; where there is a byte count, its place and the length without what it counts.
_FIXED_REQUESTS = {1: 8, 2: 8, 3: 8, 4: 8, 5: 8, 6: 8, 7: 4, 8: 8, 11: 4, 12: 4, 17: 4, 22: 10, 24: 6}
_COUNTED_REQUESTS = {15: (6, 9), 16: (6, 9), 20: (2, 5), 21: (2, 5), 23: (10, 13)}
_FIXED_ANSWERS = {5: 8, 6: 8, 7: 5, 8: 8, 11: 8, 15: 8, 16: 8, 22: 10}
_COUNTED_ANSWERS = {1, 2, 3, 4, 12, 17, 20, 21, 23}


class AsciiRequests:
    """Requests on a serial line in hex digits."""

    is_line = True
    fault: str | None = None
    gap_s = None  # a colon begins a frame whatever came before: no clock is needed

    def __init__(self, *, has_echo: bool = False) -> None:
        """Take what is known of the line.

        Args:
            has_echo: whether what we send comes back to us.
        """
        self._has_echo = has_echo
        self._echoes: list[bytes] = []
        self._buffer = b""
        self.discarded = 0

    @property
    def is_waiting(self) -> bool:
        """Whether part of a frame came."""
        return bool(self._buffer)

    def feed(self, data: bytes, now_s: float) -> list[Frame]:
        """Take bytes of the line."""
        frames: list[Frame] = []
        *lines, rest = (self._buffer + data).split(b"\r\n")
        for line in lines:
            frame = self._frame_in(line)
            if frame is not None:
                frames.append(frame)
        begin = rest.rfind(b":")
        self._buffer = rest[begin:] if begin >= 0 and len(rest) - begin < LONGEST_ASCII else b""
        return frames

    def expire(self, now_s: float) -> list[Frame]:
        """Wait on: a frame may come as slowly as somebody types it."""
        return []

    def wrap(self, request: Frame, response: bytes) -> bytes:
        """Return the answer in hex digits."""
        body = bytes((request.unit_id,)) + response
        frame = b":" + (body + bytes((lrc(body),))).hex().upper().encode() + b"\r\n"
        if self._has_echo:
            self._echoes = [*self._echoes[-7:], frame[:-2]]
        return frame

    def _frame_in(self, line: bytes) -> Frame | None:
        line = line[max(0, line.rfind(b":")) :]
        if line in self._echoes:
            self._echoes.remove(line)
            return None
        body = _bytes_of(line)
        if body is None or sum(body) & 0xFF:
            self.discarded += bool(line)
            return None
        return Frame(0, body[0], body[1:-1])


def _bytes_of(line: bytes) -> bytes | None:
    """Return the unit id, PDU and LRC in a line, None if it is none."""
    if not line.startswith(b":") or not 7 <= len(line) <= LONGEST_ASCII - 2:
        return None
    digits = line[1:]
    if not digits.isalnum():  # `fromhex` takes blanks too
        return None
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return None


MakeFramer = Callable[[], RequestFramer]
