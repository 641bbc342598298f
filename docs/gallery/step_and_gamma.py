"""Draw `step_and_gamma.yaml` as a surface: `python docs/gallery/step_and_gamma.py`, once the study is finished."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import lambda_hat


def main() -> None:
    """Read the table of a folder of results, and write `step_and_gamma.png` into it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder (default results)")
    folder = parser.parse_args().results
    table = lambda_hat.load_results(folder)
    table = table[(table["target_kind"] == "mlp") & (table["status"] == "finished")]
    sgld = table[table["sampler"] == "sgld"].pivot_table(
        index="gamma", columns="cfg.step_size", values=["llc_mean", "temperature", "verdict"], aggfunc="first"
    )
    judge = table[table["sampler"] == "hmc"].set_index("gamma")["llc_mean"]
    panels = {
        "λ̂ of SGLD / λ̂ of HMC at the same γ": sgld["llc_mean"].div(judge, axis=0).astype(float),
        "temperature T of SGLD": sgld["temperature"].astype(float),
    }
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axis, (title, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        shown = axis.imshow(np.log10(values), cmap="coolwarm", vmin=-1.5, vmax=1.5, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            right = sgld["verdict"].iloc[row, column] == "ok"
            text = "–" if np.isnan(value) else f"{value:.2f}" if value < 10 else f"{value:,.0f}"
            style = {"weight": "bold"} if right else {}
            axis.text(column, row, text if right else f"({text})", ha="center", va="center", fontsize=9, **style)
        axis.set_xticks(range(len(values.columns)), [f"{step:g}" for step in values.columns])
        axis.set_yticks(
            range(len(values)), [f"{gamma:g} (HMC {judge.get(gamma, np.nan):.2g})" for gamma in values.index]
        )
        axis.set_xlabel("step size ε")
        axis.set_title(title, fontsize=10)
    axis.set_yticklabels([])
    figure.axes[0].set_ylabel("localisation γ")
    figure.colorbar(shown, ax=figure.axes, ticks=[-1, 0, 1]).ax.set_yticklabels([".1", "1", "10"])
    figure.supxlabel("bold: the verdict is ok; (in brackets): it is not", fontsize=8)
    figure.savefig(folder / "step_and_gamma.png", dpi=120)
    print(folder / "step_and_gamma.png")


if __name__ == "__main__":
    main()
