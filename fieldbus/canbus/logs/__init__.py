"""CAN logs: read, written, decoded."""
