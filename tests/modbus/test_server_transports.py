"""The server on UDP, on serial lines, with RTU frames on TCP; who is listened to; who we say we are."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from conftest import eventually

from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, Target
from fieldbus.modbus import pdu
from fieldbus.modbus.checksum import crc16, lrc
from fieldbus.modbus.identification import Identification, diagnose, identify
from fieldbus.modbus.places import Framing, SerialPlace, TcpPlace, UdpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.server_access import Guard, Right, networks_of
from fieldbus.model import Batch, Quality, Sample

READ, READ_ANSWER = bytes.fromhex("0300000002"), bytes.fromhex("03043fc00000")
WRITE = bytes.fromhex("0600020005")


def unit(unit_id: int, device: str) -> ServedUnit:
    speed = PointSettings(table="holding", address=0, type="float32").build(device, "speed", is_served=True)
    gear = PointSettings(table="holding", address=2, access="readwrite").build(device, "gear", is_served=True)
    return ServedUnit(device, unit_id, [speed, gear])


class Served:
    """A server that runs, and what masters wrote to it."""

    def __init__(self, link: ModbusServerLink) -> None:
        self.link = link
        self.written: list[tuple[str, object]] = []
        for item in link.units:
            sample = Sample(1.5, Quality.GOOD, None, 1)
            link.send([Delivery(Target("", item.points[0].point), item.points[0].point, sample)])

    def emit(self, batch: Batch) -> None:
        self.written.append((batch.group.points[0].address, batch.values[0]))


@asynccontextmanager
async def serving(
    place: TcpPlace | UdpPlace | SerialPlace, *units: ServedUnit, **options: object
) -> AsyncIterator[Served]:
    link = ModbusServerLink("hmi", "127.0.0.1", 0, units or [unit(1, "panel")], place=place, **options)
    served = Served(link)
    await link.connect()
    running = asyncio.create_task(link.run(served.emit, lambda _: None))
    await asyncio.sleep(0)
    try:
        yield served
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        await asyncio.sleep(0.02)


# --- UDP --------------------------------------------------------------------------------------------


@contextmanager
def datagrams(served: Served) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.setblocking(False)
        peer.connect(("127.0.0.1", served.link.port))
        yield peer


async def receive(peer: socket.socket, timeout_s: float = 2.0) -> bytes:
    async with asyncio.timeout(timeout_s):
        return await asyncio.get_running_loop().sock_recv(peer, 2000)


async def test_a_datagram_is_answered_by_one() -> None:
    async with serving(UdpPlace("127.0.0.1", 0)) as served:
        with datagrams(served) as peer:
            peer.send(pdu.frame(0xABCD, 1, READ))
            assert await receive(peer) == pdu.frame(0xABCD, 1, READ_ANSWER)
            peer.send(pdu.frame(2, 1, WRITE))
            assert await receive(peer) == pdu.frame(2, 1, WRITE)
            peer.send(pdu.frame(3, 9, READ))
            assert await receive(peer) == pdu.frame(3, 9, b"\x83\x0a")
        assert served.written == [("panel.gear", 5)]
        assert served.link.counters["requests"] == 3


async def test_what_is_no_frame_is_dropped_counted_and_costs_nobody_anything() -> None:
    good = pdu.frame(1, 1, READ)
    wrong = [
        b"",
        good[:-1],
        good + b"\0",
        good + good,
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(65_507),
        b"\xff" * 12,
    ]
    async with serving(UdpPlace("127.0.0.1", 0)) as served:
        with datagrams(served) as peer, datagrams(served) as other:
            for number, data in enumerate(wrong, 1):
                peer.send(data)
                other.send(good)
                assert await receive(other) == pdu.frame(1, 1, READ_ANSWER)
                assert served.link.counters["bad_frames"] == number
            with pytest.raises(TimeoutError):
                await receive(peer, 0.05)


async def test_many_masters_on_udp_get_each_its_own_answer() -> None:
    async with serving(UdpPlace("127.0.0.1", 0)) as served:
        peers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(50)]
        for number, peer in enumerate(peers):
            peer.setblocking(False)
            peer.connect(("127.0.0.1", served.link.port))
            peer.send(pdu.frame(number, 1, READ))
        for number, peer in enumerate(peers):
            assert (await receive(peer))[:2] == number.to_bytes(2, "big")
            peer.close()


async def test_a_master_on_udp_that_is_gone_does_not_close_the_port() -> None:
    async with serving(UdpPlace("127.0.0.1", 0)) as served:
        for _ in range(5):
            with datagrams(served) as gone:
                gone.send(pdu.frame(1, 1, READ))  # the answer finds nobody
            await asyncio.sleep(0.01)
        with datagrams(served) as peer:
            peer.send(pdu.frame(1, 1, READ))
            assert await receive(peer) == pdu.frame(1, 1, READ_ANSWER)


async def test_a_udp_port_that_is_taken_says_so() -> None:
    async with serving(UdpPlace("127.0.0.1", 0)) as served:
        other = ModbusServerLink("two", "127.0.0.1", served.link.port, [unit(1, "two")],
                                 place=UdpPlace("127.0.0.1", 0))  # fmt: skip
        with pytest.raises(LinkDownError, match="address already in use"):
            await other.connect()


# --- who is listened to -----------------------------------------------------------------------------


async def hung_up(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(2):
            return await reader.read() == b""
    except ConnectionError:
        return True


async def test_a_connection_from_elsewhere_is_closed_at_once_and_counted() -> None:
    guard = Guard(networks_of(["127.0.0.2", "10.0.0.0/8"]))
    async with serving(TcpPlace("127.0.0.1", 0), guard=guard) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.link.port)
        assert await hung_up(reader)
        writer.close()
        assert served.link.counters["sessions_refused"] == 1
        assert served.link.counters["sessions"] == 0
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.link.port, local_addr=("127.0.0.2", 0)
        )
        writer.write(pdu.frame(1, 1, READ))
        assert await reader.readexactly(13) == pdu.frame(1, 1, READ_ANSWER)
        writer.transport.abort()


async def test_a_datagram_from_elsewhere_is_dropped_and_counted() -> None:
    async with serving(UdpPlace("127.0.0.1", 0), guard=Guard(networks_of(["127.0.0.2"]))) as served:
        with datagrams(served) as peer:
            peer.send(pdu.frame(1, 1, WRITE))
            await eventually(lambda: served.link.counters["sessions_refused"] == 1)
            assert served.written == []
            assert served.link.counters["requests"] == 0


@pytest.mark.parametrize(
    ("allow", "address", "is_in"),
    [
        ([], "203.0.113.1", True), ([], "", True),
        (["127.0.0.1"], "127.0.0.1", True), (["127.0.0.1"], "127.0.0.2", False),
        (["10.0.0.0/8", "192.168.1.0/24"], "10.255.1.2", True), (["10.0.0.0/8"], "11.0.0.0", False),
        (["192.168.1.0/24"], "::ffff:192.168.1.7", True), (["192.168.1.0/24"], "::1", False),
        (["fe80::/10"], "fe80::1%eth0", True), (["::1"], "::1", True), (["::1"], "no address", False),
        (["0.0.0.0/0"], "8.8.8.8", True), (["0.0.0.0/0"], "", False),
    ],
)  # fmt: skip
def test_an_address_is_listened_to_if_a_network_has_it(allow: list[str], address: str, is_in: bool) -> None:
    assert Guard(networks_of(allow)).admits(address) is is_in


def test_a_right_covers_reading_or_all_or_nothing() -> None:
    for function in range(256):
        assert Right.READWRITE.covers(function)
        assert not Right.NONE.covers(function)
        assert Right.READ.covers(function) is (function not in (5, 6, 15, 16, 22, 23))


# --- a serial line ----------------------------------------------------------------------------------


def rtu(data: bytes, unit_id: int = 1) -> bytes:
    body = bytes((unit_id,)) + data
    return body + struct.pack("<H", crc16(body))


def ascii_(data: bytes, unit_id: int = 1) -> bytes:
    body = bytes((unit_id,)) + data
    return b":" + (body + bytes((lrc(body),))).hex().upper().encode() + b"\r\n"


class Wire:
    """A serial line that ends at a port of this machine, with the test at its other end."""

    def __init__(self) -> None:
        self._end, self._other = os.openpty()
        tty.setraw(self._other)
        os.set_blocking(self._end, False)
        self.port = os.ttyname(self._other)

    def place(self, framing: Framing = Framing.RTU, **options: object) -> SerialPlace:
        return SerialPlace(self.port, 19200, framing=framing, **options)

    def say(self, data: bytes) -> None:
        os.write(self._end, data)

    async def hear(self, size: int, timeout_s: float = 2.0) -> bytes:
        """Return so many bytes, or what came until the time is up."""
        data = b""
        try:
            async with asyncio.timeout(timeout_s):
                while len(data) < size:
                    try:
                        data += os.read(self._end, size - len(data))
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
        except TimeoutError:
            pass
        return data

    async def ask(self, request: bytes, unit_id: int = 1, wait_s: float = 2.0) -> bytes:
        """Return the PDU of the answer, empty if there is none in time."""
        self.say(rtu(request, unit_id))
        answer = await self.hear(5, wait_s)
        if not answer:
            return b""
        size = {3: 5 + answer[2], 6: 8}.get(answer[1], 5)
        answer += await self.hear(size - 5)
        assert answer[0] == unit_id
        assert crc16(answer) == 0
        return answer[1:-2]

    def unplug(self) -> None:
        for end in (self._end, self._other):
            try:
                os.close(end)
            except OSError:
                pass


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.unplug()


async def test_a_master_on_a_serial_line_reads_and_writes(wire: Wire) -> None:
    async with serving(wire.place()) as served:
        assert await wire.ask(READ) == READ_ANSWER
        assert await wire.ask(WRITE) == WRITE
        assert await wire.ask(bytes.fromhex("0300020001")) == bytes.fromhex("03020005")
        assert await wire.ask(bytes.fromhex("0300630001")) == b"\x83\x02"
        assert await wire.ask(b"\x41") == b"\xc1\x01"
        assert served.written == [("panel.gear", 5)]
        assert served.link.counters["bad_frames"] == 0


async def test_units_that_are_not_ours_are_answered_with_silence(wire: Wire) -> None:
    async with serving(wire.place(), unit(1, "left"), unit(7, "right")) as served:
        assert await wire.ask(READ, 1) == READ_ANSWER
        assert await wire.ask(READ, 7) == READ_ANSWER
        for unit_id in (2, 247, 255):
            assert await wire.ask(READ, unit_id, 0.15) == b""
        assert served.link.counters["requests"] == 2
        assert await wire.ask(READ, 1) == READ_ANSWER


async def test_a_broadcast_is_done_by_all_our_units_and_answered_by_none(wire: Wire) -> None:
    async with serving(wire.place(), unit(1, "left"), unit(7, "right")) as served:
        assert await wire.ask(WRITE, 0, 0.15) == b""
        assert served.written == [("left.gear", 5), ("right.gear", 5)]
        assert await wire.ask(READ, 0, 0.15) == b""
        assert await wire.ask(READ, 7) == READ_ANSWER


async def test_a_wrong_checksum_is_silence_and_counted_and_the_next_request_is_answered(wire: Wire) -> None:
    async with serving(wire.place()) as served:
        wire.say(rtu(WRITE)[:-1] + b"\0")
        assert await wire.hear(1, 0.1) == b""
        assert await wire.ask(READ) == READ_ANSWER
        assert served.link.counters["bad_frames"] == 1
        assert served.written == []


async def test_other_stations_may_talk_on_the_line(wire: Wire) -> None:
    async with serving(wire.place()) as served:
        for _ in range(5):
            wire.say(rtu(READ, 9))
            await asyncio.sleep(0.005)
            wire.say(rtu(READ_ANSWER, 9))
            assert await wire.ask(READ) == READ_ANSWER
        assert served.link.counters["bad_frames"] == 0


async def test_an_answer_waits_for_the_silence_that_divides_frames(wire: Wire) -> None:
    loop = asyncio.get_running_loop()
    async with serving(SerialPlace(wire.port, 1200)):
        began_s = loop.time()
        assert await wire.ask(READ) == READ_ANSWER
        assert loop.time() - began_s >= 3.5 * 10 / 1200


async def test_a_request_in_pieces_is_answered_and_half_a_one_is_forgotten(wire: Wire) -> None:
    async with serving(wire.place()) as served:
        for byte in rtu(READ):
            wire.say(bytes((byte,)))
            await asyncio.sleep(0.001)
        assert await wire.hear(9) == rtu(READ_ANSWER)
        wire.say(rtu(READ)[:5])
        await eventually(lambda: served.link.counters["bad_frames"] == 1)
        wire.say(rtu(READ)[5:])
        assert await wire.hear(1, 0.1) == b""
        assert await wire.ask(READ) == READ_ANSWER


async def test_a_frame_behind_noise_is_answered(wire: Wire) -> None:
    async with serving(wire.place()):
        for noise in (b"\0", b"\xff\xff", b"\x01\x10\x00\x00\x00\x7b\xf6", b"\xaa" * 300):
            wire.say(noise + rtu(READ))
            assert await wire.hear(9) == rtu(READ_ANSWER)
            await asyncio.sleep(0.03)


async def test_ascii_on_a_serial_line(wire: Wire) -> None:
    async with serving(wire.place(Framing.ASCII)) as served:
        for data in (ascii_(READ), ascii_(READ).lower()):
            wire.say(data)
            assert await wire.hear(len(ascii_(READ_ANSWER))) == ascii_(READ_ANSWER)
        wire.say(ascii_(WRITE, 0) + ascii_(READ, 5) + b":0103\r\n" + ascii_(b"\x83"))
        assert await wire.hear(len(ascii_(b"\x83\x01"))) == ascii_(b"\x83\x01")
        assert served.written == [("panel.gear", 5)]
        assert served.link.counters["bad_frames"] == 1


async def test_an_adapter_that_hears_itself_makes_no_loop(wire: Wire) -> None:
    async with serving(wire.place(), has_echo=True) as served:
        wire.say(rtu(WRITE))
        answer = await wire.hear(8)
        wire.say(answer)  # what the adapter does
        assert await wire.hear(1, 0.1) == b""
        assert served.link.counters["requests"] == 1
        assert await wire.ask(WRITE) == WRITE


@pytest.mark.alone
async def test_a_master_on_a_line_that_reads_no_answers_costs_bounded_memory(wire: Wire) -> None:
    async with serving(wire.place()) as served:
        for _ in range(300):
            try:
                wire.say(rtu(READ) * 8)
            except BlockingIOError:
                pass
            await asyncio.sleep(0.002)
        assert served.link.counters["answers_dropped"] > 0
        assert served.link._listener._session._transport.get_write_buffer_size() <= 17
        while await wire.hear(4096, 0.1):
            pass
        assert await wire.ask(READ) == READ_ANSWER


async def test_an_adapter_that_is_unplugged_ends_the_session(wire: Wire) -> None:
    link = ModbusServerLink("line", "", 0, [unit(1, "panel")], place=wire.place())
    await link.connect()
    running = asyncio.create_task(link.run(lambda _: None, lambda _: None))
    await asyncio.sleep(0.01)
    wire.unplug()
    with pytest.raises(LinkDownError, match="the serial port is gone"):
        async with asyncio.timeout(2):
            await running
    await link.close()
    with pytest.raises(LinkDownError):
        await link.connect()
    await link.close()
    again = Wire()
    link.place = again.place()
    await link.connect()
    assert await again.ask(READ) == b"\x83\x0b"
    await link.close()
    again.unplug()


async def test_a_port_is_ours_alone_and_is_given_back(wire: Wire) -> None:
    first = ModbusServerLink("one", "", 0, [unit(1, "panel")], place=wire.place())
    second = ModbusServerLink("two", "", 0, [unit(1, "panel")], place=wire.place())
    await first.connect()
    with pytest.raises(LinkDownError, match="another program has the port"):
        await second.connect()
    await first.close()
    await second.connect()
    await second.close()
    await second.close()


async def test_a_port_that_there_is_not_says_so() -> None:
    link = ModbusServerLink("line", "", 0, [unit(1, "panel")], place=SerialPlace("/dev/ttyNONE9"))
    with pytest.raises(LinkDownError, match="there is no such port"):
        await link.connect()


async def test_a_line_is_set_to_its_speed(wire: Wire) -> None:
    async with serving(SerialPlace(wire.port, 38400)) as served:
        assert termios.tcgetattr(wire._other)[5] == termios.B38400
        assert served.link.endpoint == f"{wire.port} at 38400 8N1"


async def test_a_driver_without_an_rs_485_mode_says_so(wire: Wire) -> None:
    link = ModbusServerLink("line", "", 0, [unit(1, "panel")], place=wire.place(rs485=True))
    with pytest.raises(LinkDownError, match="RS-485"):
        await link.connect()


# --- RTU frames on TCP ------------------------------------------------------------------------------


async def test_rtu_frames_on_tcp_are_answered_as_on_a_line() -> None:
    async with serving(TcpPlace("127.0.0.1", 0, Framing.RTU)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.link.port)
        writer.write(rtu(READ, 9) + rtu(WRITE, 0) + b"\xff" + rtu(READ) + rtu(READ)[:3])
        async with asyncio.timeout(2):
            assert await reader.readexactly(9) == rtu(READ_ANSWER)
        await asyncio.sleep(0.1)  # longer than any silence on a line
        writer.write(rtu(READ)[3:] + rtu(b"\x41"))
        async with asyncio.timeout(2):
            assert await reader.readexactly(14) == rtu(READ_ANSWER) + rtu(b"\xc1\x01")
        assert served.written == [("panel.gear", 5)]
        writer.transport.abort()


async def test_half_an_rtu_frame_on_tcp_is_forgotten_after_a_second() -> None:
    async with serving(TcpPlace("127.0.0.1", 0, Framing.RTU)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.link.port)
        writer.write(bytes.fromhex("01100000007bf6"))
        await eventually(lambda: served.link.counters["bad_frames"] == 1)
        writer.write(rtu(READ))
        async with asyncio.timeout(2):
            assert await reader.readexactly(9) == rtu(READ_ANSWER)
        writer.transport.abort()


async def test_noise_on_rtu_over_tcp_costs_its_own_connection_and_holds_up_no_other() -> None:
    async with serving(TcpPlace("127.0.0.1", 0, Framing.RTU)) as served:
        bad, bad_writer = await asyncio.open_connection("127.0.0.1", served.link.port)
        good, good_writer = await asyncio.open_connection("127.0.0.1", served.link.port)
        bad_writer.write(b"\x01\x10\x00\xf6" * 100_000)
        good_writer.write(rtu(READ))
        async with asyncio.timeout(1):
            assert await good.readexactly(9) == rtu(READ_ANSWER)
        assert await hung_up(bad)
        assert served.link.counters["bad_frames"] >= 1
        for writer in (bad_writer, good_writer):
            writer.transport.abort()


# --- who we are -------------------------------------------------------------------------------------


def objects_of(answer: bytes) -> dict[int, bytes]:
    found, place = {}, 7
    for _ in range(answer[6]):
        size = answer[place + 1]
        found[answer[place]] = answer[place + 2 : place + 2 + size]
        place += 2 + size
    assert place == len(answer)
    return found


@pytest.mark.parametrize("length", [0, 1, 34, 35, 100, 120, 121, 243, 244])
def test_texts_of_any_length_come_in_pages_of_at_most_253_bytes(length: int) -> None:
    texts = [chr(ord("a") + n) * length for n in range(7)]
    who = Identification(*texts)
    found: dict[int, bytes] = {}
    following, pages = 0, 0
    while True:
        answer = identify(bytes((43, 14, 2, following)), who)
        assert len(answer) <= 253
        assert answer[:3] == b"\x2b\x0e\x02"
        page = objects_of(answer)
        assert not set(page) & set(found)
        found |= page
        pages += 1
        if answer[4] == 0:
            assert answer[5] == 0
            break
        assert answer[4] == 0xFF
        following = answer[5]
        assert following == max(found) + 1
    expected = {n: text.encode() for n, text in enumerate(texts) if text or n < 3}
    assert found == expected
    for object_id, text in expected.items():
        answer = identify(bytes((43, 14, 4, object_id)), who)
        assert objects_of(answer) == {object_id: text}
        assert answer[4:6] == b"\0\0"


def test_the_conformity_level_is_basic_without_regular_texts() -> None:
    assert identify(b"\x2b\x0e\x01\x00", Identification())[3] == 0x81
    assert identify(b"\x2b\x0e\x02\x00", Identification())[3] == 0x81
    assert identify(b"\x2b\x0e\x01\x00", Identification(model_name="m"))[3] == 0x82


@pytest.mark.parametrize("text", ["x" * 245, "Müller"])
def test_a_text_that_cannot_be_sent_cannot_be_configured(text: str) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        Identification(vendor_url=text)


@pytest.mark.parametrize("data", [b"", b"\xa5", b"\x12\x34", b"\x12\x34\x56", b"\x12\x34\x56\x78"])
def test_query_data_come_back_in_whole_words(data: bytes) -> None:
    request = b"\x08\x00\x00" + data
    is_whole = data and len(data) % 2 == 0
    assert diagnose(request) == (request if is_whole else b"\x88\x03")
