"""A program is compiled once for all ranks and studies of a store, as the runs themselves have counted it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_hat.store.layout import Store, read_json

ROOT = Path(__file__).resolve().parents[2]
RANKS = 4
NAMES = ("begin", "advance")
"""Programs of a run with a given step size."""

STUDY = """
targets:
  - {target: quadratic, overrides: {target: {dim: 4, rank: 3}}}
samplers:
  - {name: sgld, overrides: {num_chains: 2, num_draws: 50, num_burnin: 50, step_size: 1e-4}, sweep: {seed: [SEEDS]}}
"""


def sample(folder: Path, seeds: range, *words: str) -> list[dict]:
    """The analyses of a study of one signature that four ranks have sampled, in the store `folder/store`."""
    store = Store(folder / "store")
    before = {path.parent.name for path in store.root.rglob("analysis.json")}
    path = folder / "study.yaml"
    path.write_text(STUDY.replace("SEEDS", ", ".join(map(str, seeds))))
    line = [
        str(Path(sys.executable).parent / "mpiexec"),
        "-n",
        str(RANKS),
        sys.executable,
        str(ROOT / "mpi/run_pack.py"),
    ]
    line += ["--experiments", str(path), "--store", str(folder / "store"), *words]
    # The cache is the store's own here, not that of the tests.
    env = {key: value for key, value in os.environ.items() if key not in ("NPROC", "LAMBDA_HAT_CACHE")}
    done = subprocess.run(line, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    new = [path for path in store.root.rglob("analysis.json") if path.parent.name not in before]
    return [read_json(path) for path in new]


def total(analyses: list[dict], key: str) -> int:
    return sum(analysis[key] for analysis in analyses)


def ranks_of(analyses: list[dict]) -> int:
    return len({analysis["rank"] for analysis in analyses})


@pytest.mark.mpi
@pytest.mark.slow
def test_every_program_is_compiled_once_for_all_ranks_and_studies(tmp_path):
    first = sample(tmp_path, range(32))
    assert len(first) == 32
    assert total(first, "programs_compiled") == len(NAMES)
    assert total(first, "programs_loaded") == len(NAMES) * (ranks_of(first) - 1)
    kept = sorted((tmp_path / "store" / "cache").glob("*/*"))
    # One more is the build's: the loss at w_star.
    assert [path.suffix for path in kept] == [".program"] * (len(NAMES) + 1)

    second = sample(tmp_path, range(100, 116))
    assert len(second) == 16
    assert total(second, "programs_compiled") == 0
    assert total(second, "programs_loaded") == len(NAMES) * ranks_of(second)
    assert sorted((tmp_path / "store" / "cache").glob("*/*")) == kept


@pytest.mark.mpi
@pytest.mark.slow
def test_without_the_cache_every_rank_compiles_for_itself(tmp_path):
    analyses = sample(tmp_path, range(32), "compile_cache=false")
    assert len(analyses) == 32
    assert total(analyses, "programs_compiled") == len(NAMES) * ranks_of(analyses)
    assert total(analyses, "programs_loaded") == 0
    assert not (tmp_path / "store" / "cache").exists()
