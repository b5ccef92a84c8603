"""What the command line shows of others does nothing to the terminal that it is shown on."""

import io
import json
import re

import pytest
from conftest import ROOT
from rich.console import Console
from typer.testing import CliRunner

from fieldbus.cli.common import Rows, cell, fail, samples_table, say, say_json, value_text
from fieldbus.cli.main import app
from fieldbus.gateway.commands.audit import Audit

EVIL = "\x1b[2J\x9b31m\u202e[red]\ud800\r"
SHOWN = r"\x1b[2J\x9b31m\u202e[red]\ud800\r"


def test_lines_and_errors_are_harmless(capsys):
    say(f"a\t{EVIL}\nb")
    fail(EVIL)
    out, err = capsys.readouterr()
    assert out == f"a\t{SHOWN}\nb\n"
    assert err == f"fieldbus: {SHOWN}\n"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_harmless_and_means_the_same(capsys, indent):
    data = [{"point": EVIL, EVIL: "°C 温度"}]
    say_json(data, indent=indent)
    out = capsys.readouterr().out
    assert "\x9b" not in out
    assert "\u202e" not in out
    assert "°C 温度" in out
    assert json.loads(out) == data


def test_tables_are_harmless_in_every_cell_and_title():
    item = {
        "point": EVIL,
        "value": EVIL,
        "unit": EVIL,
        "quality": "bad",
        "reason": EVIL,
        "time": None,
        "label": EVIL,
    }
    rows = Rows(title=EVIL)
    rows.add_column("x")
    rows.add_row(EVIL)
    for table in (rows, samples_table([item], EVIL)):
        console = Console(width=1000, record=True, file=io.StringIO())
        console.print(table)
        shown = console.export_text()
        assert re.sub(r"[\x20-\x7e\n]", "", shown) == ""
        assert SHOWN in shown


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_audit_log_of_a_hostile_actor_is_harmless_to_read(tmp_path, options):
    """The actor and the point of a command are parts of a topic, which is any text."""
    audit = Audit(tmp_path)
    audit.record(
        1, {"way": "mqtt", "actor": EVIL, "point": EVIL, "value": EVIL, "outcome": "refused", "reason": EVIL}
    )
    audit.close()
    result = CliRunner().invoke(app, ["audit", "show", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert not set(result.output) & set(EVIL) - set("[2J31mred]")
    assert r"\u202e" in result.output


def test_every_command_writes_through_the_one_way_that_makes_text_harmless():
    for file in (ROOT / "fieldbus" / "cli").glob("*.py"):
        if file.name in ("common.py", "main.py"):
            continue
        assert not re.search(r"\btyper\.echo\(|(?<![\w.])print\(|(?<!\w)Table\(", file.read_text()), file


@pytest.mark.parametrize(("value", "shown"), [(True, "true"), (False, "false"), (1, "1"), ("True", "True")])
def test_truth_values_are_printed_as_the_configuration_has_them(value, shown):
    assert str(cell(value)) == shown
    assert value_text({"value": value}) == shown
