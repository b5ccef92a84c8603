"""What the broadcast manager is told; what it does then is tried where there is one."""

import struct
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.bus import BITRATE_SWITCH, FD
from fieldbus.canbus.kernel import broadcast
from fieldbus.canbus.kernel.broadcast import Broadcaster
from fieldbus.canbus.kernel.frames import pack_frame
from fieldbus.errors import LinkDownError, RefusedError

SETUP, DELETE, EXPIRED = 1, 2, 9
SETTIMER, STARTTIMER, COUNTEVT, ANNOUNCE, RESET, FD_FRAME = 1, 2, 4, 8, 0x200, 0x800
HEAD = struct.Struct("@IIIllllII")


class Kernel:
    """In the socket's place: remembers commands, says what it is told to say."""

    def __init__(self):
        self.commands = []
        self.events = []
        self.error = None
        self.is_closed = False

    def setblocking(self, flag):
        pass

    def connect(self, address):
        self.channel = address

    def send(self, message):
        if self.error is not None:
            raise OSError(self.error, "")
        opcode, flags, count, seconds, microseconds, *second, can_id, frames = HEAD.unpack_from(message)
        assert second == [0, 0]
        assert self.is_closed is False
        rest = message[-(-HEAD.size // 8) * 8 :]
        self.commands.append((opcode, flags, count, seconds, microseconds, can_id, frames, rest))

    def recv(self, size):
        if not self.events:
            raise BlockingIOError
        return self.events.pop(0)

    def expire(self, can_id, flags=COUNTEVT):
        self.events.append(HEAD.pack(EXPIRED, flags, 0, 0, 0, 0, 0, can_id, 0))

    def close(self):
        self.is_closed = True

    def taken(self):
        taken, self.commands = self.commands, []
        return taken


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    fake = types.SimpleNamespace(socket=lambda *_: made, SOCK_DGRAM=2)
    monkeypatch.setattr(broadcast, "socket", fake)
    return made


def test_the_first_frame_goes_out_at_once_and_the_count_ends_it_after_five_seconds(kernel):
    Broadcaster("can0").repeat(0x123, [b"ab", b"cd"], 0.25, 0)
    frames = pack_frame(0x123, b"ab", 0) + pack_frame(0x123, b"cd", 0)
    assert kernel.channel == ("can0",)
    assert kernel.taken() == [
        (SETUP, SETTIMER | STARTTIMER | COUNTEVT, 21, 0, 250_000, 0x123, 2, frames)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("period_s", "seconds", "microseconds", "count"),
    [(0.0001, 0, 100, 50001), (1.0, 1, 0, 6), (2.5, 2, 500_000, 3), (60.0, 60, 0, 2), (0.9999999, 1, 0, 7)],
)
def test_a_period_is_told_in_seconds_and_microseconds(kernel, period_s, seconds, microseconds, count):
    Broadcaster("can0").repeat(1, [b""], period_s, 0)
    assert kernel.taken()[0][2:5] == (count, seconds, microseconds)


@given(st.floats(1e-4, 86_400))
def test_a_period_is_exact_to_a_microsecond(period_s):
    seconds, microseconds = broadcast.split(period_s)
    assert 0 <= microseconds < 1_000_000
    assert seconds + microseconds / 1e6 == pytest.approx(period_s, abs=1e-6)


def test_an_update_leaves_the_timer_alone(kernel):
    repetition = Broadcaster("can0").repeat(0x123, [b"ab"], 0.1, 0)
    kernel.taken()
    repetition.update([b"xy"], at_once=False)
    repetition.update([b"zz"], at_once=True)
    first, second = kernel.taken()
    assert (first[1], first[7]) == (COUNTEVT, pack_frame(0x123, b"xy", 0))
    assert (second[1], second[7]) == (COUNTEVT | ANNOUNCE, pack_frame(0x123, b"zz", 0))


def test_fewer_frames_begin_with_the_first_and_more_begin_anew(kernel):
    repetition = Broadcaster("can0").repeat(0x123, [b"a", b"b", b"c"], 0.1, 0)
    kernel.taken()
    repetition.update([b"d", b"e"], at_once=False)
    assert [command[1] for command in kernel.taken()] == [COUNTEVT | RESET]
    repetition.update([b"f", b"g", b"h"], at_once=False)
    assert [(command[0], command[1]) for command in kernel.taken()] == [
        (DELETE, COUNTEVT), (SETUP, COUNTEVT | SETTIMER | STARTTIMER),
    ]  # fmt: skip


def test_a_sign_of_life_sets_the_count_and_starts_what_has_run_out(kernel):
    broadcaster = Broadcaster("can0")
    one, other = broadcaster.repeat(1, [b"a"], 0.1, 0), broadcaster.repeat(2, [b"b"], 0.1, 0)
    kernel.taken()
    kernel.expire(2)
    one.keep_alive()
    other.keep_alive()
    other.keep_alive()
    assert [command[1] for command in kernel.taken()] == [
        COUNTEVT | SETTIMER, COUNTEVT | SETTIMER | STARTTIMER, COUNTEVT | SETTIMER,
    ]  # fmt: skip


def test_what_ran_out_before_it_was_begun_anew_does_not_begin_it_again(kernel):
    repetition = Broadcaster("can0").repeat(1, [b"a"], 0.1, 0)
    kernel.expire(1)
    repetition.update([b"a", b"b"], at_once=False)
    kernel.taken()
    repetition.keep_alive()
    assert [command[1] for command in kernel.taken()] == [COUNTEVT | SETTIMER]


def test_can_fd_is_another_repetition_of_the_same_identifier(kernel):
    broadcaster = Broadcaster("can0")
    classic = broadcaster.repeat(1, [b"a"], 0.1, 0)
    fast = broadcaster.repeat(1, [bytes(64)], 0.1, FD | BITRATE_SWITCH)
    assert kernel.taken()[1][1] == COUNTEVT | SETTIMER | STARTTIMER | FD_FRAME
    kernel.expire(1, COUNTEVT | FD_FRAME)
    classic.keep_alive()
    assert (classic.has_run_out, fast.has_run_out) == (False, True)


def test_what_the_kernel_says_that_is_no_news_of_ours_is_passed_over(kernel):
    repetition = Broadcaster("can0").repeat(1, [b"a"], 0.1, 0)
    kernel.events += [b"", bytes(10), bytes(100)]
    kernel.expire(99)
    repetition.keep_alive()
    assert repetition.has_run_out is False


def test_what_is_stopped_stays_silent(kernel):
    broadcaster = Broadcaster("can0")
    repetition = broadcaster.repeat(1, [b"a"], 0.1, 0)
    kernel.taken()
    repetition.stop()
    repetition.stop()
    repetition.keep_alive()
    repetition.update([b"b"], at_once=True)
    assert [command[0] for command in kernel.taken()] == [DELETE]


def test_a_lost_interface_is_a_link_that_is_down_but_for_stop(kernel):
    repetition = Broadcaster("can0").repeat(1, [b"a"], 0.1, 0)
    kernel.error = 19
    for act in (repetition.keep_alive, lambda: repetition.update([b"b"], at_once=False)):
        with pytest.raises(LinkDownError, match="no such device"):
            act()
    repetition.stop()


def test_what_cannot_be_repeated_changes_nothing(kernel):
    broadcaster = Broadcaster("can0")
    assert broadcaster.repeat(1, [b""] * 257, 0.1, 0) is None
    for frames, period_s in (([], 0.1), ([b""], 0.0), ([b""], float("nan")), ([b""], float("inf"))):
        with pytest.raises(ValueError):
            broadcaster.repeat(1, frames, period_s, 0)
    with pytest.raises(RefusedError):
        broadcaster.repeat(1, [bytes(9)], 0.1, 0)
    assert kernel.taken() == []
    repetition = broadcaster.repeat(1, [b"a"], 0.1, 0)
    kernel.taken()
    with pytest.raises(RefusedError):
        broadcaster.repeat(1, [bytes(9)], 0.1, 0)
    with pytest.raises(RefusedError):
        repetition.update([bytes(9)], at_once=True)
    with pytest.raises(ValueError):
        repetition.update([], at_once=True)
    repetition.keep_alive()
    assert kernel.taken()[0][7] == pack_frame(1, b"a", 0)
