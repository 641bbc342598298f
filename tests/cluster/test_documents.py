"""The commands of docs/clusters.md, one after the other, on a real SLURM."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.test_docs import commands, files_in

ROOT = Path(__file__).resolve().parents[2]
STUDY = {
    "targets": [{"target": "quadratic", "overrides": {"target": {"dim": 3, "rank": 2}}}],
    "samplers": [
        {
            "name": "sgld",
            "overrides": {"num_draws": 100, "num_burnin": 50, "num_chains": 2, "step_size": 1e-4},
            "sweep": {"seed": [0, 1, 2, 3]},
        }
    ],
}
FILLED_IN = {
    "address": "127.0.0.1", "one_machine": True, "poll_seconds": 2, "cores_per_node": 2, "nodes_per_block": 2,
}  # fmt: skip
"""What a person writes into the copy of slurm.yaml for the lab."""


@pytest.mark.cluster
@pytest.mark.parsl
@pytest.mark.mpi
@pytest.mark.slow
def test_the_ten_steps(slurm_lab, tmp_path):
    for name in ("flows", "mpi", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    page = ROOT / "docs" / "clusters.md"
    for name, text in files_in(page).items():
        (tmp_path / name).write_text(text)
    said = {}
    for command in commands(page):
        done = slurm_lab.run("bash", "-c", command, cwd=tmp_path, check=False, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command] = done.stdout
        if command.startswith("cp "):
            site = tmp_path / "mysite.yaml"
            text = site.read_text()
            for key, value in FILLED_IN.items():
                text, found = re.subn(
                    rf"^{key}:.*$", f"{key}: {yaml.safe_dump(value)}".split("\n")[0], text, flags=re.M
                )
                assert found == 1, key
            site.write_text(text)
    check, plan, login, shown, submitted, mixed = (said[command] for command in said if not command.startswith("cp "))
    assert "verdict: ok, packs can run here" in check
    assert "dry run: nothing was started" in plan
    assert "4 finished" in login
    assert "#SBATCH --nodes=2\n" in shown and "chain=3\n" in shown
    # The login node has finished everything, so nothing is left for the job.
    assert "nothing is left to sample: no job was submitted" in submitted
    assert "core-hours on mysite and " in mixed and "GPU-hours on slurm_gpu, " in mixed
    table = pd.read_parquet(tmp_path / "results" / "llc_runs.parquet")
    assert set(table["status"]) == {"finished"}
