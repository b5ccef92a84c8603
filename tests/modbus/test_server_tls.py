"""Modbus/TCP Security: who gets in with which certificate, and what its role may do."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificates import Identity
from conftest import eventually, free_port, program
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fieldbus.errors import LinkDownError
from fieldbus.gateway.config.loader import load
from fieldbus.link import Delivery, Target
from fieldbus.modbus import pdu
from fieldbus.modbus.places import TcpPlace, TlsFiles
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.server_access import ROLE_OID, Guard, Right, role_in
from fieldbus.modbus.server_tls import TlsChannel, server_context
from fieldbus.model import Batch, Quality, Sample

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
ROLES = {"operator": Right.READWRITE, "viewer": Right.READ, "guest": Right.NONE}
READ, READ_ANSWER = bytes.fromhex("0300000002"), bytes.fromhex("03043fc00000")
WRITE = bytes.fromhex("0600020005")


def utf8_string(text: str) -> bytes:
    data = text.encode()
    length = bytes((len(data),)) if len(data) < 128 else bytes((0x81, len(data)))
    return b"\x0c" + length + data


def make(
    folder: Path, name: str, issuer: Identity | None = None, *, role: str | bytes | None = None,
    age_days: int = 0, is_ca: bool = False,
) -> Identity:  # fmt: skip
    """Make a certificate; `role` as bytes is the extension's DER, right or wrong."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.made.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - (age_days + 2) * DAY)
        .not_valid_after(NOW - (age_days - 1) * DAY)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("plc.test")]), critical=False)
    )
    if role is not None:
        der = utf8_string(role) if isinstance(role, str) else role
        builder = builder.add_extension(x509.UnrecognizedExtension(ROLE_OID, der), critical=False)
    made = builder.sign(issuer.signer if issuer else key, hashes.SHA256())
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Identity(*files, made, key)


class Plant:
    """A certificate authority, a server of ours, and what masters wrote to it."""

    def __init__(self, folder: Path, *, roles: dict[str, Right] | None) -> None:
        self.folder = folder
        self.ca = make(folder, "ca", is_ca=True)
        self.own = make(folder, "server", self.ca)
        files = TlsFiles(self.ca.certificate, self.own.certificate, self.own.key)
        speed = PointSettings(table="holding", address=0, type="float32").build(
            "panel", "speed", is_served=True
        )
        gear = PointSettings(table="holding", address=2, access="readwrite").build(
            "panel", "gear", is_served=True
        )
        self.link = ModbusServerLink(
            "hmi", "127.0.0.1", 0, [ServedUnit("panel", 1, [speed, gear])],
            place=TcpPlace("127.0.0.1", 0, tls=files), guard=Guard(roles=roles), idle_timeout_s=5.0,
        )  # fmt: skip
        sample = Sample(1.5, Quality.GOOD, None, 1)
        self.link.send([Delivery(Target("hmi", speed.point), speed.point, sample)])
        self.written: list[object] = []

    def emit(self, batch: Batch) -> None:
        self.written.append(batch.values[0])

    def client(self, identity: Identity | None, *, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(str(self.ca.certificate))
        if identity is not None:
            context.load_cert_chain(str(identity.certificate), str(identity.key))
        if newest is not None:
            context.maximum_version = newest
        return context

    def someone(self, name: str, **options: object) -> ssl.SSLContext:
        """Return the context of a client whose certificate our authority signed."""
        return self.client(make(self.folder, name, self.ca, **options))

    async def ask(self, context: ssl.SSLContext, *requests: bytes) -> list[bytes]:
        """Connect, ask, and return the answers; an empty list if there is no way in."""
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.link.port, ssl=context, server_hostname="plc.test"
            )
        except (OSError, EOFError):
            return []
        try:
            answers = []
            async with asyncio.timeout(5):
                for number, request in enumerate(requests):
                    writer.write(pdu.frame(number, 1, request))
                    head = await reader.readexactly(7)
                    assert head[:2] == number.to_bytes(2, "big")
                    answers.append(await reader.readexactly(struct.unpack(">H", head[4:6])[0] - 1))
            return answers
        except (OSError, EOFError):
            return []  # TLS 1.3: the refusal comes behind the client's side of the handshake
        finally:
            writer.transport.abort()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(folder: Path, roles: dict[str, Right] | None = None) -> AsyncIterator[Plant]:
    plant = Plant(folder, roles=roles)
    await plant.link.connect()
    running = asyncio.create_task(plant.link.run(plant.emit, lambda _: None))
    await asyncio.sleep(0)
    try:
        yield plant
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await plant.link.close()
        await asyncio.sleep(0.02)


# --- who gets in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_whom_our_authority_signed_may_do_what_points_allow(
    tmp_path: Path, newest: ssl.TLSVersion
) -> None:
    async with serving(tmp_path) as plant:
        context = plant.client(make(tmp_path, "scada", plant.ca), newest=newest)
        assert await plant.ask(context, READ, WRITE) == [READ_ANSWER, WRITE]
        assert plant.written == [5]
        assert plant.link.counters["sessions_refused"] == 0


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_who_shows_no_certificate_does_not_get_in(tmp_path: Path, newest: ssl.TLSVersion) -> None:
    async with serving(tmp_path) as plant:
        assert await plant.ask(plant.client(None, newest=newest), READ) == []
        assert plant.link.counters["sessions_refused"] == 1
        assert plant.link.counters["requests"] == 0


async def test_whom_a_foreign_authority_signed_does_not_get_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as plant:
        stranger = make(tmp_path, "stranger", make(tmp_path, "other_ca", is_ca=True), role="operator")
        assert await plant.ask(plant.client(stranger), READ) == []
        assert plant.link.counters["sessions_refused"] == 1


async def test_who_signed_himself_does_not_get_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as plant:
        assert await plant.ask(plant.client(make(tmp_path, "himself")), READ) == []


async def test_whose_certificate_expired_does_not_get_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as plant:
        assert await plant.ask(plant.someone("late", age_days=2), READ) == []
        assert await plant.ask(plant.someone("early", age_days=-3), READ) == []
        assert plant.link.counters["sessions_refused"] == 2


async def test_tls_1_1_does_not_get_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as plant:
        context = plant.someone("old")
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        assert await plant.ask(context, READ) == []


async def test_plain_modbus_on_the_tls_port_is_hung_up_on_and_harms_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as plant:
        reader, writer = await asyncio.open_connection("127.0.0.1", plant.link.port)
        writer.write(pdu.frame(1, 1, READ))
        async with asyncio.timeout(5):
            rest = await reader.read()
        assert READ_ANSWER not in rest
        writer.close()
        assert await plant.ask(plant.someone("scada"), READ) == [READ_ANSWER]
        assert plant.link.counters["requests"] == 1


async def test_half_a_handshake_is_bounded_by_max_sessions_and_goes_first(tmp_path: Path) -> None:
    async with serving(tmp_path) as plant:
        plant.link._max_sessions = 4
        context = plant.someone("scada")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", plant.link.port, ssl=context, server_hostname="plc.test"
        )
        writer.write(pdu.frame(1, 1, READ))
        await reader.readexactly(13)
        halves = [await asyncio.open_connection("127.0.0.1", plant.link.port) for _ in range(20)]
        for _, half in halves:
            half.write(b"\x16\x03\x01\x02\x00\x01")
        await eventually(lambda: plant.link.counters["sessions"] == 21)
        assert plant.link.session_count == 4
        writer.write(pdu.frame(2, 1, READ))
        async with asyncio.timeout(5):
            assert (await reader.readexactly(13))[-4:] == READ_ANSWER[-4:]
        for _, half in [*halves, (reader, writer)]:
            half.transport.abort()
        await asyncio.sleep(0.02)


# --- roles ------------------------------------------------------------------------------------------

NO = {READ: b"\x83\x01", WRITE: b"\x86\x01"}
RIGHTS = {
    "operator": ({"role": "operator"}, READ_ANSWER, WRITE),
    "viewer": ({"role": "viewer"}, READ_ANSWER, NO[WRITE]),
    "guest": ({"role": "guest"}, NO[READ], NO[WRITE]),
    "a role that is not named": ({"role": "janitor"}, NO[READ], NO[WRITE]),
    "no role": ({}, NO[READ], NO[WRITE]),
    "an empty role": ({"role": ""}, NO[READ], NO[WRITE]),
    "a role in other letters": ({"role": "Operator"}, NO[READ], NO[WRITE]),
    "a role that is no UTF8String": ({"role": b"\x13\x08operator"}, NO[READ], NO[WRITE]),
    "a role that is cut": ({"role": b"\x0c\x09operator"}, NO[READ], NO[WRITE]),
    "a role called default": ({"role": "default"}, NO[READ], NO[WRITE]),
}


@pytest.mark.parametrize("who", RIGHTS)
async def test_a_role_may_do_what_the_configuration_gives_it(tmp_path: Path, who: str) -> None:
    options, read_answer, write_answer = RIGHTS[who]
    async with serving(tmp_path, ROLES) as plant:
        assert await plant.ask(plant.someone("client", **options), READ, WRITE) == [read_answer, write_answer]
        assert plant.written == ([5] if write_answer == WRITE else [])


@pytest.mark.parametrize("options", [{}, {"role": "janitor"}, {"role": "default"}])
async def test_default_is_for_all_whose_role_is_not_named(tmp_path: Path, options: dict[str, object]) -> None:
    async with serving(tmp_path, {**ROLES, "default": Right.READ}) as plant:
        assert await plant.ask(plant.someone("client", **options), READ, WRITE) == [READ_ANSWER, NO[WRITE]]


@pytest.mark.parametrize(
    "request_hex",
    ["050000ff00", "0f00000001 0101", "1000020001020005", "160002ffff0000", "17000000020002000102ffff"],
)
async def test_no_function_that_writes_is_open_to_a_viewer(tmp_path: Path, request_hex: str) -> None:
    request = bytes.fromhex(request_hex)
    async with serving(tmp_path, ROLES) as plant:
        answers = await plant.ask(plant.someone("client", role="viewer"), request)
        assert answers == [bytes((request[0] | 0x80, 1))]
        assert plant.written == []


async def test_a_right_comes_before_what_is_wrong_with_the_request(tmp_path: Path) -> None:
    async with serving(tmp_path, ROLES) as plant:
        context = plant.someone("client", role="guest")
        assert await plant.ask(context, bytes.fromhex("0300000000"), b"\x2b\x0e\x01\x00") == [
            b"\x83\x01",
            b"\xab\x01",
        ]


@pytest.mark.parametrize("role", ["operator", "Bediener äöü", "x" * 200])
def test_a_role_is_read_whatever_its_letters_and_length(tmp_path: Path, role: str) -> None:
    made = make(tmp_path, "client", role=role).made
    assert role_in(made.public_bytes(serialization.Encoding.DER)) == role


@pytest.mark.parametrize(
    "der", [b"", b"\x0c", b"\x0c\x82\xff\xff", b"\x0c\x01\xff", b"\x0c\x80", b"\x30\x00"]
)
def test_an_extension_that_is_no_role_is_no_role(tmp_path: Path, der: bytes) -> None:
    made = make(tmp_path, "client", role=der).made
    assert role_in(made.public_bytes(serialization.Encoding.DER)) == ""


def test_bytes_that_are_no_certificate_have_no_role() -> None:
    assert role_in(b"") == role_in(b"\x30\x03abc") == ""


# --- records ----------------------------------------------------------------------------------------


def channel_pair(folder: Path) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO, TlsChannel]:
    """Return a client of Python's own, in memory, and a channel of ours, connected."""
    plant = Plant(folder, roles=None)
    files = TlsFiles(plant.ca.certificate, plant.own.certificate, plant.own.key)
    channel = TlsChannel(server_context(files))
    to_client, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = plant.someone("scada").wrap_bio(to_client, from_client, server_hostname="plc.test")
    for _ in range(4):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        assert channel.feed(from_client.read()) == b""
        to_client.write(channel.outgoing())
    assert channel.is_open
    return client, to_client, from_client, channel


def test_records_split_at_every_byte_and_joined_give_the_same_bytes(tmp_path: Path) -> None:
    client, to_client, from_client, channel = channel_pair(tmp_path)
    for piece in (b"one", b"two", b"three"):
        client.write(piece)
    joined = from_client.read()
    assert channel.feed(joined) == b"onetwothree"
    client.write(b"four")
    client.write(b"five")
    parts = [channel.feed(bytes((byte,))) for byte in from_client.read()]
    assert b"".join(parts) == b"fourfive"
    assert [part for part in parts if part] == [b"four", b"five"]
    channel.wrap(b"answer")
    to_client.write(channel.outgoing())
    assert client.read() == b"answer"


def test_a_handshake_one_byte_at_a_time_succeeds(tmp_path: Path) -> None:
    plant = Plant(tmp_path, roles=None)
    channel = TlsChannel(server_context(TlsFiles(plant.ca.certificate, plant.own.certificate, plant.own.key)))
    to_client, from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = plant.someone("scada").wrap_bio(to_client, from_client, server_hostname="plc.test")
    for _ in range(4):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        for byte in from_client.read():
            channel.feed(bytes((byte,)))
            to_client.write(channel.outgoing())
    assert channel.is_open


def test_a_record_with_one_wrong_bit_ends_the_channel(tmp_path: Path) -> None:
    client, _, from_client, channel = channel_pair(tmp_path)
    client.write(b"data")
    record = bytearray(from_client.read())
    record[-1] ^= 1
    assert channel.feed(bytes(record)) == b""
    assert channel.fault is not None
    assert channel.feed(bytes(record)) == b""


def test_a_client_that_says_goodbye_closes_the_channel(tmp_path: Path) -> None:
    client, _, from_client, channel = channel_pair(tmp_path)
    client.write(b"last words")
    try:
        client.unwrap()
    except ssl.SSLWantReadError:
        pass
    assert channel.feed(from_client.read()) == b"last words"
    assert channel.fault == "closed"


async def test_a_request_cut_into_records_and_requests_in_one_record_are_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as plant:
        context = plant.someone("scada")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", plant.link.port, ssl=context, server_hostname="plc.test"
        )
        for byte in pdu.frame(1, 1, READ):
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.001)
        writer.write(b"".join(pdu.frame(n, 1, READ) for n in range(2, 18)))
        async with asyncio.timeout(5):
            answers = [await reader.readexactly(13) for _ in range(17)]
        assert [answer[1] for answer in answers] == list(range(1, 18))
        writer.transport.abort()
        await asyncio.sleep(0.01)


async def test_a_long_flood_over_tls_is_answered_whole_and_in_order(tmp_path: Path) -> None:
    count = 5000
    async with serving(tmp_path) as plant:
        context = plant.someone("scada")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", plant.link.port, ssl=context, server_hostname="plc.test"
        )
        writer.write(b"".join(pdu.frame(n, 1, READ) for n in range(count)))
        async with asyncio.timeout(20):
            for n in range(count):
                assert (await reader.readexactly(13))[:2] == n.to_bytes(2, "big")
        writer.transport.abort()
        await asyncio.sleep(0.01)


# --- files ------------------------------------------------------------------------------------------


async def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    plant = Plant(tmp_path, roles=None)
    other = make(tmp_path, "other")
    (tmp_path / "text.pem").write_text("hello\n")
    bad = [
        (TlsFiles(tmp_path / "none.pem", plant.own.certificate, plant.own.key), r"none\.pem"),
        (TlsFiles(tmp_path / "text.pem", plant.own.certificate, plant.own.key), r"text\.pem"),
        (
            TlsFiles(plant.ca.certificate, plant.own.certificate, other.key),
            r"server\.pem.*key values mismatch",
        ),
        (TlsFiles(plant.ca.certificate), "certificate"),
    ]
    for files, complaint in bad:
        with pytest.raises(LinkDownError, match=complaint):
            server_context(files)


def test_an_encrypted_key_needs_its_password_and_nobody_is_asked_at_the_terminal(tmp_path: Path) -> None:
    plant = Plant(tmp_path, roles=None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        plant.own.signer.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"sesame"),
        )
    )  # fmt: skip
    files = (plant.ca.certificate, plant.own.certificate, locked)
    server_context(TlsFiles(*files, key_password="sesame"))
    for password in (None, "wrong"):
        with pytest.raises(LinkDownError, match=r"server\.pem"):
            server_context(TlsFiles(*files, key_password=password))


async def test_a_configuration_is_enough_for_a_server_with_roles(tmp_path: Path) -> None:
    plant = Plant(tmp_path, roles=None)
    config = tmp_path / "plant.yaml"
    config.write_text(
        "version: 1\n"
        "gateway: {name: press-line}\n"
        "links:\n"
        "  hmi:\n"
        "    type: modbus-server\n"
        "    transport: tls\n"
        f"    port: {free_port()}\n"
        "    tls: {ca: ca.pem, certificate: server.pem, key: server.key}\n"
        "    roles: {operator: readwrite, default: read}\n"
        "    allow: [127.0.0.0/8]\n"
        "devices:\n"
        "  panel: {link: hmi, points: {gear: {table: holding, address: 2, access: readwrite, initial: 1}}}\n"
    )
    link = load(config).links["hmi"]
    assert isinstance(link, ModbusServerLink)
    plant.link = link
    await link.connect()
    try:
        assert await plant.ask(plant.someone("operator", role="operator"), WRITE) == [WRITE]
        name = b"press-line"
        who = b"\x2b\x0e\x04\x82\0\0\1\6" + bytes((len(name),)) + name
        asked = await plant.ask(plant.someone("somebody"), WRITE, b"\x2b\x0e\x04\6")
        assert asked == [b"\x86\x01", who]
    finally:
        await link.close()
        await asyncio.sleep(0.02)


# --- a client that we did not write -----------------------------------------------------------------


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssl_s_client_is_answered_by_its_role(tmp_path: Path, version: str) -> None:
    openssl = program("openssl", "openssl")
    async with serving(tmp_path, ROLES) as plant:
        viewer = make(tmp_path, "viewer", plant.ca, role="viewer")
        process = await asyncio.create_subprocess_exec(
            openssl, "s_client", "-quiet", version, "-connect", f"127.0.0.1:{plant.link.port}",
            "-CAfile", str(plant.ca.certificate), "-cert", str(viewer.certificate), "-key", str(viewer.key),
            "-servername", "plc.test", "-verify_return_error", "-verify", "2",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(pdu.frame(1, 1, READ) + pdu.frame(2, 1, WRITE))
            async with asyncio.timeout(10):
                assert await process.stdout.readexactly(13) == pdu.frame(1, 1, READ_ANSWER)
                assert await process.stdout.readexactly(9) == pdu.frame(2, 1, b"\x86\x01")
        finally:
            process.kill()
            await process.communicate()
        assert plant.written == []


async def test_openssl_s_client_without_a_certificate_is_told_so(tmp_path: Path) -> None:
    openssl = program("openssl", "openssl")
    async with serving(tmp_path) as plant:
        process = await asyncio.create_subprocess_exec(
            openssl, "s_client", "-quiet", "-connect", f"127.0.0.1:{plant.link.port}",
            "-CAfile", str(plant.ca.certificate), "-servername", "plc.test",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(10):
            out, complaint = await process.communicate(pdu.frame(1, 1, READ))
        assert out == b""
        assert b"certificate required" in complaint
        assert plant.link.counters["requests"] == 0
