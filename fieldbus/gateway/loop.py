"""The event loop that the gateway runs in, and the signals that end it or have it reload."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from fieldbus.gateway import last_resort

T = TypeVar("T")
TOGETHER_S = 1.0
"""Signals that are so close together count as one."""
_ENDS = (signal.SIGINT, signal.SIGTERM)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the fastest loop that there is."""
    with signals_restored(), asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(main)


@contextlib.contextmanager
def signals_restored() -> Iterator[None]:
    """Give SIGINT and SIGTERM back the handlers that they had before, whatever `on_signal` did."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _ENDS} if is_main_thread else {}
    try:
        yield
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
    """Call `stop` in the loop on the first SIGINT or SIGTERM; used inside `signals_restored`.

    Signals that come within `TOGETHER_S` of the first are ignored: a terminal and a supervisor often both
    send one. A later one ends the process at once.

    Args:
        stop: called once.
        ends_process: whether the process ends `last_resort.END_S` after the first signal, if it still runs.
    """
    loop = asyncio.get_running_loop()
    first_s: float | None = None

    # Not handlers of the loop: it removes those when it is closed, and does not call them while it hangs.
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


def on_hangup(reload: Callable[[], None]) -> None:
    """Have `reload` called on SIGHUP, each time; where there is no such signal, nothing happens."""
    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
