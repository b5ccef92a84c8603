"""Bus databases: read tolerantly, in a process with limits."""
