"""The page's language model: a folder of Pythia's layout with random weights, measured per token."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lambda_hat import estimate_llc
from lambda_hat.errors import ConfigError
from lambda_hat.targets.checkpoint_arrays import read_arrays
from lambda_hat.torch import from_torch
from lambda_hat.torch.state_dicts import load_state

for package in ("torch", "torchax", "transformers"):
    pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[torch]' transformers")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "pytorch.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),  # of transformers' own code
]


@pytest.fixture(scope="module")
def pythia(tmp_path_factory):
    """Model, loss and data of the page's `make`, and the folder."""
    folder = tmp_path_factory.mktemp("pythia")
    for text in re.findall(r"```python\n(# \w+\.py\n.*?)```", PAGE.read_text(), flags=re.DOTALL):
        (folder / text.split()[1]).write_text(text)
    subprocess.run([sys.executable, "random_pythia.py", "model"], cwd=folder, check=True, timeout=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield (
            *importlib.import_module("pythia").make(str(folder / "model"), str(folder / "texts.txt")),
            folder / "model",
        )


def test_logits_and_the_loss_per_token_are_those_of_transformers(pythia):
    import torch

    model, loss_fn, data, folder = pythia
    # Transformers renames it when it loads the file.
    stored = {
        name.replace("embed_out", "lm_head"): array for name, array in read_arrays(folder / "model.safetensors").items()
    }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_state(model, stored, "model.safetensors")
    _, params = from_torch(model, loss_fn)
    assert {name.replace(".", "/") for name in stored} == params.keys()
    assert "gpt_neox/layers/1/attention/query_key_value/weight" in params
    assert sum(array.size for array in params.values()) > 1_000_000
    few = {name: array[:6] for name, array in data.items()}
    tokens, mask = torch.from_numpy(few["tokens"]), torch.from_numpy(few["mask"])
    with torch.no_grad():
        there = model(input_ids=tokens, attention_mask=mask)

    def outputs(model, batch):
        return model(input_ids=batch["tokens"], use_cache=False).logits, *loss_fn(model, batch)

    logits, losses, weights = map(np.asarray, jax.jit(from_torch(model, outputs)[0])(params, few))
    real = few["mask"] == 1
    assert not real.all()
    np.testing.assert_allclose(logits[real], there.logits.numpy()[real], rtol=1e-5, atol=1e-5)
    # Transformers' own loss is a mean over tokens, with labels of -100 where there are none.
    labels = torch.where(mask == 1, tokens, -100)
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    np.testing.assert_array_equal(weights, few["mask"][:, 1:])
    assert np.average(losses, weights=weights) == pytest.approx(expected.item(), rel=1e-5)


def test_a_token_of_another_tokeniser_is_refused_by_the_name_of_the_embedding(pythia):
    model, loss_fn, data, _ = pythia
    foreign = {**data, "tokens": data["tokens"].copy()}
    foreign["tokens"][70, 2] = 512
    with pytest.raises(ConfigError, match=r"data: gpt_neox/embed_in looks up 512, and has the rows 0 to 511: a token"):
        estimate_llc(*from_torch(model, loss_fn), foreign)
