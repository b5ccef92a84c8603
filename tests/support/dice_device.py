"""A device on a connection that keeps one register, answers as dice fall, and notes what it was asked.

It knows nothing of fieldbus: frames are cut and built here once more.
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import dataclass, field
from typing import Any

HABITS = (
    "good", "good", "good", "silent", "done and silent", "late", "wrong address", "wrong value", "garbled",
    "refused", "busy", "target silent", "lost", "done and lost", "closed",
)  # fmt: skip
"""What may become of a request that writes."""
READ_HABITS = ("good", "good", "good", "good", "silent", "busy", "garbled")


@dataclass
class Event:
    """A request, and what the device did and said."""

    at_s: float
    kind: str
    """``write`` or ``read``."""
    value: int
    """What was to be written, or what was shown."""
    habit: str
    is_said: bool
    """Whether the device gave the good response, in time."""


@dataclass
class Dice:
    """Which habits fall, and what was seen."""

    seed: int
    has_echo: bool = False
    is_readable: bool = True
    is_rtu: bool = False
    word: int = 0
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.is_calm = False
        """Whether all is good from now on."""

    def make(self) -> DiceConnection:
        """Return the device's end of a new connection."""
        return DiceConnection(self)


def crc(data: bytes) -> bytes:
    """Return the checksum of an RTU frame."""
    found = 0xFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0xA001 if found & 1 else 0)
    return struct.pack("<H", found)


class DiceConnection(asyncio.Protocol):
    """One connection to the device."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._dice.is_rtu:
            while len(self._buffer) >= 8:
                frame, self._buffer = self._buffer[:8], self._buffer[8:]
                assert crc(frame[:-2]) == frame[-2:]
                if self._dice.has_echo:
                    self._transport.write(frame)
                self._take(b"", frame[0], frame[1:-2])
            return
        while len(self._buffer) >= 6 and len(self._buffer) >= 6 + int.from_bytes(self._buffer[4:6], "big"):
            size = 6 + int.from_bytes(self._buffer[4:6], "big")
            frame, self._buffer = self._buffer[:size], self._buffer[size:]
            self._take(frame[:4], frame[6], frame[7:])

    def _take(self, head: bytes, unit_id: int, pdu: bytes) -> None:
        dice = self._dice
        now_s = asyncio.get_running_loop().time()
        if pdu[0] == 3:
            if not dice.is_readable:
                self._send(head, unit_id, b"\x83\x02")
                return
            habit = "good" if dice.is_calm else dice.random.choice(READ_HABITS)
            dice.events.append(Event(now_s, "read", dice.word, habit, habit == "good"))
            if habit != "silent":
                count = int.from_bytes(pdu[3:5], "big")
                data = struct.pack(">H", dice.word) + bytes(2 * count - 2)
                good = bytes((3, 2 * count)) + data
                self._send(head, unit_id, b"\x83\x06" if habit == "busy" else good, spoilt=habit == "garbled")
            return
        value = int.from_bytes(pdu[3:5], "big")
        habit = "good" if dice.is_calm else dice.random.choice(HABITS)
        if habit not in ("silent", "refused", "busy", "lost") and not (
            habit in ("target silent", "garbled", "wrong address") and dice.random.random() < 0.5
        ):
            dice.word = value
        dice.events.append(Event(now_s, "write", value, habit, habit in ("good", "closed")))
        self._answer(head, unit_id, pdu, habit)

    def _answer(self, head: bytes, unit_id: int, pdu: bytes, habit: str) -> None:
        answers = {
            "good": pdu, "late": pdu, "garbled": pdu,
            "wrong address": pdu[:1] + b"\0\1" + pdu[3:],
            "wrong value": pdu[:3] + bytes((pdu[3] ^ 1, pdu[4])),
            "refused": bytes((pdu[0] | 0x80, 3)), "busy": bytes((pdu[0] | 0x80, 6)),
            "target silent": bytes((pdu[0] | 0x80, 0x0B)),
        }  # fmt: skip
        if habit in answers:
            delay_s = 1.3 if habit == "late" else 0.0
            loop = asyncio.get_running_loop()
            loop.call_later(
                delay_s, lambda: self._send(head, unit_id, answers[habit], spoilt=habit == "garbled")
            )
        elif habit in ("lost", "done and lost", "closed"):
            if habit == "closed":
                self._send(head, unit_id, pdu)
                self._transport.close()
            else:
                self._transport.abort()

    def _send(self, head: bytes, unit_id: int, pdu: bytes, *, spoilt: bool = False) -> None:
        if self._transport.is_closing():
            return
        body = bytes((unit_id,)) + pdu
        if self._dice.is_rtu:
            frame = body + crc(body)
            self._transport.write(frame[:-1] + bytes((frame[-1] ^ 1,)) if spoilt else frame)
        else:
            self._transport.write(head + struct.pack(">H", len(body)) + (body[:-1] if spoilt else body))
