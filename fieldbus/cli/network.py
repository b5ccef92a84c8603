"""``fieldbus network``: all gateways on a broker, what is down since when, what waits and what was lost."""

from __future__ import annotations

import asyncio
import datetime
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from fieldbus.cli.broker import URL_HELP, CaOption, CertificateOption, KeyOption, url_or_exit, visit
from fieldbus.cli.common import JsonOption, Rows, cell, fail, out, print_json, say
from fieldbus.errors import LinkDownError
from fieldbus.gateway import loop
from fieldbus.gateway.health import REPEAT_S
from fieldbus.mqtt.peering import HEALTH_EXPIRY_S, ROOT, is_gateway_name
from fieldbus.mqtt.presence import LOST
from fieldbus.mqtt.visitor import Heard, Visitor

_QUIET_S = 0.7
"""So long nothing more comes before all is known: what is retained comes at once."""
_LONGEST_S = 10.0
_LONGEST_TEXT = 200
_MOST_DOWN = 20
"""Links and devices of a gateway that are named if they are down. The rest is counted."""
_STALE_S = 3 * REPEAT_S
"""A gateway that has not said for so long how it is, is not online, whatever the broker says."""


def network(
    url: Annotated[str, typer.Argument(metavar="URL", help=URL_HELP)],
    as_json: JsonOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Show all gateways on a broker: their links and devices, backlog, drops and refused commands."""
    place = url_or_exit(url)
    try:
        found = loop.run(_look(visit(place, ca, certificate, key)))
    except LinkDownError as error:
        raise fail(str(error)) from None
    if as_json:
        print_json([found[name] for name in sorted(found)])
    elif not found:
        say(f"no gateway has been on {place.place} yet")
    else:
        _show(found)
    if any(not item["online"] or item["silent"] or _down(item) for item in found.values()):
        raise typer.Exit(1)


async def _look(visitor: Visitor) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    ages_s: dict[str, float] = {}
    async with visitor:
        await visitor.hear(f"{ROOT}/+/status", f"{ROOT}/+/health")
        messages = visitor.messages()
        now_s = asyncio.get_running_loop().time
        ends_s, quiet_s = now_s() + _LONGEST_S, now_s() + _QUIET_S
        following: asyncio.Future[Any] = asyncio.ensure_future(anext(messages))
        while now_s() < ends_s:
            done, _ = await asyncio.wait({following}, timeout=max(0.0, quiet_s - now_s()))
            if not done:
                break
            heard = following.result()
            if heard.is_retained:  # what they say meanwhile does not end
                quiet_s = now_s() + _QUIET_S
            following = asyncio.ensure_future(anext(messages))
            _, gateway, kind = heard.topic.split("/", 2)
            try:
                data = json.loads(heard.payload)
            except (ValueError, RecursionError):
                continue
            if not isinstance(data, dict) or not is_gateway_name(gateway):
                continue
            entry = found.setdefault(
                gateway, {"gateway": gateway, "online": False, "status": None, "health": None}
            )
            entry[kind] = data
            if kind == "health":
                ages_s[gateway] = _age_s(data.get("time"), heard)
            if kind == "status":
                entry["online"] = data.get("status") == "online"
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    for entry in found.values():
        # A broker that was killed knows nothing of those that went meanwhile.
        entry["silent"] = entry["online"] and ages_s.get(entry["gateway"], math.inf) > _STALE_S
    return found


def _down(item: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what of a gateway is down: kind, name, since when."""
    health = item["health"] or {}
    found = [
        ("link", name, str(link.get("since")))
        for name, link in _parts(health, "links")
        if not link.get("connected")
    ]
    found += [
        ("device", name, str(device.get("since")))
        for name, device in _parts(health, "devices")
        if not device.get("online")
    ]
    return found


def _parts(health: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    part = health.get(name)
    return [item for item in part.items() if isinstance(item[1], dict)] if isinstance(part, dict) else []


def _show(found: dict[str, dict[str, Any]]) -> None:
    table = Rows()
    for name in (
        "gateway",
        "state",
        "version",
        "links",
        "devices",
        "backlog",
        "dropped",
        "written",
        "refused",
    ):
        table.add_column(name, justify="right" if name not in ("gateway", "state", "version") else "left")
    for name in sorted(found):
        item = found[name]
        health = item["health"] or {}
        status = item["status"] or {}
        streams = _parts(health, "streams")
        commands = health.get("commands") if isinstance(health.get("commands"), dict) else {}
        state = cell("online", "green")
        if item["silent"]:
            state = cell(f"silent since {_ago(health.get('time'))}", "red")
        if not item["online"]:
            state = cell(_offline(status, health), "red")
        table.add_row(
            cell(name), state, cell(_short(health.get("version", ""))),
            _count(_parts(health, "links"), "connected"), _count(_parts(health, "devices"), "online"),
            _sum(stream.get("backlog", 0) for _, stream in streams),
            _sum(stream.get("dropped", 0) for _, stream in streams),
            _sum([(commands or {}).get("written", 0)]), _sum([(commands or {}).get("refused", 0)]),
        )  # fmt: skip
    out().print(table)
    for name in sorted(found):
        down = _down(found[name]) if found[name]["online"] else []
        for kind, what, since in down[:_MOST_DOWN]:
            say(f"{name}: {kind} {_short(what)} is down since {_ago(since)}")
        if len(down) > _MOST_DOWN:
            say(f"{name}: {len(down) - _MOST_DOWN} more are down")
        for trouble in _troubles(found[name]["health"] or {}):
            say(f"{name}: {trouble}")


def _offline(status: dict[str, Any], health: dict[str, Any]) -> str:
    """Return since when a gateway is offline, as far as that is known.

    A last will has the time at which the gateway connected, not that at which the broker published it.
    """
    time, reason = status.get("time"), _short(status.get("reason"))
    if status.get("reason") != LOST:
        return f"offline since {_ago(time)}: {reason}"
    heard = health.get("time")
    if _moment(heard) is not None:
        return f"offline, last heard {_ago(heard)}: {reason}"
    return f"offline, last connected {_ago(time)}: {reason}"


def _sum(counts: Iterable[object]) -> str:
    """Return the sum of counts that a gateway sent; "?" if one of them is not a count."""
    found = list(counts)
    if not all(isinstance(count, int) and 0 <= count < 1 << 64 for count in found):
        return "?"
    return str(sum(found))  # type: ignore[arg-type] # see above


def _short(said: object) -> str:
    """Return text that a gateway sent, cut to `_LONGEST_TEXT` characters; other JSON as its text."""
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _troubles(health: dict[str, Any]) -> list[str]:
    found = []
    for name, words in (
        ("spool", "the spool cannot be written"),
        ("audit", "the audit log cannot be written"),
    ):
        part = health.get(name)
        if isinstance(part, dict) and part.get("trouble"):
            found.append(f"{words} ({_short(part['trouble'])})")
    fallbacks = health.get("fallbacks")
    if isinstance(fallbacks, list) and fallbacks:
        found.append(f"at their safe value: {_short(', '.join(map(str, fallbacks)))}")
    return found


def _count(parts: list[tuple[str, dict[str, Any]]], key: str) -> str:
    good = sum(bool(item.get(key)) for _, item in parts)
    return f"{good}/{len(parts)}"


def _age_s(time: object, heard: Heard) -> float:
    """Return how long ago a gateway said how it is; infinity if that cannot be told.

    The broker has counted the time, so that two clocks that differ do not matter. A message of version 0.1
    has no expiry: there the gateway's own time counts.
    """
    if not heard.is_retained:
        return 0.0
    if heard.expires_s is not None:
        return float(HEALTH_EXPIRY_S - heard.expires_s)
    moment = _moment(time)
    return math.inf if moment is None else (datetime.datetime.now(datetime.UTC) - moment).total_seconds()


def _moment(time: object) -> datetime.datetime | None:
    """Return the time that another gateway names; None if it names none."""
    if not isinstance(time, str):
        return None
    try:
        moment = datetime.datetime.fromisoformat(time)
        return moment.astimezone(datetime.UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _ago(time: object) -> str:
    moment = _moment(time)
    if moment is None:
        return "?"
    seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
    shown = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    if seconds < 120:
        return f"{shown} ({seconds:.0f} s)"
    return f"{shown} ({seconds / 60:.0f} min)" if seconds < 7200 else f"{shown} ({seconds / 3600:.0f} h)"
