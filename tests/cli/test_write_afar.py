"""`fieldbus write URL`: values of one group do not go through a broker as if they were written together."""

import asyncio
import json

import pytest

from fieldbus.cli import write
from fieldbus.errors import LinkDownError
from fieldbus.model import Access, Kind, Point
from fieldbus.mqtt import peering
from fieldbus.mqtt.visitor import Heard

POINTS = [
    Point("press", "low", Kind.INT, Access.READWRITE, group="limits"),
    Point("press", "high", Kind.INT, Access.READWRITE, group="limits"),
    Point("press", "speed", Kind.INT, Access.READWRITE),
    Point("oven", "low", Kind.INT, Access.READWRITE, group="limits"),
]


class Visitor:
    """A connection to a broker that keeps a gateway's birth, and a gateway that does what it is told."""

    user = "desk"

    def __init__(self, birth):
        self.birth, self.said, self.waiting = birth, [], asyncio.Queue()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def hear(self, *topics):
        for topic in topics:
            if topic.endswith("/birth") and self.birth is not None:
                self.waiting.put_nowait(Heard(topic, self.birth, True))

    async def say(self, topic, payload, *, answer_to, **_):
        command = json.loads(payload)
        self.said.append((topic, command["value"]))
        answer = {"point": topic, "value": command["value"], "outcome": "written", "reason": None}
        self.waiting.put_nowait(Heard(answer_to, json.dumps(answer | {"id": command["id"]}).encode(), False))

    async def messages(self):
        while True:
            yield await self.waiting.get()


def birth():
    return peering.encode_birth("gw", "1", POINTS, 0)


async def give(visitor, **typed):
    typed = {name.replace("_", "."): value for name, value in typed.items()}
    return await write._write_afar(visitor, "gw", "desk", typed, "write", None, 2.0)


async def test_two_values_of_one_group_are_refused_in_words():
    visitor = Visitor(birth())
    with pytest.raises(LinkDownError) as found:
        await give(visitor, press_low="1", press_speed="5", press_high="2")
    assert str(found.value) == (
        "press.low and press.high are in the group 'limits' and are written with one request; "
        "through a broker each value is a command of its own: write them on the gateway's machine"
    )
    assert visitor.said == []


@pytest.mark.parametrize("is_born", [True, False])
async def test_values_that_do_not_belong_together_are_written(monkeypatch, is_born):
    monkeypatch.setattr(write, "_BIRTH_S", 0.05)
    visitor = Visitor(birth() if is_born else None)
    found = await give(visitor, press_low="1", oven_low="2", press_speed="3")
    assert [item["outcome"] for item in found] == ["written"] * 3
    assert [value for _, value in visitor.said] == [1, 2, 3]


async def test_one_value_of_a_group_needs_no_birth():
    visitor = Visitor(None)
    [found] = await give(visitor, press_low="1")
    assert found["outcome"] == "written"


def test_a_group_travels_in_the_birth_and_ends_at_the_other_gateway():
    found = peering.decode_birth(birth(), "gw")
    assert [point.group for point in found.points] == ["limits", "limits", "", "limits"]
    assert {point.group for point in peering.taken_over(found, "far", "me").values()} == {""}
