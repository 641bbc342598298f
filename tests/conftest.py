"""What every test may use."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

CHECKED = ("estimate", "targets", "engine", "samplers")
"""Rooms whose types and shapes are checked at every call. The processes that tests start check nothing."""
install_import_hook(
    [f"lambda_hat.{room}" for room in CHECKED],
    # An int is good where a float is asked for.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
SOAK = os.environ.get("LAMBDA_HAT_SOAK") == "1"
"""`make soak`: the same tests, with many more inputs and kill points."""
settings.register_profile("ci", max_examples=40, derandomize=True, deadline=None, database=None)
settings.register_profile("soak", max_examples=1200, deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "soak" if SOAK else "ci"))

AWKWARD_NAMES = ["plain", "with space", 'quo\'te "double"', "-dash $(touch pwned) `x`"]


@pytest.fixture(params=AWKWARD_NAMES)
def awkward_dir(request, tmp_path) -> Path:
    """A folder whose name would do harm in an unquoted shell line."""
    directory = tmp_path / request.param
    directory.mkdir()
    return directory


@pytest.fixture
def repo_env() -> dict[str, str]:
    """An environment in which child processes find the checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def pytest_configure(config: pytest.Config) -> None:
    """All tests of a session, in however many processes, and all that they start exchange their compiled programs."""
    if "LAMBDA_HAT_CACHE" not in os.environ:
        shared = tempfile.mkdtemp(prefix="lambda_hat-tests-")
        os.environ["LAMBDA_HAT_CACHE"] = shared
        config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the part of the slow tests that `LAMBDA_HAT_PART` names: 0/4 to 3/4 of them, or 0/1 for all."""
    number, parts = map(int, os.environ.get("LAMBDA_HAT_PART", "0/1").split("/"))

    def is_kept(item: pytest.Item) -> bool:
        # The tests of a file share what is set up for them.
        name = item.nodeid.partition("::")[0]
        return item.get_closest_marker("slow") is None or zlib.crc32(name.encode()) % parts == number

    config.hook.pytest_deselected(items=[item for item in items if not is_kept(item)])
    items[:] = filter(is_kept, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """In the tests of these rooms, an operation on arrays of different ranks is an error."""
    if item.path.parent.name not in CHECKED:
        return (yield)
    import jax

    with jax.numpy_rank_promotion("raise"):
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: it has the machine that every test needs."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("CI: tests were skipped, which it does not allow", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
