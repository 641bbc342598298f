"""Arrays of checkpoints in every format, the hash of their content, and files that are refused."""

import json
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_hat.config import CustomTarget
from lambda_hat.config.checkpoint_file import content_hash
from lambda_hat.errors import BuildFailed, ConfigError
from lambda_hat.targets.checkpoint_arrays import read_arrays
from lambda_hat.torch.on_jax import tools

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1.5, -2.0], jnp.bfloat16),
    "count": np.array(7),
}


def same(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.fixture
def torch():
    pytest.importorskip("torchax", reason="torchax is missing: pip install -e '.[torch]'")
    return pytest.importorskip("torch", reason="PyTorch is missing: pip install -e '.[torch]'")


@pytest.fixture
def tensors(torch):
    return {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
    }


def test_files_with_bfloat16_are_read_as_they_are(tmp_path):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    same(read_arrays(tmp_path / "w.npz"))
    save_file(ARRAYS, tmp_path / "w.safetensors")
    same(read_arrays(tmp_path / "w.safetensors"))


def sharded(folder, weight_map):
    parts = {name: {k: ARRAYS[k] for k, file in weight_map.items() if file == name} for name in weight_map.values()}
    for name, arrays in parts.items():
        save_file(arrays, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_an_index_stands_for_its_files_and_so_does_its_hash(tmp_path):
    one, two = "model-1-of-2.safetensors", "model-2-of-2.safetensors"
    index = sharded(tmp_path, {"a.weight": one, "count": one, "a.bias": two})
    same(read_arrays(index), {name: ARRAYS[name] for name in ("a.weight", "count", "a.bias")})
    before = content_hash(index)
    save_file({"a.bias": ARRAYS["a.bias"] + 1}, tmp_path / two)
    assert content_hash(index) != before
    save_file({"b.bias": ARRAYS["a.bias"]}, tmp_path / two)
    with pytest.raises(BuildFailed, match=r"the files that .*index.json names lack a.bias"):
        read_arrays(index)
    (tmp_path / two).unlink()
    with pytest.raises(FileNotFoundError):
        content_hash(index)
    with pytest.raises(BuildFailed, match=r"model-2-of-2.safetensors cannot be read as safetensors: No such file"):
        read_arrays(index)


def test_a_file_that_is_no_npz_is_told_without_advice_to_run_it(tmp_path):
    (tmp_path / "w.npz").write_text("x")
    np.savez(tmp_path / "objects.npz", w=np.array([{}], dtype=object))
    for name in ("w.npz", "objects.npz"):
        with pytest.raises(BuildFailed, match=r"npz cannot be read as npz: it is no file of NumPy"):
            read_arrays(tmp_path / name)


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"weight_map": {}}', '{"weight_map": {"a": "../a.npz"}}'])
def test_what_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "w.index.json").write_text(content)
    for read in (content_hash, read_arrays):
        with pytest.raises((ValueError, BuildFailed), match=r"expected \{weight_map: \{name: file\}\} with files that"):
            read(tmp_path / "w.index.json")


def test_the_hash_of_a_folder_is_of_names_and_contents(tmp_path):
    (tmp_path / "a" / "d").mkdir(parents=True)
    with pytest.raises(ValueError, match="the folder is empty"):
        content_hash(tmp_path / "a")
    (tmp_path / "a" / "d" / "one").write_bytes(b"1")
    first = content_hash(tmp_path / "a")
    os.rename(tmp_path / "a", tmp_path / "b")
    assert content_hash(tmp_path / "b") == first
    os.rename(tmp_path / "b" / "d" / "one", tmp_path / "b" / "d" / "two")
    assert content_hash(tmp_path / "b") != first


def test_endings_that_nothing_reads_are_refused_where_they_are_written():
    for path in ("w.npz", "m.safetensors.index.json", "step_1.pt", "w.pth", "pytorch_model.bin", "run/100"):
        assert CustomTarget(factory="a:b", checkpoint=path).checkpoint == path
    with pytest.raises(ConfigError, match=r"target.checkpoint: got 'w.pkl', expected a file with one of the endings"):
        CustomTarget(factory="a:b", checkpoint="w.pkl")


def test_a_state_dict_of_torch_is_read_and_what_is_left_out_is_said(torch, tensors, tmp_path):
    torch.save(tensors, tmp_path / "w.pt")
    said = []
    same(read_arrays(tmp_path / "w.pt", said))
    assert said == []
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": {**tensors, "_extra": 3}, "optimizer": optimizer, "epoch": 3}, tmp_path / "run.bin")
    same(read_arrays(tmp_path / "run.bin", said))
    assert said == [
        "run.bin: its model is the state dict; left out: optimizer, epoch",
        "run.bin: no tensor, and left out: _extra",
    ]


class Opens:
    """Pickled, it would open a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_of_torch_that_hold_other_things_are_refused_and_run_nothing(torch, tensors, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"model": tensors, "hook": Opens(tmp_path / "opened")}, path)
    with pytest.raises(BuildFailed, match=r"w.pt is no file of tensors alone, .* could run code; save the state dict"):
        read_arrays(path)
    assert not (tmp_path / "opened").exists()
    torch.save({"model": tensors, "ema": tensors}, path)
    with pytest.raises(BuildFailed, match=r"several state dicts, model, ema; .*torch.load\(path\)\['model'\]"):
        read_arrays(path)
    torch.save([1, 2], path)
    with pytest.raises(BuildFailed, match=r"w.pt holds a list, expected a state dict"):
        read_arrays(path)
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(BuildFailed, match=r"w.pt (cannot be read as pt|is no file of tensors alone)"):
        read_arrays(path)


def test_a_folder_of_orbax_is_read_by_path(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="Orbax is missing: pip install orbax-checkpoint")
    tree = {"params": {"layer": [jnp.ones((2, 3)), jnp.zeros(2, jnp.bfloat16)]}, "step": 3}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(5, args=ocp.args.StandardSave(tree))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "alone", tree)
    arrays = {"params/layer/0": np.ones((2, 3), np.float32), "params/layer/1": np.zeros(2, jnp.bfloat16)}
    for folder in (tmp_path / "run" / "5", tmp_path / "alone"):
        same(read_arrays(folder), arrays)
    (tmp_path / "other").mkdir()
    with pytest.raises(BuildFailed, match=r"other cannot be read as a checkpoint of Orbax: "):
        read_arrays(tmp_path / "other")


def test_without_its_package_a_checkpoint_says_what_to_install(tmp_path, monkeypatch):
    for name in ("orbax.checkpoint", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    tools.cache_clear()
    with pytest.raises(BuildFailed, match=r"is a folder, which Orbax reads, .*; pip install orbax-checkpoint"):
        read_arrays(tmp_path)
    with pytest.raises(BuildFailed, match=r"torch and torchax cannot be imported .*pip install 'lambda-hat\[torch\]'"):
        read_arrays(tmp_path / "w.pt")
