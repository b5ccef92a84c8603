"""J1939: identifiers, addresses, messages in packets, faults; and our place on such a bus."""
