"""Devices that are not there: a PLC for every map, a node for every database."""
