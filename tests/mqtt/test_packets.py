"""MQTT 5 packets as bytes: whole, byte by byte, with bytes trailing, and broken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldbus.mqtt import answers, packets
from fieldbus.mqtt.answers import Connack
from fieldbus.mqtt.packets import Splitter, Will
from fieldbus.mqtt.properties import MAX_REMAINING, MalformedPacketError

CONNACK_OF_MOSQUITTO = bytes.fromhex("2009 0000 06 22000a 210014")
"""With Topic Alias Maximum 10 and Receive Maximum 20."""


def test_a_connect_says_who_we_are_and_what_we_accept():
    packet = packets.connect(
        "gw",
        30,
        username="u",
        password="p",
        will=Will("t", b"w"),
        receive_maximum=5,
        maximum_packet_size=1000,
    )
    assert packet == bytes.fromhex(
        "10 24 0004 4d515454 05 ee 001e 08 210005 27000003e8 0002 6777 00 0001 74 0001 77 0001 75 0001 70"
    )


def test_a_connect_without_anything_is_short():
    assert packets.connect("", 0) == bytes.fromhex("10 0d 0004 4d515454 05 02 0000 00 0000")


@pytest.mark.parametrize(
    ("qos", "is_retained", "expected"),
    [
        (0, False, "30 05 0001 74 00 78"),
        (1, True, "33 07 0001 74 0102 00 78"),
        (2, False, "34 07 0001 74 0102 00 78"),
    ],
)
def test_a_message_has_its_topic_and_an_identifier_if_it_is_acknowledged(qos, is_retained, expected):
    first = packets.publish_first_byte(qos, is_retained=is_retained)
    assert packets.publish(first, b"t", b"x", 0x0102) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("size", "length"), [(120, "7e"), (122, "8001"), (16377, "ff7f"), (16378, "808001"), (70_000, "f6a204")]
)
def test_lengths_are_variable_byte_integers(size, length):
    packet = packets.publish(0x32, b"t", bytes(size), 1)
    assert packet[1:].startswith(bytes.fromhex(length) + b"\0\1t")
    [(first, rest)] = Splitter(100_000).split(packet)
    assert (first, len(rest)) == (0x32, size + 6)


def test_a_message_that_no_packet_can_hold_is_refused():
    class Huge(bytes):
        def __len__(self):
            return MAX_REMAINING

    with pytest.raises(ValueError):
        packets.publish(0x32, b"t", Huge(), 1)


def test_limits_of_the_broker_are_read_from_its_answer():
    [(first, rest)] = Splitter(1000).split(CONNACK_OF_MOSQUITTO)
    answer = answers.read_connack(rest)
    assert first == packets.CONNACK
    assert answer == Connack(0, receive_maximum=20)
    rest = bytes.fromhex("00 87 14 2500 2700000064 130005 1f0005 6e6f0a6f6e 2401")
    answer = answers.read_connack(rest)
    assert answer == Connack(0x87, "no on", 65535, 1, False, 100, 5)
    assert answer.reason == "not authorized: no on"


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("0102", (0x102, 0, "")),
        ("010210", (0x102, 0x10, "")),
        ("01028700", (0x102, 0x87, "")),
        ("0102970d1f0003666f6f 260001610001 62".replace(" ", ""), (0x102, 0x97, "foo")),
    ],
)
def test_acknowledgements_come_in_three_lengths(rest, expected):
    assert answers.read_ack(bytes.fromhex(rest)) == expected


def test_why_the_broker_hangs_up_is_said_in_words():
    assert answers.read_disconnect(b"\x8b") == "server shutting down"
    assert answers.read_disconnect(b"\x95\0") == "packet too large"
    assert answers.read_disconnect(b"") == "closed by the broker"
    assert packets.reason(0xF7) == "reason code 0xF7"


@pytest.mark.parametrize(
    "rest", ["", "00", "010287 05 1f0009 61", "010287 01", "010287 02 7e00", "010287 00 00", "010287 02 1f00"]
)
def test_lengths_that_do_not_fit_are_malformed(rest):
    with pytest.raises(MalformedPacketError):
        answers.read_ack(bytes.fromhex(rest))


@given(data=st.binary(max_size=40))
def test_no_bytes_whatever_raise_anything_else(data):
    for reader in (answers.read_ack, answers.read_connack, answers.read_disconnect, Splitter(30).split):
        try:
            reader(data)
        except MalformedPacketError:
            pass


def test_packets_are_cut_wherever_the_network_cut_them():
    stream = (
        CONNACK_OF_MOSQUITTO
        + bytes.fromhex("4002 0001 4003 0002 10 d000")
        + packets.publish(0x30, b"t", bytes(300), 0)
    )
    whole = Splitter(1000).split(stream)
    assert [first for first, _ in whole] == [0x20, 0x40, 0x40, 0xD0, 0x30]
    splitter = Splitter(1000)
    assert [packet for byte in stream for packet in splitter.split(bytes([byte]))] == whole
    for cut in range(len(stream)):
        splitter = Splitter(1000)
        assert splitter.split(stream[:cut]) + splitter.split(stream[cut:] + b"\x40") == whole


def test_a_packet_that_is_too_long_is_refused_before_it_is_kept():
    with pytest.raises(MalformedPacketError):
        Splitter(100).split(bytes.fromhex("30 ff01"))
    with pytest.raises(MalformedPacketError):
        Splitter(100).split(bytes.fromhex("30 8080808001"))
