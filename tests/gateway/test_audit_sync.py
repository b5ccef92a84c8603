"""The audit log on a disk that hangs or fails: nothing else waits, and the log says it once."""

import asyncio
import errno
import logging
import os
import threading
import time

import pytest
from conftest import eventually, free_port

from fieldbus.clock import Clock
from fieldbus.gateway import runtime
from fieldbus.gateway.commands import audit_sync
from fieldbus.gateway.commands.audit import Audit
from fieldbus.gateway.commands.audit_sync import HANGS_S, AuditSync
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway

PLANT = """
version: 1
gateway: {name: a, data_dir: data}
links:
  hmi: {type: modbus-server, host: 127.0.0.1, port: PORT}
devices:
  panel: {link: hmi, unit_id: 1, points: {speed: {table: holding, address: 0}}}
"""


class Bench:
    """A log that nothing writes, on a disk that is a future."""

    def __init__(self, folder):
        self.now_s, self.begun = 100.0, 0
        self.audit = Audit(folder)
        self.disk = None
        self.subject = AuditSync(self.audit, self.settle, Clock(lambda: self.now_s, lambda: 0))

    async def settle(self):
        self.begun += 1
        self.disk = asyncio.get_running_loop().create_future()
        await self.disk

    async def begin(self, now_s):
        self.now_s = now_s
        self.subject.begin()
        for _ in range(3):
            await asyncio.sleep(0)


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
async def bench(tmp_path):
    found = Bench(tmp_path)
    yield found
    await found.subject.close()


async def test_a_hanging_disk_is_logged_once_and_so_is_its_end(bench, tmp_path, caplog):
    caplog.set_level(logging.INFO, "fieldbus")
    await bench.begin(100.0)
    await bench.begin(100.0 + HANGS_S - 0.001)
    assert (errors(caplog), bench.subject.trouble) == ([], None)
    for now_s in (100.0 + HANGS_S, 110.0, 200.0):
        await bench.begin(now_s)
        assert bench.subject.trouble == "the disk does not respond"
    file = tmp_path / "audit.jsonl"
    said = f"audit: {file} cannot be synchronised to the disk (the disk does not respond)"
    assert errors(caplog) == [said]
    assert bench.begun == 1
    bench.disk.set_result(None)
    await bench.begin(201.0)
    assert bench.subject.trouble is None
    assert caplog.messages == [said, f"audit: {file} is synchronised to the disk again"]
    await bench.begin(202.0)
    assert bench.begun == 2


async def test_a_disk_that_fails_is_tried_again_and_logged_once(bench, caplog):
    for now_s in (100.0, 101.0, 102.0):
        await bench.begin(now_s)
        bench.disk.set_exception(OSError(errno.EIO, "Input/output error"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert (bench.subject.trouble, bench.audit.trouble) == ("input/output error", "input/output error")
    assert bench.begun == 3
    assert [text.rsplit("disk ", 1)[1] for text in errors(caplog)] == ["(input/output error)"]


def test_a_gateway_whose_disk_hangs_keeps_house_and_ends(tmp_path, monkeypatch, caplog):
    (tmp_path / "plant.yaml").write_text(PLANT.replace("PORT", str(free_port())))
    hangs = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: hangs.wait(60))
    monkeypatch.setattr(runtime, "STATUS_PERIOD_S", 0.02)
    monkeypatch.setattr(audit_sync, "HANGS_S", 0.1)
    monkeypatch.setattr(audit_sync, "CLOSE_S", 0.1)

    async def main():
        gateway = Gateway(load(tmp_path / "plant.yaml"))
        turns = []
        monkeypatch.setattr(gateway.desk, "mind_clock", lambda: turns.append(None))
        running = asyncio.create_task(gateway.run())
        assert gateway.audit.record(0, {"way": "audit"})
        await eventually(lambda: gateway.health()["audit"]["trouble"] == "the disk does not respond")
        before = len(turns)
        await eventually(lambda: len(turns) >= before + 5)
        gateway.stop()
        await asyncio.wait_for(running, 20)

    begun_s = time.monotonic()
    try:
        with asyncio.Runner() as runner:
            runner.run(main())
        assert not hangs.is_set()
        assert time.monotonic() - begun_s < 50
    finally:
        hangs.set()
    assert [text.partition(" ")[2].partition("audit.jsonl ")[2] for text in errors(caplog)] == [
        "cannot be synchronised to the disk (the disk does not respond)",
        "may not be on the disk (the disk does not respond)",
    ]


async def test_a_command_on_a_disk_that_hangs_gives_up(tmp_path, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: hangs.wait(60))
    monkeypatch.setattr(audit_sync, "CLOSE_S", 0.05)
    audit = Audit(tmp_path)
    assert audit.record(0, {"way": "local"})
    try:
        assert await audit_sync.settle(audit, 0.05) == "the disk does not respond"
        await audit_sync.close(audit)
    finally:
        hangs.set()
