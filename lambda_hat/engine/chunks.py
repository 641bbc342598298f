"""A run is computed in chunks of about a second. Between two chunks its state can be saved, and the run can stop."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lambda_hat.errors import CorruptArtifact, Paused
from lambda_hat.programs.compiling import compiled, require_memory
from lambda_hat.store.drain import Drain
from lambda_hat.store.files import DAMAGED_NPZ, write_bytes_atomic

CHUNK_SECONDS = 1.0
"""Length that a chunk aims at. Signals and the clock count only between chunks, and PBS kills 10 s after a signal."""
LONGEST_SECONDS, ENOUGH = 3.0, 8
"""A chunk may take LONGEST_SECONDS to make ENOUGH transitions. In a large network a call costs as much as half a
transition, beside the transitions that it makes."""
MOST_GROWTH = 8
"""Factor by which a chunk may be longer than the one before. The first chunks show how long a transition takes."""
CHECKPOINT_FORMAT = 5
DIGEST_BYTES = hashlib.sha256().digest_size


@runtime_checkable
class State(Protocol):
    """The state of runs side by side."""

    @property
    def step(self) -> jax.Array:
        """Transitions made."""
        ...


Carry = TypeVar("Carry", bound=State)
Tree = TypeVar("Tree")
Progress = Callable[[str, int, int], None]
"""(phase, transitions made in it, transitions in all)."""


class Kept(NamedTuple):
    """The content of one run's checkpoint."""

    step: int
    """Transitions made."""
    facts: dict[str, float | int]
    leaves: list[np.ndarray]


class Chunks:
    """Drives the loops of runs side by side, and saves the state of each.

    Args:
        *paths: The checkpoint of each lane; without any, no state is saved.
        lanes: Lanes of the program, where there are more than paths. The surplus lanes repeat the last one.
        every: Longest time between two checkpoints, in seconds.
        drain: Asked between chunks whether to stop.
        memory: Bytes that the lanes may take; None: not known.
        programs: The folder through which compiled programs are exchanged; None: there is none.
        progress: Called between chunks.

    Attributes:
        facts: For every lane a JSON object that is saved with its checkpoints: its share of the seconds that the lanes
            spent together, and the number of programs made so far (those of all lanes count for the first).
        memory: As given.
    """

    def __init__(
        self,
        *paths: Path,
        lanes: int = 1,
        every: float = 60.0,
        drain: Drain | None = None,
        memory: int | None = None,
        programs: Path | None = None,
        progress: Progress | None = None,
    ):
        self._lanes = max(len(paths), lanes)
        nothing = {"seconds_compile": 0.0, "seconds_sample": 0.0, "programs_compiled": 0, "programs_loaded": 0}
        self.facts: list[dict[str, float | int]] = [dict(nothing) for _ in range(self._lanes)]
        self._programs, self._progress = programs, progress
        self.memory = memory
        self._paths, self._every, self._drain = paths, every, drain or Drain()
        self._kept: list[Kept] = []
        self._written = time.monotonic()
        self._advanced = False

    def load(self) -> bool:
        """Read the checkpoints of an earlier attempt, which all lanes must have at the same transition.

        Returns:
            Whether there were any.

        Raises:
            CorruptArtifact: A file is not a checkpoint of this version.
        """
        found = [read_checkpoint(path) for path in self._paths]
        kept = [lane for lane in found if lane is not None]
        if not kept:
            return False
        if len(kept) < len(found) or len({lane.step for lane in kept}) > 1:
            raise ValueError("lanes that are not all in the same place cannot go on together")
        self._kept = kept + kept[-1:] * (self._lanes - len(kept))
        self.facts = [facts | lane.facts for facts, lane in zip(self.facts, self._kept, strict=True)]
        return True

    def program(
        self, static: Hashable, make: Callable[[], Callable], args: tuple, strict: bool, donate: tuple[int, ...] = ()
    ) -> Callable:
        """As `programs.compiling.compiled`, with the seconds counted in `facts`.

        Raises:
            TooLarge: A call does not fit into memory.
        """
        is_stopping = lambda: self._drain.reason is not None  # noqa: E731
        found = compiled(static, make, args, strict, donate, self._programs, is_stopping)
        require_memory(found.memory, self.memory)
        self._spend("seconds_compile", found.seconds)
        if found.source != "process":
            self.facts[0][f"programs_{found.source}"] += 1

        return self.timed(found.call)

    def timed(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
        """The function, with its seconds counted in `facts` as sampling."""

        def called(*args: PyTree) -> Tree:
            begun = time.perf_counter()
            result = jax.block_until_ready(function(*args))
            self._spend("seconds_sample", time.perf_counter() - begun)
            return result

        return called

    def _spend(self, what: str, seconds: float) -> None:
        for facts in self.facts:
            facts[what] += seconds / (len(self._paths) or self._lanes)

    def restore(self, like: Callable[[int], Tree]) -> Tree | None:
        """The loaded state of all lanes.

        Args:
            like: Gives the structure of what is saved after so many transitions, as `jax.eval_shape` does.

        Returns:
            The state, on the device; None where nothing was loaded.

        Raises:
            CorruptArtifact: The loaded arrays are not of that structure.
        """
        if not self._kept:
            return None
        expected, structure = jax.tree.flatten(like(self._kept[0].step))
        leaves = [
            together[0] if x.ndim == 0 else np.concatenate(together)
            for x, *together in zip(expected, *(lane.leaves for lane in self._kept), strict=False)
        ]
        if [_kept_as(x) for x in expected] != [(x.shape, x.dtype.name) for x in leaves]:
            where = ", ".join(map(str, self._paths))
            raise CorruptArtifact(f"{where}: a checkpoint of other arrays than those of this version")
        arrays = (
            jax.random.wrap_key_data(cast(jax.Array, leaf)) if _is_key(x) else leaf
            for x, leaf in zip(expected, leaves, strict=True)
        )
        return jax.device_put(jax.tree.unflatten(structure, arrays))

    def drive(
        self,
        phase: str,
        advance: Callable[[Carry, np.uint32], Carry],
        carry: Carry,
        begin: int,
        end: int,
        goes_on: Callable[[Carry], bool] = lambda carry: True,
        saved: Callable[[Carry], PyTree] = lambda carry: carry,
    ) -> Carry:
        """Call `advance(carry, upto)` until `carry.step` is `end`, or `goes_on(carry)` is false.

        Args:
            phase: The name of these transitions, for the progress.
            advance: Makes the transitions up to `upto`; it may take over the memory of its argument.
            carry: The state at the start.
            begin: The first transition of the phase.
            end: The transition after its last one.
            goes_on: Whether there is anything left to advance; by default there always is.
            saved: The part of the state that a checkpoint needs; by default all of it.

        Returns:
            The state at the end.

        Raises:
            Paused: The drain asked to stop before the end.
        """
        size, done = 1, int(carry.step)
        while done < end and goes_on(carry):
            self._border(carry, saved)
            begun = time.monotonic()
            carry = advance(carry, np.uint32(min(done + size, end)))
            now = int(carry.step)
            seconds = time.monotonic() - begun
            self._advanced |= now > done
            per_second = max(now - done, 1) / max(seconds, 1e-6)
            fitting = max(CHUNK_SECONDS * per_second, min(LONGEST_SECONDS * per_second, ENOUGH))
            size = max(1, int(min(MOST_GROWTH * size, fitting)))
            done = now
            if self._progress is not None:
                self._progress(phase, done - begin, end - begin)
        return carry

    def _border(self, carry: Carry, saved: Callable[[Carry], PyTree]) -> None:
        reason = self._drain.reason
        age = time.monotonic() - self._written
        if self._paths and (self._advanced if reason else age > self._every - CHUNK_SECONDS):
            leaves = leaves_of(saved(carry))
            for index, path in enumerate(self._paths):
                of_lane = [leaf if leaf.ndim == 0 else leaf[index : index + 1] for leaf in leaves]
                write_bytes_atomic(path, encode(Kept(int(carry.step), self.facts[index], of_lane)))
            self._written = time.monotonic()
        if reason is not None:
            raise Paused(reason, self._advanced)


def leaves_of(carry: PyTree) -> list[np.ndarray]:
    """The arrays of a carry on the host; random keys as their data."""
    return jax.device_get([jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(carry)])


def encode(kept: Kept) -> memoryview:
    """The bytes of a checkpoint: an .npz archive, followed by its sha256."""
    head = {"format": CHECKPOINT_FORMAT, "step": kept.step, "facts": kept.facts}
    arrays: dict[str, Any] = {f"leaf_{i:03d}": leaf for i, leaf in enumerate(kept.leaves)}
    buffer = io.BytesIO()
    np.savez(buffer, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    # The state of a large network is hundreds of megabytes, so the buffer is handed on without a copy.
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)
    return buffer.getbuffer()


def read_checkpoint(path: Path) -> Kept | None:
    """Read a checkpoint.

    Returns:
        Its content; None where there is no file.

    Raises:
        CorruptArtifact: The file is damaged or of another format; the message names it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    inner, digest = memoryview(content)[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(inner).digest() != digest:
        raise CorruptArtifact(f"{path}: a checkpoint whose checksum does not fit")
    try:
        with np.load(io.BytesIO(inner), allow_pickle=False) as arrays:
            found = dict(arrays)
        head = json.loads(found.pop("head").tobytes())
        if head["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"format {head['format']}")
        return Kept(head["step"], head["facts"], [found[name] for name in sorted(found)])
    except (*DAMAGED_NPZ, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{path}: not a checkpoint of this version ({error})") from None


def _is_key(x: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _kept_as(x: jax.Array | jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], str]:
    if _is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)
    return x.shape, x.dtype.name
