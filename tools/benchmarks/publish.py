"""Poll and publish: 100 devices x 100 ``uint16`` that all change, to a broker, one message a device.

Three contestants: ``fieldbus run`` with a route that gathers for each device, a script on pymodbus and
aiomqtt (`publish_script.py`), a program on libmodbus and libmosquitto (`publish.c`). Each has a TCP
connection per device to the same simulated PLC and publishes JSON of the same shape, QoS 1, not
retained, to the same mosquitto.

* Once a second: CPU of the process (user and system, all threads); and how old each device's values are
  (the payload's ``time``, taken when they were read) when its message has come to a subscriber in C,
  another process on the same clock.
* As fast as it goes, over fewer connections: what counts is what the broker says that it received. The
  contestant shares the machine with broker and PLC.

Each runs alone, in turns: two that poll a hundred devices at the same moment would be in each other's way.

Before anything counts, a message of each contestant is looked at: it must have all values, and the next
one must have others.
"""

from __future__ import annotations

import datetime
import json
import queue
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from paho.mqtt.client import CallbackAPIVersion, Client

from .measure import Row, Series, Span, Yardstick, in_turns, percentile, rate_text, ratio
from .peers import CHANGING_UNIT, Peers, cpu_seconds

DEVICES = 100
DEVICES_FAST = 10
REGISTERS = 100
_LONGEST_S = 120
"""After this the contestants end by themselves, whatever becomes of us."""
_COUNT_TOPIC = "$SYS/broker/publish/messages/received"
"""mosquitto says it every two seconds, if ``sys_interval`` is 1."""
_NAMES = {
    "fieldbus": "fieldbus",
    "script": "script on pymodbus and aiomqtt",
    "c": "C on libmodbus and libmosquitto",
}
_PREFIXES = {"fieldbus": "plant/bench/", "script": "plant/script/", "c": "plant/c/"}


class _Calm(NamedTuple):
    """What a contestant did that polls once a second."""

    cpu: float
    """Seconds a second."""
    ages_s: Series
    """Of the values of each message on arrival; empty if nobody looked."""


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return rows for the CPU, for the age on arrival, and for the most that can be published."""
    missing = peers.missing("mosquitto")
    if missing is not None:
        return [Row("poll and publish", missing, [Yardstick(missing)])]
    return [*_once_a_second(peers, span), _as_fast_as_it_goes(peers, span)]


def _once_a_second(peers: Peers, span: Span) -> list[Row]:
    rounds, seconds = span.choose(3, 1), span.choose(8.0, 5.0)
    with peers.plc() as plc, peers.broker() as broker:
        turns = {
            name: partial(_publish_calmly, peers, plc.port, broker, name, seconds) for name in _names(peers)
        }
        done = in_turns(rounds, turns)
    cpu = {name: [item.cpu for item in items] for name, items in done.items()}
    own = cpu["fieldbus"]
    rows = [
        Row(
            f"CPU of {DEVICES} devices x {REGISTERS} uint16 once a second, all change, published",
            f"{median(own) * 1000:.1f} ms/s\n({median(own):.1%} of a core)",
            [
                Yardstick(f"{_NAMES[name]} {median(cpu[name]) * 1000:.1f} ms/s", ratio(cpu[name], own))
                if name in cpu
                else _absent(peers, name)
                for name in ("script", "c")
            ],
            f"QoS 1, one message a device; {median(own) / DEVICES * 1e6:.0f} µs a message",
        )
    ]
    if peers.missing("subscriber") is None:
        ages = {name: [age for item in items for age in item.ages_s] for name, items in done.items()}
        rows.append(_age_row(peers, ages, DEVICES * seconds * len(own)))
    return rows


def _publish_calmly(peers: Peers, plc_port: int, broker: int, name: str, seconds: float) -> _Calm:
    file = peers.folder / "arrivals.txt"
    with _contestant(peers, plc_port, broker, name, DEVICES, 1.0) as pid, ExitStack() as stack:
        _check(broker, name, DEVICES)
        if peers.missing("subscriber") is None:
            stack.enter_context(peers.subscriber(broker, file, f"{_PREFIXES[name]}#"))
        time.sleep(1.0)  # _check has seen two rounds already
        began_s, since, spent_s = time.monotonic(), time.time(), cpu_seconds(pid)
        time.sleep(seconds)
        cpu = (cpu_seconds(pid) - spent_s) / (time.monotonic() - began_s)
        until = since + seconds
        time.sleep(0.1)
    return _Calm(cpu, _ages(file, since, until) if peers.missing("subscriber") is None else [])


def _age_row(peers: Peers, ages: Mapping[str, Series], expected: float) -> Row:
    own = ages["fieldbus"]
    yardsticks = [
        Yardstick(
            f"{_NAMES[name]} p{percent} {percentile(ages[name], percent) * 1000:.2f} ms",
            percentile(ages[name], percent) / percentile(own, percent),
        )
        for name in ("script", "c")
        if name in ages
        for percent in (50, 99)
    ]
    if "c" not in ages:
        yardsticks.append(_absent(peers, "c"))
    shown = "\n".join(f"p{percent} {percentile(own, percent) * 1000:.2f} ms" for percent in (50, 99))
    note = "messages, of those due: " + ", ".join(
        f"{name} {len(values) / expected:.1%}" for name, values in ages.items()
    )
    if "c" in ages:
        beyond = [percentile(own, percent) - percentile(ages["c"], percent) for percent in (50, 99)]
        note += f"; beyond C: p50 {beyond[0] * 1000:.2f} ms, p99 {beyond[1] * 1000:.2f} ms"
    return Row("the same: age of the values when a subscriber has them", shown, yardsticks, note)


def _as_fast_as_it_goes(peers: Peers, span: Span) -> Row:
    name = f"poll {DEVICES_FAST} devices x {REGISTERS} uint16 as fast as it goes, all change, published"
    missing = peers.missing("subscriber")
    if missing is not None:
        return Row(name, missing, [Yardstick(missing)])
    rounds, seconds = span.choose(3, 1), span.choose(8.0, 5.0)
    with peers.plc() as plc, peers.broker() as broker:
        reached = in_turns(
            rounds,
            {item: partial(_publish_rate, peers, plc.port, broker, item, seconds) for item in _names(peers)},
        )
    own = reached["fieldbus"]
    return Row(
        name,
        f"{rate_text(median(own))} messages\n{rate_text(median(own) * REGISTERS)} tags",
        [
            Yardstick(
                f"{_NAMES[item]} {rate_text(median(reached[item]) * REGISTERS)}", ratio(own, reached[item])
            )
            if item in reached
            else _absent(peers, item)
            for item in ("script", "c")
        ],
        "received by the broker, QoS 1; broker and PLC run on the same cores",
    )


def _publish_rate(peers: Peers, plc_port: int, broker: int, name: str, seconds: float) -> float:
    """Return the messages a second that the broker receives from a contestant that runs alone."""
    file = peers.folder / "counts.txt"
    contestant = _contestant(peers, plc_port, broker, name, DEVICES_FAST, 0.0)
    with peers.subscriber(broker, file, _COUNT_TOPIC), contestant:
        _check(broker, name, DEVICES_FAST)
        since = time.time() + 1.0  # for all connections to be there
        time.sleep(1.0 + seconds)
        until = time.time()
    lines = [line.split() for line in file.read_text().splitlines()]
    counts = [(float(words[0]), int(words[3])) for words in lines if since <= float(words[0]) <= until]
    (first_s, first), (last_s, last) = counts[0], counts[-1]
    return (last - first) / (last_s - first_s)


def _names(peers: Peers) -> list[str]:
    """Return the contestants that there can be."""
    return [name for name in _NAMES if name != "c" or peers.missing("publish") is None]


def _contestant(
    peers: Peers, plc_port: int, broker: int, name: str, devices: int, period_s: float
) -> AbstractContextManager[int]:
    """Return what runs a contestant, and gives its process id."""
    if name == "fieldbus":
        # At full speed it says, rightly, that it cannot keep the scan periods.
        config = _config(peers, plc_port, broker, devices, period_s)
        return peers.gateway(config, may_complain=not period_s)
    values = plc_port, broker, CHANGING_UNIT, devices, REGISTERS, int(period_s * 1000), _LONGEST_S
    return peers.publisher(name, *values)


def _absent(peers: Peers, name: str) -> Yardstick:
    return Yardstick(f"{_NAMES[name]}: {peers.missing('publish')}")


def _check(broker: int, name: str, devices: int) -> None:
    """Wait for two messages of a contestant's last device; raise RuntimeError if they are not as meant."""
    topic = f"{_PREFIXES[name]}plc{devices}"
    arrived: queue.Queue[bytes] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe(topic)
    client.on_message = lambda _client, _data, message: arrived.put(message.payload)
    client.connect("127.0.0.1", broker)
    client.loop_start()
    try:
        contents = [json.loads(arrived.get(timeout=30)) for _ in range(2)]
    except queue.Empty:
        raise RuntimeError(f"{_NAMES[name]} published nothing in 30 s") from None
    finally:
        client.disconnect()
        client.loop_stop()
    names = {f"r{address}" for address in range(REGISTERS)}
    first, second = (content["values"] for content in contents)
    if first.keys() != names or any(first[item] == second.get(item) for item in names):
        raise RuntimeError(f"{_NAMES[name]} published something else: {contents[-1]}")


def _ages(file: Path, since: float, until: float) -> list[float]:
    """Return how old the values in each message were, in seconds."""
    found = []
    for line in file.read_text().splitlines():
        received_s, _, _, start = line.split(" ", 3)
        if since <= float(received_s) < until:
            read = datetime.datetime.fromisoformat(start.replace(" ", "").split('"')[3])
            found.append(float(received_s) - read.timestamp())
    return found


def _config(peers: Peers, plc_port: int, broker: int, devices: int, period_s: float) -> dict[str, object]:
    registers = "".join(f"r{address},holding,{address}\n" for address in range(REGISTERS))
    (peers.folder / "map.csv").write_text("name,table,address\n" + registers)
    host = "127.0.0.1"
    names = [f"plc{number}" for number in range(1, devices + 1)]
    scan = f"{period_s * 1000:.0f}ms" if period_s else "1us"
    links = {f"net_{name}": {"type": "modbus-tcp", "host": host, "port": plc_port} for name in names}
    return {
        "links": {**links, "broker": {"type": "mqtt", "host": host, "port": broker, "retain": False}},
        "devices": {
            name: {"link": f"net_{name}", "unit_id": CHANGING_UNIT, "scan": scan, "map": "map.csv"}
            for name in names
        },
        "routes": [
            {"from": f"{name}.*", "to": "broker:plant/{gateway}/{device}", "when": "sample"} for name in names
        ],
    }
