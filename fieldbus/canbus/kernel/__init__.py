"""SocketCAN: Linux's own CAN, with its clock and what it knows of an interface."""
