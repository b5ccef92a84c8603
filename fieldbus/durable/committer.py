"""A thread that owns one SQLite file and commits in groups.

Rules:

* What is `put` is in one transaction with all that was put within `group_commit_s` of it, and is durable
  (WAL, ``synchronous=FULL``) before `committed` is called for it. Order is kept.
* A transaction that fails (disk full, I/O error, a mistake of the keeper's) is rolled back whole, kept, and
  tried again every `RETRY_S`; that, and when it works again, is said once. Nobody waits for it: the gateway
  goes on.
* A COMMIT that reports an error may have reached the disk all the same. What it wrote is written again only
  if the file, opened anew, does not have it (`Keeper.is_in`).
* An item that cannot be written while others can costs itself only: it is dropped, said, and its owner told
  (`Keeper.spoilt`).
* A file that is damaged is set aside as ``NAME.damaged-<time>``, which is said, and a new one begun. What was
  waiting goes into the new one.
* A file that somebody deletes or replaces while it is used is noticed within a second, or before the next
  commit; a new one is begun, which is said.
* The file is our own (`files`): a link in its place is an error, as a disk that cannot be written is.
* Questions (`ask`) are answered by the same thread, before the next commit.
* What waits is bounded by its owner: `take_oldest` takes back what has waited longest, unless it is being
  committed just now. While it is `held`, what was being committed does not come back in front of it.

Design: one thread, because SQLite writes one transaction at a time anyway, and because an fsync takes as
long as it likes: the event loop never waits for a disk. ``synchronous=NORMAL`` would be quicker and lose
committed rows in a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fieldbus.durable.files import make_folder, open_own

RETRY_S = 0.5
"""How long a failed commit waits before it is tried again."""
DEFAULT_GROUP_COMMIT_S = 0.1
_BUSY_S = 5.0
_MOST_SPOILT = 1000
"""After so many items that cannot be written, and none that can, the items are not to blame."""
_DAMAGED = ("malformed", "not a database", "encrypted")
_REOPENED = "disk I/O error"
"""After it SQLite wants the file opened anew."""

ItemT = TypeVar("ItemT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
AnswerT = TypeVar("AnswerT")


class Keeper(Protocol[ItemT_contra]):
    """What is done with the file, by whoever knows what is in it.

    The last three are called in the event loop, the others in the thread.
    """

    def opened(self, connection: sqlite3.Connection) -> None:
        """Make the tables if they are not there, and learn what is in them."""

    def apply(self, connection: sqlite3.Connection, items: Sequence[ItemT_contra]) -> Any:
        """Write items, inside a transaction. What it returns is given to `committed`."""

    def settled(self, *, is_committed: bool) -> None:
        """Learn that what `apply` did is in the file, or that nothing of it is."""

    def is_in(self, connection: sqlite3.Connection, result: Any) -> bool:
        """Return whether what `apply` returned is in the file; False, too, if once more would do no harm."""
        ...

    def committed(self, items: Sequence[ItemT_contra], result: Any) -> None:
        """Learn, in the event loop, that items are durable."""

    def spoilt(self, items: Sequence[ItemT_contra]) -> None:
        """Learn, in the event loop, that items were dropped, as they cannot be written."""

    def said(self, text: str, *, is_bad: bool) -> None:
        """Learn, in the event loop, of trouble with the file, or that it is over."""


class Committer(Generic[ItemT]):
    """The thread and what waits for it."""

    def __init__(
        self, path: Path, keeper: Keeper[ItemT], group_commit_s: float = DEFAULT_GROUP_COMMIT_S
    ) -> None:
        self.path = path
        self.trouble: str | None = None
        """Why the last commit failed; None if it did not."""
        self.commits = 0
        self._keeper = keeper
        self._group_commit_s = group_commit_s
        self._waiting: deque[ItemT] = deque()
        self._doubted: tuple[list[ItemT], Any] | None = None
        """What a COMMIT that failed had, until it is known whether it is in the file, and its result."""
        self._questions: deque[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = deque()
        self._condition = threading.Condition()
        self._due_s = 0.0
        self._is_closing = False
        self._is_hurried = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: sqlite3.Connection | None = None
        self._stat: os.stat_result | None = None
        """The file that is open."""
        self.turned_s = time.monotonic()
        """When the thread last had a turn: it is well if that is not long ago, or nothing waits."""

    def open(self) -> None:
        """Open the file now, so that the keeper knows what is in it; then start the thread."""
        self._loop = asyncio.get_running_loop()
        try:
            self._connect()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
        self._thread = threading.Thread(target=self._work, name=f"committer {self.path.name}", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def put(self, item: ItemT) -> None:
        """Have an item committed. Never blocks, never raises."""
        with self._condition:
            self._waiting.append(item)
            if len(self._waiting) == 1:
                self._due_s = time.monotonic() + self._group_commit_s
                self._condition.notify()

    def held(self) -> AbstractContextManager[object]:
        """Return what keeps the thread away from what waits, for as long as it is entered: not for long."""
        return self._condition

    def hangs_s(self) -> float:
        """Return for how long the thread has had no turn though something waits."""
        with self._condition:
            return time.monotonic() - self.turned_s if self._waiting and self.is_open else 0.0

    def take_oldest(self) -> ItemT | None:
        """Take back what has waited longest; None if nothing waits that is not being committed."""
        with self._condition:
            return self._waiting.popleft() if self._waiting else None

    def put_back_first(self, item: ItemT) -> None:
        """Have an item committed before all others that wait."""
        with self._condition:
            self._waiting.appendleft(item)
            self._condition.notify()

    async def ask(self, question: Callable[[sqlite3.Connection], AnswerT]) -> AnswerT:
        """Return what the thread reads from the file.

        Raises:
            sqlite3.Error: it cannot be read now.
        """
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        with self._condition:
            self._questions.append((question, future))
            self._condition.notify()
        return await future

    def hurry(self) -> None:
        """Commit what waits now, without waiting for more."""
        with self._condition:
            self._is_hurried = True
            self._condition.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Commit what waits, once, and end the thread."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    # --- in the thread

    def _work(self) -> None:
        waiting_for_retry = False
        while True:
            with self._condition:
                while not self._is_closing and not self._questions:
                    self.turned_s = time.monotonic()
                    if not self._waiting and self._doubted is None:
                        if not self._condition.wait(1.0):
                            break
                        continue
                    delay_s = self._due_s - self.turned_s
                    if delay_s <= 0 or (self._is_hurried and not waiting_for_retry):
                        break
                    self._condition.wait(min(delay_s, 1.0))
                questions = list(self._questions)
                self._questions.clear()
                is_closing = self._is_closing
                is_due = is_closing or self._is_hurried or time.monotonic() >= self._due_s
                is_due = is_due and not questions
                items = list(self._waiting) if is_due else []
                if items:
                    self._waiting.clear()
                    self._is_hurried = False
            is_work = bool(items) or (is_due and self._doubted is not None)
            if not (is_work or questions):
                self._look_idly()
            for question, future in questions:
                self._answer(question, future)
            waiting_for_retry = is_work and not self._commit(items)
            if is_closing and not questions:
                break
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()

    def _commit(self, items: list[ItemT]) -> bool:
        """Commit items behind what was doubted; what cannot be written now waits again."""
        try:
            self._look_whether_it_is_there()
            if self._doubted is not None:
                items = self._settle_doubt(self._connection or self._connect()) + items
            if items:
                self._write(items)
        except Exception as error:  # also what nobody thought of must not end the thread
            self._failed(error)
            if self._doubted is not None and self._doubted[0] is items:
                items = []
            elif not _is_of_the_disk(error) and len(items) > 1:
                items = self._sift(items)
            if items or self._doubted is not None:
                with self._condition:
                    self._waiting.extendleft(reversed(items))
                    self._due_s = time.monotonic() + RETRY_S
                return False
        return True

    def _write(self, items: list[ItemT]) -> None:
        """Commit items in one transaction."""
        result: Any = None
        is_applied = False
        try:
            connection = self._connection or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            result = self._keeper.apply(connection, items)
            is_applied = True
            connection.execute("COMMIT")
        except Exception:
            self._keeper.settled(is_committed=False)
            if is_applied:
                self._doubted = items, result
            raise
        self._keeper.settled(is_committed=True)
        self._wrote(items, result)

    def _wrote(self, items: Sequence[ItemT], result: Any) -> None:
        self.commits += 1
        if self.trouble is not None:
            self.trouble = None
            self._tell(self._keeper.said, f"{self.path} can be written again", is_bad=False)
        self._tell(self._keeper.committed, items, result)

    def _settle_doubt(self, connection: sqlite3.Connection) -> list[ItemT]:
        """Return what a COMMIT that failed had, if that is not in the file."""
        assert self._doubted is not None  # noqa: S101 - who calls has looked
        items, result = self._doubted
        is_in = self._keeper.is_in(connection, result)
        self._doubted = None
        if not is_in:
            return items
        self._wrote(items, result)
        return []

    def _sift(self, items: list[ItemT]) -> list[ItemT]:
        """Write items without those that cannot be written; return what waits on.

        If none can be written, or one only could not be for a moment, all wait.
        """
        spoilt: dict[int, Exception] = {}
        parts = [range(len(items))]
        is_one_good = False
        while parts:
            part = parts.pop()
            error = self._try([items[index] for index in part])
            if error is None:
                is_one_good = True
            elif _is_of_the_disk(error):
                return items
            elif len(part) > 1:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
            else:
                spoilt[part[0]] = error
                if not is_one_good and len(spoilt) >= _MOST_SPOILT:
                    return items
        if not is_one_good or any(self._try([items[index]]) is None for index in spoilt):
            return items
        try:
            self._write([item for index, item in enumerate(items) if index not in spoilt])
        except Exception as error:
            self._failed(error)
            return items if self._doubted is None else [items[index] for index in spoilt]
        if not spoilt:
            return []
        first = next(iter(spoilt.values()))
        text = f"{self.path}: {len(spoilt)} entries cannot be written and are dropped ({first!r})"
        self._tell(self._keeper.said, text, is_bad=True)
        self._tell(self._keeper.spoilt, [items[index] for index in spoilt])
        return []

    def _try(self, items: list[ItemT]) -> Exception | None:
        """Write items and undo it; return why that cannot be done."""
        try:
            connection = self._connection or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            self._keeper.apply(connection, items)
            connection.execute("ROLLBACK")
        except Exception as error:
            self._roll_back(error)
            return error
        finally:
            self._keeper.settled(is_committed=False)
        return None

    def _answer(self, question: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any]) -> None:
        try:
            answer = question(self._connection or self._connect())
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            self._tell(_settle, future, None, error)
        except Exception as error:
            self._tell(_settle, future, None, error)
        else:
            self._tell(_settle, future, answer, None)

    def _look_idly(self) -> None:
        """Begin a file anew that was deleted while nothing was to be written."""
        try:
            if self._look_whether_it_is_there():
                self._connect()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def _look_whether_it_is_there(self) -> bool:
        """Close a file that was deleted or replaced meanwhile; return whether it was."""
        if self._connection is None or self._stat is None:
            return False
        try:
            if os.path.samestat(self.path.lstat(), self._stat):
                return False
        except OSError:
            pass
        connection, self._connection = self._connection, None
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        for suffix in ("-wal", "-shm"):  # of the file that is gone: not to be taken for those of the next one
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + suffix).unlink()
        text = f"{self.path} was deleted or replaced while it was used; a new one is begun"
        self._tell(self._keeper.said, text, is_bad=True)
        return True

    def _connect(self) -> sqlite3.Connection:
        make_folder(self.path.parent)
        for suffix in ("", "-wal", "-shm"):
            name = self.path.with_name(self.path.name + suffix)
            if not suffix or name.is_symlink():
                os.close(open_own(name, os.O_RDWR | (0 if suffix else os.O_CREAT)))
        try:
            return self._open_file()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            os.close(open_own(self.path, os.O_RDWR | os.O_CREAT))
            return self._open_file()

    def _open_file(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA journal_size_limit=4194304")
            found = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != ("ok",):
                raise sqlite3.DatabaseError(f"malformed: {found[0] if found else 'no answer'}")
            self._keeper.opened(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._stat = connection, self.path.lstat()
        return connection

    def _set_aside(self, error: Exception) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{number}")
        self._stat = None
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        text = f"{self.path} is damaged ({error}); it was set aside as {aside.name}, and a new one begun"
        self._tell(self._keeper.said, text, is_bad=True)

    def _failed(self, error: Exception) -> None:
        self._roll_back(error)
        is_known = isinstance(error, sqlite3.Error | OSError)
        text = str(error) if is_known else f"internal error, {type(error).__name__}: {error}"
        if self.trouble != text:
            self.trouble = text
            self._tell(
                self._keeper.said, f"{self.path} cannot be written ({text}); trying again", is_bad=True
            )

    def _roll_back(self, error: Exception) -> None:
        """Undo what an error cut off; after one that says nothing sure the file is opened anew."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        is_unsure = self._doubted is not None or _REOPENED in str(error) or _is_of_the_file(error)
        if connection is not None and is_unsure:
            # What is wrong with the file is looked at when it is opened anew.
            self._connection = None
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _tell(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed just now
            loop.call_soon_threadsafe(lambda: function(*arguments, **named))


def _is_damage(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, sqlite3.DatabaseError) and any(word in text for word in _DAMAGED)


def _is_of_the_disk(error: Exception) -> bool:
    """Return whether something failed that has nothing to do with what was to be written."""
    return isinstance(error, sqlite3.OperationalError | OSError) or _is_damage(error)


def _is_of_the_file(error: Exception) -> bool:
    """Return whether the file, or the connection to it, may not be what it was."""
    is_harmless = isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError | sqlite3.DataError)
    return isinstance(error, sqlite3.Error) and not is_harmless


def _settle(future: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
