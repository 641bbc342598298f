"""Deep linear networks at size: estimates of HMC and of SGLD at published settings, against the exact lambda.

Draws the networks of every class, runs them as packed studies, and writes `dln.md` (the table), `dln.csv` (a row per
run) and `dln.png`. The store makes it resumable: the same command continues, and samples nothing twice.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

REPO_ROOT = Path(__file__).resolve().parents[1]
if str(REPO_ROOT) not in sys.path:
    sys.path.insert(0, str(REPO_ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import yaml  # noqa: E402

from lambda_hat.config import DlnBuild  # noqa: E402
from lambda_hat.errors import EXIT_OK, EXIT_USAGE, ConfigError, run_command  # noqa: E402
from lambda_hat.omegaconf_support import load_yaml  # noqa: E402
from lambda_hat.report.results import collect, to_frame  # noqa: E402
from lambda_hat.store.layout import Store, write_bytes_atomic  # noqa: E402
from lambda_hat.workflow_config import compose_study  # noqa: E402

HERE = Path(__file__).resolve().parent
SAMPLERS = {"hmc": "hmc", "sgld": "sgld", "rmsprop": "sgld"}
"""Settings of `dln.yaml`, and the sampler of each."""
LABELS = {"hmc": "HMC", "sgld": "SGLD, published settings", "rmsprop": "SGLD, RMSprop preconditioner"}
BENCHMARK_SEED = 1
"""The sampler settings were chosen on the networks of seeds 0 and 7."""
MAX_DRAWS = 1_000_000


@dataclass(frozen=True)
class Network:
    """One target of a class."""

    widths: list[int]
    seed: int
    n: int

    def entry(self, loss: str) -> dict[str, Any]:
        """As a study names it."""
        target = {"widths": self.widths, "n": self.n, "data": "empirical"}
        return {"target": "dln", "seed": self.seed, "overrides": {"loss": loss, "target": target}}


def num_params(widths: list[int]) -> int:
    """Entries of all factors."""
    return sum(a * b for a, b in pairwise(widths))


def draw_network(spec: dict[str, Any], key: list[int]) -> Network:
    """Layers and widths uniform in their ranges, drawn anew until the number of parameters lies in the class."""
    rng = np.random.default_rng(key)
    for _ in range(MAX_DRAWS):
        layers = int(rng.integers(*spec["layers"], endpoint=True))
        widths = rng.integers(*spec["widths"], size=layers + 1, endpoint=True).tolist()
        if spec["params"][0] <= num_params(widths) <= spec["params"][1]:
            return Network(widths, int(rng.integers(2**32)), spec["n"])
    raise ConfigError(
        f"params: got {spec['params']}, which no network of {MAX_DRAWS:,} had; expected a reachable range"
    )


def draw_class(config: dict[str, Any], name: str, count: int, seed: int) -> list[Network]:
    """The first `count` networks of a class; equal seeds give equal networks, whatever else is asked for."""
    position = list(config["classes"]).index(name)
    return [draw_network(config["classes"][name], [seed, position, index]) for index in range(count)]


def study(config: dict[str, Any], name: str, sampler: str, networks: list[Network], loss: str) -> dict[str, Any]:
    """The experiments file of one class and sampler."""
    overrides = config[sampler] | config.get(f"{sampler}_of_class", {}).get(name, {})
    return {
        "targets": [network.entry(loss) for network in networks],
        "samplers": [{"name": SAMPLERS[sampler], "overrides": overrides}],
    }


def rows_of(experiments: Path, store: Path, name: str, sampler: str) -> pd.DataFrame:
    """A row per run of the study, finished or not, in the order of its networks."""
    plan = compose_study(experiments, (), {"store_root": str(store)})
    frame = to_frame(collect(Store(store), plan.runs, plan.targets))
    builds = [cast(DlnBuild, plan.targets[run.target_id]) for run in plan.runs]
    widths = ["-".join(map(str, build.target.widths)) for build in builds]
    frame.insert(0, "class", name)
    frame.insert(1, "widths", widths)
    frame["sampler"] = sampler
    frame["rel_error"] = frame["llc_mean"] / frame["true_llc"] - 1
    frame["seconds"] = frame["seconds_sample"]
    return frame


COLUMNS = [
    "class", "sampler", "widths", "dim", "n", "true_llc", "llc_mean", "llc_std_error", "rel_error", "verdict", "status",
    "acceptance", "mala_acceptance", "num_gradients", "fge", "seconds", "seconds_compile", "target_id", "run_id",
]  # fmt: skip


def ordered_pairs(rows: pd.DataFrame) -> float:
    """Fraction of the pairs of networks of different lambda that the estimates order rightly (arXiv 2507.21449).

    A pair with an estimate that is NaN is not ordered. NaN where there is no pair.
    """
    true, found = (rows[name].to_numpy(float) for name in ("true_llc", "llc_mean"))
    i, j = np.triu_indices(len(rows), 1)
    i, j = (index[true[i] != true[j]] for index in (i, j))
    if not len(i):
        return np.nan
    return float(np.mean((true[i] - true[j]) * (found[i] - found[j]) > 0))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per class and sampler; errors are relative to lambda, over the runs that gave a number."""
    found = []
    for key, group in rows.groupby(["class", "sampler"], sort=False):
        name, sampler = cast(tuple[str, str], key)
        done = group.loc[group["status"] == "finished"]
        error = done["rel_error"].dropna().astype(float)
        absolute = error.abs()
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in done["verdict"].value_counts().items())
        found.append(
            {
                "class": name,
                "sampler": LABELS[sampler],
                "networks": f"{len(done)} of {len(group)}",
                "mean abs error": absolute.mean(),
                "s.e.": absolute.std(ddof=1) / np.sqrt(len(absolute)) if len(absolute) > 1 else np.nan,
                "median": absolute.median(),
                "largest": absolute.max(),
                "mean signed": error.mean(),
                "pairs in order": ordered_pairs(done),
                "NaN": 1 - len(error) / len(done) if len(done) else np.nan,
                "gradients": done["num_gradients"].astype(float).mean(),
                "fge": done["fge"].mean(),
                "seconds": done["seconds"].mean(),
                "verdicts": verdicts or "none",
            }
        )
    return pd.DataFrame(found)


def markdown(table: pd.DataFrame, command: str, loss: str) -> str:
    """`dln.md`."""
    formats = {"mean abs error": ".3f", "s.e.": ".3f", "median": ".3f", "largest": ".3f", "mean signed": "+.3f"}
    formats |= {"pairs in order": ".1%", "NaN": ".0%", "gradients": ",.0f", "fge": ",.0f", "seconds": ",.1f"}

    def cell(column: str, value: Any) -> str:
        if isinstance(value, float) and np.isnan(value):
            return "–"
        return format(value, formats[column]) if column in formats else str(value)

    lines = [
        "# Deep linear networks at size",
        "",
        f"Written by `{command}`; what it measures is in [README.md](../README.md).",
        f"Errors are λ̂/λ − 1, loss {loss}. `gradients` (of a batch for SGLD), `fge` (full-gradient equivalents) and",
        "`seconds` (sampling, on one core) are means per network.",
        "",
        "| " + " | ".join(table.columns) + " |",
        "|" + "---|" * len(table.columns),
    ]
    lines += ["| " + " | ".join(cell(str(c), v) for c, v in row.items()) + " |" for _, row in table.iterrows()]
    return "\n".join([*lines, "", "![λ̂ against λ](dln.png)", ""])


def draw(rows: pd.DataFrame, path: Path) -> None:
    """lambda-hat against lambda, and the relative error, classes by colour and samplers by marker."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    classes = list(dict.fromkeys(rows["class"]))
    colours = {name: f"C{index}" for index, name in enumerate(classes)}
    style = {
        "hmc": {"marker": "o", "s": 26},
        "sgld": {"marker": "^", "s": 30, "facecolors": "none"},
        "rmsprop": {"marker": "s", "s": 22, "facecolors": "none"},
    }
    limit = 1.0
    for key, group in rows.loc[rows["status"] == "finished"].groupby(["class", "sampler"], sort=False):
        name, sampler = cast(tuple[str, str], key)
        known = group[group["llc_mean"] > 0]
        left.scatter(known["true_llc"], known["llc_mean"], color=colours[name], **style[sampler])
        error = group.loc[:, "rel_error"].astype(float)
        inside = error.abs() <= limit
        right.scatter(group["true_llc"][inside], error[inside], color=colours[name], **style[sampler])
        # What is beyond the axes, or no number at all, stands on the upper edge.
        right.scatter(group["true_llc"][~inside], np.full((~inside).sum(), limit), color=colours[name], marker="x")
    lambdas = rows["true_llc"].dropna()
    if len(lambdas):
        ends = [lambdas.min() / 1.5, lambdas.max() * 1.5]
        left.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
    right.axhline(0, color="black", linewidth=0.8, zorder=0)
    right.axhspan(-0.1, 0.1, color="0.92", zorder=0)
    left.set(xscale="log", yscale="log", xlabel="λ", ylabel="λ̂")
    right.set(xscale="log", xlabel="λ", ylabel="λ̂ / λ − 1", ylim=(-1.08, 1.08))
    handles = [Line2D([], [], color=colours[c], marker="s", linestyle="", label=f"{c} parameters") for c in classes]
    for sampler in dict.fromkeys(rows["sampler"]):
        face = style[sampler].get("facecolors")
        mark = Line2D([], [], color="0.3", marker=style[sampler]["marker"], linestyle="", label=LABELS[sampler])
        mark.set_markerfacecolor(face or "0.3")
        handles.append(mark)
    handles.append(Line2D([], [], color="0.3", marker="x", linestyle="", label="beyond the axis, or NaN"))
    left.legend(handles=handles, loc="upper left", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=HERE / "dln.yaml", metavar="FILE", help="classes and settings")
    parser.add_argument("--classes", default="1K,10K,100K", metavar="A,B", help="classes, in order (1K,10K,100K)")
    parser.add_argument("--samplers", default="hmc,sgld", metavar="A,B", help="of hmc, sgld, rmsprop (hmc, sgld)")
    parser.add_argument("--networks", type=int, default=20, metavar="N", help="the first N networks of a class (20)")
    parser.add_argument("--seed", type=int, default=BENCHMARK_SEED, help=f"of the networks ({BENCHMARK_SEED})")
    parser.add_argument("--loss", choices=("nll", "mse"), default="nll", help="lambda is that of both (nll)")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="table, rows and picture")
    parser.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="targets and runs (runs)")
    parser.add_argument("--pack", type=int, default=32, metavar="N", help="at most N runs in one MPI launch (32)")
    parser.add_argument("--ranks", type=int, metavar="R", help="MPI ranks (one per core)")
    parser.add_argument("--keep", action="store_true", help="keep the rows of --out that are of other studies")
    parser.add_argument("--dry-run", action="store_true", help="show the plans of the studies, start nothing")
    parser.add_argument("--collect", action="store_true", help="sample nothing: the table of what the store holds")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    config = load_yaml(args.config)
    names, samplers = args.classes.split(","), args.samplers.split(",")
    for option, given, valid in (("classes", names, list(config["classes"])), ("samplers", samplers, SAMPLERS)):
        for word in given:
            if word not in valid:
                raise ConfigError(f"--{option}: got {word!r}, expected some of {','.join(valid)}")
    if args.networks < 1:
        raise ConfigError(f"--networks: got {args.networks}, expected an integer of at least 1")
    store = args.store.expanduser().absolute()
    status, frames = EXIT_OK, []
    for sampler in samplers:
        for name in names:
            networks = draw_class(config, name, args.networks, args.seed)
            experiments = store / "studies" / f"dln-{name}-{sampler}.yaml"
            content = study(config, name, sampler, networks, args.loss)
            write_bytes_atomic(experiments, yaml.safe_dump(content, sort_keys=False).encode())
            if not args.collect:
                code = run_study(args, experiments, store)
                if code == EXIT_USAGE:
                    return code
                status = max(status, code)
            frames.append(rows_of(experiments, store, name, sampler))
    if args.dry_run:
        return status
    rows = pd.concat([*kept(args, frames), *frames], ignore_index=True)
    order = {name: [*valid].index for name, valid in (("class", config["classes"]), ("sampler", SAMPLERS))}
    rows = rows.sort_values(["class", "sampler"], key=lambda column: column.map(order[str(column.name)]), kind="stable")
    table = summary(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/dln.py"
    if args.loss != "nll":
        command += f" --loss {args.loss}"
    write_bytes_atomic(args.out / "dln.md", markdown(table, command, args.loss).encode())
    write_bytes_atomic(args.out / "dln.csv", rows[COLUMNS].to_csv(index=False, float_format="%.8g").encode())
    draw(rows, args.out / "dln.png")
    print(table.to_string(index=False))
    print(f"{args.out / 'dln.md'}, dln.csv, dln.png")
    return status


def kept(args: argparse.Namespace, frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows that `--keep` keeps: those of the table in `--out` of classes and samplers that are not in `frames`."""
    if not args.keep:
        return []
    before = pd.read_csv(args.out / "dln.csv")
    new = {tuple(pair) for frame in frames for pair in frame[["class", "sampler"]].itertuples(index=False)}
    return [before.loc[[pair not in new for pair in zip(before["class"], before["sampler"], strict=True)]]]


def run_study(args: argparse.Namespace, experiments: Path, store: Path) -> int:
    """Run one study in packs; the flow's exit status."""
    words = ["--experiments", str(experiments), "--pack", str(args.pack), "--store", str(store)]
    words += ["--results", str(store / "results" / experiments.stem)]
    words += ["--ranks", str(args.ranks)] if args.ranks is not None else []
    words += ["--dry-run"] if args.dry_run else []
    return subprocess.run([sys.executable, str(REPO_ROOT / "flows" / "packed.py"), *words], check=False).returncode


if __name__ == "__main__":
    run_command(main)
