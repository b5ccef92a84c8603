"""Both ways to take frames, on a datagram socket in a CAN socket's place: the kernel serves both alike."""

import socket
import struct
import sys
import time

import pytest
from conftest import missing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples

from fieldbus.canbus.bus import BITRATE_SWITCH, EXTENDED, FD, REMOTE
from fieldbus.canbus.kernel.frames import pack_frame
from fieldbus.canbus.kernel.receiving import SO_RXQ_OVFL, SO_TIMESTAMPNS, Many, Single, find_recvmmsg
from fieldbus.errors import RefusedError

_SURELY_HELD = 150
"""Frames that the kernel's usual receive buffer (208 KiB) holds. It lost one of 252, and has a quarter less
when some have been taken from it: a datagram socket gives room back in parts of that size."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SocketCAN is Linux's")

frames = st.one_of(
    st.tuples(st.integers(0, 0x7FF), st.binary(max_size=8), st.just(0)),
    st.tuples(st.integers(EXTENDED, EXTENDED + 0x1FFF_FFFF), st.binary(max_size=8), st.just(0)),
    st.tuples(st.integers(REMOTE, REMOTE + 0x7FF), st.integers(0, 8).map(bytes), st.just(0)),
    st.tuples(
        st.integers(0, 0x7FF),
        st.sampled_from([0, 1, 8, 12, 16, 20, 24, 32, 48, 64]).flatmap(
            lambda n: st.binary(min_size=n, max_size=n)
        ),
        st.sampled_from([FD, FD | BITRATE_SWITCH]),
    ),
)


class Pair:
    """A socket to receive from, and one that sends to it."""

    def __init__(self):
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.raw.bind(("127.0.0.1", 0))
        self.raw.setblocking(False)
        for option in (SO_TIMESTAMPNS, SO_RXQ_OVFL):
            self.raw.setsockopt(socket.SOL_SOCKET, option, 1)
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.connect(self.raw.getsockname())

    def send(self, sent):
        for frame in sent:
            self.peer.send(pack_frame(*frame))

    def close(self):
        self.raw.close()
        self.peer.close()


def many(raw):
    return Many(raw, recvmmsg())


def recvmmsg():
    call = find_recvmmsg()
    if call is None:
        if sys.maxsize < 2**32:
            pytest.skip("words of 32 bits: frames are taken one by one here")
        missing("the C library has no recvmmsg")
    return call


WAYS = pytest.mark.parametrize("way", [many, Single], ids=["many", "single"])


@pytest.fixture
def pair():
    found = Pair()
    yield found
    found.close()


@WAYS
@settings(
    deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(frames, max_size=150), st.integers(1, 200))
def test_what_was_sent_is_received_with_the_kernels_stamps(pair, way, sent, limit):
    receiver = way(pair.raw)
    before_ns = time.time_ns()
    pair.send(sent)
    after_ns = time.time_ns()
    received = receiver.receive(limit)
    assert len(received) == min(limit, len(sent))
    while more := receiver.receive(limit):
        received += more
    assert [(frame.can_id, frame.data, frame.flags) for frame in received] == sent
    stamps = [frame.time_ns for frame in received]
    assert stamps == sorted(stamps)
    assert all(before_ns <= stamp <= after_ns for stamp in stamps)
    assert receiver.overflow is None


@WAYS
def test_what_did_not_fit_is_told_with_the_next_frame(pair, way):
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    receiver = way(pair.raw)
    pair.send([(number, b"12345678", 0) for number in range(1000)])
    received = receiver.receive(2000)
    assert 0 < len(received) < 1000
    assert receiver.overflow is None
    pair.send([(1, b"", 0)] * 2)
    assert len(receiver.receive(2000)) == 2
    assert receiver.overflow == 1000 - len(received)


@WAYS
@settings(
    deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 80)), max_size=20))
def test_fewer_than_asked_for_means_that_no_more_wait(pair, way, rounds):
    """Whoever declares a sender silent relies on it, whatever came how fast before."""
    receiver = way(pair.raw)
    sent, received, waiting = 0, 0, 0
    for wanted, limit in [*rounds, (0, 10_000)]:
        burst = min(wanted, _SURELY_HELD - waiting)
        pair.send([(number, b"12345678", 0) for number in range(sent, sent + burst)])
        sent, waiting = sent + burst, waiting + burst
        found = receiver.receive(limit)
        assert len(found) == min(limit, waiting)
        assert [frame.can_id for frame in found] == list(range(received, received + len(found)))
        received, waiting = received + len(found), waiting - len(found)
    assert received == sent


@WAYS
@settings(
    deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 1, 2, 30, 120]), st.sampled_from([1, 2, 64, 200])), max_size=30)
)
def test_received_and_lost_are_what_was_sent(way, rounds):
    pair = Pair()
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    receiver = way(pair.raw)
    sent = received = 0
    for burst, limit in [*rounds, (0, 10_000), (1, 10_000)]:  # the last one brings the counter along
        pair.send([(1, b"12345678", 0)] * burst)
        sent += burst
        received += len(receiver.receive(limit))
        assert received + (receiver.overflow or 0) <= sent
    pair.close()
    assert received + (receiver.overflow or 0) == sent


def test_the_many_are_taken_with_one_call_and_the_one_with_a_plain_one(pair):
    call, calls = recvmmsg(), []

    def counted(*arguments):
        calls.append(arguments)
        return call(*arguments)

    receiver = Many(pair.raw, counted)

    def calls_for(burst):
        calls.clear()
        pair.send([(1, b"", 0)] * burst)
        assert len(receiver.receive(200)) == burst
        return len(calls)

    assert [calls_for(burst) for burst in (1, 1, 0, 1)] == [0, 0, 0, 0]
    assert [calls_for(burst) for burst in (30, 30, 2, 100)] == [1, 1, 1, 2]
    assert [calls_for(burst) for burst in (1, 1, 1)] == [1, 0, 0]
    assert [calls_for(burst) for burst in (2, 0, 0, 1)] == [1, 1, 0, 0]


@WAYS
def test_what_the_system_says_is_raised_once(pair, way):
    receiver = way(pair.raw)
    target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    target.bind(("127.0.0.1", 0))
    pair.raw.connect(target.getsockname())
    target.close()
    pair.raw.send(b"nobody is there")
    with pytest.raises(ConnectionRefusedError):
        receiver.receive(1)
    assert receiver.receive(1) == []


@WAYS
def test_a_closed_socket_is_an_error(way):
    pair = Pair()
    receiver = way(pair.raw)
    pair.close()
    with pytest.raises(OSError):
        receiver.receive(1)


def test_a_length_that_can_fd_has_not_is_filled_up():
    assert struct.unpack_from("=IBB", pack_frame(1, bytes(9), FD)) == (1, 12, 4)
    assert struct.unpack_from("=IBB", pack_frame(1, bytes(64), FD | BITRATE_SWITCH)) == (1, 64, 5)


@pytest.mark.parametrize(
    ("can_id", "length", "flags"), [(1, 9, 0), (1, 65, FD), (REMOTE | 1, 0, FD)]
)  # fmt: skip
def test_what_is_no_frame_is_refused(can_id, length, flags):
    with pytest.raises(RefusedError):
        pack_frame(can_id, bytes(length), flags)
