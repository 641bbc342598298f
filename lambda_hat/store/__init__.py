"""What lies on disk: where, whole or not, whose it is, and what the processes of a study write down of it."""
