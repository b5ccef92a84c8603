"""What is kept on disk: a thread that commits in groups, and the spool of what others have not got yet."""
