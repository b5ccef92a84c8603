"""The routing table: which sample goes where, and under which policy. Pure: `now` is a parameter."""
