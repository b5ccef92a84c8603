"""Requests and tags a second: 125 holding registers, read in a loop on one connection.

fieldbus is the whole client link as the gateway runs it (connection, check of the reply, block
reader, clock, emitted batch), with a period so short that the next poll is always due; pymodbus its
own client as it comes, in the same event loop; libmodbus a loop in C. All of them read the same
simulated PLC, in turns.

Design: master and PLC share one core. They never work at the same time, and waking another core takes
a virtual machine longer than anything that is to be measured, and never twice the same.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from pymodbus.client import AsyncModbusTcpClient

from fieldbus.gateway import loop
from fieldbus.link import DeviceHealth, WriteResult
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.units import Unit
from fieldbus.model import Batch

from .blocks import uint16_points
from .measure import Row, Span, Yardstick, in_turns, rate_text, ratio
from .peers import CHANGING_UNIT, CONSTANT_UNIT, MasterResult, Peers, cpu_seconds, master_result

REGISTERS = 125
_AT_ONCE_S = 1e-9
_CASES = {"nothing changes": CONSTANT_UNIT, "all values change": CHANGING_UNIT}

Poll = Callable[[int, int, float], MasterResult]
"""Reads, from the PLC at a port, a unit, for so many seconds."""


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return a row for registers that stay as they are, and one for registers that all change."""
    rounds, seconds = span.choose(9, 3), span.choose(0.5, 0.25)
    masters: dict[str, Poll] = {"fieldbus": _in_loop(_poll_with_fieldbus)}
    if peers.no_master is None:
        masters["libmodbus"] = _with_libmodbus(peers)
    masters["pymodbus"] = _in_loop(_poll_with_pymodbus)
    with _on_one_core(), peers.plc() as plc:
        turns = {
            (name, unit_id): _bound(poll, plc.port, unit_id, seconds)
            for name, poll in masters.items()
            for unit_id in _CASES.values()
        }
        spent_s = cpu_seconds(plc.pid)
        done = in_turns(rounds, turns)
        requests = sum(result.requests for results in done.values() for result in results)
        plc_s = (cpu_seconds(plc.pid) - spent_s) / requests
    rows = []
    for case, unit_id in _CASES.items():
        reached = {name: [item.requests / item.seconds for item in done[name, unit_id]] for name in masters}
        costs = [f"{name} {_cost_us(done[name, unit_id]):.1f} µs" for name in masters]
        note = f"CPU a request: {', '.join(costs)}; the PLC {plc_s * 1e6:.1f} µs"
        own = reached["fieldbus"]
        rows.append(
            Row(
                f"read {REGISTERS} registers in a loop, {case}",
                f"{rate_text(median(own))} requests\n{rate_text(median(own) * REGISTERS)} tags",
                [
                    Yardstick(f"libmodbus in C: {peers.no_master}")
                    if peers.no_master
                    else Yardstick(
                        f"libmodbus in C {rate_text(median(reached['libmodbus']))}",
                        ratio(own, reached["libmodbus"]),
                    ),
                    Yardstick(
                        f"pymodbus as it comes {rate_text(median(reached['pymodbus']))}",
                        ratio(own, reached["pymodbus"]),
                    ),
                ],
                note + (" (in Python: no gcc)" if peers.plc_is_slow else ""),
            )
        )
    return rows


def _cost_us(results: Sequence[MasterResult]) -> float:
    return median(item.cpu_s / item.requests for item in results) * 1e6


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep this process, and what it starts, on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _bound(poll: Poll, port: int, unit_id: int, seconds: float) -> Callable[[], MasterResult]:
    return lambda: poll(port, unit_id, seconds)


def _in_loop(poll: Callable[[int, int, float], Coroutine[None, None, MasterResult]]) -> Poll:
    return lambda port, unit_id, seconds: loop.run(poll(port, unit_id, seconds))


async def _poll_with_fieldbus(port: int, unit_id: int, seconds: float) -> MasterResult:
    unit = Unit("plc", unit_id, uint16_points("plc", REGISTERS), scan_s=_AT_ONCE_S, timeout_s=5.0)
    link = ModbusClientLink("plc_net", TcpPlace("127.0.0.1", port), [unit])
    batches = changes = 0

    def emit(batch: Batch) -> None:
        nonlocal batches, changes
        batches += 1
        changes += len(batch.changed)

    await link.connect()
    polling = asyncio.create_task(link.run(emit, _ignore))
    await asyncio.sleep(seconds / 10)
    batches = changes = 0
    began_s, spent_s = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    done = MasterResult(batches, time.monotonic() - began_s, time.process_time() - spent_s)
    polling.cancel()
    await asyncio.wait([polling])
    await link.close()
    if changes != (batches * REGISTERS if unit_id == CHANGING_UNIT else 0):
        raise RuntimeError(f"{batches} batches with {changes} changes are not what was to be measured")
    return done


def _ignore(_event: DeviceHealth | WriteResult) -> None:
    """The device answers: nothing to do."""


async def _poll_with_pymodbus(port: int, unit_id: int, seconds: float) -> MasterResult:
    client = AsyncModbusTcpClient("127.0.0.1", port=port)
    await client.connect()
    replies = 0
    began_s, spent_s = time.monotonic(), time.process_time()
    now_s = began_s
    while now_s - began_s < seconds:
        reply = await client.read_holding_registers(0, count=REGISTERS, device_id=unit_id)
        if len(reply.registers) != REGISTERS:
            raise RuntimeError("pymodbus read something else")
        replies += 1
        now_s = time.monotonic()
    done = MasterResult(replies, now_s - began_s, time.process_time() - spent_s)
    client.close()
    return done


def _with_libmodbus(peers: Peers) -> Poll:
    def poll(port: int, unit_id: int, seconds: float) -> MasterResult:
        with peers.master(port, range(unit_id, unit_id + 1), 1, REGISTERS, 0.0, seconds) as process:
            return master_result(process, seconds + 10)

    return poll
