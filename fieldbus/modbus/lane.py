"""One connection of a client link and the request under way on it."""

from __future__ import annotations

from typing import Protocol

from fieldbus.clock import Clock
from fieldbus.errors import LinkDownError, RequestError
from fieldbus.modbus.client import Line
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.places import Place
from fieldbus.modbus.units import Poll, Steps, UnitState


class Host(Protocol):
    """What the connections need of the link."""

    place: Place
    """Where the devices are; a simulator's while its devices are simulated."""
    name: str
    clock: Clock

    def take_answer(self, lane: Lane, answer: bytes) -> None:
        """Take the PDU that answers the request under way."""

    def take_failure(self, lane: Lane, error: RequestError) -> None:
        """Learn that the request under way has no answer."""

    def lose(self, lane: Lane, error: LinkDownError) -> None:
        """Learn that a connection is gone."""

    def end(self, error: BaseException) -> None:
        """End the session with an error."""

    def next(self, lane: Lane) -> None:
        """Give a free connection something to do."""

    def is_due(self) -> bool:
        """Return whether a request is due."""
        ...

    def schedule(self, poll: Poll) -> None:
        """Take a poll that is due at its `due_s`."""

    def resume(self, steps: Steps, state: UnitState, ask: Ask) -> None:
        """Take steps whose request was not sent, or is sent again."""

    def interrupt(self, lane: Lane, steps: Steps, error: RequestError) -> None:
        """Tell steps that their request failed."""

    def blame(
        self, lane: Lane, state: UnitState, poll: Poll | None, steps: Steps | None, error: LinkDownError
    ) -> bool:
        """Take the end of a connection for the failure of its request, if it is; return whether."""
        ...

    def poke(self) -> None:
        """Look in the next turn of the loop whether something can be sent."""

    def give_up_writes(self) -> None:
        """Fail what waits to be written."""

    def unreachable(self, error: LinkDownError) -> None:
        """Fail what waits for a connection: it cannot be opened."""

    def reachable(self) -> None:
        """Learn that a connection was opened that is opened on demand."""


class Lane:
    """One connection of the link, and the request under way on it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.clock = host.clock
        self.line: Line | None = None
        self.is_opening = False
        self.is_resting = False
        """Whether it ended between requests, or was closed by us, and is opened by the next request."""
        self.was_closed = False
        """Whether the device closed it between requests."""
        self.is_proven = False
        """Whether something was answered since it was opened."""
        self.opened_at_s = 0.0
        self.state: UnitState | None = None
        self.ask: Ask | None = None
        self.poll: Poll | None = None
        self.steps: Steps | None = None
        """What the request under way is a step of, if it is no poll."""
        self.is_hurried = False
        self.is_background = False
        """Whether the step under way belongs to something that lets others go between its steps."""
        self.was_background = False
        self.asked_s = 0.0
        self.number = 0
        """Of the request under way."""
        self.reopen_after_s = 0.0
        """How long a connection of several rests before it is opened again."""

    @property
    def is_free(self) -> bool:
        """Whether a request can be sent on it."""
        return self.line is not None and self.state is None and not self.is_opening

    @property
    def has_sent(self) -> bool:
        """Whether bytes of the request under way may have left."""
        return self.state is not None and self.line is not None and self.line.has_sent

    def answered(self, answer: bytes) -> None:
        """Take the PDU that answers the request."""
        self.is_proven = True
        try:
            self._host.take_answer(self, answer)
        except Exception as error:
            self._host.end(error)

    def failed(self, error: RequestError) -> None:
        """Learn that the request has no answer."""
        try:
            self._host.take_failure(self, error)
        except Exception as other:
            self._host.end(other)

    def lost(self, error: LinkDownError) -> None:
        """Learn that the connection is gone."""
        try:
            self._host.lose(self, error)
        except Exception as other:
            self._host.end(other)

    def take(self) -> tuple[UnitState | None, Poll | None, Steps | None]:
        """Return what the request under way is about; there is none any more."""
        found = self.state, self.poll, self.steps
        self.state, self.poll, self.steps = None, None, None
        return found

    def drop(self) -> tuple[UnitState | None, Poll | None, Steps | None]:
        """Close the connection; return what the request under way was about, which may be answered late."""
        had_sent = self.has_sent
        line, self.line = self.line, None
        state, poll, steps = self.take()
        if line is not None:
            if state is not None and self.ask is not None and had_sent and not line.framer.has_transactions:
                state.suspect(self.ask, self.clock.monotonic_s())
            line.close()
        return state, poll, steps

    def close(self) -> None:
        """Close the connection and end what had more to ask."""
        _, _, steps = self.drop()
        if steps is not None:
            steps.close()
