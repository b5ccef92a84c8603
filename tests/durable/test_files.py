"""Files of our own: their modes, and that no link leads elsewhere."""

import os
import stat

import pytest

from fieldbus.durable.files import make_folder, open_own, read_own, replace_own


@pytest.fixture(autouse=True)
def _no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_the_owners_only(tmp_path):
    folder = tmp_path / "a" / "b"
    assert make_folder(folder)
    assert not make_folder(folder)
    replace_own(folder / "x", b"1")
    os.close(open_own(folder / "y", os.O_RDWR | os.O_CREAT))
    assert [mode(path) for path in (folder, folder / "x", folder / "y")] == [0o700, 0o600, 0o600]


def test_a_mode_that_somebody_chose_stays(tmp_path):
    tmp_path.chmod(0o750)
    (tmp_path / "x").touch(0o640)
    make_folder(tmp_path)
    os.close(open_own(tmp_path / "x", os.O_RDWR | os.O_CREAT))
    assert (mode(tmp_path), mode(tmp_path / "x")) == (0o750, 0o640)


@pytest.mark.parametrize("target", ["there", "missing"])
def test_a_link_is_neither_read_nor_written(tmp_path, target):
    (tmp_path / "there").write_bytes(b"theirs")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    for attempt in (lambda: read_own(link), lambda: open_own(link, os.O_RDWR | os.O_CREAT)):
        with pytest.raises(OSError, match="symbolic link"):
            attempt()
    replace_own(link, b"ours")  # takes the place of the link
    assert (link.is_symlink(), read_own(link)) == (False, b"ours")
    assert (tmp_path / "there").read_bytes() == b"theirs"
    assert not (tmp_path / "missing").exists()


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        open_own(tmp_path / "pipe", os.O_RDWR)
    with pytest.raises(OSError, match="not a regular file"):
        read_own(tmp_path / "pipe")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    replace_own(tmp_path / "x", b"before")
    with pytest.raises(TypeError):
        replace_own(tmp_path / "x", "no bytes")
    assert read_own(tmp_path / "x") == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
