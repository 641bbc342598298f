"""A run is computed in chunks of about a second; between them its state can be kept in a file, and the run can stop."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from lambda_hat.drain import Drain
from lambda_hat.errors import CorruptArtifact, Paused
from lambda_hat.files import DAMAGED_NPZ, write_bytes_atomic
from lambda_hat.samplers.programs import compiled, require_memory

CHUNK_SECONDS = 1.0
"""A chunk aims at this: signals and the clock are looked at between chunks, and PBS leaves 10 s after a signal."""
MOST_GROWTH = 8
"""By which a chunk may be longer than the one before: the first ones tell how long a transition takes."""
CHECKPOINT_FORMAT = 1
DIGEST_BYTES = hashlib.sha256().digest_size

Carry = TypeVar("Carry")


class Chunks:
    """Drives the loops of one run, and keeps its state.

    path: where the state is kept; None: nowhere. every: seconds between two checkpoints, at most. drain: asked between
    chunks whether to stop. memory: bytes that the run may take, None where that is not known.
    programs: the folder through which compiled programs are exchanged, None where there is none.
    facts: JSON-able, kept with every checkpoint: the seconds spent and the programs made so far, and what a part of the
    run that is over has found.
    """

    def __init__(
        self,
        path: Path | None = None,
        every: float = 60.0,
        drain: Drain | None = None,
        memory: int | None = None,
        programs: Path | None = None,
    ):
        self.facts: dict[str, Any] = {"seconds_compile": 0.0, "seconds_sample": 0.0}
        self.facts |= {"programs_compiled": 0, "programs_loaded": 0}
        self._programs = programs
        self._memory = memory
        self._path, self._every, self._drain = path, every, drain or Drain()
        self._phase: str | None = None
        self._leaves: list[np.ndarray] = []
        self._written = time.monotonic()
        self._advanced = False

    def load(self) -> bool:
        """Read what an earlier try has kept; False where there is nothing.

        Raises CorruptArtifact where the file is not one that was written here.
        """
        assert self._path is not None
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return False
        self._phase, facts, self._leaves = decode(self._path, content)
        self.facts |= facts
        return True

    def program(
        self, static: Hashable, make: Callable[[], Callable], args: tuple, strict: bool, donate: tuple[int, ...] = ()
    ) -> Callable:
        """As `compiled`. Raises TooLarge where a call would not fit into memory."""
        is_stopping = lambda: self._drain.reason is not None  # noqa: E731
        found = compiled(static, make, args, strict, donate, self._programs, is_stopping)
        require_memory(found.call, self._memory)
        self.facts["seconds_compile"] += found.seconds
        if found.source != "process":
            self.facts[f"programs_{found.source}"] += 1

        def timed(*args: Any) -> Any:
            begun = time.perf_counter()
            result = jax.block_until_ready(found.call(*args))
            self.facts["seconds_sample"] += time.perf_counter() - begun
            return result

        return timed

    def resumes(self, *phases: str) -> bool:
        """Whether the kept state is of one of these phases."""
        return self._phase in phases

    def restore(self, phase: str, like: Callable[[], Carry]) -> Carry | None:
        """The kept state, if it is of this phase; `like()` gives its structure as `jax.eval_shape` does.

        Raises CorruptArtifact where the kept arrays are not of that structure.
        """
        if self._phase != phase:
            return None
        expected, structure = jax.tree.flatten(like())
        if [_kept_as(x) for x in expected] != [(x.shape, x.dtype.name) for x in self._leaves]:
            raise CorruptArtifact(f"{self._path}: a checkpoint of other arrays than this version samples with")
        arrays = (
            jax.random.wrap_key_data(leaf) if _is_key(x) else leaf
            for x, leaf in zip(expected, self._leaves, strict=True)
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
        if self._path is not None and (self._advanced if reason else age > self._every - CHUNK_SECONDS):
            write_bytes_atomic(self._path, encode(phase, self.facts, carry))
            self._written = time.monotonic()
        if reason is not None:
            raise Paused(reason, self._advanced)


def encode(phase: str, facts: dict[str, Any], carry: Any) -> memoryview:
    """A checkpoint: an npz file, and the sha256 of its bytes after it."""
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(carry)]
    head = json.dumps({"format": CHECKPOINT_FORMAT, "phase": phase, "facts": facts}).encode()
    arrays = {f"leaf_{i:03d}": leaf for i, leaf in enumerate(jax.device_get(leaves))}
    buffer = io.BytesIO()
    np.savez(buffer, head=np.frombuffer(head, np.uint8), **arrays)
    # The state of a large network is hundreds of megabytes: it is not copied once more.
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)
    return buffer.getbuffer()


def decode(path: Path, content: bytes) -> tuple[str, dict[str, Any], list[np.ndarray]]:
    """Phase, facts and arrays of a checkpoint. Raises CorruptArtifact naming `path` where they cannot be had."""
    inner, digest = memoryview(content)[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(inner).digest() != digest:
        raise CorruptArtifact(f"{path}: a checkpoint whose checksum does not fit")
    try:
        with np.load(io.BytesIO(inner), allow_pickle=False) as arrays:
            found = dict(arrays)
        head = json.loads(found.pop("head").tobytes())
        if head["format"] != CHECKPOINT_FORMAT:
            raise ValueError(f"format {head['format']}")
        return head["phase"], head["facts"], [found[name] for name in sorted(found)]
    except (*DAMAGED_NPZ, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{path}: not a checkpoint of this version ({error})") from None


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _kept_as(x: Any) -> tuple[tuple[int, ...], str]:
    if _is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)
    return x.shape, x.dtype.name
