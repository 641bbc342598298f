"""Small files that ask for something enormous are refused at once, with the key."""

from __future__ import annotations

import pytest
import yaml

from flows.sites.site_schemas import load_site
from lambda_hat.errors import ConfigError
from lambda_hat.workflow_config import compose_study
from tests.fuzz.judging import attempt

HUGE = 2**62
SMALL = {"targets": [{"target": "quadratic"}], "samplers": [{"name": "sgld"}]}
SWEPT = {key: list(range(1, 200)) for key in ("seed", "thin", "num_draws", "num_chains", "num_burnin")}


def mlp(**overrides):
    return {"targets": [{"model": "tiny", "data": "small", "overrides": overrides}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samplers": [{"name": "sgld", "sweep": SWEPT}]}, r"samplers\[0\]: sweep: expands to 312079600999 entries"),
        (mlp(model={"widths": None, "depth": 1, "num_params": HUGE}), "parameters', expected at most 1099511627776"),
        (mlp(model={"widths": None, "depth": HUGE, "num_params": 5}), "model.depth: got 4611686018427387904, expected"),
        (mlp(checkpoints={"every": 1}, training={"steps": HUGE}), "checkpoints.every: got 1, expected at least"),
        ({"targets": [{"target": "dln", "overrides": {"target": {"widths": [HUGE] * 3}}}]}, "expected at most"),
    ],
)
def test_bombs(tmp_path, changes, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))

    def refused():
        with pytest.raises(ConfigError, match=message):
            compose_study(path)
        return True

    assert attempt("bombs", refused)


@pytest.mark.parametrize("key", ["nodes_per_block", "ranks_per_node", "task_workers"])
def test_a_site_of_endless_nodes(key):
    with pytest.raises(ConfigError, match=f"{key}: got {HUGE}, expected at most 100000"):
        load_site("slurm", ["ranks_per_node=1", f"{key}={HUGE}"])
