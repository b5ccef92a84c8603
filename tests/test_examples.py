"""The nightly run tries more of every test by hypothesis, also of those with a number of their own."""

import re
from pathlib import Path

import hypothesis
import pytest
from support.examples import examples

TESTS = Path(__file__).parent


@pytest.fixture
def profile():
    before = hypothesis.settings.get_current_profile_name()
    yield hypothesis.settings.load_profile
    hypothesis.settings.load_profile(before)


@pytest.mark.parametrize(("name", "count"), [("ci", 200), ("nightly", 2000)])
def test_a_number_of_examples_is_scaled_by_the_profile(profile, name, count):
    profile(name)
    assert examples(200) == count
    assert hypothesis.settings(max_examples=examples(200)).max_examples == count


def test_no_test_has_a_number_of_examples_that_no_profile_scales():
    bare = re.compile(r"max_examples=(?!examples\()")
    found = [
        f"{path.relative_to(TESTS)}:{number}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in ("conftest.py", "test_examples.py") and path.parent.name != "support"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert not found
