"""What every link promises, whatever its protocol. A new protocol is one more parameter here."""

import asyncio
import itertools
import time

import pytest
from conftest import free_port

from fieldbus.canbus.layout import Message, Signal
from fieldbus.canbus.link import CanLink
from fieldbus.canbus.messages import CanMessage
from fieldbus.errors import LinkDownError
from fieldbus.link import Delivery, Target, WriteOutcome
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.registers import RegisterPoint, RegisterType, Table
from fieldbus.modbus.server import ModbusServerLink, ServedUnit
from fieldbus.modbus.units import Unit
from fieldbus.model import Access, Kind, Point, Quality, Sample
from fieldbus.mqtt.link import MqttLink
from fieldbus.mqtt.payload import TopicPoint

_CHANNELS = itertools.count()


def point(**more):
    return Point("d", "p", Kind.INT, Access.READWRITE, **more)


def client_without_peer():
    own = point()
    place = RegisterPoint(own, Table.HOLDING, 0, RegisterType.UINT16)
    unit = Unit("d", 1, [place], scan_s=1.0, timeout_s=0.2)
    return ModbusClientLink("plc", TcpPlace("127.0.0.1", free_port()), [unit]), own


def server():
    own = point(carries_quality=True)
    place = RegisterPoint(own, Table.HOLDING, 0, RegisterType.UINT16, is_open_to_masters=True)
    return ModbusServerLink("hmi", "127.0.0.1", free_port(), [ServedUnit("d", 1, [place])]), own


def server_on_a_taken_port():
    link, own = server()
    link.host = "192.0.2.1"  # documentation only: no machine has it, so nothing can listen there
    return link, own


def can_bus():
    own = point(carries_quality=True)
    signal = Signal("S", 0, 8)
    message = CanMessage("d", Message("M", 1, False, 1, [signal]), {signal: own})
    options = {"interface": "virtual", "channel": f"contract {next(_CHANNELS)}"}
    return CanLink("can0", options, [message], [own]), own


def can_without_bus():
    link, own = can_bus()
    link.options = {"interface": "socketcan", "channel": "nocan9"}
    return link, own


def broker_without_peer():
    own = point(carries_quality=True)
    return MqttLink("broker", "gw", "127.0.0.1", free_port(), [TopicPoint(own, "t")]), own


ALL = [client_without_peer, server, can_bus, can_without_bus, broker_without_peer, server_on_a_taken_port]
WITHOUT_PEER = [client_without_peer, can_without_bus, broker_without_peer, server_on_a_taken_port]
WITH_PEER = [server, can_bus]


@pytest.mark.parametrize("make", ALL)
async def test_close_is_safe_before_connect_and_twice(make):
    link, _ = make()
    await link.close()
    await link.close()


@pytest.mark.parametrize("make", WITHOUT_PEER)
async def test_without_a_peer_connect_says_so_in_one_line_and_soon(make):
    link, _ = make()
    began_s = time.monotonic()
    for _ in range(2):
        with pytest.raises(LinkDownError) as caught:
            await link.connect()
        await link.close()
        assert str(caught.value)
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("make", WITH_PEER)
async def test_it_can_be_connected_again_after_close(make):
    link, _ = make()
    for _ in range(3):
        await link.connect()
        running = asyncio.create_task(link.run(lambda _: None, lambda _: None))
        await asyncio.sleep(0.02)
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await link.close()


@pytest.mark.parametrize("make", ALL)
async def test_send_never_raises_and_never_blocks(make):
    link, own = make()
    began_s = time.monotonic()
    for sample in (
        Sample(1, Quality.GOOD, None, 1),
        Sample(None, Quality.BAD, "timeout", 1),
        Sample(70_000, Quality.GOOD, None, 1),
        Sample("text", Quality.GOOD, None, 1),
    ):
        for _ in range(1000):
            link.send([Delivery(Target(link.name, own), own, sample)])
    assert time.monotonic() - began_s < 1.0
    await link.close()


@pytest.mark.parametrize("make", WITHOUT_PEER[:3])
async def test_a_write_without_connection_fails_and_says_why(make):
    link, own = make()
    results = await asyncio.wait_for(link.write({own: 1}), 2.0)
    assert [(result.point, result.value, result.outcome) for result in results] == [
        (own, 1, WriteOutcome.FAILED)
    ]
    assert results[0].reason


@pytest.mark.parametrize("make", ALL)
def test_it_knows_its_name_its_place_and_its_totals(make):
    link, _ = make()
    assert link.name
    assert link.endpoint
    assert all(isinstance(total, int) for total in link.counters.values())
    assert all(own.can_read for group in link.groups for own in [place.access for place in group.points])
