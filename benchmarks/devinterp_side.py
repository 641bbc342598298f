"""devinterp's part of a comparison, in an interpreter of its own: this project does not depend on torch.

    PYTHON benchmarks/devinterp_side.py '{"what": "powers", ...}'

prints one line of JSON. The benchmarks call it through `ask`.
"""

# torch and devinterp are only in that other interpreter.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

TORCH = "torch==2.13.0"
"""Its CPU build may be at hand, and newer ones bring 3 GB of CUDA."""
INSTALL = f"python3 -m venv D && D/bin/pip install {TORCH} devinterp==1.3.2"
NOTE = f"interpreter of an environment with devinterp ({INSTALL}, then D/bin/python)"

Estimate = Callable[[int, int, int], tuple[float, float]]
"""From draws, burn-in and seed to the LLC and its standard error from the spread of the chains."""


def ask(python: str, question: dict[str, Any], prefix: Sequence[str] = ()) -> dict[str, Any]:
    """What this script answers under the interpreter `python`. Raises SystemExit with its words where it fails."""
    line = [*prefix, python, __file__, json.dumps(question)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | {"TQDM_DISABLE": "1"})
    if done.returncode:
        raise SystemExit(f"devinterp: {python} failed; it needs torch and devinterp ({INSTALL}):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """LLC, its standard error, and the seconds of one estimate, or of as many as `question["times"]` says.

    It is warm: a short one comes before, unless `question["cold"]`. `ended` is the time at which each of them was done.
    """
    import importlib.metadata

    import torch

    if question.get("threads", 1) is not None:
        torch.set_num_threads(question.get("threads", 1))
    torch.manual_seed(0)
    version = importlib.metadata.version("devinterp")
    estimate = (_by_step if version.startswith("1.") else _by_row_number)(question)
    if not question.get("cold"):
        estimate(5, 5, 0)
    times = []
    for seed in range(question.get("times", 1)):
        begun, cpu = time.time(), time.process_time()
        llc, std_error = estimate(question["draws"], question["burnin"], seed)
        times.append((time.process_time() - cpu, time.time() - begun, time.time()))
    cpus, seconds, ended = zip(*times, strict=True)
    return {
        "llc": llc, "std_error": std_error, "cpu_seconds": cpus[-1], "seconds": seconds, "ended": ended,
        "version": version,
    }  # fmt: skip


def _by_step(question: dict[str, Any]) -> Estimate:
    """devinterp 1: any module, and a loader of batches. It records the loss of the batch that a step used."""
    import numpy as np
    from devinterp.optim import SGLD
    from devinterp.slt.sampler import estimate_learning_coeff_with_summary

    model, loader, evaluate, init_loss = (_powers if question["what"] == "powers" else _network)(question)
    nbeta = question.get("n_beta", question["n"] / np.log(question["n"]))

    def estimate(draws: int, burnin: int, seed: int) -> tuple[float, float]:
        settings = {"lr": question["step_size"], "localization": question.get("gamma", 0.0), "nbeta": nbeta}
        found = estimate_learning_coeff_with_summary(
            model, loader, evaluate=evaluate, sampling_method=SGLD, optimizer_kwargs=settings, num_draws=draws,
            num_chains=question["chains"], num_burnin_steps=burnin, num_steps_bw_draws=question.get("thin", 1),
            init_loss=init_loss, verbose=False, seed=seed,
        )  # fmt: skip
        return found["llc/mean"], found["llc/std"] / question["chains"] ** 0.5

    return estimate


def _by_row_number(question: dict[str, Any]) -> Estimate:
    """devinterp 2: models of sequences of tokens. A row of the data is a sequence of its own number, twice.

    Its `llc_mean` takes burn-in for draws, and batches of its own for the loss at `w_star`; here is neither.
    """
    import numpy as np
    from datasets import Dataset
    from devinterp.slt.llc import llc

    model, loader, _, init_loss = _network(question)
    x, y = cast(Any, loader.dataset).tensors
    rows = Dataset.from_dict({"input_ids": np.arange(len(x)).repeat(2).reshape(-1, 2)}).with_format("torch")

    def loss_fn(model, input_ids):
        chosen = input_ids[:, 0]
        return ((model(x[chosen]) - y[chosen]) ** 2).mean(1, keepdim=True)

    def estimate(draws: int, burnin: int, seed: int) -> tuple[float, float]:
        found = llc(
            model, rows, {}, lr=question["step_size"], n_beta=question["n_beta"], localization=question["gamma"],
            num_chains=question["chains"], num_draws=draws, num_burnin_steps=burnin, batch_size=question["batch_size"],
            match_sampling_input_ids_across_chains=False, init_seed=100 * seed, loss_fn=loss_fn, device="cpu",
        )  # fmt: skip
        trace = found["loss_trace"].values[:, burnin:]
        chains = question["n_beta"] * (trace.mean(axis=1) - float(init_loss))
        return float(chains.mean()), float(chains.std(ddof=1) / len(chains) ** 0.5)

    return estimate


def _powers(question: dict[str, Any]):
    """`1/2 sum |w_i|^p_i`, whose rows mean nothing."""
    import torch

    powers = question["powers"]

    class Powers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(len(powers)))

    def evaluate(model, batch):
        return 0.5 * sum(torch.abs(model.w[i]) ** p for i, p in enumerate(powers)), {}

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*torch.zeros(2, 10, 1)), batch_size=1)
    # devinterp takes a loss of 0 for a missing one.
    return Powers(), loader, evaluate, torch.tensor(1e-30)


def _network(question: dict[str, Any]):
    """A tanh network with the mean squared error, its parameters and data from the npz file `question["path"]`."""
    import numpy as np
    import torch

    with np.load(question["path"]) as arrays:
        arrays = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    modules: list[torch.nn.Module] = []
    for i in range(len([name for name in arrays if name.startswith("w")])):
        rows, columns = arrays[f"w{i}"].shape
        layer = torch.nn.Linear(rows, columns)
        layer.weight.data, layer.bias.data = arrays[f"w{i}"].T.contiguous(), arrays[f"b{i}"]
        modules += [layer, torch.nn.Tanh()]
    model = torch.nn.Sequential(*modules[:-1])
    rows = torch.utils.data.TensorDataset(arrays["x"], arrays["y"])
    loader = torch.utils.data.DataLoader(rows, batch_size=question["batch_size"], shuffle=True)

    def evaluate(model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1]), {}

    with torch.no_grad():
        loss = torch.nn.functional.mse_loss(model(arrays["x"]), arrays["y"])
    return model, loader, evaluate, loss


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(answer(json.loads(sys.argv[1]))))
