"""devinterp's part of a comparison, in an interpreter of its own: this project does not depend on torch.

    PYTHON benchmarks/devinterp_side.py '{"what": "powers", ...}'

prints one line of JSON. The benchmarks call it through `ask`.
"""

# torch and devinterp are only in that other interpreter.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from typing import Any

INSTALL = "python3 -m venv D && D/bin/pip install torch==2.13.0 devinterp==1.3.2"
NOTE = f"interpreter of an environment with devinterp ({INSTALL}, then D/bin/python)"


def ask(python: str, question: dict[str, Any]) -> dict[str, Any]:
    """What this script answers under the interpreter `python`. Raises SystemExit with its words where it fails."""
    done = subprocess.run([python, __file__, json.dumps(question)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"--devinterp: {python} failed; it needs torch and devinterp ({INSTALL}):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """LLC, its standard error from the spread of the chains, and the CPU-seconds of a warm estimate."""
    import importlib.metadata

    import numpy as np
    import torch

    if question.get("threads", 1) is not None:
        torch.set_num_threads(question.get("threads", 1))
    torch.manual_seed(0)
    model, loader, evaluate, init_loss = (_powers if question["what"] == "powers" else _network)(question)

    def estimate(draws: int, burnin: int) -> dict[str, Any]:
        from devinterp.optim import SGLD
        from devinterp.slt.sampler import estimate_learning_coeff_with_summary

        nbeta = question.get("n_beta", question["n"] / np.log(question["n"]))
        settings = {"lr": question["step_size"], "localization": question.get("gamma", 0.0), "nbeta": nbeta}
        return estimate_learning_coeff_with_summary(
            model, loader, evaluate=evaluate, sampling_method=SGLD, optimizer_kwargs=settings, num_draws=draws,
            num_chains=question["chains"], num_burnin_steps=burnin, num_steps_bw_draws=question.get("thin", 1),
            init_loss=init_loss, verbose=False, seed=0,
        )  # fmt: skip

    estimate(5, 5)
    begun = time.process_time()
    found = estimate(question["draws"], question["burnin"])
    seconds = time.process_time() - begun
    spread = found["llc/std"] / question["chains"] ** 0.5
    version = importlib.metadata.version("devinterp")
    return {"llc": found["llc/mean"], "std_error": spread, "cpu_seconds": seconds, "version": version}


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
