"""`fieldbus network`, against a broker on which gateways left more or less of themselves."""

import asyncio
import contextlib
import datetime
import io
import json
import subprocess

import pytest
from conftest import program
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fieldbus.cli import network
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PARTS = ("links", "devices", "streams", "commands", "spool", "audit", "fallbacks", "version", "time")
SAID = {
    "connected", "online", "since", "backlog", "dropped", "written", "refused", "trouble", "status", "reason", "time",
}  # fmt: skip
PART = JSON | st.dictionaries(st.text(max_size=3), st.dictionaries(st.sampled_from(sorted(SAID)), JSON))
HEALTH = st.none() | st.dictionaries(
    st.sampled_from(PARTS), PART | st.dictionaries(st.sampled_from(sorted(SAID)), JSON)
)
STATUS = st.none() | st.dictionaries(st.sampled_from(sorted(SAID)), JSON)


@given(HEALTH, STATUS, st.booleans())
def test_whatever_a_gateway_says_of_itself_is_shown(health, status, online):
    item = {"gateway": "gw", "online": online, "silent": False, "health": health, "status": status}
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        network._show({"gw": item})
    assert "gw" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


def shown_of(**item):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        network._show({"gw": {"gateway": "gw", "online": False, "silent": False, "health": None, **item}})
    return " ".join(shown.getvalue().split())


def test_a_last_will_does_not_say_since_when_a_gateway_is_away():
    """The broker publishes it as it was when the gateway connected."""
    will = {"status": "offline", "reason": "connection lost", "time": said_before(7200)}
    health = {"time": said_before(600), "links": {}, "devices": {}}
    text = shown_of(status=will, health=health)
    assert (
        f"offline, last heard {health['time'][:19].replace('T', ' ')} UTC (10 min): connection lost" in text
    )
    assert "offline, last connected 20" in shown_of(status=will)
    assert "offline since 20" in shown_of(status={**will, "reason": "shut down"})


def test_many_links_that_are_down_are_counted():
    links = {f"net{number}": {"connected": False} for number in range(1000)}
    text = shown_of(online=True, status={}, health={"links": links})
    assert "link net19 is down" in text
    assert "gw: 980 more are down" in text
    assert "net20 " not in text
