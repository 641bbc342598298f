"""A study whose runs are in archives goes on as any other."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

import pandas as pd
import pytest

from lambda_hat.entrypoints import compact
from lambda_hat.store import run_files
from lambda_hat.store.layout import Store
from tests.flows.studies import Study

pytestmark = [pytest.mark.mpi, pytest.mark.parsl, pytest.mark.slow]


def test_a_compacted_study_is_cached_and_sampled_anew_on_request(tmp_path):
    study = Study(
        tmp_path, targets=[{"target": "quadratic", "overrides": {"target": {"dim": 2, "rank": 2}}}], seeds=3, thin=1
    )
    study.run("--ranks=2", "--no-report")
    store, results = Store(study.store), tmp_path / "results" / "llc_runs.parquet"
    first = pd.read_parquet(results)
    assert compact.run(Namespace(store=store.root, dry_run=False)) == 0
    assert study.analyses() == {}
    assert "3 runs (3 cached, 0 to sample" in study.run("--ranks=2", "--no-report")
    assert pd.read_parquet(results).equals(first)
    assert "3 runs (0 cached, 3 to sample" in study.run("--ranks=2", "--no-report", "--rerun", "all")
    again = pd.read_parquet(results)
    assert again["llc_mean"].equals(first["llc_mean"]) and not again["pack_id"].equals(first["pack_id"])
    assert Counter(study.times_computed().values()) == {2: 3}
    assert compact.run(Namespace(store=store.root, dry_run=False)) == 0
    assert study.analyses() == {}
    (target_id,) = store.target_ids()
    runs = run_files.runs_in(store.target_dir(target_id))
    assert {name for names in runs.values() for name in names} == {"config.yaml", "trace.nc", "analysis.json"}
    assert "3 runs (3 cached, 0 to sample" in study.run("--ranks=2", "--no-report")
    assert pd.read_parquet(results).equals(again)
