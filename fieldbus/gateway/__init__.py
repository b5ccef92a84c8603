"""The gateway: configuration, sessions, the clock, shutdown; what the protocols plug into."""
