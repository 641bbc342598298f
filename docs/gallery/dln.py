"""Draw the estimates of `dln.yaml` against the exact λ: `python docs/gallery/dln.py`, once the study is finished."""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import lambda_hat


def main() -> None:
    """Read the table of a folder of results, and write `dln.png` into it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder (default results)")
    folder = parser.parse_args().results
    table = lambda_hat.load_results(folder)
    table = table[table["target"].str.startswith("dln") & (table["status"] == "finished")]
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axis = figure.subplots()
    most = table["true_llc"].max() * 1.1
    axis.plot([0, most], [0, most], color="grey", linewidth=1, label="λ̂ = λ")
    for rank, group in table.groupby(table["target"].str.extract(r"rank (\d+)", expand=False)):
        errors = 2 * group["llc_std_error"]
        axis.errorbar(group["true_llc"], group["llc_mean"], errors, fmt="o", capsize=2, label=f"rank {rank}")
    doubtful = table[table["verdict"] != "ok"]
    axis.plot(doubtful["true_llc"], doubtful["llc_mean"], "kx", label="verdict not ok", zorder=3)
    axis.plot(table["true_llc"], table["dim"] / 2, "_", color="grey", label="half of the parameters")
    axis.set_xlabel("exact λ")
    axis.set_ylabel("λ̂ ± 2 s.e.")
    axis.legend()
    figure.savefig(folder / "dln.png", dpi=120)
    print(folder / "dln.png")


if __name__ == "__main__":
    main()
