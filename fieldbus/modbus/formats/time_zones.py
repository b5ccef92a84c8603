"""The time zone of a device's clock, by name or as a fixed offset."""

from __future__ import annotations

import datetime
import re
import zoneinfo

_OFFSET = re.compile(r"([+-])(\d{2}):(\d{2})")


def zone_named(name: str) -> datetime.tzinfo | None:
    """Return a zone such as ``Europe/Berlin``, ``UTC`` or ``+01:00``; None if there is none of that name.

    A fixed offset is for clocks that stay at standard time all the year.
    """
    if name in ("UTC", "Z"):
        return datetime.UTC
    match = _OFFSET.fullmatch(name)
    if match is not None:
        minutes = int(match[2]) * 60 + int(match[3])
        if minutes > 14 * 60 or int(match[3]) > 59:
            return None
        return datetime.timezone(datetime.timedelta(minutes=-minutes if match[1] == "-" else minutes))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None
