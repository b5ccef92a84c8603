"""How a message is protected, as the configuration says it.

    EngineStatus:
      checksum: {signal: Crc, algorithm: crc8-j1850}
      counter: {signal: Alive}
    Steering:
      e2e: {profile: "1", data_id: 0x1234, variant: C}

Rules: what can be told without the database is told here; the rest when a `Protection` is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from fieldbus.canbus.e2e import CRC_MODELS, MODES, PROFILES, DataIdMode
from fieldbus.canbus.layout import Message
from fieldbus.canbus.protection import CAR_MAKERS, CRC_NAMES, E2E, SUM_NAMES, Checksum, Counter, Protection
from fieldbus.settings import Settings, problem

_RANGE = re.compile(r"[0-9]{1,4}-[0-9]{1,4}")
_VARIANTS = {"A": DataIdMode.BOTH, "B": DataIdMode.ALTERNATING, "C": DataIdMode.NIBBLE}
_SHORT_NAMES = (*SUM_NAMES, *CRC_NAMES, *CAR_MAKERS)


def _check_hex(text: str) -> str:
    try:
        size = len(bytes.fromhex(text))
    except ValueError:
        raise problem(f"{text!r} is not hexadecimal, such as 12 34") from None
    if size > 64:
        raise problem(f"{size} bytes are more than a frame has")
    return text


Hex = Annotated[str, AfterValidator(_check_hex)]
StuckAfter = Annotated[int, Field(ge=2, le=1000)]


class ChecksumSettings(Settings):
    """The checksum of a message."""

    signal: str = Field(description="The signal that holds it: 8, 16 or 32 bits at a byte, or half a byte.")
    algorithm: str | None = Field(
        None,
        description=f"{', '.join(_SHORT_NAMES)}, or a CRC by crccheck's name, such as Crc8Maxim. "
        "crc16-ccitt starts with 0xFFFF, as AUTOSAR has it. Subaru and Tesla: sum with include_id; "
        "Chrysler: crc8-j1850; Volkswagen PQ: xor, MQB: e2e with profile 2.",
    )
    polynomial: Annotated[int, Field(gt=0, lt=1 << 32)] | None = Field(
        None,
        description="In the place of `algorithm`: of a CRC without a name, as wide as the signal, without "
        "its highest bit: 0x85. It starts with `initial` (default: 0).",
    )
    reflected: bool = Field(
        False,
        description="With `polynomial`: bytes go in with their lowest bit first, and so does the result.",
    )
    initial: Annotated[int, Field(ge=0)] | None = Field(
        None, description="What it starts with; default: the algorithm's."
    )
    xor_out: Annotated[int, Field(ge=0)] | None = Field(
        None, description="What the result is combined with; default: the algorithm's."
    )
    over: str | None = Field(None, description="First and last byte, such as 0-6; default: all.")
    prefix: Hex = Field("", description="Bytes that go in before the data, hexadecimal.")
    suffix: Hex = Field("", description="Bytes that go in behind the data.")
    include_id: bool = Field(
        False,
        description="Whether the identifier goes in behind the data, low byte first, with 2 bytes, or 4 if "
        "it has 29 bits. For another order write it as prefix or suffix.",
    )

    @field_validator("algorithm")
    @classmethod
    def _check_algorithm(cls, name: str | None) -> str | None:
        if name is not None and name not in _SHORT_NAMES and name not in CRC_MODELS:
            raise problem(
                f"there is no checksum {name!r}; there are {', '.join(_SHORT_NAMES)} and, by their names, "
                f"all that crccheck knows, such as Crc8Maxim; or a `polynomial`"
            )
        return name

    @model_validator(mode="after")
    def _check_kind(self) -> ChecksumSettings:
        if (self.algorithm is None) is (self.polynomial is None):
            raise problem("a checksum has an `algorithm`, or a CRC's `polynomial`: one of the two")
        if self.reflected and self.polynomial is None:
            raise problem("`reflected` goes with `polynomial`: an `algorithm` says it itself")
        return self

    @field_validator("over")
    @classmethod
    def _check_over(cls, over: str | None) -> str | None:
        if over is not None and not _RANGE.fullmatch(over):
            raise problem(f"{over!r} is not a first and a last byte, such as 0-6")
        if over is not None and _range(over)[0] > _range(over)[1]:
            raise problem(f"{over!r} ends before it begins")
        return over

    def plan(self) -> Checksum:
        """Return the same, as the pure part takes it."""
        return Checksum(
            self.signal,
            self.algorithm or "",
            polynomial=self.polynomial,
            is_reflected=self.reflected,
            initial=self.initial,
            xor_out=self.xor_out,
            over=None if self.over is None else _range(self.over),
            prefix=bytes.fromhex(self.prefix),
            suffix=bytes.fromhex(self.suffix),
            includes_id=self.include_id,
        )


def _range(over: str) -> tuple[int, int]:
    first, _, last = over.partition("-")
    return int(first), int(last)


class CounterSettings(Settings):
    """The alive counter of a message."""

    signal: str = Field(description="The signal that counts the frames.")
    step: int = Field(1, description="By how much it moves with each frame; negative for downwards.")
    modulo: Annotated[int, Field(ge=2)] | None = Field(
        None, description="How many values it has; default: all that its bits hold. 15 for 0 to 14."
    )
    max_lost: Annotated[int, Field(ge=0)] | None = Field(
        None, description="More frames missing at once are counted as a jump; default: none is."
    )
    stuck_after: StuckAfter = Field(
        2,
        description="So many frames in a row with one value are a stuck counter; 2 is the first repetition.",
    )

    @model_validator(mode="after")
    def _check(self) -> CounterSettings:
        if self.step == 0:
            raise problem("a counter that moves by 0 does not count")
        return self

    def plan(self) -> Counter:
        """Return the same, as the pure part takes it."""
        return Counter(
            self.signal,
            step=self.step,
            modulo=self.modulo,
            max_lost=self.max_lost,
            stuck_after=self.stuck_after,
        )


class E2ESettings(Settings):
    """AUTOSAR end-to-end protection of a message."""

    profile: str = Field(description=f"One of {', '.join(PROFILES)}, in quotes.")
    data_id: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] | None = Field(
        None, description="The identifier of the data; not with profile 2."
    )
    data_id_list: Hex | None = Field(
        None, description="Of profile 2: 16 bytes, hexadecimal, one for each value of the counter."
    )
    variant: Literal["A", "B", "C"] | None = Field(
        None, description="Of profiles 1 and 11: which bytes of the identifier go into the CRC; default: A."
    )
    data_id_mode: Literal["both", "alternating", "low", "nibble"] | None = Field(
        None, description="The same by its other name: A is both, B alternating, C nibble."
    )
    offset: Annotated[int, Field(ge=0, le=63)] = Field(0, description="At which byte the header begins.")
    length: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="How many bytes are protected; default: all of the message."
    )
    max_delta: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="A counter that moved further than this is refused (MaxDeltaCounter); 1: no frame may "
        "be lost. Default: lost frames are only counted.",
    )
    stuck_after: StuckAfter = Field(
        2,
        description="So many frames in a row with one value are a stuck counter; 2 is the first repetition.",
    )

    @model_validator(mode="after")
    def _check(self) -> E2ESettings:
        if self.profile not in PROFILES:
            raise problem(f"there is no profile {self.profile!r}; there are {', '.join(PROFILES)}")
        if self.profile == "2":
            if self.data_id is not None or self.data_id_list is None:
                raise problem("profile 2 has a `data_id_list` of 16 bytes, and no `data_id`")
            if len(bytes.fromhex(self.data_id_list)) != 16:
                raise problem("`data_id_list` has 16 bytes, one for each value of the counter")
        elif self.data_id is None or self.data_id_list is not None:
            raise problem(f"profile {self.profile} has a `data_id`, and no `data_id_list`")
        if self.variant is not None and self.data_id_mode is not None:
            raise problem("`variant` and `data_id_mode` say the same; write one of them")
        known = MODES.get(self.profile, frozenset({DataIdMode.BOTH}))
        if self._mode not in known:
            raise problem(f"profile {self.profile} uses the identifier in no such way: {self._mode}")
        if self._mode is DataIdMode.NIBBLE and self.data_id is not None and self.data_id > 0xFFF:
            raise problem(f"0x{self.data_id:X} does not fit the 12 bits that variant C has")
        return self

    @property
    def _mode(self) -> DataIdMode:
        if self.data_id_mode is not None:
            return DataIdMode(self.data_id_mode)
        return _VARIANTS[self.variant or "A"]

    def plan(self) -> E2E:
        """Return the same, as the pure part takes it."""
        return E2E(
            self.profile,
            data_id=self.data_id or 0,
            data_id_list=bytes.fromhex(self.data_id_list or ""),
            mode=self._mode,
            offset=self.offset,
            length=self.length,
            max_delta=self.max_delta,
            stuck_after=self.stuck_after,
        )


class ProtectedSettings(Settings):
    """What every message may have; the base of its settings."""

    checksum: ChecksumSettings | None = Field(None, description="Its checksum.")
    counter: CounterSettings | None = Field(None, description="Its alive counter.")
    e2e: E2ESettings | None = Field(None, description="AUTOSAR end-to-end protection, instead of both.")

    @model_validator(mode="after")
    def _check_protection(self) -> ProtectedSettings:
        if self.e2e is not None and (self.checksum or self.counter) is not None:
            raise problem("`e2e` has a checksum and a counter of its own; write it alone")
        if self.checksum and self.counter and self.checksum.signal == self.counter.signal:
            raise problem(f"{self.counter.signal} cannot be both checksum and counter")
        return self

    @property
    def is_protected(self) -> bool:
        """Whether the message has a checksum or a counter."""
        return (self.checksum or self.counter or self.e2e) is not None

    def guard(self, message: Message) -> Callable[[], Protection]:
        """Return what makes the protection of a message: one for each that hears it, one to send it.

        Raises:
            ValueError: the message cannot be protected so, and why.
        """

        def make() -> Protection:
            return Protection(message, checksum, counter, e2e)

        checksum = None if self.checksum is None else self.checksum.plan()
        counter = None if self.counter is None else self.counter.plan()
        e2e = None if self.e2e is None else self.e2e.plan()
        make()
        return make
