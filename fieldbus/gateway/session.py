"""The life of a link: connect, run, lose, wait, connect again.

Rules:

* What happened is said once: connected, lost and why, back after how long. While a link stays away
  for one reason, or is lost again each time that it is there, nothing more is said.
* When a link is lost its points are bad at once. What routes had written to it counts as not written:
  who knows what a machine has kept through a power cut. Each source's next sample is written anew.
* The waits grow from half a second to ten, with jitter, so that a hundred gateways do not come back in
  step; a session that held for a while begins anew.
* An error that nobody foresaw ends the session, not the gateway, and is the only thing that is logged
  with a traceback.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import LinkDownError, PeerIsBackError
from fieldbus.gateway.system import Status
from fieldbus.link import (
    ConnectionHealth,
    Emit,
    Event,
    GaugedLink,
    GaugesChanged,
    Link,
    Notice,
    Regrouped,
    WriteOutcome,
    WriteResult,
)
from fieldbus.model import Point, Reason

FIRST_WAIT_S = 0.5
REMIND_S = 86400.0
_LINK = ""
LONGEST_WAIT_S = 10.0
_COURTESY_S = 0.05
"""How long a peer waits that has come anew: it may do so without end."""
_SHAKY_S = 2.0
"""A session shorter than this was none, for people."""
_HELD_S = 5.0
"""A session that held so long was a good one: the next wait is short again."""

_NOT_NOW = (
    Reason.TIMEOUT, Reason.NOT_CONNECTED, Reason.BAD_RESPONSE,
    *(f"{Reason.DEVICE_EXCEPTION} {code}" for code in ("05", "06", "0A", "0B")),
)  # fmt: skip
"""Why a write failed, where the next sample may be taken: busy and unreachable among them."""
_UNKNOWN = {"response_time_ms": None, "clock_offset_ms": None}
"""What is measured of a device, while it is not there."""
_LOG = logging.getLogger("fieldbus")


class Reminders:
    """What lasts is said again once a day, so that it stands in each day's log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._since_s: dict[str, float] = {}

    def remember(self, what: str, text: str) -> None:
        """Say a text once a day from now on; another one about the same goes on from when the first began."""
        self._since_s.setdefault(what, self._clock.monotonic_s())
        self._wait(what, text)

    def _wait(self, what: str, text: str) -> None:
        before = self._waiting.pop(what, None)
        if before is not None:
            before.cancel()
        self._waiting[what] = asyncio.get_running_loop().call_later(REMIND_S, self._say, what, text)

    def _say(self, what: str, text: str) -> None:
        days = int((self._clock.monotonic_s() - self._since_s[what] + 1.0) / REMIND_S)
        _LOG.warning("%s, for %d day%s", text, days, "" if days == 1 else "s")
        self._wait(what, text)

    def forget(self, what: str) -> None:
        """Learn that it is over."""
        self._since_s.pop(what, None)
        found = self._waiting.pop(what, None)
        if found is not None:
            found.cancel()

    def forget_all(self) -> None:
        """Say nothing any more."""
        for what in list(self._waiting):
            self.forget(what)


class Session:
    """Keeps one link connected."""

    def __init__(
        self,
        link: Link,
        status: Status,
        devices: dict[str, Status],
        emit: Emit,
        tell: Callable[[Status], None],
        targets: Callable[[], Sequence[Point]],
        missed: Callable[[Point], None],
        is_first_up: Callable[[Sequence[Point]], None],
        regrouped: Callable[[Regrouped], None],
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what the session works with.

        Args:
            devices: statuses of the devices behind the link that can be lost on their own.
            tell: called with a status that has changed.
            targets: returns the points of the link that routes write.
            is_first_up: called with the targets when the link is connected for the first time.
            missed: called with a target that has not, or no longer, the value that it was given.
            regrouped: called when the link acquires its points in other groups from now on.
            clock: the gateway's.
        """
        self._clock = clock
        self._targets = targets
        self._missed = missed
        self._is_first_up = is_first_up
        self._regrouped = regrouped
        self._link = link
        self._status = status
        self._devices = devices
        self._emit = emit
        self._tell = tell
        self._sessions = 0
        self._offline: dict[str, str] = {}
        """Device to the reason for which it was last said to be lost."""
        self._reminders = Reminders(self._clock)
        self._write_troubles: dict[Point, str] = {}
        self._waiting_reason: str | None = None
        self._announcement: asyncio.TimerHandle | None = None
        self._is_announced = False
        """Whether it was said that the link is there, and not that it is lost."""
        self._is_known = False
        """Whether that was ever said."""
        self._short_sessions = 0
        """How many in a row ended as soon as they had begun."""
        self._up_at_s = 0.0
        self._lost_at_s = self._clock.monotonic_s()

    async def keep(self) -> None:
        """Run until cancelled."""
        wait_s = FIRST_WAIT_S
        while True:
            began_s = self._clock.monotonic_s()
            is_back = False
            try:
                await self._link.connect()
                self._came_up()
                if self._sessions == 1:
                    asyncio.get_running_loop().call_soon(self._is_first_up, self._targets())
                await self._link.run(self._emit, self._report)
                reason = "ended"
            except LinkDownError as error:
                reason = str(error)
                is_back = isinstance(error, PeerIsBackError)
            except asyncio.CancelledError:
                if self._announcement is not None:
                    self._announcement.cancel()
                self._reminders.forget_all()
                raise
            except Exception:
                _LOG.exception("%s: internal error; the link is opened anew", self._link.name)
                reason = "internal error"
            finally:
                await self._close()
            try:
                self._went_down(reason)
            except Exception:
                _LOG.exception("%s: internal error while it was lost", self._link.name)
            if self._clock.monotonic_s() - began_s >= _HELD_S:
                wait_s = FIRST_WAIT_S
            if is_back:
                await asyncio.sleep(_COURTESY_S)
                continue
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.25))
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    async def _close(self) -> None:
        try:
            await self._link.close()
        except Exception:
            _LOG.exception("%s: internal error while closing", self._link.name)

    def _came_up(self) -> None:
        self._reminders.forget(_LINK)
        self._up_at_s = self._clock.monotonic_s()
        if self._short_sessions > 1:
            # It was lost again at once, more than once: it is only said to be back when it has held.
            loop = asyncio.get_running_loop()
            self._announcement = loop.call_later(_SHAKY_S, self._announce, self._up_at_s)
        else:
            self._announce(self._up_at_s)
        self._status.set(connected=True, reconnects=self._sessions)
        self._sessions += 1
        self._tell(self._status)

    def _announce(self, since_s: float) -> None:
        """Say that the link is there."""
        self._announcement = None
        verb = "listening on" if self._link.is_listener else "connected to"
        if self._is_known:
            away_s = since_s - self._lost_at_s
            _LOG.info("%s: back, %s %s after %.1f s", self._link.name, verb, self._link.endpoint, away_s)
        else:
            _LOG.info("%s: %s %s", self._link.name, verb, self._link.endpoint)
        self._is_known = self._is_announced = True
        self._waiting_reason = None

    def _went_down(self, reason: str) -> None:
        if self._announcement is not None:
            self._announcement.cancel()
            self._announcement = None
        if self._status.is_true("connected"):
            was_short = self._clock.monotonic_s() - self._up_at_s < _SHAKY_S
            self._short_sessions = self._short_sessions + 1 if was_short else 0
        if self._is_announced:
            _LOG.warning("%s: lost (%s); trying again", self._link.name, reason)
            self._lost_at_s = self._clock.monotonic_s()
            self._is_announced = False
        elif self._waiting_reason != reason:
            where = "not listening on" if self._link.is_listener else "no connection to"
            _LOG.warning("%s: %s %s (%s); trying again", self._link.name, where, self._link.endpoint, reason)
        if self._waiting_reason != reason:
            self._reminders.remember(_LINK, f"{self._link.name}: still away ({reason})")
        self._waiting_reason = reason
        self._status.set(connected=False)
        if isinstance(self._link, GaugedLink):
            self._status.set(**self._link.gauge_values())
        self._tell(self._status)
        time_ns, now_s = self._clock.wall_ns(), self._clock.monotonic_s()
        for group in self._link.groups:
            self._emit(group.without_value(Reason.NOT_CONNECTED, time_ns, now_s))
        for status in self._devices.values():
            status.set(online=False, **_UNKNOWN)
            self._tell(status)
        for point in self._targets():
            self._missed(point)

    def _report(self, event: Event) -> None:
        if isinstance(event, WriteResult):
            self._wrote(event)
            return
        if isinstance(event, Notice):
            _LOG.warning("%s: %s", self._link.name, event.text)
            return
        if isinstance(event, GaugesChanged):
            if isinstance(self._link, GaugedLink):
                self._status.set(**self._link.gauge_values())
                self._tell(self._status)
            return
        if isinstance(event, Regrouped):
            self._regrouped(event)
            return
        if isinstance(event, ConnectionHealth):
            self._connection_is(event)
            return
        status = self._devices.get(event.device)
        if event.is_online:
            if self._offline.pop(event.device, None) is not None:
                _LOG.info("%s: answers again", event.device)
            self._reminders.forget(event.device)
        elif self._offline.get(event.device) != event.reason:
            self._offline[event.device] = event.reason or ""
            _LOG.warning("%s: lost, %s", event.device, event.reason)
            self._reminders.remember(event.device, f"{event.device}: still lost, {event.reason}")
            for point in self._targets():
                if point.device == event.device:
                    self._missed(point)
        if status is not None:
            status.set(online=event.is_online)
            if not event.is_online:
                status.set(**_UNKNOWN)
            self._tell(status)

    def _connection_is(self, event: ConnectionHealth) -> None:
        """Take whether a connection could be opened that is opened on demand; log what changed."""
        if not event.is_connected and self._waiting_reason != event.reason:
            _LOG.warning(
                "%s: no connection to %s (%s); the next read or write tries again",
                self._link.name, self._link.endpoint, event.reason,
            )  # fmt: skip
        elif event.is_connected and self._waiting_reason is not None:
            _LOG.info("%s: back, connected to %s", self._link.name, self._link.endpoint)
        self._waiting_reason = event.reason
        self._status.set(connected=event.is_connected)
        self._tell(self._status)

    def _wrote(self, result: WriteResult) -> None:
        is_done = result.outcome.is_done
        if is_done and result.reason is None:
            if self._write_troubles.pop(result.point, None) is not None:
                _LOG.info("%s: writing works again", result.point.address)
            return
        if result.outcome is WriteOutcome.UNKNOWN or (result.reason in _NOT_NOW and not is_done):
            # The link holds back what may have been written; a device that says no is not asked again.
            self._missed(result.point)
        trouble = f"{result.outcome}: {result.reason}"
        if self._write_troubles.get(result.point) != trouble:
            self._write_troubles[result.point] = trouble
            _LOG.warning("%s: write of %s %s", result.point.address, result.value, trouble)
