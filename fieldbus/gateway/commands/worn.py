"""What routes write to points whose memory wears (`non_volatile`): one write at a time, each with its intent.

Rules:

* Such a write is an attempt as a command is: its intent is on the disk before the request is sent, so that no
  end of the process can renew the budget, and how it ended has a record of its own.
* While one is under way the newest sample is kept, and decided when that has ended.
* The members of a group are written together: what they get in one turn of the loop waits for the disk as
  one. So does a member without a budget, if another one has it.
* While the link is not connected nothing is tried, and nothing is used up. After a write that failed the next
  one waits until the device is online, or for `PAUSE_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.gateway.commands.bundle import Bundle
from fieldbus.gateway.commands.command import Answer
from fieldbus.gateway.commands.desk import Desk
from fieldbus.link import Delivery, WriteOutcome
from fieldbus.model import Point, Reason

_AGAIN = (Reason.TIMEOUT, Reason.NOT_CONNECTED, Reason.BAD_RESPONSE)
"""Why a write failed, where the next sample may be taken."""
PAUSE_S = 60.0
_LOG = logging.getLogger("fieldbus")


class Around(Protocol):
    """What is needed of the gateway; the desk is another one after a reload."""

    desk: Desk
    clock: Clock

    def offer(self, delivery: Delivery) -> None:
        """Decide on a sample that had to wait."""

    def bundle(self, count: int) -> Bundle:
        """Return a bundle for a number of commands that a link writes together."""
        ...

    def missed(self, target: Point) -> None:
        """Learn that a target has not the value that a route gave it."""


class WornPoints:
    """The writes of routes that are under way to such points."""

    def __init__(
        self, around: Around, is_connected: Callable[[Point], bool], is_online: Callable[[Point], bool]
    ) -> None:
        """Take the gateway, and what tells whether the link and the device of a point are there."""
        self._around = around
        self._is_connected = is_connected
        self._is_online = is_online
        self._failed_s: dict[str, float] = {}
        """When the last write of a point failed, if it did; by address, for a reload makes other points."""
        self._under_way: set[str] = set()
        self._held: dict[str, Delivery] = {}
        self._troubles: dict[str, str] = {}
        self._begun: dict[tuple[str, str], list[tuple[Delivery, Point, float]]] = {}
        """Device and group to what its members are to be given, until the end of this turn of the loop."""

    def keep_only(self, addresses: AbstractSet[str]) -> None:
        """Forget points that a reload removed. A write that is under way forgets its point when it ends."""
        for known in (self._failed_s, self._held, self._troubles):
            for address in known.keys() - addresses:
                del known[address]

    def holds(self, delivery: Delivery, point: Point, now_s: float) -> bool:
        """Return whether a sample cannot be decided now; it is kept, or was missed."""
        if point.address in self._under_way:
            self._held[point.address] = delivery
            return True
        failed_s = self._failed_s.get(point.address)
        may_be_there = failed_s is None or self._is_online(point) or now_s - failed_s >= PAUSE_S
        if self._is_connected(point) and may_be_there:
            return False
        self._around.missed(point)
        return True

    def begin(self, delivery: Delivery, point: Point, now_s: float) -> None:
        """Write a sample that was allowed and counted at a moment, with those of its group in this turn."""
        self._under_way.add(point.address)
        if not point.group:
            self._around.desk.write_routed(delivery, point, now_s, self._ended)
            return
        key = point.device, point.group
        if key not in self._begun:
            asyncio.get_running_loop().call_soon(self._write_group, key)
        self._begun.setdefault(key, []).append((delivery, point, now_s))

    def _write_group(self, key: tuple[str, str]) -> None:
        begun = self._begun.pop(key, [])
        bundle = self._around.bundle(len(begun)) if len(begun) > 1 else None
        for delivery, point, now_s in begun:
            self._around.desk.write_routed(delivery, point, now_s, self._ended, bundle)

    def refuse_group(self, refused: Point, reason: str) -> None:
        """Take back what the other members of a point's group were about to be given."""
        for delivery, point, now_s in self._begun.get((refused.device, refused.group), ()):
            self._under_way.discard(point.address)
            self._around.desk.take_back_routed(delivery, point, now_s, reason)
            self._around.missed(point)
        self._begun.get((refused.device, refused.group), []).clear()

    def _ended(self, delivery: Delivery, point: Point, answer: Answer) -> None:
        self._under_way.discard(point.address)
        self._failed_s.pop(point.address, None)
        if answer.outcome.is_done:
            if self._troubles.pop(point.address, None) is not None:
                _LOG.info("%s: writing works again", point.address)
        else:
            trouble = f"{answer.outcome}: {answer.reason}"
            if self._troubles.get(point.address) != trouble:
                self._troubles[point.address] = trouble
                _LOG.warning("%s: write of %s %s", point.address, answer.value, trouble)
            if answer.outcome is WriteOutcome.FAILED:
                self._failed_s[point.address] = self._around.clock.monotonic_s()
            is_unsent = answer.outcome in (WriteOutcome.REFUSED, WriteOutcome.EXPIRED)
            if is_unsent or (answer.outcome is WriteOutcome.FAILED and answer.reason in _AGAIN):
                self._around.missed(point)
        held = self._held.pop(point.address, None)
        if held is not None:
            self._around.offer(held)
