"""The life of a study: plan, rounds, packs, attempts, and what is said of it."""
