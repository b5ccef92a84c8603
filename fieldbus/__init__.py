"""Poll PLCs and CAN nodes, turn what they say into typed values, forward them to peer machines.

A value travels *wire -> protocol -> sample -> routing table -> protocol -> wire*; the packages of
this one are the stations on that way (see README.md, "Architecture").
"""


def __getattr__(name: str) -> str:
    """Return `__version__`, which is looked up only when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module 'fieldbus' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - see above

    try:
        return version("fieldbus")
    except PackageNotFoundError:  # run from a tree that was never installed
        return "0+unknown"
