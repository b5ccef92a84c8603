"""A configuration and its data folder are one gateway's, also when one of the two vanishes."""

import shutil
from pathlib import Path

import pytest

from fieldbus.gateway.sole_use import InUseError, is_in_use, sole_use, take


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


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "plant.yaml"
    file.write_text("version: 1\n")
    return file


def is_refused(data_dir: Path, config: Path) -> bool:
    try:
        take(data_dir, config).release()
    except InUseError:
        return True
    return False


def test_who_works_is_recognised_though_the_data_folder_is_gone(tmp_path: Path, config: Path) -> None:
    data = tmp_path / "data"
    locks = take(data, config)
    shutil.rmtree(data)
    assert is_in_use(data, config)
    assert is_refused(data, config)
    assert locks.refresh() == [f"the data folder {data} was deleted or replaced; the gateway makes it again"]
    assert locks.refresh() == []
    assert is_refused(data, tmp_path / "other.yaml")
    locks.release()
    assert not is_in_use(data, config)
    assert not is_refused(data, config)


def test_who_works_is_recognised_though_the_configuration_is_replaced(tmp_path: Path, config: Path) -> None:
    data = tmp_path / "data"
    locks = take(data, config)
    fresh = tmp_path / ".plant.yaml.swp"
    fresh.write_text("version: 1\n")
    fresh.replace(config)  # as editors do
    assert is_refused(data, config)
    assert locks.refresh() == []
    shutil.rmtree(data)
    assert is_refused(data, config)
    config.unlink()
    locks.refresh()
    assert is_refused(data, config)
    locks.release()


def test_a_configuration_that_is_read_only_is_locked_too(tmp_path: Path, config: Path) -> None:
    config.chmod(0o400)
    locks = take(tmp_path / "data", config)
    assert is_refused(tmp_path / "another", config)
    link = tmp_path / "link.yaml"
    link.symlink_to(config)
    assert is_refused(tmp_path / "another", link)
    locks.release()


def test_to_look_is_not_to_take(tmp_path: Path, config: Path) -> None:
    data = tmp_path / "data"
    assert not is_in_use(data, config)
    assert not data.exists()
    locks = take(data, config)
    assert is_in_use(data, config)
    locks.release()


def test_a_write_is_waited_for_and_a_gateway_is_not(tmp_path: Path, config: Path) -> None:
    data = tmp_path / "data"
    for purpose in ("write", "run"):
        locks = take(data, config, purpose)
        with pytest.raises(InUseError) as caught:
            take(data, config, wait_s=0.5)
        assert caught.value.holder.purpose == purpose
        locks.release()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path, config: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "other").write_text("theirs")
    (data / "gateway.lock").symlink_to(tmp_path / "other")
    locks = take(data, config)
    assert (tmp_path / "other").read_text() == "theirs"
    assert is_refused(data, config)
    locks.release()


def test_what_could_not_be_locked_at_the_start_is_locked_later(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    config = tmp_path / "later.yaml"
    locks = take(tmp_path / "data", config)
    assert locks.refresh() == []
    assert not is_in_use(tmp_path / "data", config)
    config.write_text("version: 1\n")
    assert locks.refresh() == []
    assert is_refused(tmp_path / "another", config)
    (tmp_path / "data").unlink()
    assert locks.refresh() == []
    assert is_refused(tmp_path / "data", tmp_path / "other.yaml")
    locks.release()
    assert not is_in_use(tmp_path / "data", config)


def test_a_lock_that_comes_too_late_is_reported_once(tmp_path: Path, config: Path) -> None:
    (tmp_path / "data").write_text("")
    late = take(tmp_path / "data", None)
    (tmp_path / "data").unlink()
    first = take(tmp_path / "data", config)
    said = [late.refresh() for _ in range(5)]
    text = "another process uses this configuration or data folder, too; stop one"
    assert said == [[], [], [text], [], []]
    first.release()
    assert late.refresh() == []
    assert is_in_use(tmp_path / "data", config)
    late.release()
