"""Messages that come in on one connection, which a test plays by hand in virtual time."""

import asyncio
import struct

import pytest
from test_broker_connection import CONNACK, Owner, in_virtual_time, lost_at_s_while_it_answers, opened, put

from fieldbus.errors import LinkDownError
from fieldbus.mqtt.inbox import Inbox
from fieldbus.mqtt.packets import Subscription
from fieldbus.mqtt.session_connection import SessionConnection

SUBSCRIBE_ID = 60_000


def incoming(topic, payload=b"x", packet_id=0):
    body = struct.pack(">H", len(topic)) + topic.encode()
    body += (struct.pack(">H", packet_id) if packet_id else b"") + b"\0" + payload
    size = len(body)
    length = bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
    assert size < 1 << 14
    return bytes((0x32 if packet_id else 0x30,)) + length + body


def session(owner, answer=CONNACK, **limits):
    owner.is_draining = True
    subject = SessionConnection(owner, Inbox(lambda _: False, **limits))
    return opened(owner, subject, answer)


def acknowledged(wire):
    return [int.from_bytes(rest[:2], "big") for first, rest in wire.packets if first == 0x40]


def test_a_burst_is_handed_on_in_slices_and_others_have_their_turn():
    async def scenario():
        subject, wire = session(Owner())
        found = []
        subject.start(found.append)
        subject.data_received(b"".join(incoming("a", packet_id=number) for number in range(1, 101)))
        assert len(found) == 32
        subject.go_on()  # it does already
        await asyncio.sleep(0)
        assert len(found) == 64
        await asyncio.sleep(0.01)
        assert len(found) == 100
        assert acknowledged(wire) == list(range(1, 101))
        found.clear()
        subject.data_received(incoming("a", bytes(16_000)) * 20)
        assert len(found) == 9  # the first beyond 128 KiB ends the slice
        await asyncio.sleep(0.01)
        assert len(found) == 20
        found.clear()
        subject.data_received(incoming("a", bytes(16_000)) * 8 + incoming("a", bytes(3_072)) + incoming("a"))
        assert len(found) == 9  # these are 128 KiB exactly
        await asyncio.sleep(0.01)
        assert len(found) == 10

    in_virtual_time(scenario)


def test_a_full_inbox_acknowledges_what_was_taken_only():
    async def scenario():
        subject, wire = session(owner := Owner(is_held=True), max_messages=2)
        found = []
        subject.start(lambda message: found.append(message.payload))
        for number in (1, 2, 3):
            subject.data_received(incoming("a", b"%d" % number, number))
        assert (acknowledged(wire), found) == ([1, 2], [])
        owner.is_held = False
        assert not found
        subject.go_on()  # nothing else comes: this alone has to bring them
        await asyncio.sleep(0.01)
        assert (acknowledged(wire), found) == ([1, 2, 3], [b"1", b"2", b"3"])

    in_virtual_time(scenario)


def test_after_a_loss_what_the_broker_still_has_is_not_handed_on():
    async def scenario():
        subject, _ = session(owner := Owner(is_held=True), max_messages=2)
        assert not await subject.hand_on_the_rest()
        found = []
        subject.start(lambda message: found.append(message.payload))
        for number in (1, 2, 3):
            subject.data_received(incoming("a", b"%d" % number, number))
        assert await subject.hand_on_the_rest()
        assert found == [b"1", b"2"]
        assert owner.counters["rx_dropped"] == 1

    in_virtual_time(scenario)


def test_a_subscription_is_answered_by_its_own_answer():
    async def scenario():
        subject, wire = session(Owner())
        asking = asyncio.create_task(subject.subscribe([Subscription("a"), Subscription("b")]))
        await asyncio.sleep(0)
        (first, rest) = wire.packets[-1]
        assert (first, int.from_bytes(rest[:2], "big")) == (0x82, SUBSCRIBE_ID)
        subject.data_received(bytes.fromhex("900400010001"))  # of none
        subject.data_received(bytes.fromhex("9005ea60000187") * 2)  # and a second time
        assert await asking == (b"\x01\x87", "")
        subject.data_received(bytes.fromhex("9005ea60000101"))
        assert not subject.lost.done()
        asking = asyncio.create_task(subject.subscribe([Subscription("a")]))
        await asyncio.sleep(0)
        subject.data_received(bytes.fromhex("9005ea61000101"))
        with pytest.raises(LinkDownError, match="another number"):
            await asking
        with pytest.raises(LinkDownError, match="does not answer a subscription"):
            await subject.subscribe([Subscription("a")])

    in_virtual_time(scenario)


def test_a_message_under_way_is_not_lost_by_our_own_holding_back():
    async def scenario():
        begun_s = asyncio.get_running_loop().time()
        subject, wire = session(owner := Owner(is_held=True), max_bytes=10)
        subject.start(lambda _: None)
        put(owner, "a")
        subject.fill()
        subject.data_received(incoming("b", bytes(20)))
        assert not wire.is_reading
        await asyncio.sleep(65)
        assert not subject.lost.done()
        owner.is_held = False
        subject.go_on()
        await asyncio.sleep(0.1)
        assert wire.is_reading
        at_s, why = await lost_at_s_while_it_answers(subject)
        assert (at_s - begun_s, why) == (pytest.approx(80), "the broker does not acknowledge what it gets")

    in_virtual_time(scenario)


def test_a_session_that_stops_reads_on_and_counts_what_it_leaves():
    async def scenario():
        subject, wire = session(owner := Owner(is_held=True), max_bytes=10)
        subject.start(lambda _: None)
        subject.data_received(incoming("b", bytes(20), 1))
        assert not wire.is_reading
        subject.stop()
        assert wire.is_reading
        subject.data_received(incoming("b", b"", 2))
        assert owner.counters == {"received": 2, "rx_dropped": 1}
        assert acknowledged(wire) == [1]

    in_virtual_time(scenario)
