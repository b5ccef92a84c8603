"""The event loop that the gateway runs in, and the signals that end it or have it reload."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the fastest loop that there is."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(main)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        # The default loop there cannot wait on sockets of others, which aiomqtt needs.
        return asyncio.SelectorEventLoop()
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def on_signal(stop: Callable[[], None]) -> None:
    """Have `stop` called on SIGINT and SIGTERM; a second one has its usual, sudden effect."""
    loop = asyncio.get_running_loop()

    def in_loop(number: int) -> None:
        loop.remove_signal_handler(number)
        stop()

    def in_handler(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, in_loop, number)
        except NotImplementedError:  # Windows
            signal.signal(number, in_handler)


def on_hangup(reload: Callable[[], None]) -> None:
    """Have `reload` called on SIGHUP, each time; where there is no such signal, nothing happens."""
    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
