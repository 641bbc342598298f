"""The Parsl configuration of each kind of site."""

from __future__ import annotations

import inspect
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from parsl.executors import ThreadPoolExecutor

from flows.driver.workers import Workers
from flows.sites.beside import Place, environment_beside
from flows.sites.executors import PACKS, TASKS, parsl_config
from flows.sites.providers import builds_provider, packs_provider
from flows.sites.shell_lines import OWN_TMPDIR, WATCHER
from flows.sites.site_schemas import LocalSite, PbsSite, SlurmSite, load_site
from lambda_hat.checkout import ROOT
from lambda_hat.errors import ConfigError
from lambda_hat.store.heartbeat import Heartbeat

pytestmark = [
    pytest.mark.parsl,
    # Parsl leaves the sockets open by which it asks for the addresses of this machine.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path, monkeypatch):
    # Parsl's SLURM provider asks sacct for its existence.
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)


def test_the_local_site(awkward_dir):
    """Threads of the driver: nobody is asked for nodes, so nothing waits for workers, and nothing listens."""
    config = parsl_config(LocalSite(task_workers=3), awkward_dir / "parsl", packs=True)
    executors = {executor.label: executor for executor in config.executors}
    assert {label: executor.max_threads for label, executor in executors.items()} == {TASKS: 3, PACKS: 1}
    assert all(isinstance(executor, ThreadPoolExecutor) for executor in executors.values())
    assert (config.retries, config.strategy) == (0, "none")
    for wanted in ({"packs": False}, {"packs": True, "tasks": False}):
        (executor,) = parsl_config(LocalSite(), awkward_dir / "parsl", **wanted).executors
        assert executor.label == (PACKS if wanted["packs"] else TASKS)


def test_packs_of_an_allocation_share_its_nodes(tmp_path, monkeypatch):
    (tmp_path / "nodes").write_text("a\nb\nc\nd\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    monkeypatch.delenv("SLURM_NODELIST", raising=False)
    config = parsl_config(load_site("allocation", ["nodes_per_pack=2"]), tmp_path / "parsl", packs=True)
    packs = next(executor for executor in config.executors if executor.label == PACKS)
    together, seen = threading.Barrier(2), []

    def pack(wait: bool, place: Place) -> None:
        seen.append(place.nodes)
        if wait:
            together.wait(timeout=30)

    packs.start()
    for future in [packs.submit(pack, {"num_nodes": 2}, wait) for wait in (True, True, False, False)]:
        future.result()
    packs.shutdown()
    assert sorted(seen[:2]) == [("a", "b"), ("c", "d")]
    assert set(seen[2:]) <= set(seen[:2])


def test_processes_beside_the_driver_get_what_worker_init_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NODELIST", "n[1-2]")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    lines = "echo loading\nexport GREETING='hello\nworld'\nunset HOME"
    environ = environment_beside(LocalSite(worker_init=lines))
    assert environ["GREETING"] == "hello\nworld"
    assert environ["PYTHONPATH"] == f"{ROOT}{os.pathsep}/mine"
    assert not {"HOME", "SLURM_NODELIST"} & set(environ)
    with pytest.raises(ConfigError, match="worker_init: its lines ended with status 3: no such module"):
        environment_beside(LocalSite(worker_init="echo no such module >&2; exit 3"))


def test_a_slurm_site_asks_for_packs_and_builds_apart(tmp_path):
    words = ["account=acc", "partition=gpu", "qos=high", "constraint=a100", "nodes_per_block=4", "nodes_per_pack=2"]
    words += ["min_blocks=1", "max_blocks=3", "cores_per_node=64", "mem_per_node=256", "gpus_per_node=4"]
    words += ["walltime=1-00:00:00", "scheduler_options='#SBATCH --mail-type=END'", "worker_init=module load x"]
    words += ["builds={partition: big, cores_per_node: 8, mem_per_node: 500, walltime: '02:00:00', max_blocks: 2}"]
    site = load_site("slurm", [*words, "poll_seconds=30", "lost_blocks=4"])
    config = parsl_config(site, tmp_path / "parsl", packs=True)
    packs = next(e for e in config.executors if e.label == PACKS)
    tasks = next(e for e in config.executors if e.label == TASKS)
    assert packs.address is None
    assert packs.max_workers_per_block == 2
    assert packs.block_error_handler.keywords == {"threshold": 4}
    provider = packs.provider
    assert (provider.nodes_per_block, provider.min_blocks, provider.max_blocks) == (4, 1, 3)
    assert (provider.parallelism, provider.status_polling_interval, provider.walltime) == (4, 30, "24:00:00")
    for line in ("--exclusive", "--partition=gpu", "--account=acc", "--qos=high", "--constraint=a100"):
        assert f"#SBATCH {line}\n" in provider.scheduler_options
    assert "#SBATCH --gpus-per-node=4\n" in provider.scheduler_options
    assert "#SBATCH --mail-type=END" in provider.scheduler_options
    assert "module load x" in provider.worker_init
    assert f"cd {tmp_path}" in provider.worker_init
    builds = tasks.provider
    assert (builds.nodes_per_block, builds.max_blocks, builds.mem_per_node, builds.cores_per_node) == (1, 2, 500, 8)
    assert "--partition=big" in builds.scheduler_options
    assert "--exclusive" not in builds.scheduler_options
    assert "gpus" not in builds.scheduler_options
    assert tasks.max_workers_per_node == 8


def test_a_pbs_site_asks_for_packs_and_builds_apart():
    words = ["account=acc", "queue=prod", "nodes_per_block=4", "gpus_per_node=4", "cores_per_node=32"]
    words += ["select_options='system=polaris'", "mem_per_node=64", "scheduler_options='#PBS -l filesystems=home'"]
    site = load_site("pbs", [*words, "builds={queue: debug, cores_per_node: 2, mem_per_node: 100}"])
    provider = packs_provider(site)
    assert provider.select_options == "mem=64gb:ngpus=4:system=polaris"
    assert (provider.cpus_per_node, provider.queue, provider.account) == (32, "prod", "acc")
    assert "#PBS -l place=scatter:excl" in provider.scheduler_options
    assert "#PBS -l filesystems=home" in provider.scheduler_options
    assert provider.parallelism == 4
    assert "PBS_NODEFILE" in provider.worker_init
    builds = builds_provider(site)
    assert (builds.queue, builds.cpus_per_node, builds.select_options) == ("debug", 2, "mem=100gb")
    assert packs_provider(load_site("pbs", ["ranks_per_node=6"])).cpus_per_node == 6


def test_the_node_file_of_a_pbs_block_names_each_node_once(tmp_path):
    (tmp_path / "nodes").write_text("b\nb\na\na\n")
    lines = packs_provider(PbsSite(ranks_per_node=1)).worker_init
    env = {**os.environ, "PBS_NODEFILE": str(tmp_path / "nodes"), "PBS_JOBID": "7.server", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-lc", f'{lines}\ncat "$PBS_NODEFILE"'], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split()[-2:] == ["b", "a"]
    assert len(done.stdout.split()) == 2


@pytest.mark.parametrize("site", [SlurmSite(ranks_per_node=1), PbsSite(ranks_per_node=1)], ids=lambda s: s.kind)
def test_providers_get_only_what_they_know(site):
    for provider in (packs_provider(site), builds_provider(site)):
        assert "status_polling_interval" in type(provider).__dict__
        assert set(inspect.signature(type(provider).__mro__[1].__init__).parameters) >= {"account", "worker_init"}


def test_blocks_that_wait_are_kept_where_none_is_too_many(tmp_path):
    config = parsl_config(SlurmSite(ranks_per_node=1), tmp_path / "parsl", packs=True)
    executor = next(e for e in config.executors if e.label == PACKS)
    # Without the guard this would ask the interchange for its managers, of which there is none.
    assert executor.scale_in(0, max_idletime=1.0) == []
    # Nor is any given back that will have work soon.
    executor.provider.kept = True
    assert executor.scale_in(1, max_idletime=1.0) == []


def test_a_batch_site_refuses_a_store_that_a_script_would_break_on(tmp_path):
    folder = tmp_path / "a folder" / "parsl" / "run"
    with pytest.raises(ConfigError, match="letters, digits"):
        parsl_config(SlurmSite(ranks_per_node=1), folder, packs=True)
    assert not folder.exists()


def test_an_interface_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="interface: nosuch0"):
        parsl_config(SlurmSite(ranks_per_node=1, interface="nosuch0"), tmp_path / "parsl", packs=True)


def test_a_python_site(tmp_path):
    path = tmp_path / "site.py"
    path.write_text("import parsl\nsite = {'ranks_per_node': 2}\nconfig = parsl.Config(executors=[])\n")
    site = load_site(str(path))
    assert site.ranks == 2
    with pytest.raises(ConfigError, match="no executor labelled 'tasks'"):
        parsl_config(site, tmp_path, packs=False)
    path.write_text(
        "import parsl\nfrom parsl.executors import HighThroughputExecutor as Executor\n"
        "config = parsl.Config(executors=[Executor(label='tasks', address='127.0.0.1', encrypted=False)])\n"
    )
    with pytest.raises(ConfigError, match=r"executor 'tasks' speaks unencrypted.*; write encrypted=True"):
        parsl_config(load_site(str(path)), tmp_path, packs=False)
    path.write_text("config = 3\n")
    with pytest.raises(ConfigError, match=r"expected a variable `config`, a parsl\.Config"):
        parsl_config(load_site(str(path)), tmp_path, packs=False)


def test_an_executor_of_threads_is_never_lost(tmp_path):
    """It has neither an interchange nor the state of an executor whose blocks fail."""
    path = tmp_path / "site.py"
    path.write_text(
        "import parsl\nfrom parsl.executors import ThreadPoolExecutor\n"
        "config = parsl.Config(executors=[ThreadPoolExecutor('tasks')])\n"
    )
    config = parsl_config(load_site(str(path)), tmp_path / "parsl", packs=False)
    with Heartbeat(tmp_path / "packs") as lease:
        workers = Workers(lease, "20260101-000000-abcd", None, config.executors)
        assert workers.look()
        assert not workers.lost


@pytest.mark.parametrize("alive", [True, False])
def test_a_pool_ends_without_a_driver_that_renews_its_lease(tmp_path, alive):
    """What a block's shell runs, with tenths of the seconds."""
    lease, own = tmp_path / "a driver's.lease", tmp_path / "own"
    lease.write_text("0")
    script = WATCHER.format(lease=shlex.quote(str(lease))).replace("sleep 10", "sleep 0.1")
    script = f"{OWN_TMPDIR}\n{script}\nbash -c 'exec -a process_worker_pool sleep 60'; echo the pool has ended: $?"
    environment = {**os.environ, "TMPDIR": str(own)}
    own.mkdir()
    shell = subprocess.Popen(
        ["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        for count in range(20):
            time.sleep(0.1)
            if alive:
                lease.write_text(str(count))
        assert (shell.poll() is None) == alive
        if not alive:
            assert "the pool has ended: 137" in shell.communicate(timeout=5)[0]
            assert list(own.iterdir()) == []
    finally:
        os.killpg(shell.pid, signal.SIGKILL) if shell.poll() is None else None
        shell.wait()
        shell.stdout.close()


SITE = """
from parsl import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="tasks", address="127.0.0.1", max_workers_per_node=1, encrypted=True,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
    ],
    run_dir="parsl",
)
"""
KILLED = """
import os, signal, sys, time
from pathlib import Path
from parsl import python_app
from flows.sites.executors import parsl_config
from flows.sites.interchange import InterchangeLost, end_parsl, start_parsl
from flows.sites.site_schemas import load_site

config = parsl_config(load_site("site.py"), Path(), packs=False)
kernel = start_parsl(config)
(executor,) = config.executors
app = python_app(lambda: 1, executors=[executor.label])
assert app().result() == 1
os.kill(executor.interchange_proc.pid, signal.SIGKILL)
time.sleep(float(sys.argv[1]))
failures = [future.exception() for future in [app() for _ in range(5)]] if sys.argv[2] == "wait" else [app()]
print({type(failure) for failure in failures} == {InterchangeLost} or sys.argv[2])
end_parsl(kernel, config.executors)
print("over")
"""


@pytest.mark.slow
@pytest.mark.parsl
@pytest.mark.parametrize(("pause", "then"), [("0.5", "wait"), ("0.5", "end"), ("0", "end")])
def test_tasks_that_a_killed_interchange_never_takes_keep_nobody(tmp_path, repo_env, pause, then):
    """Parsl would send them for ever."""
    (tmp_path / "site.py").write_text(SITE)
    argv = [sys.executable, "-c", KILLED, pause, then]
    # Parsl finds the script of its pool on the PATH.
    env = {**repo_env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["True" if then == "wait" else then, "over"]), done.stderr
