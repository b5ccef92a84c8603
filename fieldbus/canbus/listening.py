"""What comes in: frames become batches, senders that fall silent become stale.

Rules:

* Each group of signals (a message, or a branch of a multiplexed one) has a deadline of its own: the
  configuration's, the database's, or one learned from its rhythm. When it passes without a frame, the
  group's points are bad: stale. Nothing else is.
* Only signals that somebody wants are decoded as frames come in. The others are decoded when a watcher
  looks, from the newest frame, and only while watchers look.
* A frame with a wrong checksum or a counter that stands still is no value and no sign of life.
* A frame like the last one costs O(1).
* What was not heard yet is waited for, however long; it is stale only after it was heard.
* A device is online while any of its groups is. Of one of which nothing is wanted, one signal of each
  message is decoded, so that this is known.

Design: a frame finds its handler by its identifier in one dictionary; all that is rare (a first frame, a
frame after a silence, a guard, a request that is awaited) is kept off the path of the frame that comes
ten thousand times a second.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from operator import ne
from typing import Protocol

from fieldbus.canbus.codec import MessageDecoder
from fieldbus.canbus.deadlines import Learned
from fieldbus.canbus.layout import Condition, Signal
from fieldbus.canbus.messages import CanMessage, Guard
from fieldbus.canbus.schedule import Schedule
from fieldbus.clock import SYSTEM, Clock
from fieldbus.link import DeviceHealth, Emit, Report
from fieldbus.model import NO_FLAWS, Batch, Flaw, Group, Point, Reason, Value

_BEHIND_S = 0.05
_new = tuple.__new__
"""Makes a named tuple in half the time of its own constructor."""
WATCH_S = 10.0
"""So long after a watcher looked, what only watchers want is listened to."""


Handler = Callable[[bytes, int, float], None]
"""Takes data bytes, source time (ns, wall clock) and the same moment on the monotonic clock (s)."""


class BranchDecoder(Protocol):
    """Decodes some signals that are in a frame under the same condition."""

    @property
    def signals(self) -> Sequence[Signal]:
        """Which, in the order of the values."""
        ...

    @property
    def condition(self) -> Condition:
        """When they are in a frame."""
        ...

    def decode(self, data: bytes) -> tuple[Sequence[Value | None], Mapping[int, Flaw]]:
        """Return their values and flaws."""
        ...


class Decoder(Protocol):
    """Decodes some signals of a message."""

    @property
    def branches(self) -> Sequence[BranchDecoder]:
        """One for each condition."""
        ...

    def select(self, data: bytes) -> Sequence[int]:
        """Return which branches a frame carries."""
        ...


class _Device:
    """Whether any group of a device is alive."""

    __slots__ = ("is_online", "live", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.live = 0
        self.is_online = False


class Branch:
    """One group of a message that is listened to."""

    __slots__ = (
        "data", "deadline_s", "decoder", "flaws", "group", "incoming", "is_lost", "is_watched", "learned",
        "lost_reason", "seen_s", "values",
    )  # fmt: skip

    def __init__(self, incoming: Incoming, group: Group, decoder: BranchDecoder) -> None:
        self.incoming = incoming
        self.group = group
        self.decoder = decoder
        message = incoming.message
        self.deadline_s = message.deadline_of(decoder.condition)
        self.learned = Learned() if self.deadline_s is None and message.learns_deadline else None
        self.data: bytes | None = None
        self.values: Sequence[Value | None] = ()
        self.flaws: Mapping[int, Flaw] = NO_FLAWS
        self.seen_s = 0.0
        self.is_lost = True
        self.lost_reason: str | None = None
        self.is_watched = False
        """Whether there is an appointment at which it is looked whether it is overdue."""

    def read(self, data: bytes, time_ns: int, at_s: float) -> Batch:
        """Return what a frame says that is not like the last one."""
        values, flaws = self.decoder.decode(data)
        if self.is_lost:
            changed: Sequence[int] = self.group.everything
            self.is_lost, self.lost_reason = False, None
            self.incoming.listener.came(self)
        elif not flaws and not self.flaws:
            if values == self.values:
                changed = ()
            elif len(values) == 1:
                changed = self.group.everything
            else:
                changed = list(compress(self.group.everything, map(ne, values, self.values)))
        else:
            old_values, old_flaws = self.values, self.flaws
            changed = [
                index
                for index, value in enumerate(values)
                if value != old_values[index] or flaws.get(index) != old_flaws.get(index)
            ]
        self.data, self.values, self.flaws = data, values, flaws or NO_FLAWS
        return _new(Batch, (self.group, time_ns, at_s, values, self.flaws, changed))

    def take(self, data: bytes, time_ns: int, at_s: float) -> Batch:
        """Return what a frame says."""
        self.seen_s = at_s
        learned = self.learned
        if learned is not None:
            learned.seen(at_s)
            if not self.is_watched and learned.deadline_s is not None:
                self.incoming.listener.watch(self)
        if data == self.data:
            return Batch(self.group, time_ns, at_s, self.values, self.flaws, ())
        return self.read(data, time_ns, at_s)


class Incoming:
    """A message that is listened to."""

    __slots__ = (
        "asked_s", "branches", "cold", "decoder", "device", "fault", "guard", "is_plain", "last", "listener",
        "message", "unwanted",
    )  # fmt: skip

    def __init__(self, listener: Listener, message: CanMessage, wanted: Collection[Point] | None) -> None:
        self.listener = listener
        self.message = message
        self.device = listener.device(message.device)
        signals = [item for item, point in message.points.items() if wanted is None or point in wanted]
        others = [item for item in message.points if item not in set(signals)]
        self.decoder = _decoder(message, signals)
        self.branches = [
            Branch(self, _group(message, item), item) for item in self.decoder.branches if item.signals
        ]
        self.unwanted = _decoder(message, others)
        self.cold = [
            Branch(self, _group(message, item, " unrouted"), item)
            for item in self.unwanted.branches
            if item.signals
        ]
        self.last: dict[int, tuple[bytes, int, float]] = {}
        """The newest frame of each branch that only watchers want …"""
        self.fault: str | None = None
        """… or why there is none to be believed."""
        self.guard: Guard | None = message.guard() if message.guard is not None else None
        self.asked_s: float | None = None
        """When its request was sent, while the answer is awaited."""
        self.is_plain = (
            len(self.branches) == 1
            and not self.branches[0].decoder.condition
            and self.guard is None
            and message.request is None
        )

    @property
    def longest_deadline_s(self) -> float:
        """The longest deadline of a branch that is watched over; infinity if none has one."""
        found = [limit for branch in self.branches if (limit := self.listener.deadline(branch)) is not None]
        return max(found, default=float("inf"))

    @property
    def is_needed(self) -> bool:
        """Whether anybody wants it now."""
        return bool(self.branches) or self.listener.is_watched

    def handler(self) -> Handler:
        """Return what takes its frames in this session, by the shortest way that there is."""
        if not self.is_plain:
            return self.take
        branch, listener, emit = self.branches[0], self.listener, self.listener.emit
        group, learned = branch.group, branch.learned

        def take(data: bytes, time_ns: int, at_s: float) -> None:
            if listener.is_watched:
                self.take(data, time_ns, at_s)
                return
            branch.seen_s = at_s
            if learned is not None:
                learned.seen(at_s)
                if not branch.is_watched and learned.deadline_s is not None:
                    listener.watch(branch)
            if data == branch.data:
                emit(_new(Batch, (group, time_ns, at_s, branch.values, branch.flaws, ())))
            else:
                emit(branch.read(data, time_ns, at_s))

        return take

    def take(self, data: bytes, time_ns: int, at_s: float) -> None:
        """Take a frame."""
        listener = self.listener
        if self.guard is not None:
            reason = self.guard.check(data)
            if reason is not None:
                listener.counters["rx_not_believed"] += 1
                listener.spoil(self.branches, reason)
                self.last.clear()
                self.fault = reason
                return
        self.asked_s = None
        if self.is_plain:
            listener.emit(self.branches[0].take(data, time_ns, at_s))
        else:
            branches = self.branches
            for index in self.decoder.select(data):
                listener.emit(branches[index].take(data, time_ns, at_s))
        if listener.is_watched and self.cold:
            self.fault = None
            for index in self.unwanted.select(data):
                self.last[index] = (data, time_ns, at_s)
                learned = self.cold[index].learned
                if learned is not None:
                    learned.seen(at_s)


def _decoder(message: CanMessage, signals: Collection[Signal]) -> Decoder:
    made: Decoder = (message.decoder or partial(MessageDecoder, message.message))(signals)
    return made


def _group(message: CanMessage, decoder: BranchDecoder, note: str = "") -> Group:
    label = "".join(f" {name}={min(values)}" for name, values in decoder.condition)
    points = (message.points[signal] for signal in decoder.signals)
    return Group(f"{message.device} {message.message.name}{label}{note}", points)


class Listener:
    """All messages of a bus that are listened to."""

    def __init__(
        self,
        messages: Iterable[CanMessage],
        wanted: Collection[Point] | None,
        counters: dict[str, int],
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        """Make the groups.

        Args:
            messages: those that others send.
            wanted: the points that somebody reads; None for all.
            counters: where what happens is counted.
            clock: the gateway's.
        """
        self._clock = clock
        self.counters = counters
        self._devices: dict[str, _Device] = {}
        messages = list(messages)
        wanted = None if wanted is None else {*wanted, *_signs_of_life(messages, wanted)}
        self.incoming = [Incoming(self, message, wanted) for message in messages]
        self.groups: Sequence[Group] = [
            branch.group for item in self.incoming for branch in (*item.branches, *item.cold)
        ]
        self.emit: Emit = _nowhere
        self._report: Report | None = None
        self._schedule: Schedule | None = None
        self._is_down = False
        """Whether the bus is off: nothing else is said of what has no value then."""
        self.is_behind = False
        """Whether more frames wait than can be taken now: then nobody is called silent."""
        self.is_watched = False
        self._watched_s = 0.0
        self._was_up = False

    def device(self, name: str) -> _Device:
        """Return a device's state."""
        return self._devices.setdefault(name, _Device(name))

    def needed(self) -> list[CanMessage]:
        """Return the messages that must be received now: while watchers look, all."""
        return [item.message for item in self.incoming if item.is_needed]

    # --- a session

    def start(self, emit: Emit, report: Report, schedule: Schedule) -> None:
        """Begin to listen."""
        self.emit, self._report, self._schedule = emit, report, schedule
        now_s = self._clock.monotonic_s()
        for incoming in self.incoming:
            for branch in incoming.branches:
                if self._was_up:
                    emit(branch.group.without_value(Reason.WAITING, self._clock.wall_ns(), now_s))
        self._was_up = True

    def stop(self) -> None:
        """Forget the session: nothing that was heard in it counts any more."""
        self.emit, self._report, self._schedule = _nowhere, None, None
        self.is_watched = self.is_behind = self._is_down = False
        for incoming in self.incoming:
            incoming.asked_s = incoming.fault = None
            incoming.last.clear()
            if incoming.guard is not None:
                incoming.guard.reset()
            for branch in (*incoming.branches, *incoming.cold):
                branch.is_lost, branch.data, branch.is_watched = True, None, False
                branch.lost_reason = None
                if branch.learned is not None:
                    branch.learned.interrupt()
        for device in self._devices.values():
            device.live, device.is_online = 0, False

    # --- deadlines

    def watch(self, branch: Branch) -> None:
        """Look at a branch when it is overdue."""
        deadline_s = self.deadline(branch)
        if branch.is_watched or deadline_s is None or self._schedule is None:
            return
        branch.is_watched = True

        def look(now_s: float) -> float | None:
            deadline_s = self.deadline(branch)
            if deadline_s is None:
                branch.is_watched = False
                return None
            due_s = branch.seen_s + deadline_s
            if now_s < due_s:
                return due_s
            if self.is_behind:
                return now_s + _BEHIND_S
            branch.is_watched = False
            self.spoil([branch], Reason.STALE)
            return None

        self._schedule.at(branch.seen_s + deadline_s, look)

    @staticmethod
    def deadline(branch: Branch) -> float | None:
        """Return the deadline of a branch, learned ones included."""
        if branch.deadline_s is not None:
            return branch.deadline_s
        return None if branch.learned is None else branch.learned.deadline_s

    # --- life and death

    def came(self, branch: Branch) -> None:
        """Learn that a branch is alive again."""
        device = branch.incoming.device
        device.live += 1
        self.is_heard(device)
        self.watch(branch)

    def is_heard(self, device: _Device) -> None:
        """Learn that a device has spoken."""
        if not device.is_online:
            device.is_online = True
            if self._report is not None:
                self._report(DeviceHealth(device.name, True))

    def spoil(self, branches: Iterable[Branch], reason: str) -> None:
        """Say that branches have no value, and why; once."""
        now_s, now_ns = self._clock.monotonic_s(), self._clock.wall_ns()
        for branch in branches:
            if branch.is_lost and (branch.lost_reason == reason or self._is_down):
                continue
            was_alive = not branch.is_lost
            branch.is_lost, branch.data, branch.lost_reason = True, None, reason
            batch = branch.group.without_value(reason, now_ns, now_s)
            branch.values, branch.flaws = batch.values, batch.flaws
            self.emit(batch)
            if was_alive:
                device = branch.incoming.device
                device.live -= 1
                if device.live == 0 and device.is_online:
                    device.is_online = False
                    if self._report is not None:
                        self._report(DeviceHealth(device.name, False, reason))

    def spoil_all(self, reason: str) -> None:
        """Say that nothing that comes over the bus has a value."""
        for incoming in self.incoming:
            self.spoil(incoming.branches, reason)
            incoming.last.clear()
            incoming.fault = reason
            for branch in (*incoming.branches, *incoming.cold):
                if branch.learned is not None:
                    branch.learned.interrupt()  # the silence to come is the bus's, not the sender's
            if self.is_watched:
                self._refresh(incoming)
        self._is_down = True

    def bus_is_back(self) -> None:
        """Learn that values may come again."""
        self._is_down = False
        for incoming in self.incoming:
            incoming.fault = None
            self.spoil([item for item in incoming.branches if item.is_lost], Reason.WAITING)

    def give_up(self, incoming: Incoming, reason: str) -> None:
        """Learn that a node did not answer, or will not."""
        self.spoil(incoming.branches, reason)
        incoming.last.clear()
        incoming.fault = reason
        if self.is_watched:
            self._refresh(incoming)

    # --- watchers

    def refresh(self) -> bool:
        """Have the newest values of what only watchers want; return whether they have just come."""
        now_s = self._clock.monotonic_s()
        began = not self.is_watched
        self.is_watched, self._watched_s = True, now_s
        for incoming in self.incoming:
            if began:
                for branch in incoming.cold:
                    branch.is_lost, branch.lost_reason = True, None
                    self._take_away(branch, incoming.fault or Reason.WAITING)
            else:
                self._refresh(incoming)
        return began

    def _refresh(self, incoming: Incoming) -> None:
        now_s = self._clock.monotonic_s()
        for index, branch in enumerate(incoming.cold):
            if incoming.fault is not None:
                self._take_away(branch, incoming.fault)
                continue
            found = incoming.last.get(index)
            if found is None:
                continue
            data, time_ns, at_s = found
            deadline_s = self.deadline(branch)
            if deadline_s is None:
                deadline_s = incoming.longest_deadline_s
            if now_s - at_s > deadline_s:
                self._take_away(branch, Reason.STALE)
                continue
            values, flaws = branch.decoder.decode(data)
            changed = branch.group.everything if branch.is_lost or data != branch.data else ()
            branch.is_lost, branch.lost_reason, branch.data = False, None, data
            self.emit(Batch(branch.group, time_ns, at_s, values, flaws or NO_FLAWS, changed))

    def _take_away(self, branch: Branch, reason: str) -> None:
        """Say that a branch that only watchers want has no value."""
        if branch.is_lost and branch.lost_reason == reason:
            return
        branch.is_lost, branch.lost_reason, branch.data = True, reason, None
        self.emit(branch.group.without_value(reason, self._clock.wall_ns(), self._clock.monotonic_s()))

    def watchers_left(self, now_s: float) -> bool:
        """Return whether nobody has looked for a while, once."""
        if self.is_watched and now_s - self._watched_s > WATCH_S:
            self.is_watched = False
            for incoming in self.incoming:
                incoming.last.clear()
                for branch in incoming.cold:
                    if branch.learned is not None:
                        branch.learned.interrupt()
            return True
        return False


def _signs_of_life(messages: Sequence[CanMessage], wanted: Collection[Point]) -> list[Point]:
    """Return a point of each message of the devices of which nobody wants any.

    Whether such a device is online is still asked for, and its messages tell.
    """
    wanted = set(wanted)
    known = {item.device for item in messages if not wanted.isdisjoint(item.points.values())}
    return [next(iter(item.points.values())) for item in messages if item.device not in known and item.points]


def _nowhere(_batch: Batch) -> None:
    """Take what comes between two sessions."""
