"""A run is computed in chunks of about a second; between them its state can be kept in a file, and the run can stop."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from lambda_hat.drain import Drain
from lambda_hat.errors import CorruptArtifact, Paused
from lambda_hat.files import DAMAGED_NPZ, write_bytes_atomic
from lambda_hat.programs import compiled, require_memory

CHUNK_SECONDS = 1.0
"""A chunk aims at this: signals and the clock are looked at between chunks, and PBS leaves 10 s after a signal."""
MOST_GROWTH = 8
"""By which a chunk may be longer than the one before: the first ones tell how long a transition takes."""
CHECKPOINT_FORMAT = 2
DIGEST_BYTES = hashlib.sha256().digest_size

Carry = TypeVar("Carry")


class Kept(NamedTuple):
    """What a checkpoint of one run holds."""

    phase: str
    step: int
    """Transitions made in this phase."""
    facts: dict[str, Any]
    leaves: list[np.ndarray]


class Chunks:
    """Drives the loops of runs side by side, and keeps the state of each.

    paths: where the state of each lane is kept; none: nowhere. lanes: of the program, where there are more than paths;
    those beyond repeat the last. every: seconds between two checkpoints, at most. drain: asked between chunks whether
    to stop. memory: bytes that the lanes may take, None where that is not known. programs: the folder through which
    compiled programs are exchanged, None where there is none.
    facts: of every lane, JSON-able, kept with its checkpoints: its share of the seconds that the lanes spent together,
    the programs made so far (those of all lanes with the first), and what a part of the run that is over has found.
    """

    def __init__(
        self,
        *paths: Path,
        lanes: int = 1,
        every: float = 60.0,
        drain: Drain | None = None,
        memory: int | None = None,
        programs: Path | None = None,
    ):
        self._lanes = max(len(paths), lanes)
        nothing = {"seconds_compile": 0.0, "seconds_sample": 0.0, "programs_compiled": 0, "programs_loaded": 0}
        self.facts: list[dict[str, Any]] = [dict(nothing) for _ in range(self._lanes)]
        self._programs = programs
        self._memory = memory
        self._paths, self._every, self._drain = paths, every, drain or Drain()
        self._kept: list[Kept] = []
        self._written = time.monotonic()
        self._advanced = False

    def load(self) -> bool:
        """Read what an earlier try has kept of every lane, in the same place; False where there is nothing.

        Raises CorruptArtifact where a file is not one that was written here.
        """
        found = [read_checkpoint(path) for path in self._paths]
        kept = [lane for lane in found if lane is not None]
        if not kept:
            return False
        if len(kept) < len(found) or len({lane[:2] for lane in kept}) > 1:
            raise ValueError("lanes that are not all in the same place cannot go on together")
        self._kept = kept + kept[-1:] * (self._lanes - len(kept))
        self.facts = [facts | lane.facts for facts, lane in zip(self.facts, self._kept, strict=True)]
        return True

    def program(
        self, static: Hashable, make: Callable[[], Callable], args: tuple, strict: bool, donate: tuple[int, ...] = ()
    ) -> Callable:
        """As `compiled`. Raises TooLarge where a call would not fit into memory."""
        is_stopping = lambda: self._drain.reason is not None  # noqa: E731
        found = compiled(static, make, args, strict, donate, self._programs, is_stopping)
        require_memory(found.memory, self._memory)
        self._spend("seconds_compile", found.seconds)
        if found.source != "process":
            self.facts[0][f"programs_{found.source}"] += 1

        def timed(*args: Any) -> Any:
            begun = time.perf_counter()
            result = jax.block_until_ready(found.call(*args))
            self._spend("seconds_sample", time.perf_counter() - begun)
            return result

        return timed

    def _spend(self, what: str, seconds: float) -> None:
        for facts in self.facts:
            facts[what] += seconds / (len(self._paths) or self._lanes)

    def resumes(self, *phases: str) -> bool:
        """Whether the kept state is of one of these phases."""
        return bool(self._kept) and self._kept[0].phase in phases

    def restore(self, phase: str, like: Callable[[], Carry]) -> Carry | None:
        """The kept state of all lanes, if it is of this phase; `like()` gives its structure as `jax.eval_shape` does.

        Raises CorruptArtifact where the kept arrays are not of that structure.
        """
        if not self.resumes(phase):
            return None
        expected, structure = jax.tree.flatten(like())
        leaves = [
            together[0] if x.ndim == 0 else np.concatenate(together)
            for x, *together in zip(expected, *(lane.leaves for lane in self._kept), strict=False)
        ]
        if [_kept_as(x) for x in expected] != [(x.shape, x.dtype.name) for x in leaves]:
            where = ", ".join(map(str, self._paths))
            raise CorruptArtifact(f"{where}: a checkpoint of other arrays than this version samples with")
        arrays = (
            jax.random.wrap_key_data(leaf) if _is_key(x) else leaf for x, leaf in zip(expected, leaves, strict=True)
        )
        return jax.device_put(jax.tree.unflatten(structure, arrays))

    def drive(
        self,
        phase: str,
        advance: Callable[[Carry, np.uint32], Carry],
        carry: Carry,
        total: int,
        goes_on: Callable[[Carry], bool] = lambda carry: True,
    ) -> Carry:
        """Call `advance(carry, upto)` until `carry.step` is `total`, or `goes_on(carry)` is false.

        `advance` may take over the memory of its argument. Raises Paused where the run has to stop before.
        """
        size, done = 1, int(carry.step)
        while done < total and goes_on(carry):
            self._border(phase, carry)
            begun = time.monotonic()
            carry = advance(carry, np.uint32(min(done + size, total)))
            now = int(carry.step)
            seconds = time.monotonic() - begun
            self._advanced |= now > done
            fitting = CHUNK_SECONDS * max(now - done, 1) / max(seconds, 1e-6)
            size = max(1, int(min(MOST_GROWTH * size, fitting)))
            done = now
        return carry

    def _border(self, phase: str, carry: Any) -> None:
        reason = self._drain.reason
        age = time.monotonic() - self._written
        if self._paths and (self._advanced if reason else age > self._every - CHUNK_SECONDS):
            leaves = leaves_of(carry)
            for index, path in enumerate(self._paths):
                of_lane = [leaf if leaf.ndim == 0 else leaf[index : index + 1] for leaf in leaves]
                write_bytes_atomic(path, encode(Kept(phase, int(carry.step), self.facts[index], of_lane)))
            self._written = time.monotonic()
        if reason is not None:
            raise Paused(reason, self._advanced)


def leaves_of(carry: Any) -> list[np.ndarray]:
    """The arrays of a carry, off the device; of keys their data."""
    return jax.device_get([jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(carry)])


def encode(kept: Kept) -> memoryview:
    """A checkpoint: an npz file, and the sha256 of its bytes after it."""
    head = {"format": CHECKPOINT_FORMAT, "phase": kept.phase, "step": kept.step, "facts": kept.facts}
    arrays = {f"leaf_{i:03d}": leaf for i, leaf in enumerate(kept.leaves)}
    buffer = io.BytesIO()
    np.savez(buffer, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
    # The state of a large network is hundreds of megabytes: it is not copied once more.
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)
    return buffer.getbuffer()


def read_checkpoint(path: Path) -> Kept | None:
    """What the file holds; None where there is none. Raises CorruptArtifact naming it where that cannot be had."""
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
        return Kept(head["phase"], head["step"], head["facts"], [found[name] for name in sorted(found)])
    except (*DAMAGED_NPZ, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{path}: not a checkpoint of this version ({error})") from None


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _kept_as(x: Any) -> tuple[tuple[int, ...], str]:
    if _is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)
    return x.shape, x.dtype.name
