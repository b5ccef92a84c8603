"""Instructions: who may have which point written, when, and the record of every attempt."""
