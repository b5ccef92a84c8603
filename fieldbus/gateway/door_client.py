"""How a command reaches the gateway that runs a configuration, or learns that none does.

Rules: a gateway is recognised by its local door or by its locks (`sole_use`). While the locks are taken
nobody goes past it: a door that is not there is waited for, because a gateway makes it anew when its data
folder was deleted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldbus.errors import LinkDownError
from fieldbus.gateway.control import ask, running_config
from fieldbus.gateway.sole_use import InUseError, SoleUse, is_in_use, take

DOOR_S = 5.0
"""How long a gateway is waited for whose door is not there."""
_PAUSE_S = 0.1
_GRACE_S = 2.0
_POINTS_AT_ONCE = 2000


def is_running(data_dir: Path, config: Path) -> bool:
    """Return whether a gateway runs a configuration and can be asked.

    Raises:
        LinkDownError: one runs, and its door cannot be reached.
    """
    give_up_s = time.monotonic() + DOOR_S
    while True:
        if running_config(data_dir) == str(config.resolve()):
            return True
        if not is_in_use(data_dir, config):
            return False
        if time.monotonic() > give_up_s:
            raise LinkDownError(_closed(data_dir))
        time.sleep(_PAUSE_S)


def take_or_reach(data_dir: Path, config: Path, wait_s: float) -> SoleUse | None:
    """Return the locks for a write of our own; None if a gateway runs the configuration and can be asked.

    Args:
        wait_s: how long another write of somebody else's is waited for.

    Raises:
        LinkDownError: a gateway runs, and its door cannot be reached or is another configuration's.
    """
    give_up_s = time.monotonic() + max(DOOR_S, wait_s)
    while True:
        running = running_config(data_dir)
        if running == str(config.resolve()):
            return None
        if running is not None:
            raise LinkDownError(
                f"a gateway runs {running} with the data folder {data_dir}; write through that one, or give "
                "this configuration a `data_dir` of its own"
            )
        try:
            return take(data_dir, config, "write")
        except InUseError:
            if time.monotonic() > give_up_s:
                raise LinkDownError(_closed(data_dir)) from None
        time.sleep(_PAUSE_S)


def _closed(data_dir: Path) -> str:
    return (
        f"a gateway works with this configuration or its data folder {data_dir}, but its local door cannot "
        "be reached (gateway.json is missing, or belongs to another gateway); restart the gateway, or "
        "stop it and try again"
    )


async def read_by_gateway(data_dir: Path, points: Sequence[str], timeout_s: float) -> list[dict[str, Any]]:
    """Return samples of points, read by the gateway that runs, in their JSON form.

    Raises:
        LinkDownError: it refuses, or does not answer.
    """
    answers = await asyncio.gather(
        *(
            ask(
                data_dir,
                {"do": "read", "points": points[start : start + _POINTS_AT_ONCE], "timeout_s": timeout_s},
                timeout_s + _GRACE_S,
            )
            for start in range(0, len(points), _POINTS_AT_ONCE)
        )
    )
    found: list[dict[str, Any]] = []
    for answer in answers:
        found += _points_of(answer)
    return found


def _points_of(answer: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if answer is None:
        raise LinkDownError("the gateway has ended")
    if not answer.get("ok"):
        raise LinkDownError(str(answer.get("text", "the gateway refused the read")))
    return list(answer["points"])
