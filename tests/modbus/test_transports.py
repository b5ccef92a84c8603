"""Each way to a device, with servers that we did not write where there are some: libmodbus, pymodbus, socat."""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import gc
import ipaddress
import logging
import os
import socket
import struct
import subprocess
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise, product
from pathlib import Path

import pytest
from conftest import eventually, free_port, program
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fault_server import Connection, FaultServer, Good, fault_server, frame
from mutations import ascii_frame, rtu
from pymodbus.framer import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusUdpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from rtu_peer import Pty, cable, mixed, ptys, slave
from watching import Truth, Watch, own_address, points_of, watching

from fieldbus.errors import LinkDownError
from fieldbus.link import WriteOutcome
from fieldbus.modbus import client
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import Framing, Place, SerialPlace, TcpPlace, TlsFiles, UdpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.quirks import LineQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.units import Unit

HOST = "127.0.0.1"
CLOSED = "connection closed by the peer"


def unit_of(number: int, *, scan_s: float = 0.03, timeout_s: float = 0.3, count: int = 10) -> Unit:
    """Return a unit with one block of holding registers."""
    device = f"unit{number}"
    return Unit(device, number, points_of(device, range(7, 7 + count)), scan_s, timeout_s)


def watched(
    place: Place,
    *units: Unit,
    truth: Truth = own_address,
    connections: int = 1,
    quirks: LineQuirks = LineQuirks(),  # noqa: B008 - frozen
    connect_timeout_s: float = 1.0,
    pause_s: float = 0.02,
) -> Watch:
    """Return a link to units (unit 1 if none is named), watched."""
    link = ModbusClientLink(
        "net", place, units or [unit_of(1)], connections=connections, quirks=quirks,
        connect_timeout_s=connect_timeout_s,
    )  # fmt: skip
    return Watch(link, truth, pause_s=pause_s)


async def more(watch: Watch, count: int = 5, timeout_s: float = 5.0) -> None:
    """Wait for some more batches of good values."""
    before = watch.good_batches
    await eventually(lambda: watch.good_batches >= before + count, timeout_s, "good values")


async def why_not(place: Place, timeout_s: float = 1.0) -> str:
    """Return why a link cannot be connected, or is lost as soon as it is."""
    link = ModbusClientLink("net", place, [unit_of(1)], connect_timeout_s=timeout_s)
    try:
        async with asyncio.timeout(5):
            await link.connect()
            await link.run(lambda _: None, lambda _: None)
    except LinkDownError as error:
        return str(error)
    finally:
        await link.close()
        await asyncio.sleep(0.01)
    raise AssertionError("it ended without a reason")


@pytest.fixture(autouse=True, scope="module")
def _garbage_is_cheap() -> Iterator[None]:
    """Leave what was there before out of each test's look for exceptions that nobody fetched."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a cable can cause is no traceback, and no exception that nobody fetched."""
    caplog.set_level(logging.INFO)
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as running:
        yield running


# --- a backup host ----------------------------------------------------------------------------------


def with_backup(first: int, backup: int) -> TcpPlace:
    return TcpPlace(HOST, first, backup=(HOST, backup))


@pytest.mark.system
async def test_the_backup_serves_while_the_first_host_is_away_and_the_first_is_asked_first_again() -> None:
    port = free_port()
    async with slave("answer 1", "values own") as backup:
        watch = watched(with_backup(port, backup.port))
        async with watching(watch):
            await watch.all_good()
            async with slave("answer 1", "values own", port=port) as first:
                await more(watch)
                assert await first.count() == 0, "a connection that works is kept"
                await backup.stop()
                await more(watch)
                assert await first.count() > 0
                assert watch.lost.total() == 0, "one of the two took the next request"


async def test_the_first_host_is_asked_first_at_each_opening(server: FaultServer) -> None:
    async with fault_server() as backup:
        watch = watched(with_backup(server.port, backup.port))
        async with watching(watch):
            await watch.all_good()
            for _ in range(2):
                await server.stop()
                await more(watch)
                assert backup.connections[-1].is_open
                await server.start()
                backup.connections[-1].reset()
                await eventually(lambda: server.connections[-1].is_open)
                await watch.all_good()
        assert len(backup.connections) == 2
        assert len(server.connections) == 3


async def test_when_both_hosts_are_away_the_reason_names_both() -> None:
    first, backup = free_port(), free_port()
    reason = await why_not(with_backup(first, backup))
    assert reason == f"connection refused; the backup {HOST}:{backup}: connection refused"


async def test_a_first_host_that_does_not_answer_costs_the_connect_timeout_and_no_more(
    server: FaultServer,
) -> None:
    with deaf_port() as deaf:
        link = ModbusClientLink("net", with_backup(deaf, server.port), [unit_of(1)], connect_timeout_s=0.2)
        began_s = time.monotonic()
        await link.connect()
        assert 0.15 < time.monotonic() - began_s < 0.5
        await link.close()
        with deaf_port() as other:
            reason = await why_not(with_backup(deaf, other), 0.1)
        assert reason == (
            f"no answer to the connection request; the backup {HOST}:{other}: "
            "no answer to the connection request"
        )


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose connection requests nobody answers: the queue of those that wait is full."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((HOST, port))
            waiting.append(sock)
        yield port
        for sock in waiting:
            sock.close()


# --- several connections ----------------------------------------------------------------------------


def eight_units() -> list[Unit]:
    return [unit_of(number, scan_s=0.02, timeout_s=0.5) for number in range(1, 9)]


async def test_requests_on_four_connections_overlap_and_never_on_one(server: FaultServer) -> None:
    under_way: set[int] = set()
    most = 0

    def later(connection: Connection, good: Good) -> None:
        nonlocal most
        assert connection.number not in under_way, "two requests at once on a connection"
        under_way.add(connection.number)
        most = max(most, len(under_way))
        asyncio.get_running_loop().call_later(0.02, answer, connection, good)

    def answer(connection: Connection, good: Good) -> None:
        under_way.discard(connection.number)
        connection.send(good.frame)

    for number in range(1, 9):
        server.rules[number, 3] = later
    watch = watched(TcpPlace(HOST, server.port), *eight_units(), connections=4)
    async with watching(watch):
        await watch.all_good()
        await more(watch, 40)
    assert most == 4
    assert len(server.connections) == 4
    assert not watch.reasons


async def test_connections_of_four_that_are_lost_are_opened_again_when_needed(server: FaultServer) -> None:
    """One that ended while nothing was asked on it waits for a request that the others cannot take."""
    watch = watched(TcpPlace(HOST, server.port), *eight_units(), connections=4)
    async with watching(watch):
        await watch.all_good()
        for number in (1, 3, 0):
            server.connections[number].reset()
            await more(watch, 20)
        count = len(server.connections)
        for connection in server.connections:
            if connection.is_open:
                connection.reset()
        await eventually(lambda: len(server.connections) > count, 1.0)
        await more(watch, 20)
        await watch.all_good()
    assert not watch.lost
    assert set(watch.reasons) <= {"bad response"}
    assert watch.reasons.total() <= 7 * 10, "requests under way on lost connections, no others"


async def test_a_server_that_refuses_a_third_connection_is_polled_on_two(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It stops listening, as devices do whose table of connections is full."""

    def greet(connection: Connection) -> None:
        if connection.number == 1 and server._server is not None:
            server._server.close()
            server._server = None

    server.greet = greet
    watch = watched(TcpPlace(HOST, server.port), *eight_units(), connections=4)
    async with watching(watch):
        await watch.all_good()
        await more(watch, 30)
    assert not watch.lost
    assert len(server.connections) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "net: only 2 connections (connection refused)"
    ]


async def test_a_server_that_hangs_up_all_but_two_connections_is_not_besieged(server: FaultServer) -> None:
    """Devices whose table is full often accept and hang up."""

    def greet(connection: Connection) -> None:
        if sum(item.is_open for item in server.connections) > 2:
            connection.finish()

    server.greet = greet
    watch = watched(TcpPlace(HOST, server.port), *eight_units(), connections=4)
    async with watching(watch):
        await asyncio.sleep(0.5)
        assert len(server.connections) < 30
        await watch.all_good(2.0)
        await more(watch, 20)
        assert not watch.lost


async def test_connections_that_live_are_not_given_up_since_another_cannot_be_opened(
    server: FaultServer,
) -> None:
    watch = watched(TcpPlace(HOST, server.port), *eight_units(), connections=4)
    async with watching(watch):
        await watch.all_good()
        assert server._server is not None
        server._server.close()  # it listens no more; its connections stay
        server._server = None
        server.connections[2].reset()
        await asyncio.sleep(0.1)
        assert not watch.lost
        await more(watch, 20)


# --- UDP --------------------------------------------------------------------------------------------


def pymodbus_devices(*numbers: int) -> list[SimDevice]:
    """Return devices of pymodbus whose registers hold their own address."""
    words = list(range(200))
    return [
        SimDevice(id=number, simdata=[SimData(0, values=words, datatype=DataType.REGISTERS)])
        for number in numbers
    ]


@asynccontextmanager
async def pymodbus_udp() -> AsyncIterator[int]:
    served = ModbusUdpServer(pymodbus_devices(1, 2), address=(HOST, 0))
    await served.serve_forever(background=True)
    try:
        yield served.transport.get_extra_info("sockname")[1]
    finally:
        await served.shutdown()
        await asyncio.sleep(0.01)


async def test_pymodbus_on_udp_is_polled() -> None:
    async with pymodbus_udp() as port:
        watch = watched(UdpPlace(HOST, port), unit_of(1), unit_of(2))
        async with watching(watch):
            await watch.all_good()
            await more(watch, 20)
        assert not watch.lost
        assert not watch.reasons


class UdpPeer(asyncio.DatagramProtocol):
    """A server on UDP whose datagrams a test can spoil."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.faults: list[Callable[[bytes], Sequence[bytes]]] = []
        self.client: tuple[str, int] = ("", 0)
        self.port = 0
        self._truth = FaultServer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data)
        self.client = addr
        good = self.answer(data)
        for answer in self.faults.pop(0)(good) if self.faults else [good]:
            self.send(answer)

    def answer(self, request: bytes) -> bytes:
        transaction_id, _, _, unit_id = struct.unpack_from(">HHHB", request)
        return frame(transaction_id, unit_id, self._truth.answer(unit_id, request[7:]))

    def send(self, data: bytes) -> None:
        self._transport.sendto(data, self.client)

    def close(self) -> None:
        self._transport.close()


@pytest.fixture
async def udp() -> AsyncIterator[UdpPeer]:
    loop = asyncio.get_running_loop()
    transport, peer = await loop.create_datagram_endpoint(UdpPeer, local_addr=(HOST, 0))
    yield peer
    transport.close()
    await asyncio.sleep(0)


def wrong(good: bytes) -> bytes:
    """Return an answer that is right in form and wrong in value."""
    return good[:9] + b"\xde\xad" * ((len(good) - 9) // 2)


def of_transaction(good: bytes, change: int) -> bytes:
    return struct.pack(">H", (struct.unpack_from(">H", good)[0] + change) & 0xFFFF) + good[2:]


SPOILT_DATAGRAMS: dict[str, tuple[Callable[[bytes], Sequence[bytes]], bool]] = {
    "lost": (lambda good: [], False),
    "twice": (lambda good: [good, good], True),
    "twice and the second is another": (lambda good: [good, wrong(good)], True),
    "behind an old one": (lambda good: [of_transaction(wrong(good), -1), good], True),
    "behind one of the future": (lambda good: [of_transaction(wrong(good), 1), good], True),
    "behind one of another unit": (lambda good: [wrong(good)[:6] + b"\x02" + wrong(good)[7:], good], True),
    "behind an empty one": (lambda good: [b"", good], True),
    "behind noise": (lambda good: [b"\xde\xad" * 300, good], True),
    "behind its own half": (lambda good: [good[:12], good], True),
    "in two halves": (lambda good: [good[:12], good[12:]], False),
    "too long": (lambda good: [good + b"\xde\xad" ], True),
    "two in one": (lambda good: [of_transaction(wrong(good), -1) + good], True),
    "with another protocol": (lambda good: [good[:2] + b"\0\1" + wrong(good)[4:]], False),
    "with a length that lies": (lambda good: [good[:4] + b"\0\xff" + wrong(good)[6:]], False),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT_DATAGRAMS)
async def test_a_datagram_is_no_value_unless_it_is_the_answer(udp: UdpPeer, what: str) -> None:
    fault, is_good = SPOILT_DATAGRAMS[what]
    watch = watched(UdpPlace(HOST, udp.port), unit_of(1, timeout_s=0.1))
    async with watching(watch):
        await watch.all_good()
        for _ in range(3):
            udp.faults.append(fault)
            await eventually(lambda: not udp.faults)
            await more(watch, 3)
        assert watch.is_good()
    assert not watch.lost
    assert set(watch.reasons) == (set() if is_good else {"timeout"})


async def test_a_late_datagram_is_never_taken_for_the_next(udp: UdpPeer) -> None:
    watch = watched(UdpPlace(HOST, udp.port), unit_of(1, timeout_s=0.05))
    loop = asyncio.get_running_loop()
    async with watching(watch):
        await watch.all_good()
        for late_s in (0.055, 0.07, 0.09, 0.12):

            def late(good: bytes, late_s: float = late_s) -> Sequence[bytes]:
                loop.call_later(late_s, udp.send, wrong(good))
                return []

            udp.faults.append(late)
            await eventually(lambda: not udp.faults)
            await asyncio.sleep(0.15)
            await more(watch, 3)
    assert set(watch.reasons) == {"timeout"}
    assert not watch.lost


async def test_datagrams_from_elsewhere_are_not_heard(udp: UdpPeer) -> None:
    """Somebody else answers, in time and with the right transaction."""
    watch = watched(UdpPlace(HOST, udp.port), unit_of(1, timeout_s=0.2))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:

        def foreign(good: bytes) -> Sequence[bytes]:
            stranger.sendto(wrong(good), udp.client)
            return [good]

        def only_foreign(good: bytes) -> Sequence[bytes]:
            stranger.sendto(good, udp.client)
            return []

        async with watching(watch):
            await watch.all_good()
            udp.faults += [foreign] * 5
            await eventually(lambda: not udp.faults)
            await more(watch)
            assert not watch.reasons
            udp.faults.append(only_foreign)
            await eventually(lambda: watch.reasons["timeout"])
            await more(watch)


async def test_a_udp_port_at_which_nobody_listens_says_so_at_once() -> None:
    began_s = time.monotonic()
    assert await why_not(UdpPlace(HOST, free_port())) == "connection refused"
    assert time.monotonic() - began_s < 0.3


async def test_a_udp_server_that_goes_and_comes_back_is_found_again() -> None:
    loop = asyncio.get_running_loop()
    first, peer = await loop.create_datagram_endpoint(UdpPeer, local_addr=(HOST, 0))
    watch = watched(UdpPlace(HOST, peer.port))
    async with watching(watch):
        await watch.all_good()
        first.close()
        await eventually(lambda: not watch.is_good(), 0.5)
        # A request that was there already is lost in silence; the next one is refused.
        assert set(watch.bad.values()) <= {"not connected", "timeout"}
        second, _ = await loop.create_datagram_endpoint(UdpPeer, local_addr=(HOST, peer.port))
        await watch.all_good()
    second.close()
    assert set(watch.lost) == {"connection refused"}


async def test_a_host_whose_name_nobody_knows_says_so() -> None:
    for place in (UdpPlace("no-such-host.invalid", 502), TcpPlace("no-such-host.invalid", 502)):
        reason = await why_not(place)
        assert "Errno" not in reason
        assert "name" in reason.lower() or "address" in reason.lower(), reason


# --- TLS --------------------------------------------------------------------------------------------

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
PASSWORD = "correct horse"


class Authority:
    """Signs certificates, which it keeps in a folder with their keys."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.ca = folder / f"{name}.pem"
        made = self._build(self._name, self._key, age_days=0, is_ca=True)
        self.ca.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str, *, age_days: int = 0, password: str | None = None) -> tuple[Path, Path]:
        """Return the files of a certificate for plc.test and this machine, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = self._build(subject, key, age_days=age_days, is_ca=False)
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        seal: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            seal = serialization.BestAvailableEncryption(password.encode())
        pkcs8 = serialization.PrivateFormat.PKCS8
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, seal))
        return certificate, private

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, age_days: int, is_ca: bool
    ) -> x509.Certificate:
        names = [x509.DNSName("plc.test"), x509.IPAddress(ipaddress.ip_address(HOST))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - (age_days + 2) * DAY)
            .not_valid_after(NOW - (age_days - 1) * DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )


class TlsPlant:
    """socat with TLS in front of a libmodbus server, and who may come in."""

    def __init__(self, folder: Path, plain_port: int) -> None:
        self._socat = program("socat", "socat")
        self.folder = folder
        self.plain_port = plain_port
        self.authority = Authority(folder, "authority")
        self.stranger = Authority(folder, "stranger")
        self.client = self.authority.sign("client")

    @asynccontextmanager
    async def socat(self, certificate: tuple[Path, Path], *options: str) -> AsyncIterator[int]:
        """Run socat with a certificate for as long as the block lasts."""
        port = free_port()
        listen = [
            f"OPENSSL-LISTEN:{port},bind={HOST},reuseaddr,fork", f"cert={certificate[0]}",
            f"key={certificate[1]}", f"cafile={self.authority.ca}", "verify=1", *options,
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            self._socat, ",".join(listen), f"TCP:{HOST}:{self.plain_port}", stderr=subprocess.DEVNULL
        )
        try:
            await eventually(lambda: is_listening(port))
            yield port
        finally:
            process.terminate()
            await process.wait()

    def files(self, **change: object) -> TlsFiles:
        found: dict[str, object] = {
            "ca": self.authority.ca, "certificate": self.client[0], "key": self.client[1]
        }  # fmt: skip
        return TlsFiles(**{**found, **change})  # type: ignore[arg-type]


def is_listening(port: int) -> bool:
    """Whether a port of this machine is open, without connecting to it."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text()


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[TlsPlant]:
    async with slave("answer 1", "values own") as devices:
        yield TlsPlant(tmp_path, devices.port)


@pytest.mark.system
@pytest.mark.parametrize("newest", ["TLS1.2", "TLS1.3"])
async def test_libmodbus_behind_socat_with_tls_is_polled_with_a_client_certificate(
    plant: TlsPlant, newest: str
) -> None:
    protected = plant.authority.sign("protected", password=PASSWORD)
    ways = [
        plant.files(),
        plant.files(server_name="plc.test"),
        plant.files(certificate=protected[0], key=protected[1], key_password=PASSWORD),
    ]
    own = plant.authority.sign("server")
    async with plant.socat(own, f"openssl-max-proto-version={newest}") as port:
        for files in ways:
            watch = watched(TcpPlace(HOST, port, tls=files))
            async with watching(watch):
                await watch.all_good()
                await more(watch)
            assert not watch.lost


TLS_REFUSALS: dict[str, tuple[Callable[[TlsPlant], TlsFiles], str]] = {
    "an authority that did not sign for the server": (
        lambda plant: plant.files(ca=plant.stranger.ca),
        "TLS: the server's certificate is not accepted: ",
    ),
    "another name": (
        lambda plant: plant.files(server_name="other.test"),
        "TLS: the server's certificate is not accepted: Hostname mismatch, ",
    ),
    "no certificate of ours": (
        lambda plant: plant.files(certificate=None, key=None),
        "TLS: the server wants a certificate of ours",
    ),
    "a certificate of ours that the server does not trust": (
        lambda plant: _files(plant, plant.stranger.sign("nobody")),
        "TLS: the server does not know who signed our certificate",
    ),
    "a certificate of ours that has expired": (
        lambda plant: _files(plant, plant.authority.sign("old", age_days=30)),
        "TLS: the server says that our certificate has expired",
    ),
    "an authority's file that there is not": (
        lambda plant: plant.files(ca=plant.folder / "none.pem"),
        "TLS: none.pem cannot be used (no such file or directory)",
    ),
    "an authority's file that is none": (
        lambda plant: plant.files(ca=_rubbish(plant)),
        "TLS: rubbish.pem cannot be used (no certificate or crl found)",
    ),
    "a certificate that is none": (
        lambda plant: plant.files(certificate=_rubbish(plant)),
        "TLS: rubbish.pem and its key cannot be used (",
    ),
    "a key of another certificate": (
        lambda plant: plant.files(key=plant.authority.sign("other")[1]),
        "TLS: client.pem and its key cannot be used (key values mismatch)",
    ),
    "a key whose password is not given": (
        lambda plant: _files(plant, plant.authority.sign("sealed", password=PASSWORD)),
        "TLS: sealed.pem and its key cannot be used (",
    ),
    "a key whose password is another": (
        lambda plant: _files(plant, plant.authority.sign("sealed", password=PASSWORD), "wrong secret"),
        "TLS: sealed.pem and its key cannot be used (",
    ),
}


def _files(plant: TlsPlant, own: tuple[Path, Path], password: str | None = None) -> TlsFiles:
    return plant.files(certificate=own[0], key=own[1], key_password=password)


def _rubbish(plant: TlsPlant) -> Path:
    path = plant.folder / "rubbish.pem"
    path.write_text("this is no certificate\n")
    return path


@pytest.mark.system
@pytest.mark.parametrize("newest", ["TLS1.2", "TLS1.3"])
@pytest.mark.parametrize("what", TLS_REFUSALS)
async def test_a_tls_connection_that_is_refused_says_why_in_words(
    plant: TlsPlant, what: str, newest: str
) -> None:
    make, expected = TLS_REFUSALS[what]
    async with plant.socat(plant.authority.sign("server"), f"openssl-max-proto-version={newest}") as port:
        reason = await why_not(TcpPlace(HOST, port, tls=make(plant)))
    if "wants a certificate" in expected and newest == "TLS1.2":
        expected = "TLS: the server broke off (it may want a certificate of ours)"
    if "of ours" in what and newest == "TLS1.3" and reason in ("connection reset by peer", CLOSED):
        return  # its words come behind our side of the handshake, and a reset may overtake them
    is_begin = expected.endswith((" ", "("))
    assert (reason[: len(expected)] if is_begin else reason) == expected
    for leak in ("_ssl.c", "[SSL", "Errno", PASSWORD, "wrong secret", "BEGIN"):
        assert leak not in reason


@pytest.mark.system
async def test_a_server_whose_certificate_has_expired_is_not_believed(plant: TlsPlant) -> None:
    async with plant.socat(plant.authority.sign("server", age_days=30)) as port:
        reason = await why_not(TcpPlace(HOST, port, tls=plant.files()))
    assert reason == "TLS: the server's certificate is not accepted: certificate has expired"


@pytest.mark.system
async def test_a_server_without_tls_is_said_to_have_none(plant: TlsPlant, server: FaultServer) -> None:
    silent, none = "no answer to the connection request or to TLS", "TLS: the server does not speak TLS"
    for port, answers in ((plant.plain_port, None), (server.port, None), (server.port, b"HTTP/1.0 400\r\n")):
        if answers is not None:
            server.greet = lambda connection, answers=answers: connection.send(answers)
        reason = await why_not(TcpPlace(HOST, port, tls=plant.files()), 0.3)
        if answers is None:
            assert reason in (silent, none, CLOSED, "connection reset by peer")
        else:
            assert reason == none
    server.greet = lambda connection: connection.finish()
    reason = await why_not(TcpPlace(HOST, server.port, tls=plant.files()))
    assert reason in (CLOSED, "connection reset by peer")


@pytest.mark.system
async def test_a_tls_server_that_goes_and_comes_back_is_found_again(plant: TlsPlant) -> None:
    """Its side of the connection is cut in the middle of it all."""
    own = plant.authority.sign("server")
    async with slave("answer 1", "values own") as devices:
        plant.plain_port = devices.port
        async with plant.socat(own) as port:
            watch = watched(TcpPlace(HOST, port, tls=plant.files()))
            async with watching(watch):
                await watch.all_good()
                await devices.stop()
                await eventually(lambda: not watch.is_good(), 1.0)
                async with slave("answer 1", "values own", port=devices.port):
                    await watch.all_good()


# --- RTU frames on TCP ------------------------------------------------------------------------------


class LinePeer:
    """A device on a line, or on a stream with the same frames, whose answers a test can spoil."""

    def __init__(self, framing: Framing = Framing.RTU) -> None:
        self.truth = FaultServer()
        self.units = {1, 2}
        self.asked: list[tuple[float, int, bytes]] = []
        """When, unit id and PDU."""
        self.answered_at_s: list[float] = []
        self.faults: list[Callable[[bytes], object]] = []
        """What is done with the frame of a good answer, one for each request."""
        self.has_echo = False
        self._framing = framing
        self._buffer = b""
        self._busy_until_s: dict[int, float] = {}

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def later(self, data: bytes, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.send, data)

    def late(self, unit_id: int, data: bytes, seconds: float) -> None:
        """Answer late; a device answers in order, so what it is asked meanwhile waits."""
        now_s = time.monotonic()
        due_s = self._busy_until_s[unit_id] = max(now_s, self._busy_until_s.get(unit_id, 0.0)) + seconds
        self.later(data, due_s - now_s)

    def take(self, data: bytes) -> None:
        self._buffer += data
        while (size := self._size()) and len(self._buffer) >= size:
            request, self._buffer = self._buffer[:size], self._buffer[size:]
            if self.has_echo:
                self.send(request)
            body = request[:-2]
            if self._framing is Framing.ASCII:
                body = bytes.fromhex(request[1:-4].decode())
            self.asked.append((time.monotonic(), body[0], body[1:]))
            if body[0] in self.units:
                self._reply(body[0], body[1:])

    def _size(self) -> int:
        if self._framing is Framing.ASCII:
            return self._buffer.find(b"\r\n") + 2 if b"\r\n" in self._buffer else 0
        if len(self._buffer) < 8:
            return 0
        return 9 + self._buffer[6] if self._buffer[1] in (15, 16) else 8

    def _reply(self, unit_id: int, pdu: bytes) -> None:
        make = ascii_frame if self._framing is Framing.ASCII else rtu
        good = make(unit_id, self.truth.answer(unit_id, pdu))
        if self.faults:
            self.faults.pop(0)(good)
        elif self._busy_until_s.get(unit_id, 0.0) > time.monotonic():
            self.late(unit_id, good, 0.001)
        else:
            self.send(good)
            self.answered_at_s.append(time.monotonic())


class StreamPeer(LinePeer, asyncio.Protocol):
    """The same at the end of a TCP connection."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.connections += 1

    def data_received(self, data: bytes) -> None:
        self.take(data)

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


class WirePeer(LinePeer):
    """The same at the end of a serial line."""

    def __init__(self, wire: Pty, framing: Framing = Framing.RTU) -> None:
        super().__init__(framing)
        self.wire = wire
        asyncio.get_running_loop().add_reader(wire.master, self._heard)

    def _heard(self) -> None:
        try:
            self.take(os.read(self.wire.master, 4096))
        except BlockingIOError:
            pass

    def send(self, data: bytes) -> None:
        self.wire.write(data)


@pytest.fixture
async def stream() -> AsyncIterator[tuple[StreamPeer, Place]]:
    """A device with RTU frames on TCP, and where it is."""
    peer = StreamPeer()
    listener = await asyncio.get_running_loop().create_server(lambda: peer, HOST, 0)
    yield peer, TcpPlace(HOST, listener.sockets[0].getsockname()[1], Framing.RTU)
    listener.close()
    await asyncio.sleep(0.01)


@pytest.fixture
async def wire() -> AsyncIterator[tuple[WirePeer, Place]]:
    """A device on a serial line, and its port."""
    async with ptys(1) as (end,):
        yield WirePeer(end), SerialPlace(end.name, baudrate=115200)


Line_ = tuple[LinePeer, Place]


@pytest.fixture(params=["stream", "wire"])
def line(request: pytest.FixtureRequest, stream: Line_, wire: Line_) -> Line_:
    """Both, one after the other: what follows is true of either."""
    return stream if request.param == "stream" else wire


@pytest.fixture
async def ascii_line() -> AsyncIterator[Line_]:
    async with ptys(1) as (end,):
        place = SerialPlace(end.name, baudrate=115200, framing=Framing.ASCII)
        yield WirePeer(end, Framing.ASCII), place


async def test_pymodbus_with_rtu_frames_on_tcp_is_polled() -> None:
    served = ModbusTcpServer(pymodbus_devices(1, 2), address=(HOST, 0), framer=FramerType.RTU)
    await served.serve_forever(background=True)
    port = served.transport.sockets[0].getsockname()[1]
    watch = watched(TcpPlace(HOST, port, Framing.RTU), unit_of(1), unit_of(2))
    async with watching(watch):
        await watch.all_good()
        await more(watch, 20)
    assert not watch.lost
    assert not watch.reasons
    await served.shutdown()
    await asyncio.sleep(0.01)


@pytest.mark.system
async def test_a_libmodbus_line_behind_a_serial_device_server_is_polled() -> None:
    """socat is the device server: bytes of a TCP connection to a serial port and back."""
    socat = program("socat", "socat")
    port = free_port()
    async with cable() as (near, far), slave("answer 1-3", "values mixed", tty_name=far):
        process = await asyncio.create_subprocess_exec(
            socat, f"TCP-LISTEN:{port},bind={HOST},reuseaddr,fork", f"{near},raw,echo=0"
        )
        try:
            await eventually(lambda: is_listening(port))
            units = [unit_of(number, timeout_s=0.5) for number in (1, 2, 3)]
            watch = watched(TcpPlace(HOST, port, Framing.RTU), *units, truth=mixed)
            async with watching(watch):
                await watch.all_good()
                await more(watch, 30)
            assert not watch.lost
            assert not watch.reasons
        finally:
            process.terminate()
            await process.wait()


async def test_an_answer_on_a_stream_may_come_in_pieces_with_gaps(stream: Line_) -> None:
    """A gap ends a frame on a line; on a stream it may be the network's."""
    peer, place = stream
    watch = watched(place, unit_of(1, timeout_s=1.0))
    async with watching(watch):
        await watch.all_good()
        for cuts in ([1], [2], [3], [5, 10], [1, 2, 3, 4], [24]):

            def in_pieces(good: bytes, cuts: list[int] = cuts) -> None:
                bounds = [0, *cuts, len(good)]
                for n, (begin, end) in enumerate(pairwise(bounds)):
                    peer.later(good[begin:end], 0.07 * n)

            peer.faults.append(in_pieces)
            await eventually(lambda: not peer.faults)
            await more(watch, 2)
    assert not watch.reasons
    assert not watch.lost


def poison(good: bytes) -> bytes:
    """Return an answer that is right in form and wrong in value."""
    return rtu(good[0], good[1:3] + b"\xde\xad" * ((len(good) - 5) // 2))


NOISE: dict[str, bytes] = {
    "a zero": b"\0",
    "the unit id": b"\x01",
    "the begin of an answer": b"\x01\x03\x14",
    "half an answer": b"\x01\x03\x14\xde\xad\xde\xad\xde\xad",
    "an answer with a wrong checksum": b"\x01\x03\x14" + b"\xde\xad" * 10 + b"\0\0",
    "an answer of another unit": rtu(2, b"\x03\x14" + b"\xde\xad" * 10),
    "another function's": rtu(1, b"\x04\x14" + b"\xde\xad" * 10),
    "a shorter answer": rtu(1, b"\x03\x02\xde\xad"),
    "the request": rtu(1, b"\x03\0\x07\0\x0a"),
    "much": bytes(range(2, 256)) * 3,
}


@pytest.mark.parametrize("what", NOISE)
async def test_noise_before_behind_and_between_frames_is_passed_over(line: Line_, what: str) -> None:
    peer, place = line
    noise = NOISE[what]
    watch = watched(place, unit_of(1, timeout_s=0.5))
    async with watching(watch):
        await watch.all_good()
        for fault in (
            lambda good: peer.send(noise + good),
            lambda good: peer.send(good + noise),
            lambda good: (peer.send(noise), peer.later(good, 0.01)),
            lambda good: (peer.send(good), peer.later(noise, 0.005)),
        ):
            peer.faults.append(fault)
            await eventually(lambda: not peer.faults)
            await more(watch, 3)
    assert not watch.reasons
    assert not watch.lost


LATE_S = (0.06, 0.066, 0.075, 0.09, 0.11, 0.15)
"""After a request that has 50 ms, and what its bits take on the wire."""


@pytest.mark.alone  # how late an answer is, is measured in hundredths of a second
@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("units", [[1], [1, 2]], ids=["one unit", "two units"])
async def test_a_late_answer_is_never_taken_for_the_next(line: Line_, units: list[int], count: int) -> None:
    """The next request is to the same unit and looks the same, or is another unit's."""
    peer, place = line
    watch = watched(place, *(unit_of(number, timeout_s=0.05, scan_s=0.01, count=count) for number in units))
    async with watching(watch):
        await watch.all_good()
        for late_s in LATE_S:
            peer.faults.append(lambda good, late_s=late_s: peer.late(good[0], poison(good), late_s))
            await eventually(lambda: not peer.faults)
            await asyncio.sleep(0.1)
            await more(watch, 4)
            await watch.all_good()
    assert watch.reasons["timeout"] > 0


async def test_late_answers_without_end_are_never_taken(line: Line_) -> None:
    """Every answer comes when the next request is under way."""
    peer, place = line
    watch = watched(place, unit_of(1, timeout_s=0.04, scan_s=0.01), unit_of(2, timeout_s=0.04, scan_s=0.01))
    async with watching(watch):
        await watch.all_good()
        peer.faults += [
            lambda good, n=n: peer.late(good[0], poison(good), 0.05 + n % 7 * 0.008) for n in range(12)
        ]
        await eventually(lambda: len(peer.faults) < 6, 10.0)
        peer.faults.clear()
        await watch.all_good(15.0)
        await more(watch)


async def test_a_late_exception_is_not_the_next_requests(line: Line_) -> None:
    peer, place = line
    watch = watched(place, unit_of(1, timeout_s=0.05))
    async with watching(watch):
        await watch.all_good()
        for late_s in LATE_S:
            late = rtu(1, b"\x83\x04")
            peer.faults.append(lambda _, late_s=late_s, late=late: peer.late(1, late, late_s))
            await eventually(lambda: not peer.faults)
            await asyncio.sleep(0.1)
            await watch.all_good()
            await more(watch, 3)


# --- ASCII ------------------------------------------------------------------------------------------


async def test_pymodbus_with_ascii_frames_on_a_serial_line_is_polled() -> None:
    async with cable() as (near, far):
        served = ModbusSerialServer(pymodbus_devices(1, 2), framer=FramerType.ASCII, port=far, baudrate=19200)
        await served.serve_forever(background=True)
        place = SerialPlace(near, baudrate=19200, framing=Framing.ASCII)
        watch = watched(place, unit_of(1), unit_of(2))
        async with watching(watch):
            await watch.all_good()
            await more(watch, 20)
        assert not watch.lost
        assert not watch.reasons
        await served.shutdown()
        await asyncio.sleep(0.01)


async def test_ascii_frames_behind_noise_in_pieces_and_in_small_letters_are_answers(
    ascii_line: Line_,
) -> None:
    peer, place = ascii_line
    watch = watched(place, unit_of(1, timeout_s=0.5))
    async with watching(watch):
        await watch.all_good()
        for fault in (
            lambda good: peer.send(b"\xff\0noise\r\n" + good),
            lambda good: peer.send(b":0103" + good),
            lambda good: peer.send(good[:20] + good),
            lambda good: peer.send(good + b":0103"),
            lambda good: peer.send(good.lower()),
            lambda good: [peer.later(good[n : n + 9], n * 0.002) for n in range(0, len(good), 9)],
        ):
            peer.faults.append(fault)
            await eventually(lambda: not peer.faults)
            await more(watch, 3)
    assert not watch.reasons


async def test_a_late_ascii_answer_is_never_taken_for_the_next(ascii_line: Line_) -> None:
    peer, place = ascii_line
    watch = watched(place, unit_of(1, timeout_s=0.05, scan_s=0.01))
    async with watching(watch):
        await watch.all_good()
        late = ascii_frame(1, b"\x03\x14" + b"\xde\xad" * 10)
        for late_s in LATE_S:
            peer.faults.append(lambda _, late_s=late_s: peer.late(1, late, late_s))
            await eventually(lambda: not peer.faults)
            await asyncio.sleep(0.1)
            await more(watch, 4)
    assert watch.reasons["timeout"] > 0


# --- a serial line ----------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize(("baudrate", "seconds"), [(9600, 4.0), (115200, 4.0)])
async def test_a_line_of_libmodbus_units_is_polled(baudrate: int, seconds: float) -> None:
    """Thirty units in a burst, and then each again in its turn."""
    async with cable() as (near, far), slave("answer 1-30", "values mixed", tty_name=far):
        units = [unit_of(number, scan_s=0.5, timeout_s=0.5) for number in range(1, 31)]
        watch = watched(SerialPlace(near, baudrate=baudrate), *units, truth=mixed)
        async with watching(watch):
            await watch.all_good(seconds)
            await more(watch, 60)
        assert not watch.lost
        assert not watch.reasons


@pytest.mark.parametrize(
    ("baudrate", "turnaround_s"), [(9600, 0.0), (1200, 0.0), (115200, 0.0), (9600, 0.02)]
)
async def test_frames_are_apart_as_the_specification_wants(
    wire: Line_, baudrate: int, turnaround_s: float
) -> None:
    peer, _ = wire
    assert isinstance(peer, WirePeer)
    place = SerialPlace(peer.wire.name, baudrate=baudrate, turnaround_s=turnaround_s)
    silence_s = (0.00175 if baudrate > 19200 else 3.5 * 10 / baudrate) + turnaround_s
    watch = watched(place, unit_of(1, scan_s=0.001), unit_of(2, scan_s=0.001))
    async with watching(watch):
        await watch.all_good()
        await more(watch, 40)
    asked = [at_s for at_s, _, _ in peer.asked]
    gaps = [after - before for before, after in zip(peer.answered_at_s, asked[1:], strict=False)]
    assert len(gaps) >= 40
    assert min(gaps) >= silence_s - 0.0002
    assert sorted(gaps)[len(gaps) // 2] < silence_s + 0.01, "nobody waits much longer"


async def _talk(peer: LinePeer, seconds: float) -> None:
    """Be heard at least each millisecond."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        peer.send(b"\xa5\x5a")
        await asyncio.sleep(0)


async def test_a_request_waits_until_the_line_is_silent(wire: Line_) -> None:
    """Somebody talks between the frames: the request comes when he has ended."""
    peer, place = wire
    assert isinstance(peer, WirePeer)
    place = SerialPlace(peer.wire.name, baudrate=1200)
    watch = watched(place, unit_of(1, scan_s=0.1))
    async with watching(watch):
        await watch.all_good()
        for _ in range(4):
            count = len(peer.asked)
            await eventually(lambda count=count: len(peer.asked) > count)
            # From here on for longer than until the next request.
            await asyncio.sleep(0.01)  # its answer
            await _talk(peer, 0.15)
            assert len(peer.asked) == count + 1
    assert set(watch.reasons) <= {"bad response", "timeout"}


async def test_a_line_that_is_never_silent_says_so(wire: Line_, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_NOISE_S", 0.1)
    peer, place = wire
    assert isinstance(peer, WirePeer)
    place = SerialPlace(peer.wire.name, baudrate=300)
    watch = watched(place, unit_of(1, timeout_s=0.05, scan_s=0.01))
    said: list[str] = []

    async def chatter() -> None:
        while True:
            peer.send(b"\xa5")
            await asyncio.sleep(0.005)

    async with watching(watch):
        await watch.all_good()
        talking = asyncio.create_task(chatter())
        await eventually(lambda: any(not event.is_online for _, event in watch.health), 10.0)
        said = [str(event.reason) for _, event in watch.health if not event.is_online]
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        await watch.all_good(10.0)
    assert said == ["bad response (the line is never silent)"]


async def test_an_adapter_that_hears_itself_needs_its_quirk(wire: Line_) -> None:
    peer, place = wire
    peer.has_echo = True
    written = PointSettings(table="holding", address=100, access="write").build(
        "unit1", "target", is_served=False
    )
    units = [Unit("unit1", 1, [*points_of("unit1", range(5)), written], 0.03, 0.3), unit_of(2)]
    watch = watched(place, *units, quirks=LineQuirks(echo=True))
    polled = [f"unit1.holding{n}" for n in range(5)]
    async with watching(watch):
        await eventually(lambda: watch.is_good(polled))
        await more(watch, 20)
        [result] = await watch.link.write({written.point: 4711})
        assert result.outcome in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)
        assert peer.truth.words[1, "holding", 100] == 4711
        # The echo alone is no answer, though it looks like the answer to the write of one register.
        peer.faults += [lambda _: None] * 3
        [result] = await watch.link.write({written.point: 4712})
        assert result.outcome is WriteOutcome.UNKNOWN
        peer.faults.clear()
        await eventually(lambda: watch.is_good(polled), 10.0)
    assert set(watch.reasons) <= {"timeout", "bad response"}


def target(device: str = "unit1") -> RegisterPoint:
    """Return a register that is only written."""
    settings = PointSettings(table="holding", address=100, access="write")
    return settings.build(device, "target", is_served=False)


async def is_up(watch: Watch) -> None:
    await eventually(lambda: watch.link._is_connected)


def refused(peer: LinePeer, unit_id: int = 1, after_s: float = 0.0) -> Callable[[bytes], object]:
    """Return what refuses a write instead of doing it: the drive is in local control."""
    return lambda _: peer.later(frame_of(peer, unit_id, b"\x86\x03"), after_s)


def frame_of(peer: LinePeer, unit_id: int, pdu: bytes) -> bytes:
    return (ascii_frame if peer._framing is Framing.ASCII else rtu)(unit_id, pdu)


@pytest.mark.parametrize("after_s", [0.02, 0.15])
async def test_on_a_line_that_echoes_a_refused_write_is_refused(
    line: Line_, caplog: pytest.LogCaptureFixture, after_s: float
) -> None:
    """Nothing in the configuration says that it echoes; a slow refusal is waited for all the same."""
    peer, place = line
    peer.has_echo = True
    own = target()
    watch = watched(place, Unit("unit1", 1, [*points_of("unit1", range(5)), own], 60.0, 0.4))
    async with watching(watch):
        await eventually(lambda: watch.is_good([f"unit1.holding{n}" for n in range(5)]))
        peer.faults.append(refused(peer, after_s=after_s))
        [result] = await watch.link.write({own.point: 50})
        assert (result.outcome, result.reason) == (WriteOutcome.FAILED, "device exception 03")
        [result] = await watch.link.write({own.point: 51})
        assert (result.outcome, result.reason) == (WriteOutcome.WRITTEN, None)
        peer.faults.append(lambda _: None)
        [result] = await watch.link.write({own.point: 52})
        assert result.outcome not in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)
    said = [record.message for record in caplog.records if "echo" in record.message]
    assert len(said) == 1
    assert "quirks: {echo: true}" in said[0]


async def test_before_the_first_write_something_is_read_to_learn_of_echoes(line: Line_) -> None:
    """As a one-shot write does: nothing is polled, and the response to the write looks like its request."""
    peer, place = line
    own = target()
    for has_echo, refuses in product((True, False), (True, False)):
        peer.has_echo = has_echo
        peer.asked.clear()
        watch = watched(place, Unit("unit1", 1, [own], 1.0, 0.3))
        async with watching(watch):
            await is_up(watch)
            if refuses:
                peer.faults += [peer.send, refused(peer)]
            [result] = await watch.link.write({own.point: 50})
        expected = (WriteOutcome.FAILED, "device exception 03") if refuses else (WriteOutcome.WRITTEN, None)
        assert (result.outcome, result.reason) == expected
        assert [body[0] for _, _, body in peer.asked] == [3, 6]


@pytest.mark.parametrize("has_echo", [True, False], ids=["echo", "no echo"])
async def test_a_copy_of_a_write_alone_is_not_its_confirmation(line: Line_, has_echo: bool) -> None:
    """The unit answers no read: whether the line echoes cannot be told."""
    peer, place = line
    peer.has_echo = has_echo
    own = target()
    watch = watched(place, Unit("unit1", 1, [own], 1.0, 0.2))
    async with watching(watch):
        await is_up(watch)
        peer.faults += [lambda _: None, (lambda _: None) if has_echo else peer.send]
        [result] = await watch.link.write({own.point: 50})
        assert result.outcome not in (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED)
        assert [body[0] for _, _, body in peer.asked][-1] == 6, "it is sent all the same"


async def test_a_broadcast_is_not_answered_and_takes_its_turnaround_only(wire: Line_) -> None:
    peer, place = wire
    everybody = PointSettings(table="holding", address=100, access="write").build(
        "all", "target", is_served=False
    )
    units = [unit_of(1, scan_s=0.01), Unit("all", 0, [everybody], 1.0, 5.0)]
    watch = watched(place, *units)
    async with watching(watch):
        await eventually(lambda: watch.good_batches)
        for value in (4711, 4712):
            began_s = time.monotonic()
            [result] = await watch.link.write({everybody.point: value})
            assert result.outcome is WriteOutcome.WRITTEN
            assert time.monotonic() - began_s < 0.3
            await more(watch, 3)
            sent = [n for n, (_, unit_id, _) in enumerate(peer.asked) if unit_id == 0]
            at_s, _, pdu = peer.asked[sent[-1]]
            assert pdu[0] in (6, 16)
            assert pdu[-2:] == struct.pack(">H", value)
            assert 0.1 <= peer.asked[sent[-1] + 1][0] - at_s < 0.2
        assert len(sent) == 2
    assert not watch.reasons
    assert [event.device for _, event in watch.health if event.device == "all" and not event.is_online] == []


# --- a port that is not there, or another's ---------------------------------------------------------


async def test_a_serial_port_that_there_is_not_says_so() -> None:
    assert await why_not(SerialPlace("/dev/serial/by-id/usb-none")) == "there is no such port"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be no administrator for a while; one may open everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_serial_port_that_may_not_be_opened_says_what_to_do(wire: Line_) -> None:
    peer, place = wire
    assert isinstance(peer, WirePeer)
    os.chmod(peer.wire.name, 0)
    with as_nobody():
        reason = await why_not(place)
    assert reason == "no permission to open the port (on Linux: the group dialout)"


async def test_a_serial_port_that_another_program_has_locked_says_so(wire: Line_) -> None:
    peer, place = wire
    assert isinstance(peer, WirePeer)
    other = os.open(peer.wire.name, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert await why_not(place) == "another program has the port"
    finally:
        os.close(other)
    watch = watched(place)
    async with watching(watch):
        await watch.all_good()


async def test_a_serial_port_that_another_program_has_for_itself_says_so(wire: Line_) -> None:
    peer, place = wire
    assert isinstance(peer, WirePeer)
    os.chmod(peer.wire.name, 0o666)
    other = os.open(peer.wire.name, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.ioctl(other, termios.TIOCEXCL)
        with as_nobody():
            assert await why_not(place) == "another program has the port"
    finally:
        fcntl.ioctl(other, termios.TIOCNXCL)
        os.close(other)


async def test_two_links_do_not_share_a_serial_port(wire: Line_) -> None:
    _, place = wire
    watch = watched(place)
    async with watching(watch):
        await watch.all_good()
        assert await why_not(place) == "another program has the port"
        await more(watch)
    assert not watch.lost


@pytest.mark.parametrize("kind", ["file", "folder", "socket", "null"])
async def test_what_is_no_serial_port_says_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "port"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "file":
            path.write_text("")
        elif kind == "folder":
            path.mkdir()
        elif kind == "socket":
            listener.bind(str(path))
        else:
            path = Path("/dev/null")
        reason = await why_not(SerialPlace(str(path)))
    assert reason == "this is no serial port"


async def test_an_adapter_that_is_unplugged_is_bad_at_once_and_good_when_it_is_back(tmp_path: Path) -> None:
    """The port is a name such as those of /dev/serial/by-id, which go and come with the adapter."""
    name = tmp_path / "usb-FTDI_1234-port0"
    watch = watched(SerialPlace(str(name), baudrate=115200), unit_of(1, scan_s=10.0, timeout_s=5.0))
    async with ptys(3) as ends:
        name.symlink_to(ends[0].name)
        peer = WirePeer(ends[0])
        async with watching(watch):
            for n, end in enumerate(ends):
                await watch.all_good()
                assert len(peer.asked) == 1
                name.unlink()
                end.close()
                await eventually(lambda: not watch.is_good(), 0.3, "bad at once, though no poll is due")
                assert set(watch.bad.values()) == {"not connected"}
                await eventually(lambda: watch.lost["there is no such port"])
                if n + 1 < len(ends):
                    peer = WirePeer(ends[n + 1])
                    name.symlink_to(ends[n + 1].name)
    assert set(watch.lost) == {"there is no such port", "the port is gone"}


async def test_an_adapter_that_is_unplugged_while_a_request_is_under_way_fails_it(tmp_path: Path) -> None:
    async with ptys(1) as (end,):
        peer = WirePeer(end)
        peer.faults.append(lambda _: end.close())
        assert await why_not(SerialPlace(end.name)) == "the port is gone"
        assert len(peer.asked) == 1
