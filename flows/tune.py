"""Find sampler settings, target by target: error against cost, in batches of trials that are sampled as packs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flows.driver.request import Request
from flows.driver.searches import Tuning
from lambda_hat.config import SAMPLE_SCHEMAS
from lambda_hat.config.entries import SAMPLER_ENTRY_KEYS, expand
from lambda_hat.errors import ConfigError, nearest, run_command
from lambda_hat.id_utils import canonical_json, identity_payload
from lambda_hat.workflow_config import CONF_DIR, Study, compose_sample_cfg

if TYPE_CHECKING:
    from lambda_hat.tuning.wanted import Start

TRIALS, SEEDS, TOLERANCE = 24, 2, 0.05


def options_parser() -> argparse.ArgumentParser:
    """The options of a search."""
    parser = argparse.ArgumentParser(prog="lambda-hat tune", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--experiments", type=Path, default=CONF_DIR / "experiments.yaml", metavar="FILE",
        help="the study: its targets are tuned for, its samplers are where the search begins",
    )  # fmt: skip
    parser.add_argument("--samplers", nargs="+", metavar="NAME", help="only these (default: those of the study)")
    parser.add_argument(
        "--trials", type=int, metavar="N", help=f"settings to try per target and sampler (default {TRIALS})"
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="B",
        help="trials of a search at a time (default: what fills a pack, a quarter of all at most)",
    )
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="K", help=f"runs of a setting that is tried (default {SEEDS})"
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="T",
        help=f"the relative error that is good enough: the cheapest such setting is taken (default {TOLERANCE})",
    )  # fmt: skip
    parser.add_argument(
        "--reference", choices=("nuts", "hmc", "none"), default="nuts",
        help="what a long run is made with where the exact value is not known (default nuts)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="no reference: a ladder of step sizes, judged by stability and acceptance"
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="no reference: one setting for all targets, over a grid of gamma and beta, judged by the verdicts",
    )
    parser.add_argument("--pack", type=int, metavar="N", help="at most N runs in one MPI launch (default 32)")
    parser.add_argument("--ranks", type=int, metavar="R", help="MPI ranks per node (default: one per core)")
    parser.add_argument("--site", metavar="S", help="a name in conf/site, or a .yaml or .py file (default local)")
    parser.add_argument("--store", metavar="DIR", help="targets, runs, packs and what was tried (default runs)")
    parser.add_argument("--results", metavar="DIR", help="the experiments file and the picture (default results)")
    parser.add_argument("--deadline", metavar="WHEN", help="stop in time for WHEN, as lambda-hat run does")
    parser.add_argument("--rerun", choices=("failed",), help="try runs of the searches that failed earlier again")
    parser.add_argument("--dry-run", action="store_true", help="show what would run and its cost, start nothing")
    parser.add_argument("--quiet", action="store_true", help="only trouble and the summary")
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="overrides of the study; site.key=value of the site"
    )
    parser.set_defaults(retries=None)
    return parser


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Read the options of `options_parser`. Raises ConfigError."""
    args = options_parser().parse_intermixed_args(argv)
    for option, value, least in (("trials", args.trials, 1), ("batch", args.batch, 1), ("seeds", args.seeds, 1)):
        if value is not None and value < least:
            raise ConfigError(f"--{option}: got {value}, expected an integer of at least {least}")
    if not 0 < args.tolerance < 1:
        raise ConfigError(f"--tolerance: got {args.tolerance}, expected a relative error between 0 and 1, such as 0.05")
    if args.quick and args.shared:
        raise ConfigError("--quick and --shared: give one of them; each tries its own settings once")
    for option in ("trials", "batch"):
        if args.quick and getattr(args, option) is not None:
            raise ConfigError(f"--{option}: goes without --quick, which tries every step of its ladder once")
        if args.shared and getattr(args, option) is not None:
            raise ConfigError(f"--{option}: goes without --shared, which tries every setting of its grid once")
    args.trials = TRIALS if args.trials is None else args.trials
    for name in args.samplers or ():
        if name not in SAMPLE_SCHEMAS:
            hint = "write key=value words before --samplers" if "=" in name else nearest(name, SAMPLE_SCHEMAS)
            raise ConfigError(f"--samplers: unknown {name!r}; {hint}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Do what the words of the command say. Returns the exit status."""
    args = parse_options(argv)
    request = Request.from_options(args, packed=True, one_site=True)
    request.check_launch()
    tuning = Tuning(request, args, starts_of(request.study, args.samplers, args.quick))
    return tuning.dry_run() if args.dry_run else tuning.run()


def starts_of(study: Study, names: Sequence[str] | None, quick: bool) -> list[Start]:
    """What the searches begin with: every sampler entry of the study on each of its targets.

    Entries that differ in their seeds alone count once.

    Args:
        study: What is tuned.
        names: Only these samplers; one that the study has no entry for starts from its defaults.
        quick: Only samplers that are given a step size.

    Raises:
        ConfigError: Nothing is left.
    """
    from lambda_hat.tuning.space import step_key, with_lengths
    from lambda_hat.tuning.wanted import Start

    points = expand(study.settings.samplers, f"{study.source}: samplers", SAMPLER_ENTRY_KEYS)
    entries = [point.content for point in points]
    if names is not None:
        entries = [entry for entry in entries if entry["name"] in names]
        entries += [{"name": name} for name in dict.fromkeys(names) if name not in {e["name"] for e in entries}]
    x64, source = study.settings.jax_enable_x64, str(study.source)
    found: dict[str, Start] = {}
    refused = None
    for target_id, build in study.targets.items():
        for entry in entries:
            if entry.get("targets") and target_id not in entry["targets"]:
                continue
            overrides = {key: value for key, value in (entry.get("overrides") or {}).items() if key != "seed"}
            bare = {"name": entry["name"], "overrides": overrides}
            cfg = compose_sample_cfg(target_id, bare, build=build, jax_enable_x64=x64, source=source)
            if quick and step_key(cfg) is None:
                refused = cfg.name
                continue
            key = canonical_json(identity_payload(cfg))
            cfg = with_lengths(cfg, build)
            found.setdefault(key, Start(target_id, build, cfg, entry["name"], overrides, x64, source))
    if not found:
        raise ConfigError(
            f"{source}: --quick: {refused} adapts its own step size, and the study has no other sampler; write "
            "--samplers sgld, sghmc or sgnht, or leave out --quick"
        )
    return list(found.values())


if __name__ == "__main__":
    run_command(main)
