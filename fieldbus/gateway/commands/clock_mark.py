"""How far the wall clock was set while no gateway ran, as far as that can be known.

Rules:

* The mark says which boot of the machine it is and how far the wall clock is from the monotonic one. It is
  written when the audit log is read at a start, and when the clock was set.
* At the next start in the same boot the difference tells by how much the clock was set meanwhile: the
  monotonic clock goes on between two processes. After a boot, and on a system that does not tell its boots
  apart, nothing is known, and the wall clock is believed.

Layout: ``clock.json`` beside the audit log: ``{"boot": "…", "offset_ns": …}``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from fieldbus.clock import Clock
from fieldbus.durable.files import make_folder, read_own, replace_own

FILE_NAME = "clock.json"


def shift_s(folder: Path, clock: Clock) -> float:
    """Return by how much the wall clock was set forward since the mark was written; 0 if not known."""
    boot = clock.boot()
    if boot is None:
        return 0.0
    try:
        mark = json.loads(read_own(folder / FILE_NAME))
        if mark["boot"] != boot:
            return 0.0
        return (_offset_ns(clock) - int(mark["offset_ns"])) / 1e9
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def keep(folder: Path, clock: Clock) -> None:
    """Write the mark, if the boot is known and the folder can be written."""
    boot = clock.boot()
    if boot is not None:
        with suppress(OSError):  # the audit log itself tells of that
            make_folder(folder)
            replace_own(
                folder / FILE_NAME, json.dumps({"boot": boot, "offset_ns": _offset_ns(clock)}).encode()
            )


def _offset_ns(clock: Clock) -> int:
    return clock.wall_ns() - round(clock.monotonic_s() * 1e9)
