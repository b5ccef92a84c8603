"""``fieldbus write``: values into points, through the gate.

If a gateway runs the configuration, it writes, and nobody goes past it; if none does, this command does,
straight to the devices, with the same guards, and records it in the same audit log; no gateway starts
meanwhile. With a URL the command travels over the broker.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldbus.cli.broker import CaOption, CertificateOption, KeyOption, is_url, url_or_exit, visit
from fieldbus.cli.common import (
    JsonOption,
    Rows,
    cell,
    fail,
    find_points,
    load_or_exit,
    out,
    print_json,
)
from fieldbus.cli.read import TimeoutOption, timeout_of
from fieldbus.errors import LinkDownError, RefusedError
from fieldbus.gateway import log, loop
from fieldbus.gateway.commands.command import DEFAULT_EXPIRY_S, LONGEST_EXPIRY_S
from fieldbus.gateway.control import ask
from fieldbus.gateway.door_client import take_or_reach
from fieldbus.gateway.oneshot import DEFAULT_TIMEOUT_S, parse_value
from fieldbus.gateway.oneshot import write as write_points
from fieldbus.gateway.plant import Plant
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.model import Point, Value
from fieldbus.mqtt import peering
from fieldbus.mqtt.visitor import Visitor
from fieldbus.sample_json import iso_time

_GRACE_S = 6.0
"""So much longer than a command is good its answer may take: what is sent in time is answered later."""
_BIRTH_S = 1.0
"""How long the retained message of a gateway's points may take to come."""
_FINE = (WriteOutcome.WRITTEN, WriteOutcome.VERIFIED, WriteOutcome.ARMED)
_STYLES = {**dict.fromkeys(_FINE, "green"), WriteOutcome.UNKNOWN: "yellow"}


def write(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG or URL", help="The configuration; or mqtt://USER@HOST/GATEWAY.")
    ],
    assignments: Annotated[list[str], typer.Argument(metavar="POINT=VALUE…", help="press.setpoint=42.5")],
    as_json: JsonOption = False,
    timeout: TimeoutOption = f"{DEFAULT_TIMEOUT_S:g}s",
    arm: Annotated[bool, typer.Option("--arm", help="Of a point with `confirm`: arm it.")] = False,
    execute: Annotated[bool, typer.Option("--execute", help="Of a point with `confirm`: do it.")] = False,
    actor: Annotated[
        str | None, typer.Option("--actor", help="With a URL: who we are; the broker's user by default.")
    ] = None,
    sign_with: Annotated[
        str | None,
        typer.Option("--sign", metavar="VARIABLE", help="With a URL: the variable that has our key."),
    ] = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Write points once; refused if the gate says no."""
    timeout_s = timeout_of(timeout)
    if arm and execute:
        raise typer.BadParameter("first --arm, then --execute", param_hint="--execute")
    mode = "arm" if arm else "execute" if execute else "write"
    typed = _parsed(assignments)
    log.set_up("error")
    if is_url(config):
        place = url_or_exit(config)
        key_text = None if sign_with is None else os.environ.get(sign_with)
        if sign_with is not None and key_text is None:
            raise fail(f"the environment variable {sign_with} is not set")
        if not place.gateway:
            raise typer.BadParameter("the URL has no gateway: mqtt://USER@HOST/GATEWAY", param_hint="URL")
        name = actor or place.username
        if name is None:
            raise typer.BadParameter("who are we? mqtt://USER@HOST/GATEWAY, or --actor", param_hint="--actor")
        visitor = visit(place, ca, certificate, key)
        try:
            found = loop.run(_write_afar(visitor, place.gateway, name, typed, mode, key_text, timeout_s))
        except LinkDownError as error:
            raise fail(str(error)) from None
    else:
        found = _write_here(Path(config), typed, mode, timeout_s)
    if as_json:
        print_json(found)
    else:
        _print(found)
    if not all(item["outcome"] in _FINE for item in found):
        raise typer.Exit(1)


def _parsed(assignments: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or "*" in name:
            raise typer.BadParameter(f"'{text}' is not POINT=VALUE", param_hint="POINT=VALUE")
        if name in found:
            raise typer.BadParameter(f"{name} is given two values", param_hint="POINT=VALUE")
        found[name] = value
    return found


def _write_here(config: Path, typed: Mapping[str, str], mode: str, timeout_s: float) -> list[dict[str, Any]]:
    plant = load_or_exit(config, needs_secrets=False, shows_warnings=False)
    try:
        locks = take_or_reach(plant.data_dir, plant.file, timeout_s)
    except LinkDownError as error:
        raise fail(str(error)) from None
    if locks is None:
        return _write_or_refuse(plant, typed, mode, timeout_s, is_running=True)
    try:
        plant = load_or_exit(config, shows_warnings=False)  # then we need what a gateway needs
        return _write_or_refuse(plant, typed, mode, timeout_s, is_running=False)
    finally:
        locks.release()


def _write_or_refuse(
    plant: Plant, typed: Mapping[str, str], mode: str, timeout_s: float, *, is_running: bool
) -> list[dict[str, Any]]:
    values: dict[Point, Value] = {}
    refused: dict[Point, WriteResult] = {}
    for name, text in typed.items():
        point = find_points(plant, [name])[0]
        try:
            values[point] = parse_value(point, text)
        except RefusedError as error:
            refused[point] = WriteResult(point, text, WriteOutcome.REFUSED, str(error))
    # One value that is wrong stops them all: half of what was asked for may be worse than nothing.
    if refused:
        if is_running:  # the gateway says the same, and records that it was tried
            attempts: dict[Point, Value] = {point: str(result.value) for point, result in refused.items()}
            with suppress(LinkDownError):
                loop.run(_write_by_gateway(plant, attempts, mode, timeout_s))
        results = list(refused.values())
        held = "not tried: another value was refused"
        results += [WriteResult(point, value, WriteOutcome.REFUSED, held) for point, value in values.items()]
        return [_object(result) for result in results]
    if is_running:
        try:
            return loop.run(_write_by_gateway(plant, values, mode, timeout_s))
        except LinkDownError as error:
            raise fail(str(error)) from None
    if mode != "write":
        raise fail("only a running gateway can be armed, and none runs this configuration")
    return [_object(result) for result in loop.run(write_points(plant, values, timeout_s))]


async def _write_by_gateway(
    plant: Plant, values: Mapping[Point, Value], mode: str, timeout_s: float
) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    together: dict[Hashable, dict[str, Value]] = {}
    for point, value in values.items():
        together.setdefault(plant.written_with(point), {})[point.address] = value
    for members in together.values():
        request: dict[str, Any] = {"do": "write", "mode": mode, "expires_s": min(timeout_s, LONGEST_EXPIRY_S)}
        if len(members) == 1:
            [(request["point"], request["value"])] = members.items()
        else:
            request["values"] = members
        answer = await ask(plant.data_dir, request, timeout_s + _GRACE_S)
        if answer is None:
            raise LinkDownError("the gateway has ended")
        found |= dict(zip(members, answer.get("answers", [answer]), strict=False))
    return [found[point.address] for point in values]


async def _write_afar(
    visitor: Visitor,
    gateway: str,
    actor: str,
    typed: Mapping[str, str],
    mode: str,
    key: str | None,
    timeout_s: float,
) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    answers = peering.topic(visitor.user, "answer", gateway)
    waiting: dict[str, str] = {}
    async with visitor:
        if len(typed) > 1:
            _refuse_groups(await _groups_afar(visitor, gateway), typed)
        await visitor.hear(answers)
        for name, text in typed.items():
            id_ = secrets.token_hex(8)
            waiting[id_] = name
            device, _, point = name.partition(".")
            topic = peering.topic(gateway, "command", actor, device, point)
            command = {
                "value": _as_json(text), "id": id_, "time": iso_time(time.time_ns()), "mode": mode,
                "expires": f"{min(timeout_s, DEFAULT_EXPIRY_S):g}s",
            }  # fmt: skip
            payload = json.dumps(command).encode()
            signature = None if key is None else peering.sign(key.encode(), topic, payload)
            expiry_s = max(1, round(timeout_s))
            await visitor.say(topic, payload, answer_to=answers, signature=signature, expiry_s=expiry_s)
        try:
            async with asyncio.timeout(timeout_s):
                async for heard in visitor.messages():
                    answer = _answer(heard.payload)
                    if answer is not None and answer["id"] in waiting:
                        found[waiting.pop(answer["id"])] = answer
                    if not waiting:
                        break
        except TimeoutError:
            reason = f"no answer from gateway {gateway}: whether it was written is not known"
            for id_, name in waiting.items():
                found[name] = {
                    "point": name, "value": typed[name], "outcome": str(WriteOutcome.UNKNOWN),
                    "reason": reason, "id": id_,
                }  # fmt: skip
    return [found[name] for name in typed]


async def _groups_afar(visitor: Visitor, gateway: str) -> dict[str, tuple[str, str]]:
    """Return the groups of a gateway's points, by address; nothing if the broker does not show its birth."""
    topic = peering.topic(gateway, "birth")
    await visitor.hear(topic)
    try:
        async with asyncio.timeout(_BIRTH_S):
            async for heard in visitor.messages():
                if heard.topic == topic:
                    birth = peering.decode_birth(heard.payload, gateway)
                    return {
                        point.address: (point.device, point.group) for point in birth.points if point.group
                    }
    except (TimeoutError, peering.PeeringError):
        pass
    return {}


def _refuse_groups(groups: Mapping[str, tuple[str, str]], typed: Mapping[str, str]) -> None:
    """Refuse values of one group: each topic is a command of its own, and they would not go together.

    Raises:
        LinkDownError: two of them are in one group.
    """
    first: dict[tuple[str, str], str] = {}
    for name in typed:
        group = groups.get(name)
        if group is not None and (other := first.setdefault(group, name)) != name:
            text = f"{other} and {name} are in the group '{group[1]}' and are written with one request"
            hint = "through a broker each value is a command of its own: write them on the gateway's machine"
            raise LinkDownError(f"{text}; {hint}")


def _answer(payload: bytes) -> dict[str, Any] | None:
    """Return what a gateway answers; None if it is no answer."""
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(data, dict) and {"point", "value", "outcome", "reason", "id"} <= data.keys()
    return data if is_one and isinstance(data["id"], str) else None


def _as_json(text: str) -> Value:
    """Return what somebody typed as the gateway takes it: numbers and truth values as such."""
    word = text.strip().lower()
    if word in ("true", "on", "false", "off"):
        return word in ("true", "on")
    for kind in (lambda word: int(word, 0), float):
        try:
            found = kind(word)
            return found if math.isfinite(found) else text
        except (ValueError, OverflowError):
            continue
    return text


def _print(found: Sequence[Mapping[str, Any]]) -> None:
    table = Rows()
    for name in ("point", "value", "outcome", "reason"):
        table.add_column(name)
    for item in found:
        style = _STYLES.get(item["outcome"], "red")
        table.add_row(
            cell(item["point"]), cell(item["value"]), cell(item["outcome"], style), cell(item["reason"] or "")
        )
    out().print(table)


def _object(result: WriteResult) -> dict[str, Any]:
    return {
        "point": result.point.address,
        "value": result.value,
        "outcome": str(result.outcome),
        "reason": None if result.reason is None else str(result.reason),
    }
