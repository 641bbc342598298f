"""Modules of torch as losses: their values, what is held and said, and what is refused with a sentence."""

import sys
import textwrap
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat import estimate_llc
from lambda_hat.config import CustomBuild, CustomTarget, HmcConfig, ObserveConfig, SgldConfig
from lambda_hat.config.checkpoint_file import with_checkpoint_hash
from lambda_hat.engine.run import place_of
from lambda_hat.errors import BuildFailed, ConfigError
from lambda_hat.execute.build import build_into
from lambda_hat.execute.sampling import sample_into
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.samplers import lane_key, make_lane
from lambda_hat.targets import load_target
from lambda_hat.targets.base import all_parameters
from lambda_hat.targets.custom import target_of
from lambda_hat.targets.observables import with_observables
from lambda_hat.targets.pytrees import notes_on, split_params
from lambda_hat.torch import from_torch
from lambda_hat.torch.state_dicts import load_state
from lambda_hat.workflow_config import compose_study

torch = pytest.importorskip("torch", reason="PyTorch is missing: pip install -e '.[torch]'")
pytest.importorskip("torchax", reason="torchax is missing: pip install -e '.[torch]'")
nn, F = torch.nn, torch.nn.functional
RNG = np.random.default_rng(0)
FLAT = {"x": RNG.normal(size=(40, 6)).astype(np.float32), "y": RNG.integers(0, 3, 40)}
IMAGES = {"x": RNG.normal(size=(8, 2, 6, 6)).astype(np.float32), "y": RNG.integers(0, 3, 8)}
TOKENS = {"x": RNG.integers(0, 11, (12, 5))}


def cross_entropy(module, batch):
    return F.cross_entropy(module(batch["x"]), batch["y"])


def next_token(module, batch):
    logits, labels = module(batch["x"])[:, :-1], batch["x"][:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), torch.ones_like(labels).sum()


class Transformer(nn.Module):
    """Token and position embeddings, a causal block, and an output whose weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.tokens.weight
        self.mask = torch.triu(torch.full((5, 5), float("-inf")), 1)  # neither parameter nor buffer

    def forward(self, tokens):
        where = torch.arange(tokens.shape[1])
        return self.out(self.block(self.tokens(tokens) + self.positions[where], src_mask=self.mask))


def mlp():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()


def convolution():
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.LayerNorm(27), nn.Linear(27, 3),
    )  # fmt: skip
    with torch.no_grad():
        module(torch.randn(50, 2, 6, 6) * 3 + 1)
    return module


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("make", "loss_fn", "data"),
    [(mlp, cross_entropy, FLAT), (convolution, cross_entropy, IMAGES), (Transformer, next_token, TOKENS)],
)
def test_values_and_gradients_are_torchs_with_a_state_dict_put_in(make, loss_fn, data):
    module, other = make().eval(), make().eval()
    load_state(module, {name: tensor.numpy() for name, tensor in other.state_dict().items()}, "the state")
    loss, params = from_torch(module, loss_fn)
    expected = other(torch.from_numpy(data["x"]))
    outputs, _ = from_torch(module, lambda module, batch: module(batch["x"]))
    np.testing.assert_allclose(jax.jit(outputs)(params, data), expected.detach(), rtol=1e-5, atol=1e-5)

    def number(value):
        return value[0] / value[1] if isinstance(value, tuple) else value

    there = number(loss_fn(other, {name: torch.from_numpy(array) for name, array in data.items()}))
    there.backward()
    here, gradient = jax.jit(jax.value_and_grad(lambda params: number(loss(params, data))))(params)
    assert float(here) == pytest.approx(float(there.detach()), rel=1e-5)
    own = dict(other.named_parameters())
    assert [name.replace(".", "/") for name in own] == list(params)
    for path, array in gradient.items():
        np.testing.assert_allclose(array, own[path.replace("/", ".")].grad, rtol=1e-4, atol=1e-5, err_msg=path)


def test_outputs_of_named_inputs_go_to_the_loss():
    module = mlp()
    by_module, params = from_torch(module, cross_entropy)
    by_outputs, _ = from_torch(module, lambda outputs, batch: F.cross_entropy(outputs, batch["y"]), inputs="x")
    by_place, _ = from_torch(module, lambda outputs, batch: F.cross_entropy(outputs, batch[1]), inputs=[0])
    expected = by_module(params, FLAT)
    assert by_outputs(params, FLAT) == by_place(params, (FLAT["x"], FLAT["y"])) == expected
    wrong, _ = from_torch(module, cross_entropy, inputs=["x", "z"])
    with pytest.raises(
        ConfigError, match=r"inputs: got \['x', 'z'\], expected keys of the batch, which is \['x', 'y'\]"
    ):
        wrong(params, FLAT)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "options"), [("sgld", {"batch_size": 16, "thin": 2}), ("hmc", {})])
def test_an_estimate_is_that_of_the_jax_twin_to_every_digit(sampler, options):
    loss, params = from_torch(mlp(), lambda module, batch: ((module(batch["x"]) - batch["y"]) ** 2).mean())

    def twin(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["0/weight"].T + params["0/bias"])
        return jnp.mean((hidden @ params["2/weight"].T + params["2/bias"] - batch["y"]) ** 2)

    data = {"x": FLAT["x"], "y": FLAT["x"][:, :3] ** 2}
    options = {"sampler": sampler, "num_draws": 100, "num_burnin": 50, "restrict": "2/*", **options}
    one, other = (estimate_llc(function, params, data, **options) for function in (loss, twin))
    assert one.dim == 15
    assert (one.llc, one.std_error, one.loss_at_w_star) == (other.llc, other.std_error, other.loss_at_w_star)


def test_tied_weights_are_one_array():
    module = Transformer()
    _, params = from_torch(module, next_token)
    assert "tokens/weight" in params and "out/weight" not in params
    assert sum(array.size for array in params.values()) == sum(p.numel() for p in module.parameters())
    arrays = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    load_state(module, {name: array for name, array in arrays.items() if name != "out.weight"}, "a file")
    with pytest.raises(ConfigError, match="tokens/weight and out/weight are one tensor in the module, and differ here"):
        load_state(module, {**arrays, "out.weight": arrays["out.weight"] + 1}, "a file")


def test_buffers_and_frozen_parameters_are_held_and_said_and_the_mode_is_the_users():
    module = convolution()
    module[0].bias.requires_grad_(False)
    assert module.training
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    loss, params = from_torch(module, cross_entropy)
    assert not {"1/running_mean", "1/running_var", "1/num_batches_tracked", "0/bias"} & params.keys()
    target = target_of(loss, params, IMAGES, None)
    assert target.held.keys() == {"1/running_mean", "1/running_var", "1/num_batches_tracked", "0/bias"}
    restricted = target.restricted(["7/*"])
    assert restricted.dim == 84 and restricted.held.keys() > target.held.keys()
    assert (target.notes, restricted.held_notes) == ((), target.held_notes)
    assert target.held_notes == (
        "the module was in training mode, and is evaluated as after module.eval(): without dropout",
        "BatchNorm's statistics are held as they are: 1/running_mean, 1/running_var",
        "parameters without requires_grad are held as they are: 0/bias",
    )
    assert module.training and all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    batch = {name: torch.from_numpy(array) for name, array in IMAGES.items()}
    assert target.loss_at_w_star == pytest.approx(cross_entropy(module.eval(), batch).item(), rel=1e-5)
    module.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"module: none of its 8 parameters has requires_grad; nothing could be"):
        from_torch(module, cross_entropy)


def test_losses_of_tokens_are_torchs():
    module = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11))

    def per_token(module, batch):
        logits, labels = module(batch["x"])[:, :-1], batch["x"][:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view_as(labels), labels != 3

    target = target_of(*from_torch(module, per_token), TOKENS, None)
    losses, there = (part.detach().numpy() for part in per_token(module, {"x": torch.from_numpy(TOKENS["x"])}))
    assert 0 < there.sum() < there.size
    assert target.loss_at_w_star == pytest.approx(losses[there].mean(), rel=1e-5)
    watched = with_observables(target, {"tokens": ObserveConfig(rows=7, per="token")})
    what, data = watched.observed["tokens"]
    with jax.enable_x64(True):
        found = what(watched.loss, watched.w_star, data, 4)
    np.testing.assert_allclose(found, (losses * there)[:7], rtol=1e-5)


def test_half_precision_is_said():
    _, params = from_torch(mlp().to(torch.bfloat16), cross_entropy)
    assert {str(array.dtype) for array in params.values()} == {"bfloat16"}
    assert notes_on(params, split_params(params)[0])[0].startswith("params of type bfloat16 are sampled")


# -------------------------------------------------------------------------------------------------- what is refused


class Head(nn.Module):
    """A linear layer and a function of its outputs."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(6, 3), function

    def forward(self, x):
        return self.function(self.linear(x))


def branches(h):
    if h.sum() > 0:
        return h
    return 2 * h


def plain(h):
    assert type(h) is torch.Tensor, "no plain tensor"
    return h


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branches, r"asks for the value of a tensor in line \d+ of .*test_torch.py, 'if h.sum\(\) > 0:', by if"),
        (lambda h: h * h.sum().item(), r"asks for the value of a tensor in line .* write torch.where\(condition"),
        (lambda h: h + h[h > 0].sum(), r"or a mask as index"),
        (lambda h: torch.from_numpy(np.tanh(h.detach().numpy())), r"gives a tensor to NumPy in line .* torch's funct"),
        (lambda h: F.dropout(h, 0.5, training=True), r"draws random numbers though it is in evaluation mode"),
        (
            lambda h: h + F.adaptive_max_pool2d(h[None], 1).sum(),
            r"torchax \S+ has no JAX version of the operation aten::adaptive_max_pool2d in line .* other operations",
        ),
        (lambda h: h @ h, r"torch itself refuses rows of the data: RuntimeError: mat1 and mat2 shapes .* in line"),
        (plain, r"torchax \S+ cannot run it in line \d+ of .*test_torch.py, .*: AssertionError: no plain tensor"),
    ],
)
def test_what_cannot_be_traced_is_named_before_anything_is_compiled(function, message):
    loss, params = from_torch(Head(function), cross_entropy)
    with pytest.raises(ConfigError, match=message):
        estimate_llc(loss, params, FLAT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.where(TOKENS["x"] == 3, 11, TOKENS["x"])}, "tokens looks up 11, and has the rows 0 to 10"),
        ({"x": TOKENS["x"] - 1}, "tokens looks up -1, .* a token outside the vocabulary"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(data, message):
    with pytest.raises(ConfigError, match=f"data: {message}"):
        estimate_llc(*from_torch(Transformer(), next_token), data)


def test_a_class_that_there_is_not_is_refused_and_int32_labels_are_none():
    with pytest.raises(ConfigError, match=r"loss: torch itself refuses rows .* IndexError: Target 3 is out of bounds"):
        estimate_llc(*from_torch(mlp(), cross_entropy), {**FLAT, "y": FLAT["y"] + 1})
    labels = np.where(FLAT["y"] == 2, -100, FLAT["y"]).astype(np.int32)

    def ignoring(module, batch):
        return F.cross_entropy(module(batch["x"]), batch["y"], reduction="sum"), (batch["y"] >= 0).sum()

    assert target_of(*from_torch(mlp(), ignoring), {**FLAT, "y": labels}, None).loss_at_w_star > 0


def test_an_operation_that_jax_does_otherwise_is_seen():
    def differs(module, batch):
        return cross_entropy(module, batch) + (0.1 if type(batch["x"]) is torch.Tensor else 0.0)

    with pytest.raises(ConfigError, match=r"loss: torch computes 1\.\d+ on 40 rows, and the same code on JAX's arrays"):
        estimate_llc(*from_torch(mlp(), differs), FLAT)


def test_what_is_no_module_with_values_is_refused():
    with pytest.raises(ConfigError, match=r"module: got a function, expected a torch.nn.Module"):
        from_torch(mlp, cross_entropy)
    with pytest.raises(ConfigError, match=r"loss_fn: got None, expected a function \(module, batch\)"):
        from_torch(mlp(), None)
    with pytest.raises(ConfigError, match=r"weight has no values yet; load its weights, or call a lazy module once"):
        from_torch(nn.LazyLinear(3), cross_entropy)
    with pytest.raises(ConfigError, match=r"module: it has no parameters; nothing could be sampled"):
        from_torch(nn.ReLU(), cross_entropy)


def test_names_and_shapes_of_a_state_that_does_not_fit_are_all_listed():
    state = {name: tensor.numpy() for name, tensor in mlp().state_dict().items()}
    wrong = {**state, "2.weight": np.zeros((3, 5)), "4.weight": np.zeros(1)}
    del wrong["0.weight"], wrong["0.bias"]
    with pytest.raises(
        ConfigError,
        match=r"a file lacks 0/weight, 0/bias; also has 4/weight; has 2/weight of shape \(3, 5\), expected \(3, 4\)",
    ):
        load_state(mlp(), wrong, "a file")
    with pytest.raises(ConfigError, match=r"all its names begin with module\., write \{n\.removeprefix\('module\.'\)"):
        load_state(mlp(), {f"module.{name}": array for name, array in state.items()}, "a file")


# ------------------------------------------------------------------------------------------------------- in a study

MODULE = """
import torch
from torch import nn

def make(width=4):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 1))
    x = torch.randn(60, 3)
    return net, lambda net, batch: ((net(batch["x"]) - batch["y"]) ** 2).mean() / 2, {"x": x, "y": x[:, :1] ** 2}

def pair(width=4):
    return make(width)[:2]
"""


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A module in the current folder, and the checkpoints of a training with its optimiser."""
    name = f"torch_zoo_{abs(hash(tmp_path.name))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    net, loss_fn, data = __import__(name).make()
    optimiser = torch.optim.Adam(net.parameters())
    for step in (1, 2):
        loss_fn(net, data).backward()
        optimiser.step()
        torch.save({"model": net.state_dict(), "optimizer": optimiser.state_dict(), "step": step}, f"step_{step}.pt")
    return name, net, loss_fn, data


def test_a_study_measures_a_module_at_its_checkpoint(zoo, tmp_path):
    name, net, loss_fn, data = zoo
    (tmp_path / "study.yaml").write_text(
        f"targets: [{{target: {{torch: '{name}:make', checkpoint: step_2.pt}}}}]\nsamplers: [{{name: hmc}}]\n"
    )
    [(target_id, cfg)] = compose_study(tmp_path / "study.yaml").targets.items()
    assert cfg.label.startswith(f"{name}:make() at ") and cfg.target.factory is None
    build_into(tmp_path / target_id, cfg)
    (tmp_path / "step_2.pt").unlink()  # the store has everything
    target = load_target(tmp_path / target_id)[0]
    assert set(target.w_star) == {path.replace(".", "/") for path, _ in net.named_parameters()}
    assert target.held_notes[-1] == "step_2.pt: its model is the state dict; left out: optimizer, step"
    expected = loss_fn(net.eval(), data).item()
    assert target.loss_at_w_star == pytest.approx(expected, rel=1e-5)
    with jax.enable_x64(True):
        whole = all_parameters(target.w_star, target.held, target.starts)
        assert float(target.loss(whole, target.data)) == pytest.approx(target.loss_at_w_star, rel=1e-9)


def test_the_state_of_a_checkpoint_is_no_part_of_the_programs(zoo, tmp_path):
    name, net, _, data = zoo
    targets = []
    for step in (1, 2):
        cfg = with_checkpoint_hash(
            CustomBuild(target=CustomTarget(torch=f"{name}:make", checkpoint=f"step_{step}.pt")), "here"
        )
        build_into(tmp_path / f"target_{step}", cfg)
        targets.append(load_target(tmp_path / f"target_{step}")[0])
    one, other = targets
    assert [target.held["1/num_batches_tracked"].tolist() for target in targets] == [1, 2]
    for place in (place_of(target, "float64") for target in targets):
        assert {str(array.dtype) for array in place.held.values()} == {"float64", "int64"}
    np.testing.assert_array_equal(other.held["1/running_mean"], net[1].running_mean)
    lanes = [make_lane(target, HmcConfig(target_id="tgt_0"), 0) for target in targets]
    assert lane_key(lanes[0]) == lane_key(lanes[1])
    # Nor does any of them come from the module that the function returns at first.
    loss, params = from_torch(net, lambda net, batch: ((net(batch["x"]) - batch["y"]) ** 2).mean() / 2)
    held = {**one.held, "1/running_mean": other.held["1/running_mean"], "1/running_var": other.held["1/running_var"]}
    with jax.enable_x64(True):
        for state, is_own in ((one.held, False), (held, True)):
            value = other.loss({**other.w_star, **state}, other.data)
            assert bool(np.isclose(value, loss(params, data), rtol=1e-6)) is is_own


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_checkpoints_of_a_network_with_batch_norm_share_their_programs(zoo, tmp_path, precision):
    name, *_ = zoo
    cfg = SgldConfig(precision=precision, num_chains=2, num_draws=20, num_burnin=40, thin=1, batch_size=8)
    counts = []
    for step in (1, 2):
        build = with_checkpoint_hash(
            CustomBuild(target=CustomTarget(torch=f"{name}:make", checkpoint=f"step_{step}.pt")), "here"
        )
        target_dir = tmp_path / "targets" / target_id_for(build)
        build_into(target_dir, build)
        run = Run.of(replace(cfg, target_id=target_dir.name))
        analysis = sample_into(target_dir / run.run_id, target_dir, run)
        counts.append(analysis["programs_compiled"])
        assert any("BatchNorm" in note for note in analysis["notes"]) and np.isfinite(analysis["llc_mean"])
    assert counts[0] > 0 == counts[1]


def test_ids_and_what_a_target_of_torch_must_name(zoo, tmp_path):
    name, *_ = zoo

    def target(**keys):
        return with_checkpoint_hash(CustomBuild(target=CustomTarget(torch=f"{name}:make", **keys)), "here")

    assert target_id_for(target()) != target_id_for(CustomBuild(target=CustomTarget(factory=f"{name}:make")))
    assert len({target_id_for(target(checkpoint=f"step_{step}.pt")) for step in (1, 2)}) == 2
    with pytest.raises(
        BuildFailed, match=r"pair returned a tuple of 2: .*, expected a tuple \(module, loss_fn, data\)"
    ):
        build_into(tmp_path / "pair", CustomBuild(target=CustomTarget(torch=f"{name}:pair")))
    with pytest.raises(BuildFailed, match=r"step_1.pt has 0/weight of shape \(4, 3\), expected \(5, 3\), .*fit module"):
        build_into(tmp_path / "wide", target(checkpoint="step_1.pt", kwargs={"width": 5}))
    with pytest.raises(ConfigError, match="target: got both factory and torch, expected one of them"):
        CustomBuild(target=CustomTarget(factory="a:b", torch="a:b"))
    with pytest.raises(ConfigError, match=r"target.torch: got 'make', expected package.module:function"):
        CustomTarget(torch="make")
