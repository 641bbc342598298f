"""What an estimate says of itself while it is computed: on a terminal, where it takes long, or where it is asked to."""

from __future__ import annotations

import io

import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat import estimate_llc
from lambda_hat.config import SgldConfig
from lambda_hat.execute import progress
from lambda_hat.execute.progress import ProgressLine, in_words, telling
from lambda_hat.targets.custom import target_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def quadratic(w, _):
    return 0.5 * jnp.sum(w**2)


CFG = SgldConfig(step_size=1e-3, num_chains=2, num_draws=100, num_burnin=50, thin=1)


@pytest.fixture
def target():
    return target_of(quadratic, np.zeros(2), None, 100)


@pytest.fixture
def long(monkeypatch):
    monkeypatch.setattr(progress, "expected_seconds", lambda target, cfg: 700.0)


@pytest.fixture
def unmeasured(monkeypatch):
    def never(target, cfg):
        raise AssertionError("nothing has to be measured")

    monkeypatch.setattr(progress, "expected_seconds", never)


@pytest.mark.parametrize(("wanted", "stream"), [(None, io.StringIO()), (False, Terminal())])
def test_nothing_is_said_or_measured_where_nobody_looks(target, unmeasured, wanted, stream):
    with telling(target, CFG, wanted, stream) as shown:
        assert shown is None
    assert stream.getvalue() == ""


def test_a_short_run_says_nothing_on_a_terminal_unless_it_is_asked_to(target, monkeypatch):
    monkeypatch.setattr(progress, "expected_seconds", lambda target, cfg: 3.0)
    stream = Terminal()
    with telling(target, CFG, None, stream) as shown:
        assert shown is None
    assert stream.getvalue() == ""
    with telling(target, CFG, True, stream) as shown:
        assert shown is not None
    assert stream.getvalue() == "sgld: 2 chains of 150 steps on 2 parameters, about 3 s\n"


def test_a_long_run_says_its_cost_first_and_leaves_a_clean_line(target, long):
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), telling(target, CFG, None, stream) as shown:
        assert stream.getvalue() == "sgld: 2 chains of 150 steps on 2 parameters, about 12 min\n"
        shown("sample", 10, 150)
        raise KeyboardInterrupt
    last = stream.getvalue().split("\n")[1].split("\r")
    assert last == ["", "sampling: 10 of 150 steps", " " * 25, ""]


def test_the_pace_is_that_after_the_first_chunk():
    now, stream = [0.0], Terminal()
    line = ProgressLine(stream, lambda: now[0])
    for seconds, where in [(30.0, ("adapt", 1, 5)), (31.0, ("adapt", 5, 5)), (40.0, ("sample", 10, 1010)),
                           (40.1, ("sample", 11, 1010)), (50.0, ("sample", 110, 1010))]:  # fmt: skip
        now[0] = seconds
        line(*where)
    shown = [part.rstrip() for part in stream.getvalue().split("\r")[1:]]
    assert shown == [
        "adapting: 1 of 5 steps",
        "adapting: 5 of 5 steps",
        "sampling: 10 of 1,010 steps",
        "sampling: 110 of 1,010 steps, about 90 s left",
    ]


def test_a_file_gets_a_line_for_each_phase():
    stream = io.StringIO()
    line = ProgressLine(stream)
    for where in [("adapt", 1, 50), ("adapt", 50, 50), ("sample", 1, 90), ("sample", 90, 90)]:
        line(*where)
    line.clear()
    assert stream.getvalue() == "adapting: 50 of 50 steps\nsampling: 90 of 90 steps\n"


def test_an_estimate_that_is_asked_to_tells_its_cost_and_its_phases(capsys):
    options = dict(num_draws=60, num_burnin=40, thin=1, n=100, n_beta=30.0)
    silent = estimate_llc(quadratic, np.zeros(2), None, **options)
    assert capsys.readouterr().err == ""
    found = estimate_llc(quadratic, np.zeros(2), None, progress=True, **options)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("sgld: 4 chains of 100 steps on 2 parameters, about ")
    assert lines[1:] == ["adapting: 40 of 40 steps", "sampling: 60 of 60 steps"]
    np.testing.assert_array_equal(found.losses, silent.losses)


def test_durations_in_words():
    assert [in_words(seconds) for seconds in (3.2, 99, 100, 3600, 7200)] == ["3 s", "99 s", "2 min", "60 min", "2.0 h"]
