"""Jobs that run a whole study inside one allocation: the script, its submission, and the next one of a chain."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import shlex
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.sites.providers import pbs_place, pbs_select
from flows.sites.scheduler import SCHEDULERS
from flows.sites.shell_lines import PLAIN_PATH
from flows.sites.site_schemas import AllocationSite, BatchSite, PbsSite, SlurmSite, format_walltime
from lambda_hat.checkout import ROOT, SCRIPTS
from lambda_hat.errors import ConfigError
from lambda_hat.store.layout import Store, write_bytes_atomic

TEMPLATES = ROOT / "slurm_templates"
SCRIPT_VARIABLE = "LAMBDA_HAT_JOB_SCRIPT"
OWN_KEYS = ("kind", "address", "interface", "worker_init")
"""Keys of a site that the script sets, or that mean nothing inside the job."""


class _Template(string.Template):
    """Names are written `@{name}`, since a shell script is full of dollar signs."""

    delimiter = "@"


@dataclasses.dataclass(frozen=True)
class BatchJob:
    """A job that runs a study, to be submitted."""

    site: BatchSite
    store: Store
    words: Sequence[str]
    """Options and `key=value` words of `lambda-hat run` inside the job, without --site and --rerun."""
    rerun: str | None
    chain: int

    def script_path(self) -> Path:
        """A path in the store, so that the log and the jobs that follow lie beside the script."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return self.store.root / "jobs" / f"job_{stamp}.{SCHEDULERS[self.site.kind].suffix}"

    def render(self, path: Path) -> str:
        """The script that is to lie at `path`. Raises ConfigError where a path would break in it."""
        if not PLAIN_PATH.fullmatch(str(path)):
            raise ConfigError(
                f"store_root: {self.store.root}: a job's log needs a path of letters, digits and ./+@:_- only; give "
                "another one with --store DIR"
            )
        site = self.site
        template = _Template((TEMPLATES / f"packed{path.suffix}").read_text())
        command = [sys.executable, str(SCRIPTS["run"]), *self.words, *inner_site_words(site)]
        return template.substitute(
            nodes=site.nodes_per_block,
            walltime=format_walltime(site.walltime_seconds),
            seconds=site.walltime_seconds,
            log=path.with_suffix(""),
            directives="\n".join(_directives(site)),
            chunk=_pbs_chunk(site),
            worker_init=site.worker_init,
            directory=shlex.quote(os.getcwd()),
            script=shlex.quote(str(path)),
            chain=self.chain,
            rerun=shlex.quote(f"--rerun {self.rerun}") if self.rerun else "",
            command=shlex.join(command),
        )


def _directives(site: BatchSite) -> list[str]:
    if isinstance(site, SlurmSite):
        values = {
            "partition": site.partition,
            "account": site.account,
            "qos": site.qos,
            "constraint": site.constraint,
            "cpus-per-task": site.cores_per_node,
            "mem": None if site.mem_per_node is None else f"{site.mem_per_node}g",
            "gpus-per-node": site.gpus_per_node or None,
        }
        lines = [f"#SBATCH --{key}={value}" for key, value in values.items() if value is not None]
        lines += ["#SBATCH --exclusive"] if site.exclusive else []
    else:
        assert isinstance(site, PbsSite)
        lines = [f"#PBS -q {site.queue}"] if site.queue else []
        lines += [f"#PBS -A {site.account}"] if site.account else []
        lines.append(pbs_place(site.exclusive))
    return [*lines, *filter(None, site.scheduler_options.splitlines())]


def _pbs_chunk(site: BatchSite) -> str:
    if not isinstance(site, PbsSite):
        return ""
    more = pbs_select(site.mem_per_node, site.gpus_per_node, site.select_options)
    return f"ncpus={site.chunk_cores}" + (f":{more}" if more else "")


def inner_site_words(site: BatchSite) -> list[str]:
    """The `site.key=value` words with which `--site allocation` inside the job equals `site` outside."""
    words = []
    for field in dataclasses.fields(AllocationSite):
        value = getattr(site, field.name)
        if field.name == "ranks_per_node" and value is None and site.cores_per_node is not None:
            # An exclusive job has all cores of its nodes, however few the site says.
            value = site.ranks
        if field.name not in OWN_KEYS and value != field.default:
            words.append(f"site.{field.name}={'null' if value is None else value}")
    return words


def enclosing_job(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The job that this process runs in: its `scheduler`, its `job_id`, and the command that would `end` it."""
    for variable, kind in (("SLURM_JOB_ID", "slurm"), ("PBS_JOBID", "pbs")):
        if job_id := environ.get(variable):
            scheduler = SCHEDULERS[kind]
            return {"scheduler": scheduler.title, "job_id": job_id, "end": scheduler.end_command(job_id)}
    return None


def submit_next(script: Path) -> tuple[Path, str]:
    """Submit the job that follows `script` in its chain. Returns its script and the job's id.

    Raises SchedulerError, with the scheduler's words, where it refuses.
    """
    scheduler = next(s for s in SCHEDULERS.values() if script.suffix == f".{s.suffix}")
    text = script.read_text()
    (left,) = re.findall(r"^chain=(\d+)$", text, flags=re.MULTILINE)
    number = re.fullmatch(r"(.+?)(?:-next(\d+))?", script.stem)
    assert number is not None
    following = script.with_name(f"{number[1]}-next{int(number[2] or 0) + 1}{script.suffix}")
    text = re.sub(r"^chain=\d+$", f"chain={int(left) - 1}", text, flags=re.MULTILINE)
    text = re.sub(r"^rerun=.*$", "rerun=", text, flags=re.MULTILINE)
    text = text.replace(str(script), str(following))
    write_bytes_atomic(following, text.encode())
    return following, scheduler.submit(following)
