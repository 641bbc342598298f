"""The noisy suite: what it samples, what it counts, and how it ends."""

from __future__ import annotations

import json
import math

import pytest

from lambda_hat.config import SAMPLE_SCHEMAS, HmcConfig, SgldConfig
from lambda_hat.entrypoints import validate
from lambda_hat.entrypoints.cli import main
from lambda_hat.errors import ConfigError
from lambda_hat.targets import build_target
from lambda_hat.validate import judged, noisy, outcomes
from lambda_hat.validate.noisy import NETWORKS, TARGETS, Pair, Setting, select, settings_of
from lambda_hat.validate.outcomes import FEWEST_PAIRS, NOT_OK_RIGHT, NOT_OK_WRONG, OK_RIGHT, OK_WRONG
from lambda_hat.validate.runner import groups
from lambda_hat.workflow_config import compose_sample_cfg


def made_row(outcome=OK_RIGHT, setting="hmc", target="a", seed=0, **more):
    """A row as `run_pair` gives it."""
    row = {
        "target": target,
        "setting": setting,
        "sampler": setting.partition(" ")[0],
        "is_default": setting in ("hmc", "nuts", "sgld 256"),
        "seed": seed,
        "pair_seed": seed,
        "verdict": "ok" if outcome in (OK_RIGHT, OK_WRONG) else "unmixed",
        "outcome": outcome,
        "llc": 1.0,
        "std_error": 0.01,
        "exact": 1.0,
        "exact_std_error": 0.0,
        "rel_error": 0.0,
        "z": 0.0,
        "temperature": 1.0,
        "rhat": 1.0,
        "ess": 100.0,
        "seconds": 0.0,
    }
    return row | more


# --------------------------------------------------------------------------------------------------- what is sampled


def test_the_suite_has_every_kind_of_target_and_enough_pairs():
    labels = [target.label for target in TARGETS]
    assert len(set(labels)) == len(labels)
    assert {target.program.split()[0] for target in TARGETS} == {
        "squares", "logistic", "poisson", "mixture", "tanh", "relu",
    }  # fmt: skip
    pairs = select(list(SAMPLE_SCHEMAS), "*", 0)
    assert len(pairs) >= FEWEST_PAIRS
    assert len({(pair.setting.label, pair.label, pair.pair_seed) for pair in pairs}) == len(pairs)
    assert {pair.label for pair in pairs} == set(labels)
    for sampler in ("sgld", "sghmc", "sgnht"):
        assert {pair.setting.batch_size for pair in pairs if pair.setting.sampler == sampler} >= {32, 256, None}


@pytest.mark.parametrize("sampler", SAMPLE_SCHEMAS)
def test_nothing_is_set_but_the_name_and_the_batch_size(sampler):
    """The default is what a study composes from the name alone."""
    composed = compose_sample_cfg("target", {"name": sampler, "overrides": {"seed": 3}})
    settings = settings_of(sampler)
    assert [s.config("target", 3) for s in settings if s.is_default] == [composed]
    for setting in settings:
        changed = {key for key, value in vars(setting.config("target", 3)).items() if value != getattr(composed, key)}
        assert changed <= {"batch_size"}


def test_what_shares_a_program_is_sampled_in_a_row():
    pairs = select(["sgld", "hmc"], "linear*", 0)
    of_groups = [
        {(pair.setting.label, noisy.known(pair.label).target.dim) for pair in group} for group in groups(pairs)
    ]
    assert all(len(kinds) == 1 for kinds in of_groups)
    assert len(of_groups) == 2 * len([*settings_of("sgld"), *settings_of("hmc")])


@pytest.mark.parametrize("same", ["squares 5", "mixture"])
def test_targets_of_one_program_have_loss_and_shapes_in_common(same):
    targets = [noisy.known(target.label).target for target in TARGETS if target.program == same]
    assert len(targets) > 1
    assert len({target.loss for target in targets}) == 1
    assert len({tuple((name, array.shape) for name, array in target.data.items()) for target in targets}) == 1


def test_sizes_are_told_before_anything_is_made():
    for target in TARGETS:
        found = noisy.known(target.label).target
        assert (target.rows, target.dim) == (found.n, found.dim)
        assert found.num_data == found.n


def test_a_pair_is_a_run_of_the_same_code(monkeypatch):
    short = SgldConfig(num_chains=2, num_draws=50, num_burnin=50, batch_size=32)
    monkeypatch.setattr(Setting, "config", lambda self, target, seed: short)
    pair = Pair(Setting("sgld", 32), "Poisson d=2", 7, 6)
    row = pair.run()
    n_beta = 2000 / math.log(2000)
    assert (row["target"], row["setting"], row["seed"], row["pair_seed"]) == ("Poisson d=2", "sgld 32", 7, 6)
    assert (row["n"], row["dim"], row["gamma"]) == (2000, 2, 1.0)
    assert row["n_beta"] == pytest.approx(n_beta)
    assert row["exact"] == pytest.approx(noisy.answer("Poisson d=2", n_beta, 1.0)[0])
    assert row["num_gradients"] > 0 and row["ess"] > 0 and row["seconds"] > 0
    judgement = outcomes.judge(row["verdict"], row["llc"], row["std_error"], row["exact"])
    assert {name: row[name] for name in judgement} == judgement
    told = validate.finite_or_none(row)
    assert json.loads(json.dumps(told, allow_nan=False)).keys() == row.keys()


def test_a_refused_run_is_a_row_without_a_number(monkeypatch):
    def refuse(target, cfg):
        raise ConfigError("not this one")

    monkeypatch.setattr("lambda_hat.execute.sampling.estimate", refuse)
    row = Pair(Setting("hmc"), "Poisson d=2", 0, 0).run()
    assert (row["verdict"], row["verdict_sentence"], row["outcome"]) == ("refused", "not this one", NOT_OK_WRONG)
    assert math.isnan(row["llc"]) and math.isnan(row["temperature"])


# ---------------------------------------------------------------------------------------------------- what is counted


@pytest.mark.parametrize(
    ("verdict", "llc", "std_error", "exact", "exact_std_error", "outcome"),
    [
        ("ok", 1.0, 0.01, 1.0, 0.0, OK_RIGHT),
        ("ok", 1.079, 0.01, 1.0, 0.0, OK_RIGHT),  # 3 standard errors + 5 %
        ("ok", 1.081, 0.01, 1.0, 0.0, OK_WRONG),
        ("ok", 0.919, 0.01, 1.0, 0.0, OK_WRONG),
        ("ok", 1.091, 0.01, 1.0, 0.01, OK_RIGHT),  # 3 x .0141 + 5 %
        ("ok", 1.093, 0.01, 1.0, 0.01, OK_WRONG),
        ("unmixed", 1.0, 0.01, 1.0, 0.0, NOT_OK_RIGHT),
        ("heated", 2.0, 0.01, 1.0, 0.0, NOT_OK_WRONG),
        ("ok", math.nan, math.nan, 1.0, 0.0, OK_WRONG),
        ("diverged", math.nan, math.nan, 1.0, 0.0, NOT_OK_WRONG),
        ("ok", 4.56, 0.15, 2.499, 0.0, OK_WRONG),
    ],
)  # fmt: skip
def test_outcomes(verdict, llc, std_error, exact, exact_std_error, outcome):
    assert outcomes.judge(verdict, llc, std_error, exact, exact_std_error)["outcome"] == outcome


@pytest.mark.parametrize(
    ("outcome", "llc", "is_chance"),
    [(OK_WRONG, 1.085, True), (OK_WRONG, 1.091, False), (OK_WRONG, None, False), (NOT_OK_WRONG, 1.085, False)],
)
def test_what_chance_may_explain(outcome, llc, is_chance):
    assert outcomes.may_be_chance(made_row(outcome, llc=llc)) is is_chance
    assert outcomes.may_be_chance(made_row(outcome, "sgld 256", llc=llc)) is is_chance


def test_the_last_run_of_a_pair_decides():
    rows = [made_row(OK_WRONG), made_row(OK_RIGHT, target="b"), made_row(NOT_OK_WRONG, seed=2, pair_seed=0)]
    assert [row["outcome"] for row in outcomes.deciding(rows)] == [NOT_OK_WRONG, OK_RIGHT]
    assert outcomes.counts(rows) == {OK_RIGHT: 1, OK_WRONG: 1, NOT_OK_WRONG: 1, NOT_OK_RIGHT: 0}


def test_bars():
    def met(rows):
        return [bar.is_met for bar in outcomes.bars(rows)]

    fine = [made_row(target=str(i)) for i in range(9)]
    assert met(fine) == [True, True, True]
    assert met([*fine, made_row(NOT_OK_WRONG)]) == [True, True, True]
    assert met([*fine, made_row(NOT_OK_RIGHT), made_row(NOT_OK_WRONG)]) == [True, True, False]
    assert met([*fine, made_row(OK_WRONG)]) == [False, True, True]
    # Another batch size than the default counts among all pairs alone.
    others = [made_row(NOT_OK_WRONG, "sgld 32", str(i)) for i in range(4)]
    assert met([*fine, *others[:3]]) == [True, True, True]
    assert met([*fine, *others]) == [True, False, True]
    assert met([*fine, made_row(NOT_OK_RIGHT, "sgld 256")]) == [True, True, True, False]


# ------------------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("outcomes_of", "status", "again"),
    [
        ({}, 0, 0),
        ({0: NOT_OK_WRONG}, 1, 0),  # hmc: ok and right in 1 of 2 pairs
        ({0: OK_WRONG}, 0, 1),  # by chance, and right with the next seed
        ({0: OK_WRONG, 2: OK_WRONG}, 1, 1),
    ],
)
@pytest.mark.parametrize("form", ["--json", "--processes=1"])
def test_the_exit_status_is_that_of_the_bars(outcomes_of, status, again, form, monkeypatch, capsys, tmp_path):
    asked = []

    def fake(pairs, processes):
        asked.append([pair.seed for pair in pairs])
        for pair in reversed(pairs):
            outcome = outcomes_of.get(pair.seed, OK_RIGHT)
            llc = 1.085 if outcome == OK_WRONG else 1.0
            yield made_row(outcome, "hmc", pair.label, pair.seed, pair_seed=pair.pair_seed, llc=llc)

    monkeypatch.setattr(validate, "run_jobs", fake)
    picture = tmp_path / "noisy.png"
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--suite", "noisy", "--sampler", "hmc", "--only", "Poisson*", "--plot", str(picture), form])
    assert ended.value.code == status
    assert asked == [[0, 1], *([[2]] if again else [])]
    assert picture.stat().st_size > 10_000
    shown, progress = capsys.readouterr()
    assert "2 pairs of 1 targets" in progress and "2 of 2: hmc: Poisson d=2, seed 0" in progress
    if form == "--json":
        assert [row["seed"] for row in json.loads(shown)] == [0, 1, *([2] if again else [])]
    else:
        assert f"{'met   ' if status == 0 else 'MISSED'} ok and right with hmc: at least 90%" in shown
        assert "this is a part of the suite" in shown
        assert ("ok and wrong: 0: 1 of 2" in shown) == (2 in outcomes_of)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "x*"], "--only 'x*': matches no target; they are linear, sigma 0.1;"),
        (["--judge", "--only", "linear*"], "--only 'linear*': matches no network; they are tanh 4-8-1;"),
        (["--suite", "truth", "--plot", "a.png"], "--plot: belongs to the noisy suite; add --suite noisy"),
        (["--suite", "truth", "--judge"], "--judge: belongs to the noisy suite"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--suite", "noisy", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- the judge


def test_every_network_was_judged():
    records = json.loads(judged.JUDGED.read_text())
    assert records.keys() == NETWORKS.keys()
    for label, record in records.items():
        # Stiff places make NUTS diverge now and then also at .99; then its temperature and R-hat vouch for it.
        assert record["verdict"] in ("ok", "divergent")
        assert record["rhat"] < 1.01
        assert abs(record["temperature"] - 1) < 3 * record["temperature_std_error"]
        assert record["std_error"] < 0.02 * record["llc"]
        assert judged.judgement(label, record["n_beta"], record["gamma"]) == (record["llc"], record["std_error"])
        with pytest.raises(ConfigError, match=r"judged at n_beta = 144\.765 and gamma = 1, got 100 and 1"):
            judged.judgement(label, 100.0, 1.0)


@pytest.mark.slow
def test_the_judge_stores_what_it_finds_and_keeps_the_rest(monkeypatch, tmp_path, capsys):
    short = HmcConfig(num_chains=2, num_draws=20, num_burnin=20)
    monkeypatch.setattr(judged, "judge_config", lambda label: short)
    path = tmp_path / "judged.json"
    path.write_text('{"other": {}}')
    label = "relu 2-3-1"
    ((name, record),) = judged.run_judge({label: NETWORKS[label]}, path)
    assert name == label
    assert json.loads(path.read_text()) == {"other": {}, label: validate.finite_or_none(record)}
    assert record["command"] == "lambda-hat validate --suite noisy --judge --only 'relu 2-3-1'"
    # Its point and data are those of a build.
    monkeypatch.setattr(judged, "JUDGED", path)
    target, (built, _) = judged.network(label, NETWORKS[label]), build_target(NETWORKS[label])
    assert all((target.data[key] == built.data[key]).all() for key in built.data)
    assert target.loss_at_w_star == pytest.approx(built.loss_at_w_star, rel=1e-9)


def test_a_network_without_a_judgement_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(judged, "JUDGED", tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"tanh 4-8-1: none\.json has no judgement of it; make it with"):
        select(["hmc"], "tanh 4*", 0)
