"""What it costs that nothing is lost: the spool, a durable route, and publishing, each beside the bare thing.

* The spool takes samples in batches of 100, as a scanned device gives them, and commits each tenth of a
  second. The yardstick writes the same samples with `executemany`, a row a sample, as one would by hand,
  also with WAL, ``synchronous=FULL`` and a commit each tenth of a second.
* A durable route is measured beside the same route that is not durable: one gateway, one point, two topics.
  What a subscriber sees later on the durable one is the price of the disk.
* Publishing at QoS 1 until all is acknowledged, beside paho-mqtt with the same window and its loop in a
  thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import paho.mqtt.client as paho

from fieldbus.durable.spool import Spool
from fieldbus.gateway import loop
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.runtime import Gateway
from fieldbus.model import Quality, Sample
from fieldbus.mqtt.publisher import Publisher
from fieldbus.mqtt.records import Item, encode_row

from .measure import Row, Series, Span, Yardstick, in_turns, percentile, ratio
from .peers import Peers, free_port, write_config

_GROUP_COMMIT_S = 0.1
_BATCH = 100
_LIVE_S = 0.02
"""Between two changes of the value whose way is measured."""
_WINDOW = 200
_TOPIC, _PAYLOAD = "plant/gateway/press/temperature", b'{"value":72.5,"quality":"good","reason":null}'


def measure(peers: Peers, span: Span) -> list[Row]:
    """Return the rows."""
    rows = [_measure_spool(peers.folder, span)]
    missing = peers.missing("mosquitto")
    if missing is not None:
        return [*rows, Row("durable routes and publishing", f"skipped: {missing}", [Yardstick("–")])]
    return [*rows, _measure_route(peers, span), _measure_publishing(peers, span)]


# --- the spool


def _measure_spool(folder: Path, span: Span) -> Row:
    samples = int(span.choose(500_000, 100_000))
    contestants = {
        "spool": lambda: loop.run(_spool(folder, samples)),
        "bare": partial(_bare, folder, samples),
    }
    reached: dict[str, list[float]] = in_turns(span.choose(5, 2), contestants)
    own, bare = reached["spool"], reached["bare"]
    return Row(
        "samples to disk, group commit 100 ms",
        f"{median(own) / 1e3:.0f} k samples/s",
        [Yardstick(f"sqlite3, a row a sample, {median(bare) / 1e3:.0f} k/s", ratio(own, bare))],
        f"{samples} samples, WAL, synchronous=FULL",
    )


async def _spool(folder: Path, samples: int) -> float:
    path = folder / "spool.db"
    _remove(path)
    spool = Spool(path, group_commit_s=_GROUP_COMMIT_S, max_waiting=10 * samples, max_bytes=1 << 32)
    spool.open()
    stream = spool.stream("bench", encode_row)
    began_s = time.perf_counter()
    for first in range(0, samples, _BATCH):
        stream.append(
            [
                Item(
                    ("press.temperature", "gw/press.temperature", 0),
                    Sample(first + n, Quality.GOOD, None, first),
                )
                for n in range(_BATCH)
            ]
        )
        if first % 10_000 == 0:
            await asyncio.sleep(0)
    spool.committer.hurry()
    while stream.waiting:
        await stream.changed.wait()
        stream.changed.clear()
    took_s = time.perf_counter() - began_s
    spool.close()
    return samples / took_s


def _bare(folder: Path, samples: int) -> float:
    path = folder / "bare.db"
    _remove(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE samples(id INTEGER PRIMARY KEY, point TEXT, time_ns INTEGER, value, quality TEXT)"
    )
    began_s = committed_s = time.perf_counter()
    connection.execute("BEGIN")
    for first in range(0, samples, _BATCH):
        rows = [("press.temperature", first, first + n, "good") for n in range(_BATCH)]
        connection.executemany("INSERT INTO samples(point, time_ns, value, quality) VALUES(?, ?, ?, ?)", rows)
        if time.perf_counter() - committed_s >= _GROUP_COMMIT_S:
            connection.execute("COMMIT")
            connection.execute("BEGIN")
            committed_s = time.perf_counter()
    connection.execute("COMMIT")
    took_s = time.perf_counter() - began_s
    connection.close()
    return samples / took_s


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


# --- a durable route


def _measure_route(peers: Peers, span: Span) -> Row:
    changes = int(span.choose(1500, 300))
    with peers.broker() as port:
        ages = loop.run(_route(peers.folder, port, changes))
    plain, durable = ages["plain"], ages["durable"]
    added = [percentile(durable, share) - percentile(plain, share) for share in (50, 99)]
    return Row(
        "age of a value at a subscriber, by a durable route",
        f"p50 {_ms(percentile(durable, 50))}, p99 {_ms(percentile(durable, 99))}",
        [Yardstick(f"not durable p50 {_ms(percentile(plain, 50))}, p99 {_ms(percentile(plain, 99))}")],
        f"added p50 {_ms(added[0])}, p99 {_ms(added[1])}, of which the group commit is up to 100 ms",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


async def _route(folder: Path, port: int, changes: int) -> dict[str, Series]:
    routes = [
        {"from": "panel.value", "to": "broker:plain/{point}"},
        {"from": "panel.value", "to": "broker:durable/{point}", "durable": True},
    ]
    config = {
        "links": {
            "hmi": {"type": "modbus-server", "host": "127.0.0.1", "port": free_port()},
            "broker": {"type": "mqtt", "host": "127.0.0.1", "port": port},
        },
        "devices": {
            "panel": {
                "link": "hmi",
                "points": {"value": {"table": "holding", "address": 0, "access": "readwrite"}},
            }
        },
        "routes": routes,
    }
    plant = load(write_config(folder, config))
    gateway = Gateway(plant)
    running = asyncio.create_task(gateway.run())
    ages: dict[str, list[float]] = {"plain": [], "durable": []}
    point = plant.points["panel.value"]
    given: dict[int, float] = {}
    with _subscriber(port, "+/value", lambda topic, payload: _note(ages, given, topic, payload)):
        await asyncio.sleep(1.0)
        for number in range(changes):
            value = number % 60_000 + 1
            given[value] = time.perf_counter()
            await plant.links["hmi"].write({point: value})
            await asyncio.sleep(_LIVE_S * random.uniform(0.5, 1.5))
        await asyncio.sleep(1.0)
    gateway.stop()
    await running
    return {name: sorted(found) for name, found in ages.items()}


def _note(ages: dict[str, list[float]], given: dict[int, float], topic: str, payload: bytes) -> None:
    now_s = time.perf_counter()
    value = json.loads(payload)["value"]
    if value in given:
        ages[topic.partition("/")[0]].append(now_s - given[value])


@contextmanager
def _subscriber(port: int, topic: str, on_message: Callable[[str, bytes], None]) -> Iterator[None]:
    """Hear a topic in a thread."""
    is_there = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
    client.on_subscribe = lambda *_: is_there.set()
    client.on_message = lambda _client, _data, message: on_message(message.topic, message.payload)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        is_there.wait(5)
        yield
    finally:
        client.disconnect()
        client.loop_stop()


# --- publishing


def _measure_publishing(peers: Peers, span: Span) -> Row:
    messages = int(span.choose(50_000, 10_000))
    with peers.broker() as port:
        contestants: dict[str, Callable[[], float]] = {
            "own": lambda: loop.run(_publish(port, messages)),
            "paho": partial(_publish_with_paho, port, messages),
        }
        reached = in_turns(span.choose(5, 2), contestants)
    own, other = reached["own"], reached["paho"]
    return Row(
        "messages published at QoS 1, all acknowledged",
        f"{median(own) / 1e3:.1f} k messages/s",
        [Yardstick(f"paho-mqtt {median(other) / 1e3:.1f} k/s", ratio(own, other))],
        f"{messages} messages, {_WINDOW} under way at most",
    )


async def _publish(port: int, messages: int) -> float:
    publisher = Publisher("bench", "127.0.0.1", port, "bench-own", is_retained=False, max_queue=messages)
    await publisher.connect()
    began_s = time.perf_counter()
    for _ in range(messages):
        publisher.put(_TOPIC, _PAYLOAD)
    await publisher.drain()
    took_s = time.perf_counter() - began_s
    publisher.close()
    return messages / took_s


def _publish_with_paho(port: int, messages: int) -> float:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="bench-paho", protocol=paho.MQTTv5)
    client.max_inflight_messages_set(_WINDOW)
    client.max_queued_messages_set(0)
    left = threading.Semaphore(0)
    client.on_publish = lambda *_: left.release()
    client.connect("127.0.0.1", port)
    client.loop_start()
    began_s = time.perf_counter()
    for _ in range(messages):
        client.publish(_TOPIC, _PAYLOAD, qos=1)
    for _ in range(messages):
        left.acquire()
    took_s = time.perf_counter() - began_s
    client.disconnect()
    client.loop_stop()
    return messages / took_s


logging.getLogger("fieldbus").setLevel(logging.WARNING)
