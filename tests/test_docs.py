"""The documents: every command runs, every file that they name exists, every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = "README.md CONTRIBUTING.md CHANGELOG.md benchmarks/README.md docs/clusters.md docs/packs.md"
DOCUMENTS = [ROOT / name for name in NAMES.split()]
RUN_BY_CI = {"make run", "make test", "make lint", "bash .ci/run", "lambda-hat validate"}
FILE_NAME = re.compile(r"# (\S+\.(?:yaml|py))\n")
"""First line of a block that is a file."""


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


def commands(document: Path) -> list[str]:
    """The shell commands of a document, without their comments."""
    lines = "".join(blocks(document, "sh")).splitlines()
    return [command for line in lines if (command := line.partition("  #")[0].strip())]


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_every_command_of_the_readme_runs_in_its_order(tmp_path):
    for name in ("flows", "mpi", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = blocks(ROOT / "README.md", "python")
    for text in [*blocks(ROOT / "README.md", "yaml"), *filter(FILE_NAME.match, python)]:
        (tmp_path / FILE_NAME.match(text).group(1)).write_text(text)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = []
    for command in commands(ROOT / "README.md"):
        if command in RUN_BY_CI:
            continue
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append(command)
    assert len(ran) >= 12
    snippets = [text for text in python if not FILE_NAME.match(text)]
    assert len(snippets) >= 4
    for code in snippets:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_every_command_of_the_benchmarks_but_the_long_ones_runs(tmp_path):
    for name in ("benchmarks", "flows", "mpi", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    names = "busy checkpoints costs dln handout memory packing report scale startup step tune".split()
    long = {"make bench", *(f"python benchmarks/{name}.py" for name in names)}
    ran = [command for command in commands(ROOT / "benchmarks" / "README.md") if command not in long]
    assert len(ran) == 3
    for command in ran:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "results" / "two" / "dln.md").is_file()


def test_ci_runs_what_the_readme_promises():
    script = (ROOT / ".ci" / "run").read_text()
    promised = {command for command in commands(ROOT / "README.md") if command.startswith("make ")}
    assert promised == {"make run", "make test"}
    assert all(command in script.splitlines() for command in promised)
    assert ".venv/bin/lambda-hat validate" in script
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"run", "test", "lint"} <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_and_named_files_exist(document):
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (document.parent / target).exists(), target
    for name in re.findall(r"`((?:lambda_hat|flows|mpi|conf|tests|docs|benchmarks)/[\w./]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_the_vocabulary_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    words = "n dim loss beta n_beta gamma step_size num_chains num_draws num_burnin thin llc"
    for word in [*words.split(), "run", "target", "pack", "rank", "site", "store", "w_star"]:
        assert re.search(rf"\| [^|]*\b{word}\b[^|]* \||`{word}`", text), word


def test_every_option_of_the_flow_has_a_help_text():
    done = subprocess.run(
        [sys.executable, str(ROOT / "flows" / "packed.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    options = "experiments pack site ranks store results dry-run rerun retries quiet check submit nodes walltime chain"
    assert done.returncode == 0
    for option in options.split():
        assert re.search(rf"--{option}\b.*\S", done.stdout), option
