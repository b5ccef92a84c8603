"""Threads for work that a disk may hold up for as long as it likes.

Rules: each call has a thread of its own, a daemon. No call waits for another, and neither the end of the
event loop nor the end of the process waits for any. asyncio's default executor joins its threads at the end.

Design: an executor, so that ``loop.run_in_executor`` takes it. A stepped loop runs such calls in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads(Executor):
    """Runs each call in a daemon thread of its own."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Begin a call; return its future."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=work, name=f"beside {getattr(fn, '__name__', 'call')}", daemon=True).start()
        return future


DAEMON_THREADS = DaemonThreads()
"""It has no state: one serves all."""
