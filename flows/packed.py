"""The main job: build the targets of a study, sample its runs in MPI packs, write one table of estimates."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flows.driver.check import check_sites
from flows.driver.dry_run import show_packs
from flows.driver.options import parse_options
from flows.driver.packs import submit_packs
from flows.driver.pricing import plan_sentences
from flows.driver.request import Request
from flows.driver.run_study import run_study
from flows.driver.screen import Screen
from flows.sites.batch_jobs import SCRIPT_VARIABLE, BatchJob, submit_next
from flows.sites.scheduler import require_scheduler
from flows.sites.site_schemas import BatchSite, asked_for
from lambda_hat.errors import EXIT_OK, ConfigError, LambdaHatError, run_command
from lambda_hat.store.layout import write_bytes_atomic
from lambda_hat.store.study_records import StudyLog, write_study


def main(argv: list[str] | None = None) -> int:
    """Do what the words of the command say. Returns the exit status."""
    args = parse_options(__doc__ or "", argv, packed=True)
    check_options(args)
    if args.submit is not None and args.site is None:
        args.site = args.submit
    request = Request.from_options(args, packed=True)
    if args.submit is not None:
        return submit_job(request, args)
    request.check_launch()
    if args.check:
        return check_sites(request, args.dry_run)
    following = follow_up if args.chain else None
    return run_study(request, submit_packs, show_packs, dry=args.dry_run, on_out_of_time=following)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing together. Raises ConfigError."""
    if args.submit is None:
        for option in ("nodes", "walltime"):
            if getattr(args, option) is not None:
                raise ConfigError(
                    f"--{option}: goes with --submit; from a login node write site.nodes_per_block=N and "
                    "site.walltime=HH:MM:SS"
                )
        if args.chain and args.deadline is None:
            raise ConfigError("--chain: goes with --submit")
    elif args.deadline is not None:
        raise ConfigError("--deadline: goes without --submit; the job's walltime says when it ends")
    elif args.check:
        raise ConfigError("--check: goes without --submit; inside the job it is --site allocation --check")
    if args.chain is not None and args.chain < 0:
        raise ConfigError(f"--chain: got {args.chain}, expected an integer of at least 0")


def submit_job(request: Request, args: argparse.Namespace) -> int:
    """Show the job that runs this study inside itself and, without --dry-run, submit it. Returns the exit status."""
    site, screen = request.site, Screen()
    if not isinstance(site, BatchSite) or site.kind != args.submit:
        raise ConfigError(f"--site {args.site}: a {site.kind} site, but --submit {args.submit} needs one of that kind")
    if len(request.sites) > 1:
        name = next(filter(None, request.sites))
        raise ConfigError(
            f"{request.study.sites[name]}: site: {name} is beside the one job of --submit; start the study from a "
            "login node, without --submit"
        )
    job = BatchJob(site, request.store, inner_words(request, args), request.rerun, args.chain or 0)
    path = job.script_path()
    script = job.render(path)
    plan = request.plan(request.rerun, look_only=True)
    screen.say_all(plan_sentences(request, plan))
    print(script, end="")
    if args.dry_run:
        screen.say("dry run: nothing was submitted")
        return EXIT_OK
    scheduler = require_scheduler(site.kind)
    if not plan.runs:
        screen.say("nothing is left to sample: no job was submitted")
        return EXIT_OK
    request.make_folders()
    write_bytes_atomic(path, script.encode())
    try:
        job_id = scheduler.submit(path)
    except LambdaHatError:
        path.unlink()
        screen.say(f"the job asked for {asked_for(site, 'packs')}")
        raise
    watch = scheduler.watch_command(job_id)
    submitted = {"scheduler": scheduler.title, "job_id": job_id, "watch": watch, "end": scheduler.end_command(job_id)}
    write_study(request.store.root, request.record(plan, submitted)).close()
    screen.say(f"submitted job {job_id}; its log will be {path.with_suffix('')}.{job_id}.log")
    screen.say(f"to look at it: {watch}; to end it: {submitted['end']}")
    return EXIT_OK


def inner_words(request: Request, args: argparse.Namespace) -> list[str]:
    """The words of this command that the job's own command repeats, with absolute paths."""
    words = ["--experiments", str(args.experiments.absolute()), "--store", str(request.store.root)]
    words += ["--results", str(request.results_root)]
    for option in ("pack", "lanes", "retries"):
        if getattr(args, option) is not None:
            words += [f"--{option}", str(getattr(args, option))]
    words += [f"--{option}" for option in ("quiet", "no-report") if getattr(args, option.replace("-", "_"))]
    return [*words, *(word for word in args.words if not word.startswith("site."))]


def follow_up(screen: Screen, log: StudyLog) -> None:
    """Submit the next job of the chain that this one belongs to."""
    script = os.environ.get(SCRIPT_VARIABLE)
    if script is None:
        screen.say(
            f"--chain: {SCRIPT_VARIABLE} is not set, so nothing was submitted; --submit writes a script that sets it"
        )
        return
    try:
        following, job_id = submit_next(Path(script))
    except LambdaHatError as error:
        screen.say(f"the next job of the chain was not submitted: {error}")
        return
    screen.say(f"submitted job {job_id} to go on: {following}")
    log.append("next_job", job_id=job_id)


if __name__ == "__main__":
    run_command(main)
