"""How many examples a hypothesis test with a number of its own tries.

Rule: ``max_examples=200`` in a test is taken as it is by hypothesis, whatever the profile says. So tests write
``max_examples=examples(200)``: 200 with the profile `ci`, ten times as many each night.
"""

from __future__ import annotations

from hypothesis import settings

_PLAIN = 100
"""What a profile tries if it names no number."""


def examples(count: int) -> int:
    """Return how many examples the active profile wants where `ci` wants `count`."""
    return max(1, count * settings.default.max_examples // _PLAIN)
