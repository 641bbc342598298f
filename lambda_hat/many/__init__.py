"""Many estimates from Python: a study in packs, whose driver is a process of its own and followed from the store.

So Parsl, MPI, JAX and the driver's signals stay out of the process that calls.
"""
