"""The own time of a file: by it the ages of what is in there are measured, however clocks are set.

Rules:

* While the file is used, its time goes on with the monotonic clock. What the wall clock does meanwhile
  changes no age.
* While it is not used, its time goes on with the wall clock, but by `LONGEST_PAUSE_S` at most: whether a
  clock that is a hundred days further was set, or nobody used the file for so long, cannot be told. Then what
  is in there is kept longer, and that is said.
* It never goes back.

Layout: one row ``own_time(own_ns, wall_ns)``: both times at the last commit. The own time begins as the wall
clock's.

Design: a time in the file, and not the ages in memory, because ages must survive a restart, and a time that
cannot be wrong needs no judgement later.
"""

from __future__ import annotations

import sqlite3

from fieldbus.clock import Clock

LONGEST_PAUSE_S = 86400.0
"""How much time can pass at most while a file is not used."""
_SCHEMA = "CREATE TABLE IF NOT EXISTS own_time(own_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL);"


class OwnTime:
    """The time of one file."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._own_ns: int | None = None
        """The file's time at `_at_s`; None if it was never opened."""
        self._at_s = 0.0

    def now_ns(self) -> int:
        """Return the file's time."""
        if self._own_ns is None:
            return self._clock.wall_ns()
        return self._own_ns + max(0, round((self._clock.monotonic_s() - self._at_s) * 1e9))

    def opened(self, connection: sqlite3.Connection, newest_ns: int | None) -> str | None:
        """Go on with a file's time; return what is to be said of it.

        Args:
            connection: the file.
            newest_ns: the time of the newest that is in there, if the file is of before it had its own time.
        """
        connection.execute(_SCHEMA)
        found = connection.execute("SELECT own_ns, wall_ns FROM own_time").fetchone()
        said = None
        now_s, wall_ns = self._clock.monotonic_s(), self._clock.wall_ns()
        if self._own_ns is not None:  # opened again meanwhile, or begun anew
            own_ns = self.now_ns() if found is None else max(found[0], self.now_ns())
        else:
            before = found if found is not None else None if newest_ns is None else (newest_ns, newest_ns)
            own_ns, said = _after_pause(before, wall_ns)
        self._own_ns, self._at_s = own_ns, now_s
        if found is None:
            connection.execute("INSERT INTO own_time VALUES(?, ?)", (own_ns, wall_ns))
        return said

    def keep(self, connection: sqlite3.Connection) -> None:
        """Write both times, within somebody's transaction."""
        connection.execute(
            "UPDATE own_time SET own_ns = ?, wall_ns = ?", (self.now_ns(), self._clock.wall_ns())
        )


def _after_pause(before: tuple[int, int] | None, wall_ns: int) -> tuple[int, str | None]:
    """Return the own time of a file that was not used for a while, and what is to be said of that."""
    if before is None:
        return wall_ns, None
    pause_s = (wall_ns - before[1]) / 1e9
    said = None
    if pause_s > LONGEST_PAUSE_S:
        said = (
            f"the clock is {pause_s / 86400:.1f} days ahead of when the file was written last; one day of "
            "that counts for the age of its content"
        )
    elif pause_s < -1.0:
        said = (
            f"the clock is {-pause_s:.0f} s behind of when the file was written last: its content has not "
            "become older meanwhile"
        )
    return before[0] + round(min(max(0.0, pause_s), LONGEST_PAUSE_S) * 1e9), said
