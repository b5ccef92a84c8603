"""The command line: which commands there are."""

from __future__ import annotations

import typer

from fieldbus import __version__
from fieldbus.cli import audit
from fieldbus.cli.check import check
from fieldbus.cli.decode import decode
from fieldbus.cli.demo import demo
from fieldbus.cli.history import history
from fieldbus.cli.network import network
from fieldbus.cli.plan import plan
from fieldbus.cli.read import read
from fieldbus.cli.record import record
from fieldbus.cli.reload import reload
from fieldbus.cli.run import run
from fieldbus.cli.schema import schema
from fieldbus.cli.sim import sim
from fieldbus.cli.watch import watch
from fieldbus.cli.write import write

app = typer.Typer(
    name="fieldbus",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"fieldbus {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Industrial fieldbus gateway: polls Modbus and CAN devices, forwards typed values over routes."""


for command in (
    run, demo, check, plan, sim, read, write, watch, reload, network, history, decode, record, schema,
):  # fmt: skip
    app.command()(command)
app.add_typer(audit.app, name="audit")


def main() -> None:
    """Run the command line."""
    app(prog_name="fieldbus")
