"""A data folder is one gateway's."""

from pathlib import Path

import pytest

from fieldbus.gateway.control import sole_use


def test_a_data_folder_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with sole_use(folder) as first, sole_use(folder) as second, sole_use(tmp_path / "other") as other:
        assert (first, second, other) == (True, False, True)
    with sole_use(folder) as again:
        assert again


def test_a_folder_that_cannot_be_written_keeps_nobody_from_working(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with sole_use(tmp_path / "file" / "kept") as is_ours:
        assert is_ours


def test_an_error_within_is_the_callers_own(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), sole_use(tmp_path):
        raise BlockingIOError
    with sole_use(tmp_path) as is_ours:
        assert is_ours
