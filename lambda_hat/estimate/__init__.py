"""What draws mean: the posterior, the LLC with its standard error, and the verdict on both."""
