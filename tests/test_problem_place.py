"""Where a problem is: the file, and a line only where there is one."""

import pytest

from fieldbus.errors import Problem


@pytest.mark.parametrize(
    ("line", "column", "text"),
    [
        (0, 0, "plant.yaml: cannot be read"),
        (10, 0, "plant.yaml:10:0: cannot be read"),
        (12, 46, "plant.yaml:12:46: cannot be read"),
    ],
)
def test_a_problem_of_a_whole_file_names_no_line(line, column, text):
    assert str(Problem("plant.yaml", line, column, "", "cannot be read")) == text
