"""The keep-alive time, in virtual time: who only listens stays connected, who is away is noticed."""

import asyncio

from support.memory_broker import MemoryBroker, Published
from support.virtual import World

from fieldbus.errors import LinkDownError
from fieldbus.model import Kind, Point
from fieldbus.mqtt.link import MqttLink
from fieldbus.mqtt.payload import TopicPoint

PORT = 1883


def in_virtual_time(scenario):
    world = World()

    async def main():
        broker = MemoryBroker()
        await broker.listen(PORT)
        point = TopicPoint(Point("remote", "level", Kind.INT), "level")
        link = MqttLink("broker", "gw", "127.0.0.1", PORT, [point], keepalive_s=30, clock=world.clock()[0])
        batches = []
        await link.connect()
        running = asyncio.create_task(link.run(batches.append, lambda _: None))
        await scenario(world, broker, batches, running)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        await broker.end()

    world.run(main())


def test_who_only_listens_stays_connected():
    async def scenario(world, broker, batches, running):
        await asyncio.sleep(1)
        before = world.network.connects[PORT]
        for value in range(600):
            broker.publish(Published("level", b"%d" % value))
            await asyncio.sleep(1)
        assert not running.done()
        assert world.network.connects[PORT] == before
        assert [batch.values[0] for batch in batches][-600:] == list(range(600))

    in_virtual_time(scenario)


def test_a_broker_that_is_silent_is_lost_within_the_keep_alive_time():
    async def scenario(world, broker, _batches, running):
        await asyncio.sleep(95)
        world.network.hold(PORT)
        begun_s = world.now_s
        try:
            await running
        except LinkDownError as error:
            assert "does not answer" in str(error)
        assert world.now_s - begun_s <= 30

    in_virtual_time(scenario)
