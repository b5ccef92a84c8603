"""``python -m fieldbus``, and the command ``fieldbus``.

Design: until everything is imported, Ctrl-C ends the process without a word; a traceback out of imports says
nothing to anybody.
"""

import signal


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fieldbus.cli.main import main as run  # noqa: PLC0415 - see above

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
