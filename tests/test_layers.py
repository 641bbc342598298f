"""Every import of every file, held against the layers of the design."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.driver.check import NEEDS

ROOT = Path(__file__).resolve().parents[1]
THIRD_PARTY = {
    "arviz_stats", "blackjax", "equinox", "h5netcdf", "itables", "jax", "jaxtyping", "jinja2", "markupsafe",
    "matplotlib", "mpi4py", "numpy", "omegaconf", "optax", "optuna", "orbax", "pandas", "parsl", "plotille", "pyarrow",
    "rich", "safetensors", "scipy", "selenium", "torch", "torchax", "xarray", "yaml",
}  # fmt: skip
COMMANDS = ("lambda_hat/entrypoints/", "flows/")
"""Files here are named as the command that they are."""
WITHOUT_JAX = ("config", "estimate", "planning", "report", "status", "store", "tuning")
"""Rooms that a driver, or a command on a login node, imports."""


def _table() -> dict[str, set[str]]:
    """The rooms of CONTRIBUTING.md, from the top, and the packages that each may import beside its own."""
    rows = re.findall(r"^\| `([\w/.]+)` \|[^|]*\|([^|]*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M)
    return {room: set(re.findall(r"\w+", packages)) for room, packages in rows}


ROOMS = _table()


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            # A package that is not always there is imported by its name, on first use.
            found |= {word.value for word in node.args[:1] if isinstance(word, ast.Constant)}
    return found


def _room(path: Path) -> str:
    """The row of the table that a file belongs to: its own, or that of the innermost folder that has one."""
    name = path.relative_to(ROOT).as_posix()
    return max((room for room in ROOMS if name == room or (room.endswith("/") and name.startswith(room))), key=len)


def _file_of(module: str) -> Path | None:
    """The file of a dotted name, where it is a module of the repository."""
    place = ROOT.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


EVERY_FILE = [*_sources("lambda_hat"), *_sources("mpi"), *_sources("flows")]


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_its_own_room_those_above_and_its_packages(path):
    if path == ROOT / "lambda_hat" / "__init__.py":
        # It says what the package offers, and fetches it on first use; type checkers alone read the rest.
        lines = path.read_text().splitlines()
        eager = [line for line in lines if line.startswith(("import ", "from "))]
        assert eager == [
            "from __future__ import annotations",
            "from importlib import import_module",
            "from typing import TYPE_CHECKING",
        ]
        return
    order, room = list(ROOMS), _room(path)
    for name in _imports(path):
        top = name.split(".")[0]
        if top in ("lambda_hat", "mpi", "flows"):
            file = _file_of(name)
            if file is None or file == ROOT / "lambda_hat" / "__init__.py":
                continue
            assert order.index(_room(file)) <= order.index(room), f"{path} (in {room}) imports {name} ({_room(file)})"
            if room.startswith("flows/") and top == "mpi":
                assert name.split(".")[1:2] in (["launch"], ["launchers"], []), f"{path} imports {name}"
        elif top not in sys.stdlib_module_names:
            assert top in ROOMS[room], f"{path} (in {room}) imports {top}"


def test_the_table_names_no_package_that_its_room_has_no_use_for():
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in set(EVERY_FILE) - {ROOT / "lambda_hat" / "__init__.py"}:
        used[_room(path)] |= {name.split(".")[0] for name in _imports(path)}
    assert {room: ROOMS[room] - used[room] for room in ROOMS if ROOMS[room] - used[room]} == {}


def test_every_room_of_the_table_exists_and_no_file_has_the_name_of_one_in_another_room():
    assert len(ROOMS) > 20 and all((ROOT / room).exists() for room in ROOMS)
    rooms: dict[str, set[str]] = {}
    for path in EVERY_FILE:
        if path.stem != "__init__" and _room(path) not in COMMANDS:
            rooms.setdefault(path.stem, set()).add(_room(path))
    assert {stem: found for stem, found in rooms.items() if len(found) > 1} == {}


NOT_IN_DRIVERS = ("itables", "jax", "jinja2", "matplotlib", "mpi4py")


def test_driver_reaches_neither_jax_nor_mpi4py():
    modules = [f"flows.{name}" for name in ("packed", "parsl_llc", "tune", "apps")]
    modules += ["lambda_hat.entrypoints.cli", "mpi.launch", "mpi.launchers"]
    modules += [
        f"lambda_hat.{path.parent.name}.{path.stem}" for room in WITHOUT_JAX for path in _sources(f"lambda_hat/{room}")
    ]
    code = f"import {', '.join(modules)}, sys; print([m for m in {NOT_IN_DRIVERS} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


NOT_IN_RANKS = ("arviz_stats", "matplotlib", "pandas", "pyarrow", "xarray")
ONE_RUN = """
import pathlib, sys
from lambda_hat.execute import build, sampling
from lambda_hat.config import QuadraticBuild
from lambda_hat.id_utils import Run
from lambda_hat.workflow_config import compose_sample_cfg
folder = pathlib.Path(sys.argv[1])
given = {"step_size": 1e-4} if sys.argv[2] == "sgld" else {}
cfg = compose_sample_cfg("tgt_1", {"name": sys.argv[2], "overrides": {"num_draws": 20, "num_burnin": 40, **given}})
build.build_into(folder / "target", QuadraticBuild())
before = "blackjax" in sys.modules
sampling.sample_into(folder / "run", folder / "target", Run.of(cfg))
print([name for name in sys.argv[3:] if name in sys.modules], before, "blackjax" in sys.modules)
"""


@pytest.mark.parametrize(("sampler", "needs_blackjax"), [("sgld", False), ("mala", True)])
def test_a_rank_imports_what_its_run_needs_and_no_more(sampler, needs_blackjax, tmp_path):
    words = [sys.executable, "-c", ONE_RUN, str(tmp_path), sampler, *NOT_IN_RANKS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, f"[] False {needs_blackjax}"), done.stderr


def test_a_check_asks_ranks_for_no_package_that_they_do_without():
    assert set(NEEDS) & set(NOT_IN_RANKS) == set()


@pytest.mark.parametrize("path", [*_sources("flows"), *_sources("mpi")], ids=lambda p: p.name)
def test_no_script_shadows_a_module(path):
    """`python flows/packed.py` puts `flows/` first on the path."""
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names | THIRD_PARTY | {"lambda_hat", "flows"}


def test_within_flows_imports_run_one_way():
    """Imports for type checkers included."""
    files = _sources("flows")
    imports = {path: {_file_of(name) for name in _imports(path)} & set(files) - {path} for path in files}
    while free := [path for path, needed in imports.items() if not needed & imports.keys()]:
        for path in free:
            del imports[path]
    assert list(imports) == [], "these import each other in a circle"


GUARDS = {
    ("lambda_hat/errors.py", "guarded"),
    ("lambda_hat/errors.py", "run_command"),
    ("lambda_hat/execute/failure_record.py", "recording_failure"),
}
"""Functions that may catch every exception: the guards of a part, of a command, and of a run or build in a process."""
GUARDED = {"flows/driver/ending.py", "mpi/rank.py"}
"""Files with such parts: a command inside another one, and the runs of a rank."""


def _catches_everything(node: ast.AST) -> bool:
    if isinstance(node, ast.ExceptHandler):
        caught = [node.type] if node.type else [ast.Name("BaseException")]
    else:
        caught = node.args if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") else []
    names = [name.id for kind in caught for name in ast.walk(kind) if isinstance(name, ast.Name)]
    return bool({"Exception", "BaseException"} & set(names))


def _functions_that_catch_everything(node: ast.AST, function: str = "") -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        function = node.name
    if _catches_everything(node):
        yield function
    for child in ast.iter_child_nodes(node):
        yield from _functions_that_catch_everything(child, function)


def test_only_the_guards_catch_every_exception():
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in EVERY_FILE}
    assert {(name, found) for name, tree in trees.items() for found in _functions_that_catch_everything(tree)} == GUARDS
    users = {path.relative_to(ROOT).as_posix() for path in EVERY_FILE if "lambda_hat.errors.guarded" in _imports(path)}
    assert users == GUARDED


@pytest.mark.parametrize(
    "broad", ["try: f()\nexcept: g()", "try: f()\nexcept (OSError, Exception): g()", "with suppress(Exception): f()"]
)
def test_a_broad_except_is_seen(broad):
    lines = broad.replace("\n", "\n    ")
    assert list(_functions_that_catch_everything(ast.parse(f"def h():\n    {lines}"))) == ["h"]
