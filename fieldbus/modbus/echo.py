"""Whether a line gives back what is sent on it: an RS-485 adapter may hear itself.

Rules:

* The response to a write of one coil or register (FC 5, 6), or of single bits (FC 22), looks like its
  request. So an echo could be taken for the device's word. On a line that echoes, it never is.
* Whether a line echoes is learned from requests whose response cannot be mistaken for an echo: reads, and
  exception responses. It is echoed if the whole request comes back before the response; it is not echoed if
  nothing of the request does. What is between leaves it as it was.
* With a new connection it is unknown again: another adapter may be there. That a line echoes is believed
  until several responses in a row came without an echo: a single one may be late, the response to an earlier
  request.
"""

from __future__ import annotations

from collections.abc import Callable

_TO_DISBELIEVE = 3
_TELLING = 3
"""So many bytes of a request that come back may be a part of its echo."""


class LineEcho:
    """What is known of one line."""

    __slots__ = ("_found", "_missed", "_said", "is_heard")

    def __init__(self, said: bool | None = None, found: Callable[[], None] = lambda: None) -> None:
        """Take what the configuration says.

        Args:
            said: whether the line echoes, if the configuration says so.
            found: is called when the line turns out to echo though the configuration does not say so.
        """
        self._said = said
        self._found = found
        self._missed = 0
        self.is_heard = said
        """Whether what we send comes back; None as long as it is not known."""

    @property
    def is_promised(self) -> bool:
        """Whether the configuration says that the line echoes: without its echo there is no response."""
        return self._said is True

    def begin(self) -> None:
        """Take up a new connection."""
        if not self.is_heard:
            self.is_heard = self._said

    def was_heard(self) -> None:
        """Learn that a request came back whole, before its response."""
        self._missed = 0
        if not self.is_heard:
            self.is_heard = True
            self._found()

    def came_first(self, request: bytes, before: bytes) -> None:
        """Learn which bytes came before a response that cannot be the echo of its request."""
        if self.is_heard is False or self._said:
            return
        pieces = (request[n : n + _TELLING] for n in range(len(request) - _TELLING + 1))
        if before and any(piece in before for piece in pieces):
            return
        self._missed += 1
        if not self.is_heard or self._missed >= _TO_DISBELIEVE:
            self.is_heard = False
