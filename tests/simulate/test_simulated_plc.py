"""A simulated PLC: what its registers hold makes sense, and what is written stays."""

from __future__ import annotations

import datetime
import struct

from fieldbus.modbus.link import Unit
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.points import build_points
from fieldbus.simulate.modbus import SimulatedPlc, as_served

POINTS = {
    "watts": {"address": 0, "type": "int16", "scale_from": "sf", "count": 2},
    "sf": {"address": 2, "type": "int16", "invalid": ["sunspec"]},
    "status": {"address": 3, "flags": {0: "running"}},
    "since": {"address": 4, "type": "uint32", "timestamp": "y2000"},
    "limit": {"address": 6, "type": "uint16", "scale_from": "u_sf", "access": "readwrite", "max": 5},
    "u_sf": {"address": 7, "type": "uint16"},
    "run": {"address": 8, "bit": 3, "access": "readwrite"},
    "word": {"address": 8},
    "name": {"address": 9, "type": "string", "length": 3, "chars": "low"},
}


def points():
    settings = {name: PointSettings(table="holding", **item) for name, item in POINTS.items()}
    return build_points("d", settings, is_served=False, fault=lambda *_: None)


def test_what_shares_a_register_with_a_writable_point_is_open_too():
    made = {item.point.name: item for item in as_served(points())}
    assert [name for name, item in made.items() if item.is_open_to_masters] == ["limit", "run", "word"]
    assert made["watts.1"].factor is made["sf"]
    assert made["status.running"].word is made["status"]


async def test_a_simulated_plc_is_consistent_in_itself():
    plc = SimulatedPlc("t", "127.0.0.1", 0, [Unit("d", 1, points(), 1.0, 1.0)])
    await plc.open()
    try:
        answer, _ = plc._link._images[1].answer(bytes.fromhex("030000000c"))
        watts, _, sf, _, since, limit, u_sf, word, *name = struct.unpack(">2hhHI3H3H", answer[2:])
        assert (sf, u_sf, limit, word) == (-1, 0, 0, 0)
        assert 0 <= watts <= 1000
        assert all(character < 0x80 for character in name)
        start = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
        age = datetime.datetime.now(datetime.UTC) - start - datetime.timedelta(seconds=since)
        assert abs(age.total_seconds()) < 60
        # A bit that a master writes stays; what moves does not touch it.
        plc._link._images[1].answer(bytes.fromhex("160008fff70008"))
        plc._move(100.0)
        answer, _ = plc._link._images[1].answer(bytes.fromhex("0300080001"))
        assert answer[2:] == b"\0\x08"
        assert plc._link.counters["conversions_failed"] == 0
    finally:
        await plc._link.close()
