"""What durable routes promise, with processes that are killed, brokers that freeze, disks that are full.

The producer (`counting_gateway.py`) keeps a ledger; the receiver's store is compared with it. A sample counts
as acknowledged when it is in the sender's spool.

The longer versions: ``FIELDBUS_KILLS=200``, ``FIELDBUS_BACKLOG=3600000``.
"""

import itertools
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from conftest import Broker, free_port

KILLS = int(os.environ.get("FIELDBUS_KILLS", "8"))
BACKLOG = int(os.environ.get("FIELDBUS_BACKLOG", "100000"))
POINTS = 10
RATE = 1000
_PUBACK = 4

pytestmark = [pytest.mark.system, pytest.mark.timeout(120 + KILLS * 10 + BACKLOG // 2000)]

SENDER = """version: 1
gateway: {{name: tx, data_dir: tx-data{spool}}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: 1}}
  broker: {{type: mqtt, host: 127.0.0.1, port: {port}, keepalive: {keepalive}}}
devices:
  press:
    link: plc
    points:
{points}
routes: {routes}
"""
RECEIVER = """version: 1
gateway: {{name: rx, data_dir: rx-data}}
links:
  broker: {{type: mqtt, host: 127.0.0.1, port: {port}, keepalive: {keepalive}}}
  history: {{type: store}}
devices:
  line: {{link: broker, type: gateway, gateway: tx}}
routes:
  - {{from: "line.press.*", to: history, durable: true, when: sample}}
{routes}
"""


class HardBroker(Broker):
    """A broker that may have any death."""

    @property
    def pid(self):
        return self._process.popen.pid

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process = None


@pytest.fixture
def broker(tmp_path):
    found = HardBroker(tmp_path)
    yield found
    found.kill()


class Proxy:
    """TCP between a gateway and the broker: can be away, and can swallow what the broker acknowledges."""

    def __init__(self, port):
        self.swallows = False
        self.swallowed = 0
        self.port = free_port()
        self._target = port
        self._sockets = []
        self._listener = None
        self.open()

    def open(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self):
        listener, self._listener = self._listener, None
        for each in (listener, *self._sockets):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        self._sockets = []

    def _accept(self, listener):
        while self._listener is listener:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [client, server]
            for work, *ends in ((self._pass, client, server), (self._pass_packets, server, client)):
                threading.Thread(target=work, args=ends, daemon=True).start()

    def _pass(self, source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def _pass_packets(self, source, sink):
        kept = b""
        with suppress(OSError):
            while data := source.recv(65536):
                kept += data
                out = b""
                while (size := _packet_size(kept)) is not None and len(kept) >= size:
                    packet, kept = kept[:size], kept[size:]
                    if self.swallows and packet[0] >> 4 == _PUBACK:
                        self.swallowed += 1
                    else:
                        out += packet
                if out:
                    sink.sendall(out)
            sink.shutdown(socket.SHUT_RDWR)


def _packet_size(data):
    """Return how long the packet is that data begins with; None if that is not known yet."""
    length = 0
    for index, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return index + 2 + length
    return None


class Member:
    """A process that is started again and again; what it says goes into a file."""

    def __init__(self, log, *command):
        self.log = log
        self._command = command
        self._process = None

    def start(self):
        assert self._process is None
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def pid(self):
        return self._process.pid

    @property
    def is_alive(self):
        return self._process is not None and self._process.poll() is None

    def kill(self):
        if self._process is not None:
            assert self._process.poll() is None, f"it ended by itself:\n{self.said}"
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self):
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(20) == 0, self.said
            self._process = None

    def end(self):
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    @property
    def rss_kib(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError("it is gone")

    @property
    def cpu_s(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Pair:
    """A sender that counts, a receiver with a store, and what both should have."""

    def __init__(
        self,
        folder,
        sender_port,
        receiver_port=None,
        *,
        routes="[]",
        receiver_routes="",
        keepalive="30s",
        spool="",
        rate=RATE,
        sender_in=(),
        receiver_in=(),
    ):
        self.folder = folder
        points = "\n".join(
            f"      c{n}: {{table: holding, address: {2 * n}, type: uint32}}" for n in range(POINTS)
        )
        self._sender_config = folder / "tx.yaml"
        self._sender_config.write_text(
            SENDER.format(port=sender_port, points=points, routes=routes, keepalive=keepalive, spool=spool)
        )
        receiver = folder / "rx.yaml"
        receiver.write_text(
            RECEIVER.format(port=receiver_port or sender_port, keepalive=keepalive, routes=receiver_routes)
        )
        self.ledger = folder / "ledger"
        program = str(Path(__file__).with_name("counting_gateway.py"))
        self.sender = Member(
            folder / "tx.log",
            *sender_in,
            sys.executable,
            program,
            str(self._sender_config),
            str(self.ledger),
            str(rate),
        )
        self.receiver = Member(
            folder / "rx.log", *receiver_in, sys.executable, "-m", "fieldbus", "run", str(receiver)
        )
        self.store = folder / "rx-data" / "history.db"

    def start(self):
        self.sender.start()
        self.receiver.start()
        until(lambda: self.stored > 0, 20, lambda: f"nothing arrives\n{self.said}")

    def works(self):
        """Wait until the sender takes samples and keeps them."""
        before = self.ledger.read_text().count("\nkept ")
        until(lambda: self.ledger.read_text().count("\nkept ") > before + 2, 20, lambda: self.said)

    def burst(self, samples):
        self.ledger.with_name("BURST").write_text(str(samples))
        os.kill(self.sender.pid, signal.SIGUSR1)

    def end(self):
        self.sender.end()
        self.receiver.end()

    @property
    def said(self):
        return f"sender:\n{self.sender.said}\nreceiver:\n{self.receiver.said}"

    @property
    def lives(self):
        """What the ledger says: for each life the first number, how far it is on disk, how far it was given."""
        lives = []
        for line in self.ledger.read_text().splitlines():
            words = line.split()
            if words[0] == "begin":
                lives.append([int(words[1]), int(words[1]), int(words[1])])
            elif words[0] == "kept":
                lives[-1][1:] = int(words[1]), int(words[3])
        return lives

    @property
    def now(self):
        """The last that the sender said of itself."""
        for line in reversed(self.ledger.read_text().splitlines()):
            words = line.split()
            if words[0] == "kept":
                return dict(zip(words[::2], map(int, words[1::2]), strict=True))
        return {"kept": 0, "given": 0, "dropped": 0, "backlog": 0}

    def query(self, question):
        if not self.store.exists():
            return []
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=10)) as connection:
            try:
                return connection.execute(question).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    @property
    def stored(self):
        found = self.query("SELECT max(id) FROM samples")
        return (found[0][0] or 0) if found else 0

    def settle(self, timeout_s=30):
        """End the sender politely when it has nothing left, and wait for the receiver to have it."""
        self.works()
        self.sender.stop()
        want = self.now["given"] - 1
        self.sender.start()
        until(
            lambda: self.has_number(want),
            timeout_s,
            lambda: f"{want} is missing, now {self.now}\n{self.said}",
        )

    def flows(self, timeout_s):
        """Wait until what the sender takes from now on is in the store; return how long that took."""
        self.works()
        begun_s, want = time.monotonic(), self.now["given"]
        until(
            lambda: self.has_number(want),
            timeout_s,
            lambda: f"{want} is missing, now {self.now}\n{self.said}",
        )
        return time.monotonic() - begun_s

    def has_number(self, number):
        found = self.query(
            "SELECT max(value) FROM samples WHERE id > (SELECT max(id) FROM samples) - 20000 AND value IS NOT NULL"
        )
        return bool(found) and (found[0][0] or 0) >= number

    def compare(self, lives=None):
        """Compare the store with the ledger; return how many samples it has."""
        lives = lives or self.lives
        total = 0
        names = self.query("SELECT id, name FROM points")
        assert len(names) == POINTS, names
        for number, name in names:
            values = [
                value
                for (value,) in self.query(
                    f"SELECT value FROM samples WHERE point = {number} AND value IS NOT NULL ORDER BY id"
                )
            ]
            total += len(values)
            late = [b for a, b in itertools.pairwise(values) if b <= a]
            assert not late, f"{name}: {len(late)} doubled or out of order, first {late[:5]}"
            found = set(values)
            for first, kept, _ in lives:
                missing = [n for n in range(first, kept) if n not in found]
                assert not missing, (
                    f"{name}: {len(missing)} acknowledged are lost, {missing[0]} … {missing[-1]}, {lives}\n{self.said}"
                )
        return total


def until(condition, timeout_s, what):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what()}")
        time.sleep(0.05)


@pytest.fixture
def pair(tmp_path, broker):
    found = Pair(tmp_path, broker.port)
    yield found
    found.end()


def test_killed_at_any_moment_nothing_acknowledged_is_lost_and_nothing_comes_twice(pair, broker):
    pair.start()
    chance = random.Random(os.environ.get("FIELDBUS_SEED", "kill"))
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.2, 2.0))
        victims = chance.choice([("sender",), ("sender",), ("receiver",), ("receiver",), ("broker",),
                                 ("sender", "receiver"), ("sender", "broker"), ("receiver", "broker")])  # fmt: skip
        ends = {"sender": pair.sender, "receiver": pair.receiver, "broker": broker}
        for victim in victims:
            ends[victim].kill()
        time.sleep(chance.uniform(0, 0.3))
        for victim in victims:
            ends[victim].start()
    pair.settle()
    total = pair.compare(pair.lives[:-1])
    lives = pair.lives
    acknowledged = sum(kept - first for first, kept, _ in lives[:-1]) * POINTS
    print(f"{KILLS} kills, {acknowledged} acknowledged, {total} stored")


@pytest.mark.parametrize("death", ["stopped", "killed", "frozen"])
def test_whatever_befalls_the_broker_nothing_is_lost(tmp_path, broker, death):
    pair = Pair(tmp_path, broker.port, keepalive="2s")
    try:
        pair.start()
        for away_s in (1.0, 4.0):
            if death == "frozen":
                pid = broker.pid
                os.kill(pid, signal.SIGSTOP)
                time.sleep(away_s)
                os.kill(pid, signal.SIGCONT)
            else:
                broker.stop() if death == "stopped" else broker.kill()
                time.sleep(away_s)
                broker.start()
            print(f"{death} for {away_s} s, all is there after {pair.flows(20):.1f} s")
        pair.settle()
        pair.compare(pair.lives[:-1])
    finally:
        pair.end()


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_acknowledgements_of_the_broker_that_are_swallowed_lose_nothing(tmp_path, broker, side):
    proxy = Proxy(broker.port)
    ports = (proxy.port, broker.port) if side == "sender" else (broker.port, proxy.port)
    pair = Pair(tmp_path, *ports, keepalive="2s")
    try:
        pair.start()
        proxy.swallows = True
        time.sleep(5)
        proxy.swallows = False
        assert proxy.swallowed
        print(f"all is there after {pair.flows(20):.1f} s")
        pair.settle()
        pair.compare(pair.lives[:-1])
    finally:
        pair.end()
        proxy.close()
