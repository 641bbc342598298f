"""Which settings of a sampler estimate a target's LLC well, and at what cost: what `flows/tune.py` decides by. No jax."""
