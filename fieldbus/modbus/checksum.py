"""The two checksums of the serial line: CRC-16 of RTU frames and LRC of ASCII frames.

The CRC is the reflected one of polynomial 0x8005 (0xA001), start value 0xFFFF, low byte first on the wire;
the LRC the two's complement of the sum of the bytes.
"""

from __future__ import annotations


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
        found.append(crc)
    return tuple(found)


_CRC = _table()


def crc16(data: bytes) -> int:
    """Return the CRC of a frame without its checksum; a whole frame with a right one gives 0."""
    crc = 0xFFFF
    table = _CRC
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def lrc(data: bytes) -> int:
    """Return the two's complement of the sum of the bytes, modulo 256."""
    return -sum(data) & 0xFF
