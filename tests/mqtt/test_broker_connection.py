"""One connection to a broker that a test plays by hand, in virtual time: order, limits, and when it is lost."""

import asyncio
import gc
import struct
from collections import deque

import pytest
from support.virtual import World

from fieldbus.errors import LinkDownError
from fieldbus.link import Handover
from fieldbus.mqtt import connection as connection_module
from fieldbus.mqtt.connection import Connection, Message
from fieldbus.mqtt.packets import Splitter
from fieldbus.mqtt.publisher import Publisher

CONNACK = bytes.fromhex("2003000000")
PINGREQ = (0xC0, b"")


class Wire(asyncio.Transport):
    """What the other end sees."""

    def __init__(self):
        super().__init__()
        self.packets, self.writes = [], []
        self.is_reading, self.resumed = True, 0
        self.ended = None
        self.buffered = 0
        self._splitter = Splitter(10_000_000)

    def write(self, data):
        self.writes.append(len(data))
        self.packets += self._splitter.split(data)

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def get_write_buffer_size(self):
        return self.buffered

    def pause_reading(self):
        self.is_reading = False

    def resume_reading(self):
        self.is_reading = True
        self.resumed += 1

    def is_closing(self):
        return self.ended is not None

    def close(self):
        self.ended = self.ended or "closed"

    def abort(self):
        self.ended = self.ended or "aborted"


class Owner:
    """Gives messages and keeps what is told."""

    client_id = "id"
    keepalive_s = 30
    qos = 1
    is_retained = False
    is_draining = False
    historical_s = -1.0

    def __init__(self, **more):
        self.waiting, self.sure = deque(), deque()
        self.told, self.is_done = [], 0
        self.counters = {"received": 0, "rx_dropped": 0}
        self.is_held = False
        vars(self).update(more)

    def is_held_back(self):
        return self.is_held

    def published(self, message):
        self.told.append(message.topic)

    def refused(self, message, reason, fate):
        self.told.append((message.topic, fate))

    def done(self):
        self.is_done += 1

    def failed(self, topic):
        raise AssertionError(topic)


def connack(properties=""):
    body = bytes.fromhex(properties)
    return bytes((0x20, 3 + len(body), 0, 0, len(body))) + body


def opened(owner, subject=None, answer=CONNACK):
    subject = subject or Connection(owner)
    wire = Wire()
    subject.connection_made(wire)
    subject.data_received(answer)
    return subject, wire


def put(owner, *topics, payload=b"x", **more):
    owner.waiting.extend(Message(topic, payload, **more) for topic in topics)


def puback(packet_id, code=None):
    return struct.pack(">BBH", 0x40, 2, packet_id) if code is None else struct.pack(
        ">BBHB", 0x40, 3, packet_id, code
    )  # fmt: skip


def published(wire):
    """Return first byte, topic and packet identifier of what went out."""
    return [
        (first, rest[2:3].decode(), int.from_bytes(rest[3:5], "big"))
        for first, rest in wire.packets
        if first >> 4 == 3
    ]


def in_virtual_time(scenario):
    World().run(scenario())


async def lost_at_s(subject, within_s=1000.0):
    """Return when and why a connection was lost."""
    try:
        async with asyncio.timeout(within_s):
            await asyncio.shield(subject.lost)
    except LinkDownError as error:
        return round(asyncio.get_running_loop().time(), 3), str(error)
    except TimeoutError:
        return None


# --- acknowledgements


def test_acknowledgements_out_of_order_end_their_own_messages():
    async def scenario():
        subject, wire = opened(owner := Owner())
        put(owner, "a", "b", "c", "d")
        subject.fill()
        assert published(wire) == [(0x32, "a", 1), (0x32, "b", 2), (0x32, "c", 3), (0x32, "d", 4)]
        for packet_id in (3, 1, 1, 77, 4):
            subject.data_received(puback(packet_id))
        assert owner.told == ["c", "a", "d"]
        assert [message.topic for message in subject.under_way.values()] == ["b"]
        before = owner.is_done
        subject.data_received(puback(2))
        assert owner.is_done == before + 1
        assert not subject.lost.done()

    in_virtual_time(scenario)


def test_an_acknowledgement_says_whether_a_message_was_taken():
    async def scenario():
        subject, _ = opened(owner := Owner())
        put(owner, "a", "b", "c", "d")
        subject.fill()
        for packet_id, code in ((99, 0x87), (1, 0x10), (2, 0x80), (3, 0x87), (4, 0x90)):
            subject.data_received(puback(packet_id, code))
        assert owner.told == [
            "a",
            ("b", Handover.GIVEN_BACK),
            ("c", Handover.FORBIDDEN),
            ("d", Handover.UNFIT),
        ]
        assert not subject.under_way

    in_virtual_time(scenario)


def test_a_message_of_qos_2_is_done_with_its_last_acknowledgement():
    async def scenario():
        subject, wire = opened(owner := Owner(qos=2))
        put(owner, "a", "b")
        subject.fill()
        subject.data_received(bytes.fromhex("50020001 5003000297"))
        assert wire.packets[-1] == (0x62, b"\0\1")
        assert owner.told == [("b", Handover.GIVEN_BACK)]
        subject.data_received(bytes.fromhex("70020001"))
        assert owner.told == [("b", Handover.GIVEN_BACK), "a"]
        assert not subject.under_way

    in_virtual_time(scenario)


def test_an_identifier_that_is_under_way_is_not_given_again():
    async def scenario():
        subject, wire = opened(owner := Owner(), Connection(owner, ids=range(1, 4)))
        put(owner, "a", "b")
        subject.fill()
        for packet_id, topic in ((2, "c"), (3, "d")):
            subject.data_received(puback(packet_id))
            put(owner, topic)
            subject.fill()
        assert [packet_id for _, _, packet_id in published(wire)] == [1, 2, 3, 2]

    in_virtual_time(scenario)


# --- what goes out


@pytest.mark.parametrize(("has_quickack", "after_one"), [(True, 4), (False, 5)])
def test_a_full_window_is_refilled_when_half_of_it_is_free(monkeypatch, has_quickack, after_one):
    if not has_quickack:
        monkeypatch.setattr(connection_module, "_QUICKACK", None)
    elif connection_module._QUICKACK is None:
        pytest.skip("the system has no TCP_QUICKACK")

    async def scenario():
        subject, wire = opened(owner := Owner(), answer=connack("210004"))
        put(owner, *"abcdefgh")
        subject.fill()
        assert len(published(wire)) == 4
        subject.data_received(puback(1))
        assert len(published(wire)) == after_one
        subject.data_received(puback(2))
        assert len(published(wire)) == 6

    in_virtual_time(scenario)


def test_a_message_that_cannot_go_hides_none_behind_it():
    async def scenario():
        subject, wire = opened(owner := Owner(), answer=connack("270000000c"))
        put(owner, "a", payload=b"12345")  # 2 + 3 + 2 + 1 + 5 bytes: one too many
        put(owner, "\ud800")
        put(owner, "b", payload=b"1234")
        subject.fill()
        assert owner.told == [("a", Handover.UNFIT), ("\ud800", Handover.UNFIT)]
        assert [topic for _, topic, _ in published(wire)] == ["b"]

    in_virtual_time(scenario)


@pytest.mark.parametrize(
    ("is_usual", "own", "properties", "first"),
    [(True, None, "", 0x33), (False, None, "", 0x32), (True, False, "", 0x32), (False, True, "", 0x33),
     (True, None, "2500", 0x32), (False, True, "2500", 0x32), (True, None, "2400", 0x31)],
)  # fmt: skip
def test_a_message_is_retained_if_it_says_so_and_the_broker_can(is_usual, own, properties, first):
    async def scenario():
        subject, wire = opened(owner := Owner(is_retained=is_usual), answer=connack(properties))
        put(owner, "a", is_retained=own)
        subject.fill()
        assert [packet[0] for packet in wire.packets] == [first]

    in_virtual_time(scenario)


def test_a_large_backlog_goes_in_pieces_and_nothing_while_the_socket_is_full():
    async def scenario():
        subject, wire = opened(owner := Owner())
        put(owner, *"abcdefghij", payload=bytes(50_000))
        subject.pause_writing()
        subject.fill()
        assert wire.writes == []
        subject.resume_writing()
        assert len(published(wire)) == 6  # the first beyond 256 KiB ends the piece
        await asyncio.sleep(0.01)
        assert len(published(wire)) == 10

    in_virtual_time(scenario)


def test_few_acknowledgements_are_not_read_at_once():
    async def scenario():
        subject, wire = opened(owner := Owner(), answer=connack("210004"))
        for topics, is_reading in (("a", False), ("b", True)):  # of four, two are half
            put(owner, topics)
            subject.fill()
            await asyncio.sleep(0.01)
            assert wire.is_reading is is_reading
        subject, wire = opened(owner := Owner())
        put(owner, "a")
        subject.fill()
        await asyncio.sleep(0.24)
        assert (wire.is_reading, wire.resumed) == (False, 0)
        await asyncio.sleep(0.02)
        assert (wire.is_reading, wire.resumed) == (False, 1)
        subject.data_received(puback(1))
        await asyncio.sleep(0.25)
        assert wire.is_reading, "nothing is under way"
        subject, wire = opened(owner := Owner(is_draining=True))
        put(owner, "a")
        subject.fill()
        await asyncio.sleep(0.01)
        assert wire.is_reading, "somebody waits for them"

    in_virtual_time(scenario)


@pytest.mark.parametrize(("buffered", "ended", "last"), [(0, "closed", [(0xE0, b"")]), (9, "aborted", [])])
def test_a_connection_ends_politely_if_that_costs_no_waiting(buffered, ended, last):
    async def scenario():
        subject, wire = opened(Owner())
        wire.buffered = buffered
        subject.say_goodbye()
        subject.say_goodbye()
        assert (wire.ended, wire.packets) == (ended, last)
        assert await lost_at_s(subject, 100) is None, "no timer is left"

    in_virtual_time(scenario)


# --- when it is lost


def test_a_silent_broker_is_asked_after_two_thirds_and_left_after_the_whole():
    async def scenario():
        begun_s = asyncio.get_running_loop().time()
        subject, wire = opened(Owner())
        await asyncio.sleep(19.9)
        assert wire.packets == []
        await asyncio.sleep(0.2)
        assert wire.packets == [PINGREQ]
        at_s, why = await lost_at_s(subject)
        assert (at_s - begun_s, why) == (pytest.approx(30), "the broker does not answer")
        assert wire.ended == "aborted"

    in_virtual_time(scenario)


def test_the_keep_alive_time_of_the_broker_wins():
    async def scenario():
        begun_s = asyncio.get_running_loop().time()
        subject, _ = opened(Owner(), answer=connack("130009"))
        at_s, _ = await lost_at_s(subject)
        assert at_s - begun_s == pytest.approx(9)

    in_virtual_time(scenario)


def test_a_message_has_the_keep_alive_time_to_be_acknowledged():
    async def scenario():
        begun_s = asyncio.get_running_loop().time()
        subject, _ = opened(owner := Owner())
        put(owner, "a", "b")
        subject.fill()
        for _ in range(35):
            await asyncio.sleep(1)
            subject.data_received(b"\xd0\0")
        subject.data_received(puback(1))  # now the other is the oldest, and has its time too
        at_s, why = await lost_at_s_while_it_answers(subject)
        assert (at_s - begun_s, why) == (pytest.approx(70), "the broker does not acknowledge what it gets")

    in_virtual_time(scenario)


async def lost_at_s_while_it_answers(subject):
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(1000):
        while not subject.lost.done():
            subject.data_received(b"\xd0\0")
            await asyncio.sleep(0.5)
    return round(loop.time()), str(subject.lost.exception())


@pytest.mark.parametrize(("missing", "after_s"), [(1000, 50), (150_000, 60)])
def test_a_packet_without_end_is_noticed(missing, after_s):
    async def scenario():
        begun_s = asyncio.get_running_loop().time()
        subject, _ = opened(owner := Owner(), Connection(owner, 1_000_000))
        size = missing + 100
        await asyncio.sleep(0.1)
        subject.data_received(b"\x40" + bytes((size & 127 | 128, size >> 7 & 127 | 128, size >> 14)))
        async with asyncio.timeout(1000):
            while not subject.lost.done():
                subject.data_received(b"\0")
                await asyncio.sleep(1)
        assert str(subject.lost.exception()) == "the broker does not end a packet"
        assert asyncio.get_running_loop().time() - begun_s == pytest.approx(after_s, abs=1.2)

    in_virtual_time(scenario)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("d000", "before CONNACK"),
        ("e0018b", "server shutting down"),
        ("2003008700", "not authorized, as client 'id'"),
    ],
)
def test_a_broker_that_does_not_accept_us_is_left_at_once(data, why):
    async def scenario():
        subject, wire = opened(owner := Owner(), answer=bytes.fromhex(data))
        for future in (subject.connected, subject.lost):
            assert why in str(future.exception())
        assert (wire.ended, owner.is_done) == ("aborted", 1)

    in_virtual_time(scenario)


@pytest.mark.parametrize("data", ["62020001", "90030001 0000", "30040001 6100"])
def test_packets_that_nothing_was_sent_for_end_the_connection(data):
    async def scenario():
        subject, _ = opened(Owner())
        subject.data_received(bytes.fromhex(data))
        assert "not MQTT 5" in str(subject.lost.exception())

    in_virtual_time(scenario)


def test_nothing_counts_after_the_broker_has_ended_the_connection():
    async def scenario():
        subject, _ = opened(owner := Owner())
        put(owner, "a")
        subject.fill()
        subject.data_received(b"\xe0\0" + puback(1))
        assert owner.told == []
        assert str(subject.lost.exception()) == "closed by the broker"

    in_virtual_time(scenario)


def test_a_refused_connection_is_said_in_words():
    async def scenario():
        subject = Publisher("broker", "127.0.0.1", 1883, "id")
        with pytest.raises(LinkDownError, match="refused"):
            await subject.connect()
        assert not subject.is_connected
        with pytest.raises(LinkDownError, match="not connected"):
            await subject.run()

    in_virtual_time(scenario)


@pytest.mark.parametrize(("given", "announced"), [(0.2, 1), (30.0, 30), (100_000.0, 65535)])
def test_the_keep_alive_time_is_one_that_mqtt_can_say(given, announced):
    async def scenario():
        subject = Publisher("broker", "127.0.0.1", 1883, "id", keepalive_s=given)
        assert subject.keepalive_s == announced
        assert struct.pack(">H", announced) in subject._hello
        assert Publisher("broker", "127.0.0.1", 1883, "id").keepalive_s == 30
        assert not subject.is_draining
        await subject.drain()
        assert not subject.is_draining

    in_virtual_time(scenario)


def test_nothing_goes_out_before_the_broker_has_accepted_us():
    async def scenario():
        owner = Owner()
        put(owner, "a")
        subject, wire = opened(owner, answer=CONNACK[:3])
        await asyncio.sleep(0.01)
        assert wire.packets == []
        subject.data_received(CONNACK[3:])
        assert published(wire) == [(0x32, "a", 1)]

    in_virtual_time(scenario)


def test_a_connection_that_is_lost_is_not_read_by_a_timer():
    async def scenario():
        subject, wire = opened(owner := Owner())
        put(owner, "a")
        subject.fill()
        subject.data_received(b"\xe0\0")
        await asyncio.sleep(1)
        assert (wire.is_reading, wire.resumed) == (True, 0)

    in_virtual_time(scenario)


def test_a_lost_connection_that_nobody_waits_for_is_no_error(caplog):
    async def scenario():
        opened(Owner())[0].connection_lost(None)
        await asyncio.sleep(0.01)
        gc.collect()

    in_virtual_time(scenario)
    assert not caplog.records


def test_what_was_to_be_sure_is_given_back_at_the_end():
    async def scenario():
        subject, done = Publisher("broker", "127.0.0.1", 1883, "id"), []
        subject.put_sure("t", b"x", done.append)
        subject.close()
        subject.close()
        assert done == [False]

    in_virtual_time(scenario)


def test_packet_identifiers_begin_again_after_65535():
    async def scenario():
        subject, wire = opened(owner := Owner())
        for number in range(65_536):
            put(owner, "a")
            subject.fill()
            subject.data_received(puback(number % 65_535 + 1))
        assert len(owner.told) == 65_536
        assert published(wire)[-1] == (0x32, "a", 1)

    in_virtual_time(scenario)
