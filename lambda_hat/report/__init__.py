"""The table of estimates, and the report of a study."""
