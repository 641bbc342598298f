"""The scripts of jobs that run a whole study: as golden text, and what of them changes along a chain."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.sites.batch_jobs import enclosing_job, submit_next

ROOT = Path(__file__).resolve().parents[2]
STUDY = {"targets": [{"target": "monomial"}], "samplers": [{"name": "sgld", "sweep": {"seed": [0, 1]}}]}
WORDS = {
    "slurm": [
        "--nodes=4", "--walltime=1-12:00:00", "--chain=3", "--pack=16", "--retries=2", "--rerun=failed", "--quiet",
        "site.account=acc", "site.partition=gpu", "site.qos=high", "site.constraint=a100", "site.cores_per_node=64",
        "site.mem_per_node=256", "site.gpus_per_node=4", "site.ranks_per_gpu=2", "site.nodes_per_pack=2",
        "site.cores_per_rank=8", "site.mpi=system", "site.flavour=srun", "site.srun_mpi=pmix", "site.task_workers=3",
        "site.scheduler_options='#SBATCH --mail-type=END'", "site.worker_init=module load x; source y",
        "samplers.0.overrides.num_draws=200",
    ],
    "pbs": [
        "--nodes=4", "--walltime=12:00:00", "--chain=0", "--rerun=all", "site.account=acc", "site.queue=prod",
        "site.cores_per_node=32", "site.mem_per_node=64", "site.cores_per_rank=2", "site.nodes_per_pack=null",
        "site.exclusive=false", "site.select_options='system=polaris'", "site.interface=hsn0",
        "site.scheduler_options='#PBS -l filesystems=home:eagle'", "site.worker_init=module load x",
    ],
}  # fmt: skip
GOLDEN = {
    "slurm": """\
#!/bin/bash
# One allocation that runs a whole study inside itself.
# Rendered, shown and submitted by: lambda-hat run --submit slurm --nodes N --walltime HH:MM:SS
#SBATCH --job-name=lambda_hat
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --time=36:00:00
#SBATCH --output=FOLDER/runs/jobs/job_TIME.%j.log
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=acc
#SBATCH --qos=high
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=64
#SBATCH --mem=256g
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --mail-type=END

module load x; source y
cd FOLDER || exit
export LAMBDA_HAT_JOB_SCRIPT=FOLDER/runs/jobs/job_TIME.sbatch
# Jobs that may follow this one where its time runs out with runs left, and --rerun, which only the first one obeys.
chain=3
rerun='--rerun failed'
# The clock decides, whatever signals come: the study stops in time for this.
deadline=$(($(date +%s) + 129600))
exec PYTHON REPOSITORY/flows/packed.py --experiments FOLDER/study.yaml --store FOLDER/runs --results FOLDER/results \
--pack 16 --retries 2 --quiet samplers.0.overrides.num_draws=200 site.mpi=system site.flavour=srun site.srun_mpi=pmix \
site.ranks_per_node=8 site.cores_per_rank=8 site.gpus_per_node=4 site.ranks_per_gpu=2 site.nodes_per_pack=2 \
site.task_workers=3 --site allocation --deadline "$deadline" --chain "$chain" $rerun
""",
    "pbs": """\
#!/bin/bash
# One allocation that runs a whole study inside itself.
# Rendered, shown and submitted by: lambda-hat run --submit pbs --nodes N --walltime HH:MM:SS
#PBS -S /bin/bash
#PBS -N lambda_hat
#PBS -l select=4:ncpus=32:mem=64gb:system=polaris
#PBS -l walltime=12:00:00
#PBS -j oe
#PBS -o FOLDER/runs/jobs/job_TIME.pbs.log
#PBS -q prod
#PBS -A acc
#PBS -l place=scatter
#PBS -l filesystems=home:eagle

# PBS brings its own log only when the job has ended.
exec >> FOLDER/runs/jobs/job_TIME."$PBS_JOBID".log 2>&1
module load x
cd FOLDER || exit
export LAMBDA_HAT_JOB_SCRIPT=FOLDER/runs/jobs/job_TIME.pbs
# Jobs that may follow this one where its time runs out with runs left, and --rerun, which only the first one obeys.
chain=0
rerun='--rerun all'
# The clock decides, whatever signals come: the study stops in time for this.
deadline=$(($(date +%s) + 43200))
exec PYTHON REPOSITORY/flows/packed.py --experiments FOLDER/study.yaml --store FOLDER/runs --results FOLDER/results \
site.ranks_per_node=16 site.cores_per_rank=2 site.nodes_per_pack=null \
--site allocation --deadline "$deadline" --chain "$chain" $rerun
""",
}


def dry_run(folder: Path, scheduler: str) -> str:
    """What `--submit SCHEDULER --dry-run` prints, its varying parts by name."""
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    command = [sys.executable, str(ROOT / "flows" / "packed.py"), "--experiments", "study.yaml"]
    done = subprocess.run(
        [*command, "--submit", scheduler, "--dry-run", *WORDS[scheduler]],
        capture_output=True, text=True, cwd=folder, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for varying, name in ((str(folder), "FOLDER"), (sys.executable, "PYTHON"), (str(ROOT), "REPOSITORY")):
        text = text.replace(varying, name)
    return re.sub(r"job_\d{8}-\d{6}", "job_TIME", text)


@pytest.mark.parametrize("scheduler", sorted(GOLDEN))
def test_golden_scripts(tmp_path, scheduler):
    shown = dry_run(tmp_path, scheduler)
    assert shown.partition("#!/bin/bash\n")[2] == (
        GOLDEN[scheduler].partition("#!/bin/bash\n")[2] + "dry run: nothing was submitted\n"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]


def test_a_driver_knows_its_job_and_the_word_that_ends_it():
    assert enclosing_job({}) is None
    slurm = {"scheduler": "SLURM", "job_id": "12", "end": "scancel 12"}
    assert enclosing_job({"SLURM_JOB_ID": "12"}) == slurm
    assert enclosing_job({"PBS_JOBID": "12.s"}) == {"scheduler": "PBS", "job_id": "12.s", "end": "qdel 12.s"}


@pytest.mark.parametrize(("scheduler", "command"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_a_chain_counts_down_and_obeys_rerun_once(tmp_path, monkeypatch, scheduler, command):
    stand_in = tmp_path / command
    stand_in.write_text('#!/bin/sh\nfor script; do :; done\necho "$script" >> "$0.log"\necho 17\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    suffix = {"slurm": "sbatch", "pbs": "pbs"}[scheduler]
    script = tmp_path / f"job_20260101-000000.{suffix}"
    text = GOLDEN[scheduler].replace("FOLDER/runs/jobs/job_TIME", str(script.with_suffix("")))
    script.write_text(text.replace("chain=0", "chain=3"))
    for step in (1, 2):
        following, job_id = submit_next(script)
        assert (following.name, job_id) == (f"job_20260101-000000-next{step}.{suffix}", "17")
        lines = following.read_text().splitlines()
        assert f"chain={3 - step}" in lines
        assert "rerun=" in lines
        assert f"export LAMBDA_HAT_JOB_SCRIPT={following}" in lines
        script = following
    submitted = Path(f"{stand_in}.log").read_text().splitlines()
    assert [Path(line).name for line in submitted] == [f"job_20260101-000000-next{n}.{suffix}" for n in (1, 2)]
