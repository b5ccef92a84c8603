"""The steps of a write: its requests, what their responses mean, and what is read before and after.

Rules:

* If the device refuses a request of neighbours, each is written by itself, so that one bad value does not
  cost the others. A group is never split.
* A write is only written if the device said so. After a response that is none, a late one, or one of another
  write, the outcome is unknown: it may have been done. It is not repeated, and what follows it in the same
  request is not tried. If such a response came and the value can be read, it is read: if the device has it,
  it is verified.
* Exception 05 and 0B leave the outcome unknown too: the device is still at it, or a gateway before it did not
  hear its response.
* What is written beside the wanted bits, or beside the changed members of a group, is read just before that,
  from where the device shows it (`read_from`).
* `then` is written after the value was accepted, and before the value is read back.
* What is read back must be what was written. For bits that were written beside others, if the configuration
  does not ask for it, another value is only said: some bits fall back by themselves, some come late.
* A value with a factor (`scale_from`) is written with the factor that the device has now.

Design: generators that yield requests and are sent their responses, or have the error thrown into them, so
that several steps read like one; they know nothing of connections and clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from fieldbus.errors import ConversionError, DeviceExceptionError, RequestError
from fieldbus.link import WriteOutcome
from fieldbus.modbus import pdu
from fieldbus.modbus.planner import most_of
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.write_trouble import NOT_READABLE, Trouble, TroubleError, trouble_of
from fieldbus.modbus.writing import (
    Finish,
    Run,
    Steps,
    Write,
    gather,
    is_written_singly,
    requests,
    takes_mask,
)
from fieldbus.model import Value

ANOTHER = "read back, the device has another value"
Why = Callable[[RequestError], str]
Defer = Callable[[Write], None]
Followed = Callable[[Write, Write, WriteOutcome, str | None], None]
"""Takes a step of `then`, what it followed, and how it ended."""


def perform(
    run: Run,
    quirks: UnitQuirks,
    finish: Finish,
    why: Why,
    *,
    defer: Defer | None = None,
    first_address: int | None = None,
    followed: Followed | None = None,
) -> Steps:
    """Write a run and answer each of its writes.

    Args:
        run: what goes together.
        quirks: the device's.
        finish: is told how each write ended.
        why: returns the reason for a failed read.
        defer: takes a write that is to be read back after `verify_after_s`; without it, it is read at once.
        first_address: where all reads of the device begin, if it wants that.
        followed: is told how each step ended that was written after a value.
    """
    return _Performance(quirks, finish, why, defer, first_address, followed).perform(run)


def read_back(
    write: Write, quirks: UnitQuirks, finish: Finish, why: Why, *, first_address: int | None = None
) -> Steps:
    """Read back a write that was accepted some time ago, and answer it."""
    run = Run([write], [b""], [write])
    return _Performance(quirks, finish, why, None, first_address).read_back(run, [write])


class _Performance:
    """What the steps of one run share."""

    def __init__(
        self,
        quirks: UnitQuirks,
        finish: Finish,
        why: Why,
        defer: Defer | None,
        first_address: int | None,
        followed: Followed | None = None,
    ) -> None:
        self._quirks = quirks
        self._finish = finish
        self._why = why
        self._defer = defer
        self._first_address = first_address
        self._followed = followed

    def perform(self, run: Run) -> Steps:
        is_one = len(run.writes) == 1 or run.bits or bool(run.members)
        if all(write.is_doubted for write in run.given) and (yield from self._is_settled(run)):
            return
        if is_written_singly(run.first, self._quirks) and not is_one:
            # Together they would be as many requests, and some done twice if one is refused.
            yield from self._singly(run)
            return
        trouble = yield from self._try(run)
        if trouble is None:
            yield from self._accepted(run, run.writes)
        elif is_one or not trouble.is_refusal:
            yield from self._give_up(run, trouble)
        else:
            yield from self._singly(run)

    def _singly(self, run: Run) -> Steps:
        """Write each by itself; after one whose outcome is not certain the others are not tried."""
        pieces = dict(zip(run.writes, run.data, strict=True))
        taken: list[Run] = []
        for index, write in enumerate(run.given):
            alone = Run([write], [pieces[write]], [write])
            trouble = yield from self._try(alone)
            if trouble is None and write.then:
                taken.append(alone)
            elif trouble is None:
                yield from self._accepted(alone, [write])
            else:
                yield from self._give_up(alone, trouble)
                if not trouble.is_refusal:
                    for other in run.given[index + 1 :]:
                        self._finish(other, WriteOutcome.FAILED, f"not tried: {write.name} {trouble.outcome}")
                    break
        untaken = {step for write in run.given if write.is_finished for step in _steps_of(write)}
        for alone in taken:
            [write] = alone.writes
            if untaken.isdisjoint(_steps_of(write)):
                yield from self._accepted(alone, [write])
            else:
                names = ", ".join(step.name for step in write.then)
                text = f"written, but not {names} after it: another value of the same request was refused"
                self._finish(write, WriteOutcome.FAILED, text)

    # --- the requests

    def _try(self, run: Run) -> Generator[bytes, bytes, Trouble | None]:
        """Send what writes a run; return why it was not written, or perhaps not."""
        try:
            if run.members:
                yield from self._write_group(run)
            elif run.bits:
                yield from self._write_bits(run)
            elif run.first.factor is not None:
                yield from self._write_scaled(run.writes[0])
            else:
                yield from self._write_data(run.first, run.first.address, b"".join(run.data))
        except TroubleError as error:
            return error.trouble
        except ConversionError as error:
            return Trouble(WriteOutcome.REFUSED, str(error))
        except RequestError as error:  # of a read before anything was written
            return Trouble(WriteOutcome.FAILED, self._why(error))
        return None

    def _write_data(self, place: RegisterPoint, address: int, data: bytes) -> Steps:
        several = requests(place, address, data, self._quirks)
        for number, request in enumerate(several):
            try:
                answer = yield request
                if answer:  # what is said to all has none
                    pdu.check_write_reply(request, answer)
            except RequestError as error:
                trouble = trouble_of(error)
                if number:
                    reason = f"{trouble.reason}, after {number} of {len(several)} requests were accepted"
                    trouble = Trouble(trouble.outcome, reason, is_odd=trouble.is_odd)
                raise TroubleError(trouble) from error

    def _write_bits(self, run: Run) -> Steps:
        place = run.first
        size = place.count * 2
        mask = value = 0
        for write, data in zip(run.writes, run.data, strict=True):
            own = write.point.bit_mask
            mask |= own
            value = value & ~own | int.from_bytes(data, "big") & own
        if takes_mask(place, self._quirks):
            request = pdu.mask_write_request(place.address, ~mask & 0xFFFF, value)
            try:
                answer = yield request
                if answer:
                    pdu.check_write_reply(request, answer)
            except RequestError as error:
                raise TroubleError(trouble_of(error)) from error
            return
        before = yield from self._read(place)
        after = (int.from_bytes(before, "big") & ~mask | value).to_bytes(size, "big")
        yield from self._write_data(place, place.address, after)

    def _write_group(self, run: Run) -> Steps:
        """Write all registers of a group: what was not given is what the device has now."""
        members = run.members
        given = dict(zip((write.point for write in run.writes), run.data, strict=True))
        begin, end = members[0].address, max(member.end for member in members)
        if members[0].table.is_bits:
            states = bytearray(end - begin)
            for member in members:
                data = given.get(member)
                states[member.address - begin] = (
                    data[0] if data is not None else (yield from self._read_member(member))[0] & 1
                )
            yield from self._write_data(members[0], begin, bytes(states))
            return
        whole = bytearray(2 * (end - begin))
        known = bytearray(len(whole))  # the bits that are given
        for member, data in given.items():
            _put(whole, known, member, begin, data)
        for member in members:
            at = slice(2 * (member.address - begin), 2 * (member.end - begin))
            if any(byte != 0xFF for byte in known[at]):
                _put_rest(whole, known, at, (yield from self._read_member(member)))
        yield from self._write_data(members[0], begin, bytes(whole))

    def _read_member(self, member: RegisterPoint) -> Generator[bytes, bytes, bytes]:
        if member.shown is None and not member.point.access.can_read:
            text = (
                f"it is written together with {member.point.name}, which has no value here and cannot be read"
            )
            raise ConversionError(f"{text}: write both, or give {member.point.name} `read_from`")
        return (yield from self._read(member))

    def _write_scaled(self, write: Write) -> Steps:
        place = write.point
        factor = place.factor
        if factor is None:
            raise ConversionError("there is no factor")
        data = yield from self._read(factor)
        exponent, flaw = factor.decode(data)
        if flaw is not None or not isinstance(exponent, int):
            raise ConversionError(f"{factor.point.address} has no value now: the power of ten is not known")
        registers = place.encode(write.value, exponent)
        yield from self._write_data(place, place.address, registers)
        nearest, _ = place.decode(registers, exponent)
        write.value = write.value if nearest is None else nearest

    def _read(self, point: RegisterPoint) -> Generator[bytes, bytes, bytes]:
        """Read what a point's place holds, or shows elsewhere."""
        place = point.shown or point
        begin, most = place.address, most_of(place.table)
        first = self._first_address
        if first is not None and begin - most + place.count <= first < begin:
            begin = first
        skipped = place.address - begin
        request = pdu.read_request(place.table, begin, skipped + place.count)
        answer = yield request
        data = pdu.check_read_reply(request, answer)
        if place.table.is_bits:
            return bytes((data[skipped // 8] >> skipped % 8 & 1,))
        return data[2 * skipped :]

    # --- the end

    def _accepted(self, run: Run, writes: Sequence[Write]) -> Steps:
        """Write what follows, and read back what is to be read back."""
        failed: dict[tuple[RegisterPoint, Value], tuple[WriteOutcome, str | None]] = {}
        for write in writes:
            for step in write.then:
                key = step.point, step.value
                if key not in failed:
                    failed[key] = yield from self._follow(step, is_routed=write.is_routed)
                    if self._followed is not None:
                        self._followed(step, write, *failed[key])
                outcome, reason = failed[key]
                if not outcome.is_done:
                    kind = outcome if outcome is WriteOutcome.UNKNOWN else WriteOutcome.FAILED
                    self._finish(write, kind, f"written, but then {step.name} {outcome}: {reason}")
                    break
        yield from self.read_back(run, [write for write in writes if not write.is_finished])

    def _follow(
        self, step: Write, *, is_routed: bool
    ) -> Generator[bytes, bytes, tuple[WriteOutcome, str | None]]:
        """Write what comes after a value; return how that ended."""
        ended: list[tuple[WriteOutcome, str | None]] = []

        def finish(write: Write, outcome: WriteOutcome, reason: str | None) -> None:
            write.is_finished = True
            ended.append((outcome, reason))

        once = Write(step.point, step.value, is_routed=is_routed, then=step.then)
        for run in gather([once], finish):
            own = _Performance(self._quirks, finish, self._why, None, self._first_address, self._followed)
            yield from own.perform(run)
        return ended[0]

    def read_back(self, run: Run, writes: Sequence[Write]) -> Steps:
        """Answer writes that the device took, and read back before that where it is wanted."""
        is_merged = run.bits and not takes_mask(run.first, self._quirks)
        data = b""
        error: RequestError | None = None
        for write in writes:
            rules = write.point.rules
            if not (is_merged if rules.verify is None else rules.verify):
                self._finish(write, WriteOutcome.WRITTEN, None)
                continue
            if rules.verify_after_s and self._defer is not None:
                self._defer(write)
                continue
            is_there = False
            if error is None or (isinstance(error, DeviceExceptionError) and not run.bits):
                try:
                    if not (run.bits and data):  # bits are all of one place
                        data = yield from self._read(write.point)
                    is_there = yield from self._is_there(write, data)
                except RequestError as failure:
                    error = failure
                else:
                    error = None
            if is_there:
                self._finish(write, WriteOutcome.VERIFIED, None)
                continue
            text = ANOTHER if error is None else f"written, but reading back failed: {self._why(error)}"
            self._finish(write, WriteOutcome.FAILED if rules.verify else WriteOutcome.WRITTEN, text)

    def _give_up(self, run: Run, trouble: Trouble) -> Steps:
        """Answer writes that were not done, or perhaps not; read if only that can tell."""
        is_known_missing: RequestError | None = None
        for write in run.given:
            if not (trouble.is_odd and is_known_missing is None and _is_readable(write)):
                self._finish(write, trouble.outcome, trouble.reason)
                continue
            try:
                data = yield from self._read(write.point)
                is_there = yield from self._is_there(write, data)
            except RequestError as error:
                is_known_missing = error
                self._finish(write, trouble.outcome, trouble.reason)
                continue
            if is_there:
                self._finish(write, WriteOutcome.VERIFIED, f"{trouble.reason}; read back, the device has it")
            else:
                self._finish(write, trouble.outcome, f"{trouble.reason}; {ANOTHER}")

    def _is_settled(self, run: Run) -> Generator[bytes, bytes, bool]:
        """Look whether the device has what it may have been given already, or does not say it now."""
        if not all(map(_is_readable, run.given)):
            return False
        for write in run.given:
            try:
                data = yield from self._read(write.point)
                is_there = yield from self._is_there(write, data)
            except RequestError as error:
                if isinstance(error, DeviceExceptionError) and error.exception_code in NOT_READABLE:
                    return False
                for each in run.given:
                    text = f"it may have been written; reading it failed: {self._why(error)}"
                    self._finish(each, WriteOutcome.UNKNOWN, text)
                return True
            if not is_there:
                return False
        for write in run.given:
            self._finish(write, WriteOutcome.VERIFIED, None)
        return True

    def _is_there(self, write: Write, data: bytes) -> Generator[bytes, bytes, bool]:
        """Return whether what was read from a point's place is what was written."""
        place = write.point
        if place.table.is_bits:
            return bool(data[0] & 1) == place.encode_bit(write.value)
        exponent: int | None = None
        if place.factor is not None:
            factor = yield from self._read(place.factor)
            found = place.factor.decode(factor)[0]
            exponent = found if isinstance(found, int) else None
        try:
            wanted = place.encode(write.value, exponent)
        except ConversionError:
            return False  # the factor is another by now
        mask = place.bit_mask
        return int.from_bytes(data, "big") & mask == int.from_bytes(wanted, "big") & mask


def _steps_of(write: Write) -> Iterable[tuple[str, Value]]:
    return {(step.name, step.value) for step in write.then}


def _is_readable(write: Write) -> bool:
    """Return whether reading tells if the device has a value."""
    place = write.point
    return place.rules.verify is not False and (place.shown is not None or place.point.access.can_read)


def _put(whole: bytearray, known: bytearray, member: RegisterPoint, begin: int, data: bytes) -> None:
    """Put a member's own bits into the registers of its group."""
    at = 2 * (member.address - begin)
    size = 2 * member.count
    mask = member.bit_mask
    value = int.from_bytes(whole[at : at + size], "big") & ~mask | int.from_bytes(data, "big") & mask
    whole[at : at + size] = value.to_bytes(size, "big")
    known[at : at + size] = (int.from_bytes(known[at : at + size], "big") | mask).to_bytes(size, "big")


def _put_rest(whole: bytearray, known: bytearray, at: slice, data: bytes) -> None:
    """Put what the device has where nothing was given."""
    mask, size = int.from_bytes(known[at], "big"), at.stop - at.start
    value = int.from_bytes(whole[at], "big") & mask | int.from_bytes(data, "big") & ~mask
    whole[at] = value.to_bytes(size, "big")
    known[at] = b"\xff" * size
