"""The connection that publishes, against a broker that misbehaves as a test wants."""

import asyncio

import pytest
from conftest import eventually

from fieldbus.clock import Clock
from fieldbus.errors import LinkDownError
from fieldbus.link import Handover
from fieldbus.mqtt.opening import NO_ANSWER
from fieldbus.mqtt.packets import CONNECT, Splitter
from fieldbus.mqtt.publisher import Publisher


class FakeBroker:
    """Accepts, and then does what a test wants with each packet; with None it hangs up."""

    def __init__(self, connack="200300 00 00", answer=lambda first, rest: b"", is_deaf=False):
        self.packets = []
        self._connack = bytes.fromhex(connack)
        self._answer = answer
        self._is_deaf = is_deaf
        self._tasks = set()
        self.port = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        splitter = Splitter(100_000)
        try:
            writer.write(self._connack)
            while self._is_deaf:
                await asyncio.sleep(1)
            while data := await reader.read(65536):
                for first, rest in splitter.split(data):
                    if first == CONNECT:
                        continue
                    self.packets.append((first, rest))
                    answer = self._answer(first, rest)
                    if answer is None:
                        return
                    writer.write(answer)
        except OSError:
            return
        finally:
            writer.close()


def publisher(fake, **options):
    return Publisher("broker", "127.0.0.1", fake.port, "id", **options)


async def test_no_more_is_under_way_than_the_broker_allows():
    async with FakeBroker("2006 0000 03 210003") as fake:
        subject = publisher(fake)
        for value in range(10):
            subject.put("t", b"%d" % value)
        await subject.connect()
        await eventually(lambda: len(fake.packets) == 3)
        await asyncio.sleep(0.05)
        assert len(fake.packets) == 3
        assert subject.counters["queued"] == 10
        subject.close()
        assert [message.payload for message in subject.waiting] == [b"%d" % value for value in range(10)]


async def test_a_broker_that_hangs_up_in_mid_publish_gets_the_rest_again_in_order():
    count = 0

    def answer(first, rest):
        nonlocal count
        count += 1
        return None if count == 5 else b"\x40\x02" + rest[3:5]

    async with FakeBroker(answer=answer) as fake:
        subject = publisher(fake)
        for value in range(10):
            subject.put("t", b"%d" % value)
        await subject.connect()
        with pytest.raises(LinkDownError):
            await asyncio.wait_for(subject.run(), 5)
        subject.close()
        await subject.connect()
        await asyncio.wait_for(subject.drain(), 5)
        subject.close()
    assert subject.counters["published"] == 10
    payloads = [int(rest[6:]) for first, rest in fake.packets if first == 0x33]
    assert payloads[:5] == [0, 1, 2, 3, 4]
    assert payloads[5] <= 4
    assert payloads[5:] == list(range(payloads[5], 10))


async def test_a_broker_that_says_nothing_is_lost_after_the_keep_alive_time():
    async with FakeBroker() as fake:
        subject = publisher(fake, keepalive_s=1)
        await subject.connect()
        with pytest.raises(LinkDownError, match="does not answer"):
            await asyncio.wait_for(subject.run(), 3)
        subject.close()
    assert fake.packets == [(0xC0, b"")]


async def test_a_broker_that_answers_keeps_a_quiet_connection():
    async with FakeBroker("2006 0000 03 130001", answer=lambda first, rest: b"\xd0\0") as fake:
        subject = publisher(fake, keepalive_s=60)  # the broker wants one second
        await subject.connect()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(subject.run(), 2)
        subject.close()
    assert 2 <= len(fake.packets) <= 5


@pytest.mark.parametrize(
    ("connack", "words"),
    [
        ("2003 0086 00", "bad user name or password, as client 'id'"),
        ("2008 0087 05 1f0002 6e6f", "not authorized: no, as client 'id'"),
        ("2003 0085 00", "client identifier not valid"),
        ("ffffffffffff", "not MQTT 5"),
        ("e0018b", "server shutting down"),
    ],
)
async def test_why_the_broker_refuses_is_said_in_words(connack, words):
    async with FakeBroker(connack) as fake:
        subject = publisher(fake, username="u", password="canary")
        with pytest.raises(LinkDownError, match=words) as caught:
            await subject.connect()
        assert not subject.is_connected
        assert "canary" not in str(caught.value)


async def test_a_broker_that_takes_nothing_costs_the_oldest_messages_and_no_memory():
    async with FakeBroker(is_deaf=True) as fake:
        subject = publisher(fake, qos=0, max_queue=100)
        await subject.connect()
        for _ in range(600):
            for _ in range(10):
                subject.put("t", bytes(10_000))
            await asyncio.sleep(0)
        assert subject._session.transport.get_write_buffer_size() < 2_000_000
        assert len(subject.waiting) == 100
        assert subject.counters["tx_dropped"] > 1000
        subject.close()


async def test_a_broker_that_answers_but_acknowledges_one_message_never_is_lost_and_gets_it_again():
    swallowed = 1

    def answer(first, rest):
        nonlocal swallowed
        if first == 0xC0:
            return b"\xd0\x00"
        if first >> 4 != 3:
            return b""
        packet_id = rest[3:5]
        if rest.endswith(b"first") and swallowed:
            swallowed -= 1
            return b""
        return b"\x40\x02" + packet_id

    async with FakeBroker(answer=answer) as fake:
        subject = publisher(fake, keepalive_s=1)
        subject.put("t", b"first")
        await subject.connect()

        async def go_on():
            while True:
                subject.put("t", b"more")
                await asyncio.sleep(0.05)

        others = asyncio.create_task(go_on())
        try:
            async with asyncio.timeout(4):
                with pytest.raises(LinkDownError, match="does not acknowledge"):
                    await subject.run()
        finally:
            others.cancel()
        subject.close()
        assert subject.waiting[0].payload == b"first"
        await subject.connect()
        await eventually(lambda: not subject.counters["queued"])
        subject.close()
    assert sum(rest.endswith(b"first") for _, rest in fake.packets) == 2


async def test_what_is_new_is_not_held_up_by_a_backlog_nor_pushed_out_by_it():
    async with FakeBroker("2006 0000 03 210002", lambda first, rest: b"\x40\x02" + rest[3:5]) as fake:
        subject = publisher(fake, max_queue=10)
        done = []
        for value in range(100):
            subject.put_sure("t", b"old %d" % value, done.append)
        for value in range(10):
            subject.put("t", b"new %d" % value)
        assert subject.counters["tx_dropped"] == 0
        await subject.connect()
        await eventually(lambda: len(done) == 100)
        subject.close()
    payloads = [rest[6:] for _, rest in fake.packets]
    new = [payload for payload in payloads if payload.startswith(b"new")]
    assert new == [b"new %d" % value for value in range(10)]
    assert payloads.index(new[-1]) <= 20
    assert [payload for payload in payloads if payload.startswith(b"old")] == [
        b"old %d" % n for n in range(100)
    ]


@pytest.mark.parametrize(
    ("code", "fate"),
    [
        (0x87, Handover.FORBIDDEN),
        (0x90, Handover.UNFIT),
        (0x99, Handover.UNFIT),
        (0x97, Handover.GIVEN_BACK),
        (0x83, Handover.GIVEN_BACK),
    ],
)
async def test_what_the_broker_never_takes_may_not_take_and_does_not_take_now_are_told_apart(code, fate):
    async with FakeBroker(answer=lambda first, rest: b"\x40\x03" + rest[3:5] + bytes([code])) as fake:
        subject = publisher(fake)
        done = []
        subject.put_sure("t", b"x", done.append)
        await subject.connect()
        await eventually(lambda: done)
        assert done == [fate]
        assert subject.counters["tx_refused"] == 1
        subject.close()
        assert done == [fate]


async def test_samples_that_waited_say_that_they_are_historical():
    now_s = [0.0]
    async with FakeBroker(answer=lambda first, rest: b"\x40\x02" + rest[3:5]) as fake:
        subject = publisher(fake, clock=Clock(lambda: now_s[0]))
        subject.put("t", b'{"value":1}')
        now_s[0] = 0.5
        subject.put("t", b'{"value":2,"historical":true}')
        subject.put("t", b'{"value":3}')
        now_s[0] = 1.2
        subject.put("t", b'{"value":4}')
        subject.put_sure("s", b'{"value":5}', None)
        await subject.connect()
        await eventually(lambda: len(fake.packets) == 5)
        found = {rest[rest.index(b"{") :] for _, rest in fake.packets}
        assert found == {
            b'{"value":1,"historical":true}', b'{"value":2,"historical":true}', b'{"value":3}',
            b'{"value":4}', b'{"value":5}',
        }  # fmt: skip
        subject.close()


async def test_a_sample_that_is_sent_again_after_an_outage_is_historical():
    now_s = [0.0]
    async with FakeBroker() as fake:
        subject = publisher(fake, clock=Clock(lambda: now_s[0]))
        subject.put("t", b'{"value":1}')
        await subject.connect()
        await eventually(lambda: len(fake.packets) == 1)
        subject.close()
        now_s[0] = 5.0
        await subject.connect()

        def published():
            return [rest.endswith(b'"historical":true}') for first, rest in fake.packets if first >> 4 == 3]

        await eventually(lambda: published() == [False, True])
        subject.close()


def acknowledge(first, rest):
    """Answer PUBLISH at QoS 1 with PUBACK, and everything else with nothing."""
    if first >> 4 != 3 or not first & 6:
        return b""
    behind = 2 + int.from_bytes(rest[:2], "big")
    return b"\x40\x02" + rest[behind : behind + 2]


async def test_what_the_broker_has_is_told_and_what_waits_is_counted():
    told = []
    async with FakeBroker(answer=acknowledge) as fake:
        subject = publisher(fake)
        subject.put("t", b"1")
        subject.put("t", b"2")
        for _ in range(3):
            subject.put_sure("sure", b"3", told.append)
        assert subject.counters == {"published": 0, "tx_dropped": 0, "tx_refused": 0, "queued": 5}
        await subject.connect()
        await asyncio.wait_for(subject.drain(), 10)
        assert told == [True] * 3
        assert not subject.is_draining
        assert subject.counters == {"published": 5, "tx_dropped": 0, "tx_refused": 0, "queued": 0}
        subject.close()


async def test_a_drain_is_under_way_until_all_is_acknowledged_or_the_connection_is_lost():
    async with FakeBroker() as fake:
        subject = publisher(fake)
        subject.put("t", b"1")
        await subject.connect()
        draining = asyncio.create_task(subject.drain())
        await eventually(lambda: len(fake.packets) == 1 and subject.is_draining)
        assert not draining.done()
        subject._session.transport.abort()
        await asyncio.wait_for(draining, 10)
        assert not subject.is_draining
        assert subject.counters["queued"] == 1
        subject.close()


async def test_a_topic_that_the_broker_takes_again_is_told_once(caplog):
    codes = iter((0x97, 0x97, 0x00, 0x00))

    def answer(first, rest):
        taken = acknowledge(first, rest)
        if rest[2:].startswith(b"fine"):
            return taken
        return b"\x40\x04" + taken[2:] + bytes((next(codes), 0)) if taken else b""

    caplog.set_level("INFO", "fieldbus")
    async with FakeBroker(answer=answer) as fake:
        subject = publisher(fake)
        await subject.connect()
        for _ in range(4):
            subject.put("a/topic", b"1")
            subject.put("fine", b"1")
            await asyncio.wait_for(subject.drain(), 10)
        subject.close()
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "is taken by the broker again" in text] == [
        "broker: a/topic is taken by the broker again"
    ]
    assert len([text for text in said if "the broker does not take a/topic" in text]) == 1


@pytest.mark.parametrize("is_retained", [False, True])
async def test_without_acknowledgements_what_was_written_is_done(is_retained):
    async with FakeBroker() as fake:
        subject = publisher(fake, qos=0, is_retained=is_retained)
        await subject.connect()
        subject._session.pause_writing()
        for value in (b"1", b"2"):
            subject.put("t", value)
        draining = asyncio.create_task(subject.drain())
        await eventually(lambda: subject.is_draining)
        subject._session.resume_writing()
        await asyncio.wait_for(draining, 10)
        assert subject.counters == {"published": 2, "tx_dropped": 0, "tx_refused": 0, "queued": 0}
        await eventually(lambda: len(fake.packets) == 2)
        assert [(first & 0b111, rest) for first, rest in fake.packets] == [
            (int(is_retained), b"\x00\x01t\x00" + value) for value in (b"1", b"2")
        ]
        subject.close()


@pytest.mark.parametrize(("connack", "words"), [("", NO_ANSWER), ("20", "connection closed by the broker")])
async def test_a_broker_that_hangs_up_without_a_word_is_told_from_one_that_began_to_answer(connack, words):
    async def hang_up(reader, writer):
        await reader.read(1024)
        writer.write(bytes.fromhex(connack))
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        subject = Publisher("broker", "127.0.0.1", server.sockets[0].getsockname()[1], "id")
        with pytest.raises(LinkDownError) as raised:
            await subject.connect()
        assert str(raised.value) == words
