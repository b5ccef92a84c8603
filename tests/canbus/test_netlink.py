"""What the kernel says of interfaces."""

import dataclasses
import struct
import sys

import pytest
from conftest import missing
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.canbus.kernel import netlink
from fieldbus.canbus.kernel.netlink import (
    Link,
    attribute,
    link_of,
    link_request,
    parse_error,
    parse_link,
    restart,
    restart_request,
)


def message(kind, body, trailing=b""):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body + trailing


def words(*numbers):
    return struct.pack(f"={len(numbers)}I", *numbers)


def described(*attributes, flags=0x41):
    return message(16, struct.pack("=BxHiII", 0, 280, 7, flags, 0) + b"".join(attributes))


CAN0 = described(
    attribute(3, b"can0\0"),
    attribute(4, words(72)),
    attribute(23, struct.pack("=24Q", 10, 20, 80, 160, *range(20))),
    attribute(
        18 | 0x8000,
        attribute(1, b"can\0")
        + attribute(3, words(1, 2, 3, 4, 5, 6))
        + attribute(
            2 | 0x8000,
            attribute(1, words(500_000, 875, 125, 6, 7, 2, 1, 1))
            + attribute(9, words(2_000_000, 750, 25, 6, 7, 2, 1, 1))
            + attribute(4, words(2))
            + attribute(6, words(100))
            + attribute(8, struct.pack("=HH", 130, 7)),
        ),
    ),
)


def test_a_controller_is_told_whole():
    assert parse_link(CAN0) == Link(
        index=7, name="can0", is_up=True, is_running=True, mtu=72, kind="can",
        rx_packets=10, tx_packets=20, rx_bytes=80, tx_bytes=160,
        state=2, tx_errors=130, rx_errors=7, bitrate=500_000, data_bitrate=2_000_000, restart_ms=100,
        bus_errors=1, warnings=2, passives=3, bus_offs=4, arbitrations_lost=5, restarts=6,
    )  # fmt: skip


def test_what_another_kind_of_interface_says_with_the_same_numbers_is_not_a_controllers_state():
    info = attribute(1, b"vcan") + attribute(2, attribute(4, words(3))) + attribute(3, words(*range(6)))
    link = parse_link(described(attribute(18, info), flags=0))
    assert (link.kind, link.state, link.bus_errors, link.is_up) == ("vcan", None, None, False)


def test_what_is_too_short_is_not_known_and_the_rest_is():
    link = parse_link(described(attribute(4, b"\1\2"), attribute(3, b"can1")))
    assert link == Link(7, "can1", True, True)


@given(st.integers(0, len(CAN0)), st.integers(0, 255), st.integers(0, len(CAN0) - 1))
def test_a_damaged_answer_is_read_or_refused(length, value, at):
    damaged = bytearray(CAN0)
    damaged[at] = value
    for answer in (bytes(damaged), bytes(damaged[:length]), CAN0[:length]):
        try:
            assert isinstance(parse_link(answer), Link)
        except ValueError:
            pass


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(noise):
    for answer in (noise, message(16, noise), described(noise), described(attribute(18, noise))):
        try:
            values = dataclasses.astuple(parse_link(answer))
            assert all(value is None or isinstance(value, int | str) for value in values)
        except ValueError:
            pass
    for answer in (noise, message(2, noise)):
        try:
            assert parse_error(answer) is None or isinstance(parse_error(answer), int)
        except ValueError:
            pass


def test_an_error_is_told_by_its_number():
    assert parse_error(message(2, struct.pack("=i", -1))) == 1
    assert parse_error(message(2, struct.pack("=i", 0), b"trailing")) == 0
    assert parse_error(CAN0) is None


@pytest.mark.skipif(sys.byteorder != "little", reason="written down in little endian")
def test_requests_byte_by_byte():
    assert link_request(7).hex(" ", 4) == (
        "20000000 12000100 01000000 00000000 00000000 07000000 00000000 00000000"
    )
    assert restart_request(7).hex(" ", 4) == (
        "38000000 10000500 01000000 00000000 00000000 07000000 00000000 00000000"
        " 18001200 07000100 63616e00 0c000200 08000700 01000000"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="rtnetlink is Linux's")
def test_the_kernel_describes_the_loopback_interface():
    link = link_of(1)
    if link is None:
        missing("this machine forbids to ask, or its answer cannot be read")
    assert (link.index, link.name, link.state) == (1, "lo", None)
    assert link.rx_packets is not None
    assert link_of(2**31 - 1) is None
    assert restart(1) == "lo has no controller"


def answering(monkeypatch, link, code):
    answers = [link, message(2, struct.pack("=i", -code))]
    asked = []

    def ask(request):
        asked.append(request)
        return answers.pop(0)

    monkeypatch.setattr(netlink, "_ask", ask)
    return asked


def controller(state, restart_ms):
    data = attribute(4, words(state)) + attribute(6, words(restart_ms))
    return described(attribute(3, b"can0\0"), attribute(18, attribute(1, b"can\0") + attribute(2, data)))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, None),
        (1, "not permitted: give it CAP_NET_ADMIN, or `ip link set can0 type can restart-ms 100`"),
        (16, "the bus is not off"),
        (19, "no such device"),
        (22, "the interface is down, or restarts by itself"),
        (95, "this driver cannot be restarted from outside"),
        (5, "input/output error"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the numbers are Linux's")
def test_a_controller_that_is_off_is_restarted_or_it_is_said_why_not(monkeypatch, code, said):
    asked = answering(monkeypatch, controller(3, 0), code)
    assert restart(7) == said
    assert asked == [link_request(7), restart_request(7)]


def test_a_controller_that_needs_no_restart_is_left_alone(monkeypatch):
    for link, said in (
        (controller(2, 0), "the bus is not off"),
        (controller(3, 100), "the kernel restarts it by itself, after 100 ms"),
    ):
        asked = answering(monkeypatch, link, 0)
        assert restart(7) == said
        assert asked == [link_request(7)]


def test_an_answer_that_is_none_is_a_reason(monkeypatch):
    monkeypatch.setattr(netlink, "_ask", lambda _: b"noise")
    assert restart(7) == "a message that is too short"
    assert link_of(7) is None
