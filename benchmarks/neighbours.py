"""A study of short runs on SLURM, beside what people do today: jobs, seconds, busy cores, and what a lost node costs.

    python benchmarks/neighbours.py [--environment DIR] [--runs N] [--lost] [--ways array,this] [--quick] [--out DIR]

It starts a real SLURM of its own on this machine, as root (`tests/cluster/slurm_lab.py`). Every way gets two nodes, and
a process at a time on each, since the machine of the tests has two cores; targets are built beforehand. The ways are:

- `array`: a job array, whose elements are each `lambda-hat-sample` of one run;
- `xargs`: the same commands by `xargs -P 2 srun` inside one allocation;
- `hyperqueue`: the same by HyperQueue inside one allocation. What PyPI has of it is its Python API, whose server and
  workers are one process: it gets one node and both cores;
- `snakemake`: the same as a rule, by Snakemake's executor for SLURM, half of the runs in each group;
- `this`: `flows/packed.py`, one pack.

HyperQueue and Snakemake are installed into DIR by PyPI where they are not there yet, and left out without DIR.
`--lost` takes a node down once a quarter of the runs is finished. Where a way then ends with runs left, the same
command is given again, as a person would do.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import options, publish, table  # noqa: E402
from lambda_hat.store.layout import Store  # noqa: E402
from lambda_hat.store.publish import write_config  # noqa: E402
from lambda_hat.workflow_config import compose_study  # noqa: E402
from tests.cluster.slurm_lab import SlurmLab  # noqa: E402

STUDY = """
targets:
  - {target: quadratic, overrides: {target: {dim: 10, rank: 4}}}
  - {target: monomial}
  - {target: dln, overrides: {target: {widths: [4, 2, 4], data: empirical, n: 300}}}
  - {model: tiny, data: small, teacher: tiny, seed: 42, overrides: {sigma: 0.1, data: {n: 300}}}
samplers:
  - name: sgld
    overrides: {num_draws: 200, num_burnin: 200, thin: THIN, batch_size: 64, step_size: 1e-5}
    sweep: {seed: SEEDS}
"""
NUM_TARGETS, NODES = 4, 2
RUNS, RUNS_QUICK = 64, 8
THIN = {"full": 50, "quick": 5}
PATIENCE, MOST_AGAIN = 1800.0, 3
INSTALLED = ("hyperqueue", "snakemake")
"""Ways that need an environment of their own."""
PACKAGES = ("hyperqueue", "snakemake", "snakemake-executor-plugin-slurm")
HYPERQUEUE = """
import sys
from pathlib import Path
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
with LocalCluster(worker_config=WorkerConfig(cores=CORES)) as cluster:
    job = Job(max_fails=None)
    for script in sorted(Path("commands").glob("*.sh")):
        job.program(["sh", str(script.absolute())], stdout=None, stderr=None)
    client = cluster.client()
    client.wait_for_jobs([client.submit(job)], raise_on_error=False)
"""
SNAKEFILE = """
rule all:
    input: expand("done/{number}", number=range(RUNS))

rule sample:
    output: touch("done/{number}")
    group: "runs"
    threads: CORES
    resources: slurm_partition="debug", runtime=1, mem_mb=0
    shell: "sh commands/{wildcards.number}.sh"
"""
WHOLE_NODE = "--cpus-per-task=4"
"""The nodes of the lab claim four cores each."""


class Outcome(NamedTuple):
    """What became of the study on one way."""

    jobs: int
    seconds: float
    busy: float
    again: int
    """How often the command was given again."""


class Bench:
    """The study in a folder of its own, its targets built, and the commands of its runs."""

    def __init__(self, folder: Path, lab: SlurmLab, environment: Path | None, runs: int, thin: int):
        self.folder, self.lab, self.runs = folder, lab, runs
        self.bin = (environment or Path()).absolute() / "bin"
        # Snakemake's job steps forget where the lab's configuration lies.
        srun = folder / "bin" / "srun"
        srun.parent.mkdir()
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={lab.env["SLURM_CONF"]} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        self.env = {**lab.env, "PATH": f"{srun.parent}:{lab.env['PATH']}"}
        self.file = folder / "study.yaml"
        self.file.write_text(STUDY.replace("SEEDS", str(list(range(runs // NUM_TARGETS)))).replace("THIN", str(thin)))
        self.store = Store(folder / "runs")
        self._study = compose_study(self.file)
        for target_id, build in self._study.targets.items():
            directory = self.store.target_dir(target_id)
            directory.mkdir(parents=True)
            write_config(directory, build)
            words = ["--config-yaml", directory / "config.yaml", "--target-dir", directory]
            self._python("lambda_hat.entrypoints.build_target", *words)
        shutil.copytree(self.store.root, folder / "built")
        (folder / "commands").mkdir()
        for number, run in enumerate(self._study.runs):
            asked = folder / "commands" / str(number)
            asked.mkdir()
            write_config(asked, run.cfg)
            words = ["--config-yaml", asked / "config.yaml", "--run-dir", self.store.run_dir(*run.key)]
            line = shlex.join([sys.executable, "-m", "lambda_hat.entrypoints.sample", *map(str, words)])
            asked.with_suffix(".sh").write_text(f"cd {shlex.quote(str(ROOT))} && exec {line}\n")

    def _python(self, module: str, *words: object) -> None:
        subprocess.run([sys.executable, "-m", module, *map(str, words)], check=True, cwd=ROOT, capture_output=True)

    def finished(self) -> list[dict]:
        """The analyses of the runs that are finished."""
        return [json.loads(path.read_text()) for path in self.store.root.glob("targets/*/run_*/analysis.json")]

    def measure(self, start: Callable[[], subprocess.Popen], lose_a_node: bool) -> Outcome:
        """Run the study to its end on one way, from a store without runs."""
        for name in ("runs", "done", ".snakemake", "results"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / "built", self.store.root)
        before, jobs = {job.id for job in self.lab.jobs(finished=True)}, set()
        begun, again, down = time.monotonic(), 0, None
        process = start()
        try:
            while (left := self.runs - len(self.finished())) or process.poll() is None:
                jobs |= {job.id for job in self.lab.jobs(finished=True)} - before
                if lose_a_node and down is None and left <= 0.75 * self.runs:
                    down = self._take_a_node_down()
                if process.poll() is not None and left:
                    again += 1
                    process = start()
                if again > MOST_AGAIN or time.monotonic() - begun > PATIENCE:
                    print((self.folder / "said").read_text()[-3000:], file=sys.stderr)
                    raise SystemExit(f"{left} of {self.runs} runs are left after {again} more tries")
                time.sleep(0.5)
        finally:
            process.kill()
        seconds = time.monotonic() - begun
        if down is not None:
            # It comes back by itself where its slurmd has told of itself since.
            self.lab.run("scontrol", "update", f"nodename={down}", "state=resume", check=False)
        sampling = sum(analysis["seconds_sample"] for analysis in self.finished())
        return Outcome(len(jobs), seconds, sampling / (NODES * seconds), again)

    def _take_a_node_down(self) -> str:
        nodes = self.lab.run("squeue", "-h", "-t", "R", "-o", "%N").stdout.split()
        names = self.lab.run("scontrol", "show", "hostnames", ",".join(nodes)).stdout.split()
        self.lab.run("scontrol", "update", f"nodename={names[-1]}", "state=down", "reason=lost")
        return names[-1]

    def _start(self, *words: object, log: str = "said") -> subprocess.Popen:
        """A command on the login node, in the folder of the study."""
        with (self.folder / log).open("ab") as out:
            line = [str(word) for word in words]
            return subprocess.Popen(
                line, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def _batch(self, script: str, *words: str) -> subprocess.Popen:
        """`sbatch --wait` of a script, which ends when the job does."""
        path = self.folder / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        return self._start("sbatch", "--wait", "--exclusive", WHOLE_NODE, "--output=job.%j.log", *words, path)

    def array(self) -> subprocess.Popen:
        """A job array, an element for each run."""
        return self._batch("exec sh commands/$SLURM_ARRAY_TASK_ID.sh", f"--array=0-{self.runs - 1}%{NODES}")

    def xargs(self) -> subprocess.Popen:
        """xargs inside one allocation, a step for each run."""
        line = f"srun --exact -N1 -n1 {WHOLE_NODE} sh commands/{{}}.sh"
        script = f"seq 0 {self.runs - 1} | xargs -P {NODES} -I{{}} {line}"
        return self._batch(script, f"--nodes={NODES}", f"--ntasks={NODES}")

    def hyperqueue(self) -> subprocess.Popen:
        """HyperQueue's Python API on one node."""
        (self.folder / "hq.py").write_text(HYPERQUEUE.replace("CORES", str(NODES)))
        return self._batch(f"exec {shlex.quote(str(self.bin / 'python'))} hq.py", "--nodes=1", "--ntasks=1")

    def snakemake(self) -> subprocess.Popen:
        """Snakemake on the login node, with its runs in two groups."""
        (self.folder / "Snakefile").write_text(SNAKEFILE.replace("RUNS", str(self.runs)).replace("CORES", "4"))
        self._start(self.bin / "snakemake", "--unlock").wait()
        # So many cores for each group: its runs are sampled one after the other.
        return self._start(
            self.bin / "snakemake", "--executor", "slurm", "--jobs", NODES, "--cores", 4, "--retries", 2,
            "--group-components", f"runs={self.runs // NODES}", "--slurm-no-account",
            "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", 2, "--latency-wait", 5,
        )  # fmt: skip

    def this(self) -> subprocess.Popen:
        """One pack over a block of two nodes."""
        site = {
            "nodes_per_block": NODES, "nodes_per_pack": NODES, "ranks_per_node": 1, "address": "127.0.0.1",
            "one_machine": "true", "poll_seconds": 2,
        }  # fmt: skip
        return self._start(
            sys.executable, ROOT / "flows" / "packed.py", "--site", "slurm", "--experiments", self.file, "--pack",
            self.runs, "--no-report", *(f"site.{key}={value}" for key, value in site.items()),
        )  # fmt: skip


WAYS = {
    "array": "an array of jobs, a run each",
    "xargs": "`xargs srun` in an allocation",
    "hyperqueue": "HyperQueue's Python API, one node",
    "snakemake": "Snakemake, two groups",
    "this": "`flows/packed.py`, one pack",
}


def install(environment: Path) -> None:
    """Make the environment of the neighbours where there is none."""
    if not (environment / "bin" / "snakemake").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "-q", *PACKAGES], check=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--environment", type=Path, metavar="DIR", help="of HyperQueue and Snakemake")
    parser.add_argument("--ways", default=",".join(WAYS), metavar="NAMES", help=f"some of {','.join(WAYS)}")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"a multiple of {NUM_TARGETS * NODES}")
    parser.add_argument("--lost", action="store_true", help="once more with a node that is lost on the way")
    args = parser.parse_args()
    names = args.ways.split(",")
    if args.environment is None:
        names = [name for name in names if name not in INSTALLED]
    else:
        install(args.environment.absolute())
    runs, thin = (RUNS_QUICK, THIN["quick"]) if args.quick else (args.runs, THIN["full"])
    os.environ.pop("LAMBDA_HAT_CACHE", None)
    rows = []
    with SlurmLab() as lab, tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), lab, args.environment, runs, thin)
        for name in names:
            found = bench.measure(getattr(bench, name), False)
            row = [WAYS[name], found.jobs, f"{found.seconds:.0f}", f"{found.busy:.2f}"]
            if args.lost:
                lost = bench.measure(getattr(bench, name), True)
                row += [f"{lost.seconds - found.seconds:+.0f}", lost.jobs, lost.again]
            rows.append(row)
            print("--", *row, flush=True)
    head = ["", "jobs", "seconds", "busy"]
    head += ["seconds more with a lost node", "jobs", "commands given again"] if args.lost else []
    section = f"""## Beside what people do today

`python benchmarks/neighbours.py --environment DIR --runs {runs}{" --lost" if args.lost else ""}`:
{runs} SGLD runs of {NUM_TARGETS} targets that are built, on {NODES} nodes of a real SLURM, a process at a time on each;
one study each. Busy: the share of both cores' time in which runs were sampled, compiling and starting apart.

{table(head, rows)}"""
    publish("neighbours", section, args.out)


if __name__ == "__main__":
    main()
