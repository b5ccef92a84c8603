"""``python -m fieldbus``: the same as ``fieldbus``."""

from fieldbus.cli.main import main

main()
