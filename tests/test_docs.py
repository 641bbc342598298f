"""The documents: every command runs, every file that they name exists, every link leads somewhere, every message is one
that the code has, and the site can be built and read without a network."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.hooks.keys import keys_in_markdown
from docs.hooks.options import options_in_markdown, parsers
from docs.hooks.reference import COMMAND, MADE, stale_pages
from flows.driver.check import NEEDS
from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS
from lambda_hat.estimate.verdict import WORST_FIRST
from lambda_hat.report.results import SCHEMA
from tests.users import USERS_PYTHON

ROOT = Path(__file__).resolve().parents[1]
NAMES = "README.md CONTRIBUTING.md CHANGELOG.md benchmarks/README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*(ROOT / name for name in NAMES.split()), *PAGES]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
RUN_BY_CI = {f"make {goal}" for goal in ("run", "test", "docs", "lint", ".venv/.run")}
RUN_BY_CI |= {"bash .ci/run", "lambda-hat validate"}
GALLERY = ROOT / "docs" / "gallery.md"
"""Its commands are those of tests/test_gallery.py, which runs them at small size."""
INSTALL = ROOT / "docs" / "install.md"
"""Its commands are those of tests/test_installation.py, in an environment of their own."""
RUN_ON_SLURM = ROOT / "docs" / "clusters.md"
"""Its commands are those of tests/cluster/test_documents.py."""
ELSEWHERE = (GALLERY, INSTALL, RUN_ON_SLURM)
TUTORIAL = ROOT / "docs" / "tutorial.md"
NEEDED = {
    "pytorch": ("torch", "torchax", "transformers"),
    "from-devinterp": ("torch", "torchax"),
    "frameworks": ("flax", "haiku"),
}
"""Packages that pages need beside those that every installation has. The environment of the tests runs these pages,
and that of users all others."""
FILE_NAME = re.compile(r"# (\S+\.(?:yaml|py))\n")
"""First line of a block that is a file."""
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


def commands(document: Path) -> list[str]:
    """The shell commands of a document, without their comments."""
    lines = "".join(blocks(document, "sh")).splitlines()
    return [command for line in lines if (command := line.partition(" #")[0].strip())]


def files_in(document: Path) -> dict[str, str]:
    found = [text for text in [*blocks(document, "yaml"), *blocks(document, "python")] if FILE_NAME.match(text)]
    return {FILE_NAME.match(text).group(1): text for text in found}


def snippets(document: Path) -> list[str]:
    return [text for text in blocks(document, "python") if not FILE_NAME.match(text)]


def run(
    command: str | list[str], folder: Path, seconds: float = 400, python: str = sys.executable
) -> subprocess.CompletedProcess:
    env = {
        **os.environ,
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run(
        command, shell=isinstance(command, str), cwd=folder, env=env, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


# ---------------------------------------------------------------------------------------------- what a reader types


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder as a reader has it: the scripts, every file that the pages show, and the tutorial's study finished."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("flows", "mpi", "conf"):
        (folder / name).symlink_to(ROOT / name)
    shown: dict[str, str] = {}
    for page in [ROOT / "README.md", *PAGES]:
        for name, text in files_in(page).items():
            assert shown.setdefault(name, text) == text, f"{page}: {name} is another file on another page"
            (folder / name).write_text(text)
    run(commands(TUTORIAL)[-1], folder, python=USERS_PYTHON)
    return folder


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
@pytest.mark.parametrize(
    "page",
    [p for p in (ROOT / "README.md", *PAGES) if p not in ELSEWHERE and (commands(p) or snippets(p))],
    ids=lambda p: p.stem,
)  # fmt: skip
def test_every_command_and_snippet_of_a_page_runs_in_its_order(page, checkout):
    for package in NEEDED.get(page.stem, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install -e '.[torch]' transformers")
    python = sys.executable if page.stem in NEEDED else USERS_PYTHON
    for command in commands(page):
        if command not in RUN_BY_CI:
            run(command, checkout, python=python)
    for code in snippets(page):
        assert run([python, "-c", code], checkout, 120, python).stdout.strip()


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_every_command_of_the_benchmarks_but_the_long_ones_runs(tmp_path):
    for name in ("benchmarks", "flows", "mpi", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    names = "busy checkpoints costs dln handout memory packing report scale startup step tune".split()
    names += "calibration compiling defaults equilibrium first large late_block metrics promise sharing size".split()
    names += "temperature wells".split()
    long = {"make bench", *(f"python benchmarks/{name}.py" for name in names)}
    ran = [command for command in commands(ROOT / "benchmarks" / "README.md") if command not in long]
    assert ran
    for command in ran:
        run(command, tmp_path)
    assert (tmp_path / "results" / "two" / "dln.md").is_file()


def test_ci_runs_what_the_documents_promise():
    script = (ROOT / ".ci" / "run").read_text()
    promised = {command for command in commands(ROOT / "README.md") if command.startswith("make ")}
    assert promised == {"make run", "make test", "make docs"}
    assert all(command in script.splitlines() for command in [*promised, "make test-all"])
    assert ".venv/bin/lambda-hat validate" in script
    first, *_ = [command for command in commands(ROOT / "README.md") if command.startswith("make ")]
    assert first == "make run"
    installed = ['make VENV="$users" "$users/.run"', 'export LAMBDA_HAT_USERS_PYTHON="$users/bin/python"']
    lines = script.splitlines()
    places = [lines.index(line) for line in [*installed, "make test", "make test-all"]]
    assert places == sorted(places)


def test_the_environment_of_users_has_what_a_check_asks_ranks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = [*project["dependencies"], *extras["study"], *extras["mpi"]]
    assert set(NEEDS) <= {re.split(r"[^\w-]", line)[0] for line in installed}
    targets = re.findall(r"^([\w$()/.-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"run", "test", "test-all", "lint", "docs", "notebooks", "$(VENV)/.run"} <= set(targets)


# ------------------------------------------------------------------------------------------------- where links lead


def headings(document: Path) -> set[str]:
    """The anchors of a document, as its readers' programs make them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_and_named_files_exist(document):
    text = document.read_text()
    for target, anchor in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path = document.parent / target if target else document
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path), f"{target}#{anchor}"
    for name in re.findall(r"`((?:lambda_hat|flows|mpi|conf|tests|docs|benchmarks)/[\w./]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_leads_to_every_page():
    targets = {target for target, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert {str(path.relative_to(ROOT)) for path in [*PAGES, *NOTEBOOKS]} <= targets


# ---------------------------------------------------------------------------------------------- what is in the code


def texts_of_the_code() -> list[str]:
    """Every text in the sources; where a value is put into it there is a zero byte."""
    found = []
    for folder in ("lambda_hat", "flows", "mpi"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"\{\w[^{}]*\}", "\0", node.value))
    return found


def test_every_message_that_is_explained_is_one_that_the_code_has():
    texts = texts_of_the_code()
    rows = re.findall(r"^\| (`.+?`) \| ", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 60
    for message in messages:
        pattern = re.compile(".*?".join(map(re.escape, message.split("…"))), flags=re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


def test_the_reference_is_what_the_code_says(tmp_path, monkeypatch):
    assert not stale_pages(), COMMAND
    assert f"{COMMAND.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
    for name in MADE:
        (tmp_path / name).write_text((ROOT / "docs" / name).read_text().replace("seed", "seeds"))
    monkeypatch.setattr("docs.hooks.reference.FOLDER", tmp_path)
    for page, anew in stale_pages().items():
        assert anew == (ROOT / "docs" / page.name).read_text()
        page.write_text(anew)
    assert not stale_pages()


@pytest.mark.parametrize("name", MADE)
def test_rows_of_the_reference_have_as_many_cells_as_their_heads(name):
    # A bar ends a cell in code as well, where a page is read without having been built.
    cells = 0
    for line in (ROOT / "docs" / name).read_text().splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not cells or not found or found == cells, line
        cells = found


def test_every_key_has_a_meaning():
    rows = re.findall(r"^\| (`[^`]+`) \| .* \| (.*) \|$", keys_in_markdown(), flags=re.MULTILINE)
    assert len(rows) > 200
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_every_option_has_a_help_text():
    found = parsers()
    assert {"python flows/packed.py", "python mpi/run_pack.py", "lambda-hat sample", "lambda-hat verify"} <= set(found)
    rows = re.findall(r"^\| (`.+`) \| (.*) \|$", options_in_markdown(), flags=re.MULTILINE)
    assert [option for option, meaning in rows if not meaning.strip()] == []
    shown = {option.split()[0] for row, _ in rows for option in re.findall(r"`([^`]+)`", row)}
    for parser in found.values():
        for action in parser._actions:
            assert {"-h", *action.option_strings} - shown <= {"-h", "--help"}, action.option_strings
    done = run([sys.executable, str(ROOT / "flows" / "packed.py"), "--help"], ROOT, 60)
    assert {"--pack", "--lanes", "--deadline"} <= set(re.findall(r"--\w+", done.stdout)) & shown


def test_the_vocabulary_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    words = "n dim loss beta n_beta gamma step_size num_chains num_draws num_burnin thin llc"
    for word in [*words.split(), "run", "target", "pack", "rank", "site", "store", "w_star"]:
        assert re.search(rf"\| [^|]*\b{word}\b[^|]* \||`{word}`", text), word


def test_the_pages_know_every_sampler_target_verdict_and_column():
    studies, results = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("studies", "results"))
    for name in [*SAMPLE_SCHEMAS, *BUILD_SCHEMAS]:
        assert re.search(rf"^\| .*`{name}`", studies, flags=re.MULTILINE), name
    assert set(SAMPLE_SCHEMAS) <= headings(ROOT / "docs" / "samplers.md")
    for name in [*WORST_FIRST, *(n for n in SCHEMA.names if not n.startswith("cfg."))]:
        assert re.search(rf"^\| .*`{name}`", results, flags=re.MULTILINE), name


# ------------------------------------------------------------------------------------------------------- notebooks


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(notebook, tmp_path):
    # It writes into the folder where it lies.
    copy = shutil.copy(notebook, tmp_path)
    run([sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", copy], tmp_path)
    assert (tmp_path / "results" / "llc_runs.parquet").is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_was_committed_as_it_ran(notebook):
    code = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    text = json.dumps([output.get("text") or output["data"].get("text/plain") for output in outputs])
    assert not re.search(r"(?<![\w.])/(?:\w[\w.-]*/)+", text)


# -------------------------------------------------------------------------------------------------------- the site


class Fetched(HTMLParser):
    """What a browser fetches to show a page, and where its links lead."""

    def __init__(self, page: Path):
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found["id"]} if found.get("id") else set()
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.fetched.append(found["src"])
        elif tag == "link" and found.get("rel") != "canonical" and found.get("href"):
            self.fetched.append(found["href"])
        elif tag == "a" and found.get("href"):
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)], ROOT)
    return folder


def test_the_site_needs_no_network_and_its_links_lead_somewhere(site):
    pages = {path: Fetched(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert {f"{page.stem}.html" for page in PAGES} | {"index.html"} <= {path.name for path in pages}
    for path, page in pages.items():
        for target in page.fetched:
            assert not re.match(r"(?:\w+:)?//", target), f"{path.name} fetches {target}"
            assert (path.parent / target.partition("?")[0]).exists(), f"{path.name}: {target}"
        for target in page.links:
            name, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            other = (path.parent / name).resolve() if name else path
            assert other.exists(), f"{path.name}: {target}"
            if anchor and other in pages:
                assert anchor in pages[other].anchors, f"{path.name}: {target}"


def test_the_site_has_equations_notebooks_and_references(site):
    method = (site / "method.html").read_text()
    assert method.count("<math") > 40
    assert not re.search(r"arithmatex|\\\(|\\\[|\\lambda", method)
    assert "<code>--deadline WHEN</code>" in (site / "options.html").read_text()
    assert "<code>heat</code>" in (site / "configuration.html").read_text()
    for notebook in NOTEBOOKS:
        assert ".png" in (site / "notebooks" / f"{notebook.stem}.html").read_text()
