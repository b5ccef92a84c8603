"""Nodes that speak only when they are asked: who is asked when, and what silence means.

Rules: one question to a message at a time; a question that was not answered in time makes its points bad
(timeout), and the next one comes at its scan. What could not be asked (no address yet, the bus is off) is
asked soon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fieldbus.canbus.listening import Incoming
from fieldbus.canbus.messages import Request
from fieldbus.canbus.schedule import Act, Schedule
from fieldbus.model import Reason

Ask = Callable[[Incoming, Request], bool]
"""Sends the question; False if it cannot be sent now."""
GiveUp = Callable[[Incoming, str], None]
"""Learns that there was no answer, or a refusal."""


_SOON_S = 0.1


def start(incoming: Sequence[Incoming], schedule: Schedule, ask: Ask, give_up: GiveUp, now_s: float) -> None:
    """Begin to ask, at a moment of the monotonic clock."""
    for item in incoming:
        request = item.message.request
        if request is not None:
            item.asked_s = None
            schedule.at(now_s, _asker(item, request, ask, give_up, now_s))


def _asker(incoming: Incoming, request: Request, ask: Ask, give_up: GiveUp, next_s: float) -> Act:
    refused_s: float | None = None

    def act(now_s: float) -> float:
        nonlocal next_s, refused_s
        if not incoming.is_needed:
            incoming.asked_s = None
            return now_s + _SOON_S
        asked_s = incoming.asked_s
        if asked_s is not None and now_s >= asked_s + request.timeout_s:
            incoming.asked_s = None
            give_up(incoming, Reason.TIMEOUT)
        if now_s >= next_s:
            if incoming.asked_s is not None:
                next_s = max(next_s + request.scan_s, now_s)
            elif ask(incoming, request):
                incoming.asked_s, refused_s = now_s, None
                next_s = max(next_s + request.scan_s, now_s)
            else:
                refused_s = now_s if refused_s is None else refused_s
                if now_s - refused_s >= request.scan_s + request.timeout_s:
                    give_up(incoming, Reason.NOT_CONNECTED)  # we have no address, or the bus no room
                next_s = now_s + min(_SOON_S, request.scan_s)
        if incoming.asked_s is None:
            return next_s
        return min(next_s, incoming.asked_s + request.timeout_s)

    return act
