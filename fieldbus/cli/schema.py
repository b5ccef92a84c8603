"""``fieldbus schema``: the JSON Schema of the configuration, for editors."""

from __future__ import annotations

from fieldbus.cli.common import print_json
from fieldbus.gateway.config.schema import json_schema


def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    print_json(json_schema())
