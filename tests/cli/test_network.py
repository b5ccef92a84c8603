"""`fieldbus network`, against a broker on which gateways left more or less of themselves."""

import asyncio
import datetime
import json
import subprocess

import pytest
from conftest import program
from typer.testing import CliRunner

from fieldbus.cli.main import app
from fieldbus.mqtt.peering import HEALTH_EXPIRY_S

pytestmark = pytest.mark.system


def leave(broker, topic, data, *more):
    tool = program("mosquitto_pub", "mosquitto-clients")
    arguments = [
        tool,
        "-V",
        "5",
        "-p",
        str(broker.port),
        "-q",
        "1",
        "-r",
        "-t",
        topic,
        "-m",
        json.dumps(data),
        *more,
    ]
    subprocess.run(arguments, check=True, timeout=10)


def said_before(seconds):
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return moment.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(("age_s", "is_silent"), [(5, False), (3600, True)])
async def test_a_gateway_that_went_while_the_broker_was_away_is_not_called_online(broker, age_s, is_silent):
    """Its last will went with the broker; what it had said of itself is still there."""
    leave(broker, "fieldbus/gw/status", {"status": "online", "time": said_before(age_s)})
    leave(broker, "fieldbus/gw/health", {"time": said_before(age_s), "links": {}, "devices": {}})
    run = CliRunner().invoke
    url = f"mqtt://127.0.0.1:{broker.port}"
    shown = await asyncio.to_thread(run, app, ["network", url])
    assert shown.exit_code == int(is_silent), shown.output
    assert ("silent since 20" in shown.output) is is_silent
    [found] = json.loads((await asyncio.to_thread(run, app, ["network", url, "--json"])).output)
    assert (found["online"], found["silent"]) == (True, is_silent)


@pytest.mark.parametrize("clock_s", [-86400, 86400 * 365])
async def test_a_gateway_whose_clock_is_wrong_is_not_called_silent(broker, clock_s):
    """The broker counts how old the message is."""
    leave(broker, "fieldbus/gw/status", {"status": "online", "time": said_before(clock_s)})
    health = {"time": said_before(clock_s), "links": {}, "devices": {}}
    url = f"mqtt://127.0.0.1:{broker.port}"
    for kept_s, is_silent in ((HEALTH_EXPIRY_S - 5, False), (HEALTH_EXPIRY_S - 300, True)):
        leave(broker, "fieldbus/gw/health", health, "-D", "publish", "message-expiry-interval", str(kept_s))
        shown = await asyncio.to_thread(CliRunner().invoke, app, ["network", url, "--json"])
        [found] = json.loads(shown.output)
        assert (found["online"], found["silent"]) == (True, is_silent)
