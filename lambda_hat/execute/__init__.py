"""One target built, or one run sampled, and its files published in the store."""
