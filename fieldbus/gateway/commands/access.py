"""Who may write what, and how it is known that it is they.

On a topic the actor is what the topic says, and the broker's access list makes that true: whoever logs in as
``operator`` may publish below ``fieldbus/+/command/operator/`` and nowhere else (``pattern write
fieldbus/+/command/%u/#`` of mosquitto). Where the broker is not to be trusted, an actor has a key, and its
commands are signed: HMAC-SHA256 over the topic, a line feed, and the payload, which has time and id in it, as
hexadecimal digits in the user property ``signature``.

Rules: nobody may anything but what `access` says. Of an actor with a key nothing is believed without a
signature. Keys never appear in a message, and neither does what would have been right.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fieldbus.errors import RefusedError
from fieldbus.mqtt.peering import sign

LOCAL = "local"
"""The actor that somebody is who can read this machine's token."""
SIGNATURE = "signature"
"""The user property that a signed command has."""


@dataclass(frozen=True, slots=True)
class Actor:
    """What one actor may do."""

    patterns: Sequence[str]
    """Points, with ``*`` for any characters."""
    key: bytes | None = field(default=None, repr=False)
    """With which its commands are signed; None if the broker's word is enough."""


class Access:
    """All actors."""

    def __init__(self, actors: Mapping[str, Actor], *, is_given: bool = True) -> None:
        """Take the actors.

        Args:
            actors: by name.
            is_given: whether the configuration says anything of access. If not, who is on this machine may
                write what is writable: whoever can read the token could change the configuration as well.
        """
        self._actors = actors
        self._is_given = is_given
        self._patterns = {
            name: re.compile("|".join(_expression(pattern) for pattern in actor.patterns))
            for name, actor in actors.items()
            if actor.patterns
        }

    def may_write(self, actor: str, point: str) -> bool:
        """Return whether an actor may write a point, by its address."""
        if actor == LOCAL and not self._is_given:
            return True
        pattern = self._patterns.get(actor)
        return pattern is not None and pattern.fullmatch(point) is not None

    def is_actor(self, name: str) -> bool:
        """Return whether the configuration names an actor; who is on this machine always is one."""
        return name == LOCAL or name in self._actors

    def check_signature(self, actor: str, topic: str, payload: bytes, given: str | None) -> None:
        """Check that a command is its actor's.

        Raises:
            RefusedError: it has to be signed and is not, or not rightly.
        """
        known = self._actors.get(actor)
        if known is None or known.key is None:
            return
        if given is None:
            raise RefusedError(f"commands of '{actor}' are signed, and this one is not")
        if not hmac.compare_digest(
            sign(known.key, topic, payload).encode(), given.lower().encode("utf-8", "replace")
        ):
            raise RefusedError(f"the signature is not that of '{actor}'")


def is_match(pattern: str, point: str) -> bool:
    """Return whether a pattern of `access` is one for a point."""
    return re.fullmatch(_expression(pattern), point) is not None


def _expression(pattern: str) -> str:
    return ".*".join(re.escape(part) for part in pattern.split("*"))
