"""How chains run, whatever the sampler: the model, the programs of chains, chunks, lanes."""
