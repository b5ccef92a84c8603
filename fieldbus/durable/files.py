"""Folders and files of our own: made with a mode of their own, and opened without following links.

Rules:

* A file is readable and writable by its owner only (0600), a folder is the owner's only (0700), whatever the
  umask says. The modes of files and folders that are there already stay: somebody may have chosen them.
* A symbolic link in the place of a file is an error, never a file somewhere else: who may write into the data
  folder must not choose which other file the gateway writes or believes.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)


def make_folder(path: Path) -> bool:
    """Make a folder and those above it; return whether it was missing.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    if path.is_dir():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    path.chmod(FOLDER_MODE)
    return True


def open_own(path: str | Path, flags: int) -> int:
    """Open a file of ours, also as the ``opener`` of `open`; return its descriptor.

    Raises:
        OSError: it cannot be opened, is a link, or is no file.
    """
    try:
        fd = os.open(path, flags | _NO_FOLLOW | _CLOSE_ON_EXEC | getattr(os, "O_NONBLOCK", 0), FILE_MODE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, and links are not followed here") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return fd


def read_own(path: Path) -> bytes:
    """Return the content of a file of ours.

    Raises:
        OSError: it cannot be read, or is a link.
    """
    with open(path, "rb", opener=open_own) as file:
        return file.read()


def replace_own(path: Path, content: bytes) -> None:
    """Write a file of ours whole: who reads it meanwhile sees what was there before, or what is there then.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(fresh, "xb", opener=open_own) as file:
            file.write(content)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
