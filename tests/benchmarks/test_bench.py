"""The benchmarks that `make bench` puts together, each in its short form."""

import re

import pytest

from benchmarks.measure import Spread, alternate, ratio, table
from tests.benchmarks.running import run


def test_ratios_are_of_runs_that_follow_each_other():
    seconds = iter([1.0, 2.0, 2.0, 5.0, 4.0, 8.0])
    figures = alternate({"one": lambda: next(seconds), "other": lambda: next(seconds)}, 3)
    assert figures == {"one": [1.0, 2.0, 4.0], "other": [2.0, 5.0, 8.0]}
    assert ratio(figures["other"], figures["one"]) == Spread(2.0, 2.0, 2.5)
    assert str(Spread.of([3.0, 1.0, 2.0])) == "2 (1 to 3)"
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("step", "| network | lanes | bare, µs | packed, µs | packed / bare |"),
        ("busy", "| run, s | lanes | runs | sampling a run, s | inside runs | sampling |"),
        ("memory", "| rows | data in float32, MB | sgld |"),
        ("packing", "| way | compile cache | seconds | in units of packed |"),
    ],
)
def test_a_benchmark_writes_its_section_and_its_place_in_the_report(tmp_path, name, head):
    out = tmp_path / "a folder" / "results"
    run("bench", "--quick", "--out", out, name)
    section = (out / f"{name}.md").read_text()
    assert head in section and f"![{name}]({name}.png)" in section
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    report = (out.parent / "RESULTS.md").read_text()
    assert report.startswith("# Benchmarks: what was measured\n") and head in report
    assert f"![{name}](results/{name}.png)" in report


def test_an_unknown_benchmark_is_refused_with_those_there_are():
    assert "unknown benchmark stepp; there are first, compiling, packing" in run("bench", "stepp", status=2).stderr


@pytest.mark.slow
@pytest.mark.mpi
def test_first_seconds_are_measured_for_a_study_and_an_estimate(tmp_path):
    run("first", "--quick", "--out", tmp_path)
    section = (tmp_path / "first.md").read_text()
    # Two samplers' programs (begin, advance) for two targets of different shapes.
    assert re.search(r"\| this version \| [0-9.]+ \(.*\) \| 1 \(1 to 1\) \| .* \| 4 \|", section)
    assert re.search(r"\| sgld \| [0-9.]+ \(", section)
