"""What `then` writes after a value: asked about before the value is sent, told of afterwards.

Rules:

* The gateway is asked about all that follows a value at the moment when its first request is sent. If one of
  these must not be written, the value is not written either: it would stay without its commit.
* How each ended is told once. What was allowed and did not come to be sent is given back.
"""

from __future__ import annotations

from collections.abc import Iterator

from fieldbus.link import Follower, WriteOutcome, WriteResult
from fieldbus.modbus.writing import Write
from fieldbus.model import Point, Value


class FollowUps:
    """What follows the values of the run that is under way."""

    def __init__(self) -> None:
        self.follower: Follower | None = None
        """The gateway; None if nobody wants to be asked."""
        self._allowed: list[tuple[Point, Value]] = []
        """What may be written, and was not yet."""

    def refusal_of(self, write: Write) -> tuple[WriteOutcome, str] | None:
        """Return how a write ends after which something must not be written; None if all may be."""
        if self.follower is None:
            return None
        for step, after in _steps_of(write):
            key = step.point.point, step.value
            if key in self._allowed:
                continue  # it follows another value of the same request, too, and is written once
            value = after.point.point, after.value
            refusal = self.follower.admit(*key, value, is_routed=write.is_routed)
            if refusal is not None:
                outcome, reason = refusal
                shown = str(step.value).lower() if isinstance(step.value, bool) else step.value
                text = f"not written, because {step.name} = {shown} after it was not allowed: {reason}"
                return outcome, text
            self._allowed.append(key)
        return None

    def ended(self, step: Write, after: Write, outcome: WriteOutcome, reason: str | None) -> None:
        """Tell how a step ended."""
        key = step.point.point, step.value
        was_allowed = key in self._allowed
        if was_allowed:
            self._allowed.remove(key)
        if self.follower is not None:
            result = WriteResult(*key, outcome, reason)
            self.follower.followed(
                result, after.point.point, is_routed=after.is_routed, was_admitted=was_allowed
            )

    def end(self) -> None:
        """Give back what was not written: the run is over."""
        allowed, self._allowed = self._allowed, []
        for point, _ in allowed:
            if self.follower is not None:
                self.follower.withdraw(point)


def _steps_of(write: Write) -> Iterator[tuple[Write, Write]]:
    """Yield all that follows a write, each with what it follows."""
    for step in write.then:
        yield step, write
        yield from _steps_of(step)
