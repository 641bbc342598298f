"""Executables are kept for the next run of their signature, and not without end."""

import jax.numpy as jnp
import numpy as np

from lambda_hat.programs import compiling as programs
from lambda_hat.programs.compiling import compiled


def of(number):
    return compiled(("test", number), lambda: lambda x: jnp.sin(x) + number, (np.float32(1),), strict=False)


def num_mappings():
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def test_the_programs_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())
    monkeypatch.setattr(programs, "MOST_PROGRAMS", 3)
    assert [of(i).source for i in (0, 1, 2, 0, 3)] == ["compiled"] * 3 + ["process", "compiled"]
    assert [of(i).source for i in (0, 3, 2)] == ["process"] * 3
    assert of(1).source == "compiled"
    assert float(of(2).call(np.float32(0))) == 2.0


def test_what_is_kept_no_longer_gives_its_memory_mappings_back(monkeypatch):
    """A process that has too many is aborted by the compiler."""
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())
    monkeypatch.setattr(programs, "MOST_PROGRAMS", 4)
    for i in range(100, 110):
        of(i)
    before = num_mappings()
    for i in range(110, 140):
        of(i)
    assert num_mappings() < before + 100
