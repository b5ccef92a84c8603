"""``python -m fieldbus``, and the command ``fieldbus``.

Design: Ctrl-C during the imports ends the process without a message: a traceback from there helps nobody.
Where SIGINT is ignored (a shell does so for jobs in the background), it stays ignored.
"""

import signal


def main() -> None:
    """Run the command line."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fieldbus.cli.main import main as run  # noqa: PLC0415 - see above

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
