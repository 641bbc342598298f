"""The benchmarks of start-up and of the cost model: short looks, whose figures mean nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import costs
from lambda_hat.planning import cost
from tests.benchmarks.running import run


def section_of(name: str, out: Path) -> str:
    printed = run(name, "--quick", "--out", out).stdout
    assert (out / f"{name}.md").read_text().startswith(printed.rstrip())
    return printed


@pytest.mark.slow
@pytest.mark.mpi
def test_startup(tmp_path):
    section = section_of("startup", tmp_path)
    for expected in ("## Start-up", "rank: first run claimed", "all finished", "into the Parquet table"):
        assert expected in section


@pytest.mark.slow
def test_costs(tmp_path):
    section = section_of("costs", tmp_path)
    assert "Learned from 4 runs, held against 2 of a study of other targets and settings." in section
    assert (tmp_path / "costs.png").read_bytes()[:4] == b"\x89PNG"


def test_the_unseen_study_shares_no_target_and_no_setting():
    training, unseen = costs.training_study(quick=False), costs.unseen_study(quick=False)
    assert not {run.target_id for _, run in training} & {run.target_id for _, run in unseen}
    assert not {run.run_id for _, run in training} & {run.run_id for _, run in unseen}
    kinds = {(build.kind, run.cfg.name) for build, run in training}
    assert {(build.kind, run.cfg.name) for build, run in unseen} == kinds


@pytest.mark.parametrize("name", costs.PROBES)
def test_a_constant_is_measured_where_most_of_the_time_is_its_own(name):
    assert costs.Probe(name, 2.0).share() > 0.5


@pytest.mark.slow
def test_constants(capsys, monkeypatch):
    monkeypatch.setenv("LAMBDA_HAT_CACHE", "off")
    costs.measure_constants(["STEP"], 0.5)
    said = re.fullmatch(r"STEP: ([\d.e-]+), measured ([\d.e-]+); compiled in [\d.]+ s\n", capsys.readouterr().out)
    constant, measured = map(float, said.groups())
    assert constant == cost.STEP
    assert constant / 5 < measured < 5 * constant
