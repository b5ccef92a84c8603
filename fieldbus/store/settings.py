"""The configuration of stores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fieldbus.settings import Duration, FileName, LinkSettings, Size


class StoreSettings(LinkSettings):
    """A file on this machine in which samples are kept."""

    type: Literal["store"]
    file: Annotated[FileName, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = Field(
        None, description="Its name in `data_dir`; the link's, with .db, by default."
    )
    max_age: Duration = Field(366 * 86400.0, description="Older samples are dropped.")
    max_size: Size = Field(1 << 30, description="What the samples may take; the oldest are dropped first.")
    group_commit: Duration = Field(
        0.1, description="How long a sample waits for others before it is written."
    )
