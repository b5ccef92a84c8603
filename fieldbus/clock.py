"""The time, for everything that has to go by the log's time when a log is replayed step by step.

Rules: call ``clock.monotonic_s()`` and ``clock.wall_ns()``, never import the names themselves: a stepped
replay puts other functions in their place before anything else happens, and nothing else ever does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

monotonic_s: Callable[[], float] = time.monotonic
"""For periods and ages, in seconds; what the event loop's own timers go by."""
wall_ns: Callable[[], int] = time.time_ns
"""For stamps: nanoseconds since the Unix epoch."""
