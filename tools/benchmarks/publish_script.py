"""Polls devices and publishes what they say, on pymodbus and aiomqtt: a yardstick of `publish.py`.

``python -m benchmarks.publish_script PLC_PORT BROKER_PORT UNIT DEVICES REGISTERS PERIOD_MS SECONDS``:
what one would write for the purpose in an afternoon. It imports nothing of fieldbus.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import sys
import time
from contextlib import suppress

import aiomqtt
import uvloop
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

_HOST = "127.0.0.1"


async def _poll(
    name: str, broker: aiomqtt.Client, port: int, unit: int, registers: int, period_s: float
) -> None:
    device = AsyncModbusTcpClient(_HOST, port=port, timeout=1, retries=0)
    topic = f"plant/script/{name}"
    names = [f"r{address}" for address in range(registers)]
    due_s = time.monotonic()
    while True:
        values: dict[str, int] = {}
        bad: dict[str, str] = {}
        try:
            if not device.connected:
                await device.connect()
            reply = await device.read_holding_registers(0, count=registers, device_id=unit)
            now = datetime.datetime.now(datetime.UTC)
            if reply.isError():
                bad = dict.fromkeys(names, str(reply))
            else:
                values = dict(zip(names, reply.registers, strict=True))
        except ModbusException as error:
            now = datetime.datetime.now(datetime.UTC)
            bad = dict.fromkeys(names, str(error))
        found = {"time": now.isoformat(timespec="microseconds"), "values": values, "bad": bad}
        await broker.publish(topic, json.dumps(found, separators=(",", ":")), qos=1)
        due_s = max(due_s + period_s, time.monotonic())
        await asyncio.sleep(due_s - time.monotonic())


async def _main(
    plc_port: int, broker_port: int, unit: int, devices: int, registers: int, period_ms: int, seconds: int
) -> None:
    async with aiomqtt.Client(_HOST, broker_port, identifier="publish-script") as broker:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for number in range(1, devices + 1):
                    poll = _poll(f"plc{number}", broker, plc_port, unit, registers, period_ms / 1000)
                    tasks.create_task(poll)


if __name__ == "__main__":
    logging.getLogger("mqtt").setLevel(logging.CRITICAL)  # it remarks on every eleventh message under way
    uvloop.run(_main(*map(int, sys.argv[1:])))
