"""What goes to other gateways and brokers for sure, what comes from them, what each wants of the other."""
