"""The benchmark of deep linear networks: what it draws, what it writes, and a tiny one through the packed flow."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import dln
from lambda_hat.omegaconf_support import load_yaml
from lambda_hat.targets.truth.aoyagi import dln_llc
from tests.benchmarks.running import ROOT, run

CONFIG = load_yaml(ROOT / "benchmarks" / "dln.yaml")
TINY = {
    "classes": {"tiny": {"layers": [2, 2], "widths": [2, 4], "params": [8, 30], "n": 100_000}},
    "hmc": {"num_chains": 1, "num_burnin": 1000, "num_draws": 10_000, "jitter": 1e-3},
    "sgld": {"num_chains": 1, "num_burnin": 500, "num_draws": 50, "thin": 10, "step_size": 1e-5, "batch_size": 50},
}


@pytest.mark.parametrize("name", ["1K", "10K", "100K", "1M"])
def test_networks_are_of_their_class(name):
    spec = CONFIG["classes"][name]
    networks = dln.draw_class(CONFIG, name, 10, 0)
    for network in networks:
        assert spec["layers"][0] <= len(network.widths) - 1 <= spec["layers"][1]
        assert spec["widths"][0] <= min(network.widths) and max(network.widths) <= spec["widths"][1]
        assert spec["params"][0] <= dln.num_params(network.widths) <= spec["params"][1]
    assert dln.draw_class(CONFIG, name, 3, 0) == networks[:3]
    assert dln.draw_class(CONFIG, name, 3, 1) != networks[:3]


def test_a_class_that_no_network_is_in_is_refused(monkeypatch):
    monkeypatch.setattr(dln, "MAX_DRAWS", 100)
    with pytest.raises(dln.ConfigError, match="no network of 100 had"):
        dln.draw_network({"layers": [2, 2], "widths": [2, 3], "params": [1000, 2000], "n": 10}, [0])


STEPS = {"1K": 10_000, "10K": 10_000} | dict.fromkeys(("100K", "1M", "10M", "100M"), 50_000)
BASELINES = [(sampler, name) for sampler in ("sgld", "rmsprop") for name in CONFIG[f"{sampler}_of_class"]]


@pytest.mark.parametrize(("sampler", "name"), BASELINES)
def test_the_baselines_have_the_published_number_of_steps(sampler, name):
    settings = CONFIG[sampler] | CONFIG[f"{sampler}_of_class"][name]
    assert settings["num_burnin"] + settings["num_draws"] * settings["thin"] == STEPS[name]
    assert (settings["gamma"], settings["batch_size"], settings["num_chains"]) == (1.0, 500, 1)


def test_every_class_has_its_published_baseline():
    assert set(CONFIG["sgld_of_class"]) == set(STEPS) == set(CONFIG["classes"])


def test_the_summary_counts_missing_numbers_apart():
    rows = pd.DataFrame(
        {
            "class": "1K", "sampler": "sgld", "status": ["finished"] * 3 + ["pending"],
            "true_llc": [1.0, 2.0, 3.0, 4.0], "llc_mean": [1.1, 1.4, np.nan, np.nan],
            "rel_error": [0.1, -0.3, np.nan, np.nan], "verdict": ["ok", "ok", "diverged", None],
            "num_gradients": [10, 10, 10, None], "fge": [1.0, 1.0, 1.0, np.nan], "seconds": [1.0, 2.0, 3.0, np.nan],
        }
    )  # fmt: skip
    table = dln.summary(rows)
    assert len(table) == 1
    row = table.iloc[0]
    assert row["networks"] == "3 of 4"
    assert row["mean abs error"] == pytest.approx(0.2)
    assert row["mean signed"] == pytest.approx(-0.1)
    assert row["NaN"] == pytest.approx(1 / 3)
    assert row["pairs in order"] == pytest.approx(1 / 3)
    assert row["verdicts"] == "2 ok, 1 diverged"
    assert "| 1K | SGLD, published settings | 3 of 4 | 0.200 |" in dln.markdown(table, "the command", "nll")


def test_pairs_are_in_order_where_estimates_say_what_lambda_says():
    rows = pd.DataFrame({"true_llc": [1.0, 2.0, 3.0, 3.0], "llc_mean": [0.5, 4.0, 3.5, np.nan]})
    # Of equal lambda: (2, 3). In order: (0, 1), (0, 2). Not: (1, 2), and those with a NaN, (0, 3) and (1, 3).
    assert dln.ordered_pairs(rows) == pytest.approx(2 / 5)
    assert np.isnan(dln.ordered_pairs(rows[2:]))


def test_kept_rows_are_those_of_other_studies(tmp_path):
    before = pd.DataFrame(
        {"class": ["1K", "1K", "10K"], "sampler": ["hmc", "sgld", "hmc"], "llc_mean": [1.0, 2.0, 3.0]}
    )
    before.to_csv(tmp_path / "dln.csv", index=False)
    new = pd.DataFrame({"class": ["1K"], "sampler": ["hmc"]})
    args = dln.parse(["--keep", "--out", str(tmp_path)])
    (rows,) = dln.kept(args, [new])
    assert list(rows["llc_mean"]) == [2.0, 3.0]
    assert dln.kept(dln.parse(["--out", str(tmp_path)]), [new]) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "2K"], "--classes: got '2K', expected some of 1K,10K"),
        (["--samplers", "hmc,nuts"], "--samplers: got 'nuts', expected some of hmc,sgld"),
        (["--networks", "0"], "--networks: got 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, words, message):
    done = run("dln", *words, status=2, cwd=tmp_path)
    assert done.stdout == "" and message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_a_tiny_class_through_the_flow(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = ["--config", "tiny.yaml", "--classes", "tiny", "--networks", "2", "--out", "out"]
    planned = run("dln", *words, "--dry-run", cwd=tmp_path)
    assert "2 targets (0 cached, 2 to build)" in planned.stdout
    assert not (tmp_path / "out").exists()
    run("dln", *words, cwd=tmp_path)
    rows = pd.read_csv(tmp_path / "out" / "dln.csv")
    assert list(rows["sampler"]) == ["hmc", "hmc", "sgld", "sgld"]
    for row in rows.itertuples():
        widths = list(map(int, row.widths.split("-")))
        assert row.true_llc == dln_llc(widths, min(widths))[0]
        assert row.rel_error == pytest.approx(row.llc_mean / row.true_llc - 1, abs=1e-7)
        # A single chain seldom enters the stiff parts of this small network's fibre, and is seen 3 to 6 % low.
        assert row.sampler == "sgld" or abs(row.rel_error) < 0.1
    text = (tmp_path / "out" / "dln.md").read_text()
    assert text.count("2 of 2") == 2
    assert (tmp_path / "out" / "dln.png").read_bytes()[:4] == b"\x89PNG"
    run("dln", *words, "--collect", cwd=tmp_path)
    assert (tmp_path / "out" / "dln.md").read_text() == text
