"""Every example loads, plans, and is what the schema for editors describes."""

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT

from fieldbus.gateway.config.loader import load
from fieldbus.gateway.config.schema import json_schema
from fieldbus.gateway.config.source import read_yaml
from fieldbus.gateway.load import predict

DEMO = Path(str(files("fieldbus.simulate"))) / "demo" / "demo.yaml"
CONFIGS = ROOT / "configs"
EXAMPLES = [
    *sorted(path for path in CONFIGS.glob("**/*.yaml") if not {"maps", "data"} & set(path.parts)),
    DEMO,
]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def expected_warnings(plant):
    """Return what has to be said of an example: another gateway's points, and secrets, come when it runs."""
    others = [item.settings.gateway for item in plant.devices.values() if hasattr(item.settings, "gateway")]
    found = [f"gateway '{name}' was never heard: its points are not known until it is" for name in others]
    secrets = [getattr(item, "password", None) for item in plant.link_settings.values()]
    return found + [f"the secret's file {item.file} cannot be read" for item in secrets if item is not None]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads_plans_and_names_its_schema(path):
    plant = load(path, needs_secrets=False)
    assert sorted(item.message for item in plant.warnings) == sorted(expected_warnings(plant))
    assert plant.edges
    assert {load.link for load in predict(plant)} == set(plant.links)
    up = "" if path == DEMO else "../" * (len(path.relative_to(CONFIGS).parts) - 1)
    assert path.read_text().startswith(f"# yaml-language-server: $schema={up}fieldbus.schema.json\n")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_what_the_schema_describes(path):
    VALIDATOR.validate(read_yaml(path, path.name).data)


def test_the_schema_beside_the_examples_is_the_present_one():
    stored = json.loads((ROOT / "configs" / "fieldbus.schema.json").read_text())
    assert stored == json_schema(), "run: fieldbus schema > configs/fieldbus.schema.json"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("links", "plc_net", "port"), "1502"),
        (("links", "plc_net", "type"), "modbus-tpc"),
        (("links", "plc_net", "timeout"), 500),
        (("devices", "boiler", "scna"), "1s"),
        (("devices", "boiler", "points", "burner_on", "type"), "flaot32"),
        (("routes", 0, "when"), "always"),
        (("version",), 2),
    ],
)
def test_the_schema_finds_what_an_editor_should_underline(path, value):
    data = read_yaml(ROOT / "configs" / "poll-to-mqtt.yaml", "x").data
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(data)


def test_the_readme_names_tests_that_there_are():
    named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(\w+))?`", (ROOT / "README.md").read_text())
    assert len(named) > 10
    for file, test in named:
        text = (ROOT / file).read_text()
        assert not test or f"def {test}(" in text, f"{file} has no {test}"
