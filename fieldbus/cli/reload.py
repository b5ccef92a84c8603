"""``fieldbus reload``: have a running gateway load its configuration anew."""

from __future__ import annotations

import typer

from fieldbus.cli.common import ConfigArgument, fail, load_or_exit, say
from fieldbus.errors import LinkDownError
from fieldbus.gateway import loop
from fieldbus.gateway.control import ask


def reload(config: ConfigArgument) -> None:
    """Load CONFIG anew in the gateway that runs it: only what changed is opened anew."""
    plant = load_or_exit(config, needs_secrets=False, shows_warnings=False)
    try:
        answer = loop.run(ask(plant.data_dir, {"do": "reload"}, 60.0))
    except LinkDownError as error:
        raise fail(str(error)) from None
    if answer is None:
        text = f"no gateway is running with the data folder {plant.data_dir}"
        raise fail(f"{text} (a change of `data_dir` needs a restart)")
    for problem in answer.get("problems", ()):
        say(problem)
    say(answer.get("text", ""))
    if not answer.get("ok"):
        raise typer.Exit(1)
