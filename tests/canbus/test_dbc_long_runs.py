"""Statements of a DBC with long runs of one thing: read or left out in linear time, and nothing else is lost."""

import time

import pytest

from fieldbus.canbus.database.loading import load

HEAD = """VERSION ""

BS_:

BU_: A B

BO_ 291 Status: 8 A
 SG_ Speed : 0|16@1+ (0.1,0) [0|100] "km/h" B

"""
MANY = 20_000


@pytest.mark.parametrize(
    "statement",
    [
        "BO_TX_BU_ 1" + " " * MANY + '"',
        "BO_TX_BU_ 291" + " " * MANY + ":" + " " * MANY + '"',
        "SIG_VALTYPE_ 291 Speed" + " " * MANY + "x",
        "SG_MUL_VAL_ 291 Speed Speed" + " " * MANY + "x",
        "SG_MUL_VAL_ 291 Speed Speed" + " 1" * MANY + "x",
        "CM_" + " " * MANY + '"',
        "CM_ SG_ 291 Speed" + " " * MANY + "x",
        "CM_ SG_ 291 " + '"' * MANY,
        'CM_ "' + '\\"' * MANY,
        'BA_ "x" SG_ 291 Speed' + " " * MANY,
        'BA_DEF_ "x" ENUM ' + '"a",' * MANY,
        "VAL_ 291 Speed" + " " * MANY + "x",
    ],
    ids=range(12),
)
def test_a_long_run_costs_its_statement_only(tmp_path, statement):
    file = tmp_path / "x.dbc"
    file.write_text(f"{HEAD}{statement}\n")
    begun_s = time.monotonic()
    found = load(file, "x.dbc", None)
    assert time.monotonic() - begun_s < 8.0  # a child of 10 s of processor time reads it; most takes 0.3 s
    assert [message.name for message in found.messages] == ["Status"]
    assert [signal.name for signal in found.messages[0].signals] == ["Speed"]
    assert len(found.warnings) <= 2
