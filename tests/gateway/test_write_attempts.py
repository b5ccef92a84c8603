"""Attempts to write, by all ways, by all kinds of actors: what arrives is what was allowed, and all is recorded.

Each attempt has a value of its own, so that what the PLC was told says which attempts they were. How many
there are is said by FIELDBUS_ATTEMPTS, which ones by FIELDBUS_SEED.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import sys
import time
from collections import Counter

import aiomqtt
import pytest
from conftest import eventually
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import MQTTException, Properties
from recording_plc import RecordingPlc

from fieldbus.cli.run import load_again
from fieldbus.gateway.commands.audit import FILE_NAME, export, verify
from fieldbus.gateway.commands.command import Command
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer, ask
from fieldbus.gateway.runtime import Gateway
from fieldbus.mqtt.peering import sign

ATTEMPTS = int(os.environ.get("FIELDBUS_ATTEMPTS", "3000"))
SEED = int(os.environ.get("FIELDBUS_SEED", "5"))
BURST = 120
KEY = "a key that nobody sees"
HIGHEST = 4_000_000_000
SAFE = 5
BUDGET = 40
OVERTAKEN = "the point went to its safe value while this waited for the disk"
LATE_S = 0.25
"""How late what was sent in time may be seen here, where all share two processors."""

PLACES = {"a": 0, "b": 10, "pump": 20, "routed": 30, "locked": 40, "armed": 50, "daily": 60, "slow": 70}
FREE = ("a", "b", "pump")
"""What only range, step and access protect."""

PLANT = """version: 1
gateway: {{name: gw, data_dir: gw, audit: {{routes: each}}}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {plc}, timeout: 3s}}
  broker: {{type: mqtt, host: 127.0.0.1, port: {broker}}}
devices:
  press:
    link: plc
    scan: 100ms
    points:
      door: {{table: holding, address: 80}}
{points}
  remote:
    link: broker
    points:
      wanted: {{topic: plant/wanted, type: uint32}}
routes:
  - {{from: remote.wanted, to: press.routed}}
access:
  operator: ["press.*"]
  signer: {{points: ["press.*"], key: {{env: FIELDBUS_TEST_KEY}}}}
  viewer: ["oven.*"]
  panel: [press.a, press.b]
  local: [press.a, press.b, press.pump, press.locked]
guards:
  press.pump: {{fallback: {{after: 300ms, value: {safe}}}, step: 5}}
  press.locked: {{only_if: press.door == 1, step: 5}}
  press.armed: {{confirm: true}}
  press.daily: {{non_volatile: {budget}}}
  press.slow: {{min_interval: 1h}}
  press.a: {{step: 5}}
  press.b: {{step: 5}}
  press.routed: {{step: 5}}
"""
PANEL = """version: 1
gateway: {{name: panel, data_dir: panel}}
links:
  broker: {{type: mqtt, host: 127.0.0.1, port: {broker}}}
devices:
  far: {{link: broker, type: gateway, gateway: gw}}
"""


class Books:
    """What was tried, what of it had to be done, and what was recorded."""

    def __init__(self, file):
        self.file = file
        self.tried = Counter()
        """By way, actor and point."""
        self.armed = 0
        self.sure = {}
        """Value to way and point: what has to arrive."""
        self.perhaps = {}
        """The same of what may arrive, if it does so before a moment (monotonic)."""
        self.records = []
        self.fallbacks = []
        self.intents = []
        self._offset = 0

    def read(self):
        """Take what was recorded since, and return how many attempts are not recorded yet."""
        if self.file.exists():
            with self.file.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    record = json.loads(line)
                    if record["outcome"] == "intent":
                        self.intents.append(record)
                    else:
                        (self.fallbacks if record["way"] == "fallback" else self.records).append(record)
        return self.tried.total() - len(self.records)


class Machine:
    """Two gateways, a broker, a PLC, and whoever tries."""

    def __init__(self, folder, broker, plc):
        self.folder, self.broker, self.plc = folder, broker, plc
        self.random = random.Random(SEED)
        self.file = folder / "gw.yaml"
        rows = [
            f"      {name}: {{table: holding, address: {address}, type: uint32, access: readwrite, "
            f"min: 0, max: {HIGHEST}}}"
            for name, address in PLACES.items()
        ]
        self.file.write_text(
            PLANT.format(plc=plc.port, broker=broker.port, points="\n".join(rows), safe=SAFE, budget=BUDGET)
        )
        (folder / "panel.yaml").write_text(PANEL.format(broker=broker.port))
        self.books = Books(folder / "gw" / "audit" / FILE_NAME)
        self.number = 1
        self.done_ids = []
        """Commands that were let through: topic, payload, signature."""
        self.left = {"daily": BUDGET, "slow": 1}
        self.is_door_closed = False
        self.answers = {}
        self.wanted_answers = {}
        self.panel_tried = 0
        self.running = {}
        self.client = None
        self.hearing = None

    # --- what is there

    async def begin(self, name):
        gateway = Gateway(load(self.folder / f"{name}.yaml"), load=load_again)
        door = ControlServer(gateway, gateway.load_again)
        tasks = [asyncio.create_task(gateway.run()), asyncio.create_task(door.run())]
        self.running[name] = gateway, tasks
        await eventually((gateway.plant.data_dir / "gateway.json").exists)

    async def end(self, name):
        gateway, tasks = self.running.pop(name)
        gateway.stop()
        await asyncio.wait_for(tasks[0], 10)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def gateway(self):
        return self.running["gw"][0]

    @property
    def panel(self):
        return self.running["panel"][0]

    def is_up(self):
        link = self.panel.plant.links["broker"]
        return (
            self.gateway.plant.links["broker"]._is_running
            and self.gateway.router.sample(self.gateway.plant.points["sys.plc.connected"]).value
            and link._is_running
            and link._peers.is_online("gw")
            and "far.press.a" in self.panel.plant.points
        )

    async def come(self):
        self.client = aiomqtt.Client("127.0.0.1", self.broker.port, protocol=aiomqtt.ProtocolVersion.V5)
        await self.client.__aenter__()
        await self.client.subscribe("fieldbus/tester/answer/gw", qos=1)
        self.hearing = asyncio.create_task(self.hear(self.client))

    async def hear(self, client):
        async for message in client.messages:
            answer = json.loads(message.payload)
            self.answers.setdefault(answer["id"], []).append(answer["outcome"])

    async def go(self):
        self.hearing.cancel()
        await asyncio.gather(self.hearing, return_exceptions=True)
        with contextlib.suppress(aiomqtt.MqttError):
            await self.client.__aexit__(None, None, None)

    # --- attempts on topics

    def value(self):
        self.number += 1
        return 5 * self.number

    def publish(self, actor, point, payload, signature=None, *, is_answered=False):
        topic = f"fieldbus/gw/command/{actor}/press/{point}"
        properties = Properties(PacketTypes.PUBLISH)
        if signature is not None:
            properties.UserProperty = ("signature", signature)
        if is_answered:
            properties.ResponseTopic = "fieldbus/tester/answer/gw"
        self.books.tried["mqtt", actor, f"press.{point}"] += 1
        return self.client.publish(topic, payload, qos=1, properties=properties)

    def command(self, actor, point, value, *, is_good=False, signature=..., is_remembered=True, **changes):
        """Return the publishing of a command; `is_good` if it has to be done."""
        id_ = f"{self.number}-{self.random.random()}"
        data = {"value": value, "id": id_, "time": time.time(), "expires": 60} | changes
        payload = json.dumps({key: item for key, item in data.items() if item is not ...}).encode()
        if signature is ...:
            topic = f"fieldbus/gw/command/{actor}/press/{point}"
            signature = sign(KEY.encode(), topic, payload) if actor == "signer" else None
        if is_good:
            self.books.sure[value] = "mqtt", point
            if is_remembered:
                self.done_ids.append((actor, point, payload, signature))
        is_answered = is_good and data["id"] == id_ and self.random.random() < 0.2
        if is_answered:
            self.wanted_answers[id_] = "written"
        return self.publish(actor, point, payload, signature, is_answered=is_answered)

    def good(self):
        actor, point = self.random.choice(["operator", "signer"]), self.random.choice(FREE)
        return [self.command(actor, point, self.value(), is_good=True)]

    def not_allowed(self):
        actor = self.random.choice(
            ["mallory", "viewer", "local", "route", "fallback", "Operator", "operator ", "ä"]
        )
        return [self.command(actor, self.random.choice(FREE), self.value())]

    def beyond_what_is_allowed(self):
        return [self.command("panel", self.random.choice(["pump", "daily", "slow"]), self.value())]

    def badly_signed(self):
        other = sign(KEY.encode(), "fieldbus/gw/command/signer/press/a", b"{}")
        signature = self.random.choice([None, "", "0" * 64, "ä" * 64, other, KEY])
        return [self.command("signer", self.random.choice(FREE), self.value(), signature=signature)]

    def out_of_range(self):
        value = self.random.choice([-self.value(), HIGHEST + self.value(), 10**40, -(10**400), 1e300, 2**32])
        return [self.command("operator", self.random.choice(FREE), value)]

    def between_steps(self):
        return [
            self.command("operator", self.random.choice(FREE), self.value() + self.random.randrange(1, 5))
        ]

    def of_another_kind(self):
        value = self.random.choice(
            [True, False, None, [self.value()], {}, "open", str(self.value()), self.value() + 0.5]
        )
        return [self.command("operator", self.random.choice(FREE), value)]

    def at_another_time(self):
        moment = self.random.choice([
            time.time() - 61, time.time() - 1e6, time.time() + 60, 0, -1, "now", None, ..., "2026-11-27T10:00:00",
        ])  # fmt: skip
        return [self.command("operator", self.random.choice(FREE), self.value(), time=moment)]

    def malformed(self):
        payload = self.random.choice([
            b"", b"\xff\xfe", b"5", b"[]", b"{", b"[" * 3000, b"x" * 5000, b'{"value": NaN, "id": "a", "time": 1}',
            json.dumps({"value": self.value(), "id": "x", "time": time.time(), "force": True}).encode(),
            json.dumps({"value": self.value(), "id": "\ud800" * 200, "time": time.time()}).encode(),
            json.dumps({"value": self.value(), "id": "", "time": time.time()}).encode(),
            json.dumps({"value": self.value(), "id": "x", "time": time.time(), "mode": "force"}).encode(),
            json.dumps({"value": self.value(), "id": "x", "time": time.time(), "expires": 1e9}).encode(),
        ])  # fmt: skip
        return [self.publish("operator", self.random.choice(FREE), payload)]

    def nowhere(self):
        point = self.random.choice(["door", "none", "a/b", "a.b", "A", " a", "a ", "x" * 1000, "", "ä", "*"])
        data = {"value": self.value(), "id": str(self.number), "time": time.time()}
        coming = self.publish("operator", point, json.dumps(data).encode())
        if len(point) > 600:  # no point's name is so long, and none is recorded
            self.books.tried["mqtt", "operator", f"press.{point}"] -= 1
            self.books.tried["mqtt", "operator", f"press.{point}"[:500]] += 1
        return [coming]

    def replayed(self):
        if not self.done_ids:
            return []
        actor, point, payload, signature = self.random.choice(self.done_ids[-300:])
        if self.random.random() < 0.5:
            return [self.publish(actor, point, payload, signature)]
        other = json.loads(payload)
        other["value"] = self.value()  # the same id, another value, perhaps another point
        return [self.command(actor, self.random.choice(FREE), **other)]

    def twice_at_once(self):
        """One id for two points, on its way at the same time; another actor may have the same id."""
        id_ = f"twin {self.number}"
        first = self.command("operator", "a", self.value(), is_good=True, is_remembered=False, id=id_)
        again = self.command("operator", "a", self.value(), id=id_)
        other = self.command("signer", "b", self.value(), is_good=True, is_remembered=False, id=id_)
        return [first, again, other]

    def limited(self):
        point = self.random.choice(["daily", "slow"])
        is_good = self.left[point] > 0
        self.left[point] -= is_good
        return [self.command("operator", point, self.value(), is_good=is_good)]

    def interlocked(self):
        return [self.command("operator", "locked", self.value(), is_good=self.is_door_closed)]

    def confirmed(self):
        value = self.value()
        self.books.armed += 1
        coming = [
            self.command("operator", "armed", value, mode="execute"),
            self.command("operator", "armed", value),
            self.command("operator", "armed", value, mode="arm"),
            self.command("signer", "armed", value, mode="execute"),
            self.command("operator", "armed", self.value(), mode="execute"),
            self.command("operator", "armed", value, mode="execute", is_good=True, is_remembered=False),
            self.command("operator", "armed", value, mode="execute"),
        ]
        return coming

    # --- attempts by other ways

    async def at_the_door(self, count):
        for _ in range(count):
            point = self.random.choice([*FREE, "locked", "daily", "door", "none"])
            value = self.value()
            is_good = point in FREE or (point == "locked" and self.is_door_closed)
            if self.random.random() < 0.4:
                value, is_good = (
                    self.random.choice([value + 1, -value, None, "x", 0.5, True, float("nan"), 10**40]),
                    False,
                )
            if is_good:
                self.books.sure[value] = "local", point
            self.books.tried["local", "local", f"press.{point}"] += 1
            request = {"do": "write", "point": f"press.{point}", "value": value, "expires_s": 30}
            answer = await ask(self.gateway.plant.data_dir, request)
            assert (answer["outcome"] == "written") is is_good, answer

    async def from_afar(self, count):
        """Somebody at the other gateway writes points of this one."""
        await asyncio.gather(*(self.one_from_afar() for _ in range(count)))

    async def one_from_afar(self):
        point, value = self.random.choice(["a", "b", "pump"]), self.value()
        is_good = point != "pump"
        kind = self.random.choice(["good", "good", "good", "between steps", "out of range"])
        if kind != "good":
            value, is_good = (value + 1 if kind == "between steps" else -value), False
        if kind != "out of range":  # of that the other one knows too, and does not even ask
            self.books.tried["mqtt", "panel", f"press.{point}"] += 1
        if is_good:
            self.books.sure[value] = "panel", point
        self.panel_tried += 1
        answer = await self.panel.desk.execute(
            Command("local", "the test", "local", f"far.press.{point}", value)
        )
        assert (str(answer.outcome) in ("written", "verified")) is is_good, answer.reason

    async def by_route(self):
        value = self.value()
        is_good = self.random.random() < 0.6
        if not is_good:
            value = self.random.choice([value + 1, HIGHEST + value])
        self.books.tried["route", "route", "press.routed"] += 1
        if is_good:
            self.books.sure[value] = "route", "routed"
        await self.client.publish("plant/wanted", str(value), qos=1)

    # --- what happens

    async def burst(self, count):
        kinds = [
            self.good, self.good, self.good, self.not_allowed, self.beyond_what_is_allowed, self.badly_signed,
            self.out_of_range, self.between_steps, self.of_another_kind, self.at_another_time, self.malformed,
            self.nowhere, self.replayed, self.replayed, self.twice_at_once, self.limited, self.interlocked,
            self.confirmed,
        ]  # fmt: skip
        coming = []
        while len(coming) < count:
            coming += self.random.choice(kinds)()
        await asyncio.gather(
            *coming,
            self.at_the_door(max(1, count // 12)),
            self.from_afar(count // 20),
            self.by_route(),
        )
        await self.settle()

    async def settle(self):
        await eventually(lambda: self.books.read() <= 0, 30, "each attempt is recorded")
        assert self.books.read() == 0

    async def stall(self):
        """The PLC does not answer until what waits for it is too old."""
        self.plc.answers.clear()
        given_s = time.monotonic()
        coming = []
        for _ in range(10):
            value = self.value()
            point = self.random.choice(FREE)
            self.books.perhaps[value] = "mqtt", point, time.monotonic() + 0.2 + LATE_S
            coming.append(self.command("operator", point, value, expires=0.2))
        await asyncio.gather(*coming)
        await asyncio.sleep(max(0.0, given_s + 0.6 - time.monotonic()))
        self.plc.answers.set()
        await self.settle()

    async def move_the_door(self):
        self.is_door_closed = not self.is_door_closed
        self.plc.words["holding", 80] = int(self.is_door_closed)
        door = self.gateway.plant.points["press.door"]
        await eventually(lambda: self.gateway.router.sample(door).value == int(self.is_door_closed))

    async def broker_restarts(self):
        await self.go()
        self.broker.stop()
        await eventually(lambda: not self.is_up())
        self.broker.start()
        await self.come()
        await eventually(self.is_up, 20, "all are back")

    async def connection_is_taken(self):
        """Somebody comes under the gateway's client id; what is under way then may be lost, never done twice."""
        coming = []
        for _ in range(20):
            value, point = self.value(), self.random.choice(FREE)
            self.books.perhaps[value] = "mqtt", point, time.monotonic() + 60
            coming.append(self.command("operator", point, value))
        before = self.books.tried.copy()
        async with aiomqtt.Client(
            "127.0.0.1",
            self.broker.port,
            identifier="fieldbus-gw-broker",
            protocol=aiomqtt.ProtocolVersion.V5,
        ):
            await asyncio.gather(*coming)
        await asyncio.sleep(0)
        await eventually(self.is_up, 20, "all are back")
        await asyncio.sleep(0.1)
        # What arrived is recorded; what did not was never tried here.
        self.books.tried = before
        missing = self.books.read()
        assert 0 <= missing <= 20
        seen = Counter((record["way"], record["actor"], record["point"]) for record in self.books.records)
        self.books.tried = seen + Counter()

    async def gateway_restarts(self):
        await self.end("gw")
        await self.begin("gw")
        await eventually(self.is_up, 20, "all are back")
        if self.is_door_closed:
            door = self.gateway.plant.points["press.door"]
            await eventually(lambda: self.gateway.router.sample(door).value == 1)

    async def by_the_program(self):
        """`fieldbus write`, as a person types it."""
        for value, code in ((self.value(), 0), (self.value() + 1, 1)):
            self.books.tried["local", "local", "press.a"] += 1
            if not code:
                self.books.sure[value] = "local", "a"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fieldbus", "write", str(self.file), f"press.a={value}",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            said, _ = await process.communicate()
            assert process.returncode == code, said

    async def work(self):
        """Try and try again, while all sorts of things happen."""
        await self.begin("gw")
        await self.begin("panel")
        await eventually(self.is_up, 20, "all are there")
        await self.come()
        rare = [
            self.stall, self.move_the_door, self.broker_restarts, self.connection_is_taken,
            self.gateway_restarts, self.by_the_program, self.move_the_door, self.stall,
        ]  # fmt: skip
        wanted = len(rare) * max(1, ATTEMPTS // 10_000)
        happened = 0
        while self.books.tried.total() < ATTEMPTS or happened < wanted:
            await self.burst(BURST)
            if happened * ATTEMPTS < wanted * self.books.tried.total():
                await rare[happened % len(rare)]()
                happened += 1
        await eventually(lambda: set(self.wanted_answers) <= set(self.answers), 10, "all are answered")

    async def end_all(self):
        if self.hearing is not None:
            await self.go()
        for name in ("panel", "gw"):
            if name in self.running:
                await self.end(name)
        self.books.read()

    # --- what must be true

    def told(self):
        """Return what the PLC was told: moment, point, value."""
        names = {address: name for name, address in PLACES.items()}
        found = []
        for request in self.plc.requests:
            assert len(request.words) == 2
            found.append((request.at_s, names[request.address], request.words[0] << 16 | request.words[1]))
        return found

    def check(self):
        books = self.books
        told = self.told()
        commanded = [(at_s, point, value) for at_s, point, value in told if (point, value) != ("pump", SAFE)]
        count = Counter(value for _, _, value in commanded)
        assert not [value for value, times in count.items() if times > 1], "done twice"
        places = {value: point for _, point, value in commanded}
        # A disk that takes long lets a safe value overtake; then what was given before is not written after it.
        overtaken = {record["value"] for record in books.records if record["reason"] == OVERTAKEN}
        missing = [
            (value, place)
            for value, place in books.sure.items()
            if places.get(value) != place[1] and not (place[1] == "pump" and value in overtaken)
        ]
        assert not missing, f"allowed, and not done: {missing[:5]}"
        for at_s, point, value in commanded:
            if value not in books.sure:
                assert value in books.perhaps, f"not allowed, and done: {point} {value}"
                _, place, until_s = books.perhaps[value]
                assert point == place
                assert at_s <= until_s, f"done {at_s - until_s:.3f} s too late"
        for way in ("mqtt", "local", "panel", "route"):
            for name in PLACES:
                values = [
                    v for _, point, v in commanded if point == name and books.sure.get(v, ("",))[0] == way
                ]
                assert values == sorted(values), f"{way} to {name} in another order"
        recorded = Counter((record["way"], record["actor"], record["point"]) for record in books.records)
        assert recorded == books.tried
        done = [record["value"] for record in books.records if record["outcome"] in ("written", "routed")]
        assert Counter(done) == count
        outcomes = Counter(record["outcome"] for record in books.records)
        assert outcomes["armed"] == books.armed
        assert set(outcomes) <= {"written", "routed", "refused", "expired", "armed"}, outcomes
        safe = sum(record["outcome"] == "written" for record in books.fallbacks)
        assert safe == len(told) - len(commanded)
        assert safe > 0
        found = verify(books.file.parent)
        assert not found.faults
        assert not found.torn
        assert found.records == len(books.records) + len(books.fallbacks) + len(books.intents)
        ended = {record["intent"] for record in books.records if "intent" in record}
        assert ended == {record["n"] for record in books.intents}
        written = [record for record in books.records if record["outcome"] == "written"]
        assert all("intent" in record for record in written)
        text = books.file.read_bytes()
        assert KEY.encode() not in text
        return outcomes


@pytest.mark.system
@pytest.mark.timeout(60 + ATTEMPTS // 50)
async def test_what_arrives_is_what_was_allowed_and_every_attempt_is_recorded(tmp_path, broker, monkeypatch):
    monkeypatch.setenv("FIELDBUS_TEST_KEY", KEY)
    logging.getLogger("mqtt").setLevel(logging.ERROR)  # it warns of many messages under way
    begun_s = time.monotonic()
    async with RecordingPlc() as plc:
        machine = Machine(tmp_path, broker, plc)
        try:
            await machine.work()
        finally:
            await machine.end_all()
        outcomes = machine.check()
        assert all(machine.answers[id_] == [outcome] for id_, outcome in machine.wanted_answers.items())
        found = [record for record in export(tmp_path / "panel" / "audit") if record["outcome"] != "intent"]
        assert len(found) == machine.panel_tried
    print(f"\n{machine.books.tried.total()} attempts, {len(plc.requests)} writes at the PLC, {dict(outcomes)}, "
          f"{len(machine.books.fallbacks)} safe values, {time.monotonic() - begun_s:.0f} s")  # fmt: skip


@pytest.mark.system
@pytest.mark.parametrize(
    "topic",
    [
        "plant/wanted", "fieldbus/gw/status", "fieldbus/gw/command/operator/press/a", "fieldbus/panel/answer/other",
        "fieldbus/panel/answer/gw/x", "fieldbus/answer/gw", "other/panel/answer/gw", "", "#", "fieldbus/+/answer/gw",
    ],
)  # fmt: skip
async def test_nobody_has_a_gateway_publish_where_he_may_not_himself(tmp_path, broker, monkeypatch, topic):
    """The answer holds the value that was asked for: on a topic of the plant it would be a command."""
    monkeypatch.setenv("FIELDBUS_TEST_KEY", KEY)
    async with RecordingPlc() as plc:
        machine = Machine(tmp_path, broker, plc)
        await machine.begin("gw")
        try:
            await eventually(lambda: machine.gateway.plant.links["broker"]._is_running)
            await machine.come()
            await machine.client.subscribe("#", qos=1)
            heard = []
            machine.hearing.cancel()
            machine.hearing = asyncio.create_task(listen(machine.client, heard))
            for actor, answer_to in (
                ("mallory", topic),
                ("operator", topic),
                ("mallory", "fieldbus/x/answer/gw"),
            ):
                properties = Properties(PacketTypes.PUBLISH)
                with contextlib.suppress(MQTTException):  # our own library knows that it is no topic
                    properties.ResponseTopic = answer_to
                data = {"value": 995, "id": f"{actor} {answer_to}", "time": time.time()}
                await machine.client.publish(
                    f"fieldbus/gw/command/{actor}/press/a", json.dumps(data), qos=1, properties=properties
                )
            await eventually(lambda: "fieldbus/x/answer/gw" in heard)
        finally:
            await machine.end_all()
    assert [place for place in heard if "/command/" not in place and "/answer/gw" in place] == [
        "fieldbus/x/answer/gw"
    ]
    assert topic not in [place for place in heard if place != "fieldbus/gw/status"] or "/command/" in topic
    assert heard.count("fieldbus/gw/command/operator/press/a") == 1
    assert heard.count("fieldbus/gw/status") == 1


async def listen(client, heard):
    async for message in client.messages:
        heard.append(str(message.topic))
