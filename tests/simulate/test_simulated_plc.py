"""A simulated PLC: what its registers hold makes sense, and what is written stays."""

from __future__ import annotations

import datetime
import struct

import pytest

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


FORMATS = {
    "swapped": {"address": 0, "type": "float64", "order": "EFGHABCD"},
    "signed": {"address": 4, "type": "int16", "format": "sign_magnitude"},
    "modulo": {"address": 5, "type": "uint48", "format": "m10k"},
    "clock": {"address": 10, "format": "calendar"},
    "bcd_clock": {"address": 20, "format": "calendar_bcd", "timezone": "Europe/Berlin"},
    "iec_clock": {"address": 30, "format": "iec870_5_4", "access": "readwrite"},
    "daily": {"address": 40, "format": "time_of_day"},
    "heat": {"parts": [{"address": 50}, {"address": 52, "factor": 1000}]},
    "power": {"parts": [{"address": 60}, {"address": 62, "sign": True}], "scale": 0.1},
    "shared": {"parts": [{"address": 70}, {"address": 72, "factor": 1000}]},
    "low": {"address": 70, "access": "readwrite"},
    "name": {"address": 80, "type": "string", "length": 4, "encoding": "utf-16-be"},
    "field": {"address": 90, "type": "int32", "bits": "3-17", "signed": True},
}


async def test_a_simulated_plc_has_every_format():
    settings = {name: PointSettings(table="holding", **item) for name, item in FORMATS.items()}
    own = build_points("d", settings, is_served=False, fault=lambda *told: pytest.fail(str(told)))
    plc = SimulatedPlc("t", "127.0.0.1", 0, [Unit("d", 1, own, 1.0, 1.0)])
    await plc.open()
    try:
        for seconds in (0.0, 7.5, 1000.0):
            plc._move(seconds)
            answer, _ = plc._link._images[1].answer(bytes.fromhex("030000005c"))
            found = {
                item.point.name: item.decode(answer[2 + 2 * item.address : 2 + 2 * item.end]) for item in own
            }
            assert [name for name, (_, flaw) in found.items() if flaw is not None] == []
        assert plc._link.counters["conversions_failed"] == 0
        now = datetime.datetime.now(datetime.UTC)
        for name in ("clock", "bcd_clock", "iec_clock"):
            assert abs((datetime.datetime.fromisoformat(found[name][0]) - now).total_seconds()) < 60
        # A clock that a client sets stays as it was set.
        _, [(_, value)] = plc._link._images[1].answer(bytes.fromhex("10001e000408001a0b1e132d1b58"))
        assert value == "2026-11-30T19:45:07Z"
    finally:
        await plc._link.close()
