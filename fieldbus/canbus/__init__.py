"""CAN: databases, the signal codec, the link over any python-can interface."""
