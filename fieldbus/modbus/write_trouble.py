"""What it means that a request which writes has no good response."""

from __future__ import annotations

from dataclasses import dataclass

from fieldbus.errors import (
    ConnectionLostError,
    DeviceExceptionError,
    NotSentError,
    RequestError,
    RequestTimeoutError,
)
from fieldbus.link import WriteOutcome
from fieldbus.modbus import pdu
from fieldbus.model import Reason

_PERHAPS_DONE = (pdu.ACKNOWLEDGE, pdu.GATEWAY_TARGET_FAILED_TO_RESPOND)
NO_REFUSAL = (*_PERHAPS_DONE, pdu.GATEWAY_PATH_UNAVAILABLE)
"""Exceptions after which nothing is tried otherwise: it may be done already, or nobody is there."""


NOT_READABLE = (pdu.ILLEGAL_FUNCTION, pdu.ILLEGAL_DATA_ADDRESS, pdu.ILLEGAL_DATA_VALUE)
"""Exceptions to a read after which there is no use in asking again."""


class OutOfStepError(RequestTimeoutError):
    """A request was not sent: its response could not be told from a late one."""


class NotAllowedError(RequestError):
    """A request was not sent, because it is not allowed any more, or its time is over."""

    def __init__(self, outcome: WriteOutcome, reason: str) -> None:
        """Take how it ends."""
        super().__init__(reason)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something was not written, or perhaps not."""

    outcome: WriteOutcome
    reason: str
    is_refusal: bool = False
    """Whether the device said no to what was asked, and may say yes to another request."""
    is_odd: bool = False
    """Whether the device answered, but something else than was to be expected."""


class TroubleError(Exception):
    """Ends what a run has to ask."""

    def __init__(self, trouble: Trouble) -> None:
        """Take why."""
        super().__init__(trouble.reason)
        self.trouble = trouble


def trouble_of(error: RequestError) -> Trouble:
    """Return what it means that a request which writes failed."""
    if isinstance(error, NotAllowedError):
        return Trouble(error.outcome, str(error))
    if isinstance(error, OutOfStepError):
        return Trouble(WriteOutcome.FAILED, Reason.TIMEOUT)
    if isinstance(error, NotSentError):
        return Trouble(WriteOutcome.FAILED, Reason.BAD_RESPONSE)
    if isinstance(error, ConnectionLostError):
        why = f": {error}" if str(error) else ""
        return Trouble(WriteOutcome.UNKNOWN, f"connection lost before the response came{why}")
    if isinstance(error, RequestTimeoutError):
        return Trouble(WriteOutcome.UNKNOWN, Reason.TIMEOUT)
    if isinstance(error, DeviceExceptionError):
        code = error.exception_code
        outcome = WriteOutcome.UNKNOWN if code in _PERHAPS_DONE else WriteOutcome.FAILED
        return Trouble(outcome, f"{Reason.DEVICE_EXCEPTION} {code:02X}", code not in NO_REFUSAL)
    return Trouble(WriteOutcome.UNKNOWN, f"{Reason.BAD_RESPONSE}: {error}", is_odd=True)
