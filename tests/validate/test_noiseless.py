"""`lambda-hat validate`: what is in the table, what meets a bar, and the command as a person types it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time

import pytest

from lambda_hat.config import SAMPLE_SCHEMAS, DlnBuild, NutsConfig
from lambda_hat.entrypoints.cli import main
from lambda_hat.entrypoints.validate import samplers_of
from lambda_hat.targets import true_llc, true_llc_t
from lambda_hat.targets.truth import dln_rank
from lambda_hat.validate import noiseless as truth
from lambda_hat.validate.noiseless import ROWS, Row, judge, run_row, select, settings
from lambda_hat.validate.noiseless_table import summary_line

N_BETA = 1000 / math.log(1000)


def exact(row: Row) -> float | None:
    return true_llc_t(row.build, row.build.n / math.log(row.build.n), row.gamma)


def row_named(label: str) -> Row:
    return next(row for row in ROWS if row.label == label)


def command(*words, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "lambda_hat.entrypoints.cli", "validate", *words], capture_output=True, text=True,
        timeout=300, **kwargs,
    )  # fmt: skip


def test_the_table_has_every_kind_of_row():
    labels = [row.label for row in ROWS]
    assert len(set(labels)) == len(labels)
    kinds = {row.build.kind for row in ROWS}
    assert kinds == {"quadratic", "monomial", "monomial_sum", "radial", "line_and_point", "tanh", "dln"}
    points = {row.build.target.point[0] for row in ROWS if row.build.kind == "line_and_point"}
    assert points == {0.0, 1.0}
    assert sum(exact(row) is not None for row in ROWS) >= 25
    assert all(true_llc(row.build) is not None for row in ROWS)
    assert any(row.gamma != 1 for row in ROWS) and any(row.build.n != 1000 for row in ROWS)


def test_the_four_cases_of_reduced_rank_regression_are_there():
    cases = set()
    for row in ROWS:
        if not isinstance(row.build, DlnBuild) or len(row.build.target.widths) != 3:
            continue
        (m, h, n), r = row.build.target.widths, dln_rank(row.build)
        if n + r <= m + h and m + r <= n + h and h + r <= m + n:
            cases.add("1 even" if (m + h + n + r) % 2 == 0 else "1 odd")
        elif m + h < n + r:
            cases.add("2")
        elif n + h < m + r:
            cases.add("3")
        else:
            cases.add("4")
    assert cases == {"1 even", "1 odd", "2", "3", "4"}
    assert sum(true_llc(row.build)[1] > 1 for row in ROWS if isinstance(row.build, DlnBuild)) >= 3


@pytest.mark.parametrize("sampler", SAMPLE_SCHEMAS)
def test_every_sampler_has_settings_for_every_row_that_it_takes(sampler):
    chosen = select([sampler], "*")
    assert len(chosen) == len([row for row in ROWS if row.build.dim >= SAMPLE_SCHEMAS[sampler].min_dim])
    for name, row in chosen:
        with_bar, without = settings(name, row, 0.5), settings(name, row, None)
        assert with_bar.name == without.name == sampler
        assert with_bar.gamma == row.gamma
        assert without.num_steps < with_bar.num_steps
    if sampler in ("nuts", "hmc"):
        assert with_bar.target_acceptance == 0.99
        # A small lambda needs more draws for the same relative error, up to a limit.
        assert settings(sampler, ROWS[0], 0.1).thin > settings(sampler, ROWS[0], 5.0).thin


@pytest.mark.parametrize(
    ("sampler", "llc", "std_error", "exact", "meets"),
    [
        ("nuts", 1.01, 0.01, 1.0, True),
        ("nuts", 1.01, 0.003, 1.0, False),  # 3.3 standard errors
        ("hmc", 1.03, 0.02, 1.0, False),  # 3 %
        ("sgld", 1.04, 0.001, 1.0, True),
        ("sgld", 0.94, 0.1, 1.0, False),
        ("nuts", math.nan, math.nan, 1.0, False),
        ("sgld", math.nan, math.nan, 1.0, False),
        ("nuts", 1.0, 0.0, 0.5, False),
        ("nuts", 1.0, 0.1, None, None),
    ],
)
def test_bars(sampler, llc, std_error, exact, meets):
    assert judge(sampler, llc, std_error, exact)["meets_bar"] is meets


def test_rows_without_an_exact_answer_are_not_counted():
    results = [{"row": str(met), "sampler": "nuts", "meets_bar": met, "verdict": "ok"} for met in (True, False, None)]
    assert summary_line("nuts", results).startswith("nuts: 1 of 2 rows with an exact λ_t within 3 standard errors")
    results.append({"row": "False", "sampler": "nuts", "meets_bar": True, "verdict": "ok"})
    assert summary_line("nuts", results).startswith("nuts: 2 of 2 rows")


@pytest.mark.parametrize(
    ("sampler", "misses", "again", "status"),
    [
        ("nuts", {}, False, 0),
        ("nuts", {4: 3.3}, True, 0),
        ("nuts", {4: -3.3, 5: 3.1}, True, 1),
        ("nuts", {4: 4.1}, False, 1),  # no chance
        ("nuts", {4: None}, False, 1),  # no number at all
        ("sgld", {4: 3.3}, False, 1),  # its bar is no matter of standard errors
    ],
)
def test_a_miss_that_may_be_chance_is_sampled_again_with_the_next_seed(
    sampler, misses, again, status, monkeypatch, capsys
):
    asked = []

    def fake(chosen, processes, seed):
        asked.append((seed, [row.label for _, row in chosen]))
        for name, row in chosen:
            missed = row.label == "w1^4" and seed in misses
            z = misses[seed] if missed else 0.5
            yield {
                "row": row.label, "sampler": name, "seed": seed, "meets_bar": not missed, "z": z, "verdict": "ok",
                "seconds": 0.0,
            }  # fmt: skip

    monkeypatch.setattr("lambda_hat.entrypoints.validate.run_rows", fake)
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--sampler", sampler, "--only", "w1^4*", "--seed", "4", "--json"])
    assert ended.value.code == status
    names = [row.label for row in ROWS if row.label.startswith("w1^4")]
    assert asked == [(4, names), *([(5, ["w1^4"])] if again else [])]
    shown = [(row["seed"], row["row"], row["meets_bar"]) for row in json.loads(capsys.readouterr().out)]
    first = [(4, name, name != "w1^4" or not misses) for name in names]
    assert shown == first + ([(5, "w1^4", status == 0)] if again else [])


@pytest.mark.slow
def test_a_row_is_a_run_of_the_same_code(monkeypatch):
    short = NutsConfig(num_draws=1000, num_burnin=400)
    monkeypatch.setattr(truth, "settings", lambda sampler, row, exact: short)
    row = row_named("quadratic d=4 rank 2")
    found = run_row("nuts", row, seed=3)
    assert found["true_llc_t"] == pytest.approx(N_BETA / (N_BETA + 1))
    assert (found["true_llc"], found["dim"], found["n"], found["verdict"]) == (1.0, 4, 1000, "ok")
    assert abs(found["z"]) < 4
    assert found["rel_error"] == pytest.approx(found["llc"] / found["true_llc_t"] - 1)
    assert run_row("nuts", row, seed=4)["llc"] != found["llc"] == run_row("nuts", row, seed=3)["llc"]


@pytest.mark.parametrize(
    ("words", "names"),
    [([], ["hmc", "sgld"]), (["hmc, sgld"], ["hmc", "sgld"]), (["hmc", "all"], ["hmc", *SAMPLE_SCHEMAS])],
)
def test_samplers_by_name(words, names):
    assert samplers_of(words) == list(dict.fromkeys(names))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "nut"], "--sampler: unknown 'nut'; did you mean 'nuts'"),
        (["--only", "w9*"], "--only 'w9*': matches no row; they are quadratic d=4 rank 4;"),
        (["--only", "w1^4", "--sampler", "mclmc"], "mclmc takes none of these rows, it needs at least 2 parameters"),
        (["--processes", "0"], "--processes: got 0"),
        (["--seed", "-1"], "--seed: got -1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(words, message):
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_command_prints_json_and_a_table():
    words = ["--sampler", "nuts,sgld", "--only", "w1^2 + w2^4"]
    done = command(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert [(row["sampler"], row["row"], row["meets_bar"]) for row in rows] == [
        ("nuts", "w1^2 + w2^4", True),
        ("sgld", "w1^2 + w2^4", True),
    ]
    assert rows[0]["true_llc_t"] == pytest.approx(0.7414, abs=1e-4)
    assert len({row["verdict"] for row in rows} - {"ok"}) == 0
    table = command(*words, "--sampler", "sgld")
    assert table.returncode == 0
    assert "nuts: 1 of 1 rows with an exact λ_t within 3 standard errors and 2% of it" in table.stdout
    assert "sgld: 1 of 1 rows with an exact λ_t within 5% of it; verdicts: 1 ok" in table.stdout


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once():
    process = subprocess.Popen(
        [sys.executable, "-m", "lambda_hat.entrypoints.cli", "validate"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in stderr
