"""What a broker sends: read whole, and what is not MQTT 5 is told from it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fieldbus.mqtt import answers, packets
from fieldbus.mqtt.answers import Publish
from fieldbus.mqtt.packets import Splitter, Subscription
from fieldbus.mqtt.properties import MalformedPacketError


def of(text):
    return bytes.fromhex(text)


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("0000 05 2700000000", "Maximum Packet Size 0"),
        ("0000 02 2402", "Maximum QoS 2"),
        ("0000 02 24ff", "Maximum QoS 255"),
        ("0000 03 210000", "Receive Maximum 0"),
        ("0000 02 2502", "Retain Available 2"),
        ("0000 06 210005 210005", "property 0x21 stands there twice"),
        ("0001 00", "reason code 0x01"),
        ("0100 00", "a session that was never kept"),
        ("0200 00", "a session that was never kept"),
        ("0000 01 7e", "property 0x7E is not known"),
        ("0000 02 2100", "cut off"),
        ("00", "too short"),
    ],
)
def test_a_connack_with_what_no_broker_may_say_is_a_protocol_error(rest, words):
    with pytest.raises(MalformedPacketError, match=words):
        answers.read_connack(of(rest))


def test_a_maximum_qos_of_one_is_what_brokers_may_say():
    assert answers.read_connack(of("0000 02 2401")).maximum_qos == 1
    assert answers.read_connack(of("0000 02 2400")).maximum_qos == 0


def test_the_lowest_limits_that_there_are_are_taken():
    answer = answers.read_connack(of("0000 08 2700000001 210001"))
    assert (answer.maximum_packet_size, answer.receive_maximum) == (1, 1)


def test_the_brokers_own_words_are_one_harmless_line():
    told = "\x1b[2J no\nentry\u202e".encode()
    rest = of("0087") + bytes((len(told) + 3,)) + of("1f00") + bytes((len(told),)) + told
    assert answers.read_connack(rest).reason == "not authorized: \\x1b[2J no entry\\u202e"


def test_a_message_is_read_with_and_without_identifier_and_properties():
    assert answers.read_publish(0x31, of("0001 74 00 78")) == Publish("t", b"x", 0, True)
    assert answers.read_publish(0x3A, of("0001 74 0102 00 78")) == Publish("t", b"x", 0x102)
    properties = packets.publish_properties(
        expiry_s=10, response_topic="r", correlation=b"\0c", signature="s"
    )
    packet = packets.publish_with(0x32, b"t", b"", 5, properties)
    [(first, rest)] = Splitter(1000).split(packet)
    assert answers.read_publish(first, rest) == Publish("t", b"", 5, False, "r", b"\0c", "s")


@pytest.mark.parametrize(
    ("first", "rest", "words"),
    [
        (0x34, "0001 74 0102 00", "QoS 2"),
        (0x36, "0001 74 0102 00", "QoS 3"),
        (0x30, "0000 00", "without topic"),
        (0x32, "0001 74 0000 00", "identifier 0"),
        (0x30, "0005 74", "cut off"),
        (0x30, "0001 74", "longer than the packet"),
        (0x30, "0001 74 05 78", "longer than the packet"),
        (0x30, "0001 74 ffffffff7f", "four bytes"),
        (0x30, "0001 74 02 7e00", "not known"),
    ],
)
def test_a_message_that_is_not_mqtt_5_is_told_from_one(first, rest, words):
    with pytest.raises(MalformedPacketError, match=words):
        answers.read_publish(first, of(rest))


def test_a_topic_that_is_not_utf_8_is_an_escape_and_tears_nothing():
    assert answers.read_publish(0x30, of("0004 742fff1b 00")).topic == "t/\\xff\x1b"
    assert answers.read_publish(0x30, of("0003 eda080 00")).topic == "\\xed\\xa0\\x80"  # half a surrogate


def test_properties_without_end_cost_nothing():
    many = (b"\x26" + of("0000 0000")) * 200_000
    packet = packets.publish_with(0x30, b"t", b"x", 0, many)
    [(first, rest)] = Splitter(2_000_000).split(packet)
    assert answers.read_publish(first, rest) == Publish("t", b"x")


def test_each_topic_has_its_own_answer_to_a_subscription():
    assert answers.read_suback(of("ea60 00 01 87")) == (60_000, b"\x01\x87", "")
    assert answers.read_suback(of("0001 05 1f00026e6f 87")) == (1, b"\x87", "no")
    for rest in ("", "0001", "0001 05 87"):
        with pytest.raises(MalformedPacketError):
            answers.read_suback(of(rest))


def test_a_subscription_asks_for_qos_1_and_perhaps_for_the_retain_flag():
    packet = packets.subscribe(5, [Subscription("a"), Subscription("b", keeps_retain_flag=True)])
    assert packet == of("82 0b 0005 00 0001 61 01 0001 62 09")


@given(first=st.integers(0, 255), data=st.binary(max_size=60))
@example(first=0x30, data=of("0001 74 08 0b80 0b80 0b80 0b01"))
def test_no_bytes_whatever_raise_anything_else(first, data):
    readers = (
        answers.read_ack, answers.read_connack, answers.read_disconnect, answers.read_suback,
        lambda rest: answers.read_publish(first, rest),
    )  # fmt: skip
    for reader in readers:
        try:
            reader(data)
        except MalformedPacketError:
            pass


mutation = st.tuples(st.integers(0, 300), st.integers(0, 255))


@given(
    topic=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    payload=st.binary(max_size=40),
    signature=st.none() | st.text(st.characters(codec="utf-8"), max_size=10),
    correlation=st.none() | st.binary(max_size=10),
    mutations=st.lists(mutation, max_size=3),
)
def test_a_message_comes_back_as_it_was_and_a_mutated_one_is_one_or_none(
    topic, payload, signature, correlation, mutations
):
    properties = packets.publish_properties(signature=signature, correlation=correlation)
    data = bytearray(packets.publish_with(0x32, topic.encode(), payload, 1, properties))
    for place, byte in mutations:
        data[place % len(data)] = byte
    try:
        found = [
            answers.read_publish(first, rest)
            for first, rest in Splitter(1000).split(bytes(data))
            if first & 0xF0 == 0x30
        ]
    except MalformedPacketError:
        return
    if not mutations:
        assert found == [Publish(topic, payload, 1, False, None, correlation, signature)]
    for message in found:
        message.topic.encode()
        assert len(message.payload) <= len(data)


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=40))
def test_a_stream_in_small_pieces_is_cut_as_a_whole_one_is(pieces):
    stream = b"".join(pieces)

    def run(parts):
        splitter, found = Splitter(50), []
        try:
            for part in parts:
                found += splitter.split(part)
        except MalformedPacketError:
            found.append("malformed")
        return found

    whole, cut = run([stream] if stream else []), run(pieces)
    assert cut[: len(whole) - 1] == whole[:-1] if whole[-1:] == ["malformed"] else cut == whole
