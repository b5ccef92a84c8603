"""The `id` of each command that was decided, for as long as it could come again.

Rules:

* An `id` belongs to its actor. What was executed or refused once is refused when it comes again; of two that
  come at the same time the first one has the `id`.
* An `id` is needed until its command expires, by the wall clock, which can be set back. So none is forgotten
  while there is room; and once some were, a command that expires no later than one of those is refused, for
  it could be one of them.
* Bounded: executed ones by `MOST_EXECUTED`, of all actors together; refused ones by `MOST_REFUSED` of each
  actor, so that an actor who is refused again and again costs no other actor anything.

Design: pure, time is a parameter. In normal operation a new command always expires later than all that were
forgotten, because those have expired; only a clock that was set back can make a difference.
"""

from __future__ import annotations

from fieldbus.errors import RefusedError

MOST_EXECUTED = 100_000
MOST_REFUSED = 20_000


class Ids:
    """The ids of one gateway."""

    def __init__(self) -> None:
        self._executed: dict[tuple[str, str], int] = {}
        """Actor and id to when the command expires."""
        self._forgotten_ns: int | None = None
        """When the last of the executed commands expires that were forgotten."""
        self._refused: dict[str, dict[str, tuple[int, str]]] = {}
        """Actor to id to when it expires and why it was refused, in the order in which they came."""
        self._claimed: dict[tuple[str, str], object] = {}
        """Actor and id to the command that has it and is not decided yet."""
        self._forgotten_of: dict[str, int] = {}
        """Actor to when the last of the refused commands expires that were forgotten."""

    def __len__(self) -> int:
        """Return how many executed commands are remembered."""
        return len(self._executed)

    def claim(self, actor: str, id_: str, command: object) -> None:
        """Have an id belong to a command that waits for its decision, unless another one has it."""
        self._claimed.setdefault((actor, id_), command)

    def is_of_another(self, actor: str, id_: str, command: object) -> bool:
        """Return whether another command has the id and waits for its decision."""
        return self._claimed.get((actor, id_), command) is not command

    def release(self, actor: str, id_: str, command: object) -> bool:
        """End the claim of a command; return whether the id was its own, or nobody's."""
        if self.is_of_another(actor, id_, command):
            return False
        self._claimed.pop((actor, id_), None)
        return True

    def check(self, actor: str, id_: str, expires_ns: int | None, command: object) -> None:
        """Check that an id was not decided yet and belongs to no other command.

        Raises:
            RefusedError: it was, or it cannot be told.
        """
        if (actor, id_) in self._executed or self.is_of_another(actor, id_, command):
            raise RefusedError("this command was executed already")
        found = self._refused.get(actor, {}).get(id_)
        if found is not None:
            raise RefusedError(f"this command was refused already: {found[1]}")
        forgotten = max(
            (at_ns for at_ns in (self._forgotten_ns, self._forgotten_of.get(actor)) if at_ns is not None),
            default=None,
        )
        if forgotten is not None and (expires_ns is None or expires_ns <= forgotten):
            raise RefusedError(
                "it cannot be told whether this command was decided already: the clock was set back, or too "
                "many commands came; give it again with a new `id` and time"
            )

    def executed(self, actor: str, id_: str, until_ns: int) -> None:
        """Remember a command that was let through, with when it expires."""
        self._claimed.pop((actor, id_), None)
        self._executed[actor, id_] = until_ns

    def withdraw(self, actor: str, id_: str, reason: str) -> None:
        """Remember a command that was let through and not executed after all as a refused one."""
        until_ns = self._executed.pop((actor, id_), None)
        if until_ns is not None:
            self.refused(actor, id_, until_ns, reason)

    def make_room(self, now_ns: int) -> None:
        """Forget the executed commands that have expired, if there is no room for another one.

        Raises:
            RefusedError: none has.
        """
        if len(self._executed) < MOST_EXECUTED:
            return
        over = [until_ns for until_ns in self._executed.values() if until_ns <= now_ns]
        if not over:
            raise RefusedError("too many commands at once")
        self._executed = {key: until_ns for key, until_ns in self._executed.items() if until_ns > now_ns}
        self._forgotten_ns = max(over if self._forgotten_ns is None else [*over, self._forgotten_ns])

    def refused(self, actor: str, id_: str, until_ns: int, reason: str) -> None:
        """Remember a command that was refused, unless its id was decided before."""
        self._claimed.pop((actor, id_), None)
        book = self._refused.setdefault(actor, {})
        if id_ in book or (actor, id_) in self._executed:
            return
        book[id_] = until_ns, reason
        if len(book) > MOST_REFUSED:
            first = next(iter(book))
            until_ns, _ = book.pop(first)
            self._forgotten_of[actor] = max(until_ns, self._forgotten_of.get(actor, until_ns))
