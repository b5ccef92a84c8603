"""What `plan` says of what others get: registers, topics, frames."""

import csv
import io
import json

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from fieldbus.cli.main import app
from fieldbus.cli.offered import offered
from fieldbus.gateway.config.loader import load

CONFIG = """version: 1
gateway: {name: gw}
links:
  net: {type: modbus-tcp, host: h}
  hmi: {type: modbus-server, host: 127.0.0.1, port: 1503}
  broker: {type: mqtt, host: h}
devices:
  plc:
    link: net
    points: {t: {table: holding, address: 1, type: float32, unit: °C}, on: {table: coil, address: 0}}
  panel:
    link: hmi
    unit_id: 2
    points:
      temperature:
        {table: holding, address: 0, type: float32, order: CDAB, unit: °C, min: -10, max: 200, description: a | b}
      level: {table: input, address: 10, type: int16, scale: 0.1}
      start: {table: coil, address: 3, access: readwrite}
      flag: {table: holding, address: 9, type: bool, bit: 4}
      far: {table: holding, address: 10000}
routes:
  - {from: plc.t, to: panel.temperature}
  - {from: plc.on, to: panel.flag}
  - {from: "plc.*", to: "broker:plant/all"}
  - {from: plc.t, to: "broker:plant/each/{point}", when: sample, durable: true}
"""


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "plant.yaml"
    found.write_text(CONFIG)
    return found


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def test_registers_are_listed_as_who_programs_a_client_needs_them(file):
    rows = {row["point"]: row for row in offered(load(file))["registers"]}
    assert list(rows) == ["panel.start", "panel.temperature", "panel.flag", "panel.far", "panel.level"]
    assert rows["panel.temperature"] == {
        "link": "hmi", "unit_id": 2, "table": "holding", "address": 0, "reference": "40001", "count": 2,
        "type": "float32", "order": "CDAB", "scale": "", "point": "panel.temperature", "unit": "°C",
        "range": "-10 … 200", "access": "read", "description": "a | b",
    }  # fmt: skip
    assert (rows["panel.start"]["reference"], rows["panel.start"]["access"]) == ("00004", "read/write")
    assert (rows["panel.level"]["reference"], rows["panel.level"]["scale"]) == ("30011", "× 0.1")
    assert rows["panel.flag"]["type"] == "bool, bit 4"
    assert rows["panel.far"]["reference"] == "410001"


def test_topics_have_the_form_of_their_payload(file):
    rows = {row["topic"]: row for row in offered(load(file))["topics"]}
    assert rows["plant/all"]["points"] == ["plc.t", "plc.on"]
    assert rows["plant/all"]["payload"] == '{"time": …, "values": {"t": …, "on": …}, "bad": {}}'
    assert rows["plant/each/t"]["when"] == "sample, durable"
    assert '"unit": "°C"' in rows["plant/each/t"]["payload"]


def test_frames_have_their_cycle():
    [row] = offered(load(ROOT / "configs" / "j1939-engine.yaml"))["frames"]
    assert (row["id"], row["cycle_ms"], row["message"]) == ("C0000FE", 50.0, "engine.TSC1")
    assert row["signals"] == ["TSC1.EngOverrideControlMode", "TSC1.EngRequestedSpeed"]


def test_the_list_is_there_for_programs_for_papers_and_for_spreadsheets(file):
    assert set(json.loads(invoke(file, "--json"))) >= {"requests", "registers", "topics"}
    lines = invoke(file, "--registers", "markdown").splitlines()
    assert lines[1].startswith("| --- |")
    assert "a \\| b" in lines[3]
    assert len(lines) == 7
    rows = list(csv.DictReader(io.StringIO(invoke(file, "--registers", "csv"))))
    assert [row["reference"] for row in rows] == ["00004", "40001", "40010", "410001", "30011"]
    text = invoke(file)
    assert all(title in text for title in ("Registers that clients read", "Topics"))
    assert "Frames" not in text


def test_what_cannot_be_listed_is_said(file, tmp_path):
    assert "markdown or csv" in invoke(file, "--registers", "word", code=2)
    other = tmp_path / "other.yaml"
    other.write_text(
        "version: 1\ngateway: {name: a}\nlinks: {net: {type: modbus-tcp, host: h}}\n"
        "devices: {d: {link: net, points: {p: {table: holding, address: 1}}}}\n"
    )
    assert "serves no registers" in invoke(other, "--registers", "csv", code=1)
