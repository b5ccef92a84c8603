"""The end of a process that was told to end, whatever hangs in it.

Rules:

* The process ends `END_S` after `arm`, at the latest. A second before that, a thread logs what still runs and
  ends the process with the exit status `HUNG`.
* If that thread cannot run (nobody reads the log, or a C function holds the interpreter's lock), the kernel's
  timer ends the process with SIGALRM.
* What is not on the disk by then is lost, as in a power cut.

Design: the time is the process's own, not a gateway's clock: nothing of the gateway has to work for this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

END_S = 10.0
HUNG = 70
"""Exit status: EX_SOFTWARE of sysexits.h."""
_SPARE_S = 1.0
_armed = threading.Event()
_LOG = logging.getLogger("fieldbus")


def arm(loop: asyncio.AbstractEventLoop) -> None:
    """End the process after `END_S` if it still runs. Called once, in the main thread."""
    _armed.set()
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, END_S)
    threading.Thread(target=_end, args=(loop, END_S - _SPARE_S), name="last resort", daemon=True).start()


def is_armed() -> bool:
    """Return whether this process was told to end."""
    return _armed.is_set()


def _end(loop: asyncio.AbstractEventLoop, after_s: float) -> None:
    time.sleep(after_s)
    running = ", ".join(_running(loop)) or "nothing that can be named"
    _LOG.critical("not stopped within %.0f s; still running: %s; the process ends now", after_s, running)
    os._exit(HUNG)


def _running(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return the threads and tasks that still run, each with the line that it is at."""
    frames = sys._current_frames()  # noqa: SLF001 - there is no other way to see other threads
    found = [
        f"thread {thread.name} at {_line(frames.get(thread.ident or 0))}"
        for thread in threading.enumerate()
        if not thread.daemon
    ]
    try:
        tasks = asyncio.all_tasks(loop)
    except RuntimeError:  # they change at this moment
        return found
    for task in tasks:
        stack = task.get_stack(limit=1)
        found.append(f"task {task.get_name()} at {_line(stack[-1] if stack else None)}")
    return found


def _line(frame: FrameType | None) -> str:
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_qualname} (line {frame.f_lineno})"
