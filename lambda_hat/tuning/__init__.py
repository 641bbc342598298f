"""Which settings of a sampler estimate a target's LLC well, and at what cost. No jax: `flows/tune.py` decides by it."""
