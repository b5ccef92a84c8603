"""The tests' own broker, tried by clients that we did not write."""

import asyncio

import pytest
from conftest import eventually, program
from support.memory_broker import MemoryBroker

pytestmark = pytest.mark.system


async def run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-2)
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode or 0, out.decode()


async def test_mosquittos_clients_understand_it() -> None:
    sub, pub = program("mosquitto_sub", "mosquitto-clients"), program("mosquitto_pub", "mosquitto-clients")
    broker = MemoryBroker(keeps=True)
    port = str(await broker.listen(0))
    common = ("-V", "5", "-h", "127.0.0.1", "-p", port)
    await run(
        pub, *common, "-q", "1", "-t", "kept/a", "-m", "one", "-r", "-D", "publish", "content-type", "x"
    )
    await run(pub, *common, "-q", "0", "-t", "kept/b", "-m", "two", "-r")
    await run(pub, *common, "-q", "0", "-t", "kept/b", "-n", "-r")
    listening = asyncio.create_task(
        run(
            sub,
            *common,
            "-q",
            "1",
            "-t",
            "kept/#",
            "-t",
            "+/live",
            "-C",
            "3",
            "-F",
            "%t %p %r %q",
            "-W",
            "15",
        )
    )
    await eventually(lambda: broker.clients)
    await asyncio.sleep(0.2)
    for number in ("1", "2"):
        assert (
            await run(pub, *common, "-q", number if number == "1" else "0", "-t", "x/live", "-m", number)
        )[0] == 0
    code, out = await listening
    assert code == 0, out
    assert out.splitlines() == ["kept/a one 1 1", "x/live 1 0 1", "x/live 2 0 0"]
    assert [message.topic for message in broker.seen] == ["kept/a", "kept/b", "kept/b", "x/live", "x/live"]
    await broker.end()


async def test_a_will_is_published_when_a_client_is_killed() -> None:
    sub = program("mosquitto_sub", "mosquitto-clients")
    broker = MemoryBroker(keeps=True)
    port = str(await broker.listen(0))
    process = await asyncio.create_subprocess_exec(
        sub, "-V", "5", "-p", port, "-t", "t", "--will-topic", "gone", "--will-payload", "yes", stdout=-3
    )
    await eventually(lambda: broker.clients)
    process.kill()
    await process.wait()
    await eventually(lambda: broker.seen)
    assert (broker.seen[0].topic, broker.seen[0].payload) == ("gone", b"yes")
    await broker.end()
