"""Attempts to write while everything goes wrong: kills between wire and record, clocks, interlocks, responses.

In virtual time, so that a budget of a day is a matter of seconds. A kill is what `kill -9` or a power cut leaves:
the audit log as it was at that moment, or as it was synchronised last, and a connection that is cut. How many
attempts there are is said by FIELDBUS_ATTEMPTS (ten times 10,000 with --long), which ones by FIELDBUS_SEED.
"""

import asyncio
import json
import logging
import os
import random
import struct
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
from support.virtual import LATENCY_S, World

from fieldbus.gateway.commands import disk
from fieldbus.gateway.commands.audit import FILE_NAME, Audit, export, verify
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import Instruction

ATTEMPTS = int(os.environ.get("FIELDBUS_ATTEMPTS", "0"))
SEED = int(os.environ.get("FIELDBUS_SEED", "11"))
PORT = 1502
DAY_S = 86400.0
SAFE = 5
BUDGETS = {"daily": 12, "worn": 6}
PLACES = {"a": 0, "b": 10, "pump": 20, "locked": 40, "daily": 60, "worn": 70}
DOOR, WANTED = 80, 82
DONE = ("written", "verified", "unknown outcome")
PLANT = f"""version: 1
gateway: {{name: gw, data_dir: data}}
links:
  plc: {{type: modbus-tcp, host: 127.0.0.1, port: {PORT}, timeout: 400ms}}
devices:
  press:
    link: plc
    scan: 100ms
    points:
      door: {{table: holding, address: {DOOR}, type: uint32}}
      wanted: {{table: holding, address: {WANTED}, type: uint32}}
{{points}}
routes:
  - {{from: press.wanted, to: press.worn}}
access:
  operator: ["press.*"]
guards:
  press.pump: {{fallback: {{after: 1s, value: {SAFE}}}}}
  press.locked: {{only_if: press.door == 1}}
  press.daily: {{non_volatile: {BUDGETS["daily"]}}}
  press.worn: {{non_volatile: {BUDGETS["worn"]}}}
"""


@dataclass
class Attempt:
    """A command, and what was answered each time that it came."""

    id: str
    point: str
    value: int
    payload: bytes
    expires_ns: int
    deadline_s: float = 0.0
    """Virtual time; the latest, if it came more than once."""
    answers: list = field(default_factory=list)


class Plc(asyncio.Protocol):
    """One connection to the machine."""

    def __init__(self, machine):
        self.machine = machine
        self.life = machine.life
        self.data = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data
        while len(self.data) >= 7:
            size = 6 + int.from_bytes(self.data[4:6], "big")
            if len(self.data) < size:
                return
            frame, self.data = self.data[:size], self.data[size:]
            if self.life == self.machine.life:  # what a killed gateway had on its way got lost with it
                self.take(frame[:2], frame[6], frame[7:])

    def take(self, transaction, unit_id, pdu):
        machine = self.machine
        if pdu[0] in (3, 4):
            address, count = struct.unpack(">HH", pdu[1:5])
            words = [machine.words.get(address + n, 0) for n in range(count)]
            answer = struct.pack(f">BB{count}H", pdu[0], 2 * count, *words)
            delay_s = machine.dice.choice([0, 0, 0, 0.02, 0.1])
            self.answer(transaction, unit_id, answer, delay_s)
            return
        address, _ = struct.unpack(">HH", pdu[1:5])
        (value,) = struct.unpack(">I", pdu[6:10])
        fate = machine.fate()
        if fate in ("exception", "lost before", "cut before", "kill before"):
            if fate == "exception":
                self.answer(
                    transaction, unit_id, bytes((pdu[0] | 0x80, machine.dice.choice([1, 2, 3, 4, 6])))
                )
        else:
            machine.execute(address, value)
            if fate == "good":
                self.answer(transaction, unit_id, pdu[:5], machine.dice.choice([0, 0, 0.01, 0.2]))
            elif fate == "late":
                self.answer(transaction, unit_id, pdu[:5], 0.6)
            elif fate == "garbled":
                wrong = machine.dice.choice([pdu[:4], bytes((3, 2, 0, 1)), pdu[:1] + b"\xff" * 4, b"\x90"])
                self.answer(transaction, unit_id, wrong)
        if fate.startswith("cut"):
            self.transport.abort()
        elif fate.startswith("kill"):
            machine.kill()

    def answer(self, transaction, unit_id, pdu, delay_s=0.0):
        frame = transaction + struct.pack(">HHB", 0, len(pdu) + 1, unit_id) + pdu
        asyncio.get_running_loop().call_later(delay_s, self.send, frame)

    def send(self, frame):
        if not self.transport.is_closing():
            self.transport.write(frame)


class Machine:
    """A gateway, a PLC, whoever commands, and whatever goes wrong."""

    def __init__(self, folder, attempts, seed):
        self.folder, self.wanted = folder, attempts
        self.dice = random.Random(seed)
        self.world = World()
        self.clock, self.wall = self.world.clock()
        rows = [
            f"      {name}: {{table: holding, address: {address}, type: uint32, access: readwrite}}"
            for name, address in PLACES.items()
        ]
        self.file = folder / "gw.yaml"
        self.file.write_text(PLANT.replace("{points}", "\n".join(rows)))
        self.audit = folder / "data" / "audit"
        self.words = {DOOR + 1: 1}
        self.life = 0
        """Counts kills: what belongs to an earlier life is lost."""
        self.is_killed = False
        self.left_behind = {}
        self.synced = 0
        self.jumped_s = -10.0
        self.is_calm = True
        self.attempts = {}
        self.executed = []
        """Virtual time, point and value of each write that the PLC has done."""
        self.faults = []
        self.happened = Counter()
        self.number = 1000
        self.gateway = None

    @property
    def may_be_killed(self):
        """Whether the gateway has noticed that its clock was set last."""
        return not self.is_killed and self.world.now_s - self.jumped_s > 1.2

    # --- the PLC

    def fate(self):
        if self.is_calm:
            return "good"
        fates = ["good"] * 8 + [
            "exception",
            "lost before",
            "lost after",
            "late",
            "garbled",
            "cut before",
            "cut after",
        ]
        if self.may_be_killed:
            fates += ["kill before", "kill after"]
        fate = self.dice.choice(fates)
        self.happened[fate] += 1
        return fate

    def execute(self, address, value):
        point = next(name for name, place in PLACES.items() if place == address)
        now_s = self.world.now_s
        self.executed.append((now_s, point, value))
        self.words[address], self.words[address + 1] = value >> 16, value & 0xFFFF
        if (point, value) == ("pump", SAFE) or point == "worn":
            return
        attempt = self.attempts.get(value)
        if attempt is None or attempt.point != point:
            self.faults.append(f"{value} at {point}: nobody commanded that")
            return
        if now_s > attempt.deadline_s + 2 * LATENCY_S:
            self.faults.append(f"{value} at {point}: {now_s - attempt.deadline_s:.4f} s after it expired")
        if self.wall() > attempt.expires_ns + 2e6 and now_s - self.jumped_s > 0.01:
            self.faults.append(f"{value} at {point}: after it expired by the wall clock")
        door = self.gateway.router.sample(self.gateway.plant.points["press.door"])
        if point == "locked" and (door.value, str(door.quality)) != (1, "good"):
            self.faults.append(f"{value} at {point}: the door is {door}")

    # --- the gateway's lives

    async def begin(self):
        self.gateway = Gateway(load(self.file, clock=self.clock))
        self.task = asyncio.create_task(self.gateway.run())
        await asyncio.sleep(0.5)

    async def end(self):
        self.gateway.stop()
        await self.task

    def kill(self):
        """End the process here and now: what is on its disk stays."""
        self.is_killed = True
        self.life += 1
        is_power_cut = self.dice.random() < 0.3
        self.left_behind = {path.name: path.read_bytes() for path in self.audit.iterdir()}
        if is_power_cut and FILE_NAME in self.left_behind:
            content = self.left_behind[FILE_NAME]
            torn = self.dice.choice([0, 0, 40])  # a bit more than was asked for may be on the disk
            self.left_behind[FILE_NAME] = content[: min(len(content), self.synced + torn)]
        self.world.network.cut(PORT)
        self.world.network.refused.add(PORT)  # what would come from the dead
        self.happened["power cut" if is_power_cut else "kill"] += 1

    async def follow_kill(self):
        """Clear away what the killed process would still have done, and begin again."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await asyncio.sleep(1.0)
        for path in self.audit.iterdir():
            path.unlink()
        for name, content in self.left_behind.items():
            (self.audit / name).write_bytes(content)
        self.synced = len(self.left_behind.get(FILE_NAME, b""))
        await self.pause()
        self.is_killed = False
        self.world.network.refused.discard(PORT)
        await self.begin()
        self.give_again()

    async def pause(self):
        """The gateway is down; a clock may be set back meanwhile."""
        await asyncio.sleep(self.dice.choice([0.1, 0.1, 1, 1, 10, 1800, 4 * 3600, 9 * 3600]))
        if self.dice.random() < 0.2:
            self.wall.jump(-self.dice.choice([0.5, 5, 3600, 30 * DAY_S]))

    async def restart(self):
        await self.end()
        await self.pause()
        await self.begin()
        self.give_again()

    def give_again(self):
        """Let the broker deliver to the next life what it is not sure that the one before has got."""
        for attempt in list(self.attempts.values())[-10:]:
            self.give(attempt)

    # --- who commands

    async def attempt(self):
        self.number += 1
        point, value = self.dice.choice(["a", "b", "pump", "locked", "locked", "daily"]), self.number
        now_ns = self.wall()
        expires_s = self.dice.choice([0.05, 0.3, 2, 10, 60])
        age_s = self.dice.choice([0, 0, 0, 0.04, 1, -1])
        data = {"value": value, "id": f"id {value}", "time": now_ns / 1e9 - age_s, "expires": expires_s}
        if data["time"] <= 0:
            return
        payload = json.dumps(data).encode()
        expires_ns = round(data["time"] * 1e9) + round(expires_s * 1e9)
        self.attempts[value] = found = Attempt(data["id"], point, value, payload, expires_ns)
        self.give(found)
        if self.dice.random() < 0.2:  # the broker delivers it once more, perhaps to the next life
            await asyncio.sleep(self.dice.choice([0, 0.001, 0.01, 0.3, 3]))
            self.give(found)

    def give(self, attempt):
        answers = []
        attempt.answers.append(answers)
        left_s = (attempt.expires_ns - self.wall()) / 1e9
        attempt.deadline_s = max(attempt.deadline_s, self.world.now_s + left_s)
        topic = f"fieldbus/gw/command/operator/press/{attempt.point}"
        life = self.life

        def reply(payload):
            if life == self.life:
                answers.append(json.loads(payload)["outcome"])

        self.gateway.desk.instruct(
            Instruction(topic, "operator", f"press.{attempt.point}", attempt.payload, None, False, reply)
        )

    # --- what happens

    def move_the_door(self):
        self.words[DOOR + 1] = 1 - self.words[DOOR + 1]

    def want(self):
        self.number += 1
        self.words[WANTED], self.words[WANTED + 1] = self.number >> 16, self.number & 0xFFFF

    def set_clock(self):
        seconds = self.dice.choice([0.5, 3, 15, 3600, 2 * DAY_S, 100 * DAY_S]) * self.dice.choice([-1, 1])
        if self.dice.random() < 0.1:
            seconds = 50 - self.wall() / 1e9  # 1970
        elif self.wall() < 10**18:
            seconds = 1.79e9 - self.wall() / 1e9  # and back
        if self.wall() + seconds * 1e9 < 10**9:
            return
        self.wall.jump(seconds)
        self.jumped_s = self.world.now_s
        self.happened["clock"] += 1

    async def live(self):
        await asyncio.get_running_loop().create_server(lambda: Plc(self), "127.0.0.1", PORT)
        await self.begin()
        giving = set()
        while len(self.attempts) < self.wanted:
            for _ in range(self.dice.randrange(1, 6)):
                giving.add(asyncio.create_task(self.attempt()))
                await asyncio.sleep(self.dice.choice([0, 0, 0.0003, 0.002, 0.05]))
                if self.is_killed:
                    break
            await asyncio.sleep(self.dice.choice([0, 0.005, 0.05, 0.15]))
            what = self.dice.random()
            if what < 0.25:
                self.move_the_door()
            elif what < 0.29:
                self.want()
            elif what < 0.33:
                self.set_clock()
            elif what < 0.43:
                self.is_calm = self.dice.random() < 0.35
            elif what < 0.435 and self.may_be_killed:
                self.kill()
            elif what < 0.44 and not self.is_killed:
                await asyncio.gather(*giving)
                giving.clear()
                await self.restart()
            if self.is_killed:
                await asyncio.gather(*giving)
                giving.clear()
                await self.follow_kill()
            giving = {task for task in giving if not task.done()}
        await asyncio.gather(*giving)
        self.is_calm = True
        if self.is_killed:
            await self.follow_kill()
        await asyncio.sleep(5)
        await self.end()
        await self.begin()  # so that all that is open is told
        await self.end()

    # --- what must be so

    def check(self):
        assert not self.faults, self.faults[:5]
        commanded = Counter(value for _, point, value in self.executed if point != "worn" and value != SAFE)
        assert not [value for value, times in commanded.items() if times > 1], "done twice"
        records = defaultdict(list)
        for record in export(self.audit):
            if record.get("id"):
                records[record["id"]].append(record)
        for value, attempt in self.attempts.items():
            found = records[attempt.id]
            intents = [record["n"] for record in found if record["outcome"] == "intent"]
            ends = [record for record in found if "intent" in record]
            assert [record["intent"] for record in ends] == intents, found
            assert len(intents) <= 1, found
            is_done = value in commanded
            if is_done:
                assert ends, f"{value} was written, and has no record: {found}"
                assert ends[0]["outcome"] in DONE, ends
            outcomes = {outcome for answers in attempt.answers for outcome in answers}
            if outcomes & {"written", "verified"}:
                assert is_done, attempt
            if ends and ends[0]["outcome"] in ("written", "verified"):
                assert is_done, ends
            assert sum(outcome in DONE for answers in attempt.answers for outcome in answers) <= 1
        for point, budget in BUDGETS.items():
            times = [at_s for at_s, name, _ in self.executed if name == point]
            for at_s, later_s in zip(times, times[budget:], strict=False):
                assert later_s - at_s >= DAY_S - 1, f"{point}: more than {budget} within a day"
        assert not verify(self.audit).faults
        return commanded


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "seed", [SEED, *(pytest.param(SEED + n, marks=pytest.mark.long) for n in range(1, 10))]
)
def test_each_allowed_write_is_done_at_most_once_with_its_record_and_in_time(
    tmp_path, monkeypatch, request, seed
):
    attempts = ATTEMPTS or (10_000 if request.config.getoption("--long") else 3000)
    for name in ("fieldbus", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL)
    machine = Machine(tmp_path, attempts, seed)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    real = Audit.sync

    def sync(audit):
        real(audit)
        if audit._fd is not None and not machine.is_killed:
            machine.synced = os.fstat(audit._fd).st_size

    async def in_loop(self):
        await asyncio.sleep(machine.dice.choice([0, 0, 0.001, 0.01, 0.2]))
        self._sync()
        if not machine.is_calm and machine.may_be_killed and machine.dice.random() < 0.01:
            machine.kill()  # between the disk and the wire

    monkeypatch.setattr(Audit, "sync", sync)
    monkeypatch.setattr(disk.Disk, "_in_thread", in_loop)
    machine.world.run(machine.live())
    commanded = machine.check()
    assert len(commanded) > attempts * 0.1
    for what in ("kill before", "kill after", "power cut", "clock", "garbled", "late"):
        assert machine.happened[what] >= attempts // 1000, machine.happened
    print(f"\n{len(machine.attempts)} attempts, {len(commanded)} done, {dict(machine.happened)}, "
          f"{machine.world.now_s / DAY_S:.1f} days")  # fmt: skip
