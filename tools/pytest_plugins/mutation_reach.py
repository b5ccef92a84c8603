"""Pytest plugin of tools/mutation.py: which test reaches which line, and how long each test takes."""

import json
import os
import time
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

_COVERAGE = coverage.Coverage(data_file=None, include=[f"{os.environ['MUTATE_FOLDER']}/*"])
_COVERAGE.set_option("run:disable_warnings", ["no-data-collected"])  # tests of programs reach nothing here
_TOOK: dict[str, float] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, None, None]:
    """Note what one test reaches."""
    _COVERAGE.switch_context(item.nodeid)
    began = time.perf_counter()
    yield
    _TOOK[item.nodeid] = time.perf_counter() - began
    _COVERAGE.switch_context("")


def pytest_sessionstart() -> None:
    """Begin to measure."""
    _COVERAGE.start()


def pytest_sessionfinish() -> None:
    """Write ``{"lines": {file: {line: [test]}}, "took": {test: seconds}}`` to ``MUTATE_OUT``."""
    _COVERAGE.stop()
    data = _COVERAGE.get_data()
    found = {}
    for file in data.measured_files():
        lines = {}
        for line, contexts in data.contexts_by_lineno(file).items():
            lines[line] = [context for context in contexts if context]
        found[file] = lines
    with Path(os.environ["MUTATE_OUT"]).open("w", encoding="utf-8") as out:
        json.dump({"lines": found, "took": _TOOK}, out)
