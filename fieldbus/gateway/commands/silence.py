"""When a source is silent for too long, and when that is over. Pure.

Rules:

* A source is silent when neither a good live sample nor a command came for longer than `after_s`. Silence is
  measured by arrival, on our monotonic clock; what a source says of its own time is no measure.
* A fallback, once entered, is over with the first good live sample, or command, that arrives after it was
  entered, and with nothing else: not with a sample that a broker kept, not with one that arrived before, not
  with a reload, and not because a clock was set.
* The safe value is due as long as the fallback lasts and the target is not known to have it.
* Time is a parameter.
"""

from __future__ import annotations

import math


class Silence:
    """What is known of the source of one point."""

    __slots__ = ("after_s", "entered_s", "is_safe", "since_s")

    def __init__(self, after_s: float, now_s: float) -> None:
        """Begin to listen.

        Args:
            after_s: how long the source may be silent.
            now_s: monotonic clock; silence counts from here.
        """
        self.after_s = after_s
        self.since_s = now_s
        """When the source was last heard, or we began to listen."""
        self.entered_s: float | None = None
        """When the fallback was entered; None if the point is not in it."""
        self.is_safe = False
        """Whether the target has the safe value."""

    @property
    def is_due(self) -> bool:
        """Whether the safe value is to be written."""
        return self.entered_s is not None and not self.is_safe

    def hear(self, at_s: float) -> bool:
        """Learn when the source was last heard, and return whether that ends a fallback."""
        self.since_s = max(self.since_s, at_s)
        if self.entered_s is None or at_s <= self.entered_s:
            return False
        self.entered_s = None
        self.is_safe = False
        return True

    def look(self, now_s: float) -> bool:
        """Return whether the source has become silent for too long; then the fallback is entered."""
        if self.entered_s is not None or not is_overdue(self.after_s, self.since_s, now_s):
            return False
        self.entered_s = now_s
        self.is_safe = False
        return True

    def listen(self, now_s: float) -> None:
        """Begin to listen now, unless the point is in its fallback: that goes on."""
        if self.entered_s is None:
            self.since_s = now_s

    def wrote(self) -> None:
        """Learn that the target has the safe value."""
        self.is_safe = self.entered_s is not None

    def lost(self) -> None:
        """Learn that the target may have lost what it had."""
        self.is_safe = False


def is_overdue(after_s: float, since_s: float, now_s: float) -> bool:
    """Return whether a source that has been silent since a moment was so for too long."""
    return now_s - since_s > after_s


NEVER_HEARD = -math.inf
"""When a source was heard that never was."""
