"""Reads through a running gateway: fresh values for somebody at the local door.

Rules:

* A link that can read out of turn does so: the request is sent after it was asked for, at the next turn of
  that link, on the connection that the gateway has. Devices that serve one client only stay with the gateway.
* Of a link that listens (a bus, topics, masters of ours) the newest sample counts if it has a value; if not,
  the next one is waited for.
* Each point gets exactly one sample, within the time that was given: bad, with the reason, if there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from fieldbus.errors import LinkDownError
from fieldbus.gateway.runtime import Gateway
from fieldbus.link import LazyLink, Link, ReadableLink
from fieldbus.model import Point, Quality, Reason, Sample
from fieldbus.sample_json import sample_object

MOST_POINTS = 10_000
LONGEST_S = 300.0
_LOOK_S = 0.02


async def read(gateway: Gateway, points: Sequence[Point], timeout_s: float) -> dict[Point, Sample]:
    """Return a sample of each point.

    Raises:
        LinkDownError: a reload has closed one of their links meanwhile.
    """
    plant = gateway.plant  # of now: a reload may come between asking and reading
    by_link: dict[str, list[Point]] = {}
    for point in points:
        by_link.setdefault(plant.link_of[point.device], []).append(point)
    until_s = gateway.clock.monotonic_s() + timeout_s
    found: dict[Point, Sample] = {}
    for samples in await asyncio.gather(
        *(_read_from(gateway, plant.links[name], members, until_s) for name, members in by_link.items())
    ):
        found |= samples
    return found


async def _read_from(
    gateway: Gateway, link: Link, points: Collection[Point], until_s: float
) -> dict[Point, Sample]:
    if isinstance(link, ReadableLink):
        found = await link.read(points, until_s=until_s)
        _check_is_there(gateway, link)
        return found
    waiting = list(points)
    found = {}
    while True:
        _check_is_there(gateway, link)
        if isinstance(link, LazyLink):
            link.refresh()
        for point in waiting:
            sample = gateway.present(point)
            found[point] = sample or Sample(None, Quality.BAD, Reason.WAITING, gateway.clock.wall_ns())
        waiting = [point for point in waiting if found[point].quality is Quality.BAD]
        if not waiting or gateway.clock.monotonic_s() >= until_s:
            return found
        await asyncio.sleep(_LOOK_S)


def _check_is_there(gateway: Gateway, link: Link) -> None:
    """Check that a link is at work still.

    Raises:
        LinkDownError: a reload has closed it.
    """
    if gateway.plant.links.get(link.name) is not link:
        text = f"the configuration was reloaded meanwhile, and link {link.name} was changed or removed"
        raise LinkDownError(f"{text}; read again")


async def answer(gateway: Gateway, request: dict[str, Any]) -> dict[str, Any]:
    """Answer ``{"do": "read", "points": […], "timeout_s": …}``."""
    names, timeout_s = request.get("points"), request.get("timeout_s", 5.0)
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not is_number or not 0 < timeout_s <= LONGEST_S:
        return _refusal(f"`timeout_s` is a number of seconds, at most {LONGEST_S:.0f}")
    if not isinstance(names, list) or not 0 < len(names) <= MOST_POINTS:
        return _refusal(f"`points` is a list of addresses, at most {MOST_POINTS}")
    points = []
    for name in names:
        point = gateway.points.get(name) if isinstance(name, str) else None
        if point is None:
            return _refusal(f"the running gateway has no point '{str(name)[:60]}'; was it reloaded?")
        if point.device == "sys":
            return _refusal(f"{name} is the running gateway's own: use `fieldbus watch`")
        points.append(point)
    try:
        found = await read(gateway, points, timeout_s)
    except LinkDownError as error:
        return _refusal(str(error))
    return {"ok": True, "points": [sample_object(point, found[point], names_point=True) for point in points]}


def _refusal(text: str) -> dict[str, Any]:
    return {"ok": False, "text": text, "problems": []}
