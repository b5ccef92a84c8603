"""What lasts is said again once a day, and no longer than it lasts."""

import asyncio
import logging

from support.virtual import World

from fieldbus.gateway.session import REMIND_S, Reminders


def test_what_lasts_is_said_once_a_day(caplog):
    caplog.set_level(logging.WARNING)

    world = World()
    clock, _ = world.clock()

    async def scenario():
        reminders = Reminders(clock)
        reminders.remember("a", "a: still lost, timeout")
        await asyncio.sleep(REMIND_S - 1)
        assert caplog.messages == []
        await asyncio.sleep(2)
        assert caplog.messages == ["a: still lost, timeout, for 1 day"]
        await asyncio.sleep(REMIND_S / 2)
        reminders.remember(
            "a", "a: still lost, connection refused"
        )  # another reason, said by whoever knows it
        await asyncio.sleep(REMIND_S * 2)
        assert caplog.messages[1:] == [
            "a: still lost, connection refused, for 2 days", "a: still lost, connection refused, for 3 days"
        ]  # fmt: skip
        reminders.forget("a")
        reminders.forget("never remembered")
        await asyncio.sleep(REMIND_S * 3)
        assert len(caplog.messages) == 3
        reminders.remember("b", "b")
        reminders.forget_all()
        await asyncio.sleep(REMIND_S * 3)
        assert len(caplog.messages) == 3

    world.run(scenario())
