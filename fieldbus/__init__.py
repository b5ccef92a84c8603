"""Poll PLCs and CAN nodes, turn what they say into typed values, forward them to peer machines.

A value travels *wire -> protocol -> sample -> routing table -> protocol -> wire*; the packages of
this one are the stations on that way (see README.md, "Architecture").
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fieldbus")
except PackageNotFoundError:  # run from a tree that was never installed
    __version__ = "0+unknown"
