"""The table of estimates, and a study as a page to look at."""
