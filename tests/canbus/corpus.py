"""Databases that other people wrote: the test files of cantools and those of opendbc.

They are fetched once, as the packages that they are in, into the checkout's cache. Each file keeps its path.

Of cantools' folder these are left out: ``.cdd``, which describes diagnostics and no message of a bus, and
``.c``, ``.h`` and ``.mk``, the sources that cantools is expected to generate.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from conftest import ROOT, missing

ENDINGS = (".dbc", ".kcd", ".sym", ".arxml")
SOURCES = ("cantools==45.1.0", "opendbc==0.3.1")
FOLDER = ROOT / ".cache" / "-".join(["corpus", *SOURCES]).replace("==", "-")


@cache
def corpus() -> list[Path]:
    """Return all files, or skip the test if they cannot be fetched (in CI: fail)."""
    if not FOLDER.exists():
        try:
            _fetch()
        except (OSError, subprocess.SubprocessError) as error:
            missing(f"the corpus of databases cannot be fetched: {error}")
    return sorted(path for path in FOLDER.rglob("*") if _is_database(path.name))


def name_of(path: Path) -> str:
    """Return what a file is called in the tests."""
    return str(path.relative_to(FOLDER))


def _is_database(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _fetch() -> None:
    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as made:
        folder = Path(made)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        for requirement in SOURCES:
            # The wheel of cantools has no test files; pip makes metadata of the source package.
            options = ["--no-binary", "cantools"] if requirement.startswith("cantools") else []
            subprocess.run([*pip, *options, requirement], check=True, capture_output=True, timeout=300)
        ready = folder / "ready"
        for path in folder.glob("cantools-*.tar.gz"):
            with tarfile.open(path) as archive:
                for member in archive:
                    if "/tests/files/" in member.name and _is_database(member.name):
                        content = archive.extractfile(member)
                        assert content is not None
                        _write(ready / "cantools" / member.name.split("/tests/files/")[1], content.read())
        for path in folder.glob("opendbc-*.whl"):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if _is_database(name):
                        # Three of them are called _community.dbc.
                        _write(ready / "opendbc" / name.removeprefix("opendbc/dbc/"), archive.read(name))
        shutil.rmtree(FOLDER, ignore_errors=True)
        ready.rename(FOLDER)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
