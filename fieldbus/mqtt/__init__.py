"""MQTT: what payloads mean, and the link to a broker."""
