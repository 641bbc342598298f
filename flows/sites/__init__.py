"""Sites and what they take: schedulers, blocks, executors, deadlines, batch jobs."""
