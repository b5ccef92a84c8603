"""Modbus: registers, the poll plan, the client link, the server link."""
