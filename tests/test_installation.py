"""The wheel in an empty environment and an empty folder, by the commands of docs/install.md; and how it is made."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lambda_hat.config import BUILD_SCHEMAS
from lambda_hat.errors import EXTRAS
from tests.test_docs import blocks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "install.md"
WHEEL = os.environ.get("LAMBDA_HAT_WHEEL")
"""The wheel that is tried; without it the tests build one."""
INTERPRETER = os.environ.get("LAMBDA_HAT_PYTHON", sys.executable)
"""The python3 of the environment's reader; the present one by default."""


def release():
    """The script that builds a release, as a module."""
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    if WHEEL is not None:
        return Path(WHEEL)
    found, sdist = release().build(tmp_path_factory.mktemp("dist"))
    release().check_sdist(sdist)
    release().check_wheel(found, found.name.split("-")[1])
    return found


class Reader:
    """Somebody with an empty folder and the environment that the page's first commands make in it."""

    def __init__(self, folder: Path, wheel: Path):
        self.folder, self.wheel = folder, wheel
        self.bin = folder / ".venv" / "bin"
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "LAMBDA_HAT_CACHE")
        self.env = {key: value for key, value in os.environ.items() if key not in hidden}
        self.env |= {"HOME": str(folder), "PATH": f"{Path(INTERPRETER).parent}{os.pathsep}{os.environ['PATH']}"}

    def types(self, script: str, status: int = 0, where: str = ".") -> str:
        """Run lines of a shell with the environment on. Returns what they print on both streams."""
        enter = f". {self.bin}/activate\n" if self.bin.exists() else ""
        script = re.sub(r"(['\s])lambda-hat(\[[\w,]+\])?(?='|$)", rf"\1{self.wheel}\2", script, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-ec", enter + script], cwd=self.folder / where, env=self.env, text=True, timeout=900,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == status, f"{script}\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(wheel, tmp_path_factory) -> Reader:
    """After the first block of the page: `lambda-hat` alone is installed."""
    found = Reader(tmp_path_factory.mktemp("reader"), wheel)
    found.types(blocks(PAGE, "sh")[0])
    return found


@pytest.fixture(scope="module")
def studied(reader) -> Reader:
    """After the next two blocks: `lambda-hat[mpi]` is installed, and the first study was run."""
    _, install, start, _ = blocks(PAGE, "sh")
    reader.types(install)
    reader.types(start)
    return reader


COMMANDS = {
    "study": [["ls"], ["status"], ["results"], ["report"], ["validate"]],
    "mpi": [["run"], ["tune"]],
}
"""By what they need."""


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_alone_it_estimates_and_every_other_command_says_what_it_lacks(reader):
    (reader.folder / "first.py").write_text(blocks(PAGE, "python")[0])
    assert "LLCEstimate: llc = " in reader.types("python first.py")
    assert re.fullmatch(r"\d+\.\S+\n", reader.types("lambda-hat --version"))
    reader.types("mkdir -p some/targets")
    for words in COMMANDS["study"]:
        store = "" if words == ["validate"] else " --store some"
        said = reader.types(f"lambda-hat {words[0]}{store}", status=2)
        assert re.search(r"error: .*: needs \w+, which is not installed; write pip install 'lambda-hat\[\w+\]'$", said)
        assert len(said.splitlines()) == 1, said
    for words in COMMANDS["mpi"]:
        assert "needs parsl, which is not installed; write pip install 'lambda-hat[mpi]'" in reader.types(
            f"lambda-hat {words[0]} --help", status=2
        )
    told = reader.types("python -c 'import lambda_hat; lambda_hat.load_results()'", status=1)
    assert "MissingExtra: lambda_hat.load_results: needs " in told
    told = reader.types("""python -c 'import lambda_hat; lambda_hat.estimate_llcs("quadratic", "hmc")'""", status=1)
    assert "MissingExtra: estimate_llcs: needs mpi4py, which is not installed; write pip install" in told


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_the_commands_of_the_page_make_a_report_and_all_that_looks_at_a_study_works(studied):
    reader, look = studied, blocks(PAGE, "sh")[-1]
    table = pd.read_parquet(reader.folder / "first" / "results" / "llc_runs.parquet")
    assert table["status"].tolist() == ["finished"] * 6
    assert (table["verdict"] == "ok").sum() >= 5, table[["target", "sampler", "verdict"]].to_string()
    assert (reader.folder / "first" / "results" / "report.html").stat().st_size > 1e5
    again = reader.types("lambda-hat run --experiments study.yaml --pack 32", where="first")
    assert "everything is cached" in again
    said = reader.types(look, where="first")
    assert "lambda-hat run --experiments study.yaml --pack 32" in said, "the command as it was typed"
    assert "is there already, and nothing was written" in reader.types("lambda-hat init first", status=2)

    found = reader.types("python -c 'import sys, importlib.util as u; print([u.find_spec(n) for n in sys.argv[1:]])' "
                         "flows mpi conf slurm_templates shipped")  # fmt: skip
    assert found == "[None, None, None, None, None]\n"


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_presets_sites_and_searches_are_those_of_a_checkout(studied):
    reader = studied
    (reader.folder / "wrong.yaml").write_text("targets: [{target: quadratik}]\nsamplers: [{name: hmc}]\n")
    said = reader.types("lambda-hat run --experiments wrong.yaml", status=2)
    assert "did you mean 'quadratic'?" in said and all(name in said for name in ("dln", "monomial", "mlp"))
    assert set(BUILD_SCHEMAS) - {"custom"} <= set(re.findall(r"\w+", said))
    small = "targets: [{model: tiny, data: small, teacher: _null, seed: 1}]\nsamplers: [{name: hmc}]\n"
    (reader.folder / "small.yaml").write_text(small)
    assert "dry run: nothing was started" in reader.types("lambda-hat run --experiments small.yaml --dry-run")
    job = reader.types("lambda-hat run --experiments small.yaml --submit slurm --nodes 2 --walltime 1:00:00 --dry-run")
    assert re.search(r"^exec \S+ \S+/lambda_hat/shipped/flows/packed\.py --experiments ", job, flags=re.MULTILINE)
    words = "--experiments study.yaml --samplers sgld --quick --store tuned --results tuned"
    assert "settings" in reader.types(f"lambda-hat tune {words}", where="first")
    assert "ok" in reader.types("lambda-hat validate --sampler hmc --only '*quadratic*' --processes 1")


# ------------------------------------------------------------------------------------------------------ the release


def test_extras_are_those_that_the_messages_name():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: [re.split(r"[^\w-]", line)[0] for line in extras[extra]] for extra in EXTRAS}
    assert set(names["study"]) == set(EXTRAS["study"])
    assert set(names["mpi"]) - {"lambda-hat", "mpich"} == set(EXTRAS["mpi"])


@pytest.mark.parametrize(
    ("tags", "said"), [([], "HEAD has the tags none"), (["v1.0"], "give it one"), (["v1.0.0", "v1.0.1"], "v1.0.1")]
)
def test_a_release_has_one_tag(tags, said):
    with pytest.raises(SystemExit, match=re.escape(said)):
        release().version_of(tags)
    assert release().version_of(["v1.2.3", "nightly"]) == "1.2.3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "# Changelog\n\n## 1.2.3 (unreleased)\n\n### Numbers\n",
            "'1.2.3 (unreleased)', expected '1.2.3 (",
        ),
        ("# Changelog\n\n## 1.2.2 (2026-01-02)\n\n### Numbers\n", "begins with '1.2.2 (2026-01-02)'"),
        ("# Changelog\n\n## 1.2.3 (2026-01-02)\n\n- x\n", "no section '### Numbers'"),
        ("# Changelog\n\n## 1.2.3 (2026-01-02)\n\n- x\n## 1.2.2 (2026-01-01)\n### Numbers\n", "no section"),
    ],
)
def test_a_release_is_in_the_changelog(text, said):
    with pytest.raises(SystemExit, match=re.escape(said)):
        release().check_changelog(text, "1.2.3")
    release().check_changelog("# Changelog\n\n## 1.2.3 (2026-01-02)\n\n### Numbers\n\n- none\n", "1.2.3")


def test_the_changelog_says_first_what_changed_in_numbers():
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert sections and all(re.search(r"^### (.*)$", text, flags=re.MULTILINE)[1] == "Numbers" for text in sections)
