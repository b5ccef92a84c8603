"""Who works with a configuration and its data folder: one gateway, or one `fieldbus write`, at a time.

Rules:

* Two locks, either of which is enough to recognise that somebody works: one on a file in the data folder, one
  on the configuration file itself. So a data folder may be deleted, and an editor may replace the
  configuration: `refresh`, once a second, locks what has taken its place, and what could not be locked at
  the start.
* The configuration file is only opened for reading, so it may be read-only. The end of a process frees its
  locks.
* A folder that cannot be written, or a system without such locks, keeps nobody from working.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from fieldbus.durable.files import make_folder, open_own, read_own

if sys.platform != "win32":
    import fcntl

_HAS_LOCKS = sys.platform != "win32"

LOCK_NAME = "gateway.lock"
_PAUSE_S = 0.05
_TIMES_TAKEN = 3
"""After so many vain attempts in a row somebody works, and does not only look."""


class Holder(NamedTuple):
    """Who has the locks, as far as it is known."""

    pid: int | None
    purpose: str | None
    """``run`` or ``write``."""

    def __str__(self) -> str:
        return "" if self.pid is None else f" (process {self.pid})"


class InUseError(Exception):
    """Somebody else works with the configuration or its data folder."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"in use{holder}")
        self.holder = holder


class SoleUse:
    """The locks that this process has."""

    def __init__(self, data_dir: Path, config: Path | None, purpose: str) -> None:
        """Take the locks.

        Args:
            data_dir: the data folder; made if it is missing.
            config: the configuration file; None for the folder alone.
            purpose: ``run`` or ``write``, for others to read.

        Raises:
            InUseError: somebody else has one of them.
        """
        self._data_dir = data_dir
        self._config = config
        self._purpose = purpose
        self._locks: dict[Path, int] = {}
        self._times_taken = 0
        try:
            self._take(config, os.O_RDONLY)
            self._take_folder()
        except BlockingIOError:
            self.release()
            raise InUseError(_holder(data_dir)) from None

    def refresh(self) -> list[str]:
        """Lock what could not be locked before, or has taken the place of what was; return what to say."""
        said = []
        path = self._data_dir / LOCK_NAME
        is_missing, had_lock = not self._data_dir.is_dir(), path in self._locks
        try:
            if self._is_to_be_locked(self._config):
                self._take(self._config, os.O_RDONLY)
            if is_missing or self._is_to_be_locked(path):
                self._take_folder()
                if had_lock:
                    what = "the data folder" if is_missing else "the lock in the data folder"
                    text = f"{what} {self._data_dir} was deleted or replaced; the gateway makes it again"
                    said.append(text)
        except BlockingIOError:  # somebody else was quicker, and is recognised by that
            self._times_taken += 1
            if self._times_taken == _TIMES_TAKEN:
                holder = _holder(self._data_dir)
                who = "" if holder.pid == os.getpid() else str(holder)
                said.append(f"another process{who} uses this configuration or data folder, too; stop one")
        else:
            self._times_taken = 0
        return said

    def release(self) -> None:
        """Give the locks back."""
        for fd in self._locks.values():
            os.close(fd)
        self._locks.clear()

    def _take_folder(self) -> None:
        with suppress(OSError):
            make_folder(self._data_dir)
        path = self._data_dir / LOCK_NAME
        self._take(path, os.O_RDWR | os.O_CREAT)
        fd = self._locks.get(path)
        if fd is not None:
            with suppress(OSError):
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps({"pid": os.getpid(), "for": self._purpose}).encode(), 0)

    def _take(self, path: Path | None, flags: int) -> None:
        if path is None or not _HAS_LOCKS:
            return
        try:
            # The configuration may be a link, as in /etc; what it leads to is what others lock.
            fd = open_own(path, flags) if flags & os.O_CREAT else os.open(path, flags | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise
        except OSError:  # a file system without locks
            os.close(fd)
            return
        before = self._locks.pop(path, None)
        if before is not None:
            os.close(before)
        self._locks[path] = fd

    def _is_to_be_locked(self, path: Path | None) -> bool:
        """Return whether a path has no lock of ours, or another file is there by now."""
        if path is None:
            return False
        fd = self._locks.get(path)
        if fd is None:  # it was missing, or could not be opened
            return True
        try:
            return not os.path.samestat(path.stat(), os.fstat(fd))
        except OSError:  # missing: a lock is made anew, a configuration by its editor
            return path != self._config


def is_in_use(data_dir: Path, config: Path) -> bool:
    """Return whether somebody works with a configuration or its data folder now."""
    if not _HAS_LOCKS:
        return False
    for path in (config, data_dir / LOCK_NAME):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
        finally:
            os.close(fd)
    return False


def take(data_dir: Path, config: Path | None = None, purpose: str = "run", wait_s: float = 0.0) -> SoleUse:
    """Take the locks; wait for them if it is worth it.

    Raises:
        InUseError: somebody else has one of them.
    """
    # Whoever only looks whether they are taken has them for a moment.
    give_up_s = time.monotonic() + 0.2
    patient_s = time.monotonic() + wait_s
    while True:
        try:
            return SoleUse(data_dir, config, purpose)
        except InUseError as error:
            now_s = time.monotonic()
            is_worth_it = error.holder.purpose == "write" and now_s < patient_s
            if now_s > give_up_s and not is_worth_it:
                raise
        time.sleep(_PAUSE_S)


@contextmanager
def sole_use(data_dir: Path, config: Path | None = None) -> Iterator[bool]:
    """Have a data folder, and a configuration, for this process alone; yields whether they are to be had."""
    try:
        locks = take(data_dir, config)
    except InUseError:
        yield False
        return
    try:
        yield True
    finally:
        locks.release()


def _holder(data_dir: Path) -> Holder:
    try:
        found = json.loads(read_own(data_dir / LOCK_NAME))
        return Holder(int(found["pid"]), str(found["for"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(None, None)
