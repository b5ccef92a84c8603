"""The broker as it is shipped in `configs/mosquitto`: TLS, passwords, certificates, and who may say what."""

import asyncio
import getpass
import hashlib
import hmac
import json
import os
import re
import secrets
import subprocess
import sys
import time

import pytest
from certificates import identity
from conftest import ROOT, Process, eventually, free_port, program, wait_for_port
from fake_plc import FakePlc

from fieldbus.cli.run import load_again
from fieldbus.errors import LinkDownError
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.mqtt.link import MqttLink
from fieldbus.mqtt.tls import TlsFiles
from fieldbus.store.history import read as read_history

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]
SHIPPED = ROOT / "configs" / "mosquitto"
USERS = ("press-line", "hq", "operator", "visitor", "night-shift")

PRESS_LINE = """version: 1
gateway: {name: press-line, data_dir: kept}
links:
  plc: {type: modbus-tcp, host: 127.0.0.1, port: PLC, timeout: 500ms}
  broker: {type: mqtt, host: 127.0.0.1, port: BROKER, AS_PRESS_LINE, keepalive: 2s}
devices:
  press:
    link: plc
    scan: 100ms
    points:
      temperature: {table: holding, address: 0}
      setpoint: {table: holding, address: 10, access: readwrite, min: 0, max: 100}
access:
  operator: [press.setpoint]
  hq: [press.setpoint]
  night-shift: {points: [press.setpoint], key: {file: night-shift.key}}
routes:
  - {from: press.temperature, to: "broker:site/{gateway}/{device}/{point}", durable: true}
"""
HQ = """version: 1
gateway: {name: hq, data_dir: kept}
links:
  broker: {type: mqtt, host: 127.0.0.1, port: BROKER, AS_HQ, keepalive: 2s}
  archive: {type: store, file: archive.db}
  wall: {type: modbus-tcp, host: 127.0.0.1, port: WALL, timeout: 500ms}
devices:
  press_line: {type: gateway, link: broker, gateway: press-line}
  display:
    link: wall
    points: {temperature: {table: holding, address: 5, access: write}}
routes:
  - {from: press_line.press.temperature, to: archive, when: sample, durable: true}
  - {from: press_line.press.temperature, to: display.temperature}
"""


class SecuredBroker:
    """mosquitto with the shipped configuration; only its ports and the places of its files are others."""

    def __init__(self, folder):
        self.folder = folder
        self.port, self.certificate_port = free_port(), free_port()
        self.passwords = {user: secrets.token_hex(8) for user in USERS}
        certs = folder / "certs"
        certs.mkdir(parents=True)
        self.ca = identity(certs, "ca")
        self.own = identity(certs, "broker", self.ca, hosts=("127.0.0.1", "localhost"))
        (folder / "fieldbus.passwd").write_text(
            "".join(f"{user}:{password}\n" for user, password in self.passwords.items())
        )
        tool = program("mosquitto_passwd", "mosquitto")
        subprocess.run([tool, "-U", str(folder / "fieldbus.passwd")], check=True, timeout=20)
        (folder / "fieldbus.acl").write_text((SHIPPED / "fieldbus.acl").read_text())
        text = (SHIPPED / "mosquitto.conf").read_text()
        for before, after in (
            ("/etc/mosquitto/", f"{folder}/"),
            ("/var/lib/mosquitto/", f"{folder}/"),
            ("listener 8883", f"listener {self.port} 127.0.0.1"),
            ("listener 8884", f"listener {self.certificate_port} 127.0.0.1"),
        ):
            assert before in text
            text = text.replace(before, after)
        (folder / "mosquitto.conf").write_text(f"{text}\nuser {getpass.getuser()}\n")
        self.process = None
        self.start()

    def start(self):
        self.process = Process(program("mosquitto", "mosquitto"), "-c", str(self.folder / "mosquitto.conf"))
        wait_for_port(self.port)
        wait_for_port(self.certificate_port)

    def stop(self):
        if self.process is not None:
            self.said = self.process.stop()
            self.process = None

    def login(self, user):
        """Return how mosquitto's clients come as a user."""
        return [
            "-h", "127.0.0.1", "-p", str(self.port), "-V", "5", "-u", user, "-P", self.passwords[user],
            "--cafile", str(self.ca.certificate),
        ]  # fmt: skip

    def say(self, user, topic, payload, *options):
        """Publish as a user with mosquitto_pub; return what it complains of."""
        done = subprocess.run(
            [program("mosquitto_pub", "mosquitto-clients"), *self.login(user), "-q", "1", "-t", topic,
             "-m", payload, *options],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def hear(self, user, *topics, wait_s=3, count=1, form="%t %D|%p"):
        """Start mosquitto_sub as a user."""
        return subprocess.Popen(
            [program("mosquitto_sub", "mosquitto-clients"), *self.login(user), "-q", "1", "-F", form,
             *[word for topic in topics for word in ("-t", topic)], "-C", str(count), "-W", str(wait_s)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@pytest.fixture
def secured(tmp_path):
    found = SecuredBroker(tmp_path / "broker")
    yield found
    found.stop()


class Site:
    """A PLC, a gateway beside it and one at headquarters, on the secured broker."""

    def __init__(self, folder, broker):
        self.folder, self.broker = folder, broker
        self.plc, self.wall = FakePlc(), FakePlc()
        self.plc.registers = {0: 72, 10: 5}
        self.gateways, self.running = {}, []

    async def begin(self, name, text, login, port):
        folder = self.folder / name
        folder.mkdir()
        (folder / "broker.password").write_text(self.broker.passwords.get(name, ""))
        (folder / "night-shift.key").write_text("the night shift's key\n")
        for key, value in (("AS_PRESS_LINE", login), ("AS_HQ", login), ("BROKER", port),
                           ("PLC", self.plc.port), ("WALL", self.wall.port)):  # fmt: skip
            text = text.replace(key, str(value))
        (folder / "plant.yaml").write_text(text)
        gateway = self.gateways[name] = Gateway(load(folder / "plant.yaml"), load=load_again)
        self.running.append(asyncio.create_task(gateway.run()))
        await eventually(lambda: gateway.router.sample(gateway.points["sys.broker.connected"]).value, 10)
        return gateway

    def by_password(self, user):
        return f"username: {user}, password: {{file: broker.password}}, tls: {{ca: {self.broker.ca.certificate}}}"

    def by_certificate(self, user):
        own = identity(self.folder, user, self.broker.ca)
        return f"tls: {{ca: {self.broker.ca.certificate}, certificate: {own.certificate}, key: {own.key}}}"


@pytest.fixture
async def site(tmp_path, secured):
    found = Site(tmp_path, secured)
    await found.plc.start()
    await found.wall.start()
    yield found
    for gateway in found.gateways.values():
        gateway.stop()
    async with asyncio.timeout(20):
        await asyncio.gather(*found.running)
    await found.plc.stop()
    await found.wall.stop()


def order(value, **more):
    return json.dumps({"value": value, "id": secrets.token_hex(4), "time": time.time(), **more})


async def in_thread(work, *arguments, **options):
    return await asyncio.to_thread(work, *arguments, **options)


async def test_an_operator_may_command_and_nobody_else_as_operator(site):
    broker = site.broker
    await site.begin("press-line", PRESS_LINE, site.by_password("press-line"), broker.port)
    answers = "fieldbus/operator/answer/press-line"
    topic = "fieldbus/press-line/command/operator/press/setpoint"

    heard = broker.hear("operator", answers, wait_s=15)
    await asyncio.sleep(0.5)
    said = await in_thread(
        broker.say, "operator", topic, order(42), "-D", "publish", "response-topic", answers,
        "-D", "publish", "correlation-data", "order-17",
    )  # fmt: skip
    assert said == ""
    out, _ = await in_thread(heard.communicate)
    where, _, payload = out.strip().partition("|")
    assert where == f"{answers} order-17"
    answer = json.loads(payload)
    assert (answer["point"], answer["value"], answer["outcome"]) == ("press.setpoint", 42, "written")
    await eventually(lambda: site.plc.written == [(10, 42)])

    # somebody else, with a password of his own, in the operator's name; and in his own, unknown here
    heard = broker.hear("operator", answers, wait_s=2)
    said = await in_thread(
        broker.say, "visitor", topic, order(43), "-D", "publish", "response-topic", answers
    )
    assert "not authorized" in said.lower()
    own = "fieldbus/visitor/answer/press-line"
    listening = broker.hear("visitor", own, wait_s=15)
    await asyncio.sleep(0.5)
    await in_thread(
        broker.say, "visitor", "fieldbus/press-line/command/visitor/press/setpoint", order(44),
        "-D", "publish", "response-topic", own,
    )  # fmt: skip
    out, _ = await in_thread(listening.communicate)
    answer = json.loads(out.partition("|")[2])
    assert answer["outcome"] == "refused"
    assert "'visitor' may not write press.setpoint" in answer["reason"]
    out, _ = await in_thread(heard.communicate)
    assert "|" not in out
    assert site.plc.written == [(10, 42)]


async def test_a_signed_command_comes_through_and_an_unsigned_one_does_not(site):
    broker = site.broker
    await site.begin("press-line", PRESS_LINE, site.by_password("press-line"), broker.port)
    topic = "fieldbus/press-line/command/night-shift/press/setpoint"
    answers = "fieldbus/night-shift/answer/press-line"
    heard = broker.hear("night-shift", answers, wait_s=15, count=3)
    await asyncio.sleep(0.5)
    reply = ("-D", "publish", "response-topic", answers)
    payload = order(33)
    key = b"the night shift's key"
    right = hmac.new(key, f"{topic}\n{payload}".encode(), hashlib.sha256).hexdigest()
    wrong = hmac.new(b"another", f"{topic}\n{payload}".encode(), hashlib.sha256).hexdigest()
    await in_thread(broker.say, "night-shift", topic, payload, *reply)
    for signature in (wrong, right):
        await in_thread(
            broker.say, "night-shift", topic, payload, *reply,
            "-D", "publish", "user-property", "signature", signature,
        )  # fmt: skip
    out, _ = await in_thread(heard.communicate)
    found = [json.loads(line.partition("|")[2]) for line in out.splitlines()]
    assert [item["outcome"] for item in found] == ["refused", "refused", "written"]
    assert found[0]["reason"] == "commands of 'night-shift' are signed, and this one is not"
    assert found[1]["reason"] == "the signature is not that of 'night-shift'"
    assert right not in out
    assert site.plc.written == [(10, 33)]


async def test_an_answer_is_never_published_in_the_gateways_own_name(site):
    broker = site.broker
    gateway = await site.begin("press-line", PRESS_LINE, site.by_password("press-line"), broker.port)
    topic = "fieldbus/press-line/command/operator/press/setpoint"
    wrong = ("fieldbus/press-line/status", "fieldbus/press-line/birth", "fieldbus/hq/command/press-line/a/b",
             "fieldbus/hq/ack/press-line", "fieldbus/hq/want/press-line", "fieldbus/press-line")  # fmt: skip
    heard = broker.hear("hq", "fieldbus/#", "site/#", wait_s=4, count=1000, form="%r %t %p")
    await asyncio.sleep(0.5)
    for answers in wrong:
        await in_thread(broker.say, "operator", topic, order(42), "-D", "publish", "response-topic", answers)
    await eventually(lambda: gateway.desk.counters["written"] >= len(wrong))
    site.plc.registers[0] = 73
    out, _ = await in_thread(heard.communicate)
    assert '"outcome"' not in out
    assert "site/press-line/press/temperature" in out


TABLE = [  # who, what, whether the broker lets it through to press-line, or to who is named
    ("press-line", "fieldbus/press-line/status", True),
    ("press-line", "fieldbus/press-line/birth", True),
    ("press-line", "fieldbus/press-line/health", True),
    ("hq", "fieldbus/press-line/status", False),
    ("hq", "fieldbus/press-line/birth", False),
    ("hq", "fieldbus/press-line/health", False),
    ("hq", "fieldbus/press-line/want/hq", True),
    ("visitor", "fieldbus/press-line/want/hq", False),
    ("hq", "fieldbus/press-line/want/hq/3", True),  # somebody who watches as hq
    ("visitor", "fieldbus/press-line/want/hq/3", False),
    ("press-line", "fieldbus/press-line/live/hq/3", True),
    ("press-line", "fieldbus/press-line/live/hq", True),
    ("visitor", "fieldbus/press-line/live/hq", False),
    ("press-line", "fieldbus/press-line/data/hq", True),
    ("visitor", "fieldbus/press-line/data/hq", False),
    ("hq", "fieldbus/press-line/ack/hq", True),
    ("visitor", "fieldbus/press-line/ack/hq", False),
    ("hq", "fieldbus/press-line/command/hq/press/setpoint", True),
    ("visitor", "fieldbus/press-line/command/hq/press/setpoint", False),
    ("press-line", "fieldbus/hq/answer/press-line", True),
    ("visitor", "fieldbus/hq/answer/press-line", False),
    ("press-line", "site/press-line/press/temperature", True),
    ("visitor", "site/press-line/press/temperature", False),
    ("visitor", "anything/else", False),
]


def test_the_access_list_lets_each_say_what_is_theirs_and_nothing_else(secured):
    ears = {
        user: secured.hear(user, "#", wait_s=4, count=1000, form="%t")
        for user in ("press-line", "hq", "visitor")
    }
    time.sleep(0.7)
    for user, topic, may in TABLE:
        said = secured.say(user, topic, "x")
        assert ("not authorized" in said.lower()) is not may, f"{user} on {topic}: {said}"
    heard = {user: set(ear.communicate()[0].split()) for user, ear in ears.items()}
    public = {"fieldbus/press-line/status", "fieldbus/press-line/birth", "fieldbus/press-line/health",
              "site/press-line/press/temperature"}  # fmt: skip
    assert heard["visitor"] - {"Timed", "out"} == public
    assert heard["press-line"] - {"Timed", "out"} == public | {
        "fieldbus/press-line/want/hq", "fieldbus/press-line/want/hq/3", "fieldbus/press-line/ack/hq",
        "fieldbus/press-line/command/hq/press/setpoint",
    }  # fmt: skip
    assert heard["hq"] - {"Timed", "out"} == public | {
        "fieldbus/press-line/live/hq", "fieldbus/press-line/live/hq/3", "fieldbus/press-line/data/hq", "fieldbus/hq/answer/press-line",
    }  # fmt: skip


@pytest.mark.parametrize("way", ["password", "certificate"])
async def test_two_gateways_work_under_the_access_list_end_to_end(site, way):
    broker = site.broker
    login = site.by_password if way == "password" else site.by_certificate
    port = broker.port if way == "password" else broker.certificate_port
    press = await site.begin("press-line", PRESS_LINE, login("press-line"), port)
    hq = await site.begin("hq", HQ, login("hq"), port)
    await eventually(lambda: "press_line.press.temperature" in hq.points, 15, "press-line's points")
    await eventually(lambda: (5, 72) in site.wall.written, 15, "the live value on the wall")
    file = site.folder / "hq" / "kept" / "archive.db"

    def stored():
        found = read_history(file, ["press_line.press.temperature"])
        return {entry.sample.value for entry in found if entry.sample.value is not None}

    await eventually(lambda: file.exists() and stored() == {72}, 15, "what the store has")
    site.plc.registers[0] = 90
    await eventually(lambda: (5, 90) in site.wall.written, 15)
    await eventually(lambda: stored() == {72, 90}, 15, "what the store has later")
    streams = press.exchange.streams
    await site.plc.stop()
    await eventually(lambda: all(item.backlog == 0 for item in streams().values()), 15, "acknowledgements")
    await site.plc.start()

    # a command of hq travels as hq; and what the broker is told when press-line goes is heard
    point = hq.points["press_line.press.setpoint"]
    await eventually(lambda: press.router.sample(press.points["sys.press.online"]).value, 15)
    result = await hq._write(point, 61, time.monotonic() + 10)
    assert (str(result.outcome), site.plc.written) == ("written", [(10, 61)])
    press.stop()
    await eventually(lambda: hq.router.sample(hq.points["press_line.press.temperature"]).is_bad, 15)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (
            "authority",
            r"the broker's certificate is not accepted: (unable to get local issuer|self.signed) .*",
        ),
        ("expired", r"the broker's certificate is not accepted: certificate has expired"),
        (
            "name",
            r"the broker's certificate is not accepted: IP address mismatch, .* not valid for '127.0.0.1'.",
        ),
        ("password", r"not authorized, as client 'fieldbus-hq-broker'"),
        ("no TLS", r"no answer to the attempt to connect \(does the broker want TLS\?\)"),
        ("no certificate", r"no answer to the attempt to connect \(does the broker want a certificate\?\)"),
        ("no file", r"tls: .*none\.pem has no certificates in PEM format"),
        (
            "key password",
            r"tls: .*: certificate and key do not belong together, or the key's password is wrong",
        ),
    ],
)
async def test_what_is_wrong_with_a_connection_is_one_clear_line(secured, tmp_path, wrong, expected):
    ca, port, tls, user = secured.ca.certificate, secured.port, None, "hq"
    password = secured.passwords["hq"]
    certs = secured.folder / "certs"
    if wrong == "authority":
        ca = identity(tmp_path, "another").certificate
    elif wrong in ("expired", "name"):
        hosts = ("127.0.0.1",) if wrong == "expired" else ("10.1.2.3", "plc.example")
        secured.stop()
        identity(certs, "broker", secured.ca, hosts=hosts, is_expired=wrong == "expired")
        secured.start()
    elif wrong == "password":
        password = "not the canary"
    elif wrong == "no certificate":
        port = secured.certificate_port
    elif wrong == "no file":
        ca = tmp_path / "none.pem"
    tls = None if wrong == "no TLS" else TlsFiles(ca)
    if wrong == "key password":
        own = identity(tmp_path, "hq", secured.ca, key_password="right")
        tls = TlsFiles(ca, own.certificate, own.key, "wrong")
    link = MqttLink("broker", "hq", "127.0.0.1", port, [], username=user, password=password, tls=tls)
    began_s = time.monotonic()
    with pytest.raises(LinkDownError) as caught:
        await link.connect()
        await link.run(lambda _: None, lambda _: None)
    await link.close()
    said = str(caught.value)
    assert "\n" not in said
    assert said
    assert password not in said
    assert re.fullmatch(expected, said), said
    assert time.monotonic() - began_s < 10


async def test_certificates_that_were_renewed_are_used_at_the_next_connection(site):
    broker = site.broker
    login = site.by_certificate("press-line")
    gateway = await site.begin("press-line", PRESS_LINE, login, broker.certificate_port)
    link = gateway.plant.links["broker"]
    up = gateway.points["sys.broker.connected"]
    broker.stop()
    await eventually(lambda: gateway.router.sample(up).value is False, 10)
    # all of it is another: the authority, the broker's certificate, and the gateway's
    certs = broker.folder / "certs"
    authority = identity(certs, "authority of next year", file="ca")
    identity(certs, "broker", authority, hosts=("127.0.0.1",))
    identity(site.folder, "press-line", authority)
    broker.start()
    await eventually(lambda: gateway.router.sample(up).value is True, 20)
    assert gateway.plant.links["broker"] is link


# --- what a person sees


def command(*arguments, password=None, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "fieldbus", *map(str, arguments)],
        capture_output=True, text=True, timeout=40, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, "FIELDBUS_PASSWORD": password or ""},
    )  # fmt: skip
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


async def test_a_person_sees_the_network_and_what_is_down_in_it(site):
    broker = site.broker
    ca = ("--ca", broker.ca.certificate)
    url = f"mqtts://operator@127.0.0.1:{broker.port}"
    password = broker.passwords["operator"]

    async def run(*arguments, code=0, secret=password):
        return await in_thread(command, *arguments, *ca, password=secret, code=code)

    assert await run("network", url) == f"no gateway has been on 127.0.0.1:{broker.port} yet\n"
    press = await site.begin("press-line", PRESS_LINE, site.by_password("press-line"), broker.port)
    hq = await site.begin("hq", HQ, site.by_password("hq"), broker.port)
    await eventually(lambda: "press_line.press.temperature" in hq.points, 15)
    await eventually(lambda: hq.health()["links"]["broker"]["connected"], 15)
    await asyncio.sleep(2.5)  # health is said once a second
    shown = await run("network", url)
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [
        ["hq", "online"],
        ["press-line", "online"],
    ]

    shown = await run("watch", f"{url}/press-line", "--once", "--json", "--only", "press.temperature")
    assert json.loads(shown)["value"] == 72
    shown = await run("write", f"{url}/press-line", "press.setpoint=7", "--json")
    assert json.loads(shown)[0]["outcome"] == "written"
    assert site.plc.written == [(10, 7)]

    # a PLC is away, then a gateway
    await site.plc.stop()
    await eventually(lambda: not press.health()["links"]["plc"]["connected"], 10)
    await asyncio.sleep(1.5)
    shown = await run("network", url, code=1)
    assert re.search(
        r"^press-line: link plc is down since \d{4}-\d\d-\d\d [\d:]{8} UTC \(\d+ s\)$", shown, re.MULTILINE
    )
    assert re.search(r"^press-line: device press is down since ", shown, re.MULTILINE)
    press.stop()
    await eventually(lambda: not press._is_working(), 10)
    await asyncio.sleep(0.5)
    shown = await run("network", url, code=1)
    assert re.search(r"^press-line +offline since .*: shut down", shown, re.MULTILINE)
    found = json.loads(await run("network", url, "--json", code=1))
    assert [(item["gateway"], item["online"]) for item in found] == [("hq", True), ("press-line", False)]
    assert {"backlog", "dropped"} <= set(next(iter(found[1]["health"]["streams"].values())))

    # and what can go wrong, in words
    there = f"127.0.0.1:{broker.port}"
    assignment = ("press.setpoint=1", "--timeout", "2s")
    plain = "mqtt://operator@127.0.0.1:1"
    refused, elsewhere, unheard, offline, unknown, unreachable = await asyncio.gather(
        run("network", url, code=1, secret="wrong"),
        run("watch", f"{url}/nowhere", code=1),
        run("write", f"{url}/nowhere", *assignment, code=1),
        run("watch", f"{url}/press-line", code=1),
        in_thread(command, "network", url, password=password, code=1),  # without the authority
        in_thread(command, "write", f"{plain}/press-line", *assignment, password=password, code=1),
    )
    assert refused == f"fieldbus: {there}: not authorized\n"
    assert elsewhere == "fieldbus: gateway nowhere is not there: it says nothing of itself\n"
    assert "no answer from gateway nowhere: whether it was written is not known" in " ".join(unheard.split())
    assert offline == "fieldbus: gateway press-line is not connected to the broker\n"
    assert unknown.startswith(f"fieldbus: {there}: the broker's certificate is not accepted: ")
    assert unknown.count("\n") == 1
    assert unreachable == "fieldbus: 127.0.0.1:1: connection refused\n"
