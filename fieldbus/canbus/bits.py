"""How many bits a frame has on the wire, with as many stuff bits as there can be.

A classic data frame has 44 bits and its data with a standard identifier, 64 with an extended one, and 3
bits of interframe space; 34 or 54 of them and the data are subject to stuffing, one bit in four. A CAN FD
frame is counted as if all of it had the slower bit rate: its load is then never less than is said.
"""

from __future__ import annotations


def frame_bits(length: int, *, is_extended: bool, is_fd: bool = False) -> int:
    """Return the bits of a data frame of `length` data bytes, or of those that carry so many."""
    if length > (64 if is_fd else 8):  # a transport protocol: packets of seven bytes and an announcement
        return (1 + -(-length // 7)) * frame_bits(8, is_extended=True)
    data = length * 8
    fixed, stuffed = (64, 54) if is_extended else (44, 34)
    if is_fd:
        fixed += 11 if length > 16 else 7  # a longer checksum and a stuff bit count
    return fixed + data + 3 + (stuffed + data - 1) // 4
