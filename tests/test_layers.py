"""Every import of every file, held against the layers of the design."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
THIRD_PARTY = {
    "arviz", "arviz_stats", "blackjax", "equinox", "h5netcdf", "itables", "jax", "jaxtyping", "jinja2", "markupsafe",
    "matplotlib", "mpi4py", "numpy", "omegaconf", "optax", "optuna", "pandas", "parsl", "plotille", "pyarrow", "rich",
    "safetensors", "scipy", "selenium", "xarray", "yaml",
}  # fmt: skip
L0 = {
    "claims", "config", "cores", "cost", "drain", "errors", "files", "follow", "id_utils", "integrity", "lanes",
    "lease", "logs", "memory", "omegaconf_support", "packing", "paths", "plain_yaml", "preflight", "store", "studies",
    "workflow_config",
}  # fmt: skip
LAYERS = {
    0: L0,
    1: {"targets", "posterior", "programs"},
    2: {"samplers"},
    3: {"llc", "diagnostics", "mixing", "waic"},
    4: {"api", "execute"},
    5: {
        "calibration", "entrypoints", "foreign", "one_run", "report", "results", "status", "summary", "terminal",
        "trace", "tuning", "validate",
    },
}  # fmt: skip
MAY_IMPORT = {
    0: {"omegaconf", "yaml"},
    1: {"equinox", "jax", "jaxtyping", "numpy", "optax", "safetensors", "scipy"},
    2: {"blackjax", "jax", "jaxtyping", "numpy"},
    3: {"numpy"},
    4: {"h5netcdf", "jax", "numpy", "xarray"},
    5: {"arviz", "itables", "jinja2", "markupsafe", "matplotlib", "optuna", "pandas", "plotille", "pyarrow", "rich"},
}
JAX_FREE_LATER = {
    "calibration", "foreign", "one_run", "posterior", "report", "results", "status", "summary", "terminal", "trace",
    "tuning", "validate",
}  # fmt: skip
"""Above L0, yet imported by the driver: they may not reach jax either."""


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _part(name: str) -> str:
    """The module of lambda_hat that a dotted name belongs to."""
    words = name.split(".")
    return words[1] if len(words) > 1 else ""


def _layer(part: str) -> int | None:
    return next((layer for layer, parts in LAYERS.items() if part in parts), None)


def _sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", _sources("lambda_hat"), ids=lambda p: str(p.relative_to(ROOT)))
def test_library_imports_only_its_own_layer_and_below(path):
    part = path.relative_to(ROOT / "lambda_hat").parts[0].removesuffix(".py")
    if part == "__init__":
        # It says what the package offers, and fetches it on first use.
        assert _imports(path) <= {"__future__", "__future__.annotations", "importlib", "importlib.import_module"}
        return
    layer = _layer(part)
    assert layer is not None, f"{part} is in no layer of the table"
    third_party = set().union(*(MAY_IMPORT[i] for i in range(layer + 1)))
    for name in _imports(path):
        top = name.split(".")[0]
        if top == "lambda_hat":
            inner = _layer(_part(name))
            assert inner is None or inner <= layer, f"{path} (L{layer}) imports {name} (L{inner})"
        elif top in THIRD_PARTY:
            assert top in third_party, f"{path} (L{layer}) imports {top}"
        else:
            assert top in sys.stdlib_module_names, f"{path} imports {top}, which is in no layer"


@pytest.mark.parametrize("path", _sources("mpi"), ids=lambda p: p.name)
def test_fan_out_imports_mpi4py_and_l0_and_l4(path):
    for name in _imports(path):
        top = name.split(".")[0]
        assert top not in THIRD_PARTY - {"mpi4py"}, f"{path} imports {top}"
        if top == "lambda_hat" and _part(name):
            assert _layer(_part(name)) in (0, 4, None), f"{path} imports {name}"


@pytest.mark.parametrize("path", _sources("flows"), ids=lambda p: p.name)
def test_flows_import_neither_jax_nor_mpi4py(path):
    for name in _imports(path):
        top = name.split(".")[0]
        assert top not in THIRD_PARTY - {"pandas", "parsl", "rich"}, f"{path} imports {top}"
        if top == "lambda_hat" and _part(name):
            assert _part(name) in L0 | {"calibration", "report", "results", "summary", "tuning"}, (
                f"{path} imports {name}"
            )
        if top == "mpi":
            assert name.split(".")[1:2] in (["launch"], []), f"{path} imports {name}"


NOT_IN_DRIVERS = ("arviz", "itables", "jax", "jinja2", "matplotlib", "mpi4py")


def test_driver_reaches_neither_jax_nor_mpi4py():
    modules = [f"flows.{name}" for name in ("packed", "parsl_llc", "tune", "apps")]
    modules += ["lambda_hat.entrypoints.cli", "mpi.launch"]
    modules += [f"lambda_hat.{name}" for name in sorted(L0 | JAX_FREE_LATER)]
    code = f"import {', '.join(modules)}, sys; print([m for m in {NOT_IN_DRIVERS} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


NOT_IN_RANKS = ("arviz", "arviz_stats", "matplotlib", "pandas", "pyarrow", "xarray")
ONE_RUN = """
import pathlib, sys
from lambda_hat import execute
from lambda_hat.config import QuadraticBuild
from lambda_hat.workflow_config import compose_sample_cfg
folder = pathlib.Path(sys.argv[1])
cfg = compose_sample_cfg("tgt_1", {"name": sys.argv[2], "overrides": {"num_draws": 20, "num_burnin": 40}})
execute.build_into(folder / "target", QuadraticBuild())
before = "blackjax" in sys.modules
execute.sample_into(folder / "run", folder / "target", cfg)
print([name for name in sys.argv[3:] if name in sys.modules], before, "blackjax" in sys.modules)
"""


@pytest.mark.parametrize(("sampler", "needs_blackjax"), [("sgld", False), ("mala", True)])
def test_a_rank_imports_what_its_run_needs_and_no_more(sampler, needs_blackjax, tmp_path):
    words = [sys.executable, "-c", ONE_RUN, str(tmp_path), sampler, *NOT_IN_RANKS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, f"[] False {needs_blackjax}"), done.stderr


@pytest.mark.parametrize("path", [*_sources("flows"), *_sources("mpi")], ids=lambda p: p.name)
def test_no_script_shadows_a_module(path):
    """`python flows/packed.py` puts `flows/` first on the path."""
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names | THIRD_PARTY | {"lambda_hat", "flows"}
