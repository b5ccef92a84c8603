"""A table that changes, on a terminal: as much of it as there is room for, to be scrolled with the keyboard.

Keys: ↑ ↓ or k j, Page Up and Page Down or b and space, Home and End or g G, and q to end. Where the keyboard
cannot be read (no terminal, Windows) the table is shown all the same, and Ctrl-C ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

if sys.platform != "win32":
    import termios
    import tty

_KEYS = {
    "k": -1, "\x1b[A": -1, "\x1bOA": -1, "j": 1, "\x1b[B": 1, "\x1bOB": 1,
    "b": -10_000, "\x1b[5~": -10_000, " ": 10_000, "\x1b[6~": 10_000,
    "g": -(1 << 40), "\x1b[H": -(1 << 40), "\x1b[1~": -(1 << 40),
    "G": 1 << 40, "\x1b[F": 1 << 40, "\x1b[4~": 1 << 40,
}  # fmt: skip
"""What a key moves, in lines; ten thousand is a page."""
_PAGE = 10_000


class Screen:
    """The whole terminal, while it is entered."""

    def __init__(self, console: Console, head: int, ended: Callable[[], None]) -> None:
        """Take where it is shown.

        Args:
            console: the terminal.
            head: so many lines at the top stay where they are.
            ended: called when somebody has enough of it.
        """
        self._console = console
        self._head = head
        self._ended = ended
        self._offset = 0
        self._content: RenderableType = ""
        self._live = Live(console=console, auto_refresh=False, screen=True, transient=True)
        self._settings: Any = None
        """How the terminal was before, if its keys are read."""

    def __enter__(self) -> Self:
        self._live.__enter__()
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settings is not None:
            with contextlib.suppress(ValueError):
                asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._settings)
        self._live.__exit__(kind, error, trace)

    def show(self, content: RenderableType) -> None:
        """Show something new in place of what was shown."""
        self._content = content
        self._draw()

    def press(self, key: str) -> None:
        """Do what a key means."""
        if key in ("q", "Q"):
            self._ended()
            return
        step = _KEYS.get(key)
        if step is None:
            return
        room = max(1, self._console.size.height - self._head - 1)
        if abs(step) == _PAGE:
            step = room if step > 0 else -room
        self._offset = max(0, self._offset + step)
        self._draw()

    def _draw(self) -> None:
        options = self._console.options
        lines = self._console.render_lines(self._content, options.update(height=None), pad=False)
        height = options.size.height
        head, body = lines[: self._head], lines[self._head :]
        if len(lines) <= height:
            self._offset = 0
            shown, foot = body, None
        else:
            room = max(1, height - self._head - 1)
            self._offset = min(self._offset, len(body) - room)
            shown = body[self._offset : self._offset + room]
            foot = foot_of(self._offset, len(body) - self._offset - len(shown))
        self._live.update(_Lines([*head, *shown], foot), refresh=True)

    # --- the keyboard

    def _listen(self) -> None:
        if sys.platform == "win32" or not sys.stdin.isatty():
            return
        fd = sys.stdin.fileno()
        try:
            self._settings = termios.tcgetattr(fd)
            tty.setcbreak(fd)
            asyncio.get_running_loop().add_reader(fd, self._read, fd)
        except (OSError, ValueError, termios.error):
            self._settings = None  # a terminal that is none

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, 1024)
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            asyncio.get_running_loop().remove_reader(fd)
            return
        for key in keys_in(data.decode(errors="replace")):
            self.press(key)


def foot_of(above: int, below: int) -> Text:
    """Return what stands under a table that has more lines than there is room for."""
    parts = [f"{below} more" if below else "the end"]
    if above:
        parts.append(f"{above} above")
    return Text(", ".join(parts) + " – ↑ ↓ to scroll, q to quit", style="reverse")


def keys_in(text: str) -> Iterator[str]:
    """Yield the keys that were pressed: letters, and what begins with an escape."""
    at = 0
    while at < len(text):
        found = next((key for key in _KEYS if key.startswith("\x1b") and text.startswith(key, at)), text[at])
        yield found
        at += len(found)


class _Lines:
    """Lines that were rendered before, and one under them."""

    def __init__(self, lines: list[list[Segment]], foot: Text | None) -> None:
        self._lines = lines
        self._foot = foot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            yield from line
            yield Segment.line()
        if self._foot is not None:
            yield self._foot
