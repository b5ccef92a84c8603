"""Canaries: no secret is ever in a log, an error, an output or a diagnostic."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import logging
import os
import secrets
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from certificates import identity
from conftest import Broker, eventually, free_port

from fieldbus.cli.run import load_again
from fieldbus.errors import ConfigError, LinkDownError
from fieldbus.gateway import log
from fieldbus.gateway.config.loader import load
from fieldbus.gateway.control import ControlServer
from fieldbus.gateway.plant import Plant
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import Instruction
from fieldbus.mqtt.visitor import Visitor, parse_url

CONFIG = """\
version: 1
gateway: {name: press-line}
links:
  by_env: {type: mqtt, host: 127.0.0.1, port: PORT, username: u, password: {env: CANARY_PASSWORD}, keepalive: 1s}
  by_file: {type: mqtt, host: 127.0.0.1, port: CLOSED, username: u, password: {file: broker.password}}
  by_certificate:
    type: mqtt
    host: 127.0.0.1
    port: CLOSED
    tls: {ca: ca.pem, certificate: own.pem, key: own.key, key_password: {env: CANARY_KEY_PASSWORD}}
  plc:
    type: modbus-tls
    host: 127.0.0.1
    port: CLOSED
    tls: {ca: ca.pem, certificate: own.pem, key: own.key, key_password: {file: key.password}}
devices:
  hq: {type: gateway, link: by_env, gateway: hq, key: {env: CANARY_DEVICE_KEY}}
  remote: {link: by_env, points: {wish: {topic: a/b}, order: {topic: a/c, access: write}}}
  press: {link: plc, points: {temperature: {table: holding, address: 0, access: readwrite}}}
access:
  operator: {points: [remote.order], key: {env: CANARY_ACTOR_KEY}}
  night-shift: {points: [remote.order], key: {file: actor.key}}
routes:
  - {from: remote.wish, to: press.temperature}
  - {from: press.temperature, to: "by_env:site/{device}/{point}", durable: true}
  - {from: press.temperature, to: "by_file:site/{device}/{point}"}
"""


class Canaries:
    """The secrets of a configuration, each of them findable anywhere."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.secrets: dict[str, str] = {}
        key_password = self.new("key password")
        for name in ("CANARY_PASSWORD", "CANARY_DEVICE_KEY", "CANARY_ACTOR_KEY"):
            monkeypatch.setenv(name, self.new(name))
        monkeypatch.setenv("CANARY_KEY_PASSWORD", key_password)
        (folder / "broker.password").write_text(self.new("file") + "\n")
        (folder / "actor.key").write_text(self.new("actor file") + "\n")
        (folder / "key.password").write_text(key_password)
        authority = identity(folder, "ca")
        own = identity(folder, "own", authority, key_password=key_password)
        self.secrets["key"] = "".join(own.key.read_text().splitlines()[1:3])
        self.folder = folder
        self.file = folder / "plant.yaml"

    def new(self, name: str) -> str:
        found = self.secrets[name] = f"canary-{secrets.token_hex(8)}"
        return found

    def assert_none_in(self, where: object, what: str) -> None:
        text = where if isinstance(where, str) else str(where)
        for name, secret in self.secrets.items():
            for shape in (secret, secret.encode().hex()):
                assert shape not in text, f"the secret {name} is in {what}"


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canaries:
    found = Canaries(tmp_path, monkeypatch)
    found.file.write_text(CONFIG.replace("PORT", str(free_port())).replace("CLOSED", str(free_port())))
    return found


def pictures(item: object, seen: set[int], depth: int = 0) -> Iterator[str]:
    """Yield what an object and all that is in it look like in a traceback or a debugger's print."""
    if id(item) in seen or depth > 6 or isinstance(item, str | bytes | int | float | None):
        return
    seen.add(id(item))
    yield repr(item)
    yield str(item)
    if isinstance(item, Mapping):
        for value in item.values():
            yield from pictures(value, seen, depth + 1)
    elif isinstance(item, list | tuple | set | frozenset):
        for value in item:
            yield from pictures(value, seen, depth + 1)
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from pictures(getattr(item, field.name, None), seen, depth + 1)


def parts_of(plant: Plant) -> list[object]:
    """Return the plant, and what its links are made of."""
    found: list[object] = [plant, plant.access]
    for link in plant.links.values():
        found.append(link)
        found += [value for value in vars(link).values() if type(value).__module__.startswith("fieldbus.")]
    found += [getattr(link, "remotes", ()) for link in plant.links.values()]
    found += [getattr(link, "place", None) for link in plant.links.values()]
    return found


def test_no_object_shows_a_secret(canaries: Canaries) -> None:
    plant = load(canaries.file)
    seen: set[int] = set()
    for part in parts_of(plant):
        for picture in pictures(part, seen):
            canaries.assert_none_in(picture, f"the picture of a {type(part).__name__}: {picture[:200]}")
    assert len(seen) > 50
    for digest in plant.fingerprints.values():
        canaries.assert_none_in(digest, "a fingerprint")


def test_what_a_person_types_shows_no_password() -> None:
    password = f"canary-{secrets.token_hex(8)}"
    url = parse_url(f"mqtts://operator:{password}@broker.example/press-line")
    assert url.password == password
    for shown in (repr(url), str(url), url.place, repr(Visitor(url))):
        assert password not in shown
    for text in (
        f"http://operator:{password}@broker.example",
        f"mqtt://operator:{password}/x@broker.example",
        f"mqtt://operator:12/{password}@broker.example",
        f"mqtt://operator:{password}@broker.example:port",
        f"mqtt://operator:{password}@broker.example:99999",
        f"mqtt://operator:{password}@",
        f"mqtt://operator:{password}@[broker",
    ):
        with pytest.raises(ValueError, match=r"URL|gateway") as caught:
            parse_url(text)
        assert password not in str(caught.value), text


async def test_a_gateway_at_work_says_no_secret_whatever_happens_to_it(
    canaries: Canaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    everything = logging.getLogger()
    level = everything.level
    everything.addHandler(handler)
    everything.setLevel(logging.DEBUG)
    for name in ("fieldbus", "fieldbus.mqtt.paho", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    text = CONFIG.replace("PORT", str(broker.port)).replace("CLOSED", str(free_port()))
    canaries.file.write_text(text)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    gateway = Gateway(load(canaries.file), load=load_again)
    running = asyncio.create_task(gateway.run())
    door = asyncio.create_task(ControlServer(gateway, gateway.load_again).run())
    heard: list[str] = []
    try:
        async with Visitor(parse_url(f"mqtt://127.0.0.1:{broker.port}", {})) as visitor:
            await visitor.hear("#")

            async def listen() -> None:
                async for message in visitor.messages():
                    heard.append(f"{message.topic} {message.payload!r}")  # noqa: PERF401 - as it comes

            listening = asyncio.create_task(listen())
            await eventually(lambda: any("birth" in item for item in heard), 10)
            await eventually(lambda: any("health" in item for item in heard), 10)
            # commands that are signed wrongly, or not at all
            for signature in (None, "00", "é", os.environ["CANARY_PASSWORD"][:4]):
                payload = json.dumps({"value": 1, "id": secrets.token_hex(4), "time": time.time()}).encode()
                topic = "fieldbus/press-line/command/operator/remote/order"
                gateway.desk.instruct(
                    Instruction(topic, "operator", "remote.order", payload, signature, False, None)
                )
            # and an error that nobody foresaw, with the link in it
            link = gateway.plant.links["by_env"]
            monkeypatch.setattr(link._reader, "take", lambda *_: 1 / 0)
            await visitor.say("a/b", b"1")
            await eventually(lambda: "internal error" in said.getvalue(), 10)
            monkeypatch.undo()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        broker.stop()
        monkeypatch.setenv("CANARY_PASSWORD", canaries.new("another password"))
        for name in ("CANARY_DEVICE_KEY", "CANARY_ACTOR_KEY"):
            monkeypatch.setenv(name, canaries.secrets[name])
        monkeypatch.delenv("CANARY_KEY_PASSWORD", raising=False)
        with pytest.raises(ConfigError) as caught:
            await gateway.load_again()
        canaries.assert_none_in("".join(traceback.format_exception(caught.value)), "the problems of a reload")
        monkeypatch.setenv("CANARY_KEY_PASSWORD", canaries.secrets["key password"])
        await gateway.load_again()
        canaries.assert_none_in(json.dumps(gateway.health()), "health")
        canaries.assert_none_in((gateway.plant.data_dir / "gateway.json").read_text(), "gateway.json")
    finally:
        gateway.stop()
        async with asyncio.timeout(20):
            await running
        door.cancel()
        await asyncio.gather(door, return_exceptions=True)
        loop.set_debug(False)
        everything.removeHandler(handler)
        everything.setLevel(level)
        broker.stop()
    assert "by_file: no connection" in said.getvalue()
    canaries.assert_none_in(said.getvalue(), "the log")
    for item in heard:
        canaries.assert_none_in(item, f"a message: {item[:60]}")
    for file in gateway.plant.data_dir.rglob("*"):
        if file.is_file():
            canaries.assert_none_in(file.read_bytes().decode("latin-1"), str(file))


@pytest.mark.parametrize("wrong", ["key password", "authority", "key of another"])
async def test_files_that_do_not_fit_are_said_without_what_is_in_them(canaries: Canaries, wrong: str) -> None:
    if wrong == "key password":
        os.environ["CANARY_KEY_PASSWORD"] = canaries.new("wrong key password")
    elif wrong == "authority":
        (canaries.folder / "ca.pem").write_text(canaries.new("in a file"))
    else:
        identity(canaries.folder, "x", file="own", key_password=canaries.secrets["key password"])
        (canaries.folder / "own.key").write_text((canaries.folder / "ca.key").read_text())
    plant = load(canaries.file)
    for name in ("by_certificate", "plc"):
        link: Any = plant.links[name]
        with pytest.raises(LinkDownError) as caught:
            await link.connect()
        await link.close()
        canaries.assert_none_in("".join(traceback.format_exception(caught.value)), name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [("check",), ("check", "--json"), ("plan",), ("plan", "--json"), ("read", "press.temperature")],
)
def test_no_command_prints_a_secret(canaries: Canaries, arguments: tuple[str, ...]) -> None:
    verb, *more = arguments
    done = subprocess.run(
        [sys.executable, "-m", "fieldbus", verb, str(canaries.file), *more],
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    canaries.assert_none_in(done.stdout + done.stderr, " ".join(arguments))
    assert "Traceback" not in done.stdout + done.stderr
    assert "press" in done.stdout + done.stderr


def test_a_secret_that_stands_in_the_configuration_is_refused_without_repeating_it(
    canaries: Canaries,
) -> None:
    literal = canaries.new("literal")
    for before in (
        "{env: CANARY_PASSWORD}", "{file: broker.password}", "{env: CANARY_DEVICE_KEY}", "{env: CANARY_ACTOR_KEY}",
        "{file: key.password}",
    ):  # fmt: skip
        for after in (literal, f"{{value: {literal}}}", f"[{literal}]", f"{{env: [{literal}]}}"):
            canaries.file.write_text(
                CONFIG.replace("PORT", "1").replace("CLOSED", "1").replace(before, after)
            )
            with pytest.raises(ConfigError) as caught:
                load(canaries.file)
            canaries.assert_none_in("\n".join(map(str, caught.value.problems)), f"the problem of {after}")


def test_a_log_that_was_set_up_for_debugging_does_not_let_libraries_speak(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handlers, level, own = list(root.handlers), root.level, logging.getLogger("fieldbus").level
    try:
        log.set_up("debug")
        assert root.level == logging.WARNING
        assert logging.getLogger("fieldbus.mqtt.paho").getEffectiveLevel() == logging.CRITICAL
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("fieldbus").setLevel(own)
    capsys.readouterr()
