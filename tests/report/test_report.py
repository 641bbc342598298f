"""The page: it has everything, fetches nothing, runs nothing that a study names, and is made whatever is missing."""

from __future__ import annotations

import base64
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import h5netcdf
import numpy as np
import pandas as pd
import pytest

from lambda_hat.estimate.verdict import WORST_FIRST
from lambda_hat.report.browser_table import MOST_ROWS, view_of
from lambda_hat.report.closing import agreement
from lambda_hat.report.efficiency import draw_temperature
from lambda_hat.report.results import collect, runs_in_store, runs_of, to_frame
from lambda_hat.report.single_runs import MOST_RUNS, choose_runs, density, running_means
from lambda_hat.report.study_report import write_report
from lambda_hat.store.layout import file_entry, write_record
from tests.report.studies import SCRIPT

FETCHING = {"script", "img", "link", "iframe", "source", "video", "audio", "object", "embed", "input"}


class Reader(html.parser.HTMLParser):
    """Addresses that a browser would fetch, headings, and the visible text."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._within = tag
        values = dict(attrs)
        self.ids |= {values["id"]} if "id" in values else set()
        if tag in FETCHING:
            self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "srcset") and value]

    def handle_data(self, data):
        if self._within not in ("script", "style"):
            self.text += data


def report_of(store, results):
    return write_report(store, collect(store, *runs_in_store(store)), results)


def test_everything_is_in_the_one_file(whole):
    reader = Reader(whole.page)
    assert reader.addresses
    assert all(address.startswith("data:") for address in reader.addresses)
    assert not re.search(r"@import|url\(\s*['\"]?https?:", whole.page)
    sections = {"table", "estimates", "training", "sweeps", "convergence", "chains", "cost", "ranks", "failures"}
    assert sections | {"configuration"} <= reader.ids


@pytest.mark.parametrize("num_draws", [50, 5000])
def test_a_density_is_one_and_close_to_the_true_one(num_draws):
    draws = np.random.default_rng(7).normal(size=num_draws)
    points, found = density(draws)
    step = points[1] - points[0]
    assert found.sum() * step == pytest.approx(1, abs=1e-6)
    exact = np.exp(-0.5 * points**2) / np.sqrt(2 * np.pi)
    width = 0.9 * num_draws**-0.2
    # Silverman (1986), equations 3.12 and 3.14: the curvature is at most that at 0.
    bias, deviation = 0.5 * width**2 * exact.max(), np.sqrt(exact.max() / (2 * np.sqrt(np.pi) * num_draws * width))
    inside = np.abs(points) < 1.5
    assert np.abs(found - exact)[inside].max() < bias + 4 * deviation


def test_a_density_ends_where_its_draws_end():
    draws = np.random.default_rng(0).exponential(size=20_000)
    points, found = density(draws)
    assert points[0] > draws.min() and points[-1] < draws.max()
    assert found[:5].min() > 0.8, "nothing is lost beyond the edge, where the density is 1"


def test_the_figures_are_files_as_well(whole):
    figures = whole.folder / "results" / "figures"
    names = {path.stem for path in figures.iterdir()}
    chains = {name for name in names if name.startswith("chains_")}
    assert len(chains) == MOST_RUNS
    others = {"llc", "llc_training", "sweep_step_size", "sweep_gamma", "convergence", "temperature", "cost", "ranks"}
    assert names - chains == others
    page = whole.page
    for path in figures.iterdir():
        assert base64.b64encode(path.read_bytes()).decode() in page, path.name


def test_what_a_study_names_is_text(whole):
    page = whole.page
    assert SCRIPT not in page
    assert "&lt;script&gt;window.pwned = 1&lt;/script&gt;" in page
    assert f"name: {SCRIPT}" in Reader(page).text


def test_the_page_counts_and_explains(whole):
    text = " ".join(Reader(whole.page).text.split())
    assert "5 targets" in text
    assert "70 finished runs" in text and "3 failed runs" in text and "2 pending runs" in text
    store, *study = runs_of(whole.folder / "runs", whole.experiments)
    judged = Counter(agreement(row) for row in collect(store, *study).to_pylist() if row["status"] == "finished")
    assert f"{judged['agrees']} of {judged.total() - judged[None]} agree with their exact λ_t" in text
    assert ("only within the allowance for their step" in text) == (judged["within_allowance"] > 0)
    assert "FloatingPointError: non-finite gradient at the first step" in text
    assert "rank-0000.log ends with: rank 0 of 4 non-finite gradient at the first step" in text
    assert "12 of 70 finished runs: for each target and sampler the one with the worst verdict" in text
    assert "step_size: 1e-06, 1e-05, 0.0001, 0.001, 0.01" in text
    assert re.search(r"jax\s?0\.10\.1", text)
    assert "What is missing" not in text


def test_the_table_has_what_the_study_has(whole):
    store, *study = runs_of(whole.folder / "runs", whole.experiments)
    view = view_of(to_frame(collect(store, *study)))
    assert len(view) == 75
    assert {"target", "setting", "λ̂", "λ_t", "verdict", "R-hat", "step", "T", "degree", "rel. to λ"} <= set(view)
    judged = {agreement(row) or "" for row in collect(store, *study).to_pylist() if row["status"] == "finished"}
    assert "agrees" in judged and set(view["λ_t?"]) == judged | {""}
    # Quadratics and custom targets have no noise, SGLD no acceptance, nobody's runs nothing.
    assert not [name for name in view if view[name].isna().all()]
    assert set(view["verdict"]) <= {*WORST_FIRST, "failed", "pending"}
    assert "site" not in view
    frame = to_frame(collect(store, *study))
    frame["site"] = ["local", "gpu", *[None] * 73]
    assert view_of(frame)["site"].value_counts().to_dict() == {"": 73, "local": 1, "gpu": 1}
    many = pd.concat([to_frame(collect(store, *study))] * 140)
    assert len(many) > MOST_ROWS
    assert view_of(many)["verdict"].eq("failed").sum() == 3 * 140


def test_the_worst_runs_are_looked_at_first():
    rows = [
        ("tgt_1", "hmc", "ok"), ("tgt_1", "hmc", "drifting"), ("tgt_1", "sgld", "diverged"), ("tgt_2", "hmc", "ok"),
        ("tgt_2", "sgld", "unmixed"), ("tgt_2", "sgld", "unmixed"), ("tgt_2", "nuts", "unmixed"),
        ("tgt_3", "hmc", "ok"), ("tgt_3", "nuts", "ok"),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["target_id", "sampler", "verdict"]).assign(status="finished")
    chosen = choose_runs(frame)
    expected = [(2, "diverged"), (6, "unmixed"), (4, "unmixed"), (1, "drifting"), (3, "ok"), (8, "ok"), (7, "ok")]
    assert list(zip(chosen.index, chosen["verdict"], strict=True)) == expected
    assert len(choose_runs(frame, most=2)) == 2
    assert choose_runs(frame.assign(status="failed")).empty


def test_temperatures_are_drawn_where_there_are_any(whole):
    frame = to_frame(collect(*runs_of(whole.folder / "runs", whole.experiments)))
    assert draw_temperature(frame.assign(temperature=np.nan)) is None
    assert draw_temperature(frame.assign(status="pending")) is None
    for values in ({"temperature": -0.1}, {"degree": np.nan}, {"llc_variance": np.nan}, {"degree": -1e9}):
        assert draw_temperature(frame.assign(**values)).png[:4] == b"\x89PNG"
    assert "variance" not in draw_temperature(frame.assign(llc_variance=np.nan)).caption


def test_running_means():
    llc = np.array([[1.0, 3.0, 2.0], [0.0, np.nan, 4.0]])
    np.testing.assert_allclose(running_means(llc), [[1, 2, 2], [0, np.nan, np.nan]])


def _edit_analysis(store, **values):
    path = next(store.root.rglob("analysis.json"))
    record = json.loads(path.read_text())
    record.pop("sha256")
    write_record(path, record | values)


def _lose_trace(store):
    for path in store.root.rglob("trace.nc"):
        path.unlink()


def _break_trace(store):
    for path in store.root.rglob("trace.nc"):
        path.write_bytes(path.read_bytes()[:1000])


def _empty_trace(store):
    for trace in store.root.rglob("trace.nc"):
        with h5netcdf.File(trace, "w") as file:
            file.attrs["n_beta"] = 1.0
        record = json.loads((trace.parent / "analysis.json").read_text())
        del record["sha256"]
        record["files"]["trace.nc"] = file_entry(trace.read_bytes())
        write_record(trace.parent / "analysis.json", record)


def _lose_target(store):
    (next(store.targets_dir.iterdir()) / "meta.json").unlink()


def _break_target(store):
    (next(store.targets_dir.iterdir()) / "config.yaml").write_text("{")


def _lose_packs(store):
    shutil.rmtree(store.packs_dir)


def _lose_results(store):
    for path in store.root.rglob("analysis.json"):
        path.unlink()


def _break_results(store):
    for path in store.root.rglob("analysis.json"):
        path.write_text("{")


def _lose_all(store):
    for path in store.targets_dir.iterdir():
        shutil.rmtree(path)


def _tear_events(store):
    for path in store.packs_dir.rglob("rank-*.jsonl"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join(["\0\xff", lines[0][:20], *lines[1:3], '{"event": "run_end", "time": "no"}', "[1]"]))


def _no_numbers(store):
    keys = ("llc_mean", "llc_std_error", "rhat_max", "ess_bulk_min", "ess_tail_min", "fge", "rel_error", "true_llc_t",
            "temperature", "degree", "llc_variance")  # fmt: skip
    _edit_analysis(store, **dict.fromkeys(keys), verdict="diverged", verdict_sentence="all chains became non-finite")


def _huge_numbers(store):
    _edit_analysis(store, llc_mean=-1e300, llc_std_error=1e300, rhat_max=1e308, fge=1e308, ess_bulk_min=1e-300)
    _edit_analysis(store, temperature=-1e300, degree=1e308, llc_variance=1e300)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_lose_trace, "it is gone, though the run is finished"),
        (_break_trace, "trace.nc: damaged: its checksum does not fit"),
        (_empty_trace, "trace.nc holds no losses"),
        (_lose_target, "its runs are finished, but the target is no longer in the store"),
        (_break_target, "the configuration cannot be read, and its runs are left out"),
        (_lose_packs, "no chart of the ranks: these runs have no event log"),
        (_lose_results, "no run is finished yet"),
        (_break_results, "2 results cannot be read (the table says why)"),
        (_lose_all, "no run with a readable configuration in"),
        (_tear_events, ""),
        (_no_numbers, ""),
        (_huge_numbers, ""),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_page_is_made_of_what_is_left(small, tmp_path, damage, said):
    damage(small)
    report = report_of(small, tmp_path / "out")
    text = Reader(report.page.read_text()).text
    assert "Versions and configuration" in text
    if said:
        assert any(said in sentence for sentence in report.missing), report.missing
        assert said in text
    else:
        assert report.missing == []


def test_figures_of_an_earlier_report_go(small, tmp_path):
    first = report_of(small, tmp_path / "out")
    mine = tmp_path / "out" / "figures" / "mine.png"
    mine.write_bytes(b"")
    _lose_results(small)
    second = report_of(small, tmp_path / "out")
    assert {"llc.png", "convergence.png"} <= {path.name for path in first.figures}
    assert set(second.figures) | {mine} == set(mine.parent.iterdir())
    assert "llc.png" not in {path.name for path in second.figures}


def command(*words, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "lambda_hat.entrypoints.cli", "report", *map(str, words)],
        capture_output=True, text=True, cwd=cwd, timeout=120, env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_where_it_is_told_and_nowhere_else(small, tmp_path, repo_env):
    home = tmp_path / "home"
    home.mkdir()
    # Options of itables that would change the page, and a file there that is no TOML.
    (tmp_path / "itables.toml").write_text("maxBytes = ")
    words = ["--store", small.root, "--results", tmp_path / 'quo\'te "out"']
    env = {"HOME": str(home), "PYTHONPATH": repo_env["PYTHONPATH"], "XDG_CACHE_HOME": "", "MPLCONFIGDIR": ""}
    done = command(*words, cwd=tmp_path, **env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    page = tmp_path / 'quo\'te "out"' / "report.html"
    assert done.stdout.startswith(f"{page}: 2 runs, 2 finished; ")
    assert page.is_file()
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in page.parent.iterdir()) == ["figures", "report.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store", "absent"], "absent: no store there; name one with --store DIR"),
        (["--store", "runs", "--results", "study.yaml/x"], "study.yaml/x: the results folder cannot be written: "),
        (["--store", "runs", "--experiments", "absent.yaml"], "absent.yaml: no such file"),
    ],
)
def test_bad_input_is_one_sentence(small, tmp_path, repo_env, words, message):
    done = command(*words, cwd=tmp_path, PYTHONPATH=repo_env["PYTHONPATH"])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
