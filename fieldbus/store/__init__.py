"""The store: samples kept in a file on this machine, a target of routes like any other."""
