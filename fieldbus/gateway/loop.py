"""The event loop that the gateway runs in, and the signals that end it or have it reload."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fieldbus.gateway import last_resort

T = TypeVar("T")
TOGETHER_S = 1.0
_ENDS = (signal.SIGINT, signal.SIGTERM)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the fastest loop that there is."""
    before = {number: signal.getsignal(number) for number in _ENDS} if _is_main_thread() else {}
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(main)
    finally:
        if not last_resort.is_armed():  # otherwise nothing but the end of the process follows
            for number, handler in before.items():
                signal.signal(number, handler)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        # The default loop there cannot wait on sockets of others, which aiomqtt needs.
        return asyncio.SelectorEventLoop()
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def on_signal(stop: Callable[[], None], *, ends_process: bool = False) -> None:
    """Have `stop` called in the loop on the first SIGINT or SIGTERM.

    Others that come within `TOGETHER_S` are the same wish (a terminal and a supervisor both pass it on); a
    later one ends the process at once.

    Args:
        stop: called once.
        ends_process: whether the process is ended if it has not ended by itself after `last_resort.END_S`.
    """
    loop = asyncio.get_running_loop()
    first_s: float | None = None

    # No handlers of the loop: those are gone as soon as it is closed, and depend on its not hanging.
    def told(number: int, _frame: object) -> None:
        nonlocal first_s
        now_s = time.monotonic()
        if first_s is None:
            first_s = now_s
            if ends_process:
                last_resort.arm(loop)
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(stop)
        elif now_s - first_s > TOGETHER_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in _ENDS:
        signal.signal(number, told)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def on_hangup(reload: Callable[[], None]) -> None:
    """Have `reload` called on SIGHUP, each time; where there is no such signal, nothing happens."""
    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
