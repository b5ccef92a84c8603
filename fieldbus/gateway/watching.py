"""The values of a gateway on a broker, as somebody who watches it sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fieldbus.errors import LinkDownError
from fieldbus.model import Point, Quality, Reason, Sample
from fieldbus.mqtt import peering
from fieldbus.mqtt.peering import PeeringError, Want, topic
from fieldbus.mqtt.records import RecordError, decode_peer_row
from fieldbus.mqtt.visitor import Visitor
from fieldbus.sample_json import sample_object

PERIOD_S = 0.25
BIRTH_TIMEOUT_S = 3.0


async def afar(visitor: Visitor, gateway: str) -> AsyncIterator[dict[str, Any]]:
    """Yield lines as `control.stream` does: the first with all points, then those that have changed.

    Raises:
        LinkDownError: the broker or the gateway is not there, or any more.
    """
    points: dict[str, Point] = {}
    fresh: dict[str, dict[str, Any]] = {}
    async with visitor:
        await visitor.hear(
            topic(gateway, "status"), topic(gateway, "birth"), topic(gateway, "live", visitor.name)
        )
        messages = visitor.messages()
        following: asyncio.Future[Any] = asyncio.ensure_future(anext(messages))
        loop = asyncio.get_running_loop()
        due_s, renew_s = loop.time() + BIRTH_TIMEOUT_S, loop.time() + peering.RENEW_S
        try:
            while True:
                await asyncio.wait({following}, timeout=max(0.0, due_s - loop.time()))
                if loop.time() >= due_s:
                    if not points:
                        raise LinkDownError(f"gateway {gateway} is not there: it says nothing of itself")
                    due_s = loop.time() + PERIOD_S
                    yield {"gateway": gateway, "points": list(fresh.values())}
                    fresh.clear()
                    if loop.time() >= renew_s:
                        renew_s = loop.time() + peering.RENEW_S
                        await visitor.want(gateway, Want(dict.fromkeys(points, False)))
                if not following.done():
                    continue
                heard = following.result()
                following = asyncio.ensure_future(anext(messages))
                kind = heard.topic.split("/")[2]
                if kind == "birth":
                    birth = _birth(heard.payload, gateway)
                    points = {point.address: point for point in birth if point.access.can_read}
                    waiting = Sample(None, Quality.BAD, Reason.WAITING, 0)
                    fresh = {name: _shown(point, waiting) for name, point in points.items()}
                    await visitor.want(gateway, Want(dict.fromkeys(points, False)))
                    due_s = loop.time() + PERIOD_S
                elif kind == "live":
                    fresh.update(_samples(heard.payload, points))
                elif kind == "status" and not _is_online(heard.payload):
                    raise LinkDownError(f"gateway {gateway} is not connected to the broker")
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def _birth(payload: bytes, gateway: str) -> list[Point]:
    try:
        return list(peering.decode_birth(payload, gateway).points)
    except PeeringError as error:
        raise LinkDownError(f"gateway {gateway}: what it says of itself makes no sense: {error}") from None


def _samples(payload: bytes, points: dict[str, Point]) -> dict[str, dict[str, Any]]:
    try:
        items = decode_peer_row(payload)
    except RecordError:
        return {}
    found = {}
    for item in items:
        point = points.get(item.head[0])
        if point is not None:
            found[point.address] = _shown(point, item.sample)
    return found


def _shown(point: Point, sample: Sample) -> dict[str, Any]:
    return sample_object(point, sample, names_point=True)


def _is_online(payload: bytes) -> bool:
    try:
        return bool(json.loads(payload)["status"] == "online")
    except (ValueError, KeyError, TypeError):
        return False
