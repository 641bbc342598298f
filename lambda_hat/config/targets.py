"""Schemas of the targets: one frozen dataclass per kind."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lambda_hat.config.common import (
    NO_ROWS,
    RuntimeConfig,
    StoreConfig,
    choice,
    fraction,
    non_negative,
    positive,
    positive_int,
    require,
)
from lambda_hat.errors import ConfigError

BUILD_FORMAT = 2

ACTIVATIONS = ("relu", "tanh", "gelu")
INPUT_LAWS = ("isotropic", "anisotropic", "mixture")
NOISES = ("none", "gaussian", "heteroscedastic", "student_t", "outliers")
LOSSES = ("nll", "mse")
MOST_LAYERS = 1000
MOST_CHECKPOINTS = 1000
MOST_PARAMETERS = 2**40
"""Bounds far above any use: a mistyped number is refused at once, before it fills the memory."""
DLN_DATA = ("population", "empirical")
KEPT_NUMBERS = 2**20
"""Most random numbers of all its rows that a deep linear network keeps. Arbitrary: a file of 4 MiB."""
CHECKPOINT_SUFFIXES = (".npz", ".safetensors", ".json", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class QuadraticTarget:
    """`L(w) = sum_i a_i w_i^2 / 2` with `rank` non-zero `a_i`; `lambda = rank/2`, multiplicity 1."""

    kind: str = "quadratic"
    dim: int = 4
    """Number of parameters."""
    rank: int | None = None
    """Number of non-zero curvatures; null means `dim`."""
    eigenvalues: list[float] | None = None
    """The `rank` non-zero curvatures `a_i`; null means all 1."""
    n: int = 1000
    """Number of data points that the loss stands for; it sets `n_beta`."""

    def __post_init__(self):
        positive_int("target.dim", self.dim)
        positive_int("target.n", self.n, 3)
        rank = self.dim if self.rank is None else self.rank
        require(0 <= rank <= self.dim, "target.rank", rank, f"0 to dim = {self.dim}")
        if self.eigenvalues is not None:
            require(len(self.eigenvalues) == rank, "target.eigenvalues", self.eigenvalues, f"rank = {rank} numbers")
            for value in self.eigenvalues:
                positive("target.eigenvalues", value)


def _check_blocks(key: str, blocks: list[list[int]], point: list[float] | None) -> None:
    require(bool(blocks) and all(blocks), key, blocks, "at least one exponent")
    exponents = [k for block in blocks for k in block]
    require(all(k >= 1 for k in exponents), key, blocks, "exponents k_i of at least 1, for w_i^(2 k_i)")
    if point is None:
        return
    require(len(point) == len(exponents), "target.point", point, f"{len(exponents)} coordinates")
    require(all(math.isfinite(x) for x in point), "target.point", point, "finite coordinates")
    start = 0
    for block in blocks:
        inside = point[start : start + len(block)]
        require(any(x == 0 for x in inside), "target.point", point, "a zero of the loss: a coordinate 0 in every block")
        start += len(block)


@dataclass(frozen=True)
class MonomialTarget:
    """`L(w) = prod_i w_i^(2 k_i)` at `point`; lambda is the least `1/(2 k_i)` over the coordinates that vanish."""

    kind: str = "monomial"
    exponents: list[int] = field(default_factory=lambda: [1, 1])
    """The `k_i`, one per coordinate."""
    point: list[float] | None = None
    """`w_star`; null means the origin. At least one coordinate must be 0."""
    n: int = 1000
    """Number of data points that the loss stands for; it sets `n_beta`."""

    def __post_init__(self):
        positive_int("target.n", self.n, 3)
        _check_blocks("target.exponents", [self.exponents], self.point)

    @property
    def blocks(self) -> list[list[int]]:
        """The exponents as the single block of a sum."""
        return [self.exponents]


@dataclass(frozen=True)
class MonomialSumTarget:
    """A sum of monomials over disjoint coordinates.

    Its lambda is the sum of theirs, its multiplicity the sum of theirs minus `blocks - 1`.
    """

    kind: str = "monomial_sum"
    blocks: list[list[int]] = field(default_factory=lambda: [[1], [2]])
    """One list of `k_i` per block, each over its own coordinates: [[1], [2]] is `w1^2 + w2^4`."""
    point: list[float] | None = None
    """`w_star`; null means the origin. At least one coordinate of every block must be 0."""
    n: int = 1000
    """Number of data points that the loss stands for; it sets `n_beta`."""

    def __post_init__(self):
        positive_int("target.n", self.n, 3)
        _check_blocks("target.blocks", self.blocks, self.point)


@dataclass(frozen=True)
class RadialTarget:
    """`L(w) = (sum_i w_i^2)^k` at the origin; `lambda = dim / (2 k)`, multiplicity 1."""

    kind: str = "radial"
    dim: int = 2
    """Number of parameters."""
    k: int = 2
    """The power of the squared radius."""
    n: int = 1000
    """Number of data points that the loss stands for; it sets `n_beta`."""

    def __post_init__(self):
        positive_int("target.dim", self.dim)
        positive_int("target.k", self.k)
        positive_int("target.n", self.n, 3)


@dataclass(frozen=True)
class LineAndPointTarget:
    """`L(w) = (w1 - 1)^2 (w1^2 + w2^2)^4`; lambda is 1/2 on the line w1 = 1 and 1/4 at the origin."""

    kind: str = "line_and_point"
    point: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """`w_star`: a point of the line w1 = 1, or the origin."""
    n: int = 1000
    """Number of data points that the loss stands for; it sets `n_beta`."""

    def __post_init__(self):
        positive_int("target.n", self.n, 3)
        point = self.point
        require(
            len(point) == 2 and all(math.isfinite(x) for x in point) and (point[0] == 1 or point == [0, 0]),
            "target.point",
            point,
            "[1, w2] or [0, 0]",
        )


@dataclass(frozen=True)
class TanhTarget:
    """The expected loss `E f(x)^2 / 2` of `f(x) = sum_i a_i tanh(b_i x)` at `w_star = 0`.

    The truth is zero and x is standard normal. With `i = floor(sqrt(hidden))`,
    `lambda = (hidden + i^2 + i) / (4 i + 2)`, and the multiplicity is 2 if `i^2 = hidden`, else 1 (Yamazaki & Watanabe
    2003; Aoyagi 2010).
    """

    kind: str = "tanh"
    hidden: int = 1
    """H, the number of hidden units; there are 2 H parameters."""
    n: int = 1000
    """Number of data points that the loss stands for; it sets `n_beta`."""

    def __post_init__(self):
        positive_int("target.hidden", self.hidden)
        positive_int("target.n", self.n, 3)


def _is_plain(content: Any) -> bool:
    """Whether JSON keeps `content` as it is, so that an id can be made of it."""
    try:
        return json.loads(json.dumps(content, allow_nan=False)) == content
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class CustomTarget:
    """A loss, parameters and data that a Python function of the user returns.

    A study that names one is code: run it only if you trust its author.
    """

    kind: str = "custom"
    factory: str | None = None
    """`package.module:function`, which must be importable wherever targets are built and sampled. It is called with
    `kwargs` and returns `(loss, params, data)`. Either this or `torch`."""
    torch: str | None = None
    """In place of `factory`, a function that returns `(module, loss_fn, data)` with a `torch.nn.Module` and its loss
    `loss_fn(module, batch)` in torch."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory: numbers, texts, booleans, lists and mappings of them. Part of the id."""
    version: int = 1
    """Raise it when a change of the factory's code changes what it returns: no id depends on the code itself."""
    checkpoint: str | None = None
    """A .npz, .safetensors, .index.json, .pt, .pth or .bin file, or a folder of Orbax, with arrays by parameter path,
    which replace those of the factory, and with `torch` the module's buffers too. No id depends on the path. A study
    takes several, and makes a target of each: a pattern such as `run/step_*.npz`, a list, or a mapping from steps to
    files."""
    checkpoint_sha256: str | None = None
    """Hash of the content, part of the id. Filled in when a study is composed."""
    step: int | None = None
    """Training step of the checkpoint. Targets that differ in nothing but checkpoint and step are one trajectory. Of
    several checkpoints, it is the number in the name of each."""
    trajectory: str | None = None
    """Name of the trajectory, for trainings that nothing else tells apart. Part of the id."""
    n: int | None = None
    """Number of data points. Null: the rows of the data. It is needed if the factory returns no data."""

    def __post_init__(self):
        for key, name in (("factory", self.factory), ("torch", self.torch)):
            module, colon, function = (name or "").partition(":")
            words = [*module.split("."), *function.split(".")]
            is_name = bool(colon) and all(word.isidentifier() for word in words)
            require(name is None or is_name, f"target.{key}", name, "package.module:function")
        positive_int("target.version", self.version, 0)
        require(
            _is_plain(self.kwargs), "target.kwargs", self.kwargs, "finite numbers, texts, booleans, lists, mappings"
        )
        positive_int("target.n", self.n, 3)
        require(
            self.checkpoint is None or Path(self.checkpoint).suffix in ("", ".orbax", *CHECKPOINT_SUFFIXES),
            "target.checkpoint",
            self.checkpoint,
            f"a file with one of the endings {', '.join(CHECKPOINT_SUFFIXES)}, or a folder of Orbax",
        )
        require(self.step is None or self.step >= 0, "target.step", self.step, "an integer of at least 0")
        require(
            self.step is None or self.checkpoint is not None or self.checkpoint_sha256 is not None,
            "target.step",
            self.step,
            "null, because there is no target.checkpoint",
        )

    @property
    def function(self) -> str:
        """The function that makes the target, which `factory` or `torch` names."""
        return self.factory or self.torch or ""


@dataclass(frozen=True)
class DlnTarget:
    """A deep linear network `f(x) = W_L ... W_1 x` at a teacher of the given rank, with standard normal inputs."""

    kind: str = "dln"
    widths: list[int] = field(default_factory=lambda: [2, 1, 2])
    """H_0 (inputs), hidden widths, H_L (outputs)."""
    rank: int | None = None
    """Rank of the teacher. Null: full, with dense random factors. Below full: `W_k = diag(A_k, 0)`."""
    n: int = 1000
    """Number of data points; with the population loss it only sets `n_beta`."""
    data: str = "population"
    """`population`: the closed-form expected loss. `empirical`: `n` drawn data points. The target keeps their second
    moments, and the points themselves where they are few. Else a minibatch draws its rows again from their keys."""
    noise_std: float = 0.0
    """Standard deviation of the noise on the outputs of empirical data."""

    def __post_init__(self):
        require(len(self.widths) >= 3, "target.widths", self.widths, "inputs, at least one hidden width, outputs")
        for width in self.widths:
            positive_int("target.widths", width)
        least = min(self.widths)
        if self.rank is not None:
            require(0 <= self.rank <= least, "target.rank", self.rank, f"0 to the least width, {least}")
        positive_int("target.n", self.n, 3)
        choice("target.data", self.data, DLN_DATA)
        non_negative("target.noise_std", self.noise_std)
        if self.data == "population" and self.noise_std > 0:
            raise ConfigError("target.noise_std: the population loss has no noise; write target.data: empirical")

    @property
    def keeps_rows(self) -> bool:
        """Whether the target keeps the random numbers of its rows, beside their moments."""
        numbers = self.widths[0] + self.widths[-1] * (self.noise_std > 0)
        return self.data == "empirical" and self.n * numbers <= KEPT_NUMBERS


@dataclass(frozen=True)
class MlpTarget:
    """A student network that is trained on data of a teacher network; see `model`, `data`, `teacher` and `training`."""

    kind: str = "mlp"


@dataclass(frozen=True)
class ModelConfig:
    """A multilayer perceptron."""

    widths: list[int] | None = None
    """Hidden widths. Null: `depth` equal widths, chosen by `num_params`."""
    depth: int | None = None
    """Number of hidden layers, with `num_params`."""
    num_params: int | None = None
    """Wanted number of parameters. The equal widths that come nearest are taken."""
    activation: str = "tanh"
    """`relu`, `tanh` or `gelu`."""
    bias: bool = True
    """Whether every layer has a bias."""

    def __post_init__(self):
        choice("model.activation", self.activation, ACTIVATIONS)
        if self.widths is not None:
            require(bool(self.widths), "model.widths", self.widths, "at least one hidden width")
            for width in self.widths:
                positive_int("model.widths", width)
            require(self.num_params is None, "model.num_params", self.num_params, "null, because widths are given")
            require(
                self.depth is None or self.depth == len(self.widths),
                "model.depth",
                self.depth,
                f"null, or the number of widths, {len(self.widths)}",
            )
        else:
            require(
                self.num_params is not None and self.depth is not None,
                "model.widths",
                None,
                "hidden widths, or depth and num_params in their place",
            )
            assert self.depth is not None
            require(1 <= self.depth <= MOST_LAYERS, "model.depth", self.depth, f"an integer from 1 to {MOST_LAYERS}")
            positive_int("model.num_params", self.num_params)


@dataclass(frozen=True)
class DataConfig:
    """Inputs `x` of shape (n, input_dim), targets `y = teacher(x) + noise` of shape (n, output_dim)."""

    n: int = 1000
    """Number of data points."""
    input_dim: int = 4
    """Entries of an input."""
    output_dim: int = 1
    """Entries of an output."""
    input_law: str = "isotropic"
    """`isotropic` (standard normal), `anisotropic` (normal with variances that differ) or `mixture` (clusters)."""
    anisotropy: float = 10.0
    """Ratio of the largest to the smallest input variance (anisotropic), geometric in between."""
    num_components: int = 4
    """Number of clusters (mixture)."""
    separation: float = 2.0
    """Standard deviation of the cluster centres (mixture), in units of the spread inside a cluster."""
    noise: str = "gaussian"
    """`none`, `gaussian`, `heteroscedastic`, `student_t` or `outliers`."""
    noise_std: float = 0.1
    """Scale of the noise, in units of y."""
    noise_df: float = 4.0
    """Degrees of freedom (student_t)."""
    outlier_fraction: float = 0.05
    """Share of the outputs that are outliers (outliers)."""
    outlier_scale: float = 10.0
    """Standard deviation of an outlier's noise, in units of noise_std."""
    seed: int | None = None
    """Seed of inputs, teacher and noise; null means the target's seed."""

    def __post_init__(self):
        positive_int("data.n", self.n, 3)
        for key in ("input_dim", "output_dim", "num_components"):
            positive_int(f"data.{key}", getattr(self, key))
        choice("data.input_law", self.input_law, INPUT_LAWS)
        choice("data.noise", self.noise, NOISES)
        require(1 <= self.anisotropy < math.inf, "data.anisotropy", self.anisotropy, "a finite number of at least 1")
        non_negative("data.separation", self.separation)
        non_negative("data.noise_std", self.noise_std)
        positive("data.noise_df", self.noise_df)
        fraction("data.outlier_fraction", self.outlier_fraction)
        positive("data.outlier_scale", self.outlier_scale)


@dataclass(frozen=True)
class TrainingConfig:
    """Empirical risk minimisation by Adam, then by L-BFGS on the full data. Each stops when it no longer improves."""

    learning_rate: float = 1e-2
    """Initial Adam step, decayed by a cosine to 0 over `steps`."""
    steps: int = 5000
    """Adam steps at most."""
    batch_size: int | None = None
    """Rows per Adam step. Null: the full data."""
    patience: int = 500
    """Adam stops early after this many steps in which the full-data loss did not improve by `tolerance`."""
    tolerance: float = 1e-5
    """Least relative improvement of the loss that counts for `patience`."""
    polish_steps: int = 5000
    """L-BFGS steps after Adam, at most; 0 for none."""
    grad_tolerance: float = 1e-7
    """L-BFGS stops when every entry of the gradient is smaller than this."""

    def __post_init__(self):
        positive("training.learning_rate", self.learning_rate)
        positive_int("training.steps", self.steps)
        positive_int("training.batch_size", self.batch_size)
        positive_int("training.patience", self.patience)
        non_negative("training.tolerance", self.tolerance)
        positive_int("training.polish_steps", self.polish_steps, 0)
        non_negative("training.grad_tolerance", self.grad_tolerance)


@dataclass(frozen=True)
class CheckpointsConfig:
    """Points along a training, each of which is a target."""

    every: int = 500
    """Adam steps between two checkpoints."""

    def __post_init__(self):
        positive_int("checkpoints.every", self.every)


class TargetKeys(Protocol):
    """What `BuildConfig` reads of the section `target`. The `n` of an MLP is in another section."""

    @property
    def kind(self) -> str:
        """A key of `BUILD_SCHEMAS`."""
        ...

    @property
    def n(self) -> int | None:
        """Number of data points."""
        ...


@dataclass(frozen=True)
class BuildConfig:
    """The keys of every target."""

    seed: int = 0
    """Seed of whatever is random about the target."""
    format: int = BUILD_FORMAT
    """Version of the targets' numbers, which is part of the id. It is filled in."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """What the build's process may use."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """Where the target lies."""

    if TYPE_CHECKING:
        # A field of every subclass. An annotation that dataclasses see would move it before the other fields.
        target: ClassVar[TargetKeys]
    analytic: ClassVar[bool] = True
    """Whether the loss is known in closed form, without data."""

    def __post_init__(self):
        require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        dim = self.dim
        require(
            dim is None or dim <= MOST_PARAMETERS, "target", f"{dim} parameters", f"at most {MOST_PARAMETERS} of them"
        )
        require(
            self.format == BUILD_FORMAT, "format", self.format, f"{BUILD_FORMAT}, the format that this version builds"
        )

    @property
    def kind(self) -> str:
        """A key of `BUILD_SCHEMAS`."""
        return self.target.kind

    @property
    def n(self) -> int | None:
        """Number of data points; None if it is not known before the target is built."""
        return self.target.n

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Shape of every parameter array by path; None if it is not known before the target is built."""
        raise NotImplementedError

    @property
    def dim(self) -> int | None:
        """Number of parameters; None if it is not known before the target is built."""
        shapes = self.param_shapes
        return None if shapes is None else sum(math.prod(shape) for shape in shapes.values())

    @property
    def num_data(self) -> int | None:
        """Rows that the full-data loss reads: 0 for a closed-form loss, None if only the build tells."""
        return 0

    @property
    def no_likelihood(self) -> str | None:
        """Why the loss of a row is not a negative log likelihood; None if it is, as far as the configuration says."""
        return NO_ROWS["population"] if self.num_data == 0 else None

    @property
    def label(self) -> str:
        """A few words that tell the target from others in tables and pictures."""
        raise NotImplementedError


def _monomial_label(blocks: list[list[int]], point: list[float] | None) -> str:
    names = itertools.count(1)
    terms = [" ".join(f"w{next(names)}^{2 * k}" for k in block) for block in blocks]
    where = "" if point is None or not any(point) else f" at ({', '.join(f'{x:g}' for x in point)})"
    return " + ".join(terms) + where


@dataclass(frozen=True)
class QuadraticBuild(BuildConfig):
    """The keys of a quadratic target."""

    target: QuadraticTarget = field(default_factory=QuadraticTarget)

    @property
    def label(self) -> str:
        rank = self.target.dim if self.target.rank is None else self.target.rank
        return f"quadratic d={self.target.dim} rank {rank}"

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"w": (self.target.dim,)}


@dataclass(frozen=True)
class MonomialBuild(BuildConfig):
    """The keys of a monomial target."""

    target: MonomialTarget = field(default_factory=MonomialTarget)

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"w": (len(self.target.exponents),)}

    @property
    def label(self) -> str:
        return _monomial_label(self.target.blocks, self.target.point)


@dataclass(frozen=True)
class MonomialSumBuild(BuildConfig):
    """The keys of a sum of monomials."""

    target: MonomialSumTarget = field(default_factory=MonomialSumTarget)

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"w": (sum(map(len, self.target.blocks)),)}

    @property
    def label(self) -> str:
        return _monomial_label(self.target.blocks, self.target.point)


@dataclass(frozen=True)
class RadialBuild(BuildConfig):
    """The keys of a radial target."""

    target: RadialTarget = field(default_factory=RadialTarget)

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"w": (self.target.dim,)}

    @property
    def label(self) -> str:
        return f"|w|^{2 * self.target.k} d={self.target.dim}"


@dataclass(frozen=True)
class LineAndPointBuild(BuildConfig):
    """The keys of a target with a line and a point of zeros."""

    target: LineAndPointTarget = field(default_factory=LineAndPointTarget)

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"w": (2,)}

    @property
    def label(self) -> str:
        return f"(w1-1)^2 |w|^8 at ({', '.join(f'{x:g}' for x in self.target.point)})"


@dataclass(frozen=True)
class TanhBuild(BuildConfig):
    """The keys of a tanh network with a truth of zero."""

    target: TanhTarget = field(default_factory=TanhTarget)

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"a": (self.target.hidden,), "b": (self.target.hidden,)}

    @property
    def label(self) -> str:
        return f"tanh network H={self.target.hidden}, truth 0"


@dataclass(frozen=True)
class CustomBuild(BuildConfig):
    """The keys of a target that the user's Python function makes."""

    target: CustomTarget = field(default_factory=CustomTarget)

    analytic: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if (self.target.factory is None) == (self.target.torch is None):
            both = "both factory and torch" if self.target.factory is not None else "neither factory nor torch"
            raise ConfigError(f"target: got {both}, expected one of them, for example factory: package.module:function")

    @property
    def param_shapes(self) -> None:
        return None

    @property
    def num_data(self) -> None:
        return None

    @property
    def label(self) -> str:
        target = self.target
        label = f"{target.function}({', '.join(f'{key}={value}' for key, value in target.kwargs.items())})"
        if target.trajectory is not None:
            label += f" {target.trajectory}"
        if target.step is not None:
            return f"{label} step {target.step}"
        return label if target.checkpoint is None else f"{label} at {'/'.join(PurePath(target.checkpoint).parts[-2:])}"

    @property
    def step(self) -> int | None:
        """The training step of the checkpoint; None if it is no point of a trajectory."""
        return self.target.step


@dataclass(frozen=True)
class RegressionBuild(BuildConfig):
    """The loss compares outputs.

    `nll` is Gaussian with standard deviation `sigma`, summed over outputs and without its constant:
    `|y - f(x)|^2 / (2 sigma^2)`. `mse` is averaged over outputs.
    """

    loss: str = "nll"
    """`nll` or `mse`."""
    sigma: float = 1.0
    """Standard deviation of the Gaussian likelihood, in units of y (nll)."""

    def __post_init__(self):
        super().__post_init__()
        choice("loss", self.loss, LOSSES)
        positive("sigma", self.sigma)

    @property
    def no_likelihood(self) -> str | None:
        return NO_ROWS["mse"] if self.loss == "mse" else super().no_likelihood


@dataclass(frozen=True)
class DlnBuild(RegressionBuild):
    """The keys of a deep linear network."""

    target: DlnTarget = field(default_factory=DlnTarget)

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        pairs = itertools.pairwise(self.target.widths)
        return {f"layers/{layer}/weight": (b, a) for layer, (a, b) in enumerate(pairs)}

    @property
    def num_data(self) -> int:
        return self.target.n if self.target.data == "empirical" else 0

    @property
    def label(self) -> str:
        rank = min(self.target.widths) if self.target.rank is None else self.target.rank
        return f"dln {'-'.join(map(str, self.target.widths))} rank {rank}, {self.target.data}"


def mlp_widths(model: ModelConfig, input_dim: int, output_dim: int) -> list[int]:
    """Hidden widths of `model`: those given, or `depth` equal ones whose parameter count is nearest to `num_params`."""
    if model.widths is not None:
        return list(model.widths)

    depth, wanted = model.depth, model.num_params
    assert depth is not None and wanted is not None

    def count(width: int) -> int:
        inner = (depth - 1) * (width + model.bias) * width
        return (input_dim + model.bias) * width + inner + (width + model.bias) * output_dim

    # The largest width with at most num_params parameters, but at least 1.
    width = max(1, bisect.bisect_right(range(wanted + 1), wanted, lo=1, key=count) - 1)
    width = min((width, width + 1), key=lambda w: abs(count(w) - wanted))
    return [width] * depth


@dataclass(frozen=True)
class MlpBuild(RegressionBuild):
    """The keys of a trained multilayer perceptron."""

    target: MlpTarget = field(default_factory=MlpTarget)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(widths=[8]))
    """The student."""
    data: DataConfig = field(default_factory=DataConfig)
    """Inputs and noise."""
    teacher: ModelConfig | None = None
    """The network that makes the outputs. Null: one of the student's architecture."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How `w_star` is found."""
    checkpoints: CheckpointsConfig | None = None
    """If given, points along the training are the targets, in place of the minimum. The training then takes all of its
    Adam steps, and no L-BFGS follows."""
    step: int | None = None
    """The Adam step of the checkpoint that this target is. A study has one target for each checkpoint."""

    analytic: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if self.checkpoints is not None:
            steps, every = self.training.steps, self.checkpoints.every
            require(
                steps // every <= MOST_CHECKPOINTS,
                "checkpoints.every",
                every,
                f"at least {-(-steps // MOST_CHECKPOINTS)}, for at most {MOST_CHECKPOINTS} targets in {steps} steps",
            )
        if self.step is not None and not self._has_checkpoint(self.step):
            there = self.checkpoint_steps or "none are asked for"
            raise ConfigError(f"step: got {self.step}, expected one of the steps of checkpoints: {there!s:.200}")

    def _has_checkpoint(self, step: int) -> bool:
        if self.checkpoints is None:
            return False
        steps, every = self.training.steps, self.checkpoints.every
        return step == steps or (step % every == 0 and 0 < step < steps)

    @property
    def checkpoint_steps(self) -> list[int]:
        """Adam steps of the checkpoints: every `checkpoints.every`, and the last."""
        if self.checkpoints is None:
            return []
        steps = range(self.checkpoints.every, self.training.steps + 1, self.checkpoints.every)
        return sorted({*steps, self.training.steps})

    @property
    def n(self) -> int:
        return self.data.n

    @property
    def widths(self) -> list[int]:
        """Hidden widths of the student."""
        return mlp_widths(self.model, self.data.input_dim, self.data.output_dim)

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = [self.data.input_dim, *self.widths, self.data.output_dim]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (a, b) in enumerate(itertools.pairwise(sizes)):
            shapes[f"layers/{layer}/weight"] = (b, a)
            if self.model.bias:
                shapes[f"layers/{layer}/bias"] = (b,)
        return shapes

    @property
    def num_data(self) -> int:
        return self.data.n

    @property
    def label(self) -> str:
        sizes = [self.data.input_dim, *self.widths, self.data.output_dim]
        where = "" if self.step is None else f" step {self.step}"
        return f"mlp {'-'.join(map(str, sizes))} {self.model.activation}{where}"


BUILD_SCHEMAS: dict[str, type[BuildConfig]] = {
    "quadratic": QuadraticBuild,
    "monomial": MonomialBuild,
    "monomial_sum": MonomialSumBuild,
    "radial": RadialBuild,
    "line_and_point": LineAndPointBuild,
    "tanh": TanhBuild,
    "dln": DlnBuild,
    "mlp": MlpBuild,
    "custom": CustomBuild,
}
