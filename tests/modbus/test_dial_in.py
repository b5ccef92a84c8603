"""Devices that dial in: scripted modems, whose devices hold what only they hold."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
from conftest import eventually, free_port
from fault_server import frame
from mutations import rtu
from rtu_peer import slave
from watching import Watch, points_of, watching

from fieldbus.errors import LinkDownError
from fieldbus.modbus import dial_in, transport
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import DialInPlace, Framing
from fieldbus.modbus.units import Unit

ADDRESSES = range(7, 17)


class Modem(asyncio.Protocol):
    """A modem and its device, whose holding registers have `mark` and their address."""

    def __init__(self, port: int, mark: int = 1, framing: Framing = Framing.MBAP) -> None:
        self.port = port
        self.mark = mark
        self.framing = framing
        self.asked = 0
        self.is_silent = False
        self.before = b""
        """Said right before each answer."""
        self.behind = b""
        """Said right behind each answer."""
        self.is_slow = False
        """Whether answers come byte by byte."""
        self.delay_s = 0.0
        self.hung_up = asyncio.Event()
        """Set when the other side did."""
        self._buffer = b""
        self._waiting = b""
        """What is still to be said, where that is slow."""
        self._transport: asyncio.Transport | None = None

    async def dial(self, *pieces: bytes, pause_s: float = 0.002) -> None:
        """Connect and say who it is, each piece in a segment of its own."""
        loop = asyncio.get_running_loop()
        self.hung_up.clear()
        self._buffer = self._waiting = b""
        await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        for piece in pieces:
            self.say(piece)
            await asyncio.sleep(pause_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.hung_up.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        size = 12 if self.framing is Framing.MBAP else 8
        while len(self._buffer) >= size:
            request, self._buffer = self._buffer[:size], self._buffer[size:]
            self.asked += 1
            if not self.is_silent:
                answer = self.before + self.answer(request) + self.behind
                asyncio.get_running_loop().call_later(self.delay_s, self.say, answer)

    def answer(self, request: bytes) -> bytes:
        start = 6 if self.framing is Framing.MBAP else 0
        unit_id, function, address, count = struct.unpack_from(">BBHH", request, start)
        words = [self.mark * 256 + address + n for n in range(count)]
        pdu = struct.pack(f">BB{count}H", function, 2 * count, *words)
        if self.framing is Framing.MBAP:
            return frame(struct.unpack_from(">H", request)[0], unit_id, pdu)
        return rtu(unit_id, pdu)

    def say(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if not self.is_slow:
            self._transport.write(data)
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._say_byte)
        self._waiting += data

    def _say_byte(self) -> None:
        if self._waiting and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._waiting[:1])
            self._waiting = self._waiting[1:]
            asyncio.get_running_loop().call_later(0.0015, self._say_byte)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def dialled(
    port: int,
    registration: bytes = b"SN-0001",
    *,
    mark: int = 1,
    framing: Framing = Framing.MBAP,
    heartbeat: bytes = b"",
    timeout_s: float = 0.5,
    unit_id: int = 1,
) -> Watch:
    """Return a link whose device has `mark`, watched."""
    device = f"well{mark}"
    unit = Unit(device, unit_id, points_of(device, ADDRESSES), 0.03, timeout_s)
    place = DialInPlace("127.0.0.1", port, registration, framing, heartbeat)
    return Watch(ModbusClientLink(device, place, [unit]), lambda _, __, address: mark * 256 + address)


async def more(watch: Watch, count: int = 3, timeout_s: float = 5.0) -> None:
    """Wait for some more batches of good values."""
    before = watch.good_batches
    await eventually(lambda: watch.good_batches >= before + count, timeout_s, "good values")


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """A port on which devices are awaited; it is closed with the test."""
    monkeypatch.setattr(dial_in, "_SETTLES_S", 0.03)
    number = free_port()
    yield number
    found = dial_in._DIAL_IN_PORTS.pop(("127.0.0.1", number), None)
    if found is not None:
        for registration in list(found._known):
            found.leave(registration)
        for timer in found._releases.values():
            timer.cancel()
    await asyncio.sleep(0.01)


@pytest.fixture
async def modem(port: int) -> AsyncIterator[Modem]:
    made = Modem(port)
    yield made
    made.hang_up()
    await asyncio.sleep(0)


@pytest.fixture(autouse=True, scope="module")
def _garbage_is_cheap() -> Iterator[None]:
    """Leave what was there before out of each test's look for exceptions that nobody fetched."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a modem can cause is no traceback; nor is an exception that nobody fetched."""
    caplog.set_level(logging.WARNING)
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


async def listening(port: int) -> None:
    """Wait until the port is open."""
    key = ("127.0.0.1", port)
    await eventually(lambda: key in dial_in._DIAL_IN_PORTS and dial_in._DIAL_IN_PORTS[key]._server)


# --- who it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [b"SN-0001"],
        [b"SN-", b"0001"],
        [bytes((byte,)) for byte in b"SN-0001"],
        [b"SN-0001\r\n"],
        [b"SN-0001\0"],
        [b"SN-0001", b"\r\n"],
        [b"SN-0001", b"\r", b"\n"],
    ],
    ids=["one piece", "two pieces", "bytes", "CR LF", "NUL", "CR LF behind it", "CR and LF behind it"],
)
@pytest.mark.parametrize("framing", [Framing.MBAP, Framing.RTU])
async def test_a_device_that_names_itself_is_polled(
    port: int, modem: Modem, framing: Framing, pieces: list[bytes]
) -> None:
    modem.framing = framing
    watch = dialled(port, framing=framing)
    async with watching(watch):
        await listening(port)
        await modem.dial(*pieces)
        await watch.all_good(2.0)
        await more(watch)
        assert not modem.hung_up.is_set()
    assert not watch.lost
    assert not watch.reasons


async def test_a_registration_may_be_bytes_that_are_no_text(port: int, modem: Modem) -> None:
    name = b"\xff\x00\r\n\xaa"
    watch = dialled(port, name)
    async with watching(watch):
        await listening(port)
        await modem.dial(name[:3], name[3:])
        await watch.all_good(2.0)


@pytest.mark.parametrize("said", [b"SN-0002", b"X", b"GET / HTTP/1.1\r\n\r\n", b"sn-0001", b"\r\nSN-0001"])
async def test_a_device_that_nobody_knows_is_hung_up_and_the_known_one_is_still_awaited(
    port: int, modem: Modem, said: bytes
) -> None:
    watch = dialled(port)
    async with watching(watch):
        await listening(port)
        stranger = Modem(port)
        await stranger.dial(said)
        async with asyncio.timeout(1):
            await stranger.hung_up.wait()
        assert stranger.asked == 0
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)
    assert not watch.lost


async def test_who_never_names_himself_is_hung_up_after_a_while(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial_in, "_NAMES_ITSELF_S", 0.1)
    watch = dialled(port)
    async with watching(watch):
        await listening(port)
        silent, half = Modem(port), Modem(port)
        await silent.dial()
        await half.dial(b"SN-00")
        assert not silent.hung_up.is_set()
        async with asyncio.timeout(1):
            await silent.hung_up.wait()
            await half.hung_up.wait()


async def test_nameless_connections_are_not_kept_without_end(
    port: int, modem: Modem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial_in, "_MOST_CALLERS", 10)
    watch = dialled(port)
    async with watching(watch):
        await listening(port)
        crowd = [Modem(port) for _ in range(30)]
        for stranger in crowd:
            await stranger.dial(pause_s=0)
        await eventually(lambda: sum(item.hung_up.is_set() for item in crowd) >= 20)
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)
        for stranger in crowd:
            stranger.hang_up()


async def test_a_device_that_talks_without_end_before_it_is_asked_costs_no_memory(
    port: int, modem: Modem
) -> None:
    """Nobody waits for it yet: what it says meanwhile is not kept."""
    await dial_in.dial_in_port(DialInPlace("127.0.0.1", port, b"SN-0001")).listen(b"SN-0001")
    await modem.dial(b"SN-0001")
    await asyncio.sleep(0.06)
    for _ in range(50):
        modem.say(b"x" * 4096)
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    [parked] = dial_in._DIAL_IN_PORTS["127.0.0.1", port]._parked.values()
    assert len(parked._data) <= 2048


# --- several on one port ----------------------------------------------------------------------------


async def test_two_links_on_one_port_get_each_its_own_device(port: int) -> None:
    first, second = dialled(port, b"SN-0001", mark=1), dialled(port, b"SN-0002", mark=2)
    modems = [Modem(port, 1), Modem(port, 2)]
    async with watching(first, second):
        await listening(port)
        await modems[1].dial(b"SN-0002")
        await modems[0].dial(b"SN-0001")
        await first.all_good(2.0)
        await second.all_good(2.0)
        await more(first)
        await more(second)
        modems[0].hang_up()
        await eventually(lambda: not first.is_good())
        await more(second)
        assert second.is_good()
    assert sum(first.lost.values()) == 1
    assert not second.lost
    modems[1].hang_up()


async def test_links_that_open_one_port_at_the_same_time_do_not_get_into_each_others_way(port: int) -> None:
    watches = [dialled(port, f"SN-{mark}".encode(), mark=mark) for mark in range(1, 9)]
    async with watching(*watches):
        await listening(port)
        await asyncio.sleep(0.02)
    assert [text for watch in watches for text in watch.lost] == []


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
@pytest.mark.parametrize("is_in_bytes", [False, True])
async def test_a_registration_may_begin_as_another_one(
    port: int, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int], is_in_bytes: bool
) -> None:
    monkeypatch.setattr(dial_in, "_MAY_GROW_S", 0.2)
    names = {1: b"M1", 2: b"M12"}
    watches = {mark: dialled(port, names[mark], mark=mark) for mark in order}
    modems = {mark: Modem(port, mark) for mark in order}
    async with watching(*watches.values()):
        await listening(port)
        for mark in order:
            name = names[mark]
            await modems[mark].dial(*([bytes((byte,)) for byte in name] if is_in_bytes else [name]))
        for watch in watches.values():
            await watch.all_good(2.0)
            await more(watch)
    assert not any(watch.lost for watch in watches.values())
    for item in modems.values():
        item.hang_up()


async def test_a_device_that_dials_in_before_anybody_waits_for_it_is_kept(port: int, modem: Modem) -> None:
    first, second = dialled(port, b"SN-0001", mark=1), dialled(port, b"SN-0002", mark=2)
    other = Modem(port, 2)
    async with watching(second):
        await listening(port)
        # The port is open for another device; this one's link is down for the moment.
        dial_in.dial_in_port(first.link.place)._known.add(b"SN-0001")
        await modem.dial(b"SN-0001")
        await asyncio.sleep(0.06)
        assert not modem.hung_up.is_set()
        async with watching(first):
            await first.all_good(2.0)
        await other.dial(b"SN-0002")
        await second.all_good(2.0)
    other.hang_up()


# --- coming and going -------------------------------------------------------------------------------


async def test_a_device_that_hangs_up_is_bad_at_once_and_good_when_it_dials_in_again(
    port: int, modem: Modem
) -> None:
    watch = dialled(port)
    async with watching(watch):
        await listening(port)
        for _ in range(3):
            await modem.dial(b"SN-0001")
            await watch.all_good(2.0)
            modem.hang_up()
            await eventually(lambda: not watch.is_good(), 0.3, "bad at once")
            assert set(watch.bad.values()) == {"not connected"}
    assert watch.lost.total() == 3


async def test_the_newest_connection_of_a_device_wins_over_one_that_is_dead_without_a_sign(
    port: int, modem: Modem
) -> None:
    watch = dialled(port, timeout_s=30.0)
    async with watching(watch):
        await listening(port)
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)
        modem.is_silent = True  # as a modem that has lost its cell
        again = Modem(port)
        await again.dial(b"SN-0001")
        await eventually(lambda: again.asked, 1.0, "the new connection is used, long before any timeout")
        await more(watch)
        async with asyncio.timeout(1):
            await modem.hung_up.wait()
    assert watch.lost == {"the device has dialled in anew": 1}
    again.hang_up()


async def test_of_several_connections_that_wait_the_newest_is_taken(port: int) -> None:
    place = DialInPlace("127.0.0.1", port, b"SN-0001")
    await dial_in.dial_in_port(place).listen(b"SN-0001")
    modems = [Modem(port) for _ in range(3)]
    for item in modems:
        await item.dial(b"SN-0001")
        await asyncio.sleep(0.06)
    watch = dialled(port)
    async with watching(watch):
        await watch.all_good(2.0)
    assert [item.asked > 0 for item in modems] == [False, False, True]
    assert [item.hung_up.is_set() for item in modems[:2]] == [True, True]
    modems[2].hang_up()


async def test_a_device_that_hangs_up_right_behind_its_name_leaves_the_link_waiting(
    port: int, modem: Modem
) -> None:
    watch = dialled(port)
    async with watching(watch):
        await listening(port)
        for _ in range(3):
            await modem.dial(b"SN-0001", pause_s=0)
            modem.hang_up()
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)


async def test_a_device_that_does_not_dial_in_is_said_to_be_away(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_DIALS_IN_S", 0.05)
    link = dialled(port).link
    with pytest.raises(LinkDownError, match=r"^the device has not dialled in$"):
        await link.connect()
    await link.close()


async def test_a_port_that_is_taken_says_so(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        link = dialled(port).link
        with pytest.raises(LinkDownError, match=r"^cannot listen: address already in use$"):
            await link.connect()
        await link.close()


async def test_the_port_is_closed_a_while_after_the_last_link_and_waiting_devices_with_it(
    port: int, modem: Modem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial_in, "_KEPT_OPEN_S", 0.1)
    watch = dialled(port)
    async with watching(watch):
        await listening(port)
    await modem.dial()
    async with asyncio.timeout(1):
        await modem.hung_up.wait()
    with pytest.raises(ConnectionRefusedError):
        await modem.dial()


# --- heartbeats -------------------------------------------------------------------------------------

HEARTBEATS = [b"ping", b"\xfe\xfe", b"\x00\xf0", b"Z"]


@pytest.mark.parametrize("heartbeat", HEARTBEATS, ids=bytes.hex)
@pytest.mark.parametrize("framing", [Framing.MBAP, Framing.RTU])
@pytest.mark.parametrize("where", ["before", "behind", "both", "between"])
async def test_heartbeats_before_behind_and_between_frames_are_passed_over(
    port: int, modem: Modem, framing: Framing, heartbeat: bytes, where: str
) -> None:
    modem.framing = framing
    watch = dialled(port, framing=framing, heartbeat=heartbeat)
    async with watching(watch):
        await listening(port)
        await modem.dial(b"SN-0001" + heartbeat, heartbeat)
        await watch.all_good(2.0)
        if where in ("before", "both"):
            modem.before = heartbeat
        if where in ("behind", "both"):
            modem.behind = heartbeat * 2
        for _ in range(8):
            if where == "between":
                modem.say(heartbeat)
            await more(watch, 1)
        assert not modem.hung_up.is_set()
    assert not watch.lost
    assert not watch.reasons


@pytest.mark.parametrize("framing", [Framing.MBAP, Framing.RTU])
async def test_a_heartbeat_and_an_answer_in_bytes(port: int, modem: Modem, framing: Framing) -> None:
    modem.framing = framing
    watch = dialled(port, framing=framing, heartbeat=b"ping")
    async with watching(watch):
        await listening(port)
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)
        modem.before = modem.behind = b"ping"
        modem.is_slow = True
        await more(watch, 5)
    assert not watch.lost
    assert not watch.reasons


@pytest.mark.parametrize("framing", [Framing.MBAP, Framing.RTU])
@pytest.mark.parametrize("is_slow", [False, True])
async def test_bytes_of_an_answer_that_look_like_the_heartbeat_are_the_answers_own(
    port: int, modem: Modem, framing: Framing, is_slow: bool
) -> None:
    """Register 9 of device 1 holds 0x0109, and the header of each answer has 00 00 in it."""
    modem.framing = framing
    modem.is_slow = is_slow
    for heartbeat in (b"\x01\x09", b"\x01", b"\x00\x00", b"\x0a\x01\x0b"):
        watch = dialled(port, framing=framing, heartbeat=heartbeat)
        async with watching(watch):
            await listening(port)
            await modem.dial(b"SN-0001")
            await watch.all_good(2.0)
            await more(watch, 3)
        assert not watch.lost, heartbeat
        assert not watch.reasons, heartbeat
        modem.hang_up()


@pytest.mark.parametrize("framing", [Framing.MBAP, Framing.RTU])
async def test_a_heartbeat_does_not_make_a_slow_answer_a_bad_one(
    port: int, modem: Modem, framing: Framing
) -> None:
    modem.framing = framing
    watch = dialled(port, framing=framing, heartbeat=b"ping", timeout_s=2.0)
    async with watching(watch):
        await listening(port)
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)
        modem.delay_s = 0.2
        for _ in range(3):
            asked = modem.asked
            await eventually(lambda asked=asked: modem.asked > asked)
            modem.say(b"ping")
            await more(watch, 1)
    assert not watch.reasons


async def test_noise_from_a_device_costs_its_connection_and_is_no_value(port: int, modem: Modem) -> None:
    watch = dialled(port)
    async with watching(watch):
        await listening(port)
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)
        modem.before = b"\xde\xad\xbe\xef\xde\xad"
        async with asyncio.timeout(2):
            await modem.hung_up.wait()
        modem.before = b""
        await modem.dial(b"SN-0001")
        await watch.all_good(3.0)


async def test_late_answers_of_a_device_with_rtu_frames_are_never_taken_for_the_next(
    port: int, modem: Modem
) -> None:
    """What is late is right in form, and here wrong in value, so that it is seen if it is taken."""
    modem.framing = Framing.RTU
    watch = dialled(port, framing=Framing.RTU, timeout_s=0.08)
    async with watching(watch):
        await listening(port)
        await modem.dial(b"SN-0001")
        await watch.all_good(2.0)
        loop = asyncio.get_running_loop()
        for late_s in (0.085, 0.1, 0.12, 0.15):
            asked = modem.asked
            modem.is_silent = True
            await eventually(lambda asked=asked: modem.asked > asked)
            wrong = rtu(1, bytes((3, 20)) + b"\xde\xad" * 10)

            def answer_late(wrong: bytes = wrong) -> None:
                modem.say(wrong)  # before anything else: devices answer in order
                modem.is_silent = False

            loop.call_later(late_s, answer_late)
            await more(watch, 4)
    assert watch.reasons["timeout"] > 0


# --- a real server behind the modem -----------------------------------------------------------------


@pytest.mark.system
async def test_a_libmodbus_server_behind_a_modem(port: int) -> None:
    """The modem says its name and then only carries bytes."""
    watch = dialled(port, mark=0)
    watch = Watch(watch.link)
    async with slave("answer 1", "values mixed") as devices, watching(watch):
        await listening(port)
        for _ in range(2):
            up_reader, up = await asyncio.open_connection("127.0.0.1", port)
            down_reader, down = await asyncio.open_connection("127.0.0.1", devices.port)

            async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                while data := await reader.read(4096):
                    writer.write(data)

            up.write(b"SN-0001\r\n")
            pumps = [
                asyncio.create_task(carry(up_reader, down)),
                asyncio.create_task(carry(down_reader, up)),
            ]
            try:
                await watch.all_good(3.0)
                await more(watch, 20)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                up.transport.abort()
                down.transport.abort()
            await eventually(lambda: not watch.is_good(), 0.5)
    assert watch.lost.total() == 2
