"""What goes out: routed values become frames, repeated by the bus's own clock where it has one.

Rules:

* Only messages of which a route writes a signal are ever sent, and only while each routed signal in the
  frame has a value (`outgoing`). A signal that was not heard yet is like one whose source is bad.
* A message is sent when a routed signal of it changes, and at its cycle time. While the source of a
  routed signal is bad the signal has its safe value, if the configuration says one; else the message,
  or the branch, is not sent: its receivers see it missing, as they would see a dead node.
* What the bus has no room for waits, for at most `QUEUE_AGE_S`; a newer frame takes the place of an older
  one of the same message. What is too old is dropped and counted.
* Where a budget of the bus's load is set, a change that would exceed it waits until it does not; what is
  then sent is the newest.
* After the bus was lost every signal needs a value again: what routes gave before is old.

Design: a cyclic message is handed to the kernel's broadcast manager, which goes on while the gateway is
stalled. It is told every second that we are there; otherwise it ends by itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fieldbus.canbus.bits import frame_bits
from fieldbus.canbus.bus import EXTENDED, EXTENDED_MASK, Bus
from fieldbus.canbus.j1939.identifiers import TRANSPORT_DATA, TRANSPORT_MANAGEMENT, pgn_of
from fieldbus.canbus.layout import Condition, Signal
from fieldbus.canbus.messages import CanMessage
from fieldbus.canbus.outgoing import Address, Budget, Outgoing
from fieldbus.canbus.schedule import Schedule
from fieldbus.clock import SYSTEM, Clock
from fieldbus.errors import ConversionError, LinkDownError, RefusedError
from fieldbus.link import NEVER, Delivery, StillAllowed, WriteOutcome, WriteResult
from fieldbus.model import Point, Value

QUEUE_AGE_S = 0.25
MAX_QUEUE = 512
_RETRY_S = 0.002
_KEEP_ALIVE_S = 1.0
_SAY_MISSING_S = 10.0
"""So long after the bus came up, messages that still wait for a value are named in the log."""
_MOST_NAMED = 8


class _Waiting(NamedTuple):
    """A frame that the bus had no room for."""

    until_s: float
    can_id: int
    data: bytes
    flags: int


_Key = tuple[Outgoing, Condition] | tuple[int, bytes]
"""A message and its branch; of other frames the identifier and data, or a number below 0 if each counts."""


class Sender:
    """All messages of a bus that routes write."""

    def __init__(
        self,
        messages: Iterable[CanMessage],
        targets: set[Point],
        counters: dict[str, int],
        *,
        address: Address | None = None,
        bits_per_s: float | None = None,
        needs_all: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        """Take what is written.

        Args:
            messages: of which at least a signal is a target.
            targets: points that routes write.
            counters: where what happens is counted.
            address: gives identifiers.
            bits_per_s: the budget; None for no limit.
            needs_all: whether a message is sent only if all of its signals have a value; for one write.
            clock: the gateway's.
        """
        self._clock = clock
        self.outgoing: dict[Point, Outgoing] = {}
        self._signal_of: dict[Point, Signal] = {}
        for message in messages:
            routed = [signal for signal, point in message.points.items() if point in targets]
            outgoing = Outgoing(message, routed, needs_all=needs_all)
            for signal in routed:
                self.outgoing[message.points[signal]] = outgoing
                self._signal_of[message.points[signal]] = signal
        self.messages = list(dict.fromkeys(self.outgoing.values()))
        self._counters = counters
        self._address = address or Address()
        self._budget = None if bits_per_s is None else Budget(bits_per_s)
        self._queue: dict[_Key, _Waiting] = {}
        """Frames that the bus had no room for, oldest first."""
        self._bus: Bus | None = None
        self._schedule: Schedule | None = None
        self._lost: Callable[[Exception], None] = _nobody
        self._notice: Callable[[str], None] = _nobody
        self.is_silent = False
        """Whether the bus is off."""
        self._refusal: str | None = None
        """Why this bus can never send what was tried last."""
        self.still_allowed: StillAllowed | None = None
        """Asked for each value of a write when there is room on the bus."""
        self._is_retrying = False
        self._numbers = itertools.count(1)

    # --- a session

    def start(
        self,
        bus: Bus,
        schedule: Schedule,
        lost: Callable[[Exception], None],
        notice: Callable[[str], None],
    ) -> None:
        """Begin to send.

        Args:
            bus: the open bus.
            schedule: of the session.
            lost: told that the bus is gone.
            notice: told what people should know.
        """
        self._bus, self._schedule, self._lost, self._notice = bus, schedule, lost, notice
        self.is_silent = False
        now_s = self._clock.monotonic_s()
        for outgoing in self.messages:
            if outgoing.message.cycle_s is not None:
                schedule.at(now_s, self._repeater(outgoing, outgoing.message.cycle_s))
        if self.messages:
            schedule.at(now_s + _KEEP_ALIVE_S, self._keep_alive)
            schedule.at(now_s + _SAY_MISSING_S, self._say_missing)

    def _say_missing(self, _now_s: float) -> None:
        """Say once which messages wait for a value."""
        for outgoing in self.messages:
            message, missing = outgoing.message, outgoing.missing - outgoing.given
            unheard = [signal for signal in message.message.signals if signal in missing]
            if unheard and outgoing.given:
                self._notice(
                    f"{message.device}.{message.message.name} is not sent: no value yet for {_named(unheard)}"
                )

    def stop(self) -> None:
        """End the session."""
        self._bus, self._schedule, self._lost, self._notice = None, None, _nobody, _nobody
        for outgoing in self.messages:
            self._still(outgoing)
            outgoing.reset()
        self._queue.clear()
        self._is_retrying = False

    @property
    def is_up(self) -> bool:
        """Whether there is a bus that takes frames."""
        return self._bus is not None and not self.is_silent

    def silence(self) -> None:
        """Send nothing any more: the bus is off. Values are still taken."""
        self.is_silent = True
        for outgoing in self.messages:
            self._still(outgoing)

    def can_id(self, outgoing: Outgoing) -> int | None:
        """Return the identifier under which a message goes out now."""
        return self._address.can_id(outgoing.message)

    # --- values

    def take(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Put routed values into their messages and send those that changed; return what cannot go."""
        if self._bus is None:
            return deliveries
        touched: dict[Outgoing, None] = {}
        for delivery in deliveries:
            point = delivery.target.point
            outgoing = None if point is None else self.outgoing.get(point)
            if outgoing is None or point is None:
                continue
            if self._put(outgoing, point, delivery.sample.value):
                touched[outgoing] = None
        if self.is_silent:
            # What it says is kept for when the bus is back, and what was missed is offered anew.
            for outgoing in touched:
                outgoing.is_unsent = True
            return deliveries
        for outgoing in touched:
            self._send_changed(outgoing)
        return ()

    def _put(self, outgoing: Outgoing, point: Point, value: Value | None) -> bool:
        """Put a value in; return whether the message is to be sent because of it."""
        signal = self._signal_of[point]
        if value is not None:
            try:
                if (refusal := point.refusal(value)) is not None:
                    raise ConversionError(refusal)
                return outgoing.give(signal, value)
            except ConversionError:
                # What cannot be said is not replaced by what was said before.
                self._counters["conversions_failed"] += 1
        is_changed = outgoing.take_away(signal)
        if signal in outgoing.missing:
            self._still(outgoing)
            return outgoing.is_repeated_in_part  # the branches without the signal go on
        return is_changed or outgoing.is_unsent

    async def write(self, values: Mapping[Point, Value], *, until_s: float = NEVER) -> list[WriteResult]:
        """Send messages with values and say how that ended.

        What is in one message goes in one frame, or, if any of it is refused, not at all. Nothing is sent
        from `until_s` on (monotonic), nor what is not allowed any more when there is room on the bus.
        """
        results: dict[Point, WriteResult] = {}
        touched: dict[Outgoing, list[Point]] = {}
        for point, value in values.items():
            outgoing = self.outgoing.get(point)
            if outgoing is None:
                results[point] = WriteResult(point, value, WriteOutcome.REFUSED, "not sent by us")
                continue
            touched.setdefault(outgoing, []).append(point)
            try:
                self._signal_of[point].to_raw(value)
            except ConversionError as error:
                results[point] = WriteResult(point, value, WriteOutcome.REFUSED, str(error))
        for outgoing, points in touched.items():
            refused = [point for point in points if point in results]
            if refused:
                reason = f"not sent, because {refused[0].name} was refused"
                for point in points:
                    refusal = WriteResult(point, values[point], WriteOutcome.REFUSED, reason)
                    results.setdefault(point, refusal)
                continue
            for result in await self._write_message(
                outgoing, {point: values[point] for point in points}, until_s
            ):
                results[result.point] = result
        return [results[point] for point in values]

    async def _write_message(
        self, outgoing: Outgoing, values: Mapping[Point, Value], until_s: float
    ) -> list[WriteResult]:
        """Send one message with values that fit, if nothing else in its frames is without a value."""
        before = outgoing.state()
        signals = {self._signal_of[point]: value for point, value in values.items()}
        for signal, value in signals.items():
            outgoing.give(signal, value)
        branches = outgoing.branches_with(signals)
        refusal = _write_refusal(outgoing, signals, branches)
        if refusal is not None:
            outgoing.restore(before)
            refused = WriteOutcome.REFUSED
            return [WriteResult(point, value, refused, refusal) for point, value in values.items()]
        given = outgoing.state()
        failure, is_unsent = await self._send_now(
            outgoing, branches, lambda: self._refusal_of(values, until_s)
        )
        if is_unsent and outgoing.state() == given:
            outgoing.restore(before)  # else the next frame of the message would carry it
        outgoing.touched.difference_update(signals)
        if isinstance(failure, tuple):
            outcome, reason = failure
            return [WriteResult(point, value, outcome, reason) for point, value in values.items()]
        others = outgoing.beside(signals, branches)
        note = None
        if others:
            more = "" if len(others) <= _MOST_NAMED else f" and {len(others) - _MOST_NAMED} more"
            note = f"in the same frame: {', '.join(map(outgoing.words, others[:_MOST_NAMED]))}{more}"
        outcome = WriteOutcome.WRITTEN if failure is None else WriteOutcome.FAILED
        return [
            WriteResult(point, self._signal_of[point].nearest(value), outcome, failure or note)
            for point, value in values.items()
        ]

    def send_pgn(self, pgn: int) -> bool:
        """Send the message of a PGN once, as it is now; return whether there is one that may be sent."""
        for outgoing in self.messages:
            is_meant = outgoing.message.is_j1939 and pgn_of(outgoing.message.can_id) == pgn
            if is_meant and self.is_up and (ready := outgoing.ready()):
                for branch, data in zip(ready, outgoing.frames(ready), strict=True):
                    self._enqueue(outgoing, branch, data)
                return True
        return False

    def _refusal_of(self, values: Mapping[Point, Value], until_s: float) -> tuple[WriteOutcome, str] | None:
        """Return how a write ends that must not be sent any more."""
        if self._clock.monotonic_s() >= until_s:
            return WriteOutcome.EXPIRED, "its turn came too late"
        if self.still_allowed is None:
            return None
        refusals = (self.still_allowed(point, value) for point, value in values.items())
        return next((refusal for refusal in refusals if refusal is not None), None)

    async def _send_now(
        self,
        outgoing: Outgoing,
        branches: Sequence[Condition],
        refusal_now: Callable[[], tuple[WriteOutcome, str] | None],
    ) -> tuple[str | tuple[WriteOutcome, str] | None, bool]:
        """Send the frames of branches once, waiting a moment for room.

        Returns:
            Why that failed, or None; and whether nothing was sent.
        """
        refusal = refusal_now()
        if refusal is not None:
            return refusal, True
        end_s = self._clock.monotonic_s() + QUEUE_AGE_S
        self._refusal = None
        cycle_s = outgoing.message.cycle_s
        if cycle_s is not None and self.is_up and self._repeat(outgoing, outgoing.ready(), cycle_s):
            return self._refusal, False  # the bus goes on with these values
        is_unsent = True
        for data in outgoing.frames(branches):
            while not self._hand_over(outgoing, data):
                if not self.is_up or self._clock.monotonic_s() > end_s:
                    return "the bus did not take the frame", is_unsent
                await asyncio.sleep(_RETRY_S)
                refusal = refusal_now() if is_unsent else None
                if refusal is not None:
                    return refusal, True
            is_unsent = False
        return self._refusal or await self._address.is_sent(outgoing.message), False

    # --- frames

    def _send_changed(self, outgoing: Outgoing) -> None:
        """Send what a change made of a message, within the budget."""
        if outgoing.is_waiting or not (branches := outgoing.changed()):
            return
        if self._budget is not None:
            message = outgoing.message.message
            bits = frame_bits(message.length, is_extended=message.is_extended, is_fd=message.is_fd)
            wait_s = self._budget.wait_s(bits * len(branches), self._clock.monotonic_s())
            if wait_s > 0 and self._schedule is not None:
                self._counters["tx_delayed"] += 1
                outgoing.is_waiting = True

                def go_on(_now_s: float) -> None:
                    outgoing.is_waiting = False
                    if self.is_silent:
                        outgoing.is_unsent = True
                    self._send_changed(outgoing)

                self._schedule.at(self._clock.monotonic_s() + wait_s, go_on)
                return
        self._transmit(outgoing, branches)

    def _transmit(self, outgoing: Outgoing, branches: Sequence[Condition]) -> None:
        """Send branches of a message now, by the bus's clock from now on if it has one."""
        if not branches or not self.is_up:
            return
        outgoing.sent_s = self._clock.monotonic_s()
        outgoing.is_unsent = False
        outgoing.touched.clear()
        if outgoing.message.cycle_s is not None and self._repeat(
            outgoing, branches, outgoing.message.cycle_s
        ):
            return
        # Every branch is tried, whether the bus took the one before or not.
        for branch, data in zip(branches, outgoing.frames(branches), strict=True):
            self._enqueue(outgoing, branch, data)

    def _repeat(self, outgoing: Outgoing, branches: Sequence[Condition], cycle_s: float) -> bool:
        """Have the bus repeat branches of a message with their present content; return whether it does.

        They take their turn, so that each is sent once a cycle.
        """
        bus = self._bus
        frames = outgoing.turn(branches)
        can_id = self.can_id(outgoing)
        if (
            bus is None
            or not frames
            or can_id is None
            or len(frames[0]) > (64 if outgoing.message.flags else 8)
        ):
            return False
        if outgoing.cyclic is not None and outgoing.repeated_branches != len(branches):
            self._still(outgoing)  # another rhythm
            frames = outgoing.turn(branches) or frames
        outgoing.repeated, outgoing.repeated_branches = frames, len(branches)
        try:
            if outgoing.cyclic is not None:
                outgoing.cyclic.update(frames, at_once=True)
                return True
            outgoing.repeated_since_s = self._clock.monotonic_s()
            outgoing.cyclic = bus.repeat(can_id, frames, cycle_s / len(branches), outgoing.message.flags)
        except LinkDownError as error:
            self._lost(error)
            return True
        except (RefusedError, ValueError) as error:
            self._refused(can_id, error)
            return True
        return outgoing.cyclic is not None

    def _still(self, outgoing: Outgoing) -> None:
        """Have a message not repeated any more, nor sent late."""
        cyclic, outgoing.cyclic, outgoing.repeated = outgoing.cyclic, None, []
        self._address.drop_long(outgoing.message)
        if cyclic is not None:
            if outgoing.guard is not None and outgoing.message.cycle_s is not None:
                # How many the bus has sent only the clock tells: rather one count too many than one twice.
                took_s = self._clock.monotonic_s() - outgoing.repeated_since_s
                outgoing.guard.advance(
                    int(took_s / outgoing.message.cycle_s * outgoing.repeated_branches) + 3
                )
            try:
                cyclic.stop()
            except (LinkDownError, OSError):
                pass  # the bus is gone, and with it what it repeated
        for key in [key for key in self._queue if key[0] is outgoing]:
            del self._queue[key]
            self._counters["tx_dropped"] += 1
            outgoing.is_unsent = True

    def still_all(self) -> None:
        """Have nothing repeated any more, nor anything under our address; values stay."""
        for outgoing in self.messages:
            self._still(outgoing)

    def resume(self, *, after_outage: bool) -> None:
        """Send what holds now: the bus, or our address on it, is there.

        What is not repeated is a command, and not given anew after an outage; a safe value is none.
        """
        for outgoing in self.messages:
            is_due = outgoing.is_unsent and (bool(outgoing.safe) or not after_outage)
            if outgoing.message.cycle_s is not None or is_due:
                self._transmit(outgoing, outgoing.changed())

    def _enqueue(self, outgoing: Outgoing, branch: Condition, data: bytes) -> None:
        can_id = self.can_id(outgoing)
        if can_id is None:
            outgoing.is_unsent = True
            return
        key = (outgoing, branch)
        if key in self._queue or not self._hand_over(outgoing, data):
            if outgoing.message.is_j1939 and len(data) > 8:
                self._counters["tx_dropped"] += 1
                outgoing.is_unsent = True
            else:
                self._wait(key, can_id, data, outgoing.message.flags)

    def _hand_over(self, outgoing: Outgoing, data: bytes) -> bool:
        if outgoing.message.is_j1939 and len(data) > 8:
            return self._address.send_long(outgoing.message, data)
        can_id = self._address.can_id(outgoing.message)
        return can_id is not None and self._raw(can_id, data, outgoing.message.flags)

    def send_raw(self, can_id: int, data: bytes, flags: int = 0) -> bool:
        """Send a frame that is no routed message: a request, a transport packet; it may wait too."""
        if not self.is_up:
            return False
        if can_id & EXTENDED and pgn_of(can_id) in (TRANSPORT_DATA, TRANSPORT_MANAGEMENT):
            # Packets of a message keep their order, whatever waits already, and each counts.
            is_behind = any(isinstance(key[0], int) and key[0] < 0 for key in self._queue)
            if is_behind or not self._raw(can_id, data, flags):
                self._wait((-next(self._numbers), data), can_id, data, flags)
        elif not self._raw(can_id, data, flags):
            self._wait((can_id, data), can_id, data, flags)
        return True

    def _raw(self, can_id: int, data: bytes, flags: int) -> bool:
        bus = self._bus
        if bus is None or self.is_silent:
            return False
        try:
            if not bus.send(can_id, data, flags):
                return False
        except LinkDownError as error:
            self._lost(error)
            return False
        except RefusedError as error:
            self._refused(can_id, error)
            return True  # it will never go: nothing to try again
        self._counters["tx_frames"] += 1
        return True

    def _refused(self, can_id: int, error: Exception) -> None:
        """Count a frame that this bus can never send, and say so."""
        self._counters["tx_dropped"] += 1
        self._refusal = str(error)
        self._notice(f"0x{can_id & EXTENDED_MASK:X} cannot be sent: {error}")

    def _wait(self, key: _Key, can_id: int, data: bytes, flags: int) -> None:
        until_s = self._clock.monotonic_s() + QUEUE_AGE_S
        if key in self._queue:
            until_s = self._queue[key].until_s
        elif len(self._queue) >= MAX_QUEUE:
            self._drop(key)
            return
        elif not self._is_retrying and self._schedule is not None:
            self._is_retrying = True
            self._schedule.at(self._clock.monotonic_s() + _RETRY_S, self._retry)
        self._queue[key] = _Waiting(until_s, can_id, data, flags)

    def _drop(self, key: _Key) -> None:
        self._counters["tx_dropped"] += 1
        if isinstance(key[0], Outgoing):
            key[0].is_unsent = True

    def _retry(self, now_s: float) -> float | None:
        """Try again what waits, in its order."""
        for key, waiting in list(self._queue.items()):
            if now_s > waiting.until_s:
                del self._queue[key]
                self._drop(key)
            elif self._raw(waiting.can_id, waiting.data, waiting.flags):
                self._queue.pop(key, None)
            else:
                break
        self._is_retrying = bool(self._queue)
        return now_s + _RETRY_S if self._queue else None

    # --- the clock

    def _repeater(self, outgoing: Outgoing, cycle_s: float) -> Callable[[float], float]:
        due_s = self._clock.monotonic_s()

        def repeat(now_s: float) -> float:
            nonlocal due_s
            due_s = max(due_s + cycle_s, now_s)
            if outgoing.cyclic is not None:
                return due_s + 1.0  # the bus does it
            # A frame that a change caused a moment ago serves as this cycle's.
            if now_s - outgoing.sent_s >= cycle_s * 0.5:
                self._transmit(outgoing, outgoing.ready())
            return due_s

        return repeat

    def _keep_alive(self, now_s: float) -> float:
        for outgoing in self.messages:
            if outgoing.cyclic is not None:
                try:
                    outgoing.cyclic.keep_alive()
                except LinkDownError as error:
                    self._lost(error)
        return now_s + _KEEP_ALIVE_S

    def is_repeated(self, can_id: int, data: bytes) -> bool:
        """Return whether a frame is one that the bus repeats for us."""
        return any(
            data in outgoing.repeated
            for outgoing in self.messages
            if outgoing.repeated and self.can_id(outgoing) == can_id
        )


def _write_refusal(
    outgoing: Outgoing, written: Mapping[Signal, Value], branches: Sequence[Condition]
) -> str | None:
    """Return why a message cannot be sent with what is written, or None."""
    name = outgoing.message.message.name
    present = {item for branch in branches for item in outgoing.encoder.present(branch)}
    lost = [signal for signal in written if signal.name not in present]
    if lost:
        return f"not sent: {_named(lost)} of {name} would be in no frame, by its multiplexer"
    missing = dict.fromkeys(signal for branch in branches for signal in outgoing.missing_in(branch))
    if not missing:
        return None
    return (
        f"not sent: {name} has no value for {_named(list(missing))}; "
        f"write all of them at once, or name values under `on_bad` of the message"
    )


def _named(signals: Sequence[Signal]) -> str:
    more = "" if len(signals) <= _MOST_NAMED else f" and {len(signals) - _MOST_NAMED} more"
    return ", ".join(signal.name for signal in signals[:_MOST_NAMED]) + more


def _nobody(_what: object) -> None:
    """Be told before anybody listens."""
