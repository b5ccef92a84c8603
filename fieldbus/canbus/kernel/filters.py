"""Few filters out of many, with few strangers let through.

Rules:

* A filter is (id, mask) and lets an identifier through if ``can_id & mask == id & mask``. An identifier
  that one of the many lets through, one of the few lets through.
* The kernel takes at most `LIMIT` for a socket, and compares a filter with a mask of its own with every
  frame; one for exactly one identifier (mask `EXACT`) costs nothing, for it is looked up.

Design: neighbours in the order of their identifiers are joined, always those two whose joint filter
lets fewest additional identifiers through. A joint filter compares the bits that both compare and that
are equal in both, so neighbours that differ in one bit join without a stranger. One heap: n log n.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from fieldbus.canbus.bus import ERROR, EXTENDED, EXTENDED_MASK, REMOTE, STANDARD_MASK

LIMIT = 512

EXACT_STANDARD = EXTENDED | REMOTE | STANDARD_MASK
"""Mask of a filter for data frames of one 11-bit identifier …"""
EXACT_EXTENDED = EXTENDED | REMOTE | EXTENDED_MASK
"""… and of one 29-bit identifier."""

_BITS = 0xFFFF_FFFF & ~ERROR


def merge(filters: Iterable[tuple[int, int]], limit: int = LIMIT) -> list[tuple[int, int]]:
    """Return at most `limit` filters that let through all that `filters` let through.

    Bit 29 is left out of masks, as the kernel takes it for something else; filters that want nothing but
    error frames are left out whole, because those are not filtered by identifier.

    Args:
        filters: pairs of identifier and mask.
        limit: 1 or more.
    """
    wanted = sorted(
        {(can_id & mask & _BITS, mask & _BITS) for can_id, mask in filters if not can_id & mask & ERROR}
    )
    if len(wanted) <= limit:
        return wanted
    # A linked list, so that a joint filter has neighbours to be joined with in turn.
    count = len(wanted)
    after = [*range(1, count), -1]
    before = list(range(-1, count - 1))
    version = [0] * count
    heap = [(_strangers(wanted[i], wanted[i + 1]), i, i + 1, 0, 0) for i in range(count - 1)]
    heapq.heapify(heap)
    while count > limit:
        _, left, right, left_version, right_version = heapq.heappop(heap)
        if version[left] != left_version or version[right] != right_version:
            continue
        wanted[left] = _joint(wanted[left], wanted[right])
        version[left] += 1
        version[right] = -1
        count -= 1
        following = after[right]
        after[left] = following
        if following >= 0:
            before[following] = left
        for one, other in ((before[left], left), (left, following)):
            if one >= 0 and other >= 0:
                cost = _strangers(wanted[one], wanted[other])
                heapq.heappush(heap, (cost, one, other, version[one], version[other]))
    return [item for item, each in zip(wanted, version, strict=True) if each >= 0]


def _joint(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    mask = one[1] & other[1] & ~(one[0] ^ other[0])
    return one[0] & mask, mask


def _strangers(one: tuple[int, int], other: tuple[int, int]) -> int:
    return _size(_joint(one, other)[1]) - _size(one[1]) - _size(other[1])


def _size(mask: int) -> int:
    """Return how many identifiers a mask leaves equal."""
    return 1 << (32 - mask.bit_count())
