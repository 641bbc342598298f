"""One run as its store keeps it: found by its name, what is known of it, its logs, and a view of it in a terminal."""
