"""The benchmark of tuning: what it writes of what was found. Tuning itself is tested in tests/flows."""

from __future__ import annotations

from benchmarks import tune
from lambda_hat.workflow_config import compose_build_cfg


def run(target_id, llc, verdict="ok", exact=2.0):
    return {
        "target_id": target_id, "target": f"target {target_id}", "status": "finished", "verdict": verdict,
        "true_llc_t": exact, "llc_mean": llc, "llc_std_error": 0.03, "fge": 1000.0,
    }  # fmt: skip


def test_a_row_per_search_says_how_far_off_it_was_and_is():
    before = [run("a", 4.0), run("a", 6.0), run("b", float("nan"), "diverged")]
    found = {
        "× 200": [
            tune.row_of("a", 0.1, before, [run("a", 2.1), run("a", 2.0)], {"step_size": 1e-3, "thin": 5}),
            tune.row_of("b", 0.1, before, [], None),
        ]
    }
    section = tune.section(found, 24, 12.0)
    assert "1 of 2 are within 5%; 12 s in all." in section
    assert "| target a | × 200 | 0.1 | 150.0% | 0.001 | 5 | – | 2.0500 ± 0.0212 | 2.0000 | 2.5% | 1,000 |" in section
    assert "| target b | × 200 | 0.1 | diverged | – | – | – | – | 2.0000 | – | – |" in section
    assert tune.figure_of(found).axes


def test_every_target_of_it_is_known():
    labels = {compose_build_cfg(entry).label for entry in tune.TARGETS}
    assert len(labels) == len(tune.TARGETS) >= 5
